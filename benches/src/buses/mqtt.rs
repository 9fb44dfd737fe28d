//! MQTT 5, QoS 1, against mosquitto.

use std::time::{Duration, Instant};

use hookbus_bridges::mqtt::{MqttBus, MqttOptions};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, PubAckReason, PublishProperties};
use rumqttc::v5::{AsyncClient, Event, Incoming, MqttOptions as RawOptions};

use super::{CONTENT_TYPE, Contest, Failure, Workload, ours};
use crate::servers::mosquitto::Mosquitto;

pub(super) struct Mqtt {
    server: Mosquitto,
}

impl Mqtt {
    pub(super) fn start() -> Self {
        Mqtt { server: Mosquitto::start() }
    }
}

impl Contest for Mqtt {
    fn case(&self) -> String {
        "MQTT 5 (mosquitto), QoS 1".into()
    }

    fn library(&self) -> &'static str {
        "rumqttc, window of PUBACKs"
    }

    async fn ours(&mut self, workload: &Workload) -> Result<Duration, Failure> {
        ours::run(MqttBus::new(MqttOptions::new("127.0.0.1", self.server.port(), "hookbus-bench")), workload).await
    }

    async fn raw(&mut self, workload: &Workload) -> Result<Duration, Failure> {
        let mut options = RawOptions::new("raw-bench", "127.0.0.1", self.server.port());
        options.set_outgoing_inflight_upper_limit(u16::try_from(workload.window)?);
        let (client, mut events) = AsyncClient::new(options, workload.window);
        while !matches!(events.poll().await?, Event::Incoming(Incoming::ConnAck(_))) {}
        let (payload, count) = (workload.payload.clone(), workload.events);
        let begun = Instant::now();
        let publishing = tokio::spawn(async move {
            for _ in 0..count {
                let properties =
                    PublishProperties { content_type: Some(CONTENT_TYPE.into()), ..PublishProperties::default() };
                let (topic, payload) = ("hookbus/custom/bench/load", payload.clone());
                client.publish_with_properties(topic, QoS::AtLeastOnce, false, payload, properties).await?;
            }
            Ok::<_, rumqttc::v5::ClientError>(client)
        });
        let mut confirmed = 0;
        while confirmed < count {
            if let Event::Incoming(Packet::PubAck(acknowledgement)) = events.poll().await? {
                match acknowledgement.reason {
                    PubAckReason::Success | PubAckReason::NoMatchingSubscribers => confirmed += 1,
                    reason => return Err(format!("not confirmed: {reason:?}").into()),
                }
            }
        }
        let time = begun.elapsed();
        publishing.await??;
        Ok(time)
    }
}
