//! One run: one hook and one event, from the command line to the record.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hookbus_broker::Offset;
use tokio::sync::{mpsc, watch};

use crate::arguments::Arguments;
use crate::command::CommandLine;
use crate::dispatch::Event;
use crate::executor::ExecutorOptions;
use crate::hook::{Hook, Trigger};
use crate::output::Output;
use crate::process::{Finished, Limits};
use crate::record::{Ending, EventRef, Record, RunId};
use crate::report::Report;
use crate::status::Counters;
use crate::threads::Threads;

/// Where the arguments of a run come from.
#[derive(Clone, Debug)]
pub(crate) enum Words {
    /// From the hook, with what the event has.
    OfEvent,
    /// From a record: it is run again.
    Recorded {
        /// As recorded.
        arguments: String,
        /// The execution that it repeats, among those of its hook.
        retry_of: Option<u64>,
        /// Whether somebody wants it; otherwise it is left from an earlier process.
        by_hand: bool,
    },
    /// From the hook, for an event that somebody has shown it.
    Shown,
}

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Over {
    /// When it is to be repeated, if it is.
    pub(crate) repeat_in: Option<Duration>,
}

#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) hook: Arc<Hook>,
    pub(crate) event: Arc<Event>,
    /// The host that it runs on, if it is another one.
    host: Option<String>,
    /// The hook's own, and those of all.
    counters: [Arc<Counters>; 2],
    words: Words,
    id: RunId,
    /// From 1 on.
    attempt: u32,
    /// Whether the event comes again after a restart, as long as it isn't dealt with.
    comes_again: bool,
    options: Arc<ExecutorOptions>,
    reports: mpsc::Sender<Report>,
}

impl Run {
    pub(crate) fn new(
        hook: Arc<Hook>,
        counters: [Arc<Counters>; 2],
        event: Arc<Event>,
        words: Words,
        comes_again: bool,
        options: Arc<ExecutorOptions>,
        reports: mpsc::Sender<Report>,
    ) -> Self {
        let comes_again = comes_again && matches!(words, Words::OfEvent);
        Run { hook, event, host: None, counters, words, id: RunId::fresh(), attempt: 1, comes_again, options, reports }
    }

    /// The same on another host.
    pub(crate) fn on(self, host: Option<String>) -> Self {
        Run { host, ..self }
    }

    /// One that an earlier process has left.
    pub(crate) fn resumed(self, id: RunId, attempt: u32) -> Self {
        Run { id, attempt, ..self }
    }

    /// The same once more.
    pub(crate) fn next_attempt(self) -> Self {
        Run { attempt: self.attempt + 1, comes_again: false, ..self }
    }

    /// The event that comes again until this, its first attempt, is dealt with.
    pub(crate) fn offset(&self) -> Option<Offset> {
        self.comes_again.then_some(self.event.reference.id.offset)
    }

    /// Executes it and has it reported. Its task ends when the record is on its way, so that records can't pile up either.
    pub(crate) async fn run(self, may_repeat: bool, threads: Arc<Threads>, stop: watch::Receiver<bool>) -> Over {
        let running = self.counters.each_ref().map(Counters::start);
        let (line, arguments) = self.line();
        let input = if self.hook.arguments_stdin { arguments.input() } else { String::new() };
        let limits = Limits {
            timeout: self.hook.timeout,
            kill_grace: self.options.kill_grace,
            linger: self.options.linger,
            output_max_bytes: self.options.output_max_bytes,
        };
        let finished = threads.run(&line, input, limits, stop).await;
        drop(running);
        let failed = !finished.ending.is_success() && finished.ending != Ending::Interrupted;
        let repeat_in =
            (failed && self.attempt <= self.hook.retries && may_repeat).then(|| self.hook.backoff(self.attempt + 1));
        self.report(&line, &arguments, finished, repeat_in).await;
        Over { repeat_in }
    }

    /// Records that it didn't run because the executor ends.
    pub(crate) async fn cut_off(self) {
        let running = self.counters.each_ref().map(Counters::start);
        let (line, arguments) = self.line();
        let mut stderr = Output::default();
        stderr.push_line("Not started: hookbus ends");
        drop(running);
        let finished = Finished {
            started: SystemTime::now(),
            duration: Duration::ZERO,
            ending: Ending::Interrupted,
            left_behind: false,
            stdout: Output::default(),
            stderr,
        };
        self.report(&line, &arguments, finished, None).await;
    }

    async fn report(&self, line: &CommandLine, arguments: &Arguments, finished: Finished, repeat_in: Option<Duration>) {
        self.counters.iter().for_each(|counters| counters.ended(finished.ending));
        let cut_off = finished.ending == Ending::Interrupted && self.hook.retries > 0;
        let resume = match repeat_in {
            Some(_) => Some(self.attempt + 1),
            // With a journal the event comes again.
            None => (cut_off && !self.comes_again).then_some(self.attempt),
        };
        // What was cut off and may be repeated comes again.
        let done = self.offset().filter(|_| !cut_off);
        let record = Record {
            hook: Arc::clone(&self.hook),
            event: self.event.reference.clone(),
            host: self.host.clone(),
            attempt: self.attempt,
            by_hand: match self.words {
                Words::OfEvent => false,
                Words::Recorded { by_hand, .. } => by_hand,
                Words::Shown => true,
            },
            retry_of: match self.words {
                Words::Recorded { retry_of, .. } => retry_of,
                Words::OfEvent | Words::Shown => None,
            },
            repeat_in,
            run: self.id,
            resume,
            started: finished.started,
            duration: finished.duration,
            command: line.line().to_owned(),
            arguments: arguments.text(),
            environment: line.environment().to_vec(),
            ending: finished.ending,
            left_behind: finished.left_behind,
            stdout: finished.stdout,
            stderr: finished.stderr,
        };
        // The reporter lives longer than any run.
        let _ = self.reports.send(Report { record: Arc::new(record), done }).await;
    }

    fn line(&self) -> (CommandLine, Arguments) {
        let hook = &*self.hook;
        let facts = &self.event.facts;
        let arguments = match &self.words {
            Words::OfEvent | Words::Shown => facts.arguments(&hook.arguments),
            Words::Recorded { arguments, .. } => Arguments::again(arguments, &hook.arguments),
        };
        (command_line(hook, &arguments, &self.event, self.host.as_deref(), &self.options), arguments)
    }
}

/// The hosts that a hook runs on for an event, one run for each; nothing is this one. A hook with REMOTE doesn't run for an event that names no
/// host, nor one of Ganeti's where the operation has no such node.
pub(crate) fn targets(hook: &Hook, event: &Event, options: &ExecutorOptions) -> Vec<Option<String>> {
    let (Event { reference, facts }, name) = (event, &hook.name);
    let targets = match (&hook.trigger, &facts.ganeti) {
        (Trigger::Ganeti { node: place, .. }, Some(ganeti)) => {
            let host = |node: &str| (!is_same_host(node, &options.node)).then(|| node.to_owned());
            ganeti.nodes(*place).into_iter().filter(|node| !node.is_empty()).map(host).collect()
        }
        _ if hook.remote => facts.host.iter().cloned().map(Some).collect(),
        _ => vec![None],
    };
    if targets.is_empty() {
        let EventRef { id, key, .. } = reference;
        tracing::info!(hook = name, event = %id, key, "hooks: the event names no host for this hook (REMOTE, NODE), so it doesn't run");
    }
    targets
}

/// Whether two names are of one host; one of them may be without a domain.
fn is_same_host(one: &str, other: &str) -> bool {
    let short = |name: &str| name.split('.').next().unwrap_or_default().to_ascii_lowercase();
    let whole = |name: &str| name.contains('.');
    one.eq_ignore_ascii_case(other) || short(one) == short(other) && !(whole(one) && whole(other))
}

/// What is executed for a hook with these arguments.
pub(crate) fn command_line(
    hook: &Hook,
    arguments: &Arguments,
    event: &Event,
    host: Option<&str>,
    options: &ExecutorOptions,
) -> CommandLine {
    let line = line_of(hook, arguments, options);
    let line = match (&hook.trigger, &event.facts.ganeti) {
        (Trigger::Ganeti { .. }, Some(ganeti)) => line.with_this_environment(ganeti.environment().to_vec()),
        _ => line.with_environment(event.facts.environment(&event.reference)),
    };
    match host {
        Some(host) => line.on_host(&options.ssh, host, hook.arguments_stdin),
        None => line,
    }
}

/// The line, without an environment, and wherever it runs.
pub(crate) fn line_of(hook: &Hook, arguments: &Arguments, options: &ExecutorOptions) -> CommandLine {
    let in_line = (!hook.arguments_stdin).then_some(arguments);
    let base_path = if hook.remote { &options.remote_base_path } else { &options.base_path };
    CommandLine::new(base_path, &hook.command, in_line)
}
