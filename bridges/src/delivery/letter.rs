//! An event as it goes to a bus.

use bytes::Bytes;
use hookbus_broker::Received;

use super::name::EventName;

/// An event as it goes to a bus: made once, sent as often as it takes.
#[derive(Clone, Debug)]
pub struct Letter {
    /// By what repetitions are told: the event's id, for one of somebody else's with its source before it. The same each time, except
    /// that an operator's retry ends in `;replay=<n>`.
    pub id: Box<str>,
    /// The parts of its name.
    pub name: EventName,
    /// The name as this bus writes it, cut to the bus's limit.
    pub address: Box<str>,
    /// The body.
    pub body: Bytes,
    /// The body's media type.
    pub content_type: Box<str>,
    /// In binary mode the attributes of the event, save its content type; else none. The values are plain text: a bus encodes
    /// them as its own binding says.
    pub attributes: Vec<(Box<str>, Box<str>)>,
    /// The CloudEvents type, such as `org.opennebula.state.vm`.
    pub kind: Box<str>,
    /// The event itself.
    pub event: Received,
}
