//! The thread that writes, and publishers that stand in for it.
//!
//! The scribe takes what is queued for the journal in batches, has the [`Writer`] put each into the buffer and write it, and sees to
//! everything that has to be done now and then: segments made ready ahead, offsets set aside, cursors saved, what is too old deleted.
//! What fails is tried again, for ever, with pauses; only when the broker was closed it gives up after some attempts.
//!
//! To wake the thread and to be woken by it costs a publisher more than to write. So the scribe sits behind a lock, which the thread
//! lets go of while it sleeps, and a publisher that blocks its own thread anyway takes it before it publishes, where it is free
//! ([`StandIn`]): it publishes, writes, and goes. It does the plain case only: whatever is left then, or is more than to write, is the
//! thread's, which is woken. One that finds the lock taken publishes and waits: whoever has the lock looks for what is queued
//! before it lets go. Where a sync follows each write, nobody stands in: there, waking is cheap beside it, and those who wait share a sync.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use super::error::JournalFault;
use super::gate::Signals;
use super::log::Log;
use super::writer::Writer;
use crate::error::TryRecvError;
use crate::message::{Delivery, Gap, Offset};
use crate::options::BatchLimit;
use crate::publish::{Publishing, tell_waiters};
use crate::subscription::{Subscription, SubscriptionHandle};

/// What is taken at once.
pub(super) const BATCH: BatchLimit = BatchLimit { messages: 4096, bytes: 256 << 10 };
/// How long a cursor that has moved may stay unsaved.
const SAVE_AFTER: Duration = Duration::from_millis(500);
/// How often ages are looked at.
const AGE_TICK: Duration = Duration::from_millis(500);
/// Pauses between attempts.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Attempts to write what is left when the broker was closed.
const LAST_ATTEMPTS: u32 = 10;
/// Segments that may be ready: more are not made, even when all of them are promised.
const MOST_READY: u32 = 2;

/// The scribe, for whoever may be it. Nobody is, once the journal is closed.
///
/// In the order of locks it comes before all others of the broker.
pub(crate) type Shared = Mutex<Option<Scribe>>;

/// Who writes.
pub(crate) struct Scribe {
    desk: Desk,
    subscription: Subscription,
    /// Wakes the thread; from when it first runs.
    waker: Option<Waker>,
    /// Nothing more can be written.
    gave_up: bool,
}

/// All of it but the queue.
struct Desk {
    writer: Writer,
    log: Arc<Log>,
    handle: SubscriptionHandle,
    signals: Arc<Signals>,
    /// A gap that isn't written yet, since it may go on.
    gap: Option<Gap>,
    /// Whether the gate knows of a failure.
    failing: bool,
    /// When to try again to make a segment ready.
    retry: Option<(Instant, Duration)>,
    /// When to save cursors.
    save: Option<Instant>,
    /// When to look for what is too old.
    age: Instant,
}

/// Writing was given up, because the broker is closed and it fails.
struct GaveUp;

/// Why nothing more is written.
enum Over {
    Closed,
    GaveUp,
}

impl From<GaveUp> for Over {
    fn from(_: GaveUp) -> Self {
        Over::GaveUp
    }
}

/// Why nothing was written.
enum Unwritten {
    Nothing(TryRecvError),
    GaveUp,
}

impl From<GaveUp> for Unwritten {
    fn from(_: GaveUp) -> Self {
        Unwritten::GaveUp
    }
}

/// What the thread has to do next.
enum Next {
    /// To write what was queued in the meantime.
    Write,
    /// To sleep until it is woken, or until then.
    Sleep(Option<Instant>),
}

/// Runs the thread: writes until the broker is closed.
pub(super) fn run(shared: &Shared) {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    loop {
        let mut scribe = shared.lock();
        let Some(at_work) = &mut *scribe else { return };
        at_work.waker.get_or_insert_with(|| waker.clone());
        match at_work.write_all(&mut Context::from_waker(&waker)) {
            Ok(Next::Write) => {}
            Ok(Next::Sleep(until)) => {
                drop(scribe);
                match until {
                    Some(at) => thread::park_timeout(at.saturating_duration_since(Instant::now())),
                    None => thread::park(),
                }
            }
            Err(over) => {
                if let Over::Closed = over {
                    // The mark is all that is missing, if it can't be written: then the next one to open it reads more.
                    let _ = at_work.desk.insist(Writer::close);
                }
                at_work.desk.log.end();
                let over = scribe.take();
                drop(scribe);
                drop(over);
                return;
            }
        }
    }
}

impl Scribe {
    pub(super) fn new(writer: Writer, subscription: Subscription, signals: Arc<Signals>) -> Self {
        let desk = Desk {
            log: Arc::clone(&writer.log),
            handle: subscription.handle().clone(),
            writer,
            signals,
            gap: None,
            failing: false,
            retry: None,
            save: None,
            age: Instant::now(),
        };
        Scribe { desk, subscription, waker: None, gave_up: false }
    }

    /// Writes what is queued, and does what is due.
    fn write_all(&mut self, cx: &mut Context<'_>) -> Result<Next, Over> {
        if self.gave_up {
            return Err(Over::GaveUp);
        }
        let idle = match self.write_batch() {
            Ok(()) => false,
            Err(Unwritten::GaveUp) => return Err(Over::GaveUp),
            Err(Unwritten::Nothing(TryRecvError::Ended)) => {
                let desk = &mut self.desk;
                if let Some(gap) = desk.gap.take() {
                    desk.insist(|w| w.put_gap(gap))?;
                }
                desk.insist(Writer::flush)?;
                return Err(Over::Closed);
            }
            Err(Unwritten::Nothing(TryRecvError::Empty)) => {
                self.subscription.poll_ready(cx).is_pending() && !self.desk.settle()?
            }
        };
        self.desk.do_duties();
        Ok(if idle { Next::Sleep(self.desk.next_duty()) } else { Next::Write })
    }

    /// Writes some of what is queued.
    fn write_batch(&mut self) -> Result<(), Unwritten> {
        let Scribe { desk, subscription, .. } = self;
        let batch = subscription.try_recv_batch(BATCH).map_err(Unwritten::Nothing)?;
        batch.iter().try_for_each(|item| desk.put(item))?;
        drop(batch);
        desk.insist(Writer::flush)?;
        desk.reserve()?;
        Ok(())
    }
}

/// A publisher in the thread's place, from before it publishes. When it goes, the thread is woken if anything is left to do.
pub(crate) struct StandIn<'a> {
    scribe: MutexGuard<'a, Option<Scribe>>,
}

impl<'a> StandIn<'a> {
    /// Takes the thread's place, unless that is taken, or there is more to do than to write.
    pub(super) fn new(shared: &'a Shared) -> Option<Self> {
        let scribe = shared.try_lock()?;
        let at_work = scribe.as_ref()?;
        if at_work.waker.is_none() || at_work.gave_up || !at_work.desk.is_plain() {
            return None;
        }
        // Whoever publishes finds nobody to wake.
        at_work.desk.handle.member().waker.lock().take();
        Some(StandIn { scribe })
    }

    /// Writes what is queued up to the message of that offset.
    pub(crate) fn write_to(mut self, offset: Offset) {
        let Some(scribe) = &mut *self.scribe else { return };
        while scribe.desk.log.watermark() <= offset.get() {
            match scribe.write_batch() {
                Ok(()) => {}
                Err(Unwritten::Nothing(_)) => return,
                Err(Unwritten::GaveUp) => {
                    scribe.gave_up = true;
                    return;
                }
            }
        }
    }
}

impl Drop for StandIn<'_> {
    fn drop(&mut self) {
        let Some(Scribe { desk, subscription, waker: Some(waker), gave_up }) = &mut *self.scribe else { return };
        if subscription.poll_sleep(waker).is_ready() || *gave_up || !desk.is_plain() {
            waker.wake_by_ref();
        }
    }
}

impl Desk {
    /// Puts one item into the buffer.
    #[expect(clippy::needless_pass_by_value, reason = "it comes by value from the batch")]
    fn put(&mut self, item: Delivery<crate::MessageRef<'_>>) -> Result<(), GaveUp> {
        match item {
            Delivery::Message(message) => {
                if let Some(gap) = self.gap.take() {
                    self.insist(|w| w.put_gap(gap))?;
                }
                self.insist(|w| w.put(message, message.offset().get()))
            }
            Delivery::Gap(gap) => {
                let first = self.gap.map_or(gap.first, |old| old.first);
                let count = self.gap.map_or(0, |old| old.count) + gap.count;
                self.gap = Some(Gap { first, last: gap.last, count });
                Ok(())
            }
        }
    }

    /// With nothing queued: tells the gate how much room there is, and writes a gap behind which nothing came. Returns
    /// whether it found something to do.
    fn settle(&mut self) -> Result<bool, GaveUp> {
        if self.gap.is_none() && !self.signals.unsettled.load(Ordering::Acquire) {
            return Ok(false);
        }
        let room = self.writer.room();
        let (member, has_gap) = (Arc::clone(self.handle.member()), self.gap.is_some());
        let settled = self.with_gate(|gate| {
            if member.cursor.lock().has_any() {
                return None;
            }
            gate.settle(room, has_gap);
            Some(gate.take_gap())
        });
        match settled {
            None => Ok(true), // something has come
            Some(false) => Ok(false),
            Some(true) => {
                if let Some(gap) = self.gap.take() {
                    self.insist(|w| w.put_gap(gap))?;
                }
                self.insist(Writer::flush)?;
                Ok(true)
            }
        }
    }

    /// Changes the gate, and lets those try again who wait at it.
    fn with_gate<T>(&self, change: impl FnOnce(&mut super::Gate) -> T) -> T {
        let (result, waiters) = self.handle.shared().with_publishing(|p: &mut Publishing| {
            let gate = p.gate.as_mut().expect("the gate is there from when the journal was attached");
            let result = change(gate);
            let waiters = gate.member().cursor.lock().take_waiters();
            (result, waiters)
        });
        tell_waiters(waiters);
        result
    }

    fn reserve(&mut self) -> Result<(), GaveUp> {
        let next = self.writer.next;
        self.insist(|w| w.reserve(next))
    }

    /// Tries until it works.
    fn insist<T>(&mut self, mut attempt: impl FnMut(&mut Writer) -> io::Result<T>) -> Result<T, GaveUp> {
        let mut pause = FIRST_PAUSE;
        let mut last = LAST_ATTEMPTS;
        loop {
            let error = match attempt(&mut self.writer) {
                Ok(value) => {
                    if std::mem::take(&mut self.failing) {
                        self.log.failing.lock().take();
                        self.with_gate(|gate| gate.set_failing(None));
                    }
                    return Ok(value);
                }
                Err(error) => error,
            };
            self.failing = true;
            *self.log.failing.lock() = Some(error.to_string());
            self.with_gate(|gate| gate.set_failing(Some(JournalFault::from(&error))));
            if self.handle.end().is_some() {
                last -= 1;
                if last == 0 {
                    return Err(GaveUp);
                }
            }
            thread::park_timeout(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
            let _ = self.writer.save_cursors();
        }
    }

    /// When something has to be done though nothing comes.
    fn next_duty(&self) -> Option<Instant> {
        let save = self.save.or_else(|| self.log.cursors_moved.load(Ordering::Acquire).then(Instant::now));
        let retry = self.retry.map(|(at, _)| at);
        let age = self.log.options.max_age.map(|_| self.age);
        [save, retry, age].into_iter().flatten().min()
    }

    /// Does what is due.
    fn do_duties(&mut self) {
        self.make_ready();
        let now = Instant::now();
        if self.log.cursors_moved.load(Ordering::Acquire) {
            let at = *self.save.get_or_insert(now + SAVE_AFTER);
            if now >= at {
                self.save = None;
                // Where it can't be written, what was done comes again after a crash.
                let _ = self.writer.save_cursors();
            }
        }
        if self.log.options.max_age.is_some() && now >= self.age {
            self.age = now + AGE_TICK;
            if self.writer.expire().unwrap_or(false) {
                let shared = Arc::clone(self.handle.shared());
                let at = shared.with_publishing(|p| {
                    if let Some(gate) = &mut p.gate {
                        gate.end_segment();
                    }
                    p.next
                });
                self.writer.end_segment_at(at);
            }
        }
    }

    /// Whether a segment should be made ready, so that there is one that isn't promised to anybody.
    fn wants_segment(&self) -> bool {
        self.signals.spares.load(Ordering::Relaxed) == 0 && self.writer.ready_segments() < MOST_READY
    }

    /// Whether nothing has to be done but to write what is queued, and nothing in the way of that.
    fn is_plain(&self) -> bool {
        let settled = self.gap.is_none() && !self.signals.unsettled.load(Ordering::Acquire);
        settled && !self.failing && self.retry.is_none() && !self.wants_segment()
    }

    /// Has a segment ready that isn't promised to anybody.
    fn make_ready(&mut self) {
        if !self.wants_segment() {
            if self.retry.take().is_some() {
                self.log.failing.lock().take();
            }
            return;
        }
        if self.retry.is_some_and(|(at, _)| Instant::now() < at) {
            return;
        }
        match self.writer.prepare() {
            Ok(true) => {
                if self.retry.take().is_some() {
                    self.log.failing.lock().take();
                }
                self.with_gate(super::Gate::add_spare);
            }
            // Those that are ready have to be used first.
            Ok(false) => {}
            Err(error) => {
                let pause = self.retry.map_or(FIRST_PAUSE, |(_, pause)| (pause * 2).min(LONGEST_PAUSE));
                self.retry = Some((Instant::now() + pause, pause));
                *self.log.failing.lock() = Some(error.to_string());
                self.with_gate(|gate| gate.no_spare(JournalFault::from(&error)));
            }
        }
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
