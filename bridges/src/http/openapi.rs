//! The description of all routes, as OpenAPI 3.1: made of the table that the router is made of.
//!
//! What every route may answer isn't stated for each in the table, but added here by what the route needs and takes.

use std::collections::BTreeMap;

use axum::http::StatusCode;
use serde_json::{Map, Value, json};

use super::endpoints::{Answer, Content, Facts, Kind, Parameter};
use super::rights::Right;
use crate::cloudevents;

/// Where it is.
pub(crate) const PATH: &str = "/api/openapi.json";

/// The description.
pub(crate) fn document(endpoints: &[Facts]) -> Value {
    let mut paths: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
    for facts in endpoints {
        let method = facts.method.as_str().to_ascii_lowercase();
        paths.entry(shown_path(facts.path)).or_default().insert(method, operation(facts));
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "hookbus",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Publish events, follow them, look at the daemon. On the Unix socket whoever is let in may do everything, \
                and no token is asked for; what is said about tokens and certificates is for TCP.",
            "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
        },
        "servers": [{ "url": "/", "description": "where this description is from" }],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "readToken": { "type": "http", "scheme": "bearer", "description": "A token of [http] read_token_file" },
                "writeToken": { "type": "http", "scheme": "bearer", "description": "A token of [http] token_file" },
                "certificate": { "type": "mutualTLS", "description": "A certificate signed by an authority in [http] client_ca_file" },
            },
            "schemas": { "Problem": problem_schema() },
        },
    })
}

/// RFC 9457.
fn problem_schema() -> Value {
    json!({
        "type": "object",
        "description": "What went wrong (RFC 9457)",
        "required": ["title", "status", "detail"],
        "properties": {
            "title": { "type": "string" },
            "status": { "type": "integer" },
            "detail": { "type": "string", "description": "What was wrong, where, and what to do" },
        },
    })
}

/// A path as OpenAPI has it, which knows no rest of a path.
fn shown_path(path: &str) -> String {
    path.replace("{*", "{")
}

fn operation(facts: &Facts) -> Value {
    let mut operation = Map::new();
    operation.insert("operationId".into(), operation_id(facts).into());
    operation.insert("summary".into(), facts.summary.into());
    let security = match facts.right {
        Right::Anybody => json!([]),
        Right::Read => json!([{ "readToken": [] }, { "writeToken": [] }, { "certificate": [] }]),
        Right::Write => json!([{ "writeToken": [] }, { "certificate": [] }]),
        Right::Socket => {
            operation.insert("description".into(), "On the Unix socket only.".into());
            json!([])
        }
    };
    operation.insert("security".into(), security);
    if !facts.parameters.is_empty() {
        operation.insert("parameters".into(), facts.parameters.iter().map(parameter).collect());
    }
    if let Some(body) = request_body(facts) {
        operation.insert("requestBody".into(), body);
    }
    operation.insert("responses".into(), responses(facts));
    operation.into()
}

/// `POST /v1/hooks/{hook}/lock` is `post_v1_hooks_hook_lock`.
fn operation_id(facts: &Facts) -> String {
    let words = facts.path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let method = facts.method.as_str().to_ascii_lowercase();
    std::iter::once(&*method).chain(words).collect::<Vec<_>>().join("_")
}

fn parameter(Parameter { place, name, kind, meaning }: &Parameter) -> Value {
    let schema = match kind {
        Kind::Text => json!({ "type": "string" }),
        Kind::Texts => json!({ "type": "array", "items": { "type": "string" } }),
        Kind::Number => json!({ "type": "integer", "minimum": 0 }),
        Kind::Flag => json!({ "type": "boolean" }),
        Kind::OneOf(values) => json!({ "type": "string", "enum": values }),
    };
    let mut told = json!({ "name": name, "in": place, "description": meaning, "schema": schema });
    if *place == "path" {
        told["required"] = true.into();
    }
    told
}

fn request_body(facts: &Facts) -> Option<Value> {
    let content: Map<String, Value> = match facts.content {
        Content::Nothing => return None,
        Content::Events => {
            let event = json!({
                "type": "object",
                "required": ["specversion", "id", "source", "type"],
                "properties": {
                    "specversion": { "const": "1.0" },
                    "id": { "type": "string" },
                    "source": { "type": "string" },
                    "type": { "type": "string" },
                    "hookbuskey": { "type": "string", "description": "What prefixes are compared with; without it `<type> <subject>`" },
                },
            });
            let batch = json!({ "schema": { "type": "array", "items": event } });
            [
                (cloudevents::STRUCTURED.to_owned(), json!({ "schema": event })),
                (cloudevents::BATCH.to_owned(), batch),
                ("*/*".to_owned(), json!({})),
            ]
            .into_iter()
            .collect()
        }
        Content::Types(types) => {
            let schema = facts.schema.as_ref().map_or_else(|| json!({}), |schema| json!({ "schema": schema }));
            types.iter().map(|of| ((*of).to_owned(), schema.clone())).collect()
        }
    };
    // An event in headers needs none.
    let required = matches!(facts.content, Content::Types(_));
    Some(json!({ "required": required, "content": content }))
}

fn responses(facts: &Facts) -> Value {
    let mut responses: BTreeMap<String, Value> = BTreeMap::new();
    for Answer { status, content_type, meaning } in &facts.answers {
        let mut answer = json!({ "description": meaning });
        if !content_type.is_empty() {
            answer["content"] = json!({ *content_type: {} });
        }
        responses.insert(status.as_str().into(), answer);
    }
    for (status, meanings) in problems(facts) {
        let mut answer = json!({
            "description": meanings.join("; "),
            "content": { "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } },
        });
        let header = match status {
            StatusCode::UNAUTHORIZED => Some("WWW-Authenticate"),
            StatusCode::SERVICE_UNAVAILABLE => Some("Retry-After"),
            _ => None,
        };
        if let Some(header) = header {
            answer["headers"] = json!({ header: { "schema": { "type": "string" } } });
        }
        responses.insert(status.as_str().into(), answer);
    }
    json!(responses)
}

/// Its own, and those that come from what it needs and takes.
fn problems(facts: &Facts) -> BTreeMap<StatusCode, Vec<&'static str>> {
    let mut all: BTreeMap<StatusCode, Vec<&'static str>> = BTreeMap::new();
    let mut add = |status, meaning| all.entry(status).or_default().push(meaning);
    for &(status, meaning) in &facts.problems {
        add(status, meaning);
    }
    add(StatusCode::FORBIDDEN, "you may not use the Unix socket");
    add(StatusCode::MISDIRECTED_REQUEST, "over TCP: the header Host has a name that is not in [http] hosts");
    if matches!(facts.right, Right::Read | Right::Write) {
        add(StatusCode::UNAUTHORIZED, "over TCP: no token was sent, or a wrong one");
        add(StatusCode::SERVICE_UNAVAILABLE, "there are too many connections");
    }
    match facts.right {
        Right::Anybody | Right::Read => {}
        Right::Write => {
            add(StatusCode::FORBIDDEN, "over TCP: the token is for reading only, or a page of another origin asks");
        }
        Right::Socket => add(StatusCode::FORBIDDEN, "over TCP"),
    }
    if !matches!(facts.content, Content::Nothing) {
        add(StatusCode::UNSUPPORTED_MEDIA_TYPE, "the Content-Type is not one of those that are taken");
        add(StatusCode::PAYLOAD_TOO_LARGE, "the body is larger than [limits] http_body_bytes");
    }
    all
}
