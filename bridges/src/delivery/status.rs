//! How a bridge stands, for `hookbus status` and metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hookbus_broker::{Clock, Timestamp};
use parking_lot::Mutex;
use serde::Serialize;

use super::feed::Probe;
use crate::cloudevents::rfc3339;

/// How a bridge stands. Serialised, the fields of its state stand beside the others: `"state": "connecting"`, `"attempt"`, `"reason"`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BridgeStatus {
    /// Its name.
    pub name: Box<str>,
    /// What bus it is, such as `nats`.
    pub kind: Box<str>,
    /// Where the bus is, without secrets.
    pub address: Box<str>,
    /// What it does now.
    #[serde(flatten)]
    pub state: BridgeState,
    /// Since when it is in that state: RFC 3339.
    pub since: String,
    /// What it promises.
    pub guarantee: Guarantee,
    /// Events that are not known to be on the bus: in the queue or the journal before the bridge, and in the bridge.
    pub lag_events: u64,
    /// The age of the oldest event that the bridge has taken and that is not known to be on the bus.
    pub lag_seconds: f64,
    /// Letters that were handed over and not told of.
    pub in_flight: u64,
    /// What was counted since the start.
    #[serde(flatten)]
    pub counts: Counts,
    /// What went wrong last, also if all is well now.
    pub last_error: Option<Box<str>>,
}

/// What a bridge does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum BridgeState {
    /// There is no connection; it is tried again, without limit.
    Connecting {
        /// Which attempt it is, since the bus confirmed something last.
        attempt: u32,
        /// Why there is none; `None` before the first attempt has ended.
        reason: Option<Box<str>>,
        /// Whether somebody has to act before it can go well.
        needs_help: bool,
    },
    /// All is well.
    Ready,
    /// There is a connection, and letters wait: the bus asks for silence, or dead letters can't be stored.
    Blocked {
        /// Why.
        reason: Box<str>,
    },
    /// It is being shut down, and delivers what it has.
    Draining,
    /// It has ended.
    Ended,
}

/// What a bridge promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Guarantee {
    /// The bus doesn't acknowledge: what is under way when a connection is lost is lost.
    AtMostOnce,
    /// The bus acknowledges, and what is not acknowledged is sent again, for as long as this process lives.
    AtLeastOnceInMemory,
    /// The bus acknowledges, and what is not acknowledged is sent again, also after a crash.
    AtLeastOnce,
}

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What a bridge has counted since its start.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
        pub struct Counts {
            $($(#[$doc])* pub $name: u64,)*
        }

        /// The same, as it is counted.
        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub(super) $name: AtomicU64,)*
        }

        impl Counters {
            pub(super) fn read(&self) -> Counts {
                Counts { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counts! {
    /// Letters that the bus has confirmed; without acknowledgements, that were handed over.
    confirmed,
    /// Letters that were sent again, each time counted.
    retried,
    /// Repetitions that the bus has recognised as such.
    duplicates,
    /// Letters that the bus has taken and nobody was bound for.
    unroutable,
    /// Events that were not sent, because a condition of the bridge says so.
    filtered,
    /// Events that were dropped before they reached the bridge.
    dropped,
    /// Letters that went without their data because it is too large.
    omitted,
    /// Events that became dead letters.
    dead,
    /// Events that are not for this bus: OpenNebula's retries.
    skipped,
    /// Connections that were made.
    connects,
}

pub(super) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

/// What the bridge's task tells and others read.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) name: Arc<str>,
    pub(super) kind: Arc<str>,
    pub(super) address: Arc<str>,
    pub(super) guarantee: Guarantee,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) probe: Probe,
    pub(super) counters: Counters,
    pub(super) in_flight: AtomicU64,
    /// Events that the bridge has taken and that are not done.
    pub(super) undone: AtomicU64,
    /// When the oldest of them was taken in, in milliseconds; meaningless without any.
    pub(super) oldest: AtomicU64,
    pub(super) shown: Mutex<Shown>,
}

/// What changes seldom.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) state: BridgeState,
    pub(super) since: Timestamp,
    pub(super) last_error: Option<Box<str>>,
}

impl Shared {
    /// Shows another state, if it is another one.
    pub(super) fn show(&self, state: BridgeState) {
        let mut shown = self.shown.lock();
        if shown.state != state {
            // The second attempt is no other state than the first.
            if std::mem::discriminant(&shown.state) != std::mem::discriminant(&state) {
                shown.since = self.clock.now();
            }
            shown.state = state;
        }
    }

    pub(super) fn error(&self, reason: &str) {
        self.shown.lock().last_error = Some(reason.into());
    }

    pub(super) fn status(&self) -> BridgeStatus {
        let feed = self.probe.stats();
        let undone = self.undone.load(Ordering::Relaxed);
        let oldest = self.oldest.load(Ordering::Relaxed);
        let lag_millis = if undone == 0 { 0 } else { self.clock.now().as_millis().saturating_sub(oldest) };
        let mut counts = self.counters.read();
        // What was dropped behind what the bridge has read is not told to it yet.
        counts.dropped = (counts.dropped + feed.lost).max(feed.dropped);
        let shown = self.shown.lock();
        BridgeStatus {
            name: (&*self.name).into(),
            kind: (&*self.kind).into(),
            address: (&*self.address).into(),
            state: shown.state.clone(),
            since: rfc3339(shown.since),
            guarantee: self.guarantee,
            lag_events: undone + feed.waiting,
            lag_seconds: lag_millis as f64 / 1000.0,
            in_flight: self.in_flight.load(Ordering::Relaxed),
            counts,
            last_error: shown.last_error.clone(),
        }
    }
}
