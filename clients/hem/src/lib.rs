//! Executes hooks: commands that run when an event of a broker matches.

mod arguments;
mod command;
mod directory;
mod dispatch;
mod executor;
pub mod hook;
mod output;
mod problem;
mod process;
pub mod record;
mod report;
mod set;
mod states;
mod status;
pub mod template;
mod text;

pub use directory::{Loaded, load, load_file};
pub use executor::{Executor, ExecutorOptions};
pub use hook::{Hook, Object, Origin, Trigger};
pub use output::Output;
pub use problem::{Problem, Severity};
pub use record::{Ending, EventRef, Record, Recorder};
pub use set::HookSet;
pub use status::{ExecutorStatus, HookStatus};
