//! Executes hooks: commands that run when an event of a broker matches.

mod directory;
mod executor;
pub mod hook;
mod problem;
mod record;
mod set;
mod states;
pub mod template;

pub use directory::{Loaded, load, load_file};
pub use executor::{Executor, ExecutorOptions, ExecutorStatus, HookStatus};
pub use hook::{Hook, Object, Origin, Trigger};
pub use problem::{Problem, Severity};
pub use record::{Ending, EventRef, Output, Record, Recorder};
pub use set::HookSet;
