//! Heartbeats: asking whether the peer lives, and noticing that it doesn't.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// How heartbeats are sent from our side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// A PING goes out that often.
    pub interval: Duration,
    /// A peer from which nothing at all has come for so long is dead.
    pub timeout: Duration,
}

impl Heartbeat {
    /// A PING that often; dead after three of them without a sign of life.
    pub const fn every(interval: Duration) -> Self {
        Heartbeat { interval, timeout: interval.saturating_mul(3) }
    }
}

/// What time says about a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Send a PING.
    Ping,
    /// It was silent for too long.
    Dead,
}

/// The clockwork of one connection. Without heartbeats, and as long as the peer promises none by a time to live, it
/// sets no timer.
#[derive(Debug)]
pub(crate) struct Liveness {
    heartbeat: Option<Heartbeat>,
    heard: Instant,
    next_ping: Instant,
    /// Until when the peer has promised to be heard of (its PING had a time to live).
    promised: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Liveness {
    pub(crate) fn new(heartbeat: Option<Heartbeat>) -> Self {
        let heard = Instant::now();
        let next_ping = heartbeat.map_or(heard, |heartbeat| heard + heartbeat.interval);
        Liveness { heartbeat, heard, next_ping, promised: None, timer: None }
    }

    /// Something came from the peer.
    pub(crate) fn heard(&mut self) {
        if self.heartbeat.is_some() {
            self.heard = Instant::now();
        }
        self.promised = None;
    }

    /// The peer promised to be heard of within `ttl`.
    pub(crate) fn promised(&mut self, ttl: Duration) {
        self.promised = (!ttl.is_zero()).then(|| Instant::now() + ttl);
    }

    /// The peer can't be asked.
    pub(crate) fn ask_nothing(&mut self) {
        self.heartbeat = None;
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Verdict> {
        loop {
            let silent_until = self.heartbeat.map(|heartbeat| self.heard + heartbeat.timeout);
            let next_ping = self.heartbeat.map(|_| self.next_ping);
            let Some(next) = [silent_until, next_ping, self.promised].into_iter().flatten().min() else {
                return Poll::Pending;
            };
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(next)));
            // Being heard moves the deadline on; the timer is set anew only when it has run out, not for each message.
            if timer.deadline() > next {
                timer.as_mut().reset(next);
            }
            ready!(timer.as_mut().poll(cx));
            let now = Instant::now();
            let dead = silent_until.is_some_and(|at| at <= now) || self.promised.is_some_and(|at| at <= now);
            if dead {
                return Poll::Ready(Verdict::Dead);
            }
            if let Some(heartbeat) = self.heartbeat
                && self.next_ping <= now
            {
                self.next_ping = now + heartbeat.interval;
                return Poll::Ready(Verdict::Ping);
            }
            // The timer was set for a deadline that has moved on since.
            timer.as_mut().reset(next);
        }
    }
}
