//! What an AMQP bridge is told.

use std::time::Duration;

use crate::secret::Secret;
use crate::tls::TlsOptions;

/// What an AMQP bridge is told.
#[derive(Clone)]
pub struct AmqpOptions {
    /// Where the server is: `amqp://user:password@host:5672/vhost`, or `amqps` for TLS. The vhost `/` is written `%2f`.
    pub url: String,
    /// The user, if not the one in the URL.
    pub user: Option<String>,
    /// The user's password, if not the one in the URL.
    pub password: Option<Secret>,
    /// The files for TLS. They need a URL with `amqps`.
    pub tls: TlsOptions,
    /// What the connection is called in the server's lists.
    pub name: String,
    /// The exchange. One that exists is used as it is, whatever its type; else a durable topic exchange is made.
    pub exchange: String,
    /// What happens to an event that no queue is bound for.
    pub unroutable: Unroutable,
    /// What the headers of CloudEvents attributes begin with, in binary mode.
    pub header_prefix: String,
    /// The largest body that the server takes, in bytes. AMQP has no way to ask; RabbitMQ's `max_message_size` is 128 MiB unless it
    /// was set. If the server says that it takes less, that counts.
    pub max_message_bytes: usize,
    /// How long one step of connecting may take: to connect and be let in, to make the exchange.
    pub step_timeout: Duration,
    /// After how much silence a connection is given up, in seconds; both sides say something twice in that time.
    pub heartbeat_s: u16,
}

impl Default for AmqpOptions {
    fn default() -> Self {
        AmqpOptions {
            url: "amqp://127.0.0.1:5672/%2f".into(),
            user: None,
            password: None,
            tls: TlsOptions::default(),
            name: "hookbus".into(),
            exchange: "hookbus".into(),
            unroutable: Unroutable::default(),
            header_prefix: "cloudEvents_".into(),
            max_message_bytes: 128 << 20,
            step_timeout: Duration::from_secs(10),
            heartbeat_s: 10,
        }
    }
}

impl std::fmt::Debug for AmqpOptions {
    /// Without the URL, which may hold a password.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = formatter.debug_struct("AmqpOptions");
        shown.field("user", &self.user).field("password", &self.password).field("tls", &self.tls);
        shown.field("name", &self.name).field("exchange", &self.exchange).field("unroutable", &self.unroutable);
        shown.finish_non_exhaustive()
    }
}

/// What happens to an event that no queue is bound for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unroutable {
    /// It is counted.
    #[default]
    Ignore,
    /// It is refused for good, and so becomes a dead letter.
    Reject,
}
