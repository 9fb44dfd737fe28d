//! Lines of the driver protocol: what oned says, and what it is told.
//!
//! oned to the driver ([`Parser`]):
//!
//! ```text
//! INIT
//! EXECUTE  -1 <base64>        two blanks: type, empty status, -1, content
//! RETRY  -1 <base64>
//! FINALIZE
//! ```
//!
//! the driver to oned ([`INIT_ANSWER`], [`Execution`], [`log_line`]):
//!
//! ```text
//! INIT SUCCESS - -            31 bytes with its LF
//! EXECUTE SUCCESS|FAILURE <hook id> <return code> <base64>
//! LOG I|W|E|D 0 <text>
//! ```
//!
//! Words are separated as OpenNebula's own driver (Ruby) does it: by any run of ASCII white space. The content is the word
//! behind the `-1`, published byte for byte as oned wrote it. An event must not be lost because something
//! about it is odd, so whatever follows `EXECUTE  -1 ` is published: base64 that is not strictly right is decoded as
//! Ruby's `Base64.decode64` does, which takes what it can up to the first padding; and what then shows no header goes out under
//! the key `EVENT `. Only a line without a content, and one of another type, is an error.

use std::ops::Range;

use bytes::{Buf, Bytes};
use hookbus_broker::{MAX_KEYS_BYTES, Message};
use thiserror::Error;

use super::event::{Event, EventParser, Kind};
use crate::PAYLOAD_BASE64;

/// The answer to `INIT`, exactly 31 bytes: oned reads once, 31 bytes at most, and would lose what follows in that read.
pub const INIT_ANSWER: &[u8; 31] = b"INIT SUCCESS - -              \n";

/// What a line from oned asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly every line is a message, and a box would be an allocation for each"
)]
pub enum Input {
    /// `INIT`: to be answered with [`INIT_ANSWER`].
    Init,
    /// `FINALIZE`: to end.
    Finalize,
    /// An event or a retry, to be published.
    Message {
        /// With its keys in order; the payload is the base64 text.
        message: Message,
        /// What was not as oned writes it, for the log.
        oddity: Option<Oddity>,
    },
    /// A blank line, which the original passes over in silence.
    Blank,
}

/// What was not as oned writes it, in a line that is published all the same. `Display` says it in a few words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
#[non_exhaustive]
pub enum Oddity {
    /// The content was decoded leniently.
    #[error("the content is not valid base64; it was decoded as far as it goes and published unchanged")]
    Base64,
    /// No event can be told from it, so the key is `EVENT `.
    #[error("the content has no header of an event; it was published with the key \"EVENT \"")]
    NoHeader,
    /// The keys would have been longer than a message's keys may be, so one was left out, or `EVENT ` took the place of all.
    #[error("its keys would be longer than {MAX_KEYS_BYTES} bytes; those that are too long were left out")]
    LongKey,
}

/// Why a line is not published.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum LineError {
    /// Neither INIT nor EXECUTE nor RETRY nor FINALIZE.
    #[error(
        "line from oned: {bytes} bytes beginning with \"{start}\" are no INIT, EXECUTE, RETRY or FINALIZE; the line was skipped"
    )]
    Unknown {
        /// How the line begins, made printable.
        start: String,
        /// Its length.
        bytes: usize,
    },
    /// EXECUTE or RETRY and nothing to publish.
    #[error("line from oned: {word} without a content (expected \"{word}  -1 <base64>\"); the line was skipped")]
    NoContent {
        /// `EXECUTE` or `RETRY`.
        word: &'static str,
    },
    /// The input ended in the middle of an EXECUTE or RETRY line, and what came of it is not the whole.
    #[error("line from oned: the input ended within a line, after {bytes} bytes; what came of it was not published")]
    Unfinished {
        /// How much came.
        bytes: usize,
    },
}

/// Parses lines from oned. It keeps its buffers, so that a steady flow of events allocates nothing here.
///
/// ```
/// use hookbus_bridges::opennebula::{Input, Parser};
///
/// // <HOOK_MESSAGE><HOOK_TYPE>API</HOOK_TYPE><CALL>one.vm.x</CALL><CALL_INFO><RESULT>1</RESULT>...
/// let content = "PEhPT0tfTUVTU0FHRT48SE9PS19UWVBFPkFQSTwvSE9PS19UWVBFPjxDQUxMPm9uZS52bS54PC9DQUxMPjxDQUxMX0lORk8\
///                +PFJFU1VMVD4xPC9SRVNVTFQ+PC9DQUxMX0lORk8+PC9IT09LX01FU1NBR0U+";
/// let line = format!("EXECUTE  -1 {content} ");
/// let Ok(Input::Message { message, oddity: None }) = Parser::new().line(line.into()) else { panic!() };
/// assert!(message.keys().eq([b"EVENT API one.vm.x 1"]));
/// assert_eq!(message.payload(), content);
/// ```
#[derive(Debug, Default)]
pub struct Parser {
    events: EventParser,
    key: Vec<u8>,
}

impl Parser {
    /// A parser.
    pub fn new() -> Self {
        Parser::default()
    }

    /// Parses a line, without its newline. Where that is followed by a blank, as [`LineReader`](super::LineReader) leaves
    /// it, nothing of the text is copied.
    ///
    /// # Errors
    /// When there is nothing to publish. The line is to be logged and skipped.
    pub fn line(&mut self, line: Bytes) -> Result<Input, LineError> {
        let (word, rest) = next_word(&line, 0);
        if word.is_empty() {
            return Ok(Input::Blank);
        }
        let is = |name: &[u8]| line[word.clone()].eq_ignore_ascii_case(name);
        if is(b"EXECUTE") {
            let start = content_start(&line, rest).ok_or(LineError::NoContent { word: "EXECUTE" })?;
            Ok(self.event(line, start))
        } else if is(b"RETRY") {
            let start = content_start(&line, rest).ok_or(LineError::NoContent { word: "RETRY" })?;
            Ok(retry(line, start))
        } else if is(b"INIT") {
            Ok(Input::Init)
        } else if is(b"FINALIZE") {
            Ok(Input::Finalize)
        } else {
            let text = &line[word.start..content_end(&line)];
            let start = String::from_utf8_lossy(&text[..text.len().min(40)]).escape_debug().to_string();
            Err(LineError::Unknown { start, bytes: text.len() })
        }
    }

    /// Parses what the end of the input left without a newline ([`Item::Unfinished`](super::Item::Unfinished)).
    ///
    /// The original takes such a rest for a line, and then mostly ends before it has published it. oned ends its lines,
    /// so a rest is a piece of a line that oned did not live to finish. It is published if it is whole all the
    /// same: an event up to `</HOOK_MESSAGE>`. Half an event helps nobody; hooks would run on it.
    ///
    /// # Errors
    /// As [`line`](Parser::line); besides, when the event is not whole.
    pub fn unfinished(&mut self, line: Bytes) -> Result<Input, LineError> {
        let bytes = line.len();
        let input = self.line(line)?;
        if let Input::Message { message, .. } = &input {
            let mut text = Vec::new();
            let content = message.payload().trim_ascii_end();
            let valid = base64_simd::STANDARD.decode_append(content, &mut text).is_ok();
            if !valid || !text.trim_ascii_end().ends_with(b"</HOOK_MESSAGE>") {
                return Err(LineError::Unfinished { bytes });
            }
        }
        Ok(input)
    }

    /// The event whose content came by another way than a line: the base64 text alone. It is what [`line`](Parser::line) makes of
    /// `EXECUTE  -1 <content>`, always an [`Input::Message`].
    pub fn content(&mut self, content: Bytes) -> Input {
        self.event(content, 0)
    }

    /// The event in a content, for those who want to show more of it than its keys: decoded, with its header read.
    pub fn event_of(&mut self, content: &[u8]) -> Event<'_> {
        self.events.decode(content);
        self.events.event()
    }

    /// The message of the event whose content begins at `start`.
    fn event(&mut self, mut line: Bytes, start: usize) -> Input {
        // White space inside is not base64, so that what decodes strictly is one word and needs no search for its end.
        let mut content = start..content_end(&line);
        let mut base64 = None;
        if !self.events.decode_strictly(&line[content.clone()]) {
            (content, _) = next_word(&line, start);
            base64 = (!self.events.decode(&line[content.clone()])).then_some(Oddity::Base64);
        }
        line.truncate(content.end);
        line.advance(content.start);

        let event = self.events.event();
        let mut keys = Keys { message: None, bytes: 0, payload: line, key: &mut self.key, oddity: base64 };
        match event.kind {
            Kind::Api => keys.push(&[b"EVENT API ", event.call, b" ", event.result]),
            Kind::State => {
                let Event { object, id, state, lcm_state, .. } = event;
                keys.push(&[b"EVENT ", object, b" ", id, b"/", state, b"/", lcm_state, b" "]);
                keys.push(&[b"EVENT STATE ", object, b"/", state, b"/", lcm_state, b"/", id, b" "]);
                if let Some(service) = event.service_id {
                    keys.push(&[b"EVENT SERVICE ", service, b" "]);
                }
            }
            Kind::Other => keys.oddity = keys.oddity.or(Some(Oddity::NoHeader)),
        }
        keys.into_input()
    }
}

/// A message that gets its keys one by one.
struct Keys<'a> {
    message: Option<Message>,
    /// The length of the keys so far.
    bytes: usize,
    payload: Bytes,
    key: &'a mut Vec<u8>,
    oddity: Option<Oddity>,
}

impl Keys<'_> {
    fn push(&mut self, parts: &[&[u8]]) {
        // A user chooses a service id, and its length: that must not cost the event.
        let bytes = parts.iter().map(|part| part.len()).sum::<usize>();
        if self.bytes + bytes > MAX_KEYS_BYTES {
            self.oddity = Some(Oddity::LongKey);
            return;
        }
        self.bytes += bytes;
        self.key.clear();
        for part in parts {
            self.key.extend_from_slice(part);
        }
        self.message = Some(match self.message.take() {
            Some(message) => message.with_key(&self.key),
            None => Message::new(&self.key, self.payload.clone()),
        });
    }

    fn into_input(mut self) -> Input {
        if self.message.is_none() {
            self.push(&[b"EVENT "]);
        }
        let message = self.message.expect("at least one key fits").with_tag(PAYLOAD_BASE64);
        Input::Message { message, oddity: self.oddity }
    }
}

/// The message of a retry whose content begins at `start`.
fn retry(mut line: Bytes, start: usize) -> Input {
    let (word, after) = next_word(&line, start);
    let (more, _) = next_word(&line, after);
    // The original publishes "<first word> <second word>", and oned writes but one: so the content ends in a blank.
    let payload = if more.is_empty() && line.get(word.end) == Some(&b' ') {
        line.truncate(word.end + 1);
        line.advance(word.start);
        line
    } else {
        [&line[word], b" ", &line[more]].concat().into()
    };
    Input::Message { message: Message::new("RETRY", payload).with_tag(PAYLOAD_BASE64), oddity: None }
}

/// Where the content begins: behind the `-1`.
fn content_start(line: &[u8], rest: usize) -> Option<usize> {
    let (_id, rest) = next_word(line, rest);
    let start = rest + line.get(rest..)?.iter().position(|&byte| !is_blank(byte))?;
    Some(start)
}

/// Where the blanks at the end of a line begin.
fn content_end(line: &[u8]) -> usize {
    line.iter().rposition(|&byte| !is_blank(byte)).map_or(0, |last| last + 1)
}

/// The next word from `from` on (empty if there is none), and where to look for the one after it.
fn next_word(line: &[u8], from: usize) -> (Range<usize>, usize) {
    let rest = line.get(from..).unwrap_or_default();
    let start = from + rest.iter().take_while(|&&byte| is_blank(byte)).count();
    let rest = line.get(start..).unwrap_or_default();
    let end = start + rest.iter().position(|&byte| is_blank(byte)).unwrap_or(rest.len());
    (start..end, end)
}

/// White space as Ruby's `split` sees it.
fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

/// What a hook executor reported on the logger port: `<return code> <hook id> <base64>`.
///
/// Read as the original does: split at white space; numbers as Ruby's `to_i` takes them (leading digits, else 0; any size);
/// the rest joined by single blanks. So everything is accepted, and nothing in it can break oned's line.
///
/// ```
/// use hookbus_bridges::opennebula::Execution;
///
/// let mut line = Vec::new();
/// Execution::parse(b"0 13 PEFSR1VNRU5UUz4=").write_to(&mut line);
/// assert_eq!(line, b"EXECUTE SUCCESS 13 0 PEFSR1VNRU5UUz4=\n");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Execution<'a> {
    return_code: Number<'a>,
    hook_id: Number<'a>,
    rest: &'a [u8],
}

impl<'a> Execution<'a> {
    /// Reads a request.
    pub fn parse(request: &'a [u8]) -> Self {
        let (return_code, at) = next_word(request, 0);
        let (hook_id, at) = next_word(request, at);
        Execution {
            return_code: Number::parse(&request[return_code]),
            hook_id: Number::parse(&request[hook_id]),
            rest: &request[at..],
        }
    }

    /// Whether the hook's return code was 0.
    pub fn is_success(&self) -> bool {
        self.return_code.digits == b"0"
    }

    /// Appends the line for oned, with its newline.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        out.reserve(self.rest.len() + 64);
        out.extend_from_slice(if self.is_success() { b"EXECUTE SUCCESS " } else { b"EXECUTE FAILURE " });
        self.hook_id.write_to(out);
        out.push(b' ');
        self.return_code.write_to(out);
        out.push(b' ');
        let (mut word, mut at) = next_word(self.rest, 0);
        while !word.is_empty() {
            out.extend_from_slice(&self.rest[word]);
            (word, at) = next_word(self.rest, at);
            if !word.is_empty() {
                out.push(b' ');
            }
        }
        out.push(b'\n');
    }
}

/// An integer as Ruby's `String#to_i` finds it at the beginning of a word: a sign, digits, single underscores between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Number<'a> {
    negative: bool,
    /// Without leading zeros and never empty; may hold underscores.
    digits: &'a [u8],
}

impl<'a> Number<'a> {
    fn parse(word: &'a [u8]) -> Self {
        let (negative, word) = match word {
            [b'-', rest @ ..] => (true, rest),
            [b'+', rest @ ..] => (false, rest),
            _ => (false, word),
        };
        let mut end = 0;
        while let Some(byte) = word.get(end) {
            let between = |i: usize| word.get(i).is_some_and(u8::is_ascii_digit);
            let part = byte.is_ascii_digit() || (*byte == b'_' && end > 0 && between(end - 1) && between(end + 1));
            if !part {
                break;
            }
            end += 1;
        }
        let zeros = word[..end].iter().take_while(|&&byte| byte == b'0' || byte == b'_').count();
        if zeros == end {
            Number { negative: false, digits: b"0" }
        } else {
            Number { negative, digits: &word[zeros..end] }
        }
    }

    fn write_to(self, out: &mut Vec<u8>) {
        if self.negative {
            out.push(b'-');
        }
        out.extend(self.digits.iter().filter(|&&byte| byte != b'_'));
    }
}

/// How grave a line in oned's log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Level {
    /// `E`
    Error,
    /// `W`
    Warning,
    /// `I`
    Info,
    /// `D`
    Debug,
}

/// The longest text that [`log_line`] passes on, in bytes.
pub const MAX_LOG_BYTES: usize = 4 << 10;

/// A line that makes oned write `text` to its log, with its newline. Newlines and other control characters become visible
/// escapes, so that `text` may come from anywhere; what is longer than [`MAX_LOG_BYTES`] is cut.
pub fn log_line(level: Level, text: &str) -> String {
    let level = match level {
        Level::Error => 'E',
        Level::Warning => 'W',
        Level::Info => 'I',
        Level::Debug => 'D',
    };
    let mut line = format!("LOG {level} 0 ");
    let start = line.len();
    // Blanks at the front would be skipped by oned anyway.
    for c in text.trim().chars() {
        if line.len() - start + c.len_utf8() > MAX_LOG_BYTES {
            line.push_str("...");
            break;
        }
        if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EVENT: &str = "<HOOK_MESSAGE><HOOK_TYPE>API</HOOK_TYPE><CALL>one.vm.x</CALL><CALL_INFO><RESULT>1</RESULT></CALL_INFO></HOOK_MESSAGE>";

    fn line(text: impl Into<Bytes>) -> Result<Input, LineError> {
        Parser::new().line(text.into())
    }

    fn message(input: Result<Input, LineError>) -> (Vec<String>, Bytes, Option<Oddity>) {
        let Ok(Input::Message { message, oddity }) = input else { panic!("{input:?}") };
        let keys = message.keys().map(|key| String::from_utf8_lossy(key).into_owned()).collect();
        (keys, message.payload().clone(), oddity)
    }

    #[test]
    fn words_are_told_apart() {
        assert_eq!(line("INIT"), Ok(Input::Init));
        assert_eq!(line("INIT "), Ok(Input::Init));
        assert_eq!(line("FINALIZE"), Ok(Input::Finalize));
        assert_eq!(line(" "), Ok(Input::Blank));
        assert_eq!(line(""), Ok(Input::Blank));
        assert_eq!(line("EXECUTE  -1 "), Err(LineError::NoContent { word: "EXECUTE" }));
        assert_eq!(line("EXECUTE"), Err(LineError::NoContent { word: "EXECUTE" }));
        assert_eq!(line("RETRY  -1"), Err(LineError::NoContent { word: "RETRY" }));
        let error = line("DEPLOY \x1b[31m 5").unwrap_err().to_string();
        assert!(error.contains("\"DEPLOY \\u{1b}[31m 5\"") && error.contains("skipped"), "{error}");
    }

    /// The payload is the line's own memory, for events and for retries, and a retry has its blank.
    #[test]
    fn nothing_is_copied() {
        let base64 = base64_simd::STANDARD.encode_to_string(EVENT);
        for (word, blank) in [("EXECUTE", ""), ("RETRY", " ")] {
            let text = Bytes::from(format!("{word}  -1 {base64} "));
            let (_, payload, oddity) = message(line(text.clone()));
            assert_eq!(payload, format!("{base64}{blank}"));
            assert_eq!(payload.as_ptr(), text[word.len() + 5..].as_ptr());
            assert_eq!(oddity, None);
        }
    }

    #[test]
    fn a_retry_has_its_blank_in_any_case() {
        for text in ["RETRY  -1 QUJD", "RETRY  -1 QUJD ", "RETRY -1\tQUJD\t", "RETRY  -1 QUJD  "] {
            assert_eq!(message(line(text)), (vec!["RETRY".into()], Bytes::from("QUJD "), None), "{text:?}");
        }
        // Two words are published as the original does it.
        assert_eq!(message(line("RETRY  -1 QUJD   more ")).1, "QUJD more");
    }

    /// What oned wrote is published whatever it is.
    #[test]
    fn odd_contents_are_published() {
        let other = vec!["EVENT ".to_owned()];
        assert_eq!(message(line("EXECUTE  -1 QUJD")), (other.clone(), "QUJD".into(), Some(Oddity::NoHeader)));
        assert_eq!(message(line("EXECUTE  -1 %%%")), (other.clone(), "%%%".into(), Some(Oddity::Base64)));
        assert_eq!(message(line("EXECUTE  -1 QUJD x y")).1, "QUJD");
        let unpadded = base64_simd::STANDARD_NO_PAD.encode_to_string(format!("{EVENT}."));
        let api = vec!["EVENT API one.vm.x 1".to_owned()];
        assert_eq!(message(line(format!("EXECUTE  -1 {unpadded} "))), (api, unpadded.into(), Some(Oddity::Base64)));
    }

    #[test]
    fn a_key_that_would_be_too_long_does_not_cost_the_event() {
        let state = |service: &str, state: &str| {
            let text = format!(
                "<HOOK_MESSAGE><HOOK_TYPE>STATE</HOOK_TYPE><HOOK_OBJECT>NET</HOOK_OBJECT><STATE>{state}</STATE>\
                 <RESOURCE_ID>7</RESOURCE_ID><SERVICE_ID>{service}</SERVICE_ID></HOOK_MESSAGE>"
            );
            message(line(format!("EXECUTE  -1 {}", base64_simd::STANDARD.encode_to_string(text))))
        };
        let long = "x".repeat(MAX_KEYS_BYTES);
        let (keys, _, oddity) = state(&long, "DONE");
        assert_eq!(keys, ["EVENT NET 7/DONE/ ", "EVENT STATE NET/DONE//7 "]);
        assert_eq!(oddity, Some(Oddity::LongKey));
        assert_eq!(state(&long, &long).0, ["EVENT "]);
    }

    #[test]
    fn an_unfinished_line_counts_if_it_is_whole() {
        let base64 = base64_simd::STANDARD.encode_to_string(EVENT);
        let whole = format!("EXECUTE  -1 {base64}");
        let mut parser = Parser::new();
        assert_eq!(message(parser.unfinished(whole.clone().into())).1, base64);
        assert_eq!(parser.unfinished("FINALIZE".into()), Ok(Input::Finalize));
        for cut in 12..whole.len() {
            let piece = Bytes::copy_from_slice(&whole.as_bytes()[..cut]);
            assert!(parser.unfinished(piece).is_err(), "{cut}");
        }
    }

    /// What the original driver makes of odd requests, asked of Ruby 3.1.
    #[test]
    fn results_are_read_as_ruby_does() {
        let cases: [(&[u8], &[u8]); 21] = [
            (b"0 13 abc", b"EXECUTE SUCCESS 13 0 abc\n"),
            (b"1 2", b"EXECUTE FAILURE 2 1 \n"),
            (b"", b"EXECUTE SUCCESS 0 0 \n"),
            (b"  0   7\ta  b\nc\r\n", b"EXECUTE SUCCESS 7 0 a b c\n"),
            (b"255 7 x", b"EXECUTE FAILURE 7 255 x\n"),
            (b"abc def ghi", b"EXECUTE SUCCESS 0 0 ghi\n"),
            (b"-1 -2 z", b"EXECUTE FAILURE -2 -1 z\n"),
            (b"+5 +6 z", b"EXECUTE FAILURE 6 5 z\n"),
            (b"007 08 z", b"EXECUTE FAILURE 8 7 z\n"),
            (b"1_000 2__3 z", b"EXECUTE FAILURE 2 1000 z\n"),
            (b"_1 1_ z", b"EXECUTE SUCCESS 1 0 z\n"),
            (b"0x1F 0b1 z", b"EXECUTE SUCCESS 0 0 z\n"),
            (b"99999999999999999999999 3 z", b"EXECUTE FAILURE 3 99999999999999999999999 z\n"),
            (b"-0 1 z", b"EXECUTE SUCCESS 1 0 z\n"),
            (b"1.5 2e3 z", b"EXECUTE FAILURE 2 1 z\n"),
            (b"- + z", b"EXECUTE SUCCESS 0 0 z\n"),
            (b"0 1 \xC3\xA9 \xFF", b"EXECUTE SUCCESS 1 0 \xC3\xA9 \xFF\n"),
            (b"--1 1 z", b"EXECUTE SUCCESS 1 0 z\n"),
            (b"0_0 1 q", b"EXECUTE SUCCESS 1 0 q\n"),
            (b"0 1 a\x00b\x0Bc\x0Cd", b"EXECUTE SUCCESS 1 0 a\x00b c d\n"),
            (b"1\x00 2\x003 x", b"EXECUTE FAILURE 2 1 x\n"),
        ];
        for (request, expected) in cases {
            let mut line = Vec::new();
            Execution::parse(request).write_to(&mut line);
            assert_eq!(line.escape_ascii().to_string(), expected.escape_ascii().to_string());
        }
    }

    #[test]
    fn a_log_line_is_one_line() {
        assert_eq!(
            log_line(Level::Warning, " a\nb\r\tc\0\u{9b}\u{2028}\u{e9} "),
            "LOG W 0 a\\nb\\r\\tc\\u{0}\\u{9b}\\u{2028}\u{e9}\n"
        );
        let long = log_line(Level::Error, &"\u{1F600}".repeat(MAX_LOG_BYTES));
        assert!(long.len() < MAX_LOG_BYTES + 20 && long.ends_with("...\n"));
        assert_eq!(log_line(Level::Info, ""), "LOG I 0 \n");
    }

    proptest! {
        /// Nothing from outside makes it panic, and a line of a known type with a content is never lost.
        #[test]
        fn any_line_is_survived(start in "(EXECUTE|RETRY|execute|)", bytes in any::<Vec<u8>>()) {
            let text = [start.as_bytes(), b"  -1 ", &bytes].concat();
            let has_content = bytes.iter().any(|&byte| !is_blank(byte));
            let result = line(text.clone());
            if !start.is_empty() && has_content {
                let is_message = matches!(result, Ok(Input::Message { .. }));
                prop_assert!(is_message);
            }
            let _ = Parser::new().unfinished(text.into());
        }

        #[test]
        fn any_document_is_survived(bytes in any::<Vec<u8>>()) {
            let content = base64_simd::STANDARD.encode_to_string(&bytes);
            let mut parser = Parser::new();
            prop_assert_eq!(parser.event_of(content.as_bytes()).xml, &bytes[..]);
        }

        /// Whatever is reported, oned gets exactly one line.
        #[test]
        fn any_result_is_one_line(bytes in any::<Vec<u8>>()) {
            let mut line = Vec::new();
            Execution::parse(&bytes).write_to(&mut line);
            prop_assert_eq!(line.iter().position(|&byte| byte == b'\n'), Some(line.len() - 1));
            prop_assert!(line.starts_with(b"EXECUTE SUCCESS ") || line.starts_with(b"EXECUTE FAILURE "));
        }
    }
}
