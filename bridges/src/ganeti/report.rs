//! [`Report`]: what a node tells of one run of a hook.
//!
//! ```json
//! {"id":"<32 hexadecimal digits>","time":"2026-11-23T02:00:00.000Z","node":"n1.example.com","env":{"PATH":"...","GANETI_...":"..."}}
//! ```
//!
//! | member | meaning |
//! | --- | --- |
//! | `id` | random, made by the run: a report that is sent twice is known by it |
//! | `time` | when the hook ran, by the clock of its node; RFC 3339 |
//! | `node` | where it ran, as Ganeti calls the node |
//! | `env` | its whole environment |
//! | `env_base64` | variables that are no UTF-8, each as base64 of `NAME=value`; may be left out |
//!
//! A report may wait in a spool for days before it gets here, so what it says of time counts, not when it comes.

use std::collections::BTreeMap;
use std::fmt;

use hookbus_broker::{Message, Timestamp};
use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

use super::run::{HookRun, NoHookRun};
use crate::cloudevents::rfc3339;

/// What tells a report from all others: 128 random bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReportId([u8; 16]);

impl ReportId {
    /// The id with these bits.
    pub const fn new(bits: [u8; 16]) -> Self {
        ReportId(bits)
    }

    /// Its bits.
    pub const fn bits(self) -> [u8; 16] {
        self.0
    }

    /// Reads 32 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let is_hex = text.len() == 32 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
        is_hex.then(|| u128::from_str_radix(text, 16).ok()).flatten().map(|number| ReportId(number.to_be_bytes()))
    }
}

impl fmt::Display for ReportId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for ReportId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a node tells of one run of a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Its id.
    pub id: ReportId,
    /// When the hook ran, by the clock of its node.
    pub time: Timestamp,
    /// The run. Its node is known.
    pub run: HookRun,
}

/// Why a text is no report. Sending it again does not help.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NoReport {
    /// It isn't what JSON it should be.
    #[error("it is no report: {0}")]
    Json(String),
    /// Its id isn't one.
    #[error("its id is {0:?}; 32 hexadecimal digits are expected")]
    Id(String),
    /// Its time isn't one.
    #[error("its time is {0:?}; one such as 2026-11-23T02:00:00.000Z is expected")]
    Time(String),
    /// Its node has no name.
    #[error("it doesn't say on which node it ran")]
    Node,
    /// Its environment isn't that of a hook.
    #[error(transparent)]
    Run(#[from] NoHookRun),
    /// A variable isn't base64.
    #[error("its env_base64 has {0:?}, which is no base64 of NAME=value")]
    Variable(String),
}

#[derive(Deserialize)]
struct Wire {
    id: String,
    time: String,
    node: String,
    env: BTreeMap<String, String>,
    #[serde(default)]
    env_base64: Vec<String>,
}

impl Report {
    /// Reads a report.
    ///
    /// # Errors
    /// When it isn't one.
    pub fn parse(json: &[u8]) -> Result<Self, NoReport> {
        let Wire { id, time, node, env, env_base64 } =
            serde_json::from_slice(json).map_err(|e| NoReport::Json(e.to_string()))?;
        let id = ReportId::parse(&id).ok_or(NoReport::Id(id))?;
        let millis = time.parse::<jiff::Timestamp>().ok().and_then(|time| u64::try_from(time.as_millisecond()).ok());
        let time = Timestamp::from_millis(millis.ok_or(NoReport::Time(time))?);
        if node.trim().is_empty() {
            return Err(NoReport::Node);
        }
        let variable = |text: String| match base64_simd::STANDARD.decode_to_vec(&text) {
            Ok(bytes) if bytes.contains(&b'=') => Ok(bytes),
            _ => Err(NoReport::Variable(text)),
        };
        let bytes = env_base64.into_iter().map(variable).collect::<Result<_, _>>()?;
        Ok(Report { id, time, run: HookRun::new(env, Some(node))?.with_bytes(bytes) })
    }

    /// Reads the report that the data of an event was made of.
    pub fn of_data(data: &Value) -> Option<Self> {
        let mut wire = serde_json::Map::new();
        for (name, member) in [("id", "report"), ("time", "time"), ("node", "node"), ("env", "env")] {
            wire.insert(name.into(), data.get(member)?.clone());
        }
        wire.extend(data.get("env_base64").map(|bytes| ("env_base64".to_owned(), bytes.clone())));
        Report::parse(Value::Object(wire).to_string().as_bytes()).ok()
    }

    /// What ran, and for what: `instance-start of web1`.
    pub fn operation(&self) -> String {
        format!("{} of {}", self.run.hooks_path(), self.run.name())
    }

    /// The node that it comes from.
    pub fn node(&self) -> &str {
        self.run.node().unwrap_or_default()
    }

    /// The data of its event.
    pub fn data(&self) -> Value {
        let mut data = self.run.data();
        data["report"] = self.id.to_string().into();
        data["time"] = rfc3339(self.time).into();
        data
    }

    /// Its event.
    pub fn message(&self) -> Message {
        self.run.message(&self.data())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENV: &str =
        r#"{"PATH":"/bin","GANETI_HOOKS_PATH":"node-add","GANETI_HOOKS_PHASE":"pre","GANETI_CLUSTER":"c"}"#;

    #[test]
    fn a_report_is_read_and_found_again_in_its_data() {
        let id = "00ff00ff00ff00ff00ff00ff00ff00ff";
        let time = "2026-11-23T02:00:00.250Z";
        let json = format!(r#"{{"id":"{id}","time":"{time}","node":"n1","env":{ENV},"env_base64":["WD3/"]}}"#);
        let report = Report::parse(json.as_bytes()).unwrap();
        assert_eq!((report.id.to_string().as_str(), rfc3339(report.time).as_str(), report.node()), (id, time, "n1"));
        assert_eq!(report.run.bytes(), [b"X=\xFF"]);
        assert_eq!(Report::of_data(&report.data()), Some(report));
    }

    #[test]
    fn what_is_none_is_told() {
        let good = format!(
            r#"{{"id":"00ff00ff00ff00ff00ff00ff00ff00ff","time":"2026-11-23T02:00:00Z","node":"n","env":{ENV}}}"#
        );
        assert!(Report::parse(good.as_bytes()).is_ok());
        for (from, to, expected) in [
            ("{\"id", "[\"id", "it is no report: "),
            ("\"env\"", "\"e\"", "missing field `env`"),
            ("00ff00ff00ff00ff00ff00ff00ff00ff", "+0ff00ff00ff00ff00ff00ff00ff00ff", "32 hexadecimal digits"),
            ("2026-11-23T02:00:00Z", "yesterday", "its time is \"yesterday\""),
            ("\"n\"", "\" \"", "on which node"),
            ("GANETI_HOOKS_PATH", "X", "GANETI_HOOKS_PATH is not in the environment"),
            ("\"pre\"", "\"mid\"", "pre or post"),
            ("\"env\"", "\"env_base64\":[\"?\"],\"env\"", "no base64"),
        ] {
            let told = Report::parse(good.replacen(from, to, 1).as_bytes()).unwrap_err().to_string();
            assert!(told.contains(expected), "{told}");
        }
    }
}
