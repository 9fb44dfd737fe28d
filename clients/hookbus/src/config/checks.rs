//! What several keys mean together, and what has no effect yet.
//!
//! Warnings are about what a file says, never about defaults: nobody is warned of what a file leaves out.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::PathBuf;

use hookbus_bridges::webhook::{TemplateKind, check_condition, check_header, check_template, check_url};
use hookbus_bridges::zeromq::Endpoint;

use super::bridge::{BridgeConfig, BridgeKind, EventFormat, MqttVersion, WebhookConfig};
use super::read::Reader;
use super::source::{SourceConfig, SourceKind};
use super::{ByteSize, Config, Overflow, Url};

/// Sets the defaults that depend on other sections, and tells what doesn't fit together.
pub(super) fn check(config: &mut Config, reader: &mut Reader<'_>) {
    zeromq_beside_a_source(config, reader);
    let max_bytes = config.broker.max_bytes;
    hwm_bytes(reader, "zeromq", "zeromq.", config.zeromq.hwm_bytes, max_bytes);
    hwm_bytes(reader, "hooks", "hooks.", config.hooks.hwm_bytes, max_bytes);
    overflow(reader, "hooks", "hooks.", config.hooks.overflow);
    http(config, reader);
    gate(config, reader);
    same_client_id(config, reader);
    journal(config, reader);
}

/// Whether the checks of operations can be asked.
fn gate(config: &Config, reader: &mut Reader<'_>) {
    if let (Some(url), Some(place)) = (&config.ganeti.gate_url, reader.at("ganeti.gate_url"))
        && let Err(what) = check_url(url.reveal(), &[])
    {
        reader.error(place, format!("ganeti.gate_url: {what}"));
    }
    let (Some(name), Some(place)) = (&config.ganeti.gate_nats, reader.at("ganeti.gate_nats")) else { return };
    let is_nats = |bridge: &&BridgeConfig| matches!(bridge.kind, BridgeKind::Nats(_));
    if !config.bridges.iter().filter(is_nats).any(|bridge| bridge.name == *name) {
        let what =
            format!("ganeti.gate_nats: there is no bridge `{name}` of type nats; name one, whose server is asked");
        reader.error(place, what);
    }
}

/// What is reachable from other machines has TLS, and what lets somebody in on TCP has an effect there. Where something is wrong about that
/// nothing is listened at.
fn http(config: &mut Config, reader: &mut Reader<'_>) {
    let http = &mut config.http;
    let mut wrong = false;
    match (reader.at("http.cert_file"), reader.at("http.key_file")) {
        (Some(place), None) | (None, Some(place)) => {
            wrong = true;
            reader.error(place, "http: cert_file and key_file belong together; the other one is missing".into());
        }
        (Some(_), Some(_)) => {}
        (None, None) => {
            if let Some(place) = reader.at("http.client_ca_file") {
                wrong = true;
                let what =
                    "http.client_ca_file: clients show certificates with TLS only; set cert_file and key_file, too";
                reader.error(place, what.into());
            }
            for (index, address) in http.listen.iter().enumerate() {
                let Some(place) = reader.at(&format!("http.listen[{index}]")) else { continue };
                if !address.ip().to_canonical().is_loopback() {
                    wrong = true;
                    let what = format!(
                        "http.listen: `{address}` is reachable from other machines, which needs TLS: set cert_file and key_file, or listen \
                         on 127.0.0.1 or [::1]"
                    );
                    reader.error(place, what);
                }
            }
        }
    }
    if let (Some(place), true) =
        (reader.at("http.read_token_file"), http.token_file.is_some() && http.read_token_file == http.token_file)
    {
        wrong = true;
        let what = "http.read_token_file: it is token_file, too, whose tokens let do everything; write another file";
        reader.error(place, what.into());
    }
    if reader.at("http.listen").is_none() || http.listen.is_empty() {
        for key in ["hosts", "token_file", "read_token_file", "cert_file", "key_file", "client_ca_file"] {
            if let Some(place) = reader.at(&format!("http.{key}")) {
                let what = format!(
                    "http.{key} has no effect: listen names no address on TCP, and the socket needs none of this"
                );
                reader.warn(place, what);
            }
        }
    }
    if wrong {
        http.listen.clear();
    }
}

/// The journal is on as soon as something needs it. Who switches it off all the same is told what that costs.
fn journal(config: &mut Config, reader: &mut Reader<'_>) {
    let spills = config.bridges.iter().find(|bridge| bridge.delivery.overflow == Overflow::Spill);
    let needed = match spills {
        Some(bridge) => Some(format!("bridge `{}`", bridge.name)),
        None => (config.hooks.overflow == Overflow::Spill).then(|| "[hooks] overflow".to_owned()),
    };
    match (reader.at("journal.enabled"), needed) {
        (None, needed) => config.journal.enabled = needed.is_some(),
        (Some(place), Some(who)) if !config.journal.enabled => {
            let what = format!(
                "journal.enabled: {who} needs the journal; without it `spill` acts as `drop-oldest`, and what was not delivered \
                 when hookbus ends is lost"
            );
            reader.warn(place, what);
        }
        (Some(_), _) => {}
    }
}

/// A server of MQTT hangs up on a client when another one comes with its id, so two bridges would throw each other out for ever.
fn same_client_id(config: &Config, reader: &mut Reader<'_>) {
    let mut seen = BTreeMap::new();
    for bridge in &config.bridges {
        let BridgeKind::Mqtt(mqtt) = &bridge.kind else { continue };
        let (Some(id), Ok(server)) = (&mqtt.client_id, bridge.url.host_and_port(1883)) else { continue };
        match seen.entry((id.as_str(), server)) {
            Entry::Vacant(first) => {
                first.insert(bridge.name.as_str());
            }
            Entry::Occupied(other) => {
                let other = other.get();
                let what = format!(
                    "bridge `{}`: client_id: bridge `{other}` has the same; the server lets only one of them in",
                    bridge.name
                );
                if let Some(place) = reader.at(&format!("client_id of {}", bridge.name)) {
                    reader.error(place, what);
                }
            }
        }
    }
}

/// A source of type zeromq usually connects to the original driver's ports, so ours are off unless somebody wants them.
fn zeromq_beside_a_source(config: &mut Config, reader: &mut Reader<'_>) {
    let Some(source) = config.sources.iter().find(|source| matches!(source.kind, SourceKind::Zeromq(_))) else {
        return;
    };
    if reader.at("zeromq.enabled").is_some() {
        return;
    }
    config.zeromq.enabled = false;
    if let Some(place) = reader.at(&format!("source {}", source.name)) {
        let what = format!(
            "[zeromq] is off because source `{}` is a ZeroMQ port; to serve ports as well, write enabled = true in [zeromq]",
            source.name
        );
        reader.warn(place, what);
    }
}

/// Whether a source can be used; `path` is what it is called in [`Reader::at`].
pub(super) fn source(source: &SourceConfig, path: &str, reader: &mut Reader<'_>) -> bool {
    let shown = format!("source `{}`: ", source.name);
    match &source.kind {
        SourceKind::Zeromq(_) => {
            let problem = match source.url.reveal().parse() {
                Ok(Endpoint::Tcp { host: hookbus_bridges::zeromq::Host::Any, .. } | Endpoint::Tcp { port: 0, .. }) => {
                    Some("a place to connect to is expected, with an address and a port".to_owned())
                }
                Ok(_) => None,
                Err(e) => Some(e.to_string()),
            };
            if let (Some(problem), Some(place)) = (&problem, reader.at(&format!("{path}.url"))) {
                reader.error(place, format!("{shown}url: {problem}"));
            }
            problem.is_none()
        }
        SourceKind::GanetiJobs(_) => {
            let problem = source.directory().err();
            if let (Some(problem), Some(place)) = (problem, reader.at(&format!("{path}.url"))) {
                reader.error(place, format!("{shown}url: {problem}"));
            }
            problem.is_none()
        }
    }
}

/// Tells what doesn't fit together in a bridge; `path` is what it is called in [`Reader::at`].
pub(super) fn bridge(bridge: &BridgeConfig, path: &str, reader: &mut Reader<'_>, max_bytes: ByteSize) {
    let shown = format!("bridge `{}`: ", bridge.name);
    hwm_bytes(reader, path, &shown, bridge.delivery.hwm_bytes, max_bytes);
    overflow(reader, path, &shown, bridge.delivery.overflow);
    let url = &bridge.url;
    // A webhook's URL is looked at as what it is, below.
    if !matches!(bridge.kind, BridgeKind::Webhook(_))
        && let (Err(what), Some(place)) = (url.host_and_port(1), reader.at(&format!("{path}.url")))
    {
        reader.error(place, format!("{shown}url: {what}"));
    }
    path_of_url(bridge, path, &shown, reader);
    prefixes(&bridge.delivery.prefixes, path, &shown, reader);
    if bridge.delivery.overflow == Overflow::Spill
        && !bridge.kind.acknowledges()
        && let Some(place) = reader.at(&format!("{path}.overflow"))
    {
        let acks = if matches!(bridge.kind, BridgeKind::Nats(_)) { "jetstream = true" } else { "qos = 1" };
        let what = format!(
            "{shown}overflow: `spill` keeps what waits, but without acknowledgements what was on its way when a connection broke is \
             lost; with {acks} it isn't"
        );
        reader.warn(place, what);
    }
    match &bridge.kind {
        BridgeKind::Nats(nats) => {
            stream_name(&nats.stream, path, &shown, reader);
            password(reader, path, &shown, url, nats.user.as_deref(), nats.password_file.as_ref());
            one_way_to_log_in(reader, path, &shown, url);
            stream_covers_root(reader, path, &shown, &nats.subjects, &bridge.delivery.root, nats.jetstream);
            if !nats.jetstream {
                for key in ["stream", "subjects", "stream_max_age", "stream_max_bytes"] {
                    if let Some(place) = reader.at(&format!("{path}.{key}")) {
                        reader.warn(
                            place,
                            format!("{shown}{key} has no effect: jetstream = false, so there is no stream"),
                        );
                    }
                }
            }
        }
        BridgeKind::Mqtt(mqtt) => {
            if let Some(place) = reader.at(&format!("{path}.client_id")) {
                reader.said(format!("client_id of {}", bridge.name), place);
            }
            if let (Some(""), Some(place)) = (mqtt.client_id.as_deref(), reader.at(&format!("{path}.client_id"))) {
                let what = "client_id: an empty one can't be told apart from others; leave the key out for one made of the bridge's \
                            and the host's name";
                reader.error(place, format!("{shown}{what}"));
            }
            password(reader, path, &shown, url, mqtt.user.as_deref(), mqtt.password_file.as_ref());
            if let (true, Some(place)) = (mqtt.retain_state, reader.at(&format!("{path}.prefixes"))) {
                // What sets a state, and what clears it.
                let needed = [
                    "EVENT STATE ",
                    "EVENT API one.host.delete 1",
                    "EVENT API one.image.delete 1",
                    "EVENT API one.vn.delete 1",
                ];
                let covered =
                    |key: &str| bridge.delivery.prefixes.iter().any(|prefix| key.starts_with(prefix.as_str()));
                let missing: Vec<_> =
                    needed.into_iter().filter(|key| !covered(key)).map(|key| format!("{key:?}")).collect();
                if !missing.is_empty() {
                    let what = format!(
                        "prefixes: retain_state can't follow objects that it is not told of; it needs {}, too",
                        missing.join(", ")
                    );
                    reader.warn(place, format!("{shown}{what}"));
                }
            }
            if mqtt.version == MqttVersion::V311
                && bridge.delivery.format == EventFormat::CloudeventsBinary
                && let Some(place) = reader.at(&format!("{path}.format"))
            {
                let what =
                    "format: MQTT 3.1.1 has no headers for cloudevents-binary; write cloudevents, or version = \"5\"";
                reader.error(place, format!("{shown}{what}"));
            }
        }
        BridgeKind::Amqp(amqp) => {
            password(reader, path, &shown, url, amqp.user.as_deref(), amqp.password_file.as_ref());
            if let Some(place) = reader.at(&format!("{path}.header_prefix")) {
                let prefix = &amqp.header_prefix;
                if prefix.len() > 32
                    || !prefix.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | ':'))
                {
                    let what =
                        "header_prefix: at most 32 letters, digits, -, _ and colons; usual are cloudEvents_ and ce-";
                    reader.error(place, format!("{shown}{what}"));
                } else if bridge.delivery.format != EventFormat::CloudeventsBinary {
                    let what = "header_prefix has no effect: only the format cloudevents-binary has headers";
                    reader.warn(place, format!("{shown}{what}"));
                }
            }
        }
        BridgeKind::Webhook(config) => webhook(bridge, config, path, &shown, reader),
    }
    let (cert, key) = (reader.at(&format!("{path}.cert_file")), reader.at(&format!("{path}.key_file")));
    if let (Some(place), None) | (None, Some(place)) = (cert, key) {
        reader.error(place, format!("{shown}cert_file and key_file belong together; the other one is missing"));
    }
    // The servers of NATS ask for TLS themselves, so there the scheme says nothing.
    if matches!(url.scheme(), "mqtt" | "amqp" | "http") {
        for key in ["ca_file", "cert_file", "key_file"] {
            if let Some(place) = reader.at(&format!("{path}.{key}")) {
                let scheme = url.scheme();
                reader.warn(
                    place,
                    format!("{shown}{key} has no effect: a URL with {scheme}:// is not encrypted; write {scheme}s://"),
                );
            }
        }
    }
}

/// Everything that a webhook is told is looked at before the first event comes: templates, the condition, names.
fn webhook(bridge: &BridgeConfig, config: &WebhookConfig, path: &str, shown: &str, reader: &mut Reader<'_>) {
    let at = |reader: &Reader<'_>, key: &str| reader.at(&format!("{path}.{key}"));
    let secrets = config.secret_names();
    let url = &bridge.url;
    let mut wrong: Vec<(&str, String)> = Vec::new();
    if !url.is_in_a_file()
        && let Err(what) = check_url(url.reveal(), &secrets)
    {
        wrong.push(("url", format!("url: {what}")));
    }
    if let Some(Err(error)) = config.when.as_deref().map(check_condition) {
        wrong.push(("when", format!("when: {error}")));
    }
    if let Some(Err(error)) = config.body.as_deref().map(|body| check_template(config.body_kind(), body, &secrets)) {
        wrong.push(("body", format!("body: {error}")));
    }
    for (name, value) in &config.headers {
        if let Err(what) = check_header(name) {
            wrong.push(("headers", format!("headers: {what}")));
        } else if let Err(error) = check_template(TemplateKind::Header, value, &secrets) {
            wrong.push(("headers", format!("headers.{name}: {error}")));
        }
    }
    for (name, from) in &config.secrets {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) || !name.chars().all(plain) {
            let name = name.escape_debug();
            wrong.push((
                "secrets",
                format!("secrets: `{name}` can't be a name in a template; write letters, digits and _"),
            ));
        } else if !from.starts_with('/') && from.strip_prefix("env:").is_none_or(str::is_empty) {
            // It may be the secret itself, so it isn't repeated.
            wrong.push(("secrets", format!("secrets.{name}: write the whole path of its file, or env:VARIABLE")));
        }
    }
    if config.body.is_some() && config.body_file.is_some() {
        wrong.push(("body_file", "body_file: there is a `body`, too; write one of them".into()));
    }
    for (key, list) in [("accept_status", &config.accept_status), ("reject_status", &config.reject_status)] {
        if let Some(status) = list.iter().find(|status| !(200..600).contains(*status)) {
            wrong.push((key, format!("{key}: {status} is no status of an answer; those are 200 to 599")));
        }
    }
    if config.accept_status.iter().any(|status| config.reject_status.contains(status)) {
        wrong.push(("reject_status", "reject_status: one of them is in accept_status, too".into()));
    }
    if config.timeout >= bridge.delivery.ack_timeout {
        let ack_timeout = bridge.delivery.ack_timeout;
        let key = if at(reader, "timeout").is_some() { "timeout" } else { "ack_timeout" };
        wrong.push((
            key,
            format!("{key}: ack_timeout ({ack_timeout}) has to be longer than timeout ({})", config.timeout),
        ));
    }
    password(reader, path, shown, url, config.user.as_deref(), config.password_file.as_ref());
    if config.token_file.is_some() && (config.user.is_some() || url.user().is_some()) {
        wrong.push(("token_file", "token_file: a user is named, too; one way to log in is enough".into()));
    }
    for (key, what) in wrong {
        if let Some(place) = at(reader, key) {
            reader.error(place, format!("{shown}{what}"));
        }
    }
    let has_body = config.body.is_some() || config.body_file.is_some();
    let no_effect = [
        ("format", has_body, "the body is made by a template"),
        ("content_type", !has_body, "without a body of its own, an event says itself what it is"),
    ];
    for (key, is_so, why) in no_effect {
        if let (true, Some(place)) = (is_so, at(reader, key)) {
            reader.warn(place, format!("{shown}{key} has no effect: {why}"));
        }
    }
    let fixed = |value: &String| !value.contains("{{");
    if let (Some((name, _)), Some(place)) = (
        config.headers.iter().find(|(name, value)| name.eq_ignore_ascii_case("authorization") && fixed(value)),
        at(reader, "headers"),
    ) {
        let what = format!(
            "{shown}headers.{name}: who may read this file, or `hookbus config show`, can read it; name a file in secrets"
        );
        reader.warn(place, what);
    }
}

/// What stands behind host and port means something for AMQP only.
fn path_of_url(bridge: &BridgeConfig, path: &str, shown: &str, reader: &mut Reader<'_>) {
    let behind = bridge.url.path();
    let what = match &bridge.kind {
        BridgeKind::Nats(_) | BridgeKind::Mqtt(_) if !matches!(behind, "" | "/") => {
            format!("`{}` behind host and port means nothing; take it out", behind.escape_debug())
        }
        // A query is the library's: `?heartbeat=10`.
        BridgeKind::Amqp(_) if behind.split('?').next().unwrap_or_default().matches('/').count() > 1 => format!(
            "`{}` is more than one virtual host; a / that belongs to its name is written %2F",
            behind.escape_debug()
        ),
        _ => return,
    };
    if let Some(place) = reader.at(&format!("{path}.url")) {
        reader.error(place, format!("{shown}url: {what}"));
    }
}

/// Prefixes are no patterns.
fn prefixes(prefixes: &[String], path: &str, shown: &str, reader: &mut Reader<'_>) {
    let Some(place) = reader.at(&format!("{path}.prefixes")) else { return };
    if prefixes.is_empty() {
        let what = "prefixes: nothing begins with none of them, so nothing would be published; leave the key out for everything";
        reader.error(place, format!("{shown}{what}"));
    }
    if let Some(pattern) = prefixes.iter().find(|prefix| prefix.contains('*') || prefix.ends_with(['>', '#'])) {
        let what = format!(
            "prefixes: `{}` is no pattern, but the beginning of a key as it stands here; end it before the first wildcard",
            pattern.escape_debug()
        );
        reader.warn(place, format!("{shown}{what}"));
    }
}

/// The names that JetStream takes for a stream.
fn stream_name(name: &str, path: &str, shown: &str, reader: &mut Reader<'_>) {
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '.' | '*' | '>' | '/' | '\\');
    if let Some(place) = reader.at(&format!("{path}.stream"))
        && (name.is_empty() || name.len() > 255 || !name.chars().all(plain))
    {
        let what = format!(
            "stream: `{}` can't be a stream's name; write 1 to 255 printable ASCII characters without blanks and . * > / \\",
            name.escape_debug()
        );
        reader.error(place, format!("{shown}{what}"));
    }
}

/// A high-water mark that the broker's own limit makes meaningless.
fn hwm_bytes(reader: &mut Reader<'_>, path: &str, shown: &str, hwm_bytes: ByteSize, max_bytes: ByteSize) {
    if let Some(place) = reader.at(&format!("{path}.hwm_bytes"))
        && hwm_bytes > max_bytes
    {
        let what = format!(
            "{shown}hwm_bytes: {hwm_bytes} are never reached, since all queues together hold {max_bytes} ([broker] max_bytes)"
        );
        reader.warn(place, what);
    }
}

fn overflow(reader: &mut Reader<'_>, path: &str, shown: &str, overflow: Overflow) {
    let Some(place) = reader.at(&format!("{path}.overflow")) else { return };
    let what = match overflow {
        Overflow::Block => "oned can't wait: towards its events `block` acts as `drop-oldest`",
        Overflow::DropNewest | Overflow::DropOldest | Overflow::Spill | Overflow::Disconnect => return,
    };
    reader.warn(place, format!("{shown}overflow: {what}"));
}

/// A password needs a user, and one place.
fn password(reader: &mut Reader<'_>, path: &str, shown: &str, url: &Url, user: Option<&str>, file: Option<&PathBuf>) {
    if let (Some(_), Some(_), Some(place)) = (url.user(), user, reader.at(&format!("{path}.user"))) {
        reader.error(place, format!("{shown}user: the URL names one, too; write it in one place"));
    }
    let (Some(_), Some(place)) = (file, reader.at(&format!("{path}.password_file"))) else { return };
    let what = if url.has_password() {
        "the URL has a password, too; take it out there"
    } else if url.user().is_none() && user.is_none() {
        "whose password is it? Name the user, by `user` or in the URL"
    } else {
        return;
    };
    reader.error(place, format!("{shown}password_file: {what}"));
}

/// A stream that doesn't take our subjects would never confirm anything.
fn stream_covers_root(
    reader: &mut Reader<'_>,
    path: &str,
    shown: &str,
    subjects: &[String],
    root: &str,
    jetstream: bool,
) {
    let Some(place) = reader.at(&format!("{path}.subjects")) else { return };
    // A pattern covers `root.>` if each of its tokens takes the root's one, and its last takes all that follow.
    let covers = |pattern: &String| {
        let mut root = root.split('.');
        pattern.split('.').all(|token| match (token, root.next()) {
            (">", _) => true,
            ("*", Some(_)) => true,
            (token, Some(of_root)) => token == of_root,
            (_, None) => false,
        }) && pattern.ends_with('>')
    };
    if jetstream && !subjects.iter().any(covers) {
        let what = format!(
            "subjects: none of them takes everything below the root, so events would go nowhere; write \"{root}.>\""
        );
        reader.error(place, format!("{shown}{what}"));
    }
}

/// NATS has several ways to say who one is; with two of them it isn't clear which is meant.
fn one_way_to_log_in(reader: &mut Reader<'_>, path: &str, shown: &str, url: &Url) {
    let ways = ["password_file", "token_file", "nkey_file", "creds_file"];
    let mut told: Vec<(usize, &str)> =
        ways.iter().filter_map(|key| Some((reader.at(&format!("{path}.{key}"))?, *key))).collect();
    told.sort_unstable();
    let in_url = url.user().is_some() && !told.iter().any(|(_, key)| *key == "password_file");
    let first = if in_url { "the URL" } else { told.first().map_or("", |(_, key)| key) };
    for (place, key) in told.iter().skip(usize::from(!in_url)) {
        reader.error(*place, format!("{shown}{key}: {first} says already who we are; one way to log in is enough"));
    }
}
