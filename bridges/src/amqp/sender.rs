//! Publishing.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{Confirmation, Error};
use tokio::sync::mpsc;

use super::connection::Link;
use super::encode;
use crate::delivery::{Fault, Letter, Limits, Rejection, SendError, Sender, Ticket};

/// How many letters may be in flight.
const MAX_IN_FLIGHT: usize = 32 * 1024;

/// What comes of a message: written, and then confirmed.
pub(super) type Confirming = Pin<Box<dyn Future<Output = Result<Confirmation, Error>> + Send>>;

/// A message that was published.
pub(super) struct Published {
    pub(super) ticket: Ticket,
    pub(super) id: ShortString,
    pub(super) routing_key: ShortString,
    pub(super) body_bytes: usize,
    pub(super) confirming: Confirming,
}

/// Publishes over one connection.
pub struct AmqpSender {
    pub(super) link: Arc<Link>,
    pub(super) exchange: ShortString,
    pub(super) header_prefix: Box<str>,
    /// How much the server takes; it is learned from its complaints.
    pub(super) max_message_bytes: Arc<AtomicUsize>,
    /// To the receipts. What is in it is bounded by what may be in flight.
    pub(super) published: mpsc::UnboundedSender<Published>,
}

impl std::fmt::Debug for AmqpSender {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("AmqpSender").field("exchange", &self.exchange).finish_non_exhaustive()
    }
}

impl Sender for AmqpSender {
    fn limits(&self) -> Limits {
        Limits { letter_bytes: self.max_message_bytes.load(Ordering::Relaxed), in_flight: MAX_IN_FLIGHT }
    }

    /// Never waits: the library's queue takes the message.
    async fn send(&mut self, ticket: Ticket, letter: &Letter) -> Result<(), SendError> {
        let limit = self.max_message_bytes.load(Ordering::Relaxed);
        if letter.body.len() > limit {
            let reason = format!("{} bytes are more than {} takes: {limit}", letter.body.len(), self.link.place);
            return Err(Rejection::Permanent(reason).into());
        }
        let routing_key = encode::short("the routing key", &letter.address)?;
        let id = encode::short("the message id", &letter.id)?;
        let properties = encode::properties(letter, id.clone(), &self.header_prefix)?;
        let (link, exchange, key, body) =
            (self.link.clone(), self.exchange.clone(), routing_key.clone(), letter.body.clone());
        let mut confirming: Confirming = Box::pin(async move {
            let options = BasicPublishOptions { mandatory: true, immediate: false };
            link.channel.basic_publish(exchange, key, options, &body, properties).await?.await
        });
        // The first poll puts the message into the library's queue, behind the one before it.
        match confirming.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Pending => {}
            // The channel is over, and who is to blame may be a letter before this one: the receipts hear the reason.
            Poll::Ready(result) => confirming = Box::pin(std::future::ready(result)),
        }
        let published = Published { ticket, id, routing_key, body_bytes: letter.body.len(), confirming };
        self.published
            .send(published)
            .map_err(|_| Fault::passing(format!("the connection to {} is gone", self.link.place)).into())
    }

    async fn close(self) {
        // An error says that there is nothing to close any more.
        let _ = self.link.connection.close(200, "hookbus has nothing more to say".into()).await;
    }
}
