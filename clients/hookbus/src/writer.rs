//! Lines to a descriptor that may block, from tasks that must not.
//!
//! Standard output belongs to oned, the log may be a file on a disk that hangs or a pipe that nobody reads. Neither may stop
//! the one thread that has standard input and all sockets. So a [`Writer`] is a queue, bounded in bytes, and a small
//! thread that empties it. (O_NONBLOCK is no way out: it belongs to the open file, which oned has, too.)
//!
//! - Lines are written whole and in order. A line that is larger than the bound is taken when the queue is empty.
//! - When the queue is full, [`offer`](Writer::offer) refuses and counts, [`push`](Writer::push) waits.
//! - A writer can be made [`held`](Writer::held): nothing is written until [`release`](Writer::release) gives the line that goes first.
//! - When writing fails the other end is gone: what is queued or comes later is dropped, and nobody waits for it.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;

/// The sending side. Clones are handles to the same one. When the last is dropped, its thread writes what is queued and ends.
#[derive(Clone)]
pub(crate) struct Writer {
    shared: Arc<Shared>,
    _handle: Arc<Handle>,
}

/// Tells the thread that nobody can queue any more.
struct Handle(Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.state.lock().abandoned = true;
        self.0.work.notify_one();
    }
}

struct Shared {
    state: Mutex<State>,
    /// There is work for the thread.
    work: Condvar,
    /// The queue has become shorter, or the writer broken.
    progress: Notify,
    max_bytes: usize,
}

struct State {
    queue: VecDeque<Bytes>,
    /// What is queued, and what is being written.
    bytes: usize,
    held: bool,
    broken: bool,
    /// All handles are gone.
    abandoned: bool,
    refused: u64,
}

/// Why a line was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The queue is full.
    Full,
    /// The other end is gone.
    Broken,
}

impl Writer {
    /// A writer of its own thread, `name`, that writes at once. Where no thread can be made, it is broken from the start.
    pub(crate) fn new(name: &str, sink: impl Write + Send + 'static, max_bytes: usize) -> Self {
        Writer::start(name, sink, max_bytes, false)
    }

    /// A writer that writes nothing until [`release`](Writer::release).
    pub(crate) fn held(name: &str, sink: impl Write + Send + 'static, max_bytes: usize) -> Self {
        Writer::start(name, sink, max_bytes, true)
    }

    fn start(name: &str, sink: impl Write + Send + 'static, max_bytes: usize, held: bool) -> Self {
        let state = State { queue: VecDeque::new(), bytes: 0, held, broken: false, abandoned: false, refused: 0 };
        let shared =
            Arc::new(Shared { state: Mutex::new(state), work: Condvar::new(), progress: Notify::new(), max_bytes });
        let thread = Arc::clone(&shared);
        if std::thread::Builder::new().name(name.into()).stack_size(64 << 10).spawn(move || thread.run(sink)).is_err() {
            shared.state.lock().broken = true;
        }
        Writer { _handle: Arc::new(Handle(Arc::clone(&shared))), shared }
    }

    /// Queues a line, with its newline, if there is room for it.
    ///
    /// # Errors
    /// When there isn't, or nobody reads.
    pub(crate) fn offer(&self, line: impl Into<Bytes>) -> Result<(), Refused> {
        let line = line.into();
        let mut state = self.shared.state.lock();
        if state.broken {
            return Err(Refused::Broken);
        }
        if state.bytes > 0 && state.bytes + line.len() > self.shared.max_bytes {
            state.refused += 1;
            return Err(Refused::Full);
        }
        state.bytes += line.len();
        state.queue.push_back(line);
        drop(state);
        self.shared.work.notify_one();
        Ok(())
    }

    /// Queues a line, with its newline, waiting for room. False when nobody reads any more. Cancelling queues nothing.
    pub(crate) async fn push(&self, line: Bytes) -> bool {
        loop {
            let progress = self.shared.progress.notified();
            let mut progress = std::pin::pin!(progress);
            progress.as_mut().enable();
            match self.offer(line.clone()) {
                Ok(()) => return true,
                Err(Refused::Broken) => return false,
                Err(Refused::Full) => {
                    // It isn't lost, it waits.
                    self.shared.state.lock().refused -= 1;
                    progress.await;
                }
            }
        }
    }

    /// Lets a held writer write: `first`, then what is queued. Does nothing to a writer that isn't held.
    pub(crate) fn release(&self, first: impl Into<Bytes>) {
        let first = first.into();
        let mut state = self.shared.state.lock();
        if state.held {
            state.held = false;
            if !state.broken && !first.is_empty() {
                state.bytes += first.len();
                state.queue.push_front(first);
            }
        }
        drop(state);
        self.shared.work.notify_one();
    }

    /// How many lines [`offer`](Writer::offer) has refused because the queue was full since this was last asked.
    pub(crate) fn take_refused(&self) -> u64 {
        std::mem::take(&mut self.shared.state.lock().refused)
    }

    /// Waits until everything is written, or nobody reads any more.
    pub(crate) async fn drained(&self) {
        loop {
            let progress = self.shared.progress.notified();
            let mut progress = std::pin::pin!(progress);
            progress.as_mut().enable();
            if self.shared.state.lock().bytes == 0 {
                return;
            }
            progress.await;
        }
    }
}

impl Shared {
    fn run(&self, mut sink: impl Write) {
        let mut batch = VecDeque::new();
        loop {
            let mut state = self.state.lock();
            while state.held || state.queue.is_empty() {
                if state.abandoned {
                    return;
                }
                self.work.wait(&mut state);
            }
            std::mem::swap(&mut state.queue, &mut batch);
            drop(state);
            for line in batch.drain(..) {
                let written = sink.write_all(&line);
                let mut state = self.state.lock();
                state.bytes -= line.len();
                if written.is_err() {
                    state.broken = true;
                }
                let broken = state.broken;
                drop(state);
                if broken {
                    break;
                }
                self.progress.notify_waiters();
            }
            let mut state = self.state.lock();
            if state.broken || sink.flush().is_err() {
                state.broken = true;
                state.queue = VecDeque::new();
                state.bytes = 0;
                drop(state);
                self.progress.notify_waiters();
                return;
            }
            // A burst's queue need not stay: there is one writer for each descriptor, and it is idle most of the time.
            drop(state);
            batch.shrink_to(64);
        }
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").field("queued_bytes", &self.shared.state.lock().bytes).finish_non_exhaustive()
    }
}

/// Writes to a descriptor that this process was given, unbuffered, whoever set it to O_NONBLOCK.
#[derive(Debug)]
pub(crate) struct Descriptor(pub(crate) std::os::fd::BorrowedFd<'static>);

impl Write for Descriptor {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        loop {
            match rustix::io::write(self.0, buffer) {
                Ok(written) => return Ok(written),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    let mut fds = [rustix::event::PollFd::from_borrowed_fd(self.0, rustix::event::PollFlags::OUT)];
                    match rustix::event::poll(&mut fds, None) {
                        Ok(_) | Err(rustix::io::Errno::INTR) => {}
                        Err(e) => return Err(e.into()),
                    }
                }
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    use super::*;

    /// A sink that takes a line only when the test asks for it.
    struct Gate(SyncSender<Vec<u8>>);

    impl Write for Gate {
        fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
            self.0.send(buffer.to_vec()).map_err(|_| io::ErrorKind::BrokenPipe)?;
            Ok(buffer.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn gate() -> (Gate, Receiver<Vec<u8>>) {
        let (sender, receiver) = sync_channel(0);
        (Gate(sender), receiver)
    }

    #[tokio::test]
    async fn a_held_writer_begins_with_the_line_it_is_released_with() {
        let (sink, lines) = gate();
        let writer = Writer::held("test", sink, 100);
        writer.offer("LOG\n").unwrap();
        writer.release("INIT\n");
        writer.release("INIT again\n");
        writer.offer("more\n").unwrap();
        for expected in ["INIT\n", "LOG\n", "more\n"] {
            assert_eq!(lines.recv().unwrap(), expected.as_bytes());
        }
        writer.drained().await;
    }

    #[tokio::test]
    async fn a_full_writer_refuses_offers_and_lets_pushes_wait() {
        let (sink, lines) = gate();
        let writer = Writer::new("test", sink, 8);
        writer.offer("larger than the bound\n").unwrap();
        assert_eq!(writer.offer("b\n"), Err(Refused::Full));
        assert_eq!(writer.take_refused(), 1);
        let pushed = tokio::spawn({
            let writer = writer.clone();
            async move { writer.push("c\n".into()).await }
        });
        tokio::task::yield_now().await;
        assert!(!pushed.is_finished());
        assert_eq!(lines.recv().unwrap(), b"larger than the bound\n");
        let next = tokio::task::spawn_blocking(move || lines.recv().unwrap());
        assert!(pushed.await.unwrap());
        assert_eq!(next.await.unwrap(), b"c\n");
        assert_eq!(writer.take_refused(), 0);
    }

    #[test]
    fn the_thread_ends_with_the_last_handle_and_writes_the_rest_first() {
        let (sink, lines) = gate();
        let writer = Writer::new("test", sink, 100);
        let clone = writer.clone();
        writer.offer("a\n").unwrap();
        drop(writer);
        clone.offer("b\n").unwrap();
        drop(clone);
        assert_eq!(lines.iter().flatten().collect::<Vec<_>>(), b"a\nb\n", "and then its end of the channel is dropped");
    }

    #[tokio::test]
    async fn when_the_reader_is_gone_nobody_waits() {
        let (sink, lines) = gate();
        let writer = Writer::new("test", sink, 8);
        drop(lines);
        writer.offer("a\n").unwrap();
        writer.drained().await;
        assert!(!writer.push("b\n".into()).await);
        assert_eq!(writer.offer("c\n"), Err(Refused::Broken));
    }
}
