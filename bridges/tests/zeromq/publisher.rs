//! The PUB side.

use std::time::Duration;

use hookbus_bridges::PAYLOAD_BASE64;
use hookbus_bridges::zeromq::codec::{
    COMMAND, GREETING_BYTES, LONG, put_cancel, put_ping, put_subscribe, put_subscription_message,
};
use hookbus_bridges::zeromq::{Endpoint, Heartbeat, Publisher, PublisherOptions, SubClient, SubEvent};
use hookbus_broker::{Broker, Message};
use tokio::io::AsyncWriteExt;
use zeromq::{Socket, SocketRecv};

use super::support::*;

#[tokio::test]
async fn one_pair_for_each_key_that_matches() {
    let (broker, publisher) = publisher();
    let mut all = subscriber(&publisher, 1, &[""]).await;
    let mut some = subscriber(&publisher, 0, &["EVENT STATE ", "RETRY"]).await;
    let event = Message::new("EVENT VM 7/ACTIVE/RUNNING ", "PEE+")
        .with_key("EVENT STATE VM/ACTIVE/RUNNING/7 ")
        .with_key("EVENT SERVICE 3 ");
    broker.publish(event.clone().with_tag(PAYLOAD_BASE64)).await.unwrap();
    broker.publish(event).await.unwrap();
    for content in ["PEE+", "UEVFKw=="] {
        for key in ["EVENT VM 7/ACTIVE/RUNNING ", "EVENT STATE VM/ACTIVE/RUNNING/7 ", "EVENT SERVICE 3 "] {
            assert_eq!(all.message().await, (key.into(), content.into()));
        }
        assert_eq!(some.message().await, ("EVENT STATE VM/ACTIVE/RUNNING/7 ".into(), content.into()));
    }
    let peers = publisher.peers();
    assert_eq!(peers.iter().map(|peer| peer.minor).collect::<Vec<_>>(), [1, 0]);
    assert_eq!(peers[0].subscription.name, format!("zeromq {}", peers[0].address).into());
    assert_eq!((peers[1].filters, peers[1].subscription.delivered), (2, 2));
}

/// Payloads around every boundary of the encoder, each with several keys, ready-made and not, in one burst.
#[tokio::test(flavor = "multi_thread")]
async fn payloads_of_every_size_arrive_whole_and_in_order() {
    let (broker, publisher) = publisher();
    let mut peer = subscriber(&publisher, 1, &["A", "B"]).await;
    let sizes = [0, 1, 2, 3, 190, 191, 192, 255, 256, 383, 384, 385, 511, 512, 513, 70_000, 300_000, 3_000_000];
    let payload = |size: usize| (0..size).map(|i| (i * 31 + size) as u8).collect::<Vec<_>>();
    let publishing = async {
        for round in 0..4 {
            for size in sizes {
                let message = Message::new("A1", payload(size)).with_key("no").with_key("B1").with_key("A2");
                broker.publish(message.with_tag(round % 2)).await.unwrap();
            }
        }
    };
    let reading = async {
        for round in 0..4 {
            for size in sizes {
                let content = if round % 2 == PAYLOAD_BASE64 { payload(size) } else { base64(&payload(size)) };
                for key in ["A1", "B1", "A2"] {
                    let (got, body) = peer.message().await;
                    assert_eq!((got.as_str(), body.len()), (key, content.len()));
                    assert!(body == content, "{size} bytes arrived otherwise");
                }
            }
        }
    };
    tokio::join!(publishing, reading);
}

#[tokio::test]
async fn counting_and_cancelling() {
    let (broker, publisher) = publisher();
    let mut peer = subscriber(&publisher, 1, &["A"]).await;
    let filters = || publisher.peers()[0].filters;
    let mut bytes = Vec::new();
    put_subscribe(&mut bytes, b"A");
    put_subscription_message(&mut bytes, true, b"B");
    peer.send(&bytes).await;
    until("B is there", || filters() == 2).await;
    bytes.clear();
    // One of the two A in the other form than it was subscribed; what was never there; B in the long form.
    put_subscription_message(&mut bytes, false, b"A");
    put_cancel(&mut bytes, b"never");
    bytes.extend_from_slice(&[COMMAND | LONG, 0, 0, 0, 0, 0, 0, 0, 8, 6]);
    bytes.extend_from_slice(b"CANCELB");
    peer.send(&bytes).await;
    until("B is gone", || filters() == 1).await;
    publish(&broker, "B", "").await;
    publish(&broker, "A1", "").await;
    assert_eq!(peer.message().await.0, "A1");
    bytes.clear();
    put_cancel(&mut bytes, b"A");
    put_subscribe(&mut bytes, b"C");
    put_subscribe(&mut bytes, b"D");
    peer.send(&bytes).await;
    until("A is gone, C and D are there", || filters() == 2).await;
    publish(&broker, "A2", "").await;
    publish(&broker, "C", "").await;
    assert_eq!(peer.message().await.0, "C");
}

#[tokio::test]
async fn pings_are_answered_between_messages_also_of_a_slow_peer() {
    for minor in [0, 1] {
        let (broker, publisher) = publisher();
        let mut peer = subscriber(&publisher, minor, &[""]).await;
        let mut bytes = Vec::new();
        put_ping(&mut bytes, Duration::ZERO, b"early");
        peer.send(&bytes).await;
        assert_eq!(peer.next().await, Some(Seen::Pong(b"early".into())));
        // So much that the socket is full while the PING arrives, and a message is cut in two.
        for i in 0..200 {
            publish(&broker, &format!("{i}"), vec![b'x'; 100_000]).await;
        }
        until("the socket is full", || {
            let stats = publisher.peers()[0].subscription.clone();
            stats.delivered > 0 && stats.queued > 0
        })
        .await;
        bytes.clear();
        put_ping(&mut bytes, Duration::ZERO, b"late");
        put_subscribe(&mut bytes, b"seen");
        peer.send(&bytes).await;
        until("it is read meanwhile", || publisher.peers()[0].filters == 2).await;
        let (mut messages, mut pongs) = (0, 0);
        while messages < 200 {
            // `next` fails on a command in the middle of a message.
            match peer.next().await.unwrap() {
                Seen::Message(frames) => {
                    assert_eq!(frames[0], messages.to_string().as_bytes());
                    assert_eq!(from_base64(&frames[1]).len(), 100_000);
                    messages += 1;
                }
                Seen::Pong(context) => {
                    assert_eq!(context, b"late");
                    assert!(messages < 199, "it should not wait for all messages");
                    pongs += 1;
                }
                Seen::Error(e) => panic!("{e}"),
            }
        }
        assert_eq!(pongs, 1);
    }
}

#[tokio::test]
async fn a_slow_peer_loses_the_newest_is_told_and_hurts_nobody() {
    let (broker, publisher) = publisher_with(|options| options.hwm(50));
    let mut slow = subscriber(&publisher, 1, &["", "HOOKBUS "]).await;
    let mut slow_and_silent = subscriber(&publisher, 1, &[""]).await;
    let mut fast = subscriber(&publisher, 1, &[""]).await;
    // More than any socket buffer holds; the fast one takes each before the next comes.
    const COUNT: usize = 400;
    for i in 0..COUNT {
        broker.publish(Message::new(format!("{i}"), vec![b'x'; 100_000]).with_tag(PAYLOAD_BASE64)).await.unwrap();
        assert_eq!(fast.message().await.0, i.to_string());
    }
    let dropped = |at: usize| publisher.peers()[at].subscription.dropped;
    assert_eq!(dropped(2), 0);
    assert!(dropped(0) > 0 && dropped(1) > 0, "the test needs more messages to fill the sockets");

    let mut expected = 0;
    let mut told = 0;
    while expected < COUNT {
        let (key, content) = slow.message().await;
        if key == "HOOKBUS GAP" {
            let text = String::from_utf8(from_base64(&content)).unwrap();
            let numbers: Vec<usize> =
                text.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect();
            let [first, last, count] = numbers[..] else { panic!("{text}") };
            assert_eq!(text, format!(r#"{{"first": {first}, "last": {last}, "count": {count}}}"#));
            // Offsets begin with 1, keys with 0; all that was published in between matched.
            assert_eq!((first, last - first + 1), (expected + 1, count));
            expected += count;
            told += count as u64;
        } else {
            assert_eq!((key, content.len()), (expected.to_string(), 100_000));
            expected += 1;
        }
    }
    assert_eq!(told, dropped(0));
    // Who has not asked for it by name gets no gap, also with an empty filter.
    let received = COUNT as u64 - dropped(1);
    for _ in 0..received {
        assert_ne!(slow_and_silent.message().await.0, "HOOKBUS GAP");
    }
    publish(&broker, "end", "").await;
    assert_eq!(slow_and_silent.message().await.0, "end");
}

#[tokio::test]
async fn twenty_thousand_filters_and_more_at_connect() {
    let (broker, publisher) = publisher();
    let mut peer = raw(publisher.local_endpoint()).await;
    let mut bytes = hello(1, "SUB");
    for i in 0..20_000 {
        put_subscribe(&mut bytes, format!("EVENT STATE VM/ACTIVE/RUNNING/{i} ").as_bytes());
    }
    peer.send(&bytes).await;
    peer.skip_hello().await;
    until("all are there", || publisher.peers().first().is_some_and(|peer| peer.subscription.prefixes == 20_000)).await;
    publish(&broker, "EVENT STATE VM/ACTIVE/RUNNING/20000 ", "").await;
    publish(&broker, "EVENT STATE VM/ACTIVE/RUNNING/19999 ", "").await;
    assert_eq!(peer.message().await.0, "EVENT STATE VM/ACTIVE/RUNNING/19999 ");
}

#[tokio::test]
async fn limits_end_only_the_peer_that_breaks_them() {
    let (broker, publisher) = publisher_with(|options| options.filter_limits(10, 1000));
    let mut good = subscriber(&publisher, 1, &["A"]).await;
    let filters = |count: usize, length: usize| {
        let mut bytes = Vec::new();
        (0..count).for_each(|i| put_subscribe(&mut bytes, format!("{i:0length$}").as_bytes()));
        bytes
    };
    let oversized = [&[0][..], &[LONG], &65_537u64.to_be_bytes()].concat()[1..].to_vec();
    for bad in [filters(11, 1), filters(10, 101), oversized, vec![0xff; 100]] {
        let mut peer = subscriber(&publisher, 1, &[]).await;
        peer.send(&bad).await;
        peer.is_hung_up_on().await;
        until("it is gone", || publisher.peers().len() == 1).await;
    }
    // At the limit is within it.
    let mut peer = subscriber(&publisher, 1, &[]).await;
    peer.send(&filters(10, 100)).await;
    until("all are there", || publisher.peers()[1].filters == 10).await;
    publish(&broker, "A", "").await;
    assert_eq!(good.message().await.0, "A");
}

#[tokio::test]
async fn strangers_are_refused_and_told_where_they_can_understand() {
    let (broker, publisher) = publisher_with(|options| options.handshake_timeout(Duration::from_millis(300)));
    let mut good = subscriber(&publisher, 1, &["A"]).await;
    let mut plain = hello(1, "SUB");
    plain[12..17].copy_from_slice(b"PLAIN");
    let mut old = hello(1, "SUB");
    old[10] = 1;
    let strangers: [(Vec<u8>, Option<&str>); 7] = [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".into(), None),
        (plain, None),
        (old, None),
        (hello(1, "REQ"), Some("Invalid socket type")),
        (hello(1, "PUB"), Some("Invalid socket type")),
        // Half a greeting, and a greeting without READY: until the time is over.
        (hello(1, "SUB")[..30].into(), None),
        (hello(1, "SUB")[..GREETING_BYTES].into(), None),
    ];
    let count = strangers.len() as u64;
    for (bytes, told) in strangers {
        let mut peer = raw(publisher.local_endpoint()).await;
        peer.send(&bytes).await;
        if let Some(told) = told {
            peer.skip_hello().await;
            assert_eq!(peer.next().await, Some(Seen::Error(told.into())));
        }
        peer.is_hung_up_on().await;
    }
    assert_eq!((publisher.refused(), publisher.peers().len()), (count, 1));
    publish(&broker, "A", "").await;
    assert_eq!(good.message().await.0, "A");
}

#[tokio::test]
async fn a_greeting_may_drip() {
    let (broker, publisher) = publisher();
    let mut peer = raw(publisher.local_endpoint()).await;
    peer.socket.set_nodelay(true).unwrap();
    let mut bytes = hello(1, "SUB");
    put_subscribe(&mut bytes, b"A");
    for byte in bytes {
        peer.socket.write_all(&[byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    peer.skip_hello().await;
    until("it is subscribed", || publisher.peers().first().is_some_and(|peer| peer.filters == 1)).await;
    publish(&broker, "A", "").await;
    assert_eq!(peer.message().await.0, "A");
}

#[tokio::test]
async fn too_many_connections_are_refused_and_room_is_used_again() {
    let (_broker, publisher) = publisher_with(|options| options.max_peers(2));
    let first = subscriber(&publisher, 1, &[]).await;
    let _second = subscriber(&publisher, 1, &[]).await;
    raw(publisher.local_endpoint()).await.is_hung_up_on().await;
    assert_eq!(publisher.refused(), 1);
    drop(first);
    until("there is room", || publisher.peers().len() == 1).await;
    let _third = subscriber(&publisher, 1, &[]).await;
}

/// Subscribers come, go in the middle of a message, and come again, while another one misses nothing.
#[tokio::test(flavor = "multi_thread")]
async fn kills_and_reconnects_in_between() {
    let (broker, publisher) = publisher();
    let mut steady = subscriber(&publisher, 1, &["A"]).await;
    let publishing = tokio::spawn({
        let broker = broker.clone();
        async move {
            for i in 0..1000 {
                publish(&broker, &format!("A{i}"), vec![b'x'; 20_000]).await;
                tokio::task::yield_now().await;
            }
        }
    });
    let endpoint = publisher.local_endpoint().clone();
    let unsteady = tokio::spawn(async move {
        for round in 0..60 {
            let mut peer = raw(&endpoint).await;
            let mut bytes = hello(1, "SUB");
            put_subscribe(&mut bytes, b"");
            // Every third goes away in the middle of its greeting.
            let cut = if round % 3 == 0 { 40 } else { bytes.len() };
            peer.send(&bytes[..cut]).await;
            if cut > 64 && round % 3 == 1 {
                peer.skip_hello().await;
                peer.frame().await;
            }
            if round % 2 == 0 {
                // As if the process was killed: RST.
                peer.socket.set_zero_linger().unwrap();
            }
        }
    });
    for i in 0..1000 {
        let (key, content) = steady.message().await;
        assert_eq!((key, content.len()), (format!("A{i}"), 26_668));
    }
    publishing.await.unwrap();
    unsteady.await.unwrap();
    until("the others are gone", || publisher.peers().len() == 1).await;
    let stats = broker.stats();
    assert_eq!((stats.subscriptions, publisher.peers()[0].subscription.dropped), (1, 0));
}

/// What was taken from the queue, but not sent when the peer went away, is not counted as delivered.
#[tokio::test]
async fn what_a_peer_did_not_get_is_counted_as_abandoned() {
    let (broker, publisher) = publisher();
    let peer = subscriber(&publisher, 1, &[""]).await;
    for _ in 0..300 {
        publish(&broker, "A", vec![0; 100_000]).await;
    }
    until("the socket is full", || publisher.peers()[0].subscription.delivered > 0).await;
    drop(peer);
    until("it is gone", || broker.stats().subscriptions == 0).await;
    let stats = broker.stats();
    assert_eq!(stats.delivered + stats.abandoned, 300);
    assert!(stats.abandoned > 0);
}

#[tokio::test]
async fn shutdown_drains_what_is_queued() {
    let (broker, publisher) = publisher();
    let mut reading = subscriber(&publisher, 1, &[""]).await;
    let half_open = raw(publisher.local_endpoint()).await;
    for i in 0..300 {
        publish(&broker, &format!("{i}"), vec![0; 100_000]).await;
    }
    let endpoint = publisher.local_endpoint().clone();
    let shutdown = tokio::spawn(publisher.shutdown(PATIENCE));
    for i in 0..300 {
        assert_eq!(reading.message().await.0, i.to_string());
    }
    assert_eq!(reading.next().await, None);
    drop(reading);
    soon("all are gone, who has not greeted, too", shutdown).await.unwrap();
    let stats = broker.stats();
    assert_eq!((stats.subscriptions, stats.delivered, stats.abandoned), (0, 300, 0));
    drop(half_open);
    // The port is free at once.
    Publisher::bind(broker, PublisherOptions::new(endpoint)).unwrap();
}

#[tokio::test]
async fn shutdown_does_not_wait_for_a_stalled_peer_beyond_its_deadline() {
    let (broker, publisher) = publisher();
    let stalled = subscriber(&publisher, 1, &[""]).await;
    for i in 0..300 {
        publish(&broker, &format!("{i}"), vec![0; 100_000]).await;
    }
    soon("the deadline passes", publisher.shutdown(Duration::from_millis(100))).await;
    let stats = broker.stats();
    assert_eq!((stats.subscriptions, stats.delivered + stats.abandoned), (0, 300));
    assert!(stats.abandoned > 0);
    drop(stalled);
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let (broker, publisher) = publisher();
    let endpoint = publisher.local_endpoint().clone();
    let error = Publisher::bind(broker, PublisherOptions::new(endpoint.clone())).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    assert!(error.to_string().contains(&endpoint.to_string()), "{error}");
}

#[tokio::test]
async fn ipc_and_ipv6() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pub.sock");
    // Left over from one that was killed.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    for endpoint in [Endpoint::ipc(&path), "tcp://[::1]:0".parse().unwrap(), "tcp://*:0".parse().unwrap()] {
        let broker = Broker::default();
        let publisher = Publisher::bind(broker.clone(), PublisherOptions::new(endpoint.clone())).unwrap();
        if let Endpoint::Ipc(_) = endpoint {
            let taken = Publisher::bind(broker.clone(), PublisherOptions::new(endpoint.clone())).unwrap_err();
            assert_eq!(taken.kind(), std::io::ErrorKind::AddrInUse);
        }
        // `*` takes both families.
        let mut endpoints = vec![publisher.local_endpoint().clone()];
        if let ("tcp://*:0", Endpoint::Tcp { port, .. }) = (&*endpoint.to_string(), &endpoints[0]) {
            endpoints = vec![Endpoint::tcp([127, 0, 0, 1], *port), format!("tcp://[::1]:{port}").parse().unwrap()];
        }
        for to in endpoints {
            let mut client = SubClient::connect(to, ["A"]);
            until("it is subscribed", || publisher.peers().iter().any(|peer| peer.filters == 1)).await;
            publish(&broker, "A", "x").await;
            assert_eq!(soon("it arrives", client.recv()).await, ["A", "eA=="]);
            drop(client);
            until("it is gone", || publisher.peers().is_empty()).await;
        }
        publisher.shutdown(Duration::from_secs(1)).await;
    }
    assert!(!path.exists());
    std::fs::write(&path, "precious").unwrap();
    assert!(Publisher::bind(Broker::default(), PublisherOptions::new(Endpoint::ipc(&path))).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[tokio::test]
async fn our_heartbeats_find_the_dead_and_spare_the_living_and_the_old() {
    let heartbeat = Heartbeat { interval: Duration::from_millis(50), timeout: Duration::from_millis(400) };
    let (broker, publisher) = publisher_with(|options| options.heartbeat(heartbeat));
    let silent = subscriber(&publisher, 1, &["A"]).await;
    // Says 3.0, so it need not know PING, and gets none.
    let mut old = subscriber(&publisher, 0, &["A"]).await;
    let mut living = SubClient::connect(publisher.local_endpoint().clone(), ["A"]);
    assert_eq!(soon("it connects", living.next_event()).await, SubEvent::Connected);
    until("all are there", || publisher.peers().len() == 3).await;
    until("the silent one is found", || publisher.peers().len() == 2).await;
    drop(silent);
    publish(&broker, "A", "x").await;
    assert_eq!(old.message().await.0, "A");
    assert_eq!(soon("it arrives", living.next_event()).await, SubEvent::Message(vec!["A".into(), "eA==".into()]));
}

/// A peer that promises by the time to live of its PING to be heard of, and isn't, is dead.
#[tokio::test]
async fn a_broken_promise_ends_the_connection() {
    let (_broker, publisher) = publisher();
    let mut kept = subscriber(&publisher, 1, &[]).await;
    let mut broken = subscriber(&publisher, 1, &[]).await;
    let mut bytes = Vec::new();
    put_ping(&mut bytes, Duration::from_millis(200), b"");
    kept.send(&bytes).await;
    broken.send(&bytes).await;
    // Heard of in time, without a new promise.
    bytes.clear();
    put_subscribe(&mut bytes, b"A");
    kept.send(&bytes).await;
    broken.is_hung_up_on().await;
    until("it is gone", || publisher.peers().len() == 1).await;
    assert_eq!(publisher.peers()[0].filters, 1);
}

/// The zeromq crate speaks ZMTP 3.0 and subscribes with messages.
#[tokio::test(flavor = "multi_thread")]
async fn the_zeromq_crate_subscribes() {
    let (broker, publisher) = publisher();
    let mut socket = zeromq::SubSocket::new();
    socket.connect(&publisher.local_endpoint().to_string()).await.unwrap();
    socket.subscribe("EVENT VM ").await.unwrap();
    until("it is subscribed", || publisher.peers().first().is_some_and(|peer| peer.filters == 1)).await;
    assert_eq!(publisher.peers()[0].minor, 0);
    for i in 0..100 {
        publish(&broker, "EVENT HOST ", "").await;
        publish(&broker, &format!("EVENT VM {i}"), vec![7; i * 100]).await;
    }
    for i in 0..100 {
        let message = soon("it arrives", socket.recv()).await.unwrap();
        assert_eq!(message.get(0).unwrap(), format!("EVENT VM {i}").as_bytes());
        assert_eq!(from_base64(message.get(1).unwrap()), vec![7; i * 100]);
    }
    socket.unsubscribe("EVENT VM ").await.unwrap();
    until("it has cancelled", || publisher.peers()[0].filters == 0).await;
}

/// Also where the publisher is shut down before its own task has run for the first time.
#[tokio::test]
async fn shut_down_at_once() {
    let (_broker, publisher) = publisher();
    soon("it is shut down", publisher.shutdown(Duration::from_secs(60))).await;
}
