//! What the journal knows about itself beside its segments.

use std::io;
use std::path::Path;

use super::disk::Disk;
use super::slots::Slots;
use crate::message::LogId;

/// The version of the format.
pub(super) const VERSION: u32 = 1;
/// Offsets are set aside so many at a time.
pub(super) const RESERVE: u64 = 1 << 16;

/// The content of the file `meta`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) version: u32,
    pub(super) log: LogId,
    /// What checksums of records start from.
    pub(super) salt: u32,
    /// Offsets below it may have been given out.
    pub(super) reserved: u64,
    /// The next offset to be given out, if the journal was closed.
    pub(super) end: Option<u64>,
    /// The offset behind the last record, if it was closed. Less than `end` where offsets were passed over.
    pub(super) written: u64,
    /// The start of the operating system in which this was written.
    pub(super) boot: [u8; 16],
}

impl State {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(64);
        bytes.extend_from_slice(&self.version.to_le_bytes());
        bytes.extend_from_slice(&self.salt.to_le_bytes());
        bytes.extend_from_slice(&self.log.get().to_le_bytes());
        bytes.extend_from_slice(&self.reserved.to_le_bytes());
        bytes.extend_from_slice(&self.end.unwrap_or(0).to_le_bytes()); // no log ends at 0
        bytes.extend_from_slice(&self.boot);
        bytes.extend_from_slice(&self.written.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let number = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let small = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        Some(State {
            version: small(0)?,
            salt: small(4)?,
            log: LogId::new(number(8)?),
            reserved: number(16)?,
            end: number(24).map(|end| (end > 0).then_some(end))?,
            boot: bytes.get(32..48)?.try_into().ok()?,
            written: number(48)?,
        })
    }
}

/// The file `meta`, open.
#[derive(Debug)]
pub(super) struct Meta {
    slots: Slots,
    pub(super) state: State,
}

impl Meta {
    pub(super) fn create(path: &Path, state: State, disk: &dyn Disk) -> io::Result<Self> {
        Ok(Meta { slots: Slots::create(path, &state.encode(), disk)?, state })
    }

    /// Opens it; `None` where it isn't there or can't be read.
    pub(super) fn open(path: &Path) -> io::Result<Option<Self>> {
        match Slots::open(path) {
            Ok((slots, value)) => Ok(value.and_then(|v| State::decode(&v)).map(|state| Meta { slots, state })),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Writes another state, and has it go to the device: ids must stay unique after a loss of power, too.
    pub(super) fn write(&mut self, state: State, disk: &dyn Disk) -> io::Result<()> {
        self.slots.write(&state.encode(), disk)?;
        self.slots.sync(disk)?;
        self.state = state;
        Ok(())
    }
}

/// What tells this start of the operating system from others; zeros where it doesn't say.
pub(super) fn boot_id() -> [u8; 16] {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let mut id = [0; 16];
    for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = std::str::from_utf8(pair).ok().and_then(|p| u8::from_str_radix(p, 16).ok()).unwrap_or(0);
    }
    id
}
