//! The greeting: the 64 bytes with which each side begins.
//!
//! ```text
//!  0        1..9      9        10      11      12..32       32         33..64
//! +------+---------+------+-------+-------+------------+-----------+--------+
//! | 0xFF | padding | 0x7F | major | minor | mechanism  | as-server | filler |
//! +------+---------+------+-------+-------+------------+-----------+--------+
//!   1        8        1       1       1        20            1         31
//! ```
//!
//! libzmq sends the first ten bytes, and the rest only when it has seen ours: it must know whether to fall back to an
//! older version. So we send all 64 at once, as soon as there is a connection, and read theirs as they come.

use super::error::{ProtocolError, printable};

/// The length of a greeting, in bytes.
pub const GREETING_BYTES: usize = 64;

const MECHANISM: std::ops::Range<usize> = 12..32;

/// What a peer said in its greeting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// The major version of ZMTP; 3 or more.
    pub major: u8,
    /// The minor version.
    pub minor: u8,
    /// The name of the security mechanism, padded with zero bytes.
    pub mechanism: [u8; 20],
    /// Whether the peer acts as the server of the security mechanism. Means nothing for NULL.
    pub as_server: bool,
    /// Whether the padding is libzmq's: all zero but the last byte, which is 1.
    pub libzmq: bool,
}

impl Greeting {
    /// A greeting of ours: ZMTP 3.1.
    pub fn ours(mechanism: &str, as_server: bool) -> Self {
        let mut name = [0; 20];
        name.iter_mut().zip(mechanism.bytes()).for_each(|(to, from)| *to = from);
        Greeting { major: 3, minor: 1, mechanism: name, as_server, libzmq: true }
    }

    /// The bytes to send.
    pub fn to_bytes(self) -> [u8; GREETING_BYTES] {
        let mut bytes = [0; GREETING_BYTES];
        bytes[0] = 0xff;
        // The padding is the length of an identity frame to a peer of ZMTP 1.0; libzmq puts 1 there, and so do we.
        bytes[8] = u8::from(self.libzmq);
        bytes[9] = 0x7f;
        bytes[10] = self.major;
        bytes[11] = self.minor;
        bytes[MECHANISM].copy_from_slice(&self.mechanism);
        bytes[32] = u8::from(self.as_server);
        bytes
    }

    /// The mechanism's name without its padding.
    pub fn mechanism_name(&self) -> &[u8] {
        let end = self.mechanism.iter().position(|&b| b == 0).unwrap_or(self.mechanism.len());
        self.mechanism.get(..end).unwrap_or_default()
    }

    pub(super) fn expect_mechanism(&self, ours: &'static str) -> Result<(), ProtocolError> {
        if self.mechanism == Greeting::ours(ours, false).mechanism {
            return Ok(());
        }
        Err(ProtocolError::MechanismMismatch { theirs: printable(self.mechanism_name()), ours })
    }
}

/// Reads a greeting as its bytes come, in whatever pieces. A peer that speaks something else is recognized at the first
/// byte that shows it.
#[derive(Clone, Debug)]
pub struct GreetingReader {
    bytes: [u8; GREETING_BYTES],
    filled: usize,
}

impl Default for GreetingReader {
    fn default() -> Self {
        GreetingReader { bytes: [0; GREETING_BYTES], filled: 0 }
    }
}

impl GreetingReader {
    /// Takes bytes from the front of `input`; yields the greeting when it is complete.
    ///
    /// # Errors
    /// When this is no greeting of ZMTP 3.
    pub fn next(&mut self, input: &mut &[u8]) -> Result<Option<Greeting>, ProtocolError> {
        while self.filled < GREETING_BYTES {
            let Some((&byte, rest)) = input.split_first() else { return Ok(None) };
            *input = rest;
            self.check(self.filled, byte)?;
            self.bytes[self.filled] = byte;
            self.filled += 1;
        }
        let mut mechanism = [0; 20];
        mechanism.copy_from_slice(&self.bytes[MECHANISM]);
        Ok(Some(Greeting {
            major: self.bytes[10],
            minor: self.bytes[11],
            mechanism,
            as_server: self.bytes[32] & 1 == 1,
            libzmq: self.bytes[1..9] == [0, 0, 0, 0, 0, 0, 0, 1],
        }))
    }

    fn check(&self, position: usize, byte: u8) -> Result<(), ProtocolError> {
        match position {
            0 if byte != 0xff => Err(ProtocolError::NotZmtp { position, found: byte }),
            // ZMTP 1.0 has the flags of an identity frame here, whose lowest bit is never set.
            9 if byte & 1 == 0 => Err(ProtocolError::NotZmtp { position, found: byte }),
            10 if byte < 3 => Err(ProtocolError::OldVersion { major: byte.saturating_add(u8::from(byte == 1)) }),
            _ => Ok(()),
        }
    }
}
