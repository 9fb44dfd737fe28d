//! Commands: frames between the two engines, of which sockets know nothing.
//!
//! ```text
//! +-------------+------+------+        READY:             metadata
//! | name length | name | data |        ERROR:             reason length (1 byte), reason
//! +-------------+------+------+        SUBSCRIBE, CANCEL: the prefix
//!     1 byte                           PING:              time to live in tenths of a second (2 bytes), context
//!                                      PONG:              the context of the PING
//! ```

use std::time::Duration;

use super::error::{ProtocolError, printable};
use super::frame::{COMMAND, put_frame, put_head};

/// The longest context of a PING that is sent back, in bytes; what is longer is cut, as libzmq does.
pub const MAX_CONTEXT_BYTES: usize = 16;

/// A command that was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// Ends the handshake and brings the metadata.
    Ready(&'a [u8]),
    /// The peer gives up and says why.
    Error(&'a [u8]),
    /// The peer subscribes to a prefix.
    Subscribe(&'a [u8]),
    /// The peer takes a subscription back.
    Cancel(&'a [u8]),
    /// The peer wants to know whether we live.
    Ping {
        /// For how long the peer will be silent at most; zero says nothing.
        ttl: Duration,
        /// What it wants to see in the PONG.
        context: &'a [u8],
    },
    /// The peer lives.
    Pong,
    /// One that we don't know. To be passed over outside the handshake, so that newer peers can talk to us.
    Unknown {
        /// Its name.
        name: &'a [u8],
    },
}

impl<'a> Command<'a> {
    /// Parses the body of a command frame.
    ///
    /// # Errors
    /// When it is not well-formed.
    pub fn parse(body: &'a [u8]) -> Result<Self, ProtocolError> {
        let bad = |command, what| ProtocolError::BadCommand { command, what };
        let (name, data) = body
            .split_first()
            .and_then(|(&length, behind)| behind.split_at_checked(usize::from(length)))
            .ok_or(bad("nameless", "it is shorter than its name"))?;
        Ok(match name {
            b"READY" => Command::Ready(data),
            b"ERROR" => {
                let reason = data.split_first().and_then(|(&length, behind)| behind.get(..usize::from(length)));
                Command::Error(reason.ok_or(bad("ERROR", "it is shorter than its reason"))?)
            }
            b"SUBSCRIBE" => Command::Subscribe(data),
            b"CANCEL" => Command::Cancel(data),
            b"PING" => {
                let (ttl, context) = data.split_first_chunk().ok_or(bad("PING", "its time to live is missing"))?;
                let context = context.get(..MAX_CONTEXT_BYTES).unwrap_or(context);
                Command::Ping { ttl: Duration::from_millis(u64::from(u16::from_be_bytes(*ttl)) * 100), context }
            }
            b"PONG" => Command::Pong,
            _ => Command::Unknown { name },
        })
    }

    /// The name, safe to show.
    pub fn name(&self) -> String {
        match self {
            Command::Ready(_) => "READY".into(),
            Command::Error(_) => "ERROR".into(),
            Command::Subscribe(_) => "SUBSCRIBE".into(),
            Command::Cancel(_) => "CANCEL".into(),
            Command::Ping { .. } => "PING".into(),
            Command::Pong => "PONG".into(),
            Command::Unknown { name } => printable(name),
        }
    }
}

fn put_command(out: &mut Vec<u8>, name: &str, data: &[u8]) {
    put_head(out, COMMAND, 1 + name.len() + data.len());
    out.push(u8::try_from(name.len()).expect("our command names are short"));
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(data);
}

/// Appends SUBSCRIBE, as a 3.1 peer expects it.
pub fn put_subscribe(out: &mut Vec<u8>, prefix: &[u8]) {
    put_command(out, "SUBSCRIBE", prefix);
}

/// Appends CANCEL, as a 3.1 peer expects it.
pub fn put_cancel(out: &mut Vec<u8>, prefix: &[u8]) {
    put_command(out, "CANCEL", prefix);
}

/// Appends a subscription in the form of ZMTP 3.0: a message that begins with 1 (subscribe) or 0 (cancel).
pub fn put_subscription_message(out: &mut Vec<u8>, subscribe: bool, prefix: &[u8]) {
    put_head(out, 0, 1 + prefix.len());
    out.push(u8::from(subscribe));
    out.extend_from_slice(prefix);
}

/// Appends PING. The time to live is cut to what two bytes hold, 109 minutes.
pub fn put_ping(out: &mut Vec<u8>, ttl: Duration, context: &[u8]) {
    let ttl = u16::try_from(ttl.as_millis() / 100).unwrap_or(u16::MAX);
    put_command(out, "PING", &[&ttl.to_be_bytes(), context].concat());
}

/// Appends PONG.
pub fn put_pong(out: &mut Vec<u8>, context: &[u8]) {
    put_command(out, "PONG", context);
}

/// Appends ERROR; the reason is cut to 255 bytes.
pub fn put_error(out: &mut Vec<u8>, reason: &str) {
    let reason = reason.as_bytes();
    let reason = reason.get(..255).unwrap_or(reason);
    let mut body = vec![5];
    body.extend_from_slice(b"ERROR");
    body.push(u8::try_from(reason.len()).unwrap_or(u8::MAX));
    body.extend_from_slice(reason);
    put_frame(out, COMMAND, &body);
}

/// The metadata that both sides give each other at the end of the handshake.
///
/// ```text
/// +-------------+------+--------------+-------+
/// | name length | name | value length | value |  ...
/// +-------------+------+--------------+-------+
///     1 byte              4 bytes
/// ```
///
/// Names are compared without regard to case. Only those that we use are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// `Socket-Type`.
    pub socket_type: Vec<u8>,
    /// `Identity`: what the peer's user has named its socket.
    pub identity: Vec<u8>,
}

impl Metadata {
    /// Parses metadata.
    ///
    /// # Errors
    /// When a property is cut off.
    pub fn parse(mut data: &[u8]) -> Result<Self, ProtocolError> {
        let bad = ProtocolError::BadCommand { command: "READY", what: "its metadata is cut off" };
        let mut metadata = Metadata::default();
        while let Some((&length, behind)) = data.split_first() {
            let (name, behind) = behind.split_at_checked(usize::from(length)).ok_or_else(|| bad.clone())?;
            let (length, behind) = behind.split_first_chunk().ok_or_else(|| bad.clone())?;
            let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
            let (value, behind) = behind.split_at_checked(length).ok_or_else(|| bad.clone())?;
            if name.eq_ignore_ascii_case(b"Socket-Type") {
                metadata.socket_type = value.to_vec();
            } else if name.eq_ignore_ascii_case(b"Identity") {
                metadata.identity = value.to_vec();
            }
            data = behind;
        }
        Ok(metadata)
    }

    /// Appends READY with this metadata, as libzmq writes it: the types that can be addressed tell an identity, even an
    /// empty one.
    pub fn put_ready(&self, out: &mut Vec<u8>) {
        let mut data = Vec::new();
        put_property(&mut data, "Socket-Type", &self.socket_type);
        if !self.identity.is_empty() || matches!(&self.socket_type[..], b"REQ" | b"DEALER" | b"ROUTER") {
            put_property(&mut data, "Identity", &self.identity);
        }
        put_command(out, "READY", &data);
    }
}

fn put_property(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.push(u8::try_from(name.len()).expect("our property names are short"));
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(&u32::try_from(value.len()).expect("our property values are short").to_be_bytes());
    out.extend_from_slice(value);
}
