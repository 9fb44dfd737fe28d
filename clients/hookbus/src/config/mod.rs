//! The configuration: one TOML file for all programs, read into typed structs that can be compared and applied piece by
//! piece.
//!
//! A file is read in one way only (`read`): every mistake in it becomes a [`Problem`] that names the place, what is wrong
//! and, for a misspelt key, the nearest known one; what is not mistaken becomes the [`Config`]. Who reads it decides what
//! a problem means:
//!
//! - Commands are strict ([`Reading::strict`]): an error ends them with exit status 2.
//! - `hookbus hm` is lenient: it tells the problems, uses the rest, and takes defaults for what is invalid, because oned
//!   would end together with it.
//!
//! The schema knows the sections of later versions by name, so that a file can be shared with them: those give a warning.

mod read;
mod size;

use std::fmt;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use hookbus_bridges::zeromq::Endpoint;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

pub(crate) use read::nearest;
pub(crate) use size::ByteSize;

/// Where the configuration is, unless `--config` names another file.
pub(crate) const DEFAULT_PATH: &str = "/etc/hookbus/hookbus.toml";

/// The whole configuration. Two of them can be compared, so that a change is applied where it is one.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Config {
    /// Where state is kept. Without it, the first writable of `$STATE_DIRECTORY`, `/var/lib/hookbus`,
    /// `/var/lib/one/hookbus` and `~/.local/state/hookbus`. Nothing of this version keeps state.
    pub(crate) state_dir: Option<PathBuf>,
    /// `[broker]`
    pub(crate) broker: BrokerConfig,
    /// `[zeromq]`
    pub(crate) zeromq: ZeromqConfig,
    /// `[limits]`
    pub(crate) limits: LimitsConfig,
    /// `[log]`
    pub(crate) log: LogConfig,
}

/// `[broker]`: the queues inside hookbus.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct BrokerConfig {
    /// What all queues may hold together; beyond it the subscriber that is farthest behind overflows first. At least 1 MiB.
    #[serde(deserialize_with = "at_least_1_mib")]
    pub(crate) max_bytes: ByteSize,
}

impl Default for BrokerConfig {
    fn default() -> Self {
        BrokerConfig { max_bytes: ByteSize::mib(512) }
    }
}

/// `[zeromq]`: the two ports of OpenNebula's event queue.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct ZeromqConfig {
    /// Whether the two ports are served.
    pub(crate) enabled: bool,
    /// Where subscribers connect: `tcp://HOST:PORT`, HOST being an address, a name or `*`; or `ipc://PATH`.
    #[serde(deserialize_with = "endpoint")]
    pub(crate) publisher: Endpoint,
    /// Where hook executors report results; as above.
    #[serde(deserialize_with = "endpoint")]
    pub(crate) logger: Endpoint,
    /// The high-water mark of each subscriber in messages, after which it loses the newest and is told so; 0 is none. It
    /// is a hundred times the original's, since a message is held once for all subscribers.
    pub(crate) hwm: usize,
    /// The same in bytes; 0 is none.
    pub(crate) hwm_bytes: ByteSize,
}

impl Default for ZeromqConfig {
    fn default() -> Self {
        let local = |port| Endpoint::tcp(Ipv4Addr::LOCALHOST, port);
        ZeromqConfig {
            enabled: true,
            publisher: local(2101),
            logger: local(2102),
            hwm: 100_000,
            hwm_bytes: ByteSize::mib(256),
        }
    }
}

/// `[limits]`: what is taken from outside before it is refused, so that nobody can make hookbus grow without bound.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct LimitsConfig {
    /// The longest line from oned; a longer one is skipped and told.
    pub(crate) line_bytes: ByteSize,
    /// The longest frame that a subscriber may send.
    pub(crate) publisher_frame_bytes: ByteSize,
    /// The longest frame that a hook executor may send.
    pub(crate) logger_frame_bytes: ByteSize,
    /// How many filters a subscriber may have, and how long they may be in all.
    pub(crate) filters: usize,
    pub(crate) filter_bytes: ByteSize,
    /// How many connections each port takes.
    pub(crate) peers: usize,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        LimitsConfig {
            line_bytes: ByteSize::mib(256),
            publisher_frame_bytes: ByteSize::kib(64),
            logger_frame_bytes: ByteSize::mib(64),
            filters: 100_000,
            filter_bytes: ByteSize::mib(16),
            peers: 10_000,
        }
    }
}

/// `[log]`: where the program's own log goes. `RUST_LOG` overrides the level.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct LogConfig {
    /// The file that is appended to; standard error unless set.
    pub(crate) file: Option<PathBuf>,
    /// The least level that is logged.
    pub(crate) level: LogLevel,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogLevel {
    /// What needs somebody's attention.
    Error,
    /// Besides, what may.
    Warn,
    /// Besides, what changes: ports bound, peers that come and go.
    #[default]
    Info,
    /// Besides, what helps to find a mistake.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// The level as a directive of `RUST_LOG`.
    pub(crate) const fn directive(self) -> &'static str {
        match self {
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
            LogLevel::Trace => "trace",
        }
    }
}

fn at_least_1_mib<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ByteSize, D::Error> {
    let size = ByteSize::deserialize(deserializer)?;
    if size < ByteSize::mib(1) {
        return Err(D::Error::custom(format!("{size} is too little: nothing would fit; at least 1MiB")));
    }
    Ok(size)
}

fn endpoint<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Endpoint, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
}

/// What a file said: the configuration, and what was wrong in the file. Where something was wrong, the configuration has
/// the default.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Reading {
    /// What to use.
    pub(crate) config: Config,
    /// What was wrong, in the order of the file.
    pub(crate) problems: Vec<Problem>,
}

impl Reading {
    /// Reads the file at `path`, or at [`DEFAULT_PATH`], where it is no problem that none exists.
    pub(crate) fn of_file(path: Option<&Path>) -> Self {
        let file = path.unwrap_or(Path::new(DEFAULT_PATH));
        let mut reading = match std::fs::read(file) {
            Ok(text) => match String::from_utf8(text) {
                Ok(text) => read::read(&text),
                Err(e) => Reading::unreadable(format!("it is not UTF-8 text ({}); save it as UTF-8", e.utf8_error())),
            },
            Err(e) if path.is_none() && e.kind() == std::io::ErrorKind::NotFound => Reading::default(),
            Err(e) => Reading::unreadable(format!("cannot read it: {e}")),
        };
        for problem in &mut reading.problems {
            problem.file = file.into();
        }
        reading
    }

    /// What there is instead of a file that could not be read in time.
    pub(crate) fn late(path: Option<&Path>) -> Self {
        let mut reading = Reading::unreadable("it could not be read in time; is its disk reachable?".into());
        for problem in &mut reading.problems {
            problem.file = path.unwrap_or(Path::new(DEFAULT_PATH)).into();
        }
        reading
    }

    /// The configuration and its warnings, or the errors if there are any.
    pub(crate) fn strict(self) -> Result<(Config, Vec<Problem>), Vec<Problem>> {
        let (errors, warnings): (Vec<_>, Vec<_>) =
            self.problems.into_iter().partition(|problem| problem.severity == Severity::Error);
        if errors.is_empty() { Ok((self.config, warnings)) } else { Err(errors) }
    }

    fn unreadable(what: String) -> Self {
        let problem = Problem { severity: Severity::Error, file: PathBuf::new(), place: None, what };
        Reading { config: Config::default(), problems: vec![problem] }
    }
}

/// Something wrong in a configuration file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Problem {
    /// Whether a strict reader refuses the file.
    pub(crate) severity: Severity,
    /// The file.
    pub(crate) file: PathBuf,
    /// Where in it, if it is at one place.
    pub(crate) place: Option<Place>,
    /// What is wrong and what to do.
    pub(crate) what: String,
}

/// How bad a [`Problem`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Severity {
    /// It can't be meant like this.
    Error,
    /// It has no effect in this version.
    Warning,
}

/// A place in a file, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// The line.
    pub(crate) line: usize,
    /// The character in the line.
    pub(crate) column: usize,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(Place { line, column }) = self.place {
            write!(f, ":{line}:{column}")?;
        }
        write!(f, ": {}", self.what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The annotated sample says what the defaults are, and leaves no key out.
    #[test]
    fn the_sample_is_the_default() {
        let sample = include_str!("../../../../packaging/hookbus.toml");
        let keys: Vec<_> = sample
            .lines()
            .filter_map(|line| line.strip_prefix('#').filter(|key| key.starts_with(char::is_lowercase)))
            .collect();
        let uncommented: String = sample
            .lines()
            .map(|line| line.strip_prefix('#').filter(|key| keys.contains(key)).unwrap_or(line))
            .flat_map(|line| [line, "\n"])
            .collect();
        assert_eq!(read::read(sample), Reading::default());
        let (mut config, _) = read::read(&uncommented).strict().expect("the sample is right");
        assert_eq!(config.log.file.take(), Some("/var/log/hookbus.log".into()));
        assert_eq!(config, Config::default());
        assert_eq!(keys.len(), 14, "every key is in the sample: {keys:?}");
    }
}
