//! ZeroMQ over TCP: our publisher against libzmq's PUB and the `zeromq` crate's, to libzmq subscribers.
//!
//! ```text
//!   harness ──go, stop──▶ publisher ──tcp──▶ N subscribers
//!      ▲                  a process          libzmq SUB, a process each      all on CLOCK_MONOTONIC
//!      └─────────────── what came ──────────────┘
//! ```
//!
//! # What is measured
//!
//! - **Published, nothing lost**: from the first send until the last subscriber has its last message.
//! - **CPU per message**: the processor time of the publisher's process alone, all of its threads.
//! - **One slow subscriber**: seven that read as fast as they can, and one that takes 100 us for each message. The time ends with the last of the
//!   seven; the row "alone" is the seven without the slow one. What ours drops for the slow one must be told to it, message for message.
//!
//! # Fair play
//!
//! - Every round has a publisher and subscribers of its own; measuring begins when every subscriber has seen a probe. Contenders take turns.
//! - A message is a key of 35 bytes and a payload from a pool that is made beforehand. libzmq copies it, as its interface has it; we and the `zeromq`
//!   crate are given a reference to it, as theirs do.
//! - Each subscriber looks at the stamp of every message; all must come, in order, or the run fails.
//! - Nobody may run ahead without bound. libzmq waits at a high-water mark of 1,000 (XPUB_NODROP). Ours never waits for a subscriber, so whoever publishes does:
//!   it looks at the peers' queues after every 256 messages, and sleeps while one of them has 1,000, which a program that must not lose would
//!   have to do as well. The `zeromq` crate drops at 100,000 without telling anybody, and can't be asked: its rounds are shorter than that.
//! - Ours runs as `hookbus hm` does, on a runtime of one thread; the `zeromq` crate on one with a worker for each core.

mod publisher;
mod subscriber;

use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::Duration;

use thiserror::Error;

pub use publisher::run as publish;
pub use subscriber::run as subscribe;

use crate::inproc::KEY;
use crate::report::{Aim, Better, Measure, Report, Side, Who};

const PUBLISHED: Measure =
    Measure { name: "published, nothing lost", unit: "thousand messages/s", better: Better::Higher };
const CPU: Measure = Measure { name: "CPU of the publisher", unit: "us/message", better: Better::Lower };

/// Those who can be made to lose nothing; the aims are about them.
const LOSSLESS: Option<&str> = Some("can be made to lose nothing");

const OURS: Who = Who { name: "hookbus", side: Side::Ours, class: LOSSLESS };
const ALONE: Who = Who { name: "hookbus, alone", side: Side::Peer, class: None };
const LIBZMQ: Who = Who { name: "libzmq PUB, XPUB_NODROP", side: Side::Peer, class: LOSSLESS };
const CRATE: Who = Who { name: "zeromq crate, PUB", side: Side::Peer, class: None };

/// What a subscriber takes as a sign that its subscription works.
const PROBE: &[u8] = b"PROBE";

/// Payloads are taken from a pool in turn: more than what one socket's queues hold, so that a message in the wrong place never carries the right stamp.
const POOL: usize = 4096;

/// The `zeromq` crate's queues hold 100,000 messages.
const CRATE_AT_MOST: usize = 90_000;

/// How long the slow one takes for a message.
const SLOW_US: u64 = 100;

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Numbers of subscribers.
    pub subscribers: Vec<usize>,
    /// Sizes of payloads, in bytes.
    pub payloads: Vec<usize>,
    /// Rounds for each contender and case.
    pub rounds: usize,
    /// Messages of a round; libzmq gets a tenth where one subscriber is slow.
    pub messages: usize,
}

/// Why a comparison is void.
#[derive(Debug, Error)]
pub enum Failure {
    /// The operating system refused something.
    #[error("{what}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// What was said.
        source: io::Error,
    },
    /// A process doesn't do what it should.
    #[error("{who}: {what}")]
    Odd {
        /// Whose round it was.
        who: &'static str,
        /// What is odd.
        what: String,
    },
    /// Messages are missing, out of order, or repeated.
    #[error(
        "{who}: subscriber {subscriber} got {taken} of {count} messages and was told of {dropped} that were dropped; the first that came at a wrong place: {wrong:?}"
    )]
    Lost {
        /// Whose round it was.
        who: &'static str,
        /// Which subscriber, from 0.
        subscriber: usize,
        /// How many there should have been.
        count: u64,
        /// How many came.
        taken: u64,
        /// How many it was told of.
        dropped: u64,
        /// The first that came at a wrong place.
        wrong: Option<u64>,
    },
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> Failure {
    move |source| Failure::Io { what, source }
}

/// What one subscriber has to say at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Taken {
    taken: u64,
    /// Of how many it was told that they were dropped.
    dropped: u64,
    wrong: Option<u64>,
    finished_ns: u64,
}

/// What the publisher has to say.
#[derive(Clone, Copy, Debug, Default)]
struct Published {
    started_ns: u64,
    cpu_ns: u64,
}

/// How a round is made up.
#[derive(Clone, Copy, Debug)]
struct Round {
    who: Who,
    fast: usize,
    slow: usize,
    payload_bytes: usize,
    messages: usize,
}

/// Runs everything, contenders in turn.
///
/// # Errors
/// When something can't be started, or when anybody loses, repeats or reorders a message.
pub fn compare(report: &mut Report, options: &Options, mut progress: impl FnMut(&str)) -> Result<(), Failure> {
    let Options { rounds, messages, .. } = *options;
    for &payload_bytes in &options.payloads {
        for &fast in &options.subscribers {
            let case =
                format!("{fast} subscriber{}, {payload_bytes} bytes of payload", if fast == 1 { "" } else { "s" });
            for round in 0..rounds {
                // Each round begins with somebody else.
                for at in 0..3 {
                    let who = [OURS, LIBZMQ, CRATE][(at + round) % 3];
                    progress(&format!("{case}, round {} of {rounds}, {}", round + 1, who.name));
                    let messages = if who == CRATE { messages.min(CRATE_AT_MOST) } else { messages };
                    let (rate, cpu) = one(&Round { who, fast, slow: 0, payload_bytes, messages })?;
                    report.record(PUBLISHED, &case, who, rate);
                    report.record(CPU, &case, who, cpu);
                }
            }
            report.aim(PUBLISHED, &case, OURS, Aim::RatioInClass(if fast == 1 { 1.2 } else { 1.9 }));
        }
    }
    let case = format!("7 subscribers beside one that takes {SLOW_US} us for each message, 2048 bytes of payload");
    for round in 0..rounds {
        for at in 0..3 {
            let (who, slow, share) = [(OURS, 1, 1), (ALONE, 0, 1), (LIBZMQ, 1, 10)][(at + round) % 3];
            progress(&format!("{case}, round {} of {rounds}, {}", round + 1, who.name));
            let round = Round { who, fast: 7, slow, payload_bytes: 2048, messages: (messages / share).max(1) };
            report.record(PUBLISHED, &case, who, one(&round)?.0);
        }
    }
    report.aim(PUBLISHED, &case, OURS, Aim::Ratio(0.95));
    Ok(())
}

/// A process of this program; it is killed when dropped.
#[derive(Debug)]
struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Process {
    fn spawn(arguments: &[&str]) -> io::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        let mut child = command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().map(BufReader::new).ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(Process { child, stdin, stdout })
    }

    fn tell(&mut self, word: &str) -> io::Result<()> {
        let stdin = self.stdin.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        stdin.write_all(word.as_bytes())?;
        stdin.write_all(b"\n")
    }

    /// The next line; empty where the process has ended.
    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        line.truncate(line.trim_end().len());
        Ok(line)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A publisher of its own, subscribers of their own; thousand messages per second and microseconds of CPU for each.
fn one(round: &Round) -> Result<(f64, f64), Failure> {
    let Round { who, fast, slow, payload_bytes, messages } = *round;
    let count = messages.to_string();
    let odd = |what: &str, line: &str| Failure::Odd { who: who.name, what: format!("{what}: {line:?}") };
    let spawn = |arguments: &[&str]| Process::spawn(arguments).map_err(failed("start a process of hookbus-bench"));
    let mut publisher = spawn(&["zeromq-pub", who.name, &count, &payload_bytes.to_string()])?;
    let endpoint = publisher.line().map_err(failed("read where the publisher listens"))?;
    if !endpoint.starts_with("tcp://") {
        return Err(odd("the publisher doesn't say where it listens", &endpoint));
    }
    let mut subscribers = Vec::with_capacity(fast + slow);
    for n in 0..fast + slow {
        let pause = if n < fast { 0 } else { SLOW_US };
        subscribers.push(spawn(&["zeromq-sub", &endpoint, &count, &pause.to_string()])?);
    }
    for subscriber in &mut subscribers {
        let line = subscriber.line().map_err(failed("read what a subscriber says"))?;
        if line != "ready" {
            return Err(odd("a subscriber got no probe", &line));
        }
    }
    // What is left of the probes.
    thread::sleep(Duration::from_millis(100));
    publisher.tell("go").map_err(failed("start the publisher"))?;
    let mut finished = 0;
    for (subscriber, process) in subscribers.iter_mut().enumerate() {
        let line = process.line().map_err(failed("read what a subscriber says"))?;
        let got = Taken::parse(&line).ok_or_else(|| odd("a subscriber can't say what it got", &line))?;
        let Taken { taken, dropped, wrong, finished_ns } = got;
        let is_slow = subscriber >= fast;
        let count = messages as u64;
        if wrong.is_some() || taken + dropped != count || dropped > 0 && !is_slow {
            return Err(Failure::Lost { who: who.name, subscriber, count, taken, dropped, wrong });
        }
        if !is_slow {
            finished = finished.max(finished_ns);
        }
    }
    publisher.tell("stop").map_err(failed("stop the publisher"))?;
    let line = publisher.line().map_err(failed("read what the publisher says"))?;
    let Published { started_ns, cpu_ns } =
        Published::parse(&line).ok_or_else(|| odd("the publisher can't say what it did", &line))?;
    let seconds = finished.saturating_sub(started_ns) as f64 / 1e9;
    Ok((messages as f64 / seconds / 1e3, cpu_ns as f64 / 1e3 / messages as f64))
}

impl Taken {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split(' ');
        let mut next = || fields.next();
        let (taken, dropped, wrong, finished) = (next()?, next()?, next()?, next()?);
        let wrong = if wrong == "-" { None } else { Some(wrong.parse().ok()?) };
        let finished_ns = finished.parse().ok()?;
        Some(Taken { taken: taken.parse().ok()?, dropped: dropped.parse().ok()?, wrong, finished_ns })
    }

    fn line(&self) -> String {
        let wrong = self.wrong.map_or_else(|| "-".into(), |at| at.to_string());
        format!("{} {} {wrong} {}", self.taken, self.dropped, self.finished_ns)
    }
}

impl Published {
    fn parse(line: &str) -> Option<Self> {
        let (started, cpu) = line.split_once(' ')?;
        Some(Published { started_ns: started.parse().ok()?, cpu_ns: cpu.parse().ok()? })
    }

    fn line(&self) -> String {
        format!("{} {}", self.started_ns, self.cpu_ns)
    }
}

/// The stamp of a message: hexadecimal digits, which base64 text may be made of.
fn stamp(message: u64) -> [u8; 16] {
    let mut stamp = [0; 16];
    let number = message % POOL as u64;
    for (digit, n) in stamp.iter_mut().rev().zip(0..) {
        *digit = b"0123456789abcdef"[(number >> (4 * n) & 15) as usize];
    }
    stamp
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::publisher::{Control, PUBLISHERS, Stage};
    use super::subscriber::take;
    use super::*;

    #[test]
    fn everybody_delivers_everything_in_order() {
        for (name, publish) in PUBLISHERS {
            let control = Control::new();
            let (say, where_to) = mpsc::channel();
            thread::scope(|scope| {
                let publisher =
                    scope.spawn(|| publish(&control, 300, 64, &mut |endpoint| say.send(endpoint.to_owned()).is_ok()));
                let endpoint = where_to.recv_timeout(Duration::from_secs(10)).expect("it says where it listens");
                let (ready, are_ready) = mpsc::channel();
                let subscribers: Vec<_> = [0, 20]
                    .map(|pause_us| {
                        let (endpoint, ready) = (endpoint.clone(), ready.clone());
                        scope.spawn(move || take(&endpoint, 300, pause_us, || ready.send(()).map_err(io::Error::other)))
                    })
                    .into();
                for _ in &subscribers {
                    are_ready.recv_timeout(Duration::from_secs(10)).expect("a probe comes");
                }
                control.set(Stage::Publishing);
                for subscriber in subscribers {
                    let got = subscriber.join().expect("no panic").expect("no error");
                    assert_eq!((got.taken, got.dropped, got.wrong), (300, 0, None), "{name}");
                    assert_eq!(Taken::parse(&got.line()), Some(got));
                }
                control.set(Stage::Stopped);
                publisher.join().expect("no panic").expect("no error");
            });
        }
    }

    #[test]
    fn a_stamp_is_the_number_of_the_message() {
        assert_eq!(&stamp(4095), b"0000000000000fff");
        assert_eq!(stamp(4096), stamp(0));
    }
}
