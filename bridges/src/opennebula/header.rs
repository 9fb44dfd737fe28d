//! Reads an event's header: byte for byte where it has the form that oned gives it, else with the tolerant scan.

use std::ops::Range;

use memchr::{memchr, memmem};

use super::event::Kind;
use super::scan;

/// A value: a part of the document, or of the buffer for values that are not in it as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    start: usize,
    end: usize,
    in_scratch: bool,
}

impl Span {
    fn in_text(range: Range<usize>) -> Self {
        Span { start: range.start, end: range.end, in_scratch: false }
    }

    pub(crate) fn in_scratch(range: Range<usize>) -> Self {
        Span { start: range.start, end: range.end, in_scratch: true }
    }

    pub(crate) fn get<'a>(self, text: &'a [u8], scratch: &'a [u8]) -> &'a [u8] {
        &(if self.in_scratch { scratch } else { text })[self.start..self.end]
    }
}

/// Where the values of a header are; `None` where there is no such element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) call: Option<Span>,
    pub(crate) result: Option<Span>,
    pub(crate) object: Option<Span>,
    pub(crate) id: Option<Span>,
    pub(crate) state: Option<Span>,
    pub(crate) lcm_state: Option<Span>,
    pub(crate) service_id: Option<Span>,
    pub(crate) remote_host: Option<Span>,
}

impl Default for Header {
    fn default() -> Self {
        Header {
            kind: Kind::Other,
            call: None,
            result: None,
            object: None,
            id: None,
            state: None,
            lcm_state: None,
            service_id: None,
            remote_host: None,
        }
    }
}

/// Reads the header of a document. Values that must be made are put into `scratch`; `service_id` finds `<SERVICE_ID`.
pub(crate) fn read(text: &[u8], scratch: &mut Vec<u8>, service_id: &memmem::Finder<'_>) -> Header {
    let Some(mut header) = read_exact(text) else { return scan::header(text, scratch) };
    if header.kind == Kind::State && header.service_id.is_none() && service_id.find(text).is_some() {
        header.service_id = scan::service_id(text, scratch);
    }
    header
}

/// Reads a header of exactly the recorded form, up to the object or to RESULT. Says `None` where it is not certain that
/// libxml2 would see the same.
fn read_exact(text: &[u8]) -> Option<Header> {
    let mut at = Reader { text, at: 0 };
    at.expect(b"<HOOK_MESSAGE><HOOK_TYPE>")?;
    let mut header = Header::default();
    if at.expect(b"API</HOOK_TYPE><CALL>").is_some() {
        header.kind = Kind::Api;
        header.call = Some(at.value(b"CALL")?);
        at.expect(b"<CALL_INFO><RESULT>")?;
        header.result = Some(at.value(b"RESULT")?);
        return Some(header);
    }
    at.expect(b"STATE</HOOK_TYPE><HOOK_OBJECT>")?;
    header.kind = Kind::State;
    header.object = Some(at.value(b"HOOK_OBJECT")?);
    // The order of these differs between objects. The first that is none of them is the object itself.
    loop {
        if at.expect(b"<STATE>").is_some() {
            put(&mut header.state, at.value(b"STATE")?);
        } else if at.expect(b"<LCM_STATE>").is_some() {
            put(&mut header.lcm_state, at.value(b"LCM_STATE")?);
        } else if at.expect(b"<RESOURCE_ID>").is_some() {
            put(&mut header.id, at.value(b"RESOURCE_ID")?);
        } else if at.expect(b"<SERVICE_ID>").is_some() {
            put(&mut header.service_id, at.value(b"SERVICE_ID")?);
        } else if at.expect(b"<REMOTE_HOST>").is_some() {
            put(&mut header.remote_host, at.value(b"REMOTE_HOST")?);
        } else if at.expect(b"<REMOTE_HOST/>").is_some() {
            put(&mut header.remote_host, Span::in_text(0..0));
        } else {
            break;
        }
    }
    let is_vm = header.object.is_some_and(|object| object.get(text, &[]) == b"VM");
    if header.state.is_none() || header.id.is_none() || is_vm != header.lcm_state.is_some() {
        return None;
    }
    Some(header)
}

/// The first of a name counts.
fn put(field: &mut Option<Span>, value: Span) {
    field.get_or_insert(value);
}

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn expect(&mut self, what: &[u8]) -> Option<()> {
        self.text[self.at..].starts_with(what).then(|| self.at += what.len())
    }

    /// The text up to the end tag of that name.
    fn value(&mut self, name: &[u8]) -> Option<Span> {
        let start = self.at;
        let end = start + memchr(b'<', &self.text[start..])?;
        self.at = end;
        self.expect(b"</")?;
        self.expect(name)?;
        self.expect(b">")?;
        // `&` begins an entity, `]` may be the misplaced end of a CDATA section, and what is not printable ASCII may not be
        // XML, or change how the rest is decoded: for those, ask the scan.
        let plain = |&byte: &u8| matches!(byte, b' '..=b'~') && byte != b'&' && byte != b']';
        self.text[start..end].iter().all(plain).then(|| Span::in_text(start..end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(text: &str) -> (Header, Vec<u8>) {
        let mut scratch = Vec::new();
        let header = read(text.as_bytes(), &mut scratch, &memmem::Finder::new(b"<SERVICE_ID"));
        (header, scratch)
    }

    /// The exact reader and the scan agree on what the exact reader accepts.
    #[test]
    fn exact_and_tolerant_reading_agree() {
        let values = |header: &Header, text: &[u8], scratch: &[u8]| {
            let fields = [header.call, header.result, header.object, header.id, header.state, header.lcm_state];
            let fields = fields.into_iter().chain([header.service_id, header.remote_host]);
            fields.map(|span| span.map(|span| span.get(text, scratch).to_vec())).collect::<Vec<_>>()
        };
        for text in [
            "<HOOK_MESSAGE><HOOK_TYPE>API</HOOK_TYPE><CALL>one.vm.x</CALL><CALL_INFO><RESULT>1</RESULT></CALL_INFO>",
            "<HOOK_MESSAGE><HOOK_TYPE>STATE</HOOK_TYPE><HOOK_OBJECT>VM</HOOK_OBJECT><STATE>A</STATE><LCM_STATE>B</LCM_STATE>\
             <RESOURCE_ID>7</RESOURCE_ID><SERVICE_ID>x y</SERVICE_ID><REMOTE_HOST/><VM><STATE>3</STATE></VM></HOOK_MESSAGE>",
            "<HOOK_MESSAGE><HOOK_TYPE>STATE</HOOK_TYPE><HOOK_OBJECT>HOST</HOOK_OBJECT><STATE>A</STATE><REMOTE_HOST>h</REMOTE_HOST>\
             <RESOURCE_ID>7</RESOURCE_ID><HOST></HOST></HOOK_MESSAGE>",
        ] {
            let exact = read_exact(text.as_bytes()).unwrap();
            let mut scratch = Vec::new();
            let scanned = scan::header(text.as_bytes(), &mut scratch);
            assert_eq!(exact.kind, scanned.kind);
            assert_eq!(values(&exact, text.as_bytes(), &[]), values(&scanned, text.as_bytes(), &scratch));
        }
    }

    #[test]
    fn entities_in_the_header_are_decoded() {
        let (header, scratch) = read_all(
            "<HOOK_MESSAGE><HOOK_TYPE>STATE</HOOK_TYPE><HOOK_OBJECT>VM</HOOK_OBJECT><STATE>A</STATE><LCM_STATE>B</LCM_STATE>\
             <RESOURCE_ID>7</RESOURCE_ID><SERVICE_ID>a &amp; b&#x41;</SERVICE_ID><VM/></HOOK_MESSAGE>",
        );
        assert_eq!(header.kind, Kind::State);
        assert_eq!(header.service_id.unwrap().get(&[], &scratch), b"a & bA");
    }

    #[test]
    fn an_incomplete_header_is_no_event() {
        for text in [
            "",
            "<HOOK_MESSAGE>",
            "<HOOK_MESSAGE><HOOK_TYPE>API</HOOK_TYPE><CALL>x</CALL>",
            "<HOOK_MESSAGE><HOOK_TYPE>STATE</HOOK_TYPE><HOOK_OBJECT>VM</HOOK_OBJECT><STATE>A</STATE><RESOURCE_ID>7</RESOURCE_ID>",
            "<HOOK_MESSAGE><HOOK_TYPE>OTHER</HOOK_TYPE></HOOK_MESSAGE>",
        ] {
            assert_eq!(read_all(text).0.kind, Kind::Other, "{text}");
        }
    }
}
