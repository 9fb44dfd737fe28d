//! A process with a journal is killed at random moments, some hundreds of times, and each time everything that it had been told is
//! safe must be there.
//!
//! The test runs its own binary as the victim ([`victim`]). The victim publishes from three threads, has one subscriber in memory and
//! one durable one, and writes a line to its standard output whenever it learns something; the parent kills it, opens the
//! journal, and compares. `HOOKBUS_CRASHES` says how often (200 unless set), `HOOKBUS_SEED` which random moments.
#![cfg(feature = "journal")]

mod support;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use hookbus_broker::{BatchLimit, Delivery, JournalOptions, Message, Offset, Start, SubscribeOptions};

use support::{attach, drain};

const DIR: &str = "HOOKBUS_CRASH_DIR";
const RUN: &str = "HOOKBUS_CRASH_RUN";

/// xorshift64: a seed replays a run, as far as the scheduler lets it.
struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % most
    }
}

/// What a journal may take on the disk, and at what size its life ends: victims that live for 180 ms must not fill what is between, else it lets go of
/// its oldest messages, as it should.
const MOST_BYTES: u64 = 128 << 20;
const OLD_BYTES: u64 = 24 << 20;

fn journal(dir: &Path) -> JournalOptions {
    JournalOptions::new(dir).max_bytes(MOST_BYTES)
}

/// The payload of message `i` of a thread: its name, and bytes that follow from it.
fn payload(run: u64, thread: u64, i: u64) -> String {
    let mut random = Random((run << 40 ^ thread << 32 ^ i).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let size = if random.below(50) == 0 { random.below(60_000) } else { random.below(2_000) };
    let name = format!("{run}/{thread}/{i} ");
    let filler = (0..size).map(|n| char::from(b'a' + (n % 26) as u8));
    name.chars().chain(filler).collect()
}

/// The name in a payload, if it is one of ours.
fn name_of(text: &str) -> Option<(u64, u64, u64)> {
    let (name, _) = text.split_once(' ')?;
    let mut parts = name.split('/').map(|part| part.parse::<u64>().ok());
    let (run, thread, i) = (parts.next()??, parts.next()??, parts.next()??);
    (payload(run, thread, i) == text).then_some((run, thread, i))
}

fn say(line: &str) {
    // One write for each line: what was said is in the pipe, whatever happens next.
    let _ = std::io::stdout().lock().write_all(line.as_bytes());
}

#[test]
#[ignore = "the process that is killed; it runs until then"]
fn victim() {
    let (Ok(dir), Ok(run)) = (std::env::var(DIR), std::env::var(RUN)) else { return };
    let run: u64 = run.parse().expect("a number");
    let broker = attach(journal(Path::new(&dir)));
    let mut memory = broker.subscribe(SubscribeOptions::new("memory").prefix("").hwm(0));
    let mut durable = broker
        .subscribe_durable(SubscribeOptions::new("durable").prefix("").hwm(20), "durable", Start::Earliest)
        .expect("subscribe");
    say("\n");
    let threads = [
        std::thread::spawn({
            let broker = broker.clone();
            move || {
                for i in 0.. {
                    let offset = broker.publish_blocking(Message::new("k", payload(run, 0, i))).expect("publish");
                    say(&format!("ACK {run}/0/{i} {offset}\n"));
                }
            }
        }),
        std::thread::spawn({
            let broker = broker.clone();
            move || {
                let mut i = 0;
                loop {
                    let count = i % 41 + 1;
                    let mut batch: VecDeque<_> =
                        (i..i + count).map(|i| Message::new("k", payload(run, 1, i))).collect();
                    assert_eq!(broker.publish_batch_blocking(&mut batch), Ok(count as usize));
                    (i..i + count).for_each(|i| say(&format!("ACK {run}/1/{i} 0\n")));
                    i += count;
                }
            }
        }),
        std::thread::spawn({
            let broker = broker.clone();
            move || {
                for i in 0.. {
                    broker.publish_now(Message::new("k", payload(run, 2, i))).expect("publish");
                    std::thread::sleep(Duration::from_micros(200));
                }
            }
        }),
        std::thread::spawn(move || {
            while let Some(delivery) = memory.recv_blocking() {
                let message = delivery.message().expect("no gap");
                let (run, thread, i) = name_of(std::str::from_utf8(message.payload()).expect("text")).expect("ours");
                say(&format!("SAW {run}/{thread}/{i} {}\n", message.offset()));
            }
        }),
        std::thread::spawn(move || {
            let mut got = Vec::new();
            while durable.recv_batch_blocking(BatchLimit::messages(10), &mut got) {
                for delivery in got.drain(..) {
                    let message = match delivery {
                        Delivery::Message(message) => message,
                        Delivery::Gap(gap) => panic!("{gap:?}"),
                    };
                    let (run, thread, i) =
                        name_of(std::str::from_utf8(message.payload()).expect("text")).expect("ours");
                    say(&format!("GOT {run}/{thread}/{i} {}\n", message.offset()));
                    durable.commit(Offset::new(message.offset().get() + 1));
                }
            }
        }),
    ];
    threads.into_iter().for_each(|t| t.join().expect("it goes on until it is killed"));
}

type Name = (u64, u64, u64);

/// What was learned from all victims of one journal.
#[derive(Default)]
struct Known {
    /// Names by offset, as anybody was ever told.
    names: BTreeMap<u64, Name>,
    acknowledged: BTreeSet<Name>,
    /// What the durable subscription got.
    got: BTreeSet<Name>,
}

impl Known {
    /// An offset stands for one message, for ever.
    fn learn(&mut self, offset: u64, name: Name) {
        let old = *self.names.entry(offset).or_insert(name);
        assert_eq!(old, name, "offset {offset} stood for two messages");
    }

    fn hear(&mut self, line: &str) {
        let mut words = line.split(' ');
        let (Some(what), Some(name), Some(offset)) = (words.next(), words.next(), words.next()) else { return };
        let Ok(offset) = offset.parse::<u64>() else { return };
        let mut parts = name.split('/').filter_map(|p| p.parse().ok());
        let (Some(run), Some(thread), Some(i)) = (parts.next(), parts.next(), parts.next()) else { return };
        let name = (run, thread, i);
        if offset > 0 {
            self.learn(offset, name);
        }
        match what {
            "ACK" => {
                self.acknowledged.insert(name);
            }
            "GOT" => {
                self.got.insert(name);
            }
            _ => {}
        }
    }
}

/// Runs a victim until it is killed, and hears what it says.
fn run_victim(dir: &Path, run: u64, life: Duration, known: &mut Known) {
    let mut child = Command::new(std::env::current_exe().expect("this binary"))
        .args(["--exact", "victim", "--ignored", "--nocapture", "--test-threads=1"])
        .env(DIR, dir)
        .env(RUN, run.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("run this binary");
    let out = BufReader::new(child.stdout.take().expect("piped"));
    let mut errors = child.stderr.take().expect("piped");
    let (send, lines) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        for line in out.lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                return;
            }
        }
    });
    // Its life begins when it has opened the journal; or earlier, so that opening is cut short, too.
    if life > Duration::from_millis(5) {
        let first = lines.recv_timeout(Duration::from_secs(30)).expect("it says something");
        known.hear(&first);
    }
    std::thread::sleep(life);
    assert!(child.try_wait().expect("wait").is_none(), "the victim ended by itself: {}", {
        let mut text = String::new();
        std::io::Read::read_to_string(&mut errors, &mut text).expect("text");
        text
    });
    child.kill().expect("kill");
    child.wait().expect("wait");
    reader.join().expect("reader");
    // The last line may be cut; one that is whole ends with its offset, and a cut offset could be another's.
    let mut heard: Vec<String> = lines.iter().collect();
    heard.pop();
    heard.iter().for_each(|line| known.hear(line));
}

/// Opens the journal and compares.
fn check(dir: &Path, known: &mut Known) {
    let journal = hookbus_broker::Journal::open(journal(dir)).expect("open without repair");
    assert_eq!(journal.report().damage, [], "nothing was damaged");
    let broker = hookbus_broker::Broker::default();
    broker.attach_journal(journal).expect("attach");
    assert!(support::disk_use(dir) < MOST_BYTES / 8 * 7, "it is nearly full, and may have let go of messages");
    let mut reader =
        broker.subscribe_from(SubscribeOptions::new("check").prefix(""), Start::Earliest).expect("subscribe");
    let mut found = BTreeSet::new();
    let mut last = 0;
    let mut last_of = BTreeMap::new();
    for delivery in drain(&mut reader) {
        let message = delivery.message().expect("no gap");
        let text = std::str::from_utf8(message.payload()).expect("nothing is invented");
        let name = name_of(text).expect("nothing is invented");
        assert!(message.offset().get() > last, "in order");
        last = message.offset().get();
        let before = last_of.insert((name.0, name.1), name.2);
        assert!(before.is_none_or(|before| before < name.2), "in the order of each publisher");
        known.learn(last, name);
        assert!(found.insert(name), "{name:?} is there twice");
    }
    let missing: Vec<_> = known.acknowledged.difference(&found).collect();
    assert!(missing.is_empty(), "acknowledged and not there: {missing:?}");
    // What the durable subscription has not got yet, it gets now.
    let options = SubscribeOptions::new("durable").prefix("");
    let mut durable = broker.subscribe_durable(options, "durable", Start::Earliest).expect("subscribe");
    for delivery in drain(&mut durable) {
        let message = delivery.message().expect("no gap");
        known.got.extend(name_of(std::str::from_utf8(message.payload()).expect("text")));
    }
    let missing: Vec<_> = found.difference(&known.got).collect();
    assert!(missing.is_empty(), "passed over by the durable subscription: {missing:?}");
}

#[test]
fn nothing_acknowledged_is_lost_when_the_process_is_killed() {
    let crashes = std::env::var("HOOKBUS_CRASHES").ok().and_then(|n| n.parse().ok()).unwrap_or(200);
    let seed = std::env::var("HOOKBUS_SEED").ok().and_then(|n| n.parse().ok());
    let seed = seed.unwrap_or_else(|| hookbus_broker::LogId::random().get() | 1);
    println!("HOOKBUS_SEED={seed}");
    let mut random = Random(seed);
    let mut acknowledged = 0;
    let mut run = 0;
    while run < crashes {
        // A journal's life.
        let dir = tempfile::tempdir().expect("directory");
        let path: PathBuf = dir.path().join("journal");
        let mut known = Known::default();
        while run < crashes && support::disk_use(&path) < OLD_BYTES {
            for _ in 0..=random.below(3) {
                let life = Duration::from_micros(random.below(60_000));
                run_victim(&path, run, life, &mut known);
                run += 1;
            }
            check(&path, &mut known);
        }
        acknowledged += known.acknowledged.len();
    }
    println!("{run} crashes, {acknowledged} messages acknowledged");
    assert!(acknowledged > run as usize, "the victims were killed before they did anything");
}
