//! `[[source]]`: where events come from besides oned's pipe and HTTP.

use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Url;

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
    /// The jobs of a Ganeti cluster, read in the queue of its master.
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
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct GanetiJobsSource {
    /// What the cluster is called; what Ganeti has written beside the queue's directory unless set.
    pub(crate) cluster: Option<String>,
}

impl SourceConfig {
    /// The directory that a URL of a file names, decoded.
    ///
    /// # Errors
    /// When it names none on this host.
    pub(crate) fn directory(&self) -> Result<PathBuf, &'static str> {
        let path = self.url.reveal().strip_prefix("file://").unwrap_or_default();
        if !path.starts_with('/') {
            return Err("a directory of this host is expected; write file:///var/lib/ganeti/queue, with three slashes");
        }
        let bytes: Vec<u8> = percent_encoding::percent_decode_str(path).collect();
        if bytes.contains(&0) || path.contains(['?', '#']) {
            return Err("a directory is expected; write ? and # in its name as %3F and %23");
        }
        Ok(std::ffi::OsString::from_vec(bytes).into())
    }
}
