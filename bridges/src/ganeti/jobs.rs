//! [`Job`]: what a file of Ganeti's job queue says.
//!
//! Ganeti keeps each job as `job-<id>` in its queue directory: JSON, an internal format, written anew at each change (Ganeti 3.0:
//! `lib/jqueue/__init__.py`, `_QueuedJob.Serialize`). Of it is read
//!
//! ```json
//! {"id": 4714, "received_timestamp": [s, us], "start_timestamp": [s, us], "end_timestamp": [s, us],
//!  "ops": [{"input": {"OP_ID": "OP_INSTANCE_CREATE", "instance_name": "new1.example.com"}, "status": "error",
//!           "result": ["OpPrereqError", ["...", "already_exists"]],
//!           "start_timestamp": [s, us], "exec_timestamp": [s, us], "end_timestamp": [s, us]}]}
//! ```
//!
//! and what its event says is
//!
//! ```json
//! {"jobid": 4714, "status": "error", "cluster": "c.example.com", "received": "2026-11-22T02:00:00.123Z", "started": "...", "ended": "...",
//!  "error": "Instance 'new1.example.com' is already in the cluster (already_exists)",
//!  "ops": [{"op": "OP_INSTANCE_CREATE", "name": "new1.example.com", "status": "error", "started": "...", "ended": "...",
//!           "error": {"type": "OpPrereqError", "args": ["...", "already_exists"], "text": "..."}}]}
//! ```
//!
//! What isn't known is `null`. The times of an operation are those of its execution; that of the locks before is left out.
//!
//! # Status
//!
//! A job has no status of its own: Ganeti derives it from those of its operations, and so is it done here ([`Job::state`]). Two of Ganeti's seven are
//! passed through on the way to another one, and are no events:
//!
//! | Ganeti | told as |
//! | --- | --- |
//! | `queued`, `waiting` (for locks), `canceling` | `queued`, until an operation of the job has begun, then `running` |
//! | `running` | `running` |
//! | `success`, `error`, `canceled` | the same |
//!
//! So the status that is told only goes forward: queued, running, one of the three at the end. An operation keeps Ganeti's own word.
//!
//! # What is left out
//!
//! The parameters of operations, all but the name of what they are about. Some are secrets (`osparams_secret`, `osparams_private`,
//! `source_x509_ca`, `source_handshake`), plain `osparams` often hold passwords, a later Ganeti may add more, and everybody on a bus would see
//! them; a list of what must not go out would always be one behind. So are results of operations that succeeded, and their logs, which have no bounds.
//! `gnt-job info` has them, by the job's id.

use std::fmt;

use hookbus_broker::{Message, Timestamp};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use thiserror::Error;

use super::run::{HookRun, event};
use crate::cloudevents::rfc3339;

/// What is told of a job. Ordered: it only goes forward, and the last three are final.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum JobStatus {
    /// No operation of it has begun.
    Queued,
    /// One has.
    Running,
    /// All have succeeded.
    Success,
    /// One has failed; those behind it were not begun.
    Error,
    /// It was canceled before it was through.
    Canceled,
}

impl JobStatus {
    /// All of them.
    pub const ALL: [JobStatus; 5] =
        [JobStatus::Queued, JobStatus::Running, JobStatus::Success, JobStatus::Error, JobStatus::Canceled];

    /// As keys and data have it.
    pub const fn name(self) -> &'static str {
        match self {
            JobStatus::Queued => "queued",
            JobStatus::Running => "running",
            JobStatus::Success => "success",
            JobStatus::Error => "error",
            JobStatus::Canceled => "canceled",
        }
    }

    /// The status with that name.
    pub fn of_name(name: &str) -> Option<Self> {
        JobStatus::ALL.into_iter().find(|status| status.name() == name)
    }

    /// Whether nothing follows.
    pub const fn is_final(self) -> bool {
        matches!(self, JobStatus::Success | JobStatus::Error | JobStatus::Canceled)
    }

    /// Whether it is news after that one.
    pub const fn follows(self, told: JobStatus) -> bool {
        !told.is_final() && self as u8 > told as u8
    }
}

impl fmt::Display for JobStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The state of an operation or a job in Ganeti's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// It waits for its turn.
    Queued,
    /// It waits for locks.
    Waiting,
    /// It is going to be canceled.
    Canceling,
    /// It runs.
    Running,
    /// It was canceled.
    Canceled,
    /// It has succeeded.
    Success,
    /// It has failed.
    Error,
}

impl JobState {
    /// Ganeti's word.
    pub const fn name(self) -> &'static str {
        match self {
            JobState::Queued => "queued",
            JobState::Waiting => "waiting",
            JobState::Canceling => "canceling",
            JobState::Running => "running",
            JobState::Canceled => "canceled",
            JobState::Success => "success",
            JobState::Error => "error",
        }
    }
}

/// A job, as its file says.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// Its number. After a cluster was destroyed and made anew, numbers begin again.
    pub id: u64,
    /// When Ganeti took it in; with the number it stands for one job.
    pub received: Option<Timestamp>,
    /// When its first operation asked for its locks.
    pub started: Option<Timestamp>,
    /// When it was through.
    pub ended: Option<Timestamp>,
    /// Its operations, in the order in which they are done; at least one.
    pub ops: Vec<JobOp>,
}

/// One operation of a job.
#[derive(Clone, Debug, PartialEq)]
pub struct JobOp {
    /// What is done, such as `OP_INSTANCE_MIGRATE`.
    pub op: Box<str>,
    /// What it is about: the instance, else the node, group, network, or what else has a name; as it was asked for, which may be a short name
    /// as long as it hasn't begun.
    pub name: Option<Box<str>>,
    /// How far it is.
    pub state: JobState,
    /// When it began, with all locks.
    pub started: Option<Timestamp>,
    /// When it ended.
    pub ended: Option<Timestamp>,
    /// Why it failed or was canceled.
    pub error: Option<JobError>,
}

/// Why an operation failed.
#[derive(Clone, Debug, PartialEq)]
pub struct JobError {
    /// The class of the error in Ganeti, such as `OpPrereqError`; nothing where there is only a text.
    pub class: Option<Box<str>>,
    /// Its arguments, as Ganeti has them; one that is longer than 64 KiB is cut, and is a text.
    pub args: Vec<Value>,
}

/// Why a text is no job.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NoJob {
    /// It isn't the JSON that it should be.
    #[error("it is no job of Ganeti 3.0's format: {0}")]
    Json(String),
    /// A job has operations.
    #[error("it has no operations")]
    NoOps,
}

#[derive(Deserialize)]
struct Wire {
    id: Number,
    ops: Vec<WireOp>,
    received_timestamp: Option<Stamp>,
    start_timestamp: Option<Stamp>,
    end_timestamp: Option<Stamp>,
}

/// Seconds and microseconds since 1970.
type Stamp = (i64, i64);

/// Old files have the number as text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Number {
    Number(u64),
    Text(String),
}

#[derive(Deserialize)]
struct WireOp {
    input: Input,
    status: JobState,
    /// It is read where it is an error: that of an operation that succeeded may be large.
    result: Option<Box<RawValue>>,
    exec_timestamp: Option<Stamp>,
    end_timestamp: Option<Stamp>,
}

/// Of the parameters only those that name something. Not each of them is a text in each operation.
#[derive(Deserialize)]
struct Input {
    #[serde(rename = "OP_ID")]
    op: Box<str>,
    #[serde(default)]
    instance_name: Value,
    #[serde(default)]
    node_name: Value,
    #[serde(default)]
    group_name: Value,
    #[serde(default)]
    network_name: Value,
    #[serde(default)]
    name: Value,
}

fn time(stamp: Option<Stamp>) -> Option<Timestamp> {
    // Ganeti also writes [-1, -1] for none.
    let (seconds, micros) = stamp?;
    let millis = u64::try_from(seconds).ok()?.checked_mul(1000)?.checked_add(u64::try_from(micros).ok()? / 1000)?;
    Some(Timestamp::from_millis(millis))
}

impl WireOp {
    fn read(self) -> JobOp {
        let WireOp { input, status: state, result, exec_timestamp, end_timestamp } = self;
        let names = [input.instance_name, input.node_name, input.group_name, input.network_name, input.name];
        let name = names.iter().find_map(|name| name.as_str().filter(|name| !name.is_empty()).map(Into::into));
        let failed = matches!(state, JobState::Error | JobState::Canceled);
        let error = result.filter(|_| failed).and_then(|result| {
            let error = JobError::read(serde_json::from_str(result.get()).ok()?)?;
            Some(if result.get().len() > MOST_ERROR_BYTES { error.cut() } else { error })
        });
        JobOp { op: input.op, name, state, started: time(exec_timestamp), ended: time(end_timestamp), error }
    }
}

/// The longest error that is told whole: what hooks wrote may be in it, and buses have limits.
const MOST_ERROR_BYTES: usize = 64 << 10;
/// So much is told of one that is longer.
const CUT_ERROR_CHARS: usize = 8 << 10;

impl JobError {
    /// Its text, cut.
    fn cut(self) -> Self {
        let text: String = self.text().chars().take(CUT_ERROR_CHARS).collect();
        JobError { class: self.class, args: vec![format!("{text}... (cut; `gnt-job info` has all of it)").into()] }
    }

    /// Ganeti writes an error as its class and its arguments, or a text alone.
    fn read(result: Value) -> Option<Self> {
        match result {
            Value::Null => None,
            Value::Array(mut all) if all.len() == 2 && all[0].is_string() && all[1].is_array() => {
                let args = all.pop().and_then(|args| args.as_array().cloned()).unwrap_or_default();
                Some(JobError { class: all[0].as_str().map(Into::into), args })
            }
            text => Some(JobError { class: None, args: vec![text] }),
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        // [[[node, script, what it wrote], ...]]
        let scripts = |value: &Value| {
            let all = value.as_array()?.iter();
            let told = all.map(|script| match script.as_array().map(Vec::as_slice) {
                Some([node, script, output]) => {
                    let output = plain(output);
                    let output = if output.trim().is_empty() { "(no output)" } else { output.trim() };
                    Some(format!("{}: {}: {output}", plain(node), plain(script)))
                }
                _ => None,
            });
            told.collect::<Option<Vec<_>>>().filter(|all| !all.is_empty())
        };
        match (self.class.as_deref(), &self.args[..]) {
            (Some("HooksAbort"), [all]) if scripts(all).is_some() => scripts(all).unwrap_or_default().join("; "),
            // The message, and one of Ganeti's words for what kind of mistake it is.
            (Some("OpPrereqError"), [message, kind]) => format!("{} ({})", plain(message), plain(kind)),
            (Some(class), []) => class.to_owned(),
            (_, args) => args.iter().map(plain).collect::<Vec<_>>().join(", "),
        }
    }
}

/// How far a report's time may lie outside that of its operation: both are cut to milliseconds, and clocks are set now and then.
const SLACK_MS: u64 = 1000;

impl JobOp {
    /// Whether this hook ran for it, as far as one can tell: the operation, what it is about, and the time.
    pub fn may_have_run(&self, hook: &HookRun, at: Timestamp) -> bool {
        let Some(started) = self.started else { return false };
        let at = at.as_millis();
        *self.op == *hook.op_code()
            && started.as_millis() <= at.saturating_add(SLACK_MS)
            && self.ended.is_none_or(|ended| at <= ended.as_millis().saturating_add(SLACK_MS))
            && self.is_about(hook)
    }

    fn is_about(&self, hook: &HookRun) -> bool {
        let (name, about) = (hook.name(), self.name.as_deref());
        match about {
            // Hooks of these name the cluster, or nothing; jobs name something else, or nothing.
            _ if hook.object_type() == "CLUSTER" || name == "-" => true,
            Some(about) => about == name || is_short(about, name) || is_short(name, about),
            None => false,
        }
    }

    fn data(&self) -> Value {
        let error =
            self.error.as_ref().map(|error| json!({ "type": error.class, "args": error.args, "text": error.text() }));
        json!({
            "op": self.op,
            "name": self.name,
            "status": self.state.name(),
            "started": self.started.map(rfc3339),
            "ended": self.ended.map(rfc3339),
            "error": error,
        })
    }
}

/// Whether a name is the first labels of another one.
fn is_short(short: &str, long: &str) -> bool {
    long.strip_prefix(short).is_some_and(|rest| rest.starts_with('.'))
}

impl Job {
    /// Reads the content of a job's file.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(json: &[u8]) -> Result<Self, NoJob> {
        let wire: Wire = serde_json::from_slice(json).map_err(|e| NoJob::Json(e.to_string()))?;
        let id = match wire.id {
            Number::Number(id) => id,
            Number::Text(text) => text.parse().map_err(|_| NoJob::Json(format!("{text:?} is no number of a job")))?,
        };
        if wire.ops.is_empty() {
            return Err(NoJob::NoOps);
        }
        Ok(Job {
            id,
            received: time(wire.received_timestamp),
            started: time(wire.start_timestamp),
            ended: time(wire.end_timestamp),
            ops: wire.ops.into_iter().map(WireOp::read).collect(),
        })
    }

    /// The state of the whole job, as Ganeti computes it (`_QueuedJob.CalcStatus`): one operation that failed, was canceled or is to be decides; else the
    /// last one that waits for locks or runs; else all are queued, or all have succeeded.
    pub fn state(&self) -> JobState {
        let mut state = JobState::Queued;
        let mut all_succeeded = true;
        for op in &self.ops {
            all_succeeded &= op.state == JobState::Success;
            match op.state {
                JobState::Success | JobState::Queued => {}
                JobState::Waiting | JobState::Running => state = op.state,
                JobState::Canceling | JobState::Error | JobState::Canceled => return op.state,
            }
        }
        if all_succeeded { JobState::Success } else { state }
    }

    /// What is told of it.
    pub fn status(&self) -> JobStatus {
        match self.state() {
            JobState::Success => JobStatus::Success,
            JobState::Error => JobStatus::Error,
            JobState::Canceled => JobStatus::Canceled,
            JobState::Running => JobStatus::Running,
            JobState::Queued | JobState::Waiting | JobState::Canceling => {
                let has_begun = self.ops.iter().any(|op| op.started.is_some() || op.state == JobState::Success);
                if has_begun { JobStatus::Running } else { JobStatus::Queued }
            }
        }
    }

    /// The keys of its event: by job, then by status.
    pub fn keys(&self) -> [String; 2] {
        let (id, status) = (self.id, self.status());
        [format!("EVENT JOB {id}/{status} "), format!("EVENT GANETI JOB/{status}/{id} ")]
    }

    /// What its event says.
    pub fn data(&self, cluster: &str) -> Value {
        let error = self.ops.iter().find_map(|op| op.error.as_ref()).map(JobError::text);
        json!({
            "jobid": self.id,
            "status": self.status().name(),
            "cluster": cluster,
            "received": self.received.map(rfc3339),
            "started": self.started.map(rfc3339),
            "ended": self.ended.map(rfc3339),
            "error": error,
            "ops": self.ops.iter().map(JobOp::data).collect::<Vec<_>>(),
        })
    }

    /// Its event.
    pub fn message(&self, cluster: &str) -> Message {
        let [by_job, by_status] = self.keys();
        event(by_job, &self.data(cluster), cluster).with_key(by_status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(id: u64) -> Vec<u8> {
        let path = format!("{}/../tests/fixtures/ganeti/jobs/job-{id}", env!("CARGO_MANIFEST_DIR"));
        std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    fn job(id: u64) -> Job {
        Job::parse(&sample(id)).unwrap()
    }

    /// A job whose operations have these states.
    fn of_states(states: &[&str]) -> Job {
        let ops: Vec<_> = states
            .iter()
            .map(|state| json!({ "input": { "OP_ID": "OP_X" }, "status": state, "result": null }))
            .collect();
        Job::parse(json!({ "id": "7", "ops": ops }).to_string().as_bytes()).unwrap()
    }

    #[test]
    fn each_recorded_job_is_read() {
        use JobStatus as S;
        let seen: Vec<_> = (4711..=4716)
            .map(|id| {
                let job = job(id);
                assert_eq!((job.id, job.received.is_some()), (id, true));
                (job.status(), job.started.is_some(), job.ended.is_some(), job.ops.len())
            })
            .collect();
        let expected = [
            (S::Queued, false, false, 1),
            (S::Running, true, false, 1),
            (S::Success, true, true, 1),
            (S::Error, true, true, 1),
            (S::Canceled, false, true, 1),
            (S::Error, true, true, 2),
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn an_error_is_told_as_text_and_as_ganeti_has_it() {
        let data = job(4714).data("c.example.com");
        let text = "Instance 'new1.example.com' is already in the cluster (already_exists)";
        let expected = json!({
            "jobid": 4714, "status": "error", "cluster": "c.example.com",
            "received": "2026-11-21T23:20:00.123Z", "started": "2026-11-21T23:20:01.123Z", "ended": "2026-11-21T23:20:03.123Z",
            "error": text,
            "ops": [{
                "op": "OP_INSTANCE_CREATE", "name": "new1.example.com", "status": "error",
                "started": "2026-11-21T23:20:01.123Z", "ended": "2026-11-21T23:20:03.123Z",
                "error": {
                    "type": "OpPrereqError",
                    "args": ["Instance 'new1.example.com' is already in the cluster", "already_exists"],
                    "text": text,
                },
            }],
        });
        assert_eq!(data, expected);
        assert_eq!(job(4715).data("c")["error"], "Job canceled by request");
        assert_eq!(job(4715).data("c")["ops"][0]["error"]["type"], Value::Null);
        let refused = job(4716).data("c");
        assert_eq!(refused["error"], "node1.example.com: instance-migrate-pre.d/10-window: no migrations on Fridays");
        assert_eq!(
            (&refused["ops"][1]["name"], &refused["ops"][1]["error"]["type"]),
            (&"web4.example.com".into(), &"HooksAbort".into())
        );
        let mut long: Value = serde_json::from_slice(&sample(4714)).unwrap();
        long["ops"][0]["result"][1][0] = "ä".repeat(MOST_ERROR_BYTES).into();
        let cut = Job::parse(long.to_string().as_bytes()).unwrap().data("c");
        let text = cut["error"].as_str().unwrap();
        assert!(text.len() < 3 * CUT_ERROR_CHARS && text.ends_with("(cut; `gnt-job info` has all of it)"), "{text}");
        assert_eq!(cut["ops"][0]["error"]["type"], "OpPrereqError");
        let odd = |result: Value| JobError::read(result).unwrap().text();
        assert_eq!(odd(json!(["HooksAbort", ["no list"]])), "no list");
        assert_eq!(odd(json!(["HooksAbort", [[["n", "s", " "]]]])), "n: s: (no output)");
        assert_eq!(odd(json!(["OpExecError", []])), "OpExecError");
        assert_eq!(odd(json!({ "a": 1 })), r#"{"a":1}"#);
    }

    #[test]
    fn keys_and_source_are_those_of_the_contract() {
        let message = job(4713).message("c.example.com");
        let keys: Vec<_> = message.keys().map(|key| String::from_utf8_lossy(key).into_owned()).collect();
        assert_eq!(keys, ["EVENT JOB 4713/success ", "EVENT GANETI JOB/success/4713 "]);
    }

    /// Nothing of what an operation was given goes out but the name.
    #[test]
    fn parameters_stay_here() {
        let mut text: Value = serde_json::from_slice(&sample(4714)).unwrap();
        for secret in
            ["osparams", "osparams_secret", "osparams_private", "source_x509_ca", "source_handshake", "new_in_4_0"]
        {
            text["ops"][0]["input"][secret] = json!({ "password": "s3cr3t" });
        }
        text["ops"][0]["log"] = json!([[1, [1, 2], "message", "s3cr3t"]]);
        let job = Job::parse(text.to_string().as_bytes()).unwrap();
        assert_eq!(job, self::job(4714));
        assert!(!job.data("c").to_string().contains("s3cr3t"));
        let mut text: Value = serde_json::from_slice(&sample(4713)).unwrap();
        text["ops"][0]["result"] = json!(["s3cr3t", ["s3cr3t"]]);
        assert_eq!(Job::parse(text.to_string().as_bytes()).unwrap(), self::job(4713), "the result of a success");
    }

    /// As `CalcStatus` of Ganeti 3.0.2 answers.
    #[test]
    fn the_state_of_a_job_is_computed_as_ganeti_does_it() {
        use JobState as S;
        for (states, expected, told) in [
            (&["queued", "queued"][..], S::Queued, JobStatus::Queued),
            (&["waiting", "queued"], S::Waiting, JobStatus::Queued),
            (&["canceling", "canceling"], S::Canceling, JobStatus::Queued),
            (&["running", "queued"], S::Running, JobStatus::Running),
            (&["success", "queued"], S::Queued, JobStatus::Running),
            (&["success", "waiting"], S::Waiting, JobStatus::Running),
            (&["success", "canceling"], S::Canceling, JobStatus::Running),
            (&["success", "running", "queued"], S::Running, JobStatus::Running),
            (&["success", "success"], S::Success, JobStatus::Success),
            (&["success", "error", "error"], S::Error, JobStatus::Error),
            (&["success", "canceled"], S::Canceled, JobStatus::Canceled),
            (&["error", "running"], S::Error, JobStatus::Error),
        ] {
            let job = of_states(states);
            assert_eq!((job.state(), job.status()), (expected, told), "{states:?}");
        }
    }

    #[test]
    fn a_status_only_goes_forward() {
        use JobStatus as S;
        assert!(S::Running.follows(S::Queued) && S::Canceled.follows(S::Queued) && S::Error.follows(S::Running));
        assert!(!S::Queued.follows(S::Running) && !S::Running.follows(S::Running) && !S::Error.follows(S::Success));
        for status in S::ALL {
            assert_eq!(S::of_name(status.name()), Some(status));
        }
    }

    #[test]
    fn what_is_no_job_is_told() {
        let whole = sample(4714);
        let whole = whole.trim_ascii_end();
        for cut in [0, 1, 100, whole.len() - 1] {
            assert!(Job::parse(&whole[..cut]).is_err(), "{cut}");
        }
        for (text, expected) in [
            (r#"{"id": 1, "ops": []}"#, "no operations"),
            (r#"{"id": "x", "ops": []}"#, "no number"),
            (r#"{"id": 1, "ops": [{"input": {"OP_ID": "X"}, "status": "asleep"}]}"#, "unknown variant `asleep`"),
            (r#"{"id": 1, "ops": [{"input": {}, "status": "queued"}]}"#, "OP_ID"),
            ("[]", "no job of Ganeti 3.0's format"),
        ] {
            let told = Job::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(told.contains(expected), "{told}");
        }
        let none = r#"{"id": 1, "ops": [{"input": {"OP_ID": "X", "name": ["a"]}, "status": "queued", "exec_timestamp": [-1, -1]}]}"#;
        let op = Job::parse(none.as_bytes()).unwrap().ops.remove(0);
        assert_eq!((op.started, op.name), (None, None));
    }

    #[test]
    fn a_hook_belongs_to_the_operation_that_ran_then() {
        let op = job(4713).ops.remove(0);
        let hook = |code: &str, object: &str, target: &str| {
            let env = [
                ("GANETI_HOOKS_PATH", "instance-stop"),
                ("GANETI_HOOKS_PHASE", "post"),
                ("GANETI_OP_CODE", code),
                ("GANETI_OBJECT_TYPE", object),
                ("GANETI_OP_TARGET", target),
            ];
            HookRun::new(env.map(|(name, value)| (name.to_owned(), value.to_owned())), None).unwrap()
        };
        let own = hook("OP_INSTANCE_SHUTDOWN", "INSTANCE", "db1.example.com");
        let at = |seconds: u64, hook: &HookRun| op.may_have_run(hook, Timestamp::from_millis(seconds * 1000));
        let (began, ended) = (1_795_303_201, 1_795_303_209);
        assert!(at(began + 1, &own) && at(ended, &own));
        assert!(!at(began - 2, &own) && !at(ended + 2, &own));
        assert!(at(ended, &hook("OP_INSTANCE_SHUTDOWN", "INSTANCE", "db1")));
        assert!(!at(ended, &hook("OP_INSTANCE_SHUTDOWN", "INSTANCE", "db10.example.com")));
        assert!(!at(ended, &hook("OP_INSTANCE_STARTUP", "INSTANCE", "db1.example.com")));
        assert!(at(ended, &hook("OP_INSTANCE_SHUTDOWN", "CLUSTER", "c.example.com")));
        let queued = job(4711).ops.remove(0);
        let migrate = hook("OP_INSTANCE_MIGRATE", "INSTANCE", "web1.example.com");
        assert!(!queued.may_have_run(&migrate, Timestamp::from_millis(began * 1000)), "it hasn't begun");
    }
}
