//! Members come, go, and move between lanes, with what they have queued.
//!
//! A member that overflows gets a lane of its own, which goes on where it stood ([`Publishing::set_apart`]); when it has read
//! everything it goes back to where the others of its group are ([`Shared::rejoin`]). One that changes its prefixes moves to
//! another group ([`Publishing::transfer`]); one that ends leaves all of them. Whoever is moved is woken, because it may
//! be waiting at its old lane.

#![allow(unsafe_code)] // What publishers own is behind the publish lock; see `lane::Published`.

use std::sync::Arc;

use super::{Publishing, Shared};
use crate::error::EndReason;
use crate::group::Group;
use crate::lane::Lane;
use crate::member::{Cursor, Dropping, Hole, Member};
use crate::message::{Gap, Offset};
use crate::sync::{Ordering, fence};

impl Shared {
    /// Lets a member that was dropping take messages again, and puts the gap into its stream.
    pub(crate) fn stop_dropping(&self, member: &Arc<Member>) {
        self.with_publishing(|p| p.stop_dropping(&mut member.cursor.lock(), member));
    }

    /// Brings a member that stands apart, and has read everything, back to where the others of its group are.
    pub(crate) fn rejoin(&self, member: &Arc<Member>) {
        self.with_publishing(|p| {
            let mut cursor = member.cursor.lock();
            // SAFETY: we hold the publish lock; one fan, then one feed at a time.
            let group = unsafe { member.group.get() }.clone();
            let Some(group) = group.filter(|_| !cursor.has_any() && member.end_reason().is_none()) else { return };
            // SAFETY: as above.
            let fan = unsafe { group.fan.get() };
            member.apart.store(false, Ordering::Relaxed);
            match fan.main.clone() {
                None => fan.main = Some(Arc::clone(&cursor.lane)),
                Some(main) if Arc::ptr_eq(&main, &cursor.lane) => {}
                Some(main) => {
                    p.take_out(member, &mut cursor);
                    p.put_in(&main, member, &mut cursor);
                }
            }
        });
    }
}

impl Publishing {
    /// Leaves a member to be woken whatever it waits for.
    pub(super) fn rouse(&mut self, member: &Arc<Member>, cursor: &Cursor) {
        if member.listed.swap(false, Ordering::Relaxed) {
            let mut sleeping = cursor.lane.readers.sleeping.lock();
            sleeping.retain(|m| !Arc::ptr_eq(m, member));
            cursor.lane.readers.sleepers.store(sleeping.len(), Ordering::Relaxed);
        }
        self.wake.extend(member.waker.lock().take());
    }

    /// Puts a member that has nothing queued into a lane, at its end.
    pub(crate) fn put_in(&mut self, lane: &Arc<Lane>, member: &Arc<Member>, cursor: &mut Cursor) {
        // SAFETY: we hold the publish lock, and no other feed.
        let feed = unsafe { lane.feed.get() };
        feed.run_serial = 0; // it starts reading at the start of a run
        feed.members.push(Arc::clone(member));
        feed.active += 1;
        cursor.join(Arc::clone(lane), feed.bytes);
        member.tell_limits(cursor);
        feed.refresh();
    }

    /// Takes a member that has nothing queued out of its lane.
    pub(super) fn take_out(&mut self, member: &Arc<Member>, cursor: &mut Cursor) {
        self.rouse(member, cursor);
        cursor.lane.readers.entries.lock().leave(cursor.entry);
        // SAFETY: we hold the publish lock, and no other feed.
        let feed = unsafe { cursor.lane.feed.get() };
        feed.members.retain(|m| !Arc::ptr_eq(m, member));
        feed.active = feed.active.min(feed.members.len() as u32);
        if feed.members.is_empty() {
            self.remove_lane(member, &cursor.lane);
        }
    }

    /// Takes a lane out of the group of its last member.
    pub(super) fn remove_lane(&mut self, member: &Member, lane: &Arc<Lane>) {
        self.touched.retain(|touched| !std::ptr::eq(touched.as_ptr(), &raw const **lane));
        // SAFETY: we hold the publish lock; one group, then one fan.
        let Some(group) = (unsafe { member.group.get() }) else { return };
        // SAFETY: as above.
        let fan = unsafe { group.fan.get() };
        fan.lanes.retain(|l| !Arc::ptr_eq(l, lane));
        fan.main.take_if(|main| Arc::ptr_eq(main, lane));
    }

    /// Gives a member a lane of its own, which goes on where it stands, outside of any group.
    pub(super) fn detach(&mut self, member: &Arc<Member>, cursor: &mut Cursor) {
        self.rouse(member, cursor);
        // SAFETY: we hold the publish lock, and no other feed.
        let feed = unsafe { cursor.lane.feed.get() };
        if feed.members.len() == 1 {
            self.remove_lane(member, &cursor.lane);
            return;
        }
        let mut entries = cursor.lane.readers.entries.lock();
        let own = entries.tail_for_one(cursor.entry);
        entries.leave(cursor.entry);
        drop(entries);
        let tail = cursor.lane.ends.tail.load(Ordering::Relaxed);
        let lane = Arc::new(Lane::going_on(feed.match_all, tail, feed.bytes, feed.last, own));
        feed.members.retain(|m| !Arc::ptr_eq(m, member));
        feed.active -= 1;
        // SAFETY: the lane is new.
        let new = unsafe { lane.feed.get() };
        (new.dense, new.window, new.window_tail, new.window_bytes) =
            (feed.dense, feed.window, feed.window_tail, feed.window_bytes);
        new.members.push(Arc::clone(member));
        new.active = 1;
        new.refresh();
        cursor.lane = lane;
    }

    /// Gives a member that overflows a lane of its own in its group, and lets nobody join it.
    pub(super) fn set_apart(&mut self, member: &Arc<Member>, cursor: &mut Cursor) {
        if member.apart.swap(true, Ordering::Relaxed) {
            return;
        }
        self.detach(member, cursor);
        // SAFETY: we hold the publish lock; one group, then one fan.
        if let Some(group) = unsafe { member.group.get() } {
            // SAFETY: as above.
            unsafe { group.fan.get() }.lanes.push(Arc::clone(&cursor.lane));
        }
    }

    /// Puts a new member into the main lane of its group, or into `lane` where there is none.
    pub(crate) fn settle(&mut self, member: &Arc<Member>, group: Option<Arc<Group>>, lane: Arc<Lane>) {
        let mut cursor = member.cursor.lock();
        let lane = group.as_ref().map_or(Arc::clone(&lane), |group| {
            // SAFETY: we hold the publish lock, and no other fan.
            let fan = unsafe { group.fan.get() };
            Arc::clone(fan.main.get_or_insert_with(|| {
                fan.lanes.push(Arc::clone(&lane));
                lane
            }))
        });
        self.put_in(&lane, member, &mut cursor);
        // SAFETY: we hold the publish lock, and have no other group.
        *unsafe { member.group.get() } = group;
    }

    pub(super) fn has_group(&self, member: &Member) -> bool {
        // SAFETY: we hold the publish lock, and have no other group.
        unsafe { member.group.get() }.is_some()
    }

    /// The group of a member, if it has any prefixes; `None` for a member that is gone.
    pub(crate) fn group_of(&self, member: &Member) -> Option<Option<Arc<Group>>> {
        // SAFETY: we hold the publish lock, and have no other group.
        self.members.contains_key(&member.id).then(|| unsafe { member.group.get() }.clone())
    }

    /// Takes a member that has ended off the list, and out of its group.
    pub(crate) fn forget(&mut self, member: &Arc<Member>, cursor: &Cursor) -> Option<Arc<Group>> {
        self.members.remove(&member.id);
        self.rouse(member, cursor);
        // Its lane knows it and it knows its lane: one of them has to let go.
        // SAFETY: we hold the publish lock, and no other feed.
        unsafe { cursor.lane.feed.get() }.members.clear();
        // SAFETY: we hold the publish lock, and have no other group.
        unsafe { member.group.get() }.take()
    }

    /// Brings a member over to another group, or to none; what is queued stays queued.
    pub(crate) fn transfer(&mut self, member: &Arc<Member>, to: Option<Arc<Group>>) {
        let mut cursor = member.cursor.lock();
        if member.end_reason().is_none() {
            self.detach(member, &mut cursor);
            if let Some(group) = &to {
                // SAFETY: we hold the publish lock; one feed, then one fan.
                unsafe { cursor.lane.feed.get() }.match_all = group.matches_all();
                // SAFETY: as above.
                let fan = unsafe { group.fan.get() };
                fan.lanes.push(Arc::clone(&cursor.lane));
                let main = fan.main.is_none() && cursor.dropping.is_none();
                if main {
                    fan.main = Some(Arc::clone(&cursor.lane));
                }
                member.apart.store(!main, Ordering::Relaxed);
            } else {
                member.apart.store(false, Ordering::Relaxed);
            }
        }
        // SAFETY: we hold the publish lock, and have no other group.
        *unsafe { member.group.get() } = to;
    }

    /// From here on, messages are dropped for this member, which has a lane of its own.
    pub(super) fn start_dropping(&mut self, member: &Arc<Member>, cursor: &mut Cursor) {
        let at = cursor.lane.ends.tail.load(Ordering::Relaxed);
        cursor.dropping = Some(Dropping { at, first: Offset::new(self.next) });
        // SAFETY: we hold the publish lock, and no other feed.
        unsafe { cursor.lane.feed.get() }.active = 0;
        self.rouse(member, cursor);
    }

    pub(super) fn stop_dropping(&mut self, cursor: &mut Cursor, member: &Arc<Member>) {
        let Some(dropping) = cursor.dropping.take() else { return };
        let resume = cursor.lane.ends.tail.load(Ordering::Relaxed);
        // SAFETY: we hold the publish lock, and no other feed.
        let last = unsafe { cursor.lane.feed.get() }.last;
        let count = resume - dropping.at;
        if count > 0 {
            let gap = Gap { first: dropping.first, last, count };
            cursor.holes.push_back(Hole { at: dropping.at, resume, gap });
            cursor.skipped += count;
            cursor.count_dropped(count);
        }
        // SAFETY: we hold the publish lock, and no other feed.
        let feed = unsafe { cursor.lane.feed.get() };
        feed.run_serial = 0;
        feed.active = 1;
        member.tell_limits(cursor);
        feed.refresh();
    }

    /// Ends a member: nothing more is queued for it.
    pub(crate) fn end(&mut self, member: &Arc<Member>, cursor: &mut Cursor, reason: EndReason) {
        if member.end_reason().is_some() {
            return;
        }
        self.stop_dropping(cursor, member);
        self.detach(member, cursor);
        // SAFETY: we hold the publish lock, and no other feed.
        unsafe { cursor.lane.feed.get() }.active = 0;
        member.set_end(reason);
        fence(Ordering::SeqCst); // it sees the end, or we see that it waits
        self.rouse(member, cursor);
    }
}
