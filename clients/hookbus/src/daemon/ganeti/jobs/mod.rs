//! Ganeti's jobs as events: a source that follows the queue directory of a cluster's master.
//!
//! ```text
//! /var/lib/ganeti/queue ── inotify (watch.rs) ─▶ which jobs changed ─▶ read (queue.rs) ─▶ what is new (known.rs) ─▶ broker, journal
//!                                                                          │                   ▲
//!                                        which job a hook ran for ◀────────┘                   └ memory.rs: what was told
//! ```
//!
//! Ganeti replaces a job's file at each change. The kernel says so at once, and the file is read; there is no polling. What is told of a job is its status
//! ([`hookbus_bridges::ganeti::JobStatus`]), whenever that has gone forward. All of it is one task; the directory is read aside, where threads may wait for disks.
//!
//! # What may be lost, repeated, or reordered
//!
//! - **Loss**: no job's end is lost, as long as its file is there, in the queue or in its archive: what happened while nobody looked (hookbus or the directory
//!   was away, inotify's queue overflowed) is found by reading all files again. A status between may be passed over: a job that runs and ends before its
//!   file is read is told as what it is then. Jobs that had ended before the queue was followed for the first time are not told. From where on the archive
//!   belongs to what is told is written down before anything is; while that file can't be written, which is logged, what is archived unseen is missed.
//! - **Repetition**: a status counts as told when the journal has its event, where there is one, and that is written down after it. So a crash between the two
//!   has it told again, as another event; jobid and status stand for it. Without a state directory nothing is written down, and each start is the first.
//! - **Order**: of one job always. Jobs that changed at the same time come in the order of their numbers.
//! - **Master**: master candidates have a copy of the queue. Where Ganeti says which node is the master (`ssconf_master_node`, beside the directory) and it
//!   is another one than this, nothing is told, and what happens counts as told by the daemon over there.
//!
//! # Trouble
//!
//! A directory that isn't there, can't be read, or vanishes, and a cluster without a name, are logged once, with what to do, shown in the status, and
//! tried again after 100 ms, later 10 s at most. A file that can't be read is logged, counted, and tried again whenever it changes, and every 30 s.
//!
//! # Hooks
//!
//! The intake asks which job a hook ran for ([`Jobs::job_of`]): the one job of that cluster whose operation of that name, about that object, ran at the time of the
//! report. With none, or several, it stays unsaid.

mod known;
mod memory;
mod queue;
mod watch;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use hookbus_bridges::cloudevents::rfc3339;
use hookbus_bridges::ganeti::{Job, Report};
use hookbus_broker::{Broker, Offset, PublishError, Timestamp};
use notify::RecommendedWatcher;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch as channel;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep, timeout};

use self::known::{Known, News, Recent, news};
use self::memory::JobMemory;
use self::queue::{Identity, Queue, Seen};
use self::watch::{Changes, Dirty};

/// How many files are read together.
const READ_TOGETHER: usize = 64;
/// How often it is looked whether the directory is still the same one.
const LOOK: Duration = Duration::from_secs(5);
/// How often files that could not be read are tried again, at least.
const UNREADABLE_AGAIN: Duration = Duration::from_secs(30);
/// How many files that could not be read are remembered.
const MOST_UNREADABLE: usize = 1000;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How long the report of a hook waits for changes to be read that are known to be there.
const CATCH_UP: Duration = Duration::from_millis(50);
/// How long the journal may take for the last events when the source ends.
const LAST_WRITE: Duration = Duration::from_secs(1);

/// What all sources of jobs know together; hooks are asked about here.
#[derive(Clone, Debug, Default)]
pub(in crate::daemon) struct Jobs {
    sources: Vec<Arc<Shared>>,
}

impl Jobs {
    /// With these.
    pub(in crate::daemon) fn of<'s>(sources: impl Iterator<Item = &'s JobsSource>) -> Self {
        Jobs { sources: sources.map(|source| Arc::clone(&source.shared)).collect() }
    }

    /// The job that the hook of a report ran for, where exactly one may be it. What the directory has told already is read first, 50 ms at most.
    pub(super) async fn job_of(&self, report: &Report) -> Option<u64> {
        let source = self.sources.iter().find(|source| source.recent.lock().concerns(report))?;
        // One report waits, not each of many.
        if !source.gave_up.load(Ordering::Relaxed) || !source.dirty.is_behind() {
            let is_late = timeout(CATCH_UP, source.dirty.all_seen()).await.is_err();
            source.gave_up.store(is_late, Ordering::Relaxed);
        }
        source.recent.lock().job_of(report)
    }
}

/// A queue that is followed, until this is dropped or [shut down](JobsSource::shut_down).
#[derive(Debug)]
pub(in crate::daemon) struct JobsSource {
    shared: Arc<Shared>,
    stop: channel::Sender<bool>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    name: String,
    queue: Queue,
    dirty: Arc<Dirty>,
    recent: Mutex<Recent>,
    standing: Mutex<(Standing, Timestamp)>,
    /// A report has waited in vain for changes to be read.
    gave_up: AtomicBool,
    known: AtomicU64,
    events: AtomicU64,
    skipped: AtomicU64,
    refused: AtomicU64,
}

/// How a source stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Standing {
    Starting,
    Following,
    /// Another node is the master.
    Standby(String),
    Failing(String),
}

impl Shared {
    fn stands(&self, standing: Standing) {
        let mut now = self.standing.lock();
        if now.0 == standing {
            return;
        }
        let name = &self.name;
        let path = self.queue.directory.display();
        match &standing {
            Standing::Starting => {}
            Standing::Following => tracing::info!("ganeti jobs: source `{name}` follows {path}"),
            Standing::Standby(master) => tracing::info!(
                "ganeti jobs: source `{name}` tells nothing: {master} is the master. If that is this node, write its name into [ganeti] node"
            ),
            Standing::Failing(why) => {
                tracing::error!(
                    "ganeti jobs: source `{name}`: {why}; it is tried again, and jobs are told when that works"
                );
            }
        }
        *now = (standing, SystemTime::now().into());
    }
}

impl JobsSource {
    /// Follows this queue from now on. `cluster` is its cluster's name, where it isn't Ganeti that says it, `node` what the cluster calls this host. What is known
    /// is kept in `state_dir`. It blocks: that is a file.
    pub(in crate::daemon) fn start(
        name: &str,
        directory: &Path,
        cluster: Option<&str>,
        node: &str,
        broker: &Broker,
        state_dir: Option<&Path>,
    ) -> Self {
        let now: Timestamp = SystemTime::now().into();
        let queue = Queue { directory: directory.to_owned() };
        let (mut memory, mut known, mut highest, mut began) = (None, BTreeMap::new(), None, now);
        match state_dir.map(|state_dir| JobMemory::open(state_dir, directory, now)) {
            Some(Ok((opened, remembered))) => {
                memory = Some(opened);
                (known, highest, began) = (remembered.jobs, remembered.highest, remembered.began);
            }
            Some(Err(e)) => tracing::error!(
                "ganeti jobs: {e}. Until then what ends while hookbus is away is not told, and what was told may be told again"
            ),
            None => {}
        }
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            queue,
            dirty: Arc::default(),
            recent: Mutex::default(),
            standing: Mutex::new((Standing::Starting, now)),
            gave_up: AtomicBool::new(false),
            known: AtomicU64::new(known.len() as u64),
            events: AtomicU64::new(0),
            skipped: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        });
        let (stop, stopped) = channel::channel(false);
        let follower = Follower {
            shared: Arc::clone(&shared),
            broker: broker.clone(),
            stopped,
            configured: cluster.map(str::to_owned),
            cluster: String::new(),
            node: node.to_owned(),
            memory,
            known,
            highest,
            began,
            unwritten: BTreeMap::new(),
            published: None,
            unreadable: BTreeMap::new(),
        };
        JobsSource { shared, stop, task: tokio::spawn(follower.run()) }
    }

    /// For listings.
    pub(in crate::daemon) fn status(&self) -> Value {
        let shared = &self.shared;
        let number = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (standing, since) = shared.standing.lock().clone();
        let (state, reason) = match standing {
            Standing::Starting => ("starting", None),
            Standing::Following => ("following", None),
            Standing::Standby(master) => ("standby", Some(format!("{master} is the master"))),
            Standing::Failing(why) => ("failing", Some(why)),
        };
        json!({
            "name": shared.name,
            "type": "ganeti-jobs",
            "address": shared.queue.directory,
            "state": state,
            "reason": reason,
            "since": rfc3339(since),
            "jobs": number(&shared.known),
            "running": shared.recent.lock().running(),
            "events": number(&shared.events),
            "skipped": number(&shared.skipped),
            "refused": number(&shared.refused),
        })
    }

    /// Ends it, after what it has published is in the journal. What it hasn't looked at is found at the next start.
    pub(in crate::daemon) async fn shut_down(mut self) {
        self.stop.send_replace(true);
        if (&mut self.task).await.is_err() {
            tracing::error!("ganeti jobs: source `{}` has failed", self.shared.name);
        }
    }
}

impl Drop for JobsSource {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The task.
struct Follower {
    shared: Arc<Shared>,
    broker: Broker,
    stopped: channel::Receiver<bool>,
    /// The cluster's name in the configuration.
    configured: Option<String>,
    cluster: String,
    node: String,
    /// Nothing where it can't be kept.
    memory: Option<JobMemory>,
    known: BTreeMap<u64, Known>,
    /// The highest number that was seen; nothing before the first look.
    highest: Option<u64>,
    began: Timestamp,
    /// What is to be written down, when the journal has what was published.
    unwritten: BTreeMap<u64, Option<Known>>,
    published: Option<Offset>,
    /// What was wrong with files that could not be read.
    unreadable: BTreeMap<u64, String>,
}

/// A directory that is followed.
struct Opened {
    /// Dropping it ends it.
    _watcher: RecommendedWatcher,
    identity: Identity,
}

/// Why something came to its end.
enum Interrupted {
    /// The source is shut down.
    Stopped,
    /// It is tried again.
    Trouble(String),
}

use Interrupted::{Stopped, Trouble};

impl Follower {
    async fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let interrupted = match self.open().await {
                Ok(opened) => self.follow(&opened, &mut pause).await,
                Err(interrupted) => interrupted,
            };
            let Trouble(why) = interrupted else { break };
            self.shared.stands(Standing::Failing(why));
            if self.wait(pause).await {
                break;
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        let written = timeout(LAST_WRITE, self.write()).await;
        if written.is_err() && !self.unwritten.is_empty() {
            tracing::warn!(
                "ganeti jobs: the journal has not taken the last events in time; they are told again at the next start"
            );
        }
    }

    /// Waits; says whether the source has been stopped meanwhile.
    async fn wait(&mut self, time: Duration) -> bool {
        // Who has dropped the other end has aborted this task, too.
        timeout(time, self.stopped.wait_for(|stopped| *stopped)).await.is_ok()
    }

    /// Begins to follow the directory, and notes all jobs that are in it.
    async fn open(&mut self) -> Result<Opened, Interrupted> {
        let (queue, dirty) = (self.shared.queue.clone(), Arc::clone(&self.shared.dirty));
        let (configured, highest) = (self.configured.clone(), self.highest);
        let opened = self.aside(move || {
            let identity = queue.identity()?;
            let watcher = watch::follow(&queue.directory, &dirty)?;
            let cluster = configured.map_or_else(|| queue.cluster(), Ok)?;
            // What was noted of an earlier directory is among these.
            drop::<Changes>(dirty.take());
            let mut jobs = queue.jobs()?;
            let highest = match highest {
                Some(highest) => {
                    jobs.extend(queue.archived_after(highest));
                    highest
                }
                None => queue.highest_before(&jobs),
            };
            dirty.add(jobs);
            Ok((Opened { _watcher: watcher, identity }, cluster, highest))
        });
        let (opened, cluster, highest) = opened.await?;
        if self.highest.is_none() {
            self.highest = Some(highest);
            self.write().await?;
        }
        self.shared.recent.lock().set_cluster(&cluster);
        self.cluster = cluster;
        // Those that are not there any more: archived, most of them.
        self.shared.dirty.add(self.known.keys().copied());
        Ok(opened)
    }

    /// Deals with what changes, until that doesn't work any more. Where it works, the next pause is short again.
    async fn follow(&mut self, opened: &Opened, pause: &mut Duration) -> Interrupted {
        let mut tried_again = Instant::now();
        loop {
            if let Err(interrupted) = self.deal().await {
                return interrupted;
            }
            // It works: what comes now is new trouble.
            *pause = FIRST_PAUSE;
            tokio::select! {
                biased;
                _ = self.stopped.wait_for(|stopped| *stopped) => return Stopped,
                () = self.shared.dirty.news.notified() => continue,
                () = sleep(LOOK) => {}
            }
            let queue = self.shared.queue.clone();
            match self.aside(move || queue.identity()).await {
                Ok(identity) if identity == opened.identity => {}
                Ok(_) => return Trouble(format!("{} is another directory now", self.shared.queue.directory.display())),
                Err(interrupted) => return interrupted,
            }
            if tried_again.elapsed() >= UNREADABLE_AGAIN && !self.unreadable.is_empty() {
                tried_again = Instant::now();
                self.shared.dirty.add(self.unreadable.keys().copied());
            }
        }
    }

    /// Deals with all that is noted.
    async fn deal(&mut self) -> Result<(), Interrupted> {
        let Changes { jobs, all, directory } = self.shared.dirty.take();
        if directory {
            return Err(Trouble(format!("{} was removed or renamed", self.shared.queue.directory.display())));
        }
        let mut jobs: Vec<u64> = jobs.into_iter().collect();
        if all {
            tracing::warn!(
                "ganeti jobs: source `{}`: changes came faster than they were noted; all jobs are read again",
                self.shared.name
            );
            let queue = self.shared.queue.clone();
            jobs.extend(self.aside(move || queue.jobs()).await?);
            jobs.extend(self.known.keys());
            jobs.sort_unstable();
            jobs.dedup();
        }
        let mut rest = &jobs[..];
        loop {
            let (now, later) = rest.split_at(rest.len().min(READ_TOGETHER));
            let is_last = later.is_empty();
            if let Err(interrupted) = self.deal_with(now, is_last).await {
                // They are read again.
                self.shared.dirty.add(rest.iter().copied());
                return Err(interrupted);
            }
            rest = later;
            if is_last {
                break;
            }
        }
        Ok(())
    }

    /// Reads these jobs, and tells what is new.
    async fn deal_with(&mut self, ids: &[u64], is_last: bool) -> Result<(), Interrupted> {
        let (queue, highest) = (self.shared.queue.clone(), self.highest);
        let asked: Vec<_> = ids.iter().map(|id| (*id, self.known.get(id).copied())).collect();
        let read = self.aside(move || {
            let master = queue.master();
            let one =
                |(id, known): (u64, Option<Known>)| (id, queue.read(id, known, known.is_some() || Some(id) > highest));
            Ok((master, asked.into_iter().map(one).collect::<Vec<_>>()))
        });
        let (master, files) = read.await?;
        {
            let mut recent = self.shared.recent.lock();
            for (id, seen) in &files {
                match seen {
                    Seen::Job(job, _) | Seen::Archived(job) => recent.take(job),
                    Seen::Gone => recent.forget(*id),
                    Seen::Unchanged | Seen::Bad(_) => {}
                }
            }
        }
        if is_last {
            self.shared.dirty.looked();
        }
        let elsewhere = master.filter(|master| !is_same_node(master, &self.node));
        for (id, seen) in files {
            if !matches!(seen, Seen::Bad(_)) {
                self.unreadable.remove(&id);
            }
            match seen {
                Seen::Job(job, file_time) => self.tell(&job, Some(file_time), elsewhere.is_some()).await?,
                Seen::Archived(job) => self.tell(&job, None, elsewhere.is_some()).await?,
                Seen::Gone => self.set(id, None),
                Seen::Unchanged => {}
                Seen::Bad(why) => self.tell_bad(id, why),
            }
        }
        self.shared.known.store(self.known.len() as u64, Ordering::Relaxed);
        self.write().await?;
        // Now it works: what has begun well may have failed again.
        self.shared.stands(elsewhere.map_or(Standing::Following, Standing::Standby));
        Ok(())
    }

    /// Publishes what is new of a job; one without the time of a file is in the archive.
    async fn tell(&mut self, job: &Job, file_time: Option<i64>, elsewhere: bool) -> Result<(), Interrupted> {
        let known = self.known.get(&job.id).copied();
        let news = news(known.as_ref(), job, self.began);
        if news == News::Tell && !elsewhere {
            self.publish(job).await?;
        }
        let told = match (news, known) {
            (News::Old, Some(known)) => known.told,
            _ => job.status(),
        };
        self.set(job.id, file_time.map(|file_time| Known { received: job.received, told, file_time }));
        Ok(())
    }

    async fn publish(&mut self, job: &Job) -> Result<(), Interrupted> {
        let mut message = job.message(&self.cluster);
        let published = tokio::select! {
            biased;
            _ = self.stopped.wait_for(|stopped| *stopped) => return Err(Stopped),
            published = self.broker.accept(&mut message) => published,
        };
        match published {
            Ok(offset) => {
                self.published = Some(offset);
                self.shared.events.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            Err(PublishError::Closed) => Err(Stopped),
            Err(PublishError::Journal(e)) => Err(Trouble(format!("job {} can't be told: {e}", job.id))),
            // It will never be possible.
            Err(e) => {
                self.shared.refused.fetch_add(1, Ordering::Relaxed);
                tracing::error!("ganeti jobs: {} of job {} is not told: {e}", job.status(), job.id);
                Ok(())
            }
        }
    }

    /// Does what waits for a disk where that may be; the end of the source doesn't wait for it.
    async fn aside<T: Send + 'static>(
        &mut self,
        work: impl FnOnce() -> Result<T, String> + Send + 'static,
    ) -> Result<T, Interrupted> {
        let done = tokio::select! {
            biased;
            _ = self.stopped.wait_for(|stopped| *stopped) => return Err(Stopped),
            done = spawn_blocking(work) => done,
        };
        match done {
            Ok(done) => done.map_err(Trouble),
            Err(e) if e.is_cancelled() => Err(Stopped),
            Err(e) => Err(Trouble(e.to_string())),
        }
    }

    fn set(&mut self, id: u64, known: Option<Known>) {
        let before = match known {
            Some(known) => self.known.insert(id, known),
            None => self.known.remove(&id),
        };
        self.highest = self.highest.max(Some(id));
        if before != known {
            self.unwritten.insert(id, known);
        }
    }

    fn tell_bad(&mut self, id: u64, why: String) {
        if self.unreadable.get(&id) == Some(&why) || self.unreadable.len() >= MOST_UNREADABLE {
            return;
        }
        self.shared.skipped.fetch_add(1, Ordering::Relaxed);
        tracing::warn!("ganeti jobs: {why}; it is read again when it changes");
        self.unreadable.insert(id, why);
    }

    /// Writes down what was told, when the journal has it.
    async fn write(&mut self) -> Result<(), Interrupted> {
        if let Some(last) = self.published {
            let is_stopped = *self.stopped.borrow();
            let journaled = tokio::select! {
                journaled = self.broker.journaled(last) => journaled,
                // At the end somebody else has a clock.
                _ = self.stopped.wait_for(|stopped| *stopped), if !is_stopped => return Err(Stopped),
            };
            journaled.map_err(|_| Stopped)?;
            self.published = None;
        }
        // It takes some ten microseconds. What can't be written is kept for the next time: as much as there are jobs.
        if self.memory.as_mut().is_none_or(|memory| memory.write(&self.unwritten, self.highest)) {
            self.unwritten.clear();
        }
        Ok(())
    }
}

/// Whether these are names of one node, of which one may be short.
fn is_same_node(a: &str, b: &str) -> bool {
    let is_short = |short: &str, long: &str| long.strip_prefix(short).is_some_and(|rest| rest.starts_with('.'));
    a == b || is_short(a, b) || is_short(b, a)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_may_be_named_in_short() {
        assert!(
            is_same_node("n1.example.com", "n1") && is_same_node("n1", "n1.example.com") && is_same_node("n1", "n1")
        );
        assert!(!is_same_node("n1", "n10") && !is_same_node("n1.a", "n1.b"));
    }
}
