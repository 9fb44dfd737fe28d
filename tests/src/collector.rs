//! Consumers that outlive their server's outages: what a bus has delivered, in its order, repetitions included.
//!
//! Each holds on to what the server promises to keep: on NATS it reads the stream itself, from the first message on and after a
//! fault from where it was; on MQTT it has a session that the server keeps, on AMQP a durable queue. So what it hasn't got in the
//! end is not on the bus.

use std::collections::HashMap;
use std::error::Error;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, consumer::DeliverPolicy, consumer::pull::OrderedConfig};
use futures_util::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties, ExchangeKind};
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
use serde_json::Value;
use tokio::sync::oneshot;

use crate::load::Acknowledged;
use crate::{Deadline, wait_until};

/// What a consumer is called by its server.
const NAME: &str = "collector";
/// How long it waits before it connects again.
const PAUSE: Duration = Duration::from_millis(100);
/// After that long without a message it looks whether its connection is alive, by making a new one.
const SILENCE: Duration = Duration::from_secs(5);

/// Where to consume.
#[derive(Clone, Debug)]
pub enum Source {
    /// The stream HOOKBUS of the server at this URL.
    Nats(String),
    /// `hookbus/#` of the server on this port of 127.0.0.1.
    Mqtt(u16),
    /// A queue bound to the exchange `hookbus` of the server at this URL.
    Amqp(String),
}

/// An event that was delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Its id; sources don't share ids in these tests.
    pub id: String,
    /// The offset.
    pub sequence: u64,
    /// The number that a [`Load`](crate::Load) gave it.
    pub number: u64,
    /// How many were lost before it, as it says.
    pub dropped: Option<u64>,
    /// A digest of the whole message.
    pub digest: u64,
    /// When it came.
    pub at: Instant,
}

/// A consumer at work; dropping this ends it.
#[derive(Debug)]
pub struct Collector {
    sink: Arc<Sink>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What is shared with the thread that consumes.
#[derive(Debug, Default)]
struct Sink {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    subscribed: bool,
    arrivals: Vec<Arrival>,
    first: HashMap<String, usize>,
    trouble: String,
}

impl Collector {
    /// Starts consuming. What is published from now on will be delivered, even where nobody has published before.
    #[must_use]
    pub fn start(source: Source) -> Self {
        let sink = Arc::new(Sink::default());
        let (stop, stopped) = oneshot::channel();
        let shared = Arc::clone(&sink);
        // A stream is read from its beginning, whenever that is.
        let is_stream = matches!(source, Source::Nats(_));
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                tokio::select! {
                    () = consume(&source, &shared) => {}
                    _ = stopped => {}
                }
            });
        });
        let collector = Self { sink, stop: Some(stop), thread: Some(thread) };
        if !is_stream {
            wait_until("the subscription", || {
                let state = collector.sink.lock();
                if state.subscribed { Ok(()) } else { Err(state.trouble.clone()) }
            });
        }
        collector
    }

    /// How many different events have come.
    #[must_use]
    pub fn count(&self) -> usize {
        self.sink.lock().first.len()
    }

    /// Everything that has come, repetitions included.
    #[must_use]
    pub fn arrivals(&self) -> Vec<Arrival> {
        self.sink.lock().arrivals.clone()
    }

    /// Forgets what has come so far.
    pub fn clear(&self) {
        let mut state = self.sink.lock();
        (state.arrivals, state.first) = (Vec::new(), HashMap::new());
    }

    /// Waits until each of these has come.
    ///
    /// # Panics
    /// When something is missing and nothing more comes for as long as tests wait.
    pub fn until_all(&self, acknowledged: &[Acknowledged]) {
        let (mut last, mut deadline) = (0, Deadline::usual());
        loop {
            let state = self.sink.lock();
            if state.arrivals.len() > last {
                (last, deadline) = (state.arrivals.len(), Deadline::usual());
            }
            // Counting is enough while too few are there.
            let complete = state.first.len() >= acknowledged.len();
            let missing = || acknowledged.iter().filter(|event| !state.first.contains_key(&event.id));
            if complete && missing().next().is_none() {
                return;
            }
            assert!(
                !deadline.passed(),
                "{} of {} acknowledged events never came, {} did; the first missing: {:?}; the last fault: {}",
                missing().count(),
                acknowledged.len(),
                state.first.len(),
                missing().take(5).collect::<Vec<_>>(),
                state.trouble
            );
            drop(state);
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Checks what a bus has delivered against what was acknowledged; gives the number of repetitions.
///
/// Everything that was acknowledged is there, as it was acknowledged; by first arrival of each id the order is that of the offsets;
/// repetitions are the same to the byte; nothing says that something was lost.
///
/// # Panics
/// When it isn't so.
pub fn check_delivery(acknowledged: &[Acknowledged], arrivals: &[Arrival]) -> usize {
    let mut first: HashMap<&str, &Arrival> = HashMap::new();
    let mut last: Option<&Arrival> = None;
    for arrival in arrivals {
        assert_eq!(arrival.dropped, None, "{arrival:?} says that events before it were lost");
        if let Some(before) = first.get(arrival.id.as_str()) {
            assert_eq!(before.digest, arrival.digest, "{arrival:?} is a repetition of {before:?} and differs from it");
            continue;
        }
        first.insert(&arrival.id, arrival);
        if let Some(last) = last {
            assert!(last.sequence < arrival.sequence, "{arrival:?} came first after {last:?}");
        }
        last = Some(arrival);
    }
    for event in acknowledged {
        let Some(arrival) = first.get(event.id.as_str()) else { panic!("{event:?} never came") };
        assert_eq!((arrival.sequence, arrival.number), (event.offset, event.number), "{event:?} came as {arrival:?}");
    }
    arrivals.len() - first.len()
}

impl Sink {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics while holding it")
    }

    fn subscribed(&self) {
        self.lock().subscribed = true;
    }

    fn take(&self, body: &[u8]) {
        let at = Instant::now();
        let event: Value = serde_json::from_slice(body).unwrap_or_else(|error| {
            panic!("what came is no JSON: {error}: {}", String::from_utf8_lossy(body));
        });
        // Other events than those of a load don't count.
        let Some(number) = event["data"]["number"].as_u64() else { return };
        let id = event["id"].as_str().expect("each has an id").to_owned();
        let sequence = event["sequence"].as_str().and_then(|text| text.parse().ok()).expect("each has its offset");
        let mut hasher = DefaultHasher::new();
        body.hash(&mut hasher);
        let arrival =
            Arrival { id, sequence, number, dropped: event["hookbusdropped"].as_u64(), digest: hasher.finish(), at };
        let mut state = self.lock();
        let index = state.arrivals.len();
        state.first.entry(arrival.id.clone()).or_insert(index);
        state.arrivals.push(arrival);
    }
}

async fn consume(source: &Source, sink: &Sink) {
    let mut next = 1;
    loop {
        let ended = match source {
            Source::Nats(url) => nats(url, &mut next, sink).await,
            Source::Mqtt(port) => mqtt(*port, sink).await,
            Source::Amqp(url) => amqp(url, sink).await,
        };
        if let Err(error) = ended {
            sink.lock().trouble = error.to_string();
        }
        tokio::time::sleep(PAUSE).await;
    }
}

type Fault = Box<dyn Error + Send + Sync>;

async fn nats(url: &str, next: &mut u64, sink: &Sink) -> Result<(), Fault> {
    let client = async_nats::ConnectOptions::new().connection_timeout(SILENCE).connect(url).await?;
    let stream = jetstream::new(client).get_stream("HOOKBUS").await?;
    let deliver_policy = DeliverPolicy::ByStartSequence { start_sequence: *next };
    let consumer = stream.create_consumer(OrderedConfig { deliver_policy, ..OrderedConfig::default() }).await?;
    let mut messages = consumer.messages().await?;
    while let Some(message) = tokio::time::timeout(SILENCE, messages.next()).await? {
        let message = message?;
        let sequence = message.info()?.stream_sequence;
        if sequence >= *next {
            sink.take(&message.payload);
            *next = sequence + 1;
        }
    }
    Ok(())
}

/// Its library connects again by itself, and acknowledges what it hands out.
async fn mqtt(port: u16, sink: &Sink) -> Result<(), Fault> {
    let mut options = MqttOptions::new(NAME, "127.0.0.1", port);
    options.set_clean_session(false).set_keep_alive(SILENCE).set_max_packet_size(16 << 20, 16 << 20);
    let (client, mut events) = AsyncClient::new(options, 16);
    loop {
        match events.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(_))) => client.try_subscribe("hookbus/#", QoS::AtLeastOnce)?,
            Ok(Event::Incoming(Packet::SubAck(_))) => sink.subscribed(),
            Ok(Event::Incoming(Packet::Publish(publish))) => sink.take(&publish.payload),
            Ok(_) => {}
            Err(error) => {
                sink.lock().trouble = error.to_string();
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn amqp(url: &str, sink: &Sink) -> Result<(), Fault> {
    let connecting = Connection::connect(url, ConnectionProperties::default());
    let connection = tokio::time::timeout(SILENCE, connecting).await??;
    let channel = connection.create_channel().await?;
    let none = FieldTable::default;
    // As the bridge declares it; whoever comes first makes it.
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    channel.exchange_declare("hookbus".into(), ExchangeKind::Topic, durable, none()).await?;
    channel.queue_declare(NAME.into(), QueueDeclareOptions::durable(), none()).await?;
    channel.queue_bind(NAME.into(), "hookbus".into(), "hookbus.#".into(), QueueBindOptions::default(), none()).await?;
    channel.basic_qos(1000, BasicQosOptions::default()).await?;
    let mut deliveries =
        channel.basic_consume(NAME.into(), NAME.into(), BasicConsumeOptions::default(), none()).await?;
    sink.subscribed();
    while let Some(delivery) = deliveries.next().await {
        let delivery = delivery?;
        sink.take(&delivery.data);
        delivery.ack(BasicAckOptions::default()).await?;
    }
    Ok(())
}
