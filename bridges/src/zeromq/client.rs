//! Clients: a SUB that always comes back, and a REQ that asks until it is answered.
//!
//! Both connect again for as long as they live, with growing and random pauses, and both notice a peer that has
//! vanished by heartbeats (against peers that speak ZMTP 3.1; those that say 3.0 need not know PING, and are left to
//! TCP's keepalive).
//!
//! # Guarantees
//!
//! - A SUB gets what the publisher sends while it is connected, in order. What is published while it is not, is lost: a
//!   PUB socket keeps nothing for those who are away. [`SubEvent::Disconnected`] stands in the stream where that may
//!   have happened.
//! - A SUB whose owner does not read stops reading from the socket; the publisher's high-water mark then decides.
//! - A REQ sends a request again after a lost connection, so the other side may see it twice; once answered, it has
//!   been seen at least once.

use std::collections::BTreeSet;
use std::fmt;
use std::future::poll_fn;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::codec::{
    Event, MORE, PeerInfo, ProtocolError, Settings, SocketType, put_cancel, put_frame, put_subscribe,
    put_subscription_message,
};
use super::endpoint::Endpoint;
use super::link::{Closed, Link};
use super::liveness::Heartbeat;
use super::message::{Assembler, Frames};
use super::transport::Stream;

/// How a client connects, and connects again.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ClientOptions {
    /// How it asks whether the peer lives. Every 5 s unless set.
    pub heartbeat: Option<Heartbeat>,
    /// How long connecting and shaking hands may take. 10 s unless set.
    pub connect_timeout: Duration,
    /// The longest pause before the second attempt to connect; it doubles with each one that fails. 100 ms unless set.
    pub reconnect_min: Duration,
    /// What the longest pause grows to. 5 s unless set.
    pub reconnect_max: Duration,
    /// The longest message that is taken, in bytes. 512 MiB unless set.
    pub message_limit_bytes: usize,
    /// How many messages a SUB holds for its owner before it stops reading. 1000 unless set.
    pub hwm: usize,
}

impl Default for ClientOptions {
    fn default() -> Self {
        ClientOptions {
            heartbeat: Some(Heartbeat::every(Duration::from_secs(5))),
            connect_timeout: Duration::from_secs(10),
            reconnect_min: Duration::from_millis(100),
            reconnect_max: Duration::from_secs(5),
            message_limit_bytes: 512 << 20,
            hwm: 1000,
        }
    }
}

impl ClientOptions {
    /// Sets the heartbeats; `None` turns them off.
    #[must_use]
    pub fn heartbeat(mut self, heartbeat: Option<Heartbeat>) -> Self {
        self.heartbeat = heartbeat;
        self
    }

    /// Sets how long connecting and shaking hands may take.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets the longest pauses before connecting again, at first and in the long run.
    #[must_use]
    pub fn reconnect(mut self, min: Duration, max: Duration) -> Self {
        self.reconnect_min = min;
        self.reconnect_max = max;
        self
    }

    /// Sets the longest message that is taken.
    #[must_use]
    pub fn message_limit_bytes(mut self, bytes: usize) -> Self {
        self.message_limit_bytes = bytes;
        self
    }

    /// Sets how many messages a SUB holds for its owner; at least one.
    #[must_use]
    pub fn hwm(mut self, messages: usize) -> Self {
        self.hwm = messages.max(1);
        self
    }

    async fn connect(
        &self,
        endpoint: &Endpoint,
        socket_type: SocketType,
        on_event: &mut (dyn FnMut(Event<'_>) -> Result<(), Closed> + Send),
    ) -> Result<(Link, PeerInfo), Closed> {
        let late = || Closed::HandshakeTimeout(self.connect_timeout);
        let until = Instant::now() + self.connect_timeout;
        let stream = timeout_at(until, Stream::connect(endpoint)).await.map_err(|_| late())??;
        let settings = Settings::new(socket_type, self.message_limit_bytes);
        let mut link = Link::new(stream, settings, self.heartbeat);
        let peer = link.shake_hands(until.saturating_duration_since(Instant::now()), on_event).await?;
        Ok((link, peer))
    }
}

/// Pauses between attempts: random up to a bound that doubles, so that many clients of one server that restarts don't
/// all come back at once.
#[derive(Debug)]
struct Backoff {
    min: Duration,
    max: Duration,
    bound: Duration,
}

impl Backoff {
    fn new(options: &ClientOptions) -> Self {
        Backoff { min: options.reconnect_min, max: options.reconnect_max, bound: options.reconnect_min }
    }

    fn reset(&mut self) {
        self.bound = self.min;
    }

    /// From half the bound up to the bound; never zero, so that a peer that hangs up at once is not flooded.
    fn next(&mut self) -> Duration {
        let pause = self.bound.mul_f64(0.5 + fastrand::f64() / 2.0).max(Duration::from_millis(1));
        self.bound = self.bound.saturating_mul(2).min(self.max);
        pause
    }
}

/// What a [`SubClient`] yields.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SubEvent {
    /// There is a connection, and the subscriptions are on their way to the publisher.
    Connected,
    /// A message.
    Message(Frames),
    /// The connection was lost, or could not be made; another one will be tried. Messages may have been missed from
    /// here to some time after the next [`Connected`](SubEvent::Connected). Attempts that fail one after the other are
    /// told once.
    Disconnected {
        /// Why, for a log.
        reason: String,
    },
}

/// A ZeroMQ SUB socket that connects to one publisher.
///
/// A task reads, answers heartbeats and connects again; dropping the client ends it.
///
/// ```no_run
/// use hookbus_bridges::zeromq::SubClient;
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let mut events = SubClient::connect("tcp://127.0.0.1:2101".parse()?, ["EVENT STATE VM/", "HOOKBUS GAP"]);
/// let frames = events.recv().await;
/// println!("{:?}", frames[0]);
/// # Ok(())
/// # }
/// ```
pub struct SubClient {
    events: mpsc::Receiver<SubEvent>,
    changes: mpsc::UnboundedSender<Change>,
    task: JoinHandle<()>,
}

impl fmt::Debug for SubClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SubClient").finish_non_exhaustive()
    }
}

struct Change {
    subscribe: bool,
    prefix: Box<[u8]>,
}

impl SubClient {
    /// Connects, now and whenever the connection is lost, and subscribes to the prefixes; returns at once.
    ///
    /// # Panics
    /// Outside of a tokio runtime with I/O and time enabled.
    pub fn connect<P: AsRef<[u8]>>(endpoint: Endpoint, prefixes: impl IntoIterator<Item = P>) -> Self {
        SubClient::connect_with(endpoint, prefixes, ClientOptions::default())
    }

    /// [`connect`](SubClient::connect) with options.
    ///
    /// # Panics
    /// Outside of a tokio runtime with I/O and time enabled.
    pub fn connect_with<P: AsRef<[u8]>>(
        endpoint: Endpoint,
        prefixes: impl IntoIterator<Item = P>,
        options: ClientOptions,
    ) -> Self {
        let (sender, events) = mpsc::channel(options.hwm.max(1));
        let (changes, changed) = mpsc::unbounded_channel();
        let prefixes = prefixes.into_iter().map(|prefix| prefix.as_ref().into()).collect();
        let subscriber = Subscriber { endpoint, options, prefixes, changed, sender };
        SubClient { events, changes, task: tokio::spawn(subscriber.run()) }
    }

    /// Subscribes to one more prefix.
    pub fn subscribe(&self, prefix: impl AsRef<[u8]>) {
        self.change(true, prefix.as_ref());
    }

    /// Takes a subscription back.
    pub fn unsubscribe(&self, prefix: impl AsRef<[u8]>) {
        self.change(false, prefix.as_ref());
    }

    fn change(&self, subscribe: bool, prefix: &[u8]) {
        // The task ends only with this client.
        let _ = self.changes.send(Change { subscribe, prefix: prefix.into() });
    }

    /// What happens next. Cancelling loses nothing.
    pub async fn next_event(&mut self) -> SubEvent {
        match self.events.recv().await {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }

    /// The next message, whatever happens to the connection before it comes. Cancelling loses nothing.
    pub async fn recv(&mut self) -> Frames {
        loop {
            if let SubEvent::Message(frames) = self.next_event().await {
                return frames;
            }
        }
    }
}

impl Drop for SubClient {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The task behind a [`SubClient`].
struct Subscriber {
    endpoint: Endpoint,
    options: ClientOptions,
    prefixes: BTreeSet<Box<[u8]>>,
    changed: mpsc::UnboundedReceiver<Change>,
    sender: mpsc::Sender<SubEvent>,
}

impl Subscriber {
    async fn run(mut self) {
        let mut backoff = Backoff::new(&self.options);
        let mut told = false;
        loop {
            let since = Instant::now();
            let closed = self.session(&mut told).await;
            // After a good connection the next attempt comes soon: a publisher that restarts should miss us briefly.
            // One that ends at once (the server refuses us for something) is no reason to hurry.
            if !told && since.elapsed() >= self.options.reconnect_min {
                backoff.reset();
            }
            tracing::debug!(endpoint = %self.endpoint, "ZeroMQ subscription interrupted: {closed}");
            if !told {
                told = true;
                if self.sender.send(SubEvent::Disconnected { reason: closed.to_string() }).await.is_err() {
                    return;
                }
            }
            let pause = sleep(backoff.next());
            tokio::select! {
                () = pause => {}
                () = self.sender.closed() => return,
            }
        }
    }

    /// One connection from its beginning to its end.
    async fn session(&mut self, told: &mut bool) -> Closed {
        let mut assembler = Assembler::new(self.options.message_limit_bytes);
        let mut arrived = Vec::new();
        let mut on_event = |event: Event<'_>| gather(&mut assembler, &mut arrived, event);
        let connected = self.options.connect(&self.endpoint, SocketType::Sub, &mut on_event).await;
        let (mut link, peer) = match connected {
            Ok(connected) => connected,
            Err(closed) => return closed,
        };
        let put = |out: &mut Vec<u8>, subscribe, prefix: &[u8]| match (peer.minor, subscribe) {
            (0, _) => put_subscription_message(out, subscribe, prefix),
            (_, true) => put_subscribe(out, prefix),
            (_, false) => put_cancel(out, prefix),
        };
        for prefix in &self.prefixes {
            put(link.output(), true, prefix);
        }
        *told = false;
        if self.sender.send(SubEvent::Connected).await.is_err() {
            return Closed::Stopped;
        }
        loop {
            if !arrived.is_empty() {
                for message in arrived.drain(..) {
                    if self.sender.send(SubEvent::Message(message)).await.is_err() {
                        return Closed::Stopped;
                    }
                }
                // While the owner did not take them, we did not read: that the peer seems silent was us.
                link.excuse_silence();
            }
            let waited = poll_fn(|cx| {
                while let Poll::Ready(Some(Change { subscribe, prefix })) = self.changed.poll_recv(cx) {
                    // What does not change the set is no change for the publisher, who would count it.
                    let changes =
                        if subscribe { self.prefixes.insert(prefix.clone()) } else { self.prefixes.remove(&prefix) };
                    if changes {
                        put(link.output(), subscribe, &prefix);
                    }
                }
                if let Poll::Ready(Err(e)) = link.poll_flush(cx) {
                    return Poll::Ready(Err(Closed::Io(e)));
                }
                link.poll_events(cx, &mut |event| gather(&mut assembler, &mut arrived, event))
            });
            if let Err(closed) = waited.await {
                return closed;
            }
        }
    }
}

fn gather(assembler: &mut Assembler, arrived: &mut Vec<Frames>, event: Event<'_>) -> Result<(), Closed> {
    if let Event::Frame { more, body } = event {
        arrived.extend(assembler.push(more, body)?);
    }
    Ok(())
}

/// Why a request was not answered.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("request to {endpoint}: no answer within {timeout:?}; the last attempt ended because {reason}")]
pub struct RequestError {
    endpoint: String,
    timeout: Duration,
    reason: String,
}

/// A ZeroMQ REQ socket that asks one server, and connects again where it must.
///
/// Unlike libzmq's, it is never stuck with a request whose answer was lost: it asks again on a new connection, until
/// the time is over.
#[derive(Debug)]
pub struct ReqClient {
    endpoint: Endpoint,
    options: ClientOptions,
    link: Option<Link>,
}

impl ReqClient {
    /// A client of that server; it connects with the first request.
    pub fn new(endpoint: Endpoint) -> Self {
        ReqClient::with_options(endpoint, ClientOptions::default())
    }

    /// [`new`](ReqClient::new) with options.
    pub fn with_options(endpoint: Endpoint, options: ClientOptions) -> Self {
        ReqClient { endpoint, options, link: None }
    }

    /// Asks, and asks again after a lost connection, until there is an answer. Cancelling gives up; whether the server
    /// has seen the request is then unknown.
    ///
    /// # Errors
    /// When there is no answer within `limit`. The server may have seen the request all the same.
    pub async fn request(&mut self, body: impl Into<Bytes>, limit: Duration) -> Result<Bytes, RequestError> {
        let body = body.into();
        let mut reason = "there was no time for one".to_owned();
        let asking = async {
            let mut backoff = Backoff::new(&self.options);
            loop {
                match self.attempt(&body, &mut reason).await {
                    Ok(answer) => return answer,
                    Err(closed) => reason = closed.to_string(),
                }
                tracing::debug!(endpoint = %self.endpoint, "ZeroMQ request interrupted, asking again: {reason}");
                sleep(backoff.next()).await;
            }
        };
        timeout(limit, asking).await.map_err(|_| RequestError {
            endpoint: self.endpoint.to_string(),
            timeout: limit,
            reason,
        })
    }

    async fn attempt(&mut self, body: &Bytes, state: &mut String) -> Result<Bytes, Closed> {
        // Taken out, and put back only with the answer: a connection that still owes one would mix it up with the next.
        let mut link = match self.link.take() {
            Some(link) => link,
            None => self.options.connect(&self.endpoint, SocketType::Req, &mut |_| Ok(())).await?.0,
        };
        link.excuse_silence();
        put_frame(link.output(), MORE, b"");
        put_frame(link.output(), 0, body);
        state.clear();
        state.push_str("the server did not answer");
        let mut assembler = Assembler::new(self.options.message_limit_bytes);
        let mut arrived = Vec::new();
        let answer = poll_fn(|cx| {
            loop {
                if let Some(answer) = arrived.pop() {
                    return Poll::Ready(Ok::<Frames, Closed>(answer));
                }
                if let Poll::Ready(Err(e)) = link.poll_flush(cx) {
                    return Poll::Ready(Err(Closed::Io(e)));
                }
                ready!(link.poll_events(cx, &mut |event| gather(&mut assembler, &mut arrived, event)))?;
            }
        })
        .await?;
        let mut answer = answer.into_iter();
        match (answer.next(), answer.next()) {
            (Some(delimiter), Some(body)) if delimiter.is_empty() => {
                self.link = Some(link);
                Ok(body)
            }
            _ => Err(ProtocolError::NoDelimiter.into()),
        }
    }
}
