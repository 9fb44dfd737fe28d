//! The reporter: one task that tells what came of each execution, to the log, to the recorders, and to the bus.
//!
//! It never keeps hooks from running for good. A subscription that blocks publishers may be full, and it may even be the executor's own,
//! which has room only when a hook has ended; so a publish waits [`PATIENCE`] for room and then goes through all the same, and such a
//! subscription drops its oldest message and is told. As long as that goes on, nothing waits.

use std::sync::Arc;
use std::time::Duration;

use hookbus_broker::{Broker, Message, PublishError, TryPublishError};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::output::Output;
use crate::record::{Ending, Record, Recorder, signal_name};
use crate::text;

/// How long the result of a hook waits for room in a subscription that blocks.
const PATIENCE: Duration = Duration::from_secs(1);
/// How much of each output the log shows, in bytes; the event has all that was kept.
const SHOWN_OUTPUT_BYTES: usize = 1000;

/// Reports records in the order in which they come, until nobody sends any more.
pub(crate) async fn report(
    mut records: mpsc::Receiver<Arc<Record>>,
    broker: Broker,
    recorders: Vec<Arc<dyn Recorder>>,
) {
    let mut publisher = Publisher { broker, patient: true };
    while let Some(record) = records.recv().await {
        log(&record);
        for recorder in &recorders {
            recorder.record(&record);
        }
        publisher.publish(record.to_message()).await;
    }
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
