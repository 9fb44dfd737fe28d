//! Reads `[[source]]` and `[[bridge]]`: lists of tables, whose `type` says which keys they take.
//!
//! A table without a usable name, type or URL is told and left out. In every other respect it is read like a section: what is
//! wrong in it is told, and replaced by the default.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::bridge::{AmqpConfig, BridgeConfig, BridgeKind, Delivery, MqttConfig, NatsConfig, TlsFiles, WebhookConfig};
use super::read::{Reader, field_names, nearest};
use super::source::{GanetiJobsSource, SourceConfig, SourceKind, ZeromqSource};
use super::{ByteSize, Overflow, Url, checks};

/// What every table of a list must have.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Head {
    name: Option<Name>,
    r#type: Option<String>,
    url: Option<Url>,
}

/// What a table of a list is called. It names things in logs, statistics, files and buses later, so it is plain.
#[derive(Debug)]
struct Name(String);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
            let what =
                format!("`{}` can't be a name; write 1 to 64 letters, digits, -, _ and dots", name.escape_debug());
            return Err(serde::de::Error::custom(what));
        }
        Ok(Name(name))
    }
}

/// A type of table in a list: its name, the schemes of its URLs, and the keys that only it has.
struct Type {
    name: &'static str,
    schemes: &'static [&'static str],
    own: fn() -> &'static [&'static str],
}

const BRIDGES: [Type; 4] = [
    Type { name: "nats", schemes: &["nats", "tls", "ws", "wss"], own: field_names::<NatsConfig> },
    Type { name: "mqtt", schemes: &["mqtt", "mqtts"], own: field_names::<MqttConfig> },
    Type { name: "amqp", schemes: &["amqp", "amqps"], own: field_names::<AmqpConfig> },
    Type { name: "webhook", schemes: &["https", "http"], own: field_names::<WebhookConfig> },
];

const SOURCES: [Type; 2] = [
    Type { name: "zeromq", schemes: &["tcp", "ipc"], own: field_names::<ZeromqSource> },
    Type { name: "ganeti-jobs", schemes: &["https", "http"], own: field_names::<GanetiJobsSource> },
];

/// A table whose name, type and URL are right.
struct Item<'a, 't> {
    name: String,
    url: Url,
    r#type: &'static str,
    table: &'a DeTable<'t>,
    /// What it is called in [`Reader::at`].
    path: String,
    /// What stands in front of a key in the text of a problem.
    shown: String,
}

impl<'t> Reader<'t> {
    /// `[[bridge]]`
    pub(super) fn bridges(&mut self, value: Spanned<DeValue<'t>>, max_bytes: ByteSize) -> Vec<BridgeConfig> {
        let common = [field_names::<Delivery>(), field_names::<TlsFiles>()].concat();
        self.list("bridge", value, &BRIDGES, &common, |reader, item| {
            let kind = match item.r#type {
                "nats" => BridgeKind::Nats(reader.own(item)),
                "mqtt" => BridgeKind::Mqtt(reader.own(item)),
                "amqp" => BridgeKind::Amqp(reader.own(item)),
                _ => BridgeKind::Webhook(reader.own(item)),
            };
            let mut bridge = BridgeConfig {
                name: item.name.clone(),
                url: item.url.clone(),
                delivery: reader.own(item),
                tls: reader.own(item),
                kind,
            };
            // Two defaults that depend on other keys.
            if reader.at(&format!("{}.overflow", item.path)).is_none() && bridge.kind.acknowledges() {
                bridge.delivery.overflow = Overflow::Spill;
            }
            if let BridgeKind::Nats(nats) = &mut bridge.kind
                && reader.at(&format!("{}.subjects", item.path)).is_none()
            {
                nats.subjects = vec![format!("{}.>", bridge.delivery.root)];
            }
            checks::bridge(&bridge, &item.path, reader, max_bytes);
            Some(bridge)
        })
    }

    /// `[[source]]`
    pub(super) fn sources(&mut self, value: Spanned<DeValue<'t>>) -> Vec<SourceConfig> {
        self.list("source", value, &SOURCES, &[], |reader, item| {
            let kind = match item.r#type {
                "zeromq" => SourceKind::Zeromq(reader.own(item)),
                _ => SourceKind::GanetiJobs(reader.own(item)),
            };
            let source = SourceConfig { name: item.name.clone(), url: item.url.clone(), kind };
            checks::source(&source, &item.path, reader).then_some(source)
        })
    }

    fn list<T>(
        &mut self,
        list: &'static str,
        value: Spanned<DeValue<'t>>,
        types: &[Type],
        common: &[&'static str],
        mut item: impl FnMut(&mut Self, &Item<'_, 't>) -> Option<T>,
    ) -> Vec<T> {
        let start = value.span().start;
        let DeValue::Array(tables) = value.into_inner() else {
            self.error(start, format!("`{list}` is a list: write [[{list}]], with two brackets, once for each"));
            return Vec::new();
        };
        let mut items = Vec::new();
        let mut names: Vec<String> = Vec::new();
        for (index, value) in tables.iter().enumerate() {
            let start = value.span().start;
            let DeValue::Table(table) = value.get_ref() else {
                self.error(start, format!("`{list}` is a list of tables: write [[{list}]] once for each"));
                continue;
            };
            let path = format!("{list}[{index}]");
            let Some(found) = self.item(list, start, path, table, types, common) else { continue };
            if names.contains(&found.name) {
                let place = self.at(&format!("{}.name", found.path)).unwrap_or(start);
                self.error(
                    place,
                    format!("another {list} is called `{}` already; give this one a name of its own", found.name),
                );
                continue;
            }
            self.warn(
                start,
                format!("{list} `{}` has no effect: this version of hookbus doesn't have it yet", found.name),
            );
            self.said(format!("{list} {}", found.name), start);
            names.push(found.name.clone());
            items.extend(item(self, &found));
        }
        items
    }

    /// Looks at the keys of a table, then at its name, type and URL.
    fn item<'a>(
        &mut self,
        list: &'static str,
        start: usize,
        path: String,
        table: &'a DeTable<'t>,
        types: &[Type],
        common: &[&'static str],
    ) -> Option<Item<'a, 't>> {
        let said = |key: &str| table.iter().find(|(name, _)| name.get_ref() == key);
        // In a problem a table is called by its name, if it has one.
        let called = said("name").and_then(|(_, value)| value.get_ref().as_str());
        let shown = called.map_or_else(|| list.to_owned(), |name| format!("{list} `{}`", name.escape_debug()));
        let head: Head = self.part(table, &path, &format!("{shown}: "));
        let known_type = match (&head.r#type, said("type")) {
            (Some(name), Some((_, value))) => {
                let found = types.iter().find(|known| known.name == name);
                if found.is_none() {
                    self.error(value.span().start, format!("{shown}: {}", unknown_type(list, name, types)));
                }
                found
            }
            _ => None,
        };
        let head_keys = field_names::<Head>();
        for (key, _) in table {
            let name = &**key.get_ref();
            let of_type: &[&str] = known_type.map_or(&[], |known| (known.own)());
            let known = || head_keys.iter().chain(common).chain(of_type).copied();
            if known().any(|known| known == name) {
                continue;
            }
            match (known_type, types.iter().find(|other| (other.own)().contains(&name))) {
                (Some(this), Some(other)) => {
                    let what =
                        format!("{shown}: `{name}` is a key of type {}, this one is of type {}", other.name, this.name);
                    self.error(key.span().start, what);
                }
                // Of which type it should be is not known, so the key may be right.
                (None, Some(_)) => {}
                (_, None) => self.unknown(name, key, &format!(" in {shown}"), known()),
            }
        }
        for (key, help) in [
            ("name", "logs and statistics call it by that"),
            ("type", "write one of "),
            ("url", "write where to connect to"),
        ] {
            if said(key).is_none() {
                let names: Vec<_> = types.iter().map(|known| known.name).collect();
                let names = if key == "type" { names.join(", ") } else { String::new() };
                self.error(start, format!("{shown}: `{key}` is missing; {help}{names}"));
            }
        }
        let (Head { name: Some(Name(name)), url: Some(url), .. }, Some(known)) = (head, known_type) else {
            return None;
        };
        if !known.schemes.contains(&url.scheme()) {
            let place = self.at(&format!("{path}.url")).unwrap_or(start);
            let schemes: Vec<_> = known.schemes.iter().map(|scheme| format!("{scheme}://")).collect();
            let what = format!("{shown}: a URL of type {} begins with {}", known.name, schemes.join(" or "));
            self.error(place, what);
            return None;
        }
        Some(Item { name, url, r#type: known.name, table, path, shown: format!("{shown}: ") })
    }

    fn own<T: DeserializeOwned + Default>(&mut self, item: &Item<'_, 't>) -> T {
        self.part(item.table, &item.path, &item.shown)
    }
}

fn unknown_type(list: &str, name: &str, types: &[Type]) -> String {
    if list == "bridge" && name == "zeromq" {
        return "the ZeroMQ ports are a section of their own: [zeromq]".into();
    }
    let names: Vec<_> = types.iter().map(|known| known.name).collect();
    let name = name.escape_debug();
    match nearest(&name.to_string(), names.iter().copied()) {
        Some(nearest) => format!("unknown type `{name}`; did you mean `{nearest}`? There are {}", names.join(", ")),
        None => format!("unknown type `{name}`; there are {}", names.join(", ")),
    }
}
