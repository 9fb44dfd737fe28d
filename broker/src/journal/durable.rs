//! Durable subscriptions: they read from the journal, and their place in it outlives them.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::cursor::CursorFile;
use super::log::Log;
use super::spill::Spill;
use crate::error::TryRecvError;
use crate::message::{Delivery, Offset, Received, Timestamp};
use crate::options::BatchLimit;
use crate::subscription::{Subscription, SubscriptionHandle};
use crate::wait::block_on;

/// Where a subscription begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Start {
    /// At what is published from now on.
    #[default]
    Latest,
    /// At the oldest message that the journal has.
    Earliest,
    /// At this offset. What was before the oldest message is told as a gap.
    Offset(Offset),
    /// At the first message that was taken in at that time or later.
    Time(Timestamp),
}

/// A subscription whose place in the journal is kept: who opens it again with the same cursor goes on where it was.
///
/// It yields messages once the journal has them, in order, each at least once: what was not
/// [committed](DurableSubscription::commit) when it ended comes again. What the journal doesn't have (because it was full, or is
/// so small that the messages are gone already, or is damaged) is told as a [`Gap`](crate::Gap); its count is the most that may be
/// missing, since it can't be told any more which of the messages matched.
///
/// It reads from memory while it keeps up, and from the journal otherwise; `hwm` and `hwm_bytes` of its options say how much may wait
/// in memory, their `overflow` is not used.
pub struct DurableSubscription {
    log: Arc<Log>,
    subscription: Subscription,
    /// What was taken from memory or the journal and not handed out.
    pending: VecDeque<Pending>,
    cursor: Option<Arc<CursorFile>>,
    /// The offset to begin at.
    from: u64,
    /// The offset up to which everything that matches was handed out or is pending, as far as known.
    read: u64,
    /// The offset behind the last delivery.
    delivered: u64,
    /// As committed.
    done: u64,
    /// What is not done: where batches end, and the time of the first message of each.
    outstanding: VecDeque<(u64, Timestamp)>,
    /// The offset up to which everything that matches was handed out, for those who look.
    shown: Arc<AtomicU64>,
}

/// Tells how much a durable subscription has not handed out yet, from any thread.
#[derive(Clone)]
pub struct UnreadProbe {
    log: Arc<Log>,
    cursor: Option<Arc<CursorFile>>,
    shown: Arc<AtomicU64>,
}

impl UnreadProbe {
    /// Offsets between what was handed out and the newest message, as far as the journal still has them: no fewer than the messages
    /// that wait, and none where it waits for a message itself.
    pub fn unread(&self) -> u64 {
        self.between().1
    }

    /// Offsets that the journal had to let go before they were handed out, and that are not told as a gap yet: no fewer than the messages
    /// that are lost.
    pub fn lost(&self) -> u64 {
        self.between().0
    }

    fn between(&self) -> (u64, u64) {
        let (first, next) = self.log.range();
        let mut shown = self.shown.load(Ordering::Relaxed);
        if let Some(cursor) = &self.cursor {
            if cursor.follow(next) {
                self.log.cursor_moved();
            }
            shown = shown.max(cursor.position());
        }
        (self.log.offsets_between(shown, first), self.log.offsets_between(shown.max(first), next))
    }
}

impl fmt::Debug for UnreadProbe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("UnreadProbe").field(&self.unread()).finish()
    }
}

#[derive(Debug)]
struct Pending {
    delivery: Delivery<Received>,
    /// Whether it comes from the journal, so that nothing is left to be checked.
    stored: bool,
}

impl Pending {
    fn first(&self) -> u64 {
        match &self.delivery {
            Delivery::Message(message) => message.offset().get(),
            Delivery::Gap(gap) => gap.first.get(),
        }
    }

    fn last(&self) -> u64 {
        match &self.delivery {
            Delivery::Message(message) => message.offset().get(),
            Delivery::Gap(gap) => gap.last.get(),
        }
    }
}

impl fmt::Debug for DurableSubscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DurableSubscription").field("subscription", &self.subscription).finish_non_exhaustive()
    }
}

/// How far a durable subscription is behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Lag {
    /// Offsets between what is done and the newest message: no fewer than the messages that it has to handle.
    pub messages: u64,
    /// The age of the oldest message that was handed out and is not done.
    pub time: Duration,
}

impl DurableSubscription {
    /// Begins at `from`; `subscription` is a new one that spills.
    pub(super) fn new(
        log: Arc<Log>,
        mut subscription: Subscription,
        cursor: Option<Arc<CursorFile>>,
        from: u64,
    ) -> Self {
        let joined = subscription.handle().member().joined;
        subscription.spill().get_or_insert_with(|| Spill::new(Arc::clone(&log))).read_past(from, joined - 1);
        if let Some(cursor) = &cursor {
            let member = subscription.handle().member();
            member.cursor.lock().kept = true;
            *cursor.reader.lock() = Some(Arc::clone(member));
        }
        let (read, delivered, done) = (from, from, from);
        let (pending, outstanding) = (VecDeque::new(), VecDeque::new());
        let shown = Arc::new(AtomicU64::new(from));
        DurableSubscription { log, subscription, pending, cursor, from, read, delivered, done, outstanding, shown }
    }

    /// What tells how much it has not handed out yet, also while it is being read.
    pub fn probe(&self) -> UnreadProbe {
        UnreadProbe { log: Arc::clone(&self.log), cursor: self.cursor.clone(), shown: Arc::clone(&self.shown) }
    }

    /// Waits for something to be there, then puts as much as there is within `limit` into `into`. False when the broker was
    /// closed and everything was read. Cancelling loses nothing.
    pub async fn recv_batch(&mut self, limit: BatchLimit, into: &mut Vec<Delivery<Received>>) -> bool {
        loop {
            match self.try_recv_batch(limit, into) {
                Ok(_) => return true,
                Err(TryRecvError::Ended) => return false,
                Err(TryRecvError::Empty) => self.ready().await,
            }
        }
    }

    /// What [`recv_batch`](DurableSubscription::recv_batch) yields, if it is there now. Returns how many messages and gaps that
    /// were.
    ///
    /// # Errors
    /// When nothing is there, telling whether anything may come.
    pub fn try_recv_batch(
        &mut self,
        limit: BatchLimit,
        into: &mut Vec<Delivery<Received>>,
    ) -> Result<usize, TryRecvError> {
        if let Some(cursor) = &self.cursor {
            cursor.idle.store(false, Ordering::Release);
        }
        loop {
            let count = self.hand_out(limit, into);
            if count > 0 {
                self.shown.store(self.delivered, Ordering::Relaxed);
                return Ok(count);
            }
            if !self.pending.is_empty() {
                if self.log.has_ended() && self.pending[0].first() >= self.log.watermark() {
                    // The journal never got it, so it was never acknowledged to anybody.
                    self.pending.clear();
                    continue;
                }
                return Err(TryRecvError::Empty);
            }
            // What is below it has been put into our queue, if it matches: so with an empty queue it is all read.
            let head = self.log.watermark();
            let (from, pending) = (self.from, &mut self.pending);
            let taken = self.subscription.try_recv_batch(limit).map(|batch| {
                let items = batch.iter().map(|item| match item {
                    Delivery::Message(message) => {
                        Pending { stored: message.is_stored(), delivery: Delivery::Message(message.to_received()) }
                    }
                    Delivery::Gap(gap) => Pending { stored: true, delivery: Delivery::Gap(gap) },
                });
                pending.extend(items.filter(|item| item.last() >= from));
            });
            if let Err(end) = taken {
                let unread = self.subscription.spill().as_ref().and_then(|spill| spill.next());
                self.read = self.read.max(unread.unwrap_or(head));
                self.shown.store(self.read.max(self.delivered), Ordering::Relaxed);
                self.settle();
                if let Some(cursor) = &self.cursor {
                    let idle = unread.is_none() && self.done >= self.delivered;
                    cursor.idle.store(idle, Ordering::Release);
                }
                return Err(end);
            }
        }
    }

    /// What [`recv_batch`](DurableSubscription::recv_batch) yields, blocking this thread until it is there.
    pub fn recv_batch_blocking(&mut self, limit: BatchLimit, into: &mut Vec<Delivery<Received>>) -> bool {
        block_on(self.recv_batch(limit, into))
    }

    /// Waits until a receive would not, mostly; now and then nothing is there after all. Cancelling loses nothing.
    pub async fn ready(&mut self) {
        match self.pending.front() {
            Some(pending) => {
                self.log.passed(pending.first()).await;
            }
            None => self.subscription.ready().await,
        }
    }

    /// Says that everything below `next` is done. It is written down soon; what was done since the last time comes again
    /// after a crash. A position that is lower than the one before changes nothing.
    pub fn commit(&mut self, next: Offset) {
        self.done = self.done.max(next.get().min(self.delivered));
        while self.outstanding.front().is_some_and(|&(end, _)| end <= self.done) {
            self.outstanding.pop_front();
        }
        self.settle();
    }

    /// The offset below which everything is done.
    pub fn position(&self) -> Offset {
        Offset::new(self.done)
    }

    /// How far it is behind.
    pub fn lag(&self) -> Lag {
        let oldest = self.outstanding.front().map_or(0, |&(_, time)| time.as_millis());
        lag(&self.log, self.done, oldest)
    }

    /// A handle for its prefixes and counters. Closing it ends the subscription.
    pub fn handle(&self) -> &SubscriptionHandle {
        self.subscription.handle()
    }

    /// Hands out what is pending, as far as the journal has it.
    fn hand_out(&mut self, limit: BatchLimit, into: &mut Vec<Delivery<Received>>) -> usize {
        let Some(first) = self.pending.front() else { return 0 };
        let time = match &first.delivery {
            Delivery::Message(message) => message.time(),
            Delivery::Gap(_) => self.log.options.clock.now(),
        };
        let watermark = self.log.watermark();
        let gap_end = self.log.gap_end();
        let (mut count, mut bytes) = (0, 0);
        while count < limit.messages.max(1) && bytes < limit.bytes.max(1) {
            let Some(next) = self.pending.front() else { break };
            if !next.stored && next.first() >= watermark {
                break;
            }
            if !next.stored && gap_end > next.first() {
                // It may be that the journal doesn't have this one. What the journal has counts.
                let (first, last) = (next.first(), self.pending.back().map_or(0, Pending::last));
                self.pending.clear();
                if let Some(spill) = self.subscription.spill() {
                    spill.read_again(first, last);
                }
                break;
            }
            self.delivered = next.last() + 1;
            let Some(next) = self.pending.pop_front() else { break };
            if let Delivery::Message(message) = &next.delivery {
                bytes += message.counted_bytes();
            }
            into.push(next.delivery);
            count += 1;
        }
        if count > 0 {
            self.read = self.read.max(self.delivered);
            self.outstanding.push_back((self.delivered, time));
            if let Some(cursor) = &self.cursor {
                cursor.oldest.store(self.outstanding[0].1.as_millis(), Ordering::Relaxed);
            }
        }
        count
    }

    /// Where nothing is outstanding, everything that was read is done.
    fn settle(&mut self) {
        if self.done >= self.delivered && self.pending.is_empty() {
            self.done = self.done.max(self.read);
            self.delivered = self.done;
            self.outstanding.clear();
        }
        let Some(cursor) = &self.cursor else { return };
        cursor.oldest.store(self.outstanding.front().map_or(0, |&(_, time)| time.as_millis()), Ordering::Relaxed);
        if cursor.move_to(self.done) {
            self.log.cursor_moved();
        }
    }
}

/// How far a position is behind; `oldest` is the time of the oldest message that isn't done, or 0.
pub(super) fn lag(log: &Log, position: u64, oldest: u64) -> Lag {
    let age = if oldest == 0 { 0 } else { log.options.clock.now().as_millis().saturating_sub(oldest) };
    Lag { messages: log.offsets_between(position, log.watermark()), time: Duration::from_millis(age) }
}

impl Drop for DurableSubscription {
    fn drop(&mut self) {
        if let Some(cursor) = &self.cursor {
            // What has come since it waits is not for it, and need not be looked at again.
            cursor.follow(self.log.watermark());
            cursor.idle.store(false, Ordering::Release);
            *cursor.reader.lock() = None;
            cursor.oldest.store(0, Ordering::Relaxed);
            // Where it can't be written, what was done comes again.
            let _ = cursor.save(&*self.log.options.disk);
            cursor.in_use.store(false, Ordering::Release);
        }
    }
}
