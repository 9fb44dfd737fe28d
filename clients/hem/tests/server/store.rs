//! The store of hooks over the ends of processes: what it has answered is there, whatever happens.
//!
//! The other process is this test program itself, told by an environment variable what to do.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

use std::future::Future;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hookbus_broker::Timestamp;
use hookbus_hem::store::{Execution, ExecutionId, HookKey, LogFilter, Store, StoreOptions};
use hookbus_hem::{Ending, Output};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// How long a test waits for what should come soon; a test that passes never waits for it.
const PATIENCE: Duration = Duration::from_secs(60);
/// The variable that tells a child what to do, and where.
const ROLE: &str = "HOOKBUS_STORE_TEST_ROLE";
const DIRECTORY: &str = "HOOKBUS_STORE_TEST_DIRECTORY";

fn run<F: Future>(work: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, work).await.expect("it comes to an end") })
}

fn options() -> StoreOptions {
    let mut options = StoreOptions::default();
    options.log_retention = 1_000_000;
    options
}

fn hook() -> HookKey {
    HookKey::File("x".into())
}

fn execution(arguments: String) -> Execution {
    Execution {
        hook: hook(),
        hook_name: "x".into(),
        started: Timestamp::from_millis(1),
        duration: Duration::ZERO,
        command: "/bin/x".into(),
        arguments,
        ending: Ending::Exited(0),
        left_behind: false,
        stdout: Output { head: vec![b'o'; 200], cut_bytes: 0, tail: Vec::new() },
        stderr: Output::default(),
        host: None,
        event: None,
        environment: Vec::new(),
        retry_of: None,
    }
}

/// This program once more, as another process.
fn child(role: &str, directory: &Path, shell: &str) -> Child {
    Command::new("/bin/sh")
        .args(["-c", &format!("{shell} exec \"$0\" --exact store::the_other_process --nocapture")])
        .arg(std::env::current_exe().unwrap())
        .env(ROLE, role)
        .env(DIRECTORY, directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn say(line: &str) {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "store: {line}").unwrap();
    stdout.flush().unwrap();
}

/// What the child says, until it ends.
fn said(child: &mut Child) -> impl Iterator<Item = String> + use<> {
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // A line that was cut off by the end of the process is none.
    lines.map_while(Result::ok).filter_map(|line| Some(line.split_once("store: ")?.1.to_owned()))
}

/// Not a test of its own: what the children do.
#[test]
fn the_other_process() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let directory = std::env::var(DIRECTORY).unwrap();
    let store = Store::open(Path::new(&directory), options()).unwrap();
    match role.as_str() {
        "record" => run(record_for_ever(&store)),
        "fill" => run(fill_up(&store)),
        "hold" => {
            say("open");
            // Until the other end is closed, or the process is killed.
            let _ = std::io::stdin().read_line(&mut String::new());
        }
        _ => unreachable!("{role}"),
    }
}

/// Records as fast as it can, with some under way all the time, and says each that is answered: `<id> <number>.`
async fn record_for_ever(store: &Store) {
    let mut pending = std::collections::VecDeque::new();
    for number in 0u64.. {
        let mut record = execution(format!("{}/{number}", std::process::id()));
        record.hook_name = number.to_string();
        pending.push_back((number, store.record(record)));
        if pending.len() >= 32 {
            let (number, recorded) = pending.pop_front().unwrap();
            say(&format!("{} {number}.", recorded.await.unwrap().execution));
        }
    }
}

#[test]
fn what_was_answered_survives_sigkill() {
    let directory = tempfile::tempdir().unwrap();
    // What every child has said: the id, and what was recorded under it.
    let mut answered: Vec<(u64, String)> = Vec::new();
    for round in 0..20 {
        let mut child = child("record", directory.path(), "");
        let pid = child.id();
        let kill_after = 1 + round * 37 % 400;
        for (said_so_far, line) in (1..).zip(said(&mut child)) {
            if said_so_far == kill_after {
                child.kill().unwrap();
            }
            // The last line may be cut.
            let Some((id, number)) = line.strip_suffix('.').and_then(|line| line.split_once(' ')) else { break };
            answered.push((id.parse().unwrap(), format!("{pid}/{number}")));
        }
        child.wait().unwrap();
        assert!(answered.len() >= kill_after, "{answered:?}");
    }
    assert!(answered.is_sorted_by(|a, b| a.0 < b.0), "an id came twice");
    run(async {
        let store = Store::open(directory.path(), options()).unwrap();
        let stored = store.executions(hook()).await.unwrap();
        for (id, arguments) in &answered {
            let index = stored.binary_search_by(|stored| id.cmp(&stored.id.get()));
            let found = index.map(|index| &stored[index].execution.arguments);
            assert_eq!(found, Ok(arguments), "record {id} is not there");
        }
        let next = store.record(execution(String::new())).await.unwrap().execution;
        assert_eq!(next.get(), stored[0].id.get() + 1);
        assert!(next.get() > answered.last().unwrap().0);
    });
}

/// Records until the limit on the size of files stops it, then raises the limit and goes on.
async fn fill_up(store: &Store) {
    let mut recorded = 0;
    let last = loop {
        let mut pending = Box::pin(store.record(execution("x".repeat(10_000))));
        let trouble = async {
            // The log of changes is full first, and makes room when the file is opened anew.
            while store.status().trouble.is_none_or(|trouble| trouble.attempts < 3) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            answer = &mut pending => { answer.unwrap(); }
            () = trouble => break pending,
        }
        recorded += 1;
    };
    let status = store.status();
    say(&format!("trouble after {recorded}: {}", status.trouble.unwrap().error));
    let error = store.create_hook("x", "x".repeat(100_000)).await.unwrap_err();
    say(&format!("create: {error}"));
    say(&format!("reads {}", store.log(LogFilter::default()).await.unwrap().len()));
    let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
    setrlimit(Resource::RLIMIT_FSIZE, hard, hard).unwrap();
    say(&format!("goes on with {}", last.await.unwrap().execution));
    say(&format!("created {}", store.create_hook("x", "").await.unwrap().id));
    say(&format!("lost {}", store.close(PATIENCE).await));
}

#[test]
fn a_disk_without_room_is_told_and_goes_on_with_room() {
    let directory = tempfile::tempdir().unwrap();
    // In blocks of 512 bytes: 1 MiB. What exceeds it is an error then, rather than the end of the process.
    let mut child = child("fill", directory.path(), "trap '' XFSZ; ulimit -S -f 2048;");
    let said: Vec<String> = said(&mut child).collect();
    assert!(child.wait().unwrap().success(), "{said:#?}");
    let [trouble, create, reads, goes_on, created, lost] = &said[..] else { panic!("{said:#?}") };
    let recorded = trouble.strip_prefix("trouble after ").and_then(|rest| rest.split_once(':')).unwrap().0;
    assert!(recorded.parse::<u64>().unwrap() > 10, "{trouble}");
    assert!(trouble.contains("can't be written") && trouble.contains("limits on the size of files"), "{trouble}");
    assert!(create.contains("limits on the size of files"), "{create}");
    assert_eq!(reads, &format!("reads {recorded}"));
    assert_eq!(goes_on, &format!("goes on with {recorded}"));
    assert_eq!((created.as_str(), lost.as_str()), ("created 0", "lost 0"));
    run(async {
        let store = Store::open(directory.path(), options()).unwrap();
        let count = recorded.parse::<u64>().unwrap();
        assert!(store.execution(hook(), ExecutionId::new(count)).await.unwrap().is_some());
        assert_eq!(store.log(LogFilter::default()).await.unwrap().len() as u64, count + 1);
    });
}

#[test]
fn a_second_process_is_refused_until_the_first_is_dead() {
    let directory = tempfile::tempdir().unwrap();
    let mut child = child("hold", directory.path(), "");
    assert_eq!(said(&mut child).next().as_deref(), Some("open"));
    let error = Store::open(directory.path(), options()).unwrap_err().to_string();
    assert!(error.contains(&format!("in use by process {}", child.id())), "{error}");
    child.kill().unwrap();
    child.wait().unwrap();
    let start = Instant::now();
    Store::open(directory.path(), options()).unwrap();
    assert!(start.elapsed() < PATIENCE);
}
