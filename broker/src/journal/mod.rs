//! Messages on disk.

mod attach;
mod cursor;
mod disk;
mod durable;
mod error;
mod filter;
mod gate;
mod log;
mod meta;
mod open;
mod options;
mod reader;
mod record;
mod scribe;
mod segment;
mod slots;
mod spill;
mod writer;

pub use attach::{CursorInfo, JournalHandle, JournalHold, JournalStats};
pub use disk::{Disk, SystemDisk};
pub use durable::{DurableSubscription, Lag, Start, UnreadProbe};
pub use error::{JournalError, JournalFault};
pub use open::{Damage, Journal, OpenReport};
pub use options::{Durability, JournalOptions};

pub(crate) use attach::{Attached, Life};
pub(crate) use gate::{Gate, size as record_size};
pub(crate) use spill::{Filled, Spill};
