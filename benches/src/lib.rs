//! What `hookbus-bench` is made of: it runs hookbus and its peers alternately, in one run, on one machine, and says how the
//! medians compare.
//!
//! Absolute figures of a shared machine drift by half from hour to hour, and the same binary has been seen to differ by a
//! factor of two between two passes. So nothing here compares with a figure from another run: every contender gets a
//! round, then every contender gets the next one, and only ratios of medians within the run are worth quoting.
//!
//! Every figure is for work that was done completely: a contender that loses, repeats or reorders one message fails the
//! run.
//!
//! - [`inproc`]: fan-out between threads and tasks of one process.
//! - [`memory`]: what a queued message takes.
//! - [`corpus`]: what a real oned wrote, and what must come of it.
//! - `hm`: oned's driver, from its standard input to ZeroMQ subscribers (feature `libzmq`).
//! - `buses`: bridges against the client libraries that they use (feature `buses`).
//! - `zeromq`: our publisher against others, over TCP (feature `libzmq`).
//! - [`hooks`]: the program `hookbus-hem` against a plain loop that starts the same commands.
//! - [`ganeti`]: one run of `hookbus-ganeti-hook` against scripts that do the same.
//! - [`idle`]: the daemon while nothing happens.
//! - [`report`]: rounds in, tables and JSON out; [`plots`]: the same as SVG.
//! - [`machine`]: where it ran, and what was compared.
//!
//! Micro benchmarks of single operations are in `benches/`; they need no peer.

#[cfg(feature = "buses")]
pub mod buses;
pub mod corpus;
pub mod ganeti;
#[cfg(feature = "libzmq")]
pub mod hm;
pub mod hooks;
pub mod idle;
pub mod inproc;
#[cfg(feature = "libzmq")]
pub mod libzmq;
pub mod machine;
pub mod memory;
pub mod plots;
pub mod report;
#[cfg(feature = "buses")]
#[path = "../../bridges/tests/servers/mod.rs"]
mod servers;
#[cfg(feature = "libzmq")]
pub mod zeromq;
