//! How a journal is set up.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::disk::{Disk, SystemDisk};
use crate::clock::{Clock, SystemClock};

/// When a message counts as journaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Durability {
    /// The operating system has it: survives the end of this process, however it comes.
    #[default]
    Os,
    /// The device has it: survives a loss of power. All that comes while it is being written shares the next write.
    Fsync,
}

/// How a journal is set up.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct JournalOptions {
    /// Its directory; made if it isn't there. One process at a time has it open.
    pub path: PathBuf,
    /// The most that segments take on the disk, in bytes; the oldest goes where a new one would exceed it. At least
    /// [`MIN_BYTES`](JournalOptions::MIN_BYTES); 1 GiB unless set.
    pub max_bytes: u64,
    /// Segments whose messages are all older than this are deleted. No limit unless set.
    pub max_age: Option<Duration>,
    /// When a message counts as journaled.
    pub durability: Durability,
    /// The most that may wait to be written, in bytes of keys and payloads; beyond it publishers wait. Unless set, a quarter of
    /// the broker's [`max_bytes`](crate::BrokerOptions::max_bytes), at most 64 MiB.
    pub queue_bytes: Option<usize>,
    /// Where the time comes from.
    pub clock: Arc<dyn Clock>,
    /// What is done to files.
    pub disk: Arc<dyn Disk>,
}

impl JournalOptions {
    /// The smallest [`max_bytes`](JournalOptions::max_bytes).
    pub const MIN_BYTES: u64 = 4 << 20;

    /// A journal in that directory.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        JournalOptions {
            path: path.into(),
            max_bytes: 1 << 30,
            max_age: None,
            durability: Durability::Os,
            queue_bytes: None,
            clock: Arc::new(SystemClock),
            disk: Arc::new(SystemDisk),
        }
    }

    /// Sets the most that segments take on the disk, in bytes.
    #[must_use]
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// Sets how old messages may become.
    #[must_use]
    pub fn max_age(mut self, age: Duration) -> Self {
        self.max_age = Some(age);
        self
    }

    /// Sets when a message counts as journaled.
    #[must_use]
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Sets the most that may wait to be written, in bytes.
    #[must_use]
    pub fn queue_bytes(mut self, bytes: usize) -> Self {
        self.queue_bytes = Some(bytes);
        self
    }

    /// Sets the clock.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Sets what is done to files.
    #[must_use]
    pub fn disk(mut self, disk: Arc<dyn Disk>) -> Self {
        self.disk = disk;
        self
    }

    /// The size of a segment, in bytes: a 16th of all.
    pub(super) fn segment_bytes(&self) -> u64 {
        (self.max_bytes / 16).clamp(1 << 20, 64 << 20)
    }
}
