//! End-to-end tests of hookbus, and what they have in common.
//!
//! The tests in `tests/` start the real programs as their users do, connect real ZeroMQ libraries to them (libzmq from
//! Python and Ruby, Node.js, the zeromq crate), and compare what arrives with recordings of a real OpenNebula. They know
//! the programs only from outside: command line, pipes, sockets, `/proc`.
//!
//! House rules for what is written here:
//! - A wait is for a condition and has a [`Deadline`]; when it passes, the message tells what was seen instead. There are
//!   no pauses for luck and no assertions about time: the machine may be slow.
//! - Whoever is started is ended, by the handle that started it: children are killed when they are dropped.
//! - Whether a subscription has arrived at a publisher can't be seen from outside, so tests don't guess: they publish
//!   probes until the subscriber has received one ([`Hm::join`]).
//! - Ports come from [`ports`]; nothing listens on a fixed one outside a network namespace of its own.
//! - `/usr/bin/python3`, `/usr/bin/ruby` and `node` are needed with their ZeroMQ libraries; `tests/run` installs them. A test
//!   whose tool is absent fails, unless `HOOKBUS_TESTS_WITHOUT` names the tool (see [`tools`]).

pub mod bus;
pub mod collector;
mod deadline;
pub mod events;
pub mod fixtures;
mod hm;
pub mod load;
mod netns;
mod peer;
pub mod ports;
mod program;
mod serve;
// Bridges are tested in their own crate, too, against the same servers.
#[allow(clippy::new_without_default, reason = "there they are not public")]
#[path = "../../bridges/tests/servers/mod.rs"]
pub mod servers;
mod tap;
pub mod tools;

pub use bus::{Kind, Server};
pub use collector::{Collector, check_delivery};
pub use deadline::{Deadline, wait_until};
pub use events::Event;
pub use hm::{Feed, Hm, HmOptions};
pub use load::{Acknowledged, Load, LoadOptions};
pub use netns::NetworkNamespace;
pub use peer::{Message, Peer, PeerOptions, assert_same};
pub use program::{Launched, Launcher, Pipe, bounded, ended, hookbus};
pub use serve::{Answer, Followed, Follower, Home, Serve};
pub use tap::Tap;
