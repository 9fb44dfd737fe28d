//! What a webhook bridge is told.

use std::path::PathBuf;
use std::time::Duration;

use crate::cloudevents::{Encoder, Sources};
use crate::secret::Secret;
use crate::tls::TlsOptions;

/// What a webhook bridge is told. Templates, conditions and files are read when it connects; [`check_condition`](super::check_condition) and its
/// neighbours look at them before.
#[derive(Clone, Debug)]
pub struct WebhookOptions {
    /// Where requests go: `https://HOST[:PORT]/...`. What stands behind host and port may be a template. It may be a secret as a whole; user and
    /// password in it are sent as `Authorization: Basic`.
    pub url: Secret,
    /// The method.
    pub method: Box<str>,
    /// Headers, whose values may be templates.
    pub headers: Vec<(Box<str>, Box<str>)>,
    /// The body; the letter's unless set.
    pub body: Option<Body>,
    /// The media type of a body that is set; `application/json` unless set.
    pub content_type: Option<Box<str>>,
    /// Who we are.
    pub login: Login,
    /// What templates know as `secrets.NAME`.
    pub secrets: Vec<(Box<str>, Secret)>,
    /// Which events are sent, in jq's language; all unless set.
    pub when: Option<Box<str>>,
    /// The files for TLS.
    pub tls: TlsOptions,
    /// How long one request may take, from the first byte sent to the last received, or until there is a connection.
    pub timeout: Duration,
    /// How many requests may be under way, each over a connection of its own. With more than one the order isn't kept.
    pub in_flight: usize,
    /// The largest body that is sent.
    pub body_max_bytes: usize,
    /// Answers that mean that the server has it, besides 200 to 299.
    pub accept_status: Vec<u16>,
    /// Answers that mean that it will never take this event, besides those that mean that anyway.
    pub reject_status: Vec<u16>,
    /// What templates and conditions know of an event, whatever the format of letters.
    pub encoder: Encoder,
}

impl WebhookOptions {
    /// The options of a bridge to this URL, everything else as it is unless set.
    pub fn new(url: Secret) -> Self {
        WebhookOptions {
            url,
            method: "POST".into(),
            headers: Vec::new(),
            body: None,
            content_type: None,
            login: Login::Anonymous,
            secrets: Vec::new(),
            when: None,
            tls: TlsOptions::default(),
            timeout: Duration::from_secs(10),
            in_flight: 1,
            body_max_bytes: 1 << 20,
            accept_status: Vec::new(),
            reject_status: Vec::new(),
            encoder: Encoder::new(Sources::default()),
        }
    }
}

/// A template for the body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// The text itself.
    Text(Box<str>),
    /// A file with it.
    File(PathBuf),
}

/// Who we are to the server.
#[derive(Clone, Debug, Default)]
pub enum Login {
    /// Who the URL says; else nobody.
    #[default]
    Anonymous,
    /// `Authorization: Bearer`.
    Bearer(Secret),
    /// `Authorization: Basic`.
    Basic {
        /// The user.
        user: String,
        /// The password.
        password: Secret,
    },
}
