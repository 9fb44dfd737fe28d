//! What a real oned wrote, repeated as often as needed, and the messages that must come of it.
//!
//! The recording is `tests/fixtures/opennebula`; its README tells how it came about. Lines are written byte for byte. What is
//! expected of hookbus and of the plain loop is what the shared parser makes of them; what is expected of the original
//! is what it was seen to publish.

use std::collections::{HashMap, VecDeque};
use std::io::Read;

use bytes::Bytes;
use hookbus_bridges::opennebula::{Input, Parser};

/// The recorded lines, and the messages of one pass over them.
#[derive(Debug)]
pub struct Corpus {
    /// Each with its newline, one behind the other.
    text: Vec<u8>,
    /// Where each ends in `text`.
    ends: Vec<usize>,
    ours: Vec<Planned>,
    original: Vec<Planned>,
    probe: Vec<u8>,
}

/// One message that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Which one.
    pub fingerprint: u64,
    /// When, on CLOCK_MONOTONIC.
    pub at_ns: u64,
}

/// One message to come.
#[derive(Clone, Copy, Debug)]
struct Planned {
    /// The line that it is made of, counted within the pass.
    line: usize,
    fingerprint: u64,
}

/// The key of a probe. It is in no recording.
pub const PROBE_KEY: &[u8] = b"EVENT API hookbus.bench.probe 1";

impl Corpus {
    /// The recording, without INIT and FINALIZE.
    pub fn recorded() -> Self {
        let text = unpack(include_bytes!("../../tests/fixtures/opennebula/oned-to-driver.txt.zst"));
        let published = unpack(include_bytes!("../../tests/fixtures/opennebula/published.jsonl.zst"));
        let mut corpus =
            Corpus { text: Vec::new(), ends: Vec::new(), ours: Vec::new(), original: Vec::new(), probe: probe() };
        for line in text.split_inclusive(|&byte| byte == b'\n') {
            if line.starts_with(b"EXECUTE ") || line.starts_with(b"RETRY ") {
                corpus.text.extend_from_slice(line);
                corpus.ends.push(corpus.text.len());
            }
        }
        let mut lines_of: HashMap<Bytes, Vec<usize>> = HashMap::new();
        let mut parser = Parser::new();
        for line in 0..corpus.lines() {
            let text = Bytes::copy_from_slice(corpus.line(line).trim_ascii_end());
            let Ok(Input::Message { message, .. }) = parser.line(text) else {
                unreachable!("every recorded EXECUTE and RETRY line is an event")
            };
            let fingerprint = |key| fingerprint(key, message.payload());
            corpus.ours.extend(message.keys().map(|key| Planned { line, fingerprint: fingerprint(key) }));
            lines_of.entry(message.payload().clone()).or_default().push(line);
        }
        corpus.original = original(&published, &lines_of);
        corpus
    }

    /// How many lines one pass has.
    pub fn lines(&self) -> usize {
        self.ends.len()
    }

    /// A line with its newline; after the last one comes the first again.
    pub fn line(&self, at: usize) -> &[u8] {
        let at = at % self.lines();
        let start = if at == 0 { 0 } else { self.ends[at - 1] };
        &self.text[start..self.ends[at]]
    }

    /// The first `lines` lines, as pieces to be written one after the other.
    pub fn pieces(&self, lines: usize) -> impl Iterator<Item = &[u8]> {
        let whole = lines / self.lines();
        let rest = match lines % self.lines() {
            0 => 0,
            n => self.ends[n - 1],
        };
        std::iter::repeat_n(self.text.as_slice(), whole).chain((rest > 0).then_some(&self.text[..rest]))
    }

    /// A line that is published under [`PROBE_KEY`] alone.
    pub fn probe(&self) -> &[u8] {
        &self.probe
    }

    /// What must come of the first `lines` lines.
    pub fn expected(&self, lines: usize, of_the_original: bool) -> Expected {
        let pass = if of_the_original { &self.original } else { &self.ours };
        let mut messages = Vec::with_capacity(pass.len() * lines.div_ceil(self.lines()));
        for first in (0..lines).step_by(self.lines()) {
            let planned = pass.iter().map(|planned| Planned { line: first + planned.line, ..*planned });
            messages.extend(planned.filter(|planned| planned.line < lines));
        }
        Expected { messages }
    }
}

/// All messages that must come, in order.
#[derive(Debug)]
pub struct Expected {
    messages: Vec<Planned>,
}

/// How what came compares with what had to come.
#[derive(Debug)]
pub struct Matched {
    /// For each line, when its last message came; 0 for none.
    pub completed_ns: Vec<u64>,
    /// Messages that came after one of a later line.
    pub shuffled: usize,
    /// Messages that nobody sent, or sent less often.
    pub unknown: usize,
}

impl Expected {
    /// How many.
    pub fn messages(&self) -> usize {
        self.messages.len()
    }

    /// Finds the line of each message that came. Messages that are alike are taken to come in order.
    pub fn matched(&self, arrivals: &[Arrival], lines: usize) -> Matched {
        let mut waiting: HashMap<u64, VecDeque<usize>> = HashMap::new();
        for planned in &self.messages {
            waiting.entry(planned.fingerprint).or_default().push_back(planned.line);
        }
        let mut matched = Matched { completed_ns: vec![0; lines], shuffled: 0, unknown: 0 };
        let mut latest = 0;
        for arrival in arrivals {
            let Some(line) = waiting.get_mut(&arrival.fingerprint).and_then(VecDeque::pop_front) else {
                matched.unknown += 1;
                continue;
            };
            matched.shuffled += usize::from(line < latest);
            latest = latest.max(line);
            matched.completed_ns[line] = matched.completed_ns[line].max(arrival.at_ns);
        }
        matched
    }
}

/// Tells messages apart; every byte counts. Four sums side by side, so that a content of 4 kB takes a fraction of what
/// receiving it does.
pub fn fingerprint(key: &[u8], content: &[u8]) -> u64 {
    let mix = |hash: u64, word: u64| (hash.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    let (blocks, rest) = content.as_chunks::<32>();
    let mut lanes = [content.len() as u64, 1, 2, 3];
    for block in blocks {
        let (words, _) = block.as_chunks::<8>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane = mix(*lane, u64::from_le_bytes(*word));
        }
    }
    let bytes = rest.iter().chain(key);
    lanes.into_iter().chain(bytes.map(|&byte| u64::from(byte))).fold(0, mix)
}

/// What the original published, each message with the line that it must be of: of lines that are alike, the first
/// that has no such message yet.
fn original(published: &[u8], lines_of: &HashMap<Bytes, Vec<usize>>) -> Vec<Planned> {
    #[derive(serde::Deserialize)]
    struct Published {
        key: String,
        content: String,
    }
    let mut seen: HashMap<(String, String), usize> = HashMap::new();
    let published = published.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    let planned = published.map(|line| {
        let Published { key, content } = serde_json::from_slice(line).expect("the fixture is well-formed");
        let fingerprint = fingerprint(key.as_bytes(), content.as_bytes());
        let nth = seen.entry((key, content.clone())).or_default();
        *nth += 1;
        let lines = &lines_of[content.as_bytes()];
        Planned { line: lines[(*nth - 1).min(lines.len() - 1)], fingerprint }
    });
    planned.collect()
}

fn probe() -> Vec<u8> {
    let xml = "<HOOK_MESSAGE><HOOK_TYPE>API</HOOK_TYPE><CALL>hookbus.bench.probe</CALL><CALL_INFO><RESULT>1</RESULT>\
               <PARAMETERS/></CALL_INFO></HOOK_MESSAGE>";
    format!("EXECUTE  -1 {}\n", base64_simd::STANDARD.encode_to_string(xml)).into_bytes()
}

fn unpack(packed: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    let mut decoder = ruzstd::decoding::StreamingDecoder::new(packed).expect("the fixture is zstd");
    decoder.read_to_end(&mut text).expect("the fixture is whole");
    text
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;

    /// Unpacked once: without optimisation that takes a second.
    static CORPUS: LazyLock<Corpus> = LazyLock::new(Corpus::recorded);

    fn arrivals(expected: &Expected) -> Vec<Arrival> {
        let arrival =
            |(at, planned): (usize, &Planned)| Arrival { fingerprint: planned.fingerprint, at_ns: at as u64 + 1 };
        expected.messages.iter().enumerate().map(arrival).collect()
    }

    #[test]
    fn the_recording_has_what_its_readme_says() {
        let corpus = &*CORPUS;
        assert_eq!(corpus.lines(), 893);
        assert_eq!(corpus.original.len(), 1379);
    }

    #[test]
    fn a_probe_has_the_key_of_a_probe() {
        let corpus = &*CORPUS;
        let line = Bytes::copy_from_slice(corpus.probe().trim_ascii_end());
        let Ok(Input::Message { message, .. }) = Parser::new().line(line) else { panic!("it is an event") };
        assert!(message.keys().eq([PROBE_KEY]));
    }

    #[test]
    fn pieces_are_the_lines_from_the_first_on() {
        let corpus = &*CORPUS;
        let lines = corpus.lines() + 3;
        let by_line: Vec<_> = (0..lines).flat_map(|at| corpus.line(at).to_vec()).collect();
        assert!(corpus.pieces(lines).flatten().eq(&by_line));
    }

    #[test]
    fn different_messages_have_different_fingerprints() {
        let corpus = &*CORPUS;
        let mut by_fingerprint: HashMap<u64, (Vec<u8>, Bytes)> = HashMap::new();
        let mut parser = Parser::new();
        for line in 0..corpus.lines() {
            let text = Bytes::copy_from_slice(corpus.line(line).trim_ascii_end());
            let Ok(Input::Message { message, .. }) = parser.line(text) else { panic!("it is an event") };
            for key in message.keys() {
                let this = (key.to_vec(), message.payload().clone());
                let first = by_fingerprint.entry(fingerprint(key, message.payload())).or_insert_with(|| this.clone());
                assert!(*first == this, "line {line}");
            }
        }
    }

    #[test]
    fn what_comes_whole_and_in_order_is_matched_line_by_line() {
        let corpus = &*CORPUS;
        let lines = 2 * corpus.lines() + 100;
        let expected = corpus.expected(lines, false);
        let matched = expected.matched(&arrivals(&expected), lines);
        assert_eq!((matched.shuffled, matched.unknown), (0, 0));
        assert!(matched.completed_ns.is_sorted() && matched.completed_ns[0] > 0);
    }

    #[test]
    fn what_is_swapped_lost_or_foreign_is_noticed() {
        let corpus = &*CORPUS;
        let expected = corpus.expected(200, false);
        let mut arrivals = arrivals(&expected);
        let last = arrivals.len() - 1;
        arrivals.swap(0, last);
        arrivals.push(Arrival { fingerprint: 0, at_ns: 1 });
        let matched = expected.matched(&arrivals, 200);
        assert!(matched.shuffled > 0);
        assert_eq!(matched.unknown, 1);
    }

    #[test]
    fn the_original_shuffles_only_a_little() {
        let corpus = &*CORPUS;
        let expected = corpus.expected(corpus.lines(), true);
        let matched = expected.matched(&arrivals(&expected), corpus.lines());
        assert_eq!(matched.unknown, 0);
        assert!(matched.shuffled < 60, "{}", matched.shuffled);
    }
}
