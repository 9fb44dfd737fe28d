//! What one peer has subscribed to.

use std::collections::HashMap;
use std::sync::Arc;

use hookbus_broker::SubscriptionHandle;

use super::codec::ProtocolError;

/// The subscriptions of one peer, counted: what was subscribed to twice must be cancelled twice.
///
/// That is so for the user of any ZeroMQ socket, but who counts differs. libzmq's SUB and XSUB do it themselves: they send
/// every subscription, but one cancellation only, when the last of its kind goes. A publisher that counted as well would keep
/// for ever what such a peer had subscribed to twice, so for those ([`PeerInfo::libzmq`](super::codec::PeerInfo::libzmq)) it is a
/// set, as it is in libzmq's publisher. For all others the count is kept here.
///
/// Changes are gathered and handed to the broker once for all that one read brought, so that 100,000 SUBSCRIBE commands
/// at connect are a few dozen changes of its tree. Only the difference is handed over: a prefix that came and went
/// within one read is nothing.
#[derive(Debug)]
pub(crate) struct Filters {
    states: HashMap<Arc<[u8]>, State>,
    /// Those that came or went since the broker was told; may hold one twice.
    touched: Vec<Arc<[u8]>>,
    bytes: usize,
    limits: FilterLimits,
    /// Whether the peer leaves the counting to us.
    counting: bool,
}

/// How much a peer may subscribe to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FilterLimits {
    pub(crate) filters: usize,
    pub(crate) bytes: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    subscribed: u64,
    /// Whether the broker has it.
    applied: bool,
}

impl Filters {
    pub(crate) fn new(limits: FilterLimits) -> Self {
        Filters { states: HashMap::new(), touched: Vec::new(), bytes: 0, limits, counting: true }
    }

    /// Says whether the peer leaves the counting to us; it does unless this is said, before the first subscription.
    pub(crate) fn set_counting(&mut self, counting: bool) {
        self.counting = counting;
    }

    /// How many different ones there are.
    pub(crate) fn len(&self) -> usize {
        self.states.len()
    }

    pub(crate) fn subscribe(&mut self, prefix: &[u8]) -> Result<(), ProtocolError> {
        if let Some(state) = self.states.get_mut(prefix) {
            state.subscribed = if self.counting { state.subscribed + 1 } else { 1 };
            // Cancelled earlier in this read: it stands among the touched already, and applying looks at what it is then.
            return Ok(());
        }
        if self.states.len() >= self.limits.filters {
            return Err(ProtocolError::TooManyFilters { limit: self.limits.filters });
        }
        if self.bytes + prefix.len() > self.limits.bytes {
            return Err(ProtocolError::FiltersTooLong { limit: self.limits.bytes });
        }
        let prefix: Arc<[u8]> = prefix.into();
        self.bytes += prefix.len();
        self.touched.push(Arc::clone(&prefix));
        self.states.insert(prefix, State { subscribed: 1, applied: false });
        Ok(())
    }

    /// Cancelling what was never subscribed to does nothing, as in libzmq.
    pub(crate) fn cancel(&mut self, prefix: &[u8]) {
        let Some((stored, _)) = self.states.get_key_value(prefix) else { return };
        let stored = Arc::clone(stored);
        if let Some(state) = self.states.get_mut(prefix)
            && state.subscribed > 0
        {
            state.subscribed -= 1;
            if state.subscribed == 0 {
                self.touched.push(stored);
            }
        }
    }

    /// Hands to the broker what has changed.
    pub(crate) fn apply(&mut self, handle: &SubscriptionHandle) {
        if self.touched.is_empty() {
            return;
        }
        let (mut added, mut removed) = (Vec::new(), Vec::new());
        for prefix in self.touched.drain(..) {
            let Some(state) = self.states.get_mut(&prefix) else { continue };
            match (state.subscribed > 0, state.applied) {
                (true, true) => continue,
                (true, false) => {
                    state.applied = true;
                    added.push(prefix);
                    continue;
                }
                (false, true) => removed.push(Arc::clone(&prefix)),
                (false, false) => {}
            }
            self.bytes -= prefix.len();
            self.states.remove(&prefix);
        }
        if !removed.is_empty() {
            handle.remove_prefixes(&removed);
        }
        if !added.is_empty() {
            handle.add_prefixes(&added);
        }
        if self.touched.capacity() > 4096 {
            self.touched = Vec::new();
        }
    }

    /// Whether one that is not empty matches the key: for what only those get who ask for it by name.
    pub(crate) fn names(&self, key: &[u8]) -> bool {
        (1..=key.len()).any(|length| self.states.get(&key[..length]).is_some_and(|state| state.subscribed > 0))
    }
}

#[cfg(test)]
mod tests {
    use hookbus_broker::{Broker, SubscribeOptions};

    use super::*;

    const ROOMY: FilterLimits = FilterLimits { filters: 100, bytes: 1000 };

    #[test]
    fn twice_subscribed_is_twice_cancelled_unless_the_peer_counts() {
        for (counting, cancellations) in [(true, 2), (false, 1)] {
            let broker = Broker::default();
            let subscription = broker.subscribe(SubscribeOptions::new("peer"));
            let prefixes = || subscription.handle().stats().unwrap().prefixes;
            let mut filters = Filters::new(ROOMY);
            filters.set_counting(counting);
            filters.subscribe(b"A").unwrap();
            filters.subscribe(b"A").unwrap();
            for _ in 0..cancellations {
                filters.apply(subscription.handle());
                assert_eq!((prefixes(), filters.len(), filters.bytes), (1, 1, 1));
                filters.cancel(b"A");
            }
            filters.apply(subscription.handle());
            assert_eq!((prefixes(), filters.len(), filters.bytes), (0, 0, 0));
            filters.cancel(b"A");
            filters.apply(subscription.handle());
            assert_eq!((prefixes(), filters.len(), filters.bytes), (0, 0, 0));
        }
    }

    #[test]
    fn only_the_difference_reaches_the_broker() {
        let broker = Broker::default();
        let subscription = broker.subscribe(SubscribeOptions::new("peer"));
        let prefixes = || subscription.handle().stats().unwrap().prefixes;
        let mut filters = Filters::new(ROOMY);
        // Comes, goes and comes again within one read, with one that only comes and goes.
        for _ in 0..3 {
            filters.subscribe(b"A").unwrap();
            filters.cancel(b"A");
            filters.subscribe(b"B").unwrap();
            filters.cancel(b"B");
        }
        filters.subscribe(b"A").unwrap();
        filters.apply(subscription.handle());
        assert_eq!((prefixes(), filters.len()), (1, 1));
        // Goes and comes: nothing changes.
        filters.cancel(b"A");
        filters.subscribe(b"A").unwrap();
        filters.apply(subscription.handle());
        assert_eq!((prefixes(), filters.len(), filters.bytes), (1, 1, 1));
        assert!(filters.names(b"ABC"));
        assert!(!filters.names(b"BC"));
    }

    #[test]
    fn limits_hold_and_what_is_cancelled_makes_room() {
        let broker = Broker::default();
        let subscription = broker.subscribe(SubscribeOptions::new("peer"));
        let mut filters = Filters::new(FilterLimits { filters: 2, bytes: 5 });
        filters.subscribe(b"AA").unwrap();
        filters.subscribe(b"BB").unwrap();
        assert_eq!(filters.subscribe(b"C"), Err(ProtocolError::TooManyFilters { limit: 2 }));
        filters.cancel(b"BB");
        filters.apply(subscription.handle());
        assert_eq!(filters.subscribe(b"CCCC"), Err(ProtocolError::FiltersTooLong { limit: 5 }));
        filters.subscribe(b"CCC").unwrap();
    }

    #[test]
    fn the_empty_filter_names_nothing() {
        let mut filters = Filters::new(ROOMY);
        filters.subscribe(b"").unwrap();
        assert!(!filters.names(b"HOOKBUS GAP"));
        filters.subscribe(b"HOOKBUS ").unwrap();
        assert!(filters.names(b"HOOKBUS GAP"));
    }
}
