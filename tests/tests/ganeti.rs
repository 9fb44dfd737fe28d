//! Reports of Ganeti's hooks against a real daemon: one event for each operation, whatever is sent twice, late, or around a crash. And its jobs, from a
//! directory in which files are replaced as Ganeti replaces them.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::SystemTime;

use futures_util::StreamExt as _;
use hookbus_ganeti_hook::spool::Spool;
use hookbus_tests::servers::http::HttpServer;
use hookbus_tests::tools::{self, Tool};
use hookbus_tests::{Home, Kind, Server, bounded, ended, fixtures, hookbus, wait_until};
use rusqlite::Connection;
use rustix::process::Signal;
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

/// Bodies of reports that are on their way count together with all others: 16 MiB here.
#[test]
fn many_large_reports_at_once_are_bounded() {
    let home = Home::new("[limits]\nhttp_body_bytes = \"64KiB\"\n");
    let daemon = home.serve();
    // Each holds nearly 4 MiB, and doesn't go on.
    let hold = || {
        let mut stream = UnixStream::connect(home.socket()).expect("the daemon listens");
        let head =
            format!("POST /v1/ganeti/reports HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", 4 << 20);
        stream.write_all(&[head.as_bytes(), &vec![b'\n'; (4 << 20) - 1]].concat()).expect("the daemon reads");
        stream
    };
    let mut held: Vec<UnixStream> = (0..4).map(|_| hold()).collect();
    let ask = || {
        let answer = home.request("POST", "/v1/ganeti/reports", &[], &[b'\n'; 4096]).expect("an answer");
        (answer.status, answer.text())
    };
    wait_until("no room to be left", || match ask() {
        (503, text) => {
            assert!(text.contains("too many large requests at once"), "{text}");
            Ok(())
        }
        (_, text) => {
            // This may have come between, so that there was no room for one of those.
            for stream in &mut held {
                stream.set_nonblocking(true).expect("a socket");
                if stream.read(&mut [0]).is_ok() {
                    *stream = hold();
                }
            }
            Err(text)
        }
    });
    drop(held);
    wait_until("room", || match ask() {
        (202, _) => Ok(()),
        (_, text) => Err(text),
    });
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

/// A variable that is no UTF-8 goes through the hook, the journal and the executor as it was, and is there when a run is repeated.
#[test]
fn what_is_no_text_reaches_scripts_byte_for_byte() {
    let home = Home::new("[journal]\nenabled = true\n[ganeti]\nnode = \"n1\"\n");
    let directory = home.path().display();
    let script = format!("#!/bin/sh\ncat /proc/$$/environ >> {directory}/noted\necho >> {directory}/noted\n");
    let _ = home.script("note.sh", &script);
    home.hook("note", "NAME = note\nTYPE = ganeti\nOPERATION = instance-start\nCOMMAND = note.sh\n");
    let daemon = home.serve();
    let node = Node::new(&home);
    let odd = OsStr::from_bytes(b"a=\xFF\xFE 'b\"");
    let output = node.command("web1").env("GANETI_INSTANCE_TAGS", odd).output().expect("the hook can be started");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let given: BTreeSet<Vec<u8>> = [
        &b"PATH=/bin"[..],
        b"GANETI_HOOKS_PATH=instance-start",
        b"GANETI_HOOKS_PHASE=post",
        b"GANETI_OBJECT_TYPE=INSTANCE",
        b"GANETI_CLUSTER=c",
        b"GANETI_MASTER=n1",
        b"GANETI_OP_TARGET=web1",
        b"GANETI_INSTANCE_TAGS=a=\xFF\xFE 'b\"",
    ]
    .map(<[u8]>::to_vec)
    .into();
    let noted = |times: usize| {
        wait_until("the script to have run", || match fs::read(home.path().join("noted")) {
            Ok(noted) if noted.iter().filter(|&&byte| byte == b'\n').count() == times => Ok(noted),
            other => Err(format!("{other:?}; {}", home.log())),
        })
    };
    let check = |noted: &[u8]| {
        for run in noted.split(|&byte| byte == b'\n').filter(|run| !run.is_empty()) {
            let variables: BTreeSet<Vec<u8>> =
                run.split(|&byte| byte == 0).filter(|variable| !variable.is_empty()).map(<[u8]>::to_vec).collect();
            assert_eq!(variables, given, "{}", String::from_utf8_lossy(run));
        }
    };
    check(&noted(1));
    wait_until("the run to be recorded", || match home.run(&["hook", "retry", "note", "0"]) {
        output if output.status.success() => Ok(()),
        output => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    });
    check(&noted(2));
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
    // First without, as its warning then says how to go on.
    for (take_over, before) in [(None, ""), (None, ", as before"), (Some("--take-over"), ", as before")] {
        assert!(own.exists());
        let command: Vec<_> = ["ganeti", "import", &dir].into_iter().chain(take_over).collect();
        let imported = home.run(&command);
        let told = String::from_utf8_lossy(&imported.stdout).into_owned();
        assert!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));
        let expected = format!("ID: 0 (instance-start-post-10-note){before}\nID: 1 (20-notify-post){before}\n");
        assert_eq!(told, expected);
    }
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

/// A data directory of Ganeti with a job queue, as on a master.
struct Queue<'h> {
    home: &'h Home,
}

impl Queue<'_> {
    /// The configuration of a daemon that follows it, for a home that is not made yet.
    fn configure(home: &Home) -> Queue<'_> {
        let data = home.path().join("ganeti");
        fs::create_dir(&data).expect("a directory");
        fs::write(data.join("ssconf_cluster_name"), "c.example.com\n").expect("a file");
        home.configure(&format!(
            "[journal]\nenabled = true\n[ganeti]\nnode = \"n1.example.com\"\n[[source]]\nname = \"jobs\"\ntype = \"ganeti-jobs\"\nurl = \
             \"file://{}/queue\"\n",
            data.display()
        ));
        let queue = Queue { home };
        queue.create();
        queue
    }

    fn path(&self) -> PathBuf {
        self.home.path().join("ganeti/queue")
    }

    fn create(&self) {
        fs::create_dir_all(self.path().join("archive/0")).expect("a directory");
        for (name, text) in [("serial", "4716\n"), ("lock", ""), ("version", "1\n")] {
            fs::write(self.path().join(name), text).expect("a file");
        }
    }

    /// Replaces the file of a job, as `utils.WriteFile` does.
    fn write(&self, job: &Value) {
        let name = format!("job-{}", job["id"]);
        let new = self.path().join(format!("{name}x1y2z3.new"));
        fs::write(&new, job.to_string()).expect("a file");
        fs::rename(new, self.path().join(name)).expect("our own file");
    }

    fn archive(&self, id: u64) {
        let name = format!("job-{id}");
        let to = self.path().join(format!("archive/{}", id / 10_000));
        fs::create_dir_all(&to).expect("a directory");
        fs::rename(self.path().join(&name), to.join(name)).expect("our own file");
    }

    /// Where the daemon writes down what it has told.
    fn memory(&self) -> Connection {
        Connection::open(self.home.path().join("state/ganeti-jobs.db")).expect("the daemon has made it")
    }

    /// How many jobs are written down.
    fn written(&self) -> i64 {
        self.memory().query_row("SELECT count(*) FROM jobs", [], |row| row.get(0)).expect("it has the table")
    }

    /// How the source stands.
    fn status(&self) -> Value {
        self.home.status()["sources"][0].clone()
    }

    fn wait(&self, what: &str, holds: impl Fn(&Value) -> bool) {
        wait_until(what, || match self.status() {
            status if holds(&status) => Ok(()),
            status => Err(format!("{status}\n{}", self.home.log())),
        });
    }

    /// Waits until this daemon has told so many.
    fn told(&self, count: u64) {
        self.wait(&format!("{count} events of jobs"), |status| status["events"] == count);
    }

    /// What was told of each job, by all daemons: number and status.
    fn all(&self, count: usize) -> Vec<(u64, String)> {
        let events = operations(self.home, count);
        events.iter().map(|event| (number(event), event["data"]["status"].as_str().expect("a word").into())).collect()
    }
}

fn number(event: &Value) -> u64 {
    event["data"]["jobid"].as_u64().expect("a number")
}

/// Seconds and microseconds since 1970.
fn now() -> (u64, u32) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    (now.as_secs(), now.subsec_micros())
}

/// A recorded job under this number, as if it had been taken in by now; `status` is that of its first operation.
fn job(recorded: u64, id: u64, status: &str) -> Value {
    let mut job = fixtures::ganeti_job(recorded);
    let at = |is_there: bool| if is_there { json!(now()) } else { Value::Null };
    let has_begun = status != "queued" && status != "waiting" && recorded != 4715;
    let has_ended = ["success", "error", "canceled"].contains(&status);
    job["id"] = id.into();
    // The same in each state of the job: with the number it stands for it.
    job["received_timestamp"] = json!([1_795_303_200, id]);
    for part in ["start_timestamp", "end_timestamp"] {
        job[part] = at(if part == "start_timestamp" { has_begun } else { has_ended });
    }
    for op in job["ops"].as_array_mut().expect("a list") {
        op["status"] = status.into();
        op["exec_timestamp"] = at(has_begun);
        op["end_timestamp"] = at(has_ended);
        if !has_ended {
            op["result"] = Value::Null;
        }
    }
    job
}

fn pairs(expected: &[(u64, &str)]) -> Vec<(u64, String)> {
    expected.iter().map(|(id, status)| (*id, (*status).to_owned())).collect()
}

/// Each status of each job once, with its error; what isn't a job is in the way of nothing.
#[test]
fn jobs_are_told_from_the_queue_to_their_end() {
    let home = Home::default();
    let queue = Queue::configure(&home);
    let daemon = home.serve();
    queue.wait("the queue to be followed", |status| status["state"] == "following");
    let mut told = 0;
    for status in ["queued", "waiting", "running", "running", "success"] {
        queue.write(&job(4713, 1, status));
        told += u64::from(status != "waiting");
        told = told.min(3 - u64::from(status != "success"));
        queue.told(told);
    }
    // Torn, and somebody else's.
    fs::write(queue.path().join("job-2"), "{\"id\": 2, \"ops\": [{").expect("a file");
    fs::write(queue.path().join("job-2abcdef.new"), "nothing").expect("a file");
    queue.wait("the torn file to be told", |status| status["skipped"] == 1);
    home.logged("job-2: it is no job of Ganeti 3.0's format");
    queue.write(&job(4714, 2, "error"));
    queue.told(4);
    queue.write(&job(4715, 3, "canceled"));
    queue.told(5);
    queue.write(&job(4716, 4, "error"));
    queue.told(6);
    queue.wait("all to be known", |status| status["jobs"] == 4);
    for id in [1, 2, 3] {
        queue.archive(id);
    }
    queue.wait("archived ones to be forgotten", |status| status["jobs"] == 1);
    queue.write(&job(4711, 5, "queued"));
    queue.told(7);
    let expected =
        [(1, "queued"), (1, "running"), (1, "success"), (2, "error"), (3, "canceled"), (4, "error"), (5, "queued")];
    assert_eq!(queue.all(7), pairs(&expected));

    let events = operations(&home, 7);
    let failed = &events[3];
    assert_eq!((&failed["type"], &failed["subject"]), (&"org.ganeti.job.error".into(), &"job/2".into()));
    assert_eq!(
        (&failed["source"], &failed["datacontenttype"]),
        (&"/ganeti/c.example.com".into(), &"application/json".into())
    );
    assert_eq!(failed["data"]["error"], "Instance 'new1.example.com' is already in the cluster (already_exists)");
    let op = &failed["data"]["ops"][0];
    assert_eq!((&op["op"], &op["name"]), (&"OP_INSTANCE_CREATE".into(), &"new1.example.com".into()));
    assert_eq!(op["error"]["args"], fixtures::ganeti_job(4714)["ops"][0]["result"][1]);
    assert_eq!(events[4]["data"]["error"], "Job canceled by request");
    // By job, too.
    let output = home.run(&["tail", "EVENT JOB 1/", "--from", "earliest", "--count", "3", "-o", "json"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 3);
    let shown = String::from_utf8_lossy(&home.run(&["status"]).stdout).into_owned();
    assert!(shown.contains("following; 2 jobs known, 0 running, 7 events, 1 files skipped"), "{shown}");
    daemon.stop();
}

/// What ends while nobody looks is told afterwards; what was told is not told again, nor what had ended before all.
#[test]
fn jobs_that_end_while_the_daemon_is_away_are_told() {
    let home = Home::default();
    let queue = Queue::configure(&home);
    let mut old = job(4713, 1, "success");
    old["end_timestamp"] = json!([now().0 - 3600, 0]);
    queue.write(&old);
    queue.write(&job(4713, 2, "running"));
    queue.write(&job(4711, 3, "queued"));
    let mut daemon = home.serve();
    queue.told(2);
    // What is not written down when the daemon is killed is told again.
    wait_until("three jobs to be written down", || match queue.written() {
        3 => Ok(()),
        other => Err(other),
    });
    daemon.program.kill();

    queue.write(&job(4714, 2, "error"));
    queue.archive(2);
    queue.write(&job(4713, 4, "success"));
    queue.write(&job(4713, 5, "success"));
    queue.archive(5);
    let daemon = home.serve();
    queue.told(3);
    daemon.stop();

    // Changes that the kernel could not note, since nobody took them.
    let daemon = home.serve();
    queue.wait("the queue to be followed", |status| status["state"] == "following");
    assert_eq!(queue.status()["events"], 0);
    daemon.program.signal(Signal::STOP);
    let most = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").expect("Linux has it");
    let noise = queue.path().join("noise");
    for _ in 0..most.trim().parse::<u32>().expect("a number") {
        fs::write(&noise, "").expect("a file");
        fs::remove_file(&noise).expect("our own file");
    }
    queue.write(&job(4713, 3, "success"));
    daemon.program.signal(Signal::CONT);
    home.logged("changes came faster than they were noted");
    queue.told(1);
    let expected = [(2, "running"), (3, "queued"), (2, "error"), (4, "success"), (5, "success"), (3, "success")];
    assert_eq!(queue.all(6), pairs(&expected));
    daemon.stop();
}

/// Killed before it could write down what it had told: what it knew of is told again, and nothing is missing, be it archived meanwhile or never seen.
#[test]
fn no_end_of_a_job_is_lost_with_what_was_not_written_down() {
    let home = Home::default();
    let queue = Queue::configure(&home);
    let mut old = job(4713, 1, "success");
    old["end_timestamp"] = json!([now().0 - 3600, 0]);
    queue.write(&old);
    queue.archive(1);
    let mut daemon = home.serve();
    queue.wait("the queue to be followed", |status| status["state"] == "following");
    let file = queue.memory();
    file.execute_batch("BEGIN IMMEDIATE").expect("nobody writes");
    queue.write(&job(4713, 2, "running"));
    queue.told(1);
    daemon.program.kill();
    file.execute_batch("ROLLBACK").expect("our own transaction");
    assert_eq!(queue.written(), 0);

    queue.write(&job(4714, 2, "error"));
    queue.archive(2);
    queue.write(&job(4713, 3, "success"));
    queue.archive(3);
    let daemon = home.serve();
    queue.told(2);
    assert_eq!(queue.all(3), pairs(&[(2, "running"), (2, "error"), (3, "success")]));
    daemon.stop();
}

/// Trouble with the directory is told, and ends with it.
#[test]
fn a_job_queue_may_vanish_and_come_back() {
    let home = Home::default();
    let queue = Queue::configure(&home);
    fs::remove_dir_all(queue.path()).expect("our own directory");
    let daemon = home.serve();
    home.logged("queue doesn't exist; it is there on a master");
    queue.wait("the source to fail", |status| status["state"] == "failing");
    queue.create();
    queue.write(&job(4711, 1, "queued"));
    queue.told(1);
    // Away and back, by removal and by rename.
    fs::remove_dir_all(queue.path()).expect("our own directory");
    queue.wait("the source to fail", |status| status["state"] == "failing");
    queue.create();
    queue.write(&job(4713, 1, "success"));
    queue.told(2);
    fs::rename(queue.path(), home.path().join("ganeti/elsewhere")).expect("our own directory");
    queue.create();
    queue.write(&job(4713, 2, "running"));
    queue.told(3);
    // Nobody says what the cluster is called.
    fs::remove_dir_all(home.path().join("ganeti")).expect("our own directory");
    queue.create();
    home.logged("write cluster = \"...\" into the source");
    fs::write(home.path().join("ganeti/ssconf_cluster_name"), "c.example.com").expect("a file");
    queue.write(&job(4713, 2, "success"));
    queue.told(4);
    // While another node is the master, that one tells.
    fs::write(home.path().join("ganeti/ssconf_master_node"), "n2.example.com\n").expect("a file");
    queue.write(&job(4713, 3, "success"));
    queue.wait("the other node to be the master", |status| status["state"] == "standby");
    queue.wait("the job to be known", |status| status["jobs"] == 2);
    fs::write(home.path().join("ganeti/ssconf_master_node"), "n1.example.com\n").expect("a file");
    queue.write(&job(4713, 4, "success"));
    queue.told(5);
    let expected = [(1, "queued"), (1, "success"), (2, "running"), (2, "success"), (4, "success")];
    assert_eq!(queue.all(5), pairs(&expected));
    daemon.stop();
}

/// A hook is told with its job, where there is exactly one.
#[test]
fn a_hook_knows_the_job_that_it_ran_for() {
    let home = Home::default();
    let queue = Queue::configure(&home);
    let daemon = home.serve();
    queue.wait("the queue to be followed", |status| status["state"] == "following");
    // db1 is stopped by job 1; web2 is started by jobs 2 and 3; job 4 waits.
    let stopping = job(4713, 1, "running");
    queue.write(&stopping);
    queue.write(&job(4712, 2, "running"));
    queue.write(&job(4712, 3, "running"));
    queue.write(&job(4711, 4, "queued"));
    queue.told(4);
    let time = || {
        let output = std::process::Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%S.%3NZ"]).output().expect("date");
        String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
    };
    let mut next = 0;
    let mut report = |path: &str, code: &str, phase: &str, target: &str, cluster: &str| {
        next += 1;
        let env = json!({"GANETI_HOOKS_PATH": path, "GANETI_HOOKS_PHASE": phase, "GANETI_OP_CODE": code, "GANETI_OP_TARGET": target,
            "GANETI_OBJECT_TYPE": "INSTANCE", "GANETI_CLUSTER": cluster, "GANETI_MASTER": "n1", "PATH": "/bin", "N": next.to_string()});
        json!({"id": format!("{next:032x}"), "time": time(), "node": "n1", "env": env})
    };
    let (stop, start) = ("OP_INSTANCE_SHUTDOWN", "OP_INSTANCE_STARTUP");
    let late = report("instance-stop", stop, "post", "db1.example.com", "c.example.com");
    let reports = [
        report("instance-stop", stop, "pre", "db1.example.com", "c.example.com"),
        late.clone(),
        report("instance-start", start, "post", "web2.example.com", "c.example.com"),
        report("instance-migrate", "OP_INSTANCE_MIGRATE", "pre", "web1.example.com", "c.example.com"),
        report("instance-stop", stop, "post", "db1.example.com", "other.example.com"),
    ];
    send(&home, &reports);
    let mut stopped = job(4713, 1, "success");
    stopped["ops"][0]["exec_timestamp"] = stopping["ops"][0]["exec_timestamp"].clone();
    queue.write(&stopped);
    queue.told(5);
    // One that was spooled belongs to what ran then.
    let mut late = late;
    late["id"] = format!("{:032x}", 77).into();
    late["env"]["N"] = "late".into();
    late["env"]["GANETI_EXTRA"] = "late".into();
    send(&home, &[late]);
    let all = operations(&home, 4 + reports.len() + 1 + 1);
    let hooks: Vec<_> = all.iter().filter(|event| event["data"]["phase"].is_string()).collect();
    let jobs: Vec<_> = hooks.iter().map(|event| event["data"].get("jobid").and_then(Value::as_u64)).collect();
    assert_eq!(jobs, [Some(1), Some(1), None, None, None, Some(1)], "{hooks:#?}");
    daemon.stop();
}

/// The hook of a node, as Ganeti runs it, and the daemon of a home. That runs as another user where the tests run as root, so this spool is the hooks' own.
struct Node<'h> {
    home: &'h Home,
    config: PathBuf,
    spool: Spool,
}

impl<'h> Node<'h> {
    fn new(home: &'h Home) -> Self {
        Node::with_spool(home, home.path().join("hook-spool"))
    }

    fn with_spool(home: &'h Home, spool: PathBuf) -> Self {
        let (config, socket) = (home.path().join("ganeti-hook.toml"), home.socket());
        let text = format!("socket = {socket:?}\nspool = {spool:?}\nnode = \"n1\"\nreport = \"always\"\n");
        fs::write(&config, text).expect("a file");
        Node { home, config, spool: Spool::new(spool) }
    }

    /// The hook after this instance was started.
    fn command(&self, instance: &str) -> Command {
        let mut command = Command::new(hook());
        command.arg("--config").arg(&self.config).env_clear().stdin(Stdio::null()).current_dir("/").env("PATH", "/bin");
        for (variable, value) in [
            ("HOOKS_PATH", "instance-start"),
            ("HOOKS_PHASE", "post"),
            ("OBJECT_TYPE", "INSTANCE"),
            ("CLUSTER", "c"),
            ("MASTER", "n1"),
            ("OP_TARGET", instance),
        ] {
            command.env(format!("GANETI_{variable}"), value);
        }
        command
    }

    /// Runs it. Whatever goes on, it ends with 0 and no output; returns what it told.
    fn run(&self, instance: &str) -> String {
        let output = bounded(&mut self.command(instance));
        assert!(output.status.success() && output.stdout.is_empty(), "{instance}: {output:?}");
        String::from_utf8(output.stderr).expect("UTF-8")
    }

    /// Runs it where it has nothing to tell, which means that the report is accepted.
    fn report(&self, instance: &str) {
        assert_eq!(self.run(instance), "", "{instance}");
    }

    /// How many reports wait.
    fn spooled(&self) -> u64 {
        self.spool.contents().expect("the spool can be read").reports
    }

    /// Runs it until nothing waits, when everything is well again; returns what these runs were about.
    fn forward(&self) -> Vec<String> {
        let mut more = Vec::new();
        wait_until("nothing to be in the spool", || {
            more.push(format!("forwards {:032x}", fastrand::u128(..)));
            self.report(more.last().expect("one"));
            if self.spooled() == 0 { Ok(()) } else { Err(self.spooled()) }
        });
        more
    }

    /// What became events: each of these once, in any order, and nothing else. The daemon must be another one than before: the end of that was the
    /// end of all that was on its way to it.
    fn all_are_events_once(&self, mut instances: Vec<String>) {
        self.report("end");
        let events = operations(self.home, instances.len() + 1);
        let mut names: Vec<_> = events.iter().map(|event| event["data"]["name"].as_str().expect("a name")).collect();
        assert_eq!(names.pop(), Some("end"), "{names:?}");
        names.sort_unstable();
        instances.sort_unstable();
        assert_eq!(names, instances);
    }
}

/// A command behind this sees mounts of its own, and may make some.
fn own_mounts() -> Command {
    let mut unshare = Command::new("unshare");
    unshare.arg("--mount");
    if !rustix::process::geteuid().is_root() {
        unshare.arg("--map-root-user");
    }
    unshare
}

fn hook() -> PathBuf {
    hookbus().with_file_name("hookbus-ganeti-hook")
}

/// Ganeti's own runner runs what `install` has installed, where both are by default, for all that was recorded: whoever follows gets an event for each, with
/// the environment as it was. For that, /etc is one of the test's own.
#[test]
fn ganetis_own_runner_runs_the_installed_hook() {
    if !Tool::Ganeti.wanted() {
        return;
    }
    let home = Home::new("[journal]\nenabled = true\n");
    let node = Node::new(&home);
    let etc = home.path().join("etc");
    fs::create_dir_all(etc.join("hookbus")).expect("a directory");
    for file in ["passwd", "group", "ld.so.cache"] {
        // Where one is missing, it isn't needed.
        let _ = fs::copy(Path::new("/etc").join(file), etc.join(file));
    }
    let config = fs::read_to_string(&node.config).expect("the configuration").replace("node = \"n1\"\n", "");
    fs::write(etc.join("hookbus/ganeti-hook.toml"), &config).expect("the configuration");
    let runs = fixtures::ganeti_runs();
    let input = home.path().join("runs");
    fs::write(&input, lines(&runs)).expect("a file");
    let unshare = |script: &str| {
        let mut unshare = own_mounts();
        unshare.args(["sh", "-euc", script, "sh"]);
        unshare.args([&etc, hookbus(), &tools::script("ganeti_runner.py"), &tools::ganeti(), &input]);
        unshare.output().expect("unshare is a part of util-linux")
    };
    if !unshare("mount --bind \"$1\" /etc").status.success() {
        eprintln!("left out: mounts in a namespace of one's own are not allowed here");
        return;
    }
    let daemon = home.serve();
    let output = unshare(
        r#"
        mount --bind "$1" /etc
        "$2" ganeti install >&2
        exec /usr/bin/python3 -I "$3" "$4" /etc/ganeti/hooks < "$5"
        "#,
    );
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.contains("76 links 50-hookbus were made"), "{told}");
    let host = rustix::system::uname().nodename().to_str().expect("UTF-8").to_owned();
    let installed = fs::read_to_string(etc.join("hookbus/ganeti-hook.toml")).expect("it is there");
    assert_eq!(installed, format!("{config}node = \"{host}\"\n"));

    let results = String::from_utf8(output.stdout).expect("UTF-8");
    assert_eq!(results.lines().count(), runs.len());
    for (result, run) in results.lines().zip(&runs) {
        let result: Value = serde_json::from_str(result).expect("JSON");
        let (path, phase) = (run["hooks_path"].as_str().expect("a path"), run["phase"].as_str().expect("a phase"));
        assert_eq!(result, json!([[format!("{path}-{phase}.d/50-hookbus"), "success", ""]]));
    }
    assert_eq!(node.spooled(), 0, "each was taken at once; {}", home.log());
    let events = operations(&home, runs.len());
    for (event, run) in events.iter().zip(&runs) {
        assert_eq!((&event["data"]["env"], &event["data"]["node"]), (&run["env"], &host.as_str().into()));
    }
    daemon.stop();
}

/// A daemon that is away, hangs, is slow, or is killed.
#[test]
fn what_the_hook_accepts_while_the_daemon_is_in_trouble_is_an_event_once() {
    let server = HttpServer::start();
    let bridge = format!("type = \"webhook\"\nurl = \"{}/\"\noverflow = \"block\"\nhwm = 1\n", server.url());
    let home = Home::new(&format!("[journal]\nenabled = true\n[[bridge]]\nname = \"blocks\"\n{bridge}"));
    let node = Node::new(&home);
    let mut accepted = Vec::new();
    let mut report = |instance: String| {
        node.report(&instance);
        accepted.push(instance);
    };
    for n in 0..3 {
        report(format!("absent {n}"));
    }
    assert_eq!(node.spooled(), 3);
    let daemon = home.serve();
    report("present".into());
    assert_eq!(node.spooled(), 0, "what waited came with it");

    daemon.program.signal(Signal::STOP);
    for n in 0..3 {
        report(format!("stopped {n}"));
    }
    assert_eq!(node.spooled(), 3);
    daemon.program.signal(Signal::CONT);

    // Who gets the events doesn't take them, and there is no room for more: then the answer doesn't come in time.
    server.process.stop();
    let mut count = 0;
    while node.spooled() < 3 {
        report(format!("slow {count}"));
        count += 1;
        assert!(count < 100, "the bridge holds nothing up");
    }
    server.process.resume();
    accepted.extend(node.forward());

    let mut daemon = daemon;
    daemon.program.kill();
    node.report("killed");
    accepted.push("killed".into());
    let daemon = home.serve();
    accepted.extend(node.forward());
    daemon.stop();
    let daemon = home.serve();
    node.all_are_events_once(accepted);
    daemon.stop();
}

/// One disk for the journal and the spool, which gets full and has room again. It is in a namespace of its own; left out where that isn't allowed.
#[test]
fn a_full_disk_costs_nothing_that_was_accepted() {
    let home = Home::default();
    let disk = home.path().join("disk");
    fs::create_dir(&disk).expect("a directory");
    let mut holder = own_mounts();
    holder
        .args(["sh", "-euc", "mount -t tmpfs -o size=24m,mode=777 none \"$1\"; echo mounted; exec cat", "sh"])
        .arg(&disk);
    // It lives as long as its input is open.
    let mut holder =
        holder.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("unshare is a part of util-linux");
    let mut said = String::new();
    let mut output = BufReader::new(holder.stdout.take().expect("a pipe"));
    output.read_line(&mut said).expect("UTF-8");
    if said.is_empty() {
        eprintln!("left out: mounts in a namespace of one's own are not allowed here");
        holder.wait().expect("our own child");
        return;
    }
    home.configure(&format!(
        "[journal]\nenabled = true\nmax_bytes = \"64MiB\"\npath = \"{}/journal\"\n",
        disk.display()
    ));
    let serve = || {
        let mut there = Command::new("nsenter");
        there.args(["--mount", "--target", &holder.id().to_string()]);
        if !rustix::process::geteuid().is_root() {
            there.args(["--user", "--preserve-credentials"]);
        }
        there.arg("/usr/bin/python3");
        home.ready(home.launcher().through(there).spawn())
    };
    let seen = PathBuf::from(format!("/proc/{}/root{}", holder.id(), disk.display()));
    let node = Node::with_spool(&home, seen.join("spool"));
    let mut accepted = vec!["absent".to_owned()];
    node.report("absent");
    let daemon = serve();
    accepted.extend(node.forward());

    let mut ballast = fs::File::create(seen.join("ballast")).expect("there is room");
    while ballast.write_all(&[0; 4096]).is_ok() {}
    drop(ballast);
    // The journal has some room of its own, of which this leaves little.
    let headers = [("ce-hookbuskey", "filler"), ("content-type", "text/plain")];
    for size in [100_000, 2000] {
        let publish = || home.request("POST", "/v1/events", &headers, &vec![b'x'; size]).expect("an answer").status;
        while publish() == 202 {}
    }
    let mut lost = 0;
    for n in 0..100 {
        let instance = format!("full {n}");
        match node.run(&instance) {
            told if told.is_empty() => accepted.push(instance),
            told => {
                let expected =
                    told.contains("is lost: the daemon answered 503") && told.contains("No space left on device");
                assert!(expected && told.lines().count() == 1, "{told}");
                lost += 1;
            }
        }
        if lost == 3 {
            break;
        }
    }
    assert_eq!((lost, node.spool.lost()), (3, 3));
    fs::remove_file(seen.join("ballast")).expect("our own file");
    accepted.extend(node.forward());
    assert_eq!(counted(&home, "lost"), lost);
    daemon.stop();
    let daemon = serve();
    node.all_are_events_once(accepted);
    daemon.stop();
    drop(holder.stdin.take());
    holder.wait().expect("our own child");
}

/// What doesn't fit into the spool any more is told, and counted until the daemon knows it.
#[test]
fn a_full_spool_costs_nothing_that_was_accepted() {
    let home = Home::new("[journal]\nenabled = true\n");
    let node = Node::new(&home);
    node.report("kept");
    let filler = |n: usize| node.spool.dir().join(format!("{:020}-{n:032x}.json", 1));
    for n in 0..60 {
        fs::write(filler(n), format!("{{\"id\":\"{n:032x}\",\"x\":\"{}\"}}", "x".repeat(1 << 20)))
            .expect("there is room");
    }
    fs::write(node.spool.dir().join("large"), "").expect("a file");
    for instance in ["lost", "lost, too"] {
        let told = node.run(instance);
        assert!(told.contains("is lost") && told.contains("is full") && told.contains("nobody answers"), "{told}");
    }
    (0..60).for_each(|n| fs::remove_file(filler(n)).expect("our own file"));
    let daemon = home.serve();
    let mut accepted = vec!["kept".to_owned()];
    accepted.extend(node.forward());
    home.logged("n1: its spool was full, and 2 reports of hooks were lost there");
    accepted.extend(node.forward());
    assert_eq!((counted(&home, "lost"), node.spool.lost()), (2, 0), "it is told once");
    daemon.stop();
    let daemon = home.serve();
    node.all_are_events_once(accepted);
    daemon.stop();
}

/// Many at once: nothing is lost on the way, and the daemon stays small. (`hookbus-bench ganeti --at-once` looks at the times.)
#[test]
fn what_many_hooks_report_at_once_arrives() {
    let home = Home::new("[journal]\nenabled = true\n");
    let node = Node::new(&home);
    let daemon = home.serve();
    let told = fs::File::create(home.path().join("told")).expect("a file");
    let start = |n: u32| {
        let stderr = told.try_clone().expect("a descriptor");
        node.command(&format!("web{n}")).stderr(stderr).spawn().expect("the hook can be started")
    };
    let mut all: Vec<_> = (0..200).map(start).collect();
    for one in &mut all {
        ended(one);
        assert!(one.wait().expect("our own child").success());
    }
    // What a machine that was busy has left in the spool comes with the next hook.
    let mut accepted: Vec<_> = (0..200).map(|n| format!("web{n}")).collect();
    accepted.extend(node.forward());
    assert_eq!(fs::read_to_string(home.path().join("told")).expect("the file"), "");
    let mib = daemon.program.resident_mib();
    assert!(mib < 64, "{mib} MiB");
    daemon.stop();
    let daemon = home.serve();
    node.all_are_events_once(accepted);
    daemon.stop();
}

/// An HTTP server may refuse one, too; one that answers nonsense has not answered.
#[test]
fn a_check_over_http_may_refuse_an_operation() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let home = Home::new(&format!(
        "[ganeti]\nnode = \"me\"\ngate_url = \"http://127.0.0.1:{port}/ganeti\"\ngate_token_file = \"TOKEN\"\n"
    ));
    let token = home.path().join("token");
    fs::write(&token, "sesame-sesame-sesame\n").expect("a file");
    let config =
        fs::read_to_string(home.config()).expect("the configuration").replace("TOKEN", &token.display().to_string());
    fs::write(home.config(), config).expect("the configuration");
    let server = thread::spawn(move || {
        for answer in [r#"{"verdict":"deny","reason":"not on Fridays"}"#, "nonsense"] {
            let (mut stream, _) = listener.accept().expect("a question");
            let mut reader = BufReader::new(stream.try_clone().expect("a stream"));
            let (mut head, mut length) = (String::new(), 0);
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).expect("a line");
                if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().expect("a number");
                }
                if line.trim().is_empty() {
                    break;
                }
                head += &line;
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).expect("the question");
            assert!(
                head.starts_with("POST /ganeti HTTP/1.1") && head.contains("Bearer sesame-sesame-sesame"),
                "{head}"
            );
            let event: Value = serde_json::from_slice(&body).expect("a CloudEvent");
            assert_eq!(event["type"], "org.ganeti.node-remove.pre");
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n";
            write!(stream, "{head}content-length: {}\r\n\r\n{answer}", answer.len()).expect("answered");
        }
    });
    let daemon = home.serve();
    let ask = |id: u32| {
        let env = json!({"GANETI_HOOKS_PATH": "node-remove", "GANETI_HOOKS_PHASE": "pre", "GANETI_OP_TARGET": "n7",
            "GANETI_OBJECT_TYPE": "NODE", "GANETI_CLUSTER": "c.example.com", "GANETI_MASTER": "me", "PATH": "/bin"});
        let report = json!({"id": format!("{id:032x}"), "time": "2026-11-23T02:00:00Z", "node": "me", "env": env});
        home.request("POST", "/v1/ganeti/gate", &[], report.to_string().as_bytes()).expect("an answer").json()
    };
    let refused = ask(1);
    assert_eq!(refused["verdict"], "deny", "{refused}");
    assert_eq!(refused["reason"], format!("http://127.0.0.1:{port}: not on Fridays"));
    let nonsense = ask(2);
    assert_eq!(nonsense["verdict"], "none", "{nonsense}");
    assert!(nonsense["reason"].as_str().expect("a text").contains("has given no verdict"), "{nonsense}");
    server.join().expect("the server was asked twice");
    let gone = ask(3);
    assert!(
        gone["verdict"] == "none" && gone["reason"].as_str().expect("a text").contains("can't be reached"),
        "{gone}"
    );
    daemon.stop();
}

/// Each master candidate has a daemon of its own. When the master changes, the new one's node reports to its daemon, and what the old one could not
/// send comes when its daemon is back; nothing is told twice.
#[test]
fn a_failover_of_the_master_loses_nothing() {
    let homes = [Home::new("[journal]\nenabled = true\n"), Home::new("[journal]\nenabled = true\n")];
    // Ganeti runs the hook on both nodes, with the same environment.
    let operation = |master: &str, name: &str| {
        for (home, node) in homes.iter().zip(["n1", "n2"]) {
            let (config, dir) = (home.path().join("hook.toml"), home.path().display());
            let text = format!("socket = \"{dir}/hookbus.sock\"\nspool = \"{dir}/hook-spool\"\nnode = \"{node}\"\n");
            fs::write(&config, text).expect("a file");
            let mut command = Command::new(hook());
            command.arg("--config").arg(&config).env_clear().stdin(Stdio::null()).env("PATH", "/bin");
            for (variable, value) in [
                ("HOOKS_PATH", "instance-start"),
                ("HOOKS_PHASE", "post"),
                ("OBJECT_TYPE", "INSTANCE"),
                ("CLUSTER", "c"),
                ("MASTER", master),
                ("OP_TARGET", name),
            ] {
                command.env(format!("GANETI_{variable}"), value);
            }
            let output = command.output().expect("the hook can be started");
            assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
        }
    };
    // What its daemon has published since it was started, and all that it ever has.
    let names = |home: &Home, new: u64, all: usize| -> Vec<Value> {
        wait_until("the operations to be there", || match counted(home, "operations") {
            operations if operations == new => Ok(()),
            other => Err(format!("{other} of {new}")),
        });
        operations(home, all).iter().map(|event| event["data"]["name"].clone()).collect()
    };
    let (first, second) = (homes[0].serve(), homes[1].serve());
    operation("n1", "before");
    assert_eq!((names(&homes[0], 1, 1), counted(&homes[1], "operations")), (vec!["before".into()], 0));
    // The old master's daemon goes away with an operation that it doesn't get; then the other node is the master.
    first.stop();
    operation("n1", "meanwhile");
    operation("n2", "after");
    assert_eq!(names(&homes[1], 1, 1), ["after"]);
    let first = homes[0].serve();
    operation("n1", "again");
    assert_eq!(names(&homes[0], 2, 3), ["before", "meanwhile", "again"]);
    assert_eq!(names(&homes[1], 1, 1), ["after"]);
    first.stop();
    second.stop();
}
