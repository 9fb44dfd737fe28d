//! One node of the prefix tree: a single allocation, laid out so that passing through it touches one or two cache lines.
//!
//! ```text
//! | label length 4 | children 2 | values 1 | - | value or list 8 | keys 0, 8, 16 or 40 | label | - | pointers 8 each |
//! ```
//!
//! (Sizes for a value as large as a pointer.) *Keys* are the bytes that lead to the children, ascending, as the
//! pointers are. Up to 16 of them are kept as they are and searched eight at a time; more are a bitmap of 256 bits and,
//! for each of its four words, the number of bits in those before it. So any fan-out is resolved within the first line
//! of the node, and one more holds the pointer. The byte that leads to a node is not repeated in its label.
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

/// Up to this many children, their keys are stored as bytes.
const MAX_LISTED_KEYS: usize = 16;
/// Four words of bitmap, and a word with their ranks.
const BITMAP_BYTES: usize = 40;

/// `values` says what the union holds: nothing, one value, or a list of `1 << (values - 1)` slots.
const NO_VALUE: u8 = 0;
const ONE_VALUE: u8 = 1;

/// The fixed part of a node.
#[repr(C)]
pub(super) struct Node<V> {
    label_len: u32,
    children: u16,
    values: u8,
    value: ValueSlot<V>,
}

union ValueSlot<V> {
    none: (),
    one: ManuallyDrop<V>,
    many: NonNull<Slot<V>>,
}

/// Where the parts of a node lie, in bytes from its start.
struct Shape {
    label: usize,
    links: usize,
    layout: Layout,
}

/// The length of the keys of so many children, padded to whole words.
#[inline]
const fn keys_len(children: usize) -> usize {
    if children > MAX_LISTED_KEYS { BITMAP_BYTES } else { whole_words(children) }
}

/// The next multiple of 8, in two instructions.
#[inline]
const fn whole_words(bytes: usize) -> usize {
    (bytes + 7) & !7
}

impl<V> Node<V> {
    const KEYS: usize = size_of::<Node<V>>();

    /// Where the pointers begin.
    #[inline]
    const fn links_offset(children: usize, label_len: usize) -> usize {
        const { assert!(align_of::<Link<V>>() <= 8) };
        whole_words(Self::KEYS + keys_len(children) + label_len)
    }

    fn shape(children: usize, label_len: usize) -> Shape {
        let label = Self::KEYS + keys_len(children);
        let links = Self::links_offset(children, label_len);
        let size = if children == 0 { label + label_len } else { links + children * size_of::<Link<V>>() };
        // A node's alignment is at least that of the pointers, since the union has one, and of the bitmap's words.
        let layout = Layout::from_size_align(size, align_of::<Node<V>>()).expect("a label is at most 4 GiB long");
        Shape { label, links, layout }
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
            alloc::dealloc(header.cast(), shape.layout);
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
            value,
        };
        // SAFETY: the layout's size is not zero, as it holds the header. All writes stay inside of the shape that it was
        // computed from: the header, the keys (zeroed), the label's parts.
        let node = unsafe {
            let Some(node) = NonNull::new(alloc::alloc(shape.layout)) else { alloc::handle_alloc_error(shape.layout) };
            node.cast::<Node<V>>().write(header);
            node.add(Node::<V>::KEYS).write_bytes(0, keys_len(children));
            let mut at = node.add(shape.label);
            for part in label {
                at.copy_from_nonoverlapping(NonNull::from(*part).cast(), part.len());
                at = at.add(part.len());
            }
            node.cast()
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
            if self.children > MAX_LISTED_KEYS {
                *keys.cast::<u64>().add(usize::from(key / 64)).as_mut() |= 1 << (key % 64);
            } else {
                keys.add(self.pushed).write(key);
            }
            let links = self.node.cast::<u8>().add(self.shape.links).cast::<Link<V>>();
            links.add(self.pushed).write(Link::new(child.as_ptr()));
        }
        self.pushed += 1;
        self.last_key = Some(key);
    }

    /// The finished node, to be put into the tree; who takes it out again frees it.
    pub(super) fn finish(self) -> NonNull<Node<V>> {
        assert!(self.pushed == self.children, "children are pushed as announced");
        if self.children > MAX_LISTED_KEYS {
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

    #[inline]
    pub(super) fn len(self) -> usize {
        usize::from(self.header().children)
    }

    /// What follows the byte that leads here.
    #[inline]
    pub(super) fn label(self) -> &'g [u8] {
        let header = self.header();
        let offset = Node::<V>::KEYS + keys_len(usize::from(header.children));
        // SAFETY: the label lies there, was written before the node was published, and doesn't change.
        unsafe { slice::from_raw_parts(self.part(offset).as_ptr(), header.label_len as usize) }
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
        let offset = Node::<V>::links_offset(len, self.header().label_len as usize);
        // SAFETY: so many pointers lie there, written before the node was published, and they change only as atomics.
        unsafe { slice::from_raw_parts(self.part(offset).as_ptr(), len) }
    }

    /// The `i`th word of the keys.
    #[inline]
    fn key_word(self, i: usize) -> [u8; 8] {
        debug_assert!(i < keys_len(self.len()) / 8, "keys are whole words");
        // SAFETY: keys are padded to whole words, all of them initialised; the caller asks for one of them.
        unsafe { self.part::<[u8; 8]>(Node::<V>::KEYS + i * 8).read() }
    }

    /// The place of the child that `key` leads to among the pointers.
    #[inline]
    fn position(self, key: u8) -> Option<usize> {
        let len = self.len();
        if len > MAX_LISTED_KEYS {
            let word = usize::from(key / 64);
            let bits = u64::from_ne_bytes(self.key_word(word));
            let bit = 1 << (key % 64);
            if bits & bit == 0 {
                return None;
            }
            let rank = self.key_word(4)[word];
            return Some(usize::from(rank) + (bits & (bit - 1)).count_ones() as usize);
        }
        // Find a zero byte in `word ^ key repeated`: the lowest one found is always exact. Padding can only be found
        // behind the last key, where `position` refuses it.
        const ONES: u64 = 0x0101_0101_0101_0101;
        const HIGHS: u64 = 0x8080_8080_8080_8080;
        let zeros = |word| {
            let x = u64::from_le_bytes(word) ^ (ONES * u64::from(key));
            x.wrapping_sub(ONES) & !x & HIGHS
        };
        if len == 0 {
            return None;
        }
        // Without a zero byte, this is 8.
        let position = zeros(self.key_word(0)).trailing_zeros() as usize / 8;
        if position < len.min(8) {
            return Some(position);
        }
        if len <= 8 {
            return None;
        }
        let position = 8 + zeros(self.key_word(1)).trailing_zeros() as usize / 8;
        (position < len).then_some(position)
    }

    /// The pointer to the child that `key` leads to. Nodes in the tree have no null pointers.
    #[inline]
    pub(super) fn child(self, key: u8) -> Option<&'g Link<V>> {
        let position = self.position(key)?;
        let header = self.header();
        let links = Node::<V>::links_offset(usize::from(header.children), header.label_len as usize);
        // SAFETY: `position` is below the number of children, and so many pointers lie there; see `links`.
        Some(unsafe { self.part::<Link<V>>(links).add(position).as_ref() })
    }

    /// The children and the bytes that lead to them, ascending.
    pub(super) fn children(self) -> impl Iterator<Item = (u8, NodeRef<'g, V>)> {
        let bitmap = self.len() > MAX_LISTED_KEYS;
        let mut key = 0_u16;
        self.links().iter().enumerate().filter_map(move |(i, link)| {
            if bitmap {
                while u64::from_ne_bytes(self.key_word(usize::from(key / 64))) >> (key % 64) & 1 == 0 {
                    key += 1;
                }
            } else {
                key = u16::from(self.key_word(i / 8)[i % 8]);
            }
            let byte = key as u8;
            key += 1;
            // SAFETY: as for this node.
            unsafe { NodeRef::follow(link) }.map(|child| (byte, child))
        })
    }
}
