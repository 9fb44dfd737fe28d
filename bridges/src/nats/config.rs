//! What a NATS bridge is told.

use std::time::Duration;

use crate::secret::Secret;
use crate::tls::TlsOptions;

/// What a NATS bridge is told.
#[derive(Clone, Debug)]
pub struct NatsOptions {
    /// Where the servers are: `nats://host:4222`, or `tls://host:4222` for no connection without TLS. Of several one is taken at
    /// random, and the next where that fails. User and password, or a token, may stand in the first one's URL.
    pub servers: Vec<String>,
    /// What the connection is called in the server's lists.
    pub name: String,
    /// Who we are.
    pub login: Login,
    /// The files for TLS. TLS is used where the URL or the server asks for it; with one of these files set there is no connection
    /// without it.
    pub tls: TlsOptions,
    /// What subjects begin with; the stream has to take some of what is below it.
    pub root: String,
    /// JetStream or core.
    pub mode: Mode,
    /// What the inboxes for acknowledgements begin with. Accounts with narrow permissions often have one of their own.
    pub inbox_prefix: String,
    /// How long one step of connecting may take: to connect to one address, to be let in, to be told about the stream.
    pub step_timeout: Duration,
    /// How often a connection without traffic is probed. After two probes without an answer it is given up.
    pub ping_interval: Duration,
}

impl Default for NatsOptions {
    fn default() -> Self {
        NatsOptions {
            servers: vec!["nats://127.0.0.1:4222".into()],
            name: "hookbus".into(),
            login: Login::Anonymous,
            tls: TlsOptions::default(),
            root: "hookbus".into(),
            mode: Mode::JetStream(StreamOptions::default()),
            inbox_prefix: "_INBOX".into(),
            step_timeout: Duration::from_secs(5),
            ping_interval: Duration::from_secs(10),
        }
    }
}

/// Who we are to the server.
#[derive(Clone, Debug, Default)]
pub enum Login {
    /// Who the URL says; else nobody.
    #[default]
    Anonymous,
    /// A user and a password.
    Password {
        /// The user.
        user: String,
        /// The password.
        password: Secret,
    },
    /// A token.
    Token(Secret),
    /// The seed of an nkey (it begins with `SU`).
    Nkey(Secret),
    /// The content of a creds file, as `nsc` writes it: a JWT and the seed of an nkey.
    Credentials(Secret),
}

/// How events are published.
#[derive(Clone, Debug)]
pub enum Mode {
    /// To whoever subscribes at that moment: at most once.
    Core,
    /// To a stream that acknowledges: at least once.
    JetStream(StreamOptions),
}

/// The stream that events go to. A stream of this name that exists is used as it is; else it is made, with what follows the name.
#[derive(Clone, Debug)]
pub struct StreamOptions {
    /// Its name.
    pub name: String,
    /// The subjects that it takes; everything below the root if there are none.
    pub subjects: Vec<String>,
    /// How old events may become in it; zero is no limit.
    pub max_age: Duration,
    /// What it may hold, in bytes, before the oldest go; 0 is no limit.
    pub max_bytes: u64,
    /// How long it remembers the ids of events, to tell repetitions; cut to `max_age`.
    pub duplicate_window: Duration,
    /// On how many servers of a cluster it is kept.
    pub replicas: usize,
}

impl Default for StreamOptions {
    fn default() -> Self {
        StreamOptions {
            name: "HOOKBUS".into(),
            subjects: Vec::new(),
            max_age: Duration::from_secs(7 * 24 * 3600),
            max_bytes: 1 << 30,
            duplicate_window: Duration::from_secs(120),
            replicas: 1,
        }
    }
}
