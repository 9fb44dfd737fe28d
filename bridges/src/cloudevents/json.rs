//! OpenNebula's documents as JSON, the way OpenNebula's own `-j` output does it, and a JSON text on one line.
//!
//! The rules: an element whose only child is text or a CDATA section is a string; any other element is an object of its child
//! elements, in their order (an empty one is `{}`, text between elements is dropped); elements of the same name are an array
//! where the first of them is; attributes are dropped. Numbers stay strings.

use std::collections::HashMap;

use crate::opennebula::Element;

/// Up to that many children, comparing each name with those before is faster than a map.
const FEW: usize = 16;

/// What is written of an element within its parent.
struct Member<'d> {
    element: Element<'d>,
    /// It is the first of its name, so that the name is written.
    first: bool,
    /// It is one of several of its name.
    several: bool,
    /// It is the last of its name.
    last: bool,
}

/// Writes what is in an element. Nothing here calls itself, so no document is too deep.
pub(super) fn write_content(out: &mut Vec<u8>, element: Element<'_>) {
    // Objects that are open: their members, and what ends them.
    let mut open: Vec<(std::vec::IntoIter<Member<'_>>, &[u8])> = Vec::new();
    match element.sole_text() {
        Some(text) => return write_text(out, text),
        None => open.push((members(element), b"}")),
    }
    out.push(b'{');
    while let Some((rest, end)) = open.last_mut() {
        let Some(member) = rest.next() else {
            out.extend_from_slice(end);
            open.pop();
            continue;
        };
        if out.last() != Some(&b'{') {
            out.push(b',');
        }
        if member.first {
            write_text(out, member.element.name());
            out.push(b':');
            if member.several {
                out.push(b'[');
            }
        }
        let ends_array = member.several && member.last;
        match member.element.sole_text() {
            Some(text) => {
                write_text(out, text);
                if ends_array {
                    out.push(b']');
                }
            }
            None => {
                out.push(b'{');
                open.push((members(member.element), if ends_array { b"}]" } else { b"}" }));
            }
        }
    }
}

/// The child elements, those of the same name together.
fn members(element: Element<'_>) -> std::vec::IntoIter<Member<'_>> {
    let children: Vec<_> = element.children().collect();
    let mut first_of = HashMap::new();
    // Each with the place of the first of its name.
    let mut order: Vec<(usize, usize)> = Vec::with_capacity(children.len());
    for (at, child) in children.iter().enumerate() {
        let first = if children.len() <= FEW {
            children[..at].iter().position(|before| before.name() == child.name()).unwrap_or(at)
        } else {
            *first_of.entry(child.name()).or_insert(at)
        };
        order.push((first, at));
    }
    order.sort_unstable();
    let is_of = |at: Option<usize>, first: usize| at.and_then(|at| order.get(at)).is_some_and(|of| of.0 == first);
    let members = order.iter().enumerate().map(|(n, &(first, at))| {
        let (follows, is_followed) = (is_of(n.checked_sub(1), first), is_of(Some(n + 1), first));
        Member { element: children[at], first: !follows, several: follows || is_followed, last: !is_followed }
    });
    members.collect::<Vec<_>>().into_iter()
}

/// Writes a string; what is no UTF-8 in it is replaced.
pub(super) fn write_text(out: &mut Vec<u8>, text: &[u8]) {
    write_str(out, &String::from_utf8_lossy(text));
}

/// Writes a string.
pub(super) fn write_str(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("writing a string to memory does not fail");
}

/// Writes a JSON text on one line: as it is, or without its white space where it has line ends.
pub(super) fn write_on_one_line(out: &mut Vec<u8>, json: &[u8]) {
    if memchr::memchr2(b'\n', b'\r', json).is_none() {
        return out.extend_from_slice(json);
    }
    let mut in_string = false;
    let mut escaped = false;
    for &byte in json {
        if in_string || !matches!(byte, b' ' | b'\t' | b'\n' | b'\r') {
            out.push(byte);
        }
        match byte {
            b'"' if !escaped => in_string = !in_string,
            b'\\' if in_string && !escaped => {
                escaped = true;
                continue;
            }
            _ => {}
        }
        escaped = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::opennebula::Document;

    fn json(xml: &str) -> String {
        let mut out = Vec::new();
        write_content(&mut out, Document::parse(xml.as_bytes()).root().unwrap());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn elements_become_json() {
        for (xml, expected) in [
            ("<a/>", "{}"),
            ("<a>x</a>", r#""x""#),
            ("<a><![CDATA[]]></a>", r#""""#),
            ("<a>x<![CDATA[y]]></a>", "{}"),
            ("<a>x<!-- y --></a>", "{}"),
            ("<a b='c'> <d e='f'>g</d> </a>", r#"{"d":"g"}"#),
            ("<a><b>1</b><c/><b>2</b><d>x</d><b/></a>", r#"{"b":["1","2",{}],"c":{},"d":"x"}"#),
            ("<a><b><c>1</c></b><b><c>2</c><c>3</c></b></a>", r#"{"b":[{"c":"1"},{"c":["2","3"]}]}"#),
            ("<a><b>\"\\\t\u{e9}</b></a>", r#"{"b":"\"\\\té"}"#),
            ("<a xmlns:p='u'><p:b>1</p:b><q:b>2</q:b></a>", r#"{"b":"1","q:b":"2"}"#),
        ] {
            assert_eq!(json(xml), expected, "{xml}");
        }
        // More children than are compared one by one.
        let many: String = (0..100).map(|n| format!("<n{}>{n}</n{}>", n % 50, n % 50)).collect();
        let value: serde_json::Value = serde_json::from_str(&json(&format!("<a>{many}</a>"))).unwrap();
        assert_eq!(value["n7"], serde_json::json!(["7", "57"]));
        assert_eq!(value.as_object().unwrap().len(), 50);
    }

    #[test]
    fn json_is_written_on_one_line() {
        for (json, expected) in [
            ("{\"a\" : 1}", "{\"a\" : 1}"),
            (
                "{\"a\" :\n 1,\r\n\t\"b c\": [ \"d \\\" e\\\\\" , \"\\\\\\\" f\" ]\n}",
                "{\"a\":1,\"b c\":[\"d \\\" e\\\\\",\"\\\\\\\" f\"]}",
            ),
        ] {
            let mut out = Vec::new();
            write_on_one_line(&mut out, json.as_bytes());
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }
}
