//! One connection: how it is made, and the task that reads and writes as long as it lives.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use parking_lot::Mutex;
use rumqttc::tokio_rustls::TlsConnector;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval_at, timeout};

use crate::delivery::{Fault, Receipt};
use crate::tls;

use super::config::{MqttOptions, Qos, Version};
use super::decode::{self, Incoming, ProtocolError, ServerLimits};
use super::encode::{put_connect, put_ping};
use super::error;
use super::status;
use super::window::{Acknowledged, Window};

/// The longest packet that a server may send us. What it has to say is short; only its reasons in words are not bounded.
const RECEIVE_LIMIT_BYTES: u32 = 64 << 10;

/// The first byte of the answer to CONNECT.
const CONNACK: u8 = 0x20;

/// What is written at once, at least, while there is more to come: beyond this the cost of a system call no longer counts.
pub(super) const WRITE_BYTES: usize = 32 << 10;

/// How much may wait to be written. The server's window bounds it in messages, this in bytes, and at QoS 0 nothing else does.
pub(super) const OUT_BYTES: usize = 256 << 10;

/// What sender, receipts and the connection's task have in common.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) state: Mutex<State>,
    /// Wakes the task: there is something to write.
    pub(super) to_write: Notify,
    /// Wakes the sender: there may be room.
    pub(super) room: Notify,
    /// Wakes the receipts: there are some, or an end.
    pub(super) told: Notify,
}

#[derive(Debug)]
pub(super) struct State {
    /// Whole packets that wait to be written.
    pub(super) out: BytesMut,
    pub(super) window: Window,
    pub(super) receipts: Vec<Receipt>,
    /// Set when we have said goodbye and only wait for the server to hang up.
    pub(super) closing: bool,
    /// Why the connection has ended.
    pub(super) fault: Option<Fault>,
    /// Whether anything has come since the last look at the clock.
    heard: bool,
    /// Whether anything was written since then; only to keep the server content.
    wrote: bool,
    /// Whether a write that the server is slow to take has gone on since then.
    progressed: bool,
}

impl Shared {
    fn end(&self, fault: Fault) {
        self.state.lock().fault.get_or_insert(fault);
        self.told.notify_one();
        self.room.notify_one();
    }
}

/// The parts of a connection that was made.
pub(super) struct Connected {
    pub(super) shared: Arc<Shared>,
    pub(super) task: JoinHandle<()>,
    pub(super) limits: ServerLimits,
}

/// Connects, and starts the task.
pub(super) async fn connect(options: &MqttOptions) -> Result<Connected, Fault> {
    let server = options.server();
    let connecting = async {
        let tcp = TcpStream::connect((&*options.host, options.port))
            .await
            .map_err(|e| Fault::passing(format!("can't connect: {e}; is the server running there?")))?;
        // Batches are made here; Nagle's algorithm would only delay the last piece of each.
        let _ = tcp.set_nodelay(true);
        match &options.tls {
            None => {
                let (reader, writer) = tcp.into_split();
                shake_hands(options, reader, writer).await
            }
            Some(options_of_tls) => {
                // Read anew for each connection, so that a renewed certificate counts.
                let config = options_of_tls.load().await.map_err(|e| Fault::needs_help(e.to_string()))?;
                let name = ServerName::try_from(options.host.clone())
                    .map_err(|_| Fault::needs_help("the host is neither a DNS name nor an IP address"))?;
                let stream =
                    TlsConnector::from(Arc::new(config)).connect(name, tcp).await.map_err(|e| lost(&e, "TLS"))?;
                let (reader, writer) = tokio::io::split(stream);
                shake_hands(options, reader, writer).await
            }
        }
    };
    match timeout(options.connect_timeout, connecting).await {
        Ok(result) => result.map_err(|fault| Fault { reason: format!("{server}: {}", fault.reason), ..fault }),
        Err(_) => Err(Fault::passing(format!(
            "{server}: no connection within {:?}; the server doesn't answer, or speaks something else there",
            options.connect_timeout
        ))),
    }
}

async fn shake_hands<R, W>(options: &MqttOptions, mut reader: R, mut writer: W) -> Result<Connected, Fault>
where
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin + Send + 'static,
{
    let qos1 = options.qos == Qos::AtLeastOnce;
    let mut out = BytesMut::new();
    let password = match options.password.clone() {
        None => None,
        Some(secret) => Some(
            tokio::task::spawn_blocking(move || secret.read())
                .await
                .map_err(|_| Fault::passing("the program ends"))?
                .map_err(|e| Fault::needs_help(format!("the password: {e}")))?,
        ),
    };
    put_connect(options, password, RECEIVE_LIMIT_BYTES, &mut out)?;
    let sent = async {
        writer.write_all(&out).await?;
        writer.flush().await
    };
    sent.await.map_err(|e| turned_away(options, &e))?;

    let mut buffer = BytesMut::with_capacity(16 << 10);
    let answer = loop {
        // What is no CONNACK may look like the beginning of a long packet, for which one could wait in vain.
        if let Some(first) = buffer.first().filter(|&&first| first != CONNACK) {
            return Err(Fault::passing(format!(
                "the server answered CONNECT with {first:#04x} where {CONNACK:#04x} is expected; is it an MQTT server?"
            )));
        }
        if let Some(packet) =
            decode::read(&mut buffer, options.version, RECEIVE_LIMIT_BYTES).map_err(|e| nonsense(&e))?
        {
            break packet;
        }
        if reader.read_buf(&mut buffer).await.map_err(|e| turned_away(options, &e))? == 0 {
            return Err(turned_away(options, &io::ErrorKind::UnexpectedEof.into()));
        }
    };
    let limits = match answer {
        Incoming::ConnAck { code: 0, limits, .. } => limits,
        Incoming::ConnAck { code, said, .. } => return Err(error::refused(options.version, code, &said)),
        other => {
            return Err(Fault::passing(format!("the server answered CONNECT with {other:?}; is it an MQTT server?")));
        }
    };
    if limits.qos0_only && qos1 {
        return Err(Fault::needs_help(
            "the server takes QoS 0 only, which confirms nothing; set qos = 0 if that will do",
        ));
    }
    if limits.no_retain && (options.retain_state || options.status_topic.is_some()) {
        return Err(Fault::needs_help(
            "the server keeps no retained messages; turn the status topic and retain_state off",
        ));
    }
    // Zero is forbidden.
    let window = limits.receive_maximum.unwrap_or(u16::MAX);
    if window == 0 {
        return Err(Fault::passing("the server's receive maximum is 0, which MQTT forbids"));
    }
    let keep_alive = limits
        .keep_alive_s
        .map_or(options.keep_alive, |seconds| options.keep_alive.min(Duration::from_secs(u64::from(seconds.max(1)))));

    let shared = Arc::new(Shared {
        state: Mutex::new(State {
            out: BytesMut::with_capacity(WRITE_BYTES),
            window: Window::new(window),
            receipts: Vec::new(),
            closing: false,
            fault: None,
            heard: true,
            wrote: true,
            progressed: false,
        }),
        to_write: Notify::new(),
        room: Notify::new(),
        told: Notify::new(),
    });
    if let Some(online) = status::publish(options, status::online(&options.client_id)) {
        let mut state = shared.state.lock();
        let packet_id = if qos1 { state.window.take_for_status() } else { 0 };
        online.put(packet_id, &mut state.out);
    }
    let connection = Connection { shared: shared.clone(), options: options.clone(), keep_alive };
    let task = tokio::spawn(connection.run(reader, buffer, writer));
    Ok(Connected { shared, task, limits })
}

/// The task of a connection.
struct Connection {
    shared: Arc<Shared>,
    options: MqttOptions,
    keep_alive: Duration,
}

impl Drop for Connection {
    /// However the task ends, those who wait for it hear of it.
    fn drop(&mut self) {
        self.shared.end(Fault::passing("the connection was given up"));
    }
}

impl Connection {
    async fn run<R, W>(self, reader: R, buffer: BytesMut, writer: W)
    where
        R: AsyncRead + Unpin + Send,
        W: AsyncWrite + Unpin + Send,
    {
        // Reading comes first: what has come counts before the clock does, and acknowledgements before an end.
        let fault = tokio::select! {
            biased;
            fault = self.read(reader, buffer) => fault,
            fault = self.write(writer) => fault,
            fault = self.watch() => fault,
        };
        let fault = Fault { reason: format!("{}: {}", self.options.server(), fault.reason), ..fault };
        tracing::debug!(client_id = %self.options.client_id, "MQTT connection ended: {}", fault.reason);
        self.shared.end(fault);
    }

    async fn read(&self, mut reader: impl AsyncRead + Unpin, mut buffer: BytesMut) -> Fault {
        loop {
            // The buffer may hold something from the handshake, so it is looked at before more is read.
            if let Err(fault) = self.take_in(&mut buffer) {
                return fault;
            }
            buffer.reserve(4 << 10);
            match reader.read_buf(&mut buffer).await {
                Ok(0) => return self.closed(),
                Ok(_) => {}
                Err(e) => return lost(&e, "reading"),
            }
        }
    }

    /// The server hung up. Only MQTT 5 has a way to say why.
    fn closed(&self) -> Fault {
        match self.options.version {
            Version::V5 => Fault::passing("the server closed the connection"),
            Version::V311 => Fault::passing(format!(
                "the server closed the connection; if it does so again and again, another client may be connected as `{}`, or an \
                 access rule may forbid a topic (version 5 would tell)",
                self.options.client_id
            )),
        }
    }

    /// Handles all packets that have come whole: one lock and one wake-up for all of them.
    fn take_in(&self, buffer: &mut BytesMut) -> Result<(), Fault> {
        let mut state = self.shared.state.lock();
        state.heard = true;
        let (was_full, mut result) = (state.window.is_full(), Ok(()));
        loop {
            match decode::read(buffer, self.options.version, RECEIVE_LIMIT_BYTES) {
                Ok(None) => break,
                Ok(Some(packet)) => result = self.handle(packet, &mut state),
                Err(e) => result = Err(nonsense(&e)),
            }
            if result.is_err() {
                break;
            }
        }
        let (told, room) = (!state.receipts.is_empty(), was_full && !state.window.is_full());
        drop(state);
        if told {
            self.shared.told.notify_one();
        }
        if room {
            self.shared.room.notify_one();
        }
        result
    }

    fn handle(&self, packet: Incoming, state: &mut State) -> Result<(), Fault> {
        match packet {
            Incoming::PubAck { packet_id, code, said } => {
                let rejection = (code >= 0x80).then(|| error::rejection(code, &said));
                match state.window.acknowledge(packet_id, rejection) {
                    Acknowledged::Letter(receipt) => state.receipts.push(receipt),
                    Acknowledged::Half | Acknowledged::Status(None) => {}
                    Acknowledged::Status(Some(rejection)) => tracing::warn!(
                        server = %self.options.server(),
                        topic = %self.options.status_topic.as_deref().unwrap_or_default(),
                        "the bridge's status can't be told: {rejection}"
                    ),
                    Acknowledged::Nothing => {
                        return Err(Fault::passing(format!(
                            "the server acknowledged packet {packet_id}, which is not on its way"
                        )));
                    }
                }
                Ok(())
            }
            Incoming::PingResp => Ok(()),
            Incoming::Disconnect { code, said } => Err(error::disconnected(code, &said)),
            Incoming::ConnAck { .. } => Err(Fault::passing("the server said CONNACK twice")),
        }
    }

    async fn write(&self, mut writer: impl AsyncWrite + Unpin) -> Fault {
        let mut batch = BytesMut::with_capacity(WRITE_BYTES);
        loop {
            let closing = {
                let mut state = self.shared.state.lock();
                std::mem::swap(&mut state.out, &mut batch);
                state.closing
            };
            if batch.is_empty() {
                if closing {
                    // The server hangs up when it has read this, and reading ends with that.
                    if let Err(e) = writer.shutdown().await {
                        return lost(&e, "closing");
                    }
                    std::future::pending::<()>().await;
                }
                self.shared.to_write.notified().await;
                continue;
            }
            self.shared.room.notify_one();
            let mut rest = &batch[..];
            while !rest.is_empty() {
                match writer.write(rest).await {
                    Ok(0) => return Fault::passing("the connection takes nothing more"),
                    Ok(bytes) => rest = &rest[bytes..],
                    Err(e) => return lost(&e, "writing"),
                }
                let mut state = self.shared.state.lock();
                state.wrote = true;
                state.progressed |= !rest.is_empty();
            }
            if let Err(e) = writer.flush().await {
                return lost(&e, "writing");
            }
            // What one huge letter needed is given back.
            if batch.capacity() > 2 * OUT_BYTES {
                batch = BytesMut::with_capacity(WRITE_BYTES);
            }
            batch.clear();
        }
    }

    /// Asks whether the server lives where nothing else shows it, and notices when it doesn't answer.
    ///
    /// What counts as life is what comes from it. While it is slow to take a long write, what it takes counts, too: the
    /// question stands in the queue behind that.
    async fn watch(&self) -> Fault {
        let period = self.keep_alive / 2;
        let mut clock = interval_at(tokio::time::Instant::now() + period, period);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut asked = false;
        loop {
            clock.tick().await;
            let mut state = self.shared.state.lock();
            if asked && !state.heard && !state.progressed {
                return Fault::passing(format!("the server has been silent for {period:?}, although it was asked"));
            }
            if !state.heard || !state.wrote {
                // One question at a time: to a server that reads nothing they would only pile up.
                if !asked || state.heard {
                    put_ping(&mut state.out);
                }
                asked = true;
            } else {
                asked = false;
            }
            (state.heard, state.wrote, state.progressed) = (false, false, false);
            drop(state);
            self.shared.to_write.notify_one();
        }
    }
}

/// What it means when a server hangs up instead of answering CONNECT. It does that to who speaks another language.
fn turned_away(options: &MqttOptions, error: &io::Error) -> Fault {
    let fault = lost(error, "CONNECT");
    if fault.needs_help {
        return fault;
    }
    let guess = match options.tls {
        None => "it may speak TLS on this port (mqtts), or another version of MQTT",
        Some(_) => "it may speak another version of MQTT",
    };
    Fault::passing(format!("the server closed the connection instead of answering CONNECT ({error}); {guess}"))
}

/// What an error of the connection means.
fn lost(error: &io::Error, at: &str) -> Fault {
    match tls::trouble(error) {
        Some(trouble) => Fault::needs_help(trouble),
        None if at == "TLS" => {
            Fault::passing(format!("the connection was lost in TLS: {error}; does this port speak TLS?"))
        }
        None => Fault::passing(format!("the connection was lost in {at}: {error}")),
    }
}

fn nonsense(error: &ProtocolError) -> Fault {
    Fault::passing(format!("what the server sent is no MQTT: {error}"))
}
