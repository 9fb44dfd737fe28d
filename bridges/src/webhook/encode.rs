//! A letter as an HTTP request.
//!
//! Without a template for the body, a letter goes as the [HTTP binding of
//! CloudEvents](https://github.com/cloudevents/spec/blob/main/cloudevents/bindings/http-protocol-binding.md) has it: structured with its `Content-Type`, or
//! binary with a header `ce-<attribute>` for each attribute. Each request has `Idempotency-Key`, the letter's id.

use std::fs;
use std::io::{Error, ErrorKind};
use std::str::FromStr;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use hyper::http::uri::PathAndQuery;
use hyper::{Method, Request, Uri};
use minijinja::value::{Serde, Value};
use serde_json::Map;

use super::answer::Rules;
use super::condition::Condition;
use super::config::{Body, Login, WebhookOptions};
use super::redact::Redacted;
use super::target::{Origin, Target};
use super::template::{Template, TemplateKind, Templates, is_template};
use crate::cloudevents::{Encoder, STRUCTURED, decode_key, encode_header};
use crate::delivery::{Fault, Letter, Rejection};
use crate::secret::Secret;

/// By this header a server can tell repetitions.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// The longest path with its query.
const MOST_PATH_BYTES: usize = 16 * 1024;

/// What is sent, and says what to do with the answer.
#[derive(Debug)]
pub(super) enum Prepared {
    /// A request.
    Request(Box<Request<Full<Bytes>>>),
    /// The event isn't meant.
    Filtered,
}

/// Something that is the same for all events, or a template.
#[derive(Debug)]
enum Text<T> {
    Fixed(T),
    Made(Template),
}

/// What makes requests of letters: all that the options say, read and compiled. One is made for each connection.
#[derive(Debug)]
pub(super) struct Recipe {
    pub(super) origin: Origin,
    pub(super) rules: Rules,
    pub(super) redacted: Redacted,
    method: Method,
    path: Text<Uri>,
    /// Those that are the same for all requests.
    fixed: HeaderMap,
    /// Those that are made of the event.
    made: Vec<(HeaderName, Template)>,
    body: Option<Template>,
    content_type: Option<HeaderValue>,
    when: Option<Condition>,
    templates: Templates,
    /// What templates know as `secrets`.
    secrets: serde_json::Value,
    encoder: Encoder,
    body_max_bytes: usize,
}

fn help(what: impl Into<String>) -> Fault {
    Fault::needs_help(what)
}

/// A secret of the options, and what it is called there.
fn read(secret: &Secret, key: &str) -> Result<String, Fault> {
    secret.read().map_err(|error| help(format!("{key}: {error}")))
}

impl Recipe {
    /// Reads files and compiles what is to be compiled. It blocks.
    pub(super) fn new(options: &WebhookOptions) -> Result<Self, Fault> {
        let mut redacted = Redacted::default();
        let key = if matches!(options.url, Secret::File(_)) { "url_file" } else { "url" };
        let url = read(&options.url, key)?;
        let target = Target::new(&url).map_err(|what| help(format!("{key}: {what}")))?;
        if matches!(options.url, Secret::File(_)) {
            redacted.add_path(&target.path);
        }
        let mut secrets = Map::new();
        for (name, secret) in &options.secrets {
            let text = read(secret, &format!("secrets.{name}"))?;
            redacted.add(&text);
            secrets.insert(name.to_string(), text.into());
        }

        let mut templates = Templates::new();
        let path = if is_template(&target.path) {
            let template = templates.add(TemplateKind::Url, key, &target.path);
            Text::Made(template.map_err(|error| help(redacted.hide(&format!("{key}: {error}"))))?)
        } else {
            let uri = uri(target.path.clone())
                .map_err(|_| help(format!("{key}: what stands behind the host can't be sent")))?;
            Text::Fixed(uri)
        };

        let mut fixed = HeaderMap::new();
        fixed.insert(HOST, header(&target.origin.authority).map_err(|what| help(format!("{key}: its host {what}")))?);
        fixed.insert(USER_AGENT, HeaderValue::from_static(concat!("hookbus/", env!("CARGO_PKG_VERSION"))));
        if let Some(login) = login(&options.login, target.credentials.as_ref(), &mut redacted)? {
            fixed.insert(AUTHORIZATION, login);
        }
        let mut made = Vec::new();
        for (name, text) in &options.headers {
            let header_name = check_header(name).map_err(|what| help(format!("headers: {what}")))?;
            if is_template(text) {
                let template = templates.add(TemplateKind::Header, &format!("headers.{name}"), text);
                made.push((header_name, template.map_err(|error| help(format!("headers.{name}: {error}")))?));
            } else {
                fixed.insert(header_name, header(text).map_err(|what| help(format!("headers.{name}: it {what}")))?);
            }
        }

        let content_type = options.content_type.as_deref().unwrap_or("application/json");
        let body = match &options.body {
            None => None,
            Some(Body::Text(text)) => Some(("body", text.to_string())),
            Some(Body::File(path)) => {
                let text = fs::read_to_string(path);
                let told = |error: Error| match error.kind() {
                    ErrorKind::InvalidData => help(format!("body_file: {} is no UTF-8 text", path.display())),
                    _ => help(format!("body_file: {} can't be read: {error}", path.display())),
                };
                Some(("body_file", text.map_err(told)?))
            }
        };
        let body = match body {
            None => None,
            Some((key, text)) => {
                let template = templates.add(TemplateKind::of_body(content_type), key, &text);
                Some(template.map_err(|error| help(format!("{key}: {error}")))?)
            }
        };
        let content_type = match body {
            Some(_) => Some(header(content_type).map_err(|what| help(format!("content_type: it {what}")))?),
            None => None,
        };
        let when = options.when.as_deref().map(Condition::new).transpose();
        let rules = Rules {
            accept: options.accept_status.clone(),
            reject: options.reject_status.clone(),
            url_varies: matches!(path, Text::Made(_)),
        };
        Ok(Recipe {
            origin: target.origin,
            rules,
            redacted,
            method: check_method(&options.method).map_err(|what| help(format!("method: {what}")))?,
            path,
            fixed,
            made,
            body,
            content_type,
            when: when.map_err(|error| help(format!("when: {error}")))?,
            templates,
            secrets: secrets.into(),
            encoder: options.encoder.clone(),
            body_max_bytes: options.body_max_bytes,
        })
    }

    /// How large a letter may be. What a template makes of it is another matter.
    pub(super) fn letter_bytes(&self) -> usize {
        if self.body.is_some() || !self.has_body() { usize::MAX } else { self.body_max_bytes }
    }

    /// Whether nothing has to be evaluated.
    pub(super) fn is_plain(&self) -> bool {
        self.when.is_none() && !self.varies()
    }

    /// Whether a template makes anything of a request.
    fn varies(&self) -> bool {
        self.body.is_some() || !self.made.is_empty() || self.rules.url_varies
    }

    /// Whether letters go in a body where no template makes one.
    fn has_body(&self) -> bool {
        !matches!(self.method, Method::GET | Method::DELETE)
    }

    /// Makes a letter's request. It may take its time, within bounds, and doesn't wait for anything.
    pub(super) fn prepare(&self, letter: &Letter) -> Result<Prepared, Rejection> {
        let refuse = |what: String| Rejection::Permanent(self.redacted.hide(&what));
        let varies = self.varies();
        let event = if self.when.is_some() || varies { self.event(letter) } else { Bytes::new() };
        if let Some(when) = &self.when {
            match when.holds(&event) {
                Ok(true) => {}
                Ok(false) => return Ok(Prepared::Filtered),
                Err(error) => return Err(refuse(format!("when: {error}"))),
            }
        }
        let context = if varies { self.context(letter, &event).map_err(refuse)? } else { Value::UNDEFINED };
        let make = |template: &Template, key: &str| {
            self.templates.render(template, &context).map_err(|error| refuse(format!("{key}: {error}")))
        };

        let path = match &self.path {
            Text::Fixed(uri) => uri.clone(),
            Text::Made(template) => {
                let made = make(template, "url")?;
                uri(made).map_err(|what| refuse(format!("url: what the template makes {what}")))?
            }
        };
        let mut request = Request::new(Full::default());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = path;
        let body = match &self.body {
            Some(template) => Bytes::from(make(template, "body")?),
            None if self.has_body() => letter.body.clone(),
            None => Bytes::new(),
        };
        if body.len() > self.body_max_bytes && self.body.is_some() {
            let bytes = body.len();
            return Err(refuse(format!(
                "body: the template makes {bytes} bytes, and body_max_bytes is {}",
                self.body_max_bytes
            )));
        }

        let headers = request.headers_mut();
        let id = header(&letter.id).map_err(|what| refuse(format!("the event's id {what}")))?;
        headers.insert(IDEMPOTENCY_KEY, id);
        match &self.content_type {
            Some(content_type) => _ = headers.insert(CONTENT_TYPE, content_type.clone()),
            None if self.has_body() && !letter.content_type.is_empty() => {
                let said = header(&letter.content_type);
                headers.insert(CONTENT_TYPE, said.map_err(|what| refuse(format!("the event's content type {what}")))?);
            }
            None => {}
        }
        if self.body.is_none() {
            for (name, text) in &letter.attributes {
                let name = HeaderName::from_str(&format!("ce-{name}"))
                    .map_err(|_| refuse(format!("the attribute {name:?} can't be a header")))?;
                let value =
                    header(&encode_header(text)).map_err(|what| refuse(format!("the attribute {name} {what}")))?;
                headers.insert(name, value);
            }
        }
        for (name, value) in &self.fixed {
            headers.insert(name.clone(), value.clone());
        }
        for (name, template) in &self.made {
            let key = format!("headers.{name}");
            let text = make(template, &key)?;
            headers.insert(
                name.clone(),
                header(&text).map_err(|what| refuse(format!("{key}: what the template makes {what}")))?,
            );
        }
        *request.body_mut() = Full::new(body);
        Ok(Prepared::Request(Box::new(request)))
    }

    /// The event as a CloudEvent in JSON, whole.
    fn event(&self, letter: &Letter) -> Bytes {
        if letter.content_type == STRUCTURED && letter.attributes.is_empty() && letter.omitted.is_none() {
            return letter.body.clone();
        }
        self.encoder.structured(&letter.event, letter.dropped)
    }

    /// What templates know.
    fn context(&self, letter: &Letter, event: &[u8]) -> Result<Value, String> {
        let mut all: Map<String, serde_json::Value> =
            serde_json::from_slice(event).map_err(|error| format!("the event is no JSON: {error}"))?;
        let key = all.get("hookbuskey").and_then(serde_json::Value::as_str).map(decode_key);
        let key = key.map(|key| String::from_utf8_lossy(&key).into_owned()).unwrap_or_default();
        all.insert("key".into(), key.into());
        all.insert("name".into(), (*letter.address).into());
        // Last: nothing that an event brings along can stand in their place.
        all.insert("secrets".into(), self.secrets.clone());
        Ok(Value::from(Serde(serde_json::Value::Object(all))))
    }
}

/// A path with its query, as a request has it.
fn uri(text: String) -> Result<Uri, &'static str> {
    if text.len() > MOST_PATH_BYTES {
        return Err("is too long");
    }
    let path = PathAndQuery::try_from(text).map_err(|_| "can't stand in a URL")?;
    if !path.path().starts_with('/') {
        return Err("can't stand in a URL");
    }
    Ok(Uri::from(path))
}

/// A header's value. Control characters, line ends above all, are refused.
fn header(text: &str) -> Result<HeaderValue, &'static str> {
    HeaderValue::from_bytes(text.as_bytes())
        .map_err(|_| "can't be a header's value: there is a control character in it")
}

/// A header of the configuration.
///
/// # Errors
/// When there can't be one of that name, or it is not for the configuration to set.
pub fn check_header(name: &str) -> Result<HeaderName, String> {
    let known =
        HeaderName::from_str(name).map_err(|_| format!("`{}` can't be a header's name", name.escape_debug()))?;
    match known.as_str() {
        "host" | "content-length" | "transfer-encoding" | "connection" | "keep-alive" | "te" | "trailer"
        | "upgrade" | "expect" => Err(format!("`{name}` is the connection's own")),
        "content-type" => Err("`Content-Type` has a key of its own, content_type".into()),
        _ => Ok(known),
    }
}

/// A method of the configuration.
///
/// # Errors
/// When it isn't offered.
pub fn check_method(name: &str) -> Result<Method, String> {
    match name {
        "POST" => Ok(Method::POST),
        "PUT" => Ok(Method::PUT),
        "PATCH" => Ok(Method::PATCH),
        "DELETE" => Ok(Method::DELETE),
        "GET" => Ok(Method::GET),
        other => Err(format!("`{}` is none of POST, PUT, PATCH, DELETE and GET", other.escape_debug())),
    }
}

fn login(
    login: &Login,
    credentials: Option<&(String, String)>,
    redacted: &mut Redacted,
) -> Result<Option<HeaderValue>, Fault> {
    let basic = |user: &str, password: &str, redacted: &mut Redacted| {
        redacted.add(password);
        let pair = base64_simd::STANDARD.encode_to_string(format!("{user}:{password}"));
        redacted.add(&pair);
        format!("Basic {pair}")
    };
    let text = match (login, credentials) {
        (Login::Bearer(token), _) => {
            let token = read(token, "token_file")?;
            redacted.add(&token);
            format!("Bearer {token}")
        }
        (Login::Basic { user, password }, _) => basic(user, &read(password, "password_file")?, redacted),
        (Login::Anonymous, Some((user, password))) => basic(user, password, redacted),
        (Login::Anonymous, None) => return Ok(None),
    };
    let mut value =
        header(&text).map_err(|_| help("the token or password has a control character in it; is it one line?"))?;
    value.set_sensitive(true);
    Ok(Some(value))
}
