//! The one who writes: encodes what the journal's subscription yields, and appends it to the newest segment.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::gate::Room;
use super::log::Log;
use super::meta::{Meta, RESERVE, State};
use super::options::Durability;
use super::record::{self, Fields, GAP_BYTES};
use super::segment::{HEADER_BYTES, Header, Segment, Written};
use crate::message::{Gap, Timestamp};
use crate::subscription::MessageRef;

/// The writer, wherever it runs.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) log: Arc<Log>,
    pub(super) meta: Meta,
    tail: Option<Tail>,
    /// Segments that have room set aside and no content yet.
    ready: VecDeque<Ready>,
    /// Names for these.
    serial: u64,
    /// Records that aren't written yet.
    buffer: Vec<u8>,
    messages: u64,
    /// The offset behind the last record, and the time of that one.
    pub(super) next: u64,
    last_time: Timestamp,
    /// How many offsets were passed over between the tail's records.
    jumped: u64,
    /// Records from this offset on go into the next segment.
    end_segment_at: Option<u64>,
}

/// The segment that is being written.
#[derive(Debug)]
struct Tail {
    /// Who else can see it; nobody before its first records are written.
    segment: Option<Arc<Segment>>,
    new: Option<(Ready, Header)>,
    allocated: u64,
    /// Bytes that are written.
    bytes: u64,
}

#[derive(Debug)]
struct Ready {
    file: File,
    path: PathBuf,
    bytes: u64,
}

impl Writer {
    /// A writer that goes on at `next` behind the newest segment, between whose records so many offsets were passed over.
    pub(super) fn new(log: Arc<Log>, meta: Meta, next: u64, jumped: u64) -> Self {
        let newest = log.segments.lock().back().cloned();
        let tail = newest.map(|segment| Tail {
            allocated: segment.allocated.load(Ordering::Relaxed),
            bytes: segment.written().bytes,
            segment: Some(segment),
            new: None,
        });
        let last_time = Timestamp::from_millis(0);
        Writer {
            log,
            meta,
            tail,
            ready: VecDeque::new(),
            serial: 0,
            buffer: Vec::new(),
            messages: 0,
            next,
            last_time,
            jumped,
            end_segment_at: None,
        }
    }

    /// Puts a message into the buffer under that offset. Where there is no room, nothing was changed.
    pub(super) fn put(&mut self, message: MessageRef<'_>, offset: u64) -> io::Result<()> {
        let (keys, ends) = message.raw_keys().expect("the journal's own subscription reads from memory");
        let size = record::message_bytes(ends.len(), keys.len(), message.origin(), message.payload().len());
        self.make_room(size, offset, message.time())?;
        self.jump_to(offset);
        let fields = Fields {
            offset,
            time: message.time(),
            tag: message.tag(),
            keys,
            ends: &mut ends.iter().copied(),
            origin: message.origin(),
            payload: message.payload(),
        };
        record::put_message(&mut self.buffer, self.log.salt, fields);
        self.messages += 1;
        self.next = offset + 1;
        self.last_time = message.time();
        Ok(())
    }

    /// Puts a gap into the buffer.
    pub(super) fn put_gap(&mut self, gap: Gap) -> io::Result<()> {
        let time = self.log.options.clock.now();
        self.make_room(GAP_BYTES as u64, gap.first.get(), time)?;
        self.jump_to(gap.first.get());
        record::put_gap(&mut self.buffer, self.log.salt, gap, time);
        self.next = gap.last.get() + 1;
        self.last_time = time;
        self.log.note_gap(self.next);
        self.log.counters.gaps.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Notes what is passed over before the next record, unless that is the first of a segment, whose header tells it.
    fn jump_to(&mut self, first: u64) {
        let begins = |tail: &Tail| tail.new.as_ref().is_some_and(|(_, header)| header.first == first);
        if !self.tail.as_ref().is_some_and(begins) {
            self.jumped += first.saturating_sub(self.next);
        }
    }

    /// Writes the buffer. Where that fails it is kept, and can be written again.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let Some(tail) = &mut self.tail else { return Ok(()) };
        let disk = &*self.log.options.disk;
        let file = match (&tail.segment, &tail.new) {
            (Some(segment), _) => &segment.file,
            (None, Some((new, _))) => &new.file,
            (None, None) => unreachable!("a tail is one of both"),
        };
        disk.write_at(file, &self.buffer, tail.bytes)?;
        if self.log.options.durability == Durability::Fsync {
            disk.sync(file)?;
        }
        let written = Written { bytes: tail.bytes + self.buffer.len() as u64, next: self.next };
        if let Some((new, header)) = &tail.new {
            let path = self.log.segments_dir().join(Segment::file_name(header.first));
            std::fs::rename(&new.path, &path)?;
            if self.log.options.durability == Durability::Fsync {
                File::open(self.log.segments_dir())?.sync_all()?;
            }
            let (new, header) = tail.new.take().expect("just seen");
            let segment = Arc::new(Segment::new(new.file, path, &header, new.bytes, written));
            self.log.segments.lock().push_back(Arc::clone(&segment));
            tail.segment = Some(segment);
        }
        let segment = tail.segment.as_ref().expect("made just now, if not before");
        segment.grow(written, self.last_time);
        tail.bytes = written.bytes;
        self.log.counters.messages.fetch_add(std::mem::take(&mut self.messages), Ordering::Relaxed);
        self.log.counters.bytes.fetch_add(self.buffer.len() as u64, Ordering::Relaxed);
        self.buffer.clear();
        self.buffer.shrink_to(4 << 20);
        self.log.advance(self.next);
        Ok(())
    }

    /// Makes sure that offsets up to well behind `next` are set aside.
    pub(super) fn reserve(&mut self, next: u64) -> io::Result<()> {
        if next + RESERVE / 2 <= self.meta.state.reserved {
            return Ok(());
        }
        let state = State { reserved: next + RESERVE, end: None, ..self.meta.state };
        self.meta.write(state, &*self.log.options.disk)?;
        self.log.set_reserved(state.reserved);
        self.move_idle_cursors();
        Ok(())
    }

    /// The room that there is, when the buffer is empty.
    pub(super) fn room(&self) -> Room {
        let left = match &self.tail {
            Some(tail) if self.end_segment_at.is_none() => tail.allocated.saturating_sub(tail.bytes),
            _ => 0,
        };
        Room { left, spares: self.ready_segments() }
    }

    pub(super) fn ready_segments(&self) -> u32 {
        self.ready.len() as u32 // a few
    }

    /// Deletes what is too old. Returns whether the newest segment is old enough to be ended, so that it can follow.
    pub(super) fn expire(&mut self) -> io::Result<bool> {
        let Some(age) = self.log.options.max_age else { return Ok(false) };
        let age = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        let now = self.log.options.clock.now().as_millis();
        loop {
            let oldest = {
                let mut segments = self.log.segments.lock();
                let expired = |s: &Arc<Segment>| s.last_time.load(Ordering::Relaxed).saturating_add(age) < now;
                if segments.len() < 2 || !segments.front().is_some_and(expired) {
                    let newest = segments.back().filter(|_| self.end_segment_at.is_none());
                    return Ok(newest.is_some_and(|s| s.first_time.as_millis().saturating_add(age / 8) < now));
                }
                segments.pop_front().expect("there are two")
            };
            oldest.delete()?;
        }
    }

    /// Has records from this offset on go into the next segment.
    pub(super) fn end_segment_at(&mut self, offset: u64) {
        self.end_segment_at = Some(offset);
    }

    /// Makes sure that the buffer may take `size` bytes more; begins a new segment where the tail is full.
    fn make_room(&mut self, size: u64, first: u64, time: Timestamp) -> io::Result<()> {
        if let Some(tail) = &self.tail
            && tail.bytes + self.buffer.len() as u64 + size <= tail.allocated
            && self.end_segment_at.is_none_or(|at| first < at)
        {
            return Ok(());
        }
        self.flush()?;
        if self.ready.is_empty() && !self.prepare()? {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if let Some(Tail { segment: Some(segment), bytes, .. }) = &self.tail {
            // What was set aside and not needed goes back.
            if segment.file.set_len(*bytes).is_ok() {
                segment.allocated.store(*bytes, Ordering::Relaxed);
            }
        }
        self.end_segment_at = None;
        let ready = self.ready.pop_front().expect("prepared just now");
        let jumped = std::mem::take(&mut self.jumped);
        let header = Header { log: self.log.id, salt: self.log.salt, first, previous: self.next, time, jumped };
        self.buffer.extend_from_slice(&header.encode());
        let allocated = ready.bytes;
        self.tail = Some(Tail { segment: None, new: Some((ready, header)), allocated, bytes: 0 });
        Ok(())
    }

    /// Sets room aside for one more segment. The oldest one goes first, where all would be too large together. Returns false
    /// where that isn't enough.
    pub(super) fn prepare(&mut self) -> io::Result<bool> {
        // Before anything is deleted: who waits for something rare has lost nothing of it, also after a crash.
        self.move_idle_cursors();
        let bytes = self.log.options.segment_bytes();
        if !self.delete_down_to(self.log.options.max_bytes - bytes)? {
            return Ok(false);
        }
        self.serial += 1;
        let path = self.log.segments_dir().join(format!("{}.new", self.serial));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
        if let Err(e) = self.log.options.disk.allocate(&file, bytes) {
            let _ = std::fs::remove_file(&path);
            return Err(e);
        }
        self.ready.push_back(Ready { file, path, bytes });
        Ok(true)
    }

    /// Deletes the oldest segments until the others take no more than `most`. Returns whether they do.
    fn delete_down_to(&mut self, most: u64) -> io::Result<bool> {
        loop {
            let oldest = {
                let mut segments = self.log.segments.lock();
                let total = segments.iter().map(|s| s.allocated.load(Ordering::Relaxed)).sum::<u64>()
                    + self.ready.iter().map(|r| r.bytes).sum::<u64>()
                    + self.tail.as_ref().filter(|t| t.segment.is_none()).map_or(0, |t| t.allocated);
                if total <= most || segments.len() < 2 {
                    return Ok(total <= most);
                }
                segments.pop_front().expect("there are two")
            };
            oldest.delete()?;
        }
    }

    /// Writes down that everything is in order.
    pub(super) fn close(&mut self) -> io::Result<()> {
        self.flush()?;
        for ready in self.ready.drain(..) {
            let _ = std::fs::remove_file(&ready.path);
        }
        self.move_idle_cursors();
        let disk = &*self.log.options.disk;
        for cursor in self.log.cursors.lock().values() {
            cursor.save(disk)?;
            cursor.sync(disk)?;
        }
        if let Some(Tail { segment: Some(segment), .. }) = &self.tail {
            disk.sync(&segment.file)?;
        }
        // After a jump there may be offsets behind the last record that were given to nobody, and must not be used again.
        let end = self.next.max(self.log.watermark());
        let state = State { end: Some(end), written: self.next, reserved: end, ..self.meta.state };
        self.meta.write(state, disk)
    }

    /// Moves the cursors of subscriptions that have nothing to do.
    pub(super) fn move_idle_cursors(&self) {
        let head = self.log.watermark();
        let moved = self.log.cursors.lock().values().filter(|cursor| cursor.follow(head)).count();
        if moved > 0 {
            self.log.cursors_moved.store(true, Ordering::Release);
        }
    }

    /// Saves where the cursors are.
    pub(super) fn save_cursors(&self) -> io::Result<()> {
        if !self.log.cursors_moved.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let cursors: Vec<_> = self.log.cursors.lock().values().cloned().collect();
        cursors.iter().try_for_each(|cursor| cursor.save(&*self.log.options.disk))
    }
}

const _: () = assert!(HEADER_BYTES.is_multiple_of(record::ALIGN as u64));
