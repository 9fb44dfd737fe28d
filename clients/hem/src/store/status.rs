//! How the store stands: what waits, what was lost, and what is wrong.

use std::path::PathBuf;
use std::sync::atomic::AtomicU64;

use parking_lot::Mutex;
use serde::Serialize;

use super::outbox::Filling;

/// The store, as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct StoreStatus {
    /// The file.
    pub path: PathBuf,
    /// How many changes wait to be written, or are being written.
    pub queued: u64,
    /// Their size in bytes, rounded up to 1 KiB each.
    pub queued_bytes: u64,
    /// How much may wait.
    pub queue_max_bytes: u64,
    /// How many transactions were committed since the store was opened.
    pub commits: u64,
    /// How many executions were recorded since then.
    pub executions: u64,
    /// How many changes were lost since then: dropped because the queue was full, because they could never be written, or because the store was
    /// closed while it could not write.
    pub dropped: u64,
    /// How many messages are in the outbox.
    pub outbox_messages: u64,
    /// Their size.
    pub outbox_bytes: u64,
    /// How many messages had to leave the outbox because there was no room, since the file was made.
    pub outbox_dropped: u64,
    /// How many retries wait.
    pub retries: u64,
    /// How many retries were refused since the store was opened, because too many waited.
    pub retries_refused: u64,
    /// Why the last attempt to write failed; nothing as soon as one succeeds.
    pub trouble: Option<StoreTrouble>,
}

/// What keeps the store from writing. It goes on trying.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct StoreTrouble {
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
    /// What is wrong, and what to do.
    pub error: String,
    /// How often it was tried.
    pub attempts: u64,
}

/// What the writer and the handles count together.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) queued: AtomicU64,
    pub(super) commits: AtomicU64,
    pub(super) executions: AtomicU64,
    pub(super) dropped: AtomicU64,
    pub(super) retries_refused: AtomicU64,
    pub(super) committed: Mutex<Committed>,
    pub(super) trouble: Mutex<Option<StoreTrouble>>,
}

/// What is in the file, as of the last commit.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Committed {
    pub(super) outbox: Filling,
    pub(super) retries: u64,
}
