//! Hooks of the store's own: how they are kept. What a template means is for [`Hook::from_template`](crate::Hook::from_template).

use hookbus_broker::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::error::HookError;
use super::id::{HookId, HookKey, HookRef};
use crate::hook::MAX_NAME_CHARS;
use crate::template::MAX_TEMPLATE_BYTES;

/// A hook of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredHook {
    /// Its id.
    pub id: HookId,
    /// Its name; no other hook of the store has it. After a rename it is this one that counts, not the NAME in the template.
    pub name: String,
    /// The template's text, as it was given.
    pub template: String,
    /// When it was created.
    pub created: Timestamp,
    /// When it was created, updated, renamed, locked or unlocked last.
    pub changed: Timestamp,
    /// Whether it is locked: then it can't be updated, renamed or deleted.
    pub locked: bool,
}

/// What is asked of the hooks. Each is a transaction of its own within the batch.
#[derive(Debug)]
pub(super) enum HookCommand {
    Create { name: String, template: String },
    Update { hook: HookRef, template: String },
    Rename { hook: HookRef, name: String },
    Delete { hook: HookRef },
    SetLocked { hook: HookRef, locked: bool },
}

/// Why a change was not made: by our rules, or by the database.
#[derive(Debug)]
pub(super) enum Refusal {
    Rule(HookError),
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for Refusal {
    fn from(error: rusqlite::Error) -> Self {
        Refusal::Sqlite(error)
    }
}

impl From<HookError> for Refusal {
    fn from(error: HookError) -> Self {
        Refusal::Rule(error)
    }
}

impl HookCommand {
    /// Does it; answers the hook as it is then, or was when it was deleted.
    pub(super) fn apply(&self, connection: &Connection, now: Timestamp) -> Result<StoredHook, Refusal> {
        match self {
            HookCommand::Create { name, template } => create(connection, name, template, now),
            HookCommand::Update { hook, template } => {
                let hook = unlocked(connection, hook)?;
                let template = checked_template(template)?.to_owned();
                save(connection, StoredHook { template, ..hook }, now)
            }
            HookCommand::Rename { hook, name } => {
                let hook = unlocked(connection, hook)?;
                let name = free_name(connection, name, Some(hook.id))?;
                save(connection, StoredHook { name, ..hook }, now)
            }
            HookCommand::SetLocked { hook, locked } => match found(connection, hook)? {
                hook if hook.locked == *locked => Ok(hook),
                hook => save(connection, StoredHook { locked: *locked, ..hook }, now),
            },
            HookCommand::Delete { hook } => {
                let hook = unlocked(connection, hook)?;
                connection.prepare_cached("DELETE FROM hooks WHERE id = ?")?.execute([hook.id.sql()])?;
                forget(connection, &HookKey::Store(hook.id))?;
                Ok(hook)
            }
        }
    }
}

/// Removes all executions of a hook and what is due of it; ids go on where they were. Answers how many executions there were.
pub(super) fn forget(connection: &Connection, hook: &HookKey) -> rusqlite::Result<u64> {
    let key = hook.to_string();
    let removed = connection
        .prepare_cached("DELETE FROM executions WHERE log = (SELECT number FROM logs WHERE hook = ?)")?
        .execute([&key])?;
    connection.prepare_cached("DELETE FROM retries WHERE hook = ?")?.execute([&key])?;
    Ok(removed as u64)
}

/// All hooks, in the order of their ids.
pub(super) fn all(connection: &Connection) -> rusqlite::Result<Vec<StoredHook>> {
    connection.prepare_cached(&format!("{SELECT} ORDER BY id"))?.query_map([], of_row)?.collect()
}

/// One hook.
pub(super) fn find(connection: &Connection, hook: &HookRef) -> rusqlite::Result<Option<StoredHook>> {
    match hook {
        HookRef::Id(id) => connection.prepare_cached(&format!("{SELECT} WHERE id = ?"))?.query_row([id.sql()], of_row),
        HookRef::Name(name) => {
            connection.prepare_cached(&format!("{SELECT} WHERE name = ?"))?.query_row([name], of_row)
        }
    }
    .optional()
}

const SELECT: &str = "SELECT id, name, template, created_ms, changed_ms, locked FROM hooks";

fn of_row(row: &Row<'_>) -> rusqlite::Result<StoredHook> {
    Ok(StoredHook {
        id: HookId::of_sql(row.get(0)?),
        name: row.get(1)?,
        template: row.get(2)?,
        created: time(row.get(3)?),
        changed: time(row.get(4)?),
        locked: row.get(5)?,
    })
}

/// A time as the database has it, in milliseconds.
pub(super) fn millis(time: Timestamp) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

/// The other way.
pub(super) fn time(millis: i64) -> Timestamp {
    Timestamp::from_millis(u64::try_from(millis).unwrap_or(0))
}

fn create(connection: &Connection, name: &str, template: &str, now: Timestamp) -> Result<StoredHook, Refusal> {
    let name = free_name(connection, name, None)?;
    let template = checked_template(template)?.to_owned();
    // The next number is kept, so that the id of a hook that was deleted isn't given again.
    let id: i64 = connection
        .prepare_cached(
            "INSERT INTO meta (name, value) VALUES ('next_hook', 1) \
             ON CONFLICT (name) DO UPDATE SET value = value + 1 RETURNING value - 1",
        )?
        .query_row([], |row| row.get(0))?;
    let hook = StoredHook { id: HookId::of_sql(id), name, template, created: now, changed: now, locked: false };
    connection
        .prepare_cached(
            "INSERT INTO hooks (id, name, template, created_ms, changed_ms, locked) VALUES (?, ?, ?, ?, ?, 0)",
        )?
        .execute(params![id, hook.name, hook.template, millis(now), millis(now)])?;
    Ok(hook)
}

fn save(connection: &Connection, hook: StoredHook, now: Timestamp) -> Result<StoredHook, Refusal> {
    let hook = StoredHook { changed: now, ..hook };
    connection
        .prepare_cached("UPDATE hooks SET name = ?, template = ?, changed_ms = ?, locked = ? WHERE id = ?")?
        .execute(params![hook.name, hook.template, millis(now), hook.locked, hook.id.sql()])?;
    Ok(hook)
}

fn found(connection: &Connection, hook: &HookRef) -> Result<StoredHook, Refusal> {
    find(connection, hook)?.ok_or_else(|| HookError::NoSuchHook(hook.clone()).into())
}

fn unlocked(connection: &Connection, hook: &HookRef) -> Result<StoredHook, Refusal> {
    match found(connection, hook)? {
        hook if hook.locked => Err(HookError::Locked { id: hook.id, name: hook.name }.into()),
        hook => Ok(hook),
    }
}

/// The name as it is kept, without blanks around it as in a template, unless another hook has it.
fn free_name(connection: &Connection, name: &str, own: Option<HookId>) -> Result<String, Refusal> {
    let name = name.trim();
    if name.is_empty() {
        return Err(HookError::BadName("can't be empty").into());
    }
    if name.contains('\0') {
        return Err(HookError::BadName("can't have a NUL character in it").into());
    }
    if name.chars().count() > MAX_NAME_CHARS {
        return Err(HookError::BadName(TOO_LONG).into());
    }
    match find(connection, &HookRef::Name(name.to_owned()))? {
        Some(other) if Some(other.id) != own => {
            Err(HookError::NameTaken { name: name.to_owned(), id: other.id }.into())
        }
        _ => Ok(name.to_owned()),
    }
}

const TOO_LONG: &str = "can have at most 128 characters";
const _: () = assert!(MAX_NAME_CHARS == 128, "the message above says so");

fn checked_template(template: &str) -> Result<&str, HookError> {
    if template.len() > MAX_TEMPLATE_BYTES {
        return Err(HookError::TemplateTooLarge { bytes: template.len(), max: MAX_TEMPLATE_BYTES });
    }
    Ok(template)
}
