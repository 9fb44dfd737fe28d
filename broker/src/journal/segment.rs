//! A segment: one file of records, with room set aside when it is made.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::disk::read_at_most;
use super::record::checksum;
use crate::message::{LogId, Timestamp};

/// What a file begins with; records follow.
pub(super) const HEADER_BYTES: u64 = 64;
const MAGIC: [u8; 8] = *b"HBJseg1\n";
/// Places in the index of a segment are about so many bytes apart.
const INDEX_BYTES: u64 = 256 << 10;

/// The header of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) log: LogId,
    pub(super) salt: u32,
    /// The offset of its first record.
    pub(super) first: u64,
    /// The offset behind the last record of the segment before; less than `first` where offsets jump between them.
    pub(super) previous: u64,
    /// The time of its first record.
    pub(super) time: Timestamp,
    /// How many offsets were passed over, after crashes, between the records of the segment before.
    pub(super) jumped: u64,
}

impl Header {
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES as usize] {
        let mut bytes = [0; HEADER_BYTES as usize];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[12..16].copy_from_slice(&self.salt.to_le_bytes());
        for (at, number) in [
            (16, self.log.get()),
            (24, self.first),
            (32, self.previous),
            (40, self.time.as_millis()),
            (48, self.jumped),
        ] {
            bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        let crc = checksum(0, &bytes[12..]);
        bytes[8..12].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.first_chunk::<{ HEADER_BYTES as usize }>()?;
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let number = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        let right = bytes[..8] == MAGIC && checksum(0, &bytes[12..]) == u32_at(8);
        right.then(|| Header {
            log: LogId::new(number(16)),
            salt: u32_at(12),
            first: number(24),
            previous: number(32),
            time: Timestamp::from_millis(number(40)),
            jumped: number(48),
        })
    }
}

/// A segment that may be read.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) first: u64,
    pub(super) previous: u64,
    pub(super) first_time: Timestamp,
    pub(super) last_time: AtomicU64,
    pub(super) file: File,
    pub(super) path: PathBuf,
    /// What it takes on the disk, in bytes: what was set aside for it, and once it is complete what was written.
    pub(super) allocated: AtomicU64,
    /// Set before its content goes away.
    pub(super) deleted: AtomicBool,
    written: Mutex<Written>,
    /// Some offsets and where their records are, in order: a record is found by reading on from the last one before it.
    index: Mutex<Vec<(u64, u64)>>,
}

/// How far a segment was written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Written {
    /// Bytes with the header.
    pub(super) bytes: u64,
    /// The offset behind the last record.
    pub(super) next: u64,
}

impl Segment {
    pub(super) fn new(file: File, path: PathBuf, header: &Header, allocated: u64, written: Written) -> Self {
        Segment {
            first: header.first,
            previous: header.previous,
            first_time: header.time,
            last_time: AtomicU64::new(header.time.as_millis()),
            file,
            path,
            allocated: AtomicU64::new(allocated),
            deleted: AtomicBool::new(false),
            written: Mutex::new(written),
            index: Mutex::new(vec![(header.first, HEADER_BYTES)]),
        }
    }

    /// The name of the file of the segment that begins with this offset.
    pub(super) fn file_name(first: u64) -> String {
        format!("{first:020}.log")
    }

    /// The offset in a file's name.
    pub(super) fn first_of(path: &Path) -> Option<u64> {
        let name = path.file_name()?.to_str()?.strip_suffix(".log")?;
        (name.len() == 20 && name.bytes().all(|b| b.is_ascii_digit())).then(|| name.parse().ok())?
    }

    /// Reads the header of a file.
    pub(super) fn read_header(file: &File) -> io::Result<Option<Header>> {
        let mut bytes = [0; HEADER_BYTES as usize];
        let read = read_at_most(file, &mut bytes, 0)?;
        Ok(Header::decode(&bytes[..read]))
    }

    pub(super) fn written(&self) -> Written {
        *self.written.lock()
    }

    /// Lets readers see more; `last_time` is that of the newest record.
    pub(super) fn grow(&self, to: Written, last_time: Timestamp) {
        self.last_time.store(last_time.as_millis(), Ordering::Relaxed);
        *self.written.lock() = to;
    }

    /// A place to read on from, to come to the record of that offset.
    pub(super) fn place_before(&self, offset: u64) -> (u64, u64) {
        let index = self.index.lock();
        let after = index.partition_point(|&(at, _)| at <= offset);
        index[after.saturating_sub(1)]
    }

    /// Notes where a record is, if that place is far enough from those noted before.
    pub(super) fn note(&self, offset: u64, position: u64) {
        let mut index = self.index.lock();
        let far = index.last().is_none_or(|&(last, at)| offset > last && position >= at + INDEX_BYTES);
        if far {
            index.push((offset, position));
        }
    }

    /// Deletes the file. Readers that have it open find that out; the room comes back at once.
    pub(super) fn delete(&self) -> io::Result<()> {
        self.deleted.store(true, Ordering::Release);
        let cut = self.file.set_len(0);
        match std::fs::remove_file(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => cut,
        }
    }
}
