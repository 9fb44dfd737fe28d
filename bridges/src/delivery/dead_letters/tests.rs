//! Dead letters, in memory and on disks of all kinds.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use hookbus_broker::{LogId, Message, Offset, Origin};
use redb::StorageBackend;
use redb::backends::FileBackend;

use super::*;

/// A disk that a test can fill up.
#[derive(Clone, Debug, Default)]
pub(super) struct Disk {
    full: Arc<AtomicBool>,
}

#[derive(Debug)]
pub(super) struct DiskFile {
    file: FileBackend,
    full: Arc<AtomicBool>,
}

impl Disk {
    pub(super) fn file(&self, path: &Path) -> DiskFile {
        let file = std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap();
        DiskFile { file: FileBackend::new(file).unwrap(), full: Arc::clone(&self.full) }
    }
}

impl DiskFile {
    fn room(&self) -> io::Result<()> {
        if self.full.load(Ordering::Relaxed) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl StorageBackend for DiskFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.room()?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.room()?;
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.room()?;
        self.file.write(offset, data)
    }
}

const LIMITS: DeadLetterLimits = DeadLetterLimits { letters: 100, bytes: 1 << 20 };

fn event(offset: u64, payload: &[u8]) -> Received {
    let id = EventId { log: LogId::new(7), offset: Offset::new(offset) };
    let origin = Origin { id: "theirs".into(), source: "/s".into(), attributes: "{\"type\":\"t\"}".into() };
    let message = Message::new(b"key \xFF%\0", payload.to_vec()).with_key("second ").with_tag(1).with_origin(origin);
    Received::restored(id, message.with_time(Timestamp::from_millis(1234)))
}

fn add(letters: &DeadLetters, bridge: &str, offsets: std::ops::RangeInclusive<u64>) {
    try_add(letters, bridge, offsets).unwrap();
}

fn try_add(
    letters: &DeadLetters,
    bridge: &str,
    offsets: std::ops::RangeInclusive<u64>,
) -> Result<(), DeadLettersError> {
    let fallen = |offset| Fallen { event: event(offset, b"payload"), reason: "refused".into(), attempts: 2 };
    letters.add(&bridge.into(), Timestamp::from_millis(99), &offsets.map(fallen).collect::<Vec<_>>())
}

/// The offsets of all, oldest first.
fn offsets(letters: &DeadLetters) -> Vec<u64> {
    letters.list(None, usize::MAX).unwrap().iter().map(|letter| letter.id.offset.get()).collect()
}

/// Runs a test over a store in memory, and over one in a file.
fn both(test: impl Fn(DeadLetters)) {
    test(DeadLetters::in_memory(LIMITS));
    let directory = tempfile::tempdir().unwrap();
    test(DeadLetters::in_directory(directory.path(), LIMITS));
}

#[test]
fn an_event_comes_back_as_it_was() {
    both(|letters| {
        add(&letters, "nats", 5..=5);
        let (letter, back) = letters.show(1).unwrap().unwrap();
        let event = event(5, b"payload");
        assert_eq!(back, event);
        assert_eq!(
            letter,
            DeadLetter {
                number: 1,
                bridge: "nats".into(),
                died: Timestamp::from_millis(99),
                reason: "refused".into(),
                attempts: 2,
                replays: 0,
                retrying: false,
                id: event.id(),
                keys: event.keys().map(Box::from).collect(),
                payload_bytes: 7,
            }
        );
        assert_eq!(letters.list(None, 9).unwrap(), [letter]);
        assert_eq!(letters.show(2).unwrap(), None);
    });
}

#[test]
fn bridges_are_told_apart() {
    both(|letters| {
        add(&letters, "a", 1..=2);
        add(&letters, "b", 3..=5);
        assert_eq!((letters.count(None), letters.count(Some("b")), letters.count(Some("c"))), (5, 3, 0));
        let of_b: Vec<u64> = letters.list(Some("b"), 2).unwrap().iter().map(|letter| letter.number).collect();
        assert_eq!(of_b, [3, 4]);
        assert_eq!(letters.purge(&Which::Numbers(vec![1, 1, 77])).unwrap(), 1);
        assert_eq!(letters.purge(&Which::Bridge("b".into())).unwrap(), 3);
        assert_eq!(offsets(&letters), [2]);
        assert_eq!(letters.purge(&Which::All).unwrap(), 1);
        add(&letters, "a", 9..=9);
        assert_eq!(letters.list(None, 1).unwrap()[0].number, 6, "no number is used twice");
    });
}

#[test]
fn letters_follow_who_left_them_to_another_name() {
    both(|letters| {
        add(&letters, "hook a", 1..=3);
        add(&letters, "hook c", 4..=4);
        assert_eq!(letters.claim("hook a", &Which::Numbers(vec![2])), [2]);
        assert_eq!(letters.rename("hook a", &"hook b".into()).unwrap(), 2);
        let names: Vec<_> = letters.list(None, 9).unwrap().iter().map(|letter| letter.bridge.to_string()).collect();
        assert_eq!(names, ["hook b", "hook a", "hook b", "hook c"], "what is under way stays");
        assert_eq!((letters.count(Some("hook a")), letters.count(Some("hook b"))), (1, 2));
        assert_eq!(&*letters.show(3).unwrap().unwrap().0.bridge, "hook b");
        assert_eq!(letters.rename("nobody", &"x".into()).unwrap(), 0);
    });
}

#[test]
fn a_letter_is_gone_when_its_retry_is_confirmed() {
    both(|letters| {
        add(&letters, "a", 1..=3);
        add(&letters, "b", 4..=4);
        assert_eq!(letters.claim("a", &Which::Numbers(vec![1, 2, 4])), [1, 2]);
        assert_eq!(letters.claim("a", &Which::All), [3], "what is under way is not sent twice");
        let taken = letters.take_for_retry(&[1, 2, 99]).unwrap();
        assert_eq!(
            taken.iter().map(|(letter, _)| (letter.number, letter.replays)).collect::<Vec<_>>(),
            [(1, 1), (2, 1)]
        );
        assert!(letters.show(1).unwrap().unwrap().0.retrying);
        letters.remove(&[1]).unwrap();
        letters.refused_again(&[(2, "again".into(), 3)], Timestamp::from_millis(100)).unwrap();
        let (letter, _) = letters.show(2).unwrap().unwrap();
        assert_eq!((&*letter.reason, letter.attempts, letter.replays, letter.retrying), ("again", 5, 1, false));
        assert_eq!(letters.claim("a", &Which::All), [2]);
        assert_eq!(letters.take_for_retry(&[2]).unwrap()[0].0.replays, 2);
        letters.keep_all("a");
        assert_eq!(letters.claim("a", &Which::All), [2, 3]);
        assert_eq!(offsets(&letters), [2, 3, 4]);
    });
}

#[test]
fn the_oldest_goes_first_and_is_counted() {
    both(|mut letters| {
        letters.limits = DeadLetterLimits { letters: 3, bytes: 1 << 20 };
        add(&letters, "a", 1..=2);
        add(&letters, "a", 3..=5);
        assert_eq!((offsets(&letters), letters.dropped()), (vec![3, 4, 5], 2));
        add(&letters, "a", 6..=10);
        assert_eq!((offsets(&letters), letters.dropped()), (vec![8, 9, 10], 7));
        let size = letters.index.lock().bytes / 3;
        letters.limits = DeadLetterLimits { letters: 100, bytes: 2 * size };
        add(&letters, "a", 11..=11);
        assert_eq!(offsets(&letters), [10, 11]);
        letters.limits.bytes = 1;
        add(&letters, "a", 12..=13);
        assert_eq!(offsets(&letters), [13], "one is kept, however large");
    });
}

#[test]
fn what_is_stored_is_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let open = || DeadLetters::in_directory(directory.path(), LIMITS);
    {
        let mut letters = open();
        letters.limits.letters = 2;
        add(&letters, "a", 1..=3);
        letters.purge(&Which::Numbers(vec![3])).unwrap();
        letters.claim("a", &Which::All);
        letters.take_for_retry(&[2]).unwrap();
    }
    let letters = open();
    assert_eq!((offsets(&letters), letters.dropped(), letters.notice()), (vec![2], 1, None));
    assert_eq!(letters.claim("a", &Which::All), [2], "nothing is under way any more");
    assert_eq!(letters.take_for_retry(&[2]).unwrap()[0].0.replays, 2, "each retry has another number");
    add(&letters, "a", 4..=4);
    assert_eq!(letters.list(None, 9).unwrap()[1].number, 4);
    let bytes = letters.index.lock().bytes;
    assert_eq!(bytes, open_bytes(&letters));
}

/// What the index says when it is read anew.
fn open_bytes(letters: &DeadLetters) -> u64 {
    if let Store::File(file) = &mut *letters.store.lock() {
        file.close();
    }
    letters.list(None, 0).unwrap();
    letters.index.lock().bytes
}

#[test]
fn what_is_no_store_is_set_aside() {
    let garbage: [&[u8]; 3] = [b"this is no database", &[0; 9000], &[0xFF; 100_000]];
    for (n, garbage) in garbage.into_iter().enumerate() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE_NAME);
        std::fs::write(&path, garbage).unwrap();
        let letters = DeadLetters::in_directory(directory.path(), LIMITS);
        let notice = letters.notice().unwrap_or_else(|| panic!("{n} is set aside"));
        assert!(notice.contains("dead-letters.redb.unreadable-1"), "{notice}");
        assert_eq!(std::fs::read(directory.path().join("dead-letters.redb.unreadable-1")).unwrap(), garbage);
        add(&letters, "a", 1..=1);
        assert_eq!(offsets(&letters), [1]);
    }
}

/// Whatever happens to one of its bytes, the file is read as it was, or set aside; nobody panics, nothing is invented.
#[test]
fn a_damaged_file_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE_NAME);
    add(&DeadLetters::in_directory(directory.path(), LIMITS), "a", 1..=20);
    let whole = std::fs::read(&path).unwrap();
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let mut set_aside = 0;
    for at in (0..whole.len()).step_by(whole.len() / 150) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x55;
        std::fs::write(&path, &damaged).unwrap();
        let letters = DeadLetters::in_directory(directory.path(), LIMITS);
        let found = offsets(&letters);
        match letters.notice() {
            None => assert_eq!(found, (1..=20).collect::<Vec<_>>(), "byte {at}"),
            Some(_) => {
                set_aside += 1;
                assert_eq!(found, [0; 0]);
            }
        }
    }
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let letters = DeadLetters::in_directory(directory.path(), LIMITS);
    std::panic::set_hook(hook);
    assert!(letters.notice().is_some() && set_aside > 0);
}

#[test]
fn a_later_layout_is_set_aside() {
    let directory = tempfile::tempdir().unwrap();
    add(&DeadLetters::in_directory(directory.path(), LIMITS), "a", 1..=1);
    file::pretend_later_version(&directory.path().join(FILE_NAME));
    let letters = DeadLetters::in_directory(directory.path(), LIMITS);
    assert!(letters.notice().unwrap().contains("later version"));
    assert_eq!(letters.count(None), 0);
}

#[test]
fn a_full_disk_harms_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk::default();
    let mut file = FileStore::new(directory.path().join(FILE_NAME));
    file.disk = Some(disk.clone());
    let letters = DeadLetters::with_store(Store::File(file), LIMITS);
    add(&letters, "a", 1..=10);
    for round in 0..3 {
        disk.full.store(true, Ordering::Relaxed);
        let error = try_add(&letters, "a", 100..=400).unwrap_err();
        assert!(error.to_string().contains("dead-letters.redb"), "{error}");
        assert!(letters.purge(&Which::All).is_err());
        assert_eq!(letters.count(None), 10 + round, "what was there is there");
        disk.full.store(false, Ordering::Relaxed);
        add(&letters, "a", 11 + round..=11 + round);
        assert_eq!(offsets(&letters), (1..=11 + round).collect::<Vec<_>>());
    }
}

#[test]
fn a_directory_that_is_not_there_yet() {
    let directory = tempfile::tempdir().unwrap();
    let later = directory.path().join("state");
    let letters = DeadLetters::in_directory(&later, LIMITS);
    let error = try_add(&letters, "a", 1..=1).unwrap_err();
    assert_eq!((error.deed, letters.count(None)), ("opened", 0));
    std::fs::create_dir(&later).unwrap();
    add(&letters, "a", 1..=1);
    assert_eq!(letters.count(None), 1);
}
