//! Dead letters in a file of redb's.
//!
//! | table | key | value |
//! | --- | --- | --- |
//! | `heads` | number | [`Head`] as JSON |
//! | `payloads` | number | the event's payload |
//! | `meta` | `version`, `next`, `dropped` | a number each |
//!
//! Each change is one transaction, flushed to the disk. After any error the file is closed, and opened anew for the next attempt: redb
//! refuses to go on after one. When it is opened, the checksum of each page is compared, since redb may panic on what it trusts.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase, ReadableTable, StorageError, TableDefinition};

use super::record::Head;
use super::{Change, DeadLettersError, Entry, Index};

/// The name of the file in the state directory.
pub const FILE_NAME: &str = "dead-letters.redb";

/// The layout that this code writes. A file with a greater one is set aside.
const VERSION: u64 = 1;

/// What redb keeps of the file in memory. Dead letters are read seldom.
const CACHE_BYTES: usize = 4 << 20;

const HEADS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("heads");
const PAYLOADS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("payloads");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

#[derive(Debug)]
pub(super) struct FileStore {
    path: PathBuf,
    database: Option<Database>,
    /// What stands in for the disk in tests.
    #[cfg(test)]
    pub(super) disk: Option<super::tests::Disk>,
}

/// Why a file can't be used.
enum Unusable {
    /// Not now.
    Now(redb::Error),
    /// Never; it is set aside for this reason.
    Ever(String),
}

impl<E: Into<redb::Error>> From<E> for Unusable {
    fn from(error: E) -> Self {
        match error.into() {
            redb::Error::Corrupted(why) => Unusable::Ever(format!("it is damaged: {why}")),
            redb::Error::Io(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                Unusable::Ever(format!("it is damaged: {error}"))
            }
            redb::Error::Io(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                Unusable::Ever("it is damaged: it ends too early".into())
            }
            redb::Error::UpgradeRequired(format) => Unusable::Ever(format!("it has the old format {format} of redb")),
            error @ (redb::Error::TableTypeMismatch { .. }
            | redb::Error::TypeDefinitionChanged { .. }
            | redb::Error::TableIsMultimap(_)
            | redb::Error::RepairAborted) => Unusable::Ever(format!("it is none of ours: {error}")),
            error => Unusable::Now(error),
        }
    }
}

impl FileStore {
    pub(super) fn new(path: PathBuf) -> Self {
        FileStore {
            path,
            database: None,
            #[cfg(test)]
            disk: None,
        }
    }

    /// Opens the file, unless it is; then says what is in it.
    pub(super) fn open(&mut self) -> Result<Option<Index>, DeadLettersError> {
        if self.database.is_some() {
            return Ok(None);
        }
        let reason = match self.try_open() {
            Ok(index) => return Ok(Some(index)),
            Err(Unusable::Now(error)) => return Err(self.error("opened", error)),
            Err(Unusable::Ever(reason)) => reason,
        };
        let aside = free_name(&self.path);
        if let Err(error) = std::fs::rename(&self.path, &aside) {
            return Err(self.error("set aside", redb::Error::Io(error)));
        }
        let notice: Arc<str> = format!(
            "the dead letters in {} can't be read ({reason}); the file is now {}, and a new one was begun",
            self.path.display(),
            aside.display()
        )
        .into();
        tracing::error!("{notice}");
        match self.try_open() {
            Ok(index) => Ok(Some(Index { notice: Some(notice), ..index })),
            Err(Unusable::Now(error)) => Err(self.error("opened", error)),
            Err(Unusable::Ever(reason)) => Err(self.error("opened", redb::Error::Corrupted(reason))),
        }
    }

    fn try_open(&mut self) -> Result<Index, Unusable> {
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let mut builder = Database::builder();
            builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
            #[cfg(test)]
            if let Some(disk) = &self.disk {
                let database = builder.create_with_backend(disk.file(&self.path))?;
                let index = read(&database)?;
                return Ok((database, index));
            }
            // What hooks and buses were given may hold secrets.
            let mut file = OpenOptions::new();
            file.read(true).write(true).create(true).truncate(false).mode(0o600);
            let file = FileBackend::new(file.open(&self.path).map_err(StorageError::Io)?)?;
            let database = builder.create_with_backend(file)?;
            let index = read(&database)?;
            Ok((database, index))
        }));
        match opened {
            Ok(Ok((database, index))) => {
                self.database = Some(database);
                Ok(index)
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Unusable::Ever("it is damaged in a way that its reader did not expect".into())),
        }
    }

    /// Forgets that it is open.
    #[cfg(test)]
    pub(super) fn close(&mut self) {
        self.database = None;
    }

    pub(super) fn apply(&mut self, change: &Change<'_>) -> Result<(), DeadLettersError> {
        self.using("written", |database| {
            let transaction = database.begin_write()?;
            {
                let mut heads = transaction.open_table(HEADS)?;
                let mut payloads = transaction.open_table(PAYLOADS)?;
                for (number, head, payload) in &change.put {
                    heads.insert(number, &*to_json(head))?;
                    payloads.insert(number, *payload)?;
                }
                for (number, head) in &change.replace {
                    if heads.get(number)?.is_some() {
                        heads.insert(number, &*to_json(head))?;
                    }
                }
                for number in &change.remove {
                    heads.remove(number)?;
                    payloads.remove(number)?;
                }
                let mut meta = transaction.open_table(META)?;
                meta.insert("version", VERSION)?;
                meta.insert("next", change.next)?;
                meta.insert("dropped", change.dropped)?;
            }
            transaction.commit()?;
            Ok(())
        })
    }

    pub(super) fn get(&mut self, number: u64) -> Result<Option<(Head, Bytes)>, DeadLettersError> {
        self.using("read", |database| {
            let transaction = database.begin_read()?;
            let head = transaction.open_table(HEADS)?.get(number)?.map(|head| of_json(head.value())).transpose()?;
            let payload = transaction.open_table(PAYLOADS)?.get(number)?;
            Ok(head.zip(payload.map(|payload| Bytes::copy_from_slice(payload.value()))))
        })
    }

    pub(super) fn heads(&mut self, numbers: impl Iterator<Item = u64>) -> Result<Vec<Option<Head>>, DeadLettersError> {
        self.using("read", |database| {
            let heads = database.begin_read()?.open_table(HEADS)?;
            numbers.map(|number| heads.get(number)?.map(|head| of_json(head.value())).transpose()).collect()
        })
    }

    /// Works with the open file; closes it on any error.
    fn using<R>(
        &mut self,
        deed: &'static str,
        work: impl FnOnce(&Database) -> Result<R, redb::Error>,
    ) -> Result<R, DeadLettersError> {
        let worked = match &self.database {
            Some(database) => catch_unwind(AssertUnwindSafe(|| work(database)))
                .unwrap_or_else(|_| Err(redb::Error::Corrupted("its reader did not expect what is in it".into()))),
            None => Err(redb::Error::DatabaseClosed),
        };
        worked.map_err(|error| {
            self.database = None;
            self.error(deed, error)
        })
    }

    fn error(&self, deed: &'static str, source: redb::Error) -> DeadLettersError {
        DeadLettersError { path: self.path.display().to_string().into(), deed, source: Arc::new(source) }
    }
}

/// What is in a file; makes its tables if there are none.
fn read(database: &Database) -> Result<Index, Unusable> {
    let version = {
        let transaction = database.begin_read()?;
        match transaction.open_table(META) {
            Ok(meta) => meta.get("version")?.map(|version| version.value()),
            Err(redb::TableError::TableDoesNotExist(_)) => None,
            Err(error) => return Err(error.into()),
        }
    };
    match version {
        Some(version) if version > VERSION => {
            return Err(Unusable::Ever(format!("a later version of hookbus wrote it, in layout {version}")));
        }
        Some(_) => {}
        None => {
            let transaction = database.begin_write()?;
            transaction.open_table(HEADS)?;
            transaction.open_table(PAYLOADS)?;
            transaction.open_table(META)?.insert("version", VERSION)?;
            transaction.commit()?;
        }
    }
    let transaction = database.begin_read()?;
    let meta = transaction.open_table(META)?;
    let number = |name: &str| Ok::<_, StorageError>(meta.get(name)?.map(|number| number.value()));
    let mut index =
        Index { next: number("next")?.unwrap_or(1), dropped: number("dropped")?.unwrap_or(0), ..Index::default() };
    let mut names: Vec<Arc<str>> = Vec::new();
    for row in transaction.open_table(HEADS)?.iter()? {
        let (number, head) = row?;
        let head = of_json(head.value())?;
        let bytes = head.size_bytes(usize::try_from(head.payload_bytes).unwrap_or(usize::MAX));
        // The names of a few bridges, over and over.
        let bridge = names.iter().find(|name| ***name == *head.bridge).cloned().unwrap_or_else(|| {
            let name: Arc<str> = head.bridge.into();
            names.push(Arc::clone(&name));
            name
        });
        index.bytes += bytes;
        index.next = index.next.max(number.value() + 1);
        index.entries.insert(number.value(), Entry { bridge, bytes });
    }
    Ok(index)
}

fn to_json(head: &Head) -> Vec<u8> {
    serde_json::to_vec(head).expect("a head is text and numbers")
}

fn of_json(head: &[u8]) -> Result<Head, redb::Error> {
    serde_json::from_slice(head)
        .map_err(|error| redb::Error::Corrupted(format!("a letter's head can't be read: {error}")))
}

/// A name beside this one that nobody has.
fn free_name(path: &Path) -> PathBuf {
    let named = |n: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".unreadable-{n}"));
        PathBuf::from(name)
    };
    let mut n = 1;
    while named(n).symlink_metadata().is_ok() {
        n += 1;
    }
    named(n)
}

/// Makes a file look as if a later version had written it.
#[cfg(test)]
pub(super) fn pretend_later_version(path: &Path) {
    let database = Database::create(path).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(META).unwrap().insert("version", VERSION + 1).unwrap();
    transaction.commit().unwrap();
}
