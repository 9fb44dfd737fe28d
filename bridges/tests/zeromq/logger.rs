//! The logger port.

use std::time::Duration;

use bytes::Bytes;
use hookbus_bridges::zeromq::codec::{LONG, MORE, put_frame, put_ping};
use hookbus_bridges::zeromq::{Logger, LoggerOptions, ReqClient, Request};
use tokio::sync::mpsc;
use zeromq::{Socket, SocketRecv, SocketSend};

use super::support::*;

fn logger() -> (Logger, mpsc::Receiver<Request>) {
    logger_with(|options| options)
}

fn logger_with(set: impl FnOnce(LoggerOptions) -> LoggerOptions) -> (Logger, mpsc::Receiver<Request>) {
    let (sender, requests) = mpsc::channel(1);
    (Logger::bind(set(LoggerOptions::new(local())), sender).unwrap(), requests)
}

async fn requester(logger: &Logger, socket_type: &str) -> RawPeer {
    let mut peer = raw(logger.local_endpoint()).await;
    peer.send(&hello(1, socket_type)).await;
    peer.skip_hello().await;
    peer
}

/// The bytes that HEM's REQ socket sent to OpenNebula's driver, and what it was answered.
#[tokio::test]
async fn the_recorded_conversation() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/opennebula/zmtp");
    let asked = std::fs::read(format!("{folder}/hem-req.c2s.bin")).unwrap();
    let answered = std::fs::read(format!("{folder}/hem-req.s2c.bin")).unwrap();
    let (logger, mut requests) = logger();
    let mut peer = raw(logger.local_endpoint()).await;
    peer.send(&asked).await;
    let request = soon("it arrives", requests.recv()).await.unwrap();
    let mut words = request.body().split(|&b| b == b' ');
    assert_eq!((words.next(), words.next()), (Some(&b"0"[..]), Some(&b"0"[..])));
    from_base64(words.next().unwrap());
    assert_eq!((words.next(), request.body().len()), (None, 5652));
    request.acknowledge();
    assert_eq!(peer.exactly(answered.len()).await, answered);
}

#[tokio::test]
async fn several_peers_each_get_their_own_answer() {
    let (logger, mut requests) = logger();
    let serving = tokio::spawn(async move {
        let mut peers = std::collections::HashSet::new();
        while let Some(request) = requests.recv().await {
            peers.insert(request.peer().to_owned());
            let body = request.body().clone();
            request.answer(body);
        }
        peers.len()
    });
    let clients: Vec<_> = (0..5)
        .map(|client| {
            let endpoint = logger.local_endpoint().clone();
            tokio::spawn(async move {
                let mut executor = ReqClient::new(endpoint);
                for i in 0..50 {
                    let body = format!("{client} {i} {}", "x".repeat(i * 1000));
                    assert_eq!(executor.request(body.clone(), PATIENCE).await.unwrap(), body);
                }
            })
        })
        .collect();
    for client in clients {
        soon("it is answered", client).await.unwrap();
    }
    logger.shutdown(Duration::from_secs(1)).await;
    assert_eq!(serving.await.unwrap(), 5);
}

/// DEALER: an envelope of its own, and requests sent ahead; answered in order, each with its envelope.
#[tokio::test]
async fn envelopes_come_back() {
    let (logger, mut requests) = logger();
    let mut peer = requester(&logger, "DEALER").await;
    let mut bytes = Vec::new();
    for i in 0..100 {
        put_frame(&mut bytes, MORE, format!("id {i}").as_bytes());
        put_frame(&mut bytes, MORE, b"more of it");
        bytes.extend(request(format!("body {i}").as_bytes()));
    }
    peer.send(&bytes).await;
    for i in 0..100 {
        let request = soon("it arrives", requests.recv()).await.unwrap();
        assert_eq!(request.body(), format!("body {i}").as_bytes());
        request.acknowledge();
        let frames = vec![format!("id {i}").into_bytes(), b"more of it".to_vec(), Vec::new(), b"ACK".to_vec()];
        assert_eq!(peer.next().await, Some(Seen::Message(frames)));
    }
}

#[tokio::test]
async fn pings_are_answered_while_a_request_is_worked_on() {
    let (logger, mut requests) = logger();
    let mut peer = requester(&logger, "REQ").await;
    peer.send(&request(b"slow")).await;
    let slow = soon("it arrives", requests.recv()).await.unwrap();
    let mut bytes = Vec::new();
    put_ping(&mut bytes, Duration::ZERO, b"there?");
    peer.send(&bytes).await;
    assert_eq!(peer.next().await, Some(Seen::Pong(b"there?".into())));
    slow.acknowledge();
    assert_eq!(peer.next().await, Some(Seen::Message(vec![Vec::new(), b"ACK".to_vec()])));
}

/// A peer that has said all and gone has said it.
#[tokio::test]
async fn requests_of_peers_that_have_gone_count() {
    let (logger, mut requests) = logger();
    let mut peer = requester(&logger, "DEALER").await;
    let bodies: Vec<_> = (0..10).map(|i| format!("result {i}")).collect();
    let bytes: Vec<u8> = bodies.iter().flat_map(|body| request(body.as_bytes())).collect();
    peer.send(&bytes).await;
    let first = soon("it arrives", requests.recv()).await.unwrap();
    drop(peer);
    first.acknowledge();
    for body in &bodies[1..] {
        let request = soon("it arrives", requests.recv()).await.unwrap();
        assert_eq!(request.body(), body.as_bytes());
        request.acknowledge();
    }
}

#[tokio::test]
async fn hostile_requesters_end_alone() {
    let (logger, mut requests) = logger_with(|options| options.frame_limit_bytes(1000).max_bytes(5000));
    tokio::spawn(async move {
        while let Some(request) = requests.recv().await {
            request.acknowledge();
        }
    });
    let mut good = requester(&logger, "REQ").await;
    let mut no_delimiter = Vec::new();
    put_frame(&mut no_delimiter, 0, b"body alone");
    let mut two_bodies = Vec::new();
    put_frame(&mut two_bodies, MORE, b"");
    put_frame(&mut two_bodies, MORE, b"one");
    put_frame(&mut two_bodies, 0, b"two");
    let mut no_body = Vec::new();
    put_frame(&mut no_body, 0, b"");
    let endless: Vec<u8> = [MORE, 1, b'x'].repeat(100_000);
    let too_long = [&[MORE, 0, LONG][..], &1001u64.to_be_bytes()].concat();
    for bad in [no_delimiter, two_bodies, no_body, endless, too_long] {
        let mut peer = requester(&logger, "REQ").await;
        // The other side may hang up before it has read all.
        let _ = tokio::io::AsyncWriteExt::write_all(&mut peer.socket, &bad).await;
        peer.is_hung_up_on().await;
    }
    // Requests that never become complete are bounded together; who goes beyond that is the one to go.
    let unfinished = [&[MORE, 0, LONG][..], &1000u64.to_be_bytes(), &[b'x'; 900]].concat();
    let mut holders = Vec::new();
    for _ in 0..5 {
        let mut peer = requester(&logger, "REQ").await;
        peer.send(&unfinished).await;
        holders.push(peer);
    }
    let mut last = requester(&logger, "REQ").await;
    last.send(&unfinished).await;
    let mut ended = 0;
    while ended == 0 {
        for peer in holders.iter_mut().chain([&mut last]) {
            ended += usize::from(peer.has_ended());
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    drop((holders, last));
    good.send(&request(b"0 1 PEE+")).await;
    assert_eq!(good.next().await, Some(Seen::Message(vec![Vec::new(), b"ACK".to_vec()])));
    let mut stranger = raw(logger.local_endpoint()).await;
    stranger.send(&hello(1, "SUB")).await;
    stranger.skip_hello().await;
    assert_eq!(stranger.next().await, Some(Seen::Error("Invalid socket type".into())));
}

/// Nobody answers: the peer is told by the end of its connection, as otherwise it would wait for ever.
#[tokio::test]
async fn a_request_that_is_dropped_ends_the_connection() {
    let (logger, mut requests) = logger();
    let mut peer = requester(&logger, "REQ").await;
    peer.send(&request(b"x")).await;
    drop(soon("it arrives", requests.recv()).await.unwrap());
    peer.is_hung_up_on().await;
    drop(requests);
    let mut peer = requester(&logger, "REQ").await;
    peer.send(&request(b"x")).await;
    peer.is_hung_up_on().await;
}

#[tokio::test]
async fn shutdown_answers_what_has_arrived() {
    let (logger, mut requests) = logger();
    let mut idle = requester(&logger, "REQ").await;
    let mut asking = requester(&logger, "REQ").await;
    asking.send(&request(b"x")).await;
    let request = soon("it arrives", requests.recv()).await.unwrap();
    let shutdown = tokio::spawn(logger.shutdown(PATIENCE));
    idle.is_hung_up_on().await;
    drop(idle);
    request.acknowledge();
    assert_eq!(asking.next().await, Some(Seen::Message(vec![Vec::new(), b"ACK".to_vec()])));
    asking.is_hung_up_on().await;
    drop(asking);
    soon("all are gone", shutdown).await.unwrap();
}

#[tokio::test]
async fn a_request_of_many_megabytes() {
    let (logger, mut requests) = logger();
    tokio::spawn(async move {
        while let Some(request) = requests.recv().await {
            let length = request.body().len();
            request.answer(length.to_string());
        }
    });
    let mut client = ReqClient::new(logger.local_endpoint().clone());
    let body = Bytes::from(vec![b'x'; 20 << 20]);
    assert_eq!(client.request(body, PATIENCE).await.unwrap(), (20 << 20).to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_zeromq_crate_asks() {
    let (logger, mut requests) = logger();
    tokio::spawn(async move {
        while let Some(request) = requests.recv().await {
            request.acknowledge();
        }
    });
    let mut socket = zeromq::ReqSocket::new();
    socket.connect(&logger.local_endpoint().to_string()).await.unwrap();
    for i in 0..20 {
        socket.send(format!("0 {i} PEE+").into()).await.unwrap();
        let answer = soon("it is answered", socket.recv()).await.unwrap();
        assert_eq!(answer.get(0).unwrap(), &b"ACK"[..]);
    }
}
