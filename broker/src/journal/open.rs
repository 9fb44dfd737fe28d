//! Opening a journal, whatever state it was left in.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};

use super::cursor::CursorFile;
use super::disk::read_at_most;
use super::error::JournalError;
use super::log::Log;
use super::meta::{Meta, RESERVE, State, VERSION, boot_id};
use super::options::{Durability, JournalOptions};
use super::reader::{find_record, gap};
use super::record::{self, Found, HEAD_BYTES, TRAILER};
use super::segment::{HEADER_BYTES, Header, Segment, Written};
use super::writer::Writer;
use crate::message::{Gap, LogId, Offset, Timestamp};

/// Offsets passed over after a crash: what may have been given out while the next ones were being set aside.
pub(super) const SLACK: u64 = 1 << 20;
/// The same after a loss of power, where not even what had been set aside is certain.
const SLACK_AFTER_REBOOT: u64 = 1 << 32;

/// A journal that is open, and not yet attached to a broker.
#[derive(Debug)]
pub struct Journal {
    pub(super) log: Arc<Log>,
    pub(super) writer: Writer,
    report: OpenReport,
}

/// What was found when a journal was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct OpenReport {
    /// Whether it was made just now.
    pub created: bool,
    /// Whether it had been closed in order.
    pub clean: bool,
    /// Bytes at the end that had been written in part when the process ended. No publish of these messages was
    /// acknowledged.
    pub torn_bytes: u64,
    /// What is damaged; durable subscriptions are told it as gaps.
    pub damage: Vec<Damage>,
}

/// A part of the journal that can't be read.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Damage {
    /// The file.
    pub path: PathBuf,
    /// Where in the file it begins.
    pub position: u64,
    /// How many bytes; 0 where they are gone.
    pub bytes: u64,
}

impl Journal {
    /// Opens the journal in a directory, or makes one. It needs no repair, whatever happened: what can't be read is skipped,
    /// [reported](Journal::report), and told to durable subscriptions as gaps.
    ///
    /// # Errors
    /// When another process has it open, when the directory can't be used, or when it is of a later format.
    pub fn open(options: JournalOptions) -> Result<Journal, JournalError> {
        if options.max_bytes < JournalOptions::MIN_BYTES {
            let (path, max_bytes) = (options.path.clone(), options.max_bytes);
            return Err(JournalError::TooSmall { path, max_bytes, least: JournalOptions::MIN_BYTES });
        }
        let path = options.path.clone();
        for dir in [&path, &path.join("segments"), &path.join("cursors")] {
            std::fs::create_dir_all(dir).map_err(JournalError::io("make the directory", dir))?;
        }
        let lock = lock(&path)?;
        let mut report = OpenReport::default();
        let segments = list_segments(&path.join("segments"))?;
        let meta_path = path.join("meta");
        let mut meta = Meta::open(&meta_path).map_err(JournalError::io("read", &meta_path))?;
        if let Some(meta) = &meta
            && meta.state.version > VERSION
        {
            return Err(JournalError::Version { path, version: meta.state.version, known: VERSION });
        }
        report.created = meta.is_none() && segments.is_empty();
        let state = match &meta {
            Some(meta) => meta.state,
            None => {
                if !segments.is_empty() {
                    report.damage.push(Damage { path: meta_path.clone(), position: 0, bytes: 0 });
                }
                new_state(&segments)
            }
        };
        let Opened { mut segments, tail, jumps: mut holes } = open_segments(&segments, &state, &mut report)?;
        let jumped = tail.jumps.iter().map(|(end, first)| first - end).sum();
        holes.extend(&tail.jumps);
        let between =
            segments.iter().zip(segments.iter().skip(1)).map(|(_, segment)| (segment.previous, segment.first));
        holes.extend(between.filter(|(end, first)| end < first));
        holes.sort_unstable();
        report.clean = state.end.is_some() || report.created;
        let next = next_offset(&state, tail.next, &options, meta.is_some() || report.created);
        let lost = lost(&state, &tail, next);
        // A gap that is told in place of them counts as one.
        let end = tail.next + lost.map_or(0, |gap| gap.count);
        if end < next {
            holes.push((end, next));
        }
        if let Some(last) = segments.back_mut() {
            let written = Written { bytes: tail.bytes, next: tail.next };
            last.grow(written, tail.time);
        }
        let new = State { version: VERSION, reserved: next + RESERVE, end: None, boot: boot_id(), ..state };
        let meta = match meta.take() {
            // Twice: were the newer slot lost, the other one must not say that the journal was closed.
            Some(mut meta) => {
                let written = meta.write(new, &*options.disk).and_then(|()| meta.write(new, &*options.disk));
                written.map(|()| meta)
            }
            None => Meta::create(&meta_path, new, &*options.disk),
        }
        .map_err(JournalError::io("write", &meta_path))?;
        let cursors =
            open_cursors(&path.join("cursors"), segments.front().map_or(next, |s| s.first), &options, &mut report)?;
        let log = Arc::new(Log::new(options, (state.log, state.salt), lock, segments, next, holes, cursors));
        let mut writer = Writer::new(Arc::clone(&log), meta, tail.next.min(next), jumped);
        if let Some(gap) = lost {
            let done = writer.put_gap(gap).and_then(|()| writer.flush());
            done.map_err(JournalError::io("write", &log.options.path))?;
        }
        writer.next = if lost.is_some() { writer.next } else { tail.next.min(next) };
        Ok(Journal { log, writer, report })
    }

    /// What was found when it was opened.
    pub fn report(&self) -> &OpenReport {
        &self.report
    }

    /// The name of the log.
    pub fn log_id(&self) -> LogId {
        self.log.id
    }
}

/// The lock that keeps others out; as long as it lives.
#[derive(Debug)]
pub(super) struct DirLock(File);

impl Drop for DirLock {
    fn drop(&mut self) {
        // Not by closing it alone: a process that is being spawned has it, too, until it has become its program.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

/// Takes the lock that keeps others out.
fn lock(path: &Path) -> Result<DirLock, JournalError> {
    let file = path.join("lock");
    let lock = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&file)
        .map_err(JournalError::io("open", &file))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(DirLock(lock)),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(JournalError::InUse { path: path.to_owned() }),
        Err(e) => Err(JournalError::Io { path: file, deed: "lock", source: e.into() }),
    }
}

/// The segments' files in order. What was begun and not named yet is deleted: nothing in it was acknowledged.
fn list_segments(dir: &Path) -> Result<Vec<(u64, PathBuf)>, JournalError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(JournalError::io("list", dir))? {
        let path = entry.map_err(JournalError::io("list", dir))?.path();
        match Segment::first_of(&path) {
            Some(first) => found.push((first, path)),
            None if path.extension().is_some_and(|e| e == "new") => {
                std::fs::remove_file(&path).map_err(JournalError::io("delete", &path))?;
            }
            None => {}
        }
    }
    found.sort();
    Ok(found)
}

/// The state of a journal whose `meta` isn't there: a new one's, or what the segments tell.
fn new_state(segments: &[(u64, PathBuf)]) -> State {
    let header = segments.iter().find_map(|(_, path)| {
        let file = File::open(path).ok()?;
        Segment::read_header(&file).ok()?
    });
    let (log, salt) = match header {
        Some(header) => (header.log, header.salt),
        None => (LogId::random(), LogId::random().get() as u32), // a random number is all that is wanted
    };
    State {
        version: VERSION,
        log,
        salt,
        reserved: 1,
        end: segments.is_empty().then_some(1),
        written: 1,
        boot: boot_id(),
    }
}

/// The end of the newest segment.
#[derive(Debug)]
struct End {
    bytes: u64,
    next: u64,
    time: Timestamp,
    /// Whether records are missing at the end.
    damaged: bool,
    /// Offsets that were passed over within the segment.
    jumps: Vec<(u64, u64)>,
}

/// The segments, opened.
struct Opened {
    segments: VecDeque<Arc<Segment>>,
    tail: End,
    /// Offsets that the older ones have passed over. Where in a segment that was isn't known: it is taken to have been at its beginning.
    jumps: Vec<(u64, u64)>,
}

/// Opens what was found, and reads the newest to its end.
fn open_segments(found: &[(u64, PathBuf)], state: &State, report: &mut OpenReport) -> Result<Opened, JournalError> {
    let mut segments: VecDeque<Arc<Segment>> = VecDeque::new();
    let mut end = End { bytes: 0, next: 1, time: Timestamp::from_millis(0), damaged: false, jumps: Vec::new() };
    let mut headers = Vec::new();
    for (first, path) in found {
        let file = File::options().read(true).write(true).open(path).map_err(JournalError::io("open", path))?;
        let header = Segment::read_header(&file).map_err(JournalError::io("read", path))?;
        let header = header.filter(|h| h.log == state.log && h.salt == state.salt && h.first == *first);
        if header.is_none() {
            report.damage.push(Damage { path: path.clone(), position: 0, bytes: HEADER_BYTES });
        }
        // Without a header nothing can be said about what was before.
        let (log, salt, time) = (state.log, state.salt, Timestamp::from_millis(0));
        let header = header.unwrap_or(Header { log, salt, first: *first, previous: *first, time, jumped: 0 });
        headers.push((file, path, header));
    }
    let behind = headers.iter().skip(1).map(|(_, _, header)| header.jumped);
    let jumps = headers.iter().zip(behind).filter(|(_, jumped)| *jumped > 0);
    let jumps = jumps.map(|((_, _, header), jumped)| (header.first + 1, header.first + 1 + jumped)).collect();
    let previous: Vec<u64> = headers.iter().skip(1).map(|(_, _, header)| header.previous).collect();
    for (i, (file, path, header)) in headers.into_iter().enumerate() {
        let length = file.metadata().map_err(JournalError::io("read", path))?.len();
        let next = previous.get(i).copied().unwrap_or(header.first).max(header.first);
        let segment = Segment::new(file, path.clone(), &header, length, Written { bytes: length, next });
        if i == previous.len() {
            end = find_end(&segment, length, state, report).map_err(JournalError::io("read", path))?;
        }
        segments.push_back(Arc::new(segment));
    }
    if segments.is_empty() && state.written > 1 {
        // There were some.
        end.damaged = true;
        report.damage.push(Damage { path: PathBuf::from("segments"), position: 0, bytes: 0 });
    }
    Ok(Opened { segments, tail: end, jumps })
}

/// Reads the newest segment to its end, and clears away what is behind that.
fn find_end(segment: &Segment, length: u64, state: &State, report: &mut OpenReport) -> io::Result<End> {
    let mut end = End {
        bytes: HEADER_BYTES.min(length),
        next: segment.first,
        time: segment.first_time,
        damaged: false,
        jumps: Vec::new(),
    };
    let mut chunk = Vec::new();
    // What is damaged had offsets, too.
    let mut skipped = false;
    while end.bytes < length {
        if let Some(record) = read_record(segment, end.bytes, length, state.salt, &mut chunk)? {
            segment.note(end.next, end.bytes);
            if record.first > end.next && !skipped {
                end.jumps.push((end.next, record.first));
            }
            skipped = false;
            end.next = record.next.max(end.next);
            end.time = record.time;
            end.bytes += record.bytes;
            continue;
        }
        let Some(data) = data_end(segment, end.bytes, length)? else { break };
        let found = find_record(&segment.file, end.bytes + record::ALIGN as u64, data.end, end.next, state.salt);
        let damage = |bytes| Damage { path: segment.path.clone(), position: end.bytes, bytes };
        if let Some((position, _)) = found {
            // Readers will come upon this, too, and tell it.
            report.damage.push(damage(position - end.bytes));
            end.bytes = position;
            skipped = true;
            continue;
        }
        let bytes = data.end - end.bytes;
        if data.complete || state.end.is_some() {
            report.damage.push(damage(bytes));
            end.damaged = true;
        } else {
            report.torn_bytes += bytes;
        }
        clear(segment, end.bytes, data.end)?;
        break;
    }
    if state.end.is_some() && state.written > end.next && !end.damaged {
        report.damage.push(Damage { path: segment.path.clone(), position: end.bytes, bytes: 0 });
        end.damaged = true;
    }
    Ok(end)
}

/// What is wanted of a record.
struct Record {
    first: u64,
    /// The offset behind it.
    next: u64,
    time: Timestamp,
    bytes: u64,
}

/// The record at this place, if there is a whole one.
fn read_record(
    segment: &Segment,
    position: u64,
    length: u64,
    salt: u32,
    chunk: &mut Vec<u8>,
) -> io::Result<Option<Record>> {
    let longest = usize::try_from(length - position).unwrap_or(usize::MAX);
    let mut need = HEAD_BYTES.min(longest);
    loop {
        chunk.resize(need, 0);
        let read = read_at_most(&segment.file, chunk, position)?;
        match record::decode(&chunk[..read], longest, salt) {
            Found::Record(stored, total) => {
                let (first, next, time) = (stored.first(), stored.next(), stored.time());
                return Ok(Some(Record { first, next, time, bytes: total as u64 }));
            }
            Found::More(more) if more > need => need = more,
            _ => return Ok(None),
        }
    }
}

/// Where what isn't zero ends.
struct Data {
    end: u64,
    /// Whether the end of a record stands there: it was written to its end, so if it can't be read it was damaged since.
    complete: bool,
}

fn data_end(segment: &Segment, from: u64, length: u64) -> io::Result<Option<Data>> {
    const CHUNK: u64 = 256 << 10;
    let mut end = length;
    while end > from {
        let start = end.saturating_sub(CHUNK).max(from);
        let mut bytes = vec![0; (end - start) as usize];
        let read = read_at_most(&segment.file, &mut bytes, start)?;
        if let Some(last) = bytes[..read].iter().rposition(|&b| b != 0) {
            let end = start + last as u64 + 1;
            let mut trailer = [0; TRAILER.len()];
            let at = end.saturating_sub(TRAILER.len() as u64);
            let complete =
                at >= from && read_at_most(&segment.file, &mut trailer, at)? == trailer.len() && trailer == TRAILER;
            return Ok(Some(Data { end, complete }));
        }
        end = start;
    }
    Ok(None)
}

/// Overwrites with zeros: that needs no room, as cutting the file and setting room aside again would.
fn clear(segment: &Segment, from: u64, to: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let zeros = vec![0; 256 << 10];
    let mut at = from;
    while at < to {
        let size = zeros.len().min((to - at) as usize);
        segment.file.write_all_at(&zeros[..size], at)?;
        at += size as u64;
    }
    Ok(())
}

/// The first offset to be given out.
fn next_offset(state: &State, written: u64, options: &JournalOptions, known: bool) -> u64 {
    match state.end {
        Some(end) => end.max(written),
        None => {
            let rebooted = state.boot != boot_id() && options.durability == Durability::Os;
            let slack = if rebooted || !known { SLACK_AFTER_REBOOT } else { SLACK };
            state.reserved.max(written) + slack
        }
    }
}

/// What is missing at the end, as far as it is known.
fn lost(state: &State, end: &End, next: u64) -> Option<Gap> {
    if !end.damaged {
        return None;
    }
    Some(match state.end {
        Some(_) if state.written > end.next => gap(end.next, state.written - 1),
        // How many there were can't be told.
        _ => Gap { first: Offset::new(end.next), last: Offset::new((next - 1).max(end.next)), count: 1 },
    })
}

fn open_cursors(
    dir: &Path,
    earliest: u64,
    options: &JournalOptions,
    report: &mut OpenReport,
) -> Result<BTreeMap<String, Arc<CursorFile>>, JournalError> {
    let mut cursors = BTreeMap::new();
    for entry in std::fs::read_dir(dir).map_err(JournalError::io("list", dir))? {
        let path = entry.map_err(JournalError::io("list", dir))?.path();
        if path.extension().is_none_or(|e| e != "cursor") {
            continue;
        }
        let cursor = match CursorFile::open(&path).map_err(JournalError::io("read", &path))? {
            Some(cursor) => cursor,
            None => {
                report.damage.push(Damage { path: path.clone(), position: 0, bytes: 0 });
                // Where it stood is unknown: rather repeat than lose.
                let Some(name) = CursorFile::name_of(&path) else { continue };
                CursorFile::create(dir, &name, earliest, &*options.disk)?
            }
        };
        cursors.insert(cursor.name.clone(), Arc::new(cursor));
    }
    Ok(cursors)
}
