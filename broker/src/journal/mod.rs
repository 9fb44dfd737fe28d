//! Messages on disk: a log in segments, durable subscriptions that read it, and `spill`.
//!
//! # One subscriber among many
//!
//! The journal is a subscription of the broker that matches everything, read by one thread, or by a publisher that writes in its place
//! while it sleeps (`scribe.rs`).
//! So memory subscribers never wait for the disk, the order is the broker's, and lanes know nothing of files. What is its own:
//!
//! - It is alone in its group, with the policy *block* and a bound in bytes. Towards publishers that can't wait it turns the new
//!   message away rather than dropping an old one: what is in its queue was accepted, and somebody may be waiting for it.
//! - [`publish`](crate::Broker::publish), `publish_blocking` and `publish_batch` return when the *watermark*, the offset below which
//!   everything is written (with [`Durability::Fsync`]: synced), has passed their message. All that is queued while the thread
//!   writes goes into its next write, and shares its sync. `try_publish`, `publish_now` and their batches don't wait for it.
//!
//! # What is promised, and what may be lost, repeated or reordered
//!
//! - What a publish that waits has acknowledged survives the end of the process at any moment; with `Fsync` a loss of power, too.
//! - A publish that can't be written is refused beforehand, and nobody has the message. The gate (`gate.rs`) knows under the publish lock
//!   what the segments that have room set aside can still take. Segments are allocated one ahead, so a full disk is known before
//!   the room is needed; the thread tries again with pauses. A write that fails is repeated until it works, and meanwhile publishers
//!   that can wait are refused. A publish whose message was queued when that began waits, unless the broker is closed: only then
//!   it fails with a message that memory subscribers may have seen.
//! - Messages of publishers that can't wait go on to memory subscribers in any case. They are queued for the journal while there is
//!   room in memory, else turned away; that becomes a gap, written as a record and told to durable subscriptions.
//! - Durable subscriptions get each message at least once, in order. What was done since the cursor was last saved (twice a second) comes
//!   again after a crash. They never get a message that the journal doesn't have.
//! - What retention has deleted, what was turned away and what is damaged is told as a gap, in its place. How many of the messages
//!   of such a gap would have matched can't be known for what is gone: then `count` is the most that it can be. Offsets that were
//!   passed over after a crash, see below, count too where they lie among deleted segments.
//!
//! # Offsets and ids
//!
//! An id, `<log id>-<offset>`, never stands for two messages, though a memory subscriber may have seen one that a crash kept from
//! being written. So offsets are set aside in `meta`, 65,536 at a time, before they are given out, and whoever opens a journal that was
//! not closed goes on behind all that may have been given out: 1,048,576 further than was set aside, since publishers don't wait for
//! `meta`; after a loss of power 4,294,967,296 further, since `meta` may be an older one. Such a jump is no gap. Should `meta` be unwritable for
//! longer than the first of these lasts, ids in memory carry the broker's own log id again.
//!
//! A journal may be attached late. What was published before has offsets of the broker's own log; what was
//! [held](crate::Broker::hold_for_journal) for it is written under new ones, and the broker's offsets go on behind both.
//!
//! # Files
//!
//! ```text
//! lock                 flock: one process at a time
//! meta                 two slots: what the journal knows about itself
//! segments/<offset>.log    named after the first offset, 20 digits
//! segments/<n>.new     set aside; no reader knows it, deleted when opened
//! cursors/<name>.cursor    two slots: an offset and the name
//! ```
//!
//! Numbers are little-endian. A *slot* (`slots.rs`) is a small value that is rewritten in place, which works on a full disk; the other slot
//! keeps the value before.
//!
//! ```text
//! segment: 64 bytes of header, then records, then zeros up to what was set aside
//!
//!   0           8       12      16      24        32         40      48        56      64
//!   +-----------+-------+-------+-------+---------+----------+-------+---------+-------+---------
//!   |"HBJseg1\n"|CRC32C |salt   |log id |first    |previous  |time   |previous |zeros  |records...
//!   |           |of 12..|       |       |offset   |end       |of it  |jumped   |       |
//!   +-----------+-------+-------+-------+---------+----------+-------+---------+-------+---------
//!
//! record, at a multiple of 8:
//!
//!   0       4       8       12       16      24      32    33   34    35     36
//!   +-------+-------+-------+--------+-------+-------+-----+----+-----+------+----------------------+------+-------+
//!   |"HBr1" |CRC32C |length |payload |offset |time,  |kind |tag |keys |flags |body                  |zeros |"end\n"|
//!   |       |of 8.. |       |length  |       |ms     |     |    |     |      |                      |to 8k |       |
//!   +-------+-------+-------+--------+-------+-------+-----+----+-----+------+----------------------+------+-------+
//!
//!   kind 0, message: end of each key (u16), keys side by side, [flag 1: three lengths (u32), id, source, attributes], payload
//!   kind 1, gap:     last offset (u64), count (u64); `offset` is its first
//! ```
//!
//! `length` is that of header and body. The checksum of a record starts from the *salt*, a secret random number of the journal: a payload can't be
//! made to look like a record where damage has to be skipped. `previous end` tells a segment that is missing from offsets that were
//! passed over; `previous jumped` is how many of those lie between the records of the segment before, which is not read when a journal is
//! opened.
//!
//! # Opening
//!
//! The newest segment is read to its end; older ones are believed until somebody reads them. What isn't a record is skipped up to the
//! next one. Where no other follows it is the end: `"end\n"` as the last bytes that aren't zero show that all of it had been written, so
//! it is damaged, is reported ([`Journal::report`]) and gets a gap record in its place. Without them the write was cut short,
//! so nobody was told that it is safe; it goes without a word. After a clean end `meta` knows where the log ended, so that whatever is
//! missing there counts as damage. A lost `meta` is made anew from the segments; a lost cursor goes back to the oldest message.
//!
//! # Room
//!
//! Segments, with those set aside, take at most [`max_bytes`](JournalOptions::max_bytes); each is a 16th of it, 1 to 64 MiB. The oldest is deleted
//! before the next is set aside, so a journal that has its size goes on on a full disk. A file is cut to nothing before it
//! is deleted: a reader that has it open can't hold its room.
//!
//! # Reading
//!
//! A reader (`reader.rs`) reads chunks of 256 KiB with `pread`, finds its place by a sparse index that fills as segments are read or
//! written, and takes no lock that the writer holds while it writes. Payloads are copied out of the chunk: a few that are kept must not
//! hold all of it. A subscription that spills (`spill.rs`) drops the newest in memory, and where it comes to the gap
//! it reads what is missing from the journal. A durable one is one that spills, and begins with a gap from its cursor to now.
//!
//! # Threads and locks
//!
//! Who writes, the thread `journal` or a publisher in its place, holds the scribe's lock, which comes before all others, and wakes who waits
//! for the watermark. Beyond the locks in `sync.rs`, in this order, behind `Shared::publishing` and before `Member::cursor`: `Log::cursors`, `CursorFile::reader`. Leaves: `Log::segments`, `Log::waiting`, those of a segment and of
//! a cursor's file. With `cursors` held files are read and written; nobody who publishes or reads waits for it.

mod attach;
mod cursor;
mod disk;
mod durable;
mod error;
mod filter;
#[cfg(fuzzing)]
pub mod fuzzing;
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
