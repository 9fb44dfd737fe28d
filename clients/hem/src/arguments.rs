//! The arguments of a hook, once there is an event.
//!
//! ARGUMENTS is split at white space and joined by one blank, as OpenNebula's executor does it; quotes don't protect anything there. The
//! words `$API` and `$TEMPLATE`, and only whole words, are replaced:
//!
//! | word | in a hook of TYPE | becomes |
//! | --- | --- | --- |
//! | `$API` | `api` | base64 of the call: the element CALL_INFO, with the parameters and the result |
//! | `$TEMPLATE` | `state` | base64 of the object: the element VM, HOST, IMAGE or VNET |
//! | either | any other | nothing; the blanks around it stay |
//!
//! The element is written again as libxml2 writes it, so that a hook sees byte for byte what OpenNebula would have given it.

use std::borrow::Cow;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hookbus_bridges::opennebula::{Document, Event, Kind};

use crate::hook::Object;

const API: &str = "$API";
const TEMPLATE: &str = "$TEMPLATE";

/// What Ruby's `String#split` splits at.
fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\x0B' | '\x0C' | '\r' | '\0')
}

fn words(arguments: &str) -> impl Iterator<Item = &str> {
    arguments.split(is_space).filter(|word| !word.is_empty())
}

/// Whether a hook with these arguments needs the [`value`] of an event.
pub(crate) fn want_value(arguments: &str) -> bool {
    words(arguments).any(|word| word == API || word == TEMPLATE)
}

/// What a hook can have of an event.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) enum Value {
    /// An API call.
    Api(String),
    /// An object.
    Template(String),
    /// Neither, or nobody asked.
    #[default]
    Nothing,
}

impl Value {
    /// Base64 of the element that the event is about. Parses the document, so it is done once for all hooks.
    pub(crate) fn of(event: &Event<'_>) -> Value {
        match event.kind {
            Kind::Api => element(event.xml, "CALL_INFO").map_or(Value::Nothing, Value::Api),
            Kind::State => std::str::from_utf8(event.object)
                .ok()
                .and_then(|object| object.parse::<Object>().ok())
                .and_then(|object| element(event.xml, object.element()))
                .map_or(Value::Nothing, Value::Template),
            Kind::Other => Value::Nothing,
        }
    }
}

/// The arguments for an event.
pub(crate) fn expand(arguments: &str, value: &Value) -> String {
    let expanded = words(arguments).map(|word| match (word, value) {
        (API, Value::Api(base64)) | (TEMPLATE, Value::Template(base64)) => Cow::Borrowed(base64.as_str()),
        (API | TEMPLATE, _) => Cow::Borrowed(""),
        _ => Cow::Borrowed(word),
    });
    let mut text = String::new();
    for (i, word) in expanded.enumerate() {
        if i > 0 {
            text.push(' ');
        }
        text.push_str(&word);
    }
    text
}

/// An element of a document, in base64. It is below the root, unless the document is broken.
fn element(xml: &[u8], name: &str) -> Option<String> {
    let document = Document::parse(xml);
    let below_root = document.root().and_then(|root| root.child(name));
    below_root.or_else(|| document.find(name)).map(|element| BASE64_STANDARD.encode(element.to_xml()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_replaced_whole() {
        let api = Value::Api("QVBJ".into());
        let template = Value::Template("VE1QTA==".into());
        for (arguments, value, expected) in [
            ("first $API last", &api, "first QVBJ last"),
            ("prolog $API end", &template, "prolog  end"),
            ("one $TEMPLATE $API two", &template, "one VE1QTA==  two"),
            ("$TEMPLATE$TEMPLATE $template $TEMPLATE", &template, "$TEMPLATE$TEMPLATE $template VE1QTA=="),
            ("a  b\tc\n", &api, "a b c"),
            ("\"$API\"", &api, "\"$API\""),
            ("$API", &Value::Nothing, ""),
            ("$API x", &Value::Nothing, " x"),
            ("", &api, ""),
        ] {
            assert_eq!(expand(arguments, value), expected, "{arguments:?}");
        }
        assert!(want_value("x $API") && want_value("$TEMPLATE") && !want_value("$APIS '$API'"));
    }
}
