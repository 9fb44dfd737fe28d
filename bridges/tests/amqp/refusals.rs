//! What the server refuses, or asks to wait for.

use hookbus_bridges::amqp::{AmqpBus, AmqpOptions};
use hookbus_bridges::cloudevents::Format;
use hookbus_bridges::delivery::{Bus, Receipt, Receipts, Rejection, Sender, Ticket};
use lapin::options::ExchangeDeleteOptions;
use lapin::types::{AMQPValue, FieldTable};
use tokio::task::block_in_place;
use tokio::time::timeout;

use super::direct::{deliver, letters, numbered, refused};
use super::servers::PATIENCE;
use super::servers::rabbitmq::RabbitMq;
use super::{SHORT, arguments, bus, channel, options, queue, taken};

/// A queue that is full and refuses new messages: that may pass.
pub(super) async fn a_full_queue_is_transient(server: &RabbitMq) {
    let full =
        [("x-max-length", AMQPValue::LongInt(1)), ("x-overflow", AMQPValue::LongString("reject-publish".into()))];
    queue(server, "full", &["#"], arguments(&full)).await;
    let letters = numbered::<AmqpBus>(3).await;
    let (mut sender, mut receipts) = bus(server, "full").connect().await.unwrap();
    let mut told = Vec::new();
    for (number, letter) in (1..).zip(&letters) {
        sender.send(Ticket(number), letter).await.unwrap();
        while told.len() < number as usize {
            timeout(PATIENCE, receipts.next(&mut told)).await.unwrap().unwrap();
        }
    }
    // RabbitMQ takes one more than it says.
    assert_eq!(told[0], Receipt::Confirmed(Ticket(1)));
    let Receipt::Rejected(Ticket(3), Rejection::Transient(reason)) = &told[2] else { panic!("{told:?}") };
    assert!(reason.contains("refuses it for now (nack)"), "{reason}");
}

/// A message that is larger than the server takes closes the channel: it alone is refused, and the limit remembered.
pub(super) async fn what_is_too_large_is_refused_alone(server: &RabbitMq) {
    queue(server, "large", &["#"], FieldTable::default()).await;
    let events = [10, 1_000_001, 10, 2_000_000, 10].map(|bytes| ("backup".to_owned(), vec![b'x'; bytes]));
    let letters = letters::<AmqpBus>(Format::Raw, events).await;
    let mut bus = bus(server, "large");
    let (sender, receipts) = bus.connect().await.unwrap();
    assert_eq!(sender.limits().letter_bytes, 128 << 20);
    drop((sender, receipts));
    let outcome = deliver(&mut bus, &letters, 5, SHORT).await;
    assert_eq!(outcome.confirmed, 3);
    let mut rejected: Vec<usize> = outcome.rejected.iter().map(|(at, _)| *at).collect();
    rejected.sort_unstable();
    assert_eq!(rejected, [1, 3]);
    assert!(outcome.rejected[0].1.contains("is larger than configured max size 1000000"), "{outcome:?}");
    assert_eq!(outcome.faults.len(), 1, "once is enough: {outcome:?}");
    assert_eq!(bus.connect().await.unwrap().0.limits().letter_bytes, 1_000_000);
    assert!(taken(server, "large").await.iter().all(|message| message.data.len() == 10));
}

/// An exchange that is deleted under way ends the connection; the next one makes it again.
pub(super) async fn an_exchange_that_is_gone_is_made_again(server: &RabbitMq) {
    let mut bus = bus(server, "gone");
    let (mut sender, mut receipts) = bus.connect().await.unwrap();
    channel(server).await.1.exchange_delete("gone".into(), ExchangeDeleteOptions::default()).await.unwrap();
    let letters = numbered::<AmqpBus>(1).await;
    sender.send(Ticket(1), &letters[0]).await.unwrap();
    let mut told = Vec::new();
    let fault = timeout(PATIENCE, receipts.next(&mut told)).await.unwrap().expect_err(&format!("{told:?}"));
    assert!(!fault.needs_help && fault.reason.contains("NOT_FOUND - no exchange 'gone' in vhost '/'"), "{fault}");
    assert_eq!(told, []);
    assert_eq!(deliver(&mut bus, &letters, 1, SHORT).await.unroutable, [0]);
}

fn as_user(server: &RabbitMq, user: &str, exchange: &str) -> AmqpOptions {
    AmqpOptions { user: Some(user.into()), password: Some("secret".into()), ..options(server, exchange) }
}

fn add_user(server: &RabbitMq, user: &str, permissions: [&str; 3]) {
    block_in_place(|| {
        server.ctl(&["add_user", user, "secret"]);
        server.ctl(&["set_permissions", user, permissions[0], permissions[1], permissions[2]]);
    });
}

/// What our account may not do is told with the server's words, and nothing is thrown away.
pub(super) async fn what_is_not_permitted_is_told(server: &RabbitMq) {
    add_user(server, "reader", ["^$", "^$", ".*"]);
    let fault = refused(&mut AmqpBus::new(as_user(server, "reader", "nowhere"))).await;
    assert!(fault.needs_help, "{fault}");
    assert!(fault.reason.contains("ACCESS_REFUSED") && fault.reason.contains("exchange 'nowhere'"), "{fault}");

    queue(server, "closed", &["#"], FieldTable::default()).await;
    let (mut sender, mut receipts) = AmqpBus::new(as_user(server, "reader", "closed")).connect().await.unwrap();
    sender.send(Ticket(1), &numbered::<AmqpBus>(1).await[0]).await.unwrap();
    let mut told = Vec::new();
    let fault = timeout(PATIENCE, receipts.next(&mut told)).await.unwrap().unwrap_err();
    assert!(
        fault.needs_help && fault.reason.contains("exchange 'closed' in vhost '/' refused for user 'reader'"),
        "{fault}"
    );
    assert_eq!(told, []);
}

/// A routing key that is not permitted costs the events of that name, and not those behind them.
pub(super) async fn a_routing_key_that_is_not_permitted_costs_its_events(server: &RabbitMq) {
    queue(server, "topics", &["#"], FieldTable::default()).await;
    add_user(server, "narrow", [".*", ".*", ".*"]);
    block_in_place(|| {
        server.ctl(&["set_topic_permissions", "narrow", "topics", r"^hookbus\.custom\.number\.(0|1|2)$", ".*"])
    });
    let letters = numbered::<AmqpBus>(5).await;
    let mut bus = AmqpBus::new(as_user(server, "narrow", "topics"));
    let outcome = deliver(&mut bus, &letters, 5, SHORT).await;
    assert_eq!(outcome.confirmed, 3);
    let mut rejected: Vec<usize> = outcome.rejected.iter().map(|(at, _)| *at).collect();
    rejected.sort_unstable();
    assert_eq!(rejected, [3, 4]);
    assert!(outcome.rejected[0].1.contains("access to topic 'hookbus.custom.number."), "{outcome:?}");
    assert!(outcome.faults.iter().all(|fault| !fault.needs_help), "without that one it goes on: {outcome:?}");
}

/// A server that is out of memory blocks those who publish: it is told, sending goes on to return, and all arrives afterwards.
pub(super) async fn a_blocked_connection_is_told_and_does_not_hang(server: &RabbitMq) {
    queue(server, "blocked", &["#"], FieldTable::default()).await;
    let letters = numbered::<AmqpBus>(2000).await;
    let mut bus = bus(server, "blocked");
    let (mut sender, mut receipts) = bus.connect().await.unwrap();
    block_in_place(|| server.ctl(&["set_vm_memory_high_watermark", "0"]));
    let mut told = Vec::new();
    for (number, letter) in (1..).zip(&letters) {
        timeout(PATIENCE, sender.send(Ticket(number), letter)).await.expect("sending returns").unwrap();
    }
    while !told.iter().any(|receipt| matches!(receipt, Receipt::Blocked(_))) {
        timeout(PATIENCE, receipts.next(&mut told)).await.unwrap().unwrap();
    }
    let reason = told.iter().find_map(|receipt| match receipt {
        Receipt::Blocked(reason) => reason.clone(),
        _ => None,
    });
    assert_eq!(reason.as_deref(), Some("low on memory"));
    // A connection that is made while the alarm is on works like that, too.
    let (mut second, mut its_receipts) = bus.connect().await.unwrap();
    second.send(Ticket(5000), &letters[0]).await.unwrap();
    let mut its = Vec::new();
    timeout(PATIENCE, its_receipts.next(&mut its)).await.unwrap().unwrap();
    assert_eq!(its, [Receipt::Blocked(Some("low on memory".into()))]);

    block_in_place(|| server.ctl(&["set_vm_memory_high_watermark", "absolute", "4GiB"]));
    let confirmed = |told: &[Receipt]| told.iter().filter(|receipt| matches!(receipt, Receipt::Confirmed(_))).count();
    while confirmed(&told) < 2000 || !told.contains(&Receipt::Blocked(None)) {
        timeout(PATIENCE, receipts.next(&mut told)).await.unwrap().unwrap();
    }
    while confirmed(&its) < 1 {
        timeout(PATIENCE, its_receipts.next(&mut its)).await.unwrap().unwrap();
    }
}
