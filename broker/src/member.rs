//! One subscription inside the broker: how far it has read, what was dropped for it, and how it is woken.
//!
//! Its reader moves the [`Cursor`] under a lock of its own, once for each batch; publishers take that lock only where the
//! subscription is at its high-water mark. What was dropped is a [`Hole`] in the lane's sequence: the cursor reads up to it,
//! tells the gap, and goes on behind it. A subscription that drops the newest makes no hole for each message: while it is
//! *dropping*, the hole is open, its lane only counts, and the reader closes it as soon as it has made room.

#![allow(unsafe_code)] // The count of bytes of a lane is behind the publish lock.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::task::Waker;

use crate::block::{BlockPtr, Record};
use crate::error::EndReason;
use crate::group::Group;
use crate::lane::{Lane, Published, Reached};
use crate::message::{Gap, Offset};
use crate::options::{BatchLimit, Overflow, SubscribeOptions};
use crate::publish::Waiter;
use crate::sync::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Mutex, Ordering};

/// Sequences `at..resume` of the lane were dropped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hole {
    pub(crate) at: u64,
    pub(crate) resume: u64,
    pub(crate) gap: Gap,
}

/// A hole that goes on growing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dropping {
    pub(crate) at: u64,
    pub(crate) first: Offset,
}

/// What is done for a member that is full, where its publisher doesn't wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    DropNewest,
    DropOldest,
    Disconnect,
    /// The new message is dropped, and no other.
    TurnAway,
}

/// The run that the reader is in.
#[derive(Clone, Copy, Debug)]
struct Run {
    block: BlockPtr,
    /// Where the next record is.
    at: u32,
    mask: u32,
    /// The sequence at which its entry starts, and one up to which it is known to reach.
    start: u64,
    end: u64,
    /// Where `end` is on the lane's count of bytes, if another run begins there.
    end_bytes: Option<u64>,
}

impl Run {
    /// Passes records, up to `most` and to the one that reaches `most_bytes`. Returns how many those were, and their keys and payloads in bytes.
    fn walk(&mut self, most: u64, most_bytes: u64) -> (u64, u64) {
        let (mut count, mut bytes) = (0, 0);
        while count < most && bytes < most_bytes {
            let mut record = Record { block: self.block, at: self.at };
            // Most records are as long as the one before; see `Deliveries::fold`.
            let size = record.size();
            loop {
                bytes += record.counted_bytes();
                record.at += size;
                count += 1;
                if count == most || bytes >= most_bytes || record.size() != size {
                    break;
                }
            }
            self.at = record.at;
        }
        (count, bytes)
    }
}

/// How far a subscription has read.
pub(crate) struct Cursor {
    pub(crate) lane: Arc<Lane>,
    /// The sequence of the next message to take.
    pub(crate) seq: u64,
    /// What has been taken or dropped, on the lane's count of bytes.
    pub(crate) bytes: u64,
    /// The index of the entry to read next.
    pub(crate) entry: u64,
    run: Option<Run>,
    /// What was dropped at the old end; told before anything else.
    pub(crate) head_gap: Option<Gap>,
    pub(crate) holes: VecDeque<Hole>,
    pub(crate) dropping: Option<Dropping>,
    /// Sequences in `holes`: neither queued nor taken.
    pub(crate) skipped: u64,
    pub(crate) delivered: u64,
    /// Dropped, without the open hole.
    pub(crate) dropped: u64,
    /// The high-water mark in bytes. As in the options, but the journal's is known only when it comes.
    pub(crate) hwm_bytes: u64,
    /// Whether what is dropped can be read from the journal. Then it counts as queued until it was.
    pub(crate) spills: bool,
    /// Messages that are to be read from the journal, without the open hole.
    pub(crate) spilled: u64,
    /// Whether who comes next under its name gets what it has not read: then nothing of it is abandoned.
    pub(crate) kept: bool,
    /// Publishers that wait for room.
    pub(crate) waiters: Vec<Weak<Waiter>>,
}

pub(crate) struct Member {
    pub(crate) id: u64,
    pub(crate) options: SubscribeOptions,
    pub(crate) cursor: Mutex<Cursor>,
    /// The sequence and the count of bytes in its lane at which it is full, as its reader last said; a hint for publishers.
    pub(crate) limit: AtomicU64,
    pub(crate) limit_bytes: AtomicU64,
    pub(crate) prefixes: AtomicUsize,
    /// Counts the changes of its prefixes.
    pub(crate) changes: AtomicU64,
    /// What is published from this offset on is for it.
    #[cfg_attr(not(feature = "journal"), expect(dead_code, reason = "what is older comes from the journal"))]
    pub(crate) joined: u64,
    /// Where its prefixes are; `None` while it has none.
    pub(crate) group: Published<Option<Arc<Group>>>,
    /// Whether it has a lane of its own though others have the same prefixes, until it has read all.
    pub(crate) apart: AtomicBool,
    ended: AtomicU8,
    pub(crate) waker: Mutex<Option<Waker>>,
    /// Whether it stands in its lane's list of sleepers.
    pub(crate) listed: AtomicBool,
}

impl Member {
    pub(crate) fn new(id: u64, options: SubscribeOptions, lane: Arc<Lane>, joined: u64) -> Self {
        let cursor = Cursor {
            lane,
            seq: 0,
            bytes: 0,
            entry: 0,
            run: None,
            head_gap: None,
            holes: VecDeque::new(),
            dropping: None,
            skipped: 0,
            delivered: 0,
            dropped: 0,
            hwm_bytes: options.hwm_bytes as u64,
            spills: false,
            spilled: 0,
            kept: false,
            waiters: Vec::new(),
        };
        let member = Member {
            id,
            options,
            limit: AtomicU64::new(0),
            limit_bytes: AtomicU64::new(0),
            cursor: Mutex::new(cursor),
            prefixes: AtomicUsize::new(0),
            changes: AtomicU64::new(0),
            joined,
            group: Published::new(None),
            apart: AtomicBool::new(false),
            ended: AtomicU8::new(0),
            waker: Mutex::new(None),
            listed: AtomicBool::new(false),
        };
        member.tell_limits(&member.cursor.lock());
        member
    }

    pub(crate) fn end_reason(&self) -> Option<EndReason> {
        match self.ended.load(Ordering::Acquire) {
            0 => None,
            1 => Some(EndReason::BrokerClosed),
            2 => Some(EndReason::Closed),
            _ => Some(EndReason::Overflowed),
        }
    }

    /// Marks it as ended; the caller holds the publish lock, and nothing is put into its lane any more.
    pub(crate) fn set_end(&self, reason: EndReason) {
        let code = match reason {
            EndReason::BrokerClosed => 1,
            EndReason::Closed => 2,
            EndReason::Overflowed => 3,
        };
        self.ended.store(code, Ordering::Release);
    }

    /// Tells publishers where it will be full.
    pub(crate) fn tell_limits(&self, cursor: &Cursor) {
        let (hwm, hwm_bytes) = (self.options.hwm as u64, cursor.hwm_bytes);
        let limit = if hwm == 0 { u64::MAX } else { cursor.seq.saturating_add(cursor.skipped).saturating_add(hwm) };
        let limit_bytes = if hwm_bytes == 0 { u64::MAX } else { cursor.bytes.saturating_add(hwm_bytes) };
        self.limit.store(limit, Ordering::Relaxed);
        self.limit_bytes.store(limit_bytes, Ordering::Relaxed);
    }

    /// Whether a message of `size` bytes would be over its high-water mark; `lane_bytes` is its lane's count.
    pub(crate) fn is_full(&self, cursor: &Cursor, lane_bytes: u64, size: u64) -> bool {
        let (hwm, hwm_bytes) = (self.options.hwm as u64, cursor.hwm_bytes);
        let queued = cursor.queued();
        queued > 0 && (hwm != 0 && queued >= hwm || hwm_bytes != 0 && lane_bytes - cursor.bytes + size > hwm_bytes)
    }

    pub(crate) fn blocks(&self) -> bool {
        self.options.overflow == Overflow::Block
    }
}

/// What a reader has taken and not finished with.
#[derive(Default)]
pub(crate) struct Taken {
    pub(crate) items: Vec<Item>,
    /// How many messages and gaps they are.
    pub(crate) len: usize,
    /// Deliveries to give back when the items are done with.
    pub(crate) pins: Vec<(BlockPtr, u64)>,
    /// Messages that were read from the journal.
    #[cfg(feature = "journal")]
    pub(crate) stored: Vec<crate::message::Received>,
    bytes: usize,
}

#[derive(Clone, Copy)]
pub(crate) enum Item {
    /// So many messages, at least one, whose records follow one another from this one on, and which of their keys matched.
    Run(Record, u32, u32),
    /// The message of that index in [`Taken::stored`].
    #[cfg(feature = "journal")]
    Stored(usize),
    Gap(Gap),
}

impl Taken {
    /// Adds a message that was read from the journal, or a gap.
    pub(crate) fn push(&mut self, item: Item) {
        self.len += 1;
        self.items.push(item);
    }

    fn pin(&mut self, block: BlockPtr, count: u64) {
        match self.pins.last_mut() {
            Some((last, pinned)) if *last == block => *pinned += count,
            _ => self.pins.push((block, count)),
        }
    }

    /// Empties it, for the next batch; its memory is kept. The pins must have been given back.
    pub(crate) fn clear(&mut self) {
        self.items.clear();
        self.len = 0;
        #[cfg(feature = "journal")]
        self.stored.clear();
        self.bytes = 0;
    }
}

impl Cursor {
    /// The sequence at which what is queued ends.
    fn end(&self) -> u64 {
        self.dropping.map_or_else(|| self.lane.ends.tail.load(Ordering::Acquire), |d| d.at)
    }

    /// Messages that wait to be taken.
    pub(crate) fn queued(&self) -> u64 {
        self.end() - self.seq - self.skipped
    }

    /// Their keys and payloads, in bytes. The caller holds the publish lock.
    pub(crate) fn queued_bytes(&self) -> u64 {
        // SAFETY: the caller holds the publish lock, and no other feed.
        unsafe { self.lane.feed.get() }.bytes - self.bytes
    }

    /// Tells of one message that matched and is not put into the lane. The caller holds the publish lock.
    pub(crate) fn tell_one(&mut self, offset: Offset) {
        self.count_dropped(1);
        let at = self.lane.ends.tail.load(Ordering::Relaxed);
        match self.holes.back_mut() {
            Some(hole) if hole.resume == at => {
                hole.gap.last = offset;
                hole.gap.count += 1;
            }
            _ => self.holes.push_back(Hole { at, resume: at, gap: Gap { first: offset, last: offset, count: 1 } }),
        }
    }

    /// What is done when it is full.
    pub(crate) fn policy(&self, options: &SubscribeOptions) -> Policy {
        match options.overflow {
            _ if options.journal => Policy::TurnAway,
            Overflow::DropNewest => Policy::DropNewest,
            #[cfg(feature = "journal")]
            Overflow::Spill | Overflow::Block if self.spills => Policy::DropNewest,
            Overflow::DropOldest | Overflow::Block => Policy::DropOldest,
            #[cfg(feature = "journal")]
            Overflow::Spill => Policy::DropOldest,
            Overflow::Disconnect => Policy::Disconnect,
        }
    }

    /// Counts messages that memory has dropped.
    pub(crate) fn count_dropped(&mut self, count: u64) {
        if self.spills {
            self.spilled += count;
        } else {
            self.dropped += count;
        }
    }

    /// Messages that are to be read from the journal, the open hole included.
    pub(crate) fn spilled_now(&self) -> u64 {
        self.spilled + if self.spills { self.open_hole() } else { 0 }
    }

    fn open_hole(&self) -> u64 {
        self.dropping.map_or(0, |d| self.lane.ends.tail.load(Ordering::Relaxed) - d.at)
    }

    /// Whether a take would yield something, or has a hole to close first.
    pub(crate) fn has_any(&self) -> bool {
        self.head_gap.is_some() || !self.holes.is_empty() || self.dropping.is_some() || self.end() > self.seq
    }

    /// Dropped by now, the open hole included.
    pub(crate) fn dropped_now(&self) -> u64 {
        self.dropped + if self.spills { 0 } else { self.open_hole() }
    }

    /// Takes messages and gaps in order until a limit is reached or nothing is left.
    pub(crate) fn take(&mut self, limit: BatchLimit, out: &mut Taken) {
        let tail = self.end();
        if let Some(gap) = self.head_gap.take() {
            out.push(Item::Gap(gap));
            if self.spills {
                return; // what is missing is read before anything else
            }
        }
        while out.len < limit.messages.max(1) && out.bytes < limit.bytes.max(1) {
            let end = self.holes.front().map_or(tail, |hole| hole.at);
            if self.seq == end {
                let Some(hole) = self.holes.pop_front() else { break };
                out.push(Item::Gap(hole.gap));
                self.pass_hole(hole);
                if self.spills {
                    return;
                }
                continue;
            }
            self.take_run(end, limit, out);
        }
    }

    fn pass_hole(&mut self, hole: Hole) {
        self.skipped -= hole.resume - hole.at;
        self.seq = hole.resume;
        // An entry starts where reading goes on behind a hole.
        self.run = if hole.resume == hole.at { self.run } else { None };
    }

    /// Takes from one run, up to `end`.
    fn take_run(&mut self, end: u64, limit: BatchLimit, out: &mut Taken) {
        let (mut run, reach) = self.run_to(end);
        let room = (limit.messages.max(1) - out.len) as u64;
        // A run is in one block, so its length fits in 32 bits.
        let stop = reach.min(self.seq.saturating_add(room));
        let first = Record { block: run.block, at: run.at };
        let most = stop - self.seq;
        let most_bytes = (limit.bytes.max(1) - out.bytes) as u64;
        let rest = if stop == reach { self.rest(&run, reach) } else { None };
        let (count, bytes) = match rest.map(|rest| (rest, rest.bytes - self.bytes)) {
            Some((rest, bytes)) if bytes <= most_bytes => {
                if cfg!(any(debug_assertions, hookbus_loom)) {
                    let mut walked = run;
                    assert_eq!(walked.walk(most, u64::MAX), (most, bytes), "what was told of a run is what is in it");
                    assert!(run.end_bytes.is_some() || walked.at == rest.at, "as is where it ends");
                }
                run.at = rest.at;
                (most, bytes)
            }
            _ => run.walk(most, most_bytes),
        };
        out.items.push(Item::Run(first, run.mask, count as u32));
        out.len += count as usize;
        out.bytes += bytes as usize;
        self.bytes += bytes;
        out.pin(run.block, count);
        self.delivered += count;
        self.seq += count;
        self.run = Some(run);
    }

    /// Where a run has got to at `reach`, unless that can be found out by going through its records only.
    fn rest(&self, run: &Run, reach: u64) -> Option<Reached> {
        match run.end_bytes {
            // Where it ends doesn't matter: what comes next is in another run.
            Some(bytes) => (run.end == reach).then_some(Reached { bytes, at: run.at }),
            None => self.lane.ends.reached(reach),
        }
    }

    /// The run that the next message is in, and how far it may be read: to its end, or `end`.
    fn run_to(&mut self, end: u64) -> (Run, u64) {
        if let Some(mut run) = self.run {
            // `end` was loaded from `tail` before `newest` is loaded here; see the module of lanes.
            if run.end <= self.seq && self.lane.ends.newest.load(Ordering::Acquire) == run.start {
                (run.end, run.end_bytes) = (end, None);
            }
            if run.end > self.seq {
                return (run, run.end.min(end));
            }
        }
        let looked_up = self.lane.readers.entries.lock().advance(&mut self.entry, self.seq);
        let (entry, next) = looked_up.expect("a message that is queued has its entry");
        let (known, end_bytes) = next.map_or((end, None), |next| (next.seq, Some(next.bytes)));
        let at = match self.run {
            Some(run) if run.start == entry.seq => run.at,
            _ => {
                debug_assert_eq!(entry.seq, self.seq, "a run is entered at its start");
                entry.at
            }
        };
        let run = Run { block: entry.block, at, mask: entry.mask, start: entry.seq, end: known, end_bytes };
        (run, known.min(end))
    }

    /// Drops the oldest message; its delivery goes to `pins`. The caller holds the publish lock.
    pub(crate) fn drop_oldest(&mut self, pins: &mut Taken) {
        while self.holes.front().is_some_and(|hole| hole.at == self.seq) {
            let hole = self.holes.pop_front().expect("looked at just now");
            self.pass_hole(hole);
            self.join_head_gap(hole.gap);
        }
        let end = self.holes.front().map_or_else(|| self.end(), |hole| hole.at);
        debug_assert!(end > self.seq, "there is a message to drop");
        let (mut run, _) = self.run_to(end);
        let record = Record { block: run.block, at: run.at };
        let offset = record.offset();
        self.bytes += record.counted_bytes();
        run.at = record.next();
        self.seq += 1;
        self.run = Some(run);
        self.count_dropped(1);
        self.join_head_gap(Gap { first: offset, last: offset, count: 1 });
        pins.pin(run.block, 1);
    }

    fn join_head_gap(&mut self, gap: Gap) {
        let joined = match self.head_gap {
            Some(old) => Gap { first: old.first, last: gap.last, count: old.count + gap.count },
            None => gap,
        };
        self.head_gap = Some(joined);
    }

    /// Gives up all that is queued; its deliveries go to `pins`. Returns how many messages that were.
    pub(crate) fn abandon(&mut self, pins: &mut Taken) -> u64 {
        let tail = self.end();
        let mut abandoned = 0;
        loop {
            let end = self.holes.front().map_or(tail, |hole| hole.at);
            if self.seq == end {
                let Some(hole) = self.holes.pop_front() else { break };
                self.pass_hole(hole);
                continue;
            }
            let (run, reach) = self.run_to(end);
            pins.pin(run.block, reach - self.seq);
            abandoned += reach - self.seq;
            self.seq = reach;
        }
        self.lane.readers.entries.lock().leave(self.entry);
        abandoned
    }

    /// Goes over to another lane at its end; nothing is queued. The caller holds the publish lock.
    pub(crate) fn join(&mut self, lane: Arc<Lane>, bytes: u64) {
        self.seq = lane.ends.tail.load(Ordering::Relaxed);
        self.bytes = bytes;
        self.entry = lane.readers.entries.lock().end();
        self.run = None;
        self.lane = lane;
    }

    /// Takes the publishers that wait for room, where there is some.
    pub(crate) fn take_waiters(&mut self) -> Vec<Weak<Waiter>> {
        std::mem::take(&mut self.waiters)
    }
}
