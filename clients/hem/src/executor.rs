//! The [`Executor`]: runs the hooks that events call for, a bounded number at once.
//!
//! ```text
//!                       one task                one task each                    one task
//! Broker ─▶ subscription ─▶ dispatcher ─▶ process ─▶ process ─▶ ... ─▶ mpsc ─▶ reporter ─▶ log, recorders
//!   ▲        `hooks`          │ set          ╰────── concurrency ─────╯            │
//!   ╰───────────────────────── HOOKBUS HOOK <name>/<success or failure> ◀──────────╯
//! ```
//!
//! The queues, and their bounds: the subscription's high-water mark; the one event that the dispatcher has in hand; `concurrency` runs with
//! their outputs; as many records that wait for the reporter.
//!
//! # Guarantees
//!
//! - **Order**: hooks are started in the order of events, and for one event in the order of the set. They run side by side, so they may
//!   end in any order; records are reported in the order in which they ended.
//! - **Loss**: only at the subscription's high-water mark, which is logged and counted, and at the end: what still waits at the deadline of
//!   [`shutdown`](Executor::shutdown), or when the process is killed, isn't run.
//! - **Repetition**: none; a hook runs once for an event, whatever its exit code.
//! - Results of hooks never make a hook run.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hookbus_broker::{Broker, Overflow, SubscribeOptions, SubscriptionHandle};
use parking_lot::{Mutex, RwLock};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use crate::dispatch::{Dispatcher, Losses};
use crate::record::Recorder;
use crate::report::report;
use crate::set::HookSet;
use crate::status::{Active, ExecutorStatus};

/// How hooks are executed.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ExecutorOptions {
    /// Where commands are that don't begin with `/`. `/var/lib/one/remotes/hooks` unless set.
    pub base_path: PathBuf,
    /// How many hooks run at once. 10 unless set; 0 counts as 1.
    pub concurrency: usize,
    /// What is kept of each of a command's two outputs, in bytes. 1 MiB unless set.
    pub output_max_bytes: usize,
    /// High-water mark of the subscription in messages, 0 for none. 100,000 unless set.
    pub hwm: usize,
    /// The same in bytes. 256 MiB unless set.
    pub hwm_bytes: usize,
    /// What happens there. The newest events are dropped unless set.
    pub overflow: Overflow,
    /// How long a process group has between TERM and KILL. 5 s unless set.
    pub kill_grace: Duration,
    /// How long output is read after the command has ended, where something that it left behind holds it open. 5 s unless set.
    pub linger: Duration,
    /// Who else gets the records. Nobody unless set.
    pub recorders: Vec<Arc<dyn Recorder>>,
}

impl Default for ExecutorOptions {
    fn default() -> Self {
        ExecutorOptions {
            base_path: "/var/lib/one/remotes/hooks".into(),
            concurrency: 10,
            output_max_bytes: 1 << 20,
            hwm: 100_000,
            hwm_bytes: 256 << 20,
            overflow: Overflow::DropNewest,
            kill_grace: Duration::from_secs(5),
            linger: Duration::from_secs(5),
            recorders: Vec::new(),
        }
    }
}

/// Executes hooks. It lives on the tokio runtime that it was started on. Dropping it kills what runs, without a record; see
/// [`shutdown`](Executor::shutdown).
#[derive(Debug)]
pub struct Executor {
    active: Arc<RwLock<Arc<Active>>>,
    /// Held while hooks are replaced.
    replacing: Mutex<()>,
    subscription: SubscriptionHandle,
    concurrency: usize,
    stop_taking: watch::Sender<bool>,
    stop_running: watch::Sender<bool>,
    dispatcher: JoinHandle<()>,
    reporter: JoinHandle<()>,
}

impl Executor {
    /// Starts it: subscribes under the name `hooks`, and runs what matches from then on.
    ///
    /// Two things about the process are put right for the sake of commands: descriptors that it inherited are marked to be
    /// closed on exec, and SIGCHLD gets a handler, because a process that was started with it ignored could not wait for anybody.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O and time enabled.
    pub fn start(broker: &Broker, hooks: HookSet, options: ExecutorOptions) -> Self {
        close_fds::set_fds_cloexec(3, &[]);
        if let Err(e) = signal(SignalKind::child()) {
            tracing::warn!("hooks: cannot handle SIGCHLD: {e}; if it is ignored, exit codes of hooks are lost");
        }
        let options = ExecutorOptions {
            base_path: std::path::absolute(&options.base_path).unwrap_or_else(|_| options.base_path.clone()),
            concurrency: options.concurrency.clamp(1, Semaphore::MAX_PERMITS),
            ..options
        };
        let mut subscribe =
            SubscribeOptions::new("hooks").hwm(options.hwm).hwm_bytes(options.hwm_bytes).overflow(options.overflow);
        subscribe.prefixes = hooks.prefixes().into_iter().map(Vec::into_boxed_slice).collect();
        let subscription = broker.subscribe(subscribe);
        let handle = subscription.handle().clone();

        let active = Arc::new(RwLock::new(Arc::new(Active::default().succeeded_by(hooks))));
        let (stop_taking, stop_taking_receiver) = watch::channel(false);
        let (stop_running, stop_running_receiver) = watch::channel(false);
        let (reports, records) = mpsc::channel(options.concurrency);
        let reporter = tokio::spawn(report(records, broker.clone(), options.recorders.clone()));
        let concurrency = options.concurrency;
        let all = Arc::clone(&active.read().all);
        let dispatcher = Dispatcher {
            subscription,
            active: Arc::clone(&active),
            all,
            options: Arc::new(options),
            places: Arc::new(Semaphore::new(concurrency)),
            reports,
            losses: Losses::default(),
            stop_taking: stop_taking_receiver,
            stop_running: stop_running_receiver,
        };
        Executor {
            active,
            replacing: Mutex::new(()),
            subscription: handle,
            concurrency,
            stop_taking,
            stop_running,
            dispatcher: tokio::spawn(dispatcher.run()),
            reporter,
        }
    }

    /// Puts other hooks in the place of those that there are. A hook that stays misses no event; those that run are not
    /// touched. What waits in the subscription is for the new ones.
    pub fn replace(&self, hooks: HookSet) {
        let _replacing = self.replacing.lock();
        let old = Arc::clone(&self.active.read());
        let (before, after) = (old.set.prefixes(), hooks.prefixes());
        // Nothing may fall between what was subscribed and what is going to be.
        self.subscription.add_prefixes(after.difference(&before));
        *self.active.write() = Arc::new(old.succeeded_by(hooks));
        self.subscription.remove_prefixes(before.difference(&after));
    }

    /// Its counters.
    pub fn status(&self) -> ExecutorStatus {
        let active = Arc::clone(&self.active.read());
        let subscription = self.subscription.stats();
        let hooks = active.hooks();
        ExecutorStatus {
            hooks,
            running: active.all.running(),
            concurrency: self.concurrency,
            waiting: subscription.as_ref().map_or(0, |stats| stats.queued),
            dropped: subscription.map_or(0, |stats| stats.dropped),
        }
    }

    /// Ends it in order: nothing more is queued for it, hooks run for the events that wait until the deadline, then what runs is
    /// ended, and all of it reported. Events that still wait then are told with their number. It returns at the latest about [`kill_grace`](ExecutorOptions::kill_grace) and three seconds after the deadline.
    pub async fn shutdown(mut self, deadline: Instant) {
        self.subscription.close();
        if timeout_at(deadline, &mut self.dispatcher).await.is_err() {
            self.stop_taking.send_replace(true);
            self.stop_running.send_replace(true);
            let _ = (&mut self.dispatcher).await;
        }
        // It ends when the last run has sent its record.
        let _ = (&mut self.reporter).await;
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        self.dispatcher.abort();
        self.reporter.abort();
    }
}
