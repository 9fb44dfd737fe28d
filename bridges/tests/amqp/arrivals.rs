//! What arrives.

use hookbus_bridges::amqp::{AmqpBus, AmqpOptions, Unroutable};
use hookbus_bridges::cloudevents::Format;
use hookbus_bridges::delivery::Bus;
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, ExchangeKind};

use super::direct::{deliver, letters, numbered};
use super::servers::rabbitmq::RabbitMq;
use super::{SHORT, bus, channel, options, queue, taken};

/// The exchange is made; events are routed by their names, persistent, with what their format asks for.
pub(super) async fn events_arrive_with_their_properties(server: &RabbitMq) {
    let mut bus = bus(server, "first");
    assert!(bus.acknowledges());
    drop(bus.connect().await.unwrap());
    // This fails unless the exchange is there, durable, and of the right type.
    queue(server, "first", &["hookbus.custom.#"], FieldTable::default()).await;

    let event = || [("backup done".to_owned(), b"42".to_vec())];
    let mut all = letters::<AmqpBus>(Format::CloudEvents, event()).await;
    all.extend(letters::<AmqpBus>(Format::CloudEventsBinary, event()).await);
    all.extend(letters::<AmqpBus>(Format::Base64, event()).await);
    let outcome = deliver(&mut bus, &all, 10, SHORT).await;
    assert_eq!((outcome.confirmed, outcome.faults.len()), (3, 0));

    let arrived = taken(server, "first").await;
    assert_eq!(arrived.len(), 3);
    for (message, letter) in arrived.iter().zip(&all) {
        assert_eq!(message.routing_key.as_str(), "hookbus.custom.backup.done");
        assert_eq!(message.data, letter.body);
        let properties: &BasicProperties = &message.properties;
        assert_eq!(*properties.delivery_mode(), Some(2));
        assert_eq!(properties.message_id().as_ref().unwrap().as_str(), &*letter.id);
        assert_eq!(properties.kind().as_ref().unwrap().as_str(), "org.hookbus.custom");
        assert_eq!(properties.app_id().as_ref().unwrap().as_str(), "hookbus");
        assert_eq!(*properties.timestamp(), Some(letter.event.time().as_millis() / 1000));
    }
    let content_type = |at: usize| arrived[at].properties.content_type().as_ref().unwrap().as_str();
    assert_eq!((content_type(0), content_type(2)), ("application/cloudevents+json", "text/plain"));
    assert_eq!(*arrived[0].properties.headers(), None);
    let headers = arrived[1].properties.headers().as_ref().unwrap();
    let header = |name: &str| match headers.inner().get(name) {
        Some(AMQPValue::LongString(text)) => text.to_string(),
        other => panic!("{name}: {other:?}"),
    };
    assert_eq!(header("cloudEvents_specversion"), "1.0");
    assert_eq!(header("cloudEvents_hookbuskey"), "backup done");
    assert_eq!(header("cloudEvents_id"), *all[1].id);

    let mut bus = AmqpBus::new(AmqpOptions { header_prefix: "ce-".into(), ..options(server, "first") });
    deliver(&mut bus, &all[1..2], 1, SHORT).await;
    let arrived = taken(server, "first").await;
    assert!(arrived[0].properties.headers().as_ref().unwrap().inner().contains_key("ce-id"));
}

/// An exchange that exists is used as it is, also if it is neither durable nor a topic exchange.
pub(super) async fn an_exchange_that_exists_is_used(server: &RabbitMq) {
    let (_connection, channel) = channel(server).await;
    let options = ExchangeDeclareOptions::default();
    channel.exchange_declare("fan".into(), ExchangeKind::Fanout, options, FieldTable::default()).await.unwrap();
    channel.queue_declare("fan".into(), QueueDeclareOptions::default(), FieldTable::default()).await.unwrap();
    channel
        .queue_bind("fan".into(), "fan".into(), "".into(), QueueBindOptions::default(), FieldTable::default())
        .await
        .unwrap();
    let outcome = deliver(&mut bus(server, "fan"), &numbered::<AmqpBus>(100).await, 50, SHORT).await;
    assert_eq!((outcome.confirmed, outcome.faults.len()), (100, 0));
    assert_eq!(taken(server, "fan").await.len(), 100);
}

/// Which events came back is known exactly, whichever confirms they come with.
pub(super) async fn what_nobody_is_bound_for_is_told_apart(server: &RabbitMq) {
    let bound = [1, 2, 7, 12];
    let keys = bound.map(|number| format!("hookbus.custom.number.{number}"));
    queue(server, "some", &keys.each_ref().map(String::as_str), FieldTable::default()).await;
    let letters = numbered::<AmqpBus>(8000).await;
    let expected: Vec<usize> = (0..letters.len()).filter(|at| !bound.contains(&(at % 16))).collect();

    let outcome = deliver(&mut bus(server, "some"), &letters, 700, SHORT).await;
    assert_eq!((outcome.confirmed, outcome.faults.len(), outcome.rejected.len()), (2000, 0, 0));
    let mut told = outcome.unroutable;
    told.sort_unstable();
    assert_eq!(told, expected);

    let mut bus = AmqpBus::new(AmqpOptions { unroutable: Unroutable::Reject, ..options(server, "some") });
    let outcome = deliver(&mut bus, &letters[..1600], 700, SHORT).await;
    assert_eq!((outcome.confirmed, outcome.unroutable.len()), (400, 0));
    let mut told: Vec<usize> = outcome.rejected.iter().map(|(at, _)| *at).collect();
    told.sort_unstable();
    assert_eq!(told, expected[..1200]);
    assert_eq!(outcome.rejected[0].1, "no queue is bound for it");
}

/// AMQP doesn't recognise repetitions; consumers do, by the message id.
pub(super) async fn repetitions_have_the_same_id(server: &RabbitMq) {
    queue(server, "again", &["#"], FieldTable::default()).await;
    let letters = numbered::<AmqpBus>(5).await;
    for _ in 0..2 {
        assert_eq!(deliver(&mut bus(server, "again"), &letters, 5, SHORT).await.confirmed, 5);
    }
    let arrived = taken(server, "again").await;
    let ids: Vec<_> = arrived.iter().map(|message| message.properties.message_id().clone()).collect();
    assert_eq!(ids[..5], ids[5..]);
}
