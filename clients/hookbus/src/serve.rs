//! `hookbus serve`: the daemon as a service.
//!
//! Unlike `hm`, which must never end, a service that can't do what its configuration says ends at once and says why: its operator, or
//! systemd, is looking. Once it serves, nothing that comes from outside ends it.
//!
//! 1. The configuration is read strictly: exit 2 with each mistake on a line.
//! 2. The state directory is taken ([`StateDir`]): exit 1, naming the owner, where somebody else has it.
//! 3. Ports and sockets are bound: exit 1 where one can't be had.
//! 4. `READY=1` to systemd, and a line in the log for each thing that is bound.
//! 5. SIGHUP: hooks are read again, the log file is opened again. What else the configuration says is read at a start only.
//! 6. SIGTERM or SIGINT: nothing more is taken in, hooks have [`HOOKS`] to end, ports and followers [`DRAIN`] to send what is queued;
//!    exit 0. A second signal ends the waiting.

use std::io::{self, Write as _};
use std::os::unix::net::UnixListener;
use std::process::ExitCode;
use std::time::Duration;

use tokio::sync::watch;

use crate::cli::GlobalArgs;
use crate::config::{Config, Reading, default_state_dirs};
use crate::daemon::{Daemon, PORT_NAMES, PortState, Role, StateDir};
use crate::log::DaemonLog;
use crate::process::{self, Signals};
use crate::service::{Notifier, activated_unix_listener};

/// How long hooks that run have to end by themselves.
const HOOKS: Duration = Duration::from_secs(10);
/// How long ports and followers have to send what is queued.
const DRAIN: Duration = Duration::from_secs(5);
/// How long the rest of the log may take to be written.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Runs the daemon until it is asked to end.
pub(crate) fn run(global: &GlobalArgs) -> ExitCode {
    process::repair_signal_mask();
    process::raise_descriptor_limit();
    // It changes the environment, so it comes before any thread.
    let activated = activated_unix_listener();
    let started = std::time::Instant::now();
    let (config, warnings) = match Reading::of_file(global.config.as_deref()).strict() {
        Ok(read) => read,
        Err(problems) => {
            for problem in problems {
                // Where standard error is closed nobody wants to know.
                let _ = writeln!(anstream::stderr(), "error: {problem}");
            }
            return ExitCode::from(2);
        }
    };
    let log = DaemonLog::start(None, global.log_format, started);
    log.configured(&config.log);
    for problem in warnings {
        tracing::warn!("configuration: {problem}");
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            tracing::error!("serve: cannot start: {e}");
            return ExitCode::FAILURE;
        }
    };
    let served = runtime.block_on(async {
        let served = serve(config, activated, &log).await;
        if let Err(e) = &served {
            tracing::error!("{e}");
        }
        let _ = tokio::time::timeout(LAST_LINES, log.finish()).await;
        served
    });
    // Threads may hang on a disk; the end of the process ends them.
    runtime.shutdown_background();
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

async fn serve(config: Config, activated: io::Result<Option<UnixListener>>, log: &DaemonLog) -> Result<(), String> {
    let mut signals = Signals::unblock().map_err(|e| format!("serve: cannot handle signals: {e}"))?;
    let notifier = Notifier::from_environment();
    let defaults = default_state_dirs(|name| std::env::var_os(name));
    let state_dir = StateDir::own(config.state_dir.as_deref(), &defaults).map_err(|e| e.to_string())?;
    tracing::info!(
        "serve: hookbus {} starts, its state is in {}",
        env!("CARGO_PKG_VERSION"),
        state_dir.path().display()
    );
    let activated = activated.map_err(|e| format!("serve: the socket from systemd can't be used: {e}"))?;

    let mut daemon = Daemon::start(Role::Serve, config, None);
    let bound = async {
        if let Some(ports) = daemon.state.ports() {
            for (name, port) in PORT_NAMES.iter().zip(ports) {
                listening(name, port).await?;
            }
        }
        Ok::<_, String>(())
    };
    let started = match bound.await {
        Ok(()) => daemon.own(Some(state_dir), activated).map_err(|e| e.to_string()),
        Err(e) => Err(e),
    };
    if let Err(e) = started {
        daemon.shut_down(Duration::ZERO, Duration::ZERO).await;
        return Err(e);
    }
    daemon.state.set_ready(true);
    notifier.ready("serving");
    let _watchdog = notifier.watchdog();
    tracing::info!("serve: ready");

    loop {
        tokio::select! {
            _ = signals.terminate.recv() => break,
            _ = signals.interrupt.recv() => break,
            _ = signals.hangup.recv() => {
                notifier.reloading();
                tracing::info!("serve: SIGHUP: hooks are read again, the log file is opened again");
                log.configured(&daemon.state.config.log);
                daemon.state.reload_hooks();
                notifier.ready("serving");
            }
        }
    }
    tracing::info!("serve: asked to end");
    notifier.stopping();
    let broker = daemon.state.broker.clone();
    tokio::select! {
        () = daemon.shut_down(HOOKS, DRAIN) => {}
        _ = signals.terminate.recv() => tracing::warn!("serve: asked again; what is queued is abandoned"),
        _ = signals.interrupt.recv() => tracing::warn!("serve: asked again; what is queued is abandoned"),
    }
    let stats = broker.stats();
    tracing::info!(
        published = stats.published,
        delivered = stats.delivered,
        dropped = stats.dropped,
        abandoned = stats.abandoned,
        "serve: ends"
    );
    Ok(())
}

/// Waits until a port is served.
async fn listening(name: &str, mut port: watch::Receiver<PortState>) -> Result<(), String> {
    let state = port.wait_for(|state| *state != PortState::Starting).await;
    match state.as_deref() {
        Ok(PortState::Failed(why)) => Err(format!(
            "serve: the {name} cannot listen: {why}. If oned's driver serves ZeroMQ here, write `enabled = false` below [zeromq], or let \
             the driver forward to this daemon (`hm --forward SOCKET`)"
        )),
        Ok(_) => Ok(()),
        Err(_) => Err(format!("serve: the {name} has ended")),
    }
}
