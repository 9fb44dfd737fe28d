//! Where events come from: the ZeroMQ port of oned's driver, or the journal of a hookbus daemon.
//!
//! # From a journal
//!
//! The daemon is followed at its socket (`GET /v1/events?from=OFFSET`), from the cursor on: the event below which everything is dealt with, which is in the
//! store. So what happens while hookbus-hem is down makes hooks run when it is back. Events are read as fast as hooks run for them: the rest waits in the journal.
//!
//! The cursor passes an event when the records of its hooks are safe ([`Cursor`]), and is written within [`WRITE_EVERY`]. After a crash what
//! was under way comes again, and the few events whose hooks had ended beside it, or in that time. What somebody wants to run again (`RETRY`) doesn't hold the cursor.
//!
//! Offsets are of one journal. Where the daemon has another one by now, because somebody has thrown it away, that is told, and read from its beginning.
//! What a journal had to drop is told, too. The first start begins with what is published from then on.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hookbus_bridges::http::{Client, Following, ServerEvent};
use hookbus_bridges::zeromq::{Frames, SubClient, SubEvent};
use hookbus_broker::{EventId, LogId, Offset};
use hookbus_hem::ProgressSink;
use hookbus_hem::store::Store;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

use super::PREFIXES;

/// Between attempts to connect to a daemon.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How often the cursor is written while it moves.
const WRITE_EVERY: Duration = Duration::from_millis(100);

/// Something that comes from a source.
pub(super) enum Arrival {
    /// It is connected.
    Connected,
    /// It isn't any more, or could not be.
    Disconnected { reason: String },
    /// An event, or what somebody wants to run again: the key and the content.
    Message { key: Bytes, content: Bytes, place: Option<EventId> },
    /// Something that can't be read, and why.
    Strange { key: Bytes, why: &'static str, place: Option<EventId> },
    /// Nothing is to be had up to this place in the journal; it was told why.
    Gap { place: EventId },
    /// Of no concern.
    Nothing,
}

pub(super) enum Source {
    Driver(SubClient),
    Journal(Box<Journal>),
}

impl Source {
    /// Whether what isn't read now can be read later.
    pub(super) fn keeps(&self) -> bool {
        matches!(self, Source::Journal(_))
    }

    /// What comes next. Cancelling loses nothing.
    pub(super) async fn next(&mut self) -> Arrival {
        match self {
            Source::Driver(subscriber) => of_driver(subscriber.next_event().await),
            Source::Journal(journal) => journal.next().await,
        }
    }
}

fn of_driver(event: SubEvent) -> Arrival {
    match event {
        SubEvent::Message(frames) => match <[_; 2]>::try_from(frames) {
            Ok([key, content]) => Arrival::Message { key, content, place: None },
            Err(frames) => Arrival::Strange { key: first(&frames), why: "it has not two frames", place: None },
        },
        SubEvent::Connected => Arrival::Connected,
        SubEvent::Disconnected { reason } => Arrival::Disconnected { reason },
        _ => Arrival::Nothing,
    }
}

fn first(frames: &Frames) -> Bytes {
    frames[0].clone()
}

/// A daemon's journal, as it is followed.
pub(super) struct Journal {
    client: Client,
    cursor: Arc<Cursor>,
    following: Option<Following>,
    /// The event to go on with; nothing before the first connection of a first start.
    next: Option<EventId>,
    retry_at: Instant,
    pause: Duration,
}

impl Journal {
    pub(super) fn new(sockets: Vec<PathBuf>, cursor: Arc<Cursor>, next: Option<EventId>) -> Self {
        let (retry_at, pause) = (Instant::now(), FIRST_PAUSE);
        Journal { client: Client::new(sockets), cursor, following: None, next, retry_at, pause }
    }

    async fn next(&mut self) -> Arrival {
        let Some(following) = &mut self.following else {
            sleep_until(self.retry_at).await;
            return match self.connect().await {
                Ok(()) => {
                    self.pause = FIRST_PAUSE;
                    Arrival::Connected
                }
                Err(reason) => {
                    self.retry_at = Instant::now() + self.pause;
                    self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                    Arrival::Disconnected { reason }
                }
            };
        };
        let reason = match following.next().await {
            Ok(Some(event)) => return self.event(event),
            Ok(None) => "the daemon has ended".to_owned(),
            Err(e) => e.to_string(),
        };
        self.following = None;
        self.retry_at = Instant::now() + self.pause;
        Arrival::Disconnected { reason }
    }

    async fn connect(&mut self) -> Result<(), String> {
        let (log, last) = self.journal().await?;
        let next = match self.next {
            Some(next) if next.log == log => next,
            Some(_) => {
                tracing::error!(
                    "the daemon has another journal than before; what was in that one and not read is lost, this one is read from its beginning"
                );
                EventId { log, offset: Offset::new(1) }
            }
            None => EventId { log, offset: Offset::new(last + 1) },
        };
        let prefixes = PREFIXES.map(|prefix| format!("prefix={}", prefix.replace(' ', "%20")));
        let query = format!("{}&format=base64&name=hookbus-hem&from={}", prefixes.join("&"), next.offset);
        let following = self.client.follow(&query, None).await.map_err(|e| e.to_string())?;
        // It is a connection of its own: the daemon may have been replaced between the two.
        if self.journal().await?.0 != log {
            return Err("the daemon was replaced by another one at this moment".into());
        }
        self.following = Some(following);
        self.cursor.follow(next);
        self.next = Some(next);
        Ok(())
    }

    /// Which journal the daemon has, and the newest offset in it.
    async fn journal(&self) -> Result<(LogId, u64), String> {
        let answer = self.client.get("/v1/status").await.map_err(|e| e.to_string())?;
        let status: serde_json::Value = serde_json::from_slice(&answer).map_err(|e| e.to_string())?;
        let log = status["log_id"].as_str().and_then(|log| u64::from_str_radix(log, 16).ok());
        let log = log.ok_or("the daemon doesn't say which journal it has")?;
        let last = status["journal"]["last"].as_u64();
        let last =
            last.ok_or("the daemon has no journal, which is needed here; set `enabled = true` in its [journal]")?;
        Ok((LogId::new(log), last))
    }

    fn event(&mut self, event: ServerEvent) -> Arrival {
        let (Ok(offset), Some(next)) = (event.id.parse(), &mut self.next) else { return Arrival::Nothing };
        let place = EventId { log: next.log, offset: Offset::new(offset) };
        next.offset = Offset::new(offset + 1);
        match event.kind.as_str() {
            "" => {}
            "gap" => {
                tracing::error!(
                    "events were lost before they were read, the journal had no room for them: {}",
                    event.data
                );
                return Arrival::Gap { place };
            }
            _ => return Arrival::Nothing,
        }
        match event.data.rsplit_once('\n') {
            Some((key, content)) => Arrival::Message {
                key: Bytes::copy_from_slice(key.as_bytes()),
                content: Bytes::copy_from_slice(content.as_bytes()),
                place: Some(place),
            },
            None => Arrival::Strange { key: event.data.into(), why: "it has no content", place: Some(place) },
        }
    }
}

/// How far a journal is dealt with.
#[derive(Debug)]
pub(super) struct Cursor {
    state: Mutex<State>,
    moved: Notify,
}

#[derive(Debug, Default)]
struct State {
    log: Option<LogId>,
    /// The next event to be dealt with.
    next: u64,
    /// Events that were given to the executor and are not dealt with: the offset there, and that in the journal. After it, others may have
    /// come that no hook is for.
    open: VecDeque<(u64, u64)>,
    /// The newest event that has come.
    newest: u64,
    /// What is below it is dealt with, by the executor's offsets. It may be quicker than who tells that an event has come.
    done_below: u64,
}

impl Cursor {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Cursor { state: Mutex::default(), moved: Notify::new() })
    }

    /// Follows a journal from this event on; one that it follows already goes on where it was.
    fn follow(&self, next: EventId) {
        let mut state = self.state.lock();
        if state.log == Some(next.log) {
            return;
        }
        let newest = next.offset.get().saturating_sub(1);
        let done_below = state.done_below;
        *state = State { log: Some(next.log), next: next.offset.get(), open: VecDeque::new(), newest, done_below };
        drop(state);
        self.moved.notify_one();
    }

    /// An event has come. It is the executor's under `local`, or nobody's. One of a journal that is no longer followed moves nothing.
    pub(super) fn passed(&self, place: EventId, local: Option<u64>) {
        let mut state = self.state.lock();
        if state.log != Some(place.log) {
            return;
        }
        let offset = place.offset.get();
        state.newest = offset;
        match local.filter(|local| *local >= state.done_below) {
            Some(local) => state.open.push_back((local, offset)),
            None if state.open.is_empty() => state.next = offset + 1,
            None => return,
        }
        drop(state);
        self.moved.notify_one();
    }

    /// The next event to be dealt with.
    fn next(&self) -> Option<EventId> {
        let state = self.state.lock();
        Some(EventId { log: state.log?, offset: Offset::new(state.next) })
    }

    /// Writes it down as it moves.
    pub(super) fn write(self: &Arc<Self>, store: Store) -> JoinHandle<()> {
        let cursor = Arc::clone(self);
        tokio::spawn(async move {
            let mut written = None;
            loop {
                cursor.moved.notified().await;
                let next = cursor.next();
                if next != written
                    && let Some(next) = next
                {
                    // The store logs what it can't write; then events come again.
                    let _ = store.set_cursor(next).await;
                }
                written = next;
                sleep(WRITE_EVERY).await;
            }
        })
    }

    /// Writes it down for the last time.
    pub(super) async fn write_last(&self, store: &Store) {
        if let Some(next) = self.next() {
            let _ = store.set_cursor(next).await;
        }
    }
}

impl ProgressSink for Cursor {
    fn done_below(&self, local: Offset) {
        let mut state = self.state.lock();
        state.done_below = state.done_below.max(local.get());
        let mut moved = false;
        while let Some(&(first, offset)) = state.open.front()
            && first < local.get()
        {
            state.open.pop_front();
            state.next = offset + 1;
            moved = true;
        }
        if moved && state.open.is_empty() {
            // What came behind it was for no hook.
            state.next = state.newest + 1;
        }
        drop(state);
        if moved {
            self.moved.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cursor_stays_before_what_is_not_done() {
        let cursor = Cursor::new();
        assert_eq!(cursor.next(), None);
        let log = LogId::new(7);
        let at = |offset| EventId { log, offset: Offset::new(offset) };
        cursor.follow(at(10));
        let next = || cursor.next().unwrap().offset.get();
        assert_eq!(next(), 10);
        cursor.passed(at(12), None);
        assert_eq!(next(), 13);
        cursor.passed(at(13), Some(1));
        cursor.passed(at(14), None);
        cursor.passed(at(15), Some(2));
        cursor.passed(at(19), None);
        assert_eq!(next(), 13);
        cursor.done_below(Offset::new(2));
        assert_eq!(next(), 14);
        cursor.done_below(Offset::new(2));
        cursor.done_below(Offset::new(3));
        assert_eq!(next(), 20);
        // The executor was quicker.
        cursor.done_below(Offset::new(6));
        cursor.passed(at(21), Some(5));
        assert_eq!(next(), 22);
        // A reconnect changes nothing, another journal all; what is left of the old one moves nothing there.
        cursor.follow(at(5));
        assert_eq!(next(), 22);
        let other = EventId { log: LogId::new(8), offset: Offset::new(1) };
        cursor.passed(at(30), Some(7));
        cursor.follow(other);
        cursor.passed(at(31), None);
        cursor.done_below(Offset::new(8));
        assert_eq!(cursor.next(), Some(other));
    }
}
