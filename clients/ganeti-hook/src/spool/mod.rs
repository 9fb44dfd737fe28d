//! The spool: reports that could not be sent, in a directory, until somebody sends them.
//!
//! ```text
//! /var/spool/hookbus/
//!   01772366400123456789-6f...e1.json   a report: the nanoseconds since 1970 and its id; the line, without a line feed
//!   .01772366400123456789-6f...e1.tmp   a report that is being written; older than an hour, it is left over and removed
//!   lock                                who forwards has it locked (flock)
//!   lost                                how many reports were not accepted since the daemon was told last, and when the last one
//!   large                               there has been a report of more than 16 KiB
//!   telling                             who tells the daemon that number has it locked
//!   refused/                            reports that the daemon refused for good, 4 MiB and 1000 at most, oldest out
//! ```
//!
//! # Writing
//!
//! [`Spool::put`] writes a temporary file, gives it its name, and syncs it and the directory. Then the report is accepted. The name comes before the sync, so that a
//! report is found also when its process was ended while a slow disk was still at it; what a loss of power leaves of such a one, who forwards finds out: it
//! is no whole line of JSON.
//!
//! Before it gets its name, its size is checked against all that is there, other temporary files included. Who looks through a directory may miss what is
//! renamed meanwhile, so many that write at once may exceed the bound by a few reports; a MiB is kept free for that. Where a thousand hooks write at
//! once, looking at every file would take all their time: as long as no report was larger than 16 KiB (else there is `large`), counting them shows that there is room. The
//! first report makes `lost`, so that counting needs no room on a disk that is full later.
//!
//! # Forwarding
//!
//! Who wants to forward takes the lock, without waiting. It sends the oldest reports in batches, and removes a file when the answer says that
//! its report is safe. Who doesn't get the lock leaves: its report is there already, and the holder looks again *after* it has released the lock. So
//! a report that was written before an attempt at the lock that failed is seen by the holder's last look, unless its time is over.
//!
//! # Guarantees
//!
//! - Killed at any moment: what was accepted is there; what is left besides is a temporary file, which nobody reads, or a report that is sent, too.
//! - A report whose file could not be removed after it was sent, or whose removal a loss of power undid, is sent again, with the same id.
//! - A file that can't be read, or is no report, doesn't stop the others: it stays and is told, or goes to `refused`.
//! - Order is that of the times in the names: of clocks, that is.

mod forward;
mod lost;

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::OFlags;
use thiserror::Error;

use crate::report::{Report, is_id};

pub use forward::{Batch, ForwardError, Forwarded, Lock, Receipt, Refusal, UnfitReceipt};
pub use lost::Untold;

/// What a spool may hold, in bytes, what is refused included.
pub const MAX_SPOOL_BYTES: u64 = 64 << 20;
/// What of it is for reports that were refused.
pub const MAX_REFUSED_BYTES: u64 = 4 << 20;
/// What of it is for those who didn't see each other.
const SLACK_BYTES: u64 = 1 << 20;
/// How many reports that were refused are kept.
pub const MAX_REFUSED: usize = 1000;
/// How large a batch gets; a report that is larger goes alone.
pub const MAX_BATCH_BYTES: usize = 1 << 20;

/// A report that isn't larger than this needs no looking at.
const SMALL_BYTES: u64 = 16 << 10;

/// A temporary file that is older belongs to nobody.
const LEFT_OVER_AFTER: Duration = Duration::from_secs(3600);

const LOCK: &str = "lock";
const LOST: &str = "lost";
const TELLING: &str = "telling";
const LARGE: &str = "large";
const REFUSED: &str = "refused";

/// Digits of the time in a file's name.
const TIME_DIGITS: usize = 20;

/// Neither followed, where it is a link, nor waited for, where it is a pipe.
fn careful() -> i32 {
    (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed()
}

/// A directory of reports.
#[derive(Clone, Debug)]
pub struct Spool {
    dir: PathBuf,
    max_bytes: u64,
}

/// Why a report was not accepted.
#[derive(Debug, Error)]
pub enum PutError {
    /// It counts as lost by now.
    #[error("the time is over")]
    Late,
    /// There are enough.
    #[error("the spool {} is full: {held} bytes wait there, {max} are allowed", dir.display())]
    Full {
        /// The directory.
        dir: PathBuf,
        /// What is there.
        held: u64,
        /// What may be there.
        max: u64,
    },
    /// The disk doesn't take it.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// What is in a spool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Reports that wait.
    pub reports: u64,
    /// Their size.
    pub bytes: u64,
    /// When the oldest of them was made, in nanoseconds since 1970.
    pub oldest_ns: Option<u64>,
    /// Reports that were refused and are kept.
    pub refused: u64,
    /// Reports that were not accepted, as far as the daemon wasn't told.
    pub lost: u64,
}

/// The name of a report's file, taken apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Name {
    time_ns: u64,
    id: String,
}

impl Name {
    fn of(file: &str) -> Option<Self> {
        let (time, id) = file.strip_suffix(".json")?.split_once('-')?;
        let is_time = time.len() == TIME_DIGITS && time.bytes().all(|byte| byte.is_ascii_digit());
        (is_time && is_id(id)).then_some(())?;
        Some(Name { time_ns: time.parse().ok()?, id: id.to_owned() })
    }

    fn file(&self) -> String {
        format!("{:020}-{}.json", self.time_ns, self.id)
    }

    fn temporary(&self) -> String {
        format!(".{:020}-{}.tmp", self.time_ns, self.id)
    }
}

impl Spool {
    /// The spool in this directory, which need not exist.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Spool { dir: dir.into(), max_bytes: MAX_SPOOL_BYTES - MAX_REFUSED_BYTES - SLACK_BYTES }
    }

    /// The same with another bound for what waits, for tests.
    #[must_use]
    pub fn bounded(mut self, max_bytes: u64) -> Self {
        self.max_bytes = max_bytes;
        self
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether no report waits. A spool that doesn't exist is empty.
    ///
    /// # Errors
    /// When the directory can't be read.
    pub fn is_empty(&self) -> io::Result<bool> {
        let mut found = false;
        self.each_name(|_| {
            found = true;
            false
        })?;
        Ok(!found)
    }

    /// What is in it.
    ///
    /// # Errors
    /// When the directory can't be read.
    pub fn contents(&self) -> io::Result<Contents> {
        let mut contents = Contents { lost: self.lost(), ..Contents::default() };
        self.each_name(|name| {
            // One that was removed meanwhile is not there.
            if let Ok(metadata) = fs::symlink_metadata(self.dir.join(name.file())) {
                contents.reports += 1;
                contents.bytes += metadata.len();
                let oldest = contents.oldest_ns.get_or_insert(name.time_ns);
                *oldest = name.time_ns.min(*oldest);
            }
            true
        })?;
        contents.refused = fs::read_dir(self.dir.join(REFUSED)).map_or(0, |entries| entries.count() as u64);
        Ok(contents)
    }

    /// Accepts a report: when this returns without an error, it is on the disk.
    ///
    /// # Errors
    /// When the spool is full, or the disk doesn't take it. Then it is not accepted; [`Spool::count_lost`] counts it.
    pub fn put(&self, report: &Report) -> Result<(), PutError> {
        self.put_if(report, || true)
    }

    /// The same, if `still` says yes just before the report gets its name, from when on it is sent, whatever becomes of this process.
    ///
    /// # Errors
    /// As [`put`](Self::put), or because `still` said no.
    pub fn put_if(&self, report: &Report, still: impl FnOnce() -> bool) -> Result<(), PutError> {
        let name = Name { time_ns: report.time_ns, id: report.id.clone() };
        let path = self.dir.join(name.temporary());
        let failed = |what, path: &Path| {
            let path = path.to_owned();
            move |source| PutError::Io { what, path, source }
        };
        let create = || {
            let mut options = OpenOptions::new();
            options.write(true).create_new(true).mode(0o640).custom_flags(careful()).open(&path)
        };
        let file = match create() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.make().map_err(failed("make the spool", &self.dir))?;
                create()
            }
            other => other,
        };
        let mut file = file.map_err(failed("make", &path))?;
        // While there is room.
        self.prepare_lost();
        let unfinished = Unfinished(&path);
        // Who forwards may be another user, of the directory's group; the umask of whoever runs this must not keep it out.
        let _ = file.set_permissions(Permissions::from_mode(0o640));
        file.write_all(&report.line).map_err(failed("write", &path))?;
        let size = report.line.len() as u64;
        if size > SMALL_BYTES {
            drop(self.open_lock(LARGE).map_err(failed("make", &self.dir.join(LARGE)))?);
        }
        let held = self.held(self.max_bytes).map_err(failed("read", &self.dir))?;
        if held > self.max_bytes {
            return Err(PutError::Full { dir: self.dir.clone(), held: held.saturating_sub(size), max: self.max_bytes });
        }
        if !still() {
            return Err(PutError::Late);
        }
        let named = self.dir.join(name.file());
        fs::rename(&path, &named).map_err(failed("rename", &path))?;
        std::mem::forget(unfinished);
        file.sync_all().map_err(failed("write", &named))?;
        self.sync().map_err(failed("write", &self.dir))
    }

    /// Keeps a report that the daemon has refused, for somebody to look at.
    ///
    /// # Errors
    /// When the disk doesn't take it.
    pub fn put_refused(&self, report: &Report) -> io::Result<()> {
        let refused = self.refused_dir()?;
        let name = Name { time_ns: report.time_ns, id: report.id.clone() };
        let path = refused.join(name.file());
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o640).custom_flags(careful()).open(&path)?;
        let unfinished = Unfinished(&path);
        file.write_all(&report.line)?;
        std::mem::forget(unfinished);
        self.bound_refused()
    }

    /// Makes the directory.
    fn make(&self) -> io::Result<()> {
        if let Some(parent) = self.dir.parent() {
            fs::create_dir_all(parent)?;
        }
        match DirBuilder::new().mode(0o750).create(&self.dir) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        Ok(())
    }

    /// Opens the file of a lock. Made by one user, it can be locked by another one who may only read.
    fn open_lock(&self, name: &str) -> io::Result<File> {
        let path = self.dir.join(name);
        let mut options = OpenOptions::new();
        match options.read(true).custom_flags(careful()).open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => options.write(true).create(true).mode(0o640).open(&path),
            file => file,
        }
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }

    /// The size of all reports, finished or not; where it is clear that they are not more than `max`, not more than that. Temporary files that are left
    /// over are removed.
    fn held(&self, max: u64) -> io::Result<u64> {
        let mut files = Vec::new();
        let mut temporary = 0;
        let now = SystemTime::now();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let file_name = entry.file_name();
            let Some(file_name) = file_name.to_str() else { continue };
            if Name::of(file_name).is_some() {
                files.push(entry);
            } else if file_name.starts_with('.') && file_name.ends_with(".tmp") {
                // One that was renamed meanwhile may be among the others already.
                let Ok(metadata) = entry.metadata() else { continue };
                let age = metadata.modified().ok().and_then(|modified| now.duration_since(modified).ok());
                if age.is_none_or(|age| age <= LEFT_OVER_AFTER) || fs::remove_file(entry.path()).is_err() {
                    temporary += metadata.len();
                }
            }
        }
        let most = temporary + files.len() as u64 * SMALL_BYTES;
        if most <= max && fs::symlink_metadata(self.dir.join(LARGE)).is_err() {
            return Ok(most);
        }
        // One that was removed meanwhile holds nothing.
        let sizes = files.iter().filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len());
        Ok(temporary + sizes.sum::<u64>())
    }

    /// Calls `with` for each report, in no order, until it returns false.
    fn each_name(&self, mut with: impl FnMut(Name) -> bool) -> io::Result<()> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e),
        };
        for entry in entries {
            if let Some(name) = entry?.file_name().to_str().and_then(Name::of)
                && !with(name)
            {
                break;
            }
        }
        Ok(())
    }

    /// The names of all reports, oldest first.
    fn names(&self) -> io::Result<Vec<Name>> {
        let mut names = Vec::new();
        self.each_name(|name| {
            names.push(name);
            true
        })?;
        names.sort_unstable();
        Ok(names)
    }

    /// The directory of what was refused. A link in its place is not followed.
    fn refused_dir(&self) -> io::Result<PathBuf> {
        let refused = self.dir.join(REFUSED);
        match DirBuilder::new().mode(0o750).create(&refused) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.make()?;
                DirBuilder::new().mode(0o750).create(&refused)?;
            }
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        if !fs::symlink_metadata(&refused)?.is_dir() {
            return Err(io::Error::new(io::ErrorKind::NotADirectory, "it is no directory"));
        }
        Ok(refused)
    }

    /// Removes the oldest of what was refused until the rest is within its bounds.
    fn bound_refused(&self) -> io::Result<()> {
        let dir = self.refused_dir()?;
        let mut files: Vec<(String, u64)> = Vec::new();
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            if let (Ok(name), Ok(metadata)) = (entry.file_name().into_string(), entry.metadata()) {
                files.push((name, metadata.len()));
            }
        }
        // The newest come first.
        files.sort_unstable_by(|one, other| other.cmp(one));
        let mut bytes = 0;
        for (i, (name, size)) in files.iter().enumerate() {
            bytes += size;
            if i >= MAX_REFUSED || bytes > MAX_REFUSED_BYTES {
                fs::remove_file(dir.join(name))?;
            }
        }
        Ok(())
    }
}

/// A file that is removed unless it gets its name.
struct Unfinished<'a>(&'a Path);

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.0);
    }
}

#[cfg(test)]
mod tests;
