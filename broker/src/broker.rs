//! A plain broker: one lock, a queue of owned messages for each subscription. It fixes the interface, and what the fast one
//! must do; the fast one replaces it.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::error::{EndReason, PublishError, TryPublishError, TryRecvError};
use crate::message::{Delivery, EventId, Gap, MAX_KEY_BYTES, MAX_KEYS, Message, Offset, Origin, Received, Timestamp};
use crate::options::{BatchLimit, BrokerOptions, Overflow, SubscribeOptions};
use crate::stats::{BrokerStats, SubscriptionStats};

/// The broker. Clones are handles to the same one.
#[derive(Clone)]
pub struct Broker {
    shared: Arc<Shared>,
}

struct Shared {
    options: BrokerOptions,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: u64,
    next_sub: u64,
    subs: BTreeMap<u64, Sub>,
    totals: BrokerStats,
    closed: bool,
    waiting: Vec<Waker>,
}

struct Sub {
    options: SubscribeOptions,
    prefixes: Vec<Box<[u8]>>,
    queue: VecDeque<Delivery<Received>>,
    stats: SubscriptionStats,
    waker: Option<Waker>,
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
        Broker { shared: Arc::new(Shared { options, state: Mutex::new(State { next: 1, ..State::default() }) }) }
    }

    /// Publishes, waiting while a subscription with [`Overflow::Block`] is full. Cancelling the future publishes the
    /// whole message or nothing.
    ///
    /// # Errors
    /// When the broker is closed, or the message breaks a limit.
    pub async fn publish(&self, message: Message) -> Result<Offset, PublishError> {
        let mut message = Some(message);
        poll_fn(|cx| {
            let mut state = self.shared.state.lock();
            match self.accept(&mut state, &mut message, Pressure::Refuse) {
                Ok(offset) => Poll::Ready(Ok(offset)),
                Err(TryPublishError::Refused(e)) => Poll::Ready(Err(e)),
                Err(TryPublishError::WouldBlock) => {
                    state.waiting.push(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Publishes as [`publish`](Broker::publish) does, blocking this thread while it waits.
    ///
    /// # Errors
    /// When the broker is closed, or the message breaks a limit.
    pub fn publish_blocking(&self, message: Message) -> Result<Offset, PublishError> {
        block_on(self.publish(message))
    }

    /// Publishes at once or not at all; the message comes back with the error.
    ///
    /// # Errors
    /// [`WouldBlock`](TryPublishError::WouldBlock) where [`publish`](Broker::publish) would wait.
    #[expect(clippy::result_large_err, reason = "the message comes back by value, as from std's SendError")]
    pub fn try_publish(&self, message: Message) -> Result<Offset, (TryPublishError, Message)> {
        let mut message = Some(message);
        self.accept(&mut self.shared.state.lock(), &mut message, Pressure::Refuse)
            .map_err(|e| (e, message.expect("a refused message stays")))
    }

    /// Publishes without ever waiting: subscriptions that would block drop their oldest messages. For a source that must
    /// always be read.
    ///
    /// # Errors
    /// When the broker is closed, or the message breaks a limit.
    pub fn publish_now(&self, message: Message) -> Result<Offset, PublishError> {
        match self.accept(&mut self.shared.state.lock(), &mut Some(message), Pressure::DropOldest) {
            Ok(offset) => Ok(offset),
            Err(TryPublishError::Refused(e)) => Err(e),
            Err(TryPublishError::WouldBlock) => unreachable!("drop-oldest never refuses"),
        }
    }

    /// Publishes messages from the front of `batch`, in order, and takes from it those that were accepted, all of them
    /// unless one is refused. Waits as [`publish`](Broker::publish) does; a cancelled future leaves in `batch` what was
    /// not published. Returns how many were accepted.
    ///
    /// # Errors
    /// When the first message can't be published; then nothing was.
    pub async fn publish_batch(&self, batch: &mut VecDeque<Message>) -> Result<usize, PublishError> {
        let mut done = 0;
        while let Some(first) = batch.front() {
            match self.publish(first.clone()).await {
                Ok(_) => done += 1,
                Err(e) if done == 0 => return Err(e),
                Err(_) => break,
            }
            batch.pop_front();
        }
        Ok(done)
    }

    /// Publishes messages from the front of `batch` until one would block or is refused. Returns how many were accepted.
    ///
    /// # Errors
    /// When the first message can't be published; then nothing was.
    pub fn try_publish_batch(&self, batch: &mut VecDeque<Message>) -> Result<usize, TryPublishError> {
        self.batch(batch, Pressure::Refuse)
    }

    /// Publishes messages from the front of `batch` without ever waiting, as [`publish_now`](Broker::publish_now) does.
    ///
    /// # Errors
    /// When the first message can't be published; then nothing was.
    pub fn publish_batch_now(&self, batch: &mut VecDeque<Message>) -> Result<usize, PublishError> {
        self.batch(batch, Pressure::DropOldest).map_err(|e| match e {
            TryPublishError::Refused(e) => e,
            TryPublishError::WouldBlock => unreachable!("drop-oldest never refuses"),
        })
    }

    fn batch(&self, batch: &mut VecDeque<Message>, pressure: Pressure) -> Result<usize, TryPublishError> {
        let mut done = 0;
        while let Some(message) = batch.pop_front() {
            let mut message = Some(message);
            match self.accept(&mut self.shared.state.lock(), &mut message, pressure) {
                Ok(_) => done += 1,
                Err(e) => {
                    batch.extend(message);
                    batch.rotate_right(1);
                    if done == 0 {
                        return Err(e);
                    }
                    break;
                }
            }
        }
        Ok(done)
    }

    fn accept(
        &self,
        state: &mut State,
        slot: &mut Option<Message>,
        pressure: Pressure,
    ) -> Result<Offset, TryPublishError> {
        let message = slot.as_ref().expect("a message");
        if state.closed {
            return Err(PublishError::Closed.into());
        }
        let count = message.keys().len();
        if count > MAX_KEYS {
            return Err(PublishError::TooManyKeys { count }.into());
        }
        if let Some((index, key)) = message.keys().enumerate().find(|(_, k)| k.len() > MAX_KEY_BYTES) {
            return Err(PublishError::KeyTooLong { index, length: key.len() }.into());
        }
        let size = message.size_bytes() as u64;
        let matched = |sub: &Sub| {
            let bit = |(i, key): (usize, &[u8])| u32::from(sub.prefixes.iter().any(|p| key.starts_with(p))) << i;
            message.keys().enumerate().map(bit).fold(0, |a, b| a | b)
        };
        let refuses = |sub: &Sub| sub.options.overflow == Overflow::Block && sub.full(size) && matched(sub) != 0;
        if pressure == Pressure::Refuse && state.subs.values().any(refuses) {
            return Err(TryPublishError::WouldBlock);
        }
        let offset = Offset::new(state.next);
        state.next += 1;
        let time = message.time.unwrap_or_else(|| self.shared.options.clock.now());
        for sub in state.subs.values_mut().filter(|sub| sub.stats.end.is_none()) {
            let matched = matched(sub);
            if matched == 0 {
                continue;
            }
            sub.stats.matched += 1;
            let mut full = sub.full(size);
            if full && matches!(sub.options.overflow, Overflow::DropOldest | Overflow::Block) {
                while sub.full(size) {
                    sub.drop_oldest();
                }
                full = false;
            }
            if full {
                sub.stats.dropped += 1;
                sub.gap_at_end(offset);
                if sub.options.overflow == Overflow::Disconnect {
                    sub.stats.end = Some(EndReason::Overflowed);
                }
            } else {
                sub.stats.queued += 1;
                sub.stats.queued_bytes += size;
                sub.queue.push_back(Delivery::Message(Received {
                    id: EventId { log: self.shared.options.log_id, offset },
                    time,
                    tag: message.tag,
                    matched,
                    keys: message.keys.clone(),
                    payload: message.payload.clone(),
                    origin: message.origin.clone(),
                }));
            }
            if let Some(waker) = sub.waker.take() {
                waker.wake();
            }
        }
        state.totals.published += 1;
        state.totals.published_bytes += size;
        *slot = None;
        Ok(offset)
    }

    /// Makes a subscription; what is published from now on is for it.
    pub fn subscribe(&self, options: SubscribeOptions) -> Subscription {
        let mut state = self.shared.state.lock();
        let id = state.next_sub;
        state.next_sub += 1;
        let stats = SubscriptionStats {
            id,
            name: options.name.clone(),
            prefixes: 0,
            hwm: options.hwm,
            hwm_bytes: options.hwm_bytes,
            overflow: options.overflow,
            matched: 0,
            delivered: 0,
            dropped: 0,
            queued: 0,
            queued_bytes: 0,
            overflowing: false,
            end: state.closed.then_some(EndReason::BrokerClosed),
        };
        let prefixes = options.prefixes.clone();
        state.subs.insert(id, Sub { options, prefixes, queue: VecDeque::new(), stats, waker: None });
        Subscription { handle: SubscriptionHandle { shared: Arc::clone(&self.shared), id }, batch: Vec::new() }
    }

    /// Ends publishing. Subscriptions yield what they have queued, then end.
    pub fn close(&self) {
        let mut state = self.shared.state.lock();
        state.closed = true;
        for sub in state.subs.values_mut() {
            sub.end(EndReason::BrokerClosed);
        }
        state.waiting.drain(..).for_each(Waker::wake);
    }

    /// Counters of the whole.
    pub fn stats(&self) -> BrokerStats {
        let state = self.shared.state.lock();
        let mut stats = state.totals;
        stats.subscriptions = state.subs.len();
        for sub in state.subs.values() {
            stats.delivered += sub.stats.delivered;
            stats.dropped += sub.stats.dropped;
            stats.held_bytes += usize::try_from(sub.stats.queued_bytes).unwrap_or(usize::MAX);
        }
        stats
    }

    /// Counters of each subscription that lives, oldest first.
    pub fn subscriptions(&self) -> Vec<SubscriptionStats> {
        self.shared.state.lock().subs.values().map(Sub::stats).collect()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pressure {
    Refuse,
    DropOldest,
}

impl Sub {
    fn full(&self, size: u64) -> bool {
        let (hwm, hwm_bytes) = (self.options.hwm as u64, self.options.hwm_bytes as u64);
        self.stats.queued > 0
            && (hwm != 0 && self.stats.queued >= hwm || hwm_bytes != 0 && self.stats.queued_bytes + size > hwm_bytes)
    }

    fn gap_at_end(&mut self, offset: Offset) {
        if let Some(Delivery::Gap(gap)) = self.queue.back_mut() {
            gap.last = offset;
            gap.count += 1;
        } else {
            self.queue.push_back(Delivery::Gap(Gap { first: offset, last: offset, count: 1 }));
        }
    }

    fn drop_oldest(&mut self) {
        let mut gap: Option<Gap> = None;
        while let Some(first) = self.queue.pop_front() {
            match first {
                Delivery::Gap(old) => gap = Some(old),
                Delivery::Message(message) => {
                    self.stats.queued -= 1;
                    self.stats.queued_bytes -= (message.keys.bytes.len() + message.payload.len()) as u64;
                    self.stats.dropped += 1;
                    let new = gap.get_or_insert(Gap { first: message.offset(), last: message.offset(), count: 0 });
                    new.last = message.offset();
                    new.count += 1;
                    break;
                }
            }
        }
        self.queue.extend(gap.map(Delivery::Gap));
        self.queue.rotate_right(usize::from(gap.is_some()));
    }

    fn end(&mut self, reason: EndReason) {
        self.stats.end.get_or_insert(reason);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn stats(&self) -> SubscriptionStats {
        SubscriptionStats { prefixes: self.prefixes.len(), ..self.stats.clone() }
    }
}

/// The reading end of a subscription; it has one reader. Dropping it ends the subscription, and what is still
/// queued is counted as abandoned.
pub struct Subscription {
    handle: SubscriptionHandle,
    batch: Vec<Delivery<Received>>,
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("stats", &self.handle.stats()).finish()
    }
}

impl Subscription {
    /// The next message or gap; `None` when the subscription has ended and everything was read. Cancelling loses nothing.
    pub async fn recv(&mut self) -> Option<Delivery<Received>> {
        self.ready().await;
        self.try_recv().ok()
    }

    /// What [`recv`](Subscription::recv) yields, if it is there now.
    ///
    /// # Errors
    /// When nothing is queued, telling whether anything may come.
    pub fn try_recv(&mut self) -> Result<Delivery<Received>, TryRecvError> {
        self.try_fill(BatchLimit::messages(1))?;
        Ok(self.batch.remove(0))
    }

    /// What [`recv`](Subscription::recv) yields, blocking this thread until it is there.
    pub fn recv_blocking(&mut self) -> Option<Delivery<Received>> {
        block_on(self.recv())
    }

    /// Waits for something to be queued, then takes as much as there is within `limit`. `None` when the subscription has
    /// ended and everything was read. Cancelling loses nothing.
    pub async fn recv_batch(&mut self, limit: BatchLimit) -> Option<Batch<'_>> {
        self.ready().await;
        self.try_recv_batch(limit).ok()
    }

    /// What [`recv_batch`](Subscription::recv_batch) yields, if it is there now.
    ///
    /// # Errors
    /// When nothing is queued, telling whether anything may come.
    pub fn try_recv_batch(&mut self, limit: BatchLimit) -> Result<Batch<'_>, TryRecvError> {
        self.try_fill(limit)?;
        Ok(Batch { subscription: self })
    }

    /// What [`recv_batch`](Subscription::recv_batch) yields, blocking this thread until it is there.
    pub fn recv_batch_blocking(&mut self, limit: BatchLimit) -> Option<Batch<'_>> {
        block_on(self.ready());
        self.try_recv_batch(limit).ok()
    }

    /// Waits until a receive would not: something is queued, or the subscription has ended. Cancelling loses nothing.
    pub async fn ready(&mut self) {
        poll_fn(|cx| self.poll_ready(cx)).await;
    }

    /// [`ready`](Subscription::ready), for those who write their own futures. The last waker given is the one woken.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.handle.with(|sub| {
            if !sub.queue.is_empty() || sub.stats.end.is_some() {
                return Poll::Ready(());
            }
            sub.waker = Some(cx.waker().clone());
            Poll::Pending
        })
    }

    /// Why the subscription has ended, if it has; what is queued can still be read.
    pub fn end(&self) -> Option<EndReason> {
        self.handle.with(|sub| sub.stats.end)
    }

    /// A handle for everything but reading.
    pub fn handle(&self) -> &SubscriptionHandle {
        &self.handle
    }

    fn try_fill(&mut self, limit: BatchLimit) -> Result<(), TryRecvError> {
        self.batch.clear();
        let batch = &mut self.batch;
        let mut state = self.handle.shared.state.lock();
        let sub = state.subs.get_mut(&self.handle.id).expect("lives as long as its subscription");
        let mut bytes = 0;
        while batch.len() < limit.messages && bytes < limit.bytes {
            let Some(next) = sub.queue.pop_front() else { break };
            if let Delivery::Message(message) = &next {
                let size = message.keys.bytes.len() + message.payload.len();
                bytes += size;
                sub.stats.queued -= 1;
                sub.stats.queued_bytes -= size as u64;
                sub.stats.delivered += 1;
            }
            batch.push(next);
        }
        let end = sub.stats.end;
        state.waiting.drain(..).for_each(Waker::wake);
        match (self.batch.is_empty(), end) {
            (false, _) => Ok(()),
            (true, None) => Err(TryRecvError::Empty),
            (true, Some(_)) => Err(TryRecvError::Ended),
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut state = self.handle.shared.state.lock();
        let sub = state.subs.remove(&self.handle.id).expect("lives as long as its subscription");
        state.totals.delivered += sub.stats.delivered;
        state.totals.dropped += sub.stats.dropped;
        state.totals.abandoned += sub.stats.queued;
        state.waiting.drain(..).for_each(Waker::wake);
    }
}

/// Everything about a subscription but reading: can be cloned and used from anywhere.
#[derive(Clone)]
pub struct SubscriptionHandle {
    shared: Arc<Shared>,
    id: u64,
}

impl fmt::Debug for SubscriptionHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SubscriptionHandle").field("id", &self.id).finish_non_exhaustive()
    }
}

impl SubscriptionHandle {
    /// Its number, unique in the broker's life.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Adds prefixes; those that it has already are passed over. What is published after the call returns is matched
    /// against them. Returns how many were new. Does nothing once the [`Subscription`] is gone.
    pub fn add_prefixes<P: AsRef<[u8]>>(&self, prefixes: impl IntoIterator<Item = P>) -> usize {
        self.with_opt(|sub| {
            let before = sub.prefixes.len();
            for prefix in prefixes {
                if !sub.prefixes.iter().any(|p| **p == *prefix.as_ref()) {
                    sub.prefixes.push(prefix.as_ref().into());
                }
            }
            sub.prefixes.len() - before
        })
        .unwrap_or(0)
    }

    /// Removes prefixes; those that it doesn't have are passed over. What is queued stays queued. Returns how many
    /// it had.
    pub fn remove_prefixes<P: AsRef<[u8]>>(&self, prefixes: impl IntoIterator<Item = P>) -> usize {
        self.with_opt(|sub| {
            let before = sub.prefixes.len();
            for prefix in prefixes {
                sub.prefixes.retain(|p| **p != *prefix.as_ref());
            }
            before - sub.prefixes.len()
        })
        .unwrap_or(0)
    }

    /// Its counters; `None` once the [`Subscription`] is gone.
    pub fn stats(&self) -> Option<SubscriptionStats> {
        self.with_opt(|sub| sub.stats())
    }

    /// Ends the subscription: nothing more is queued, what is queued can still be read.
    pub fn close(&self) {
        self.with_opt(|sub| sub.end(EndReason::Closed));
        self.shared.state.lock().waiting.drain(..).for_each(Waker::wake);
    }

    fn with_opt<T>(&self, f: impl FnOnce(&mut Sub) -> T) -> Option<T> {
        self.shared.state.lock().subs.get_mut(&self.id).map(f)
    }

    fn with<T>(&self, f: impl FnOnce(&mut Sub) -> T) -> T {
        self.with_opt(f).expect("lives as long as its subscription")
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
        self.subscription.batch.len()
    }

    /// Its messages and gaps, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Delivery<MessageRef<'_>>> + Clone {
        self.subscription.batch.iter().map(|delivery| match delivery {
            Delivery::Message(message) => Delivery::Message(MessageRef { received: message }),
            Delivery::Gap(gap) => Delivery::Gap(*gap),
        })
    }

    /// Says that the last `messages` of the batch were taken but not handled, because their reader went away: they are
    /// counted as abandoned instead of delivered.
    pub fn abandon(self, messages: usize) {
        let mut state = self.subscription.handle.shared.state.lock();
        state.totals.abandoned += messages as u64;
        let sub = state.subs.get_mut(&self.subscription.handle.id).expect("lives as long as its subscription");
        sub.stats.delivered -= messages as u64;
    }
}

/// A message in a [`Batch`], by reference.
#[derive(Clone, Copy)]
pub struct MessageRef<'a> {
    received: &'a Received,
}

impl fmt::Debug for MessageRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.received.fmt(f)
    }
}

impl<'a> MessageRef<'a> {
    /// The place of the message in the broker's order.
    pub fn offset(&self) -> Offset {
        self.received.offset()
    }

    /// The name of the message.
    pub fn id(&self) -> EventId {
        self.received.id()
    }

    /// When it was taken in.
    pub fn time(&self) -> Timestamp {
        self.received.time()
    }

    /// The publisher's tag; see [`Message::with_tag`].
    pub fn tag(&self) -> u8 {
        self.received.tag()
    }

    /// The identity that it brought from elsewhere.
    pub fn origin(&self) -> Option<&'a Origin> {
        self.received.origin()
    }

    /// All its keys, in order.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &'a [u8]> + Clone + use<'a> {
        self.received.keys()
    }

    /// The keys that matched this subscription, in order; at least one.
    pub fn matched_keys(&self) -> impl Iterator<Item = &'a [u8]> + Clone + use<'a> {
        self.received.matched_keys()
    }

    /// The payload.
    pub fn payload(&self) -> &'a [u8] {
        &self.received.payload
    }

    /// The payload as a handle of its own; small ones are copied, others shared.
    pub fn payload_bytes(&self) -> Bytes {
        self.received.payload.clone()
    }

    /// The message in a form that can be kept.
    pub fn to_received(&self) -> Received {
        self.received.clone()
    }
}

struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut cx = Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut cx) {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::park(),
        }
    }
}
