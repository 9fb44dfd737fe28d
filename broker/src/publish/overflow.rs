//! What happens at a high-water mark, and at the bound on all queues together: the policies of members that are full.
//!
//! A message is either given to everybody whose policy lets it, or, where a member makes the publisher wait, to nobody: so all
//! blocking members are asked before anything is changed. See the page of the parent module for what the policies cost.

#![allow(unsafe_code)] // What publishers own is behind the publish lock; see `lane::Published`.

use std::ptr::NonNull;
use std::sync::Arc;

use smallvec::SmallVec;

use super::{BLOCK_PART, Hit, OwnBlock, Pressure, Publishing, Shared, Waiter};
use crate::error::EndReason;
use crate::lane::Lane;
use crate::member::{Cursor, Member, Policy, Taken};
use crate::message::Offset;

impl Shared {
    /// Applies the policies of members that are full. Returns false where the publisher has to wait; nothing was changed then.
    #[cold]
    #[inline(never)]
    pub(super) fn make_room(
        &self,
        p: &mut Publishing,
        size: usize,
        short: bool,
        pressure: Pressure,
        waiter: Option<&Arc<Waiter>>,
    ) -> bool {
        let hits = std::mem::take(&mut p.hits);
        let done = self.make_room_in(p, &hits, size, short, pressure, waiter);
        p.hits = hits;
        done
    }

    pub(super) fn make_room_in(
        &self,
        p: &mut Publishing,
        hits: &[Hit],
        size: usize,
        short: bool,
        pressure: Pressure,
        waiter: Option<&Arc<Waiter>>,
    ) -> bool {
        if pressure == Pressure::Refuse {
            let mut refused = false;
            for lane in hits.iter().flat_map(Hit::lanes) {
                // SAFETY: we hold the publish lock, and look at one lane at a time.
                let feed = unsafe { lane.feed.get() };
                if feed.active > 0 && feed.is_over(&lane, size as u64) {
                    for member in feed.members.iter().filter(|m| m.blocks()) {
                        refused |= refuses(member, waiter, |c| member.is_full(c, feed.bytes, size as u64));
                    }
                }
            }
            if refused {
                return false;
            }
        }
        if short && !self.relieve(p, hits, size, pressure, waiter) {
            return false;
        }
        for lane in hits.iter().flat_map(Hit::lanes) {
            // SAFETY: as above.
            let feed = unsafe { lane.feed.get() };
            if feed.active == 0 || !feed.is_over(&lane, size as u64) {
                continue;
            }
            for member in feed.members.clone() {
                self.overflow(p, &member, size as u64);
            }
            // SAFETY: as above; `overflow` is done with it.
            unsafe { lane.feed.get() }.refresh();
        }
        true
    }

    /// Applies the policy of a member, if it is full.
    pub(super) fn overflow(&self, p: &mut Publishing, member: &Arc<Member>, size: u64) {
        let mut cursor = member.cursor.lock();
        // SAFETY: we hold the publish lock, and no other feed.
        let bytes = unsafe { cursor.lane.feed.get() }.bytes;
        if cursor.dropping.is_some() || !member.is_full(&cursor, bytes, size) {
            return;
        }
        match cursor.policy(&member.options) {
            Policy::TurnAway => {
                drop(cursor);
                p.turn_away(member);
            }
            Policy::DropNewest => {
                p.set_apart(member, &mut cursor);
                p.start_dropping(member, &mut cursor);
            }
            Policy::DropOldest => {
                p.set_apart(member, &mut cursor);
                let mut taken = Taken::default();
                while member.is_full(&cursor, bytes, size) {
                    cursor.drop_oldest(&mut taken);
                }
                member.tell_limits(&cursor);
                drop(cursor);
                self.release(&mut taken.pins);
            }
            Policy::Disconnect => {
                let offset = Offset::new(p.next);
                cursor.tell_one(offset);
                p.end(member, &mut cursor, EndReason::Overflowed);
            }
        }
    }

    /// Makes room below `max_bytes`, at the cost of those farthest behind. Returns false where the publisher has to wait.
    pub(super) fn relieve(
        &self,
        p: &mut Publishing,
        hits: &[Hit],
        size: usize,
        pressure: Pressure,
        waiter: Option<&Arc<Waiter>>,
    ) -> bool {
        if size + self.arena_bytes > self.options.max_bytes {
            // It can't be kept whatever goes: all are told.
            for lane in hits.iter().flat_map(Hit::lanes) {
                // SAFETY: we hold the publish lock, and look at one lane at a time.
                let feed = unsafe { lane.feed.get() };
                feed.last = Offset::new(p.next);
                if feed.active == 0 {
                    lane.pass_over(feed);
                    continue;
                }
                for member in &feed.members {
                    member.cursor.lock().tell_one(Offset::new(p.next));
                }
                p.touched.push(NonNull::from(&*lane));
            }
            // The lanes must not take it, so nobody matches.
            for hit in hits {
                // SAFETY: we hold the publish lock; hits are of this message, so their groups live.
                unsafe { hit.0.as_ref().fan.get() }.mask = 0;
            }
            return true;
        }
        // Some more than is needed, so that this is not done for each message.
        let enough = self.options.max_bytes - self.options.max_bytes / BLOCK_PART;
        let mut evicting = false;
        p.close_read_blocks();
        loop {
            let total = self.total(p) + self.arena_bytes + size;
            if total <= if evicting { enough } else { self.options.max_bytes } {
                return true;
            }
            // What the journal was given stays, for it was promised; its queue has a bound of its own.
            let may_overflow = |m: &&Arc<Member>| pressure == Pressure::Refuse || !m.options.journal;
            let members = p.members.values().filter(may_overflow);
            let farthest = members.map(|m| (m.cursor.lock().queued_bytes(), m)).max_by_key(|&(bytes, _)| bytes);
            let Some(member) = farthest.filter(|&(bytes, _)| bytes > 0).map(|(_, m)| Arc::clone(m)) else {
                return true;
            };
            let mut cursor = member.cursor.lock();
            let idle = cursor.dropping.is_some() || member.end_reason().is_some() || !p.has_group(&member);
            if !idle && member.blocks() && pressure == Pressure::Refuse {
                drop(cursor);
                if refuses(&member, waiter, |c| c.queued() > 0) {
                    return false;
                }
                continue;
            }
            if !idle {
                match cursor.policy(&member.options) {
                    Policy::TurnAway => return true,
                    Policy::DropNewest => {
                        p.set_apart(&member, &mut cursor);
                        p.start_dropping(&member, &mut cursor);
                        // SAFETY: we hold the publish lock, and look at one lane at a time.
                        let wants = |lane: Arc<Lane>| unsafe { lane.feed.get() }.active > 0;
                        if !hits.iter().flat_map(Hit::lanes).any(wants) {
                            return true; // nobody is left to keep it for
                        }
                        continue;
                    }
                    Policy::Disconnect => {
                        p.end(&member, &mut cursor, EndReason::Overflowed);
                        continue;
                    }
                    Policy::DropOldest => p.set_apart(&member, &mut cursor),
                }
            }
            evicting = true;
            self.close_open(p); // else what is evicted from it stays
            // SAFETY: we hold the publish lock, and look at one lane at a time.
            unsafe { cursor.lane.feed.get() }.own = None; // likewise
            let mut taken = Taken::default();
            for _ in 0..64 {
                if cursor.queued() > 0 {
                    cursor.drop_oldest(&mut taken);
                }
            }
            member.tell_limits(&cursor);
            drop(cursor);
            self.release(&mut taken.pins);
        }
    }
}

impl Publishing {
    /// Closes blocks of lanes' own that were read to their end.
    fn close_read_blocks(&mut self) {
        for member in self.members.values() {
            let cursor = member.cursor.lock();
            // SAFETY: we hold the publish lock, and look at one lane at a time.
            let feed = unsafe { cursor.lane.feed.get() };
            if feed.own.as_ref().is_some_and(OwnBlock::is_read) {
                feed.own = None;
            }
        }
    }

    /// Keeps the message at hand from a member whose queue keeps what it has; that is told in its place.
    pub(super) fn turn_away(&mut self, member: &Arc<Member>) {
        let offset = Offset::new(self.next);
        let lane = {
            let mut cursor = member.cursor.lock();
            cursor.tell_one(offset);
            Arc::clone(&cursor.lane)
        };
        // SAFETY: we hold the publish lock; one feed, then one group and its fan.
        unsafe { lane.feed.get() }.last = offset;
        // SAFETY: as above.
        if let Some(group) = unsafe { member.group.get() } {
            // SAFETY: as above. Its lane must not take the message; and it is the only one, since the group is its own.
            unsafe { group.fan.get() }.mask = 0;
        }
        self.touched.push(NonNull::from(&*lane));
        #[cfg(feature = "journal")]
        if let Some(gate) = &mut self.gate {
            gate.turn_away();
        }
    }
}

/// Whether a member makes the publisher wait; then the waiter, if there is one, will be told.
fn refuses(member: &Arc<Member>, waiter: Option<&Arc<Waiter>>, full: impl Fn(&Cursor) -> bool) -> bool {
    let mut cursor = member.cursor.lock();
    if !full(&cursor) {
        return false;
    }
    if let Some(waiter) = waiter {
        waiter.wait_for(&mut cursor);
    }
    true
}

impl Hit {
    /// The lanes of the group. Copied, since what is done to their members may change the list; for the slow path.
    pub(super) fn lanes(&self) -> SmallVec<[Arc<Lane>; 1]> {
        // SAFETY: hits are only used under the publish lock, for the message that they are of, so their groups live.
        unsafe { self.0.as_ref().fan.get() }.lanes.clone()
    }
}
