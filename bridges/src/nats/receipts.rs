//! Acknowledgements, and what the server says about the connection.

use std::borrow::Cow;
use std::future;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Message, StatusCode, Subscriber};
use futures_util::{FutureExt, StreamExt};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::sent::Sent;
use super::{encode, error};
use crate::delivery::{Fault, Receipt, Receipts, Rejection, Ticket};

/// How many acknowledgements are read at once.
const BATCH: usize = 1024;

/// What the library says about a connection.
#[derive(Debug)]
pub(super) enum Notice {
    /// It is over.
    Over,
    /// The server's words (`-ERR`).
    Said(String),
    /// The queue of acknowledgements was full, and some are lost.
    Overflow,
}

/// Reads acknowledgements of one connection.
#[derive(Debug)]
pub struct NatsReceipts {
    /// None for core NATS.
    acks: Option<Subscriber>,
    /// How many bytes of an acknowledgement's subject are before the ticket.
    prefix_bytes: usize,
    notices: mpsc::Receiver<Notice>,
    sent: Arc<Mutex<Sent>>,
    place: Arc<str>,
    who: &'static str,
    stream: String,
    /// What the stream takes; empty where that isn't known.
    subjects: Vec<String>,
    /// Whether anything was acknowledged over this connection.
    confirmed: bool,
    /// Letters whose subject was denied before anything was acknowledged, with the server's words.
    denied: Vec<(Ticket, String)>,
    denied_until: Option<Instant>,
    /// How long nothing else may be acknowledged before a denied subject is taken for an account that may publish nothing.
    denied_wait: Duration,
    /// The server's last complaint: it often tells why the connection ends.
    said: Option<String>,
    /// Why the connection is over. It is told when all that is known has been.
    fault: Option<Fault>,
}

impl NatsReceipts {
    pub(super) fn new(
        notices: mpsc::Receiver<Notice>,
        sent: Arc<Mutex<Sent>>,
        place: Arc<str>,
        who: &'static str,
        denied_wait: Duration,
    ) -> Self {
        NatsReceipts {
            acks: None,
            prefix_bytes: 0,
            notices,
            sent,
            place,
            who,
            stream: String::new(),
            subjects: Vec::new(),
            confirmed: false,
            denied: Vec::new(),
            denied_until: None,
            denied_wait,
            said: None,
            fault: None,
        }
    }

    pub(super) fn acknowledged_by(
        &mut self,
        acks: Subscriber,
        prefix_bytes: usize,
        stream: &str,
        subjects: Vec<String>,
    ) {
        self.acks = Some(acks);
        self.prefix_bytes = prefix_bytes;
        self.stream = stream.to_owned();
        self.subjects = subjects;
    }

    pub(super) fn place(&self) -> Arc<str> {
        self.place.clone()
    }

    /// Waits for the server's next complaint; used while connecting.
    pub(super) async fn complaint(&mut self) -> Result<String, Fault> {
        loop {
            match self.notices.recv().await {
                Some(Notice::Said(said)) => {
                    if denies_inbox(&said) {
                        return Err(self.inbox_denied(&said));
                    }
                    self.said = Some(said.clone());
                    return Ok(said);
                }
                Some(Notice::Overflow) => {}
                Some(Notice::Over) | None => return Err(self.over()),
            }
        }
    }

    fn over(&self) -> Fault {
        match &self.said {
            Some(said) => error::refused(&self.place, self.who, said),
            None => Fault::passing(format!("the connection to {} is gone", self.place)),
        }
    }

    fn inbox_denied(&self, said: &str) -> Fault {
        Fault::needs_help(format!(
            "{} denies the inbox for acknowledgements; permit it, or set another prefix for inboxes: {said}",
            self.place
        ))
    }

    fn acknowledged(&mut self, message: &Message, into: &mut Vec<Receipt>) {
        let token = message.subject.get(self.prefix_bytes..);
        let Some(ticket) = token.and_then(|token| token.parse().ok()).map(Ticket) else { return };
        if message.status == Some(StatusCode::NO_RESPONDERS) {
            return self.no_stream(ticket, into);
        }
        // What is no acknowledgement of a stream's came from somebody else who subscribes to the event and answers.
        let Ok(ack) = serde_json::from_slice::<Ack<'_>>(&message.payload) else { return };
        let receipt = match (ack.error, ack.stream) {
            (Some(error), _) => {
                let rejection = error::refusal(error.code, error.err_code, &error.description);
                Receipt::Rejected(ticket, rejection)
            }
            (None, Some(_)) if ack.duplicate => Receipt::Duplicate(ticket),
            (None, Some(_)) => Receipt::Confirmed(ticket),
            (None, None) => return,
        };
        if self.sent.lock().take(ticket).is_none() {
            return; // Two streams have it, and both say so.
        }
        into.push(receipt);
        self.confirmed = true;
        if !self.denied.is_empty() {
            // What is permitted to go elsewhere is, so it was that subject.
            self.denied_until = None;
            into.extend(
                self.denied.drain(..).map(|(ticket, said)| Receipt::Rejected(ticket, Rejection::Permanent(said))),
            );
        }
    }

    /// Nobody takes a letter.
    fn no_stream(&mut self, ticket: Ticket, into: &mut Vec<Receipt>) {
        let Some(subject) = self.sent.lock().take(ticket) else { return };
        if !self.subjects.is_empty() && !self.subjects.iter().any(|pattern| encode::meet(pattern, &subject)) {
            let reason =
                format!("stream {} doesn't take {subject}: its subjects are {}", self.stream, self.subjects.join(", "));
            into.push(Receipt::Rejected(ticket, Rejection::Permanent(reason)));
        } else if self.fault.is_none() {
            // It is made again, or waited for, by the next connection.
            self.fault = Some(Fault::passing(format!(
                "{}: no stream takes {subject}: {} is gone, or has no leader for now",
                self.place, self.stream
            )));
        }
    }

    fn noticed(&mut self, notice: Option<Notice>, into: &mut Vec<Receipt>) {
        match notice {
            None | Some(Notice::Over) => {
                self.drain(into);
                self.fault.get_or_insert_with(|| match &self.said {
                    Some(said) => error::refused(&self.place, self.who, said),
                    None => Fault::passing(format!("the connection to {} is gone", self.place)),
                });
            }
            Some(Notice::Overflow) => {
                let reason = format!("{}: acknowledgements came faster than they were read", self.place);
                self.fault.get_or_insert(Fault::passing(reason));
            }
            Some(Notice::Said(said)) => {
                if let Some(subject) = error::denied_subject(&said) {
                    let tickets = self.sent.lock().take_subject(subject);
                    self.deny(tickets, &said, into);
                } else if denies_inbox(&said) {
                    self.fault = Some(self.inbox_denied(&said));
                }
                self.said = Some(said);
            }
        }
    }

    fn deny(&mut self, letters: Vec<(Ticket, bool)>, said: &str, into: &mut Vec<Receipt>) {
        if self.acks.is_none() {
            // Without acknowledgements it counted as delivered already; that is what "at most once" means.
            tracing::warn!(server = %self.place, "an event was lost: {said}");
            return;
        }
        for (ticket, replayed) in letters {
            // What was refused before, and is again, says nothing about the account.
            if self.confirmed || replayed {
                into.push(Receipt::Rejected(ticket, Rejection::Permanent(said.to_owned())));
            } else {
                self.denied.push((ticket, said.to_owned()));
                self.denied_until.get_or_insert_with(|| Instant::now() + self.denied_wait);
            }
        }
    }

    /// Reads what has come already.
    fn drain(&mut self, into: &mut Vec<Receipt>) {
        for _ in 0..BATCH {
            let Some(acks) = &mut self.acks else { return };
            let Some(Some(message)) = acks.next().now_or_never() else { return };
            self.acknowledged(&message, into);
        }
    }
}

impl Receipts for NatsReceipts {
    async fn next(&mut self, into: &mut Vec<Receipt>) -> Result<(), Fault> {
        let before = into.len();
        loop {
            if into.len() > before {
                return Ok(());
            }
            if let Some(fault) = &self.fault {
                return Err(fault.clone());
            }
            let denied_until = self.denied_until;
            // Nothing is taken before the choice is made, so a future that is dropped has lost nothing.
            tokio::select! {
                message = next_of(&mut self.acks) => match message {
                    Some(message) => {
                        self.acknowledged(&message, into);
                        self.drain(into);
                    }
                    None => self.noticed(None, into),
                },
                notice = self.notices.recv() => self.noticed(notice, into),
                () = until(denied_until) => {
                    let said = self.denied.first().map_or("", |(_, said)| said);
                    self.fault = Some(Fault::needs_help(format!(
                        "{} has denied all that was published since it let us in by {}; permit this account to publish below the \
                         root: {said}",
                        self.place, self.who
                    )));
                }
            }
        }
    }
}

async fn next_of(acks: &mut Option<Subscriber>) -> Option<Message> {
    match acks {
        Some(acks) => acks.next().await,
        None => future::pending().await,
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => future::pending().await,
    }
}

fn denies_inbox(said: &str) -> bool {
    said.to_ascii_lowercase().starts_with("permissions violation for subscription")
}

/// What a stream answers ([ADR-1](https://github.com/nats-io/nats-architecture-and-design/blob/main/adr/ADR-1.md),
/// `io.nats.jetstream.api.v1.pub_ack_response`).
#[derive(Deserialize)]
struct Ack<'a> {
    #[serde(borrow)]
    stream: Option<Cow<'a, str>>,
    #[serde(default)]
    duplicate: bool,
    #[serde(borrow)]
    error: Option<AckError<'a>>,
}

#[derive(Deserialize)]
struct AckError<'a> {
    #[serde(default)]
    code: u16,
    #[serde(default)]
    err_code: u32,
    #[serde(borrow, default)]
    description: Cow<'a, str>,
}
