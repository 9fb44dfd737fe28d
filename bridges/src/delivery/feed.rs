//! Where a bridge's events come from.

use std::fmt;
use std::future::Future;

use hookbus_broker::{BatchLimit, Delivery, DurableSubscription, Offset, Received, Subscription, SubscriptionStats};

/// What a bridge reads: a subscription of the broker, durable or not.
pub trait Feed: Send + 'static {
    /// Waits until something is there, then adds what there is, within `limit`, to `into`. `false` when the feed has ended and
    /// everything was read. Dropping the future loses nothing.
    fn recv_batch(
        &mut self,
        limit: BatchLimit,
        into: &mut Vec<Delivery<Received>>,
    ) -> impl Future<Output = bool> + Send;

    /// Everything before `next` is on the bus, or was dealt with otherwise: it need not come again. Does not wait, and may be called for each
    /// batch. Offsets only grow.
    fn commit(&mut self, next: Offset);

    /// Whether what was not committed comes again after a restart.
    fn is_durable(&self) -> bool;

    /// What tells how the feed stands, from any thread.
    fn probe(&self) -> Probe;
}

/// How a feed stands, for whoever looks.
pub struct Probe(Box<dyn Fn() -> FeedStats + Send + Sync>);

impl Probe {
    /// One that asks this.
    pub fn new(ask: impl Fn() -> FeedStats + Send + Sync + 'static) -> Self {
        Probe(Box::new(ask))
    }

    /// How it stands now.
    pub fn stats(&self) -> FeedStats {
        (self.0)()
    }
}

impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Probe").field(&self.stats()).finish()
    }
}

/// How a feed stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FeedStats {
    /// Events that wait to be read.
    pub waiting: u64,
    /// Events that were dropped so far, told or not. A feed that only tells them by gaps leaves this at zero.
    pub dropped: u64,
    /// Events that are lost and will be told by a gap.
    pub lost: u64,
}

/// What is not committed comes again.
impl Feed for DurableSubscription {
    async fn recv_batch(&mut self, limit: BatchLimit, into: &mut Vec<Delivery<Received>>) -> bool {
        DurableSubscription::recv_batch(self, limit, into).await
    }

    fn commit(&mut self, next: Offset) {
        DurableSubscription::commit(self, next);
    }

    fn is_durable(&self) -> bool {
        true
    }

    fn probe(&self) -> Probe {
        let probe = DurableSubscription::probe(self);
        Probe::new(move || FeedStats { waiting: probe.unread(), dropped: 0, lost: probe.lost() })
    }
}

/// What is queued is lost with the process.
impl Feed for Subscription {
    async fn recv_batch(&mut self, limit: BatchLimit, into: &mut Vec<Delivery<Received>>) -> bool {
        let Some(batch) = Subscription::recv_batch(self, limit).await else { return false };
        into.extend(batch.iter().map(|delivery| match delivery {
            Delivery::Message(message) => Delivery::Message(message.to_received()),
            Delivery::Gap(gap) => Delivery::Gap(gap),
        }));
        true
    }

    fn commit(&mut self, _next: Offset) {}

    fn is_durable(&self) -> bool {
        false
    }

    fn probe(&self) -> Probe {
        let handle = self.handle().clone();
        Probe::new(move || {
            let stats = handle.stats();
            let of = |stats: SubscriptionStats| FeedStats { waiting: stats.queued, dropped: stats.dropped, lost: 0 };
            stats.map_or_else(FeedStats::default, of)
        })
    }
}
