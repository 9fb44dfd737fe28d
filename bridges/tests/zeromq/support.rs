//! Peers made of a plain socket, and waiting for conditions.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hookbus_bridges::zeromq::codec::{
    Command, Connection, Event, Greeting, MORE, Metadata, Settings, SocketType, put_frame, put_subscribe,
};
use hookbus_bridges::zeromq::{Endpoint, Host, Publisher, PublisherOptions};
use hookbus_broker::{Broker, Message};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// Far beyond what anything here takes; a test that reaches it has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `condition` holds.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("in vain: {what}"));
}

/// Waits for a future that must come to an end.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("in vain: {what}"))
}

pub(crate) fn local() -> Endpoint {
    "tcp://127.0.0.1:0".parse().unwrap()
}

/// A broker with a publisher on a free port.
pub(crate) fn publisher() -> (Broker, Publisher) {
    publisher_with(|options| options)
}

pub(crate) fn publisher_with(set: impl FnOnce(PublisherOptions) -> PublisherOptions) -> (Broker, Publisher) {
    let broker = Broker::default();
    let publisher = Publisher::bind(broker.clone(), set(PublisherOptions::new(local()))).unwrap();
    (broker, publisher)
}

pub(crate) async fn publish(broker: &Broker, key: &str, payload: impl Into<Vec<u8>>) {
    broker.publish(Message::new(key, payload.into())).await.unwrap();
}

pub(crate) fn base64(bytes: &[u8]) -> Vec<u8> {
    STANDARD.encode(bytes).into_bytes()
}

pub(crate) fn from_base64(bytes: &[u8]) -> Vec<u8> {
    STANDARD.decode(bytes).unwrap()
}

/// A greeting and READY, as bytes, of a peer that is not libzmq's kind.
pub(crate) fn hello(minor: u8, socket_type: &str) -> Vec<u8> {
    let mut bytes = Greeting { minor, libzmq: false, ..Greeting::ours("NULL", false) }.to_bytes().to_vec();
    Metadata { socket_type: socket_type.into(), identity: Vec::new() }.put_ready(&mut bytes);
    bytes
}

/// What a raw peer has seen.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Message(Vec<Vec<u8>>),
    Pong(Vec<u8>),
    Error(String),
}

/// A peer that does what the test says, byte by byte.
pub(crate) struct RawPeer {
    pub(crate) socket: TcpStream,
    received: Vec<u8>,
}

pub(crate) async fn raw(endpoint: &Endpoint) -> RawPeer {
    let Endpoint::Tcp { host: Host::Ip(ip), port } = endpoint else { panic!("{endpoint}") };
    RawPeer { socket: TcpStream::connect((*ip, *port)).await.unwrap(), received: Vec::new() }
}

/// A peer that has shaken hands as SUB and subscribed.
pub(crate) async fn subscriber(publisher: &Publisher, minor: u8, prefixes: &[&str]) -> RawPeer {
    let before = publisher.peers().len();
    let mut peer = raw(publisher.local_endpoint()).await;
    let mut bytes = hello(minor, "SUB");
    for prefix in prefixes {
        put_subscribe(&mut bytes, prefix.as_bytes());
    }
    peer.send(&bytes).await;
    peer.skip_hello().await;
    until("the peer is listed with its filters", || {
        let peers = publisher.peers();
        peers.len() > before && peers.last().unwrap().filters == prefixes.len()
    })
    .await;
    peer
}

impl From<TcpStream> for RawPeer {
    fn from(socket: TcpStream) -> Self {
        RawPeer { socket, received: Vec::new() }
    }
}

impl RawPeer {
    /// The next bytes, as they come.
    pub(crate) async fn exactly(&mut self, count: usize) -> Vec<u8> {
        self.bytes(count).await.expect("the other side hung up")
    }

    /// Whether the other side has hung up by now.
    pub(crate) fn has_ended(&mut self) -> bool {
        match self.socket.try_read_buf(&mut self.received) {
            Ok(read) => read == 0,
            Err(e) => e.kind() != std::io::ErrorKind::WouldBlock,
        }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        soon("the other side reads", self.socket.write_all(bytes)).await.unwrap();
    }

    async fn bytes(&mut self, count: usize) -> Option<Vec<u8>> {
        while self.received.len() < count {
            let read = soon("the other side writes", self.socket.read_buf(&mut self.received)).await;
            if matches!(read, Ok(0) | Err(_)) {
                return None;
            }
        }
        Some(self.received.drain(..count).collect())
    }

    /// Flags and body of the next frame.
    pub(crate) async fn frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let flags = self.bytes(1).await?[0];
        let length = if flags & 2 == 0 {
            usize::from(self.bytes(1).await?[0])
        } else {
            u64::from_be_bytes(self.bytes(8).await?.try_into().unwrap()) as usize
        };
        Some((flags, self.bytes(length).await?))
    }

    /// Takes the greeting and READY of the other side.
    pub(crate) async fn skip_hello(&mut self) {
        let greeting = self.bytes(64).await.unwrap();
        assert_eq!(greeting[..12], [0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 3, 1]);
        let (flags, body) = self.frame().await.unwrap();
        assert_eq!(flags, 4);
        assert!(matches!(Command::parse(&body), Ok(Command::Ready(_))));
    }

    /// The next message or answer; `None` when the other side has hung up.
    pub(crate) async fn next(&mut self) -> Option<Seen> {
        let mut frames = Vec::new();
        loop {
            let (flags, body) = self.frame().await?;
            if flags & 4 != 0 {
                assert!(frames.is_empty(), "a command in the middle of a message");
                match Command::parse(&body).unwrap() {
                    Command::Pong => return Some(Seen::Pong(body[5..].to_vec())),
                    Command::Error(reason) => return Some(Seen::Error(String::from_utf8_lossy(reason).into())),
                    other => panic!("{other:?}"),
                }
            }
            frames.push(body);
            if flags & MORE == 0 {
                return Some(Seen::Message(frames));
            }
        }
    }

    /// Key and content of the next message.
    pub(crate) async fn message(&mut self) -> (String, Vec<u8>) {
        match self.next().await {
            Some(Seen::Message(frames)) => {
                let [key, content]: [Vec<u8>; 2] = frames.try_into().unwrap();
                (String::from_utf8(key).unwrap(), content)
            }
            other => panic!("{other:?}"),
        }
    }

    /// Waits for the other side to hang up.
    pub(crate) async fn is_hung_up_on(&mut self) {
        while self.bytes(1).await.is_some() {}
    }
}

/// A request as REQ sends it.
pub(crate) fn request(body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_frame(&mut bytes, MORE, b"");
    put_frame(&mut bytes, 0, body);
    bytes
}

/// Makes sure that these helpers speak ZMTP themselves.
#[test]
fn hello_is_understood() {
    let mut connection = Connection::new(Settings::new(SocketType::Pub, 1000));
    assert!(matches!(connection.next(&mut &hello(0, "SUB")[..]), Ok(Some(Event::Ready(peer))) if peer.minor == 0));
}
