//! The whole way of an event: broker, journal, durable subscription, ledger, bus.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hookbus_bridges::cloudevents::{Encoder, Format, Sources};
use hookbus_bridges::delivery::{Bridge, BridgeOptions, BridgeState, Bus, DeadLetterLimits, DeadLetters, LetterWriter};
use hookbus_broker::{Broker, Journal, JournalOptions, Message, Start, SubscribeOptions};

use super::{Failure, Workload};

/// How many events a publisher hands over at once, as oned's driver does with a block of lines.
const BATCH: usize = 64;

/// How many events the publisher is ahead of the bus at most: fewer than the high-water mark of a bridge, so that the bridge keeps up, as it
/// does from day to day. What is behind that is read from the journal, which costs each event a read and a checksum more.
const AHEAD: u64 = 8_000;

/// How long a round may take before it counts as failed.
const PATIENCE: Duration = Duration::from_secs(300);

/// Runs a round over this bus.
pub(super) async fn run<B: Bus>(bus: B, workload: &Workload) -> Result<Duration, Failure> {
    let dir = tempfile::tempdir()?;
    let broker = Broker::default();
    broker.attach_journal(Journal::open(JournalOptions::new(dir.path().join("journal")))?)?;
    let feed =
        broker.subscribe_durable(SubscribeOptions::new("bench").prefix("").hwm(10_000), "bench", Start::Latest)?;
    let writer =
        LetterWriter::new::<B>(Encoder::new(Sources { host: "bench".into(), zone: None }), Format::Raw, "hookbus");
    let options = BridgeOptions::new("bench", "here").window(workload.window, 64 << 20);
    let dead = Arc::new(DeadLetters::in_memory(DeadLetterLimits::default()));
    let bridge = Bridge::spawn("bench", bus, feed, writer, options, dead);
    let begun = Instant::now();
    while bridge.status().state != BridgeState::Ready {
        if begun.elapsed() > PATIENCE {
            return Err(format!("no connection: {:?}", bridge.status()).into());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    let begun = Instant::now();
    let mut left = workload.events;
    let mut batch = VecDeque::with_capacity(BATCH);
    while left > 0 {
        while bridge.status().lag_events > AHEAD {
            if begun.elapsed() > PATIENCE {
                return Err(format!("the bus takes no more: {:?}", bridge.status()).into());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let size = left.min(BATCH);
        batch.extend((0..size).map(|_| Message::new("bench load", workload.payload.clone())));
        while !batch.is_empty() {
            broker.publish_batch(&mut batch).await?;
        }
        left -= size;
    }
    let expected = workload.events as u64;
    while bridge.status().counts.confirmed < expected {
        if begun.elapsed() > PATIENCE {
            return Err(format!("not all are confirmed: {:?}", bridge.status()).into());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let time = begun.elapsed();
    let counts = bridge.status().counts;
    if (counts.dead, counts.retried, counts.dropped) != (0, 0, 0) {
        return Err(format!("something was not delivered at once: {counts:?}").into());
    }
    bridge.shutdown(Duration::from_secs(10)).await;
    Ok(time)
}
