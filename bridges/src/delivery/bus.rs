//! The contract between the ledger and a bus.

use std::future::Future;

use super::letter::Letter;

/// The number under which a letter is handed to a [`Sender`], and told of by [`Receipts`]. A letter that is sent again has a new
/// one; numbers only grow, over all connections of a bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// A bus that letters are delivered to.
pub trait Bus: Send + 'static {
    /// The end that letters are handed to.
    type Sender: Sender;
    /// The end that tells what became of them.
    type Receipts: Receipts;

    /// What names on this bus have between their parts.
    const SEPARATOR: char;

    /// The longest name that this bus takes, in bytes; longer ones are cut ([`EventName::address`](super::EventName::address)).
    const ADDRESS_BYTES: usize = 1024;

    /// Whether the bus confirms what it has got. Where it doesn't, a letter counts as delivered once it is handed over.
    fn acknowledges(&self) -> bool;

    /// Connects, and makes or checks what letters are sent to (a stream, an exchange). It is called again after each fault, by
    /// a caller that waits in between; it ends by itself within its own time limit, and may be dropped at any await.
    fn connect(&mut self) -> impl Future<Output = Result<(Self::Sender, Self::Receipts), Fault>> + Send;
}

/// What letters are handed to, for as long as one connection lives.
pub trait Sender: Send + 'static {
    /// What the other side takes, as it said when the connection was made.
    fn limits(&self) -> Limits;

    /// Hands a letter over. What became of it is told by [`Receipts`] under the same number, in any order. It may wait while the
    /// connection is busy, and may be dropped meanwhile: then the connection is given up.
    ///
    /// # Errors
    /// When this letter can't be sent, or nothing can.
    fn send(&mut self, ticket: Ticket, letter: &Letter) -> impl Future<Output = Result<(), SendError>> + Send;

    /// Writes out what is buffered. The ledger calls it when it has nothing more to hand over for now.
    fn flush(&mut self) -> impl Future<Output = Result<(), Fault>> + Send {
        async { Ok(()) }
    }

    /// Says goodbye in order; nothing is in flight any more. The caller has a time limit.
    fn close(self) -> impl Future<Output = ()> + Send;
}

/// What tells about letters, for as long as one connection lives.
pub trait Receipts: Send + 'static {
    /// Waits until something is known, then adds all that is known to `into`. Dropping the future loses nothing.
    ///
    /// # Errors
    /// When the connection is gone: what was not told of by then is unknown, and will be sent again.
    fn next(&mut self, into: &mut Vec<Receipt>) -> impl Future<Output = Result<(), Fault>> + Send;
}

/// What a bus tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Receipt {
    /// The bus has this letter, as safely as it promises.
    Confirmed(Ticket),
    /// The bus has it and had it before: a repetition that it has recognised.
    Duplicate(Ticket),
    /// The bus has taken it and nobody is bound for it.
    Unroutable(Ticket),
    /// It isn't for this bus by a condition of its own, so it was not sent. It counts as done.
    Filtered(Ticket),
    /// The bus has refused it.
    Rejected(Ticket, Rejection),
    /// The bus asks for silence, for this reason (a memory alarm, say); letters may wait. `None`: it goes on.
    Blocked(Option<String>),
}

/// Why a letter was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// Sending it again may help: the bus is busy, out of space, or was restarted.
    #[error("{0}")]
    Transient(String),
    /// Sending it again will not help: too large, a name that is not allowed, not permitted.
    #[error("{0}")]
    Permanent(String),
}

/// Why a connection can't be had, or is gone. Everything that was in flight is sent again over the next one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Fault {
    /// What was wrong, where, and what to do, in one line; no secrets.
    pub reason: String,
    /// Whether somebody has to act before it can go well: a password that is refused, a certificate that isn't trusted. It is tried
    /// again all the same, less often.
    pub needs_help: bool,
}

impl Fault {
    /// One that goes by itself.
    pub fn passing(reason: impl Into<String>) -> Self {
        Fault { reason: reason.into(), needs_help: false }
    }

    /// One that somebody has to act on.
    pub fn needs_help(reason: impl Into<String>) -> Self {
        Fault { reason: reason.into(), needs_help: true }
    }
}

/// Why a letter could not be handed over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// This one can't be; the next may.
    #[error(transparent)]
    Letter(#[from] Rejection),
    /// Nothing can: the connection is gone.
    #[error(transparent)]
    Connection(#[from] Fault),
}

/// What the other side takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest letter: name, headers and body together, in bytes, as [`Letter::size_bytes`] counts them.
    pub letter_bytes: usize,
    /// The most letters that may be in flight.
    pub in_flight: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { letter_bytes: usize::MAX, in_flight: usize::MAX }
    }
}
