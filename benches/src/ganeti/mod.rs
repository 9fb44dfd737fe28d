//! One run of `hookbus-ganeti-hook`, from its start to its end, against scripts that do the same and against a program that does nothing.
//!
//! ```text
//!   harness ──posix_spawn──▶ contender ──Unix socket──▶ harness: takes the report, answers 202
//!      ╰─────────── waits for its end ◀───────╯
//! ```
//!
//! # What is measured
//!
//! The wall time of one run, as Ganeti's job waits for it: from just before the process is started until it has been waited for. Contenders take
//! turns, run by run, with a recorded environment each. A run counts only when it ended with 0 and its report came, with every variable that Ganeti set.
//!
//! - **The hook**: as it is packaged, linked statically, if the program to measure was built so.
//! - **Nothing**: an empty Rust program, linked statically, built here by `rustc`; and the same with the standard library's usual linking.
//! - **Shell**: `bash` that reads `/proc/self/environ`, writes JSON by itself, and sends it with `curl` ([`HOOK_SH`]).
//! - **Python**: `python3 -I` with `json` and `socket` ([`HOOK_PY`]).
//!
//! [`at_once`] looks at many runs together, with a real daemon.
//!
//! # Fair play
//!
//! The scripts do less: they keep nothing when the daemon is away, have no id that is known twice, and don't end in time whatever happens. The daemon here answers at
//! once and writes nothing to a disk; what a real one takes is the same for all.

pub mod at_once;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use thiserror::Error;

use crate::report::{Better, Measure, Report, Side, Who};

/// The shell's version.
pub const HOOK_SH: &str = include_str!("hook.sh");
/// Python's version.
pub const HOOK_PY: &str = include_str!("hook.py");

const TIME: Measure = Measure { name: "one run of the hook", unit: "us", better: Better::Lower };

/// For what should come at once.
const PATIENCE: Duration = Duration::from_secs(10);

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The `hookbus-ganeti-hook` program.
    pub hook: PathBuf,
    /// Runs of each contender.
    pub runs: usize,
}

/// Why a comparison is void.
#[derive(Debug, Error)]
pub enum Failure {
    /// The operating system refused something.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// What was said.
        source: io::Error,
    },
    /// A contender doesn't do its work.
    #[error("{who}: {what}")]
    Contender {
        /// Which one.
        who: String,
        /// What it does.
        what: String,
    },
}

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> Failure {
    |source| Failure::Io { what: what.into(), source }
}

struct Contender {
    who: Who,
    command: Command,
    reports: bool,
}

/// Runs everything, contenders in turn.
///
/// # Errors
/// When something can't be started, or a contender fails or reports less than it should.
pub fn compare(report: &mut Report, options: &Options, mut progress: impl FnMut(&str)) -> Result<(), Failure> {
    let dir = tempfile::tempdir().map_err(failed("make a directory"))?;
    let socket = dir.path().join("s");
    let reports = serve(&socket).map_err(failed("serve a socket"))?;
    let mut contenders = contenders(dir.path(), &socket, &options.hook)?;
    let environment = environment();
    for contender in &mut contenders {
        contender.command.env_clear().envs(&environment);
        contender.command.stdin(Stdio::null()).stdout(Stdio::null());
    }
    // The first runs read from the disk.
    for round in 0..options.runs + 3 {
        progress(&format!("round {round} of {}", options.runs));
        for Contender { who, command, reports: is_reporting } in &mut contenders {
            let begun = Instant::now();
            let status =
                command.spawn().and_then(|mut child| child.wait()).map_err(failed(format!("run {}", who.name)))?;
            let time = begun.elapsed();
            let void = |what: String| Failure::Contender { who: who.name.to_owned(), what };
            if !status.success() {
                return Err(void(format!("it ended with {status}")));
            }
            if *is_reporting {
                let body = reports.recv_timeout(PATIENCE).map_err(|_| void("no report came".into()))?;
                let body: Value = serde_json::from_slice(&body).map_err(|e| void(format!("no JSON: {e}")))?;
                if let Some((name, value)) = environment.iter().find(|(name, value)| body["env"][name] != **value) {
                    return Err(void(format!("{name} is {} and not {value:?}", body["env"][name])));
                }
            }
            if round >= 3 {
                report.record(TIME, "a daemon that answers at once", *who, time.as_secs_f64() * 1e6);
            }
        }
    }
    Ok(())
}

/// The environment of an operation, as Ganeti gives it: some 70 variables.
fn environment() -> BTreeMap<String, String> {
    let mut environment: BTreeMap<String, String> = [
        ("PATH", "/sbin:/bin:/usr/sbin:/usr/bin"),
        ("GANETI_HOOKS_VERSION", "2"),
        ("GANETI_HOOKS_PATH", "instance-start"),
        ("GANETI_HOOKS_PHASE", "post"),
        ("GANETI_OP_CODE", "OP_INSTANCE_STARTUP"),
        ("GANETI_OBJECT_TYPE", "INSTANCE"),
        ("GANETI_CLUSTER", "cluster.example.com"),
        ("GANETI_MASTER", "n1"),
        ("GANETI_INSTANCE_TAGS", "with \"quotes\" and \\"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    for i in 0..30 {
        for phase in ["", "POST_"] {
            environment.insert(format!("GANETI_{phase}INSTANCE_HV_parameter_{i}"), format!("/var/lib/value/{i}"));
        }
    }
    environment
}

fn contenders(dir: &Path, socket: &Path, hook: &Path) -> Result<Vec<Contender>, Failure> {
    let file = |name: &str, text: &str| {
        let path = dir.join(name);
        fs::write(&path, text).map_err(failed(format!("write {name}")))?;
        Ok(path)
    };
    let spool = dir.join("spool");
    let config = format!("socket = {socket:?}\nspool = {spool:?}\nnode = \"n1\"\n");
    let config = file("hook.toml", &config)?;
    let empty = file("empty.rs", "fn main() {}\n")?;
    let host = "x86_64-unknown-linux-gnu";
    let build = |name: &str, flags: &[&str]| {
        let program = dir.join(name);
        let mut rustc = Command::new("rustc");
        let built = rustc.args(["-O", "-o"]).arg(&program).args(flags).arg(&empty).status();
        match built.map_err(failed("run rustc"))? {
            status if status.success() => Ok(program),
            status => Err(Failure::Contender { who: "rustc".into(), what: format!("it ended with {status}") }),
        }
    };
    let nothing = build("static", &["-Ctarget-feature=+crt-static", "--target", host])?;
    let dynamic = build("dynamic", &[])?;
    let mut ours = Command::new(hook);
    ours.arg("--config").arg(config);
    let mut shell = Command::new("/bin/bash");
    shell.arg(file("hook.sh", HOOK_SH)?).arg(socket);
    let mut python = Command::new("/usr/bin/python3");
    python.arg("-I").arg(file("hook.py", HOOK_PY)?).arg(socket);
    let who = |name, side, class| Who { name, side, class };
    let does = Some("reports");
    Ok(vec![
        Contender { who: who("hookbus-ganeti-hook", Side::Ours, does), command: ours, reports: true },
        Contender {
            who: who("an empty program, static", Side::Peer, None),
            command: Command::new(nothing),
            reports: false,
        },
        Contender {
            who: who("an empty program, dynamic", Side::Peer, None),
            command: Command::new(dynamic),
            reports: false,
        },
        Contender { who: who("bash and curl", Side::Peer, does), command: shell, reports: true },
        Contender { who: who("python3 with json and socket", Side::Peer, does), command: python, reports: true },
    ])
}

/// Takes reports at a socket, and hands on their bodies.
fn serve(socket: &Path) -> io::Result<Receiver<Vec<u8>>> {
    let listener = UnixListener::bind(socket)?;
    let (bodies, received) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            // A contender that hangs up has its report missed.
            let _ = stream.and_then(|stream| take(stream, &bodies));
        }
    });
    Ok(received)
}

fn take(mut stream: UnixStream, bodies: &Sender<Vec<u8>>) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end().split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.trim().parse().unwrap_or(0);
            }
            _ if line.trim_end().is_empty() => break,
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let _ = bodies.send(body);
    let answer = r#"{"accepted":1,"refused":[]}"#;
    let answer = format!("HTTP/1.1 202 Accepted\r\ncontent-length: {}\r\n\r\n{answer}", answer.len());
    stream.write_all(answer.as_bytes())
}
