//! `hookbus demo` as a process: what it prints, and the commands that it tells people to try.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

fn demo(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hookbus"));
    command.arg("demo").args(args).current_dir("/").env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

#[test]
fn a_count_is_that_many_plain_lines() {
    let output = demo(&["--rate", "1000", "--count", "320"]).output().unwrap();
    let events = String::from_utf8(output.stdout).unwrap();
    let around = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{around}");
    assert_eq!(events.lines().count(), 320, "{events}");
    assert!(!events.contains('\x1b'), "no colours where it is no terminal");
    assert!(events.contains("HOST 0 \"node1\"") && events.contains("one.vm.allocate"), "{events}");
    assert!(around.contains("320 events in"), "{around}");
    for line in around.lines().filter(|line| line.contains(" for it = ")) {
        let numbers: Vec<u64> =
            line.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect();
        let [.., matched, taken, lost, waiting] = numbers[..] else { panic!("{line}") };
        assert_eq!(matched, taken + lost + waiting, "{line}");
    }
}

#[test]
fn a_closed_pipe_ends_it_quietly() {
    let mut demo = demo(&["--rate", "1000"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    BufReader::new(demo.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert!(first.contains("one.group.allocate"), "{first}");
    let mut around = String::new();
    demo.stderr.take().unwrap().read_to_string(&mut around).unwrap();
    assert!(demo.wait().unwrap().success(), "{around}");
    assert!(!around.to_lowercase().contains("error"), "{around}");
}

#[test]
fn a_wrong_configuration_is_wrong_usage() {
    let output = demo(&["--config", "/nonexistent/hookbus.toml"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nonexistent/hookbus.toml: cannot read it"));
}

/// Ends a process that would play for ever.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The commands are run by a shell as they are printed. Debian's interpreters have the modules; others in `PATH` may not.
#[test]
fn the_commands_that_it_prints_work() {
    let mut demo = Killed(demo(&["--rate", "100"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap());
    let mut around = BufReader::new(demo.0.stderr.take().unwrap());
    for interpreter in ["python3 ", "ruby "] {
        let command = loop {
            let mut line = String::new();
            assert_ne!(around.read_line(&mut line).unwrap(), 0, "no command for {interpreter}");
            if line.trim_start().starts_with(interpreter) {
                break line;
            }
        };
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("exec {}", command.trim())]).env("PATH", "/usr/bin:/bin").stdout(Stdio::piped());
        let mut subscriber = Killed(shell.spawn().unwrap());
        let mut keys = BufReader::new(subscriber.0.stdout.take().unwrap()).lines();
        for _ in 0..20 {
            let key = keys.next().unwrap_or_else(|| panic!("it ended: {command}")).unwrap();
            assert!(key.starts_with("EVENT STATE "), "{key}");
        }
    }
}
