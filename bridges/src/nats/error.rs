//! What went wrong, in words for those who run a bridge.

use std::error::Error;

use async_nats::{ConnectError, ConnectErrorKind, ServerError};

use crate::delivery::{Fault, Rejection};
use crate::tls;

/// Why there is no connection. `who` is what we said to be.
pub(super) fn not_connected(place: &str, who: &str, error: &ConnectError) -> Fault {
    if let Some(trouble) = tls::trouble(error) {
        return Fault::needs_help(format!("{place}: {trouble}"));
    }
    let said = server_error(error);
    match (error.kind(), said) {
        (ConnectErrorKind::AuthorizationViolation, _) => {
            Fault::needs_help(format!("{place} doesn't let {who} in: Authorization Violation"))
        }
        (_, Some(said)) => refused(place, who, &said),
        (ConnectErrorKind::ServerParse | ConnectErrorKind::Tls | ConnectErrorKind::Authentication, None) => {
            Fault::needs_help(format!("{place}: {error}"))
        }
        (ConnectErrorKind::TimedOut, None) => {
            Fault::passing(format!("{place} can't be reached: it says nothing; is a server of NATS on this port?"))
        }
        (_, None) => Fault::passing(format!("{place} can't be reached: {error}")),
    }
}

/// What the server says before it hangs up.
pub(super) fn refused(place: &str, who: &str, said: &str) -> Fault {
    let lower = said.to_ascii_lowercase();
    let reason = format!("{place} says to {who}: {said}");
    match ["authoriz", "authentic", "permission", "not allowed", "revoked", "expired", "tls"]
        .iter()
        .any(|word| lower.contains(word))
    {
        true => Fault::needs_help(reason),
        false => Fault::passing(reason),
    }
}

fn server_error(error: &ConnectError) -> Option<String> {
    let mut next: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(said) = error.downcast_ref::<ServerError>() {
            return Some(words(said));
        }
        next = error.source();
    }
    None
}

/// The server's words, without the library's.
pub(super) fn words(said: &ServerError) -> String {
    match said {
        ServerError::AuthorizationViolation => "Authorization Violation".into(),
        ServerError::Other(said) => said.clone(),
        other @ ServerError::SlowConsumer(_) => other.to_string(),
    }
}

/// What the stream says instead of an acknowledgement. `code` is like HTTP's, `err_code` the server's own.
pub(super) fn refusal(code: u16, err_code: u32, description: &str) -> Rejection {
    let reason = format!("{description} (error code {err_code})");
    match err_code {
        // The message exceeds the stream's max_msg_size; headers exceed 64 KiB.
        10054 | 10097 => Rejection::Permanent(reason),
        // A sealed stream takes nothing at all until somebody makes it another one: no fault of the letter's.
        10109 => Rejection::Transient(reason),
        // 4xx speak of what was sent, 5xx of the server's state: no space, no leader, too busy.
        _ if (400..500).contains(&code) && code != 408 && code != 429 => Rejection::Permanent(reason),
        _ => Rejection::Transient(reason),
    }
}

/// The subject that may not be published to, of the words `Permissions Violation for Publish to "<subject>"`.
pub(super) fn denied_subject(said: &str) -> Option<&str> {
    let begin = "permissions violation for publish to ";
    let head = said.get(..begin.len())?;
    if !head.eq_ignore_ascii_case(begin) {
        return None;
    }
    Some(said[begin.len()..].trim().trim_matches('"'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_told_apart() {
        let permanent = |code, err_code| matches!(refusal(code, err_code, "x"), Rejection::Permanent(_));
        assert!(permanent(400, 10054));
        assert!(permanent(400, 10097));
        assert!(permanent(400, 10111));
        assert!(!permanent(400, 10109));
        assert!(!permanent(503, 10077));
        assert!(!permanent(503, 10023));
        assert!(!permanent(500, 10047));
    }

    #[test]
    fn the_denied_subject_is_found() {
        assert_eq!(denied_subject("Permissions Violation for Publish to \"a.b\""), Some("a.b"));
        assert_eq!(denied_subject("Permissions Violation for Subscription to \"a.b\""), None);
        assert_eq!(denied_subject("Stale Connection"), None);
    }

    #[test]
    fn what_needs_help_is_told_from_what_passes() {
        assert!(refused("nats://x", "the token", "User Authentication Expired").needs_help);
        assert!(!refused("nats://x", "the token", "maximum connections exceeded").needs_help);
    }
}
