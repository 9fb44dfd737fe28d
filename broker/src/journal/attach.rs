//! The broker with a journal: attaching it, and the thread that writes.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Wake, Waker};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use super::cursor::CursorFile;
use super::durable::{DurableSubscription, Lag, Start};
use super::error::{JournalError, JournalFault};
use super::log::Log;
use super::open::Journal;
use super::reader::Reader;
use super::writer::Writer;
use crate::broker::Broker;
use crate::error::{PublishError, TryRecvError};
use crate::message::{Delivery, Gap, LogId, Offset};
use crate::options::{BatchLimit, Overflow, SubscribeOptions};
use crate::publish::Shared;
use crate::subscription::{Subscription, SubscriptionHandle};

/// What the writer takes at once.
const BATCH: BatchLimit = BatchLimit { messages: 4096, bytes: 256 << 10 };
/// How long a moved cursor may stay unsaved.
const SAVE_AFTER: Duration = Duration::from_millis(500);
/// Pauses between attempts to write.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Attempts to write what is left when the broker was closed.
const LAST_ATTEMPTS: u32 = 10;

/// A journal that a broker has.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) log: Arc<Log>,
    /// The first offset of the broker that counts in the journal's log.
    from: u64,
}

impl Attached {
    /// The journal's name, if the offset counts in it.
    pub(crate) fn log_id_of(&self, offset: Offset) -> Option<LogId> {
        (offset.get() >= self.from).then_some(self.log.id)
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
}

impl Broker {
    /// Gives the broker its journal: from now on, messages are written to it, and
    /// [`publish`](Broker::publish) and its likes return when they are. Offsets go on behind those of the journal, and ids have its
    /// name.
    ///
    /// # Errors
    /// When the broker has a journal already, or is closed.
    pub fn attach_journal(&self, journal: Journal) -> Result<(), JournalError> {
        self.hold_for_journal()?.attach(journal)
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
        let options = SubscribeOptions::new("journal").prefix("").hwm(0).hwm_bytes(bound).overflow(Overflow::Block);
        Ok(JournalHold { subscription: self.subscribe(options), broker: self.clone() })
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
        let file = match cursors.get(cursor) {
            Some(file) => Arc::clone(file),
            None => {
                let position = position_of(&log, start)?;
                let file = CursorFile::create(&log.cursors_dir(), cursor, position, &*log.options.disk)?;
                let file = Arc::new(file);
                cursors.insert(cursor.to_owned(), Arc::clone(&file));
                file
            }
        };
        if file.in_use.swap(true, Ordering::AcqRel) {
            return Err(JournalError::CursorInUse { name: cursor.to_owned() });
        }
        drop(cursors);
        let from = file.position();
        Ok(DurableSubscription::new(log, &options, Some(file), from))
    }

    /// Opens a subscription that begins in the past and leaves nothing behind.
    ///
    /// # Errors
    /// When the broker has no journal, or it can't be read.
    pub fn subscribe_from(&self, options: SubscribeOptions, start: Start) -> Result<DurableSubscription, JournalError> {
        let log = self.log()?;
        let from = position_of(&log, start)?;
        Ok(DurableSubscription::new(log, &options, None, from))
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

fn position_of(log: &Arc<Log>, start: Start) -> Result<u64, JournalError> {
    Ok(match start {
        Start::Latest => log.watermark(),
        Start::Earliest => log.range().0,
        Start::Offset(offset) => offset.get(),
        Start::Time(time) => Reader::find_time(log, time).map_err(log.io("read"))?,
    })
}

impl JournalHold {
    /// Gives the broker its journal, as [`Broker::attach_journal`]. What was kept gets offsets of the journal and is written.
    ///
    /// # Errors
    /// As [`Broker::attach_journal`]; and when what was kept can't be written.
    pub fn attach(self, journal: Journal) -> Result<(), JournalError> {
        let JournalHold { broker, mut subscription } = self;
        let Journal { log, mut writer, .. } = journal;
        let shared = &broker.shared;
        let mut next = log.watermark();
        // Most of it while publishers go on, the rest while they can't.
        let failed = log.io("write");
        let done = write_held(&mut subscription, &mut writer, &mut next, 0);
        let done = done.and_then(|()| {
            shared.with_publishing(|p| {
                if p.closed {
                    return Ok(Err(JournalError::Closed));
                }
                write_held(&mut subscription, &mut writer, &mut next, 0)?;
                // Offsets rise for those who are subscribed already, whichever log they count in.
                p.next = p.next.max(next);
                let attached = Attached { log: Arc::clone(&log), from: p.next };
                Ok(shared.journal.set(attached).map_err(|_| JournalError::Attached))
            })
        });
        done.map_err(failed)??;
        let run = move || run(writer, subscription);
        let thread = thread::Builder::new().name("journal".into()).spawn(run).map_err(log.io("start the thread of"))?;
        let _ = log.thread.set(thread.thread().clone());
        broker.life.set(thread);
        Ok(())
    }
}

/// Writes what is queued under offsets from `next` on.
fn write_held(
    subscription: &mut Subscription,
    writer: &mut Writer,
    next: &mut u64,
    _least: usize,
) -> std::io::Result<()> {
    while let Ok(batch) = subscription.try_recv_batch(BATCH) {
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
    writer.flush()
}

/// The thread.
fn run(mut writer: Writer, mut subscription: Subscription) {
    let log = Arc::clone(&writer.log);
    let handle = subscription.handle().clone();
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut cx = Context::from_waker(&waker);
    let written = loop {
        let taken = subscription.try_recv_batch(BATCH).map(|batch| {
            batch.iter().try_for_each(|delivery| match delivery {
                Delivery::Message(message) => insist(&mut writer, &handle, |w| w.put(message, message.offset().get())),
                Delivery::Gap(gap) => insist(&mut writer, &handle, |w| w.put_gap(gap)),
            })
        });
        match taken {
            Ok(done) => {
                let next = writer.next;
                let done = done.and_then(|()| insist(&mut writer, &handle, Writer::flush));
                if done.and_then(|()| insist(&mut writer, &handle, |w| w.reserve(next))).is_err() {
                    break false;
                }
            }
            Err(TryRecvError::Empty) => {
                if subscription.poll_ready(&mut cx).is_pending() {
                    if log.cursors_moved.load(Ordering::Acquire) {
                        thread::park_timeout(SAVE_AFTER);
                        let _ = writer.save_cursors();
                    } else {
                        thread::park();
                    }
                }
            }
            Err(TryRecvError::Ended) => break true,
        }
    };
    if written {
        let _ = insist(&mut writer, &handle, Writer::close);
    }
    log.end();
}

/// Tries until it works. Gives up only when the broker was closed, after some attempts.
fn insist<T>(
    writer: &mut Writer,
    handle: &SubscriptionHandle,
    mut attempt: impl FnMut(&mut Writer) -> std::io::Result<T>,
) -> Result<T, ()> {
    let mut pause = FIRST_PAUSE;
    let mut last = LAST_ATTEMPTS;
    loop {
        match attempt(writer) {
            Ok(value) => {
                writer.log.failing.lock().take();
                return Ok(value);
            }
            Err(e) => *writer.log.failing.lock() = Some(e.to_string()),
        }
        if handle.end().is_some() {
            last -= 1;
            if last == 0 {
                return Err(());
            }
        }
        thread::park_timeout(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
        let _ = writer.save_cursors();
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
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
        let end = self.log.watermark();
        let info = |file: &Arc<CursorFile>| CursorInfo {
            name: file.name.clone(),
            position: Offset::new(file.position()),
            lag: Lag { messages: end.saturating_sub(file.position()), time: Duration::ZERO },
            in_use: file.in_use.load(Ordering::Acquire),
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
