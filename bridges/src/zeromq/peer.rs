//! One subscriber: a task that turns its broker subscription into frames, and its frames into filters.
//!
//! It waits for three things at once: something queued, something to read, and, while the socket is full, room to write. Reading never stops
//! for writing: a peer whose socket is full can still cancel a filter, or prove that it lives. What is idle costs no
//! system call; a message to a peer that keeps up costs one.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hookbus_broker::{BatchLimit, EndReason, SubscribeOptions, Subscription, SubscriptionHandle, TryRecvError};
use tokio::io::ReadBuf;
use tokio::time::{Instant, timeout, timeout_at};

use super::codec::{Connection, Event, PeerInfo, ProtocolError, Settings, SocketType, put_ping};
use super::filters::{FilterLimits, Filters};
use super::liveness::{Liveness, Verdict};
use super::outbound::Outbound;
use super::publisher::{Phase, Shared};
use super::transport::Stream;

/// How much is read at once. It lies on the stack for the time of one read, so that idle peers hold no buffer.
const READ_BYTES: usize = 64 << 10;

/// How much is written at once.
const BATCH_BYTES: usize = 256 << 10;
const BATCH_MESSAGES: usize = 512;

/// After the last message, how long we wait for the peer to have read it and hang up.
const LINGER: Duration = Duration::from_secs(1);

/// Why a connection has ended.
#[derive(Debug)]
pub(crate) enum Closed {
    /// The peer hung up.
    ByPeer,
    /// The socket failed.
    Io(io::Error),
    /// The peer broke the protocol or a limit, or refused us.
    Protocol(ProtocolError),
    /// The peer did not finish the handshake in time.
    HandshakeTimeout(Duration),
    /// Nothing came from the peer for too long.
    Silent,
    /// Its subscription ended, and everything was sent.
    Ended(EndReason),
    /// We stop, and could not send everything in time.
    Stopped,
}

impl Closed {
    /// Whether the peer did something that its operator should know of.
    pub(crate) fn is_fault(&self) -> bool {
        matches!(self, Closed::Protocol(_) | Closed::HandshakeTimeout(_) | Closed::Silent)
    }
}

impl From<ProtocolError> for Closed {
    fn from(error: ProtocolError) -> Self {
        Closed::Protocol(error)
    }
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Closed::ByPeer => f.write_str("it hung up"),
            Closed::Io(e) => write!(f, "the socket failed: {e}"),
            Closed::Protocol(e) => e.fmt(f),
            Closed::HandshakeTimeout(limit) => write!(f, "it did not finish the handshake within {limit:?}"),
            Closed::Silent => f.write_str("it was silent for longer than its heartbeats allow"),
            Closed::Ended(EndReason::BrokerClosed) => f.write_str("the broker was closed"),
            Closed::Ended(EndReason::Closed) => f.write_str("we stop, and it has got everything"),
            Closed::Ended(EndReason::Overflowed) => f.write_str("its queue overflowed"),
            Closed::Stopped => f.write_str("we stop, and it took too long to read what was queued"),
        }
    }
}

/// What listings show of a peer, and what they need for it.
#[derive(Debug)]
pub(crate) struct PeerEntry {
    pub(crate) address: String,
    pub(crate) info: PeerInfo,
    pub(crate) filters: Arc<AtomicUsize>,
    pub(crate) handle: SubscriptionHandle,
}

/// The way in: bytes become filters and answers.
#[derive(Debug)]
pub(crate) struct Inbound {
    connection: Connection,
    pub(crate) filters: Filters,
    filter_count: Arc<AtomicUsize>,
    handle: Option<SubscriptionHandle>,
    peer: Option<PeerInfo>,
    liveness: Liveness,
    ping_ttl: Duration,
}

impl Inbound {
    /// Bytes that the connection itself wants to send.
    pub(crate) fn output(&mut self) -> &mut Vec<u8> {
        self.connection.output()
    }

    /// Reads once and handles what came; also looks at the clock. Ready when something was done.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, stream: &mut Stream) -> Poll<Result<(), Closed>> {
        let mut space = [MaybeUninit::<u8>::uninit(); READ_BYTES];
        let mut buf = ReadBuf::uninit(&mut space);
        match stream.poll_read(cx, &mut buf) {
            Poll::Ready(Ok(())) if buf.filled().is_empty() => return Poll::Ready(Err(Closed::ByPeer)),
            Poll::Ready(Ok(())) => return Poll::Ready(self.input(buf.filled())),
            Poll::Ready(Err(e)) => return Poll::Ready(Err(Closed::Io(e))),
            Poll::Pending => {}
        }
        match self.liveness.poll(cx) {
            Poll::Ready(Verdict::Dead) => Poll::Ready(Err(Closed::Silent)),
            Poll::Ready(Verdict::Ping) => {
                // A peer that reads nothing is silent, too; there is no use in piling up questions to it.
                if self.connection.is_ready() && self.output().is_empty() {
                    put_ping(self.connection.output(), self.ping_ttl, b"");
                }
                Poll::Ready(Ok(()))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn input(&mut self, mut bytes: &[u8]) -> Result<(), Closed> {
        self.liveness.heard();
        let result = self.events(&mut bytes);
        // Also before an error: what came before it was valid.
        self.apply();
        Ok(result?)
    }

    fn events(&mut self, bytes: &mut &[u8]) -> Result<(), ProtocolError> {
        while let Some(event) = self.connection.next(bytes)? {
            match event {
                Event::Ready(peer) => self.peer = Some(peer),
                Event::Subscribe(prefix) => self.filters.subscribe(&prefix)?,
                Event::Cancel(prefix) => self.filters.cancel(&prefix),
                Event::Ping { ttl } => self.liveness.promised(ttl),
                Event::Pong | Event::Frame { .. } => {}
            }
        }
        Ok(())
    }

    fn apply(&mut self) {
        if let Some(handle) = &self.handle {
            self.filters.apply(handle);
            self.filter_count.store(self.filters.len(), Ordering::Relaxed);
        }
    }
}

/// Serves one connection from its first byte to its last.
pub(crate) async fn serve(shared: Arc<Shared>, id: u64, mut stream: Stream, address: String) {
    let options = &shared.options;
    let mut inbound = Inbound {
        connection: Connection::new(Settings::new(SocketType::Pub, options.frame_limit_bytes)),
        filters: Filters::new(FilterLimits { filters: options.max_filters, bytes: options.max_filter_bytes }),
        filter_count: Arc::default(),
        handle: None,
        peer: None,
        liveness: Liveness::new(options.heartbeat),
        ping_ttl: options.heartbeat.map_or(Duration::ZERO, |heartbeat| heartbeat.timeout),
    };
    let mut outbound = Outbound::default();
    let mut phase = shared.phase.subscribe();

    let greeted = tokio::select! {
        greeted = timeout(options.handshake_timeout, shake_hands(&mut stream, &mut inbound, &mut outbound)) => {
            greeted.unwrap_or(Err(Closed::HandshakeTimeout(options.handshake_timeout)))
        }
        // Nothing is queued for it yet.
        _ = phase.wait_for(|phase| *phase != Phase::Running) => Err(Closed::Stopped),
    };
    let info = match greeted {
        Ok(info) => info,
        Err(closed) => {
            tell(&mut stream, &mut inbound).await;
            return shared.log_refused(&address, &closed);
        }
    };

    let subscribe = SubscribeOptions::new(format!("zeromq {address}")).hwm(options.hwm).hwm_bytes(options.hwm_bytes);
    let mut subscription = shared.broker.subscribe(subscribe);
    let handle = subscription.handle().clone();
    inbound.handle = Some(handle.clone());
    inbound.apply();
    tracing::debug!(
        peer = %address, socket = info.socket_type, minor = info.minor, filters = inbound.filters.len(),
        "ZeroMQ subscriber connected"
    );
    let filters = Arc::clone(&inbound.filter_count);
    let _entry = shared.register(id, PeerEntry { address: address.clone(), info, filters, handle: handle.clone() });
    // Whoever registers after the stop was announced was not told; see `Publisher::shutdown`.
    if *phase.borrow() != Phase::Running {
        handle.close();
    }

    let mut abandoned = 0;
    let closed = tokio::select! {
        closed = traffic(&mut subscription, &mut stream, &mut inbound, &mut outbound, &mut abandoned) => closed,
        () = deadline(&mut phase) => Closed::Stopped,
    };
    if let Closed::Ended(_) = closed {
        let until = match *phase.borrow() {
            Phase::Draining(until) => until.min(Instant::now() + LINGER),
            Phase::Running => Instant::now() + LINGER,
        };
        let _ = timeout_at(until, hang_up(&mut stream)).await;
    }
    if let Some(stats) = handle.stats() {
        shared.log_left(&address, &closed, &stats, abandoned + stats.queued);
    }
}

async fn shake_hands(stream: &mut Stream, inbound: &mut Inbound, outbound: &mut Outbound) -> Result<PeerInfo, Closed> {
    loop {
        outbound.send_control(stream, inbound).await?;
        if let Some(peer) = inbound.peer.take() {
            return Ok(peer);
        }
        poll_fn(|cx| inbound.poll(cx, stream)).await?;
    }
}

async fn traffic(
    subscription: &mut Subscription,
    stream: &mut Stream,
    inbound: &mut Inbound,
    outbound: &mut Outbound,
    abandoned: &mut u64,
) -> Closed {
    let hwm = subscription.handle().stats().map_or((0, 0), |stats| (stats.hwm, stats.hwm_bytes));
    // What is on its way comes on top of what is queued; a small high-water mark asks for little of both.
    let capped = |most: usize, hwm: usize| if hwm == 0 { most } else { most.min(hwm) };
    let limit = BatchLimit::messages(capped(BATCH_MESSAGES, hwm.0)).bytes(capped(BATCH_BYTES, hwm.1));
    loop {
        let waited = poll_fn(|cx| {
            let read = inbound.poll(cx, stream);
            let queued = subscription.poll_ready(cx);
            match read {
                Poll::Ready(result) => Poll::Ready(result),
                Poll::Pending => queued.map(Ok),
            }
        });
        if let Err(closed) = waited.await {
            return closed;
        }
        if !inbound.output().is_empty()
            && let Err(closed) = outbound.send_control(stream, inbound).await
        {
            return closed;
        }
        match subscription.try_recv_batch(limit) {
            Ok(batch) => {
                if let Err(closed) = outbound.send(batch, stream, inbound, abandoned).await {
                    return closed;
                }
            }
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Ended) => {
                return Closed::Ended(subscription.end().unwrap_or(EndReason::Closed));
            }
        }
    }
}

/// Waits until the time for draining is over.
async fn deadline(phase: &mut tokio::sync::watch::Receiver<Phase>) {
    let until = match phase.wait_for(|phase| *phase != Phase::Running).await.as_deref() {
        Ok(Phase::Draining(until)) => *until,
        // The publisher was dropped; its task, and we with it, will be ended.
        _ => return,
    };
    tokio::time::sleep_until(until).await;
}

/// Gives a refused peer our ERROR, if there is one and it can be had without waiting.
async fn tell(stream: &mut Stream, inbound: &mut Inbound) {
    poll_fn(|cx| {
        let control = inbound.output();
        if !control.is_empty() {
            let _ = stream.poll_write_vectored(cx, &[io::IoSlice::new(control)]);
        }
        Poll::Ready(())
    })
    .await;
}

/// Says that nothing more comes, and waits for the peer to hang up. Closing at once, with bytes of the peer unread, would make the kernel
/// throw away what it has not delivered yet.
async fn hang_up(stream: &mut Stream) -> io::Result<()> {
    poll_fn(|cx| stream.poll_shutdown(cx)).await?;
    loop {
        let mut space = [MaybeUninit::<u8>::uninit(); 4096];
        let mut buf = ReadBuf::uninit(&mut space);
        poll_fn(|cx| stream.poll_read(cx, &mut buf)).await?;
        if buf.filled().is_empty() {
            return Ok(());
        }
    }
}
