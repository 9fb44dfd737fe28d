//! Blocks of one lane's own: for a sparse lane that is behind.
//!
//! A sparse lane gets blocks of a single record, so that what it leaves unread holds back nothing else. That is dear where much is left
//! unread: each message pays for a header, an allocation, and an entry in the queue of the lane. So once that queue has some entries,
//! what comes next is written into a small block that nobody else writes to: records follow one another there, and are one run.
//!
//! - **Memory**: a message takes its record and a part of the block's header. The block is accounted for when it is opened. When everything in
//!   it has been read, it stays until the lane's next message, or until memory runs short: 2 KiB, and 16 KiB of payloads, at most.
//! - Where several sparse lanes match a message, they share a block of that record as before: a copy for each would be dearer.

use std::sync::Arc;

use bytes::Bytes;
use crossbeam_utils::CachePadded;

use super::{Freed, Open};
use crate::block::{BlockPtr, HEADER_BYTES, Place};
use crate::lane::Written;
use crate::message::Message;
use crate::sync::Ordering;

/// So many entries in a lane's queue show that it is behind. One where assertions are checked: so models and threads of tests come here often.
pub(super) const BEHIND_ENTRIES: usize = if cfg!(any(debug_assertions, hookbus_loom)) { 1 } else { 16 };
/// Records in such a block, in bytes: with its header, and malloc's, it is 2 KiB.
const ARENA_BYTES: usize = (2 << 10) - HEADER_BYTES - 16;
/// Payloads in such a block, in bytes.
const PAYLOAD_BYTES: usize = 16 << 10;

/// A block that is written to for one lane. It is closed when this is dropped.
pub(crate) struct OwnBlock {
    open: Open,
    freed: Arc<CachePadded<Freed>>,
}

impl OwnBlock {
    /// One for a record of `need` bytes, with a payload of `payload` bytes outside of it, and others like it. `serial` is no other block's.
    pub(super) fn open(
        freed: &Arc<CachePadded<Freed>>,
        (need, payload): (usize, usize),
        place: Place,
        serial: u64,
    ) -> Self {
        let alike = PAYLOAD_BYTES.checked_div(payload).map_or(usize::MAX, |count| count + 1);
        let most = ARENA_BYTES.min(freed.arena_bytes);
        let block = BlockPtr::open(need.saturating_mul(alike).min(most).max(need), place);
        let capacity = block.capacity();
        freed.held.fetch_add(capacity, Ordering::Relaxed);
        OwnBlock {
            open: Open { block, serial, base: place, capacity, used: 0, payload: 0, given: 0 },
            freed: Arc::clone(freed),
        }
    }

    /// Whether there is room for another record.
    pub(super) fn has_room(&self, (need, payload): (usize, usize), place: Place) -> bool {
        self.open.has_room(need, payload, PAYLOAD_BYTES, place)
    }

    /// Whether all that was given out has been read.
    pub(super) fn is_read(&self) -> bool {
        self.open.block.is_given_back(self.open.given)
    }

    /// Writes a record, for which there is room, for so many members.
    pub(super) fn write(
        &mut self,
        message: &Message,
        payload: Option<Bytes>,
        (need, shared): (usize, usize),
        place: Place,
        members: u32,
    ) -> Written {
        let Open { block, serial, base, used: at, .. } = self.open;
        // SAFETY: the caller has looked for room, which checks the reach, too; `used` is where nothing was written yet.
        unsafe { block.write(at, base, place, message, payload) };
        self.open.used += need;
        self.open.payload += shared;
        self.open.given += u64::from(members);
        self.freed.held.fetch_add(shared, Ordering::Relaxed);
        Written { block, serial, at: at as u32, end: self.open.used as u32 }
    }
}

impl Drop for OwnBlock {
    fn drop(&mut self) {
        let Open { block, used, given, .. } = self.open;
        if block.close(used, self.open.cost(), given) {
            self.freed.free(block);
        }
    }
}
