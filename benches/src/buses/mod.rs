//! A bridge with its guarantee against the library that it uses, doing the same kind of publish to the same server.
//!
//! Ours is the whole way of an event: it is published to a broker with a journal (durability `os`), a durable subscription reads it, the
//! delivery ledger hands it to the bus, and the round ends when the bus has confirmed the last one and the cursor is behind it. The peer
//! is the plainest program that a user of the library would write for at-least-once: it publishes in a loop, keeps as many
//! confirmations outstanding as ours may have, and waits for the oldest one where there are more. It has no journal and no names to
//! make, and it loses everything when it ends; so a ratio near one says that the guarantee costs little.
//!
//! Both publishers keep a bounded number ahead: the peer its window, ours what a bridge holds in memory. A bridge that has a backlog to catch up
//! with reads it from the journal, and is somewhat slower.
//!
//! Both send the same number of events with the same payload, properties and name, unique ids where the bus has them, over one connection
//! that was made before. The servers are real, started here, and forget a round's events before the next.

mod amqp;
mod mqtt;
mod nats;
mod ours;

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;

use crate::report::{Better, Measure, Report, Side, Who};

const CONFIRMED: Measure = Measure { name: "confirmed", unit: "events/s", better: Better::Higher };

/// What a bridge says of the payload; the peers send it as well.
const CONTENT_TYPE: &str = "text/plain";

/// What went wrong in a round.
pub type Failure = Box<dyn Error + Send + Sync>;

/// What is published in a round.
#[derive(Clone, Debug)]
pub struct Workload {
    /// How many events.
    pub events: usize,
    /// The payload of each.
    pub payload: Bytes,
    /// How many may be unconfirmed.
    pub window: usize,
}

/// A bus with its server.
trait Contest {
    /// What a table is headed with.
    fn case(&self) -> String;

    /// The library that the peer is written with.
    fn library(&self) -> &'static str;

    /// A round of ours: how long it took.
    fn ours(&mut self, workload: &Workload) -> impl Future<Output = Result<Duration, Failure>>;

    /// A round of the library's.
    fn raw(&mut self, workload: &Workload) -> impl Future<Output = Result<Duration, Failure>>;
}

/// Runs `rounds` rounds for each bus of `only` (all of them, if it is empty), ours and the peer in turn.
///
/// # Errors
/// When a server can't be started, or anything was not confirmed.
pub async fn compare(
    report: &mut Report,
    workload: &Workload,
    only: &[String],
    rounds: usize,
    mut progress: impl FnMut(&str),
) -> Result<(), Failure> {
    let wanted = |name: &str| only.is_empty() || only.iter().any(|only| only == name);
    if wanted("nats") {
        contest(report, workload, rounds, &mut progress, nats::JetStream::start()).await?;
    }
    if wanted("mqtt") {
        contest(report, workload, rounds, &mut progress, mqtt::Mqtt::start()).await?;
    }
    if wanted("amqp") {
        contest(report, workload, rounds, &mut progress, amqp::Amqp::start()).await?;
    }
    Ok(())
}

async fn contest(
    report: &mut Report,
    workload: &Workload,
    rounds: usize,
    progress: &mut impl FnMut(&str),
    mut bus: impl Contest,
) -> Result<(), Failure> {
    let case = bus.case();
    let rate = |time: Duration| workload.events as f64 / time.as_secs_f64();
    // One round of each that doesn't count: files are made, heaps grow.
    for round in 0..=rounds {
        progress(&format!("{case}, round {round} of {rounds}"));
        // Who is first changes, so that what a round leaves behind meets both.
        let (ours, raw) = if round % 2 == 0 {
            let ours = bus.ours(workload).await?;
            (ours, bus.raw(workload).await?)
        } else {
            let raw = bus.raw(workload).await?;
            (bus.ours(workload).await?, raw)
        };
        if round > 0 {
            report.record(
                CONFIRMED,
                &case,
                Who { name: "hookbus, the whole bridge", side: Side::Ours, class: None },
                rate(ours),
            );
            report.record(CONFIRMED, &case, Who { name: bus.library(), side: Side::Peer, class: None }, rate(raw));
        }
    }
    Ok(())
}
