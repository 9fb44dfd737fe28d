//! The ZeroMQ bridge against raw sockets that behave well, badly, or not at all, against itself, and against the zeromq
//! crate.
#![cfg(feature = "zeromq")]
#![allow(clippy::unwrap_used, reason = "a test that can't go on has failed")]

mod client;
mod logger;
mod publisher;
#[cfg(feature = "cloudevents")]
mod source;
mod support;
