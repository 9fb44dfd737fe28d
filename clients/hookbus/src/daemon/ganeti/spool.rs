//! The spool of this host: what the hook client could not send is taken in when the daemon is back, in order.
//!
//! The spool and its lock are the client's (`hookbus_ganeti_hook::spool`): who has the lock forwards, a hook that runs or this daemon. It is looked at
//! when the daemon starts, and every few seconds then. Reports leave it when they are taken in; a crash before that takes them in again, under
//! the same ids. A spool that this user may not read is told of once, and left to the hooks.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hookbus_bridges::ganeti::Report;
use hookbus_ganeti_hook::spool::{Batch, ForwardError, Receipt, Refusal, Spool};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::Entrance;

/// How often it is looked at.
const INTERVAL: Duration = Duration::from_secs(5);

/// Why reports were not taken in.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct NotTaken(String);

/// Forwards a spool until `stop` is true.
pub(super) fn watch(dir: PathBuf, entrance: Entrance, mut stop: watch::Receiver<bool>) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut told = None;
        loop {
            let (dir, entrance) = (dir.clone(), entrance.clone());
            let looked = tokio::task::spawn_blocking(move || forward(&dir, &entrance, &Handle::current())).await;
            let trouble = looked.unwrap_or_else(|e| Err(e.to_string())).err();
            if let Some(trouble) = trouble.as_ref().filter(|trouble| told.as_ref() != Some(*trouble)) {
                tracing::warn!("ganeti: {trouble}; it is tried again");
            }
            told = trouble;
            if timeout(INTERVAL, stop.wait_for(|stop| *stop)).await.is_ok() {
                return;
            }
        }
    })
}

/// Takes in what is there. It blocks.
fn forward(dir: &Path, entrance: &Entrance, runtime: &Handle) -> Result<(), String> {
    let spool = Spool::new(dir);
    match spool.is_empty() {
        Ok(true) => return Ok(()),
        Ok(false) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => {
            return Err(format!("the spool {} can't be read: {e}; the next hook that runs forwards it", dir.display()));
        }
    }
    let send = |batch: &Batch| take(batch, entrance, runtime);
    let forwarded = spool.forward(send, || true, |what| tracing::warn!("ganeti: {what}"));
    match forwarded {
        Ok(done) if done.accepted > 0 => {
            tracing::info!("ganeti: {} reports of {} are taken in", done.accepted, dir.display());
            Ok(())
        }
        Ok(_) => Ok(()),
        Err(e @ ForwardError::Send(_)) => Err(format!("reports of {} are not taken in: {e}", dir.display())),
        Err(e) => Err(format!("{e}; the next hook that runs forwards {}", dir.display())),
    }
}

fn take(batch: &Batch, entrance: &Entrance, runtime: &Handle) -> Result<Receipt, NotTaken> {
    let lines = batch.body.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    let (mut reports, mut receipt) = (Vec::new(), Receipt::default());
    for (line, id) in lines.zip(batch.ids()) {
        match Report::parse(line) {
            Ok(report) => reports.push(report),
            Err(e) => receipt.refused.push(Refusal { id: id.to_owned(), problem: e.to_string() }),
        }
    }
    receipt.accepted = reports.len() as u64;
    runtime.block_on(entrance.take(reports)).map_err(NotTaken)?;
    entrance.refused(receipt.refused.len());
    Ok(receipt)
}
