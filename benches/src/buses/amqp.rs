//! RabbitMQ: persistent messages to a durable queue, publisher confirms.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use hookbus_bridges::amqp::{AmqpBus, AmqpOptions};
use lapin::options::{
    BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
    QueuePurgeOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind};

use super::{CONTENT_TYPE, Contest, Failure, Workload, ours};
use crate::servers::rabbitmq::RabbitMq;

pub(super) struct Amqp {
    server: RabbitMq,
    round: usize,
}

impl Amqp {
    pub(super) fn start() -> Self {
        let server = RabbitMq::start();
        server.wait_until_booted();
        Amqp { server, round: 0 }
    }

    /// A durable exchange with a durable, empty queue behind it.
    async fn fresh(&self) -> Result<(Connection, Channel), Failure> {
        let connection = Connection::connect(&self.server.url(), ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        let exchange = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        channel.exchange_declare("hookbus".into(), ExchangeKind::Topic, exchange, FieldTable::default()).await?;
        let queue = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare("bench".into(), queue, FieldTable::default()).await?;
        let bind = QueueBindOptions::default();
        channel.queue_bind("bench".into(), "hookbus".into(), "hookbus.#".into(), bind, FieldTable::default()).await?;
        channel.queue_purge("bench".into(), QueuePurgeOptions::default()).await?;
        Ok((connection, channel))
    }
}

impl Contest for Amqp {
    fn case(&self) -> String {
        "AMQP 0.9.1 (RabbitMQ), persistent, publisher confirms".into()
    }

    fn library(&self) -> &'static str {
        "lapin, window of confirms"
    }

    async fn ours(&mut self, workload: &Workload) -> Result<Duration, Failure> {
        self.fresh().await?;
        ours::run(AmqpBus::new(AmqpOptions { url: self.server.url(), ..AmqpOptions::default() }), workload).await
    }

    async fn raw(&mut self, workload: &Workload) -> Result<Duration, Failure> {
        let (_connection, channel) = self.fresh().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        self.round += 1;
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let mut outstanding = VecDeque::with_capacity(workload.window);
        let begun = Instant::now();
        for number in 0..workload.events {
            if outstanding.len() == workload.window {
                confirmed(outstanding.pop_front().ok_or("no window")?).await?;
            }
            let properties = BasicProperties::default()
                .with_delivery_mode(2)
                .with_message_id(format!("{:016x}-{number}", self.round).into())
                .with_timestamp(1_795_303_226)
                .with_type("org.hookbus.custom".into())
                .with_app_id("hookbus".into())
                .with_content_type(CONTENT_TYPE.into());
            let (exchange, key) = ("hookbus".into(), "hookbus.custom.bench.load".into());
            outstanding.push_back(channel.basic_publish(exchange, key, options, &workload.payload, properties).await?);
        }
        for outstanding in outstanding {
            confirmed(outstanding).await?;
        }
        Ok(begun.elapsed())
    }
}

async fn confirmed(outstanding: lapin::PublisherConfirm) -> Result<(), Failure> {
    match outstanding.await? {
        lapin::Confirmation::Ack(None) => Ok(()),
        other => Err(format!("not confirmed: {other:?}").into()),
    }
}
