//! HTTP: publish events, follow them, look at the daemon; the server and its client.
//!
//! A script has curl, so this is how it talks to hookbus. The server listens on a Unix socket, where the kernel says who
//! asks, and on TCP, with TLS if it has a certificate, where a token or a client's certificate says what may be asked for (`rights.rs`).
//!
//! All routes stand in one table, the daemon's own behind the server's (`endpoints.rs`); it says what each needs, and the
//! description of them all is made of it.
//!
//! | request | answer |
//! | --- | --- |
//! | `POST /v1/events` | publishes CloudEvents (structured, batch, binary), or any body with the header `ce-hookbuskey` |
//! | `GET /v1/events?prefix=...` | server-sent events, without end; see below |
//! | `GET /v1/status` | the daemon in one JSON object |
//! | `GET /healthz`, `/readyz` | 200 while it lives; 200 when it takes events in, else 503 and why |
//! | `GET /metrics` | Prometheus |
//! | `GET /api/openapi.json` | all routes, described |
//!
//! Every error is a problem object (RFC 9457) whose `detail` says what was wrong and what to do.
//!
//! # Following
//!
//! A follower is a subscription of the broker, with a high-water mark of its own (`hwm`, `hwm_bytes`) and a policy
//! (`overflow`: `drop-newest`, `drop-oldest` or `disconnect`; never `block`, since a reader must not stop the cloud's
//! events). Each event has its offset as `id` and a CloudEvent as `data` (`format` asks for another one). Its messages wait
//! in the broker and nowhere else: what is encoded is what the connection takes now. So a reader that stalls costs its
//! queue, and what is dropped for it is told in its place as an event of the type `gap`,
//!
//! ```text
//! event: gap
//! id: 1712
//! data: {"first":1700,"last":1712,"count":13}
//! ```
//!
//! and again as `hookbusdropped` of the CloudEvent that follows. One that comes back with `Last-Event-ID` after a while is told
//! what lies between as a gap whose `count` is null, because there is no journal to count in, or to read from. A comment every 15
//! seconds shows that the connection lives.
//!
//! Followers of the same events share their encoding: the newest ones are kept for a moment (`encodings.rs`).
//!
//! # Guarantees
//!
//! - **Publishing**: 202 means that all subscribers have the event in their queues, or are told that they have not; and where there is a
//!   journal, that it has the event. It waits for a
//!   subscriber that blocks and is full up to 5 s; then the answer is 503 with `Retry-After`, and nobody has the event. Of a
//!   batch, events are published in order, and the answer says how many were, also when that is not all. A client whose
//!   connection breaks before the answer doesn't know, and may publish twice when it tries again: consumers see the same `id` and
//!   `source`.
//! - **Following**: events in the broker's order, each once; losses only at the high-water mark and while away, told as above.
//! - **Memory**: a body has a limit, and all bodies on their way have one together; connections have one. A request that is slow to
//!   arrive is ended, and so is a handshake.
//! - **Secrets**: no token is in a log or an answer; tokens and certificates are taken from their files as these change.
//!
//! # What is absent on purpose
//!
//! HTTP/2: who speaks HTTP here is a script, and one request at a time is what it does. CORS: no page of another origin has any business here.

mod access;
mod body;
mod client;
mod encodings;
mod endpoints;
mod follow;
mod metrics;
mod openapi;
mod past;
mod problem;
mod publish;
mod query;
mod renewed;
mod rights;
mod routes;
mod secure;
mod server;
mod tokens;

pub use access::{Access, Caller};
pub use client::{Client, ClientError, Following, ServerEvent};
pub use endpoints::{Content, Endpoint, Endpoints, JSON, Kind};
pub use metrics::{DescriptorEncoder, encode_counter, encode_gauge};
pub use problem::Problem;
pub use rights::Right;
pub use routes::Daemon;
pub use secure::ServerTls;
pub use server::{Server, ServerOptions};
pub use tokens::{TokenFiles, check_token_file};
