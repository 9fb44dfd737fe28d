//! The broker as its users see it: publish, subscribe, look at it, close it.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use crate::error::{EndReason, PublishError, TryPublishError};
use crate::group::Change;
use crate::lane::Lane;
use crate::member::{Member, Taken};
use crate::message::{LogId, Message, Offset};
use crate::options::{BrokerOptions, SubscribeOptions};
use crate::publish::{Pressure, Shared, Waiter, tell_waiters};
use crate::stats::{BrokerStats, SubscriptionStats};
use crate::subscription::{self, Subscription};
use crate::sync::Ordering;
use crate::wait::{Patience, ROOM_LOOKS, THREAD_LOOKS, block_on};

/// The broker. Clones are handles to the same one.
#[derive(Clone)]
pub struct Broker {
    pub(crate) shared: Arc<Shared>,
    #[cfg(feature = "journal")]
    pub(crate) life: Arc<crate::journal::Life>,
}

impl Default for Broker {
    fn default() -> Self {
        Broker::new(BrokerOptions::default())
    }
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker").field("stats", &self.stats()).finish()
    }
}

impl Broker {
    /// A broker of its own.
    pub fn new(options: BrokerOptions) -> Self {
        let shared = Arc::new(Shared::new(options));
        Broker {
            #[cfg(feature = "journal")]
            life: crate::journal::Life::new(Arc::clone(&shared)),
            shared,
        }
    }

    /// Publishes, waiting while a subscription with [`Overflow::Block`](crate::Overflow::Block) is full. Cancelling the
    /// future publishes the whole message or nothing.
    ///
    /// With a journal it returns when the message is written as durably as was asked for. Cancelled while it waits for that, the
    /// message stays published.
    ///
    /// # Errors
    /// When the broker is closed, the message breaks a limit, or the journal can't take it. Then nobody has it; only when the broker
    /// is closed before a failing journal had the message, somebody may.
    pub async fn publish(&self, mut message: Message) -> Result<Offset, PublishError> {
        let offset = self.accept(&mut message).await?;
        self.journaled(offset).await?;
        Ok(offset)
    }

    /// Publishes as [`publish`](Broker::publish) does, without waiting for the journal: whoever publishes many, one by one, waits once
    /// for the last ([`journaled`](Broker::journaled)). Cancelling the future publishes nothing. The message is taken from `message` when it
    /// was accepted.
    ///
    /// # Errors
    /// As [`publish`](Broker::publish); then nothing was published.
    pub async fn accept(&self, message: &mut Message) -> Result<Offset, PublishError> {
        self.wait_for_room(|waiter| self.shared.publish_one(message, Pressure::Refuse, waiter)).await
    }

    /// Publishes as [`publish`](Broker::publish) does, blocking this thread while it waits.
    ///
    /// # Errors
    /// When the broker is closed, or the message breaks a limit.
    pub fn publish_blocking(&self, mut message: Message) -> Result<Offset, PublishError> {
        let mut patience = Patience::up_to(THREAD_LOOKS);
        loop {
            match self
                .standing_in(|| self.shared.publish_one(&mut message, Pressure::Refuse, None), |&offset| Some(offset))
            {
                Ok(offset) => return self.journaled_blocking(offset).map(|()| offset),
                Err(TryPublishError::Refused(e)) => return Err(e),
                Err(TryPublishError::WouldBlock) if patience.look_again() => patience.pause(),
                Err(TryPublishError::WouldBlock) => return block_on(self.publish(message)),
            }
        }
    }

    /// Publishes at once or not at all; the message comes back with the error. It doesn't wait for a journal to have
    /// written it.
    ///
    /// # Errors
    /// [`WouldBlock`](TryPublishError::WouldBlock) where [`publish`](Broker::publish) would wait.
    #[expect(clippy::result_large_err, reason = "the message comes back by value, as from std's SendError")]
    pub fn try_publish(&self, mut message: Message) -> Result<Offset, (TryPublishError, Message)> {
        self.shared.publish_one(&mut message, Pressure::Refuse, None).map_err(|e| (e, message))
    }

    /// Publishes without ever waiting: subscriptions that would block drop their oldest messages. For a source that must
    /// always be read. A journal gets the message a moment later; where it can't, durable subscriptions are told a gap.
    ///
    /// # Errors
    /// When the broker is closed, or the message breaks a limit.
    pub fn publish_now(&self, mut message: Message) -> Result<Offset, PublishError> {
        self.shared.publish_one(&mut message, Pressure::DropOldest, None).map_err(never_blocks)
    }

    /// Publishes messages from the front of `batch`, in order, and takes from it those that were accepted, all of them
    /// unless one is refused. Waits as [`publish`](Broker::publish) does; a cancelled future leaves in `batch` what was
    /// not published. Returns how many were accepted.
    ///
    /// # Errors
    /// When the first message can't be published; then nothing was.
    pub async fn publish_batch(&self, batch: &mut VecDeque<Message>) -> Result<usize, PublishError> {
        let mut done = 0;
        let mut last = None;
        while !batch.is_empty() {
            match self.wait_for_room(|waiter| self.shared.publish_many(batch, Pressure::Refuse, waiter)).await {
                Ok((count, offset)) => {
                    done += count;
                    last = offset.or(last);
                }
                Err(e) if done == 0 => return Err(e),
                Err(_) => break,
            }
        }
        if let Some(last) = last {
            self.journaled(last).await?;
        }
        Ok(done)
    }

    /// Publishes a batch as [`publish_batch`](Broker::publish_batch) does, blocking this thread while it waits.
    ///
    /// # Errors
    /// When the first message can't be published; then nothing was.
    pub fn publish_batch_blocking(&self, batch: &mut VecDeque<Message>) -> Result<usize, PublishError> {
        let published = self.standing_in(|| self.shared.publish_many(batch, Pressure::Refuse, None), |&(_, last)| last);
        let (done, last) = match published {
            Err(TryPublishError::Refused(e)) => return Err(e),
            Err(TryPublishError::WouldBlock) => return block_on(self.publish_batch(batch)),
            Ok(published) => published,
        };
        // What is refused stays in the batch; what was accepted before it counts.
        let rest = if batch.is_empty() { 0 } else { block_on(self.publish_batch(batch)).unwrap_or(0) };
        last.map_or(Ok(()), |last| self.journaled_blocking(last))?;
        Ok(done + rest)
    }

    /// Publishes messages from the front of `batch` until one would block or is refused. Returns how many were accepted.
    ///
    /// # Errors
    /// When the first message can't be published; then nothing was.
    pub fn try_publish_batch(&self, batch: &mut VecDeque<Message>) -> Result<usize, TryPublishError> {
        self.shared.publish_many(batch, Pressure::Refuse, None).map(|(count, _)| count)
    }

    /// Publishes messages from the front of `batch` without ever waiting, as [`publish_now`](Broker::publish_now) does.
    ///
    /// # Errors
    /// When the first message can't be published; then nothing was.
    pub fn publish_batch_now(&self, batch: &mut VecDeque<Message>) -> Result<usize, PublishError> {
        self.shared.publish_many(batch, Pressure::DropOldest, None).map(|(count, _)| count).map_err(never_blocks)
    }

    /// Waits until the journal, if there is one, has the message of this offset and all before it.
    ///
    /// # Errors
    /// When the broker was closed before it was written.
    #[cfg(feature = "journal")]
    pub async fn journaled(&self, offset: Offset) -> Result<(), PublishError> {
        match self.shared.journal.get() {
            Some(attached) => attached.journaled(offset).await,
            None => Ok(()),
        }
    }

    /// Publishes and, where nobody else is about to, writes to the journal what was published, up to the offset that `last` tells.
    #[cfg(feature = "journal")]
    fn standing_in<T>(
        &self,
        publish: impl FnOnce() -> Result<T, TryPublishError>,
        last: impl FnOnce(&T) -> Option<Offset>,
    ) -> Result<T, TryPublishError> {
        let stand_in = self.shared.journal.get().and_then(crate::journal::Attached::stand_in);
        let published = publish()?;
        if let (Some(stand_in), Some(last)) = (stand_in, last(&published)) {
            stand_in.write_to(last);
        }
        Ok(published)
    }

    #[cfg(not(feature = "journal"))]
    fn standing_in<T>(
        &self,
        publish: impl FnOnce() -> Result<T, TryPublishError>,
        _: impl FnOnce(&T) -> Option<Offset>,
    ) -> Result<T, TryPublishError> {
        publish()
    }

    #[cfg(feature = "journal")]
    fn journaled_blocking(&self, offset: Offset) -> Result<(), PublishError> {
        match self.shared.journal.get() {
            Some(attached) => block_on(attached.journaled(offset)),
            None => Ok(()),
        }
    }

    /// Waits for the journal, which is there with the feature `journal` only.
    ///
    /// # Errors
    /// None without it.
    #[cfg(not(feature = "journal"))]
    #[expect(clippy::unused_async, reason = "with a journal there is something to wait for")]
    pub async fn journaled(&self, _: Offset) -> Result<(), PublishError> {
        Ok(())
    }

    #[cfg(not(feature = "journal"))]
    fn journaled_blocking(&self, _: Offset) -> Result<(), PublishError> {
        Ok(())
    }

    /// Tries again each time that those who had refused have made room.
    async fn wait_for_room<T>(
        &self,
        mut attempt: impl FnMut(Option<&Arc<Waiter>>) -> Result<T, TryPublishError>,
    ) -> Result<T, PublishError> {
        let mut patience = Patience::up_to(ROOM_LOOKS);
        // Members know it weakly, so a future that is dropped is forgotten.
        let mut waiter = None;
        poll_fn(|cx| {
            let look_again = patience.look_again();
            waiter = (!look_again).then(|| Waiter::new(cx.waker().clone()));
            match attempt(waiter.as_ref()) {
                Ok(value) => Poll::Ready(Ok(value)),
                Err(TryPublishError::Refused(e)) => Poll::Ready(Err(e)),
                Err(TryPublishError::WouldBlock) => {
                    match &waiter {
                        Some(waiter) => waiter.count_down(),
                        None => cx.waker().wake_by_ref(),
                    }
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Makes a subscription; what is published from now on is for it.
    pub fn subscribe(&self, options: SubscribeOptions) -> Subscription {
        let member = self.shared.subscribe(options);
        Subscription::new(Arc::clone(&self.shared), member)
    }

    /// Ends publishing. Subscriptions yield what they have queued, then end; publishers that wait are refused.
    pub fn close(&self) {
        self.shared.close();
    }

    /// The offset of the newest message; the one before the first that there will be, where there is none yet.
    pub fn last_offset(&self) -> Offset {
        self.shared.with_publishing(|p| Offset::new(p.next - 1))
    }

    /// Counters of the whole.
    pub fn stats(&self) -> BrokerStats {
        self.shared.stats()
    }

    /// What queues hold now, as in [`stats`](Broker::stats) but without asking anybody: cheap enough to be called for every
    /// message. The open block, at most a 64th of [`max_bytes`](BrokerOptions::max_bytes) and about a megabyte, isn't counted.
    pub fn held_bytes(&self) -> usize {
        self.shared.closed_bytes()
    }

    /// Counters of each subscription that lives, oldest first.
    pub fn subscriptions(&self) -> Vec<SubscriptionStats> {
        self.shared.with_publishing(|p| p.members.values().map(|m| subscription::stats(m, &m.cursor.lock())).collect())
    }

    /// The prefixes of the subscription with this number, in byte order, at most `most` of them; none once it is gone. For
    /// listings: it looks at all prefixes that the subscription has.
    pub fn prefixes_of(&self, subscription: u64, most: usize) -> Vec<Box<[u8]>> {
        self.shared.prefixes_of(subscription, most)
    }

    /// The name of the log that offsets count in, the first half of each [`EventId`](crate::EventId): the journal's from when
    /// one is attached.
    pub fn log_id(&self) -> LogId {
        #[cfg(feature = "journal")]
        if let Some(attached) = self.shared.journal.get() {
            return attached.log.id;
        }
        self.shared.options.log_id
    }
}

fn never_blocks(error: TryPublishError) -> PublishError {
    match error {
        TryPublishError::Refused(e) => e,
        TryPublishError::WouldBlock => unreachable!("nobody blocks a publisher that can't wait"),
    }
}

impl Shared {
    pub(crate) fn subscribe(&self, options: SubscribeOptions) -> Arc<Member> {
        let mut sets = self.sets.lock();
        let group = if options.journal { Some(sets.enter_alone(self)) } else { sets.enter(self, &options.prefixes) };
        self.with_publishing(|p| {
            let id = p.next_member;
            p.next_member += 1;
            let lane = Arc::new(Lane::new(group.as_ref().is_some_and(|g| g.matches_all())));
            let member = Arc::new(Member::new(id, options, Arc::clone(&lane), p.next));
            if p.closed {
                member.set_end(EndReason::BrokerClosed);
            }
            #[cfg(feature = "journal")]
            if member.options.may_spill() {
                member.cursor.lock().spills = self.journal.get().is_some();
            }
            member.prefixes.store(group.as_ref().map_or(0, |g| g.len()), Ordering::Relaxed);
            p.settle(&member, group, lane);
            p.members.insert(id, Arc::clone(&member));
            member
        })
    }

    pub(crate) fn prefixes_of(&self, member: u64, most: usize) -> Vec<Box<[u8]>> {
        let group = self.with_publishing(|p| p.members.get(&member).cloned().and_then(|m| p.group_of(&m)));
        group.flatten().map_or_else(Vec::new, |group| group.first_prefixes(most))
    }

    /// Takes a subscription away. What it had queued is abandoned.
    pub(crate) fn unsubscribe(&self, member: &Arc<Member>) {
        let mut sets = self.sets.lock();
        let (group, mut pins, waiters) = self.with_publishing(|p| {
            let mut cursor = member.cursor.lock();
            p.end(member, &mut cursor, EndReason::Closed);
            let group = p.forget(member, &cursor);
            let mut taken = Taken::default();
            let abandoned = cursor.abandon(&mut taken) + cursor.spilled;
            if !cursor.kept {
                self.abandoned.fetch_add(abandoned, Ordering::Relaxed);
            }
            p.past_delivered += cursor.delivered;
            p.past_dropped += cursor.dropped;
            (group, taken.pins, cursor.take_waiters())
        });
        if let Some(group) = group {
            sets.leave(self, &group);
        }
        self.reclaim_from(1); // a group may hold much more than a node
        drop(sets);
        self.release(&mut pins);
        tell_waiters(waiters);
    }

    pub(crate) fn change_prefixes<P: AsRef<[u8]>>(
        &self,
        member: &Arc<Member>,
        change: Change,
        prefixes: impl IntoIterator<Item = P>,
    ) -> usize {
        let mut sets = self.sets.lock();
        let Some(group) = self.with_publishing(|p| p.group_of(member)) else { return 0 };
        let changed = sets.change(self, group.as_ref(), change, prefixes);
        member.prefixes.store(changed.prefixes, Ordering::Relaxed);
        member.changes.fetch_add(1, Ordering::Release);
        if let Some(to) = changed.moved {
            self.with_publishing(|p| p.transfer(member, to));
            if let Some(group) = group {
                sets.leave(self, &group);
            }
            self.reclaim_from(1);
        }
        changed.count
    }

    pub(crate) fn end(&self, member: &Arc<Member>, reason: EndReason) {
        let waiters = self.with_publishing(|p| {
            let mut cursor = member.cursor.lock();
            p.end(member, &mut cursor, reason);
            cursor.take_waiters()
        });
        tell_waiters(waiters);
    }

    pub(crate) fn close(&self) {
        let members = self.with_publishing(|p| {
            p.closed = true;
            p.members.values().cloned().collect::<Vec<_>>()
        });
        for member in members {
            self.end(&member, EndReason::BrokerClosed);
        }
    }

    pub(crate) fn stats_of(&self, member: &Arc<Member>) -> Option<SubscriptionStats> {
        self.with_publishing(|p| {
            p.members.contains_key(&member.id).then(|| subscription::stats(member, &member.cursor.lock()))
        })
    }

    fn stats(&self) -> BrokerStats {
        self.with_publishing(|p| {
            let mut stats = BrokerStats {
                published: p.published,
                published_bytes: p.published_bytes,
                subscriptions: p.members.len(),
                prefixes: self.prefixes(),
                delivered: p.past_delivered,
                dropped: p.past_dropped,
                abandoned: self.abandoned.load(Ordering::Relaxed),
                held_bytes: self.total(p),
            };
            for member in p.members.values() {
                let cursor = member.cursor.lock();
                stats.delivered += cursor.delivered;
                stats.dropped += cursor.dropped_now();
            }
            stats
        })
    }
}
