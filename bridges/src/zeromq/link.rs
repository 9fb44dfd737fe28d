//! One connection with its socket and its clock: what the publisher's peers, the logger's and our own clients have in
//! common.

use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hookbus_broker::EndReason;
use tokio::io::ReadBuf;
use tokio::time::timeout;

use super::codec::{Connection, Event, PeerInfo, ProtocolError, Settings, put_ping};
use super::liveness::{Heartbeat, Liveness, Verdict};
use super::transport::Stream;

/// How much is read at once. It lies on the stack for the time of one read, so that idle peers hold no buffer.
pub(crate) const READ_BYTES: usize = 64 << 10;

/// Output buffers that had to grow for a large message are given back beyond this.
const KEPT_BYTES: usize = 64 << 10;

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
    /// Requests are not taken any more, or this one got no answer.
    Unanswered,
    /// All peers together have sent more than we hold of requests that are not complete.
    Crowded(usize),
    /// We stop.
    Stopped,
}

impl Closed {
    /// Whether the peer did something that its operator should know of.
    pub(crate) fn is_fault(&self) -> bool {
        matches!(
            self,
            Closed::Protocol(_)
                | Closed::HandshakeTimeout(_)
                | Closed::Silent
                | Closed::Crowded(_)
                | Closed::Unanswered
        )
    }
}

impl From<ProtocolError> for Closed {
    fn from(error: ProtocolError) -> Self {
        Closed::Protocol(error)
    }
}

impl From<io::Error> for Closed {
    fn from(error: io::Error) -> Self {
        Closed::Io(error)
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
            Closed::Ended(EndReason::Closed) => f.write_str("we stop, and it was sent everything"),
            Closed::Ended(EndReason::Overflowed) => f.write_str("its queue overflowed"),
            Closed::Unanswered => f.write_str("its request is not answered, since nobody takes requests any more"),
            Closed::Crowded(limit) => {
                write!(f, "the requests that are arriving have more than {limit} bytes in all, and its one made it so")
            }
            Closed::Stopped => f.write_str("we stop"),
        }
    }
}

/// A socket, the protocol on it, and the clock that watches the peer.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) stream: Stream,
    connection: Connection,
    /// How much of the connection's output has gone out.
    flushed: usize,
    liveness: Liveness,
    ping_ttl: Duration,
}

impl Link {
    pub(crate) fn new(stream: Stream, settings: Settings, heartbeat: Option<Heartbeat>) -> Self {
        Link {
            stream,
            connection: Connection::new(settings),
            flushed: 0,
            liveness: Liveness::new(heartbeat),
            ping_ttl: heartbeat.map_or(Duration::ZERO, |heartbeat| heartbeat.timeout),
        }
    }

    /// What is to be sent next, between messages; [`poll_flush`](Link::poll_flush) sends it.
    pub(crate) fn output(&mut self) -> &mut Vec<u8> {
        self.connection.output()
    }

    /// How many bytes are held of a frame that is not complete.
    pub(crate) fn held_bytes(&self) -> usize {
        self.connection.held_bytes()
    }

    /// Says that silence until now was ours: we did not read.
    pub(crate) fn excuse_silence(&mut self) {
        self.liveness.heard();
    }

    /// Reads once and hands on what came; looks at the clock, too. Ready when something was done, so that the caller
    /// looks around before the next round.
    pub(crate) fn poll_events(
        &mut self,
        cx: &mut Context<'_>,
        on_event: &mut dyn FnMut(Event<'_>) -> Result<(), Closed>,
    ) -> Poll<Result<(), Closed>> {
        let mut space = [MaybeUninit::<u8>::uninit(); READ_BYTES];
        let mut buf = ReadBuf::uninit(&mut space);
        match self.stream.poll_read(cx, &mut buf) {
            Poll::Ready(Ok(())) if buf.filled().is_empty() => return Poll::Ready(Err(Closed::ByPeer)),
            Poll::Ready(Ok(())) => return Poll::Ready(self.input(buf.filled(), on_event)),
            Poll::Ready(Err(e)) => return Poll::Ready(Err(Closed::Io(e))),
            Poll::Pending => {}
        }
        match ready!(self.liveness.poll(cx)) {
            Verdict::Dead => Poll::Ready(Err(Closed::Silent)),
            Verdict::Ping => {
                // Where something waits to go out, the peer is slow, and further questions would only pile up.
                if self.connection.is_ready() && self.connection.output().is_empty() {
                    put_ping(self.connection.output(), self.ping_ttl, b"");
                }
                Poll::Ready(Ok(()))
            }
        }
    }

    fn input(
        &mut self,
        mut bytes: &[u8],
        on_event: &mut dyn FnMut(Event<'_>) -> Result<(), Closed>,
    ) -> Result<(), Closed> {
        self.liveness.heard();
        while let Some(event) = self.connection.next(&mut bytes)? {
            match &event {
                Event::Ping { ttl } => self.liveness.promised(*ttl),
                // Peers that say 3.0 need not know PING; the zeromq crate hangs up on one.
                Event::Ready(peer) if peer.minor == 0 => self.liveness.ask_nothing(),
                _ => {}
            }
            on_event(event)?;
        }
        Ok(())
    }

    /// Sends what is in the output, all of it when ready.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let output = self.connection.output();
        while self.flushed < output.len() {
            let n = ready!(self.stream.poll_write_vectored(cx, &[IoSlice::new(&output[self.flushed..])]))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.flushed += n;
        }
        output.clear();
        output.shrink_to(KEPT_BYTES);
        self.flushed = 0;
        Poll::Ready(Ok(()))
    }

    /// Greeting and handshake, within `limit`. What the peer sends right behind them goes to `on_event`.
    pub(crate) async fn shake_hands(
        &mut self,
        limit: Duration,
        on_event: &mut (dyn FnMut(Event<'_>) -> Result<(), Closed> + Send),
    ) -> Result<PeerInfo, Closed> {
        let mut peer = None;
        let handshake = poll_fn(|cx| {
            loop {
                let flushed = self.poll_flush(cx)?;
                if flushed.is_ready()
                    && let Some(peer) = peer.take()
                {
                    return Poll::Ready(Ok(peer));
                }
                ready!(self.poll_events(cx, &mut |event| match event {
                    Event::Ready(info) => {
                        peer = Some(info.clone());
                        // What it has to say depends on who it is.
                        on_event(Event::Ready(info))
                    }
                    other => on_event(other),
                }))?;
            }
        });
        let result = timeout(limit, handshake).await.unwrap_or(Err(Closed::HandshakeTimeout(limit)));
        if result.is_err() {
            // There may be an ERROR command for the peer. It gets it if that can be done without waiting.
            poll_fn(|cx| {
                let _ = self.poll_flush(cx);
                Poll::Ready(())
            })
            .await;
        }
        result
    }

    /// Says that nothing more comes, and waits up to `limit` for the peer to hang up. Closing at once, with bytes of
    /// the peer unread, would make the kernel throw away what it has not delivered yet.
    pub(crate) async fn hang_up(&mut self, limit: Duration) {
        let hang_up = async {
            poll_fn(|cx| self.stream.poll_shutdown(cx)).await?;
            loop {
                let mut space = [0; 4096];
                let mut buf = ReadBuf::new(&mut space);
                poll_fn(|cx| self.stream.poll_read(cx, &mut buf)).await?;
                if buf.filled().is_empty() {
                    return io::Result::Ok(());
                }
            }
        };
        // Whichever way it goes, the connection is over.
        let _ = timeout(limit, hang_up).await;
    }
}
