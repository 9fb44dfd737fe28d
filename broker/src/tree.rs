//! Which values belong to a key: a compressed prefix tree that is read without locks while it changes.
//!
//! The tree holds pairs of a byte prefix and a value, and answers for a key: which values stand at prefixes of it. That
//! is the question a publisher asks for each key of each message, with 100,000 prefixes as a normal case; prefixes come
//! and go while it asks. So a walk takes no lock, writes nothing, and allocates nothing: it goes from the root to
//! the end of the key, one node a level, one or two cache lines a node ([`node`]).
//!
//! # How it changes
//!
//! Writers are serialised by a mutex. A change builds new nodes beside the tree, then swaps one pointer, in the parent;
//! a walk sees the tree before or after it. What the swap took out of reach is *retired*: a walk on an old node goes on from
//! there through the nodes of its time, so they stay until it is over.
//!
//! When that is, the [`Reader`] shows. There is one for each tree, and to walk takes a reference to it; who has it for himself
//! ([`reclaim`](PrefixTree::reclaim)) knows that no walk is under way, and may free what was retired. The broker's publishers have
//! the reader under their lock, which they hold anyway: so a walk pays nothing for the safety of nodes, where epochs or hazard
//! pointers would cost it an atomic operation, and a change takes that lock for a moment, once for many nodes. (It is RCU,
//! with a lock for a grace period: P. McKenney, Is Parallel Programming Hard, 9.5.)
//!
//! - A value that is there before a walk starts and after it has finished is seen by it, whatever else changes.
//! - A value that is inserted or removed meanwhile may or may not be seen. Of two insertions during one walk the later
//!   may be seen and the earlier not.
//!
//! Nodes without a value and with less than two children are merged away, so the tree's shape depends on what is in it and
//! not on its history, and memory comes back.
//!
//! Values are cloned when a node is rewritten; the clones go with the old node.
//!
//! Under `--cfg hookbus_loom` this module uses the same atomics as otherwise: loom does not look into it. What stands
//! for it are the tests beside it, under AddressSanitizer and ThreadSanitizer:
//!
//! ```text
//! RUSTFLAGS=-Zsanitizer=address cargo +nightly test -p hookbus-broker --lib --target x86_64-unknown-linux-gnu tree
//! RUSTFLAGS=-Zsanitizer=thread cargo +nightly test -p hookbus-broker --lib --target x86_64-unknown-linux-gnu -Zbuild-std tree
//! ```
//!
//! (`PROPTEST_CASES=32` shortens them; everything is many times slower there.)
#![allow(unsafe_code, reason = "walks go over nodes that others retire, and that are freed when no walk is under way")]

mod node;
#[cfg(test)]
mod tests;
mod values;

use std::fmt;
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use node::{Link, Node, NodeBuilder, NodeRef, SHORT_LABEL};
use values::{Change, Killed, Values, ValuesRef};

/// A set of pairs of a prefix and a value.
pub(crate) struct PrefixTree<V> {
    root: Link<V>,
    writer: Writer<V>,
    owns: PhantomData<V>,
}

/// What only writers touch, on lines of its own: the root is read by every publisher.
#[repr(align(128))]
struct Writer<V> {
    /// What was taken out and not yet freed; its lock is the writers'.
    retired: Mutex<Retired<V>>,
    /// How many pairs the tree has, and how much is retired; changed by the holder of the lock.
    len: AtomicUsize,
    retired_len: AtomicUsize,
    #[cfg(debug_assertions)]
    name: usize,
}

/// The right to walk through a tree; each has one.
#[derive(Debug)]
pub(crate) struct Reader {
    /// The name of the tree that it is of.
    #[cfg(debug_assertions)]
    tree: usize,
}

/// What was taken out of a tree; freed when this is dropped.
pub(crate) struct Retired<V>(Vec<Out<V>>);

enum Out<V> {
    Node(NonNull<Node<V>>),
    Value(Killed<V>),
}

// SAFETY: the nodes and values are no longer reached through the tree and belong to whoever has this; values may be sent.
unsafe impl<V: Send + Sync> Send for Retired<V> {}

impl<V> Retired<V> {
    /// Takes over a node that was taken out of the tree.
    fn node(&mut self, node: NodeRef<'_, V>) {
        self.0.push(Out::Node(node.as_ptr()));
    }

    fn value(&mut self, value: Killed<V>) {
        self.0.push(Out::Value(value));
    }
}

impl<V> Drop for Retired<V> {
    fn drop(&mut self) {
        for out in self.0.drain(..) {
            // SAFETY: each was retired once, after it was taken out of reach under the lock. A walk that can still see it borrows the
            // reader and the tree; whoever drops this has had one of them for himself since.
            unsafe {
                match out {
                    Out::Node(node) => Node::free(node),
                    Out::Value(value) => value.free(),
                }
            }
        }
    }
}

impl<V> PrefixTree<V>
where
    V: Clone + Eq + Send + Sync + 'static,
{
    /// An empty tree, and the right to walk through it.
    pub(crate) fn new() -> (Self, Reader) {
        #[cfg(debug_assertions)]
        let name = {
            static TREES: AtomicUsize = AtomicUsize::new(0);
            TREES.fetch_add(1, Ordering::Relaxed)
        };
        let writer = Writer {
            retired: Mutex::new(Retired(Vec::new())),
            len: AtomicUsize::new(0),
            retired_len: AtomicUsize::new(0),
            #[cfg(debug_assertions)]
            name,
        };
        let reader = Reader {
            #[cfg(debug_assertions)]
            tree: name,
        };
        (PrefixTree { root: Link::new(ptr::null_mut()), writer, owns: PhantomData }, reader)
    }

    /// Takes the nodes and values that were retired until now: nobody can be looking at them any more. Drop them where
    /// destructors of values may run.
    pub(crate) fn reclaim(&self, reader: &mut Reader) -> Retired<V> {
        self.check(reader);
        let mut retired = self.writer.retired.lock();
        self.writer.retired_len.store(0, Ordering::Relaxed);
        std::mem::replace(&mut retired, Retired(Vec::new()))
    }

    /// How many nodes and values wait to be [reclaimed](PrefixTree::reclaim).
    pub(crate) fn retired_len(&self) -> usize {
        self.writer.retired_len.load(Ordering::Relaxed)
    }

    #[inline]
    fn check(&self, reader: &Reader) {
        #[cfg(debug_assertions)]
        assert_eq!(reader.tree, self.writer.name, "the reader of another tree does not keep this one's nodes");
        let _ = reader;
    }

    /// The number of pairs.
    pub(crate) fn len(&self) -> usize {
        self.writer.len.load(Ordering::Relaxed)
    }

    /// Calls `f` with each value at each prefix of `key`, the shortest prefix first. A value that stands at several of
    /// them comes several times.
    ///
    /// What it finds stays for as long as `reader`, which is this tree's, is borrowed.
    #[inline]
    pub(crate) fn for_each_match<'g>(&'g self, key: &[u8], reader: &'g Reader, mut f: impl FnMut(&'g V)) {
        self.check(reader);
        let mut rest = key;
        // SAFETY: nodes that are taken out are retired, and freed by whoever has this tree's one reader, or the tree, for himself:
        // whatever can be reached now stays for 'g.
        let Some(mut node) = (unsafe { NodeRef::<'g, V>::follow(&self.root) }) else { return };
        loop {
            let Some(behind) = behind_label(rest, node) else { return };
            match node.values() {
                ValuesRef::None => {}
                ValuesRef::One(value) => f(value),
                ValuesRef::Many(list) => list.iter().for_each(&mut f),
            }
            let Some((&byte, behind)) = behind.split_first() else { return };
            let Some(child) = node.child(byte) else { return };
            // SAFETY: as above, and `child` is of a node in the tree.
            node = unsafe { NodeRef::follow_child(child) };
            rest = behind;
        }
    }

    /// Adds a pair; false if it is there already.
    ///
    /// Values are compared and cloned under the writers' lock: `Eq` and `Clone` must not come back to this tree. Their
    /// destructors may.
    pub(crate) fn insert(&self, prefix: &[u8], value: V) -> bool {
        let mut retired = self.writer.retired.lock();
        let inserted = self.insert_locked(prefix, value, &mut retired);
        if inserted {
            self.writer.len.fetch_add(1, Ordering::Relaxed);
            self.writer.retired_len.store(retired.0.len(), Ordering::Relaxed);
        }
        inserted
    }

    /// Takes a pair out; false if it wasn't there.
    pub(crate) fn remove(&self, prefix: &[u8], value: &V) -> bool {
        let mut retired = self.writer.retired.lock();
        let removed = self.remove_locked(prefix, value, &mut retired).is_some();
        if removed {
            self.writer.len.fetch_sub(1, Ordering::Relaxed);
            self.writer.retired_len.store(retired.0.len(), Ordering::Relaxed);
        }
        removed
    }

    fn insert_locked(&self, prefix: &[u8], value: V, retired: &mut Retired<V>) -> bool {
        let mut rest = prefix;
        let mut link = &self.root;
        loop {
            // SAFETY: the lock is held, and only its holder takes nodes out.
            let Some(node) = (unsafe { NodeRef::follow(link) }) else {
                link.store(leaf(rest, value).as_ptr(), Ordering::Release);
                return true;
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
                replace(link, node, new, retired);
                return true;
            }
            let Some((&byte, behind)) = rest[common..].split_first() else {
                // SAFETY: the lock is held, and `node` is in the tree.
                match unsafe { node.values().insert(value) } {
                    Change::Nothing => return false,
                    Change::InPlace => {}
                    Change::Replace(values) => replace(link, node, copy(node, &[label], values).finish(), retired),
                }
                return true;
            };
            match node.child(byte) {
                Some(child) => {
                    link = child;
                    rest = behind;
                }
                None => {
                    let new = with_child(node, byte, leaf(behind, value));
                    replace(link, node, new, retired);
                    return true;
                }
            }
        }
    }

    /// `None` where there is nothing to remove.
    fn remove_locked(&self, prefix: &[u8], value: &V, retired: &mut Retired<V>) -> Option<()> {
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
        let values = match unsafe { node.values().remove(value, retired) } {
            Change::Nothing => return None,
            Change::InPlace => return Some(()),
            Change::Replace(values) => values,
        };
        if !matches!(values, Values::None) || node.len() > 1 {
            replace(link, node, copy(node, &[node.label()], values).finish(), retired);
        } else if let Some((byte, child)) = node.children().next() {
            merge(link, node, byte, child, retired);
        } else if let Some((link, parent, byte)) = parent {
            // A leaf goes, and with it its parent, where that only served to tell two children apart.
            let mut others = parent.children().filter(|(key, _)| *key != byte);
            match (parent.len(), parent.values().is_none(), others.next()) {
                (2, true, Some((key, sibling))) => merge(link, parent, key, sibling, retired),
                _ => replace(link, parent, without_child(parent, byte), retired),
            }
            retired.node(node);
        } else {
            link.store(ptr::null_mut(), Ordering::Release);
            retired.node(node);
        }
        Some(())
    }
}

/// Puts `new` where `old` was, and retires `old`.
fn replace<V>(link: &Link<V>, old: NodeRef<'_, V>, new: NonNull<Node<V>>, retired: &mut Retired<V>) {
    link.store(new.as_ptr(), Ordering::Release);
    retired.node(old);
}

/// Puts one node where `node` and its only child `child` were, and retires both.
fn merge<V: Clone>(link: &Link<V>, node: NodeRef<'_, V>, byte: u8, child: NodeRef<'_, V>, retired: &mut Retired<V>) {
    let merged = copy(child, &[node.label(), &[byte], child.label()], child.values().to_values()).finish();
    replace(link, node, merged, retired);
    retired.node(child);
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

/// What of `key` follows behind a node's label; `None` where it doesn't begin with that.
///
/// Most labels are empty, where children are told apart by digits, or short: to call a function that compares would cost as much as
/// the rest of a step.
#[inline]
fn behind_label<'k, V>(key: &'k [u8], node: NodeRef<'_, V>) -> Option<&'k [u8]> {
    let len = node.label_len();
    if len == 0 {
        return Some(key);
    }
    match key.first_chunk::<SHORT_LABEL>() {
        Some(start) if len <= SHORT_LABEL => {
            let differences = u64::from_le_bytes(*start) ^ u64::from_le_bytes(node.short_label());
            // What is behind the label doesn't matter, and is shifted out.
            (differences << (8 * (SHORT_LABEL - len)) == 0).then(|| &key[len..])
        }
        _ => strip(key, node.label()),
    }
}

/// What of `key` follows behind `label`, where one of them is shorter than a word, or the label longer.
fn strip<'k>(key: &'k [u8], label: &[u8]) -> Option<&'k [u8]> {
    let (start, behind) = key.split_at_checked(label.len())?;
    // The first so many bytes and the last; they may overlap.
    let same = if let (Some(a), Some(b)) = (start.first_chunk::<8>(), label.first_chunk::<8>()) {
        a == b && (label.len() <= 16 && start.last_chunk::<8>() == label.last_chunk() || start == label)
    } else if let (Some(a), Some(b)) = (start.first_chunk::<4>(), label.first_chunk::<4>()) {
        a == b && start.last_chunk::<4>() == label.last_chunk()
    } else {
        start.iter().zip(label).all(|(a, b)| a == b)
    };
    same.then_some(behind)
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
        let root = std::mem::replace(self.root.get_mut(), ptr::null_mut());
        // SAFETY: a walk borrows the tree, so there is none, and nobody else can reach the nodes.
        unsafe { free_all(root) };
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
