//! Dead letters without a state directory.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::Change;
use super::record::Head;

#[derive(Debug, Default)]
pub(super) struct MemoryStore {
    letters: BTreeMap<u64, (Head, Bytes)>,
}

impl MemoryStore {
    pub(super) fn apply(&mut self, change: &Change<'_>) {
        for (number, head, payload) in &change.put {
            // A copy: the payload as it came may be a slice of a much larger block.
            self.letters.insert(*number, (head.clone(), Bytes::copy_from_slice(payload)));
        }
        for (number, head) in &change.replace {
            if let Some((known, _)) = self.letters.get_mut(number) {
                *known = head.clone();
            }
        }
        for number in &change.remove {
            self.letters.remove(number);
        }
    }

    pub(super) fn get(&self, number: u64) -> Option<(Head, Bytes)> {
        self.letters.get(&number).cloned()
    }

    pub(super) fn head(&self, number: u64) -> Option<Head> {
        self.letters.get(&number).map(|(head, _)| head.clone())
    }
}
