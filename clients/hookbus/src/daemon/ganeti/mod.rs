//! Ganeti's operations: what nodes report of their hooks becomes one event for each operation.
//!
//! ```text
//! hookbus-ganeti-hook ── POST /v1/ganeti/reports ─▶ ╮
//!                      ◀─ POST /v1/ganeti/gate ────▶ ┤ (and hooks of PHASE pre say whether it may begin: gate.rs)
//! the spool of this host ── spool.rs ─────────────▶ ┴▶ intake ─▶ broker, journal
//!                                                       │ ▲
//!                                              memory (ganeti.db): which reports were here, of which operation
//! ```
//!
//! The intake (`intake.rs`) is one task: it takes reports in the order in which they come, finds out which of them tell of an operation that is known, and
//! publishes the others. `memory.rs` keeps over restarts what is known. `jobs/` is another source: the job queue of a master. It tells the intake which job a
//! hook ran for, where there is exactly one (`jobid` in the event's data).
//!
//! # What may be lost or repeated
//!
//! A report is answered when its event is in the journal, where there is one, and known as a report that was here. A crash before the answer
//! loses neither: the node keeps what wasn't answered and sends it again; what the crash kept from being known is read out of the
//! journal at the next start. Without a journal an event is answered when it is in the queues of all subscribers, and a report whose answer
//! a crash has cut off is published twice. What counts as one operation, and when that goes wrong, is in
//! [`hookbus_bridges::ganeti::Operations`].

mod gate;
mod intake;
pub(super) mod jobs;
mod memory;
mod routes;
mod spool;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hookbus_bridges::ganeti::Report;
use hookbus_broker::Offset;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use self::gate::Checks;
pub(super) use self::gate::Verdicts;
use self::intake::{Asked, Intake};
use self::jobs::Jobs;
pub(super) use self::routes::routes;
use super::State;

/// How many requests wait for the intake; beyond that they wait at their connections.
const QUEUED: usize = 256;

/// Where reports go.
pub(crate) struct Ganeti {
    asked: mpsc::Sender<Asked>,
    counters: Arc<Counters>,
    checks: Arc<Checks>,
    /// Ends what looks after the spool.
    stop: watch::Sender<bool>,
    tasks: [JoinHandle<()>; 2],
}

/// What has become of reports.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Operations that were published.
    operations: AtomicU64,
    /// Reports of operations that were known.
    known: AtomicU64,
    /// Reports that had been here before.
    repeated: AtomicU64,
    /// What was no report.
    refused: AtomicU64,
    /// Reports that nodes had no room for.
    lost: AtomicU64,
    /// Reports that are remembered.
    remembered: AtomicU64,
}

impl Ganeti {
    /// Takes reports from now on. It blocks: the memory is a file in `state_dir`, and what is missing in it is read from the journal.
    /// `jobs` are asked which job a hook ran for.
    pub(super) fn start(state: &State, state_dir: Option<&Path>, jobs: Jobs) -> Self {
        let counters = Arc::new(Counters::default());
        let (asked, queue) = mpsc::channel(QUEUED);
        let window = state.config.ganeti.window.duration();
        let intake = Intake::new(state.broker.clone(), window, state_dir, Arc::clone(&counters), jobs);
        let checks = Arc::new(Checks::new(&state.config, &state.encoder, &state.host));
        let (stop, stopped) = watch::channel(false);
        let entrance = Entrance { asked: asked.clone(), counters: Arc::clone(&counters) };
        let spool = spool::watch(state.config.ganeti.spool.clone(), entrance, stopped);
        Ganeti { asked, counters, checks, stop, tasks: [spool, tokio::spawn(intake.run(queue))] }
    }

    /// The way in for reports.
    pub(super) fn entrance(&self) -> Entrance {
        Entrance { asked: self.asked.clone(), counters: Arc::clone(&self.counters) }
    }

    /// Who is asked, beside hooks, whether an operation may begin.
    fn checks(&self) -> Arc<Checks> {
        Arc::clone(&self.checks)
    }

    /// For listings.
    pub(super) fn status(&self) -> Value {
        let number = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        json!({
            "operations": number(&self.counters.operations),
            "known": number(&self.counters.known),
            "repeated": number(&self.counters.repeated),
            "refused": number(&self.counters.refused),
            "lost": number(&self.counters.lost),
            "remembered": number(&self.counters.remembered),
        })
    }

    /// Takes nothing more; what was taken is dealt with.
    pub(super) async fn shut_down(self) {
        let Ganeti { asked, stop, tasks, .. } = self;
        stop.send_replace(true);
        drop(asked);
        for task in tasks {
            if task.await.is_err() {
                tracing::error!("ganeti: a task has failed");
            }
        }
    }
}

/// Hands reports to the intake.
#[derive(Clone)]
pub(super) struct Entrance {
    asked: mpsc::Sender<Asked>,
    counters: Arc<Counters>,
}

impl Entrance {
    /// Has reports taken in, in their order; returns when they are safe, with the offset of the event of each.
    ///
    /// # Errors
    /// When they are not, all or some of them; they are to be sent again, and those that were taken are known then.
    pub(super) async fn take(&self, reports: Vec<Report>) -> Result<Vec<Offset>, String> {
        let ending = || "hookbus is about to end".to_owned();
        let (reply, answer) = oneshot::channel();
        self.asked.send(Asked { reports, reply }).await.map_err(|_| ending())?;
        answer.await.unwrap_or_else(|_| Err(ending()))
    }

    /// Something was no report.
    pub(super) fn refused(&self, count: usize) {
        self.counters.refused.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// A node had no room for so many reports.
    pub(super) fn lost(&self, count: u64) {
        self.counters.lost.fetch_add(count, Ordering::Relaxed);
    }
}
