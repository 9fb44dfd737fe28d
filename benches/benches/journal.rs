//! What it costs to write events down: the journal, a plain sequential `write` of the same bytes, and (feature `journal-peers`)
//! fjall, by turns in one run.
//!
//! ```text
//! cargo bench -p hookbus-benches --features journal-peers --bench journal
//! ```
//!
//! Events have 2 KiB; they come in batches of 64 or one by one, from one publisher that waits until each is written. Durability is `os`:
//! nothing waits for the device. A plain write is measured twice: of what both journals write, a key and a payload for each event,
//! and of payloads alone. A batch of these has 128 KiB to the byte, for which the page cache needs a single folio on a file system with
//! large folios, so that this is the fastest that the system does at all. What was written is flushed to the device between rounds, so that no contender pays for the one
//! before it. Medians are printed, of the rates and of the ratios within a round; a single figure of a shared machine says little.
//!
//! What was appended is read back, too, as whoever comes back from a pause does.
//!
//! In the test pass everything runs once, with a few events.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::LazyLock;
use std::time::Instant;

use bytes::Bytes;
use hookbus_broker::{BatchLimit, Broker, Journal, JournalOptions, Message, Start, SubscribeOptions};

const EVENT_BYTES: usize = 2048;
const BATCH: usize = 64;

/// Payloads of which no two are alike, as many as there are in a burst.
fn payloads() -> Vec<Bytes> {
    let mut random = fastrand::Rng::with_seed(7);
    let payload = |_| (0..EVENT_BYTES).map(|_| random.alphanumeric() as u8).collect::<Vec<u8>>().into();
    (0..1024).map(payload).collect()
}

/// Keys, made beforehand as payloads are.
static KEYS: LazyLock<Vec<String>> =
    LazyLock::new(|| (0..1000).map(|n| format!("EVENT VM {n}/ACTIVE/RUNNING ")).collect());

fn key(n: usize) -> &'static str {
    &KEYS[n % KEYS.len()]
}

/// Writes so many events in batches of that size; returns how long it took, in seconds.
type Contender = fn(&Path, &[Bytes], usize, usize) -> f64;

fn plain(dir: &Path, payloads: &[Bytes], events: usize, batch: usize) -> f64 {
    let records: Vec<_> = payloads.iter().enumerate().map(|(n, p)| [key(n).as_bytes(), p].concat()).collect();
    write(dir, &records, events, batch)
}

fn payloads_alone(dir: &Path, payloads: &[Bytes], events: usize, batch: usize) -> f64 {
    write(dir, payloads, events, batch)
}

fn write(dir: &Path, records: &[impl AsRef<[u8]>], events: usize, batch: usize) -> f64 {
    let mut file = File::create(dir.join("plain")).expect("file");
    let concat = |batch: &[_]| batch.iter().flat_map(AsRef::as_ref).copied().collect();
    let batches: Vec<Vec<u8>> = records.chunks(batch).map(concat).collect();
    let start = Instant::now();
    for n in 0..events / batch {
        file.write_all(&batches[n % batches.len()]).expect("write");
    }
    start.elapsed().as_secs_f64()
}

fn journal(dir: &Path, payloads: &[Bytes], events: usize, batch: usize) -> f64 {
    append(dir, payloads, events, batch).1
}

/// What was appended just now, so that it comes from the page cache.
fn read_back(dir: &Path, payloads: &[Bytes], events: usize, batch: usize) -> f64 {
    let (broker, _) = append(dir, payloads, events, batch);
    let mut subscription =
        broker.subscribe_from(SubscribeOptions::new("reader").prefix(""), Start::Earliest).expect("subscribe");
    let mut items = Vec::new();
    let mut bytes = 0;
    let start = Instant::now();
    while bytes < events * EVENT_BYTES {
        assert!(subscription.recv_batch_blocking(BatchLimit::messages(batch), &mut items), "the broker is open");
        for item in items.drain(..) {
            bytes += item.message().expect("nothing was lost").payload().len();
        }
    }
    start.elapsed().as_secs_f64()
}

fn append(dir: &Path, payloads: &[Bytes], events: usize, batch: usize) -> (Broker, f64) {
    let broker = Broker::default();
    let journal = Journal::open(JournalOptions::new(dir.join("journal"))).expect("open");
    broker.attach_journal(journal).expect("attach");
    let message = |n: usize| Message::new(key(n), payloads[n % payloads.len()].clone());
    let start = Instant::now();
    if batch == 1 {
        for n in 0..events {
            broker.publish_blocking(message(n)).expect("publish");
        }
    } else {
        let mut queue = VecDeque::new();
        for n in 0..events / batch {
            queue.extend((n * batch..(n + 1) * batch).map(message));
            assert_eq!(broker.publish_batch_blocking(&mut queue), Ok(batch));
        }
    }
    (broker, start.elapsed().as_secs_f64())
}

#[cfg(feature = "journal-peers")]
fn fjall(dir: &Path, payloads: &[Bytes], events: usize, batch: usize) -> f64 {
    use fjall::{Database, KeyspaceCreateOptions, PersistMode};
    let db = Database::builder(dir.join("fjall")).open().expect("open");
    let log = db.keyspace("log", KeyspaceCreateOptions::default).expect("keyspace");
    let start = Instant::now();
    for n in 0..events / batch {
        let mut changes = db.batch().durability(Some(PersistMode::Buffer));
        for n in n * batch..(n + 1) * batch {
            let value = [key(n).as_bytes(), &payloads[n % payloads.len()]].concat();
            changes.insert(&log, (n as u64).to_be_bytes(), value);
        }
        changes.commit().expect("commit");
    }
    start.elapsed().as_secs_f64()
}

fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<_> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn main() {
    let measured = std::env::args().any(|arg| arg == "--bench");
    let rounds = if measured { 15 } else { 1 };
    let contenders: &[(&str, Contender)] = &[
        ("plain write", plain),
        ("plain write, payloads alone", payloads_alone),
        ("journal", journal),
        ("journal, read back", read_back),
        #[cfg(feature = "journal-peers")]
        ("fjall", fjall),
    ];
    let payloads = payloads();
    for (case, batch, events) in [("batches of 64", BATCH, 128 << 10), ("one by one", 1, 32 << 10)] {
        let events = if measured { events } else { 4 * BATCH };
        let mut rates = vec![Vec::new(); contenders.len()];
        for round in 0..rounds {
            for turn in 0..contenders.len() {
                let who = (turn + round) % contenders.len();
                let dir = tempfile::tempdir_in(".").expect("directory");
                let seconds = contenders[who].1(dir.path(), &payloads, events, batch);
                rates[who].push((events * EVENT_BYTES) as f64 / 1e6 / seconds);
                if measured {
                    nix::unistd::sync();
                }
            }
        }
        println!("{case}, {events} events of {EVENT_BYTES} bytes, {rounds} rounds");
        println!("| | MB/s, median | slowest to fastest | of plain write, median |");
        println!("| --- | --- | --- | --- |");
        for ((name, _), own) in contenders.iter().zip(&rates) {
            let ratio = median(own.iter().zip(&rates[0]).map(|(own, plain)| own / plain));
            let (slowest, fastest) = (own.iter().copied().reduce(f64::min), own.iter().copied().reduce(f64::max));
            let [slowest, fastest] = [slowest, fastest].map(|rate| rate.expect("there is a round"));
            println!("| {name} | {:.0} | {slowest:.0} to {fastest:.0} | {ratio:.2} |", median(own.iter().copied()));
        }
        println!();
    }
}
