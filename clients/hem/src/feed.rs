//! Where the executor's events come from, and how far they are dealt with.
//!
//! Whoever feeds the executor from a journal of somebody else's is told how far that is dealt with ([`ProgressSink`]), and brings the rest again.
//!
//! A queue in memory ends with the process. A durable subscription has a cursor in the journal, which moves only over events whose hooks have
//! run: who is killed runs them again, from the oldest that was not done. Events behind it that were done run again with it; there are
//! at most as many as run side by side or are held back. A repetition (RETRIES) does not hold the cursor, since it may be an hour away:
//! what waits to be repeated when the process ends is not.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use hookbus_broker::{BatchLimit, Delivery, DurableSubscription, Offset, Received, Subscription, SubscriptionHandle};
use hookbus_broker::{SubscriptionStats, UnreadProbe};

/// One at a time: what was taken and has no place yet would have to wait here.
const ONE: BatchLimit = BatchLimit { messages: 1, bytes: usize::MAX };

#[derive(Debug)]
pub(crate) enum Feed {
    Memory(Subscription),
    Durable(Box<Durable>),
    Tracked(Box<Tracked>),
}

/// Is told how far events are dealt with, by who feeds the executor from elsewhere and can bring again what is not.
pub trait ProgressSink: Debug + Send + Sync {
    /// What made hooks run below this offset of the broker is dealt with: their records are safe. It is called from a task, so it must not block.
    fn done_below(&self, offset: Offset);
}

/// A queue in memory of events that come again after a restart.
#[derive(Debug)]
pub(crate) struct Tracked {
    subscription: Subscription,
    progress: Progress,
    sink: Arc<dyn ProgressSink>,
}

#[derive(Debug)]
pub(crate) struct Durable {
    subscription: DurableSubscription,
    taken: Vec<Delivery<Received>>,
    progress: Progress,
}

impl Feed {
    pub(crate) fn tracked(subscription: Subscription, sink: Arc<dyn ProgressSink>) -> Self {
        let progress = Progress { next: 0, open: BTreeMap::new() };
        Feed::Tracked(Box::new(Tracked { subscription, progress, sink }))
    }

    pub(crate) fn durable(subscription: DurableSubscription) -> Self {
        let progress = Progress { next: subscription.position().get(), open: BTreeMap::new() };
        Feed::Durable(Box::new(Durable { subscription, taken: Vec::new(), progress }))
    }

    /// The next event or gap; nothing once the subscription has ended. Cancelling loses nothing.
    pub(crate) async fn recv(&mut self) -> Option<Delivery<Received>> {
        match self {
            Feed::Memory(subscription) => subscription.recv().await,
            Feed::Tracked(tracked) => tracked.subscription.recv().await,
            Feed::Durable(durable) => {
                if durable.taken.is_empty() && !durable.subscription.recv_batch(ONE, &mut durable.taken).await {
                    return None;
                }
                let delivery = durable.taken.pop();
                if let Some(Delivery::Gap(gap)) = &delivery {
                    durable.progress.next = gap.last.get() + 1;
                    durable.commit();
                }
                delivery
            }
        }
    }

    /// So many hooks are to run for the event of that offset, the newest.
    pub(crate) fn begun(&mut self, offset: Offset, runs: usize) {
        match self {
            Feed::Memory(_) => {}
            Feed::Durable(durable) => {
                durable.progress.begun(offset, runs);
                durable.commit();
            }
            Feed::Tracked(tracked) => {
                tracked.progress.begun(offset, runs);
                tracked.tell();
            }
        }
    }

    /// One of them is done.
    pub(crate) fn done(&mut self, offset: Offset) {
        match self {
            Feed::Memory(_) => {}
            Feed::Durable(durable) => {
                durable.progress.done(offset);
                durable.commit();
            }
            Feed::Tracked(tracked) => {
                tracked.progress.done(offset);
                tracked.tell();
            }
        }
    }

    /// Whether what is not done comes again after a restart.
    pub(crate) fn is_durable(&self) -> bool {
        !matches!(self, Feed::Memory(_))
    }

    pub(crate) fn handle(&self) -> &SubscriptionHandle {
        match self {
            Feed::Memory(subscription) => subscription.handle(),
            Feed::Tracked(tracked) => tracked.subscription.handle(),
            Feed::Durable(durable) => durable.subscription.handle(),
        }
    }

    /// What tells how much waits, from any thread.
    pub(crate) fn probe(&self) -> Probe {
        match self {
            Feed::Memory(subscription) => {
                Probe { handle: subscription.handle().clone(), unread: None, is_durable: false }
            }
            Feed::Tracked(tracked) => {
                Probe { handle: tracked.subscription.handle().clone(), unread: None, is_durable: true }
            }
            Feed::Durable(durable) => {
                let (handle, unread) = (durable.subscription.handle().clone(), durable.subscription.probe());
                Probe { handle, unread: Some(unread), is_durable: true }
            }
        }
    }
}

impl Tracked {
    fn tell(&self) {
        self.sink.done_below(Offset::new(self.progress.position()));
    }
}

impl Durable {
    fn commit(&mut self) {
        self.subscription.commit(Offset::new(self.progress.position()));
    }
}

/// How much waits.
#[derive(Debug)]
pub(crate) struct Probe {
    handle: SubscriptionHandle,
    unread: Option<UnreadProbe>,
    is_durable: bool,
}

impl Probe {
    pub(crate) fn waiting(&self) -> u64 {
        match &self.unread {
            Some(unread) => unread.unread(),
            None => self.stats().map_or(0, |stats| stats.queued),
        }
    }

    pub(crate) fn stats(&self) -> Option<SubscriptionStats> {
        self.handle.stats()
    }

    pub(crate) fn handle(&self) -> &SubscriptionHandle {
        &self.handle
    }

    pub(crate) fn is_durable(&self) -> bool {
        self.is_durable
    }
}

/// Which events are not done.
#[derive(Debug)]
struct Progress {
    /// The offset behind the newest event that was taken.
    next: u64,
    /// How many runs each of those has that are not done.
    open: BTreeMap<u64, usize>,
}

impl Progress {
    fn begun(&mut self, offset: Offset, runs: usize) {
        self.next = offset.get() + 1;
        if runs > 0 {
            self.open.insert(offset.get(), runs);
        }
    }

    fn done(&mut self, offset: Offset) {
        if let Some(runs) = self.open.get_mut(&offset.get()) {
            *runs -= 1;
            if *runs == 0 {
                self.open.remove(&offset.get());
            }
        }
    }

    /// The offset below which everything is done.
    fn position(&self) -> u64 {
        self.open.first_key_value().map_or(self.next, |(offset, _)| *offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_that_is_not_done_counts() {
        let mut progress = Progress { next: 5, open: BTreeMap::new() };
        let offset = Offset::new;
        assert_eq!(progress.position(), 5);
        progress.begun(offset(5), 2);
        progress.begun(offset(7), 1);
        progress.begun(offset(8), 0);
        assert_eq!(progress.position(), 5);
        progress.done(offset(7));
        progress.done(offset(5));
        assert_eq!(progress.position(), 5);
        progress.done(offset(5));
        assert_eq!(progress.position(), 9);
        progress.done(offset(5));
        assert_eq!(progress.position(), 9, "what is done stays done");
    }
}
