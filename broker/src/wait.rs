//! Waiting: for how long to look again before sleeping.
//!
//! To wake a thread that sleeps on the other core costs as much as hundreds of messages, so a reader that finds nothing looks
//! again a few times, each after a longer pause, before it sleeps. Where nothing comes, looking only takes time from
//! those who share the cores, and a thread that yields may wait for a whole slice of the scheduler. So how often it looks
//! follows what it finds: more where batches are large, hardly at all where messages come one by one.

use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use crate::sync::{spin_loop, thread};

/// A batch of so many shows that messages come faster than they are read.
const BUSY_MESSAGES: usize = 16;

/// Looks of a thread before it sleeps, and turns of a task before it waits to be woken.
pub(crate) const THREAD_LOOKS: u32 = 6;
pub(crate) const TASK_LOOKS: u32 = 8;

/// How many times to look before sleeping.
#[derive(Debug)]
pub(crate) struct Patience {
    looks: u32,
    most: u32,
    left: u32,
}

impl Patience {
    pub(crate) fn up_to(most: u32) -> Self {
        let most = if cfg!(hookbus_loom) { 0 } else { most };
        Patience { looks: most, most, left: most }
    }

    /// Something was found, so many at once: the next wait starts anew.
    pub(crate) fn found(&mut self, count: usize) {
        self.looks = if count >= BUSY_MESSAGES { self.most } else { self.looks / 2 };
        self.left = self.looks;
    }

    /// Whether to look once more. Where not, that stays so until something is found: a task that is polled for other reasons, or
    /// more than once each time, must not begin to look anew and keep itself awake for ever.
    pub(crate) fn look_again(&mut self) -> bool {
        let again = self.left > 0;
        self.left = self.left.saturating_sub(1);
        again
    }

    /// Pauses between two looks, longer each time.
    pub(crate) fn pause(&self) {
        for _ in 0..(8 << (self.looks - self.left).min(6)) {
            spin_loop();
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
