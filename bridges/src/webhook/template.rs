//! Text with an event's values in it, by minijinja.
//!
//! # Escaping
//!
//! What is put in is written so that it stays one value, whatever it holds:
//!
//! | place | a text is written | anything else |
//! | --- | --- | --- |
//! | a JSON body, between quotation marks | with JSON's escapes | as JSON, with these escapes |
//! | a JSON body, elsewhere | as a JSON string, with quotation marks | as JSON |
//! | the URL | percent-encoded, save letters, digits and `-._~` | the same as in a header, percent-encoded |
//! | a header, any other body | as it is | lists and objects as JSON, else its text |
//!
//! So both `{"text": "{{ data.name }} is up"}` and `{"name": {{ data.name }}}` are right. Whether a place is between quotation marks is known
//! only when everything before it is written: values are written between two control characters, which no JSON has, and put in place afterwards.
//! What goes through `safe` or `tojson` is taken as it is. A JSON body is parsed before it is sent, and is none where that fails.
//!
//! # What is told rather than sent
//!
//! A name that isn't there is an error, not an empty text; `default` is for what may be missing. Templates can't read files or each other, and what one
//! rendering may take (time, memory) is bounded by minijinja's fuel.

use std::borrow::Cow;

use minijinja::value::{Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Output, State, UndefinedBehavior};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// About a second, and 128 MiB.
const FUEL: u64 = 2_000_000;
/// The longest template.
const MOST_BYTES: usize = 64 << 10;
/// How deep macros may call each other.
const DEPTH: usize = 50;
/// Around a value in a JSON body, until it is known whether it stands between quotation marks.
const BEGIN: char = '\u{1}';
const END: char = '\u{2}';
/// How the URL is escaped.
const URL: &str = "url";

/// RFC 3986's unreserved characters stay.
const UNRESERVED: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Where a template's text goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TemplateKind {
    /// Into a URL, behind host and port.
    Url,
    /// Into the value of a header.
    Header,
    /// Into a body that is JSON.
    JsonBody,
    /// Into any other body.
    TextBody,
}

impl TemplateKind {
    /// The kind of a body of this media type.
    pub fn of_body(content_type: &str) -> Self {
        let kind = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        if kind == "application/json" || kind.ends_with("+json") {
            TemplateKind::JsonBody
        } else {
            TemplateKind::TextBody
        }
    }

    /// Names of templates begin with it, so that escaping can be told from the name.
    fn prefix(self) -> &'static str {
        match self {
            TemplateKind::Url => "url",
            TemplateKind::Header => "header",
            TemplateKind::JsonBody => "json",
            TemplateKind::TextBody => "text",
        }
    }
}

/// Why a text is no template: what is wrong and in which line of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TemplateError(pub(super) String);

/// Whether there is anything to do about a text.
pub(super) fn is_template(text: &str) -> bool {
    ["{{", "{%", "{#"].iter().any(|begin| text.contains(begin))
}

/// All templates of a bridge.
#[derive(Debug)]
pub(super) struct Templates {
    environment: Environment<'static>,
}

/// One of them.
#[derive(Clone, Debug)]
pub(super) struct Template {
    name: String,
    kind: TemplateKind,
}

impl Templates {
    pub(super) fn new() -> Self {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(DEPTH);
        environment.set_auto_escape_callback(|name| match name.split(':').next() {
            Some("url") => AutoEscape::Custom(URL.into()),
            Some("json") => AutoEscape::Json,
            _ => AutoEscape::None,
        });
        environment.set_formatter(write_value);
        environment.add_filter("urlencode", url_encode);
        // They would show everything that is known, secrets too, in the middle of a text.
        environment.remove_global("debug");
        Templates { environment }
    }

    /// Adds a template. `title` is what it is called in errors.
    pub(super) fn add(&mut self, kind: TemplateKind, title: &str, text: &str) -> Result<Template, TemplateError> {
        if kind == TemplateKind::JsonBody && text.contains([BEGIN, END]) {
            return Err(TemplateError("there is a control character in it".into()));
        }
        if text.len() > MOST_BYTES {
            return Err(TemplateError(format!("it has {} bytes, and {MOST_BYTES} are the most", text.len())));
        }
        let name = format!("{}:{title}", kind.prefix());
        // The compiler goes as deep as the text does; what renders doesn't.
        let added = super::with_deep_stack(|| self.environment.add_template_owned(name.clone(), text.to_owned()));
        added.ok_or_else(|| TemplateError("it can't be read".into()))?.map_err(|error| TemplateError(said(&error)))?;
        Ok(Template { name, kind })
    }

    /// Makes a text of a template.
    pub(super) fn render(&self, template: &Template, context: &Value) -> Result<String, TemplateError> {
        let rendered = self.environment.get_template(&template.name).and_then(|found| found.render(context.clone()));
        let text = rendered.map_err(|error| TemplateError(said(&error)))?;
        if template.kind != TemplateKind::JsonBody {
            return Ok(text);
        }
        let text = in_place(&text).map_err(|what| TemplateError(what.into()))?;
        match serde_json::from_str::<serde::de::IgnoredAny>(&text) {
            Ok(_) => Ok(text),
            Err(error) => Err(TemplateError(format!("what it makes is no JSON: {error}"))),
        }
    }
}

/// Whether a text is a template of that kind which can be right: syntax, filters and functions that aren't there, and secrets that aren't configured.
///
/// # Errors
/// When it isn't; says in which line.
pub fn check_template(kind: TemplateKind, text: &str, secrets: &[&str]) -> Result<(), TemplateError> {
    let mut templates = Templates::new();
    let template = templates.add(kind, "it", text)?;
    let found = templates.environment.get_template(&template.name).map_err(|error| TemplateError(said(&error)))?;
    for name in super::with_deep_stack(|| found.undeclared_variables(true)).unwrap_or_default() {
        let Some(secret) = name.strip_prefix("secrets.") else { continue };
        let secret = secret.split('.').next().unwrap_or(secret);
        if !secrets.contains(&secret) {
            return Err(TemplateError(format!("there is no secret `{secret}`; name its file in `secrets`")));
        }
    }
    // Other names are the event's, and not known here. What isn't there but isn't the event's either is found by trying.
    templates.environment.set_undefined_behavior(UndefinedBehavior::Chainable);
    let tried = templates.environment.get_template(&template.name).and_then(|found| found.render(()));
    match tried {
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::UnknownFilter | ErrorKind::UnknownTest | ErrorKind::UnknownFunction | ErrorKind::OutOfFuel
            ) =>
        {
            Err(TemplateError(said(&error)))
        }
        _ => Ok(()),
    }
}

/// An error in one line, without the values around it.
fn said(error: &Error) -> String {
    let what = match error.kind() {
        ErrorKind::OutOfFuel => "it takes too long, or too much memory".to_owned(),
        kind => match error.detail() {
            Some(detail) => format!("{kind}: {detail}"),
            None => kind.to_string(),
        },
    };
    match error.line() {
        Some(line) => format!("line {line}: {what}"),
        None => what,
    }
}

fn write_value(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    let text = match state.auto_escape() {
        _ if value.is_safe() => Cow::Owned(value.to_string()),
        AutoEscape::Json => {
            let json = serde_json::to_string(value).map_err(|error| {
                Error::new(ErrorKind::BadSerialization, "it can't be written as JSON").with_source(error)
            })?;
            Cow::Owned(format!("{BEGIN}{json}{END}"))
        }
        AutoEscape::Custom(_) => Cow::Owned(utf8_percent_encode(&plain(value), &UNRESERVED).to_string()),
        _ => plain(value),
    };
    state.consume_fuel(text.len() as u64 / 64)?;
    out.write_str(&text).map_err(|error| Error::new(ErrorKind::WriteFailure, "there is no room").with_source(error))
}

/// A value as text: lists and objects as JSON, anything else as it is written in a template.
fn plain(value: &Value) -> Cow<'_, str> {
    match value.kind() {
        ValueKind::String => value.as_str().map_or_else(|| value.to_string().into(), Cow::Borrowed),
        ValueKind::Seq | ValueKind::Map => serde_json::to_string(value).unwrap_or_else(|_| value.to_string()).into(),
        _ => value.to_string().into(),
    }
}

/// The filter `urlencode`. In a URL it changes nothing, because everything is encoded there.
fn url_encode(state: &State<'_, '_>, value: &Value) -> Value {
    let encoded = utf8_percent_encode(&plain(value), &UNRESERVED).to_string();
    match state.auto_escape() {
        AutoEscape::Custom(_) => Value::from_safe_string(encoded),
        _ => Value::from(encoded),
    }
}

/// Puts the values of a JSON body where they belong.
fn in_place(text: &str) -> Result<String, &'static str> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let (mut in_string, mut escaped) = (false, false);
    while let Some(at) = rest.find(BEGIN) {
        let (before, value) = (&rest[..at], &rest[at + 1..]);
        for byte in before.bytes() {
            match byte {
                _ if escaped => escaped = false,
                b'\\' if in_string => escaped = true,
                b'"' => in_string = !in_string,
                _ => {}
            }
        }
        out.push_str(before);
        let end = value.find(END).ok_or("a value has no end; a filter was used on what holds others")?;
        let json = &value[..end];
        match json.strip_prefix('"').and_then(|json| json.strip_suffix('"')) {
            Some(inside) if in_string => out.push_str(inside),
            None if in_string => {
                let quoted = serde_json::Value::from(json).to_string();
                out.push_str(&quoted[1..quoted.len() - 1]);
            }
            _ => out.push_str(json),
        }
        rest = &value[end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use minijinja::value::Serde;
    use serde_json::json;

    use super::*;

    fn render(kind: TemplateKind, text: &str) -> Result<String, String> {
        let event = json!({
            "id": "1", "type": "org.ganeti.hook",
            "data": { "name": "we\"b\n1/ü\\", "count": 3, "list": ["a", "\""], "on": true, "none": null },
            "secrets": { "slack": "s3cr3t" },
        });
        let mut templates = Templates::new();
        let template = templates.add(kind, "it", text).map_err(|error| error.to_string())?;
        templates.render(&template, &Value::from(Serde(event))).map_err(|error| error.to_string())
    }

    /// Whatever a value holds, and wherever it stands, the body is JSON, and says what the event says.
    #[test]
    fn values_stay_values_in_json() {
        let name = "we\"b\n1/ü\\";
        for (text, expected) in [
            (r#"{"text": "Instance {{ data.name }} moved"}"#, json!({ "text": format!("Instance {name} moved") })),
            (r#"{"name": {{ data.name }}, "n": {{ data.count }}}"#, json!({ "name": name, "n": 3 })),
            (r#"{"all": {{ data.list }}, "on": {{ data.on }}}"#, json!({ "all": ["a", "\""], "on": true })),
            (r#"{"text": "all: {{ data.list }}"}"#, json!({ "text": "all: [\"a\",\"\\\"\"]" })),
            (r#"{"text": "a \" b \\{{ data.name }}"}"#, json!({ "text": format!("a \" b \\{name}") })),
            (r#"{"n": {{ data.none }}, "s": "{{ data.count }}"}"#, json!({ "n": null, "s": "3" })),
            (
                r#"{"j": {{ data|tojson }}}"#,
                json!({ "j": { "name": name, "count": 3, "list": ["a", "\""], "on": true, "none": null } }),
            ),
            (r#"[{% for x in data.list %}{{ x }}{% if not loop.last %},{% endif %}{% endfor %}]"#, json!(["a", "\""])),
            (
                r#"{% set t %}of {{ data.name }}{% endset %}{"text": "{{ t }}"}"#,
                json!({ "text": format!("of {name}") }),
            ),
            (
                r#"{"text": "{{ data.list | join(", ") }} {{ data.name ~ "!" }}"}"#,
                json!({ "text": format!("a, \" {name}!") }),
            ),
            (
                r#"{"x": "{{ data.missing | default("-") }}", "u": "{{ data.name | urlencode }}"}"#,
                json!({ "x": "-", "u": "we%22b%0A1%2F%C3%BC%5C" }),
            ),
        ] {
            let body = render(TemplateKind::JsonBody, text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(serde_json::from_str::<serde_json::Value>(&body).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn what_makes_no_json_is_told() {
        for (text, expected) in [
            (r#"{"text": {{ data.name|safe }}}"#, "is no JSON"),
            (r#"{"text": "{{ data.name }}"#, "is no JSON"),
            (r#"{"text": "{{ data.nam }}"}"#, "line 1: undefined value"),
            ("{\n\"text\": \"{{ dat.name }}\"}", "line 2: undefined value"),
            ("{% for x in range(100000) %}{% for y in range(100000) %}{% endfor %}{% endfor %}1", "too long"),
            (
                "{% set ns = namespace(x='x') %}{% for i in range(90) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
                "too",
            ),
            ("{{ 'x' * 10000000000 }}", "too"),
        ] {
            let error = render(TemplateKind::JsonBody, text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn the_url_is_encoded_and_a_text_is_as_it_is() {
        let url = |text| render(TemplateKind::Url, text).unwrap();
        assert_eq!(url("/a/{{ data.name }}?n={{ data.count }}"), "/a/we%22b%0A1%2F%C3%BC%5C?n=3");
        assert_eq!(url("/{{ data.name|urlencode }}"), "/we%22b%0A1%2F%C3%BC%5C");
        assert_eq!(url("/{{ 'a/b'|safe }}"), "/a/b");
        assert_eq!(
            render(TemplateKind::TextBody, "{{ data.name }} {{ data.list }}").unwrap(),
            "we\"b\n1/ü\\ [\"a\",\"\\\"\"]"
        );
        assert_eq!(render(TemplateKind::Header, "{{ secrets.slack }}").unwrap(), "s3cr3t");
    }

    #[test]
    fn what_is_wrong_is_found_before_anything_is_sent() {
        let check =
            |text: &str| check_template(TemplateKind::JsonBody, text, &["slack"]).map_err(|error| error.to_string());
        assert_eq!(check("{\"a\": \"{{ data.name }}\", \"t\": \"{{ secrets.slack }}\"}"), Ok(()));
        assert_eq!(check("{% for x in data.list %}{{ x.y.z | upper }}{% endfor %}"), Ok(()));
        for (text, expected) in [
            ("a\n{{ data.name", "line 2: syntax error"),
            ("{% if x %}", "syntax error"),
            ("a\n\n{{ data.name | uper }}", "line 3: unknown filter"),
            ("{{ secrets.slak }}", "there is no secret `slak`"),
            ("{{ nothing() }}", "unknown function"),
            ("{{ debug() }}", "unknown function"),
            ("{% include 'x' %}", "syntax error"),
        ] {
            let error = check(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    /// However a template is nested, it is refused or rendered, within the stack of any thread.
    #[test]
    fn deep_templates_need_no_deep_stack() {
        let nested = |open: &str, middle: &str, close: &str| {
            [100, 1500].map(|count| format!("{}{middle}{}", open.repeat(count), close.repeat(count)))
        };
        let shapes = [
            nested("{% if 1 %}", "x", "{% endif %}"),
            nested("{% for x in [1] %}", "x", "{% endfor %}"),
            nested("{% set x %}", "x", "{% endset %}"),
        ];
        let chains = ["(", "[", "-", "not ", "1~", "1+", "2**", "1 if 1 else ", "{1:", "1 and ", "1 == ", "x("];
        let closing = |open: &str| match open {
            "(" | "x(" => ")",
            "[" => "]",
            "{1:" => "}",
            _ => "",
        };
        let chains =
            chains.iter().flat_map(|open| nested(open, "1", closing(open))).map(|text| format!("{{{{ {text} }}}}"));
        let behind = ["|upper", ".a", "[0]", "()"].iter().flat_map(|part| nested("", "", part));
        let behind = behind.map(|text| format!("{{{{ x{text} }}}}"));
        for text in shapes.into_iter().flatten().chain(chains).chain(behind) {
            let _ = check_template(TemplateKind::TextBody, &text, &[]);
        }
    }

    #[test]
    fn json_is_known_by_its_type() {
        for (content_type, kind) in [
            ("application/json", TemplateKind::JsonBody),
            ("Application/JSON; charset=utf-8", TemplateKind::JsonBody),
            ("application/vnd.x+json", TemplateKind::JsonBody),
            ("text/plain", TemplateKind::TextBody),
            ("application/jsonx", TemplateKind::TextBody),
        ] {
            assert_eq!(TemplateKind::of_body(content_type), kind);
        }
    }
}
