//! Events as they leave.

use std::borrow::Cow;

use bytes::Bytes;
use hookbus_broker::{Received, Timestamp};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::OWN_ATTRIBUTES;
use super::attributes::{Attributes, Value};
use super::data::{self, Data};
use super::key::{self, Topic, encode_key};

/// What may stand in a part of a URI's path as it is (RFC 3986, `pchar`).
const PATH: AsciiSet = NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'!')
    .remove(b'$')
    .remove(b'&')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')')
    .remove(b'*')
    .remove(b'+')
    .remove(b',')
    .remove(b';')
    .remove(b'=')
    .remove(b':')
    .remove(b'@');

/// What names the producers of our events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// The host that this runs on: events of hookbus itself, and of OpenNebula where no zone is given.
    pub host: String,
    /// The name of the OpenNebula zone.
    pub zone: Option<String>,
}

/// Makes CloudEvents of messages. Made once for a daemon.
///
/// ```
/// use hookbus_bridges::cloudevents::{Encoder, Sources};
/// use hookbus_broker::{Broker, Message, SubscribeOptions};
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let encoder = Encoder::new(Sources { host: "one-frontend".into(), zone: None });
/// let broker = Broker::default();
/// let mut subscription = broker.subscribe(SubscribeOptions::new("demo").prefix("backup "));
/// broker.publish(Message::new("backup done", "42 machines")).await?;
///
/// let event = subscription.recv().await.unwrap().message().unwrap();
/// let json: serde_json::Value = serde_json::from_slice(&encoder.structured(&event, None)).unwrap();
/// assert_eq!(json["source"], "/hookbus/one-frontend");
/// assert_eq!(json["type"], "org.hookbus.custom");
/// assert_eq!(json["hookbuskey"], "backup done");
/// assert_eq!(json["data"], "42 machines");
/// # Ok::<_, hookbus_broker::PublishError>(())
/// # }).unwrap();
/// ```
#[derive(Clone, Debug)]
pub struct Encoder {
    opennebula: Box<str>,
    hookbus: Box<str>,
}

impl Encoder {
    /// An encoder for these producers.
    #[expect(clippy::needless_pass_by_value, reason = "names that are given away read better where this is called")]
    pub fn new(sources: Sources) -> Self {
        let zone = sources.zone.as_deref().unwrap_or(&sources.host);
        Encoder {
            opennebula: format!("/opennebula/{}", utf8_percent_encode(zone, &PATH)).into(),
            hookbus: format!("/hookbus/{}", utf8_percent_encode(&sources.host, &PATH)).into(),
        }
    }

    /// The attributes of an event. `dropped` tells how many messages were dropped just before it.
    ///
    /// In binary mode `datacontenttype` is sent as the body's content type, where the bus has one.
    pub fn attributes<'a>(&'a self, event: &'a Received, dropped: Option<u64>) -> Attributes<'a> {
        // An origin without an id only says more about the data.
        let origin = event.origin();
        let identity = origin.filter(|origin| !origin.id.is_empty());
        let mut brought = origin.map(|origin| Attributes::of_origin(&origin.attributes)).unwrap_or_default();
        for name in OWN_ATTRIBUTES {
            brought.take(name);
        }
        let said = brought.take("datacontenttype").and_then(Value::into_text);
        let (key, topic) = key::topic(event.keys());

        let mut all = Attributes::default();
        all.push("specversion", "1.0");
        if let Some(origin) = identity {
            all.push("id", &*origin.id);
            all.push("source", &*origin.source);
            for name in ["type", "subject", "time"] {
                if let Some(value) = brought.take(name) {
                    all.push(name, value);
                }
            }
        } else {
            all.push("id", event.id().to_string());
            // A cluster names itself in the origin of its events.
            match origin.filter(|origin| !origin.source.is_empty()) {
                Some(origin) => all.push("source", &*origin.source),
                None => all.push("source", self.source(topic)),
            }
            all.push("type", kind(topic));
            if let Some(subject) = subject(topic) {
                all.push("subject", subject);
            }
            all.push("time", rfc3339(event.time()));
        }
        if let Some(content_type) = data::content_type(event, said, identity.is_some()) {
            all.push("datacontenttype", content_type);
        }
        if let Some(schema) = brought.take("dataschema") {
            all.push("dataschema", schema);
        }
        all.push("sequence", event.offset().to_string());
        all.push("hookbuskey", encode_key(key));
        if identity.is_some() {
            all.push("recordedtime", rfc3339(event.time()));
        }
        if let Some(dropped) = dropped {
            all.push("hookbusdropped", Value::Integer(i32::try_from(dropped).unwrap_or(i32::MAX)));
        }
        all.append(brought);
        all
    }

    /// At least those attributes that say what it is: `source`, `type` and `datacontenttype`. Formats without attributes need no more, and all
    /// of them cost a dozen allocations.
    pub fn nature<'a>(&'a self, event: &'a Received) -> Attributes<'a> {
        if event.origin().is_some() {
            // What it brought along decides; it is rare.
            return self.attributes(event, None);
        }
        let (_, topic) = key::topic(event.keys());
        let mut nature = Attributes::default();
        nature.push("source", self.source(topic));
        nature.push("type", kind(topic));
        if let Some(content_type) = data::content_type(event, None, false) {
            nature.push("datacontenttype", content_type);
        }
        nature
    }

    /// An event in binary mode: its attributes, and the data that is the body; no data where the payload is empty.
    pub fn binary<'a>(&'a self, event: &'a Received, dropped: Option<u64>) -> (Attributes<'a>, Option<Data<'a>>) {
        let attributes = self.attributes(event, dropped);
        let content_type = attributes.get("datacontenttype").cloned().and_then(Value::into_text);
        let data = Data::of(event, content_type);
        (attributes, data)
    }

    /// An event in structured mode: one JSON object on one line, without a line feed.
    pub fn structured(&self, event: &Received, dropped: Option<u64>) -> Bytes {
        let (attributes, data) = self.binary(event, dropped);
        attributes.to_json(data.as_ref())
    }

    fn source(&self, topic: Topic<'_>) -> &str {
        match topic {
            Topic::Api { .. } | Topic::State { .. } | Topic::Retry | Topic::Other => &self.opennebula,
            Topic::Ganeti { .. } | Topic::GanetiJob { .. } => "/ganeti",
            Topic::Hook { .. } | Topic::Custom => &self.hookbus,
        }
    }
}

impl Attributes<'_> {
    /// An event with these attributes in structured mode: one JSON object on one line, without a line feed.
    pub fn to_json(&self, data: Option<&Data<'_>>) -> Bytes {
        let mut out = Vec::with_capacity(512 + data.map_or(0, |data| data.body.len()));
        out.push(b'{');
        self.write_members(&mut out);
        if let Some(data) = data {
            out.push(b',');
            data.write_member(&mut out);
        }
        out.push(b'}');
        out.into()
    }

    /// Says that the event goes without its data, of so many bytes; at most 2147483647 is told.
    pub fn set_omitted(&mut self, bytes: u64) {
        self.push("hookbusomitted", Value::Integer(i32::try_from(bytes).unwrap_or(i32::MAX)));
    }
}

/// The attribute `type`.
fn kind(topic: Topic<'_>) -> Cow<'static, str> {
    match topic {
        Topic::Api { .. } => "org.opennebula.api".into(),
        Topic::State { object: b"VM", .. } => "org.opennebula.state.vm".into(),
        Topic::State { object: b"HOST", .. } => "org.opennebula.state.host".into(),
        Topic::State { object: b"IMAGE", .. } => "org.opennebula.state.image".into(),
        Topic::State { object: b"NET", .. } => "org.opennebula.state.net".into(),
        Topic::State { object, .. } => format!("org.opennebula.state.{}", encode_key(object).to_lowercase()).into(),
        Topic::Ganeti { path, phase, .. } => format!("org.ganeti.{}.{}", encode_key(path), encode_key(phase)).into(),
        Topic::GanetiJob { status, .. } => format!("org.ganeti.job.{}", encode_key(status)).into(),
        Topic::Retry => "org.opennebula.retry".into(),
        Topic::Other => "org.opennebula.other".into(),
        Topic::Hook { .. } => "org.hookbus.hook".into(),
        Topic::Custom => "org.hookbus.custom".into(),
    }
}

/// The attribute `subject`.
fn subject(topic: Topic<'_>) -> Option<Value<'_>> {
    match topic {
        Topic::Api { call: b"" } | Topic::Retry | Topic::Other | Topic::Custom => None,
        Topic::Api { call } => Some(encode_key(call).into()),
        Topic::State { object, id } => Some(format!("{}/{}", encode_key(object).to_lowercase(), encode_key(id)).into()),
        Topic::Ganeti { object, name, .. } => {
            Some(format!("{}/{}", encode_key(object).to_lowercase(), encode_key(name)).into())
        }
        Topic::GanetiJob { id, .. } => Some(format!("job/{}", encode_key(id)).into()),
        Topic::Hook { name } => Some(format!("hook/{}", encode_key(name)).into()),
    }
}

/// The source of a Ganeti cluster's events.
pub fn ganeti_source(cluster: &str) -> String {
    if cluster.is_empty() { "/ganeti".into() } else { format!("/ganeti/{}", utf8_percent_encode(cluster, &PATH)) }
}

/// A moment as RFC 3339 writes it, with milliseconds, in UTC.
pub fn rfc3339(time: Timestamp) -> String {
    let millis = i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    // Far beyond any clock there are years with five digits, which can't be written.
    let time = jiff::Timestamp::from_millisecond(millis).unwrap_or(jiff::Timestamp::MAX);
    format!("{time:.3}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments() {
        let text = |millis| rfc3339(Timestamp::from_millis(millis));
        assert_eq!(text(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(text(1_795_303_226_050), "2026-11-21T23:20:26.050Z");
        assert_eq!(text(u64::MAX), "9999-12-30T22:00:00.999Z");
    }

    #[test]
    fn sources_are_uri_references() {
        let encoder = Encoder::new(Sources { host: "a b/ü%".into(), zone: Some("Zone 1".into()) });
        assert_eq!(&*encoder.hookbus, "/hookbus/a%20b%2F%C3%BC%25");
        assert_eq!(&*encoder.opennebula, "/opennebula/Zone%201");
        assert_eq!(&*Encoder::new(Sources { host: "h:1".into(), zone: None }).opennebula, "/opennebula/h:1");
    }
}
