//! oned's driver, from standard input to ZeroMQ subscribers: `hookbus hm` against a plain loop over libzmq that does the
//! same job ([`plain`]), and against OpenNebula's own driver where its path is given.
//!
//! ```text
//!   harness ──pipe──▶ driver ──tcp──▶ N subscribers
//!      │     lines              libzmq SUB, a process each      all on CLOCK_MONOTONIC
//! ```
//!
//! # What is measured
//!
//! - **Flat out**: recorded lines ([`corpus`](crate::corpus)) are written to the pipe as fast as it takes them. Events per second: from the
//!   first write until the last subscriber has its last message.
//! - **At a fixed rate**: each line has a time at which it is to be written. The latency of an event at a subscriber counts
//!   from there, until the last of its messages has come, so a driver that stalls pays for all that should have been sent
//!   meanwhile. How late the harness itself wrote is shown as well: that much of each latency is not the driver's.
//! - **CPU per event**: the processor time of the driver's process alone, over the measured lines.
//! - **Memory**: what is resident with the subscribers connected, before the burst and one second after its end.
//! - **Start**: from spawning the driver until its answer to INIT is read.
//!
//! # Fair play
//!
//! Every round has a driver and subscribers of its own; measuring begins when every subscriber has seen a probe event.
//! Contenders take turns. The plain loop uses our parser: with a slower one a win of 1.3 was once faked. It serves no logger
//! port and keeps no statistics, so it does a little less. Subscribers have no high-water mark, and drivers one that
//! the burst can't reach (the plain loop waits instead, XPUB_NODROP): nothing may be lost, and messages of ours and of the
//! plain loop must come in the order of the lines, or the run fails. The original is known to shuffle and may lose; both are
//! shown.

mod driver;
pub mod plain;
pub mod subscriber;

use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use thiserror::Error;

use crate::corpus::Corpus;
use crate::report::{Better, Measure, Report, Side, Who};
use driver::{Driver, Program};
use subscriber::Subscriber;

const RATE: Measure = Measure { name: "flat out", unit: "events/s", better: Better::Higher };
const CPU_FLAT_OUT: Measure = Measure { name: "CPU, flat out", unit: "us/event", better: Better::Lower };
const P50: Measure = Measure { name: "latency, p50", unit: "us", better: Better::Lower };
const P99: Measure = Measure { name: "latency, p99", unit: "us", better: Better::Lower };
const MAX: Measure = Measure { name: "latency, max", unit: "us", better: Better::Lower };
const LATE: Measure = Measure { name: "of which the harness was late, p50", unit: "us", better: Better::Lower };
const CPU_PACED: Measure = Measure { name: "CPU", unit: "us/event", better: Better::Lower };
const IDLE: Measure = Measure { name: "resident memory, idle", unit: "MB", better: Better::Lower };
const AFTER: Measure = Measure { name: "resident memory, after the burst", unit: "MB", better: Better::Lower };
const PEAK: Measure = Measure { name: "resident memory, peak of the burst", unit: "MB", better: Better::Lower };
const START: Measure = Measure { name: "start to INIT answered", unit: "ms", better: Better::Lower };
const SHUFFLED: Measure = Measure { name: "events out of order", unit: "%", better: Better::Lower };
const LOST: Measure = Measure { name: "messages lost", unit: "%", better: Better::Lower };

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The `hookbus` program.
    pub hookbus: PathBuf,
    /// OpenNebula's `one_hm.rb`, or whatever starts it.
    pub ruby: Option<PathBuf>,
    /// Numbers of subscribers.
    pub subscribers: Vec<usize>,
    /// Rounds for each contender.
    pub rounds: usize,
    /// Lines of a burst; the original gets a tenth, being so much slower.
    pub lines: usize,
    /// Events per second where the rate is fixed, and for how long.
    pub rate: u32,
    /// For how many seconds.
    pub seconds: u32,
    /// How often each driver is started to measure the start.
    pub starts: usize,
}

/// Why a comparison is void.
#[derive(Debug, Error)]
pub enum Failure {
    /// The operating system, or libzmq, refused something.
    #[error("{what}")]
    Io {
        /// What was being done.
        what: String,
        /// What was said.
        source: io::Error,
    },
    /// A driver doesn't behave as one.
    #[error("{who}: {what}")]
    Driver {
        /// Which one.
        who: &'static str,
        /// What it does.
        what: String,
    },
    /// Messages are missing, or there are too many.
    #[error("{who}: subscriber {subscriber} got {got} messages of {expected}, {unknown} of them unknown")]
    Lost {
        /// Which driver.
        who: &'static str,
        /// Which subscriber, from 0.
        subscriber: usize,
        /// How many there should have been.
        expected: usize,
        /// How many came.
        got: usize,
        /// How many of these were never sent.
        unknown: usize,
    },
    /// Messages are out of order.
    #[error("{who}: subscriber {subscriber} got {count} events out of order")]
    Shuffled {
        /// Which driver.
        who: &'static str,
        /// Which subscriber, from 0.
        subscriber: usize,
        /// How many.
        count: usize,
    },
}

impl Failure {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        |source| Failure::Io { what: what.into(), source }
    }
}

/// Nanoseconds on a clock that all processes of a machine share.
pub(crate) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every Linux has it");
    now.tv_sec().unsigned_abs() * 1_000_000_000 + now.tv_nsec().unsigned_abs()
}

/// How lines are written.
#[derive(Clone, Copy, Debug)]
enum Pace {
    FlatOut,
    PerSecond(u32),
}

/// Runs everything, contenders in turn.
///
/// # Errors
/// When something can't be started, or when ours or the plain loop loses or reorders a message.
pub fn compare(report: &mut Report, options: &Options, mut progress: impl FnMut(&str)) -> Result<(), Failure> {
    let corpus = Corpus::recorded();
    let config = driver::large_limits().map_err(Failure::io("write a configuration to a temporary directory"))?;
    let programs = programs(options, &config.path().join("hookbus.toml"))?;
    let case = |n: usize| format!("{n} subscriber{}", if n == 1 { "" } else { "s" });

    for start in 0..options.starts {
        progress(&format!("start {} of {}", start + 1, options.starts));
        for program in &programs {
            let driver = Driver::start(program)?;
            report.record(START, "no subscriber yet", program.who, driver.init_answered.as_secs_f64() * 1e3);
            driver.end()?;
        }
    }
    for &n in &options.subscribers {
        for round in 0..options.rounds {
            for at in 0..programs.len() {
                let program = &programs[(at + round) % programs.len()];
                progress(&format!("{}, round {} of {}, {}", case(n), round + 1, options.rounds, program.who.name));
                let case = case(n);
                let lines = if program.original { (options.lines / 10).max(1) } else { options.lines };
                let burst = run(program, &corpus, n, lines, Pace::FlatOut)?;
                report.record(RATE, &case, program.who, lines as f64 / burst.seconds);
                report.record(CPU_FLAT_OUT, &case, program.who, burst.cpu.as_secs_f64() * 1e6 / lines as f64);
                report.record(IDLE, &case, program.who, burst.idle_mb);
                report.record(PEAK, &case, program.who, burst.peak_mb);
                report.record(AFTER, &case, program.who, burst.after_mb);

                let lines = options.rate as usize * options.seconds as usize;
                let paced = run(program, &corpus, n, lines, Pace::PerSecond(options.rate))?;
                let at_rate = format!("{case}, {} events/s", options.rate);
                report.record(P50, &at_rate, program.who, paced.latency_us(0.5));
                report.record(P99, &at_rate, program.who, paced.latency_us(0.99));
                report.record(MAX, &at_rate, program.who, paced.latency_us(1.0));
                report.record(LATE, &at_rate, program.who, percentile(&paced.late_ns, 0.5) / 1e3);
                report.record(CPU_PACED, &at_rate, program.who, paced.cpu.as_secs_f64() * 1e6 / lines as f64);
                if program.original {
                    for (case, outcome) in [(&case, &burst), (&at_rate, &paced)] {
                        report.record(SHUFFLED, case, program.who, outcome.shuffled_percent);
                        report.record(LOST, case, program.who, outcome.lost_percent);
                    }
                }
            }
        }
    }
    Ok(())
}

fn programs(options: &Options, config: &Path) -> Result<Vec<Program>, Failure> {
    let own = std::env::current_exe().map_err(Failure::io("find the path of hookbus-bench"))?;
    let who = |name, side| Who { name, side, class: None };
    let mut programs = vec![
        Program {
            who: who("hookbus hm", Side::Ours),
            path: options.hookbus.clone(),
            before: vec!["hm".into(), "--config".into(), config.into()],
            hwm: "1000000",
            original: false,
        },
        Program {
            who: who("plain loop, libzmq, XPUB_NODROP", Side::Peer),
            path: own,
            before: vec!["plain-driver".into()],
            hwm: "1000",
            original: false,
        },
    ];
    if let Some(path) = &options.ruby {
        programs.push(Program {
            who: who("OpenNebula's own driver", Side::Peer),
            path: path.clone(),
            before: Vec::new(),
            hwm: "0",
            original: true,
        });
    }
    Ok(programs)
}

/// What one driver did with some lines.
struct Outcome {
    seconds: f64,
    cpu: Duration,
    idle_mb: f64,
    peak_mb: f64,
    after_mb: f64,
    /// Of each event at each subscriber, sorted.
    latencies_ns: Vec<u64>,
    /// Of each line, sorted.
    late_ns: Vec<u64>,
    shuffled_percent: f64,
    lost_percent: f64,
}

impl Outcome {
    fn latency_us(&self, share: f64) -> f64 {
        percentile(&self.latencies_ns, share) / 1e3
    }
}

fn percentile(sorted: &[u64], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * share).round() as usize).map_or(f64::NAN, |&value| value as f64)
}

/// A driver of its own, subscribers of their own, and so many lines.
fn run(program: &Program, corpus: &Corpus, n: usize, lines: usize, pace: Pace) -> Result<Outcome, Failure> {
    let who = program.who.name;
    let expected = corpus.expected(lines, program.original);
    let mut driver = Driver::start(program)?;
    let mut subscribers = Vec::with_capacity(n);
    for _ in 0..n {
        subscribers.push(Subscriber::spawn(driver.publisher_port, expected.messages())?);
    }
    driver.probe_until(corpus, || subscribers.iter_mut().all(Subscriber::is_ready))?;
    thread::sleep(Duration::from_millis(200));

    let idle_mb = driver.resident_mb("VmRSS")?;
    let cpu_before = driver.cpu()?;
    let mut stdin = driver.take_stdin()?;
    let (written, arrivals) = thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let outcome = driver::write_lines(&mut stdin, corpus, lines, pace);
            (stdin, outcome)
        });
        let arrivals: Vec<_> = subscribers.into_iter().map(Subscriber::arrivals).collect();
        // Subscribers give up when nothing comes for long. If the writer is still at it, the driver has stopped reading.
        if !writer.is_finished() && arrivals.iter().any(|a| a.as_ref().map_or(true, |a| a.len() < expected.messages()))
        {
            driver.kill();
        }
        (writer.join(), arrivals)
    });
    let cpu = driver.cpu()?.saturating_sub(cpu_before);
    let (stdin, written) = written.map_err(|_| Failure::Driver { who, what: "the writer panicked".into() })?;
    let planned = written.map_err(Failure::io(format!("write lines to {who}")))?;
    driver.give_back_stdin(stdin);

    let mut outcome = Outcome {
        seconds: 0.0,
        cpu,
        idle_mb,
        peak_mb: driver.resident_mb("VmHWM")?,
        after_mb: 0.0,
        latencies_ns: Vec::with_capacity(lines * n),
        late_ns: planned.late_ns,
        shuffled_percent: 0.0,
        lost_percent: 0.0,
    };
    let mut finished = planned.started_ns;
    for (subscriber, arrivals) in arrivals.into_iter().enumerate() {
        let arrivals = arrivals?;
        finished = finished.max(arrivals.last().map_or(0, |last| last.at_ns));
        let matched = expected.matched(&arrivals, lines);
        let complete = arrivals.len() == expected.messages() && matched.unknown == 0;
        if !complete && !program.original {
            let (expected, got) = (expected.messages(), arrivals.len());
            return Err(Failure::Lost { who, subscriber, expected, got, unknown: matched.unknown });
        }
        if matched.shuffled > 0 && !program.original {
            return Err(Failure::Shuffled { who, subscriber, count: matched.shuffled });
        }
        let share = |part: usize, whole: usize| 100.0 * part as f64 / (whole * n) as f64;
        outcome.shuffled_percent += share(matched.shuffled, lines);
        outcome.lost_percent += share(expected.messages() - (arrivals.len() - matched.unknown), expected.messages());
        let completed = matched.completed_ns.iter().zip(&planned.planned_ns);
        outcome
            .latencies_ns
            .extend(completed.filter(|(at, _)| **at > 0).map(|(at, planned)| at.saturating_sub(*planned)));
    }
    outcome.latencies_ns.sort_unstable();
    outcome.late_ns.sort_unstable();
    outcome.seconds = (finished - planned.started_ns) as f64 / 1e9;
    if matches!(pace, Pace::FlatOut) {
        thread::sleep(Duration::from_secs(1));
        outcome.after_mb = driver.resident_mb("VmRSS")?;
    }
    driver.end()?;
    Ok(outcome)
}
