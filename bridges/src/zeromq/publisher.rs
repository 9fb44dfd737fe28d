//! The PUB side: listens, and gives each subscriber that connects a subscription of the broker.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hookbus_broker::{Broker, SubscriptionStats};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use super::codec::printable;
use super::endpoint::Endpoint;
use super::liveness::Heartbeat;
use super::peer::{self, Closed, PeerEntry};
use super::quiet::Quiet;
use super::transport::{Listener, Stream};

/// How a [`Publisher`] is set up.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PublisherOptions {
    /// Where it listens.
    pub endpoint: Endpoint,
    /// The high-water mark of each peer, in messages; 0 is no limit by count. 100,000 unless set.
    pub hwm: usize,
    /// The high-water mark of each peer, in bytes of keys and payloads; 0 is no limit. 256 MiB unless set.
    pub hwm_bytes: usize,
    /// How many connections there may be; further ones are closed at once. 10,000 unless set.
    pub max_peers: usize,
    /// How long a peer may take for greeting and handshake. 30 s unless set.
    pub handshake_timeout: Duration,
    /// The longest frame that a peer may send, in bytes. 64 KiB unless set.
    pub frame_limit_bytes: usize,
    /// How many different filters a peer may have. 100,000 unless set.
    pub max_filters: usize,
    /// How long the filters of a peer may be in all, in bytes. 16 MiB unless set.
    pub max_filter_bytes: usize,
    /// Heartbeats from our side. Off unless set: ZeroMQ peers may be silent, and TCP's keepalive notices those that have vanished. Peers
    /// that don't know PING (the zeromq crate) hang up on one.
    pub heartbeat: Option<Heartbeat>,
}

impl PublisherOptions {
    /// A publisher on that endpoint, everything else as it is unless set.
    pub fn new(endpoint: Endpoint) -> Self {
        PublisherOptions {
            endpoint,
            hwm: 100_000,
            hwm_bytes: 256 << 20,
            max_peers: 10_000,
            handshake_timeout: Duration::from_secs(30),
            frame_limit_bytes: 64 << 10,
            max_filters: 100_000,
            max_filter_bytes: 16 << 20,
            heartbeat: None,
        }
    }

    /// Sets the high-water mark of each peer in messages; 0 is no limit by count.
    #[must_use]
    pub fn hwm(mut self, messages: usize) -> Self {
        self.hwm = messages;
        self
    }

    /// Sets the high-water mark of each peer in bytes; 0 is no limit.
    #[must_use]
    pub fn hwm_bytes(mut self, bytes: usize) -> Self {
        self.hwm_bytes = bytes;
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

    /// Sets the longest frame that a peer may send.
    #[must_use]
    pub fn frame_limit_bytes(mut self, bytes: usize) -> Self {
        self.frame_limit_bytes = bytes;
        self
    }

    /// Sets how many filters a peer may have, and of how many bytes in all.
    #[must_use]
    pub fn filter_limits(mut self, filters: usize, bytes: usize) -> Self {
        self.max_filters = filters;
        self.max_filter_bytes = bytes;
        self
    }

    /// Turns heartbeats on.
    #[must_use]
    pub fn heartbeat(mut self, heartbeat: Heartbeat) -> Self {
        self.heartbeat = Some(heartbeat);
        self
    }
}

/// A ZeroMQ PUB socket over a broker, for SUB and XSUB peers that speak ZMTP 3.
///
/// Each peer is a subscription of the broker, named `zeromq <address>`, with the policy
/// [`DropNewest`](hookbus_broker::Overflow::DropNewest); its filters are the subscription's prefixes. What is dropped for a peer is told to
/// it as a message with the key [`GAP_KEY`](super::GAP_KEY), if it has a filter that asks for that key by name.
///
/// Dropping it closes everything at once.
///
/// ```
/// use std::time::Duration;
/// use hookbus_bridges::zeromq::{Publisher, PublisherOptions};
/// use hookbus_broker::{Broker, Message};
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let broker = Broker::default();
/// let publisher = Publisher::bind(broker.clone(), PublisherOptions::new("tcp://127.0.0.1:0".parse()?))?;
/// println!("subscribe to {}", publisher.local_endpoint());
/// broker.publish(Message::new("EVENT VM 7/ACTIVE/RUNNING ", "for whoever is there")).await?;
/// publisher.shutdown(Duration::from_secs(1)).await;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Debug)]
pub struct Publisher {
    shared: Arc<Shared>,
    endpoint: Endpoint,
    listening: JoinHandle<()>,
}

/// One peer, as it stands.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PeerStatus {
    /// Its address in the notation of endpoints; for a Unix socket, the path and the process.
    pub address: String,
    /// What it calls itself, escaped; usually empty.
    pub identity: String,
    /// `SUB` or `XSUB`.
    pub socket_type: String,
    /// The minor version of ZMTP 3 that it speaks.
    pub minor: u8,
    /// How many different filters it has.
    pub filters: usize,
    /// Its subscription: what matched, was sent, was dropped, is queued.
    pub subscription: SubscriptionStats,
}

/// Where the publisher is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Running,
    /// Peers may get what is queued for them until then.
    Draining(Instant),
}

/// What the publisher and its tasks share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) broker: Broker,
    pub(crate) options: PublisherOptions,
    pub(crate) phase: watch::Sender<Phase>,
    peers: Mutex<BTreeMap<u64, PeerEntry>>,
    refused: AtomicU64,
    refusals: Quiet,
    accept_errors: Quiet,
}

/// Stands for a peer in the listing; dropping it takes the peer out.
#[derive(Debug)]
pub(crate) struct Registration<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        self.shared.peers.lock().remove(&self.id);
    }
}

impl Shared {
    pub(crate) fn register(&self, id: u64, entry: PeerEntry) -> Registration<'_> {
        self.peers.lock().insert(id, entry);
        Registration { shared: self, id }
    }

    /// The end of a connection that never became a subscriber.
    pub(crate) fn log_refused(&self, address: &str, closed: &Closed) {
        if closed.is_fault() {
            self.refused.fetch_add(1, Ordering::Relaxed);
            self.warn_fault(address, closed);
        } else {
            tracing::debug!(peer = address, "ZeroMQ connection ended before its handshake: {closed}");
        }
    }

    /// The end of a subscriber; `abandoned` messages were queued for it, or on their way to it.
    pub(crate) fn log_left(&self, address: &str, closed: &Closed, stats: &SubscriptionStats, abandoned: u64) {
        let (delivered, dropped) = (stats.delivered, stats.dropped);
        if closed.is_fault() {
            self.warn_fault(address, closed);
        }
        if matches!(closed, Closed::Stopped) && abandoned > 0 {
            tracing::warn!(
                peer = address,
                abandoned,
                "ZeroMQ subscriber did not get all that was queued for it: {closed}"
            );
        }
        tracing::debug!(peer = address, delivered, dropped, abandoned, "ZeroMQ subscriber left: {closed}");
    }

    fn warn_fault(&self, address: &str, closed: &Closed) {
        if let Some(suppressed) = self.refusals.pass() {
            tracing::warn!(peer = address, suppressed, "ZeroMQ peer was disconnected: {closed}");
        }
    }
}

impl Publisher {
    /// Listens, and serves whoever connects, in tasks of the current tokio runtime. Returns at once.
    ///
    /// # Errors
    /// When the endpoint can't be bound; the message names it.
    ///
    /// # Panics
    /// Outside of a tokio runtime with I/O and time enabled.
    pub fn bind(broker: Broker, options: PublisherOptions) -> io::Result<Publisher> {
        let listener = Listener::bind(&options.endpoint)?;
        let endpoint = listener.local_endpoint()?;
        let shared = Arc::new(Shared {
            broker,
            options,
            phase: watch::Sender::new(Phase::Running),
            peers: Mutex::default(),
            refused: AtomicU64::new(0),
            refusals: Quiet::new(),
            accept_errors: Quiet::new(),
        });
        let listening = tokio::spawn(listen(Arc::clone(&shared), listener));
        Ok(Publisher { shared, endpoint, listening })
    }

    /// Where it listens, with the port that was given for port 0.
    pub fn local_endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The peers whose handshake is over, oldest first.
    pub fn peers(&self) -> Vec<PeerStatus> {
        let peers = self.shared.peers.lock();
        let status = |peer: &PeerEntry| {
            Some(PeerStatus {
                address: peer.address.clone(),
                identity: printable(&peer.info.identity),
                socket_type: peer.info.socket_type.clone(),
                minor: peer.info.minor,
                filters: peer.filters.load(Ordering::Relaxed),
                subscription: peer.handle.stats()?,
            })
        };
        peers.values().filter_map(status).collect()
    }

    /// How many connections were closed because of what the peer did before it was a subscriber, or because there were too many.
    pub fn refused(&self) -> u64 {
        self.shared.refused.load(Ordering::Relaxed)
    }

    /// Stops in order: no new connections; nothing more is queued for the peers; they get what is queued until the deadline; then their
    /// connections are closed. What could not be sent by then is logged, and counted by the broker as abandoned.
    ///
    /// Cancelling it closes everything at once.
    pub async fn shutdown(mut self, deadline: Duration) {
        // First the phase, then the handles: a peer that registers in between sees the phase.
        self.shared.phase.send_replace(Phase::Draining(Instant::now() + deadline));
        let handles: Vec<_> = self.shared.peers.lock().values().map(|peer| peer.handle.clone()).collect();
        for handle in handles {
            handle.close();
        }
        if let Err(e) = (&mut self.listening).await {
            tracing::error!("the ZeroMQ publisher's task failed: {e}");
        }
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        // The peers' tasks go with their owner.
        self.listening.abort();
    }
}

async fn listen(shared: Arc<Shared>, listener: Listener) {
    let mut peers = JoinSet::new();
    let mut phase = shared.phase.subscribe();
    let mut next_id = 0;
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) => {
                    if peers.len() >= shared.options.max_peers {
                        refuse_crowd(&shared, stream, &address);
                        continue;
                    }
                    peers.spawn(peer::serve(Arc::clone(&shared), next_id, stream, address));
                    next_id += 1;
                }
                Err(e) => after_accept_error(&shared.accept_errors, &shared.options.endpoint, &e).await,
            },
            Some(ended) = peers.join_next() => log_panic(ended),
            _ = phase.changed() => break,
        }
    }
    drop(listener);
    while let Some(ended) = peers.join_next().await {
        log_panic(ended);
    }
}

fn refuse_crowd(shared: &Shared, stream: Stream, address: &str) {
    drop(stream);
    shared.refused.fetch_add(1, Ordering::Relaxed);
    if let Some(suppressed) = shared.refusals.pass() {
        let limit = shared.options.max_peers;
        tracing::warn!(peer = address, suppressed, "ZeroMQ peer was refused: there are {limit} connections already");
    }
}

/// Says that accepting failed. Where the cause lasts (no more file descriptors), it waits a little, since trying again at once would only
/// burn the processor.
pub(crate) async fn after_accept_error(quiet: &Quiet, endpoint: &Endpoint, error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    if matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted) {
        // That one connection is gone; the next is not concerned.
        return;
    }
    if let Some(suppressed) = quiet.pass() {
        tracing::warn!(%endpoint, suppressed, "accepting a ZeroMQ connection failed, trying again: {error}");
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
}

pub(crate) fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(e) = ended {
        tracing::error!("the task of a ZeroMQ connection failed, the others go on: {e}");
    }
}
