//! Cursors: how far each durable subscription has come, kept in a file of its own.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::disk::Disk;
use super::error::JournalError;
use super::slots::Slots;
use crate::member::Member;

/// The longest name, in bytes; as the name of a file it may become three times as long.
pub(super) const MAX_NAME_BYTES: usize = 80;

/// A cursor.
pub(crate) struct CursorFile {
    pub(super) name: String,
    /// The offset to go on at: everything below it is done.
    position: AtomicU64,
    saved: AtomicU64,
    pub(super) in_use: AtomicBool,
    /// Whether its subscription waits and has nothing that isn't done; and the queue that it waits at.
    pub(super) idle: AtomicBool,
    pub(super) reader: Mutex<Option<Arc<Member>>>,
    /// The time of the oldest message that was handed out and is not done; 0 is none.
    pub(super) oldest: AtomicU64,
    slots: Mutex<Slots>,
}

impl fmt::Debug for CursorFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CursorFile").field("name", &self.name).field("position", &self.position).finish_non_exhaustive()
    }
}

impl CursorFile {
    /// Makes a cursor that stands at `position`.
    pub(super) fn create(dir: &Path, name: &str, position: u64, disk: &dyn Disk) -> Result<Self, JournalError> {
        let path = path_of(dir, name)?;
        let slots =
            Slots::create(&path, &encode(position, name), disk).map_err(JournalError::io("make a cursor", &path))?;
        Ok(CursorFile {
            name: name.to_owned(),
            position: AtomicU64::new(position),
            saved: AtomicU64::new(position),
            in_use: AtomicBool::new(false),
            idle: AtomicBool::new(false),
            reader: Mutex::new(None),
            oldest: AtomicU64::new(0),
            slots: Mutex::new(slots),
        })
    }

    /// Opens a cursor's file; `None` where it can't be read as one.
    pub(super) fn open(path: &Path) -> std::io::Result<Option<Self>> {
        let (slots, value) = Slots::open(path)?;
        let Some((position, name)) = value.as_deref().and_then(decode) else { return Ok(None) };
        Ok(Some(CursorFile {
            name,
            position: AtomicU64::new(position),
            saved: AtomicU64::new(position),
            in_use: AtomicBool::new(false),
            idle: AtomicBool::new(false),
            reader: Mutex::new(None),
            oldest: AtomicU64::new(0),
            slots: Mutex::new(slots),
        }))
    }

    pub(super) fn position(&self) -> u64 {
        self.position.load(Ordering::Acquire)
    }

    /// Moves forward, never back. Returns whether it did.
    pub(super) fn move_to(&self, position: u64) -> bool {
        self.position.fetch_max(position, Ordering::AcqRel) < position
    }

    /// Moves forward to `head` if its subscription has nothing to do below that: else a cursor of rare messages would stay where
    /// the last one was, and the next start had to read all that came since. `head` is a watermark loaded before.
    pub(super) fn follow(&self, head: u64) -> bool {
        let Some(reader) = self.reader.lock().clone() else { return false };
        // What is below `head` and matches was put into the queue. So if that is empty, and nobody has taken anything since it
        // waits, there is nothing. Takes are made under the same lock, after the mark was removed.
        let cursor = reader.cursor.lock();
        !cursor.has_any() && self.idle.load(Ordering::Acquire) && self.move_to(head)
    }

    /// Writes the position down, if it has changed.
    pub(super) fn save(&self, disk: &dyn Disk) -> std::io::Result<()> {
        let mut slots = self.slots.lock();
        let position = self.position();
        if position != self.saved.load(Ordering::Relaxed) {
            slots.write(&encode(position, &self.name), disk)?;
            self.saved.store(position, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Has the position go to the device.
    pub(super) fn sync(&self, disk: &dyn Disk) -> std::io::Result<()> {
        self.slots.lock().sync(disk)
    }

    pub(super) fn path(&self) -> PathBuf {
        self.slots.lock().path().to_owned()
    }
}

fn encode(position: u64, name: &str) -> Vec<u8> {
    [&position.to_le_bytes()[..], name.as_bytes()].concat()
}

fn decode(value: &[u8]) -> Option<(u64, String)> {
    let (position, name) = value.split_first_chunk::<8>()?;
    Some((u64::from_le_bytes(*position), String::from_utf8(name.to_vec()).ok()?))
}

/// The file of the cursor of that name: letters, digits and `-` stand for themselves, others as `%` and two digits, so
/// that no name leads out of the directory and no two share a file.
fn path_of(dir: &Path, name: &str) -> Result<PathBuf, JournalError> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(JournalError::CursorName { name: name.to_owned(), most: MAX_NAME_BYTES });
    }
    let mut file = String::new();
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' => file.push(char::from(byte)),
            _ => file.push_str(&format!("%{byte:02x}")),
        }
    }
    Ok(dir.join(file + ".cursor"))
}

impl CursorFile {
    /// The name that a file of [`path_of`] stands for.
    pub(super) fn name_of(path: &Path) -> Option<String> {
        let mut rest = path.file_stem()?.to_str()?.as_bytes();
        let mut name = Vec::new();
        while let Some((&byte, behind)) = rest.split_first() {
            rest = behind;
            if byte == b'%' {
                let (digits, behind) = rest.split_at_checked(2)?;
                name.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
                rest = behind;
            } else {
                name.push(byte);
            }
        }
        String::from_utf8(name).ok()
    }
}
