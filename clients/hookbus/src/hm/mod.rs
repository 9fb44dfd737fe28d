//! `hookbus hm`: OpenNebula's Hook Manager driver.
//!
//! oned starts this program, writes events to its standard input and reads results from its standard output. When it ends,
//! oned starts it again, at once and without limit, and what was under way is lost. So the first rule is: it never ends by itself.
//! Arguments, configuration and ports may all be wrong; it answers INIT, tells what is wrong through oned's log, and serves the rest.
//!
//! ```text
//!            stdin                                   one thread, one epoll
//!   oned ───────────▶ input ─▶ ingress ─▶ BROKER ─▶ publisher port ─▶ subscribers
//!     ▲      stdout                                  logger port ◀──── hook executors
//!     └─────────────── writer ◀──────────────────────────┘
//! ```
//!
//! The order of things, and why:
//!
//! 1. The signal mask is repaired ([`process`]).
//! 2. Standard input is read from the first moment, so INIT is answered within milliseconds; oned waits for it 10 s. The answer is exactly 31
//!    bytes, because oned reads that many once and loses what follows in the same read. Whatever else wants to
//!    go to standard output waits behind it. An EXECUTE may come before INIT.
//! 3. A thread reads the configuration meanwhile: its disk may hang. After [`CONFIG_PATIENCE`] there are defaults.
//! 4. Both ports are bound. Events go to the broker [`HOLD`] after that, so that subscribers of a predecessor have
//!    connected again.
//! 5. In the background the state directory is taken, and with it hooks and the HTTP socket ([`daemon`]). While
//!    another process has it (a `hookbus serve`, or a predecessor that is ending), that is tried again for ever.
//! 6. FINALIZE or the end of the input: what is held goes out, too, then everything drains within [`DRAIN`].
//!    SIGTERM and SIGINT don't end it at once, since systemd sends them to oned and to us at the same time, and oned has
//!    something left to say.
//!
//! With `--forward` there is no broker here and there are no ports: see [`forwarder`].
//!
//! # Guarantees
//!
//! - **Order**: subscribers see events in oned's order.
//! - **Loss**: none inside, save what a subscriber's high-water mark or `[broker] max_bytes` makes it lose, which it is told. What oned
//!   writes while no driver runs, and what a killed driver had read but not sent, is lost.
//! - **Results**: a hook executor has its ACK when the result waits for oned in memory; as with the original driver, a driver
//!   that is killed then loses it.

pub(crate) mod args;
mod forwarder;
mod ingress;
mod input;

use std::future::Future;
use std::path::PathBuf;
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use hookbus_bridges::zeromq::{Endpoint, Host};
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::config::{Config, Problem, Reading, Severity, default_state_dirs};
use crate::daemon::{self, Daemon, HttpError, Owned, Results, Role, StateDir, StateDirError};
use crate::log;
use crate::process::{self, Signals};
use crate::writer::{Descriptor, Writer};
use args::{HmArgs, Words};
use forwarder::Forwarder;
use ingress::{Ingress, Turn};
use input::{Input, Read};

/// How long events are held back at the start.
const HOLD: Duration = Duration::from_millis(300);
/// How long a configuration may take to be read.
const CONFIG_PATIENCE: Duration = Duration::from_secs(2);
/// How long oned is listened to after SIGTERM or SIGINT.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How long draining may take; oned kills after 10 s.
const DRAIN: Duration = Duration::from_secs(5);
/// How long hooks may go on when oned has ended.
const LAST_HOOKS: Duration = Duration::from_secs(1);
/// How long the rest may take after that; hooks that have to be killed take a second more.
const LAST_DELIVERIES: Duration = Duration::from_secs(3);
/// How often it is looked whether the state directory is free.
const LOOK_FOR_STATE_DIR: Duration = Duration::from_secs(2);
/// What may wait to be read by oned. Beyond it executors wait for their ACK, and LOG lines are dropped and counted.
const STDOUT_QUEUE_BYTES: usize = 4 << 20;

/// Runs the driver until oned ends it.
pub(crate) fn run(words: Words) -> ExitCode {
    process::repair_signal_mask();
    process::raise_descriptor_limit();
    let started = std::time::Instant::now();
    let (global, args, complaints) = words.read();
    let oned = Writer::held("stdout", Descriptor(rustix::stdio::stdout()), STDOUT_QUEUE_BYTES);
    let log = log::DaemonLog::start(Some(oned.clone()), global.log_format, started);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            // No epoll, no memory: there is nothing to serve with, and a new process may do better.
            tracing::error!("hm: cannot start: {e}");
            oned.release("");
            return ExitCode::FAILURE;
        }
    };
    let driver = Driver { config_path: global.config, args, oned, log };
    runtime.block_on(driver.run(complaints));
    // Threads may hang on a file or on standard output; the end of the process ends them.
    runtime.shutdown_background();
    ExitCode::SUCCESS
}

struct Driver {
    config_path: Option<PathBuf>,
    args: HmArgs,
    oned: Writer,
    log: log::DaemonLog,
}

/// What there is once the configuration is known.
enum Serving {
    /// Events are served here.
    Here { daemon: Box<Daemon>, rest: TakingOver },
    /// They are served by the daemon that they are forwarded to.
    Elsewhere,
}

impl Driver {
    async fn run(self, complaints: Vec<String>) {
        let mut input = Input::stdin().map_err(|e| tracing::error!("hm: cannot read standard input: {e}")).ok();
        let default_bytes = Config::default().broker.max_bytes.bytes();
        let forwarder =
            self.args.forward.as_deref().map(|socket| Forwarder::start(socket, self.oned.clone(), default_bytes));
        let mut ingress = match &forwarder {
            Some(forwarder) => Ingress::forwarding(self.oned.clone(), forwarder.clone()),
            None => Ingress::holding(self.oned.clone()),
        };
        let mut reading = pin!(read_config(self.config_path.clone()));
        let mut signals = SignalStream::new();
        for complaint in complaints {
            tracing::error!("hm: {complaint}; check ARGUMENTS of HM_MAD in oned.conf");
        }
        tokio::spawn(self.log.clone().tell_held_back());

        let mut serving: Option<Serving> = None;
        let mut hold_bytes = default_bytes / 4;
        let mut hold = pin!(sleep_until(Instant::now() + HOLD));
        let mut last_words = pin!(sleep_until(Instant::now() + LAST_WORDS));
        let mut stopping = false;
        while input.is_some() || ingress.is_holding() {
            tokio::select! {
                biased;
                read = &mut reading, if serving.is_none() => {
                    hold_bytes = read.config.broker.max_bytes.bytes() / 4;
                    ingress.lines.set_max_line_bytes(read.config.limits.line_bytes.bytes());
                    serving = Some(self.serve(read, forwarder.as_ref()));
                    hold.as_mut().reset(Instant::now() + HOLD);
                }
                () = &mut hold, if ingress.is_holding() && serving.is_some() => {
                    if let Some(Serving::Here { daemon, .. }) = &serving {
                        ingress.release(&daemon.state.broker);
                    }
                }
                signal = signals.next() => match signal {
                    Caught::Hangup => {
                        if let Some(Serving::Here { daemon, .. }) = &serving {
                            tracing::info!("hm: SIGHUP: hooks and log file are read and opened again");
                            self.log.configured(&daemon.state.config.log);
                            daemon.state.reload_hooks();
                        }
                    }
                    Caught::End if stopping => {}
                    Caught::End => {
                        tracing::info!("hm: asked to end; reading on until oned says FINALIZE, {LAST_WORDS:?} at most");
                        stopping = true;
                        let patience = if Input::is_terminal() { Duration::ZERO } else { LAST_WORDS };
                        last_words.as_mut().reset(Instant::now() + patience);
                    }
                },
                () = &mut last_words, if stopping && input.is_some() => input = None,
                taken = take_in(&mut input, &mut ingress), if input.is_some() => {
                    if taken.is_some_and(|taken| taken.turn == Turn::Finalize) {
                        input = None;
                    }
                    if ingress.is_holding() && ingress.held_bytes() > hold_bytes {
                        let serving = serving
                            .get_or_insert_with(|| self.serve(Reading::late(self.config_path.as_deref()), None));
                        tracing::warn!(
                            "hm: {} bytes of events came before subscribers had time to connect; delivery starts now",
                            ingress.held_bytes()
                        );
                        if let Serving::Here { daemon, .. } = serving {
                            ingress.release(&daemon.state.broker);
                        }
                    }
                    if taken.is_none_or(|taken| !taken.was_all) {
                        // Everybody else first: peers, results, timers.
                        tokio::task::yield_now().await;
                    }
                }
            }
        }
        self.finish(serving, forwarder, &ingress).await;
    }

    /// Sets up broker and ports, and tells what is wrong with the configuration.
    fn serve(&self, reading: Reading, forwarder: Option<&Forwarder>) -> Serving {
        let Reading { mut config, problems, .. } = reading;
        for problem in &problems {
            tell(problem);
        }
        self.log.configured(&config.log);
        self.args.apply(&mut config);
        if let Some(forwarder) = forwarder {
            forwarder.set_max_bytes(config.broker.max_bytes.bytes());
            return Serving::Elsewhere;
        }
        if !config.zeromq.enabled {
            tracing::error!("hm: [zeromq] is not enabled, so subscribers don't get OpenNebula's events");
        }
        let daemon = Daemon::start(Role::Hm, config, Some(Results::Oned(self.oned.clone())));
        daemon.state.set_ready(true);
        let rest = TakingOver::start(std::sync::Arc::clone(&daemon.state));
        Serving::Here { daemon: Box::new(daemon), rest }
    }

    /// Everything that was taken in goes out, as far as there is time.
    async fn finish(&self, serving: Option<Serving>, forwarder: Option<Forwarder>, ingress: &Ingress) {
        let deadline = Instant::now() + DRAIN;
        if let Some(forwarder) = forwarder {
            forwarder.finish(deadline).await;
            tracing::info!(events = ingress.taken_in(), "hm: ends");
        }
        if let Some(Serving::Here { mut daemon, rest }) = serving {
            if let Some(owned) = rest.finish(deadline).await {
                daemon.add(owned);
            }
            let broker = daemon.state.broker.clone();
            // Dropping it ends what is left.
            if timeout_at(deadline, daemon.shut_down(LAST_HOOKS, LAST_DELIVERIES)).await.is_err() {
                tracing::warn!("hm: not everything could be ended in order within {DRAIN:?}");
            }
            let stats = broker.stats();
            tracing::info!(
                events = ingress.taken_in(),
                delivered = stats.delivered,
                dropped = stats.dropped,
                abandoned = stats.abandoned,
                "hm: ends"
            );
        }
        // Without INIT nothing was written yet; now nobody will ask.
        self.oned.release("");
        // Past the deadline oned is not reading and the disk does not write; nothing can be told to anybody.
        let _ = timeout_at(deadline, async {
            self.log.finish().await;
            self.oned.drained().await;
        })
        .await;
    }
}

/// What one read has brought.
#[derive(Clone, Copy, Debug)]
struct Taken {
    turn: Turn,
    /// Whether there was no more to read.
    was_all: bool,
}

/// Reads once and handles it; nothing at the end of the input, which it takes away then.
async fn take_in(input: &mut Option<Input>, ingress: &mut Ingress) -> Option<Taken> {
    match input.as_mut()?.read(&mut ingress.lines).await {
        Ok(Read { bytes: 0, .. }) => {}
        Ok(Read { was_all, .. }) => return Some(Taken { turn: ingress.take_in(), was_all }),
        Err(e) => tracing::error!("hm: cannot read standard input: {e}"),
    }
    *input = None;
    ingress.finish();
    None
}

fn tell(problem: &Problem) {
    match problem.severity {
        Severity::Error => tracing::error!("configuration: {problem}; the default is used"),
        Severity::Warning => tracing::warn!("configuration: {problem}"),
    }
}

/// What belongs to the owner of the state directory, while it is being taken.
struct TakingOver {
    task: JoinHandle<Option<Owned>>,
    ending: watch::Sender<bool>,
}

impl TakingOver {
    fn start(state: std::sync::Arc<daemon::State>) -> Self {
        let (ending, is_ending) = watch::channel(false);
        TakingOver { task: tokio::spawn(take_over(state, is_ending)), ending }
    }

    /// Takes no more; what was had, or is being had at this moment, is there to be ended in order.
    async fn finish(self, deadline: Instant) -> Option<Owned> {
        self.ending.send_replace(true);
        let patience = deadline.min(Instant::now() + LAST_TAKE);
        timeout_at(patience, self.task).await.ok()?.ok()?
    }
}

/// How long the end waits for what is being taken over at that moment: a disk that hangs is no reason to stay.
const LAST_TAKE: Duration = Duration::from_millis(500);

/// Waits before the next attempt; says whether there is to be one.
async fn pause(ending: &mut watch::Receiver<bool>) -> bool {
    tokio::time::timeout(LOOK_FOR_STATE_DIR, ending.wait_for(|ending| *ending)).await.is_err()
}

/// Takes what belongs to the owner of the state directory, as soon as nobody else has it. What is configured and can't be had is told
/// to oned; what would only be nice to have isn't. Nothing where the end comes first.
async fn take_over(state: std::sync::Arc<daemon::State>, mut ending: watch::Receiver<bool>) -> Option<Owned> {
    let configured = state.config.state_dir.clone();
    let mut told = String::new();
    let mut tell = move |reason: String, severe: bool| {
        if reason != told {
            if severe {
                tracing::warn!("hm: {reason}");
            } else {
                tracing::info!("hm: {reason}");
            }
            told = reason;
        }
    };
    loop {
        let wanted = configured.clone();
        let taken = tokio::task::spawn_blocking(move || {
            StateDir::own(wanted.as_deref(), &default_state_dirs(|name| std::env::var_os(name)))
        });
        let state_dir = match taken.await {
            Ok(Ok(state_dir)) => Some(state_dir),
            Ok(Err(e @ StateDirError::Owned { .. })) => {
                let reason = format!(
                    "{e}. Until it ends, subscribers on ZeroMQ are served here, and bridges, hooks and the HTTP socket get none of \
                     oned's events; where it is a `hookbus serve` that is to have them, start this one as `hm --forward SOCKET`"
                );
                tell(reason, true);
                if !pause(&mut ending).await {
                    return None;
                }
                continue;
            }
            // Nothing is kept there yet, so everything works without.
            Ok(Err(e)) => {
                tell(e.to_string(), configured.is_some());
                None
            }
            Err(e) => {
                tell(format!("the state directory could not be looked at: {e}"), true);
                None
            }
        };
        let directory = state_dir.as_ref().map(|dir| dir.path().to_owned());
        // The store of hooks is opened, which waits for a disk.
        let owning = std::sync::Arc::clone(&state);
        let owned = tokio::task::spawn_blocking(move || daemon::own(&owning, state_dir, None)).await;
        match owned.map_err(|e| HttpError::Runtime(std::io::Error::other(e))).flatten() {
            Ok(owned) => {
                tokio::spawn(start_bridges(state, directory, owned.runtime()));
                return Some(owned);
            }
            Err(e) => {
                let http = &state.config.http;
                let asked_for = http.socket.is_some() || http.group.is_some() || !http.listen.is_empty();
                tell(format!("{e}; it is tried again"), asked_for);
                if !pause(&mut ending).await {
                    return None;
                }
            }
        }
    }
}

/// Opens the journal, as often as it takes, and starts the bridges then. Events are kept for it meanwhile.
async fn start_bridges(state: std::sync::Arc<daemon::State>, directory: Option<PathBuf>, runtime: Handle) {
    let mut told = String::new();
    loop {
        let (state, directory, runtime) = (std::sync::Arc::clone(&state), directory.clone(), runtime.clone());
        let started = tokio::task::spawn_blocking(move || {
            daemon::open_journal(&state, directory.as_deref())?;
            daemon::start_bridges(&state, &runtime);
            Ok::<_, String>(())
        });
        let reason = match started.await {
            Ok(Ok(())) => return,
            Ok(Err(reason)) => reason,
            Err(e) => e.to_string(),
        };
        if reason != told {
            tracing::error!("hm: {reason}; bridges wait for the journal, and it is tried again");
            told = reason;
        }
        tokio::time::sleep(LOOK_FOR_STATE_DIR).await;
    }
}

/// Reads the configuration in a thread of its own.
fn read_config(path: Option<PathBuf>) -> impl Future<Output = Reading> {
    let (sender, reading) = oneshot::channel();
    let late = Reading::late(path.as_deref());
    let thread = std::thread::Builder::new().name("config".into()).spawn(move || {
        // Nobody may be waiting any more.
        let _ = sender.send(Reading::of_file(path.as_deref()));
    });
    let patience = Instant::now() + CONFIG_PATIENCE;
    async move {
        match (thread, timeout_at(patience, reading).await) {
            (Ok(_), Ok(Ok(reading))) => reading,
            _ => late,
        }
    }
}

impl HmArgs {
    /// Puts what the command line says over the configuration.
    fn apply(&self, config: &mut Config) {
        if let Some(hwm) = self.hwm {
            config.zeromq.hwm = hwm;
        }
        let ports = [
            (&mut config.zeromq.publisher, self.publisher_port, 2101),
            (&mut config.zeromq.logger, self.logger_port, 2102),
        ];
        for (endpoint, port, default_port) in ports {
            if port.is_none() && self.bind.is_none() {
                continue;
            }
            let (old_host, old_port) = match &*endpoint {
                Endpoint::Tcp { host, port } => (host.clone(), *port),
                Endpoint::Ipc(_) => (Host::Ip(std::net::Ipv4Addr::LOCALHOST.into()), default_port),
            };
            let host = match self.bind.as_deref() {
                None => old_host,
                Some("*") => Host::Any,
                Some(bind) => match bind.trim_matches(['[', ']']).parse() {
                    Ok(address) => Host::Ip(address),
                    Err(_) => Host::Name(bind.into()),
                },
            };
            *endpoint = Endpoint::Tcp { host, port: port.unwrap_or(old_port) };
        }
    }
}

enum Caught {
    End,
    Hangup,
}

/// The signals, or silence where handlers can't be had.
struct SignalStream(Option<Signals>);

impl SignalStream {
    fn new() -> Self {
        SignalStream(Signals::unblock().map_err(|e| tracing::error!("hm: cannot handle signals: {e}")).ok())
    }

    async fn next(&mut self) -> Caught {
        let Some(signals) = &mut self.0 else { return std::future::pending().await };
        tokio::select! {
            _ = signals.terminate.recv() => Caught::End,
            _ = signals.interrupt.recv() => Caught::End,
            _ = signals.hangup.recv() => Caught::Hangup,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(arguments: &str, publisher: &str) -> (String, String) {
        let (_, args, complaints) = Words::split(&[arguments.into()]).read();
        assert_eq!(complaints, [""; 0]);
        let mut config = Config::default();
        config.zeromq.publisher = publisher.parse().unwrap();
        args.apply(&mut config);
        (config.zeromq.publisher.to_string(), config.zeromq.logger.to_string())
    }

    #[test]
    fn the_command_line_goes_before_the_configuration() {
        for (arguments, configured, publisher, logger) in [
            ("", "tcp://10.0.0.1:7", "tcp://10.0.0.1:7", "tcp://127.0.0.1:2102"),
            ("-p 3101", "tcp://10.0.0.1:7", "tcp://10.0.0.1:3101", "tcp://127.0.0.1:2102"),
            ("-b 0.0.0.0", "tcp://10.0.0.1:7", "tcp://0.0.0.0:7", "tcp://0.0.0.0:2102"),
            ("-b ::1 -p 1 -l 2", "ipc:///run/x", "tcp://[::1]:1", "tcp://[::1]:2"),
            ("-b '*'", "ipc:///run/x", "tcp://*:2101", "tcp://*:2102"),
            ("-b [::]", "tcp://10.0.0.1:7", "tcp://[::]:7", "tcp://[::]:2102"),
            ("-b one.example.com", "tcp://10.0.0.1:7", "tcp://one.example.com:7", "tcp://one.example.com:2102"),
        ] {
            assert_eq!(endpoints(arguments, configured), (publisher.into(), logger.into()), "{arguments}");
        }
    }
}
