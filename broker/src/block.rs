//! Where messages are kept: arenas of records, freed when no delivery refers to them any more.
//!
//! A [`Block`] is one allocation: a header and an arena of records. Publishers append records to the one open block, under the
//! publish lock; readers walk them by reference. A subscription that takes few of the messages gets blocks of a single
//! record instead, shared with the others that are like it, so that what it leaves unread holds back nothing else.
//!
//! ```text
//! record, 8-byte aligned:
//!
//!   0       4        8         12    13     14      16                             16+32  +8
//!   +-------+--------+---------+-----+------+-------+------------------------------+------+------+------+---------+
//!   |offset |time    |bytes of |tag  |keys, |size   |`Bytes` of the payload,       |origin|ends: |keys, |payload, |
//!   |- base |- base  |keys and |     |flags |in 8 B |unless it is inline           |(Arc),|u16 a |side  |if it is |
//!   |u32    |i32, ms |payload  |u8   |u8    |u16    |                              |if any|key   |by    |inline   |
//!   +-------+--------+---------+-----+------+-------+------------------------------+------+------+ side +---------+
//! ```
//!
//! Where many wait, an arena is a mapping of its own (`BlockPtr::open_apart`), which goes back to the system when the block is
//! freed. malloc would keep it: its heap shrinks from the top only, and the newest block, the open one, often lies there.
//!
//! # Who frees a block
//!
//! Each delivery of a record to a subscription is one reference to its block. The publisher counts those that it gives out in
//! a plain number; while the block is open its counter stands at [`BIAS`], so that readers can subtract what they are done
//! with and never reach zero. When the publisher closes the block it subtracts `BIAS - given`; from then on whoever
//! reaches zero frees it. So a delivery costs publishers no atomic operation, and readers one for each batch and block.

#![allow(unsafe_code)] // Records of different sizes in one arena, written while others are read: the hot path.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::mem::{align_of, size_of};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::Arc;

use bytes::Bytes;
use memmap2::MmapMut;

use crate::message::{MAX_KEYS, MAX_KEYS_BYTES, MAX_PAYLOAD_BYTES, Message, Offset, Origin, Timestamp};
use crate::sync::{AtomicU64, AtomicUsize, Ordering};

/// Payloads up to this size stand in the record itself: a copy of so few bytes costs less than a shared handle.
pub(crate) const INLINE_BYTES: usize = 128;

/// The counter of an open block: more than can ever be subtracted from it.
const BIAS: u64 = 1 << 62;

const INLINE: u8 = 0x80;
const ORIGIN: u8 = 0x40;
const KEYS: u8 = 0x3f;

#[repr(C)]
struct Head {
    offset: u32,
    time: i32,
    counted: u32,
    tag: u8,
    flags: u8,
    size: u16,
}

const ALIGN: usize = 8;
const _: () = assert!(size_of::<Head>() == 16 && align_of::<Bytes>() <= ALIGN && align_of::<Head>() <= ALIGN);
const _: () = assert!(MAX_KEYS <= KEYS as usize && MAX_KEYS_BYTES + MAX_PAYLOAD_BYTES <= u32::MAX as usize);
/// The largest record: all keys, their ends, an inline payload; its size must fit `Head::size`.
const _: () = assert!(16 + 32 + 8 + 2 * MAX_KEYS + MAX_KEYS_BYTES + INLINE_BYTES + 8 < ALIGN * u16::MAX as usize);

/// Where a message stands in the order of messages, and in time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) offset: Offset,
    pub(crate) time: Timestamp,
}

impl Place {
    /// Whether a record at `other` can be told by its distance from here.
    #[inline]
    pub(crate) fn reaches(self, other: Place) -> bool {
        let ahead = other.time.as_millis().wrapping_sub(self.time.as_millis()).cast_signed();
        u32::try_from(other.offset.get() - self.offset.get()).is_ok() && i32::try_from(ahead).is_ok()
    }
}

/// The header of a block; the arena follows it.
#[repr(C, align(8))]
pub(crate) struct Block {
    refs: AtomicU64,
    base: Place,
    /// What it holds, for the account in `Shared::held`; and how much of the arena is used. Written when it is closed.
    bytes: AtomicUsize,
    used: AtomicUsize,
    capacity: usize,
    /// What the block lies in, unless malloc gave it.
    map: Option<MmapMut>,
}

/// A block; a plain pointer, whose holder knows why it is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockPtr(NonNull<Block>);

// SAFETY: what a block holds (`Bytes`, `Arc<Origin>`, atomics) can be sent and shared; the pointer adds nothing to that.
unsafe impl Send for BlockPtr {}
// SAFETY: as above.
unsafe impl Sync for BlockPtr {}

/// What a block takes beside its arena, in bytes.
pub(crate) const HEADER_BYTES: usize = size_of::<Block>();

fn layout(capacity: usize) -> Layout {
    Layout::from_size_align(size_of::<Block>() + capacity, align_of::<Block>())
        .expect("an arena is far below isize::MAX")
}

impl BlockPtr {
    /// An open block with room for `capacity` bytes of records.
    pub(crate) fn open(capacity: usize, base: Place) -> Self {
        let layout = layout(capacity);
        // SAFETY: the layout is not empty, it has a header.
        let raw = NonNull::new(unsafe { alloc(layout) }.cast::<Block>()).unwrap_or_else(|| handle_alloc_error(layout));
        let block = BlockPtr(raw);
        block.reopen(capacity, base, None);
        block
    }

    /// The same, in a mapping of its own; where there are no more mappings, a block like any other.
    pub(crate) fn open_apart(capacity: usize, base: Place) -> Self {
        let map = MmapMut::map_anon(layout(capacity).size()).ok();
        let Some((map, raw)) = map.and_then(|mut map| NonNull::new(map.as_mut_ptr()).map(|raw| (map, raw))) else {
            return BlockPtr::open(capacity, base);
        };
        // A mapping begins where a page does, so it is aligned, and stays there when its owner moves into it.
        let block = BlockPtr(raw.cast::<Block>());
        block.reopen(capacity, base, Some(map));
        block
    }

    /// Makes a block that was [`emptied`](BlockPtr::empty) an open one again; its capacity stays.
    pub(crate) fn reuse(self, base: Place) {
        // SAFETY: the caller got it from `empty`, so nobody else has it.
        let (capacity, map) = unsafe { ((*self.0.as_ptr()).capacity, (*self.0.as_ptr()).map.take()) };
        self.reopen(capacity, base, map);
    }

    fn reopen(self, capacity: usize, base: Place, map: Option<MmapMut>) {
        // SAFETY: the memory is ours alone, just allocated or just emptied.
        unsafe {
            self.0.as_ptr().write(Block {
                refs: AtomicU64::new(BIAS),
                base,
                bytes: AtomicUsize::new(0),
                used: AtomicUsize::new(0),
                capacity,
                map,
            });
        }
    }

    fn header(&self) -> &Block {
        // SAFETY: whoever holds a BlockPtr holds a reference to the block (a delivery, or the publisher's bias), so it lives.
        // Nobody makes a `&mut Block` of a block that is shared.
        unsafe { self.0.as_ref() }
    }

    fn arena(self) -> *mut u8 {
        // SAFETY: the arena follows the header in the same allocation.
        unsafe { self.0.as_ptr().add(1).cast::<u8>() }
    }

    /// Room for records, in bytes.
    pub(crate) fn capacity(self) -> usize {
        self.header().capacity
    }

    /// Writes a record at `at`; the payload is `payload`, or where there is none the message's own, inline.
    ///
    /// # Safety
    /// The caller holds the block open, `at..at + record_size(..)` lies in the arena, is a multiple of 8 and was never given
    /// to a reader; the block was opened with `base`, which reaches `place`.
    #[inline]
    pub(crate) unsafe fn write(self, at: usize, base: Place, place: Place, message: &Message, payload: Option<Bytes>) {
        let inline = payload.is_none();
        let flags = if inline { INLINE } else { 0 } | if message.origin.is_some() { ORIGIN } else { 0 };
        let ends = &message.keys.ends;
        let counted = message.keys.bytes.len() + payload.as_ref().unwrap_or(&message.payload).len();
        let head = Head {
            offset: (place.offset.get() - base.offset.get()) as u32, // fits: the base reaches it
            time: place.time.as_millis().wrapping_sub(base.time.as_millis()) as i32, // likewise
            counted: counted as u32,                                 // fits: checked at publish
            tag: message.tag,
            flags: flags | ends.len() as u8,                     // fits: at most MAX_KEYS
            size: (record_size(message, inline) / ALIGN) as u16, // fits: asserted above
        };
        // SAFETY: the caller gives us this part of the arena, long enough for all of it and aligned for its parts; the parts
        // follow one another as the diagram above says, and `Record` reads them in the same order.
        unsafe {
            let mut to = self.arena().add(at);
            to.cast::<Head>().write(head);
            to = to.add(size_of::<Head>());
            if let Some(payload) = payload {
                to.cast::<Bytes>().write(payload);
                to = to.add(size_of::<Bytes>());
            }
            if let Some(origin) = &message.origin {
                to.cast::<Arc<Origin>>().write(Arc::clone(origin));
                to = to.add(size_of::<Arc<Origin>>());
            }
            for end in ends {
                to.cast::<u16>().write(*end as u16); // fits: at most MAX_KEYS_BYTES
                to = to.add(size_of::<u16>());
            }
            ptr::copy_nonoverlapping(message.keys.bytes.as_ptr(), to, message.keys.bytes.len());
            if inline {
                to = to.add(message.keys.bytes.len());
                ptr::copy_nonoverlapping(message.payload.as_ptr(), to, message.payload.len());
            }
        }
    }

    /// Ends writing: `used` bytes of the arena hold records, `bytes` is what the block costs, and `given` deliveries refer
    /// to it. Returns whether there are none left, so that the caller has to free it.
    pub(crate) fn close(self, used: usize, bytes: usize, given: u64) -> bool {
        let block = self.header();
        block.used.store(used, Ordering::Relaxed);
        block.bytes.store(bytes, Ordering::Relaxed);
        block.refs.fetch_sub(BIAS - given, Ordering::AcqRel) == BIAS - given
    }

    /// Whether all of the `given` deliveries of an open block were given back.
    pub(crate) fn is_given_back(self, given: u64) -> bool {
        self.header().refs.load(Ordering::Acquire) == BIAS - given
    }

    /// Gives back `count` deliveries; returns whether these were the last, so that the caller has to free the block.
    pub(crate) fn release(self, count: u64) -> bool {
        self.header().refs.fetch_sub(count, Ordering::AcqRel) == count
    }

    /// What the block costs, in bytes; known once it is closed.
    pub(crate) fn bytes(self) -> usize {
        self.header().bytes.load(Ordering::Relaxed)
    }

    /// Drops all records.
    ///
    /// # Safety
    /// Nobody refers to the block any more: `close` or `release` said so, or it was never shared.
    pub(crate) unsafe fn empty(self) {
        let used = self.header().used.load(Ordering::Relaxed);
        let mut at = 0;
        while at < used {
            let record = Record { block: self, at: at as u32 };
            let head = record.head();
            let (flags, size) = (head.flags, usize::from(head.size) * ALIGN);
            // SAFETY: `write` put these values there, and nobody will read them again.
            unsafe {
                let mut from = self.arena().add(at + size_of::<Head>());
                if flags & INLINE == 0 {
                    from.cast::<Bytes>().drop_in_place();
                    from = from.add(size_of::<Bytes>());
                }
                if flags & ORIGIN != 0 {
                    from.cast::<Arc<Origin>>().drop_in_place();
                }
            }
            at += size;
        }
    }

    /// Gives the memory back.
    ///
    /// # Safety
    /// The block was emptied, and nobody has it any more.
    pub(crate) unsafe fn free(self) {
        let layout = layout(self.capacity());
        // SAFETY: the header has nothing but atomics and numbers besides the map. Under loom these own something, so drop
        // them. Without a map the block was allocated by `open` with this layout; else it goes with the map, at the end, when
        // nothing in it is used any more.
        unsafe {
            let map = (*self.0.as_ptr()).map.take();
            self.0.as_ptr().drop_in_place();
            if map.is_none() {
                dealloc(self.0.as_ptr().cast(), layout);
            }
        }
    }
}

/// How many bytes of arena the record of this message takes.
pub(crate) fn record_size(message: &Message, inline: bool) -> usize {
    let payload = if inline { message.payload.len() } else { size_of::<Bytes>() };
    let origin = if message.origin.is_some() { size_of::<Arc<Origin>>() } else { 0 };
    let keys = message.keys.bytes.len() + size_of::<u16>() * message.keys.ends.len();
    (size_of::<Head>() + payload + origin + keys).next_multiple_of(ALIGN)
}

/// A record of a block that its holder keeps alive.
#[derive(Clone, Copy)]
pub(crate) struct Record {
    pub(crate) block: BlockPtr,
    pub(crate) at: u32,
}

impl Record {
    fn part(&self, from: usize) -> *const u8 {
        // SAFETY: a record lies in the arena of its block, with all its parts.
        unsafe { self.block.arena().add(self.at as usize + from) }
    }

    fn head(&self) -> &Head {
        // SAFETY: `write` put a head there before anybody was told of the record, and nobody changes it.
        unsafe { &*self.part(0).cast::<Head>() }
    }

    /// Where the next record starts.
    pub(crate) fn next(&self) -> u32 {
        self.at + self.size()
    }

    /// How many bytes of the arena it takes.
    #[inline]
    pub(crate) fn size(&self) -> u32 {
        u32::from(self.head().size) * ALIGN as u32
    }

    pub(crate) fn offset(&self) -> Offset {
        Offset::new(self.block.header().base.offset.get() + u64::from(self.head().offset))
    }

    pub(crate) fn time(&self) -> Timestamp {
        let base = self.block.header().base.time.as_millis();
        Timestamp::from_millis(base.wrapping_add_signed(i64::from(self.head().time)))
    }

    pub(crate) fn tag(&self) -> u8 {
        self.head().tag
    }

    pub(crate) fn key_count(&self) -> usize {
        usize::from(self.head().flags & KEYS)
    }

    /// Where the ends of the keys begin.
    fn ends_at(&self) -> usize {
        let flags = self.head().flags;
        let payload = if flags & INLINE == 0 { size_of::<Bytes>() } else { 0 };
        let origin = if flags & ORIGIN == 0 { 0 } else { size_of::<Arc<Origin>>() };
        size_of::<Head>() + payload + origin
    }

    fn ends(&self) -> &[u16] {
        // SAFETY: `write` put so many ends there; all that stands before them has an even size.
        unsafe { slice::from_raw_parts(self.part(self.ends_at()).cast::<u16>(), self.key_count()) }
    }

    fn keys_bytes(&self) -> usize {
        self.ends().last().map_or(0, |&end| usize::from(end))
    }

    /// What the message counts against limits: its keys and its payload.
    #[inline]
    pub(crate) fn counted_bytes(&self) -> u64 {
        u64::from(self.head().counted)
    }

    /// The keys side by side, and where each ends.
    pub(crate) fn keys<'a>(self) -> (&'a [u8], &'a [u16]) {
        let at = self.ends_at() + size_of::<u16>() * self.key_count();
        // SAFETY: `write` put the keys behind their ends. The lifetime is the caller's to choose; all callers tie it to a
        // borrow of what keeps the block alive.
        unsafe {
            let ends = slice::from_raw_parts(self.part(self.ends_at()).cast::<u16>(), self.key_count());
            (slice::from_raw_parts(self.part(at), self.keys_bytes()), ends)
        }
    }

    pub(crate) fn payload<'a>(self) -> &'a [u8] {
        let head = self.head();
        if head.flags & INLINE == 0 {
            // SAFETY: without the flag a `Bytes` follows the head. For the lifetime see `keys`.
            return unsafe { &*self.part(size_of::<Head>()).cast::<Bytes>() };
        }
        let keys = self.keys_bytes();
        let at = self.ends_at() + size_of::<u16>() * self.key_count() + keys;
        // SAFETY: with the flag the payload follows the keys.
        unsafe { slice::from_raw_parts(self.part(at), head.counted as usize - keys) }
    }

    pub(crate) fn payload_bytes(&self) -> Bytes {
        if self.head().flags & INLINE == 0 {
            // SAFETY: as in `payload`.
            return unsafe { &*self.part(size_of::<Head>()).cast::<Bytes>() }.clone();
        }
        Bytes::copy_from_slice(self.payload())
    }

    pub(crate) fn origin<'a>(self) -> Option<&'a Arc<Origin>> {
        let flags = self.head().flags;
        let at = size_of::<Head>() + if flags & INLINE == 0 { size_of::<Bytes>() } else { 0 };
        // SAFETY: with the flag an `Arc` stands there. For the lifetime see `keys`.
        (flags & ORIGIN != 0).then(|| unsafe { &*self.part(at).cast::<Arc<Origin>>() })
    }
}
