//! Many runs of `hookbus-ganeti-hook` at once, against `hookbus serve`: whether all arrive, how long the slowest takes, what the daemon needs.
//!
//! Each round has a daemon of its own with a journal, in a directory of its own. Hooks are started one after the other as fast as that goes, each with an
//! environment of its own, and waited for in the order in which they end. The time of each is from just before its process was started until it has been
//! waited for; on a machine with few cores most of that is waiting for a core. What went into the spool is forwarded then, by further runs, and the daemon is
//! asked how many operations it has published: one for each run, or something was lost.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use super::{Failure, PATIENCE, environment, failed};
use crate::report::{Better, Measure, Report, Side, Who};

const SLOWEST: Measure = Measure { name: "the slowest run", unit: "ms", better: Better::Lower };
const MIDDLE: Measure = Measure { name: "the middle one", unit: "ms", better: Better::Lower };
const ARRIVED: Measure = Measure { name: "arrived at once", unit: "reports", better: Better::Higher };
const SPOOLED: Measure = Measure { name: "went through the spool", unit: "reports", better: Better::Lower };
const MEMORY: Measure = Measure { name: "resident memory of the daemon, peak", unit: "MiB", better: Better::Lower };

const HOOK: &str = "hookbus-ganeti-hook";

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The `hookbus-ganeti-hook` program.
    pub hook: PathBuf,
    /// The `hookbus` program.
    pub daemon: PathBuf,
    /// How many run at once.
    pub count: usize,
    /// How often all of that is done.
    pub rounds: usize,
}

/// Runs all rounds.
///
/// # Errors
/// When something can't be started, a run doesn't end with 0, or a report is lost.
pub fn measure(report: &mut Report, options: &Options, mut progress: impl FnMut(&str)) -> Result<(), Failure> {
    let case = format!("{} hooks at once, a daemon with a journal", options.count);
    let who = Who { name: HOOK, side: Side::Ours, class: None };
    for round in 0..options.rounds {
        progress(&format!("round {} of {}", round + 1, options.rounds));
        let Round { times, spooled, memory_mib } = one_round(options)?;
        for (measure, value) in [
            (SLOWEST, times.last().map_or(0.0, |time| time.as_secs_f64() * 1e3)),
            (MIDDLE, times.get(times.len() / 2).map_or(0.0, |time| time.as_secs_f64() * 1e3)),
            (ARRIVED, (options.count - spooled) as f64),
            (SPOOLED, spooled as f64),
            (MEMORY, memory_mib),
        ] {
            report.record(measure, &case, who, value);
        }
    }
    Ok(())
}

struct Round {
    /// How long each run took, the shortest first.
    times: Vec<Duration>,
    spooled: usize,
    memory_mib: f64,
}

fn one_round(options: &Options) -> Result<Round, Failure> {
    let void = |what: String| Failure::Contender { who: HOOK.into(), what };
    let dir = tempfile::tempdir().map_err(failed("make a directory"))?;
    let daemon = Daemon::start(dir, &options.daemon)?;
    let place = |name: &str| daemon.dir.path().join(name);
    let (spool, told) = (place("hooks-spool"), place("told"));
    let config = format!("socket = {:?}\nspool = {spool:?}\nnode = \"n1\"\n", daemon.socket());
    fs::write(place("hook.toml"), config).map_err(failed("write the hook's configuration"))?;
    let output = File::create(&told).map_err(failed("make a file"))?;
    let mut environment = environment();
    let mut command = |number: usize| {
        environment.insert("GANETI_OP_TARGET".into(), format!("web{number}.example.com"));
        let mut command = Command::new(&options.hook);
        command.arg("--config").arg(place("hook.toml")).env_clear().envs(&environment);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    };

    let mut commands = Vec::with_capacity(options.count);
    for number in 0..options.count {
        let mut command = command(number);
        command.stderr(output.try_clone().map_err(failed("duplicate a descriptor"))?);
        commands.push(command);
    }
    let mut begun = HashMap::with_capacity(options.count);
    for command in &mut commands {
        let now = Instant::now();
        let child = command.spawn().map_err(failed(format!("run {HOOK}")))?;
        begun.insert(Pid::from_raw(child.id().cast_signed()), now);
    }
    let mut times = Vec::with_capacity(options.count);
    while !begun.is_empty() {
        let status = waitpid(None, None).map_err(io::Error::from).map_err(failed(format!("wait for {HOOK}")))?;
        let Some(begun) = status.pid().and_then(|pid| begun.remove(&pid)) else {
            return Err(Failure::Contender { who: "hookbus serve".into(), what: format!("it ended: {status:?}") });
        };
        if !matches!(status, WaitStatus::Exited(_, 0)) {
            return Err(void(format!("{status:?}, and 0 is expected")));
        }
        times.push(begun.elapsed());
    }
    times.sort_unstable();

    let waiting = || {
        let Ok(entries) = fs::read_dir(&spool) else { return 0 };
        entries.flatten().filter(|entry| entry.path().extension().is_some_and(|extension| extension == "json")).count()
    };
    let spooled = waiting();
    let mut more = 0;
    let deadline = Instant::now() + PATIENCE;
    while waiting() > 0 && Instant::now() < deadline {
        let mut command = command(options.count + more);
        command.status().map_err(failed(format!("run {HOOK}")))?;
        more += 1;
    }
    let told = fs::read_to_string(told).map_err(failed("read what was told"))?;
    // The daemon may still be at what somebody has not waited for.
    let expected = (options.count + more) as u64;
    let mut operations = 0;
    while operations != expected && Instant::now() < deadline {
        operations = daemon.operations()?;
        thread::sleep(Duration::from_millis(5));
    }
    if operations != expected {
        let some: Vec<_> = told.lines().take(3).collect();
        return Err(void(format!("of {expected} reports {operations} arrived; told was: {some:?}")));
    }
    let memory_mib = daemon.peak_mib()?;
    Ok(Round { times, spooled, memory_mib })
}

/// `hookbus serve` in a directory of its own; it ends when this is dropped.
struct Daemon {
    dir: TempDir,
    child: Child,
}

impl Daemon {
    fn start(dir: TempDir, program: &Path) -> Result<Self, Failure> {
        let place = |name: &str| dir.path().join(name);
        let config = format!(
            "state_dir = {:?}\n[zeromq]\nenabled = false\n[http]\nsocket = {:?}\n[hooks]\ndir = {:?}\n[journal]\nenabled = true\n\
             [ganeti]\nspool = {:?}\n",
            place("state"),
            place("s"),
            place("hooks"),
            place("spool"),
        );
        fs::write(place("hookbus.toml"), config).map_err(failed("write the daemon's configuration"))?;
        let log = File::create(place("log")).map_err(failed("make a file"))?;
        let mut command = Command::new(program);
        command.arg("serve").arg("--config").arg(place("hookbus.toml"));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        let mut daemon = Daemon { child: child.map_err(failed(format!("run {}", program.display())))?, dir };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = daemon.get("/readyz");
            if answer.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")) {
                return Ok(daemon);
            }
            if daemon.child.try_wait().is_ok_and(|ended| ended.is_some()) || Instant::now() > deadline {
                let log = fs::read_to_string(daemon.dir.path().join("log")).unwrap_or_default();
                let what = format!("it isn't ready; {}", log.lines().last().unwrap_or("it says nothing"));
                return Err(Failure::Contender { who: "hookbus serve".into(), what });
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    fn get(&self, path: &str) -> io::Result<String> {
        let mut stream = UnixStream::connect(self.socket())?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// How many operations it has published.
    fn operations(&self) -> Result<u64, Failure> {
        let answer = self.get("/v1/status").map_err(failed("ask the daemon"))?;
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let status: Value = serde_json::from_str(body).unwrap_or_default();
        let what = || Failure::Contender { who: "hookbus serve".into(), what: "it doesn't count operations".into() };
        status["ganeti"]["operations"].as_u64().ok_or_else(what)
    }

    fn peak_mib(&self) -> Result<f64, Failure> {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.child.id())).map_err(failed("read its memory"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|rest| rest.trim().split(' ').next()?.parse::<f64>().ok());
        kib.map(|kib| kib / 1024.0)
            .ok_or_else(|| Failure::Contender { who: "hookbus serve".into(), what: "it has ended".into() })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        let _ = self.child.wait();
    }
}
