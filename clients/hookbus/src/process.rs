//! What a process that oned starts has to put right before it does anything else.
//!
//! oned starts a driver with every signal blocked and descriptor 2 closed:
//!
//! - **Signals.** A blocked SIGTERM would never come, and children would inherit the mask. [`Signals::unblock`] goes in two
//!   steps: everything is unblocked at once save SIGTERM, SIGINT and SIGHUP, and those when their handlers are there.
//!   So a signal that came while the process was starting isn't lost, and doesn't kill it either.
//! - **Descriptor 2.** The first file or socket that is opened would become descriptor 2, and what is written to standard error
//!   would go to a subscriber. Rust's runtime opens `/dev/null` for a closed descriptor 0, 1 or 2 before `main`
//!   (`std::sys::pal::unix::init`); a test with a real process holds it to that. SIGPIPE is ignored by it, too.
//! - **Open files.** The usual soft limit of 1,024 is too little; see [`raise_descriptor_limit`].
//! - **NOTIFY_SOCKET** may be inherited from oned's service. It is not ours, nothing here reads it: `READY=1` from us
//!   would be taken for oned's.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

/// The signals that a daemon answers to.
#[derive(Debug)]
pub(crate) struct Signals {
    /// SIGTERM: end in order.
    pub(crate) terminate: Stream,
    /// SIGINT: end in order.
    pub(crate) interrupt: Stream,
    /// SIGHUP: nothing to do in this version.
    pub(crate) hangup: Stream,
}

const HANDLED: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];

/// First step: blocks the signals that will be handled, unblocks all others. Call it while the process has one thread, so
/// that all threads inherit this mask and the main thread alone gets the signals later.
pub(crate) fn repair_signal_mask() {
    // It fails only for an unknown `how`.
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&handled()), None);
}

/// As many descriptors as a daemon may need: each subscriber is one.
const DESCRIPTORS: u64 = 65_536;

/// Raises the limit of open files as far as this process may, up to [`DESCRIPTORS`]. The usual 1,024 are a default for programs that use
/// `select`; a thousand followers would be too many. Hooks inherit it; more would make those slow that close everything up to the limit.
pub(crate) fn raise_descriptor_limit() {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    let wanted = hard.min(DESCRIPTORS);
    if soft < wanted {
        // Without it, there is room for fewer.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, wanted, hard);
    }
}

impl Signals {
    /// Second step: installs the handlers, then unblocks. Needs a runtime.
    pub(crate) fn unblock() -> io::Result<Self> {
        let signals = Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        };
        handled().thread_unblock()?;
        Ok(signals)
    }
}

fn handled() -> SigSet {
    HANDLED.into_iter().collect()
}
