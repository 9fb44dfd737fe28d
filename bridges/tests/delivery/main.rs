//! The delivery ledger and its driver over a bus in memory: the suite that every bus must pass, and what only a bus that does as it is told
//! can show.

#![cfg(feature = "delivery")]
#![allow(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

#[path = "../contract/mod.rs"]
#[macro_use]
mod contract;
mod driver;
mod fake;

contract_suite!(crate::fake::FakeServer);
