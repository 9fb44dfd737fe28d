//! Waiting: for how long to look again before sleeping.
//!
//! To wake a thread that sleeps on the other core costs as much as hundreds of messages, so a reader that finds nothing looks
//! again a few times, each after a longer pause, before it sleeps. Where nothing comes, looking only takes time from
//! those who share the cores, and a thread that yields may wait for a whole slice of the scheduler. So how often it looks
//! follows from what became of it: as often as it may where batches are large, or where a sleep was over so soon that looking would have
//! been cheaper; half as often after each sleep that was worth it.
//!
//! A task that reads doesn't look again. To wake it costs little, and where its publisher is a task, too, it then runs next on that worker, whose core has the
//! messages in its cache. One that kept itself awake would stay on another core, and each message would have to travel.
//!
//! A reader that is faster than its publisher takes each message as soon as it is there, and with it the lines that the publisher is
//! writing to: both wait for these more than they work. So after a small batch that was all there was, and that it didn't have to sleep
//! for, it lets messages gather for as long as a few of them take to be published. Who sleeps between messages never does.

use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use crate::sync::{spin_loop, thread};

/// A batch of so many shows that messages come faster than they are read.
const BUSY_MESSAGES: usize = 16;

/// Who takes so many at once isn't about to catch up with its publisher. If there are more readers than cores, another has waited for this one meanwhile.
const MANY_MESSAGES: usize = 64;

/// A sleep that is over sooner costs more than looking would have.
const SHORT_SLEEP: Duration = Duration::from_micros(10);

/// Spins of a reader that lets messages gather: half a microsecond, about. With 8 it was no help, with 64 none beyond that of 32.
const GATHER_SPINS: u32 = 32;

/// Looks of a thread before it sleeps.
pub(crate) const THREAD_LOOKS: u32 = 6;
/// Turns of a task that waits for room.
pub(crate) const ROOM_LOOKS: u32 = 8;

/// How many times to look before sleeping.
#[derive(Debug)]
pub(crate) struct Patience {
    looks: u32,
    most: u32,
    left: u32,
    /// Since when it sleeps, if it does.
    asleep: Option<Instant>,
    /// The last batch was small, and there without a sleep.
    chases: bool,
    /// The last batch was large.
    took_many: bool,
}

impl Patience {
    pub(crate) fn up_to(most: u32) -> Self {
        let most = if cfg!(hookbus_loom) { 0 } else { most };
        Patience { looks: most, most, left: most, asleep: None, chases: false, took_many: false }
    }

    /// Something was found, so many at once: the next wait starts anew.
    pub(crate) fn found(&mut self, count: usize) {
        let slept = self.asleep.take().map(|since| since.elapsed());
        if count >= BUSY_MESSAGES || slept.is_some_and(|slept| slept < SHORT_SLEEP) {
            self.looks = self.most;
        } else if slept.is_some() {
            self.looks /= 2;
        }
        self.left = self.looks;
        self.chases = slept.is_none() && count < BUSY_MESSAGES;
        self.took_many = count >= MANY_MESSAGES;
    }

    /// Lets messages gather, where they come one by one faster than a reader could sleep between them. For who has read all; once for
    /// each batch, however often a task is polled until there is another.
    pub(crate) fn let_gather(&mut self) {
        if std::mem::take(&mut self.chases) && !cfg!(hookbus_loom) {
            (0..GATHER_SPINS).for_each(|_| spin_loop());
        }
    }

    /// Sleeps now, until something is found.
    pub(crate) fn sleep(&mut self) {
        self.asleep.get_or_insert_with(Instant::now);
    }

    /// Whether to look once more. Where not, that stays so until something is found: a task that is polled for other reasons, or
    /// more than once each time, must not begin to look anew and keep itself awake for ever.
    pub(crate) fn look_again(&mut self) -> bool {
        let again = self.left > 0;
        self.left = self.left.saturating_sub(1);
        again
    }

    /// Pauses between two looks: longer each time, or where many came at once, just as long as others want the core.
    pub(crate) fn pause(&self) {
        if !self.took_many {
            for _ in 0..(8 << self.looks.saturating_sub(self.left).min(6)) {
                spin_loop();
            }
        }
        thread::yield_now();
    }
}

struct Unpark(thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a future on this thread, which sleeps while it waits.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut cx = Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut cx) {
            Poll::Ready(value) => return value,
            Poll::Pending => thread::park(),
        }
    }
}
