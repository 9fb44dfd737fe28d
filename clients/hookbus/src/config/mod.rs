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
//! The whole schema is known, also what belongs to parts that later versions bring: that is checked like the rest, and then a
//! warning says that it has no effect yet.
//!
//! `sections` has a struct for each section, `source` and `bridge` those of the two lists; `read` and `list` turn the text
//! into them, `checks` looks at what several keys mean together, `command` is `hookbus config`.

mod bridge;
mod checks;
pub(crate) mod command;
mod files;
mod list;
mod overflow;
mod paths;
mod period;
mod read;
mod sections;
mod size;
mod source;
mod url;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

pub(crate) use bridge::{
    AmqpConfig, BridgeConfig, BridgeKind, EventFormat, MqttConfig, MqttVersion, NatsConfig, TlsFiles, Unroutable,
    WebhookConfig,
};
pub(crate) use overflow::Overflow;
pub(crate) use paths::{default_sockets, default_state_dirs};
pub(crate) use period::Period;
pub(crate) use read::nearest;
pub(crate) use sections::{
    BrokerConfig, Durability, GanetiConfig, HooksConfig, HttpConfig, JournalConfig, LimitsConfig, LogConfig,
    ZeromqConfig,
};
pub(crate) use size::ByteSize;
pub(crate) use source::{SourceConfig, SourceKind};
pub(crate) use url::Url;

/// Where the configuration is, unless `--config` names another file.
pub(crate) const DEFAULT_PATH: &str = "/etc/hookbus/hookbus.toml";

/// The whole configuration. Two of them can be compared, so that a change is applied where it is one. Written out, by `Debug`
/// or as TOML, it holds no password.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Config {
    /// Where state is kept. Without it, the first of [`default_state_dirs`] that can be written.
    pub(crate) state_dir: Option<PathBuf>,
    /// `[broker]`
    pub(crate) broker: BrokerConfig,
    /// `[zeromq]`
    pub(crate) zeromq: ZeromqConfig,
    /// `[http]`
    pub(crate) http: HttpConfig,
    /// `[journal]`
    pub(crate) journal: JournalConfig,
    /// `[hooks]`
    pub(crate) hooks: HooksConfig,
    /// `[ganeti]`
    pub(crate) ganeti: GanetiConfig,
    /// `[limits]`
    pub(crate) limits: LimitsConfig,
    /// `[log]`
    pub(crate) log: LogConfig,
    /// `[[source]]`
    #[serde(rename = "source", skip_serializing_if = "Vec::is_empty")]
    pub(crate) sources: Vec<SourceConfig>,
    /// `[[bridge]]`
    #[serde(rename = "bridge", skip_serializing_if = "Vec::is_empty")]
    pub(crate) bridges: Vec<BridgeConfig>,
}

/// What a file said: the configuration, and what was wrong in the file. Where something was wrong, the configuration has
/// the default.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Reading {
    /// What to use.
    pub(crate) config: Config,
    /// What was wrong, in the order of the file.
    pub(crate) problems: Vec<Problem>,
    /// Where each key stands that is right, by what it is called in problems.
    places: BTreeMap<String, Place>,
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
        Reading { problems: vec![problem], ..Reading::default() }
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
    /// It can be meant like this, but doesn't do what one may expect.
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
mod tests;
