//! A driver as a process: started as oned does it, fed, looked at from outside, ended.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, ClockNanosleepFlags, clock_gettime, clock_nanosleep};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::{Failure, Pace, now_ns};
use crate::corpus::Corpus;
use crate::report::Who;

/// oned waits as long for the answer to INIT.
const INIT_PATIENCE: Duration = Duration::from_secs(10);
const READY_PATIENCE: Duration = Duration::from_secs(20);
const END_PATIENCE: Duration = Duration::from_secs(10);

/// How a driver is called.
#[derive(Clone, Debug)]
pub(super) struct Program {
    pub(super) who: Who,
    pub(super) path: PathBuf,
    /// What goes before the options that all have.
    pub(super) before: Vec<OsString>,
    pub(super) hwm: &'static str,
    /// OpenNebula's own: slower by far, shuffles, may lose.
    pub(super) original: bool,
}

/// A directory with a configuration, `hookbus.toml`, whose limits no burst reaches: what is compared is the way of events, not who
/// drops. State and socket are there, too, so that a daemon of this machine is not disturbed.
pub(super) fn large_limits() -> io::Result<TempDir> {
    let dir = tempfile::Builder::new().prefix("hookbus-bench-").tempdir()?;
    let path = dir.path().display();
    let text = format!(
        "state_dir = \"{path}/state\"\n[broker]\nmax_bytes = \"8GiB\"\n[zeromq]\nhwm_bytes = \"8GiB\"\n[http]\nsocket = \
         \"{path}/hookbus.sock\"\n"
    );
    std::fs::write(dir.path().join("hookbus.toml"), text)?;
    Ok(dir)
}

/// A running driver; it is killed when dropped.
#[derive(Debug)]
pub(super) struct Driver {
    who: &'static str,
    child: Child,
    stdin: Option<ChildStdin>,
    pub(super) publisher_port: u16,
    /// How long after the spawn the answer to INIT was read.
    pub(super) init_answered: Duration,
}

impl Driver {
    pub(super) fn start(program: &Program) -> Result<Self, Failure> {
        let who = program.who.name;
        let ports = free_ports().map_err(Failure::io("find free ports"))?;
        let [publisher_port, logger_port] = ports;
        let mut command = Command::new(&program.path);
        command
            .args(&program.before)
            .args(["-p", &publisher_port.to_string(), "-l", &logger_port.to_string()])
            .args(["-b", "127.0.0.1", "-h", program.hwm])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let started = Instant::now();
        let child = command.spawn().map_err(Failure::io(format!("start {}", program.path.display())))?;
        let mut driver = Driver { who, child, stdin: None, publisher_port, init_answered: Duration::ZERO };
        let fail = |what: &str| Failure::Driver { who, what: format!("{what}; it was started as {command:?}") };
        let (Some(mut stdin), Some(mut stdout)) = (driver.child.stdin.take(), driver.child.stdout.take()) else {
            return Err(fail("it has no pipes"));
        };
        stdin.write_all(b"INIT\n").map_err(|_| fail("it ended before it could read INIT"))?;
        let mut answer = Vec::new();
        while answer.last() != Some(&b'\n') {
            let mut byte = [0];
            let left = INIT_PATIENCE.saturating_sub(started.elapsed());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut readable = [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)];
            if poll(&mut readable, timeout) != Ok(1) {
                return Err(fail("it doesn't answer INIT within 10 s"));
            }
            stdout.read_exact(&mut byte).map_err(|_| fail("it ended before it answered INIT"))?;
            if answer.is_empty() {
                driver.init_answered = started.elapsed();
            }
            answer.extend(byte);
        }
        if !answer.starts_with(b"INIT SUCCESS") {
            return Err(fail("it answers INIT with something else than INIT SUCCESS"));
        }
        // What it says must be read, or it stalls; what it complains about is worth seeing.
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if line.starts_with("LOG E") || line.starts_with("LOG W") {
                    eprintln!("{who} says: {line}");
                }
            }
        });
        driver.stdin = Some(stdin);
        Ok(driver)
    }

    /// Sends probes until `ready` says that they have arrived.
    pub(super) fn probe_until(&mut self, corpus: &Corpus, mut ready: impl FnMut() -> bool) -> Result<(), Failure> {
        let who = self.who;
        let deadline = Instant::now() + READY_PATIENCE;
        while !ready() {
            if Instant::now() > deadline {
                return Err(Failure::Driver { who, what: "subscribers got no probe within 20 s".into() });
            }
            let stdin = self.stdin.as_mut().ok_or(io::ErrorKind::BrokenPipe.into());
            let probed = stdin.and_then(|stdin| stdin.write_all(corpus.probe()));
            probed.map_err(Failure::io(format!("write a probe to {who}")))?;
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    pub(super) fn take_stdin(&mut self) -> Result<ChildStdin, Failure> {
        self.stdin.take().ok_or(Failure::Driver { who: self.who, what: "its input is closed".into() })
    }

    pub(super) fn give_back_stdin(&mut self, stdin: ChildStdin) {
        self.stdin = Some(stdin);
    }

    /// The processor time that the process has used, all threads, those that are gone included.
    pub(super) fn cpu(&self) -> Result<Duration, Failure> {
        let read = || {
            let pid = i32::try_from(self.child.id()).map_err(io::Error::other)?;
            let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(pid))?;
            Ok(Duration::from(clock_gettime(clock)?))
        };
        read().map_err(Failure::io(format!("read the processor time of {}", self.who)))
    }

    /// A field of `/proc/PID/status` that counts memory, in megabytes.
    pub(super) fn resident_mb(&self, field: &str) -> Result<f64, Failure> {
        let what = format!("read the memory of {}", self.who);
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).map_err(Failure::io(what))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let kib = line.and_then(|rest| rest.trim().split(' ').next()?.parse::<f64>().ok());
        kib.map(|kib| kib * 1024.0 / 1e6).ok_or(Failure::Driver { who: self.who, what: "it has ended".into() })
    }

    pub(super) fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
    }

    /// Ends it as oned does.
    pub(super) fn end(mut self) -> Result<(), Failure> {
        let who = self.who;
        if let Some(mut stdin) = self.stdin.take() {
            // A driver that is gone already is found out below.
            let _ = stdin.write_all(b"FINALIZE\n");
        }
        let deadline = Instant::now() + END_PATIENCE;
        while Instant::now() < deadline {
            match self.child.try_wait() {
                Ok(None) => thread::sleep(Duration::from_millis(2)),
                Ok(Some(_)) => return Ok(()),
                Err(e) => return Err(Failure::io(format!("wait for {who} to end"))(e)),
            }
        }
        Err(Failure::Driver { who, what: "it doesn't end within 10 s of FINALIZE".into() })
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.kill();
        let _ = self.child.wait();
    }
}

/// When lines were to be written.
#[derive(Debug, Default)]
pub(super) struct Written {
    pub(super) started_ns: u64,
    /// For each line, where there is a plan.
    pub(super) planned_ns: Vec<u64>,
    /// How much later than planned each was written.
    pub(super) late_ns: Vec<u64>,
}

pub(super) fn write_lines(out: &mut impl Write, corpus: &Corpus, lines: usize, pace: Pace) -> io::Result<Written> {
    let mut written = Written { started_ns: now_ns(), ..Written::default() };
    match pace {
        Pace::FlatOut => {
            for piece in corpus.pieces(lines) {
                out.write_all(piece)?;
            }
        }
        Pace::PerSecond(rate) => {
            // Else the kernel wakes us up to 50 us late, to save wake-ups.
            prctl::set_timerslack(1)?;
            for at in 0..lines {
                let planned = written.started_ns + at as u64 * 1_000_000_000 / u64::from(rate);
                sleep_until(planned);
                written.late_ns.push(now_ns().saturating_sub(planned));
                written.planned_ns.push(planned);
                out.write_all(corpus.line(at))?;
            }
        }
    }
    Ok(written)
}

fn sleep_until(at_ns: u64) {
    let at = TimeSpec::from_duration(Duration::from_nanos(at_ns));
    // Interrupted by a signal, it has to be done again.
    while now_ns() < at_ns {
        let _ = clock_nanosleep(ClockId::CLOCK_MONOTONIC, ClockNanosleepFlags::TIMER_ABSTIME, &at);
    }
}

/// Ports that nobody has at the moment.
fn free_ports() -> io::Result<[u16; 2]> {
    let listeners = [TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?];
    Ok([listeners[0].local_addr()?.port(), listeners[1].local_addr()?.port()])
}
