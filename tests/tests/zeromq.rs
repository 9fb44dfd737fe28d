//! The ZeroMQ ports of `hookbus hm` and the libraries that connect to them: good peers, slow ones, hostile ones.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hookbus_tests::tools::{self, Tool};
use hookbus_tests::{
    Deadline, Hm, HmOptions, Message, NetworkNamespace, Peer, PeerOptions, Tap, assert_same, events, fixtures,
    wait_until,
};

// --- libraries ------------------------------------------------------------------------------------------------------

#[test]
fn libzmq_subscribers_with_heartbeats_stay_connected() {
    for (tool, kind) in [(Tool::Python, "SUB"), (Tool::Python, "XSUB"), (Tool::Ruby, "SUB"), (Tool::Ruby, "XSUB")] {
        let mut hm = Hm::start();
        let tap = Tap::to(hm.publisher());
        let mut peer = PeerOptions::new(tool, kind)
            .option("HEARTBEAT_IVL", 20)
            .option("HEARTBEAT_TTL", 30_000)
            .option("HEARTBEAT_TIMEOUT", 30_000)
            .subscribe(&tap.url(), ["EVENT", "RETRY"]);
        hm.join(&mut [&mut peer]);

        for _ in 0..3 {
            let before = tap.answered(b"\x04PONG");
            wait_until(&format!("five more answers to the heartbeats of {}", peer.name()), || {
                match tap.answered(b"\x04PONG") - before {
                    5.. => Ok(()),
                    some => Err(format!("{some} answers to {} heartbeats", tap.sent(b"\x04PING"))),
                }
            });
            receives_the_recorded_run(&hm, &mut peer, &["EVENT", "RETRY"]);
        }
        assert_eq!(tap.connections(), 1, "the first connection of {} still lives", peer.name());
    }
}

#[test]
fn nodejs_subscribers_receive_as_fireedge_does() {
    if !Tool::Node.wanted() {
        return;
    }
    // FireEdge watches pools, by the kind of their objects, or one object.
    let filters = ["EVENT VM ", "EVENT HOST ", "EVENT IMAGE 1", "EVENT NET ", "RETRY"];
    for kind in ["SUB", "SUB-v5"] {
        let mut hm = Hm::start();
        let mut peer = PeerOptions::new(Tool::Node, kind).subscribe(&hm.url(), filters);
        hm.join(&mut [&mut peer]);
        receives_the_recorded_run(&hm, &mut peer, &filters);
    }
}

#[test]
fn nodejs_subscribers_with_heartbeats_stay_connected() {
    if !Tool::Node.wanted() {
        return;
    }
    let mut hm = Hm::start();
    let tap = Tap::to(hm.publisher());
    let mut peer = PeerOptions::new(Tool::Node, "SUB")
        .option("heartbeatInterval", 20)
        .option("heartbeatTimeout", 30_000)
        .subscribe(&tap.url(), [""]);
    hm.join(&mut [&mut peer]);
    wait_until("five answers to heartbeats", || match tap.answered(b"\x04PONG") {
        5.. => Ok(()),
        some => Err(format!("{some} answers to {} heartbeats", tap.sent(b"\x04PING"))),
    });
    receives_the_recorded_run(&hm, &mut peer, &[""]);
    assert_eq!(tap.connections(), 1);
}

#[test]
fn the_zeromq_crate_receives() {
    // It greets as ZMTP 3.0, and so sends its subscriptions as messages.
    const FILTERS: &[&str] = &["EVENT STATE ", "EVENT API one.vm.", "RETRY"];
    let mut hm = Hm::start();
    let mut peer = Peer::zeromq_crate(&hm.url(), FILTERS);
    hm.join(&mut [&mut peer]);
    receives_the_recorded_run(&hm, &mut peer, FILTERS);
}

#[test]
fn subscribers_of_all_kinds_at_once_receive_the_same() {
    let mut hm = Hm::start();
    let mut peers = vec![
        PeerOptions::new(Tool::Python, "SUB").subscribe(&hm.url(), [""]),
        PeerOptions::new(Tool::Python, "XSUB").subscribe(&hm.url(), [""]),
        PeerOptions::new(Tool::Ruby, "SUB").subscribe(&hm.url(), [""]),
        Peer::zeromq_crate(&hm.url(), &[""]),
    ];
    if Tool::Node.wanted() {
        peers.push(PeerOptions::new(Tool::Node, "SUB").subscribe(&hm.url(), [""]));
    }
    hm.join(&mut peers.iter_mut().collect::<Vec<_>>());
    let lines = fixtures::event_lines();
    hm.feed(&lines.concat());
    let end = hm.mark("the end");
    let expected = fixtures::expected(&lines);
    for mut peer in peers {
        let received = peer.until(&end);
        assert_same(peer.name(), &received, &expected);
    }
}

/// The script that OpenNebula's documentation prints, unchanged, with the ports that it has.
#[test]
fn the_script_from_opennebulas_documentation_receives() {
    let Some(network) = NetworkNamespace::new() else {
        eprintln!("left out: the script insists on port 2101, and a network of its own takes root");
        return;
    };
    let mut hm = HmOptions::on(2101, 2102).within(&network).start();
    // Ruby keeps what it writes into a pipe until there is more; the script doesn't know that this is one.
    let mut script = network
        .command("/usr/bin/ruby")
        .args(["-e", "$stdout.sync = true; load ARGV.shift"])
        .arg(tools::script("opennebula-documentation.rb"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("nsenter can be started");
    let mut output = script.stdout.take().expect("it was piped");
    let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let reader = std::sync::Arc::clone(&seen);
    thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = output.read(&mut buffer) {
            reader.lock().expect("never poisoned").extend_from_slice(&buffer[..count]);
        }
    });

    wait_until("the script to print a probe", || {
        hm.feed(&events::api("hookbus.probe").line);
        if seen.lock().expect("never poisoned").is_empty() { Err("nothing") } else { Ok(()) }
    });
    let first = events::api("hookbus.first");
    let last = events::api("hookbus.last");
    let lines = fixtures::event_lines();
    hm.feed(&[first.line.clone(), lines.concat(), last.line.clone()].concat());

    let mut expected = Vec::new();
    let events = fixtures::expected(&lines).into_iter().filter(|message| message.key().starts_with(b"EVENT"));
    for message in first.messages.into_iter().chain(events).chain(last.messages) {
        expected.extend_from_slice(&as_the_script_prints(&message));
    }
    let start = as_the_script_prints(&events::api("hookbus.first").messages[0]);
    let end = as_the_script_prints(&events::api("hookbus.last").messages[0]);
    let printed = wait_until("the script to print the last event", || {
        let seen = seen.lock().expect("never poisoned");
        if !seen.ends_with(&end) {
            return Err(format!("{} bytes, ending in {:?}", seen.len(), tail(&seen)));
        }
        let at = seen.windows(start.len()).position(|window| window == start).ok_or("no first event")?;
        Ok(seen[at..].to_vec())
    });
    let _ = script.kill();
    let _ = script.wait();
    let same = printed.iter().zip(&expected).take_while(|(one, other)| one == other).count();
    assert!(
        same == expected.len() && same == printed.len(),
        "it printed {} bytes instead of {}; from byte {same} it reads {:?} instead of {:?}",
        printed.len(),
        expected.len(),
        String::from_utf8_lossy(&printed[same..printed.len().min(same + 200)]),
        String::from_utf8_lossy(&expected[same..expected.len().min(same + 200)]),
    );
    hm.finalize();
}

fn as_the_script_prints(message: &Message) -> Vec<u8> {
    let xml = BASE64_STANDARD.decode(message.content()).expect("the content of an event is base64");
    [b"Key: ", message.key(), b"\nContent: ", &xml, b"\n========================\n"].concat()
}

// --- filters --------------------------------------------------------------------------------------------------------

/// The filters by which OneFlow follows one virtual machine.
fn oneflow_filters(id: u32) -> [String; 5] {
    ["ACTIVE/RUNNING", "STOPPED/LCM_INIT", "SUSPENDED/LCM_INIT", "POWEROFF/LCM_INIT", "DONE/LCM_INIT"]
        .map(|state| format!("EVENT STATE VM/{state}/{id} "))
}

#[test]
fn twenty_thousand_filters_survive_a_restart() {
    const MACHINES: u32 = 4000;
    let mut hm = Hm::start();
    // A SUB's own high-water mark of 1,000 applies to the subscriptions that it sends (zeromq/libzmq#2258), so lift it.
    let mut peer = PeerOptions::new(Tool::Python, "SUB").option("SNDHWM", 0).connect(&hm.url());
    peer.subscribe((0..MACHINES).flat_map(oneflow_filters).chain(["RETRY".into()]));
    hm.join(&mut [&mut peer]);
    receives_only(&hm, &mut peer, |id| id < MACHINES);

    hm.program.kill();
    hm = hm.again().start();
    hm.join(&mut [&mut peer]);
    receives_only(&hm, &mut peer, |id| id < MACHINES);

    peer.unsubscribe((0..MACHINES).filter(|id| *id != 7).flat_map(oneflow_filters));
    joins_again(&mut hm, &mut peer);
    receives_only(&hm, &mut peer, |id| id == 7);
}

/// Publishes changes of many machines, of which the subscriber must get those that it follows.
fn receives_only(hm: &Hm, peer: &mut Peer, follows: impl Fn(u32) -> bool) {
    let mut expected = Vec::new();
    for id in (0..5000).step_by(7) {
        for (state, lcm, wanted) in [
            ("ACTIVE", "RUNNING", true),
            ("ACTIVE", "PROLOG", false),
            ("DONE", "LCM_INIT", true),
            ("HOLD", "LCM_INIT", false),
        ] {
            let event = events::vm(id, state, lcm, "one of many");
            hm.feed(&event.line);
            if wanted && follows(id) {
                expected.push(event.messages[1].clone());
            }
        }
    }
    let end = hm.mark("the end");
    let received = peer.until(&end);
    assert_same(peer.name(), &received, &expected);
}

/// Waits until the changes that a subscriber made to its filters have arrived: they do so in order, so a new filter is
/// added and waited for.
fn joins_again(hm: &mut Hm, peer: &mut Peer) {
    peer.subscribe(["EVENT API hookbus.probe."]);
    hm.join_with(&mut [peer], |number| events::api(&format!("hookbus.probe.{number}")));
    peer.unsubscribe(["EVENT API hookbus.probe."]);
}

/// libzmq's subscribers count their filters themselves: they send each subscription, but one cancellation only, when the
/// last is removed. A publisher that counted, too, would never be rid of it. (A SUB hides that, an XSUB shows it.)
#[test]
fn a_filter_counts_as_often_as_it_was_added() {
    for kind in ["SUB", "XSUB"] {
        let mut hm = Hm::start();
        let mut peer = PeerOptions::new(Tool::Python, kind).subscribe(&hm.url(), ["EVENT VM 1", "EVENT VM 1", "RETRY"]);
        hm.join(&mut [&mut peer]);
        let event = events::vm(1, "ACTIVE", "RUNNING", "");

        for (left, expected) in [(1, &event.messages[..1]), (0, &[])] {
            peer.unsubscribe(["EVENT VM 1"]);
            joins_again(&mut hm, &mut peer);
            hm.feed(&event.line);
            let end = hm.mark(&format!("{left} left"));
            assert_same(&format!("{kind} with {left} filters left"), &peer.until(&end), expected);
        }
    }
}

#[test]
fn filters_are_bytes() {
    let mut hm = Hm::start();
    let mut peer = PeerOptions::new(Tool::Python, "SUB")
        .subscribe(&hm.url(), [b"EVENT VM 1".to_vec(), vec![0xff; 300], b"EVENT\0".to_vec(), b"RETRY".to_vec()]);
    hm.join(&mut [&mut peer]);
    let mut expected = Vec::new();
    for id in [0, 1, 2, 10, 11, 21, 100] {
        let event = events::vm(id, "ACTIVE", "RUNNING", "");
        hm.feed(&event.line);
        if id.to_string().starts_with('1') {
            expected.push(event.messages[0].clone());
        }
    }
    let end = hm.mark("the end");
    assert_same("a prefix of an id", &peer.until(&end), &expected);
}

/// As OneFlow does: machines come and go, and its filters with them, while events of all machines flow.
#[test]
fn filters_that_change_while_events_flow_lose_nothing() {
    const MACHINES: u32 = 60;
    const ROUNDS: u32 = 20;
    let mut hm = Hm::start();
    let mut peer = PeerOptions::new(Tool::Python, "SUB").subscribe(&hm.url(), ["RETRY"]);
    hm.join(&mut [&mut peer]);
    let mut published: HashMap<Message, usize> = HashMap::new();
    let mut received: HashMap<Message, usize> = HashMap::new();
    let stop = AtomicBool::new(false);

    thread::scope(|scope| {
        let noise = hm.feeder();
        // Also when an assertion fails: the scope waits for its threads.
        let _stop = StopWhenDropped(&stop);
        let stop = &stop;
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                for id in 0..100 {
                    noise.write(&events::vm(1000 + id, "ACTIVE", "RUNNING", "nobody follows it").line);
                }
            }
        });
        let mut random = fastrand::Rng::with_seed(42);
        let mut followed: Vec<u32> = Vec::new();
        for round in 0..ROUNDS {
            let (gone, new): (Vec<u32>, Vec<u32>) =
                (0..MACHINES).filter(|_| random.u8(..) < 64).partition(|id| followed.contains(id));
            peer.unsubscribe(gone.iter().copied().flat_map(oneflow_filters));
            peer.subscribe(new.iter().copied().flat_map(oneflow_filters));
            followed.retain(|id| !gone.contains(id));
            followed.extend(new);
            joins_again(&mut hm, &mut peer);

            for id in 0..MACHINES {
                let event = events::vm(id, "POWEROFF", "LCM_INIT", &format!("round {round}"));
                hm.feed(&event.line);
                if followed.contains(&id) {
                    *published.entry(event.messages[1].clone()).or_default() += 1;
                }
            }
            let end = hm.mark(&format!("end of round {round}"));
            for message in peer.until(&end) {
                *received.entry(message).or_default() += 1;
            }
        }
    });
    let missing: Vec<_> = published.keys().filter(|message| !received.contains_key(message)).collect();
    let unwanted: Vec<_> = received.keys().filter(|message| !published.contains_key(message)).collect();
    assert!(missing.is_empty() && unwanted.is_empty(), "missing: {missing:#?}\nunwanted: {unwanted:#?}");
    assert_eq!(received, published, "each once");
}

struct StopWhenDropped<'a>(&'a AtomicBool);

impl Drop for StopWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

// --- slow peers -----------------------------------------------------------------------------------------------------

/// A subscriber that stalls is told what it missed, in its place; its neighbours don't notice.
#[test]
fn a_slow_subscriber_is_told_what_it_missed() {
    const EVENTS: u32 = 80;
    let mut hm = HmOptions::default().arguments("-h 10").start();
    let mut slow = PeerOptions::new(Tool::Python, "SUB")
        .option("RCVHWM", 1)
        .option("RCVBUF", 4096)
        .subscribe(&hm.url(), ["EVENT STATE ", "HOOKBUS GAP", "RETRY"]);
    let mut fast = [
        PeerOptions::new(Tool::Python, "SUB").subscribe(&hm.url(), [""]),
        PeerOptions::new(Tool::Ruby, "SUB").subscribe(&hm.url(), [""]),
    ];
    let [first, second] = &mut fast;
    hm.join(&mut [&mut slow, first, second]);

    slow.pause();
    let mut published = Vec::new();
    // Large events, so that the buffers between the two don't hide the queue.
    let ballast = "x".repeat(300 << 10);
    for id in 0..EVENTS {
        let event = events::vm(id, "ACTIVE", "RUNNING", &ballast);
        hm.feed(&event.line);
        for peer in &mut fast {
            let received = [peer.next("an event"), peer.next("an event")];
            assert_same(peer.name(), &received, &event.messages);
        }
        published.push(event.messages[1].clone());
    }
    slow.resume();

    // Nothing more is published: it must hear of the last gap all the same.
    let mut place = 0;
    let mut told = 0;
    while place < published.len() {
        let message =
            slow.next(&format!("the rest of {EVENTS} events: it knows of {place}, of which {told} were told as lost"));
        if message.key() == b"HOOKBUS GAP" {
            let count = gap(&message);
            place += count;
            told += count;
        } else {
            assert!(message == published[place], "out of its place, after {place} events: {message:?}");
            place += 1;
        }
    }
    assert_eq!(place, published.len(), "received and told is what was published");
    assert!(told > 0, "a queue of 10 can't have kept {EVENTS} events of 400 kB");

    // And it goes on as if nothing had happened.
    let event = events::vm(1, "DONE", "LCM_INIT", "");
    hm.feed(&event.line);
    assert_eq!(slow.next("an event after the gap"), event.messages[1]);
}

/// How many events a gap message says were lost.
fn gap(message: &Message) -> usize {
    let json = BASE64_STANDARD.decode(message.content()).expect("the content of a gap is base64");
    let json: serde_json::Value = serde_json::from_slice(&json).expect("within it is JSON");
    let number = |name: &str| json[name].as_u64().unwrap_or_else(|| panic!("no number `{name}` in {json}"));
    let (first, last, count) = (number("first"), number("last"), number("count"));
    assert!(first <= last && count >= 1 && count <= last - first + 1, "a gap that can't be: {json}");
    usize::try_from(count).expect("it is small")
}

#[test]
fn without_a_limit_a_pause_costs_nothing() {
    const EVENTS: u32 = 20_000;
    let mut hm = Hm::start();
    let mut peer = PeerOptions::new(Tool::Python, "SUB")
        .option("RCVHWM", 1)
        .option("RCVBUF", 4096)
        .subscribe(&hm.url(), ["EVENT STATE ", "HOOKBUS GAP", "RETRY"]);
    hm.join(&mut [&mut peer]);
    peer.pause();
    let mut expected = Vec::new();
    for id in 0..EVENTS {
        let event = events::vm(id, "ACTIVE", "RUNNING", "while it is away");
        hm.feed(&event.line);
        expected.push(event.messages[1].clone());
    }
    peer.resume();
    let end = hm.mark("the end");
    assert_same("the subscriber", &peer.until(&end), &expected);
}

// --- hostile peers --------------------------------------------------------------------------------------------------

#[test]
fn garbage_does_not_disturb_good_peers() {
    let mut hm = Hm::start();
    let mut peer = Peer::joined(&mut hm);
    let mut executor = PeerOptions::new(Tool::Python, "REQ").connect(&hm.logger_url());
    assert_eq!(executor.ask(b"0 1 QQ=="), b"ACK");
    let before = hm.program.descriptors();
    let mut random = fastrand::Rng::with_seed(0x67617262);

    let mut silent = Vec::new();
    for number in 0..20_u32 {
        for port in [hm.publisher(), hm.logger()] {
            for bytes in garbage(&mut random) {
                let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("it accepts");
                // It may hang up while we write; that is its right.
                let _ = stream.write_all(&bytes);
                match random.u8(..4) {
                    0 => drop(stream),
                    1 => {
                        let _ = stream.shutdown(Shutdown::Write);
                        silent.push(stream);
                    }
                    _ => silent.push(stream),
                }
            }
        }
        let event = events::vm(number, "ACTIVE", "RUNNING", "amid garbage");
        hm.feed(&event.line);
        assert_eq!(peer.next("an event"), event.messages[0]);
        assert_eq!(peer.next("an event"), event.messages[1]);
        assert_eq!(executor.ask(format!("0 {number} QQ==").as_bytes()), b"ACK");
    }
    drop(silent);
    wait_until("the sockets of the others to be closed", || match hm.program.descriptors() {
        now if now <= before => Ok(()),
        now => Err(format!("{now} descriptors where there were {before}")),
    });
    hm.finalize();
    let written = String::from_utf8(hm.program.stdout.to_end().to_vec()).expect("what oned gets is text");
    let logged = written.lines().filter(|line| line.starts_with("LOG ")).count();
    assert!(logged <= 100, "strangers can fill oned's log: {logged} lines");
}

/// What a stranger may send to a ZeroMQ port.
fn garbage(random: &mut fastrand::Rng) -> Vec<Vec<u8>> {
    let rubbish: Vec<u8> = (0..random.usize(1..10_000)).map(|_| random.u8(..)).collect();
    let greeted = |rest: &[u8]| [&greeting(b"NULL"), rest].concat();
    let ready = ready(b"SUB");
    let all = greeted(&[ready.as_slice(), b"\x00\x01\x01"].concat());
    vec![
        Vec::new(),
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        rubbish.clone(),
        // A greeting that stops in the middle, of a mechanism that nobody knows, of version 2.
        greeting(b"NULL")[..random.usize(1..64)].to_vec(),
        greeting(b"CURVE"),
        b"\xff\0\0\0\0\0\0\0\x01\x7f\x01\x02".to_vec(),
        // Properties that end too soon, a type that may not connect, none at all.
        greeted(b"\x04\x06\x05READY"),
        greeted(b"\x04\x15\x05READY\x0bSocket-Type\xff\xff\xff\xff"),
        greeted(&self::ready(b"PAIR")),
        greeted(b"\x04\x06\x05READY\x00\x01\x01"),
        // After a proper handshake: frames that announce more than anybody has, subscriptions without end, rubbish.
        [all.as_slice(), b"\x02\xff\xff\xff\xff\xff\xff\xff\xff"].concat(),
        [all.as_slice(), b"\x02\x00\x00\x00\x00\x40\x00\x00\x00"].concat(),
        [all.as_slice(), b"\x06\x7f\xff\xff\xff\xff\xff\xff\xff"].concat(),
        [all.as_slice(), b"\x01\x03abc".repeat(100).as_slice()].concat(),
        [all.as_slice(), b"\x04\x03\x09SU"].concat(),
        [all.as_slice(), b"\x04\x00"].concat(),
        [all.as_slice(), b"\x04\x19\x04PING\x00\x00aaaaaaaaaaaaaaaaaaa"].concat(),
        [all.as_slice(), &rubbish].concat(),
    ]
}

/// A greeting of ZMTP 3.0 with this mechanism.
fn greeting(mechanism: &[u8]) -> Vec<u8> {
    let mut bytes = b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\x00".to_vec();
    bytes.extend_from_slice(mechanism);
    bytes.resize(64, 0);
    bytes
}

/// The READY command of a socket of this type.
fn ready(socket_type: &[u8]) -> Vec<u8> {
    let mut body = b"\x05READY\x0bSocket-Type\0\0\0".to_vec();
    body.push(u8::try_from(socket_type.len()).expect("short"));
    body.extend_from_slice(socket_type);
    let mut frame = vec![4, u8::try_from(body.len()).expect("short")];
    frame.extend(body);
    frame
}

// --- the logger port ------------------------------------------------------------------------------------------------

#[test]
fn several_executors_report_at_once() {
    const RESULTS: usize = 60;
    let mut hm = Hm::start();
    let executors = [Tool::Python, Tool::Python, Tool::Ruby, Tool::Ruby];
    thread::scope(|scope| {
        for (hook, tool) in executors.iter().enumerate() {
            let url = hm.logger_url();
            scope.spawn(move || {
                let mut executor = PeerOptions::new(*tool, "REQ").option("HEARTBEAT_IVL", 50).connect(&url);
                for number in 0..RESULTS {
                    assert_eq!(executor.ask(format!("{number} {hook} QUJD").as_bytes()), b"ACK");
                }
            });
        }
        let lines = hm.program.stdout.lines(1 + RESULTS * executors.len());
        for hook in 0..executors.len() {
            let of_this_hook: Vec<_> = lines
                .iter()
                .filter(|line| line.splitn(4, |byte| *byte == b' ').nth(2) == Some(hook.to_string().as_bytes()))
                .collect();
            let expected: Vec<_> = (0..RESULTS)
                .map(|number| {
                    let word = if number == 0 { "SUCCESS" } else { "FAILURE" };
                    format!("EXECUTE {word} {hook} {number} QUJD").into_bytes()
                })
                .collect();
            assert!(of_this_hook.into_iter().eq(&expected), "the results of hook {hook}, in its order");
        }
    });
}

#[test]
fn an_executor_that_dies_before_its_answer_harms_nobody() {
    let mut hm = Hm::start();
    let mut other = PeerOptions::new(Tool::Python, "REQ").connect(&hm.logger_url());
    for number in 0..20 {
        die_after_request(hm.logger(), format!("0 {number} QUJD").as_bytes());
        assert_eq!(other.ask(format!("1 {number} QQ==").as_bytes()), b"ACK");
    }
    // What was reported completely counts, whether or not its sender lived to hear it.
    let lines = hm.program.stdout.lines(1 + 40);
    for number in 0..20 {
        for line in [format!("EXECUTE SUCCESS {number} 0 QUJD"), format!("EXECUTE FAILURE {number} 1 QQ==")] {
            assert!(lines.iter().any(|seen| *seen == line.as_bytes()), "no line {line}");
        }
    }
}

/// Reports a result and is gone before the answer. The server's handshake is read, because a socket that is closed with
/// something unread resets the connection, which may take the request along.
fn die_after_request(port: u16, request: &[u8]) {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).expect("it accepts");
    socket.set_read_timeout(Some(Deadline::usual().left())).expect("not zero");
    socket.write_all(&[&greeting(b"NULL"), &ready(b"REQ")[..]].concat()).expect("it reads");
    let mut head = [0; 64 + 2];
    socket.read_exact(&mut head).expect("a greeting, and the head of a command");
    assert_eq!(head[64], 4, "a short command follows the greeting");
    socket.read_exact(&mut vec![0; head[65].into()]).expect("the rest of the command");
    let length = u8::try_from(request.len()).expect("a short request");
    socket.write_all(&[b"\x01\x00\x00", &[length][..], request].concat()).expect("it reads");
}

#[test]
fn requests_are_read_as_the_original_reads_them() {
    let mut hm = Hm::start();
    let mut executor = PeerOptions::new(Tool::Python, "REQ").connect(&hm.logger_url());
    let cases: [(&[u8], &str); 5] = [
        (b"3 5 a  b", "EXECUTE FAILURE 5 3 a b"),
        (b"abc 5 QQ==", "EXECUTE SUCCESS 5 0 QQ=="),
        (b"0 abc QQ==", "EXECUTE SUCCESS 0 0 QQ=="),
        (b"-1 5 QQ==", "EXECUTE FAILURE 5 -1 QQ=="),
        // A request must not smuggle in a second line.
        (b"0 5 QQ==\nLOG E 0 smuggled", "EXECUTE SUCCESS 5 0 QQ== LOG E 0 smuggled"),
    ];
    for (number, (request, line)) in cases.iter().enumerate() {
        assert_eq!(executor.ask(request), b"ACK");
        assert_eq!(hm.program.stdout.lines(2 + number)[1 + number], line.as_bytes());
    }
}

// --- the address ----------------------------------------------------------------------------------------------------

#[test]
fn it_serves_ipv6() {
    let mut hm = HmOptions::default().bind("::1").start();
    let mut peer = PeerOptions::new(Tool::Python, "SUB")
        .option("IPV6", 1)
        .subscribe(&format!("tcp://[::1]:{}", hm.publisher()), [""]);
    hm.join(&mut [&mut peer]);
    receives_the_recorded_run(&hm, &mut peer, &[""]);
}

// --- helpers --------------------------------------------------------------------------------------------------------

/// Feeds the recorded run and compares what the subscriber gets with what it must, given these filters.
fn receives_the_recorded_run(hm: &Hm, peer: &mut Peer, filters: &[&str]) {
    let lines = fixtures::event_lines();
    hm.feed(&lines.concat());
    let end = hm.mark("the end");
    let mut expected = fixtures::expected(&lines);
    expected.retain(|message| filters.iter().any(|filter| message.key().starts_with(filter.as_bytes())));
    let received = peer.until(&end);
    assert_same(peer.name(), &received, &expected);
}

fn tail(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(200)..]).into_owned()
}
