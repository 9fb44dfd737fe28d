//! One run of the hook, from its start to its exit status.
//!
//! A second thread watches the clock, and when the time is over it ends the process. So nothing that hangs, a disk or a name server, can make a run
//! longer than it may be. A panic is caught: it is not the end of a job either.
//!
//! Of `timeout_ms`, a report that isn't in the spool yet may take three tenths to be sent, so that there is time for the spool where a thousand hooks wait for a
//! daemon that hangs; one that is there may take half. What the spool doesn't take has a little longer. The rest is for the end of the process.
//!
//! # When the time is over
//!
//! A report that has no file in the spool by then, and no answer, is lost: that is told, and counted. The two threads agree on it (`Fate`): where it is
//! counted it gets no name in the spool any more, and one that gets its name isn't counted. (An answer that was about to come can't be known: such a report
//! is counted although the daemon has it.) Counting takes the disk that was too slow, or at least its memory, so it is done by a third thread, and
//! waited for until what is left of the time is over; when it isn't done by then, that is told instead.
//!
//! 1. An operation that this node doesn't report (`report`) is none of our business: the run ends.
//! 2. One that is in `gate_ops`, in phase pre, is sent to `/v1/ganeti/gate`, and the verdict is waited for. The request is the report of this run, too.
//! 3. Where nothing is in the spool, the report is sent. When that fails, it goes into the spool.
//! 4. Else it goes into the spool first, behind the others, and then the spool is forwarded, by this run or by who is at it already.
//! 5. Where the spool doesn't take it, the report is sent past the others: late order is better than none.

use std::io::{self, Write};
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::process;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;
use thiserror::Error;

use crate::config::{Config, GateDefault, Reading, ReportOn};
use crate::exchange::{self, Answer, ExchangeError, Request};
use crate::report::{Environment, Report, host_name};
use crate::spool::{Batch, PutError, Receipt, Spool, UnfitReceipt, Untold};

/// Where reports go.
const REPORTS: &str = "/v1/ganeti/reports";
/// Where verdicts come from.
const GATE: &str = "/v1/ganeti/gate";

/// Operations that may run on nodes of which none is the master, so that each of their nodes reports.
pub const ON_EVERY_NODE: [&str; 5] =
    ["network-connect", "network-disconnect", "cluster-verify", "master-ip-turnup", "master-ip-turndown"];

/// What is said when a verdict is no longer than this.
const MAX_REASON_BYTES: usize = 64 << 10;

/// How a run ends.
#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    /// The operation goes on.
    Go,
    /// It is refused, and this is why.
    Refuse(String),
}

/// How long a run may take, and how it ends when that is over.
#[derive(Debug)]
struct Limit {
    /// Work ends here.
    deadline: Instant,
    /// The process ends here, whatever it does.
    end: Instant,
    late: End,
}

/// What becomes of the report of a run: decided once, by whoever comes first.
#[derive(Debug, Default)]
struct Fate(AtomicU8);

impl Fate {
    const OPEN: u8 = 0;
    /// The daemon has it, or this node has none to send.
    const SETTLED: u8 = 1;
    /// It gets its name in the spool, or has it.
    const SPOOLED: u8 = 2;
    /// It is lost, and who decided that counts it.
    const LOST: u8 = 3;

    /// Decides it; where it is decided already, says how.
    fn decide(&self, fate: u8) -> Result<(), u8> {
        self.0.compare_exchange(Fate::OPEN, fate, Ordering::SeqCst, Ordering::SeqCst).map(drop)
    }

    /// It didn't get its name.
    fn reopen(&self) {
        let _ = self.0.compare_exchange(Fate::SPOOLED, Fate::OPEN, Ordering::SeqCst, Ordering::SeqCst);
    }
}

/// What the thread that watches knows of the work.
#[derive(Debug, Default)]
struct Known {
    fate: Fate,
    /// Set when the configuration has been read.
    spool: OnceLock<Spool>,
}

/// When what must be done.
#[derive(Clone, Copy, Debug)]
struct Times {
    /// What is on no disk is sent by then.
    send: Instant,
    /// What is in the spool is sent by then, or stays there.
    forward: Instant,
    /// What the spool doesn't take is sent by then, or is lost.
    last: Instant,
    /// Nothing more is done then, save counting what was lost.
    over: Instant,
    /// The process ends then.
    end: Instant,
}

impl Times {
    fn new(start: Instant, timeout: Duration) -> Self {
        let at = |fortieths: u32| start + timeout * fortieths / 40;
        Times { send: at(12), forward: at(20), last: at(32), over: at(37), end: at(39) }
    }

    fn limit(&self, late: End) -> Limit {
        Limit { deadline: self.over, end: self.end, late }
    }
}

/// The stack of threads that do next to nothing.
const STACK_BYTES: usize = 128 << 10;

/// Runs the hook with this configuration; without one, that in the usual place.
pub fn run(config: Option<&Path>) -> ! {
    let start = Instant::now();
    let (limits, changes) = mpsc::channel();
    let first = Times::new(start, Config::default().timeout).limit(End::Go);
    let known = Arc::new(Known::default());
    let watched = Arc::clone(&known);
    // Where there can be no more threads, nobody watches.
    let _ = thread::Builder::new().stack_size(STACK_BYTES).spawn(move || watch(first, &changes, watched));
    // What it was has been told by then.
    let end = panic::catch_unwind(AssertUnwindSafe(|| work(start, config, &limits, &known))).unwrap_or(End::Go);
    process::exit(exit_status(end))
}

/// Ends the process when its time is over.
fn watch(mut limit: Limit, changes: &Receiver<Limit>, known: Arc<Known>) {
    loop {
        match changes.recv_timeout(limit.deadline.saturating_duration_since(Instant::now())) {
            Ok(changed) => limit = changed,
            // It is about to end by itself.
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => break,
        }
    }
    let (done, waits) = mpsc::channel::<()>();
    let farewell = move || {
        give_up(&known);
        drop(done);
    };
    if thread::Builder::new().stack_size(STACK_BYTES).spawn(farewell).is_ok() {
        let _ = waits.recv_timeout(limit.end.saturating_duration_since(Instant::now()));
    }
    process::exit(exit_status(limit.late));
}

/// Tells and counts what is lost because the time is over. Whatever it does may hang.
fn give_up(known: &Known) {
    let over = "the time is over: is the disk of the spool slow?";
    match (known.fate.decide(Fate::LOST), known.spool.get()) {
        (Ok(()), Some(spool)) => match spool.count_lost() {
            Ok(()) => tell(&format!("{over} The report of this operation is lost")),
            Err(e) => tell(&format!("{over} The report of this operation is lost, and can't be counted: {e}")),
        },
        (Ok(()), None) => tell(&format!("{over} The report of this operation is lost, and not counted")),
        (Err(Fate::SPOOLED), _) => {
            tell(&format!("{over} The report of this operation is in it, but a loss of power may lose it"));
        }
        // The work has told of it.
        (Err(_), _) => {}
    }
}

/// Says why an operation is refused, if it is; returns the exit status.
fn exit_status(end: End) -> i32 {
    match end {
        End::Go => 0,
        End::Refuse(reason) => {
            // Ganeti shows it in the job's log.
            let _ = io::stdout().write_all(format!("{}\n", reason.trim_end()).as_bytes());
            let _ = io::stdout().flush();
            1
        }
    }
}

/// Tells whoever looks at the job's log. Standard error may be closed, or a pipe that nobody reads any more.
fn tell(what: &str) {
    let _ = io::stderr().write_all(format!("hookbus-ganeti-hook: {what}\n").as_bytes());
}

fn work(start: Instant, file: Option<&Path>, limits: &Sender<Limit>, known: &Known) -> End {
    let environment = Environment::of_process();
    let Some(operation) = environment.ganeti("HOOKS_PATH") else {
        tell(
            "there is no GANETI_HOOKS_PATH, so this was not started by Ganeti as the hook of an operation; nothing was reported",
        );
        return End::Go;
    };
    let Reading { config, problems } = Reading::of_file(file);
    for problem in &problems {
        tell(problem);
    }
    let times = Times::new(start, config.timeout);
    if config.timeout != Config::default().timeout {
        let _ = limits.send(times.limit(End::Go));
    }
    let host = host_name();
    let node = config.node.as_deref().unwrap_or(&host);
    if !reports(&config, node, operation, environment.ganeti("MASTER")) {
        return End::Go;
    }
    let report = Report::new(node, &environment);
    let spool = known.spool.get_or_init(|| Spool::new(&config.spool));
    let hook = Hook { spool, fate: &known.fate, config: &config, report: &report };
    let is_gate = environment.ganeti("HOOKS_PHASE") == Some("pre")
        && config.gate_ops.iter().any(|gated| gated == "*" || gated == operation);
    if is_gate {
        return hook.gate(start, limits);
    }
    hook.report(times);
    End::Go
}

/// Whether this node reports this operation.
fn reports(config: &Config, node: &str, operation: &str, master: Option<&str>) -> bool {
    let Some(master) = master else { return true };
    if config.report == ReportOn::Always || ON_EVERY_NODE.contains(&operation) || node == master {
        return true;
    }
    // What gethostname says may be short. Better two reports of an operation, of which the daemon drops one, than none.
    config.node.is_none() && !node.contains('.') && master.split('.').next() == Some(node)
}

/// Why a report is not with the daemon.
#[derive(Debug, Error)]
enum SendError {
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    #[error("the daemon answered {status}{}", said(.body))]
    Status { status: u16, body: Vec<u8> },
    #[error("the daemon's answer can't be understood: {0}")]
    Strange(#[from] serde_json::Error),
    #[error(transparent)]
    Receipt(#[from] UnfitReceipt),
}

impl From<Answer> for SendError {
    fn from(answer: Answer) -> Self {
        SendError::Status { status: answer.status, body: answer.body }
    }
}

/// What a problem object says, where there is one.
fn said(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Problem {
        detail: String,
    }
    serde_json::from_slice(body).map_or_else(|_| String::new(), |Problem { detail }| format!(": {detail}"))
}

/// What a run has at hand.
struct Hook<'a> {
    config: &'a Config,
    spool: &'a Spool,
    fate: &'a Fate,
    report: &'a Report,
}

impl Hook<'_> {
    fn report(&self, times: Times) {
        // A spool that can't be looked at holds nothing that could be sent.
        if self.spool.is_empty().unwrap_or(true) {
            let Err(unsent) = self.send_own(times.send) else { return };
            self.keep(&unsent);
            return;
        }
        let Err(full) = self.put() else { return self.forward(times) };
        // Perhaps there is room when some of it is gone.
        self.forward(times);
        if self.put().is_ok() {
            return self.forward(times);
        }
        if let Err(unsent) = self.send_own(times.last) {
            self.lose(&full.to_string(), &unsent);
        }
    }

    /// Puts the report of this run into the spool, unless it counts as lost.
    fn put(&self) -> Result<(), PutError> {
        let put = self.spool.put_if(self.report, || self.fate.decide(Fate::SPOOLED).is_ok());
        if put.is_err() {
            self.fate.reopen();
        }
        put
    }

    fn forward(&self, times: Times) {
        let send = |batch: &Batch| self.send(&batch.body, times.forward);
        // When it fails, everything is in the spool, which is what it is for.
        let _ = self.spool.forward(send, || Instant::now() < times.forward, tell);
    }

    /// Sends the report of this run.
    fn send_own(&self, deadline: Instant) -> Result<(), SendError> {
        let body = [&self.report.line[..], b"\n"].concat();
        let receipt = self.send(&body, deadline)?;
        receipt.check([self.report.id.as_str()])?;
        let _ = self.fate.decide(Fate::SETTLED);
        for refusal in &receipt.refused {
            tell(&format!("the daemon refuses the report of this operation: {}", refusal.problem));
            if let Err(e) = self.spool.put_refused(self.report) {
                tell(&format!("it can't be kept in {} either: {e}", self.spool.dir().display()));
            }
        }
        Ok(())
    }

    /// Sends lines. With them goes how many reports were lost, if any.
    fn send(&self, body: &[u8], deadline: Instant) -> Result<Receipt, SendError> {
        let untold = self.spool.untold();
        let count = untold.as_ref().map(|untold| untold.count().to_string());
        let lost = count.as_deref().map(|count| ("hookbus-lost", count));
        let headers: Vec<(&str, &str)> = [("Content-Type", "application/x-ndjson")].into_iter().chain(lost).collect();
        let request = Request { method: "POST", path: REPORTS, headers: &headers, body };
        let answer = exchange::ask(self.config, &request, deadline)?;
        if answer.status != 202 {
            return Err(answer.into());
        }
        let receipt = serde_json::from_slice(&answer.body)?;
        if let Some(Err(e)) = untold.map(Untold::told) {
            tell(&format!("cannot write down that lost reports were told, they will be told again: {e}"));
        }
        Ok(receipt)
    }

    /// Keeps what could not be sent.
    fn keep(&self, unsent: &SendError) {
        if let Err(e) = self.put() {
            self.lose(&e.to_string(), unsent);
        }
    }

    /// Tells that this operation will not be reported.
    fn lose(&self, unkept: &str, unsent: &SendError) {
        if self.fate.decide(Fate::LOST) == Err(Fate::LOST) {
            // The time is over; whoever watches it counts, and ends the process.
            loop {
                thread::park();
            }
        }
        tell(&format!("the report of this operation is lost: {unsent}; {unkept}"));
        if let Err(e) = self.spool.count_lost() {
            tell(&format!("it can't be counted in {} either: {e}", self.spool.dir().display()));
        }
    }

    /// Asks for a verdict.
    fn gate(&self, start: Instant, limits: &Sender<Limit>) -> End {
        let wait = self.config.gate_timeout;
        let asked_until = start + wait;
        let without = |why: &str| match self.config.gate_default {
            GateDefault::Allow => End::Go,
            GateDefault::Deny => End::Refuse(format!("{why}; gate_default is deny")),
        };
        let nobody = format!("no check answered within {}", seconds(wait));
        let times = Times::new(asked_until, self.config.timeout);
        let _ = limits.send(times.limit(without(&nobody)));
        match self.verdict(asked_until) {
            Ok(Verdict { verdict: Kind::Allow, .. }) => End::Go,
            Ok(Verdict { verdict: Kind::Deny, reason }) => End::Refuse(match reason.trim() {
                "" => "a check refuses this operation and gives no reason".to_owned(),
                reason => cut(reason).to_owned(),
            }),
            Ok(Verdict { verdict: Kind::None, reason }) => match reason.trim() {
                "" => without("no check gave a verdict"),
                reason => without(&format!("no check gave a verdict ({})", cut(reason))),
            },
            Err(unasked) => {
                let end = match &unasked {
                    SendError::Exchange(ExchangeError::Late { .. }) => without(&nobody),
                    _ => without(&format!("no check could be asked: {unasked}")),
                };
                // Whatever the disk does: this is how it ends.
                let _ = limits.send(times.limit(end.clone()));
                self.keep(&unasked);
                end
            }
        }
    }

    fn verdict(&self, deadline: Instant) -> Result<Verdict, SendError> {
        let wait = self.config.gate_timeout.as_millis().to_string();
        let headers = [("Content-Type", "application/json"), ("hookbus-timeout-ms", wait.as_str())];
        let request = Request { method: "POST", path: GATE, headers: &headers, body: &self.report.line };
        let answer = exchange::ask(self.config, &request, deadline)?;
        if answer.status != 200 {
            return Err(answer.into());
        }
        let verdict = serde_json::from_slice(&answer.body)?;
        let _ = self.fate.decide(Fate::SETTLED);
        Ok(verdict)
    }
}

/// What a check says.
#[derive(Debug, Deserialize)]
struct Verdict {
    verdict: Kind,
    #[serde(default)]
    reason: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Allow,
    Deny,
    None,
}

/// A time as people write it: `5 s`, `250 ms`.
fn seconds(time: Duration) -> String {
    match time.as_millis() {
        ms if ms % 1000 == 0 => format!("{} s", ms / 1000),
        ms => format!("{ms} ms"),
    }
}

/// The beginning of a text that is too long for a job's log.
fn cut(text: &str) -> &str {
    let end = (0..=MAX_REASON_BYTES.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or_default()]
}

/// What a daemon says that is asked whether it is ready: nothing where it is.
///
/// # Errors
/// Why it isn't.
pub fn check_daemon(config: &Config) -> Result<(), String> {
    let ask = |request: &Request<'_>| match exchange::ask(config, request, Instant::now() + config.timeout) {
        Ok(answer) if answer.status / 100 == 2 => Ok(()),
        Ok(answer) => Err(SendError::from(answer).to_string()),
        Err(e) => Err(e.to_string()),
    };
    ask(&Request { method: "GET", path: "/readyz", headers: &[], body: &[] })?;
    // No reports at all: whether they would be taken from here, by this token.
    let headers = [("Content-Type", "application/x-ndjson")];
    ask(&Request { method: "POST", path: REPORTS, headers: &headers, body: &[] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_reported_where_the_contract_says() {
        let config = |node: Option<&str>, report| Config { node: node.map(str::to_owned), report, ..Config::default() };
        let fixed = config(Some("n1.example.com"), ReportOn::Master);
        let reports_on =
            |config: &Config, node: &str, operation: &str| reports(config, node, operation, Some("n1.example.com"));
        assert!(reports_on(&fixed, "n1.example.com", "instance-start"));
        assert!(!reports_on(&fixed, "n2.example.com", "instance-start"));
        assert!(!reports_on(&fixed, "n1", "instance-start"), "a name that was written down is the name");
        for operation in ON_EVERY_NODE {
            assert!(reports_on(&fixed, "n2.example.com", operation), "{operation}");
        }
        assert!(reports_on(&config(None, ReportOn::Always), "n2", "instance-start"));
        let plain = config(None, ReportOn::Master);
        assert!(reports_on(&plain, "n1", "instance-start"), "gethostname may be short");
        assert!(!reports_on(&plain, "n2", "instance-start"));
        assert!(!reports_on(&plain, "n1.example.org", "instance-start"));
        assert!(reports(&fixed, "n2", "instance-start", None), "who the master is is not known");
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        assert_eq!(cut("short"), "short");
        let long = format!("x{}", "ü".repeat(MAX_REASON_BYTES));
        assert_eq!(cut(&long).len(), MAX_REASON_BYTES - 1);
    }

    #[test]
    fn times_are_written_as_people_do() {
        assert_eq!(seconds(Duration::from_secs(5)), "5 s");
        assert_eq!(seconds(Duration::from_millis(250)), "250 ms");
    }
}
