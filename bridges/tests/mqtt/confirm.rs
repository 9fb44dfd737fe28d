//! Letters are confirmed, and nothing is told that isn't so.

use hookbus_bridges::cloudevents::Format;
use hookbus_bridges::delivery::{Receipt, Sender};
use hookbus_bridges::mqtt::Version;
use hookbus_broker::Message;

use crate::servers::mosquitto::Mosquitto;
use crate::support::{Consumer, Letters, connect, options, soon, topic};

#[tokio::test]
async fn a_letter_is_confirmed_and_arrives() {
    let server = Mosquitto::start();
    let mut letters = Letters::new(Format::CloudEvents);
    for version in [Version::V5, Version::V311] {
        let mut consumer = Consumer::of(server.port(), "hookbus/#").await;
        let mut ends = connect(options(server.port(), version)).await;
        let letter = letters.of(Message::new("backup done", "42 machines")).await;
        let ticket = ends.send(&letter).await;
        assert_eq!(ends.receipt().await, Receipt::Confirmed(ticket));
        let publish = consumer.message().await;
        assert_eq!(topic(&publish), "hookbus/custom/backup/done");
        assert_eq!(publish.payload, letter.body);
        assert!(!publish.retain);
        let content_type = publish.properties.and_then(|properties| properties.content_type);
        assert_eq!(content_type.as_deref(), (version == Version::V5).then_some("application/cloudevents+json"));
        soon("the end", ends.sender.close()).await;
    }
}
