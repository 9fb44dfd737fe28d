//! Results on their way to oned: recorded and put into the outbox in one transaction, sent one after the other, removed when they are answered.
//!
//! ```text
//! reporter ─▶ store ─▶ courier ─▶ line, bounded ─▶ sender ── REQ ──▶ oned's driver
//!               │ committed              ▲            │ answered
//!               ╰── what didn't fit ─────╯            ╰─▶ remover ─▶ store
//! ```
//!
//! A result is sent when it is committed. What few wait for the driver are kept in memory, in a line that the *courier* fills in the order of their ids; the
//! store is read only for what found no room there, and for what was left by the last process. What was answered the *remover* takes out
//! of the store: all that there is by then in one change, while the sender goes on. So a process that is killed leaves in the
//! store what was answered in the last few milliseconds, and those results are sent again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hookbus_bridges::zeromq::{Endpoint, ReqClient};
use hookbus_hem::oned::Reply;
use hookbus_hem::store::{Completion, HookKey, OutboxId, OutboxMessage, Pending, Recorded, Store};
use hookbus_hem::{Kept, Origin, Record, Recorder};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::dead_letters::DeadLetters;

/// How long an answer is waited for, reconnects included, before that is told.
const ANSWER: Duration = Duration::from_secs(10);
/// How many results are read from the store together, and about how many bytes; each may have some MiB of output.
const BATCH: usize = 64;
const BATCH_BYTES: usize = 4 << 20;
/// How long to wait when the store can't be read.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// How many results stand in the line, and how large each may be; others are read from the store.
const LINE: usize = 1024;
const LINE_RESULT_BYTES: usize = 8 << 10;

/// The tasks that send.
pub(super) struct Outbox {
    store: Store,
    dead_letters: DeadLetters,
    written: mpsc::UnboundedSender<Written>,
    sender: JoinHandle<()>,
    others: [JoinHandle<()>; 2],
}

impl Outbox {
    pub(super) fn start(store: Store, endpoint: Endpoint, dead_letters: DeadLetters) -> Self {
        let line = Arc::new(Line::default());
        let (written, to_courier) = mpsc::unbounded_channel();
        let (answered, to_remover) = watch::channel(None);
        let sender = Sender {
            store: store.clone(),
            line: Arc::clone(&line),
            driver: ReqClient::new(endpoint),
            answered,
            last: None,
            failing: false,
        };
        let others = [tokio::spawn(courier(to_courier, line)), tokio::spawn(remover(to_remover, store.clone()))];
        Outbox { store, dead_letters, written, sender: tokio::spawn(sender.run()), others }
    }

    /// What takes the executor's records.
    pub(super) fn recorder(&self) -> Results {
        Results { store: self.store.clone(), dead_letters: self.dead_letters.clone(), written: self.written.clone() }
    }

    /// Waits until everything is sent, but not for longer than this.
    pub(super) async fn shutdown(mut self, patience: Duration) {
        let sent = async {
            // First what is being written: it comes into the outbox before it is out of the queue.
            while self.store.status().queued > 0 || self.store.status().outbox_messages > 0 {
                sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            _ = timeout(patience, sent) => {}
            _ = &mut self.sender => {}
        }
        self.sender.abort();
        self.others.iter().for_each(JoinHandle::abort);
        let left = self.store.status().outbox_messages;
        if left > 0 {
            tracing::warn!("{left} results wait to be told to oned; they are sent after the next start");
        }
    }
}

/// A result that is being written down.
#[derive(Debug)]
struct Written {
    hook: i64,
    recorded: Pending<Recorded>,
    /// What is to be sent, unless it is large.
    bytes: Option<Vec<u8>>,
    /// Dropped when it is written down, or can't be: somebody waits for that.
    _kept: oneshot::Sender<()>,
}

/// Takes the executor's records.
#[derive(Debug)]
pub(super) struct Results {
    store: Store,
    dead_letters: DeadLetters,
    written: mpsc::UnboundedSender<Written>,
}

impl Recorder for Results {
    fn record(&self, record: &Arc<Record>) -> Option<Kept> {
        let Origin::Oned { id } = record.hook.origin else { return None };
        if record.is_final_failure() {
            // Rare, and a small file: it is there before its attempt counts as made.
            self.dead_letters.add(id, record);
        }
        let key = HookKey::Oned(u64::try_from(id).unwrap_or_default());
        let mut completion = Completion::of_record(key, record);
        completion.message = Reply::of(record).map(|reply| reply.to_request().into_bytes());
        let bytes = completion.message.clone().filter(|bytes| bytes.len() <= LINE_RESULT_BYTES);
        let recorded = self.store.record(completion);
        // What waits there has its room in the store's queue; what found none, which the store has logged, must not pile up here.
        if recorded.is_refused() {
            return None;
        }
        let (kept, is_kept) = oneshot::channel();
        let _ = self.written.send(Written { hook: id, recorded, bytes, _kept: kept });
        // The other end is dropped when it is written down, or can't be.
        Some(Box::pin(async move { drop(is_kept.await) }))
    }
}

/// Results that are committed and not sent, in the order of their ids.
#[derive(Debug)]
struct Line {
    waiting: Mutex<Waiting>,
    news: Notify,
}

#[derive(Debug)]
struct Waiting {
    results: VecDeque<OutboxMessage>,
    /// Whether there are further ones in the store.
    more: bool,
}

impl Default for Line {
    fn default() -> Self {
        // At first there is what the last process left.
        Line { waiting: Mutex::new(Waiting { results: VecDeque::new(), more: true }), news: Notify::new() }
    }
}

/// What the sender does next.
enum Next {
    Send(OutboxMessage),
    Read,
    Wait,
}

impl Line {
    fn push(&self, id: OutboxId, bytes: Option<Vec<u8>>) {
        let mut waiting = self.waiting.lock();
        match bytes {
            // Where one was left out, so are all that come behind it, until the store has been read.
            Some(bytes) if !waiting.more && waiting.results.len() < LINE => {
                waiting.results.push_back(OutboxMessage { id, bytes });
            }
            _ => waiting.more = true,
        }
        drop(waiting);
        self.news.notify_one();
    }

    fn next(&self) -> Next {
        let mut waiting = self.waiting.lock();
        match waiting.results.pop_front() {
            Some(result) => Next::Send(result),
            // Results that come while the store is read are in the line; those that it shows as well are sent once.
            None if std::mem::take(&mut waiting.more) => Next::Read,
            None => Next::Wait,
        }
    }
}

/// Puts results into the line as they are committed.
async fn courier(mut written: mpsc::UnboundedReceiver<Written>, line: Arc<Line>) {
    while let Some(Written { hook, recorded, bytes, _kept }) = written.recv().await {
        // The store logs what it can't keep.
        if let Ok(Recorded { message: Some(id), .. }) = recorded.await {
            tracing::debug!("hook {hook}: its result is written down");
            line.push(id, bytes);
        }
    }
}

/// Removes what was answered.
async fn remover(mut answered: watch::Receiver<Option<OutboxId>>, store: Store) {
    while answered.changed().await.is_ok() {
        let last = *answered.borrow_and_update();
        if let Some(last) = last {
            // It fails only where the store is closed; then they are sent again.
            let _ = store.remove_through(last).await;
        }
    }
}

struct Sender {
    store: Store,
    line: Arc<Line>,
    driver: ReqClient,
    answered: watch::Sender<Option<OutboxId>>,
    /// The newest result that was answered; the store may not have removed it yet.
    last: Option<OutboxId>,
    failing: bool,
}

impl Sender {
    async fn run(mut self) {
        loop {
            match self.line.next() {
                Next::Send(result) => self.send(result).await,
                Next::Read => self.send_stored().await,
                Next::Wait => self.line.news.notified().await,
            }
        }
    }

    /// Sends what is in the store.
    async fn send_stored(&mut self) {
        loop {
            match self.store.front_after(self.last, BATCH, BATCH_BYTES).await {
                Ok(front) if front.is_empty() => return,
                Ok(front) => {
                    for result in front {
                        self.send(result).await;
                    }
                }
                Err(e) => {
                    tracing::error!("results can't be read from the store, and are tried again: {e}");
                    sleep(STORE_PAUSE).await;
                }
            }
        }
    }

    /// Sends a result until it is answered.
    async fn send(&mut self, result: OutboxMessage) {
        if self.last.is_some_and(|last| result.id <= last) {
            return;
        }
        let bytes = Bytes::from(result.bytes);
        while let Err(e) = self.driver.request(bytes.clone(), ANSWER).await {
            if !std::mem::replace(&mut self.failing, true) {
                tracing::warn!("results can't be told to oned, and wait: {e}");
            }
        }
        if std::mem::take(&mut self.failing) {
            tracing::info!("oned's driver takes results again");
        }
        self.last = Some(result.id);
        self.answered.send_replace(self.last);
    }
}
