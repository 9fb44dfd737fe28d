//! The writer: the one thread that changes the file.
//!
//! It takes what comes, in order, and commits a batch when nothing more waits or after [`BATCH_TIME`]; then it answers all of the batch, in
//! order. Nothing is answered before it is committed.
//!
//! A transaction costs about the same for one record as for fifty: it writes whole pages. So batches begin at least [`PACE`] apart: what
//! comes alone is committed at once, and of what comes fast each is committed with its neighbours. Meanwhile the thread sleeps, and is
//! woken only for what somebody waits for (a change of a hook, the end), not by each record.
//!
//! # Trouble
//!
//! When the file can't be written (a full disk, say), the batch is rolled back. Changes of hooks, which somebody waits for, are then tried one
//! by one and answered with the error; everything else is kept in its order and tried again, at first after 100 ms, in the end every 5 s, for
//! as long as it takes. The file is opened anew before that, unless the disk is just full or locked. Room in the
//! queue is given back when a change is answered, so what waits stays bounded, and what finds no room is dropped where it comes in.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use hookbus_broker::{EventId, Timestamp};
use rusqlite::{Connection, ErrorCode};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::cursor;
use super::error::{HookError, StoreError, is_hopeless, is_of_the_moment};
use super::execution::{self, Execution, Logs};
use super::hook::{self, HookCommand, Refusal, StoredHook};
use super::id::{ExecutionId, HookKey, OutboxId, RetryId};
use super::retry::{self, Retry};
use super::schema::{self, Lock};
use super::status::{Committed, Counters, StoreTrouble};
use super::{StoreOptions, outbox};

/// The time between the beginnings of two batches, unless somebody waits for what is in the second.
const PACE: Duration = Duration::from_millis(5);
/// How long a batch takes more in. With the pace it makes the 10 ms within which what came is committed, as fast as the disk is.
pub(super) const BATCH_TIME: Duration = Duration::from_millis(5);
/// How many changes a batch has at most.
const BATCH_MAX: usize = 4096;
/// The first and the longest pause after trouble.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How often the log reminds of trouble.
const REMINDER: Duration = Duration::from_secs(60);
/// How long it tries to write what waits when nobody has a handle any more.
const LAST_PATIENCE: Duration = Duration::from_secs(1);
/// How often old executions are looked for.
const TIDY_INTERVAL: Duration = Duration::from_secs(60);

/// What comes to the writer.
pub(super) enum Message {
    Job(Job),
    /// Write what waits, until then at the latest, and end.
    Close {
        deadline: Instant,
        done: oneshot::Sender<u64>,
    },
    #[cfg(test)]
    Test(Box<dyn FnOnce(&Connection) + Send>),
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Message")
    }
}

/// A change, who waits for it, and its room in the queue.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) work: Work,
    pub(super) reply: oneshot::Sender<Result<Done, HookError>>,
    pub(super) permit: OwnedSemaphorePermit,
}

#[derive(Debug)]
pub(super) enum Work {
    /// Kept and tried again when the disk fails.
    Change(Box<Change>),
    /// Answered with the error.
    Hook(HookCommand),
    /// Answered with the error.
    Forget(HookKey),
}

/// What is written together.
#[derive(Debug, Default)]
pub(super) struct Change {
    pub(super) execution: Option<Execution>,
    pub(super) push: Option<Vec<u8>>,
    pub(super) retry: Option<Retry>,
    pub(super) retried: Option<RetryId>,
    pub(super) sent: Option<OutboxId>,
    /// The last of those that were sent, in order.
    pub(super) sent_through: Option<OutboxId>,
    /// How far a source of events is dealt with.
    pub(super) cursor: Option<EventId>,
}

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Done {
    pub(super) execution: Option<ExecutionId>,
    pub(super) pushed: Option<OutboxId>,
    /// Not there if too many waited.
    pub(super) retry: Option<RetryId>,
    pub(super) removed: u64,
    pub(super) hook: Option<StoredHook>,
}

impl Work {
    pub(super) fn is_patient(&self) -> bool {
        matches!(self, Work::Change(_))
    }

    fn apply(
        &self,
        connection: &Connection,
        options: &StoreOptions,
        batch: &mut Batch,
    ) -> Result<Result<Done, HookError>, rusqlite::Error> {
        let mut done = Done::default();
        match self {
            Work::Change(change) => {
                if let Some(execution) = &change.execution {
                    done.execution = execution::insert(connection, execution, &mut batch.logs)?;
                    batch.executions += u64::from(done.execution.is_some());
                }
                if let Some(message) = &change.push {
                    let (messages, bytes) = (options.outbox_max_messages, options.outbox_max_bytes);
                    done.pushed = Some(batch.committed.outbox.push(connection, message, messages, bytes)?);
                }
                // First out, then in: a retry that failed and is due again takes the place of the one that it was.
                if let Some(retried) = change.retried
                    && batch.committed.retries > 0
                    && retry::remove(connection, retried)?
                {
                    batch.committed.retries = batch.committed.retries.saturating_sub(1);
                    done.removed += 1;
                }
                // Nor is a hook run again that was deleted meanwhile.
                let deleted = change.execution.is_some() && done.execution.is_none();
                if let Some(retry) = change.retry.as_ref().filter(|_| !deleted) {
                    if batch.committed.retries < options.retries_max {
                        retry::insert(connection, retry, done.execution)?;
                        done.retry = Some(retry.id);
                        batch.committed.retries += 1;
                    } else {
                        batch.retries_refused += 1;
                    }
                }
                if let Some(cursor) = change.cursor {
                    cursor::set(connection, cursor)?;
                }
                if let Some(sent) = change.sent {
                    done.removed += u64::from(batch.committed.outbox.remove(connection, sent)?);
                }
                if let Some(last) = change.sent_through {
                    done.removed += batch.committed.outbox.remove_through(connection, last)?;
                }
            }
            Work::Forget(hook) => {
                done.removed = hook::forget(connection, hook)?;
                batch.committed.retries = retry::count(connection)?;
            }
            Work::Hook(command) => match command.apply(connection, now()) {
                Ok(hook) => {
                    done.hook = Some(hook);
                    if matches!(command, HookCommand::Delete { .. }) {
                        batch.committed.retries = retry::count(connection)?;
                    }
                }
                Err(Refusal::Rule(error)) => return Ok(Err(error)),
                Err(Refusal::Sqlite(error)) => return Err(error),
            },
        }
        Ok(Ok(done))
    }
}

/// A transaction that is being made.
#[derive(Debug)]
struct Batch {
    committed: Committed,
    logs: Logs,
    answers: Vec<Result<Done, HookError>>,
    executions: u64,
    retries_refused: u64,
}

pub(super) struct Writer {
    path: Arc<Path>,
    options: StoreOptions,
    counters: Arc<Counters>,
    messages: Receiver<Message>,
    connection: Option<Connection>,
    /// Kept until the connection is closed.
    lock: Lock,
    /// What is not committed yet, in order.
    waiting: VecDeque<Job>,
    committed: Committed,
    trouble: Option<Trouble>,
    tidy_at: Instant,
    /// When the last batch began.
    began: Option<Instant>,
    end: Option<End>,
}

#[derive(Debug)]
struct Trouble {
    backoff: Duration,
    retry_at: Instant,
    told: Instant,
}

#[derive(Debug)]
struct End {
    deadline: Instant,
    done: Option<oneshot::Sender<u64>>,
}

impl Writer {
    pub(super) fn new(
        path: Arc<Path>,
        options: StoreOptions,
        counters: Arc<Counters>,
        messages: Receiver<Message>,
        (connection, lock): (Connection, Lock),
    ) -> rusqlite::Result<Self> {
        let committed = Committed { outbox: outbox::Filling::read(&connection)?, retries: retry::count(&connection)? };
        *counters.committed.lock() = committed;
        Ok(Writer {
            path,
            options,
            counters,
            messages,
            connection: Some(connection),
            lock,
            waiting: VecDeque::new(),
            committed,
            trouble: None,
            tidy_at: Instant::now(),
            began: None,
            end: None,
        })
    }

    /// Works until it is told to end, or nobody can send any more.
    pub(super) fn run(mut self) {
        self.retain_all();
        loop {
            self.wait();
            if self.end.as_ref().is_some_and(|end| self.waiting.is_empty() || end.deadline <= Instant::now()) {
                break;
            }
            if self.tidy_at <= Instant::now() {
                self.tidy();
            }
            if self.trouble.as_ref().is_some_and(|trouble| trouble.retry_at > Instant::now()) {
                continue;
            }
            while !self.waiting.is_empty() {
                self.gather();
                if let Err(error) = self.commit_batch() {
                    self.failed(&error);
                    break;
                }
            }
        }
        self.finish();
    }

    /// Lets changes come together, unless somebody waits for one. Who sends one that is waited for unparks this thread.
    fn gather(&mut self) {
        let Some(until) = self.began.map(|began| began + PACE) else { return };
        while self.trouble.is_none() && self.end.is_none() {
            while self.waiting.len() < BATCH_MAX
                && let Ok(message) = self.messages.try_recv()
            {
                self.take(message);
            }
            let left = until.saturating_duration_since(Instant::now());
            let full = self.waiting.len() >= BATCH_MAX;
            if left.is_zero() || full || self.waiting.iter().any(|job| !job.work.is_patient()) {
                return;
            }
            thread::park_timeout(left);
        }
    }

    /// Waits until there is something to do.
    fn wait(&mut self) {
        let retry_at = self.trouble.as_ref().map(|trouble| trouble.retry_at);
        if !self.waiting.is_empty() && retry_at.is_none() {
            return;
        }
        let mut until = retry_at.filter(|_| !self.waiting.is_empty()).map_or(self.tidy_at, |at| at.min(self.tidy_at));
        if let Some(end) = &self.end {
            if self.waiting.is_empty() {
                return;
            }
            // Nobody sends any more.
            until = until.min(end.deadline);
            thread::sleep(until.saturating_duration_since(Instant::now()));
            return;
        }
        match self.messages.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(message) => self.take(message),
            Err(RecvTimeoutError::Timeout) => {}
            // No handle is left.
            Err(RecvTimeoutError::Disconnected) => {
                self.end = Some(End { deadline: Instant::now() + LAST_PATIENCE, done: None });
                self.try_soon();
            }
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            // In trouble, who waits for an answer gets it now.
            Message::Job(job) if self.trouble.is_some() && !job.work.is_patient() => self.alone(job),
            Message::Job(job) => self.waiting.push_back(job),
            Message::Close { deadline, done } => {
                self.end = Some(End { deadline, done: Some(done) });
                self.try_soon();
            }
            #[cfg(test)]
            Message::Test(work) => {
                if let Some(connection) = &self.connection {
                    work(connection);
                }
            }
        }
    }

    /// Commits some of what waits, and what comes meanwhile.
    fn commit_batch(&mut self) -> Result<(), StoreError> {
        let failed = |path: &Arc<Path>, error| StoreError::failed(path, "written", error);
        // What somebody made by hand survives a loss of power, too.
        let durable = self.waiting.front().is_some_and(|job| !job.work.is_patient());
        self.begin(durable)?;
        let start = Instant::now();
        self.began = Some(start);
        let mut batch = Batch {
            committed: self.committed,
            logs: Logs::default(),
            answers: Vec::new(),
            executions: 0,
            retries_refused: 0,
        };
        loop {
            let next = batch.answers.len();
            if next == BATCH_MAX || next > 0 && start.elapsed() >= BATCH_TIME {
                break;
            }
            if next == self.waiting.len() {
                match self.messages.try_recv() {
                    Ok(Message::Job(job)) => self.waiting.push_back(job),
                    Ok(other) => {
                        self.take(other);
                        break;
                    }
                    Err(_) => break,
                }
            }
            let Some(connection) = &self.connection else { return Err(StoreError::Closed) };
            let job = &self.waiting[next];
            if job.work.is_patient() == durable {
                break; // It is for a batch of the other kind.
            }
            match job.work.apply(connection, &self.options, &mut batch) {
                Ok(answer) => batch.answers.push(answer),
                Err(error) => {
                    self.roll_back();
                    if is_hopeless(&error) {
                        self.give_up(next, error);
                        return Ok(()); // The others are tried again at once.
                    }
                    return Err(failed(&self.path, error));
                }
            }
        }
        if let Err(error) = self.commit(&batch) {
            self.roll_back();
            return Err(failed(&self.path, error));
        }
        self.trouble_is_over();
        self.tell(batch);
        Ok(())
    }

    fn begin(&mut self, durable: bool) -> Result<(), StoreError> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => schema::reconnect(&self.path, self.options.busy_timeout)?,
        };
        let connection = self.connection.insert(connection);
        schema::synchronous(connection, durable)
            .and_then(|()| connection.execute_batch("BEGIN IMMEDIATE"))
            .map_err(|error| StoreError::failed(&self.path, "written", error))
    }

    fn commit(&self, batch: &Batch) -> rusqlite::Result<()> {
        let Some(connection) = &self.connection else { return Ok(()) };
        batch.logs.finish(connection, self.options.log_retention)?;
        connection.execute_batch("COMMIT")
    }

    fn roll_back(&mut self) {
        // After some errors SQLite has done that already.
        let failed = self
            .connection
            .as_ref()
            .is_some_and(|connection| !connection.is_autocommit() && connection.execute_batch("ROLLBACK").is_err());
        if failed {
            self.connection = None;
        }
    }

    /// It is committed.
    fn tell(&mut self, batch: Batch) {
        let dropped = batch.committed.outbox.dropped - self.committed.outbox.dropped;
        if dropped > 0 {
            tracing::warn!(
                "hooks: the outbox is full; {dropped} of its oldest messages had to go, {} so far",
                batch.committed.outbox.dropped
            );
        }
        if batch.retries_refused > 0 {
            tracing::warn!(
                "hooks: {} retries were refused, {} wait already",
                batch.retries_refused,
                batch.committed.retries
            );
        }
        self.committed = batch.committed;
        *self.counters.committed.lock() = batch.committed;
        self.counters.commits.fetch_add(1, Relaxed);
        self.counters.executions.fetch_add(batch.executions, Relaxed);
        self.counters.retries_refused.fetch_add(batch.retries_refused, Relaxed);
        let count = batch.answers.len();
        for (job, answer) in self.waiting.drain(..count).zip(batch.answers) {
            answer_to(&self.counters, job, answer);
        }
    }

    /// What is at fault is the change, not the disk.
    fn give_up(&mut self, index: usize, error: rusqlite::Error) {
        let error = StoreError::failed(&self.path, "written", error);
        if let Some(job) = self.waiting.remove(index) {
            if job.work.is_patient() {
                self.counters.dropped.fetch_add(1, Relaxed);
                tracing::error!("{error}; what was to be stored is lost");
            }
            answer_to(&self.counters, job, Err(error.into()));
        }
    }

    /// The file can't be written.
    fn failed(&mut self, error: &StoreError) {
        let cause = match error {
            StoreError::Failed { source, .. } => Some(&**source),
            _ => None,
        };
        if !cause.is_some_and(is_of_the_moment) {
            self.connection = None;
        }
        // A lock that somebody holds was waited for already.
        let locked = cause.and_then(rusqlite::Error::sqlite_error_code) == Some(ErrorCode::DatabaseBusy);
        let (patient, others): (VecDeque<Job>, VecDeque<Job>) =
            std::mem::take(&mut self.waiting).into_iter().partition(|job| job.work.is_patient());
        self.waiting = patient;
        self.note_trouble(error);
        let only = self.waiting.is_empty() && others.len() == 1;
        for job in others {
            if locked || only {
                answer_to(&self.counters, job, Err(error.clone().into()));
            } else {
                self.alone(job);
            }
        }
        if self.waiting.is_empty() {
            // Nobody waits for the disk. The next change finds out how it is.
            self.trouble = None;
        }
    }

    fn note_trouble(&mut self, error: &StoreError) {
        let moment = Instant::now();
        let trouble = self.trouble.get_or_insert(Trouble { backoff: BACKOFF.0, retry_at: moment, told: moment });
        trouble.retry_at = moment + trouble.backoff;
        trouble.backoff = (trouble.backoff * 2).min(BACKOFF.1);
        let mut shown = self.counters.trouble.lock();
        if shown.is_none() || trouble.told.elapsed() >= REMINDER {
            trouble.told = moment;
            tracing::error!("{error}; {} records wait, and it is tried again", self.waiting.len());
        }
        let (since_ms, attempts) =
            shown.as_ref().map_or_else(|| (now().as_millis(), 0), |shown| (shown.since_ms, shown.attempts));
        *shown = Some(StoreTrouble { since_ms, error: error.to_string(), attempts: attempts + 1 });
    }

    /// Tries one change in a transaction of its own, and answers it in any case.
    fn alone(&mut self, job: Job) {
        let kept = std::mem::replace(&mut self.waiting, VecDeque::from([job]));
        let result = self.commit_one(kept.is_empty());
        let mut tried = std::mem::replace(&mut self.waiting, kept);
        match result {
            // There may be room for the others now.
            Ok(()) => self.try_soon(),
            Err(error) => {
                if let Some(job) = tried.pop_front() {
                    answer_to(&self.counters, job, Err(error.into()));
                }
            }
        }
    }

    /// Commits the one change that stands alone in `waiting`; `only` says that no other waits elsewhere.
    fn commit_one(&mut self, only: bool) -> Result<(), StoreError> {
        let mut batch = Batch {
            committed: self.committed,
            logs: Logs::default(),
            answers: Vec::new(),
            executions: 0,
            retries_refused: 0,
        };
        self.begin(true)?;
        let (Some(connection), Some(job)) = (&self.connection, self.waiting.front()) else {
            return Err(StoreError::Closed);
        };
        let applied = job.work.apply(connection, &self.options, &mut batch).and_then(|answer| {
            batch.answers.push(answer);
            self.commit(&batch)
        });
        if let Err(error) = applied {
            self.roll_back();
            return Err(StoreError::failed(&self.path, "written", error));
        }
        if only {
            self.trouble_is_over();
        }
        self.tell(batch);
        Ok(())
    }

    fn trouble_is_over(&mut self) {
        self.trouble = None;
        if let Some(trouble) = self.counters.trouble.lock().take() {
            let (path, attempts) = (self.path.display(), trouble.attempts);
            tracing::info!("the hooks in {path} can be written again; {attempts} attempts had failed");
        }
    }

    /// Tries again at once what waits, if something does.
    fn try_soon(&mut self) {
        if let Some(trouble) = &mut self.trouble {
            trouble.retry_at = Instant::now();
            trouble.backoff = BACKOFF.0;
        }
    }

    /// Applies a limit that may have become smaller.
    fn retain_all(&mut self) {
        let Some(connection) = &self.connection else { return };
        let retained = execution::logs(connection).and_then(|logs| {
            for log in logs {
                execution::retain(connection, log, self.options.log_retention)?;
            }
            Ok(())
        });
        if let Err(error) = retained {
            tracing::warn!("hooks: old records can't be removed: {error}; they are kept for now");
        }
    }

    /// Removes what is too old.
    fn tidy(&mut self) {
        self.tidy_at = Instant::now() + TIDY_INTERVAL;
        let (Some(connection), Some(max_age), None) = (&self.connection, self.options.max_age, &self.trouble) else {
            return;
        };
        let max_age_ms = u64::try_from(max_age.as_millis()).unwrap_or(u64::MAX);
        let before = Timestamp::from_millis(now().as_millis().saturating_sub(max_age_ms));
        loop {
            match execution::expire(connection, before) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!("hooks: old records can't be removed: {error}; it is tried again");
                    return;
                }
            }
        }
    }

    /// Gives up what could not be written, closes the file, and says so.
    fn finish(mut self) {
        let mut lost: Vec<Job> = self.waiting.drain(..).collect();
        while let Ok(message) = self.messages.try_recv() {
            if let Message::Job(job) = message {
                lost.push(job);
            }
        }
        let count = lost.len() as u64;
        if count > 0 {
            self.counters.dropped.fetch_add(count, Relaxed);
            tracing::error!("the hooks in {} could not be written; {count} changes are lost", self.path.display());
        }
        for job in lost {
            answer_to(&self.counters, job, Err(StoreError::Closed.into()));
        }
        drop(self.connection);
        drop(self.lock);
        if let Some(done) = self.end.and_then(|end| end.done) {
            let _ = done.send(count);
        }
    }
}

fn answer_to(counters: &Counters, job: Job, answer: Result<Done, HookError>) {
    counters.queued.fetch_sub(1, Relaxed);
    // There is room again before anybody hears of it.
    drop(job.permit);
    // Nobody may want to know.
    let _ = job.reply.send(answer);
}

pub(super) fn now() -> Timestamp {
    SystemTime::now().into()
}
