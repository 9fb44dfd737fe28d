//! Reading records in order, from any offset on, beside the writer.

use std::collections::VecDeque;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::disk::read_at_most;
use super::log::Log;
use super::record::{ALIGN, Found, HEAD_BYTES, Stored, StoredMessage, candidate, decode, decoded};
use super::segment::{HEADER_BYTES, Segment};
use crate::message::{Gap, Offset, Timestamp};

/// Read at once.
const CHUNK_BYTES: usize = 256 << 10;
/// A chunk that had to be larger than this for one record is not kept.
const KEPT_BYTES: usize = 4 << 20;

/// Reads the log from one offset on.
#[derive(Debug)]
pub(crate) struct Reader {
    log: Arc<Log>,
    /// The offset to read next.
    next: u64,
    /// What was next before the last record was read.
    before: u64,
    stand: Option<Stand>,
    chunk: Vec<u8>,
}

/// Where a reader is.
#[derive(Debug)]
struct Stand {
    segment: Arc<Segment>,
    /// Where the next record is, in the file.
    position: u64,
    /// How far the segment was written when last looked at.
    known: u64,
    /// Where the chunk begins in the file, and how many bytes of it are valid.
    chunk_at: u64,
    chunk_len: usize,
}

/// What a reader comes to.
pub(crate) enum Step<'a> {
    Message(StoredMessage<'a>),
    /// Messages that the log doesn't have: they were never written, have been deleted, or are damaged.
    Gap(Gap),
    /// The offset up to which was to be read; or everything was.
    End,
}

/// What was found next.
enum Place {
    /// A record, in the chunk, and how long it is.
    Record(usize, usize),
    Gap(Gap),
    End,
}

/// What stands where the reader is.
enum Look {
    /// A record of so many bytes.
    Record(usize),
    Nothing,
    End,
}

impl Reader {
    pub(crate) fn new(log: Arc<Log>, next: u64) -> Self {
        Reader { log, next, before: next, stand: None, chunk: Vec::new() }
    }

    /// The offset that is read next.
    pub(crate) fn next_offset(&self) -> u64 {
        self.next
    }

    /// Goes on at another offset.
    pub(crate) fn seek(&mut self, offset: u64) {
        if self.next != offset {
            self.next = offset;
            self.stand = None;
        }
    }

    /// Reads one record below `until`, which is at or below the log's watermark.
    pub(crate) fn read(&mut self, until: u64) -> Step<'_> {
        let (start, total) = match self.find(until) {
            Place::Record(start, total) => (start, total),
            Place::Gap(gap) => return Step::Gap(gap),
            Place::End => {
                // Nothing more is below it: offsets may have been passed over.
                self.next = self.next.max(until);
                return Step::End;
            }
        };
        match decoded(&self.chunk[start..start + total]).expect("it was found to be a record") {
            Stored::Message(message) => Step::Message(message),
            Stored::Gap(gap, _) => Step::Gap(Gap { first: gap.first.max(Offset::new(self.before)), ..gap }),
        }
    }

    /// Finds the next record below `until`, and passes it.
    fn find(&mut self, until: u64) -> Place {
        loop {
            if self.next >= until {
                return Place::End;
            }
            if self.stand.is_none()
                && let Some(found) = self.enter()
            {
                return found;
            }
            let total = match self.look() {
                Look::Record(total) => total,
                Look::End => match self.leave_segment(until) {
                    Some(found) => return found,
                    None => continue,
                },
                Look::Nothing => match self.pass_damage(until) {
                    Some(found) => return found,
                    None => continue,
                },
            };
            let stand = self.stand.as_mut().expect("it was looked at");
            let start = (stand.position - stand.chunk_at) as usize;
            let stored = decoded(&self.chunk[start..start + total]).expect("it was found to be a record");
            if stored.first() >= until {
                return Place::End;
            }
            stand.segment.note(stored.first(), stand.position);
            stand.position += total as u64;
            if stored.next() > self.next {
                self.before = self.next;
                self.next = stored.next();
                return Place::Record(start, total);
            }
        }
    }

    /// The offset of the first message at or after a time; where there is none, of the next one to come.
    pub(crate) fn find_time(log: &Arc<Log>, time: Timestamp) -> u64 {
        let until = log.watermark();
        let from = {
            let segments = log.segments.lock();
            let after = segments.partition_point(|s| s.first_time < time);
            segments.get(after.saturating_sub(1)).map_or(until, |s| s.first)
        };
        let mut reader = Reader::new(Arc::clone(log), from);
        loop {
            match reader.read(until) {
                Step::Message(message) if message.time >= time => return message.offset,
                Step::Message(_) | Step::Gap(_) => {}
                Step::End => return until,
            }
        }
    }

    /// Finds the segment that `next` is in. Where it is no longer there, that is told.
    fn enter(&mut self) -> Option<Place> {
        let segments = self.log.segments.lock();
        let after = segments.partition_point(|s| s.first <= self.next);
        let Some(segment) = segments.get(after.saturating_sub(1)) else {
            return Some(Place::End);
        };
        if after == 0 && segment.previous > self.next {
            // It goes on where the oldest segment does; offsets that were jumped over before it are no loss.
            let (first, last) = (self.next, segment.previous - 1);
            self.next = segment.first;
            return Some(Place::Gap(gap(first, last)));
        }
        self.next = self.next.max(segment.first);
        let (_, position) = segment.place_before(self.next);
        let known = segment.written().bytes;
        self.stand = Some(Stand { segment: Arc::clone(segment), position, known, chunk_at: 0, chunk_len: 0 });
        None
    }

    /// Makes sure that the record at the place is in the chunk.
    fn look(&mut self) -> Look {
        let Some(stand) = &mut self.stand else { return Look::End };
        if stand.position >= stand.known {
            stand.known = stand.segment.written().bytes;
            if stand.position >= stand.known {
                return Look::End;
            }
        }
        let rest = usize::try_from(stand.known - stand.position).unwrap_or(usize::MAX);
        let mut need = HEAD_BYTES.min(rest);
        loop {
            let start = stand.position.checked_sub(stand.chunk_at).and_then(|at| usize::try_from(at).ok());
            let have = start.map_or(0, |start| stand.chunk_len.saturating_sub(start));
            if have < need {
                let size = need.max(CHUNK_BYTES).min(rest);
                if self.chunk.len() < size || self.chunk.len() > KEPT_BYTES {
                    self.chunk = vec![0; size.max(CHUNK_BYTES)];
                }
                stand.chunk_at = stand.position;
                stand.chunk_len = match read_at_most(&stand.segment.file, &mut self.chunk[..size], stand.position) {
                    Ok(read) => read,
                    Err(error) => {
                        // What can't be read is damaged, for whoever wants it.
                        self.log.failed_to_read(&error);
                        return Look::Nothing;
                    }
                };
                if stand.chunk_len < need {
                    return Look::Nothing; // the file is shorter than it was
                }
                continue;
            }
            let at = start.expect("there are some");
            match decode(&self.chunk[at..stand.chunk_len], rest, self.log.salt) {
                Found::Record(_, total) => return Look::Record(total),
                Found::More(more) if more > need => need = more,
                Found::More(_) | Found::Nothing => return Look::Nothing,
            }
        }
    }

    /// Goes on to the next segment, if there is one.
    fn leave_segment(&mut self, until: u64) -> Option<Place> {
        let Some(stand) = &mut self.stand else { return Some(Place::End) };
        let successor = self.log.after(&stand.segment);
        // A segment that has a successor is complete; it may have become that since we looked.
        let written = stand.segment.written();
        if stand.position < written.bytes {
            stand.known = written.bytes;
            return None;
        }
        let Some(successor) = successor else {
            if stand.segment.deleted.load(Ordering::Acquire) {
                self.stand = None;
                return None;
            }
            return Some(Place::End);
        };
        let (first, next) = (self.next, successor.first);
        let missing = successor.previous > first && first < until;
        self.next = next.max(first);
        let known = successor.written().bytes;
        let previous = successor.previous;
        self.stand = Some(Stand { segment: successor, position: HEADER_BYTES, known, chunk_at: 0, chunk_len: 0 });
        missing.then(|| Place::Gap(gap(first, previous - 1)))
    }

    /// Looks for the next valid record behind something that isn't one.
    fn pass_damage(&mut self, until: u64) -> Option<Place> {
        let first = self.next;
        let Some(stand) = &mut self.stand else { return None };
        if stand.segment.deleted.load(Ordering::Acquire) {
            // Its content went away while we read it.
            self.stand = None;
            return None;
        }
        let begin = stand.position;
        let written = stand.segment.written();
        let found = find_record(&stand.segment.file, begin + ALIGN as u64, written.bytes, first, self.log.salt);
        let stand = self.stand.as_mut().expect("it is there");
        if stand.segment.deleted.load(Ordering::Acquire) {
            self.stand = None;
            return None;
        }
        let (position, next) = match found {
            Some((position, offset)) => (position, offset),
            None => (written.bytes, written.next.max(first)),
        };
        // Behind the last record of a segment there may be room that was not needed.
        if found.is_some() || next > first {
            self.log.damaged(position - begin);
        }
        stand.position = position;
        stand.known = written.bytes;
        self.next = next;
        (next > first && first < until).then(|| Place::Gap(gap(first, next - 1)))
    }
}

/// The place and the offset of the first valid record at or behind `from` whose offset is at least `least`.
///
/// Each place may look like a record that is as long as what is left: payloads can be made so. Therefore only so many bytes
/// are looked at more than once; when these are used up, nothing is found.
pub(super) fn find_record(file: &File, from: u64, end: u64, least: u64, salt: u32) -> Option<(u64, u64)> {
    let mut at = from.next_multiple_of(ALIGN as u64);
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut budget = 16 * end.saturating_sub(at);
    while at < end {
        let size = CHUNK_BYTES.min(usize::try_from(end - at).unwrap_or(usize::MAX));
        let Ok(read) = read_at_most(file, &mut chunk[..size], at) else {
            at += size as u64; // this part of the disk is gone
            continue;
        };
        if read < HEAD_BYTES {
            return None;
        }
        let mut passed = 0;
        while passed + HEAD_BYTES <= read {
            let longest = usize::try_from(end - at).unwrap_or(usize::MAX) - passed;
            if let Some(total) = candidate(&chunk[passed..read], longest) {
                budget = budget.checked_sub(total as u64)?;
                let mut long = Vec::new();
                let whole = match chunk[..read].get(passed..passed + total) {
                    Some(whole) => whole,
                    None => {
                        long.resize(total, 0);
                        let read = read_at_most(file, &mut long, at + passed as u64);
                        &long[..read.unwrap_or(0)]
                    }
                };
                match decode(whole, total, salt) {
                    Found::Record(stored, _) if stored.next() > least => {
                        return Some((at + passed as u64, stored.first().max(least)));
                    }
                    _ => {}
                }
            }
            passed += ALIGN;
        }
        at += passed.max(ALIGN) as u64;
    }
    None
}

/// A gap of all that may have been between two offsets.
pub(super) fn gap(first: u64, last: u64) -> Gap {
    let last = last.max(first);
    Gap { first: Offset::new(first), last: Offset::new(last), count: last - first + 1 }
}

/// The segment behind another one.
pub(super) fn successor(segments: &VecDeque<Arc<Segment>>, segment: &Segment) -> Option<Arc<Segment>> {
    segments.get(segments.partition_point(|s| s.first <= segment.first)).cloned()
}
