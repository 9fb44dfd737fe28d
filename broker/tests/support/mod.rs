//! What the journal's tests have in common.
#![allow(dead_code, unreachable_pub, reason = "each test uses a part")]

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hookbus_broker::{
    BatchLimit, Broker, Clock, Delivery, Disk, DurableSubscription, Journal, JournalOptions, Offset, Received,
    SystemDisk, Timestamp,
};

/// A small journal.
pub fn options(dir: &Path) -> JournalOptions {
    JournalOptions::new(dir).max_bytes(16 << 20)
}

/// A broker with that journal.
pub fn attach(options: JournalOptions) -> Broker {
    let broker = Broker::default();
    broker.attach_journal(Journal::open(options).expect("open")).expect("attach");
    broker
}

/// A broker with a small journal in that directory.
pub fn open(dir: &Path) -> Broker {
    attach(options(dir))
}

/// Waits for something to become true.
pub fn eventually(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "it did not come true in time");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What the segments of a journal take on the disk, in bytes.
pub fn disk_use(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(dir.join("segments")) else { return 0 };
    entries.filter_map(|e| e.ok()?.metadata().ok()).map(|m| m.blocks() * 512).sum()
}

/// All that the journal has for a subscription; it is committed.
pub fn drain(durable: &mut DurableSubscription) -> Vec<Delivery<Received>> {
    let mut got = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let end = durable.try_recv_batch(BatchLimit::default(), &mut got).is_err();
        if let Some(last) = got.last() {
            durable.commit(match last {
                Delivery::Message(message) => Offset::new(message.offset().get() + 1),
                Delivery::Gap(gap) => Offset::new(gap.last.get() + 1),
            });
        }
        if end && durable.lag().messages == 0 {
            return got;
        }
        assert!(Instant::now() < deadline, "there is more to come, and it doesn't");
        if end {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The messages, where there are no gaps.
pub fn messages(deliveries: Vec<Delivery<Received>>) -> Vec<Received> {
    let message = |d: Delivery<Received>| match d {
        Delivery::Message(message) => message,
        Delivery::Gap(gap) => panic!("{gap:?}"),
    };
    deliveries.into_iter().map(message).collect()
}

/// Their payloads, as text.
pub fn payloads(deliveries: Vec<Delivery<Received>>) -> Vec<String> {
    messages(deliveries).iter().map(|m| String::from_utf8_lossy(m.payload()).into_owned()).collect()
}

/// A disk that can be full, or broken.
#[derive(Debug, Default)]
pub struct FaultyDisk {
    full: AtomicBool,
    broken: AtomicBool,
    syncs: AtomicU64,
}

impl FaultyDisk {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    pub fn set_full(&self, full: bool) {
        self.full.store(full, Ordering::SeqCst);
    }

    pub fn set_broken(&self, broken: bool) {
        self.broken.store(broken, Ordering::SeqCst);
    }

    pub fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::SeqCst)
    }

    fn check(&self) -> io::Result<()> {
        if self.broken.load(Ordering::SeqCst) { Err(io::Error::other("this disk is broken")) } else { Ok(()) }
    }
}

impl Disk for FaultyDisk {
    fn allocate(&self, file: &File, bytes: u64) -> io::Result<()> {
        self.check()?;
        if self.full.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        SystemDisk.allocate(file, bytes)
    }

    fn write_at(&self, file: &File, bytes: &[u8], position: u64) -> io::Result<()> {
        if self.check().is_err() {
            // As a disk that breaks while it writes.
            let _ = SystemDisk.write_at(file, &bytes[..bytes.len() / 2], position);
        }
        self.check()?;
        SystemDisk.write_at(file, bytes, position)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        self.check()?;
        self.syncs.fetch_add(1, Ordering::SeqCst);
        SystemDisk.sync(file)
    }
}

/// A clock that is set by hand.
#[derive(Debug)]
pub struct ManualClock(AtomicU64);

impl ManualClock {
    pub fn at(millis: u64) -> Arc<Self> {
        Arc::new(ManualClock(AtomicU64::new(millis)))
    }

    pub fn advance(&self, millis: u64) {
        self.0.fetch_add(millis, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.0.load(Ordering::SeqCst))
    }
}
