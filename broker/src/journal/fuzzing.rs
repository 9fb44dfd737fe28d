//! What the fuzz targets see of the file format.

use super::record::{self, Fields, Found, Stored, decode};
use super::{segment, slots};

/// Looks for a record at the beginning. Returns how many bytes it takes and, of a message, what would be written for it.
pub fn record(bytes: &[u8], salt: u32) -> Option<(Option<Vec<u8>>, usize)> {
    let Found::Record(stored, size) = decode(bytes, bytes.len(), salt) else { return None };
    assert!(stored.next() > stored.first());
    let Stored::Message(message) = stored else { return Some((None, size)) };
    let (keys, origin, payload) = (message.copy_keys(), message.copy_origin(), message.copy_payload());
    let mut written = Vec::new();
    let fields = Fields {
        offset: message.offset,
        time: message.time,
        tag: message.tag,
        keys: &keys.bytes,
        ends: &mut keys.ends.iter().map(|&end| end as u16),
        origin: origin.as_deref(),
        payload: &payload,
    };
    record::put_message(&mut written, salt, fields);
    let expected = record::message_bytes(keys.ends.len(), keys.bytes.len(), origin.as_deref(), payload.len());
    assert_eq!(written.len() as u64, expected);
    Some((Some(written), size))
}

/// Puts length and checksum of a record right.
pub fn seal(bytes: &mut Vec<u8>, salt: u32) {
    record::seal(bytes, salt);
}

/// Looks for a header of a segment, and for a slot.
pub fn headers(bytes: &[u8]) {
    let _ = (segment::Header::decode(bytes), slots::decode(bytes));
}
