//! Finds header fields in any document, as libxml2 would after it has repaired the document.
//!
//! OpenNebula's own driver gives each event to libxml2 (2.9) in recovery mode and asks for the first node of a name. To publish
//! the same keys without building a tree, this follows the same rules and keeps only a stack of open elements.
//! The rules matter since a document may be broken by what users wrote; most of them were learned by comparing
//! (`tests/nokogiri.rs`):
//!
//! - An end tag closes the element that is open last, whatever its name. When the root is closed, parsing ends.
//! - `<` before what can't be a name is passed over. A start tag that can't be read to its end is an empty element, and the rest
//!   of it is text.
//! - A CDATA section or comment without an end swallows the rest of the document; one with a character that XML forbids ends
//!   at this character (the section's text is lost then).
//! - Text: forbidden characters are passed over. `]]>` loses the text before it back to the last markup or non-ASCII character.
//! - A numeric reference stays; a named one counts only as long as the document was well-formed so far; an incomplete or
//!   unknown one vanishes.
//! - The first byte sequence that is no UTF-8 turns the rest of the document into Latin-1; the bytes themselves stay.
//! - A NUL byte ends the document, and so does the 258th level of elements.
//! - An element counts only if it is in no namespace.
//!
//! Left out, because oned writes the beginning of each document and cannot write these: an XML declaration with an
//! encoding, other encodings by byte order mark, and a DOCTYPE. Left out, too: libxml2's limit of 10 MB for one text.
//!
//! Time is linear in the document (n log n in the attributes of one tag). Memory is the text of the fields found.

use std::ops::Range;

use super::event::Kind;
use super::header::{Header, Span};

/// Elements may be nested that deep.
const MAX_DEPTH: usize = 257;

/// A longer name is an error.
const MAX_NAME_BYTES: usize = 50_000;

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
pub(crate) fn header(text: &[u8], scratch: &mut Vec<u8>) -> Header {
    let mut scan = Scan::new(text, scratch, false);
    scan.document();
    let get = |field: Field| scan.found[field as usize].clone().map(Span::in_scratch);
    let is = |field: Field, value: &[u8]| scan.value(field) == Some(value);
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
pub(crate) fn service_id(text: &[u8], scratch: &mut Vec<u8>) -> Option<Span> {
    let mut scan = Scan::new(text, scratch, true);
    scan.document();
    scan.found[Field::ServiceId as usize].clone().map(Span::in_scratch)
}

/// A name: a part of the document.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Name<'a> {
    prefix: Option<&'a [u8]>,
    local: &'a [u8],
}

/// An element that is open.
struct Open<'a> {
    name: Name<'a>,
    /// What the default namespace is outside of it.
    outer_namespace: bool,
    /// It is CALL_INFO.
    is_call_info: bool,
    /// It is the first of this field.
    field: Option<Field>,
}

struct Scan<'a, 's> {
    text: &'a [u8],
    at: usize,
    /// An encoding error has been seen.
    latin1: bool,
    /// No error has been seen.
    well_formed: bool,
    /// Nothing more is to be read.
    done: bool,
    only_service: bool,
    stack: Vec<Open<'a>>,
    /// A default namespace is in force.
    namespace: bool,
    /// How many of the open elements are fields, so that text is to be kept.
    keeping: usize,
    /// Where in `out` the text of a field is; while it is open, where it begins.
    found: [Option<Range<usize>>; FIELDS],
    out: &'s mut Vec<u8>,
}

impl<'a, 's> Scan<'a, 's> {
    fn new(text: &'a [u8], out: &'s mut Vec<u8>, only_service: bool) -> Self {
        Scan {
            text,
            at: 0,
            latin1: false,
            well_formed: true,
            done: false,
            only_service,
            stack: Vec::new(),
            namespace: false,
            keeping: 0,
            found: Default::default(),
            out,
        }
    }

    fn value(&self, field: Field) -> Option<&[u8]> {
        self.found[field as usize].clone().map(|range| &self.out[range])
    }

    // ---- The document

    fn document(&mut self) {
        if self.text.starts_with(b"\xEF\xBB\xBF") {
            self.at = 3;
        }
        // Before the root: comments, processing instructions, blanks.
        loop {
            self.skip_blanks();
            if self.looking_at(b"<?") {
                self.processing_instruction();
            } else if self.looking_at(b"<!--") {
                self.comment();
            } else {
                break;
            }
        }
        if self.byte(0) == b'<' && self.start_tag() {
            self.content();
        }
        // What is still open ends with the document.
        while self.close() {}
    }

    /// The content of the root, and all below it, up to the root's end.
    fn content(&mut self) {
        while !self.done && self.byte(0) != 0 {
            match (self.byte(0), self.byte(1)) {
                (b'<', b'?') => self.processing_instruction(),
                (b'<', b'!') if self.looking_at(b"<![CDATA[") => self.cdata(),
                (b'<', b'!') if self.looking_at(b"<!--") => self.comment(),
                (b'<', b'/') => {
                    self.end_tag();
                    if self.stack.is_empty() {
                        return;
                    }
                }
                (b'<', _) => {
                    self.start_tag();
                }
                (b'&', _) => self.reference(),
                _ => self.char_data(),
            }
        }
    }

    // ---- Elements

    /// Reads a start tag and opens its element. Says whether it is open then: not when it is empty, or broken.
    fn start_tag(&mut self) -> bool {
        if self.stack.len() >= MAX_DEPTH {
            self.done = true;
            return false;
        }
        self.at += 1;
        let Some(name) = self.qname() else {
            self.error();
            return false;
        };
        let outer_namespace = self.namespace;
        self.attributes();
        self.open(name, outer_namespace);
        if self.looking_at(b"/>") {
            self.at += 2;
            self.close();
            false
        } else if self.byte(0) == b'>' {
            self.at += 1;
            true
        } else {
            self.error();
            self.close();
            false
        }
    }

    fn end_tag(&mut self) {
        self.at += 2;
        if let Some(open) = self.stack.last() {
            let Name { prefix, local } = open.name;
            // A name in an end tag is read with its colons, unless the start tag had a prefix. That can differ in what is
            // read of a broken name.
            let read = match prefix {
                None => self.name().map(|name| Name { prefix: None, local: name }),
                Some(_) => self.qname(),
            };
            if read != Some(Name { prefix, local }) {
                self.error();
            }
        }
        self.skip_blanks();
        if self.byte(0) == b'>' {
            self.at += 1;
        } else {
            self.error();
        }
        self.close();
    }

    fn open(&mut self, name: Name<'a>, outer_namespace: bool) {
        let plain = name.prefix.is_none() && !self.namespace;
        let field = if plain { self.field(name.local) } else { None };
        if let Some(field) = field {
            self.found[field as usize] = Some(self.out.len()..self.out.len());
            self.keeping += 1;
        }
        let is_call_info = plain && name.local == b"CALL_INFO";
        self.stack.push(Open { name, outer_namespace, is_call_info, field });
    }

    /// The field that an element of this name is, if it is the first of it.
    fn field(&self, name: &[u8]) -> Option<Field> {
        let field = match name {
            b"SERVICE_ID" => Field::ServiceId,
            _ if self.only_service => return None,
            b"HOOK_TYPE" => Field::Type,
            b"CALL" => Field::Call,
            b"RESULT" if self.stack.last().is_some_and(|parent| parent.is_call_info) => Field::Result,
            b"HOOK_OBJECT" => Field::Object,
            b"RESOURCE_ID" => Field::Id,
            b"STATE" => Field::State,
            b"LCM_STATE" => Field::LcmState,
            b"REMOTE_HOST" => Field::RemoteHost,
            _ => return None,
        };
        self.found[field as usize].is_none().then_some(field)
    }

    /// Closes the element that was opened last, if there is one.
    fn close(&mut self) -> bool {
        let Some(open) = self.stack.pop() else { return false };
        self.namespace = open.outer_namespace;
        if let Some(field) = open.field {
            self.keeping -= 1;
            if let Some(range) = &mut self.found[field as usize] {
                range.end = self.out.len();
            }
            self.done |= self.is_complete();
        }
        true
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

    // ---- Attributes

    /// Reads attributes up to the end of the start tag or to what is none. All that matters of them is where they end, whether
    /// they are an error, and the default namespace.
    fn attributes(&mut self) {
        let (mut names, mut prefixes) = (Vec::new(), Vec::new());
        let mut has_default = false;
        let mut value = Vec::new();
        self.skip_blanks();
        while self.byte(0) != b'>' && !self.looking_at(b"/>") && is_xml_byte(self.byte(0)) {
            let Some(name) = self.qname() else {
                self.error();
                break;
            };
            self.skip_blanks();
            value.clear();
            let has_value = if self.byte(0) == b'=' {
                self.next_char();
                self.skip_blanks();
                self.attribute_value(&mut value)
            } else {
                self.error();
                false
            };
            const XML: &[u8] = b"http://www.w3.org/XML/1998/namespace";
            const XMLNS: &[u8] = b"http://www.w3.org/2000/xmlns/";
            if has_value {
                if name == (Name { prefix: None, local: b"xmlns" }) {
                    if value != XML && value != XMLNS {
                        if has_default {
                            self.error();
                        } else {
                            has_default = true;
                            self.namespace = !value.is_empty();
                        }
                    }
                } else if name.prefix == Some(b"xmlns") {
                    let reserved = matches!(name.local, b"xml" | b"xmlns") || value == XML || value == XMLNS;
                    if !reserved && !value.is_empty() {
                        prefixes.push(name);
                    }
                } else {
                    names.push(name);
                }
            }
            if self.byte(0) == b'>' || self.looking_at(b"/>") {
                break;
            }
            if self.skip_blanks() == 0 {
                self.error();
                break;
            }
        }
        for names in [&mut names, &mut prefixes] {
            names.sort_unstable();
            if names.windows(2).any(|pair| pair[0] == pair[1]) {
                self.error();
            }
        }
    }

    /// Reads a value in quotes. Says whether there is one; where it has no end it is one all the same.
    fn attribute_value(&mut self, value: &mut Vec<u8>) -> bool {
        let quote = self.byte(0);
        if quote != b'"' && quote != b'\'' {
            self.error();
            return false;
        }
        self.next_char();
        let (mut c, mut length) = self.current_char();
        while self.byte(0) != quote && is_xml_char(c) && c != u32::from(b'<') {
            if c == u32::from(b'&') {
                if self.byte(1) == b'#' {
                    match self.char_reference() {
                        Some('&') => value.extend_from_slice(b"&#38;"),
                        Some(c) => value.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
                        None => {}
                    }
                } else {
                    match self.entity_reference() {
                        Some(b'&') => value.extend_from_slice(b"&#38;"),
                        Some(c) => value.push(c),
                        None => {}
                    }
                }
            } else {
                if matches!(c, 0x20 | 0x0D | 0x0A | 0x09) {
                    value.push(b' ');
                } else {
                    value.extend_from_slice(&self.text[self.at..self.at + length]);
                }
                self.at += length;
            }
            (c, length) = self.current_char();
        }
        if self.byte(0) == quote {
            self.next_char();
        } else {
            self.error();
        }
        true
    }

    // ---- Text

    fn emit(&mut self, range: Range<usize>) {
        if self.keeping > 0 {
            self.out.extend_from_slice(&self.text[range]);
        }
    }

    fn char_data(&mut self) {
        let byte = |at: usize| self.text.get(at).copied().unwrap_or(0);
        let mut at = self.at;
        loop {
            while matches!(byte(at), b' ' | b'\n') {
                at += 1;
            }
            if byte(at) == b'<' {
                self.emit(self.at..at);
                self.at = at;
                return;
            }
            loop {
                match byte(at) {
                    b'<' | b'&' => break,
                    b']' if byte(at + 1) == b']' && byte(at + 2) == b'>' => {
                        self.error();
                        self.at = at + 1;
                        return;
                    }
                    b' '..=0x7F | b'\t' | b'\n' => at += 1,
                    _ => break,
                }
            }
            self.emit(self.at..at);
            self.at = at;
            match byte(at) {
                b'\r' if byte(at + 1) == b'\n' => {
                    self.at = at + 1;
                    at += 2;
                }
                b'<' | b'&' => return,
                _ => {}
            }
            if !matches!(byte(at), b' '..=0x7F | b'\t' | b'\n') {
                break;
            }
        }
        self.char_data_beyond_ascii();
    }

    fn char_data_beyond_ascii(&mut self) {
        let (mut c, mut length) = self.current_char();
        while c != u32::from(b'<') && c != u32::from(b'&') && is_xml_char(c) {
            if self.looking_at(b"]]>") {
                self.error();
            }
            self.emit_char(c, length);
            self.at += length;
            (c, length) = self.current_char();
        }
        if self.at < self.text.len() && !is_xml_char(c) {
            self.error();
            self.next_char();
        }
    }

    /// Keeps the character here, a CR as LF.
    fn emit_char(&mut self, c: u32, length: usize) {
        if self.keeping > 0 {
            match u8::try_from(c) {
                Ok(byte) if length == 1 => self.out.push(byte),
                _ => self.out.extend_from_slice(&self.text[self.at..self.at + length]),
            }
        }
    }

    fn reference(&mut self) {
        if self.byte(1) == b'#' {
            let Some(c) = self.char_reference() else { return };
            if self.keeping > 0 {
                if !self.latin1 {
                    self.out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                } else if let Ok(byte) = u8::try_from(u32::from(c)) {
                    self.out.push(byte);
                }
            }
        } else if let Some(c) = self.entity_reference()
            && self.well_formed
            && self.keeping > 0
        {
            self.out.push(c);
        }
    }

    /// Reads `&#...;`.
    fn char_reference(&mut self) -> Option<char> {
        let hex = self.byte(2) == b'x';
        self.at += if hex { 3 } else { 2 };
        let (mut value, mut count) = (0u32, 0);
        while self.byte(0) != b';' {
            // Letters are not taken after the tenth digit or so; a quirk, but one that decides what is text.
            if count > 20 {
                count = 0;
            } else {
                count += 1;
            }
            let digit = match self.byte(0) {
                byte @ b'0'..=b'9' => byte - b'0',
                byte @ b'a'..=b'f' if hex && count < 20 => byte - b'a' + 10,
                byte @ b'A'..=b'F' if hex && count < 20 => byte - b'A' + 10,
                _ => {
                    self.error();
                    value = 0;
                    break;
                }
            };
            value = (value * if hex { 16 } else { 10 } + u32::from(digit)).min(0x11_0000);
            self.next_char();
            count += 1;
        }
        if self.byte(0) == b';' {
            self.at += 1;
        }
        if !is_xml_char(value) {
            self.error();
            return None;
        }
        char::from_u32(value)
    }

    /// Reads `&...;`. What it stands for, if it is one of the five that XML knows.
    fn entity_reference(&mut self) -> Option<u8> {
        self.next_char();
        let name = self.name();
        if name.is_none() || self.byte(0) != b';' {
            self.error();
            return None;
        }
        self.next_char();
        match name {
            Some(b"amp") => Some(b'&'),
            Some(b"lt") => Some(b'<'),
            Some(b"gt") => Some(b'>'),
            Some(b"quot") => Some(b'"'),
            Some(b"apos") => Some(b'\''),
            _ => {
                self.error();
                None
            }
        }
    }

    fn cdata(&mut self) {
        self.at += b"<![CDATA[".len();
        let kept = self.out.len();
        // The last two characters, to find the end.
        let (mut before, mut last) = (0, 0);
        let mut count = 0;
        loop {
            let (c, length) = self.current_char();
            if !is_xml_char(c) {
                self.error();
                self.out.truncate(kept);
                return;
            }
            if count >= 2 && before == u32::from(b']') && last == u32::from(b']') && c == u32::from(b'>') {
                self.at += length;
                if self.keeping > 0 {
                    self.out.truncate(self.out.len() - 2);
                }
                return;
            }
            self.emit_char(c, length);
            self.at += length;
            (before, last) = (last, c);
            count += 1;
        }
    }

    // ---- Comments and processing instructions

    fn comment(&mut self) {
        self.at += b"<!--".len();
        loop {
            match self.byte(0) {
                b'-' if self.looking_at(b"-->") => {
                    self.at += 3;
                    return;
                }
                b'-' if self.byte(1) == b'-' => {
                    self.error();
                    self.at += 2;
                }
                b' '..=0x7F | b'\t' | b'\n' => self.at += 1,
                b'\r' if self.byte(1) == b'\n' => self.at += 2,
                _ => break,
            }
        }
        // Beyond ASCII: from here on characters are decoded, and the two before each are known.
        let (mut before, mut last) = (None, None);
        loop {
            let (c, length) = self.current_char();
            if !is_xml_char(c) {
                self.error();
                return;
            }
            let dash = Some(u32::from(b'-'));
            if before == dash && last == dash {
                if c == u32::from(b'>') {
                    self.next_char();
                    return;
                }
                self.error();
            }
            self.at += length;
            (before, last) = (last, Some(c));
        }
    }

    fn processing_instruction(&mut self) {
        self.at += 2;
        let Some(target) = self.name() else {
            self.error();
            return;
        };
        if target.eq_ignore_ascii_case(b"xml") {
            self.error();
        }
        if self.looking_at(b"?>") {
            self.at += 2;
            return;
        }
        if self.skip_blanks() == 0 {
            self.error();
        }
        loop {
            let (c, length) = self.current_char();
            if !is_xml_char(c) {
                self.error();
                return;
            }
            if self.looking_at(b"?>") {
                self.at += 2;
                return;
            }
            self.at += length;
        }
    }

    // ---- Names

    /// Reads a name with its prefix.
    fn qname(&mut self) -> Option<Name<'a>> {
        let start = self.at;
        let Some(first) = self.ncname() else {
            // A name that begins with a colon.
            let local = if self.byte(0) == b':' { self.name()? } else { return None };
            return Some(Name { prefix: None, local });
        };
        if self.byte(0) != b':' {
            return Some(Name { prefix: None, local: first });
        }
        self.next_char();
        let second = self.at;
        if self.ncname().is_none() {
            // `a:` and what else may be in a name belong together.
            self.nmtoken();
            return Some(Name { prefix: None, local: &self.text[start..self.at] });
        }
        if self.byte(0) == b':' {
            self.next_char();
            let _ = self.name();
        }
        Some(Name { prefix: Some(first), local: &self.text[second..self.at] })
    }

    /// Reads a name, colons included.
    fn name(&mut self) -> Option<&'a [u8]> {
        self.read_name(true)
    }

    /// Reads a name without a colon.
    fn ncname(&mut self) -> Option<&'a [u8]> {
        self.read_name(false)
    }

    fn read_name(&mut self, colon: bool) -> Option<&'a [u8]> {
        let start = self.at;
        let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || b"_-.".contains(byte) || (colon && *byte == b':');
        if self.byte(0).is_ascii_alphabetic() || self.byte(0) == b'_' || (colon && self.byte(0) == b':') {
            let end = start + self.text[start..].iter().take_while(|byte| is_part(byte)).count();
            if matches!(self.text.get(end), Some(1..0x80)) {
                if end - start > MAX_NAME_BYTES {
                    self.error();
                    return None;
                }
                self.at = end;
                return Some(&self.text[start..end]);
            }
        }
        let allowed = |c: u32| colon || c != u32::from(b':');
        let (mut c, mut length) = self.current_char();
        if !is_name_start(c) || !allowed(c) {
            return None;
        }
        let mut bytes = 0;
        while is_name_char(c) && allowed(c) {
            bytes += length;
            self.at += length;
            (c, length) = self.current_char();
        }
        if bytes > MAX_NAME_BYTES {
            self.error();
            return None;
        }
        Some(&self.text[start..start + bytes])
    }

    fn nmtoken(&mut self) {
        let (mut c, mut length) = self.current_char();
        while is_name_char(c) {
            self.at += length;
            (c, length) = self.current_char();
        }
    }

    // ---- Characters

    fn error(&mut self) {
        self.well_formed = false;
    }

    /// The byte so many places on, 0 at the end.
    fn byte(&self, ahead: usize) -> u8 {
        self.text.get(self.at + ahead).copied().unwrap_or(0)
    }

    fn looking_at(&self, what: &[u8]) -> bool {
        self.text[self.at..].starts_with(what)
    }

    fn skip_blanks(&mut self) -> usize {
        let blanks =
            self.text[self.at..].iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r')).count();
        self.at += blanks;
        blanks
    }

    /// The character here and its length. The end, and what can't be decoded at the end, is 0. Of a CR and LF the CR is
    /// passed over.
    fn current_char(&mut self) -> (u32, usize) {
        let byte = self.byte(0);
        match byte {
            b' '..=0x7F => return (u32::from(byte), 1),
            b'\r' => {
                if self.byte(1) == b'\n' {
                    self.at += 1;
                }
                return (u32::from(b'\n'), 1);
            }
            0x80.. if !self.latin1 => {}
            0 => {
                self.error();
                return (0, 1);
            }
            _ => return (u32::from(byte), 1),
        }
        let tail = |ahead: usize| {
            let byte = self.byte(ahead);
            (byte & 0xC0 == 0x80).then_some(u32::from(byte & 0x3F))
        };
        let decoded = match byte {
            0x80..=0xC0 | 0xF8.. => None,
            0xC1..=0xDF => tail(1).map(|a| (u32::from(byte & 0x1F) << 6 | a, 2)).filter(|(c, _)| *c >= 0x80),
            0xE0..=0xEF => tail(1)
                .zip(tail(2))
                .map(|(a, b)| (u32::from(byte & 0x0F) << 12 | a << 6 | b, 3))
                .filter(|(c, _)| *c >= 0x800),
            _ => tail(1)
                .zip(tail(2))
                .zip(tail(3))
                .map(|((a, b), c)| (u32::from(byte & 0x07) << 18 | a << 12 | b << 6 | c, 4))
                .filter(|(c, _)| *c >= 0x1_0000),
        };
        match decoded {
            Some((c, length)) => {
                if !is_xml_char(c) {
                    self.error();
                }
                (c, length)
            }
            None if self.text.len() - self.at < 4 => (0, 0),
            None => {
                self.error();
                self.latin1 = true;
                (u32::from(byte), 1)
            }
        }
    }

    /// Passes over a character. Not over NUL, which nothing gets past. This decodes less strictly than
    /// [`current_char`](Scan::current_char), as the original does.
    fn next_char(&mut self) {
        let byte = self.byte(0);
        if byte == 0 {
            return;
        }
        if byte < 0x80 || self.latin1 {
            self.at += 1;
            return;
        }
        let is_tail = |ahead: usize| self.byte(ahead) & 0xC0 == 0x80;
        let length = match byte {
            0xC0 => None,
            _ if !is_tail(1) => None,
            0x80..=0xDF => Some(2),
            _ if !is_tail(2) => None,
            0xE0..=0xEF => Some(3),
            0xF0..=0xF7 if is_tail(3) => Some(4),
            _ => None,
        };
        if length.is_none() {
            self.error();
            self.latin1 = true;
        }
        self.at += length.unwrap_or(1);
    }
}

/// What XML allows as a character.
fn is_xml_char(c: u32) -> bool {
    matches!(c, 0x09 | 0x0A | 0x0D | 0x20..=0xD7FF | 0xE000..=0xFFFD | 0x1_0000..=0x10_FFFF)
}

/// What may be the first byte of one.
fn is_xml_byte(byte: u8) -> bool {
    matches!(byte, 0x09 | 0x0A | 0x0D | 0x20..)
}

/// What may begin a name, after the fifth edition of XML 1.0.
fn is_name_start(c: u32) -> bool {
    matches!(c,
        0x3A | 0x41..=0x5A | 0x5F | 0x61..=0x7A | 0xC0..=0xD6 | 0xD8..=0xF6 | 0xF8..=0x2FF | 0x370..=0x37D
        | 0x37F..=0x1FFF | 0x200C..=0x200D | 0x2070..=0x218F | 0x2C00..=0x2FEF | 0x3001..=0xD7FF
        | 0xF900..=0xFDCF | 0xFDF0..=0xFFFD | 0x1_0000..=0xE_FFFF)
}

/// What may go on in a name.
fn is_name_char(c: u32) -> bool {
    is_name_start(c) || matches!(c, 0x2D | 0x2E | 0x30..=0x39 | 0xB7 | 0x300..=0x36F | 0x203F..=0x2040)
}
