//! What is told about ourselves on the status topic: JSON, retained.
//!
//! ```json
//! {"status":"online","client":"hookbus-home-frontend1","since":"2026-11-22T08:00:00.000Z"}
//! {"status":"offline","client":"hookbus-home-frontend1","reason":"closed","since":"2026-11-22T09:00:00.000Z"}
//! {"status":"offline","client":"hookbus-home-frontend1","reason":"connection lost"}
//! ```
//!
//! The last one is our will: the server keeps it from the beginning, so that it can't know when.

use super::config::MqttOptions;
use super::encode::{Properties, Publish};

/// We are here.
pub(super) fn online(client_id: &str) -> String {
    serde_json::json!({"status": "online", "client": client_id, "since": now()}).to_string()
}

/// We have left in order.
pub(super) fn closed(client_id: &str) -> String {
    serde_json::json!({"status": "offline", "client": client_id, "reason": "closed", "since": now()}).to_string()
}

/// We are gone, says the server.
pub(super) fn lost(client_id: &str) -> String {
    serde_json::json!({"status": "offline", "client": client_id, "reason": "connection lost"}).to_string()
}

/// The message of a status, if there is a topic for it.
pub(super) fn publish(options: &MqttOptions, status: String) -> Option<Publish> {
    let topic = options.status_topic.as_deref()?;
    let properties = Properties { content_type: "application/json", user: &[] };
    // The topic was checked before CONNECT, and no server takes less than this.
    Publish::new(options, topic, true, properties, status.into(), usize::MAX).ok()
}

fn now() -> String {
    format!("{:.3}", jiff::Timestamp::now())
}
