//! An event's document as a tree, as libxml2 sees it after it has repaired what is broken.
//!
//! Hooks get parts of the document: `$API` is CALL_INFO, `$TEMPLATE` the object. OpenNebula's executor parses the document with
//! Nokogiri (libxml2, recovering) and writes that element again, so a hook must get, byte for byte, what comes of this.
//! The rules of parsing are those of [`scan`](super::scan); those of writing are in `write`. Both are compared with the real
//! ones, over recorded events and over thousands of broken ones (`tests/nokogiri.rs`).
//!
//! # Design
//!
//! The tree is one vector of nodes in document order, each knowing where what is below it ends, and one buffer with all names
//! and texts. So nothing is allocated or freed node by node, and nothing calls itself, however deep the document is.
//!
//! Memory is at most 12 times the document while it is kept (16 bytes for a node, and a document of nothing but broken tags
//! has one for each 3 bytes of two nodes), and up to three times of that for a moment, while vectors grow. For what oned
//! writes it is two to three times the document. libxml2 takes 120 bytes a node.
//!
//! # What is not the same
//!
//! - Text with bytes that are no UTF-8 (they get there when the document had such bytes, and was read as Latin-1 from there
//!   on): libxml2 writes what came before it in the text only as far as it is in another of its buffers, and loses
//!   the rest of that text. Here each such byte is written as a reference, as libxml2 does in attributes: nothing is lost.
//! - What [`scan`](super::scan) leaves out: an XML declaration, a DOCTYPE, and the limit of 10 MB for one text.

use std::borrow::Cow;
use std::collections::HashMap;

use super::scan::{Meaning, Sink, Start, lines, scan};

mod write;

/// A document. What can't be read is repaired; a document in which there is no element has no [`root`](Document::root).
///
/// ```
/// use hookbus_bridges::opennebula::Document;
///
/// let document = Document::parse("<VM><NAME>Münster</NAME><DISK><ID>0</ID></VM>".as_bytes());
/// assert!(!document.is_well_formed(), "</DISK> is missing");
/// let vm = document.root().expect("there is an element");
/// assert_eq!(vm.child("NAME").expect("there is a NAME").text().as_ref(), "Münster".as_bytes());
/// assert_eq!(vm.to_xml(), b"<VM>\n  <NAME>M&#xFC;nster</NAME>\n  <DISK>\n    <ID>0</ID>\n  </DISK>\n</VM>");
/// ```
#[derive(Clone, Debug)]
pub struct Document {
    /// In document order; the first is the root.
    nodes: Vec<Node>,
    /// The names and texts of the nodes.
    bytes: Vec<u8>,
    well_formed: bool,
}

/// An element of a document.
#[derive(Clone, Copy, Debug)]
pub struct Element<'d> {
    document: &'d Document,
    at: usize,
}

#[derive(Clone, Copy, Debug)]
struct Node {
    kind: Kind,
    /// The node after the last one below this one.
    end: u32,
    /// Where in `bytes` its text is.
    from: u32,
    to: u32,
}

/// What a node is, and what its text is then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The name, with its prefix. Nodes for declarations, then for attributes, come directly behind it.
    Element(Space),
    /// A declaration of a namespace: `xmlns=value` or `xmlns:prefix=value`.
    Namespace,
    /// `name=value`.
    Attribute,
    Text,
    Cdata,
    Comment,
    /// The target, and where there is a content a blank and the content.
    Instruction,
    /// The name between `&` and `;`.
    Reference,
}

/// The namespace that an element is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Space {
    None,
    Default,
    Prefix,
}

impl Document {
    /// Reads a document. Of one that is longer than 4 GiB the beginning.
    pub fn parse(xml: &[u8]) -> Document {
        // No node or text takes more than the part of the document that it is made of, so positions fit into 32 bits.
        let cut = &xml[..xml.len().min(u32::MAX as usize)];
        let mut builder = Builder {
            nodes: Vec::with_capacity(cut.len() / 16),
            bytes: Vec::with_capacity(cut.len() / 2),
            last_child: None,
            prefixes: HashMap::new(),
            declared: Vec::new(),
        };
        let well_formed = scan(cut, &mut builder) && cut.len() == xml.len();
        let Builder { mut nodes, mut bytes, .. } = builder;
        nodes.shrink_to_fit();
        bytes.shrink_to_fit();
        Document { nodes, bytes, well_formed }
    }

    /// Whether libxml2 would read it without an error, and all of it. Errors in the use of namespaces don't count.
    pub fn is_well_formed(&self) -> bool {
        self.well_formed
    }

    /// The outermost element.
    pub fn root(&self) -> Option<Element<'_>> {
        (!self.nodes.is_empty()).then_some(Element { document: self, at: 0 })
    }

    /// The first element of this name in the document that is in no namespace: what Nokogiri's `xpath("//NAME")[0]` is.
    pub fn find(&self, name: &str) -> Option<Element<'_>> {
        let mut elements = self.nodes.iter().enumerate().filter(|(_, node)| node.kind == Kind::Element(Space::None));
        let (at, _) = elements.find(|(_, node)| self.text_of(node) == name.as_bytes())?;
        Some(Element { document: self, at })
    }

    fn text_of(&self, node: &Node) -> &[u8] {
        &self.bytes[node.from as usize..node.to as usize]
    }

    /// The nodes directly below `at`, attributes too, each with its place.
    fn below(&self, at: usize) -> impl Iterator<Item = (usize, &Node)> {
        let end = self.nodes[at].end as usize;
        let mut next = at + 1;
        std::iter::from_fn(move || {
            let at = next;
            let node = self.nodes[..end].get(at)?;
            next = node.end as usize;
            Some((at, node))
        })
    }
}

impl<'d> Element<'d> {
    /// The name, without the prefix of a namespace.
    pub fn name(&self) -> &'d [u8] {
        let node = &self.document.nodes[self.at];
        let name = self.document.text_of(node);
        match node.kind {
            Kind::Element(Space::Prefix) => {
                let colon = memchr::memchr(b':', name).expect("a name with a prefix has a colon");
                &name[colon + 1..]
            }
            _ => name,
        }
    }

    /// The first of the elements directly below it that has this name and is in no namespace.
    pub fn child(&self, name: &str) -> Option<Element<'d>> {
        let document = self.document;
        let mut below = document.below(self.at);
        let (at, _) = below
            .find(|(_, node)| node.kind == Kind::Element(Space::None) && document.text_of(node) == name.as_bytes())?;
        Some(Element { document, at })
    }

    /// The elements directly below it, in order.
    pub fn children(&self) -> impl Iterator<Item = Element<'d>> + use<'d> {
        let document = self.document;
        document
            .below(self.at)
            .filter(|(_, node)| matches!(node.kind, Kind::Element(_)))
            .map(move |(at, _)| Element { document, at })
    }

    /// All text below it, joined.
    pub fn text(&self) -> Cow<'d, [u8]> {
        let document = self.document;
        let nodes = &document.nodes[self.at..document.nodes[self.at].end as usize];
        let mut texts = nodes.iter().filter(|node| node.is_text()).map(|node| document.text_of(node));
        match (texts.next(), texts.next()) {
            (None, _) => Cow::Borrowed(&[]),
            (Some(only), None) => Cow::Borrowed(only),
            (Some(first), Some(second)) => {
                let mut all = [first, second].concat();
                texts.for_each(|text| all.extend_from_slice(text));
                Cow::Owned(all)
            }
        }
    }

    /// The text of an element that holds one text or CDATA section and nothing else.
    pub fn sole_text(&self) -> Option<&'d [u8]> {
        let document = self.document;
        let mut below = document
            .below(self.at)
            .map(|(_, node)| node)
            .filter(|node| !matches!(node.kind, Kind::Namespace | Kind::Attribute));
        match (below.next(), below.next()) {
            (Some(only), None) if only.is_text() => Some(document.text_of(only)),
            _ => None,
        }
    }

    /// The element and all below it, as Nokogiri's `to_s` writes it: what OpenNebula's executor hands to hooks.
    pub fn to_xml(&self) -> Vec<u8> {
        write::element(self.document, self.at)
    }
}

impl Node {
    fn is_text(&self) -> bool {
        matches!(self.kind, Kind::Text | Kind::Cdata)
    }
}

/// A prefix of a namespace that has been declared.
#[derive(Default)]
struct Prefix {
    /// How many of the open elements declare it.
    in_force: u32,
    /// The last element that declared it.
    element: Option<u32>,
}

/// The sink that builds the tree.
struct Builder<'a> {
    nodes: Vec<Node>,
    bytes: Vec<u8>,
    /// The last node below the element that is open.
    last_child: Option<usize>,
    prefixes: HashMap<&'a [u8], Prefix>,
    /// The prefixes that open elements declare.
    declared: Vec<&'a [u8]>,
}

/// An element that is open: its node, and how many prefixes had been declared before it.
struct Open {
    at: usize,
    declared: usize,
}

/// The document has less than 2^32 bytes, and nodes are fewer than bytes.
fn narrow(position: usize) -> u32 {
    u32::try_from(position).expect("positions are less than the document's length")
}

impl<'a> Builder<'a> {
    /// Adds a node whose text has been put into `bytes` from there on.
    fn push(&mut self, kind: Kind, from: usize) -> usize {
        let at = self.nodes.len();
        let (end, from, to) = (narrow(at + 1), narrow(from), narrow(self.bytes.len()));
        self.nodes.push(Node { kind, end, from, to });
        self.last_child = Some(at);
        at
    }

    /// Adds text, to the last node where it is of that kind.
    fn append<'t>(&mut self, kind: Kind, pieces: impl Iterator<Item = &'t [u8]>) {
        let from = self.bytes.len();
        pieces.for_each(|piece| self.bytes.extend_from_slice(piece));
        match self.last_child.and_then(|at| self.nodes.get_mut(at)).filter(|node| node.kind == kind) {
            Some(node) => node.to = narrow(self.bytes.len()),
            None => drop(self.push(kind, from)),
        }
    }

    /// Declares a prefix at an element, if the element has not done so.
    fn declare(&mut self, prefix: &'a [u8], element: usize) -> bool {
        let known = self.prefixes.entry(prefix).or_default();
        if known.element.replace(narrow(element)) == Some(narrow(element)) {
            return false;
        }
        known.in_force += 1;
        self.declared.push(prefix);
        true
    }
}

impl<'a> Sink<'a> for Builder<'a> {
    type Open = Open;

    fn open(&mut self, start: &Start<'a, '_>, _: Option<&Open>) -> Open {
        let open = Open { at: self.nodes.len(), declared: self.declared.len() };
        let from = self.bytes.len();
        self.bytes.extend_from_slice(start.name.full());
        self.push(Kind::Element(Space::None), from);
        let mut has_default = false;
        for (attribute, value) in start.attributes() {
            let is_new = match attribute.meaning {
                Meaning::Attribute => continue,
                Meaning::Namespace => !std::mem::replace(&mut has_default, true),
                Meaning::Prefix(prefix) => self.declare(prefix, open.at),
            };
            if is_new {
                let from = self.bytes.len();
                [attribute.name.full(), b"=", value].iter().for_each(|part| self.bytes.extend_from_slice(part));
                self.push(Kind::Namespace, from);
            }
        }
        for (attribute, value) in start.attributes().filter(|(attribute, _)| attribute.meaning == Meaning::Attribute) {
            let from = self.bytes.len();
            self.bytes.extend_from_slice(attribute.name.full());
            self.bytes.push(b'=');
            let mut rest = value;
            while let Some(and) = memchr::memchr(b'&', rest) {
                self.bytes.extend_from_slice(&rest[..=and]);
                rest = &rest[and + b"&#38;".len()..];
            }
            self.bytes.extend_from_slice(rest);
            self.push(Kind::Attribute, from);
        }
        let space = match start.name.prefix() {
            Some(b"xml") => Space::Prefix,
            Some(prefix) if self.prefixes.get(prefix).is_some_and(|known| known.in_force > 0) => Space::Prefix,
            None if start.namespace => Space::Default,
            _ => Space::None,
        };
        self.nodes[open.at].kind = Kind::Element(space);
        self.last_child = None;
        open
    }

    fn close(&mut self, open: Open) -> bool {
        for prefix in self.declared.drain(open.declared..) {
            if let Some(known) = self.prefixes.get_mut(prefix) {
                known.in_force -= 1;
            }
        }
        self.nodes[open.at].end = narrow(self.nodes.len());
        self.last_child = Some(open.at);
        false
    }

    fn text(&mut self, text: &[u8]) {
        self.append(Kind::Text, std::iter::once(text));
    }

    fn cdata(&mut self, raw: &'a [u8]) {
        self.append(Kind::Cdata, lines(raw));
    }

    fn comment(&mut self, raw: &'a [u8]) {
        let from = self.bytes.len();
        lines(raw).for_each(|piece| self.bytes.extend_from_slice(piece));
        self.push(Kind::Comment, from);
    }

    fn processing_instruction(&mut self, target: &'a [u8], raw: Option<&'a [u8]>) {
        let from = self.bytes.len();
        self.bytes.extend_from_slice(target);
        if let Some(raw) = raw {
            self.bytes.push(b' ');
            lines(raw).for_each(|piece| self.bytes.extend_from_slice(piece));
        }
        self.push(Kind::Instruction, from);
    }

    fn reference(&mut self, c: char, hex: bool) {
        let from = self.bytes.len();
        let number = u32::from(c);
        let name = if hex { format!("#x{number:X}") } else { format!("#{number}") };
        self.bytes.extend_from_slice(name.as_bytes());
        self.push(Kind::Reference, from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST_NODE_BYTES: usize = 16;

    /// What the header of this file promises, for documents that are made to need much.
    #[test]
    fn memory_is_bounded_by_the_document() {
        assert_eq!(size_of::<Node>(), MOST_NODE_BYTES);
        for part in [
            "<a\"",
            "<a",
            "<a/>",
            "x<a/>",
            "<:<",
            "<?a?>",
            "<!---->",
            "<a b=''/>",
            "<a xmlns:b='c'>",
            "&#x41;",
            "<a/>&lt;",
        ] {
            for root in ["<r>", "<r>\u{e9}", "<r><![CDATA["] {
                let text = [root, &part.repeat(10_000)].concat();
                let document = Document::parse(text.as_bytes());
                let bytes = document.nodes.capacity() * MOST_NODE_BYTES + document.bytes.capacity();
                assert!(bytes <= 12 * text.len() + 64, "{part:?}: {bytes} bytes for {}", text.len());
            }
        }
    }

    /// Elements that are open end with the document; those that are too deep are not in it.
    #[test]
    fn depth_is_limited() {
        let document = Document::parse("<d>".repeat(100_000).as_bytes());
        assert_eq!(document.nodes.len(), crate::opennebula::scan::MAX_DEPTH);
        assert!(!document.is_well_formed());
        let xml = String::from_utf8(document.root().unwrap().to_xml()).unwrap();
        let lines: Vec<&str> = xml.lines().collect();
        assert_eq!(lines.len(), 2 * crate::opennebula::scan::MAX_DEPTH - 1);
        assert_eq!((lines[0], lines[1], *lines.last().unwrap()), ("<d>", "  <d>", "</d>"));
        assert!(lines.iter().all(|line| line.len() <= 64));
    }

    #[test]
    fn what_is_behind_the_root_is_not_well_formed() {
        for (text, well_formed) in [
            ("<a/>", true),
            ("<a/>\n", true),
            ("<a/><!-- x -->", true),
            ("<a/>x", false),
            ("<a/><b/>", false),
            ("<a/>\0", false),
            ("<a>", false),
            ("", false),
        ] {
            assert_eq!(Document::parse(text.as_bytes()).is_well_formed(), well_formed, "{text:?}");
        }
        assert!(Document::parse(b"").root().is_none());
    }

    /// Bytes that are no UTF-8 are not lost.
    #[test]
    fn what_is_not_utf8_is_written_as_references() {
        let document = Document::parse(b"<a>x\xFFy<b c='\xFE!'/></a>");
        let root = document.root().unwrap();
        assert_eq!(root.text().as_ref(), b"x\xFFy");
        assert_eq!(root.to_xml(), b"<a>x&#xFF;y<b c=\"&#xFE;!\"/></a>");
    }
}
