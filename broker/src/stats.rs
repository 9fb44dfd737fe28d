//! Counters. They are read one by one while work goes on, so sums across them may be off by what is moving.

use std::sync::Arc;

use crate::error::EndReason;
use crate::options::Overflow;

/// One subscription, as it stands.
///
/// At rest, `matched == delivered + dropped + queued`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SubscriptionStats {
    /// Its number, unique in the broker's life.
    pub id: u64,
    /// Its name.
    pub name: Arc<str>,
    /// How many prefixes it has.
    pub prefixes: usize,
    /// Its high-water mark in messages; 0 is none.
    pub hwm: usize,
    /// Its high-water mark in bytes; 0 is none.
    pub hwm_bytes: usize,
    /// What happens there.
    pub overflow: Overflow,
    /// Messages that matched since it subscribed.
    pub matched: u64,
    /// Messages that it took.
    pub delivered: u64,
    /// Messages that were dropped for it and are told as gaps.
    pub dropped: u64,
    /// Messages that wait to be taken, in memory or, where it spills, in the journal.
    pub queued: u64,
    /// Keys and payloads of those in memory, in bytes.
    pub queued_bytes: u64,
    /// Whether it is dropping now.
    pub overflowing: bool,
    /// Why it ended, if it has.
    pub end: Option<EndReason>,
}

/// The whole broker, as it stands. The sums include subscriptions that are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct BrokerStats {
    /// Messages accepted.
    pub published: u64,
    /// Their keys and payloads, in bytes.
    pub published_bytes: u64,
    /// Subscriptions that live.
    pub subscriptions: usize,
    /// Prefixes in the matching tree; subscriptions with the same set of prefixes share theirs.
    pub prefixes: usize,
    /// Deliveries taken by subscriptions.
    pub delivered: u64,
    /// Deliveries dropped at a high-water mark, or because of [`max_bytes`](crate::BrokerOptions::max_bytes).
    pub dropped: u64,
    /// Deliveries that were queued, or taken but not handled, when their subscription went away. Those of a durable subscription with a
    /// name don't count: the next one of that name gets them.
    pub abandoned: u64,
    /// What queues hold now, in bytes: keys, payloads and the broker's own records.
    pub held_bytes: usize,
}
