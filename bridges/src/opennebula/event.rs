//! What an event says about itself: the header of its XML.
//!
//! oned puts a header before each object or call:
//!
//! ```text
//! <HOOK_MESSAGE><HOOK_TYPE>STATE</HOOK_TYPE><HOOK_OBJECT>VM</HOOK_OBJECT><STATE>ACTIVE</STATE>
//!   <LCM_STATE>RUNNING</LCM_STATE><RESOURCE_ID>7</RESOURCE_ID><SERVICE_ID>3</SERVICE_ID>
//!   <REMOTE_HOST>node1</REMOTE_HOST><VM>...
//! <HOOK_MESSAGE><HOOK_TYPE>API</HOOK_TYPE><CALL>one.vm.allocate</CALL><CALL_INFO><RESULT>1</RESULT>...
//! ```
//!
//! OpenNebula's own driver has libxml2 parse all of it and takes the first node of each name. Since the header comes first and
//! oned makes it, reading it byte by byte gives the same. Two things lie beyond it:
//!
//! - a state event may hold a SERVICE_ID in the object only (a host's or an image's attribute, the context of a machine), and
//!   the first one counts. When the text holds `<SERVICE_ID`, and the header none, it is parsed as libxml2 parses it, with all
//!   its rules for broken documents;
//! - a header that is not exactly of this form (another version of oned, an escaped `&` in a service's name) is parsed in that
//!   way, too.
//!
//! In one point this is not what the original does, on purpose. It joins the text of *all* HOOK_TYPE nodes, so that
//! the owner of a machine can hide it from every hook by an attribute of that name. Here the first one, the header's, decides.

use std::borrow::Cow;

use memchr::memmem;

use super::header::{self, Header, Span};

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A call of oned's API has ended.
    Api,
    /// An object has changed its state.
    State,
    /// It can't be told.
    Other,
}

/// An event's header. Values are as in the document, entities decoded; those that it does not have are empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// What the other fields are about.
    pub kind: Kind,
    /// API: the call, such as `one.vm.allocate`.
    pub call: &'a [u8],
    /// API: `1` for success, `0` for failure.
    pub result: &'a [u8],
    /// State: `VM`, `HOST`, `IMAGE` or `NET`.
    pub object: &'a [u8],
    /// State: the object's number.
    pub id: &'a [u8],
    /// State: the state, such as `ACTIVE`.
    pub state: &'a [u8],
    /// State: what a machine is doing in its state, such as `RUNNING`. Empty for other objects.
    pub lcm_state: &'a [u8],
    /// State: the first SERVICE_ID in the document, if there is one. Whatever its owner wrote, not always a number.
    pub service_id: Option<&'a [u8]>,
    /// State: the host that a machine is on, or the host's own name.
    pub remote_host: &'a [u8],
    /// The whole document.
    pub xml: &'a [u8],
}

impl Event<'_> {
    /// The name of the object, for people to read. This is a search in the text, not a parser: good for a display.
    pub fn name(&self) -> Option<Cow<'_, str>> {
        let at = memmem::find(self.xml, b"<NAME>")? + b"<NAME>".len();
        let rest = &self.xml[at..];
        let text = match rest.strip_prefix(b"<![CDATA[") {
            Some(rest) => &rest[..memmem::find(rest, b"]]>")?],
            None => &rest[..memchr::memchr(b'<', rest)?],
        };
        Some(String::from_utf8_lossy(text))
    }
}

/// Memory that is kept between events; what one huge event needed is given back.
const KEEP_BYTES: usize = 1 << 20;

/// Decodes events and reads their headers, with buffers that are used again.
#[derive(Debug)]
pub(crate) struct EventParser {
    /// The decoded document.
    text: Vec<u8>,
    /// Values that are not in the document as they are.
    scratch: Vec<u8>,
    header: Header,
    /// Searches for what may be a SERVICE_ID beyond the header; made once, since each of them costs a tenth of an event.
    service_id: memmem::Finder<'static>,
}

impl Default for EventParser {
    fn default() -> Self {
        EventParser {
            text: Vec::new(),
            scratch: Vec::new(),
            header: Header::default(),
            service_id: memmem::Finder::new(b"<SERVICE_ID"),
        }
    }
}

impl EventParser {
    /// Decodes an event from strict base64; says false, and has no event, where it isn't that.
    pub(crate) fn decode_strictly(&mut self, base64: &[u8]) -> bool {
        self.clear();
        // The decoder would reserve exactly what it needs, and again for each event that is a bit longer than those before.
        self.text.reserve(base64.len() / 4 * 3 + 3);
        if base64_simd::STANDARD.decode_append(base64, &mut self.text).is_err() {
            self.text.clear();
            return false;
        }
        self.read();
        true
    }

    /// Decodes an event as far as it goes. Says whether it was strict base64.
    pub(crate) fn decode(&mut self, base64: &[u8]) -> bool {
        if self.decode_strictly(base64) {
            return true;
        }
        decode_leniently(base64, &mut self.text);
        self.read();
        false
    }

    fn clear(&mut self) {
        self.text.clear();
        self.text.shrink_to(KEEP_BYTES);
        self.scratch.clear();
        self.scratch.shrink_to(KEEP_BYTES);
        self.header = Header::default();
    }

    fn read(&mut self) {
        self.header = header::read(&self.text, &mut self.scratch, &self.service_id);
    }

    /// The event decoded last.
    pub(crate) fn event(&self) -> Event<'_> {
        let header = &self.header;
        let get = |span: Span| span.get(&self.text, &self.scratch);
        let value = |span: Option<Span>| span.map(get).unwrap_or_default();
        Event {
            kind: header.kind,
            call: value(header.call),
            result: value(header.result),
            object: value(header.object),
            id: value(header.id),
            state: value(header.state),
            lcm_state: value(header.lcm_state),
            service_id: header.service_id.map(get),
            remote_host: value(header.remote_host),
            xml: &self.text,
        }
    }
}

/// Decodes as Ruby's `Base64.decode64` does: bytes outside the alphabet are passed over, padding where padding can be ends
/// it, and of an incomplete group of four the complete bytes are taken.
fn decode_leniently(base64: &[u8], out: &mut Vec<u8>) {
    let (mut group, mut count) = (0u32, 0);
    for &byte in base64 {
        let six = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' if count > 1 => break,
            _ => continue,
        };
        group = group << 6 | u32::from(six);
        count += 1;
        if count == 4 {
            out.extend_from_slice(&group.to_be_bytes()[1..]);
            (group, count) = (0, 0);
        }
    }
    if count > 1 {
        let bytes = (group << (6 * (4 - count))).to_be_bytes();
        out.extend_from_slice(&bytes[1..count]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Ruby's `Base64.decode64` makes of it, asked of Ruby 3.1.
    #[test]
    fn lenient_decoding_is_that_of_ruby() {
        let cases = [
            ("QQ", "A"),
            ("QUI", "AB"),
            ("QUJD", "ABC"),
            ("QUJDR", "ABC"),
            ("QUJD=REVG", "ABCDEF"),
            ("QU=JDREVG", "A"),
            ("Q=UJD", "ABC"),
            ("QUJDRA=QUJD", "ABCD"),
            ("=QUJD", "ABC"),
            ("QUJDQQ==QUJD", "ABCA"),
            ("QUJDQUI=QUJD", "ABCAB"),
            ("QU-JD_RE", "ABCD"),
            ("QUJ=D", "AB"),
        ];
        for (base64, expected) in cases {
            let mut text = Vec::new();
            decode_leniently(base64.as_bytes(), &mut text);
            assert_eq!(text, expected.as_bytes(), "{base64}");
        }
    }

    #[test]
    fn a_name_is_found_in_the_object() {
        let mut events = EventParser::default();
        let mut name = |xml: &str| {
            events.decode(base64_simd::STANDARD.encode_to_string(xml).as_bytes());
            events.event().name().map(Cow::into_owned)
        };
        assert_eq!(name("<VM><ID>1</ID><NAME>web</NAME></VM>").as_deref(), Some("web"));
        assert_eq!(name("<VM><NAME><![CDATA[a<b>]]></NAME></VM>").as_deref(), Some("a<b>"));
        assert_eq!(name("<VM><NAME>"), None);
        assert_eq!(name(""), None);
    }

    /// One huge event must not keep its memory for good.
    #[test]
    fn memory_returns_after_a_huge_event() {
        let mut events = EventParser::default();
        let huge = base64_simd::STANDARD.encode_to_string(vec![b'x'; 8 << 20]);
        assert!(events.decode(huge.as_bytes()));
        assert!(events.decode(b"QUJD"));
        assert!(events.text.capacity() <= KEEP_BYTES, "{}", events.text.capacity());
    }
}
