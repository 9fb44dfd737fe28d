//! The sections: one documented struct each, with its defaults.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use hookbus_bridges::http::{ServerTls, TokenFiles};
use hookbus_bridges::zeromq::Endpoint;
use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize, Serializer};

use super::{ByteSize, Overflow, Period, Url};

/// `[broker]`: the queues inside hookbus.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct BrokerConfig {
    /// What all queues may hold together; beyond it the subscriber that is farthest behind overflows first. At least 1 MiB.
    #[serde(deserialize_with = "at_least_1_mib")]
    pub(crate) max_bytes: ByteSize,
}

impl Default for BrokerConfig {
    fn default() -> Self {
        BrokerConfig { max_bytes: ByteSize::mib(512) }
    }
}

/// `[zeromq]`: the two ports of OpenNebula's event queue.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct ZeromqConfig {
    /// Whether the two ports are served. Unless it is said, they aren't where a source of type zeromq is configured: that
    /// one usually connects to the original driver, which has them.
    pub(crate) enabled: bool,
    /// Where subscribers connect: `tcp://HOST:PORT`, HOST being an address, a name or `*`; or `ipc://PATH`.
    #[serde(deserialize_with = "endpoint", serialize_with = "as_text")]
    pub(crate) publisher: Endpoint,
    /// Where hook executors report results; as above.
    #[serde(deserialize_with = "endpoint", serialize_with = "as_text")]
    pub(crate) logger: Endpoint,
    /// The high-water mark of each subscriber in messages, after which it loses the newest and is told so; 0 is none. It
    /// is a hundred times the original's, since a message is held once for all subscribers.
    pub(crate) hwm: usize,
    /// The same in bytes; 0 is none.
    pub(crate) hwm_bytes: ByteSize,
}

impl Default for ZeromqConfig {
    fn default() -> Self {
        let local = |port| Endpoint::tcp(Ipv4Addr::LOCALHOST, port);
        ZeromqConfig {
            enabled: true,
            publisher: local(2101),
            logger: local(2102),
            hwm: 100_000,
            hwm_bytes: ByteSize::mib(256),
        }
    }
}

/// `[http]`: the daemon's socket, and TCP beside it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct HttpConfig {
    /// The Unix socket. Without it, the first of [`default_sockets`](super::default_sockets) that can be made.
    pub(crate) socket: Option<PathBuf>,
    /// Whose members may use the socket, besides the daemon's own user and root.
    pub(crate) group: Option<String>,
    /// TCP addresses. Those beyond loopback need TLS.
    #[serde(deserialize_with = "addresses")]
    pub(crate) listen: Vec<SocketAddr>,
    /// The names that TCP is asked by, besides localhost and the addresses.
    #[serde(deserialize_with = "hosts")]
    pub(crate) hosts: Vec<String>,
    /// A file with tokens, one on a line, that let do everything on TCP.
    pub(crate) token_file: Option<PathBuf>,
    /// The same for tokens that let follow events and see the status.
    pub(crate) read_token_file: Option<PathBuf>,
    /// The server's certificate, and what leads from it to its authority. With it all addresses have TLS.
    pub(crate) cert_file: Option<PathBuf>,
    /// The certificate's key.
    pub(crate) key_file: Option<PathBuf>,
    /// The authorities whose certificates let a client do everything on TCP.
    pub(crate) client_ca_file: Option<PathBuf>,
}

impl HttpConfig {
    /// The files with tokens.
    pub(crate) fn tokens(&self) -> TokenFiles {
        TokenFiles { read: self.read_token_file.clone(), write: self.token_file.clone() }
    }

    /// What makes TLS of TCP, if something does.
    pub(crate) fn tls(&self) -> Option<ServerTls> {
        let (Some(cert_file), Some(key_file)) = (self.cert_file.clone(), self.key_file.clone()) else { return None };
        Some(ServerTls { cert_file, key_file, client_ca_file: self.client_ca_file.clone() })
    }

    /// Who can do more on TCP than look at health and metrics, for the log.
    pub(crate) fn lets_in(&self) -> String {
        let ways = [
            (&self.read_token_file, "read tokens"),
            (&self.token_file, "write tokens"),
            (&self.client_ca_file, "client certificates"),
        ];
        let ways: Vec<_> = ways.iter().filter(|(file, _)| file.is_some()).map(|(_, way)| *way).collect();
        if ways.is_empty() { "health and metrics".to_owned() } else { ways.join(", ") }
    }
}

/// `[ganeti]`: what nodes report of Ganeti's hooks.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct GanetiConfig {
    /// How far apart in time the reports of one operation may be.
    pub(crate) window: Period,
    /// What the cluster calls this host, which decides where hooks of TYPE ganeti run; what the hook client on this host is told, or else the name of the host, unless set.
    pub(crate) node: Option<String>,
    /// The spool of the hook client on this host, which is taken in.
    pub(crate) spool: PathBuf,
    /// The bridge of type nats at whose server checks are asked whether an operation may begin, at `hookbus-gate.<cluster>.<operation>`.
    pub(crate) gate_nats: Option<String>,
    /// An HTTP server that is asked the same, by POST.
    pub(crate) gate_url: Option<Url>,
    /// A file with the token that is sent to it as `Authorization: Bearer`.
    pub(crate) gate_token_file: Option<PathBuf>,
    /// The certificates that its own one is checked with; the system's unless set.
    pub(crate) gate_ca_file: Option<PathBuf>,
}

impl Default for GanetiConfig {
    fn default() -> Self {
        GanetiConfig {
            window: Period::seconds(60),
            node: None,
            spool: "/var/spool/hookbus".into(),
            gate_nats: None,
            gate_url: None,
            gate_token_file: None,
            gate_ca_file: None,
        }
    }
}

/// `[journal]`: events on disk.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct JournalConfig {
    /// Whether there is one. Unless it is said, there is where something needs it: a bridge that goes on where it was, `spill`.
    pub(crate) enabled: bool,
    /// Its directory; `journal` below the state directory unless set.
    pub(crate) path: Option<PathBuf>,
    /// What it may hold before the oldest go. At least 4 MiB.
    #[serde(deserialize_with = "at_least_4_mib")]
    pub(crate) max_bytes: ByteSize,
    /// How old events may become; 0 is no limit.
    pub(crate) max_age: Period,
    /// What an acknowledged event survives.
    pub(crate) durability: Durability,
}

impl Default for JournalConfig {
    fn default() -> Self {
        JournalConfig {
            enabled: false,
            path: None,
            max_bytes: ByteSize::mib(1024),
            max_age: Period::ZERO,
            durability: Durability::default(),
        }
    }
}

/// What an event that was acknowledged survives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Durability {
    /// A crash of the process.
    #[default]
    Os,
    /// The loss of power.
    Fsync,
}

/// `[hooks]`: commands that are run for events.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct HooksConfig {
    /// Every `*.tmpl` in it is a hook in OpenNebula's template syntax. Without it the daemon runs none.
    pub(crate) dir: Option<PathBuf>,
    /// Where a relative COMMAND is looked up.
    pub(crate) base_path: PathBuf,
    /// The same on the host of an event, for hooks with REMOTE.
    pub(crate) remote_base_path: PathBuf,
    /// How many run at once; at least 1.
    #[serde(deserialize_with = "at_least_one")]
    pub(crate) concurrency: usize,
    /// How many executions are kept for each hook.
    #[serde(deserialize_with = "at_least_one")]
    pub(crate) log_retention: usize,
    /// How long, at the most; 0 is for ever.
    pub(crate) log_max_age: Period,
    /// What is kept of standard output, and of standard error.
    pub(crate) output_max_bytes: ByteSize,
    /// A command that is asked every 5 s; hooks run only while it exits 0.
    pub(crate) run_if: Option<String>,
    /// How many events may wait for hooks; 0 is no limit.
    pub(crate) hwm: usize,
    /// The same in bytes; 0 is no limit.
    pub(crate) hwm_bytes: ByteSize,
    /// What happens beyond.
    pub(crate) overflow: Overflow,
}

impl Default for HooksConfig {
    fn default() -> Self {
        HooksConfig {
            dir: None,
            base_path: "/var/lib/one/remotes/hooks".into(),
            remote_base_path: "/var/tmp/one/hooks".into(),
            concurrency: 10,
            log_retention: 20,
            log_max_age: Period::ZERO,
            output_max_bytes: ByteSize::mib(1),
            run_if: None,
            hwm: 100_000,
            hwm_bytes: ByteSize::mib(256),
            overflow: Overflow::DropNewest,
        }
    }
}

/// `[limits]`: what is taken from outside before it is refused, so that nobody can make hookbus grow without bound.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct LimitsConfig {
    /// The longest line from oned; a longer one is skipped and told.
    pub(crate) line_bytes: ByteSize,
    /// The longest frame that a subscriber may send.
    pub(crate) publisher_frame_bytes: ByteSize,
    /// The longest frame that a hook executor may send.
    pub(crate) logger_frame_bytes: ByteSize,
    /// How many filters a subscriber may have, and how long they may be in all.
    pub(crate) filters: usize,
    pub(crate) filter_bytes: ByteSize,
    /// How many connections each ZeroMQ port takes.
    pub(crate) peers: usize,
    /// The longest body of an HTTP request.
    pub(crate) http_body_bytes: ByteSize,
    /// How many HTTP connections there may be, requests and followers of events together.
    #[serde(deserialize_with = "at_least_one")]
    pub(crate) http_connections: usize,
    /// How many dead letters are kept, and how many bytes of them; the oldest go first.
    pub(crate) dead_letters: usize,
    pub(crate) dead_letter_bytes: ByteSize,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        LimitsConfig {
            line_bytes: ByteSize::mib(256),
            publisher_frame_bytes: ByteSize::kib(64),
            logger_frame_bytes: ByteSize::mib(64),
            filters: 100_000,
            filter_bytes: ByteSize::mib(16),
            peers: 10_000,
            http_body_bytes: ByteSize::mib(64),
            http_connections: 2000,
            dead_letters: 100_000,
            dead_letter_bytes: ByteSize::mib(256),
        }
    }
}

/// `[log]`: where the program's own log goes. `RUST_LOG` overrides the level.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct LogConfig {
    /// The file that is appended to; standard error unless set.
    pub(crate) file: Option<PathBuf>,
    /// The least level that is logged.
    pub(crate) level: LogLevel,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogLevel {
    /// What needs somebody's attention.
    Error,
    /// Besides, what may.
    Warn,
    /// Besides, what changes: ports bound, peers that come and go.
    #[default]
    Info,
    /// Besides, what helps to find a mistake.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// The level as a directive of `RUST_LOG`.
    pub(crate) const fn directive(self) -> &'static str {
        match self {
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
            LogLevel::Trace => "trace",
        }
    }
}

fn at_least_1_mib<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ByteSize, D::Error> {
    at_least(ByteSize::mib(1), deserializer)
}

fn at_least_4_mib<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ByteSize, D::Error> {
    at_least(ByteSize::mib(4), deserializer)
}

fn at_least<'de, D: Deserializer<'de>>(least: ByteSize, deserializer: D) -> Result<ByteSize, D::Error> {
    let size = ByteSize::deserialize(deserializer)?;
    if size < least {
        return Err(D::Error::custom(format!("{size} is too little: nothing would fit; at least {least}")));
    }
    Ok(size)
}

pub(super) fn at_least_one<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    match usize::deserialize(deserializer)? {
        0 => Err(D::Error::custom("0 is too little: nothing would ever happen; at least 1")),
        number => Ok(number),
    }
}

fn endpoint<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Endpoint, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
}

fn as_text<S: Serializer>(endpoint: &Endpoint, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(endpoint)
}

/// Each element of a list has an error of its own, so that its place in the list is known.
fn addresses<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<SocketAddr>, D::Error> {
    let all = Vec::<String>::deserialize(deserializer)?;
    let address = |text: &String| {
        text.parse().map_err(|_| {
            D::Error::custom(format!("`{text}` is no address with a port; write \"127.0.0.1:2180\" or \"[::1]:2180\""))
        })
    };
    all.iter().map(address).collect()
}

fn hosts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let all = Vec::<String>::deserialize(deserializer)?;
    let is_name = |text: &&String| {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        text.parse::<IpAddr>().is_ok() || (!text.is_empty() && text.chars().all(plain) && !text.ends_with('.'))
    };
    match all.iter().find(|text| !is_name(text)) {
        None => Ok(all),
        Some(text) => Err(D::Error::custom(format!(
            "`{}` is no name of a host; write it without scheme, port and wildcards: \"bus.example.com\"",
            text.escape_debug()
        ))),
    }
}
