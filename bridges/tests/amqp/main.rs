//! The AMQP bridge against a real RabbitMQ. It starts slowly, so there are two servers for all: one that stays, one that goes away and comes
//! back.

#![cfg(feature = "amqp")]
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

use hookbus_bridges::amqp::{AmqpBus, AmqpOptions};
use lapin::message::BasicGetMessage;
use lapin::options::{BasicGetOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ConnectionProperties, ExchangeKind};
use servers::certificates::Authority;
use servers::rabbitmq::RabbitMq;

/// How long a test's loop waits for a receipt before it connects anew.
const SHORT: Duration = Duration::from_secs(20);

/// All that needs no server of its own, one after the other.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stays() {
    let authority = Authority::new();
    let (tls_port, certificate) = (servers::free_port(), authority.server());
    let server = tokio::task::block_in_place(|| {
        let server = RabbitMq::start_with(&format!(
            "max_message_size = 1000000\nlisteners.ssl.1 = 127.0.0.1:{tls_port}\nssl_options.cacertfile = {}\n\
             ssl_options.certfile = {}\nssl_options.keyfile = {}\nssl_options.verify = verify_peer\n\
             ssl_options.fail_if_no_peer_cert = true",
            authority.ca().display(),
            certificate.cert.display(),
            certificate.key.display()
        ));
        server.wait_until_booted();
        server
    });
    arrivals::events_arrive_with_their_properties(&server).await;
    arrivals::an_exchange_that_exists_is_used(&server).await;
    arrivals::what_nobody_is_bound_for_is_told_apart(&server).await;
    arrivals::repetitions_have_the_same_id(&server).await;
    refusals::a_full_queue_is_transient(&server).await;
    refusals::what_is_too_large_is_refused_alone(&server).await;
    refusals::an_exchange_that_is_gone_is_made_again(&server).await;
    refusals::what_is_not_permitted_is_told(&server).await;
    refusals::a_routing_key_that_is_not_permitted_costs_its_events(&server).await;
    refusals::a_blocked_connection_is_told_and_does_not_hang(&server).await;
    login::user_and_password(&server).await;
    login::tls(&server, &authority, tls_port).await;
}

fn options(server: &RabbitMq, exchange: &str) -> AmqpOptions {
    AmqpOptions { url: server.url(), exchange: exchange.into(), ..AmqpOptions::default() }
}

fn bus(server: &RabbitMq, exchange: &str) -> AmqpBus {
    AmqpBus::new(options(server, exchange))
}

/// AMQP as a consumer sees it.
async fn channel(server: &RabbitMq) -> (Connection, Channel) {
    let connection = Connection::connect(&server.url(), ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    (connection, channel)
}

/// Makes a topic exchange, and a queue of the same name that is bound with these keys; both durable.
async fn queue(server: &RabbitMq, name: &str, keys: &[&str], arguments: FieldTable) {
    let (_connection, channel) = channel(server).await;
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    channel.exchange_declare(name.into(), ExchangeKind::Topic, durable, FieldTable::default()).await.unwrap();
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(name.into(), durable, arguments).await.unwrap();
    for key in keys {
        let bind = channel.queue_bind(
            name.into(),
            name.into(),
            (*key).into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        bind.await.unwrap();
    }
}

/// Takes all that is in a queue.
async fn taken(server: &RabbitMq, queue: &str) -> Vec<BasicGetMessage> {
    let (_connection, channel) = channel(server).await;
    let mut all = Vec::new();
    while let Some(message) = channel.basic_get(queue.into(), BasicGetOptions { no_ack: true }).await.unwrap() {
        all.push(message);
    }
    all
}

fn arguments(pairs: &[(&str, AMQPValue)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in pairs {
        table.insert((*name).into(), value.clone());
    }
    table
}
