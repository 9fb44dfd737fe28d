//! The ZeroMQ bridge against raw sockets that behave well, badly, or not at all, against itself, and against the zeromq crate.
#![cfg(feature = "zeromq")]

mod client;
mod logger;
mod publisher;
mod support;
