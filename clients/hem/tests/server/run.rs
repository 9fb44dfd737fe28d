//! `hookbus-hem` as it is started in the place of `onehem-server`: with a driver's two ports, an oned that answers as it was recorded, and
//! the recorded events.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support;
use crate::support::oned::{Answer, StubOned};
use crate::support::recorded::{Result, reported};
use crate::support::{Rig, api_call, fixture, vm_state, wait};
use hookbus_bridges::PAYLOAD_BASE64;
use hookbus_bridges::opennebula::{Input, Parser};
use hookbus_bridges::zeromq::{Endpoint, Logger, LoggerOptions, Publisher, PublisherOptions, Request as Report};
use hookbus_broker::{Broker, Message};
use hookbus_hem::store::{HookKey, Store, StoreOptions};
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::mpsc;

/// A driver's ports, an oned, and a place for hookbus-hem's files.
struct Cloud {
    rig: Rig,
    oned: StubOned,
    /// What oned says its hooks are.
    pool: Arc<Mutex<String>>,
    /// While it is true, oned doesn't answer.
    hangs: Arc<AtomicBool>,
    driver: Broker,
    publisher: Publisher,
    logger: Option<Logger>,
    results: mpsc::Receiver<Report>,
    replier: Endpoint,
    hem: Option<Child>,
}

fn hook(id: u32, name: &str, attributes: &str) -> String {
    let kind = if attributes.contains("<CALL>") { "api" } else { "state" };
    format!("<HOOK><ID>{id}</ID><NAME>{name}</NAME><TYPE>{kind}</TYPE><TEMPLATE>{attributes}</TEMPLATE></HOOK>")
}

fn pool_of(hooks: &[String]) -> String {
    format!("<HOOK_POOL>{}</HOOK_POOL>", hooks.concat())
}

impl Cloud {
    async fn new(pool: String) -> Self {
        let pool = Arc::new(Mutex::new(pool));
        let hangs = Arc::new(AtomicBool::new(false));
        let oned = StubOned::start({
            let (pool, hangs) = (Arc::clone(&pool), Arc::clone(&hangs));
            move |request| {
                assert_eq!(request.call(), "one.hookpool.info");
                assert!(request.body.contains("oneadmin:secret"), "{}", request.body);
                if hangs.load(Ordering::SeqCst) { Answer::Unfinished(Vec::new()) } else { Answer::text(&pool.lock()) }
            }
        })
        .await;
        let driver = Broker::default();
        let any: Endpoint = "tcp://127.0.0.1:0".parse().unwrap();
        let publisher = Publisher::bind(driver.clone(), PublisherOptions::new(any.clone())).unwrap();
        let (sender, results) = mpsc::channel(1);
        let logger = Logger::bind(LoggerOptions::new(any), sender).unwrap();
        let replier = logger.local_endpoint().clone();
        let rig = Rig::new();
        let cloud =
            Cloud { oned, pool, hangs, driver, publisher, logger: Some(logger), results, replier, hem: None, rig };
        for directory in ["etc", "var", ".one"] {
            fs::create_dir(cloud.path(directory)).unwrap();
        }
        cloud.configure(10);
        fs::write(cloud.path(".one/one_auth"), "oneadmin:secret\n").unwrap();
        cloud
    }

    fn path(&self, name: &str) -> PathBuf {
        self.rig.path(name)
    }

    fn configure(&self, concurrency: usize) {
        let base = self.rig.directory.path().display();
        let text = format!(
            "---\n:debug_level: 3\n:hook_base_path: {base}\n:remote_hook_base_path: {base}\n:subscriber_endpoint: {}\n\
             :replier_endpoint: {}\n:concurrency: {concurrency}\n",
            self.publisher.local_endpoint(),
            self.replier
        );
        fs::write(self.path("etc/onehem-server.conf"), text).unwrap();
    }

    /// Starts hookbus-hem, and waits until it has asked for its hooks and was answered.
    async fn start(&mut self) {
        self.spawn();
        self.logged("hooks loaded from").await;
    }

    fn spawn(&mut self) {
        // Its ssh is ours.
        let ssh = self.rig.ssh();
        let path = format!("{}:{}", ssh.parent().unwrap().display(), std::env::var("PATH").unwrap());
        let mut command = Command::new(env!("CARGO_BIN_EXE_hookbus-hem"));
        command
            .env_clear()
            .env("PATH", path)
            .env("HOME", self.path(""))
            .env("ONE_LOCATION", self.rig.directory.path())
            .env("ONE_XMLRPC", self.oned.endpoint())
            .stdin(Stdio::null());
        self.hem = Some(command.spawn().unwrap());
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("var/onehem.log")).unwrap_or_default()
    }

    async fn logged(&self, text: &str) {
        self.logged_times(text, 1).await;
    }

    async fn logged_times(&self, text: &str, times: usize) {
        wait(&format!("{times} times `{text}` in the log"), || {
            let log = self.log();
            if log.matches(text).count() >= times { Ok(()) } else { Err(log) }
        })
        .await;
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(self.hem.as_ref().unwrap());
        kill_process(pid, signal).unwrap();
    }

    /// Ends it in order.
    async fn stop(&mut self) {
        self.signal(Signal::TERM);
        let mut hem = self.hem.take().unwrap();
        let status = wait("its end", || hem.try_wait().unwrap().ok_or_else(|| "it runs".to_owned())).await;
        assert_eq!(status.code(), Some(0), "{}", self.log());
    }

    fn kill(&mut self) {
        let mut hem = self.hem.take().unwrap();
        hem.kill().unwrap();
        hem.wait().unwrap();
    }

    /// The next result that the driver gets, acknowledged.
    async fn result(&mut self) -> String {
        let request = tokio::time::timeout(support::PATIENCE, self.results.recv());
        let request = request.await.unwrap_or_else(|_| panic!("no result comes; {}", self.log())).unwrap();
        let text = String::from_utf8(request.body().to_vec()).unwrap();
        request.acknowledge();
        text
    }

    /// The same taken apart: number of the hook, standard output, whether it was a retry.
    async fn output(&mut self) -> (u32, String, bool) {
        let (id, result, retry) = Result::of_ours(&self.result().await, "");
        (id, String::from_utf8(result.stdout).unwrap(), retry)
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        if let Some(hem) = &mut self.hem {
            let _ = hem.kill();
            let _ = hem.wait();
        }
    }
}

fn echo(id: u32, name: &str, trigger: &str) -> String {
    hook(id, name, &format!("<COMMAND>/bin/echo</COMMAND><ARGUMENTS>{name}</ARGUMENTS>{trigger}"))
}

const RUNNING: &str = "<RESOURCE>VM</RESOURCE><STATE>ACTIVE</STATE><LCM_STATE>RUNNING</LCM_STATE>";

/// Where we differ from the original, and why.
fn differs(hook: u32) -> Option<&'static str> {
    match hook {
        13 => Some("it prints numbers of processes and pipes"),
        22 => Some("it prints the user and the home directory"),
        24 | 25 => Some("they left no record that oned would keep"),
        32 => Some("output before a background child is kept"),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recorded_traffic_gives_the_recorded_results() {
    let mut cloud = Cloud::new(String::from_utf8(fixture("hookpool.xml.zst")).unwrap()).await;
    cloud.rig.recorded_scripts();
    cloud.configure(20);
    cloud.start().await;
    let mut parser = Parser::new();
    let lines = fixture("oned-to-driver.txt.zst");
    let mut retries = 0;
    for line in lines.split(|&byte| byte == b'\n') {
        if let Ok(Input::Message { message, .. }) = parser.line(line.to_vec().into()) {
            retries += usize::from(line.starts_with(b"RETRY"));
            cloud.driver.publish(message).await.unwrap();
        }
    }
    assert_eq!(retries, 58);
    // It ends in order when hooks have run and results were told.
    let base = cloud.rig.directory.path().to_str().unwrap().to_owned();
    let (mut ours, mut retried) = (BTreeMap::<u32, BTreeSet<Result>>::new(), 0);
    let last = api_call("one.test.last", 1, "");
    cloud.driver.publish(last).await.unwrap();
    let expected = reported(|text| !text.contains("<RETRY>"));
    let mut missing: Vec<_> = expected.iter().filter(|(hook, _)| differs(*hook).is_none()).collect();
    while !missing.is_empty() || retried < 56 {
        let (hook, result, retry) = Result::of_ours(&cloud.result().await, &base);
        if retry {
            retried += 1;
        } else {
            ours.entry(hook).or_default().insert(result);
            missing.retain(|(hook, result)| !ours.get(hook).is_some_and(|ours| ours.contains(result)));
        }
    }
    cloud.stop().await;
    // The log of executions has them, too, with the host that they ran on.
    let store = Store::open(&cloud.path("var/hookbus-hem"), StoreOptions::default()).unwrap();
    for (hook, remote) in [(15, true), (2, false)] {
        let kept = store.executions(HookKey::Oned(hook)).await.unwrap();
        assert!(!kept.is_empty() && kept.iter().all(|kept| kept.execution.host.is_some() == remote), "{kept:?}");
    }
}

/// What happens while hooks are loaded waits for them, at the start and after a change; a thousand changes cost a few loads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_falls_between_a_change_and_its_load() {
    let mut cloud = Cloud::new(pool_of(&[echo(0, "first", RUNNING)])).await;
    cloud.hangs.store(true, Ordering::SeqCst);
    cloud.spawn();
    wait("it to ask for hooks", || {
        if cloud.oned.requests().is_empty() { Err("not yet") } else { Ok(()) }.map_err(str::to_owned)
    })
    .await;
    cloud.driver.publish(vm_state(1, "ACTIVE", "RUNNING", "")).await.unwrap();
    // The call that hangs is given up when it is asked to load again.
    cloud.hangs.store(false, Ordering::SeqCst);
    cloud.signal(Signal::HUP);
    assert_eq!(cloud.output().await, (0, "first\n".into(), false));

    *cloud.pool.lock() = pool_of(&[echo(0, "first", RUNNING), echo(1, "second", "<CALL>one.vm.rename</CALL>")]);
    cloud.driver.publish(api_call("one.hook.allocate", 1, "")).await.unwrap();
    cloud.driver.publish(api_call("one.vm.rename", 1, "")).await.unwrap();
    assert_eq!(cloud.output().await, (1, "second\n".into(), false));

    let asked = cloud.oned.requests().len();
    for _ in 0..1000 {
        cloud.driver.publish(api_call("one.hook.update", 1, "")).await.unwrap();
    }
    *cloud.pool.lock() = pool_of(&[echo(1, "third", "<CALL>one.vm.rename</CALL>")]);
    cloud.driver.publish(api_call("one.hook.delete", 1, "")).await.unwrap();
    for message in [vm_state(1, "ACTIVE", "RUNNING", ""), api_call("one.vm.rename", 1, "")] {
        cloud.driver.publish(message).await.unwrap();
    }
    assert_eq!(cloud.output().await, (1, "third\n".into(), false));
    let loads = cloud.oned.requests().len() - asked;
    assert!((1..200).contains(&loads), "{loads} loads for 1,001 changes");
    cloud.stop().await;
}

/// Results wait for a driver that is away, over a crash too, and are told in order when it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_wait_until_oned_has_them() {
    let mut cloud = Cloud::new(pool_of(&[echo(0, "first", RUNNING)])).await;
    cloud.configure(1);
    cloud.start().await;
    cloud.logger.take().unwrap().shutdown(Duration::ZERO).await;
    for id in 0..5 {
        cloud.driver.publish(vm_state(id, "ACTIVE", "RUNNING", "")).await.unwrap();
    }
    cloud.logged_times("hook 0: its result is written down", 5).await;
    cloud.kill();
    cloud.spawn();
    cloud.logged_times("hooks loaded from", 2).await;
    let (sender, results) = mpsc::channel(1);
    let logger = wait("the port", || {
        Logger::bind(LoggerOptions::new(cloud.replier.clone()), sender.clone()).map_err(|e| e.to_string())
    })
    .await;
    (cloud.logger, cloud.results) = (Some(logger), results);
    for _ in 0..5 {
        assert_eq!(cloud.output().await, (0, "first\n".into(), false));
    }
    cloud.stop().await;
}

/// What waits to be repeated outlives the process, with its environment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repetitions_outlive_it() {
    let attributes = "<CALL>one.vm.rename</CALL><COMMAND>fail.sh</COMMAND><ARGUMENTS>x</ARGUMENTS><RETRIES>1</RETRIES><RETRY_BACKOFF>2</RETRY_BACKOFF>";
    let mut cloud = Cloud::new(pool_of(&[hook(0, "fail", attributes)])).await;
    cloud.rig.script("fail.sh", "#!/bin/sh\necho $HOOKBUS_KEY $1\nexit 1\n");
    cloud.start().await;
    cloud.driver.publish(api_call("one.vm.rename", 1, "")).await.unwrap();
    assert_eq!(cloud.output().await, (0, "EVENT API one.vm.rename 1 x\n".into(), false));
    cloud.kill();
    cloud.spawn();
    cloud.logged("1 runs were to be repeated, or were cut off; they go on").await;
    assert_eq!(cloud.output().await, (0, "EVENT API one.vm.rename 1 x\n".into(), false));
    // The result that came may have been the first one once more, and what is logged isn't written yet.
    let letter = wait("the dead letter", || {
        let letters = fs::read_dir(cloud.path("var/hookbus-hem/dead-letters")).map_err(|e| e.to_string())?;
        let letters: Vec<_> = letters.flatten().filter_map(|letter| fs::read_to_string(letter.path()).ok()).collect();
        assert!(letters.len() <= 1, "{letters:?}");
        let letter = letters.first().ok_or("there is none")?;
        serde_json::from_str::<serde_json::Value>(letter).map_err(|e| e.to_string())
    })
    .await;
    cloud.logged("that was the last attempt").await;
    assert_eq!(
        (letter["hook_id"].as_i64(), letter["attempt"].as_i64(), letter["code"].as_i64()),
        (Some(0), Some(2), Some(1))
    );
    assert_eq!((letter["arguments"].as_str(), &letter["environment"]["HOOKBUS_KEY"]), (Some("x"), &letter["key"]));
    cloud.stop().await;
}

/// Those that are too large to be kept in memory are read from the store, and come in their place all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_large_and_small_are_told_in_order() {
    let trigger = |call: &str| format!("<CALL>one.vm.{call}</CALL>");
    let large =
        format!("<COMMAND>/usr/bin/head</COMMAND><ARGUMENTS>-c 20000 /dev/zero</ARGUMENTS>{}", trigger("large"));
    let mut cloud = Cloud::new(pool_of(&[echo(0, "small", &trigger("small")), hook(1, "large", &large)])).await;
    cloud.configure(1);
    cloud.start().await;
    let calls: Vec<usize> = (0..60_usize).map(|n| usize::from(n % 7 == 3 || (20..25).contains(&n))).collect();
    for &call in &calls {
        cloud.driver.publish(api_call(["one.vm.small", "one.vm.large"][call], 1, "")).await.unwrap();
    }
    for (n, &call) in calls.iter().enumerate() {
        let (hook, stdout, _) = cloud.output().await;
        let expected = [(0, "small\n".into()), (1, "\0".repeat(20_000))];
        assert!((hook, stdout) == expected[call], "result {n} is of hook {hook}");
    }
    cloud.stop().await;
}

/// A lost answer, and messages that make no sense, are in nobody's way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_comes_ends_it() {
    let mut cloud = Cloud::new(pool_of(&[echo(0, "first", RUNNING), hook(7, "broken", "<COMMAND>x</COMMAND>")])).await;
    cloud.start().await;
    cloud.logged("hook 7 (broken): ").await;
    let tagged = |key: &str, text: &str| Message::new(key, text.to_owned()).with_tag(PAYLOAD_BASE64);
    for message in [
        tagged("EVENT API x", "no base64!"),
        tagged("EVENT STATE VM/ACTIVE/RUNNING/1 ", "bm8geG1s"),
        tagged("EVENT API one.hook.update 1", ""),
        tagged("RETRY", "!!!"),
        tagged("RETRY", "PEhPT0tfTUVTU0FHRS8+"),
        Message::new("EVENT API gap 1", vec![0xFF; 1 << 20]),
    ] {
        cloud.driver.publish(message).await.unwrap();
    }
    cloud.driver.publish(vm_state(1, "ACTIVE", "RUNNING", "")).await.unwrap();
    // The answer to the first attempt is lost with its connection.
    let request = tokio::time::timeout(support::PATIENCE, cloud.results.recv()).await.unwrap().unwrap();
    let first = String::from_utf8(request.body().to_vec()).unwrap();
    cloud.logger.take().unwrap().shutdown(Duration::ZERO).await;
    drop(request);
    let (sender, results) = mpsc::channel(1);
    let logger = wait("the port", || {
        Logger::bind(LoggerOptions::new(cloud.replier.clone()), sender.clone()).map_err(|e| e.to_string())
    })
    .await;
    (cloud.logger, cloud.results) = (Some(logger), results);
    assert_eq!(cloud.result().await, first, "the same once more");

    // A retry: with the arguments of the record, and the command that the hook has now.
    let xml = "<HOOK_MESSAGE><ARGUMENTS>b25jZSBtb3Jl</ARGUMENTS><HOOK_ID>0</HOOK_ID></HOOK_MESSAGE>";
    let retry = support::opennebula(&["RETRY"], xml);
    cloud.driver.publish(retry).await.unwrap();
    assert_eq!(cloud.output().await, (0, "once more\n".into(), true));

    // Lines are in the original's form, and a log that was moved away is opened again.
    let log = cloud.log();
    let line = log.lines().find(|line| line.contains("connected to the publisher")).unwrap();
    let (time, text) = line.split_once(" [I]: ").unwrap();
    assert!(time.len() == 24 && time.ends_with(|c: char| c.is_ascii_digit()), "{line}");
    assert!(text.starts_with("connected"), "{line}");
    fs::rename(cloud.path("var/onehem.log"), cloud.path("var/old.log")).unwrap();
    cloud.signal(Signal::HUP);
    cloud.logged("hooks are loaded again: SIGHUP").await;
    cloud.stop().await;
}

#[test]
fn wrong_configurations_are_told() {
    let directory = tempfile::tempdir().unwrap();
    let run = |file: &str, text: Option<&str>| {
        let path = directory.path().join(file);
        if let Some(text) = text {
            fs::write(&path, text).unwrap();
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_hookbus-hem"));
        command.env_clear().env("ONE_LOCATION", directory.path()).arg("-c").arg(&path).arg("--log-file").arg("-");
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, told) = run("missing.conf", None);
    assert!(code == Some(2) && told.contains("missing.conf") && told.contains("No such file"), "{code:?} {told}");
    let (code, told) = run("wrong.conf", Some(":concurrency: many\n"));
    assert!(code == Some(2) && told.contains("wrong.conf:1:"), "{code:?} {told}");
    // No one_auth anywhere.
    let (code, told) = run("right.conf", Some(":concurrency: 5\n"));
    assert!(code == Some(2) && told.contains("one_auth"), "{code:?} {told}");
}
