//! From the bytes of standard input to messages in the broker.
//!
//! What one read brought is published as one batch, stamped with one reading of the clock, so that it wakes each subscriber
//! once. In the first moments of the process messages are held back ([`Ingress::release`] ends that): oned restarts a
//! driver that died at once, and subscribers need a moment to connect again.

use std::collections::VecDeque;
use std::time::SystemTime;

use hookbus_bridges::opennebula::{self, INIT_ANSWER, Item, LineReader, Parser};
use hookbus_broker::{Broker, Message, Timestamp};

use super::forwarder::Forwarder;
use crate::writer::Writer;

/// When this much waits, what comes now will wait long and is [kept apart](LineReader::keep_apart), in bytes. Less is left
/// to malloc, which is faster and may keep some times that much: a block is held for each message that waits in it.
const BACKLOG_BYTES: usize = 1 << 20;

/// What is to be done after a block of input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Read on.
    GoOn,
    /// oned wants the driver to end; what it wrote behind FINALIZE, if anything, means nothing.
    Finalize,
}

/// Takes lines in.
#[derive(Debug)]
pub(crate) struct Ingress {
    /// Where input is read into.
    pub(crate) lines: LineReader,
    parser: Parser,
    oned: Writer,
    batch: VecDeque<Message>,
    /// What the batch holds, in bytes of keys and payloads.
    batch_bytes: usize,
    to: To,
    taken_in: u64,
}

/// Where messages go.
#[derive(Debug)]
enum To {
    /// They are held back.
    Nowhere,
    Broker(Broker),
    /// Lines go on as they came; nothing of them is parsed here.
    Daemon(Forwarder),
}

impl Ingress {
    /// One that holds messages back.
    pub(crate) fn holding(oned: Writer) -> Self {
        Ingress {
            lines: LineReader::new(),
            parser: Parser::new(),
            oned,
            batch: VecDeque::new(),
            batch_bytes: 0,
            to: To::Nowhere,
            taken_in: 0,
        }
    }

    /// One that hands lines to a daemon.
    pub(crate) fn forwarding(oned: Writer, forwarder: Forwarder) -> Self {
        Ingress { to: To::Daemon(forwarder), ..Ingress::holding(oned) }
    }

    /// Handles the complete lines that were read.
    pub(crate) fn take_in(&mut self) -> Turn {
        let now = Timestamp::from(SystemTime::now());
        let mut turn = Turn::GoOn;
        let waiting = match &self.to {
            To::Nowhere => self.batch_bytes,
            To::Broker(broker) => broker.held_bytes(),
            To::Daemon(forwarder) => forwarder.waiting_bytes(),
        };
        self.lines.keep_apart(waiting > BACKLOG_BYTES);
        while let Some(item) = self.lines.next() {
            if self.item(item, now) == Turn::Finalize {
                turn = Turn::Finalize;
                break;
            }
        }
        self.publish();
        turn
    }

    /// Handles what the end of the input left without a newline.
    pub(crate) fn finish(&mut self) {
        if let Some(item) = self.lines.finish() {
            self.item(item, Timestamp::from(SystemTime::now()));
            self.publish();
        }
    }

    /// Ends the holding back: what was held goes to the broker now, what comes at once.
    pub(crate) fn release(&mut self, broker: &Broker) {
        self.to = To::Broker(broker.clone());
        self.publish();
        // The room for what was held is needed no more.
        self.batch = VecDeque::new();
    }

    /// Whether messages are held back.
    pub(crate) fn is_holding(&self) -> bool {
        matches!(self.to, To::Nowhere)
    }

    /// What is held back, in bytes of keys and payloads.
    pub(crate) fn held_bytes(&self) -> usize {
        self.batch_bytes
    }

    /// How many messages were taken in.
    pub(crate) fn taken_in(&self) -> u64 {
        self.taken_in
    }

    fn item(&mut self, item: Item, now: Timestamp) -> Turn {
        let input = match (item, &self.to) {
            (Item::Line(line), To::Daemon(forwarder)) if is_for_subscribers(&line) => {
                forwarder.push(line);
                self.taken_in += 1;
                return Turn::GoOn;
            }
            (Item::Line(line), _) => self.parser.line(line),
            (Item::Unfinished(line), _) => self.parser.unfinished(line),
            (Item::TooLong { bytes }, _) => {
                tracing::error!("line from oned: it has {bytes} bytes, more than are possible; the line was skipped");
                return Turn::GoOn;
            }
        };
        match input {
            Ok(opennebula::Input::Message { message, .. }) if matches!(self.to, To::Daemon(_)) => {
                // The end of the input without a newline, or blanks in front. The daemon parses it again; that is rare.
                if let (To::Daemon(forwarder), Some(key)) = (&self.to, message.keys().next()) {
                    let word = if key == b"RETRY" { "RETRY" } else { "EXECUTE" };
                    let content = String::from_utf8_lossy(message.payload());
                    forwarder.push(format!("{word}  -1 {content}").into());
                    self.taken_in += 1;
                }
            }
            Ok(opennebula::Input::Message { message, oddity }) => {
                if let Some(oddity) = oddity {
                    tracing::warn!("event from oned: {oddity}");
                }
                self.taken_in += 1;
                self.batch_bytes += message.size_bytes();
                self.batch.push_back(message.with_time(now));
            }
            Ok(opennebula::Input::Init) => self.oned.release(&INIT_ANSWER[..]),
            Ok(opennebula::Input::Finalize) => return Turn::Finalize,
            Ok(opennebula::Input::Blank) => {}
            Err(e) => tracing::warn!("{e}"),
        }
        Turn::GoOn
    }

    fn publish(&mut self) {
        let To::Broker(broker) = &self.to else { return };
        while !self.batch.is_empty() {
            if let Err(e) = broker.publish_batch_now(&mut self.batch) {
                // The first one can't be published; those behind it can.
                tracing::error!("{e}; the event was skipped");
                self.batch.pop_front();
            }
        }
        self.batch_bytes = 0;
    }
}

/// Whether a line is an event or a retry, as far as its first word says. oned writes nothing in front of it.
fn is_for_subscribers(line: &[u8]) -> bool {
    let word = line.split(u8::is_ascii_whitespace).next().unwrap_or_default();
    word.eq_ignore_ascii_case(b"EXECUTE") || word.eq_ignore_ascii_case(b"RETRY")
}
