//! Which request goes where, and what the answers have in common.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use hookbus_broker::{Broker, SubscriptionHandle};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::access::{Access, Caller};
use super::body::BodyBudget;
use super::encodings::Encodings;
use super::follow::follow;
use super::metrics::{DescriptorEncoder, Metrics};
use super::problem::Problem;
use super::publish::publish;
use super::server::ServerOptions;
use crate::cloudevents::Encoder;

/// What the server asks of the daemon that it speaks for.
pub trait Daemon: Send + Sync + 'static {
    /// Everything about it, for `/v1/status`.
    fn status(&self) -> serde_json::Value;

    /// Whether it takes events in; the error says what is missing.
    ///
    /// # Errors
    /// When it doesn't.
    fn ready(&self) -> Result<(), String>;

    /// Adds metrics of its own, besides the broker's and the server's.
    ///
    /// # Errors
    /// Those of the encoder, which are passed on.
    fn collect(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result;
}

/// What all requests share.
pub(crate) struct Shared {
    pub(crate) broker: Broker,
    pub(crate) encoder: Encoder,
    pub(crate) options: ServerOptions,
    pub(crate) budget: Arc<BodyBudget>,
    pub(crate) encodings: Encodings,
    pub(crate) followers: Followers,
    pub(crate) daemon: Arc<dyn Daemon>,
    pub(crate) metrics: Metrics,
    /// Nothing more is published.
    pub(crate) closing: AtomicBool,
}

/// Who is at the other end of a request's connection.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) caller: Caller,
    /// A program and its number, or an address.
    name: Arc<str>,
}

impl Peer {
    /// Somebody on the Unix socket.
    pub(crate) fn local(credentials: &tokio::net::unix::UCred, access: &Access) -> Self {
        let name = credentials.pid().map_or_else(
            || format!("uid {}", credentials.uid()),
            |pid| {
                // The name is for listings; a process that is gone by now has none.
                let program = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                format!("{}[{pid}]", program.trim_end())
            },
        );
        Peer { caller: access.caller(credentials), name: name.into() }
    }

    /// Somebody on TCP.
    pub(crate) fn remote(address: std::net::SocketAddr) -> Self {
        Peer { caller: Caller::Anonymous, name: address.to_string().into() }
    }

    pub(crate) fn name(&self) -> String {
        self.name.to_string()
    }
}

/// The followers, so that they can be ended in order.
#[derive(Default)]
pub(crate) struct Followers {
    state: Mutex<FollowersState>,
}

#[derive(Default)]
struct FollowersState {
    next: u64,
    ends: HashMap<u64, End>,
    closed: bool,
}

/// How a follower is ended in order.
pub(crate) enum End {
    /// One that reads from memory: nothing more is queued for it.
    Subscription(SubscriptionHandle),
    /// One that reads from the journal: it is told.
    Journal(watch::Sender<bool>),
}

impl End {
    fn end(self) {
        match self {
            End::Subscription(handle) => handle.close(),
            End::Journal(told) => drop(told.send_replace(true)),
        }
    }
}

/// A follower's place in the list.
pub(crate) struct Registration {
    shared: Arc<Shared>,
    id: u64,
}

impl Followers {
    pub(crate) fn register(&self, shared: &Arc<Shared>, end: End) -> Result<Registration, Problem> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(Problem::unavailable("hookbus is about to end", 5));
        }
        let id = state.next;
        state.next += 1;
        state.ends.insert(id, end);
        Ok(Registration { shared: Arc::clone(shared), id })
    }

    /// Nothing more is queued for any of them; what is queued is sent.
    pub(crate) fn close(&self) {
        let ends = {
            let mut state = self.state.lock();
            state.closed = true;
            std::mem::take(&mut state.ends)
        };
        for end in ends.into_values() {
            end.end();
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut state = self.shared.followers.state.lock();
        state.ends.remove(&self.id);
        if state.ends.is_empty() {
            self.shared.encodings.clear();
            // A thousand followers leave no table for a thousand.
            state.ends.shrink_to_fit();
        }
    }
}

/// The routes for those who are known on this machine, with what the daemon adds.
pub(crate) fn local(shared: &Arc<Shared>, more: Router) -> Router {
    let routes = Router::new()
        .route("/v1/events", post(publish).get(follow))
        .route("/v1/status", get(status))
        .merge(health())
        .with_state(Arc::clone(shared));
    finished(routes.merge(more), shared)
}

/// The routes for anybody.
pub(crate) fn anonymous(shared: &Arc<Shared>) -> Router {
    finished(health().with_state(Arc::clone(shared)), shared)
}

/// No routes, for those who may not ask.
pub(crate) fn stranger(access: &Access, uid: u32) -> Router {
    let refusal = access.refusal(uid);
    Router::new().fallback(async move || refusal)
}

fn health() -> Router<Arc<Shared>> {
    Router::new().route("/healthz", get(alive)).route("/readyz", get(ready)).route("/metrics", get(metrics))
}

fn finished(routes: Router, shared: &Arc<Shared>) -> Router {
    routes
        .fallback(nowhere)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(Arc::clone(shared), count))
}

async fn count(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    shared.metrics.count_request(response.status());
    response
}

async fn nowhere(peer: Option<Extension<Peer>>, request: Request<Body>) -> Problem {
    let path = request.uri().path();
    let detail = match peer {
        Some(Extension(Peer { caller: Caller::Anonymous, .. })) => {
            format!(
                "there is no {path} here: over TCP this version serves /healthz, /readyz and /metrics; the rest is on the Unix socket"
            )
        }
        _ => format!("there is no {path} here; there are /v1/events, /v1/status, /healthz, /readyz and /metrics"),
    };
    Problem::new(StatusCode::NOT_FOUND, detail)
}

async fn wrong_method(request: Request<Body>) -> Problem {
    let detail = format!("{} can't be done to {}", request.method(), request.uri().path());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail)
}

async fn status(State(shared): State<Arc<Shared>>) -> Response {
    json_line(&shared.daemon.status())
}

/// An object on a line of its own, for those who look at it in a terminal.
pub(crate) fn json_line(value: &serde_json::Value) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], format!("{value}\n")).into_response()
}

async fn alive() -> &'static str {
    "ok\n"
}

async fn ready(State(shared): State<Arc<Shared>>) -> Response {
    match shared.daemon.ready() {
        Ok(()) => "ready\n".into_response(),
        Err(missing) => Problem::unavailable(missing, 1).into_response(),
    }
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    match shared.metrics.text(&shared) {
        Ok(text) => {
            let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(e) => Problem::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the metrics can't be encoded: {e}"))
            .into_response(),
    }
}
