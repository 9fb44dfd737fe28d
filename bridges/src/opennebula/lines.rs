//! Lines out of a stream that comes in pieces, without copying their text while nobody is slow.
//!
//! oned writes one line an event, a few kilobytes on average, and nothing bounds a line. The reader offers a block to read
//! into; each complete line in it is split off and frozen as a [`Bytes`] that shares the block. Only the unfinished line
//! at the end of a block moves on to the next block.
//!
//! ```text
//!   block   | handed out, shared | complete lines, then an unfinished one | room to read into |
//!                                     ^ scanned                           ^ filled            ^ end of block
//! ```
//!
//! - **Cost.** Every byte is looked at once for a newline, and an unfinished line is copied only when its block is full, into
//!   one of twice its size: a line of 100 MB is copied about once in all, not thousands of times.
//! - **Memory.** Whoever keeps one line keeps its block, so blocks are small: 64 KiB, what a pipe holds. A block that had
//!   to grow for a long line holds that line alone; what was read behind it goes to a fresh small block.
//! - **Lines that wait.** malloc gives a block back to the system only from the top of its heap, and after a burst
//!   something small always lies there: glibc's kept 325 MB of 400. So while lines are going to wait for long, which only
//!   the caller knows ([`keep_apart`](LineReader::keep_apart)), the complete lines of each read are copied into an anonymous
//!   mapping, which goes back to the system with the last of them. It takes whole pages, so less than half a page is copied
//!   into memory of malloc's, which is then just as long: a block that is kept for a few bytes would cost more. Reading into the
//!   mapping would save the copy, but it could not be as long as its lines then.
//! - **Bounds.** A line longer than the limit is dropped while it comes in, told as [`Item::TooLong`] at its end, and never
//!   held.
//! - **The blank.** Each line handed out is followed by one blank, where the newline was: the content of a RETRY message
//!   is the base64 and one blank, and so is there without a copy.
//!
//! The block is initialised memory, because a safe `read` wants that; zeroing 64 KiB costs about a tenth of
//! what parsing the events in it does.

use bytes::{Buf, Bytes, BytesMut};
use memchr::{memchr, memchr_iter, memrchr};
use memmap2::MmapOptions;

/// The size of a block, in bytes.
pub const BLOCK_BYTES: usize = 64 << 10;

/// The longest line that is handed out unless another limit is set, in bytes.
pub const MAX_LINE_BYTES: usize = 256 << 20;

/// When less room is left in a block, the unfinished line moves to a new one: reads of a few bytes are not worth it.
const MIN_ROOM_BYTES: usize = 8 << 10;

/// Fewer bytes of lines than this aren't worth a mapping of their own: half of what most systems have for a page.
const MIN_APART_BYTES: usize = 2 << 10;

/// What [`LineReader::next`] hands out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A line. Its newline (or CR and newline) is replaced by exactly one blank, the last byte of this text.
    Line(Bytes),
    /// A line was longer than the limit and was skipped.
    TooLong {
        /// Its length without the newline.
        bytes: u64,
    },
    /// The input ended in the middle of this line ([`finish`](LineReader::finish) only). No blank was added.
    Unfinished(Bytes),
}

/// Cuts a stream of bytes into lines.
///
/// ```
/// use hookbus_bridges::opennebula::{Item, LineReader};
///
/// let mut lines = LineReader::new();
/// let mut got = Vec::new();
/// for piece in ["INIT\nEXEC", "UTE  -1 PEE+PC9BPg==\n", "FINAL"] {
///     let room = lines.room(); // read(2) goes here
///     room[..piece.len()].copy_from_slice(piece.as_bytes());
///     lines.filled(piece.len());
///     while let Some(item) = lines.next() {
///         got.push(item);
///     }
/// }
/// got.extend(lines.finish()); // the end of the input
/// assert_eq!(
///     got,
///     [
///         Item::Line("INIT ".into()),
///         Item::Line("EXECUTE  -1 PEE+PC9BPg== ".into()),
///         Item::Unfinished("FINAL".into())
///     ]
/// );
/// ```
#[derive(Debug)]
pub struct LineReader {
    /// The block from the next line on. All of it is initialised.
    block: BytesMut,
    /// How much of `block` was read into.
    filled: usize,
    /// How much of that is known to hold no newline.
    scanned: usize,
    /// A line over the limit is being skipped; its length so far.
    skipping: Option<u64>,
    /// The block was made larger than usual for the line that it begins with.
    grown: bool,
    /// Lines that are going to wait are set apart from the block.
    keep_apart: bool,
    /// Complete lines at the start of `block` that were set apart; empty when there are none.
    apart: Bytes,
    block_bytes: usize,
    max_line_bytes: usize,
}

impl Default for LineReader {
    fn default() -> Self {
        LineReader::new()
    }
}

impl LineReader {
    /// A reader with [`BLOCK_BYTES`] and [`MAX_LINE_BYTES`].
    pub fn new() -> Self {
        LineReader::with_limits(BLOCK_BYTES, MAX_LINE_BYTES)
    }

    /// A reader with blocks of `block_bytes` (at least 1) that skips lines longer than `max_line_bytes`.
    pub fn with_limits(block_bytes: usize, max_line_bytes: usize) -> Self {
        let block_bytes = block_bytes.max(1);
        LineReader {
            block: BytesMut::new(),
            filled: 0,
            scanned: 0,
            skipping: None,
            grown: false,
            keep_apart: false,
            apart: Bytes::new(),
            block_bytes,
            max_line_bytes,
        }
    }

    /// Sets the longest line that is handed out, from the next one on.
    pub fn set_max_line_bytes(&mut self, bytes: usize) {
        self.max_line_bytes = bytes;
    }

    /// Says whether lines are going to be kept for long, many megabytes of them, from the next on. Then their memory is
    /// not malloc's, and back at the system as soon as the last of those that were read together is dropped. What is handed
    /// out is the same.
    pub fn keep_apart(&mut self, keep_apart: bool) {
        self.keep_apart = keep_apart;
    }

    /// Where to read into: never empty, at most a block. What it holds means nothing until
    /// [`filled`](LineReader::filled) has said how much was read.
    pub fn room(&mut self) -> &mut [u8] {
        let room = self.block.len() - self.filled;
        if room == 0 || (room < MIN_ROOM_BYTES && self.block_bytes > 2 * MIN_ROOM_BYTES) {
            self.grown = self.filled > self.block_bytes / 2;
            let bytes = if self.grown {
                // A line over the limit is given up as soon as it is, so room for more than that is never needed.
                let most = self.max_line_bytes.saturating_add(self.block_bytes);
                (2 * self.filled).min(most).max(self.filled + self.block_bytes)
            } else {
                self.block_bytes
            };
            self.renew(bytes);
        }
        // A grown block may have room for megabytes. What is read beyond the end of its line is copied, so read little.
        let end = self.block.len().min(self.filled + self.block_bytes);
        &mut self.block[self.filled..end]
    }

    /// Says that the first `bytes` of [`room`](LineReader::room) were read into. Take all lines with
    /// [`next`](LineReader::next) before the next read; the limit on lines is applied there.
    ///
    /// # Panics
    /// When there was less room than that: no read can have put it there.
    pub fn filled(&mut self, bytes: usize) {
        assert!(bytes <= self.block.len() - self.filled, "more was read than there was room for");
        self.filled += bytes;
    }

    /// The next complete line, or `None` until more has been read.
    #[expect(clippy::should_implement_trait, reason = "an iterator that said None would have ended; this goes on")]
    pub fn next(&mut self) -> Option<Item> {
        let Some(at) = memchr(b'\n', &self.block[self.scanned..self.filled]) else {
            self.scanned = self.filled;
            if self.skipping.is_some() || self.filled > self.max_line_bytes {
                self.skipping = Some(self.skipping.unwrap_or(0) + self.filled as u64);
                self.forget();
            }
            return None;
        };
        let end = self.scanned + at;
        let skipped = self.skipping.take();
        if skipped.is_some() || end > self.max_line_bytes {
            self.take(end + 1);
            return Some(Item::TooLong { bytes: skipped.unwrap_or(0) + end as u64 });
        }
        // Now, while the block is still ours to write.
        let end = if end > 0 && self.block[end - 1] == b'\r' { end - 1 } else { end };
        self.block[end] = b' ';
        if self.keep_apart && self.apart.is_empty() {
            self.set_apart(self.scanned + at + 1);
        }
        let mut line = self.take(self.scanned + at + 1);
        line.truncate(end + 1);
        Some(Item::Line(line))
    }

    /// What the end of the input left: a line without its newline, if there is one. The reader is empty then.
    pub fn finish(&mut self) -> Option<Item> {
        let skipped = self.skipping.take();
        // The rest goes on behind what was set apart.
        self.apart.clear();
        let rest = self.take(self.filled);
        match skipped {
            Some(bytes) => Some(Item::TooLong { bytes: bytes + rest.len() as u64 }),
            None => (!rest.is_empty()).then_some(Item::Unfinished(rest)),
        }
    }

    /// Splits off the first `bytes` of what was read.
    fn take(&mut self, bytes: usize) -> Bytes {
        let line = if self.apart.is_empty() {
            self.block.split_to(bytes).freeze()
        } else {
            self.block.advance(bytes);
            self.apart.split_to(bytes)
        };
        self.filled -= bytes;
        self.scanned = 0;
        if self.grown {
            // Lines behind a huge one must not keep it alive, and its block must go once it is handled.
            self.renew(self.block_bytes.max(self.filled));
            self.grown = false;
        }
        line
    }

    /// Copies the complete lines at the start of the block, the first of which has that many bytes, into a mapping of their
    /// own.
    fn set_apart(&mut self, first: usize) {
        // A huge line stays alone here as well.
        let more = if self.grown { None } else { memrchr(b'\n', &self.block[first..self.filled]) };
        let lines = &self.block[..more.map_or(first, |at| first + at + 1)];
        // All of it is written at once, so have the pages at once, too. Without a mapping malloc's memory has to do.
        let map = (lines.len() >= MIN_APART_BYTES)
            .then(|| MmapOptions::new().len(lines.len()).populate().map_anon().ok())
            .flatten();
        self.apart = match map {
            Some(mut map) => {
                copy_lines(lines, &mut map);
                Bytes::from_owner(map)
            }
            None => {
                let mut copy = vec![0; lines.len()];
                copy_lines(lines, &mut copy);
                copy.into()
            }
        };
    }

    /// Drops what was read, and the block if it is large.
    fn forget(&mut self) {
        if self.grown {
            self.block = BytesMut::new();
            self.grown = false;
        }
        self.filled = 0;
        self.scanned = 0;
    }

    /// Moves what is unfinished to a new block of that size.
    fn renew(&mut self, bytes: usize) {
        let mut block = BytesMut::zeroed(bytes);
        block[..self.filled].copy_from_slice(&self.block[..self.filled]);
        self.block = block;
    }
}

/// Copies lines with the blanks that they are handed out with, because what is frozen can't be written.
fn copy_lines(lines: &[u8], copy: &mut [u8]) {
    copy.copy_from_slice(lines);
    for at in memchr_iter(b'\n', lines) {
        copy[at] = b' ';
        if at > 0 && copy[at - 1] == b'\r' {
            copy[at - 1] = b' ';
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Feeds a stream in pieces of these sizes, over and over.
    fn feed(reader: &mut LineReader, stream: &[u8], sizes: &[usize]) -> Vec<Item> {
        let kept = reader.keep_apart;
        feed_switching(reader, stream, &sizes.iter().map(|&size| (size, kept)).collect::<Vec<_>>())
    }

    /// The same; with each piece it is said whether lines are kept apart.
    fn feed_switching(reader: &mut LineReader, mut stream: &[u8], pieces: &[(usize, bool)]) -> Vec<Item> {
        let (mut items, mut pieces) = (Vec::new(), pieces.iter().cycle());
        while !stream.is_empty() {
            let (size, keep_apart) = pieces.next().copied().unwrap_or((1, false));
            reader.keep_apart(keep_apart);
            let room = reader.room();
            let bytes = size.max(1).min(room.len()).min(stream.len());
            room[..bytes].copy_from_slice(&stream[..bytes]);
            reader.filled(bytes);
            stream = &stream[bytes..];
            items.extend(std::iter::from_fn(|| reader.next()));
        }
        items
    }

    /// The same, said plainly.
    fn expected(stream: &[u8], max_line_bytes: usize) -> Vec<Item> {
        let mut items: Vec<Item> = Vec::new();
        let mut rest = stream;
        while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
            let line = &rest[..end];
            items.push(if end > max_line_bytes {
                Item::TooLong { bytes: end as u64 }
            } else {
                Item::Line([line.strip_suffix(b"\r").unwrap_or(line), b" "].concat().into())
            });
            rest = &rest[end + 1..];
        }
        if rest.len() > max_line_bytes {
            items.push(Item::TooLong { bytes: rest.len() as u64 });
        } else if !rest.is_empty() {
            items.push(Item::Unfinished(rest.to_vec().into()));
        }
        items
    }

    proptest! {
        /// However the stream is cut into reads, and however small blocks are, the same lines come out.
        #[test]
        fn any_chunking_gives_the_same_lines(
            stream in prop::collection::vec(prop_oneof![3 => Just(b'x'), 1 => Just(b'\n'), 1 => Just(b'\r'), 1 => any::<u8>()], 0..300),
            sizes in prop::collection::vec(1..70_usize, 1..10),
            block_bytes in 1..100_usize,
            max_line_bytes in 0..60_usize,
        ) {
            let mut reader = LineReader::with_limits(block_bytes, max_line_bytes);
            let mut items = feed(&mut reader, &stream, &sizes);
            items.extend(reader.finish());
            prop_assert_eq!(items, expected(&stream, max_line_bytes));
            prop_assert_eq!(reader.finish(), None);
        }

        /// Neither does it matter when lines are kept apart, nor how their lengths lie to the sizes of mappings and blocks.
        #[test]
        fn keeping_apart_gives_the_same_lines(
            lines in prop::collection::vec(
                (prop_oneof![0..3_usize, 0..3000_usize, 4090..4100_usize], any::<u8>(), prop_oneof!["\n", "\r\n", "\r\r\n"]),
                0..40,
            ),
            rest in 0..3000_usize,
            pieces in prop::collection::vec((prop_oneof![1..100_usize, 1..20_000_usize], any::<bool>()), 1..10),
            block_bytes in prop_oneof![1..5000_usize, 1..70_000_usize],
            max_line_bytes in prop_oneof![0..4100_usize, Just(1 << 20)],
        ) {
            let mut stream = Vec::new();
            for (bytes, filling, end) in lines {
                stream.resize(stream.len() + bytes, filling);
                stream.extend_from_slice(end.as_bytes());
            }
            stream.resize(stream.len() + rest, b'x');
            let mut reader = LineReader::with_limits(block_bytes, max_line_bytes);
            let mut items = feed_switching(&mut reader, &stream, &pieces);
            items.extend(reader.finish());
            prop_assert_eq!(items, expected(&stream, max_line_bytes));
            prop_assert_eq!(reader.finish(), None);
        }
    }

    /// Lines that are kept apart share a mapping, or where they are few, memory of their own; never the block.
    #[test]
    fn lines_are_kept_apart() {
        let mut reader = LineReader::new();
        reader.keep_apart(true);
        let mut stream = vec![b'x'; MIN_APART_BYTES];
        stream.extend_from_slice(b"\r\ntwo\nthr");
        let block = reader.room().as_ptr_range();
        let mut items = feed(&mut reader, &stream, &[stream.len()]);
        items.extend(feed(&mut reader, b"ee\n", &[3]));
        let [Item::Line(one), Item::Line(two), Item::Line(three)] = &items[..] else { panic!("{items:?}") };
        assert_eq!((&two[..], &three[..]), (&b"two "[..], &b"three "[..]));
        assert_eq!(one.as_ptr() as usize % 4096, 0, "a mapping begins where a page does");
        assert_eq!(two.as_ptr() as usize, one.as_ptr() as usize + MIN_APART_BYTES + 2);
        for line in [one, two, three] {
            assert!(!block.contains(&line.as_ptr()), "no block is held for a line");
        }
    }

    /// Lines that came in one read share its block.
    #[test]
    fn lines_share_their_block() {
        let mut reader = LineReader::new();
        let items = feed(&mut reader, b"one\ntwo\r\nthree\n", &[100]);
        let [Item::Line(one), Item::Line(two), Item::Line(three)] = &items[..] else { panic!("{items:?}") };
        assert_eq!((&one[..], &two[..], &three[..]), (&b"one "[..], &b"two "[..], &b"three "[..]));
        assert_eq!(two.as_ptr() as usize, one.as_ptr() as usize + 4);
        assert_eq!(three.as_ptr() as usize, one.as_ptr() as usize + 9);
    }

    /// A huge line has a block of its own, is copied a few times at most, and the reader is small again behind it.
    #[test]
    fn a_huge_line_leaves_no_trace() {
        let mut stream = vec![b'x'; 20 << 20];
        stream.extend_from_slice(b"\nnext\n");
        for keep_apart in [false, true] {
            a_huge_line(&stream, keep_apart);
        }
    }

    fn a_huge_line(stream: &[u8], keep_apart: bool) {
        let mut reader = LineReader::new();
        reader.keep_apart(keep_apart);
        let mut blocks = 0;
        let mut last = std::ptr::null();
        let mut rest = stream;
        let mut items = Vec::new();
        while !rest.is_empty() {
            let start = reader.room().as_ptr();
            if start < last || last.is_null() {
                blocks += 1;
            }
            last = start;
            let bytes = reader.room().len().min(rest.len());
            assert!(bytes <= BLOCK_BYTES);
            reader.room()[..bytes].copy_from_slice(&rest[..bytes]);
            reader.filled(bytes);
            rest = &rest[bytes..];
            items.extend(std::iter::from_fn(|| reader.next()));
        }
        assert!(blocks < 20, "{blocks} blocks");
        let [Item::Line(huge), Item::Line(next)] = &items[..] else { panic!("two lines") };
        assert_eq!((huge.len(), &next[..]), ((20 << 20) + 1, &b"next "[..]));
        let within = huge.as_ptr_range();
        assert!(!within.contains(&next.as_ptr()), "the next line would keep the huge one alive");
        assert!(reader.block.capacity() <= BLOCK_BYTES, "{}", reader.block.capacity());
    }

    /// A line over the limit is told with its length and never held.
    #[test]
    fn a_line_over_the_limit_is_skipped() {
        let mut reader = LineReader::with_limits(1 << 10, 10 << 10);
        let mut stream = vec![b'x'; 1 << 20];
        stream.extend_from_slice(b"\nnext\n");
        let mut largest = 0;
        let mut items = Vec::new();
        for piece in stream.chunks(700) {
            items.extend(feed(&mut reader, piece, &[700]));
            largest = largest.max(reader.block.capacity());
        }
        assert_eq!(items, [Item::TooLong { bytes: 1 << 20 }, Item::Line("next ".into())]);
        assert!(largest < 64 << 10, "{largest}");
    }
}
