//! What a broker and a subscription can be told when they are made.

use std::sync::Arc;

use crate::clock::{Clock, SystemClock};
use crate::message::LogId;

/// How a broker is set up.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BrokerOptions {
    /// Bounds what all queues hold together, in bytes of keys, payloads and the broker's own records; beyond it the
    /// subscriber that is farthest behind overflows first. 512 MiB unless set.
    pub max_bytes: usize,
    /// The name of the log that offsets count in. Random unless set.
    pub log_id: LogId,
    /// Where the time of messages comes from.
    pub clock: Arc<dyn Clock>,
}

impl Default for BrokerOptions {
    fn default() -> Self {
        BrokerOptions { max_bytes: 512 << 20, log_id: LogId::random(), clock: Arc::new(SystemClock) }
    }
}

impl BrokerOptions {
    /// Sets the bound on what all queues hold together, in bytes.
    #[must_use]
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// Sets the name of the log.
    #[must_use]
    pub fn log_id(mut self, id: LogId) -> Self {
        self.log_id = id;
        self
    }

    /// Sets the clock.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }
}

/// What happens to a publish when this subscription is at its high-water mark. Drops are counted and told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Overflow {
    /// The new message is dropped for this subscription, as a ZeroMQ PUB socket does, and so are those that follow, until
    /// its reader has taken something.
    #[default]
    DropNewest,
    /// The oldest queued messages make room.
    DropOldest,
    /// The publisher waits: back-pressure. Towards a publisher that can't wait
    /// ([`publish_now`](crate::Broker::publish_now)) it acts as `Spill` where there is a journal, else as
    /// [`DropOldest`](Overflow::DropOldest).
    Block,
    /// The subscription goes on reading from the journal, and comes back to memory once it has caught up: nothing is lost, and no
    /// more waits in memory than the high-water mark. Without a journal it acts as [`DropOldest`](Overflow::DropOldest).
    #[cfg(feature = "journal")]
    Spill,
    /// The subscription ends, once what is queued has been read.
    Disconnect,
}

/// How a subscription is set up.
///
/// ```
/// use hookbus_broker::{Overflow, SubscribeOptions};
///
/// let options = SubscribeOptions::new("audit").prefix("EVENT API ").hwm(10_000).overflow(Overflow::DropOldest);
/// assert_eq!(options.hwm, 10_000);
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SubscribeOptions {
    /// What statistics and logs call it.
    pub name: Arc<str>,
    /// What it takes: messages one of whose keys starts with one of these. The empty prefix matches all; no prefix
    /// matches nothing.
    pub prefixes: Vec<Box<[u8]>>,
    /// The high-water mark in messages; 0 is no limit by count. 1000 unless set.
    pub hwm: usize,
    /// The high-water mark in bytes of keys and payloads; 0, as it is unless set, is no limit. A queue that is empty
    /// takes one message of any size.
    pub hwm_bytes: usize,
    /// What happens at the high-water mark.
    pub overflow: Overflow,
    /// Whether this is the journal's own: it is alone in its group, and what it has queued is never dropped. Towards a publisher
    /// that can't wait it turns the new message away.
    pub(crate) journal: bool,
}

impl SubscribeOptions {
    /// A subscription of that name to nothing yet, with ZeroMQ's defaults: 1000 messages, the newest is dropped.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        SubscribeOptions {
            name: name.into(),
            prefixes: Vec::new(),
            hwm: 1000,
            hwm_bytes: 0,
            overflow: Overflow::DropNewest,
            journal: false,
        }
    }

    /// Whether what memory drops is read from the journal, where there is one.
    #[cfg(feature = "journal")]
    pub(crate) fn may_spill(&self) -> bool {
        matches!(self.overflow, Overflow::Spill | Overflow::Block) && !self.journal
    }

    /// Adds a prefix.
    #[must_use]
    pub fn prefix(mut self, prefix: impl AsRef<[u8]>) -> Self {
        self.prefixes.push(prefix.as_ref().into());
        self
    }

    /// Sets the high-water mark in messages; 0 is no limit by count.
    #[must_use]
    pub fn hwm(mut self, messages: usize) -> Self {
        self.hwm = messages;
        self
    }

    /// Sets the high-water mark in bytes; 0 is no limit.
    #[must_use]
    pub fn hwm_bytes(mut self, bytes: usize) -> Self {
        self.hwm_bytes = bytes;
        self
    }

    /// Sets what happens at the high-water mark.
    #[must_use]
    pub fn overflow(mut self, overflow: Overflow) -> Self {
        self.overflow = overflow;
        self
    }
}

/// How much one batch may take: it ends with the message that reaches either bound, so it holds at least one. By default 1,024 messages,
/// and 4 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimit {
    /// Messages and gaps.
    pub messages: usize,
    /// Bytes of keys and payloads.
    pub bytes: usize,
}

impl BatchLimit {
    /// At most so many messages, of any size.
    pub const fn messages(messages: usize) -> Self {
        BatchLimit { messages, bytes: usize::MAX }
    }

    /// Besides, ends with the message that reaches so many bytes.
    #[must_use]
    pub const fn bytes(mut self, bytes: usize) -> Self {
        self.bytes = bytes;
        self
    }
}

impl Default for BatchLimit {
    fn default() -> Self {
        BatchLimit { messages: 1024, bytes: 4 << 20 }
    }
}
