//! What a server refuses, and what is never sent to it.

use hookbus_bridges::cloudevents::Format;
use hookbus_bridges::delivery::{Fault, Letter, Receipt, Receipts, Rejection, SendError, Sender, Ticket};
use hookbus_bridges::mqtt::{MqttOptions, MqttReceipts, Qos, Version};
use hookbus_broker::Message;

use crate::servers::mosquitto::Mosquitto;
use crate::support::{Consumer, Ends, Letters, connect, options, soon, topic};

async fn letter(format: Format, key: &str, bytes: usize) -> Letter {
    Letters::new(format).of(Message::new(key, vec![b'x'; bytes])).await
}

async fn refused(ends: &mut Ends, letter: &Letter) -> String {
    let ticket = ends.send(letter).await;
    match ends.receipt().await {
        Receipt::Rejected(refused, Rejection::Permanent(reason)) if refused == ticket => reason,
        other => panic!("{other:?}"),
    }
}

/// mosquitto's code for it is not in the standard. The connection lives on.
#[tokio::test]
async fn a_payload_over_the_servers_limit_is_refused_for_good() {
    let server = Mosquitto::start_with("allow_anonymous true\nmessage_size_limit 1000");
    let mut ends = connect(options(server.port(), Version::V5)).await;
    let reason = refused(&mut ends, &letter(Format::Raw, "big", 1001).await).await;
    assert!(reason.contains("too large (0x95)"), "{reason}");
    let ticket = ends.send(&letter(Format::Raw, "small", 1000).await).await;
    assert_eq!(ends.receipt().await, Receipt::Confirmed(ticket));
}

/// A packet over the server's maximum would end the connection, so it is not sent; the limit is known from the beginning.
#[tokio::test]
async fn a_packet_over_the_servers_maximum_is_not_sent() {
    let server = Mosquitto::start_with("allow_anonymous true\nmax_packet_size 5000");
    let mut ends = connect(options(server.port(), Version::V5)).await;
    assert_eq!(ends.sender.limits().letter_bytes, 5000);
    not_sent(&mut ends, 5000).await;
    // In 3.1.1 the server doesn't say it, and it is set by hand.
    let mut ends = connect(options(server.port(), Version::V311).packet_limit_bytes(5000)).await;
    assert_eq!(ends.sender.limits().letter_bytes, 5000);
    not_sent(&mut ends, 5000).await;
}

async fn not_sent(ends: &mut Ends, limit: usize) {
    let big = letter(Format::Raw, "big", limit).await;
    let error = ends.sender.send(Ticket(1000), &big).await.unwrap_err();
    let SendError::Letter(Rejection::Permanent(reason)) = &error else { panic!("{error:?}") };
    assert!(reason.contains("hookbus/custom/big") && reason.contains("5000"), "{reason}");
    // As large as it may be: the server takes it.
    let mut most = limit;
    loop {
        most -= 1;
        let letter = letter(Format::Raw, "big", most).await;
        match ends.sender.send(Ticket(2000), &letter).await {
            Ok(()) => break,
            Err(SendError::Letter(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
    ends.sender.flush().await.unwrap();
    assert_eq!(ends.receipt().await, Receipt::Confirmed(Ticket(2000)), "of {most} bytes");
}

/// Access rules refuse in version 5 with a reason. In 3.1.1 the server drops the message and says nothing, as our documentation says.
#[tokio::test]
async fn what_access_rules_forbid_is_refused() {
    let dir = tempfile::TempDir::new().unwrap();
    std::fs::write(dir.path().join("acl"), "topic readwrite hookbus/custom/allowed/#\ntopic read #\n").unwrap();
    let server = Mosquitto::start_in(dir, "allow_anonymous true\nacl_file $DIR/acl");
    let mut consumer = Consumer::of(server.port(), "hookbus/#").await;
    let mut ends = connect(options(server.port(), Version::V5)).await;
    let reason = refused(&mut ends, &letter(Format::Raw, "forbidden", 1).await).await;
    assert!(reason.contains("not authorized") && reason.contains("0x87"), "{reason}");

    let mut old = connect(options(server.port(), Version::V311)).await;
    let ticket = old.send(&letter(Format::Raw, "forbidden", 1).await).await;
    assert_eq!(old.receipt().await, Receipt::Confirmed(ticket), "if this fails, the documentation can be kinder");
    let ticket = old.send(&letter(Format::Raw, "allowed one", 1).await).await;
    assert_eq!(old.receipt().await, Receipt::Confirmed(ticket));
    assert_eq!(topic(&consumer.message().await), "hookbus/custom/allowed/one", "and none before it");
}

/// A topic that would make a server hang up, again and again, is refused before it is sent.
#[tokio::test]
async fn a_topic_with_too_many_levels_is_refused() {
    let server = Mosquitto::start();
    let mut ends = connect(options(server.port(), Version::V5)).await;
    let deep = letter(Format::Raw, &"a/".repeat(300), 1).await;
    let error = ends.sender.send(Ticket(1), &deep).await.unwrap_err();
    assert!(matches!(&error, SendError::Letter(Rejection::Permanent(why)) if why.contains("levels")), "{error:?}");
    let ticket = ends.send(&letter(Format::Raw, &"a/".repeat(100), 1).await).await;
    assert_eq!(ends.receipt().await, Receipt::Confirmed(ticket));
}

/// More letters than the server takes at a time wait, and all are confirmed; a window of one is enough for two messages a letter.
#[tokio::test]
async fn the_servers_window_is_kept() {
    for (window, retain, expected) in [(20, false, 20), (20, true, 10), (1, true, 1)] {
        let server = Mosquitto::start_with(&format!("allow_anonymous true\nmax_inflight_messages {window}"));
        let mut ends = connect(options(server.port(), Version::V5).retain_state(retain)).await;
        assert_eq!(ends.sender.limits().in_flight, expected);
        let mut letters = Letters::new(Format::Raw);
        let mut all = Vec::new();
        for number in 0..100 {
            let key = format!("EVENT STATE VM/ACTIVE/RUNNING/{number} ");
            all.push(letters.of(Message::new(key, "x")).await);
        }
        soon("all", ends.send_all(&all, |_| {})).await.unwrap();
    }
}

#[tokio::test]
async fn binary_mode_has_attributes_as_user_properties() {
    let server = Mosquitto::start();
    let mut consumer = Consumer::of(server.port(), "hookbus/#").await;
    let binary = letter(Format::CloudEventsBinary, "backup", 3).await;
    let mut ends = connect(options(server.port(), Version::V5)).await;
    let ticket = ends.send(&binary).await;
    assert_eq!(ends.receipt().await, Receipt::Confirmed(ticket));
    let publish = consumer.message().await;
    let properties = publish.properties.unwrap();
    let get = |name: &str| {
        let mut found =
            properties.user_properties.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str());
        (found.next(), found.next())
    };
    assert_eq!(get("specversion"), (Some("1.0"), None));
    assert_eq!(get("id"), (Some(&*binary.id), None));
    assert_eq!(get("hookbuskey"), (Some("backup"), None));
    assert_eq!(get("datacontenttype"), (None, None));
    assert_eq!(properties.content_type.as_deref(), Some(&*binary.content_type));
    assert_eq!(properties.message_expiry_interval, None);
    assert_eq!(publish.payload, "xxx");

    // 3.1.1 can't: it is told, and nothing is sent.
    let mut old = connect(options(server.port(), Version::V311)).await;
    let error = old.sender.send(Ticket(1), &binary).await.unwrap_err();
    assert!(matches!(&error, SendError::Connection(fault) if fault.needs_help), "{error:?}");
}

/// Bodies that don't say who they are have it beside them.
#[tokio::test]
async fn raw_bodies_can_be_told_apart() {
    let server = Mosquitto::start();
    for format in [Format::Raw, Format::Base64] {
        let mut consumer = Consumer::of(server.port(), "hookbus/#").await;
        let raw = letter(format, "backup", 3).await;
        let mut ends = connect(options(server.port(), Version::V5)).await;
        let ticket = ends.send(&raw).await;
        assert_eq!(ends.receipt().await, Receipt::Confirmed(ticket));
        let properties = consumer.message().await.properties.unwrap();
        let names: Vec<_> = properties.user_properties.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["id", "source", "type", "time"]);
        assert_eq!(properties.user_properties[0].1, *raw.id);
        assert_eq!(properties.user_properties[1].1, "/hookbus/front");
        assert_eq!(properties.user_properties[2].1, "org.hookbus.custom");
    }
}

/// QoS 0 has no window and no receipts; what is handed over is written.
#[tokio::test]
async fn at_qos_0_letters_arrive_without_receipts() {
    let server = Mosquitto::start_with("allow_anonymous true\nmax_queued_messages 0");
    for version in [Version::V5, Version::V311] {
        let mut consumer = Consumer::of(server.port(), "hookbus/#").await;
        let options: MqttOptions = options(server.port(), version).qos(Qos::AtMostOnce);
        let mut ends = connect(options).await;
        assert_eq!(ends.sender.limits().in_flight, usize::MAX);
        let mut letters = Letters::new(Format::CloudEvents);
        for (ticket, letter) in letters.numbered(500).await.iter().enumerate() {
            ends.sender.send(Ticket(ticket as u64), letter).await.unwrap();
        }
        ends.sender.flush().await.unwrap();
        for number in 0..500 {
            let (_, json) = consumer.json().await;
            assert_eq!(json["data"], number.to_string());
        }
        soon("the end", ends.sender.close()).await;
        let fault = receipts_end(&mut ends.receipts).await;
        assert!(fault.reason.contains("closed"), "{fault}");
    }
}

/// What the receipts say when the end is all that there is to tell.
async fn receipts_end(receipts: &mut MqttReceipts) -> Fault {
    let mut told = Vec::new();
    let end = soon("the end", receipts.next(&mut told)).await;
    assert!(told.is_empty(), "{told:?}");
    end.unwrap_err()
}
