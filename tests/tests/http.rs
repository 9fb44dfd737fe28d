//! HTTP as scripts use it: curl publishes and follows, readers stall, come and go, and some are not let in.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};

use hookbus_tests::servers::certificates::{Authority, Certificate};
use hookbus_tests::{HmOptions, Home, wait_until};
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

/// A daemon's port on TCP, asked with curl.
struct Tcp<'h> {
    home: &'h Home,
    port: u16,
    scheme: &'static str,
}

/// What curl got: status, head in small letters, body.
#[derive(Debug)]
struct Got {
    status: u16,
    head: String,
    body: String,
}

impl Got {
    fn detail(&self) -> String {
        assert!(self.head.contains("content-type: application/problem+json"), "{self:?}");
        serde_json::from_str::<Value>(&self.body).expect("JSON")["detail"].as_str().expect("a detail").to_owned()
    }

    fn refused(&self, status: u16, text: &str) {
        assert!(self.status == status && self.detail().contains(text), "{status} with `{text}` expected: {self:?}");
    }
}

impl Tcp<'_> {
    fn command(&self, path: &str, args: &[&str]) -> Command {
        let mut command = Command::new("curl");
        let ca = self.home.path().join("ca.pem");
        if self.scheme == "https" {
            command.arg("--cacert").arg(ca);
        }
        command.args(["--silent", "--show-error", "-i"]).args(args);
        command.arg(format!("{}://127.0.0.1:{}{path}", self.scheme, self.port));
        command
    }

    /// An answer, or what curl says.
    fn ask(&self, path: &str, args: &[&str]) -> Result<Got, String> {
        let output = self.command(path, args).output().expect("curl is installed");
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        let text = String::from_utf8(output.stdout).expect("text");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        Ok(Got { status, head: head.to_lowercase(), body: body.to_owned() })
    }

    fn got(&self, path: &str, args: &[&str]) -> Got {
        self.ask(path, args).unwrap_or_else(|e| panic!("{path} {args:?}: {e}"))
    }

    /// With a token.
    fn as_who(&self, token: &str, path: &str, args: &[&str]) -> Got {
        let header = format!("authorization: Bearer {token}");
        self.got(path, &[&["-H", &header], args].concat())
    }
}

/// What a metric says.
fn metric(tcp: &Tcp<'_>, name: &str) -> u64 {
    let Got { body, .. } = tcp.got("/metrics", &[]);
    let line = body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name} in {body}"))
}

#[test]
fn over_tcp_without_a_token_there_are_health_and_metrics_only() {
    let port = hookbus_tests::ports::free();
    let home = Home::new(&format!("[http]\nlisten = [\"127.0.0.1:{port}\"]\n"));
    let serve = home.serve();
    let tcp = Tcp { home: &home, port, scheme: "http" };
    home.publish("a/b", b"x");
    let curl = |path: &str| {
        let Got { status, body, .. } = tcp.got(path, &[]);
        (status, body)
    };
    assert_eq!(curl("/healthz"), (200, "ok\n".into()));
    assert_eq!(curl("/readyz"), (200, "ready\n".into()));
    let (status, metrics) = curl("/metrics");
    assert_eq!(status, 200);
    for line in [
        "hookbus_published_total 1",
        "hookbus_http_tls_failures_total 0",
        "# TYPE hookbus_held_bytes gauge",
        "hookbus_subscribers{kind=\"hooks\",name=\"\"} 1",
        "# EOF",
    ] {
        assert!(
            metrics.lines().any(|known| known == line || known.starts_with(&format!("{line}."))),
            "{line} in {metrics}"
        );
    }
    for path in ["/v1/status", "/v1/events", "/v1/hooks"] {
        let got = tcp.got(path, &[]);
        got.refused(401, "Unix socket");
        assert!(got.detail().contains("no tokens are set up here") && got.detail().contains("token_file"));
        assert!(got.head.contains("\r\nwww-authenticate: bearer"), "{got:?}");
    }
    tcp.got("/v1/opennebula", &[]).refused(403, "on the Unix socket only");
    let detail = tcp.got("/v1/event", &[]).detail();
    for path in ["/v1/events", "/v1/status", "/v1/hooks", "/v1/executions", "/v1/dlq", "/v1/cursors", "/metrics"] {
        assert!(detail.contains(path), "{path}: {detail}");
    }
    serve.stop();
}

#[test]
fn a_token_lets_do_what_its_file_is_for() {
    const READER: &str = "reader-0123456789abcdef0123456789abcdef";
    const WRITER: &str = "writer-0123456789abcdef0123456789abcdef";
    const NEWER: &str = "newer-0123456789abcdef0123456789abcdef";
    let port = hookbus_tests::ports::free();
    let home = Home::default();
    let (read, write) = (home.path().join("read-token"), home.path().join("token"));
    let put = |path: &std::path::Path, text: &str| {
        std::fs::write(path, text).expect("our own file");
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).expect("our own file");
    };
    put(&read, &format!("{READER}\n"));
    put(&write, &format!("{WRITER}\n"));
    home.configure(&format!(
        "[http]\nlisten = [\"127.0.0.1:{port}\"]\nhosts = [\"Bus.example\"]\nread_token_file = {read:?}\ntoken_file = {write:?}\n"
    ));
    let serve = home.serve();
    home.logged("token is open to every user of this machine (mode 644)");
    let tcp = Tcp { home: &home, port, scheme: "http" };
    let publish = ["-H", "ce-hookbuskey: a/b", "-H", "content-type: text/plain", "-d", "x"];

    // Without a token, with a wrong one, with one that isn't enough, with one that is.
    let no = "nobody-0123456789abcdef0123456789abcdef";
    let requests: [(&str, &[&str], Option<u16>, u16); 8] = [
        ("/v1/status", &[], Some(200), 200),
        ("/v1/events?hwm=x", &[], Some(400), 400),
        ("/v1/events", &publish, None, 202),
        ("/v1/hooks", &[], None, 200),
        ("/v1/executions", &[], None, 200),
        ("/v1/dlq", &[], None, 200),
        ("/v1/cursors", &[], None, 200),
        ("/v1/cursors/x", &["-X", "DELETE"], None, 404),
    ];
    for (path, args, reader, writer) in requests {
        let got = tcp.got(path, args);
        got.refused(401, "Authorization: Bearer");
        assert!(got.head.contains("\r\nwww-authenticate: bearer"), "{got:?}");
        tcp.as_who(no, path, args).refused(401, "this token is not one that is accepted here");
        let got = tcp.as_who(READER, path, args);
        match reader {
            Some(status) => assert_eq!(got.status, status, "{path}: {got:?}"),
            None => got.refused(403, "needs a write token"),
        }
        assert_eq!(tcp.as_who(WRITER, path, args).status, writer, "{path}");
    }
    tcp.got("/v1/status", &["-u", &format!("user:{READER}")]).refused(401, "Bearer TOKEN");
    assert_eq!(home.status()["broker"]["published"], 1);
    for path in ["/healthz", "/api/openapi.json"] {
        assert_eq!(tcp.as_who(no, path, &[]).status, 200, "what anybody may ask for needs no token, right or wrong");
    }

    // A follower on TCP.
    let auth = format!("authorization: Bearer {READER}");
    let follow = tcp.command("/v1/events?prefix=tcp%2F", &["--no-buffer", "-H", &auth]).stdout(Stdio::piped()).spawn();
    let mut follow = Ended(follow.expect("curl is installed"));
    let mut lines = BufReader::new(follow.0.stdout.take().expect("it was piped")).lines();
    let mut until =
        |start: &str| lines.find(|line| line.as_ref().is_ok_and(|line| line.starts_with(start))).expect("it goes on");
    until(": hookbus").expect("text");
    let key = |key: &str| format!("ce-hookbuskey: {key}");
    let posted = |key: &str, more: &[&str]| {
        tcp.as_who(WRITER, "/v1/events", &[&["-H", key, "-H", "content-type: text/plain", "-d", "x"], more].concat())
    };
    assert_eq!(posted(&key("tcp/a"), &[]).status, 202);
    assert!(until("data: ").expect("text").contains("tcp/a"));

    // Keys that are for our own sources, as on the socket.
    for reserved in ["EVENT VM 7/", "RETRY", "HOOKBUS GAP"] {
        posted(&key(reserved), &[]).refused(403, "reserved");
    }
    // What a page could make a browser send.
    for host in ["evil.example", "127.0.0.1.evil.example:80", "0.0.0.0"] {
        for path in ["/healthz", "/v1/status"] {
            tcp.as_who(WRITER, path, &["-H", &format!("host: {host}")]).refused(421, "[http] hosts");
        }
    }
    for host in ["localhost:1", "bus.EXAMPLE", "127.0.0.1", "[::1]:2180"] {
        assert_eq!(tcp.got("/healthz", &["-H", &format!("host: {host}")]).status, 200, "{host}");
    }
    assert_eq!(home.curl("/healthz", &["-H", "host: evil.example"]).stdout, b"ok\n", "the socket takes any name");
    posted(&key("a"), &["-H", "origin: https://evil.example"]).refused(403, "another origin");
    let types = |args: &[&str]| tcp.as_who(WRITER, "/v1/events", args);
    types(&["-d", "x"]).refused(415, "application/x-www-form-urlencoded");
    types(&["-H", &key("a"), "-d", "x"]).refused(415, "application/cloudevents+json");
    types(&["-H", "content-type: text/plain", "-d", "{}"]).refused(415, "ce-hookbuskey");
    types(&["-H", "content-type;", "-H", &key("a"), "-d", "x"]).refused(415, "type");
    tcp.as_who(WRITER, "/v1/hooks", &["-d", "NAME = x"]).refused(415, "application/octet-stream");
    tcp.as_who(WRITER, "/v1/dlq/purge", &["-d", "{}"]).refused(415, "application/json");
    let made = home.curl("/v1/events", &["-w", "\n%{http_code}", "-H", &key("a"), "-d", "x"]);
    assert_eq!(answer(&made).0, 202, "the socket is as lenient as ever");
    let preflight = tcp.got("/v1/events", &["-X", "OPTIONS", "-H", "origin: https://evil.example"]);
    assert!(preflight.status == 405 && !preflight.head.contains("access-control"), "{preflight:?}");

    // A token takes the place of another one while the daemon runs.
    put(&write, &format!("{WRITER}\n{NEWER}\n"));
    let counts = |token: &str| tcp.as_who(token, "/v1/cursors", &[]).status;
    wait_until("the new token to count", || match counts(NEWER) {
        200 => Ok(()),
        status => Err(status.to_string()),
    });
    assert_eq!(counts(WRITER), 200, "beside the old one");
    put(&write, &format!("{NEWER}\n"));
    wait_until("the old token to count no more", || match counts(WRITER) {
        401 => Ok(()),
        status => Err(status.to_string()),
    });
    put(&write, "");
    wait_until("a file without tokens to let nobody in", || match counts(NEWER) {
        401 => Ok(()),
        status => Err(status.to_string()),
    });
    assert_eq!(tcp.as_who(READER, "/v1/status", &[]).status, 200, "the other file is as it was");
    home.logged("token is empty; make a token");
    serve.stop();
    for token in [READER, WRITER, NEWER, no] {
        assert!(!home.log().contains(&token[..20]), "a token is in the log");
    }
}

#[test]
fn certificates_secure_tcp_and_let_clients_in() {
    const WRITER: &str = "writer-0123456789abcdef0123456789abcdef";
    let port = hookbus_tests::ports::free();
    let home = Home::default();
    let (ours, theirs, clients) = (Authority::new(), Authority::new(), Authority::new());
    let (own, foreign) = (clients.client(), theirs.client());
    let put = |name: &str, text: &[u8]| {
        let path = home.path().join(name);
        std::fs::write(&path, text).expect("our own file");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("our own file");
        path
    };
    let copy = |name: &str, from: &std::path::Path| put(name, &std::fs::read(from).expect("a file of ours"));
    let server = ours.server();
    let (cert, key) = (copy("cert.pem", &server.cert), copy("key.pem", &server.key));
    let (_, client_ca) = (copy("ca.pem", &ours.ca()), copy("client-ca.pem", &clients.ca()));
    let token = put("token", WRITER.as_bytes());
    home.configure(&format!(
        "[http]\nlisten = [\"0.0.0.0:{port}\"]\ntoken_file = {token:?}\ncert_file = {cert:?}\nkey_file = {key:?}\nclient_ca_file = \
         {client_ca:?}\n[journal]\nenabled = true\n"
    ));
    let checked = home.run(&["config", "check"]);
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
    let mut serve = home.serve();
    let tcp = Tcp { home: &home, port, scheme: "https" };
    assert_eq!(tcp.got("/healthz", &[]).body, "ok\n");
    tcp.got("/v1/status", &[]).refused(401, "Authorization: Bearer");
    tcp.got("/healthz", &["-H", "host: evil.example"]).refused(421, "[http] hosts");
    let shown = |Certificate { cert, key }: &Certificate| [cert, key].map(|path| path.display().to_string());
    let (own, foreign) = (shown(&own), shown(&foreign));
    let own_args = ["--cert", &own[0], "--key", &own[1]];
    assert_eq!(tcp.got("/v1/hooks", &own_args).status, 200, "a certificate is as good as a write token");
    let page = [&own_args[..], &["-X", "POST", "-H", "origin: https://evil.example"]].concat();
    tcp.got("/v1/hooks/x/lock", &page).refused(403, "another origin");

    // Others fail, and disturb nobody.
    let before = metric(&tcp, "hookbus_http_tls_failures_total");
    tcp.ask("/healthz", &["--cert", &foreign[0], "--key", &foreign[1]]).expect_err("another authority has signed it");
    let plain = Tcp { scheme: "http", ..tcp };
    plain.ask("/healthz", &[]).expect_err("it isn't plain");
    drop(std::net::TcpStream::connect(("127.0.0.1", port)).expect("somebody listens"));
    wait_until("all three to be counted", || match metric(&tcp, "hookbus_http_tls_failures_total") - before {
        3 => Ok(()),
        other => Err(other.to_string()),
    });

    // What was answered with 202 is in the journal, whatever happens next.
    let posted =
        tcp.as_who(WRITER, "/v1/events", &["-H", "ce-hookbuskey: kept/1", "-H", "content-type: text/plain", "-d", "x"]);
    serve.program.kill();
    assert_eq!(posted.status, 202, "{posted:?}");
    let id = serde_json::from_str::<Value>(&posted.body).expect("JSON")["id"].clone();

    // A renewed certificate is taken, the half of one isn't.
    let serve = home.serve();
    let kept = home.follow("from=earliest&prefix=kept%2F").event();
    assert_eq!((&kept.data["hookbuskey"], &kept.data["id"]), (&json!("kept/1"), &id));
    let renewed = theirs.server();
    copy("cert.pem", &renewed.cert);
    let works = |ca: &Authority| {
        copy("ca.pem", &ca.ca());
        tcp.ask("/healthz", &[]).map(|got| assert_eq!(got.status, 200))
    };
    wait_until("the half to be told", || {
        works(&ours).expect("the old one is used meanwhile");
        match home.log() {
            log if log.contains("the certificate that was read before is used meanwhile") => Ok(()),
            log => Err(log),
        }
    });
    let open = home.run(&["config", "check"]);
    assert_eq!(open.status.code(), Some(2), "{}", String::from_utf8_lossy(&open.stdout));
    copy("key.pem", &renewed.key);
    wait_until("the renewed certificate to be used", || works(&theirs));
    works(&ours).expect_err("the old one is gone");
    serve.stop();
    assert!(!home.log().contains(WRITER), "a token is in the log");
}

/// A driver answers before it has its journal. What it would accept then would be in memory alone.
#[test]
fn nothing_is_accepted_before_the_journal_is_open() {
    let home = Home::default();
    let place = home.path().join("place");
    std::fs::write(&place, "no directory").expect("our own file");
    home.configure(&format!("[journal]\nenabled = true\npath = \"{}/journal\"\n", place.display()));
    let mut hm = HmOptions::default().arguments(&format!("--config {}", home.config().display())).start();
    wait_until("the driver to answer", || home.request("GET", "/healthz", &[], b"").map_err(|e| e.to_string()));
    let post = || home.request("POST", "/v1/events", &[("ce-hookbuskey", "a/b")], b"x").expect("an answer");
    let refused = post();
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(refused.text().contains("the journal is not open yet"), "{}", refused.text());
    std::fs::remove_file(&place).expect("our own file");
    std::fs::create_dir(&place).expect("a directory");
    std::fs::set_permissions(&place, std::fs::Permissions::from_mode(0o777)).expect("our own");
    let mut accepted = Value::Null;
    wait_until("the journal to be open", || match post() {
        answer if answer.status == 202 => {
            accepted = answer.json()["id"].clone();
            Ok(())
        }
        answer => Err(answer.text()),
    });
    assert_eq!(home.status()["broker"]["published"], 1, "nobody got what was refused");
    assert_eq!(home.follow("from=earliest").event().data["id"], accepted);
    hm.finalize();
}

/// The description is of what there is: every route, its methods, what it needs, its parameters; and nothing else.
#[test]
fn what_is_described_is_what_is_served() {
    let port = hookbus_tests::ports::free();
    let home = Home::new(&format!("[http]\nlisten = [\"127.0.0.1:{port}\"]\n"));
    let serve = home.serve();
    let tcp = Tcp { home: &home, port, scheme: "http" };
    let document = home.request("GET", "/api/openapi.json", &[], b"").expect("an answer").json();
    let over_tcp: Value = serde_json::from_str(&tcp.got("/api/openapi.json", &[]).body).expect("JSON");
    assert_eq!(document, over_tcp);
    assert_eq!(document["openapi"], "3.1.0");
    let object = |value: &Value| value.as_object().cloned().unwrap_or_default();
    let names = |list: &Value, place: &str| -> BTreeSet<String> {
        let list = list.as_array().cloned().unwrap_or_default().into_iter();
        list.filter(|one| one["in"] == place).map(|one| one["name"].as_str().expect("a name").to_owned()).collect()
    };
    let mut ids = BTreeSet::new();
    let mut described = BTreeSet::new();
    for (path, operations) in object(&document["paths"]) {
        // A part of a path that is nobody's, and a parameter that there is nowhere.
        let parts: BTreeSet<String> =
            path.split('{').skip(1).filter_map(|part| Some(part.split_once('}')?.0.to_owned())).collect();
        let target = parts.iter().fold(path.clone(), |path, part| path.replace(&format!("{{{part}}}"), "none"));
        let target = format!("{target}?zzz=1");
        for method in ["GET", "POST", "PUT", "DELETE", "PATCH"] {
            let json = [("content-type", "application/json")];
            let answer = home.request(method, &target, &json, b"{\"zzz\": 1}").expect("an answer");
            let told = &operations[method.to_lowercase()];
            let what = format!("{method} {path}: {} {}", answer.status, answer.text());
            if told.is_null() {
                assert_eq!(answer.status, 405, "it is not described: {what}");
                continue;
            }
            described.insert(format!("{method} {path}"));
            assert!(ids.insert(told["operationId"].to_string()), "twice: {what}");
            assert!(told["responses"][answer.status.to_string()].is_object(), "no such answer is described: {what}");
            assert_eq!(names(&told["parameters"], "path"), parts, "{what}");
            // Who is asked for a parameter or a member that there isn't names those that there are.
            let query = names(&told["parameters"], "query");
            let schema = &told["requestBody"]["content"]["application/json"]["schema"]["properties"];
            let known: BTreeSet<String> = query.into_iter().chain(object(schema).keys().cloned()).collect();
            let detail = serde_json::from_slice::<Value>(&answer.body).unwrap_or_default()["detail"].clone();
            let detail = detail.as_str().unwrap_or_default();
            if detail.contains("`zzz`") || !known.is_empty() {
                let quoted = detail.split('`').skip(1).step_by(2).map(str::to_owned);
                let listed = detail.split_once("there are ").into_iter().flat_map(|(_, list)| list.split(", "));
                let mut told: BTreeSet<String> = quoted.chain(listed.map(str::to_owned)).collect();
                assert!(told.remove("zzz"), "{what}");
                assert_eq!(told, known, "{what}");
            }
            // On TCP, without a token.
            let asked = tcp.got(&target, &["-X", method, "-H", "content-type: application/json", "-d", "{}"]).status;
            let open = told["security"] == json!([]) && told["description"].is_null();
            assert_eq!(asked == 401 || asked == 403, !open, "{what}");
            assert!(told["responses"][asked.to_string()].is_object(), "no such answer is described: {asked}, {what}");
        }
    }
    // The page for people tells the same.
    let page = include_str!("../../docs/http.md");
    let mut on_page = BTreeSet::new();
    for quoted in page.split('`').skip(1).step_by(2) {
        let Some((method, path)) = quoted.split_once(' ') else { continue };
        if ["GET", "POST", "PUT", "DELETE"].contains(&method) && path.starts_with('/') {
            let path = path.split('?').next().unwrap_or_default();
            let path = [("HOOK", "{hook}"), ("cursors/NAME", "cursors/{name}"), ("dlq/N", "dlq/{number}")]
                .iter()
                .fold(path.to_owned(), |path, (from, to)| path.replace(from, to))
                .replace("executions/N", "executions/{execution}");
            on_page.insert(format!("{method} {path}"));
        }
    }
    // It is for `hookbus hm --forward` alone.
    on_page.insert("GET /v1/opennebula".to_owned());
    assert_eq!(on_page, described);
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
