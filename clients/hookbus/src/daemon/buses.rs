//! What the configuration of a bridge means for the bus's own options.

use hookbus_bridges::amqp::{AmqpOptions, Unroutable as AmqpUnroutable};
use hookbus_bridges::cloudevents::Encoder;
use hookbus_bridges::mqtt::{MqttOptions, Qos, Version, status_topic};
use hookbus_bridges::nats::{Login, Mode, NatsOptions, StreamOptions};
use hookbus_bridges::secret::Secret;
use hookbus_bridges::tls::TlsOptions;
use hookbus_bridges::webhook::{Body, Login as HttpLogin, WebhookOptions};

use crate::config::{
    AmqpConfig, BridgeConfig, BridgeKind, MqttConfig, MqttVersion, NatsConfig, TlsFiles, Unroutable, Url, WebhookConfig,
};

/// NATS: a secret in the URL stays there, one in a file is read by the bus.
pub(super) fn nats(bridge: &BridgeConfig, config: &NatsConfig, host: &str) -> NatsOptions {
    let login = match config {
        NatsConfig { token_file: Some(path), .. } => Login::Token(Secret::File(path.clone())),
        NatsConfig { nkey_file: Some(path), .. } => Login::Nkey(Secret::File(path.clone())),
        NatsConfig { creds_file: Some(path), .. } => Login::Credentials(Secret::File(path.clone())),
        NatsConfig { password_file: Some(path), user, .. } => Login::Password {
            user: user.clone().or_else(|| bridge.url.user_decoded()).unwrap_or_default(),
            password: Secret::File(path.clone()),
        },
        _ => Login::Anonymous,
    };
    let server = match login {
        Login::Anonymous => bridge.url.reveal().to_owned(),
        _ => bridge.url.without_credentials(),
    };
    let mode = if config.jetstream {
        Mode::JetStream(StreamOptions {
            name: config.stream.clone(),
            subjects: config.subjects.clone(),
            max_age: config.stream_max_age.duration(),
            max_bytes: config.stream_max_bytes.bytes() as u64,
            ..StreamOptions::default()
        })
    } else {
        Mode::Core
    };
    NatsOptions {
        servers: vec![server],
        name: format!("hookbus {} on {host}", bridge.name),
        login,
        tls: tls(&bridge.tls),
        root: bridge.delivery.root.clone(),
        mode,
        ..NatsOptions::default()
    }
}

/// MQTT: without a client id of its own a bridge is known by its name and its host's.
pub(super) fn mqtt(bridge: &BridgeConfig, config: &MqttConfig, host: &str) -> MqttOptions {
    let secure = bridge.url.scheme() == "mqtts";
    let default_port = if secure { 8883 } else { 1883 };
    // The configuration was checked; a port that is none can't connect, and the bridge says so.
    let (server, port) =
        bridge.url.host_and_port(default_port).unwrap_or_else(|_| (bridge.url.without_credentials(), default_port));
    let client_id = config.client_id.clone().unwrap_or_else(|| format!("hookbus-{}-{host}", bridge.name));
    let mut options = MqttOptions::new(server, port, client_id.clone())
        .version(match config.version {
            MqttVersion::V5 => Version::V5,
            MqttVersion::V311 => Version::V311,
        })
        .qos(if config.qos == 0 { Qos::AtMostOnce } else { Qos::AtLeastOnce })
        .status_topic(status_topic(&bridge.delivery.root, &client_id))
        .retain_state(config.retain_state);
    if secure {
        options = options.tls(tls(&bridge.tls));
    }
    if let Some(user) = config.user.clone().or_else(|| bridge.url.user_decoded()) {
        options = options.login(user, password(&bridge.url, config.password_file.as_deref()));
    }
    options
}

/// AMQP: as with NATS, a secret in a file is read by the bus.
pub(super) fn amqp(bridge: &BridgeConfig, config: &AmqpConfig, host: &str) -> AmqpOptions {
    AmqpOptions {
        url: bridge.url.without_credentials(),
        user: config.user.clone().or_else(|| bridge.url.user_decoded()),
        password: password(&bridge.url, config.password_file.as_deref()),
        tls: tls(&bridge.tls),
        name: format!("hookbus {} on {host}", bridge.name),
        exchange: config.exchange.clone(),
        unroutable: match config.unroutable {
            Unroutable::Ignore => AmqpUnroutable::Ignore,
            Unroutable::DeadLetter => AmqpUnroutable::Reject,
        },
        header_prefix: config.header_prefix.clone(),
        ..AmqpOptions::default()
    }
}

/// A webhook: everything in files is read by the bus. Templates know the same of an event as other bridges write.
pub(super) fn webhook(bridge: &BridgeConfig, config: &WebhookConfig, encoder: &Encoder) -> WebhookOptions {
    let boxed = |text: &String| text.as_str().into();
    let url = match &config.url_file {
        Some(path) => Secret::File(path.clone()),
        None => Secret::from(bridge.url.reveal()),
    };
    let login = match config {
        WebhookConfig { token_file: Some(path), .. } => HttpLogin::Bearer(Secret::File(path.clone())),
        WebhookConfig { password_file: Some(path), user, .. } => HttpLogin::Basic {
            user: user.clone().or_else(|| bridge.url.user_decoded()).unwrap_or_default(),
            password: Secret::File(path.clone()),
        },
        _ => HttpLogin::Anonymous,
    };
    let secret = |from: &String| match from.strip_prefix("env:") {
        Some(variable) => Secret::Variable(variable.into()),
        None => Secret::File(from.into()),
    };
    WebhookOptions {
        method: boxed(&config.method),
        headers: config.headers.iter().map(|(name, value)| (boxed(name), boxed(value))).collect(),
        body: match (&config.body, &config.body_file) {
            (Some(text), _) => Some(Body::Text(boxed(text))),
            (None, Some(path)) => Some(Body::File(path.clone())),
            (None, None) => None,
        },
        content_type: config.content_type.as_ref().map(boxed),
        login,
        secrets: config.secrets.iter().map(|(name, from)| (boxed(name), secret(from))).collect(),
        when: config.when.as_ref().map(boxed),
        tls: tls(&bridge.tls),
        timeout: config.timeout.duration(),
        in_flight: bridge.delivery.in_flight,
        body_max_bytes: config.body_max_bytes.bytes(),
        accept_status: config.accept_status.clone(),
        reject_status: config.reject_status.clone(),
        encoder: encoder.clone(),
        ..WebhookOptions::new(url)
    }
}

/// Where a bridge is, as its status says. What stands behind a webhook's host may be a secret.
pub(super) fn address(bridge: &BridgeConfig) -> String {
    match &bridge.kind {
        BridgeKind::Webhook(WebhookConfig { url_file: Some(path), .. }) => format!("the URL in {}", path.display()),
        BridgeKind::Webhook(_) => {
            let url = bridge.url.without_credentials();
            let end = url.len() - bridge.url.path().len();
            url[..end].to_owned()
        }
        BridgeKind::Nats(_) | BridgeKind::Mqtt(_) | BridgeKind::Amqp(_) => bridge.url.to_string(),
    }
}

fn password(url: &Url, file: Option<&std::path::Path>) -> Option<Secret> {
    match file {
        Some(path) => Some(Secret::File(path.to_owned())),
        None => url.password_decoded().map(|password| Secret::from(password.as_str())),
    }
}

fn tls(files: &TlsFiles) -> TlsOptions {
    TlsOptions { ca_file: files.ca_file.clone(), cert_file: files.cert_file.clone(), key_file: files.key_file.clone() }
}
