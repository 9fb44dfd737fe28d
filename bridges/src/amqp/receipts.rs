//! Confirms, returns, and what the server says about the connection.
//!
//! # Returned messages
//!
//! RabbitMQ returns a message that no queue is bound for, and then acknowledges it. lapin puts what is returned into a queue, and each
//! confirm that completes takes the oldest from there, whoever it belongs to; a `basic.ack` for many completes them in no particular order.
//!
//! What follows from that: unroutable messages are acknowledged in the order in which they were returned, and each
//! completion takes one from the queue. So when the server's frame that completes a message has been worked off, its return, if there is
//! one, has been taken by some completed confirm. A confirm that carries nothing found the queue empty, so all returns were taken
//! before, by confirms that are ready by now. A confirm that carries somebody else's return may have been looked at while lapin was
//! still at work on the frame: then lapin's lock is taken once, which waits for the end of that, and what is ready is read again.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, Stream};
use futures_util::{FutureExt, StreamExt};
use lapin::types::ShortString;
use lapin::{Confirmation, Error, Event};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::config::Unroutable;
use super::connection::Link;
use super::error;
use super::sender::{Confirming, Published};
use crate::delivery::{Fault, Receipt, Receipts, Rejection, Ticket};

/// How long the reason for the end of a channel is waited for, once its end is known. It follows at once, if the server gives one.
const REASON: Duration = Duration::from_secs(1);

/// How many confirms are read at once.
const BATCH: usize = 1024;

/// What the library says about a connection.
type Events = Pin<Box<dyn Stream<Item = Event> + Send>>;

/// Reads confirms of one connection.
pub struct AmqpReceipts {
    link: Arc<Link>,
    events: Events,
    publishing: mpsc::UnboundedReceiver<Published>,
    confirms: FuturesUnordered<Confirm>,
    /// What is in flight, in the order of its tickets.
    in_flight: VecDeque<InFlight>,
    unroutable: Unroutable,
    max_message_bytes: Arc<AtomicUsize>,
    /// What was told last about being blocked.
    blocked: bool,
    /// Whether it was so before anybody listened for it; the server's reason is gone then.
    blocked_before: bool,
    /// The channel is over, and the reason may be on its way: it is waited for until then.
    ending: Option<(Error, Instant)>,
    fault: Option<Fault>,
}

/// A message that waits to be confirmed.
struct Confirm {
    ticket: Ticket,
    confirming: Confirming,
}

impl Future for Confirm {
    type Output = (Ticket, Result<Confirmation, Error>);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let ticket = self.ticket;
        self.confirming.as_mut().poll(context).map(|result| (ticket, result))
    }
}

struct InFlight {
    ticket: Ticket,
    id: ShortString,
    routing_key: ShortString,
    body_bytes: usize,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    /// It was returned, and is not confirmed yet.
    Returned,
    Settled,
}

impl std::fmt::Debug for AmqpReceipts {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("AmqpReceipts").field("in_flight", &self.in_flight.len()).finish_non_exhaustive()
    }
}

/// What was ready together.
#[derive(Default)]
struct Ready {
    confirmed: Vec<Ticket>,
    refused: Vec<Ticket>,
    carried: bool,
    error: Option<Error>,
    /// No better reason will come.
    is_last: bool,
}

impl Ready {
    /// The first error with the server's words tells most; those behind it say that the channel is closed.
    fn failed(&mut self, error: Error) {
        if self.error.as_ref().is_none_or(|known| error::said(known).is_none()) {
            self.error = Some(error);
        }
    }
}

impl AmqpReceipts {
    pub(super) fn new(
        link: Arc<Link>,
        events: Events,
        publishing: mpsc::UnboundedReceiver<Published>,
        unroutable: Unroutable,
        max_message_bytes: Arc<AtomicUsize>,
        blocked_before: bool,
    ) -> Self {
        AmqpReceipts {
            link,
            events,
            publishing,
            confirms: FuturesUnordered::new(),
            in_flight: VecDeque::new(),
            unroutable,
            max_message_bytes,
            blocked: false,
            blocked_before,
            ending: None,
            fault: None,
        }
    }

    fn published(&mut self, published: Published) {
        let Published { ticket, id, routing_key, body_bytes, confirming } = published;
        self.in_flight.push_back(InFlight { ticket, id, routing_key, body_bytes, state: State::Waiting });
        self.confirms.push(Confirm { ticket, confirming });
    }

    /// Waits until there is something to look at, takes what was published meanwhile, and says what was ready.
    async fn wait(&mut self) -> Woken {
        tokio::select! {
            published = self.publishing.recv(), if !self.publishing.is_closed() || !self.publishing.is_empty() => {
                Woken::Published(published)
            }
            Some((ticket, result)) = self.confirms.next(), if !self.confirms.is_empty() => Woken::Confirm(ticket, result),
            event = self.events.next() => Woken::Event(event),
            () = until(self.ending.as_ref().map(|(_, at)| *at)) => Woken::NoReason,
        }
    }

    /// Takes all that is ready, up to a batch.
    fn take_ready(&mut self, ready: &mut Ready) {
        while let Ok(published) = self.publishing.try_recv() {
            self.published(published);
        }
        while ready.confirmed.len() + ready.refused.len() < BATCH {
            match self.confirms.next().now_or_never() {
                Some(Some((ticket, result))) => self.take(ticket, result, ready),
                _ => return,
            }
        }
    }

    fn take(&mut self, ticket: Ticket, result: Result<Confirmation, Error>, ready: &mut Ready) {
        let returned = match result {
            Ok(Confirmation::Ack(returned)) => {
                ready.confirmed.push(ticket);
                returned
            }
            Ok(Confirmation::Nack(returned)) => {
                ready.refused.push(ticket);
                returned
            }
            Ok(Confirmation::NotRequested) => {
                let reason = format!("{} doesn't confirm what is published", self.link.place);
                self.fault.get_or_insert(Fault::needs_help(reason));
                None
            }
            Err(error) => {
                ready.failed(error);
                None
            }
        };
        if let Some(returned) = returned {
            ready.carried = true;
            self.returned(returned.properties.message_id().as_ref());
        }
    }

    /// Notes that a message came back.
    fn returned(&mut self, id: Option<&ShortString>) {
        let of = |message: &&mut InFlight| message.state == State::Waiting && Some(&message.id) == id;
        match self.in_flight.iter_mut().find(of) {
            Some(message) => message.state = State::Returned,
            // It was told as delivered: the server doesn't keep to the order that it documents.
            None => tracing::warn!(server = %self.link.place, ?id, "an event came back after it was confirmed"),
        }
    }

    fn settle(&mut self, ready: Ready, into: &mut Vec<Receipt>) {
        for ticket in ready.confirmed {
            let Some(state) = self.take_out(ticket) else { continue };
            into.push(match (state, self.unroutable) {
                (State::Returned, Unroutable::Ignore) => Receipt::Unroutable(ticket),
                (State::Returned, Unroutable::Reject) => {
                    Receipt::Rejected(ticket, Rejection::Permanent("no queue is bound for it".into()))
                }
                _ => Receipt::Confirmed(ticket),
            });
        }
        for ticket in ready.refused {
            if self.take_out(ticket).is_some() {
                let reason = format!("{} refuses it for now (nack): a queue is full, perhaps", self.link.place);
                into.push(Receipt::Rejected(ticket, Rejection::Transient(reason)));
            }
        }
        match ready.error {
            Some(error) if ready.is_last || error::said(&error).is_some() => self.ended(&error, into),
            Some(error) => _ = self.ending.get_or_insert((error, Instant::now() + REASON)),
            None => {}
        }
        while self.in_flight.front().is_some_and(|message| message.state == State::Settled) {
            self.in_flight.pop_front();
        }
    }

    fn take_out(&mut self, ticket: Ticket) -> Option<State> {
        let at = self.in_flight.binary_search_by_key(&ticket, |message| message.ticket).ok()?;
        let state = std::mem::replace(&mut self.in_flight[at].state, State::Settled);
        (state != State::Settled).then_some(state)
    }

    /// The connection, or its channel, is over. Where one message is the cause, it is told: it would be so again.
    fn ended(&mut self, error: &Error, into: &mut Vec<Receipt>) {
        if self.fault.is_some() {
            return;
        }
        let words = error::said(error).map(|(_, words)| words).unwrap_or_default();
        let fault = error::ended(&self.link.place, error);
        let guilty: Vec<Ticket> = if let Some(limit) = error::max_size(&words) {
            self.max_message_bytes.fetch_min(limit, Ordering::Relaxed);
            self.waiting(|message| message.body_bytes > limit)
        } else if let Some(topic) = error::denied_topic(&words) {
            self.waiting(|message| message.routing_key.as_str() == topic)
        } else {
            Vec::new()
        };
        // Without that one, the next connection goes well.
        self.fault = Some(if guilty.is_empty() { fault } else { Fault::passing(fault.reason) });
        for ticket in guilty {
            self.take_out(ticket);
            into.push(Receipt::Rejected(ticket, Rejection::Permanent(words.clone())));
        }
    }

    fn waiting(&self, which: impl Fn(&InFlight) -> bool) -> Vec<Ticket> {
        self.in_flight
            .iter()
            .filter(|message| message.state != State::Settled && which(message))
            .map(|message| message.ticket)
            .collect()
    }

    fn happened(&mut self, event: Option<Event>, into: &mut Vec<Receipt>) {
        match event {
            Some(Event::ConnectionBlocked(reason)) => self.block(Some(reason), into),
            Some(Event::ConnectionUnblocked) => self.block(None, into),
            // The channel on which the exchange was looked for in vain; it takes its leave late.
            Some(Event::Error(error)) if error::of_a_channel(&error) && self.link.channel.status().connected() => {}
            Some(Event::Error(error)) => {
                // What was confirmed before that counts.
                let mut ready = Ready { is_last: true, ..Ready::default() };
                self.take_ready(&mut ready);
                ready.failed(error);
                self.decide(ready, into);
            }
            None => {
                let reason = format!("the connection to {} is gone", self.link.place);
                self.fault.get_or_insert(Fault::passing(reason));
            }
            Some(_) => {}
        }
    }

    fn block(&mut self, reason: Option<String>, into: &mut Vec<Receipt>) {
        if self.blocked != reason.is_some() {
            self.blocked = reason.is_some();
            into.push(Receipt::Blocked(reason));
        }
    }

    /// Tells what was ready, with the returns that belong to it.
    fn decide(&mut self, mut ready: Ready, into: &mut Vec<Receipt>) {
        if ready.carried {
            // The first poll takes the lock that lapin holds while it works off a frame. What the future waits for doesn't matter.
            let barrier = self.link.clone();
            let _ = pin!(barrier.channel.wait_for_confirms()).poll(&mut Context::from_waker(Waker::noop()));
            loop {
                let before = ready.confirmed.len() + ready.refused.len();
                while let Some(Some((ticket, result))) = self.confirms.next().now_or_never() {
                    self.take(ticket, result, &mut ready);
                }
                if before == ready.confirmed.len() + ready.refused.len() {
                    break;
                }
            }
        }
        self.settle(ready, into);
    }
}

#[expect(clippy::large_enum_variant, reason = "there is one at a time, and it is taken apart at once")]
enum Woken {
    Published(Option<Published>),
    Confirm(Ticket, Result<Confirmation, Error>),
    Event(Option<Event>),
    /// The reason for the end of the channel has been waited for in vain.
    NoReason,
}

/// Waits until then, or for ever.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

impl Receipts for AmqpReceipts {
    async fn next(&mut self, into: &mut Vec<Receipt>) -> Result<(), Fault> {
        let before = into.len();
        if std::mem::take(&mut self.blocked_before) {
            self.block(Some("the server blocks connections that publish".into()), into);
        }
        loop {
            if into.len() > before {
                return Ok(());
            }
            if let Some(fault) = &self.fault {
                return Err(fault.clone());
            }
            // What is taken here is worked off without waiting, so a future that is dropped has lost nothing.
            match self.wait().await {
                Woken::Published(Some(published)) => self.published(published),
                Woken::Published(None) => {}
                Woken::Confirm(ticket, result) => {
                    let mut ready = Ready::default();
                    self.take(ticket, result, &mut ready);
                    self.take_ready(&mut ready);
                    self.decide(ready, into);
                }
                Woken::Event(event) => self.happened(event, into),
                Woken::NoReason => {
                    if let Some((error, _)) = self.ending.take() {
                        self.ended(&error, into);
                    }
                }
            }
        }
    }
}
