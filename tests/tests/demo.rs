//! `hookbus demo`: what a newcomer sees, and the commands it prints.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use hookbus_tests::tools::Tool;
use hookbus_tests::{Deadline, hookbus, wait_until};
use rustix::process::{Pid, Signal, kill_process};

const ESCAPE: u8 = 0x1b;

#[test]
fn a_demo_into_a_pipe_is_one_plain_line_an_event() {
    let output = run(demo().args(["--count", "20", "--rate", "100"]));
    let shown = String::from_utf8(output.stdout).expect("text");
    let said = String::from_utf8(output.stderr).expect("text");
    assert!(output.status.success(), "{}: {said}", output.status);
    assert_eq!(shown.lines().count(), 20, "one line an event: {shown}");
    assert!(shown.lines().all(|line| !line.trim().is_empty()), "{shown}");
    assert!(shown.contains("one.") && shown.contains("HOST "), "what happened to which object: {shown}");
    assert!(
        !(shown.bytes().chain(said.bytes())).any(|byte| byte == ESCAPE),
        "colours are for terminals:\n{said}\n{shown}"
    );
}

#[test]
fn a_demo_on_a_terminal_has_colours() {
    let on_terminal = |environment: &[(&str, &str)]| {
        let mut command = Command::new("script");
        command.args(["--quiet", "--return", "--command"]);
        command.arg(format!("'{}' demo --count 5 --rate 100", hookbus().display())).arg("/dev/null");
        command.env("TERM", "xterm-256color").env_remove("NO_COLOR").envs(environment.iter().copied());
        let output = run(command.stdin(Stdio::null()));
        assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stdout));
        output.stdout
    };
    let colourful = on_terminal(&[]);
    assert!(colourful.contains(&ESCAPE), "{}", String::from_utf8_lossy(&colourful));
    let plain = on_terminal(&[("NO_COLOR", "1")]);
    assert!(!plain.windows(5).any(|part| part.starts_with(b"\x1b[3") && part.ends_with(b"m")), "NO_COLOR is respected");
}

#[test]
fn the_commands_that_a_demo_prints_receive() {
    let mut child =
        demo().args(["--rate", "50"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts");
    let said = lines(&mut child, |child| child.stderr.take().expect("it was piped"));
    let mut demo = Ended(child);
    let printed = |start: &str| {
        let deadline = Deadline::usual();
        let mut heard = Vec::new();
        loop {
            let Ok(line) = said.recv_timeout(deadline.left()) else {
                panic!("no command that begins with `{start}` in what it said: {heard:#?}")
            };
            if line.trim_start().starts_with(start) {
                return line;
            }
            heard.push(line);
        }
    };
    for (tool, start) in [(Tool::Python, "python3 -c"), (Tool::Ruby, "ruby -r")] {
        let command = printed(start);
        if !tool.wanted() {
            continue;
        }
        // As a reader would: pasted into a shell. Debian's own interpreters are those that have the libraries.
        let mut child = Command::new("sh")
            .args(["-c", &format!("exec {}", command.trim())])
            .env("PATH", "/usr/bin:/bin")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("there is a shell");
        let received = lines(&mut child, |child| child.stdout.take().expect("it was piped"));
        let _subscriber = Ended(child);
        let deadline = Deadline::usual();
        for number in 0..3 {
            let line = received.recv_timeout(deadline.left());
            let line = line.unwrap_or_else(|_| panic!("it printed {number} lines and no more: {command}"));
            assert!(line.starts_with("EVENT "), "not an event's key: {line}");
        }
    }
    kill_process(Pid::from_child(&demo.0), Signal::INT).expect("it runs");
    let status = wait_until("the end of the demo", || demo.0.try_wait().expect("our own child").ok_or("it runs"));
    assert!(status.success(), "Ctrl-C ends it well: {status}");
}

#[test]
fn a_demo_that_cannot_be_says_why() {
    for arguments in [["--rate", "0"], ["--rate", "fast"], ["--count", "some"], ["--nonsense", "1"]] {
        let output = run(demo().args(arguments));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{arguments:?} is wrong usage: {said}");
        assert!(said.contains(arguments[0]), "it should name {}: {said}", arguments[0]);
    }
}

fn demo() -> Command {
    let mut command = Command::new(hookbus());
    command.arg("demo").stdin(Stdio::null());
    command
}

/// Runs it to its end; what it says goes nowhere else.
fn run(command: &mut Command) -> Output {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let pid = Pid::from_child(&child);
    let (sender, ended) = mpsc::channel();
    let waiter = thread::spawn(move || {
        let output = child.wait_with_output();
        let _ = sender.send(());
        output
    });
    if ended.recv_timeout(Deadline::usual().left()).is_err() {
        let _ = kill_process(pid, Signal::KILL);
    }
    waiter.join().expect("the thread only waits").expect("our own child can be waited for")
}

/// A child that is killed when this is dropped.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The lines of one of a child's outputs, as they come.
fn lines<T: std::io::Read + Send + 'static>(child: &mut Child, of: impl Fn(&mut Child) -> T) -> Receiver<String> {
    let output = BufReader::new(of(child));
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in output.lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}
