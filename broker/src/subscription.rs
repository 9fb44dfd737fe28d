//! The reading end of a subscription, and the handle for everything else about it.

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use crate::block::{BlockPtr, Record};
use crate::error::{EndReason, TryRecvError};
use crate::group::Change;
#[cfg(feature = "journal")]
use crate::journal::{Filled, Spill};
use crate::lane::ALL_KEYS;
use crate::member::{Cursor, Item, Member, Taken};
use crate::message::{Delivery, EventId, KeyIter, Keys, MatchedKeys, Offset, Origin, Received, Timestamp};
use crate::options::BatchLimit;
use crate::publish::{Shared, tell_waiters};
use crate::stats::SubscriptionStats;
use crate::sync::{Ordering, fence};
use crate::wait::{Patience, THREAD_LOOKS, block_on};

/// The reading end of a subscription; it has one reader. Dropping it ends the subscription, and what is still
/// queued is counted as abandoned.
pub struct Subscription {
    handle: SubscriptionHandle,
    /// What was taken last.
    taken: Taken,
    /// Deliveries of the block that is being read, to be given back together with those to come.
    kept: Option<(BlockPtr, u64)>,
    /// Whether the last take left nothing.
    drained: bool,
    task: Patience,
    thread: Patience,
    /// Where it spills, what it reads from the journal.
    #[cfg(feature = "journal")]
    spill: Option<Box<Spill>>,
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("stats", &self.handle.stats()).finish()
    }
}

impl Subscription {
    pub(crate) fn new(shared: Arc<Shared>, member: Arc<Member>) -> Self {
        Subscription {
            handle: SubscriptionHandle { shared, member },
            taken: Taken::default(),
            kept: None,
            drained: true,
            task: Patience::up_to(0),
            thread: Patience::up_to(THREAD_LOOKS),
            #[cfg(feature = "journal")]
            spill: None,
        }
    }

    /// The next message or gap; `None` when the subscription has ended and everything was read. Cancelling loses nothing.
    pub async fn recv(&mut self) -> Option<Delivery<Received>> {
        loop {
            match self.try_recv() {
                Ok(delivery) => return Some(delivery),
                Err(TryRecvError::Ended) => return None,
                Err(TryRecvError::Empty) => self.ready().await,
            }
        }
    }

    /// What [`recv`](Subscription::recv) yields, if it is there now.
    ///
    /// # Errors
    /// When nothing is queued, telling whether anything may come.
    pub fn try_recv(&mut self) -> Result<Delivery<Received>, TryRecvError> {
        self.fill(BatchLimit::messages(1))?;
        let delivery = match self.taken.items[0] {
            Item::Gap(gap) => Delivery::Gap(gap),
            Item::Run(record, mask, _) => Delivery::Message(self.message(record, mask).to_received()),
            #[cfg(feature = "journal")]
            Item::Stored(i) => Delivery::Message(self.taken.stored[i].clone()),
        };
        self.finish();
        Ok(delivery)
    }

    /// What [`recv`](Subscription::recv) yields, blocking this thread until it is there.
    pub fn recv_blocking(&mut self) -> Option<Delivery<Received>> {
        loop {
            match self.try_recv() {
                Ok(delivery) => return Some(delivery),
                Err(TryRecvError::Ended) => return None,
                Err(TryRecvError::Empty) => self.wait_blocking(),
            }
        }
    }

    /// Waits for something to be queued, then takes as much as there is within `limit`. `None` when the subscription has
    /// ended and everything was read. Cancelling loses nothing.
    pub async fn recv_batch(&mut self, limit: BatchLimit) -> Option<Batch<'_>> {
        if self.drained {
            self.task.let_gather();
        }
        loop {
            match self.fill(limit) {
                Ok(()) => return Some(Batch { subscription: self }),
                Err(TryRecvError::Ended) => return None,
                Err(TryRecvError::Empty) => self.ready().await,
            }
        }
    }

    /// What [`recv_batch`](Subscription::recv_batch) yields, if it is there now.
    ///
    /// # Errors
    /// When nothing is queued, telling whether anything may come.
    pub fn try_recv_batch(&mut self, limit: BatchLimit) -> Result<Batch<'_>, TryRecvError> {
        self.fill(limit)?;
        Ok(Batch { subscription: self })
    }

    /// What [`recv_batch`](Subscription::recv_batch) yields, blocking this thread until it is there.
    pub fn recv_batch_blocking(&mut self, limit: BatchLimit) -> Option<Batch<'_>> {
        if self.drained {
            self.thread.let_gather();
        }
        loop {
            match self.fill(limit) {
                Ok(()) => return Some(Batch { subscription: self }),
                Err(TryRecvError::Ended) => return None,
                Err(TryRecvError::Empty) => self.wait_blocking(),
            }
        }
    }

    /// Waits until a receive would not: something is queued, or the subscription has ended. Cancelling loses nothing.
    pub async fn ready(&mut self) {
        poll_fn(|cx| self.poll_ready(cx)).await;
    }

    /// [`ready`](Subscription::ready), for those who write their own futures. The last waker given is the one woken.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.has_any() {
            return Poll::Ready(());
        }
        self.task.sleep();
        self.poll_sleep(cx.waker())
    }

    /// Why the subscription has ended, if it has; what is queued can still be read.
    pub fn end(&self) -> Option<EndReason> {
        self.handle.member.end_reason()
    }

    /// A handle for everything but reading.
    pub fn handle(&self) -> &SubscriptionHandle {
        &self.handle
    }

    fn has_any(&self) -> bool {
        #[cfg(feature = "journal")]
        if let Some(spill) = self.spill.as_ref().filter(|s| s.is_pending()) {
            return spill.can_read();
        }
        let member = &self.handle.member;
        member.end_reason().is_some() || member.cursor.lock().has_any()
    }

    fn wait_blocking(&mut self) {
        while self.thread.look_again() {
            self.thread.pause();
            if self.has_any() {
                return;
            }
        }
        self.thread.sleep();
        block_on(poll_fn(|cx| self.poll_sleep(cx.waker())));
    }

    /// Leaves `waker` to be woken, unless there is something already.
    pub(crate) fn poll_sleep(&mut self, waker: &Waker) -> Poll<()> {
        #[cfg(feature = "journal")]
        if let Some(spill) = self.spill.as_mut().filter(|s| s.is_pending()) {
            return spill.poll_ready(&mut Context::from_waker(waker));
        }
        let SubscriptionHandle { shared, member } = &self.handle;
        if member.apart.load(Ordering::Relaxed) {
            shared.rejoin(member);
        }
        let cursor = member.cursor.lock();
        *member.waker.lock() = Some(waker.clone());
        if !member.listed.swap(true, Ordering::Relaxed) {
            let mut sleeping = cursor.lane.readers.sleeping.lock();
            sleeping.push(Arc::clone(member));
            cursor.lane.readers.sleepers.store(sleeping.len(), Ordering::Relaxed);
        }
        // Either a publisher sees that we are about to sleep, or we see what it has put into the lane.
        fence(Ordering::SeqCst);
        if member.end_reason().is_some() || cursor.has_any() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Takes what there is within `limit`.
    fn fill(&mut self, limit: BatchLimit) -> Result<(), TryRecvError> {
        // A batch that was leaked instead of dropped has left its items here.
        self.finish();
        let SubscriptionHandle { shared, member } = &self.handle;
        loop {
            #[cfg(feature = "journal")]
            if let Some(spill) = self.spill.as_mut().filter(|s| s.is_pending()) {
                match spill.fill(limit, &mut self.taken, shared, member) {
                    Filled::Some => return Ok(()),
                    Filled::Waiting => return Err(TryRecvError::Empty),
                    Filled::Done => {}
                }
            }
            let end = member.end_reason();
            let mut cursor = member.cursor.lock();
            let before = cursor.seq;
            cursor.take(limit, &mut self.taken);
            member.tell_limits(&cursor);
            let dropping = cursor.dropping.is_some();
            let waiters = if cursor.seq == before { Vec::new() } else { std::mem::take(&mut cursor.waiters) };
            self.drained = !cursor.has_any();
            drop(cursor);
            tell_waiters(waiters);
            if dropping {
                // There is room now.
                shared.stop_dropping(member);
            }
            #[cfg(feature = "journal")]
            let spilling = Self::find_spilled(&mut self.spill, &mut self.taken, shared, member);
            #[cfg(not(feature = "journal"))]
            let spilling = false;
            let count = self.taken.len;
            if count > 0 {
                self.task.found(count);
                self.thread.found(count);
                return Ok(());
            }
            if !dropping && !spilling {
                return Err(if end.is_some() { TryRecvError::Ended } else { TryRecvError::Empty });
            }
        }
    }

    /// Where a subscription that spills has come to a gap, has it read from the journal instead. Returns whether it did.
    #[cfg(feature = "journal")]
    fn find_spilled(spill: &mut Option<Box<Spill>>, taken: &mut Taken, shared: &Arc<Shared>, member: &Member) -> bool {
        let Some(Item::Gap(gap)) = taken.items.last() else { return false };
        let attached = shared.journal.get().filter(|_| member.options.may_spill());
        let Some(attached) = attached.filter(|a| a.has(gap.first)) else { return false };
        spill.get_or_insert_with(|| Spill::new(Arc::clone(&attached.log))).read_gap(*gap, member);
        taken.items.pop();
        taken.len -= 1;
        true
    }

    /// What it reads from the journal.
    #[cfg(feature = "journal")]
    pub(crate) fn spill(&mut self) -> &mut Option<Box<Spill>> {
        &mut self.spill
    }

    /// Is done with what was taken last.
    fn finish(&mut self) {
        let shared = &self.handle.shared;
        // What is left of the block that is being read is given back together with what is read of it next, unless nothing is
        // queued: who waits holds nothing.
        if let Some((block, count)) = self.kept.take() {
            match self.taken.pins.first_mut() {
                Some((first, pinned)) if *first == block => *pinned += count,
                _ => self.taken.pins.insert(0, (block, count)),
            }
        }
        if !self.drained {
            self.kept = self.taken.pins.pop();
        }
        shared.release(&mut self.taken.pins);
        self.taken.clear();
    }

    #[inline]
    fn message(&self, record: Record, mask: u32) -> MessageRef<'_> {
        MessageRef { source: Source::Record(record, mask, &self.handle.shared) }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.drained = true;
        self.finish();
        let SubscriptionHandle { shared, member } = &self.handle;
        shared.unsubscribe(member);
    }
}

/// Everything about a subscription but reading: can be cloned and used from anywhere.
#[derive(Clone)]
pub struct SubscriptionHandle {
    shared: Arc<Shared>,
    member: Arc<Member>,
}

impl fmt::Debug for SubscriptionHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SubscriptionHandle").field("id", &self.id()).finish_non_exhaustive()
    }
}

impl SubscriptionHandle {
    /// Its number, unique in the broker's life.
    pub fn id(&self) -> u64 {
        self.member.id
    }

    /// Adds prefixes; those that it has already are passed over. What is published after the call returns is matched
    /// against them. Returns how many were new. Does nothing once the [`Subscription`] is gone.
    pub fn add_prefixes<P: AsRef<[u8]>>(&self, prefixes: impl IntoIterator<Item = P>) -> usize {
        self.shared.change_prefixes(&self.member, Change::Add, prefixes)
    }

    /// Removes prefixes; those that it doesn't have are passed over. What is queued stays queued. Returns how many
    /// it had.
    pub fn remove_prefixes<P: AsRef<[u8]>>(&self, prefixes: impl IntoIterator<Item = P>) -> usize {
        self.shared.change_prefixes(&self.member, Change::Remove, prefixes)
    }

    /// Its counters; `None` once the [`Subscription`] is gone.
    pub fn stats(&self) -> Option<SubscriptionStats> {
        self.shared.stats_of(&self.member)
    }

    #[cfg(feature = "journal")]
    pub(crate) fn member(&self) -> &Arc<Member> {
        &self.member
    }

    #[cfg(feature = "journal")]
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Why it has ended, if it has.
    #[cfg(feature = "journal")]
    pub(crate) fn end(&self) -> Option<EndReason> {
        self.member.end_reason()
    }

    /// Ends the subscription: nothing more is queued, what is queued can still be read.
    pub fn close(&self) {
        self.shared.end(&self.member, EndReason::Closed);
    }
}

/// Messages and gaps taken together, in order. They count as delivered; what the batch refers to is held until it is
/// dropped.
pub struct Batch<'a> {
    subscription: &'a mut Subscription,
}

impl fmt::Debug for Batch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl Batch<'_> {
    /// How many messages and gaps it holds; never 0.
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.subscription.taken.len
    }

    /// Its messages and gaps, in order.
    #[inline]
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Delivery<MessageRef<'_>>> + Clone {
        let taken = &self.subscription.taken;
        Deliveries { subscription: self.subscription, items: taken.items.iter(), run: None, left: taken.len }
    }

    /// Says that the last `messages` of the batch were taken but not handled, because their reader went away: they are
    /// counted as abandoned instead of delivered.
    pub fn abandon(self, messages: usize) {
        let gaps = self.subscription.taken.items.iter().filter(|item| matches!(item, Item::Gap(_))).count();
        let taken = self.len() - gaps;
        let messages = messages.min(taken) as u64;
        let SubscriptionHandle { shared, member } = &self.subscription.handle;
        shared.abandoned.fetch_add(messages, Ordering::Relaxed);
        member.cursor.lock().delivered -= messages;
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        self.subscription.finish();
    }
}

/// The messages and gaps of a batch.
#[derive(Clone)]
struct Deliveries<'a> {
    subscription: &'a Subscription,
    items: std::slice::Iter<'a, Item>,
    /// What is left of the run that it is in.
    run: Option<RunLeft>,
    left: usize,
}

/// Records that follow one another, at least one.
#[derive(Clone, Copy)]
struct RunLeft {
    next: Record,
    /// Which of their keys matched.
    mask: u32,
    count: u32,
}

impl<'a> Deliveries<'a> {
    /// What begins with the next item, where that isn't a run.
    fn begin(&mut self) -> Option<Delivery<MessageRef<'a>>> {
        match *self.items.next()? {
            Item::Run(next, mask, count) => {
                self.run = Some(RunLeft { next, mask, count });
                None
            }
            Item::Gap(gap) => Some(Delivery::Gap(gap)),
            #[cfg(feature = "journal")]
            Item::Stored(i) => {
                Some(Delivery::Message(MessageRef { source: Source::Stored(&self.subscription.taken.stored[i]) }))
            }
        }
    }
}

impl<'a> Iterator for Deliveries<'a> {
    type Item = Delivery<MessageRef<'a>>;

    #[inline]
    fn next(&mut self) -> Option<Delivery<MessageRef<'a>>> {
        if self.run.is_none()
            && let Some(other) = self.begin()
        {
            self.left -= 1;
            return Some(other);
        }
        let run = self.run.as_mut()?;
        let delivery = self.subscription.message(run.next, run.mask);
        run.next.at = run.next.next();
        run.count -= 1;
        if run.count == 0 {
            self.run = None;
        }
        self.left -= 1;
        Some(Delivery::Message(delivery))
    }

    #[inline]
    fn fold<B, F: FnMut(B, Delivery<MessageRef<'a>>) -> B>(mut self, init: B, mut f: F) -> B {
        let mut folded = init;
        loop {
            if let Some(RunLeft { mut next, mask, count: mut left }) = self.run.take() {
                while left > 0 {
                    // Most records are as long as the one before. So the processor can go on to the next one before it has read the length of this one.
                    let size = next.size();
                    loop {
                        folded = f(folded, Delivery::Message(self.subscription.message(next, mask)));
                        next.at += size;
                        left -= 1;
                        if left == 0 || next.size() != size {
                            break;
                        }
                    }
                }
            }
            match self.begin() {
                Some(other) => folded = f(folded, other),
                None if self.run.is_none() => return folded,
                None => {}
            }
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Deliveries<'_> {}

/// A message in a [`Batch`], by reference. The batch holds the delivery that keeps a record's block alive.
#[derive(Clone, Copy)]
pub struct MessageRef<'a> {
    source: Source<'a>,
}

/// Where the message is.
#[derive(Clone, Copy)]
enum Source<'a> {
    /// In memory: the record, which of its keys matched, and who knows the log that its offset counts in.
    Record(Record, u32, &'a Shared),
    /// It was read from the journal.
    #[cfg(feature = "journal")]
    Stored(&'a Received),
}

impl fmt::Debug for MessageRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_received().fmt(f)
    }
}

/// `$record` for a message in memory, `$stored` for one that was read from the journal.
macro_rules! from_source {
    ($self:ident, $record:ident => $in_memory:expr, $stored:ident => $from_journal:expr) => {
        match $self.source {
            Source::Record($record, ..) => $in_memory,
            #[cfg(feature = "journal")]
            Source::Stored($stored) => $from_journal,
        }
    };
}

impl<'a> MessageRef<'a> {
    /// The place of the message in the broker's order.
    pub fn offset(&self) -> Offset {
        from_source!(self, record => record.offset(), stored => stored.offset())
    }

    /// The name of the message.
    pub fn id(&self) -> EventId {
        match self.source {
            Source::Record(record, _, shared) => {
                EventId { log: shared.log_id_of(record.offset()), offset: record.offset() }
            }
            #[cfg(feature = "journal")]
            Source::Stored(stored) => stored.id,
        }
    }

    /// When it was taken in.
    pub fn time(&self) -> Timestamp {
        from_source!(self, record => record.time(), stored => stored.time)
    }

    /// The publisher's tag; see [`Message::with_tag`](crate::Message::with_tag).
    pub fn tag(&self) -> u8 {
        from_source!(self, record => record.tag(), stored => stored.tag)
    }

    /// The identity that it brought from elsewhere.
    pub fn origin(&self) -> Option<&'a Origin> {
        from_source!(self, record => record.origin().map(|origin| &**origin), stored => stored.origin())
    }

    /// All its keys, in order.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &'a [u8]> + Clone + use<'a> {
        self.key_iter()
    }

    /// The keys that matched this subscription, in order; at least one.
    pub fn matched_keys(&self) -> impl Iterator<Item = &'a [u8]> + Clone + use<'a> {
        MatchedKeys::new(self.key_iter(), self.mask())
    }

    /// The payload.
    pub fn payload(&self) -> &'a [u8] {
        from_source!(self, record => record.payload(), stored => &stored.payload)
    }

    /// The payload as a handle of its own; small ones are copied, others shared.
    pub fn payload_bytes(&self) -> Bytes {
        from_source!(self, record => record.payload_bytes(), stored => stored.payload.clone())
    }

    /// The message in a form that can be kept.
    pub fn to_received(&self) -> Received {
        #[cfg(feature = "journal")]
        if let Source::Stored(stored) = self.source {
            return stored.clone();
        }
        let mut keys = Keys::default();
        for key in self.keys() {
            keys.push(key);
        }
        Received {
            id: self.id(),
            time: self.time(),
            tag: self.tag(),
            matched: self.mask(),
            keys,
            payload: self.payload_bytes(),
            origin: from_source!(self, record => record.origin().cloned(), stored => stored.origin.clone()),
        }
    }

    fn key_iter(&self) -> KeyIter<'a> {
        from_source!(self, record => KeyIter::of_record(record.keys::<'a>()), stored => KeyIter::of(&stored.keys))
    }

    /// Which keys matched: bit i for key i.
    fn mask(&self) -> u32 {
        match self.source {
            Source::Record(_, ALL_KEYS, _) => u32::MAX,
            Source::Record(_, mask, _) => mask,
            #[cfg(feature = "journal")]
            Source::Stored(stored) => stored.matched,
        }
    }

    /// The keys side by side, and where each ends, of a message in memory.
    #[cfg(feature = "journal")]
    pub(crate) fn raw_keys(&self) -> Option<(&'a [u8], &'a [u16])> {
        match self.source {
            Source::Record(record, ..) => Some(record.keys()),
            Source::Stored(_) => None,
        }
    }

    /// Whether it was read from the journal.
    #[cfg(feature = "journal")]
    pub(crate) fn is_stored(&self) -> bool {
        matches!(self.source, Source::Stored(_))
    }
}

/// What `stats` tells of one member.
pub(crate) fn stats(member: &Member, cursor: &Cursor) -> SubscriptionStats {
    let (queued, dropped) = (cursor.queued() + cursor.spilled_now(), cursor.dropped_now());
    SubscriptionStats {
        id: member.id,
        name: Arc::clone(&member.options.name),
        prefixes: member.prefixes.load(Ordering::Relaxed),
        hwm: member.options.hwm,
        hwm_bytes: cursor.hwm_bytes as usize, // it came from one
        overflow: member.options.overflow,
        matched: cursor.delivered + dropped + queued,
        delivered: cursor.delivered,
        dropped,
        queued,
        queued_bytes: cursor.queued_bytes(),
        overflowing: cursor.dropping.is_some(),
        end: member.end_reason(),
    }
}
