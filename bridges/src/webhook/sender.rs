//! Sending requests.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::answer::Verdict;
use super::encode::{Prepared, Recipe};
use super::pool::Pool;
use super::receipts::News;
use crate::delivery::{Fault, Letter, Limits, Receipt, Rejection, SendError, Sender, Ticket};

/// Sends requests for as long as the server is well.
#[derive(Debug)]
pub struct WebhookSender {
    pub(super) recipe: Arc<Recipe>,
    pub(super) pool: Arc<Pool>,
    pub(super) in_flight: usize,
    /// A task for each request; they end with this.
    pub(super) asking: JoinSet<()>,
    /// At most as many wait here as letters are in flight.
    pub(super) news: mpsc::UnboundedSender<News>,
}

impl Sender for WebhookSender {
    fn limits(&self) -> Limits {
        Limits { letter_bytes: self.recipe.letter_bytes(), in_flight: self.in_flight }
    }

    async fn send(&mut self, ticket: Ticket, letter: &Letter) -> Result<(), SendError> {
        while self.asking.try_join_next().is_some() {}
        let prepared = if self.recipe.is_plain() {
            self.recipe.prepare(letter)
        } else {
            // Conditions and templates take as long as they take, so nobody else waits for that.
            let (recipe, letter) = (Arc::clone(&self.recipe), letter.clone());
            let made = tokio::task::spawn_blocking(move || recipe.prepare(&letter)).await;
            made.unwrap_or_else(|_| {
                Err(Rejection::Permanent("its request could not be made; this is a mistake in hookbus".into()))
            })
        };
        let request = match prepared? {
            Prepared::Request(request) => request,
            Prepared::Filtered => {
                let _ = self.news.send(News::Told(Receipt::Filtered(ticket)));
                return Ok(());
            }
        };
        let (recipe, pool, news) = (Arc::clone(&self.recipe), Arc::clone(&self.pool), self.news.clone());
        self.asking.spawn(async move {
            let told = what_came_of(ticket, &recipe, pool.ask(*request).await);
            // Nobody listens any more when the connection is given up.
            let _ = news.send(told);
        });
        Ok(())
    }

    async fn close(self) {}
}

fn what_came_of(ticket: Ticket, recipe: &Recipe, asked: Result<super::pool::Answer, Fault>) -> News {
    let hide = |text: &str| recipe.redacted.hide(text);
    let answer = match asked {
        Ok(answer) => answer,
        Err(fault) => return News::Over(Fault { reason: hide(&fault.reason), ..fault }),
    };
    let place = recipe.origin.to_string();
    let verdict = recipe.rules.judge(&place, answer.status, &answer.headers, &answer.body, Timestamp::now());
    match verdict {
        Verdict::Confirmed => News::Told(Receipt::Confirmed(ticket)),
        Verdict::Never(reason) => News::Told(Receipt::Rejected(ticket, Rejection::Permanent(hide(&reason)))),
        Verdict::Help(reason) => News::Over(Fault::needs_help(hide(&reason))),
        Verdict::Later(reason, wait) => {
            let reason = hide(&reason);
            let refused = Receipt::Rejected(ticket, Rejection::Transient(reason.clone()));
            match wait {
                None => News::Told(refused),
                Some(wait) => News::Quiet(refused, format!("{reason}; it asks for {} s", wait.as_secs().max(1)), wait),
            }
        }
    }
}
