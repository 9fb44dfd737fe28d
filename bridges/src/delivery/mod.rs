//! What all buses share: how an event becomes a [`Letter`], and what a bus has to offer so that letters are delivered to it at
//! least once.
//!
//! A bus is three things: [`Bus`] connects, its [`Sender`] hands letters to the client library, its [`Receipts`] tell what became
//! of them. Everything else (window, cursor, order, repetition, back-off, dead letters, drain) is the same for all buses and is
//! done here, once.

mod bus;
mod letter;
mod name;

pub use bus::{Bus, Fault, Limits, Receipt, Receipts, Rejection, SendError, Sender, Ticket};
pub use letter::{Letter, LetterWriter, Unwritable};
pub use name::EventName;
