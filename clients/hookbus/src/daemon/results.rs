//! Results of hook executors on their way to oned, through a driver that forwards.
//!
//! An executor gets its ACK when its result waits here. What waits is bounded: while no driver is connected, or oned doesn't
//! read, executors wait for their ACK. A result stays until the driver says that oned has it.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// What may wait, in bytes; one result of any size is taken when nothing waits.
const MAX_BYTES: usize = 4 << 20;

/// The queue. Clones are handles to the same one.
#[derive(Clone, Debug, Default)]
pub(crate) struct ResultQueue {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// There is something new.
    news: Notify,
    /// There is room.
    room: Notify,
}

#[derive(Debug, Default)]
struct State {
    lines: VecDeque<Bytes>,
    /// The number of the first of them.
    first: u64,
    bytes: usize,
}

impl ResultQueue {
    /// Queues a line, with its LF, waiting for room. Cancelling queues nothing.
    pub(crate) async fn push(&self, line: Bytes) {
        loop {
            let room = self.shared.room.notified();
            let mut room = std::pin::pin!(room);
            room.as_mut().enable();
            {
                let mut state = self.shared.state.lock();
                if state.bytes == 0 || state.bytes + line.len() <= MAX_BYTES {
                    state.bytes += line.len();
                    state.lines.push_back(line);
                    drop(state);
                    self.shared.news.notify_waiters();
                    return;
                }
            }
            room.await;
        }
    }

    /// The first that waits from this number on, with its number; waits for one.
    pub(crate) async fn from(&self, number: u64) -> (u64, Bytes) {
        loop {
            let news = self.shared.news.notified();
            let mut news = std::pin::pin!(news);
            news.as_mut().enable();
            {
                let state = self.shared.state.lock();
                let at = number.saturating_sub(state.first);
                if let Some(line) = usize::try_from(at).ok().and_then(|at| state.lines.get(at)) {
                    return (state.first + at, line.clone());
                }
            }
            news.await;
        }
    }

    /// Results below this number have been handed to oned.
    pub(crate) fn told(&self, number: u64) {
        let mut state = self.shared.state.lock();
        while state.first < number
            && let Some(line) = state.lines.pop_front()
        {
            state.first += 1;
            state.bytes -= line.len();
        }
        drop(state);
        self.shared.room.notify_waiters();
    }

    /// How many wait.
    pub(crate) fn waiting(&self) -> usize {
        self.shared.state.lock().lines.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_result_stays_until_oned_has_it() {
        let queue = ResultQueue::default();
        queue.push("a\n".into()).await;
        queue.push("b\n".into()).await;
        assert_eq!(queue.from(0).await, (0, "a\n".into()));
        assert_eq!(queue.from(0).await, (0, "a\n".into()), "the connection broke; it is sent again");
        queue.told(1);
        assert_eq!(queue.from(0).await, (1, "b\n".into()));
        queue.told(100);
        assert_eq!(queue.waiting(), 0);
        let waiting = tokio::spawn({
            let queue = queue.clone();
            async move { queue.from(2).await }
        });
        tokio::task::yield_now().await;
        queue.push("c\n".into()).await;
        assert_eq!(waiting.await.unwrap(), (2, "c\n".into()));
    }

    #[tokio::test]
    async fn a_full_queue_lets_executors_wait() {
        let queue = ResultQueue::default();
        queue.push(vec![b'x'; MAX_BYTES + 5].into()).await;
        let pushed = tokio::spawn({
            let queue = queue.clone();
            async move { queue.push("late\n".into()).await }
        });
        tokio::task::yield_now().await;
        assert!(!pushed.is_finished());
        queue.told(1);
        pushed.await.unwrap();
        assert_eq!(queue.waiting(), 1);
    }
}
