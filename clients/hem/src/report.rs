//! The reporter: one task that tells what came of each execution, to the log, to the recorders, and to the bus.
//!
//! The result is published, and what made the hook run counts as done, when the recorders have what they were given: so whoever learns of a result
//! finds it in the hook log, and a crash loses no execution that was told. Recorders gather what comes at the same time (10 ms, for the store),
//! so records wait for them side by side: at most [`MOST_WAITING`], and [`MOST_WAITING_BYTES`].
//!
//! It never keeps hooks from running for good. A disk that can't be written is waited for [`PATIENCE`] once, and results are published without it until
//! it answers again; what is done is told only when it is safe. A subscription that blocks publishers may be full, and it may even be the executor's own,
//! which has room only when a hook has ended; so a publish waits [`PATIENCE`] for room and then goes through all the same, and such a
//! subscription drops its oldest message and is told. As long as that goes on, nothing waits.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use hookbus_broker::{Broker, Message, Offset, PublishError, TryPublishError};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};

use crate::output::Output;
use crate::record::{Ending, Kept, Record, Recorder, signal_name};
use crate::text;

/// How long the result of a hook waits to be written down, and for room in a subscription that blocks.
const PATIENCE: Duration = Duration::from_secs(1);
/// How much of each output the log shows, in bytes; the event has all that was kept.
const SHOWN_OUTPUT_BYTES: usize = 1000;

/// How many records wait for the recorders at once, and what they hold, in bytes. Beyond that, runs wait with theirs.
const MOST_WAITING: usize = 1000;
const MOST_WAITING_BYTES: usize = 64 << 20;

/// What came of a run.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) record: Arc<Record>,
    /// The event that is dealt with when the record is safe.
    pub(crate) done: Option<Offset>,
}

/// Reports in the order in which reports come, until nobody sends any more. What is dealt with is told to `done`.
pub(crate) async fn report(
    mut reports: mpsc::Receiver<Report>,
    done: mpsc::UnboundedSender<Offset>,
    broker: Broker,
    recorders: Vec<Arc<dyn Recorder>>,
) {
    let mut publisher = Publisher { broker, patient: true };
    let mut patience = Patience::default();
    let mut waiting: VecDeque<Waiting> = VecDeque::new();
    let mut waiting_bytes = 0;
    loop {
        let has_room = waiting.len() < MOST_WAITING && waiting_bytes < MOST_WAITING_BYTES;
        tokio::select! {
            biased;
            () = first_kept(&mut waiting, &mut patience) => {
                if let Some(Waiting { record, bytes, .. }) = waiting.pop_front() {
                    waiting_bytes -= bytes;
                    publisher.publish(record.to_message()).await;
                }
            }
            report = reports.recv(), if has_room => {
                let Some(Report { record, done: event }) = report else { break };
                log(&record);
                let kept = keep(&recorders, &record, event, &done);
                let bytes = size_bytes(&record);
                waiting_bytes += bytes;
                waiting.push_back(Waiting { record, kept, bytes });
            }
        }
    }
    while !waiting.is_empty() {
        first_kept(&mut waiting, &mut patience).await;
        if let Some(Waiting { record, .. }) = waiting.pop_front() {
            publisher.publish(record.to_message()).await;
        }
    }
}

/// Gives a record to the recorders. What is dealt with is told when it is safe, however late that is.
fn keep(
    recorders: &[Arc<dyn Recorder>],
    record: &Arc<Record>,
    event: Option<Offset>,
    done: &mpsc::UnboundedSender<Offset>,
) -> Option<Kept> {
    let mut kept: Vec<Kept> = recorders.iter().filter_map(|recorder| recorder.record(record)).collect();
    let kept = if kept.len() > 1 { Some(Box::pin(join_all(kept).map(drop)) as Kept) } else { kept.pop() };
    let Some(event) = event else { return kept };
    let done = done.clone();
    let tell = move || {
        // Nobody listens any more where the executor was dropped.
        let _ = done.send(event);
    };
    let Some(kept) = kept else {
        tell();
        return None;
    };
    // A task of its own: it may be waited for in vain here.
    let kept = tokio::spawn(kept.map(move |()| tell()));
    Some(Box::pin(kept.map(drop)))
}

/// A record that is published when it is safe.
struct Waiting {
    record: Arc<Record>,
    kept: Option<Kept>,
    bytes: usize,
}

/// How long recorders are waited for.
#[derive(Default)]
struct Patience {
    /// Until when, for the first record that waits.
    until: Option<Instant>,
    /// There since they were waited for in vain; true when they have answered after all.
    exhausted: Option<Arc<AtomicBool>>,
}

/// Completes when the first of them is safe, or was waited for long enough. Cancelling loses nothing.
async fn first_kept(waiting: &mut VecDeque<Waiting>, patience: &mut Patience) {
    let Some(first) = waiting.front_mut() else { return std::future::pending().await };
    if patience.exhausted.as_ref().is_some_and(|answered| answered.load(Relaxed)) {
        tracing::info!("hooks: the log of executions can be written again");
        patience.exhausted = None;
    }
    if let (Some(kept), None) = (&mut first.kept, &patience.exhausted) {
        let until = *patience.until.get_or_insert_with(|| Instant::now() + PATIENCE);
        if timeout_at(until, kept).await.is_err()
            && let Some(kept) = first.kept.take()
        {
            tracing::warn!("hooks: the log of executions can't be written; results are published without it");
            let answered = Arc::new(AtomicBool::new(false));
            patience.exhausted = Some(Arc::clone(&answered));
            tokio::spawn(kept.map(move |()| answered.store(true, Relaxed)));
        }
    }
    patience.until = None;
}

fn size_bytes(record: &Record) -> usize {
    let output = |output: &Output| output.head.len() + output.tail.len();
    512 + record.command.len() + record.arguments.len() + output(&record.stdout) + output(&record.stderr)
}

fn log(record: &Record) {
    let (hook, event, key) = (record.hook.name.as_str(), record.event.id, record.event.key.as_str());
    let (code, duration_ms) = (record.ending.code(), record.duration.as_millis());
    let (stdout, stderr) = (shown(&record.stdout), shown(&record.stderr));
    let (stdout, stderr) = (stdout.as_deref(), stderr.as_deref());
    if record.ending.is_success() {
        tracing::info!(hook, %event, key, code, duration_ms, stdout, stderr, "hooks: ran");
    } else {
        let reason = match record.ending {
            Ending::Exited(_) => "exited with an error".to_owned(),
            Ending::Signalled(signal) => format!("was killed by SIG{}", signal_name(signal).unwrap_or("?")),
            Ending::TimedOut => "exceeded its TIMEOUT and was ended".to_owned(),
            Ending::Interrupted => "was cut off".to_owned(),
            Ending::NotStarted => "could not be started".to_owned(),
        };
        tracing::warn!(hook, %event, key, code, duration_ms, stdout, stderr, "hooks: the command {reason}");
    }
    if record.is_final_failure() {
        tracing::error!(hook, %event, key, attempts = record.attempt, "hooks: that was the last attempt");
    }
    if record.left_behind {
        tracing::warn!(
            hook,
            %event,
            "hooks: the command left processes behind that held its output open; they were ended. A daemon has to redirect its output"
        );
    }
}

/// The beginning of an output, if there is any.
fn shown(output: &Output) -> Option<String> {
    let text = output.text();
    match text.trim_end() {
        "" => None,
        text => match text::beginning(text, SHOWN_OUTPUT_BYTES) {
            beginning if beginning.len() < text.len() => Some(format!("{beginning}...")),
            _ => Some(text.to_owned()),
        },
    }
}

struct Publisher {
    broker: Broker,
    /// False since a publish waited in vain, until one finds room.
    patient: bool,
}

impl Publisher {
    async fn publish(&mut self, message: Message) {
        let result = match self.broker.try_publish(message) {
            Ok(_) => {
                self.patient = true;
                return;
            }
            Err((TryPublishError::Refused(e), _)) => Err(e),
            Err((TryPublishError::WouldBlock, message)) => {
                // A publish that is cancelled has delivered to nobody.
                let waited = if self.patient {
                    timeout(PATIENCE, self.broker.publish(message.clone())).await.ok()
                } else {
                    None
                };
                waited.unwrap_or_else(|| {
                    self.patient = false;
                    self.broker.publish_now(message)
                })
            }
        };
        match result {
            // A broker that is closed has no subscribers any more.
            Ok(_) | Err(PublishError::Closed) => {}
            Err(e) => tracing::error!("hooks: the result of a hook was not published: {e}"),
        }
    }
}
