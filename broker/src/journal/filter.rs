//! A set of prefixes, for messages that come from the journal.

use std::sync::Arc;

use super::log::Log;
use super::reader::{Reader, Step};

/// A set of prefixes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    /// In order, and none of them begins with another one; so the only one that a key can begin with is the last one that
    /// isn't behind it.
    prefixes: Vec<Box<[u8]>>,
}

impl Filter {
    pub(crate) fn new(prefixes: impl IntoIterator<Item = Box<[u8]>>) -> Self {
        let mut prefixes: Vec<Box<[u8]>> = prefixes.into_iter().collect();
        prefixes.sort_unstable();
        prefixes.dedup_by(|longer, shorter| longer.starts_with(shorter));
        Filter { prefixes }
    }

    /// Which of these keys match: bit i for key i.
    pub(crate) fn matches<'a>(&self, keys: impl Iterator<Item = &'a [u8]>) -> u32 {
        keys.enumerate().filter(|(_, key)| self.has_prefix_of(key)).fold(0, |mask, (i, _)| mask | 1 << i)
    }

    /// How many of the messages from one offset to another match, as far as the log has them.
    pub(super) fn count(&self, log: &Arc<Log>, from: u64, until: u64) -> u64 {
        let mut reader = Reader::new(Arc::clone(log), from);
        let mut count = 0;
        loop {
            match reader.read(until.min(log.watermark())) {
                Step::Message(message) => count += u64::from(self.matches(message.keys()) != 0),
                Step::Gap(_) => {}
                Step::End => return count,
            }
        }
    }

    fn has_prefix_of(&self, key: &[u8]) -> bool {
        let after = self.prefixes.partition_point(|prefix| **prefix <= *key);
        after > 0 && key.starts_with(&self.prefixes[after - 1])
    }
}
