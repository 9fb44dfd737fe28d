//! What a peer can do wrong.

use thiserror::Error;

/// Why a connection can't go on: what the peer sent that ZMTP, or one of our limits, does not allow. The connection is
/// closed; nobody else is concerned.
///
/// Text that comes from the peer is escaped and cut before it is shown, so that it is safe in a log.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// The first bytes are no ZMTP signature: some other protocol, or ZMTP 1.0.
    #[error("it does not speak ZMTP 2 or later: byte {position} of its greeting is {found:#04x}")]
    NotZmtp {
        /// Which byte of the greeting, counted from 0.
        position: usize,
        /// What it is.
        found: u8,
    },
    /// ZMTP 2.0, spoken by libzmq 3 and older.
    #[error("it speaks ZMTP {major}; 3.0 or later is needed (libzmq 4 and later)")]
    OldVersion {
        /// The major version that it announced.
        major: u8,
    },
    /// The two sides are set up for different security mechanisms.
    #[error("it uses the security mechanism `{theirs}` where we use `{ours}`")]
    MechanismMismatch {
        /// The name in its greeting.
        theirs: String,
        /// The name in ours.
        ours: &'static str,
    },
    /// A frame whose flags have a bit set that no version defines, or bits that exclude each other.
    #[error("it sent a frame with the flags {flags:#04x}, which have no meaning")]
    BadFlags {
        /// The first byte of the frame.
        flags: u8,
    },
    /// A frame over the limit. Nothing was allocated for it.
    #[error("it announced a frame of {length} bytes; the limit here is {limit}")]
    FrameTooLong {
        /// The length that it announced, in bytes.
        length: u64,
        /// The limit, in bytes.
        limit: usize,
    },
    /// A message of more frames, or of more bytes in all, than we take.
    #[error("it sent a message of more than {limit} {unit}")]
    MessageTooLong {
        /// The limit.
        limit: usize,
        /// What is counted: `frames` or `bytes`.
        unit: &'static str,
    },
    /// A message before the handshake was over.
    #[error("it sent a message before the handshake was over")]
    EarlyMessage,
    /// A command that does not belong at this place of the handshake.
    #[error("it sent the command `{name}` where the handshake expects `{expected}`")]
    UnexpectedCommand {
        /// The name of the command.
        name: String,
        /// The name of the command that belongs there.
        expected: &'static str,
    },
    /// A command whose inside is not well-formed.
    #[error("it sent a malformed {command} command: {what}")]
    BadCommand {
        /// The name of the command.
        command: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A socket type that can't talk to ours.
    #[error("its socket is of type `{theirs}`, which does not go with our {ours}")]
    WrongSocketType {
        /// The type in its metadata.
        theirs: String,
        /// Our own.
        ours: &'static str,
    },
    /// The peer refused us.
    #[error("it refused the connection: `{reason}`")]
    Refused {
        /// The reason in its ERROR command.
        reason: String,
    },
    /// More subscriptions than a peer may have.
    #[error("it has more than {limit} subscriptions")]
    TooManyFilters {
        /// The limit.
        limit: usize,
    },
    /// Subscriptions of more bytes than a peer may have.
    #[error("its subscriptions have more than {limit} bytes in all")]
    FiltersTooLong {
        /// The limit, in bytes.
        limit: usize,
    },
    /// A request or reply without the empty frame that ends its envelope.
    #[error("it sent a message without the empty frame that REQ puts before the body")]
    NoDelimiter,
}

/// Text from a peer, made safe to show: escaped, and cut after 64 bytes.
pub(crate) fn printable(text: &[u8]) -> String {
    const SHOWN: usize = 64;
    let shown = text.get(..SHOWN).unwrap_or(text);
    let dots = if text.len() > SHOWN { "..." } else { "" };
    format!("{}{dots}", shown.escape_ascii())
}
