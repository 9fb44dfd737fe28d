//! The journal's files, cut and changed at every byte of their last records: what is whole is read, what isn't is told, nothing is
//! invented, and the journal goes on.
#![cfg(feature = "journal")]

mod support;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hookbus_broker::{
    Broker, Delivery, Disk, Gap, Journal, JournalOptions, Message, Offset, OpenReport, Origin, Start, SubscribeOptions,
    SystemDisk, Timestamp,
};

use support::{drain, options};

/// Nothing here is about power, so it needn't wait for the device.
#[derive(Debug)]
struct QuickDisk;

impl Disk for QuickDisk {
    fn allocate(&self, file: &File, bytes: u64) -> io::Result<()> {
        SystemDisk.allocate(file, bytes)
    }

    fn write_at(&self, file: &File, bytes: &[u8], position: u64) -> io::Result<()> {
        SystemDisk.write_at(file, bytes, position)
    }

    fn sync(&self, _: &File) -> io::Result<()> {
        Ok(())
    }
}

fn quick(dir: &Path) -> JournalOptions {
    options(dir).disk(Arc::new(QuickDisk))
}

const COUNT: u64 = 12;

fn message(n: u64) -> Message {
    let message = Message::new(format!("EVENT {n} "), format!("payload {n} ").repeat(n as usize % 4));
    let message = message.with_time(Timestamp::from_millis(n));
    match n % 3 {
        0 => message.with_key("second").with_tag(7),
        1 => message.with_origin(Origin { id: "id".into(), source: "s".into(), attributes: "".into() }),
        _ => message,
    }
}

/// A journal of some messages, and a copy of it as it was before it was closed.
fn make(dir: &Path) -> (PathBuf, PathBuf) {
    let (clean, crashed) = (dir.join("clean"), dir.join("crashed"));
    let broker = Broker::default();
    broker.attach_journal(Journal::open(quick(&clean)).expect("open")).expect("attach");
    let options = SubscribeOptions::new("reader").prefix("");
    let mut durable = broker.subscribe_durable(options, "reader", Start::Latest).expect("subscribe");
    for n in 1..=COUNT {
        assert_eq!(broker.publish_blocking(message(n)).expect("publish").get(), n);
    }
    assert!(durable.try_recv_batch(hookbus_broker::BatchLimit::messages(1), &mut Vec::new()).is_ok());
    copy(&clean, &crashed);
    drop((broker, durable));
    (clean, crashed)
}

fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    std::fs::create_dir_all(to).expect("directory");
    for entry in std::fs::read_dir(from).expect("directory") {
        let entry = entry.expect("entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("type").is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copy");
        }
    }
}

fn segment(dir: &Path) -> PathBuf {
    dir.join("segments").join("00000000000000000001.log")
}

/// Where records are in the segment: positions of their beginnings, and the end of the last one.
fn records(dir: &Path) -> Vec<usize> {
    let bytes = std::fs::read(segment(dir)).expect("segment");
    let mut places: Vec<usize> = (0..bytes.len()).filter(|&at| bytes[at..].starts_with(b"HBr1")).collect();
    assert_eq!(places.len() as u64, COUNT);
    places.push(bytes.iter().rposition(|&b| b != 0).expect("data") + 1);
    places
}

struct Opened {
    report: OpenReport,
    found: Vec<u64>,
    gaps: Vec<Gap>,
    /// Given to a message that is published now.
    next: u64,
}

/// Opens a journal that may be damaged, reads it, publishes, and reads it again after a restart.
fn open(dir: &Path) -> Opened {
    let mut opened = read(dir, COUNT);
    let again = read(dir, opened.next);
    assert_eq!(again.found[..opened.found.len()], opened.found, "what was there is there after a restart");
    assert_eq!(again.found.last(), Some(&opened.next), "and what was published");
    assert!(again.report.damage.len() <= opened.report.damage.len(), "damage at the end is cleared away");
    opened.gaps.dedup();
    opened
}

fn read(dir: &Path, newest: u64) -> Opened {
    let journal = Journal::open(quick(dir)).expect("it opens without repair");
    let report = journal.report().clone();
    let broker = Broker::default();
    broker.attach_journal(journal).expect("attach");
    let (mut found, mut gaps) = (Vec::new(), Vec::new());
    let mut last = 0;
    let options = SubscribeOptions::new("all").prefix("");
    let mut all = broker.subscribe_from(options.clone(), Start::Offset(Offset::new(1))).expect("subscribe");
    for delivery in drain(&mut all) {
        match delivery {
            Delivery::Message(received) => {
                let n = received.offset().get();
                assert!(n > last);
                last = n;
                if n <= COUNT {
                    let original = message(n);
                    assert_eq!(received.payload(), original.payload());
                    assert!(received.keys().eq(original.keys()));
                    assert_eq!(received.time().as_millis(), n);
                } else {
                    assert_eq!((n, &received.payload()[..]), (newest, &b"next"[..]), "nothing is invented");
                }
                found.push(n);
            }
            Delivery::Gap(gap) => {
                assert!(gap.first.get() > last && gap.last >= gap.first && gap.count >= 1, "{gap:?} after {last}");
                last = gap.last.get();
                gaps.push(gap);
            }
        }
    }
    // The durable subscription has its place, or an earlier one.
    let mut durable = broker.subscribe_durable(options, "reader", Start::Latest).expect("subscribe");
    let rest: Vec<u64> =
        drain(&mut durable).into_iter().filter_map(|d| d.message().map(|m| m.offset().get())).collect();
    let tail: Vec<u64> = found.iter().copied().filter(|&n| rest.first().is_none_or(|&first| n >= first)).collect();
    if newest == COUNT {
        assert_eq!(rest, tail, "it goes on where it was");
        assert!(rest.first().is_none_or(|&n| n <= 1 || !found.contains(&(n - 1)) || n == 1));
    }
    let next = broker.publish_blocking(Message::new("next", "next")).expect("publish").get();
    assert!(next > last && next > COUNT, "an offset is never used again: {next}");
    Opened { report, found, gaps, next }
}

/// All but what was `hit` must be there, and that it isn't must be told.
fn check(opened: &Opened, hit: impl Fn(u64) -> bool, what: &str) {
    for n in 1..=COUNT {
        if opened.found.contains(&n) {
            continue;
        }
        assert!(hit(n), "{what}: {n} is missing");
        let told = opened.gaps.iter().any(|gap| (gap.first.get()..=gap.last.get()).contains(&n));
        assert!(told, "{what}: nobody is told that {n} is missing");
        assert_ne!(opened.report.damage, [], "{what}: the damage is reported");
    }
}

#[test]
fn every_byte_changed() {
    let dir = tempfile::tempdir().expect("directory");
    let (clean, crashed) = make(dir.path());
    let places = records(&clean);
    let scratch = dir.path().join("scratch");
    for original in [&clean, &crashed] {
        let first = COUNT as usize - 3;
        for at in places[first]..*places.last().expect("some") {
            copy(original, &scratch);
            let file = File::options().read(true).write(true).open(segment(&scratch)).expect("segment");
            let mut byte = [0];
            file.read_exact_at(&mut byte, at as u64).expect("read");
            file.write_all_at(&[byte[0] ^ 1 << (at % 8)], at as u64).expect("write");
            let record = places.partition_point(|&place| place <= at) as u64;
            let opened = open(&scratch);
            check(&opened, |n| n == record, &format!("byte {at}"));
            assert_eq!(opened.report.clean, original == &clean);
        }
    }
}

#[test]
fn cut_at_every_byte() {
    let dir = tempfile::tempdir().expect("directory");
    let (clean, crashed) = make(dir.path());
    let places = records(&clean);
    let scratch = dir.path().join("scratch");
    for original in [&clean, &crashed] {
        for at in places[COUNT as usize - 2]..*places.last().expect("some") {
            copy(original, &scratch);
            File::options().write(true).open(segment(&scratch)).expect("segment").set_len(at as u64).expect("cut");
            let record = places.partition_point(|&place| place <= at) as u64;
            // The end of a record is its mark; up to there, padding can be cut without a loss that could be seen.
            let opened = open(&scratch);
            if original == &clean {
                check(&opened, |n| n >= record || places.contains(&at), &format!("cut at {at}"));
            } else {
                // It could not be told from a record that was never complete: so it wasn't acknowledged.
                assert!(opened.found.iter().copied().eq(1..record), "cut at {at}: {:?}", opened.found);
                assert!(opened.report.damage.is_empty() || !opened.gaps.is_empty());
            }
        }
    }
}

/// A record that was begun when the process was killed: it goes without a word, for nobody was told that it is safe.
#[test]
fn a_torn_record_is_nobodys_loss() {
    let dir = tempfile::tempdir().expect("directory");
    let (_, crashed) = make(dir.path());
    let places = records(&crashed);
    let scratch = dir.path().join("scratch");
    let [.., last, end] = places[..] else { panic!("there are some") };
    let bytes = std::fs::read(segment(&crashed)).expect("segment");
    let length = u32::from_le_bytes(bytes[last + 8..last + 12].try_into().expect("four bytes")) as usize;
    // A record ends in text here, so that each cut is one.
    for at in last..last + length {
        copy(&crashed, &scratch);
        let file = File::options().write(true).open(segment(&scratch)).expect("segment");
        file.write_all_at(&vec![0; end - at], at as u64).expect("write");
        let opened = open(&scratch);
        assert_eq!((&opened.report.damage[..], &opened.gaps[..]), (&[][..], &[][..]), "torn at {at}");
        assert!(opened.found.iter().copied().eq(1..COUNT), "torn at {at}: {:?}", opened.found);
    }
}

/// Damage to files other than the newest records: nothing that is whole is lost.
#[test]
fn other_files_damaged() {
    let dir = tempfile::tempdir().expect("directory");
    let (clean, crashed) = make(dir.path());
    let scratch = dir.path().join("scratch");
    for original in [&clean, &crashed] {
        for name in ["meta", "cursors/reader.cursor"] {
            for (from, to) in [(0, 8192), (0, 4096), (4096, 8192)] {
                copy(original, &scratch);
                let file = File::options().write(true).open(scratch.join(name)).expect("file");
                file.write_all_at(&vec![0xff; to - from], from as u64).expect("write");
                let opened = open(&scratch);
                assert!(opened.found.iter().copied().eq(1..=COUNT), "{name} {from}: {:?}", opened.found);
                assert_eq!(opened.gaps, []);
                assert_eq!(opened.report.damage.is_empty(), to - from < 8192, "{name} {from}");
            }
            copy(original, &scratch);
            std::fs::remove_file(scratch.join(name)).expect("remove");
            let journal = Journal::open(quick(&scratch)).expect("open");
            assert_eq!(journal.log_id(), Journal::open(quick(original)).expect("open").log_id());
        }
        // The header of the segment.
        for at in 0..64 {
            copy(original, &scratch);
            let file = File::options().write(true).open(segment(&scratch)).expect("segment");
            file.write_all_at(&[0xff], at).expect("write");
            let opened = open_damaged_header(&scratch);
            assert!(opened.iter().copied().eq(1..=COUNT), "header {at}: {opened:?}");
        }
        // All of it.
        copy(original, &scratch);
        std::fs::remove_file(segment(&scratch)).expect("remove");
        let journal = Journal::open(quick(&scratch)).expect("open");
        assert_eq!(journal.report().damage.is_empty(), original == &crashed);
    }
}

fn open_damaged_header(dir: &Path) -> Vec<u64> {
    let journal = Journal::open(quick(dir)).expect("open");
    let broker = Broker::default();
    broker.attach_journal(journal).expect("attach");
    let mut all = broker.subscribe_from(SubscribeOptions::new("all").prefix(""), Start::Earliest).expect("subscribe");
    drain(&mut all).into_iter().filter_map(|d| d.message().map(|m| m.offset().get())).collect()
}

/// Damage that shows only when it is read: a gap, never an end.
#[test]
fn damage_in_the_middle() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("journal");
    let count = 3000u64;
    let broker = Broker::default();
    broker.attach_journal(Journal::open(quick(&path)).expect("open")).expect("attach");
    let payload = |n: u64| format!("{n} ").repeat(300);
    for n in 1..=count {
        broker.publish_blocking(Message::new("k", payload(n))).expect("publish");
    }
    let segments = broker.journal().expect("attached").stats().segments;
    assert!(segments >= 3, "{segments}");
    // Under the feet of the one who has it open.
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(path.join("segments")).expect("directory").map(|e| e.expect("entry").path()).collect();
    files.sort();
    let file = File::options().write(true).open(&files[1]).expect("segment");
    for at in [100_000, 300_001, 500_000] {
        file.write_all_at(&[0xff; 3000], at).expect("write");
    }
    let mut all = broker.subscribe_from(SubscribeOptions::new("all").prefix(""), Start::Earliest).expect("subscribe");
    let (mut next, mut gaps) = (1, 0);
    for delivery in drain(&mut all) {
        match delivery {
            Delivery::Message(message) => {
                assert_eq!(message.offset().get(), next);
                assert_eq!(message.payload(), &payload(next));
                next += 1;
            }
            Delivery::Gap(gap) => {
                assert_eq!(gap.first.get(), next);
                assert!((1..=4).contains(&gap.count), "{gap:?}");
                next = gap.last.get() + 1;
                gaps += 1;
            }
        }
    }
    assert_eq!((next, gaps), (count + 1, 3));
    assert!(broker.journal().expect("attached").stats().damaged >= 3);
}
