//! Executes hooks: commands that run when an event of a [`hookbus_broker::Broker`] matches.
//!
//! The hooks are OpenNebula's: templates with NAME, TYPE, COMMAND and ARGUMENTS, whose meaning, down to the bytes that a command gets,
//! is that of OpenNebula's own executor. Where that one is broken, this one is right; `docs/hooks.md` lists each difference with
//! its reason.
//!
//! The executor is one subscriber among many. It knows the broker and OpenNebula's events, and neither ZeroMQ nor HTTP: whoever owns the
//! broker decides where events come from. Only the feature `oned` adds what talks to an oned.
//!
//! ```
//! use hookbus_broker::{Broker, Delivery, Message, SubscribeOptions};
//! use hookbus_hem::{Executor, ExecutorOptions, Hook, HookSet, Origin};
//! use hookbus_hem::template::Template;
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let template = Template::parse("NAME = greet\nTYPE = event\nPREFIX = \"app \"\nCOMMAND = /bin/echo\nARGUMENTS = hello")?;
//! let (hook, problems) = Hook::from_template(&template, &Origin::Program);
//! assert!(problems.is_empty());
//!
//! let broker = Broker::default();
//! let mut results = broker.subscribe(SubscribeOptions::new("results").prefix("HOOKBUS HOOK greet/success"));
//! let executor = Executor::start(&broker, HookSet::new(hook), ExecutorOptions::default());
//! broker.publish(Message::new("app started", "")).await?;
//!
//! let Some(Delivery::Message(result)) = results.recv().await else { panic!("there is room for one") };
//! let result: serde_json::Value = serde_json::from_slice(result.payload())?;
//! assert_eq!(result["stdout"], "hello\n");
//! executor.shutdown(tokio::time::Instant::now()).await;
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! # }).unwrap();
//! ```
//!
//! # The way of an event
//!
//! | file | what is in it |
//! | --- | --- |
//! | `template.rs`, `hook/`, `states.rs` | what is written in a template; what it means; the names of states |
//! | `directory.rs`, `problem.rs` | a directory of templates, and what is wrong with it |
//! | `set.rs` | which hooks an event makes run |
//! | `executor.rs` | start, reload, look at it, shut down; its header has the queues and the guarantees |
//! | `dispatch.rs`, `schedule.rs` | the task that takes events and starts hooks; what runs wait for |
//! | `feed.rs` | where its events come from, and how far they are dealt with |
//! | `run.rs` | one run, from the command line to the record |
//! | `run_if.rs` | whether hooks are to run here |
//! | `arguments.rs`, `command.rs` | what a hook gets of an event; the command line |
//! | `process.rs`, `output.rs` | the life of a command, and what it writes |
//! | `record.rs`, `report.rs`, `status.rs` | what came of it; who is told; counters |
//! | `oned/` | hooks of oned: where they come from, and how oned learns what came of them (feature `oned`) |
//! | `store/` | hooks of our own, the log of executions, what waits to be sent or run again, in SQLite (feature `store`) |
//! | `main.rs`, `log.rs`, `server/` | the program `hookbus-hem` (feature `server`) |
//!
//! # What comes later
//!
//! `hookbus hook`: managing the hooks of the store, and looking at its log.

mod arguments;
mod calls;
mod command;
mod directory;
mod dispatch;
mod executor;
mod feed;
pub mod hook;
#[cfg(feature = "oned")]
pub mod oned;
mod output;
mod problem;
mod process;
pub mod record;
mod report;
mod run;
mod run_if;
mod schedule;
mod set;
mod states;
mod status;
#[cfg(feature = "store")]
pub mod store;
pub mod template;
mod text;
mod threads;

pub use directory::{Loaded, load, load_file};
pub use executor::{Again, Executor, ExecutorOptions, Preview, Resume, RunIf, TooManyAgain};
pub use feed::ProgressSink;
pub use hook::{Hook, Object, Order, Origin, Outcome, States, Trigger};
pub use output::Output;
pub use problem::{Problem, Severity};
pub use record::{Ending, EventRef, Kept, Record, Recorder, RunId};
pub use set::HookSet;
pub use status::{ExecutorStatus, HookStatus};

/// Bytes as base64, without line breaks.
pub(crate) fn base64(bytes: &[u8]) -> String {
    use ::base64::Engine as _;
    ::base64::prelude::BASE64_STANDARD.encode(bytes)
}
