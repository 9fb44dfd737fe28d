//! What a command writes: all of it is read, the beginning and the end are kept.
//!
//! A command that writes more than anybody wants must neither stall (it would, on a full pipe) nor fill memory. The first half of what
//! may be kept shows how it began, the last half how it ended; what lies between is counted and thrown away.

use std::borrow::Cow;

/// What a command wrote to one of its two outputs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// The first bytes; all of them, unless some were cut.
    pub head: Vec<u8>,
    /// How many bytes between the two parts were cut.
    pub cut_bytes: u64,
    /// The last bytes; empty unless some were cut.
    pub tail: Vec<u8>,
}

impl Output {
    /// As text. What is no UTF-8 is replaced, and a line in brackets says what was cut.
    pub fn text(&self) -> Cow<'_, str> {
        if self.cut_bytes == 0 {
            return String::from_utf8_lossy(&self.head);
        }
        let (head, tail) = self.whole_characters();
        let cut = self.cut_bytes + (self.head.len() - head.len() + self.tail.len() - tail.len()) as u64;
        let (head, tail) = (String::from_utf8_lossy(head), String::from_utf8_lossy(tail));
        Cow::Owned(format!("{head}\n[hookbus: {cut} bytes were cut here]\n{tail}"))
    }

    /// Whether the text shows exactly what was written, save what was cut.
    pub fn is_utf8(&self) -> bool {
        let (head, tail) = self.whole_characters();
        std::str::from_utf8(head).is_ok() && std::str::from_utf8(tail).is_ok()
    }

    /// The bytes that were kept, one part behind the other.
    pub fn bytes(&self) -> Cow<'_, [u8]> {
        if self.tail.is_empty() { Cow::Borrowed(&self.head) } else { Cow::Owned([&*self.head, &*self.tail].concat()) }
    }

    /// Adds a line of our own.
    pub(crate) fn push_line(&mut self, line: &str) {
        let end = if self.cut_bytes == 0 { &mut self.head } else { &mut self.tail };
        if end.last().is_some_and(|&byte| byte != b'\n') {
            end.push(b'\n');
        }
        end.extend_from_slice(line.as_bytes());
    }

    /// Both parts without the pieces of the characters that the cut went through.
    fn whole_characters(&self) -> (&[u8], &[u8]) {
        if self.cut_bytes == 0 {
            return (&self.head, &self.tail);
        }
        let is_continuation = |byte: &u8| byte & 0xC0 == 0x80;
        let begins = self.tail.iter().take(3).take_while(|byte| is_continuation(byte)).count();
        let head = match std::str::from_utf8(&self.head) {
            // Only an unfinished character at the very end is without a length.
            Err(e) if e.error_len().is_none() => &self.head[..e.valid_up_to()],
            _ => &self.head,
        };
        (head, &self.tail[begins..])
    }
}

/// Collects an output while it is written.
#[derive(Debug)]
pub(crate) struct Collector {
    head: Vec<u8>,
    tail: Vec<u8>,
    head_max: usize,
    tail_max: usize,
    total: u64,
}

impl Collector {
    /// One that keeps `max_bytes`. It holds up to one and a half times that.
    pub(crate) fn new(max_bytes: usize) -> Self {
        let head_max = max_bytes.div_ceil(2);
        Collector { head: Vec::new(), tail: Vec::new(), head_max, tail_max: max_bytes - head_max, total: 0 }
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        let (first, rest) = bytes.split_at(bytes.len().min(self.head_max - self.head.len()));
        self.head.extend_from_slice(first);
        // More than the last bytes of one piece is never needed.
        let rest = &rest[rest.len().saturating_sub(self.tail_max)..];
        if self.tail.len() + rest.len() > 2 * self.tail_max {
            self.cut_tail();
        }
        self.tail.extend_from_slice(rest);
    }

    fn cut_tail(&mut self) {
        let old = self.tail.len().saturating_sub(self.tail_max);
        self.tail.drain(..old);
    }

    pub(crate) fn finish(mut self) -> Output {
        self.cut_tail();
        let cut_bytes = self.total - (self.head.len() + self.tail.len()) as u64;
        if cut_bytes == 0 {
            self.head.append(&mut self.tail);
        }
        self.head.shrink_to_fit();
        self.tail.shrink_to_fit();
        Output { head: self.head, cut_bytes, tail: self.tail }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn collected(max: usize, pieces: &[&[u8]]) -> Output {
        let mut collector = Collector::new(max);
        for piece in pieces {
            collector.push(piece);
        }
        collector.finish()
    }

    #[test]
    fn what_is_cut_is_said() {
        assert_eq!(collected(8, &[b"1234", b"5678"]).text(), "12345678");
        let cut = collected(8, &[b"1234", b"5678", b"90"]);
        assert_eq!((cut.text().as_ref(), cut.cut_bytes), ("1234\n[hookbus: 2 bytes were cut here]\n7890", 2));
        assert_eq!(cut.bytes().as_ref(), b"12347890");
        assert_eq!(collected(0, &[b"12"]).text(), "\n[hookbus: 2 bytes were cut here]\n");
    }

    #[test]
    fn a_cut_goes_around_characters() {
        let cut = collected(8, &["aaü€aa€ä".as_bytes()]);
        assert_eq!(cut.text(), "aaü\n[hookbus: 8 bytes were cut here]\nä");
        assert!(cut.is_utf8());
        assert!(!collected(8, &[b"\xFFaaaaaaaaaaaaaa"]).is_utf8());
        assert_eq!(collected(8, &[b"\xFF"]).text(), "\u{FFFD}");
        // A character that the command itself left unfinished is not whole.
        assert!(!collected(8, &[b"a\xE2\x82"]).is_utf8());
    }

    #[test]
    fn our_own_lines_come_last() {
        let mut output = collected(4, &[b"a"]);
        output.push_line("b");
        assert_eq!(output.text(), "a\nb");
        let mut output = Output::default();
        output.push_line("b");
        assert_eq!(output.text(), "b");
        let mut output = collected(4, &[b"123456"]);
        output.push_line("b");
        assert_eq!(output.text(), "12\n[hookbus: 2 bytes were cut here]\n56\nb");
    }

    proptest! {
        /// Compared with cutting the whole.
        #[test]
        fn the_ends_are_kept(max in 0usize..40, pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..30), 0..8)) {
            let whole = pieces.concat();
            let pieces: Vec<&[u8]> = pieces.iter().map(|piece| &piece[..]).collect();
            let output = collected(max, &pieces);
            if whole.len() <= max {
                prop_assert_eq!(&output.head, &whole);
                prop_assert_eq!((output.cut_bytes, output.tail.len()), (0, 0));
            } else {
                prop_assert_eq!(output.head.len() + output.tail.len(), max);
                prop_assert!(whole.starts_with(&output.head) && whole.ends_with(&output.tail));
                prop_assert_eq!(output.cut_bytes, (whole.len() - max) as u64);
            }
            let _ = (output.text(), output.is_utf8());
        }
    }
}
