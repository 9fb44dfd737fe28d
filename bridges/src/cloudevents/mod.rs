//! Events as CloudEvents 1.0, in and out: what HTTP, NATS, MQTT and AMQP agree about.
//!
//! An event leaves in one of four [`Format`]s. [`Encoder`] makes the first two: the attributes of an event, and its data as JSON;
//! [`raw`] and [`base64()`] are the others. What comes in over HTTP is read by [`decode`], which says precisely what is wrong with
//! what is no CloudEvent.
//!
//! | attribute | value |
//! | --- | --- |
//! | `id`, `time` | the event's id, and when hookbus took it in |
//! | `source` | `/opennebula/<zone or host>`, `/hookbus/<host>` |
//! | `type` | `org.opennebula.api`, `org.opennebula.state.vm`, `.host`, `.image` or `.net`, `org.opennebula.retry`, `org.opennebula.other` (without a header), `org.hookbus.hook`, `org.hookbus.custom` |
//! | `subject` | the API call, `vm/42`, `hook/<name>`; else none |
//! | `datacontenttype` | `application/json` for OpenNebula's events and hook results, else what the publisher said |
//! | `sequence` | the offset in the broker |
//! | `hookbuskey` | the key, of several the one that tells most; see [`encode_key`] |
//! | `recordedtime` | imported events only: when hookbus took it in |
//! | `hookbusdropped` | how many messages were dropped just before this one; at most 2147483647 is told |
//! | `hookbusomitted` | kept for events that are too large for a bus and go without data |
//!
//! # Identity
//!
//! An event that was born here has the id that the broker gave it and our source. An imported CloudEvent leaves with its own
//! id, source, type, subject, time and extensions: they travel as the message's [`Origin`](hookbus_broker::Origin), whose
//! `attributes` are the text of a JSON object with those attributes. An origin whose id is empty stands for ours, so that what
//! was published without attributes still keeps its content type.
//!
//! # Guarantees
//!
//! - An imported event leaves as it came: payload byte for byte (JSON that had line ends without its white space, since
//!   an event is one line), attributes in value and order. Not kept: attributes that are `null`, data that is an empty string,
//!   the difference between a string and its canonical form where binary mode was between, and what it said under names that
//!   are ours.
//! - Every message can leave, whatever it holds: a payload that is not what its content type says leaves as base64.
//! - Nothing here waits or keeps anything. An event that leaves needs about twice its size while it is written; one of
//!   OpenNebula besides its [`Document`](crate::opennebula::Document).

mod attributes;
mod data;
mod decode;
mod encode;
mod json;
mod key;

use serde::{Deserialize, Serialize};

pub use attributes::{Attributes, Value, encode_header};
pub use data::{Data, base64, raw};
pub use decode::{DecodeError, Incoming, MAX_ATTRIBUTES_BYTES, MAX_BATCH_EVENTS, decode};
pub use encode::{Encoder, Sources, ganeti_source, rfc3339};
#[cfg(feature = "delivery")]
pub(crate) use key::telling;
pub use key::{decode_key, encode_key, is_reserved};

/// The media type of one event as JSON.
pub const STRUCTURED: &str = "application/cloudevents+json";

/// The media type of several.
pub const BATCH: &str = "application/cloudevents-batch+json";

/// Attributes that are ours to set. What an imported event says under these names is passed over; `hookbuskey` has become its key.
const OWN_ATTRIBUTES: [&str; 5] = ["sequence", "recordedtime", "hookbuskey", "hookbusdropped", "hookbusomitted"];

/// How a bridge writes events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Format {
    /// CloudEvents in structured mode: one JSON object holds attributes and data.
    #[default]
    #[serde(rename = "cloudevents")]
    CloudEvents,
    /// CloudEvents in binary mode: attributes in headers, the data alone as the body.
    #[serde(rename = "cloudevents-binary")]
    CloudEventsBinary,
    /// The payload alone: OpenNebula's XML, decoded.
    #[serde(rename = "raw")]
    Raw,
    /// The payload as on ZeroMQ.
    #[serde(rename = "base64")]
    Base64,
}
