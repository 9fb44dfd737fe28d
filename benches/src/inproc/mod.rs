//! Fan-out inside one process: one publisher, N subscribers, every subscriber takes every message, nothing is lost.
//!
//! # Fair play
//!
//! - One message is a key of 35 bytes and a payload of 2 KiB, made anew for every publish from a pool of payloads that
//!   are allocated beforehand. Peers get the form that is cheapest for them: the key inline in the message (no
//!   allocation), the payload as [`Bytes`] (a reference count); crossbeam also with both behind an `Arc`.
//!   libzmq copies, as it must: its C interface owns buffers.
//! - All queues hold 1024 messages for each subscriber, and a full one makes the publisher wait.
//! - Each subscriber looks at the key and at a stamp in the payload of every message (`Checker`), the same code for all.
//!   At the end, it must have got exactly what was published. A contender that fails this fails the run.
//! - Peers are given whole messages to deliver to all; they don't match keys against prefixes. hookbus does, so it works a
//!   little more.
//! - A round is timed from the first publish until the last subscriber has taken the last message.
//!
//! The same at fixed rates gives latencies: each counts from the moment for which its publish was *planned*, so that a publisher that is held
//! up doesn't hide what it caused. The publisher sleeps or spins until then. (As a task it would keep a worker from those that it has woken, so that is compared
//! between threads only.)
//!
//! hookbus takes what is queued as a batch and reads it by reference; its peers hand out messages one at a time, as their
//! interfaces have it.

mod channels;
mod hookbus;
#[cfg(feature = "libzmq")]
mod libzmq;
pub mod scenes;
mod tokio_broadcast;

use std::sync::{Arc, Barrier, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use thiserror::Error;

use crate::machine;
use crate::report::{Aim, Better, Measure, Report, Side, Who};

/// The key of every message.
pub const KEY: [u8; 35] = *b"EVENT STATE VM/ACTIVE/RUNNING/1234 ";

/// What every queue holds at most for one subscriber.
pub const HWM: usize = 1024;

/// Payloads are taken from a pool in turn. It is larger than what a subscriber can have queued and in hand, so that a
/// message in the wrong place never carries the right stamp.
const POOL: usize = 4096;
const _: () = assert!(POOL.is_power_of_two() && POOL > 3 * HWM);

/// What a table of this comparison shows.
pub const PUBLISHED: Measure =
    Measure { name: "published, nothing lost", unit: "million messages/s", better: Better::Higher };

/// What a table at a fixed rate shows: the times by which so many of all messages had come.
pub const LATENCIES: [(Measure, f64); 3] = [
    (Measure { name: "latency, p50", unit: "us", better: Better::Lower }, 0.5),
    (Measure { name: "latency, p99", unit: "us", better: Better::Lower }, 0.99),
    (Measure { name: "latency, p99.9", unit: "us", better: Better::Lower }, 0.999),
];

/// Somebody who takes part.
#[derive(Clone, Copy, Debug)]
pub struct Contender {
    /// Name, side, class.
    pub who: Who,
    run: fn(&Workload, usize) -> Result<Round, Failure>,
}

impl Contender {
    const fn ours(name: &'static str, class: Class, run: fn(&Workload, usize) -> Result<Round, Failure>) -> Self {
        Contender { who: Who { name, side: Side::Ours, class: class.name() }, run }
    }

    const fn peer(name: &'static str, class: Class, run: fn(&Workload, usize) -> Result<Round, Failure>) -> Self {
        Contender { who: Who { name, side: Side::Peer, class: class.name() }, run }
    }
}

/// What the publisher and the subscribers are.
#[derive(Clone, Copy)]
enum Class {
    Threads,
    Batches,
    Tasks,
}

impl Class {
    const fn name(self) -> Option<&'static str> {
        match self {
            Class::Threads => Some("threads"),
            Class::Batches => None,
            Class::Tasks => Some("tasks"),
        }
    }
}

/// Everybody who takes part, ours first.
pub fn contenders() -> Vec<Contender> {
    let mut all = vec![
        Contender::ours("hookbus, threads", Class::Threads, hookbus::threads),
        Contender::ours("hookbus, threads, batches of 64", Class::Batches, hookbus::batches),
        Contender::ours("hookbus, threads, all prefixes differ", Class::Threads, hookbus::distinct),
        Contender::ours("hookbus, tasks", Class::Tasks, hookbus::tasks),
        Contender::peer("crossbeam, threads", Class::Threads, channels::threads::<channels::Crossbeam, PeerMessage>),
        Contender::peer(
            "crossbeam, threads, Arc",
            Class::Threads,
            channels::threads::<channels::Crossbeam, Arc<PeerMessage>>,
        ),
        Contender::peer("kanal, threads", Class::Threads, channels::threads::<channels::Kanal, PeerMessage>),
        Contender::peer("kanal, tasks", Class::Tasks, channels::tasks::<channels::Kanal>),
        Contender::peer("flume, threads", Class::Threads, channels::threads::<channels::Flume, PeerMessage>),
        Contender::peer("flume, tasks", Class::Tasks, channels::tasks::<channels::Flume>),
        Contender::peer("tokio mpsc, tasks", Class::Tasks, channels::tasks::<channels::TokioMpsc>),
        Contender::peer("tokio broadcast, threads", Class::Threads, tokio_broadcast::threads),
        Contender::peer("tokio broadcast, tasks", Class::Tasks, tokio_broadcast::tasks),
        Contender::peer("async-broadcast, tasks", Class::Tasks, channels::async_broadcast_tasks),
    ];
    #[cfg(feature = "libzmq")]
    all.push(Contender::peer("libzmq inproc, XPUB_NODROP", Class::Threads, libzmq::threads));
    all.shrink_to_fit();
    all
}

/// Runs `rounds` rounds for each number of subscribers, all contenders in turn within a round.
///
/// # Errors
/// When a contender lost, repeated or reordered a message.
pub fn compare(
    report: &mut Report,
    contenders: &[Contender],
    workload: &Workload,
    subscribers: &[usize],
    rounds: usize,
    mut progress: impl FnMut(&str),
) -> Result<(), Failure> {
    for &n in subscribers {
        let case = if n == 1 { "1 subscriber".into() } else { format!("{n} subscribers") };
        for round in 0..rounds {
            // Each round begins with somebody else: whoever follows an expensive one starts with cold caches.
            for at in 0..contenders.len() {
                let contender = &contenders[(at + round) % contenders.len()];
                progress(&format!("{case}, round {} of {rounds}, {}", round + 1, contender.who.name));
                let outcome = (contender.run)(workload, n).map_err(|failure| failure.of(contender.who.name, n))?;
                report.record(PUBLISHED, &case, contender.who, outcome.rate() / 1e6);
            }
        }
        for contender in contenders {
            if let Some(aim) = aim(contender.who.name, n) {
                report.aim(PUBLISHED, &case, contender.who, aim);
            }
        }
    }
    Ok(())
}

/// What is to be reached with so many subscribers.
fn aim(name: &str, n: usize) -> Option<Aim> {
    let aims = match name {
        "hookbus, threads" => [(1, 1.2), (4, 2.0), (16, 4.0), (64, 8.0)].map(|(n, aim)| (n, Aim::RatioInClass(aim))),
        "hookbus, threads, batches of 64" => {
            [(1, 1.2), (4, 3.0), (16, 6.0), (64, 10.0)].map(|(n, aim)| (n, Aim::Ratio(aim)))
        }
        "hookbus, tasks" => [(1, 1.2), (4, 1.6), (16, 3.0), (64, 7.0)].map(|(n, aim)| (n, Aim::RatioInClass(aim))),
        _ => return None,
    };
    aims.into_iter().find(|(of, _)| *of == n).map(|(_, aim)| aim)
}

/// Runs rounds at fixed rates, in messages per second, as [`compare`] does flat out.
///
/// # Errors
/// When a contender lost, repeated or reordered a message.
pub fn compare_latencies(
    report: &mut Report,
    contenders: &[Contender],
    workload: &Workload,
    rates: &[u32],
    subscribers: &[usize],
    rounds: usize,
    mut progress: impl FnMut(&str),
) -> Result<(), Failure> {
    for (&rate, &n) in rates.iter().flat_map(|rate| subscribers.iter().map(move |n| (rate, n))) {
        let case = format!("{rate} messages/s, {n} subscribers");
        for round in 0..rounds {
            for at in 0..contenders.len() {
                let contender = &contenders[(at + round) % contenders.len()];
                progress(&format!("{case}, round {} of {rounds}, {}", round + 1, contender.who.name));
                let outcome = (contender.run)(&workload.clone().paced(rate), n)
                    .map_err(|failure| failure.of(contender.who.name, n))?;
                for (measure, part) in LATENCIES {
                    report.record(measure, &case, contender.who, outcome.latency_us(part));
                }
            }
        }
    }
    Ok(())
}

/// What is published, and for how long.
#[derive(Clone, Debug)]
pub struct Workload {
    pool: Arc<[Bytes]>,
    round: Duration,
    pace: Option<Pace>,
}

/// When each message is planned to be published.
#[derive(Clone, Debug)]
struct Pace {
    interval: Duration,
    started: Arc<OnceLock<Instant>>,
}

impl Pace {
    /// The moment for which a message is planned; `None` before the first was published.
    fn planned(&self, message: u64) -> Option<Instant> {
        let since = self.interval.as_nanos() as u64 * message;
        self.started.get().map(|started| *started + Duration::from_nanos(since))
    }

    /// Waits until a message may be published.
    fn wait_for(&self, message: u64) {
        const TIMER: Duration = Duration::from_micros(200);
        self.started.get_or_init(Instant::now);
        let Some(planned) = self.planned(message) else { return };
        loop {
            match planned.checked_duration_since(Instant::now()) {
                None => return,
                Some(left) if left > TIMER => thread::sleep(left - TIMER),
                Some(_) => std::hint::spin_loop(),
            }
        }
    }
}

impl Workload {
    /// Payloads of so many bytes (at least 8, for the stamp), published for so long in each round.
    pub fn new(payload_bytes: usize, round: Duration) -> Self {
        let payload = |stamp: usize| {
            let mut payload = vec![b'x'; payload_bytes.max(size_of::<u64>())];
            payload[..size_of::<u64>()].copy_from_slice(&(stamp as u64).to_le_bytes());
            Bytes::from(payload)
        };
        Workload { pool: (0..POOL).map(payload).collect(), round, pace: None }
    }

    /// The same at so many messages per second; a round of its own.
    #[must_use]
    pub fn paced(mut self, rate: u32) -> Self {
        self.pace = Some(Pace { interval: Duration::from_secs(1) / rate.max(1), started: Arc::default() });
        self
    }

    fn checker(&self) -> Checker {
        Checker { pace: self.pace.clone(), ..Checker::default() }
    }

    /// The publisher's side of a round; its clock starts with the first message.
    fn publishing(&self) -> Publishing {
        Publishing { workload: self.clone(), started: None, count: 0 }
    }
}

/// Hands out payloads until the time is over.
struct Publishing {
    workload: Workload,
    started: Option<Instant>,
    count: u64,
}

impl Publishing {
    /// The next payload; `None` when the round is over. The clock is read at every 64th only, since that costs as much
    /// as a publish.
    fn next(&mut self) -> Option<Bytes> {
        if let Some(pace) = &self.workload.pace {
            pace.wait_for(self.count);
        }
        if self.count.is_multiple_of(64) {
            let started = *self.started.get_or_insert_with(Instant::now);
            if started.elapsed() >= self.workload.round && self.count > 0 {
                return None;
            }
        }
        let payload = self.workload.pool[self.count as usize % POOL].clone();
        self.count += 1;
        Some(payload)
    }
}

/// A subscriber's proof that it got everything in order. It costs the same for all contenders.
#[derive(Debug, Default)]
struct Checker {
    taken: u64,
    wrong: Option<Failure>,
    pace: Option<Pace>,
    latencies: Vec<Duration>,
}

impl Checker {
    fn take(&mut self, key: &[u8], payload: &[u8]) {
        let stamp = payload.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        if stamp != Some(self.taken % POOL as u64) || key.len() != KEY.len() || key[0] != KEY[0] {
            self.wrong.get_or_insert(Failure::Disorder { place: self.taken, stamp });
        }
        if let Some(planned) = self.pace.as_ref().and_then(|pace| pace.planned(self.taken)) {
            self.latencies.push(planned.elapsed());
        }
        self.taken += 1;
    }

    fn gap(&mut self, count: u64) {
        self.wrong.get_or_insert(Failure::Gap { place: self.taken, count });
    }

    /// The latencies, where everything came.
    fn verdict(self, published: u64) -> Result<Vec<Duration>, Failure> {
        match self.wrong {
            Some(failure) => Err(failure),
            None if self.taken != published => Err(Failure::Lost { published, taken: self.taken }),
            None => Ok(self.latencies),
        }
    }
}

/// What one round brought.
#[derive(Clone, Debug)]
struct Round {
    published: u64,
    elapsed: Duration,
    /// Of all messages at all subscribers, ascending; none unless there is a pace.
    latencies: Vec<Duration>,
}

impl Round {
    fn rate(&self) -> f64 {
        self.published as f64 / self.elapsed.as_secs_f64()
    }

    /// The time by which this part of all messages had come, in microseconds.
    fn latency_us(&self, part: f64) -> f64 {
        let at = (self.latencies.len() as f64 * part) as usize; // below the length, since part is below 1
        self.latencies.get(at).map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e6)
    }

    /// Judges a round by what the publisher and all subscribers have to say.
    fn judge(publishing: &Publishing, subscribers: Vec<(Checker, Instant)>) -> Result<Self, Failure> {
        let started = publishing.started.ok_or(Failure::Contender { what: "published nothing".into() })?;
        let mut finished = started;
        let mut latencies = Vec::new();
        for (checker, at) in subscribers {
            latencies.append(&mut checker.verdict(publishing.count)?);
            finished = finished.max(at);
        }
        latencies.sort_unstable();
        Ok(Round { published: publishing.count, elapsed: finished - started, latencies })
    }
}

/// Why a comparison is void.
#[derive(Debug, Error)]
pub enum Failure {
    /// Messages are missing or were repeated.
    #[error("{published} messages were published, and a subscriber got {taken}")]
    Lost {
        /// How many there were.
        published: u64,
        /// How many a subscriber got.
        taken: u64,
    },
    /// A message came at the wrong place, or was not what had been published.
    #[error("message {place} of a subscriber has the stamp {stamp:?}")]
    Disorder {
        /// Which message of the subscriber, from 0.
        place: u64,
        /// What its payload begins with.
        stamp: Option<u64>,
    },
    /// A subscription that should block dropped.
    #[error("a subscriber was told of {count} dropped messages at place {place}")]
    Gap {
        /// After how many messages.
        place: u64,
        /// How many were dropped.
        count: u64,
    },
    /// Something else went wrong.
    #[error("{what}")]
    Contender {
        /// What it was.
        what: String,
    },
    /// Whose failure it was.
    #[error("{who} with {subscribers} subscribers")]
    Of {
        /// The contender.
        who: &'static str,
        /// How many subscribers there were.
        subscribers: usize,
        /// What happened.
        source: Box<Failure>,
    },
}

impl Failure {
    fn of(self, who: &'static str, subscribers: usize) -> Self {
        Failure::Of { who, subscribers, source: Box::new(self) }
    }

    fn contender(what: impl std::fmt::Display) -> Self {
        Failure::Contender { what: what.to_string() }
    }
}

/// A round of threads: all subscribers stand ready before the clock starts.
fn on_threads<S: Send>(
    workload: &Workload,
    subscribers: Vec<S>,
    consume: impl Fn(S, &mut Checker) + Sync,
    publish: impl FnOnce(&mut Publishing) -> Result<(), Failure>,
) -> Result<Round, Failure> {
    let ready = Barrier::new(subscribers.len() + 1);
    let mut publishing = workload.publishing();
    thread::scope(|scope| {
        let (ready, consume) = (&ready, &consume);
        let run = |subscriber| {
            scope.spawn(move || {
                let mut checker = workload.checker();
                ready.wait();
                consume(subscriber, &mut checker);
                (checker, Instant::now())
            })
        };
        let threads: Vec<_> = subscribers.into_iter().map(run).collect();
        ready.wait();
        let published = publish(&mut publishing);
        let mut outcomes = Vec::with_capacity(threads.len());
        for thread in threads {
            outcomes.push(thread.join().map_err(|_| Failure::contender("a subscriber panicked"))?);
        }
        published?;
        Round::judge(&publishing, outcomes)
    })
}

/// A round of tasks: publisher and subscribers share a runtime with a worker for each core.
fn on_tasks<C, P>(
    workload: &Workload,
    subscribers: Vec<C>,
    publish: impl FnOnce(Publishing) -> P,
) -> Result<Round, Failure>
where
    C: Future<Output = Checker> + Send + 'static,
    P: Future<Output = Result<Publishing, Failure>> + Send + 'static,
{
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(machine::cores())
        .build()
        .map_err(Failure::contender)?;
    let run = |subscriber: C| runtime.spawn(async move { (subscriber.await, Instant::now()) });
    let tasks: Vec<_> = subscribers.into_iter().map(run).collect();
    let publisher = runtime.spawn(publish(workload.publishing()));
    runtime.block_on(async {
        let published = publisher.await;
        let mut outcomes = Vec::with_capacity(tasks.len());
        for task in tasks {
            outcomes.push(task.await.map_err(Failure::contender)?);
        }
        Round::judge(&published.map_err(Failure::contender)??, outcomes)
    })
}

/// A message as a peer carries it.
#[derive(Clone, Debug)]
struct PeerMessage {
    key: [u8; KEY.len()],
    payload: Bytes,
}

impl AsRef<PeerMessage> for PeerMessage {
    fn as_ref(&self) -> &PeerMessage {
        self
    }
}

impl PeerMessage {
    fn new(payload: Bytes) -> Self {
        PeerMessage { key: KEY, payload }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_contender_delivers_everything_in_order() {
        let workload = Workload::new(64, Duration::from_millis(5));
        for contender in contenders() {
            for n in [1, 3] {
                let round = (contender.run)(&workload, n).map_err(|failure| failure.of(contender.who.name, n));
                assert!(round.expect("nothing is lost").published > 0, "{}", contender.who.name);
            }
        }
    }

    #[test]
    fn latencies_count_from_the_plan() {
        let workload = Workload::new(64, Duration::from_millis(20));
        for contender in contenders() {
            let round = (contender.run)(&workload.clone().paced(2000), 2).expect("nothing is lost");
            assert!(round.latencies.len() as u64 == 2 * round.published, "{}", contender.who.name);
            assert!(round.latency_us(0.5) <= round.latency_us(0.99));
        }
    }

    #[test]
    fn a_lost_message_is_noticed() {
        let workload = Workload::new(64, Duration::ZERO);
        let mut checker = Checker::default();
        for payload in [&workload.pool[0], &workload.pool[2]] {
            checker.take(&KEY, payload);
        }
        assert!(matches!(checker.verdict(2), Err(Failure::Disorder { place: 1, stamp: Some(2) })));
    }

    #[test]
    fn a_message_missing_at_the_end_is_noticed() {
        let workload = Workload::new(64, Duration::ZERO);
        let mut checker = Checker::default();
        checker.take(&KEY, &workload.pool[0]);
        assert!(matches!(checker.verdict(2), Err(Failure::Lost { published: 2, taken: 1 })));
    }
}
