//! Events as they leave: attributes and data.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use hookbus_broker::Received;

/// What names the producers of our events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// The host that this runs on: events of hookbus itself, and of OpenNebula where no zone is given.
    pub host: String,
    /// The name of the OpenNebula zone.
    pub zone: Option<String>,
}

/// Makes CloudEvents of messages. Made once for a daemon.
#[derive(Clone, Debug)]
pub struct Encoder {
    opennebula: Box<str>,
    hookbus: Box<str>,
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// A string, URI, URI-reference or timestamp, or binary as base64.
    String(Cow<'a, str>),
    /// A whole number.
    Integer(i32),
    /// True or false.
    Boolean(bool),
}

/// The canonical string, as headers carry it before they are percent-encoded.
impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::String(text) => f.write_str(text),
            Value::Integer(number) => number.fmt(f),
            Value::Boolean(truth) => truth.fmt(f),
        }
    }
}

/// The attributes of one event, those that it has, in the order in which they are written: `specversion` first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes<'a> {
    list: Vec<(Cow<'a, str>, Value<'a>)>,
}

impl<'a> Attributes<'a> {
    /// Name and value of each.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value<'a>)> {
        self.list.iter().map(|(name, value)| (name.as_ref(), value))
    }

    /// The attribute of this name.
    pub fn get(&self, name: &str) -> Option<&Value<'a>> {
        self.list.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }
}

/// The data of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Data<'a> {
    /// The attribute `datacontenttype`, where it is known.
    pub content_type: Option<Cow<'a, str>>,
    /// The bytes: what the body is in binary mode.
    pub body: Cow<'a, [u8]>,
}

impl Encoder {
    /// An encoder for these producers.
    pub fn new(sources: Sources) -> Self {
        let zone = sources.zone.as_deref().unwrap_or(&sources.host);
        Encoder {
            opennebula: format!("/opennebula/{zone}").into(),
            hookbus: format!("/hookbus/{}", sources.host).into(),
        }
    }

    /// The attributes of an event. `dropped` tells how many messages were dropped just before it.
    pub fn attributes<'a>(&'a self, event: &'a Received, dropped: Option<u64>) -> Attributes<'a> {
        let _ = (event, dropped, &self.opennebula, &self.hookbus);
        Attributes { list: Vec::new() }
    }

    /// The data of an event, as binary mode sends it; none where the payload is empty.
    pub fn data<'a>(&self, event: &'a Received) -> Option<Data<'a>> {
        Some(Data { content_type: None, body: raw(event) })
    }

    /// An event in structured mode: one JSON object on one line, without a line feed.
    pub fn structured(&self, event: &Received, dropped: Option<u64>) -> Bytes {
        let _ = (event, dropped);
        Bytes::from_static(b"{}")
    }
}

/// The payload of an event, decoded where it is base64.
pub fn raw(event: &Received) -> Cow<'_, [u8]> {
    Cow::Borrowed(event.payload())
}

/// The payload of an event as on ZeroMQ: base64 text that oned wrote as it is, anything else encoded.
pub fn base64(event: &Received) -> Cow<'_, [u8]> {
    Cow::Borrowed(event.payload())
}
