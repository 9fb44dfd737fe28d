//! The daemon: everything that runs around one broker, and how it stands.
//!
//! `hookbus serve` is a daemon with nothing else; `hookbus hm` is one that oned feeds through its standard input. Both put it together
//! here, from one configuration:
//!
//! ```text
//!                 ┌▶ ports      ZeroMQ publisher and logger           ports.rs
//!   BROKER ───────┼▶ journal    events on disk                        journal.rs
//!        ▲        ├▶ bridges    NATS, MQTT, AMQP; dead letters        bridges.rs, buses.rs
//!        │        ├▶ hooks      the executor, from template files     hooks.rs
//!        │        └▶ http       followers, status, metrics            http.rs, routes.rs
//!        ├───────── http       events published by hand
//!        ├───────── sources    another driver's port, Ganeti's jobs  sources.rs
//!        ├───────── ganeti     reports of hooks, once per operation  ganeti/
//!        └───────── forwarded  events of a driver in another process  forwarded.rs
//! ```
//!
//! All but the ports belongs to whoever owns the state directory ([`StateDir`]); the ports belong to whoever has bound them. So a
//! driver that runs beside a `serve` serves ZeroMQ at ports of its own, and takes the rest over when the other one has ended. What comes
//! until then is kept for its journal.
//!
//! What may wait for a disk (bridges and followers that read from the journal) has a runtime of its own: who reads from memory through a port
//! never waits for it.
//!
//! # The end
//!
//! An ordered list ([`Daemon::shut_down`]): nothing more is taken in; hooks that run are given time, then ended; ports, bridges and
//! followers send what is queued; what could not be done is logged; the journal is closed.

mod bridges;
mod buses;
mod forwarded;
mod ganeti;
mod hooks;
mod http;
mod journal;
mod ports;
mod results;
mod routes;
mod socket;
mod sources;
mod state_dir;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use hookbus_bridges::cloudevents::{Encoder, Sources as Producers};
use hookbus_bridges::delivery::DeadLetters;
use hookbus_broker::{Broker, BrokerOptions, JournalHold};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::runtime::{Handle, Runtime};
use tokio::sync::watch;
use tokio::time::Instant;

use self::bridges::Bridges;
use self::ganeti::{Ganeti, Verdicts};
use self::journal::JournalState;
use self::sources::Sources;
use crate::config::{Config, Overflow};
pub(crate) use forwarded::Forwarded;
pub(crate) use hooks::Hooks;
pub(crate) use http::{Http, HttpError};
pub(crate) use ports::{PORT_NAMES, PortState, Ports, Results};
pub(crate) use results::ResultQueue;
pub(crate) use state_dir::{StateDir, StateDirError};

/// How many filters of a subscriber a listing shows.
const FILTERS_SHOWN: usize = 5;

/// What the cursors of bridges begin with; the bridge's name follows.
const BRIDGE_CURSOR: &str = "bridge/";

/// What this process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// A service.
    Serve,
    /// OpenNebula's driver.
    Hm,
}

impl Role {
    /// How long a hook has between TERM and KILL. oned has less patience with its driver than systemd with a service.
    fn kill_grace(self) -> Duration {
        match self {
            Role::Serve => Duration::from_secs(5),
            Role::Hm => Duration::from_secs(1),
        }
    }
}

/// What is known about the daemon; every part reports here.
pub(crate) struct State {
    role: Role,
    started: SystemTime,
    pub(crate) config: Config,
    pub(crate) broker: Broker,
    pub(crate) forwarded: Forwarded,
    /// What hooks say of operations that are about to begin.
    verdicts: Arc<Verdicts>,
    parts: Mutex<Parts>,
    ready: AtomicBool,
    /// What this host is called.
    host: String,
    encoder: Encoder,
}

/// The parts, as far as they are there.
#[derive(Default)]
struct Parts {
    ports: Option<[watch::Receiver<PortState>; 2]>,
    state_dir: Option<PathBuf>,
    socket: Option<PathBuf>,
    listen: Vec<SocketAddr>,
    hooks: Option<Arc<Hooks>>,
    ganeti: Option<Ganeti>,
    journal: Option<JournalState>,
    bridges: Option<Bridges>,
    /// What buses have refused, and hooks have failed for, for good.
    dead_letters: Option<Arc<DeadLetters>>,
    sources: Sources,
    /// What is published before the journal is there; taken when it is opened.
    held: Option<Box<JournalHold>>,
}

/// Why what belongs to the owner of the state directory can't be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OwnError {
    /// The journal.
    #[error("{0}")]
    Journal(String),
    /// The socket, or an address.
    #[error(transparent)]
    Http(#[from] HttpError),
}

/// The daemon. Dropping it ends its parts at once.
pub(crate) struct Daemon {
    pub(crate) state: Arc<State>,
    ports: Option<Ports>,
    /// What belongs to the owner of the state directory.
    owned: Option<Owned>,
}

/// What only the owner of the state directory has.
pub(crate) struct Owned {
    /// Held, in case there is one.
    _state_dir: Option<StateDir>,
    http: Option<Http>,
    /// What may wait for a disk runs in it, since what serves the ports must not. Nothing where nothing reads from a disk.
    runtime: Option<Runtime>,
}

impl Drop for Owned {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Its threads may hang on a disk; the end of the process ends them.
            runtime.shutdown_background();
        }
    }
}

impl Daemon {
    /// A broker and its ports. `results` takes what hook executors report; without it, a driver that forwards does.
    pub(crate) fn start(role: Role, config: Config, results: Option<Results>) -> Self {
        let broker = Broker::new(BrokerOptions::default().max_bytes(config.broker.max_bytes.bytes()));
        let queue = ResultQueue::default();
        let forwarded = Forwarded::new(broker.clone(), queue.clone(), config.limits.line_bytes.bytes());
        let results = results.unwrap_or(Results::Forwarder(queue));
        let ports = config.zeromq.enabled.then(|| Ports::serve(&config, &broker, results, role == Role::Hm));
        let held = config.journal.enabled.then(|| broker.hold_for_journal().ok().map(Box::new)).flatten();
        let parts = Parts { ports: ports.as_ref().map(Ports::states), held, ..Parts::default() };
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let encoder = Encoder::new(Producers { host: host.clone(), zone: None });
        let state = State {
            role,
            started: SystemTime::now(),
            config,
            broker,
            forwarded,
            verdicts: Arc::default(),
            parts: Mutex::new(parts),
            ready: AtomicBool::new(false),
            host,
            encoder,
        };
        Daemon { state: Arc::new(state), ports, owned: None }
    }

    /// Takes over what belongs to the owner of the state directory: journal, bridges, sources, hooks and HTTP. Bridges and hooks are not in
    /// the way of anything, so what is wrong with them is logged.
    ///
    /// # Errors
    /// When the journal, the socket, or a TCP address can't be had.
    pub(crate) fn own(
        &mut self,
        state_dir: Option<StateDir>,
        activated: Option<std::os::unix::net::UnixListener>,
    ) -> Result<(), OwnError> {
        let directory = state_dir.as_ref().map(|dir| dir.path().to_owned());
        open_journal(&self.state, directory.as_deref()).map_err(OwnError::Journal)?;
        let owned = own(&self.state, state_dir, activated)?;
        start_bridges(&self.state, &owned.runtime());
        self.owned = Some(owned);
        Ok(())
    }

    /// Adds what was taken over elsewhere.
    pub(crate) fn add(&mut self, owned: Owned) {
        self.owned = Some(owned);
    }

    /// Ends in order. Hooks have `hooks` to end by themselves; everything else has `drain` after that.
    pub(crate) async fn shut_down(self, hooks: Duration, drain: Duration) {
        let Daemon { state, ports, owned } = self;
        state.set_ready(false);
        state.forwarded.close();
        let http = owned.as_ref().and_then(|owned| owned.http.as_ref());
        if let Some(http) = http {
            http.take_nothing_in();
        }
        let (sources, ganeti, executor) = {
            let mut parts = state.parts.lock();
            (std::mem::take(&mut parts.sources), parts.ganeti.take(), parts.hooks.take())
        };
        sources.shut_down().await;
        if let Some(ganeti) = ganeti {
            ganeti.shut_down().await;
        }
        if let Some(executor) = executor {
            executor.shut_down(Instant::now() + hooks).await;
        }
        let deadline = Instant::now() + drain;
        let ports = async {
            if let Some(ports) = ports {
                ports.shut_down(deadline).await;
            }
        };
        let http = async {
            if let Some(http) = http {
                http.shut_down(deadline).await;
            }
        };
        let bridges = state.parts.lock().bridges.take();
        let bridges = async {
            if let Some(bridges) = bridges {
                bridges.shut_down(deadline).await;
            }
        };
        tokio::join!(ports, http, bridges);
        // The journal gets what came last, and is closed in order.
        let broker = state.broker.clone();
        let closed = tokio::task::spawn_blocking(move || broker.close_journal());
        if tokio::time::timeout_at(deadline.max(Instant::now() + LAST_WRITE), closed).await.is_err() {
            tracing::error!("journal: its disk doesn't answer; what came last may not be in it");
        }
    }
}

/// How long the journal may take to be closed when everything else has used up its time.
const LAST_WRITE: Duration = Duration::from_millis(500);

/// See [`Daemon::own`]: hooks and HTTP. It blocks: hooks are in a file.
pub(crate) fn own(
    state: &Arc<State>,
    state_dir: Option<StateDir>,
    activated: Option<std::os::unix::net::UnixListener>,
) -> Result<Owned, HttpError> {
    let config = &state.config;
    let reads = config.journal.enabled || !config.bridges.is_empty();
    let runtime = reads.then(runtime).transpose()?;
    let entered = runtime.as_ref().map(Runtime::enter);
    let http = Http::start(state, activated)?;
    drop(entered);
    let directory = state_dir.as_ref().map(|dir| dir.path().to_owned());
    let dead_letters = bridges::dead_letters(&config.limits, directory.as_deref());
    {
        let mut parts = state.parts.lock();
        parts.state_dir = directory;
        parts.dead_letters = Some(Arc::new(dead_letters));
    }
    // Hooks that read from the journal begin when it is open.
    let hooks = (!hooks_wait_for_journal(config)).then(|| start_hooks(state)).flatten();
    let mut parts = state.parts.lock();
    parts.socket = http.socket();
    parts.listen = http.listen();
    parts.hooks = hooks;
    Ok(Owned { _state_dir: state_dir, http: Some(http), runtime })
}

fn hooks_wait_for_journal(config: &Config) -> bool {
    config.hooks.overflow == Overflow::Spill && config.journal.enabled
}

/// What Ganeti calls this host: as the configuration says, or that of the hook client, where `hookbus ganeti install` has written it.
fn ganeti_node(state: &State) -> String {
    let of_hook = || hookbus_ganeti_hook::config::Reading::of_file(None).config.node;
    state.config.ganeti.node.clone().or_else(of_hook).unwrap_or_else(|| state.host.clone())
}

fn start_hooks(state: &State) -> Option<Arc<Hooks>> {
    let (state_dir, dead_letters) = {
        let parts = state.parts.lock();
        (parts.state_dir.clone(), parts.dead_letters.clone()?)
    };
    let node = ganeti_node(state);
    let (config, kill_grace) = ((&state.config.hooks, node.as_str()), state.role.kill_grace());
    let verdicts = Arc::clone(&state.verdicts);
    let (broker, directory) = (&state.broker, state_dir.as_deref());
    let hooks = Hooks::start(broker, config, directory, &dead_letters, &state.encoder, kill_grace, verdicts);
    hooks.map(Arc::new)
}

/// Opens the journal, where there is to be one; `directory` is the state directory. It blocks. What is published before is kept for it.
///
/// # Errors
/// When it can't be opened; it can be tried again.
pub(crate) fn open_journal(state: &State, directory: Option<&Path>) -> Result<(), String> {
    if !state.config.journal.enabled || state.parts.lock().journal.is_some() {
        return Ok(());
    }
    let mut held = state.parts.lock().held.take();
    let journal = JournalState::open(&state.broker, &mut held, &state.config.journal, directory);
    let mut parts = state.parts.lock();
    parts.held = held;
    parts.journal = Some(journal?);
    Ok(())
}

/// Starts bridges, sources, and hooks that read from the journal, when that is open. What is wrong with one of them is logged. It blocks:
/// bridges have files.
pub(crate) fn start_bridges(state: &Arc<State>, runtime: &Handle) {
    let _entered = runtime.enter();
    let dead_letters = state.parts.lock().dead_letters.clone();
    let bridges =
        dead_letters.map(|letters| Bridges::start(&state.broker, &state.config, letters, &state.host, &state.encoder));
    let hooks = hooks_wait_for_journal(&state.config).then(|| start_hooks(state)).flatten();
    let state_dir = state.parts.lock().state_dir.clone();
    let node = &ganeti_node(state);
    let sources = Sources::start(&state.broker, &state.config.sources, state_dir.as_deref(), node);
    let ganeti = Ganeti::start(state, state_dir.as_deref(), sources.jobs());
    let mut parts = state.parts.lock();
    parts.ganeti = Some(ganeti);
    if hooks.is_some() {
        parts.hooks = hooks;
    }
    parts.bridges = bridges;
    parts.sources = sources;
}

fn runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).thread_name("bridges").enable_all().build()
}

impl Owned {
    /// Where what may wait for a disk runs.
    pub(crate) fn runtime(&self) -> Handle {
        self.runtime.as_ref().map_or_else(Handle::current, |runtime| runtime.handle().clone())
    }
}

impl State {
    /// Says whether events are taken in.
    pub(crate) fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }

    /// Reads the template files again. What is wrong with one is logged, and it keeps its old content out; the others go on.
    pub(crate) fn reload_hooks(&self) {
        let hooks = self.parts.lock().hooks.clone();
        match hooks {
            Some(hooks) => hooks.reload(),
            None => tracing::info!("hooks: they don't run yet, and are read when they do"),
        }
    }

    /// What becomes of each port, in the order of [`PORT_NAMES`]; nothing where they are not enabled.
    pub(crate) fn ports(&self) -> Option<[watch::Receiver<PortState>; 2]> {
        self.parts.lock().ports.clone()
    }

    /// What is wrong with the ports, in the words of a listing.
    fn missing(&self) -> Option<String> {
        let parts = self.parts.lock();
        let ports = parts.ports.as_ref()?;
        PORT_NAMES.iter().zip(ports).find_map(|(name, state)| match &*state.borrow() {
            PortState::Listening(_) => None,
            PortState::Starting => Some(format!("the {name} is not bound yet")),
            PortState::Failed(why) => Some(format!("the {name} cannot listen: {why}")),
        })
    }

    /// Everything, as one object. The command line shows it, so its names are a contract with it; see docs/http.md.
    fn status(&self) -> Value {
        let ready = self.is_ready().is_ok();
        let stats = self.broker.stats();
        let parts = self.parts.lock();
        let ports: Vec<Value> =
            parts.ports.iter().flatten().zip(PORT_NAMES).map(|(state, name)| port(name, &state.borrow())).collect();
        let subscribers: Vec<Value> = self.broker.subscriptions().iter().map(|stats| self.subscriber(stats)).collect();
        let forwarded = self.forwarded.status();
        let millis =
            |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "role": match self.role { Role::Serve => "serve", Role::Hm => "hm" },
            "pid": std::process::id(),
            "started_ms": millis(self.started),
            "uptime_s": self.started.elapsed().unwrap_or_default().as_secs(),
            "ready": ready,
            "log_id": self.broker.log_id().to_string(),
            "state_dir": parts.state_dir,
            "socket": parts.socket,
            "listen": parts.listen,
            "ports": ports,
            "broker": {
                "published": stats.published,
                "published_bytes": stats.published_bytes,
                "delivered": stats.delivered,
                "dropped": stats.dropped,
                "abandoned": stats.abandoned,
                "held_bytes": stats.held_bytes,
                "max_bytes": self.config.broker.max_bytes.bytes(),
                "prefixes": stats.prefixes,
            },
            "driver": {
                "connected": forwarded.connected,
                "taken_in": forwarded.taken_in,
                "lost": forwarded.lost,
                "results_waiting": forwarded.results_waiting,
            },
            "journal": parts.journal.as_ref().map(|journal| {
                let dead_letters = parts.dead_letters.as_ref().map_or(0, |letters| letters.count(None));
                journal.status(&self.broker, dead_letters)
            }),
            "sources": parts.sources.status(),
            "bridges": parts.bridges.as_ref().map(Bridges::shown).unwrap_or_default(),
            "subscribers": subscribers,
            "hooks": parts.hooks.as_deref().map(Hooks::status),
            "ganeti": parts.ganeti.as_ref().map(Ganeti::status),
        })
    }

    fn subscriber(&self, stats: &hookbus_broker::SubscriptionStats) -> Value {
        let (kind, name) = stats.name.split_once(' ').unwrap_or((&stats.name, ""));
        let filters: Vec<String> = self
            .broker
            .prefixes_of(stats.id, FILTERS_SHOWN)
            .iter()
            .map(|prefix| String::from_utf8_lossy(prefix).into_owned())
            .collect();
        json!({
            "id": stats.id,
            "kind": kind,
            "name": name,
            "filters": filters,
            "filter_count": stats.prefixes,
            "hwm": stats.hwm,
            "hwm_bytes": stats.hwm_bytes,
            "overflow": overflow_name(stats.overflow),
            "queued": stats.queued,
            "queued_bytes": stats.queued_bytes,
            "matched": stats.matched,
            "delivered": stats.delivered,
            "dropped": stats.dropped,
            "overflowing": stats.overflowing,
        })
    }

    fn is_ready(&self) -> Result<(), String> {
        if let Some(missing) = self.missing() {
            return Err(missing);
        }
        if !self.ready.load(Ordering::Relaxed) {
            return Err("it is starting or about to end".into());
        }
        Ok(())
    }
}

fn port(name: &str, state: &PortState) -> Value {
    match state {
        PortState::Starting => json!({ "name": name, "state": "starting" }),
        PortState::Listening(endpoint) => {
            json!({ "name": name, "state": "listening", "endpoint": endpoint.to_string() })
        }
        PortState::Failed(why) => json!({ "name": name, "state": "failed", "reason": why }),
    }
}

fn overflow_name(overflow: hookbus_broker::Overflow) -> &'static str {
    use hookbus_broker::Overflow;

    match overflow {
        Overflow::DropOldest => "drop-oldest",
        Overflow::Block => "block",
        Overflow::Disconnect => "disconnect",
        Overflow::Spill => "spill",
        _ => "drop-newest",
    }
}
