//! The attributes of an event, and what CloudEvents 1.0 says about their names and values.

use std::borrow::Cow;
use std::fmt;

use jiff::civil::Date;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::json;
use super::key::{is_attribute_char, percent_encode};

/// More attributes than any event has.
pub(super) const MAX_ATTRIBUTES: usize = 256;

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// A string, URI, URI-reference or timestamp, or binary as base64.
    String(Cow<'a, str>),
    /// A whole number.
    Integer(i32),
    /// True or false.
    Boolean(bool),
}

impl<'a> Value<'a> {
    /// The text, if it is one.
    pub(super) fn into_text(self) -> Option<Cow<'a, str>> {
        match self {
            Value::String(text) => Some(text),
            _ => None,
        }
    }
}

/// The canonical string, as headers carry it before they are percent-encoded.
impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::String(text) => f.write_str(text),
            Value::Integer(number) => number.fmt(f),
            Value::Boolean(truth) => truth.fmt(f),
        }
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Value::String(Cow::Borrowed(text))
    }
}

impl<'a> From<Cow<'a, str>> for Value<'a> {
    fn from(text: Cow<'a, str>) -> Self {
        Value::String(text)
    }
}

impl From<String> for Value<'_> {
    fn from(text: String) -> Self {
        Value::String(Cow::Owned(text))
    }
}

/// The attributes that an event has, in the order in which they are written: `specversion` first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes<'a> {
    list: Vec<(Cow<'a, str>, Value<'a>)>,
}

impl<'a> Attributes<'a> {
    /// Name and value of each.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value<'a>)> {
        self.list.iter().map(|(name, value)| (name.as_ref(), value))
    }

    /// The attribute of this name.
    pub fn get(&self, name: &str) -> Option<&Value<'a>> {
        self.list.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    pub(super) fn push(&mut self, name: impl Into<Cow<'a, str>>, value: impl Into<Value<'a>>) {
        self.list.push((name.into(), value.into()));
    }

    /// The attribute of this name, taken out.
    pub(super) fn take(&mut self, name: &str) -> Option<Value<'a>> {
        let at = self.list.iter().position(|(known, _)| known == name)?;
        Some(self.list.remove(at).1)
    }

    pub(super) fn append(&mut self, other: Attributes<'a>) {
        self.list.extend(other.list);
    }

    /// Writes them as members of a JSON object that is open, the last without a comma.
    pub(super) fn write_members(&self, out: &mut Vec<u8>) {
        for (n, (name, value)) in self.list.iter().enumerate() {
            if n > 0 {
                out.push(b',');
            }
            json::write_str(out, name);
            out.push(b':');
            match value {
                Value::String(text) => json::write_str(out, text),
                other => out.extend_from_slice(other.to_string().as_bytes()),
            }
        }
    }

    /// Reads the attributes that an event brought along, as `write_members` wrote them. What is none is passed over: they were
    /// checked when the event came in.
    pub(super) fn of_origin(text: &'a str) -> Self {
        let Ok(Members(members)) = serde_json::from_str::<Members<'a>>(text) else { return Attributes::default() };
        let list = members.into_iter().filter_map(|(name, value)| Some((name, read_value(value).ok()??)));
        Attributes { list: list.collect() }
    }
}

/// A text as HTTP and NATS headers carry it: blanks, `"`, `%` and what is not printable ASCII are percent-encoded.
pub fn encode_header(text: &str) -> Cow<'_, str> {
    let plain = |byte: u8| matches!(byte, b'!'..=b'~') && byte != b'"' && byte != b'%';
    if text.bytes().all(plain) {
        return Cow::Borrowed(text);
    }
    let mut encoded = String::with_capacity(text.len() + 16);
    for byte in text.bytes() {
        if plain(byte) {
            encoded.push(char::from(byte));
        } else {
            percent_encode(&mut encoded, &[byte]);
        }
    }
    Cow::Owned(encoded)
}

/// The members of a JSON object, in their order; of a name that is there twice, both.
pub(super) struct Members<'a>(pub(super) Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a CloudEvent: a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some((Text(name), value)) = map.next_entry::<Text<'de>, &'de RawValue>()? {
                    if members.len() == MAX_ATTRIBUTES {
                        return Err(A::Error::custom(format_args!(
                            "more than {MAX_ATTRIBUTES} attributes; put what describes the data into the data"
                        )));
                    }
                    members.push((name, value));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Read)
    }
}

/// A string that is borrowed where it has no escapes.
#[derive(serde::Deserialize)]
pub(super) struct Text<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);

/// Reads the value of an attribute; `null` means that there is none.
pub(super) fn read_value(json: &RawValue) -> Result<Option<Value<'_>>, String> {
    let text = json.get();
    match text.as_bytes().first() {
        Some(b'"') => match serde_json::from_str::<Text<'_>>(text) {
            Ok(Text(text)) => Ok(Some(Value::String(text))),
            Err(error) => Err(format!("is no string of Unicode characters: {error}")),
        },
        Some(b't') => Ok(Some(Value::Boolean(true))),
        Some(b'f') => Ok(Some(Value::Boolean(false))),
        Some(b'n') => Ok(None),
        Some(b'{' | b'[') => Err("is an object or array; make it a string, or a part of the data".into()),
        _ => match text.parse() {
            Ok(number) => Ok(Some(Value::Integer(number))),
            Err(_) => Err(format!("is {text}; a number must be a whole one of 32 bits, else make it a string")),
        },
    }
}

/// Checks an attribute's name; says what is wrong.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()) {
        return Err("names consist of lower-case letters a to z and digits; rename it".into());
    }
    if name == "data" {
        return Err("no attribute can have this name; rename it".into());
    }
    Ok(())
}

/// Checks an attribute's value, by what the specification says of that name; says what is wrong.
pub(super) fn check_value(name: &str, value: &Value<'_>) -> Result<(), String> {
    const CORE: [&str; 8] = ["specversion", "id", "source", "type", "subject", "time", "datacontenttype", "dataschema"];
    let Value::String(text) = value else {
        return if CORE.contains(&name) { Err(format!("is {value}; it must be a string")) } else { Ok(()) };
    };
    if let Some(c) = text.chars().find(|&c| !is_attribute_char(c)) {
        return Err(format!("has the character U+{:04X}, which attributes can't have; leave it out", u32::from(c)));
    }
    if text.is_empty() && CORE.contains(&name) {
        return Err("is empty; give it a value, or leave it out if it is optional".into());
    }
    match name {
        "specversion" if text != "1.0" => Err(format!("is {text:?}; only \"1.0\" is known")),
        "source" if !is_uri_reference(text) => {
            Err(format!("is {text:?}, which is no URI reference; percent-encode what is not allowed in one"))
        }
        "dataschema" if !is_uri_reference(text) || !has_scheme(text) => {
            Err(format!("is {text:?}, which is no absolute URI; it begins with a scheme, such as https:"))
        }
        "time" if !is_rfc3339(text) => {
            Err(format!("is {text:?}, which is no RFC 3339 time; write it as 2026-01-31T12:34:56Z"))
        }
        "datacontenttype" if !is_media_type(text) => {
            Err(format!("is {text:?}, which is no media type; write it as text/plain"))
        }
        _ => Ok(()),
    }
}

/// Whether all of it may stand in a URI reference (RFC 3986, section 4.1).
fn is_uri_reference(text: &str) -> bool {
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let allowed = match byte {
            b'%' => {
                let mut is_hex = || bytes.next().is_some_and(|byte| byte.is_ascii_hexdigit());
                is_hex() && is_hex()
            }
            _ => byte.is_ascii_alphanumeric() || b"-._~:/?#[]@!$&'()*+,;=".contains(&byte),
        };
        if !allowed {
            return false;
        }
    }
    true
}

fn has_scheme(text: &str) -> bool {
    text.split_once(':').is_some_and(|(scheme, _)| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
    })
}

/// Whether it begins with a type and a subtype.
fn is_media_type(text: &str) -> bool {
    let is_token = |text: &str| {
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
    };
    let essence = text.split(';').next().unwrap_or_default().trim_end();
    essence.split_once('/').is_some_and(|(kind, subtype)| is_token(kind) && is_token(subtype))
}

/// Whether it is a time as RFC 3339 writes it: date, `T`, time of the day with or without a fraction, and an offset.
fn is_rfc3339(text: &str) -> bool {
    let bytes = text.as_bytes();
    let number = |at: usize, digits: usize| {
        let digits = bytes.get(at..at + digits)?;
        digits.iter().try_fold(0u16, |n, byte| byte.is_ascii_digit().then(|| n * 10 + u16::from(byte - b'0')))
    };
    let is = |at: usize, what: &[u8]| bytes.get(at).is_some_and(|byte| what.contains(byte));
    let below = |at: usize, limit: u16| number(at, 2).is_some_and(|n| n < limit);
    let separated = is(4, b"-") && is(7, b"-") && is(10, b"Tt") && is(13, b":") && is(16, b":");
    let (Some(year), Some(month), Some(day)) = (number(0, 4), number(5, 2), number(8, 2)) else { return false };
    let date = i16::try_from(year).ok().zip(i8::try_from(month).ok()).zip(i8::try_from(day).ok());
    let is_date = date.is_some_and(|((year, month), day)| Date::new(year, month, day).is_ok());
    // 60 is a leap second.
    if !separated || !is_date || !below(11, 24) || !below(14, 60) || !below(17, 61) {
        return false;
    }
    let mut at = 19;
    if is(at, b".") {
        let digits = bytes[at + 1..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits == 0 {
            return false;
        }
        at += 1 + digits;
    }
    match &bytes[at..] {
        b"Z" | b"z" => true,
        [b'+' | b'-', ..] => bytes.len() == at + 6 && below(at + 1, 24) && is(at + 3, b":") && below(at + 4, 60),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for good in [
            "2018-04-05T17:31:00Z",
            "2018-04-05t17:31:00.123456789012z",
            "2016-12-31T23:59:60+00:00",
            "2024-02-29T00:00:00-23:59",
            "0000-01-01T00:00:00Z",
        ] {
            assert!(is_rfc3339(good), "{good}");
        }
        for bad in [
            "",
            "2018-04-05",
            "2018-04-05 17:31:00Z",
            "2018-04-05T17:31Z",
            "2018-04-05T17:31:00",
            "2018-04-05T17:31:00.Z",
            "2018-02-29T17:31:00Z",
            "2018-13-01T17:31:00Z",
            "2018-04-05T24:00:00Z",
            "2018-04-05T17:31:61Z",
            "2018-04-05T17:31:00+0100",
            "2018-04-05T17:31:00+01:00x",
            "2018-04-05T17:31:00Z ",
            "é018-04-05T17:31:00Z",
        ] {
            assert!(!is_rfc3339(bad), "{bad}");
        }
    }

    #[test]
    fn values_of_the_specification() {
        let check = |name: &str, text: &'static str| check_value(name, &Value::from(text));
        for source in [
            "https://github.com/cloudevents",
            "mailto:cncf-wg-serverless@lists.cncf.io",
            "urn:uuid:6e8bc430-9c3a-11d9-9669-0800200c9a66",
            "/cloudevents/spec/pull/123",
            "1-555-123-4567",
            "/a%20b",
        ] {
            check("source", source).unwrap();
        }
        for (name, bad) in [
            ("source", ""),
            ("source", "/a b"),
            ("source", "/ü"),
            ("source", "/%2"),
            ("id", ""),
            ("type", "a\nb"),
            ("subject", "\u{FFFE}"),
            ("subject", "\u{85}"),
            ("dataschema", "/relative"),
            ("datacontenttype", "text"),
            ("specversion", "0.3"),
            ("time", "now"),
        ] {
            assert!(check(name, bad).is_err(), "{name} {bad:?}");
        }
        check("anyextension", "").unwrap();
        check_value("id", &Value::Integer(5)).unwrap_err();
        for bad in ["", "a-b", "A", "data", "ä", "a_b"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    /// The example of the HTTP binding.
    #[test]
    fn headers_are_percent_encoded() {
        assert_eq!(encode_header("Euro \u{20AC} \u{1F600}"), "Euro%20%E2%82%AC%20%F0%9F%98%80");
        assert_eq!(encode_header("/plain~!"), "/plain~!");
        assert_eq!(encode_header("\"100%\""), "%22100%25%22");
    }
}
