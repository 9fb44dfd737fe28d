//! Retries that are due some time: everything that is needed to run a command again, but for the hook itself, which may have changed
//! meanwhile, and is the caller's to find.

use hookbus_broker::Timestamp;
use rusqlite::{Connection, Row, params};

use super::execution::{EventColumns, environment_bytes, event_of, hook_of, of_json, to_json};
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
             host, arguments, environment) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
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
            retry.host,
            retry.arguments,
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

/// All of them, the one that is or has been due first.
pub(super) fn all(connection: &Connection) -> rusqlite::Result<Vec<Retry>> {
    connection
        .prepare_cached(
            "SELECT id, hook, due_ms, attempt, retry_of, event_log, event_offset, event_time_ms, event_key, host, arguments, \
             environment FROM retries ORDER BY due_ms, id",
        )?
        .query_map([], of_row)?
        .collect()
}

fn of_row(row: &Row<'_>) -> rusqlite::Result<Retry> {
    let environment: String = row.get(11)?;
    Ok(Retry {
        id: RetryId::of_sql(row.get(0)?),
        hook: hook_of(row, 1)?,
        due: time(row.get(2)?),
        attempt: row.get(3)?,
        retry_of: row.get::<_, Option<i64>>(4)?.map(ExecutionId::of_sql),
        event: event_of(row, 5)?,
        host: row.get(9)?,
        arguments: row.get(10)?,
        environment: of_json(&environment, 11)?,
    })
}
