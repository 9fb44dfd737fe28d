//! Events to MQTT servers, in MQTT 5 or 3.1.1.

mod config;
mod connection;
mod decode;
mod encode;
mod error;
mod outbound;
mod state;
mod status;
mod window;

pub use config::{MqttOptions, Qos, Version, status_topic};
pub use outbound::{MqttBus, MqttReceipts, MqttSender};
