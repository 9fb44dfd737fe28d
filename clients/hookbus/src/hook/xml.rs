//! Hooks and executions as XML and JSON, with the elements that oned gives them.
//!
//! ```text
//! <HOOK_POOL><HOOK><ID>0</ID><NAME>x</NAME><TYPE>api</TYPE><TEMPLATE>...</TEMPLATE><ORIGIN>store</ORIGIN>
//!   <HOOKLOG><HOOK_EXECUTION_RECORD>...</HOOK_EXECUTION_RECORD>...</HOOKLOG></HOOK>...</HOOK_POOL>
//! ```
//!
//! ORIGIN (`store`, or the file), and DURATION_MS, EVENT, KEY and ENVIRONMENT of an execution, are ours. JSON is made of the XML as OpenNebula makes it: elements of the same name are an array, an empty
//! one is an empty object, and every value is text.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value};

use crate::listing::{list, number, string};

/// An element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Element {
    name: String,
    content: Content,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Content {
    Text(String),
    /// Text that stands in a CDATA section, as values of templates do.
    Value(String),
    Elements(Vec<Element>),
}

/// A text, or a number as text.
struct Text(String);

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Text(text.into())
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Text(text)
    }
}

impl From<u64> for Text {
    fn from(number: u64) -> Self {
        Text(number.to_string())
    }
}

impl From<i64> for Text {
    fn from(number: i64) -> Self {
        Text(number.to_string())
    }
}

impl Element {
    fn text(name: &str, text: impl Into<Text>) -> Self {
        Element { name: name.into(), content: Content::Text(text.into().0) }
    }

    fn of(name: &str, elements: Vec<Element>) -> Self {
        Element { name: name.into(), content: Content::Elements(elements) }
    }

    /// The document, indented.
    pub(super) fn to_xml(&self) -> String {
        let mut xml = String::new();
        self.write(0, &mut xml);
        xml
    }

    fn write(&self, depth: usize, xml: &mut String) {
        let (indent, name) = ("  ".repeat(depth), &self.name);
        match &self.content {
            Content::Elements(elements) if elements.is_empty() => *xml += &format!("{indent}<{name}/>\n"),
            Content::Elements(elements) => {
                *xml += &format!("{indent}<{name}>\n");
                elements.iter().for_each(|element| element.write(depth + 1, xml));
                *xml += &format!("{indent}</{name}>\n");
            }
            Content::Text(text) if text.is_empty() => *xml += &format!("{indent}<{name}/>\n"),
            Content::Text(text) => *xml += &format!("{indent}<{name}>{}</{name}>\n", escaped(text)),
            Content::Value(text) => {
                let text =
                    text.chars().filter(|&c| is_allowed(c)).collect::<String>().replace("]]>", "]]]]><![CDATA[>");
                *xml += &format!("{indent}<{name}><![CDATA[{text}]]></{name}>\n");
            }
        }
    }

    /// As OpenNebula writes it as JSON.
    pub(super) fn to_json(&self) -> Value {
        let mut object = Map::new();
        object.insert(self.name.clone(), self.content());
        Value::Object(object)
    }

    fn content(&self) -> Value {
        let elements = match &self.content {
            Content::Text(text) | Content::Value(text) if text.is_empty() => return Value::Object(Map::new()),
            Content::Text(text) | Content::Value(text) => return Value::from(text.as_str()),
            Content::Elements(elements) => elements,
        };
        let mut object = Map::new();
        for element in elements {
            match object.get_mut(&element.name) {
                None => {
                    object.insert(element.name.clone(), element.content());
                }
                Some(Value::Array(several)) => several.push(element.content()),
                Some(one) => *one = Value::Array(vec![one.take(), element.content()]),
            }
        }
        Value::Object(object)
    }
}

/// What XML 1.0 can hold.
fn is_allowed(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r') || c >= ' ' && !matches!(c, '\u{FFFE}' | '\u{FFFF}')
}

fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars().filter(|&c| is_allowed(c)) {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '\r' => escaped += "&#13;",
            c => escaped.push(c),
        }
    }
    escaped
}

/// All hooks.
pub(super) fn pool(answer: &Value) -> Element {
    let mut all: Vec<&Value> = list(&answer["hooks"]).iter().collect();
    all.sort_by_key(|hook| std::cmp::Reverse(hook["id"].as_u64()));
    Element::of("HOOK_POOL", all.into_iter().map(|one| Element::of("HOOK", head(one))).collect())
}

/// One hook, with its executions.
pub(super) fn hook(answer: &Value) -> Element {
    let mut elements = head(answer);
    elements.push(Element::of("HOOKLOG", list(&answer["executions"]).iter().map(record).collect()));
    Element::of("HOOK", elements)
}

/// Executions of all hooks.
pub(super) fn log(answer: &Value) -> Element {
    Element::of("HOOKLOG", list(&answer["executions"]).iter().map(record).collect())
}

fn head(hook: &Value) -> Vec<Element> {
    let mut elements: Vec<Element> = hook["id"].as_u64().map(|id| Element::text("ID", id)).into_iter().collect();
    elements.push(Element::text("NAME", string(&hook["name"])));
    elements.push(Element::text("TYPE", string(&hook["type"])));
    if hook["locked"] == true {
        elements.push(Element::of("LOCK", vec![Element::text("LOCKED", "1")]));
    }
    let value = |(name, value): (&String, &Value)| Element {
        name: name.clone(),
        content: Content::Value(string(value).into()),
    };
    let attribute = |(name, of_hook): (&String, &Value)| match of_hook.as_object() {
        None => value((name, of_hook)),
        Some(pairs) => Element::of(name, pairs.iter().map(value).collect()),
    };
    let attributes = hook["attributes"].as_object().into_iter().flatten().map(attribute).collect();
    elements.push(Element::of("TEMPLATE", attributes));
    elements.push(Element::text("ORIGIN", hook["file"].as_str().unwrap_or_else(|| string(&hook["origin"]))));
    elements
}

fn record(execution: &Value) -> Element {
    let hook = execution["hook_id"].as_u64().map_or_else(|| string(&execution["hook"]).to_owned(), |id| id.to_string());
    let time: Option<jiff::Timestamp> = string(&execution["time"]).parse().ok();
    let mut elements = vec![
        Element::text("HOOK_ID", hook),
        Element::text("EXECUTION_ID", number(&execution["id"])),
        Element::text("TIMESTAMP", time.map_or(0, jiff::Timestamp::as_second)),
    ];
    let mut result = Vec::new();
    if execution.get("command").is_some() {
        elements.push(Element::text("ARGUMENTS", string(&execution["arguments"])));
        result.push(Element::text("COMMAND", string(&execution["command"])));
        result.push(Element::text("STDOUT", output(execution, "stdout")));
        result.push(Element::text("STDERR", output(execution, "stderr")));
    }
    result.push(Element::text("CODE", execution["code"].as_i64().unwrap_or(255)));
    elements.push(Element::of("EXECUTION_RESULT", result));
    elements.extend(execution["host"].as_str().map(|host| Element::text("REMOTE_HOST", host)));
    elements.extend(execution["retry_of"].as_u64().map(|_| Element::text("RETRY", "yes")));
    // What follows is ours.
    elements.extend(execution["duration_ms"].as_u64().map(|duration| Element::text("DURATION_MS", duration)));
    elements.extend(execution["event"].as_str().map(|event| Element::text("EVENT", event)));
    elements.extend(execution["key"].as_str().map(|key| Element::text("KEY", key)));
    if let Some(environment) = execution["environment"].as_object().filter(|environment| !environment.is_empty()) {
        let variables = environment.iter().map(|(name, text)| match is_name(name) {
            true => Element::text(name, string(text)),
            false => Element::text("VARIABLE", format!("{name}={}", string(text))),
        });
        elements.push(Element::of("ENVIRONMENT", variables.collect()));
    }
    Element::of("HOOK_EXECUTION_RECORD", elements)
}

/// Whether an element can have this name.
fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'))
}

/// An output in base64.
fn output(execution: &Value, name: &str) -> String {
    match execution[format!("{name}_base64")].as_str() {
        Some(base64) => base64.to_owned(),
        None => BASE64_STANDARD.encode(string(&execution[name])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn documents_have_the_elements_of_oned() {
        let execution = json!({"hook_id": 3, "id": 0, "time": "2026-11-21T23:20:25Z", "command": "/x a&b", "arguments": "a&b",
            "code": 3, "stdout": "hello\n", "stderr": "", "retry_of": 1});
        let answer = json!({"id": 3, "name": "ü", "type": "api", "origin": "store", "locked": true,
            "attributes": {"COMMAND": "a]]>b", "V": {"A": "1"}}, "executions": [execution]});
        let expected = "<HOOK>\n  <ID>3</ID>\n  <NAME>ü</NAME>\n  <TYPE>api</TYPE>\n  <LOCK>\n    <LOCKED>1</LOCKED>\n  </LOCK>\n  \
            <TEMPLATE>\n    <COMMAND><![CDATA[a]]]]><![CDATA[>b]]></COMMAND>\n    <V>\n      <A><![CDATA[1]]></A>\n    </V>\n  </TEMPLATE>\n  \
            <ORIGIN>store</ORIGIN>\n  <HOOKLOG>\n    <HOOK_EXECUTION_RECORD>\n      <HOOK_ID>3</HOOK_ID>\n      <EXECUTION_ID>0</EXECUTION_ID>\n      \
            <TIMESTAMP>1795303225</TIMESTAMP>\n      <ARGUMENTS>a&amp;b</ARGUMENTS>\n      <EXECUTION_RESULT>\n        \
            <COMMAND>/x a&amp;b</COMMAND>\n        <STDOUT>aGVsbG8K</STDOUT>\n        <STDERR/>\n        <CODE>3</CODE>\n      \
            </EXECUTION_RESULT>\n      <RETRY>yes</RETRY>\n    </HOOK_EXECUTION_RECORD>\n  </HOOKLOG>\n</HOOK>\n";
        assert_eq!(hook(&answer).to_xml(), expected);
        let json = hook(&answer).to_json();
        assert_eq!(json["HOOK"]["TEMPLATE"]["V"]["A"], "1");
        assert_eq!(json["HOOK"]["HOOKLOG"]["HOOK_EXECUTION_RECORD"]["EXECUTION_RESULT"]["STDERR"], json!({}));
    }

    #[test]
    fn elements_of_the_same_name_are_an_array() {
        let hooks = json!({"hooks": [{"id": 0, "name": "a"}, {"name": "f", "file": "/f"}, {"id": 1, "name": "b"}]});
        let json = pool(&hooks).to_json();
        let names: Vec<_> = list(&json["HOOK_POOL"]["HOOK"]).iter().map(|hook| string(&hook["NAME"])).collect();
        assert_eq!(names, ["b", "a", "f"]);
    }
}
