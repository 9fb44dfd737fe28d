//! Where a run took place, and which versions were compared: without it a figure means nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::process::Command;
use std::thread;

use serde::Serialize;

/// The machine and the software, as far as it can be found out.
#[derive(Debug, Serialize)]
pub struct Machine {
    /// The processor's own name.
    pub cpu: String,
    /// How many threads can run at once.
    pub cores: usize,
    /// Main memory, in MiB.
    pub memory_mib: u64,
    /// The version of the Linux kernel.
    pub kernel: String,
    /// The load average over one minute at the start. Above a fraction of `cores` somebody else is working here.
    pub load: f64,
    /// The commit that was measured, with `-dirty` where files were changed.
    pub commit: String,
    /// The versions of the peers.
    pub peers: BTreeMap<&'static str, String>,
    /// Whether this was compiled with optimisation; figures without it are worthless.
    pub optimised: bool,
}

impl Machine {
    /// This one.
    pub fn this() -> Self {
        let cpuinfo = read("/proc/cpuinfo");
        let meminfo = read("/proc/meminfo");
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let kib: u64 = field(&meminfo, "MemTotal")
            .and_then(|value| value.split(' ').next().and_then(|n| n.parse().ok()))
            .unwrap_or_default();
        Machine {
            cpu: field(&cpuinfo, "model name").unwrap_or_else(|| "unknown".into()),
            cores: cores(),
            memory_mib: kib / 1024,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load: read("/proc/loadavg").split(' ').next().and_then(|n| n.parse().ok()).unwrap_or_default(),
            commit: commit(),
            peers: peers(),
            optimised: !cfg!(debug_assertions),
        }
    }
}

/// How many threads can run at once.
pub fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine { cpu, cores, memory_mib, kernel, load, commit, .. } = self;
        writeln!(
            f,
            "{cores} cores of {cpu}, {memory_mib} MiB, Linux {kernel}, load {load} at the start; hookbus {commit}"
        )?;
        let peers: Vec<_> = self.peers.iter().map(|(name, version)| format!("{name} {version}")).collect();
        write!(f, "{}", peers.join(", "))?;
        if !self.optimised {
            write!(
                f,
                "\nBuilt without --release: these figures are good for nothing but seeing that the harness works."
            )?;
        }
        Ok(())
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn commit() -> String {
    let git = Command::new("git")
        .args(["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty", "--abbrev=12"])
        .output();
    match git {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        _ => concat!(env!("CARGO_PKG_VERSION"), " (commit unknown)").to_owned(),
    }
}

/// What Cargo.lock says, since the crates don't tell their versions themselves.
fn peers() -> BTreeMap<&'static str, String> {
    const LOCK: &str = include_str!("../../Cargo.lock");
    let version = |name: &str| {
        // The last is the newest, where others still need an older one.
        let (_, after) = LOCK.rsplit_once(&format!("name = \"{name}\"\nversion = \""))?;
        Some(after.split_once('"')?.0.to_owned())
    };
    let crates = ["async-broadcast", "crossbeam-channel", "flume", "kanal", "tokio"];
    #[allow(unused_mut, reason = "changed where libzmq is compiled in")]
    let mut peers: BTreeMap<_, _> = crates.into_iter().filter_map(|name| Some((name, version(name)?))).collect();
    #[cfg(feature = "libzmq")]
    {
        let (major, minor, patch) = zmq::version();
        peers.insert("libzmq", format!("{major}.{minor}.{patch}"));
        peers.extend(version("zeromq").map(|version| ("zeromq crate", version)));
    }
    peers
}
