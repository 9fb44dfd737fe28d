//! What the server refuses.

use async_nats::jetstream::stream::{Config, DiscardPolicy};
use hookbus_bridges::cloudevents::Format;
use hookbus_bridges::delivery::{Bus, Letter, Receipt, Receipts, Rejection, Sender, Ticket};
use hookbus_bridges::nats::{Login, NatsBus, NatsOptions};

use super::direct::{deliver, letters, numbered, refused};
use super::servers::PATIENCE;
use super::servers::nats::NatsServer;
use super::{SHORT, bus, context, options};

/// What is larger than the server takes never leaves, because the server would hang up on it; the connection stays.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_is_refused_alone() {
    let server = NatsServer::start_with("max_payload: 4096");
    let mut bus = bus(&server);
    let (sender, _) = bus.connect().await.unwrap();
    assert_eq!(sender.limits().letter_bytes, 4096);
    // The headers count: this one is too large only with them.
    let events = [1000, 4090, 1000].map(|bytes| ("backup".to_owned(), vec![b'x'; bytes]));
    let letters = letters::<NatsBus>(Format::Raw, events).await;
    let outcome = deliver(&mut bus, &letters, 3, SHORT).await;
    assert_eq!((outcome.confirmed, outcome.faults.len()), (2, 0));
    let [(1, said)] = &outcome.rejected[..] else { panic!("{outcome:?}") };
    assert!(said.contains("takes 4096 bytes for a message"), "{said}");
}

/// A stream's own limit is the server's to tell, and concerns one letter.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_for_the_stream_is_refused_for_good() {
    let server = NatsServer::start();
    let config = Config {
        name: "HOOKBUS".into(),
        subjects: vec!["hookbus.>".into()],
        max_message_size: 1000,
        ..Config::default()
    };
    context(&server).await.create_stream(config).await.unwrap();
    let events = [10, 2000, 10].map(|bytes| ("backup".to_owned(), vec![b'x'; bytes]));
    let letters = letters::<NatsBus>(Format::Raw, events).await;
    let outcome = deliver(&mut bus(&server), &letters, 3, SHORT).await;
    assert_eq!((outcome.confirmed, outcome.faults.len()), (2, 0));
    let [(1, said)] = &outcome.rejected[..] else { panic!("{outcome:?}") };
    assert!(said.contains("message size exceeds maximum allowed (error code 10054)"), "{said}");
}

/// A stream that is full and refuses new events: that may pass.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_stream_is_transient() {
    let server = NatsServer::start();
    let config = Config {
        name: "HOOKBUS".into(),
        subjects: vec!["hookbus.>".into()],
        max_messages: 1,
        discard: DiscardPolicy::New,
        ..Config::default()
    };
    context(&server).await.create_stream(config).await.unwrap();
    let letters = numbered::<NatsBus>(2).await;
    let (mut sender, mut receipts) = bus(&server).connect().await.unwrap();
    let mut told = Vec::new();
    for (number, letter) in (1..).zip(&letters) {
        sender.send(Ticket(number), letter).await.unwrap();
    }
    while told.len() < 2 {
        tokio::time::timeout(PATIENCE, receipts.next(&mut told)).await.unwrap().unwrap();
    }
    assert_eq!(told[0], Receipt::Confirmed(Ticket(1)));
    assert_eq!(
        told[1],
        Receipt::Rejected(Ticket(2), Rejection::Transient("maximum messages exceeded (error code 10077)".into()))
    );
}

const PERMISSIONS: &str = r#"authorization { users: [
    { user: all, password: x }
    { user: narrow, password: x, permissions: {
        publish: ["hookbus.custom.number.1", "$JS.API.STREAM.INFO.HOOKBUS", "$JS.API.STREAM.CREATE.HOOKBUS"], subscribe: "_INBOX.>" } }
    { user: none, password: x, permissions: { publish: ["$JS.API.STREAM.INFO.HOOKBUS"], subscribe: "_INBOX.>" } }
    { user: blind, password: x, permissions: { publish: "hookbus.>", subscribe: "_INBOX.>" } }
    { user: deaf, password: x, permissions: { publish: ">", subscribe: "nothing" } }
] }"#;

fn as_user(server: &NatsServer, user: &str) -> NatsOptions {
    let login = Login::Password { user: user.into(), password: "x".into() };
    NatsOptions { login, step_timeout: std::time::Duration::from_secs(2), ..options(server) }
}

/// A subject that may not be used costs the events of that name; that nothing may be published at all costs none.
#[tokio::test(flavor = "multi_thread")]
async fn denied_subjects_and_denied_accounts_are_told_apart() {
    let server = NatsServer::start_with(PERMISSIONS);
    let letters = numbered::<NatsBus>(4).await;

    let mut narrow = NatsBus::new(as_user(&server, "narrow"));
    let outcome = deliver(&mut narrow, &letters, 4, SHORT).await;
    assert_eq!((outcome.confirmed, outcome.rejected.len(), outcome.faults.len()), (1, 3, 0));
    for (at, said) in &outcome.rejected {
        assert_eq!(*said, format!("Permissions Violation for Publish to \"hookbus.custom.number.{at}\""));
    }

    let (mut sender, mut receipts) = NatsBus::new(as_user(&server, "none")).connect().await.unwrap();
    sender.send(Ticket(1), &letters[0]).await.unwrap();
    let mut told = Vec::new();
    let fault = tokio::time::timeout(PATIENCE, receipts.next(&mut told)).await.unwrap().unwrap_err();
    assert!(
        fault.needs_help && fault.reason.contains("Permissions Violation for Publish to \"hookbus.custom.number.0\""),
        "{fault}"
    );
    assert_eq!(told, []);

    // A dead letter that is sent again and refused again says nothing about the account.
    let (mut sender, mut receipts) = NatsBus::new(as_user(&server, "none")).connect().await.unwrap();
    let again = Letter { replayed: true, ..letters[0].clone() };
    sender.send(Ticket(2), &again).await.unwrap();
    tokio::time::timeout(PATIENCE, receipts.next(&mut told)).await.unwrap().unwrap();
    assert!(matches!(&told[..], [Receipt::Rejected(Ticket(2), Rejection::Permanent(_))]), "{told:?}");
}

/// An account that may publish, and may not look at streams, works where there is a stream.
#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_may_not_look_at_streams_can_publish() {
    let server = NatsServer::start_with(PERMISSIONS);
    let letters = numbered::<NatsBus>(10).await;
    NatsBus::new(as_user(&server, "all")).connect().await.unwrap();
    let outcome = deliver(&mut NatsBus::new(as_user(&server, "blind")), &letters, 10, SHORT).await;
    assert_eq!((outcome.confirmed, outcome.faults.len()), (10, 0));
}

/// An account that may not have an inbox gets no acknowledgements: it is told so, with the server's words.
#[tokio::test(flavor = "multi_thread")]
async fn an_account_without_an_inbox_is_told_so() {
    let server = NatsServer::start_with(PERMISSIONS);
    let fault = refused(&mut NatsBus::new(as_user(&server, "deaf"))).await;
    assert!(fault.needs_help && fault.reason.contains("denies the inbox"), "{fault}");
    assert!(fault.reason.contains("Permissions Violation for Subscription to"), "{fault}");
}

/// A server without JetStream is told from one that is away.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_jetstream_is_told_so() {
    let server = NatsServer::start_with("accounts { A: { users: [{user: a, password: x}] } }\nno_auth_user: a");
    let fault = refused(&mut bus(&server)).await;
    assert!(fault.needs_help && fault.reason.contains("has no JetStream, or not for this account"), "{fault}");
}
