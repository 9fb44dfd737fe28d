//! What the two servers have in common: listening, a bound on connections, stopping in order, and logging about peers
//! at a bearable rate.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use super::endpoint::Endpoint;
use super::link::Closed;
use super::quiet::Quiet;
use super::transport::{Listener, Stream};

/// Where a server is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Running,
    /// No new connections; those that are there may finish until then.
    Draining(Instant),
}

/// The door of a server: it counts, refuses, and tells everybody when it closes.
#[derive(Debug)]
pub(crate) struct Door {
    /// What logs call the server.
    role: &'static str,
    max_peers: usize,
    phase: watch::Sender<Phase>,
    refused: AtomicU64,
    faults: Quiet,
    accept_errors: Quiet,
}

impl Door {
    pub(crate) fn new(role: &'static str, max_peers: usize) -> Self {
        Door {
            role,
            max_peers,
            phase: watch::Sender::new(Phase::Running),
            refused: AtomicU64::new(0),
            faults: Quiet::new(),
            accept_errors: Quiet::new(),
        }
    }

    /// How many connections ended before they had become peers, by their own fault or because there were too many.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    pub(crate) fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Closes the door, and gives those inside so much time.
    pub(crate) fn close(&self, deadline: Duration) {
        self.phase.send_replace(Phase::Draining(Instant::now() + deadline));
    }

    /// The end of a connection that never became a peer.
    pub(crate) fn log_refused(&self, address: &str, closed: &Closed) {
        if closed.is_fault() {
            self.refused.fetch_add(1, Ordering::Relaxed);
            self.log_fault(address, closed);
        } else {
            tracing::debug!(role = self.role, peer = address, "ZeroMQ connection ended before its handshake: {closed}");
        }
    }

    /// A peer that was disconnected for what it did.
    pub(crate) fn log_fault(&self, address: &str, closed: &Closed) {
        if let Some(suppressed) = self.faults.pass() {
            tracing::warn!(role = self.role, peer = address, suppressed, "ZeroMQ peer was disconnected: {closed}");
        }
    }

    fn refuse_crowd(&self, stream: Stream, address: &str) {
        drop(stream);
        self.refused.fetch_add(1, Ordering::Relaxed);
        if let Some(suppressed) = self.faults.pass() {
            let limit = self.max_peers;
            tracing::warn!(
                role = self.role,
                peer = address,
                suppressed,
                "ZeroMQ peer was refused: there are {limit} connections already"
            );
        }
    }

    /// Says that accepting failed. Where the cause lasts (no more file descriptors), it waits a little, since trying
    /// again at once would only burn the processor.
    async fn after_error(&self, endpoint: &Endpoint, error: &io::Error) {
        use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
        if matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted) {
            // That one connection is gone; the next is not concerned.
            return;
        }
        if let Some(suppressed) = self.accept_errors.pass() {
            tracing::warn!(%endpoint, suppressed, "accepting a ZeroMQ connection failed, trying again: {error}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Accepts connections until the door closes, each served by a task of its own; then waits for those tasks. Ending this
/// future ends them, too.
pub(crate) async fn listen<F, S>(door: Arc<Door>, listener: Listener, endpoint: Endpoint, serve: F)
where
    F: Fn(Stream, String) -> S,
    S: Future<Output = ()> + Send + 'static,
{
    let mut peers = JoinSet::new();
    let mut phase = door.phase();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) if peers.len() >= door.max_peers => door.refuse_crowd(stream, &address),
                Ok((stream, address)) => {
                    peers.spawn(serve(stream, address));
                }
                Err(e) => door.after_error(&endpoint, &e).await,
            },
            Some(ended) = peers.join_next() => log_panic(ended),
            () = closing(&mut phase) => break,
        }
    }
    drop(listener);
    while let Some(ended) = peers.join_next().await {
        log_panic(ended);
    }
}

/// Waits until the door closes. It may have been closed before the task that asks ran for the first time, so that a change
/// would be waited for in vain.
async fn closing(phase: &mut watch::Receiver<Phase>) {
    // An error means that the server was dropped, which is an end as well.
    let _ = phase.wait_for(|phase| *phase != Phase::Running).await;
}

/// Waits until the time for draining is over.
pub(crate) async fn deadline(phase: &mut watch::Receiver<Phase>) {
    let until = match phase.wait_for(|phase| *phase != Phase::Running).await.as_deref() {
        Ok(Phase::Draining(until)) => *until,
        // The server was dropped, and this task ends with it.
        _ => return,
    };
    tokio::time::sleep_until(until).await;
}

/// How long one may still take to say goodbye.
pub(crate) fn time_left(phase: Phase, most: Duration) -> Duration {
    match phase {
        Phase::Draining(until) => most.min(until.saturating_duration_since(Instant::now())),
        Phase::Running => most,
    }
}

fn log_panic(ended: Result<(), JoinError>) {
    if let Err(e) = ended {
        tracing::error!("the task of a ZeroMQ connection failed, the others go on: {e}");
    }
}
