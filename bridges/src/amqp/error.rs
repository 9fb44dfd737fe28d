//! What went wrong, in words for those who run a bridge.

use std::io;

use lapin::protocol::AMQPErrorKind;
use lapin::{Error, ErrorKind};

use crate::delivery::Fault;
use crate::tls;

/// Reply codes of the protocol that pass by themselves: the server is being stopped, or has trouble of its own.
const PASSING: [u16; 4] = [320, 506, 541, 313];

/// What the server said, if this is what it said: the reply code and its words.
pub(super) fn said(error: &Error) -> Option<(u16, String)> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some((error.get_id(), error.get_message().to_string())),
        _ => None,
    }
}

/// Whether a channel is over, and the connection goes on.
pub(super) fn of_a_channel(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(error) if matches!(error.kind(), AMQPErrorKind::Soft(_)))
}

/// Why there is no connection.
pub(super) fn not_connected(place: &str, error: &Error) -> Fault {
    if let Some(trouble) = tls::trouble(error) {
        return Fault::needs_help(format!("{place}: {trouble}"));
    }
    match said(error) {
        Some((code, words)) if PASSING.contains(&code) => Fault::passing(format!("{place}: {words}")),
        Some((_, words)) if words.contains("Login was refused") => Fault::needs_help(format!(
            "{place}: {words} (check user and password; RabbitMQ lets `guest` in from its own machine only)"
        )),
        Some((_, words)) => Fault::needs_help(format!("{place}: {words}")),
        None => match error.kind() {
            ErrorKind::InvalidProtocolVersion(_) => Fault::needs_help(format!("{place}: {error}")),
            ErrorKind::ParsingError(_) => Fault::passing(format!(
                "{place} can't be reached: it answers, but not in AMQP; is a server of AMQP on this port?"
            )),
            _ => Fault::passing(format!("{place} can't be reached: {}", plain(error))),
        },
    }
}

/// Whether the other side hung up without a word.
pub(super) fn hung_up(error: &Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    let ErrorKind::IOError(cause) = error.kind() else { return false };
    tls::trouble(error).is_none()
        && matches!(cause.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}

/// Why a connection is over.
pub(super) fn ended(place: &str, error: &Error) -> Fault {
    match said(error) {
        // The exchange was deleted: the next connection makes it again, or says why it can't.
        Some((404, words)) => Fault::passing(format!("{place}: {words}")),
        Some((code, words)) if PASSING.contains(&code) => Fault::passing(format!("{place}: {words}")),
        Some((_, words)) => Fault::needs_help(format!("{place}: {words}")),
        None => Fault::passing(format!("the connection to {place} is gone: {}", plain(error))),
    }
}

/// The library's words without what it puts before them.
fn plain(error: &Error) -> String {
    match error.kind() {
        ErrorKind::IOError(error) => error.to_string(),
        kind => Error::from(kind.clone()).to_string(),
    }
}

/// The routing key that may not be used, of the words `ACCESS_REFUSED - access to topic '<key>' in exchange ... refused`.
pub(super) fn denied_topic(words: &str) -> Option<&str> {
    let (_, rest) = words.split_once("access to topic '")?;
    Some(rest.split_once('\'')?.0)
}

/// How much the server takes, of the words `PRECONDITION_FAILED - message size <bytes> is larger than configured max size <bytes>`.
pub(super) fn max_size(words: &str) -> Option<usize> {
    if !words.contains("message size") {
        return None;
    }
    let digits = |word: &str| word.trim_matches(|c: char| !c.is_ascii_digit()).parse().ok();
    words.split_ascii_whitespace().rev().find_map(digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_concerns_one_message_is_found_in_the_servers_words() {
        let denied = "ACCESS_REFUSED - access to topic 'hookbus.custom.a' in exchange 'hookbus' in vhost '/' refused for user 'b'";
        assert_eq!(denied_topic(denied), Some("hookbus.custom.a"));
        assert_eq!(
            denied_topic("ACCESS_REFUSED - access to exchange 'hookbus' in vhost '/' refused for user 'b'"),
            None
        );
        let large = "PRECONDITION_FAILED - message size 5000 is larger than configured max size 4096";
        assert_eq!(max_size(large), Some(4096));
        assert_eq!(max_size("PRECONDITION_FAILED - inequivalent arg 'type'"), None);
    }
}
