//! What Ganeti tells: reports, environments of any shape, job files. Nothing panics; a report is found again in the data of its event, and nothing of an
//! environment is lost; what is told of a job is JSON.

#![no_main]

use std::time::{Duration, SystemTime};

use hookbus_bridges::ganeti::{HookRun, Job, Look, Operations, Remembered, Report};
use hookbus_broker::Offset;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|input: &[u8]| {
    let Some((&what, rest)) = input.split_first() else { return };
    match what % 3 {
        0 => reports(rest),
        1 => environment(rest),
        _ => job(rest),
    }
});

/// One on each line; each is told twice.
fn reports(lines: &[u8]) {
    let mut operations = Operations::new(Duration::from_secs(60));
    for (line, offset) in lines.split(|&byte| byte == b'\n').take(16).zip(0..) {
        let Ok(report) = Report::parse(line) else { continue };
        let data = report.data();
        assert_eq!(Report::of_data(&data).as_ref(), Some(&report));
        run(&report.run, &data);
        if operations.look(&report) != Look::New {
            continue;
        }
        operations.remember(Remembered::of(&report, Offset::new(offset), SystemTime::UNIX_EPOCH.into()));
        assert_eq!(operations.look(&report), Look::Repeated(Offset::new(offset)));
    }
}

/// Lines `NAME=value`; those of every hook are there.
fn environment(lines: &[u8]) {
    let common = ["GANETI_HOOKS_PATH=instance-start", "GANETI_HOOKS_PHASE=post"].map(str::to_owned);
    let lines = String::from_utf8_lossy(lines);
    let given = lines.split('\n').map(|line| format!("GANETI_{line}"));
    let variables = common.into_iter().chain(given);
    let variables =
        variables.filter_map(|line| line.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())));
    let Ok(hook) = HookRun::new(variables, Some("n1".into())) else { return };
    let data = hook.data();
    assert_eq!(data["env"], serde_json::to_value(hook.environment()).expect("texts"));
    run(&hook, &data);
}

fn run(run: &HookRun, data: &Value) {
    let names = (run.primary(), run.secondaries(), run.involved());
    assert!(names.2.len() <= run.environment().values().map(String::len).sum());
    assert_eq!(run.digest(), run.clone().digest());
    // Devices have a bound, whatever their numbers are.
    let (of, made): (usize, usize) =
        (run.environment().iter().map(|(n, v)| n.len() + v.len()).sum(), data.to_string().len());
    assert!(made <= 32 * of + 32 * 1024, "{of} bytes of variables make {made} of data");
    let message = run.message(data);
    assert_eq!(message.keys().count(), 2);
    assert!(message.keys().all(|key| key.starts_with(b"EVENT ")));
}

fn job(json: &[u8]) {
    let Ok(job) = Job::parse(json) else { return };
    let _ = (job.state(), job.status());
    let message = job.message("c");
    assert_eq!(message.keys().count(), 2);
    let data: Value = serde_json::from_slice(message.payload()).expect("it is JSON");
    assert_eq!(data, job.data("c"));
}
