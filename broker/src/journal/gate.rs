//! Room on the disk, promised to publishers under the publish lock.
//!
//! A publish that can wait is refused when its message would not fit, before anybody has it. So what is promised must be there: the
//! gate plays, with sizes alone, what the writer will do with the same records in the same order. Both put a record into the
//! segment at hand, or, where it doesn't fit, into the next one that has room set aside. A record that the gate found room for
//! will have it when the writer comes to it.
//!
//! Messages of publishers that can't wait go into the writer's queue whether there is room or not; it keeps them until there is.
//! Then the gate is *overdrawn*: it can't tell what will fit behind them, so those who can wait have to, or are refused, until the
//! writer has written everything and says anew how much room it has.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::error::JournalFault;
use super::log::Log;
use super::record::{self, GAP_BYTES};
use super::segment::HEADER_BYTES;
use crate::error::TryPublishError;
use crate::member::Member;
use crate::message::Message;
use crate::publish::{Pressure, Waiter};

/// Where publishers ask for room.
pub(crate) struct Gate {
    log: Arc<Log>,
    pub(super) member: Arc<Member>,
    signals: Arc<Signals>,
    /// What a segment takes, in bytes of records.
    segment: u64,
    room: Room,
    /// Messages are queued that it has found no room for.
    overdrawn: bool,
    /// Messages were turned away since the last one was let in, and no room was taken for the record that tells that.
    gap_open: bool,
    /// Why there is no room, when none is being made.
    full: Option<JournalFault>,
    /// Why the last write failed.
    failing: Option<JournalFault>,
    /// Whether the message at hand was turned away.
    turned_away: bool,
}

/// What the gate tells the writer without a lock.
#[derive(Debug, Default)]
pub(super) struct Signals {
    /// Segments that are ready and not promised to anybody.
    pub(super) spares: AtomicU32,
    /// Whether the gate waits to be told how things are.
    pub(super) unsettled: AtomicBool,
}

/// Room in segments, in the order of its use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// In the segment at hand, in bytes.
    pub(super) left: u64,
    /// Segments behind it.
    pub(super) spares: u32,
}

impl Room {
    /// Takes room for one record; false, and nothing is changed, where there is none.
    fn take(&mut self, bytes: u64, segment: u64) -> bool {
        if bytes > self.left {
            if self.spares == 0 || bytes > segment {
                return false;
            }
            self.spares -= 1;
            self.left = segment;
        }
        self.left -= bytes;
        true
    }
}

impl Gate {
    pub(super) fn new(log: Arc<Log>, member: Arc<Member>, signals: Arc<Signals>, room: Room) -> Self {
        signals.spares.store(room.spares, Ordering::Relaxed);
        Gate {
            segment: log.options.segment_bytes() - HEADER_BYTES,
            log,
            member,
            signals,
            room,
            overdrawn: false,
            gap_open: false,
            full: None,
            failing: None,
            turned_away: false,
        }
    }

    /// Asks for a message: whether its publisher may go on. Nothing is taken yet. `most` is what the broker's queues can hold.
    pub(crate) fn admit(
        &mut self,
        message: &Message,
        most: usize,
        pressure: Pressure,
        waiter: Option<&Arc<Waiter>>,
    ) -> Result<(), TryPublishError> {
        self.turned_away = false;
        let bytes = size(message);
        let fits = bytes <= self.segment && message.size_bytes() <= most;
        if pressure == Pressure::DropOldest {
            self.turned_away = !fits;
            return Ok(());
        }
        if !fits {
            let most = self.segment.min(most as u64);
            return Err(refused(JournalFault::TooLarge { bytes, most }));
        }
        if let Some(fault) = self.failing {
            return Err(refused(fault));
        }
        let mut room = self.room;
        let has_room = !self.overdrawn
            && (!self.gap_open || room.take(GAP_BYTES as u64, self.segment))
            && room.take(bytes, self.segment);
        if has_room {
            return Ok(());
        }
        if let Some(fault) = self.full {
            return Err(refused(fault));
        }
        // The writer is making room, or catching up.
        if let Some(waiter) = waiter {
            waiter.wait_for(&mut self.member.cursor.lock());
        }
        self.signals.unsettled.store(true, Ordering::Release);
        self.log.wake_writer();
        Err(TryPublishError::WouldBlock)
    }

    /// The writer's end of the queue.
    pub(crate) fn member(&self) -> Arc<Member> {
        Arc::clone(&self.member)
    }

    /// Whether the message at hand must not go to the journal.
    pub(crate) fn turns_away(&self) -> bool {
        self.turned_away
    }

    /// The message at hand didn't go to the journal; its queue tells that.
    pub(crate) fn turn_away(&mut self) {
        self.turned_away = true;
    }

    /// The message at hand was published: takes its room.
    pub(crate) fn take(&mut self, bytes: u64) {
        if self.turned_away {
            self.gap_open = true;
            return;
        }
        let told = !std::mem::take(&mut self.gap_open) || self.room.take(GAP_BYTES as u64, self.segment);
        if !(told && !self.overdrawn && self.room.take(bytes, self.segment)) {
            self.overdrawn = true;
            self.signals.unsettled.store(true, Ordering::Release);
        }
        self.signals.spares.store(self.room.spares, Ordering::Relaxed);
    }

    /// Takes room for the record of a gap behind which nothing is queued. False where there is none, or no gap that is open:
    /// then a message behind it is queued by now.
    pub(super) fn take_gap(&mut self) -> bool {
        if !self.gap_open || self.overdrawn {
            return false;
        }
        let taken = self.room.take(GAP_BYTES as u64, self.segment);
        self.gap_open = !taken;
        self.signals.spares.store(self.room.spares, Ordering::Relaxed);
        taken
    }

    /// One more segment is ready.
    pub(super) fn add_spare(&mut self) {
        self.room.spares += 1;
        self.full = None;
        self.signals.spares.store(self.room.spares, Ordering::Relaxed);
    }

    /// No more segments can be made ready.
    pub(super) fn no_spare(&mut self, fault: JournalFault) {
        self.full = Some(fault);
    }

    /// Whether the writer is failing.
    pub(super) fn set_failing(&mut self, fault: Option<JournalFault>) {
        self.failing = fault;
    }

    /// Everything that was queued is written: this is the room that there is, and whether a gap is still to be told.
    pub(super) fn settle(&mut self, room: Room, gap_open: bool) {
        self.room = room;
        self.overdrawn = false;
        self.gap_open = gap_open;
        self.signals.spares.store(room.spares, Ordering::Relaxed);
        self.signals.unsettled.store(false, Ordering::Release);
    }

    /// From here on, records go into the next segment.
    pub(super) fn end_segment(&mut self) {
        self.room.left = 0;
    }
}

/// What the record of a message takes, in bytes.
pub(crate) fn size(message: &Message) -> u64 {
    let keys = &message.keys;
    record::message_bytes(keys.ends.len(), keys.bytes.len(), message.origin.as_deref(), message.payload.len())
}

fn refused(fault: JournalFault) -> TryPublishError {
    TryPublishError::Refused(fault.into())
}
