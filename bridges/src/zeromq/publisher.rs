//! The PUB side: listens, and gives each subscriber that connects a subscription of the broker.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hookbus_broker::{Broker, SubscriptionStats};
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use super::codec::printable;
use super::endpoint::Endpoint;
use super::link::Closed;
use super::liveness::Heartbeat;
use super::peer::{self, PeerEntry};
use super::server::{Door, listen};
use super::transport::Listener;

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
    /// Heartbeats from our side, to peers that speak ZMTP 3.1. Off unless set: ZeroMQ peers may be silent, and TCP's
    /// keepalive notices those that have vanished.
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
/// [`DropNewest`](hookbus_broker::Overflow::DropNewest); its filters are the subscription's prefixes. What is dropped
/// for a peer is told to it as a message with the key [`GAP_KEY`](super::GAP_KEY), if it has a filter that asks for
/// that key by name.
///
/// Dropping it closes everything as soon as the
/// runtime gets to it; to use its endpoint again, await [`shutdown`](Publisher::shutdown).
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

/// What the publisher and its tasks share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) broker: Broker,
    pub(crate) options: PublisherOptions,
    pub(crate) door: Arc<Door>,
    peers: Mutex<Peers>,
}

#[derive(Debug, Default)]
struct Peers {
    next_id: u64,
    entries: BTreeMap<u64, PeerEntry>,
}

/// Stands for a peer in the listing; dropping it takes the peer out.
#[derive(Debug)]
pub(crate) struct Registration<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        self.shared.peers.lock().entries.remove(&self.id);
    }
}

impl Shared {
    pub(crate) fn register(&self, entry: PeerEntry) -> Registration<'_> {
        let mut peers = self.peers.lock();
        let id = peers.next_id;
        peers.next_id += 1;
        peers.entries.insert(id, entry);
        Registration { shared: self, id }
    }

    /// The end of a subscriber; `abandoned` messages were queued for it, or on their way to it.
    pub(crate) fn log_left(&self, address: &str, closed: &Closed, stats: &SubscriptionStats, abandoned: u64) {
        let (delivered, dropped) = (stats.delivered, stats.dropped);
        if closed.is_fault() {
            self.door.log_fault(address, closed);
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
        let door = Arc::new(Door::new("publisher", options.max_peers));
        let shared = Arc::new(Shared { broker, options, door: Arc::clone(&door), peers: Mutex::default() });
        let serve = {
            let shared = Arc::clone(&shared);
            move |stream, address| peer::serve(Arc::clone(&shared), stream, address)
        };
        let listening = tokio::spawn(listen(door, listener, endpoint.clone(), serve));
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
        peers.entries.values().filter_map(status).collect()
    }

    /// How many connections were closed because of what the peer did before it was a subscriber, or because there were
    /// too many.
    pub fn refused(&self) -> u64 {
        self.shared.door.refused()
    }

    /// Stops in order: no new connections; nothing more is queued for the peers; they get what is queued until the
    /// deadline; then their connections are closed. What could not be sent by then is logged, and counted by the broker
    /// as abandoned.
    ///
    /// Cancelling it closes everything at once.
    pub async fn shutdown(mut self, deadline: Duration) {
        // First the phase, then the handles: a peer that registers in between sees the phase.
        self.shared.door.close(deadline);
        let handles: Vec<_> = self.shared.peers.lock().entries.values().map(|peer| peer.handle.clone()).collect();
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
