//! Sending what is in a spool, oldest first, one process at a time.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::Deserialize;
use thiserror::Error;

use super::{LOCK, MAX_BATCH_BYTES, MAX_SPOOL_BYTES, Name, Spool, careful};

/// What the daemon answers to reports: 202, and this.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Receipt {
    /// How many are safe.
    pub accepted: u64,
    /// Those that are refused for good.
    #[serde(default)]
    pub refused: Vec<Refusal>,
}

/// A report that the daemon will never take.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Refusal {
    /// Its id.
    pub id: String,
    /// What is wrong with it.
    #[serde(default)]
    pub problem: String,
}

/// An answer that doesn't say what became of each report. They count as not sent.
#[derive(Debug, Error)]
#[error("the answer to {sent} reports speaks of {accepted} accepted and {refused} refused")]
pub struct UnfitReceipt {
    sent: usize,
    accepted: u64,
    refused: usize,
}

impl Receipt {
    /// Whether it says of each of these reports what became of it.
    ///
    /// # Errors
    /// When it doesn't.
    pub fn check<'a>(&self, ids: impl IntoIterator<Item = &'a str>) -> Result<(), UnfitReceipt> {
        let ids: Vec<&str> = ids.into_iter().collect();
        let all_known = self.refused.iter().all(|refusal| ids.contains(&refusal.id.as_str()));
        if all_known && self.accepted.saturating_add(self.refused.len() as u64) == ids.len() as u64 {
            return Ok(());
        }
        Err(UnfitReceipt { sent: ids.len(), accepted: self.accepted, refused: self.refused.len() })
    }
}

/// The oldest reports, to be sent in one request.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    names: Vec<Name>,
    /// One line for each, each with its line feed.
    pub body: Vec<u8>,
}

impl Batch {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Their ids, in the order of the lines.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(|name| name.id.as_str())
    }
}

/// What forwarding came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forwarded {
    /// Reports that the daemon has.
    pub accepted: u64,
    /// Reports that it refused; they are in `refused` now.
    pub refused: u64,
    /// Whether somebody else has the lock, who sends the rest.
    pub busy: bool,
}

/// Why forwarding ended early. What wasn't sent is in the spool.
#[derive(Debug, Error)]
pub enum ForwardError<E: std::error::Error + 'static> {
    /// It could not be sent.
    #[error("{0}")]
    Send(#[source] E),
    /// The answer is no answer.
    #[error(transparent)]
    Receipt(#[from] UnfitReceipt),
    /// The disk.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// The right to forward. Dropping it gives it back.
pub struct Lock<'s> {
    spool: &'s Spool,
    _file: File,
    /// Names that were listed and not read yet.
    listed: VecDeque<Name>,
    /// Files that can't be read: once told, they are passed over.
    skipped: HashSet<Name>,
}

impl fmt::Debug for Lock<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lock").field("spool", &self.spool.dir).finish_non_exhaustive()
    }
}

impl Spool {
    /// Takes the right to forward; none where somebody else has it, or there is no spool.
    ///
    /// # Errors
    /// When the lock can't be made.
    pub fn try_lock(&self) -> io::Result<Option<Lock<'_>>> {
        let file = match self.open_lock(LOCK) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Lock { spool: self, _file: file, listed: VecDeque::new(), skipped: HashSet::new() })),
            Err(rustix::io::Errno::AGAIN) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Sends what is here, oldest first, until nothing is left, `go_on` says no, or something fails.
    ///
    /// `send` sends the body of a batch and returns what the daemon says. `tell` is told what an administrator should know: reports
    /// that were refused, files that can't be read.
    ///
    /// # Errors
    /// When sending fails, or the disk does. Everything that wasn't accepted is still here.
    pub fn forward<E: std::error::Error + 'static>(
        &self,
        mut send: impl FnMut(&Batch) -> Result<Receipt, E>,
        mut go_on: impl FnMut() -> bool,
        mut tell: impl FnMut(&str),
    ) -> Result<Forwarded, ForwardError<E>> {
        let mut done = Forwarded::default();
        let mut skipped = HashSet::new();
        let failed = |what, path: &Path| {
            let path = path.to_owned();
            move |source| ForwardError::Io { what, path, source }
        };
        loop {
            let lock = self.try_lock().map_err(failed("lock", &self.dir.join(LOCK)))?;
            let Some(mut lock) = lock else {
                done.busy = !self.is_empty().map_err(failed("read", &self.dir))?;
                return Ok(done);
            };
            lock.skipped = skipped;
            loop {
                if !go_on() {
                    return Ok(done);
                }
                let batch = lock.batch(&mut tell).map_err(failed("read", &self.dir))?;
                if batch.is_empty() {
                    break;
                }
                let receipt = send(&batch).map_err(ForwardError::Send)?;
                receipt.check(batch.ids())?;
                lock.settle(&batch, &receipt, &mut tell).map_err(failed("remove what was sent from", &self.dir))?;
                done.accepted += receipt.accepted;
                done.refused += receipt.refused.len() as u64;
            }
            skipped = std::mem::take(&mut lock.skipped);
            drop(lock);
            // Who wrote while we had the lock didn't get it and relies on this look.
            let names = self.names().map_err(failed("read", &self.dir))?;
            if names.iter().all(|name| skipped.contains(name)) {
                return Ok(done);
            }
        }
    }
}

impl Lock<'_> {
    /// The oldest reports that weren't in a batch yet, at most [`MAX_BATCH_BYTES`] of them; empty where there are none. The directory is looked
    /// through again when all that was found has been in a batch. What is no report goes to `refused`; what can't be read is passed over.
    ///
    /// # Errors
    /// When the directory can't be read.
    pub fn batch(&mut self, tell: &mut dyn FnMut(&str)) -> io::Result<Batch> {
        let mut batch = Batch::default();
        loop {
            if self.listed.is_empty() {
                if !batch.is_empty() {
                    break;
                }
                self.listed.extend(self.spool.names()?);
                self.listed.retain(|name| !self.skipped.contains(name));
                if self.listed.is_empty() {
                    break;
                }
            }
            let Some(name) = self.listed.front() else { break };
            let path = self.spool.dir.join(name.file());
            let line = match read(&path) {
                Ok(line) => line,
                // Another one forwarded it and gave the lock back meanwhile.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    self.listed.pop_front();
                    continue;
                }
                Err(e) => {
                    tell(&format!("cannot read {}: {e}; it stays there, the others are sent", path.display()));
                    self.skipped.extend(self.listed.pop_front());
                    continue;
                }
            };
            if !batch.is_empty() && batch.body.len() + line.len() >= MAX_BATCH_BYTES {
                break;
            }
            let name = self.listed.pop_front().expect("it was looked at");
            if !is_report(&line, &name.id) {
                let problem = "it is not the line of JSON that its name promises";
                if let Err(e) = self.refuse(&name, problem, tell) {
                    tell(&format!("{}: {problem}, and it can't be put aside: {e}", path.display()));
                    self.skipped.insert(name);
                }
                continue;
            }
            batch.body.extend_from_slice(line.trim_ascii_end());
            batch.body.push(b'\n');
            batch.names.push(name);
        }
        Ok(batch)
    }

    /// Removes the reports of this batch, those that were refused to `refused`. The receipt must have been [checked](Receipt::check).
    ///
    /// # Errors
    /// When a file can't be removed: what is left will be sent again.
    pub fn settle(&self, batch: &Batch, receipt: &Receipt, tell: &mut dyn FnMut(&str)) -> io::Result<()> {
        for name in &batch.names {
            match receipt.refused.iter().find(|refusal| refusal.id == name.id) {
                Some(refusal) => self.refuse(name, &format!("the daemon refuses it: {}", refusal.problem), tell)?,
                None => fs::remove_file(self.spool.dir.join(name.file()))?,
            }
        }
        Ok(())
    }

    fn refuse(&self, name: &Name, problem: &str, tell: &mut dyn FnMut(&str)) -> io::Result<()> {
        let refused = self.spool.refused_dir()?.join(name.file());
        fs::rename(self.spool.dir.join(name.file()), &refused)?;
        tell(&format!("{}: {problem}", refused.display()));
        self.spool.bound_refused()
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new().read(true).custom_flags(careful()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no ordinary file"));
    }
    let mut line = Vec::new();
    file.take(MAX_SPOOL_BYTES).read_to_end(&mut line)?;
    Ok(line)
}

/// Whether this is one line, with a JSON object that has this id.
fn is_report(line: &[u8], id: &str) -> bool {
    #[derive(Deserialize)]
    struct HasId<'a> {
        id: &'a str,
    }
    let line = line.trim_ascii_end();
    !line.contains(&b'\n') && serde_json::from_slice::<HasId<'_>>(line).is_ok_and(|report| report.id == id)
}
