//! Connecting, and the stream.

use std::sync::Arc;

use async_nats::jetstream::context::{RequestError, RequestErrorKind};
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::{Config, DiscardPolicy, StorageType};
use async_nats::jetstream::{self, Context, ContextBuilder, ErrorCode};
use async_nats::{Client, Event, ServerAddr};
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::config::{Login, Mode, NatsOptions, StreamOptions};
use super::login::{Gate, Identity};
use super::receipts::{NatsReceipts, Notice};
use super::sender::{MAX_IN_FLIGHT, NatsSender};
use super::{encode, error};
use crate::delivery::{Bus, Fault};

/// How many notices of a connection may wait to be looked at. What is above that is passed over, save that the connection is over.
const NOTICES: usize = 1024;

/// NATS as a bus.
#[derive(Debug)]
pub struct NatsBus {
    options: NatsOptions,
    /// Whether the log was told that the stream's limits are its own.
    limits_told: bool,
}

impl NatsBus {
    /// A bus; nothing happens before it is told to connect.
    pub fn new(options: NatsOptions) -> Self {
        NatsBus { options, limits_told: false }
    }
}

impl Bus for NatsBus {
    type Sender = NatsSender;
    type Receipts = NatsReceipts;

    const SEPARATOR: char = '.';

    fn acknowledges(&self) -> bool {
        matches!(self.options.mode, Mode::JetStream(_))
    }

    async fn connect(&mut self) -> Result<(NatsSender, NatsReceipts), Fault> {
        let options = &self.options;
        let Connection { client, place, who, lost, mut notices } = connection(options).await?;
        let sent = Arc::new(Mutex::new(super::sent::Sent::default()));
        let mut receipts =
            NatsReceipts::new(notices_of(&mut notices), sent.clone(), place.clone(), who, options.step_timeout);
        let mut inbox = None;
        if let Mode::JetStream(stream) = &options.mode {
            let context = ContextBuilder::new().timeout(options.step_timeout).build(client.clone());
            let mut api = Api { context, receipts: &mut receipts, limits_told: &mut self.limits_told };
            let subjects = api.stream(stream, &options.root).await?;
            let prefix = client.new_inbox();
            let acks = client
                .subscribe(format!("{prefix}.*"))
                .await
                .map_err(|error| Fault::passing(format!("{place}: no inbox for acknowledgements: {error}")))?;
            receipts.acknowledged_by(acks, prefix.len() + 1, &stream.name, subjects);
            inbox = Some(prefix);
        }
        Ok((NatsSender { client, inbox, sent, lost, place }, receipts))
    }
}

/// A connection, and what it tells.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) client: Client,
    /// The servers, without secrets.
    pub(super) place: Arc<str>,
    /// Who we are to them.
    pub(super) who: &'static str,
    /// True when it is over.
    pub(super) lost: watch::Receiver<bool>,
    notices: mpsc::Receiver<Notice>,
}

/// One connection: when it is over, it stays so.
pub(super) async fn connection(options: &NatsOptions) -> Result<Connection, Fault> {
    let (servers, place) = servers(&options.servers)?;
    let identity = Identity::read(&options.login, servers.first())?;
    let who = identity.kind;
    if let (Login::Anonymous, Some(server)) = (&options.login, servers.iter().skip(1).find(|s| s.has_user_pass())) {
        let reason = format!("only the first URL may name a user: take it out of the one of {}", server.host());
        return Err(Fault::needs_help(reason));
    }
    let tls_wanted = options.tls != Default::default() || servers.iter().any(ServerAddr::tls_required);
    let gate = Gate::default();
    let (lost_sender, lost) = watch::channel(false);
    let (notice_sender, notices) = mpsc::channel(NOTICES);
    let mut connect = identity
        .options(gate.clone())
        .name(&options.name)
        .require_tls(tls_wanted)
        .connection_timeout(options.step_timeout)
        .ping_interval(options.ping_interval)
        .custom_inbox_prefix(&options.inbox_prefix)
        .subscription_capacity(2 * MAX_IN_FLIGHT)
        .max_reconnects(servers.len())
        .reconnect_delay_callback(|_| std::time::Duration::ZERO)
        .ignore_discovered_servers()
        .event_callback(move |event| {
            tell(&event, &lost_sender, &notice_sender);
            std::future::ready(())
        });
    connect = match options.tls.load().await {
        Ok(config) => connect.tls_client_config(config),
        Err(error) if tls_wanted => return Err(Fault::needs_help(error.to_string())),
        // Nobody has asked for TLS: a system without trusted certificates is no obstacle.
        Err(_) => connect,
    };
    let steps = u32::try_from(servers.len()).unwrap_or(u32::MAX).saturating_add(1);
    let bare: Vec<ServerAddr> = servers.into_iter().map(without_user).collect();
    let client = match timeout(options.step_timeout.saturating_mul(steps), connect.connect(bare)).await {
        Ok(Ok(client)) => client,
        Ok(Err(error)) => return Err(error::not_connected(&place, who, &error)),
        Err(_) => {
            return Err(Fault::passing(format!(
                "{place} can't be reached: it says nothing; is a server of NATS on this port?"
            )));
        }
    };
    gate.close();
    Ok(Connection { client, place, who, lost, notices })
}

/// The receiver itself, once it is known that there is a connection.
fn notices_of(notices: &mut mpsc::Receiver<Notice>) -> mpsc::Receiver<Notice> {
    std::mem::replace(notices, mpsc::channel(1).1)
}

/// Passes on what the library says about the connection. It must not wait: what waits behind it would be dropped.
fn tell(event: &Event, lost: &watch::Sender<bool>, notices: &mpsc::Sender<Notice>) {
    let notice = match event {
        Event::Disconnected | Event::Closed => {
            lost.send_replace(true);
            Notice::Over
        }
        Event::ServerError(said) => Notice::Said(error::words(said)),
        Event::SlowConsumer(_) => Notice::Overflow,
        Event::Connected | Event::LameDuckMode | Event::Draining | Event::ClientError(_) => return,
    };
    // Where it has no room: that the connection is over is also seen from the end of this channel, and the rest can be missed.
    let _ = notices.try_send(notice);
}

/// The addresses of servers, and how to speak of them: without secrets.
fn servers(urls: &[String]) -> Result<(Vec<ServerAddr>, Arc<str>), Fault> {
    let mut servers = Vec::with_capacity(urls.len());
    let mut names = Vec::with_capacity(urls.len());
    for url in urls {
        // The URL itself is not shown: it may hold a password.
        let server: ServerAddr = url
            .parse()
            .map_err(|error| Fault::needs_help(format!("the URL of a NATS server can't be used: {error}")))?;
        if server.host().is_empty() {
            return Err(Fault::needs_help("the URL of a NATS server can't be used: it has no host"));
        }
        if server.is_websocket() {
            return Err(Fault::needs_help("NATS over WebSocket is not offered: use nats:// or tls://"));
        }
        names.push(format!("{}://{}:{}", server.scheme(), server.host(), server.port()));
        servers.push(server);
    }
    if servers.is_empty() {
        return Err(Fault::needs_help("there is no URL of a NATS server"));
    }
    Ok((servers, names.join(", ").into()))
}

/// The address alone: the library shows it in its log.
fn without_user(server: ServerAddr) -> ServerAddr {
    let mut url = server.clone().into_inner();
    // It fails for URLs without a host, which are none of a server's.
    let cleared = url.set_username("").is_ok() && url.set_password(None).is_ok();
    match ServerAddr::from_url(url) {
        Ok(bare) if cleared => bare,
        _ => server,
    }
}

/// What the server is asked about streams.
struct Api<'a> {
    context: Context,
    receipts: &'a mut NatsReceipts,
    limits_told: &'a mut bool,
}

/// An answer of the server's.
enum Answer<T> {
    /// What was asked for.
    Found(T),
    /// It refuses.
    Refused(jetstream::Error),
    /// We may not ask that; the server's words.
    Denied(String),
    /// Nobody answers such questions there.
    Nobody,
}

/// What is read of a stream's description. The rest differs between versions of the server.
#[derive(serde::Deserialize)]
struct Description {
    config: Facts,
}

#[derive(serde::Deserialize)]
struct Facts {
    #[serde(default)]
    subjects: Vec<String>,
    #[serde(default)]
    no_ack: bool,
    #[serde(default)]
    sealed: bool,
    /// In nanoseconds; 0 is no limit.
    #[serde(default)]
    max_age: u64,
    /// -1 is no limit.
    #[serde(default)]
    max_bytes: i64,
}

impl Facts {
    /// Says once where the limits of a stream that was there aren't those that it would be made with: what is too old or too much goes
    /// by the stream's own.
    fn tell_limits(&self, options: &StreamOptions, told: &mut bool) {
        let (wanted, limit) = (description(options, ""), |number: i64| if number > 0 { number } else { 0 });
        let same =
            u128::from(self.max_age) == wanted.max_age.as_nanos() && limit(self.max_bytes) == limit(wanted.max_bytes);
        if same || std::mem::replace(told, true) {
            return;
        }
        tracing::info!(
            stream = %options.name,
            "it has limits of its own (max_age {} s, max_bytes {}; 0 is none), which stay; stream_max_age and stream_max_bytes are \
             for a stream that is made",
            self.max_age / 1_000_000_000,
            limit(self.max_bytes)
        );
    }
}

impl Api<'_> {
    /// Finds the stream, or makes it, and tells the subjects that it takes; none where we are not allowed to look.
    async fn stream(&mut self, options: &StreamOptions, root: &str) -> Result<Vec<String>, Fault> {
        let place = self.receipts.place();
        let name = &options.name;
        let facts = match self.ask::<_, Description>(format!("STREAM.INFO.{name}"), &()).await? {
            Answer::Found(found) => {
                found.config.tell_limits(options, self.limits_told);
                found.config
            }
            // An account that may publish and nothing else: then the acknowledgements have to tell whether all is well.
            Answer::Denied(_) => return Ok(Vec::new()),
            Answer::Refused(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                self.make(options, root).await?
            }
            Answer::Refused(error) => return Err(refused(&place, name, &error)),
            Answer::Nobody => return Err(no_jetstream(&place)),
        };
        let help = |what: String| Err(Fault::needs_help(format!("{place}: stream {name} {what}")));
        if facts.no_ack {
            return help("doesn't acknowledge (no_ack): change that, or set jetstream = false".into());
        }
        if facts.sealed {
            return help("is sealed and takes nothing any more: configure another one".into());
        }
        let below = format!("{root}.>");
        if !facts.subjects.iter().any(|subject| encode::meet(subject, &below)) {
            let subjects = facts.subjects.join(", ");
            return help(format!("takes nothing of {below}: its subjects are {subjects}; add some, or set root"));
        }
        Ok(facts.subjects)
    }

    async fn make(&mut self, options: &StreamOptions, root: &str) -> Result<Facts, Fault> {
        let place = self.receipts.place();
        let name = &options.name;
        match self.ask::<_, Description>(format!("STREAM.CREATE.{name}"), &description(options, root)).await? {
            Answer::Found(made) => {
                tracing::info!(stream = %name, server = %place, "made the stream");
                Ok(made.config)
            }
            Answer::Refused(error) => Err(refused(&place, name, &error)),
            Answer::Denied(said) => {
                Err(Fault::needs_help(format!("{place}: stream {name} doesn't exist, and we may not make it: {said}")))
            }
            Answer::Nobody => Err(no_jetstream(&place)),
        }
    }

    /// Asks, and looks meanwhile whether the server complains: it doesn't answer what is not permitted.
    async fn ask<Q: Serialize, A: DeserializeOwned>(
        &mut self,
        subject: String,
        question: &Q,
    ) -> Result<Answer<A>, Fault> {
        let place = self.receipts.place();
        let permission = format!("$JS.API.{subject}");
        let complaint = async {
            loop {
                let said = self.receipts.complaint().await?;
                if error::denied_subject(&said) == Some(&permission) {
                    return Ok::<_, Fault>(said);
                }
            }
        };
        let answer: Result<Response<A>, RequestError> = tokio::select! {
            said = complaint => return Ok(Answer::Denied(said?)),
            answer = self.context.request(subject, question) => answer,
        };
        match answer {
            Ok(Response::Ok(found)) => Ok(Answer::Found(found)),
            Ok(Response::Err { error }) => Ok(Answer::Refused(error)),
            Err(error) if error.kind() == RequestErrorKind::NoResponders => Ok(Answer::Nobody),
            Err(error) => Err(Fault::passing(format!("{place} doesn't tell about its streams: {error}"))),
        }
    }
}

/// The stream that is made where there is none.
fn description(options: &StreamOptions, root: &str) -> Config {
    let subjects = if options.subjects.is_empty() { vec![format!("{root}.>")] } else { options.subjects.clone() };
    let duplicate_window = match options.max_age.is_zero() {
        true => options.duplicate_window,
        false => options.duplicate_window.min(options.max_age),
    };
    Config {
        name: options.name.clone(),
        subjects,
        storage: StorageType::File,
        discard: DiscardPolicy::Old,
        max_age: options.max_age,
        max_bytes: if options.max_bytes == 0 { -1 } else { i64::try_from(options.max_bytes).unwrap_or(i64::MAX) },
        max_messages: -1,
        max_messages_per_subject: -1,
        max_consumers: -1,
        num_replicas: options.replicas,
        duplicate_window,
        ..Config::default()
    }
}

fn refused(place: &str, name: &str, error: &jetstream::Error) -> Fault {
    match error.error_code() {
        // No leader yet, or another one was faster to make it.
        ErrorCode::CLUSTER_NOT_AVAILABLE | ErrorCode::STREAM_NAME_EXIST => {
            Fault::passing(format!("{place}: stream {name}: {error}"))
        }
        ErrorCode::JETSTREAM_NOT_ENABLED | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => no_jetstream(place),
        ErrorCode::STREAM_SUBJECT_OVERLAP => Fault::needs_help(format!(
            "{place}: stream {name} can't be made, because another one has its subjects; configure that one's name, or other \
             subjects: {error}"
        )),
        _ => Fault::needs_help(format!("{place}: stream {name} can't be used: {error}")),
    }
}

fn no_jetstream(place: &str) -> Fault {
    Fault::needs_help(format!(
        "{place} has no JetStream, or not for this account: enable it there, or set jetstream = false for delivery at most once"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_shown_without_secrets() {
        let urls = ["nats://ops:hidden@10.0.0.1:4222".to_owned(), "tls://b.example.com".to_owned()];
        let (servers, place) = servers(&urls).unwrap();
        assert_eq!(&*place, "nats://10.0.0.1:4222, tls://b.example.com:4222");
        assert!(!format!("{:?}", without_user(servers[0].clone())).contains("hidden"));
    }

    #[test]
    fn urls_that_cannot_be_used_are_refused_without_showing_them() {
        for url in ["http://ops:hidden@x", "ws://ops:hidden@x", "nats://ops:hidden@[", ""] {
            let fault = servers(&[url.to_owned()]).unwrap_err();
            assert!(fault.needs_help && !fault.reason.contains("hidden"), "{url}: {fault}");
        }
    }
}
