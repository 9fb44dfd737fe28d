//! What an answer of oned's XML-RPC means.
//!
//! ```text
//! <methodResponse><params><param><value><array><data>
//!   <value><boolean>1</boolean></value>  <value><string>&lt;HOOK_POOL&gt;...</string></value>  <value><i4>0</i4></value>
//!   <value><boolean>0</boolean></value>  <value><string>what went wrong</string></value>       <value><i4>code</i4></value> ...
//! <methodResponse><fault><value><struct>... faultCode, faultString
//! ```
//!
//! oned passes on what hooks hold, characters too that XML forbids. They are replaced before anything is read: behind such a character a
//! parser would no longer know `&lt;`, of which an answer consists. For the rest, what is broken is repaired as libxml2 does it. But an answer has
//! to be whole: of one that was cut off, the repaired beginning would be a shorter list of hooks.

use std::borrow::Cow;

use hookbus_bridges::opennebula::{Document, Element};

use super::{shown, text as text_of};

/// oned's code: it doesn't know who asks.
pub(super) const AUTHENTICATION: i64 = 0x100;
/// oned's code: who asks isn't allowed to.
pub(super) const AUTHORIZATION: i64 = 0x200;
/// oned's code: there is no such object.
pub(super) const NO_EXISTS: i64 = 0x400;

/// Why there is no text in an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wrong {
    /// It isn't an answer.
    Nonsense(String),
    /// A fault of XML-RPC.
    Fault { code: i64, message: String },
    /// An error of oned.
    Oned { code: i64, message: String },
}

/// The text that oned answers with.
pub(super) fn text(body: &[u8]) -> Result<String, Wrong> {
    let nonsense = |what: String| Err(Wrong::Nonsense(what));
    let body = &*readable(body);
    let document = Document::parse(body.as_bytes());
    let Some(root) = document.root().filter(|root| root.name() == b"methodResponse") else {
        let start = crate::text::beginning(body, 80);
        return nonsense(format!("it is no XML-RPC, but begins with {:?}", shown(start)));
    };
    if !body.trim_end().ends_with("</methodResponse>") {
        return nonsense(format!("it ends too early, after {} bytes", body.len()));
    }
    if let Some(fault) = root.child("fault") {
        return Err(read_fault(fault));
    }
    let path = ["params", "param", "value", "array", "data"];
    let Some(data) = path.iter().try_fold(root, |element, name| element.child(name)) else {
        return nonsense("it is no list of values".into());
    };
    let values: Vec<_> = data.children().filter(|value| value.name() == b"value").take(3).collect();
    let Some(success) = values.first().copied().and_then(boolean) else {
        return nonsense("it doesn't begin with true or false".into());
    };
    let Some(second) = values.get(1).copied().map(scalar) else {
        return nonsense("there is nothing behind true or false".into());
    };
    if success {
        return Ok(second);
    }
    let code = values.get(2).copied().map(scalar).and_then(|code| code.trim().parse().ok());
    Err(Wrong::Oned { code: code.unwrap_or(-1), message: shown(&second) })
}

/// A body as a text that XML allows, without what stands before the first element.
fn readable(body: &[u8]) -> Cow<'_, str> {
    let forbidden = |c: char| (c < ' ' && !matches!(c, '\t' | '\n' | '\r')) || matches!(c, '\u{FFFE}' | '\u{FFFF}');
    let after = |text: &str| {
        let rest = text.trim_start_matches(['\u{feff}', ' ', '\t', '\r', '\n']);
        let declared = rest.strip_prefix("<?xml").and_then(|rest| rest.split_once("?>"));
        text.len() - declared.map_or(rest, |(_, rest)| rest.trim_start()).len()
    };
    let text = match String::from_utf8_lossy(body) {
        text if text.contains(forbidden) => Cow::Owned(text.replace(forbidden, "\u{FFFD}")),
        text => text,
    };
    let start = after(&text);
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(&text[start..]),
        Cow::Owned(mut text) => {
            text.drain(..start);
            Cow::Owned(text)
        }
    }
}

fn read_fault(fault: Element<'_>) -> Wrong {
    let members = fault.child("value").and_then(|value| value.child("struct"));
    let member = |name: &str| {
        let found = members?.children().find(|member| member.child("name").is_some_and(|n| text_of(n) == name))?;
        found.child("value").map(scalar)
    };
    let code = member("faultCode").and_then(|code| code.trim().parse().ok()).unwrap_or(-1);
    let message = member("faultString").unwrap_or_else(|| "without a reason".into());
    Wrong::Fault { code, message: shown(&message) }
}

fn boolean(value: Element<'_>) -> Option<bool> {
    match text_of(value.child("boolean")?).trim() {
        "1" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

/// The text of a value, with or without a type. Between a value's tag and that of its type there may be white space.
fn scalar(value: Element<'_>) -> String {
    text_of(value.children().next().unwrap_or(value))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn answer(values: &str) -> String {
        format!(
            "<?xml version=\"1.0\"?>\n<methodResponse>\n<params><param><value><array><data>{values}</data></array></value></param></params></methodResponse>\n"
        )
    }

    #[test]
    fn what_is_no_answer_is_told() {
        let cases: [(&[u8], &str); 8] = [
            (b"", "it is no XML-RPC, but begins with \"\""),
            (b"<html><body>It works!", "but begins with \"<html><body>It works!\""),
            (b"\x00\xFF\xFE", "it is no XML-RPC"),
            (b"<methodResponse><params><param>", "ends too early, after 31 bytes"),
            (b"<methodResponse/>x</methodResponse>", "is no list of values"),
            (b"<methodResponse><params><param><value><array><data></data></array></value></param></params></methodResponse>", "true or false"),
            (b"<methodResponse><params><param><value><array><data><value>x</value></data></array></value></param></params></methodResponse>", "true or false"),
            (b"<methodResponse><params><param><value><array><data><value><boolean>1</boolean></value></data></array></value></param></params></methodResponse>", "nothing behind true"),
        ];
        for (body, expected) in cases {
            let Err(Wrong::Nonsense(what)) = text(body) else { panic!("{expected}") };
            assert!(what.contains(expected), "{what}");
        }
    }

    #[test]
    fn values_with_and_without_a_type() {
        let yes = "<value><boolean>1</boolean></value>";
        assert_eq!(
            text(answer(&format!("{yes}<value><string>&lt;a&gt;</string></value>")).as_bytes()),
            Ok("<a>".into())
        );
        let odd = format!("{yes}<value><string>\x01&lt;a&gt;\u{FFFF}&amp;</string></value>");
        assert_eq!(text(answer(&odd).as_bytes()), Ok("\u{FFFD}<a>\u{FFFD}&".into()));
        let latin = [&answer("").as_bytes()[..90], b"\xFC"].concat();
        assert!(matches!(text(&latin), Err(Wrong::Nonsense(_))));
        assert_eq!(text(answer(&format!("{yes}<value>plain</value>")).as_bytes()), Ok("plain".into()));
        assert_eq!(text(answer(&format!("{yes}<value><string/></value>")).as_bytes()), Ok(String::new()));
        let no = "<value><boolean>0</boolean></value><value><string>a\nb</string></value>";
        assert_eq!(text(answer(no).as_bytes()), Err(Wrong::Oned { code: -1, message: "a b".into() }));
        let fault = "<methodResponse><fault><value><struct><member><name>faultCode</name><value><int>-506</int></value></member>\
                     <member><name>faultString</name><value><string>Method 'x' not defined</string></value></member></struct>\
                     </value></fault></methodResponse>";
        assert_eq!(text(fault.as_bytes()), Err(Wrong::Fault { code: -506, message: "Method 'x' not defined".into() }));
    }

    proptest! {
        #[test]
        fn any_body_is_survived(body in any::<Vec<u8>>(), inner in "[<>/a-z &;]{0,60}") {
            let _ = text(&body);
            let _ = text(answer(&inner).as_bytes());
        }
    }
}
