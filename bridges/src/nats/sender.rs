//! Publishing.

use std::sync::Arc;

use async_nats::client::PublishErrorKind;
use async_nats::{Client, Subject};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::encode;
use super::sent::Sent;
use crate::delivery::{Fault, Letter, Limits, Rejection, SendError, Sender, Ticket};

/// How many letters may be in flight. The queue for acknowledgements takes twice as many.
pub(super) const MAX_IN_FLIGHT: usize = 32 * 1024;

/// Publishes over one connection.
#[derive(Debug)]
pub struct NatsSender {
    pub(super) client: Client,
    /// Where acknowledgements come to, up to the dot before the ticket. `None` for core NATS.
    pub(super) inbox: Option<String>,
    pub(super) sent: Arc<Mutex<Sent>>,
    /// Turns true when the connection is over.
    pub(super) lost: watch::Receiver<bool>,
    /// Where it is, for messages.
    pub(super) place: Arc<str>,
}

impl NatsSender {
    fn gone(&self) -> Fault {
        Fault::passing(format!("the connection to {} is gone", self.place))
    }
}

impl Sender for NatsSender {
    fn limits(&self) -> Limits {
        Limits { letter_bytes: self.client.max_payload(), in_flight: MAX_IN_FLIGHT }
    }

    async fn send(&mut self, ticket: Ticket, letter: &Letter) -> Result<(), SendError> {
        if *self.lost.borrow() {
            return Err(self.gone().into());
        }
        if !encode::is_subject(&letter.address) {
            let reason = format!("{:?} can't be a NATS subject", letter.address);
            return Err(Rejection::Permanent(reason).into());
        }
        let headers = encode::headers(letter)?;
        let subject = Subject::from(letter.address.to_string());
        let body = letter.body.clone();
        let done = match &self.inbox {
            Some(inbox) => {
                // Before it is published: the acknowledgement may be faster than what comes after.
                self.sent.lock().add(ticket, subject.clone(), letter.replayed);
                let reply = format!("{inbox}.{}", ticket.0);
                self.client.publish_with_reply_and_headers(subject, reply, headers, body).await
            }
            None => self.client.publish_with_headers(subject, headers, body).await,
        };
        let Err(error) = done else { return Ok(()) };
        self.sent.lock().take(ticket);
        Err(match error.kind() {
            PublishErrorKind::Send => self.gone().into(),
            PublishErrorKind::MaxPayloadExceeded => {
                let limit = self.client.max_payload();
                Rejection::Permanent(format!("{} takes {limit} bytes for a message, with its headers", self.place))
                    .into()
            }
            PublishErrorKind::InvalidSubject => {
                Rejection::Permanent(format!("{:?} can't be a NATS subject: {error}", letter.address)).into()
            }
        })
    }

    /// With JetStream there is nothing to do: the library writes as soon as it can, and acknowledgements tell the rest.
    async fn flush(&mut self) -> Result<(), Fault> {
        if self.inbox.is_some() {
            return Ok(());
        }
        let mut lost = self.lost.clone();
        let flushed = tokio::select! {
            // The library's own flush would wait over the end of the connection.
            _ = lost.wait_for(|lost| *lost) => false,
            flushed = self.client.flush() => flushed.is_ok(),
        };
        if flushed { Ok(()) } else { Err(self.gone()) }
    }

    async fn close(mut self) {
        // What is in the library's buffer when the client goes away is lost. Where there is no connection any more it is so already.
        let _ = self.flush().await;
    }
}
