//! The header of any document: nothing panics, and the keys that come of it are those of its fields. Whether they are
//! libxml2's is what `bridges/tests/nokogiri.rs` compares.

#![no_main]

use hookbus_bridges::opennebula::{Execution, Input, Kind, Parser};
use hookbus_broker::MAX_KEYS_BYTES;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|xml: &[u8]| {
    let mut parser = Parser::new();
    let content = base64_simd::STANDARD.encode_to_string(xml);
    let event = parser.event_of(content.as_bytes());
    assert_eq!(event.xml, xml);
    let _ = event.name();
    let kind = event.kind;
    let call = [b"EVENT API ", event.call, b" ", event.result].concat();
    let service = event.service_id.map(|id| [b"EVENT SERVICE ", id, b" "].concat());

    // A key that would be too long is left out; without it, that can't be.
    if !xml.is_empty() && xml.len() < MAX_KEYS_BYTES / 4 {
        let Ok(Input::Message { message, .. }) = parser.line(format!("EXECUTE  -1 {content} ").into()) else {
            panic!("an event is always published")
        };
        assert_eq!(message.payload(), content.as_bytes());
        let keys: Vec<&[u8]> = message.keys().collect();
        match kind {
            Kind::Api => assert_eq!(keys, [&call[..]]),
            Kind::State => assert_eq!(keys.get(2).copied(), service.as_deref()),
            Kind::Other => assert_eq!(keys, [b"EVENT "]),
        }
    }

    // The other direction takes the same bytes: one line, whatever is reported.
    let mut line = Vec::new();
    Execution::parse(xml).write_to(&mut line);
    assert_eq!(line.iter().filter(|&&byte| byte == b'\n').count(), 1);
});
