//! The events that the demo plays: lines that a real oned wrote, unchanged. `data/select` says which ones and makes the file.

use std::io::Read;

use hookbus_bridges::opennebula::{Input, Item, LineReader, Parser};
use hookbus_broker::Message;

/// Lines as on a driver's standard input, compressed with zstd.
const RECORDING: &[u8] = include_bytes!("../../data/demo-events.txt.zst");

/// The events, in order, as `hookbus hm` would publish them.
pub(crate) fn events() -> Vec<Message> {
    let mut text = ruzstd::decoding::StreamingDecoder::new(RECORDING).expect("the recording is what data/select made");
    let mut lines = LineReader::new();
    let mut parser = Parser::new();
    let mut events = Vec::new();
    loop {
        let read = text.read(lines.room()).expect("the recording is whole");
        if read == 0 {
            return events;
        }
        lines.filled(read);
        while let Some(item) = lines.next() {
            if let Item::Line(line) = item
                && let Ok(Input::Message { message, .. }) = parser.line(line)
            {
                events.push(message);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recording_tells_its_story() {
        let events = events();
        assert_eq!(events.len(), 150);
        let has = |key: &str| events.iter().any(|event| event.keys().any(|other| other == key.as_bytes()));
        for key in [
            "EVENT STATE HOST/MONITORED//0 ",
            "EVENT STATE NET/READY//0 ",
            "EVENT STATE IMAGE/READY//0 ",
            "EVENT API one.vm.allocate 1",
            "EVENT STATE VM/ACTIVE/RUNNING/0 ",
            "EVENT STATE VM/POWEROFF/LCM_INIT/0 ",
            "EVENT STATE VM/ACTIVE/MIGRATE/0 ",
            "EVENT STATE VM/ACTIVE/BOOT_FAILURE/2 ",
            "EVENT SERVICE 4 ",
            "EVENT API one.vm.action 0",
        ] {
            assert!(has(key), "{key}");
        }
    }
}
