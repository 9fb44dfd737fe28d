//! The suite of all buses, over a server that writes down each request before it answers.

#![allow(clippy::result_large_err, reason = "what is waited for says how it stands")]

use std::time::Duration;

use hookbus_bridges::webhook::{WebhookBus, WebhookOptions};
use hookbus_broker::Message;
use percent_encoding::percent_decode_str;
use serde_json::json;
use tokio::task::block_in_place;

use super::contract::{Arrival, Rig, TestBus, until};
use super::options;
use super::servers::http::{HttpServer, Request};

// Not `keeps_its_window`, which needs several requests at a time, and then the order isn't kept: see below.
contract_suite!(@ super::Hook:
    connects_in_the_background
    delivers_everything_in_order
    survives_a_server_that_is_killed
    survives_a_server_that_is_stopped
    survives_the_end_of_its_own_process
    too_large_goes_without_data
    too_large_and_raw_becomes_a_dead_letter
    refused_becomes_a_dead_letter_and_the_line_goes_on
    drains_at_shutdown
    says_what_it_abandons
    names_are_the_same_on_every_bus
    formats_arrive_as_they_were_written
);

/// A server, with the name of an event as the path of its request.
struct Hook {
    server: HttpServer,
    in_flight: usize,
}

impl TestBus for Hook {
    type Bus = WebhookBus;

    const BODY_LIMIT_BYTES: usize = 64 * 1024;

    async fn start() -> Self {
        Hook { server: block_in_place(HttpServer::start), in_flight: 1 }
    }

    fn bus(&self) -> WebhookBus {
        WebhookBus::new(WebhookOptions {
            timeout: Duration::from_secs(2),
            body_max_bytes: Self::BODY_LIMIT_BYTES,
            in_flight: self.in_flight,
            ..options(&self.server, "/{{ name|safe }}")
        })
    }

    async fn arrived(&mut self) -> Vec<Arrival> {
        self.server.requests().iter().filter(|request| request.status == 200).map(arrival).collect()
    }

    async fn kill(&mut self) {
        block_in_place(|| self.server.process.kill());
    }

    async fn restart(&mut self) {
        block_in_place(|| self.server.restart());
    }

    async fn stop(&mut self) {
        self.server.process.stop();
    }

    async fn resume(&mut self) {
        self.server.process.resume();
    }

    async fn refuse(&mut self, part: &str, refused: bool) -> bool {
        let rules = if refused { json!([{ "path": part, "status": 422, "text": "not that one" }]) } else { json!([]) };
        self.server.rules(&rules);
        true
    }
}

fn arrival(request: &Request) -> Arrival {
    let mut arrival = Arrival {
        id: request.header("idempotency-key").unwrap().to_owned(),
        address: request.path[1..].to_owned(),
        body: request.body.clone().into(),
        content_type: request.header("content-type").map(str::to_owned),
        attributes: Vec::new(),
    };
    for (name, value) in &request.headers {
        let Some(attribute) = name.strip_prefix("ce-") else { continue };
        let decoded = percent_decode_str(value).decode_utf8().unwrap().into_owned();
        arrival.attributes.push((attribute.to_owned(), decoded));
    }
    arrival
}

/// Several requests are under way at a time, each over a connection of its own that is used again, never more than allowed, and all arrive.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keeps_its_window_with_several_requests_at_a_time() {
    let mut rig = Rig::<Hook>::start().await;
    rig.server.in_flight = 5;
    rig.options = rig.options.clone().window(50, usize::MAX);
    let bridge = rig.bridge();
    rig.log.publish_many(50);
    rig.delivered(&bridge).await;
    rig.server.stop().await;
    rig.log.publish_many(200);
    until("the window is full", || {
        let status = bridge.status();
        assert!(status.in_flight <= 5, "{status:?}");
        if status.in_flight == 5 { Ok(()) } else { Err(status) }
    })
    .await;
    rig.server.resume().await;
    let arrivals = rig.delivered(&bridge).await;
    let mut ids: Vec<&str> = arrivals.iter().map(|arrival| &*arrival.id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 250);
    let connections = rig.server.server.requests().iter().map(|request| request.connection).max().unwrap();
    assert!(connections < 100, "{connections} connections for 250 events");
}

/// An event that isn't meant is done with, counted, and no server hears of it; one that can't be judged is a dead letter with the reason. Both let
/// the line go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conditions_decide_what_is_sent() {
    let mut rig = Rig::<Hook>::start().await;
    let bus = WebhookBus::new(WebhookOptions {
        when: Some(".hookbuskey != \"other\" and (.data | tonumber) > 2".into()),
        ..options(&rig.server.server, "/")
    });
    let feed = rig.log.feed();
    let bridge = hookbus_bridges::delivery::Bridge::spawn(
        "under-test",
        bus,
        feed,
        rig.writer(),
        rig.options.clone(),
        std::sync::Arc::clone(&rig.dead),
    );
    for (key, data) in [("number", "1"), ("number", "3"), ("other", "9"), ("number", "many"), ("number", "4")] {
        rig.log.publish(Message::new(key, data));
    }
    until("everything is done", || if rig.log.cursor() == rig.log.end() { Ok(()) } else { Err(bridge.status()) }).await;
    let counts = bridge.status().counts;
    assert_eq!((counts.confirmed, counts.filtered, counts.dead), (2, 2, 1), "{counts:?}");
    let got: Vec<_> = rig.server.server.requests().iter().map(|request| request.json()["data"].clone()).collect();
    assert_eq!(got, ["3", "4"]);
    let dead = rig.dead.list(None, 10).unwrap();
    assert_eq!(&*dead[0].reason, "when: \"many\" is no number");
}

/// A server that says how long it wants to be left alone is, and the bridge says so; then everything arrives in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_asks_for_silence_gets_it() {
    let mut rig = Rig::<Hook>::start().await;
    let refuse = json!([{ "status": 429, "times": 1, "headers": { "Retry-After": "3600" }, "text": "slow down" }]);
    rig.server.server.rules(&refuse);
    let bridge = rig.bridge();
    rig.log.publish_many(3);
    let says = |state: &hookbus_bridges::delivery::BridgeState| {
        matches!(state, hookbus_bridges::delivery::BridgeState::Blocked { reason }
            if reason.ends_with("answers 429 Too Many Requests: slow down; it asks for 3600 s"))
    };
    super::contract::until_state(&bridge, "it is silent", says).await;
    assert_eq!(rig.server.server.requests().len(), 1);
    bridge.abort().await;

    // The same with a time that a test can wait for: the second request comes, and not before.
    rig.server.server.rules(&json!([{ "status": 503, "times": 1, "headers": { "Retry-After": "1" } }]));
    let begun = std::time::Instant::now();
    let bridge = rig.bridge();
    let arrivals = rig.delivered(&bridge).await;
    rig.check_all_in_order(&arrivals);
    assert!(begun.elapsed() >= Duration::from_secs(1), "it came back too early");
    assert_eq!((rig.server.server.requests().len(), bridge.status().counts.retried), (5, 1));
}
