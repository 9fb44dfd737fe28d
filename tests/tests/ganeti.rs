//! Reports of Ganeti's hooks against a real daemon: one event for each operation, whatever is sent twice, late, or around a crash.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;

use futures_util::StreamExt as _;
use hookbus_ganeti_hook::spool::Spool;
use hookbus_tests::{Home, Kind, Server, fixtures, wait_until};
use serde_json::{Value, json};

/// The recorded runs, each as a report of that node; they are an hour apart, so that each is an operation of its own.
fn reports(node: &str, ids: u128) -> Vec<Value> {
    let runs = fixtures::ganeti_runs().into_iter().zip(0..);
    let report = |(run, n): (Value, u32)| {
        let time = format!("2026-{:02}-{:02}T{:02}:00:00.000Z", 1 + n / 24 / 28, 1 + n / 24 % 28, n % 24);
        json!({"id": format!("{:032x}", ids + u128::from(n)), "time": time, "node": node, "env": run["env"]})
    };
    runs.map(report).collect()
}

fn lines(reports: &[Value]) -> Vec<u8> {
    reports.iter().map(|report| format!("{report}\n")).collect::<String>().into_bytes()
}

/// Sends reports; they are all accepted.
fn send(home: &Home, reports: &[Value]) {
    let headers = [("content-type", "application/x-ndjson")];
    for some in reports.chunks(50) {
        let answer = home.request("POST", "/v1/ganeti/reports", &headers, &lines(some)).expect("an answer");
        assert_eq!((answer.status, &answer.json()["accepted"]), (202, &some.len().into()), "{}", answer.text());
    }
}

/// All operations that the journal has.
fn operations(home: &Home, count: usize) -> Vec<Value> {
    let count = count.to_string();
    let output = home.run(&["tail", "EVENT GANETI ", "--from", "earliest", "--count", &count, "-o", "json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn counted(home: &Home, what: &str) -> u64 {
    home.status()["ganeti"][what].as_u64().expect("a number")
}

/// Every recorded environment, reported by two nodes, over SIGKILL, sent again, and late.
#[test]
fn each_operation_is_one_event() {
    let home = Home::new("[journal]\nenabled = true\n");
    let mut daemon = home.serve();
    let (first, second) = (reports("n1", 0), reports("n2", 1000));
    send(&home, &first[..200]);
    send(&home, &second[100..150]);
    assert_eq!((counted(&home, "operations"), counted(&home, "known")), (200, 50));
    daemon.program.kill();

    // An answer that got lost is asked for again; other nodes come late.
    let daemon = home.serve();
    send(&home, &first[150..]);
    send(&home, &second);
    send(&home, &reports("n3", 2000));
    let n = first.len() as u64;
    assert_eq!((counted(&home, "operations"), counted(&home, "repeated")), (n - 200, 50 + 50));
    assert_eq!(counted(&home, "known"), n - 50 + n);

    let events = operations(&home, first.len());
    for (event, report) in events.iter().zip(&first) {
        let (env, data) = (&report["env"], &event["data"]);
        assert_eq!(&data["env"], env);
        let text = |name: &str| env[format!("GANETI_{name}")].as_str().unwrap_or_default().to_owned();
        assert_eq!(event["type"], format!("org.ganeti.{}.{}", text("HOOKS_PATH"), text("HOOKS_PHASE")));
        assert_eq!(event["source"], format!("/ganeti/{}", text("CLUSTER")));
        assert_eq!(event["datacontenttype"], "application/json");
        assert_eq!((&data["report"], &data["time"], &data["node"]), (&report["id"], &report["time"], &"n1".into()));
        let name = data["name"].as_str().expect("a name");
        assert_eq!(event["subject"], format!("{}/{name}", text("OBJECT_TYPE").to_lowercase()));
    }
    daemon.stop();
}

/// What a crash has kept from being remembered is in the journal.
#[test]
fn the_journal_knows_what_the_memory_has_lost() {
    let home = Home::new("[journal]\nenabled = true\n");
    let daemon = home.serve();
    let all = reports("n1", 0);
    send(&home, &all[..20]);
    daemon.stop();
    for file in ["ganeti.db", "ganeti.db-wal", "ganeti.db-shm"] {
        let _ = fs::remove_file(home.path().join("state").join(file));
    }
    let daemon = home.serve();
    send(&home, &all[..20]);
    send(&home, &reports("n2", 1000)[..20]);
    assert_eq!((counted(&home, "operations"), counted(&home, "repeated"), counted(&home, "known")), (0, 20, 20));
    daemon.stop();
    // A damaged one is set aside, and costs no event.
    fs::write(home.path().join("state/ganeti.db"), [7; 5000]).expect("a file");
    let daemon = home.serve();
    send(&home, &all[..21]);
    assert_eq!((counted(&home, "operations"), counted(&home, "repeated")), (1, 20));
    assert!(home.log().contains("ganeti.db.damaged"), "{}", home.log());
    daemon.stop();
}

/// What makes no sense is told, and is in the way of nothing.
#[test]
fn what_is_no_report_is_refused_alone() {
    let home = Home::new("[journal]\nenabled = true\n");
    let daemon = home.serve();
    let all = reports("n1", 0);
    let mut body = lines(&all[..1]);
    body.extend_from_slice(b"\xFF\xFE no JSON\n\n{\"id\":\"x\",\"time\":\"now\",\"node\":\"\",\"env\":{}}\n");
    body.extend_from_slice(&lines(&all[1..2]));
    let answer = home.request("POST", "/v1/ganeti/reports", &[("hookbus-lost", "3")], &body).expect("an answer");
    assert_eq!(answer.status, 202);
    let told = answer.json();
    assert_eq!(told["accepted"], 2);
    assert_eq!(told["refused"][1]["id"], "x");
    assert!(told["refused"][1]["problem"].as_str().expect("a text").contains("32 hexadecimal digits"), "{told}");
    assert_eq!((counted(&home, "refused"), counted(&home, "lost")), (2, 3));
    home.logged("n1: its spool was full, and 3 reports of hooks were lost there");
    let large = home.request("POST", "/v1/ganeti/reports", &[], &vec![b'x'; 5 << 20]);
    assert!(large.is_err() || large.is_ok_and(|answer| answer.status == 413));
    // Nobody else publishes under these keys.
    let headers = [("ce-hookbuskey", "EVENT GANETI NODE/node-add/post/n9 "), ("content-type", "text/plain")];
    assert_eq!(home.request("POST", "/v1/events", &headers, b"x").expect("an answer").status, 403);
    assert_eq!(operations(&home, 2).len(), 2);
    daemon.stop();
}

/// A hook of TYPE ganeti of the daemon's own, and what the bus gets of an operation in each format.
#[test]
fn operations_make_hooks_run_and_are_in_every_format() {
    let home = Home::new("[journal]\nenabled = true\n[ganeti]\nnode = \"me.example.com\"\n");
    let directory = home.path().display();
    let _ = home
        .script("note.sh", &format!("#!/bin/sh\necho \"$GANETI_HOOKS_PATH $GANETI_OP_TARGET\" >> {directory}/notes\n"));
    home.hook("note", "NAME = note\nTYPE = ganeti\nOPERATION = instance-*\nPHASE = pre\nCOMMAND = note.sh\n");
    let daemon = home.serve();
    let mut report =
        reports("n1", 0).into_iter().find(|report| report["env"]["GANETI_HOOKS_PATH"] == "instance-migrate");
    let report = report.as_mut().expect("one was recorded");
    report["env"]["GANETI_MASTER"] = "me.example.com".into();
    report["env"]["GANETI_HOOKS_PHASE"] = "pre".into();
    send(&home, std::slice::from_ref(report));
    let noted = wait_until("the hook to have run", || match fs::read_to_string(home.path().join("notes")) {
        Ok(text) if text.ends_with('\n') => Ok(text),
        other => Err(format!("{other:?}")),
    });
    let target = report["env"]["GANETI_OP_TARGET"].as_str().expect("a name");
    assert_eq!(noted, format!("instance-migrate {target}\n"));
    // In the format `raw` it is the environment alone.
    let followed = "/v1/events?prefix=EVENT%20GANETI%20&from=earliest&format=raw";
    let mut curl = home.curl_command(followed, &["--no-buffer"]).stdout(Stdio::piped()).spawn().expect("curl");
    let lines = BufReader::new(curl.stdout.take().expect("a pipe")).lines();
    let mut data = lines.map_while(Result::ok).filter_map(|line| Some(line.strip_prefix("data:")?.to_owned()));
    let env: Value = serde_json::from_str(&data.next().expect("an event")).expect("JSON");
    assert_eq!(env, report["env"]);
    curl.kill().and_then(|()| curl.wait()).expect("our own child");
    daemon.stop();
}

/// Hooks of PHASE pre may refuse an operation, by their exit code, as scripts do it.
#[test]
fn a_check_may_refuse_an_operation() {
    let home = Home::new("[journal]\nenabled = true\n[ganeti]\nnode = \"me\"\n");
    let _ = home
        .script("check.sh", "#!/bin/sh\n[ \"$GANETI_OP_TARGET\" != web2 ] || { echo \"web2 has to stay\"; exit 7; }\n");
    home.hook("check", "NAME = check\nTYPE = ganeti\nOPERATION = instance-stop\nPHASE = pre\nCOMMAND = check.sh\n");
    home.hook("gone", "NAME = gone\nTYPE = ganeti\nOPERATION = instance-reboot\nPHASE = pre\nCOMMAND = gone.sh\n");
    home.hook("after", "NAME = after\nTYPE = ganeti\nOPERATION = instance-start\nCOMMAND = /bin/false\n");
    let daemon = home.serve();
    let mut next = 0;
    let mut ask = |operation: &str, target: &str| {
        next += 1;
        let env = json!({"GANETI_HOOKS_PATH": operation, "GANETI_HOOKS_PHASE": "pre", "GANETI_OP_TARGET": target,
            "GANETI_OBJECT_TYPE": "INSTANCE", "GANETI_CLUSTER": "c", "GANETI_MASTER": "me", "PATH": "/bin:/usr/bin"});
        let report = json!({"id": format!("{next:032x}"), "time": "2026-11-23T02:00:00Z", "node": "me", "env": env});
        let answer = home.request("POST", "/v1/ganeti/gate", &[], report.to_string().as_bytes()).expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.text());
        let answer = answer.json();
        (
            answer["verdict"].as_str().unwrap_or_default().to_owned(),
            answer["reason"].as_str().unwrap_or_default().to_owned(),
        )
    };
    assert_eq!(ask("instance-stop", "web1"), ("allow".into(), "check agreed".into()));
    assert_eq!(ask("instance-stop", "web2"), ("deny".into(), "check: web2 has to stay".into()));
    let (verdict, reason) = ask("instance-reboot", "web1");
    assert!(verdict == "none" && reason.contains("No such file or directory"), "{verdict}: {reason}");
    assert_eq!(ask("instance-start", "web1").0, "none", "only hooks of PHASE pre are asked");
    assert_eq!(operations(&home, 4).len(), 4, "each is an event, too");
    assert_eq!(home.request("POST", "/v1/ganeti/gate", &[], b"{}").expect("an answer").status, 400);
    daemon.stop();
}

/// Somebody on NATS may refuse one, too.
#[test]
fn a_check_on_nats_may_refuse_an_operation() {
    let bus = Server::start(Kind::Nats);
    let home = Home::new(&format!("[ganeti]\nnode = \"me\"\ngate_nats = \"{}\"\n{}", bus.kind(), bus.bridge("")));
    let daemon = home.serve();
    let ask = |id: u32| {
        let env = json!({"GANETI_HOOKS_PATH": "node-remove", "GANETI_HOOKS_PHASE": "pre", "GANETI_OP_TARGET": "n7",
            "GANETI_OBJECT_TYPE": "NODE", "GANETI_CLUSTER": "c.example.com", "GANETI_MASTER": "me", "PATH": "/bin"});
        let report = json!({"id": format!("{id:032x}"), "time": "2026-11-23T02:00:00Z", "node": "me", "env": env});
        let answer = home.request("POST", "/v1/ganeti/gate", &[], report.to_string().as_bytes()).expect("an answer");
        answer.json()
    };
    let nobody = ask(1);
    assert_eq!(nobody["verdict"], "none", "{nobody}");
    assert!(
        nobody["reason"]
            .as_str()
            .expect("a text")
            .contains("nobody subscribes to hookbus-gate.c.example.com.node-remove"),
        "{nobody}"
    );
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let subscribed = async {
        let client = async_nats::connect(bus.url()).await.expect("a server");
        let subscription = client.subscribe("hookbus-gate.>").await.expect("subscribed");
        client.flush().await.expect("told");
        (client, subscription)
    };
    let (client, mut questions) = runtime.block_on(subscribed);
    runtime.spawn(async move {
        while let Some(question) = questions.next().await {
            let event: Value = serde_json::from_slice(&question.payload).expect("a CloudEvent");
            let verdict = json!({"verdict": "deny", "reason": format!("{} stays", event["data"]["name"].as_str().unwrap_or("?"))});
            let reply = question.reply.expect("a question");
            client.publish(reply, verdict.to_string().into()).await.expect("answered");
        }
    });
    let refused = ask(2);
    assert_eq!(refused["verdict"], "deny", "{refused}");
    assert_eq!(refused["reason"], "hookbus-gate.c.example.com.node-remove: n7 stays");
    daemon.stop();
}

/// What the hook client has left in its spool is taken in, in order, also what came before the daemon did.
#[test]
fn the_spool_of_this_host_is_taken_in() {
    let home = Home::new("[journal]\nenabled = true\n");
    let spool = Spool::new(home.path().join("spool"));
    fs::create_dir(spool.dir()).expect("a directory");
    // The daemon runs as another user where the tests run as root.
    fs::set_permissions(spool.dir(), fs::Permissions::from_mode(0o777)).expect("our own");
    let taken_in = |count: u64| {
        wait_until("the spool to be taken in", || match counted(&home, "operations") {
            operations if operations == count => Ok(()),
            other => Err(format!("{other} operations; {}", home.log())),
        });
    };
    let all = reports("n1", 0);
    let put = |report: &Value, n: usize| {
        let id = report["id"].as_str().expect("an id");
        fs::write(spool.dir().join(format!("{n:020}-{id}.json")), format!("{report}\n")).expect("a file");
    };
    all[..30].iter().zip(1..).for_each(|(report, n)| put(report, n));
    fs::write(spool.dir().join(format!("{:020}-{:032x}.json", 31, 77)), "no report").expect("a file");
    let daemon = home.serve();
    let ids = |events: &[Value]| events.iter().map(|event| event["data"]["report"].clone()).collect::<Vec<_>>();
    let expected = |count: usize| all[..count].iter().map(|report| report["id"].clone()).collect::<Vec<_>>();
    taken_in(30);
    assert_eq!(ids(&operations(&home, 30)), expected(30));
    wait_until("the spool to be empty", || match spool.is_empty() {
        Ok(true) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert!(spool.dir().join("refused").join(format!("{:020}-{:032x}.json", 31, 77)).exists());
    put(&all[30], 40);
    taken_in(31);
    assert_eq!(ids(&operations(&home, 31)), expected(31));
    daemon.stop();
}

/// The scripts of a hook directory become hooks, and with --take-over Ganeti finds them no more.
#[test]
fn scripts_of_ganeti_become_hooks() {
    let home = Home::new("[journal]\nenabled = true\n[ganeti]\nnode = \"me\"\n");
    let directory = home.path().display();
    let scripts = home.path().join("ganeti");
    for sub in ["instance-start-post.d", "instance-add-post.d", "watcher"] {
        fs::create_dir_all(scripts.join(sub)).expect("a directory");
    }
    let own = home.script("ganeti/instance-start-post.d/10-note", &format!("#!/bin/sh\nenv > {directory}/noted\n"));
    let shared = home.script("ganeti-notify", "#!/bin/sh\n");
    for sub in ["instance-start-post.d", "instance-add-post.d"] {
        std::os::unix::fs::symlink(&shared, scripts.join(sub).join("20-notify")).expect("a link");
    }
    let daemon = home.serve();
    let dir = scripts.display().to_string();
    let imported = home.run(&["ganeti", "import", &dir, "--take-over"]);
    let told = String::from_utf8_lossy(&imported.stdout).into_owned();
    assert!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));
    assert_eq!(told, "ID: 0 (instance-start-post-10-note)\nID: 1 (20-notify-post)\n");
    assert!(!own.exists() && own.with_file_name("10-note.hookbus").exists());
    assert!(!scripts.join("instance-add-post.d/20-notify").is_symlink() && shared.exists());
    let hook = home.request("GET", "/v1/hooks/1", &[], b"").expect("an answer").json();
    assert_eq!(hook["trigger"], "ganeti instance-add,instance-start post");
    let env = json!({"GANETI_HOOKS_PATH": "instance-start", "GANETI_HOOKS_PHASE": "post", "GANETI_OP_TARGET": "web1",
        "GANETI_OBJECT_TYPE": "INSTANCE", "GANETI_CLUSTER": "c", "GANETI_MASTER": "me", "PATH": "/bin:/usr/bin"});
    send(&home, &[json!({"id": format!("{:032x}", 1), "time": "2026-11-23T02:00:00Z", "node": "me", "env": env})]);
    wait_until("the script to have run", || match fs::read_to_string(home.path().join("noted")) {
        Ok(noted) if noted.contains("GANETI_OP_TARGET=web1\n") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let again = home.run(&["ganeti", "import", &dir]);
    assert!(again.status.success(), "nothing is left there");
    daemon.stop();
}
