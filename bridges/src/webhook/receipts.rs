//! What became of requests.

use std::future;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::delivery::{Fault, Receipt, Receipts};

/// What a request's task tells.
#[derive(Debug)]
pub(super) enum News {
    /// What became of it.
    Told(Receipt),
    /// The same, and the server asks for silence, for this reason, for so long. Both at once, so that nothing is sent in between.
    Quiet(Receipt, String, Duration),
    /// Nothing can be sent any more for now.
    Over(Fault),
}

/// Tells what became of requests.
#[derive(Debug)]
pub struct WebhookReceipts {
    news: mpsc::UnboundedReceiver<News>,
    /// Until when the server asks for silence.
    quiet_until: Option<Instant>,
    /// Why it is over. It is told when all that is known has been.
    fault: Option<Fault>,
}

impl WebhookReceipts {
    pub(super) fn new(news: mpsc::UnboundedReceiver<News>) -> Self {
        WebhookReceipts { news, quiet_until: None, fault: None }
    }

    fn hear(&mut self, news: News, into: &mut Vec<Receipt>) {
        match news {
            News::Told(receipt) => into.push(receipt),
            News::Quiet(receipt, reason, wait) => {
                into.push(receipt);
                let until = Instant::now() + wait;
                // Several requests were refused: the longest of what they ask for counts.
                if self.quiet_until.is_none_or(|before| before < until) {
                    self.quiet_until = Some(until);
                    into.push(Receipt::Blocked(Some(reason)));
                }
            }
            News::Over(fault) => _ = self.fault.get_or_insert(fault),
        }
    }
}

impl Receipts for WebhookReceipts {
    async fn next(&mut self, into: &mut Vec<Receipt>) -> Result<(), Fault> {
        let before = into.len();
        loop {
            while let Ok(news) = self.news.try_recv() {
                self.hear(news, into);
            }
            if into.len() > before {
                return Ok(());
            }
            if let Some(fault) = &self.fault {
                return Err(fault.clone());
            }
            let quiet_until = self.quiet_until;
            // Nothing is taken before the choice is made, so a future that is dropped has lost nothing.
            tokio::select! {
                news = self.news.recv() => match news {
                    Some(news) => self.hear(news, into),
                    None => return Err(Fault::passing("the bridge has no sender any more")),
                },
                () = until(quiet_until) => {
                    self.quiet_until = None;
                    into.push(Receipt::Blocked(None));
                }
            }
        }
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => future::pending().await,
    }
}
