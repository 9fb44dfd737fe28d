//! `[[bridge]]`: buses that events are published to.
//!
//! What all of them have in common stands in [`Delivery`] and [`TlsFiles`], what only one has in a struct of its own.

use std::collections::BTreeMap;
use std::path::PathBuf;

use hookbus_bridges::webhook::{TemplateKind, check_method};
use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize};

use super::{ByteSize, Overflow, Period, Url};

/// One bridge.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct BridgeConfig {
    /// Its name; no other bridge has it.
    pub(crate) name: String,
    /// What it is.
    #[serde(flatten)]
    pub(crate) kind: BridgeKind,
    /// Where it is.
    #[serde(skip_serializing_if = "Url::is_in_a_file")]
    pub(crate) url: Url,
    /// Which events it gets, and how they wait.
    #[serde(flatten)]
    pub(crate) delivery: Delivery,
    /// How the connection is secured.
    #[serde(flatten)]
    pub(crate) tls: TlsFiles,
}

/// Which events go to a bridge, in which form, and how they wait.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct Delivery {
    /// The beginnings of the keys that it gets; the empty one is everything.
    pub(crate) prefixes: Vec<String>,
    /// What happens at the high-water mark. Unless it is said, `spill` where the bus acknowledges, else `drop-newest`.
    pub(crate) overflow: Overflow,
    /// How many events may wait for it; 0 is no limit.
    pub(crate) hwm: usize,
    /// The same in bytes; 0 is no limit.
    pub(crate) hwm_bytes: ByteSize,
    /// How many events may be on their way to the bus without its confirmation; at least 1.
    #[serde(deserialize_with = "super::sections::at_least_one")]
    pub(crate) in_flight: usize,
    /// How long the bus may take to confirm before the connection is given up and everything unconfirmed is sent again.
    pub(crate) ack_timeout: Period,
    /// How an event is written.
    pub(crate) format: EventFormat,
    /// What names on the bus begin with.
    #[serde(deserialize_with = "root")]
    pub(crate) root: String,
}

impl Default for Delivery {
    fn default() -> Self {
        Delivery {
            prefixes: vec![String::new()],
            overflow: Overflow::DropNewest,
            hwm: 10_000,
            hwm_bytes: ByteSize::mib(64),
            in_flight: 1000,
            ack_timeout: Period::seconds(30),
            format: EventFormat::default(),
            root: "hookbus".into(),
        }
    }
}

/// How an event is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum EventFormat {
    /// CloudEvents 1.0 as one JSON object.
    #[default]
    Cloudevents,
    /// CloudEvents with its attributes in headers.
    CloudeventsBinary,
    /// What the cloud wrote: OpenNebula's XML, Ganeti's environment as a JSON object.
    Raw,
    /// As on ZeroMQ.
    Base64,
}

/// The files that secure a connection, in PEM.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct TlsFiles {
    /// The certificates that the server's one is checked with; the system's unless set.
    pub(crate) ca_file: Option<PathBuf>,
    /// Our own certificate, where the server asks for one.
    pub(crate) cert_file: Option<PathBuf>,
    /// Its key.
    pub(crate) key_file: Option<PathBuf>,
}

/// What a bridge is, and the keys that only this type has.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(crate) enum BridgeKind {
    /// NATS, with JetStream unless told otherwise.
    Nats(NatsConfig),
    /// MQTT 5 or 3.1.1.
    Mqtt(MqttConfig),
    /// AMQP 0.9.1, such as RabbitMQ.
    Amqp(AmqpConfig),
    /// HTTP requests to somebody else's server.
    Webhook(WebhookConfig),
}

impl BridgeKind {
    /// What the type is called.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            BridgeKind::Nats(_) => "nats",
            BridgeKind::Mqtt(_) => "mqtt",
            BridgeKind::Amqp(_) => "amqp",
            BridgeKind::Webhook(_) => "webhook",
        }
    }

    /// Whether the bus confirms what it has got.
    pub(crate) fn acknowledges(&self) -> bool {
        match self {
            BridgeKind::Nats(nats) => nats.jetstream,
            BridgeKind::Mqtt(mqtt) => mqtt.qos > 0,
            BridgeKind::Amqp(_) | BridgeKind::Webhook(_) => true,
        }
    }
}

/// `type = "nats"`. Of user with password, token, nkey and credentials there is one at most.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct NatsConfig {
    /// Whether events go to a stream, which acknowledges.
    pub(crate) jetstream: bool,
    /// The stream; it is made if it doesn't exist, with what follows.
    pub(crate) stream: String,
    /// What it takes in; everything below the root unless set.
    pub(crate) subjects: Vec<String>,
    /// How old events may become in it; 0 is no limit.
    pub(crate) stream_max_age: Period,
    /// What it may hold before the oldest go; 0 is no limit.
    pub(crate) stream_max_bytes: ByteSize,
    /// The user, if not named in the URL.
    pub(crate) user: Option<String>,
    /// A file with the user's password.
    pub(crate) password_file: Option<PathBuf>,
    /// A file with a token.
    pub(crate) token_file: Option<PathBuf>,
    /// A file with the seed of an nkey.
    pub(crate) nkey_file: Option<PathBuf>,
    /// A file with credentials, as `nsc` writes it.
    pub(crate) creds_file: Option<PathBuf>,
}

impl Default for NatsConfig {
    fn default() -> Self {
        NatsConfig {
            jetstream: true,
            stream: "HOOKBUS".into(),
            subjects: vec!["hookbus.>".into()],
            stream_max_age: Period::days(7),
            stream_max_bytes: ByteSize::mib(1024),
            user: None,
            password_file: None,
            token_file: None,
            nkey_file: None,
            creds_file: None,
        }
    }
}

/// `type = "mqtt"`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct MqttConfig {
    /// 0: at most once, 1: at least once, acknowledged.
    #[serde(deserialize_with = "qos")]
    pub(crate) qos: u8,
    /// The version that is spoken.
    pub(crate) version: MqttVersion,
    /// Who we are to the server; made of the name and the host's name unless set.
    pub(crate) client_id: Option<String>,
    /// Whether the server keeps the last state of each object for those who subscribe later.
    pub(crate) retain_state: bool,
    /// The user, if not named in the URL.
    pub(crate) user: Option<String>,
    /// A file with the user's password.
    pub(crate) password_file: Option<PathBuf>,
}

impl Default for MqttConfig {
    fn default() -> Self {
        MqttConfig {
            qos: 1,
            version: MqttVersion::default(),
            client_id: None,
            retain_state: false,
            user: None,
            password_file: None,
        }
    }
}

/// The versions of MQTT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) enum MqttVersion {
    /// 5
    #[default]
    #[serde(rename = "5")]
    V5,
    /// 3.1.1
    #[serde(rename = "3.1.1")]
    V311,
}

/// `type = "amqp"`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct AmqpConfig {
    /// The topic exchange; it is made, durable, if it doesn't exist.
    pub(crate) exchange: String,
    /// What happens to an event that no queue is bound for.
    pub(crate) unroutable: Unroutable,
    /// What the names of headers begin with, for the format `cloudevents-binary`.
    pub(crate) header_prefix: String,
    /// The user, if not named in the URL.
    pub(crate) user: Option<String>,
    /// A file with the user's password.
    pub(crate) password_file: Option<PathBuf>,
}

impl Default for AmqpConfig {
    fn default() -> Self {
        AmqpConfig {
            exchange: "hookbus".into(),
            unroutable: Unroutable::default(),
            header_prefix: "cloudEvents_".into(),
            user: None,
            password_file: None,
        }
    }
}

/// What happens to an event that no queue is bound for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Unroutable {
    /// It is counted.
    #[default]
    Ignore,
    /// It is kept as a dead letter.
    DeadLetter,
}

/// `type = "webhook"`. Of token and user with password there is one at most, and of `body` and `body_file`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct WebhookConfig {
    /// A file with the URL, where it is secret as a whole; instead of `url`.
    pub(crate) url_file: Option<PathBuf>,
    /// The method.
    #[serde(deserialize_with = "method")]
    pub(crate) method: String,
    /// Which events are sent, in jq's language.
    pub(crate) when: Option<String>,
    /// The body, a template; the event in its format unless set.
    pub(crate) body: Option<String>,
    /// A file with it.
    pub(crate) body_file: Option<PathBuf>,
    /// Its media type; JSON unless set.
    pub(crate) content_type: Option<String>,
    /// The largest body that is sent.
    pub(crate) body_max_bytes: ByteSize,
    /// A file with the token that is sent as `Authorization: Bearer`.
    pub(crate) token_file: Option<PathBuf>,
    /// The user, sent as `Authorization: Basic`, if not named in the URL.
    pub(crate) user: Option<String>,
    /// A file with the user's password.
    pub(crate) password_file: Option<PathBuf>,
    /// How long an answer may take.
    pub(crate) timeout: Period,
    /// Answers that mean that the server has it, besides 200 to 299.
    pub(crate) accept_status: Vec<u16>,
    /// Answers that make an event a dead letter, besides the usual ones.
    pub(crate) reject_status: Vec<u16>,
    /// Headers; their values are templates.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) headers: BTreeMap<String, String>,
    /// What templates know as `secrets.NAME`: the file that it is in, or `env:VARIABLE`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) secrets: BTreeMap<String, String>,
}

impl Default for WebhookConfig {
    fn default() -> Self {
        WebhookConfig {
            url_file: None,
            method: "POST".into(),
            when: None,
            body: None,
            body_file: None,
            content_type: None,
            body_max_bytes: ByteSize::mib(1),
            token_file: None,
            user: None,
            password_file: None,
            timeout: Period::seconds(10),
            accept_status: Vec::new(),
            reject_status: Vec::new(),
            headers: BTreeMap::new(),
            secrets: BTreeMap::new(),
        }
    }
}

impl WebhookConfig {
    /// The names that templates know secrets by.
    pub(crate) fn secret_names(&self) -> Vec<&str> {
        self.secrets.keys().map(String::as_str).collect()
    }

    /// What the body is.
    pub(crate) fn body_kind(&self) -> TemplateKind {
        TemplateKind::of_body(self.content_type.as_deref().unwrap_or("application/json"))
    }
}

fn method<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let method = String::deserialize(deserializer)?;
    check_method(&method).map_err(D::Error::custom)?;
    Ok(method)
}

fn qos<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u8, D::Error> {
    match u8::deserialize(deserializer)? {
        qos @ (0 | 1) => Ok(qos),
        2 => Err(D::Error::custom("2 is not offered: events carry an id by which repetitions can be told; use 1")),
        other => Err(D::Error::custom(format!("{other} is no quality of service; 0 or 1 is expected"))),
    }
}

/// A root is the first part of names on three kinds of bus, so it is made of what is plain on all of them.
fn root<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let root = String::deserialize(deserializer)?;
    let plain =
        |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
    if root.len() > 64 || !root.split('.').all(plain) {
        return Err(D::Error::custom(format!(
            "`{}` can't be the beginning of names: write words of letters, digits, - and _, with dots between them, at most \
             64 characters",
            root.escape_debug()
        )));
    }
    Ok(root)
}
