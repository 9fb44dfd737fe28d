//! Documents as trees: nothing panics, both sinks of the one scanner agree, and what is well-formed is written so that it
//! reads as the same. Whether trees are libxml2's is what `bridges/tests/nokogiri.rs` compares.

#![no_main]

use hookbus_bridges::opennebula::{Document, Kind, Parser};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|xml: &[u8]| {
    let document = Document::parse(xml);
    let text = |name: &str| document.find(name).map(|element| element.text().into_owned());

    let mut parser = Parser::new();
    let content = base64_simd::STANDARD.encode_to_string(xml);
    let event = parser.event_of(content.as_bytes());
    match event.kind {
        Kind::Api => assert_eq!(text("CALL").as_deref(), Some(event.call)),
        Kind::State => {
            assert_eq!(text("HOOK_OBJECT").as_deref(), Some(event.object));
            assert_eq!(text("STATE").as_deref(), Some(event.state));
            assert_eq!(text("RESOURCE_ID").as_deref(), Some(event.id));
            assert_eq!(text("SERVICE_ID").as_deref(), event.service_id);
        }
        Kind::Other => {}
    }

    let Some(root) = document.root() else { return };
    let written = root.to_xml();
    assert!(root.children().count() <= xml.len() / 2);
    // Values of declarations of namespaces are written as they are, as libxml2 does.
    if document.is_well_formed() && find(xml, b"xmlns").is_none() {
        let again = Document::parse(&written);
        assert!(again.is_well_formed(), "{}", written.escape_ascii());
        assert_eq!(again.root().map(|root| root.to_xml()), Some(written));
    }
});

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}
