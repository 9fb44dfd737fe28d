//! Messages on disk.

mod attach;
mod cursor;
mod disk;
mod durable;
mod error;
mod filter;
mod log;
mod meta;
mod open;
mod options;
mod reader;
mod record;
mod segment;
mod slots;
mod writer;

pub use attach::{CursorInfo, JournalHandle, JournalHold, JournalStats};
pub use disk::{Disk, SystemDisk};
pub use durable::{DurableSubscription, Lag, Start, UnreadProbe};
pub use error::{JournalError, JournalFault};
pub use open::{Damage, Journal, OpenReport};
pub use options::{Durability, JournalOptions};

pub(crate) use attach::{Attached, Life};
