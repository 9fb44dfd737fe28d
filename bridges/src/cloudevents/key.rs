//! What a key says about its event, and keys as text: the extension `hookbuskey`.
//!
//! Keys are bytes, and an OpenNebula event may have any in its key; an attribute is text without control characters. So
//! `hookbuskey` is the key with what can't stand in it percent-encoded, and `%` too, which makes it possible to decode it.

use std::borrow::Cow;
use std::fmt::Write as _;

use percent_encoding::percent_decode_str;

/// The beginnings of keys that only our own sources publish.
const RESERVED: [&[u8]; 3] = [b"EVENT ", b"RETRY", b"HOOKBUS "];

/// Whether only OpenNebula, Ganeti and hookbus itself may publish under this key: it begins with `EVENT `, `RETRY` or `HOOKBUS `.
pub fn is_reserved(key: &[u8]) -> bool {
    RESERVED.iter().any(|reserved| key.starts_with(reserved))
}

/// A key as text. Bytes that are no UTF-8, characters that an attribute can't have, and `%` are percent-encoded.
///
/// ```
/// use hookbus_bridges::cloudevents::{decode_key, encode_key};
///
/// assert_eq!(encode_key(b"EVENT VM 7/ACTIVE/RUNNING "), "EVENT VM 7/ACTIVE/RUNNING ");
/// assert_eq!(encode_key(b"100% \xFF"), "100%25 %FF");
/// assert_eq!(decode_key("100%25 %FF").as_ref(), b"100% \xFF");
/// ```
pub fn encode_key(key: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(key) {
        Ok(text) if text.chars().all(|c| c != '%' && is_attribute_char(c)) => Cow::Borrowed(text),
        _ => {
            let mut text = String::with_capacity(key.len() + 16);
            for chunk in key.utf8_chunks() {
                for c in chunk.valid().chars() {
                    if c != '%' && is_attribute_char(c) {
                        text.push(c);
                    } else {
                        percent_encode(&mut text, c.encode_utf8(&mut [0; 4]).as_bytes());
                    }
                }
                percent_encode(&mut text, chunk.invalid());
            }
            Cow::Owned(text)
        }
    }
}

/// The key of a text; a `%` without two hexadecimal digits stands for itself.
pub fn decode_key(text: &str) -> Cow<'_, [u8]> {
    percent_decode_str(text).into()
}

pub(super) fn percent_encode(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        write!(text, "%{byte:02X}").expect("writing to memory does not fail");
    }
}

/// Whether an attribute may have this character: no control character, and none that Unicode says is no character.
pub(super) fn is_attribute_char(c: char) -> bool {
    !matches!(c, '\0'..='\x1F' | '\x7F'..='\u{9F}' | '\u{FDD0}'..='\u{FDEF}') && u32::from(c) & 0xFFFE != 0xFFFE
}

/// What an event is about, as its key tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Topic<'a> {
    /// A call of oned's API.
    Api { call: &'a [u8] },
    /// An OpenNebula object has changed its state.
    State { object: &'a [u8], id: &'a [u8] },
    /// A hook of Ganeti's has run.
    Ganeti { object: &'a [u8], path: &'a [u8], phase: &'a [u8], name: &'a [u8] },
    /// A job of Ganeti's has come into a state.
    GanetiJob { status: &'a [u8], id: &'a [u8] },
    /// OpenNebula's executor is to run a hook again.
    Retry,
    /// OpenNebula wrote something without a header.
    Other,
    /// A hook has run.
    Hook { name: &'a [u8] },
    /// Anything else.
    Custom,
}

/// The one of an event's keys that tells most.
pub(crate) fn telling<'a>(mut keys: impl Iterator<Item = &'a [u8]> + Clone) -> &'a [u8] {
    let tells = |key: &&[u8]| {
        [&b"EVENT API "[..], b"EVENT STATE ", b"EVENT GANETI "].iter().any(|beginning| key.starts_with(beginning))
    };
    keys.clone().find(tells).or_else(|| keys.next()).unwrap_or_default()
}

/// The one of an event's keys that tells most, and what it tells.
pub(super) fn topic<'a>(keys: impl Iterator<Item = &'a [u8]> + Clone) -> (&'a [u8], Topic<'a>) {
    let key = telling(keys);
    let topic = if let Some(rest) = key.strip_prefix(b"EVENT API ") {
        Topic::Api { call: before_last(rest, b' ') }
    } else if let Some(rest) = key.strip_prefix(b"EVENT STATE ") {
        let object = rest.split(|&byte| byte == b'/').next().unwrap_or_default();
        Topic::State { object, id: after_last(rest.strip_suffix(b" ").unwrap_or(rest), b'/') }
    } else if let Some(rest) = key.strip_prefix(b"EVENT GANETI ") {
        let mut parts = rest.strip_suffix(b" ").unwrap_or(rest).splitn(4, |&byte| byte == b'/');
        let mut part = || parts.next().unwrap_or_default();
        match part() {
            b"JOB" => Topic::GanetiJob { status: part(), id: part() },
            object => Topic::Ganeti { object, path: part(), phase: part(), name: part() },
        }
    } else if let Some(rest) = key.strip_prefix(b"HOOKBUS HOOK ") {
        Topic::Hook { name: before_last(rest, b'/') }
    } else if key.starts_with(b"RETRY") {
        Topic::Retry
    } else if key.starts_with(b"EVENT ") {
        Topic::Other
    } else {
        Topic::Custom
    };
    (key, topic)
}

fn before_last(text: &[u8], separator: u8) -> &[u8] {
    &text[..memchr::memrchr(separator, text).unwrap_or(text.len())]
}

fn after_last(text: &[u8], separator: u8) -> &[u8] {
    &text[memchr::memrchr(separator, text).map_or(0, |at| at + 1)..]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_key_comes_back(key: Vec<u8>) {
            let text = encode_key(&key);
            prop_assert!(text.chars().all(is_attribute_char));
            let decoded = decode_key(&text);
            prop_assert_eq!(decoded.as_ref(), &key);
        }
    }

    #[test]
    fn keys_tell_what_events_are_about() {
        let topic = |keys: &[&'static str]| topic(keys.iter().map(|key| key.as_bytes()));
        let state = topic(&["EVENT VM 7/ACTIVE/RUNNING ", "EVENT STATE VM/ACTIVE/RUNNING/7 ", "EVENT SERVICE 3 "]);
        assert_eq!(state, (&b"EVENT STATE VM/ACTIVE/RUNNING/7 "[..], Topic::State { object: b"VM", id: b"7" }));
        assert_eq!(topic(&["EVENT STATE HOST/ERROR//0 "]).1, Topic::State { object: b"HOST", id: b"0" });
        assert_eq!(topic(&["EVENT API one.vm.allocate 1"]).1, Topic::Api { call: b"one.vm.allocate" });
        assert_eq!(topic(&["HOOKBUS HOOK a/b/success "]).1, Topic::Hook { name: b"a/b" });
        let hook = topic(&["EVENT NODE a/b/node-add/post ", "EVENT GANETI NODE/node-add/post/a/b "]);
        assert_eq!(hook.1, Topic::Ganeti { object: b"NODE", path: b"node-add", phase: b"post", name: b"a/b" });
        let job = topic(&["EVENT JOB 12/success ", "EVENT GANETI JOB/success/12 "]);
        assert_eq!(job.1, Topic::GanetiJob { status: b"success", id: b"12" });
        assert_eq!(topic(&["RETRY"]).1, Topic::Retry);
        assert_eq!(topic(&["EVENT "]).1, Topic::Other);
        assert_eq!(topic(&["backup done", "second"]), (&b"backup done"[..], Topic::Custom));
        assert_eq!(topic(&[]).1, Topic::Custom);
    }
}
