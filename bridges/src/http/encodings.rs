//! Events that were encoded a moment ago.
//!
//! Making a CloudEvent of an event parses its XML and takes tens of microseconds. A thousand followers of the same events would each
//! do that. The newest encodings are kept, in a few megabytes, and found by offset; a follower that is far behind makes its own.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use hookbus_broker::Offset;
use parking_lot::Mutex;

use crate::cloudevents::Format;

/// The newest encodings.
#[derive(Debug)]
pub(crate) struct Encodings {
    kept: Mutex<Kept>,
    max_bytes: usize,
}

#[derive(Debug, Default)]
struct Kept {
    encoded: HashMap<(Offset, Format), Bytes>,
    /// Oldest first.
    order: VecDeque<(Offset, Format)>,
    bytes: usize,
}

impl Encodings {
    pub(crate) fn new(max_bytes: usize) -> Self {
        Encodings { kept: Mutex::default(), max_bytes }
    }

    /// The encoding of an event, made unless it is there. Two that ask at the same moment may both make it.
    pub(crate) fn get(&self, offset: Offset, format: Format, make: impl FnOnce() -> Bytes) -> Bytes {
        let key = (offset, format);
        if let Some(encoded) = self.kept.lock().encoded.get(&key) {
            return encoded.clone();
        }
        let encoded = make();
        if encoded.len() > self.max_bytes / 4 {
            return encoded;
        }
        let mut kept = self.kept.lock();
        if kept.encoded.insert(key, encoded.clone()).is_none() {
            kept.order.push_back(key);
            kept.bytes += encoded.len();
        }
        while kept.bytes > self.max_bytes {
            let Some(oldest) = kept.order.pop_front() else { break };
            if let Some(gone) = kept.encoded.remove(&oldest) {
                kept.bytes -= gone.len();
            }
        }
        encoded
    }

    /// Forgets all; nobody follows any more.
    pub(crate) fn clear(&self) {
        *self.kept.lock() = Kept::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_encoding_is_made_once_while_it_is_among_the_newest() {
        let encodings = Encodings::new(100);
        let mut made = 0;
        let mut get = |offset: u64, bytes: usize| {
            encodings.get(Offset::new(offset), Format::CloudEvents, || {
                made += 1;
                vec![b'x'; bytes].into()
            })
        };
        for offset in [1, 2, 3, 4, 1, 4] {
            assert_eq!(get(offset, 25).len(), 25);
        }
        get(5, 25);
        // 1 had to go for 5, and what is larger than a quarter is not kept at all.
        get(1, 25);
        get(6, 26);
        get(6, 26);
        assert_eq!(made, 4 + 1 + 1 + 2);
        assert!(encodings.kept.lock().bytes <= 100);
        encodings.clear();
        assert_eq!(encodings.kept.lock().bytes, 0);
    }
}
