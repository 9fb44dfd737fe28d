//! The delivery ledger: what was taken from the broker and is not known to be on the bus.
//!
//! It is pure bookkeeping. It reads no clock, does no input or output, and knows nothing of connections but that they may be lost;
//! [`Bridge`](super::Bridge) drives it. Its entries stand in the order of the broker's offsets:
//!
//! ```text
//!          cursor                                                 next to send
//!            ▼                                                         ▼
//!    ──passed─┤ in flight │ confirmed │ condemned │ in flight │ in flight │ waiting │ waiting │ ◀── push
//!             └────────────────────── the window: bounded in letters and bytes ──────────────────┘
//! ```
//!
//! | state | means | becomes |
//! | --- | --- | --- |
//! | waiting | to be sent, for the first time or again | in flight |
//! | in flight | handed over; nothing is known | confirmed; waiting (refused for now, or the connection was lost); condemned |
//! | condemned | refused for good, not yet among the dead letters | buried |
//! | confirmed, buried | done: its letter is let go of | passed, when everything before it is done |
//!
//! # Rules
//!
//! 1. The **cursor** moves only over what is done, without a gap. What the bus confirms out of order waits for what is before it.
//! 2. Letters go out **in order**, and there is never one in flight behind one that has not been sent yet.
//! 3. When the **connection is lost**, everything in flight waits again, and goes out in order over the next connection. Buses
//!    take what comes over one connection in its order, so what had arrived is a run without holes from the front: the first arrivals of all
//!    letters stay in order, and what arrives again carries the same id.
//! 4. When a letter is **refused for now**, the line stops: until this letter is confirmed or condemned nothing is sent but this one
//!    letter, again, after a pause. What was behind it in flight when it was refused may arrive before it: no sender can help that, save with a
//!    window of one. Nothing else does: whoever has not been sent yet can't overtake, however often the letter is refused. Where
//!    several are refused, the earliest of them is the one that is tried. Once it is confirmed the bus is well again, and all others follow
//!    in order, through the whole window.
//! 5. A letter that is **refused for good** is condemned, and the line behind it goes on. The cursor passes it only once it is buried, that is,
//!    stored among the dead letters. If that can't be done, the window fills up behind it and the line stops, and nothing is lost.
//! 6. What is in flight for longer than the **time limit** for acknowledgements makes the connection be given up (rule 3). There is
//!    one limit for all letters, so the one sent first is the one that is due first, and one look at it suffices.
//!
//! A ticket stands for one sending of one letter. What is told about a ticket of an earlier connection, or for the second time, is
//! passed over.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use hookbus_broker::Offset;

use super::bus::Ticket;

/// How much a [`Ledger`] holds, and how long it waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Letters. At least one.
    pub letters: usize,
    /// Their bytes in memory. One letter is always taken.
    pub bytes: usize,
    /// How long a letter may be in flight.
    pub ack_timeout: Duration,
}

/// Names an entry for as long as it is in the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place(u64);

/// The ledger. `T` is what it holds of a letter.
#[derive(Debug)]
pub struct Ledger<T> {
    window: Window,
    entries: VecDeque<Entry<T>>,
    /// The place of the first entry.
    base: u64,
    /// No entry before this place is waiting.
    next: u64,
    bytes: usize,
    /// What was sent over this connection and not told of, and what is behind the first such.
    sent: VecDeque<Sent>,
    /// The ticket of the first in `sent`.
    first_ticket: u64,
    in_flight: usize,
    waiting: usize,
    /// All that are not done.
    undone: usize,
    /// The letter that holds up the line, and when it may be tried again.
    held: Option<(u64, Instant)>,
    /// Condemned, and nobody buries it yet.
    condemned: VecDeque<u64>,
    /// Acknowledgements are not due before this plus their time limit.
    clock: Option<Instant>,
    cursor: Option<Offset>,
    cursor_moved: bool,
}

#[derive(Debug)]
struct Entry<T> {
    /// Its offset; none for what is sent apart from the stream.
    offset: Option<Offset>,
    state: State,
    /// None once it is done.
    content: Option<T>,
    bytes: usize,
    attempts: u32,
    refusals: u32,
    reason: Option<Box<str>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    InFlight,
    Condemned,
    Done,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    place: u64,
    at: Instant,
    /// It was not told of yet.
    open: bool,
}

/// A letter that is to be buried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condemned<T> {
    /// Its place.
    pub place: Place,
    /// What is held of it.
    pub content: T,
    /// Why.
    pub reason: Box<str>,
    /// How often it was sent.
    pub attempts: u32,
}

impl<T: Clone> Ledger<T> {
    /// An empty one.
    pub fn new(window: Window) -> Self {
        Ledger {
            window,
            entries: VecDeque::new(),
            base: 0,
            next: 0,
            bytes: 0,
            sent: VecDeque::new(),
            first_ticket: 1,
            in_flight: 0,
            waiting: 0,
            undone: 0,
            held: None,
            condemned: VecDeque::new(),
            clock: None,
            cursor: None,
            cursor_moved: false,
        }
    }

    /// Whether there is room for one more.
    pub fn has_room(&self) -> bool {
        self.entries.is_empty() || self.entries.len() < self.window.letters && self.bytes < self.window.bytes
    }

    /// Adds a letter behind all others. What is sent apart from the stream has no offset.
    pub fn push(&mut self, offset: Option<Offset>, content: T, bytes: usize) {
        self.waiting += 1;
        self.add(offset, State::Waiting, Some(content), bytes);
    }

    /// Adds one that can't be sent at all.
    pub fn push_condemned(&mut self, offset: Option<Offset>, content: T, bytes: usize, reason: impl Into<Box<str>>) {
        let place = self.add(offset, State::Condemned, Some(content), bytes);
        self.condemn_entry(place, reason.into());
    }

    /// Adds one that is done already, because there is nothing to send.
    pub fn push_done(&mut self, offset: Option<Offset>) {
        self.add(offset, State::Done, None, 0);
        self.advance();
    }

    /// The next letter to send, if there is one now, with the ticket under which it is sent; from here on it counts as in flight.
    /// At most `in_flight` letters are in flight.
    pub fn send_next(&mut self, now: Instant, in_flight: usize) -> Option<(Ticket, T)> {
        if !self.has_next(now, in_flight) {
            return None;
        }
        let place = match self.held {
            Some((place, _)) => place,
            None => {
                while self.entry(self.next).state != State::Waiting {
                    self.next += 1;
                }
                self.next
            }
        };
        let ticket = Ticket(self.first_ticket + self.sent.len() as u64);
        self.sent.push_back(Sent { place, at: now, open: true });
        self.in_flight += 1;
        self.waiting -= 1;
        let entry = self.entry_mut(place);
        entry.state = State::InFlight;
        entry.attempts += 1;
        let content = entry.content.clone().expect("what waits has its content");
        Some((ticket, content))
    }

    /// Whether a letter can be sent now, as far as the ledger is concerned.
    pub fn has_next(&self, now: Instant, in_flight: usize) -> bool {
        self.in_flight < in_flight.max(1) && self.waiting > 0 && self.is_open(now)
    }

    /// How often the letter of this ticket was sent; `None` when the ticket is not in flight.
    pub fn attempts(&self, ticket: Ticket) -> Option<u32> {
        Some(self.entry(self.open(ticket)?).attempts)
    }

    /// The bus has the letter of this ticket. Hands out what was held of it; `None` when the ticket is not in flight.
    pub fn confirm(&mut self, ticket: Ticket) -> Option<T> {
        let place = self.close(ticket)?;
        let content = self.finish(place);
        self.advance();
        content
    }

    /// The bus has refused the letter of this ticket, for now. `retry_at` says from the number of its refusals when it may be tried again.
    /// Returns whether the ticket was in flight.
    pub fn refuse(&mut self, ticket: Ticket, retry_at: impl FnOnce(u32) -> Instant) -> bool {
        let Some(place) = self.close(ticket) else { return false };
        let entry = self.entry_mut(place);
        entry.state = State::Waiting;
        entry.refusals += 1;
        let refusals = entry.refusals;
        self.waiting += 1;
        self.next = self.next.min(place);
        if self.held.is_none_or(|(held, _)| place <= held) {
            self.held = Some((place, retry_at(refusals)));
        }
        true
    }

    /// The bus has refused the letter of this ticket for good. Shows what is held of it; `None` when the ticket is not in flight.
    pub fn condemn(&mut self, ticket: Ticket, reason: impl Into<Box<str>>) -> Option<&T> {
        let place = self.close(ticket)?;
        self.condemn_entry(place, reason.into());
        self.entry(place).content.as_ref()
    }

    /// Whether anything is to be buried, and nobody does it yet.
    pub fn has_condemned(&self) -> bool {
        !self.condemned.is_empty()
    }

    /// Takes letters that are to be buried, at most `limit` of them. Each is followed by [`buried`](Ledger::buried) or
    /// [`not_buried`](Ledger::not_buried).
    pub fn take_condemned(&mut self, limit: usize) -> Vec<Condemned<T>> {
        let count = limit.min(self.condemned.len());
        let places: Vec<u64> = self.condemned.drain(..count).collect();
        let of = |place: u64| {
            let entry = self.entry(place);
            let content = entry.content.clone().expect("what is condemned has its content");
            let reason = entry.reason.clone().unwrap_or_default();
            Condemned { place: Place(place), content, reason, attempts: entry.attempts }
        };
        places.into_iter().map(of).collect()
    }

    /// This letter is stored among the dead ones.
    pub fn buried(&mut self, place: Place) {
        self.finish(place.0);
        self.advance();
    }

    /// This letter could not be stored; it is to be buried still.
    pub fn not_buried(&mut self, place: Place) {
        self.condemned.push_back(place.0);
    }

    /// The connection is gone: whatever was in flight waits again.
    pub fn lost(&mut self) {
        let open: Vec<u64> = self.sent.iter().filter(|sent| sent.open).map(|sent| sent.place).collect();
        for place in open {
            self.entry_mut(place).state = State::Waiting;
            self.next = self.next.min(place);
        }
        self.waiting += self.in_flight;
        self.in_flight = 0;
        self.first_ticket += self.sent.len() as u64;
        self.sent.clear();
        self.held = None;
        self.clock = None;
    }

    /// When the connection is to be given up, because the letter that was sent first is not told of.
    pub fn ack_deadline(&self) -> Option<Instant> {
        // The first that was sent is open: what is told of is taken off the front.
        let sent = self.sent.front()?;
        Some(self.clock.map_or(sent.at, |clock| clock.max(sent.at)) + self.window.ack_timeout)
    }

    /// From now on the time limit runs anew for all that is in flight: the bus had asked for silence.
    pub fn restart_clock(&mut self, now: Instant) {
        self.clock = Some(now);
    }

    /// When the letter that holds up the line may be tried again; `None` where none does, or it is in flight.
    pub fn retry_at(&self) -> Option<Instant> {
        let (place, at) = self.held?;
        (self.entry(place).state == State::Waiting).then_some(at)
    }

    /// The first offset that is not done, if it has moved since this was asked last.
    pub fn take_cursor(&mut self) -> Option<Offset> {
        std::mem::take(&mut self.cursor_moved).then_some(self.cursor).flatten()
    }

    /// Letters that are handed over and not told of.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Letters that wait to be sent, for the first time or again.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// All entries, with those that are done but wait for one before them.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether everything is done.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What the letters take in memory.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Letters that are not done.
    pub fn undone(&self) -> usize {
        self.undone
    }

    /// What is held of the oldest letter that is not done.
    pub fn oldest(&self) -> Option<&T> {
        // What is done is taken off the front.
        self.entries.front()?.content.as_ref()
    }

    /// Changes letters that wait: each for which `change` has something else, or that can't be sent any more for a reason.
    pub fn revise(&mut self, mut change: impl FnMut(&T) -> Option<Result<(T, usize), Box<str>>>) {
        for place in self.next.max(self.base)..self.base + self.entries.len() as u64 {
            let entry = self.entry(place);
            let Some(content) = entry.content.as_ref().filter(|_| entry.state == State::Waiting) else { continue };
            match change(content) {
                None => {}
                Some(Ok((content, bytes))) => {
                    let entry = self.entry_mut(place);
                    let before = std::mem::replace(&mut entry.bytes, bytes);
                    entry.content = Some(content);
                    self.bytes = self.bytes - before + bytes;
                }
                Some(Err(reason)) => {
                    self.waiting -= 1;
                    self.condemn_entry(place, reason);
                }
            }
        }
    }

    fn add(&mut self, offset: Option<Offset>, state: State, content: Option<T>, bytes: usize) -> u64 {
        self.bytes += bytes;
        self.undone += usize::from(state != State::Done);
        self.entries.push_back(Entry { offset, state, content, bytes, attempts: 0, refusals: 0, reason: None });
        self.base + self.entries.len() as u64 - 1
    }

    fn entry(&self, place: u64) -> &Entry<T> {
        &self.entries[usize::try_from(place - self.base).expect("a place in memory")]
    }

    fn entry_mut(&mut self, place: u64) -> &mut Entry<T> {
        &mut self.entries[usize::try_from(place - self.base).expect("a place in memory")]
    }

    /// The place of a ticket that is in flight.
    fn open(&self, ticket: Ticket) -> Option<u64> {
        let at = usize::try_from(ticket.0.checked_sub(self.first_ticket)?).ok()?;
        self.sent.get(at).filter(|sent| sent.open).map(|sent| sent.place)
    }

    /// Takes a ticket out of flight.
    fn close(&mut self, ticket: Ticket) -> Option<u64> {
        let place = self.open(ticket)?;
        let at = usize::try_from(ticket.0 - self.first_ticket).expect("it was found there");
        self.sent[at].open = false;
        self.in_flight -= 1;
        while self.sent.front().is_some_and(|sent| !sent.open) {
            self.sent.pop_front();
            self.first_ticket += 1;
        }
        Some(place)
    }

    fn condemn_entry(&mut self, place: u64, reason: Box<str>) {
        let entry = self.entry_mut(place);
        entry.state = State::Condemned;
        entry.reason = Some(reason);
        self.condemned.push_back(place);
        self.let_go(place);
    }

    fn finish(&mut self, place: u64) -> Option<T> {
        let entry = self.entry_mut(place);
        entry.state = State::Done;
        let bytes = std::mem::take(&mut entry.bytes);
        let content = entry.content.take();
        self.bytes -= bytes;
        self.undone -= 1;
        self.let_go(place);
        content
    }

    /// Whether the line is not held up now, or the letter that holds it up may be tried again.
    fn is_open(&self, now: Instant) -> bool {
        self.held.is_none_or(|(place, at)| self.entry(place).state == State::Waiting && at <= now)
    }

    /// This letter does not hold up the line any more.
    fn let_go(&mut self, place: u64) {
        if self.held.is_some_and(|(held, _)| held == place) {
            self.held = None;
        }
    }

    /// Passes what is done.
    fn advance(&mut self) {
        while self.entries.front().is_some_and(|entry| entry.state == State::Done) {
            if let Some(offset) = self.entries.pop_front().and_then(|entry| entry.offset) {
                self.cursor = Some(Offset::new(offset.get() + 1));
                self.cursor_moved = true;
            }
            self.base += 1;
        }
        self.next = self.next.max(self.base);
    }
}

#[cfg(test)]
mod tests;
