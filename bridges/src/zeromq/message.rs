//! Messages made of frames, as the logger and the clients put them together from what arrives.

use std::borrow::Cow;

use bytes::Bytes;

use super::codec::ProtocolError;

/// The frames of one message, in order; at least one.
pub type Frames = Vec<Bytes>;

/// More frames than any message of ours or of a REQ envelope has; the memory of many empty frames must be bounded, too.
const MAX_FRAMES: usize = 64;

/// Puts messages together, within limits.
#[derive(Debug)]
pub(crate) struct Assembler {
    frames: Frames,
    bytes: usize,
    limit: usize,
}

impl Assembler {
    /// Takes messages of up to `limit` bytes in all.
    pub(crate) fn new(limit: usize) -> Self {
        Assembler { frames: Vec::new(), bytes: 0, limit }
    }

    /// Adds a frame; yields the message with its last one.
    pub(crate) fn push(&mut self, more: bool, body: Cow<'_, [u8]>) -> Result<Option<Frames>, ProtocolError> {
        self.bytes += body.len();
        if self.bytes > self.limit {
            return Err(ProtocolError::MessageTooLong { limit: self.limit, unit: "bytes" });
        }
        if self.frames.len() == MAX_FRAMES {
            return Err(ProtocolError::MessageTooLong { limit: MAX_FRAMES, unit: "frames" });
        }
        self.frames.push(match body {
            Cow::Borrowed(body) => Bytes::copy_from_slice(body),
            Cow::Owned(body) => body.into(),
        });
        if more {
            return Ok(None);
        }
        self.bytes = 0;
        Ok(Some(std::mem::take(&mut self.frames)))
    }

    /// How many bytes are held of a message that is not complete.
    pub(crate) fn held_bytes(&self) -> usize {
        self.bytes
    }
}
