//! Hooks from template files: read at the start and on SIGHUP, executed by [`Executor`].
//!
//! With `overflow = "spill"` the executor has a cursor in the journal: events that come while the daemon is down are for it, too.

use std::path::PathBuf;
use std::time::Duration;

use hookbus_bridges::cloudevents::Encoder;
use hookbus_broker::Broker;
use hookbus_hem::{Executor, ExecutorOptions, ExecutorStatus, HookSet, RunIf, Severity};
use serde_json::Value;
use tokio::time::Instant;

use crate::config::{HooksConfig, Overflow};

/// The executor's cursor in the journal.
const CURSOR: &str = "hooks";

/// The executor and where its hooks come from.
pub(crate) struct Hooks {
    dir: PathBuf,
    executor: Executor,
}

impl Hooks {
    /// Reads the directory and executes its hooks from now on; nothing where no directory is configured.
    /// Between TERM and KILL hooks have `kill_grace`.
    pub(crate) fn start(
        broker: &Broker,
        config: &HooksConfig,
        encoder: &Encoder,
        kill_grace: Duration,
    ) -> Option<Self> {
        let dir = config.dir.clone()?;
        let mut options = ExecutorOptions::default();
        options.base_path.clone_from(&config.base_path);
        options.concurrency = config.concurrency;
        options.output_max_bytes = config.output_max_bytes.bytes();
        options.hwm = config.hwm;
        options.hwm_bytes = config.hwm_bytes.bytes();
        options.kill_grace = kill_grace;
        options.overflow = config.overflow.policy();
        options.remote_base_path.clone_from(&config.remote_base_path);
        options.run_if = config.run_if.as_ref().map(RunIf::new);
        options.encoder = encoder.clone();
        let hooks = read(&dir).unwrap_or_default();
        let executor = if config.overflow == Overflow::Spill && broker.journal().is_some() {
            match Executor::start_durable(broker, hooks, options, CURSOR) {
                Ok(executor) => executor,
                Err(e) => {
                    tracing::error!("hooks: they can't be run: {e}");
                    return None;
                }
            }
        } else {
            Executor::start(broker, hooks, options)
        };
        Some(Hooks { dir, executor })
    }

    /// Reads the directory again. Executions under way go on. Where it can't be read, the hooks that there are stay.
    pub(crate) fn reload(&self) {
        match read(&self.dir) {
            Some(hooks) => self.executor.replace(hooks),
            None => tracing::error!("hooks: {} cannot be read now; the hooks stay as they are", self.dir.display()),
        }
    }

    /// For listings.
    pub(crate) fn status(&self) -> Value {
        let status: ExecutorStatus = self.executor.status();
        let mut value = serde_json::to_value(&status).unwrap_or_default();
        value["dir"] = self.dir.to_string_lossy().into();
        value
    }

    /// Counters, for metrics.
    pub(crate) fn counters(&self) -> ExecutorStatus {
        self.executor.status()
    }

    /// Ends the executor; hooks that still run at the deadline are ended, too.
    pub(crate) async fn shut_down(self, deadline: Instant) {
        self.executor.shutdown(deadline).await;
    }
}

/// The hooks of a directory that are right; nothing where it can't be read. What is wrong is told; one broken template is no
/// reason to do without the others.
fn read(dir: &std::path::Path) -> Option<HookSet> {
    let loaded = hookbus_hem::load(dir);
    for problem in &loaded.problems {
        match problem.severity {
            Severity::Error if loaded.unreadable => tracing::error!("hooks: {problem}"),
            Severity::Error => tracing::error!("hook: {problem}; it is not loaded, the others are"),
            Severity::Warning => tracing::warn!("hook: {problem}"),
        }
    }
    if loaded.unreadable {
        return None;
    }
    tracing::info!("hooks: {} loaded from {}, {} not", loaded.hooks.len(), dir.display(), loaded.errors());
    Some(HookSet::new(loaded.hooks))
}
