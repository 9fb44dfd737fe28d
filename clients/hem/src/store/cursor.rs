//! How far a source of events is dealt with: the event to go on with.

use hookbus_broker::{EventId, LogId, Offset};
use rusqlite::{Connection, OptionalExtension as _};

pub(super) fn set(connection: &Connection, next: EventId) -> rusqlite::Result<()> {
    for (name, value) in [("cursor_log", next.log.get()), ("cursor_offset", next.offset.get())] {
        connection
            .prepare_cached(
                "INSERT INTO meta (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            )?
            .execute((name, value.cast_signed()))?;
    }
    Ok(())
}

pub(super) fn get(connection: &Connection) -> rusqlite::Result<Option<EventId>> {
    let number = |name: &str| {
        let mut query = connection.prepare_cached("SELECT value FROM meta WHERE name = ?")?;
        query.query_row([name], |row| row.get::<_, i64>(0)).optional()
    };
    let (log, offset) = (number("cursor_log")?, number("cursor_offset")?);
    Ok(log.zip(offset).map(|(log, offset)| EventId {
        log: LogId::new(log.cast_unsigned()),
        offset: Offset::new(offset.cast_unsigned()),
    }))
}
