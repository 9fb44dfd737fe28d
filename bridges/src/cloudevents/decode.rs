//! Events as they come in over HTTP.
//!
//! Which of the four ways it is follows from the content type and the headers, as the HTTP binding says:
//!
//! | content type | headers | |
//! | --- | --- | --- |
//! | `application/cloudevents+json` | | structured: one event, a JSON object |
//! | `application/cloudevents-batch+json` | | batch: a JSON array of them |
//! | anything else | `ce-id`, ... | binary: attributes in headers, the body is the data |
//! | anything else | only `ce-hookbuskey` | plain: the body is the payload, all else is ours |
//!
//! Every rule of the specification is checked here, once; what was taken in is a CloudEvent from then on. Attributes that hookbus
//! makes itself (`sequence`, `recordedtime`, `hookbusdropped`, `hookbusomitted`) are passed over. A batch is taken as a whole
//! or not at all.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use hookbus_broker::{MAX_KEYS_BYTES, Message, Origin};
use percent_encoding::percent_decode;
use serde::de::{Deserialize, Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;
use thiserror::Error;

use super::attributes::{Attributes, MAX_ATTRIBUTES, Members, Text, Value, check_name, check_value, read_value};
use super::data::{is_json, parameter};
use super::key::{decode_key, is_reserved};
use super::{BATCH, OWN_ATTRIBUTES, STRUCTURED};

/// The most events in one batch.
pub const MAX_BATCH_EVENTS: usize = 65_536;

/// The most bytes that the attributes of one event can have together; the broker's limits know nothing of them.
pub const MAX_ATTRIBUTES_BYTES: usize = 64 << 10;

/// An event that came in and may be published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// What subscribers' prefixes are compared with; never empty, and none of the reserved ones.
    pub key: Bytes,
    /// The data.
    pub payload: Bytes,
    /// What the event said about itself. An empty id stands for ours.
    pub origin: Option<Origin>,
}

impl From<Incoming> for Message {
    fn from(event: Incoming) -> Message {
        let message = Message::new(event.key, event.payload);
        match event.origin {
            Some(origin) => message.with_origin(origin),
            None => message,
        }
    }
}

/// Why what came in is no event that can be published; nothing of a batch is taken then. `Display` names the event's place
/// in its batch (from 0), the attribute, and what to do.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The content type says CloudEvents in a format or encoding that isn't known here. HTTP 415.
    #[error("content type {0:?}: of CloudEvents, only {STRUCTURED} and {BATCH} in UTF-8 are known; send one of these")]
    MediaType(String),
    /// No JSON, or not of the right shape. HTTP 400.
    #[error("{place}this is no CloudEvent in JSON: {source}", place = Place(*index))]
    Json {
        /// The event's place in the batch.
        index: Option<usize>,
        /// Where and why.
        source: serde_json::Error,
    },
    /// An attribute is missing or wrong, or the data is. HTTP 400.
    #[error("{place}attribute {name:?} {fault}", place = Place(*index))]
    Attribute {
        /// The event's place in the batch.
        index: Option<usize>,
        /// The attribute's name; `data` or `data_base64` for the data.
        name: String,
        /// What is wrong, and what to do.
        fault: String,
    },
    /// The key begins as only our own sources' keys do. HTTP 403.
    #[error(
        "{place}key {key:?}: keys that begin with \"EVENT \", \"RETRY\" or \"HOOKBUS \" are reserved; choose another hookbuskey",
        place = Place(*index)
    )]
    ReservedKey {
        /// The event's place in the batch.
        index: Option<usize>,
        /// The key.
        key: String,
    },
    /// More than can be taken at once. HTTP 413.
    #[error("{place}more than {limit} {what}; send less at once", place = Place(*index))]
    TooMuch {
        /// The event's place in the batch.
        index: Option<usize>,
        /// The limit.
        limit: usize,
        /// Of what.
        what: &'static str,
    },
}

impl DecodeError {
    /// The status that a server answers with.
    pub fn http_status(&self) -> u16 {
        match self {
            DecodeError::Json { .. } | DecodeError::Attribute { .. } => 400,
            DecodeError::ReservedKey { .. } => 403,
            DecodeError::TooMuch { .. } => 413,
            DecodeError::MediaType(_) => 415,
        }
    }
}

struct Place(Option<usize>);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |index| write!(f, "event {index} of the batch: "))
    }
}

/// Reads what a producer sent over HTTP: one event in structured mode, a batch, one event in binary mode, or without any
/// attributes a payload with its key in the header `ce-hookbuskey`. Headers that begin otherwise than `ce-` are passed over.
///
/// The key is the extension `hookbuskey`, percent-decoded; where it is absent, type and subject with a blank between, or the
/// type alone.
///
/// ```
/// use bytes::Bytes;
/// use hookbus_bridges::cloudevents::decode;
///
/// let body = Bytes::from(r#"{"specversion":"1.0","id":"7","source":"/shop","type":"order","subject":"9","data":[1]}"#);
/// let events = decode(Some("application/cloudevents+json"), [], &body)?;
/// assert_eq!(events[0].key, "order 9");
/// assert_eq!(events[0].payload, "[1]");
///
/// let events = decode(Some("text/plain"), [("ce-hookbuskey", &b"backup%20done"[..])], &Bytes::from("42"))?;
/// assert_eq!(events[0].key, "backup done");
/// # Ok::<_, hookbus_bridges::cloudevents::DecodeError>(())
/// ```
///
/// # Errors
/// [`DecodeError`]; it is about the request, never about us.
pub fn decode<'h>(
    content_type: Option<&str>,
    headers: impl IntoIterator<Item = (&'h str, &'h [u8])>,
    body: &Bytes,
) -> Result<Vec<Incoming>, DecodeError> {
    let content_type = content_type.map(str::trim).filter(|text| !text.is_empty());
    match mode(content_type)? {
        Mode::Structured => Ok(vec![structured(body, body, None)?]),
        Mode::Batch => batch(body),
        Mode::Binary => {
            let headers: Vec<_> = headers
                .into_iter()
                .filter_map(|(name, value)| Some((name.get(..3)?, name.get(3..)?, value)))
                .filter(|(start, ..)| start.eq_ignore_ascii_case("ce-"))
                .map(|(_, name, value)| (name.to_ascii_lowercase(), value))
                .collect();
            Ok(vec![binary(content_type, headers, body)?])
        }
    }
}

enum Mode {
    Structured,
    Batch,
    Binary,
}

fn mode(content_type: Option<&str>) -> Result<Mode, DecodeError> {
    const CLOUDEVENTS: &str = "application/cloudevents";
    let Some(text) = content_type else { return Ok(Mode::Binary) };
    if !text.get(..CLOUDEVENTS.len()).is_some_and(|start| start.eq_ignore_ascii_case(CLOUDEVENTS)) {
        return Ok(Mode::Binary);
    }
    let essence = text.split(';').next().unwrap_or_default().trim();
    let is_utf8 = parameter(text, "charset").is_none_or(|charset| charset.eq_ignore_ascii_case("utf-8"));
    if is_utf8 && essence.eq_ignore_ascii_case(STRUCTURED) {
        Ok(Mode::Structured)
    } else if is_utf8 && essence.eq_ignore_ascii_case(BATCH) {
        Ok(Mode::Batch)
    } else {
        Err(DecodeError::MediaType(text.to_owned()))
    }
}

// ---- Structured mode and batches

fn batch(body: &Bytes) -> Result<Vec<Incoming>, DecodeError> {
    let Elements { events, more } =
        serde_json::from_slice(body).map_err(|source| DecodeError::Json { index: None, source })?;
    if more {
        return Err(DecodeError::TooMuch { index: None, limit: MAX_BATCH_EVENTS, what: "events in one batch" });
    }
    let events = events.into_iter().enumerate();
    events.map(|(index, event)| structured(event.get().as_bytes(), body, Some(index))).collect()
}

/// The elements of a JSON array, up to the limit.
struct Elements<'a> {
    events: Vec<&'a RawValue>,
    /// There are more.
    more: bool,
}

impl<'de: 'a, 'a> Deserialize<'de> for Elements<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Elements<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a batch of CloudEvents: a JSON array")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut events = Vec::new();
                while events.len() < MAX_BATCH_EVENTS {
                    match seq.next_element()? {
                        Some(event) => events.push(event),
                        None => return Ok(Elements { events, more: false }),
                    }
                }
                let mut more = false;
                while seq.next_element::<IgnoredAny>()?.is_some() {
                    more = true;
                }
                Ok(Elements { events, more })
            }
        }
        deserializer.deserialize_seq(Read)
    }
}

/// Reads one event, whose text is a part of `body`.
fn structured(text: &[u8], body: &Bytes, index: Option<usize>) -> Result<Incoming, DecodeError> {
    let Members(members) = serde_json::from_slice(text).map_err(|source| DecodeError::Json { index, source })?;
    let mut event = Event::new(index);
    let (mut data, mut data_base64) = (None, None);
    for (name, value) in members {
        let slot = match &*name {
            "data" => &mut data,
            "data_base64" => &mut data_base64,
            _ => {
                if let Some(value) = read_value(value).map_err(|fault| event.fault(&name, fault))? {
                    event.add(name, value)?;
                } else {
                    check_name(&name).map_err(|fault| event.fault(&name, fault))?;
                }
                continue;
            }
        };
        if slot.replace(value).is_some() {
            return Err(event.fault(&name, "is there twice; leave one out"));
        }
    }
    // In JSON, an attribute that is null is not there; data that is null are data.
    let data_base64 = data_base64.filter(|value| value.get() != "null");
    let payload = match (data, data_base64) {
        (Some(_), Some(_)) => return Err(event.fault("data_base64", "is there besides data; leave one out")),
        (None, None) => Bytes::new(),
        (Some(data), None) => event.payload(data, body)?,
        (None, Some(data)) => {
            let bytes = serde_json::from_str::<Text<'_>>(data.get())
                .ok()
                .and_then(|Text(text)| base64_simd::forgiving_decode_to_vec(text.as_bytes()).ok());
            bytes
                .ok_or_else(|| event.fault("data_base64", "is no base64; encode it as RFC 4648 says, or send data"))?
                .into()
        }
    };
    event.finish(payload)
}

/// A part of the body. A small part is copied, so that it doesn't keep a large body in memory.
fn share(body: &Bytes, part: &[u8]) -> Bytes {
    if part.len() >= body.len() / 2 { body.slice_ref(part) } else { Bytes::copy_from_slice(part) }
}

// ---- Binary mode, and payloads without attributes

fn binary(content_type: Option<&str>, headers: Vec<(String, &[u8])>, body: &Bytes) -> Result<Incoming, DecodeError> {
    let mut event = Event::new(None);
    let is_plain = headers.iter().all(|(name, _)| name == "hookbuskey");
    for (name, value) in headers {
        if name == "datacontenttype" {
            return Err(event.fault(&name, "is a header; send it as the header Content-Type"));
        }
        let value = header_value(value).map_err(|fault| event.fault(&name, fault))?;
        event.add(Cow::Owned(name), Value::from(value))?;
    }
    if let Some(content_type) = content_type {
        event.add("datacontenttype".into(), Value::from(content_type))?;
    }
    if is_plain { event.finish_plain(body.clone()) } else { event.finish(body.clone()) }
}

/// The text of a header: quotes are taken off, and percent-encoding is undone, once.
fn header_value(value: &[u8]) -> Result<String, String> {
    let value = value.trim_ascii();
    let unquoted = match value {
        [b'"', inner @ .., b'"'] => {
            let mut text = Vec::with_capacity(inner.len());
            let mut bytes = inner.iter();
            while let Some(&byte) = bytes.next() {
                text.push(if byte == b'\\' { bytes.next().copied().unwrap_or(byte) } else { byte });
            }
            Cow::Owned(text)
        }
        plain => Cow::Borrowed(plain),
    };
    match percent_decode(&unquoted).decode_utf8() {
        Ok(text) => Ok(text.into_owned()),
        Err(_) => Err("is no UTF-8 after percent-decoding; encode the bytes of UTF-8".into()),
    }
}

// ---- One event

/// An event that is being read.
struct Event<'a> {
    index: Option<usize>,
    attributes: Attributes<'a>,
    bytes: usize,
}

impl<'a> Event<'a> {
    fn new(index: Option<usize>) -> Self {
        Event { index, attributes: Attributes::default(), bytes: 0 }
    }

    fn fault(&self, name: &str, fault: impl Into<String>) -> DecodeError {
        DecodeError::Attribute { index: self.index, name: name.to_owned(), fault: fault.into() }
    }

    /// Takes an attribute that is right.
    fn add(&mut self, name: Cow<'a, str>, value: Value<'a>) -> Result<(), DecodeError> {
        check_name(&name).and_then(|()| check_value(&name, &value)).map_err(|fault| self.fault(&name, fault))?;
        if self.attributes.get(&name).is_some() {
            return Err(self.fault(&name, "is there twice; leave one out"));
        }
        if self.attributes.iter().count() == MAX_ATTRIBUTES {
            return Err(DecodeError::TooMuch { index: self.index, limit: MAX_ATTRIBUTES, what: "attributes" });
        }
        self.bytes += name.len() + if let Value::String(text) = &value { text.len() } else { 0 };
        if self.bytes > MAX_ATTRIBUTES_BYTES {
            let what = "bytes of attributes";
            return Err(DecodeError::TooMuch { index: self.index, limit: MAX_ATTRIBUTES_BYTES, what });
        }
        self.attributes.push(name, value);
        Ok(())
    }

    /// The payload that the member `data` stands for.
    fn payload(&mut self, data: &RawValue, body: &Bytes) -> Result<Bytes, DecodeError> {
        let content_type = self.attributes.get("datacontenttype").map(ToString::to_string);
        let Some(content_type) = content_type.filter(|text| !is_json(text)) else {
            if self.attributes.get("datacontenttype").is_none() {
                // The specification wants it to be said when the event goes on.
                self.attributes.push("datacontenttype", "application/json");
            }
            return Ok(share(body, data.get().as_bytes()));
        };
        match serde_json::from_str(data.get()) {
            Ok(Text(Cow::Borrowed(text))) => Ok(share(body, text.as_bytes())),
            Ok(Text(Cow::Owned(text))) => Ok(text.into()),
            Err(_) => {
                let fault =
                    format!("is no string, as it must be for {content_type}; or say datacontenttype application/json");
                Err(self.fault("data", fault))
            }
        }
    }

    /// The event, if all that it needs is there.
    fn finish(mut self, payload: Bytes) -> Result<Incoming, DecodeError> {
        let required = |event: &mut Self, name: &str| match event.attributes.take(name) {
            Some(value) => Ok(value.to_string()),
            None => Err(event.fault(name, "is missing; every CloudEvent has specversion, id, source and type")),
        };
        required(&mut self, "specversion")?;
        let id = required(&mut self, "id")?;
        let source = required(&mut self, "source")?;
        let kind = required(&mut self, "type")?;
        let subject = self.attributes.get("subject").map(ToString::to_string);
        let key = match self.attributes.take("hookbuskey") {
            Some(key) => self.key(&decode_key(&key.to_string()))?,
            None => self.key(subject.map_or(kind.clone(), |subject| format!("{kind} {subject}")).as_bytes())?,
        };

        let mut attributes = Attributes::default();
        attributes.push("type", kind);
        for name in ["subject", "time", "datacontenttype", "dataschema"] {
            if let Some(value) = self.attributes.take(name) {
                attributes.push(name, value);
            }
        }
        for name in OWN_ATTRIBUTES {
            self.attributes.take(name);
        }
        attributes.append(self.attributes);
        let origin = Origin { id: id.into(), source: source.into(), attributes: to_text(&attributes) };
        Ok(Incoming { key, payload, origin: Some(origin) })
    }

    /// A payload that said nothing about itself but its key, and maybe its content type.
    fn finish_plain(mut self, payload: Bytes) -> Result<Incoming, DecodeError> {
        let Some(key) = self.attributes.take("hookbuskey") else {
            return Err(self.fault(
                "hookbuskey",
                "is missing; send the key as the header ce-hookbuskey, or a CloudEvent (content type application/cloudevents+json)",
            ));
        };
        let key = self.key(&decode_key(&key.to_string()))?;
        // What curl says of any data unless told otherwise.
        let unsaid = |value: &Value<'_>| value.to_string() == "application/x-www-form-urlencoded";
        let mut attributes = Attributes::default();
        if let Some(content_type) = self.attributes.take("datacontenttype").filter(|value| !unsaid(value)) {
            attributes.push("datacontenttype", content_type);
        }
        let is_said = attributes.iter().next().is_some();
        let origin = is_said.then(|| Origin { id: "".into(), source: "".into(), attributes: to_text(&attributes) });
        Ok(Incoming { key, payload, origin })
    }

    /// The key, if it may be published by anybody.
    fn key(&self, key: &[u8]) -> Result<Bytes, DecodeError> {
        if key.is_empty() {
            return Err(self.fault("hookbuskey", "is empty; give the event a key that subscribers can ask for"));
        }
        if key.len() > MAX_KEYS_BYTES {
            return Err(DecodeError::TooMuch { index: self.index, limit: MAX_KEYS_BYTES, what: "bytes in a key" });
        }
        if is_reserved(key) {
            let key = String::from_utf8_lossy(&key[..key.len().min(100)]).into_owned();
            return Err(DecodeError::ReservedKey { index: self.index, key });
        }
        Ok(Bytes::copy_from_slice(key))
    }
}

/// Attributes as an origin carries them.
fn to_text(attributes: &Attributes<'_>) -> Box<str> {
    let mut text = b"{".to_vec();
    attributes.write_members(&mut text);
    text.push(b'}');
    String::from_utf8(text).expect("strings are written as UTF-8").into()
}
