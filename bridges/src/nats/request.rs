//! [`NatsRequests`]: a question to whoever subscribes to a subject, and the first answer.
//!
//! Nothing is kept, and nothing is sent twice: a question that gets no answer in time is over. The connection is made with the first question,
//! kept for those that follow, and made anew when it was lost.

use std::time::Duration;

use async_nats::client::RequestErrorKind;
use bytes::Bytes;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};

use super::config::NatsOptions;
use super::connection::{Connection, connection};

/// Asks over NATS.
#[derive(Debug)]
pub struct NatsRequests {
    options: NatsOptions,
    live: Mutex<Option<Connection>>,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// There is no connection.
    #[error("{0}")]
    Connection(String),
    /// Nobody subscribes to the subject.
    #[error("nobody subscribes to {0}")]
    Nobody(String),
    /// Nobody has answered in time.
    #[error("nobody has answered at {0} in time")]
    Late(String),
}

impl NatsRequests {
    /// Nothing happens before the first question. Of the options only what makes a connection counts.
    pub fn new(options: NatsOptions) -> Self {
        NatsRequests { options, live: Mutex::new(None) }
    }

    /// Asks whoever subscribes to this subject; returns the first answer.
    ///
    /// # Errors
    /// When there is none within `patience`.
    pub async fn ask(&self, subject: &str, question: Bytes, patience: Duration) -> Result<Bytes, NoAnswer> {
        let deadline = Instant::now() + patience;
        let late = |_| NoAnswer::Late(subject.to_owned());
        let client = {
            let mut live = timeout_at(deadline, self.live.lock()).await.map_err(late)?;
            if live.as_ref().is_none_or(|connection| *connection.lost.borrow()) {
                let made = timeout_at(deadline, connection(&self.options)).await.map_err(late)?;
                *live = Some(made.map_err(|fault| NoAnswer::Connection(fault.reason))?);
            }
            live.as_ref().map(|connection| connection.client.clone())
        };
        let Some(client) = client else { return Err(NoAnswer::Late(subject.to_owned())) };
        let request = async_nats::Request::new().payload(question).timeout(None);
        match timeout_at(deadline, client.send_request(subject.to_owned(), request)).await.map_err(late)? {
            Ok(message) => Ok(message.payload),
            Err(error) if error.kind() == RequestErrorKind::NoResponders => Err(NoAnswer::Nobody(subject.to_owned())),
            Err(error) => {
                // Whatever it was, another connection may do better.
                *self.live.lock().await = None;
                Err(NoAnswer::Connection(error.to_string()))
            }
        }
    }
}
