//! Our own SUB and REQ.

use std::time::Duration;

use hookbus_bridges::zeromq::codec::{Command, put_frame};
use hookbus_bridges::zeromq::{
    ClientOptions, Endpoint, Heartbeat, Logger, LoggerOptions, Publisher, PublisherOptions, ReqClient, SubClient,
    SubEvent,
};
use hookbus_broker::Broker;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::support::*;

fn quick() -> ClientOptions {
    ClientOptions::default().reconnect(Duration::from_millis(5), Duration::from_millis(50))
}

/// A listener that behaves as the test says.
async fn listener() -> (TcpListener, Endpoint) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap().into();
    (listener, endpoint)
}

async fn accept(listener: &TcpListener, minor: u8, socket_type: &str) -> RawPeer {
    let (socket, _) = soon("it connects", listener.accept()).await.unwrap();
    let mut peer = RawPeer::from(socket);
    peer.send(&hello(minor, socket_type)).await;
    peer.skip_hello().await;
    peer
}

#[tokio::test]
async fn a_subscriber_comes_back_and_says_that_it_was_away() {
    let (broker, publisher) = publisher();
    let endpoint = publisher.local_endpoint().clone();
    let mut client = SubClient::connect_with(endpoint.clone(), ["A", "B"], quick());
    assert_eq!(soon("it connects", client.next_event()).await, SubEvent::Connected);
    until("it is subscribed", || publisher.peers().first().is_some_and(|peer| peer.filters == 2)).await;
    client.subscribe("C");
    client.subscribe("C");
    until("it has one more", || publisher.peers()[0].filters == 3).await;
    client.unsubscribe("B");
    until("it has one less", || publisher.peers()[0].filters == 2).await;
    publish(&broker, "B1", "").await;
    publish(&broker, "C1", "").await;
    assert_eq!(soon("it arrives", client.next_event()).await, SubEvent::Message(vec!["C1".into(), "".into()]));
    drop(publisher);
    let lost = soon("it notices", client.next_event()).await;
    assert!(matches!(lost, SubEvent::Disconnected { .. }), "{lost:?}");
    // It has tried in vain many a time when somebody listens again.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let publisher = Publisher::bind(broker.clone(), PublisherOptions::new(endpoint)).unwrap();
    assert_eq!(soon("it connects", client.next_event()).await, SubEvent::Connected);
    until("it is subscribed", || publisher.peers().first().is_some_and(|peer| peer.filters == 2)).await;
    publish(&broker, "A2", "").await;
    assert_eq!(soon("it arrives", client.recv()).await[0], "A2");
}

#[tokio::test]
async fn a_publisher_that_vanished_without_a_word_is_noticed() {
    let (listener, endpoint) = listener().await;
    let heartbeat = Heartbeat { interval: Duration::from_millis(20), timeout: Duration::from_millis(200) };
    let mut client = SubClient::connect_with(endpoint, ["A"], quick().heartbeat(Some(heartbeat)));
    let mut silent = accept(&listener, 1, "PUB").await;
    assert_eq!(soon("it connects", client.next_event()).await, SubEvent::Connected);
    let (_, body) = silent.frame().await.unwrap();
    assert_eq!(Command::parse(&body), Ok(Command::Subscribe(b"A")));
    let (_, body) = silent.frame().await.unwrap();
    assert!(matches!(Command::parse(&body), Ok(Command::Ping { .. })), "{body:?}");
    let lost = soon("it notices", client.next_event()).await;
    assert!(matches!(&lost, SubEvent::Disconnected { reason } if reason.contains("silent")), "{lost:?}");
    accept(&listener, 1, "PUB").await;
    assert_eq!(soon("it connects", client.next_event()).await, SubEvent::Connected);
}

/// To a peer that says 3.0: subscriptions as messages, and no PING.
#[tokio::test]
async fn an_old_publisher_is_spoken_to_in_its_own_way() {
    let (listener, endpoint) = listener().await;
    let heartbeat = Heartbeat { interval: Duration::from_millis(5), timeout: Duration::from_millis(20) };
    let mut client = SubClient::connect_with(endpoint, ["A"], quick().heartbeat(Some(heartbeat)));
    let mut publisher = accept(&listener, 0, "XPUB").await;
    assert_eq!(publisher.frame().await.unwrap(), (0, b"\x01A".to_vec()));
    assert_eq!(soon("it connects", client.next_event()).await, SubEvent::Connected);
    // Well beyond what its heartbeats would bear.
    tokio::time::sleep(Duration::from_millis(200)).await;
    client.unsubscribe("A");
    assert_eq!(publisher.frame().await.unwrap(), (0, b"\0A".to_vec()));
    let mut bytes = Vec::new();
    put_frame(&mut bytes, 1, b"A1");
    put_frame(&mut bytes, 0, b"x");
    publisher.send(&bytes).await;
    assert_eq!(soon("it arrives", client.next_event()).await, SubEvent::Message(vec!["A1".into(), "x".into()]));
}

/// An owner who does not read slows the client down, and is not mistaken for a dead publisher.
#[tokio::test]
async fn a_client_whose_owner_is_busy_loses_nothing() {
    let (broker, publisher) = publisher();
    let heartbeat = Heartbeat { interval: Duration::from_millis(200), timeout: Duration::from_secs(2) };
    let options = quick().heartbeat(Some(heartbeat)).hwm(1);
    let mut client = SubClient::connect_with(publisher.local_endpoint().clone(), [""], options);
    until("it is subscribed", || publisher.peers().first().is_some_and(|peer| peer.filters == 1)).await;
    for i in 0..500 {
        publish(&broker, &format!("{i}"), vec![0; 10_000]).await;
    }
    // Busy for longer than its heartbeats would bear.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(soon("it connects", client.next_event()).await, SubEvent::Connected);
    for i in 0..500 {
        match soon("it arrives", client.next_event()).await {
            SubEvent::Message(frames) => assert_eq!(frames[0], i.to_string()),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_request_is_asked_again_until_it_is_answered() {
    let (listener, endpoint) = listener().await;
    let mut client = ReqClient::with_options(endpoint.clone(), quick());
    let asking = tokio::spawn(async move {
        let answer = client.request("0 7 PEE+", PATIENCE).await;
        (client, answer)
    });
    // The first server dies before, the second after it has read the request.
    let (first, _) = soon("it connects", listener.accept()).await.unwrap();
    drop(first);
    let mut second = accept(&listener, 1, "REP").await;
    assert_eq!(second.next().await, Some(Seen::Message(vec![Vec::new(), b"0 7 PEE+".to_vec()])));
    drop((second, listener));
    let (sender, mut requests) = mpsc::channel(1);
    let logger = Logger::bind(LoggerOptions::new(endpoint.clone()), sender).unwrap();
    let request = soon("it arrives", requests.recv()).await.unwrap();
    assert_eq!(request.body(), "0 7 PEE+");
    request.acknowledge();
    let (mut client, answer) = soon("it is answered", asking).await.unwrap();
    assert_eq!(answer.unwrap(), "ACK");
    // A server that was replaced between two requests is no matter.
    logger.shutdown(Duration::ZERO).await;
    let (sender, mut requests) = mpsc::channel(1);
    let _logger = Logger::bind(LoggerOptions::new(endpoint), sender).unwrap();
    tokio::spawn(async move { requests.recv().await.unwrap().acknowledge() });
    assert_eq!(client.request("again", PATIENCE).await.unwrap(), "ACK");
}

#[tokio::test]
async fn a_request_without_an_answer_says_why() {
    let (listener, endpoint) = listener().await;
    drop(listener);
    let mut client = ReqClient::with_options(endpoint.clone(), quick());
    let error = client.request("x", Duration::from_millis(100)).await.unwrap_err().to_string();
    assert!(error.contains(&endpoint.to_string()) && error.contains("refused"), "{error}");
}

#[tokio::test]
async fn a_subscriber_can_wait_for_a_publisher_that_is_not_there_yet() {
    let (listener, endpoint) = listener().await;
    drop(listener);
    let mut client = SubClient::connect_with(endpoint.clone(), ["A"], quick());
    assert!(matches!(soon("it fails", client.next_event()).await, SubEvent::Disconnected { .. }));
    let broker = Broker::default();
    let publisher = Publisher::bind(broker.clone(), PublisherOptions::new(endpoint)).unwrap();
    until("it is subscribed", || publisher.peers().first().is_some_and(|peer| peer.filters == 1)).await;
    publish(&broker, "A", "").await;
    assert_eq!(soon("it arrives", client.recv()).await[0], "A");
}
