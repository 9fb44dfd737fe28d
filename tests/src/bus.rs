//! The buses that hookbus has bridges to, each as a real server and what tests do with it.

use std::fmt;

use async_nats::jetstream;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use rumqttc::Event::Incoming;
use rumqttc::{AsyncClient, MqttOptions, Packet, QoS};
use serde_json::Value;

use crate::collector::{Collector, Source};
use crate::servers::mosquitto::Mosquitto;
use crate::servers::nats::NatsServer;
use crate::servers::rabbitmq::RabbitMq;
use crate::{Deadline, Home, wait_until};

/// Which bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// NATS with JetStream.
    Nats,
    /// MQTT: mosquitto.
    Mqtt,
    /// AMQP 0.9.1: RabbitMQ.
    Amqp,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 3] = [Kind::Nats, Kind::Mqtt, Kind::Amqp];
}

/// As in the configuration of a bridge, where tests also use it as the bridge's name.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Nats => "nats",
            Kind::Mqtt => "mqtt",
            Kind::Amqp => "amqp",
        })
    }
}

/// A server; it is ended when this is dropped.
#[derive(Debug)]
pub enum Server {
    /// nats-server
    Nats(NatsServer),
    /// mosquitto
    Mqtt(Mosquitto),
    /// rabbitmq-server
    Amqp(RabbitMq),
}

impl Server {
    /// Starts one that keeps everything that it has taken, however much, and lets everybody in.
    #[must_use]
    pub fn start(kind: Kind) -> Self {
        match kind {
            Kind::Nats => Server::Nats(NatsServer::start()),
            // It keeps 1000 messages for a session unless told otherwise, and drops the rest in silence.
            Kind::Mqtt => Server::Mqtt(Mosquitto::start_with(
                "allow_anonymous true\nmax_queued_messages 0\nmax_queued_bytes 0\nmax_inflight_messages 1000\nautosave_interval 10",
            )),
            Kind::Amqp => Server::Amqp(RabbitMq::start()),
        }
    }

    /// Which bus it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Server::Nats(_) => Kind::Nats,
            Server::Mqtt(_) => Kind::Mqtt,
            Server::Amqp(_) => Kind::Amqp,
        }
    }

    /// Where it is.
    #[must_use]
    pub fn url(&self) -> String {
        match self {
            Server::Nats(server) => server.url(),
            Server::Mqtt(server) => format!("mqtt://127.0.0.1:{}", server.port()),
            Server::Amqp(server) => server.url(),
        }
    }

    /// The section of a bridge to it that is called like the kind, with these further lines.
    #[must_use]
    pub fn bridge(&self, more: &str) -> String {
        let (kind, url) = (self.kind(), self.url());
        format!("[[bridge]]\nname = \"{kind}\"\ntype = \"{kind}\"\nurl = \"{url}\"\n{more}\n")
    }

    /// A consumer of everything, from now on, also when the server goes down.
    #[must_use]
    pub fn collect(&self) -> Collector {
        let collector = Collector::start(match self {
            Server::Nats(server) => Source::Nats(server.url()),
            Server::Mqtt(server) => Source::Mqtt(server.port()),
            Server::Amqp(server) => Source::Amqp(server.url()),
        });
        if let Server::Amqp(server) = self {
            server.flush();
        }
        collector
    }

    /// It goes down: with SIGKILL, or where it keeps its state only when it ends in order, with SIGTERM.
    pub fn go_down(&mut self) {
        match self {
            Server::Nats(server) => server.process.kill(),
            Server::Mqtt(server) => server.process.terminate(),
            Server::Amqp(server) => server.process.kill(),
        }
    }

    /// It comes up again: same place, same files.
    pub fn come_up(&mut self) {
        match self {
            Server::Nats(server) => server.restart(),
            Server::Mqtt(server) => server.restart(),
            Server::Amqp(server) => server.restart(),
        }
    }

    /// SIGSTOP: connections stay, and nothing answers.
    pub fn freeze(&self) {
        match self {
            Server::Nats(server) => server.process.stop(),
            Server::Mqtt(server) => server.process.stop(),
            Server::Amqp(server) => server.process.stop(),
        }
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        match self {
            Server::Nats(server) => server.process.resume(),
            Server::Mqtt(server) => server.process.resume(),
            Server::Amqp(server) => server.process.resume(),
        }
    }

    /// Publishes a CloudEvent past hookbus, under the name of these parts, and waits until the server has it.
    ///
    /// # Panics
    /// When it isn't taken.
    pub fn inject(&self, parts: &[&str], event: &Value) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let body = event.to_string();
        let sending = async {
            match self {
                Server::Nats(server) => {
                    let client = async_nats::connect(server.url()).await.expect("the server answers");
                    // It has to live until it is told.
                    let context = jetstream::new(client);
                    let acknowledgement = context.publish(parts.join("."), body.into()).await.expect("it is taken");
                    acknowledgement.await.expect("it is acknowledged");
                }
                Server::Mqtt(server) => {
                    let (client, mut events) =
                        AsyncClient::new(MqttOptions::new("injector", "127.0.0.1", server.port()), 16);
                    client.try_publish(parts.join("/"), QoS::AtLeastOnce, false, body).expect("there is room");
                    while !matches!(events.poll().await.expect("the server answers"), Incoming(Packet::PubAck(_))) {}
                }
                Server::Amqp(server) => {
                    let properties = lapin::ConnectionProperties::default();
                    let connection = lapin::Connection::connect(&server.url(), properties).await.expect("it answers");
                    let channel = connection.create_channel().await.expect("a channel");
                    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
                    let (key, options) = (parts.join("."), BasicPublishOptions::default());
                    let properties = lapin::BasicProperties::default().with_delivery_mode(2);
                    let confirm =
                        channel.basic_publish("hookbus".into(), key.into(), options, body.as_bytes(), properties).await;
                    confirm.expect("it is taken").await.expect("it is confirmed");
                }
            }
        };
        runtime.block_on(async { tokio::time::timeout(Deadline::usual().left(), sending).await.expect("an answer") });
    }

    /// What it has said so far.
    #[must_use]
    pub fn log(&self) -> String {
        match self {
            Server::Nats(server) => server.process.log(),
            Server::Mqtt(server) => server.process.log(),
            Server::Amqp(server) => server.process.log(),
        }
    }
}

impl Home {
    /// What the daemon says about its bridge of this name.
    ///
    /// # Panics
    /// When it can't be asked, or has no such bridge.
    #[must_use]
    pub fn bridge(&self, name: &str) -> Value {
        let status = self.status();
        let bridges = status["bridges"].as_array().into_iter().flatten();
        let found = bridges.into_iter().find(|bridge| bridge["name"] == name);
        found.unwrap_or_else(|| panic!("no bridge `{name}` in {status}")).clone()
    }

    /// Waits until a bridge is as it should be.
    pub fn until_bridge(&self, name: &str, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        wait_until(&format!("the bridge `{name}` {what}"), || {
            let bridge = self.bridge(name);
            if is_it(&bridge) { Ok(bridge) } else { Err(bridge) }
        })
    }
}
