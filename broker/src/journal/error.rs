//! What can go wrong with a journal.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why a journal can't be opened, attached or read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum JournalError {
    /// The operating system refused.
    #[error("journal {path}: cannot {deed}: {source}", path = path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was tried.
        deed: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Another process has it open.
    #[error("journal {path}: another process has it open; give each process a directory of its own", path = path.display())]
    InUse {
        /// The journal's directory.
        path: PathBuf,
    },
    /// It was written by a later version of this crate.
    #[error("journal {path}: its format is version {version}, this program knows up to {known}", path = path.display())]
    Version {
        /// The journal's directory.
        path: PathBuf,
        /// Its format.
        version: u32,
        /// The latest format known here.
        known: u32,
    },
    /// The size limit leaves no room to work in.
    #[error("journal {path}: {max_bytes} bytes are too few; it needs {least}", path = path.display())]
    TooSmall {
        /// The journal's directory.
        path: PathBuf,
        /// The limit given.
        max_bytes: u64,
        /// The smallest one.
        least: u64,
    },
    /// The broker has a journal already.
    #[error("journal: the broker has one already")]
    Attached,
    /// The broker has no journal.
    #[error("journal: the broker has none, so nothing can be read from it")]
    None,
    /// The broker was closed.
    #[error("journal: the broker is closed")]
    Closed,
    /// A subscription with this cursor is open.
    #[error("journal: cursor {name:?} is in use; a cursor has one subscription at a time")]
    CursorInUse {
        /// The cursor.
        name: String,
    },
    /// There is no such cursor.
    #[error("journal: there is no cursor {name:?}")]
    NoCursor {
        /// The name given.
        name: String,
    },
    /// The name can't be a cursor's.
    #[error("journal: {name:?} cannot be the name of a cursor: it needs 1 to {most} bytes")]
    CursorName {
        /// The name given.
        name: String,
        /// The most bytes that it can have.
        most: usize,
    },
}

/// Why the journal doesn't take a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
#[non_exhaustive]
pub enum JournalFault {
    /// Its disk has no room. It tries again by itself.
    #[error("the journal's disk is full")]
    Full,
    /// Its last write failed. It tries again by itself.
    #[error("the journal cannot be written: {0}")]
    Failing(io::ErrorKind),
    /// The message is larger than a segment.
    #[error(
        "with {bytes} bytes the message is too large for the journal, which takes up to {most} (a 16th of its size)"
    )]
    TooLarge {
        /// What it would take, in bytes.
        bytes: u64,
        /// The most that is possible.
        most: u64,
    },
    /// The broker was closed before it was written; it may have been delivered.
    #[error("the journal was closed before it had the message")]
    Closed,
}

impl From<&io::Error> for JournalFault {
    fn from(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => JournalFault::Full,
            kind => JournalFault::Failing(kind),
        }
    }
}

impl JournalError {
    /// For `map_err`: what was being done to which file.
    pub(super) fn io<'a>(deed: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> JournalError + 'a {
        move |source| JournalError::Io { path: path.to_owned(), deed, source }
    }
}
