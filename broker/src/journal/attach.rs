//! The broker with a journal: attaching it, and the thread that writes.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};

use super::cursor::CursorFile;
use super::durable::{DurableSubscription, Lag, Start, lag};
use super::error::{JournalError, JournalFault};
use super::gate::{Gate, Signals};
use super::log::Log;
use super::open::Journal;
use super::options::Durability;
use super::reader::Reader;
use super::scribe::{self, BATCH, Scribe, StandIn};
use super::writer::Writer;
use crate::broker::Broker;
use crate::error::PublishError;
use crate::message::{Delivery, Gap, LogId, Offset};
use crate::options::{Overflow, SubscribeOptions};
use crate::publish::Shared;
use crate::subscription::Subscription;

/// A journal that a broker has.
pub(crate) struct Attached {
    pub(crate) log: Arc<Log>,
    /// The first offset of the broker that counts in the journal's log.
    from: u64,
    scribe: Arc<scribe::Shared>,
}

impl Attached {
    /// The journal's name, if the offset counts in it.
    pub(crate) fn log_id_of(&self, offset: Offset) -> Option<LogId> {
        (offset.get() >= self.from && offset.get() < self.log.id_end()).then_some(self.log.id)
    }

    /// Whether the journal may have the message of that offset.
    pub(crate) fn has(&self, offset: Offset) -> bool {
        offset.get() >= self.from
    }

    /// Takes the writing thread's place, where the caller may block and would only wait for it.
    pub(crate) fn stand_in(&self) -> Option<StandIn<'_>> {
        let shares_syncs = self.log.options.durability == Durability::Fsync;
        if shares_syncs { None } else { StandIn::new(&self.scribe) }
    }

    /// Waits until the journal has what was published under that offset.
    pub(crate) async fn journaled(&self, offset: Offset) -> Result<(), PublishError> {
        // What was published before the journal came was written with it, under another offset.
        if offset.get() < self.from || self.log.passed(offset.get()).await {
            return Ok(());
        }
        Err(JournalFault::Closed.into())
    }
}

/// Keeps what is published for a journal that will be attached later.
#[derive(Debug)]
pub struct JournalHold {
    broker: Broker,
    subscription: Subscription,
    /// Messages that were taken from the queue for a journal that then could not be written; told as a gap to the next one.
    lost: u64,
}

impl Broker {
    /// Gives the broker its journal: from now on, messages are written to it, and
    /// [`publish`](Broker::publish) and its likes return when they are. Offsets go on behind those of the journal, and ids have its
    /// name.
    ///
    /// # Errors
    /// When the broker has a journal already, or is closed.
    pub fn attach_journal(&self, journal: Journal) -> Result<(), JournalError> {
        self.hold_for_journal()?.attach(journal).map_err(|(error, _)| error)
    }

    /// Begins to keep what is published, for a journal that is still to be opened. What doesn't fit below a quarter of
    /// [`max_bytes`](crate::BrokerOptions::max_bytes), at most 64 MiB, makes publishers wait as the journal would.
    ///
    /// # Errors
    /// When the broker has a journal already, or is closed.
    pub fn hold_for_journal(&self) -> Result<JournalHold, JournalError> {
        if self.shared.journal.get().is_some() {
            return Err(JournalError::Attached);
        }
        let bound = (self.shared.options.max_bytes / 4).min(64 << 20);
        let mut options = SubscribeOptions::new("journal").hwm(0).hwm_bytes(bound).overflow(Overflow::Block);
        options.journal = true;
        Ok(JournalHold { subscription: self.subscribe(options), broker: self.clone(), lost: 0 })
    }

    /// The journal, if one is attached.
    pub fn journal(&self) -> Option<JournalHandle> {
        self.shared.journal.get().map(|attached| JournalHandle { log: Arc::clone(&attached.log) })
    }

    /// Opens a subscription whose place is kept in the journal under the name `cursor`. A cursor that is there goes on where it
    /// stands; `start` is for one that isn't.
    ///
    /// # Errors
    /// When the broker has no journal, the cursor is in use or can't be one's name, or its file can't be written.
    pub fn subscribe_durable(
        &self,
        options: SubscribeOptions,
        cursor: &str,
        start: Start,
    ) -> Result<DurableSubscription, JournalError> {
        let log = self.log()?;
        let mut cursors = log.cursors.lock();
        if cursors.get(cursor).is_some_and(|file| file.in_use.load(Ordering::Acquire)) {
            return Err(JournalError::CursorInUse { name: cursor.to_owned() });
        }
        let subscription = self.subscribe(options.overflow(Overflow::Spill));
        let file = match cursors.get(cursor) {
            Some(file) => Arc::clone(file),
            None => {
                let position = position_of(&log, start, &subscription);
                let file = CursorFile::create(&log.cursors_dir(), cursor, position, &*log.options.disk)?;
                let file = Arc::new(file);
                cursors.insert(cursor.to_owned(), Arc::clone(&file));
                file
            }
        };
        file.in_use.store(true, Ordering::Release);
        drop(cursors);
        let from = file.position();
        Ok(DurableSubscription::new(log, subscription, Some(file), from))
    }

    /// Opens a subscription that begins in the past and leaves nothing behind.
    ///
    /// # Errors
    /// When the broker has no journal.
    pub fn subscribe_from(&self, options: SubscribeOptions, start: Start) -> Result<DurableSubscription, JournalError> {
        let log = self.log()?;
        let subscription = self.subscribe(options.overflow(Overflow::Spill));
        let from = position_of(&log, start, &subscription);
        Ok(DurableSubscription::new(log, subscription, None, from))
    }

    /// Closes the broker, and returns when its journal, if it has one, has everything and is closed in order. Without this, that happens
    /// when the last handle to the broker is dropped.
    pub fn close_journal(&self) {
        self.close();
        self.life.join();
    }

    fn log(&self) -> Result<Arc<Log>, JournalError> {
        self.shared.journal.get().map(|attached| Arc::clone(&attached.log)).ok_or(JournalError::None)
    }
}

/// Where a new subscription begins.
fn position_of(log: &Arc<Log>, start: Start, subscription: &Subscription) -> u64 {
    match start {
        Start::Latest => subscription.handle().member().joined,
        Start::Earliest => log.range().0,
        Start::Offset(offset) => offset.get().max(1),
        Start::Time(time) => Reader::find_time(log, time),
    }
}

impl JournalHold {
    /// Gives the broker its journal, as [`Broker::attach_journal`]. What was kept gets offsets of the journal and is written.
    ///
    /// # Errors
    /// As [`Broker::attach_journal`]; and when what was kept can't be written. The hold comes back with the error and goes on keeping, so
    /// that it can be tried again with the journal opened anew; what had been taken from it by then is told there as a gap.
    pub fn attach(mut self, journal: Journal) -> Result<(), (JournalError, Option<Box<JournalHold>>)> {
        let Journal { log, writer, .. } = journal;
        match self.write(&log, writer) {
            Ok((writer, signals)) => start(self, &log, writer, signals).map_err(|error| (error, None)),
            Err(error) => Err((error, Some(Box::new(self)))),
        }
    }

    /// Writes what was kept, and makes the journal the broker's.
    fn write(&mut self, log: &Arc<Log>, mut writer: Writer) -> Result<(Writer, Arc<Signals>), JournalError> {
        let JournalHold { broker, subscription, lost } = self;
        let shared = &broker.shared;
        let mut next = log.watermark();
        // Most of it while publishers go on, the rest while they can't.
        write_held(subscription, &mut writer, &mut next, lost).map_err(log.io("write"))?;
        // Where there is no room yet, the thread goes on trying.
        let full = writer.prepare().err().map(|e| JournalFault::from(&e));
        let signals = Arc::new(Signals::default());
        let attached = shared.with_publishing(|p| {
            if p.closed {
                return Err(JournalError::Closed);
            }
            write_held(subscription, &mut writer, &mut next, lost).map_err(log.io("write"))?;
            // Offsets rise for those who are subscribed already, whichever log they count in.
            p.next = p.next.max(next);
            log.advance(p.next);
            let attached = Attached { log: Arc::clone(log), from: p.next, scribe: Arc::default() };
            shared.journal.set(attached).map_err(|_| JournalError::Attached)?;
            let member = subscription.handle().member();
            if let Some(bytes) = log.options.queue_bytes {
                let mut cursor = member.cursor.lock();
                cursor.hwm_bytes = bytes as u64;
                member.tell_limits(&cursor);
            }
            let mut gate = Gate::new(Arc::clone(log), Arc::clone(member), Arc::clone(&signals), writer.room());
            if let Some(fault) = full {
                gate.no_spare(fault);
            }
            p.gate = Some(gate);
            for member in p.members.values().filter(|m| m.options.may_spill()) {
                member.cursor.lock().spills = true;
            }
            Ok(())
        });
        attached?;
        Ok((writer, signals))
    }
}

/// Starts the thread that writes.
fn start(hold: JournalHold, log: &Arc<Log>, writer: Writer, signals: Arc<Signals>) -> Result<(), JournalError> {
    let JournalHold { broker, subscription, .. } = hold;
    let attached = broker.shared.journal.get().expect("it was attached just now");
    let shared = Arc::clone(&attached.scribe);
    *shared.lock() = Some(Scribe::new(writer, subscription, signals));
    let thread = thread::Builder::new().name("journal".into()).spawn(move || scribe::run(&shared));
    let thread = thread.map_err(|error| {
        let scribe = attached.scribe.lock().take();
        drop(scribe);
        log.io("start the thread of")(error)
    })?;
    let _ = log.thread.set(thread.thread().clone());
    broker.life.set(thread);
    Ok(())
}

/// Writes what is queued under offsets from `next` on, behind a gap for what is `lost`. Where it fails, all that was taken is lost, as far as is
/// known.
fn write_held(
    subscription: &mut Subscription,
    writer: &mut Writer,
    next: &mut u64,
    lost: &mut u64,
) -> std::io::Result<()> {
    if *lost > 0 {
        let last = *next + *lost - 1;
        writer.put_gap(Gap { first: Offset::new(*next), last: Offset::new(last), count: *lost })?;
        *next = last + 1;
    }
    while let Ok(batch) = subscription.try_recv_batch(BATCH) {
        *lost +=
            batch.iter().map(|delivery| if let Delivery::Gap(gap) = delivery { gap.count } else { 1 }).sum::<u64>();
        for delivery in batch.iter() {
            match delivery {
                Delivery::Message(message) => {
                    writer.put(message, *next)?;
                    *next += 1;
                }
                Delivery::Gap(gap) => {
                    let last = *next + gap.count - 1;
                    writer.put_gap(Gap { first: Offset::new(*next), last: Offset::new(last), count: gap.count })?;
                    *next = last + 1;
                }
            }
        }
    }
    writer.reserve(*next)?;
    writer.flush()?;
    *lost = 0;
    Ok(())
}

/// What ends with the last handle to a broker: its journal is closed in order.
pub(crate) struct Life {
    shared: Arc<Shared>,
    thread: parking_lot::Mutex<Option<JoinHandle<()>>>,
}

impl Life {
    pub(crate) fn new(shared: Arc<Shared>) -> Arc<Self> {
        Arc::new(Life { shared, thread: parking_lot::Mutex::new(None) })
    }

    fn set(&self, thread: JoinHandle<()>) {
        *self.thread.lock() = Some(thread);
    }

    /// Waits for the writer, which ends by itself when the broker is closed.
    fn join(&self) {
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.lock().take() {
            self.shared.close();
            let _ = thread.join();
        }
    }
}

/// Everything about a journal but writing and reading.
#[derive(Clone)]
pub struct JournalHandle {
    log: Arc<Log>,
}

impl fmt::Debug for JournalHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JournalHandle").field("stats", &self.stats()).finish()
    }
}

/// A journal as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct JournalStats {
    /// The oldest offset that it has.
    pub first: u64,
    /// The offset behind its last one.
    pub next: u64,
    /// What segments take on the disk, in bytes.
    pub disk_bytes: u64,
    /// How many segments there are.
    pub segments: usize,
    /// Messages written since it was opened.
    pub messages: u64,
    /// Bytes written since it was opened.
    pub bytes: u64,
    /// Gaps written since it was opened.
    pub gaps: u64,
    /// Places found damaged while reading.
    pub damaged: u64,
    /// Why writing fails now, if it does.
    pub failing: Option<String>,
}

/// A cursor as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CursorInfo {
    /// Its name.
    pub name: String,
    /// The offset below which everything is done.
    pub position: Offset,
    /// How far it is behind.
    pub lag: Lag,
    /// Whether a subscription has it open; otherwise it is orphaned, and holds nothing back.
    pub in_use: bool,
}

impl JournalHandle {
    /// How it stands.
    pub fn stats(&self) -> JournalStats {
        let log = &self.log;
        let (first, next) = log.range();
        let (segments, disk_bytes) = {
            let segments = log.segments.lock();
            (segments.len(), segments.iter().map(|s| s.allocated.load(Ordering::Relaxed)).sum())
        };
        let counters = &log.counters;
        JournalStats {
            first,
            next,
            disk_bytes,
            segments,
            messages: counters.messages.load(Ordering::Relaxed),
            bytes: counters.bytes.load(Ordering::Relaxed),
            gaps: counters.gaps.load(Ordering::Relaxed),
            damaged: counters.damaged.load(Ordering::Relaxed),
            failing: log.failing.lock().clone(),
        }
    }

    /// All cursors, by name.
    pub fn cursors(&self) -> Vec<CursorInfo> {
        let head = self.log.watermark();
        let info = |file: &Arc<CursorFile>| {
            if file.follow(head) {
                self.log.cursor_moved();
            }
            CursorInfo {
                name: file.name.clone(),
                position: Offset::new(file.position()),
                lag: lag(&self.log, file.position(), file.oldest.load(Ordering::Relaxed)),
                in_use: file.in_use.load(Ordering::Acquire),
            }
        };
        self.log.cursors.lock().values().map(info).collect()
    }

    /// Deletes a cursor that is not in use.
    ///
    /// # Errors
    /// When it is in use, isn't there, or its file can't be deleted.
    pub fn delete_cursor(&self, name: &str) -> Result<(), JournalError> {
        let mut cursors = self.log.cursors.lock();
        let Some(file) = cursors.get(name) else { return Err(JournalError::NoCursor { name: name.to_owned() }) };
        if file.in_use.load(Ordering::Acquire) {
            return Err(JournalError::CursorInUse { name: name.to_owned() });
        }
        let path = file.path();
        std::fs::remove_file(&path).map_err(JournalError::io("delete", &path))?;
        cursors.remove(name);
        Ok(())
    }
}
