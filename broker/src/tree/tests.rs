//! The tree against a naive model, at its edges, and under readers that never stop.

use std::collections::BTreeSet;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use parking_lot::{Mutex, MutexGuard};
use proptest::collection::vec;
use proptest::prelude::*;

use super::{PrefixTree, Reader, Retired};

/// A tree and its reader behind a lock, as the broker has them.
struct Tree<V> {
    tree: PrefixTree<V>,
    reader: Mutex<Reader>,
}

impl<V: Clone + Eq + Send + Sync + 'static> Tree<V> {
    fn new() -> Self {
        let (tree, reader) = PrefixTree::new();
        Tree { tree, reader: Mutex::new(reader) }
    }

    fn reader(&self) -> MutexGuard<'_, Reader> {
        self.reader.lock()
    }

    /// What was taken out until now, to be freed.
    fn reclaim_now(&self) -> Retired<V> {
        self.tree.reclaim(&mut self.reader())
    }
}

impl<V> Deref for Tree<V> {
    type Target = PrefixTree<V>;

    fn deref(&self) -> &PrefixTree<V> {
        &self.tree
    }
}

/// A value that knows whether it is alive, and counts itself and its clones.
struct Canary {
    id: usize,
    alive: AtomicUsize,
    living: Arc<AtomicUsize>,
}

const ALIVE: usize = 0x00c0_ffee;

impl Canary {
    fn new(id: usize, living: &Arc<AtomicUsize>) -> Self {
        living.fetch_add(1, Ordering::Relaxed);
        Canary { id, alive: AtomicUsize::new(ALIVE), living: Arc::clone(living) }
    }

    fn id(&self) -> usize {
        assert_eq!(self.alive.load(Ordering::Relaxed), ALIVE, "value {} is read after its end", self.id);
        self.id
    }
}

impl Clone for Canary {
    fn clone(&self) -> Self {
        Canary::new(self.id(), &self.living)
    }
}

impl PartialEq for Canary {
    fn eq(&self, other: &Self) -> bool {
        self.id() == other.id()
    }
}

impl Eq for Canary {}

impl Drop for Canary {
    fn drop(&mut self) {
        let was = self.alive.swap(0xdead, Ordering::Relaxed);
        assert_eq!(was, ALIVE, "value {} is dropped twice", self.id);
        self.living.fetch_sub(1, Ordering::Relaxed);
    }
}

fn matches<V: Clone + Eq + Send + Sync + 'static>(tree: &Tree<V>, key: &[u8]) -> Vec<V> {
    let mut found = Vec::new();
    tree.for_each_match(key, &tree.reader(), |value| found.push(value.clone()));
    found
}

/// Frees what was taken out; then so many values live.
fn assert_living(tree: &Tree<Canary>, living: &AtomicUsize, expected: usize) {
    drop(tree.reclaim_now());
    assert_eq!(living.load(Ordering::Relaxed), expected, "values that live");
}

/// Pairs in the order in which they were inserted.
#[derive(Default)]
struct Model(Vec<(Vec<u8>, usize)>);

impl Model {
    fn insert(&mut self, prefix: &[u8], value: usize) -> bool {
        let pair = (prefix.to_vec(), value);
        let new = !self.0.contains(&pair);
        if new {
            self.0.push(pair);
        }
        new
    }

    fn remove(&mut self, prefix: &[u8], value: usize) -> bool {
        let at = self.0.iter().position(|(p, v)| p == prefix && *v == value);
        at.map(|at| self.0.remove(at)).is_some()
    }

    /// What the tree must answer: by length of the prefix; where several values stand at one prefix, by value, since their
    /// order is not promised.
    fn matches(&self, key: &[u8]) -> Vec<(usize, usize)> {
        let mut found: Vec<_> =
            self.0.iter().filter(|(p, _)| key.starts_with(p)).map(|(p, value)| (p.len(), *value)).collect();
        found.sort_unstable();
        found
    }
}

#[derive(Clone, Debug)]
enum Op {
    Insert(Vec<u8>, usize),
    Remove(Vec<u8>, usize),
    /// Removes the pair that was inserted so many steps into the model, so that most removals find something.
    RemoveNth(usize),
    Match(Vec<u8>),
}

/// Few letters and short prefixes make splits and merges; some bytes from the whole range make wide nodes.
fn prefix() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        6 => vec(prop_oneof![Just(b'a'), Just(b'b')], 0..10),
        3 => vec(any::<u8>(), 0..3),
        1 => (vec(any::<u8>(), 1..3), 0_usize..300).prop_map(|(mut p, n)| { p.extend(vec![b'x'; n]); p }),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (prefix(), 0_usize..20).prop_map(|(p, v)| Op::Insert(p, v)),
        1 => (prefix(), 0_usize..20).prop_map(|(p, v)| Op::Remove(p, v)),
        3 => any::<usize>().prop_map(Op::RemoveNth),
        2 => prefix().prop_map(Op::Match),
    ]
}

/// Does `op` to both and compares the answers.
fn step(tree: &Tree<Canary>, model: &mut Model, living: &Arc<AtomicUsize>, op: Op) {
    match op {
        Op::Insert(prefix, value) => {
            let canary = Canary::new(value, living);
            assert_eq!(tree.insert(&prefix, canary), model.insert(&prefix, value), "insert {prefix:?} {value}");
        }
        Op::Remove(prefix, value) => {
            let canary = Canary::new(value, living);
            assert_eq!(tree.remove(&prefix, &canary), model.remove(&prefix, value), "remove {prefix:?} {value}");
        }
        Op::RemoveNth(n) => {
            if !model.0.is_empty() {
                let (prefix, value) = model.0[n % model.0.len()].clone();
                step(tree, model, living, Op::Remove(prefix, value));
            }
        }
        Op::Match(key) => compare(tree, model, &key),
    }
    assert_eq!(tree.len(), model.0.len());
}

fn compare(tree: &Tree<Canary>, model: &Model, key: &[u8]) {
    let expected = model.matches(key);
    let mut found: Vec<usize> = matches(tree, key).iter().map(Canary::id).collect();
    assert_eq!(found.len(), expected.len(), "matches of {key:?}");
    // Sort the values of one prefix, and nothing beyond.
    let mut start = 0;
    for same in expected.chunk_by(|a, b| a.0 == b.0) {
        found[start..start + same.len()].sort_unstable();
        start += same.len();
    }
    assert_eq!(found, expected.iter().map(|(_, value)| *value).collect::<Vec<_>>(), "matches of {key:?}");
}

proptest! {
    /// Whatever is done, the tree answers as the model does; and in the end every value has been dropped once.
    #[test]
    fn agrees_with_a_list(ops in vec(op(), 1..400)) {
        let living = Arc::new(AtomicUsize::new(0));
        let tree = Tree::new();
        let mut model = Model::default();
        for op in ops {
            step(&tree, &mut model, &living, op);
        }
        let prefixes: Vec<Vec<u8>> = model.0.iter().map(|(p, _)| p.clone()).collect();
        for mut key in prefixes {
            compare(&tree, &model, &key);
            key.push(b'a');
            compare(&tree, &model, &key);
        }
        assert_living(&tree, &living, model.0.len());
        while let Some((prefix, value)) = model.0.pop() {
            model.0.push((prefix.clone(), value));
            step(&tree, &mut model, &living, Op::Remove(prefix, value));
        }
        assert!(tree.root.load(Ordering::Relaxed).is_null(), "an empty tree has no node");
        assert_living(&tree, &living, 0);
    }

    /// The shape of the tree, and so its memory, depends on what is in it and not on how it came there.
    #[test]
    fn shape_has_no_history(
        kept in vec(prefix(), 0..30),
        gone in vec(prefix(), 0..60),
    ) {
        let kept: BTreeSet<_> = kept.into_iter().collect();
        let straight = Tree::new();
        let winding = Tree::new();
        for prefix in &gone {
            winding.insert(prefix, 1);
        }
        for prefix in &kept {
            straight.insert(prefix, 0);
            winding.insert(prefix, 0);
        }
        for prefix in &gone {
            winding.remove(prefix, &1);
        }
        assert_eq!(shape(&straight), shape(&winding));
    }
}

/// The nodes from the root downwards: depth, label, number of children, whether there are values.
fn shape(tree: &Tree<usize>) -> Vec<(usize, Vec<u8>, usize, bool)> {
    let mut shape = Vec::new();
    // SAFETY: the test has the tree to itself.
    let mut todo: Vec<_> = unsafe { super::NodeRef::follow(&tree.root) }.map(|root| (0, root)).into_iter().collect();
    while let Some((depth, node)) = todo.pop() {
        shape.push((depth, node.label().to_vec(), node.len(), node.values().is_none()));
        assert!(!node.values().is_none() || node.len() > 1, "a node without a value tells children apart");
        todo.extend(node.children().map(|(_, child)| (depth + 1, child)));
    }
    shape
}

#[test]
fn empty_tree_and_empty_prefix() {
    let tree = Tree::new();
    assert_eq!(matches(&tree, b""), [0_usize; 0]);
    assert_eq!(matches(&tree, b"key"), []);
    assert!(!tree.remove(b"", &1));

    assert!(tree.insert(b"", 1));
    assert!(!tree.insert(b"", 1), "the pair is there");
    assert_eq!(matches(&tree, b""), [1]);
    assert_eq!(matches(&tree, b"key"), [1]);
    assert!(!tree.remove(b"k", &1), "another prefix");
    assert!(!tree.remove(b"", &2), "another value");
    assert!(tree.remove(b"", &1));
    assert_eq!(matches(&tree, b"key"), []);
    assert_eq!(tree.len(), 0);
}

#[test]
fn shorter_prefixes_come_first() {
    let tree = Tree::new();
    let key = b"EVENT VM 42/ACTIVE/RUNNING ";
    // From the middle outwards, so that nodes are made above and below others.
    for len in [9, 0, 27, 5, 6, 26, 12, 1, 11] {
        assert!(tree.insert(&key[..len], len));
    }
    assert!(tree.insert(b"EVENT VM 43/", 1_000));
    assert_eq!(matches(&tree, key), [0, 1, 5, 6, 9, 11, 12, 26, 27]);
    assert_eq!(matches(&tree, b"EVENT VM 43/ACTIVE"), [0, 1, 5, 6, 9, 1_000]);
    assert_eq!(matches(&tree, b"EVENT VM"), [0, 1, 5, 6]);
}

/// A value may stand at many prefixes, and is seen once for each that matches.
#[test]
fn one_value_at_several_prefixes() {
    let tree = Tree::new();
    assert!(tree.insert(b"a", 7));
    assert!(tree.insert(b"ab", 7));
    assert_eq!(tree.len(), 2);
    assert_eq!(matches(&tree, b"abc"), [7, 7]);
    assert!(tree.remove(b"a", &7));
    assert_eq!(matches(&tree, b"abc"), [7]);
}

/// All 256 bytes at two levels, so that nodes grow through each form and shrink through it again.
#[test]
fn every_byte_tells_apart() {
    let tree = Tree::new();
    let number = |a: u8, b: u8| usize::from(a) * 256 + usize::from(b);
    // An odd factor visits every byte once, in no order.
    let bytes: Vec<u8> = (0..=255_u8).map(|i| i.wrapping_mul(167).wrapping_add(13)).collect();
    // Below each first byte more than below the one before. On the way to the last, every number of children occurs.
    let below = |i: usize| if i % 16 == 15 { i + 1 } else { 1 };
    for (i, &a) in bytes.iter().enumerate() {
        for &b in &bytes[..below(i)] {
            assert!(tree.insert(&[a, b], number(a, b)));
        }
    }
    for (i, &a) in bytes.iter().enumerate() {
        for (j, &b) in bytes.iter().enumerate() {
            let expected: &[usize] = if j < below(i) { &[number(a, b)] } else { &[] };
            assert_eq!(matches(&tree, &[a, b, 0]), expected);
        }
    }
    for (i, &a) in bytes.iter().enumerate() {
        for (j, &b) in bytes[..below(i)].iter().enumerate() {
            assert!(tree.remove(&[a, b], &number(a, b)));
            assert_eq!(matches(&tree, &[a, b]), []);
            if j + 1 < below(i) {
                let next = bytes[j + 1];
                assert_eq!(matches(&tree, &[a, next]), [number(a, next)]);
            }
        }
    }
    assert_eq!(tree.len(), 0);
    assert!(tree.root.load(Ordering::Relaxed).is_null());
}

#[test]
fn prefixes_of_64_kib() {
    let tree = Tree::new();
    let long: Vec<u8> = (0..65_536_u32).map(|i| (i % 251) as u8).collect();
    let mut other = long.clone();
    *other.last_mut().unwrap() ^= 1;
    assert!(tree.insert(&long, 1));
    assert!(tree.insert(&other, 2));
    assert!(tree.insert(&long[..65_535], 3));
    assert!(tree.insert(&long[..40_000], 4));
    assert_eq!(matches(&tree, &long), [4, 3, 1]);
    assert_eq!(matches(&tree, &other), [4, 3, 2]);
    assert_eq!(matches(&tree, &long[..65_535]), [4, 3]);
    assert!(tree.remove(&long, &1));
    assert!(tree.remove(&long[..65_535], &3));
    assert_eq!(matches(&tree, &other), [4, 2]);
}

/// A tree as deep as a prefix is long, which recursion would not survive, neither when matching nor when dropping.
#[test]
fn a_level_for_each_byte() {
    let living = Arc::new(AtomicUsize::new(0));
    let tree = Tree::new();
    let key = vec![b'x'; 10_000];
    // The longest first: each shorter one then splits the root.
    for len in (0..key.len()).rev() {
        assert!(tree.insert(&key[..len], Canary::new(len, &living)));
    }
    let mut next = 0;
    tree.for_each_match(&key, &tree.reader(), |value| {
        assert_eq!(value.id(), next);
        next += 1;
    });
    assert_eq!(next, key.len());
    drop(tree);
    assert_eq!(living.load(Ordering::Relaxed), 0);
}

/// Thousands of values at one prefix, through all sizes of the list and down again.
#[test]
fn many_values_at_one_prefix() {
    const COUNT: usize = 3_000;
    let living = Arc::new(AtomicUsize::new(0));
    let tree = Tree::new();
    for id in 0..COUNT {
        assert!(tree.insert(b"EVENT", Canary::new(id, &living)));
        assert!(!tree.insert(b"EVENT", Canary::new(id / 2, &living)));
    }
    // A change of the node above the list shares the list.
    assert!(tree.insert(b"EVENT VM", Canary::new(COUNT, &living)));
    let found: BTreeSet<usize> = matches(&tree, b"EVENT VM").iter().map(Canary::id).collect();
    assert!(found.into_iter().eq(0..=COUNT));
    assert_living(&tree, &living, COUNT + 1);

    for id in (0..COUNT).filter(|id| id % 100 != 7) {
        assert!(tree.remove(b"EVENT", &Canary::new(id, &living)));
        assert!(!tree.remove(b"EVENT", &Canary::new(id, &living)));
    }
    assert_eq!(matches(&tree, b"EVENT").len(), COUNT / 100);
    // Removed values go although the list that held them stays.
    assert_living(&tree, &living, COUNT / 100 + 1);

    for id in (7..COUNT).step_by(100) {
        assert!(tree.remove(b"EVENT", &Canary::new(id, &living)));
    }
    assert_eq!(tree.len(), 1);
    assert_living(&tree, &living, 1);
}

/// Coming and going at the edge of a list's capacity.
#[test]
fn churn_at_one_prefix() {
    let living = Arc::new(AtomicUsize::new(0));
    let tree = Tree::new();
    for base in [1, 2, 3, 15, 16, 17, 64] {
        for id in 0..base {
            tree.insert(b"p", Canary::new(id, &living));
        }
        for id in 1_000..1_100 {
            assert!(tree.insert(b"p", Canary::new(id, &living)));
            assert!(tree.remove(b"p", &Canary::new(id, &living)));
            assert_eq!(matches(&tree, b"p").len(), base);
        }
    }
    assert_living(&tree, &living, 64);
}

/// What a walk has shown stays for as long as the reader is borrowed, whatever happens to the tree.
#[test]
fn what_was_shown_outlives_its_removal() {
    let living = Arc::new(AtomicUsize::new(0));
    let tree = Tree::new();
    for id in 0..5 {
        tree.insert(b"a", Canary::new(id, &living));
        tree.insert(&[b'b', id as u8], Canary::new(10 + id, &living));
    }
    let reader = tree.reader();
    let mut seen: Vec<&Canary> = Vec::new();
    tree.for_each_match(b"a", &reader, |value| seen.push(value));
    tree.for_each_match(&[b'b', 3], &reader, |value| seen.push(value));
    thread::scope(|scope| {
        scope.spawn(|| {
            for id in 0..5 {
                tree.remove(b"a", &Canary::new(id, &living));
                tree.remove(&[b'b', 3], &Canary::new(13, &living));
            }
        });
    });
    assert_eq!(seen.iter().map(|value| value.id()).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 13]);
    drop(reader);
    assert_living(&tree, &living, 4);
    drop(tree);
    assert_eq!(living.load(Ordering::Relaxed), 0);
}

/// What was taken out and never reclaimed goes with the tree; what was reclaimed may outlive it.
#[test]
fn retired_values_are_dropped_once() {
    let living = Arc::new(AtomicUsize::new(0));
    let tree = Tree::new();
    for id in 0..40 {
        tree.insert(b"p", Canary::new(id, &living));
    }
    for id in 0..39 {
        tree.remove(b"p", &Canary::new(id, &living));
    }
    let reclaimed = tree.reclaim_now();
    assert!(tree.retired_len() == 0 && living.load(Ordering::Relaxed) > 1);
    tree.remove(b"p", &Canary::new(39, &living));
    drop(tree);
    drop(reclaimed);
    assert_eq!(living.load(Ordering::Relaxed), 0);
}

/// Readers run while writers insert and remove around them: what is never removed is always seen, what is seen is alive and
/// belongs to the key.
#[test]
fn readers_always_see_what_stays() {
    const READERS: usize = 2;
    let rounds = if cfg!(debug_assertions) { 300 } else { 3_000 };
    let living = Arc::new(AtomicUsize::new(0));
    let tree = Tree::new();
    // Some stand alone, some among values that come and go, some at the ends of labels that are split and joined.
    let stable: Vec<Vec<u8>> = (0..60_usize)
        .map(|i| match i % 4 {
            0 => format!("EVENT VM {i}/ACTIVE/RUNNING ").into_bytes(),
            1 => format!("EVENT VM {i}").into_bytes(),
            2 => vec![i as u8 * 4],
            _ => b"EVENT"[..i % 6].to_vec(),
        })
        .collect();
    for (i, prefix) in stable.iter().enumerate() {
        assert!(tree.insert(prefix, Canary::new(i, &living)));
    }
    let done = AtomicBool::new(false);
    let walks = AtomicUsize::new(0);
    thread::scope(|scope| {
        for reader in 0..READERS {
            let (tree, stable, done, walks) = (&tree, &stable, &done, &walks);
            scope.spawn(move || {
                let mut i = reader;
                while !done.load(Ordering::Relaxed) {
                    let reader = tree.reader();
                    // Several walks with the reader borrowed once: the nodes of each stay until the last.
                    let mut kept: Vec<(usize, &Canary)> = Vec::new();
                    for _ in 0..5 {
                        i = (i + 7) % stable.len();
                        let mut key = stable[i].clone();
                        key.extend_from_slice(b" and more");
                        let mut seen = false;
                        tree.for_each_match(&key, &reader, |value| {
                            seen |= value.id() == i;
                            kept.push((i, value));
                        });
                        assert!(seen, "value {i} at {:?} was not seen", stable[i]);
                    }
                    for (i, value) in kept {
                        let id = value.id();
                        let prefix = stable.get(id).unwrap_or_else(|| &stable[id % stable.len()]);
                        assert!(id >= stable.len() || stable[i].starts_with(prefix), "value {id} is not at {i}");
                    }
                    walks.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let writers: Vec<_> = (0..2_usize)
            .map(|writer| {
                let (tree, stable, living, walks) = (&tree, &stable, &living, &walks);
                scope.spawn(move || {
                    for round in 0..rounds {
                        // At the stable prefixes, above and below them, and beside them.
                        let mut mine = Vec::new();
                        for (i, prefix) in stable.iter().enumerate().skip(round % 7).step_by(3) {
                            let id = (1 + writer) * 1_000 * stable.len() + round % 5 * stable.len() + i;
                            let mut longer = prefix.clone();
                            longer.extend([b' ', round as u8, i as u8]);
                            let shorter = prefix[..prefix.len() / 2].to_vec();
                            let mut beside = prefix.clone();
                            if let Some(last) = beside.last_mut() {
                                *last ^= 1 + (round % 16) as u8;
                            }
                            for prefix in [prefix.clone(), longer, shorter, beside] {
                                if tree.insert(&prefix, Canary::new(id, living)) {
                                    mine.push((prefix, id));
                                }
                            }
                        }
                        for (prefix, id) in mine {
                            assert!(tree.remove(&prefix, &Canary::new(id, living)));
                        }
                        drop(tree.reclaim_now());
                    }
                    // The machine may have run the writers before any reader came to its turn.
                    while walks.load(Ordering::Relaxed) < 10 {
                        thread::yield_now();
                    }
                })
            })
            .collect();
        let ends: Vec<_> = writers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        done.store(true, Ordering::Relaxed);
        for end in ends {
            end.unwrap();
        }
    });
    assert_eq!(tree.len(), stable.len());
    assert_living(&tree, &living, stable.len());
    drop(tree);
    assert_eq!(living.load(Ordering::Relaxed), 0);
}
