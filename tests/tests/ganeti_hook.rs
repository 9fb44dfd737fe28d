//! `hookbus-ganeti-hook`, and `hookbus ganeti`: reports arrive, nothing that is wrong with the daemon or the disk stops an operation, and nothing that
//! was accepted is lost.
//!
//! The daemon is a stand-in of this file, which can misbehave in every way; the real one, and Ganeti's own runner, are in `ganeti.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use hookbus_tests::servers::certificates::Authority;
use hookbus_tests::tools::{self, Tool};
use hookbus_tests::{Deadline, bounded, ended, hookbus};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The program, beside `hookbus`.
fn program() -> PathBuf {
    hookbus().with_file_name("hookbus-ganeti-hook")
}

/// What was recorded: hooks path, phase, environment.
fn recorded() -> Vec<Value> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/ganeti/hook-runs.jsonl.zst");
    let mut text = String::new();
    let file = File::open(path).expect("the recording");
    let mut decoder = ruzstd::decoding::StreamingDecoder::new(file).expect("the recording is packed");
    decoder.read_to_string(&mut text).expect("the recording is text");
    text.lines().map(|line| serde_json::from_str(line).expect("lines of JSON")).collect()
}

/// A request that the stand-in got.
#[derive(Clone, Debug)]
struct Asked {
    path: String,
    headers: BTreeMap<String, String>,
    body: String,
}

impl Asked {
    fn reports(&self) -> Vec<Value> {
        self.body.lines().map(|line| serde_json::from_str(line).expect("a report is a line of JSON")).collect()
    }
}

/// How the stand-in answers.
type Manner = dyn Fn(&Asked, &mut UnixStream) + Send + Sync;

/// Accepts everything.
fn well(asked: &Asked, stream: &mut UnixStream) {
    answer(stream, 202, &json!({ "accepted": asked.reports().len(), "refused": [] }));
}

fn answer(stream: &mut UnixStream, status: u16, body: &Value) {
    let body = body.to_string();
    // The hook may be gone.
    let _ = write!(stream, "HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{body}", body.len());
}

/// Stands in for the daemon; it ends when it is dropped.
struct Daemon {
    socket: PathBuf,
    asked: Arc<Mutex<Vec<Asked>>>,
    ends: Arc<AtomicBool>,
}

impl Daemon {
    fn start(socket: PathBuf, manner: impl Fn(&Asked, &mut UnixStream) + Send + Sync + 'static) -> Self {
        let _ = fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).expect("a socket");
        let (asked, ends) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let manner: Arc<Manner> = Arc::new(manner);
        let (all, stop) = (Arc::clone(&asked), Arc::clone(&ends));
        let serve = move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let (manner, all, stop) = (Arc::clone(&manner), Arc::clone(&all), Arc::clone(&stop));
                thread::spawn(move || {
                    let mut stream = stream.expect("a connection");
                    if let Some(asked) = read_request(&mut stream)
                        && !stop.load(Ordering::SeqCst)
                    {
                        all.lock().expect("no test has panicked").push(asked.clone());
                        manner(&asked, &mut stream);
                    }
                });
            }
        };
        thread::spawn(serve);
        Daemon { socket, asked, ends }
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("no test has panicked").clone()
    }

    /// All reports that came, in their order.
    fn reports(&self) -> Vec<Value> {
        self.asked().iter().flat_map(Asked::reports).collect()
    }

    /// What tells the runs apart.
    fn marks(&self) -> Vec<String> {
        self.reports().iter().map(|report| report["env"]["GANETI_MARK"].as_str().expect("a mark").to_owned()).collect()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        // So that the thread sees it; nobody waits for it.
        let _ = UnixStream::connect(&self.socket);
        let _ = fs::remove_file(&self.socket);
    }
}

fn read_request(stream: &mut UnixStream) -> Option<Asked> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut line = || {
        let mut line = String::new();
        let count = reader.read_line(&mut line).ok()?;
        (count > 0).then(|| line.trim_end().to_owned())
    };
    let path = line()?.split(' ').nth(1)?.to_owned();
    let mut headers = BTreeMap::new();
    while let Some((name, value)) = line()?.split_once(": ") {
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let mut body = vec![0; headers.get("content-length").map_or(Some(0), |length| length.parse().ok())?];
    reader.read_exact(&mut body).ok()?;
    Some(Asked { path, headers, body: String::from_utf8(body).expect("reports are UTF-8") })
}

/// A node: a configuration, a spool, a place for the socket.
struct Node {
    dir: TempDir,
}

impl Node {
    fn new(more: &str) -> Self {
        let node = Node { dir: TempDir::new().expect("a directory") };
        let (socket, spool) = (node.socket(), node.spool());
        let own = format!("socket = \"{}\"\nspool = \"{}\"\nnode = \"n1\"\n", socket.display(), spool.display());
        fs::write(node.config(), format!("{own}{more}")).expect("the configuration");
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn config(&self) -> PathBuf {
        self.path("hook.toml")
    }

    fn socket(&self) -> PathBuf {
        self.path("s")
    }

    fn spool(&self) -> PathBuf {
        self.path("spool")
    }

    fn daemon(&self) -> Daemon {
        Daemon::start(self.socket(), well)
    }

    /// The hook with the environment of an operation on the master, and one more variable.
    fn command(&self, mark: &str) -> Command {
        let mut command = Command::new(program());
        let environment = [
            ("PATH", "/sbin:/bin:/usr/sbin:/usr/bin"),
            ("GANETI_HOOKS_PATH", "instance-start"),
            ("GANETI_HOOKS_PHASE", "pre"),
            ("GANETI_MASTER", "n1"),
            ("GANETI_MARK", mark),
        ];
        command.arg("--config").arg(self.config()).env_clear().envs(environment).current_dir("/").stdin(Stdio::null());
        command
    }

    /// Runs it, and checks that it ended with 0.
    fn run(&self, mark: &str) -> String {
        let output = bounded(&mut self.command(mark));
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(output.stdout.is_empty(), "{output:?}");
        String::from_utf8(output.stderr).expect("UTF-8")
    }

    /// Runs it, and checks that there was nothing to tell.
    fn run_quietly(&self, mark: &str) {
        assert_eq!(self.run(mark), "", "{mark}");
    }

    /// The marks of what is in the spool, in the order of the names.
    fn spooled(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.spool()) else { return Vec::new() };
        let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
        paths.sort();
        let mark = |path: &PathBuf| {
            let report: Value = serde_json::from_slice(&fs::read(path).expect("a report")).expect("a whole report");
            report["env"]["GANETI_MARK"].as_str().expect("a mark").to_owned()
        };
        paths.iter().map(mark).collect()
    }
}

#[test]
fn every_recorded_environment_is_posted_as_it_was() {
    let node = Node::new("report = \"always\"\n");
    let daemon = node.daemon();
    let runs = recorded();
    for run in &runs {
        let environment = run["env"].as_object().expect("an environment");
        let environment = environment.iter().map(|(name, value)| (name, value.as_str().expect("a text")));
        let output = bounded(node.command("").env_clear().envs(environment));
        assert!(output.status.success() && output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
    }
    let asked = daemon.asked();
    assert_eq!(asked.len(), runs.len());
    let mut ids = BTreeSet::new();
    for (asked, run) in asked.iter().zip(&runs) {
        assert_eq!(
            (asked.path.as_str(), asked.headers["content-type"].as_str()),
            ("/v1/ganeti/reports", "application/x-ndjson")
        );
        let [report] = &asked.reports()[..] else { panic!("{asked:?}") };
        assert_eq!((&report["env"], report["node"].as_str()), (&run["env"], Some("n1")));
        assert_eq!(report.as_object().expect("an object").len(), 4, "id, time, node, env");
        ids.insert(report["id"].as_str().expect("an id").to_owned());
    }
    assert_eq!(ids.len(), runs.len(), "an id for each run");
    assert!(!node.spool().exists(), "nothing was spooled");
}

#[test]
fn only_the_master_reports_save_where_it_may_not_be_there() {
    let node = Node::new("");
    let daemon = node.daemon();
    for (mark, operation, master) in
        [("1", "instance-start", "n2"), ("2", "network-connect", "n2"), ("3", "instance-start", "n1")]
    {
        let output = bounded(node.command(mark).env("GANETI_HOOKS_PATH", operation).env("GANETI_MASTER", master));
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    }
    assert_eq!(daemon.marks(), ["2", "3"]);
}

/// A daemon that hangs: it listens, as far as the kernel is concerned.
fn stopped(socket: &Path, backlog: i32) -> rustix::fd::OwnedFd {
    let _ = fs::remove_file(socket);
    let listener = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).expect("a socket");
    rustix::net::bind(&listener, &SocketAddrUnix::new(socket).expect("a short path")).expect("it is free");
    rustix::net::listen(&listener, backlog).expect("it is bound");
    listener
}

/// Whatever the daemon does: the operation goes on, nothing is said, and the report comes later, in its place.
#[test]
fn no_daemon_stalls_or_fails_an_operation() {
    let misbehaves: [(&str, Box<Manner>); 9] = [
        ("never answers", Box::new(|_, stream| drop(stream.read(&mut [0])))),
        (
            "answers a byte at a time",
            Box::new(|_, stream| {
                for byte in b"HTTP/1.1 202 Accepted\r\n".iter().cycle() {
                    if stream.write_all(&[*byte]).is_err() {
                        return;
                    }
                    thread::sleep(Duration::from_millis(20));
                }
            }),
        ),
        ("hangs up", Box::new(|_, _| ())),
        ("talks of something else", Box::new(|_, stream| drop(stream.write_all(b"220 mail ESMTP\r\n")))),
        ("answers too much", Box::new(|_, stream| while stream.write_all(&[b'A'; 65536]).is_ok() {})),
        ("has trouble", Box::new(|_, stream| answer(stream, 503, &json!({ "detail": "later" })))),
        ("knows no such path", Box::new(|_, stream| answer(stream, 404, &json!({})))),
        ("accepts in no known way", Box::new(|_, stream| answer(stream, 202, &json!(["yes"])))),
        ("accepts somebody else's", Box::new(|_, stream| answer(stream, 202, &json!({ "accepted": 7 })))),
    ];
    let node = Node::new("");
    node.run_quietly("nobody listens");
    let mut marks = vec!["nobody listens".to_owned()];
    {
        // Two connections fill a backlog of 0 and wait for ever.
        let listener = stopped(&node.socket(), 0);
        let _first = UnixStream::connect(node.socket()).expect("there is room");
        node.run_quietly("stopped, no room to connect");
        drop(listener);
        let _listener = stopped(&node.socket(), 128);
        node.run_quietly("stopped");
        marks.extend(["stopped, no room to connect", "stopped"].map(str::to_owned));
    }
    for (mark, manner) in misbehaves {
        let daemon = Daemon::start(node.socket(), manner);
        node.run_quietly(mark);
        marks.push(mark.to_owned());
        assert_eq!(node.spooled(), marks);
        assert!(!daemon.asked().is_empty() || mark == "answers too much", "{mark}");
    }
    let daemon = node.daemon();
    node.run_quietly("the next");
    marks.push("the next".into());
    assert_eq!(daemon.marks(), marks, "in order");
    assert_eq!(daemon.asked().len(), 1, "in one request");
    assert_eq!(node.spooled(), [""; 0]);
    let ids: BTreeSet<String> = daemon.reports().iter().map(|report| report["id"].to_string()).collect();
    assert_eq!(ids.len(), marks.len());
}

#[test]
fn a_report_whose_answer_was_lost_comes_again_with_its_id() {
    let node = Node::new("");
    let daemon = Daemon::start(node.socket(), |_, stream| drop(stream.read(&mut [0])));
    node.run_quietly("1");
    let first = daemon.reports();
    drop(daemon);
    let daemon = node.daemon();
    node.run_quietly("2");
    assert_eq!(daemon.marks(), ["1", "2"]);
    assert_eq!(daemon.reports()[0], first[0], "the same report, id and time included");
}

#[test]
fn what_the_daemon_refuses_is_told_and_put_aside() {
    let node = Node::new("");
    node.run_quietly("1");
    node.run_quietly("bad");
    let refuses = |asked: &Asked, stream: &mut UnixStream| {
        let (bad, good): (Vec<Value>, Vec<Value>) =
            asked.reports().into_iter().partition(|report| report["env"]["GANETI_MARK"] == "bad");
        let refused: Vec<Value> =
            bad.iter().map(|report| json!({ "id": report["id"], "problem": "too odd" })).collect();
        answer(stream, 202, &json!({ "accepted": good.len(), "refused": refused }));
    };
    let daemon = Daemon::start(node.socket(), refuses);
    let told = node.run("2");
    assert!(told.contains("too odd") && told.lines().count() == 1, "{told}");
    assert_eq!((daemon.marks().len(), node.spooled().len()), (3, 0));
    let told = node.run("bad");
    assert!(told.contains("refuses the report of this operation: too odd"), "{told}");
    assert_eq!(fs::read_dir(node.spool().join("refused")).expect("it was made").count(), 2);
}

#[test]
fn a_spool_that_cannot_be_written_is_told_and_harms_nobody() {
    let node = Node::new("");
    // Not even root can make a directory below a file.
    fs::write(node.path("file"), "").expect("a file");
    let config = fs::read_to_string(node.config()).expect("it was written");
    let spool = node.path("file").join("spool");
    fs::write(node.config(), config.replace(node.spool().to_str().expect("UTF-8"), spool.to_str().expect("UTF-8")))
        .expect("the configuration");
    let told = node.run("lost");
    assert!(told.contains("is lost") && told.contains("can't be counted"), "{told}");
    let daemon = node.daemon();
    node.run_quietly("sent");
    assert_eq!(daemon.marks(), ["sent"]);
}

/// What hangs in the kernel and not on the network: here files that are pipes to which nobody writes.
#[test]
fn nothing_that_hangs_outlasts_the_time() {
    let node = Node::new("");
    let daemon = node.daemon();
    let config = fs::read_to_string(node.config()).expect("it was written");
    let pipe = |path: PathBuf| rustix::fs::mkfifoat(rustix::fs::CWD, path, 0o600.into()).expect("a pipe");
    pipe(node.path("token"));
    fs::write(node.config(), format!("{config}token_file = {:?}\n", node.path("token"))).expect("the configuration");
    let told = node.run("1");
    assert!(told.contains("the time is over") && told.contains("is lost") && told.lines().count() == 1, "{told}");
    // It is counted, and told with the next.
    fs::write(node.config(), config).expect("the configuration");
    node.run_quietly("2");
    assert_eq!((daemon.marks(), daemon.asked()[0].headers["hookbus-lost"].as_str()), (vec!["2".to_owned()], "1"));
    // Before the configuration is read, nobody knows where.
    fs::remove_file(node.config()).expect("it was written");
    pipe(node.config());
    let told = node.run("3");
    assert!(told.contains("the time is over") && told.contains("not counted"), "{told}");
    assert_eq!(daemon.asked().len(), 1);
}

#[test]
fn a_broken_configuration_is_told_and_the_event_goes_out() {
    let node = Node::new("repotr = \"always\"\n");
    let daemon = node.daemon();
    let told = node.run("1");
    assert!(told.contains("unknown key `repotr`") && told.lines().count() == 1, "{told}");
    assert_eq!(daemon.marks(), ["1"]);
}

/// Killed while they write and while they forward: what ended with 0 arrives, whatever is left of the others.
#[test]
fn what_was_accepted_outlives_every_kill() {
    let node = Node::new("");
    let mut accepted = BTreeSet::new();
    let mut killed = 0;
    let mut run = |mark: String, patience: Duration| {
        let mut child = node.command(&mark).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the hook");
        thread::sleep(patience);
        let _ = child.kill();
        if child.wait().expect("our own child").success() {
            accepted.insert(mark);
        } else {
            killed += 1;
        }
    };
    for i in 0..80 {
        run(format!("writing {i}"), Duration::from_micros(fastrand::u64(0..6000)));
    }
    let daemon = Daemon::start(node.socket(), |asked, stream| {
        // Some answers come too late for who was killed.
        thread::sleep(Duration::from_micros(fastrand::u64(0..4000)));
        well(asked, stream);
    });
    for i in 0..80 {
        run(format!("forwarding {i}"), Duration::from_micros(fastrand::u64(0..12000)));
    }
    node.run_quietly("last");
    assert_eq!(node.spooled(), [""; 0]);
    let arrived: BTreeSet<String> = daemon.marks().into_iter().collect();
    let missing: Vec<_> = accepted.difference(&arrived).collect();
    assert!(missing.is_empty(), "{missing:?}");
    assert!(killed > 0 && !accepted.is_empty(), "{killed} were killed, {} were not", accepted.len());
    // What came twice has one id.
    let mut ids = BTreeMap::new();
    for report in daemon.reports() {
        let id = ids.entry(report["env"]["GANETI_MARK"].to_string()).or_insert_with(|| report["id"].clone());
        assert_eq!(*id, report["id"]);
    }
}

#[test]
fn a_thousand_hooks_at_once_all_arrive() {
    const HOOKS: usize = 1000;
    let node = Node::new("");
    let daemon = node.daemon();
    let output = File::create(node.path("output")).expect("a file");
    let start = |i: usize| {
        let mut command = node.command(&i.to_string());
        command.stdout(output.try_clone().expect("a descriptor")).stderr(output.try_clone().expect("a descriptor"));
        command.spawn().expect("the hook can be started")
    };
    let hooks: Vec<Child> = (0..HOOKS).map(start).collect();
    for mut hook in hooks {
        ended(&mut hook);
        assert!(hook.wait().expect("our own child").success());
    }
    // What didn't get through in its time is in the spool.
    let deadline = Deadline::usual();
    while !node.spooled().is_empty() {
        assert!(!deadline.passed(), "{} are in the spool", node.spooled().len());
        node.run_quietly("-1");
    }
    let arrived: BTreeSet<String> = daemon.marks().into_iter().collect();
    let missing: Vec<usize> = (0..HOOKS).filter(|i| !arrived.contains(&i.to_string())).collect();
    // On a machine that is too busy for so many, a run may be over before it could do anything, and says so.
    let told = fs::read_to_string(node.path("output")).expect("the file");
    assert!(missing.len() <= told.lines().count(), "{missing:?}: {told}");
    assert!(missing.len() < HOOKS / 10, "{missing:?}: {told}");
}

#[test]
fn a_gate_passes_the_verdict_on() {
    let node = Node::new("gate_ops = [\"instance-start\"]\ngate_timeout_ms = 300\ngate_default = \"deny\"\n");
    let run = |mark: &str| {
        let output = bounded(&mut node.command(mark));
        assert!(output.stderr.is_empty(), "{output:?}");
        (output.status.code(), String::from_utf8(output.stdout).expect("UTF-8"))
    };
    let verdict = |verdict: Value| {
        let daemon = Daemon::start(node.socket(), move |_, stream| answer(stream, 200, &verdict));
        let ended = run("asked");
        let asked = daemon.asked();
        assert_eq!(asked.len(), 1, "the request is the report");
        assert_eq!(asked[0].path, "/v1/ganeti/gate");
        assert_eq!(
            (asked[0].headers["content-type"].as_str(), asked[0].headers["hookbus-timeout-ms"].as_str()),
            ("application/json", "300")
        );
        assert_eq!(asked[0].reports()[0]["env"]["GANETI_MARK"], "asked");
        assert_eq!(node.spooled(), [""; 0]);
        ended
    };
    assert_eq!(verdict(json!({ "verdict": "allow", "reason": "" })), (Some(0), String::new()));
    assert_eq!(
        verdict(json!({ "verdict": "deny", "reason": "not on Fridays\n" })),
        (Some(1), "not on Fridays\n".into())
    );
    let (code, said) = verdict(json!({ "verdict": "none", "reason": "no check is there" }));
    assert_eq!((code, said.as_str()), (Some(1), "no check gave a verdict (no check is there); gate_default is deny\n"));

    // Nobody is there, nobody answers: the default decides, and the report waits.
    let (code, said) = run("absent");
    assert!(code == Some(1) && said.contains("no check could be asked: nobody answers at"), "{said}");
    let silent = Daemon::start(node.socket(), |_, stream| drop(stream.read(&mut [0])));
    assert_eq!(run("silent"), (Some(1), "no check answered within 300 ms; gate_default is deny\n".into()));
    drop(silent);
    let odd = Daemon::start(node.socket(), |_, stream| answer(stream, 200, &json!({ "verdict": "maybe" })));
    assert_eq!(run("odd").0, Some(1));
    drop(odd);
    assert_eq!(node.spooled(), ["absent", "silent", "odd"]);
    let config = fs::read_to_string(node.config()).expect("it was written");
    fs::write(node.config(), config.replace("\"deny\"", "\"allow\"")).expect("the configuration");
    assert_eq!(run("allowed"), (Some(0), String::new()));

    // What is no gate is reported as ever.
    let daemon = node.daemon();
    for (name, value) in [("GANETI_HOOKS_PHASE", "post"), ("GANETI_HOOKS_PATH", "instance-stop")] {
        let output = bounded(node.command(value).env(name, value));
        assert!(output.status.success(), "{output:?}");
    }
    assert!(daemon.asked().iter().all(|asked| asked.path == "/v1/ganeti/reports"));
    assert_eq!(daemon.marks(), ["absent", "silent", "odd", "allowed", "post", "instance-stop"]);
}

#[test]
fn a_daemon_elsewhere_is_told_over_tls_with_a_token() {
    if !Tool::Python.wanted() {
        return;
    }
    let authority = Authority::new();
    let certificate = authority.server();
    let mut server = Tool::Python.command();
    server.arg("-I").arg(tools::script("https_daemon.py")).args([&certificate.cert, &certificate.key]);
    let mut server = server.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("python3");
    let mut lines =
        BufReader::new(server.stdout.take().expect("it is a pipe")).lines().map(|line| line.expect("UTF-8"));
    let port = lines.next().expect("its port");
    let node = Node::new("");
    let spool = node.spool();
    fs::write(node.path("token"), "s3cret\n").expect("a file");
    let configure = |host: &str, ca: &Path| {
        let text = format!(
            "url = \"https://{host}:{port}/bus\"\nca_file = \"{}\"\ntoken_file = \"{}\"\nspool = \"{}\"\nnode = \"n1\"\n",
            ca.display(),
            node.path("token").display(),
            spool.display(),
        );
        fs::write(node.config(), text).expect("the configuration");
    };
    // One whom nobody vouches for is not told.
    configure("localhost", &Authority::new().ca());
    node.run_quietly("1");
    assert_eq!(node.spooled(), ["1"]);
    configure("localhost", &authority.ca());
    node.run_quietly("2");
    configure("127.0.0.1", &authority.ca());
    node.run_quietly("3");
    let mut marks = Vec::new();
    while marks.len() < 3 {
        let asked: Value = serde_json::from_str(&lines.next().expect("a request")).expect("JSON");
        assert_eq!(
            (asked["path"].as_str(), asked["headers"]["authorization"].as_str()),
            (Some("/bus/v1/ganeti/reports"), Some("Bearer s3cret"))
        );
        for line in asked["body"].as_str().expect("a text").lines() {
            let report: Value = serde_json::from_str(line).expect("a report");
            marks.push(report["env"]["GANETI_MARK"].clone());
        }
    }
    assert_eq!(marks, ["1", "2", "3"]);
    server.kill().expect("our own child");
    let _ = server.wait();
}

/// `hookbus ganeti` with directories of its own.
struct Site {
    dir: TempDir,
}

impl Site {
    fn new() -> Self {
        let site = Site { dir: TempDir::new().expect("a directory") };
        fs::create_dir(site.path("data")).expect("a directory");
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn ganeti(&self, command: &str, more: &[&str]) -> (i32, String, String) {
        let mut ganeti = Command::new(hookbus());
        ganeti.args(["ganeti", command, "--hooks-dir"]).arg(self.path("hooks"));
        if command != "uninstall" {
            ganeti.arg("--hook-config").arg(self.path("etc/hook.toml")).arg("--data-dir").arg(self.path("data"));
        }
        let output = ganeti.args(more).stdin(Stdio::null()).output().expect("hookbus can be started");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        (output.status.code().expect("it ended"), text(output.stdout), text(output.stderr))
    }

    fn config(&self) -> String {
        fs::read_to_string(self.path("etc/hook.toml")).unwrap_or_default()
    }

    /// All that is in directories of hooks, as `directory/name`.
    fn installed(&self) -> BTreeSet<String> {
        let list = |path: &Path| -> Vec<PathBuf> {
            fs::read_dir(path)
                .map_or_else(|_| Vec::new(), |all| all.map(|entry| entry.expect("an entry").path()).collect())
        };
        let short = |path: PathBuf| path.strip_prefix(self.path("hooks")).expect("it is in it").display().to_string();
        list(&self.path("hooks")).iter().flat_map(|directory| list(directory)).map(short).collect()
    }
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_str().expect("UTF-8").to_owned()
}

#[test]
fn install_puts_a_link_everywhere_and_uninstall_takes_only_that_away() {
    let site = Site::new();
    let host = host_name();
    fs::write(site.path("data/ssconf_node_list"), format!("a.example.com\n{host}.cluster.example.com\n"))
        .expect("a file");
    fs::create_dir_all(site.path("hooks/instance-start-pre.d")).expect("a directory");
    fs::write(site.path("hooks/instance-start-pre.d/10-check"), "#!/bin/sh\n").expect("a file");

    let (code, told, warned) = site.ganeti("install", &[]);
    assert_eq!((code, warned.as_str()), (0, ""), "{told}");
    assert!(told.contains("76 links 50-hookbus were made"), "{told}");
    assert_eq!(site.config(), format!("node = \"{host}.cluster.example.com\"\n"));
    let installed = site.installed();
    assert_eq!(installed.len(), 77);
    for run in recorded() {
        let (path, phase) = (run["hooks_path"].as_str().expect("a path"), run["phase"].as_str().expect("a phase"));
        if path != "config-update" {
            assert!(installed.contains(&format!("{path}-{phase}.d/50-hookbus")), "{path} {phase}");
        }
    }
    assert!(installed.iter().all(|name| !name.starts_with("config-update") && !name.starts_with("watcher")));
    let target = fs::read_link(site.path("hooks/instance-start-pre.d/50-hookbus")).expect("a link");
    assert_eq!(target, program());

    // Once more changes nothing; a link to another one of ours is put right.
    let stale = site.path("hooks/node-add-post.d/50-hookbus");
    fs::remove_file(&stale).expect("it was made");
    symlink("/opt/old/hookbus-ganeti-hook", &stale).expect("a link");
    let (code, told, _) = site.ganeti("install", &[]);
    assert!(code == 0 && told.contains("1 links 50-hookbus were made, 75 were there already"), "{told}");
    assert_eq!(fs::read_link(&stale).expect("a link"), program());

    // What is not ours stays, whatever it is called.
    fs::remove_file(&stale).expect("it was made");
    symlink("/opt/theirs", &stale).expect("a link");
    symlink("/opt/old/hookbus-ganeti-hook", site.path("hooks/node-add-post.d/60-mine")).expect("a link");
    let (code, _, warned) = site.ganeti("install", &[]);
    assert!(
        code == 1 && warned.contains("node-add-post.d/50-hookbus: this is no link to hookbus-ganeti-hook"),
        "{warned}"
    );
    let (code, told, _) = site.ganeti("uninstall", &[]);
    assert!(code == 0 && told.contains("76 links to hookbus-ganeti-hook were removed"), "{told}");
    assert_eq!(
        site.installed(),
        ["instance-start-pre.d/10-check", "node-add-post.d/50-hookbus"].map(str::to_owned).into()
    );
    assert!(site.ganeti("uninstall", &[]).1.contains("0 links"));
}

#[test]
fn install_takes_some_operations_and_keeps_the_configuration() {
    let site = Site::new();
    fs::create_dir(site.path("etc")).expect("a directory");
    let config = "# ours\nspool = \"/var/spool/x\" # large disk\nnode = 'n7'   # by hand\n";
    fs::write(site.path("etc/hook.toml"), config).expect("a file");
    let (code, told, _) = site.ganeti("install", &["--ops", "disk-grow,instance-migrate", "--phases", "post"]);
    assert!(code == 0 && told.contains("node is \"n7\" already"), "{told}");
    assert_eq!(site.config(), config);
    assert_eq!(
        site.installed(),
        ["disk-grow-post.d/50-hookbus", "instance-migrate-post.d/50-hookbus"].map(str::to_owned).into()
    );

    let config = "# ours\nspool = \"/var/spool/x\" # large disk";
    fs::write(site.path("etc/hook.toml"), config).expect("a file");
    // Without Ganeti there is only the machine's own name.
    let (code, _, warned) = site.ganeti("install", &[]);
    assert!(code == 0 && warned.contains("warning: there is no") && warned.contains("ssconf_node_list"), "{warned}");
    assert_eq!(site.config(), format!("{config}\nnode = \"{}\"\n", host_name()));

    fs::write(site.path("etc/hook.toml"), "spool = \n").expect("a file");
    let (code, _, warned) = site.ganeti("install", &[]);
    assert!(code == 1 && warned.contains("since it is broken"), "{warned}");
    assert_eq!(site.config(), "spool = \n");
    for (args, expected) in [
        (&["--ops", "instance-strat"][..], "did you mean `instance-start`?"),
        (&["--ops", "config-update"], "no such operation"),
        (&["--phases", "during"], "possible values: pre, post"),
    ] {
        let (code, _, told) = site.ganeti("install", args);
        assert!(code == 2 && told.contains(expected), "{told}");
    }
}

#[test]
fn status_tells_what_is_where_and_fails_when_ganeti_does_not_know_the_node() {
    let site = Site::new();
    let node = Node::new("");
    fs::create_dir(site.path("etc")).expect("a directory");
    fs::copy(node.config(), site.path("etc/hook.toml")).expect("a copy");
    fs::write(site.path("data/ssconf_node_list"), "n1\nn2\n").expect("a file");
    site.ganeti("install", &["--ops", "instance-start"]);
    fs::remove_file(site.path("hooks/instance-start-pre.d/50-hookbus")).expect("it was made");
    node.run_quietly("spooled");

    let (code, text, warned) = site.ganeti("status", &[]);
    assert_eq!((code, warned.as_str()), (0, ""), "{text}");
    for expected in [
        "node    n1 (Ganeti knows it)",
        "daemon  no answer: nobody answers at",
        "1 reports wait",
        "75 places have no hook",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    let line = text.lines().find(|line| line.starts_with("instance-start ")).expect("a line");
    assert_eq!(line.split_whitespace().collect::<Vec<_>>(), ["instance-start", "missing", "installed"]);

    let daemon = Daemon::start(node.socket(), |_, stream| answer(stream, 200, &json!({})));
    let (code, text, _) = site.ganeti("status", &["-o", "json"]);
    let status: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((code, &status["daemon"]["answers"]), (0, &json!(true)), "{text}");
    assert_eq!(status["operations"]["instance-start"]["post"]["state"], "installed");
    assert_eq!(status["operations"]["disk-grow"]["pre"]["state"], "no directory");
    assert_eq!((&status["spool"]["reports"], &status["node"]["known"]), (&json!(1), &json!(true)));
    drop(daemon);

    fs::write(site.path("data/ssconf_node_list"), "n1.example.com\nn2.example.com\n").expect("a file");
    let (code, text, warned) = site.ganeti("status", &[]);
    assert!(code == 1 && text.contains("Ganeti does not know it"), "{text}");
    assert!(warned.contains("node is \"n1\", which is not in"), "{warned}");
}
