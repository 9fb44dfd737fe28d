//! From the driver's messages to the executor, with hooks as oned has them.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use hookbus_bridges::opennebula::{Input, Oddity, Parser};
use hookbus_broker::{Broker, EventId};
use hookbus_hem::oned::{self, LoadError, OnedClient, Patience, Pool, RETRY_KEY, load_all};
use hookbus_hem::store::{HookKey, Retry, Store};
use hookbus_hem::{Again, EventRef, Executor, Hook, HookSet, Severity};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

use super::is_change;
use super::source::{Arrival, Cursor, Source};

/// The longest message that is taken, as for a line from oned.
pub(super) const MESSAGE_LIMIT_BYTES: usize = 256 << 20;

/// What is held while hooks are loaded, in messages and bytes. Beyond that, hooks run as they were loaded last.
pub(super) const MOST_HELD: usize = 100_000;
const MOST_HELD_BYTES: usize = 256 << 20;

/// The same of a journal, where what isn't read waits; and how often it is looked whether there is room.
const MOST_READ: usize = 1000;
const MOST_READ_BYTES: usize = 64 << 20;
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// How long the first load waits for a connection to the driver, so that it comes behind the subscription.
const FIRST_CONNECTION: Duration = Duration::from_secs(5);
/// Between a load that failed and the next one.
const RELOAD_PAUSE: Duration = Duration::from_secs(5);
/// A later load is tried so often, and for so long, while events wait for it; then hooks run as they are, and the next load comes after a pause.
const RELOAD_TRIES: u32 = 3;
const RELOAD_LIMIT: Duration = Duration::from_secs(10);

/// How many messages that make no sense are logged in a minute.
const SKIPS_A_MINUTE: u32 = 10;

pub(super) struct Ingest {
    source: Source,
    /// How far that is dealt with, if it is a journal.
    cursor: Option<Arc<Cursor>>,
    oned: OnedClient,
    broker: Broker,
    executor: Executor,
    parser: Parser,
    /// The names of hooks, by their number in oned.
    names: HashMap<i64, String>,
    held: VecDeque<Held>,
    held_bytes: usize,
    /// How many messages have come.
    received: u64,
    /// How many had come when the load began that the hooks are of.
    loaded_at: u64,
    load: Load,
    /// Whether hooks have been loaded once.
    has_hooks: bool,
    /// Whether too much is held, so that events are let go before their time.
    overflowing: bool,
    /// Since when there is no connection.
    away_since: Option<Instant>,
    /// In this minute, which began then.
    skips: (Instant, u32),
    /// What an earlier process has left to be run is in it.
    store: Store,
    /// That, until it is known which hooks there are.
    left: Vec<Retry>,
}

/// A message in its place.
struct Held {
    number: u64,
    /// Key and content; nothing where only the place counts.
    message: Option<(Bytes, Bytes)>,
    /// Its place in the journal that it comes from.
    place: Option<EventId>,
}

impl Held {
    fn bytes(&self) -> usize {
        self.message.as_ref().map_or(0, |(key, content)| key.len() + content.len())
    }
}

/// What is being done about hooks.
enum Load {
    /// They are to be loaded then, at the latest.
    At(Instant),
    /// They are being loaded.
    Running { task: JoinHandle<Result<Pool, LoadError>>, began_at: u64, _stop: watch::Sender<bool> },
    /// They are what oned has, as far as is known.
    Done,
}

impl Drop for Load {
    fn drop(&mut self) {
        if let Load::Running { task, .. } = self {
            task.abort();
        }
    }
}

/// Something that has happened.
enum Step {
    Event(Arrival),
    /// There may be room again.
    LookAgain,
    LoadNow,
    Loaded(Result<Pool, LoadError>),
}

impl Ingest {
    pub(super) fn new(
        source: Source,
        cursor: Option<Arc<Cursor>>,
        oned: OnedClient,
        broker: Broker,
        executor: Executor,
        store: Store,
        left: Vec<Retry>,
    ) -> Self {
        Ingest {
            source,
            cursor,
            oned,
            broker,
            executor,
            parser: Parser::new(),
            names: HashMap::new(),
            held: VecDeque::new(),
            held_bytes: 0,
            received: 0,
            loaded_at: 0,
            load: Load::At(Instant::now() + FIRST_CONNECTION),
            has_hooks: false,
            overflowing: false,
            away_since: None,
            skips: (Instant::now(), 0),
            store,
            left,
        }
    }

    /// Has hooks loaded again.
    pub(super) fn reload(&mut self) {
        if !matches!(self.load, Load::Running { .. }) {
            self.start_load();
        } else {
            // What is being loaded may be old by now.
            self.load = Load::At(Instant::now());
        }
    }

    pub(super) fn into_executor(self) -> Executor {
        self.executor
    }

    /// Waits for something to do, and does it. Cancelling loses nothing.
    ///
    /// # Errors
    /// When the hooks could not be loaded even once.
    pub(super) async fn step(&mut self) -> Result<(), LoadError> {
        let has_room = self.has_room();
        let step = tokio::select! {
            loaded = next_load(&mut self.load) => loaded,
            event = self.source.next(), if has_room => Step::Event(event),
            () = sleep(LOOK_AGAIN), if !has_room => Step::LookAgain,
        };
        match step {
            Step::Event(Arrival::Message { key, content, place }) => self.hold(Some((key, content)), place),
            Step::Event(Arrival::Gap { place }) => self.hold(None, Some(place)),
            Step::Event(Arrival::Strange { key, why, place }) => {
                self.skip(&key, why);
                if place.is_some() {
                    self.hold(None, place);
                }
            }
            Step::Event(Arrival::Connected) => self.connected(),
            Step::Event(Arrival::Disconnected { reason }) => self.disconnected(&reason),
            Step::Event(Arrival::Nothing) | Step::LookAgain => {}
            Step::LoadNow => self.start_load(),
            Step::Loaded(Ok(pool)) => self.loaded(&pool),
            Step::Loaded(Err(e)) if !self.has_hooks => return Err(e),
            Step::Loaded(Err(e)) => {
                tracing::error!("{e}; hooks stay as they were, and are loaded again in {RELOAD_PAUSE:?}");
                self.load = Load::At(Instant::now() + RELOAD_PAUSE);
                // Events go on meanwhile.
                self.loaded_at = self.received;
            }
        }
        self.release();
        Ok(())
    }

    /// Whether more is to be read. Of a driver always: what it publishes is lost otherwise.
    fn has_room(&self) -> bool {
        !self.source.keeps()
            || self.held.len() < MOST_READ
                && self.held_bytes < MOST_READ_BYTES
                && self.executor.waiting() < MOST_READ as u64
    }

    fn connected(&mut self) {
        match self.away_since.take() {
            _ if self.source.keeps() => tracing::info!("connected to the daemon, whose journal is followed"),
            None => tracing::info!("connected to the publisher of oned's driver"),
            Some(since) => {
                let seconds = since.elapsed().as_secs_f32();
                tracing::warn!("connected again after {seconds:.1} s; what was published in between is lost");
            }
        }
        self.reload();
    }

    fn disconnected(&mut self, reason: &str) {
        if self.away_since.is_none() {
            self.away_since = Some(Instant::now());
            let who = if self.source.keeps() { "the daemon" } else { "the publisher of oned's driver" };
            tracing::warn!("no connection to {who}, it is tried again: {reason}");
        }
    }

    fn start_load(&mut self) {
        let (stop, mut stopped) = watch::channel(false);
        let mut patience = Patience::default();
        if self.has_hooks {
            (patience.tries, patience.limit) = (RELOAD_TRIES, RELOAD_LIMIT);
        }
        let oned = self.oned.clone();
        let task = tokio::spawn(async move { load_all(&oned, patience, &mut stopped).await });
        self.load = Load::Running { task, began_at: self.received, _stop: stop };
    }

    fn loaded(&mut self, pool: &Pool) {
        if let Load::Running { began_at, .. } = &self.load {
            self.loaded_at = *began_at;
        }
        // What was let go while it ran may have told of changes.
        let again = std::mem::take(&mut self.overflowing);
        self.load = if again { Load::At(Instant::now()) } else { Load::Done };
        for problem in pool.problems() {
            match problem.severity {
                Severity::Error => tracing::error!("{problem}; it does not run, the others do"),
                Severity::Warning => tracing::warn!("{problem}"),
            }
        }
        let hooks: Vec<Hook> = pool.executable().cloned().collect();
        self.names =
            pool.hooks.iter().filter(|hook| hook.hook.is_some()).map(|hook| (hook.id, hook.name.clone())).collect();
        let (count, of) = (hooks.len(), pool.hooks.len());
        let set = HookSet::new(hooks);
        if set.hooks().len() < count {
            tracing::error!("oned has two hooks of the same name; of such only the first runs");
        }
        self.executor.replace(set);
        if !std::mem::replace(&mut self.has_hooks, true) {
            self.resume();
            tracing::info!("{count} of {of} hooks loaded from {}", self.oned.endpoint());
        } else {
            tracing::debug!("{count} of {of} hooks loaded again");
        }
    }

    /// Has the executor go on with what an earlier process has left.
    fn resume(&mut self) {
        let mut resumed = Vec::new();
        for retry in std::mem::take(&mut self.left) {
            let name = match &retry.hook {
                HookKey::Oned(id) => i64::try_from(*id).ok().and_then(|id| self.names.get(&id)),
                HookKey::Store(_) | HookKey::File(_) => None,
            };
            match name.cloned().and_then(|name| retry.clone().resume(name)) {
                Some(resume) => resumed.push(resume),
                None => {
                    tracing::warn!("{}: a run was to be repeated, but oned has no such hook any more", retry.hook);
                    let store = self.store.clone();
                    tokio::spawn(async move { store.remove_retry(retry.id).await });
                }
            }
        }
        if !resumed.is_empty() {
            tracing::info!("{} runs were to be repeated, or were cut off; they go on", resumed.len());
        }
        if let Err(e) = self.executor.resume(resumed) {
            tracing::error!("{e}");
        }
    }

    fn hold(&mut self, message: Option<(Bytes, Bytes)>, place: Option<EventId>) {
        let held = Held { number: self.received, message, place };
        self.held_bytes += held.bytes();
        self.held.push_back(held);
        self.received += 1;
    }

    /// Lets go of what is held, up to a change of hooks that the loaded ones don't show yet.
    fn release(&mut self) {
        loop {
            let is_full = self.held.len() > MOST_HELD || self.held_bytes > MOST_HELD_BYTES;
            if !is_full && (!self.has_hooks || matches!(self.load, Load::Running { .. })) {
                return;
            }
            if is_full && !std::mem::replace(&mut self.overflowing, true) {
                tracing::error!(
                    "oned takes too long to tell its hooks: too many events wait for them, and hooks run as they were"
                );
            }
            let Some(first) = self.held.front() else { return };
            let tells_of_change = first.message.as_ref().is_some_and(|(key, _)| is_change(key));
            if !is_full && first.number >= self.loaded_at && tells_of_change {
                self.start_load();
                // This one and all that came behind it are covered when it has ended.
                return;
            }
            let Some(held) = self.held.pop_front() else { return };
            self.held_bytes -= held.bytes();
            let Held { message, place, .. } = held;
            // What a driver publishes has no place, and needs no count.
            let matched = place.map(|_| self.executor.matched());
            let local = message.and_then(|(key, content)| self.take(&key, content));
            if let (Some(cursor), Some(place)) = (&self.cursor, place) {
                // What no hook is for is dealt with.
                cursor.passed(place, local.filter(|_| Some(self.executor.matched()) > matched));
            }
        }
    }

    /// Gives a message to the executor; answers its offset there.
    fn take(&mut self, key: &[u8], content: Bytes) -> Option<u64> {
        if key == RETRY_KEY.as_bytes() {
            self.retry(&content);
            return None;
        }
        match self.parser.content(content) {
            Input::Message { message, oddity: None | Some(Oddity::LongKey) } => {
                match self.broker.publish_now(message) {
                    Ok(offset) => return Some(offset.get()),
                    Err(e) => self.skip(key, &e.to_string()),
                }
            }
            _ => self.skip(key, "its content is no event"),
        }
        None
    }

    fn retry(&mut self, content: &[u8]) {
        let retry = match oned::Retry::parse(content) {
            Ok(retry) => retry,
            Err(e) => {
                self.skip(RETRY_KEY.as_bytes(), &e.to_string());
                return;
            }
        };
        let Some(hook) = self.names.get(&retry.hook_id) else {
            tracing::warn!("hook {} is to run again, but oned has no such hook, or it can't be run", retry.hook_id);
            return;
        };
        let event = EventRef {
            id: EventId { log: self.broker.log_id(), offset: self.broker.last_offset() },
            key: RETRY_KEY.to_owned(),
            time: SystemTime::now().into(),
        };
        let again = Again {
            hook: hook.clone(),
            arguments: retry.arguments,
            host: retry.remote_host,
            event,
            environment: Vec::new(),
            retry_of: None,
        };
        if let Err(e) = self.executor.run_again(again) {
            tracing::error!("hook {} does not run again: {e}", retry.hook_id);
        }
    }

    fn skip(&mut self, key: &[u8], why: &str) {
        let (minute, count) = &mut self.skips;
        if minute.elapsed() >= Duration::from_secs(60) {
            if *count > SKIPS_A_MINUTE {
                tracing::warn!("{} more messages were skipped", *count - SKIPS_A_MINUTE);
            }
            (*minute, *count) = (Instant::now(), 0);
        }
        *count += 1;
        if *count <= SKIPS_A_MINUTE {
            let key = key[..key.len().min(100)].escape_ascii();
            tracing::warn!("skipped a message with the key \"{key}\": {why}");
        }
    }
}

/// Completes when hooks are to be loaded, or have been. Cancelling loses nothing.
async fn next_load(load: &mut Load) -> Step {
    match load {
        Load::At(at) => {
            sleep_until(*at).await;
            Step::LoadNow
        }
        Load::Running { task, .. } => Step::Loaded(task.await.unwrap_or(Err(LoadError::Stopped))),
        Load::Done => std::future::pending().await,
    }
}
