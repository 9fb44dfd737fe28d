//! A small value in a file of its own that is rewritten in place: two slots, written by turns.
//!
//! ```text
//!        0      4        8       16      20                  bytes
//!   0:   +------+--------+-------+-------+---------+
//!        |magic |CRC32C  |number |length |value    |         slot 0; CRC32C of all behind it
//!        +------+--------+-------+-------+---------+
//! 4096:  the same                                             slot 1; the valid one with the higher number counts
//! ```
//!
//! A write that is cut short leaves the other slot, with the value before. The file has its full size from its first moment, so
//! writing never needs room on the disk; and the slots lie in different pages.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::disk::Disk;
use super::record::checksum;

const MAGIC: [u8; 4] = *b"HBs1";
const SLOT_BYTES: u64 = 4096;
const HEAD_BYTES: usize = 20;
/// The longest value.
pub(super) const MAX_VALUE_BYTES: usize = 512 - HEAD_BYTES;

/// The file, open.
#[derive(Debug)]
pub(super) struct Slots {
    file: File,
    path: PathBuf,
    number: u64,
}

impl Slots {
    /// Makes the file with this first value. It appears under its name when it is complete.
    pub(super) fn create(path: &Path, value: &[u8], disk: &dyn Disk) -> io::Result<Self> {
        let new = path.with_extension("new");
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&new)?;
        disk.write_at(&file, &vec![0; 2 * SLOT_BYTES as usize], 0)?;
        let mut slots = Slots { file, path: path.to_owned(), number: 0 };
        slots.write(value, disk)?;
        slots.write(value, disk)?; // so that it survives the loss of a slot from the beginning
        disk.sync(&slots.file)?;
        std::fs::rename(&new, path)?;
        Ok(slots)
    }

    /// Opens the file and reads its value; `None` where neither slot is valid.
    pub(super) fn open(path: &Path) -> io::Result<(Self, Option<Vec<u8>>)> {
        let file = File::options().read(true).write(true).open(path)?;
        let mut best: Option<(u64, Vec<u8>)> = None;
        for slot in 0..2 {
            let mut bytes = [0; HEAD_BYTES + MAX_VALUE_BYTES];
            let read = super::disk::read_at_most(&file, &mut bytes, slot * SLOT_BYTES)?;
            if let Some((number, value)) = decode(&bytes[..read])
                && best.as_ref().is_none_or(|(best, _)| *best < number)
            {
                best = Some((number, value.to_vec()));
            }
        }
        let number = best.as_ref().map_or(0, |(number, _)| *number);
        Ok((Slots { file, path: path.to_owned(), number }, best.map(|(_, value)| value)))
    }

    /// Writes the next value.
    pub(super) fn write(&mut self, value: &[u8], disk: &dyn Disk) -> io::Result<()> {
        assert!(value.len() <= MAX_VALUE_BYTES, "values are of fixed sizes, and smaller");
        let number = self.number + 1;
        let mut bytes = Vec::with_capacity(HEAD_BYTES + value.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&number.to_le_bytes());
        bytes.extend_from_slice(&(value.len() as u32).to_le_bytes());
        bytes.extend_from_slice(value);
        let crc = checksum(0, &bytes[8..]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        disk.write_at(&self.file, &bytes, number % 2 * SLOT_BYTES)?;
        self.number = number;
        Ok(())
    }

    /// Has what was written go to the device.
    pub(super) fn sync(&self, disk: &dyn Disk) -> io::Result<()> {
        disk.sync(&self.file)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// A slot's number and value, if it is valid.
pub(super) fn decode(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<HEAD_BYTES>()?;
    let length = u32::from_le_bytes(head[16..20].try_into().ok()?) as usize;
    let value = rest.get(..length)?;
    let crc = u32::from_le_bytes(head[4..8].try_into().ok()?);
    let right = head[..4] == MAGIC && checksum(0, &bytes[8..HEAD_BYTES + length]) == crc;
    right.then_some((u64::from_le_bytes(head[8..16].try_into().ok()?), value))
}
