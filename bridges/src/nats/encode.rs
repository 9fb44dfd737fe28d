//! A letter as a NATS message.

use std::str::FromStr;

use async_nats::{HeaderMap, HeaderName, HeaderValue};

use crate::cloudevents::encode_header;
use crate::delivery::{Letter, Rejection};

/// By this header the server tells repetitions.
const MESSAGE_ID: &str = "Nats-Msg-Id";

/// The headers of a letter. Names of attributes are written in lower case; NATS keeps the case of headers.
pub(super) fn headers(letter: &Letter) -> Result<HeaderMap, Rejection> {
    let mut headers = HeaderMap::new();
    headers.insert(HeaderName::from_static(MESSAGE_ID), value(&letter.id)?);
    if letter.attributes.is_empty() {
        if !letter.content_type.is_empty() {
            headers.insert(HeaderName::from_static("Content-Type"), value(&letter.content_type)?);
        }
        return Ok(headers);
    }
    for (name, text) in &letter.attributes {
        headers.insert(attribute(name)?, value(&encode_header(text))?);
    }
    if !letter.content_type.is_empty() {
        headers.insert(HeaderName::from_static("ce-datacontenttype"), value(&encode_header(&letter.content_type))?);
    }
    Ok(headers)
}

fn attribute(name: &str) -> Result<HeaderName, Rejection> {
    HeaderName::from_str(&format!("ce-{name}"))
        .map_err(|error| Rejection::Permanent(format!("the attribute {name:?} can't be a header: {error}")))
}

fn value(text: &str) -> Result<HeaderValue, Rejection> {
    HeaderValue::from_str(text)
        .map_err(|error| Rejection::Permanent(format!("{text:?} can't be the value of a header: {error}")))
}

/// Whether something can be published under this name: tokens with dots between them, none of them empty, no wildcard.
pub(super) fn is_subject(name: &str) -> bool {
    !name.is_empty()
        && name.split('.').all(|token| {
            !token.is_empty() && token.bytes().all(|byte| byte > b' ' && byte != 0x7F && !matches!(byte, b'*' | b'>'))
        })
}

/// Whether a subscription to `pattern` gets what is published to `subject`. `subject` may be a pattern as well: then the question is
/// whether some subject is in both.
pub(super) fn meet(pattern: &str, subject: &str) -> bool {
    let mut left = pattern.split('.');
    let mut right = subject.split('.');
    loop {
        match (left.next(), right.next()) {
            (None, None) => return true,
            (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
            (Some(left), Some(right)) if left == right || left == "*" || right == "*" => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects() {
        for good in ["hookbus", "hookbus.opennebula.api.one.vm.allocate.ok", "a.-.b", "a.%2E"] {
            assert!(is_subject(good), "{good}");
        }
        for bad in ["", ".", "a.", ".a", "a..b", "a b", "a.*", "a.>", "a\tb", "a\r\nPUB x 0"] {
            assert!(!is_subject(bad), "{bad:?}");
        }
    }

    #[test]
    fn patterns_meet() {
        for (pattern, subject) in [
            ("hookbus.>", "hookbus.a"),
            ("hookbus.>", "hookbus.>"),
            (">", "a"),
            ("a.*.c", "a.b.c"),
            ("hookbus.api.>", "hookbus.>"),
        ] {
            assert!(meet(pattern, subject), "{pattern} {subject}");
        }
        for (pattern, subject) in [("hookbus.>", "hookbus"), ("events.>", "hookbus.>"), ("a.*", "a.b.c"), ("a", "a.>")]
        {
            assert!(!meet(pattern, subject), "{pattern} {subject}");
        }
    }
}
