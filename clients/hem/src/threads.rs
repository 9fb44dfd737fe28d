//! The threads on which commands live, and the tasks that wait for them.
//!
//! A command has a thread to itself from its start to its end: the start may hang, on a disk of another machine, and one thread that waits for all that may happen
//! to a command is woken less often than a runtime that is told of each part of it. Threads are kept for the next command, for [`IDLE`].
//!
//! # Bounds
//!
//! As many threads as commands run, and besides those that are still starting a command that nobody waits for any more (it had a TIMEOUT, or hookbus
//! ends): at most [`MOST_HANGING`], then nothing is started until one of them comes back. Each has 64 KiB into which outputs are read.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Condvar, Mutex};
use tokio::sync::{oneshot, watch};
use tokio::time::sleep_until;

use crate::command::CommandLine;
use crate::process::{Finished, GivenUp, Limits, Moment, Orders, READ_BYTES, interrupted, live, timed_out};
use crate::record::Ending;

/// How long a thread waits for another command before it ends.
const IDLE: Duration = Duration::from_secs(10);
/// How many starts may hang for which nobody waits.
const MOST_HANGING: usize = 100;

/// How long the end waits for starts that hang: what they start afterwards is killed only if the process still lives then.
const HANGING_PATIENCE: Duration = Duration::from_secs(1);

/// The threads of one executor. When this is dropped they end as soon as they have nothing to do.
#[derive(Debug, Default)]
pub(crate) struct Threads(Arc<Pool>);

#[derive(Debug, Default)]
struct Pool {
    waiting: Mutex<Waiting>,
    /// Wakes threads that are idle.
    wake: Condvar,
    /// Wakes who waits for starts that hang.
    back: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    /// For threads that are idle: never more than there are.
    jobs: VecDeque<Job>,
    /// How many threads wait for one.
    idle: usize,
    /// How many threads start a command that nobody waits for any more.
    hanging: usize,
    closed: bool,
}

/// A command for a thread.
#[derive(Debug)]
struct Job {
    line: CommandLine,
    input: String,
    limits: Limits,
    wanted: Moment,
    orders: Arc<Orders>,
    done: oneshot::Sender<Finished>,
}

/// A command that somebody waits for. Dropping this gives it up.
struct Wanted<'a> {
    pool: &'a Pool,
    orders: Arc<Orders>,
}

impl Threads {
    /// Runs a command with `input` on its standard input. It is ended when `stop` becomes true, and killed when the future is dropped.
    pub(crate) async fn run(
        &self,
        line: &CommandLine,
        input: String,
        limits: Limits,
        mut stop: watch::Receiver<bool>,
    ) -> Finished {
        let wanted = (SystemTime::now(), Instant::now());
        let not_begun = |ending, message: &str| Finished::not_begun(wanted, ending, message);
        let (command, mut done) = match self.begin(line, input, limits, wanted) {
            Ok(begun) => begun,
            Err(e) => return not_begun(Ending::NotStarted, &line.start_error(&e)),
        };
        let mut deadline = limits.timeout.map(|timeout| wanted.1 + timeout);
        let mut stopped = false;
        loop {
            tokio::select! {
                biased;
                finished = &mut done => return finished.unwrap_or_else(|_| {
                    command.orders.lost();
                    not_begun(Ending::NotStarted, "Internal error: a mistake of ours ended the thread of the command")
                }),
                // From its beginning on, its thread looks at the time.
                () = after(deadline) => {
                    if command.give_up_unless_begun() {
                        return not_begun(Ending::TimedOut, &timed_out(line));
                    }
                    deadline = None;
                }
                () = told(&mut stop), if !stopped => {
                    if command.give_up_unless_begun() {
                        return not_begun(Ending::Interrupted, &interrupted(line));
                    }
                    command.orders.stop();
                    stopped = true;
                }
            }
        }
    }

    /// Gives a command to a thread.
    fn begin(
        &self,
        line: &CommandLine,
        input: String,
        limits: Limits,
        wanted: Moment,
    ) -> io::Result<(Wanted<'_>, oneshot::Receiver<Finished>)> {
        let orders = Arc::new(Orders::new()?);
        let (done, receiver) = oneshot::channel();
        let job = Job { line: line.clone(), input, limits, wanted, orders: Arc::clone(&orders), done };
        let mut waiting = self.0.waiting.lock();
        if waiting.hanging >= MOST_HANGING {
            let message = format!("{MOST_HANGING} commands hang while they are started; is a disk out of reach?");
            return Err(io::Error::other(message));
        }
        if waiting.jobs.len() < waiting.idle {
            waiting.jobs.push_back(job);
            drop(waiting);
            self.0.wake.notify_one();
        } else {
            drop(waiting);
            let pool = Arc::clone(&self.0);
            thread::Builder::new().name("hook".into()).spawn(move || pool.work(job))?;
        }
        Ok((Wanted { pool: &self.0, orders }, receiver))
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        let mut waiting = self.0.waiting.lock();
        waiting.closed = true;
        self.0.wake.notify_all();
        let deadline = Instant::now() + HANGING_PATIENCE;
        while waiting.hanging > 0 && !self.0.back.wait_until(&mut waiting, deadline).timed_out() {}
    }
}

impl Pool {
    /// What a thread does.
    fn work(&self, first: Job) {
        let mut scratch = vec![0; READ_BYTES];
        let mut next = Some(first);
        while let Some(Job { line, input, limits, wanted, orders, done }) = next {
            match live(&line, input, limits, wanted, &orders, &mut scratch) {
                // Nobody listens any more where it was given up just now.
                Ok(finished) => drop(done.send(finished)),
                Err(GivenUp::WhileItStarted) => {
                    self.waiting.lock().hanging -= 1;
                    self.back.notify_all();
                }
                Err(GivenUp::WhileItRan) => {}
            }
            next = self.next();
        }
    }

    /// Waits for another command; nothing where there is none for long, or none will come.
    fn next(&self) -> Option<Job> {
        let deadline = Instant::now() + IDLE;
        let mut waiting = self.waiting.lock();
        waiting.idle += 1;
        let job = loop {
            match waiting.jobs.pop_front() {
                Some(job) => break Some(job),
                None if waiting.closed || Instant::now() >= deadline => break None,
                None => self.wake.wait_until(&mut waiting, deadline),
            };
        };
        waiting.idle -= 1;
        job
    }
}

impl Wanted<'_> {
    /// Gives the command up if it hasn't begun. Returns whether that is so.
    fn give_up_unless_begun(&self) -> bool {
        // Its thread takes itself off the list only behind this.
        let mut waiting = self.pool.waiting.lock();
        let given_up = self.orders.give_up_unless_begun();
        waiting.hanging += usize::from(given_up);
        given_up
    }
}

impl Drop for Wanted<'_> {
    fn drop(&mut self) {
        if !self.give_up_unless_begun() {
            self.orders.give_up();
        }
    }
}

/// Completes at that moment, if there is one.
async fn after(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

/// Completes when `stop` is true, or when nobody can make it so any more.
async fn told(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}
