//! The values at one prefix: mostly one, sometimes thousands, read while they change.
//!
//! One value lies in the node itself. Two and more lie in a [`List`]: slots that are filled from the front, each once,
//! and marked dead when their value is removed. So a change is one store, whatever the number of values, and a reader
//! that is in the middle of the list neither misses a value that stays nor sees one move. A value is dropped in its
//! slot once no reader can be looking at it. The list is written anew, its values cloned, when it is full and when it
//! has become nearly empty, which makes a constant share of a clone for each change. A writer compares with every
//! value, though: ten thousand values at one prefix cost microseconds a change.
//!
//! All changes are made by the one writer that holds the tree's lock.
#![allow(unsafe_code, reason = "slots are shared between one writer and readers that take no lock")]

use std::cell::UnsafeCell;
use std::iter;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use super::Retired;

/// Lists below this capacity are not made smaller: nothing would be won.
const MIN_SHRINK_CAPACITY: usize = 16;

/// The state of a [`Slot`]; it only ever goes forward.
const EMPTY: u8 = 0;
const LIVE: u8 = 1;
const DEAD: u8 = 2;

/// Room for one value.
pub(super) struct Slot<V> {
    /// Set to `LIVE` with `Release` after the value was written, so that who sees `LIVE` sees the value.
    state: AtomicU8,
    /// Initialised while `state` is `LIVE`, and while it is `DEAD` until the last reader has gone.
    value: UnsafeCell<MaybeUninit<V>>,
}

// SAFETY: the cell is written only by the one writer, and only while the state is EMPTY, when nobody reads it, or after
// every reader that saw LIVE has gone; in between it is shared as a `&V`, which `V: Sync` allows. The value may be
// dropped by another thread than the one that made it, hence `V: Send`.
unsafe impl<V: Send + Sync> Sync for Slot<V> {}

impl<V> Slot<V> {
    fn new(value: Option<V>) -> Self {
        match value {
            Some(value) => Slot { state: AtomicU8::new(LIVE), value: UnsafeCell::new(MaybeUninit::new(value)) },
            None => Slot { state: AtomicU8::new(EMPTY), value: UnsafeCell::new(MaybeUninit::uninit()) },
        }
    }

    /// The value, if it is live.
    #[inline]
    fn get(&self) -> Option<&V> {
        if self.state.load(Ordering::Acquire) != LIVE {
            return None;
        }
        // SAFETY: LIVE was stored after the value. It is dropped only after it was retired (`kill`), when no walk is under way, or with
        // the whole list, and `&self` proves that the caller keeps the list, by being on a walk or by owning it.
        Some(unsafe { (*self.value.get()).assume_init_ref() })
    }
}

impl<V> Drop for Slot<V> {
    fn drop(&mut self) {
        // The value of a dead slot was dropped by the `Killed` that `kill` made: that one owns a share of the list, so the list
        // can't be dropped before.
        if *self.state.get_mut() == LIVE {
            // SAFETY: a live slot's value is initialised, and `&mut self` says that nobody else sees it.
            unsafe { self.value.get_mut().assume_init_drop() };
        }
    }
}

/// Two or more live values in slots, of which there are a power of two. Clones share the same slots.
pub(super) struct List<V>(Arc<[Slot<V>]>);

impl<V> Clone for List<V> {
    fn clone(&self) -> Self {
        List(Arc::clone(&self.0))
    }
}

impl<V> List<V> {
    /// A list of `len` values with room for half as many more, so that filling it up pays for writing it anew.
    fn new(len: usize, values: impl Iterator<Item = V>) -> Self {
        let mut values = values.fuse();
        let capacity = if len == 2 { 2 } else { (len + len / 2).next_power_of_two() };
        let list = List((0..capacity).map(|_| Slot::new(values.next())).collect());
        debug_assert!(values.next().is_none(), "the list has room for its values");
        list
    }

    /// Gives the list away as a thin pointer and the binary logarithm of its capacity.
    pub(super) fn into_raw(self) -> (NonNull<Slot<V>>, u8) {
        let log2 = self.0.len().trailing_zeros() as u8;
        let raw = Arc::into_raw(self.0).cast::<Slot<V>>().cast_mut();
        (NonNull::new(raw).expect("an Arc is never null"), log2)
    }
}

/// A list that a node owns, borrowed from it.
pub(super) struct ListRef<'g, V> {
    slots: *const [Slot<V>],
    node: PhantomData<&'g Slot<V>>,
}

impl<V> Clone for ListRef<'_, V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<V> Copy for ListRef<'_, V> {}

impl<'g, V> ListRef<'g, V> {
    /// # Safety
    /// The arguments come from [`List::into_raw`], and that share of the list lives for `'g`.
    #[inline]
    pub(super) unsafe fn from_raw(slots: NonNull<Slot<V>>, log2: u8) -> Self {
        ListRef { slots: ptr::slice_from_raw_parts(slots.as_ptr(), 1 << log2), node: PhantomData }
    }

    /// # Safety
    /// As [`from_raw`](ListRef::from_raw); the share is taken over and must not be used otherwise afterwards.
    pub(super) unsafe fn into_list(self) -> List<V> {
        // SAFETY: `slots` is what `Arc::into_raw` gave, its length put back.
        List(unsafe { Arc::from_raw(self.slots) })
    }

    /// A share of its own.
    pub(super) fn to_list(self) -> List<V> {
        // SAFETY: `slots` is what `Arc::into_raw` gave, and the node's share keeps the count above zero.
        unsafe {
            Arc::increment_strong_count(self.slots);
            self.into_list()
        }
    }

    fn slots(self) -> &'g [Slot<V>] {
        // SAFETY: the node's share of the list lives for 'g.
        unsafe { &*self.slots }
    }

    /// The live values.
    #[inline]
    pub(super) fn iter(self) -> impl Iterator<Item = &'g V> {
        self.slots().iter().filter_map(Slot::get)
    }

    /// Takes the value at `index`, which is live, out of sight. The caller holds the writers' lock.
    fn kill(self, index: usize) -> Killed<V> {
        let list = self.to_list();
        list.0[index].state.store(DEAD, Ordering::Release);
        Killed { list, index }
    }
}

/// A value that was taken out of sight, at which walks may still look.
pub(super) struct Killed<V> {
    list: List<V>,
    index: usize,
}

impl<V> Killed<V> {
    /// Drops the value.
    ///
    /// # Safety
    /// No walk that began before the value was taken out of sight is still under way, and this is the only call for it.
    pub(super) unsafe fn free(self) {
        // SAFETY: walks that begin later don't see LIVE, so nobody has a reference to the value. It is there, since its slot was
        // live, and nothing else ever writes or drops a dead slot; the slot is there, since we have a share of the list.
        unsafe { (*self.list.0[self.index].value.get()).assume_init_drop() };
    }
}

/// The values at a prefix, owned.
pub(super) enum Values<V> {
    None,
    One(V),
    Many(List<V>),
}

/// The values at a prefix, as they lie in a node.
pub(super) enum ValuesRef<'g, V> {
    None,
    One(&'g V),
    Many(ListRef<'g, V>),
}

/// What a change of a node's values came to.
pub(super) enum Change<V> {
    /// There was nothing to do.
    Nothing,
    /// It is done.
    InPlace,
    /// The node must be replaced by one with these values.
    Replace(Values<V>),
}

impl<V> ValuesRef<'_, V> {
    pub(super) fn is_none(&self) -> bool {
        matches!(self, ValuesRef::None)
    }
}

impl<V: Clone> ValuesRef<'_, V> {
    /// The same values for another node.
    pub(super) fn to_values(&self) -> Values<V> {
        match self {
            ValuesRef::None => Values::None,
            ValuesRef::One(value) => Values::One(V::clone(value)),
            ValuesRef::Many(list) => Values::Many(list.to_list()),
        }
    }
}

impl<V: Clone + Eq> ValuesRef<'_, V> {
    /// Adds a value, unless it is there.
    ///
    /// # Safety
    /// The caller holds the writers' lock, and the values are the current ones.
    pub(super) unsafe fn insert(&self, value: V) -> Change<V> {
        let list = match self {
            ValuesRef::None => return Change::Replace(Values::One(value)),
            ValuesRef::One(old) if **old == value => return Change::Nothing,
            ValuesRef::One(old) => {
                return Change::Replace(Values::Many(List::new(2, [V::clone(old), value].into_iter())));
            }
            ValuesRef::Many(list) => list,
        };
        let mut live = 0;
        for slot in list.slots() {
            // Slots are filled from the front: the first empty one ends the list. Only writers store states, and the
            // lock orders them.
            if slot.state.load(Ordering::Relaxed) == EMPTY {
                // SAFETY: nobody looks at the value of an empty slot, and this is the only writer.
                unsafe { (*slot.value.get()).write(value) };
                slot.state.store(LIVE, Ordering::Release);
                return Change::InPlace;
            }
            if let Some(old) = slot.get() {
                if *old == value {
                    return Change::Nothing;
                }
                live += 1;
            }
        }
        Change::Replace(Values::Many(List::new(live + 1, list.iter().cloned().chain(iter::once(value)))))
    }

    /// Takes a value out.
    ///
    /// # Safety
    /// The caller holds the writers' lock, and the values are the current ones.
    pub(super) unsafe fn remove(&self, value: &V, retired: &mut Retired<V>) -> Change<V> {
        let list = match self {
            ValuesRef::None => return Change::Nothing,
            ValuesRef::One(old) if *old == value => return Change::Replace(Values::None),
            ValuesRef::One(_) => return Change::Nothing,
            ValuesRef::Many(list) => list,
        };
        let (mut found, mut live) = (None, 0);
        for (i, slot) in list.slots().iter().enumerate() {
            if let Some(old) = slot.get() {
                live += 1;
                if old == value {
                    found = Some(i);
                }
            }
        }
        let Some(index) = found else { return Change::Nothing };
        let mut others = list.iter().filter(|other| *other != value);
        let capacity = list.slots().len();
        match live - 1 {
            1 => Change::Replace(match others.next() {
                Some(last) => Values::One(last.clone()),
                None => Values::None,
            }),
            left if capacity >= MIN_SHRINK_CAPACITY && left < capacity / 8 => {
                Change::Replace(Values::Many(List::new(left, others.cloned())))
            }
            _ => {
                retired.value(list.kill(index));
                Change::InPlace
            }
        }
    }
}
