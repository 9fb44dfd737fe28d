//! A [`Record`]: what is known of one execution, and how it is told to others.
//!
//! On the bus a record is a message with the key `HOOKBUS HOOK <name>/<success or failure> ` and a JSON object as its payload:
//!
//! ```json
//! {
//!   "hook": "host-error", "type": "state", "result": "failure",
//!   "event": "9c0f7f0f5a2c1d3e-17", "key": "EVENT STATE HOST/ERROR//3 ",
//!   "started": "2026-01-31T12:00:00.000Z", "duration_ms": 1003,
//!   "command": "/var/lib/one/remotes/hooks/host_error.rb PEhPU1Q+...", "arguments": "PEhPU1Q+...",
//!   "code": 255, "timed_out": true,
//!   "stdout": "", "stderr": "Timeout executing ..."
//! }
//! ```
//!
//! | field | meaning |
//! | --- | --- |
//! | `code` | the exit code; 255 where the command has none: killed by a signal, ended by us, or never started |
//! | `host` | the host that it ran on, with REMOTE |
//! | `attempt`, `repeat_in_s` | hooks with RETRIES: which attempt it was, from 1 on, and when the next one follows, in seconds; without the latter it was the last |
//! | `by_hand` | `true`, or not there: somebody had it run again |
//! | `signal`, `signal_name` | what killed it, where that wasn't us |
//! | `timed_out`, `interrupted`, `not_started` | `true`, or not there: why there is no exit code |
//! | `left_behind` | `true`, or not there: processes that it left behind held its output open, and were ended |
//! | `command_bytes`, `arguments_bytes` | the length, where the text was cut to [`MAX_LINE_BYTES`] |
//! | `stdout`, `stderr` | as text; what is no UTF-8 is replaced, and what was cut is said |
//! | `stdout_base64`, `stderr_base64` | the bytes, where the text isn't exact |
//! | `stdout_cut_bytes`, `stderr_cut_bytes` | how many bytes were cut from the middle |
//!
//! In the key, control characters, white space, `/` and `%` of the name are percent-encoded (`my hook` is `my%20hook`), so that its
//! words and parts can be told apart.

use std::borrow::Cow;
use std::fmt::Debug;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use hookbus_broker::{EventId, Message, Timestamp};
use serde::Serialize;

use crate::hook::{Hook, RESULT_KEY_START};
use crate::output::Output;
use crate::text;

/// How much of a command line, and of arguments, a message holds; the [`Record`] has all.
pub const MAX_LINE_BYTES: usize = 64 << 10;

/// The event that made a hook run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventRef {
    /// Its id.
    pub id: EventId,
    /// Its key; that of the STATE form, where it has several.
    pub key: String,
    /// When the broker took it in.
    pub time: Timestamp,
}

/// How an execution ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ending {
    /// The command exited with this code.
    Exited(i32),
    /// This signal killed it, and wasn't from us.
    Signalled(i32),
    /// It exceeded its TIMEOUT and was ended.
    TimedOut,
    /// It was ended, or not started, because the executor ended.
    Interrupted,
    /// It could not be started; standard error says why.
    NotStarted,
}

impl Ending {
    /// The exit code, 255 where there is none.
    pub const fn code(self) -> i32 {
        match self {
            Ending::Exited(code) => code,
            _ => 255,
        }
    }

    /// Whether the code is 0.
    pub const fn is_success(self) -> bool {
        self.code() == 0
    }
}

/// One execution of a hook.
#[derive(Clone, Debug)]
pub struct Record {
    /// The hook.
    pub hook: Arc<Hook>,
    /// The event that made it run.
    pub event: EventRef,
    /// The host that it ran on, where that was another one.
    pub host: Option<String>,
    /// Which attempt it was, from 1 on; more than 1 only of a hook with RETRIES.
    pub attempt: u32,
    /// Whether somebody asked for it to be run again.
    pub by_hand: bool,
    /// Which execution of the same hook it repeats, where whoever asked for it has said so.
    pub retry_of: Option<u64>,
    /// When it is repeated, counted from its end. Nothing where it succeeded, and after the last attempt.
    pub repeat_in: Option<Duration>,
    /// Names what all attempts of one run have in common; no other run has it, also of no other process.
    pub run: RunId,
    /// Which attempt is to be made after a restart, if the process ends before it is made here: the one that follows, or this one if it was
    /// cut off. Nothing where there is none, and where a journal brings the event again.
    pub resume: Option<u32>,
    /// When the command was started.
    pub started: SystemTime,
    /// How long it took.
    pub duration: Duration,
    /// The command line, with the arguments unless they went to standard input.
    pub command: String,
    /// The arguments, expanded.
    pub arguments: String,
    /// What its environment told of the event: names and values.
    pub environment: Vec<(Cow<'static, str>, String)>,
    /// How it ended.
    pub ending: Ending,
    /// Whether processes that it left behind held its output open and were ended.
    pub left_behind: bool,
    /// Standard output.
    pub stdout: Output,
    /// Standard error; what there is to say about the execution itself is its last line.
    pub stderr: Output,
}

/// Names a run: what all its attempts have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId(pub u64);

impl RunId {
    /// One that nobody has: nanoseconds since 1970 at the first, and counted from there, which is slower than the clock.
    pub fn fresh() -> Self {
        static NEXT: LazyLock<AtomicU64> = LazyLock::new(|| {
            let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            AtomicU64::new(u64::try_from(since.as_nanos()).unwrap_or(0))
        });
        RunId(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// Completes when a record is safe, or can't be made so.
pub type Kept = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Takes records: a hook log, say. They come in the order in which commands ended, one at a time.
pub trait Recorder: Debug + Send + Sync {
    /// Takes a record; answers what completes when that is safe, if it has to become so first. The result is published after that, and what
    /// made the hook run counts as done. It is called from a task, so it must not block for long.
    fn record(&self, record: &Arc<Record>) -> Option<Kept>;
}

impl Record {
    /// Whether it failed and was the last attempt of a hook with RETRIES.
    pub fn is_final_failure(&self) -> bool {
        !self.ending.is_success()
            && self.hook.retries > 0
            && self.resume.is_none()
            && self.repeat_in.is_none()
            && self.ending != Ending::Interrupted
    }

    /// `success` or `failure`.
    pub const fn result(&self) -> &'static str {
        if self.ending.is_success() { "success" } else { "failure" }
    }

    /// The message that tells it to the bus.
    pub fn to_message(&self) -> Message {
        let key = format!("{RESULT_KEY_START}{}/{} ", key_part(&self.hook.name), self.result());
        Message::new(key, self.to_json())
    }

    /// The JSON object, on one line.
    pub fn to_json(&self) -> String {
        let signal = match self.ending {
            Ending::Signalled(signal) => Some(signal),
            _ => None,
        };
        let base64 = |output: &Output| (!output.is_utf8()).then(|| crate::base64(&output.bytes()));
        let length = |text: &str| (text.len() > MAX_LINE_BYTES).then_some(text.len());
        let json = Json {
            hook: &self.hook.name,
            kind: self.hook.trigger.kind(),
            result: self.result(),
            event: self.event.id.to_string(),
            key: &self.event.key,
            host: self.host.as_deref(),
            attempt: (self.attempt > 1 || self.repeat_in.is_some()).then_some(self.attempt),
            repeat_in_s: self.repeat_in.map(|pause| pause.as_secs()),
            by_hand: self.by_hand,
            started: rfc3339(self.started),
            duration_ms: u64::try_from(self.duration.as_millis()).unwrap_or(u64::MAX),
            command: text::beginning(&self.command, MAX_LINE_BYTES),
            command_bytes: length(&self.command),
            arguments: text::beginning(&self.arguments, MAX_LINE_BYTES),
            arguments_bytes: length(&self.arguments),
            code: self.ending.code(),
            signal,
            signal_name: signal.and_then(signal_name),
            timed_out: self.ending == Ending::TimedOut,
            interrupted: self.ending == Ending::Interrupted,
            not_started: self.ending == Ending::NotStarted,
            left_behind: self.left_behind,
            stdout: self.stdout.text(),
            stdout_base64: base64(&self.stdout),
            stdout_cut_bytes: self.stdout.cut_bytes,
            stderr: self.stderr.text(),
            stderr_base64: base64(&self.stderr),
            stderr_cut_bytes: self.stderr.cut_bytes,
        };
        serde_json::to_string(&json).expect("texts and numbers are always JSON")
    }
}

#[derive(Serialize)]
struct Json<'a> {
    hook: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    result: &'static str,
    event: String,
    key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    repeat_in_s: Option<u64>,
    #[serde(skip_serializing_if = "is_false")]
    by_hand: bool,
    started: String,
    duration_ms: u64,
    command: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    command_bytes: Option<usize>,
    arguments: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    arguments_bytes: Option<usize>,
    code: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    signal: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    signal_name: Option<&'static str>,
    #[serde(skip_serializing_if = "is_false")]
    timed_out: bool,
    #[serde(skip_serializing_if = "is_false")]
    interrupted: bool,
    #[serde(skip_serializing_if = "is_false")]
    not_started: bool,
    #[serde(skip_serializing_if = "is_false")]
    left_behind: bool,
    stdout: std::borrow::Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stdout_base64: Option<String>,
    #[serde(skip_serializing_if = "is_zero")]
    stdout_cut_bytes: u64,
    stderr: std::borrow::Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stderr_base64: Option<String>,
    #[serde(skip_serializing_if = "is_zero")]
    stderr_cut_bytes: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// A time as in `2026-01-31T12:00:00.000Z`.
fn rfc3339(time: SystemTime) -> String {
    let millis = i64::try_from(Timestamp::from(time).as_millis()).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(millis)
        .unwrap_or(jiff::Timestamp::MAX)
        .strftime("%Y-%m-%dT%H:%M:%S%.3fZ")
        .to_string()
}

/// A name as a part of a key.
fn key_part(name: &str) -> String {
    let mut part = String::with_capacity(name.len());
    for c in name.chars() {
        if c.is_control() || c.is_whitespace() || matches!(c, '/' | '%') {
            let mut bytes = [0; 4];
            part.extend(c.encode_utf8(&mut bytes).bytes().map(|byte| format!("%{byte:02X}")));
        } else {
            part.push(c);
        }
    }
    part
}

/// The name of a signal, as `kill -l` lists it on Linux.
pub(crate) fn signal_name(signal: i32) -> Option<&'static str> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM",
        "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF",
        "WINCH", "IO", "PWR", "SYS",
    ];
    NAMES.get(usize::try_from(signal).ok()?.checked_sub(1)?).copied()
}

#[cfg(test)]
mod tests {
    use hookbus_broker::{LogId, Offset};

    use super::*;
    use crate::hook::{Origin, Outcome, Trigger};

    fn record(name: &str, ending: Ending) -> Record {
        let trigger = Trigger::Api { call: "one.vm.allocate".into(), outcome: Outcome::Any };
        let hook = Hook::new(name, trigger, "x", Origin::Program);
        Record {
            hook: Arc::new(hook),
            event: EventRef {
                id: EventId { log: LogId::new(1), offset: Offset::new(17) },
                key: "EVENT API one.vm.allocate 1".into(),
                time: Timestamp::from_millis(0),
            },
            host: None,
            attempt: 1,
            by_hand: false,
            retry_of: None,
            repeat_in: None,
            run: RunId(1),
            resume: None,
            started: Timestamp::from_millis(1_767_225_600_250).into(),
            duration: Duration::from_millis(1003),
            command: "/x".into(),
            arguments: String::new(),
            environment: Vec::new(),
            ending,
            left_behind: false,
            stdout: Output::default(),
            stderr: Output::default(),
        }
    }

    #[test]
    fn keys_keep_their_parts_apart() {
        for (name, ending, key) in [
            ("host-error", Ending::Exited(0), "HOOKBUS HOOK host-error/success "),
            ("a b/c%\n\u{85}ü", Ending::Exited(3), "HOOKBUS HOOK a%20b%2Fc%25%0A%C2%85ü/failure "),
        ] {
            let message = record(name, ending).to_message();
            assert_eq!(message.keys().map(String::from_utf8_lossy).collect::<Vec<_>>(), [key]);
        }
    }

    #[test]
    fn a_record_is_a_json_object() {
        let plain = record("x", Ending::Exited(0)).to_json();
        assert_eq!(
            plain,
            "{\"hook\":\"x\",\"type\":\"api\",\"result\":\"success\",\"event\":\"0000000000000001-17\",\
             \"key\":\"EVENT API one.vm.allocate 1\",\"started\":\"2026-01-01T00:00:00.250Z\",\"duration_ms\":1003,\
             \"command\":\"/x\",\"arguments\":\"\",\"code\":0,\"stdout\":\"\",\"stderr\":\"\"}"
        );
        let mut odd = record("x", Ending::Signalled(9));
        odd.stdout.head = b"a\xFFb".to_vec();
        odd.stdout.cut_bytes = 7;
        (odd.attempt, odd.repeat_in) = (2, Some(Duration::from_secs(20)));
        odd.arguments = "é".repeat(MAX_LINE_BYTES);
        let odd: serde_json::Value = serde_json::from_str(&odd.to_json()).unwrap();
        assert_eq!(
            (odd["code"].as_i64(), odd["signal"].as_i64(), odd["signal_name"].as_str()),
            (Some(255), Some(9), Some("KILL"))
        );
        assert_eq!((odd["attempt"].as_u64(), odd["repeat_in_s"].as_u64()), (Some(2), Some(20)));
        assert_eq!(odd["stdout_base64"], "Yf9i");
        assert_eq!(odd["stdout"], "a\u{FFFD}b\n[hookbus: 7 bytes were cut here]\n");
        assert_eq!(odd["stdout_cut_bytes"], 7);
        assert_eq!(odd["arguments"].as_str().unwrap().len(), MAX_LINE_BYTES);
        assert_eq!(odd["arguments_bytes"], 2 * MAX_LINE_BYTES);
    }
}
