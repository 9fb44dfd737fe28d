//! Security mechanisms: what happens between the greeting and the first message.
//!
//! NULL is the only one so far: both sides send READY, and everything is in the clear. The others have their place
//! here:
//!
//! - PLAIN (RFC 24) is another [`Mechanism`]: HELLO with name and password, WELCOME, INITIATE with the metadata, READY;
//!   refused with ERROR. Its server side sends nothing in [`Handshake::start`].
//! - CURVE (RFC 25, 26) does the same with keys, and afterwards wraps every frame into a MESSAGE command. Besides a
//!   handshake it needs to open frames behind [`FrameReader`](super::FrameReader) and to seal them where they are put
//!   together. A server that seals for each peer can't share encoded heads or payloads between peers; nothing here
//!   assumes that it can.

use std::fmt;

use super::command::{Command, Metadata};
use super::error::{ProtocolError, printable};

/// A security mechanism, as one side is set up for it.
pub trait Mechanism: Send + Sync + fmt::Debug {
    /// Its name in the greeting, at most 20 bytes.
    fn name(&self) -> &'static str;

    /// Whether we are its server; goes into the greeting.
    fn as_server(&self) -> bool {
        false
    }

    /// Begins a handshake with one peer.
    fn begin(&self) -> Box<dyn Handshake>;
}

/// One handshake with one peer.
pub trait Handshake: Send + fmt::Debug {
    /// Appends to `out` what we say first, once both greetings have been exchanged.
    fn start(&mut self, ours: &Metadata, out: &mut Vec<u8>);

    /// Takes a command of the peer, and appends the answer to `out`. When the handshake is over, returns the peer's
    /// metadata.
    ///
    /// # Errors
    /// When the peer is refused, or refuses us.
    fn command(
        &mut self,
        command: Command<'_>,
        ours: &Metadata,
        out: &mut Vec<u8>,
    ) -> Result<Option<Metadata>, ProtocolError>;
}

/// No security: for trusted networks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Null;

impl Mechanism for Null {
    fn name(&self) -> &'static str {
        "NULL"
    }

    fn begin(&self) -> Box<dyn Handshake> {
        Box::new(NullHandshake)
    }
}

#[derive(Debug)]
struct NullHandshake;

impl Handshake for NullHandshake {
    fn start(&mut self, ours: &Metadata, out: &mut Vec<u8>) {
        ours.put_ready(out);
    }

    fn command(
        &mut self,
        command: Command<'_>,
        _ours: &Metadata,
        _out: &mut Vec<u8>,
    ) -> Result<Option<Metadata>, ProtocolError> {
        match command {
            Command::Ready(metadata) => Metadata::parse(metadata).map(Some),
            Command::Error(reason) => Err(ProtocolError::Refused { reason: printable(reason) }),
            other => Err(ProtocolError::UnexpectedCommand { name: other.name(), expected: "READY" }),
        }
    }
}
