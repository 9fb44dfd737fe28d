//! One node of the prefix tree: a single allocation, laid out so that passing through it touches one or two cache lines.
//!
//! ```text
//! | - | label | label length 4 | children 2 | values 1 | words of keys 1 | value or list 8 | keys 0, 16 or 40 | pointers 8 each |
//!               ▲ the node's address
//! ```
//!
//! (Sizes for a value as large as a pointer.) *Keys* are the bytes that lead to the children, ascending, as the
//! pointers are. Up to 16 of them are kept as they are and searched at once; more are a bitmap of 256 bits and,
//! for each of its four words, the number of bits in those before it. So any fan-out is resolved within the first line
//! of the node, and one more holds the pointer. The byte that leads to a node is not repeated in its label.
//!
//! A walk does little for each node, and all it does counts. So keys are padded with the first of them, which is found
//! before its copies; labels are padded to whole words with zeros, so that a short one is compared as one word; and nothing has to be
//! added up to find the pointers.
//!
//! Nodes are not changed once they can be reached, except for two things: the pointers to children, and the values in
//! a list (see [`values`](super::values)). Any other change builds a new node and swaps the pointer in the parent.
//!
//! The parts behind the header lie outside of what a `&Node` would cover, so nodes are handled by raw pointer, wrapped
//! as [`NodeRef`].
#![allow(unsafe_code, reason = "a node is one allocation of variable size, and is handed to readers without a lock")]

use std::alloc::{self, Layout};
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicPtr, Ordering};

use super::values::{ListRef, Slot, Values, ValuesRef};

/// A pointer to a node that other threads may read. Stored with `Release`, so that who finds a node finds it written.
pub(super) type Link<V> = AtomicPtr<Node<V>>;

/// Up to this many children, their keys are stored as bytes, in so many.
const LISTED_KEYS: usize = 16;
/// Four words of bitmap, and a word with their ranks.
const BITMAP_BYTES: usize = 40;
const WORD: usize = size_of::<u64>();
/// The longest label that is compared as one word.
pub(super) const SHORT_LABEL: usize = WORD;

/// `values` says what the union holds: nothing, one value, or a list of `1 << (values - 1)` slots.
const NO_VALUE: u8 = 0;
const ONE_VALUE: u8 = 1;

/// The fixed part of a node.
#[repr(C)]
pub(super) struct Node<V> {
    label_len: u32,
    children: u16,
    values: u8,
    /// How many words the keys take.
    key_words: u8,
    value: ValueSlot<V>,
}

union ValueSlot<V> {
    none: (),
    one: ManuallyDrop<V>,
    many: NonNull<Slot<V>>,
}

/// Where the parts of a node lie, in bytes from the start of its allocation.
struct Shape {
    node: usize,
    links: usize,
    layout: Layout,
}

/// The length of the keys of so many children.
#[inline]
const fn keys_len(children: usize) -> usize {
    match children {
        0 => 0,
        1..=LISTED_KEYS => LISTED_KEYS,
        _ => BITMAP_BYTES,
    }
}

impl<V> Node<V> {
    const KEYS: usize = size_of::<Node<V>>();

    #[inline]
    fn keys_len(&self) -> usize {
        usize::from(self.key_words) * WORD
    }

    fn shape(children: usize, label_len: usize) -> Shape {
        const { assert!(align_of::<Link<V>>() <= WORD && align_of::<Node<V>>() <= WORD) };
        let node = label_len.next_multiple_of(WORD);
        let links = node + Self::KEYS + keys_len(children);
        let layout = Layout::from_size_align(links + children * size_of::<Link<V>>(), WORD);
        Shape { node, links, layout: layout.expect("a label is at most 4 GiB long") }
    }

    /// Drops a node's values and frees it; its children are left alone.
    ///
    /// # Safety
    /// `node` was made by a [`NodeBuilder`], nobody can reach it any more, and this is the only call for it.
    pub(super) unsafe fn free(node: NonNull<Node<V>>) {
        // SAFETY: the caller vouches for the node; `values` says which part of the union is set. The values are moved
        // out before the memory goes, and dropped last, as their destructor may do anything.
        unsafe {
            let header = node.as_ptr();
            let shape = Self::shape(usize::from((*header).children), (*header).label_len as usize);
            let _values = match (*header).values {
                NO_VALUE => Values::None,
                ONE_VALUE => Values::One(ManuallyDrop::take(&mut (*header).value.one)),
                n => Values::Many(ListRef::from_raw((*header).value.many, n - 1).into_list()),
            };
            alloc::dealloc(header.cast::<u8>().sub(shape.node), shape.layout);
        }
    }
}

/// Writes a new node.
pub(super) struct NodeBuilder<V> {
    node: NonNull<Node<V>>,
    shape: Shape,
    children: usize,
    pushed: usize,
    last_key: Option<u8>,
    owns: PhantomData<Node<V>>,
}

impl<V> NodeBuilder<V> {
    /// A node with the parts of `label` joined, these values, and room for so many children (256 at most), which all
    /// must be pushed.
    pub(super) fn new(label: &[&[u8]], values: Values<V>, children: usize) -> Self {
        assert!(children <= 256, "a byte has 256 values");
        let label_len = label.iter().map(|part| part.len()).sum();
        let shape = Node::<V>::shape(children, label_len);
        let (tag, value) = match values {
            Values::None => (NO_VALUE, ValueSlot { none: () }),
            Values::One(value) => (ONE_VALUE, ValueSlot { one: ManuallyDrop::new(value) }),
            Values::Many(list) => {
                let (slots, log2) = list.into_raw();
                (log2 + 1, ValueSlot { many: slots })
            }
        };
        let header = Node {
            label_len: u32::try_from(label_len).expect("prefixes are bounded far below 4 GiB"),
            children: children as u16,
            values: tag,
            key_words: (keys_len(children) / WORD) as u8,
            value,
        };
        // SAFETY: the layout's size is not zero, as it holds the header. All writes stay inside of the shape that it was
        // computed from: zeros up to the pointers, the label's parts, the header.
        let node = unsafe {
            let Some(start) = NonNull::new(alloc::alloc(shape.layout)) else { alloc::handle_alloc_error(shape.layout) };
            start.write_bytes(0, shape.links);
            let mut at = start;
            for part in label {
                at.copy_from_nonoverlapping(NonNull::from(*part).cast(), part.len());
                at = at.add(part.len());
            }
            let node = start.add(shape.node).cast::<Node<V>>();
            node.write(header);
            node
        };
        NodeBuilder { node, shape, children, pushed: 0, last_key: None, owns: PhantomData }
    }

    /// Adds the child that `key` leads to; keys must ascend.
    pub(super) fn push(&mut self, key: u8, child: NonNull<Node<V>>) {
        assert!(self.pushed < self.children && self.last_key < Some(key), "children are pushed as announced");
        // SAFETY: `pushed` is below the number of children that the shape was made for, so the key and the pointer lie
        // inside of the allocation, and words of the bitmap are aligned (see `shape`). Nobody else sees the node yet.
        unsafe {
            let keys = self.node.cast::<u8>().add(Node::<V>::KEYS);
            if self.children > LISTED_KEYS {
                *keys.cast::<u64>().add(usize::from(key / 64)).as_mut() |= 1 << (key % 64);
            } else if self.pushed == 0 {
                keys.write_bytes(key, keys_len(self.children));
            } else {
                keys.add(self.pushed).write(key);
            }
            let links = self.node.cast::<u8>().add(self.shape.links - self.shape.node).cast::<Link<V>>();
            links.add(self.pushed).write(Link::new(child.as_ptr()));
        }
        self.pushed += 1;
        self.last_key = Some(key);
    }

    /// The finished node, to be put into the tree; who takes it out again frees it.
    pub(super) fn finish(self) -> NonNull<Node<V>> {
        assert!(self.pushed == self.children, "children are pushed as announced");
        if self.children > LISTED_KEYS {
            // SAFETY: so many children have a bitmap: four words, and eight bytes for the ranks.
            unsafe {
                let words = self.node.cast::<u8>().add(Node::<V>::KEYS).cast::<u64>();
                let ranks = words.add(4).cast::<u8>();
                let mut rank = 0;
                for i in 0..4 {
                    // At most 192 bits come before the last word.
                    ranks.add(i).write(rank as u8);
                    rank += words.add(i).read().count_ones();
                }
            }
        }
        self.node
    }
}

/// The first place of `key` among listed keys. What they are padded with stands before, so the padding is never found.
#[inline]
fn place_in(keys: [u8; LISTED_KEYS], key: u8) -> Option<usize> {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_mm_cmpeq_epi8, _mm_movemask_epi8, _mm_set1_epi8};
        // SAFETY: every x86-64 processor has SSE2, and any 16 bytes are a vector of 16 bytes.
        let places = unsafe {
            let keys = std::mem::transmute::<[u8; LISTED_KEYS], std::arch::x86_64::__m128i>(keys);
            _mm_movemask_epi8(_mm_cmpeq_epi8(keys, _mm_set1_epi8(key.cast_signed())))
        };
        (places != 0).then(|| places.trailing_zeros() as usize)
    }
    #[cfg(not(target_arch = "x86_64"))]
    keys.iter().position(|listed| *listed == key)
}

/// Asks for the line after a node's first, where most nodes have their pointers, so that both come at once instead of one
/// after the other.
#[inline]
fn prefetch_second_line(node: *const u8) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch is a hint: it neither reads nor faults, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(node.wrapping_add(64).cast()) };
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = node;
}

/// A node of the tree, readable for `'g`.
pub(super) struct NodeRef<'g, V> {
    node: NonNull<Node<V>>,
    life: PhantomData<&'g Node<V>>,
}

impl<V> Clone for NodeRef<'_, V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<V> Copy for NodeRef<'_, V> {}

impl<'g, V> NodeRef<'g, V> {
    /// The node that `link` leads to, if any.
    ///
    /// # Safety
    /// Nodes that can be reached through `link` now are not freed during `'g`: the caller holds a guard, or the writers'
    /// lock.
    #[inline]
    pub(super) unsafe fn follow(link: &Link<V>) -> Option<Self> {
        let node = link.load(Ordering::Acquire);
        prefetch_second_line(node.cast());
        NonNull::new(node).map(|node| NodeRef { node, life: PhantomData })
    }

    /// The node that a node's link leads to.
    ///
    /// # Safety
    /// As [`follow`](NodeRef::follow), and `link` is that of a finished node: those have no null pointers.
    #[inline]
    pub(super) unsafe fn follow_child(link: &Link<V>) -> Self {
        let node = link.load(Ordering::Acquire);
        prefetch_second_line(node.cast());
        // SAFETY: the caller's promise.
        NodeRef { node: unsafe { NonNull::new_unchecked(node) }, life: PhantomData }
    }

    pub(super) fn as_ptr(self) -> NonNull<Node<V>> {
        self.node
    }

    #[inline]
    fn header(self) -> &'g Node<V> {
        // SAFETY: `follow`'s caller keeps the node for 'g, and a header doesn't change.
        unsafe { self.node.as_ref() }
    }

    /// Where the part at `offset` begins.
    ///
    /// # Safety
    /// `offset` lies inside of the node.
    #[inline]
    unsafe fn part<T>(self, offset: usize) -> NonNull<T> {
        // SAFETY: the pointer is that of the whole allocation, and the caller vouches for the offset.
        unsafe { self.node.cast::<u8>().add(offset).cast() }
    }

    /// The word that ends `words` words before the header, where the label lies.
    ///
    /// # Safety
    /// The label has so many words.
    #[inline]
    unsafe fn before<T>(self, words: usize) -> NonNull<T> {
        // SAFETY: as above.
        unsafe { self.node.cast::<u64>().sub(words).cast() }
    }

    #[inline]
    pub(super) fn len(self) -> usize {
        usize::from(self.header().children)
    }

    /// What follows the byte that leads here.
    #[inline]
    pub(super) fn label(self) -> &'g [u8] {
        let len = self.label_len();
        // SAFETY: the label lies there, was written before the node was published, and doesn't change.
        unsafe { slice::from_raw_parts(self.before(len.div_ceil(WORD)).as_ptr(), len) }
    }

    #[inline]
    pub(super) fn label_len(self) -> usize {
        self.header().label_len as usize
    }

    /// A label of at most so many bytes, and not empty; what it doesn't have is 0.
    #[inline]
    pub(super) fn short_label(self) -> [u8; SHORT_LABEL] {
        debug_assert!((1..=SHORT_LABEL).contains(&self.label_len()), "it is one word");
        // SAFETY: a label is padded to whole words, all of them initialised, and this one has one.
        unsafe { self.before::<[u8; SHORT_LABEL]>(1).read() }
    }

    #[inline]
    pub(super) fn values(self) -> ValuesRef<'g, V> {
        let header = self.header();
        // SAFETY: `values` says which part of the union is set, and the node keeps it for 'g.
        unsafe {
            match header.values {
                NO_VALUE => ValuesRef::None,
                ONE_VALUE => ValuesRef::One(&header.value.one),
                n => ValuesRef::Many(ListRef::from_raw(header.value.many, n - 1)),
            }
        }
    }

    #[inline]
    fn links(self) -> &'g [Link<V>] {
        let len = self.len();
        if len == 0 {
            return &[];
        }
        let offset = Node::<V>::KEYS + self.header().keys_len();
        // SAFETY: so many pointers lie there, written before the node was published, and they change only as atomics.
        unsafe { slice::from_raw_parts(self.part(offset).as_ptr(), len) }
    }

    /// The keys where they are listed.
    #[inline]
    fn listed(self) -> [u8; LISTED_KEYS] {
        debug_assert!(self.header().keys_len() == LISTED_KEYS, "keys are listed");
        // SAFETY: so many bytes lie there, all of them initialised; the caller has seen to it.
        unsafe { self.part::<[u8; LISTED_KEYS]>(Node::<V>::KEYS).read() }
    }

    /// The `i`th word of a bitmap, or the ranks, which lie behind.
    #[inline]
    fn bitmap_word(self, i: usize) -> [u8; WORD] {
        debug_assert!(i < BITMAP_BYTES / WORD && self.header().keys_len() == BITMAP_BYTES, "there is a bitmap");
        // SAFETY: so many words lie there, all of them initialised; the caller has seen to it.
        unsafe { self.part::<[u8; WORD]>(Node::<V>::KEYS + i * WORD).read() }
    }

    /// The place of the child that `key` leads to among the pointers.
    #[inline]
    fn position(self, key: u8) -> Option<usize> {
        match self.header().keys_len() {
            LISTED_KEYS => place_in(self.listed(), key),
            0 => None,
            _ => {
                let word = usize::from(key / 64);
                let bits = u64::from_ne_bytes(self.bitmap_word(word));
                let bit = 1 << (key % 64);
                if bits & bit == 0 {
                    return None;
                }
                let rank = self.bitmap_word(4)[word];
                Some(usize::from(rank) + (bits & (bit - 1)).count_ones() as usize)
            }
        }
    }

    /// The pointer to the child that `key` leads to. Nodes in the tree have no null pointers.
    #[inline]
    pub(super) fn child(self, key: u8) -> Option<&'g Link<V>> {
        let position = self.position(key)?;
        let links = Node::<V>::KEYS + self.header().keys_len();
        // SAFETY: `position` is below the number of children, and so many pointers lie there; see `links`.
        Some(unsafe { self.part::<Link<V>>(links).add(position).as_ref() })
    }

    /// The children and the bytes that lead to them, ascending.
    pub(super) fn children(self) -> impl Iterator<Item = (u8, NodeRef<'g, V>)> {
        let bitmap = self.len() > LISTED_KEYS;
        let mut key = 0_u16;
        self.links().iter().enumerate().filter_map(move |(i, link)| {
            if bitmap {
                while u64::from_ne_bytes(self.bitmap_word(usize::from(key / 64))) >> (key % 64) & 1 == 0 {
                    key += 1;
                }
            } else {
                key = u16::from(self.listed()[i]);
            }
            let byte = key as u8;
            key += 1;
            // SAFETY: as for this node.
            unsafe { NodeRef::follow(link) }.map(|child| (byte, child))
        })
    }
}
