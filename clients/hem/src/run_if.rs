//! Whether hooks are to run here: asks a command, again and again.
//!
//! For front-ends of which one leads: each has its executor, and only the leader's runs hooks. What happens while a front-end
//! doesn't lead is no business of its executor, also later. A command that can't be started, or hangs, says no.

use std::path::Path;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

use crate::command::CommandLine;
use crate::output::Output;
use crate::process::Limits;
use crate::record::Ending;
use crate::threads::Threads;

/// What decides whether hooks run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunIf {
    /// The command; below the base path of hooks unless it begins with `/`, and given to a shell where it has shell characters, as that
    /// of a hook. Hooks run while it exits 0.
    pub command: String,
    /// How often it is asked. A command that takes longer than this is ended, and says no.
    pub every: Duration,
}

impl RunIf {
    /// Asked every 5 s.
    pub fn new(command: impl Into<String>) -> Self {
        RunIf { command: command.into(), every: Duration::from_secs(5) }
    }
}

/// Asks until nobody wants to know any more.
pub(crate) async fn ask(
    run_if: RunIf,
    base_path: Box<Path>,
    kill_grace: Duration,
    answer: watch::Sender<Option<bool>>,
) {
    let threads = Threads::default();
    let line = CommandLine::new(&base_path, &run_if.command, None);
    let limits = Limits {
        timeout: Some(run_if.every.max(Duration::from_millis(1))),
        kill_grace,
        linger: Duration::ZERO,
        output_max_bytes: 1 << 10,
    };
    let (_never, stop) = watch::channel(false);
    while !answer.is_closed() {
        let finished = threads.run(&line, String::new(), limits, stop.clone()).await;
        let leads = finished.ending == Ending::Exited(0);
        let before = answer.send_replace(Some(leads));
        if before != Some(leads) {
            tell(&run_if.command, leads, finished.ending, &finished.stderr);
        }
        tokio::select! {
            () = sleep(run_if.every) => {}
            () = answer.closed() => {}
        }
    }
}

fn tell(command: &str, leads: bool, ending: Ending, stderr: &Output) {
    if leads {
        tracing::info!("hooks: run_if {command:?} says yes: hooks run here");
        return;
    }
    let stderr = stderr.text();
    let stderr = stderr.trim();
    match ending {
        Ending::Exited(code) => tracing::info!(code, stderr, "hooks: run_if {command:?} says no: no hook runs here"),
        Ending::TimedOut => {
            tracing::error!("hooks: run_if {command:?} takes too long and was ended: no hook runs here");
        }
        _ => tracing::error!(stderr, "hooks: run_if {command:?} fails: no hook runs here"),
    }
}
