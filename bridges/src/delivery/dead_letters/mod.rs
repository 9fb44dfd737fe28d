//! Dead letters: events that a bus has refused for good, kept to be looked at and sent again.
//!
//! There is one store for all bridges, in one file of the state directory (`dead-letters.redb`), or in memory where there is no such
//! directory. It holds a bounded number of letters, of bounded size; the oldest goes first, and is counted.
//!
//! # Guarantees
//!
//! - What [`add`](DeadLetters::add) acknowledged is on disk (flushed), and survives a crash and a loss of power. In memory it lives as long
//!   as the process.
//! - A bridge moves its cursor over an event only after that. So nothing is lost between the two; after a crash in
//!   between, the event comes from the journal again and may be stored twice.
//! - A letter that is sent again stays until the bus has confirmed it. Each retry has another number, also over restarts, so that a
//!   bus that recognises repetitions doesn't swallow it.
//! - A disk that is full or fails makes `add` fail; nothing that was stored is harmed, and the file is opened anew before
//!   the next attempt.
//! - A file that is damaged, or was written by a later version, is set aside under another name, never deleted; an empty one takes its place, and the log
//!   and [`notice`](DeadLetters::notice) say so.
//!
//! All of it blocks, on the disk and on others who use the store, so asynchronous code calls it on a thread for that.

mod file;
mod memory;
mod record;

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use hookbus_broker::{EventId, Received, Timestamp};
use parking_lot::Mutex;

pub use self::file::FILE_NAME;
use self::file::FileStore;
use self::memory::MemoryStore;
use self::record::Head;

/// How much a store holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeadLetterLimits {
    /// Letters. 100,000 unless set; at least one is kept.
    pub letters: usize,
    /// Their bytes: payloads, keys and reasons. 256 MiB unless set; the newest letter is kept, however large.
    pub bytes: u64,
}

impl Default for DeadLetterLimits {
    fn default() -> Self {
        DeadLetterLimits { letters: 100_000, bytes: 256 << 20 }
    }
}

/// What is known of a dead letter, without its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// Its number in the store; numbers grow and are never used twice.
    pub number: u64,
    /// The bridge whose bus refused it.
    pub bridge: Box<str>,
    /// When it was refused last.
    pub died: Timestamp,
    /// Why.
    pub reason: Box<str>,
    /// How often it was sent, over all retries.
    pub attempts: u32,
    /// How often an operator has had it sent again.
    pub replays: u64,
    /// Whether it is being sent again now.
    pub retrying: bool,
    /// The event's id.
    pub id: EventId,
    /// The event's keys.
    pub keys: Vec<Box<[u8]>>,
    /// The size of the event's payload.
    pub payload_bytes: u64,
}

/// An event that is to become a dead letter.
#[derive(Clone, Debug)]
pub struct Fallen {
    /// The event.
    pub event: Received,
    /// Why the bus did not take it.
    pub reason: Box<str>,
    /// How often it was sent.
    pub attempts: u32,
}

/// Which letters are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// These; numbers that there are not are passed over.
    Numbers(Vec<u64>),
    /// All of this bridge.
    Bridge(Box<str>),
    /// All.
    All,
}

/// Why the store can't do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the dead letters in {path} can't be {deed}: {source}")]
pub struct DeadLettersError {
    /// The file.
    pub path: Box<str>,
    /// What was tried: `opened`, `read`, `written`.
    pub deed: &'static str,
    /// What was wrong.
    pub source: Arc<redb::Error>,
}

/// The store.
#[derive(Debug)]
pub struct DeadLetters {
    limits: DeadLetterLimits,
    /// Locked while the disk works.
    store: Mutex<Store>,
    /// What is looked at without waiting for the disk. Locked after `store`.
    index: Mutex<Index>,
}

#[derive(Debug)]
enum Store {
    Memory(MemoryStore),
    File(FileStore),
}

/// What is there, as far as it was read.
#[derive(Debug, Default)]
struct Index {
    entries: BTreeMap<u64, Entry>,
    bytes: u64,
    next: u64,
    dropped: u64,
    retrying: HashSet<u64>,
    notice: Option<Arc<str>>,
}

#[derive(Clone, Debug)]
struct Entry {
    bridge: Arc<str>,
    bytes: u64,
}

/// What changes in one transaction.
#[derive(Debug, Default)]
struct Change<'a> {
    put: Vec<(u64, Head, &'a [u8])>,
    replace: Vec<(u64, Head)>,
    remove: Vec<u64>,
    next: u64,
    dropped: u64,
}

impl DeadLetters {
    /// A store in memory.
    pub fn in_memory(limits: DeadLetterLimits) -> Self {
        Self::with_store(Store::Memory(MemoryStore::default()), limits)
    }

    /// A store in a file of this directory, which is there. A file that can't be opened is tried again each time the store is used, and
    /// meanwhile everything that needs it fails.
    pub fn in_directory(directory: &Path, limits: DeadLetterLimits) -> Self {
        let letters = Self::with_store(Store::File(FileStore::new(directory.join(FILE_NAME))), limits);
        if let Err(error) = letters.opened(|_, _| Ok(())) {
            tracing::error!("{error}; it is tried again when they are needed");
        }
        letters
    }

    fn with_store(store: Store, limits: DeadLetterLimits) -> Self {
        let index = Index { next: 1, ..Index::default() };
        DeadLetters { limits, store: Mutex::new(store), index: Mutex::new(index) }
    }

    /// Stores letters of a bridge, all or none.
    ///
    /// # Errors
    /// When they can't be stored; they are the caller's still.
    pub fn add(&self, bridge: &Arc<str>, died: Timestamp, fallen: &[Fallen]) -> Result<(), DeadLettersError> {
        self.opened(|store, index| {
            let (mut next, mut bytes, mut added) = (index.lock().next, 0, Vec::new());
            let mut change = Change::default();
            for Fallen { event, reason, attempts } in fallen {
                let head = Head::of(bridge, died, reason, *attempts, event);
                let entry = Entry { bridge: Arc::clone(bridge), bytes: head.size_bytes(event.payload().len()) };
                bytes += entry.bytes;
                added.push((next, entry));
                change.put.push((next, head, event.payload()));
                next += 1;
            }
            {
                let index = index.lock();
                change.remove = index.oldest_beyond(self.limits, added.len(), bytes);
                // Of more than there is room for at once, only the last stay.
                let (mut letters, mut bytes) = (added.len(), bytes);
                let mut beyond = 0;
                while letters > 1 && (letters > self.limits.letters || bytes > self.limits.bytes) {
                    bytes -= added[beyond].1.bytes;
                    letters -= 1;
                    beyond += 1;
                }
                added.drain(..beyond);
                change.put.drain(..beyond);
                change.next = next;
                change.dropped = index.dropped + (change.remove.len() + beyond) as u64;
            }
            store.apply(&change)?;
            let mut index = index.lock();
            for &number in &change.remove {
                index.remove(number);
            }
            index.bytes += added.iter().map(|(_, entry)| entry.bytes).sum::<u64>();
            index.entries.extend(added);
            index.next = change.next;
            index.dropped = change.dropped;
            Ok(())
        })
    }

    /// How many there are, of one bridge or of all.
    pub fn count(&self, bridge: Option<&str>) -> u64 {
        let index = self.index.lock();
        let of_bridge = |entry: &&Entry| bridge.is_none_or(|bridge| &*entry.bridge == bridge);
        index.entries.values().filter(of_bridge).count() as u64
    }

    /// Those that are meant, in the order of their numbers: number, bridge, and whether it is being sent again now.
    ///
    /// # Errors
    /// When they can't be read.
    pub fn meant(&self, which: &Which) -> Result<Vec<(u64, Arc<str>, bool)>, DeadLettersError> {
        self.opened(|_, index| {
            let index = index.lock();
            let described = |number: u64| {
                let bridge = Arc::clone(&index.entries[&number].bridge);
                (number, bridge, index.retrying.contains(&number))
            };
            Ok(index.numbers(which).into_iter().map(described).collect())
        })
    }

    /// How many had to go because there was no room, since the file was made.
    pub fn dropped(&self) -> u64 {
        self.index.lock().dropped
    }

    /// What somebody should know: that a damaged file was set aside, and where it is.
    pub fn notice(&self) -> Option<Arc<str>> {
        self.index.lock().notice.clone()
    }

    /// The oldest letters, of one bridge or of all, at most `limit`.
    ///
    /// # Errors
    /// When they can't be read.
    pub fn list(&self, bridge: Option<&str>, limit: usize) -> Result<Vec<DeadLetter>, DeadLettersError> {
        self.opened(|store, index| {
            let numbers: Vec<(u64, bool)> = {
                let index = index.lock();
                let of_bridge = |(_, entry): &(&u64, &Entry)| bridge.is_none_or(|bridge| &*entry.bridge == bridge);
                let numbers = index.entries.iter().filter(of_bridge).take(limit).map(|(&number, _)| number);
                numbers.map(|number| (number, index.retrying.contains(&number))).collect()
            };
            let heads = store.heads(numbers.iter().map(|&(number, _)| number))?;
            Ok(numbers
                .iter()
                .zip(heads)
                .filter_map(|(&(number, retrying), head)| Some(head?.letter(number, retrying)))
                .collect())
        })
    }

    /// One letter, with its event.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn show(&self, number: u64) -> Result<Option<(DeadLetter, Received)>, DeadLettersError> {
        self.opened(|store, index| {
            let retrying = index.lock().retrying.contains(&number);
            Ok(store.get(number)?.map(|(head, payload)| (head.letter(number, retrying), head.event(payload))))
        })
    }

    /// Gives the letters of a bridge to another one: it has another name now. Says how many. Those that are being sent again stay where
    /// they are.
    ///
    /// # Errors
    /// When nothing could be changed.
    pub fn rename(&self, bridge: &str, name: &Arc<str>) -> Result<u64, DeadLettersError> {
        self.opened(|store, index| {
            let numbers: Vec<u64> = {
                let index = index.lock();
                let of_bridge = index.entries.iter().filter(|(_, entry)| &*entry.bridge == bridge);
                of_bridge.map(|(&number, _)| number).filter(|number| !index.retrying.contains(number)).collect()
            };
            let heads = store.heads(numbers.iter().copied())?;
            let renamed = |(&number, head): (&u64, Option<Head>)| {
                let mut head = head?;
                head.bridge = (&**name).into();
                Some((number, head))
            };
            let replace: Vec<_> = numbers.iter().zip(heads).filter_map(renamed).collect();
            let renamed: Vec<u64> = replace.iter().map(|(number, _)| *number).collect();
            self.apply(store, Change { replace, ..Change::default() })?;
            let mut index = index.lock();
            for number in &renamed {
                if let Some(entry) = index.entries.get_mut(number) {
                    entry.bridge = Arc::clone(name);
                }
            }
            Ok(renamed.len() as u64)
        })
    }

    /// Throws letters away; says how many.
    ///
    /// # Errors
    /// When nothing could be changed.
    pub fn purge(&self, which: &Which) -> Result<u64, DeadLettersError> {
        self.opened(|_, _| Ok(()))?;
        let numbers = self.index.lock().numbers(which);
        self.remove(&numbers)
    }

    /// Marks those of a bridge that are meant and are not under way as being sent again, and names them. A bridge does this; what it was
    /// told of is either [removed](DeadLetters::remove) in the end, or [kept](DeadLetters::keep).
    pub(super) fn claim(&self, bridge: &str, which: &Which) -> Vec<u64> {
        let mut index = self.index.lock();
        let mut numbers = index.numbers(which);
        numbers.retain(|number| &*index.entries[number].bridge == bridge && !index.retrying.contains(number));
        index.retrying.extend(&numbers);
        numbers
    }

    /// Hands out claimed letters to be sent, the number of the retry counted. What is not there any more is left out.
    pub(super) fn take_for_retry(&self, numbers: &[u64]) -> Result<Vec<(DeadLetter, Received)>, DeadLettersError> {
        self.opened(|store, _| {
            let mut taken = Vec::new();
            for &number in numbers {
                if let Some((mut head, payload)) = store.get(number)? {
                    head.replays += 1;
                    taken.push((number, head, payload));
                }
            }
            let replace = taken.iter().map(|(number, head, _)| (*number, head.clone())).collect();
            self.apply(store, Change { replace, ..Change::default() })?;
            Ok(taken
                .into_iter()
                .map(|(number, head, payload)| (head.letter(number, true), head.event(payload)))
                .collect())
        })
    }

    /// These are gone: the bus has confirmed them.
    pub(super) fn remove(&self, numbers: &[u64]) -> Result<u64, DeadLettersError> {
        self.opened(|store, index| {
            let remove: Vec<u64> = {
                let index = index.lock();
                numbers.iter().copied().filter(|number| index.entries.contains_key(number)).collect()
            };
            let count = remove.len() as u64;
            self.apply(store, Change { remove, ..Change::default() })?;
            Ok(count)
        })
    }

    /// These stay: the bus has refused them again, for this reason and after so many attempts more.
    pub(super) fn refused_again(
        &self,
        again: &[(u64, Box<str>, u32)],
        died: Timestamp,
    ) -> Result<(), DeadLettersError> {
        self.opened(|store, _| {
            let mut replace = Vec::new();
            for ((number, reason, attempts), head) in again.iter().zip(store.heads(again.iter().map(|again| again.0))?)
            {
                if let Some(mut head) = head {
                    head.refused(died, reason, *attempts);
                    replace.push((*number, head));
                }
            }
            self.apply(store, Change { replace, ..Change::default() })?;
            self.keep(again.iter().map(|again| again.0));
            Ok(())
        })
    }

    /// These are not being sent any more, and stay as they are.
    pub(super) fn keep(&self, numbers: impl IntoIterator<Item = u64>) {
        let mut index = self.index.lock();
        for number in numbers {
            index.retrying.remove(&number);
        }
    }

    /// None of this bridge is being sent any more.
    pub(super) fn keep_all(&self, bridge: &str) {
        let Index { entries, retrying, .. } = &mut *self.index.lock();
        retrying.retain(|number| entries.get(number).is_some_and(|entry| &*entry.bridge != bridge));
    }

    /// Applies a change that adds nothing.
    fn apply(&self, store: &mut Store, mut change: Change<'_>) -> Result<(), DeadLettersError> {
        if change.remove.is_empty() && change.replace.is_empty() {
            return Ok(());
        }
        {
            let index = self.index.lock();
            (change.next, change.dropped) = (index.next, index.dropped);
        }
        store.apply(&change)?;
        let mut index = self.index.lock();
        for number in change.remove {
            index.remove(number);
        }
        Ok(())
    }

    /// Does something with the store, which is open then.
    fn opened<R>(
        &self,
        work: impl FnOnce(&mut Store, &Mutex<Index>) -> Result<R, DeadLettersError>,
    ) -> Result<R, DeadLettersError> {
        let mut store = self.store.lock();
        if let Store::File(file) = &mut *store
            && let Some(mut found) = file.open()?
        {
            let mut index = self.index.lock();
            // After a failure the file may be behind what was known, never ahead: what was acknowledged is in it.
            found.retrying = std::mem::take(&mut index.retrying);
            found.notice = found.notice.or(index.notice.take());
            *index = found;
        }
        work(&mut store, &self.index)
    }
}

impl Index {
    fn remove(&mut self, number: u64) {
        if let Some(entry) = self.entries.remove(&number) {
            self.bytes -= entry.bytes;
        }
        self.retrying.remove(&number);
    }

    /// Which have to go so that so many more, of so many bytes, can come.
    fn oldest_beyond(&self, limits: DeadLetterLimits, letters: usize, bytes: u64) -> Vec<u64> {
        let (mut letters, mut bytes) = (self.entries.len() + letters, self.bytes + bytes);
        let mut beyond = Vec::new();
        for (&number, entry) in &self.entries {
            if letters <= limits.letters.max(1) && bytes <= limits.bytes {
                break;
            }
            letters -= 1;
            bytes -= entry.bytes;
            beyond.push(number);
        }
        beyond
    }

    fn numbers(&self, which: &Which) -> Vec<u64> {
        match which {
            Which::Numbers(numbers) => {
                let mut numbers: Vec<u64> = numbers.iter().copied().filter(|n| self.entries.contains_key(n)).collect();
                numbers.sort_unstable();
                numbers.dedup();
                numbers
            }
            Which::Bridge(name) => {
                self.entries.iter().filter(|(_, entry)| *entry.bridge == **name).map(|(&n, _)| n).collect()
            }
            Which::All => self.entries.keys().copied().collect(),
        }
    }
}

impl Store {
    fn apply(&mut self, change: &Change<'_>) -> Result<(), DeadLettersError> {
        match self {
            Store::Memory(memory) => {
                memory.apply(change);
                Ok(())
            }
            Store::File(file) => file.apply(change),
        }
    }

    fn get(&mut self, number: u64) -> Result<Option<(Head, bytes::Bytes)>, DeadLettersError> {
        match self {
            Store::Memory(memory) => Ok(memory.get(number)),
            Store::File(file) => file.get(number),
        }
    }

    fn heads(&mut self, numbers: impl Iterator<Item = u64>) -> Result<Vec<Option<Head>>, DeadLettersError> {
        match self {
            Store::Memory(memory) => Ok(numbers.map(|number| memory.head(number)).collect()),
            Store::File(file) => file.heads(numbers),
        }
    }
}

#[cfg(test)]
mod tests;
