//! The life of one command: started in a process group of its own, fed, read, watched, and ended with everything in its group.
//!
//! All of it happens on one thread, which waits for the leader, its pipes, and what it is told ([`Orders`]) in a single `poll`. Who wants the command gives that
//! thread to it; see [`Threads`](crate::threads::Threads).
//!
//! # The group's number stays ours
//!
//! A group is signalled by number, and numbers are used again. So the first process of the group, the *leader*, is not reaped when it has
//! ended: as a zombie it keeps its number, and so the group's, until the group has been dealt with. It is watched through a pidfd,
//! and reaped last of all. No signal of ours can ever hit a stranger. (Linux 5.4 or later has all of this.)
//!
//! # How a command ends
//!
//! ```text
//! running ──leader ended, outputs closed──────────────────────────────▶ reaped
//!    │
//!    ├─────leader ended, something holds an output──▶ lingering ──┐
//!    │                                                            │ not closed in time
//!    └─────TIMEOUT, or the executor ends──────────────────────────┴──▶ TERM … grace … KILL ──▶ reaped
//! ```
//!
//! - A process that the command leaves behind, and that has redirected its outputs, is left alone: that is how a daemon is started.
//! - One that holds an output is waited for ([`Limits::linger`]), since it may be about to write. Then it is ended with the
//!   group, and what was read until then is kept.
//! - TERM goes to the group, with CONT behind it, because a stopped process can't act on it. Who is still there after
//!   [`Limits::kill_grace`] gets KILL.
//! - A process that made a group or a session of its own is out of reach, here as with any supervisor without a cgroup. It can't hold us
//!   up either: our ends of the pipes are closed.
//! - When it is given up, the group gets KILL at once, and the leader is reaped in the background if need be.
//!
//! # Bounds
//!
//! One and a half times [`Limits::output_max_bytes`] for each output, however much is written.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Child;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::{Errno, ioctl_fionbio, read, write};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, kill_process_group, pidfd_open, pidfd_send_signal,
    waitid,
};

use crate::command::CommandLine;
use crate::output::{Collector, Output};
use crate::record::Ending;
use crate::text;

/// How much of an output is read at once: what a pipe holds.
pub(crate) const READ_BYTES: usize = 64 << 10;
/// How often a group that was told to end is looked at.
const GROUP_LOOK: Duration = Duration::from_millis(50);
/// How long a killed leader may take to be gone before somebody else waits for it: a process in the kernel can't be killed.
const KILL_PATIENCE: Duration = Duration::from_secs(2);
/// How much of a command line our own messages repeat, in bytes.
const SHOWN_LINE_BYTES: usize = 1000;

/// What a command may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// From its start to TERM.
    pub(crate) timeout: Option<Duration>,
    /// From TERM to KILL.
    pub(crate) kill_grace: Duration,
    /// How long an output that is held open is read after the leader has ended.
    pub(crate) linger: Duration,
    /// What is kept of each output.
    pub(crate) output_max_bytes: usize,
}

/// What came of a command.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) started: SystemTime,
    pub(crate) duration: Duration,
    pub(crate) ending: Ending,
    /// Whether processes that it left behind held its outputs open and were ended.
    pub(crate) left_behind: bool,
    pub(crate) stdout: Output,
    pub(crate) stderr: Output,
}

impl Finished {
    /// What is said of a command that never began.
    pub(crate) fn not_begun((started, clock): Moment, ending: Ending, message: &str) -> Self {
        let mut stderr = Output::default();
        stderr.push_line(message);
        let stdout = Output::default();
        Finished { started, duration: clock.elapsed(), ending, left_behind: false, stdout, stderr }
    }
}

/// When somebody wanted a command to run, by both clocks.
pub(crate) type Moment = (SystemTime, Instant);

/// What the thread of a command is told by who wants it.
///
/// ```text
/// STARTING ──▶ RUNNING ──▶ STOPPED ──▶ OVER
///    │            ╰───────────┴──▶ GIVEN_UP ──▶ KILLED
///    ╰──▶ NOT_WANTED
/// ```
///
/// Who gives a command up kills it at once, since the whole process may be about to end. So the thread reaps its leader only where that can't happen any more:
/// when the command is `OVER`, or `KILLED`.
#[derive(Debug)]
pub(crate) struct Orders {
    state: AtomicU8,
    /// The leader, as long as it runs.
    leader: OnceLock<Pid>,
    /// Readable when there is something to look at.
    bell: OwnedFd,
}

const STARTING: u8 = 0;
const NOT_WANTED: u8 = 1;
const RUNNING: u8 = 2;
const STOPPED: u8 = 3;
const OVER: u8 = 4;
const GIVEN_UP: u8 = 5;
const KILLED: u8 = 6;

impl Orders {
    pub(crate) fn new() -> io::Result<Self> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Orders { state: AtomicU8::new(STARTING), leader: OnceLock::new(), bell })
    }

    /// Says that the command has begun. Returns false where nobody waits for it any more.
    fn begin(&self, leader: Option<Pid>) -> bool {
        if let Some(leader) = leader {
            let _ = self.leader.set(leader);
        }
        self.goes(STARTING, RUNNING)
    }

    /// Gives the command up if it hasn't begun. Returns whether that is so.
    pub(crate) fn give_up_unless_begun(&self) -> bool {
        self.goes(STARTING, NOT_WANTED)
    }

    /// Has it ended, in order, if it runs.
    pub(crate) fn stop(&self) {
        if self.goes(RUNNING, STOPPED) {
            self.ring();
        }
    }

    /// Kills it, if it runs. Nothing is told of it.
    pub(crate) fn give_up(&self) {
        if self.goes(RUNNING, GIVEN_UP) || self.goes(STOPPED, GIVEN_UP) {
            if let Some(leader) = self.leader.get() {
                let _ = kill_process_group(*leader, Signal::KILL);
            }
            self.state.store(KILLED, Ordering::Release);
            self.ring();
        }
    }

    /// Its thread is gone, and with it the command.
    pub(crate) fn lost(&self) {
        self.state.store(OVER, Ordering::Release);
    }

    /// Says that the command is over. Returns false, as soon as it is killed, where it was given up.
    fn end(&self) -> bool {
        if self.goes(RUNNING, OVER) || self.goes(STOPPED, OVER) {
            return true;
        }
        while self.state.load(Ordering::Acquire) != KILLED {
            let _ = poll(&mut [PollFd::new(&self.bell, PollFlags::IN)], None);
            self.hear();
        }
        false
    }

    fn goes(&self, from: u8, to: u8) -> bool {
        self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    fn ring(&self) {
        // It can't be full.
        let _ = write(&self.bell, &1u64.to_ne_bytes());
    }

    fn hear(&self) {
        let _ = read(&self.bell, &mut [0; 8]);
    }

    /// What was said since the bell was looked at.
    fn listen(&self) -> Event {
        self.hear();
        match self.state.load(Ordering::Acquire) {
            STOPPED => Event::Stop,
            KILLED => Event::GivenUp,
            _ => Event::Moved,
        }
    }
}

/// Why nothing is told of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GivenUp {
    /// Nobody waited for it any more when it had begun.
    WhileItStarted,
    WhileItRan,
}

/// Runs a command with `input` on its standard input, on this thread. Its outputs are read into `scratch` first.
///
/// # Errors
/// When it was given up. Then it is killed, and reaped.
pub(crate) fn live(
    line: &CommandLine,
    input: String,
    limits: Limits,
    wanted: Moment,
    orders: &Orders,
    scratch: &mut [u8],
) -> Result<Finished, GivenUp> {
    let deadline = limits.timeout.map(|timeout| wanted.1 + timeout);
    // It may hang, on a disk of another machine. Who doesn't wait any more doesn't get it: it is killed as soon as it has begun.
    let started = start(line, input, limits.output_max_bytes);
    if !orders.begin(started.as_ref().ok().map(|(leader, _)| leader.pid)) {
        return Err(GivenUp::WhileItStarted);
    }
    let (leader, streams) = match started {
        Ok(started) => started,
        Err(e) => return Ok(Finished::not_begun(wanted, Ending::NotStarted, &line.start_error(&e))),
    };
    let mut life = Life { leader, has_ended: false, streams, orders, scratch };
    let gone_through = life.go_through(deadline, limits);
    let is_over = gone_through.is_some() && orders.end();
    let Some((cut_off, left_behind)) = gone_through.filter(|_| is_over) else {
        return Err(GivenUp::WhileItRan);
    };
    let Life { leader, streams, .. } = life;
    let ending = leader.reap();
    let ending = cut_off.unwrap_or(ending);
    let (stdout, mut stderr) = streams.finish();
    match ending {
        Ending::TimedOut => stderr.push_line(&timed_out(line)),
        Ending::Interrupted => stderr.push_line(&interrupted(line)),
        _ => {}
    }
    let (started, clock) = wanted;
    Ok(Finished { started, duration: clock.elapsed(), ending, left_behind, stdout, stderr })
}

/// The words of OpenNebula's executor.
pub(crate) fn timed_out(line: &CommandLine) -> String {
    format!("Timeout executing {}", shown(line.line()))
}

pub(crate) fn interrupted(line: &CommandLine) -> String {
    format!("Interrupted executing {}: hookbus ends", shown(line.line()))
}

fn shown(line: &str) -> String {
    match text::beginning(line, SHOWN_LINE_BYTES) {
        beginning if beginning.len() < line.len() => format!("{beginning}..."),
        _ => line.to_owned(),
    }
}

fn start(line: &CommandLine, input: String, output_max_bytes: usize) -> io::Result<(Leader, Streams)> {
    let (leader, pipes) = spawn(line)?;
    let streams = Streams {
        stdin: Feed::new(pipes.stdin, input)?,
        stdout: Drain { pipe: Some(pipes.stdout), collector: Collector::new(output_max_bytes) },
        stderr: Drain { pipe: Some(pipes.stderr), collector: Collector::new(output_max_bytes) },
    };
    Ok((leader, streams))
}

/// A command that was started.
struct Life<'a> {
    leader: Leader,
    has_ended: bool,
    streams: Streams,
    orders: &'a Orders,
    scratch: &'a mut [u8],
}

/// What a wait has brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// The leader has ended.
    Ended,
    /// It is time.
    Due,
    Stop,
    GivenUp,
    /// Something else.
    Moved,
}

impl Life<'_> {
    /// To the end of the command, and of its group where that has to be. Tells what has cut it off, and whether something that it left behind was
    /// ended. `None` where it was given up.
    fn go_through(&mut self, deadline: Option<Instant>, limits: Limits) -> Option<(Option<Ending>, bool)> {
        let cut_off = loop {
            match self.wait(deadline) {
                Event::Ended => break None,
                Event::Due => break Some(Ending::TimedOut),
                Event::Stop => break Some(Ending::Interrupted),
                Event::GivenUp => return None,
                Event::Moved => {}
            }
        };
        self.streams.stdin.close();
        let mut left_behind = false;
        if cut_off.is_none() && !self.streams.are_closed() {
            let until = Instant::now() + limits.linger;
            // What is in the pipes by now, and their ends behind it, even if nothing is waited for.
            for _ in 0..2 {
                self.look();
            }
            while !self.streams.are_closed() && !left_behind {
                match self.wait(Some(until)) {
                    Event::Due | Event::Stop => left_behind = true,
                    Event::GivenUp => return None,
                    Event::Ended | Event::Moved => {}
                }
            }
        }
        if cut_off.is_some() || left_behind {
            self.end_group(limits.kill_grace)?;
        }
        Some((cut_off, left_behind))
    }

    /// Waits until something happens, and moves data. Who writes without end can't keep it from noticing the time.
    fn wait(&mut self, until: Option<Instant>) -> Event {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        match self.poll(left) {
            Some(Event::Moved) if left == Some(Duration::ZERO) => Event::Due,
            Some(event) => event,
            None => Event::Due,
        }
    }

    /// Moves the data that is there.
    fn look(&mut self) {
        // What else there is comes again with the next wait, but for an order, and that is kept.
        if matches!(self.poll(Some(Duration::ZERO)), Some(Event::Stop | Event::GivenUp)) {
            self.orders.ring();
        }
    }

    /// Polls once. Nothing where nothing has happened.
    fn poll(&mut self, timeout: Option<Duration>) -> Option<Event> {
        let bell = self.orders.bell.as_fd();
        let Life { leader, streams, scratch, has_ended, .. } = self;
        // What isn't there any more is asked for nothing.
        let ask = |fd: Option<_>, flags| match fd {
            Some(fd) => PollFd::from_borrowed_fd(fd, flags),
            None => PollFd::from_borrowed_fd(bell, PollFlags::empty()),
        };
        let mut fds = [
            ask(Some(bell), PollFlags::IN),
            ask((!*has_ended).then(|| leader.pidfd.as_fd()), PollFlags::IN),
            ask(streams.stdout.pipe.as_ref().map(AsFd::as_fd), PollFlags::IN),
            ask(streams.stderr.pipe.as_ref().map(AsFd::as_fd), PollFlags::IN),
            ask(streams.stdin.pipe.as_ref().map(AsFd::as_fd), PollFlags::OUT),
        ];
        let timeout =
            timeout.map(|timeout| Timespec::try_from(timeout).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 }));
        match poll(&mut fds, timeout.as_ref()) {
            Ok(0) => return None,
            // Interrupted; it is asked again.
            Err(_) => return Some(Event::Moved),
            Ok(_) => {}
        }
        let [rung, ended, stdout, stderr, stdin] = fds.map(|fd| !fd.revents().is_empty());
        if stdout {
            streams.stdout.read(scratch);
        }
        if stderr {
            streams.stderr.read(scratch);
        }
        if stdin {
            streams.stdin.write();
        }
        if ended {
            // The bell is heard with the next poll.
            *has_ended = true;
            return Some(Event::Ended);
        }
        Some(if rung { self.orders.listen() } else { Event::Moved })
    }

    /// Tells the group to end, waits until it has, and makes it. What it still writes is kept. `None` where it was given up.
    fn end_group(&mut self, grace: Duration) -> Option<()> {
        let group = self.leader.pid;
        let deadline = Instant::now() + grace;
        self.leader.signal_group(Signal::TERM);
        self.leader.signal_group(Signal::CONT);
        loop {
            let look = (Instant::now() + GROUP_LOOK).min(deadline);
            self.go_on(look, Life::is_silent)?;
            if self.is_silent() {
                if !group_lives(group) {
                    return Some(());
                }
                self.go_on(look, |_| false)?;
            }
            if Instant::now() >= deadline {
                break;
            }
        }
        self.leader.kill();
        self.go_on(Instant::now() + KILL_PATIENCE, |life| life.has_ended)?;
        // What is in the pipes by now; whoever still holds them writes for nobody.
        self.go_on(Instant::now() + GROUP_LOOK, Life::is_silent)
    }

    /// Waits until then, or until that is so. `None` where it was given up.
    fn go_on(&mut self, moment: Instant, is_enough: impl Fn(&Self) -> bool) -> Option<()> {
        while !is_enough(self) {
            match self.wait(Some(moment)) {
                Event::Due => break,
                Event::GivenUp => return None,
                Event::Ended | Event::Stop | Event::Moved => {}
            }
        }
        Some(())
    }

    /// Whether leader and outputs have ended.
    fn is_silent(&self) -> bool {
        self.has_ended && self.streams.are_closed()
    }
}

/// The first process of the group. Dropping it kills the group; [`reap`](Leader::reap) doesn't.
#[derive(Debug)]
struct Leader {
    pid: Pid,
    pidfd: OwnedFd,
    reaped: bool,
}

impl Leader {
    /// Signals the whole group. The leader isn't reaped, so the number is its own.
    fn signal_group(&self, signal: Signal) {
        // It fails where nobody is left who may be signalled; a group of other users' processes (sudo) is out of reach.
        let _ = kill_process_group(self.pid, signal);
    }

    /// Kills the group, and the leader also where it has gone over to another group.
    fn kill(&self) {
        self.signal_group(Signal::KILL);
        let _ = pidfd_send_signal(self.pidfd.as_fd(), Signal::KILL);
    }

    /// Lets go of its number, and tells how it ended. Who is left in the group lives on.
    fn reap(mut self) -> Ending {
        self.reap_now()
    }

    fn reap_now(&mut self) -> Ending {
        self.reaped = true;
        let status = loop {
            match waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
                Err(Errno::INTR) => {}
                other => break other,
            }
        };
        match status {
            Ok(Some(status)) => ending_of(&status),
            Ok(None) => {
                reap_later(self.pid);
                Ending::Signalled(Signal::KILL.as_raw())
            }
            // Somebody else has reaped it.
            Err(_) => Ending::Exited(255),
        }
    }
}

fn ending_of(status: &WaitIdStatus) -> Ending {
    match status.terminating_signal() {
        Some(signal) => Ending::Signalled(signal),
        None => Ending::Exited(status.exit_status().unwrap_or(255)),
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        if !self.reaped {
            self.kill();
            self.reap_now();
        }
    }
}

/// Reaps a process that was killed but isn't gone yet. A thread, because there may be no runtime any more; it lives as
/// long as the kernel takes to end the process.
fn reap_later(pid: Pid) {
    let wait = move || while matches!(waitid(WaitId::Pid(pid), WaitIdOptions::EXITED), Err(Errno::INTR)) {};
    if let Err(e) = std::thread::Builder::new().name("hook-reaper".into()).spawn(wait) {
        tracing::error!(
            pid = pid.as_raw_pid(),
            "hooks: cannot start a thread to wait for a killed command: {e}; it stays a zombie"
        );
    }
}

struct Pipes {
    stdin: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

/// Starts the process. Blocks until it has been executed.
fn spawn(line: &CommandLine) -> io::Result<(Leader, Pipes)> {
    let mut child = match line.process().spawn() {
        Err(e) if e.raw_os_error() == Some(Errno::NOEXEC.raw_os_error()) => match line.process_of_script() {
            Some(mut script) => script.spawn()?,
            None => return Err(e),
        },
        other => other?,
    };
    match watch_child(&mut child) {
        Ok(watched) => Ok(watched),
        Err(e) => {
            // Nobody would know when it ends. Its group can't be more than what it has started within microseconds.
            let _ = child.kill();
            let _ = child.wait();
            Err(e)
        }
    }
}

fn watch_child(child: &mut Child) -> io::Result<(Leader, Pipes)> {
    let pid = Pid::from_child(child);
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    match (child.stdin.take(), child.stdout.take(), child.stderr.take()) {
        (Some(stdin), Some(stdout), Some(stderr)) => Ok((
            Leader { pid, pidfd, reaped: false },
            Pipes { stdin: stdin.into(), stdout: stdout.into(), stderr: stderr.into() },
        )),
        _ => unreachable!("all three were asked for as pipes"),
    }
}

/// Whether this process has SIGCHLD ignored; also where that can't be found out.
pub(crate) fn sigchld_is_ignored() -> bool {
    std::fs::read_to_string("/proc/self/status").map_or(true, |status| ignores(&status, Signal::CHILD))
}

/// Reads the mask of signals in `SigIgn:`, in hexadecimal.
fn ignores(status: &str, signal: Signal) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_none_or(|mask| mask >> (signal.as_raw() - 1) & 1 == 1)
}

/// Looks through /proc, since the kernel counts zombies as well when a group is signalled. What can't be seen there (`hidepid`)
/// belongs to others and couldn't be signalled anyway.
fn group_lives(group: Pid) -> bool {
    let Ok(processes) = std::fs::read_dir("/proc") else { return true };
    let group = group.as_raw_pid();
    processes.flatten().any(|entry| {
        let is_process = entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit);
        is_process && std::fs::read_to_string(entry.path().join("stat")).is_ok_and(|stat| is_alive_in(&stat, group))
    })
}

/// Reads `pid (name) state ppid pgrp ...`; the name may hold anything.
fn is_alive_in(stat: &str, group: i32) -> bool {
    let Some((_, rest)) = stat.rsplit_once(')') else { return false };
    let mut fields = rest.split_whitespace();
    let state = fields.next();
    fields.nth(1).and_then(|pgrp| pgrp.parse().ok()) == Some(group) && !matches!(state, Some("Z" | "X"))
}

/// The three pipes.
struct Streams {
    stdin: Feed,
    stdout: Drain,
    stderr: Drain,
}

impl Streams {
    /// Whether both outputs are.
    fn are_closed(&self) -> bool {
        self.stdout.pipe.is_none() && self.stderr.pipe.is_none()
    }

    fn finish(self) -> (Output, Output) {
        (self.stdout.collector.finish(), self.stderr.collector.finish())
    }
}

/// An output, while it is open.
struct Drain {
    pipe: Option<OwnedFd>,
    collector: Collector,
}

impl Drain {
    /// Reads once; there is something, or the end.
    fn read(&mut self, scratch: &mut [u8]) {
        let Some(pipe) = &self.pipe else { return };
        match read(pipe, &mut *scratch) {
            Ok(bytes) if bytes > 0 => self.collector.push(&scratch[..bytes]),
            Err(Errno::INTR | Errno::AGAIN) => {}
            // An error of a pipe can only mean that nothing more will come.
            Ok(_) | Err(_) => self.pipe = None,
        }
    }
}

/// The input, until all of it is written, or the command has closed its end.
struct Feed {
    pipe: Option<OwnedFd>,
    text: String,
    written: usize,
}

impl Feed {
    fn new(fd: OwnedFd, text: String) -> io::Result<Self> {
        // An empty input is at its end from the start.
        let pipe = (!text.is_empty()).then_some(fd);
        if let Some(pipe) = &pipe {
            ioctl_fionbio(pipe, true)?;
        }
        Ok(Feed { pipe, text, written: 0 })
    }

    fn close(&mut self) {
        self.pipe = None;
        self.text = String::new();
    }

    /// Writes once.
    fn write(&mut self) {
        let Some(pipe) = &self.pipe else { return };
        match write(pipe, &self.text.as_bytes()[self.written..]) {
            Ok(bytes) if bytes > 0 && self.written + bytes < self.text.len() => self.written += bytes,
            Err(Errno::INTR | Errno::AGAIN) => {}
            // All is written; or the command doesn't want it, which is its right.
            _ => self.close(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_of_a_group_are_told_by_their_stat() {
        assert!(is_alive_in("12 (sh) S 1 77 77 0 -1", 77));
        assert!(is_alive_in("12 (a) Z 1 2 (b) R 1 77 77 0", 77));
        assert!(!is_alive_in("12 (sh) Z 1 77 77 0 -1", 77));
        assert!(!is_alive_in("12 (sh) S 1 78 77 0 -1", 77));
        assert!(!is_alive_in("", 77));
    }

    #[test]
    fn ignored_signals_are_told_by_the_status() {
        assert!(ignores("Name:\tx\nSigIgn:\t0000000000010000\nSigCgt:\t0", Signal::CHILD));
        assert!(!ignores("SigIgn:\t0000000000001000\nSigCgt:\t0000000000010000", Signal::CHILD));
        assert!(ignores("", Signal::CHILD), "unknown");
    }
}
