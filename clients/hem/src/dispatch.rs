//! The dispatcher: the task that takes events from the subscription and starts hooks.
//!
//! It holds a free place before it takes an event, so that events wait in the broker, under the subscription's high-water mark, and nowhere
//! else. An event that makes several hooks run waits here until each has had a place; it is the only one that does.

use std::sync::Arc;

use hookbus_bridges::PAYLOAD_BASE64;
use hookbus_bridges::opennebula::Parser;
use hookbus_broker::{Delivery, Gap, Received, Subscription};
use parking_lot::RwLock;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::{JoinError, JoinSet, spawn_blocking};
use tokio::time::{Duration, Instant, sleep_until};

use crate::arguments::{Value, expand, want_value};
use crate::command::CommandLine;
use crate::executor::ExecutorOptions;
use crate::hook::Hook;
use crate::output::Output;
use crate::process::{self, Limits};
use crate::record::{Ending, EventRef, Record};
use crate::status::{Active, Counters};

/// An event as large as this is looked at on another thread: decoding and parsing take longer than other tasks should wait.
const LARGE_BYTES: usize = 128 << 10;

/// How often losses are told while they go on.
const TELL_LOSSES_EVERY: Duration = Duration::from_secs(10);

/// What the task needs.
pub(crate) struct Dispatcher {
    pub(crate) subscription: Subscription,
    pub(crate) active: Arc<RwLock<Arc<Active>>>,
    /// The counters of all hooks together.
    pub(crate) all: Arc<Counters>,
    pub(crate) options: Arc<ExecutorOptions>,
    /// A permit for each hook that may run.
    pub(crate) places: Arc<Semaphore>,
    pub(crate) reports: mpsc::Sender<Arc<Record>>,
    pub(crate) losses: Losses,
    /// True: take no more events.
    pub(crate) stop_taking: watch::Receiver<bool>,
    /// True: end what runs.
    pub(crate) stop_running: watch::Receiver<bool>,
}

/// A hook that is to run, with its counters.
type Called = (Arc<Hook>, Arc<Counters>);

/// What hooks get of an event.
struct Event {
    reference: EventRef,
    value: Value,
}

impl Dispatcher {
    /// Runs hooks until it is told to stop or the subscription ends; then waits for those that run.
    pub(crate) async fn run(mut self) {
        let mut runs = JoinSet::new();
        let mut parser = Parser::new();
        while let Some((place, delivery)) = self.next(&mut runs).await {
            match delivery {
                Delivery::Message(message) => {
                    let looked;
                    (parser, looked) = self.look_at(parser, message).await;
                    if let Some((event, hooks)) = looked {
                        self.start_all(&mut runs, place, &Arc::new(event), hooks).await;
                    }
                }
                Delivery::Gap(gap) => self.losses.add(gap),
            }
        }
        self.losses.tell();
        let waiting = self.subscription.handle().stats().map_or(0, |stats| stats.queued);
        if waiting > 0 {
            tracing::warn!(events = waiting, "hooks: events still waited; no hook runs for them");
        }
        // Nothing more is queued for a reader that is gone.
        drop(self.subscription);
        while let Some(run) = runs.join_next().await {
            check(run);
        }
    }

    /// A free place and something to do, or nothing once it is time to stop.
    async fn next(&mut self, runs: &mut JoinSet<()>) -> Option<(OwnedSemaphorePermit, Delivery<Received>)> {
        let place = free_place(&self.places, &mut self.stop_taking).await?;
        loop {
            tokio::select! {
                biased;
                _ = self.stop_taking.wait_for(|stop| *stop) => return None,
                Some(run) = runs.join_next(), if !runs.is_empty() => check(run),
                () = self.losses.due() => self.losses.tell(),
                delivery = self.subscription.recv() => return delivery.map(|delivery| (place, delivery)),
            }
        }
    }

    /// Which hooks a message makes run, and what they get of it.
    async fn look_at(&self, mut parser: Parser, message: Received) -> (Parser, Option<(Event, Vec<Called>)>) {
        let active = Arc::clone(&self.active.read());
        if message.payload().len() < LARGE_BYTES {
            let looked = look(&mut parser, &message, &active);
            return (parser, Some(looked));
        }
        let id = message.id();
        let looked = spawn_blocking(move || {
            let looked = look(&mut parser, &message, &active);
            (parser, Some(looked))
        });
        looked.await.unwrap_or_else(|e| {
            tracing::error!(event = %id, "hooks: an event could not be read: {e}; no hook runs for it");
            (Parser::new(), None)
        })
    }

    async fn start_all(
        &mut self,
        runs: &mut JoinSet<()>,
        place: OwnedSemaphorePermit,
        event: &Arc<Event>,
        hooks: Vec<Called>,
    ) {
        let mut place = Some(place);
        for (hook, counters) in hooks {
            let place = match place.take() {
                Some(place) => Some(place),
                None => free_place(&self.places, &mut self.stop_taking).await,
            };
            let run = Run {
                hook,
                counters: [counters, Arc::clone(&self.all)],
                event: Arc::clone(event),
                options: Arc::clone(&self.options),
                reports: self.reports.clone(),
            };
            match place {
                Some(place) => {
                    runs.spawn(run.run(place, self.stop_running.clone()));
                }
                None => run.cut_off().await,
            }
            while let Some(run) = runs.try_join_next() {
                check(run);
            }
        }
    }
}

/// What was lost at the high-water mark: told at once, and then in sums, since under pressure there is a gap before every event.
#[derive(Debug, Default)]
pub(crate) struct Losses {
    untold: Option<Gap>,
    told: Option<Instant>,
}

impl Losses {
    fn add(&mut self, gap: Gap) {
        let before = self.untold.unwrap_or(Gap { count: 0, ..gap });
        self.untold = Some(Gap { first: before.first, last: gap.last, count: before.count + gap.count });
        if self.told.is_none_or(|told| told.elapsed() >= TELL_LOSSES_EVERY) {
            self.tell();
        }
    }

    /// Completes when there is something to tell and time to tell it.
    async fn due(&self) {
        match (self.untold, self.told) {
            (Some(_), Some(told)) => sleep_until(told + TELL_LOSSES_EVERY).await,
            _ => std::future::pending().await,
        }
    }

    fn tell(&mut self) {
        let Some(gap) = self.untold.take() else { return };
        self.told = Some(Instant::now());
        tracing::error!(
            events = gap.count,
            first = gap.first.get(),
            last = gap.last.get(),
            "hooks: events were dropped because too many waited; no hook ran for them. Shorten hooks, or raise [hooks] concurrency"
        );
    }
}

/// Waits for a place; nothing once it is time to stop.
async fn free_place(places: &Arc<Semaphore>, stop: &mut watch::Receiver<bool>) -> Option<OwnedSemaphorePermit> {
    tokio::select! {
        biased;
        _ = stop.wait_for(|stop| *stop) => None,
        place = Arc::clone(places).acquire_owned() => place.ok(),
    }
}

/// A run that panicked is a mistake of ours; the others go on.
fn check(run: Result<(), JoinError>) {
    if let Err(e) = run {
        tracing::error!("hooks: a run was lost: {e}");
    }
}

fn look(parser: &mut Parser, message: &Received, active: &Active) -> (Event, Vec<Called>) {
    let is_opennebula = message.tag() == PAYLOAD_BASE64 && active.set.wants_header();
    let header = is_opennebula.then(|| parser.event_of(message.payload()));
    let hooks = active.set.matching(message.keys(), header.as_ref());
    let value = match &header {
        Some(event) if hooks.iter().any(|hook| want_value(&hook.arguments)) => Value::of(event),
        _ => Value::Nothing,
    };
    let key = message.keys().nth(1).or_else(|| message.keys().next()).unwrap_or_default();
    let reference = EventRef { id: message.id(), key: String::from_utf8_lossy(key).into_owned(), time: message.time() };
    let hooks = hooks.into_iter().map(|hook| {
        let counters = active.counters_of(&hook);
        (hook, counters)
    });
    (Event { reference, value }, hooks.collect())
}

/// One hook and one event.
struct Run {
    hook: Arc<Hook>,
    /// Its own, and those of all.
    counters: [Arc<Counters>; 2],
    event: Arc<Event>,
    options: Arc<ExecutorOptions>,
    reports: mpsc::Sender<Arc<Record>>,
}

impl Run {
    /// Executes it. The place is taken until the record is on its way, so that records can't pile up either.
    async fn run(self, place: OwnedSemaphorePermit, stop: watch::Receiver<bool>) {
        let running = self.counters.each_ref().map(Counters::start);
        let (line, arguments) = self.line();
        let input = if self.hook.arguments_stdin { arguments.clone() } else { String::new() };
        let limits = Limits {
            timeout: self.hook.timeout,
            kill_grace: self.options.kill_grace,
            linger: self.options.linger,
            output_max_bytes: self.options.output_max_bytes,
        };
        let finished = process::run(&line, input, limits, stop).await;
        drop(running);
        self.counters.iter().for_each(|counters| counters.ended(finished.ending));
        let record = Record {
            hook: self.hook,
            event: self.event.reference.clone(),
            started: finished.started,
            duration: finished.duration,
            command: line.line().to_owned(),
            arguments,
            ending: finished.ending,
            left_behind: finished.left_behind,
            stdout: finished.stdout,
            stderr: finished.stderr,
        };
        // The reporter lives longer than any run.
        let _ = self.reports.send(Arc::new(record)).await;
        drop(place);
    }

    /// Records that it didn't run because the executor ends.
    async fn cut_off(self) {
        let running = self.counters.each_ref().map(Counters::start);
        let (line, arguments) = self.line();
        let mut stderr = Output::default();
        stderr.push_line("Not started: hookbus ends");
        drop(running);
        self.counters.iter().for_each(|counters| counters.ended(Ending::Interrupted));
        let record = Record {
            hook: self.hook,
            event: self.event.reference.clone(),
            started: std::time::SystemTime::now(),
            duration: Duration::ZERO,
            command: line.line().to_owned(),
            arguments,
            ending: Ending::Interrupted,
            left_behind: false,
            stdout: Output::default(),
            stderr,
        };
        let _ = self.reports.send(Arc::new(record)).await;
    }

    fn line(&self) -> (CommandLine, String) {
        let arguments = expand(&self.hook.arguments, &self.event.value);
        let in_line = if self.hook.arguments_stdin { "" } else { arguments.as_str() };
        (CommandLine::new(&self.options.base_path, &self.hook.command, in_line), arguments)
    }
}
