//! The task of a [`Bridge`](super::Bridge): see there.

use std::collections::VecDeque;
use std::future::{Future, pending, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::{Duration, Instant};

use hookbus_broker::{BatchLimit, Delivery, Received};
use tokio::sync::mpsc;
use tokio::time::Sleep;

use super::bridge::{Abandoned, BridgeOptions, Command};
use super::bus::{Bus, Fault, Limits, Receipt, Receipts, Rejection, SendError, Sender, Ticket};
use super::cemetery::Cemetery;
use super::feed::Feed;
use super::ledger::{Ledger, Window};
use super::letter::{LetterWriter, Unwritable};
use super::parcel::{Parcel, Retry};
use super::status::{BridgeState, Shared, add};

/// What is read from the feed at once.
const BATCH: BatchLimit = BatchLimit::messages(256).bytes(1 << 20);

/// Letters that are written, and sent, before receipts are looked at again.
const BURST: usize = 64;

/// How long a connection that takes nothing more is listened to.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How often at most the log tells of lost events.
const BETWEEN_LOSSES: Duration = Duration::from_secs(10);

/// A connection that has lived for so long is one whose loss the log tells of.
const SETTLED: Duration = Duration::from_secs(1);

/// How often at least the log tells of a bus that can't be reached.
const BETWEEN_REMINDERS: Duration = Duration::from_secs(600);

/// Why the connection is left.
enum Leave {
    /// It is lost.
    Lost(Fault),
    /// The deadline of a shutdown is over.
    Deadline,
}

/// Everything about a bridge but its connection.
pub(super) struct Line<F> {
    feed: F,
    feed_open: bool,
    /// What was read last, and where it goes from there.
    read: Vec<Delivery<Received>>,
    pending: VecDeque<Delivery<Received>>,
    /// Dropped since the last event, and not told yet.
    dropped: u64,
    writer: LetterWriter,
    limits: Limits,
    ledger: Ledger<Arc<Parcel>>,
    options: BridgeOptions,
    acknowledges: bool,
    shared: Arc<Shared>,
    commands: mpsc::UnboundedReceiver<Command>,
    /// When a shutdown gives up.
    stopping: Option<Instant>,
    /// Why the bus asks for silence.
    silence: Option<Arc<str>>,
    told: Vec<Receipt>,
    random: fastrand::Rng,
    /// Connections lost or not had since the bus confirmed something.
    failures: u32,
    /// Whether the last of these needs somebody to act.
    needs_help: bool,
    /// Since when there is a connection.
    connected_at: Option<Instant>,
    /// Since when there is none, and when the log said so last. One that is lost at once counts as none.
    away: Option<Away>,
    /// Whether the next connection is told of in the log: it is the first, or the log has told of an end since.
    tell_connection: bool,
    /// When the bus must have taken what it is being handed.
    op_deadline: Option<Instant>,
    timer: Pin<Box<Sleep>>,
    cemetery: Cemetery,
    /// How many lost events the log was told of, and when.
    losses_told: (u64, Option<Instant>),
    /// How many events the bus has refused for good, and how many dead letters again.
    refused: u64,
    refused_again: u64,
    /// The time, as of the last look.
    now: Instant,
}

/// A bus that can't be reached.
#[derive(Clone, Copy)]
struct Away {
    since: Instant,
    told: Instant,
}

/// A period as people say it, to the second or to the minute.
fn period(period: Duration) -> String {
    match period.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

/// The clock of time limits: tokio's, so that tests can own it.
pub(super) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Receipts of no connection.
struct Nobody;

impl Receipts for Nobody {
    async fn next(&mut self, _into: &mut Vec<Receipt>) -> Result<(), Fault> {
        pending().await
    }
}

impl<F: Feed> Line<F> {
    pub(super) fn new(
        feed: F,
        writer: LetterWriter,
        options: BridgeOptions,
        cemetery: Cemetery,
        shared: Arc<Shared>,
        commands: mpsc::UnboundedReceiver<Command>,
        acknowledges: bool,
    ) -> Self {
        let window =
            Window { letters: options.window.max(1), bytes: options.window_bytes, ack_timeout: options.ack_timeout };
        let now = now();
        Line {
            feed,
            feed_open: true,
            read: Vec::new(),
            pending: VecDeque::new(),
            dropped: 0,
            writer,
            limits: Limits::default(),
            ledger: Ledger::new(window),
            acknowledges,
            shared,
            commands,
            stopping: None,
            silence: None,
            told: Vec::new(),
            random: options.seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed),
            options,
            failures: 0,
            needs_help: false,
            op_deadline: None,
            timer: Box::pin(tokio::time::sleep_until(now.into())),
            cemetery,
            connected_at: None,
            away: None,
            tell_connection: true,
            losses_told: (0, None),
            refused: 0,
            refused_again: 0,
            now,
        }
    }

    pub(super) async fn run<B: Bus>(mut self, mut bus: B) -> Abandoned {
        while let Ok((mut sender, mut receipts)) = self.connect(&mut bus).await {
            match self.serve(&mut sender, &mut receipts).await {
                Ok(()) => {
                    // Nothing is in flight; whoever says goodbye slowly is not waited for.
                    drop(receipts);
                    let left = self.stopping.map_or(Duration::from_secs(1), |at| at.saturating_duration_since(now()));
                    let _ = tokio::time::timeout(left.max(Duration::from_millis(100)), sender.close()).await;
                    break;
                }
                Err(Leave::Deadline) => break,
                Err(Leave::Lost(fault)) => self.lost(&fault),
            }
        }
        self.end().await
    }

    /// Connects, for as long as it takes. Fails when the deadline of a shutdown is over, or nothing is left to deliver.
    async fn connect<B: Bus>(&mut self, bus: &mut B) -> Result<(B::Sender, B::Receipts), Leave> {
        loop {
            if self.stopping.is_some() && self.is_done() {
                return Err(Leave::Deadline);
            }
            if self.failures > 0 {
                let wait = self.options.backoff.wait(self.failures, self.needs_help, &mut self.random);
                self.during(&mut Nobody, Duration::MAX, tokio::time::sleep(wait)).await?;
            }
            match self.during(&mut Nobody, Duration::MAX, bus.connect()).await? {
                Ok((sender, receipts)) => {
                    add(&self.shared.counters.connects, 1);
                    self.connected(sender.limits());
                    return Ok((sender, receipts));
                }
                Err(fault) => self.fault(&fault),
            }
        }
    }

    /// Delivers over one connection. Returns when nothing is left to do, ever.
    async fn serve<S: Sender, R: Receipts>(&mut self, sender: &mut S, receipts: &mut R) -> Result<(), Leave> {
        let mut unflushed = false;
        loop {
            self.now = now();
            self.fill();
            let mut sent = 0;
            while sent < BURST && self.silence.is_none() {
                let Some((ticket, parcel)) = self.ledger.send_next(self.now, self.limits.in_flight) else { break };
                let letter = parcel.letter().expect("what can't be written is condemned, never sent");
                if self.ledger.attempts(ticket).is_some_and(|attempts| attempts > 1) {
                    add(&self.shared.counters.retried, 1);
                }
                sent += 1;
                let limit = self.options.ack_timeout;
                match self.during(receipts, limit, sender.send(ticket, letter)).await? {
                    Ok(()) => {
                        unflushed = true;
                        if !self.acknowledges {
                            self.confirmed(ticket);
                        }
                    }
                    Err(SendError::Letter(rejection)) => self.rejected(ticket, rejection),
                    Err(SendError::Connection(fault)) => return Err(self.last_words(receipts, fault).await),
                }
            }
            self.glance(receipts).await?;
            self.settle();
            if sent == BURST || self.can_fill() {
                // Something else may want the processor, too.
                tokio::task::coop::consume_budget().await;
                continue;
            }
            if unflushed {
                unflushed = false;
                let limit = self.options.ack_timeout;
                if let Err(fault) = self.during(receipts, limit, sender.flush()).await? {
                    return Err(self.last_words(receipts, fault).await);
                }
                continue;
            }
            if sent > 0 || self.can_send() {
                continue;
            }
            if self.is_done() {
                return Ok(());
            }
            self.attend(receipts).await?;
        }
    }

    /// Waits until `op` is through, attending to everything else meanwhile.
    async fn during<R: Receipts, T>(
        &mut self,
        receipts: &mut R,
        limit: Duration,
        op: impl Future<Output = T>,
    ) -> Result<T, Leave> {
        let mut op = pin!(op);
        // Most often it is through at once.
        if let Poll::Ready(done) = poll_fn(|cx| Poll::Ready(op.as_mut().poll(cx))).await {
            return Ok(done);
        }
        self.op_deadline = now().checked_add(limit);
        let done = loop {
            tokio::select! {
                biased;
                done = &mut op => break Ok(done),
                attended = self.attend(receipts) => if let Err(leave) = attended { break Err(leave) },
            }
            self.settle();
            if self.connected_at.is_none() && self.stopping.is_some() && self.is_done() {
                break Err(Leave::Deadline);
            }
        };
        self.op_deadline = None;
        done
    }

    /// Attends to what is there, without waiting.
    async fn glance<R: Receipts>(&mut self, receipts: &mut R) -> Result<(), Leave> {
        let mut attending = pin!(self.attend(receipts));
        match poll_fn(|cx| Poll::Ready(attending.as_mut().poll(cx))).await {
            Poll::Ready(attended) => attended,
            Poll::Pending => Ok(()),
        }
    }

    /// Waits for the first of all that can happen, and does what it asks for. Dropping the future loses nothing.
    async fn attend<R: Receipts>(&mut self, receipts: &mut R) -> Result<(), Leave> {
        self.set_timer();
        let wants_events = self.wants_events();
        tokio::select! {
            biased;
            told = receipts.next(&mut self.told) => {
                self.hear();
                told.map_err(Leave::Lost)
            }
            () = self.cemetery.work() => {
                self.now = now();
                let (backoff, random) = (self.options.backoff, &mut self.random);
                let again_at = |failures| self.now + backoff.wait(failures, false, random);
                let dead = self.cemetery.worked(&mut self.ledger, again_at);
                add(&self.shared.counters.dead, dead);
                Ok(())
            }
            command = self.commands.recv() => {
                self.now = now();
                self.command(command);
                Ok(())
            }
            more = self.feed.recv_batch(BATCH, &mut self.read), if wants_events => {
                self.feed_open = more;
                self.count_losses();
                self.pending.extend(self.read.drain(..));
                Ok(())
            }
            () = self.timer.as_mut() => {
                self.now = now();
                self.due()
            }
        }
    }

    /// The connection takes nothing more. What the bus said before that still counts: who is refused over and over would end each
    /// connection, if those behind it found out first. The receipts know best why it ended.
    async fn last_words<R: Receipts>(&mut self, receipts: &mut R, fault: Fault) -> Leave {
        let left = self.stopping.map_or(LAST_WORDS, |at| at.saturating_duration_since(now()).min(LAST_WORDS));
        let end = tokio::time::Instant::now() + left;
        loop {
            let told = tokio::time::timeout_at(end, receipts.next(&mut self.told)).await;
            self.hear();
            match told {
                Ok(Ok(())) => {}
                Ok(Err(why)) => return Leave::Lost(why),
                Err(_) => return Leave::Lost(fault),
            }
        }
    }

    /// Does what receipts ask for.
    fn hear(&mut self) {
        self.now = now();
        let mut all = std::mem::take(&mut self.told);
        for receipt in all.drain(..) {
            self.receipt(receipt);
        }
        self.told = all;
    }

    /// Whether the feed is to be read now.
    fn wants_events(&self) -> bool {
        let stopping = || self.stopping.is_some() && (self.feed.is_durable() || self.shared.probe.stats().waiting == 0);
        self.pending.is_empty() && self.feed_open && !stopping()
    }

    /// Whether an event can go from what was read into the ledger.
    fn can_fill(&self) -> bool {
        self.ledger.has_room() && (!self.pending.is_empty() || self.cemetery.has_next())
    }

    fn can_send(&self) -> bool {
        self.silence.is_none() && self.ledger.has_next(self.now, self.limits.in_flight)
    }

    /// Whether nothing is left to do, now and ever.
    fn is_done(&self) -> bool {
        let idle = self.ledger.is_empty() && self.pending.is_empty() && self.cemetery.is_idle();
        idle && (!self.feed_open || self.stopping.is_some() && !self.wants_events())
    }

    /// Moves events into the ledger while there is room.
    fn fill(&mut self) {
        for _ in 0..BURST {
            if !self.ledger.has_room() {
                break;
            }
            if let Some((event, retry)) = self.cemetery.next() {
                self.take(event, None, Some(retry));
                continue;
            }
            match self.pending.pop_front() {
                None => break,
                Some(Delivery::Gap(gap)) => {
                    self.dropped += gap.count;
                }
                Some(Delivery::Message(event)) => {
                    let dropped = (self.dropped > 0).then_some(self.dropped);
                    self.dropped = 0;
                    self.take(event, dropped, None);
                }
            }
        }
    }

    /// Writes an event's letter into the ledger.
    fn take(&mut self, event: Received, dropped: Option<u64>, retry: Option<Retry>) {
        let offset = retry.is_none().then(|| event.offset());
        match Parcel::pack(&self.writer, event, dropped, retry, self.limits) {
            Ok(parcel) => {
                add(&self.shared.counters.omitted, u64::from(parcel.is_without_data()));
                let bytes = parcel.memory_bytes();
                self.ledger.push(offset, Arc::new(parcel), bytes);
            }
            Err(unwritable) => {
                let (parcel, reason) = *unwritable;
                self.dropped += dropped.unwrap_or(0);
                if matches!(reason, Unwritable::NotForBuses) {
                    add(&self.shared.counters.skipped, 1);
                    self.ledger.push_done(offset);
                } else {
                    let (bytes, reason) = (parcel.memory_bytes(), reason.to_string());
                    self.tell_refusal(&reason, retry.is_some());
                    self.ledger.push_condemned(offset, Arc::new(parcel), bytes, reason);
                }
            }
        }
    }

    fn receipt(&mut self, receipt: Receipt) {
        let counters = &self.shared.counters;
        match receipt {
            Receipt::Confirmed(ticket) => self.confirmed(ticket),
            Receipt::Duplicate(ticket) => {
                add(&counters.duplicates, 1);
                self.confirmed(ticket);
            }
            Receipt::Unroutable(ticket) => {
                add(&counters.unroutable, 1);
                self.confirmed(ticket);
            }
            Receipt::Filtered(ticket) => {
                // It says nothing about the connection, which may deliver nothing.
                if let Some(parcel) = self.ledger.confirm(ticket) {
                    add(&self.shared.counters.filtered, 1);
                    // Who gets the next letter is told of what was dropped before this one.
                    self.dropped += parcel.dropped.unwrap_or(0);
                    self.cemetery.confirmed(parcel.retry);
                }
            }
            Receipt::Rejected(ticket, rejection) => self.rejected(ticket, rejection),
            Receipt::Blocked(Some(reason)) => self.silence = Some(reason.into()),
            Receipt::Blocked(None) => {
                self.silence = None;
                self.op_deadline = self.op_deadline.map(|_| self.now + self.options.ack_timeout);
                self.ledger.restart_clock(self.now);
            }
        }
    }

    fn confirmed(&mut self, ticket: Ticket) {
        if let Some(parcel) = self.ledger.confirm(ticket) {
            self.well();
            add(&self.shared.counters.confirmed, 1);
            self.cemetery.confirmed(parcel.retry);
        }
    }

    /// The connection is one that delivers.
    fn well(&mut self) {
        self.failures = 0;
        self.away = None;
    }

    fn rejected(&mut self, ticket: Ticket, rejection: Rejection) {
        match rejection {
            Rejection::Transient(reason) => {
                let (backoff, random, now) = (self.options.backoff, &mut self.random, self.now);
                self.ledger.refuse(ticket, |refusals| now + backoff.wait(refusals, false, random));
                self.shared.error(&reason);
            }
            Rejection::Permanent(reason) => {
                self.shared.error(&reason);
                let parcel = self.ledger.condemn(ticket, reason.clone());
                let (again, dropped) = parcel.map_or((false, None), |parcel| (parcel.retry.is_some(), parcel.dropped));
                self.tell_refusal(&reason, again);
                // Who gets the next letter is told of what was dropped before this one.
                self.dropped += dropped.unwrap_or(0);
            }
        }
    }

    fn command(&mut self, command: Option<Command>) {
        match command {
            Some(Command::Retry(numbers)) => self.cemetery.want(numbers),
            Some(Command::Shutdown(deadline)) => self.stopping = Some(deadline),
            // The handle is gone, and the task is about to be ended.
            None => self.stopping = Some(self.now),
        }
    }

    /// When something is due if nothing happens before.
    fn wake_at(&self) -> Option<Instant> {
        let limits = if self.silence.is_none() { [self.ledger.ack_deadline(), self.op_deadline] } else { [None; 2] };
        // What may be tried again already waits for something else, or it would have been.
        let again = [self.ledger.retry_at(), self.cemetery.wake_at()].map(|at| at.filter(|at| *at > self.now));
        limits.into_iter().chain(again).chain([self.stopping]).flatten().min()
    }

    /// Sets the timer if it has to ring earlier, or has rung; if it rings too early, no harm is done.
    fn set_timer(&mut self) {
        let at = match self.wake_at() {
            Some(at) => tokio::time::Instant::from_std(at),
            None if self.timer.is_elapsed() => tokio::time::Instant::now() + Duration::from_secs(3600),
            None => return,
        };
        if self.timer.is_elapsed() || at < self.timer.deadline() {
            self.timer.as_mut().reset(at);
        }
    }

    /// The timer has rung.
    fn due(&mut self) -> Result<(), Leave> {
        let is_over = |at: Option<Instant>| at.is_some_and(|at| at <= self.now);
        if is_over(self.stopping) {
            return Err(Leave::Deadline);
        }
        if self.silence.is_none() {
            let limit = self.options.ack_timeout.as_secs_f64();
            if is_over(self.ledger.ack_deadline()) {
                let reason = format!(
                    "no acknowledgement within {limit} s; the connection is given up, and everything unconfirmed sent again"
                );
                return Err(Leave::Lost(Fault::passing(reason)));
            }
            if is_over(self.op_deadline) {
                return Err(Leave::Lost(Fault::passing(format!(
                    "the bus took nothing for {limit} s; the connection is given up"
                ))));
            }
        }
        Ok(())
    }

    /// What follows from what has happened: the cursor moves, dead letters are buried, the status is told.
    fn settle(&mut self) {
        if let Some(next) = self.ledger.take_cursor() {
            self.feed.commit(next);
        }
        self.cemetery.start(&mut self.ledger, &self.shared, self.now);
        if self.connected_at.is_some() {
            self.show_connected();
        }
        self.tell();
    }

    fn tell(&mut self) {
        let shared = &self.shared;
        shared.in_flight.store(self.ledger.in_flight() as u64, Ordering::Relaxed);
        let oldest = self.ledger.oldest().map(|parcel| parcel.event()).or_else(|| {
            self.pending.iter().find_map(|delivery| match delivery {
                Delivery::Message(event) => Some(event),
                Delivery::Gap(_) => None,
            })
        });
        if let Some(event) = oldest {
            shared.oldest.store(event.time().as_millis(), Ordering::Relaxed);
        }
        shared.undone.store((self.ledger.undone() + self.pending.len()) as u64, Ordering::Relaxed);
    }

    /// Shows the state of a bridge that is connected.
    fn show_connected(&self) {
        let reason = self.silence.as_ref().or(self.cemetery.trouble());
        self.shared.show(match reason {
            Some(reason) => BridgeState::Blocked { reason: (&**reason).into() },
            None if self.stopping.is_some() => BridgeState::Draining,
            None => BridgeState::Ready,
        });
    }

    /// A connection is there, which takes letters of this size.
    fn connected(&mut self, limits: Limits) {
        // A connection that is lost over and over is told as its faults are.
        if std::mem::take(&mut self.tell_connection) {
            let status = self.shared.status();
            let (name, waiting) = (&status.name, status.lag_events);
            let again = if status.counts.connects > 1 { " again" } else { "" };
            let after =
                self.away.map_or_else(String::new, |away| format!("{again} after {}", period(now() - away.since)));
            tracing::info!("bridge {name}: connected to {}{after}; {waiting} events wait for it", self.shared.address);
        }
        self.silence = None;
        self.connected_at = Some(now());
        let limits = Limits { in_flight: limits.in_flight.max(1), ..limits };
        let before = std::mem::replace(&mut self.limits, limits);
        if limits.letter_bytes < before.letter_bytes {
            self.rewrite();
        }
        self.show_connected();
    }

    /// Writes what is too large now anew.
    fn rewrite(&mut self) {
        let Line { ledger, writer, limits, shared, .. } = self;
        ledger.revise(|parcel| {
            if parcel.size_bytes() <= limits.letter_bytes {
                return None;
            }
            let packed = Parcel::pack(writer, parcel.event().clone(), parcel.dropped, parcel.retry, *limits);
            Some(match packed {
                Ok(parcel) => {
                    add(&shared.counters.omitted, u64::from(parcel.is_without_data()));
                    let bytes = parcel.memory_bytes();
                    Ok((Arc::new(parcel), bytes))
                }
                Err(unwritable) => Err(unwritable.1.to_string().into()),
            })
        });
    }

    fn lost(&mut self, fault: &Fault) {
        self.ledger.lost();
        self.silence = None;
        let lived = self.connected_at.take().map_or(Duration::ZERO, |since| now() - since);
        if lived >= self.options.backoff.most {
            // Although nothing may have been there to be confirmed.
            self.well();
        }
        if lived >= SETTLED {
            // Another time that it is away, to be told for itself.
            self.away = None;
        }
        self.fault(fault);
        self.settle();
    }

    /// A connection is lost, or could not be had.
    fn fault(&mut self, fault: &Fault) {
        self.failures = self.failures.saturating_add(1);
        self.tell_losses();
        let reason: Box<str> = fault.reason.as_str().into();
        self.shared.error(&reason);
        let now = now();
        let is_new = self.away.is_none();
        let away = self.away.get_or_insert(Away { since: now, told: now });
        if is_new || self.failures.is_power_of_two() || now >= away.told + BETWEEN_REMINDERS {
            away.told = now;
            self.tell_connection = true;
            let for_long = match now - away.since {
                short if short < Duration::from_secs(60) => String::new(),
                long => {
                    let waiting = self.shared.status().lag_events;
                    format!(" (for {} now; {waiting} events wait)", period(long))
                }
            };
            tracing::warn!("bridge {}: {reason}{for_long}", self.shared.name);
        }
        self.needs_help = fault.needs_help;
        let attempt = self.failures.saturating_add(1);
        self.shared.show(BridgeState::Connecting { attempt, reason: Some(reason), needs_help: fault.needs_help });
    }

    /// Says in the log that an event can't be delivered; of many, not each.
    fn tell_refusal(&mut self, reason: &str, again: bool) {
        let counter = if again { &mut self.refused_again } else { &mut self.refused };
        *counter += 1;
        if *counter <= 4 || counter.is_power_of_two() {
            let (name, nth) = (&self.shared.name, *counter);
            let what =
                if again { "a dead letter that was sent again is one again" } else { "an event becomes a dead letter" };
            tracing::warn!("bridge {name}: {what}, the {nth}. since it began: {reason}");
        }
    }

    /// Counts what was read to be lost: at once, since the feed counts it no longer.
    fn count_losses(&mut self) {
        let lost = |delivery: &Delivery<Received>| if let Delivery::Gap(gap) = delivery { gap.count } else { 0 };
        let lost: u64 = self.read.iter().map(lost).sum();
        if lost > 0 {
            add(&self.shared.counters.dropped, lost);
            self.tell_losses();
        }
    }

    /// Says in the log that events were lost, if more were since it said so last; not all the time.
    fn tell_losses(&mut self) {
        let (told, at) = self.losses_told;
        if at.is_some_and(|at| now() < at + BETWEEN_LOSSES) {
            return;
        }
        let all = self.shared.status().counts.dropped;
        if all <= told {
            return;
        }
        self.losses_told = (all, Some(now()));
        let name = &self.shared.name;
        tracing::warn!(
            "bridge {name}: up to {} events are lost, {all} since it began: more came than its high-water mark or the journal may hold",
            all - told
        );
    }

    /// Ends: counts what is left, and says so.
    async fn end(mut self) -> Abandoned {
        self.losses_told.1 = None;
        self.tell_losses();
        self.ledger.lost();
        self.connected_at = None;
        // What is being stored will be; until that is known, the cursor stays before it.
        if let Some(at) = self.stopping {
            let left = at.saturating_duration_since(now()).max(Duration::from_secs(1));
            if self.cemetery.is_working() && tokio::time::timeout(left, self.cemetery.work()).await.is_ok() {
                let dead = self.cemetery.worked(&mut self.ledger, |_| now());
                add(&self.shared.counters.dead, dead);
            }
        }
        self.settle();
        let durable = self.feed.is_durable();
        let pending = self.pending.iter().filter(|delivery| matches!(delivery, Delivery::Message(_))).count();
        let unread = self.shared.probe.stats().waiting;
        let taken = (self.ledger.undone() + pending) as u64;
        let events = if durable { taken } else { taken + unread };
        let name = &self.shared.name;
        match (events, unread) {
            (0, 0) => tracing::info!("bridge {name}: ended; everything is delivered"),
            _ if durable => tracing::info!(
                "bridge {name}: ended; {events} events are not confirmed and up to {unread} not sent yet: they will be after the next start"
            ),
            _ => tracing::warn!("bridge {name}: ended; {events} events could not be delivered in time and are lost"),
        }
        self.shared.show(BridgeState::Ended);
        Abandoned { events, durable }
    }
}
