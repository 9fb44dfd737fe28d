//! Hooks of the daemon: those of template files and those of the store, and the executor that runs both.
//!
//! ```text
//! [hooks] dir ── at the start, on SIGHUP ─▶ files ─╮
//! hooks.db ───── at the start, each change ▶ store ┴▶ HookSet ─▶ Executor ─▶ records ─▶ hooks.db, HOOKBUS HOOK ...
//!     ▲                                                             ▲
//!     ╰──── create, update, ... (routes.rs) ──── retry, test ───────╯
//! ```
//!
//! A hook of the store is `hookbus hook`'s to change, a file is its owner's. A name is one hook's: where a file takes a name that the store
//! has, the store's hook runs, and the file is told of as any other mistake.
//!
//! With `overflow = "spill"` the executor has a cursor in the journal: events that come while the daemon is down are for it, too.
//!
//! # What may be lost
//!
//! Runs that are to be repeated (RETRIES), or were cut off, are in the store with the record of the attempt before, and go on after a restart, or a
//! crash. What fails for good is a dead letter under the name `hook <name>`, beside those of the bridges.
//!
//! Nothing of what was answered: a change of a hook is flushed to the disk before it is acknowledged. A store that can't be opened (its file is
//! damaged, say) costs its hooks and the log of executions, which is told loudly; template files run without it.

mod event;
mod log;
mod routes;
mod view;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hookbus_bridges::cloudevents::Encoder;
use hookbus_bridges::delivery::{DeadLetters, DeadLettersError, Which};
use hookbus_broker::{Broker, Message};
use hookbus_hem::store::{HookId, HookKey, Retry, RetryId, Store, StoreOptions, StoredHook};
use hookbus_hem::template::Template;
use hookbus_hem::{
    Executor, ExecutorOptions, ExecutorStatus, Hook, HookSet, Loaded, Origin, Problem, Resume, RunId, RunIf, Severity,
};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::time::Instant;

pub(super) use self::log::HOOK_LETTERS;
use self::log::HookLog;
pub(super) use self::routes::routes;
use super::ganeti::Verdicts;
use crate::config::{HooksConfig, Overflow};

/// The executor's cursor in the journal.
const CURSOR: &str = "hooks";

/// How long the store may take at the end to write what is left.
const LAST_WRITE: Duration = Duration::from_secs(2);

/// The executor and where its hooks come from.
pub(crate) struct Hooks {
    dir: Option<PathBuf>,
    /// Why there is none, if there is none.
    store: Result<Store, String>,
    executor: Executor,
    dead_letters: Arc<DeadLetters>,
    sources: Mutex<Sources>,
    /// Held while a hook of the store is changed, so that the executor gets changes in their order.
    changing: tokio::sync::Mutex<()>,
}

/// So many reasons why files are not loaded are kept for listings; all of them are in the log.
const MOST_REASONS: usize = 100;

/// The hooks, by where they come from.
#[derive(Default)]
struct Sources {
    files: Vec<Hook>,
    /// Why others of the directory are not loaded.
    not_loaded: Vec<String>,
    stored: BTreeMap<u64, Hook>,
}

impl Sources {
    /// Those of the store come first: their names are theirs.
    fn set(&self) -> HookSet {
        HookSet::new(self.stored.values().chain(&self.files).cloned())
    }

    fn named(&self, name: &str) -> Option<&Hook> {
        self.stored.values().chain(&self.files).find(|hook| hook.name == name)
    }

    /// Takes over what was read of the directory. Where that could not be read, the hooks stay.
    fn take(&mut self, loaded: Loaded) {
        self.not_loaded = loaded.errors().take(MOST_REASONS).map(Problem::to_string).collect();
        if !loaded.unreadable {
            self.files = loaded.hooks;
        }
    }

    fn tell_names_that_are_taken(&self) {
        let taken = |file: &&Hook| self.stored.values().any(|stored| stored.name == file.name);
        for file in self.files.iter().filter(taken) {
            let path = file.origin.path().unwrap_or(Path::new("a file")).display();
            tracing::error!("hook: {path}: NAME = {} is that of a hook in the store; this one does not run", file.name);
        }
    }
}

impl Hooks {
    /// Reads the hooks and executes them from now on; nothing where the executor can't be had, which is told. `state_dir` is where the store
    /// is, `node` what a Ganeti cluster calls this host; `verdicts` learns what checks of operations say. Between TERM and KILL hooks have `kill_grace`. It blocks: the store is a file.
    pub(crate) fn start(
        broker: &Broker,
        (config, node): (&HooksConfig, &str),
        state_dir: Option<&Path>,
        dead_letters: &Arc<DeadLetters>,
        encoder: &Encoder,
        kill_grace: Duration,
        verdicts: Arc<Verdicts>,
    ) -> Option<Self> {
        let store = open(config, state_dir);
        let mut sources =
            Sources { stored: store.as_ref().ok().and_then(read_store).unwrap_or_default(), ..Sources::default() };
        sources.take(config.dir.as_deref().map(read_files).unwrap_or_default());
        sources.tell_names_that_are_taken();
        let mut options = ExecutorOptions::default();
        options.base_path.clone_from(&config.base_path);
        options.concurrency = config.concurrency;
        options.output_max_bytes = config.output_max_bytes.bytes();
        options.hwm = config.hwm;
        options.hwm_bytes = config.hwm_bytes.bytes();
        options.kill_grace = kill_grace;
        options.overflow = config.overflow.policy();
        options.remote_base_path.clone_from(&config.remote_base_path);
        options.run_if = config.run_if.as_ref().map(RunIf::new);
        options.encoder = encoder.clone();
        node.clone_into(&mut options.node);
        options.recorders.push(verdicts);
        if let Ok(store) = &store {
            options.recorders.push(Arc::new(HookLog::new(store.clone(), Arc::clone(dead_letters))));
            options.repeats_are_kept = true;
        }
        let executor = if config.overflow == Overflow::Spill && broker.journal().is_some() {
            match Executor::start_durable(broker, sources.set(), options, CURSOR) {
                Ok(executor) => executor,
                Err(e) => {
                    tracing::error!("hooks: they can't be run: {e}");
                    return None;
                }
            }
        } else {
            Executor::start(broker, sources.set(), options)
        };
        if let Ok(store) = &store {
            resume(store, &executor, &sources);
        }
        let (sources, changing) = (Mutex::new(sources), tokio::sync::Mutex::default());
        let dead_letters = Arc::clone(dead_letters);
        Some(Hooks { dir: config.dir.clone(), store, executor, dead_letters, sources, changing })
    }

    /// Reads the directory again. Executions under way go on. Where it can't be read, the hooks that there are stay.
    pub(crate) fn reload(&self) {
        let Some(dir) = &self.dir else {
            tracing::info!("hooks: there is no [hooks] dir to be read again");
            return;
        };
        let loaded = read_files(dir);
        let unreadable = loaded.unreadable;
        let mut sources = self.sources.lock();
        sources.take(loaded);
        if unreadable {
            tracing::error!("hooks: {} cannot be read now; the hooks stay as they are", dir.display());
            return;
        }
        sources.tell_names_that_are_taken();
        self.executor.replace(sources.set());
    }

    /// Has the executor run a hook of the store as it is now; nothing of it where it is none any more.
    fn put(&self, id: u64, hook: Option<Hook>) {
        let mut sources = self.sources.lock();
        match hook {
            Some(hook) => sources.stored.insert(id, hook),
            None => sources.stored.remove(&id),
        };
        self.executor.replace(sources.set());
    }

    /// The hooks that an operation of Ganeti is going to make run, once for each run.
    pub(super) fn ganeti_runs(&self, message: &Message) -> Vec<String> {
        self.executor.ganeti_runs(message)
    }

    /// Whether there is a hook of that name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.sources.lock().named(name).is_some()
    }

    /// Runs hooks again for those of these dead letters that are theirs, and takes the letters away; answers how many. A run is in the store
    /// before its letter goes.
    ///
    /// # Errors
    /// When letters can't be read, or taken away.
    pub(super) async fn retry_letters(
        &self,
        letters: &Arc<DeadLetters>,
        numbers: Vec<(u64, String)>,
    ) -> Result<u64, DeadLettersError> {
        let _changing = self.changing.lock().await;
        let Ok(store) = &self.store else { return Ok(0) };
        let mut done = 0;
        for (number, hook) in numbers {
            let key = self.sources.lock().named(&hook).and_then(key_of);
            let shown = blocking(letters, move |letters| letters.show(number)).await?;
            let (Some(key), Some((_, event))) = (key, shown) else { continue };
            let Some(again) = log::again(&hook, &event) else { continue };
            let run = RunId::fresh();
            let due = std::time::SystemTime::now();
            let retry = Retry {
                id: RetryId::new(run.0),
                hook: key,
                event: Some(again.event.clone()),
                attempt: 1,
                due: due.into(),
                retry_of: None,
                arguments: again.arguments.clone(),
                host: again.host.clone(),
                environment: again.environment.clone(),
            };
            if let Err(e) = store.insert_retry(retry).await {
                tracing::error!("hooks: dead letter {number} can't be retried now: {e}");
                continue;
            }
            if self.executor.resume(vec![Resume { again, attempt: 1, run, due }]).is_err() {
                let _ = store.remove_retry(RetryId::new(run.0)).await;
                continue;
            }
            done += blocking(letters, move |letters| letters.purge(&Which::Numbers(vec![number]))).await?;
        }
        Ok(done)
    }

    /// Why files of the directory are not loaded.
    fn not_loaded(&self) -> Vec<String> {
        self.sources.lock().not_loaded.clone()
    }

    /// For listings.
    pub(crate) fn status(&self) -> Value {
        let status: ExecutorStatus = self.executor.status();
        let mut value = serde_json::to_value(&status).unwrap_or_default();
        value["not_loaded"] = self.not_loaded().into();
        value["dir"] = self.dir.as_ref().map(|dir| dir.to_string_lossy()).into();
        value["store"] = match &self.store {
            Ok(store) => {
                let status = store.status();
                serde_json::json!({
                    "file": status.path,
                    "executions": status.executions,
                    "waiting": status.queued,
                    "dropped": status.dropped,
                    "trouble": status.trouble.map(|trouble| trouble.error),
                })
            }
            Err(why) => serde_json::json!({ "trouble": why }),
        };
        value
    }

    /// Counters, for metrics.
    pub(crate) fn counters(&self) -> ExecutorStatus {
        self.executor.status()
    }

    /// Ends the executor; hooks that still run at the deadline are ended, too.
    pub(crate) async fn shut_down(&self, deadline: Instant) {
        self.executor.shutdown(deadline).await;
        if let Ok(store) = &self.store {
            let lost = store.close(LAST_WRITE).await;
            if lost > 0 {
                tracing::error!("hooks: {lost} records of executions could not be written down");
            }
        }
    }
}

fn open(config: &HooksConfig, state_dir: Option<&Path>) -> Result<Store, String> {
    let Some(state_dir) = state_dir else {
        return Err("there is no state directory to keep hooks in; set `state_dir`".into());
    };
    let mut options = StoreOptions::default();
    options.log_retention = config.log_retention;
    options.max_age = Some(config.log_max_age.duration()).filter(|age| !age.is_zero());
    Store::open(state_dir, options).map_err(|e| {
        tracing::error!(
            "hooks: {e}. Until then there is no `hookbus hook` and no log of executions; hooks of files run"
        );
        e.to_string()
    })
}

/// Has the executor go on with what an earlier process has left. It blocks.
fn resume(store: &Store, executor: &Executor, sources: &Sources) {
    let left = match store.retries_blocking() {
        Ok(left) => left,
        Err(e) => {
            tracing::error!("hooks: {e}; what waits to be repeated isn't");
            return;
        }
    };
    let mut resumed = Vec::new();
    for retry in left {
        let name = match &retry.hook {
            HookKey::Store(id) => sources.stored.get(&id.get()).map(|hook| hook.name.clone()),
            HookKey::File(name) => sources.files.iter().find(|hook| hook.name == *name).map(|hook| hook.name.clone()),
            HookKey::Oned(_) => None,
        };
        let id = retry.id;
        match name.and_then(|name| retry.resume(name)) {
            Some(resume) => resumed.push(resume),
            None => {
                tracing::warn!("hooks: a run was to be repeated, but its hook is gone; it is not");
                let store = store.clone();
                tokio::spawn(async move { store.remove_retry(id).await });
            }
        }
    }
    if !resumed.is_empty() {
        tracing::info!("hooks: {} runs were to be repeated, or were cut off; they go on", resumed.len());
    }
    if let Err(e) = executor.resume(resumed) {
        tracing::error!("hooks: {e}");
    }
}

/// The hooks of a directory that are right. What is wrong is told; one broken template is no reason to do without the others.
fn read_files(dir: &Path) -> Loaded {
    let loaded = hookbus_hem::load(dir);
    for problem in &loaded.problems {
        match problem.severity {
            Severity::Error if loaded.unreadable => tracing::error!("hooks: {problem}"),
            Severity::Error => tracing::error!("hook: {problem}; it is not loaded, the others are"),
            Severity::Warning => tracing::warn!("hook: {problem}"),
        }
    }
    if !loaded.unreadable {
        tracing::info!("hooks: {} loaded from {}, {} not", loaded.hooks.len(), dir.display(), loaded.not_loaded());
    }
    loaded
}

/// The hooks of the store that can be run; nothing where it can't be read.
fn read_store(store: &Store) -> Option<BTreeMap<u64, Hook>> {
    let stored = match store.hooks_blocking() {
        Ok(stored) => stored,
        Err(e) => {
            tracing::error!("hooks: {e}; none of the store runs");
            return None;
        }
    };
    let mut hooks = BTreeMap::new();
    for stored in &stored {
        let (hook, problems) = hook_of(stored);
        for problem in problems.iter().filter(|problem| problem.severity == Severity::Error) {
            // It was right when it was created: by another version.
            tracing::error!("hook {} ({}): {problem}; it does not run, the others do", stored.id, stored.name);
        }
        hooks.extend(hook.map(|hook| (stored.id.get(), hook)));
    }
    if !stored.is_empty() {
        tracing::info!("hooks: {} of {} loaded from the store", hooks.len(), stored.len());
    }
    Some(hooks)
}

/// What the template of a stored hook means, under the name that it has now.
fn hook_of(stored: &StoredHook) -> (Option<Hook>, Vec<Problem>) {
    let template = match Template::parse(&stored.template) {
        Ok(template) => template,
        Err(e) => return (None, vec![e.into()]),
    };
    let (hook, problems) = Hook::from_template(&template, &Origin::Store { id: stored.id.get() });
    (hook.map(|hook| Hook { name: stored.name.clone(), ..hook }), problems)
}

/// Under what the executions of a hook are kept; nothing for hooks that aren't the daemon's.
fn key_of(hook: &Hook) -> Option<HookKey> {
    match &hook.origin {
        Origin::Store { id } => Some(HookKey::Store(HookId::new(*id))),
        Origin::File(_) => Some(HookKey::File(hook.name.clone())),
        Origin::Oned { .. } | Origin::Program => None,
    }
}

/// Asks for dead letters, in a thread that may wait for a disk.
async fn blocking<T: Send + 'static>(
    letters: &Arc<DeadLetters>,
    work: impl FnOnce(&DeadLetters) -> Result<T, DeadLettersError> + Send + 'static,
) -> Result<T, DeadLettersError> {
    let letters = Arc::clone(letters);
    tokio::task::spawn_blocking(move || work(&letters))
        .await
        .expect("it doesn't panic, and the runtime lives as long as the daemon")
}
