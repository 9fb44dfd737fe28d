//! Results on their way to oned: recorded and put into the outbox in one transaction, sent one after the other, removed when they are answered.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use hookbus_bridges::zeromq::{Endpoint, ReqClient};
use hookbus_hem::oned::Reply;
use hookbus_hem::store::{Completion, HookKey, OutboxId, Store};
use hookbus_hem::{Kept, Origin, Record, Recorder};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// How long an answer is waited for, reconnects included, before that is told.
const ANSWER: Duration = Duration::from_secs(10);
/// How many results are looked at together; each may have some MiB of output.
const BATCH: usize = 8;
/// How long to wait when the store can't be read.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// The task that sends.
pub(super) struct Outbox {
    store: Store,
    news: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Outbox {
    pub(super) fn start(store: Store, endpoint: Endpoint) -> Self {
        let news = Arc::new(Notify::new());
        let sender = Sender {
            store: store.clone(),
            news: Arc::clone(&news),
            driver: ReqClient::new(endpoint),
            last: None,
            failing: false,
        };
        Outbox { store, news, task: tokio::spawn(sender.run()) }
    }

    /// What takes the executor's records.
    pub(super) fn recorder(&self) -> Results {
        Results { store: self.store.clone(), news: Arc::clone(&self.news) }
    }

    /// Waits until everything is sent, but not for longer than this.
    pub(super) async fn shutdown(mut self, patience: Duration) {
        let sent = async {
            while self.store.front(1).await.is_ok_and(|front| !front.is_empty()) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            _ = timeout(patience, sent) => {}
            _ = &mut self.task => {}
        }
        self.task.abort();
        if let Ok(left) = self.store.front(BATCH).await
            && !left.is_empty()
        {
            let more = if left.len() == BATCH { " or more" } else { "" };
            tracing::warn!("{}{more} results wait to be told to oned; they are sent after the next start", left.len());
        }
    }
}

/// Takes the executor's records.
#[derive(Debug)]
pub(super) struct Results {
    store: Store,
    news: Arc<Notify>,
}

impl Recorder for Results {
    fn record(&self, record: &Arc<Record>) -> Option<Kept> {
        let Origin::Oned { id } = record.hook.origin else { return None };
        let key = HookKey::Oned(u64::try_from(id).unwrap_or_default());
        let mut completion = Completion::of_record(key, record);
        completion.message = Reply::of(record).map(|reply| reply.to_request().into_bytes());
        let recorded = self.store.record(completion);
        let news = Arc::clone(&self.news);
        Some(Box::pin(async move {
            // The store logs what it can't keep.
            if recorded.await.is_ok() {
                tracing::debug!("hook {id}: its result is written down");
                news.notify_one();
            }
        }))
    }
}

struct Sender {
    store: Store,
    news: Arc<Notify>,
    driver: ReqClient,
    /// The newest result that was sent; the store may not have removed it yet.
    last: Option<OutboxId>,
    failing: bool,
}

impl Sender {
    async fn run(mut self) {
        loop {
            let front = match self.store.front(BATCH).await {
                Ok(front) => front,
                Err(e) => {
                    tracing::error!("results can't be read from the store, and are tried again: {e}");
                    sleep(STORE_PAUSE).await;
                    continue;
                }
            };
            let fresh: Vec<_> =
                front.into_iter().filter(|result| self.last.is_none_or(|last| result.id > last)).collect();
            if fresh.is_empty() {
                self.news.notified().await;
                continue;
            }
            let mut sent = Vec::new();
            for result in fresh {
                self.send(result.bytes).await;
                self.last = Some(result.id);
                // It is given to the store at once, and answered with the others of the batch.
                sent.push(tokio::spawn({
                    let store = self.store.clone();
                    async move { store.remove(result.id).await }
                }));
            }
            join_all(sent).await;
        }
    }

    /// Sends a result until it is answered.
    async fn send(&mut self, result: Vec<u8>) {
        loop {
            match self.driver.request(result.clone(), ANSWER).await {
                Ok(_) => {
                    if std::mem::take(&mut self.failing) {
                        tracing::info!("oned's driver takes results again");
                    }
                    return;
                }
                Err(e) => {
                    if !std::mem::replace(&mut self.failing, true) {
                        tracing::warn!("results can't be told to oned, and wait: {e}");
                    }
                }
            }
        }
    }
}
