//! `[[source]]`: where events come from besides oned's pipe and HTTP.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Period, Url};

/// One source.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct SourceConfig {
    /// Its name; no other source has it.
    pub(crate) name: String,
    /// What it is.
    #[serde(flatten)]
    pub(crate) kind: SourceKind,
    /// Where it is.
    pub(crate) url: Url,
}

/// What a source is, and the keys that only this type has.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub(crate) enum SourceKind {
    /// The publisher of OpenNebula's own driver.
    Zeromq(ZeromqSource),
    /// The jobs of a Ganeti cluster, asked for through its remote API.
    GanetiJobs(GanetiJobsSource),
}

/// `type = "zeromq"`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct ZeromqSource {
    /// What is subscribed to. The default takes each event once; `EVENT ` alone would bring state changes twice.
    pub(crate) prefixes: Vec<String>,
}

impl Default for ZeromqSource {
    fn default() -> Self {
        ZeromqSource { prefixes: vec!["EVENT STATE ".into(), "EVENT API ".into()] }
    }
}

/// `type = "ganeti-jobs"`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct GanetiJobsSource {
    /// Who asks, if not named in the URL.
    pub(crate) user: Option<String>,
    /// A file with the password.
    pub(crate) password_file: Option<PathBuf>,
    /// The certificates that the cluster's one is checked with; the system's unless set.
    pub(crate) ca_file: Option<PathBuf>,
    /// How often it is asked.
    pub(crate) interval: Period,
}

impl Default for GanetiJobsSource {
    fn default() -> Self {
        GanetiJobsSource { user: None, password_file: None, ca_file: None, interval: Period::seconds(5) }
    }
}
