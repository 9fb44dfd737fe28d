//! Which subscriptions have which prefixes.
//!
//! Subscriptions with equal sets of prefixes form a [`Group`], and the prefix tree leads from a prefix to the groups that have it:
//! so a publish finds, and pays for, groups. The lanes of a group are what publishers deliver to; usually one. All changes
//! are made under the lock around [`Sets`], which publishers never take.
//!
//! A subscription that is alone in its group changes its prefixes in place. One that isn't gets a group of its own first, which
//! costs a copy of the set once. A small set that has become equal to another group's joins it, so that ZeroMQ peers, which
//! connect first and subscribe afterwards, share a lane; a large one doesn't, because peers that add a thousand filters
//! one by one would join and part at each.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use smallvec::SmallVec;

use crate::lane::{Lane, Published};
use crate::sync::Mutex;

/// Sets larger than this are not looked up again when they change.
const JOIN_MAX_PREFIXES: usize = 64;

/// Subscriptions with the same prefixes.
pub(crate) struct Group {
    pub(crate) fan: Published<Fan>,
    set: Mutex<Set>,
}

/// What publishers keep about a group.
#[derive(Default)]
pub(crate) struct Fan {
    pub(crate) lanes: SmallVec<[Arc<Lane>; 1]>,
    /// The lane that others may join: none of its members is dropping.
    pub(crate) main: Option<Arc<Lane>>,
    /// The message that was matched last, and which of its keys did.
    pub(crate) stamp: u64,
    pub(crate) mask: u32,
}

#[derive(Default)]
struct Set {
    prefixes: HashSet<Box<[u8]>>,
    /// The sum of the hashes of the prefixes, so that it follows each change at once.
    hash: u64,
    members: usize,
}

/// A group as the value in the prefix tree; the same when it is the same group.
#[derive(Clone)]
pub(crate) struct GroupRef(pub(crate) Arc<Group>);

impl PartialEq for GroupRef {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for GroupRef {}

/// The prefix tree, as far as groups change it.
pub(crate) trait Index {
    fn insert(&self, prefix: &[u8], group: &Arc<Group>);
    fn remove(&self, prefix: &[u8], group: &Arc<Group>);
}

/// All groups, found by the hash of their sets.
#[derive(Default)]
pub(crate) struct Sets {
    groups: HashMap<u64, Vec<Arc<Group>>>,
    hasher: RandomState,
}

/// A change of one subscription's prefixes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Add,
    Remove,
}

/// What a change came to.
pub(crate) struct Changed {
    /// How many prefixes were added or removed.
    pub(crate) count: usize,
    /// How many there are now.
    pub(crate) prefixes: usize,
    /// Where the subscription belongs now, if that is another group than before; `Some(None)` is none.
    pub(crate) moved: Option<Option<Arc<Group>>>,
}

impl Group {
    /// How many prefixes it has.
    pub(crate) fn len(&self) -> usize {
        self.set.lock().prefixes.len()
    }

    /// The first of its prefixes in byte order, at most `most` of them.
    pub(crate) fn first_prefixes(&self, most: usize) -> Vec<Box<[u8]>> {
        let set = self.set.lock();
        let mut first = std::collections::BinaryHeap::<&Box<[u8]>>::with_capacity(most.min(set.prefixes.len()) + 1);
        for prefix in &set.prefixes {
            if first.len() == most && first.peek().is_none_or(|last| *last <= prefix) {
                continue;
            }
            first.push(prefix);
            if first.len() > most {
                first.pop();
            }
        }
        first.into_sorted_vec().into_iter().cloned().collect()
    }

    pub(crate) fn matches_all(&self) -> bool {
        self.set.lock().prefixes.contains(&[][..])
    }
}

impl Sets {
    fn hash(&self, prefix: &[u8]) -> u64 {
        self.hasher.hash_one(prefix)
    }

    /// The group with just these prefixes, with one more member; `None` for no prefix at all.
    pub(crate) fn enter<P: AsRef<[u8]>>(&mut self, index: &impl Index, prefixes: &[P]) -> Option<Arc<Group>> {
        let prefixes: HashSet<Box<[u8]>> = prefixes.iter().map(|p| p.as_ref().into()).collect();
        self.enter_set(index, prefixes)
    }

    fn enter_set(&mut self, index: &impl Index, prefixes: HashSet<Box<[u8]>>) -> Option<Arc<Group>> {
        if prefixes.is_empty() {
            return None;
        }
        let hash = prefixes.iter().fold(0u64, |sum, p| sum.wrapping_add(self.hash(p)));
        if let Some(group) = self.find(hash, &prefixes, None) {
            group.set.lock().members += 1;
            return Some(group);
        }
        let group = Arc::new(Group { fan: Published::new(Fan::default()), set: Mutex::new(Set::default()) });
        for prefix in &prefixes {
            index.insert(prefix, &group);
        }
        *group.set.lock() = Set { prefixes, hash, members: 1 };
        self.groups.entry(hash).or_default().push(Arc::clone(&group));
        Some(group)
    }

    /// A group that matches all and has just one member: no other joins it.
    pub(crate) fn enter_alone(&mut self, index: &impl Index) -> Arc<Group> {
        let group = Arc::new(Group { fan: Published::new(Fan::default()), set: Mutex::new(Set::default()) });
        index.insert(b"", &group);
        *group.set.lock() = Set { prefixes: HashSet::from([Box::default()]), hash: 0, members: 1 };
        group
    }

    fn find(&self, hash: u64, prefixes: &HashSet<Box<[u8]>>, except: Option<&Arc<Group>>) -> Option<Arc<Group>> {
        let groups = self.groups.get(&hash)?;
        groups.iter().find(|g| except.is_none_or(|e| !Arc::ptr_eq(g, e)) && g.set.lock().prefixes == *prefixes).cloned()
    }

    /// One member fewer; with the last one the group goes.
    pub(crate) fn leave(&mut self, index: &impl Index, group: &Arc<Group>) {
        let mut set = group.set.lock();
        set.members -= 1;
        if set.members > 0 {
            return;
        }
        for prefix in &set.prefixes {
            index.remove(prefix, group);
        }
        let hash = set.hash;
        drop(set);
        self.unlist(hash, group);
    }

    fn unlist(&mut self, hash: u64, group: &Arc<Group>) {
        if let Some(groups) = self.groups.get_mut(&hash) {
            groups.retain(|g| !Arc::ptr_eq(g, group));
            if groups.is_empty() {
                self.groups.remove(&hash);
            }
        }
    }

    /// Adds or removes prefixes of a member of `group`. Where the member belongs to another group then, the caller moves it
    /// there, and lets it [`leave`](Sets::leave) the old one.
    pub(crate) fn change<P: AsRef<[u8]>>(
        &mut self,
        index: &impl Index,
        group: Option<&Arc<Group>>,
        change: Change,
        prefixes: impl IntoIterator<Item = P>,
    ) -> Changed {
        let Some(group) = group else {
            let prefixes: HashSet<Box<[u8]>> = match change {
                Change::Add => prefixes.into_iter().map(|p| p.as_ref().into()).collect(),
                Change::Remove => HashSet::new(),
            };
            let count = prefixes.len();
            let entered = self.enter_set(index, prefixes);
            return Changed { count, prefixes: count, moved: entered.map(Some) };
        };
        let mut set = group.set.lock();
        // Each prefix once, and only where it makes a difference.
        let differs = |set: &Set, p: &[u8]| set.prefixes.contains(p) == (change == Change::Remove);
        if set.members > 1 {
            let mut new = set.prefixes.clone();
            for p in prefixes {
                match change {
                    Change::Add => new.insert(p.as_ref().into()),
                    Change::Remove => new.remove(p.as_ref()),
                };
            }
            let (before, after) = (set.prefixes.len(), new.len());
            drop(set);
            let moved = (before != after).then(|| self.enter_set(index, new));
            return Changed { count: before.abs_diff(after), prefixes: after, moved };
        }
        let old_hash = set.hash;
        let before = set.prefixes.len();
        for p in prefixes {
            let p = p.as_ref();
            if !differs(&set, p) {
                continue;
            }
            let hash = self.hash(p);
            match change {
                Change::Add => {
                    index.insert(p, group);
                    set.prefixes.insert(p.into());
                    set.hash = set.hash.wrapping_add(hash);
                }
                Change::Remove => {
                    index.remove(p, group);
                    set.prefixes.remove(p);
                    set.hash = set.hash.wrapping_sub(hash);
                }
            }
        }
        let (hash, after) = (set.hash, set.prefixes.len());
        let small = (1..=JOIN_MAX_PREFIXES).contains(&after).then(|| set.prefixes.clone());
        drop(set);
        let mut moved = None;
        if before != after {
            self.unlist(old_hash, group);
            if let Some(equal) = small.and_then(|prefixes| self.find(hash, &prefixes, Some(group))) {
                equal.set.lock().members += 1;
                moved = Some(Some(equal));
            } else if after == 0 {
                moved = Some(None);
            }
            self.groups.entry(hash).or_default().push(Arc::clone(group));
        }
        Changed { count: before.abs_diff(after), prefixes: after, moved }
    }
}
