//! An event as it goes to a bus, and what writes it.
//!
//! | format | body | content type | attributes |
//! | --- | --- | --- | --- |
//! | `cloudevents` | one JSON object: attributes and data | `application/cloudevents+json` | none |
//! | `cloudevents-binary` | the data alone, as it is | the data's; empty where it has none | all but `datacontenttype` |
//! | `raw` | OpenNebula's XML, decoded; the environment of a Ganeti hook; anything else as it is | `application/xml`; else what it brought along; else `text/plain` or `application/octet-stream` | none |
//! | `base64` | the payload as on ZeroMQ | `text/plain` | none |
//!
//! # Guarantees
//!
//! - One event gives the same letter each time, as long as the bridge's configuration stays and the same gap is before it.
//! - What is larger than the bus takes goes without `data`, and says so by the extension `hookbusomitted`: the bytes of the data that
//!   stayed behind. `raw` and `base64` have no place to say it; there, and where the attributes alone are too large, nothing goes: the
//!   event becomes a dead letter.
//! - A gap before an event is told by its `hookbusdropped`; `raw` and `base64` have no place for that, and only counters tell.

use std::borrow::Cow;
use std::fmt::Write as _;

use bytes::Bytes;
use hookbus_broker::Received;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use super::bus::{Bus, Limits};
use super::name::{EventName, digest, truncate};
use crate::PAYLOAD_BASE64;
use crate::cloudevents::{Attributes, Encoder, Format, STRUCTURED, Value, base64, raw};

/// The longest [`Letter::id`] in bytes, save what marks a retry. AMQP takes 255.
const MAX_ID_BYTES: usize = 200;

/// What stands behind the cut of an id: `~` and 32 hexadecimal digits.
const ID_MARK_BYTES: usize = 33;

/// What is encoded in the two halves of an id: what would let them run into each other, or be taken for a retry's mark.
const ID: AsciiSet = CONTROLS.add(b' ').add(b'"').add(b'%').add(b';').add(b'~');

/// What a header costs on top of its name and value, generously: separators, lengths, types, a prefix.
const HEADER_BYTES: usize = 24;

/// What a letter costs on top of what is counted, generously: fixed headers and the frame.
const FRAME_BYTES: usize = 256;

/// An event as it goes to a bus: made once, sent as often as it takes.
#[derive(Clone, Debug)]
pub struct Letter {
    /// By what repetitions are told: the event's id; of somebody else's event its source, a blank and its id, both with blanks, control
    /// characters, non-ASCII, `"`, `%`, `;` and `~` percent-encoded. It is ASCII without control characters, at most 240 bytes long
    /// (what is longer is cut, and ends in `~` and a digest), and the same each time, except that an operator's retry ends in
    /// `;replay=<n>`.
    pub id: Box<str>,
    /// Whether it was a dead letter, and an operator has it sent again.
    pub replayed: bool,
    /// The parts of its name.
    pub name: EventName,
    /// The name as this bus writes it, cut to the bus's limit.
    pub address: Box<str>,
    /// The body.
    pub body: Bytes,
    /// The body's media type; empty where nothing is known about it.
    pub content_type: Cow<'static, str>,
    /// In binary mode the attributes of the event, save its content type; else none. The values are plain text: a bus encodes
    /// them as its own binding says.
    pub attributes: Vec<(Box<str>, Box<str>)>,
    /// The CloudEvents type, such as `org.opennebula.state.vm`.
    pub kind: Box<str>,
    /// The CloudEvents source, such as `/opennebula/front`.
    pub source: Box<str>,
    /// The event itself.
    pub event: Received,
    /// How many messages were dropped just before this one.
    pub dropped: Option<u64>,
    /// Where it goes without `data` because it is too large: the bytes of the data that stayed behind.
    pub omitted: Option<u64>,
}

impl Letter {
    /// What it counts against [`Limits::letter_bytes`]: name, id, types, attributes as headers, body, and some room for what each bus adds.
    /// It is an estimate from above.
    pub fn size_bytes(&self) -> usize {
        let header = |name: &str, value: &str| HEADER_BYTES + name.len() + encoded_bytes(value);
        let attributes: usize = self.attributes.iter().map(|(name, value)| header(name, value)).sum();
        FRAME_BYTES
            + self.address.len()
            + self.id.len()
            + self.kind.len()
            + self.source.len()
            + self.content_type.len()
            + attributes
            + self.body.len()
    }

    /// What it holds in memory, about.
    pub(super) fn memory_bytes(&self) -> usize {
        let keys: usize = self.event.keys().map(<[u8]>::len).sum();
        size_of::<Letter>() + self.size_bytes() + keys + self.event.payload().len()
    }
}

/// How long a value is where a header carries it percent-encoded.
fn encoded_bytes(value: &str) -> usize {
    value.bytes().map(|byte| if byte.is_ascii_graphic() && byte != b'"' && byte != b'%' { 1 } else { 3 }).sum()
}

/// An event that there is no letter of.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Unwritten {
    /// The event.
    pub event: Received,
    /// Why.
    pub reason: Unwritable,
}

/// Why there is no letter of an event.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Unwritable {
    /// It is not for this bus: a retry, which executors on ZeroMQ understand and nobody else.
    #[error("it is for hook executors on ZeroMQ only")]
    NotForBuses,
    /// It is too large, and nothing can be left out.
    #[error("it takes {size_bytes} bytes, and the bus takes {limit_bytes} at most; {help}")]
    TooLarge {
        /// How large its letter is.
        size_bytes: usize,
        /// How large it may be.
        limit_bytes: usize,
        /// What to do.
        help: &'static str,
    },
}

/// Writes the letters of one bridge.
#[derive(Clone, Debug)]
pub struct LetterWriter {
    encoder: Encoder,
    format: Format,
    root: Box<str>,
    separator: char,
    address_bytes: usize,
}

impl LetterWriter {
    /// One that writes for this bus, in this format, with names below `root` (dots and slashes in it separate parts).
    pub fn new<B: Bus>(encoder: Encoder, format: Format, root: &str) -> Self {
        LetterWriter { encoder, format, root: root.into(), separator: B::SEPARATOR, address_bytes: B::ADDRESS_BYTES }
    }

    /// The format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Writes the letter of an event. `dropped` tells how many messages were dropped just before it, `replay` the number of an
    /// operator's retry.
    ///
    /// # Errors
    /// When there can't be a letter that this bus takes; hands the event back.
    pub fn write(
        &self,
        event: Received,
        dropped: Option<u64>,
        replay: Option<u64>,
        limits: Limits,
    ) -> Result<Letter, Box<Unwritten>> {
        let Some(name) = EventName::of(&event, &self.root) else {
            return Err(Box::new(Unwritten { event, reason: Unwritable::NotForBuses }));
        };
        let address = name.address(self.separator, self.address_bytes);
        let Content { body, content_type, attributes, kind, source } = self.content(&event, dropped);
        let id = id_of(&event, replay);
        let replayed = replay.is_some();
        let mut letter = Letter {
            id,
            replayed,
            name,
            address,
            body,
            content_type,
            attributes,
            kind,
            source,
            event,
            dropped,
            omitted: None,
        };
        let size_bytes = letter.size_bytes();
        if size_bytes <= limits.letter_bytes {
            return Ok(letter);
        }
        let too_large = |letter: Letter, size_bytes, help| {
            let reason = Unwritable::TooLarge { size_bytes, limit_bytes: limits.letter_bytes, help };
            Err(Box::new(Unwritten { event: letter.event, reason }))
        };
        if matches!(self.format, Format::Raw | Format::Base64) {
            let help = "raise its limit, or use a format of CloudEvents, which can leave out the data";
            return too_large(letter, size_bytes, help);
        }
        self.leave_out_data(&mut letter);
        match letter.size_bytes() {
            bytes if bytes > limits.letter_bytes => {
                too_large(letter, bytes, "that is without its data; raise the limit")
            }
            _ => Ok(letter),
        }
    }

    fn content(&self, event: &Received, dropped: Option<u64>) -> Content {
        let shared = |bytes| match bytes {
            // The payload itself, or a part of it, which needs no copy.
            Cow::Borrowed(part) => event.payload().slice_ref(part),
            Cow::Owned(bytes) => Bytes::from(bytes),
        };
        let (attributes, data) = match self.format {
            Format::CloudEvents | Format::CloudEventsBinary => self.encoder.binary(event, dropped),
            Format::Raw | Format::Base64 => (self.encoder.nature(event), None),
        };
        let kind = text_of(&attributes, "type").into();
        let source = text_of(&attributes, "source").into();
        let said = text_of(&attributes, "datacontenttype");
        let (body, content_type, attributes) = match self.format {
            Format::CloudEvents => (attributes.to_json(data.as_ref()), Cow::Borrowed(STRUCTURED), Vec::new()),
            Format::CloudEventsBinary => {
                (data.map_or_else(Bytes::new, |data| shared(data.body)), media_type(said), in_headers(&attributes))
            }
            Format::Raw if event.tag() == PAYLOAD_BASE64 => {
                (shared(raw(event)), Cow::Borrowed("application/xml"), Vec::new())
            }
            Format::Raw if said.is_empty() => {
                (event.payload().clone(), Cow::Borrowed("application/octet-stream"), Vec::new())
            }
            Format::Raw => (shared(raw(event)), media_type(said), Vec::new()),
            Format::Base64 => (shared(base64(event)), Cow::Borrowed("text/plain"), Vec::new()),
        };
        Content { body, content_type, attributes, kind, source }
    }

    /// Takes the data out of a letter, and says so in it.
    fn leave_out_data(&self, letter: &mut Letter) {
        let (mut attributes, data) = self.encoder.binary(&letter.event, letter.dropped);
        let bytes = data.map_or(0, |data| data.body.len()) as u64;
        attributes.set_omitted(bytes);
        let (body, headers) = match self.format {
            Format::CloudEvents => (attributes.to_json(None), Vec::new()),
            _ => (Bytes::new(), in_headers(&attributes)),
        };
        letter.body = body;
        letter.attributes = headers;
        letter.omitted = Some(bytes);
    }
}

/// What the format decides.
struct Content {
    body: Bytes,
    content_type: Cow<'static, str>,
    attributes: Vec<(Box<str>, Box<str>)>,
    kind: Box<str>,
    source: Box<str>,
}

/// By what repetitions of an event are told.
fn id_of(event: &Received, replay: Option<u64>) -> Box<str> {
    let mut id = match event.origin().filter(|origin| !origin.id.is_empty()) {
        None => event.id().to_string(),
        Some(origin) => {
            format!("{} {}", utf8_percent_encode(&origin.source, &ID), utf8_percent_encode(&origin.id, &ID))
        }
    };
    if id.len() > MAX_ID_BYTES {
        let mark = digest(&id, 16);
        truncate(&mut id, MAX_ID_BYTES - ID_MARK_BYTES);
        id.push('~');
        id.push_str(&mark);
    }
    if let Some(replay) = replay {
        write!(id, ";replay={replay}").expect("writing to memory does not fail");
    }
    id.into()
}

fn text_of<'a>(attributes: &'a Attributes<'_>, name: &str) -> &'a str {
    match attributes.get(name) {
        Some(Value::String(text)) => text,
        _ => "",
    }
}

fn in_headers(attributes: &Attributes<'_>) -> Vec<(Box<str>, Box<str>)> {
    let all = attributes.iter().filter(|(name, _)| *name != "datacontenttype");
    all.map(|(name, value)| (name.into(), value.to_string().into())).collect()
}

/// A media type as it can stand in any bus's header. What is none, because a program published it so, says nothing.
fn media_type(said: &str) -> Cow<'static, str> {
    match said {
        "application/json" => Cow::Borrowed("application/json"),
        "text/plain" => Cow::Borrowed("text/plain"),
        _ if said.len() <= 255 && said.bytes().all(|byte| matches!(byte, b' '..=b'~')) => Cow::Owned(said.to_owned()),
        _ => Cow::Borrowed("application/octet-stream"),
    }
}

#[cfg(test)]
mod tests {
    use hookbus_broker::{EventId, LogId, Message, Offset, Origin, Timestamp};

    use super::super::bus::{Fault, Receipt, Receipts, SendError, Sender, Ticket};
    use super::*;
    use crate::cloudevents::Sources;

    /// A bus that is only a type.
    struct Dots;

    impl Bus for Dots {
        type Sender = Dots;
        type Receipts = Dots;
        const SEPARATOR: char = '.';

        fn acknowledges(&self) -> bool {
            true
        }

        async fn connect(&mut self) -> Result<(Dots, Dots), Fault> {
            Err(Fault::passing("there is none"))
        }
    }

    impl Sender for Dots {
        fn limits(&self) -> Limits {
            Limits::default()
        }

        async fn send(&mut self, _ticket: Ticket, _letter: &Letter) -> Result<(), SendError> {
            Ok(())
        }

        async fn close(self) {}
    }

    impl Receipts for Dots {
        async fn next(&mut self, _into: &mut Vec<Receipt>) -> Result<(), Fault> {
            Ok(())
        }
    }

    fn event(message: Message) -> Received {
        let id = EventId { log: LogId::new(0xAB), offset: Offset::new(7) };
        Received::restored(id, message.with_time(Timestamp::from_millis(0)))
    }

    fn imported(id: &str, source: &str) -> Received {
        let attributes = "{\"type\":\"t\",\"datacontenttype\":\"a/b\",\"subject\":\"\u{fc}\"}".into();
        event(Message::new("k", "data").with_origin(Origin { id: id.into(), source: source.into(), attributes }))
    }

    fn write(format: Format, event: Received, replay: Option<u64>) -> Letter {
        let encoder = Encoder::new(Sources { host: "h".into(), zone: None });
        LetterWriter::new::<Dots>(encoder, format, "hookbus").write(event, None, replay, Limits::default()).unwrap()
    }

    fn id(event: Received, replay: Option<u64>) -> String {
        write(Format::Raw, event, replay).id.into()
    }

    #[test]
    fn ids_are_unique_over_sources_and_retries() {
        assert_eq!(id(event(Message::new("k", "")), None), "00000000000000ab-7");
        assert_eq!(id(event(Message::new("k", "")), Some(3)), "00000000000000ab-7;replay=3");
        assert_eq!(id(imported("1", "/s"), None), "/s 1");
        assert_eq!(id(imported("1;replay=1", "/s"), None), "/s 1%3Breplay=1", "nobody else's id looks like a retry");
        assert_ne!(id(imported("b c", "a"), None), id(imported("c", "a b"), None));
        assert_eq!(id(imported("\u{fc}\n", "%"), None), "%25 %C3%BC%0A");
        let long = |end: &str| id(imported(&format!("{}{end}", "x".repeat(500)), "/s"), Some(u64::MAX));
        assert!(long("1").len() <= 240 && long("1") != long("2") && long("1") == long("1"));
    }

    #[test]
    fn what_each_format_carries() {
        let xml = "<HOOK_MESSAGE><HOOK_TYPE>API</HOOK_TYPE></HOOK_MESSAGE>";
        let base64 = base64_simd::STANDARD.encode_to_string(xml);
        let opennebula = || event(Message::new("EVENT API one.vm.x 1", base64.clone()).with_tag(PAYLOAD_BASE64));
        let table = [
            (Format::Raw, opennebula(), xml, "application/xml"),
            (Format::Base64, opennebula(), &*base64, "text/plain"),
            (Format::CloudEventsBinary, opennebula(), "{\"HOOK_TYPE\":\"API\"}", "application/json"),
            (Format::Raw, event(Message::new("k", "text")), "text", "text/plain"),
            (Format::Raw, imported("1", "/s"), "data", "a/b"),
            (Format::Base64, event(Message::new("k", "text")), "dGV4dA==", "text/plain"),
            (Format::CloudEventsBinary, imported("1", "/s"), "data", "a/b"),
        ];
        for (format, event, body, content_type) in table {
            let letter = write(format, event, None);
            assert_eq!((&*letter.body, &*letter.content_type), (body.as_bytes(), content_type), "{format:?}");
            assert_eq!(letter.attributes.is_empty(), format != Format::CloudEventsBinary);
        }
        let unknown = write(Format::Raw, event(Message::new("k", vec![0xFF])), None);
        assert_eq!(unknown.content_type, "application/octet-stream");

        let structured = write(Format::CloudEvents, opennebula(), None);
        assert_eq!((&*structured.content_type, &*structured.kind), (STRUCTURED, "org.opennebula.api"));
        let json: serde_json::Value = serde_json::from_slice(&structured.body).unwrap();
        assert_eq!((&json["id"], &json["data"]["HOOK_TYPE"]), (&"00000000000000ab-7".into(), &"API".into()));

        let binary = write(Format::CloudEventsBinary, imported("1", "/s"), Some(1));
        let value =
            |name: &str| binary.attributes.iter().find(|(known, _)| &**known == name).map(|(_, value)| &**value);
        assert_eq!((value("id"), value("source"), value("subject")), (Some("1"), Some("/s"), Some("\u{fc}")));
        assert_eq!((value("datacontenttype"), &*binary.id, &*binary.kind), (None, "/s 1;replay=1", "t"));
    }

    #[test]
    fn what_is_too_large_even_without_data_is_handed_back() {
        let encoder = Encoder::new(Sources { host: "h".into(), zone: None });
        let limits = Limits { letter_bytes: 1500, ..Limits::default() };
        for format in [Format::CloudEvents, Format::CloudEventsBinary, Format::Raw, Format::Base64] {
            let writer = LetterWriter::new::<Dots>(encoder.clone(), format, "hookbus");
            let written = writer.write(event(Message::new("k", "x".repeat(2000))), Some(4), None, limits);
            if matches!(format, Format::Raw | Format::Base64) {
                let unwritten = written.unwrap_err();
                assert_eq!(unwritten.event.payload().len(), 2000);
                assert!(unwritten.to_string().contains("1500"), "{unwritten}");
                continue;
            }
            let letter = written.unwrap();
            assert_eq!((letter.omitted, letter.dropped), (Some(2000), Some(4)));
            assert!(letter.size_bytes() <= 1500);
            let key = "k".repeat(5000);
            assert!(writer.write(event(Message::new(key, "x")), None, None, limits).is_err());
        }
    }
}
