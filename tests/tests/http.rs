//! HTTP as scripts use it: curl publishes and follows, readers stall, come and go, and some are not let in.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};

use hookbus_tests::{Home, wait_until};
use rustix::process::{Resource, Rlimit};
use serde_json::{Value, json};

/// A child that is killed when this is dropped.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn answer(output: &std::process::Output) -> (u16, Value) {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "curl: {}", String::from_utf8_lossy(&output.stderr));
    let (body, status) = text.rsplit_once('\n').expect("a line with the status");
    (status.parse().expect("a status"), serde_json::from_str(body.trim()).unwrap_or(Value::Null))
}

#[test]
fn curl_publishes_in_every_mode_and_follows() {
    let home = Home::default();
    let serve = home.serve();
    let follow = home.curl_command("/v1/events?prefix=backup%2F", &["--no-buffer"]).stdout(Stdio::piped()).spawn();
    let mut follow = Ended(follow.expect("curl is installed"));
    let mut lines = BufReader::new(follow.0.stdout.take().expect("it was piped")).lines();
    let mut line = || lines.next().expect("curl goes on").expect("text");
    assert_eq!(line(), ": hookbus");

    let post = |args: &[&str]| answer(&home.curl("/v1/events", &[&["-w", "\n%{http_code}"], args].concat()));
    let structured = json!({"specversion": "1.0", "id": "job-7", "source": "/backup/host1", "type": "com.example.backup",
        "hookbuskey": "backup/nightly", "data": {"size": 3}});
    let (status, told) = post(&["-H", "content-type: application/cloudevents+json", "-d", &structured.to_string()]);
    assert_eq!((status, &told["id"]), (202, &json!("job-7")), "{told}");
    let batch = json!([structured, {"specversion": "1.0", "id": "job-8", "source": "/backup/host1", "type": "com.example.backup",
        "hookbuskey": "backup/weekly"}]);
    let (status, told) = post(&["-H", "content-type: application/cloudevents-batch+json", "-d", &batch.to_string()]);
    assert_eq!((status, &told["accepted"]), (202, &json!(2)), "{told}");
    let (status, told) = post(&[
        "-H",
        "ce-specversion: 1.0",
        "-H",
        "ce-id: 9",
        "-H",
        "ce-source: /b",
        "-H",
        "ce-type: t",
        "-H",
        "ce-hookbuskey: backup/binary",
        "-H",
        "content-type: text/plain",
        "-d",
        "done",
    ]);
    assert_eq!((status, &told["id"]), (202, &json!("9")), "{told}");
    let (status, told) =
        post(&["-H", "ce-hookbuskey: backup/plain", "-H", "content-type: text/plain", "-d", "by hand"]);
    assert_eq!(status, 202, "{told}");

    let mut events = Vec::new();
    while events.len() < 5 {
        let text = line();
        if let Some(data) = text.strip_prefix("data: ") {
            events.push(serde_json::from_str::<Value>(data).expect("a CloudEvent"));
        } else {
            assert!(text.is_empty() || text.starts_with("id: "), "{text}");
        }
    }
    let keys: Vec<_> = events.iter().map(|event| event["hookbuskey"].as_str().expect("a key")).collect();
    assert_eq!(keys, ["backup/nightly", "backup/nightly", "backup/weekly", "backup/binary", "backup/plain"]);
    assert_eq!(
        (&events[0]["id"], &events[0]["source"], &events[0]["data"]["size"]),
        (&json!("job-7"), &json!("/backup/host1"), &json!(3))
    );
    assert_eq!((&events[3]["id"], &events[3]["data"]), (&json!("9"), &json!("done")));
    assert_eq!((&events[4]["data"], &events[4]["type"]), (&json!("by hand"), &json!("org.hookbus.custom")));
    serve.stop();
}

#[test]
fn what_is_wrong_with_a_request_is_told_and_nobody_gets_any_of_it() {
    let home = Home::new("[limits]\nhttp_body_bytes = \"1KiB\"\n");
    let serve = home.serve();
    let structured = [("content-type", "application/cloudevents+json")];
    let batch = [("content-type", "application/cloudevents-batch+json")];
    let good = r#"{"specversion":"1.0","id":"1","source":"/a","type":"t"}"#;
    let large = "x".repeat(2000);
    // Method, path, headers, body; status, and what the detail says.
    type Case<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], &'a str, u16, &'a str);
    let cases: [Case<'_>; 12] = [
        ("POST", "/v1/events", &[("ce-hookbuskey", "EVENT VM 7/")], "", 403, "reserved"),
        ("POST", "/v1/events", &[("ce-hookbuskey", "RETRY")], "", 403, "reserved"),
        ("POST", "/v1/events", &[("ce-hookbuskey", "HOOKBUS GAP")], "", 403, "reserved"),
        ("POST", "/v1/events", &[], "x", 400, "hookbuskey"),
        ("POST", "/v1/events", &structured, "{", 400, "JSON"),
        ("POST", "/v1/events", &structured, r#"{"specversion":"1.0","id":"1","type":"t"}"#, 400, "source"),
        ("POST", "/v1/events", &batch, &format!("[{good},{{}}]"), 400, "event 1"),
        ("POST", "/v1/events", &[("content-type", "application/cloudevents+avro")], "x", 415, "avro"),
        ("POST", "/v1/events", &[("ce-hookbuskey", "a")], &large, 413, "http_body_bytes"),
        ("GET", "/v1/events?hwm=x", &[], "", 400, "hwm=x"),
        ("GET", "/v1/event", &[], "", 404, "/v1/events"),
        ("DELETE", "/v1/events", &[], "", 405, "DELETE"),
    ];
    for (method, path, headers, body, status, text) in cases {
        let answer = home.request(method, path, headers, body.as_bytes()).expect("an answer");
        let detail = answer.json()["detail"].as_str().expect("a detail").to_owned();
        assert_eq!(answer.status, status, "{method} {path} {headers:?}: {detail}");
        assert!(detail.contains(text), "{method} {path} {headers:?}: {detail}");
        assert!(answer.head.contains("application/problem+json"), "{}", answer.head);
    }
    assert_eq!(home.status()["broker"]["published"], 0);
    serve.stop();
}

/// Conservation: what the reader gets and what it is told as lost is everything.
#[test]
fn a_reader_that_stalls_is_told_its_gap_in_its_place() {
    let home = Home::default();
    let serve = home.serve();
    let mut stalled = home.follow("hwm=10");
    let mut brisk = home.follow("hwm=100000");
    let payload = vec![b'x'; 64 << 10];
    let mut published = 0;
    let dropped = loop {
        home.publish("load/x", &payload);
        published += 1;
        assert_eq!(brisk.event().kind, "", "a neighbour loses nothing");
        let status = home.status();
        let of_stalled = status["subscribers"].as_array().expect("a list").iter().find(|s| s["hwm"] == 10);
        let dropped = of_stalled.expect("it is listed")["dropped"].as_u64().expect("a number");
        if dropped >= 5 {
            assert!(home.run(&["status"]).stdout.windows(6).any(|word| word == b"LOSING"), "it stands out");
            break dropped;
        }
    };
    let (mut received, mut lost, mut told) = (0, 0, 0);
    let mut last = 0;
    while received + lost < published {
        let event = stalled.event();
        let id: u64 = event.id.parse().expect("an offset");
        assert!(id > last, "in order");
        if event.kind == "gap" {
            assert_eq!(event.data["first"], last + 1, "in its place: {event:?}");
            assert_eq!(event.data["last"], id);
            lost += event.data["count"].as_u64().expect("a number");
        } else {
            assert_eq!(id, last + 1, "nothing is missing that wasn't told");
            told += event.data["hookbusdropped"].as_u64().unwrap_or(0);
            received += 1;
        }
        last = id;
    }
    assert!(lost >= dropped && received + lost == published, "{received} and {lost} of {published}");
    home.publish("load/y", b"");
    told += stalled.event().data["hookbusdropped"].as_u64().unwrap_or(0);
    assert_eq!(told, lost, "and once more with the event behind the gap");
    serve.stop();
}

#[test]
fn a_reader_that_comes_back_is_told_what_lies_between() {
    let home = Home::default();
    let serve = home.serve();
    for _ in 0..3 {
        home.publish("a/b", b"");
    }
    let mut follow = home.curl_command("/v1/events", &["--no-buffer", "-H", "Last-Event-ID: 1"]);
    let mut follow = Ended(follow.stdout(Stdio::piped()).spawn().expect("curl is installed"));
    let mut lines = BufReader::new(follow.0.stdout.take().expect("it was piped")).lines();
    let heard: Vec<String> = lines.by_ref().take(5).map(|line| line.expect("text")).collect();
    assert_eq!(heard[2..4], ["event: gap", "id: 3"], "{heard:?}");
    assert!(heard[4].contains("\"first\":2") && heard[4].contains("\"count\":null"), "{heard:?}");
    let answer = home.request("GET", "/v1/events?from=earliest", &[], b"").expect("an answer");
    assert_eq!(answer.status, 501);
    assert!(answer.text().contains("no journal"), "{}", answer.text());
    serve.stop();
}

#[test]
fn a_thousand_followers_come_and_go_without_a_trace() {
    // The test needs descriptors for the other ends. The daemon helps itself.
    let limit = rustix::process::getrlimit(Resource::Nofile);
    rustix::process::setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
        .expect("up to the hard limit");
    let home = Home::default();
    let mut limited = Command::new("prlimit");
    limited.arg(format!("--nofile=256:{}", limit.maximum.map_or("unlimited".into(), |n| n.to_string())));
    limited.arg("/usr/bin/python3");
    let serve = home.ready(home.launcher().through(limited).spawn());
    let subscribers = || home.status()["subscribers"].as_array().expect("a list").len();
    let before = serve.program.descriptors();
    // Each thread's heap takes some rounds to reach the size that it needs for a thousand; how many depends on which thread serves
    // whom. But there comes a time from which rounds find room in what the earlier ones gave back: 1 kB that a follower leaves would
    // be 5 MiB after five, each time.
    let settled =
        |resident: &[u64]| resident.len() > 5 && resident[resident.len() - 1] < resident[resident.len() - 6] + 2;
    let mut resident = Vec::new();
    while !settled(&resident) {
        let round = resident.len();
        assert!(round < 40, "MiB after each round: {resident:?}");
        let mut followers: Vec<_> = (0..1000).map(|i| home.follow(&format!("prefix=round%2F&name={i}"))).collect();
        // The executor of hooks is one, too.
        assert_eq!(subscribers(), 1001, "round {round}");
        for _ in 0..3 {
            home.publish("round/x", b"to all of you");
        }
        for follower in &mut followers {
            for _ in 0..3 {
                assert_eq!(follower.event().data["data"], "to all of you");
            }
        }
        drop(followers);
        wait_until("all of them to be gone", || match subscribers() {
            1 => Ok(()),
            count => Err(format!("{count} are there")),
        });
        wait_until("their descriptors to be gone", || match serve.program.descriptors() {
            now if now <= before + 1 => Ok(()),
            now => Err(format!("{now} instead of {before}")),
        });
        resident.push(serve.program.resident_mib());
    }
    serve.stop();
}

/// A subscriber with the policy `block` that is full: publishers wait 5 s, then nobody has got the event.
#[test]
fn a_full_subscriber_that_blocks_makes_publishers_wait_and_then_nobody_has_the_event() {
    let home = Home::new("[hooks]\noverflow = \"block\"\nhwm = 1\nconcurrency = 1\n");
    let gate = home.path().join("gate");
    let script =
        home.script("wait.sh", &format!("#!/bin/sh\nwhile [ ! -e '{}' ]; do sleep 0.05; done\n", gate.display()));
    home.hook("wait", &format!("NAME = wait\nTYPE = event\nPREFIX = \"slow/\"\nCOMMAND = {}\n", script.display()));
    let serve = home.serve();
    let mut follower = home.follow("prefix=slow%2F");
    let mut accepted = 0;
    let refused = loop {
        let answer = home.request("POST", "/v1/events", &[("ce-hookbuskey", "slow/x")], b"").expect("an answer");
        match answer.status {
            202 => accepted += 1,
            _ => break answer,
        }
        assert!(accepted < 20, "one runs, few wait");
    };
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(refused.head.contains("retry-after: 5"), "{}", refused.head);
    assert!(refused.text().contains("`hooks`"), "it names who is full: {}", refused.text());
    for _ in 0..accepted {
        assert_eq!(follower.event().data["hookbuskey"], "slow/x");
    }
    // What doesn't match the subscriber that is full isn't held up, and comes next: the refused event went to nobody.
    home.publish("other", b"");
    assert_eq!(home.status()["broker"]["published"].as_u64(), Some(accepted + 1));
    std::fs::write(gate, "").expect("a file");
    home.publish("slow/y", b"");
    assert_eq!(follower.event().data["hookbuskey"], "slow/y");
    serve.stop();
}

/// Another user than the daemon's, by way of setpriv.
fn as_user(uid: u32, gid: u32, home: &Home, path: &str) -> (u16, Value) {
    let curl = home.curl_command(path, &["-w", "\n%{http_code}"]);
    let mut command = Command::new("setpriv");
    command.arg(format!("--reuid={uid}")).arg(format!("--regid={gid}")).arg("--clear-groups").arg(curl.get_program());
    answer(&command.args(curl.get_args()).output().expect("setpriv is installed"))
}

#[test]
fn other_users_are_not_let_in_unless_they_are_of_the_group() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("left out: to be another user takes root");
        return;
    }
    let home = Home::default();
    let mode = || std::fs::metadata(home.socket()).expect("it is there").permissions().mode() & 0o777;
    let serve = home.serve();
    assert_eq!(mode(), 0o600, "the file alone keeps others out");
    // Somebody has opened it up by accident.
    std::fs::set_permissions(home.socket(), std::fs::Permissions::from_mode(0o666)).expect("root may");
    let (status, told) = as_user(12_345, 12_345, &home, "/v1/status");
    assert_eq!(status, 403, "{told}");
    assert!(
        told["detail"].as_str().is_some_and(|detail| detail.contains("12345") && detail.contains("[http] group")),
        "{told}"
    );
    serve.stop();

    home.configure("[http]\ngroup = \"nogroup\"\n");
    let serve = home.serve();
    assert_eq!(mode(), 0o660);
    assert_eq!(as_user(12_345, 65_534, &home, "/v1/status").0, 200, "the group's members are let in");
    serve.stop();

    home.configure("[http]\ngroup = \"no-such-group\"\n");
    let mut program = home.launcher().spawn();
    assert_eq!(program.wait("at once").code(), Some(1));
    home.logged("there is no group `no-such-group`");
}

#[test]
fn over_tcp_there_are_health_and_metrics_only() {
    let port = hookbus_tests::ports::free();
    let home = Home::new(&format!("[http]\nlisten = [\"127.0.0.1:{port}\"]\n"));
    let serve = home.serve();
    home.publish("a/b", b"x");
    let curl = |path: &str| {
        let output = Command::new("curl")
            .args(["--silent", "-w", "\n%{http_code}", &format!("http://127.0.0.1:{port}{path}")])
            .output()
            .expect("curl is installed");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, status) = text.rsplit_once('\n').expect("a line with the status");
        (status.to_owned(), body.to_owned())
    };
    assert_eq!(curl("/healthz"), ("200".into(), "ok\n".into()));
    assert_eq!(curl("/readyz"), ("200".into(), "ready\n".into()));
    let (status, metrics) = curl("/metrics");
    assert_eq!(status, "200");
    for line in [
        "hookbus_published_total 1",
        "# TYPE hookbus_held_bytes gauge",
        "hookbus_subscribers{kind=\"hooks\",name=\"\"} 1",
        "# EOF",
    ] {
        assert!(
            metrics.lines().any(|known| known == line || known.starts_with(&format!("{line}."))),
            "{line} in {metrics}"
        );
    }
    for path in ["/v1/status", "/v1/events", "/v1/opennebula"] {
        let (status, body) = curl(path);
        assert_eq!(status, "404", "{body}");
        assert!(body.contains("Unix socket"), "{body}");
    }
    serve.stop();
}

#[test]
fn the_command_line_publishes_follows_and_shows() {
    let home = Home::default();
    let serve = home.serve();
    let mut tails: Vec<_> = ["pretty", "json", "raw"]
        .map(|output| {
            let mut command = home.command(&["tail", "demo/", "--count", "2", "-o", output]);
            Ended(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it starts"))
        })
        .into();
    wait_until("all of them to follow", || {
        let status = home.status();
        let count = status["subscribers"].as_array().expect("a list").iter().filter(|s| s["kind"] == "http").count();
        if count == 3 { Ok(()) } else { Err(format!("{count} do")) }
    });
    let file = home.path().join("content");
    std::fs::write(&file, "{\"disk\": 1}").expect("a file");
    let first = home.run(&["publish", "demo/one", file.to_str().expect("a plain path")]);
    let id = String::from_utf8_lossy(&first.stdout).into_owned();
    assert!(first.status.success() && id.ends_with("-1\n"), "{id}{}", String::from_utf8_lossy(&first.stderr));
    let mut second = home.command(&["publish", "demo/two", "-"]);
    let mut second = second.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("it starts");
    std::io::Write::write_all(&mut second.stdin.take().expect("it was piped"), b"two\nlines").expect("it reads");
    assert!(second.wait().expect("our own child").success());
    let shown: Vec<String> = tails
        .iter_mut()
        .map(|tail| {
            let mut text = String::new();
            let mut out = tail.0.stdout.take().expect("it was piped");
            std::io::Read::read_to_string(&mut out, &mut text).expect("text");
            assert!(tail.0.wait().expect("our own child").success());
            text
        })
        .collect();
    let pretty: Vec<_> = shown[0].lines().collect();
    assert_eq!(pretty.len(), 2, "{}", shown[0]);
    assert!(pretty[0].contains("demo/one") && pretty[0].ends_with("{\"disk\":1}"), "{}", pretty[0]);
    let json: Vec<Value> = shown[1].lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!((&json[0]["data"]["disk"], &json[1]["data"]), (&json!(1), &json!("two\nlines")));
    assert_eq!(shown[2], "{\"disk\": 1}\ntwo\nlines\n", "as it came");

    let status = home.run(&["status"]);
    let text = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(text.contains("2 published") && text.contains(&home.socket().display().to_string()), "{text}");
    let status = home.run(&["status", "-o", "json"]);
    assert_eq!(serde_json::from_slice::<Value>(&status.stdout).expect("JSON")["broker"]["published"], 2);
    let refused = home.run(&["publish", "EVENT x"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("reserved"));
    serve.stop();
}

/// A tail survives the daemon's restart, and says that it may have missed something.
#[test]
fn a_tail_goes_on_when_the_daemon_comes_back() {
    let home = Home::default();
    let serve = home.serve();
    let mut tail = home.command(&["tail", "-o", "json"]);
    let mut tail = Ended(tail.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it starts"));
    let mut lines = BufReader::new(tail.0.stdout.take().expect("it was piped")).lines();
    let mut line =
        || -> Value { serde_json::from_str(&lines.next().expect("it goes on").expect("text")).expect("JSON") };
    let follows = || {
        wait_until("the tail to follow", || match home.status()["subscribers"].as_array().expect("a list").len() {
            2 => Ok(()),
            count => Err(format!("{count} subscribers")),
        });
    };
    follows();
    for _ in 0..2 {
        home.publish("a/b", b"");
        assert_eq!(line()["hookbuskey"], "a/b");
    }
    serve.stop();
    let serve = home.serve();
    home.publish("while/away", b"");
    follows();
    home.publish("c/d", b"");
    let next = line();
    // The tail may have been quick enough to see it.
    let next = if next["gap"].is_object() { line() } else { next };
    assert!(next["hookbuskey"] == "c/d" || next["hookbuskey"] == "while/away", "{next}");
    serve.stop();
}
