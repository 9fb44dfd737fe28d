//! Which values belong to a key: a compressed prefix tree that is read without locks while it changes.
//!
//! The tree holds pairs of a byte prefix and a value, and answers for a key: which values stand at prefixes of it. That
//! is the question a publisher asks for each key of each message, with 100,000 prefixes as a normal case; prefixes come
//! and go while it asks. So readers take no lock, write nothing shared, and allocate nothing: they walk from the root to
//! the end of the key, one node a level, one or two cache lines a node ([`node`]).
//!
//! # How it changes
//!
//! Writers are serialised by a mutex. A change builds new nodes beside the tree, then swaps one pointer, in the parent;
//! readers see the tree before or after it. What the swap took out of reach is freed once every reader that was on its
//! way has gone (epochs: `crossbeam_epoch`; K. Fraser, Practical lock-freedom, 2004). A reader on an old node goes on from
//! there through the nodes of its time; all of them were retired after it came, so they stay for it.
//!
//! - A value that is there before a reader starts and after it has finished is seen by it, whatever else changes.
//! - A value that is inserted or removed meanwhile may or may not be seen. Of two insertions during one walk the later
//!   may be seen and the earlier not.
//!
//! Nodes without a value and with less than two children are merged away, so the tree's shape depends on what is in it and
//! not on its history, and memory comes back.
//!
//! Values are cloned when a node is rewritten; the clones go with the old node, by epoch. A removal, and an insertion that
//! made clones, hands its garbage over at once instead of keeping it with its thread until there is more: a value is
//! dropped within the next few hundred pins of any threads, also when this one never comes again.
//!
//! Under `--cfg hookbus_loom` this module uses the same atomics and epochs as otherwise: loom does not look into it. What stands
//! for it are the tests beside it, under AddressSanitizer and ThreadSanitizer:
//!
//! ```text
//! RUSTFLAGS=-Zsanitizer=address cargo +nightly test -p hookbus-broker --lib --target x86_64-unknown-linux-gnu tree
//! RUSTFLAGS=-Zsanitizer=thread cargo +nightly test -p hookbus-broker --lib --target x86_64-unknown-linux-gnu -Zbuild-std tree
//! ```
//!
//! (`PROPTEST_CASES=32` shortens them; everything is many times slower there.)
//!
//! crossbeam-epoch's build script sees the thread sanitizer in `CARGO_CFG_SANITIZE` and then orders by loads what it
//! otherwise orders by fences, which the sanitizer does not know.
#![allow(unsafe_code, reason = "readers hold plain references to nodes that an epoch keeps alive")]

mod node;
#[cfg(test)]
mod tests;
mod values;

use std::fmt;
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_epoch::Guard;
use parking_lot::Mutex;

use node::{Link, Node, NodeBuilder, NodeRef};
use values::{Change, Values, ValuesRef};

/// A set of pairs of a prefix and a value.
pub(crate) struct PrefixTree<V> {
    root: Link<V>,
    writer: Writer,
    owns: PhantomData<V>,
}

/// What only writers touch, on lines of its own: the root is read by every publisher.
#[repr(align(128))]
struct Writer {
    lock: Mutex<()>,
    /// Changed by the holder of the lock.
    len: AtomicUsize,
}

impl<V> PrefixTree<V>
where
    V: Clone + Eq + Send + Sync + 'static,
{
    /// An empty tree.
    pub(crate) fn new() -> Self {
        PrefixTree {
            root: Link::new(ptr::null_mut()),
            writer: Writer { lock: Mutex::new(()), len: AtomicUsize::new(0) },
            owns: PhantomData,
        }
    }

    /// The number of pairs.
    pub(crate) fn len(&self) -> usize {
        self.writer.len.load(Ordering::Relaxed)
    }

    /// Calls `f` with each value at each prefix of `key`, the shortest prefix first. A value that stands at several of
    /// them comes several times.
    ///
    /// `guard` comes from [`crossbeam_epoch::pin`], as all guards in this crate do. It may be used for many calls; while
    /// it lives, nothing that was taken out of the tree is freed.
    #[inline]
    pub(crate) fn for_each_match<'g>(&self, key: &[u8], guard: &'g Guard, mut f: impl FnMut(&'g V)) {
        debug_assert!(
            guard.collector() == Some(crossbeam_epoch::default_collector()),
            "a guard of another collector does not keep this tree's nodes"
        );
        let mut rest = key;
        let mut link = &self.root;
        // SAFETY: writers retire nodes through the collector that `guard` has pinned, and the tree's destructor does, too:
        // whatever can be reached now stays for 'g.
        while let Some(node) = unsafe { NodeRef::<'g, V>::follow(link) } {
            let label = node.label();
            let mut behind = rest;
            // Where children are told apart by digits, most labels are empty, and a call to compare nothing costs as much as
            // the rest of the step.
            if !label.is_empty() {
                match rest.strip_prefix(label) {
                    Some(suffix) => behind = suffix,
                    None => return,
                }
            }
            match node.values() {
                ValuesRef::None => {}
                ValuesRef::One(value) => f(value),
                ValuesRef::Many(list) => list.iter().for_each(&mut f),
            }
            let Some((&byte, behind)) = behind.split_first() else { return };
            let Some(child) = node.child(byte) else { return };
            link = child;
            rest = behind;
        }
    }

    /// Adds a pair; false if it is there already.
    ///
    /// Values are compared and cloned under the writers' lock: `Eq` and `Clone` must not come back to this tree. Their
    /// destructors may.
    pub(crate) fn insert(&self, prefix: &[u8], value: V) -> bool {
        // Pinned before the lock is taken: pinning may run destructors of values, and these may come back to this tree.
        let guard = crossbeam_epoch::pin();
        let locked = self.writer.lock.lock();
        let change = self.insert_locked(prefix, value, &guard);
        if change.is_some() {
            self.writer.len.fetch_add(1, Ordering::Relaxed);
        }
        drop(locked);
        finish(change, &guard)
    }

    /// Takes a pair out; false if it wasn't there.
    pub(crate) fn remove(&self, prefix: &[u8], value: &V) -> bool {
        let guard = crossbeam_epoch::pin();
        let locked = self.writer.lock.lock();
        let change = self.remove_locked(prefix, value, &guard);
        if change.is_some() {
            self.writer.len.fetch_sub(1, Ordering::Relaxed);
        }
        drop(locked);
        finish(change, &guard)
    }

    fn insert_locked(&self, prefix: &[u8], value: V, guard: &Guard) -> Option<Garbage> {
        let mut rest = prefix;
        let mut link = &self.root;
        loop {
            // SAFETY: the lock is held, and only its holder takes nodes out.
            let Some(node) = (unsafe { NodeRef::follow(link) }) else {
                link.store(leaf(rest, value).as_ptr(), Ordering::Release);
                return Some(Garbage::Nodes);
            };
            let label = node.label();
            let common = common_len(label, rest);
            if common < label.len() {
                // The prefix leaves in the middle of the label, or ends there: split.
                let (upper, lower) = label.split_at(common);
                let lower = (lower[0], copy(node, &[&lower[1..]], node.values().to_values()).finish());
                let new = match rest[common..].split_first() {
                    None => fork(upper, Values::One(value), &mut [lower]),
                    Some((&byte, rest)) => fork(upper, Values::None, &mut [lower, (byte, leaf(rest, value))]),
                };
                return Some(replace(link, node, new, guard));
            }
            let Some((&byte, behind)) = rest[common..].split_first() else {
                // SAFETY: the lock is held, and `node` is in the tree.
                return match unsafe { node.values().insert(value) } {
                    Change::Nothing => None,
                    Change::InPlace => Some(Garbage::Nodes),
                    Change::Replace(values) => Some(replace(link, node, copy(node, &[label], values).finish(), guard)),
                };
            };
            match node.child(byte) {
                Some(child) => {
                    link = child;
                    rest = behind;
                }
                None => {
                    let new = with_child(node, byte, leaf(behind, value));
                    return Some(replace(link, node, new, guard));
                }
            }
        }
    }

    fn remove_locked(&self, prefix: &[u8], value: &V, guard: &Guard) -> Option<Garbage> {
        let mut parent: Option<(&Link<V>, NodeRef<'_, V>, u8)> = None;
        let mut link = &self.root;
        // SAFETY: the lock is held, and only its holder takes nodes out.
        let mut node = unsafe { NodeRef::follow(link) }?;
        let mut rest = prefix.strip_prefix(node.label())?;
        while let Some((&byte, behind)) = rest.split_first() {
            let child = node.child(byte)?;
            parent = Some((link, node, byte));
            link = child;
            // SAFETY: as above.
            node = unsafe { NodeRef::follow(link) }?;
            rest = behind.strip_prefix(node.label())?;
        }
        // SAFETY: the lock is held, and `node` is in the tree.
        let values = match unsafe { node.values().remove(value, guard) } {
            Change::Nothing => return None,
            Change::InPlace => return Some(Garbage::Values),
            Change::Replace(values) => values,
        };
        if !matches!(values, Values::None) || node.len() > 1 {
            return Some(replace(link, node, copy(node, &[node.label()], values).finish(), guard));
        }
        if let Some((byte, child)) = node.children().next() {
            merge(link, node, byte, child, guard);
        } else if let Some((link, parent, byte)) = parent {
            // A leaf goes, and with it its parent, where that only served to tell two children apart.
            let mut others = parent.children().filter(|(key, _)| *key != byte);
            match (parent.len(), parent.values().is_none(), others.next()) {
                (2, true, Some((key, sibling))) => merge(link, parent, key, sibling, guard),
                _ => {
                    replace(link, parent, without_child(parent, byte), guard);
                }
            }
            retire(node, guard);
        } else {
            link.store(ptr::null_mut(), Ordering::Release);
            retire(node, guard);
        }
        Some(Garbage::Values)
    }
}

/// What a change has left for the epoch to clean up.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Garbage {
    /// Nothing, or memory alone.
    Nodes,
    /// Values too, or clones of them.
    Values,
}

/// The end of a change, without the lock.
fn finish(change: Option<Garbage>, guard: &Guard) -> bool {
    if change == Some(Garbage::Values) {
        // Values may hold much more memory than a node, so they don't wait in this thread's bag for company.
        guard.flush();
    }
    change.is_some()
}

/// Puts `new` where `old` was, and retires `old`.
fn replace<V>(link: &Link<V>, old: NodeRef<'_, V>, new: NonNull<Node<V>>, guard: &Guard) -> Garbage {
    let garbage = if old.values().is_none() { Garbage::Nodes } else { Garbage::Values };
    link.store(new.as_ptr(), Ordering::Release);
    retire(old, guard);
    garbage
}

/// Puts one node where `node` and its only child `child` were, and retires both.
fn merge<V: Clone>(link: &Link<V>, node: NodeRef<'_, V>, byte: u8, child: NodeRef<'_, V>, guard: &Guard) {
    let merged = copy(child, &[node.label(), &[byte], child.label()], child.values().to_values()).finish();
    replace(link, node, merged, guard);
    retire(child, guard);
}

/// Frees a node once nobody can be reading it.
fn retire<V>(node: NodeRef<'_, V>, guard: &Guard) {
    let node = node.as_ptr();
    // SAFETY: this module retires a node once, after having taken it out of the tree under the lock; only readers that were
    // pinned before can still be there. Values may be dropped on any thread: no tree can be made without `V: Send`.
    unsafe { guard.defer_unchecked(move || Node::free(node)) };
}

fn leaf<V>(label: &[u8], value: V) -> NonNull<Node<V>> {
    NodeBuilder::new(&[label], Values::One(value), 0).finish()
}

/// An inner node with these children.
fn fork<V>(label: &[u8], values: Values<V>, children: &mut [(u8, NonNull<Node<V>>)]) -> NonNull<Node<V>> {
    children.sort_unstable_by_key(|(key, _)| *key);
    let mut new = NodeBuilder::new(&[label], values, children.len());
    for (key, child) in children {
        new.push(*key, *child);
    }
    new.finish()
}

/// A node with the children of `node`.
fn copy<V>(node: NodeRef<'_, V>, label: &[&[u8]], values: Values<V>) -> NodeBuilder<V> {
    let mut new = NodeBuilder::new(label, values, node.len());
    for (key, child) in node.children() {
        new.push(key, child.as_ptr());
    }
    new
}

/// `node` with one more child.
fn with_child<V: Clone>(node: NodeRef<'_, V>, byte: u8, child: NonNull<Node<V>>) -> NonNull<Node<V>> {
    let mut new = NodeBuilder::new(&[node.label()], node.values().to_values(), node.len() + 1);
    let mut child = Some(child);
    for (key, old) in node.children() {
        if key > byte
            && let Some(child) = child.take()
        {
            new.push(byte, child);
        }
        new.push(key, old.as_ptr());
    }
    if let Some(child) = child {
        new.push(byte, child);
    }
    new.finish()
}

/// `node` with one child less.
fn without_child<V: Clone>(node: NodeRef<'_, V>, byte: u8) -> NonNull<Node<V>> {
    let mut new = NodeBuilder::new(&[node.label()], node.values().to_values(), node.len() - 1);
    for (key, child) in node.children().filter(|(key, _)| *key != byte) {
        new.push(key, child.as_ptr());
    }
    new.finish()
}

/// The length of the longest common beginning.
fn common_len(a: &[u8], b: &[u8]) -> usize {
    const CHUNK: usize = 32;
    // Labels can be 64 KiB long: compare in chunks while they agree, then find the place.
    let done = CHUNK * a.chunks_exact(CHUNK).zip(b.chunks_exact(CHUNK)).take_while(|(a, b)| a == b).count();
    done + a[done..].iter().zip(&b[done..]).take_while(|(a, b)| a == b).count()
}

impl<V> Drop for PrefixTree<V> {
    fn drop(&mut self) {
        // Values are handed out for as long as a guard lives, which may be longer than the tree: so this, too, waits.
        let root = std::mem::replace(self.root.get_mut(), ptr::null_mut());
        let guard = crossbeam_epoch::pin();
        // SAFETY: nobody can reach the root any more but readers that were pinned before; `V: Send` as in `retire`.
        unsafe { guard.defer_unchecked(move || free_all(root)) };
        guard.flush();
    }
}

/// Frees a whole tree. A list of what is still to do instead of recursion: a tree can be as deep as a prefix is long.
///
/// # Safety
/// Nobody else can reach the nodes.
unsafe fn free_all<V>(root: *mut Node<V>) {
    let root = Link::new(root);
    // SAFETY: the nodes are this function's alone; each is freed once, after its children were listed.
    unsafe {
        let mut todo: Vec<NodeRef<'_, V>> = NodeRef::follow(&root).into_iter().collect();
        while let Some(node) = todo.pop() {
            todo.extend(node.children().map(|(_, child)| child));
            Node::free(node.as_ptr());
        }
    }
}

impl<V> fmt::Debug for PrefixTree<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrefixTree").field("len", &self.writer.len.load(Ordering::Relaxed)).finish_non_exhaustive()
    }
}
