//! What a plain fan-out doesn't show: subscriptions that don't match, many prefixes, one that has stalled, and how figures change with
//! what is varied.
//!
//! Where a scene has no peer, hookbus without the burden takes its place: the row "alone". The ratio to it is what the burden costs.

use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use bytes::Bytes;
use hookbus_broker::{BatchLimit, Broker, Delivery, Message, Overflow, SubscribeOptions, Subscription};

use super::hookbus::{consume, one_by_one};
use super::{Contender, Failure, HWM, KEY, PUBLISHED, Round, Workload, on_threads};
use crate::report::{Aim, Better, Measure, Point, Report, Side, Who};

/// What a publish costs where nobody has to be woken.
pub const COST: Measure = Measure { name: "a publish, and taking what it brought", unit: "ns", better: Better::Lower };

const OURS: Who = Who { name: "hookbus", side: Side::Ours, class: None };
const ALONE: Who = Who { name: "hookbus, alone", side: Side::Peer, class: None };
#[cfg(feature = "libzmq")]
const LIBZMQ: Who = Who { name: "libzmq inproc, XPUB_NODROP", side: Side::Peer, class: None };

fn options(name: impl AsRef<str>) -> SubscribeOptions {
    SubscribeOptions::new(name.as_ref()).hwm(HWM)
}

/// Publishes to these subscriptions, of which `idle` are never read.
fn run(
    workload: &Workload,
    broker: &Broker,
    subscriptions: Vec<Subscription>,
    idle: Vec<Subscription>,
) -> Result<Round, Failure> {
    let round = on_threads(workload, subscriptions, consume, |publishing| {
        let published = one_by_one(broker, publishing);
        broker.close();
        published
    });
    drop(idle);
    round
}

/// Two subscriptions that match, and so many that don't.
fn beside_others(workload: &Workload, others: usize) -> Result<Round, Failure> {
    let broker = Broker::default();
    let matching = ["EVENT STATE ", "EVENT STATE VM/"];
    let subscriptions =
        matching.map(|p| broker.subscribe(options("matching").prefix(p).overflow(Overflow::Block))).into();
    let other = |n| broker.subscribe(options("other").prefix(format!("EVENT VM {n}/")).overflow(Overflow::Block));
    run(workload, &broker, subscriptions, (0..others).map(other).collect())
}

/// Fifteen subscriptions that read, and some that don't.
fn beside_stalled(workload: &Workload, stalled: usize) -> Result<Round, Failure> {
    let broker = Broker::default();
    let subscribe = |overflow| broker.subscribe(options("one").prefix("EVENT STATE ").overflow(overflow));
    let subscriptions = (0..15).map(|_| subscribe(Overflow::Block)).collect();
    run(workload, &broker, subscriptions, (0..stalled).map(|_| subscribe(Overflow::DropNewest)).collect())
}

/// Filters, as many as there are virtual machines; number 1234 is of the key.
pub(super) fn filter(n: usize) -> Vec<u8> {
    format!("EVENT STATE VM/ACTIVE/RUNNING/{n} ").into_bytes()
}

/// Four subscriptions that share so many prefixes; one of each matches.
fn among_prefixes(workload: &Workload, prefixes: usize) -> Result<Round, Failure> {
    let broker = Broker::default();
    let subscribe = |i: usize| {
        let mut options = options("filters").overflow(Overflow::Block);
        options.prefixes = filters(i, prefixes / 4).into_iter().map(Into::into).collect();
        broker.subscribe(options)
    };
    run(workload, &broker, (0..4).map(subscribe).collect(), Vec::new())
}

/// The filters of one of four subscribers: one that matches, and others, which nobody else has.
pub(super) fn filters(subscriber: usize, count: usize) -> Vec<Vec<u8>> {
    let others = (1..count).map(|n| filter(10_000 + subscriber * count + n));
    std::iter::once(KEY.to_vec()).chain(others).collect()
}

/// The mean of a publish that matches one of so many prefixes, at random, in nanoseconds. One thread does everything.
fn match_cost(prefixes: usize, messages: usize) -> f64 {
    let broker = Broker::default();
    let mut options = options("many");
    options.prefixes = (0..prefixes).map(|n| filter(n).into()).collect();
    let mut subscription = broker.subscribe(options);
    let payload = Bytes::from_static(&[b'x'; 64]);
    let mut random = fastrand::Rng::with_seed(7);
    let mut spent = std::time::Duration::ZERO;
    for _ in 0..messages.div_ceil(512) {
        let batch: Vec<_> = (0..512).map(|_| Message::new(filter(random.usize(..prefixes)), payload.clone())).collect();
        let started = Instant::now();
        for message in batch {
            let _ = broker.publish_now(message);
        }
        while subscription.try_recv_batch(BatchLimit::default()).is_ok() {}
        spent += started.elapsed();
    }
    spent.as_secs_f64() * 1e9 / (messages.div_ceil(512) * 512) as f64
}

/// The scenes, in turn, so many rounds.
///
/// # Errors
/// When anybody lost, repeated or reordered a message.
pub fn compare(
    report: &mut Report,
    workload: &Workload,
    rounds: usize,
    prefixes: usize,
    mut progress: impl FnMut(&str),
) -> Result<(), Failure> {
    let few = "2 of 1,000 subscriptions match";
    let stalled = "15 subscribers beside one that has stalled";
    let many = "4 subscribers, one of 100,000 prefixes matches each";
    let largest = "one of 1,000,000 prefixes matches";
    for round in 0..rounds {
        progress(&format!("scenes, round {} of {rounds}", round + 1));
        let mut record = |case, who, round: Round| report.record(PUBLISHED, case, who, round.rate() / 1e6);
        record(few, OURS, beside_others(workload, 998)?);
        record(few, ALONE, beside_others(workload, 0)?);
        record(stalled, OURS, beside_stalled(workload, 1)?);
        record(stalled, ALONE, beside_stalled(workload, 0)?);
        record(many, OURS, among_prefixes(workload, prefixes / 10)?);
        #[cfg(feature = "libzmq")]
        record(many, LIBZMQ, super::libzmq::among_prefixes(workload, prefixes / 10)?);
        report.record(COST, largest, OURS, match_cost(prefixes, 50_000));
    }
    report.aim(PUBLISHED, few, OURS, Aim::Ratio(0.95));
    report.aim(PUBLISHED, stalled, OURS, Aim::Ratio(0.85));
    #[cfg(feature = "libzmq")]
    report.aim(PUBLISHED, many, OURS, Aim::Ratio(6.0));
    report.aim(COST, largest, OURS, Aim::Value(500.0));
    Ok(())
}

/// What is varied in [`scale`].
#[derive(Clone, Debug)]
pub struct Scales {
    /// Numbers of subscribers.
    pub subscribers: Vec<usize>,
    /// Sizes of payloads, in bytes, with four subscribers.
    pub payloads: Vec<usize>,
    /// Numbers of prefixes of one subscription.
    pub prefixes: Vec<usize>,
    /// Numbers of publishers, with four subscribers.
    pub publishers: Vec<usize>,
}

/// Curves: what each of these does to the figures.
///
/// # Errors
/// When anybody lost, repeated or reordered a message.
pub fn scale(
    report: &mut Report,
    contenders: &[Contender],
    workload: &Workload,
    scales: &Scales,
    rounds: usize,
    mut progress: impl FnMut(&str),
) -> Result<(), Failure> {
    let point = |axis, at: usize| Point { axis, at: at as f64 };
    for round in 0..rounds {
        for at in 0..contenders.len() {
            let Contender { who, run } = contenders[(at + round) % contenders.len()];
            progress(&format!("scales, round {} of {rounds}, {}", round + 1, who.name));
            // Each socket of libzmq takes file descriptors, of which a process usually has 1,024.
            let most = if who.name.starts_with("libzmq") { 256 } else { usize::MAX };
            for &n in scales.subscribers.iter().filter(|n| **n <= most) {
                let rate = run(workload, n).map_err(|failure| failure.of(who.name, n))?.rate() / 1e6;
                report.record_at(PUBLISHED, point("subscribers", n), who, rate);
            }
            for &bytes in &scales.payloads {
                let rate =
                    run(&Workload::new(bytes, workload.round), 4).map_err(|failure| failure.of(who.name, 4))?.rate();
                report.record_at(PUBLISHED, point("bytes of payload, 4 subscribers", bytes), who, rate / 1e6);
            }
        }
        for &count in &scales.prefixes {
            progress(&format!("scales, round {} of {rounds}, {count} prefixes", round + 1));
            report.record_at(COST, point("prefixes", count), OURS, match_cost(count, 20_000));
        }
        for &count in &scales.publishers {
            progress(&format!("scales, round {} of {rounds}, {count} publishers", round + 1));
            let at = point("publishers, 4 subscribers", count);
            report.record_at(PUBLISHED, at, OURS, publishers(workload, count)? / 1e6);
        }
    }
    Ok(())
}

/// Four subscribers and so many publishers; messages per second. The order of each publisher's messages is checked.
fn publishers(workload: &Workload, count: usize) -> Result<f64, Failure> {
    let broker = Broker::default();
    let subscribe = |_| broker.subscribe(options("one").prefix("EVENT STATE ").overflow(Overflow::Block));
    let subscriptions: Vec<_> = (0..4).map(subscribe).collect();
    let start = Barrier::new(count + 1);
    let payload = |publisher: usize, n: u64| {
        let mut payload = [0; 64];
        payload[..8].copy_from_slice(&(publisher as u64).to_le_bytes());
        payload[8..16].copy_from_slice(&n.to_le_bytes());
        Bytes::copy_from_slice(&payload)
    };
    thread::scope(|scope| {
        let publishing: Vec<_> = (0..count)
            .map(|publisher| {
                let (broker, start) = (&broker, &start);
                scope.spawn(move || {
                    start.wait();
                    let (started, mut n) = (Instant::now(), 0);
                    while n % 64 != 0 || started.elapsed() < workload.round {
                        broker
                            .publish_blocking(Message::new(KEY, payload(publisher, n)))
                            .map_err(Failure::contender)?;
                        n += 1;
                    }
                    Ok(n)
                })
            })
            .collect();
        let reading: Vec<_> = subscriptions
            .into_iter()
            .map(|mut subscription| {
                scope.spawn(move || {
                    let mut next = vec![0_u64; count];
                    while let Some(batch) = subscription.recv_batch_blocking(BatchLimit::default()) {
                        for delivery in batch.iter() {
                            let Delivery::Message(message) = delivery else { return None };
                            let number =
                                |at: usize| message.payload().get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
                            let expected = next.get_mut(usize::try_from(number(0)?).ok()?)?;
                            if number(8)? != *expected {
                                return None;
                            }
                            *expected += 1;
                        }
                    }
                    Some(next.iter().sum::<u64>())
                })
            })
            .collect();
        start.wait();
        let started = Instant::now();
        let mut published = 0;
        for thread in publishing {
            published += thread.join().map_err(|_| Failure::contender("a publisher panicked"))??;
        }
        broker.close();
        for thread in reading {
            match thread.join().map_err(|_| Failure::contender("a subscriber panicked"))? {
                Some(taken) if taken == published => {}
                taken => return Err(Failure::Lost { published, taken: taken.unwrap_or_default() }),
            }
        }
        Ok(published as f64 / started.elapsed().as_secs_f64())
    })
}

/// Who is shown in [`scale`]: one of ours for each kind of publisher, and the best peers.
pub fn scaled(mut contenders: Vec<Contender>) -> Vec<Contender> {
    const SHOWN: [&str; 6] = [
        "hookbus, threads",
        "hookbus, threads, batches of 64",
        "hookbus, tasks",
        "crossbeam, threads, Arc",
        "tokio broadcast, tasks",
        "libzmq inproc, XPUB_NODROP",
    ];
    contenders.retain(|contender| SHOWN.contains(&contender.who.name));
    contenders
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn all_scenes_and_scales() {
        let workload = Workload::new(64, Duration::from_millis(3));
        let mut report = Report::new();
        compare(&mut report, &workload, 1, 1000, |_| {}).expect("nothing is lost");
        let scales = Scales { subscribers: vec![2], payloads: vec![64], prefixes: vec![10], publishers: vec![2] };
        let shown = scaled(super::super::contenders());
        scale(&mut report, &shown, &workload, &scales, 1, |_| {}).expect("nothing is lost");
    }
}
