//! What a bridge does with a bus that does as it is told; time stands still unless everybody waits.

use std::sync::Arc;
use std::time::Duration;

use hookbus_bridges::cloudevents::{Encoder, Format, Sources};
use hookbus_bridges::delivery::{
    Backoff, Bridge, BridgeHandle, BridgeOptions, BridgeState, BridgeStatus, DeadLetterLimits, DeadLetters, Fault,
    Feed, Guarantee, LetterWriter, Limits, Receipt, Which,
};
use hookbus_broker::{Broker, Clock, Message, Overflow, SubscribeOptions, Timestamp};

use crate::contract::{Log, TestBus as _, first_arrivals};
use crate::fake::{FakeBus, FakeServer, Verdict};

#[derive(Debug)]
struct Noon;

impl Clock for Noon {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(1_700_000_060_000)
    }
}

struct Setup {
    server: FakeServer,
    log: Log,
    dead: Arc<DeadLetters>,
    options: BridgeOptions,
    format: Format,
}

impl Setup {
    fn new() -> Self {
        Setup {
            server: FakeServer::new(),
            log: Log::default(),
            dead: Arc::new(DeadLetters::in_memory(DeadLetterLimits::default())),
            options: BridgeOptions::new("fake", "fake://here").clock(Arc::new(Noon)).seed(7),
            format: Format::Raw,
        }
    }

    fn spawn(&self) -> BridgeHandle {
        self.spawn_over(self.log.feed())
    }

    fn spawn_over(&self, feed: impl Feed) -> BridgeHandle {
        let encoder = Encoder::new(Sources { host: "test".into(), zone: None });
        let writer = LetterWriter::new::<FakeBus>(encoder, self.format, "hookbus");
        Bridge::spawn("b", self.server.bus(), feed, writer, self.options.clone(), Arc::clone(&self.dead))
    }

    /// Publishes events whose payloads are their numbers.
    fn publish(&self, numbers: std::ops::RangeInclusive<u32>) {
        for n in numbers {
            self.log.publish(Message::new("k", n.to_string()));
        }
    }
}

/// Lets everything happen that happens without time, and what a thread for blocking work does.
async fn settle() {
    for _ in 0..2 {
        for _ in 0..40 {
            tokio::task::yield_now().await;
        }
        tokio::task::spawn_blocking(|| ()).await.unwrap();
    }
}

/// Waits for a condition, in the time of the test.
async fn until(what: &str, mut is: impl FnMut() -> bool) {
    for _ in 0..5000 {
        if is() {
            return;
        }
        settle().await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{what}");
}

fn texts(numbers: std::ops::RangeInclusive<u32>) -> Vec<String> {
    numbers.map(|n| n.to_string()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_status_says_all() {
    let setup = Setup::new();
    setup.server.hold_receipts();
    setup.publish(1..=3);
    setup.log.gap();
    setup.publish(4..=4);
    let bridge = setup.spawn();
    settle().await;
    let status = bridge.status();
    assert_eq!((status.lag_events, status.lag_seconds, status.in_flight), (4, 60.0, 4));
    assert_eq!(status.guarantee, Guarantee::AtLeastOnce);
    setup.server.let_receipts_go(|receipts| {
        let Receipt::Confirmed(ticket) = receipts[2] else { panic!() };
        receipts[2] = Receipt::Duplicate(ticket);
        let Receipt::Confirmed(ticket) = receipts[0] else { panic!() };
        receipts[0] = Receipt::Unroutable(ticket);
        receipts.reverse();
    });
    settle().await;
    let json = serde_json::to_value(bridge.status()).unwrap();
    assert_eq!(
        json,
        serde_json::json!({
            "name": "b", "kind": "fake", "address": "fake://here", "state": "ready", "since": "2023-11-14T22:14:20.000Z",
            "guarantee": "at-least-once", "lag_events": 0, "lag_seconds": 0.0, "in_flight": 0, "confirmed": 4, "retried": 0,
            "duplicates": 1, "unroutable": 1, "filtered": 0, "dropped": 1, "omitted": 0, "dead": 0, "skipped": 0, "connects": 1,
            "last_error": null
        })
    );
    assert_eq!(setup.log.cursor(), 6);
    assert!(setup.server.flushes() < 4, "flushed once for many");
}

#[tokio::test(start_paused = true)]
async fn silence_is_given_up_and_everything_sent_again() {
    let mut setup = Setup::new();
    setup.options = setup.options.ack_timeout(Duration::from_secs(5));
    setup.publish(1..=10);
    setup.server.script("3", &[Verdict::Mute]);
    setup.server.script("7", &[Verdict::Lose]);
    let bridge = setup.spawn();
    settle().await;
    assert_eq!((setup.log.cursor(), bridge.status().in_flight), (3, 2));
    let begun = tokio::time::Instant::now();
    until("all are confirmed", || setup.log.cursor() == 11).await;
    assert!(begun.elapsed() >= Duration::from_secs(5));
    assert_eq!(setup.server.sent()[10..], ["3", "7"], "only what was not confirmed, in order");
    let status = bridge.status();
    assert_eq!((status.counts.retried, status.counts.connects), (2, 2));
    assert!(status.last_error.unwrap().contains("within 5 s"));
    let arrivals = setup.server.arrivals();
    let of_3: Vec<_> = arrivals.iter().filter(|arrival| arrival.body == "3").collect();
    assert_eq!((of_3.len(), &of_3[0].id), (2, &of_3[1].id));
}

#[tokio::test(start_paused = true)]
async fn who_is_refused_for_now_goes_first() {
    let mut setup = Setup::new();
    setup.options = setup.options.window(4, usize::MAX);
    setup.publish(1..=10);
    setup.server.script("2", &[Verdict::Busy, Verdict::Busy, Verdict::Busy]);
    let bridge = setup.spawn();
    until("all are confirmed", || setup.log.cursor() == 11).await;
    let sent = setup.server.sent();
    assert_eq!(sent[..7], ["1", "2", "3", "4", "2", "2", "2"], "nothing new overtakes it");
    assert_eq!(sent[7..], texts(5..=10));
    assert_eq!(bridge.status().counts.retried, 3);
    assert_eq!(bridge.status().last_error.as_deref(), Some("busy"));
}

#[tokio::test(start_paused = true)]
async fn refused_for_good_is_buried_and_the_line_goes_on() {
    let setup = Setup::new();
    setup.publish(1..=2);
    setup.log.gap();
    setup.publish(3..=6);
    setup.server.script("3", &[Verdict::Refuse]);
    setup.server.script("5", &[Verdict::Invalid]);
    let bridge = setup.spawn();
    until("all are done", || setup.log.cursor() == 8).await;
    assert_eq!(setup.server.bodies(), ["1", "2", "4", "6"]);
    let mut dead = setup.dead.list(Some("b"), 9).unwrap();
    dead.sort_by_key(|letter| letter.id.offset);
    let shown: Vec<_> = dead.iter().map(|letter| (letter.id.offset.get(), &*letter.reason, letter.attempts)).collect();
    assert_eq!(shown, [(4, "not allowed", 1), (6, "invalid", 1)]);
    assert_eq!((bridge.status().counts.dead, bridge.status().counts.confirmed), (2, 4));
}

/// What the bus has said of letters counts, also where the connection is found to be over by the letter behind them.
#[tokio::test(start_paused = true)]
async fn what_was_told_before_the_connection_broke_counts() {
    let setup = Setup::new();
    setup.publish(1..=3);
    setup.server.script("2", &[Verdict::Refuse]);
    setup.server.script("3", &[Verdict::Break]);
    let bridge = setup.spawn();
    until("all are done", || setup.log.cursor() == 4).await;
    assert_eq!(
        (setup.server.sent(), bridge.status().counts.connects),
        (["1", "2", "3", "3"].map(String::from).into(), 2)
    );
    assert_eq!((setup.server.bodies(), setup.dead.count(Some("b"))), (vec!["1".into(), "3".into()], 1));
}

/// The gap that a refused letter would have told of is told by the next one.
#[tokio::test(start_paused = true)]
async fn a_gap_is_told_by_the_next_letter_that_arrives() {
    let mut setup = Setup::new();
    setup.format = Format::CloudEventsBinary;
    setup.options = setup.options.window(1, usize::MAX);
    setup.log.gap();
    setup.log.gap();
    setup.publish(1..=1);
    setup.log.gap();
    setup.publish(2..=3);
    setup.server.script("1", &[Verdict::Refuse]);
    let _bridge = setup.spawn();
    until("all are done", || setup.log.cursor() == 7).await;
    let told = |n: usize| {
        let attributes = setup.server.arrivals()[n].attributes.clone();
        attributes.into_iter().find(|(name, _)| name == "hookbusdropped").map(|(_, count)| count)
    };
    assert_eq!((told(0).as_deref(), told(1)), (Some("3"), None));
}

#[tokio::test(start_paused = true)]
async fn dead_letters_that_cannot_be_stored_hold_the_cursor() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let mut setup = Setup::new();
    setup.dead = Arc::new(DeadLetters::in_directory(&state, DeadLetterLimits::default()));
    setup.publish(1..=4);
    setup.server.script("2", &[Verdict::Refuse]);
    let bridge = setup.spawn();
    until("it says so", || matches!(bridge.status().state, BridgeState::Blocked { .. })).await;
    let BridgeState::Blocked { reason } = bridge.status().state else { panic!() };
    assert!(reason.contains("dead-letters.redb can't be opened"), "{reason}");
    assert_eq!(
        (setup.server.bodies(), setup.log.cursor()),
        (texts(1..=1).into_iter().chain(texts(3..=4)).collect(), 2)
    );
    std::fs::create_dir(&state).unwrap();
    until("it is stored", || setup.log.cursor() == 5).await;
    assert_eq!((setup.dead.count(Some("b")), bridge.status().state), (1, BridgeState::Ready));
}

#[tokio::test(start_paused = true)]
async fn a_bus_that_asks_for_silence_gets_it() {
    let mut setup = Setup::new();
    setup.options = setup.options.ack_timeout(Duration::from_secs(5));
    let bridge = setup.spawn();
    setup.server.hold_receipts();
    setup.publish(1..=2);
    settle().await;
    setup.server.tell(&Receipt::Blocked(Some("memory alarm".into())));
    settle().await;
    setup.publish(3..=4);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(bridge.status().state, BridgeState::Blocked { reason: "memory alarm".into() });
    assert_eq!((setup.server.sent(), bridge.status().counts.connects), (texts(1..=2), 1), "no limit runs meanwhile");
    setup.server.tell(&Receipt::Blocked(None));
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!((bridge.status().state, bridge.status().counts.connects), (BridgeState::Ready, 1), "it runs anew");
    setup.server.let_receipts_go(|_| ());
    settle().await;
    assert_eq!((setup.log.cursor(), setup.server.sent()), (5, texts(1..=4)));
}

/// Neither a letter that the bus doesn't take nor a silent connection keeps the bridge from attending to the rest.
#[tokio::test(start_paused = true)]
async fn a_bus_that_takes_nothing_is_given_up() {
    let mut setup = Setup::new();
    setup.options = setup.options.ack_timeout(Duration::from_secs(5));
    setup.publish(1..=3);
    setup.server.script("2", &[Verdict::Hang]);
    let bridge = setup.spawn();
    settle().await;
    assert_eq!((setup.log.cursor(), bridge.status().in_flight), (2, 1), "what was told meanwhile counts");
    until("all are confirmed", || setup.log.cursor() == 4).await;
    assert_eq!(setup.server.sent(), ["1", "2", "2", "3"]);
}

#[tokio::test(start_paused = true)]
async fn it_tries_again_ever_more_slowly_and_without_end() {
    let mut setup = Setup::new();
    let backoff = Backoff {
        first: Duration::from_secs(1),
        most: Duration::from_secs(60),
        most_needs_help: Duration::from_secs(600),
    };
    setup.options = setup.options.backoff(backoff);
    setup.server.close_door(Some(Fault::passing("refused")));
    setup.publish(1..=1);
    let bridge = setup.spawn();
    let attempt = |status: BridgeStatus| match status.state {
        BridgeState::Connecting { attempt, needs_help, .. } => (attempt, needs_help),
        other => panic!("{other:?}"),
    };
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let (after_an_hour, _) = attempt(bridge.status());
    assert!((60..140).contains(&after_an_hour), "{after_an_hour}");
    setup.server.close_door(Some(Fault::needs_help("wrong password")));
    tokio::time::sleep(Duration::from_secs(36_000)).await;
    let (after_ten_more, needs_help) = attempt(bridge.status());
    assert!(needs_help && (60..130).contains(&(after_ten_more - after_an_hour)), "{after_ten_more}");
    setup.server.close_door(None);
    until("it is delivered", || setup.log.cursor() == 2).await;
    assert_eq!(bridge.status().counts.connects, 1);
    // Something was confirmed, so it begins anew.
    setup.server.die();
    settle().await;
    assert_eq!(attempt(bridge.status()).0, 2);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_breaks_over_and_over_is_not_hammered() {
    let mut setup = Setup::new();
    setup.options = setup.options.backoff(Backoff { first: Duration::from_secs(1), ..Backoff::default() });
    setup.publish(1..=2);
    setup.server.script("1", &[Verdict::Break; 6]);
    let bridge = setup.spawn();
    let begun = tokio::time::Instant::now();
    until("all are confirmed", || setup.log.cursor() == 3).await;
    assert!(begun.elapsed() > Duration::from_secs(15));
    assert_eq!((bridge.status().counts.connects, setup.server.bodies()), (7, texts(1..=2)));
}

#[tokio::test(start_paused = true)]
async fn without_acknowledgements_handing_over_counts_and_nothing_is_repeated() {
    let mut setup = Setup::new();
    setup.server = setup.server.without_acknowledgements();
    setup.publish(1..=100);
    setup.server.script("50", &[Verdict::Break]);
    let bridge = setup.spawn();
    until("all are handed over", || setup.log.cursor() == 101).await;
    let status = bridge.status();
    assert_eq!((status.guarantee, status.counts.confirmed, status.in_flight), (Guarantee::AtMostOnce, 100, 0));
    assert_eq!(setup.server.bodies(), texts(1..=100));
}

#[tokio::test(start_paused = true)]
async fn a_subscription_of_the_broker_is_drained_at_shutdown() {
    let setup = Setup::new();
    let broker = Broker::default();
    let options = SubscribeOptions::new("b").prefix("k").hwm(5).overflow(Overflow::DropNewest);
    let subscription = broker.subscribe(options);
    setup.server.die();
    let bridge = setup.spawn_over(subscription);
    settle().await;
    for n in 1..=20 {
        broker.publish(Message::new("k", n.to_string())).await.unwrap();
        settle().await;
    }
    let status = bridge.status();
    assert_eq!(status.guarantee, Guarantee::AtLeastOnceInMemory);
    assert_eq!(status.lag_events + status.counts.dropped, 20);
    assert!(status.counts.dropped > 0);
    setup.server.revive();
    let abandoned = bridge.shutdown(Duration::from_secs(60)).await;
    assert_eq!((abandoned.events, abandoned.durable), (0, false));
    assert_eq!(setup.server.bodies().len() as u64, status.lag_events);
}

#[tokio::test(start_paused = true)]
async fn a_feed_that_ends_ends_the_bridge() {
    let setup = Setup::new();
    setup.publish(1..=300);
    setup.log.close();
    let bridge = setup.spawn();
    until("it has ended", || bridge.is_finished()).await;
    assert_eq!((setup.server.bodies(), setup.log.cursor()), (texts(1..=300), 301));
    assert_eq!(bridge.status().state, BridgeState::Ended);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_ends_in_time_whatever_the_bus_does() {
    let setup = Setup::new();
    setup.publish(1..=10);
    setup.server.script("5", &[Verdict::Mute]);
    setup.server.script("8", &[Verdict::Hang]);
    let bridge = setup.spawn();
    settle().await;
    let begun = tokio::time::Instant::now();
    let abandoned = bridge.shutdown(Duration::from_secs(3)).await;
    assert!(begun.elapsed() < Duration::from_secs(4));
    assert_eq!((abandoned.events, abandoned.durable, setup.log.cursor()), (4, true, 5));
}

#[tokio::test(start_paused = true)]
async fn retries_that_are_for_executors_stay_here() {
    let setup = Setup::new();
    setup.log.publish(Message::new("RETRY", "x"));
    setup.publish(1..=1);
    setup.log.publish(Message::new("RETRY", "x"));
    let bridge = setup.spawn();
    until("all are passed", || setup.log.cursor() == 4).await;
    assert_eq!((setup.server.bodies(), bridge.status().counts.skipped), (texts(1..=1), 2));
}

/// A bus that takes less after it was upgraded gets smaller letters.
#[tokio::test(start_paused = true)]
async fn letters_are_written_anew_for_a_smaller_limit() {
    let mut setup = Setup::new();
    setup.format = Format::CloudEvents;
    setup.log.publish(Message::new("large", "x".repeat(10_000)));
    setup.log.publish(Message::new("small", "x"));
    setup.server.hold_receipts();
    let bridge = setup.spawn();
    settle().await;
    assert_eq!(setup.server.arrivals().len(), 2);
    setup.server.die();
    setup.server.limits(Limits { letter_bytes: 5000, in_flight: 1 });
    settle().await;
    setup.server.let_receipts_go(Vec::clear);
    setup.server.revive();
    until("all are confirmed", || setup.log.cursor() == 3).await;
    let arrivals = setup.server.arrivals();
    assert_eq!(arrivals[2].id, arrivals[0].id);
    assert!(std::str::from_utf8(&arrivals[2].body).unwrap().contains("hookbusomitted"));
    assert_eq!(bridge.status().counts.omitted, 1);
}

#[tokio::test(start_paused = true)]
async fn dead_letters_are_sent_again_beside_the_stream() {
    let mut setup = Setup::new();
    setup.options = setup.options.window(5, usize::MAX);
    setup.publish(1..=40);
    for n in 1..=40 {
        setup.server.script(&n.to_string(), &[Verdict::Refuse]);
    }
    let bridge = setup.spawn();
    until("all are dead", || setup.dead.count(None) == 40).await;
    assert_eq!(bridge.retry(&Which::All), 40);
    assert_eq!(bridge.retry(&Which::All), 0, "they are under way");
    setup.server.script("10", &[Verdict::Busy, Verdict::Lose]);
    setup.publish(41..=60);
    until("all have arrived", || setup.dead.count(None) == 0 && setup.log.cursor() == 61).await;
    let arrivals = setup.server.arrivals();
    assert_eq!(first_arrivals(&arrivals).len(), 60);
    assert_eq!(arrivals.iter().filter(|arrival| arrival.id.ends_with(";replay=1")).count(), 40);
    assert_eq!(bridge.status().counts.dead, 40);
}

/// Random outages, refusals and silences: everything arrives, and the cursor is never over what has not.
#[tokio::test(start_paused = true)]
async fn whatever_happens_everything_arrives() {
    for seed in 0..40 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut setup = Setup::new();
        let backoff = Backoff { most: Duration::from_millis(500), ..Backoff::default() };
        let options = setup.options.window(random.usize(1..20), usize::MAX).ack_timeout(Duration::from_secs(2));
        setup.options = options.backoff(backoff).seed(seed);
        let all = [Verdict::Busy, Verdict::Mute, Verdict::Lose, Verdict::Hang, Verdict::Break, Verdict::Confirm];
        for n in 1..=100u32 {
            let verdicts: Vec<Verdict> = (0..random.usize(0..3)).map(|_| all[random.usize(0..all.len())]).collect();
            if random.u8(..) < 60 {
                setup.server.script(&n.to_string(), &verdicts);
            }
        }
        let mut server = setup.server.clone();
        let bridge = setup.spawn();
        for n in 0..20 {
            setup.publish(5 * n + 1..=5 * n + 5);
            match random.u8(0..8) {
                0 => server.die(),
                1 => server.stop().await,
                2 => server.resume().await,
                3 => server.revive(),
                _ => tokio::time::sleep(Duration::from_millis(random.u64(0..3000))).await,
            }
            settle().await;
            let arrived = setup.server.bodies();
            for done in 1..setup.log.cursor() {
                assert!(
                    arrived.contains(&done.to_string()),
                    "seed {seed}: the cursor is over {done}, which has not arrived"
                );
            }
        }
        server.resume().await;
        server.revive();
        until(&format!("seed {seed}: everything is confirmed"), || setup.log.cursor() == 101).await;
        let arrivals = setup.server.arrivals();
        assert_eq!(first_arrivals(&arrivals).len(), 100, "seed {seed}");
        assert_eq!(bridge.status().counts.confirmed, 100, "seed {seed}");
    }
}
