//! Connecting.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::config::WebhookOptions;
use super::encode::Recipe;
use super::pool::Pool;
use super::receipts::WebhookReceipts;
use super::sender::WebhookSender;
use crate::delivery::{Bus, Fault};
use crate::tls::TlsOptions;

/// Somebody's HTTP server as a bus.
#[derive(Debug)]
pub struct WebhookBus {
    options: Arc<WebhookOptions>,
}

impl WebhookBus {
    /// A bus; nothing happens before it is told to connect.
    pub fn new(options: WebhookOptions) -> Self {
        WebhookBus { options: Arc::new(options) }
    }
}

impl Bus for WebhookBus {
    type Sender = WebhookSender;
    type Receipts = WebhookReceipts;

    const SEPARATOR: char = '/';

    fn acknowledges(&self) -> bool {
        true
    }

    async fn connect(&mut self) -> Result<(WebhookSender, WebhookReceipts), Fault> {
        let options = Arc::clone(&self.options);
        let recipe = match tokio::task::spawn_blocking(move || Recipe::new(&options)).await {
            Ok(recipe) => Arc::new(recipe?),
            Err(_) => return Err(Fault::passing("the program ends, or what it was told could not be read")),
        };
        let tls = match recipe.origin.is_https {
            true => {
                let config = self.options.tls.load().await;
                Some(Arc::new(config.map_err(|error| Fault::needs_help(error.to_string()))?))
            }
            false if self.options.tls != TlsOptions::default() => {
                let what = "has no TLS, which the files for it ask for; write https://";
                return Err(Fault::needs_help(format!("{} {what}", recipe.origin)));
            }
            false => None,
        };
        let pool = Pool::open(recipe.origin.clone(), tls, self.options.timeout).await?;
        let (news, told) = mpsc::unbounded_channel();
        let in_flight = self.options.in_flight.max(1);
        let sender = WebhookSender { recipe, pool: Arc::new(pool), in_flight, asking: JoinSet::new(), news };
        Ok((sender, WebhookReceipts::new(told)))
    }
}
