//! The program `hookbus-hem` against the floor: what it takes just to start the same command as often and to wait for its end.
//!
//! ```text
//!   harness ──ZeroMQ PUB──▶ hookbus-hem ──▶ /bin/true, so many at once
//!      ▲                        │ log of executions, outbox
//!      ╰──────ZeroMQ REP────────╯ results, each acknowledged
//! ```
//!
//! # What is measured
//!
//! - **Executions**: events of one API call are published at once, and a hook runs `/bin/true` for each. Per second: from the first event until the
//!   last result has been acknowledged. So all is done that a hook server does: hooks come from an oned (a stub that answers
//!   XML-RPC), each event is parsed, each execution is recorded (committed in groups, within 10 ms) and its result is told to the driver.
//! - **The floor**: a plain loop in one thread that starts `/bin/true` (`posix_spawn`, which is what the standard library's
//!   `Command` does where nothing keeps it from it) and waits for any of its children (`waitpid`), with as many at once; and the same loop one after
//!   the other. It reads no event and no output, and writes nothing down.
//! - **Latency**: an event is published while nothing else happens, and `/bin/date` says when it ran, which counts from just before the
//!   publish. The floor is the time from just before the spawn. Both contain the start of `date` itself.
//! - **CPU**: the processor time of `hookbus-hem` alone, without the commands.
//!
//! # Fair play
//!
//! In each round the floor is measured before ours and again behind it, since a shared machine drifts within seconds; every round has a
//! `hookbus-hem` of its own, with a state directory of its own. The harness, which is publisher and logger port, shares the machine with what it
//! measures, and its time counts against ours. Where something else keeps the cores busy, the floor, which is one thread, gets less of them
//! than ours does, and ratios look better than they are. A result that is missing, or of a command that failed, fails the run.

mod cloud;
mod floor;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

use self::cloud::Cloud;
use crate::report::{Better, Measure, Report, Side, Who};

const RATE: Measure = Measure { name: "executions", unit: "per second", better: Better::Higher };
const SHARE: Measure = Measure { name: "of the floor of the same round", unit: "share", better: Better::Higher };
const CPU: Measure = Measure { name: "CPU of the server", unit: "us/execution", better: Better::Lower };
const P50: Measure = Measure { name: "latency, p50", unit: "us", better: Better::Lower };
const P99: Measure = Measure { name: "latency, p99", unit: "us", better: Better::Lower };

const OURS: Who = Who { name: "hookbus-hem, recorded and acknowledged", side: Side::Ours, class: Some("side by side") };
const FLOOR: Who = Who { name: "posix_spawn and wait, side by side", side: Side::Peer, class: Some("side by side") };
const FLOOR_ALONE: Who = Who { name: "posix_spawn and wait, one by one", side: Side::Peer, class: None };

/// How many executions in a round come before those that count.
const WARM_UP: usize = 50;

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The `hookbus-hem` program.
    pub hem: PathBuf,
    /// Rounds for each contender.
    pub rounds: usize,
    /// Executions of a round.
    pub executions: usize,
    /// How many commands run at once.
    pub concurrency: usize,
    /// Single events of a round, for the latency.
    pub events: usize,
}

/// Why a comparison is void.
#[derive(Debug, Error)]
pub enum Failure {
    /// The operating system refused something.
    #[error("{what}")]
    Io {
        /// What was being done.
        what: String,
        /// What was said.
        source: io::Error,
    },
    /// hookbus-hem doesn't behave.
    #[error("hookbus-hem: {what}; its log:\n{log}")]
    Hem {
        /// What it does.
        what: String,
        /// The end of its log.
        log: String,
    },
}

impl Failure {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        |source| Failure::Io { what: what.into(), source }
    }
}

/// Runs everything, contenders in turn.
///
/// # Errors
/// When something can't be started, or a result is missing or not that of a success.
pub fn compare(report: &mut Report, options: &Options, mut progress: impl FnMut(&str)) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::io("start a tokio runtime"))?;
    let Options { executions, concurrency, events, rounds, .. } = *options;
    let rate = |time: Duration| executions as f64 / time.as_secs_f64();
    let case = format!("/bin/true, {concurrency} at once");
    let idle = "/bin/date, single events";
    for round in 0..rounds {
        progress(&format!("round {} of {rounds}", round + 1));
        // Half of the floor before and half behind, since the machine drifts within seconds.
        let half = executions.div_ceil(2);
        let before = floor::rate(half, concurrency)?;
        let ours = runtime.block_on(hem(options))?;
        let together = (before + floor::rate(half, concurrency)?) / 2;
        let alone = floor::rate(executions, 1)?;
        let latencies = floor::latency(events)?;
        let floor_rate = half as f64 / together.as_secs_f64();
        report.record(RATE, &case, OURS, rate(ours.time));
        report.record(RATE, &case, FLOOR, floor_rate);
        report.record(RATE, &case, FLOOR_ALONE, rate(alone));
        report.record(SHARE, &case, OURS, rate(ours.time) / floor_rate);
        report.record(CPU, &case, OURS, ours.cpu.as_secs_f64() * 1e6 / executions as f64);
        for (measure, share) in [(P50, 0.5), (P99, 0.99)] {
            report.record(measure, idle, OURS, percentile_us(&ours.latencies, share));
            report.record(measure, idle, FLOOR_ALONE, percentile_us(&latencies, share));
        }
    }
    Ok(())
}

/// What a round brought.
struct Outcome {
    /// Of all executions.
    time: Duration,
    cpu: Duration,
    /// Of single events.
    latencies: Vec<Duration>,
}

async fn hem(options: &Options) -> Result<Outcome, Failure> {
    let mut cloud = Cloud::start(&options.hem, options.concurrency).await?;
    cloud.execute(WARM_UP).await?;
    let cpu_before = cloud.cpu()?;
    let time = cloud.execute(options.executions).await?;
    let cpu = cloud.cpu()?.saturating_sub(cpu_before);
    let mut latencies = Vec::with_capacity(options.events);
    for _ in 0..options.events {
        tokio::time::sleep(floor::PAUSE).await;
        latencies.push(cloud.latency().await?);
    }
    cloud.end().await?;
    Ok(Outcome { time, cpu, latencies })
}

fn percentile_us(latencies: &[Duration], share: f64) -> f64 {
    let mut sorted = latencies.to_vec();
    sorted.sort_unstable();
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * share).round() as usize).map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e6)
}
