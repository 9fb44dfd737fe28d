//! The life of one command: started in a process group of its own, fed, read, watched, and ended with everything in its group.
//!
//! # The group's number stays ours
//!
//! A group is signalled by number, and numbers are used again. So the first process of the group, the *leader*, is not reaped when it has
//! ended: as a zombie it keeps its number, and so the group's, until the group has been dealt with. It is watched through a pidfd, asked
//! with `waitid(WNOWAIT)`, and reaped last of all. No signal of ours can ever hit a stranger. (Linux 5.4 or later has all of this.)
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
//! - When the future is dropped, the group gets KILL at once, and the leader is reaped in the background.
//!
//! # Bounds
//!
//! One and a half times [`Limits::output_max_bytes`] for each output, however much is written; and for each thread of the runtime 64 KiB, into which
//! all commands are read.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::process::Child;
use std::time::{Duration, SystemTime};

use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open, pidfd_send_signal, waitid,
};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::task::{consume_budget, spawn_blocking};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use crate::command::CommandLine;
use crate::output::{Collector, Output};
use crate::record::Ending;
use crate::text;

/// How much of an output is read at once: what a pipe holds.
const READ_BYTES: usize = 64 << 10;
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

/// Runs a command with `input` on its standard input. It is ended when `stop` becomes true.
pub(crate) async fn run(
    line: &CommandLine,
    input: String,
    limits: Limits,
    mut stop: watch::Receiver<bool>,
) -> Finished {
    let started = SystemTime::now();
    let clock = Instant::now();
    let deadline = limits.timeout.map(|timeout| clock + timeout);
    let not_started = |ending, message: &str| {
        let mut stderr = Output::default();
        stderr.push_line(message);
        let stdout = Output::default();
        Finished { started, duration: clock.elapsed(), ending, left_behind: false, stdout, stderr }
    };
    // It may hang, on a disk of another machine. Who doesn't wait any more doesn't get it: it is killed as soon as it has begun.
    let begun = tokio::select! {
        begun = start(line.clone(), input, limits.output_max_bytes) => begun,
        () = after(deadline) => return not_started(Ending::TimedOut, &timed_out(line)),
        () = told(&mut stop) => return not_started(Ending::Interrupted, &interrupted(line)),
    };
    let mut life = match begun {
        Ok(life) => life,
        Err(e) => return not_started(Ending::NotStarted, &line.start_error(&e)),
    };

    let Life { leader, streams } = &mut life;
    let cut_off = tokio::select! {
        biased;
        () = ended(leader) => None,
        () = after(deadline) => Some(Ending::TimedOut),
        () = told(&mut stop) => Some(Ending::Interrupted),
        // Last: a flood uses up what tokio lets a task do in one turn, and then a timer would not even look at the clock.
        () = streams.pump_for_ever() => None,
    };
    streams.stdin.close();
    let mut left_behind = false;
    if cut_off.is_none() {
        tokio::select! {
            biased;
            closed = timeout(limits.linger, streams.pump()) => left_behind = closed.is_err(),
            () = told(&mut stop) => left_behind = true,
        }
    }
    if cut_off.is_some() || left_behind {
        life.end_group(limits.kill_grace).await;
    }
    let ending = cut_off.unwrap_or_else(|| life.ending());
    let Life { leader, streams } = life;
    leader.into_inner().reap();
    let (stdout, mut stderr) = streams.finish();
    match ending {
        Ending::TimedOut => stderr.push_line(&timed_out(line)),
        Ending::Interrupted => stderr.push_line(&interrupted(line)),
        _ => {}
    }
    Finished { started, duration: clock.elapsed(), ending, left_behind, stdout, stderr }
}

/// Completes at that moment, if there is one.
async fn after(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// Completes when `stop` is true, or when nobody can make it so any more.
async fn told(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// The words of OpenNebula's executor.
fn timed_out(line: &CommandLine) -> String {
    format!("Timeout executing {}", shown(line.line()))
}

fn interrupted(line: &CommandLine) -> String {
    format!("Interrupted executing {}: hookbus ends", shown(line.line()))
}

fn shown(line: &str) -> String {
    match text::beginning(line, SHOWN_LINE_BYTES) {
        beginning if beginning.len() < line.len() => format!("{beginning}..."),
        _ => line.to_owned(),
    }
}

/// A command that was started.
struct Life {
    leader: AsyncFd<Leader>,
    streams: Streams,
}

async fn start(line: CommandLine, input: String, output_max_bytes: usize) -> io::Result<Life> {
    // Starting waits for exec, and that for a disk.
    let (leader, pipes) = spawn_blocking(move || spawn(&line)).await.map_err(io::Error::other)??;
    #[expect(
        deprecated,
        reason = "sound for a descriptor that its owner keeps to the end; its successor is unsafe to call"
    )]
    let leader = AsyncFd::with_interest(leader, Interest::READABLE)?;
    Ok(Life {
        leader,
        streams: Streams {
            stdin: Feed::new(pipes.stdin, input)?,
            stdout: Drain::new(pipes.stdout, output_max_bytes)?,
            stderr: Drain::new(pipes.stderr, output_max_bytes)?,
        },
    })
}

/// Waits until the leader has ended; it isn't reaped.
async fn ended(leader: &AsyncFd<Leader>) {
    loop {
        match leader.readable().await {
            Ok(_) if leader.get_ref().status().is_some() => return,
            // A readiness that comes after the look is not the one that is cleared.
            Ok(mut guard) => guard.clear_ready(),
            // The runtime shuts down, and this future is about to be dropped.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Life {
    /// Tells the group to end, waits until it has, and makes it. What it still writes is kept.
    async fn end_group(&mut self, grace: Duration) {
        let group = self.leader.get_ref().pid;
        let deadline = Instant::now() + grace;
        self.leader.get_ref().signal_group(Signal::TERM);
        self.leader.get_ref().signal_group(Signal::CONT);
        loop {
            let look = (Instant::now() + GROUP_LOOK).min(deadline);
            self.read_until(look).await;
            if self.leader.get_ref().status().is_some() && self.streams.are_closed() {
                if !lives(group).await {
                    return;
                }
                sleep_until(look).await;
            }
            if Instant::now() >= deadline {
                break;
            }
        }
        self.leader.get_ref().kill();
        let _ = timeout_at(Instant::now() + KILL_PATIENCE, ended(&self.leader)).await;
        // What is in the pipes by now; whoever still holds them writes for nobody.
        self.read_until(Instant::now() + GROUP_LOOK).await;
    }

    /// Reads until then, or until leader and outputs have ended.
    async fn read_until(&mut self, moment: Instant) {
        let Life { leader, streams } = self;
        let both = async {
            streams.pump().await;
            ended(leader).await;
        };
        let _ = timeout_at(moment, both).await;
    }

    fn ending(&self) -> Ending {
        self.leader.get_ref().status().unwrap_or(Ending::Signalled(Signal::KILL.as_raw()))
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

    /// How it ended, if it has; it stays a zombie.
    fn status(&self) -> Option<Ending> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let status = loop {
            match waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
                Err(Errno::INTR) => {}
                Ok(status) => break status?,
                // Somebody else has reaped it, and there is nothing to wait for.
                Err(_) => return Some(Ending::Exited(255)),
            }
        };
        Some(match status.terminating_signal() {
            Some(signal) => Ending::Signalled(signal),
            None => Ending::Exited(status.exit_status().unwrap_or(255)),
        })
    }

    /// Lets go of its number. Who is left in the group lives on.
    fn reap(mut self) {
        self.reap_now();
    }

    fn reap_now(&mut self) {
        if std::mem::replace(&mut self.reaped, true) {
            return;
        }
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        if let Ok(None) = waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
            reap_later(self.pid);
        }
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

impl AsRawFd for Leader {
    fn as_raw_fd(&self) -> RawFd {
        self.pidfd.as_raw_fd()
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

/// Whether a process of this group is alive, zombies not counted.
async fn lives(group: Pid) -> bool {
    spawn_blocking(move || group_lives(group)).await.unwrap_or(true)
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
    /// Moves data until all of them are closed. Cancelling loses nothing.
    async fn pump(&mut self) {
        while !self.are_closed() || self.stdin.pipe.is_some() {
            tokio::select! {
                () = self.stdout.read(), if self.stdout.pipe.is_some() => {}
                () = self.stderr.read(), if self.stderr.pipe.is_some() => {}
                () = self.stdin.write(), if self.stdin.pipe.is_some() => {}
            }
        }
    }

    /// As [`pump`](Self::pump), without an end.
    async fn pump_for_ever(&mut self) {
        self.pump().await;
        std::future::pending::<()>().await;
    }

    /// Whether both outputs are.
    fn are_closed(&self) -> bool {
        self.stdout.pipe.is_none() && self.stderr.pipe.is_none()
    }

    fn finish(self) -> (Output, Output) {
        (self.stdout.collector.finish(), self.stderr.collector.finish())
    }
}

thread_local! {
    /// What is read comes here first. Most commands write little or nothing, and would each pay for a buffer of their own.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into());
}

/// An output, while it is open.
struct Drain {
    pipe: Option<pipe::Receiver>,
    collector: Collector,
}

impl Drain {
    fn new(fd: OwnedFd, max_bytes: usize) -> io::Result<Self> {
        let pipe = Some(pipe::Receiver::from_owned_fd(fd)?);
        Ok(Drain { pipe, collector: Collector::new(max_bytes) })
    }

    /// Reads once.
    async fn read(&mut self) {
        let Some(pipe) = &self.pipe else { return };
        // An error of a pipe can only mean that nothing more will come.
        let ready = pipe.readable().await.is_ok();
        // Who reads from a flood lets others have their turn; `readable` doesn't see to that.
        consume_budget().await;
        let is_open = ready
            && SCRATCH.with_borrow_mut(|scratch| match pipe.try_read(scratch) {
                Ok(0) => false,
                Ok(bytes) => {
                    self.collector.push(&scratch[..bytes]);
                    true
                }
                Err(e) => matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
            });
        if !is_open {
            self.pipe = None;
        }
    }
}

/// The input, until all of it is written, or the command has closed its end.
struct Feed {
    pipe: Option<pipe::Sender>,
    text: String,
    written: usize,
}

impl Feed {
    fn new(fd: OwnedFd, text: String) -> io::Result<Self> {
        // An empty input is at its end from the start.
        let pipe = if text.is_empty() { None } else { Some(pipe::Sender::from_owned_fd(fd)?) };
        Ok(Feed { pipe, text, written: 0 })
    }

    fn close(&mut self) {
        self.pipe = None;
        self.text = String::new();
    }

    /// Writes once.
    async fn write(&mut self) {
        let Some(pipe) = &mut self.pipe else { return };
        match pipe.write(&self.text.as_bytes()[self.written..]).await {
            Ok(bytes) if bytes > 0 && self.written + bytes < self.text.len() => self.written += bytes,
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
