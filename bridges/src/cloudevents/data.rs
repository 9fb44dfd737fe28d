//! The payload of an event in the forms in which it leaves: as it is, as base64, and as the data of a CloudEvent.
//!
//! | payload | data |
//! | --- | --- |
//! | OpenNebula's base64 | the content of its XML as JSON; of XML that is not well-formed the header fields, and the text as `raw` |
//! | JSON, by its content type, or a hook's result | that JSON, on one line (of a Ganeti hook, `raw` has only the environment) |
//! | `text/*` and XML, where it is UTF-8 | a string |
//! | without a content type, published here, where it is UTF-8 | a string, as `text/plain` |
//! | anything else | base64 |
//! | empty | none |

use std::borrow::Cow;

use hookbus_broker::Received;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::json;
use crate::PAYLOAD_BASE64;
use crate::opennebula::{Document, Element, Parser};

const JSON: &str = "application/json";

/// The data of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Data<'a> {
    /// The attribute `datacontenttype`; none where an imported event had none.
    pub content_type: Option<Cow<'a, str>>,
    /// The bytes: what the body is in binary mode.
    pub body: Cow<'a, [u8]>,
    form: Form,
}

/// How the bytes are written into a JSON object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Json,
    Text,
    Binary,
}

/// The content type of an event's data, where it can be told. `said` is what the event brought along; `imported` says that
/// it was a CloudEvent already, whose data must not be taken for more than it said.
pub(super) fn content_type<'a>(event: &Received, said: Option<Cow<'a, str>>, imported: bool) -> Option<Cow<'a, str>> {
    let is_hook_result = || event.keys().any(|key| key.starts_with(b"HOOKBUS HOOK "));
    if event.tag() == PAYLOAD_BASE64 {
        Some(JSON.into())
    } else if said.is_some() || event.payload().is_empty() {
        said
    } else if is_hook_result() {
        Some(JSON.into())
    } else if !imported && std::str::from_utf8(event.payload()).is_ok() {
        Some("text/plain".into())
    } else {
        None
    }
}

impl<'a> Data<'a> {
    /// The data of an event with this content type.
    pub(super) fn of(event: &'a Received, content_type: Option<Cow<'a, str>>) -> Option<Self> {
        let payload = event.payload();
        if event.tag() == PAYLOAD_BASE64 {
            return Some(Data { content_type, body: Cow::Owned(opennebula(&raw(event))), form: Form::Json });
        }
        let form = match content_type.as_deref() {
            Some(kind) if is_json(kind) && serde_json::from_slice::<&RawValue>(payload).is_ok() => Form::Json,
            Some(kind) if is_text(kind) && std::str::from_utf8(payload).is_ok() => Form::Text,
            _ => Form::Binary,
        };
        (!payload.is_empty()).then_some(Data { content_type, body: Cow::Borrowed(payload), form })
    }

    /// Writes the member of a CloudEvent in JSON that holds the data.
    pub(super) fn write_member(&self, out: &mut Vec<u8>) {
        match self.form {
            Form::Json => {
                out.extend_from_slice(b"\"data\":");
                json::write_on_one_line(out, &self.body);
            }
            Form::Text => {
                out.extend_from_slice(b"\"data\":");
                json::write_text(out, &self.body);
            }
            Form::Binary => {
                out.extend_from_slice(b"\"data_base64\":\"");
                base64_simd::STANDARD.encode_append(&self.body, out);
                out.push(b'"');
            }
        }
    }
}

/// The payload of an event in its producer's own words: OpenNebula's XML decoded, as far as it is base64; the environment of a Ganeti hook,
/// as a JSON object; anything else as it is.
pub fn raw(event: &Received) -> Cow<'_, [u8]> {
    if event.tag() != PAYLOAD_BASE64 {
        return match environment(event) {
            Some(environment) => Cow::Borrowed(environment),
            None => Cow::Borrowed(event.payload()),
        };
    }
    let content = event.payload().trim_ascii();
    match base64_simd::STANDARD.decode_to_vec(content) {
        Ok(text) => Cow::Owned(text),
        Err(_) => Cow::Owned(Parser::new().event_of(content).xml.to_vec()),
    }
}

/// The environment in the data of a Ganeti hook, as it stands there.
fn environment(event: &Received) -> Option<&[u8]> {
    #[derive(Deserialize)]
    struct Hook<'a> {
        #[serde(borrow)]
        env: &'a RawValue,
    }
    event.keys().any(|key| key.starts_with(b"EVENT GANETI ")).then_some(())?;
    serde_json::from_slice::<Hook<'_>>(event.payload()).ok().map(|hook| hook.env.get().as_bytes())
}

/// The payload of an event as on ZeroMQ: OpenNebula's base64 text byte for byte (of a retry with the blank behind it), anything
/// else encoded.
pub fn base64(event: &Received) -> Cow<'_, [u8]> {
    if event.tag() == PAYLOAD_BASE64 {
        return Cow::Borrowed(event.payload());
    }
    Cow::Owned(base64_simd::STANDARD.encode_to_string(event.payload()).into_bytes())
}

/// Whether a content type says JSON: `*/json` or `*/*+json`.
pub(super) fn is_json(content_type: &str) -> bool {
    has_subtype(content_type, "json")
}

/// Whether a content type says text, in UTF-8 as far as it tells.
pub(super) fn is_text(content_type: &str) -> bool {
    let is_text = content_type.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("text/"));
    let charset = parameter(content_type, "charset");
    let is_utf8 =
        charset.is_none_or(|name| name.eq_ignore_ascii_case("utf-8") || name.eq_ignore_ascii_case("us-ascii"));
    is_utf8 && (is_text || has_subtype(content_type, "xml"))
}

fn has_subtype(content_type: &str, what: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    let Some((_, subtype)) = essence.split_once('/') else { return false };
    let suffix = subtype.rsplit_once('+').map_or(subtype, |(_, suffix)| suffix);
    suffix.eq_ignore_ascii_case(what)
}

/// A parameter of a content type.
pub(super) fn parameter<'a>(content_type: &'a str, name: &str) -> Option<&'a str> {
    content_type.split(';').skip(1).find_map(|parameter| {
        let (known, value) = parameter.split_once('=')?;
        known.trim().eq_ignore_ascii_case(name).then(|| value.trim().trim_matches('"'))
    })
}

/// An event of OpenNebula as JSON.
fn opennebula(xml: &[u8]) -> Vec<u8> {
    let document = Document::parse(xml);
    let mut out = Vec::with_capacity(xml.len());
    match document.root() {
        Some(root) if document.is_well_formed() => json::write_content(&mut out, root),
        root => broken(&mut out, xml, root),
    }
    out
}

/// What can be said of an event that is not well-formed: the fields of its header, which come before anything that users
/// wrote; and its text.
fn broken(out: &mut Vec<u8>, xml: &[u8], root: Option<Element<'_>>) {
    const OF_STATE: [&str; 7] =
        ["HOOK_OBJECT", "STATE", "LCM_STATE", "RESOURCE_ID", "SERVICE_ID", "REMOTE_HOST", "HOOK_ID"];
    let child = |name: &'static str| Some((name, root?.child(name)?));
    let kind = child("HOOK_TYPE");
    let result = || Some(("RESULT", root?.child("CALL_INFO")?.child("RESULT")?));
    let fields: Vec<_> = match kind.map(|(_, kind)| kind.text()).as_deref() {
        Some(b"API") => [kind, child("CALL"), result()].into_iter().flatten().collect(),
        _ => [kind].into_iter().chain(OF_STATE.map(child)).flatten().collect(),
    };
    out.push(b'{');
    for (name, element) in fields {
        json::write_str(out, name);
        out.push(b':');
        json::write_text(out, &element.text());
        out.push(b',');
    }
    out.extend_from_slice(b"\"raw\":");
    json::write_text(out, xml);
    if std::str::from_utf8(xml).is_err() {
        out.extend_from_slice(b",\"raw_base64\":\"");
        base64_simd::STANDARD.encode_append(xml, out);
        out.push(b'"');
    }
    out.push(b'}');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_types() {
        for json in ["application/json", "text/json; charset=utf-8", "application/vnd.x+JSON", "a/b+c+json ;x"] {
            assert!(is_json(json), "{json}");
        }
        for other in ["application/jsonx", "json", "text/plain", "", "application/json+x"] {
            assert!(!is_json(other), "{other}");
        }
        for text in ["text/plain", "TEXT/html", "application/xml", "image/svg+xml", "text/plain; charset=\"UTF-8\""] {
            assert!(is_text(text), "{text}");
        }
        for other in ["application/octet-stream", "text", "text/plain;charset=iso-8859-1", "é"] {
            assert!(!is_text(other), "{other}");
        }
    }

    #[test]
    fn what_is_not_well_formed_keeps_header_and_text() {
        let json = |xml: &[u8]| String::from_utf8(opennebula(xml)).unwrap();
        let api =
            b"<HOOK_MESSAGE><HOOK_TYPE>API</HOOK_TYPE><CALL>one.vm.x</CALL><CALL_INFO><RESULT>1</RESULT>&</CALL_INFO>";
        assert_eq!(
            json(api),
            format!(r#"{{"HOOK_TYPE":"API","CALL":"one.vm.x","RESULT":"1","raw":"{}"}}"#, String::from_utf8_lossy(api))
        );
        let state = "<HOOK_MESSAGE><HOOK_TYPE>STATE</HOOK_TYPE><HOOK_OBJECT>HOST</HOOK_OBJECT><STATE>INIT</STATE>\
                     <RESOURCE_ID>3</RESOURCE_ID><REMOTE_HOST/><HOST>";
        assert_eq!(
            json(state.as_bytes()),
            format!(
                r#"{{"HOOK_TYPE":"STATE","HOOK_OBJECT":"HOST","STATE":"INIT","RESOURCE_ID":"3","REMOTE_HOST":"","raw":"{state}"}}"#
            )
        );
        assert_eq!(json(b"\xFF"), "{\"raw\":\"\u{FFFD}\",\"raw_base64\":\"/w==\"}");
        assert_eq!(json(b""), r#"{"raw":""}"#);
    }
}
