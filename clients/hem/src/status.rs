//! Counters, and what they show.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::SystemTime;

use hookbus_broker::Timestamp;
use parking_lot::Mutex;
use serde::Serialize;

use crate::hook::Hook;
use crate::record::Ending;
use crate::set::HookSet;

/// One hook, as it stands. Counters are kept over a reload, by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct HookStatus {
    /// Its name.
    pub name: String,
    /// The file that it comes from.
    pub file: Option<PathBuf>,
    /// What makes it run, such as `state VM/ACTIVE/RUNNING`.
    pub trigger: String,
    /// How often it ran, or was to.
    pub runs: u64,
    /// How often it ended with code 0.
    pub successes: u64,
    /// How often it ended otherwise.
    pub failures: u64,
    /// How many of these failures were timeouts.
    pub timeouts: u64,
    /// How many of it run now.
    pub running: u64,
    /// The code of the one that ended last.
    pub last_code: Option<i32>,
    /// When that was, in milliseconds since 1970.
    pub last_ended_ms: Option<u64>,
}

/// The executor, as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ExecutorStatus {
    /// Each hook, in the order of the set.
    pub hooks: Vec<HookStatus>,
    /// How many commands run now.
    pub running: u64,
    /// Whether hooks run here; nothing while `run_if` has not said so yet.
    pub leads: Option<bool>,
    /// How many run at once at most.
    pub concurrency: usize,
    /// Whether what is not done when the process ends is for the next one.
    pub durable: bool,
    /// How many events wait in the subscription; of a durable one at most so many.
    pub waiting: u64,
    /// How many events were dropped at the high-water mark: no hook ran for them.
    pub dropped: u64,
}

/// The counters of one hook.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    runs: AtomicU64,
    successes: AtomicU64,
    failures: AtomicU64,
    timeouts: AtomicU64,
    running: AtomicU64,
    last: Mutex<Option<(i32, SystemTime)>>,
}

impl Counters {
    /// Counts one that runs, until the guard is dropped.
    pub(crate) fn start(self: &Arc<Self>) -> Running {
        self.runs.fetch_add(1, Relaxed);
        self.running.fetch_add(1, Relaxed);
        Running(Arc::clone(self))
    }

    pub(crate) fn ended(&self, ending: Ending) {
        let counter = if ending.is_success() { &self.successes } else { &self.failures };
        counter.fetch_add(1, Relaxed);
        if ending == Ending::TimedOut {
            self.timeouts.fetch_add(1, Relaxed);
        }
        *self.last.lock() = Some((ending.code(), SystemTime::now()));
    }

    pub(crate) fn running(&self) -> u64 {
        self.running.load(Relaxed)
    }

    fn status(&self, hook: &Hook) -> HookStatus {
        let last = *self.last.lock();
        HookStatus {
            name: hook.name.clone(),
            file: hook.origin.path().map(PathBuf::from),
            trigger: hook.trigger.to_string(),
            runs: self.runs.load(Relaxed),
            successes: self.successes.load(Relaxed),
            failures: self.failures.load(Relaxed),
            timeouts: self.timeouts.load(Relaxed),
            running: self.running(),
            last_code: last.map(|(code, _)| code),
            last_ended_ms: last.map(|(_, time)| Timestamp::from(time).as_millis()),
        }
    }
}

/// A hook that runs.
#[derive(Debug)]
pub(crate) struct Running(Arc<Counters>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Relaxed);
    }
}

/// The hooks that count now, with their counters.
#[derive(Debug, Default)]
pub(crate) struct Active {
    pub(crate) set: HookSet,
    /// All hooks together, also those that were replaced.
    pub(crate) all: Arc<Counters>,
    counters: HashMap<String, Arc<Counters>>,
}

impl Active {
    /// Other hooks in the place of these; who keeps its name keeps its counters.
    pub(crate) fn succeeded_by(&self, set: HookSet) -> Active {
        let counters = set.hooks().iter().map(|hook| (hook.name.clone(), self.counters_of(hook))).collect();
        Active { set, all: Arc::clone(&self.all), counters }
    }

    pub(crate) fn counters_of(&self, hook: &Hook) -> Arc<Counters> {
        self.counters.get(&hook.name).cloned().unwrap_or_default()
    }

    pub(crate) fn hooks(&self) -> Vec<HookStatus> {
        self.set.hooks().iter().map(|hook| self.counters_of(hook).status(hook)).collect()
    }
}
