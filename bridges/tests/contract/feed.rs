//! A feed that stands in for the journal: events in a list, and a cursor that outlives the bridge.

use std::sync::Arc;
use std::sync::Mutex;

use hookbus_bridges::delivery::{Feed, FeedStats, Probe};
use hookbus_broker::{BatchLimit, Delivery, EventId, LogId, Message, Offset, Received, Timestamp};
use tokio::sync::Notify;

/// What was published, and how far a bridge has come with it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    inner: Mutex<Inner>,
    more: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    /// What is at place `n` has the offset `n + 1`.
    entries: Vec<Delivery<Received>>,
    cursor: usize,
    closed: bool,
}

impl Log {
    /// Publishes an event.
    pub(crate) fn publish(&self, message: Message) -> Received {
        let mut inner = self.shared.inner.lock().unwrap();
        let id = EventId { log: LogId::new(0xABCD), offset: Offset::new(inner.entries.len() as u64 + 1) };
        let event = Received::restored(id, message.with_time(Timestamp::from_millis(1_700_000_000_000)));
        inner.entries.push(Delivery::Message(event.clone()));
        drop(inner);
        self.shared.more.notify_waiters();
        event
    }

    /// Publishes so many events that differ.
    pub(crate) fn publish_many(&self, count: usize) {
        for n in 0..count {
            self.publish(Message::new(format!("load test.{}", n % 7), format!("event {n}")));
        }
    }

    /// Adds a gap of one message.
    pub(crate) fn gap(&self) {
        let mut inner = self.shared.inner.lock().unwrap();
        let at = Offset::new(inner.entries.len() as u64 + 1);
        inner.entries.push(Delivery::Gap(hookbus_broker::Gap { first: at, last: at, count: 1 }));
        drop(inner);
        self.shared.more.notify_waiters();
    }

    /// Nothing more comes.
    pub(crate) fn close(&self) {
        self.shared.inner.lock().unwrap().closed = true;
        self.shared.more.notify_waiters();
    }

    /// How many events were published.
    pub(crate) fn len(&self) -> usize {
        self.ids().len()
    }

    /// The ids of all events.
    pub(crate) fn ids(&self) -> Vec<String> {
        let inner = self.shared.inner.lock().unwrap();
        let events = inner.entries.iter().filter_map(|entry| entry.clone().message());
        events.map(|event| event.id().to_string()).collect()
    }

    /// How far it was committed: the first offset that would come again.
    pub(crate) fn cursor(&self) -> u64 {
        self.shared.inner.lock().unwrap().cursor as u64 + 1
    }

    /// The offset of what is published next.
    pub(crate) fn end(&self) -> u64 {
        self.shared.inner.lock().unwrap().entries.len() as u64 + 1
    }

    /// A feed that begins where the last one was committed.
    pub(crate) fn feed(&self) -> LogFeed {
        let next = self.shared.inner.lock().unwrap().cursor;
        LogFeed { log: self.clone(), next: Arc::new(Mutex::new(next)) }
    }
}

/// A feed over a [`Log`].
#[derive(Debug)]
pub(crate) struct LogFeed {
    log: Log,
    next: Arc<Mutex<usize>>,
}

impl Feed for LogFeed {
    async fn recv_batch(&mut self, limit: BatchLimit, into: &mut Vec<Delivery<Received>>) -> bool {
        loop {
            let more = self.log.shared.more.notified();
            tokio::pin!(more);
            more.as_mut().enable();
            {
                let inner = self.log.shared.inner.lock().unwrap();
                let mut next = self.next.lock().unwrap();
                let end = inner.entries.len().min(*next + limit.messages);
                if *next < end {
                    into.extend_from_slice(&inner.entries[*next..end]);
                    *next = end;
                    return true;
                }
                if inner.closed {
                    return false;
                }
            }
            more.await;
        }
    }

    fn commit(&mut self, next: Offset) {
        let mut inner = self.log.shared.inner.lock().unwrap();
        let cursor = usize::try_from(next.get()).unwrap() - 1;
        assert!(cursor >= inner.cursor, "the cursor went back from {} to {cursor}", inner.cursor);
        assert!(cursor <= *self.next.lock().unwrap(), "the cursor is behind what was read");
        inner.cursor = cursor;
    }

    fn is_durable(&self) -> bool {
        true
    }

    fn probe(&self) -> Probe {
        let (log, next) = (self.log.clone(), Arc::clone(&self.next));
        Probe::new(move || {
            let end = log.shared.inner.lock().unwrap().entries.len();
            let waiting = end - *next.lock().unwrap();
            FeedStats { waiting: waiting as u64, dropped: 0, lost: 0 }
        })
    }
}
