//! [`JobMemory`]: what was told of which job, over restarts.
//!
//! `ganeti-jobs.db` in the state directory (SQLite): a row for each job that is in a queue, and one for each queue. Rows are written when the events that they
//! tell of are in the journal, never before: a crash between the two has an event told again, none lost. A loss of power may take the last rows
//! with it, with the same effect. A file that is damaged is set aside, and a new one begun; then what ended before counts as told.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use hookbus_bridges::ganeti::JobStatus;
use hookbus_broker::Timestamp;
use rusqlite::{Connection, Row, params};

use super::super::memory::{database, unusable};
use super::known::Known;

/// The file in the state directory.
const FILE_NAME: &str = "ganeti-jobs.db";

const LAYOUT: &str = "
    CREATE TABLE IF NOT EXISTS queues (
        path TEXT PRIMARY KEY,
        began_ms INTEGER NOT NULL,
        highest INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE IF NOT EXISTS jobs (
        queue TEXT NOT NULL,
        id INTEGER NOT NULL,
        received_ms INTEGER,
        told TEXT NOT NULL,
        file_time INTEGER NOT NULL,
        PRIMARY KEY (queue, id)
    ) STRICT, WITHOUT ROWID;
    PRAGMA user_version = 1;
";

/// The `highest` of a queue that nobody has looked at.
const NONE_YET: i64 = -1;

/// What is known of one queue.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Remembered {
    /// When it was followed for the first time.
    pub(super) began: Timestamp,
    /// The highest number of a job that was seen; nothing before the first look.
    pub(super) highest: Option<u64>,
    /// The jobs that are in it.
    pub(super) jobs: BTreeMap<u64, Known>,
}

/// The part of the file that is about one queue.
#[derive(Debug)]
pub(super) struct JobMemory {
    path: PathBuf,
    queue: String,
    connection: Connection,
    /// What the file has.
    highest: Option<u64>,
    /// It could not be written the last time.
    failing: bool,
}

impl JobMemory {
    /// Opens the file in the state directory, or makes it. A queue that it doesn't know begins `now`.
    ///
    /// # Errors
    /// When it can't be had.
    pub(super) fn open(state_dir: &Path, queue: &Path, now: Timestamp) -> Result<(Self, Remembered), String> {
        let (path, connection) = database(state_dir, FILE_NAME, LAYOUT)?;
        let queue = queue.to_string_lossy().into_owned();
        let mut memory = JobMemory { path, queue, connection, highest: None, failing: false };
        let remembered = memory.read(now).map_err(|e| unusable(&memory.path, &e))?;
        memory.highest = remembered.highest;
        Ok((memory, remembered))
    }

    fn read(&self, now: Timestamp) -> rusqlite::Result<Remembered> {
        // It is written before anything is told: a crash in the first second doesn't make the second start the first.
        self.connection.execute(
            "INSERT OR IGNORE INTO queues (path, began_ms, highest) VALUES (?, ?, ?)",
            params![self.queue, now.as_millis().cast_signed(), NONE_YET],
        )?;
        let (began, highest) =
            self.connection.query_row("SELECT began_ms, highest FROM queues WHERE path = ?", [&self.queue], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))
            })?;
        let jobs = self
            .connection
            .prepare("SELECT id, received_ms, told, file_time FROM jobs WHERE queue = ?")?
            .query_map([&self.queue], of_row)?
            .collect::<rusqlite::Result<_>>()?;
        Ok(Remembered {
            began: Timestamp::from_millis(began.unsigned_abs()),
            highest: u64::try_from(highest).ok(),
            jobs,
        })
    }

    /// Writes down what is known of these jobs, or strikes them out, and the highest number; says whether it could. Trouble is logged once.
    pub(super) fn write(&mut self, changed: &BTreeMap<u64, Option<Known>>, highest: Option<u64>) -> bool {
        if changed.is_empty() && highest == self.highest {
            return true;
        }
        let written = self.try_write(changed, highest);
        if let (Err(e), false) = (&written, self.failing) {
            tracing::error!(
                "ganeti jobs: {}; it is tried again with the next change. Until then what was told is told again after a restart",
                unusable(&self.path, e)
            );
        }
        self.failing = written.is_err();
        if !self.failing {
            self.highest = highest;
        }
        !self.failing
    }

    fn try_write(&mut self, changed: &BTreeMap<u64, Option<Known>>, highest: Option<u64>) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction()?;
        for (id, known) in changed {
            let id = id.cast_signed();
            let Some(Known { received, told, file_time }) = known else {
                transaction
                    .prepare_cached("DELETE FROM jobs WHERE queue = ? AND id = ?")?
                    .execute(params![self.queue, id])?;
                continue;
            };
            let received = received.map(|time| time.as_millis().cast_signed());
            transaction
                .prepare_cached(
                    "INSERT OR REPLACE INTO jobs (queue, id, received_ms, told, file_time) VALUES (?, ?, ?, ?, ?)",
                )?
                .execute(params![self.queue, id, received, told.name(), file_time])?;
        }
        transaction
            .prepare_cached("UPDATE queues SET highest = ? WHERE path = ?")?
            .execute(params![highest.map_or(NONE_YET, u64::cast_signed), self.queue])?;
        transaction.commit()
    }
}

fn of_row(row: &Row<'_>) -> rusqlite::Result<(u64, Known)> {
    let received = row.get::<_, Option<i64>>(1)?.map(|millis| Timestamp::from_millis(millis.unsigned_abs()));
    // What isn't known is told again.
    let told = JobStatus::of_name(&row.get::<_, String>(2)?).unwrap_or(JobStatus::Queued);
    Ok((row.get::<_, i64>(0)?.cast_unsigned(), Known { received, told, file_time: row.get(3)? }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_told_comes_back_for_its_queue() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (Path::new("/a"), Path::new("/b"));
        let at = Timestamp::from_millis;
        let known = |told| Known { received: Some(at(5)), told, file_time: i64::MIN };
        let (mut memory, first) = JobMemory::open(dir.path(), a, at(100)).unwrap();
        assert_eq!(first, Remembered { began: at(100), highest: None, jobs: BTreeMap::new() });
        // Before any job is: the next start knows from where on the archive counts.
        assert!(memory.write(&BTreeMap::new(), Some(0)));
        drop(memory);
        let (mut memory, second) = JobMemory::open(dir.path(), a, at(200)).unwrap();
        assert_eq!(second, Remembered { began: at(100), highest: Some(0), jobs: BTreeMap::new() });
        let changed = [
            (1, Some(known(JobStatus::Error))),
            (2, Some(known(JobStatus::Running))),
            (3, Some(known(JobStatus::Queued))),
        ];
        assert!(memory.write(&BTreeMap::from(changed), Some(3)));
        let changed = [(1, None), (2, Some(known(JobStatus::Canceled)))];
        assert!(memory.write(&BTreeMap::from(changed), Some(3)));
        let (_other, none) = JobMemory::open(dir.path(), b, at(200)).unwrap();
        assert_eq!((none.began, none.highest, none.jobs.len()), (at(200), None, 0));
        drop(memory);
        let (_, again) = JobMemory::open(dir.path(), a, at(300)).unwrap();
        let jobs = BTreeMap::from([(2, known(JobStatus::Canceled)), (3, known(JobStatus::Queued))]);
        assert_eq!(again, Remembered { began: at(100), highest: Some(3), jobs });
    }
}
