//! What is stored of a dead letter: its head as JSON, and the payload apart.

use bytes::Bytes;
use hookbus_broker::{EventId, LogId, Message, Offset, Origin, Received, Timestamp};
use serde::{Deserialize, Serialize};

use super::DeadLetter;
use crate::cloudevents::{decode_key, encode_key};

/// Everything but the payload. Fields are added, never changed in meaning; one that is missing has its default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) bridge: Box<str>,
    /// Milliseconds since 1970.
    died: u64,
    reason: Box<str>,
    attempts: u32,
    #[serde(default)]
    pub(super) replays: u64,
    /// The event's id.
    log: u64,
    offset: u64,
    /// Milliseconds since 1970.
    time: u64,
    #[serde(default)]
    tag: u8,
    /// As [`encode_key`] writes them.
    keys: Vec<Box<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    origin: Option<StoredOrigin>,
    pub(super) payload_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct StoredOrigin {
    id: Box<str>,
    source: Box<str>,
    attributes: Box<str>,
}

impl Head {
    pub(super) fn of(bridge: &str, died: Timestamp, reason: &str, attempts: u32, event: &Received) -> Self {
        Head {
            bridge: bridge.into(),
            died: died.as_millis(),
            reason: reason.into(),
            attempts,
            replays: 0,
            log: event.id().log.get(),
            offset: event.offset().get(),
            time: event.time().as_millis(),
            tag: event.tag(),
            keys: event.keys().map(|key| encode_key(key).into()).collect(),
            origin: event.origin().map(|Origin { id, source, attributes }| StoredOrigin {
                id: id.clone(),
                source: source.clone(),
                attributes: attributes.clone(),
            }),
            payload_bytes: event.payload().len() as u64,
        }
    }

    /// The bus has refused it again.
    pub(super) fn refused(&mut self, died: Timestamp, reason: &str, attempts: u32) {
        self.died = died.as_millis();
        self.reason = reason.into();
        self.attempts = self.attempts.saturating_add(attempts);
    }

    /// What the letter counts against the limits, with a payload of that size.
    pub(super) fn size_bytes(&self, payload_bytes: usize) -> u64 {
        let origin = self.origin.as_ref();
        let origin = origin.map_or(0, |origin| origin.id.len() + origin.source.len() + origin.attributes.len());
        let keys: usize = self.keys.iter().map(|key| key.len()).sum();
        (256 + self.bridge.len() + self.reason.len() + keys + origin + payload_bytes) as u64
    }

    pub(super) fn letter(&self, number: u64, retrying: bool) -> DeadLetter {
        DeadLetter {
            number,
            bridge: self.bridge.clone(),
            died: Timestamp::from_millis(self.died),
            reason: self.reason.clone(),
            attempts: self.attempts,
            replays: self.replays,
            retrying,
            id: self.id(),
            keys: self.keys.iter().map(|key| decode_key(key).into()).collect(),
            payload_bytes: self.payload_bytes,
        }
    }

    /// The event as it was.
    pub(super) fn event(&self, payload: Bytes) -> Received {
        let mut keys = self.keys.iter().map(|key| decode_key(key));
        let mut message = Message::new(keys.next().unwrap_or_default(), payload);
        for key in keys {
            message = message.with_key(key);
        }
        if let Some(StoredOrigin { id, source, attributes }) = self.origin.clone() {
            message = message.with_origin(Origin { id, source, attributes });
        }
        Received::restored(self.id(), message.with_tag(self.tag).with_time(Timestamp::from_millis(self.time)))
    }

    fn id(&self) -> EventId {
        EventId { log: LogId::new(self.log), offset: Offset::new(self.offset) }
    }
}
