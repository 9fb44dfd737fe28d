//! A report: what one run of the hook has to say, as one line of JSON.
//!
//! ```json
//! {"id":"<32 hex digits>","time":"2026-03-01T12:00:00.123Z","node":"n1.example.com","env":{"GANETI_...":"..."},"env_base64":["..."]}
//! ```
//!
//! The environment is as it was found, `PATH` included. Variables that are not UTF-8 are in `env_base64` instead, as `NAME=value` in base64.
//! The id is random for each run, and stays with the report: by it, a report that comes twice is known.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::hash::{BuildHasher, RandomState};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use rustix::rand::{GetRandomFlags, getrandom};
use serde::Serialize;

/// An environment, untouched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    text: BTreeMap<String, String>,
    /// `NAME=value`
    bytes: Vec<Vec<u8>>,
}

impl Environment {
    /// That of this process.
    pub fn of_process() -> Self {
        Environment::new(std::env::vars_os())
    }

    /// These variables.
    pub fn new(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let mut environment = Environment::default();
        for (name, value) in variables {
            match (name.into_string(), value.into_string()) {
                (Ok(name), Ok(value)) => {
                    environment.text.insert(name, value);
                }
                (name, value) => {
                    let bytes = |text: Result<String, OsString>| {
                        text.map_or_else(OsString::into_encoded_bytes, String::into_bytes)
                    };
                    environment.bytes.push([&bytes(name), &b"="[..], &bytes(value)].concat());
                }
            }
        }
        environment
    }

    /// `GANETI_<name>`, if it is there, not empty, and text.
    pub fn ganeti(&self, name: &str) -> Option<&str> {
        let value = self.text.get(&format!("GANETI_{name}")).map(String::as_str);
        value.filter(|value| !value.is_empty())
    }
}

/// What one run has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// 32 hex digits.
    pub id: String,
    /// When the hook ran, in nanoseconds since 1970.
    pub time_ns: u64,
    /// The line, without a line feed.
    pub line: Vec<u8>,
}

#[derive(Serialize)]
struct Line<'a> {
    id: &'a str,
    time: String,
    node: &'a str,
    env: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    env_base64: Vec<String>,
}

impl Report {
    /// Reports this environment, now.
    pub fn new(node: &str, environment: &Environment) -> Self {
        Report::with(random_id(), SystemTime::now(), node, environment)
    }

    fn with(id: String, time: SystemTime, node: &str, environment: &Environment) -> Self {
        let since_1970 = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        // Until 2554.
        let time_ns = u64::try_from(since_1970.as_nanos()).unwrap_or(u64::MAX);
        let milliseconds = i64::try_from(since_1970.as_millis()).unwrap_or_default();
        let timestamp = Timestamp::from_millisecond(milliseconds).unwrap_or_default();
        let line = Line {
            id: &id,
            time: format!("{timestamp:.3}"),
            node,
            env: &environment.text,
            env_base64: environment.bytes.iter().map(|variable| BASE64_STANDARD.encode(variable)).collect(),
        };
        let line = serde_json::to_vec(&line).expect("texts and maps of texts can always be written as JSON");
        Report { id, time_ns, line }
    }
}

/// 128 random bits, as 32 hex digits.
fn random_id() -> String {
    let mut bytes = [0; 16];
    if !matches!(getrandom(&mut bytes[..], GetRandomFlags::NONBLOCK), Ok(16)) {
        // Early in the start of a machine the kernel has none yet. What differs from run to run does then.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let hasher = RandomState::new();
        let low = hasher.hash_one((now, std::process::id()));
        let high = hasher.hash_one((std::process::id(), now, low));
        bytes = (u128::from(high) << 64 | u128::from(low)).to_le_bytes();
    }
    format!("{:032x}", u128::from_le_bytes(bytes))
}

/// This machine's own name, without asking anybody.
pub fn host_name() -> String {
    let name = rustix::system::uname();
    String::from_utf8_lossy(name.nodename().to_bytes()).into_owned()
}

/// Whether a text has the form of a report's id.
pub fn is_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_report_has_the_environment_as_it_was() {
        let raw = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
        let environment = Environment::new([
            ("PATH".into(), "/bin".into()),
            ("GANETI_NODE_TAGS_a.example.com".into(), "\"x\"\n\u{1}ü".into()),
            ("GANETI_HV_kernel".into(), raw(b"\xff=")),
            (raw(b"\xfe"), "v".into()),
        ]);
        let time = UNIX_EPOCH + Duration::from_nanos(1_772_366_400_123_456_789);
        let report = Report::with("0".repeat(32), time, "n1", &environment);
        assert_eq!(report.time_ns, 1_772_366_400_123_456_789);
        assert!(!report.line.contains(&b'\n'));
        let line: serde_json::Value = serde_json::from_slice(&report.line).unwrap();
        let expected = serde_json::json!({
            "id": "00000000000000000000000000000000",
            "time": "2026-03-01T12:00:00.123Z",
            "node": "n1",
            "env": { "PATH": "/bin", "GANETI_NODE_TAGS_a.example.com": "\"x\"\n\u{1}ü" },
            "env_base64": [BASE64_STANDARD.encode(b"GANETI_HV_kernel=\xff="), BASE64_STANDARD.encode(b"\xfe=v")],
        });
        assert_eq!(line, expected);
        let plain = Report::new("n1", &Environment::default());
        assert!(!String::from_utf8(plain.line).unwrap().contains("env_base64"));
    }

    #[test]
    fn ids_differ() {
        let ids: std::collections::HashSet<String> = (0..1000).map(|_| random_id()).collect();
        assert!(ids.len() == 1000 && ids.iter().all(|id| is_id(id)));
    }
}
