//! A bus's two ends with letters to send, and a consumer.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use hookbus_bridges::cloudevents::{Encoder, Format, Sources};
use hookbus_bridges::delivery::{Bus, Fault, Letter, LetterWriter, Limits, Receipt, Receipts, Sender, Ticket};
use hookbus_bridges::mqtt::{MqttBus, MqttOptions, MqttReceipts, MqttSender, Version};
use hookbus_broker::{Broker, Message, SubscribeOptions, Subscription};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, Publish};
use rumqttc::v5::{AsyncClient, Event, EventLoop, MqttOptions as ConsumerOptions};
use tokio::time::{sleep, timeout};

use crate::servers::PATIENCE;

/// Waits for what must come.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

/// A server on 127.0.0.1, and us.
pub(crate) fn options(port: u16, version: Version) -> MqttOptions {
    MqttOptions::new("127.0.0.1", port, "hookbus-test").version(version).connect_timeout(Duration::from_secs(5))
}

/// Both ends of a connection, with its tickets.
pub(crate) struct Ends {
    pub(crate) sender: MqttSender,
    pub(crate) receipts: MqttReceipts,
    next: u64,
}

pub(crate) async fn connect(options: MqttOptions) -> Ends {
    soon("a connection", try_connect(options)).await.unwrap_or_else(|fault| panic!("{fault}"))
}

pub(crate) async fn try_connect(options: MqttOptions) -> Result<Ends, Fault> {
    let (sender, receipts) = MqttBus::new(options).connect().await?;
    Ok(Ends { sender, receipts, next: 0 })
}

/// Connects again and again until it goes well, as the ledger does.
pub(crate) async fn reconnect(options: &MqttOptions) -> Ends {
    soon("a connection", async {
        loop {
            match try_connect(options.clone()).await {
                Ok(ends) => return ends,
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    })
    .await
}

impl Ends {
    /// Hands a letter over and flushes.
    pub(crate) async fn send(&mut self, letter: &Letter) -> Ticket {
        self.next += 1;
        let ticket = Ticket(self.next);
        soon("room", self.sender.send(ticket, letter)).await.unwrap_or_else(|error| panic!("{error}"));
        self.sender.flush().await.unwrap();
        ticket
    }

    /// The next receipts, or why there are none any more.
    pub(crate) async fn told(&mut self) -> Result<Vec<Receipt>, Fault> {
        let mut receipts = Vec::new();
        soon("a receipt", self.receipts.next(&mut receipts)).await.map(|()| receipts)
    }

    /// The receipt of one letter, which is the only one on its way.
    pub(crate) async fn receipt(&mut self) -> Receipt {
        let mut receipts = self.told().await.unwrap_or_else(|fault| panic!("{fault}"));
        assert_eq!(receipts.len(), 1, "{receipts:?}");
        receipts.pop().unwrap()
    }

    /// Sends them in a window as the ledger does, until all are confirmed or the connection ends. Says which are not confirmed.
    pub(crate) async fn send_all(
        &mut self,
        letters: &[Letter],
        mut after: impl FnMut(usize),
    ) -> Result<(), HashSet<usize>> {
        let mut open: HashSet<usize> = (0..letters.len()).collect();
        let (first, mut sent, mut confirmed) = (self.next, 0, 0);
        let window = self.sender.limits().in_flight.min(1000);
        while confirmed < letters.len() {
            while sent < letters.len() && sent - confirmed < window {
                self.next += 1;
                if soon("room", self.sender.send(Ticket(self.next), &letters[sent])).await.is_err() {
                    return Err(open);
                }
                sent += 1;
            }
            if self.sender.flush().await.is_err() {
                return Err(open);
            }
            let Ok(receipts) = self.told().await else { return Err(open) };
            for receipt in receipts {
                let Receipt::Confirmed(Ticket(ticket)) = receipt else { panic!("{receipt:?}") };
                assert!(open.remove(&((ticket - first - 1) as usize)), "confirmed twice: {ticket}");
                confirmed += 1;
            }
            after(confirmed);
        }
        Ok(())
    }
}

/// Makes letters of messages.
pub(crate) struct Letters {
    broker: Broker,
    events: Subscription,
    writer: LetterWriter,
}

impl Letters {
    pub(crate) fn new(format: Format) -> Self {
        let broker = Broker::default();
        let events = broker.subscribe(SubscribeOptions::new("letters").prefix("").hwm(0));
        let encoder = Encoder::new(Sources { host: "front".into(), zone: None });
        Letters { broker, events, writer: LetterWriter::new::<MqttBus>(encoder, format, "hookbus") }
    }

    pub(crate) async fn of(&mut self, message: Message) -> Letter {
        self.replay_of(message, None).await
    }

    /// The letter of an operator's retry.
    pub(crate) async fn replay_of(&mut self, message: Message, replay: Option<u64>) -> Letter {
        self.broker.publish_now(message).unwrap();
        let event = self.events.recv().await.unwrap().message().unwrap();
        self.writer.write(event, None, replay, Limits::default()).unwrap()
    }

    /// Small events published by hand, whose data is their number.
    pub(crate) async fn numbered(&mut self, count: usize) -> Vec<Letter> {
        let mut letters = Vec::with_capacity(count);
        for number in 0..count {
            letters.push(self.of(Message::new("test", number.to_string())).await);
        }
        letters
    }
}

/// A subscriber with rumqttc's own client.
pub(crate) struct Consumer {
    events: EventLoop,
    _client: AsyncClient,
    /// What a session held for it comes before the answer to its subscription.
    early: VecDeque<Publish>,
}

impl Consumer {
    pub(crate) async fn of(port: u16, filter: &str) -> Self {
        Self::with(ConsumerOptions::new(format!("consumer-{}", fastrand::u64(..)), "127.0.0.1", port), filter).await
    }

    pub(crate) async fn with(mut options: ConsumerOptions, filter: &str) -> Self {
        options.set_max_packet_size(Some(64 << 20));
        let (client, events) = AsyncClient::new(options, 10);
        let mut consumer = Consumer { events, _client: client.clone(), early: VecDeque::new() };
        client.subscribe(filter, QoS::AtLeastOnce).await.unwrap();
        let mut early = VecDeque::new();
        let subscribed = |packet| match packet {
            Packet::SubAck(_) => Some(()),
            Packet::Publish(publish) => {
                early.push_back(publish);
                None
            }
            _ => None,
        };
        consumer.until(subscribed).await;
        consumer.early = early;
        consumer
    }

    async fn until<T>(&mut self, mut wanted: impl FnMut(Packet) -> Option<T>) -> T {
        soon("a packet", async {
            loop {
                match self.events.poll().await {
                    Ok(Event::Incoming(packet)) => {
                        if let Some(found) = wanted(packet) {
                            return found;
                        }
                    }
                    Ok(Event::Outgoing(_)) => {}
                    Err(e) => panic!("the consumer: {e}"),
                }
            }
        })
        .await
    }

    /// The next message.
    pub(crate) async fn message(&mut self) -> Publish {
        if let Some(publish) = self.early.pop_front() {
            return publish;
        }
        self.until(|packet| if let Packet::Publish(publish) = packet { Some(publish) } else { None }).await
    }

    /// The next message's topic and JSON.
    pub(crate) async fn json(&mut self) -> (String, serde_json::Value) {
        let publish = self.message().await;
        (topic(&publish), serde_json::from_slice(&publish.payload).unwrap())
    }
}

pub(crate) fn topic(publish: &Publish) -> String {
    String::from_utf8(publish.topic.to_vec()).unwrap()
}
