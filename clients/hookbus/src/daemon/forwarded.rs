//! The daemon's end of [`forward`](crate::forward): lines of oned come in through a driver that forwards them.
//!
//! Each block that a read brings is published as one batch before it is said to be taken. Publishing never waits, as with the pipe
//! itself: a driver that had to wait would have to queue for oned, who has no bound. Where there is a journal, what is said to be taken is
//! in it, so that a daemon that is killed loses nothing of that. A journal that can't be written is not waited for.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hookbus_bridges::http::{Endpoint, Endpoints, Kind, Problem, Right};
use hookbus_bridges::opennebula::{Input, Item, LineReader, Parser};
use hookbus_broker::{Broker, Message, Timestamp};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::watch;
use tokio::time::Instant;

use super::ResultQueue;
use crate::forward::{FromDaemon, FromDriver, PATH, PROTOCOL};

/// When this much waits in the broker, what comes now will wait long; see [`LineReader::keep_apart`].
const BACKLOG_BYTES: usize = 1 << 20;
/// How long after the start drivers are let in: subscribers of a predecessor need a moment to connect again, and would miss what
/// the driver has kept meanwhile.
const HOLD: Duration = Duration::from_millis(300);
/// How often it is looked whether the journal can be written at all.
const LOOK_AT_JOURNAL: Duration = Duration::from_millis(100);
/// How many lives of drivers are remembered. There is one driver at a time; a predecessor may say a last word.
const MAX_SESSIONS: usize = 16;

/// The way in for drivers that forward. Clones are handles to the same one.
#[derive(Clone, Debug)]
pub(crate) struct Forwarded {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    broker: Broker,
    results: ResultQueue,
    max_line_bytes: usize,
    started: Instant,
    sessions: Mutex<Sessions>,
    /// The number of the newest connection, which is the one that gets results.
    newest: watch::Sender<u64>,
    closing: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Sessions {
    /// Of each session, which line is wanted next.
    next: HashMap<u64, Arc<Mutex<u64>>>,
    /// Oldest first.
    order: VecDeque<u64>,
    connected: usize,
    taken_in: u64,
    lost: u64,
}

/// How it stands, for listings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ForwardedStatus {
    /// Drivers that are connected.
    pub(crate) connected: usize,
    /// Lines that they brought.
    pub(crate) taken_in: u64,
    /// Lines that they had to drop.
    pub(crate) lost: u64,
    /// Results that wait for a driver.
    pub(crate) results_waiting: usize,
}

impl Forwarded {
    pub(crate) fn new(broker: Broker, results: ResultQueue, max_line_bytes: usize) -> Self {
        let shared = Shared {
            broker,
            results,
            max_line_bytes,
            started: Instant::now(),
            sessions: Mutex::default(),
            newest: watch::Sender::new(0),
            closing: watch::Sender::new(false),
        };
        Forwarded { shared: Arc::new(shared) }
    }

    /// Its route. It is for the socket only: who forwards publishes what only oned may.
    pub(crate) fn routes(&self) -> Endpoints {
        Endpoints::new([Endpoint::get(PATH, upgrade, "Becomes the connection of `hookbus hm --forward`")
            .needs(Right::Socket)
            .header("upgrade", Kind::OneOf(&[PROTOCOL]), "the protocol that the connection is switched to")
            .answers_as("", StatusCode::SWITCHING_PROTOCOLS, "the connection is the driver's from here on")
            .problem(StatusCode::UPGRADE_REQUIRED, "it isn't asked for by a driver that speaks this protocol")])
        .with_state(self.clone())
    }

    pub(crate) fn status(&self) -> ForwardedStatus {
        let sessions = self.shared.sessions.lock();
        ForwardedStatus {
            connected: sessions.connected,
            taken_in: sessions.taken_in,
            lost: sessions.lost,
            results_waiting: self.shared.results.waiting(),
        }
    }

    /// Takes nothing more. Drivers keep what isn't taken.
    pub(crate) fn close(&self) {
        self.shared.closing.send_replace(true);
    }
}

async fn upgrade(State(forwarded): State<Forwarded>, request: Request) -> Response {
    if request.headers().get(header::UPGRADE).is_none_or(|protocol| protocol.as_bytes() != PROTOCOL.as_bytes()) {
        let detail = format!("{PATH} is for `hookbus hm --forward`, of a version that speaks {PROTOCOL}");
        return Problem::new(StatusCode::UPGRADE_REQUIRED, detail).into_response();
    }
    tokio::spawn(async move {
        tokio::time::sleep_until(forwarded.shared.started + HOLD).await;
        match hyper::upgrade::on(request).await {
            Ok(upgraded) => forwarded.shared.serve(TokioIo::new(upgraded)).await,
            Err(e) => tracing::warn!("driver: its connection could not be switched: {e}"),
        }
    });
    let headers = [
        (header::CONNECTION, HeaderValue::from_static("upgrade")),
        (header::UPGRADE, HeaderValue::from_static(PROTOCOL)),
    ];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

impl Shared {
    async fn serve<S: AsyncRead + AsyncWrite>(&self, stream: S) {
        let (reader, writer) = tokio::io::split(stream);
        let mut connection =
            Connection { shared: self, lines: LineReader::new(), parser: Parser::new(), session: None, at: 0 };
        connection.lines.set_max_line_bytes(self.max_line_bytes);
        let number = {
            let mut number = 0;
            self.newest.send_modify(|newest| {
                *newest += 1;
                number = *newest;
            });
            number
        };
        self.sessions.lock().connected += 1;
        tracing::info!("driver: connected, it forwards oned's events");
        let (wanted, said) = watch::channel(None);
        let mut closing = self.closing.subscribe();
        let ended = tokio::select! {
            ended = connection.read(reader, &wanted) => ended,
            ended = self.write(writer, said, number) => ended,
            _ = closing.wait_for(|closing| *closing) => Ok(()),
        };
        self.sessions.lock().connected -= 1;
        match ended {
            Ok(()) => tracing::info!("driver: disconnected"),
            Err(e) => tracing::warn!("driver: its connection ended: {e}"),
        }
    }

    /// Waits until the journal has what was published, or can't be written.
    async fn written(&self) {
        let Some(journal) = self.broker.journal() else { return };
        let mut written = pin!(self.broker.journaled(self.broker.last_offset()));
        loop {
            tokio::select! {
                biased;
                // It fails only when everything ends.
                _ = &mut written => return,
                () = tokio::time::sleep(LOOK_AT_JOURNAL) => {
                    if journal.stats().failing.is_some() {
                        return;
                    }
                }
            }
        }
    }

    /// Says what is taken, and hands results over one by one.
    async fn write<S: AsyncWrite>(
        &self,
        mut writer: WriteHalf<S>,
        mut wanted: watch::Receiver<Option<u64>>,
        number: u64,
    ) -> io::Result<()> {
        // The driver says HELLO first.
        let gone = |_| io::Error::from(io::ErrorKind::UnexpectedEof);
        let next = wanted.wait_for(Option::is_some).await.map_err(gone)?.unwrap_or_default();
        let log = self.broker.log_id().get();
        writer.write_all(FromDaemon::Welcome { log, next }.to_string().as_bytes()).await?;
        let mut newest = self.newest.subscribe();
        let mut next_result = 0;
        loop {
            let is_newest = *newest.borrow_and_update() == number;
            tokio::select! {
                changed = wanted.changed() => {
                    changed.map_err(|_| io::Error::from(io::ErrorKind::UnexpectedEof))?;
                    let taken = wanted.borrow_and_update().unwrap_or_default();
                    writer.write_all(FromDaemon::Taken(taken).to_string().as_bytes()).await?;
                }
                (number, line) = self.results.from(next_result), if is_newest => {
                    writer.write_all(FromDaemon::Result(number).to_string().as_bytes()).await?;
                    writer.write_all(&line).await?;
                    next_result = number + 1;
                }
                _ = newest.changed() => {}
            }
        }
    }

    /// Which line of a session is wanted next; `said` by the driver where the session is new.
    fn session(&self, session: u64, said: u64) -> Arc<Mutex<u64>> {
        let mut sessions = self.sessions.lock();
        if let Some(next) = sessions.next.get(&session) {
            return Arc::clone(next);
        }
        if said > 0 {
            tracing::info!(
                "driver: it goes on after {said} events that a daemon before this one took; what that one had not delivered when it \
                 ended is not here"
            );
        }
        while sessions.order.len() >= MAX_SESSIONS
            && let Some(oldest) = sessions.order.pop_front()
        {
            sessions.next.remove(&oldest);
        }
        sessions.order.push_back(session);
        let next = Arc::new(Mutex::new(said));
        sessions.next.insert(session, Arc::clone(&next));
        next
    }
}

struct Connection<'s> {
    shared: &'s Shared,
    lines: LineReader,
    parser: Parser,
    /// Known since HELLO: which line is wanted next.
    session: Option<Arc<Mutex<u64>>>,
    /// The number of the line that comes next.
    at: u64,
}

impl Connection<'_> {
    async fn read<S: AsyncRead>(
        &mut self,
        mut reader: ReadHalf<S>,
        wanted: &watch::Sender<Option<u64>>,
    ) -> io::Result<()> {
        loop {
            let read = reader.read(self.lines.room()).await?;
            if read == 0 {
                return Ok(());
            }
            self.lines.filled(read);
            self.lines.keep_apart(self.shared.broker.held_bytes() > BACKLOG_BYTES);
            self.take_in()?;
            self.shared.written().await;
            if let Some(session) = &self.session {
                let next = *session.lock();
                wanted.send_replace(Some(next));
            }
        }
    }

    /// Handles the complete lines that were read. A line that was not complete when the connection broke is sent again.
    fn take_in(&mut self) -> io::Result<()> {
        let now = Timestamp::from(SystemTime::now());
        let mut batch = VecDeque::new();
        // A connection that is dying and the one in its place might both have the same lines: one at a time, and
        // what the other has published is skipped.
        let session = self.session.clone();
        let mut next = session.as_ref().map(|next| next.lock());
        while let Some(item) = self.lines.next() {
            let line = match item {
                Item::Line(line) => Some(line),
                Item::Unfinished(_) => continue,
                Item::TooLong { bytes } => {
                    tracing::error!(
                        "line from oned: it has {bytes} bytes, more than [limits] line_bytes; it was skipped"
                    );
                    None
                }
            };
            if let Some(line) = line.as_ref().filter(|line| line.starts_with(b".")) {
                if self.said(&String::from_utf8_lossy(line))? {
                    // HELLO: what follows belongs to the session.
                    drop(next);
                    return self.take_in();
                }
                continue;
            }
            let Some(next) = &mut next else {
                return Err(io::Error::other("it sent events before it had said HELLO"));
            };
            let number = self.at;
            self.at += 1;
            if number >= **next {
                **next = number + 1;
                batch.extend(line.and_then(|line| self.message(line, now)));
            }
        }
        self.shared.sessions.lock().taken_in += batch.len() as u64;
        while !batch.is_empty() {
            if let Err(e) = self.shared.broker.publish_batch_now(&mut batch) {
                tracing::error!("{e}; the event was skipped");
                batch.pop_front();
            }
        }
        Ok(())
    }

    fn message(&mut self, line: bytes::Bytes, now: Timestamp) -> Option<Message> {
        match self.parser.line(line) {
            Ok(Input::Message { message, oddity }) => {
                if let Some(oddity) = oddity {
                    tracing::warn!("event from oned: {oddity}");
                }
                Some(message.with_time(now))
            }
            Ok(Input::Init | Input::Finalize | Input::Blank) => None,
            Err(e) => {
                tracing::warn!("{e}");
                None
            }
        }
    }

    /// Handles a line of the protocol. True when a session has begun.
    fn said(&mut self, line: &str) -> io::Result<bool> {
        match line.parse() {
            Ok(FromDriver::Hello { session, next }) if self.session.is_none() => {
                self.session = Some(self.shared.session(session, next));
                self.at = next;
                return Ok(true);
            }
            Ok(FromDriver::Told(number)) => self.shared.results.told(number),
            Ok(FromDriver::Lost(count)) => {
                self.shared.sessions.lock().lost += count;
                tracing::error!(
                    "driver: {count} events of oned were dropped before they came here, because this daemon did not take them \
                     for so long that there was no more room for them"
                );
            }
            _ => return Err(io::Error::other("it said something that is not of this protocol")),
        }
        Ok(false)
    }
}
