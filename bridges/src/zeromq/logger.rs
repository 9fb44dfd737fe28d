//! The logger port: a REP socket for any number of hook executors.
//!
//! A request of a REQ peer is an envelope, an empty frame, and a body; a DEALER may put frames of its own into the
//! envelope, which it finds again in front of the answer. Each complete body is handed to the owner of the port as a
//! [`Request`], in order for each peer; the peer's next one follows when it is answered. Meanwhile the connection is
//! still read, so that heartbeats are answered, until a further request waits.
//!
//! # Guarantees
//!
//! - A request that was handed over may have been sent by a peer that is gone by now: REQ peers that give up and ask
//!   again make the same request arrive twice, and nothing in the protocol tells them apart.
//! - An answer is lost when the peer goes away before it has got it; what the request asked for has been done all the
//!   same.
//! - A request is never cut: it is handed over whole, or not at all.
//! - Memory follows the bytes that have arrived. All requests that are not complete have together at most
//!   [`max_bytes`](LoggerOptions::max_bytes); the peer that goes beyond it is disconnected.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::codec::{Event, MORE, ProtocolError, Settings, SocketType, put_frame};
use super::endpoint::Endpoint;
use super::link::{Closed, Link};
use super::liveness::Heartbeat;
use super::message::{Assembler, Frames};
use super::server::{Door, Phase, deadline, listen, time_left};
use super::transport::{Listener, Stream};

/// What OpenNebula's driver answers to every request.
pub const ACK: &[u8] = b"ACK";

/// After the last answer, how long we wait for the peer to have read it and hang up.
const LINGER: Duration = Duration::from_secs(1);

/// Room for the envelope of a request, beside its body.
const ENVELOPE_BYTES: usize = 64 << 10;

/// How a [`Logger`] is set up.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LoggerOptions {
    /// Where it listens.
    pub endpoint: Endpoint,
    /// The longest request, in bytes. 64 MiB unless set.
    pub frame_limit_bytes: usize,
    /// How much may be held of all requests that are arriving or wait to be handed over, in bytes. 256 MiB unless set.
    pub max_bytes: usize,
    /// How many connections there may be; further ones are closed at once. 1,000 unless set.
    pub max_peers: usize,
    /// How long a peer may take for greeting and handshake. 30 s unless set.
    pub handshake_timeout: Duration,
    /// Heartbeats from our side, to peers that speak ZMTP 3.1. Off unless set.
    pub heartbeat: Option<Heartbeat>,
}

impl LoggerOptions {
    /// A logger port on that endpoint, everything else as it is unless set.
    pub fn new(endpoint: Endpoint) -> Self {
        LoggerOptions {
            endpoint,
            frame_limit_bytes: 64 << 20,
            max_bytes: 256 << 20,
            max_peers: 1000,
            handshake_timeout: Duration::from_secs(30),
            heartbeat: None,
        }
    }

    /// Sets the longest request.
    #[must_use]
    pub fn frame_limit_bytes(mut self, bytes: usize) -> Self {
        self.frame_limit_bytes = bytes;
        self
    }

    /// Sets how much may be held of requests that are not handed over.
    #[must_use]
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// Sets how many connections there may be.
    #[must_use]
    pub fn max_peers(mut self, peers: usize) -> Self {
        self.max_peers = peers;
        self
    }

    /// Sets how long a peer may take for greeting and handshake.
    #[must_use]
    pub fn handshake_timeout(mut self, timeout: Duration) -> Self {
        self.handshake_timeout = timeout;
        self
    }

    /// Turns heartbeats on.
    #[must_use]
    pub fn heartbeat(mut self, heartbeat: Heartbeat) -> Self {
        self.heartbeat = Some(heartbeat);
        self
    }
}

/// One request, to be answered. Dropping it unanswered disconnects the peer, which otherwise would wait for ever.
#[derive(Debug)]
pub struct Request {
    body: Bytes,
    peer: Arc<str>,
    answer: oneshot::Sender<Bytes>,
}

impl Request {
    /// What was sent.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// The address of the peer, in the notation of endpoints.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// Answers. If the peer is gone, the answer is lost, and nobody needs it.
    pub fn answer(self, body: impl Into<Bytes>) {
        let _ = self.answer.send(body.into());
    }

    /// Answers [`ACK`].
    pub fn acknowledge(self) {
        self.answer(ACK);
    }
}

/// A ZeroMQ REP socket for REQ and DEALER peers; see the head of its file for what it promises. Dropping it closes
/// everything as soon as the runtime gets to it; to use its endpoint again, await [`shutdown`](Logger::shutdown).
///
/// ```
/// use std::time::Duration;
/// use hookbus_bridges::zeromq::{Logger, LoggerOptions, ReqClient};
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let (sender, mut requests) = tokio::sync::mpsc::channel(16);
/// let logger = Logger::bind(LoggerOptions::new("tcp://127.0.0.1:0".parse()?), sender)?;
/// tokio::spawn(async move {
///     while let Some(request) = requests.recv().await {
///         println!("{} says {:?}", request.peer(), request.body());
///         request.acknowledge();
///     }
/// });
/// let mut executor = ReqClient::new(logger.local_endpoint().clone());
/// assert_eq!(executor.request("0 7 PEE+", Duration::from_secs(5)).await?, "ACK");
/// logger.shutdown(Duration::from_secs(1)).await;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Debug)]
pub struct Logger {
    door: Arc<Door>,
    endpoint: Endpoint,
    listening: JoinHandle<()>,
}

struct Shared {
    options: LoggerOptions,
    door: Arc<Door>,
    requests: mpsc::Sender<Request>,
    held: AtomicUsize,
}

impl Logger {
    /// Listens, and hands requests to `requests`, in tasks of the current tokio runtime. Returns at once. Where the
    /// channel is full, the peers wait.
    ///
    /// # Errors
    /// When the endpoint can't be bound; the message names it.
    ///
    /// # Panics
    /// Outside of a tokio runtime with I/O and time enabled.
    pub fn bind(options: LoggerOptions, requests: mpsc::Sender<Request>) -> io::Result<Logger> {
        let listener = Listener::bind(&options.endpoint)?;
        let endpoint = listener.local_endpoint()?;
        let door = Arc::new(Door::new("logger", options.max_peers));
        let shared = Arc::new(Shared { options, door: Arc::clone(&door), requests, held: AtomicUsize::new(0) });
        let serve = move |stream, address| serve(Arc::clone(&shared), stream, address);
        let listening = tokio::spawn(listen(Arc::clone(&door), listener, endpoint.clone(), serve));
        Ok(Logger { door, endpoint, listening })
    }

    /// Where it listens, with the port that was given for port 0.
    pub fn local_endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// How many connections were closed because of what the peer did before it was one, or because there were too many.
    pub fn refused(&self) -> u64 {
        self.door.refused()
    }

    /// Stops in order: no new connections; requests that have arrived whole are handed over and answered until the
    /// deadline; then the connections are closed. Cancelling it closes everything at once.
    pub async fn shutdown(mut self, deadline: Duration) {
        self.door.close(deadline);
        if let Err(e) = (&mut self.listening).await {
            tracing::error!("the ZeroMQ logger's task failed: {e}");
        }
    }
}

impl Drop for Logger {
    fn drop(&mut self) {
        // The peers' tasks go with their owner.
        self.listening.abort();
    }
}

/// A request that has arrived.
struct Arrived {
    /// What stands before the body, with the empty frame; goes back in front of the answer.
    envelope: Frames,
    body: Bytes,
}

/// What has come from one peer and is not handed over.
struct Inbox<'a> {
    shared: &'a Shared,
    assembler: Assembler,
    arrived: VecDeque<Arrived>,
    /// Bytes of the requests in `arrived`.
    waiting: usize,
    /// What we have added to the sum of all peers.
    counted: usize,
}

impl Inbox<'_> {
    fn on_event(&mut self, event: Event<'_>) -> Result<(), Closed> {
        let Event::Frame { more, body } = event else { return Ok(()) };
        let Some(mut frames) = self.assembler.push(more, body)? else { return Ok(()) };
        let delimiter = frames.iter().position(Bytes::is_empty).ok_or(ProtocolError::NoDelimiter)?;
        let mut body = frames.split_off(delimiter + 1);
        match (body.pop(), body.is_empty()) {
            (Some(body), true) => {
                self.waiting += body.len();
                self.arrived.push_back(Arrived { envelope: frames, body });
                Ok(())
            }
            (None, _) => Err(ProtocolError::NoDelimiter.into()),
            (Some(_), false) => {
                Err(ProtocolError::MessageTooLong { limit: 1, unit: "frames behind its envelope" }.into())
            }
        }
    }

    /// Brings the sum of all peers up to date with what is held here.
    fn count(&mut self, in_frame: usize) -> Result<(), Closed> {
        let held = in_frame + self.assembler.held_bytes() + self.waiting;
        let limit = self.shared.options.max_bytes;
        let before = self.counted;
        self.counted = held;
        if held <= before {
            self.shared.held.fetch_sub(before - held, Ordering::Relaxed);
            return Ok(());
        }
        let grown = held - before;
        if self.shared.held.fetch_add(grown, Ordering::Relaxed) + grown > limit {
            return Err(Closed::Crowded(limit));
        }
        Ok(())
    }

    fn take(&mut self) -> Option<Arrived> {
        let arrived = self.arrived.pop_front()?;
        self.waiting -= arrived.body.len();
        Some(arrived)
    }
}

impl Drop for Inbox<'_> {
    fn drop(&mut self) {
        self.shared.held.fetch_sub(self.counted, Ordering::Relaxed);
    }
}

async fn serve(shared: Arc<Shared>, stream: Stream, address: String) {
    let options = &shared.options;
    let settings = Settings::new(SocketType::Rep, options.frame_limit_bytes);
    let mut link = Link::new(stream, settings, options.heartbeat);
    let mut inbox = Inbox {
        shared: &shared,
        assembler: Assembler::new(options.frame_limit_bytes.saturating_add(ENVELOPE_BYTES)),
        arrived: VecDeque::new(),
        waiting: 0,
        counted: 0,
    };
    let mut phase = shared.door.phase();

    let mut early = |event: Event<'_>| inbox.on_event(event);
    let greeted = tokio::select! {
        greeted = link.shake_hands(options.handshake_timeout, &mut early) => greeted,
        _ = phase.wait_for(|phase| *phase != Phase::Running) => Err(Closed::Stopped),
    };
    match greeted {
        Ok(info) => {
            let (socket, minor) = (info.socket_type, info.minor);
            tracing::debug!(peer = %address, socket, minor, "ZeroMQ requester connected");
        }
        Err(closed) => return shared.door.log_refused(&address, &closed),
    }

    let mut running = shared.door.phase();
    let closed = tokio::select! {
        closed = converse(&mut link, &mut inbox, &address, &mut running) => closed,
        () = deadline(&mut phase) => Closed::Stopped,
    };
    if matches!(closed, Closed::Stopped) {
        let limit = time_left(*phase.borrow(), LINGER);
        link.hang_up(limit).await;
    }
    if closed.is_fault() {
        shared.door.log_fault(&address, &closed);
    }
    tracing::debug!(peer = %address, "ZeroMQ requester left: {closed}");
}

/// Takes requests and answers them, one after the other, until the peer goes away, or, once we stop, nothing is left to
/// answer.
async fn converse(link: &mut Link, inbox: &mut Inbox<'_>, address: &str, phase: &mut watch::Receiver<Phase>) -> Closed {
    let peer: Arc<str> = address.into();
    loop {
        let Some(Arrived { envelope, body }) = inbox.take() else {
            tokio::select! {
                biased;
                read = read(link, inbox) => match read {
                    Ok(()) => continue,
                    Err(closed) => return closed,
                },
                _ = phase.wait_for(|phase| *phase != Phase::Running) => return Closed::Stopped,
            }
        };
        let mut answering = std::pin::pin!(hand_over(&inbox.shared.requests, &peer, body));
        let closed = tokio::select! {
            biased;
            answer = &mut answering => {
                let Some(answer) = answer else { return Closed::Unanswered };
                link.excuse_silence();
                put_answer(link.output(), &envelope, &answer);
                match poll_fn(|cx| link.poll_flush(cx)).await {
                    Ok(()) => continue,
                    Err(e) => Closed::Io(e),
                }
            }
            closed = attend(link, inbox) => {
                // The request has arrived whole, so it counts, although its peer is gone.
                answering.await;
                closed
            }
        };
        while let Some(arrived) = inbox.take() {
            hand_over(&inbox.shared.requests, &peer, arrived.body).await;
        }
        return closed;
    }
}

/// Gives a request to the owner of the port, and waits for the answer; `None` when there is none.
async fn hand_over(requests: &mpsc::Sender<Request>, peer: &Arc<str>, body: Bytes) -> Option<Bytes> {
    let (answer, answered) = oneshot::channel();
    requests.send(Request { body, peer: Arc::clone(peer), answer }).await.ok()?;
    answered.await.ok()
}

/// Reads until a request has arrived.
async fn read(link: &mut Link, inbox: &mut Inbox<'_>) -> Result<(), Closed> {
    poll_fn(|cx| {
        while inbox.arrived.is_empty() {
            // PING and PONG go out here; a socket that is full keeps them.
            if let Poll::Ready(Err(e)) = link.poll_flush(cx) {
                return Poll::Ready(Err(Closed::Io(e)));
            }
            ready!(link.poll_events(cx, &mut |event| inbox.on_event(event)))?;
            inbox.count(link.held_bytes())?;
        }
        Poll::Ready(Ok(()))
    })
    .await
}

/// Looks after the connection while an answer is awaited, until the peer goes away. Once a further request waits,
/// reading stops, and with it the peer, if it goes on sending.
async fn attend(link: &mut Link, inbox: &mut Inbox<'_>) -> Closed {
    match read(link, inbox).await {
        Ok(()) => std::future::pending().await,
        Err(closed) => closed,
    }
}

fn put_answer(out: &mut Vec<u8>, envelope: &Frames, body: &[u8]) {
    for frame in envelope {
        put_frame(out, MORE, frame);
    }
    put_frame(out, 0, body);
}
