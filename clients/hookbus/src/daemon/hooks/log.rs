//! The log of executions: each record of the executor goes into the store, and what has failed for good is a dead letter, too.
//!
//! # Order of what is written
//!
//! A dead letter is on the disk before the attempt that it tells of is in the store, and with it no longer to be repeated. After a crash in between that
//! attempt is made again, and may leave a second letter; none is lost. A letter that can't be written is told, and doesn't keep the record from
//! being stored: that shows the failure, too.

use std::sync::Arc;
use std::time::SystemTime;

use hookbus_bridges::delivery::{DeadLetters, Fallen};
use hookbus_broker::{Message, Received};
use hookbus_hem::store::{Completion, Store};
use hookbus_hem::{Again, Ending, EventRef, Kept, Record, Recorder};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::key_of;

/// What dead letters of hooks have for the name of a bridge; the hook's name follows. No bridge can have such a name.
pub(in crate::daemon) const HOOK_LETTERS: &str = "hook ";

/// Takes the executor's records.
#[derive(Debug)]
pub(super) struct HookLog {
    store: Store,
    dead_letters: Arc<DeadLetters>,
}

impl HookLog {
    pub(super) fn new(store: Store, dead_letters: Arc<DeadLetters>) -> Self {
        HookLog { store, dead_letters }
    }
}

impl Recorder for HookLog {
    fn record(&self, record: &Arc<Record>) -> Option<Kept> {
        let key = key_of(&record.hook)?;
        let completion = Completion::of_record(key, record);
        if !record.is_final_failure() {
            let stored = self.store.record(completion);
            // The store logs what it can't keep.
            return Some(Box::pin(async move { drop(stored.await) }));
        }
        let (store, letters, record) = (self.store.clone(), Arc::clone(&self.dead_letters), Arc::clone(record));
        Some(Box::pin(async move {
            let hook = record.hook.name.clone();
            let added = tokio::task::spawn_blocking(move || bury(&letters, &record)).await;
            match added {
                Ok(Ok(())) => {}
                Ok(Err(e)) => tracing::error!(hook, "hooks: a run that failed for good is no dead letter: {e}"),
                Err(e) => tracing::error!(hook, "hooks: a run that failed for good is no dead letter: {e}"),
            }
            drop(store.record(completion).await);
        }))
    }
}

/// What the payload of a dead letter has beside the result: all that is needed to run it again.
#[derive(Debug, Serialize, Deserialize)]
struct Rerun {
    arguments: String,
    #[serde(default)]
    host: Option<String>,
    #[serde(default)]
    environment: Vec<(String, String)>,
}

fn bury(letters: &DeadLetters, record: &Record) -> Result<(), hookbus_bridges::delivery::DeadLettersError> {
    let mut payload: Value = serde_json::from_str(&record.to_json()).unwrap_or_default();
    let rerun = Rerun {
        arguments: record.arguments.clone(),
        host: record.host.clone(),
        environment: record
            .environment
            .iter()
            .map(|(name, value)| (name.clone().into_owned(), value.clone()))
            .collect(),
    };
    if let (Some(payload), Ok(Value::Object(rerun))) = (payload.as_object_mut(), serde_json::to_value(rerun)) {
        payload.extend(rerun);
    }
    let message = Message::new(record.event.key.as_str(), payload.to_string()).with_time(record.event.time);
    let reason = match record.ending {
        Ending::Exited(code) => format!("exit code {code}"),
        Ending::Signalled(signal) => format!("killed by signal {signal}"),
        Ending::TimedOut => "exceeded its TIMEOUT".to_owned(),
        Ending::Interrupted => "was cut off".to_owned(),
        Ending::NotStarted => "could not be started".to_owned(),
    };
    let last = record.stderr.text().trim_end().lines().last().map(|line| format!(": {line}")).unwrap_or_default();
    let reason: String = format!("{reason}{last}").chars().take(500).collect();
    let fallen =
        Fallen { event: Received::restored(record.event.id, message), reason: reason.into(), attempts: record.attempt };
    letters.add(&letters_of(&record.hook.name), SystemTime::now().into(), &[fallen])
}

/// Under what the dead letters of a hook are kept.
pub(super) fn letters_of(hook: &str) -> Arc<str> {
    format!("{HOOK_LETTERS}{hook}").into()
}

/// What is to be run again for a dead letter of a hook.
pub(super) fn again(hook: &str, letter: &Received) -> Option<Again> {
    let Rerun { arguments, host, environment } = serde_json::from_slice(letter.payload()).ok()?;
    let key = letter.keys().next().map(|key| String::from_utf8_lossy(key).into_owned()).unwrap_or_default();
    let event = EventRef { id: letter.id(), key, time: letter.time() };
    Some(Again { hook: hook.to_owned(), arguments, host, event, environment, retry_of: None })
}
