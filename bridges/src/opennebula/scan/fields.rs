//! The sink that finds header fields: OpenNebula's own driver asks a tree for the first node of a name; this keeps their text
//! and builds no tree. An element counts only if it is in no namespace. Memory is the text of the fields found.

use std::ops::Range;

use super::super::event::Kind;
use super::super::header::{Header, Span};
use super::{Sink, Start, lines, scan};

/// The fields looked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Field {
    Type,
    Call,
    Result,
    Object,
    Id,
    State,
    LcmState,
    ServiceId,
    RemoteHost,
}

const FIELDS: usize = 9;

/// Reads a header wherever in the document its fields are. Values go to `scratch`.
pub(in crate::opennebula) fn header(text: &[u8], scratch: &mut Vec<u8>) -> Header {
    let mut fields = Fields::new(scratch, false);
    scan(text, &mut fields);
    let get = |field: Field| fields.found[field as usize].clone().map(Span::in_scratch);
    let is = |field: Field, value: &[u8]| fields.value(field) == Some(value);
    let mut header = Header::default();
    if is(Field::Type, b"API") && get(Field::Call).is_some() && get(Field::Result).is_some() {
        header.kind = Kind::Api;
        header.call = get(Field::Call);
        header.result = get(Field::Result);
    } else if is(Field::Type, b"STATE") {
        let is_vm = is(Field::Object, b"VM");
        header.object = get(Field::Object);
        header.state = get(Field::State);
        header.lcm_state = get(Field::LcmState).filter(|_| is_vm);
        header.id = get(Field::Id);
        header.service_id = get(Field::ServiceId);
        header.remote_host = get(Field::RemoteHost);
        let complete = header.object.is_some() && header.state.is_some() && header.id.is_some();
        if complete && is_vm == header.lcm_state.is_some() {
            header.kind = Kind::State;
        }
    }
    header
}

/// Finds the first SERVICE_ID of a document. Its text goes to `scratch`.
pub(in crate::opennebula) fn service_id(text: &[u8], scratch: &mut Vec<u8>) -> Option<Span> {
    let mut fields = Fields::new(scratch, true);
    scan(text, &mut fields);
    fields.found[Field::ServiceId as usize].clone().map(Span::in_scratch)
}

/// An element that is open.
struct Open {
    is_call_info: bool,
    /// It is the first of this field.
    field: Option<Field>,
}

struct Fields<'s> {
    only_service: bool,
    /// How many of the open elements are fields, so that text is to be kept.
    keeping: usize,
    /// Where in `out` the text of a field is; while it is open, where it begins.
    found: [Option<Range<usize>>; FIELDS],
    out: &'s mut Vec<u8>,
}

impl<'s> Fields<'s> {
    fn new(out: &'s mut Vec<u8>, only_service: bool) -> Self {
        Fields { only_service, keeping: 0, found: Default::default(), out }
    }

    fn value(&self, field: Field) -> Option<&[u8]> {
        self.found[field as usize].clone().map(|range| &self.out[range])
    }

    /// The field that an element of this name is, if it is the first of it.
    fn field(&self, name: &[u8], parent: Option<&Open>) -> Option<Field> {
        let field = match name {
            b"SERVICE_ID" => Field::ServiceId,
            _ if self.only_service => return None,
            b"HOOK_TYPE" => Field::Type,
            b"CALL" => Field::Call,
            b"RESULT" if parent.is_some_and(|parent| parent.is_call_info) => Field::Result,
            b"HOOK_OBJECT" => Field::Object,
            b"RESOURCE_ID" => Field::Id,
            b"STATE" => Field::State,
            b"LCM_STATE" => Field::LcmState,
            b"REMOTE_HOST" => Field::RemoteHost,
            _ => return None,
        };
        self.found[field as usize].is_none().then_some(field)
    }

    /// Whether all that can matter has been found, and closed.
    fn is_complete(&self) -> bool {
        let has = |field: Field| self.found[field as usize].is_some();
        if self.keeping > 0 {
            false
        } else if self.only_service {
            true
        } else {
            match self.value(Field::Type) {
                Some(b"API") => has(Field::Call) && has(Field::Result),
                Some(b"STATE") => self
                    .found
                    .iter()
                    .enumerate()
                    .all(|(i, range)| range.is_some() || i == Field::Call as usize || i == Field::Result as usize),
                Some(_) => true,
                None => false,
            }
        }
    }
}

impl<'a> Sink<'a> for Fields<'_> {
    type Open = Open;

    fn open(&mut self, start: &Start<'a, '_>, parent: Option<&Open>) -> Open {
        let name = start.name.full();
        let plain = start.name.prefix().is_none() && !start.namespace;
        let field = if plain { self.field(name, parent) } else { None };
        if let Some(field) = field {
            self.found[field as usize] = Some(self.out.len()..self.out.len());
            self.keeping += 1;
        }
        Open { is_call_info: plain && name == b"CALL_INFO", field }
    }

    fn close(&mut self, open: Open) -> bool {
        let Some(field) = open.field else { return false };
        self.keeping -= 1;
        if let Some(range) = &mut self.found[field as usize] {
            range.end = self.out.len();
        }
        self.is_complete()
    }

    fn text(&mut self, text: &[u8]) {
        if self.keeping > 0 {
            self.out.extend_from_slice(text);
        }
    }

    fn cdata(&mut self, raw: &'a [u8]) {
        if self.keeping > 0 {
            lines(raw).for_each(|piece| self.out.extend_from_slice(piece));
        }
    }
}
