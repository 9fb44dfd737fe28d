//! JetStream, file storage.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{self, ContextBuilder};
use hookbus_bridges::nats::{NatsBus, NatsOptions};

use super::{CONTENT_TYPE, Contest, Failure, Workload, ours};
use crate::servers::nats::NatsServer;

pub(super) struct JetStream {
    server: NatsServer,
    /// Makes the ids of each round others.
    round: usize,
}

impl JetStream {
    pub(super) fn start() -> Self {
        JetStream { server: NatsServer::start(), round: 0 }
    }

    /// A stream without what the last round brought.
    async fn fresh(&self) -> Result<(), Failure> {
        let jetstream = jetstream::new(async_nats::connect(self.server.url()).await?);
        if let Ok(stream) = jetstream.get_stream("HOOKBUS").await {
            stream.purge().await?;
        }
        Ok(())
    }
}

impl Contest for JetStream {
    fn case(&self) -> String {
        "NATS JetStream, file storage, acknowledged".into()
    }

    fn library(&self) -> &'static str {
        "async-nats, window of acknowledgements"
    }

    async fn ours(&mut self, workload: &Workload) -> Result<Duration, Failure> {
        self.fresh().await?;
        ours::run(NatsBus::new(NatsOptions { servers: vec![self.server.url()], ..NatsOptions::default() }), workload)
            .await
    }

    async fn raw(&mut self, workload: &Workload) -> Result<Duration, Failure> {
        self.fresh().await?;
        self.round += 1;
        let client = async_nats::connect(self.server.url()).await?;
        let jetstream = ContextBuilder::new().max_ack_inflight(workload.window).build(client);
        let mut outstanding = VecDeque::with_capacity(workload.window);
        let begun = Instant::now();
        for number in 0..workload.events {
            if outstanding.len() == workload.window {
                outstanding.pop_front().ok_or("no window")?.await?;
            }
            let message = PublishMessage::build()
                .message_id(format!("{:016x}-{number}", self.round))
                .header("Content-Type", CONTENT_TYPE)
                .payload(workload.payload.clone());
            let acknowledged = jetstream.send_publish("hookbus.custom.bench.load", message).await?;
            outstanding.push_back(acknowledged.into_future());
        }
        for acknowledged in outstanding {
            acknowledged.await?;
        }
        Ok(begun.elapsed())
    }
}
