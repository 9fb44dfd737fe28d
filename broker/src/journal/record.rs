//! A record: one message, or one gap, as it stands in a segment. The byte diagram is on the page of the parent module.
//!
//! What is decoded here may be anything: a disk that went bad, or a payload that was made to look like a record. So every
//! length is checked, and the checksum starts from a secret number of the journal, the *salt*: nobody who may publish can write
//! what we would take for a record of our own.

use std::sync::Arc;

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest};

use crate::message::{Gap, Keys, MAX_KEYS, MAX_KEYS_BYTES, Offset, Origin, Timestamp};

/// The first four bytes of a record.
const MAGIC: [u8; 4] = *b"HBr1";
/// The last four bytes of a record. Pages are written in order, so where they stand, all of the record was written once.
pub(super) const TRAILER: [u8; 4] = *b"end\n";
/// Bytes before the ends of the keys.
pub(super) const HEAD_BYTES: usize = 36;
/// Records begin at multiples of this.
pub(super) const ALIGN: usize = 8;
/// What a gap takes, in bytes.
pub(super) const GAP_BYTES: usize = (HEAD_BYTES + 16 + TRAILER.len()).next_multiple_of(ALIGN);

const KIND_MESSAGE: u8 = 0;
const KIND_GAP: u8 = 1;
const FLAG_ORIGIN: u8 = 1;

/// What a record is made from.
pub(crate) struct Fields<'a> {
    pub(crate) offset: u64,
    pub(crate) time: Timestamp,
    pub(crate) tag: u8,
    /// The keys side by side, and where each ends.
    pub(crate) keys: &'a [u8],
    pub(crate) ends: &'a mut dyn ExactSizeIterator<Item = u16>,
    pub(crate) origin: Option<&'a Origin>,
    pub(crate) payload: &'a [u8],
}

/// The bytes that a message takes in a segment.
pub(crate) fn message_bytes(keys: usize, keys_bytes: usize, origin: Option<&Origin>, payload: usize) -> u64 {
    let origin = origin.map_or(0, |o| 12 + o.id.len() as u64 + o.source.len() as u64 + o.attributes.len() as u64);
    let length = (HEAD_BYTES + 2 * keys + keys_bytes + TRAILER.len()) as u64 + origin + payload as u64;
    length.next_multiple_of(ALIGN as u64)
}

/// Appends a message's record. It must be shorter than 4 GiB, as all are that fit into a segment.
pub(crate) fn put_message(out: &mut Vec<u8>, salt: u32, fields: Fields<'_>) {
    let start = begin(out, fields.offset, fields.time, fields.payload.len());
    let count = fields.ends.len() as u8; // fits: at most MAX_KEYS
    out.extend_from_slice(&[KIND_MESSAGE, fields.tag, count, if fields.origin.is_some() { FLAG_ORIGIN } else { 0 }]);
    for end in fields.ends {
        out.extend_from_slice(&end.to_le_bytes());
    }
    out.extend_from_slice(fields.keys);
    if let Some(origin) = fields.origin {
        let parts = [&origin.id, &origin.source, &origin.attributes];
        for part in parts {
            out.extend_from_slice(&(part.len() as u32).to_le_bytes()); // fits: the record is shorter than 4 GiB
        }
        parts.iter().for_each(|part| out.extend_from_slice(part.as_bytes()));
    }
    out.extend_from_slice(fields.payload);
    finish(out, start, salt);
}

/// Appends a gap's record.
pub(crate) fn put_gap(out: &mut Vec<u8>, salt: u32, gap: Gap, time: Timestamp) {
    let start = begin(out, gap.first.get(), time, 0);
    out.extend_from_slice(&[KIND_GAP, 0, 0, 0]);
    out.extend_from_slice(&gap.last.get().to_le_bytes());
    out.extend_from_slice(&gap.count.to_le_bytes());
    finish(out, start, salt);
}

fn begin(out: &mut Vec<u8>, offset: u64, time: Timestamp, payload: usize) -> usize {
    let start = out.len();
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[0; 8]); // checksum and length: known at the end
    out.extend_from_slice(&(payload as u32).to_le_bytes()); // fits: checked at publish
    out.extend_from_slice(&offset.to_le_bytes());
    out.extend_from_slice(&time.as_millis().to_le_bytes());
    start
}

fn finish(out: &mut Vec<u8>, start: usize, salt: u32) {
    let length = out.len() - start;
    out[start + 8..start + 12].copy_from_slice(&(length as u32).to_le_bytes());
    let crc = checksum(salt, &out[start + 8..]);
    out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    let end = start + padded(length);
    out.resize(end - TRAILER.len(), 0);
    out.extend_from_slice(&TRAILER);
}

/// Makes a record of what follows its first 12 bytes.
#[cfg(fuzzing)]
pub(super) fn seal(bytes: &mut Vec<u8>, salt: u32) {
    if bytes.len() >= HEAD_BYTES {
        bytes[..4].copy_from_slice(&MAGIC);
        finish(bytes, 0, salt);
    }
}

/// A record's length with its end, in bytes.
fn padded(length: usize) -> usize {
    (length + TRAILER.len()).next_multiple_of(ALIGN)
}

/// The CRC-32C (Castagnoli, as in iSCSI) of what has the CRC-32C `start`, followed by `bytes`.
pub(super) fn checksum(start: u32, bytes: &[u8]) -> u32 {
    let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc32Iscsi, u64::from(!start));
    digest.update(bytes);
    digest.finalize() as u32 // it has 32 bits
}

/// What stands at a place in a segment.
#[derive(Debug)]
pub(crate) enum Found<'a> {
    /// A record, which takes that many bytes.
    Record(Stored<'a>, usize),
    /// The beginning of what may be a record of that many bytes; all of them are needed to tell.
    More(usize),
    /// Something else.
    Nothing,
}

/// A record that was read and checked.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stored<'a> {
    Message(StoredMessage<'a>),
    Gap(Gap, Timestamp),
}

/// A message in a buffer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StoredMessage<'a> {
    pub(crate) offset: u64,
    pub(crate) time: Timestamp,
    pub(crate) tag: u8,
    /// Two bytes for each key.
    ends: &'a [u8],
    keys: &'a [u8],
    /// Three strings side by side, and their lengths.
    origin: Option<([usize; 3], &'a [u8])>,
    payload: &'a [u8],
}

/// Looks at what stands at the beginning of `bytes`. `longest` is how much there could be at most: to the end of the segment.
pub(crate) fn decode(bytes: &[u8], longest: usize, salt: u32) -> Found<'_> {
    let Some((head, _)) = bytes.split_first_chunk::<HEAD_BYTES>() else {
        let begins = bytes.iter().zip(MAGIC).all(|(&a, b)| a == b);
        return if begins && longest >= HEAD_BYTES { Found::More(HEAD_BYTES) } else { Found::Nothing };
    };
    if head[..4] != MAGIC {
        return Found::Nothing;
    }
    let length = u32_at(head, 8) as usize;
    let total = padded(length);
    if length < HEAD_BYTES || total > longest {
        return Found::Nothing;
    }
    let Some(whole) = bytes.get(..total) else { return Found::More(total) };
    // The trailer doesn't count: where the checksum is right, nothing is missing.
    if checksum(salt, &whole[8..length]) != u32_at(head, 4) {
        return Found::Nothing;
    }
    parse(&whole[..length], head).map_or(Found::Nothing, |stored| Found::Record(stored, total))
}

/// The record in `whole`, all of which [`decode`] has found to be one.
pub(crate) fn decoded(whole: &[u8]) -> Option<Stored<'_>> {
    let head = whole.first_chunk::<HEAD_BYTES>()?;
    parse(whole.get(..u32_at(head, 8) as usize)?, head)
}

/// The size of the record that seems to begin here, by no more than its first bytes.
pub(super) fn candidate(bytes: &[u8], longest: usize) -> Option<usize> {
    let head = bytes.first_chunk::<HEAD_BYTES>().filter(|head| head[..4] == MAGIC)?;
    let length = u32_at(head, 8) as usize;
    Some(padded(length)).filter(|&total| length >= HEAD_BYTES && total <= longest)
}

/// Takes a record apart whose checksum is right. `None` all the same where it doesn't add up: it was not written by us.
fn parse<'a>(record: &'a [u8], head: &[u8; HEAD_BYTES]) -> Option<Stored<'a>> {
    let (offset, time) = (u64_at(head, 16), Timestamp::from_millis(u64_at(head, 24)));
    let [kind, tag, count, flags] = [head[32], head[33], head[34], head[35]];
    let body = &record[HEAD_BYTES..];
    match kind {
        KIND_GAP => {
            let body: &[u8; 16] = body.try_into().ok()?;
            let (last, count) = (u64_at(body, 0), u64_at(body, 8));
            let gap = Gap { first: Offset::new(offset), last: Offset::new(last), count };
            (last >= offset && last < u64::MAX).then_some(Stored::Gap(gap, time))
        }
        KIND_MESSAGE => {
            let count = usize::from(count);
            let (ends, body) = body.split_at_checked(2 * count).filter(|_| count <= MAX_KEYS)?;
            let mut end = 0;
            for next in ends.chunks_exact(2).map(end_of) {
                end = Some(next).filter(|&next| next >= end)?;
            }
            let (keys, body) = body.split_at_checked(end)?;
            let (origin, body) = if flags & FLAG_ORIGIN == 0 {
                (None, body)
            } else {
                let (lengths, body) = body.split_first_chunk::<12>()?;
                let lengths = [0, 4, 8].map(|at| u32_at(lengths, at) as usize);
                let (strings, body) =
                    body.split_at_checked(lengths.iter().try_fold(0usize, |n, &l| n.checked_add(l))?)?;
                (Some((lengths, strings)), body)
            };
            let payload = (body.len() == u32_at(head, 12) as usize).then_some(body)?;
            let known = offset < u64::MAX;
            known.then_some(Stored::Message(StoredMessage { offset, time, tag, ends, keys, origin, payload }))
        }
        _ => None,
    }
}

fn end_of(bytes: &[u8]) -> usize {
    usize::from(u16::from_le_bytes([bytes[0], bytes[1]]))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

impl Stored<'_> {
    /// The offset of the record: of the message, or the first of the gap.
    pub(crate) fn first(&self) -> u64 {
        match self {
            Stored::Message(message) => message.offset,
            Stored::Gap(gap, _) => gap.first.get(),
        }
    }

    /// The offset behind the record.
    pub(crate) fn next(&self) -> u64 {
        match self {
            Stored::Message(message) => message.offset + 1,
            Stored::Gap(gap, _) => gap.last.get() + 1,
        }
    }

    pub(crate) fn time(&self) -> Timestamp {
        match self {
            Stored::Message(message) => message.time,
            Stored::Gap(_, time) => *time,
        }
    }
}

impl<'a> StoredMessage<'a> {
    pub(crate) fn keys(&self) -> impl Iterator<Item = &'a [u8]> {
        let (keys, mut start) = (self.keys, 0);
        self.ends.chunks_exact(2).map(end_of).map(move |end| {
            let key = &keys[start..end];
            start = end;
            key
        })
    }

    /// What the message counts against limits in bytes.
    pub(crate) fn counted_bytes(&self) -> usize {
        self.keys.len() + self.payload.len()
    }

    pub(crate) fn copy_keys(&self) -> Keys {
        let mut keys = Keys::default();
        self.keys().for_each(|key| keys.push(key));
        keys
    }

    pub(crate) fn copy_payload(&self) -> Bytes {
        Bytes::copy_from_slice(self.payload)
    }

    pub(crate) fn copy_origin(&self) -> Option<Arc<Origin>> {
        let (lengths, mut strings) = self.origin?;
        let mut parts = lengths.map(|length| {
            let (part, rest) = strings.split_at(length);
            strings = rest;
            // Only what was a string is written; and a record that isn't ours must not make us panic.
            String::from_utf8_lossy(part).into_owned().into_boxed_str()
        });
        let [id, source, attributes] = &mut parts;
        Some(Arc::new(Origin {
            id: std::mem::take(id),
            source: std::mem::take(source),
            attributes: std::mem::take(attributes),
        }))
    }
}

const _: () = assert!(MAX_KEYS <= u8::MAX as usize && MAX_KEYS_BYTES <= u16::MAX as usize);

#[cfg(test)]
mod tests {
    use super::checksum;

    /// What is on disks must be read for ever. The check value is that of CRC catalogues; 32 zeros are in RFC 3720, appendix B.4.
    #[test]
    fn the_checksum_is_crc_32c() {
        assert_eq!(checksum(0, b"123456789"), 0xe306_9283);
        assert_eq!(checksum(0, &[0; 32]), 0x8a91_36aa);
        assert_eq!(checksum(checksum(0, b"12345"), b"6789"), 0xe306_9283, "it goes on where the first part ended");
    }
}
