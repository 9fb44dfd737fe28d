//! Carries events into and out of a [`hookbus_broker::Broker`]: one module and one cargo feature for each kind of source and bus.
//!
//! A bridge knows the broker and its own bus; it knows no other bridge. What bridges must agree about is stated here, in the
//! root of the crate, and is as little as possible.
//!
//! | module | feature | carries |
//! | --- | --- | --- |
//! | `amqp` | `amqp` | events to AMQP 0.9.1 brokers |
//! | `cloudevents` | `cloudevents` | what the buses agree about: events as CloudEvents 1.0, in and out |
//! | `delivery` | `delivery` | what the buses share: names, letters, the delivery ledger, dead letters |
//! | `ganeti` | `ganeti` | what Ganeti's hooks tell, as events |
//! | `http` | `http` | events published and followed over HTTP, status and metrics; server and client |
//! | `mqtt` | `mqtt` | events to MQTT brokers |
//! | `nats` | `nats` | events to NATS, with JetStream or without |
//! | `opennebula` | `opennebula` | oned's driver lines, in and out, the keys of its events, and its documents |
//! | `secret`, `tls` | `tls` | nothing: what secures the connections of buses |
//! | `webhook` | `webhook` | events as HTTP requests to somebody else's server |
//! | `zeromq` | `zeromq` | events to ZeroMQ subscribers (PUB), requests of hook executors (REP), and both client sides |

#[cfg(feature = "amqp")]
pub mod amqp;
#[cfg(feature = "cloudevents")]
pub mod cloudevents;
#[cfg(feature = "delivery")]
pub mod delivery;
#[cfg(feature = "ganeti")]
pub mod ganeti;
#[cfg(feature = "http")]
pub mod http;
#[cfg(feature = "mqtt")]
pub mod mqtt;
#[cfg(feature = "nats")]
pub mod nats;
#[cfg(feature = "opennebula")]
pub mod opennebula;
#[cfg(feature = "tls")]
pub mod secret;
#[cfg(feature = "tls")]
pub mod tls;
#[cfg(feature = "webhook")]
pub mod webhook;
#[cfg(feature = "zeromq")]
pub mod zeromq;

/// The [tag](hookbus_broker::Message::with_tag) of a message whose payload is base64 text already, as oned wrote it. Bridges
/// whose bus carries base64 pass such a payload on byte for byte; others decode it. The payload of a message with any other
/// tag is the event itself.
pub const PAYLOAD_BASE64: u8 = 1;
