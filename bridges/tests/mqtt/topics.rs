//! What is kept on the server: our status, and the current state of objects.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

use hookbus_bridges::cloudevents::Format;
use hookbus_bridges::delivery::{Letter, Receipt, Rejection, Sender};
use hookbus_bridges::mqtt::{Version, status_topic};
use hookbus_bridges::opennebula::{Input, Item, LineReader, Parser};
use hookbus_broker::Message;

use crate::servers::mosquitto::Mosquitto;
use crate::support::{Consumer, Letters, connect, options, soon, topic};

const VERSIONS: [Version; 2] = [Version::V5, Version::V311];

#[tokio::test]
async fn the_status_is_kept_and_the_will_tells_of_a_loss() {
    let server = Mosquitto::start();
    let at = status_topic("hookbus", "hookbus-test");
    for version in VERSIONS {
        let options = options(server.port(), version).status_topic(&at);
        let mut watching = Consumer::of(server.port(), &at).await;
        let status = |json: serde_json::Value| (json["status"].clone(), json["reason"].clone());
        let next = async |watching: &mut Consumer| status(watching.json().await.1);

        let ends = connect(options.clone()).await;
        // The first may be what the other version left behind.
        while next(&mut watching).await.0 != "online" {}
        // Who comes later sees it, too.
        let mut late = Consumer::of(server.port(), &at).await;
        let publish = late.message().await;
        assert!(publish.retain);
        let json: serde_json::Value = serde_json::from_slice(&publish.payload).unwrap();
        assert_eq!((&json["status"], &json["client"]), (&"online".into(), &"hookbus-test".into()));

        soon("the end", ends.sender.close()).await;
        assert_eq!(next(&mut watching).await, ("offline".into(), "closed".into()));
        let ends = connect(options).await;
        assert_eq!(next(&mut watching).await.0, "online");
        drop(ends);
        assert_eq!(next(&mut watching).await, ("offline".into(), "connection lost".into()));
    }
}

/// The recorded events, as letters, in oned's order.
async fn recorded(letters: &mut Letters) -> Vec<Letter> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/opennebula/oned-to-driver.txt.zst");
    let mut text = Vec::new();
    let file = std::fs::File::open(path).unwrap();
    ruzstd::decoding::StreamingDecoder::new(file).unwrap().read_to_end(&mut text).unwrap();
    let (mut reader, mut parser, mut all, mut rest) = (LineReader::new(), Parser::new(), Vec::new(), &text[..]);
    while !rest.is_empty() {
        let room = reader.room();
        let bytes = room.len().min(rest.len());
        room[..bytes].copy_from_slice(&rest[..bytes]);
        reader.filled(bytes);
        rest = &rest[bytes..];
        while let Some(item) = reader.next() {
            let Item::Line(line) = item else { panic!("{item:?}") };
            if let Input::Message { message, .. } = parser.line(line).unwrap()
                && message.keys().next() != Some(b"RETRY")
            {
                all.push(letters.of(message).await);
            }
        }
    }
    all
}

/// What is kept at the end of the recording, told from its keys by hand: the last state of each object that was not deleted.
fn expected(letters: &[Letter]) -> BTreeMap<String, Letter> {
    let mut kept = BTreeMap::new();
    for letter in letters {
        for key in letter.event.keys().map(|key| String::from_utf8(key.to_vec()).unwrap()) {
            if let Some(rest) = key.strip_prefix("EVENT STATE ") {
                let words: Vec<_> = rest.trim_end().split('/').collect();
                let topic = format!("hookbus-state/opennebula/{}/{}", words[0].to_lowercase(), words[3]);
                match (words[0], words[1]) {
                    ("VM" | "NET", "DONE") | ("IMAGE", "DELETE") => kept.remove(&topic),
                    _ => kept.insert(topic, letter.clone()),
                };
            }
            // The numbers of what was deleted stand in the recording's parameters.
            for topic in match key.as_str() {
                "EVENT API one.host.delete 1" => vec!["host/3"],
                "EVENT API one.image.delete 1" => vec!["image/3", "image/4"],
                _ => vec![],
            } {
                let text = hookbus_bridges::cloudevents::raw(&letter.event);
                let id = topic.split('/').nth(1).unwrap();
                if String::from_utf8_lossy(&text).contains(&format!("<TYPE>IN</TYPE><VALUE>{id}</VALUE>")) {
                    kept.remove(&format!("hookbus-state/opennebula/{topic}"));
                }
            }
        }
    }
    kept
}

#[tokio::test]
async fn the_state_of_each_object_is_kept_and_cleared() {
    for version in VERSIONS {
        let server = Mosquitto::start_with("allow_anonymous true\nmax_queued_messages 0");
        let mut letters = Letters::new(Format::CloudEvents);
        let all = recorded(&mut letters).await;
        assert_eq!(all.len(), 835, "API and state events");
        let mut ends = connect(options(server.port(), version).retain_state(true)).await;
        soon("all", ends.send_all(&all, |_| {})).await.unwrap();

        let kept = expected(&all);
        // What the README of the recording says about it: these are gone, these are left.
        for gone in ["host/3", "image/3", "image/4", "net/1", "net/2"] {
            assert!(!kept.contains_key(&format!("hookbus-state/opennebula/{gone}")), "{gone}");
        }
        for left in ["host/0", "host/1", "host/2", "image/0", "image/1", "image/2", "net/0", "net/3"] {
            assert!(kept.contains_key(&format!("hookbus-state/opennebula/{left}")), "{left}");
        }
        // The mark comes after all that is kept, since it is retained last.
        let mut consumer = Consumer::of(server.port(), "hookbus-state/#").await;
        let mut found = BTreeMap::new();
        while found.len() < kept.len() {
            let publish = consumer.message().await;
            assert!(publish.retain);
            found.insert(topic(&publish), publish);
        }
        assert_eq!(found.keys().collect::<Vec<_>>(), kept.keys().collect::<Vec<_>>());
        for (topic, letter) in &kept {
            assert_eq!(found[topic].payload, letter.body, "{topic}");
        }
        // There is nothing besides: the next message is a new one.
        let mark = letters.of(Message::new("EVENT STATE VM/ACTIVE/RUNNING/999 ", "x")).await;
        ends.send(&mark).await;
        ends.told().await.unwrap();
        assert_eq!(topic(&consumer.message().await), "hookbus-state/opennebula/vm/999");
    }
}

/// A retry from the dead letters is an event of the past; and what only looks like a state is none.
#[tokio::test]
async fn only_what_is_current_is_kept() {
    let server = Mosquitto::start();
    let mut consumer = Consumer::of(server.port(), "#").await;
    let mut letters = Letters::new(Format::CloudEvents);
    let mut ends = connect(options(server.port(), Version::V5).retain_state(true)).await;
    let state = || Message::new("EVENT STATE VM/ACTIVE/RUNNING/7 ", "x");
    let imitation = Message::new("x.opennebula.state.vm.ACTIVE.RUNNING.8", "x");
    for (letter, topics) in [
        (letters.replay_of(state(), Some(1)).await, &["hookbus/opennebula/state/vm/ACTIVE/RUNNING/7"][..]),
        (letters.of(imitation).await, &["hookbus/custom/x/opennebula/state/vm/ACTIVE/RUNNING/8"]),
        (letters.of(state()).await, &["hookbus/opennebula/state/vm/ACTIVE/RUNNING/7", "hookbus-state/opennebula/vm/7"]),
    ] {
        let ticket = ends.send(&letter).await;
        assert_eq!(ends.receipt().await, Receipt::Confirmed(ticket));
        for expected in topics {
            assert_eq!(topic(&consumer.message().await), *expected);
        }
    }
}

/// A letter is refused when one of its two messages is, and it is said which.
#[tokio::test]
async fn a_state_topic_that_may_not_be_written_is_told() {
    let dir = tempfile::TempDir::new().unwrap();
    std::fs::write(dir.path().join("acl"), "topic readwrite hookbus/#\n").unwrap();
    let server = Mosquitto::start_in(dir, "allow_anonymous true\nacl_file $DIR/acl");
    let mut letters = Letters::new(Format::CloudEvents);
    let mut ends = connect(options(server.port(), Version::V5).retain_state(true)).await;
    let ticket = ends.send(&letters.of(Message::new("EVENT STATE VM/ACTIVE/RUNNING/7 ", "x")).await).await;
    match ends.receipt().await {
        Receipt::Rejected(refused, Rejection::Permanent(reason)) if refused == ticket => {
            assert!(reason.contains("retain_state") && reason.contains("0x87"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
}
