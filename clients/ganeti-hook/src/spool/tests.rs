use std::convert::Infallible;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicUsize, Ordering};

use tempfile::TempDir;

use super::*;
use crate::report::Environment;

fn spool() -> (TempDir, Spool) {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::new(dir.path().join("deep/spool"));
    (dir, spool)
}

/// A report with a time of its own.
fn report(time_ns: u64) -> Report {
    Report { time_ns, ..Report::new("n1", &Environment::default()) }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Takes everything, and notes the bodies.
fn taker(bodies: &mut Vec<String>) -> impl FnMut(&Batch) -> Result<Receipt, Infallible> {
    |batch| {
        bodies.push(String::from_utf8(batch.body.clone()).unwrap());
        Ok(Receipt { accepted: batch.len() as u64, refused: Vec::new() })
    }
}

fn no_news(what: &str) {
    panic!("{what}");
}

#[test]
fn what_was_put_comes_in_the_order_of_its_times_and_is_gone_then() {
    let (_dir, spool) = spool();
    assert!(spool.is_empty().unwrap());
    assert!(spool.try_lock().unwrap().is_none(), "there is no spool yet");
    let reports: Vec<Report> = [30, 10, 20].map(report).into();
    for report in &reports {
        spool.put(report).unwrap();
    }
    let file = spool.dir().join(format!("00000000000000000010-{}.json", reports[1].id));
    assert_eq!(fs::read(&file).unwrap(), reports[1].line);
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o640);
    assert_eq!(fs::metadata(spool.dir()).unwrap().mode() & 0o7777, 0o750);
    let bytes = reports.iter().map(|report| report.line.len() as u64).sum();
    assert_eq!(spool.contents().unwrap(), Contents { reports: 3, bytes, oldest_ns: Some(10), refused: 0, lost: 0 });

    let mut bodies = Vec::new();
    let done = spool.forward(taker(&mut bodies), || true, no_news).unwrap();
    assert_eq!(done, Forwarded { accepted: 3, refused: 0, busy: false });
    let lines = [1, 2, 0].map(|i: usize| String::from_utf8(reports[i].line.clone()).unwrap() + "\n");
    assert_eq!(bodies, [lines.concat()]);
    assert!(spool.is_empty().unwrap());
    assert_eq!(names(spool.dir()), ["lock", "lost"]);
}

#[test]
fn batches_have_a_bound_and_a_larger_report_goes_alone() {
    let (_dir, spool) = spool();
    let large = |time, bytes: usize| {
        let mut report = report(time);
        report.line = format!("{{\"id\":\"{}\",\"x\":\"{}\"}}", report.id, "x".repeat(bytes)).into_bytes();
        report
    };
    for (time, bytes) in [(1, 400_000), (2, 400_000), (3, 400_000), (4, 2_000_000), (5, 1)] {
        spool.put(&large(time, bytes)).unwrap();
    }
    let mut bodies = Vec::new();
    spool.forward(taker(&mut bodies), || true, no_news).unwrap();
    let counts: Vec<usize> = bodies.iter().map(|body| body.lines().count()).collect();
    assert_eq!(counts, [2, 1, 1, 1]);
    assert!(spool.dir().join(LARGE).exists());
    assert!(bodies.iter().all(|body| body.len() <= MAX_BATCH_BYTES || body.lines().count() == 1));
}

#[test]
fn what_is_not_accepted_stays() {
    let (_dir, spool) = spool();
    let reports = [1, 2, 3].map(report);
    for report in &reports {
        spool.put(report).unwrap();
    }
    let fails = |_: &Batch| Err(io::Error::other("no"));
    assert!(matches!(spool.forward(fails, || true, no_news), Err(ForwardError::Send(_))));
    // Too few, too many, and of somebody else.
    for (accepted, refused) in [(2, vec![]), (3, vec![reports[0].id.clone()]), (2, vec!["0".repeat(32)])] {
        let receipt = Receipt {
            accepted,
            refused: refused.into_iter().map(|id| Refusal { id, problem: String::new() }).collect(),
        };
        let forwarded = spool.forward(|_| Ok::<_, Infallible>(receipt.clone()), || true, no_news);
        assert!(matches!(forwarded, Err(ForwardError::Receipt(_))), "{receipt:?}");
    }
    let late = spool.forward(|_| -> Result<Receipt, Infallible> { panic!("the time is over") }, || false, no_news);
    assert_eq!(late.unwrap(), Forwarded::default());
    assert_eq!(spool.contents().unwrap().reports, 3);

    // One is refused for good: it is put aside, told, and doesn't come again.
    let mut told = Vec::new();
    let receipt = Receipt { accepted: 2, refused: vec![Refusal { id: reports[1].id.clone(), problem: "odd".into() }] };
    let done = spool.forward(|_| Ok::<_, Infallible>(receipt.clone()), || true, |what| told.push(what.to_owned()));
    assert_eq!(done.unwrap(), Forwarded { accepted: 2, refused: 1, busy: false });
    assert!(told.len() == 1 && told[0].contains(&reports[1].id) && told[0].contains("odd"), "{told:?}");
    assert_eq!(
        fs::read(spool.dir().join("refused").join(names(&spool.dir().join("refused"))[0].clone())).unwrap(),
        reports[1].line
    );
    assert_eq!((spool.contents().unwrap().reports, spool.contents().unwrap().refused), (0, 1));
}

#[test]
fn what_is_no_report_blocks_nobody() {
    let (_dir, spool) = spool();
    let good = report(9);
    spool.put(&good).unwrap();
    let file = |number: u64, id: &str, text: &str| {
        fs::write(spool.dir().join(format!("{number:020}-{id}.json")), text).unwrap();
    };
    let (torn, empty, other, two) = ("1".repeat(32), "2".repeat(32), "3".repeat(32), "4".repeat(32));
    file(1, &torn, &format!("{{\"id\":\"{torn}\",\"no"));
    file(2, &empty, "");
    file(3, &other, &format!("{{\"id\":\"{torn}\"}}"));
    file(4, &two, &format!("{{\"id\":\"{two}\"}}\n{{}}"));
    fs::create_dir(spool.dir().join(format!("{:020}-{}.json", 5, "5".repeat(32)))).unwrap();
    for name in ["readme.json", "1-2.json", ".x.tmp", "00000000000000000001-ABCDEFABCDEFABCDEFABCDEFABCDEFAB.json"] {
        fs::write(spool.dir().join(name), "not ours").unwrap();
    }
    let mut bodies = Vec::new();
    let mut told = Vec::new();
    let done = spool.forward(taker(&mut bodies), || true, |what| told.push(what.to_owned())).unwrap();
    assert_eq!(done.accepted, 1);
    assert_eq!(bodies, [String::from_utf8(good.line).unwrap() + "\n"]);
    assert_eq!(told.len(), 5, "{told:?}");
    assert!(told[4].contains("no ordinary file"), "{told:?}");
    assert_eq!(names(&spool.dir().join("refused")).len(), 4);
}

#[test]
fn what_is_refused_is_kept_within_bounds() {
    let (_dir, spool) = spool();
    let mut large = report(0);
    large.line = vec![b'x'; 1 << 20];
    for time in 1..=6 {
        spool.put_refused(&Report { time_ns: time, ..large.clone() }).unwrap();
    }
    let kept: Vec<String> = names(&spool.dir().join("refused")).iter().map(|name| name[19..20].to_owned()).collect();
    assert_eq!(kept, ["3", "4", "5", "6"]);
}

#[test]
fn a_full_spool_refuses_and_counts_and_the_daemon_is_told_once() {
    let (_dir, spool) = spool();
    let spool = spool.bounded(1000);
    let mut put = 0;
    let full = loop {
        match spool.put(&report(put)) {
            Ok(()) => put += 1,
            Err(e) => break e,
        }
    };
    assert!(put > 3 && matches!(full, PutError::Full { .. }), "{put}: {full}");
    assert!(full.to_string().contains("is full"), "{full}");
    assert_eq!(spool.contents().unwrap().reports, put);
    assert!(names(spool.dir()).iter().all(|name| !name.ends_with(".tmp")), "{:?}", names(spool.dir()));
    assert!(spool.untold().is_none());
    for _ in 0..11 {
        spool.count_lost().unwrap();
    }
    let untold = spool.untold().unwrap();
    assert_eq!(untold.count(), 11);
    assert!(spool.untold().is_none(), "somebody is telling");
    // One more while the daemon is being told.
    spool.count_lost().unwrap();
    untold.told().unwrap();
    assert_eq!(spool.untold().unwrap().count(), 1);
    assert_eq!(spool.lost(), 1, "it was not told");
}

#[test]
fn many_writers_stay_within_the_bound() {
    let (_dir, spool) = spool();
    let size = report(0).line.len() as u64;
    let spool = spool.bounded(size * 20);
    let accepted = AtomicUsize::new(0);
    const WRITERS: u64 = 8;
    thread_each(WRITERS as usize, |_| {
        for _ in 0..10 {
            if spool.put(&Report::new("n1", &Environment::default())).is_ok() {
                accepted.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let contents = spool.contents().unwrap();
    assert_eq!(contents.reports, accepted.into_inner() as u64);
    // Each may have missed what the others renamed meanwhile.
    assert!((1..=20 + WRITERS).contains(&contents.reports), "{contents:?}");
}

#[test]
fn a_temporary_file_that_is_left_over_goes_and_a_young_one_counts() {
    let (_dir, spool) = spool();
    spool.put(&report(1)).unwrap();
    let (old, young) = (spool.dir().join(".old.tmp"), spool.dir().join(".young.tmp"));
    for path in [&old, &young] {
        fs::write(path, "x".repeat(500)).unwrap();
    }
    let past = SystemTime::now() - LEFT_OVER_AFTER - Duration::from_secs(60);
    File::options().write(true).open(&old).unwrap().set_modified(past).unwrap();
    let spool = spool.bounded(500 + 3 * 150);
    spool.put(&report(2)).unwrap();
    assert!(!old.exists() && young.exists());
    let held = spool.bounded(500).put(&report(3)).unwrap_err();
    assert!(matches!(held, PutError::Full { .. }), "{held}");
}

#[test]
fn who_writes_while_another_forwards_is_seen_by_its_last_look() {
    let (_dir, spool) = spool();
    let sent = AtomicUsize::new(0);
    const WRITERS: usize = 8;
    const EACH: usize = 40;
    thread_each(WRITERS, |_| {
        for _ in 0..EACH {
            spool.put(&Report::new("n1", &Environment::default())).unwrap();
            let send = |batch: &Batch| {
                sent.fetch_add(batch.len(), Ordering::Relaxed);
                Ok::<_, Infallible>(Receipt { accepted: batch.len() as u64, refused: Vec::new() })
            };
            spool.forward(send, || true, no_news).unwrap();
        }
    });
    assert!(spool.is_empty().unwrap(), "{:?}", names(spool.dir()));
    assert_eq!(sent.into_inner(), WRITERS * EACH, "each once");
}

/// As long as reports are small, their number shows that there is room; their sizes count where it doesn't.
#[test]
fn small_reports_are_counted_and_large_ones_measured() {
    let (_dir, small) = spool();
    let small = small.bounded(4 * SMALL_BYTES);
    for time in 0..8 {
        small.put(&report(time)).unwrap();
    }
    // Of these, two have room, although six files that are no larger than 16 KiB would.
    let (_dir, spool) = spool();
    let spool = spool.bounded(6 * SMALL_BYTES);
    let mut large = report(0);
    large.line = vec![b'x'; 3 * SMALL_BYTES as usize];
    let put = |time| spool.put(&Report { time_ns: time, ..large.clone() });
    assert!(put(1).is_ok() && put(2).is_ok());
    assert!(matches!(put(3), Err(PutError::Full { .. })));
}

#[test]
fn a_link_is_not_followed() {
    let (dir, spool) = spool();
    spool.put(&report(1)).unwrap();
    let secret = dir.path().join("secret");
    let id = "6".repeat(32);
    fs::write(&secret, format!("{{\"id\":\"{id}\"}}")).unwrap();
    std::os::unix::fs::symlink(&secret, spool.dir().join(format!("{:020}-{id}.json", 2))).unwrap();
    fs::remove_file(spool.dir().join(LOST)).unwrap();
    std::os::unix::fs::symlink(&secret, spool.dir().join(LOST)).unwrap();
    let mut bodies = Vec::new();
    let mut told = Vec::new();
    spool.forward(taker(&mut bodies), || true, |what| told.push(what.to_owned())).unwrap();
    assert_eq!((bodies.len(), bodies[0].lines().count(), told.len()), (1, 1, 1), "{told:?}");
    assert!(spool.count_lost().is_err());
    assert_eq!(fs::read_to_string(&secret).unwrap(), format!("{{\"id\":\"{id}\"}}"));
}

fn thread_each(count: usize, work: impl Fn(usize) + Sync) {
    std::thread::scope(|scope| {
        for number in 0..count {
            let work = &work;
            scope.spawn(move || work(number));
        }
    });
}
