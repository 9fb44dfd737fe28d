//! What the executor promises: which hooks run, how many at once, in which order, and what is told about it.

use std::os::fd::AsFd;
use std::time::Duration;

use crate::support;
use crate::support::{PATIENCE, Rig, alone, api_call, is_alive, vm_state, vm_state_on, wait};
use hookbus_broker::{Broker, Delivery, Journal, JournalOptions, Message, Overflow, SubscribeOptions};
use hookbus_hem::{Again, Ending, Executor, Hook, HookSet, Origin, RunIf, Trigger};
use tokio::time::{Instant, timeout};

fn soon() -> Instant {
    Instant::now() + PATIENCE
}

#[test]
fn triggers_are_exact() {
    alone(|| async {
        let mut rig = Rig::new();
        rig.script("say.sh", "#!/bin/sh\necho \"$@\"\n");
        for (name, trigger) in [
            ("a-call", "TYPE = api\nCALL = one.vm.allocate"),
            ("longer-call", "TYPE = api\nCALL = one.vm.allocate.more"),
            ("running", "TYPE = state\nRESOURCE = VM\nON = RUNNING"),
            ("poweroff", "TYPE = state\nRESOURCE = VM\nON = CUSTOM\nSTATE = poweroff\nLCM_STATE = LCM_INIT"),
            ("host-error", "TYPE = state\nRESOURCE = HOST\nSTATE = ERROR"),
            ("again-running", "TYPE = STATE\nRESOURCE = vm\nSTATE = ACTIVE\nLCM_STATE = RUNNING"),
            ("anything", "TYPE = event\nPREFIX = \"EVENT \""),
        ] {
            rig.template(name, &format!("NAME = {name}\n{trigger}\nCOMMAND = say.sh\nARGUMENTS = {name}"));
        }
        let executor = rig.start();
        let host = support::opennebula(
            &["EVENT HOST 3/ERROR/ ", "EVENT STATE HOST/ERROR//3 "],
            "<HOOK_MESSAGE><HOOK_TYPE>STATE</HOOK_TYPE><HOOK_OBJECT>HOST</HOOK_OBJECT><STATE>ERROR</STATE>\
             <RESOURCE_ID>3</RESOURCE_ID><HOST><ID>3</ID></HOST></HOOK_MESSAGE>",
        );
        // The key claims what the header doesn't say: the header decides.
        let claims = support::opennebula(
            &["EVENT API one.vm.allocate 1"],
            "<HOOK_MESSAGE><HOOK_TYPE>API</HOOK_TYPE><CALL>one.vm.rename</CALL><CALL_INFO/></HOOK_MESSAGE>",
        );
        // A payload that isn't oned's is not an event of oned, whatever its key says.
        let foreign = Message::new("EVENT API one.vm.allocate 1", "<HOOK_MESSAGE><HOOK_TYPE>API</HOOK_TYPE>");
        for (message, expected) in [
            (api_call("one.vm.allocate", 1, ""), &["a-call", "anything"][..]),
            (api_call("one.vm.allocate", 0, ""), &["a-call", "anything"]),
            (api_call("one.vm.allocate.more", 1, ""), &["longer-call", "anything"]),
            (api_call("one.vm.allocatemore", 1, ""), &["anything"]),
            (vm_state(7, "ACTIVE", "RUNNING", ""), &["again-running", "running", "anything"]),
            // What the owner of a machine writes into it changes nothing.
            (
                vm_state(7, "ACTIVE", "RUNNING", "<HOOK_TYPE>API</HOOK_TYPE><CALL>one.vm.allocate</CALL>"),
                &["again-running", "running", "anything"],
            ),
            (vm_state(7, "ACTIVE", "RUNNING_FAST", ""), &["anything"]),
            (vm_state(7, "POWEROFF", "LCM_INIT", ""), &["poweroff", "anything"]),
            (host, &["host-error", "anything"]),
            (claims, &["anything"]),
            (foreign, &["anything"]),
        ] {
            let shown = format!("{message:?}");
            rig.broker.publish(message).await.expect("published");
            let mut ran = Vec::new();
            for _ in expected {
                ran.push(rig.record().await.hook.name.clone());
            }
            ran.sort();
            let mut expected = expected.to_vec();
            expected.sort_unstable();
            assert_eq!(ran, expected, "{shown}");
        }
        executor.shutdown(soon()).await;
        assert!(rig.try_record().is_none(), "a hook ran that should not have");
    });
}

/// Hooks get a clean environment in the sense of the kernel, and that of the daemon otherwise.
#[test]
fn a_command_finds_an_orderly_process() {
    // As after a start by oned, which blocks every signal; threads inherit it.
    let blocked = nix::sys::signal::SigSet::all();
    blocked.thread_block().expect("blocked");
    alone(|| async {
        // A descriptor that somebody left open for us.
        let inherited = std::fs::File::open("/dev/null").expect("opened");
        rustix::io::fcntl_setfd(inherited.as_fd(), rustix::io::FdFlags::empty()).expect("set");
        let mut rig = Rig::new();
        let body = "grep -E 'SigBlk|SigIgn' /proc/self/status; cut -d' ' -f5 /proc/$$/stat; echo $$; ls /proc/$$/fd; \
                    cat; echo input ended; pwd; echo \"$PATH\"";
        rig.script("look.sh", &format!("#!/bin/sh\n{body}\n"));
        rig.template("look", "NAME = look\nTYPE = event\nPREFIX = \"test look \"\nCOMMAND = look.sh");
        let executor = rig.start();
        rig.fire("look").await;
        let record = rig.record().await;
        let text = record.stdout.text();
        let lines: Vec<&str> = text.lines().collect();
        // sh keeps its script open as one more descriptor, 10, closed for what it starts.
        let here = std::env::current_dir().expect("there is one");
        let path = std::env::var("PATH").expect("there is one");
        assert_eq!(lines[0], "SigBlk:\t0000000000000000", "{text}");
        // What this process was started with is handed on (SIGHUP where the tests run under nohup), and nothing else: not SIGPIPE,
        // which Rust ignores. 32 and 33 belong to the C library, which has them ignored in what it starts.
        let ignored = |line: &str| u64::from_str_radix(line.trim_start_matches("SigIgn:\t"), 16).expect("a number");
        let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
        let ours = status.lines().find(|line| line.starts_with("SigIgn:")).map(ignored).expect("there is such a line");
        let pipe = 1 << (nix::sys::signal::Signal::SIGPIPE as i32 - 1);
        assert_eq!(ignored(lines[1]) & !(ours & !pipe) & !(3 << 31), 0, "{text}");
        assert_eq!(lines[2], lines[3], "the process leads its group: {text}");
        assert_eq!(&lines[4..], ["0", "1", "10", "2", "input ended", here.to_str().expect("UTF-8"), &path], "{text}");
        executor.shutdown(soon()).await;
    });
    blocked.thread_unblock().expect("unblocked");
}

/// A process that was started with SIGCHLD ignored, as by a shell after `trap '' CHLD`, has no zombies to ask for exit codes.
#[test]
fn exit_codes_are_known_where_sigchld_was_ignored() {
    let test = std::env::current_exe().expect("there is one");
    // dash doesn't hand it on.
    let trap = "trap '' CHLD; exec \"$0\" --ignored --exact executor::inside_where_sigchld_was_ignored";
    let output = std::process::Command::new("/bin/bash").args(["-c", trap]).arg(test).output().expect("run");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && stdout.contains("1 passed"), "{stdout}");
}

#[test]
#[ignore = "run by exit_codes_are_known_where_sigchld_was_ignored"]
fn inside_where_sigchld_was_ignored() {
    alone(|| async {
        let mut rig = Rig::new();
        rig.shell("three", "exit 3", "");
        let executor = rig.start();
        rig.fire("three").await;
        assert_eq!(rig.record().await.ending, Ending::Exited(3));
        executor.shutdown(soon()).await;
    });
}

#[test]
fn no_more_than_may_run_at_once() {
    alone(|| async {
        let mut rig = Rig::new();
        // Each waits until three have begun, then says so.
        let body = "touch begun.$$; while [ $(ls begun.* | wc -l) -lt 3 ]; do sleep 0.01; done; \
                    while [ ! -f go ]; do sleep 0.01; done";
        rig.shell("waits", body, "");
        let executor = rig.start_with(|options| options.concurrency = 3);
        for _ in 0..9 {
            rig.fire("waits").await;
        }
        let begun = |rig: &Rig| {
            std::fs::read_dir(rig.directory.path()).map_or(0, |entries| {
                entries.flatten().filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"begun.")).count()
            })
        };
        wait("three to begin", || if begun(&rig) == 3 { Ok(()) } else { Err(begun(&rig).to_string()) }).await;
        // Events wait in the subscription, and nowhere else.
        wait("six to wait", || match executor.status() {
            status if status.waiting == 6 && status.running == 3 => Ok(()),
            status => Err(format!("{status:?}")),
        })
        .await;
        assert_eq!(begun(&rig), 3);
        std::fs::write(rig.path("go"), "").expect("written");
        for _ in 0..9 {
            assert_eq!(rig.record().await.ending, Ending::Exited(0));
        }
        let status = executor.status();
        assert_eq!((status.hooks[0].runs, status.hooks[0].successes, status.waiting), (9, 9, 0));
        assert_eq!((status.hooks[0].last_code, status.hooks[0].running), (Some(0), 0));
        executor.shutdown(soon()).await;
    });
}

#[test]
fn results_come_in_the_order_in_which_commands_end() {
    alone(|| async {
        let mut rig = Rig::new();
        rig.shell("first", "while [ ! -f go.1 ]; do sleep 0.01; done", "");
        rig.shell("second", "while [ ! -f go.0 ]; do sleep 0.01; done", "");
        rig.shell("third", "exit 3", "");
        let mut results = rig.broker.subscribe(SubscribeOptions::new("results").prefix("HOOKBUS HOOK "));
        let executor = rig.start();
        for name in ["first", "second", "third"] {
            rig.fire(name).await;
        }
        let mut keys = Vec::new();
        let mut payloads = Vec::new();
        for i in 0..3 {
            let delivery = timeout(PATIENCE, results.recv()).await.expect("a result comes");
            let Some(Delivery::Message(message)) = delivery else { panic!("{delivery:?}") };
            keys.push(message.keys().map(|key| String::from_utf8_lossy(key).into_owned()).collect::<String>());
            payloads.push(serde_json::from_slice::<serde_json::Value>(message.payload()).expect("JSON"));
            // Only now may the next one end.
            std::fs::write(rig.path(&format!("go.{i}")), "").expect("written");
        }
        assert_eq!(
            keys,
            ["HOOKBUS HOOK third/failure ", "HOOKBUS HOOK second/success ", "HOOKBUS HOOK first/success "]
        );
        assert_eq!((payloads[0]["code"].as_i64(), payloads[0]["key"].as_str()), (Some(3), Some("test third ")));
        let log = format!("{}-3", rig.broker.log_id());
        assert_eq!(payloads[0]["event"], log.as_str());
        for name in ["third", "second", "first"] {
            assert_eq!(rig.record().await.hook.name, name);
        }
        executor.shutdown(soon()).await;
    });
}

/// Events that can't wait any more are lost, and it is counted.
#[test]
fn what_is_lost_is_told() {
    alone(|| async {
        let mut rig = Rig::new();
        rig.shell("slow", "while [ ! -f go ]; do sleep 0.01; done", "");
        let executor = rig.start_with(|options| {
            options.concurrency = 1;
            options.hwm = 2;
        });
        rig.fire("slow").await;
        wait("it to run", || if executor.status().running == 1 { Ok(()) } else { Err("it doesn't".into()) }).await;
        for _ in 0..10 {
            rig.fire("slow").await;
        }
        let status = executor.status();
        assert_eq!((status.waiting, status.dropped), (2, 8));
        std::fs::write(rig.path("go"), "").expect("written");
        for _ in 0..3 {
            rig.record().await;
        }
        executor.shutdown(soon()).await;
        assert!(rig.try_record().is_none());
    });
}

/// Hooks are exchanged again and again while events come: the one that stays misses none, the others run while they are there.
#[test]
fn a_reload_loses_nothing() {
    const EVENTS: usize = 300;
    alone(|| async {
        let mut rig = Rig::new();
        rig.template("stays", "NAME = stays\nTYPE = event\nPREFIX = \"test stays \"\nCOMMAND = /bin/true");
        let with_one = rig.hooks();
        rig.template("comes", "NAME = comes\nTYPE = event\nPREFIX = \"test comes \"\nCOMMAND = /bin/true");
        // The same prefix in another hook, and the stay in another place of the set.
        rig.template("also", "NAME = also\nTYPE = event\nPREFIX = \"test stays \"\nCOMMAND = /bin/true");
        let with_three = rig.hooks();
        let executor = Executor::start(&rig.broker, with_one.clone(), rig.options());
        let broker = rig.broker.clone();
        let events = tokio::spawn(async move {
            for _ in 0..EVENTS {
                broker.publish(Message::new("test stays ", "")).await.expect("published");
                tokio::task::yield_now().await;
            }
        });
        while !events.is_finished() {
            executor.replace(with_three.clone());
            tokio::task::yield_now().await;
            executor.replace(with_one.clone());
            tokio::task::yield_now().await;
        }
        let mut stays = 0;
        while stays < EVENTS {
            stays += usize::from(rig.record().await.hook.name == "stays");
        }
        // Its counters survived, and nobody is subscribed to what nobody wants any more.
        let status = executor.status();
        assert_eq!(
            (status.hooks.len(), status.hooks[0].runs, status.hooks[0].name.as_str()),
            (1, EVENTS as u64, "stays")
        );
        let prefixes = rig.broker.subscriptions()[0].prefixes;
        assert_eq!(prefixes, 1);
        executor.replace(with_three);
        rig.fire("comes").await;
        while rig.record().await.hook.name != "comes" {}
        executor.replace(HookSet::default());
        assert_eq!(rig.broker.subscriptions()[0].prefixes, 0);
        executor.shutdown(soon()).await;
    });
}

/// The executor's own subscription blocks and is full all the time: results still get out, and nothing is lost.
#[test]
fn a_subscription_that_blocks_loses_nothing() {
    alone(|| async {
        let mut rig = Rig::new();
        rig.template("tests", "NAME = tests\nTYPE = event\nPREFIX = \"test \"\nCOMMAND = /bin/true");
        let executor = rig.start_with(|options| {
            options.overflow = Overflow::Block;
            options.hwm = 1;
            options.concurrency = 1;
        });
        let mut results = rig.broker.subscribe(SubscribeOptions::new("results").prefix("HOOKBUS HOOK "));
        for _ in 0..50 {
            rig.fire("x").await;
        }
        for _ in 0..50 {
            assert_eq!(rig.record().await.hook.name, "tests");
            let delivery = timeout(PATIENCE, results.recv()).await.expect("a result comes");
            assert!(matches!(delivery, Some(Delivery::Message(_))), "{delivery:?}");
        }
        executor.shutdown(soon()).await;
    });
}

/// Templates that results would match are refused; a hook that a program has made for them doesn't run.
#[test]
fn results_never_run_hooks() {
    alone(|| async {
        let mut rig = Rig::new();
        rig.template("tests", "NAME = tests\nTYPE = event\nPREFIX = \"test \"\nCOMMAND = /bin/true");
        let hook = |name: &str, prefix: &str| {
            Hook::new(name, Trigger::Event { prefix: prefix.into() }, "/bin/true", Origin::Program)
        };
        let hooks = [hook("results", "HOOKBUS HOOK "), hook("many", "H"), hook("tests", "test ")];
        let executor = Executor::start(&rig.broker, HookSet::new(hooks), rig.options());
        for _ in 0..10 {
            rig.fire("x").await;
            assert_eq!(rig.record().await.hook.name, "tests");
        }
        wait("the results to be taken", || match executor.status().waiting {
            0 => Ok(()),
            waiting => Err(waiting.to_string()),
        })
        .await;
        executor.shutdown(soon()).await;
        assert!(rig.try_record().is_none());
    });
}

/// A subscriber that blocks and never reads delays results a little, once; then it drops its oldest and is told.
#[test]
fn a_stalled_subscriber_does_not_stall_hooks() {
    alone(|| async {
        let mut rig = Rig::new();
        rig.shell("works", "true", "");
        let mut stalled = rig
            .broker
            .subscribe(SubscribeOptions::new("stalled").prefix("HOOKBUS HOOK ").hwm(1).overflow(Overflow::Block));
        let executor = rig.start();
        for _ in 0..30 {
            rig.fire("works").await;
        }
        for _ in 0..30 {
            rig.record().await;
        }
        executor.shutdown(soon()).await;
        let gap = stalled.recv().await;
        assert!(matches!(gap, Some(Delivery::Gap(gap)) if gap.count == 29), "{gap:?}");
    });
}

#[test]
fn a_shutdown_waits_then_ends_what_is_left() {
    alone(|| async {
        let mut rig = Rig::new();
        rig.shell("ends", "touch ends.up; while [ ! -f go ]; do sleep 0.01; done; echo well", "");
        rig.shell("stays", "trap '' TERM; touch stays.up; while :; do sleep 1000; done", "");
        let executor = rig.start_with(|options| options.concurrency = 2);
        rig.fire("ends").await;
        rig.fire("stays").await;
        rig.fire("ends").await;
        for name in ["ends.up", "stays.up"] {
            wait(name, || rig.read(name)).await;
        }
        std::fs::write(rig.path("go"), "").expect("written");
        // Those that end do so; the one that doesn't has until the deadline.
        let record = rig.record().await;
        assert_eq!((record.ending, record.stdout.text().as_ref()), (Ending::Exited(0), "well\n"));
        rig.record().await;
        executor.shutdown(Instant::now() + Duration::from_millis(100)).await;
        let record = rig.record().await;
        assert_eq!((record.hook.name.as_str(), record.ending), ("stays", Ending::Interrupted));
        assert!(record.stderr.text().contains("Interrupted executing "), "{}", record.stderr.text());
        assert!(rig.broker.subscriptions().is_empty());
    });
}

/// An event calls for three hooks, there is room for one: the others are told as cut off and not forgotten.
#[test]
fn a_shutdown_tells_which_hooks_did_not_run() {
    alone(|| async {
        let mut rig = Rig::new();
        for name in ["a", "b", "c"] {
            rig.script(
                &format!("{name}.sh"),
                &format!("#!/bin/sh\ntouch {}; sleep 1000\n", rig.path(&format!("{name}.up")).display()),
            );
            rig.template(name, &format!("NAME = {name}\nTYPE = event\nPREFIX = \"test all \"\nCOMMAND = {name}.sh"));
        }
        let executor = rig.start_with(|options| options.concurrency = 1);
        rig.fire("all").await;
        rig.fire("all").await;
        wait("a", || rig.read("a.up")).await;
        executor.shutdown(Instant::now()).await;
        let mut told = Vec::new();
        while let Some(record) = rig.try_record() {
            told.push(format!(
                "{} {:?} {}",
                record.hook.name,
                record.ending,
                record.stderr.text().starts_with("Not started")
            ));
        }
        told.sort();
        assert_eq!(told, ["a Interrupted false", "b Interrupted true", "c Interrupted true"]);
        assert!(rig.read("b.up").is_err());
    });
}

/// Without a shutdown everything is killed, and nobody is left (`support::alone` looks).
#[test]
fn a_dropped_executor_leaves_nothing() {
    alone(|| async {
        let rig = Rig::new();
        rig.shell("stays", "trap '' TERM; sleep 1000 & echo $! > child; while :; do sleep 1000; done", "");
        let executor = rig.start();
        rig.fire("stays").await;
        let child = rig.pid("child").await;
        drop(executor);
        wait("the child to be gone", || if is_alive(child) { Err("it lives".into()) } else { Ok(()) }).await;
    });
}

/// The runtime is shut down under the executor, as when a program returns from `main`.
#[test]
fn the_end_of_the_runtime_leaves_nothing() {
    alone(|| async {
        let rig = Rig::new();
        rig.shell("stays", "trap '' TERM; echo $$ > up; while :; do sleep 1000; done", "");
        let executor = rig.start();
        rig.fire("stays").await;
        rig.pid("up").await;
        tokio::spawn(async move {
            let _executor = executor;
            std::future::pending::<()>().await;
        });
    });
}

#[test]
fn a_broker_that_is_closed_ends_it() {
    alone(|| async {
        let mut rig = Rig::new();
        rig.shell("runs", "touch up; while [ ! -f go ]; do sleep 0.01; done", "");
        let executor = rig.start();
        rig.fire("runs").await;
        wait("up", || rig.read("up")).await;
        let broker: &Broker = &rig.broker;
        broker.close();
        std::fs::write(rig.path("go"), "").expect("written");
        assert_eq!(rig.record().await.ending, Ending::Exited(0));
        executor.shutdown(soon()).await;
    });
}

/// An event of some megabytes is looked at on another thread; what comes of it is the same.
#[test]
fn large_events_are_as_others() {
    alone(|| async {
        let mut rig = Rig::new();
        rig.script("count.sh", "#!/bin/sh\nwc -c\n");
        rig.template(
            "large",
            "NAME = large\nTYPE = state\nRESOURCE = VM\nON = DONE\nCOMMAND = count.sh\nARGUMENTS = $TEMPLATE\nARGUMENTS_STDIN = yes",
        );
        let executor = rig.start();
        let template = format!("<TEMPLATE><A>{}</A></TEMPLATE>", "x".repeat(3 << 20));
        rig.broker.publish(vm_state(7, "DONE", "LCM_INIT", &template)).await.expect("published");
        let element =
            format!("<VM>\n  <ID>7</ID>\n  <TEMPLATE>\n    <A>{}</A>\n  </TEMPLATE>\n</VM>", "x".repeat(3 << 20));
        assert_eq!(rig.record().await.stdout.text().trim(), (element.len().div_ceil(3) * 4).to_string());
        executor.shutdown(soon()).await;
    });
}

/// What a template says about when hooks run, beyond OpenNebula's.
#[test]
fn results_of_calls_and_lists_of_states() {
    alone(|| async {
        let mut rig = Rig::new();
        for (name, trigger) in [
            ("any", "TYPE = api\nCALL = one.vm.allocate\nRESULT = any"),
            ("done", "TYPE = api\nCALL = one.vm.allocate\nRESULT = success"),
            ("failed", "TYPE = api\nCALL = one.vm.allocate\nRESULT = failure"),
            ("all", "TYPE = state\nRESOURCE = VM\nSTATE = *"),
            ("some", "TYPE = state\nRESOURCE = VM\nSTATE = \"HOLD, ACTIVE\"\nLCM_STATE = RUNNING,BOOT"),
            ("boots", "TYPE = state\nRESOURCE = VM\nSTATE = *\nLCM_STATE = BOOT"),
            ("active", "TYPE = state\nRESOURCE = VM\nSTATE = ACTIVE\nLCM_STATE = *"),
        ] {
            rig.template(name, &format!("NAME = {name}\n{trigger}\nCOMMAND = /bin/true"));
        }
        let executor = rig.start();
        for (message, expected) in [
            (api_call("one.vm.allocate", 1, ""), &["any", "done"][..]),
            (api_call("one.vm.allocate", 0, ""), &["any", "failed"]),
            (vm_state(7, "ACTIVE", "RUNNING", ""), &["active", "all", "some"]),
            (vm_state(7, "ACTIVE", "BOOT", ""), &["active", "all", "boots", "some"]),
            (vm_state(7, "DONE", "LCM_INIT", ""), &["all"]),
            (vm_state(7, "*", "*", ""), &["all"]),
        ] {
            let shown = format!("{message:?}");
            rig.broker.publish(message).await.expect("published");
            let mut ran = Vec::new();
            for _ in expected {
                ran.push(rig.record().await.hook.name.clone());
            }
            ran.sort();
            assert_eq!(ran, expected, "{shown}");
        }
        executor.shutdown(soon()).await;
        assert!(rig.try_record().is_none(), "a hook ran that should not have");
    });
}

/// What the owner of a machine calls it reaches the command as it is, and no shell on the way: not here, and not on another host.
#[test]
fn names_are_never_text_for_a_shell() {
    alone(|| async {
        let mut rig = Rig::new();
        let ssh = rig.ssh();
        rig.script("say.sh", "#!/bin/sh\nfor word; do printf '%s|' \"$word\"; done\nprintf '%s' \"$TEST_HOST\"\n");
        rig.script("cat.sh", "#!/bin/sh\ncat\n");
        let hook = |name: &str, command: &str, more: &str| {
            rig.template(
                name,
                &format!(
                    "NAME = {name}\nTYPE = state\nRESOURCE = VM\nON = RUNNING\nCOMMAND = \"{command}\"\n\
                     ARGUMENTS = \"$NAME  $ID $STATE end\"\n{more}\n"
                ),
            );
        };
        hook("a-here", "say.sh fixed", "");
        hook("b-there", "say.sh fixed", "REMOTE = yes");
        hook("c-input", "cat.sh", "ARGUMENTS_STDIN = yes");
        let base_path = rig.directory.path().to_owned();
        let executor = rig.start_with(|options| {
            options.concurrency = 1;
            (options.ssh, options.remote_base_path) = (ssh, base_path);
        });
        for name in [
            "web 1",
            "x; touch pwned",
            "`touch pwned`",
            "$(touch pwned)",
            "a\nb",
            "-rf",
            "'",
            "\"",
            "",
            "a\\b",
            "ü",
            "&&",
            "~",
        ] {
            for host in ["node1", "no'de; touch pwned"] {
                let cdata = format!("<NAME><![CDATA[{name}]]></NAME>");
                rig.broker.publish(vm_state_on(host, 7, "ACTIVE", "RUNNING", &cdata)).await.expect("published");
                for expected in [
                    format!("fixed|{name}|7|ACTIVE|end|"),
                    format!("fixed|{name}|7|ACTIVE|end|{host}"),
                    format!("{name} 7 ACTIVE end"),
                ] {
                    let record = rig.record().await;
                    assert_eq!(record.stdout.text(), expected, "{record:?}");
                }
            }
        }
        assert!(!rig.path("pwned").exists() && !std::path::Path::new("pwned").exists());
        executor.shutdown(soon()).await;
    });
}

#[test]
fn the_environment_tells_about_the_event() {
    alone(|| async {
        let mut rig = Rig::new();
        rig.script("env.sh", "#!/bin/sh\nenv | grep -E '^HOOKBUS_(KEY|EVENT_ID|OBJECT|ID|STATE|LCM_STATE|PREV_STATE|NAME|HOST)=' | sort\n");
        rig.script("json.sh", "#!/bin/sh\necho \"$1\" | base64 -d\n");
        rig.template("vm", "NAME = vm\nTYPE = state\nRESOURCE = VM\nSTATE = *\nCOMMAND = env.sh");
        rig.template("api", "NAME = api\nTYPE = api\nCALL = one.vm.allocate\nCOMMAND = env.sh");
        rig.template("any", "NAME = any\nTYPE = event\nPREFIX = app\nCOMMAND = json.sh\nARGUMENTS = $EVENT_JSON");
        let executor = rig.start();
        let inside = "<NAME>a &amp; b</NAME><PREV_STATE>8</PREV_STATE><USER_TEMPLATE><NAME>no</NAME></USER_TEMPLATE>";
        rig.broker.publish(vm_state_on("node1", 7, "ACTIVE", "BOOT", inside)).await.expect("published");
        let record = rig.record().await;
        assert_eq!(
            record.stdout.text(),
            format!(
                "HOOKBUS_EVENT_ID={}\nHOOKBUS_HOST=node1\nHOOKBUS_ID=7\nHOOKBUS_KEY=EVENT STATE VM/ACTIVE/BOOT/7 \n\
                 HOOKBUS_LCM_STATE=BOOT\nHOOKBUS_NAME=a & b\nHOOKBUS_OBJECT=VM\nHOOKBUS_PREV_STATE=POWEROFF\nHOOKBUS_STATE=ACTIVE\n",
                record.event.id
            )
        );
        rig.broker.publish(api_call("one.vm.allocate", 1, "")).await.expect("published");
        let record = rig.record().await;
        let expected = format!("HOOKBUS_EVENT_ID={}\nHOOKBUS_KEY=EVENT API one.vm.allocate 1\n", record.event.id);
        assert_eq!(record.stdout.text(), expected);
        rig.broker.publish(Message::new("app x", "hello")).await.expect("published");
        let record = rig.record().await;
        let json: serde_json::Value = serde_json::from_str(&record.stdout.text()).expect("a CloudEvent");
        assert_eq!((json["id"].as_str(), json["data"].as_str()), (Some(&*record.event.id.to_string()), Some("hello")));
        executor.shutdown(soon()).await;
    });
}

/// A host that is down is a failure like any other; without a host there is nowhere to run.
#[test]
fn on_the_host_of_the_event() {
    alone(|| async {
        let mut rig = Rig::new();
        let ssh = rig.ssh();
        rig.script("where.sh", "#!/bin/sh\necho \"$TEST_HOST $*\"\n");
        rig.template(
            "there",
            "NAME = there\nTYPE = state\nRESOURCE = VM\nON = RUNNING\nREMOTE = yes\nCOMMAND = where.sh\nARGUMENTS = \"'a  b' c\"",
        );
        let base_path = rig.directory.path().to_owned();
        let executor = rig.start_with(|options| (options.ssh, options.remote_base_path) = (ssh, base_path));
        for (host, code, stdout, stderr) in [
            ("", 0, "", ""),
            ("node1", 0, "node1 a b c\n", ""),
            ("-oProxyCommand=touch", 0, "-oProxyCommand=touch a b c\n", ""),
            ("node-down", 255, "", "ssh: connect to host node-down port 22: No route to host\n"),
        ] {
            rig.broker.publish(vm_state_on(host, 7, "ACTIVE", "RUNNING", "")).await.expect("published");
            if host.is_empty() {
                continue;
            }
            let record = rig.record().await;
            assert_eq!((record.host.as_deref(), record.ending.code()), (Some(host), code));
            assert_eq!((&*record.stdout.text(), &*record.stderr.text()), (stdout, stderr));
            assert!(record.command.ends_with("/where.sh 'a b' c"), "the record doesn't show ssh: {}", record.command);
        }
        executor.shutdown(soon()).await;
    });
}

#[test]
fn what_fails_is_tried_again() {
    alone(|| async {
        let mut rig = Rig::new();
        rig.shell("twice", "echo x >> twice.out; [ $(wc -l < twice.out) -gt 2 ]", "RETRIES = 5\nRETRY_BACKOFF = 0");
        rig.shell("never", "exit 3", "RETRIES = 2\nRETRY_BACKOFF = 0");
        let executor = rig.start();
        rig.fire("twice").await;
        for (attempt, code, again) in [(1, 1, true), (2, 1, true), (3, 0, false)] {
            let record = rig.record().await;
            assert_eq!((record.attempt, record.ending.code(), record.repeat_in.is_some()), (attempt, code, again));
        }
        rig.fire("never").await;
        for (attempt, again) in [(1, true), (2, true), (3, false)] {
            let record = rig.record().await;
            assert_eq!((record.attempt, record.ending.code(), record.repeat_in.is_some()), (attempt, 3, again));
        }
        assert_eq!(executor.status().hooks.iter().map(|hook| hook.runs).sum::<u64>(), 6);
        executor.shutdown(soon()).await;
        assert!(rig.try_record().is_none());
    });
}

/// One run after the other for each object, in the order of events, also when one has to be repeated; other objects pass.
#[test]
fn an_object_at_a_time() {
    alone(|| async {
        let mut rig = Rig::new();
        let directory = rig.directory.path().display().to_string();
        // Of machine 1 the first event waits for a file, and its first run fails.
        rig.script(
            "note.sh",
            &format!(
                "#!/bin/sh\ncd {directory}\nif [ $1 = 1 ] && [ $2 = BOOT ]; then\n  until [ -e go ]; do sleep 0.01; done\n  \
                 [ -e failed ] || {{ touch failed; exit 1; }}\nfi\n"
            ),
        );
        rig.template(
            "note",
            "NAME = note\nTYPE = state\nRESOURCE = VM\nSTATE = *\nCOMMAND = note.sh\nARGUMENTS = \"$ID $STATE\"\nORDER = object\nRETRIES = 1\nRETRY_BACKOFF = 0",
        );
        let executor = rig.start();
        for (id, state) in [(1, "BOOT"), (1, "RUNNING"), (2, "BOOT"), (1, "DONE"), (2, "RUNNING")] {
            rig.broker.publish(vm_state(id, state, "", "")).await.expect("published");
        }
        let mut ran = Vec::new();
        for _ in 0..2 {
            ran.push(rig.record().await.arguments.clone());
        }
        assert_eq!(ran, ["2 BOOT", "2 RUNNING"], "machine 2 doesn't wait for machine 1");
        rig.script("go", "");
        for expected in [("1 BOOT", 1), ("1 BOOT", 0), ("1 RUNNING", 0), ("1 DONE", 0)] {
            let record = rig.record().await;
            assert_eq!((record.arguments.as_str(), record.ending.code()), expected);
        }
        executor.shutdown(soon()).await;
    });
}

/// A hook that is held back holds up nobody else.
#[test]
fn a_hook_has_its_own_limit() {
    alone(|| async {
        let mut rig = Rig::new();
        rig.shell("slow", "mkdir busy || exit 9; until [ -e go ]; do sleep 0.01; done; rmdir busy", "CONCURRENCY = 1");
        rig.shell("quick", "exit 0", "");
        let executor = rig.start();
        for _ in 0..20 {
            rig.fire("slow").await;
        }
        for _ in 0..20 {
            rig.fire("quick").await;
        }
        for _ in 0..20 {
            assert_eq!(rig.record().await.hook.name, "quick");
        }
        assert_eq!(executor.status().running, 1);
        rig.script("go", "");
        for _ in 0..20 {
            let record = rig.record().await;
            assert_eq!((record.hook.name.as_str(), record.ending), ("slow", Ending::Exited(0)), "two at once");
        }
        executor.shutdown(soon()).await;
    });
}

/// What one hook holds back is bounded: the rest waits in the broker.
#[test]
fn what_is_held_back_is_bounded() {
    alone(|| async {
        let mut rig = Rig::new();
        rig.shell("slow", "until [ -e go ]; do sleep 0.01; done", "CONCURRENCY = 1");
        let executor = rig.start_with(|options| options.hwm = 0);
        for _ in 0..1500 {
            rig.fire("slow").await;
        }
        wait("a thousand to be held back, and the rest to wait", || match executor.status() {
            status if status.waiting == 499 => Ok(()),
            status => Err(format!("{status:?}")),
        })
        .await;
        executor.shutdown(Instant::now()).await;
        let mut interrupted = 0;
        while let Some(record) = rig.try_record() {
            assert_eq!(record.ending, Ending::Interrupted);
            interrupted += 1;
        }
        assert_eq!(interrupted, 1001, "what was taken is recorded");
    });
}

#[test]
fn hooks_run_only_where_they_are_to() {
    alone(|| async {
        let mut rig = Rig::new();
        rig.shell("x", "exit 0", "");
        rig.script("leads.sh", &format!("#!/bin/sh\ntest -e {}\n", rig.path("leader").display()));
        let executor = rig.start_with(|options| {
            let mut run_if = RunIf::new("leads.sh");
            run_if.every = Duration::from_millis(20);
            options.run_if = Some(run_if);
        });
        let says = |leads: bool| {
            let executor = &executor;
            wait("run_if to be asked", move || match executor.status().leads {
                Some(answer) if answer == leads => Ok(()),
                other => Err(format!("{other:?}")),
            })
        };
        says(false).await;
        rig.fire("x").await;
        wait("the event to be passed over", || match executor.status().waiting {
            0 => Ok(()),
            waiting => Err(format!("{waiting} wait")),
        })
        .await;
        rig.script("leader", "");
        says(true).await;
        rig.fire("x").await;
        rig.record().await;
        executor.shutdown(soon()).await;
        assert!(rig.try_record().is_none(), "what happened while another one led is not its business");
    });
}

/// With a cursor in the journal, what happens while nobody runs hooks is not lost, and what was done is not done again.
#[test]
fn a_cursor_goes_on_where_it_was() {
    alone(|| async {
        let mut rig = Rig::new();
        let journal = Journal::open(JournalOptions::new(rig.path("journal"))).expect("a journal");
        rig.broker.attach_journal(journal).expect("attached");
        rig.shell("note", "exit 0", "");
        rig.shell("hangs", "until [ -e go ]; do sleep 0.01; done", "");
        rig.shell("tries", "until [ -e go ]; do sleep 0.01; done", "RETRIES = 1");
        let start = |rig: &Rig| {
            Executor::start_durable(&rig.broker, rig.hooks(), rig.options(), "hooks").expect("the cursor is free")
        };
        let executor = start(&rig);
        assert!(executor.status().durable);
        rig.fire("note").await;
        assert_eq!(rig.record().await.event.id.offset.get(), 1);
        executor.shutdown(soon()).await;

        // Down: 3 to 5. Offset 2 is the result of the first run, which no hook is for.
        for _ in 0..3 {
            rig.fire("note").await;
        }
        let executor = start(&rig);
        let mut offsets = Vec::new();
        for _ in 0..3 {
            offsets.push(rig.record().await.event.id.offset.get());
        }
        // They run side by side.
        offsets.sort_unstable();
        assert_eq!(offsets, [3, 4, 5]);
        // In order: what hangs is cut off and recorded. The one that may be repeated comes again.
        rig.fire("hangs").await;
        rig.fire("tries").await;
        wait("both to run", || match executor.status().running {
            2 => Ok(()),
            running => Err(format!("{running} run")),
        })
        .await;
        executor.shutdown(Instant::now()).await;
        let mut cut_off = [rig.record().await, rig.record().await];
        cut_off.sort_by_key(|record| record.event.id.offset);
        assert!(cut_off.iter().all(|record| record.ending == Ending::Interrupted), "{cut_off:?}");
        let executor = start(&rig);
        wait("one to run", || match executor.status().running {
            1 => Ok(()),
            running => Err(format!("{running} run")),
        })
        .await;
        // As when it is killed: nothing is recorded, and all that was under way comes again.
        drop(executor);
        rig.script("go", "");
        // A dropped executor's task is gone when the runtime has seen to it.
        let executor = wait("the cursor to be free", || {
            Executor::start_durable(&rig.broker, rig.hooks(), rig.options(), "hooks").map_err(|e| e.to_string())
        })
        .await;
        let record = rig.record().await;
        assert_eq!((record.hook.name.as_str(), record.event.id), ("tries", cut_off[1].event.id));
        executor.shutdown(soon()).await;
        assert!(rig.try_record().is_none());
        rig.broker.close_journal();
    });
}

#[test]
fn a_record_is_run_again() {
    alone(|| async {
        let mut rig = Rig::new();
        rig.script("say.sh", "#!/bin/sh\nfor word; do printf '%s|' \"$word\"; done\n");
        rig.template(
            "named",
            "NAME = named\nTYPE = state\nRESOURCE = VM\nSTATE = *\nCOMMAND = say.sh\nARGUMENTS = \"$NAME x\"",
        );
        let executor = rig.start();
        rig.broker.publish(vm_state(7, "DONE", "", "<NAME>$(id); 'a  b'</NAME>")).await.expect("published");
        let record = rig.record().await;
        assert!(!record.by_hand);
        let again = |hook: &str| Again {
            hook: hook.into(),
            arguments: record.arguments.clone(),
            host: None,
            event: record.event.clone(),
            environment: record
                .environment
                .iter()
                .map(|(name, value)| (name.clone().into_owned(), value.clone()))
                .collect(),
            retry_of: Some(7),
        };
        executor.run_again(again("gone")).expect("there is room");
        executor.run_again(again("named")).expect("there is room");
        let second = rig.record().await;
        assert!(second.by_hand);
        assert_eq!((second.retry_of, &second.environment), (Some(7), &record.environment));
        assert_eq!(second.stdout.text(), "$(id); 'a  b'|x|");
        assert_eq!((&second.stdout, &second.command, &second.event), (&record.stdout, &record.command, &record.event));
        executor.shutdown(soon()).await;
    });
}
