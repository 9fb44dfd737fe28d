//! Which request goes where, and what the answers have in common.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router};
use hookbus_broker::{Broker, SubscriptionHandle};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::access::{Access, Caller};
use super::body::BodyBudget;
use super::encodings::Encodings;
use super::endpoints::{Content, Endpoint, Endpoints, Facts, Kind};
use super::follow::follow;
use super::metrics::{DescriptorEncoder, Metrics};
use super::openapi;
use super::problem::Problem;
use super::publish::publish;
use super::rights::{self, Right, by_our_name};
use super::server::ServerOptions;
use super::tokens::Tokens;
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

    /// Whether there is to be a journal, and it isn't open yet.
    fn awaits_journal(&self) -> bool;

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
    pub(crate) tokens: Tokens,
    /// Whether clients may show certificates.
    pub(crate) certified_clients: bool,
    /// The addresses on TCP that are listened at.
    pub(crate) listening: Mutex<Vec<IpAddr>>,
    /// For connections of those who are known.
    pub(crate) places: Arc<Semaphore>,
    /// What is known of all routes.
    pub(crate) facts: Vec<Facts>,
    /// The paths that there are, for who asks for another one.
    pub(crate) paths: String,
}

impl Shared {
    /// Whether a request may ask by this name; `local` is the address that its connection came to.
    pub(crate) fn is_our_name(&self, host: &str, local: Option<IpAddr>) -> bool {
        rights::is_our_name(host, &self.options.hosts, &self.listening.lock(), local)
    }
}

/// Who is at the other end of a request's connection.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) caller: Caller,
    /// A program and its number, or an address.
    name: Arc<str>,
    /// The address that the connection came to, on TCP.
    pub(crate) local: Option<IpAddr>,
    /// What the connection counts as.
    place: Place,
}

/// A connection's place among those that there may be, given back when it is dropped.
#[derive(Clone, Debug, Default)]
pub(crate) struct Place(Arc<Mutex<Option<Held>>>);

#[derive(Debug)]
struct Held {
    _permit: OwnedSemaphorePermit,
    /// Whether it is one for those who are known.
    settled: bool,
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
        Peer { caller: access.caller(credentials), name: name.into(), local: None, place: Place::default() }
    }

    /// Somebody on TCP.
    pub(crate) fn remote(address: std::net::SocketAddr, local: Option<IpAddr>, certified: bool) -> Self {
        let caller = Caller::Remote { certified };
        Peer { caller, name: address.to_string().into(), local, place: Place::default() }
    }

    /// Its connection has this place.
    pub(crate) fn take_place(&mut self, permit: OwnedSemaphorePermit) -> Place {
        let settled = !matches!(self.caller, Caller::Remote { .. });
        *self.place.0.lock() = Some(Held { _permit: permit, settled });
        self.place.clone()
    }

    /// Takes a place among those who are known, and gives back the one that connections have before anybody knows whose they are.
    pub(crate) fn settle(&self, places: &Arc<Semaphore>) -> Result<(), Problem> {
        let mut place = self.place.0.lock();
        if place.as_ref().is_some_and(|held| held.settled) {
            return Ok(());
        }
        let Ok(permit) = Arc::clone(places).try_acquire_owned() else {
            return Err(Problem::unavailable(
                "there are too many connections; [limits] http_connections sets the limit",
                5,
            ));
        };
        *place = Some(Held { _permit: permit, settled: true });
        Ok(())
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

/// The server's own endpoints.
pub(crate) fn endpoints() -> Endpoints<Arc<Shared>> {
    use StatusCode as S;
    const CLOUDEVENT: &str = "instead of the body's JSON: the attribute of the event";
    Endpoints::new([
        Endpoint::post("/v1/events", publish, "Publishes events")
            .takes(Content::Events)
            .header("ce-hookbuskey", Kind::Text, "the key of a payload, or of an event in headers; percent-encoded")
            .header("ce-specversion", Kind::OneOf(&["1.0"]), CLOUDEVENT)
            .header("ce-id", Kind::Text, CLOUDEVENT)
            .header("ce-source", Kind::Text, CLOUDEVENT)
            .header("ce-type", Kind::Text, CLOUDEVENT)
            .header("ce-subject", Kind::Text, CLOUDEVENT)
            .header("ce-time", Kind::Text, CLOUDEVENT)
            .answers(
                S::ACCEPTED,
                "each subscriber has it, or is told that it hasn't; where there is a journal, that has it. `id` and `offset`; of a batch \
                 `accepted` and `events`",
            )
            .problem(S::BAD_REQUEST, "it is no event; nothing of a batch was published")
            .problem(S::FORBIDDEN, "the key is reserved")
            .problem(S::REQUEST_TIMEOUT, "nothing more of the body came for 30 s")
            .problem(
                S::SERVICE_UNAVAILABLE,
                "a subscriber that blocks is full, the journal can't be written, or the daemon ends; the detail says what was published",
            ),
        Endpoint::get("/v1/events", follow, "Follows events, without end")
            .needs(Right::Read)
            .query("prefix", Kind::Texts, "keys that begin with it; everything if absent")
            .query(
                "from",
                Kind::Text,
                "where in the journal to begin: `earliest`, `latest`, an offset, a time (RFC 3339), or how long ago (`15m`)",
            )
            .query("format", Kind::OneOf(&["cloudevents", "raw", "base64"]), "what the data of each event is")
            .query("hwm", Kind::Number, "how many events may wait for this reader; 0 is no limit")
            .query("hwm_bytes", Kind::Number, "how many bytes of them")
            .query("overflow", Kind::OneOf(&["drop-newest", "drop-oldest", "disconnect"]), "what happens then")
            .query("name", Kind::Text, "what listings call the reader")
            .header("last-event-id", Kind::Text, "the offset of the last event that was seen; goes on behind it")
            .answers_as("text/event-stream", S::OK, "events, each with its offset as `id`; losses as events of the type `gap`")
            .problem(S::BAD_REQUEST, "a parameter is not known, or can't be read")
            .problem(S::NOT_IMPLEMENTED, "`from` asks for the past, and there is no journal")
            .problem(S::SERVICE_UNAVAILABLE, "the daemon ends, or the journal can't be read"),
        Endpoint::get("/v1/status", status, "Shows the daemon").needs(Right::Read).answers(S::OK, "everything about it"),
        Endpoint::get("/healthz", alive, "Whether the process works").needs(Right::Anybody).answers_as(
            "text/plain",
            S::OK,
            "it does",
        ),
        Endpoint::get("/readyz", ready, "Whether events are taken in")
            .needs(Right::Anybody)
            .answers_as("text/plain", S::OK, "they are")
            .problem(S::SERVICE_UNAVAILABLE, "not yet, or no more; why"),
        Endpoint::get("/metrics", metrics, "Counters for Prometheus")
            .needs(Right::Anybody)
            .answers_as("application/openmetrics-text", S::OK, "OpenMetrics 1.0")
            .problem(S::INTERNAL_SERVER_ERROR, "they can't be encoded"),
        Endpoint::get(openapi::PATH, description, "This description")
            .needs(Right::Anybody)
            .answers(S::OK, "OpenAPI 3.1"),
    ])
}

/// The router of all endpoints, for the socket and for TCP: who may do what is decided at each route's door.
pub(crate) fn router(endpoints: Endpoints, shared: &Arc<Shared>) -> Router {
    let for_fallback = Arc::clone(shared);
    let nowhere = async move |peer: Option<Extension<Peer>>, request: Request<Body>| {
        nowhere(&for_fallback, peer.as_deref(), &request)
    };
    endpoints
        .router(shared)
        .fallback(nowhere)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(Arc::clone(shared), by_our_name))
        .layer(middleware::from_fn_with_state(Arc::clone(shared), count))
}

/// The paths of a table, the short ones: what is told to who asks for one that isn't there.
pub(crate) fn short_paths<'f>(endpoints: impl Iterator<Item = &'f Facts>) -> String {
    let mut paths: Vec<&str> = Vec::new();
    for Facts { path, right, .. } in endpoints {
        let is_short = path.matches('/').count() <= 2 && !path.contains('{');
        if is_short && *right != Right::Socket && !paths.contains(path) {
            paths.push(path);
        }
    }
    paths.join(", ")
}

/// No routes, for those who may not ask.
pub(crate) fn stranger(access: &Access, uid: u32) -> Router {
    let refusal = access.refusal(uid);
    Router::new().fallback(async move || refusal)
}

async fn count(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    shared.metrics.count_request(response.status());
    response
}

fn nowhere(shared: &Shared, peer: Option<&Peer>, request: &Request<Body>) -> Problem {
    let (path, paths) = (request.uri().path(), &shared.paths);
    let more = match peer {
        Some(Peer { caller: Caller::Remote { .. }, .. }) => "; most of them need a token over TCP",
        _ => "",
    };
    let detail = format!("there is no {path} here; there are {paths}{more}. {} tells all", openapi::PATH);
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

/// Made for whoever asks: it takes more than a MiB to make, and most daemons are never asked.
async fn description(State(shared): State<Arc<Shared>>) -> Response {
    json_line(&openapi::document(&shared.facts))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_moves_to_a_place_of_those_who_are_known() {
        let (few, many) = (Arc::new(Semaphore::new(1)), Arc::new(Semaphore::new(1)));
        let stranger = || {
            let mut peer = Peer::remote("127.0.0.1:1".parse().unwrap(), None, false);
            let place = peer.take_place(Arc::clone(&few).try_acquire_owned().expect("there is one"));
            (peer, place)
        };
        let (known, place) = stranger();
        assert_eq!((few.available_permits(), many.available_permits()), (0, 1));
        for _request in 0..2 {
            known.clone().settle(&many).expect("there is a place");
            assert_eq!((few.available_permits(), many.available_permits()), (1, 0));
        }
        let (other, other_place) = stranger();
        let refused = other.settle(&many).expect_err("there is none left");
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(few.available_permits(), 0, "it stays what it was");
        drop((known, place, other, other_place));
        assert_eq!((few.available_permits(), many.available_permits()), (1, 1));
    }
}
