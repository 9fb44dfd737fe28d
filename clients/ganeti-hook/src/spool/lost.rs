//! How many reports were not accepted, until the daemon has been told.
//!
//! `lost` is a line, `<count> <time of the last>`, which is read and written under a lock of its own. It is overwritten in place: a full disk has no room
//! for another file.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::thread;
use std::time::Duration;

use jiff::Timestamp;
use rustix::fs::{FlockOperation, flock};

use super::{LOST, Spool, TELLING, careful};

/// How often the lock is tried, and how long lies between: whoever has it reads and writes one line.
const ATTEMPTS: u32 = 50;
const PAUSE: Duration = Duration::from_millis(2);

/// Reports that were not accepted, which the daemon doesn't know of. Until this is dropped, nobody else tells.
#[derive(Debug)]
pub struct Untold<'s> {
    spool: &'s Spool,
    _telling: File,
    count: u64,
}

impl Untold<'_> {
    /// How many.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The daemon knows them.
    ///
    /// # Errors
    /// When that can't be written down: they will be told again.
    pub fn told(self) -> io::Result<()> {
        // There may be more by now.
        self.spool.change_lost(|count| count.saturating_sub(self.count))
    }
}

impl Spool {
    /// How many reports were not accepted since the daemon was told last.
    pub fn lost(&self) -> u64 {
        self.open_lost(false).and_then(|file| read(&file)).unwrap_or(0)
    }

    /// What is to be told to the daemon; none where nothing was lost, or somebody else is telling.
    pub fn untold(&self) -> Option<Untold<'_>> {
        // Mostly there is nothing, and nothing to lock.
        if self.lost() == 0 {
            return None;
        }
        let telling = self.open_lock(TELLING).ok()?;
        flock(&telling, FlockOperation::NonBlockingLockExclusive).ok()?;
        // Somebody may have told them before we had the lock.
        let count = Some(self.lost()).filter(|count| *count > 0)?;
        Some(Untold { spool: self, _telling: telling, count })
    }

    /// Counts a report that was not accepted.
    ///
    /// # Errors
    /// When that can't be done.
    pub fn count_lost(&self) -> io::Result<()> {
        self.change_lost(|count| count.saturating_add(1))
    }

    fn change_lost(&self, change: impl FnOnce(u64) -> u64) -> io::Result<()> {
        let file = match self.open_lost(true) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.make()?;
                self.open_lost(true)?
            }
            file => file?,
        };
        for attempt in 1.. {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(e) if attempt == ATTEMPTS => return Err(e.into()),
                Err(_) => thread::sleep(PAUSE),
            }
        }
        write(&file, change(read(&file)?))
    }

    /// Makes the file with its line, so that counting needs no room on the disk later.
    pub(super) fn prepare_lost(&self) {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o660).custom_flags(careful());
        if let Ok(file) = options.open(self.dir.join(LOST)) {
            let _ = file.set_permissions(Permissions::from_mode(0o660));
            let _ = write(&file, 0);
        }
    }

    fn open_lost(&self, to_write: bool) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(to_write).create(to_write).mode(0o660).custom_flags(careful());
        options.open(self.dir.join(LOST))
    }
}

/// The number in it. What isn't one counts as none.
fn read(file: &File) -> io::Result<u64> {
    let mut line = String::new();
    let mut bytes = [0; 64];
    let count = file.read_at(&mut bytes, 0)?;
    (&bytes[..count]).read_to_string(&mut line)?;
    Ok(line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0))
}

/// Lines are of one length, so that a shorter one leaves nothing of a longer one.
fn write(mut file: &File, count: u64) -> io::Result<()> {
    let line = format!("{count:<20} {:.3}\n", Timestamp::now());
    file.write_all_at(line.as_bytes(), 0)?;
    file.flush()
}
