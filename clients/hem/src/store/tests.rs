use std::fs;
use std::future::Future;
use std::path::Path;
use std::task::Waker;
use std::time::SystemTime;

use hookbus_broker::{EventId, LogId, Offset, Timestamp};
use proptest::prelude::*;
use rusqlite::Connection;
use tempfile::TempDir;

use super::*;
use crate::output::Output;
use crate::record::{Ending, EventRef};

/// How long a test waits for what should come soon; a test that passes never waits for it.
const PATIENCE: Duration = Duration::from_secs(60);

fn run<F: Future>(test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, test).await.expect("it comes to an end") })
}

fn open(dir: &TempDir) -> Store {
    open_with(dir, StoreOptions::default())
}

fn open_with(dir: &TempDir, options: StoreOptions) -> Store {
    Store::open(dir.path(), options).unwrap()
}

fn file(dir: &TempDir) -> std::path::PathBuf {
    dir.path().join(FILE_NAME)
}

fn execution(hook: &HookKey, started_ms: u64, ending: Ending) -> Execution {
    Execution {
        hook: hook.clone(),
        hook_name: "x".into(),
        started: Timestamp::from_millis(started_ms),
        duration: Duration::from_micros(1500),
        command: "/bin/x a".into(),
        arguments: "a".into(),
        ending,
        left_behind: false,
        stdout: Output::default(),
        stderr: Output::default(),
        host: None,
        event: None,
        environment: vec![("HOOKBUS_ID".into(), "7".into())],
        retry_of: None,
    }
}

fn event() -> EventRef {
    EventRef {
        id: EventId { log: LogId::new(u64::MAX), offset: Offset::new(7) },
        key: "EVENT STATE HOST/ERROR//3 ".into(),
        time: Timestamp::from_millis(1_767_225_600_250),
    }
}

/// A retry whose id is the time when it is due.
fn retry(hook: &HookKey, due_ms: u64) -> Retry {
    Retry {
        id: RetryId::new(due_ms),
        hook: hook.clone(),
        event: Some(event()),
        attempt: 2,
        due: Timestamp::from_millis(due_ms),
        retry_of: None,
        arguments: "a \u{0} 'b'\n".into(),
        host: Some("node1".into()),
        environment: vec![("HOOKBUS_NAME".into(), "ü\"\n".into()), ("A".into(), String::new())],
    }
}

/// Waits until the writer has done what it was given before, and this, too.
async fn on_writer(store: &Store, work: impl FnOnce(&Connection) + Send + 'static) {
    let (done, was_done) = oneshot::channel();
    let work = Box::new(move |connection: &Connection| {
        work(connection);
        done.send(()).unwrap();
    });
    store.inner.messages.send(Message::Test(work)).unwrap();
    was_done.await.unwrap();
}

/// No page more than there are now, or as many as there may be.
async fn set_full(store: &Store, full: bool) {
    on_writer(store, move |connection| {
        let pages: i64 = connection.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
        let max = if full { pages } else { 1 << 30 };
        connection.pragma_update_and_check(None, "max_page_count", max, |_| Ok(())).unwrap();
    })
    .await;
}

async fn until(store: &Store, what: &str, condition: impl Fn(&StoreStatus) -> bool) -> StoreStatus {
    let start = Instant::now();
    loop {
        let status = store.status();
        if condition(&status) {
            return status;
        }
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}: {status:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn is_ready<F: Future>(future: Pin<&mut F>) -> bool {
    future.poll(&mut Context::from_waker(Waker::noop())).is_ready()
}

#[test]
fn hooks_are_kept_and_their_ids_never_come_again() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let store = open(&dir);
        let first = store.create_hook(" first ", "NAME = first\n# as it is").await.unwrap();
        assert_eq!((first.id, first.name.as_str(), first.locked), (HookId::new(0), "first", false));
        assert_eq!(store.create_hook("second", "").await.unwrap().id, HookId::new(1));
        assert_eq!(store.delete_hook(HookRef::parse("1")).await.unwrap().name, "second");
        assert_eq!(store.create_hook("second", "").await.unwrap().id, HookId::new(2));
        store.delete_hook(HookRef::parse("second")).await.unwrap();
        assert_eq!(store.hooks().await.unwrap(), std::slice::from_ref(&first));
        store.close(PATIENCE).await;
        assert!(matches!(store.hooks().await, Err(StoreError::Closed)));
        assert!(matches!(store.create_hook("x", "").await, Err(HookError::Store(StoreError::Closed))));

        let store = open(&dir);
        let third = store.create_hook("third", "x").await.unwrap();
        assert_eq!(third.id, HookId::new(3));
        assert_eq!(store.hook(HookRef::parse("first")).await.unwrap(), Some(first.clone()));
        assert_eq!(store.hook(HookId::new(3)).await.unwrap(), Some(third));
        assert_eq!(store.hook(HookId::new(u64::MAX)).await.unwrap(), None);
        let updated = store.update_hook(first.id, "new").await.unwrap();
        assert_eq!((updated.template.as_str(), updated.created), ("new", first.created));
        assert!(updated.changed >= first.changed);
        let renamed = store.rename_hook(HookRef::parse("first"), "erster").await.unwrap();
        assert_eq!(store.hook(first.id).await.unwrap(), Some(renamed));
        store.rename_hook(first.id, "erster").await.expect("a hook may keep its name");
    });
}

#[test]
fn what_hooks_may_not_is_told() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let store = open(&dir);
        let id = store.create_hook("a", "").await.unwrap().id;
        store.create_hook("b", "").await.unwrap();
        let error = store.create_hook("a", "").await.unwrap_err().to_string();
        assert_eq!(error, "the name \"a\" is taken by hook 0; choose another one");
        let error = store.rename_hook(id, "b").await.unwrap_err().to_string();
        assert_eq!(error, "the name \"b\" is taken by hook 1; choose another one");
        for (name, said) in
            [("", "can't be empty"), (" ", "can't be empty"), ("a\0b", "NUL character"), (&"ü".repeat(129), "128")]
        {
            let error = store.create_hook(name, "").await.unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        let error = store.create_hook("c", "x".repeat((1 << 20) + 1)).await.unwrap_err().to_string();
        assert!(error.contains("1048577 bytes; at most 1048576"), "{error}");
        let error = store.update_hook(HookId::new(9), "").await.unwrap_err().to_string();
        assert_eq!(error, "there is no hook with the id 9");
        let error = store.delete_hook(HookRef::parse("z")).await.unwrap_err().to_string();
        assert_eq!(error, "there is no hook named \"z\"");

        assert!(store.lock_hook(id).await.unwrap().locked);
        let locked = store.lock_hook(id).await.unwrap();
        for refused in [store.update_hook(id, "x").await, store.rename_hook(id, "x").await, store.delete_hook(id).await]
        {
            assert_eq!(refused.unwrap_err().to_string(), "hook 0 (a) is locked; unlock it first");
        }
        assert_eq!(store.hook(id).await.unwrap(), Some(locked));
        assert!(!store.unlock_hook(id).await.unwrap().locked);
        store.delete_hook(id).await.unwrap();
        assert_eq!(store.create_hook("a", "").await.unwrap().id, HookId::new(2), "what was refused took no id");
    });
}

#[test]
fn an_execution_comes_back_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let hook = HookKey::Oned(12);
    let full = Execution {
        arguments: "a\u{0}b".into(),
        left_behind: true,
        stdout: Output { head: b"\xFF\0a".to_vec(), cut_bytes: 12, tail: b"end".to_vec() },
        stderr: Output { head: vec![b'e'; 100_000], cut_bytes: 0, tail: Vec::new() },
        host: Some("node1".into()),
        event: Some(event()),
        retry_of: Some(ExecutionId::new(0)),
        ..execution(&hook, 1_767_225_600_250, Ending::Signalled(9))
    };
    let endings = [Ending::Exited(0), Ending::Exited(-3), Ending::TimedOut, Ending::Interrupted, Ending::NotStarted];
    run(async {
        let store = open(&dir);
        for (id, ending) in (0..).zip(endings) {
            let recorded = store.record(execution(&hook, 5, ending)).await.unwrap();
            assert_eq!(recorded, Recorded { execution: ExecutionId::new(id), message: None, retry: None });
        }
        let id = store.record(full.clone()).await.unwrap().execution;
        store.close(PATIENCE).await;
        let store = open(&dir);
        let stored = store.executions(hook.clone()).await.unwrap();
        assert_eq!(stored.iter().rev().take(5).map(|s| s.execution.ending).collect::<Vec<_>>(), endings);
        assert_eq!(stored[0], StoredExecution { id, execution: full });
        assert_eq!(store.execution(hook.clone(), id).await.unwrap().as_ref(), stored.first());
        assert_eq!(store.execution(hook, ExecutionId::new(6)).await.unwrap(), None);
        assert_eq!(store.execution(HookKey::Oned(13), id).await.unwrap(), None);
    });
}

#[test]
fn the_newest_of_each_hook_stay() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (HookKey::File("a".into()), HookKey::Oned(0));
    run(async {
        let mut options = StoreOptions { log_retention: 3, ..StoreOptions::default() };
        let store = open_with(&dir, options.clone());
        let ids = async |store: &Store, hook: &HookKey| {
            let stored = store.executions(hook.clone()).await.unwrap();
            stored.iter().map(|stored| stored.id.get()).collect::<Vec<_>>()
        };
        store.record(execution(&b, 1, Ending::Exited(0))).await.unwrap();
        let recorded: Vec<_> = (0..10).map(|n| store.record(execution(&a, n, Ending::Exited(0)))).collect();
        for (id, recorded) in (0..).zip(recorded) {
            assert_eq!(recorded.await.unwrap().execution.get(), id);
        }
        assert_eq!((ids(&store, &a).await, ids(&store, &b).await), (vec![9, 8, 7], vec![0]));
        store.close(PATIENCE).await;

        options.log_retention = 1;
        let store = open_with(&dir, options);
        on_writer(&store, |_| ()).await;
        assert_eq!((ids(&store, &a).await, ids(&store, &b).await), (vec![9], vec![0]));
        store.record(execution(&a, 0, Ending::Exited(0))).await.unwrap();
        assert_eq!(ids(&store, &a).await, [10]);
        // Not even when all are gone does an id come again.
        assert_eq!(store.forget(a.clone()).await.unwrap(), 1);
        assert_eq!(store.record(execution(&a, 0, Ending::Exited(0))).await.unwrap().execution.get(), 11);

        let hook = store.create_hook("x", "").await.unwrap().id;
        store.record(execution(&hook.into(), 1, Ending::Exited(0))).await.unwrap();
        store.insert_retry(retry(&hook.into(), 1)).await.unwrap();
        store.delete_hook(hook).await.unwrap();
        assert_eq!((ids(&store, &hook.into()).await, store.status().retries), (vec![], 0));
    });
}

#[test]
fn what_is_too_old_goes() {
    let dir = tempfile::tempdir().unwrap();
    let hook = HookKey::Oned(0);
    run(async {
        let now = Timestamp::from(SystemTime::now()).as_millis();
        let store = open_with(&dir, StoreOptions { log_retention: 5000, ..StoreOptions::default() });
        let old: Vec<_> = (0..2500).map(|n| store.record(execution(&hook, n, Ending::Exited(0)))).collect();
        for recorded in old {
            recorded.await.unwrap();
        }
        store.record(execution(&hook, now, Ending::Exited(0))).await.unwrap();
        store.close(PATIENCE).await;
        let options =
            StoreOptions { log_retention: 5000, max_age: Some(Duration::from_secs(3600)), ..StoreOptions::default() };
        let store = open_with(&dir, options);
        // The second message is looked at after the first round of everything.
        on_writer(&store, |_| ()).await;
        on_writer(&store, |_| ()).await;
        let left = store.executions(hook).await.unwrap();
        assert_eq!(left.iter().map(|left| left.id.get()).collect::<Vec<_>>(), [2500]);
    });
}

#[test]
fn a_log_is_filtered() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b, c) = (HookKey::Store(HookId::new(0)), HookKey::Oned(0), HookKey::File("it's".into()));
    run(async {
        let store = open(&dir);
        assert_eq!(HookKey::Store(store.create_hook("x", "").await.unwrap().id), a);
        for (hook, started_ms, ending) in [
            (&a, 10, Ending::Exited(0)),
            (&b, 30, Ending::Exited(1)),
            (&a, 20, Ending::TimedOut),
            (&c, 30, Ending::Exited(0)),
            (&b, 40, Ending::Signalled(15)),
        ] {
            store.record(execution(hook, started_ms, ending)).await.unwrap();
        }
        let log = async |filter: LogFilter| {
            let entries = store.log(filter).await.unwrap();
            entries.iter().map(|entry| format!("{} {}", entry.hook, entry.id)).collect::<Vec<_>>()
        };
        let all = LogFilter::default();
        let (at, until) = (|ms| Some(Timestamp::from_millis(ms)), Some(Timestamp::from_millis(30)));
        let newest_first = ["oned:0 1", "file:it's 0", "oned:0 0", "store:0 1", "store:0 0"];
        assert_eq!(log(all.clone()).await, newest_first);
        assert_eq!(log(LogFilter { limit: Some(2), ..all.clone() }).await, newest_first[..2]);
        assert_eq!(log(LogFilter { success: Some(true), ..all.clone() }).await, ["file:it's 0", "store:0 0"]);
        assert_eq!(log(LogFilter { success: Some(false), ..all.clone() }).await, ["oned:0 1", "oned:0 0", "store:0 1"]);
        assert_eq!(log(LogFilter { hooks: vec![c.clone()], ..all.clone() }).await, ["file:it's 0"]);
        let both = LogFilter { hooks: vec![a.clone(), b.clone()], ..all.clone() };
        assert_eq!(log(both.clone()).await, ["oned:0 1", "oned:0 0", "store:0 1", "store:0 0"]);
        assert_eq!(log(LogFilter { since: at(30), ..all.clone() }).await, newest_first[..3]);
        assert_eq!(log(LogFilter { until, ..all.clone() }).await, newest_first[3..]);
        let narrow = LogFilter { since: at(20), until: at(40), success: Some(false), limit: Some(1), ..both };
        assert_eq!(log(narrow).await, ["oned:0 0"]);
        assert_eq!(log(LogFilter { hooks: vec![HookKey::Oned(1)], ..all }).await, [""; 0]);
    });
}

#[test]
fn a_completion_is_stored_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let hook = HookKey::File("x".into());
    run(async {
        let store = open_with(&dir, StoreOptions { retries_max: 1, ..StoreOptions::default() });
        let first = store
            .record(Completion {
                execution: execution(&hook, 1, Ending::Exited(1)),
                message: Some(b"first".to_vec()),
                retry: Some(retry(&hook, 100)),
                retried: None,
            })
            .await
            .unwrap();
        let due = store.retries_blocking().unwrap();
        let expected = Retry { retry_of: Some(first.execution), ..retry(&hook, 100) };
        assert_eq!(due, [expected]);

        // The one that it was makes room for the next.
        let second = store
            .record(Completion {
                retry: Some(retry(&hook, 200)),
                retried: first.retry,
                ..execution(&hook, 2, Ending::Exited(1)).into()
            })
            .await
            .unwrap();
        assert!(second.retry > first.retry && second.message.is_none());
        // Another one has none: the record is stored all the same.
        let third = store
            .record(Completion { retry: Some(retry(&hook, 200)), ..execution(&hook, 3, Ending::Exited(1)).into() })
            .await
            .unwrap();
        assert_eq!((third.execution.get(), third.retry), (2, None));
        assert!(matches!(store.insert_retry(retry(&hook, 1)).await, Err(StoreError::TooManyRetries)));
        let status = store.status();
        assert_eq!((status.retries, status.retries_refused, status.executions, status.dropped), (1, 2, 3, 0));
        assert_eq!(status.queued, 0);
    });
}

#[test]
fn retries_come_in_the_order_in_which_they_are_due_and_survive() {
    let dir = tempfile::tempdir().unwrap();
    let hook = HookKey::Oned(1);
    run(async {
        let store = open(&dir);
        let mut ids = Vec::new();
        for due_ms in [300, 100, 200] {
            ids.push(store.insert_retry(retry(&hook, due_ms)).await.unwrap());
        }
        store.close(PATIENCE).await;
        let store = open(&dir);
        assert_eq!(store.status().retries, 3);
        let waiting = || store.retries_blocking().unwrap().into_iter().map(|retry| retry.id).collect::<Vec<_>>();
        assert_eq!(waiting(), [ids[1], ids[2], ids[0]]);
        assert!(store.remove_retry(ids[1]).await.unwrap());
        assert!(!store.remove_retry(ids[1]).await.unwrap());
        assert_eq!(waiting(), [ids[2], ids[0]]);
    });
}

#[test]
fn a_file_of_the_first_layout_gets_this_one() {
    let dir = tempfile::tempdir().unwrap();
    let hook = HookKey::Oned(1);
    run(async {
        let store = open(&dir);
        store.record(execution(&hook, 1, Ending::Exited(0))).await.unwrap();
        store.insert_retry(retry(&hook, 100)).await.unwrap();
        store.close(PATIENCE).await;
        let other = Connection::open(file(&dir)).unwrap();
        let first_layout = "ALTER TABLE executions ADD COLUMN words TEXT; ALTER TABLE retries ADD COLUMN words TEXT; \
                            ALTER TABLE retries ADD COLUMN stdin INTEGER NOT NULL DEFAULT 0; PRAGMA user_version = 1";
        other.execute_batch(first_layout).unwrap();
        drop(other);
        let store = open(&dir);
        assert_eq!(store.retries_blocking().unwrap(), [retry(&hook, 100)]);
        store.record(execution(&hook, 2, Ending::Exited(0))).await.unwrap();
        assert_eq!(store.log(LogFilter::default()).await.unwrap().len(), 2);
    });
}

#[test]
fn what_runs_while_its_hook_is_deleted_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let store = open(&dir);
        let id = store.create_hook("x", "").await.unwrap().id;
        let hook = HookKey::Store(id);
        store.record(execution(&hook, 1, Ending::Exited(0))).await.unwrap();
        store.delete_hook(id).await.unwrap();
        let retry = Some(retry(&hook, 100));
        let late = store.record(Completion { retry, ..execution(&hook, 2, Ending::Exited(1)).into() }).await;
        assert!(matches!(late, Err(StoreError::Deleted)), "{late:?}");
        assert_eq!(store.log(LogFilter::default()).await.unwrap(), []);
        assert_eq!(store.retries_blocking().unwrap(), []);
    });
}

#[test]
fn the_outbox_keeps_its_order_and_its_bounds() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let options = StoreOptions { outbox_max_messages: 3, outbox_max_bytes: 10, ..StoreOptions::default() };
        let store = open_with(&dir, options.clone());
        let contents = async |store: &Store| {
            let front = store.front(10).await.unwrap();
            front.into_iter().map(|message| String::from_utf8(message.bytes).unwrap()).collect::<Vec<_>>()
        };
        for message in ["a", "b", "c", "d"] {
            store.push(message).await.unwrap();
        }
        assert_eq!(contents(&store).await, ["b", "c", "d"]);
        let front = store.front(1).await.unwrap();
        assert!(store.remove(front[0].id).await.unwrap());
        assert!(!store.remove(front[0].id).await.unwrap());
        store.push("123456789").await.unwrap();
        assert_eq!(contents(&store).await, ["d", "123456789"], "by size");
        store.close(PATIENCE).await;

        let store = open_with(&dir, options);
        let status = store.status();
        assert_eq!((status.outbox_messages, status.outbox_bytes, status.outbox_dropped), (2, 10, 2));
        let last = store.push("larger than all there is room for").await.unwrap();
        assert_eq!(contents(&store).await, ["larger than all there is room for"]);
        assert_eq!(store.status().outbox_dropped, 4);
        assert!(store.remove(last).await.unwrap());
        assert!(store.push("z").await.unwrap() > last, "no id comes again");
        assert_eq!((store.status().outbox_messages, store.status().outbox_bytes), (1, 1));
    });
}

#[test]
fn the_outbox_is_read_and_emptied_from_the_front() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let store = open_with(&dir, StoreOptions::default());
        let mut ids = Vec::new();
        for message in ["aa", "bb", "cc", "dd"] {
            ids.push(store.push(message).await.unwrap());
        }
        let front = async |after, limit, max_bytes| {
            let front = store.front_after(after, limit, max_bytes).await.unwrap();
            front.into_iter().map(|message| message.id).collect::<Vec<_>>()
        };
        assert_eq!(front(None, 3, 100).await, ids[..3]);
        assert_eq!(front(None, 10, 3).await, ids[..2], "the second goes beyond three bytes, and no further one comes");
        assert_eq!(front(Some(ids[1]), 10, 100).await, ids[2..]);
        assert_eq!(front(Some(ids[3]), 10, 100).await, []);
        assert_eq!(store.remove_through(ids[2]).await.unwrap(), 3);
        assert_eq!(store.remove_through(ids[2]).await.unwrap(), 0);
        assert_eq!((store.status().outbox_messages, store.status().outbox_bytes), (1, 2));
        assert_eq!(front(None, 10, 100).await, ids[3..]);
    });
}

/// While another program holds the lock everything waits, and then goes in a few transactions, answered in order.
#[test]
fn what_waits_is_committed_together_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let hook = HookKey::Oned(0);
    run(async {
        let store = open_with(&dir, StoreOptions { busy_timeout: PATIENCE, ..StoreOptions::default() });
        let other = Connection::open(file(&dir)).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        let mut recorded: Vec<_> =
            (0..300).map(|n| Box::pin(store.record(execution(&hook, n, Ending::Exited(0))))).collect();
        assert_eq!(store.status().queued, 300);
        assert!(
            !recorded.iter_mut().any(|recorded| is_ready(recorded.as_mut())),
            "nothing is answered before it is there"
        );
        other.execute_batch("COMMIT").unwrap();
        // The last is answered last: when it is, all are.
        let last = recorded.pop().unwrap().await.unwrap().execution.get();
        assert_eq!(last, 299);
        // Without the budget that tokio gives a task, after which what is ready doesn't say so.
        tokio::task::coop::unconstrained(async {
            for (id, recorded) in (0..).zip(&mut recorded) {
                let answered = std::future::poll_fn(|cx| Poll::Ready(recorded.as_mut().poll(cx))).await;
                let Poll::Ready(Ok(recorded)) = answered else { panic!("{id} is answered after a later one") };
                assert_eq!(recorded.execution.get(), id);
            }
        })
        .await;
        let status = store.status();
        assert!(status.commits < 150, "{status:?}");
        assert_eq!((status.executions, status.queued, status.queued_bytes), (300, 0, 0));
    });
}

#[test]
fn a_lock_of_another_program_is_told_and_waited_out() {
    let dir = tempfile::tempdir().unwrap();
    let hook = HookKey::Oned(0);
    run(async {
        let store =
            open_with(&dir, StoreOptions { busy_timeout: Duration::from_millis(10), ..StoreOptions::default() });
        let other = Connection::open(file(&dir)).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        let recorded = store.record(execution(&hook, 1, Ending::Exited(0)));
        let status = until(&store, "trouble", |status| status.trouble.is_some()).await;
        let error = status.trouble.unwrap().error;
        assert!(error.contains("another program holds a lock on it"), "{error}");
        let error = store.create_hook("x", "").await.unwrap_err().to_string();
        assert!(error.contains("another program holds a lock on it"), "{error}");
        assert_eq!(store.hooks().await.unwrap(), [], "reading goes on");
        other.execute_batch("ROLLBACK").unwrap();
        assert_eq!(recorded.await.unwrap().execution.get(), 0);
        assert_eq!(store.status().trouble, None);
        store.create_hook("x", "").await.unwrap();
    });
}

#[test]
fn a_full_disk_is_told_and_what_waits_comes_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let hook = HookKey::Oned(0);
    let large = |n| Execution { arguments: "x".repeat(50_000), ..execution(&hook, n, Ending::Exited(0)) };
    run(async {
        let options = StoreOptions { queue_max_bytes: 1 << 20, ..StoreOptions::default() };
        let store = open_with(&dir, options);
        let old = store.create_hook("old", "x".repeat(200_000)).await.unwrap().id;
        set_full(&store, true).await;
        let mut recorded: Vec<_> = (0..5).map(|n| Box::pin(store.record(large(n)))).collect();
        let status = until(&store, "trouble", |status| status.trouble.as_ref().is_some_and(|t| t.attempts > 1)).await;
        let error = status.trouble.unwrap().error;
        assert!(error.contains("make room on its disk"), "{error}");
        assert_eq!(status.queued, 5);

        // Who waits is told at once, and what makes room is possible.
        let error = store.create_hook("new", "x".repeat(50_000)).await.unwrap_err().to_string();
        assert!(error.contains("make room on its disk"), "{error}");
        // The queue stays bounded; what finds no room is counted.
        let mut more = Vec::new();
        let lost = loop {
            let mut pending = Box::pin(store.record(large(9)));
            match pending.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Pending => more.push(pending),
                Poll::Ready(result) => break result.unwrap_err(),
            }
            assert!(more.len() < 50, "the queue has no bound");
        };
        assert!(matches!(lost, StoreError::QueueFull { .. }), "{lost}");
        let status = store.status();
        assert_eq!(status.dropped, 1);
        assert!(status.queued_bytes <= status.queue_max_bytes, "{status:?}");
        assert!(!recorded.iter_mut().any(|recorded| is_ready(recorded.as_mut())));

        // 200 kB of room are enough for some of the records, one after the other.
        store.delete_hook(old).await.unwrap();
        set_full(&store, false).await;
        for (id, recorded) in (0..).zip(recorded.into_iter().chain(more)) {
            assert_eq!(recorded.await.unwrap().execution.get(), id);
        }
        let status = store.status();
        assert_eq!((status.trouble, status.queued), (None, 0));
        store.create_hook("new", "").await.unwrap();
    });
}

#[test]
fn what_can_t_be_written_until_the_end_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let hook = HookKey::Oned(0);
    run(async {
        let store = open(&dir);
        set_full(&store, true).await;
        let recorded =
            store.record(Execution { arguments: "x".repeat(50_000), ..execution(&hook, 1, Ending::Exited(0)) });
        until(&store, "trouble", |status| status.trouble.is_some()).await;
        assert_eq!(store.close(Duration::from_millis(50)).await, 1);
        assert!(matches!(recorded.await, Err(StoreError::Closed)));
        assert!(matches!(store.record(execution(&hook, 1, Ending::Exited(0))).await, Err(StoreError::Closed)));
        assert_eq!(store.status().dropped, 2);
        assert_eq!(store.close(PATIENCE).await, 0, "twice does no harm");
        assert_eq!(open(&dir).log(LogFilter::default()).await.unwrap(), []);
    });
}

/// What can never be stored takes nothing with it.
#[test]
fn a_record_that_can_t_be_stored_is_told_and_the_others_are() {
    let dir = tempfile::tempdir().unwrap();
    let hook = HookKey::Oned(0);
    run(async {
        let store = open(&dir);
        let refuse = "CREATE TRIGGER refuse BEFORE INSERT ON executions WHEN new.hook_name = 'bad' \
             BEGIN SELECT RAISE(ABORT, 'not this one'); END";
        on_writer(&store, |connection| connection.execute_batch(refuse).unwrap()).await;
        let named = |name: &str| Execution { hook_name: name.into(), ..execution(&hook, 1, Ending::Exited(0)) };
        let message = Some(b"of the bad one".to_vec());
        let recorded = ["a", "b", "bad", "c"].map(|name| match name {
            "bad" => store.record(Completion { message: message.clone(), ..named(name).into() }),
            name => store.record(named(name)),
        });
        let mut ids = Vec::new();
        for recorded in recorded {
            ids.push(recorded.await.map(|recorded| recorded.execution.get()).map_err(|error| error.to_string()));
        }
        assert!(ids[2].as_ref().is_err_and(|error| error.contains("not this one")), "{ids:?}");
        let others: Vec<u64> = ids.into_iter().filter_map(Result::ok).collect();
        assert_eq!(others, [0, 1, 2], "it took no id");
        let status = store.status();
        assert_eq!((status.dropped, status.executions, status.outbox_messages, status.trouble), (1, 3, 0, None));
    });
}

/// What was given before the last handle went is written.
#[test]
fn the_last_handle_may_go_at_any_time() {
    let dir = tempfile::tempdir().unwrap();
    let hook = HookKey::Oned(0);
    run(async {
        let store = open_with(&dir, StoreOptions { log_retention: 1000, ..StoreOptions::default() });
        let recorded: Vec<_> = (0..1000).map(|n| store.record(execution(&hook, n, Ending::Exited(0)))).collect();
        drop(store);
        for recorded in recorded {
            recorded.await.unwrap();
        }
    });
}

#[test]
fn a_store_has_one_opener() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let store = open(&dir);
        let error = Store::open(dir.path(), StoreOptions::default()).unwrap_err().to_string();
        assert!(error.contains(&format!("in use by process {}", std::process::id())), "{error}");
        store.close(PATIENCE).await;
        open(&dir);
    });
}

#[test]
fn a_file_that_is_not_ours_is_refused_and_left_alone() {
    let refused = |prepare: &dyn Fn(&Path)| {
        let dir = tempfile::tempdir().unwrap();
        prepare(&file(&dir));
        let before = fs::read(file(&dir)).unwrap();
        let error = Store::open(dir.path(), StoreOptions::default()).unwrap_err().to_string();
        assert_eq!(fs::read(file(&dir)).unwrap(), before, "{error}");
        error
    };
    let error = refused(&|path| fs::write(path, "no database at all, but long enough to be looked at").unwrap());
    assert!(error.contains("the file is damaged") && error.contains("move"), "{error}");
    let error = refused(&|path| Connection::open(path).unwrap().execute_batch("CREATE TABLE t (x)").unwrap());
    assert!(error.contains("a database of another program"), "{error}");
    let error = refused(&|path| {
        run(async { Store::open(path.parent().unwrap(), StoreOptions::default()).unwrap().close(PATIENCE).await });
        let other = Connection::open(path).unwrap();
        other.pragma_update(None, "user_version", 3).unwrap();
    });
    assert!(error.contains("later version of hookbus, in layout 3; this one knows layout 2"), "{error}");

    let dir = tempfile::tempdir().unwrap();
    let error = Store::open(&dir.path().join("missing"), StoreOptions::default()).unwrap_err().to_string();
    assert!(error.contains("check the state directory"), "{error}");
    fs::create_dir(file(&dir)).unwrap();
    let error = Store::open(dir.path(), StoreOptions::default()).unwrap_err().to_string();
    assert!(error.contains("can't be used"), "{error}");
}

/// A store with some of everything, closed.
fn filled(dir: &TempDir) {
    run(async {
        let store = open(dir);
        for n in 0..20 {
            let hook = store.create_hook(format!("hook {n}"), "x".repeat(500)).await.unwrap().id.into();
            let execution = Execution { arguments: "y".repeat(1000), ..execution(&hook, n, Ending::Exited(0)) };
            let message = Some(vec![7; 300]);
            let retry = Some(retry(&hook, n));
            store.record(Completion { message, retry, ..execution.into() }).await.unwrap();
        }
        store.close(PATIENCE).await;
    });
}

/// Looks at everything, and changes something; errors are all right.
fn use_all(store: &Store) {
    run(async {
        let _ = store.hooks().await;
        for n in 0..20 {
            let _ = store.executions(HookId::new(n).into()).await;
            let _ = store.hook(HookRef::Name(format!("hook {n}"))).await;
        }
        let _ = store.log(LogFilter::default()).await;
        let _ = store.front(100).await;
        let _ = store.retries_blocking();
        let _ = store.create_hook("new", "").await;
        let _ = store.delete_hook(HookId::new(3)).await;
        drop(store.record(execution(&HookKey::Oned(1), 1, Ending::Exited(0))));
        drop(store.push("x"));
        store.close(Duration::ZERO).await;
    });
}

#[test]
fn a_page_that_is_damaged_is_told() {
    let dir = tempfile::tempdir().unwrap();
    filled(&dir);
    let mut bytes = fs::read(file(&dir)).unwrap();
    let middle = bytes.len() / 2 / 4096 * 4096;
    bytes[middle..middle + 4096].fill(0x5A);
    fs::write(file(&dir), &bytes).unwrap();
    let error = Store::open(dir.path(), StoreOptions::default()).unwrap_err();
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
    fs::write(file(&dir), &bytes[..middle]).unwrap();
    let error = Store::open(dir.path(), StoreOptions::default()).unwrap_err();
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Wrong bytes do no harm, or are told; nothing panics.
    #[test]
    fn wrong_bytes_never_panic(wrong in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20)) {
        let dir = tempfile::tempdir().unwrap();
        filled(&dir);
        let mut bytes = fs::read(file(&dir)).unwrap();
        for (index, byte) in wrong {
            *index.get_mut(&mut bytes) = byte;
        }
        fs::write(file(&dir), &bytes).unwrap();
        if let Ok(store) = Store::open(dir.path(), StoreOptions::default()) {
            use_all(&store);
        }
    }
}

/// Also where the damage shows only in use.
#[test]
fn damage_in_use_fails_what_meets_it() {
    let dir = tempfile::tempdir().unwrap();
    filled(&dir);
    run(async {
        let store = open(&dir);
        let other = Connection::open(file(&dir)).unwrap();
        other.execute_batch("UPDATE retries SET hook = 'nobody'; UPDATE executions SET ending = 77").unwrap();
        let error = store.retries_blocking().unwrap_err().to_string();
        assert!(error.contains("can't be read") && error.contains("nobody") && error.contains("move"), "{error}");
        let error = store.log(LogFilter::default()).await.unwrap_err().to_string();
        assert!(error.contains("77"), "{error}");
        assert_eq!(store.hooks().await.unwrap().len(), 20);
    });
}
