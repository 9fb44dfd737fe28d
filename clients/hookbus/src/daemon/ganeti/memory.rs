//! [`Memory`]: which reports were here, over restarts.
//!
//! One table in `ganeti.db` of the state directory (SQLite): a row for each report that is remembered. It is written when the reports are in the journal,
//! and before they are answered. A crash of the process loses nothing of it; a loss of power may lose the last seconds, and what is missing then
//! is read out of the journal. A file that is damaged is set aside, and a new one begun: it holds no event.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use hookbus_bridges::ganeti::{Remembered, ReportId};
use hookbus_broker::{LogId, Offset, Timestamp};
use rusqlite::{Connection, Row, params};

/// The file in the state directory.
const FILE_NAME: &str = "ganeti.db";
/// The layout that this code writes, of each of its databases.
const VERSION: i32 = 1;
/// The offset of an event in another log than the present one: none that there is.
const OTHER_LOG: u64 = 1 << 63;

const LAYOUT: &str = "
    CREATE TABLE IF NOT EXISTS reports (
        seq INTEGER PRIMARY KEY,
        id BLOB NOT NULL UNIQUE,
        digest BLOB NOT NULL,
        node TEXT NOT NULL,
        time_ms INTEGER NOT NULL,
        came_ms INTEGER NOT NULL,
        log INTEGER NOT NULL,
        event INTEGER NOT NULL
    ) STRICT;
    PRAGMA user_version = 1;
";

/// The file.
#[derive(Debug)]
pub(super) struct Memory {
    path: PathBuf,
    connection: Connection,
    log: LogId,
    /// It could not be written the last time.
    failing: bool,
}

impl Memory {
    /// Opens the file of this directory, or makes it; answers what it has, in the order in which it came. `log` is what offsets count in.
    ///
    /// # Errors
    /// When it can't be had.
    pub(super) fn open(directory: &Path, log: LogId) -> Result<(Self, Vec<Remembered>), String> {
        let (path, connection) = database(directory, FILE_NAME, LAYOUT)?;
        let memory = Memory { path, connection, log, failing: false };
        let all = memory.all().map_err(|e| unusable(&memory.path, &e))?;
        Ok((memory, all))
    }

    fn all(&self) -> rusqlite::Result<Vec<Remembered>> {
        self.connection
            .prepare("SELECT id, digest, node, time_ms, came_ms, log, event FROM reports ORDER BY seq")?
            .query_map([], |row| self.of_row(row))?
            .collect()
    }

    fn of_row(&self, row: &Row<'_>) -> rusqlite::Result<Remembered> {
        let time = |column| row.get::<_, i64>(column).map(|millis| Timestamp::from_millis(millis.unsigned_abs()));
        let (log, event) = (row.get::<_, i64>(5)?.cast_unsigned(), row.get::<_, i64>(6)?.cast_unsigned());
        let of_this_log = log == self.log.get();
        Ok(Remembered {
            id: ReportId::new(row.get(0)?),
            digest: row.get(1)?,
            node: row.get::<_, String>(2)?.into(),
            time: time(3)?,
            came: time(4)?,
            offset: Offset::new(if of_this_log { event } else { event | OTHER_LOG }),
        })
    }

    /// Writes down what came, and strikes out what is forgotten; says whether it could. Trouble is logged once.
    pub(super) fn write(&mut self, came: &[Remembered], forgotten: &[ReportId]) -> bool {
        if came.is_empty() && forgotten.is_empty() {
            return true;
        }
        let written = self.try_write(came, forgotten);
        if let (Err(e), false) = (&written, self.failing) {
            tracing::error!("ganeti: {}; it is tried again with the next report", unusable(&self.path, e));
        }
        self.failing = written.is_err();
        written.is_ok()
    }

    fn try_write(&mut self, came: &[Remembered], forgotten: &[ReportId]) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction()?;
        for report in came {
            let Remembered { id, digest, node, time, came, offset } = report;
            let millis = |time: &Timestamp| time.as_millis().cast_signed();
            transaction
                .prepare_cached(
                    "INSERT OR IGNORE INTO reports (id, digest, node, time_ms, came_ms, log, event) VALUES (?, ?, ?, ?, ?, ?, ?)",
                )?
                .execute(params![
                    id.bits(),
                    digest,
                    node,
                    millis(time),
                    millis(came),
                    self.log.get().cast_signed(),
                    offset.get().cast_signed()
                ])?;
        }
        for id in forgotten {
            transaction.prepare_cached("DELETE FROM reports WHERE id = ?")?.execute([id.bits()])?;
        }
        transaction.commit()
    }
}

/// Opens a database of this directory, or makes it, with this layout. One that is damaged is set aside.
///
/// # Errors
/// When it can't be had.
pub(super) fn database(directory: &Path, name: &str, layout: &str) -> Result<(PathBuf, Connection), String> {
    let path = directory.join(name);
    let connection = match opened(&path, layout) {
        Ok(connection) => connection,
        Err(e) if is_damage(&e) => {
            let aside = directory.join(format!("{name}.damaged"));
            std::fs::rename(&path, &aside)
                .map_err(|io| format!("{} is damaged ({e}), and can't be moved away: {io}", path.display()))?;
            for more in ["-wal", "-shm"] {
                let _ = std::fs::remove_file(directory.join(format!("{name}{more}")));
            }
            tracing::error!("ganeti: {} is damaged ({e}); it is {} now", path.display(), aside.display());
            opened(&path, layout).map_err(|e| unusable(&path, &e))?
        }
        Err(e) => return Err(unusable(&path, &e)),
    };
    Ok((path, connection))
}

fn opened(path: &Path, layout: &str) -> rusqlite::Result<Connection> {
    // It tells what goes on in a cluster. What can't be made, SQLite says.
    let _ = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
    let connection = Connection::open(path)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    let _: String = connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "journal_size_limit", 4 << 20)?;
    let version: i32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if version == 0 {
        connection.execute_batch(layout)?;
    } else if version != VERSION {
        let what = format!("it has layout {version} of a later version; this one knows layout {VERSION}");
        return Err(rusqlite::Error::InvalidParameterName(what));
    }
    Ok(connection)
}

fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};

    matches!(error.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase))
}

pub(super) fn unusable(path: &Path, error: &rusqlite::Error) -> String {
    format!("{} can't be used: {error}; look at its disk and its owner, or move it away", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(n: u8, offset: u64) -> Remembered {
        let (time, came) = (Timestamp::from_millis(5), Timestamp::from_millis(9));
        Remembered {
            id: ReportId::new([n; 16]),
            digest: [n; 32],
            node: "n1".into(),
            time,
            came,
            offset: Offset::new(offset),
        }
    }

    #[test]
    fn reports_come_back_and_what_is_forgotten_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let (mut memory, none) = Memory::open(dir.path(), LogId::new(7)).unwrap();
        assert_eq!(none, []);
        assert!(memory.write(&[report(1, 1), report(2, 2), report(2, 3)], &[]));
        assert!(memory.write(&[report(3, u64::MAX >> 2)], &[ReportId::new([1; 16])]));
        drop(memory);
        let (_, all) = Memory::open(dir.path(), LogId::new(7)).unwrap();
        assert_eq!(all, [report(2, 2), report(3, u64::MAX >> 2)]);
        // Offsets of another log are none of this one.
        let (_, all) = Memory::open(dir.path(), LogId::new(u64::MAX)).unwrap();
        assert_eq!(all[0], report(2, 2 | OTHER_LOG));
    }

    #[test]
    fn a_damaged_file_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE_NAME), "no database at all, but long enough to be looked at").unwrap();
        let (mut memory, none) = Memory::open(dir.path(), LogId::new(7)).unwrap();
        assert!(none.is_empty() && memory.write(&[report(1, 1)], &[]));
        assert!(dir.path().join("ganeti.db.damaged").exists());
        assert!(Memory::open(&dir.path().join("none"), LogId::new(7)).unwrap_err().contains("can't be used"));
    }
}
