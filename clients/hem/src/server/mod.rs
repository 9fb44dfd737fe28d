//! What `hookbus-hem` does: it stands in for OpenNebula's `onehem-server`.
//!
//! ```text
//!  oned's driver ── SUB ──▶ held while hooks are loaded ──▶ Broker ──▶ Executor ──▶ store ──▶ outbox ── REQ ──▶ oned's driver
//!  oned ─────────── XML-RPC ──▶ hooks ───────────────────────────────────▲
//! ```
//!
//! # Hooks are those of oned, at any time
//!
//! It subscribes to all events before it asks oned for its hooks, and goes on listening to all of them: the broker drops what no hook is for.
//! So nothing falls between. When a hook has changed, events that come behind that are held until oned has been asked again; one load
//! serves all changes that were known when it began, so a thousand of them cost a few loads. All hooks are loaded, not the one that
//! changed: oned doesn't escape templates in its events, so which one that was can't always be told. It also loads after a lost connection,
//! and on SIGHUP. A load that fails is tried again in the background, with the hooks as they were until then.
//!
//! # Guarantees
//!
//! - **Events** of the driver are lost while there is no connection to it, as with the original, and at the executor's high-water mark; both are logged. Those of
//!   a daemon's journal are not: `source.rs` has that.
//!   Where oned takes so long to tell its hooks that 100,000 events or 256 MiB wait, hooks run for them as they were loaded last.
//! - **Results** are in the store before they are sent, and stay there until the driver has answered. A lost answer is asked for
//!   again on a new connection, and what was answered in the last milliseconds before a crash is sent again, so oned may have a record twice.
//!   Beyond 10,000 results or 256 MiB the oldest go, which is logged.
//! - **Repetitions** (RETRIES), and runs with RETRIES that the end cut off, are in the store with the record of the attempt before, and go on after the next
//!   start or a crash. What has failed for the last time is a dead letter (`dead_letters.rs`).
//! - Nothing that comes over the bus ends it. A message that makes no sense is logged, ten times a minute at most, and skipped.

mod dead_letters;
mod ingest;
mod outbox;
mod source;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hookbus_bridges::zeromq::{ClientOptions, SubClient};
use hookbus_broker::Broker;
use hookbus_hem::oned::{Access, AccessError, CHANGE_KEYS, Config, EventsFrom, LoadError, OnedClient, RETRY_KEY};
use hookbus_hem::store::{OpenError, Store, StoreError, StoreOptions};
use hookbus_hem::{Executor, ExecutorOptions, HookSet, ProgressSink};
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use self::dead_letters::DeadLetters;
use self::ingest::Ingest;
use self::outbox::Outbox;
use self::source::{Cursor, Journal, Source};
use crate::log::LogFile;

/// What is subscribed to: each event once, and what somebody wants to run again.
const PREFIXES: [&str; 3] = ["EVENT API ", "EVENT STATE ", RETRY_KEY];

/// How long hooks have to end by themselves when the server ends, and then results to be sent.
const LAST_HOOKS: Duration = Duration::from_secs(10);
const LAST_RESULTS: Duration = Duration::from_secs(2);
/// How long the store may take to write what is left.
const LAST_WRITE: Duration = Duration::from_secs(5);

/// What it is started with.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) config: Config,
    pub(crate) access: Access,
    /// Where the store is.
    pub(crate) state_dir: PathBuf,
    pub(crate) log: LogFile,
}

/// Why it ended, or could not begin.
#[derive(Debug, Error)]
pub(crate) enum ServerError {
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error("cannot make the state directory {path}: {source}")]
    StateDir { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Store(#[from] OpenError),
    #[error(transparent)]
    Cursor(#[from] StoreError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("cannot wait for signals: {0}")]
    Signals(std::io::Error),
}

/// Runs until it is told to stop.
pub(crate) async fn run(settings: Settings) -> Result<(), ServerError> {
    let Settings { config, access, state_dir, log } = settings;
    let listen = |kind| signal(kind).map_err(ServerError::Signals);
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let mut reload = listen(SignalKind::hangup())?;
    let oned = OnedClient::new(&access)?;
    std::fs::create_dir_all(&state_dir).map_err(|source| ServerError::StateDir { path: state_dir.clone(), source })?;
    let store = Store::open(&state_dir, StoreOptions::default())?;

    let client = ClientOptions::default().message_limit_bytes(ingest::MESSAGE_LIMIT_BYTES);
    let (source, cursor) = match &config.subscriber_endpoint {
        EventsFrom::Driver(endpoint) => {
            (Source::Driver(SubClient::connect_with(endpoint.clone(), PREFIXES, client)), None)
        }
        EventsFrom::Daemon(sockets) => {
            let (cursor, next) = (Cursor::new(), store.cursor_blocking()?);
            (Source::Journal(Box::new(Journal::new(sockets.clone(), Arc::clone(&cursor), next))), Some(cursor))
        }
    };
    let outbox = Outbox::start(store.clone(), config.replier_endpoint.clone(), DeadLetters::in_directory(&state_dir));

    let broker = Broker::default();
    let mut options = ExecutorOptions::default();
    options.base_path.clone_from(&config.hook_base_path);
    options.remote_base_path.clone_from(&config.remote_hook_base_path);
    options.concurrency = config.concurrency;
    options.recorders.push(Arc::new(outbox.recorder()));
    options.repeats_are_kept = true;
    options.progress = cursor.clone().map(|cursor| cursor as Arc<dyn ProgressSink>);
    let executor = Executor::start(&broker, HookSet::default(), options);

    let left = store.retries_blocking().unwrap_or_else(|e| {
        tracing::error!("{e}; what waits to be repeated isn't");
        Vec::new()
    });
    let mut ingest = Ingest::new(source, cursor.clone(), oned, broker, executor, store.clone(), left);
    let writing = cursor.as_ref().map(|cursor| cursor.write(store.clone()));
    let ended = loop {
        tokio::select! {
            biased;
            _ = terminate.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
            _ = reload.recv() => {
                log.reopen();
                tracing::info!("hooks are loaded again: SIGHUP");
                ingest.reload();
            }
            failed = ingest.step() => if let Err(e) = failed {
                break Err(e.into());
            }
        }
    };
    tracing::info!("ends");
    ingest.into_executor().shutdown(Instant::now() + LAST_HOOKS).await;
    if let (Some(cursor), Some(writing)) = (cursor, writing) {
        writing.abort();
        cursor.write_last(&store).await;
    }
    outbox.shutdown(LAST_RESULTS).await;
    let lost = store.close(LAST_WRITE).await;
    if lost > 0 {
        tracing::error!(lost, "results could not be written down");
    }
    ended
}

/// Whether a message tells that hooks are not what they were.
fn is_change(key: &[u8]) -> bool {
    CHANGE_KEYS.iter().any(|change| change.as_bytes() == key)
}
