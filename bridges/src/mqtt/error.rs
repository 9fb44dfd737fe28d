//! What a server's codes mean for a letter, and for a connection.
//!
//! The names are those of the standards. What decides is whether it can go well when the same is tried again:
//! a quota fills and empties, an access rule or a size stays. Codes that nobody has defined are taken to pass: it is better to
//! send a letter twice than to give it up for a number that we don't know.

use crate::delivery::{Fault, Rejection};

use super::config::Version;
use super::decode::Said;

/// What a PUBACK with a code of 0x80 or more says about a letter.
pub(super) fn rejection(code: u8, said: &Said) -> Rejection {
    let (name, permanent) = match code {
        0x80 => ("unspecified error", false),
        0x83 => ("implementation specific error", false),
        0x87 => ("not authorized; the server's access rules don't let us write there", true),
        0x90 => ("topic name invalid", true),
        0x91 => ("packet identifier in use", false),
        // Not in the standard's list for PUBACK; it is what mosquitto says to a payload over its message_size_limit.
        0x95 => ("packet too large", true),
        0x97 => ("quota exceeded", false),
        0x99 => ("payload format invalid", true),
        _ => ("an unknown reason", false),
    };
    let reason = format!("the server refused the message: {name} ({code:#04x}){}", in_words(said));
    if permanent { Rejection::Permanent(reason) } else { Rejection::Transient(reason) }
}

/// Why a CONNECT was not welcome.
pub(super) fn refused(version: Version, code: u8, said: &Said) -> Fault {
    let (name, advice, help) = match (version, code) {
        (Version::V311, 1) => ("unacceptable protocol version", "the server doesn't speak MQTT 3.1.1", true),
        (Version::V311, 2) => ("identifier rejected", "set another client_id", true),
        (Version::V311, 3) => ("server unavailable", "", false),
        (Version::V311, 4) => ("bad user name or password", "check user and password", true),
        (Version::V311, 5) => ("not authorized", "check user, password and the server's access rules", true),
        // A server that doesn't know version 5 answers with a code of 3.1.1.
        (Version::V5, 0x01 | 0x84) => ("unsupported protocol version", "set version = \"3.1.1\"", true),
        (Version::V5, 0x80) => ("unspecified error", "", false),
        (Version::V5, 0x81) => ("malformed packet", "", true),
        (Version::V5, 0x82) => ("protocol error", "", true),
        (Version::V5, 0x83) => ("implementation specific error", "", false),
        (Version::V5, 0x85) => ("client identifier not valid", "set another client_id", true),
        (Version::V5, 0x86) => ("bad user name or password", "check user and password", true),
        (Version::V5, 0x87) => ("not authorized", "check user, password and the server's access rules", true),
        (Version::V5, 0x88) => ("server unavailable", "", false),
        (Version::V5, 0x89) => ("server busy", "", false),
        (Version::V5, 0x8A) => ("banned", "ask who runs the server", true),
        (Version::V5, 0x8C) => {
            ("bad authentication method", "the server wants another way of signing in than a password", true)
        }
        (Version::V5, 0x90) => ("topic name invalid", "it is the status topic that the server doesn't take", true),
        (Version::V5, 0x95) => ("packet too large", "", true),
        (Version::V5, 0x97) => ("quota exceeded", "", false),
        (Version::V5, 0x9A) => ("retain not supported", "turn the status topic and retain_state off", true),
        (Version::V5, 0x9B) => ("quality of service not supported", "set qos = 0", true),
        (Version::V5, 0x9C) => ("use another server", "", true),
        (Version::V5, 0x9D) => ("server moved", "set its new url", true),
        (Version::V5, 0x9F) => ("connection rate exceeded", "", false),
        _ => ("an unknown reason", "", false),
    };
    let mut reason = format!("the server refused the connection: {name} ({code:#04x}){}", in_words(said));
    if !advice.is_empty() {
        reason = format!("{reason}; {advice}");
    }
    Fault { reason, needs_help: help }
}

/// Why the server hung up, in MQTT 5.
pub(super) fn disconnected(code: u8, said: &Said) -> Fault {
    let (name, help) = match code {
        0x00 => ("without a reason", false),
        0x80 => ("unspecified error", false),
        0x81 => ("malformed packet", false),
        0x82 => ("protocol error", false),
        0x83 => ("implementation specific error", false),
        0x87 => ("not authorized", true),
        0x89 => ("server busy", false),
        0x8B => ("server shutting down", false),
        0x8D => ("keep alive timeout", false),
        // It would go on for ever between the two, each throwing out the other.
        0x8E => ("session taken over: somebody else uses the same client_id", true),
        0x90 => ("topic name invalid", false),
        0x93 => ("receive maximum exceeded", false),
        0x94 => ("topic alias invalid", false),
        0x95 => ("packet too large", false),
        0x96 => ("message rate too high", false),
        0x97 => ("quota exceeded", false),
        0x98 => ("administrative action", false),
        0x99 => ("payload format invalid", false),
        0x9A => ("retain not supported", true),
        0x9B => ("quality of service not supported", true),
        0x9C => ("use another server", true),
        0x9D => ("server moved", true),
        0x9F => ("connection rate exceeded", false),
        0xA0 => ("maximum connect time", false),
        _ => ("an unknown reason", false),
    };
    let reason = format!("the server closed the connection: {name} ({code:#04x}){}", in_words(said));
    Fault { reason, needs_help: help }
}

/// What the server itself says, behind what we make of its code.
fn in_words(said: &Said) -> String {
    let reason = said.reason.as_ref().map(|reason| format!(", in its words \"{reason}\"")).unwrap_or_default();
    let reference = said.reference.as_ref().map(|server| format!(", namely \"{server}\"")).unwrap_or_default();
    reason + &reference
}
