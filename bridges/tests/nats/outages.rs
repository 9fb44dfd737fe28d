//! The server goes away and comes back.

use std::time::Duration;

use hookbus_bridges::delivery::{Bus, Receipts, Sender, Ticket};
use hookbus_bridges::nats::{NatsBus, NatsOptions};

use super::direct::{assert_numbers, deliver, numbered, refused};
use super::servers::PATIENCE;
use super::servers::nats::NatsServer;
use super::{SHORT, bus, core, options, stored};

/// The server is killed and started again while events are published: all arrive, in order, and none twice, because the stream remembers
/// their ids.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_the_server_is_killed() {
    let mut server = NatsServer::start();
    let letters = numbered::<NatsBus>(30_000).await;
    let mut bus = bus(&server);
    let delivery = tokio::spawn(async move { deliver(&mut bus, &letters, 500, SHORT).await });
    for _ in 0..5 {
        wait_for_more(&server, 200).await;
        tokio::task::block_in_place(|| server.restart());
    }
    let outcome = delivery.await.unwrap();
    assert!(!outcome.faults.is_empty(), "the server was killed while events were on their way");
    let stored = stored(&server).await;
    assert_numbers(stored.iter().map(|message| message.payload.to_vec()), 30_000);
}

/// Waits until the stream has this many events more than now, or all.
async fn wait_for_more(server: &NatsServer, more: u64) {
    let end = tokio::time::Instant::now() + PATIENCE;
    let mut first = None;
    loop {
        assert!(tokio::time::Instant::now() < end, "no events arrive");
        if let Ok(mut stream) = super::context(server).await.get_stream("HOOKBUS").await {
            let count = stream.info().await.map_or(0, |info| info.state.messages);
            if count >= 30_000 || count >= *first.get_or_insert(count) + more {
                return;
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A server that is stopped answers nothing: the loop gives up the connection, and delivers when the server goes on.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_the_server_is_stopped() {
    let server = NatsServer::start();
    let letters = numbered::<NatsBus>(20_000).await;
    let mut bus = NatsBus::new(NatsOptions { step_timeout: Duration::from_millis(500), ..options(&server) });
    let delivery = tokio::spawn(async move { deliver(&mut bus, &letters, 500, Duration::from_millis(500)).await });
    wait_for_more(&server, 100).await;
    server.process.stop();
    tokio::time::sleep(Duration::from_secs(3)).await; // the outage itself
    server.process.resume();
    let outcome = delivery.await.unwrap();
    assert!(!outcome.faults.is_empty(), "the server was stopped while events were on their way");
    let stored = stored(&server).await;
    assert_numbers(stored.iter().map(|message| message.payload.to_vec()), 20_000);
}

/// The end of a connection is told to both ends, with JetStream and without, and nothing hangs.
#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_connection_is_told() {
    for bus_of in [bus as fn(&NatsServer) -> NatsBus, core] {
        let mut server = NatsServer::start();
        let mut bus = bus_of(&server);
        let (mut sender, mut receipts) = bus.connect().await.unwrap();
        server.process.kill();
        let mut told = Vec::new();
        let fault = tokio::time::timeout(PATIENCE, receipts.next(&mut told)).await.unwrap().unwrap_err();
        assert!(!fault.needs_help && fault.reason.ends_with("is gone"), "{fault}");
        let again = tokio::time::timeout(PATIENCE, receipts.next(&mut told)).await.unwrap().unwrap_err();
        assert_eq!(again, fault);
        let letters = numbered::<NatsBus>(1).await;
        sender.send(Ticket(1), &letters[0]).await.unwrap_err();
        tokio::time::timeout(PATIENCE, sender.close()).await.unwrap();
        let fault = refused(&mut bus).await;
        assert!(!fault.needs_help && fault.reason.contains("can't be reached"), "{fault}");
    }
}

/// What the library has in its channel when a connection ends is not published over another one that it makes by itself.
#[tokio::test(flavor = "multi_thread")]
async fn the_library_does_not_connect_again() {
    let mut server = NatsServer::start();
    let mut bus = bus(&server);
    let (mut sender, mut receipts) = bus.connect().await.unwrap();
    let letters = numbered::<NatsBus>(2000).await;
    server.process.stop();
    for (number, letter) in (1..).zip(&letters) {
        // Until the socket and the channel are full.
        match tokio::time::timeout(Duration::from_millis(200), sender.send(Ticket(number), letter)).await {
            Ok(sent) => sent.unwrap(),
            Err(_) => break,
        }
    }
    tokio::task::block_in_place(|| server.restart());
    let mut told = Vec::new();
    tokio::time::timeout(PATIENCE, receipts.next(&mut told)).await.unwrap().unwrap_err();
    // The library's task ends, and with it the channel that it takes messages from.
    let end = tokio::time::Instant::now() + PATIENCE;
    while sender.send(Ticket(u64::MAX), &letters[0]).await.is_ok() {
        assert!(tokio::time::Instant::now() < end, "the client lives on");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(stored(&server).await.len(), 0);
}
