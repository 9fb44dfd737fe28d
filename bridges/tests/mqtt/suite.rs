//! The suite that every bus must pass, over both versions.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use hookbus_bridges::mqtt::{MqttBus, Version};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, Publish};
use rumqttc::v5::{AsyncClient, Event, EventLoop, MqttOptions as ConsumerOptions};
use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::contract::{Arrival, TestBus};
use crate::servers::mosquitto::Mosquitto;
use crate::servers::wait_until;
use crate::support::{options, soon, topic};

/// The longest packet that the server takes. In 3.1.1 it can't say so, and the bridge is told.
const PACKET_BYTES: usize = 100_000;

/// mosquitto, and a subscriber whose session outlives both. It is ended by SIGTERM, since what it has confirmed is in its memory.
///
/// After a restart the subscriber must be there before the bridge. mosquitto 2.0.11 may lose what it takes in for a session that it has
/// restored with messages in flight: its log shows the publisher's PUBACK, code 0, and never a PUBLISH to the subscriber. So the bridge
/// goes through a door that opens when the subscriber is back.
struct Server<const V5: bool> {
    server: Mosquitto,
    arrived: Arc<Mutex<Vec<Arrival>>>,
    /// Whether the subscriber is there.
    open: watch::Sender<bool>,
    door: u16,
    tasks: [JoinHandle<()>; 2],
}

impl<const V5: bool> Server<V5> {
    const VERSION: Version = if V5 { Version::V5 } else { Version::V311 };
}

impl<const V5: bool> Drop for Server<V5> {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl<const V5: bool> TestBus for Server<V5> {
    type Bus = MqttBus;

    const BODY_LIMIT_BYTES: usize = PACKET_BYTES;

    async fn start() -> Self {
        let dir = TempDir::new().unwrap();
        std::fs::write(dir.path().join("acl"), "topic readwrite #\n").unwrap();
        let config = format!(
            "allow_anonymous true\nacl_file $DIR/acl\nmax_packet_size {PACKET_BYTES}\nmax_queued_messages 1000000"
        );
        let server = Mosquitto::start_in(dir, &config);
        let mut options = ConsumerOptions::new("reader", "127.0.0.1", server.port());
        options.set_clean_start(false).set_session_expiry_interval(Some(3600)).set_max_packet_size(Some(1 << 20));
        let (client, mut events) = AsyncClient::new(options, 10);
        client.subscribe("hookbus/#", QoS::AtLeastOnce).await.unwrap();
        soon("a subscription", async {
            while !matches!(events.poll().await, Ok(Event::Incoming(Packet::SubAck(_)))) {}
        })
        .await;
        let arrived = Arc::new(Mutex::new(Vec::new()));
        let open = watch::Sender::new(true);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let door = listener.local_addr().unwrap().port();
        let tasks = [
            tokio::spawn(read(events, client, arrived.clone(), open.clone())),
            tokio::spawn(keep_door(listener, server.port(), open.subscribe())),
        ];
        Server { server, arrived, open, door, tasks }
    }

    fn bus(&self) -> MqttBus {
        let options = options(self.door, Self::VERSION).keep_alive(Duration::from_secs(10));
        MqttBus::new(if V5 { options } else { options.packet_limit_bytes(PACKET_BYTES) })
    }

    async fn arrived(&mut self) -> Vec<Arrival> {
        self.arrived.lock().unwrap().clone()
    }

    async fn kill(&mut self) {
        self.open.send_replace(false);
        self.server.process.terminate();
    }

    async fn restart(&mut self) {
        self.server.restart();
    }

    async fn stop(&mut self) {
        self.server.process.stop();
    }

    async fn resume(&mut self) {
        self.server.process.resume();
    }

    async fn refuse(&mut self, part: &str, refused: bool) -> bool {
        if !V5 {
            // It acknowledges what it refuses: the module's documentation says so.
            return false;
        }
        let rule = if refused { format!("topic deny hookbus/custom/{part}\n") } else { String::new() };
        std::fs::write(self.server.path("acl"), format!("{rule}topic readwrite #\n")).unwrap();
        let reloads = |server: &Mosquitto| server.process.log().matches("Reloading config").count();
        let before = reloads(&self.server);
        kill(Pid::from_raw(self.server.process.id().cast_signed()), Signal::SIGHUP).unwrap();
        wait_until("new access rules", || if reloads(&self.server) > before { Ok(()) } else { Err("no sign of it") });
        true
    }

    fn has_headers() -> bool {
        V5
    }
}

async fn read(
    mut events: EventLoop,
    _client: AsyncClient,
    arrived: Arc<Mutex<Vec<Arrival>>>,
    open: watch::Sender<bool>,
) {
    loop {
        match events.poll().await {
            Ok(Event::Incoming(Packet::Publish(publish))) => {
                let mut arrived = arrived.lock().unwrap();
                let place = arrived.len() + 1;
                arrived.push(arrival(publish, place));
            }
            Ok(Event::Incoming(Packet::ConnAck(_))) => drop(open.send_replace(true)),
            Ok(_) => {}
            Err(_) => sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Lets the bridge through to the server.
async fn keep_door(listener: TcpListener, port: u16, open: watch::Receiver<bool>) {
    loop {
        let (mut bridge, _) = listener.accept().await.unwrap();
        let mut open = open.clone();
        tokio::spawn(async move {
            if open.wait_for(|open| *open).await.is_err() {
                return;
            }
            if let Ok(mut server) = TcpStream::connect(("127.0.0.1", port)).await {
                let _ = copy_bidirectional(&mut bridge, &mut server).await;
            }
        });
    }
}

fn arrival(publish: Publish, place: usize) -> Arrival {
    let address = topic(&publish);
    let properties = publish.properties.unwrap_or_default();
    let mut attributes = properties.user_properties;
    let get = |attributes: &[(String, String)], name: &str| {
        attributes.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
    };
    let replay = get(&attributes, "hookbusreplay");
    let id = get(&attributes, "id").or_else(|| {
        let json: Option<serde_json::Value> = serde_json::from_slice(&publish.payload).ok();
        json.and_then(|json| Some(json["id"].as_str()?.to_owned()))
    });
    // In 3.1.1 a bare body has nothing to tell it by. The suite repeats none of those, so that its place says which it is.
    let mut id = id.unwrap_or_else(|| format!("000000000000abcd-{place}"));
    if let Some(replay) = replay {
        id = format!("{id};replay={replay}");
    }
    // What stands beside a body that doesn't tell who it is, is no event in binary mode.
    if get(&attributes, "specversion").is_none() {
        attributes.clear();
    }
    Arrival { id, address, body: publish.payload, content_type: properties.content_type, attributes }
}

mod v5 {
    use super::Server;

    contract_suite!(Server<true>);
}

mod v311 {
    use super::Server;

    contract_suite!(Server<false>);
}
