//! Where the broker reads the time from.
//!
//! To ask the operating system takes some 30 ns, a third of a publish, and tells more than the milliseconds of a [`Timestamp`].
//! So a thread asks again only when some time has passed since it last did, which the processor's counter of cycles shows in a
//! third of that. What [`SystemClock`] says is late by 2^15 cycles at most: 33 us where they are counted at 1 GHz, 8 us at
//! 4 GHz. A change of the system's time is seen as late as that.
//!
//! The counter serves only where the processor says that it never stops and never changes its rate ("invariant TSC": AMD64 Architecture
//! Programmer's Manual, volume 3, CPUID function 8000_0007h; Intel's manual, volume 3, 17.17.1), and where Linux, which compares those of
//! all cores for as long as it runs, lists it among its clock sources: a thread may go on on another core. Where it is set back, as when
//! a virtual machine moves to another host, it doesn't look near, and the system is asked.

#![allow(unsafe_code)] // Reading the counter of cycles.

use std::fmt;
use std::time::SystemTime;

use crate::message::Timestamp;

/// Where the broker reads the time from; a parameter, so that a simulation can own it.
pub trait Clock: Send + Sync + fmt::Debug {
    /// The time now.
    fn now(&self) -> Timestamp;
}

/// The operating system's wall clock, read to within some microseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[cfg(all(target_arch = "x86_64", not(hookbus_loom)))]
    fn now(&self) -> Timestamp {
        cycles::now()
    }

    #[cfg(not(all(target_arch = "x86_64", not(hookbus_loom))))]
    fn now(&self) -> Timestamp {
        SystemTime::now().into()
    }
}

#[cfg(all(target_arch = "x86_64", not(hookbus_loom)))]
mod cycles {
    use std::arch::x86_64::{__cpuid, _rdtsc};
    use std::cell::Cell;
    use std::fs;
    use std::sync::LazyLock;

    use super::{SystemTime, Timestamp};

    /// For so many cycles after it was asked, the system isn't asked again.
    const NEAR_CYCLES: u64 = 1 << 15;

    static COUNTS: LazyLock<bool> = LazyLock::new(|| {
        const POWER: u32 = 0x8000_0007;
        const SOURCES: &str = "/sys/devices/system/clocksource/clocksource0/available_clocksource";
        let is_invariant = __cpuid(0x8000_0000).eax >= POWER && __cpuid(POWER).edx & 1 << 8 != 0;
        is_invariant && fs::read_to_string(SOURCES).is_ok_and(|sources| sources.split_whitespace().any(|s| s == "tsc"))
    });

    thread_local! {
        /// When this thread last asked: the counter before, and the answer in milliseconds. At first far from all that is counted.
        static LAST: Cell<(u64, u64)> = const { Cell::new((1 << 63, 0)) };
    }

    pub(super) fn now() -> Timestamp {
        if !*COUNTS {
            return SystemTime::now().into();
        }
        // SAFETY: every x86-64 processor has the counter. A process that forbids itself to read it (`prctl(PR_SET_TSC)`) can't read
        // the C library's clock either.
        let cycles = unsafe { _rdtsc() };
        let (at, millis) = LAST.get();
        if cycles.wrapping_sub(at) < NEAR_CYCLES {
            return Timestamp::from_millis(millis);
        }
        let now = Timestamp::from(SystemTime::now());
        LAST.set((cycles, now.as_millis()));
        now
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn it_is_the_systems_time() {
        let until = Instant::now() + Duration::from_millis(20);
        while Instant::now() < until {
            let before = Timestamp::from(SystemTime::now() - Duration::from_millis(1));
            let now = SystemClock.now();
            assert!((before..=Timestamp::from(SystemTime::now())).contains(&now), "{now:?} is not the time");
        }
    }
}
