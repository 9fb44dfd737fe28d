//! Packets that we write: rumqttc's, of one version or the other, checked before they are made.
//!
//! What rumqttc leaves to its caller, and what is done about it here:
//!
//! - a text longer than 65,535 bytes is written with a length that is cut, and all that follows is out of step: [`check`] refuses it;
//! - a topic is only searched for wildcards: control characters, NUL above all, end the connection at the server: refused, too;
//! - the size of a PUBLISH without a packet id is told two bytes short: sizes are taken with one;
//! - a packet that is larger than the server takes ends the connection, and would end the next one: refused.

use bytes::{Bytes, BytesMut};
use rumqttc::mqttbytes::{QoS as Qos4, v4};
use rumqttc::v5::mqttbytes::{QoS as Qos5, v5};
use thiserror::Error;

use crate::delivery::Fault;

use super::config::{MqttOptions, Qos, Version};
use super::status;

/// The longest text that MQTT can carry.
pub(super) const MAX_TEXT_BYTES: usize = u16::MAX as usize;

/// How many levels a topic may have. The standard knows no limit, but a server that has one ends the connection: EMQX beyond 128,
/// mosquitto beyond 200. No event has more than a dozen, except one published by hand under a key that was made for it.
const MAX_LEVELS: usize = 128;

/// The largest length that a packet can say it has.
pub(super) const MAX_REMAINING_BYTES: usize = 268_435_455;

/// What a message has besides its topic and payload; MQTT 5 only.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Properties<'a> {
    /// Left out where it is empty.
    pub(super) content_type: &'a str,
    pub(super) user: &'a [(Box<str>, Box<str>)],
}

/// Why a message can't be sent to this server at all.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum Unfit {
    #[error("the topic is empty")]
    NoTopic,
    #[error("the topic has {0} bytes; MQTT takes {MAX_TEXT_BYTES}")]
    LongTopic(usize),
    #[error("the topic has {0} levels; servers take {MAX_LEVELS} or a few more, and hang up on who has more")]
    DeepTopic(usize),
    #[error("the topic has a wildcard or a character that MQTT forbids: {0:?}")]
    Topic(char),
    #[error(
        "the property `{0}` has a name or value that MQTT can't carry: longer than {MAX_TEXT_BYTES} bytes, or with a NUL"
    )]
    Property(String),
    #[error("the message makes a packet of {bytes} bytes and the server takes {limit}")]
    TooLarge { bytes: usize, limit: usize },
}

/// Whether a topic can be published to.
pub(super) fn check_topic(topic: &str) -> Result<(), Unfit> {
    if topic.is_empty() {
        return Err(Unfit::NoTopic);
    }
    if topic.len() > MAX_TEXT_BYTES {
        return Err(Unfit::LongTopic(topic.len()));
    }
    let levels = topic.split('/').count();
    if levels > MAX_LEVELS {
        return Err(Unfit::DeepTopic(levels));
    }
    match topic.chars().find(|&c| matches!(c, '+' | '#') || c.is_control()) {
        Some(wrong) => Err(Unfit::Topic(wrong)),
        None => Ok(()),
    }
}

/// Whether a text can be a property, or a part of CONNECT.
fn is_carried(text: &str) -> bool {
    text.len() <= MAX_TEXT_BYTES && !text.contains('\0')
}

/// A PUBLISH, ready to be written.
#[derive(Debug)]
pub(super) enum Publish {
    V5(v5::Publish),
    V311(v4::Publish),
}

impl Publish {
    /// A message. `limit` is the longest packet that the server takes.
    pub(super) fn new(
        options: &MqttOptions,
        topic: &str,
        retain: bool,
        properties: Properties<'_>,
        payload: Bytes,
        limit: usize,
    ) -> Result<Self, Unfit> {
        check_topic(topic)?;
        let acknowledged = options.qos == Qos::AtLeastOnce;
        let (publish, bytes) = match options.version {
            Version::V5 => {
                if !is_carried(properties.content_type) {
                    return Err(Unfit::Property("content type".into()));
                }
                if let Some((name, _)) =
                    properties.user.iter().find(|(name, value)| !is_carried(name) || !is_carried(value))
                {
                    return Err(Unfit::Property(name.chars().take(40).collect()));
                }
                let properties = (!properties.content_type.is_empty() || !properties.user.is_empty()).then(|| {
                    v5::PublishProperties {
                        content_type: (!properties.content_type.is_empty()).then(|| properties.content_type.to_owned()),
                        user_properties: properties
                            .user
                            .iter()
                            .map(|(name, value)| (name.to_string(), value.to_string()))
                            .collect(),
                        ..v5::PublishProperties::default()
                    }
                });
                let publish = v5::Publish {
                    dup: false,
                    qos: if acknowledged { Qos5::AtLeastOnce } else { Qos5::AtMostOnce },
                    retain,
                    topic: Bytes::copy_from_slice(topic.as_bytes()),
                    pkid: u16::from(acknowledged),
                    payload,
                    properties,
                };
                let bytes = publish.size();
                (Publish::V5(publish), bytes)
            }
            Version::V311 => {
                let qos = if acknowledged { Qos4::AtLeastOnce } else { Qos4::AtMostOnce };
                let mut publish = v4::Publish::from_bytes(topic, qos, payload);
                publish.retain = retain;
                publish.pkid = u16::from(acknowledged);
                let bytes = publish.size();
                (Publish::V311(publish), bytes)
            }
        };
        let limit = limit.min(MAX_REMAINING_BYTES);
        if bytes > limit {
            return Err(Unfit::TooLarge { bytes, limit });
        }
        Ok(publish)
    }

    /// Sends it at QoS 0 whatever the options say, for what nobody waits for.
    pub(super) fn unacknowledged(mut self) -> Self {
        match &mut self {
            Publish::V5(publish) => publish.qos = Qos5::AtMostOnce,
            Publish::V311(publish) => publish.qos = Qos4::AtMostOnce,
        }
        self.put_id(0);
        self
    }

    /// Appends it; at QoS 1 under this packet id.
    pub(super) fn put(mut self, packet_id: u16, out: &mut BytesMut) {
        self.put_id(packet_id);
        match self {
            Publish::V5(publish) => publish.write(out).map_err(drop),
            Publish::V311(publish) => publish.write(out).map_err(drop),
        }
        .expect("rumqttc refuses only what is too long, and a packet id of zero at QoS 1");
    }

    fn put_id(&mut self, packet_id: u16) {
        match self {
            Publish::V5(publish) => publish.pkid = packet_id,
            Publish::V311(publish) => publish.pkid = packet_id,
        }
    }
}

/// Appends CONNECT, with clean start and this password. `receive_limit` is the longest packet in bytes that the server may send; only MQTT 5 can
/// say it.
pub(super) fn put_connect(
    options: &MqttOptions,
    password: Option<String>,
    receive_limit: u32,
    out: &mut BytesMut,
) -> Result<(), Fault> {
    let wrong =
        |what: &str| Fault::needs_help(format!("the {what} is empty, too long or has a NUL; MQTT can't carry it"));
    if options.client_id.is_empty() || !is_carried(&options.client_id) {
        return Err(wrong("client id"));
    }
    let user = options.user.clone().unwrap_or_default();
    let password = password.unwrap_or_default();
    if !is_carried(&user) || !is_carried(&password) {
        return Err(wrong("user or password"));
    }
    if let Some(topic) = &options.status_topic {
        check_topic(topic).map_err(|unfit| Fault::needs_help(format!("the status topic: {unfit}")))?;
    }
    let keep_alive = options.keep_alive_s().ok_or_else(|| {
        Fault::needs_help(format!("a keep alive of {:?} can't be; it is from 1 to 65535 s", options.keep_alive))
    })?;
    let has_login = !user.is_empty() || !password.is_empty();
    let at_least_once = options.qos == Qos::AtLeastOnce;
    let will = options.status_topic.as_deref().map(|topic| (topic, status::lost(&options.client_id)));
    let written = match options.version {
        Version::V5 => {
            let connect = v5::Connect {
                keep_alive,
                client_id: options.client_id.clone(),
                clean_start: true,
                properties: Some(v5::ConnectProperties {
                    max_packet_size: Some(receive_limit),
                    ..v5::ConnectProperties::new()
                }),
            };
            let will = will.map(|(topic, message)| v5::LastWill {
                topic: Bytes::copy_from_slice(topic.as_bytes()),
                message: message.into(),
                qos: if at_least_once { Qos5::AtLeastOnce } else { Qos5::AtMostOnce },
                retain: true,
                properties: None,
            });
            connect.write(&will, &has_login.then(|| v5::Login::new(user, password)), out).map_err(drop)
        }
        Version::V311 => {
            let mut connect = v4::Connect::new(&options.client_id);
            connect.keep_alive = keep_alive;
            connect.clean_session = true;
            connect.last_will = will.map(|(topic, message)| {
                let qos = if at_least_once { Qos4::AtLeastOnce } else { Qos4::AtMostOnce };
                v4::LastWill::new(topic, message, qos, true)
            });
            connect.login = has_login.then(|| v4::Login::new(user, password));
            connect.write(out).map_err(drop)
        }
    };
    written.map(drop).map_err(|()| wrong("client id, status topic, user or password"))
}

/// Appends PINGREQ, which is the same in both versions.
pub(super) fn put_ping(out: &mut BytesMut) {
    v5::PingReq::write(out).expect("rumqttc refuses none");
}

/// Appends a DISCONNECT that says that all is well, the same in both versions; the server then forgets the will.
pub(super) fn put_disconnect(out: &mut BytesMut) {
    v5::Disconnect::new(v5::DisconnectReasonCode::NormalDisconnection).write(out).expect("rumqttc refuses none");
}
