//! The [`Executor`]: runs the hooks that events call for, a bounded number at once.
//!
//! ```text
//!                       one task                one task, one thread each        one task
//! Broker ─▶ subscription ─▶ dispatcher ─▶ process ─▶ process ─▶ ... ─▶ mpsc ─▶ reporter ─▶ log, recorders
//!   ▲        `hooks`          │ set          ╰────── concurrency ─────╯            │
//!   ╰───────────────────────── HOOKBUS HOOK <name>/<success or failure> ◀──────────╯
//! ```
//!
//! The queues, and their bounds: the subscription's high-water mark; what hooks with ORDER or CONCURRENCY hold back, at most 1,000 runs and 64 MiB;
//! runs that failed and are to be repeated, at most 10,000 and 64 MiB; `concurrency` runs with their outputs; as many records that
//! wait for the reporter.
//!
//! # Guarantees
//!
//! - **Order**: hooks are started in the order of events, and for one event in the order of the set. They run side by side, so they may
//!   end in any order; records are reported in the order in which they ended. Hooks with ORDER = object run one after the other for each
//!   object. One with CONCURRENCY that has to wait is overtaken by others.
//! - **Loss**, from a queue in memory: only at the subscription's high-water mark, which is logged and counted, and at the end: what still waits at the deadline of
//!   [`shutdown`](Executor::shutdown), or when the process is killed, isn't run.
//!   With a cursor in the journal ([`start_durable`](Executor::start_durable)): only what the journal has to let go, which is told.
//! - What is to be repeated (RETRIES) waits in memory; where a recorder keeps it, an executor that is started later [resumes](Executor::resume) it.
//! - **Repetition**: a hook runs once for an event; one with RETRIES again as long as it fails, so many times. With a cursor, what was
//!   under way when the process was killed runs again, and some of what was done beside it.
//! - Results of hooks never make a hook run.

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hookbus_bridges::PAYLOAD_BASE64;
use hookbus_bridges::cloudevents::{Encoder, Sources};
use hookbus_bridges::opennebula::Parser;
use hookbus_broker::{
    Broker, EventId, JournalError, LogId, Message, Offset, Overflow, Received, Start, SubscribeOptions,
};
use parking_lot::{Mutex, RwLock};
use serde::Serialize;
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use crate::arguments::{Facts, want_json};
use crate::dispatch::{Dispatcher, Event, Wanted, event_for};
use crate::feed::{Feed, Probe, ProgressSink};
use crate::hook::{Hook, Trigger};
use crate::process::sigchld_is_ignored;
use crate::record::{EventRef, Recorder, RunId};
use crate::report::report;
use crate::run::{command_line, line_of, targets};
pub use crate::run_if::RunIf;
use crate::run_if::ask;
use crate::set::HookSet;
use crate::status::{Active, ExecutorStatus};

/// How hooks are executed.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ExecutorOptions {
    /// Where commands are that don't begin with `/`. `/var/lib/one/remotes/hooks` unless set.
    pub base_path: PathBuf,
    /// The same on other hosts, for hooks with REMOTE. `/var/tmp/one/hooks` unless set.
    pub remote_base_path: PathBuf,
    /// What runs a command on another host. `ssh` unless set.
    pub ssh: PathBuf,
    /// What Ganeti calls this host: hooks of TYPE ganeti for other nodes run over ssh. The name of this host unless set.
    pub node: String,
    /// What decides whether hooks run; they always do unless set.
    pub run_if: Option<RunIf>,
    /// What makes CloudEvents for hooks that want one. Named after this host unless set.
    pub encoder: Encoder,
    /// How many hooks run at once. 10 unless set; 0 counts as 1.
    pub concurrency: usize,
    /// What is kept of each of a command's two outputs, in bytes. 1 MiB unless set.
    pub output_max_bytes: usize,
    /// High-water mark of the subscription in messages, 0 for none. 100,000 unless set.
    pub hwm: usize,
    /// The same in bytes. 256 MiB unless set.
    pub hwm_bytes: usize,
    /// What happens there. The newest events are dropped unless set.
    pub overflow: Overflow,
    /// How long a process group has between TERM and KILL. 5 s unless set.
    pub kill_grace: Duration,
    /// How long output is read after the command has ended, where something that it left behind holds it open. 5 s unless set.
    pub linger: Duration,
    /// Whether a recorder keeps what is to be repeated, so that it is [resumed](Executor::resume) after a restart. Not unless set.
    pub repeats_are_kept: bool,
    /// Who is told how far events are dealt with, and brings the others again after a restart. Nobody unless set; a cursor needs none.
    pub progress: Option<Arc<dyn ProgressSink>>,
    /// Who else gets the records. Nobody unless set.
    pub recorders: Vec<Arc<dyn Recorder>>,
}

impl Default for ExecutorOptions {
    fn default() -> Self {
        ExecutorOptions {
            base_path: "/var/lib/one/remotes/hooks".into(),
            remote_base_path: "/var/tmp/one/hooks".into(),
            ssh: "ssh".into(),
            node: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            run_if: None,
            encoder: Encoder::new(Sources {
                host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
                zone: None,
            }),
            concurrency: 10,
            output_max_bytes: 1 << 20,
            hwm: 100_000,
            hwm_bytes: 256 << 20,
            overflow: Overflow::DropNewest,
            kill_grace: Duration::from_secs(5),
            linger: Duration::from_secs(5),
            repeats_are_kept: false,
            progress: None,
            recorders: Vec::new(),
        }
    }
}

/// A run that somebody asked for: what was recorded is done once more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Again {
    /// The name of the hook. Its command is what it is now.
    pub hook: String,
    /// The arguments, as [recorded](crate::Record::arguments).
    pub arguments: String,
    /// The host of the event, for a hook with REMOTE.
    pub host: Option<String>,
    /// The event that it ran for, or the one that asks for it.
    pub event: EventRef,
    /// What its environment told of the event, as [recorded](crate::Record::environment); empty where that isn't known.
    pub environment: Vec<(String, String)>,
    /// Which execution of the same hook is repeated, for the [record](crate::Record::retry_of).
    pub retry_of: Option<u64>,
}

/// A run that an earlier process has left: the next attempt of one that failed, or one that was cut off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resume {
    /// What is run, as it was recorded.
    pub again: Again,
    /// Which attempt it is, from 1 on.
    pub attempt: u32,
    /// The [run](crate::Record::run) that it is an attempt of.
    pub run: RunId,
    /// When it is due.
    pub due: SystemTime,
}

/// What somebody wants to run.
#[derive(Debug)]
pub(crate) enum Asked {
    /// What an earlier process has left.
    Resume(Vec<Resume>),
    /// What was recorded.
    Again(Again),
    /// A hook, for an event that it is shown.
    For { hook: String, event: Arc<Event> },
}

/// What a hook would do for an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Preview {
    /// Whether the event makes this hook run.
    pub matches: bool,
    /// The event's key; that of the STATE form, where it has several.
    pub key: String,
    /// The command line, with the arguments unless they go to standard input.
    pub command: String,
    /// The arguments, expanded.
    pub arguments: String,
    /// Whether they go to standard input.
    pub arguments_stdin: bool,
    /// What its environment would tell of the event.
    pub environment: Vec<(Cow<'static, str>, String)>,
    /// The host that it would run on, for a hook with REMOTE.
    pub host: Option<String>,
    /// Why it could not run, where that can be seen now.
    pub obstacle: Option<String>,
}

/// Too many runs were asked for and not begun yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{MOST_ASKED_FOR} runs that were asked for wait to begin; ask again when hooks have ended")]
pub struct TooManyAgain;

/// How many runs may be asked for before the first of them begins.
const MOST_ASKED_FOR: usize = 1000;

/// Executes hooks. It lives on the tokio runtime that it was started on. Dropping it kills what runs, without a record; see
/// [`shutdown`](Executor::shutdown).
#[derive(Debug)]
pub struct Executor {
    active: Arc<RwLock<Arc<Active>>>,
    /// Held while hooks are replaced.
    replacing: Mutex<()>,
    probe: Probe,
    options: Arc<ExecutorOptions>,
    again: mpsc::Sender<Asked>,
    leads: watch::Receiver<Option<bool>>,
    stop_taking: watch::Sender<bool>,
    stop_running: watch::Sender<bool>,
    /// The dispatcher and the reporter; taken by whoever waits for their end.
    tasks: Mutex<Option<[JoinHandle<()>; 2]>>,
}

impl Executor {
    /// Starts it: subscribes under the name `hooks`, and runs what matches from then on.
    ///
    /// Two things about the process are put right for the sake of commands: descriptors that it inherited are marked to be
    /// closed on exec, and SIGCHLD gets a handler where it is ignored, because a process that was started so could not wait for anybody.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O and time enabled.
    pub fn start(broker: &Broker, hooks: HookSet, options: ExecutorOptions) -> Self {
        let subscription = broker.subscribe(subscribe(&hooks, &options));
        let feed = match &options.progress {
            Some(sink) => Feed::tracked(subscription, Arc::clone(sink)),
            None => Feed::Memory(subscription),
        };
        Executor::run(broker, hooks, options, feed)
    }

    /// The same with a cursor of that name in the broker's journal: events that come while it is down are for it when it is back.
    /// `overflow` of the options isn't used.
    ///
    /// # Errors
    /// When the broker has no journal, or the cursor can't be had.
    ///
    /// # Panics
    /// As [`start`](Executor::start). The runtime has to put up with tasks that wait for a disk.
    pub fn start_durable(
        broker: &Broker,
        hooks: HookSet,
        options: ExecutorOptions,
        cursor: &str,
    ) -> Result<Self, JournalError> {
        let subscription = broker.subscribe_durable(subscribe(&hooks, &options), cursor, Start::Latest)?;
        Ok(Executor::run(broker, hooks, options, Feed::durable(subscription)))
    }

    fn run(broker: &Broker, hooks: HookSet, options: ExecutorOptions, feed: Feed) -> Self {
        close_fds::set_fds_cloexec(3, &[]);
        // Not elsewhere: each command's end would interrupt a thread and wake the runtime, for nobody.
        if sigchld_is_ignored()
            && let Err(e) = signal(SignalKind::child())
        {
            tracing::warn!("hooks: cannot handle SIGCHLD: {e}; if it is ignored, exit codes of hooks are lost");
        }
        let options = ExecutorOptions {
            base_path: std::path::absolute(&options.base_path).unwrap_or_else(|_| options.base_path.clone()),
            concurrency: options.concurrency.max(1),
            ..options
        };
        let probe = feed.probe();

        let active = Arc::new(RwLock::new(Arc::new(Active::default().succeeded_by(hooks))));
        let (stop_taking, stop_taking_receiver) = watch::channel(false);
        let (stop_running, stop_running_receiver) = watch::channel(false);
        let (reports, records) = mpsc::channel(options.concurrency);
        let (done, done_receiver) = mpsc::unbounded_channel();
        let reporter = tokio::spawn(report(records, done, broker.clone(), options.recorders.clone()));
        let all = Arc::clone(&active.read().all);
        let (answer, leads) = watch::channel(options.run_if.is_none().then_some(true));
        if let Some(run_if) = options.run_if.clone() {
            tokio::spawn(ask(run_if, options.base_path.clone().into(), options.kill_grace, answer));
        }
        let (again, asked_for) = mpsc::channel(MOST_ASKED_FOR);
        let options = Arc::new(options);
        let dispatcher = Dispatcher {
            feed,
            active: Arc::clone(&active),
            all,
            options: Arc::clone(&options),
            reports,
            done: done_receiver,
            again: asked_for,
            leads: leads.clone(),
            stop_taking: stop_taking_receiver,
            stop_running: stop_running_receiver,
        };
        Executor {
            active,
            replacing: Mutex::new(()),
            probe,
            options,
            again,
            leads,
            stop_taking,
            stop_running,
            tasks: Mutex::new(Some([tokio::spawn(dispatcher.run()), reporter])),
        }
    }

    /// Puts other hooks in the place of those that there are. A hook that stays misses no event; those that run are not
    /// touched. What waits in the subscription is for the new ones.
    pub fn replace(&self, hooks: HookSet) {
        let _replacing = self.replacing.lock();
        let old = Arc::clone(&self.active.read());
        let (before, after) = (old.set.prefixes(), hooks.prefixes());
        // Nothing may fall between what was subscribed and what is going to be.
        self.probe.handle().add_prefixes(after.difference(&before));
        *self.active.write() = Arc::new(old.succeeded_by(hooks));
        self.probe.handle().remove_prefixes(before.difference(&after));
    }

    /// Runs a hook once more, as it was recorded. Where `run_if` says no, too: somebody wants it. A hook that isn't there by then is logged.
    ///
    /// # Errors
    /// When too much was asked for that has not begun yet.
    pub fn run_again(&self, again: Again) -> Result<(), TooManyAgain> {
        self.again.try_send(Asked::Again(again)).map_err(|_| TooManyAgain)
    }

    /// Runs a hook for an event that it is shown, whether or not that makes it run, and where `run_if` says no, too. Nothing is published but the result.
    ///
    /// # Errors
    /// When too much was asked for that has not begun yet.
    pub fn run_for(&self, hook: &Hook, message: &Received) -> Result<(), TooManyAgain> {
        let (event, _) = self.shown(hook, message);
        self.again.try_send(Asked::For { hook: hook.name.clone(), event: Arc::new(event) }).map_err(|_| TooManyAgain)
    }

    /// The hooks of TYPE ganeti that this message is going to make run, once for each run: who waits for what they say knows whom to wait for.
    /// Nothing where `run_if` says no.
    pub fn ganeti_runs(&self, message: &Message) -> Vec<String> {
        if *self.leads.borrow() == Some(false) {
            return Vec::new();
        }
        let Some(facts) = Facts::of_ganeti(message.payload()) else { return Vec::new() };
        let key = message.keys().last().map(String::from_utf8_lossy).unwrap_or_default().into_owned();
        let id = EventId { log: LogId::new(0), offset: Offset::new(0) };
        let event = Event { reference: EventRef { id, key, time: SystemTime::now().into() }, facts };
        let hooks = self.active.read().set.matching(message.keys(), None);
        let of_ganeti = hooks.into_iter().filter(|hook| matches!(hook.trigger, Trigger::Ganeti { .. }));
        of_ganeti
            .flat_map(|hook| targets(&hook, &event, &self.options).into_iter().map(move |_| hook.name.clone()))
            .collect()
    }

    /// What a hook would do for an event. Nothing is executed.
    pub fn preview(&self, hook: &Hook, message: &Received) -> Preview {
        let (event, matches) = self.shown(hook, message);
        let arguments = event.facts.arguments(&hook.arguments);
        let targets = targets(hook, &event, &self.options);
        let host = targets.first().cloned().flatten();
        let line = command_line(hook, &arguments, &event, host.as_deref(), &self.options);
        let obstacle = if targets.is_empty() && hook.remote {
            Some("the event names no host, and the hook has REMOTE = yes".to_owned())
        } else if targets.is_empty() {
            Some("the operation has no node where the hook would run; see NODE".to_owned())
        } else {
            line.obstacle().filter(|_| host.is_none())
        };
        Preview {
            matches,
            command: line.line().to_owned(),
            arguments: arguments.text(),
            arguments_stdin: hook.arguments_stdin,
            environment: line.environment().to_vec(),
            host,
            obstacle,
            key: event.reference.key,
        }
    }

    /// Why the command of a hook could not run now: it isn't there, or may not be executed. Nothing where that can't be told: a shell or another
    /// host finds it.
    pub fn obstacle(&self, hook: &Hook) -> Option<String> {
        let line = line_of(hook, &Facts::default().arguments(&hook.arguments), &self.options);
        line.obstacle().filter(|_| !hook.remote)
    }

    fn shown(&self, hook: &Hook, message: &Received) -> (Event, bool) {
        let mut parser = Parser::new();
        let header = (message.tag() == PAYLOAD_BASE64).then(|| parser.event_of(message.payload()));
        let matches = !HookSet::new([hook.clone()]).matching(message.keys(), header.as_ref()).is_empty();
        let ganeti = matches!(hook.trigger, Trigger::Ganeti { .. });
        let wanted = Wanted { element: true, json: want_json(&hook.arguments), ganeti };
        let event = event_for(message, header.as_ref(), wanted, &self.options);
        (event, matches)
    }

    /// Takes over what an earlier process has left, to be run when it is due. A hook that isn't there by then is logged.
    ///
    /// # Errors
    /// When too much was asked for that has not begun yet.
    pub fn resume(&self, left: Vec<Resume>) -> Result<(), TooManyAgain> {
        if left.is_empty() {
            return Ok(());
        }
        self.again.try_send(Asked::Resume(left)).map_err(|_| TooManyAgain)
    }

    /// How many events wait.
    pub fn waiting(&self) -> u64 {
        self.probe.waiting()
    }

    /// How many events there were, from the beginning, that hooks may be for.
    pub fn matched(&self) -> u64 {
        self.probe.stats().map_or(0, |stats| stats.matched)
    }

    /// Its counters.
    pub fn status(&self) -> ExecutorStatus {
        let active = Arc::clone(&self.active.read());
        let hooks = active.hooks();
        ExecutorStatus {
            hooks,
            running: active.all.running(),
            leads: *self.leads.borrow(),
            concurrency: self.options.concurrency,
            durable: self.probe.is_durable(),
            waiting: self.probe.waiting(),
            dropped: self.probe.stats().map_or(0, |stats| stats.dropped),
        }
    }

    /// Ends it in order: nothing more is queued for it, hooks run for the events that wait until the deadline, then what runs is
    /// ended, and all of it reported. Events that still wait then are told with their number. It returns at the latest about [`kill_grace`](ExecutorOptions::kill_grace) and three seconds after the deadline.
    ///
    /// What is called a second time returns at once.
    pub async fn shutdown(&self, deadline: Instant) {
        let Some([dispatcher, reporter]) = self.tasks.lock().take() else { return };
        let (mut dispatcher, mut reporter) = (Ending(dispatcher), Ending(reporter));
        if self.probe.is_durable() {
            // What waits is safe where it is.
            self.stop_taking.send_replace(true);
        } else {
            self.probe.handle().close();
        }
        if timeout_at(deadline, &mut dispatcher.0).await.is_err() {
            self.stop_taking.send_replace(true);
            self.stop_running.send_replace(true);
            let _ = (&mut dispatcher.0).await;
        }
        // It ends when the last run has sent its record.
        let _ = (&mut reporter.0).await;
    }
}

/// A task that doesn't outlive who waits for its end.
struct Ending(JoinHandle<()>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What to subscribe to.
fn subscribe(hooks: &HookSet, options: &ExecutorOptions) -> SubscribeOptions {
    let mut subscribe =
        SubscribeOptions::new("hooks").hwm(options.hwm).hwm_bytes(options.hwm_bytes).overflow(options.overflow);
    subscribe.prefixes = hooks.prefixes().into_iter().map(Vec::into_boxed_slice).collect();
    subscribe
}

impl Drop for Executor {
    fn drop(&mut self) {
        if let Some(tasks) = self.tasks.get_mut() {
            tasks.iter().for_each(JoinHandle::abort);
        }
    }
}
