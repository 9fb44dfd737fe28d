//! One subscriber: a task that turns its broker subscription into frames, and its frames into filters.
//!
//! It waits for three things at once: something queued, something to read, and, while the socket is full, room to
//! write. Reading never stops for writing: a peer whose socket is full can still cancel a filter, or prove that it
//! lives. An idle peer costs no system call; a message to a peer that keeps up costs one.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hookbus_broker::{BatchLimit, EndReason, SubscribeOptions, Subscription, SubscriptionHandle, TryRecvError};

use super::codec::{Event, PeerInfo, Settings, SocketType};
use super::filters::{FilterLimits, Filters};
use super::link::{Closed, Link};
use super::outbound::Outbound;
use super::publisher::Shared;
use super::server::{Phase, deadline, time_left};
use super::transport::Stream;

/// How much is written at once. Batches of 4 KiB were measured to halve the rate; beyond 16 KiB it hardly matters.
const BATCH_BYTES: usize = 256 << 10;
const BATCH_MESSAGES: usize = 512;

/// After the last message, how long we wait for the peer to have read it and hang up.
const LINGER: Duration = Duration::from_secs(1);

/// What listings show of a peer, and what they need for it.
#[derive(Debug)]
pub(crate) struct PeerEntry {
    pub(crate) address: String,
    pub(crate) info: PeerInfo,
    pub(crate) filters: Arc<AtomicUsize>,
    pub(crate) handle: SubscriptionHandle,
}

/// The way in: frames become filters and answers.
#[derive(Debug)]
pub(crate) struct Inbound {
    pub(crate) link: Link,
    pub(crate) filters: Filters,
    filter_count: Arc<AtomicUsize>,
    handle: Option<SubscriptionHandle>,
}

impl Inbound {
    /// Reads once and handles what came. Ready when something was done.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Closed>> {
        let filters = &mut self.filters;
        let polled = self.link.poll_events(cx, &mut |event| on_event(filters, &event));
        if polled.is_ready() {
            // One change for all that this read brought; before an error, too, since what came before it was valid.
            self.apply();
        }
        polled
    }

    fn apply(&mut self) {
        if let Some(handle) = &self.handle {
            self.filters.apply(handle);
            self.filter_count.store(self.filters.len(), Ordering::Relaxed);
        }
    }
}

fn on_event(filters: &mut Filters, event: &Event<'_>) -> Result<(), Closed> {
    match event {
        Event::Subscribe(prefix) => filters.subscribe(prefix)?,
        Event::Cancel(prefix) => filters.cancel(prefix),
        Event::Ready(peer) => filters.set_counting(!peer.libzmq),
        Event::Ping { .. } | Event::Pong | Event::Frame { .. } => {}
    }
    Ok(())
}

/// Serves one connection from its first byte to its last.
pub(crate) async fn serve(shared: Arc<Shared>, stream: Stream, address: String) {
    let options = &shared.options;
    let settings = Settings::new(SocketType::Pub, options.frame_limit_bytes);
    let mut inbound = Inbound {
        link: Link::new(stream, settings, options.heartbeat),
        filters: Filters::new(FilterLimits { filters: options.max_filters, bytes: options.max_filter_bytes }),
        filter_count: Arc::default(),
        handle: None,
    };
    let mut phase = shared.door.phase();

    let filters = &mut inbound.filters;
    let mut early = |event: Event<'_>| on_event(filters, &event);
    let greeted = tokio::select! {
        greeted = inbound.link.shake_hands(options.handshake_timeout, &mut early) => greeted,
        // Nothing is queued for it yet.
        _ = phase.wait_for(|phase| *phase != Phase::Running) => Err(Closed::Stopped),
    };
    let info = match greeted {
        Ok(info) => info,
        Err(closed) => return shared.door.log_refused(&address, &closed),
    };

    let subscribe = SubscribeOptions::new(format!("zeromq {address}")).hwm(options.hwm).hwm_bytes(options.hwm_bytes);
    let mut subscription = shared.broker.subscribe(subscribe);
    let handle = subscription.handle().clone();
    inbound.handle = Some(handle.clone());
    inbound.apply();
    let (socket, minor, filters) = (&info.socket_type, info.minor, inbound.filters.len());
    tracing::debug!(peer = %address, socket, minor, filters, "ZeroMQ subscriber connected");
    let filters = Arc::clone(&inbound.filter_count);
    let _registration = shared.register(PeerEntry { address: address.clone(), info, filters, handle: handle.clone() });
    // Who registers after the door was closed has not been told to drain; see `Publisher::shutdown`.
    if *phase.borrow() != Phase::Running {
        handle.close();
    }

    let mut abandoned = 0;
    let closed = tokio::select! {
        closed = traffic(&mut subscription, &mut inbound, &mut abandoned) => closed,
        () = deadline(&mut phase) => Closed::Stopped,
    };
    if let Closed::Ended(_) = closed {
        let limit = time_left(*phase.borrow(), LINGER);
        inbound.link.hang_up(limit).await;
    }
    if let Some(stats) = handle.stats() {
        shared.log_left(&address, &closed, &stats, abandoned + stats.queued);
    }
}

async fn traffic(subscription: &mut Subscription, inbound: &mut Inbound, abandoned: &mut u64) -> Closed {
    let hwm = subscription.handle().stats().map_or((0, 0), |stats| (stats.hwm, stats.hwm_bytes));
    // What is on its way comes on top of what is queued; a small high-water mark asks for little of both.
    let capped = |most: usize, hwm: usize| if hwm == 0 { most } else { most.min(hwm) };
    let limit = BatchLimit::messages(capped(BATCH_MESSAGES, hwm.0)).bytes(capped(BATCH_BYTES, hwm.1));
    let mut outbound = Outbound::default();
    loop {
        // Both are asked each time, so that neither a flood of input nor one of output keeps the other waiting.
        let waited = poll_fn(|cx| {
            let queued = subscription.poll_ready(cx);
            match inbound.poll(cx) {
                Poll::Ready(result) => Poll::Ready(result),
                Poll::Pending => queued.map(Ok),
            }
        });
        if let Err(closed) = waited.await {
            return closed;
        }
        if !inbound.link.output().is_empty()
            && let Err(closed) = outbound.send_control(inbound).await
        {
            return closed;
        }
        let nothing = match subscription.try_recv_batch(limit) {
            Ok(batch) => {
                if let Err(closed) = outbound.send(batch, inbound, abandoned).await {
                    return closed;
                }
                continue;
            }
            Err(nothing) => nothing,
        };
        if nothing == TryRecvError::Ended {
            return Closed::Ended(subscription.end().unwrap_or(EndReason::Closed));
        }
    }
}
