//! A stock driver's publisher as a source: libzmq's own PUB side, fed with what was recorded.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hookbus_bridges::PAYLOAD_BASE64;
use hookbus_bridges::zeromq::{
    ClientOptions, Endpoint, Heartbeat, SOURCE_PREFIXES, SourceState, ZeromqSource, ZeromqSourceOptions,
};
use hookbus_broker::{Broker, Received, SubscribeOptions, Subscription};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::support::{base64, soon, until};

/// A publisher of libzmq: it binds the port, says who subscribes (XPUB is PUB that tells), and publishes the JSON lines that it reads.
const PUBLISHER: &str = r#"
import json, sys, threading, zmq
socket = zmq.Context().socket(zmq.XPUB)
socket.set(zmq.SNDHWM, 0)
socket.set(zmq.LINGER, -1)
socket.bind("tcp://127.0.0.1:" + sys.argv[1])
print("bound", flush=True)
for _ in range(int(sys.argv[2])):
    print("subscribed", socket.recv(), flush=True)
for line in sys.stdin:
    socket.send_multipart([frame.encode() for frame in json.loads(line)])
"#;

struct Driver {
    child: Child,
    /// What it says, read in a thread.
    lines: std::sync::mpsc::Receiver<String>,
}

impl Driver {
    /// One that publishes once it has so many subscriptions.
    fn start(port: u16, subscriptions: usize) -> Self {
        let mut child = Command::new("/usr/bin/python3")
            .args(["-c", PUBLISHER, &port.to_string(), &subscriptions.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = std::sync::mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Driver { child, lines }
    }

    async fn says(&self, beginning: &str) {
        until(beginning, || self.lines.try_recv().is_ok_and(|line| line.starts_with(beginning))).await;
    }

    async fn is_subscribed(&self, times: usize) {
        for _ in 0..times {
            self.says("subscribed").await;
        }
    }

    fn publish(&mut self, frames: &[&str]) {
        let line = serde_json::to_string(frames).unwrap();
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn endpoint(port: u16) -> Endpoint {
    format!("tcp://127.0.0.1:{port}").parse().unwrap()
}

/// Comes back soon, and notices a dead peer soon.
fn quick() -> ZeromqSourceOptions {
    let heartbeat = Heartbeat { interval: Duration::from_millis(50), timeout: Duration::from_millis(1000) };
    let client = ClientOptions::default()
        .heartbeat(Some(heartbeat))
        .reconnect(Duration::from_millis(10), Duration::from_millis(50));
    ZeromqSourceOptions::default().client(client)
}

fn broker() -> (Broker, Subscription) {
    let broker = Broker::default();
    let events = broker.subscribe(SubscribeOptions::new("test").prefix("").hwm(0));
    (broker, events)
}

async fn next(events: &mut Subscription) -> Received {
    soon("an event", events.recv()).await.unwrap().message().unwrap()
}

fn keys(event: &Received) -> Vec<String> {
    event.keys().map(|key| String::from_utf8(key.to_vec()).unwrap()).collect()
}

fn api(call: &str) -> String {
    let xml = format!(
        "<HOOK_MESSAGE><HOOK_TYPE>API</HOOK_TYPE><CALL>{call}</CALL><CALL_INFO><RESULT>1</RESULT></CALL_INFO></HOOK_MESSAGE>"
    );
    String::from_utf8(base64(xml.as_bytes())).unwrap()
}

fn recorded() -> Vec<(String, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/opennebula/published.jsonl.zst");
    let mut text = String::new();
    let file = std::fs::File::open(path).unwrap();
    ruzstd::decoding::StreamingDecoder::new(file).unwrap().read_to_string(&mut text).unwrap();
    let field = |value: &serde_json::Value, name: &str| value[name].as_str().unwrap().to_owned();
    text.lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|value| (field(&value, "key"), field(&value, "content")))
        .collect()
}

/// Each event comes once, in the publisher's order, with all the keys that it was published under, also where everything is subscribed to;
/// and it goes on after the publisher was killed.
#[tokio::test]
async fn recorded_events_come_once_with_all_keys() {
    let recorded = recorded();
    let mut keys_of: HashMap<&str, Vec<&str>> = HashMap::new();
    for (key, content) in &recorded {
        let keys = keys_of.entry(content).or_default();
        if !keys.contains(&key.as_str()) {
            keys.push(key);
        }
    }
    let events = recorded.iter().filter(|(key, _)| SOURCE_PREFIXES.iter().any(|form| key.starts_with(form)));
    let events: Vec<_> = events.collect();
    assert_eq!(events.len(), 367 + 398 + 58);

    for prefixes in [&SOURCE_PREFIXES[..], &[""]] {
        let port = free_port();
        let mut driver = Driver::start(port, prefixes.len());
        let (broker, mut arriving) = broker();
        let source = ZeromqSource::spawn_with("old", endpoint(port), prefixes, broker, quick());
        driver.is_subscribed(prefixes.len()).await;
        for (key, content) in &recorded {
            driver.publish(&[key, content]);
        }
        for (_, content) in &events {
            let event = next(&mut arriving).await;
            assert_eq!(event.payload(), content.as_bytes());
            assert_eq!(event.tag(), PAYLOAD_BASE64);
            assert_eq!(keys(&event), keys_of[content.as_str()]);
        }
        driver.publish(&["EVENT API last 1", &api("last")]);
        assert_eq!(keys(&next(&mut arriving).await), ["EVENT API last 1"]);
        let status = source.status();
        assert_eq!((status.events, status.connects), (events.len() as u64 + 1, 1));
        let skipped = if prefixes == [""] { recorded.len() - events.len() } else { 0 };
        assert_eq!(status.skipped, skipped as u64);
        assert_eq!(status.state, SourceState::Connected);

        driver.signal(Signal::SIGKILL);
        until("it notices", || matches!(source.status().state, SourceState::Connecting { reason: Some(_) })).await;
        drop(driver);
        let mut driver = Driver::start(port, prefixes.len());
        driver.is_subscribed(prefixes.len()).await;
        driver.publish(&["EVENT API back 1", &api("back")]);
        assert_eq!(keys(&next(&mut arriving).await), ["EVENT API back 1"]);
        assert_eq!((source.status().connects, source.status().state), (2, SourceState::Connected));
    }
}

/// A publisher whose process hangs keeps its connections; only heartbeats tell.
#[tokio::test]
async fn a_driver_that_hangs_is_noticed() {
    let port = free_port();
    let driver = Driver::start(port, 2);
    let source = ZeromqSource::spawn_with("old", endpoint(port), SOURCE_PREFIXES, broker().0, quick());
    driver.is_subscribed(2).await;
    until("it is connected", || source.status().state == SourceState::Connected).await;
    driver.signal(Signal::SIGSTOP);
    until("it notices", || match source.status().state {
        SourceState::Connecting { reason: Some(reason) } => reason.contains("silent"),
        _ => false,
    })
    .await;
    driver.signal(Signal::SIGCONT);
    until("it is back", || source.status().state == SourceState::Connected).await;
    assert!(source.status().connects >= 2);
}

/// A connection that lives and brings nothing is shown as such, until something comes.
#[tokio::test]
async fn silence_is_shown() {
    let port = free_port();
    let mut driver = Driver::start(port, 2);
    let (broker, mut arriving) = broker();
    let options = quick().silence(Duration::from_millis(300));
    let source = ZeromqSource::spawn_with("old", endpoint(port), SOURCE_PREFIXES, broker, options);
    driver.is_subscribed(2).await;
    until("it is silent", || source.status().state == SourceState::Silent).await;
    driver.publish(&["EVENT API x 1", &api("x")]);
    next(&mut arriving).await;
    // It may be silent again by now; what comes next finds it so and changes it.
    until("it is silent again", || source.status().state == SourceState::Silent).await;
    let json = serde_json::to_value(source.status()).unwrap();
    assert_eq!((&json["state"], &json["name"], &json["events"]), (&"silent".into(), &"old".into(), &1.into()));
    assert_eq!(json["connects"], 1, "silence is no reason to hang up");
}

/// What is no event is skipped, counted, and holds nothing up.
#[tokio::test]
async fn what_is_no_event_is_skipped() {
    let port = free_port();
    let mut driver = Driver::start(port, 1);
    let (broker, mut arriving) = broker();
    let source = ZeromqSource::spawn_with("old", endpoint(port), [""], broker, quick());
    driver.is_subscribed(1).await;
    let good = api("x");
    let no_event = String::from_utf8(base64(b"<HOOK_MESSAGE>nothing</HOOK_MESSAGE>")).unwrap();
    let bad: [&[&str]; 8] = [
        &["EVENT API x 1", "?? no base64"],
        &["EVENT API x 1", ""],
        &["EVENT STATE VM/ACTIVE/RUNNING/1 ", &no_event],
        &["EVENT API x 1"],
        &["EVENT API x 1", &good, &good],
        &["RETRY", &good],
        &["HOOKBUS GAP", &good],
        &["", ""],
    ];
    for frames in bad {
        driver.publish(frames);
    }
    driver.publish(&["EVENT API whatever 0", &good]);
    // The content decides.
    assert_eq!(keys(&next(&mut arriving).await), ["EVENT API x 1"]);
    assert_eq!((source.status().events, source.status().skipped), (1, bad.len() as u64));
}

#[tokio::test]
async fn a_shutdown_publishes_what_has_arrived() {
    let port = free_port();
    let mut driver = Driver::start(port, 2);
    let (broker, mut arriving) = broker();
    let source = ZeromqSource::spawn_with("old", endpoint(port), SOURCE_PREFIXES, broker.clone(), quick());
    driver.is_subscribed(2).await;
    driver.publish(&["EVENT API x 1", &api("x")]);
    next(&mut arriving).await;
    soon("the end", source.shutdown()).await;

    // A broker that was closed ends a source.
    let source = ZeromqSource::spawn_with("old", endpoint(port), [""], broker.clone(), quick());
    until("it is connected", || source.status().state == SourceState::Connected).await;
    broker.close();
    until("it has ended", || {
        driver.publish(&["EVENT API x 1", &api("x")]);
        source.status().state == SourceState::Ended
    })
    .await;
}

#[tokio::test]
async fn a_driver_that_is_not_there_is_waited_for() {
    let port = free_port();
    let (broker, mut arriving) = broker();
    let source = ZeromqSource::spawn_with("old", endpoint(port), SOURCE_PREFIXES, broker, quick());
    until("it has tried", || match source.status().state {
        SourceState::Connecting { reason: Some(reason) } => reason.contains("refused"),
        _ => false,
    })
    .await;
    assert_eq!(source.status().connects, 0);
    let mut driver = Driver::start(port, 2);
    driver.is_subscribed(2).await;
    driver.publish(&["EVENT API x 1", &api("x")]);
    next(&mut arriving).await;
}
