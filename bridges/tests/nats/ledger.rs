//! The suite of all buses, over JetStream.

use std::time::Duration;

use async_nats::ConnectOptions;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::{self, Message};
use futures_util::StreamExt;
use hookbus_bridges::nats::{Login, NatsBus, NatsOptions};
use percent_encoding::percent_decode_str;
use tokio::task::block_in_place;
use tokio::time::timeout;

use super::contract::{Arrival, TestBus};
use super::options;
use super::servers::nats::NatsServer;

contract_suite!(super::JetStream);

/// A nats-server, and what was read of its stream so far.
struct JetStream {
    server: NatsServer,
    arrivals: Vec<Arrival>,
}

fn configuration(denied: Option<&str>) -> String {
    let permissions = denied.map_or_else(String::new, |part| {
        format!(", permissions: {{ publish: {{ deny: [\"hookbus.custom.{part}\"] }} }}")
    });
    format!(
        "max_payload: {}\nauthorization {{ users: [ {{ user: reader, password: x }}, {{ user: bridge, password: x{permissions} }} ] }}",
        JetStream::BODY_LIMIT_BYTES
    )
}

impl TestBus for JetStream {
    type Bus = NatsBus;

    const BODY_LIMIT_BYTES: usize = 64 * 1024;

    async fn start() -> Self {
        JetStream { server: block_in_place(|| NatsServer::start_with(&configuration(None))), arrivals: Vec::new() }
    }

    fn bus(&self) -> NatsBus {
        let login = Login::Password { user: "bridge".into(), password: "x".into() };
        NatsBus::new(NatsOptions { login, step_timeout: Duration::from_secs(2), ..options(&self.server) })
    }

    async fn arrived(&mut self) -> Vec<Arrival> {
        // A server that is down or stopped tells nothing new.
        let _ = timeout(Duration::from_secs(5), read(&self.server.url(), &mut self.arrivals)).await;
        self.arrivals.clone()
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
        block_in_place(|| self.server.reconfigure(&configuration(refused.then_some(part))));
        true
    }
}

/// Reads what the stream has behind what was read before.
async fn read(url: &str, arrivals: &mut Vec<Arrival>) -> Result<(), async_nats::Error> {
    let client = ConnectOptions::with_user_and_password("reader".into(), "x".into()).connect(url).await?;
    let mut stream = jetstream::new(client).get_stream("HOOKBUS").await?;
    let last = stream.info().await?.state.last_sequence;
    let first = arrivals.len() as u64 + 1;
    if last < first {
        return Ok(());
    }
    let consumer = stream
        .create_consumer(pull::Config {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: first },
            ack_policy: AckPolicy::None,
            ..pull::Config::default()
        })
        .await?;
    let mut messages = consumer.messages().await?;
    while (arrivals.len() as u64) < last {
        let Some(message) = messages.next().await else { break };
        arrivals.push(arrival(&message?));
    }
    Ok(())
}

fn arrival(message: &Message) -> Arrival {
    let mut arrival = Arrival {
        id: String::new(),
        address: message.subject.to_string(),
        body: message.payload.clone(),
        content_type: None,
        attributes: Vec::new(),
    };
    for (name, values) in message.headers.iter().flat_map(|headers| headers.iter()) {
        let (name, value) = (name.to_string(), values[0].to_string());
        let decoded = || percent_decode_str(&value).decode_utf8().unwrap().into_owned();
        match (name.as_str(), name.strip_prefix("ce-")) {
            ("Nats-Msg-Id", _) => arrival.id = value,
            ("Content-Type", _) => arrival.content_type = Some(value),
            (_, Some("datacontenttype")) => arrival.content_type = Some(decoded()),
            (_, Some(attribute)) => arrival.attributes.push((attribute.to_owned(), decoded())),
            _ => panic!("the header {name} is unexpected"),
        }
    }
    arrival
}
