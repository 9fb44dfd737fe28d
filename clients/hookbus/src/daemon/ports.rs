//! The two ports of OpenNebula's event queue, served whatever happens.
//!
//! Each port is a task of its own. A port that can't be had (taken, no such address, no permission) is told to oned when the
//! reason changes, and tried again for ever with a growing pause, since whoever has it may go away. The first pauses are short: the
//! usual reason is a predecessor that is just ending.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use hookbus_bridges::opennebula::Execution;
use hookbus_bridges::zeromq::{
    Endpoint, Host, Logger, LoggerOptions, PeerStatus, Publisher, PublisherOptions, Request,
};
use hookbus_broker::Broker;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::config::Config;
use crate::daemon::ResultQueue;
use crate::log;
use crate::writer::Writer;

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long executors that are connected may take to get their last answers.
const LAST_ANSWERS: Duration = Duration::from_millis(500);
/// How often it is looked whether a subscriber loses messages.
const LOOK_FOR_DROPS: Duration = Duration::from_secs(2);

/// The ports, as far as they can be had.
#[derive(Debug)]
pub(crate) struct Ports {
    publisher: JoinHandle<()>,
    logger: JoinHandle<()>,
    states: [watch::Receiver<PortState>; 2],
    /// When everything must be sent; nothing while the ports are served.
    stop: watch::Sender<Option<Instant>>,
}

/// What became of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PortState {
    /// It is being bound.
    Starting,
    /// It is served, at this endpoint.
    Listening(Endpoint),
    /// It can't be had now, and is tried again; why.
    Failed(String),
}

/// Where results of hook executors go.
#[derive(Clone, Debug)]
pub(crate) enum Results {
    /// To oned, whose driver this is.
    Oned(Writer),
    /// To the driver that forwards its events to this daemon.
    Forwarder(ResultQueue),
}

impl Results {
    /// Queues a line, waiting for room. Cancelling queues nothing.
    async fn push(&self, line: Bytes) {
        match self {
            // False means that nobody reads any more, for which the executor is not to blame.
            Results::Oned(writer) => drop(writer.push(line).await),
            Results::Forwarder(queue) => queue.push(line).await,
        }
    }
}

/// The names of the ports, as listings have them.
pub(crate) const PORT_NAMES: [&str; 2] = ["publisher port", "logger port"];

impl Ports {
    /// Serves both ports from now on. A port that can't be had is tried again for ever, for `hm`, or else
    /// [`Failed`](PortState::Failed) for good.
    pub(crate) fn serve(config: &Config, broker: &Broker, results: Results, persistent: bool) -> Self {
        let (stop, stopped) = watch::channel(None);
        let [(publisher, publisher_state), (logger, logger_state)] =
            [watch::channel(PortState::Starting), watch::channel(PortState::Starting)];
        Ports {
            publisher: tokio::spawn(serve_publisher(
                config.clone(),
                broker.clone(),
                persistent,
                publisher,
                stopped.clone(),
            )),
            logger: tokio::spawn(serve_logger(config.clone(), results, persistent, logger, stopped)),
            states: [publisher_state, logger_state],
            stop,
        }
    }

    /// What became of each port, in the order of [`PORT_NAMES`].
    pub(crate) fn states(&self) -> [watch::Receiver<PortState>; 2] {
        self.states.clone()
    }

    /// Ends in order: no new peers, what is queued for subscribers is sent, until `deadline` at most.
    pub(crate) async fn shut_down(self, deadline: Instant) {
        self.stop.send_replace(Some(deadline));
        for task in [self.logger, self.publisher] {
            if let Err(e) = task.await {
                tracing::error!("port: {e}");
            }
        }
    }
}

async fn serve_publisher(
    config: Config,
    broker: Broker,
    persistent: bool,
    state: watch::Sender<PortState>,
    mut stopped: watch::Receiver<Option<Instant>>,
) {
    let Config { zeromq: config, limits, .. } = config;
    let bind = |endpoint| {
        let options = PublisherOptions::new(endpoint)
            .hwm(config.hwm)
            .hwm_bytes(config.hwm_bytes.bytes())
            .frame_limit_bytes(limits.publisher_frame_bytes.bytes())
            .filter_limits(limits.filters, limits.filter_bytes.bytes())
            .max_peers(limits.peers);
        Publisher::bind(broker.clone(), options)
    };
    let port = Port { name: PORT_NAMES[0], endpoint: &config.publisher, persistent, state: &state };
    let Some(publisher) = port.bound(bind, &mut stopped).await else { return };
    state.send_replace(PortState::Listening(publisher.local_endpoint().clone()));
    let mut slow = SlowPeers::default();
    let deadline = loop {
        tokio::select! {
            deadline = deadline(&mut stopped) => break deadline,
            () = tokio::time::sleep(LOOK_FOR_DROPS) => slow.tell(&publisher.peers()),
        }
    };
    slow.tell(&publisher.peers());
    publisher.shutdown(deadline.saturating_duration_since(Instant::now())).await;
}

/// The peers that lose messages, so that the beginning and the end of it are told.
#[derive(Debug, Default)]
struct SlowPeers {
    /// What is known of each peer, by the number of its subscription.
    losses: HashMap<u64, Loss>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Loss {
    /// What the peer had lost in all when it was last looked at.
    total: u64,
    /// What of it belongs to times that are over.
    past: u64,
    ongoing: bool,
}

/// What is worth telling about a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// It has begun to lose messages; so many so far.
    Began(u64),
    /// It has lost none since the last look, after it had lost so many.
    Ended(u64),
}

impl SlowPeers {
    fn tell(&mut self, peers: &[PeerStatus]) {
        self.losses.retain(|id, _| peers.iter().any(|peer| peer.subscription.id == *id));
        for PeerStatus { address, subscription, .. } in peers {
            match self.look(subscription.id, subscription.dropped) {
                None => {}
                Some(Change::Began(lost)) => tracing::warn!(
                    "subscriber {address}: it reads too slowly and loses events, {lost} so far; {} wait for it, and more are \
                     not kept (-h; hwm and hwm_bytes in [zeromq])",
                    subscription.queued,
                ),
                Some(Change::Ended(lost)) => {
                    tracing::warn!("subscriber {address}: it keeps up again, after it lost {lost} events");
                }
            }
        }
    }

    fn look(&mut self, id: u64, dropped: u64) -> Option<Change> {
        let loss = self.losses.entry(id).or_default();
        let grew = dropped > loss.total;
        let was_ongoing = std::mem::replace(&mut loss.ongoing, grew);
        loss.total = dropped;
        let lost = dropped - loss.past;
        match (was_ongoing, grew) {
            (false, true) => Some(Change::Began(lost)),
            (true, false) => {
                loss.past = dropped;
                Some(Change::Ended(lost))
            }
            _ => None,
        }
    }
}

async fn serve_logger(
    config: Config,
    results: Results,
    persistent: bool,
    state: watch::Sender<PortState>,
    mut stopped: watch::Receiver<Option<Instant>>,
) {
    // One at a time: each waits for room towards oned, and the others wait in their connections.
    let (sender, mut requests) = mpsc::channel(1);
    let Config { zeromq, limits, .. } = config;
    let bind = |endpoint| {
        let options =
            LoggerOptions::new(endpoint).frame_limit_bytes(limits.logger_frame_bytes.bytes()).max_peers(limits.peers);
        Logger::bind(options, sender.clone())
    };
    let port = Port { name: PORT_NAMES[1], endpoint: &zeromq.logger, persistent, state: &state };
    let Some(logger) = port.bound(bind, &mut stopped).await else { return };
    state.send_replace(PortState::Listening(logger.local_endpoint().clone()));
    drop(sender);
    loop {
        tokio::select! {
            Some(request) = requests.recv() => report(request, &results, &mut stopped).await,
            _ = deadline(&mut stopped) => break,
        }
    }
    // oned reads no more. Executors still get their ACK: one that waits for it in vain would wait for ever, and they mostly
    // outlive oned.
    let ((), ()) = tokio::join!(logger.shutdown(LAST_ANSWERS), async {
        while let Some(request) = requests.recv().await {
            request.acknowledge();
        }
    });
}

/// Hands a result to oned, then acknowledges it. While oned does not read, executors wait for their ACK instead of our memory
/// growing.
async fn report(request: Request, results: &Results, stopped: &mut watch::Receiver<Option<Instant>>) {
    let mut line = Vec::new();
    Execution::parse(request.body()).write_to(&mut line);
    tokio::select! {
        () = results.push(line.into()) => {}
        _ = deadline(stopped) => {}
    }
    request.acknowledge();
}

/// A port that is to be listened at.
struct Port<'a> {
    name: &'a str,
    endpoint: &'a Endpoint,
    /// Whether it is tried again.
    persistent: bool,
    state: &'a watch::Sender<PortState>,
}

impl Port<'_> {
    /// Listens as soon as that can be had; nothing if the end comes first, or it can't be had and isn't tried again.
    async fn bound<T>(
        &self,
        bind: impl Fn(Endpoint) -> io::Result<T>,
        stopped: &mut watch::Receiver<Option<Instant>>,
    ) -> Option<T> {
        let Port { name, endpoint, .. } = self;
        let mut pause = FIRST_PAUSE;
        let mut told = String::new();
        loop {
            match resolved(endpoint).await.and_then(&bind) {
                Ok(port) if told.is_empty() => {
                    tracing::info!("{name}: listens at {endpoint}");
                    return Some(port);
                }
                Ok(port) => {
                    tracing::info!(target: log::ONED, "{name}: listens at {endpoint} now");
                    return Some(port);
                }
                Err(e) => {
                    let reason = e.to_string();
                    if reason != told {
                        self.state.send_replace(PortState::Failed(reason.clone()));
                        if !self.persistent {
                            // Its owner says so, and stops everything. The state is to be read until then.
                            let _ = deadline(stopped).await;
                            return None;
                        }
                        tracing::error!(
                            "{name}: cannot listen: {reason}; it is tried again until it works. Is another driver running, or \
                             is the address wrong?"
                        );
                        told = reason;
                    }
                }
            }
            // Jitter, so that two that wait for each other don't do it in step.
            let jitter = pause.mul_f64(0.5 + fastrand::f64());
            tokio::select! {
                () = tokio::time::sleep(jitter) => {}
                _ = deadline(stopped) => return None,
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// The endpoint with an address in place of a name. Asking for it may take long, so it is done by a thread of the runtime.
async fn resolved(endpoint: &Endpoint) -> io::Result<Endpoint> {
    let Endpoint::Tcp { host: Host::Name(name), port } = endpoint else { return Ok(endpoint.clone()) };
    let error = |reason: String| io::Error::other(format!("{endpoint}: no address for `{name}`: {reason}"));
    let mut addresses = tokio::net::lookup_host((&**name, *port)).await.map_err(|e| error(e.to_string()))?;
    addresses.next().map(Endpoint::from).ok_or_else(|| error("there is none".into()))
}

/// Waits for the end and returns by when it must be over.
async fn deadline(stopped: &mut watch::Receiver<Option<Instant>>) -> Instant {
    match stopped.wait_for(Option::is_some).await {
        Ok(deadline) => deadline.unwrap_or_else(Instant::now),
        // Who could tell is gone.
        Err(_) => Instant::now(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_peer_is_told_when_it_begins_and_when_it_ends() {
        let mut slow = SlowPeers::default();
        let mut looks = |totals: &[u64]| totals.iter().map(|total| slow.look(7, *total)).collect::<Vec<_>>();
        assert_eq!(
            looks(&[0, 0, 5, 9, 9, 9]),
            [None, None, Some(Change::Began(5)), None, Some(Change::Ended(9)), None]
        );
        assert_eq!(looks(&[12, 12]), [Some(Change::Began(3)), Some(Change::Ended(3))]);
    }
}
