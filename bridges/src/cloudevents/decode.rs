//! Events as they come in over HTTP.

use bytes::Bytes;
use hookbus_broker::{Message, Origin};
use thiserror::Error;

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
    /// The content type says CloudEvents in a format that isn't known here. HTTP 415.
    #[error("content type {0:?}: of CloudEvents only {structured} and {batch} are known", structured = super::STRUCTURED, batch = super::BATCH)]
    MediaType(String),
    /// No JSON, or not of the right shape. HTTP 400.
    #[error("{place}the body can't be read as JSON: {source}", place = Place(*index))]
    Json {
        /// Its place in the batch.
        index: Option<usize>,
        /// Where and why.
        source: serde_json::Error,
    },
    /// An attribute is missing or wrong, or the data is. HTTP 400.
    #[error("{place}attribute {name:?}: {fault}", place = Place(*index))]
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
    #[error("more than {limit} {what}; send less at once")]
    TooMuch {
        /// The limit.
        limit: usize,
        /// Of what.
        what: &'static str,
    },
}

struct Place(Option<usize>);

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.map_or(Ok(()), |index| write!(f, "event {index} of the batch: "))
    }
}

/// Reads what a producer sent over HTTP: one event in structured mode, a batch, one event in binary mode, or without any
/// attributes a payload with its key in the header `ce-hookbuskey`.
///
/// # Errors
/// [`DecodeError`]; it is about the request, never about us.
pub fn decode<'h>(
    content_type: Option<&str>,
    headers: impl IntoIterator<Item = (&'h str, &'h [u8])>,
    body: &Bytes,
) -> Result<Vec<Incoming>, DecodeError> {
    let _ = content_type;
    let key = headers.into_iter().find(|(name, _)| name.eq_ignore_ascii_case("ce-hookbuskey"));
    let Some((_, key)) = key else {
        return Err(DecodeError::Attribute { index: None, name: "hookbuskey".into(), fault: "is missing".into() });
    };
    Ok(vec![Incoming { key: Bytes::copy_from_slice(key), payload: body.clone(), origin: None }])
}
