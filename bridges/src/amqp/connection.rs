//! Connecting, and the exchange.

use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use lapin::options::{ConfirmSelectOptions, ExchangeDeclareOptions};
use lapin::tcp::{AsyncTcpStream, RustlsConnector};
use lapin::types::{FieldTable, ShortString};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Channel, Connection, ConnectionProperties, ExchangeKind};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::config::AmqpOptions;
use super::error;
use super::receipts::AmqpReceipts;
use super::sender::AmqpSender;
use crate::delivery::{Bus, Fault};
use crate::tls::TlsOptions;

/// AMQP as a bus.
#[derive(Debug)]
pub struct AmqpBus {
    options: AmqpOptions,
    /// How much the server takes; a smaller limit is learned from its complaints.
    max_message_bytes: Arc<AtomicUsize>,
}

impl AmqpBus {
    /// A bus; nothing happens before it is told to connect.
    pub fn new(options: AmqpOptions) -> Self {
        let max_message_bytes = Arc::new(AtomicUsize::new(options.max_message_bytes));
        AmqpBus { options, max_message_bytes }
    }
}

/// A connection. It ends when both who use it are gone.
pub(super) struct Link {
    pub(super) channel: Channel,
    pub(super) connection: Connection,
    /// Where it is, for messages: without secrets.
    pub(super) place: Box<str>,
    _socket: Socket,
}

/// The socket under a connection of the library's, which is shut down in the end. The library's thread would keep it: while a handshake
/// waits for a server that has stopped, and to say goodbye to one.
#[derive(Default)]
struct Socket(Arc<Mutex<Option<TcpStream>>>);

impl Drop for Socket {
    fn drop(&mut self) {
        // The one that the library's function for connecting has doesn't count: it lives as long as the thread.
        if let Some(stream) = self.0.lock().take() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Bus for AmqpBus {
    type Sender = AmqpSender;
    type Receipts = AmqpReceipts;

    const SEPARATOR: char = '.';
    const ADDRESS_BYTES: usize = 255;

    fn acknowledges(&self) -> bool {
        true
    }

    async fn connect(&mut self) -> Result<(AmqpSender, AmqpReceipts), Fault> {
        let options = &self.options;
        let uri = uri(options)?;
        let place = place(&uri);
        let exchange = ShortString::try_new(options.exchange.as_str())
            .map_err(|_| Fault::needs_help("the exchange's name is longer than AMQP takes: 255 bytes"))?;
        let connector = match uri.scheme {
            AMQPScheme::AMQPS => {
                let config = options.tls.load().await.map_err(|error| Fault::needs_help(error.to_string()))?;
                Some(RustlsConnector::from(config))
            }
            AMQPScheme::AMQP if options.tls == TlsOptions::default() => None,
            AMQPScheme::AMQP => {
                return Err(Fault::needs_help("ca_file, cert_file and key_file are for TLS: write amqps:// in url"));
            }
        };
        let secure = connector.is_some();
        let socket = Socket::default();
        let step = options.step_timeout;
        let connecting = connect(uri, connector, socket.0.clone(), &options.name, step);
        let connection = match timeout(step, connecting).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) if secure && error::hung_up(&error) => {
                // With TLS 1.3 a refused certificate shows up when ours believes the handshake to be over; what it has written by
                // then makes the server's system answer with a reset, which overtakes the reason.
                return Err(Fault::needs_help(format!(
                    "{place} hung up after the TLS handshake: perhaps it wants a client certificate that it trusts; see cert_file \
                     and key_file"
                )));
            }
            Ok(Err(error)) => return Err(error::not_connected(&place, &error)),
            Err(_) => return Err(Fault::passing(format!("{place} doesn't answer"))),
        };
        let opening = open(&connection, &exchange);
        let channel = match timeout(step, opening).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(error)) => return Err(error::not_connected(&place, &error)),
            Err(_) => return Err(Fault::passing(format!("{place} doesn't answer"))),
        };
        // Only now: an exchange that was looked for in vain is told as an error of the connection, too.
        let events = connection.events_listener();
        let blocked_before = connection.status().blocked();
        if !channel.status().connected() {
            // It ended before anybody listened.
            return Err(Fault::passing(format!("the connection to {place} is gone")));
        }
        if !channel.status().confirm() {
            return Err(Fault::needs_help(format!("{place} doesn't confirm what is published")));
        }
        let link = Arc::new(Link { channel, connection, place, _socket: socket });
        let (published, publishing) = mpsc::unbounded_channel();
        let sender = AmqpSender {
            link: link.clone(),
            exchange,
            header_prefix: options.header_prefix.as_str().into(),
            max_message_bytes: self.max_message_bytes.clone(),
            published,
        };
        let receipts = AmqpReceipts::new(
            link,
            Box::pin(events),
            publishing,
            options.unroutable,
            self.max_message_bytes.clone(),
            blocked_before,
        );
        Ok((sender, receipts))
    }
}

/// Where we connect to and as whom.
fn uri(options: &AmqpOptions) -> Result<AMQPUri, Fault> {
    // The URL itself is not shown: it may hold a password.
    let mut uri: AMQPUri = options
        .url
        .parse()
        .map_err(|error| Fault::needs_help(format!("the URL of the AMQP server can't be used: {error}")))?;
    if let Some(user) = &options.user {
        uri.authority.userinfo.username.clone_from(user);
    }
    if let Some(password) = &options.password {
        uri.authority.userinfo.password = password.read().map_err(|error| Fault::needs_help(error.to_string()))?;
    }
    uri.query.heartbeat = uri.query.heartbeat.or(Some(options.heartbeat_s));
    Ok(uri)
}

fn place(uri: &AMQPUri) -> Box<str> {
    format!("{}://{}:{}/{}", uri.scheme, uri.authority.host, uri.authority.port, uri.vhost.replace('/', "%2f")).into()
}

/// A connection over a socket that is ours to shut down.
async fn connect(
    uri: AMQPUri,
    connector: Option<RustlsConnector>,
    socket: Arc<Mutex<Option<TcpStream>>>,
    name: &str,
    step: Duration,
) -> lapin::Result<Connection> {
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    let runtime = lapin::runtime::default_runtime()?;
    let weak = Arc::downgrade(&socket);
    drop(socket);
    // Its types are known only here, from what it is given to.
    Connection::connector(
        uri,
        runtime,
        async move |uri, runtime| {
            let host = uri.authority.host.as_str();
            let stream = async {
                // Brackets are for URLs; resolvers don't want them.
                let name = host.trim_start_matches('[').trim_end_matches(']').to_owned();
                let addresses = runtime.to_socket_addrs((name.clone(), uri.authority.port));
                let stream = AsyncTcpStream::connect(&runtime, addresses).await?;
                // Nobody waits for the connection any more.
                let socket = weak.upgrade().ok_or(std::io::ErrorKind::Interrupted)?;
                if let AsyncTcpStream::Plain(stream) = &stream {
                    *socket.lock() = Some(stream.get_ref().as_fd().try_clone_to_owned()?.into());
                }
                match &connector {
                    Some(connector) => stream.into_rustls(connector, &name).await,
                    None => Ok(stream),
                }
            };
            match timeout(step, stream).await {
                Ok(stream) => Ok(stream?),
                Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
            }
        },
        properties,
    )
    .await
}

/// A channel with confirms, and an exchange to publish to.
async fn open(connection: &Connection, exchange: &ShortString) -> lapin::Result<Channel> {
    let mut channel = connection.create_channel().await?;
    // The default exchange and those of the protocol are always there, and can't be declared.
    if !exchange.as_str().is_empty() {
        let look = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
        if let Err(error) = declare(&channel, exchange, look).await {
            let code = error::said(&error).map(|(code, _)| code);
            if code != Some(404) {
                return Err(error);
            }
            // Its refusal has closed the channel.
            channel = connection.create_channel().await?;
            declare(&channel, exchange, make()).await?;
            tracing::info!(%exchange, "made the exchange");
        } else {
            tell_another_type(connection, exchange).await?;
        }
    }
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    Ok(channel)
}

fn make() -> ExchangeDeclareOptions {
    ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() }
}

/// Says so where an exchange that was there is of another type: consumers bind with wildcards, which mean nothing there. The protocol has no
/// question for it, but to declare it anew is refused with the reason. One may have its uses, so it isn't refused by us.
async fn tell_another_type(connection: &Connection, exchange: &ShortString) -> lapin::Result<()> {
    let channel = connection.create_channel().await?;
    match declare(&channel, exchange, make()).await {
        Ok(()) => channel.close(200, "".into()).await,
        Err(error) => {
            if let Some((_, words)) = error::said(&error).filter(|(_, words)| words.contains("inequivalent arg 'type'"))
            {
                tracing::warn!(%exchange, "it is no topic exchange, so bindings with * and # match nothing: {words}");
            }
            Ok(())
        }
    }
}

async fn declare(channel: &Channel, exchange: &ShortString, options: ExchangeDeclareOptions) -> lapin::Result<()> {
    channel.exchange_declare(exchange.clone(), ExchangeKind::Topic, options, FieldTable::default()).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    #[test]
    fn places_are_shown_without_secrets() {
        let options = AmqpOptions {
            url: "amqps://ops:hidden@mq.example.com/%2f".into(),
            password: Some(Secret::from("other")),
            ..AmqpOptions::default()
        };
        let uri = uri(&options).unwrap();
        assert_eq!(&*place(&uri), "amqps://mq.example.com:5671/%2f");
        assert_eq!(uri.authority.userinfo.username, "ops");
        assert_eq!(uri.authority.userinfo.password, "other");
        let shown = format!("{options:?}");
        assert!(!shown.contains("hidden") && !shown.contains("other"), "{shown}");
    }

    #[test]
    fn urls_that_cannot_be_used_are_refused_without_showing_them() {
        for url in ["http://ops:hidden@x", "amqp://ops:hidden@[", ""] {
            let fault = uri(&AmqpOptions { url: url.into(), ..AmqpOptions::default() }).unwrap_err();
            assert!(fault.needs_help && !fault.reason.contains("hidden"), "{url}: {fault}");
        }
    }
}
