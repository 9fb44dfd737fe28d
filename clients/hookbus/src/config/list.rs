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

/// Reads the keys that only one type of table has.
type ReadKind<K> = for<'t> fn(&mut Reader<'t>, &Item<'_, 't>) -> K;

/// A type of table in a list.
struct Type<K> {
    /// What stands in `type`.
    name: &'static str,
    /// What its URLs may begin with.
    schemes: &'static [&'static str],
    /// Whether this version has it.
    here: bool,
    /// The keys that only it has.
    own: fn() -> &'static [&'static str],
    /// Reads those.
    kind: ReadKind<K>,
}

const BRIDGES: [Type<BridgeKind>; 4] = [
    Type {
        name: "nats",
        schemes: &["nats", "tls"],
        here: true,
        own: field_names::<NatsConfig>,
        kind: |reader, item| BridgeKind::Nats(reader.own(item)),
    },
    Type {
        name: "mqtt",
        schemes: &["mqtt", "mqtts"],
        here: true,
        own: field_names::<MqttConfig>,
        kind: |reader, item| BridgeKind::Mqtt(reader.own(item)),
    },
    Type {
        name: "amqp",
        schemes: &["amqp", "amqps"],
        here: true,
        own: field_names::<AmqpConfig>,
        kind: |reader, item| BridgeKind::Amqp(reader.own(item)),
    },
    Type {
        name: "webhook",
        schemes: &["https", "http"],
        here: true,
        own: field_names::<WebhookConfig>,
        kind: |reader, item| BridgeKind::Webhook(reader.own(item)),
    },
];

const SOURCES: [Type<SourceKind>; 2] = [
    Type {
        name: "zeromq",
        schemes: &["tcp", "ipc"],
        here: true,
        own: field_names::<ZeromqSource>,
        kind: |reader, item| SourceKind::Zeromq(reader.own(item)),
    },
    Type {
        name: "ganeti-jobs",
        schemes: &["file"],
        here: true,
        own: field_names::<GanetiJobsSource>,
        kind: |reader, item| SourceKind::GanetiJobs(reader.own(item)),
    },
];

/// A table whose name, type and URL are right.
struct Item<'a, 't> {
    name: String,
    url: Url,
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
        self.list("bridge", value, &BRIDGES, &common, |reader, item, kind| {
            let mut bridge = BridgeConfig {
                name: item.name.clone(),
                url: item.url.clone(),
                delivery: reader.own(item),
                tls: reader.own(item),
                kind,
            };
            // Defaults that depend on other keys.
            if matches!(bridge.kind, BridgeKind::Webhook(_)) && reader.at(&format!("{}.in_flight", item.path)).is_none()
            {
                bridge.delivery.in_flight = 1;
            }
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
        self.list("source", value, &SOURCES, &[], |reader, item, kind| {
            let source = SourceConfig { name: item.name.clone(), url: item.url.clone(), kind };
            checks::source(&source, &item.path, reader).then_some(source)
        })
    }

    /// The tables of a list. `common` are the keys that each type has besides its own; `entry` makes of a table and what only its
    /// type has what is wanted of it, if it can be used.
    fn list<K, T>(
        &mut self,
        list: &'static str,
        value: Spanned<DeValue<'t>>,
        types: &[Type<K>],
        common: &[&'static str],
        entry: impl Fn(&mut Self, &Item<'_, 't>, K) -> Option<T>,
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
            let Some((found, kind)) = self.item(list, start, path, table, types, common) else { continue };
            if names.contains(&found.name) {
                let place = self.at(&format!("{}.name", found.path)).unwrap_or(start);
                self.error(
                    place,
                    format!("another {list} is called `{}` already; give this one a name of its own", found.name),
                );
                continue;
            }
            if !kind.here {
                let what = format!(
                    "{list} `{}` has no effect: this version of hookbus doesn't have the type {} yet",
                    found.name, kind.name
                );
                self.warn(start, what);
            }
            self.said(format!("{list} {}", found.name), start);
            names.push(found.name.clone());
            let kind = (kind.kind)(self, &found);
            items.extend(entry(self, &found, kind));
        }
        items
    }

    /// Looks at the keys of a table, and at its name, type and URL. Nothing if it is not clear what it is.
    fn item<'a, 'k, K>(
        &mut self,
        list: &'static str,
        start: usize,
        path: String,
        table: &'a DeTable<'t>,
        types: &'k [Type<K>],
        common: &[&'static str],
    ) -> Option<(Item<'a, 't>, &'k Type<K>)> {
        let said = |key: &str| table.iter().find(|(name, _)| name.get_ref() == key).map(|(_, value)| value);
        // In a problem a table is called by its name, if it has one.
        let called = said("name").and_then(|value| value.get_ref().as_str());
        let shown = called.map_or_else(|| list.to_owned(), |name| format!("{list} `{}`", name.escape_debug()));
        let head: Head = self.part(table, &path, &format!("{shown}: "));
        let this_type = types.iter().find(|known| Some(known.name) == head.r#type.as_deref());
        self.unknown_keys(&shown, table, this_type, types, common);

        let names = || types.iter().map(|known| known.name).collect::<Vec<_>>().join(", ");
        if let (Some(name), None, Some(place)) = (&head.r#type, this_type, self.at(&format!("{path}.type"))) {
            self.error(place, format!("{shown}: {}", unknown_type(list, name, types)));
        }
        if said("name").is_none() {
            self.error(start, format!("{shown}: `name` is missing; logs and statistics call it by that"));
        }
        if said("type").is_none() {
            self.error(start, format!("{shown}: `type` is missing; write one of {}", names()));
        }
        // A webhook's URL may be in a file of its own.
        let in_a_file =
            this_type.is_some_and(|known| (known.own)().contains(&"url_file")) && said("url_file").is_some();
        if said("url").is_none() && !in_a_file {
            self.error(start, format!("{shown}: `url` is missing; write where to connect to"));
        }
        let (Head { name: Some(Name(name)), url, .. }, Some(this_type)) = (head, this_type) else {
            return None;
        };
        if in_a_file {
            if said("url").is_some() {
                let place = self.at(&format!("{path}.url")).unwrap_or(start);
                self.error(place, format!("{shown}: url: there is a `url_file`, too; write one of them"));
                return None;
            }
            return Some((Item { name, url: Url::in_a_file(), table, path, shown: format!("{shown}: ") }, this_type));
        }
        let url = url?;
        if !this_type.schemes.contains(&url.scheme()) {
            let place = self.at(&format!("{path}.url")).unwrap_or(start);
            let schemes: Vec<_> = this_type.schemes.iter().map(|scheme| format!("{scheme}://")).collect();
            let what = format!("{shown}: a URL of type {} begins with {}", this_type.name, schemes.join(" or "));
            self.error(place, what);
            return None;
        }
        Some((Item { name, url, table, path, shown: format!("{shown}: ") }, this_type))
    }

    fn unknown_keys<K>(
        &mut self,
        shown: &str,
        table: &DeTable<'t>,
        this_type: Option<&Type<K>>,
        types: &[Type<K>],
        common: &[&'static str],
    ) {
        let of_type: &[&str] = this_type.map_or(&[], |known| (known.own)());
        let known = [field_names::<Head>(), common, of_type].concat();
        for (key, _) in table.iter().filter(|(key, _)| !known.contains(&&**key.get_ref())) {
            let name = &**key.get_ref();
            match (this_type, types.iter().find(|other| (other.own)().contains(&name))) {
                (Some(this), Some(other)) => {
                    let what =
                        format!("{shown}: `{name}` is a key of type {}, this one is of type {}", other.name, this.name);
                    self.error(key.span().start, what);
                }
                // Of which type it should be is not known, so the key may be right.
                (None, Some(_)) => {}
                (_, None) => self.unknown(name, key, &format!(" in {shown}"), known.iter().copied()),
            }
        }
    }

    fn own<T: DeserializeOwned + Default>(&mut self, item: &Item<'_, 't>) -> T {
        self.part(item.table, &item.path, &item.shown)
    }
}

fn unknown_type<K>(list: &str, name: &str, types: &[Type<K>]) -> String {
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
