//! The NATS bridge against a real nats-server.

#![cfg(feature = "nats")]
#![allow(clippy::unwrap_used, reason = "a test that can't go on has failed")]

#[path = "../direct/mod.rs"]
mod direct;
#[path = "../servers/mod.rs"]
mod servers;
#[path = "../contract/mod.rs"]
#[macro_use]
mod contract;

mod arrivals;
mod ledger;
mod login;
mod outages;
mod refusals;

use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::{self, Message};
use futures_util::StreamExt;
use hookbus_bridges::nats::{Mode, NatsBus, NatsOptions};
use servers::PATIENCE;
use servers::nats::NatsServer;

/// How long a test's loop waits for a receipt before it connects anew.
const SHORT: Duration = Duration::from_secs(20);

/// How a bus with the usual settings is told about a server.
fn options(server: &NatsServer) -> NatsOptions {
    NatsOptions { servers: vec![server.url()], ..NatsOptions::default() }
}

fn bus(server: &NatsServer) -> NatsBus {
    NatsBus::new(options(server))
}

fn core(server: &NatsServer) -> NatsBus {
    NatsBus::new(NatsOptions { mode: Mode::Core, ..options(server) })
}

/// JetStream as a consumer or an operator sees it.
async fn context(server: &NatsServer) -> jetstream::Context {
    jetstream::new(async_nats::connect(server.url()).await.unwrap())
}

/// All messages of the stream `HOOKBUS`.
async fn stored(server: &NatsServer) -> Vec<Message> {
    let mut stream = context(server).await.get_stream("HOOKBUS").await.unwrap();
    let count = stream.info().await.unwrap().state.messages as usize;
    let config = pull::Config { ack_policy: AckPolicy::None, ..pull::Config::default() };
    let consumer = stream.create_consumer(config).await.unwrap();
    let messages = consumer.stream().max_messages_per_batch(1000).messages().await.unwrap();
    let all = messages.take(count).map(Result::unwrap).collect();
    tokio::time::timeout(PATIENCE, all).await.unwrap()
}

fn header<'a>(message: &'a Message, name: &str) -> Option<&'a str> {
    message.headers.as_ref()?.get(name).map(async_nats::HeaderValue::as_str)
}
