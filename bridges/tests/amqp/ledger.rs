//! The suite of all buses, over RabbitMQ.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hookbus_bridges::amqp::{AmqpBus, AmqpOptions};
use lapin::message::BasicGetMessage;
use lapin::options::BasicGetOptions;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, ConnectionProperties};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::block_in_place;
use tokio::time::timeout;

use super::contract::{Arrival, TestBus};
use super::servers::rabbitmq::RabbitMq;
use super::{options, queue};

contract_suite!(super::Rabbit);

/// RabbitMQ starts slowly: a test leaves its server to another one.
static IDLE: Mutex<Vec<RabbitMq>> = Mutex::new(Vec::new());
/// How many tests may have one at a time.
static PLACES: Semaphore = Semaphore::const_new(2);
/// Each test has an exchange and a queue of its own.
static NAMES: AtomicUsize = AtomicUsize::new(0);

/// A RabbitMQ, and what was read of its queue so far.
struct Rabbit {
    server: Option<RabbitMq>,
    name: String,
    arrivals: Vec<Arrival>,
    _place: SemaphorePermit<'static>,
}

impl Rabbit {
    fn server(&mut self) -> &mut RabbitMq {
        self.server.as_mut().unwrap()
    }
}

impl Drop for Rabbit {
    fn drop(&mut self) {
        let server = self.server.take();
        // One that a failed test leaves may be in any state.
        if let Some(mut server) = server.filter(|_| !std::thread::panicking())
            && server.process.ended().is_none()
        {
            IDLE.lock().unwrap().push(server);
        }
    }
}

impl TestBus for Rabbit {
    type Bus = AmqpBus;

    const BODY_LIMIT_BYTES: usize = 64 * 1024;

    async fn start() -> Self {
        let place = PLACES.acquire().await.unwrap();
        let idle = IDLE.lock().unwrap().pop();
        let server = idle.unwrap_or_else(|| {
            block_in_place(|| {
                let server = RabbitMq::start_with(&format!("max_message_size = {}", Self::BODY_LIMIT_BYTES));
                server.wait_until_booted();
                server.ctl(&["add_user", "bridge", "secret"]);
                server.ctl(&["set_permissions", "bridge", ".*", ".*", ".*"]);
                server
            })
        });
        let name = format!("suite{}", NAMES.fetch_add(1, Ordering::Relaxed));
        queue(&server, &name, &["#"], FieldTable::default()).await;
        Rabbit { server: Some(server), name, arrivals: Vec::new(), _place: place }
    }

    fn bus(&self) -> AmqpBus {
        AmqpBus::new(AmqpOptions {
            user: Some("bridge".into()),
            password: Some("secret".into()),
            max_message_bytes: Self::BODY_LIMIT_BYTES,
            step_timeout: Duration::from_secs(2),
            ..options(self.server.as_ref().unwrap(), &self.name)
        })
    }

    async fn arrived(&mut self) -> Vec<Arrival> {
        // A server that is down or stopped tells nothing new.
        let url = self.server().url();
        let _ = timeout(Duration::from_secs(5), read(&url, &self.name, &mut self.arrivals)).await;
        self.arrivals.clone()
    }

    async fn kill(&mut self) {
        block_in_place(|| {
            self.server().flush();
            self.server().process.kill();
        });
    }

    async fn restart(&mut self) {
        block_in_place(|| self.server().restart());
    }

    async fn stop(&mut self) {
        self.server().process.stop();
    }

    async fn resume(&mut self) {
        self.server().process.resume();
    }

    async fn refuse(&mut self, part: &str, refused: bool) -> bool {
        let (name, allowed) = (self.name.clone(), format!("^(?!.*{part})"));
        block_in_place(|| match refused {
            true => self.server().ctl(&["set_topic_permissions", "bridge", &name, &allowed, ".*"]),
            false => self.server().ctl(&["clear_topic_permissions", "bridge", &name]),
        });
        true
    }
}

/// Reads what is in a queue.
async fn read(url: &str, queue: &str, arrivals: &mut Vec<Arrival>) -> lapin::Result<()> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    while let Some(message) = channel.basic_get(queue.into(), BasicGetOptions { no_ack: true }).await? {
        arrivals.push(arrival(&message));
    }
    Ok(())
}

fn arrival(message: &BasicGetMessage) -> Arrival {
    let properties = &message.properties;
    let mut attributes = Vec::new();
    for (name, value) in properties.headers().iter().flat_map(lapin::types::FieldTable::inner) {
        let AMQPValue::LongString(value) = value else { panic!("the header {name} is {value:?}") };
        attributes.push((name.as_str().strip_prefix("cloudEvents_").unwrap().to_owned(), value.to_string()));
    }
    Arrival {
        id: properties.message_id().as_ref().unwrap().to_string(),
        address: message.routing_key.to_string(),
        body: message.data.clone().into(),
        content_type: properties.content_type().as_ref().map(ToString::to_string),
        attributes,
    }
}
