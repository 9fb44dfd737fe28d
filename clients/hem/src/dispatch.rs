//! The dispatcher: the task that takes events from the subscription and starts hooks.
//!
//! It takes an event only while there is a free place and nothing that could start, so that events wait in the broker, under the
//! subscription's high-water mark. Here wait only runs of events that were taken: behind the gates of the [`Schedule`], and those that
//! failed and are to be repeated. Both are bounded. Of too many that failed, the next ones are not repeated, which is told.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::SystemTime;

use hookbus_bridges::PAYLOAD_BASE64;
use hookbus_bridges::opennebula::Parser;
use hookbus_broker::{Delivery, Gap, Offset, Received};
use parking_lot::RwLock;
use tokio::sync::{mpsc, watch};
use tokio::task::{Id, JoinError, JoinSet, spawn_blocking};
use tokio::time::{Duration, Instant, sleep_until, timeout_at};

use crate::arguments::{Facts, want_element, want_json};
use crate::base64;
use crate::executor::{Again, Asked, ExecutorOptions, Resume};
use crate::feed::Feed;
use crate::hook::{Hook, Order, Trigger};
use crate::record::EventRef;
use crate::report::Report;
use crate::run::{Over, Run, Words, targets};
use crate::schedule::{Gates, Schedule, Taken};
use crate::status::{Active, Counters};
use crate::threads::Threads;

/// An event as large as this is looked at on another thread: decoding and parsing take longer than other tasks should wait.
const LARGE_BYTES: usize = 128 << 10;

/// How often losses are told while they go on.
const TELL_LOSSES_EVERY: Duration = Duration::from_secs(10);

/// How many runs may wait to be repeated, and what they may hold of events, in bytes.
const MOST_REPEATS: usize = 10_000;
const MOST_REPEATED_BYTES: usize = 64 << 20;

/// How long the end waits for what has run to be safe.
const LAST_DONE: Duration = Duration::from_secs(2);

/// What the task needs.
pub(crate) struct Dispatcher {
    pub(crate) feed: Feed,
    pub(crate) active: Arc<RwLock<Arc<Active>>>,
    /// The counters of all hooks together.
    pub(crate) all: Arc<Counters>,
    pub(crate) options: Arc<ExecutorOptions>,
    pub(crate) reports: mpsc::Sender<Report>,
    /// Events that are dealt with: what was run for them is safe.
    pub(crate) done: mpsc::UnboundedReceiver<Offset>,
    /// What is to run once more because somebody asked for it.
    pub(crate) again: mpsc::Receiver<Asked>,
    /// Whether hooks are to run here; nothing until that is known.
    pub(crate) leads: watch::Receiver<Option<bool>>,
    /// True: take no more events.
    pub(crate) stop_taking: watch::Receiver<bool>,
    /// True: end what runs.
    pub(crate) stop_running: watch::Receiver<bool>,
}

/// A hook that is to run, with its counters.
type Called = (Arc<Hook>, Arc<Counters>);

/// What hooks get of an event.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) reference: EventRef,
    pub(crate) facts: Facts,
}

/// The dispatcher at work.
struct Work {
    dispatcher: Dispatcher,
    schedule: Schedule<Run>,
    running: JoinSet<Over>,
    threads: Arc<Threads>,
    /// What runs, by task.
    places: HashMap<Id, (Taken, Run)>,
    repeats: Repeats,
    losses: Losses,
}

/// Something to do.
enum Next {
    Stop,
    Over(Result<(Id, Over), JoinError>),
    Losses,
    Repeat,
    Asked(Asked),
    /// A run for the event of that offset is dealt with.
    Done(Offset),
    /// Nothing where the subscription has ended.
    Delivery(Option<Delivery<Received>>),
}

impl Dispatcher {
    /// Runs hooks until it is told to stop or the subscription ends; then waits for those that run.
    pub(crate) async fn run(mut self) {
        let known = async { self.leads.wait_for(Option::is_some).await.is_ok() };
        tokio::select! {
            _ = known => {}
            _ = self.stop_taking.wait_for(|stop| *stop) => {}
        }
        let work = Work {
            dispatcher: self,
            schedule: Schedule::default(),
            running: JoinSet::new(),
            threads: Arc::default(),
            places: HashMap::new(),
            repeats: Repeats::default(),
            losses: Losses::default(),
        };
        work.run().await;
    }

    /// Which hooks a message makes run, and what they get of it.
    async fn look_at(&self, mut parser: Parser, message: Received) -> (Parser, Option<(Event, Vec<Called>)>) {
        let active = Arc::clone(&self.active.read());
        let options = Arc::clone(&self.options);
        if message.payload().len() < LARGE_BYTES {
            let looked = look(&mut parser, &message, &active, &options);
            return (parser, Some(looked));
        }
        let id = message.id();
        let looked = spawn_blocking(move || {
            let looked = look(&mut parser, &message, &active, &options);
            (parser, Some(looked))
        });
        looked.await.unwrap_or_else(|e| {
            tracing::error!(event = %id, "hooks: an event could not be read: {e}; no hook runs for it");
            (Parser::new(), None)
        })
    }

    /// A run for each host that a hook runs on for an event.
    fn new_runs(&self, (hook, own): &Called, event: &Arc<Event>, words: &Words) -> Vec<Run> {
        let run = |host| {
            let (counters, comes_again) = ([Arc::clone(own), Arc::clone(&self.all)], self.feed.is_durable());
            let (hook, event, options) = (Arc::clone(hook), Arc::clone(event), Arc::clone(&self.options));
            Run::new(hook, counters, event, words.clone(), comes_again, options, self.reports.clone()).on(host)
        };
        let hosts = match words {
            // Where it ran then.
            Words::Recorded { .. } if event.facts.ganeti.is_some() => vec![event.facts.host.clone()],
            _ => targets(hook, event, &self.options),
        };
        hosts.into_iter().map(run).collect()
    }
}

impl Work {
    async fn run(mut self) {
        let mut parser = Parser::new();
        let mut taking = true;
        loop {
            self.start();
            if !taking && self.schedule.waiting() == 0 && self.running.is_empty() {
                break;
            }
            match self.next(taking).await {
                Next::Stop => break,
                Next::Over(run) => self.over(run),
                Next::Losses => self.losses.tell(),
                Next::Repeat => self.repeat(),
                Next::Asked(asked) => self.run_asked(asked),
                Next::Done(offset) => self.dispatcher.feed.done(offset),
                Next::Delivery(Some(Delivery::Message(message))) => {
                    let offset = message.offset();
                    let leads = *self.dispatcher.leads.borrow() != Some(false);
                    let mut looked = None;
                    if leads {
                        (parser, looked) = self.dispatcher.look_at(parser, message).await;
                    }
                    let runs = looked.map(|(event, hooks)| self.runs(&Arc::new(event), hooks)).unwrap_or_default();
                    self.dispatcher.feed.begun(offset, runs.len());
                    runs.into_iter().for_each(|(gates, run)| self.schedule.add(gates, run));
                }
                Next::Delivery(Some(Delivery::Gap(gap))) => self.losses.add(gap),
                Next::Delivery(None) => taking = false,
            }
        }
        self.end().await;
    }

    /// Waits for something to do.
    async fn next(&mut self, taking: bool) -> Next {
        let Work { dispatcher, running, repeats, losses, schedule, places, threads: _ } = self;
        let has_place = places.len() < dispatcher.options.concurrency && !schedule.is_full();
        tokio::select! {
            biased;
            _ = dispatcher.stop_taking.wait_for(|stop| *stop) => Next::Stop,
            Some(run) = running.join_next_with_id(), if !running.is_empty() => Next::Over(run),
            Some(offset) = dispatcher.done.recv() => Next::Done(offset),
            () = losses.due() => Next::Losses,
            () = repeats.due() => Next::Repeat,
            Some(asked) = dispatcher.again.recv(), if !schedule.is_full() => Next::Asked(asked),
            delivery = dispatcher.feed.recv(), if taking && has_place => Next::Delivery(delivery),
        }
    }

    /// The runs of these hooks for an event, and what they wait for.
    fn runs(&self, event: &Arc<Event>, hooks: Vec<Called>) -> Vec<(Gates, Run)> {
        let runs = |hook: Called| {
            let runs = self.dispatcher.new_runs(&hook, event, &Words::OfEvent);
            runs.into_iter().map(move |run| (gates(&hook.0, event), run)).collect::<Vec<_>>()
        };
        hooks.into_iter().flat_map(runs).collect()
    }

    fn run_asked(&mut self, asked: Asked) {
        let (name, event, words) = match asked {
            Asked::Again(Again { hook, arguments, host, event, environment, retry_of }) => {
                let event = Event { reference: event, facts: Facts::recorded(host, &environment) };
                (hook, Arc::new(event), Words::Recorded { arguments, retry_of, by_hand: true })
            }
            Asked::Resume(left) => {
                let now = (Instant::now(), SystemTime::now());
                for resume in left {
                    let pause = resume.due.duration_since(now.1).unwrap_or_default();
                    self.repeats.add(now.0 + pause, Repeat::Left(Box::new(resume)));
                }
                return;
            }
            Asked::For { hook, event } => (hook, event, Words::Shown),
        };
        let active = Arc::clone(&self.dispatcher.active.read());
        let Some(hook) = active.set.named(&name) else {
            tracing::warn!(hook = name, "hooks: it is to run again, but isn't there any more");
            return;
        };
        let called = (Arc::clone(hook), active.counters_of(hook));
        for run in self.dispatcher.new_runs(&called, &event, &words) {
            self.schedule.add(gates(hook, &event), run);
        }
    }

    /// Starts what may start, as long as there are places.
    fn start(&mut self) {
        while self.places.len() < self.dispatcher.options.concurrency
            && let Some((taken, run)) = self.schedule.take()
        {
            let stop = self.dispatcher.stop_running.clone();
            let may_repeat = self.repeats.have_room();
            let task = self.running.spawn(run.clone().run(may_repeat, Arc::clone(&self.threads), stop));
            self.places.insert(task.id(), (taken, run));
        }
    }

    fn over(&mut self, ended: Result<(Id, Over), JoinError>) {
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        let Some((taken, run)) = self.places.remove(&id) else { return };
        match ended {
            Ok((_, Over { repeat_in: Some(pause), .. })) => {
                self.schedule.paused(&taken);
                self.repeats.add(Instant::now() + pause, Repeat::Run(taken, Box::new(run.next_attempt())));
            }
            Ok(_) => self.schedule.ended(taken),
            Err(e) => {
                // A run that panicked is a mistake of ours; the others go on.
                tracing::error!(hook = run.hook.name, "hooks: a run was lost: {e}");
                self.schedule.ended(taken);
                if let Some(offset) = run.offset() {
                    self.dispatcher.feed.done(offset);
                }
            }
        }
    }

    /// Puts those back whose time has come, with their hooks as these are by now.
    fn repeat(&mut self) {
        let active = Arc::clone(&self.dispatcher.active.read());
        while let Some(repeat) = self.repeats.take_due() {
            let Some(hook) = active.set.named(repeat.hook()) else {
                let (hook, event) = (repeat.hook(), repeat.event().id);
                tracing::warn!(hook, %event, "hooks: the hook is gone and does not run again");
                if let Repeat::Run(taken, _) = repeat {
                    self.schedule.given_up(taken);
                }
                continue;
            };
            match repeat {
                Repeat::Run(taken, mut run) => {
                    run.hook = Arc::clone(hook);
                    self.schedule.again(taken, *run);
                }
                Repeat::Left(resume) => {
                    let Resume { again, run, attempt, .. } = *resume;
                    let facts = Facts::recorded(again.host, &again.environment);
                    let event = Arc::new(Event { reference: again.event, facts });
                    let (arguments, retry_of) = (again.arguments, again.retry_of);
                    let words = Words::Recorded { arguments, retry_of, by_hand: false };
                    let called = (Arc::clone(hook), active.counters_of(hook));
                    for one in self.dispatcher.new_runs(&called, &event, &words) {
                        self.schedule.add(gates(hook, &event), one.resumed(run, attempt));
                    }
                }
            }
        }
    }

    async fn end(mut self) {
        self.losses.tell();
        for run in self.schedule.drain() {
            if run.offset().is_none() || !self.dispatcher.feed.is_durable() {
                run.cut_off().await;
            }
        }
        let mut asked_for = 0;
        while self.dispatcher.again.try_recv().is_ok() {
            asked_for += 1;
        }
        if asked_for > 0 {
            tracing::warn!(runs = asked_for, "hooks: runs that were asked for had not begun; they don't");
        }
        let waiting = self.dispatcher.feed.handle().stats().map_or(0, |stats| stats.queued);
        if waiting > 0 && !self.dispatcher.feed.is_durable() {
            tracing::warn!(events = waiting, "hooks: events still waited; no hook runs for them");
        }
        // Nothing more is queued for a reader that is gone.
        self.dispatcher.feed.handle().close();
        while let Some(run) = self.running.join_next_with_id().await {
            self.over(run);
        }
        if self.repeats.len() > 0 {
            let runs = self.repeats.len();
            if self.dispatcher.options.repeats_are_kept {
                tracing::info!(runs, "hooks: runs that failed wait to be repeated; they are after the next start");
            } else {
                tracing::warn!(runs, "hooks: runs that failed waited to be repeated; they are not");
            }
        }
        // What has run is safe in a moment.
        let Work { dispatcher: Dispatcher { mut feed, mut done, reports, .. }, repeats, schedule, .. } = self;
        // The reporter ends when nobody can send to it any more.
        drop((reports, repeats, schedule));
        let deadline = Instant::now() + LAST_DONE;
        while feed.is_durable()
            && let Ok(Some(offset)) = timeout_at(deadline, done.recv()).await
        {
            feed.done(offset);
        }
    }
}

/// What a run waits for.
fn gates(hook: &Hook, event: &Event) -> Gates {
    let object = (hook.order == Order::Object).then(|| match &event.facts.object {
        Some((object, id)) => format!("{object}/{id}").into(),
        None => event.reference.key.clone().into(),
    });
    let hook = hook.concurrency.map(|most| (hook.name.clone().into(), most));
    Gates { object, hook, bytes: event.facts.bytes() }
}

/// A run that is to be repeated.
enum Repeat {
    /// It failed here, and keeps its place.
    Run(Taken, Box<Run>),
    /// An earlier process has left it.
    Left(Box<Resume>),
}

impl Repeat {
    fn hook(&self) -> &str {
        match self {
            Repeat::Run(_, run) => &run.hook.name,
            Repeat::Left(resume) => &resume.again.hook,
        }
    }

    fn event(&self) -> &EventRef {
        match self {
            Repeat::Run(_, run) => &run.event.reference,
            Repeat::Left(resume) => &resume.again.event,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Repeat::Run(_, run) => run.event.facts.bytes(),
            Repeat::Left(resume) => resume.again.arguments.len(),
        }
    }
}

/// Runs that failed, and when they are to be repeated.
#[derive(Default)]
struct Repeats {
    next: u64,
    runs: BTreeMap<(Instant, u64), Repeat>,
    bytes: usize,
}

impl Repeats {
    fn add(&mut self, at: Instant, repeat: Repeat) {
        self.bytes += repeat.bytes();
        self.runs.insert((at, self.next), repeat);
        self.next += 1;
    }

    fn have_room(&self) -> bool {
        self.runs.len() < MOST_REPEATS && self.bytes < MOST_REPEATED_BYTES
    }

    fn len(&self) -> usize {
        self.runs.len()
    }

    /// Completes when one is to be repeated.
    async fn due(&self) {
        match self.runs.first_key_value() {
            Some(((at, _), _)) => sleep_until(*at).await,
            None => std::future::pending().await,
        }
    }

    fn take_due(&mut self) -> Option<Repeat> {
        let first = self.runs.first_entry().filter(|first| first.key().0 <= Instant::now())?;
        let repeat = first.remove();
        self.bytes -= repeat.bytes();
        Some(repeat)
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

fn look(parser: &mut Parser, message: &Received, active: &Active, options: &ExecutorOptions) -> (Event, Vec<Called>) {
    // The header decides also about hooks that want any event: what they get of it is in the payload.
    let header = (message.tag() == PAYLOAD_BASE64).then(|| parser.event_of(message.payload()));
    let hooks = active.set.matching(message.keys(), header.as_ref());
    // One that is repeated may have other arguments by then.
    let wanted = Wanted {
        element: hooks.iter().any(|hook| hook.retries > 0 || want_element(&hook.arguments)),
        json: hooks.iter().any(|hook| want_json(&hook.arguments)),
        ganeti: hooks.iter().any(|hook| matches!(hook.trigger, Trigger::Ganeti { .. })),
    };
    let event = event_for(message, header.as_ref().filter(|_| !hooks.is_empty()), wanted, options);
    let hooks = hooks.into_iter().map(|hook| {
        let counters = active.counters_of(&hook);
        (hook, counters)
    });
    (event, hooks.collect())
}

/// What of an event hooks want, beside what is small.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) element: bool,
    pub(crate) json: bool,
    /// The environment of a Ganeti hook.
    pub(crate) ganeti: bool,
}

/// What hooks get of a message, with the event that is in it if it is one of OpenNebula.
pub(crate) fn event_for(
    message: &Received,
    header: Option<&hookbus_bridges::opennebula::Event<'_>>,
    wanted: Wanted,
    options: &ExecutorOptions,
) -> Event {
    let of_ganeti = || wanted.ganeti.then(|| Facts::of_ganeti(message.payload())).flatten();
    let facts = header.map(|event| Facts::of(event, wanted.element)).or_else(of_ganeti);
    let mut facts = facts.unwrap_or_default();
    if wanted.json {
        facts.json = Some(base64(&options.encoder.structured(message, None)));
    }
    let key = message.keys().nth(1).or_else(|| message.keys().next()).unwrap_or_default();
    let reference = EventRef { id: message.id(), key: String::from_utf8_lossy(key).into_owned(), time: message.time() };
    Event { reference, facts }
}
