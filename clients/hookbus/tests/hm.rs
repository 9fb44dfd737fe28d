//! `hookbus hm` as a process, started the ways that oned and people start it. What needs subscribers is tested elsewhere; here it is
//! about the driver's own life: INIT, arguments, configuration, descriptors, signals, ports.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Long enough for a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(30);
const INIT_ANSWER: &[u8] = b"INIT SUCCESS - -              \n";

/// A driver, its standard input, and what it wrote.
struct Driver {
    child: Child,
    stdin: Option<ChildStdin>,
    chunks: Receiver<Vec<u8>>,
    seen: Vec<u8>,
}

impl Driver {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let stdin = child.stdin.take();
        let mut stdout = child.stdout.take().unwrap();
        let (sender, chunks) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = stdout.read(&mut buffer) {
                if sender.send(buffer[..read].to_vec()).is_err() {
                    break;
                }
            }
        });
        Driver { child, stdin, chunks, seen: Vec::new() }
    }

    /// With free ports and these arguments besides, in one argument as oned hands them over.
    fn with(arguments: &str) -> Self {
        let (publisher, logger) = (free_port(), free_port());
        let arguments = format!("hm -p {publisher} -l {logger} {arguments}");
        Driver::start(hookbus().arg(arguments))
    }

    fn say(&mut self, text: &str) {
        self.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    /// Waits until what the driver wrote fulfils the condition.
    fn until(&mut self, what: &str, condition: impl Fn(&[u8]) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(&self.seen) {
            match self.chunks.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(chunk) => self.seen.extend(chunk),
                Err(e) => panic!("{what}: {e}; it wrote {:?}", String::from_utf8_lossy(&self.seen)),
            }
        }
    }

    fn until_says(&mut self, text: &str) {
        self.until(text, |seen| String::from_utf8_lossy(seen).contains(text));
    }

    /// Says INIT and waits for the answer.
    fn init(mut self) -> Self {
        self.say("INIT\n");
        self.until("INIT", |seen| seen.len() >= INIT_ANSWER.len());
        assert!(self.seen.starts_with(INIT_ANSWER), "{:?}", String::from_utf8_lossy(&self.seen));
        self
    }

    /// Ends it by FINALIZE; what it wrote in all.
    fn finalize(mut self) -> String {
        self.say("FINALIZE\n");
        self.ended()
    }

    /// Waits for the end, which must be an orderly one; what it wrote in all.
    fn ended(mut self) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.chunks.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(chunk) => self.seen.extend(chunk),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("it doesn't end"),
            }
        }
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
        String::from_utf8(std::mem::take(&mut self.seen)).unwrap()
    }

    fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(self.pid(), signal).unwrap();
    }

    fn pid(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(self.child.id().try_into().unwrap())
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // A test that failed must not leave it behind. One that has ended was waited for.
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn hookbus() -> Command {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let mut command = Command::new(env!("CARGO_BIN_EXE_hookbus"));
    // Each has a state directory of its own, so that they don't tell of each other.
    let state = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("hm-{}-{number}", std::process::id()));
    command.current_dir("/").env_remove("RUST_LOG").env("STATE_DIRECTORY", state);
    command
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn init_answer() -> &'static str {
    std::str::from_utf8(INIT_ANSWER).unwrap()
}

/// A file of the test's own.
fn file(name: &str, text: &str) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(name);
    std::fs::write(&path, text).unwrap();
    (directory, path)
}

#[test]
fn init_is_answered_with_31_bytes_and_nothing_else_is_said() {
    assert_eq!(INIT_ANSWER.len(), 31);
    assert_eq!(Driver::with("-b 127.0.0.1 -t 15 -h 10").init().finalize(), init_answer());
}

#[test]
fn the_other_names_are_the_driver_too() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["one_hm", "hookbus-hm"] {
        let link = directory.path().join(name);
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_hookbus"), &link).unwrap();
        let arguments = format!("-p {} -l {}", free_port(), free_port());
        assert_eq!(Driver::start(Command::new(link).arg(arguments)).init().finalize(), init_answer());
    }
}

#[test]
fn the_end_of_the_input_ends_it() {
    let mut driver = Driver::with("").init();
    driver.say("EXECUTE  -1 aGFsZiBhIGxpbmU");
    driver.stdin = None;
    driver.ended();

    // Without INIT, too, and from a file or /dev/null, which no epoll takes.
    let (_directory, path) = file("input", "INIT\nFINALIZE\n");
    for input in [Path::new("/dev/null"), &path] {
        let input = std::fs::File::open(input).unwrap();
        let arguments = format!("hm -p {} -l {}", free_port(), free_port());
        let output = hookbus().arg(arguments).stdin(input).output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        assert!(output.stdout.is_empty() || output.stdout == INIT_ANSWER);
    }
}

#[test]
fn bad_lines_are_told_behind_the_answer_to_init() {
    let mut driver = Driver::with("");
    driver.say("BOGUS\nEXECUTE  -1\n\nEXECUTE  -1 PEE+PC9BPg==\nINIT\n");
    driver.until("INIT", |seen| seen.ends_with(b"\n") && seen.iter().filter(|byte| **byte == b'\n').count() >= 4);
    let said = driver.finalize();
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines[0], init_answer().trim_end_matches('\n'));
    assert!(lines[1].starts_with("LOG W 0 ") && lines[1].contains("BOGUS"), "{said}");
    assert!(lines[2].starts_with("LOG W 0 ") && lines[2].contains("EXECUTE without a content"), "{said}");
    assert!(lines[3].starts_with("LOG W 0 ") && lines[3].contains("no header"), "{said}");
}

#[test]
fn a_flood_of_bad_lines_is_ten_log_lines_and_a_count() {
    let mut driver = Driver::with("").init();
    for i in 0..1000 {
        driver.say(&format!("BOGUS {i}\n"));
    }
    let said = driver.finalize();
    assert_eq!(said.lines().filter(|line| line.contains("\"BOGUS ")).count(), 11, "{said}");
    assert!(said.contains("990 more like this in the last minute"), "{said}");
}

#[test]
fn wrong_arguments_are_told_and_the_rest_is_served() {
    let mut driver = Driver::with("-x --hwn=3 stray -h ten \"").init();
    for complaint in ["a quote is not closed", "`-x`", "did you mean `--hwm`?", "`stray`", "`ten`"] {
        driver.until_says(complaint);
    }
    let said = driver.finalize();
    assert!(said.lines().skip(1).all(|line| line.starts_with("LOG E 0 hm: ")), "{said}");
}

#[test]
fn a_wrong_configuration_is_told_and_the_rest_is_used() {
    let port = free_port();
    let text = format!(
        "[zeromq]\npublisher = \"tcp://127.0.0.1:{port}\"\nhwn = 3\n[broker]\nmax_bytes = 1\n[http]\ntoken_file = \"/nowhere\"\n"
    );
    let (_directory, path) = file("hookbus.toml", &text);
    let mut driver = Driver::start(hookbus().arg(format!("hm -l {} --config {}", free_port(), path.display()))).init();
    for problem in
        ["hookbus.toml:3:1: unknown key `hwn`", "hookbus.toml:5:13: broker.max_bytes", "LOG W 0 configuration: "]
    {
        driver.until_says(problem);
    }
    let deadline = Instant::now() + PATIENCE;
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < deadline, "the configured port is not served");
        std::thread::sleep(Duration::from_millis(5));
    }
    driver.finalize();
}

#[test]
fn an_unreadable_configuration_is_told() {
    for path in ["/nonexistent/hookbus.toml", "/"] {
        let mut driver = Driver::with(&format!("-c {path}")).init();
        driver.until_says(&format!("LOG E 0 configuration: {path}: cannot read it"));
        driver.finalize();
    }
}

#[test]
fn a_configuration_that_hangs_holds_nothing_up() {
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("hookbus.toml");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut driver = Driver::with(&format!("-c {}", fifo.display())).init();
    driver.until_says("could not be read in time");
    driver.finalize();
}

#[test]
fn a_port_that_is_taken_is_told_once_and_had_later() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut driver = Driver::start(hookbus().arg(format!("hm -p {port} -l {}", free_port()))).init();
    driver.until_says("LOG E 0 publisher port: cannot listen");
    drop(taken);
    driver.until_says("LOG I 0 publisher port: listens");
    let said = driver.finalize();
    assert_eq!(said.lines().count(), 3, "{said}");
}

#[test]
fn an_address_that_is_not_here_does_not_end_it() {
    let mut driver = Driver::with("-b 192.0.2.1").init();
    driver.until_says("publisher port: cannot listen");
    driver.until_says("logger port: cannot listen");
    driver.finalize();
}

/// As oned does it: descriptor 2 closed, every signal blocked, one argument, pipes. Python has both calls, and the test needs no
/// unsafe code for them.
#[test]
fn descriptor_2_and_the_signal_mask_are_repaired() {
    const ONED: &str = "import os, signal, sys\n\
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\n\
        os.close(2)\n\
        os.execv(sys.argv[1], sys.argv[1:])";
    let arguments = format!("hm -p {} -l {}", free_port(), free_port());
    let mut oned = Command::new("python3");
    oned.args(["-c", ONED, env!("CARGO_BIN_EXE_hookbus"), &arguments]).current_dir("/");
    let mut driver = Driver::start(&mut oned).init();
    let process = PathBuf::from(format!("/proc/{}", driver.pid()));
    assert_eq!(std::fs::read_link(process.join("fd/2")).unwrap(), Path::new("/dev/null"));
    let deadline = Instant::now() + PATIENCE;
    while blocked(&process) != 0 {
        assert!(Instant::now() < deadline, "signals are still blocked: {:x}", blocked(&process));
        std::thread::sleep(Duration::from_millis(5));
    }
    // So SIGTERM comes, and it waits for oned's last words.
    driver.signal(nix::sys::signal::SIGTERM);
    driver.say("BOGUS\n");
    driver.until_says("BOGUS");
    driver.finalize();
}

fn blocked(process: &Path) -> u64 {
    let status = std::fs::File::open(process.join("status")).unwrap();
    let line = BufReader::new(status).lines().map(Result::unwrap).find(|line| line.starts_with("SigBlk:")).unwrap();
    u64::from_str_radix(line.trim_start_matches("SigBlk:").trim(), 16).unwrap()
}

#[test]
fn a_signal_ends_it_when_oned_says_nothing_more() {
    let driver = Driver::with("").init();
    driver.signal(nix::sys::signal::SIGHUP);
    driver.signal(nix::sys::signal::SIGTERM);
    assert_eq!(driver.ended(), init_answer());
}

#[test]
fn oned_that_does_not_read_does_not_stop_it() {
    // Results can't be made without an executor here, log lines can: more than any pipe holds, and nobody reads.
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = hookbus();
    command.arg(format!("hm -p {} -l {}", free_port(), free_port())).stdin(Stdio::piped()).stdout(writer);
    let mut child = command.spawn().unwrap();
    drop(command);
    let mut stdin = child.stdin.take().unwrap();
    let line = "x".repeat(1 << 20);
    stdin.write_all(b"INIT\n").unwrap();
    for _ in 0..64 {
        stdin.write_all(line.as_bytes()).unwrap();
    }
    drop(reader);
    stdin.write_all(b"\nFINALIZE\n").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
