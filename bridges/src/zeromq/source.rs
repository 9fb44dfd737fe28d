//! OpenNebula's own driver as a source: for sites that can't put hookbus in its place yet.
//!
//! A stock `one_hm` publishes each event under one key (API calls) or two or three (state changes), all with the same content. We subscribe to
//! `EVENT STATE ` and `EVENT API ` only, which is each event once, and make of the content what the driver protocol makes of it: all keys,
//! those of services too, and the base64 text as it came. So subscribers, hooks and bridges see no difference to `hookbus hm`; code for the
//! events is shared with it ([`Parser::content`]). The key in the message only says whether it is wanted: what it says besides stands in the
//! content, too, where no machine's owner can change it.
//!
//! The socket is always read. A publisher drops what its subscriber is slow to take, in silence, at 1000 messages; so events go to the broker
//! without waiting ([`Broker::publish_now`]), and pressure is settled there, by the policy of each subscription.
//!
//! # Guarantees
//!
//! - **Loss**: what the driver publishes while there is no connection is lost, and nobody can know how much: its events have no numbers, and
//!   its socket keeps nothing for those who are away. That includes the moment after each of its restarts (oned restarts it at once, without a word)
//!   until we are back, 50 to 100 ms at first, and what it drops at its high-water mark. Each loss of the connection is counted and logged, with its length.
//!   Who must not lose events runs `hookbus hm`.
//! - **Order**: the driver hands out events by 15 threads, so that neighbours may have changed places before we see them.
//! - **Repetition**: none, unless prefixes bring several keys of an event; only the `EVENT STATE ` and `EVENT API ` forms are taken, so that
//!   even `EVENT ` brings each event once.
//! - **A driver that vanished** is noticed by heartbeats within 15 s. One that lives and says nothing may be right: clouds are quiet at
//!   night. It is shown as `silent` after an hour, and logged once.
//! - An event whose content is no base64, or has no header, is counted, logged (ten lines a minute at most) and skipped: on this way
//!   it didn't come from oned. Neither do RETRY and hookbus's own keys pass.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use hookbus_broker::{Broker, PublishError, Timestamp};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

use super::client::{ClientOptions, SubClient, SubEvent};
use super::endpoint::Endpoint;
use super::message::Frames;
use super::quiet::Quiet;
use crate::cloudevents::rfc3339;
use crate::opennebula::{Input, Oddity, Parser};

/// What is subscribed to unless it is said: each event once.
pub const SOURCE_PREFIXES: [&str; 2] = ["EVENT STATE ", "EVENT API "];

/// The longest message that is taken, as for a line from oned.
const MESSAGE_LIMIT_BYTES: usize = 256 << 20;

/// How a source connects, and when it is called silent.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ZeromqSourceOptions {
    /// Heartbeats, pauses, limits.
    pub client: ClientOptions,
    /// After how long without an event it is shown as silent. One hour unless set.
    pub silence: Duration,
}

impl Default for ZeromqSourceOptions {
    fn default() -> Self {
        ZeromqSourceOptions {
            client: ClientOptions::default().message_limit_bytes(MESSAGE_LIMIT_BYTES),
            silence: Duration::from_secs(3600),
        }
    }
}

impl ZeromqSourceOptions {
    /// Sets heartbeats, pauses and limits.
    #[must_use]
    pub fn client(mut self, client: ClientOptions) -> Self {
        self.client = client;
        self
    }

    /// Sets after how long without an event it is shown as silent.
    #[must_use]
    pub fn silence(mut self, silence: Duration) -> Self {
        self.silence = silence;
        self
    }
}

/// How a source stands. Serialised, the fields of its state stand beside the others: `"state": "connecting"`, `"reason"`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ZeromqSourceStatus {
    /// Its name.
    pub name: Box<str>,
    /// Where the publisher is.
    pub address: Box<str>,
    /// What it does now.
    #[serde(flatten)]
    pub state: SourceState,
    /// Since when it is in that state; `silent`: since when nothing has come. RFC 3339.
    pub since: String,
    /// Events that were published into the broker.
    pub events: u64,
    /// How often there was a connection. Before each but the first, events may have been lost.
    pub connects: u64,
    /// Messages that were not taken for events.
    pub skipped: u64,
    /// Events that the broker didn't take; the log says why.
    pub refused: u64,
}

/// What a source does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum SourceState {
    /// There is no connection; it is tried again, without limit.
    Connecting {
        /// Why there is none; `None` before the first attempt has ended.
        reason: Option<Box<str>>,
    },
    /// There is one, and events come.
    Connected,
    /// There is one, and nothing has come for long.
    Silent,
    /// It has been shut down, or the broker was closed.
    Ended,
}

/// A publisher whose events are taken into a broker, until this is dropped or [shut down](ZeromqSource::shutdown).
///
/// ```no_run
/// use hookbus_bridges::zeromq::{SOURCE_PREFIXES, ZeromqSource};
/// use hookbus_broker::Broker;
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let broker = Broker::default();
/// let source = ZeromqSource::spawn("old-frontend", "tcp://127.0.0.1:2101".parse()?, SOURCE_PREFIXES, broker);
/// println!("{:?}", source.status());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct ZeromqSource {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    name: Box<str>,
    endpoint: Endpoint,
    state: Mutex<(SourceState, Timestamp)>,
    events: AtomicU64,
    connects: AtomicU64,
    skipped: AtomicU64,
    refused: AtomicU64,
    stop: Notify,
}

impl Shared {
    fn set(&self, state: SourceState, since: Timestamp) {
        *self.state.lock() = (state, since);
    }
}

impl ZeromqSource {
    /// Connects in the background, and publishes what comes; returns at once.
    ///
    /// # Panics
    /// Outside of a tokio runtime with I/O and time enabled.
    pub fn spawn<P: AsRef<[u8]>>(
        name: impl Into<Box<str>>,
        endpoint: Endpoint,
        prefixes: impl IntoIterator<Item = P>,
        broker: Broker,
    ) -> Self {
        ZeromqSource::spawn_with(name, endpoint, prefixes, broker, ZeromqSourceOptions::default())
    }

    /// [`spawn`](ZeromqSource::spawn) with options.
    ///
    /// # Panics
    /// Outside of a tokio runtime with I/O and time enabled.
    pub fn spawn_with<P: AsRef<[u8]>>(
        name: impl Into<Box<str>>,
        endpoint: Endpoint,
        prefixes: impl IntoIterator<Item = P>,
        broker: Broker,
        options: ZeromqSourceOptions,
    ) -> Self {
        let shared = Arc::new(Shared {
            name: name.into(),
            endpoint: endpoint.clone(),
            state: Mutex::new((SourceState::Connecting { reason: None }, now())),
            events: AtomicU64::new(0),
            connects: AtomicU64::new(0),
            skipped: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            stop: Notify::new(),
        });
        let client = SubClient::connect_with(endpoint, prefixes, options.client);
        let reader = Reader {
            shared: shared.clone(),
            client,
            broker,
            silence: options.silence,
            parser: Parser::new(),
            lost: None,
            heard: (Instant::now(), now()),
            skips: Quiet::new(),
            refusals: Quiet::new(),
            connections: Quiet::new(),
        };
        ZeromqSource { shared, task: tokio::spawn(reader.run()) }
    }

    /// How it stands.
    pub fn status(&self) -> ZeromqSourceStatus {
        let shared = &self.shared;
        let (state, since) = shared.state.lock().clone();
        ZeromqSourceStatus {
            name: shared.name.clone(),
            address: shared.endpoint.to_string().into(),
            state,
            since: rfc3339(since),
            events: shared.events.load(Ordering::Relaxed),
            connects: shared.connects.load(Ordering::Relaxed),
            skipped: shared.skipped.load(Ordering::Relaxed),
            refused: shared.refused.load(Ordering::Relaxed),
        }
    }

    /// Hangs up, after what has arrived by now is published. The broker must be open until it is done.
    pub async fn shutdown(mut self) {
        self.shared.stop.notify_one();
        // It ends by itself; a panic in it has been told already.
        let _ = (&mut self.task).await;
    }
}

impl Drop for ZeromqSource {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The task of a source.
struct Reader {
    shared: Arc<Shared>,
    client: SubClient,
    broker: Broker,
    silence: Duration,
    parser: Parser,
    /// Since when there is no connection, once there was one.
    lost: Option<Instant>,
    /// When something came last; the clock on the wall is for people.
    heard: (Instant, Timestamp),
    skips: Quiet,
    refusals: Quiet,
    connections: Quiet,
}

impl Reader {
    async fn run(mut self) {
        let shared = self.shared.clone();
        loop {
            let silent_at = self.heard.0 + self.silence;
            let event = tokio::select! {
                biased;
                () = shared.stop.notified() => {
                    self.drain().await;
                    break;
                }
                event = timeout_at(silent_at, self.client.next_event()) => event,
            };
            let Ok(event) = event else {
                self.tell_silence();
                continue;
            };
            if self.handle(event).is_err() {
                break;
            }
        }
        shared.set(SourceState::Ended, now());
    }

    /// Publishes what has arrived. What comes meanwhile is left, so that this ends.
    async fn drain(&mut self) {
        for _ in 0..ClientOptions::default().hwm {
            let Ok(event) = timeout(Duration::ZERO, self.client.next_event()).await else { return };
            if self.handle(event).is_err() {
                return;
            }
        }
    }

    /// Says an error when the broker is closed.
    fn handle(&mut self, event: SubEvent) -> Result<(), PublishError> {
        match event {
            SubEvent::Message(frames) => {
                self.heard = (Instant::now(), now());
                if self.shared.state.lock().0 == SourceState::Silent {
                    self.shared.set(SourceState::Connected, self.heard.1);
                }
                return self.take(frames);
            }
            SubEvent::Connected => self.connected(),
            SubEvent::Disconnected { reason } => self.disconnected(&reason),
        }
        Ok(())
    }

    fn connected(&mut self) {
        self.heard = (Instant::now(), now());
        self.shared.set(SourceState::Connected, self.heard.1);
        self.shared.connects.fetch_add(1, Ordering::Relaxed);
        let (name, endpoint) = (&*self.shared.name, &self.shared.endpoint);
        match self.lost.take() {
            None => tracing::info!(source = name, %endpoint, "connected to the driver's publisher"),
            Some(since) => {
                if let Some(suppressed) = self.connections.pass() {
                    tracing::warn!(
                        source = name, %endpoint, suppressed,
                        "connected again after {:.1} s; events that the driver published in between are lost",
                        since.elapsed().as_secs_f64()
                    );
                }
            }
        }
    }

    fn disconnected(&mut self, reason: &str) {
        self.shared.set(SourceState::Connecting { reason: Some(reason.into()) }, now());
        let was_connected = self.shared.connects.load(Ordering::Relaxed) > 0;
        if was_connected {
            self.lost.get_or_insert_with(Instant::now);
        }
        if let Some(suppressed) = self.connections.pass() {
            let what = if was_connected {
                "lost the driver's publisher; events are lost until it is back"
            } else {
                "the driver's publisher can't be reached; it is tried again"
            };
            let (name, endpoint) = (&*self.shared.name, &self.shared.endpoint);
            tracing::warn!(source = name, %endpoint, suppressed, "{what}: {reason}");
        }
    }

    fn tell_silence(&mut self) {
        // The next look is one such time later, so that it is told once.
        let (since, at) = self.heard;
        self.heard.0 = Instant::now();
        let mut state = self.shared.state.lock();
        if state.0 == SourceState::Connected {
            *state = (SourceState::Silent, at);
            tracing::info!(
                source = &*self.shared.name, endpoint = %self.shared.endpoint,
                "no event has come for {:?}, though the connection is alive; the cloud may just be quiet", since.elapsed()
            );
        }
    }

    /// Publishes an event.
    fn take(&mut self, frames: Frames) -> Result<(), PublishError> {
        let [key, content] = match <[_; 2]>::try_from(frames) {
            Ok(frames) => frames,
            Err(frames) => {
                self.skip(&frames[0], "it has not two frames");
                return Ok(());
            }
        };
        if !SOURCE_PREFIXES.iter().any(|form| key.starts_with(form.as_bytes())) {
            self.skip(&key, "it is no event, or another key of one that comes under EVENT STATE or EVENT API");
            return Ok(());
        }
        let message = match self.parser.content(content) {
            Input::Message { message, oddity: None | Some(Oddity::LongKey) } => message,
            Input::Message { oddity: Some(Oddity::Base64), .. } => {
                self.skip(&key, "its content is not base64");
                return Ok(());
            }
            _ => {
                self.skip(&key, "its content has no header of an event");
                return Ok(());
            }
        };
        match self.broker.publish_now(message) {
            Ok(_) => {
                self.shared.events.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            Err(PublishError::Closed) => Err(PublishError::Closed),
            Err(e) => {
                self.shared.refused.fetch_add(1, Ordering::Relaxed);
                if let Some(suppressed) = self.refusals.pass() {
                    tracing::error!(source = &*self.shared.name, suppressed, "an event is lost: {e}");
                }
                Ok(())
            }
        }
    }

    fn skip(&self, key: &[u8], why: &str) {
        self.shared.skipped.fetch_add(1, Ordering::Relaxed);
        if let Some(suppressed) = self.skips.pass() {
            let key = key[..key.len().min(100)].escape_ascii();
            let (name, endpoint) = (&*self.shared.name, &self.shared.endpoint);
            tracing::warn!(source = name, %endpoint, suppressed, "skipped a message with the key \"{key}\": {why}");
        }
    }
}

fn now() -> Timestamp {
    SystemTime::now().into()
}
