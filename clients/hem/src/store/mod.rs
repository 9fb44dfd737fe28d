//! The store: hooks of our own, the log of executions, and what waits to be sent or to be run again, in one file of SQLite's.
//!
//! It is made for these constraints: an executor records a thousand executions a second and must never wait for the disk; what it has
//! reported must be there after any crash of the process; and a disk that is full must not stop hooks from running.
//!
//! ```text
//!   any task                                     one thread
//! record, push, ...  ─▶ queue, bounded ─▶ writer ─▶ hooks.db (WAL)    one transaction for what came within 10 ms
//! Pending<id>        ◀── answers, in order ─╯            │
//! log, hooks, ...    ◀── up to 4 readers, on threads for blocking work
//! ```
//!
//! | file | what is in it |
//! | --- | --- |
//! | `schema.rs` | the file: layout, versions, lock |
//! | `writer.rs` | the thread that writes: batches, trouble with the disk |
//! | `readers.rs` | the connections that read |
//! | `hook.rs`, `execution.rs`, `outbox.rs`, `retry.rs`, `cursor.rs` | what is kept |
//! | `id.rs`, `error.rs`, `status.rs` | names, errors, counters |
//!
//! # Guarantees
//!
//! - What was **answered is committed**: it is there when the process is killed, at any moment. It is not flushed to the disk for each
//!   batch (WAL, `synchronous=NORMAL`), so a loss of power, or a crash of the kernel, may take back the last records, messages and
//!   retries, whole transactions at a time and from the end: as far as to the last checkpoint, which is about 4 MiB of changes back. Ids
//!   that are taken back with them are given again. Changes of hooks are flushed before they are answered, and
//!   all that was committed before with them. The file is sound in any case.
//! - **Order**: records and all else that is not a change of a hook are committed and answered in the order in which they were given. A
//!   [`Completion`] is committed as a whole.
//! - **Ids** of hooks, executions and messages are never given twice, also not after what had them is deleted. A retry has that of its run.
//! - **Loss**: a record is lost when the queue is full: when the disk can't be written, or is slower than the hooks, for
//!   [`queue_max_bytes`](StoreOptions::queue_max_bytes) of records; when it could never be stored (a text of a gigabyte); and when the
//!   store is closed, or its last handle dropped, while the disk can't be written. Each is counted, logged, and told to who gave it.
//!   What is in the queue when the process is killed is lost, unanswered. Beyond their bounds old records, and the
//!   oldest messages of the outbox, go; the latter are counted and logged. A retry for which there is no room is refused, counted and logged.
//! - **Repetition**: a message of the outbox that was sent, and not removed before a crash, comes again. So does a retry. What was given and not
//!   answered when the process was killed may be there.
//! - A **disk that is full** or fails, and a lock of somebody else's, are waited out; [`status`](Store::status) tells. Changes of hooks fail at once.
//! - A file that is **damaged** or from a later version is never touched: [`open`](Store::open) fails, and says what to do. Damage that shows
//!   only in use makes what meets it fail, and the rest goes on.
//! - One process has the file open, for writing; the program `sqlite3` may read it meanwhile. It has to be on a local file system.
//!   It doesn't become smaller: room that is free is used again.
//!
//! # What blocks
//!
//! [`Store::open`] and [`Store::hooks_blocking`]. Everything else is for asynchronous code; what reads needs to be called on a tokio runtime.
//!
//! ```
//! use hookbus_hem::store::{Store, StoreOptions};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let directory = tempfile::tempdir()?;
//! let store = Store::open(directory.path(), StoreOptions::default())?;
//! let hook = store.create_hook("greet", "NAME = greet\nTYPE = event\nPREFIX = \"app \"\nCOMMAND = /bin/echo").await?;
//! assert_eq!(hook.id.get(), 0);
//! store.lock_hook(hook.id).await?;
//! let error = store.delete_hook(hook.id).await.expect_err("it is locked");
//! assert_eq!(error.to_string(), "hook 0 (greet) is locked; unlock it first");
//! store.close(std::time::Duration::from_secs(5)).await;
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! # }).unwrap();
//! ```

mod cursor;
mod error;
mod execution;
mod hook;
mod id;
mod outbox;
mod readers;
mod retry;
mod schema;
mod status;
mod writer;

use std::borrow::Cow;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::mpsc;
use std::task::{Context, Poll, ready};
use std::thread::Thread;
use std::time::{Duration, Instant, SystemTime};

use hookbus_broker::EventId;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::record::Record;

pub use self::error::{HookError, OpenError, StoreError};
pub use self::execution::{Execution, LogEntry, LogFilter, StoredExecution};
use self::hook::HookCommand;
pub use self::hook::StoredHook;
pub use self::id::{ExecutionId, HookId, HookKey, HookKeyError, HookRef, OutboxId, RetryId};
pub use self::outbox::OutboxMessage;
use self::readers::Readers;
pub use self::retry::Retry;
pub use self::schema::FILE_NAME;
use self::status::Counters;
pub use self::status::{StoreStatus, StoreTrouble};
use self::writer::{Change, Done, Job, Message, Work, Writer};

/// The unit in which room in the queue is given: what a small record takes.
const ROOM_BYTES: usize = 1 << 10;
/// How many changes that somebody waits for are in the queue at once. The disk doesn't hold them up, so they need no more.
const COMMANDS: usize = 64;

/// How a store is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreOptions {
    /// How many executions of each hook are kept, as oned's `LOG_RETENTION`. 20 unless set; 0 counts as 1.
    pub log_retention: usize,
    /// How old an execution becomes. For ever unless set.
    pub max_age: Option<Duration>,
    /// How much may wait to be written, in bytes: records, messages, retries. 64 MiB unless set; one change is always let in.
    pub queue_max_bytes: usize,
    /// How many messages the outbox has at most. 10,000 unless set; 0 counts as 1.
    pub outbox_max_messages: u64,
    /// The same in bytes. 256 MiB unless set; the newest message is kept, however large.
    pub outbox_max_bytes: u64,
    /// How many retries wait at most. 100,000 unless set.
    pub retries_max: u64,
    /// How long the lock of another program on the file is waited for, before it counts as trouble. 5 s unless set.
    pub busy_timeout: Duration,
}

impl Default for StoreOptions {
    fn default() -> Self {
        StoreOptions {
            log_retention: 20,
            max_age: None,
            queue_max_bytes: 64 << 20,
            outbox_max_messages: 10_000,
            outbox_max_bytes: 256 << 20,
            retries_max: 100_000,
            busy_timeout: Duration::from_secs(5),
        }
    }
}

/// An execution, and what is to be stored or removed together with it: all or nothing.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Completion {
    /// What is recorded.
    pub execution: Execution,
    /// A message for the outbox that tells of it.
    pub message: Option<Vec<u8>>,
    /// When it is to be repeated; its [`retry_of`](Retry::retry_of) becomes the id of this execution. If too many wait already, it is refused, and
    /// the rest stored.
    pub retry: Option<Retry>,
    /// The retry that this execution was, which is done now.
    pub retried: Option<RetryId>,
}

impl Completion {
    /// What a [`Record`] leaves behind: the execution, and the attempt that is to be made after a restart, in the place of the one that this was.
    pub fn of_record(hook: HookKey, record: &Record) -> Self {
        let id = RetryId::new(record.run.0);
        let retry = record.resume.map(|attempt| {
            let due = SystemTime::now() + record.repeat_in.unwrap_or_default();
            Retry {
                id,
                hook: hook.clone(),
                event: Some(record.event.clone()),
                attempt,
                due: due.into(),
                retry_of: None,
                arguments: record.arguments.clone(),
                host: record.host.clone(),
                environment: owned(&record.environment),
            }
        });
        // Also where the hook has no RETRIES by now.
        Completion { retry, retried: Some(id), ..Execution::of_record(hook, record).into() }
    }
}

/// An environment as it is stored.
fn owned(environment: &[(Cow<'static, str>, String)]) -> Vec<(String, String)> {
    environment.iter().map(|(name, value)| (name.clone().into_owned(), value.clone())).collect()
}

impl From<Execution> for Completion {
    fn from(execution: Execution) -> Self {
        Completion { execution, message: None, retry: None, retried: None }
    }
}

/// What a [`Completion`] became.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// The execution's id.
    pub execution: ExecutionId,
    /// The id of its message, if it had one.
    pub message: Option<OutboxId>,
    /// The id of its retry, if it had one and that wasn't refused.
    pub retry: Option<RetryId>,
}

/// The answer to a change, once it is committed. The change is made whether or not somebody waits for the answer.
#[derive(Debug)]
pub struct Pending<T> {
    state: State,
    answer: fn(Done) -> Result<T, StoreError>,
}

#[derive(Debug)]
enum State {
    Waiting(oneshot::Receiver<Result<Done, HookError>>),
    Refused(StoreError),
}

impl<T> Future for Pending<T> {
    type Output = Result<T, StoreError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = self.answer;
        Poll::Ready(match &mut self.state {
            State::Refused(error) => Err(error.clone()),
            State::Waiting(receiver) => match ready!(Pin::new(receiver).poll(cx)) {
                Ok(Ok(done)) => answer(done),
                Ok(Err(HookError::Store(error))) => Err(error),
                Ok(Err(_)) | Err(_) => Err(StoreError::Closed),
            },
        })
    }
}

impl<T> Pending<T> {
    /// Whether it was not taken in, and is answered with an error already.
    pub fn is_refused(&self) -> bool {
        matches!(self.state, State::Refused(_))
    }
}

/// A store. Clones are handles to the same one; when the last is dropped, what waits is written, and the file closed, in the background.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: Arc<Path>,
    options: StoreOptions,
    messages: mpsc::Sender<Message>,
    /// Unparked when there is a message that should not wait for others to come.
    writer: Thread,
    counters: Arc<Counters>,
    readers: Readers,
    /// Room in the queue for what is kept when the disk fails, and for what isn't.
    room: Arc<Semaphore>,
    commands: Arc<Semaphore>,
    closed: AtomicBool,
    /// Held while a change that there may be no room for is put into the queue.
    losing: Mutex<Losing>,
}

/// How many changes found no room since one did last.
#[derive(Debug, Default)]
struct Losing(u64);

impl Store {
    /// Opens the store of a directory, which is there; makes the file if there is none. This blocks on the disk.
    ///
    /// # Errors
    /// When somebody else has it open, the file is damaged or of a later version, or can't be used.
    pub fn open(directory: &Path, options: StoreOptions) -> Result<Self, OpenError> {
        let path: Arc<Path> = directory.join(FILE_NAME).into();
        let opened = schema::open(&path, options.busy_timeout)?;
        let (messages, receiver) = mpsc::channel();
        let counters = Arc::new(Counters::default());
        let writer = Writer::new(Arc::clone(&path), options.clone(), Arc::clone(&counters), receiver, opened)
            .map_err(|error| StoreError::failed(&path, "read", error))?;
        let writer = std::thread::Builder::new()
            .name("hook-store".into())
            .spawn(move || writer.run())
            .map_err(|source| OpenError::Io { path: path.to_path_buf(), source })?;
        let inner = Inner {
            readers: Readers::new(&path, options.busy_timeout),
            room: Arc::new(Semaphore::new(units(&options))),
            commands: Arc::new(Semaphore::new(COMMANDS)),
            closed: AtomicBool::new(false),
            losing: Mutex::default(),
            path,
            options,
            messages,
            writer: writer.thread().clone(),
            counters,
        };
        Ok(Store { inner: Arc::new(inner) })
    }

    /// Ends it in order: nothing more is taken in, what waits is written until `patience` is over, and the file is closed. Answers how many
    /// changes were lost because they could not be written. A lock of another program may take [`busy_timeout`](StoreOptions::busy_timeout) longer.
    /// Once it returns the file may be opened again.
    pub async fn close(&self, patience: Duration) -> u64 {
        self.inner.closed.store(true, SeqCst);
        self.inner.readers.close();
        let (done, closed) = oneshot::channel();
        let deadline = Instant::now() + patience;
        if self.inner.messages.send(Message::Close { deadline, done }).is_err() {
            return 0; // It is closed already.
        }
        self.inner.writer.unpark();
        closed.await.unwrap_or(0)
    }

    /// How it stands. It doesn't look at the disk.
    pub fn status(&self) -> StoreStatus {
        let Inner { counters, room, .. } = &*self.inner;
        let committed = *counters.committed.lock();
        let bytes = |units: usize| (units * ROOM_BYTES) as u64;
        StoreStatus {
            path: self.inner.path.to_path_buf(),
            queued: counters.queued.load(Relaxed),
            queued_bytes: bytes(units(&self.inner.options).saturating_sub(room.available_permits())),
            queue_max_bytes: bytes(units(&self.inner.options)),
            commits: counters.commits.load(Relaxed),
            executions: counters.executions.load(Relaxed),
            dropped: counters.dropped.load(Relaxed),
            outbox_messages: committed.outbox.messages,
            outbox_bytes: committed.outbox.bytes,
            outbox_dropped: committed.outbox.dropped,
            retries: committed.retries,
            retries_refused: counters.retries_refused.load(Relaxed),
            trouble: counters.trouble.lock().clone(),
        }
    }
}

/// Hooks of the store. A change is answered when it is flushed to the disk, and fails at once when that can't be.
impl Store {
    /// Creates a hook with this name and the text of this template, which is kept as it is; whether it makes sense is for the caller to see. Blanks
    /// around the name are dropped.
    ///
    /// # Errors
    /// When the name is taken or can be none, or the store fails.
    pub async fn create_hook(
        &self,
        name: impl Into<String>,
        template: impl Into<String>,
    ) -> Result<StoredHook, HookError> {
        self.change_hook(HookCommand::Create { name: name.into(), template: template.into() }).await
    }

    /// All hooks, in the order of their ids.
    ///
    /// # Errors
    /// When the file can't be read.
    pub async fn hooks(&self) -> Result<Vec<StoredHook>, StoreError> {
        self.read(hook::all).await
    }

    /// The same on this thread, which waits for the disk: for a start.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn hooks_blocking(&self) -> Result<Vec<StoredHook>, StoreError> {
        self.inner.readers.read_blocking(hook::all)
    }

    /// One hook, if there is one.
    ///
    /// # Errors
    /// When the file can't be read.
    pub async fn hook(&self, hook: impl Into<HookRef>) -> Result<Option<StoredHook>, StoreError> {
        let hook = hook.into();
        self.read(move |connection| hook::find(connection, &hook)).await
    }

    /// Replaces a hook's template; its name stays, whatever NAME there is in the new one.
    ///
    /// # Errors
    /// When there is no such hook, it is locked, or the store fails.
    pub async fn update_hook(
        &self,
        hook: impl Into<HookRef>,
        template: impl Into<String>,
    ) -> Result<StoredHook, HookError> {
        self.change_hook(HookCommand::Update { hook: hook.into(), template: template.into() }).await
    }

    /// Gives a hook another name; its template stays as it is.
    ///
    /// # Errors
    /// When there is no such hook, it is locked, the name is taken or can be none, or the store fails.
    pub async fn rename_hook(
        &self,
        hook: impl Into<HookRef>,
        name: impl Into<String>,
    ) -> Result<StoredHook, HookError> {
        self.change_hook(HookCommand::Rename { hook: hook.into(), name: name.into() }).await
    }

    /// Deletes a hook, the records of its executions, and its retries; answers what it was. The record of an execution that still runs
    /// comes after that, and stays until it is too old or [forgotten](Store::forget).
    ///
    /// # Errors
    /// When there is no such hook, it is locked, or the store fails.
    pub async fn delete_hook(&self, hook: impl Into<HookRef>) -> Result<StoredHook, HookError> {
        self.change_hook(HookCommand::Delete { hook: hook.into() }).await
    }

    /// Locks a hook; it may be locked already.
    ///
    /// # Errors
    /// When there is no such hook, or the store fails.
    pub async fn lock_hook(&self, hook: impl Into<HookRef>) -> Result<StoredHook, HookError> {
        self.change_hook(HookCommand::SetLocked { hook: hook.into(), locked: true }).await
    }

    /// Unlocks a hook; it may be unlocked already.
    ///
    /// # Errors
    /// When there is no such hook, or the store fails.
    pub async fn unlock_hook(&self, hook: impl Into<HookRef>) -> Result<StoredHook, HookError> {
        self.change_hook(HookCommand::SetLocked { hook: hook.into(), locked: false }).await
    }

    async fn change_hook(&self, command: HookCommand) -> Result<StoredHook, HookError> {
        self.command(Work::Hook(command)).await?.hook.ok_or(HookError::Store(StoreError::Closed))
    }
}

/// Executions.
impl Store {
    /// Records an execution, of a hook from anywhere, and what belongs to it. It never waits and never blocks: the answer comes once it is
    /// committed, and as long as the disk can't be written it doesn't.
    ///
    /// # Errors
    /// The answer is an error when the queue is full, the record could never be stored, or the store is closed. The record is lost then, counted
    /// and logged. Of a hook of the store that is there no more nothing is recorded ([`StoreError::Deleted`]).
    pub fn record(&self, completion: impl Into<Completion>) -> Pending<Recorded> {
        let Completion { execution, message, retry, retried } = completion.into();
        let change = Change { execution: Some(execution), push: message, retry, retried, ..Change::default() };
        self.submit(change, |done| {
            let execution = done.execution.ok_or(StoreError::Deleted)?;
            Ok(Recorded { execution, message: done.pushed, retry: done.retry })
        })
    }

    /// One execution, with its outputs.
    ///
    /// # Errors
    /// When the file can't be read.
    pub async fn execution(&self, hook: HookKey, id: ExecutionId) -> Result<Option<StoredExecution>, StoreError> {
        self.read(move |connection| execution::find(connection, &hook, id)).await
    }

    /// All executions of a hook, with their outputs, the newest first.
    ///
    /// # Errors
    /// When the file can't be read.
    pub async fn executions(&self, hook: HookKey) -> Result<Vec<StoredExecution>, StoreError> {
        self.read(move |connection| execution::of_hook(connection, &hook)).await
    }

    /// The log over all hooks, without outputs, the newest first, by the time when the command was started.
    ///
    /// # Errors
    /// When the file can't be read.
    pub async fn log(&self, filter: LogFilter) -> Result<Vec<LogEntry>, StoreError> {
        self.read(move |connection| execution::log(connection, &filter)).await
    }

    /// Removes the records of a hook, and its retries, as when it is deleted; ids go on where they were. Answers how many records there were.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn forget(&self, hook: HookKey) -> Result<u64, StoreError> {
        match self.command(Work::Forget(hook)).await {
            Ok(done) => Ok(done.removed),
            Err(HookError::Store(error)) => Err(error),
            Err(_) => Err(StoreError::Closed),
        }
    }
}

/// The cursor: how far a source of events is dealt with.
impl Store {
    /// Sets the event to go on with. It never waits and never blocks, as [`record`](Store::record), and is committed behind the records that were given before.
    ///
    /// # Errors
    /// The answer is an error when the queue is full, or the store is closed.
    pub fn set_cursor(&self, next: EventId) -> Pending<()> {
        self.submit(Change { cursor: Some(next), ..Change::default() }, |_| Ok(()))
    }

    /// The event to go on with, if that was ever set. It waits for the disk: for a start.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn cursor_blocking(&self) -> Result<Option<EventId>, StoreError> {
        self.inner.readers.read_blocking(cursor::get)
    }
}

/// The outbox: messages that wait to be sent, in order. What is in them is the caller's.
impl Store {
    /// Adds a message. When there is no room for it, the oldest go, and are counted. It never waits and never blocks, as [`record`](Store::record).
    ///
    /// # Errors
    /// The answer is an error when the queue is full, or the store is closed. The message is lost then.
    pub fn push(&self, message: impl Into<Vec<u8>>) -> Pending<OutboxId> {
        self.submit(Change { push: Some(message.into()), ..Change::default() }, |done| {
            done.pushed.ok_or(StoreError::Closed)
        })
    }

    /// The oldest messages, at most so many.
    ///
    /// # Errors
    /// When the file can't be read.
    pub async fn front(&self, limit: usize) -> Result<Vec<OutboxMessage>, StoreError> {
        self.front_after(None, limit, usize::MAX).await
    }

    /// The oldest messages behind `after`, at most so many; and no further one once they have so many bytes.
    ///
    /// # Errors
    /// When the file can't be read.
    pub async fn front_after(
        &self,
        after: Option<OutboxId>,
        limit: usize,
        max_bytes: usize,
    ) -> Result<Vec<OutboxMessage>, StoreError> {
        self.read(move |connection| outbox::front(connection, after, limit, max_bytes)).await
    }

    /// Removes a message that was sent; answers whether it was there. It waits for room in the queue, and for the disk.
    ///
    /// # Errors
    /// When the store is closed.
    pub async fn remove(&self, id: OutboxId) -> Result<bool, StoreError> {
        self.submit_patiently(Change { sent: Some(id), ..Change::default() }).await.map(|done| done.removed > 0)
    }

    /// Removes all messages up to this one, as when each of them was [removed](Store::remove); answers how many there were. It waits for room
    /// in the queue, and for the disk.
    ///
    /// # Errors
    /// When the store is closed.
    pub async fn remove_through(&self, last: OutboxId) -> Result<u64, StoreError> {
        let change = Change { sent_through: Some(last), ..Change::default() };
        self.submit_patiently(change).await.map(|done| done.removed)
    }
}

/// Retries that are due some time.
impl Store {
    /// Adds a retry. It never waits and never blocks, as [`record`](Store::record).
    ///
    /// # Errors
    /// The answer is an error when too many wait, the queue is full, or the store is closed. The retry is lost then.
    pub fn insert_retry(&self, retry: Retry) -> Pending<RetryId> {
        self.submit(Change { retry: Some(retry), ..Change::default() }, |done| {
            done.retry.ok_or(StoreError::TooManyRetries)
        })
    }

    /// All of them, on this thread, which waits for the disk: for a start. The one that has been due for longest comes first.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn retries_blocking(&self) -> Result<Vec<Retry>, StoreError> {
        self.inner.readers.read_blocking(retry::all)
    }

    /// Removes a retry; answers whether it was there. It waits for room in the queue, and for the disk. One that was executed
    /// is better removed [with its record](Completion::retried).
    ///
    /// # Errors
    /// When the store is closed.
    pub async fn remove_retry(&self, id: RetryId) -> Result<bool, StoreError> {
        self.submit_patiently(Change { retried: Some(id), ..Change::default() }).await.map(|done| done.removed > 0)
    }
}

impl Store {
    async fn read<R: Send + 'static>(
        &self,
        query: impl FnOnce(&rusqlite::Connection) -> rusqlite::Result<R> + Send + 'static,
    ) -> Result<R, StoreError> {
        self.inner.readers.read(query).await
    }

    /// Puts a change into the queue, or drops it, and says so.
    fn submit<T>(&self, change: Change, answer: fn(Done) -> Result<T, StoreError>) -> Pending<T> {
        let inner = &self.inner;
        let bytes = change.size_bytes();
        let state = {
            // One at a time, so that the order of the queue is the order of the calls.
            let mut losing = inner.losing.lock();
            if inner.closed.load(SeqCst) {
                inner.counters.dropped.fetch_add(1, Relaxed);
                State::Refused(StoreError::Closed)
            } else {
                match Arc::clone(&inner.room).try_acquire_many_owned(inner.room_of(bytes)) {
                    Ok(permit) => {
                        if losing.0 > 0 {
                            tracing::warn!("hooks: records can be stored again; {} were lost", losing.0);
                            losing.0 = 0;
                        }
                        inner.send(Work::Change(Box::new(change)), permit)
                    }
                    Err(_) => {
                        inner.counters.dropped.fetch_add(1, Relaxed);
                        if losing.0 == 0 {
                            let max = inner.options.queue_max_bytes;
                            tracing::error!(
                                "hooks: {max} bytes wait to be stored, there is no room for more; records are being lost"
                            );
                        }
                        losing.0 += 1;
                        State::Refused(StoreError::QueueFull { bytes })
                    }
                }
            }
        };
        Pending { state, answer }
    }

    /// Puts a change into the queue when there is room.
    async fn submit_patiently(&self, change: Change) -> Result<Done, StoreError> {
        let room = self.inner.room_of(change.size_bytes());
        let permit = Arc::clone(&self.inner.room).acquire_many_owned(room).await.map_err(|_| StoreError::Closed)?;
        let state = self.inner.send(Work::Change(Box::new(change)), permit);
        Pending { state, answer: Ok }.await
    }

    async fn command(&self, work: Work) -> Result<Done, HookError> {
        let permit = Arc::clone(&self.inner.commands).acquire_owned().await.map_err(|_| StoreError::Closed)?;
        match self.inner.send(work, permit) {
            State::Waiting(receiver) => receiver.await.map_err(|_| StoreError::Closed)?,
            State::Refused(error) => Err(error.into()),
        }
    }
}

impl Inner {
    /// The room for so many bytes. What is larger than the queue may have all of it.
    fn room_of(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.div_ceil(ROOM_BYTES).clamp(1, units(&self.options))).unwrap_or(u32::MAX)
    }

    fn send(&self, work: Work, permit: OwnedSemaphorePermit) -> State {
        if self.closed.load(SeqCst) {
            return State::Refused(StoreError::Closed);
        }
        let (reply, answer) = oneshot::channel();
        self.counters.queued.fetch_add(1, Relaxed);
        let is_patient = work.is_patient();
        match self.messages.send(Message::Job(Job { work, reply, permit })) {
            Ok(()) => {
                if !is_patient {
                    self.writer.unpark();
                }
                State::Waiting(answer)
            }
            // Nobody is there any more to take it.
            Err(_) => {
                self.counters.queued.fetch_sub(1, Relaxed);
                State::Refused(StoreError::Closed)
            }
        }
    }
}

/// The room that the queue has.
fn units(options: &StoreOptions) -> usize {
    (options.queue_max_bytes / ROOM_BYTES).clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize))
}

impl Change {
    fn size_bytes(&self) -> usize {
        self.execution.as_ref().map_or(0, Execution::size_bytes)
            + self.push.as_ref().map_or(0, Vec::len)
            + self.retry.as_ref().map_or(0, Retry::size_bytes)
    }
}

#[cfg(test)]
mod tests;
