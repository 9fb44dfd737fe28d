//! What `hookbus serve` takes while nothing happens: processor time, how often it is woken, resident memory.
//!
//! Each round has a daemon of its own, in a folder of its own, with a ZeroMQ publisher, the HTTP socket, and a journal or none. It is left alone for two
//! seconds after it answers, then looked at from outside twice, so many seconds apart. How often it is woken is how often its threads went
//! to sleep: the voluntary context switches of all of them.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use tempfile::TempDir;
use thiserror::Error;

use crate::report::{Aim, Better, Measure, Report, Side, Who};

const CPU: Measure = Measure { name: "processor time", unit: "% of a core", better: Better::Lower };
const WOKEN: Measure = Measure { name: "woken", unit: "times/s", better: Better::Lower };
const RESIDENT: Measure = Measure { name: "resident memory", unit: "MB", better: Better::Lower };

const OURS: Who = Who { name: "hookbus serve", side: Side::Ours, class: None };

const READY_PATIENCE: Duration = Duration::from_secs(20);

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The `hookbus` program.
    pub hookbus: PathBuf,
    /// How often.
    pub rounds: usize,
    /// How long a daemon is left alone before it is looked at.
    pub settle: Duration,
    /// How long it is looked at.
    pub watch: Duration,
}

/// Why there is no figure.
#[derive(Debug, Error)]
#[error("hookbus serve: {what}")]
pub struct IdleError {
    what: String,
    source: Option<io::Error>,
}

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> IdleError {
    |source| IdleError { what: what.into(), source: Some(source) }
}

/// Runs all rounds.
///
/// # Errors
/// When the daemon can't be started, isn't ready in time, or ends.
pub fn measure(report: &mut Report, options: &Options, mut progress: impl FnMut(&str)) -> Result<(), IdleError> {
    let cases = [("nothing to do", false), ("nothing to do, with a journal", true)];
    for round in 0..options.rounds {
        for (case, journal) in cases {
            progress(&format!("{case}, round {} of {}", round + 1, options.rounds));
            let daemon = Daemon::start(&options.hookbus, journal)?;
            thread::sleep(options.settle);
            let (started, before) = (Instant::now(), daemon.used().map_err(failed("can't be looked at"))?);
            thread::sleep(options.watch);
            let (watched, after) = (started.elapsed(), daemon.used().map_err(failed("can't be looked at"))?);
            let per_second = |amount: f64| amount / watched.as_secs_f64();
            let cpu = after.cpu.saturating_sub(before.cpu).as_secs_f64();
            report.record(CPU, case, OURS, per_second(cpu) * 100.0);
            report.record(WOKEN, case, OURS, per_second(after.woken.saturating_sub(before.woken) as f64));
            report.record(RESIDENT, case, OURS, after.resident_mb);
        }
    }
    for (case, _) in cases {
        report.aim(CPU, case, OURS, Aim::Value(0.2));
        report.aim(RESIDENT, case, OURS, Aim::Value(15.0));
    }
    Ok(())
}

/// What a process has used since its start.
struct Used {
    cpu: Duration,
    woken: u64,
    resident_mb: f64,
}

/// `hookbus serve` in a folder of its own; it ends when this is dropped.
struct Daemon {
    dir: TempDir,
    child: Child,
}

impl Daemon {
    fn start(program: &Path, journal: bool) -> Result<Self, IdleError> {
        let dir = tempfile::Builder::new().prefix("hookbus-bench-").tempdir().map_err(failed("no temporary folder"))?;
        let place = |name: &str| dir.path().join(name);
        let config = format!(
            "state_dir = {:?}\n[zeromq]\npublisher = \"tcp://127.0.0.1:0\"\nlogger = \"tcp://127.0.0.1:0\"\n[http]\nsocket = {:?}\n[hooks]\n\
             dir = {:?}\n[journal]\nenabled = {journal}\n",
            place("state"),
            place("s"),
            place("hooks"),
        );
        fs::write(place("hookbus.toml"), config).map_err(failed("its configuration can't be written"))?;
        let log = fs::File::create(place("log")).map_err(failed("its log can't be made"))?;
        let mut command = Command::new(program);
        command.arg("serve").arg("--config").arg(place("hookbus.toml"));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        let mut daemon = Daemon { child: child.map_err(failed(format!("{} can't be run", program.display())))?, dir };
        let deadline = Instant::now() + READY_PATIENCE;
        while !daemon.is_ready() {
            if daemon.child.try_wait().is_ok_and(|ended| ended.is_some()) || Instant::now() > deadline {
                let log = fs::read_to_string(daemon.dir.path().join("log")).unwrap_or_default();
                let what = format!("it isn't ready; {}", log.lines().last().unwrap_or("it says nothing"));
                return Err(IdleError { what, source: None });
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(daemon)
    }

    fn is_ready(&self) -> bool {
        let ask = || {
            let mut stream = UnixStream::connect(self.dir.path().join("s"))?;
            stream.set_read_timeout(Some(READY_PATIENCE))?;
            stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            io::Result::Ok(answer)
        };
        ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
    }

    fn used(&self) -> io::Result<Used> {
        let gone = || io::Error::other("it has ended");
        let pid = Pid::from_raw(self.child.id().cast_signed());
        let cpu = Duration::from(clock_gettime(ClockId::pid_cpu_clock_id(pid)?)?);
        let process = format!("/proc/{pid}");
        let mut woken = 0;
        for thread in fs::read_dir(format!("{process}/task"))? {
            // It may have ended meanwhile.
            let status = fs::read_to_string(thread?.path().join("status")).unwrap_or_default();
            woken += field(&status, "voluntary_ctxt_switches").unwrap_or(0);
        }
        let status = fs::read_to_string(format!("{process}/status"))?;
        let resident_mb = field(&status, "VmRSS").ok_or_else(gone)? as f64 * 1024.0 / 1e6;
        Ok(Used { cpu, woken, resident_mb })
    }
}

/// A number of `/proc/PID/status`.
fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let status =
            "Name:\thookbus\nVmRSS:\t    9876 kB\nvoluntary_ctxt_switches:\t12\nnonvoluntary_ctxt_switches:\t3\n";
        assert_eq!(field(status, "voluntary_ctxt_switches"), Some(12));
        assert_eq!(field(status, "VmRSS"), Some(9876));
        assert_eq!(field(status, "Vm"), None);
    }
}
