//! A bridge: what carries events from a feed to a bus.
//!
//! ```text
//!    Feed ──batch──▶ pending ──LetterWriter──▶ Ledger ──Sender──▶ bus
//!      ▲                                        │  ▲                │
//!      └────────────── commit ◀── cursor ───────┤  └── Receipts ◀───┘
//!                                               └──▶ DeadLetters
//! ```
//!
//! One task does all of it, so nothing here is locked: it fills the ledger, sends what may be sent, and then waits for whatever comes first: receipts,
//! events, a command, the end of a write to the dead letters, a time limit. While it waits for the bus to take a letter, it goes on
//! attending to everything else, so that a bus that is busy or asks for silence holds up nothing but letters. It works in batches: one look at
//! the clock, one commit and one flush for many letters; the one timer is set again only when it has to ring earlier.
//!
//! The queues, and their bounds: one batch that was read from the feed and isn't written yet (256 events, or the one that reaches 1 MiB); the ledger
//! ([`BridgeOptions::window`] and `window_bytes`); what the bus's own connection holds. Everything else waits in the broker, under the
//! policy of the subscription.
//!
//! # Guarantees
//!
//! - As [`ledger`](super::Ledger): at least once, first arrivals in order, the cursor over nothing that is not confirmed or stored as a dead letter.
//! - **May be repeated**: what was in flight when a connection was lost, or when the process ended before the cursor was stored.
//! - **May be lost**: on a bus that doesn't acknowledge, what was handed over when the connection was lost. Without a durable feed, what is in the bridge
//!   and in its queue when the process ends; a shutdown says how many.
//! - **Gaps** are counted, and told to consumers by the extension `hookbusdropped` of the next event that the bus takes; a gap at the very end,
//!   when the next event comes.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use hookbus_broker::{Clock, SystemClock};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::backoff::Backoff;
use super::bus::Bus;
use super::cemetery::Cemetery;
use super::dead_letters::{DeadLetters, Which};
use super::feed::Feed;
use super::letter::LetterWriter;
use super::line::{Line, now};
use super::status::{BridgeState, BridgeStatus, Counters, Guarantee, Shared, Shown};

/// How a bridge works.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BridgeOptions {
    /// What bus it is, as its status says: `nats`, say.
    pub kind: Arc<str>,
    /// Where the bus is, as its status says: without secrets.
    pub address: Arc<str>,
    /// Letters that may be unconfirmed. 1000 unless set.
    pub window: usize,
    /// Their bytes in memory. 32 MiB unless set.
    pub window_bytes: usize,
    /// How long the bus may take to acknowledge, or to take a letter, before the connection is given up. 30 s unless set.
    pub ack_timeout: Duration,
    /// How long it waits before it tries again.
    pub backoff: Backoff,
    /// What tells the time of day.
    pub clock: Arc<dyn Clock>,
    /// What the random part of waiting comes from; the operating system unless set.
    pub seed: Option<u64>,
}

impl BridgeOptions {
    /// The options of a bridge to this kind of bus, at this address, everything else as it is unless set.
    pub fn new(kind: impl Into<Arc<str>>, address: impl Into<Arc<str>>) -> Self {
        BridgeOptions {
            kind: kind.into(),
            address: address.into(),
            window: 1000,
            window_bytes: 32 << 20,
            ack_timeout: Duration::from_secs(30),
            backoff: Backoff::default(),
            clock: Arc::new(SystemClock),
            seed: None,
        }
    }

    /// Sets how many letters may be unconfirmed, and their bytes in memory.
    #[must_use]
    pub fn window(mut self, letters: usize, bytes: usize) -> Self {
        (self.window, self.window_bytes) = (letters, bytes);
        self
    }

    /// Sets how long the bus may take to acknowledge.
    #[must_use]
    pub fn ack_timeout(mut self, timeout: Duration) -> Self {
        self.ack_timeout = timeout;
        self
    }

    /// Sets how long it waits before it tries again.
    #[must_use]
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// Sets what tells the time of day.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Makes the random part of waiting the same each time.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }
}

/// A bridge.
#[derive(Clone, Copy, Debug)]
pub struct Bridge;

impl Bridge {
    /// Starts a bridge: a task of the runtime that this is called on. It connects in the background, for as long as it takes.
    pub fn spawn<B: Bus, F: Feed>(
        name: impl Into<Arc<str>>,
        bus: B,
        feed: F,
        writer: LetterWriter,
        options: BridgeOptions,
        dead_letters: Arc<DeadLetters>,
    ) -> BridgeHandle {
        let name = name.into();
        let guarantee = match (bus.acknowledges(), feed.is_durable()) {
            (false, _) => Guarantee::AtMostOnce,
            (true, false) => Guarantee::AtLeastOnceInMemory,
            (true, true) => Guarantee::AtLeastOnce,
        };
        let state = BridgeState::Connecting { attempt: 1, reason: None, needs_help: false };
        let shared = Arc::new(Shared {
            name: Arc::clone(&name),
            kind: Arc::clone(&options.kind),
            address: Arc::clone(&options.address),
            guarantee,
            clock: Arc::clone(&options.clock),
            probe: feed.probe(),
            counters: Counters::default(),
            in_flight: AtomicU64::new(0),
            undone: AtomicU64::new(0),
            oldest: AtomicU64::new(0),
            shown: Mutex::new(Shown { state, since: options.clock.now(), last_error: None }),
        });
        let (commands, received) = mpsc::unbounded_channel();
        let acknowledges = bus.acknowledges();
        let cemetery = Cemetery::new(Arc::clone(&dead_letters));
        let line = Line::new(feed, writer, options, cemetery, Arc::clone(&shared), received, acknowledges);
        let task = tokio::spawn(line.run(bus));
        BridgeHandle { shared, commands, task, dead_letters }
    }
}

/// The handle of a bridge. Dropping it ends the bridge at once: what is not confirmed stays where it was.
#[derive(Debug)]
pub struct BridgeHandle {
    shared: Arc<Shared>,
    commands: mpsc::UnboundedSender<Command>,
    task: JoinHandle<Abandoned>,
    dead_letters: Arc<DeadLetters>,
}

/// What a bridge left undone when it was shut down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Abandoned {
    /// Events that are not known to be on the bus.
    pub events: u64,
    /// Whether they come again after a restart; else they are lost.
    pub durable: bool,
}

pub(super) enum Command {
    /// Dead letters are to be sent again.
    Retry(Vec<u64>),
    /// It is to end, by then.
    Shutdown(Instant),
}

impl BridgeHandle {
    /// How it stands.
    pub fn status(&self) -> BridgeStatus {
        self.shared.status()
    }

    /// What tells how it stands, apart from the handle.
    pub fn reporter(&self) -> BridgeReporter {
        BridgeReporter { shared: Arc::clone(&self.shared) }
    }

    /// Has dead letters of this bridge sent again, behind what it has taken already, each under its id with `;replay=<n>` behind it. Those of other
    /// bridges, and those that are under way already, are passed over. Returns how many it will send. A letter is gone from the store when
    /// the bus has confirmed it.
    pub fn retry(&self, which: &Which) -> usize {
        let numbers = self.dead_letters.claim(&self.shared.name, which);
        let count = numbers.len();
        if let Err(mpsc::error::SendError(Command::Retry(numbers))) = self.commands.send(Command::Retry(numbers)) {
            self.dead_letters.keep(numbers);
            return 0;
        }
        count
    }

    /// Shuts it down in order: what it has is delivered, until the deadline is over; without a durable feed, what is queued for it, too. Returns
    /// what is left then.
    pub async fn shutdown(mut self, deadline: Duration) -> Abandoned {
        let _ = self.commands.send(Command::Shutdown(now() + deadline));
        match (&mut self.task).await {
            Ok(abandoned) => abandoned,
            Err(error) => {
                tracing::error!("bridge {}: its task has failed: {error}", self.shared.name);
                let status = self.shared.status();
                Abandoned { events: status.lag_events, durable: status.guarantee == Guarantee::AtLeastOnce }
            }
        }
    }

    /// Ends it at once, as dropping does, and waits until it has ended: nothing more is sent, nor committed.
    pub async fn abort(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }

    /// Whether it has ended by itself: its feed has ended, and everything is delivered.
    pub fn is_finished(&self) -> bool {
        self.task.is_finished()
    }
}

impl Drop for BridgeHandle {
    fn drop(&mut self) {
        self.task.abort();
        self.dead_letters.keep_all(&self.shared.name);
        self.shared.show(BridgeState::Ended);
    }
}

/// Tells how a bridge stands.
#[derive(Clone, Debug)]
pub struct BridgeReporter {
    shared: Arc<Shared>,
}

impl BridgeReporter {
    /// How it stands.
    pub fn status(&self) -> BridgeStatus {
        self.shared.status()
    }
}
