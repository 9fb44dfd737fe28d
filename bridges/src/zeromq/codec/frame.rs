//! Frames: what everything behind the greeting is made of.
//!
//! ```text
//! +-------+--------------------------------+-------------+
//! | flags | length: 1 byte, or 8 if LONG   | body        |      flags: bit 0 MORE, bit 1 LONG, bit 2 COMMAND,
//! +-------+--------------------------------+-------------+             all others zero
//! ```
//!
//! A message is one or more frames, all but the last with MORE; a command is one frame. Lengths of eight bytes are
//! big-endian, and are valid for short bodies, too.

use std::borrow::Cow;

use super::error::ProtocolError;

/// More frames of this message follow.
pub const MORE: u8 = 1;
/// The length has eight bytes.
pub const LONG: u8 = 2;
/// The frame is a command, no part of a message.
pub const COMMAND: u8 = 4;

/// The longest head of a frame, in bytes.
pub const MAX_HEAD_BYTES: usize = 9;

/// A frame that was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Whether more frames of the same message follow.
    pub more: bool,
    /// Whether it is a command.
    pub command: bool,
    /// What is in it; borrowed from the input where it came in one piece.
    pub body: Cow<'a, [u8]>,
}

/// Appends the head of a frame with `length` bytes of body; `flags` are [`MORE`] or [`COMMAND`] or 0.
#[inline]
pub fn put_head(out: &mut Vec<u8>, flags: u8, length: usize) {
    if let Ok(length) = u8::try_from(length) {
        out.extend_from_slice(&[flags, length]);
    } else {
        let [a, b, c, d, e, f, g, h] = (length as u64).to_be_bytes();
        out.extend_from_slice(&[flags | LONG, a, b, c, d, e, f, g, h]);
    }
}

/// Appends a whole frame.
pub fn put_frame(out: &mut Vec<u8>, flags: u8, body: &[u8]) {
    put_head(out, flags, body.len());
    out.extend_from_slice(body);
}

/// Cuts a stream of bytes into frames, in whatever pieces it comes. A frame that is not complete is kept, and takes
/// memory as its bytes arrive: an announced length alone costs nothing, and one over the limit is refused when it is
/// announced.
#[derive(Debug)]
pub struct FrameReader {
    limit: usize,
    head: [u8; MAX_HEAD_BYTES],
    head_filled: usize,
    body: Vec<u8>,
}

impl FrameReader {
    /// A reader that refuses frames with a body over `limit` bytes.
    pub fn new(limit: usize) -> Self {
        FrameReader { limit, head: [0; MAX_HEAD_BYTES], head_filled: 0, body: Vec::new() }
    }

    /// Sets the limit, for frames that are announced from now on.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// How many bytes of a frame that is not complete are kept.
    pub fn held_bytes(&self) -> usize {
        self.head_filled + self.body.len()
    }

    /// What is allocated for a frame that is not complete.
    #[cfg(test)]
    pub(super) fn allocated_bytes(&self) -> usize {
        self.body.capacity()
    }

    /// Takes bytes from the front of `input`; yields a frame when one is complete.
    ///
    /// # Errors
    /// When the flags make no sense, or the frame is over the limit. The reader can't be used after an error.
    #[inline]
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Frame<'a>>, ProtocolError> {
        if self.head_filled == 0 {
            // The usual case: a whole frame, or several, came in one read.
            if let Some((head, length)) = self.parse_head(input)?
                && let Some((body, rest)) = input.get(head..).and_then(|behind| behind.split_at_checked(length))
            {
                let flags = input[0];
                *input = rest;
                return Ok(Some(frame(flags, Cow::Borrowed(body))));
            }
        }
        self.next_in_pieces(input)
    }

    /// The length of the head and of the body, if `bytes` begin with a whole head.
    fn parse_head(&self, bytes: &[u8]) -> Result<Option<(usize, usize)>, ProtocolError> {
        let Some((&flags, behind)) = bytes.split_first() else { return Ok(None) };
        if flags & !(MORE | LONG | COMMAND) != 0 || flags & (MORE | COMMAND) == MORE | COMMAND {
            return Err(ProtocolError::BadFlags { flags });
        }
        let (head, length) = if flags & LONG == 0 {
            let Some(&length) = behind.first() else { return Ok(None) };
            (2, u64::from(length))
        } else {
            let Some(length) = behind.first_chunk() else { return Ok(None) };
            (9, u64::from_be_bytes(*length))
        };
        match usize::try_from(length) {
            Ok(length) if length <= self.limit => Ok(Some((head, length))),
            _ => Err(ProtocolError::FrameTooLong { length, limit: self.limit }),
        }
    }

    #[cold]
    fn next_in_pieces<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Frame<'a>>, ProtocolError> {
        let length = loop {
            if let Some((head, length)) = self.parse_head(&self.head[..self.head_filled])?
                && head == self.head_filled
            {
                break length;
            }
            let Some((&byte, rest)) = input.split_first() else { return Ok(None) };
            *input = rest;
            self.head[self.head_filled] = byte;
            self.head_filled += 1;
        };
        let missing = length - self.body.len();
        let (part, rest) = input.split_at(missing.min(input.len()));
        *input = rest;
        let wanted = self.body.len() + part.len();
        if wanted > self.body.capacity() {
            // Doubles like any Vec, but never beyond the frame.
            let capacity = wanted.max(self.body.capacity() * 2).min(length);
            self.body.reserve_exact(capacity - self.body.len());
        }
        self.body.extend_from_slice(part);
        if self.body.len() < length {
            return Ok(None);
        }
        self.head_filled = 0;
        Ok(Some(frame(self.head[0], Cow::Owned(std::mem::take(&mut self.body)))))
    }
}

fn frame(flags: u8, body: Cow<'_, [u8]>) -> Frame<'_> {
    Frame { more: flags & MORE != 0, command: flags & COMMAND != 0, body }
}
