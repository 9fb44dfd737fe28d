//! What a server's answer means.
//!
//! | answer | means |
//! | --- | --- |
//! | 200 to 299 | the server has it |
//! | 408, 425, 429, 500, 502, 503, 504, other 5xx | not now: tried again, after `Retry-After` where there is one |
//! | 400, 406, 409, 411, 412, 413, 414, 415, 416, 417, 422, 428, 431 | never this event: a dead letter with the beginning of the answer |
//! | 404, 410 | the same where the URL is made of the event; else the URL is wrong |
//! | 300 to 399, 401, 403, 405, 407, 501, 505, 511, anything else | the configuration is wrong, here or there: somebody has to act |
//!
//! `accept_status` and `reject_status` come first. `Retry-After` is a number of seconds or a date; it counts up to an hour.

use std::time::Duration;

use hyper::StatusCode;
use hyper::header::{HeaderMap, LOCATION, RETRY_AFTER};
use jiff::Timestamp;

/// The longest time that a server can ask for.
const MOST_WAIT: Duration = Duration::from_secs(3600);
/// What is shown of an answer's body.
const SHOWN_CHARS: usize = 200;

/// What an answer means for the letter, or for all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The server has it.
    Confirmed,
    /// Not now, for this reason; nothing is to come for a while.
    Later(String, Option<Duration>),
    /// Never this event.
    Never(String),
    /// Nothing will be taken before somebody acts.
    Help(String),
}

/// What decides besides the status.
#[derive(Clone, Debug, Default)]
pub(super) struct Rules {
    pub(super) accept: Vec<u16>,
    pub(super) reject: Vec<u16>,
    /// Whether the URL is made of the event.
    pub(super) url_varies: bool,
}

impl Rules {
    /// Judges an answer. `body` is as much of it as was read.
    pub(super) fn judge(
        &self,
        place: &str,
        status: StatusCode,
        headers: &HeaderMap,
        body: &[u8],
        now: Timestamp,
    ) -> Verdict {
        let code = status.as_u16();
        if status.is_success() || self.accept.contains(&code) {
            return Verdict::Confirmed;
        }
        let said = beginning(body);
        let said = if said.is_empty() { String::new() } else { format!(": {said}") };
        let reason = format!("{place} answers {status}{said}");
        if self.reject.contains(&code) {
            return Verdict::Never(reason);
        }
        match code {
            501 | 505 | 511 => Verdict::Help(reason),
            408 | 425 | 429 | 500.. => Verdict::Later(reason, retry_after(headers, now)),
            400 | 406 | 409 | 411..=417 | 422 | 428 | 431 => Verdict::Never(reason),
            404 | 410 if self.url_varies => Verdict::Never(reason),
            300..=399 => {
                let target = headers.get(LOCATION).and_then(|target| target.to_str().ok()).unwrap_or("nowhere");
                // A query may hold what nobody should see.
                let target = target.split('?').next().unwrap_or(target);
                Verdict::Help(format!(
                    "{place} answers {status} and points to {target}; redirects are not followed: write the URL that it should be"
                ))
            }
            401 | 403 | 407 => {
                Verdict::Help(format!("{reason}; does it know who we are? See token_file, user, headers"))
            }
            404 | 410 => Verdict::Help(format!("{reason}; is the URL right?")),
            405 => Verdict::Help(format!("{reason}; is the method right?")),
            _ => Verdict::Help(reason),
        }
    }
}

/// How long a server asks to be left alone.
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let said = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = if said.bytes().all(|byte| byte.is_ascii_digit()) && !said.is_empty() {
        // More digits than fit are as long as can be.
        Duration::from_secs(said.parse().unwrap_or(u64::MAX))
    } else {
        let at = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(said).ok()?;
        Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO)
    };
    Some(wait.min(MOST_WAIT)).filter(|wait| !wait.is_zero())
}

/// The beginning of an answer's body, in one line.
fn beginning(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let mut line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.retain(|c| !c.is_control());
    match line.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(rules: &Rules, status: u16, headers: &[(&'static str, &str)], body: &str) -> Verdict {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        let now = "2026-11-21T08:49:30Z".parse().unwrap();
        rules.judge("http://h", StatusCode::from_u16(status).unwrap(), &map, body.as_bytes(), now)
    }

    #[test]
    fn answers_mean_what_the_table_says() {
        let usual = Rules::default();
        let kind = |verdict: Verdict| match verdict {
            Verdict::Confirmed => "confirmed",
            Verdict::Later(..) => "later",
            Verdict::Never(_) => "never",
            Verdict::Help(_) => "help",
        };
        for (kind_of, all) in [
            ("confirmed", &[200, 201, 202, 204][..]),
            ("later", &[408, 425, 429, 500, 502, 503, 504, 507, 520]),
            ("never", &[400, 406, 409, 411, 413, 414, 415, 422, 431]),
            ("help", &[301, 302, 304, 307, 401, 402, 403, 404, 405, 407, 410, 418, 421, 426, 451, 501, 505, 511]),
        ] {
            for status in all {
                assert_eq!(kind(judge(&usual, *status, &[], "")), kind_of, "{status}");
            }
        }
        let varies = Rules { url_varies: true, ..Rules::default() };
        assert_eq!(kind(judge(&varies, 404, &[], "")), "never");
        assert_eq!(kind(judge(&varies, 403, &[], "")), "help");
        let own = Rules { accept: vec![404, 409], reject: vec![500, 200], url_varies: true };
        assert_eq!(kind(judge(&own, 404, &[], "")), "confirmed");
        assert_eq!(kind(judge(&own, 500, &[("retry-after", "5")], "")), "never");
        assert_eq!(kind(judge(&own, 200, &[], "")), "confirmed");
    }

    #[test]
    fn a_server_says_how_long() {
        let wait = |said: &str| match judge(&Rules::default(), 503, &[("retry-after", said)], "") {
            Verdict::Later(_, wait) => wait.map(|wait| wait.as_secs()),
            other => panic!("{other:?}"),
        };
        assert_eq!(wait("120"), Some(120));
        assert_eq!(wait("Sat, 21 Nov 2026 08:50:00 GMT"), Some(30));
        for (said, expected) in [
            ("0", None),
            ("Sat, 21 Nov 2026 08:40:00 GMT", None),
            ("soon", None),
            ("-5", None),
            ("", None),
            ("86400", Some(3600)),
            ("99999999999999999999999", Some(3600)),
            ("Sat, 21 Nov 2099 08:50:00 GMT", Some(3600)),
        ] {
            assert_eq!(wait(said), expected, "{said}");
        }
    }

    #[test]
    fn the_reason_has_the_beginning_of_the_answer() {
        let Verdict::Never(reason) = judge(&Rules::default(), 400, &[], "invalid\r\n\tpayload \u{1b}[31m") else {
            panic!()
        };
        assert_eq!(reason, "http://h answers 400 Bad Request: invalid payload [31m");
        let Verdict::Never(reason) = judge(&Rules::default(), 400, &[], &"ü".repeat(10_000)) else { panic!() };
        assert!(reason.ends_with('…') && reason.chars().count() < 300);
        let location = [("location", "https://other/x?token=s3cr3t")];
        let Verdict::Help(reason) = judge(&Rules::default(), 302, &location, "") else { panic!() };
        assert!(reason.contains("points to https://other/x;") && !reason.contains("s3cr3t"), "{reason}");
    }
}
