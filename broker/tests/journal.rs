//! The journal, from outside: what is published is there again, in order; what isn't is told.
#![cfg(feature = "journal")]

mod support;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hookbus_broker::{
    BatchLimit, Broker, BrokerOptions, Delivery, Durability, Journal, JournalError, JournalFault, Message, Offset,
    Origin, Overflow, PublishError, Start, SubscribeOptions, Timestamp, TryPublishError,
};

use support::{FaultyDisk, ManualClock, attach, disk_use, drain, eventually, messages, open, options, payloads};

fn all(name: &str) -> SubscribeOptions {
    SubscribeOptions::new(name).prefix("")
}

#[tokio::test]
async fn a_durable_subscription_goes_on_where_it_was() {
    let dir = tempfile::tempdir().expect("directory");
    let options = SubscribeOptions::new("test").prefix("EVENT VM ");
    let log;
    {
        let broker = open(dir.path());
        log = broker.log_id();
        let mut durable = broker.subscribe_durable(options.clone(), "audit", Start::Latest).expect("subscribe");
        for n in 0..100u32 {
            let key = if n % 2 == 0 { "EVENT VM 7 " } else { "EVENT HOST 7 " };
            broker.publish(Message::new(key, n.to_string())).await.expect("publish");
        }
        let mut got = Vec::new();
        while got.len() < 20 {
            assert!(durable.recv_batch(BatchLimit::messages(20), &mut got).await);
        }
        let got = messages(got);
        assert_eq!((&got[0].payload()[..], &got[19].payload()[..]), (&b"0"[..], &b"38"[..]));
        durable.commit(Offset::new(got[9].offset().get() + 1));
        let again = broker.subscribe_durable(options.clone(), "audit", Start::Latest);
        assert!(matches!(again, Err(JournalError::CursorInUse { .. })));
        drop(durable);
        assert_eq!(broker.stats().abandoned, 0, "who comes next gets the other 30");
    }
    let broker = open(dir.path());
    assert_eq!(broker.log_id(), log);
    let mut durable = broker.subscribe_durable(options, "audit", Start::Latest).expect("subscribe");
    let last = broker.publish(Message::new("EVENT VM 8 ", "last")).await.expect("publish");
    assert_eq!(last.get(), 101, "it was closed in order, so offsets go on without a jump");
    let mut got = Vec::new();
    while got.len() < 41 {
        assert!(durable.recv_batch(BatchLimit::default(), &mut got).await);
    }
    let got = messages(got);
    assert_eq!((got.len(), &got[0].payload()[..], &got[40].payload()[..]), (41, &b"20"[..], &b"last"[..]));
    assert_eq!(got[40].id().log, log);
}

/// Everything about a message comes back as it was.
#[test]
fn a_message_is_read_as_it_was_written() {
    let dir = tempfile::tempdir().expect("directory");
    let origin = Origin { id: "7".into(), source: "/elsewhere".into(), attributes: "{}".into() };
    let big: Vec<u8> = (0..900_000u32).map(|n| n as u8).collect();
    {
        let broker = open(dir.path());
        let small = Message::new("EVENT VM 7 ", "small").with_key("EVENT STATE VM ").with_tag(3);
        broker
            .publish_blocking(small.with_time(Timestamp::from_millis(5)).with_origin(origin.clone()))
            .expect("publish");
        broker.publish_blocking(Message::new("", big.clone())).expect("publish");
        broker.publish_blocking(Message::new("EVENT VM 8 ", "")).expect("publish");
    }
    let broker = open(dir.path());
    let mut durable = broker
        .subscribe_from(SubscribeOptions::new("test").prefix("EVENT STATE ").prefix("EVENT VM 8"), Start::Earliest)
        .expect("subscribe");
    let got = messages(drain(&mut durable));
    assert_eq!(got.len(), 2);
    assert_eq!((got[0].tag(), got[0].time().as_millis(), got[0].origin()), (3, 5, Some(&origin)));
    assert_eq!(got[0].keys().collect::<Vec<_>>(), [&b"EVENT VM 7 "[..], b"EVENT STATE VM "]);
    assert_eq!(got[0].matched_keys().collect::<Vec<_>>(), [b"EVENT STATE VM "]);
    assert_eq!((got[1].offset().get(), got[1].payload().len()), (3, 0));
    let mut durable = broker.subscribe_from(all("test"), Start::Offset(Offset::new(2))).expect("subscribe");
    assert_eq!(messages(drain(&mut durable))[0].payload(), &big);
}

#[test]
fn a_subscription_may_begin_anywhere() {
    let dir = tempfile::tempdir().expect("directory");
    let broker = open(dir.path());
    for n in 0..1000u64 {
        let message = Message::new("k", n.to_string()).with_time(Timestamp::from_millis(10_000 + n));
        broker.publish_now(message).expect("publish");
    }
    broker.publish_blocking(Message::new("k", "1000").with_time(Timestamp::from_millis(20_000))).expect("publish");
    for (start, first) in [
        (Start::Earliest, 0),
        (Start::Offset(Offset::new(501)), 500),
        (Start::Time(Timestamp::from_millis(10_700)), 700),
        (Start::Time(Timestamp::from_millis(15_000)), 1000),
        (Start::Latest, 1001),
        (Start::Time(Timestamp::from_millis(30_000)), 1001),
    ] {
        let mut from = broker.subscribe_from(all("from"), start).expect("subscribe");
        let expected: Vec<String> = (first..=1000).map(|n| n.to_string()).collect();
        assert_eq!(payloads(drain(&mut from)), expected, "{start:?}");
    }
    assert!(broker.journal().expect("attached").cursors().is_empty(), "they leave nothing behind");
}

/// A reader that is slow gets everything, in order, while publishers run flat out.
#[test]
fn spill_loses_nothing() {
    const COUNT: u32 = 20_000;
    let dir = tempfile::tempdir().expect("directory");
    let broker = open(dir.path());
    let mut spilling = broker.subscribe(SubscribeOptions::new("slow").prefix("a").hwm(50).overflow(Overflow::Spill));
    let mut durable = broker
        .subscribe_durable(SubscribeOptions::new("durable").prefix("a").hwm(50), "slow", Start::Latest)
        .expect("subscribe");
    let publisher = std::thread::spawn({
        let broker = broker.clone();
        move || {
            for n in 0..COUNT {
                broker.publish_now(Message::new(if n % 3 == 0 { "b" } else { "a" }, n.to_string())).expect("publish");
            }
        }
    });
    let expected: Vec<String> = (0..COUNT).filter(|n| n % 3 != 0).map(|n| n.to_string()).collect();
    let mut got = Vec::new();
    while got.len() < expected.len() {
        let batch = spilling.recv_batch_blocking(BatchLimit::messages(7)).expect("open");
        for delivery in batch.iter() {
            let message = delivery.message().expect("no gap");
            assert_eq!(message.matched_keys().collect::<Vec<_>>(), [b"a"]);
            got.push(String::from_utf8_lossy(message.payload()).into_owned());
        }
    }
    assert_eq!(got, expected);
    publisher.join().expect("publisher");
    let stats = spilling.handle().stats().expect("it lives");
    assert_eq!((stats.delivered, stats.dropped, stats.queued), (expected.len() as u64, 0, 0));
    let mut got = Vec::new();
    while got.len() < expected.len() {
        assert!(durable.recv_batch_blocking(BatchLimit::messages(7), &mut got));
    }
    assert_eq!(payloads(got), expected);
}

/// One that blocks can't make everybody wait; towards those who don't it spills.
#[test]
fn what_would_block_spills_where_nobody_waits() {
    let dir = tempfile::tempdir().expect("directory");
    let broker = open(dir.path());
    let mut blocking = broker.subscribe(SubscribeOptions::new("slow").prefix("").hwm(10).overflow(Overflow::Block));
    for n in 0..10u32 {
        broker.try_publish(Message::new("k", n.to_string())).expect("there is room");
    }
    let (refused, _) = broker.try_publish(Message::new("k", "waits")).expect_err("it is full");
    assert_eq!(refused, TryPublishError::WouldBlock);
    for n in 10..1000u32 {
        broker.publish_now(Message::new("k", n.to_string())).expect("publish");
    }
    for n in 0..1000u32 {
        let message = blocking.recv_blocking().and_then(Delivery::message).expect("no gap");
        assert_eq!(message.payload(), &n.to_string());
    }
    assert_eq!(blocking.handle().stats().expect("it lives").dropped, 0);
}

/// What a subscription that spilled was not given any more is counted, and told as the gap that it is.
#[test]
fn a_subscription_that_spills_too_far_behind_is_told_so() {
    let dir = tempfile::tempdir().expect("directory");
    let broker = attach(options(dir.path()).max_bytes(4 << 20));
    let mut slow = broker.subscribe(SubscribeOptions::new("slow").prefix("a").hwm(10).overflow(Overflow::Spill));
    let payload = vec![b'.'; 10_000];
    for n in 0..2000u32 {
        let key = if n % 2 == 0 { "a" } else { "b" };
        broker.publish_blocking(Message::new(key, payload.clone())).expect("publish");
    }
    let (mut got, mut told) = (0, 0);
    let mut next = 0;
    while got + told < 1000 {
        match slow.recv_blocking().expect("open") {
            Delivery::Message(message) => {
                assert!(message.offset().get() > next);
                next = message.offset().get();
                got += 1;
            }
            Delivery::Gap(gap) => {
                assert!(gap.first.get() > next && gap.last > gap.first);
                next = gap.last.get();
                told += gap.count;
            }
        }
    }
    assert!(got > 10 && told > 100, "{got} {told}");
    assert!(slow.try_recv().is_err());
    let stats = slow.handle().stats().expect("it lives");
    assert_eq!((stats.matched, stats.delivered, stats.dropped, stats.queued), (1000, got, told, 0));
}

#[test]
fn retention_is_told_as_a_gap() {
    let dir = tempfile::tempdir().expect("directory");
    let small = || options(dir.path()).max_bytes(4 << 20);
    let mut published = VecDeque::new();
    {
        let broker = attach(small());
        let cursor = broker.subscribe_durable(all("lazy"), "lazy", Start::Latest).expect("subscribe");
        drop(cursor);
        for n in 0..1500u32 {
            let mut payload = n.to_string().into_bytes();
            payload.resize(10_000, b' ');
            published.push_back(broker.publish_blocking(Message::new("k", payload)).expect("publish"));
            let stats = broker.journal().expect("attached").stats();
            assert!(stats.disk_bytes <= 4 << 20, "{stats:?}");
        }
        assert!(disk_use(dir.path()) <= 4 << 20);
    }
    let broker = attach(small());
    let mut lazy = broker.subscribe_durable(all("lazy"), "lazy", Start::Latest).expect("subscribe");
    let (lost, unread) = (lazy.probe().lost(), lazy.probe().unread());
    let got = drain(&mut lazy);
    let Delivery::Gap(gap) = &got[0] else { panic!("the first {} are gone", published.len()) };
    assert_eq!(gap.first, published[0]);
    let rest = messages(got[1..].to_vec());
    assert!(rest.len() > 100);
    assert_eq!(gap.last.get() + 1, rest[0].offset().get());
    assert_eq!(gap.count, published.len() as u64 - rest.len() as u64);
    assert_eq!((lost, unread), (gap.count, rest.len() as u64), "it is known before it is read");
    assert!(rest.iter().map(hookbus_broker::Received::offset).eq(published.range(gap.count as usize..).copied()));
}

#[test]
fn what_is_too_old_is_deleted() {
    let dir = tempfile::tempdir().expect("directory");
    let clock = ManualClock::at(1_000_000);
    let old = options(dir.path()).max_age(Duration::from_secs(80)).clock(clock.clone());
    let broker = Broker::new(BrokerOptions::default().clock(clock.clone()));
    broker.attach_journal(Journal::open(old).expect("open")).expect("attach");
    let journal = broker.journal().expect("attached");
    broker.publish_blocking(Message::new("k", "old")).expect("publish");
    clock.advance(30_000);
    // The segment is ended because of its age, so that it can go without what comes next.
    eventually(|| {
        broker.publish_blocking(Message::new("k", "young")).expect("publish");
        journal.stats().segments == 2
    });
    clock.advance(90_000);
    eventually(|| journal.stats().segments == 1);
    let mut rest = broker.subscribe_from(all("rest"), Start::Earliest).expect("subscribe");
    let rest = payloads(drain(&mut rest));
    assert!(!rest.is_empty() && rest.iter().all(|p| p == "young"), "{rest:?}");
}

/// No room: a publisher that can wait is refused and nobody has the message. One that can't goes on; what it published is journaled when
/// there is room again.
#[test]
fn a_full_disk_and_back() {
    let dir = tempfile::tempdir().expect("directory");
    let disk = FaultyDisk::new();
    let broker = attach(options(dir.path()).disk(disk.clone()));
    let mut memory = broker.subscribe(all("memory").hwm(0));
    let mut durable = broker.subscribe_durable(all("durable").hwm(0), "durable", Start::Latest).expect("subscribe");
    disk.set_full(true);
    let payload = vec![b'.'; 100_000];
    let mut accepted = Vec::new();
    let refused = loop {
        match broker.publish_blocking(Message::new("k", payload.clone())) {
            Ok(offset) => accepted.push(offset),
            Err(e) => break e,
        }
    };
    assert_eq!(refused, PublishError::Journal(JournalFault::Full));
    assert!(accepted.len() >= 10, "room that was set aside before is used: {}", accepted.len());
    let (refused, _) = broker.try_publish(Message::new("k", payload.clone())).expect_err("no room");
    assert_eq!(refused, TryPublishError::Refused(PublishError::Journal(JournalFault::Full)));
    let now = broker.publish_now(Message::new("k", payload.clone())).expect("it can't wait");
    accepted.push(now);
    let mut seen = Vec::new();
    while let Ok(delivery) = memory.try_recv() {
        seen.push(delivery.message().expect("no gap").offset());
    }
    assert_eq!(seen, accepted, "what was refused was delivered to nobody");
    let got = drain_to(&mut durable, accepted.len() - 1);
    assert!(got.iter().map(hookbus_broker::Received::offset).eq(accepted[..accepted.len() - 1].iter().copied()));
    assert!(durable.try_recv_batch(BatchLimit::default(), &mut Vec::new()).is_err(), "it isn't in the journal yet");
    assert!(broker.journal().expect("attached").stats().failing.is_some());

    disk.set_full(false);
    let got = drain_to(&mut durable, 1);
    assert_eq!(got[0].offset(), now);
    eventually(|| broker.publish_blocking(Message::new("k", payload.clone())).is_ok());
    eventually(|| broker.journal().expect("attached").stats().failing.is_none());
}

fn drain_to(durable: &mut hookbus_broker::DurableSubscription, count: usize) -> Vec<hookbus_broker::Received> {
    let mut got = Vec::new();
    while got.len() < count {
        assert!(durable.recv_batch_blocking(BatchLimit::default(), &mut got));
    }
    messages(got)
}

/// Beyond what the journal's queue may hold, what publishers that can't wait have published is told as a gap.
#[test]
fn what_the_journal_cannot_take_is_told() {
    let dir = tempfile::tempdir().expect("directory");
    let disk = FaultyDisk::new();
    let broker = attach(options(dir.path()).disk(disk.clone()).queue_bytes(100_000));
    let mut memory = broker.subscribe(all("memory").hwm(0));
    let mut durable = broker.subscribe_durable(all("durable").hwm(3), "durable", Start::Latest).expect("subscribe");
    disk.set_broken(true);
    let payload = vec![b'.'; 1000];
    let first = broker.publish_now(Message::new("k", payload.clone())).expect("publish");
    eventually(|| broker.journal().expect("attached").stats().failing.is_some());
    let refused = broker.publish_blocking(Message::new("k", payload.clone())).expect_err("it fails");
    assert_eq!(refused, PublishError::Journal(JournalFault::Failing(io::ErrorKind::Other)));
    for _ in 0..999 {
        broker.publish_now(Message::new("k", payload.clone())).expect("publish");
    }
    let mut seen = 0;
    while let Ok(delivery) = memory.try_recv() {
        assert!(delivery.message().is_some());
        seen += 1;
    }
    assert_eq!(seen, 1000, "memory has all of them");
    disk.set_broken(false);
    let (mut got, mut told, mut next) = (0, 0, first.get());
    while got + told < 1000 {
        let mut deliveries = Vec::new();
        assert!(durable.recv_batch_blocking(BatchLimit::default(), &mut deliveries));
        for delivery in deliveries {
            match delivery {
                Delivery::Message(message) => {
                    assert_eq!(message.offset().get(), next);
                    (got, next) = (got + 1, next + 1);
                }
                Delivery::Gap(gap) => {
                    assert_eq!((gap.first.get(), gap.count), (next, gap.last.get() + 1 - next));
                    (told, next) = (told + gap.count, gap.last.get() + 1);
                }
            }
        }
    }
    assert!(got >= 90 && told >= 800, "{got} {told}");
    eventually(|| broker.publish_blocking(Message::new("k", "fine")).is_ok());
    drop((memory, durable, broker));
    // The gap is in the file, too.
    let broker = open(dir.path());
    let mut again = broker.subscribe_from(all("again"), Start::Earliest).expect("subscribe");
    let again = drain(&mut again);
    assert_eq!(again.iter().filter(|d| matches!(d, Delivery::Gap(_))).count(), 1);
    assert_eq!(again.len() as u64, got + 2);
}

/// A message that no segment can hold is refused at once.
#[test]
fn a_message_may_be_too_large() {
    let dir = tempfile::tempdir().expect("directory");
    let broker = open(dir.path());
    let mut durable = broker.subscribe_durable(all("durable"), "durable", Start::Latest).expect("subscribe");
    let large = Message::new("k", vec![0; 2 << 20]);
    let refused = broker.publish_blocking(large.clone()).expect_err("too large");
    assert!(matches!(refused, PublishError::Journal(JournalFault::TooLarge { .. })), "{refused}");
    let offset = broker.publish_now(large).expect("it can't wait");
    let mut got = Vec::new();
    assert!(durable.recv_batch_blocking(BatchLimit::default(), &mut got));
    let Delivery::Gap(gap) = got[0] else { panic!("the journal hasn't got it") };
    assert_eq!((gap.first, gap.last, gap.count), (offset, offset, 1));
}

#[test]
fn cursors_are_listed_and_deleted() {
    let dir = tempfile::tempdir().expect("directory");
    let broker = open(dir.path());
    let names: Vec<String> = (0..200).map(|n| format!("bridge {n}/ü")).collect();
    {
        let mut open: Vec<_> = names
            .iter()
            .map(|name| broker.subscribe_durable(all(name), name, Start::Latest).expect("subscribe"))
            .collect();
        broker.publish_blocking(Message::new("k", "one")).expect("publish");
        broker.publish_blocking(Message::new("k", "two")).expect("publish");
        for (n, durable) in open.iter_mut().enumerate() {
            let got = drain_to(durable, 2);
            if n % 2 == 0 {
                durable.commit(Offset::new(got[0].offset().get() + 1));
            }
        }
        assert!(broker.journal().expect("attached").cursors().iter().all(|c| c.in_use));
        let long = "x".repeat(81);
        for bad in ["", long.as_str()] {
            let refused = broker.subscribe_durable(all("bad"), bad, Start::Latest);
            assert!(matches!(refused, Err(JournalError::CursorName { .. })));
        }
    }
    drop(broker);
    let broker = open(dir.path());
    let journal = broker.journal().expect("attached");
    let cursors = journal.cursors();
    assert_eq!(cursors.len(), 200);
    for cursor in &cursors {
        let n: usize =
            cursor.name.split(' ').nth(1).and_then(|n| n.split('/').next()).expect("number").parse().expect("number");
        assert_eq!(cursor.position.get(), [2, 1][n % 2], "{}", cursor.name);
        assert_eq!((cursor.in_use, cursor.lag.messages), (false, 3 - cursor.position.get()));
    }
    assert!(matches!(journal.delete_cursor("none"), Err(JournalError::NoCursor { .. })));
    journal.delete_cursor(&names[7]).expect("delete");
    assert_eq!(journal.cursors().len(), 199);
    // A new one of that name begins where it is told to.
    let durable = broker.subscribe_durable(all("new"), &names[7], Start::Latest).expect("subscribe");
    assert_eq!(durable.position().get(), 3);
}

/// The cursor of a subscription that waits for something rare follows the head, and is where it should be after a restart.
#[test]
fn a_cursor_of_rare_messages_follows() {
    let dir = tempfile::tempdir().expect("directory");
    {
        let broker = open(dir.path());
        let rare = SubscribeOptions::new("rare").prefix("rare");
        let mut durable = broker.subscribe_durable(rare, "rare", Start::Latest).expect("subscribe");
        assert!(durable.try_recv_batch(BatchLimit::default(), &mut Vec::new()).is_err());
        for _ in 0..1000 {
            broker.publish_now(Message::new("often", "")).expect("publish");
        }
        broker.publish_blocking(Message::new("often", "")).expect("publish");
        assert!(durable.try_recv_batch(BatchLimit::default(), &mut Vec::new()).is_err());
        assert_eq!(durable.position().get(), 1002);
        for _ in 0..1000 {
            broker.publish_now(Message::new("often", "")).expect("publish");
        }
        drop(broker);
        drop(durable);
    }
    let broker = open(dir.path());
    assert_eq!(broker.journal().expect("attached").cursors()[0].position.get(), 2002);
}

/// Whoever looks sees that one that waits for something rare has nothing to do; and it has lost nothing when what isn't for it is deleted,
/// whether it is ended before the journal or not.
#[test]
fn a_subscription_of_rare_messages_is_not_behind() {
    let dir = tempfile::tempdir().expect("directory");
    let small = || attach(options(dir.path()).max_bytes(4 << 20));
    let rare = || SubscribeOptions::new("rare").prefix("rare");
    for round in 0..3 {
        let broker = small();
        let mut durable = broker.subscribe_durable(rare(), "rare", Start::Latest).expect("subscribe");
        let probe = durable.probe();
        assert!(
            durable.try_recv_batch(BatchLimit::default(), &mut Vec::new()).is_err(),
            "round {round}: nothing is lost"
        );
        for _ in 0..800 {
            broker.publish_blocking(Message::new("often", vec![b'x'; 10_000])).expect("publish");
        }
        assert_eq!((probe.unread(), probe.lost()), (0, 0));
        let cursor = broker.journal().expect("attached").cursors().remove(0);
        assert_eq!((cursor.position.get(), cursor.lag.messages), (broker.last_offset().get() + 1, 0));
        broker.publish_blocking(Message::new("rare", "")).expect("publish");
        assert_eq!(probe.unread(), 1);
        let mut got = Vec::new();
        assert!(durable.recv_batch_blocking(BatchLimit::default(), &mut got));
        let [rare] = &messages(got)[..] else { panic!("it is alone") };
        durable.commit(Offset::new(rare.offset().get() + 1));
        assert!(durable.try_recv_batch(BatchLimit::default(), &mut Vec::new()).is_err());
        for _ in 0..800 {
            broker.publish_blocking(Message::new("often", vec![b'x'; 10_000])).expect("publish");
        }
        drop(durable);
    }
}

/// Offsets that are passed over after a crash are nobody's, and don't count as waiting.
#[test]
fn a_jump_of_offsets_is_not_a_lag() {
    let (dir, crashed) = (tempfile::tempdir().expect("directory"), tempfile::tempdir().expect("directory"));
    let copy = |from: &std::path::Path, to: &std::path::Path| {
        let status = std::process::Command::new("cp").arg("-a").arg(from.join(".")).arg(to).status();
        assert!(status.expect("cp").success());
    };
    let mut dirs = (dir.path(), crashed.path());
    for crash in 1..=4u64 {
        let broker = open(dirs.0);
        let durable = broker.subscribe_durable(all("late"), "late", Start::Earliest).expect("subscribe");
        assert_eq!(durable.probe().unread(), (crash - 1) * 10);
        for n in 0..10 {
            // The last ones are of another segment: what lies between the others' isn't looked at any more when it is opened.
            let payload = if crash < 4 { n.to_string().into_bytes() } else { vec![b'.'; 900_000] };
            broker.publish_blocking(Message::new("k", payload)).expect("publish");
        }
        assert_eq!((durable.probe().unread(), durable.lag().messages), (crash * 10, crash * 10));
        assert_eq!(crash == 1, broker.last_offset().get() == 10, "offsets have jumped");
        std::fs::remove_dir_all(dirs.1).expect("the copy before is gone");
        std::fs::create_dir(dirs.1).expect("directory");
        copy(dirs.0, dirs.1);
        dirs = (dirs.1, dirs.0);
    }
    let broker = open(dirs.0);
    let mut late = broker.subscribe_durable(all("late"), "late", Start::Latest).expect("subscribe");
    assert!(broker.journal().expect("attached").stats().segments > 1);
    assert_eq!(late.lag().messages, 40, "what an older segment has passed over is known");
    assert_eq!(messages(drain(&mut late)).len(), 40);
}

/// A journal that comes late gets what was kept for it, and every id is its own.
#[test]
fn a_journal_may_come_late() {
    let dir = tempfile::tempdir().expect("directory");
    let log = {
        let broker = open(dir.path());
        for _ in 0..10 {
            broker.publish_blocking(Message::new("k", "before")).expect("publish");
        }
        broker.log_id()
    };
    let broker = Broker::default();
    let mut memory = broker.subscribe(all("memory"));
    broker.publish_blocking(Message::new("k", "lost")).expect("publish");
    let hold = broker.hold_for_journal().expect("hold");
    for n in 0..5 {
        broker.publish_blocking(Message::new("k", format!("kept {n}"))).expect("publish");
    }
    hold.attach(Journal::open(options(dir.path())).expect("open")).expect("attach");
    broker.publish_blocking(Message::new("k", "after")).expect("publish");
    assert!(matches!(broker.hold_for_journal(), Err(JournalError::Attached)));

    let mut ids = Vec::new();
    while let Ok(delivery) = memory.try_recv() {
        ids.push(delivery.message().expect("no gap").id());
    }
    assert_eq!(ids.len(), 7);
    assert!(ids[..6].iter().all(|id| id.log != log) && ids[6].log == log);
    assert!(ids.is_sorted_by_key(|id| id.offset));
    let mut durable = broker.subscribe_from(all("all"), Start::Earliest).expect("subscribe");
    let got = messages(drain(&mut durable));
    let offsets: Vec<u64> = got.iter().map(|m| m.offset().get()).collect();
    assert_eq!(offsets, (1..=16).collect::<Vec<_>>());
    assert!(got.iter().all(|m| m.id().log == log));
    assert_eq!((&got[10].payload()[..], &got[15].payload()[..]), (&b"kept 0"[..], &b"after"[..]));
    assert_eq!(got[15].id(), ids[6]);
}

/// A journal that can't be written when it is attached gives back what keeps messages for it, and what was taken by then is told to the next.
#[test]
fn what_was_kept_for_a_journal_that_fails_is_told_to_the_next() {
    let (dir, other) = (tempfile::tempdir().expect("directory"), tempfile::tempdir().expect("directory"));
    let disk = FaultyDisk::new();
    let broker = Broker::default();
    let hold = broker.hold_for_journal().expect("hold");
    for n in 0..3 {
        broker.publish_now(Message::new("k", format!("early {n}"))).expect("publish");
    }
    let journal = Journal::open(options(dir.path()).disk(Arc::clone(&disk) as _)).expect("open");
    disk.set_broken(true);
    let (error, hold) = hold.attach(journal).expect_err("it can't be written");
    assert!(error.to_string().contains("this disk is broken"), "{error}");
    assert!(broker.journal().is_none());
    broker.publish_now(Message::new("k", "late")).expect("publish");
    let hold = hold.expect("it comes back");
    hold.attach(Journal::open(options(other.path())).expect("open")).expect("attach");
    let mut durable = broker.subscribe_from(all("all"), Start::Earliest).expect("subscribe");
    let got = drain(&mut durable);
    assert!(
        matches!(&got[..], [Delivery::Gap(gap), Delivery::Message(late)]
            if gap.count == 3 && &late.payload()[..] == b"late" && late.offset() > gap.last),
        "{got:?}"
    );
}

#[test]
fn one_at_a_time_and_of_one_version() {
    let dir = tempfile::tempdir().expect("directory");
    let journal = Journal::open(options(dir.path())).expect("open");
    assert!(journal.report().created && journal.report().clean);
    assert!(matches!(Journal::open(options(dir.path())), Err(JournalError::InUse { .. })));
    drop(journal);
    let small = Journal::open(options(dir.path()).max_bytes(1 << 20));
    assert!(matches!(small, Err(JournalError::TooSmall { .. })));
    let broker = Broker::default();
    assert!(matches!(broker.subscribe_from(all("x"), Start::Latest), Err(JournalError::None)));
    broker.attach_journal(Journal::open(options(dir.path())).expect("open")).expect("attach");
    let other = tempfile::tempdir().expect("directory");
    let second = broker.attach_journal(Journal::open(options(other.path())).expect("open"));
    assert!(matches!(second, Err(JournalError::Attached)));
}

/// Publishers that share an fsync, and one that waits for it alone.
#[test]
fn fsync_is_shared() {
    let dir = tempfile::tempdir().expect("directory");
    let disk = FaultyDisk::new();
    let broker = attach(options(dir.path()).durability(Durability::Fsync).disk(disk.clone()));
    let before = disk.syncs();
    let publishers: Vec<_> = (0..8)
        .map(|_| {
            let broker = broker.clone();
            std::thread::spawn(move || {
                for _ in 0..50 {
                    broker.publish_blocking(Message::new("k", "x")).expect("publish");
                }
            })
        })
        .collect();
    publishers.into_iter().for_each(|p| p.join().expect("publisher"));
    let syncs = disk.syncs() - before;
    assert!((1..=405).contains(&syncs), "{syncs}");
    let mut durable = broker.subscribe_from(all("all"), Start::Earliest).expect("subscribe");
    assert_eq!(drain(&mut durable).len(), 400);
}

/// A closed broker lets its journal be written to the end, and publishers and readers end.
#[tokio::test]
async fn closing_writes_what_is_queued() {
    let dir = tempfile::tempdir().expect("directory");
    let broker = open(dir.path());
    let mut durable = broker.subscribe_durable(all("all"), "all", Start::Latest).expect("subscribe");
    let mut batch: VecDeque<Message> = (0..3000).map(|n| Message::new("k", format!("{n}"))).collect();
    assert_eq!(broker.publish_batch(&mut batch).await, Ok(3000));
    for _ in 0..1000 {
        broker.publish_now(Message::new("k", "now")).expect("publish");
    }
    broker.close();
    assert_eq!(broker.publish(Message::new("k", "late")).await, Err(PublishError::Closed));
    let mut got = Vec::new();
    while durable.recv_batch(BatchLimit::default(), &mut got).await {}
    assert_eq!(got.len(), 4000);
    drop((broker, durable));
    let journal = Journal::open(options(dir.path())).expect("open");
    assert!(journal.report().clean, "{:?}", journal.report());
}

/// A publish whose future is dropped while it waits for the disk stays published.
#[tokio::test]
async fn a_publish_that_is_cancelled_late_is_published() {
    let dir = tempfile::tempdir().expect("directory");
    let disk = FaultyDisk::new();
    let broker = attach(options(dir.path()).disk(disk.clone()));
    disk.set_broken(true);
    let publish = broker.publish(Message::new("k", "kept"));
    assert!(tokio::time::timeout(Duration::from_millis(100), publish).await.is_err());
    disk.set_broken(false);
    let mut durable = broker.subscribe_from(all("all"), Start::Earliest).expect("subscribe");
    let mut got = Vec::new();
    assert!(durable.recv_batch(BatchLimit::default(), &mut got).await);
    assert_eq!(payloads(got), ["kept"]);
    let _ = Arc::strong_count(&disk);
}

/// Publishers that write for themselves, those that wait for the thread and those that don't wait at all share one log, over a disk that
/// breaks now and then: what was acknowledged is there once, in each publisher's order.
#[test]
fn publishers_of_all_kinds_share_the_log() {
    const EACH: u64 = 3000;
    let dir = tempfile::tempdir().expect("directory");
    let disk = FaultyDisk::new();
    let broker = attach(options(dir.path()).disk(disk.clone()));
    let message = |who: u64, n: u64| Message::new("k", format!("{who}/{n}/{}", ".".repeat((n % 700) as usize)));
    let refused = |e: PublishError| assert!(matches!(e, PublishError::Journal(JournalFault::Failing(_))), "{e}");
    std::thread::scope(|scope| {
        let mut publishers = Vec::new();
        for who in 0..3 {
            let broker = &broker;
            publishers.push(scope.spawn(move || {
                for n in 0..EACH {
                    while let Err(e) = broker.publish_blocking(message(who, n)) {
                        refused(e);
                    }
                }
            }));
        }
        publishers.push(scope.spawn(|| {
            let mut batch: VecDeque<_> = (0..EACH).map(|n| message(3, n)).collect();
            while !batch.is_empty() {
                let mut part: VecDeque<_> = batch.drain(..batch.len().min(70)).collect();
                while let Err(e) = broker.publish_batch_blocking(&mut part) {
                    refused(e);
                }
                part.into_iter().rev().for_each(|m| batch.push_front(m));
            }
        }));
        publishers.push(scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
            for n in 0..EACH {
                while let Err(e) = runtime.block_on(broker.publish(message(4, n))) {
                    refused(e);
                }
            }
        }));
        publishers.push(scope.spawn(|| {
            for n in 0..EACH {
                broker.publish_now(message(5, n)).expect("publish");
                std::thread::yield_now();
            }
        }));
        let finished = || publishers.iter().all(std::thread::ScopedJoinHandle::is_finished);
        while !finished() {
            disk.set_broken(true);
            eventually(|| broker.journal().expect("attached").stats().failing.is_some() || finished());
            disk.set_broken(false);
            let before = broker.stats().published;
            eventually(|| broker.stats().published > before + 500 || finished());
        }
    });
    let mut durable = broker.subscribe_from(all("all"), Start::Earliest).expect("subscribe");
    let got = payloads(drain(&mut durable));
    let mut next = [0; 6];
    for payload in &got {
        let mut parts = payload.split('/').map(str::parse::<u64>);
        let (Some(Ok(who)), Some(Ok(n))) = (parts.next(), parts.next()) else { panic!("{payload}") };
        assert_eq!(n, std::mem::replace(&mut next[who as usize], n + 1), "of publisher {who}");
    }
    assert_eq!(next, [EACH; 6]);
    broker.close_journal();
    drop((broker, durable));
    assert!(Journal::open(options(dir.path())).expect("open").report().clean);
}

/// Who writes for himself on a disk that is broken waits; where the broker is closed meanwhile, he is told in the end that it failed, and
/// so is who waited behind him.
#[test]
fn a_publisher_is_told_when_writing_is_given_up() {
    let dir = tempfile::tempdir().expect("directory");
    let disk = FaultyDisk::new();
    let broker = attach(options(dir.path()).disk(disk.clone()));
    broker.publish_blocking(Message::new("k", "written")).expect("publish");
    let mut memory = broker.subscribe(all("memory"));
    disk.set_broken(true);
    std::thread::scope(|scope| {
        let publisher = scope.spawn(|| broker.publish_blocking(Message::new("k", "not written")));
        memory.recv_blocking().expect("it was accepted");
        broker.close_journal();
        let error = publisher.join().expect("publisher").expect_err("it isn't in the journal");
        assert_eq!(error, PublishError::Journal(JournalFault::Closed));
    });
    disk.set_broken(false);
    drop((broker, memory));
    let broker = open(dir.path());
    let mut durable = broker.subscribe_from(all("all"), Start::Earliest).expect("subscribe");
    assert_eq!(payloads(drain(&mut durable)), ["written"]);
}
