//! What arrives, and the stream that it arrives in.

use std::time::Duration;

use async_nats::jetstream::stream::{Config, DiscardPolicy, StorageType};
use futures_util::StreamExt;
use hookbus_bridges::cloudevents::Format;
use hookbus_bridges::delivery::{Bus, Sender};
use hookbus_bridges::nats::{Mode, NatsBus, NatsOptions, StreamOptions};

use super::direct::{deliver, letters, numbered, refused};
use super::servers::PATIENCE;
use super::servers::nats::NatsServer;
use super::{SHORT, bus, context, core, header, options, stored};

/// A stream is made as it was configured; events are in it under their names, with the headers of their format.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_made_and_filled() {
    let server = NatsServer::start();
    let stream = StreamOptions {
        max_age: Duration::from_secs(60),
        max_bytes: 5_000_000,
        duplicate_window: Duration::from_secs(600),
        ..StreamOptions::default()
    };
    let mut bus = NatsBus::new(NatsOptions { mode: Mode::JetStream(stream), ..options(&server) });
    assert!(bus.acknowledges());
    let event = || [("backup done".to_owned(), b"42".to_vec())];
    let mut all = letters::<NatsBus>(Format::CloudEvents, event()).await;
    all.extend(letters::<NatsBus>(Format::CloudEventsBinary, event()).await);
    all.extend(letters::<NatsBus>(Format::Base64, event()).await);
    let outcome = deliver(&mut bus, &all, 10, SHORT).await;
    assert_eq!((outcome.confirmed, outcome.faults.len()), (3, 0));

    let made = context(&server).await.get_stream("HOOKBUS").await.unwrap();
    let config = &made.cached_info().config;
    assert_eq!(config.subjects, ["hookbus.>"]);
    assert_eq!((config.storage, config.discard, config.max_bytes), (StorageType::File, DiscardPolicy::Old, 5_000_000));
    assert_eq!(config.max_age, Duration::from_secs(60));
    assert_eq!(config.duplicate_window, Duration::from_secs(60), "no longer than events are kept");

    let messages = stored(&server).await;
    for (message, letter) in messages.iter().zip(&all) {
        assert_eq!(message.subject.as_str(), "hookbus.custom.backup.done");
        assert_eq!(header(message, "Nats-Msg-Id"), Some(&*letter.id));
        assert_eq!(message.payload, letter.body);
    }
    assert_eq!(header(&messages[0], "Content-Type"), Some("application/cloudevents+json"));
    assert_eq!(header(&messages[1], "Content-Type"), None);
    assert_eq!(header(&messages[1], "ce-specversion"), Some("1.0"));
    assert_eq!(header(&messages[1], "ce-type"), Some("org.hookbus.custom"));
    assert_eq!(header(&messages[1], "ce-hookbuskey"), Some("backup%20done"));
    assert_eq!(header(&messages[1], "ce-id"), Some(&*all[1].id));
    assert_eq!(header(&messages[2], "Content-Type"), Some("text/plain"));
    assert_eq!(messages[2].payload, "NDI=");
}

/// What the stream has already is told as a repetition, and is there once.
#[tokio::test(flavor = "multi_thread")]
async fn repetitions_are_recognised() {
    let server = NatsServer::start();
    let letters = numbered::<NatsBus>(100).await;
    let first = deliver(&mut bus(&server), &letters, 10, SHORT).await;
    assert_eq!((first.confirmed, first.duplicates), (100, 0));
    let second = deliver(&mut bus(&server), &letters, 10, SHORT).await;
    assert_eq!((second.confirmed, second.duplicates), (0, 100));
    assert_eq!(stored(&server).await.len(), 100);
}

/// A stream that exists is used as it is; what it doesn't take is refused, and the rest goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_exists_is_used() {
    let server = NatsServer::start();
    let subjects = vec!["hookbus.custom.number.1".to_owned(), "other.>".to_owned()];
    let config = Config { name: "HOOKBUS".into(), subjects: subjects.clone(), ..Config::default() };
    context(&server).await.create_stream(config).await.unwrap();

    let letters = numbered::<NatsBus>(32).await;
    let outcome = deliver(&mut bus(&server), &letters, 32, SHORT).await;
    assert_eq!((outcome.confirmed, outcome.rejected.len(), outcome.faults.len()), (2, 30, 0));
    let said = &outcome.rejected[0].1;
    assert!(
        said.contains(
            "stream HOOKBUS doesn't take hookbus.custom.number.0: its subjects are hookbus.custom.number.1, other.>"
        ),
        "{said}"
    );
    let kept = context(&server).await.get_stream("HOOKBUS").await.unwrap();
    assert_eq!(kept.cached_info().config.subjects, subjects);
}

/// Streams that can't do what is promised are refused with a message that says what to do.
#[tokio::test(flavor = "multi_thread")]
async fn streams_that_do_not_fit_are_refused() {
    let server = NatsServer::start();
    let jetstream = context(&server).await;
    let said = async |config: Config| {
        jetstream.create_stream(config).await.unwrap();
        let fault = refused(&mut bus(&server)).await;
        jetstream.delete_stream("HOOKBUS").await.ok();
        jetstream.delete_stream("OTHER").await.ok();
        assert!(fault.needs_help, "{fault}");
        fault.reason
    };
    let config =
        |name: &str, subject: &str| Config { name: name.into(), subjects: vec![subject.into()], ..Config::default() };
    let foreign = said(config("HOOKBUS", "events.>")).await;
    assert!(foreign.contains("takes nothing of hookbus.>: its subjects are events.>"), "{foreign}");
    let silent = said(Config { no_ack: true, ..config("HOOKBUS", "hookbus.>") }).await;
    assert!(silent.contains("doesn't acknowledge (no_ack)"), "{silent}");
    let overlap = said(config("OTHER", "hookbus.>")).await;
    assert!(overlap.contains("another one has its subjects"), "{overlap}");
}

/// A stream that is deleted under way ends the connection; the next one makes it again, and what was unknown is sent again.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_gone_is_made_again() {
    let server = NatsServer::start();
    let mut bus = bus(&server);
    let (mut sender, mut receipts) = bus.connect().await.unwrap();
    context(&server).await.delete_stream("HOOKBUS").await.unwrap();
    let letters = numbered::<NatsBus>(1).await;
    sender.send(hookbus_bridges::delivery::Ticket(1), &letters[0]).await.unwrap();
    let mut told = Vec::new();
    let fault = tokio::time::timeout(PATIENCE, hookbus_bridges::delivery::Receipts::next(&mut receipts, &mut told))
        .await
        .unwrap();
    let fault = fault.unwrap_err();
    assert!(
        !fault.needs_help && fault.reason.contains("no stream takes hookbus.custom.number.0: HOOKBUS is gone"),
        "{fault}"
    );
    assert_eq!(told, []);
    assert_eq!(deliver(&mut bus, &letters, 1, SHORT).await.confirmed, 1);
    assert_eq!(stored(&server).await.len(), 1);
}

/// Without JetStream an event goes to whoever subscribes, and nothing is confirmed.
#[tokio::test(flavor = "multi_thread")]
async fn core_nats_delivers_to_those_who_listen() {
    let server = NatsServer::start();
    let listener = async_nats::connect(server.url()).await.unwrap();
    let mut subscription = listener.subscribe("hookbus.custom.number.*").await.unwrap();
    listener.flush().await.unwrap();
    let mut bus = core(&server);
    assert!(!bus.acknowledges());
    let (mut sender, _receipts) = bus.connect().await.unwrap();
    let letters = numbered::<NatsBus>(1000).await;
    for (number, letter) in (1..).zip(&letters) {
        sender.send(hookbus_bridges::delivery::Ticket(number), letter).await.unwrap();
    }
    sender.flush().await.unwrap();
    sender.close().await;
    let arrived = (&mut subscription).take(1000).map(|message| message.payload.to_vec()).collect::<Vec<_>>();
    super::direct::assert_numbers(tokio::time::timeout(PATIENCE, arrived).await.unwrap(), 1000);
}
