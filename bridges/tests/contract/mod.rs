//! What every bus must do, as tests over a real server: the suite that `docs/bridges.md` speaks of.
//!
//! A bus's own test file brings a [`TestBus`], which starts a server and reads what arrives there, and makes the tests of it:
//!
//! ```text
//! #[path = "contract/mod.rs"]
//! #[macro_use]
//! mod contract;
//!
//! contract_suite!(NatsServer);
//! ```
//!
//! Each test has a server of its own. Nothing here waits for a time: it waits for a condition, until [`PATIENCE`] ends.

#![allow(dead_code, unused_imports, reason = "not every bus can do everything")]
#![allow(clippy::result_large_err, reason = "what is waited for says how it stands")]

mod bodies;
mod feed;

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hookbus_bridges::cloudevents::{Encoder, Format, Sources};
use hookbus_bridges::delivery::{
    Backoff, Bridge, BridgeHandle, BridgeOptions, BridgeState, Bus, DeadLetterLimits, DeadLetters, LetterWriter,
};

pub(crate) use self::bodies::*;
pub(crate) use self::feed::{Log, LogFeed};

/// How long a test waits for what must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What arrived at a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Arrival {
    /// By what the bus tells repetitions; where it has no place for that, the CloudEvents id.
    pub(crate) id: String,
    /// The name.
    pub(crate) address: String,
    /// The body.
    pub(crate) body: Bytes,
    /// The media type, where the bus carries one.
    pub(crate) content_type: Option<String>,
    /// The attributes as they were before the bus's binding encoded them, in any order; none where there are none.
    pub(crate) attributes: Vec<(String, String)>,
}

/// A server for one test, and what reads from it.
///
/// All futures may take their time, but end.
pub(crate) trait TestBus: Send + Sized + 'static {
    /// The bus.
    type Bus: Bus;

    /// Whether it confirms what it has got.
    const ACKNOWLEDGES: bool = true;

    /// The largest body that the server takes, about. The server is started with a limit that tests can exceed.
    const BODY_LIMIT_BYTES: usize;

    /// Starts a server on a free port, and what reads everything that arrives.
    fn start() -> impl Future<Output = Self> + Send;

    /// A bus that goes to this server.
    fn bus(&self) -> Self::Bus;

    /// All that has arrived since the start, in order, repetitions too. What a server has that is down may be missing.
    fn arrived(&mut self) -> impl Future<Output = Vec<Arrival>> + Send;

    /// Ends the server in the hardest way that leaves what it has confirmed: SIGKILL where that is so.
    fn kill(&mut self) -> impl Future<Output = ()> + Send;

    /// Starts it again, on the same port, with what it had.
    fn restart(&mut self) -> impl Future<Output = ()> + Send;

    /// Stops its process (SIGSTOP): connections stay, and nobody answers.
    fn stop(&mut self) -> impl Future<Output = ()> + Send;

    /// Lets it go on (SIGCONT).
    fn resume(&mut self) -> impl Future<Output = ()> + Send;

    /// Makes the server refuse for good what has a name that contains this, or take it again. `false` where this bus can't be made to.
    fn refuse(&mut self, part: &str, refused: bool) -> impl Future<Output = bool> + Send;

    /// Whether the bus carries attributes apart from the body.
    fn has_headers() -> bool {
        true
    }
}

/// Makes a test of each body of the suite, over this [`TestBus`].
#[macro_export]
macro_rules! contract_suite {
    ($bus:ty) => {
        $crate::contract_suite!(@ $bus:
            connects_in_the_background
            delivers_everything_in_order
            survives_a_server_that_is_killed
            survives_a_server_that_is_stopped
            survives_the_end_of_its_own_process
            too_large_goes_without_data
            too_large_and_raw_becomes_a_dead_letter
            refused_becomes_a_dead_letter_and_the_line_goes_on
            drains_at_shutdown
            says_what_it_abandons
            keeps_its_window
            names_are_the_same_on_every_bus
            formats_arrive_as_they_were_written
        );
    };
    (@ $bus:ty: $($body:ident)*) => {
        mod suite {
            #[allow(unused_imports)]
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $body() {
                    $crate::contract::$body::<$bus>().await;
                }
            )*
        }
    };
}

/// One bridge over a server, and what it reads from.
pub(crate) struct Rig<T: TestBus> {
    /// The server.
    pub(crate) server: T,
    /// What is published.
    pub(crate) log: Log,
    /// Where dead letters go.
    pub(crate) dead: Arc<DeadLetters>,
    /// How the next bridge is set up.
    pub(crate) options: BridgeOptions,
    /// In which format it writes.
    pub(crate) format: Format,
}

impl<T: TestBus> Rig<T> {
    /// A server without a bridge.
    pub(crate) async fn start() -> Self {
        let backoff = Backoff {
            first: Duration::from_millis(20),
            most: Duration::from_millis(300),
            most_needs_help: Duration::from_millis(500),
        };
        Rig {
            server: T::start().await,
            log: Log::default(),
            dead: Arc::new(DeadLetters::in_memory(DeadLetterLimits::default())),
            options: BridgeOptions::new("test", "test://")
                .ack_timeout(Duration::from_secs(10))
                .backoff(backoff)
                .seed(1),
            format: Format::CloudEvents,
        }
    }

    /// Starts a bridge, where the one before it has come to.
    pub(crate) fn bridge(&self) -> BridgeHandle {
        let (bus, feed, options) = (self.server.bus(), self.log.feed(), self.options.clone());
        Bridge::spawn("under-test", bus, feed, self.writer(), options, Arc::clone(&self.dead))
    }

    /// What its letters are written by.
    pub(crate) fn writer(&self) -> LetterWriter {
        let encoder = Encoder::new(Sources { host: "test".into(), zone: None });
        LetterWriter::new::<T::Bus>(encoder, self.format, "hookbus")
    }

    /// Waits until everything that was published has arrived or is dead, and the bridge knows it.
    pub(crate) async fn delivered(&mut self, bridge: &BridgeHandle) -> Vec<Arrival> {
        until("everything is confirmed", || {
            let status = bridge.status();
            (status.lag_events == 0 && self.log.cursor() == self.log.end()).then_some(()).ok_or(status)
        })
        .await;
        let expected = self.log.len() - usize::try_from(self.dead.count(None)).unwrap();
        let begun = Instant::now();
        loop {
            let arrivals = self.server.arrived().await;
            let firsts = first_arrivals(&arrivals);
            if firsts.len() >= expected || begun.elapsed() > PATIENCE {
                assert_eq!(firsts.len(), expected, "of {} arrivals", arrivals.len());
                return arrivals;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Checks that all events have arrived, each the first time in its order, repetitions with the same id and content.
    pub(crate) fn check_all_in_order(&self, arrivals: &[Arrival]) {
        let firsts = first_arrivals(arrivals);
        let ids: Vec<&str> = firsts.iter().map(|arrival| arrival.id.as_str()).collect();
        let expected = self.log.ids();
        assert_eq!(ids.len(), expected.len());
        if let Some(at) = (0..ids.len()).find(|&at| ids[at] != expected[at]) {
            panic!("at {at}: {} instead of {}", ids[at], expected[at]);
        }
        for arrival in arrivals {
            let first = firsts.iter().find(|first| first.id == arrival.id).unwrap();
            assert_eq!(arrival, *first);
        }
    }
}

/// Of all arrivals the first of each id.
pub(crate) fn first_arrivals(arrivals: &[Arrival]) -> Vec<&Arrival> {
    let mut seen = std::collections::HashSet::new();
    arrivals.iter().filter(|arrival| seen.insert(&arrival.id)).collect()
}

/// Waits for a condition; what is in its error is told when it never comes.
pub(crate) async fn until<R, E: std::fmt::Debug>(what: &str, mut condition: impl FnMut() -> Result<R, E>) -> R {
    let begun = Instant::now();
    loop {
        match condition() {
            Ok(result) => return result,
            Err(state) => assert!(begun.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}: {state:?}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until a bridge is in such a state.
pub(crate) async fn until_state(bridge: &BridgeHandle, what: &str, is: impl Fn(&BridgeState) -> bool) {
    until(what, || {
        let status = bridge.status();
        if is(&status.state) { Ok(()) } else { Err(status) }
    })
    .await;
}
