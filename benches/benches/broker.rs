//! What single operations of the broker cost: matching, fan-out, batches, each overflow policy at its limit, prefixes that
//! come and go.
//!
//! `cargo bench -p hookbus-benches` measures. Anything else, `cargo test` above all, runs every benchmark once at small
//! sizes, so that they stay alive.
//!
//! One thread publishes some hundred messages, which is timed, then empties the queues, which isn't: so these are the
//! publisher's costs without anybody to wake. What happens between threads is `hookbus-bench inproc`'s business. Of each
//! figure, about as much as `message` shows is for making the message itself.

use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use hookbus_broker::{BatchLimit, Broker, Journal, JournalOptions, Message, Overflow, SubscribeOptions, Subscription};

/// How many messages are published between two looks at the clock: few enough to stay in the second-level cache.
const RUN: u64 = 512;
const HWM: usize = 1024;
/// What the journal keeps.
const JOURNAL_BYTES: u64 = 256 << 20;

/// Whether this is a measurement, rather than a test that the benchmarks still work.
fn measuring() -> bool {
    let args: Vec<_> = std::env::args().collect();
    args.iter().any(|a| a == "--bench") && !args.iter().any(|a| a == "--test")
}

fn prefix_counts() -> &'static [usize] {
    if measuring() { &[10, 1_000, 100_000, 1_000_000] } else { &[10, 100] }
}

/// Filters as OneFlow sets them, five for each virtual machine, and the keys that match them.
struct Names {
    rng: fastrand::Rng,
    buffer: Vec<u8>,
}

impl Names {
    const STATES: [&str; 5] =
        ["ACTIVE/RUNNING", "POWEROFF/LCM_INIT", "SUSPENDED/LCM_INIT", "UNDEPLOYED/LCM_INIT", "DONE/LCM_INIT"];

    fn new() -> Self {
        Names { rng: fastrand::Rng::with_seed(7), buffer: Vec::with_capacity(64) }
    }

    /// The name of number `n`. Made on the spot, since a table of a million keys would add its own cache misses.
    fn write(&mut self, n: u64) {
        let state = Self::STATES[(n % 5) as usize];
        let mut vm = n / 5;
        self.buffer.clear();
        self.buffer.extend_from_slice(b"EVENT STATE VM/");
        self.buffer.extend_from_slice(state.as_bytes());
        self.buffer.push(b'/');
        let mut digits = [b'0'; 7];
        for digit in digits.iter_mut().rev() {
            *digit += (vm % 10) as u8;
            vm /= 10;
        }
        self.buffer.extend_from_slice(&digits);
    }

    fn prefixes(count: usize) -> Vec<Box<[u8]>> {
        let mut names = Names::new();
        let name = |n| {
            names.write(n);
            names.buffer.as_slice().into()
        };
        (0..count as u64).map(name).collect()
    }

    /// A message for one of the numbers in `range`.
    fn message(&mut self, range: std::ops::Range<u64>, payload: &Bytes) -> Message {
        let n = self.rng.u64(range);
        self.write(n);
        self.buffer.push(b' ');
        Message::new(&self.buffer, payload.clone())
    }
}

fn payload() -> Bytes {
    Bytes::from(vec![b'x'; 2048])
}

fn take_all(subscriptions: &mut [Subscription]) {
    for subscription in subscriptions {
        while let Ok(batch) = subscription.try_recv_batch(BatchLimit::default()) {
            black_box(batch.len());
        }
    }
}

/// Calls `publish`, which publishes `step` messages, until `count` are published; the time spent outside is not counted.
fn timed(count: u64, step: u64, subscriptions: &mut [Subscription], mut publish: impl FnMut() -> Duration) -> Duration {
    let mut spent = Duration::ZERO;
    let mut left = count;
    while left > 0 {
        for _ in 0..(RUN / step).min(left.div_ceil(step)) {
            spent += publish();
            left = left.saturating_sub(step);
        }
        take_all(subscriptions);
    }
    spent
}

/// As [`timed`], for messages one by one, with one look at the clock for each run.
fn timed_runs(count: u64, subscriptions: &mut [Subscription], mut publish: impl FnMut()) -> Duration {
    let mut spent = Duration::ZERO;
    let mut left = count;
    while left > 0 {
        let run = left.min(RUN);
        let start = Instant::now();
        for _ in 0..run {
            publish();
        }
        spent += start.elapsed();
        left -= run;
        take_all(subscriptions);
    }
    spent
}

fn message(c: &mut Criterion) {
    let (mut names, payload) = (Names::new(), payload());
    c.bench_function("message", |b| b.iter(|| names.message(0..1000, &payload)));
}

/// One subscription with many prefixes; each message matches one of them, or none.
fn matching(c: &mut Criterion) {
    let mut group = c.benchmark_group("matching");
    for &count in prefix_counts() {
        let broker = Broker::default();
        let mut options = SubscribeOptions::new("many").hwm(HWM);
        options.prefixes = Names::prefixes(count);
        let mut subscriptions = [broker.subscribe(options)];
        let count = count as u64;
        for (name, range) in [("hit", 0..count), ("miss", count..2 * count)] {
            let (mut names, payload) = (Names::new(), payload());
            group.bench_function(BenchmarkId::new(name, count), |b| {
                b.iter_custom(|iterations| {
                    timed_runs(iterations, &mut subscriptions, || {
                        let message = names.message(range.clone(), &payload);
                        broker.publish_blocking(message).expect("the broker is open");
                    })
                });
            });
        }
    }
}

/// Ends a thread's loop, also when the benchmark beside it panics.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Prefixes that come and go while somebody publishes, and what publishing costs meanwhile.
fn changing(c: &mut Criterion) {
    let count = if measuring() { 100_000 } else { 100 };
    let broker = Broker::default();
    let mut options = SubscribeOptions::new("many").hwm(HWM);
    options.prefixes = Names::prefixes(count);
    let subscription = broker.subscribe(options);
    let changer = subscription.handle().clone();
    let mut subscriptions = [subscription];
    let mut group = c.benchmark_group("changing");

    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut names, payload) = (Names::new(), payload());
            while !stop.load(Ordering::Relaxed) {
                let message = names.message(0..count as u64, &payload);
                broker.publish_blocking(message).expect("the broker is open");
            }
        });
        let _stop = StopOnDrop(&stop);
        let mut names = Names::new();
        let mut n = count as u64;
        group.bench_function("add and remove a prefix while publishing", |b| {
            b.iter(|| {
                names.write(n);
                let added = changer.add_prefixes([&names.buffer]);
                let removed = changer.remove_prefixes([&names.buffer]);
                assert_eq!((added, removed), (1, 1));
                n += 1;
            });
        });
    });

    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut names = Names::new();
            let mut n = count as u64;
            while !stop.load(Ordering::Relaxed) {
                names.write(n);
                changer.add_prefixes([&names.buffer]);
                changer.remove_prefixes([&names.buffer]);
                n = if n < 2 * count as u64 { n + 1 } else { count as u64 };
            }
        });
        let _stop = StopOnDrop(&stop);
        let (mut names, payload) = (Names::new(), payload());
        group.bench_function("publish while prefixes change", |b| {
            b.iter_custom(|iterations| {
                timed_runs(iterations, &mut subscriptions, || {
                    let message = names.message(0..count as u64, &payload);
                    broker.publish_blocking(message).expect("the broker is open");
                })
            });
        });
    });
}

fn subscribe_all(broker: &Broker, count: usize, overflow: Overflow) -> Vec<Subscription> {
    let options = |i| SubscribeOptions::new(format!("subscriber {i}")).prefix("EVENT ").hwm(HWM).overflow(overflow);
    (0..count).map(|i| broker.subscribe(options(i))).collect()
}

/// A publish that everybody gets; one by one, and in batches of 64. The figure is for one message.
fn fan_out(c: &mut Criterion) {
    const BATCH: u64 = 64;
    let mut group = c.benchmark_group("fan-out");
    group.throughput(Throughput::Elements(1));
    for count in [0, 1, 4, 16, 64] {
        let broker = Broker::default();
        let mut subscriptions = subscribe_all(&broker, count, Overflow::DropNewest);
        let (mut names, payload) = (Names::new(), payload());
        group.bench_function(BenchmarkId::new("one by one", count), |b| {
            b.iter_custom(|iterations| {
                timed_runs(iterations, &mut subscriptions, || {
                    let message = names.message(0..1000, &payload);
                    broker.publish_blocking(message).expect("the broker is open");
                })
            });
        });
        let mut batch = VecDeque::with_capacity(BATCH as usize);
        group.bench_function(BenchmarkId::new("batches of 64", count), |b| {
            b.iter_custom(|iterations| {
                // Whole batches only: what is measured too much is taken out again by proportion.
                let messages = iterations.next_multiple_of(BATCH);
                let spent = timed(messages, BATCH, &mut subscriptions, || {
                    let start = Instant::now();
                    batch.extend((0..BATCH).map(|_| names.message(0..1000, &payload)));
                    let accepted = broker.publish_batch_now(&mut batch).expect("the broker is open");
                    assert_eq!(accepted, BATCH as usize);
                    start.elapsed()
                });
                spent.mul_f64(iterations as f64 / messages as f64)
            });
        });
    }
}

/// One publish that meets a full subscription.
fn policies(c: &mut Criterion) {
    let full = |overflow| {
        let broker = Broker::default();
        let subscriptions = subscribe_all(&broker, 1, overflow);
        let (mut names, payload) = (Names::new(), payload());
        for _ in 0..HWM {
            broker.publish_now(names.message(0..1000, &payload)).expect("the broker is open");
        }
        (broker, subscriptions, names, payload)
    };
    let mut group = c.benchmark_group("at its limit");

    for (name, overflow) in [("drop-newest", Overflow::DropNewest), ("drop-oldest", Overflow::DropOldest)] {
        let (broker, subscriptions, mut names, payload) = full(overflow);
        group.bench_function(name, |b| {
            b.iter(|| broker.publish_blocking(names.message(0..1000, &payload)).expect("the broker is open"));
        });
        let stats = subscriptions[0].handle().stats().expect("it lives");
        assert_eq!(stats.matched, stats.queued + stats.dropped, "every publish met a full queue");
    }

    let (broker, subscriptions, mut names, payload) = full(Overflow::Block);
    group.bench_function("block, refused", |b| {
        b.iter(|| broker.try_publish(names.message(0..1000, &payload)).expect_err("the queue is full"));
    });
    group.bench_function("block, by a publisher that can't wait", |b| {
        b.iter(|| broker.publish_now(names.message(0..1000, &payload)).expect("the broker is open"));
    });
    drop(subscriptions);

    // What spills is in the journal anyway, so the first of these is what the second is to be compared with.
    const BATCH: u64 = 64;
    for (name, count) in [("journal, in batches of 64", 0), ("spill, in batches of 64", 1)] {
        let dir = tempfile::tempdir().expect("a directory");
        let broker = Broker::default();
        let options = JournalOptions::new(dir.path().join("journal")).max_bytes(JOURNAL_BYTES);
        broker.attach_journal(Journal::open(options).expect("a journal")).expect("it has none");
        let subscriptions = subscribe_all(&broker, count, Overflow::Spill);
        let (mut names, payload) = (Names::new(), crate::payload());
        let mut batch = VecDeque::with_capacity(BATCH as usize);
        let mut publish = || {
            let start = Instant::now();
            batch.extend((0..BATCH).map(|_| names.message(0..1000, &payload)));
            broker.publish_batch_blocking(&mut batch).expect("the broker is open");
            start.elapsed()
        };
        for _ in 0..HWM as u64 / BATCH {
            publish();
        }
        group.bench_function(name, |b| {
            b.iter_custom(|iterations| {
                let messages = iterations.next_multiple_of(BATCH);
                timed(messages, BATCH, &mut [], &mut publish).mul_f64(iterations as f64 / messages as f64)
            });
        });
        for subscription in &subscriptions {
            let stats = subscription.handle().stats().expect("it lives");
            assert_eq!((stats.dropped, stats.delivered), (0, 0), "what doesn't fit in is read from the journal later");
            assert!(stats.queued >= HWM as u64, "it was full");
        }
    }

    // A subscription can be disconnected only once, so each run makes some of them, full, and one publish ends them all.
    const AT_ONCE: usize = 64;
    group.throughput(Throughput::Elements(AT_ONCE as u64));
    group.bench_function(BenchmarkId::new("disconnect", AT_ONCE), |b| {
        let broker = Broker::default();
        let (mut names, payload) = (Names::new(), crate::payload());
        let options = SubscribeOptions::new("short").prefix("EVENT ").hwm(1).overflow(Overflow::Disconnect);
        b.iter_custom(|iterations| {
            let mut spent = Duration::ZERO;
            for _ in 0..iterations {
                let subscriptions: Vec<_> = (0..AT_ONCE).map(|_| broker.subscribe(options.clone())).collect();
                broker.publish_now(names.message(0..1000, &payload)).expect("the broker is open");
                let start = Instant::now();
                broker.publish_now(names.message(0..1000, &payload)).expect("the broker is open");
                spent += start.elapsed();
                assert!(subscriptions.iter().all(|s| s.end().is_some()), "all are disconnected");
            }
            spent
        });
    });
}

fn config() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
}

criterion_group! {
    name = benches;
    config = config();
    targets = message, matching, changing, fan_out, policies
}
criterion_main!(benches);
