//! Lines from oned, however they are cut into reads: nothing panics, no byte is lost or invented, and what each line gives is
//! the same as when it is parsed alone.

#![no_main]

use bytes::Bytes;
use hookbus_bridges::opennebula::{Input, Item, LineReader, Parser};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u16, u16, Vec<u8>, &[u8])| {
    let (block_bytes, max_line_bytes, sizes, stream) = input;
    let mut reader = LineReader::with_limits(block_bytes.into(), max_line_bytes.into());
    let mut parser = Parser::new();
    let mut sizes = sizes.iter().cycle();
    let mut rest = stream;
    let mut items = Vec::new();
    while !rest.is_empty() {
        let size = sizes.next().map_or(1, |&size| usize::from(size));
        // An odd size also says that lines are kept apart from here on.
        reader.keep_apart(size % 2 == 1);
        let room = reader.room();
        assert!(!room.is_empty());
        let bytes = size.max(1).min(room.len()).min(rest.len());
        room[..bytes].copy_from_slice(&rest[..bytes]);
        reader.filled(bytes);
        rest = &rest[bytes..];
        items.extend(std::iter::from_fn(|| reader.next()));
    }
    items.extend(reader.finish());

    let mut lines = stream.split_inclusive(|&byte| byte == b'\n');
    for item in items {
        let line = lines.next().expect("as many items as lines");
        match item {
            Item::Line(text) => {
                let line = line.strip_suffix(b"\n").expect("a whole line");
                let line = line.strip_suffix(b"\r").unwrap_or(line);
                assert_eq!(text.strip_suffix(b" "), Some(line));
                let result = parser.line(text);
                assert_eq!(result, Parser::new().line(Bytes::copy_from_slice(line)));
                if let Ok(Input::Message { message, .. }) = result {
                    assert!(message.keys().len() >= 1);
                }
            }
            Item::Unfinished(text) => {
                assert_eq!(text, line);
                let _ = parser.unfinished(text);
            }
            Item::TooLong { bytes } => {
                let line = line.strip_suffix(b"\n").unwrap_or(line);
                assert_eq!(bytes, line.len() as u64);
                assert!(line.len() > max_line_bytes.into());
            }
        }
    }
    assert_eq!(lines.next(), None);
});
