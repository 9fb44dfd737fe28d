//! The MQTT bridge against a real mosquitto, at both versions, and against a server that misbehaves.

#![cfg(feature = "mqtt")]
#![allow(clippy::unwrap_used, reason = "a test that can't go on has failed")]

#[path = "../contract/mod.rs"]
#[macro_use]
mod contract;
#[path = "../servers/mod.rs"]
mod servers;

mod confirm;
mod limits;
mod outages;
mod security;
mod suite;
mod support;
mod topics;
