//! The outbox: messages that wait to be sent, in their order. What is in them is nobody's business here.
//!
//! It holds a bounded number of messages, of bounded size. When there is no room for a new one the oldest goes, and is counted, over
//! restarts, too; the newest is kept however large it is.

use rusqlite::{Connection, OptionalExtension as _};

use super::id::OutboxId;

/// A message of the outbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxMessage {
    /// Its id.
    pub id: OutboxId,
    /// Its bytes, as they were given.
    pub bytes: Vec<u8>,
}

/// How much is in the outbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Filling {
    pub(super) messages: u64,
    pub(super) bytes: u64,
    /// How many had to go, since the file was made.
    pub(super) dropped: u64,
}

impl Filling {
    pub(super) fn read(connection: &Connection) -> rusqlite::Result<Self> {
        let (messages, bytes): (i64, i64) = connection
            .prepare_cached("SELECT count(*), ifnull(sum(length(message)), 0) FROM outbox")?
            .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let dropped: Option<i64> = connection
            .prepare_cached("SELECT value FROM meta WHERE name = 'outbox_dropped'")?
            .query_row([], |row| row.get(0))
            .optional()?;
        Ok(Filling {
            messages: messages.unsigned_abs(),
            bytes: bytes.unsigned_abs(),
            dropped: dropped.unwrap_or(0).unsigned_abs(),
        })
    }

    /// Adds a message, and makes room for it.
    pub(super) fn push(
        &mut self,
        connection: &Connection,
        message: &[u8],
        max_messages: u64,
        max_bytes: u64,
    ) -> rusqlite::Result<OutboxId> {
        let mut dropped = 0;
        while self.messages > 0
            && (self.messages >= max_messages.max(1) || self.bytes + message.len() as u64 > max_bytes)
        {
            self.remove_one(
                connection,
                "DELETE FROM outbox WHERE id = (SELECT min(id) FROM outbox) RETURNING length(message)",
                None,
            )?;
            dropped += 1;
        }
        if dropped > 0 {
            self.dropped += dropped;
            connection
                .prepare_cached("INSERT OR REPLACE INTO meta (name, value) VALUES ('outbox_dropped', ?)")?
                .execute([i64::try_from(self.dropped).unwrap_or(i64::MAX)])?;
        }
        connection.prepare_cached("INSERT INTO outbox (message) VALUES (?)")?.execute([message])?;
        self.messages += 1;
        self.bytes += message.len() as u64;
        Ok(OutboxId::of_sql(connection.last_insert_rowid()))
    }

    /// Removes a message, if it is there.
    pub(super) fn remove(&mut self, connection: &Connection, id: OutboxId) -> rusqlite::Result<bool> {
        self.remove_one(connection, "DELETE FROM outbox WHERE id = ? RETURNING length(message)", Some(id.sql()))
    }

    /// Removes all messages up to this one; answers how many there were.
    pub(super) fn remove_through(&mut self, connection: &Connection, id: OutboxId) -> rusqlite::Result<u64> {
        let mut statement = connection.prepare_cached("DELETE FROM outbox WHERE id <= ? RETURNING length(message)")?;
        let mut removed = 0;
        for bytes in statement.query_map([id.sql()], |row| row.get::<_, i64>(0))? {
            self.messages = self.messages.saturating_sub(1);
            self.bytes = self.bytes.saturating_sub(bytes?.unsigned_abs());
            removed += 1;
        }
        Ok(removed)
    }

    fn remove_one(&mut self, connection: &Connection, delete: &str, id: Option<i64>) -> rusqlite::Result<bool> {
        let mut statement = connection.prepare_cached(delete)?;
        let bytes: Option<i64> = statement.query_row(rusqlite::params_from_iter(id), |row| row.get(0)).optional()?;
        if let Some(bytes) = bytes {
            self.messages = self.messages.saturating_sub(1);
            self.bytes = self.bytes.saturating_sub(bytes.unsigned_abs());
        } else if id.is_none() {
            // The oldest is not there, so there is none.
            *self = Filling { dropped: self.dropped, ..Filling::default() };
        }
        Ok(bytes.is_some())
    }
}

/// The oldest messages behind `after`, at most so many; and no further one once they have so many bytes.
pub(super) fn front(
    connection: &Connection,
    after: Option<OutboxId>,
    limit: usize,
    max_bytes: usize,
) -> rusqlite::Result<Vec<OutboxMessage>> {
    let mut statement = connection.prepare_cached("SELECT id, message FROM outbox WHERE id > ? ORDER BY id LIMIT ?")?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut rows = statement.query([after.map_or(0, OutboxId::sql), limit])?;
    let (mut front, mut bytes) = (Vec::new(), 0);
    while bytes < max_bytes
        && let Some(row) = rows.next()?
    {
        let message = OutboxMessage { id: OutboxId::of_sql(row.get(0)?), bytes: row.get(1)? };
        bytes += message.bytes.len();
        front.push(message);
    }
    Ok(front)
}
