//! The webhook bridge against a real HTTP server.

#![cfg(feature = "webhook")]
#![allow(clippy::unwrap_used, reason = "a test that can't go on has failed")]

#[path = "../direct/mod.rs"]
mod direct;
#[path = "../servers/mod.rs"]
mod servers;
#[path = "../contract/mod.rs"]
#[macro_use]
mod contract;

mod answers;
mod ledger;
mod requests;
mod secured;

use std::time::Duration;

use hookbus_bridges::cloudevents::{Encoder, Sources};
use hookbus_bridges::webhook::{WebhookBus, WebhookOptions};
use servers::http::HttpServer;

/// How long a test's loop waits for a receipt before it connects anew.
const SHORT: Duration = Duration::from_secs(20);

/// How a bus with the usual settings is told about a server.
fn options(server: &HttpServer, path: &str) -> WebhookOptions {
    let url = format!("{}{path}", server.url());
    WebhookOptions {
        encoder: Encoder::new(Sources { host: "one-frontend".into(), zone: None }),
        ..WebhookOptions::new(url.as_str().into())
    }
}

fn bus(server: &HttpServer, path: &str) -> WebhookBus {
    WebhookBus::new(options(server, path))
}
