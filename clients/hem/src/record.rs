//! What is known of one execution.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hookbus_broker::{EventId, Timestamp};

use crate::hook::Hook;

/// The event that made a hook run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventRef {
    /// Its id.
    pub id: EventId,
    /// The last of its keys: of the STATE, API or GANETI form.
    pub key: Vec<u8>,
    /// When the broker took it in.
    pub time: Timestamp,
}

/// How an execution ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ending {
    /// The command exited with this code.
    Exited(i32),
    /// A signal killed it, and not one of ours.
    Signalled(i32),
    /// It exceeded its TIMEOUT and was ended.
    TimedOut,
    /// It was ended because the executor was.
    Interrupted,
    /// It could not be started; standard error says why.
    NotStarted,
}

impl Ending {
    /// The exit code, 255 where there is none.
    pub const fn code(self) -> i32 {
        match self {
            Ending::Exited(code) => code,
            _ => 255,
        }
    }

    /// Whether the code is 0.
    pub const fn is_success(self) -> bool {
        self.code() == 0
    }
}

/// What a command wrote to one of its two outputs: its first and last bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// The first bytes.
    pub head: Vec<u8>,
    /// How many bytes between the two parts were cut.
    pub cut_bytes: u64,
    /// The last bytes; empty where nothing was cut.
    pub tail: Vec<u8>,
}

/// One execution of a hook.
#[derive(Clone, Debug)]
pub struct Record {
    /// The hook.
    pub hook: Arc<Hook>,
    /// The event that made it run.
    pub event: EventRef,
    /// When the command was started.
    pub started: SystemTime,
    /// How long it took.
    pub duration: Duration,
    /// The command line, with the arguments unless they went to standard input.
    pub command: String,
    /// The arguments, expanded.
    pub arguments: String,
    /// How it ended.
    pub ending: Ending,
    /// Standard output.
    pub stdout: Output,
    /// Standard error, and what there is to say about the execution itself.
    pub stderr: Output,
}

/// Takes records: a hook log, say. They are handed over in the order in which commands ended, one at a time.
pub trait Recorder: Debug + Send + Sync {
    /// Takes a record. It is called from a task, so it must not block for long.
    fn record(&self, record: &Arc<Record>);
}
