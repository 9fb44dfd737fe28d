//! What was recorded from a real OpenNebula; `fixtures/opennebula/README.md` describes it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::PathBuf;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;

use crate::Message;

/// A request on the logger port and its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The one frame of the request.
    pub request: String,
    /// The one frame of the answer.
    pub reply: String,
}

/// Everything that oned wrote to its driver: `INIT`, 893 events and retries, `FINALIZE`, each with its line feed.
#[must_use]
pub fn oned_to_driver() -> Vec<u8> {
    load("oned-to-driver.txt")
}

/// The lines of [`oned_to_driver`] that are published: neither `INIT` nor `FINALIZE`. Number 0 is line 2 of the file.
#[must_use]
pub fn event_lines() -> Vec<Vec<u8>> {
    oned_to_driver()
        .split_inclusive(|byte| *byte == b'\n')
        .filter(|line| line.starts_with(b"EXECUTE ") || line.starts_with(b"RETRY "))
        .map(<[u8]>::to_vec)
        .collect()
}

/// Everything that the original driver wrote to oned.
#[must_use]
pub fn driver_to_oned() -> Vec<u8> {
    load("driver-to-oned.txt")
}

/// The messages that a subscriber to everything got from the original driver, in its order.
#[must_use]
pub fn published() -> Vec<Message> {
    json_lines("published.jsonl").iter().map(|line| Message::new(field(line, "key"), field(line, "content"))).collect()
}

/// The requests that the original driver got on its logger port, with its answers.
#[must_use]
pub fn replies() -> Vec<Reply> {
    json_lines("replies.jsonl")
        .iter()
        .map(|line| Reply { request: field(line, "request").into(), reply: field(line, "reply").into() })
        .collect()
}

/// Runs of Ganeti's hooks: `env` is the environment of each. `fixtures/ganeti/README.md` describes them.
#[must_use]
pub fn ganeti_runs() -> Vec<Value> {
    json_lines("../ganeti/hook-runs.jsonl")
}

/// A recorded file of Ganeti's job queue, 4711 to 4716.
///
/// # Panics
/// When it isn't there.
#[must_use]
pub fn ganeti_job(id: u64) -> Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("fixtures/ganeti/jobs/job-{id}"));
    let text = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&text).expect("JSON")
}

/// What a subscriber to everything must get from hookbus when it is fed with `lines` (of [`event_lines`]): the messages that
/// were recorded, but in the order of the lines, and with the right keys for the twelve lines whose owner had hidden them
/// from the original.
///
/// # Panics
/// When the recording isn't what its README says.
#[must_use]
pub fn expected(lines: &[Vec<u8>]) -> Vec<Message> {
    let mut keys_of_content: HashMap<Vec<u8>, Vec<Vec<u8>>> = HashMap::new();
    for message in published() {
        let keys = keys_of_content.entry(message.content().to_vec()).or_default();
        if !keys.iter().any(|key| key == message.key()) {
            keys.push(message.key().to_vec());
        }
    }
    let mut messages = Vec::new();
    for line in lines {
        let mut words = line.trim_ascii_end().splitn(3, |byte| *byte == b' ').map(<[u8]>::to_vec);
        let retry = words.next().expect("a line has a type") == b"RETRY";
        let mut content = words.nth(1).and_then(|rest| rest.strip_prefix(b"-1 ").map(<[u8]>::to_vec)).expect("`-1 `");
        if retry {
            content.push(b' ');
        }
        let recorded = &keys_of_content[&content];
        let keys = if recorded == &[b"EVENT "] { unhidden_keys(&content) } else { recorded.clone() };
        messages.extend(keys.into_iter().map(|key| Message::new(key, content.clone())));
    }
    messages
}

/// The keys of the events whose owner hid them from the original with a user attribute HOOK_TYPE, read by hand from the
/// headers in the recording (lines 574 to 612 of `oned-to-driver.txt`).
fn unhidden_keys(content: &[u8]) -> Vec<Vec<u8>> {
    const API: &str =
        "<HOOK_MESSAGE><HOOK_TYPE>API</HOOK_TYPE><CALL>one.vm.allocate</CALL><CALL_INFO><RESULT>1</RESULT>";
    const STATES: [(&str, &str, &str); 8] = [
        ("12", "PENDING", "LCM_INIT"),
        ("12", "ACTIVE", "LCM_INIT"),
        ("12", "ACTIVE", "PROLOG"),
        ("12", "ACTIVE", "BOOT"),
        ("12", "ACTIVE", "RUNNING"),
        ("12", "ACTIVE", "SHUTDOWN"),
        ("12", "ACTIVE", "EPILOG"),
        ("12", "DONE", "LCM_INIT"),
    ];
    const MORE_STATES: [(&str, &str, &str); 2] = [("15", "HOLD", "LCM_INIT"), ("15", "DONE", "LCM_INIT")];
    let xml = BASE64_STANDARD.decode(content).expect("a recorded event is base64");
    if xml.starts_with(API.as_bytes()) {
        return vec![b"EVENT API one.vm.allocate 1".to_vec()];
    }
    for (id, state, lcm) in STATES.into_iter().chain(MORE_STATES) {
        let header = format!(
            "<HOOK_MESSAGE><HOOK_TYPE>STATE</HOOK_TYPE><HOOK_OBJECT>VM</HOOK_OBJECT><STATE>{state}</STATE>\
             <LCM_STATE>{lcm}</LCM_STATE><RESOURCE_ID>{id}</RESOURCE_ID>"
        );
        if xml.starts_with(header.as_bytes()) {
            return vec![
                format!("EVENT VM {id}/{state}/{lcm} ").into_bytes(),
                format!("EVENT STATE VM/{state}/{lcm}/{id} ").into_bytes(),
            ];
        }
    }
    panic!("an event without a proper key that nobody has looked at: {}", String::from_utf8_lossy(&xml[..300]));
}

/// The runs of Ganeti's hooks that were recorded; `fixtures/ganeti/README.md` describes them.
#[must_use]
pub fn ganeti_hook_runs() -> Vec<Value> {
    json_lines("../ganeti/hook-runs.jsonl")
}

/// The bytes of a recorded file; they are stored compressed.
///
/// # Panics
/// When the file isn't there or can't be unpacked.
#[must_use]
pub fn load(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/opennebula").join(name);
    if path.exists() {
        return fs::read(&path).unwrap_or_else(|error| panic!("can't read {}: {error}", path.display()));
    }
    let path = path.with_file_name(format!("{name}.zst"));
    let packed = File::open(&path).unwrap_or_else(|error| panic!("can't open {}: {error}", path.display()));
    let mut bytes = Vec::new();
    ruzstd::decoding::StreamingDecoder::new(packed)
        .map_err(|error| error.to_string())
        .and_then(|mut decoder| decoder.read_to_end(&mut bytes).map_err(|error| error.to_string()))
        .unwrap_or_else(|error| panic!("can't unpack {}: {error}", path.display()));
    bytes
}

fn json_lines(name: &str) -> Vec<Value> {
    let text = String::from_utf8(load(name)).expect("the recording is UTF-8");
    text.lines().map(|line| serde_json::from_str(line).expect("each line is a JSON object")).collect()
}

fn field<'a>(line: &'a Value, name: &str) -> &'a str {
    line[name].as_str().unwrap_or_else(|| panic!("no text `{name}` in a recorded line"))
}
