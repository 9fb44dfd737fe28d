//! What a real oned wrote, against what its own driver made of it.

#![cfg(feature = "opennebula")]
#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

use hookbus_bridges::PAYLOAD_BASE64;
use hookbus_bridges::opennebula::{Document, Element, Execution, Input, Item, LineReader, Parser};
use hookbus_broker::Message;

/// A recorded file.
fn fixture(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/opennebula").join(name);
    let file = std::fs::File::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut bytes = Vec::new();
    ruzstd::decoding::StreamingDecoder::new(file).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

/// The lines of a recorded JSON file, two fields of each.
fn pairs(name: &str, first: &str, second: &str) -> Vec<(String, String)> {
    let text = String::from_utf8(fixture(name)).unwrap();
    let field = |value: &serde_json::Value, name: &str| value[name].as_str().unwrap().to_owned();
    text.lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|value| (field(&value, first), field(&value, second)))
        .collect()
}

/// Reads a stream in pieces of the given sizes (the last one repeats), and hands out what comes of it.
fn items(stream: &[u8], mut reader: LineReader, sizes: &[usize]) -> Vec<Item> {
    let (mut rest, mut items, mut sizes) = (stream, Vec::new(), sizes.iter().copied());
    let mut size = 1;
    while !rest.is_empty() {
        size = sizes.next().unwrap_or(size).max(1);
        let room = reader.room();
        let bytes = room.len().min(rest.len()).min(size);
        room[..bytes].copy_from_slice(&rest[..bytes]);
        reader.filled(bytes);
        rest = &rest[bytes..];
        while let Some(item) = reader.next() {
            items.push(item);
        }
    }
    items.extend(reader.finish());
    items
}

fn parsed() -> Vec<Input> {
    let mut parser = Parser::new();
    items(&fixture("oned-to-driver.txt.zst"), LineReader::new(), &[64 << 10])
        .into_iter()
        .map(|item| match item {
            Item::Line(line) => parser.line(line).unwrap(),
            other => panic!("{other:?}"),
        })
        .collect()
}

fn keys(message: &Message) -> Vec<String> {
    message.keys().map(|key| String::from_utf8(key.to_vec()).unwrap()).collect()
}

/// All keys of all events, with their contents, equal those that OpenNebula's own driver published, apart from the one
/// deliberate difference: 12 events that a user's HOOK_TYPE attribute hides there. The original shuffles neighbours, so
/// what is compared is each event's messages: contents are the same in all of them, and differ between events but for
/// calls without an effect, which are compared with their count.
#[test]
fn recorded_events_have_the_original_keys() {
    let mut original: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (key, content) in pairs("published.jsonl.zst", "key", "content") {
        original.entry(content).or_default().push(key);
    }
    let inputs = parsed();
    assert_eq!(inputs.len(), 895);
    assert_eq!(inputs.first(), Some(&Input::Init));
    assert_eq!(inputs.last(), Some(&Input::Finalize));

    let mut ours: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut hidden = Vec::new();
    for (n, input) in inputs.iter().enumerate().take(894).skip(1) {
        let Input::Message { message, oddity } = input else { panic!("line {}: {input:?}", n + 1) };
        assert_eq!(*oddity, None, "line {}", n + 1);
        assert_eq!(message.clone().with_tag(PAYLOAD_BASE64), *message, "the tag says that it is base64");
        let content = String::from_utf8(message.payload().to_vec()).unwrap();
        if original[&content].iter().any(|key| key == "EVENT ") {
            assert_eq!(original.remove(&content).unwrap(), ["EVENT "]);
            hidden.push((n + 1, keys(message)));
        } else {
            ours.entry(content).or_default().extend(keys(message));
        }
    }
    assert_eq!(ours.len(), original.len());
    for (content, keys) in &ours {
        assert_eq!(keys, &original[content]);
    }

    let lines = [574, 575, 576, 578, 579, 580, 582, 583, 585, 610, 611, 612];
    assert_eq!(hidden.iter().map(|(line, _)| *line).collect::<Vec<_>>(), lines);
    let state = |id: u32, state: &str, lcm: &str| {
        vec![format!("EVENT VM {id}/{state}/{lcm} "), format!("EVENT STATE VM/{state}/{lcm}/{id} ")]
    };
    let expected = [
        state(12, "PENDING", "LCM_INIT"),
        vec!["EVENT API one.vm.allocate 1".into()],
        state(12, "ACTIVE", "LCM_INIT"),
        state(12, "ACTIVE", "PROLOG"),
        state(12, "ACTIVE", "BOOT"),
        state(12, "ACTIVE", "RUNNING"),
        state(12, "ACTIVE", "SHUTDOWN"),
        state(12, "ACTIVE", "EPILOG"),
        state(12, "DONE", "LCM_INIT"),
        state(15, "HOLD", "LCM_INIT"),
        vec!["EVENT API one.vm.allocate 1".into()],
        state(15, "DONE", "LCM_INIT"),
    ];
    assert_eq!(hidden.into_iter().map(|(_, keys)| keys).collect::<Vec<_>>(), expected);
}

/// Every result that the executor reported gives, byte for byte, the line that the original wrote.
#[test]
fn recorded_results_give_the_original_lines() {
    let replies = pairs("replies.jsonl.zst", "request", "reply");
    let mut lines = b"INIT SUCCESS - -\n".to_vec();
    for (request, reply) in &replies {
        assert_eq!(reply, "ACK");
        Execution::parse(request.as_bytes()).write_to(&mut lines);
    }
    assert_eq!(replies.len(), 447);
    assert!(lines == fixture("driver-to-oned.txt.zst"), "the lines differ");
}

/// However the recorded stream is cut into reads, the same lines come out.
#[test]
fn any_chunking_of_the_recorded_stream_gives_its_lines() {
    let stream = fixture("oned-to-driver.txt.zst");
    let lines: Vec<&[u8]> = stream.strip_suffix(b"\n").unwrap().split(|&byte| byte == b'\n').collect();
    for size in [61, 4096, 64 << 10, 1 << 20] {
        for block_bytes in [100, 64 << 10, 256 << 10] {
            let items = items(&stream, LineReader::with_limits(block_bytes, 1 << 30), &[size]);
            assert_eq!(items.len(), lines.len());
            for (item, line) in items.iter().zip(&lines) {
                assert!(matches!(item, Item::Line(text) if text.strip_suffix(b" ") == Some(line)));
            }
        }
    }
}

/// What OpenNebula's executor handed to hooks for `$API` and `$TEMPLATE`, byte for byte: for each of its executions there is
/// an event that triggers the hook and gives the recorded arguments.
#[test]
fn recorded_arguments_of_hooks_are_what_documents_give() {
    let pool = fixture("hookpool.xml.zst");
    let pool = Document::parse(&pool);
    assert!(pool.is_well_formed());
    let hooks: BTreeMap<String, Element<'_>> =
        pool.root().unwrap().children().map(|hook| (field(hook, "ID"), hook)).collect();
    assert_eq!(hooks.len(), 43);

    let events: Vec<Document> = parsed()
        .iter()
        .filter_map(|input| match input {
            Input::Message { message, .. } => Some(message.payload()),
            _ => None,
        })
        .map(|payload| Document::parse(&base64_simd::STANDARD.decode_to_vec(payload.trim_ascii()).unwrap()))
        .collect();
    assert_eq!(events.len(), 893);

    let (mut compared, mut longest) = (0, 0);
    for (request, _) in pairs("replies.jsonl.zst", "request", "reply") {
        let words: Vec<&str> = request.split(' ').collect();
        let [_, id, content] = words[..] else { panic!("{request}") };
        let Some(hook) = hooks.get(id).and_then(|hook| hook.child("TEMPLATE")) else { continue };
        let arguments = field(hook, "ARGUMENTS");
        if !arguments.split(' ').any(|word| word == "$API" || word == "$TEMPLATE") {
            continue;
        }
        // The result's own XML; of what it holds only the arguments are looked at, which come first.
        let result = [b"<R>", &base64_simd::STANDARD.decode_to_vec(content).unwrap()[..], b"</R>"].concat();
        let recorded = field(Document::parse(&result).root().unwrap(), "ARGUMENTS");
        let expected = events.iter().filter(|event| triggers(hook, event)).map(|event| expand(&arguments, event));
        assert!(expected.into_iter().any(|expected| expected == recorded), "hook {id}: {recorded}");
        compared += 1;
        longest = longest.max(recorded.len());
    }
    assert_eq!(compared, 235, "executions whose arguments were compared");
    assert!(longest > 100_000, "{longest}");
}

/// The text of an element's child, empty if it has none.
fn field(element: Element<'_>, name: &str) -> String {
    let text = element.child(name).map(|child| child.text().into_owned());
    String::from_utf8(text.unwrap_or_default()).unwrap()
}

/// Whether the executor runs the hook for the event.
fn triggers(hook: Element<'_>, event: &Document) -> bool {
    let header = event.root().unwrap();
    match field(header, "HOOK_TYPE").as_str() {
        "API" => field(hook, "CALL") == field(header, "CALL"),
        "STATE" => {
            let names = [("RESOURCE", "HOOK_OBJECT"), ("STATE", "STATE"), ("LCM_STATE", "LCM_STATE")];
            names.iter().all(|(of_hook, of_event)| field(hook, of_hook) == field(header, of_event))
        }
        _ => false, // RETRY, or hidden by its owner
    }
}

/// The arguments of a hook for an event, as the executor makes them.
fn expand(arguments: &str, event: &Document) -> String {
    let object = field(event.root().unwrap(), "HOOK_OBJECT");
    let object = if object == "NET" { "VNET" } else { &object };
    let words = arguments.split(' ').map(|word| match word {
        "$API" => encoded(event.find("CALL_INFO")),
        "$TEMPLATE" => encoded(event.find(object)),
        _ => word.to_owned(),
    });
    words.collect::<Vec<_>>().join(" ")
}

fn encoded(element: Option<Element<'_>>) -> String {
    element.map(|element| base64_simd::STANDARD.encode_to_string(element.to_xml())).unwrap_or_default()
}
