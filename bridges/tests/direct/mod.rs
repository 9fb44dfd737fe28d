//! A bus by itself, without the ledger: letters, and the simplest loop that delivers them at least once.

#![allow(dead_code, unreachable_pub, reason = "each test program uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test that can't do this fails")]

use std::collections::BTreeMap;
use std::time::Duration;

use hookbus_bridges::cloudevents::{Encoder, Format, Sources};
use hookbus_bridges::delivery::{
    Bus, Fault, Letter, LetterWriter, Limits, Receipt, Receipts, Rejection, SendError, Sender, Ticket,
};
use hookbus_broker::{Broker, Message, SubscribeOptions};
use tokio::time::{Instant, sleep, timeout};

use crate::servers::PATIENCE;

/// Letters for this bus: one for each pair of key and payload.
pub async fn letters<B: Bus>(format: Format, events: impl IntoIterator<Item = (String, Vec<u8>)>) -> Vec<Letter> {
    let encoder = Encoder::new(Sources { host: "one-frontend".into(), zone: None });
    let writer = LetterWriter::new::<B>(encoder, format, "hookbus");
    let broker = Broker::default();
    let mut subscription = broker.subscribe(SubscribeOptions::new("letters").prefix("").hwm(0));
    let mut letters = Vec::new();
    for (key, payload) in events {
        broker.publish(Message::new(key, payload)).await.unwrap();
        let event = subscription.recv().await.unwrap().message().unwrap();
        letters.push(writer.write(event, None, None, Limits::default()).unwrap());
    }
    letters
}

/// Letters with consecutive numbers as their payloads, and 16 different names.
pub async fn numbered<B: Bus>(count: usize) -> Vec<Letter> {
    let events = (0..count).map(|number| (format!("number {}", number % 16), number.to_string().into_bytes()));
    letters::<B>(Format::Raw, events).await
}

/// What became of letters, by their places in the list.
#[derive(Debug, Default)]
pub struct Outcome {
    pub confirmed: usize,
    pub duplicates: usize,
    pub unroutable: Vec<usize>,
    pub rejected: Vec<(usize, String)>,
    pub blocked: Vec<Option<String>>,
    pub faults: Vec<Fault>,
}

impl Outcome {
    /// How much of each, for a test's message.
    pub fn summary(&self) -> String {
        format!(
            "{} confirmed, {} duplicates, {} unroutable, {} rejected {:?}, faults {:?}",
            self.confirmed,
            self.duplicates,
            self.unroutable.len(),
            self.rejected.len(),
            self.rejected.first(),
            self.faults
        )
    }
}

/// Delivers letters: at most `window` in flight, all that is unknown sent again in order after a fault or when nothing has been heard for
/// `patience`.
pub async fn deliver<B: Bus>(bus: &mut B, letters: &[Letter], window: usize, patience: Duration) -> Outcome {
    let mut outcome = Outcome::default();
    let mut settled = vec![false; letters.len()];
    let mut ticket = 0;
    let end = Instant::now() + PATIENCE;
    while settled.iter().any(|settled| !settled) {
        assert!(Instant::now() < end, "not delivered in time: {outcome:?}");
        let (sender, receipts) = match timeout(PATIENCE, bus.connect()).await.expect("connect ends by itself") {
            Ok(connection) => connection,
            Err(fault) => {
                outcome.faults.push(fault);
                sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let run = Run { letters, settled: &mut settled, ticket: &mut ticket, outcome: &mut outcome, window, patience };
        if let Err(fault) = run.over(sender, receipts).await {
            outcome.faults.push(fault);
        }
    }
    outcome
}

struct Run<'a> {
    letters: &'a [Letter],
    settled: &'a mut [bool],
    ticket: &'a mut u64,
    outcome: &'a mut Outcome,
    window: usize,
    patience: Duration,
}

impl Run<'_> {
    async fn over<S: Sender, R: Receipts>(self, mut sender: S, mut receipts: R) -> Result<(), Fault> {
        let mut in_flight: BTreeMap<Ticket, usize> = BTreeMap::new();
        let mut todo =
            (0..self.letters.len()).filter(|&at| !self.settled[at]).collect::<Vec<_>>().into_iter().peekable();
        let mut news = Vec::new();
        loop {
            while in_flight.len() < self.window
                && let Some(&at) = todo.peek()
            {
                *self.ticket += 1;
                let ticket = Ticket(*self.ticket);
                match timeout(self.patience, sender.send(ticket, &self.letters[at])).await {
                    Ok(Ok(())) => _ = in_flight.insert(ticket, at),
                    Ok(Err(SendError::Letter(rejection))) => {
                        self.settled[at] = true;
                        self.outcome.rejected.push((at, rejection.to_string()));
                    }
                    Ok(Err(SendError::Connection(fault))) => return Err(fault),
                    Err(_) => return Err(Fault::passing("sending takes too long")),
                }
                todo.next();
            }
            if in_flight.is_empty() {
                sender.close().await;
                return Ok(());
            }
            sender.flush().await?;
            match timeout(self.patience, receipts.next(&mut news)).await {
                Ok(told) => told?,
                Err(_) => return Err(Fault::passing("nothing is heard")),
            }
            for receipt in news.drain(..) {
                let ticket = match &receipt {
                    Receipt::Blocked(reason) => {
                        self.outcome.blocked.push(reason.clone());
                        continue;
                    }
                    Receipt::Confirmed(ticket)
                    | Receipt::Duplicate(ticket)
                    | Receipt::Unroutable(ticket)
                    | Receipt::Filtered(ticket)
                    | Receipt::Rejected(ticket, _) => *ticket,
                };
                let at = in_flight.remove(&ticket).expect("a receipt for something that was sent");
                match receipt {
                    Receipt::Confirmed(_) => self.outcome.confirmed += 1,
                    Receipt::Duplicate(_) => self.outcome.duplicates += 1,
                    Receipt::Unroutable(_) => self.outcome.unroutable.push(at),
                    Receipt::Filtered(_) => {}
                    Receipt::Rejected(_, Rejection::Transient(_)) => continue, // by the next connection
                    Receipt::Rejected(_, Rejection::Permanent(reason)) => self.outcome.rejected.push((at, reason)),
                    Receipt::Blocked(_) => unreachable!("dealt with above"),
                }
                self.settled[at] = true;
            }
        }
    }
}

/// Connects, and expects that it can't be; the fault.
pub async fn refused<B: Bus>(bus: &mut B) -> Fault {
    let tried = timeout(PATIENCE, bus.connect()).await.expect("connect ends by itself");
    match tried {
        Ok(_) => panic!("there should be no connection"),
        Err(fault) => fault,
    }
}

/// Checks that what arrived is the numbers below `count`, in order by first arrival.
pub fn assert_numbers(arrived: impl IntoIterator<Item = Vec<u8>>, count: usize) {
    let mut next = 0;
    for body in arrived {
        let number: usize = std::str::from_utf8(&body).unwrap().parse().unwrap();
        assert!(number <= next, "{number} came before {next}");
        if number == next {
            next += 1;
        }
    }
    assert_eq!(next, count, "what is behind is missing");
}
