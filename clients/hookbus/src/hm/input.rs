//! Standard input, which must always be read: oned queues without a bound behind a pipe that isn't.
//!
//! The pipe is in the runtime's epoll together with all sockets, so that an event costs one wake-up of one thread. Its open file is
//! shared with whoever else was given it, so O_NONBLOCK is out of bounds: a read happens only when `poll` says that it
//! won't block, and takes what is there, once. Then the other tasks have their turn, whether or not there is more.
//!
//! Regular files and `/dev/null` can't be in an epoll; for them a thread reads ahead by a few blocks.

use std::io;
use std::os::fd::BorrowedFd;

use bytes::{Buf, Bytes};
use hookbus_bridges::opennebula::LineReader;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

/// What the thread for files reads at once, and how many of these may be ahead.
const FILE_BLOCK_BYTES: usize = 64 << 10;
const FILE_BLOCKS_AHEAD: usize = 2;

/// Where lines come from.
#[derive(Debug)]
pub(crate) enum Input {
    /// A pipe, a socket or a terminal.
    Polled(AsyncFd<BorrowedFd<'static>>),
    /// Anything else.
    Threaded { blocks: mpsc::Receiver<io::Result<Bytes>>, rest: Bytes },
}

/// What a read has brought.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Read {
    /// 0 is the end of the input.
    pub(crate) bytes: usize,
    /// Whether there was no more: the next read waits.
    pub(crate) was_all: bool,
}

impl Input {
    /// Standard input. Needs a runtime.
    pub(crate) fn stdin() -> io::Result<Self> {
        let stdin = rustix::stdio::stdin();
        // What replaces it is an unsafe fn, because a descriptor could be closed while it is registered. Standard input
        // is borrowed for ever and nobody closes it.
        #[expect(deprecated, reason = "sound for a descriptor that is never closed; its successor is unsafe to call")]
        let polled = AsyncFd::with_interest(stdin, Interest::READABLE);
        match polled {
            Ok(fd) => Ok(Input::Polled(fd)),
            // What epoll refuses: files, directories, /dev/null.
            Err(e) if e.raw_os_error() == Some(Errno::PERM.raw_os_error()) => {
                let (sender, blocks) = mpsc::channel(FILE_BLOCKS_AHEAD);
                std::thread::Builder::new().name("stdin".into()).spawn(move || read_ahead(stdin, &sender))?;
                Ok(Input::Threaded { blocks, rest: Bytes::new() })
            }
            Err(e) => Err(e),
        }
    }

    /// Reads once into the reader's room. Cancelling loses nothing.
    pub(crate) async fn read(&mut self, lines: &mut LineReader) -> io::Result<Read> {
        match self {
            Input::Polled(fd) => loop {
                let mut ready = fd.readable().await?;
                if !readable_now(*fd.get_ref())? {
                    ready.clear_ready();
                    continue;
                }
                let room = lines.room();
                match rustix::io::read(fd.get_ref(), &mut *room) {
                    Ok(bytes) => {
                        let was_all = bytes < room.len();
                        if was_all {
                            // What comes later is a new edge for epoll.
                            ready.clear_ready();
                        }
                        lines.filled(bytes);
                        return Ok(Read { bytes, was_all });
                    }
                    Err(Errno::INTR) => {}
                    Err(Errno::AGAIN) => ready.clear_ready(),
                    Err(e) => return Err(e.into()),
                }
            },
            Input::Threaded { blocks, rest } => {
                if rest.is_empty() {
                    match blocks.recv().await {
                        Some(block) => *rest = block?,
                        None => return Ok(Read { bytes: 0, was_all: true }),
                    }
                }
                let room = lines.room();
                let bytes = rest.len().min(room.len());
                rest.copy_to_slice(&mut room[..bytes]);
                lines.filled(bytes);
                Ok(Read { bytes, was_all: false })
            }
        }
    }

    /// Whether it is a terminal: then a person tries things out.
    pub(crate) fn is_terminal() -> bool {
        std::io::IsTerminal::is_terminal(&std::io::stdin())
    }
}

/// Whether a read would not block: there is something, or the other end is closed.
fn readable_now(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    match rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

fn read_ahead(fd: BorrowedFd<'_>, blocks: &mpsc::Sender<io::Result<Bytes>>) {
    loop {
        let mut block = vec![0; FILE_BLOCK_BYTES];
        let read = match rustix::io::read(fd, &mut block) {
            Ok(0) => return,
            Ok(read) => {
                block.truncate(read);
                Ok(block.into())
            }
            Err(Errno::INTR) => continue,
            Err(e) => Err(e.into()),
        };
        let failed = read.is_err();
        if blocks.blocking_send(read).is_err() || failed {
            return;
        }
    }
}
