//! A lane: the queue of one or more subscriptions that have the same prefixes and read from the same place on.
//!
//! A lane doesn't hold messages, it numbers them: the n-th message put into it has the *sequence* n. An [`Entry`] says that from
//! its sequence on, the messages are the records that follow one another in one block from one position on: a *run*. A
//! run stores no length. It reaches to the next entry, or to `tail`, so that the usual delivery, of a message whose record
//! stands right behind the lane's last one, is a single `tail.store(Release)` however many subscriptions read the lane.
//!
//! What a reader takes it accounts for in bytes, without looking at each record: an entry says how many bytes were put in before it, and
//! [`Ends`] how many by the last message, and where its record ends ([`Reached`]).
//!
//! Readers load `tail` (Acquire) first and then `newest`, the sequence at which the newest entry starts. Whatever lies before
//! the loaded tail was put there before it, with its entries. So if `newest` is still the start of the run that the reader is in, the
//! run reaches to the loaded tail; if not, the reader looks the entries up, under their lock.
//!
//! Entries are dropped when all who have to read them have passed. A subscription that stops reading would hold them
//! back for all, therefore it is moved to a lane of its own when it overflows (see `publish/`). So a lane that is
//! shared never has a member that is dropping.

#![allow(unsafe_code)] // What publishers own is behind the publish lock instead of a lock of its own.

use std::cell::UnsafeCell;
use std::collections::VecDeque;
use std::sync::Arc;

use crossbeam_utils::CachePadded;

use crate::block::BlockPtr;
use crate::member::Member;
use crate::message::Offset;
use crate::publish::OwnBlock;
use crate::sync::{AtomicU64, AtomicUsize, Mutex, Ordering, fence};

/// A value that only the holder of the publish lock touches.
pub(crate) struct Published<T>(UnsafeCell<T>);

// SAFETY: all access is through `get`, whose callers hold the publish lock, so it is like a mutex around the value.
unsafe impl<T: Send> Sync for Published<T> {}

impl<T> Published<T> {
    pub(crate) fn new(value: T) -> Self {
        Published(UnsafeCell::new(value))
    }

    /// The value.
    ///
    /// # Safety
    /// The caller holds the publish lock of the broker that the value belongs to, and no other reference from this cell.
    #[expect(clippy::mut_from_ref, reason = "the publish lock makes it exclusive")]
    pub(crate) unsafe fn get(&self) -> &mut T {
        // SAFETY: the caller's promise.
        unsafe { &mut *self.0.get() }
    }
}

/// From sequence `seq` on, the messages are the records from `at` on in `block`, and `mask` says which of their keys matched.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) seq: u64,
    pub(crate) block: BlockPtr,
    pub(crate) at: u32,
    /// Bit i for key i; [`ALL_KEYS`] where all of them matched.
    pub(crate) mask: u32,
    /// Keys and payloads of the messages before it, on the lane's count of bytes.
    pub(crate) bytes: u64,
    /// How many members still have to pass it.
    left: u32,
}

/// A record that was written: where it begins and ends in the block of that serial number.
#[derive(Clone, Copy)]
pub(crate) struct Written {
    pub(crate) block: BlockPtr,
    pub(crate) serial: u64,
    pub(crate) at: u32,
    pub(crate) end: u32,
}

/// All keys of a message, whatever their number, so that messages with one key and with two can share a run.
pub(crate) const ALL_KEYS: u32 = u32::MAX;

#[derive(Default)]
pub(crate) struct Entries {
    queue: VecDeque<Entry>,
    /// The index of the front of `queue`, counted over the lane's life.
    base: u64,
}

impl Entries {
    /// The index that the next entry will get.
    pub(crate) fn end(&self) -> u64 {
        self.base + self.queue.len() as u64
    }

    fn get(&self, index: u64) -> Option<&Entry> {
        self.queue.get(usize::try_from(index.checked_sub(self.base)?).ok()?)
    }

    /// Passes the entries that end at or before `seq`, for the member that has to read `*index` next. Returns the entry
    /// that it is in then, and the next one, if there is one.
    pub(crate) fn advance(&mut self, index: &mut u64, seq: u64) -> Option<(Entry, Option<Entry>)> {
        let mut next = self.get(*index + 1).copied();
        while next.is_some_and(|next| next.seq <= seq) {
            self.pass(*index);
            *index += 1;
            next = self.get(*index + 1).copied();
        }
        let current = self.get(*index).copied();
        self.prune();
        Some((current?, next))
    }

    /// Passes all entries from `index` on.
    pub(crate) fn leave(&mut self, index: u64) {
        for index in index..self.end() {
            self.pass(index);
        }
        self.prune();
    }

    fn pass(&mut self, index: u64) {
        let at = index.checked_sub(self.base).and_then(|at| usize::try_from(at).ok());
        if let Some(entry) = at.and_then(|at| self.queue.get_mut(at)) {
            entry.left -= 1;
        }
    }

    fn prune(&mut self) {
        while self.queue.front().is_some_and(|e| e.left == 0) {
            self.queue.pop_front();
            self.base += 1;
        }
        if self.queue.capacity() > 1024 && self.queue.len() < self.queue.capacity() / 8 {
            self.queue.shrink_to(self.queue.len() * 2);
        }
    }

    /// The entries from `index` on, for a lane with one member.
    pub(crate) fn tail_for_one(&self, index: u64) -> Entries {
        let skip = usize::try_from(index.saturating_sub(self.base)).unwrap_or(usize::MAX);
        let queue = self.queue.iter().skip(skip).map(|e| Entry { left: 1, ..*e }).collect();
        Entries { queue, base: index }
    }

    pub(crate) fn newest_seq(&self) -> Option<u64> {
        self.queue.back().map(|e| e.seq)
    }
}

/// What publishers keep about a lane.
pub(crate) struct Feed {
    /// The subscriptions that read it.
    pub(crate) members: Vec<Arc<Member>>,
    /// How many of them take messages: all, or none where the only one is dropping or has ended.
    pub(crate) active: u32,
    /// The lowest sequence, and the lowest count of bytes, at which any member would be over its high-water mark, as far as
    /// known; readers move on meanwhile, so beyond it one has to look.
    pub(crate) limit: u64,
    pub(crate) limit_bytes: u64,
    /// Keys and payloads ever put in, in bytes.
    pub(crate) bytes: u64,
    /// The offset of the last message put in or dropped.
    pub(crate) last: Offset,
    /// The run that may go on: the serial number of its block, where its last record ends, and its mask. Serial 0 is none.
    pub(crate) run_serial: u64,
    pub(crate) run_end: u32,
    pub(crate) run_mask: u32,
    /// Whether it takes its messages from the open block or as records of their own, as was decided when the window of that
    /// number began for it; and where `tail` and `bytes` stood then.
    pub(crate) dense: bool,
    pub(crate) window: u64,
    pub(crate) window_tail: u64,
    pub(crate) window_bytes: u64,
    /// The block of its own that it is given, where it is a sparse one that is behind.
    pub(crate) own: Option<OwnBlock>,
    /// How many entries there were when the last was added.
    pub(crate) entries: usize,
    /// The batch of publishes in which it was last touched.
    pub(crate) touched: u64,
    /// Whether its prefixes match every message.
    pub(crate) match_all: bool,
}

/// What publishers write and readers read, what publishers keep to themselves, and what readers write, on lines of their own
/// (pairs of them, as processors fetch them): else each look of a reader costs the publisher more than one line.
#[repr(C)]
pub(crate) struct Lane {
    pub(crate) ends: CachePadded<Ends>,
    pub(crate) feed: CachePadded<Published<Feed>>,
    pub(crate) readers: CachePadded<Readers>,
}

/// How far publishers are.
pub(crate) struct Ends {
    /// Messages ever put in or dropped: the sequence of the next one. Written under the publish lock.
    pub(crate) tail: AtomicU64,
    /// The sequence of the newest entry; written before `tail`.
    pub(crate) newest: AtomicU64,
    /// What the last message put in has reached; written before `tail`. `reached_seq` is written first, so that who finds it there after reading the
    /// others knows that they belong to it (a seqlock).
    reached_seq: AtomicU64,
    reached_bytes: AtomicU64,
    reached_at: AtomicU64,
}

/// Where a message that was put in has left its lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reached {
    /// Keys and payloads put in until then, on the lane's count of bytes.
    pub(crate) bytes: u64,
    /// Where its record ends.
    pub(crate) at: u32,
}

impl Ends {
    fn new(tail: u64, newest: u64) -> Self {
        Ends {
            tail: AtomicU64::new(tail),
            newest: AtomicU64::new(newest),
            reached_seq: AtomicU64::new(NOTHING_REACHED),
            reached_bytes: AtomicU64::new(0),
            reached_at: AtomicU64::new(0),
        }
    }

    /// Puts in the message of sequence `seq`.
    fn reach(&self, seq: u64, reached: Reached) {
        self.reached_seq.store(seq + 1, Ordering::Relaxed);
        // Who reads one of the next two, and then fences, sees the one before.
        fence(Ordering::Release);
        self.reached_bytes.store(reached.bytes, Ordering::Relaxed);
        self.reached_at.store(u64::from(reached.at), Ordering::Relaxed);
        self.tail.store(seq + 1, Ordering::Release);
    }

    /// What the message before sequence `tail` has reached, where that was the last one put in and no other is being put in. The caller has loaded `tail`
    /// (Acquire), and so sees nothing older.
    pub(crate) fn reached(&self, tail: u64) -> Option<Reached> {
        let bytes = self.reached_bytes.load(Ordering::Relaxed);
        let at = self.reached_at.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        (self.reached_seq.load(Ordering::Relaxed) == tail).then_some(Reached { bytes, at: at as u32 }) // it came from one
    }
}

/// What readers of a lane share.
pub(crate) struct Readers {
    /// How many members are in `sleeping`.
    pub(crate) sleepers: AtomicUsize,
    pub(crate) entries: Mutex<Entries>,
    /// Members that wait to be woken by the next message.
    pub(crate) sleeping: Mutex<Vec<Arc<Member>>>,
}

/// The sequence in `newest` where there is no entry yet.
const NO_ENTRY: u64 = u64::MAX;

/// The sequence in `reached_seq` before the first message.
const NOTHING_REACHED: u64 = u64::MAX;

impl Lane {
    pub(crate) fn new(match_all: bool) -> Self {
        Lane::going_on(match_all, 0, 0, Offset::new(0), Entries::default())
    }

    /// A lane that goes on where another one stands, with the entries that its one member still has to read.
    pub(crate) fn going_on(match_all: bool, tail: u64, bytes: u64, last: Offset, entries: Entries) -> Self {
        let newest = entries.newest_seq().unwrap_or(NO_ENTRY);
        Lane {
            ends: CachePadded::new(Ends::new(tail, newest)),
            feed: CachePadded::new(Published::new(Feed {
                members: Vec::new(),
                active: 0,
                limit: 0,
                limit_bytes: 0,
                bytes,
                last,
                run_serial: 0,
                run_end: 0,
                run_mask: 0,
                dense: match_all,
                window: 0,
                window_tail: tail,
                window_bytes: bytes,
                own: None,
                entries: 0,
                touched: 0,
                match_all,
            })),
            readers: CachePadded::new(Readers {
                sleepers: AtomicUsize::new(0),
                entries: Mutex::new(entries),
                sleeping: Mutex::new(Vec::new()),
            }),
        }
    }

    /// Puts in one message, with `size` bytes of keys and payload.
    pub(crate) fn push(&self, feed: &mut Feed, written: Written, mask: u32, size: u64) {
        let Written { block, serial, at, end } = written;
        let seq = self.ends.tail.load(Ordering::Relaxed);
        if feed.run_serial != serial || feed.run_end != at || feed.run_mask != mask {
            let mut entries = self.readers.entries.lock();
            entries.queue.push_back(Entry { seq, block, at, mask, bytes: feed.bytes, left: feed.active });
            feed.entries = entries.queue.len();
            drop(entries);
            self.ends.newest.store(seq, Ordering::Release);
            feed.run_serial = serial;
            feed.run_mask = mask;
        }
        feed.run_end = end;
        feed.bytes += size;
        self.ends.reach(seq, Reached { bytes: feed.bytes, at: end });
    }

    /// Counts one message that its members don't take.
    pub(crate) fn pass_over(&self, feed: &mut Feed) {
        feed.run_serial = 0; // sequences go on without records, so the run can't
        self.ends.tail.store(self.ends.tail.load(Ordering::Relaxed) + 1, Ordering::Release);
    }

    /// Takes the members that wait to be woken.
    pub(crate) fn take_sleepers(&self) -> Vec<Arc<Member>> {
        let mut sleeping = self.readers.sleeping.lock();
        self.readers.sleepers.store(0, Ordering::Relaxed);
        let members = std::mem::take(&mut *sleeping);
        for member in &members {
            member.listed.store(false, Ordering::Relaxed);
        }
        members
    }
}
