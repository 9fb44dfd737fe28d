//! Our keys and our trees against those of libxml2, which OpenNebula's own programs ask: over recorded events, and over
//! recorded events that were broken in thousands of ways. A Ruby process (`nokogiri_keys.rb` for what the driver publishes,
//! `nokogiri_trees.rb` for what the executor hands to hooks) answers for the original.
//!
//! `HOOKBUS_FUZZ_CASES=200000 HOOKBUS_FUZZ_SEED=7 cargo test -p hookbus-bridges --release --test nokogiri` runs longer, elsewhere.

#![cfg(feature = "opennebula")]
#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

use std::io::{BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use hookbus_bridges::opennebula::{Document, Element, Input, Parser};
use hookbus_broker::MAX_KEYS_BYTES;

/// The original's answer.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// Keys, or what `nokogiri_trees.rb` says.
    Parts(Vec<Vec<u8>>),
    /// It fails; the driver publishes nothing then.
    Error(String),
}

struct Original {
    process: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Original {
    fn start(script: &str) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(script);
        let mut process =
            Command::new("ruby").arg(&script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap_or_else(
                |e| panic!("can't start ruby: {e}; install it with its nokogiri (Debian: ruby ruby-nokogiri)"),
            );
        let input = process.stdin.take();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        let mut ready = [0; 6];
        if output.read_exact(&mut ready).is_err() || &ready != b"READY\n" {
            let status = process.wait().unwrap();
            panic!("{} did not start ({status}); install Debian's ruby and ruby-nokogiri", script.display());
        }
        Original { process, input, output }
    }

    fn ask(&mut self, question: &[u8]) -> Answer {
        let input = self.input.as_mut().unwrap();
        input.write_all(&u32::try_from(question.len()).unwrap().to_be_bytes()).unwrap();
        input.write_all(question).unwrap();
        input.flush().unwrap();
        let mut count = [0];
        self.output.read_exact(&mut count).unwrap();
        let mut part = || {
            let mut length = [0; 4];
            self.output.read_exact(&mut length).unwrap();
            let mut part = vec![0; u32::from_be_bytes(length) as usize];
            self.output.read_exact(&mut part).unwrap();
            part
        };
        if count[0] == 255 {
            return Answer::Error(String::from_utf8_lossy(&part()).into_owned());
        }
        Answer::Parts((0..count[0]).map(|_| part()).collect())
    }
}

impl Drop for Original {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.process.wait();
    }
}

fn ours(parser: &mut Parser, base64: &[u8]) -> Vec<Vec<u8>> {
    let line = [b"EXECUTE  -1 ", base64, b" "].concat();
    match parser.line(line.into()) {
        Ok(Input::Message { message, .. }) => message.keys().map(<[u8]>::to_vec).collect(),
        other => panic!("{other:?}"),
    }
}

/// Recorded events: the decoded documents.
fn recorded() -> Vec<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/opennebula/oned-to-driver.txt.zst");
    let file = std::fs::File::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut text = Vec::new();
    ruzstd::decoding::StreamingDecoder::new(file).unwrap().read_to_end(&mut text).unwrap();
    let mut events: Vec<_> = text
        .split(|&byte| byte == b'\n')
        .filter_map(|line| line.strip_prefix(b"EXECUTE  -1 "))
        .map(|base64| base64_simd::STANDARD.decode_to_vec(base64).unwrap())
        .collect();
    events.sort_by_key(Vec::len);
    events.dedup();
    events
}

/// What is put into documents to break them, or to lead astray.
const PIECES: &[&[u8]] = &[
    b"</VALUE></PARAMETER>",
    b"<![CDATA[",
    b"]]>",
    b"<!--",
    b"-->",
    b"--",
    b"<SERVICE_ID>",
    b"</SERVICE_ID>",
    b"<SERVICE_ID>5</SERVICE_ID>",
    b"<SERVICE_ID/>",
    b"<SERVICE_ID",
    b"<SERVICE_ID a=\"1\" b='&lt;x'>7</SERVICE_ID >",
    b"<SERVICE_ID xmlns=\"urn:x\">8</SERVICE_ID>",
    b"<p:SERVICE_ID xmlns:p=\"urn:p\">9</p:SERVICE_ID>",
    b"<p:SERVICE_ID>1</p:SERVICE_ID>",
    b"<x xmlns=\"urn:y\">",
    b"<x xmlns=\"\">",
    b"</x>",
    b"<SERVICE_ID>a<b>c</b><!--d--><?e f?><![CDATA[<g>]]></SERVICE_ID>",
    b"&lt;",
    b"&amp;",
    b"&quot;",
    b"&foo;",
    b"&foo",
    b"&",
    b"&;",
    b"&#",
    b"&#x41;",
    b"&#65;",
    b"&#233;",
    b"&#x1F600;",
    b"&#0;",
    b"&#x110000;",
    b"&#00000000000000000000000065;",
    b"&#x0000000000000004a;",
    b"<",
    b"<<",
    b">",
    b"</",
    b"</>",
    b"< ",
    b"<1>",
    b"<:>",
    b"<a:>",
    b"<a:b:c>",
    b"</a:b>",
    b"<?",
    b"?>",
    b"<?xml version=\"1.0\"?>",
    b"<?pi?>",
    b"<? pi ?>",
    b"<!DOCTYPE x>",
    b"<!",
    b"<![",
    b"\x00",
    b"\x01",
    b"\x0B",
    b"\x1F",
    b"\x7F",
    b"\r",
    b"\r\n",
    b"\n",
    b"\t",
    b" ",
    b"\xC3\xA9",
    b"\xE2\x82\xAC",
    b"\xF0\x9F\x98\x80",
    b"\xEF\xBF\xBE",
    b"\xED\xA0\x80",
    b"\xFF",
    b"\x80",
    b"\x80\x80",
    b"\xC0\x80",
    b"\xC3",
    b"\xE2\x82",
    b"\xF0\x9F",
    b"\xF8\x88\x80\x80\x80",
    b"\xF4\x90\x80\x80",
    b"\xC1\xBF",
    b"\xE0\x80\x80",
    b"HOOK_TYPE",
    b"<HOOK_TYPE>API</HOOK_TYPE>",
    b"<HOOK_TYPE>STATE</HOOK_TYPE>",
    b"<STATE>",
    b"</STATE>",
    b"<STATE>X</STATE>",
    b"<LCM_STATE>",
    b"<RESULT>0</RESULT>",
    b"<CALL>",
    b"<CALL_INFO>",
    b"</CALL_INFO>",
    b"</HOOK_MESSAGE>",
    b"<HOOK_MESSAGE>",
    b"<a b>",
    b"<a b=c>",
    b"<a b='c' b='d'>",
    b"<a b='c'd='e'>",
    b"<a b=\"<\">",
    b"<a b=\"\xFF\" c=\"&#38;&amp;&x;\">",
    b"<a\xC3\xA9>",
    b"</a\xC3\xA9>",
    b"<a/",
    b"<a /",
    b"<a / >",
    b"a='b'",
    b"\"",
    b"'",
    b"=",
    b"/>",
    b"]",
    b"]]",
    b"]]]>",
    b"<VM>",
    b"</VM>",
    b"<OBJ xmlns:a='u' a:x='1' a:x='2'>",
    b"<SERVICE_ID xmlns=''>3</SERVICE_ID>",
    b"<SERVICE_ID xmlns='' xmlns='urn:z'>4</SERVICE_ID>",
    b"<!-- a\r\nb\rc -->",
    b"<!---->",
    b"<?pi  a\r\nb ?>",
    b"<![CDATA[a]]]]><![CDATA[>b\r\n]]>",
    b"<a b=\"&#10;&#9;&#13;\t\n\r\n'&quot;&gt;\" c='\"&apos;'/>",
    b"<a \xC3\xA4='\xC3\xB6\xC3' b='\xC3\xB6'/>",
    b"<p:a xmlns:p='u\"' xmlns:q='&quot;&apos;' q:b='1'><p:c/></p:a>",
    b"&#xD;",
    b"<VNET><ID>1</ID></VNET>",
];

/// Breaks a document at a few places.
fn mutate(random: &mut fastrand::Rng, documents: &[Vec<u8>]) -> Vec<u8> {
    // Small documents mostly, so that many cases fit into the time; their headers are alike.
    let pick = if random.u8(..) < 8 { documents.len() } else { documents.len() * 3 / 4 };
    let mut text = documents[random.usize(..pick)].clone();
    for _ in 0..random.usize(1..6) {
        // Near the header, where it matters most, or anywhere.
        let near = if random.bool() { text.len().min(400) } else { text.len() };
        let at = random.usize(..=near);
        match random.u8(..16) {
            0 => text.truncate(at),
            1 if at < text.len() => text[at] = random.u8(..),
            2 if at < text.len() => text[at] ^= 1 << random.u8(..8),
            3 => {
                let end = text.len().min(at + random.usize(..40));
                text.drain(at..end);
            }
            4 => {
                let from = random.usize(..=text.len());
                let piece = text[from..text.len().min(from + random.usize(..60))].to_vec();
                text.splice(at..at, piece);
            }
            5 => {
                // Between tags, where it keeps its meaning.
                let at = text[at..].iter().position(|&byte| byte == b'<').map_or(at, |ahead| at + ahead);
                text.splice(at..at, random.choice(PIECES).unwrap().iter().copied());
            }
            6 => {
                let at = text[at..].iter().position(|&byte| byte == b'>').map_or(at, |ahead| at + ahead + 1);
                text.splice(at..at, random.choice(PIECES).unwrap().iter().copied());
            }
            7 => {
                let deep = random.choice([2, 10, 250, 300]).unwrap();
                let tags: Vec<u8> = (0..deep).flat_map(|_| *b"<d>").collect();
                text.splice(at..at, tags);
            }
            _ => {
                text.splice(at..at, random.choice(PIECES).unwrap().iter().copied());
            }
        }
    }
    text
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

/// Compares a case; says what differs.
fn compare(original: &mut Original, parser: &mut Parser, base64: &[u8]) -> Result<(), String> {
    let ours = ours(parser, base64);
    let mut expected = match original.ask(base64) {
        // The original fails where a field is missing, and publishes nothing. Ours is not lost.
        Answer::Error(_) => Vec::new(),
        Answer::Parts(keys) => keys,
    };
    // A key that would make a message's keys longer than they can be is left out.
    let mut room = MAX_KEYS_BYTES;
    expected.retain(|key| room.checked_sub(key.len()).map(|rest| room = rest).is_some());
    if expected.is_empty() {
        expected.push(b"EVENT ".to_vec());
    }
    if ours == expected {
        return Ok(());
    }
    let show = |keys: &[Vec<u8>]| keys.iter().map(|key| key.escape_ascii().to_string()).collect::<Vec<_>>();
    let event = parser.event_of(base64);
    Err(format!("ours:     {:?}\noriginal: {:?}\n{}", show(&ours), show(&expected), event.xml.escape_ascii()))
}

#[test]
fn recorded_events_as_libxml2_sees_them() {
    let (mut original, mut parser) = (Original::start("nokogiri_keys.rb"), Parser::new());
    for text in recorded() {
        let base64 = base64_simd::STANDARD.encode_to_string(&text);
        compare(&mut original, &mut parser, base64.as_bytes()).unwrap();
    }
}

/// The base64 itself broken: what Ruby's lenient decoder makes of it decides.
#[test]
fn broken_base64_as_ruby_reads_it() {
    let (mut original, mut parser) = (Original::start("nokogiri_keys.rb"), Parser::new());
    let documents = recorded();
    for case in 0..1000 {
        let mut random = fastrand::Rng::with_seed(case);
        let mut base64 =
            base64_simd::STANDARD.encode_to_string(&documents[random.usize(..documents.len() / 2)]).into_bytes();
        for _ in 0..random.usize(1..4) {
            let at = random.usize(..base64.len());
            match random.u8(..4) {
                0 => base64.truncate(at + 1),
                1 => base64[at] = *random.choice(b"=-_%\xFF\0A").unwrap(),
                2 => base64.insert(at, *random.choice(b"=-_%\xFF\0A").unwrap()),
                _ => drop(base64.remove(at)),
            }
            if base64.is_empty() {
                base64.push(b'=');
            }
        }
        compare(&mut original, &mut parser, &base64).unwrap_or_else(|e| panic!("case {case}:\n{e}"));
    }
}

/// Compares the tree of a document; says what differs.
fn compare_tree(original: &mut Original, text: &[u8]) -> Result<(), String> {
    let expected = match original.ask(text) {
        Answer::Parts(parts) => parts,
        // Where there is no element.
        Answer::Error(_) => [&b"0"[..]].into_iter().chain([&b""[..]; 13]).map(<[u8]>::to_vec).collect(),
    };
    let document = Document::parse(text);
    let elements = ["CALL_INFO", "VM", "HOST", "IMAGE", "VNET"].map(|name| document.find(name));
    let both = |element: Option<Element<'_>>| {
        element.map_or_else(Default::default, |element| [element.text().into_owned(), element.to_xml()])
    };
    let children = document.root().map_or_else(Vec::new, |root| root.children().collect());
    let below = children.iter().flat_map(|child| [child.name(), b"=", &child.text(), b"\n"].concat()).collect();
    let mut ours = vec![if document.is_well_formed() { b"1".to_vec() } else { b"0".to_vec() }];
    ours.extend([document.root()].into_iter().chain(elements).flat_map(both));
    ours.push(below);
    assert_eq!(ours.len(), expected.len());
    let names = ["well-formed", "root", "CALL_INFO", "VM", "HOST", "IMAGE", "VNET"].into_iter();
    let names: Vec<String> = ["well-formed".to_owned()]
        .into_iter()
        .chain(names.skip(1).flat_map(|name| [format!("text of {name}"), format!("to_s of {name}")]))
        .chain(["children of the root".to_owned()])
        .collect();
    for ((name, ours), expected) in names.iter().zip(&ours).zip(&expected) {
        // What is no UTF-8 is written in another way, which `opennebula::Document` tells; and NUL ends the document for the
        // original, which then finds nothing wrong with the rest.
        let skip = (name.starts_with("to_s") && std::str::from_utf8(text).is_err())
            || (name == "well-formed" && text.contains(&0));
        if !skip && ours != expected {
            let at = ours.iter().zip(expected).take_while(|(a, b)| a == b).count();
            let near = |bytes: &[u8]| bytes[at.saturating_sub(60)..bytes.len().min(at + 60)].escape_ascii().to_string();
            return Err(format!(
                "{name} at {at}\nours:     {}\noriginal: {}\n{}",
                near(ours),
                near(expected),
                text.escape_ascii()
            ));
        }
    }
    Ok(())
}

#[test]
fn trees_of_recorded_events_as_libxml2_builds_them() {
    let mut original = Original::start("nokogiri_trees.rb");
    for text in recorded() {
        compare_tree(&mut original, &text).unwrap();
    }
}

/// How elements are written when texts, comments and the like stand beside them.
#[test]
fn elements_as_libxml2_writes_them() {
    let mut original = Original::start("nokogiri_trees.rb");
    let deep = ["<d>".repeat(40), "</d>".repeat(40)].concat();
    for text in [
        "<a/>",
        "<a></a>",
        "<a> </a>",
        "<a><b/><c></c> <d><e/></d></a>",
        "<a><b/><c><d/><e/></c></a>",
        "<a><!-- x --><?pi?><?pi ?><?pi  two  words?><b/></a>",
        "<a><b><![CDATA[]]></b><c><![CDATA[x]]]]><![CDATA[>y]]></c></a>",
        "<a><![CDATA[x]]><![CDATA[y]]>z<![CDATA[w]]></a>",
        "<a>x<!-- y\r\nz\rw -->\r\n<?pi a\r\nb?><![CDATA[a\r\nb\rc\r]]></a>",
        "<a>&lt;&gt;&amp;&quot;&apos;&#13;&#10;&#9;\"'\u{7f}ü€😀</a>",
        "<a b=\"&lt;&gt;&amp;&quot;&apos;&#13;&#10;&#9; \t\n'ü€😀\" c='\"' ä='ö'/>",
        "<ä><!-- ö --><ü/></ä>",
        "<a xmlns='urn:x' b='1' xmlns:p='urn:p' p:c='2' q:d='3'><p:e/><q:f/><g/></a>",
        "<a><b xmlns:p='urn:p' xmlns:p='urn:q'><p:c/></b><p:c/><x:y:z/><:a/><b:/></a>",
        "<a xmlns:p='ü\"'><b xmlns:p='\"&apos;'/><c xmlns='&amp;&lt;'/></a>",
        "<a xml:lang='de'><xml:b/></a>",
        "<a b='1' b='2' b='3'/>",
        "<a/><!-- after --><?pi?>\n",
        "<!-- before --><a/>",
        "<a/>x",
        "<a/><b/>",
        "",
        " ",
        "text",
        "<a",
        "<a><b",
        "<a>]]></a>",
        "<a>&x;y</a>",
        "<a>x<b/>y</a><VM><ID>0</ID></VM>",
        "<a><VM xmlns='urn:x'><ID>0</ID></VM><VM><ID>1</ID></VM></a>",
        &deep,
    ] {
        if !text.is_empty() {
            compare_tree(&mut original, text.as_bytes()).unwrap_or_else(|e| panic!("{text:?}: {e}"));
        }
    }
}

#[test]
fn trees_of_broken_events_as_libxml2_builds_them() {
    let mut original = Original::start("nokogiri_trees.rb");
    broken_events(|text| compare_tree(&mut original, text));
}

#[test]
fn broken_events_as_libxml2_sees_them() {
    let (mut original, mut parser) = (Original::start("nokogiri_keys.rb"), Parser::new());
    broken_events(|text| compare(&mut original, &mut parser, base64_simd::STANDARD.encode_to_string(text).as_bytes()));
}

/// Compares as many broken events as are wanted, and says which differ.
fn broken_events(mut compare: impl FnMut(&[u8]) -> Result<(), String>) {
    let number = |name: &str, default: u64| match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|e| panic!("{name}={text}: {e}; a number is needed")),
        Err(_) => default,
    };
    let cases = number("HOOKBUS_FUZZ_CASES", 4000);
    let seed = number("HOOKBUS_FUZZ_SEED", 1);
    let documents = recorded();
    let mut failures = Vec::new();
    for case in 0..cases {
        // Each case has a seed of its own, so that one can be repeated alone.
        let mut random = fastrand::Rng::with_seed(seed.wrapping_mul(1 << 32).wrapping_add(case));
        let text = mutate(&mut random, &documents);
        if text.is_empty() {
            continue; // a line without a content is no event
        }
        if find(&text, b"<!DOCTYPE").is_some_and(|at| find(&text, b"<HOOK").is_none_or(|root| at < root)) {
            continue; // left out on purpose: nothing that oned writes has one before its root
        }
        if let Err(difference) = compare(&text) {
            failures.push(format!("case {case} of seed {seed} ({} bytes):\n{difference}\n", text.len()));
            if failures.len() == 10 {
                break;
            }
        }
    }
    failures.sort_by_key(String::len);
    assert!(
        failures.is_empty(),
        "{} differ; the shortest:\n{}",
        failures.len(),
        failures[..failures.len().min(5)].join("\n")
    );
}
