//! The intake: the task that makes events of reports.
//!
//! It takes what waits as a batch, publishes what is new in it, waits for the journal once, writes down once what it has seen, and answers all.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use hookbus_bridges::ganeti::{Look, Operations, Remembered, Report, ReportId};
use hookbus_broker::{BatchLimit, Broker, Delivery, Offset, PublishError, Start, SubscribeOptions};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::Counters;
use super::jobs::Jobs;
use super::memory::Memory;

/// How many requests are dealt with together.
const BATCH: usize = 64;
/// How long a batch may wait for room in the queues, and for the journal.
const PATIENCE: Duration = Duration::from_secs(5);
/// What all keys of Ganeti's hooks begin with.
const PREFIX: &str = "EVENT GANETI ";
/// How much of the journal is looked at together.
const LOOKED_AT: BatchLimit = BatchLimit { messages: 512, bytes: 16 << 20 };
/// How far back the journal is looked at for what is missing in the memory, in events.
const MOST_MISSING: u64 = 1_000_000;

/// Reports that are to be taken in.
pub(super) struct Asked {
    pub(super) reports: Vec<Report>,
    pub(super) reply: oneshot::Sender<Result<Vec<Offset>, String>>,
}

pub(super) struct Intake {
    broker: Broker,
    operations: Operations,
    /// Nothing where it can't be kept.
    memory: Option<Memory>,
    /// What is to be written down: seen since, and forgotten.
    unwritten: Vec<Remembered>,
    forgotten: Vec<ReportId>,
    /// The newest event that was published here, and the newest that is known to be in the journal.
    published: Option<Offset>,
    journaled: Option<Offset>,
    counters: Arc<Counters>,
    /// Which jobs run.
    jobs: Jobs,
}

impl Intake {
    /// Remembers what earlier processes have seen. It blocks.
    pub(super) fn new(
        broker: Broker,
        window: Duration,
        state_dir: Option<&Path>,
        counters: Arc<Counters>,
        jobs: Jobs,
    ) -> Self {
        let mut intake = Intake {
            broker,
            operations: Operations::new(window),
            memory: None,
            unwritten: Vec::new(),
            forgotten: Vec::new(),
            published: None,
            journaled: None,
            counters,
            jobs,
        };
        let opened = state_dir.map(|dir| Memory::open(dir, intake.broker.log_id()));
        let known = match opened {
            Some(Ok((memory, remembered))) => {
                intake.memory = Some(memory);
                for report in remembered {
                    intake.forgotten.extend(intake.operations.remember(report));
                }
                // Those of other logs have offsets beyond any that there is.
                intake.operations.last_offset_up_to(intake.broker.last_offset())
            }
            Some(Err(e)) => {
                tracing::error!(
                    "ganeti: {e}. Until then a report that is sent twice after a restart is published twice"
                );
                None
            }
            None => None,
        };
        intake.read_journal(known);
        intake.tell_remembered();
        intake
    }

    /// Remembers the operations that are in the journal after this event: what a crash has kept from being written down.
    fn read_journal(&mut self, known: Option<Offset>) {
        if self.broker.journal().is_none() {
            return;
        }
        let least = self.broker.last_offset().get().saturating_sub(MOST_MISSING);
        let from = Offset::new(known.map_or(0, |known| known.get() + 1).max(least));
        let options = SubscribeOptions::new("ganeti memory").prefix(PREFIX);
        let Ok(mut subscription) = self.broker.subscribe_from(options, Start::Offset(from)) else { return };
        let (probe, mut batch, mut found) = (subscription.probe(), Vec::new(), 0);
        while probe.unread() > 0 && subscription.try_recv_batch(LOOKED_AT, &mut batch).is_ok() {
            for delivery in batch.drain(..) {
                let Delivery::Message(event) = delivery else { continue };
                let data = serde_json::from_slice(event.payload()).unwrap_or_default();
                let Some(report) = Report::of_data(&data) else { continue };
                if self.operations.look(&report) == Look::New {
                    self.remember(Remembered::of(&report, event.offset(), event.time()));
                    found += 1;
                }
            }
        }
        if found > 0 && self.memory.is_some() {
            tracing::info!("ganeti: {found} operations were found in the journal");
        }
    }

    /// Works until nobody can ask any more.
    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<Asked>) {
        let mut batch = Vec::with_capacity(BATCH);
        while queue.recv_many(&mut batch, BATCH).await > 0 {
            let taken = self.take(&batch).await;
            if let Err(why) = &taken {
                tracing::warn!("ganeti: reports could not be taken in: {why}; their nodes keep them");
            }
            let mut offsets = taken.map(Vec::into_iter);
            for Asked { reports, reply } in batch.drain(..) {
                let own =
                    offsets.as_mut().map(|offsets| offsets.take(reports.len()).collect()).map_err(|why| why.clone());
                // Who has hung up sends it again.
                let _ = reply.send(own);
            }
        }
    }

    /// Takes reports in; answers the offset of the event of each.
    async fn take(&mut self, batch: &[Asked]) -> Result<Vec<Offset>, String> {
        let deadline = Instant::now() + PATIENCE;
        let mut offsets = Vec::new();
        for report in batch.iter().flat_map(|asked| &asked.reports) {
            let (offset, counter) = match self.operations.look(report) {
                Look::Repeated(offset) => {
                    self.counters.repeated.fetch_add(1, Ordering::Relaxed);
                    offsets.push(offset);
                    continue;
                }
                Look::Known(offset) => (offset, &self.counters.known),
                Look::New => {
                    let offset = publish(&self.broker, &self.jobs, report, deadline).await?;
                    self.published = Some(offset);
                    (offset, &self.counters.operations)
                }
            };
            counter.fetch_add(1, Ordering::Relaxed);
            offsets.push(offset);
            self.remember(Remembered::of(report, offset, SystemTime::now().into()));
        }
        // Also what an earlier batch has published, and could not wait for: a report of it may be in this one.
        if let Some(last) = self.published.filter(|last| Some(*last) > self.journaled) {
            match timeout_at(deadline, self.broker.journaled(last)).await {
                Ok(Ok(())) => self.journaled = Some(last),
                Ok(Err(e)) => return Err(e.to_string()),
                Err(_) => return Err(format!("the journal has not written them within {} s", PATIENCE.as_secs())),
            }
        }
        self.write();
        self.tell_remembered();
        Ok(offsets)
    }

    fn remember(&mut self, report: Remembered) {
        if self.memory.is_some() {
            self.unwritten.push(report.clone());
        }
        self.forgotten.extend(self.operations.remember(report));
    }

    /// Writes down what was seen. It takes some ten microseconds: the system's memory has it, and the disk gets it later.
    fn write(&mut self) {
        let Some(memory) = &mut self.memory else {
            self.forgotten.clear();
            return;
        };
        if memory.write(&self.unwritten, &self.forgotten) {
            self.unwritten.clear();
            self.forgotten.clear();
        } else if self.unwritten.len() > MOST_UNWRITTEN {
            // It is known in memory, and its events are in the journal.
            self.unwritten.drain(..MOST_UNWRITTEN / 2);
        }
    }

    fn tell_remembered(&self) {
        self.counters.remembered.store(self.operations.len() as u64, Ordering::Relaxed);
    }
}

/// What is kept of reports that can't be written down.
const MOST_UNWRITTEN: usize = 20_000;

async fn publish(broker: &Broker, jobs: &Jobs, report: &Report, deadline: Instant) -> Result<Offset, String> {
    let mut data = report.data();
    if let Some(id) = jobs.job_of(report).await {
        data["jobid"] = id.into();
    }
    let mut message = report.run.message(&data);
    match timeout_at(deadline, broker.accept(&mut message)).await {
        Ok(Ok(offset)) => Ok(offset),
        Ok(Err(PublishError::Closed)) => Err("hookbus is about to end".into()),
        Ok(Err(e)) => Err(e.to_string()),
        Err(_) => Err(format!("a subscriber that blocks made no room within {} s", PATIENCE.as_secs())),
    }
}
