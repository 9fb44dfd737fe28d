//! Hooks of oned: where they come from, and how oned learns what came of them.
//!
//! OpenNebula's own executor, `onehem-server`, reads a small configuration, asks oned over XML-RPC for its hooks, hears of changes
//! and retries on the bus, and reports each execution to the port on which oned's driver listens. Here is each of these, apart from
//! the connection to the bus and the loop around all of it, so that everything can be tried with bytes or with a small server.
//!
//! | file | what is in it |
//! | --- | --- |
//! | `config.rs` | `onehem-server.conf`, and the directories of an installation |
//! | `access.rs` | the address of oned, and who asks: `ONE_XMLRPC`, `ONE_AUTH`, `~/.one` |
//! | `rpc.rs`, `answer.rs` | the client of oned's XML-RPC; what its answers mean |
//! | `load.rs` | asks until oned answers, but not forever |
//! | `pool.rs` | hooks as oned writes them in XML |
//! | `change.rs`, `retry.rs` | what the bus says about hooks: one has changed, one is to run again |
//! | `reply.rs` | what oned is told of an execution |
//!
//! # Guarantees
//!
//! - Nothing here reads the environment or waits without a limit: the environment is a parameter, and calls have deadlines.
//! - What comes from outside, a configuration, an answer, a message, ends in a value or in an error that says what is wrong. Sizes are bounded.
//! - A list of hooks that was cut off on its way is an error, not a shorter list.

mod access;
mod answer;
mod change;
mod config;
mod load;
mod pool;
mod reply;
mod retry;
mod rpc;

pub use access::{Access, AccessError, DEFAULT_ENDPOINT, Session};
pub use change::CHANGE_KEYS;
pub use config::{Config, ConfigError, DebugLevel, EventsFrom, Locations, MAX_CONCURRENCY, MAX_CONFIG_BYTES};
pub use load::{LoadError, Patience, load_all};
pub use pool::{Pool, PoolError, PoolHook};
pub use reply::Reply;
pub use retry::{RETRY_KEY, Retry, RetryError};
pub use rpc::{OnedClient, RpcError};

use hookbus_bridges::opennebula::Element;

/// The text of an element; what is no UTF-8 is replaced.
fn text(element: Element<'_>) -> String {
    String::from_utf8_lossy(&element.text()).into_owned()
}

/// A piece of text from outside, fit for one line of a message.
fn shown(text: &str) -> String {
    const MAX_BYTES: usize = 500;
    let start = crate::text::beginning(text.trim(), MAX_BYTES);
    let mut line: String = start.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if start.len() < text.trim().len() {
        line.push_str(" ...");
    }
    line
}
