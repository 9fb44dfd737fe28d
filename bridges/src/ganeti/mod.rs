//! What Ganeti tells: the environments of its hooks, and its jobs, as events.
//!
//! Ganeti runs the scripts of a directory before and after each operation, on several nodes at once, each with the same environment: `PATH` and
//! `GANETI_*`. In the phase `post` the variables of `pre` are there unchanged, and with them `GANETI_POST_*`, the same set anew. There is no id of an
//! operation, and nothing says on which node a script runs. (Ganeti 3.0: `lib/hooksmaster.py`, `lib/backend.py`; 337 recorded environments are
//! the test.)
//!
//! ```text
//! the hook on a node ──Report──▶ Operations ──▶ one event for each operation
//! ```
//!
//! A [`HookRun`] is one of these environments, read. It has
//!
//! - the **keys** of its event, `EVENT INSTANCE web1/instance-start/post ` and `EVENT GANETI INSTANCE/instance-start/post/web1 `;
//! - a **digest**, the same on all nodes: with it the reports of one operation are told from those of another;
//! - its **data**, a JSON object: the environment untouched, and what it flattens as objects and lists (`data.rs`).
//!
//! A [`Report`] is what a node tells of a run, a line of JSON with an id of its own (`report.rs`). [`Operations`] remembers reports, and says which
//! of them tell of an operation that is known already (`operations.rs`).
//!
//! A [`Job`] is a file of the master's job queue, which tells what hooks never do: that an operation was asked for, and that it failed (`jobs.rs`).
//!
//! Nothing of an environment is lost: what isn't known is in `env` and, in lower case, among the rest. Values stay text, as Ganeti has written
//! them (`True`, `None`, `128`): what they mean depends on the variable, and a later Ganeti may mean something else.

mod data;
mod jobs;
mod names;
mod operations;
mod report;
mod run;

pub use jobs::{Job, JobError, JobOp, JobState, JobStatus, NoJob};
pub use names::OPERATIONS;
pub use operations::{Look, MEMORY, Operations, Remembered};
pub use report::{NoReport, Report, ReportId};
pub use run::{HookRun, NoHookRun, Phase};
