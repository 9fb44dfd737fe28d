//! The fan-out: from a message to the queues of all subscriptions that match it.
//!
//! A publish, under one lock that gives messages their order:
//!
//! 1. finds the groups whose prefixes match, in the prefix tree (`tree.rs`, `group.rs`);
//! 2. looks at their lanes (`lane.rs`): does any reach a high-water mark, and which take the message from the open block,
//!    which as a record of its own;
//! 3. where a high-water mark is reached, applies the policies of the members that are full, all or none of them (`overflow.rs`,
//!    and `moves.rs` for those that get a lane of their own);
//! 4. writes the record once (`block.rs`) and puts it into each lane, mostly by moving the lane's `tail`;
//! 5. looks once for members that wait, and wakes them after the lock is released.
//!
//! So it costs what the *different sets of prefixes* that match cost, not what subscriptions cost: neither those that don't
//! match nor the number of those that read one lane.
//!
//! # Dense and sparse
//!
//! A block is held as long as anybody has to read one of its records. That is no waste for a lane that takes most of what
//! passes, but one that takes a message in a thousand, and stalls, would hold a thousand times what is queued for it. So each
//! lane is judged anew in each *window* (a block's worth of messages): if it took at least a quarter of the last window's
//! messages and bytes it is dense and gets the records of the open block, else it is sparse and gets blocks of one record,
//! shared by all sparse lanes that match. There, a payload that is a slice of something larger is copied: it would hold
//! all of that. (An ingress that cuts lines out of a read buffer publishes such slices; dense lanes share them uncopied.)
//! One that is behind, and alone in matching, gets small blocks of its own (`own.rs`).
//!
//! # Overflow
//!
//! A lane knows the lowest sequence at which any of its members would be full, so that the usual check is one comparison. Members
//! that drop the newest or the oldest are moved to a lane of their own first. A subscription that drops the newest costs
//! nothing more while it does: its lane counts, and its reader ends that as soon as it makes room.
//! With `block`, nothing is given to anybody before all blocking members have room; a publisher that waits is woken when
//! the last of those that were full has taken something.
//!
//! # Memory
//!
//! All blocks are accounted for (`Shared::held`). When a message would exceed [`BrokerOptions::max_bytes`], the member with
//! the most bytes queued overflows by its policy; one that drops the newest and holds what others need room for loses its
//! oldest messages, too. It is told of both.

#![allow(unsafe_code)] // What publishers own is behind the publish lock; see `lane::Published`.

mod moves;
mod overflow;
mod own;

use std::collections::{BTreeMap, VecDeque};
use std::ptr::NonNull;
use std::sync::{Arc, Weak};
use std::task::Waker;

use bytes::Bytes;
use crossbeam_utils::CachePadded;
use smallvec::SmallVec;

use crate::block::{BlockPtr, HEADER_BYTES, INLINE_BYTES, Place, record_size};
use crate::error::{PublishError, TryPublishError};
use crate::group::{Fan, Group, GroupRef, Index, Sets};
use crate::lane::{ALL_KEYS, Feed, Lane, Written};
use crate::member::{Cursor, Member};
use crate::message::{LogId, MAX_KEYS, MAX_KEYS_BYTES, MAX_PAYLOAD_BYTES, Message, Offset, Timestamp};
use crate::options::BrokerOptions;
use crate::sync::{AtomicU64, AtomicUsize, Mutex, MutexGuard, Ordering, fence};
use crate::tree::{PrefixTree, Reader};
use own::BEHIND_ENTRIES;
pub(crate) use own::OwnBlock;

/// Records in a block, in bytes, unless `max_bytes` is small: with its header, a block is so many whole pages.
const ARENA_BYTES: usize = if cfg!(hookbus_loom) { 256 } else { (32 << 10) - HEADER_BYTES };
/// Payloads in a block, in bytes, unless `max_bytes` is small.
const BLOCK_PAYLOAD_BYTES: usize = 1 << 20;
/// A block takes at most this part of `max_bytes`, for records and for payloads.
const BLOCK_PART: usize = 64;
/// A window is over after so many messages, even where all lanes are sparse and no block fills.
const WINDOW_MESSAGES: u64 = 1024;
/// In a block of one record, payloads up to this size are copied into it rather than into an allocation of their own.
const SINGLE_INLINE_BYTES: usize = 4096;
/// When blocks hold more than this, in bytes, new ones get mappings of their own. Less may stay with malloc, which is faster.
const BACKLOG_BYTES: usize = 1 << 20;
/// What was taken out of the prefix tree is freed when it is so much: each time takes the publish lock.
const RECLAIM: usize = 64;
/// Empty blocks kept for reuse.
const POOL_BLOCKS: usize = 4;
/// Messages of a batch that are published without letting go of the lock.
const BATCH_MESSAGES: usize = 256;

/// A broker. What publishers write and what readers write is kept apart, so that neither takes lines from the other.
pub(crate) struct Shared {
    pub(crate) options: BrokerOptions,
    tree: PrefixTree<GroupRef>,
    pub(crate) sets: Mutex<Sets>,
    publishing: CachePadded<Mutex<Publishing>>,
    freed: Arc<CachePadded<Freed>>,
    /// Records and payloads of a block, in bytes.
    arena_bytes: usize,
    block_payload_bytes: usize,
    pub(crate) abandoned: AtomicU64,
    #[cfg(feature = "journal")]
    pub(crate) journal: std::sync::OnceLock<crate::journal::Attached>,
}

/// What is written when a block is closed or freed.
pub(crate) struct Freed {
    /// What blocks cost, in bytes, but for the open one.
    held: AtomicUsize,
    pool: Mutex<Vec<BlockPtr>>,
    /// Blocks with so much room for records go to the pool.
    arena_bytes: usize,
}

/// What publishers own.
pub(crate) struct Publishing {
    /// To find groups in the prefix tree takes it, so nobody is at that while we have it.
    reader: Reader,
    pub(crate) next: u64,
    pub(crate) closed: bool,
    open: Option<Open>,
    /// The number of the block that was opened last.
    serial: u64,
    window: Window,
    pub(crate) members: BTreeMap<u64, Arc<Member>>,
    pub(crate) next_member: u64,
    /// Counts the messages matched, for `Fan::stamp`.
    stamp: u64,
    /// Counts the batches, for `Feed::touched`.
    round: u64,
    hits: Vec<Hit>,
    /// Lanes that got something in this round.
    touched: Vec<NonNull<Lane>>,
    /// Who has to be woken when the lock is released.
    wake: SmallVec<[Waker; 8]>,
    pub(crate) published: u64,
    pub(crate) published_bytes: u64,
    /// Where there is a journal, what can be promised of it.
    #[cfg(feature = "journal")]
    pub(crate) gate: Option<crate::journal::Gate>,
    /// Of members that are gone.
    pub(crate) past_delivered: u64,
    pub(crate) past_dropped: u64,
}

// SAFETY: the raw pointers in `hits` and `touched` are only used while the lock is held that they were put there under.
unsafe impl Send for Publishing {}

/// The block that is written to. Of what stands in its header too, publishers have a copy here: there it lies beside what readers
/// count down, on a line that their cores fetch from ours.
struct Open {
    block: BlockPtr,
    /// Its number, never used again: an address may be.
    serial: u64,
    base: Place,
    capacity: usize,
    used: usize,
    payload: usize,
    given: u64,
}

/// How much passed in this window and in the last one.
struct Window {
    number: u64,
    messages: u64,
    bytes: u64,
    last_messages: u64,
    last_bytes: u64,
}

/// What sparse lanes get of the message at hand.
struct Sparse {
    /// Whether there is only one.
    is_one: bool,
    /// Whether the payload is a slice of something larger, and has to be copied.
    detach: bool,
    /// The block of this one record, and what it costs in bytes, once a lane has needed it.
    single: Option<(BlockPtr, usize)>,
    /// Deliveries, and those of the single block.
    given: u64,
    given_single: u64,
}

/// A group that matches the message at hand.
#[derive(Clone, Copy)]
struct Hit(NonNull<Group>);

/// What a look at the lanes that match has shown.
#[derive(Default)]
struct Survey {
    dense: bool,
    /// How many lanes are sparse.
    sparse: u32,
    full: bool,
}

impl Survey {
    /// Looks at the lanes of a group that matches a message of `size` bytes. The caller holds the publish lock, and no feed.
    #[inline]
    fn look_at(&mut self, fan: &Fan, window: &Window, size: u64) {
        for lane in &fan.lanes {
            // SAFETY: the caller's promise; we look at one lane at a time.
            let feed = unsafe { lane.feed.get() };
            if feed.active == 0 {
                continue;
            }
            let tail = lane.ends.tail.load(Ordering::Relaxed);
            if feed.window != window.number {
                feed.judge(window, tail);
            }
            self.dense |= feed.dense;
            self.sparse += u32::from(!feed.dense);
            self.full |= tail >= feed.limit || feed.bytes + size > feed.limit_bytes;
        }
    }
}

/// Whether a publisher can wait for subscriptions that block.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pressure {
    /// It can: refuse, and let it know when there is room.
    Refuse,
    /// It can't: they drop their oldest.
    DropOldest,
}

/// A publisher that waits until all members that refused have made room.
pub(crate) struct Waiter {
    remaining: AtomicUsize,
    waker: Mutex<Option<Waker>>,
}

impl Waiter {
    pub(crate) fn new(waker: Waker) -> Arc<Self> {
        // One is the publisher's own, until it has asked all members.
        Arc::new(Waiter { remaining: AtomicUsize::new(1), waker: Mutex::new(Some(waker)) })
    }

    /// Waits for one more member, whose cursor this is.
    pub(crate) fn wait_for(self: &Arc<Self>, cursor: &mut Cursor) {
        self.remaining.fetch_add(1, Ordering::Relaxed);
        cursor.waiters.retain(|w| w.strong_count() > 0);
        cursor.waiters.push(Arc::downgrade(self));
    }

    pub(crate) fn count_down(&self) {
        if self.remaining.fetch_sub(1, Ordering::AcqRel) == 1 {
            let waker = self.waker.lock().take();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

pub(crate) fn tell_waiters(waiters: Vec<Weak<Waiter>>) {
    for waiter in waiters {
        if let Some(waiter) = waiter.upgrade() {
            waiter.count_down();
        }
    }
}

impl Index for Shared {
    fn insert(&self, prefix: &[u8], group: &Arc<Group>) {
        self.tree.insert(prefix, GroupRef(Arc::clone(group)));
        self.reclaim_from(RECLAIM);
    }

    fn remove(&self, prefix: &[u8], group: &Arc<Group>) {
        self.tree.remove(prefix, &GroupRef(Arc::clone(group)));
        self.reclaim_from(RECLAIM);
    }
}

impl Shared {
    pub(crate) fn new(options: BrokerOptions) -> Self {
        let (tree, reader) = PrefixTree::new();
        let publishing = Publishing {
            reader,
            next: 1,
            closed: false,
            open: None,
            serial: 0,
            window: Window { number: 1, messages: 0, bytes: 0, last_messages: 0, last_bytes: 0 },
            members: BTreeMap::new(),
            next_member: 1,
            stamp: 0,
            round: 0,
            hits: Vec::new(),
            touched: Vec::new(),
            wake: SmallVec::new(),
            published: 0,
            published_bytes: 0,
            #[cfg(feature = "journal")]
            gate: None,
            past_delivered: 0,
            past_dropped: 0,
        };
        let part = options.max_bytes / BLOCK_PART;
        let arena_bytes = ARENA_BYTES.min(part).next_multiple_of(8);
        let freed = Freed { held: AtomicUsize::new(0), pool: Mutex::new(Vec::new()), arena_bytes };
        Shared {
            arena_bytes,
            block_payload_bytes: BLOCK_PAYLOAD_BYTES.min(part),
            options,
            tree,
            sets: Mutex::new(Sets::default()),
            publishing: CachePadded::new(Mutex::new(publishing)),
            freed: Arc::new(CachePadded::new(freed)),
            abandoned: AtomicU64::new(0),
            #[cfg(feature = "journal")]
            journal: std::sync::OnceLock::new(),
        }
    }

    /// Frees what was taken out of the prefix tree, if it is so much. The caller doesn't hold the publish lock.
    pub(crate) fn reclaim_from(&self, least: usize) {
        if self.tree.retired_len() >= least {
            drop(self.with_publishing(|p| self.tree.reclaim(&mut p.reader)));
        }
    }

    /// Runs `work` under the publish lock, and wakes whom it left to be woken afterwards.
    pub(crate) fn with_publishing<T>(&self, work: impl FnOnce(&mut Publishing) -> T) -> T {
        let mut p = self.publishing.lock();
        let result = work(&mut p);
        self.unlock(p);
        result
    }

    #[inline]
    fn unlock(&self, mut p: MutexGuard<'_, Publishing>) {
        if p.wake.is_empty() {
            return;
        }
        let wake = std::mem::take(&mut p.wake);
        drop(p);
        wake.into_iter().for_each(Waker::wake);
    }

    /// Publishes one message; takes its payload where it is accepted.
    pub(crate) fn publish_one(
        &self,
        message: &mut Message,
        pressure: Pressure,
        waiter: Option<&Arc<Waiter>>,
    ) -> Result<Offset, TryPublishError> {
        check(message)?;
        let time = message.time.unwrap_or_else(|| self.options.clock.now());
        let mut p = self.publishing.lock();
        p.round += 1;
        let result = self.accept(&mut p, message, time, pressure, waiter);
        p.find_sleepers();
        self.unlock(p);
        result
    }

    /// Publishes messages from the front of `batch`, and takes those from it that were accepted. Returns how many that were,
    /// and the offset of the last.
    pub(crate) fn publish_many(
        &self,
        batch: &mut VecDeque<Message>,
        pressure: Pressure,
        waiter: Option<&Arc<Waiter>>,
    ) -> Result<(usize, Option<Offset>), TryPublishError> {
        let now = self.options.clock.now();
        let mut done = 0;
        let mut last = None;
        loop {
            let mut p = self.publishing.lock();
            p.round += 1;
            let mut turn = 0;
            let result = loop {
                let Some(message) = batch.get_mut(turn).filter(|_| turn < BATCH_MESSAGES) else { break Ok(()) };
                let time = message.time.unwrap_or(now);
                let accepted = check(message)
                    .map_err(TryPublishError::from)
                    .and_then(|()| self.accept(&mut p, message, time, pressure, waiter));
                match accepted {
                    Ok(offset) => {
                        turn += 1;
                        last = Some(offset);
                    }
                    Err(e) => break Err(e),
                }
            };
            p.find_sleepers();
            self.unlock(p);
            batch.drain(..turn);
            done += turn;
            match result {
                Err(e) if done == 0 => return Err(e),
                Err(_) => return Ok((done, last)),
                Ok(()) if batch.is_empty() => return Ok((done, last)),
                Ok(()) => {}
            }
        }
    }

    fn accept(
        &self,
        p: &mut Publishing,
        message: &mut Message,
        time: Timestamp,
        pressure: Pressure,
        waiter: Option<&Arc<Waiter>>,
    ) -> Result<Offset, TryPublishError> {
        if p.closed {
            return Err(PublishError::Closed.into());
        }
        let size = message.size_bytes();
        let mut survey = p.find_hits(&self.tree, message, size as u64);
        #[cfg(feature = "journal")]
        let record_bytes = self.ask_journal(p, message, &mut survey, pressure, waiter)?;
        let fits = self.total(p) + self.arena_bytes + size <= self.options.max_bytes;
        if survey.full || !fits {
            if !self.make_room(p, size, !fits, pressure, waiter) {
                return Err(TryPublishError::WouldBlock);
            }
            survey = p.survey_again(size as u64);
        }
        let offset = Offset::new(p.next);
        p.next += 1;
        p.published += 1;
        p.published_bytes += size as u64;
        #[cfg(feature = "journal")]
        if let Some(gate) = &mut p.gate {
            gate.take(record_bytes);
        }
        if !p.hits.is_empty() {
            self.deliver(p, message, Place { offset, time }, &survey);
        }
        Ok(offset)
    }

    /// Asks the journal, where there is one, for room. Returns what the message takes of it, in bytes. Where the message goes past the
    /// journal, who gets it is surveyed anew.
    #[cfg(feature = "journal")]
    fn ask_journal(
        &self,
        p: &mut Publishing,
        message: &Message,
        survey: &mut Survey,
        pressure: Pressure,
        waiter: Option<&Arc<Waiter>>,
    ) -> Result<u64, TryPublishError> {
        let Some(gate) = &mut p.gate else { return Ok(0) };
        gate.admit(message, self.options.max_bytes.saturating_sub(self.arena_bytes), pressure, waiter)?;
        if gate.turns_away() {
            let member = gate.member();
            p.turn_away(&member);
            *survey = p.survey_again(message.size_bytes() as u64);
        }
        Ok(crate::journal::record_size(message))
    }

    fn deliver(&self, p: &mut Publishing, message: &mut Message, place: Place, survey: &Survey) {
        let size = message.size_bytes() as u64;
        let inline = message.payload.len() <= INLINE_BYTES;
        // Whether the payload is a slice of something that others hold, too, is asked before it is shared with the open block.
        let detach = survey.sparse > 0 && !message.payload.is_unique();
        let mut sparse = Sparse { is_one: survey.sparse == 1, detach, single: None, given: 0, given_single: 0 };
        let mut dense = None;
        if survey.dense {
            let need = record_size(message, inline);
            let shared = if inline { 0 } else { message.payload.len() };
            let open = self.make_open(p, need, shared, place);
            let at = open.used;
            let payload = match (inline, survey.sparse > 0) {
                (true, _) => None,
                (false, true) => Some(message.payload.clone()),
                (false, false) => Some(std::mem::take(&mut message.payload)),
            };
            // SAFETY: `make_open` has made room for the record and checked its reach; `used` is where nothing was written yet.
            unsafe { open.block.write(at, open.base, place, message, payload) };
            open.used += need;
            open.payload += shared;
            dense = Some(Written { block: open.block, serial: open.serial, at: at as u32, end: (at + need) as u32 });
        }
        let mut dense_given = 0;
        let all = u32::MAX >> (32 - message.keys.ends.len().clamp(1, 32));
        for i in 0..p.hits.len() {
            // SAFETY: we hold the publish lock; hits are of this message, so their groups live.
            let fan = unsafe { p.hits[i].0.as_ref().fan.get() };
            let mask = if fan.mask == all { ALL_KEYS } else { fan.mask };
            for lane in &fan.lanes {
                // SAFETY: we hold the publish lock, and look at one lane at a time.
                let feed = unsafe { lane.feed.get() };
                feed.last = place.offset;
                if feed.active == 0 {
                    lane.pass_over(feed);
                    continue;
                }
                if feed.dense {
                    lane.push(feed, dense.expect("the survey saw this lane"), mask, size);
                    dense_given += u64::from(feed.active);
                } else {
                    self.deliver_sparse(&mut p.serial, &mut sparse, lane, feed, message, place, mask);
                }
                if feed.touched != p.round {
                    feed.touched = p.round;
                    p.touched.push(NonNull::from(&**lane));
                }
            }
        }
        if let Some(open) = &mut p.open {
            open.given += dense_given;
        }
        if let Some((single, bytes)) = sparse.single {
            self.freed.held.fetch_add(bytes, Ordering::Relaxed);
            if single.close(single.capacity(), bytes, sparse.given_single) {
                self.free(single);
            }
        }
        if dense_given + sparse.given > 0 {
            p.window.messages += 1;
            p.window.bytes += size;
            if p.window.messages >= WINDOW_MESSAGES {
                p.window.turn();
            }
        }
    }

    /// The open block, with room for a record of `need` bytes at that place.
    #[inline]
    fn make_open<'p>(&self, p: &'p mut Publishing, need: usize, payload: usize, place: Place) -> &'p mut Open {
        let has_room = |open: &Open| open.has_room(need, payload, self.block_payload_bytes, place);
        if !p.open.as_ref().is_some_and(has_room) {
            self.open_next(p, need, payload, place);
        }
        p.open.as_mut().expect("just looked at, or just made")
    }

    /// Closes the open block and opens another, for a record of `need` bytes and those that follow it, which may be like it.
    #[cold]
    fn open_next(&self, p: &mut Publishing, need: usize, payload: usize, place: Place) {
        self.close_open(p);
        // Of large payloads few fit into a block; then its arena needs no more room than these take, and malloc has that at hand.
        let alike = self.block_payload_bytes.checked_div(payload).map_or(usize::MAX, |count| count + 1);
        let arena = need.saturating_mul(alike);
        let is_small = arena < self.arena_bytes / 4;
        let recycled = if is_small || need > self.arena_bytes { None } else { self.freed.pool.lock().pop() };
        let block = match recycled {
            Some(block) => {
                block.reuse(place);
                block
            }
            None if is_small => BlockPtr::open(arena, place),
            None if self.closed_bytes() > BACKLOG_BYTES => BlockPtr::open_apart(need.max(self.arena_bytes), place),
            None => BlockPtr::open(need.max(self.arena_bytes), place),
        };
        p.serial += 1;
        p.open = Some(Open {
            block,
            serial: p.serial,
            base: place,
            capacity: block.capacity(),
            used: 0,
            payload: 0,
            given: 0,
        });
    }

    /// Gives the message to a lane that is sparse.
    #[cold]
    #[inline(never)]
    #[expect(
        clippy::too_many_arguments,
        reason = "part of a loop, apart from it so that dense lanes have the registers"
    )]
    fn deliver_sparse(
        &self,
        serial: &mut u64,
        sparse: &mut Sparse,
        lane: &Lane,
        feed: &mut Feed,
        message: &Message,
        place: Place,
        mask: u32,
    ) {
        let (given, size) = (u64::from(feed.active), message.size_bytes() as u64);
        sparse.given += given;
        if sparse.is_one && feed.is_behind() {
            let written = self.write_own(serial, feed, message, place, sparse.detach);
            lane.push(feed, written, mask, size);
            return;
        }
        let (block, _) = *sparse.single.get_or_insert_with(|| single(message, place, sparse.detach));
        feed.run_serial = 0;
        let written = Written { block, serial: NO_SERIAL, at: 0, end: block.capacity() as u32 };
        lane.push(feed, written, mask, size);
        sparse.given_single += given;
    }

    /// Writes a record into the block of a lane's own; see `own.rs`.
    fn write_own(&self, serial: &mut u64, feed: &mut Feed, message: &Message, place: Place, detach: bool) -> Written {
        let payload = apart(message, detach);
        let shared = if payload.is_none() { 0 } else { message.payload.len() };
        let sizes = (record_size(message, payload.is_none()), shared);
        let own = match feed.own.take() {
            Some(own) if own.has_room(sizes, place) => own,
            full => {
                drop(full);
                *serial += 1;
                OwnBlock::open(&self.freed, sizes, place, *serial)
            }
        };
        feed.own.insert(own).write(message, payload, sizes, place, feed.active)
    }

    fn close_open(&self, p: &mut Publishing) {
        if let Some(open) = p.open.take() {
            let bytes = open.cost();
            self.freed.held.fetch_add(bytes, Ordering::Relaxed);
            if open.block.close(open.used, bytes, open.given) {
                self.free(open.block);
            }
            p.window.turn();
        }
    }

    /// The name of the log that an offset counts in.
    #[inline]
    pub(crate) fn log_id_of(&self, offset: Offset) -> LogId {
        #[cfg(feature = "journal")]
        if let Some(attached) = self.journal.get() {
            return attached.log_id_of(offset).unwrap_or(self.options.log_id);
        }
        let _ = offset;
        self.options.log_id
    }

    pub(crate) fn prefixes(&self) -> usize {
        self.tree.len()
    }

    /// What all blocks but the open one cost now, in bytes.
    pub(crate) fn closed_bytes(&self) -> usize {
        self.freed.held.load(Ordering::Relaxed)
    }

    /// What all blocks cost now, in bytes.
    pub(crate) fn total(&self, p: &Publishing) -> usize {
        self.freed.held.load(Ordering::Relaxed) + p.open.as_ref().map_or(0, Open::cost)
    }

    /// Gives back deliveries that are done with.
    pub(crate) fn release(&self, pins: &mut Vec<(BlockPtr, u64)>) {
        for (block, count) in pins.drain(..) {
            if block.release(count) {
                self.free(block);
            }
        }
    }

    fn free(&self, block: BlockPtr) {
        self.freed.free(block);
    }
}

impl Freed {
    /// Frees a block; the caller was told that the last reference to it was given back.
    fn free(&self, block: BlockPtr) {
        let bytes = block.bytes();
        // SAFETY: the caller was told that these were the last references.
        unsafe { block.empty() };
        self.held.fetch_sub(bytes, Ordering::Relaxed);
        if block.capacity() == self.arena_bytes {
            let mut pool = self.pool.lock();
            if pool.len() < POOL_BLOCKS {
                pool.push(block);
                return;
            }
        }
        // SAFETY: just emptied, and ours alone.
        unsafe { block.free() };
    }
}

/// A block of this one record, and what it costs in bytes. `detach` asks for a copy of the payload.
fn single(message: &Message, place: Place, detach: bool) -> (BlockPtr, usize) {
    let payload = apart(message, detach);
    let shared = if payload.is_none() { 0 } else { message.payload.len() };
    let need = record_size(message, payload.is_none());
    let block = BlockPtr::open(need, place);
    // SAFETY: the block is new and has just the room for this record.
    unsafe { block.write(0, place, place, message, payload) };
    (block, need + shared)
}

/// The payload for a record that only sparse lanes get; nothing where it is to stand in the record. `detach` asks for a copy.
fn apart(message: &Message, detach: bool) -> Option<Bytes> {
    let len = message.payload.len();
    match (len <= INLINE_BYTES || detach && len <= SINGLE_INLINE_BYTES, detach) {
        (true, _) => None,
        (false, true) => Some(Bytes::copy_from_slice(&message.payload)),
        (false, false) => Some(message.payload.clone()),
    }
}

/// The serial number under which single records are put into a lane; the run never goes on.
const NO_SERIAL: u64 = u64::MAX;

fn check(message: &Message) -> Result<(), PublishError> {
    let (count, length, payload) = (message.keys.ends.len(), message.keys.bytes.len(), message.payload.len());
    if count > MAX_KEYS {
        return Err(PublishError::TooManyKeys { count });
    }
    if length > MAX_KEYS_BYTES {
        return Err(PublishError::KeysTooLong { length });
    }
    if payload > MAX_PAYLOAD_BYTES {
        return Err(PublishError::PayloadTooLarge { length: payload });
    }
    Ok(())
}

impl Open {
    fn cost(&self) -> usize {
        self.capacity + self.payload
    }

    /// Whether there is room for a record of `need` bytes at that place, whose payload of `payload` bytes lies elsewhere, of which
    /// there may be `most`.
    #[inline]
    fn has_room(&self, need: usize, payload: usize, most: usize, place: Place) -> bool {
        self.used + need <= self.capacity
            && (self.payload == 0 || self.payload + payload <= most)
            && self.base.reaches(place)
    }
}

impl Window {
    fn turn(&mut self) {
        *self = Window {
            number: self.number + 1,
            messages: 0,
            bytes: 0,
            last_messages: self.messages,
            last_bytes: self.bytes,
        };
    }
}

impl Feed {
    /// Whether one more message of `size` bytes may be over a member's high-water mark, as readers stand now.
    fn is_over(&mut self, lane: &Lane, size: u64) -> bool {
        self.refresh();
        lane.ends.tail.load(Ordering::Relaxed) >= self.limit || self.bytes + size > self.limit_bytes
    }

    /// Whether what this sparse lane gets goes into a block of its own.
    fn is_behind(&mut self) -> bool {
        if self.own.as_ref().is_some_and(OwnBlock::is_read) {
            self.own = None;
            self.entries = 0;
        }
        self.own.is_some() || self.entries >= BEHIND_ENTRIES
    }

    /// Asks the members anew where they will be full.
    fn refresh(&mut self) {
        self.limit = self.members.iter().map(|m| m.limit.load(Ordering::Relaxed)).min().unwrap_or(u64::MAX);
        self.limit_bytes = self.members.iter().map(|m| m.limit_bytes.load(Ordering::Relaxed)).min().unwrap_or(u64::MAX);
    }
}

impl Publishing {
    /// Finds the groups that match a message of `size` bytes, each with the keys that do, and looks at their lanes.
    #[inline]
    fn find_hits(&mut self, tree: &PrefixTree<GroupRef>, message: &Message, size: u64) -> Survey {
        self.hits.clear();
        self.stamp += 1;
        let mut survey = Survey::default();
        for (i, key) in message.keys.iter().enumerate() {
            tree.for_each_match(key, &self.reader, |GroupRef(group)| {
                // SAFETY: we hold the publish lock, and look at one fan at a time.
                let fan = unsafe { group.fan.get() };
                if fan.stamp == self.stamp {
                    fan.mask |= 1 << i;
                    return;
                }
                fan.stamp = self.stamp;
                fan.mask = 1 << i;
                self.hits.push(Hit(NonNull::from(&**group)));
                survey.look_at(fan, &self.window, size);
            });
        }
        survey
    }

    /// Looks at the lanes once more, without those that something was done for instead of giving them the message.
    #[cold]
    fn survey_again(&mut self, size: u64) -> Survey {
        let mut survey = Survey::default();
        self.hits.retain(|hit| {
            // SAFETY: we hold the publish lock; hits are of this message, so their groups live.
            let fan = unsafe { hit.0.as_ref().fan.get() };
            survey.look_at(fan, &self.window, size);
            fan.mask != 0
        });
        survey
    }

    /// Finds who waits for what was published in this round.
    fn find_sleepers(&mut self) {
        if self.touched.is_empty() {
            return;
        }
        // Either we see that a reader is about to sleep, or it sees what was put into its lane.
        fence(Ordering::SeqCst);
        for lane in self.touched.drain(..) {
            // SAFETY: lanes go only under the publish lock, and this one was there in this round.
            let lane = unsafe { lane.as_ref() };
            if lane.readers.sleepers.load(Ordering::Relaxed) != 0 {
                for member in lane.take_sleepers() {
                    self.wake.extend(member.waker.lock().take());
                }
            }
        }
    }
}

impl Feed {
    /// Decides for this window whether the lane is dense, by what it took in the last one. (What was dropped meanwhile counts as a
    /// message of no bytes.)
    fn judge(&mut self, window: &Window, tail: u64) {
        let (messages, bytes) = (tail - self.window_tail, self.bytes - self.window_bytes);
        self.dense = if self.window + 1 == window.number {
            messages * 4 >= window.last_messages && bytes * 4 >= window.last_bytes
        } else {
            self.window == 0 && self.match_all
        };
        self.window = window.number;
        self.window_tail = tail;
        self.window_bytes = self.bytes;
        if self.dense && self.own.is_some() {
            self.close_own();
        }
    }

    #[cold]
    #[inline(never)]
    fn close_own(&mut self) {
        self.own = None;
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.with_publishing(|p| self.close_open(p));
    }
}

impl Drop for Freed {
    fn drop(&mut self) {
        for block in self.pool.lock().drain(..) {
            // SAFETY: blocks in the pool are empty, and nobody else has them.
            unsafe { block.free() };
        }
    }
}
