//! What one peer has subscribed to.

use std::collections::HashMap;
use std::sync::Arc;

use hookbus_broker::SubscriptionHandle;

use super::codec::ProtocolError;

/// The subscriptions of one peer: a set. libzmq's SUB and XSUB count for themselves; they send every subscription, but one
/// cancellation only, when the last of its kind goes. A publisher that counted as well would keep for ever what was
/// subscribed to twice, so libzmq's doesn't, nor do we.
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
}

/// How much a peer may subscribe to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FilterLimits {
    pub(crate) filters: usize,
    pub(crate) bytes: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    subscribed: bool,
    /// Whether the broker has it.
    applied: bool,
}

impl Filters {
    pub(crate) fn new(limits: FilterLimits) -> Self {
        Filters { states: HashMap::new(), touched: Vec::new(), bytes: 0, limits }
    }

    /// How many different ones there are.
    pub(crate) fn len(&self) -> usize {
        self.states.len()
    }

    pub(crate) fn subscribe(&mut self, prefix: &[u8]) -> Result<(), ProtocolError> {
        if let Some(state) = self.states.get_mut(prefix) {
            state.subscribed = true;
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
        self.states.insert(prefix, State { subscribed: true, applied: false });
        Ok(())
    }

    /// Cancelling what was never subscribed to does nothing, as in libzmq.
    pub(crate) fn cancel(&mut self, prefix: &[u8]) {
        let Some((stored, _)) = self.states.get_key_value(prefix) else { return };
        let stored = Arc::clone(stored);
        if let Some(state) = self.states.get_mut(prefix)
            && state.subscribed
        {
            state.subscribed = false;
            self.touched.push(stored);
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
            match (state.subscribed, state.applied) {
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
        (1..=key.len()).any(|length| self.states.get(&key[..length]).is_some_and(|state| state.subscribed))
    }
}

#[cfg(test)]
mod tests {
    use hookbus_broker::{Broker, SubscribeOptions};

    use super::*;

    const ROOMY: FilterLimits = FilterLimits { filters: 100, bytes: 1000 };

    #[test]
    fn twice_subscribed_is_once_cancelled() {
        let broker = Broker::default();
        let subscription = broker.subscribe(SubscribeOptions::new("peer"));
        let prefixes = || subscription.handle().stats().unwrap().prefixes;
        let mut filters = Filters::new(ROOMY);
        filters.subscribe(b"A").unwrap();
        filters.subscribe(b"A").unwrap();
        filters.apply(subscription.handle());
        assert_eq!((prefixes(), filters.len(), filters.bytes), (1, 1, 1));
        // All that libzmq sends after two subscriptions and two cancellations.
        filters.cancel(b"A");
        filters.apply(subscription.handle());
        assert_eq!((prefixes(), filters.len(), filters.bytes), (0, 0, 0));
        filters.cancel(b"A");
        filters.apply(subscription.handle());
        assert_eq!((prefixes(), filters.len(), filters.bytes), (0, 0, 0));
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
