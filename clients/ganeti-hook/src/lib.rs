//! `hookbus-ganeti-hook`: the hook that Ganeti runs before and after each operation, on several nodes, while the job waits.
//!
//! It reports its environment to a hookbus daemon and ends. It can neither stall nor fail a job: after 1 s at most it ends with exit
//! status 0, whatever happens. Only for operations in `gate_ops` may it wait longer, and refuse.
//!
//! - [`report`] is what is said: one line of JSON, with an id that is random for each run.
//! - [`exchange`] says it: one HTTP/1.1 request over the daemon's Unix socket, or over TCP, with TLS for `https`.
//! - [`spool`] keeps what can't be said now. The daemon forwards from it by the same code.
//! - [`config`] is `/etc/hookbus/ganeti-hook.toml`.
//! - [`hook`] puts these together: what is tried first, and how long.
//!
//! It starts for every operation on every node, so it is small: no async runtime, and what isn't needed (TLS, most of all) is not touched.
//!
//! # Guarantees
//!
//! A report is *accepted* when the daemon has answered 202, or when its file in the spool has its name and has been synced.
//!
//! - **Nothing accepted is lost**, whatever is killed and when; a spool file survives a loss of power.
//! - **Repeated** is what the daemon took and whose answer didn't come: it is in the spool then, and is sent again with the same id, by
//!   which the daemon knows it.
//! - **Order**: what is in the spool goes in the order of its times; a new report waits behind it. Two hooks at the same time have no order.
//! - **Not accepted** is a report that can't be sent while the spool is full, can't be written, or takes too long: that is told on
//!   standard error, and counted as far as the disk allows it in time; the daemon is told the number with the next report.
//! - Nothing can end a process that the kernel holds in an uninterruptible wait, for a dead disk say. Everything else ends in time.

pub mod config;
pub mod exchange;
pub mod hook;
pub mod report;
pub mod spool;

/// The name of the program, by which links to it are known.
pub const PROGRAM: &str = "hookbus-ganeti-hook";
