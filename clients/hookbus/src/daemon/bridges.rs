//! The bridges of the daemon, as its configuration names them.
//!
//! A bridge whose policy is to spill, on a bus that acknowledges, reads from the journal and has a cursor there, so it goes on where it
//! was after a restart. Each other one has a queue in memory with the policy that is configured.
//!
//! They run in a runtime of their own, together with everything else that may wait for a disk: who reads from memory never waits for
//! it.

use std::path::Path;
use std::sync::Arc;

use hookbus_bridges::amqp::AmqpBus;
use hookbus_bridges::cloudevents::{Encoder, Format};
use hookbus_bridges::delivery::{
    Bridge, BridgeHandle, BridgeOptions, BridgeStatus, Bus, DeadLetterLimits, DeadLetters, LetterWriter, Which,
};
use hookbus_bridges::mqtt::MqttBus;
use hookbus_bridges::nats::NatsBus;
use hookbus_bridges::webhook::WebhookBus;
use hookbus_broker::{Broker, Start, SubscribeOptions};
use serde_json::Value;
use tokio::time::Instant;

use super::{BRIDGE_CURSOR, buses};
use crate::config::{BridgeConfig, BridgeKind, Config, EventFormat, LimitsConfig, Overflow};

/// All bridges, and what their buses refused.
pub(super) struct Bridges {
    list: Vec<BridgeHandle>,
    dead_letters: Arc<DeadLetters>,
}

impl Bridges {
    /// Starts those that the configuration names. Each connects in the background. One that can't be started is told, the others
    /// are.
    pub(super) fn start(
        broker: &Broker,
        config: &Config,
        dead_letters: Arc<DeadLetters>,
        host: &str,
        encoder: &Encoder,
    ) -> Self {
        let start = |bridge: &BridgeConfig| {
            let context = Context { broker, bridge, encoder, dead_letters: &dead_letters };
            match &bridge.kind {
                BridgeKind::Nats(nats) => context.start(NatsBus::new(buses::nats(bridge, nats, host))),
                BridgeKind::Mqtt(mqtt) => context.start(MqttBus::new(buses::mqtt(bridge, mqtt, host))),
                BridgeKind::Amqp(amqp) => context.start(AmqpBus::new(buses::amqp(bridge, amqp, host))),
                BridgeKind::Webhook(webhook) => {
                    context.start(WebhookBus::new(buses::webhook(bridge, webhook, encoder)))
                }
            }
        };
        let list = config.bridges.iter().filter_map(start).collect();
        Bridges { list, dead_letters }
    }

    /// How each of them stands.
    pub(super) fn status(&self) -> Vec<BridgeStatus> {
        self.list.iter().map(BridgeHandle::status).collect()
    }

    /// The same with how many dead letters each has, for people to see.
    pub(super) fn shown(&self) -> Vec<Value> {
        let shown = |status: BridgeStatus| {
            let kept = self.dead_letters.count(Some(&status.name));
            let mut shown = serde_json::to_value(status).unwrap_or_default();
            shown["dead_letters"] = kept.into();
            shown
        };
        self.status().into_iter().map(shown).collect()
    }

    /// Whether there is one of that name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.list.iter().any(|bridge| &*bridge.status().name == name)
    }

    /// Has dead letters sent again, each by the bridge that it is of. Returns how many; those of bridges that are no longer there
    /// stay.
    pub(super) fn retry(&self, which: &Which) -> usize {
        self.list.iter().map(|bridge| bridge.retry(which)).sum()
    }

    /// Ends all of them at once: what they have is delivered until the deadline; each logs what is left.
    pub(super) async fn shut_down(self, deadline: Instant) {
        let patience = deadline.saturating_duration_since(Instant::now());
        let each = self.list.into_iter().map(|bridge| bridge.shutdown(patience));
        futures_util::future::join_all(each).await;
    }
}

/// Where dead letters are kept: those of bridges, and those of hooks. It blocks.
pub(super) fn dead_letters(limits: &LimitsConfig, state_dir: Option<&Path>) -> DeadLetters {
    let bounds = DeadLetterLimits { letters: limits.dead_letters, bytes: limits.dead_letter_bytes.bytes() as u64 };
    match state_dir {
        Some(state_dir) => DeadLetters::in_directory(state_dir, bounds),
        None => {
            tracing::warn!("without a state directory, dead letters are kept in memory only");
            DeadLetters::in_memory(bounds)
        }
    }
}

/// What a bridge is made of, whatever its bus.
struct Context<'a> {
    broker: &'a Broker,
    bridge: &'a BridgeConfig,
    encoder: &'a Encoder,
    dead_letters: &'a Arc<DeadLetters>,
}

impl Context<'_> {
    fn start<B: Bus>(&self, bus: B) -> Option<BridgeHandle> {
        let BridgeConfig { name, kind, delivery, .. } = self.bridge;
        let format = match delivery.format {
            EventFormat::Cloudevents => Format::CloudEvents,
            EventFormat::CloudeventsBinary => Format::CloudEventsBinary,
            EventFormat::Raw => Format::Raw,
            EventFormat::Base64 => Format::Base64,
        };
        let writer = LetterWriter::new::<B>(self.encoder.clone(), format, &delivery.root);
        let options = BridgeOptions::new(kind.name(), buses::address(self.bridge))
            .window(delivery.in_flight, WINDOW_BYTES)
            .ack_timeout(delivery.ack_timeout.duration());
        let dead_letters = Arc::clone(self.dead_letters);
        let mut subscribe = SubscribeOptions::new(format!("bridge {name}"))
            .hwm(delivery.hwm)
            .hwm_bytes(delivery.hwm_bytes.bytes())
            .overflow(delivery.overflow.policy());
        for prefix in &delivery.prefixes {
            subscribe = subscribe.prefix(prefix);
        }
        let durable = delivery.overflow == Overflow::Spill && kind.acknowledges() && self.broker.journal().is_some();
        if !durable {
            let feed = self.broker.subscribe(subscribe);
            return Some(Bridge::spawn(name.as_str(), bus, feed, writer, options, dead_letters));
        }
        let cursor = format!("{BRIDGE_CURSOR}{name}");
        match self.broker.subscribe_durable(subscribe, &cursor, Start::Latest) {
            Ok(feed) => Some(Bridge::spawn(name.as_str(), bus, feed, writer, options, dead_letters)),
            Err(e) => {
                tracing::error!("bridge `{name}`: it can't be started: {e}");
                None
            }
        }
    }
}

/// What may be on its way to one bus, in bytes.
const WINDOW_BYTES: usize = 32 << 20;
