//! Writes an element as libxml2 2.9 does for Nokogiri: formatted, and without a declared encoding.
//!
//! - An element with a text, CDATA section or reference among its children is written as it is, with all below it; any
//!   other has each child on a line of its own, indented by two blanks a level, 60 at most.
//! - In text and attributes what is not ASCII is a reference (`&#xDC;`), so is CR. Names, CDATA sections, comments, instructions
//!   and the values of declarations of namespaces are written as they are.

use std::io::Write as _;

use super::{Document, Kind, Node};
use crate::opennebula::scan::is_xml_char;

/// Blanks for one level.
const INDENT: usize = 2;

/// No line is indented more.
const MAX_INDENT: usize = 60;

/// The element at `root` with all below it.
pub(super) fn element(document: &Document, root: usize) -> Vec<u8> {
    let end = document.nodes[root].end as usize;
    let mut writer = Writer { document, out: Vec::new(), open: Vec::new(), unformatted: None };
    let mut at = root;
    while at < end {
        writer.node(at);
        at += 1;
        // What has attributes was written with them.
        while at < end && matches!(document.nodes[at].kind, Kind::Namespace | Kind::Attribute) {
            at += 1;
        }
        writer.close_before(at);
    }
    writer.out
}

struct Writer<'d> {
    document: &'d Document,
    out: Vec<u8>,
    /// The elements whose end tag is still to come.
    open: Vec<usize>,
    /// The outermost of them that is written as it is.
    unformatted: Option<usize>,
}

impl Writer<'_> {
    /// Writes a node; of an element that has something in it the start tag.
    fn node(&mut self, at: usize) {
        let node = &self.document.nodes[at];
        let text = self.document.text_of(node);
        self.indent();
        match node.kind {
            Kind::Element(_) => return self.start(at, text),
            // Written with their element.
            Kind::Namespace | Kind::Attribute => return,
            Kind::Text => write_text(&mut self.out, text),
            Kind::Cdata => self.cdata(text),
            Kind::Comment => self.put(&[b"<!--", text, b"-->"]),
            Kind::Instruction => self.put(&[b"<?", text, b"?>"]),
            Kind::Reference => self.put(&[b"&", text, b";"]),
        }
        self.end_line();
    }

    fn start(&mut self, at: usize, name: &[u8]) {
        self.put(&[b"<", name]);
        let mut is_empty = true;
        let mut has_text = false;
        for (_, node) in self.document.below(at) {
            match node.kind {
                Kind::Namespace | Kind::Attribute => self.attribute(node),
                _ => {
                    is_empty = false;
                    has_text |= node.is_text() || node.kind == Kind::Reference;
                }
            }
            if has_text {
                break;
            }
        }
        if is_empty {
            self.put(&[b"/>"]);
            return self.end_line();
        }
        self.put(&[b">"]);
        if has_text && self.unformatted.is_none() {
            self.unformatted = Some(at);
        }
        self.open.push(at);
        if self.unformatted.is_none() {
            self.out.push(b'\n');
        }
    }

    /// Writes the end tags of the elements that end before the node at `next`.
    fn close_before(&mut self, next: usize) {
        while let Some(&at) = self.open.last() {
            let node = &self.document.nodes[at];
            if node.end as usize != next {
                return;
            }
            self.open.pop();
            self.indent();
            self.put(&[b"</", self.document.text_of(node), b">"]);
            if self.unformatted == Some(at) {
                self.unformatted = None;
            }
            self.end_line();
        }
    }

    fn indent(&mut self) {
        if self.unformatted.is_none() {
            let blanks = (self.open.len() * INDENT).min(MAX_INDENT);
            self.out.resize(self.out.len() + blanks, b' ');
        }
    }

    /// After a node: not after the outermost.
    fn end_line(&mut self) {
        if self.unformatted.is_none() && !self.open.is_empty() {
            self.out.push(b'\n');
        }
    }

    fn put(&mut self, parts: &[&[u8]]) {
        parts.iter().for_each(|part| self.out.extend_from_slice(part));
    }

    fn attribute(&mut self, node: &Node) {
        let text = self.document.text_of(node);
        let equals = memchr::memchr(b'=', text).expect("an attribute's text has a name, `=` and a value");
        let (name, value) = (&text[..equals], &text[equals + 1..]);
        self.put(&[b" ", name, b"="]);
        if node.kind == Kind::Attribute {
            self.out.push(b'"');
            write_attribute(&mut self.out, value);
            self.out.push(b'"');
        } else if memchr::memchr(b'"', value).is_none() {
            self.put(&[b"\"", value, b"\""]);
        } else if memchr::memchr(b'\'', value).is_none() {
            self.put(&[b"'", value, b"'"]);
        } else {
            let mut separator: &[u8] = b"\"";
            for part in value.split(|&byte| byte == b'"') {
                self.put(&[separator, part]);
                separator = b"&quot;";
            }
            self.out.push(b'"');
        }
    }

    /// `]]>`, which can be in a section that was made of several, is written as two.
    fn cdata(&mut self, text: &[u8]) {
        let mut rest = text;
        while let Some(at) = memchr::memmem::find(rest, b"]]>") {
            self.put(&[b"<![CDATA[", &rest[..at + 2], b"]]>"]);
            rest = &rest[at + 2..];
        }
        self.put(&[b"<![CDATA[", rest, b"]]>"]);
    }
}

fn write_text(out: &mut Vec<u8>, text: &[u8]) {
    let mut rest = text;
    while let Some(&byte) = rest.first() {
        let taken = match byte {
            b'<' => put(out, b"&lt;"),
            b'>' => put(out, b"&gt;"),
            b'&' => put(out, b"&amp;"),
            b'\n' | b'\t' | b' '..=0x7F => {
                let plain = |byte: &&u8| matches!(byte, b'\n' | b'\t' | b' '..=0x7F) && !b"<>&".contains(byte);
                let bytes = rest.iter().take_while(plain).count();
                out.extend_from_slice(&rest[..bytes]);
                bytes
            }
            _ => write_reference(out, rest),
        };
        rest = &rest[taken..];
    }
}

fn write_attribute(out: &mut Vec<u8>, value: &[u8]) {
    let mut rest = value;
    while let Some(&byte) = rest.first() {
        let taken = match byte {
            b'\n' => put(out, b"&#10;"),
            b'\r' => put(out, b"&#13;"),
            b'\t' => put(out, b"&#9;"),
            b'"' => put(out, b"&quot;"),
            b'<' => put(out, b"&lt;"),
            b'>' => put(out, b"&gt;"),
            b'&' => put(out, b"&amp;"),
            // A last byte is never looked at as the beginning of a character.
            0x80.. if rest.len() > 1 => write_reference(out, rest),
            _ => {
                out.push(byte);
                1
            }
        };
        rest = &rest[taken..];
    }
}

fn put(out: &mut Vec<u8>, what: &[u8]) -> usize {
    out.extend_from_slice(what);
    1
}

/// Writes the first character of `text` as a reference, or its first byte where it begins no character. Says how many
/// bytes that were. Like libxml2 this takes any bytes for the later ones of a character.
fn write_reference(out: &mut Vec<u8>, text: &[u8]) -> usize {
    let first = u32::from(text[0]);
    let tail =
        |count: usize| text.get(1..=count).map(|tail| tail.iter().fold(0, |c, byte| c << 6 | u32::from(byte & 0x3F)));
    let (c, bytes) = match first {
        0xC0..=0xDF => (tail(1).map(|tail| (first & 0x1F) << 6 | tail), 2),
        0xE0..=0xEF => (tail(2).map(|tail| (first & 0x0F) << 12 | tail), 3),
        0xF0..=0xF7 => (tail(3).map(|tail| (first & 0x07) << 18 | tail), 4),
        _ => (None, 1),
    };
    let (c, bytes) = c.filter(|&c| is_xml_char(c)).map_or((first, 1), |c| (c, bytes));
    write!(out, "&#x{c:X};").expect("writing to memory does not fail");
    bytes
}
