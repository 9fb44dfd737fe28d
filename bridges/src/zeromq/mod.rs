//! ZeroMQ: events out to SUB sockets, requests of hook executors in through REQ sockets, and our own clients for both.
//!
//! OpenNebula's event queue is a ZeroMQ PUB socket, and everything around it subscribes there: its hook execution
//! manager, OneFlow, FireEdge, scripts. They must go on working unchanged, so what is on the wire is exactly what
//! libzmq would send: two frames a message, the key and base64 text. Behind that, the socket is ours, not libzmq's and
//! not the zeromq crate's, for three reasons:
//!
//! - each peer is a subscription of the broker, so there is one queue for it, with one high-water mark, and its losses
//!   are counted and told; any other socket puts a queue of its own behind that, which drops in silence;
//! - payloads are held once for all peers, and written from where they are, many messages in one system call;
//! - the zeromq crate hangs up on peers with heartbeats, and takes frames of any announced length.
//!
//! ```text
//!             one task for each connection
//! Broker ──▶ peer: Subscription ─▶ outbound ─▶ sendmsg ──▶ SUB
//!                  filters ◀──────── codec ◀── read ◀───── SUB
//!                                    codec ◀── read ◀───── REQ
//! mpsc ◀──── logger: Request ◀─────────┘
//! ```
//!
//! | file | what is in it |
//! | --- | --- |
//! | `codec/` | ZMTP 3.1 and 3.0 without I/O |
//! | `endpoint.rs`, `transport.rs` | addresses; TCP and Unix sockets |
//! | `link.rs`, `liveness.rs` | one connection: socket, protocol, heartbeats |
//! | `server.rs`, `quiet.rs` | listening and stopping in order; logging at a bearable rate |
//! | `publisher.rs`, `peer.rs`, `filters.rs`, `outbound.rs` | the PUB side |
//! | `logger.rs`, `message.rs` | the REP side |
//! | `client.rs` | SUB and REQ |
//! | `source.rs` | another driver's publisher as a source of events |
//!
//! # Queues and limits
//!
//! A message waits in one place, its peer's broker queue ([`hwm`](PublisherOptions::hwm),
//! [`hwm_bytes`](PublisherOptions::hwm_bytes)). Beyond that there are a batch on its way (512 messages or 256 KiB, or
//! one message) and the kernel's socket buffers. TCP hides much: a subscriber that has stopped reading still takes some
//! megabytes before its queue begins to fill.
//!
//! What comes in is bounded for each peer (length of a frame, number and length of filters, time for the handshake) and
//! in all (connections; bytes of requests that are not complete). A peer that breaks a limit, or the protocol, is
//! disconnected, with the reason in the log; no other peer notices.
//!
//! # Guarantees
//!
//! - **Order**: a peer gets messages in the broker's order; the pairs of one message, one for each of its keys that
//!   matched, are adjacent.
//! - **Loss, while connected**: only at the high-water mark, where the newest messages are dropped. They are counted,
//!   and told in their place in the stream as a message with the key [`GAP_KEY`], whose content is base64 of `{"first":
//!   OFFSET, "last": OFFSET, "count": N}`, to peers with a non-empty filter that is a prefix of that key. (A subscriber
//!   to everything has not asked for it, and existing ones would not know what it is.)
//! - **Loss, while not connected**: everything. PUB keeps nothing for those who are away, and what was queued for a
//!   peer, or on its way, when it goes away is lost with it. The broker counts what it knows of as abandoned; what the
//!   kernel had taken, nobody knows.
//! - **Repetition**: none. A message goes out once for each key that matched, however many filters match that key.
//! - **Delay**: a filter works from the moment it is read. What was published before is not sent, as with any PUB
//!   socket.
//! - The logger and the clients state theirs in [`Logger`], [`SubClient`] and [`ReqClient`]; `ZeromqSource` (with the feature
//!   `cloudevents`) in its file.
//!
//! # What is absent on purpose
//!
//! ZMTP 2 and older (libzmq 3), DEALER, ROUTER and PUSH sockets of our own, `inproc`, and multicast. PLAIN and CURVE
//! are not there yet; see [`codec::Mechanism`].

mod client;
pub mod codec;
mod endpoint;
mod filters;
mod link;
mod liveness;
mod logger;
mod message;
mod outbound;
mod peer;
mod publisher;
mod quiet;
mod server;
#[cfg(feature = "cloudevents")]
mod source;
mod transport;

pub use client::{ClientOptions, ReqClient, RequestError, SubClient, SubEvent};
pub use endpoint::{Endpoint, EndpointError, Host};
pub use liveness::Heartbeat;
pub use logger::{ACK, Logger, LoggerOptions, Request};
pub use message::Frames;
pub use outbound::GAP_KEY;
pub use publisher::{PeerStatus, Publisher, PublisherOptions};
#[cfg(feature = "cloudevents")]
pub use source::{SOURCE_PREFIXES, SourceState, ZeromqSource, ZeromqSourceOptions, ZeromqSourceStatus};
