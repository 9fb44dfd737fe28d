//! Reading from the journal in the place of what memory didn't keep.
//!
//! A subscription that spills drops the newest at its high-water mark, as one with `DropNewest` does. What was dropped is a gap with
//! exact ends in its stream. When it comes to that gap it reads the messages between these ends from the journal instead, and
//! goes on in memory behind it; so lanes and publishers know nothing of the journal.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use super::filter::Filter;
use super::log::{Log, Passed};
use super::reader::{Reader, Step};
use crate::member::{Item, Member, Taken};
use crate::message::{EventId, Gap, Offset, Received};
use crate::options::BatchLimit;
use crate::publish::Shared;

/// What a subscription reads from the journal.
#[derive(Debug)]
pub(crate) struct Spill {
    log: Arc<Log>,
    reader: Reader,
    /// What is to be read, in order; before anything that memory has.
    ranges: VecDeque<Range>,
    filter: Filter,
    /// The state of the subscription's prefixes that the filter is of.
    changes: Option<u64>,
    waiting: Option<Passed>,
}

/// Offsets to be read.
#[derive(Clone, Copy, Debug)]
struct Range {
    first: u64,
    last: u64,
    /// How many messages there matched when they were published; `None` where nobody counted.
    left: Option<u64>,
    /// The state of the prefixes then.
    changes: u64,
    /// Reading goes on when the watermark is above it.
    wait_for: u64,
}

/// What came of reading.
pub(crate) enum Filled {
    /// Something was taken.
    Some,
    /// Nothing is to be read any more.
    Done,
    /// What is to be read isn't written yet.
    Waiting,
}

impl Spill {
    pub(crate) fn new(log: Arc<Log>) -> Box<Self> {
        Box::new(Spill {
            reader: Reader::new(Arc::clone(&log), 0),
            log,
            ranges: VecDeque::new(),
            filter: Filter::default(),
            changes: None,
            waiting: None,
        })
    }

    /// Has everything from `first` to `last` read that matches. It was never in memory.
    pub(crate) fn read_past(&mut self, first: u64, last: u64) {
        if first <= last {
            self.ranges.push_back(Range { first, last, left: None, changes: 0, wait_for: first });
        }
    }

    /// Has a range read that was taken from memory already, before anything else.
    pub(crate) fn read_again(&mut self, first: u64, last: u64) {
        self.ranges.push_front(Range { first, last, left: None, changes: 0, wait_for: first });
    }

    /// Has read what memory has dropped.
    pub(crate) fn read_gap(&mut self, gap: Gap, member: &Member) {
        let changes = member.changes.load(Ordering::Relaxed);
        let (first, last) = (gap.first.get(), gap.last.get());
        self.ranges.push_back(Range { first, last, left: Some(gap.count), changes, wait_for: first });
    }

    /// Whether something is to be read.
    pub(crate) fn is_pending(&self) -> bool {
        !self.ranges.is_empty()
    }

    /// The offset that is read next, where something is to be read.
    pub(crate) fn next(&self) -> Option<u64> {
        self.ranges.front().map(|range| range.first)
    }

    /// Whether reading would get further now.
    pub(crate) fn can_read(&self) -> bool {
        self.ranges.front().is_some_and(|range| self.log.watermark() > range.wait_for || self.log.has_ended())
    }

    /// Waits until it would.
    pub(crate) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(range) = self.ranges.front() else { return Poll::Ready(()) };
        let waiting = self.waiting.get_or_insert_with(|| self.log.passed(range.wait_for));
        let poll = std::pin::Pin::new(waiting).poll(cx);
        if poll.is_ready() {
            self.waiting = None;
        }
        poll.map(|_| ())
    }

    /// Takes what there is within `limit`.
    pub(crate) fn fill(
        &mut self,
        limit: BatchLimit,
        taken: &mut Taken,
        shared: &Shared,
        member: &Arc<Member>,
    ) -> Filled {
        self.waiting = None;
        while let Some(range) = self.ranges.front().copied() {
            self.follow_prefixes(shared, member);
            let ended = self.log.has_ended();
            let until = self.log.watermark().min(range.last + 1);
            self.reader.seek(range.first);
            let (delivered, dropped) = self.read(until, limit, taken);
            let mut counts = (delivered, dropped, 0);
            let next = self.reader.next_offset();
            if next > range.last {
                counts.2 = self.finish(taken, member);
            } else if ended && next >= until {
                // The rest was never written, and won't be.
                counts.1 += self.tell_rest(taken);
            } else if let Some(range) = self.ranges.front_mut() {
                range.first = next.max(range.first);
                range.wait_for = range.wait_for.max(range.first);
            }
            count(member, range.left.is_some(), counts);
            if !taken.items.is_empty() {
                return Filled::Some;
            }
            if self.is_pending() && !self.can_read() {
                return Filled::Waiting;
            }
        }
        Filled::Done
    }

    /// Reads up to `until`. Returns how many messages were taken, and how many are told as missing.
    fn read(&mut self, until: u64, limit: BatchLimit, taken: &mut Taken) -> (u64, u64) {
        let Some(range) = self.ranges.front_mut() else { return (0, 0) };
        let (mut delivered, mut dropped, mut bytes) = (0, 0, 0);
        while taken.len < limit.messages.max(1) && bytes < limit.bytes.max(1) {
            match self.reader.read(until) {
                Step::End => break,
                Step::Message(message) => {
                    let matched = self.filter.matches(message.keys());
                    if matched == 0 {
                        continue;
                    }
                    delivered += 1;
                    bytes += message.counted_bytes();
                    range.left = range.left.map(|left| left.saturating_sub(1));
                    taken.push(Item::Stored(taken.stored.len()));
                    taken.stored.push(Received {
                        id: EventId { log: self.log.id, offset: Offset::new(message.offset) },
                        time: message.time,
                        tag: message.tag,
                        matched,
                        keys: message.copy_keys(),
                        payload: message.copy_payload(),
                        origin: message.copy_origin(),
                    });
                }
                Step::Gap(gap) => {
                    let last = gap.last.min(Offset::new(range.last));
                    let mut count = gap.count;
                    if let Some(left) = &mut range.left {
                        if self.log.watermark() <= range.last && !self.log.has_ended() {
                            // How many of the messages it is that are missing shows when all that is behind it is written.
                            range.wait_for = range.last;
                            self.reader.seek(gap.first.get());
                            break;
                        }
                        let behind = self.filter.count(&self.log, last.get() + 1, range.last + 1);
                        count = left.saturating_sub(behind);
                        *left -= count;
                    }
                    dropped += count;
                    // Where nothing there has matched, nothing is missing.
                    if count > 0 {
                        taken.push(Item::Gap(Gap { last, count, ..gap }));
                    }
                }
            }
        }
        (delivered, dropped)
    }

    /// The range was read. Returns how many of its messages no longer match.
    fn finish(&mut self, taken: &mut Taken, member: &Member) -> u64 {
        let Some(range) = self.ranges.pop_front() else { return 0 };
        let left = range.left.unwrap_or(0);
        if left > 0 && range.changes == member.changes.load(Ordering::Relaxed) {
            // Fewer were there than were published, and no gap told so.
            let last = Offset::new(range.last);
            taken.push(Item::Gap(Gap { first: last, last, count: left }));
        }
        left
    }

    /// Tells all of the range that wasn't read as missing; how many that are. Where nobody counted, nothing is known to be.
    fn tell_rest(&mut self, taken: &mut Taken) -> u64 {
        let Some(range) = self.ranges.pop_front() else { return 0 };
        let first = self.reader.next_offset().clamp(range.first, range.last);
        let count = range.left.unwrap_or(0);
        if count > 0 {
            taken.push(Item::Gap(Gap { first: Offset::new(first), last: Offset::new(range.last), count }));
        }
        count
    }

    /// Brings the filter up to the prefixes that the subscription has now.
    fn follow_prefixes(&mut self, shared: &Shared, member: &Arc<Member>) {
        let changes = member.changes.load(Ordering::Acquire);
        if self.changes != Some(changes) {
            self.changes = Some(changes);
            self.filter = Filter::new(shared.prefixes_of(member.id, usize::MAX));
        }
    }
}

/// Accounts for messages that were delivered, told as missing, or matched no longer.
fn count(member: &Member, counted: bool, (delivered, dropped, unmatched): (u64, u64, u64)) {
    let mut cursor = member.cursor.lock();
    cursor.delivered += delivered;
    cursor.dropped += dropped;
    if counted {
        cursor.spilled = cursor.spilled.saturating_sub(delivered + dropped + unmatched);
    }
}
