//! What a bridge to an MQTT server is told.

use std::time::Duration;

use crate::secret::Secret;
use crate::tls::TlsOptions;

/// The version of the protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// 5
    #[default]
    V5,
    /// 3.1.1, which can't refuse: see the [module's guarantees](super#guarantees).
    V311,
}

/// The quality of service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Qos {
    /// 0: the message counts as delivered once it is handed to the connection.
    AtMostOnce,
    /// 1: the message is confirmed by the server.
    #[default]
    AtLeastOnce,
}

/// Where an MQTT server is, who we are to it, and what is published besides events.
///
/// ```
/// use hookbus_bridges::mqtt::{MqttOptions, Qos, Version, status_topic};
///
/// let options = MqttOptions::new("127.0.0.1", 1883, "hookbus-home-frontend1")
///     .version(Version::V311)
///     .qos(Qos::AtLeastOnce)
///     .status_topic(status_topic("hookbus", "hookbus-home-frontend1"));
/// assert_eq!(options.status_topic.as_deref(), Some("hookbus/status/hookbus-home-frontend1"));
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct MqttOptions {
    /// A host name or IP address; with TLS it is what the server's certificate must be for.
    pub host: String,
    /// 1883 by custom, 8883 with TLS.
    pub port: u16,
    /// TLS, if that is spoken.
    pub tls: Option<TlsOptions>,
    /// 5 unless set.
    pub version: Version,
    /// 1 unless set.
    pub qos: Qos,
    /// The name by which the server knows us. Two clients of one name throw each other out.
    pub client_id: String,
    /// The user, if the server asks for one.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<Secret>,
    /// How long the connection may be silent: a server that says nothing for this long although it was asked is taken for dead.
    /// 30 s unless set; from 1 s to 65,535 s. A server may ask for a shorter one.
    pub keep_alive: Duration,
    /// How long connecting may take in all: name, TCP, TLS, CONNECT. 20 s unless set.
    pub connect_timeout: Duration,
    /// Where it is told, retained, whether we are connected; see [`status_topic`]. Nowhere unless set.
    pub status_topic: Option<String>,
    /// Whether the server keeps the current state of each OpenNebula object, retained, for those who subscribe later; see
    /// the [module](super#state-topics). Off unless set.
    pub retain_state: bool,
    /// The longest packet in bytes that is sent, for servers that don't say what they take: those that speak 3.1.1, and
    /// mosquitto's `message_size_limit`. No limit but the protocol's unless set.
    pub packet_limit_bytes: Option<usize>,
}

impl MqttOptions {
    /// A server, and the name that we have there.
    pub fn new(host: impl Into<String>, port: u16, client_id: impl Into<String>) -> Self {
        MqttOptions {
            host: host.into(),
            port,
            tls: None,
            version: Version::default(),
            qos: Qos::default(),
            client_id: client_id.into(),
            user: None,
            password: None,
            keep_alive: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(20),
            status_topic: None,
            retain_state: false,
            packet_limit_bytes: None,
        }
    }

    /// Speaks TLS.
    #[must_use]
    pub fn tls(mut self, options: TlsOptions) -> Self {
        self.tls = Some(options);
        self
    }

    /// Sets the version.
    #[must_use]
    pub fn version(mut self, version: Version) -> Self {
        self.version = version;
        self
    }

    /// Sets the quality of service.
    #[must_use]
    pub fn qos(mut self, qos: Qos) -> Self {
        self.qos = qos;
        self
    }

    /// Sets user and password.
    #[must_use]
    pub fn login(mut self, user: impl Into<String>, password: Option<Secret>) -> Self {
        self.user = Some(user.into());
        self.password = password;
        self
    }

    /// Sets how long the connection may be silent.
    #[must_use]
    pub fn keep_alive(mut self, keep_alive: Duration) -> Self {
        self.keep_alive = keep_alive;
        self
    }

    /// Sets how long connecting may take.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets where our status is told.
    #[must_use]
    pub fn status_topic(mut self, topic: impl Into<String>) -> Self {
        self.status_topic = Some(topic.into());
        self
    }

    /// Has the server keep the current state of each object.
    #[must_use]
    pub fn retain_state(mut self, retain: bool) -> Self {
        self.retain_state = retain;
        self
    }

    /// Sets the longest packet that is sent.
    #[must_use]
    pub fn packet_limit_bytes(mut self, bytes: usize) -> Self {
        self.packet_limit_bytes = Some(bytes);
        self
    }

    /// The keep alive in seconds, if it can be said in a CONNECT.
    pub(super) fn keep_alive_s(&self) -> Option<u16> {
        u16::try_from(self.keep_alive.as_secs()).ok().filter(|&seconds| seconds > 0)
    }

    /// Where it is, for people.
    pub(super) fn server(&self) -> String {
        let scheme = if self.tls.is_some() { "mqtts" } else { "mqtt" };
        if self.host.contains(':') {
            format!("{scheme}://[{}]:{}", self.host, self.port)
        } else {
            format!("{scheme}://{}:{}", self.host, self.port)
        }
    }
}

/// The topic of a client's status: `<root>/status/<client id>`. No event has `status` behind the root, so that no key
/// collides with it, and who subscribes to `<root>/#` sees it. The dots of a root are levels here, as in the names of events;
/// what can't stand in a level is percent-encoded.
pub fn status_topic(root: &str, client_id: &str) -> String {
    let mut topic = root.replace('.', "/");
    topic.push_str("/status/");
    for byte in client_id.bytes() {
        if byte.is_ascii_graphic() && !matches!(byte, b'%' | b'*' | b'>' | b'+' | b'#' | b'/') {
            topic.push(char::from(byte));
        } else {
            topic.push_str(&format!("%{byte:02X}"));
        }
    }
    topic
}
