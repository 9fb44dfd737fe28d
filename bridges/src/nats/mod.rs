//! NATS: events to a JetStream stream, which confirms each, or to whoever happens to subscribe (core NATS).
//!
//! What is here is the bus as [`delivery`](crate::delivery) wants it: [`NatsBus`] connects, [`NatsSender`] publishes, [`NatsReceipts`]
//! reads acknowledgements. Window, order, repetition and back-off are the ledger's.
//!
//! ```text
//!            HPUB <subject> <inbox>.<ticket>     Nats-Msg-Id: <letter id>
//! NatsSender ──────────────────────────────────▶ nats-server ─▶ stream
//! NatsReceipts ◀──── MSG <inbox>.<ticket> ────── {"stream":"HOOKBUS","seq":42}
//!              ◀──── -ERR, the end of the connection
//! ```
//!
//! A message carries the event's name as its subject, `Nats-Msg-Id`, and what the format asks for: in structured mode, and for
//! `raw` and `base64`, the header `Content-Type`; in binary mode one header `ce-<attribute>` for each attribute, as the [NATS binding
//! of CloudEvents](https://github.com/cloudevents/spec/blob/main/cloudevents/bindings/nats-protocol-binding.md) has it.
//!
//! # Traps of async-nats, and how they are avoided
//!
//! - *It reconnects by itself, and what was in its write buffer is gone by then, while what waited behind that goes out over the
//!   new connection*: a hole in the order that nobody is told of. Here one [`Client`](async_nats::Client) is one connection: the callback that it asks
//!   for credentials answers once. A second attempt ends before anything is written, and with it the client. The ledger connects
//!   anew, and knows what to send again.
//! - *`publish` is done when the message is in a channel, `flush` when it is in a socket.* Neither counts as delivered: only what the
//!   stream has acknowledged does.
//! - *JetStream publishing makes a future, a channel and a timer for each message.* Acknowledgements come here over one
//!   subscription, with the ticket as the last token of the subject, and are read in batches. The subscription's queue is larger than
//!   what may be in flight, so that it can't overflow, which would drop some of them.
//! - *Events of a connection can get lost.* That the connection is over is also seen from the end of the channel that they come by.
//! - *Pings every minute*: here every 10 seconds, so that a server that is gone without a word is noticed within half a minute. The
//!   ledger's own time limit for acknowledgements is the sharper one.
//! - *Credentials in the URL are ignored, and shown in the log*: they are taken out and used.
//!
//! # Guarantees
//!
//! With JetStream:
//!
//! - **Loss**: none of what the stream has acknowledged, as long as the stream keeps it: its limits (age, bytes) and its discard policy
//!   are the stream's. A stream with `no_ack` is refused. An acknowledgement says that the server has written the event to its file,
//!   and with several replicas that most of them have it; whether it has reached the disk is the server's `sync_interval`.
//! - **Repetition**: what was unknown when a connection ended is sent again with the same `Nats-Msg-Id`; within the stream's duplicate
//!   window (two minutes unless configured otherwise) the server drops it and says so. After an outage longer than that an event that had
//!   arrived may be there twice, with the same id.
//! - **Order**: first arrivals are in order, because one connection keeps it and the ledger sends again from the oldest. An event
//!   that the stream refuses for now (it is full) comes after those behind it.
//! - What a server refuses for good (too large for the stream, a subject that our account may not use) is told as a permanent
//!   rejection. Where nothing of what we send is permitted, that is a fault of the configuration, and nothing is thrown away.
//!
//! Core NATS delivers at most once: what was handed to the library when a connection ends is lost, and so is all that is
//! published while nobody subscribes; the server says neither. `hookbus status` says "at most once".

mod config;
mod connection;
mod encode;
mod error;
mod login;
mod receipts;
mod request;
mod sender;
mod sent;

pub use config::{Login, Mode, NatsOptions, StreamOptions};
pub use connection::NatsBus;
pub use receipts::NatsReceipts;
pub use request::{NatsRequests, NoAnswer};
pub use sender::NatsSender;
