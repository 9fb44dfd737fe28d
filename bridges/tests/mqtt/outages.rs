//! The server ends, hangs, and comes back.

use std::collections::HashSet;
use std::time::Duration;

use hookbus_bridges::cloudevents::Format;
use hookbus_bridges::delivery::{Receipts, Sender, Ticket};
use hookbus_bridges::mqtt::{MqttOptions, Version};
use rumqttc::v5::MqttOptions as ConsumerOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::servers::mosquitto::Mosquitto;
use crate::support::{Consumer, Letters, connect, options, reconnect, soon, try_connect};

/// A consumer with a session that outlives the server, so that what the server confirmed has to reach it.
fn lasting(port: u16) -> ConsumerOptions {
    let mut options = ConsumerOptions::new("lasting", "127.0.0.1", port);
    options.set_clean_start(false).set_session_expiry_interval(Some(3600));
    options
}

/// All arrive although the server ends in the middle of it, up to three times.
#[tokio::test]
async fn nothing_that_was_confirmed_is_lost_over_restarts() {
    let config = "allow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 200";
    for version in [Version::V5, Version::V311] {
        let mut server = Mosquitto::start_with(config);
        drop(Consumer::with(lasting(server.port()), "hookbus/#").await);
        let mut letters = Letters::new(Format::CloudEvents);
        let mut open = letters.numbered(6000).await;
        let options = options(server.port(), version);
        let mut rounds = 0;
        while !open.is_empty() {
            rounds += 1;
            let mut ends = reconnect(&options).await;
            let mut end = (rounds <= 3).then_some(());
            let sent = ends.send_all(&open, |confirmed| {
                if confirmed >= 300 && end.take().is_some() {
                    server.process.terminate();
                }
            });
            match sent.await {
                Ok(()) => {
                    soon("the end", ends.sender.close()).await;
                    open.clear();
                }
                Err(left) => {
                    let mut at = 0..;
                    open.retain(|_| left.contains(&at.next().unwrap()));
                    server.restart();
                }
            }
        }
        // A fast server may have confirmed everything before the last end reaches it.
        assert!(rounds >= 2, "no end was met");
        let mut consumer = Consumer::with(lasting(server.port()), "hookbus/#").await;
        let mut arrived = HashSet::new();
        let mut first_arrivals = Vec::new();
        while arrived.len() < 6000 {
            let (_, json) = consumer.json().await;
            let number: u32 = json["data"].as_str().unwrap().parse().unwrap();
            if arrived.insert(number) {
                first_arrivals.push(number);
            }
        }
        assert!(first_arrivals.is_sorted(), "{version:?}");
    }
}

/// A server that hangs confirms nothing; when it goes on before it is given up, nothing has happened.
#[tokio::test]
async fn a_server_that_was_stopped_and_goes_on_confirms_all() {
    let server = Mosquitto::start();
    let mut letters = Letters::new(Format::CloudEvents);
    let batch = letters.numbered(20).await;
    let mut ends = connect(options(server.port(), Version::V311)).await;
    server.process.stop();
    for letter in &batch {
        ends.send(letter).await;
    }
    let mut receipts = Vec::new();
    let waiting = tokio::time::timeout(Duration::from_millis(300), ends.receipts.next(&mut receipts)).await;
    assert!(waiting.is_err() && receipts.is_empty(), "a stopped server has confirmed: {receipts:?}");
    server.process.resume();
    let mut confirmed = 0;
    while confirmed < batch.len() {
        confirmed += ends.told().await.unwrap().len();
    }
}

/// A server that hangs is given up after the keep alive, whether we wait for it or write to it.
#[tokio::test]
async fn a_server_that_hangs_is_noticed() {
    let server = Mosquitto::start();
    let mut letters = Letters::new(Format::Raw);
    let big = letters.of(hookbus_broker::Message::new("big", vec![b'x'; 1 << 20])).await;
    let options = options(server.port(), Version::V311).keep_alive(Duration::from_secs(1));
    let (mut idle, mut busy) = (connect(options.clone()).await, connect(other(&options)).await);
    server.process.stop();
    let fault = idle.told().await.unwrap_err();
    assert!(fault.reason.contains("silent") && !fault.needs_help, "{fault}");
    let writing = async {
        // The socket's buffers take some of it; then sending waits, until the connection is given up.
        for ticket in 1.. {
            if let Err(error) = busy.sender.send(Ticket(ticket), &big).await {
                return error.to_string();
            }
        }
        unreachable!("there are more tickets than room");
    };
    let error = soon("the end of writing", writing).await;
    assert!(error.contains("silent"), "{error}");
    // The kernel answers for a stopped server, so that it is MQTT that must be waited for.
    let fault = try_connect(options.connect_timeout(Duration::from_millis(300))).await.map(drop).unwrap_err();
    assert!(fault.reason.contains("no connection within 300ms") && !fault.needs_help, "{fault}");
    server.process.resume();
}

fn other(options: &MqttOptions) -> MqttOptions {
    let mut options = options.clone();
    options.client_id = "hookbus-other".into();
    options
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named() {
    let mut server = Mosquitto::start();
    let port = server.port();
    server.process.kill();
    let fault = try_connect(options(port, Version::V5)).await.map(drop).unwrap_err();
    assert!(fault.reason.starts_with(&format!("mqtt://127.0.0.1:{port}: can't connect")), "{fault}");
    assert!(!fault.needs_help);
}

/// One that says something else, breaks off, or acknowledges what it never got.
#[tokio::test]
async fn a_server_that_talks_nonsense_ends_a_connection_and_no_more() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    for (answers, expected) in [
        (&[&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..]][..], "is it an MQTT server?"),
        (&[&b""[..]][..], "instead of answering CONNECT"),
        (&[&b"\x20\x02\x00\x01"[..]][..], "set version = \"3.1.1\""),
        (&[&b"\x20\x06\0\0\x03\x21\0\0"[..]][..], "receive maximum is 0"),
        (&[&b"\x20\x05\0\0\x02\x24\0"[..]][..], "QoS 0 only"),
        (&[&b"\xD0\0"[..]][..], "answered CONNECT with 0xd0"),
        (&[&b"\x20\xFF\xFF\xFF\xFF"[..]][..], "no MQTT"),
        (&[&b"\x20\x03\0\0\0"[..], b"\x40\x02\0\x05"], "acknowledged packet 5"),
        (&[&b"\x20\x03\0\0\0"[..], b"\xE0\x01\x8B"], "shutting down"),
        (&[&b"\x20\x03\0\0\0"[..], b"\xE0\x02\x8E\0"], "session taken over"),
        (&[&b"\x20\x03\0\0\0"[..], b"\x30\x03\0\x01x"], "no server sends to a publisher"),
        (&[&b"\x20\x03\0\0\0"[..], b"\x40\xFF\xFF\x7F"], "no MQTT"),
    ] {
        let serve = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            for answer in answers {
                let mut some = [0; 1024];
                assert!(socket.read(&mut some).await.unwrap() > 0);
                socket.write_all(answer).await.unwrap();
            }
            if *answers == [b""] {
                return;
            }
            // The bridge hangs up.
            let mut rest = Vec::new();
            let _ = socket.read_to_end(&mut rest).await;
        };
        let bridge = async {
            let options = options(port, Version::V5).status_topic("s");
            match try_connect(options).await {
                Err(fault) => fault,
                Ok(mut ends) => ends.told().await.unwrap_err(),
            }
        };
        let (fault, ()) = soon(expected, async { tokio::join!(bridge, serve) }).await;
        assert!(fault.reason.contains(expected), "{fault}");
    }
}

/// Whoever drops the sender has given up, and the receipts hear of it.
#[tokio::test]
async fn dropping_the_sender_ends_the_connection() {
    let server = Mosquitto::start();
    let mut ends = connect(options(server.port(), Version::V5)).await;
    drop(ends.sender);
    let mut receipts = Vec::new();
    let fault = soon("the end", ends.receipts.next(&mut receipts)).await.unwrap_err();
    assert!(fault.reason.contains("given up"), "{fault}");
}
