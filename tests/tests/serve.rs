//! `hookbus serve` as its operator meets it: one owner, what is left behind, full disks, reloads, a driver that forwards, the end.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::process::Command;

use hookbus_tests::tools::Tool;
use hookbus_tests::{HmOptions, Home, Peer, PeerOptions, assert_same, events, fixtures, wait_until};
use rustix::process::Signal;

fn error_of(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn one_process_owns_a_state_directory_and_a_second_is_told_which() {
    let home = Home::default();
    let first = home.serve();
    let second = home.run(&["serve"]);
    assert_eq!(second.status.code(), Some(1));
    home.logged(&format!("state is in {}", home.path().join("state").display()));
    home.logged(&format!("is in use by process {}; stop that one", first.program.pid()));
    assert_eq!(home.status()["pid"], first.program.pid(), "the first one is not disturbed");
    first.stop();
    assert!(!home.socket().exists(), "the socket goes with its owner");
}

#[test]
fn what_a_killed_daemon_left_behind_is_in_nobodys_way() {
    let home = Home::default();
    let mut first = home.serve();
    first.program.kill();
    assert!(home.socket().exists() && home.path().join("state/lock").exists(), "kill -9 leaves both");
    let second = home.serve();
    home.logged("nobody listens at this socket any more; it is replaced");
    assert_eq!(home.status()["pid"], second.program.pid());
    second.stop();
}

#[test]
fn a_socket_that_somebody_listens_at_is_not_taken_away() {
    let home = Home::default();
    let other = UnixListener::bind(home.socket()).expect("a socket");
    fs::set_permissions(home.socket(), fs::Permissions::from_mode(0o777)).expect("our own file");
    let mut program = home.launcher().spawn();
    assert_eq!(program.wait("at once").code(), Some(1));
    home.logged("another process listens at this socket");
    drop(other);
    // Now it is a file that nobody listens at.
    home.serve().stop();
}

#[test]
fn mistakes_in_the_configuration_are_told_each_with_its_place() {
    let home = Home::new("[broker]\nmax_byte = 5\n");
    let output = home.run(&["serve"]);
    assert_eq!(output.status.code(), Some(2));
    let told = error_of(&output);
    assert!(told.contains("hookbus.toml:") && told.contains("did you mean `max_bytes`?"), "{told}");
    let output = home.run(&["config", "check"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_port_that_is_taken_ends_it_with_a_reason() {
    let home = Home::default();
    let obstacle = std::net::TcpListener::bind(home.url().trim_start_matches("tcp://")).expect("the port is free");
    let mut program = home.launcher().spawn();
    assert_eq!(program.wait("at once").code(), Some(1));
    home.logged("the publisher port cannot listen");
    home.logged("hm --forward SOCKET");
    drop(obstacle);
    home.serve().stop();
}

/// Both the state directory's disk and that of the log are full: it starts, serves, and ends in order.
#[test]
fn a_full_disk_does_not_end_it() {
    let home = Home::default();
    let state = home.path().join("state");
    fs::create_dir(&state).expect("a directory");
    let mut unshare = Command::new("unshare");
    let script = format!(
        "mount -t tmpfs -o size=8k,mode=777 tmpfs '{0}' || exit 1; cat /dev/zero > '{0}/fill' 2>/dev/null; exec /usr/bin/python3 \"$@\"",
        state.display()
    );
    unshare.args(["--mount", "sh", "-c", &script, "sh"]);
    if !Command::new("unshare").args(["--mount", "true"]).status().is_ok_and(|status| status.success()) {
        eprintln!("left out: a mount namespace takes root");
        return;
    }
    let config = fs::read_to_string(home.config()).expect("our own file");
    let log = format!("file = \"{}\"", home.path().join("log").display());
    assert!(config.contains(&log), "{config}");
    fs::write(home.config(), config.replace(&log, "file = \"/dev/full\"")).expect("our own file");

    let serve = home.ready(home.launcher().through(unshare).spawn());
    let mut follower = home.follow("");
    home.publish("disk/full", b"all the same");
    assert_eq!(follower.event().data["data"], "all the same");
    let pid = serve.program.pid();
    let lock = fs::read_to_string(format!("/proc/{pid}/root{}/lock", state.display())).expect("the lock file is there");
    assert_eq!(lock, "", "there was no room for the pid, and that is no reason to do without the lock");
    serve.stop();
}

#[test]
fn on_sighup_hooks_are_read_again_and_a_broken_one_costs_only_itself() {
    let home = Home::default();
    let ran = home.path().join("ran");
    fs::write(&ran, "").expect("a file");
    fs::set_permissions(&ran, fs::Permissions::from_mode(0o666)).expect("our own file");
    let hook = |name: &str, prefix: &str| {
        format!(
            "NAME = {name}\nTYPE = event\nPREFIX = \"{prefix}\"\nCOMMAND = /bin/sh\nARGUMENTS = \"-c 'echo {name} >> {}'\"\n",
            ran.display()
        )
    };
    home.hook("good", &hook("good", "x/"));
    home.hook("leaves", &hook("leaves", "y/"));
    let serve = home.serve();
    home.hook("broken", "NAME = broken\nTYPE = event\nPREFIX = \"z/\nCOMMAND = /bin/true\n");
    home.hook("new", &hook("new", "z/"));
    fs::remove_file(home.hooks().join("leaves.tmpl")).expect("our own file");
    serve.reload();
    home.logged("broken.tmpl:3:");
    let mut results = home.follow("prefix=HOOKBUS+HOOK+");
    for key in ["x/1", "y/1", "z/1", "x/2"] {
        home.publish(key, b"");
    }
    let mut subjects: Vec<String> = (0..3)
        .map(|_| {
            let event = results.event();
            assert_eq!(event.data["data"]["result"], "success", "{event:?}");
            event.data["subject"].as_str().expect("a subject").to_owned()
        })
        .collect();
    subjects.sort_unstable();
    assert_eq!(subjects, ["hook/good", "hook/good", "hook/new"]);
    let mut ran: Vec<_> = fs::read_to_string(ran).expect("our own file").lines().map(str::to_owned).collect();
    ran.sort_unstable();
    assert_eq!(ran, ["good", "good", "new"]);
    serve.stop();
}

#[test]
fn a_log_file_that_was_moved_away_is_opened_again() {
    let home = Home::default();
    let serve = home.serve();
    fs::rename(home.path().join("log"), home.path().join("log.1")).expect("our own file");
    serve.program.signal(Signal::HUP);
    home.logged(" loaded from ");
    serve.stop();
}

/// Everything that a real oned wrote, through a driver that forwards: what subscribers of the daemon see is what they would
/// see from the driver itself, and results find their way back.
#[test]
fn a_driver_that_forwards_is_as_good_as_one_that_serves() {
    let home = Home::default();
    let serve = home.serve();
    let mut hm = home.driver();
    let mut subscriber = PeerOptions::new(Tool::Python, "SUB").option("RCVHWM", 0).subscribe(&home.url(), [""]);
    hm.join(&mut [&mut subscriber]);
    let lines = fixtures::event_lines();
    hm.feed(&lines.concat());
    let end = hm.mark("the end");
    let mut expected = fixtures::expected(&lines);
    expected.push(end.clone());
    assert_same("the subscriber", &subscriber.until(&end), &expected[..expected.len() - 1]);

    let mut executor = PeerOptions::new(Tool::Python, "REQ").connect(&home.logger_url());
    for (i, reply) in fixtures::replies().iter().take(50).enumerate() {
        assert_eq!(executor.ask(reply.request.as_bytes()), b"ACK", "result {i}");
    }
    let recorded = fixtures::driver_to_oned();
    let results: Vec<&[u8]> = recorded.split_inclusive(|byte| *byte == b'\n').skip(1).take(50).collect();
    let results = results.concat();
    hm.program.stdout.until("the results", |seen| (seen.len() >= 31 + results.len()).then_some(()));
    assert_eq!(String::from_utf8_lossy(&hm.program.stdout.seen()[31..]), String::from_utf8_lossy(&results));
    hm.finalize();
    serve.stop();
}

/// The daemon goes away and comes back, twice: by SIGTERM and by SIGKILL. What oned says meanwhile waits in the driver.
#[test]
fn a_driver_that_forwards_keeps_what_the_daemon_has_not_taken() {
    let home = Home::default();
    let serve = home.serve();
    let mut hm = home.driver();
    let batch = |round: u32| -> Vec<u8> {
        (0..200).flat_map(|id| events::vm(id, "ACTIVE", "RUNNING", &format!("round {round}")).line).collect()
    };
    hm.feed(&batch(0));
    let taken = |count: u64| {
        wait_until(&format!("{count} events to be taken in"), || {
            let status = home.status();
            let (taken, published) = (&status["driver"]["taken_in"], &status["broker"]["published"]);
            if *taken == count && *published == count { Ok(()) } else { Err(status.to_string()) }
        });
    };
    taken(200);
    serve.stop();
    hm.feed(&batch(1));
    let mut serve = home.serve();
    taken(200);
    serve.program.kill();
    hm.feed(&batch(2));
    hm.feed(&batch(3));
    let serve = home.serve();
    taken(400);
    let told = String::from_utf8_lossy(hm.program.stdout.seen()).into_owned();
    hm.finalize();
    let all = String::from_utf8_lossy(hm.program.stdout.to_end()).into_owned();
    assert!(all.contains("LOG E 0 forward: the daemon at"), "oned's log says that it was away: {told}{all}");
    assert!(all.contains("answers now"), "and that it is back: {all}");
    serve.stop();
}

/// From oned's line to the output of a command, in the log and on the bus; the hook of another state stays quiet.
#[test]
fn a_hook_runs_for_an_event_of_oned() {
    let home = Home::default();
    let script = home
        .script("name.sh", "#!/bin/sh\necho \"$1\" | base64 -d | grep -o '<NAME>.*</NAME>'\necho seen >&2\nexit $2\n");
    for (name, on, code) in [("runs", "RUNNING", 0), ("fails", "RUNNING", 3), ("quiet", "DONE", 0)] {
        let template = format!(
            "NAME = {name}\nTYPE = state\nRESOURCE = VM\nON = {on}\nCOMMAND = {}\nARGUMENTS = \"$TEMPLATE {code}\"\n",
            script.display()
        );
        home.hook(name, &template);
    }
    let serve = home.serve();
    let mut results = home.follow("prefix=HOOKBUS+HOOK+");
    let mut hm = home.driver();
    hm.feed(&events::vm(42, "ACTIVE", "PROLOG", "").line);
    hm.feed(&events::vm(42, "ACTIVE", "RUNNING", "").line);
    let mut both = [results.event(), results.event()];
    both.sort_by_key(|event| event.data["subject"].to_string());
    for (event, name, result, code) in [(&both[0], "fails", "failure", 3), (&both[1], "runs", "success", 0)] {
        assert_eq!(event.data["hookbuskey"], format!("HOOKBUS HOOK {name}/{result} "));
        let data = &event.data["data"];
        assert_eq!(data["code"], code);
        assert_eq!((&data["stdout"], &data["stderr"]), (&"<NAME>vm-42</NAME>\n".into(), &"seen\n".into()));
        assert_eq!(data["key"], "EVENT STATE VM/ACTIVE/RUNNING/42 ");
    }
    home.logged("hooks: ran hook=\"runs\"");
    home.logged("stdout=\"<NAME>vm-42</NAME>\"");
    home.logged("hooks: the command exited with an error hook=\"fails\"");
    let status = home.status();
    let runs: Vec<_> =
        status["hooks"]["hooks"].as_array().expect("a list").iter().map(|hook| hook["runs"].clone()).collect();
    assert_eq!(runs, [1, 0, 1], "by name: {}", status["hooks"]);
    hm.finalize();
    serve.stop();
}

/// A hook that writes down which event it ran for, once there is a file `go`.
fn note(home: &Home, more: &str) {
    let directory = home.path().display();
    let text =
        format!("#!/bin/sh\ncd {directory}\nuntil [ -e go ]; do sleep 0.01; done\necho $HOOKBUS_EVENT_ID >> ran\n");
    let script = home.script("note.sh", &text);
    home.hook("note", &format!("NAME = note\nTYPE = event\nPREFIX = \"app \"\nCOMMAND = {}\n{more}", script.display()));
}

/// The ids that it wrote.
fn noted(home: &Home) -> Vec<String> {
    let ran = fs::read_to_string(home.path().join("ran")).unwrap_or_default();
    ran.lines().map(str::to_owned).collect()
}

/// With `spill` the place of hooks is in the journal: what a killed daemon had not done is done by the next one.
#[test]
fn hooks_run_for_what_a_killed_daemon_has_not_done() {
    let home = Home::default();
    note(&home, "CONCURRENCY = 1\n");
    home.configure("[hooks]\noverflow = \"spill\"\n");
    let mut first = home.serve();
    let ids: Vec<String> = (0..5)
        .map(|_| {
            let output = home.run(&["publish", "app x", "-"]);
            assert!(output.status.success(), "{}", error_of(&output));
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        })
        .collect();
    wait_until("one hook to run", || match home.status()["hooks"]["running"].as_u64() {
        Some(1) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    first.program.kill();
    assert!(noted(&home).is_empty());
    fs::write(home.path().join("go"), "").expect("a file");
    let second = home.serve();
    let mut expected = ids;
    expected.sort();
    // Each at least once, and one twice at most: the hook that the first one had started goes on when its parent is killed, and may note
    // its event before or after the second one does.
    let ran = wait_until("all five to have run", || {
        let ran = noted(&home);
        let mut distinct = ran.clone();
        distinct.sort();
        distinct.dedup();
        if distinct == expected { Ok(ran) } else { Err(format!("{ran:?}, published {expected:?}")) }
    });
    assert!(ran.len() <= 6, "{ran:?}");
    second.stop();
}

/// Of several front-ends only the one that leads runs hooks.
#[test]
fn hooks_run_where_run_if_says_yes() {
    let home = Home::default();
    note(&home, "");
    fs::write(home.path().join("go"), "").expect("a file");
    // Nobody has the one address; everybody has the other.
    let is_leader = hookbus_tests::tools::workspace().join("packaging/is-leader");
    for (address, leads) in [("203.0.113.7", false), ("127.0.0.1", true)] {
        home.configure(&format!("[hooks]\nrun_if = \"{} {address}\"\n", is_leader.display()));
        let serve = home.serve();
        wait_until("the first answer", || match home.status()["hooks"]["leads"].as_bool() {
            Some(answer) if answer == leads => Ok(()),
            other => Err(format!("{other:?}")),
        });
        let output = home.run(&["publish", "app x", "-"]);
        assert!(output.status.success(), "{}", error_of(&output));
        let shown = home.run(&["status"]);
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        assert_eq!(shown.contains("no hook runs here: run_if says no"), !leads, "{shown}");
        serve.stop();
        assert_eq!(noted(&home).len(), usize::from(leads));
        home.logged(&format!(
            "{address}\" says {}",
            if leads { "yes: hooks run here" } else { "no: no hook runs here" }
        ));
    }
}

/// Beside a daemon, a driver serves ZeroMQ at its own ports and says why it does no more; afterwards it takes over.
#[test]
fn a_driver_beside_a_daemon_takes_over_when_that_one_has_ended() {
    let home = Home::default();
    let serve = home.serve();
    let config = home.config();
    let mut hm = HmOptions::default().arguments(&format!("--config {}", config.display())).start();
    drop(Peer::joined(&mut hm));
    let owner = format!("in use by process {}", serve.program.pid());
    hm.program.stdout.until("why it does no more", |seen| String::from_utf8_lossy(seen).contains(&owner).then_some(()));
    assert_eq!(home.status()["role"], "serve");
    serve.stop();
    wait_until("the driver to take over", || match home.request("GET", "/v1/status", &[], b"") {
        Ok(answer) if answer.status == 200 && answer.json()["role"] == "hm" => Ok(()),
        Ok(answer) => Err(answer.text()),
        Err(e) => Err(e.to_string()),
    });
    // What oned says is seen by followers now, too.
    let mut follower = home.follow("prefix=EVENT+STATE+VM");
    hm.feed(&events::vm(7, "ACTIVE", "RUNNING", "").line);
    assert_eq!(follower.event().data["subject"], "vm/7");
    hm.finalize();
    assert!(!home.socket().exists());
}

#[test]
fn a_command_without_a_daemon_names_the_sockets_that_it_tried() {
    let home = Home::default();
    for args in [&["status"][..], &["tail"], &["publish", "a/b"]] {
        let output = home.run(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        let told = error_of(&output);
        assert!(told.contains(&home.socket().display().to_string()) && told.contains("hookbus serve"), "{told}");
    }
    let output = Command::new(hookbus_tests::hookbus())
        .args(["status"])
        .env("XDG_RUNTIME_DIR", home.path())
        .output()
        .expect("hookbus can be started");
    let told = error_of(&output);
    let tried = ["/run/hookbus/hookbus.sock", "/run/one/hookbus.sock", &home.socket().display().to_string()]
        .map(|path| told.find(path));
    assert!(tried.iter().all(Option::is_some) && tried.is_sorted(), "all three, in order: {told}");
}
