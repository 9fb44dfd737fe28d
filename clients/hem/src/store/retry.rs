//! Retries that are due some time: everything that is needed to run a command again, but for the hook itself, which may have changed
//! meanwhile, and is the caller's to find.

use hookbus_broker::Timestamp;
use rusqlite::{Connection, Row, params};

use super::execution::{
    EventColumns, environment_bytes, event_of, hook_of, of_json, to_json, words_bytes, words_of, words_to_sql,
};
use super::hook::{millis, time};
use super::id::{ExecutionId, HookKey, RetryId};
use crate::executor::{Again, Resume};
use crate::record::{EventRef, RunId};

/// An execution that is due some time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Its id: that of the [run](crate::Record::run) that it is an attempt of. One with the id of another takes its place.
    pub id: RetryId,
    /// The hook.
    pub hook: HookKey,
    /// The event that made it run at first.
    pub event: Option<EventRef>,
    /// Which attempt it will be, from 1 on: 2 is the first repetition, 1 one that was cut off.
    pub attempt: u32,
    /// When it is due, in milliseconds.
    pub due: Timestamp,
    /// The execution that it repeats.
    pub retry_of: Option<ExecutionId>,
    /// The arguments, expanded.
    pub arguments: String,
    /// The same word by word, for a command that runs without a shell.
    pub words: Option<Vec<String>>,
    /// Whether they go to standard input.
    pub stdin: bool,
    /// The host to run on, if it is another one.
    pub host: Option<String>,
    /// What is added to the command's environment: names and values.
    pub environment: Vec<(String, String)>,
}

impl Retry {
    /// What the executor needs to go on with it, with the name that its hook has now; nothing where no event is known.
    pub fn resume(self, hook: String) -> Option<Resume> {
        let Retry { id, event, attempt, due, retry_of, arguments, host, environment, .. } = self;
        let (event, retry_of) = (event?, retry_of.map(ExecutionId::get));
        let again = Again { hook, arguments, host, event, environment, retry_of };
        Some(Resume { again, attempt, run: RunId(id.get()), due: due.into() })
    }

    pub(super) fn size_bytes(&self) -> usize {
        512 + self.arguments.len()
            + words_bytes(self.words.as_deref())
            + environment_bytes(&self.environment)
            + self.event.as_ref().map_or(0, |event| event.key.len())
    }
}

/// Adds one; `failed` is the execution that it repeats, where that is recorded together with it.
pub(super) fn insert(connection: &Connection, retry: &Retry, failed: Option<ExecutionId>) -> rusqlite::Result<()> {
    let event = EventColumns::of(retry.event.as_ref());
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO retries (id, hook, due_ms, attempt, retry_of, event_log, event_offset, event_time_ms, event_key, \
             stdin, host, arguments, words, environment) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )?
        .execute(params![
            retry.id.sql(),
            retry.hook.to_string(),
            millis(retry.due),
            retry.attempt,
            failed.or(retry.retry_of).map(ExecutionId::sql),
            event.log,
            event.offset,
            event.time_ms,
            event.key,
            retry.stdin,
            retry.host,
            retry.arguments,
            words_to_sql(retry.words.as_deref()),
            to_json(&retry.environment),
        ])?;
    Ok(())
}

pub(super) fn remove(connection: &Connection, id: RetryId) -> rusqlite::Result<bool> {
    Ok(connection.prepare_cached("DELETE FROM retries WHERE id = ?")?.execute([id.sql()])? > 0)
}

pub(super) fn count(connection: &Connection) -> rusqlite::Result<u64> {
    let count: i64 = connection.prepare_cached("SELECT count(*) FROM retries")?.query_row([], |row| row.get(0))?;
    Ok(count.unsigned_abs())
}

/// Those that are due, the one that has been for longest first.
pub(super) fn due(connection: &Connection, now: Timestamp, limit: usize) -> rusqlite::Result<Vec<Retry>> {
    connection
        .prepare_cached(
            "SELECT id, hook, due_ms, attempt, retry_of, event_log, event_offset, event_time_ms, event_key, stdin, host, \
             arguments, words, environment FROM retries WHERE due_ms <= ? ORDER BY due_ms, id LIMIT ?",
        )?
        .query_map([millis(now), i64::try_from(limit).unwrap_or(i64::MAX)], of_row)?
        .collect()
}

/// When the next one is due.
pub(super) fn next_due(connection: &Connection) -> rusqlite::Result<Option<Timestamp>> {
    let due: Option<i64> =
        connection.prepare_cached("SELECT min(due_ms) FROM retries")?.query_row([], |row| row.get(0))?;
    Ok(due.map(time))
}

fn of_row(row: &Row<'_>) -> rusqlite::Result<Retry> {
    let environment: String = row.get(13)?;
    Ok(Retry {
        id: RetryId::of_sql(row.get(0)?),
        hook: hook_of(row, 1)?,
        due: time(row.get(2)?),
        attempt: row.get(3)?,
        retry_of: row.get::<_, Option<i64>>(4)?.map(ExecutionId::of_sql),
        event: event_of(row, 5)?,
        stdin: row.get(9)?,
        host: row.get(10)?,
        arguments: row.get(11)?,
        words: words_of(row, 12)?,
        environment: of_json(&environment, 13)?,
    })
}
