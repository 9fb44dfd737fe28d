//! Commands that don't behave, really run. After each test there is neither a child nor a descriptor left (see `support::alone`).

use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support;
use crate::support::{Rig, alone, api_call, is_alive, status_kib, wait};
use hookbus_hem::Ending;
use tokio::time::Instant;

/// For commands that say something before they hang: long enough for a busy machine to start them.
const TIMEOUT: &str = "TIMEOUT = 3";

/// Ends a process that a test has left behind on purpose.
fn kill(pid: u32) {
    let status = Command::new("kill").args(["-KILL", &pid.to_string()]).status();
    assert!(status.is_ok_and(|status| status.success()), "kill {pid}");
}

async fn is_gone(pid: u32) {
    wait("a process to be gone", || if is_alive(pid) { Err(format!("{pid} lives")) } else { Ok(()) }).await;
}

/// Keeps everybody from opening a file until it is dropped, as a disk does that is out of reach: a lease makes them wait for its holder.
struct OutOfReach(Child);

impl OutOfReach {
    fn new(file: &Path) -> Self {
        let hold = "import fcntl, os, signal, sys\nsignal.signal(signal.SIGIO, signal.SIG_IGN)\nfile = os.open(sys.argv[1], os.O_RDONLY)\n\
                    fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)\nprint('held', flush=True)\nsys.stdin.read()";
        let mut holder = Command::new("python3");
        let mut holder = holder
            .args(["-c", hold])
            .arg(file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("run python3");
        let mut held = [0; 5];
        let mut said = holder.stdout.take().expect("piped");
        said.read_exact(&mut held).expect("it holds the file");
        assert_eq!(&held, b"held\n");
        OutOfReach(holder)
    }
}

impl Drop for OutOfReach {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Nobody waits for a start any longer than for the command, and what it starts after all is killed.
#[test]
fn one_that_hangs_at_its_start_is_given_up() {
    alone(|| async {
        let mut rig = Rig::new();
        rig.shell("far", "echo began; exec sleep 1000", "TIMEOUT = 1");
        rig.shell("near", "echo near", "");
        let executor = rig.start();
        let out_of_reach = OutOfReach::new(&rig.path("far.sh"));
        rig.fire("far").await;
        let record = rig.record().await;
        assert_eq!((record.ending, record.stdout.text().as_ref()), (Ending::TimedOut, ""));
        assert_eq!(record.stderr.text(), format!("Timeout executing {}", rig.path("far.sh").display()));
        assert_eq!(executor.status().running, 0);
        rig.fire("near").await;
        assert_eq!(rig.record().await.stdout.text(), "near\n");
        // It begins now; that it is killed is looked at by `alone`.
        drop(out_of_reach);
    });
}

#[test]
fn one_that_hangs_at_its_start_does_not_hold_up_the_end() {
    alone(|| async {
        let mut rig = Rig::new();
        rig.shell("far", "echo began; exec sleep 1000", "");
        let executor = rig.start();
        let out_of_reach = OutOfReach::new(&rig.path("far.sh"));
        rig.fire("far").await;
        wait("it to start", || if executor.status().running == 1 { Ok(()) } else { Err("it doesn't".to_owned()) })
            .await;
        executor.shutdown(Instant::now()).await;
        let record = rig.record().await;
        assert_eq!((record.ending, record.stdout.text().as_ref()), (Ending::Interrupted, ""));
        drop(executor);
        drop(out_of_reach);
    });
}

#[test]
fn one_that_hangs_is_ended_with_its_children() {
    alone(|| async {
        let mut rig = Rig::new();
        rig.shell("hang", "echo before; echo complaint >&2; sleep 1000 & echo $! > child; sleep 1000", TIMEOUT);
        let executor = rig.start();
        rig.fire("hang").await;
        let record = rig.record().await;
        assert_eq!((record.ending, record.ending.code()), (Ending::TimedOut, 255));
        assert_eq!(record.stdout.text(), "before\n");
        let line = rig.path("hang.sh");
        assert_eq!(record.stderr.text(), format!("complaint\nTimeout executing {}", line.display()));
        is_gone(rig.pid("child").await).await;
        let status = executor.status();
        assert_eq!((status.hooks[0].timeouts, status.hooks[0].failures, status.running), (1, 1, 0));
    });
}

#[test]
fn one_that_ignores_term_is_killed() {
    alone(|| async {
        let mut rig = Rig::new();
        let body = "trap '' TERM; (trap '' TERM; sleep 1000) & echo $! > child; echo up; while :; do sleep 1000; done";
        rig.shell("stubborn", body, TIMEOUT);
        let _executor = rig.start();
        rig.fire("stubborn").await;
        let record = rig.record().await;
        assert_eq!((record.ending, record.stdout.text().as_ref()), (Ending::TimedOut, "up\n"));
        is_gone(rig.pid("child").await).await;
    });
}

/// The leader goes at once, and so do the pipes; a child that ignores TERM is killed all the same.
#[test]
fn a_child_that_ignores_term_is_killed_when_its_parent_is_gone() {
    alone(|| async {
        let mut rig = Rig::new();
        let child = "(trap '' TERM; echo > up; exec sleep 1000) >/dev/null 2>&1 </dev/null &";
        rig.shell(
            "parent",
            &format!("{child} echo $! > child; while [ ! -f up ]; do sleep 0.01; done; exec sleep 1000"),
            TIMEOUT,
        );
        let _executor = rig.start();
        rig.fire("parent").await;
        assert_eq!(rig.record().await.ending, Ending::TimedOut);
        is_gone(rig.pid("child").await).await;
    });
}

/// TERM goes to the group, which it has left; KILL finds it all the same.
#[test]
fn one_that_leaves_its_group_is_killed() {
    alone(|| async {
        let mut rig = Rig::new();
        let ruby = "#!/usr/bin/ruby\npid = fork { sleep 1000 }\nProcess.setpgid(pid, pid)\nProcess.setpgid(0, pid)\n\
                    File.write(\"#{File.dirname($0)}/child\", pid.to_s)\nsleep 1000";
        rig.script("leaves.sh", ruby);
        rig.template("leaves", "NAME = leaves\nTYPE = event\nPREFIX = \"test leaves \"\nCOMMAND = leaves.sh");
        let executor = rig.start();
        rig.fire("leaves").await;
        let child = rig.pid("child").await;
        executor.shutdown(Instant::now()).await;
        assert_eq!(rig.record().await.ending, Ending::Interrupted);
        // Its child is out of reach.
        kill(child);
    });
}

#[test]
fn a_stopped_one_can_be_ended() {
    alone(|| async {
        let mut rig = Rig::new();
        rig.shell("stopped", "trap 'echo ended; exit 0' TERM; kill -STOP $$; sleep 1000", TIMEOUT);
        let _executor = rig.start_with(|options| options.kill_grace = Duration::from_secs(30));
        rig.fire("stopped").await;
        let record = rig.record().await;
        assert_eq!((record.ending, record.stdout.text().as_ref()), (Ending::TimedOut, "ended\n"));
    });
}

#[test]
fn one_that_forks_away_with_the_output_is_not_waited_for_long() {
    alone(|| async {
        let mut rig = Rig::new();
        rig.shell("forks", "sleep 1000 & echo $! > child; echo done", "");
        let _executor = rig.start();
        rig.fire("forks").await;
        let record = rig.record().await;
        assert_eq!(
            (record.ending, record.stdout.text().as_ref(), record.left_behind),
            (Ending::Exited(0), "done\n", true)
        );
        is_gone(rig.pid("child").await).await;
    });
}

/// What such a child still writes before it is ended belongs to the output.
#[test]
fn a_child_that_ends_soon_is_listened_to() {
    alone(|| async {
        let mut rig = Rig::new();
        rig.shell(
            "late",
            "(while [ -d /proc/$$ ] && ! grep -q '^State:.Z' /proc/$$/status; do :; done; echo late) & echo done",
            "",
        );
        let _executor = rig.start_with(|options| options.linger = support::PATIENCE);
        rig.fire("late").await;
        let record = rig.record().await;
        assert_eq!((record.stdout.text().as_ref(), record.left_behind), ("done\nlate\n", false));
    });
}

/// A session of its own is out of reach, but it can't hold us up.
#[test]
fn one_that_hides_in_a_session_of_its_own_holds_nobody_up() {
    alone(|| async {
        let mut rig = Rig::new();
        rig.shell(
            "hides",
            "setsid sh -c 'echo $$ > child; exec sleep 1000' & while [ ! -s child ]; do sleep 0.01; done; echo done",
            "",
        );
        let _executor = rig.start();
        rig.fire("hides").await;
        let record = rig.record().await;
        assert_eq!(
            (record.ending, record.stdout.text().as_ref(), record.left_behind),
            (Ending::Exited(0), "done\n", true)
        );
        kill(rig.pid("child").await);
    });
}

#[test]
fn a_proper_daemon_is_left_alone() {
    alone(|| async {
        let mut rig = Rig::new();
        rig.shell("daemon", "sleep 1000 </dev/null >/dev/null 2>&1 & echo $! > child; echo started", "");
        let executor = rig.start();
        rig.fire("daemon").await;
        let record = rig.record().await;
        assert_eq!(
            (record.ending, record.stdout.text().as_ref(), record.left_behind),
            (Ending::Exited(0), "started\n", false)
        );
        executor.shutdown(Instant::now()).await;
        let daemon = rig.pid("child").await;
        assert!(is_alive(daemon));
        kill(daemon);
    });
}

#[test]
fn a_gigabyte_on_each_output_is_read_and_not_kept() {
    alone(|| async {
        let mut rig = Rig::new();
        let body = "echo first; head -c 1G /dev/zero >&2 & head -c 1G /dev/zero; wait; echo last; echo last >&2";
        rig.shell("floods", body, "");
        let _executor = rig.start();
        std::fs::write("/proc/self/clear_refs", "5").expect("the peak is set back");
        let before = status_kib("VmHWM");
        rig.fire("floods").await;
        let record = rig.record().await;
        assert_eq!(record.ending, Ending::Exited(0));
        for (output, written) in [(&record.stdout, (1u64 << 30) + 11), (&record.stderr, (1 << 30) + 5)] {
            assert_eq!(output.cut_bytes, written - (1 << 20));
            assert_eq!(output.head.len() + output.tail.len(), 1 << 20);
            assert!(output.tail.ends_with(b"\0last\n"));
        }
        assert!(record.stdout.head.starts_with(b"first\n\0"));
        let grown = status_kib("VmHWM") - before;
        assert!(grown < 64 << 10, "{grown} KiB");
    });
}

/// Neither its TIMEOUT nor the linger is kept from the clock by output that never ends.
#[test]
fn floods_without_an_end_are_ended() {
    alone(|| async {
        let mut rig = Rig::new();
        rig.shell("floods", "yes >&2 & yes", TIMEOUT);
        rig.shell("leaves", "yes & yes >&2 & echo", "");
        let _executor = rig.start();
        rig.fire("floods").await;
        let record = rig.record().await;
        assert_eq!((record.ending, record.left_behind), (Ending::TimedOut, false));
        assert!(record.stdout.cut_bytes > 0 && record.stderr.text().contains("\nTimeout executing "));
        rig.fire("leaves").await;
        let record = rig.record().await;
        assert_eq!((record.ending, record.left_behind), (Ending::Exited(0), true));
    });
}

#[test]
fn one_that_dies_by_a_signal_says_so() {
    alone(|| async {
        let mut rig = Rig::new();
        rig.shell("dies", "echo about to die; kill -SEGV $$", "");
        let _executor = rig.start();
        rig.fire("dies").await;
        let record = rig.record().await;
        assert_eq!((record.ending, record.ending.code()), (Ending::Signalled(11), 255));
        assert_eq!(record.stdout.text(), "about to die\n");
        assert!(record.to_json().contains("\"signal_name\":\"SEGV\""));
    });
}

/// Ten megabytes of arguments for commands that read them, close their input, or never look at it.
#[test]
fn an_input_that_is_not_wanted_is_not_forced() {
    alone(|| async {
        let mut rig = Rig::new();
        for (name, body) in [
            ("reads", "wc -c"),
            ("closes", "exec <&-; echo closed"),
            ("ignores", "echo ignored"),
            // It closes its outputs, and reads then.
            ("silent", "exec >&- 2>&-; wc -c > count"),
        ] {
            rig.script(&format!("{name}.sh"), &format!("#!/bin/sh\ncd {}\n{body}\n", rig.directory.path().display()));
            let template = format!(
                "NAME = {name}\nTYPE = api\nCALL = one.{name}\nCOMMAND = {name}.sh\nARGUMENTS = $API\nARGUMENTS_STDIN = yes"
            );
            rig.template(name, &template);
        }
        let _executor = rig.start();
        let info = format!("<EXTRA>{}</EXTRA>", "x".repeat(10 << 20));
        let element = format!("<CALL_INFO>\n  <RESULT>1</RESULT>\n  {info}\n</CALL_INFO>");
        let base64_bytes = element.len().div_ceil(3) * 4;
        for (name, stdout) in [
            ("reads", format!("{base64_bytes}\n")),
            ("closes", "closed\n".into()),
            ("ignores", "ignored\n".into()),
            ("silent", String::new()),
        ] {
            rig.broker.publish(api_call(&format!("one.{name}"), 1, &info)).await.expect("published");
            let record = rig.record().await;
            assert_eq!((record.ending, record.stdout.text().as_ref()), (Ending::Exited(0), stdout.as_str()), "{name}");
            assert_eq!(record.arguments.len(), base64_bytes);
        }
        assert_eq!(rig.read("count").expect("written").trim(), base64_bytes.to_string());
    });
}

#[test]
fn commands_that_cannot_be_started() {
    alone(|| async {
        let mut rig = Rig::new();
        rig.script("nobody.sh", "#!/no/such/interpreter\n");
        std::fs::write(rig.path("plain.sh"), "#!/bin/sh\n").expect("written");
        for (name, command) in
            [("missing", "no_such_command.sh"), ("forbidden", "plain.sh"), ("orphan", "nobody.sh"), ("folder", "/")]
        {
            rig.template(
                name,
                &format!("NAME = {name}\nTYPE = event\nPREFIX = \"test {name} \"\nCOMMAND = {command}\nARGUMENTS = m"),
            );
        }
        let executor = rig.start();
        let base = rig.directory.path().display().to_string();
        for (name, stderr) in [
            ("missing", format!("Internal error No such file or directory - {base}/no_such_command.sh")),
            ("forbidden", format!("Internal error Permission denied - {base}/plain.sh")),
            (
                "orphan",
                format!(
                    "Internal error No such file or directory - {base}/nobody.sh\n\
                     The file is there: the interpreter in its first line (#!) is missing"
                ),
            ),
            ("folder", "Internal error Permission denied - /".into()),
        ] {
            rig.fire(name).await;
            let record = rig.record().await;
            assert_eq!((record.ending, record.ending.code()), (Ending::NotStarted, 255));
            assert_eq!(record.stderr.text(), stderr);
        }
        assert_eq!(executor.status().running, 0);
    });
}

#[test]
fn an_argument_that_is_too_long_fails_with_advice() {
    alone(|| async {
        let mut rig = Rig::new();
        rig.template("long", "NAME = long\nTYPE = api\nCALL = one.long\nCOMMAND = /bin/true\nARGUMENTS = $API");
        let _executor = rig.start();
        let info = format!("<EXTRA>{}</EXTRA>", "x".repeat(128 << 10));
        rig.broker.publish(api_call("one.long", 0, &info)).await.expect("published");
        let record = rig.record().await;
        assert_eq!(record.ending, Ending::NotStarted);
        let stderr = record.stderr.text();
        assert!(stderr.starts_with("Internal error Argument list too long - /bin/true\n"), "{stderr}");
        assert!(stderr.contains("ARGUMENTS_STDIN = yes"), "{stderr}");
        // The record has all of it, the message a part.
        assert!(record.arguments.len() > 128 << 10);
        assert!(record.to_json().len() < 3 * (64 << 10));
    });
}

/// The kernel doesn't know such a file; a shell does, and so does Ruby.
#[test]
fn a_script_without_an_interpreter_is_one_for_the_shell() {
    alone(|| async {
        let mut rig = Rig::new();
        rig.shell("bare", "", "ARGUMENTS = a b");
        rig.script("bare.sh", "echo \"$# $2\"\n");
        let _executor = rig.start();
        rig.fire("bare").await;
        assert_eq!(rig.record().await.stdout.text(), "2 b\n");
    });
}

/// While as many as may run hang but one, others run in the place that is left.
#[test]
fn others_are_not_affected() {
    alone(|| async {
        let mut rig = Rig::new();
        rig.shell("hangs", "trap '' TERM; while :; do sleep 1000; done", "");
        rig.shell("holds", "sleep 1000 & exec sleep 1000", "");
        rig.shell("works", "echo fine", "");
        let executor = rig.start_with(|options| options.concurrency = 3);
        rig.fire("hangs").await;
        rig.fire("holds").await;
        for _ in 0..20 {
            rig.fire("works").await;
        }
        for _ in 0..20 {
            let record = rig.record().await;
            assert_eq!((record.hook.name.as_str(), record.stdout.text().as_ref()), ("works", "fine\n"));
        }
        assert_eq!(executor.status().running, 2);
        assert!(rig.try_record().is_none());
        // Dropping it kills both groups; what is left would be seen at the end of the test.
    });
}
