//! Real servers for the tests of bridges: each on free ports of 127.0.0.1, with its files in a temporary directory, ended with the
//! test that started it.
//!
//! A server can be killed ([`Process::kill`]), asked to end ([`Process::terminate`]), stopped and continued as a whole, and started
//! again on the same port with the same files. It is in a process group of its own, and a guard (a shell that waits for the end of
//! a pipe) ends that group, and removes its files, when the test program dies without having said so.

#![allow(dead_code, unreachable_pub, reason = "each test program uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test that can't start its server fails")]

pub mod certificates;
pub mod http;
pub mod mosquitto;
pub mod nats;
pub mod rabbitmq;

use std::fmt::Display;
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// How long a test waits for what should come soon. Long, because the machine may be busy; a test that passes never waits for it.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A port of 127.0.0.1 that was free a moment ago, and is handed out once in the life of the process. It is below the range from
/// which Linux takes the local ports of outgoing connections: one of those might be on it while its server is down, and a client that
/// tries again and again would in the end connect to itself.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 22_000;
    for _ in 0..COUNT {
        // Test programs that run at the same time begin at different places, and far from what tests/src/ports.rs gives them.
        let number = std::process::id().wrapping_mul(97).wrapping_add(COUNT / 2 + NEXT.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(FIRST + number % COUNT).unwrap();
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no free TCP port between {FIRST} and {}", FIRST + COUNT);
}

/// Asks again and again until `ask` answers with `Ok`; panics after [`PATIENCE`] with `what` and what `ask` saw last.
pub fn wait_until<T, E: Display>(what: &str, mut ask: impl FnMut() -> Result<T, E>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(seen) if Instant::now() > end => panic!("waited in vain for {what}; seen last: {seen}"),
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Waits until something listens on a port of 127.0.0.1.
pub fn wait_for_port(process: &mut Process, port: u16) {
    wait_until(&format!("{} on port {port}", process.name), || {
        if let Some(status) = process.ended() {
            panic!("{} ended by itself: {status}\n{}", process.name, process.log());
        }
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).map(drop)
    });
}

/// A server's process, and its group.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    guard: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a command in a process group of its own; what it says goes to the end of the file `log`, which is in the temporary
    /// directory that is the server's alone.
    pub fn start(name: &str, command: &mut Command, log: PathBuf) -> Self {
        let file = File::options().create(true).append(true).open(&log).unwrap();
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file).process_group(0);
        let child = command.spawn().unwrap_or_else(|error| panic!("{name} can't be started: {error}"));
        // The guard holds one end of a pipe, we the other: when we are gone, it reads the end and acts.
        let guard = Command::new("sh")
            .args(["-c", &format!("cat >/dev/null; kill -KILL -{} 2>/dev/null; rm -rf \"$0\"", child.id())])
            .arg(server_dir(&log))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        Process { name: name.to_owned(), child, guard, log }
    }

    /// Its process id, which is its group's.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether it has ended, and how.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// SIGKILL for the whole group, and waits for its end. Nothing happens to one that has ended.
    pub fn kill(&mut self) {
        if self.ended().is_none() {
            self.signal(Signal::SIGKILL);
            self.child.wait().unwrap();
        }
        // Its group has nothing left to guard, and its number may soon be another's.
        let _ = killpg(Pid::from_raw(self.guard.id().cast_signed()), Signal::SIGKILL);
        let _ = self.guard.wait();
    }

    /// SIGTERM for the server, and waits for its end.
    pub fn terminate(&mut self) {
        if self.ended().is_none() {
            nix::sys::signal::kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM).unwrap();
            wait_until(&format!("the end of {}", self.name), || self.ended().ok_or("it goes on"));
        }
        self.kill();
    }

    /// SIGSTOP for the whole group: its sockets stay open, and nothing answers. Threads stop one by one, so that of the server itself is waited for.
    pub fn stop(&self) {
        self.signal(Signal::SIGSTOP);
        wait_until(&format!("{} to stand still", self.name), || match running_threads(self.child.id()) {
            0 => Ok(()),
            running => Err(format!("{running} threads run")),
        });
    }

    /// SIGCONT for the whole group.
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        killpg(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }
}

/// How many threads of a process are neither stopped nor gone.
fn running_threads(id: u32) -> usize {
    let threads = fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten();
    let state = |stat: &str| stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next());
    let runs = |stat: String| !matches!(state(&stat), Some('T' | 't' | 'Z' | 'X') | None);
    threads.filter(|thread| fs::read_to_string(thread.path().join("stat")).is_ok_and(runs)).count()
}

/// The directory of a server, which its log is in; never one that tests don't make.
fn server_dir(log: &Path) -> &Path {
    let dir = log.parent().unwrap();
    assert!(dir.parent() == Some(std::env::temp_dir().as_path()), "{} is not for a server alone", dir.display());
    dir
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            let log = self.log();
            let tail = log.len().saturating_sub(4000);
            eprintln!("--- {} said:\n{}", self.name, String::from_utf8_lossy(&log.as_bytes()[tail..]));
        }
    }
}
