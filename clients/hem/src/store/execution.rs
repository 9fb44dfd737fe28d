//! Executions of hooks: what is kept of them, for how long, and how they are looked up.
//!
//! # Retention
//!
//! Of each hook the newest [`log_retention`](super::StoreOptions::log_retention) executions are kept. What goes beyond goes in the
//! same transaction in which the new one comes. What is older than [`max_age`](super::StoreOptions::max_age) goes when the store is
//! opened, and then about once a minute. Ids are counted apart from what is kept, so none is given twice.

use std::collections::BTreeMap;
use std::time::Duration;

use hookbus_broker::{EventId, LogId, Offset, Timestamp};
use rusqlite::types::{Type, Value};
use rusqlite::{Connection, OptionalExtension as _, Row, params, params_from_iter};

use super::hook::{millis, time};
use super::id::{ExecutionId, HookKey};
use crate::output::Output;
use crate::record::{Ending, EventRef, Record};

/// An execution that is to be recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Execution {
    /// The hook.
    pub hook: HookKey,
    /// The hook's name then.
    pub hook_name: String,
    /// When the command was started, in milliseconds.
    pub started: Timestamp,
    /// How long it took; kept in microseconds.
    pub duration: Duration,
    /// The command line, with the arguments unless they went to standard input.
    pub command: String,
    /// The arguments, expanded.
    pub arguments: String,
    /// How it ended.
    pub ending: Ending,
    /// Whether processes that it left behind held its output open and were ended.
    pub left_behind: bool,
    /// Standard output, and how much of it was cut.
    pub stdout: Output,
    /// Standard error, and how much of it was cut.
    pub stderr: Output,
    /// The host that it ran on, if it was another one.
    pub host: Option<String>,
    /// The event that made it run; an operator may have done so without one.
    pub event: Option<EventRef>,
    /// What its environment told of the event: names and values.
    pub environment: Vec<(String, String)>,
    /// Which execution of the same hook it repeats.
    pub retry_of: Option<ExecutionId>,
}

impl Execution {
    /// What a [`Record`] knows of it.
    pub fn of_record(hook: HookKey, record: &Record) -> Self {
        Execution {
            hook,
            hook_name: record.hook.name.clone(),
            started: record.started.into(),
            duration: record.duration,
            command: record.command.clone(),
            arguments: record.arguments.clone(),
            ending: record.ending,
            left_behind: record.left_behind,
            stdout: record.stdout.clone(),
            stderr: record.stderr.clone(),
            host: record.host.clone(),
            event: Some(record.event.clone()),
            environment: super::owned(&record.environment),
            retry_of: record.retry_of.map(ExecutionId::new),
        }
    }

    /// About what it needs in memory and in the file.
    pub(super) fn size_bytes(&self) -> usize {
        let output = |output: &Output| output.head.len() + output.tail.len();
        512 + self.command.len()
            + self.arguments.len()
            + output(&self.stdout)
            + output(&self.stderr)
            + environment_bytes(&self.environment)
            + self.event.as_ref().map_or(0, |event| event.key.len())
    }
}

pub(super) fn environment_bytes(environment: &[(String, String)]) -> usize {
    environment.iter().map(|(name, value)| name.len() + value.len() + 16).sum()
}

/// An execution that is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredExecution {
    /// Its id among those of its hook.
    pub id: ExecutionId,
    /// What is known of it.
    pub execution: Execution,
}

/// One line of a log of executions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// The hook.
    pub hook: HookKey,
    /// The hook's name then.
    pub hook_name: String,
    /// The execution's id among those of the hook.
    pub id: ExecutionId,
    /// When the command was started.
    pub started: Timestamp,
    /// How long it took.
    pub duration: Duration,
    /// How it ended.
    pub ending: Ending,
    /// The host that it ran on, if it was another one.
    pub host: Option<String>,
    /// Which execution of the same hook it repeats.
    pub retry_of: Option<ExecutionId>,
}

/// Which executions of a log are meant: those for which all of this holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogFilter {
    /// Of one of these hooks; empty is of any.
    pub hooks: Vec<HookKey>,
    /// `true`: those that ended with code 0. `false`: the others.
    pub success: Option<bool>,
    /// Started then or later.
    pub since: Option<Timestamp>,
    /// Started before that.
    pub until: Option<Timestamp>,
    /// So many at most, the newest.
    pub limit: Option<usize>,
}

/// The logs that a transaction adds to. Where each goes on is read once, and written down once, by [`finish`](Logs::finish).
#[derive(Debug, Default)]
pub(super) struct Logs(BTreeMap<HookKey, Log>);

#[derive(Debug)]
struct Log {
    number: i64,
    /// The id of the next execution.
    next: i64,
}

impl Logs {
    fn of(&mut self, connection: &Connection, hook: &HookKey) -> rusqlite::Result<&mut Log> {
        if !self.0.contains_key(hook) {
            let key = hook.to_string();
            let found = connection
                .prepare_cached("SELECT number, next FROM logs WHERE hook = ?")?
                .query_row([&key], |row| Ok(Log { number: row.get(0)?, next: row.get(1)? }))
                .optional()?;
            let log = match found {
                Some(log) => log,
                None => {
                    connection.prepare_cached("INSERT INTO logs (hook, next) VALUES (?, 0)")?.execute([&key])?;
                    Log { number: connection.last_insert_rowid(), next: 0 }
                }
            };
            self.0.insert(hook.clone(), log);
        }
        Ok(self.0.get_mut(hook).expect("it was put there"))
    }

    /// Writes down where they go on, and removes what each has beyond so many.
    pub(super) fn finish(&self, connection: &Connection, keep: usize) -> rusqlite::Result<()> {
        for log in self.0.values() {
            connection.prepare_cached("UPDATE logs SET next = ? WHERE number = ?")?.execute([log.next, log.number])?;
            retain(connection, log.number, keep)?;
        }
        Ok(())
    }
}

/// Records one; answers its id. It is not done before the logs are [finished](Logs::finish). One of a hook that was deleted while it ran
/// isn't recorded: nobody could ask for it.
pub(super) fn insert(
    connection: &Connection,
    execution: &Execution,
    logs: &mut Logs,
) -> rusqlite::Result<Option<ExecutionId>> {
    if let HookKey::Store(id) = execution.hook
        && !connection.prepare_cached("SELECT 1 FROM hooks WHERE id = ?")?.exists([id.sql()])?
    {
        return Ok(None);
    }
    let Log { number: log, next } = logs.of(connection, &execution.hook)?;
    let (log, id) = (*log, *next);
    *next += 1;
    let (ending, ending_number) = ending_to_sql(execution.ending);
    let event = EventColumns::of(execution.event.as_ref());
    connection
        .prepare_cached(
            "INSERT INTO executions (log, id, hook_name, started_ms, duration_us, ending, ending_number, left_behind, \
             retry_of, host, event_log, event_offset, event_time_ms, event_key, stdout_cut_bytes, stderr_cut_bytes, \
             command, arguments, environment, stdout_head, stdout_tail, stderr_head, stderr_tail) \
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )?
        .execute(params![
            log,
            id,
            execution.hook_name,
            millis(execution.started),
            i64::try_from(execution.duration.as_micros()).unwrap_or(i64::MAX),
            ending,
            ending_number,
            execution.left_behind,
            execution.retry_of.map(ExecutionId::sql),
            execution.host,
            event.log,
            event.offset,
            event.time_ms,
            event.key,
            execution.stdout.cut_bytes.cast_signed(),
            execution.stderr.cut_bytes.cast_signed(),
            execution.command,
            execution.arguments,
            to_json(&execution.environment),
            execution.stdout.head,
            execution.stdout.tail,
            execution.stderr.head,
            execution.stderr.tail,
        ])?;
    Ok(Some(ExecutionId::of_sql(id)))
}

/// Removes what one hook has beyond so many.
pub(super) fn retain(connection: &Connection, log: i64, keep: usize) -> rusqlite::Result<()> {
    let keep = i64::try_from(keep.max(1)).unwrap_or(i64::MAX);
    connection
        .prepare_cached(
            "DELETE FROM executions WHERE log = ?1 AND id < (SELECT next FROM logs WHERE number = ?1) - ?2",
        )?
        .execute([log, keep])?;
    Ok(())
}

/// The number of every hook that has run.
pub(super) fn logs(connection: &Connection) -> rusqlite::Result<Vec<i64>> {
    connection.prepare_cached("SELECT number FROM logs")?.query_map([], |row| row.get(0))?.collect()
}

/// Removes some of those that were started before this; answers how many.
pub(super) fn expire(connection: &Connection, before: Timestamp) -> rusqlite::Result<usize> {
    connection
        .prepare_cached(
            "DELETE FROM executions WHERE seq IN \
             (SELECT seq FROM executions WHERE started_ms < ? ORDER BY started_ms LIMIT 1000)",
        )?
        .execute([millis(before)])
}

/// One execution.
pub(super) fn find(
    connection: &Connection,
    hook: &HookKey,
    id: ExecutionId,
) -> rusqlite::Result<Option<StoredExecution>> {
    connection
        .prepare_cached(&format!("{SELECT} WHERE hook = ? AND id = ?"))?
        .query_row(params![hook.to_string(), id.sql()], of_row)
        .optional()
}

/// All of one hook, the newest first.
pub(super) fn of_hook(connection: &Connection, hook: &HookKey) -> rusqlite::Result<Vec<StoredExecution>> {
    connection
        .prepare_cached(&format!("{SELECT} WHERE hook = ? ORDER BY id DESC"))?
        .query_map([hook.to_string()], of_row)?
        .collect()
}

/// Those that are meant, the newest first.
pub(super) fn log(connection: &Connection, filter: &LogFilter) -> rusqlite::Result<Vec<LogEntry>> {
    let mut conditions = vec!["TRUE".to_owned()];
    let mut values: Vec<Value> = Vec::new();
    if !filter.hooks.is_empty() {
        // One value however many there are: the number of a statement's parameters is limited.
        conditions.push("hook IN (SELECT value FROM json_each(?))".into());
        let keys: Vec<String> = filter.hooks.iter().map(HookKey::to_string).collect();
        values.push(Value::Text(to_json(&keys)));
    }
    match filter.success {
        Some(true) => conditions.push("(ending = 0 AND ending_number = 0)".into()),
        Some(false) => conditions.push("NOT (ending = 0 AND ending_number = 0)".into()),
        None => {}
    }
    if let Some(since) = filter.since {
        conditions.push("started_ms >= ?".into());
        values.push(millis(since).into());
    }
    if let Some(until) = filter.until {
        conditions.push("started_ms < ?".into());
        values.push(millis(until).into());
    }
    values.push(filter.limit.map_or(-1, |limit| i64::try_from(limit).unwrap_or(i64::MAX)).into());
    let query = format!(
        "SELECT hook, hook_name, id, started_ms, duration_us, ending, ending_number, host, retry_of \
         FROM executions JOIN logs ON log = number WHERE {} ORDER BY started_ms DESC, seq DESC LIMIT ?",
        conditions.join(" AND ")
    );
    connection
        .prepare_cached(&query)?
        .query_map(params_from_iter(values), |row| {
            Ok(LogEntry {
                hook: hook_of(row, 0)?,
                hook_name: row.get(1)?,
                id: ExecutionId::of_sql(row.get(2)?),
                started: time(row.get(3)?),
                duration: Duration::from_micros(row.get::<_, i64>(4)?.unsigned_abs()),
                ending: ending_of(row, 5)?,
                host: row.get(7)?,
                retry_of: row.get::<_, Option<i64>>(8)?.map(ExecutionId::of_sql),
            })
        })?
        .collect()
}

const SELECT: &str = "SELECT hook, hook_name, id, started_ms, duration_us, ending, ending_number, host, retry_of, left_behind, \
    event_log, event_offset, event_time_ms, event_key, command, arguments, stdout_head, stdout_cut_bytes, stdout_tail, \
    stderr_head, stderr_cut_bytes, stderr_tail, environment FROM executions JOIN logs ON log = number";

fn of_row(row: &Row<'_>) -> rusqlite::Result<StoredExecution> {
    let output = |first: usize| -> rusqlite::Result<Output> {
        Ok(Output {
            head: row.get(first)?,
            cut_bytes: row.get::<_, i64>(first + 1)?.cast_unsigned(),
            tail: row.get(first + 2)?,
        })
    };
    let environment: String = row.get(22)?;
    let execution = Execution {
        environment: of_json(&environment, 22)?,
        hook: hook_of(row, 0)?,
        hook_name: row.get(1)?,
        started: time(row.get(3)?),
        duration: Duration::from_micros(row.get::<_, i64>(4)?.unsigned_abs()),
        ending: ending_of(row, 5)?,
        host: row.get(7)?,
        retry_of: row.get::<_, Option<i64>>(8)?.map(ExecutionId::of_sql),
        left_behind: row.get(9)?,
        event: event_of(row, 10)?,
        command: row.get(14)?,
        arguments: row.get(15)?,
        stdout: output(16)?,
        stderr: output(19)?,
    };
    Ok(StoredExecution { id: ExecutionId::of_sql(row.get(2)?), execution })
}

fn ending_to_sql(ending: Ending) -> (i64, i64) {
    match ending {
        Ending::Exited(code) => (0, code.into()),
        Ending::Signalled(signal) => (1, signal.into()),
        Ending::TimedOut => (2, 0),
        Ending::Interrupted => (3, 0),
        Ending::NotStarted => (4, 0),
    }
}

fn ending_of(row: &Row<'_>, first: usize) -> rusqlite::Result<Ending> {
    let number: i32 = row.get(first + 1)?;
    match row.get::<_, i64>(first)? {
        0 => Ok(Ending::Exited(number)),
        1 => Ok(Ending::Signalled(number)),
        2 => Ok(Ending::TimedOut),
        3 => Ok(Ending::Interrupted),
        4 => Ok(Ending::NotStarted),
        other => Err(rusqlite::Error::IntegralValueOutOfRange(first, other)),
    }
}

pub(super) fn hook_of(row: &Row<'_>, column: usize) -> rusqlite::Result<HookKey> {
    let text: String = row.get(column)?;
    text.parse().map_err(|error| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error)))
}

/// The four columns of an event.
#[derive(Debug, Default)]
pub(super) struct EventColumns<'a> {
    pub(super) log: Option<i64>,
    pub(super) offset: Option<i64>,
    pub(super) time_ms: Option<i64>,
    pub(super) key: Option<&'a str>,
}

impl<'a> EventColumns<'a> {
    pub(super) fn of(event: Option<&'a EventRef>) -> Self {
        event.map_or_else(EventColumns::default, |event| EventColumns {
            log: Some(event.id.log.get().cast_signed()),
            offset: Some(event.id.offset.get().cast_signed()),
            time_ms: Some(millis(event.time)),
            key: Some(&event.key),
        })
    }
}

pub(super) fn event_of(row: &Row<'_>, first: usize) -> rusqlite::Result<Option<EventRef>> {
    let Some(log) = row.get::<_, Option<i64>>(first)? else { return Ok(None) };
    let offset: i64 = row.get(first + 1)?;
    Ok(Some(EventRef {
        id: EventId { log: LogId::new(log.cast_unsigned()), offset: Offset::new(offset.cast_unsigned()) },
        time: time(row.get(first + 2)?),
        key: row.get(first + 3)?,
    }))
}

pub(super) fn to_json<T: serde::Serialize + ?Sized>(value: &T) -> String {
    serde_json::to_string(value).expect("texts are always JSON")
}

pub(super) fn of_json<T: serde::de::DeserializeOwned>(text: &str, column: usize) -> rusqlite::Result<T> {
    serde_json::from_str(text)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error)))
}
