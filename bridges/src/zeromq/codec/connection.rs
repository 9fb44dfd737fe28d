//! One connection, without its socket: bytes go in, events come out, and so do the bytes that must be answered.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use super::command::{Command, Metadata, put_error, put_pong};
use super::error::{ProtocolError, printable};
use super::frame::FrameReader;
use super::greeting::{Greeting, GreetingReader};
use super::mechanism::{Handshake, Mechanism, Null};

/// What we send without being asked for more is bounded: a peer that pings and never reads is left without answers once
/// so many bytes wait for it.
const MAX_OUTPUT_BYTES: usize = 1024;

/// READY of any peer is far below; a peer must not make us hold more before it has said who it is.
const HANDSHAKE_FRAME_BYTES: usize = 64 << 10;

/// The socket types that we play, and whom they talk to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SocketType {
    /// Publishes.
    Pub,
    /// Subscribes.
    Sub,
    /// Answers.
    Rep,
    /// Asks.
    Req,
}

impl SocketType {
    /// The name in the metadata.
    pub fn name(self) -> &'static str {
        match self {
            SocketType::Pub => "PUB",
            SocketType::Sub => "SUB",
            SocketType::Rep => "REP",
            SocketType::Req => "REQ",
        }
    }

    /// Whether a peer with a socket of that type can talk to us.
    pub fn accepts(self, theirs: &[u8]) -> bool {
        match self {
            SocketType::Pub => matches!(theirs, b"SUB" | b"XSUB"),
            SocketType::Sub => matches!(theirs, b"PUB" | b"XPUB"),
            SocketType::Rep => matches!(theirs, b"REQ" | b"DEALER"),
            SocketType::Req => matches!(theirs, b"REP" | b"ROUTER"),
        }
    }
}

/// How our side of a connection is set up.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What we are.
    pub socket_type: SocketType,
    /// What we call ourselves; usually nothing.
    pub identity: Vec<u8>,
    /// The longest frame that we take, in bytes of its body.
    pub frame_limit: usize,
    /// The security mechanism.
    pub mechanism: Arc<dyn Mechanism>,
}

impl Settings {
    /// A socket of that type with the NULL mechanism and no identity.
    pub fn new(socket_type: SocketType, frame_limit: usize) -> Self {
        Settings { socket_type, identity: Vec::new(), frame_limit, mechanism: Arc::new(Null) }
    }
}

/// Who the peer is, as it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerInfo {
    /// The minor version of ZMTP 3 that it speaks. A peer with 0 expects subscriptions as messages.
    pub minor: u8,
    /// The type of its socket.
    pub socket_type: String,
    /// What it calls itself; usually nothing.
    pub identity: Vec<u8>,
    /// Whether it greets as libzmq does, and those made after it. They count their subscriptions themselves: two of a kind go
    /// out as two SUBSCRIBE, and both cancelled as one CANCEL. From others, two want two.
    pub libzmq: bool,
}

/// What came out of the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The handshake is over. Once, before all others.
    Ready(PeerInfo),
    /// A frame of a message.
    Frame {
        /// Whether more frames of the message follow.
        more: bool,
        /// What is in it.
        body: Cow<'a, [u8]>,
    },
    /// The peer of a PUB socket subscribes, in either form.
    Subscribe(Cow<'a, [u8]>),
    /// The peer of a PUB socket takes a subscription back, in either form.
    Cancel(Cow<'a, [u8]>),
    /// The peer asked whether we live; the answer is in the output already.
    Ping {
        /// For how long the peer will be silent at most; zero says nothing.
        ttl: Duration,
    },
    /// The peer lives.
    Pong,
}

/// The protocol of one connection: greeting, handshake, then traffic. It does no I/O.
///
/// Feed it with [`next`](Connection::next) until that yields `None`, and send what is in
/// [`output`](Connection::output), at first and after each feeding, between messages of your own. Traffic from our side
/// may begin with [`Event::Ready`].
///
/// It holds at most one frame that is not complete, within [`Settings::frame_limit`], and grows with what has arrived,
/// not with what was announced. After an error the output may hold an ERROR command for the peer; nothing more can be
/// fed.
///
/// ```
/// use hookbus_bridges::zeromq::codec::{Connection, Event, Settings, SocketType};
///
/// let mut publisher = Connection::new(Settings::new(SocketType::Pub, 65536));
/// let mut subscriber = Connection::new(Settings::new(SocketType::Sub, 65536));
/// let said = std::mem::take(subscriber.output());
/// assert_eq!(publisher.next(&mut &said[..]), Ok(None));
/// let answered = std::mem::take(publisher.output());
/// match subscriber.next(&mut &answered[..]) {
///     Ok(Some(Event::Ready(peer))) => assert_eq!(peer.socket_type, "PUB"),
///     other => panic!("{other:?}"),
/// }
/// ```
#[derive(Debug)]
pub struct Connection {
    settings: Settings,
    state: State,
    frames: FrameReader,
    output: Vec<u8>,
}

#[derive(Debug)]
enum State {
    Greeting(GreetingReader),
    Handshake { minor: u8, libzmq: bool, handshake: Box<dyn Handshake> },
    Traffic,
}

impl Connection {
    /// A connection that has just been made; our greeting is in the output.
    pub fn new(settings: Settings) -> Self {
        let mechanism = &settings.mechanism;
        let output = Greeting::ours(mechanism.name(), mechanism.as_server()).to_bytes().to_vec();
        let frames = FrameReader::new(HANDSHAKE_FRAME_BYTES.min(settings.frame_limit));
        Connection { settings, state: State::Greeting(GreetingReader::default()), frames, output }
    }

    /// Bytes to be sent: take them from the front as they go out. All of them before the next message of our own.
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// Whether the handshake is over.
    pub fn is_ready(&self) -> bool {
        matches!(self.state, State::Traffic)
    }

    /// How many bytes are held of a frame that is not complete.
    pub fn held_bytes(&self) -> usize {
        self.frames.held_bytes()
    }

    /// Takes bytes from the front of `input`; yields the next event, `None` when more input is needed.
    ///
    /// # Errors
    /// When the peer breaks the protocol or a limit, or refuses us: the connection must be closed.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, ProtocolError> {
        while !matches!(self.state, State::Traffic) {
            match self.shake_hands(input) {
                Ok(None) => {}
                Ok(Some(Progress::NeedInput)) => return Ok(None),
                Ok(Some(Progress::Done(peer))) => return Ok(Some(Event::Ready(peer))),
                Err(error) => {
                    self.tell(&error);
                    return Err(error);
                }
            }
        }
        while let Some(frame) = self.frames.next(input)? {
            let event = if frame.command {
                self.command(&frame.body)?
            } else if self.settings.socket_type == SocketType::Pub {
                subscription(&frame.body)
            } else {
                Some(Event::Frame { more: frame.more, body: frame.body })
            };
            if event.is_some() {
                return Ok(event);
            }
        }
        Ok(None)
    }

    /// One step of greeting or handshake; `None` when it went on and more may be there.
    fn shake_hands(&mut self, input: &mut &[u8]) -> Result<Option<Progress>, ProtocolError> {
        match &mut self.state {
            State::Greeting(reader) => {
                let Some(greeting) = reader.next(input)? else { return Ok(Some(Progress::NeedInput)) };
                let mechanism = &self.settings.mechanism;
                greeting.expect_mechanism(mechanism.name())?;
                let mut handshake = mechanism.begin();
                handshake.start(&self.metadata(), &mut self.output);
                // Who speaks a later major version speaks 3.1 with us.
                let minor = if greeting.major > 3 { 1 } else { greeting.minor };
                self.state = State::Handshake { minor, libzmq: greeting.libzmq, handshake };
                Ok(None)
            }
            State::Handshake { .. } => {
                let Some(frame) = self.frames.next(input)? else { return Ok(Some(Progress::NeedInput)) };
                if !frame.command {
                    return Err(ProtocolError::EarlyMessage);
                }
                let ours = self.metadata();
                let State::Handshake { minor, libzmq, handshake } = &mut self.state else {
                    unreachable!("matched above")
                };
                let command = Command::parse(&frame.body)?;
                let Some(theirs) = handshake.command(command, &ours, &mut self.output)? else { return Ok(None) };
                let socket_type = self.settings.socket_type;
                if !socket_type.accepts(&theirs.socket_type) {
                    let theirs = printable(&theirs.socket_type);
                    return Err(ProtocolError::WrongSocketType { theirs, ours: socket_type.name() });
                }
                let peer = PeerInfo {
                    minor: *minor,
                    socket_type: printable(&theirs.socket_type),
                    identity: theirs.identity,
                    libzmq: *libzmq,
                };
                self.frames.set_limit(self.settings.frame_limit);
                self.state = State::Traffic;
                Ok(Some(Progress::Done(peer)))
            }
            State::Traffic => Ok(None),
        }
    }

    fn metadata(&self) -> Metadata {
        Metadata { socket_type: self.settings.socket_type.name().into(), identity: self.settings.identity.clone() }
    }

    /// Tells a peer that speaks ZMTP why it is refused; one that doesn't would not understand.
    fn tell(&mut self, error: &ProtocolError) {
        match error {
            ProtocolError::WrongSocketType { .. } => put_error(&mut self.output, "Invalid socket type"),
            ProtocolError::UnexpectedCommand { .. } | ProtocolError::EarlyMessage => {
                put_error(&mut self.output, "Handshake expected");
            }
            _ => {}
        }
    }

    fn command<'a>(&mut self, body: &Cow<'a, [u8]>) -> Result<Option<Event<'a>>, ProtocolError> {
        let subscribable = self.settings.socket_type == SocketType::Pub;
        Ok(match Command::parse(body)? {
            Command::Subscribe(prefix) if subscribable => Some(Event::Subscribe(tail(body, prefix.len()))),
            Command::Cancel(prefix) if subscribable => Some(Event::Cancel(tail(body, prefix.len()))),
            Command::Ping { ttl, context } => {
                if self.output.len() < MAX_OUTPUT_BYTES {
                    put_pong(&mut self.output, context);
                }
                Some(Event::Ping { ttl })
            }
            Command::Pong => Some(Event::Pong),
            Command::Error(reason) => return Err(ProtocolError::Refused { reason: printable(reason) }),
            Command::Subscribe(_) | Command::Cancel(_) | Command::Ready(_) | Command::Unknown { .. } => None,
        })
    }
}

enum Progress {
    NeedInput,
    Done(PeerInfo),
}

/// A message to a PUB socket is a subscription in the form of ZMTP 3.0; anything else (an XSUB can send what it likes)
/// has no reader and is passed over.
fn subscription<'a>(body: &Cow<'a, [u8]>) -> Option<Event<'a>> {
    let length = body.len().checked_sub(1)?;
    match body[0] {
        1 => Some(Event::Subscribe(tail(body, length))),
        0 => Some(Event::Cancel(tail(body, length))),
        _ => None,
    }
}

/// The last `length` bytes, borrowed where the whole is.
fn tail<'a>(body: &Cow<'a, [u8]>, length: usize) -> Cow<'a, [u8]> {
    let start = body.len() - length;
    match body {
        Cow::Borrowed(body) => Cow::Borrowed(&body[start..]),
        Cow::Owned(body) => Cow::Owned(body[start..].to_vec()),
    }
}
