//! The broker among threads and tasks: waking, waiting, closing, and a soak in which all of that happens at random.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use hookbus_broker::{
    BatchLimit, Broker, BrokerOptions, Delivery, EndReason, Message, Overflow, PublishError, SubscribeOptions,
    Subscription, TryPublishError, TryRecvError,
};
use tokio::time::timeout;

/// Far more than anything here needs; reaching it means that something hangs.
const DEADLINE: Duration = Duration::from_secs(60);

fn all(name: &str) -> SubscribeOptions {
    SubscribeOptions::new(name).prefix("")
}

/// What a subscription has told so far, and whether it made sense.
#[derive(Default)]
struct Told {
    last: u64,
    messages: u64,
    dropped: u64,
}

impl Told {
    fn read(&mut self, subscription: &mut Subscription, limit: BatchLimit) -> bool {
        let Some(batch) = subscription.recv_batch_blocking(limit) else { return false };
        for delivery in batch.iter() {
            match delivery {
                Delivery::Message(message) => {
                    let offset = message.offset().get();
                    assert!(offset > self.last, "{offset} after {}", self.last);
                    // Each payload starts with what its key ends with, and repeats it.
                    let key = message.matched_keys().next().expect("one matched");
                    let tail = key.last().copied().unwrap_or(b'?');
                    assert!(message.payload().iter().all(|&b| b == tail), "the payload belongs to the key");
                    self.last = offset;
                    self.messages += 1;
                }
                Delivery::Gap(gap) => {
                    assert!(gap.first.get() > self.last && gap.last >= gap.first && gap.count > 0, "{gap:?}");
                    self.last = gap.last.get();
                    self.dropped += gap.count;
                }
            }
        }
        true
    }
}

fn message(group: u8, size: usize) -> Message {
    let letter = b'a' + group;
    let big = Bytes::from(vec![letter; size + 1]);
    let payload = if size.is_multiple_of(3) { big.slice(1..) } else { Bytes::from(vec![letter; size]) };
    Message::new([b'k', letter], payload)
}

/// Publishers, readers of all policies, changes of prefixes, subscriptions that come and go: whoever reads to the end was told
/// of everything that matched since it subscribed.
#[test]
fn soak() {
    const PUBLISHERS: u64 = 3;
    let each: u64 = if cfg!(debug_assertions) { 20_000 } else { 100_000 };
    let broker = Broker::new(BrokerOptions::default().max_bytes(8 << 20));
    let policies = [Overflow::DropNewest, Overflow::DropOldest, Overflow::Block];
    let readers: Vec<_> = (0..9)
        .map(|i: usize| {
            let prefix = if i < 6 { "" } else { "kb" };
            let options =
                SubscribeOptions::new("reader").prefix(prefix).hwm([7, 1000, 0][i / 3]).overflow(policies[i % 3]);
            let mut subscription = broker.subscribe(options);
            thread::spawn(move || {
                let mut told = Told::default();
                let limit = BatchLimit::messages([1, 64, 5000][i % 3]);
                while told.read(&mut subscription, limit) {
                    if i == 4 && told.messages % 97 == 0 {
                        thread::yield_now();
                    }
                }
                assert_eq!(subscription.end(), Some(EndReason::BrokerClosed));
                let stats = subscription.handle().stats().expect("it lives");
                assert_eq!((stats.delivered, stats.dropped, stats.queued), (told.messages, told.dropped, 0));
                (prefix, told.messages + told.dropped)
            })
        })
        .collect();
    let matched_b = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let changers: Vec<_> = (0..2u64)
        .map(|seed| {
            let (broker, stop) = (broker.clone(), Arc::clone(&stop));
            thread::spawn(move || {
                let mut random = Random(seed + 1);
                while !stop.load(Ordering::Relaxed) {
                    let overflow = policies[random.below(2)];
                    let mut subscription =
                        broker.subscribe(SubscribeOptions::new("visitor").hwm(random.below(20)).overflow(overflow));
                    let mut told = Told::default();
                    for _ in 0..random.below(30) {
                        let prefix = ["", "k", "ka", "kb", "kc", "x"][random.below(6)];
                        match random.below(3) {
                            0 => drop(subscription.handle().remove_prefixes([prefix])),
                            1 => drop(subscription.handle().add_prefixes([prefix])),
                            _ => {
                                if subscription.handle().stats().expect("it lives").queued > 0 {
                                    told.read(&mut subscription, BatchLimit::messages(random.below(40)));
                                }
                            }
                        }
                    }
                    if random.below(2) == 0 {
                        subscription.handle().close();
                        while told.read(&mut subscription, BatchLimit::default()) {}
                        let stats = subscription.handle().stats().expect("it lives");
                        assert_eq!((stats.delivered, stats.dropped, stats.queued), (told.messages, told.dropped, 0));
                    }
                }
            })
        })
        .collect();
    let publishers: Vec<_> = (0..PUBLISHERS)
        .map(|seed| {
            let (broker, matched_b) = (broker.clone(), Arc::clone(&matched_b));
            thread::spawn(move || {
                let mut random = Random(seed + 100);
                let mut left = each;
                while left > 0 {
                    let count = u64::try_from(random.below(40)).unwrap().clamp(1, left);
                    let groups: Vec<u8> = (0..count).map(|_| random.below(5) as u8).collect();
                    matched_b.fetch_add(groups.iter().filter(|&&g| g == 1).count() as u64, Ordering::Relaxed);
                    let mut batch: VecDeque<_> =
                        groups.iter().map(|&g| message(g, [1, 100, 150, 600][random.below(4)])).collect();
                    if random.below(2) == 0 {
                        assert_eq!(broker.publish_batch_blocking(&mut batch), Ok(groups.len()));
                    } else {
                        for message in batch {
                            broker.publish_blocking(message).unwrap();
                        }
                    }
                    left -= count;
                }
            })
        })
        .collect();
    publishers.into_iter().for_each(|p| p.join().unwrap());
    stop.store(true, Ordering::Relaxed);
    changers.into_iter().for_each(|c| c.join().unwrap());
    assert_eq!(broker.stats().published, PUBLISHERS * each);
    broker.close();
    for reader in readers {
        let (prefix, told) = reader.join().unwrap();
        let expected = if prefix.is_empty() { PUBLISHERS * each } else { matched_b.load(Ordering::Relaxed) };
        assert_eq!(told, expected, "messages and gaps of a reader of {prefix:?}");
    }
    assert_eq!(broker.stats().prefixes, 0, "the tree is empty when all are gone");
    assert!(broker.stats().held_bytes <= 2 << 20, "only the open block is left: {:?}", broker.stats());
}

/// A small generator (xorshift64*) so that each thread's choices can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % n.max(1)
    }
}

/// A subscriber that stalls with one queued message costs about that message, however much passes it by.
#[test]
fn a_stalled_subscriber_pins_what_is_queued_for_it() {
    let cases = [
        ("", Overflow::DropNewest, 5_000_000),
        ("", Overflow::DropOldest, 200_000),
        ("rare", Overflow::DropNewest, 200_000),
    ];
    for (prefix, overflow, others) in cases {
        let broker = Broker::default();
        let _stalled = broker.subscribe(SubscribeOptions::new("stalled").prefix(prefix).hwm(1).overflow(overflow));
        let mut reader = broker.subscribe(all("reader").hwm(0));
        let payload = Bytes::from(vec![7; 2048]);
        for n in 0..others {
            let key = if n % 1000 == 0 { "rare" } else { "common" };
            broker.publish_now(Message::new(key, payload.clone())).unwrap();
            if n % 100 == 0 {
                while reader.try_recv_batch(BatchLimit::default()).is_ok() {}
                let held = broker.stats().held_bytes;
                assert!(held < 4 << 20, "{held} bytes are held for one queued message ({prefix:?}, {overflow:?})");
            }
        }
    }
}

/// A stalled subscriber to one message in a thousand holds those, not the blocks that others read.
#[test]
fn a_sparse_backlog_holds_only_itself() {
    let broker = Broker::default();
    let mut stalled = broker.subscribe(SubscribeOptions::new("stalled").prefix("rare").hwm(0));
    let mut reader = broker.subscribe(all("reader").hwm(0));
    for n in 0..300_000u32 {
        // Slices of a larger buffer, as an ingress makes them.
        let buffer = Bytes::from(vec![7; if n % 1000 == 0 { 64 << 10 } else { 100 }]);
        let key = if n % 1000 == 0 { "rare" } else { "common" };
        broker.publish_now(Message::new(key, buffer.slice(..100.min(buffer.len())))).unwrap();
        if n % 100 == 0 {
            while reader.try_recv_batch(BatchLimit::default()).is_ok() {}
        }
    }
    assert_eq!(stalled.handle().stats().unwrap().queued, 300);
    let held = broker.stats().held_bytes;
    assert!(held < 3 << 20, "{held} bytes are held for 300 queued messages of 100 bytes");

    // It goes on where it stood, in order; what it has read is given back with its next message.
    let mut offsets = Vec::new();
    while let Ok(batch) = stalled.try_recv_batch(BatchLimit::messages(7)) {
        for delivery in batch.iter() {
            let Delivery::Message(message) = delivery else { panic!("nothing was dropped") };
            assert_eq!(message.payload(), [7; 100]);
            offsets.push(message.offset().get());
        }
    }
    assert!(offsets.iter().copied().eq((0..300).map(|n| n * 1000 + 1)), "{offsets:?}");
    broker.publish_now(Message::new("rare", "")).unwrap();
    while reader.try_recv_batch(BatchLimit::default()).is_ok() {}
    assert!(stalled.try_recv().is_ok() && stalled.try_recv().is_err());
    let held = broker.stats().held_bytes;
    assert!(held < 2 << 20, "{held} bytes are held, though everything was read");
}

/// The bound on all queues holds for those who get few of the messages, whether or not they read in between.
#[test]
fn max_bytes_bounds_sparse_queues_too() {
    const MAX: usize = 4 << 20;
    const SENT: u64 = 20_000;
    let policies = [Overflow::DropNewest, Overflow::DropOldest, Overflow::Block];
    for overflow in policies {
        let broker = Broker::new(BrokerOptions::default().max_bytes(MAX));
        let rare = |n: u8| SubscribeOptions::new("rare").prefix([b'k', b'a' + n]).hwm(0).overflow(overflow);
        let mut stalled = [broker.subscribe(rare(1)), broker.subscribe(rare(2))];
        let mut reader = broker.subscribe(all("reader").hwm(0));
        let (mut read, mut told) = (Told::default(), [Told::default(), Told::default()]);
        for n in 0..SENT {
            // The first of the two reads now and then, the second never.
            for group in [1, 2, 0, 0, 0, 0, 0, 0, 0, 0] {
                broker.publish_now(message(group, 1000)).unwrap();
            }
            while read.last < (n + 1) * 10 {
                assert!(read.read(&mut reader, BatchLimit::default()));
            }
            if n % 64 == 0 {
                assert!(told[0].read(&mut stalled[0], BatchLimit::default()));
            }
            let held = broker.stats().held_bytes;
            assert!(held <= MAX, "{held} bytes are held ({overflow:?})");
        }
        assert_eq!((read.messages, read.dropped), (10 * SENT, 0), "the one who keeps up ({overflow:?})");
        broker.close();
        for (told, stalled) in told.iter_mut().zip(&mut stalled) {
            while told.read(stalled, BatchLimit::default()) {}
            assert_eq!(told.messages + told.dropped, SENT, "{overflow:?}");
        }
        assert!(
            told[1].messages > 900,
            "{} messages of 1000 bytes were kept in 4 MiB ({overflow:?})",
            told[1].messages
        );
        assert_eq!(told[0].dropped, 0, "the one who reads in time ({overflow:?})");
    }
}

/// Together, queues hold no more than `max_bytes`; who is farthest behind pays, and is told; who keeps up loses nothing.
#[test]
fn max_bytes_bounds_all_queues_together() {
    const MAX: usize = 4 << 20;
    let policies = [Overflow::DropNewest, Overflow::DropOldest, Overflow::Block, Overflow::Disconnect];
    for overflow in policies {
        let broker = Broker::new(BrokerOptions::default().max_bytes(MAX));
        let mut stalled = broker.subscribe(all("stalled").hwm(0).overflow(overflow));
        let mut reader = broker.subscribe(all("reader").hwm(0));
        let mut read = Told::default();
        for _ in 0..20_000 {
            broker.publish_now(message(0, 2000)).unwrap();
            assert!(read.read(&mut reader, BatchLimit::default()));
            let held = broker.stats().held_bytes;
            assert!(held <= MAX, "{held} bytes are held ({overflow:?})");
        }
        assert_eq!((read.messages, read.dropped), (20_000, 0), "the one who keeps up ({overflow:?})");
        broker.close();
        let mut told = Told::default();
        while told.read(&mut stalled, BatchLimit::default()) {}
        if overflow != Overflow::Disconnect {
            assert_eq!(told.messages + told.dropped, 20_000, "{overflow:?}");
            assert!(told.messages > 900, "{} messages of 2000 bytes were kept in 4 MiB ({overflow:?})", told.messages);
        }
    }
}

/// A message larger than everything may hold is dropped for all, and told to all.
#[test]
fn a_message_beyond_max_bytes_is_told() {
    let broker = Broker::new(BrokerOptions::default().max_bytes(100_000));
    let mut subscription = broker.subscribe(all("one").overflow(Overflow::Block));
    broker.try_publish(message(0, 10)).unwrap();
    broker.try_publish(message(0, 200_000)).unwrap();
    broker.try_publish(message(0, 10)).unwrap();
    assert!(matches!(subscription.try_recv(), Ok(Delivery::Message(m)) if m.offset().get() == 1));
    assert!(matches!(subscription.try_recv(), Ok(Delivery::Gap(gap)) if gap.count == 1 && gap.first.get() == 2));
    assert!(matches!(subscription.try_recv(), Ok(Delivery::Message(m)) if m.offset().get() == 3));
}

#[tokio::test]
async fn a_gap_is_told_though_nothing_follows() {
    let broker = Broker::default();
    let mut subscription = broker.subscribe(all("one").hwm(1));
    for _ in 0..3 {
        broker.publish(message(0, 10)).await.unwrap();
    }
    assert!(matches!(subscription.recv().await, Some(Delivery::Message(_))));
    let gap = timeout(DEADLINE, subscription.recv()).await.expect("it is told").expect("open");
    assert!(matches!(gap, Delivery::Gap(gap) if (gap.first.get(), gap.last.get(), gap.count) == (2, 3, 2)));
    assert_eq!(subscription.try_recv(), Err(TryRecvError::Empty));
}

#[tokio::test]
async fn a_publisher_waits_for_a_full_subscription_and_goes_on_with_room_for_one() {
    let broker = Broker::default();
    let mut subscription = broker.subscribe(all("one").hwm(2).overflow(Overflow::Block));
    for _ in 0..2 {
        broker.publish(message(0, 10)).await.unwrap();
    }
    let (error, back) = broker.try_publish(message(0, 10)).expect_err("it is full");
    assert_eq!(error, TryPublishError::WouldBlock);
    let waiting = tokio::spawn({
        let broker = broker.clone();
        async move { broker.publish(back).await }
    });
    tokio::task::yield_now().await;
    assert_eq!(broker.stats().published, 2, "delivered to nobody yet");
    assert!(subscription.recv().await.is_some());
    timeout(DEADLINE, waiting).await.expect("it is woken").unwrap().unwrap();
    assert_eq!(broker.stats().published, 3);
}

#[tokio::test]
async fn a_cancelled_publish_publishes_nothing() {
    let broker = Broker::default();
    let mut subscription = broker.subscribe(all("one").hwm(1).overflow(Overflow::Block));
    broker.publish(message(0, 10)).await.unwrap();
    let mut batch: VecDeque<_> = (0..3).map(|_| message(1, 10)).collect();
    assert!(timeout(Duration::from_millis(1), broker.publish(message(0, 10))).await.is_err());
    assert!(timeout(Duration::from_millis(1), broker.publish_batch(&mut batch)).await.is_err());
    assert_eq!((broker.stats().published, batch.len()), (1, 3));
    assert!(subscription.recv().await.is_some());
    assert_eq!(subscription.try_recv(), Err(TryRecvError::Empty));
}

#[tokio::test]
async fn a_subscription_that_goes_away_frees_a_publisher_that_waits_for_it() {
    let broker = Broker::default();
    let subscription = broker.subscribe(all("one").hwm(1).overflow(Overflow::Block));
    broker.publish(message(0, 10)).await.unwrap();
    let waiting = tokio::spawn({
        let broker = broker.clone();
        async move { broker.publish(message(0, 10)).await }
    });
    tokio::task::yield_now().await;
    drop(subscription);
    timeout(DEADLINE, waiting).await.expect("it is woken").unwrap().unwrap();
    assert_eq!((broker.stats().published, broker.stats().abandoned), (2, 1));
}

#[tokio::test]
async fn close_lets_readers_drain_and_refuses_publishers() {
    let broker = Broker::default();
    let mut full = broker.subscribe(all("full").hwm(1).overflow(Overflow::Block));
    broker.publish(message(0, 10)).await.unwrap();
    let waiting = tokio::spawn({
        let broker = broker.clone();
        async move { broker.publish(message(0, 10)).await }
    });
    let mut idle = broker.subscribe(SubscribeOptions::new("idle").prefix("nothing"));
    let idle = tokio::spawn(async move { idle.recv().await });
    tokio::task::yield_now().await;
    broker.close();
    assert_eq!(timeout(DEADLINE, waiting).await.expect("it is woken").unwrap(), Err(PublishError::Closed));
    assert_eq!(timeout(DEADLINE, idle).await.expect("it is woken").unwrap(), None);
    assert!(full.recv().await.is_some(), "what was queued can be read");
    assert_eq!(full.recv().await, None);
    assert_eq!(broker.publish_now(message(0, 1)), Err(PublishError::Closed));
    assert_eq!(broker.subscribe(all("late")).try_recv(), Err(TryRecvError::Ended));
}

#[test]
fn limits_are_told() {
    let broker = Broker::default();
    let mut many = Message::new("k", "");
    for _ in 0..32 {
        many = many.with_key("k");
    }
    assert_eq!(broker.publish_now(many), Err(PublishError::TooManyKeys { count: 33 }));
    let long = Message::new(vec![b'k'; 70_000], "");
    let error = broker.publish_now(long).expect_err("too long");
    assert_eq!(
        error.to_string(),
        "publish: the keys of the message have 70000 bytes together; at most 65535 are possible"
    );
    assert_eq!(broker.stats().published, 0);
    // What is just allowed works, with a record larger than a block's usual arena.
    let mut subscription = broker.subscribe(all("one"));
    broker.publish_now(Message::new(vec![b'k'; 65_535], vec![1; 128])).unwrap();
    assert!(matches!(subscription.try_recv(), Ok(Delivery::Message(m)) if m.keys().next().unwrap().len() == 65_535));
}

/// What a subscription leaves behind when it goes is nothing, whatever it was doing.
#[tokio::test]
async fn nothing_is_left_of_a_subscription_that_is_gone() {
    struct Canary;
    impl std::task::Wake for Canary {
        fn wake(self: Arc<Self>) {}
    }
    let broker = Broker::default();
    let _neighbour = broker.subscribe(all("neighbour"));
    let canary = Arc::new(Canary);
    let waker = std::task::Waker::from(Arc::clone(&canary));
    for end in [false, true] {
        let mut subscription = broker.subscribe(all("one"));
        if end {
            subscription.handle().close();
        }
        let _ = subscription.poll_ready(&mut std::task::Context::from_waker(&waker));
        subscription.handle().add_prefixes(["more"]);
        let _ = subscription.poll_ready(&mut std::task::Context::from_waker(&waker));
    }
    drop(waker);
    assert_eq!(Arc::strong_count(&canary), 1, "a waker outlived its subscription");
}

/// A batch that was taken but not handled is counted as abandoned.
#[test]
fn an_abandoned_batch_is_counted() {
    let broker = Broker::default();
    let mut subscription = broker.subscribe(all("one"));
    for _ in 0..5 {
        broker.publish_now(message(0, 10)).unwrap();
    }
    subscription.try_recv_batch(BatchLimit::messages(3)).unwrap().abandon(2);
    drop(subscription);
    let stats = broker.stats();
    assert_eq!((stats.delivered, stats.abandoned), (1, 4));
}

/// A listing shows the prefixes of a subscription in order, as many as it asks for.
#[test]
fn the_prefixes_of_a_subscription_are_listed_in_order() {
    let broker = Broker::default();
    let subscription = broker.subscribe(SubscribeOptions::new("one").prefix("b").prefix("a"));
    let id = subscription.handle().id();
    let listed = |most| {
        let prefixes = broker.prefixes_of(id, most);
        prefixes.iter().map(|prefix| String::from_utf8_lossy(prefix).into_owned()).collect::<Vec<_>>()
    };
    assert_eq!(listed(10), ["a", "b"]);
    subscription.handle().add_prefixes(["", "aa", "c"]);
    subscription.handle().remove_prefixes(["b"]);
    assert_eq!(
        (listed(10), listed(2), listed(0)),
        (vec!["", "a", "aa", "c"].into_iter().map(String::from).collect(), vec!["".into(), "a".into()], vec![])
    );
    drop(subscription);
    assert_eq!(listed(10), [""; 0]);
}

/// A future that is polled several times in a row, as in a `select!` or as the body of an HTTP response, comes to rest all the same.
#[test]
fn a_reader_that_is_polled_too_often_comes_to_rest() {
    struct Count(std::sync::atomic::AtomicUsize);
    impl std::task::Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }
    let broker = Broker::default();
    let mut subscription = broker.subscribe(all("one"));
    let count = Arc::new(Count(0.into()));
    let waker = std::task::Waker::from(Arc::clone(&count));
    let mut cx = std::task::Context::from_waker(&waker);
    let wakes = || count.0.swap(0, std::sync::atomic::Ordering::Relaxed);
    let mut polls = 0;
    loop {
        polls += 1;
        assert!(polls < 100, "it wakes itself for ever");
        for _ in 0..2 {
            assert!(subscription.poll_ready(&mut cx).is_pending());
        }
        if wakes() == 0 {
            break;
        }
    }
    broker.publish_now(message(0, 10)).unwrap();
    assert!(wakes() > 0, "and is woken when there is something");
    assert!(subscription.poll_ready(&mut cx).is_ready());
}
