//! Reads any document as libxml2 does in its recovery mode: what is broken is repaired by the same rules.
//!
//! OpenNebula's own programs give each event to libxml2 (2.9), which recovers what it can. To publish the keys that they would,
//! and to hand hooks the text that they would, these are the same rules, in one place: [`scan`] tells what it reads to a
//! [`Sink`]. `fields` is the sink that keeps a few header fields and no tree; [`Document`](super::Document) is built by
//! another.
//!
//! The rules matter since a document may be broken by what users wrote; most of them were learned by comparing
//! (`tests/nokogiri.rs`):
//!
//! - An end tag closes the element that is open last, whatever its name. When the root is closed, parsing ends.
//! - `<` before what can't be a name is passed over. A start tag that can't be read to its end is an empty element, and the rest
//!   of it is text.
//! - A CDATA section or comment without an end swallows the rest of the document; one with a character that XML forbids ends
//!   at this character (and is lost itself).
//! - Text: forbidden characters are passed over. `]]>` loses the text before it back to the last markup or non-ASCII character.
//! - A numeric reference stays; a named one counts only as long as the document was well-formed so far; an incomplete or
//!   unknown one vanishes.
//! - The first byte sequence that is no UTF-8 turns the rest of the document into Latin-1; the bytes themselves stay.
//! - A NUL byte ends the document, and so does the 258th level of elements.
//!
//! Left out, because oned writes the beginning of each document and cannot write these: an XML declaration, other encodings by
//! byte order mark, and a DOCTYPE. Left out, too: libxml2's limit of 10 MB for one text.
//!
//! Nothing here calls itself, so no document is too deep. Time is linear in the document (n log n in the attributes of one
//! tag). Memory is that of the open elements and of one tag's attributes, besides what the sink keeps.

use std::ops::Range;

mod fields;

pub(super) use fields::{header, service_id};

/// Elements may be nested that deep.
pub(super) const MAX_DEPTH: usize = 257;

/// A longer name is an error.
const MAX_NAME_BYTES: usize = 50_000;

/// Reads a document and tells `sink` what is in it. Says whether it is well-formed: whether nothing had to be repaired, and
/// nothing is behind the root's end but what XML allows there.
///
/// Violations of the rules for namespaces alone don't count, as they don't for libxml2.
pub(super) fn scan<'a, S: Sink<'a>>(text: &'a [u8], sink: &mut S) -> bool {
    let mut scan = Scan {
        text,
        at: 0,
        latin1: false,
        well_formed: true,
        done: false,
        stack: Vec::new(),
        namespace: false,
        attributes: Vec::new(),
        values: Vec::new(),
        sink,
    };
    scan.document();
    scan.well_formed
}

/// What takes the parts of a document, in their order. What is outside of the root is not told.
pub(super) trait Sink<'a> {
    /// What the sink keeps for an element that is open.
    type Open;

    /// An element begins, within `parent`.
    fn open(&mut self, start: &Start<'a, '_>, parent: Option<&Self::Open>) -> Self::Open;

    /// The element that was opened last ends. Says whether the sink has seen enough.
    fn close(&mut self, open: Self::Open) -> bool;

    /// A part of a text. What follows without anything else between belongs to the same text.
    fn text(&mut self, text: &[u8]);

    /// A CDATA section, as it is in the document; see [`lines`].
    fn cdata(&mut self, raw: &'a [u8]);

    /// A comment, as it is in the document; see [`lines`].
    fn comment(&mut self, _raw: &'a [u8]) {}

    /// A processing instruction with its content, as it is in the document; see [`lines`].
    fn processing_instruction(&mut self, _target: &'a [u8], _raw: Option<&'a [u8]>) {}

    /// A reference to a character that libxml2 can't put into a text, since it reads the document as Latin-1 by now.
    fn reference(&mut self, _c: char, _hex: bool) {}
}

/// The parts of a text with its line ends as XML has them: each CR, or CR and LF, is one LF.
pub(super) fn lines(raw: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = raw;
    std::iter::from_fn(move || {
        let (piece, after) = match memchr::memchr(b'\r', rest) {
            Some(0) if rest.get(1) == Some(&b'\n') => {
                let end = memchr::memchr(b'\r', &rest[1..]).map_or(rest.len(), |at| at + 1);
                (&rest[1..end], &rest[end..])
            }
            Some(0) => (&b"\n"[..], &rest[1..]),
            Some(at) => rest.split_at(at),
            None => (rest, &rest[rest.len()..]),
        };
        rest = after;
        (!piece.is_empty()).then_some(piece)
    })
}

/// A name: a part of the document, and how long its prefix is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name<'a> {
    full: &'a [u8],
    prefix_bytes: Option<usize>,
}

impl<'a> Name<'a> {
    fn plain(full: &'a [u8]) -> Self {
        Name { full, prefix_bytes: None }
    }

    /// With its prefix.
    pub(super) fn full(&self) -> &'a [u8] {
        self.full
    }

    /// What is before the colon.
    pub(super) fn prefix(&self) -> Option<&'a [u8]> {
        self.prefix_bytes.map(|bytes| &self.full[..bytes])
    }
}

/// A start tag.
#[derive(Debug)]
pub(super) struct Start<'a, 's> {
    pub(super) name: Name<'a>,
    /// A default namespace is in force; it matters for names without a prefix.
    pub(super) namespace: bool,
    attributes: &'s [Attribute<'a>],
    values: &'s [u8],
}

impl<'a> Start<'a, '_> {
    /// The attributes and declarations of namespaces, in the order of the document, each with its value.
    pub(super) fn attributes(&self) -> impl Iterator<Item = (&Attribute<'a>, &[u8])> {
        self.attributes.iter().map(|attribute| (attribute, &self.values[attribute.value.clone()]))
    }
}

/// An attribute, or a declaration of a namespace. In its value, `&` is `&#38;`.
#[derive(Debug)]
pub(super) struct Attribute<'a> {
    pub(super) name: Name<'a>,
    pub(super) meaning: Meaning<'a>,
    value: Range<usize>,
}

/// What an attribute says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning<'a> {
    /// Anything.
    Attribute,
    /// The default namespace.
    Namespace,
    /// What this prefix stands for.
    Prefix(&'a [u8]),
}

/// An element that is open.
struct Open<'a, T> {
    name: Name<'a>,
    /// What the default namespace is outside of it.
    outer_namespace: bool,
    of_sink: T,
}

struct Scan<'a, 's, S: Sink<'a>> {
    text: &'a [u8],
    at: usize,
    /// An encoding error has been seen.
    latin1: bool,
    /// No error has been seen.
    well_formed: bool,
    /// Nothing more is to be read.
    done: bool,
    stack: Vec<Open<'a, S::Open>>,
    /// A default namespace is in force.
    namespace: bool,
    /// Of the start tag that is being read, with the values in `values`.
    attributes: Vec<Attribute<'a>>,
    values: Vec<u8>,
    sink: &'s mut S,
}

impl<'a, S: Sink<'a>> Scan<'a, '_, S> {
    // ---- The document

    fn document(&mut self) {
        if self.text.starts_with(b"\xEF\xBB\xBF") {
            self.at = 3;
        }
        self.miscellaneous();
        if self.byte(0) != b'<' {
            self.error();
        } else if self.start_tag() {
            self.content();
        }
        // What is still open ends with the document.
        while self.close() {
            self.error();
        }
        if self.done {
            return;
        }
        self.miscellaneous();
        if self.at < self.text.len() {
            self.error();
        }
    }

    /// What may be before and after the root: comments, processing instructions, blanks.
    fn miscellaneous(&mut self) {
        loop {
            self.skip_blanks();
            if self.looking_at(b"<?") {
                self.processing_instruction();
            } else if self.looking_at(b"<!--") {
                self.comment();
            } else {
                return;
            }
        }
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
            self.error();
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
        let start = Start { name, namespace: self.namespace, attributes: &self.attributes, values: &self.values };
        let of_sink = self.sink.open(&start, self.stack.last().map(|parent| &parent.of_sink));
        self.stack.push(Open { name, outer_namespace, of_sink });
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
        if let Some(name) = self.stack.last().map(|open| open.name) {
            // A name in an end tag is read with its colons, unless the start tag had a prefix. That can differ in what is
            // read of a broken name.
            let read = match name.prefix_bytes {
                None => self.name().map(Name::plain),
                Some(_) => self.qname(),
            };
            if read != Some(name) {
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

    /// Closes the element that was opened last, if there is one.
    fn close(&mut self) -> bool {
        let Some(open) = self.stack.pop() else { return false };
        self.namespace = open.outer_namespace;
        self.done |= self.sink.close(open.of_sink);
        true
    }

    // ---- Attributes

    /// Reads attributes up to the end of the start tag or to what is none.
    fn attributes(&mut self) {
        self.attributes.clear();
        self.values.clear();
        let mut has_default = false;
        self.skip_blanks();
        while self.byte(0) != b'>' && !self.looking_at(b"/>") && is_xml_byte(self.byte(0)) {
            let Some(name) = self.qname() else {
                self.error();
                break;
            };
            self.skip_blanks();
            let start = self.values.len();
            if self.byte(0) == b'=' {
                self.next_char();
                self.skip_blanks();
                if self.attribute_value() {
                    self.attribute(name, start, &mut has_default);
                }
            } else {
                self.error();
            }
            if self.byte(0) == b'>' || self.looking_at(b"/>") {
                break;
            }
            if self.skip_blanks() == 0 {
                self.error();
                break;
            }
        }
        if self.attributes.len() > 1 {
            let mut names: Vec<_> = self.attributes.iter().map(|attribute| attribute.name).collect();
            names.sort_unstable();
            if names.windows(2).any(|pair| pair[0] == pair[1]) {
                self.error();
            }
        }
    }

    /// Keeps an attribute whose value begins there in `values`, unless it declares a namespace that can't be declared.
    fn attribute(&mut self, name: Name<'a>, start: usize, has_default: &mut bool) {
        const XML: &[u8] = b"http://www.w3.org/XML/1998/namespace";
        const XMLNS: &[u8] = b"http://www.w3.org/2000/xmlns/";
        let value = &self.values[start..];
        let reserved = value == XML || value == XMLNS;
        let meaning = if name.full == b"xmlns" {
            if reserved {
                return;
            }
            // Of several the first counts.
            if !std::mem::replace(has_default, true) {
                self.namespace = !value.is_empty();
            }
            Meaning::Namespace
        } else if let Some(prefix) = name.full.strip_prefix(b"xmlns:").filter(|_| name.prefix_bytes == Some(5)) {
            if reserved || value.is_empty() || matches!(prefix, b"xml" | b"xmlns") {
                return;
            }
            Meaning::Prefix(prefix)
        } else {
            Meaning::Attribute
        };
        self.attributes.push(Attribute { name, meaning, value: start..self.values.len() });
    }

    /// Reads a value in quotes. Says whether there is one; where it has no end it is one all the same.
    /// The value goes to `values`.
    fn attribute_value(&mut self) -> bool {
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
                        Some('&') => self.values.extend_from_slice(b"&#38;"),
                        Some(c) => self.values.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
                        None => {}
                    }
                } else {
                    match self.entity_reference() {
                        Some(b'&') => self.values.extend_from_slice(b"&#38;"),
                        Some(c) => self.values.push(c),
                        None => {}
                    }
                }
            } else {
                if matches!(c, 0x20 | 0x0D | 0x0A | 0x09) {
                    self.values.push(b' ');
                } else {
                    self.values.extend_from_slice(&self.text[self.at..self.at + length]);
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
        if !range.is_empty() {
            self.sink.text(&self.text[range]);
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
        let start = self.at;
        let (mut c, mut length) = self.current_char();
        while c != u32::from(b'<') && c != u32::from(b'&') && is_xml_char(c) {
            if self.looking_at(b"]]>") {
                self.error();
            }
            self.at += length;
            (c, length) = self.current_char();
        }
        for piece in lines(&self.text[start..self.at]) {
            self.sink.text(piece);
        }
        if c == 0 {
            // The end, or what is no character so near to the end that the original waits for more of it.
            self.error();
            self.done = true;
        } else if !is_xml_char(c) {
            self.error();
            self.next_char();
        }
    }

    fn reference(&mut self) {
        if self.byte(1) == b'#' {
            let hex = self.byte(2) == b'x';
            let Some(c) = self.char_reference() else { return };
            if !self.latin1 {
                self.sink.text(c.encode_utf8(&mut [0; 4]).as_bytes());
            } else if let Ok(byte) = u8::try_from(u32::from(c)) {
                self.sink.text(&[byte]);
            } else {
                self.sink.reference(c, hex);
            }
        } else if let Some(c) = self.entity_reference()
            && self.well_formed
        {
            self.sink.text(&[c]);
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
        let start = self.at;
        // The last two characters, to find the end.
        let (mut before, mut last) = (0, 0);
        let mut count = 0;
        loop {
            let (c, length) = self.current_char();
            if !is_xml_char(c) {
                self.error();
                return;
            }
            if count >= 2 && before == u32::from(b']') && last == u32::from(b']') && c == u32::from(b'>') {
                self.sink.cdata(&self.text[start..self.at - 2]);
                self.at += length;
                return;
            }
            self.at += length;
            (before, last) = (last, c);
            count += 1;
        }
    }

    // ---- Comments and processing instructions

    fn comment(&mut self) {
        self.at += b"<!--".len();
        let start = self.at;
        loop {
            match self.byte(0) {
                b'-' if self.looking_at(b"-->") => {
                    self.end_comment(start, self.at);
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
                    self.end_comment(start, self.at - 2);
                    self.next_char();
                    return;
                }
                self.error();
            }
            self.at += length;
            (before, last) = (last, Some(c));
        }
    }

    fn end_comment(&mut self, start: usize, end: usize) {
        if !self.stack.is_empty() {
            self.sink.comment(&self.text[start..end]);
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
            self.end_instruction(target, None);
            return;
        }
        if self.skip_blanks() == 0 {
            self.error();
        }
        let start = self.at;
        loop {
            let (c, length) = self.current_char();
            if !is_xml_char(c) {
                self.error();
                return;
            }
            if self.looking_at(b"?>") {
                self.end_instruction(target, Some(&self.text[start..self.at]));
                self.at += 2;
                return;
            }
            self.at += length;
        }
    }

    fn end_instruction(&mut self, target: &'a [u8], content: Option<&'a [u8]>) {
        if !self.stack.is_empty() {
            self.sink.processing_instruction(target, content);
        }
    }

    // ---- Names

    /// Reads a name with its prefix.
    fn qname(&mut self) -> Option<Name<'a>> {
        let start = self.at;
        let Some(first) = self.ncname() else {
            // A name that begins with a colon.
            return if self.byte(0) == b':' { self.name().map(Name::plain) } else { None };
        };
        if self.byte(0) != b':' {
            return Some(Name::plain(first));
        }
        self.next_char();
        if self.ncname().is_none() {
            // `a:` and what else may be in a name belong together.
            self.nmtoken();
            return Some(Name::plain(&self.text[start..self.at]));
        }
        if self.byte(0) == b':' {
            self.next_char();
            let _ = self.name();
        }
        Some(Name { full: &self.text[start..self.at], prefix_bytes: Some(first.len()) })
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
pub(super) fn is_xml_char(c: u32) -> bool {
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
