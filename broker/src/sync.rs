//! The locks and atomics of the crate, in one place, so that loom can stand in for them (`--cfg hookbus_loom`).
//!
//! What loom replaces: the locks and the atomics of lanes, subscriptions and blocks, and thread parking. What it doesn't: the
//! prefix tree, whose walks and changes it sees as steps that are never interleaved, and plain `Arc`s.
//!
//! # Lock order
//!
//! 1. `Shared::sets`: which subscription has which prefixes;
//! 2. `Shared::publishing`: the order of messages, and everything a publish writes;
//! 3. `Member::cursor`: how far one subscription has read;
//! 4. `Readers::entries`, `Readers::sleeping`, `Member::waker`, `Freed::pool`, the prefix tree's writers': leaves, held for a few instructions.
//!
//! `Group::set` is taken with the first held, by whoever has the second held as well, too; so among those its order doesn't matter.
//!
//! No waker is called while any of them is held.

#[cfg(hookbus_loom)]
pub(crate) use self::model::*;
#[cfg(not(hookbus_loom))]
pub(crate) use self::real::*;

#[cfg(not(hookbus_loom))]
mod real {
    pub(crate) use parking_lot::{Mutex, MutexGuard};
    pub(crate) use std::hint::spin_loop;
    pub(crate) use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering, fence};
    pub(crate) use std::thread;
}

#[cfg(hookbus_loom)]
mod model {
    pub(crate) use loom::hint::spin_loop;
    pub(crate) use loom::sync::MutexGuard;
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering, fence};
    pub(crate) use loom::thread;

    /// loom's mutex with parking_lot's interface.
    #[derive(Debug)]
    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Mutex(loom::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().expect("no thread of a model panics with a lock held")
        }
    }
}
