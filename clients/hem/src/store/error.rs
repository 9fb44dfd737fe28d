//! What can go wrong with the store. Each message names the file, what was tried, and what to do.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::ErrorCode;
use thiserror::Error;

use super::id::{HookId, HookRef};

/// Why a store can't be opened. Nothing was changed, and the file is as it was.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Somebody has it open: another process, or this one.
    #[error(
        "the hooks in {} are in use by {}; stop that one, or give this one another state directory",
        path.display(),
        pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
    )]
    InUse {
        /// The file.
        path: PathBuf,
        /// Who, as far as it is known.
        pid: Option<u32>,
    },
    /// A later version of hookbus wrote it.
    #[error(
        "the hooks in {} were written by a later version of hookbus, in layout {found}; this one knows layout {known}. \
         Install that version again, or move the file away to begin with no hooks",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its layout.
        found: i32,
        /// The latest layout that is known here.
        known: i32,
    },
    /// It is a database of some other program.
    #[error("{} is a database of another program; move it away, or set another state directory", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// It is damaged.
    #[error("the hooks in {} can't be read, the file is damaged: {why}. {}", path.display(), what_to_do(path))]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was noticed.
        why: String,
    },
    /// A file, or the directory, can't be used.
    #[error("{} can't be used: {source}; check the state directory, its owner and its room", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// SQLite can't use the file for another reason: a full disk, or a lock that somebody holds.
    #[error(transparent)]
    Failed(#[from] StoreError),
}

fn what_to_do(path: &Path) -> String {
    let path = path.display();
    format!(
        "Stop hookbus and move {path} away, with {path}-wal and {path}-shm if they are there, to begin with no hooks and no log; \
         `sqlite3 FILE .recover` shows what can be saved"
    )
}

/// Why the store can't do what it was asked. What was asked for has not happened, unless it says so.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The file can't be read or written.
    #[error("the hooks in {} can't be {deed}: {}", path.display(), explanation(path, source))]
    Failed {
        /// The file.
        path: Arc<Path>,
        /// What was tried: `opened`, `read`, `written`.
        deed: &'static str,
        /// What SQLite said.
        source: Arc<rusqlite::Error>,
    },
    /// So much waits to be written that there is no room for this; it was dropped, counted and logged. It was not stored.
    #[error("{bytes} bytes more can't wait to be stored, the queue is full; it was dropped")]
    QueueFull {
        /// The size of what was dropped.
        bytes: usize,
    },
    /// The hook was deleted while it ran.
    #[error("the hook was deleted, so its execution is not recorded")]
    Deleted,
    /// As many retries as are allowed wait already.
    #[error("too many retries wait already; this one was refused")]
    TooManyRetries,
    /// The store is closed, or what writes it has failed. What was under way may or may not have been stored.
    #[error("the store of hooks is closed")]
    Closed,
}

impl StoreError {
    pub(super) fn failed(path: &Arc<Path>, deed: &'static str, source: rusqlite::Error) -> Self {
        StoreError::Failed { path: Arc::clone(path), deed, source: Arc::new(source) }
    }
}

/// What an error of SQLite's means for who runs hookbus.
fn explanation(path: &Path, error: &rusqlite::Error) -> String {
    let advice = match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => "make room on its disk".to_owned(),
        Some(ErrorCode::SystemIoFailure) => {
            "look at its disk, the room there, and limits on the size of files".to_owned()
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            "another program holds a lock on it (sqlite3?); end that one".to_owned()
        }
        Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
            "look at the owner and the permissions of it and of its directory".to_owned()
        }
        _ if is_damage(error) => what_to_do(path),
        _ => return error.to_string(),
    };
    format!("{error}; {advice}")
}

/// Whether the file itself is at fault.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    match error {
        rusqlite::Error::SqliteFailure(error, _) => {
            matches!(error.code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
        }
        // A value that none of ours has written.
        rusqlite::Error::FromSqlConversionFailure(..)
        | rusqlite::Error::IntegralValueOutOfRange(..)
        | rusqlite::Error::InvalidColumnType(..)
        | rusqlite::Error::Utf8Error(..) => true,
        _ => false,
    }
}

/// Whether what was to be written is at fault, so that it will never be written.
pub(super) fn is_hopeless(error: &rusqlite::Error) -> bool {
    match error {
        rusqlite::Error::SqliteFailure(error, _) => matches!(
            error.code,
            ErrorCode::TooBig | ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch | ErrorCode::ApiMisuse
        ),
        rusqlite::Error::ToSqlConversionFailure(_) | rusqlite::Error::NulError(_) => true,
        _ => false,
    }
}

/// Whether the connection is as good as before, so that nothing is won by opening the file anew.
pub(super) fn is_of_the_moment(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::DiskFull | ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::OutOfMemory)
    )
}

/// Why a hook of the store can't be made, found or changed. Nothing was changed.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum HookError {
    /// There is none.
    #[error("there is no hook {0}")]
    NoSuchHook(HookRef),
    /// Another hook has the name.
    #[error("the name {name:?} is taken by hook {id}; choose another one")]
    NameTaken {
        /// The name.
        name: String,
        /// The other hook.
        id: HookId,
    },
    /// It is locked.
    #[error("hook {id} ({name}) is locked; unlock it first")]
    Locked {
        /// Its id.
        id: HookId,
        /// Its name.
        name: String,
    },
    /// No hook can have this name.
    #[error("the name of a hook {0}")]
    BadName(&'static str),
    /// The template is larger than any can be.
    #[error("the template has {bytes} bytes; at most {max} are possible")]
    TemplateTooLarge {
        /// How large it is.
        bytes: usize,
        /// How large one can be.
        max: usize,
    },
    /// The store itself.
    #[error(transparent)]
    Store(#[from] StoreError),
}
