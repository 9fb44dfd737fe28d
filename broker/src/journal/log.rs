//! What writer and readers of one journal share.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::thread::Thread;

use parking_lot::Mutex;

use super::cursor::CursorFile;
use super::error::JournalError;
use super::meta::RESERVE;
use super::open::{DirLock, SLACK};
use super::options::JournalOptions;
use super::reader::successor;
use super::segment::Segment;
use crate::message::LogId;

/// The log, shared.
#[derive(Debug)]
pub(crate) struct Log {
    pub(super) options: JournalOptions,
    pub(crate) id: LogId,
    pub(super) salt: u32,
    /// Held for as long as anybody may write below the directory.
    _lock: DirLock,
    pub(super) segments: Mutex<VecDeque<Arc<Segment>>>,
    /// Offsets below it are in the journal as durably as was asked for, as messages or as gaps.
    watermark: AtomicU64,
    /// Offsets that nobody has: jumps after a crash, as far as they are known. Ranges from the first to the one behind the last, in order.
    holes: Vec<(u64, u64)>,
    /// The offset behind the newest gap in the log.
    gap_end: AtomicU64,
    /// Offsets from here on may be given out once more after a crash.
    id_end: AtomicU64,
    waiting: Mutex<Waiting>,
    /// No more will be written.
    ended: AtomicBool,
    pub(super) cursors: Mutex<BTreeMap<String, Arc<CursorFile>>>,
    /// Whether a cursor has moved since they were saved.
    pub(super) cursors_moved: AtomicBool,
    /// The thread that writes.
    pub(super) thread: OnceLock<Thread>,
    pub(super) counters: Counters,
    /// Why reading failed last.
    pub(super) read_error: Mutex<Option<String>>,
    /// Why writing fails now.
    pub(super) failing: Mutex<Option<String>>,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) messages: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) gaps: AtomicU64,
    pub(super) damaged: AtomicU64,
    pub(super) damaged_bytes: AtomicU64,
}

/// Who waits for the watermark.
#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    list: BTreeMap<u64, (u64, Waker)>,
}

impl Log {
    pub(super) fn new(
        options: JournalOptions,
        (id, salt): (LogId, u32),
        lock: DirLock,
        segments: VecDeque<Arc<Segment>>,
        next: u64,
        holes: Vec<(u64, u64)>,
        cursors: BTreeMap<String, Arc<CursorFile>>,
    ) -> Self {
        Log {
            options,
            id,
            salt,
            _lock: lock,
            segments: Mutex::new(segments),
            watermark: AtomicU64::new(next),
            holes,
            gap_end: AtomicU64::new(0),
            id_end: AtomicU64::new(next + RESERVE + SLACK),
            waiting: Mutex::new(Waiting::default()),
            ended: AtomicBool::new(false),
            cursors: Mutex::new(cursors),
            cursors_moved: AtomicBool::new(false),
            thread: OnceLock::new(),
            counters: Counters::default(),
            read_error: Mutex::new(None),
            failing: Mutex::new(None),
        }
    }

    /// The offset below which everything is journaled.
    pub(crate) fn watermark(&self) -> u64 {
        self.watermark.load(Ordering::Acquire)
    }

    /// The offset behind the newest gap among what is below the watermark; loaded after it.
    pub(crate) fn gap_end(&self) -> u64 {
        self.gap_end.load(Ordering::Acquire)
    }

    /// The offset from which on ids can't be the journal's, because too many were given out while `meta` could not be written.
    pub(super) fn id_end(&self) -> u64 {
        self.id_end.load(Ordering::Relaxed)
    }

    pub(super) fn set_reserved(&self, reserved: u64) {
        self.id_end.store(reserved + SLACK, Ordering::Relaxed);
    }

    /// Tells of a gap that is about to be written; before the watermark passes it.
    pub(super) fn note_gap(&self, end: u64) {
        self.gap_end.fetch_max(end, Ordering::Release);
    }

    /// Moves the watermark, and wakes who waits for it.
    pub(super) fn advance(&self, next: u64) {
        self.watermark.fetch_max(next, Ordering::SeqCst);
        let mut waiting = self.waiting.lock();
        if waiting.list.is_empty() {
            return;
        }
        let passed = waiting.list.iter().filter(|(_, (offset, _))| *offset < next).map(|(&ticket, _)| ticket);
        let passed: Vec<u64> = passed.collect();
        let wake: Vec<Waker> = passed.iter().filter_map(|t| waiting.list.remove(t)).map(|(_, w)| w).collect();
        drop(waiting);
        wake.into_iter().for_each(Waker::wake);
    }

    /// Ends the log: nothing more will be written.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        let list = std::mem::take(&mut self.waiting.lock().list);
        list.into_values().for_each(|(_, waker)| waker.wake());
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// Waits until the watermark is above `offset`, or the log has ended.
    pub(crate) fn passed(self: &Arc<Self>, offset: u64) -> Passed {
        Passed { log: Arc::clone(self), offset, ticket: None }
    }

    /// The segment behind another one.
    pub(super) fn after(&self, segment: &Segment) -> Option<Arc<Segment>> {
        successor(&self.segments.lock(), segment)
    }

    /// The first offset that can be read, and the one behind the last.
    pub(super) fn range(&self) -> (u64, u64) {
        let end = self.watermark();
        (self.segments.lock().front().map_or(end, |s| s.first), end)
    }

    /// How many offsets there are from `from` up to `to`, without those that are known to be nobody's.
    pub(super) fn offsets_between(&self, from: u64, to: u64) -> u64 {
        let empty = self.holes.iter().map(|&(first, end)| end.min(to).saturating_sub(first.max(from)));
        to.saturating_sub(from).saturating_sub(empty.sum())
    }

    /// Notes damage that a reader came upon.
    pub(super) fn damaged(&self, bytes: u64) {
        self.counters.damaged.fetch_add(1, Ordering::Relaxed);
        self.counters.damaged_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Notes that the journal could not be read.
    pub(super) fn failed_to_read(&self, error: &std::io::Error) {
        self.counters.damaged.fetch_add(1, Ordering::Relaxed);
        *self.read_error.lock() = Some(error.to_string());
    }

    /// Has the writer save the cursors soon.
    pub(super) fn cursor_moved(&self) {
        if !self.cursors_moved.swap(true, Ordering::AcqRel) {
            self.wake_writer();
        }
    }

    pub(super) fn wake_writer(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    pub(super) fn segments_dir(&self) -> PathBuf {
        self.options.path.join("segments")
    }

    pub(super) fn cursors_dir(&self) -> PathBuf {
        self.options.path.join("cursors")
    }

    pub(super) fn io(&self, deed: &'static str) -> impl FnOnce(std::io::Error) -> JournalError + '_ {
        JournalError::io(deed, &self.options.path)
    }
}

/// Waits for the watermark; see [`Log::passed`].
#[derive(Debug)]
pub(crate) struct Passed {
    log: Arc<Log>,
    offset: u64,
    ticket: Option<u64>,
}

impl Future for Passed {
    /// Whether the offset was passed; otherwise the log has ended before it.
    type Output = bool;

    fn poll(mut self: std::pin::Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<bool> {
        let this = &mut *self;
        if this.log.watermark() > this.offset {
            return Poll::Ready(true);
        }
        let mut waiting = this.log.waiting.lock();
        // Looked at again with the list locked: whoever moves the watermark takes that lock afterwards.
        if this.log.watermark.load(Ordering::SeqCst) > this.offset {
            return Poll::Ready(true);
        }
        if this.log.has_ended() {
            return Poll::Ready(false);
        }
        let ticket = *this.ticket.get_or_insert_with(|| {
            waiting.next += 1;
            waiting.next
        });
        waiting.list.insert(ticket, (this.offset, cx.waker().clone()));
        Poll::Pending
    }
}

impl Drop for Passed {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.log.waiting.lock().list.remove(&ticket);
        }
    }
}
