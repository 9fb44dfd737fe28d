//! The table of routes: for each its method, path, handler, what it needs, and what it is for.
//!
//! The router and the description (`openapi`) are made of this table and nothing else, so that neither has what the other hasn't. An
//! endpoint needs a write token on TCP unless it says otherwise: who adds one and forgets that has opened nothing.

use std::fmt;
use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::handler::Handler;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware;
use axum::routing::{MethodFilter, MethodRouter, on};
use serde_json::Value;

use super::problem::Problem;
use super::rights::{Door, Right, at_the_door};
use super::routes::Shared;
use crate::cloudevents;

/// A method of a path: who answers it, who may ask, and what for.
pub struct Endpoint<S = ()> {
    handler: MethodRouter<S>,
    /// What is told about it.
    pub(crate) facts: Facts,
}

/// What is known of an endpoint besides its handler.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) method: Method,
    pub(crate) path: &'static str,
    pub(crate) right: Right,
    pub(crate) summary: &'static str,
    pub(crate) parameters: Vec<Parameter>,
    pub(crate) content: Content,
    pub(crate) schema: Option<Value>,
    pub(crate) answers: Vec<Answer>,
    pub(crate) problems: Vec<(StatusCode, &'static str)>,
    pub(crate) body_limit_bytes: Option<usize>,
}

/// A parameter of an endpoint.
#[derive(Clone, Debug)]
pub(crate) struct Parameter {
    pub(crate) place: &'static str,
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) meaning: &'static str,
}

/// What the value of a parameter is.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A text.
    Text,
    /// The same, and the parameter may stand there several times.
    Texts,
    /// A whole number, 0 or more.
    Number,
    /// `true` or `false`.
    Flag,
    /// One of these.
    OneOf(&'static [&'static str]),
}

/// An answer that is no problem.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) content_type: &'static str,
    pub(crate) meaning: &'static str,
}

/// What the body of a request may be. It is looked at on TCP; on the socket handlers take what they understand.
#[derive(Clone, Copy, Debug)]
pub enum Content {
    /// There is none.
    Nothing,
    /// Events: CloudEvents, or any payload whose attributes are in headers.
    Events,
    /// One of these types.
    Types(&'static [&'static str]),
}

/// JSON.
pub const JSON: Content = Content::Types(&["application/json"]);

/// What a form sends. It is what curl says of any data, too, unless told otherwise, so it means nothing.
const FORMS: [&str; 2] = ["application/x-www-form-urlencoded", "multipart/form-data"];

/// Endpoints in the order in which they were added.
pub struct Endpoints<S = ()> {
    all: Vec<Endpoint<S>>,
}

impl<S: Clone + Send + Sync + 'static> Endpoint<S> {
    fn new<H: Handler<T, S>, T: 'static>(
        method: Method,
        filter: MethodFilter,
        path: &'static str,
        handler: H,
        summary: &'static str,
    ) -> Self {
        let facts = Facts {
            method,
            path,
            right: Right::Write,
            summary,
            parameters: Vec::new(),
            content: Content::Nothing,
            schema: None,
            answers: Vec::new(),
            problems: Vec::new(),
            body_limit_bytes: None,
        };
        Endpoint { handler: on(filter, handler), facts }
    }

    /// GET, and HEAD with it.
    pub fn get<H: Handler<T, S>, T: 'static>(path: &'static str, handler: H, summary: &'static str) -> Self {
        Endpoint::new(Method::GET, MethodFilter::GET, path, handler, summary)
    }

    /// POST.
    pub fn post<H: Handler<T, S>, T: 'static>(path: &'static str, handler: H, summary: &'static str) -> Self {
        Endpoint::new(Method::POST, MethodFilter::POST, path, handler, summary)
    }

    /// PUT.
    pub fn put<H: Handler<T, S>, T: 'static>(path: &'static str, handler: H, summary: &'static str) -> Self {
        Endpoint::new(Method::PUT, MethodFilter::PUT, path, handler, summary)
    }

    /// DELETE.
    pub fn delete<H: Handler<T, S>, T: 'static>(path: &'static str, handler: H, summary: &'static str) -> Self {
        Endpoint::new(Method::DELETE, MethodFilter::DELETE, path, handler, summary)
    }

    /// What it needs on TCP; a write token unless it is said.
    #[must_use]
    pub fn needs(mut self, right: Right) -> Self {
        self.facts.right = right;
        self
    }

    /// A part of the path, `{name}` or `{*name}`.
    #[must_use]
    pub fn part(self, name: &'static str, kind: Kind, meaning: &'static str) -> Self {
        self.parameter("path", name, kind, meaning)
    }

    /// A parameter of the query.
    #[must_use]
    pub fn query(self, name: &'static str, kind: Kind, meaning: &'static str) -> Self {
        self.parameter("query", name, kind, meaning)
    }

    /// A header that it looks at.
    #[must_use]
    pub fn header(self, name: &'static str, kind: Kind, meaning: &'static str) -> Self {
        self.parameter("header", name, kind, meaning)
    }

    fn parameter(mut self, place: &'static str, name: &'static str, kind: Kind, meaning: &'static str) -> Self {
        self.facts.parameters.push(Parameter { place, name, kind, meaning });
        self
    }

    /// The body that it takes.
    #[must_use]
    pub fn takes(mut self, content: Content) -> Self {
        self.facts.content = content;
        self
    }

    /// A body in JSON, with its JSON Schema.
    #[must_use]
    pub fn takes_json(mut self, schema: Value) -> Self {
        self.facts.content = JSON;
        self.facts.schema = Some(schema);
        self
    }

    /// An answer in JSON.
    #[must_use]
    pub fn answers(self, status: StatusCode, meaning: &'static str) -> Self {
        self.answers_as("application/json", status, meaning)
    }

    /// An answer of another type; the empty one is none at all.
    #[must_use]
    pub fn answers_as(mut self, content_type: &'static str, status: StatusCode, meaning: &'static str) -> Self {
        self.facts.answers.push(Answer { status, content_type, meaning });
        self
    }

    /// A problem that it may answer with, besides those that every route has.
    #[must_use]
    pub fn problem(mut self, status: StatusCode, meaning: &'static str) -> Self {
        self.facts.problems.push((status, meaning));
        self
    }
}

impl<S: Clone + Send + Sync + 'static> Endpoints<S> {
    /// These.
    pub fn new(endpoints: impl IntoIterator<Item = Endpoint<S>>) -> Self {
        Endpoints { all: endpoints.into_iter().collect() }
    }

    /// Sets the largest body. It is read before the handler is called, counts until that has answered, and may not pause for long; see the server's
    /// own `POST /v1/events`.
    #[must_use]
    pub fn body_limit_bytes(mut self, bytes: usize) -> Self {
        let limited = |Endpoint { handler, facts }| Endpoint {
            // What axum's extractors add of their own would be less.
            handler: MethodRouter::layer(handler, DefaultBodyLimit::disable()),
            facts: Facts { body_limit_bytes: Some(bytes), ..facts },
        };
        self.all = self.all.into_iter().map(limited).collect();
        self
    }

    /// What is known of each.
    pub(crate) fn facts(&self) -> impl Iterator<Item = &Facts> {
        self.all.iter().map(|endpoint| &endpoint.facts)
    }

    /// Gives the handlers their state.
    #[must_use]
    pub fn with_state(self, state: S) -> Endpoints {
        let given =
            |Endpoint { handler, facts }: Endpoint<S>| Endpoint { handler: handler.with_state(state.clone()), facts };
        Endpoints { all: self.all.into_iter().map(given).collect() }
    }
}

impl Endpoints {
    /// These, and those.
    #[must_use]
    pub fn and(mut self, more: Endpoints) -> Self {
        self.all.extend(more.all);
        self
    }

    /// The router of all, each behind its door.
    pub(crate) fn router(self, shared: &Arc<Shared>) -> Router {
        let mut router = Router::new();
        for Endpoint { handler, facts: Facts { path, right, content, body_limit_bytes, .. } } in self.all {
            let door = Arc::new(Door { shared: Arc::clone(shared), right, content, body_limit_bytes });
            router = router.route(path, handler.route_layer(middleware::from_fn_with_state(door, at_the_door)));
        }
        router
    }
}

impl Content {
    /// Whether a request's type is one of those that are expected. What a page may send without asking is none of them.
    pub(crate) fn check(self, headers: &HeaderMap) -> Result<(), Problem> {
        let text = headers.get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or("?"));
        let text = text.filter(|text| !text.trim().is_empty());
        let essence = text.map(|text| text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase());
        let is = |types: &[&str]| essence.as_deref().is_some_and(|essence| types.contains(&essence));
        let empty = headers.get(header::CONTENT_LENGTH).is_none_or(|length| length == "0")
            && !headers.contains_key(header::TRANSFER_ENCODING);
        let expected = match self {
            Content::Nothing => return Ok(()),
            Content::Types(types) if is(types) => return Ok(()),
            Content::Types(types) => types.join(" or "),
            Content::Events => {
                // With such a header a browser asks first, whatever the type is.
                let in_headers = headers.keys().any(|name| name.as_str().starts_with("ce-"));
                let known = is(&[cloudevents::STRUCTURED, cloudevents::BATCH])
                    || (in_headers && !is(&FORMS) && (essence.is_some() || empty));
                if known {
                    return Ok(());
                }
                format!(
                    "{}, {}, or, with the header ce-hookbuskey, the type of the payload",
                    cloudevents::STRUCTURED,
                    cloudevents::BATCH
                )
            }
        };
        let what = match text {
            None => "there is no header Content-Type".to_owned(),
            Some(text) => format!("the type `{}` is not taken here", text.escape_debug()),
        };
        let detail = format!("{what}; over TCP this needs a Content-Type that says what the body is: {expected}");
        Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail))
    }
}

impl<S> fmt::Debug for Endpoint<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.facts.method, self.facts.path)
    }
}

impl<S> fmt::Debug for Endpoints<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.all).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_page_may_send_without_asking_is_not_taken() {
        let check = |content: Content, pairs: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.insert(*name, value.parse().unwrap());
            }
            content.check(&headers).map_err(|problem| problem.status().as_u16())
        };
        let kind = |kind| ("content-type", kind);
        let (key, long) = (("ce-hookbuskey", "a"), ("content-length", "5"));
        for taken in [
            &[kind("application/cloudevents+json")][..],
            &[kind("Application/CloudEvents-Batch+JSON; charset=utf-8")],
            &[kind("application/json"), key],
            &[kind("text/plain"), key, long],
            &[key],
            &[key, ("content-length", "0")],
        ] {
            assert_eq!(check(Content::Events, taken), Ok(()), "{taken:?}");
        }
        for refused in [
            &[][..],
            &[kind("text/plain")],
            &[kind("application/json")],
            &[kind("application/x-www-form-urlencoded"), key],
            &[kind("multipart/form-data; boundary=x"), key],
            &[key, long],
            &[key, long, kind("")],
            &[key, ("transfer-encoding", "chunked")],
            &[kind("text/plain, application/cloudevents+json")],
        ] {
            assert_eq!(check(Content::Events, refused), Err(415), "{refused:?}");
        }
        assert_eq!(check(JSON, &[kind("application/json; charset=utf-8")]), Ok(()));
        assert_eq!(check(JSON, &[]), Err(415));
        assert_eq!(check(JSON, &[kind("text/plain")]), Err(415));
        assert_eq!(check(Content::Nothing, &[]), Ok(()));
    }
}
