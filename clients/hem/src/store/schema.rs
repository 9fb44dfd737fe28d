//! The file: how it is opened, and what is in it.
//!
//! | table | a row is | columns |
//! | --- | --- | --- |
//! | `meta` | a number that is kept | `name` (`next_hook`, `outbox_dropped`, `cursor_log`, `cursor_offset`), `value` |
//! | `hooks` | a hook of the store | `id`, `name`, `template`, `created_ms`, `changed_ms`, `locked` |
//! | `logs` | a hook, of any origin, that has run | `number`, `hook` (a [`HookKey`](super::HookKey)), `next` (the next execution's id) |
//! | `executions` | an execution | `log` and `id`, what is known of it, its outputs at the end |
//! | `outbox` | a message that waits to be sent | `id`, `message` |
//! | `retries` | an execution that is due some time | `id`, `hook`, `due_ms`, what it needs |
//!
//! Times are milliseconds since 1970. The two numbers of an event's id are 64 bits without a sign, kept with one.
//!
//! # Version
//!
//! `application_id` says that a file is ours, `user_version` which layout it has. A file of a later layout isn't opened, one of an earlier
//! layout gets this one. A layout is made in one transaction, so a file has all of it or none.
//!
//! # One owner
//!
//! The owner holds a lock (flock) on a file beside it (`hooks.db.lock`), as with the state directory itself: a hook log that two
//! processes write would give ids that neither knows of. The kernel gives it back however the process ends.
//! SQLite's own locks would be lost as soon as anything in this process opened and closed the file, so nothing but SQLite does while it is in use.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, TransactionBehavior};
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::error::{OpenError, StoreError, is_damage};

/// The name of the file in the state directory.
pub const FILE_NAME: &str = "hooks.db";

/// The layout that this code writes.
const VERSION: i32 = 2;
/// "hkbs": what tells our files from those of others.
const APPLICATION_ID: i32 = 0x686B_6273;

/// Files up to this size are read through when they are opened, to see whether they are damaged. That takes well below a second; of larger
/// ones only what is small and dear is looked at.
const CHECKED_BYTES: u64 = 128 << 20;

/// What SQLite keeps of the file in memory, for each connection, in KiB.
const CACHE_KIB: i32 = 4 << 10;
/// The log of changes is cut to this size again when it was longer.
const WAL_BYTES: i32 = 16 << 20;

const LAYOUT: &str = "
    CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE hooks (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        template TEXT NOT NULL,
        created_ms INTEGER NOT NULL,
        changed_ms INTEGER NOT NULL,
        locked INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE logs (number INTEGER PRIMARY KEY, hook TEXT NOT NULL UNIQUE, next INTEGER NOT NULL) STRICT;
    CREATE TABLE executions (
        seq INTEGER PRIMARY KEY,
        log INTEGER NOT NULL,
        id INTEGER NOT NULL,
        hook_name TEXT NOT NULL,
        started_ms INTEGER NOT NULL,
        duration_us INTEGER NOT NULL,
        ending INTEGER NOT NULL,
        ending_number INTEGER NOT NULL,
        left_behind INTEGER NOT NULL,
        retry_of INTEGER,
        host TEXT,
        event_log INTEGER,
        event_offset INTEGER,
        event_time_ms INTEGER,
        event_key TEXT,
        stdout_cut_bytes INTEGER NOT NULL,
        stderr_cut_bytes INTEGER NOT NULL,
        command TEXT NOT NULL,
        arguments TEXT NOT NULL,
        environment TEXT NOT NULL,
        stdout_head BLOB NOT NULL,
        stdout_tail BLOB NOT NULL,
        stderr_head BLOB NOT NULL,
        stderr_tail BLOB NOT NULL,
        UNIQUE (log, id)
    ) STRICT;
    CREATE INDEX executions_by_time ON executions (started_ms);
    CREATE TABLE outbox (id INTEGER PRIMARY KEY AUTOINCREMENT, message BLOB NOT NULL) STRICT;
    CREATE TABLE retries (
        id INTEGER PRIMARY KEY,
        hook TEXT NOT NULL,
        due_ms INTEGER NOT NULL,
        attempt INTEGER NOT NULL,
        retry_of INTEGER,
        event_log INTEGER,
        event_offset INTEGER,
        event_time_ms INTEGER,
        event_key TEXT,
        host TEXT,
        arguments TEXT NOT NULL,
        environment TEXT NOT NULL
    ) STRICT;
    CREATE INDEX retries_by_time ON retries (due_ms);
";

/// What makes a layout 2 of a layout 1: columns that nothing ever used are gone.
const FROM_1: &str = "
    ALTER TABLE executions DROP COLUMN words;
    ALTER TABLE retries DROP COLUMN words;
    ALTER TABLE retries DROP COLUMN stdin;
";

/// The right to use the file, until it is dropped.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Lock {
    fn take(file: &Path) -> Result<Self, OpenError> {
        let mut path = file.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        let unusable = |source: io::Error| OpenError::Io { path: path.clone(), source };
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o640)
            .open(&path)
            .map_err(unusable)?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut text = String::new();
                // What can't be read is only a name less in the message.
                let _ = lock.take(32).read_to_string(&mut text);
                return Err(OpenError::InUse { path: file.into(), pid: text.trim().parse().ok() });
            }
            Err(e) => return Err(unusable(e.into())),
        }
        let written =
            lock.set_len(0).and_then(|()| lock.rewind()).and_then(|()| writeln!(lock, "{}", std::process::id()));
        if let Err(e) = written {
            // The lock holds all the same.
            tracing::warn!("{}: cannot note the pid: {e}", path.display());
        }
        Ok(Lock(lock))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // A process that is being started may have the descriptor for a moment, and would keep the lock.
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

/// Opens the file, or makes it.
pub(super) fn open(path: &Arc<Path>, busy_timeout: Duration) -> Result<(Connection, Lock), OpenError> {
    let lock = Lock::take(path)?;
    // Arguments and outputs may hold secrets. SQLite's other two files get the mode of this one.
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|source| OpenError::Io { path: path.to_path_buf(), source })?;
    let sqlite = |error: rusqlite::Error| match error {
        error if is_damage(&error) => OpenError::Damaged { path: path.to_path_buf(), why: error.to_string() },
        error => OpenError::Failed(StoreError::failed(path, "opened", error)),
    };
    let connection = connection(path, OpenFlags::SQLITE_OPEN_READ_WRITE, busy_timeout).map_err(sqlite)?;
    let connection = prepare(path, connection).map_err(|error| match error {
        Unusable::Sqlite(error) => sqlite(error),
        Unusable::Known(error) => error,
    })?;
    Ok((connection, lock))
}

enum Unusable {
    Sqlite(rusqlite::Error),
    Known(OpenError),
}

impl From<rusqlite::Error> for Unusable {
    fn from(error: rusqlite::Error) -> Self {
        Unusable::Sqlite(error)
    }
}

fn prepare(path: &Path, mut connection: Connection) -> Result<Connection, Unusable> {
    let number = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    let (application, version) = (number("application_id")?, number("user_version")?);
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let is_new = (application, version, tables) == (0, 0, 0);
    if !is_new && application != APPLICATION_ID {
        return Err(Unusable::Known(OpenError::Foreign { path: path.into() }));
    }
    if version > VERSION {
        return Err(Unusable::Known(OpenError::Newer { path: path.into(), found: version, known: VERSION }));
    }
    let mode: String = connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))?;
    if mode != "wal" {
        // On a file system without shared memory, such as some network ones.
        let source = io::Error::other("the file system is not fit for a database (it has no shared memory)");
        return Err(Unusable::Known(OpenError::Io { path: path.into(), source }));
    }
    if is_new {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(LAYOUT)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", VERSION)?;
        transaction.commit()?;
    } else {
        check(path, &connection)?;
        if version < VERSION {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            transaction.execute_batch(FROM_1)?;
            transaction.pragma_update(None, "user_version", VERSION)?;
            transaction.commit()?;
        }
    }
    set_up(&connection)?;
    Ok(connection)
}

/// Whether what is there can be read.
fn check(path: &Path, connection: &Connection) -> Result<(), Unusable> {
    let size_bytes = path.metadata().map_or(0, |meta| meta.len());
    let checks: &[&str] = if size_bytes <= CHECKED_BYTES {
        &["PRAGMA quick_check(1)"]
    } else {
        &["PRAGMA quick_check(meta)", "PRAGMA quick_check(hooks)", "PRAGMA quick_check(logs)"]
    };
    for check in checks {
        let found: String = connection.query_row(check, [], |row| row.get(0))?;
        if found != "ok" {
            return Err(Unusable::Known(OpenError::Damaged { path: path.into(), why: found }));
        }
    }
    Ok(())
}

/// Opens the file to write again, after trouble: it is ours still.
pub(super) fn reconnect(path: &Arc<Path>, busy_timeout: Duration) -> Result<Connection, StoreError> {
    connection(path, OpenFlags::SQLITE_OPEN_READ_WRITE, busy_timeout)
        .and_then(|connection| {
            set_up(&connection)?;
            Ok(connection)
        })
        .map_err(|error| StoreError::failed(path, "opened", error))
}

/// Opens a file that is there, to read.
pub(super) fn connect_reader(path: &Arc<Path>, busy_timeout: Duration) -> Result<Connection, StoreError> {
    connection(path, OpenFlags::SQLITE_OPEN_READ_ONLY, busy_timeout)
        .and_then(|connection| {
            connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
            Ok(connection)
        })
        .map_err(|error| StoreError::failed(path, "opened", error))
}

fn connection(path: &Path, flags: OpenFlags, busy_timeout: Duration) -> rusqlite::Result<Connection> {
    // A connection is used by one thread at a time.
    let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(busy_timeout)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    Ok(connection)
}

fn set_up(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_prepared_statement_cache_capacity(64);
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    connection.pragma_update(None, "journal_size_limit", WAL_BYTES)?;
    synchronous(connection, false)
}

/// Whether a commit waits for the disk. Outside a transaction only.
pub(super) fn synchronous(connection: &Connection, full: bool) -> rusqlite::Result<()> {
    connection.pragma_update(None, "synchronous", if full { "FULL" } else { "NORMAL" })
}
