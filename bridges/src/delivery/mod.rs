//! What all buses share: how an event becomes a [`Letter`], and what a bus has to offer so that letters are delivered to it at
//! least once.
//!
//! A bus is three things: [`Bus`] connects, its [`Sender`] hands letters to the client library, its [`Receipts`] tell what became
//! of them. Everything else (window, cursor, order, repetition, back-off, dead letters, drain) is the same for all buses and is
//! done here, once; `docs/bridges.md` is the contract between the two.

mod backoff;
mod bridge;
mod bus;
mod cemetery;
mod dead_letters;
mod feed;
mod ledger;
mod letter;
mod line;
mod name;
mod parcel;
mod status;

pub use backoff::Backoff;
pub use bridge::{Abandoned, Bridge, BridgeHandle, BridgeOptions, BridgeReporter};
pub use bus::{Bus, Fault, Limits, Receipt, Receipts, Rejection, SendError, Sender, Ticket};
pub use dead_letters::{DeadLetter, DeadLetterLimits, DeadLetters, DeadLettersError, FILE_NAME, Fallen, Which};
pub use feed::{Feed, FeedStats, Probe};
pub use ledger::{Condemned, Ledger, Place, Window};
pub use letter::{Letter, LetterWriter, Unwritable, Unwritten};
pub use name::EventName;
pub use status::{BridgeState, BridgeStatus, Counts, Guarantee};
