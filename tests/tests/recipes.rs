//! The recipes in `docs/recipes`, run out of these pages: only hosts and paths are replaced. A real daemon gets reports of Ganeti's operations, with environments that were
//! recorded, and does what the page says; servers of HTTP, a monitor of QEMU and recorders for tc, iptables and taskset see what comes of it.
//!
//! Starting, stopping, removing and growing were not recorded: their environments are that of a change of an instance, with what Ganeti's source
//! (`lib/cmdlib`) adds for the operation.

use std::cell::Cell;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use hookbus_tests::servers::http::{HttpServer, Request};
use hookbus_tests::tools::Tool;
use hookbus_tests::{Followed, Follower, Home, fixtures, tools, wait_until};
use serde_json::{Map, Value, json};

/// A page of recipes.
struct Page(String);

impl Page {
    fn open(name: &str) -> Self {
        let path = tools::workspace().join("docs/recipes").join(name);
        Page(fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    }

    /// The page of a recipe whose files lie below the directory of a home.
    fn at(name: &str, home: &Home) -> Self {
        Page(Page::open(name).0.replace("/etc/hookbus/", &format!("{}/", home.path().display())))
    }

    /// With another host or path, which must be there.
    fn with(self, from: &str, to: &str) -> Self {
        assert!(self.0.contains(from), "{from} is not in it: {}", self.0);
        Page(self.0.replace(from, to))
    }

    /// All blocks of code, each with its language.
    fn blocks(&self) -> Vec<(&str, &str)> {
        self.0.split("```").skip(1).step_by(2).map(|block| block.split_once('\n').expect("a language")).collect()
    }

    /// The only block that begins so.
    fn block(&self, beginning: &str) -> &str {
        let blocks = self.blocks();
        let found: Vec<&str> =
            blocks.iter().map(|(_, code)| *code).filter(|code| code.starts_with(beginning)).collect();
        let [one] = found[..] else { panic!("{} blocks begin with {beginning}", found.len()) };
        one
    }

    /// Puts its script and its hook where it says that they lie.
    fn install(&self, home: &Home, name: &str) {
        self.script(home, &format!("scripts/{name}"));
        assert!(self.0.contains(&format!("{}/hooks.d/{name}.tmpl", home.path().display())), "{name}");
        home.hook(name, self.block("NAME "));
    }

    /// Puts its script there.
    fn script(&self, home: &Home, place: &str) -> PathBuf {
        let path = home.path().join(place);
        assert!(self.0.contains(path.to_str().expect("a plain path")), "the page names {place}");
        fs::create_dir_all(path.parent().expect("it has one")).expect("a directory");
        home.script(place, self.block("#!"))
    }
}

/// The environment of a hook.
#[derive(Clone)]
struct Environment(Map<String, Value>);

impl Environment {
    /// The first recorded one of an operation, in phase post, that has such a variable.
    fn recorded(operation: &str, has: impl Fn(&str) -> bool) -> Self {
        let of = |run: &Value| run["hooks_path"] == operation && run["phase"] == "post";
        let fits = |run: &Value| {
            run["env"].as_object().expect("variables").iter().any(|(name, value)| {
                has(&format!("{}={}", name.trim_start_matches("GANETI_"), value.as_str().unwrap_or_default()))
            })
        };
        let run = fixtures::ganeti_runs().into_iter().find(|run| of(run) && fits(run)).expect("it was recorded");
        Environment(run["env"].as_object().expect("variables").clone())
    }

    /// One of an operation that was not recorded, of an instance of KVM with a disk and a NIC.
    fn of(operation: &str) -> Self {
        let mut environment =
            Environment::recorded("instance-modify", |variable| variable.starts_with("INSTANCE_DISK0_UUID="));
        environment.0.insert("GANETI_HOOKS_PATH".into(), operation.into());
        // Where it runs is not where the master is.
        let environment = environment.set("GANETI_MASTER", "mock_master.example.com");
        environment.with("INSTANCE_HYPERVISOR", "kvm")
    }

    /// With this value before and after.
    fn with(mut self, name: &str, value: &str) -> Self {
        self.0.insert(format!("GANETI_{name}"), value.into());
        self.0.insert(format!("GANETI_POST_{name}"), value.into());
        self
    }

    /// With this variable as it is.
    fn set(mut self, name: &str, value: impl Into<String>) -> Self {
        self.0.insert(name.into(), Value::String(value.into()));
        self
    }

    /// With commands of a home's own, before those of the system.
    fn path(self, home: &Home, directory: &str) -> Self {
        let own = home.path().join(directory);
        self.set("PATH", format!("{}:/sbin:/bin:/usr/sbin:/usr/bin", own.display()))
    }

    fn get(&self, name: &str) -> &str {
        self.0[&format!("GANETI_{name}")].as_str().expect("a text")
    }

    /// The script as Ganeti runs it.
    fn run(&self, script: &Path) -> std::process::Output {
        let variables = self.0.iter().map(|(name, value)| (name, value.as_str().expect("a text")));
        let mut command = Command::new(script);
        command.env_clear().envs(variables).current_dir("/").stdin(Stdio::null());
        command.output().expect("the script can be started")
    }
}

/// Reports operations, each of which is a new one.
struct Reporter<'h> {
    home: &'h Home,
    next: Cell<u32>,
}

impl<'h> Reporter<'h> {
    fn new(home: &'h Home) -> Self {
        Reporter { home, next: Cell::new(0) }
    }

    fn report(&self, environment: &Environment) {
        let number = self.next.get() + 1;
        self.next.set(number);
        let (id, node) = (format!("{number:032x}"), environment.get("MASTER"));
        let time = format!("2026-11-{:02}T{:02}:00:00.000Z", 1 + number / 24, number % 24);
        let report = json!({"id": id, "time": time, "node": node, "env": environment.0}).to_string();
        // The second time it is the answer that got lost: no second operation.
        for _ in 0..2 {
            let answer = self.home.request("POST", "/v1/ganeti/reports", &[], report.as_bytes()).expect("an answer");
            assert_eq!((answer.status, &answer.json()["accepted"]), (202, &json!(1)), "{}", answer.text());
        }
    }
}

/// What the next runs of hooks came to, by name and in the order in which they ended: the data of their results.
fn results(follower: &mut Follower, count: usize) -> Vec<Value> {
    let mut all: Vec<Value> = (0..count)
        .map(|_| {
            let Followed { data, .. } = follower.event();
            data["data"].clone()
        })
        .collect();
    all.sort_by_key(|result| result["hook"].to_string());
    all
}

/// The next run of a hook went well; what it wrote.
fn wrote(follower: &mut Follower) -> String {
    let result = &results(follower, 1)[0];
    assert_eq!((&result["result"], &result["stderr"]), (&json!("success"), &json!("")), "{result}");
    result["stdout"].as_str().expect("a text").to_owned()
}

/// The next run of a hook failed; what it complained about.
fn complained(follower: &mut Follower) -> String {
    let result = &results(follower, 1)[0];
    assert_eq!(result["result"], "failure", "{result}");
    result["stderr"].as_str().expect("a text").to_owned()
}

fn checked(home: &Home) {
    let check = home.run(&["config", "check"]);
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
}

fn put(home: &Home, name: &str, text: &str) {
    fs::write(home.path().join(name), text).expect("our own file");
}

/// All of the shell in all pages is at least shell.
#[test]
fn every_block_of_shell_can_be_read() {
    let pages = fs::read_dir(tools::workspace().join("docs/recipes")).expect("there are recipes");
    let (mut scripts, mut commands) = (0, 0);
    for page in pages {
        let page = page.expect("an entry").file_name();
        let page = Page::open(page.to_str().expect("a plain name"));
        for (_, code) in page.blocks().into_iter().filter(|(language, _)| *language == "sh") {
            // What people type, they type into bash.
            let (shell, counter) =
                if code.starts_with("#!/bin/sh\n") { ("sh", &mut scripts) } else { ("bash", &mut commands) };
            let output = Command::new(shell).args(["-n", "-c", code]).output().expect("a shell");
            assert!(output.status.success() && output.stderr.is_empty(), "{output:?}: {code}");
            *counter += 1;
        }
    }
    assert!(scripts >= 5 && commands >= 5, "{scripts} scripts, {commands} commands");
}

const SLACK_TEXT: &str = "Instance *mock_inst_1.example.com* has been migrated live from mock_node_1.example.com to \
                          mock_node_2.example.com (cluster.example.com)";
const GRAFANA_TEXT: &str = "mock_inst_1.example.com: mock_node_1.example.com to mock_node_2.example.com";

fn is_slacks(message: &Request) {
    assert_eq!((message.method.as_str(), message.path.as_str()), ("POST", "/services/T0/B0/x"));
    assert_eq!(message.header("content-type"), Some("application/json"));
    assert_eq!(message.json(), json!({ "text": SLACK_TEXT }));
}

/// Gives the time that it has, where it has one.
fn is_grafanas(annotation: &Request) -> Option<u64> {
    assert_eq!((annotation.method.as_str(), annotation.path.as_str()), ("POST", "/api/annotations"));
    assert_eq!(annotation.header("authorization"), Some("Bearer glsa_x"));
    assert_eq!(annotation.header("content-type"), Some("application/json"));
    let mut body = annotation.json();
    let time = body.as_object_mut().expect("an object").remove("time");
    let tags = ["ganeti", "migration", "cluster.example.com", "mock_inst_1.example.com"];
    assert_eq!(body, json!({ "text": GRAFANA_TEXT, "tags": tags }));
    time.map(|time| time.as_u64().expect("milliseconds"))
}

/// Both pages, for these servers, with their secrets.
fn slack_and_grafana(home: &Home, slack: &HttpServer, grafana: &HttpServer) -> [Page; 2] {
    put(home, "slack.url", &format!("{}/services/T0/B0/x\n", slack.url()));
    put(home, "grafana.token", "glsa_x\n");
    [Page::at("slack.md", home), Page::at("grafana.md", home).with("https://grafana.example.com", &grafana.url())]
}

#[test]
fn a_live_migration_is_told_to_slack_and_grafana() {
    let (home, mut slack, mut grafana) = (Home::default(), HttpServer::start(), HttpServer::start());
    let pages = slack_and_grafana(&home, &slack, &grafana);
    home.configure(&pages.each_ref().map(|page| page.block("[[bridge]]").to_owned()).join("\n"));
    checked(&home);
    let serve = home.serve();
    let ganeti = Reporter::new(&home);
    let stopped = Environment::recorded("instance-migrate", |_| true);
    assert_eq!(stopped.get("MIGRATE_LIVE"), "False");
    let live = stopped.clone().with("MIGRATE_LIVE", "True");
    ganeti.report(&live.clone().set("GANETI_HOOKS_PHASE", "pre"));
    ganeti.report(&Environment::recorded("instance-failover", |_| true).with("MIGRATE_LIVE", "True"));
    ganeti.report(&live);
    ganeti.report(&stopped);
    for bridge in ["slack", "grafana"] {
        home.until_bridge(bridge, "to have done all", |bridge| bridge["confirmed"] == 1 && bridge["filtered"] == 1);
    }
    serve.stop();
    let [message] = slack.requests() else { panic!("{:?}", slack.requests()) };
    is_slacks(message);
    let [annotation] = grafana.requests() else { panic!("{:?}", grafana.requests()) };
    assert_eq!(is_grafanas(annotation), None);
}

/// Scripts as they lie in Ganeti's hook directories: Ganeti's own runner runs them, and hookbus runs the same files, by a template and imported.
#[test]
fn the_scripts_of_a_hook_directory_run_unchanged() {
    let (home, mut slack, mut grafana) =
        (Home::new("[ganeti]\nnode = \"mock_node_1.example.com\"\n"), HttpServer::start(), HttpServer::start());
    let hooks = home.path().join("ganeti");
    let pages = slack_and_grafana(&home, &slack, &grafana)
        .map(|page| page.with("/etc/ganeti/hooks", hooks.to_str().expect("a plain path")));
    for (page, name) in pages.iter().zip(["50-slack", "50-grafana"]) {
        let _ = page.script(&home, &format!("ganeti/instance-migrate-post.d/{name}"));
    }
    for node in ["mock_node_1.example.com", "mock_node_2.example.com"] {
        fs::create_dir(home.path().join(node)).expect("a directory");
        let text = format!("#!/bin/sh\n[ \"$*\" = -f ] && echo {node}\n");
        let _ = home.script(&format!("{node}/hostname"), &text);
    }
    let stopped = Environment::recorded("instance-migrate", |_| true).path(&home, "mock_node_1.example.com");
    let live = stopped.clone().with("MIGRATE_LIVE", "True");
    let elsewhere = live.clone().path(&home, "mock_node_2.example.com");
    assert_eq!(live.get("MASTER"), "mock_node_1.example.com");

    let mut told = 0;
    if Tool::Ganeti.wanted() {
        let run = |env: &Environment| json!({"hooks_path": "instance-migrate", "phase": "post", "env": env.0});
        let input: String = [&elsewhere, &stopped, &live].iter().map(|env| format!("{}\n", run(env))).collect();
        put(&home, "runs", &input);
        let mut runner = Command::new("/usr/bin/python3");
        runner.arg("-I").arg(tools::script("ganeti_runner.py")).arg(tools::ganeti()).arg(&hooks);
        let output = runner.stdin(fs::File::open(home.path().join("runs")).expect("a file")).output().expect("python3");
        let good = json!([
            ["instance-migrate-post.d/50-grafana", "success", ""],
            ["instance-migrate-post.d/50-slack", "success", ""]
        ]);
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(
            shown,
            format!("{good}\n").repeat(3).replace(',', ", "),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        told += 1;
    }
    let check = |slack: &mut HttpServer, grafana: &mut HttpServer, told: (usize, usize)| {
        assert_eq!((slack.requests().len(), grafana.requests().len()), told);
        slack.requests().iter().for_each(is_slacks);
        assert!(grafana.requests().iter().all(|annotation| is_grafanas(annotation) > Some(1_700_000_000_000)));
    };
    check(&mut slack, &mut grafana, (told, told));

    // A file names the script where it lies.
    home.hook("slack", pages[0].block("NAME "));
    let serve = home.serve();
    let mut follower = home.follow("prefix=HOOKBUS+HOOK+");
    let ganeti = Reporter::new(&home);
    for environment in [&stopped, &live] {
        ganeti.report(environment);
        assert_eq!(wrote(&mut follower), "");
    }
    check(&mut slack, &mut grafana, (told + 1, told));

    // Both are imported.
    fs::remove_file(home.hooks().join("slack.tmpl")).expect("our own file");
    serve.reload();
    let imported = home.run(&["ganeti", "import", hooks.to_str().expect("a plain path"), "--take-over"]);
    assert!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));
    for environment in [&elsewhere, &stopped, &live] {
        ganeti.report(environment);
        for result in results(&mut follower, 2) {
            assert_eq!((&result["result"], &result["stderr"]), (&json!("success"), &json!("")), "{result}");
        }
    }
    check(&mut slack, &mut grafana, (told + 2, told + 1));
    serve.stop();
}

#[test]
fn an_instance_has_its_name_in_powerdns() {
    let (home, mut dns) = (Home::default(), HttpServer::start());
    dns.rules(&json!([{"status": 204}]));
    put(&home, "powerdns.key", "k3y\n");
    let page = Page::at("powerdns.md", &home).with("https://dns.example.com:8081", &dns.url());
    home.configure(page.block("[[bridge]]"));
    checked(&home);
    let serve = home.serve();
    let ganeti = Reporter::new(&home);
    let added = Environment::recorded("instance-add", |variable| variable == "INSTANCE_NIC0_IP=203.0.113.253");
    let (name, no_address) = ("diskless.example.com", added.clone().with("INSTANCE_NIC0_IP", ""));
    assert_eq!(added.get("INSTANCE_NAME"), name);
    let elsewhere = added.clone().with("INSTANCE_NAME", "x.example.net").with("OP_TARGET", "x.example.net");
    let removed = added.clone().set("GANETI_HOOKS_PATH", "instance-remove");
    for environment in
        [&no_address, &elsewhere, &added, &added.clone().with("INSTANCE_NIC0_IP", "2001:db8::7"), &removed]
    {
        ganeti.report(environment);
    }
    ganeti.report(&no_address.set("GANETI_HOOKS_PATH", "instance-remove"));
    home.until_bridge("powerdns", "to have done all", |bridge| bridge["confirmed"] == 4 && bridge["filtered"] == 2);
    serve.stop();
    let sent = dns.requests();
    for request in sent {
        let place = "/api/v1/servers/localhost/zones/example.com.";
        assert_eq!((request.method.as_str(), request.path.as_str()), ("PATCH", place));
        assert_eq!(
            (request.header("x-api-key"), request.header("content-type")),
            (Some("k3y"), Some("application/json"))
        );
    }
    let record = |kind: &str, address: &str| {
        let records = json!([{"content": address, "disabled": false}]);
        let name = format!("{name}.");
        json!({"rrsets": [{"name": name, "type": kind, "ttl": 300, "changetype": "REPLACE", "records": records}]})
    };
    let gone = ["A", "AAAA"].map(|kind| json!({"name": format!("{name}."), "type": kind, "changetype": "DELETE"}));
    let gone = json!({"rrsets": gone});
    let bodies: Vec<Value> = sent.iter().map(Request::json).collect();
    assert_eq!(bodies, [record("A", "203.0.113.253"), record("AAAA", "2001:db8::7"), gone.clone(), gone]);
}

/// What a search in NetBox finds: these numbers in our cluster, and an entry of the same name in another one.
fn found(ids: &[u64]) -> String {
    let name = "diskless.example.com";
    let entry = |id: u64, cluster: &str| json!({"id": id, "name": name, "cluster": {"id": 1, "name": cluster}});
    let others = [entry(3, "other.example.com")];
    let all: Vec<Value> = others.into_iter().chain(ids.iter().map(|id| entry(*id, "cluster.example.com"))).collect();
    json!({"count": all.len(), "next": null, "results": all}).to_string()
}

#[test]
fn an_instance_has_its_entry_in_netbox() {
    let (home, mut netbox) = (Home::new("[ganeti]\nnode = \"mock_node_1.example.com\"\n"), HttpServer::start());
    put(&home, "netbox.token", "Token t0k\n");
    let page = Page::at("netbox.md", &home).with("https://netbox.example.com", &netbox.url());
    page.install(&home, "netbox");
    let added = Environment::recorded("instance-add", |variable| variable == "INSTANCE_NAME=diskless.example.com");
    let removed = added.clone().set("GANETI_HOOKS_PATH", "instance-remove");
    let script = home.path().join("scripts/netbox");

    // Who can't be asked has said neither that there is an entry nor that there is none.
    for status in [403, 503] {
        netbox.rules(&json!([{"status": status}]));
        for environment in [&added, &removed] {
            let output = environment.run(&script);
            assert!(!output.status.success() && !output.stderr.is_empty(), "{output:?}");
        }
    }
    assert!(netbox.requests().iter().all(|request| request.method == "GET"));
    let before = netbox.requests().len();
    assert_eq!(before, 4);

    let serve = home.serve();
    let mut follower = home.follow("prefix=HOOKBUS+HOOK+");
    let ganeti = Reporter::new(&home);
    netbox.rules(&json!([
        {"path": "?name=", "times": 1, "text": found(&[])},
        {"path": "?name=", "times": 2, "text": found(&[7])},
        {"path": "?name=", "text": found(&[])},
        {"path": "/7/", "status": 204},
    ]));
    for environment in [&added, &added.clone().with("INSTANCE_STATUS", "False"), &removed, &removed] {
        ganeti.report(environment);
    }
    for _ in 0..4 {
        assert_eq!(wrote(&mut follower), "");
    }
    serve.stop();
    let requests = &netbox.requests()[before..];
    let sent: Vec<(&str, &str)> =
        requests.iter().map(|request| (request.method.as_str(), request.path.as_str())).collect();
    let (all, seventh) = ("/api/virtualization/virtual-machines/", "/api/virtualization/virtual-machines/7/");
    let search = "/api/virtualization/virtual-machines/?name=diskless.example.com";
    assert_eq!(
        sent,
        [
            ("GET", search),
            ("POST", all),
            ("GET", search),
            ("PATCH", seventh),
            ("GET", search),
            ("DELETE", seventh),
            ("GET", search)
        ]
    );
    assert!(requests.iter().all(|request| request.header("authorization") == Some("Token t0k")));
    let entry = |status: &str| {
        let cluster = json!({"name": "cluster.example.com"});
        json!({"name": "diskless.example.com", "cluster": cluster, "status": status, "vcpus": 1, "memory": 128})
    };
    assert_eq!((requests[1].json(), requests[3].json()), (entry("active"), entry("offline")));
}

#[test]
fn an_instance_gets_its_entry_in_netbox_by_a_webhook() {
    let (home, mut netbox) = (Home::default(), HttpServer::start());
    put(&home, "netbox.token", "Token t0k\n");
    let page = Page::at("netbox.md", &home).with("https://netbox.example.com", &netbox.url());
    home.configure(page.block("[[bridge]]"));
    checked(&home);
    let told = "Virtual machine name must be unique per cluster.";
    netbox.rules(&json!([{"times": 1, "status": 201}, {"status": 400, "text": told}]));
    let serve = home.serve();
    let ganeti = Reporter::new(&home);
    let added = Environment::recorded("instance-add", |variable| variable == "INSTANCE_NAME=diskless.example.com");
    ganeti.report(&added);
    ganeti.report(&added);
    home.until_bridge("netbox", "to have done all", |bridge| bridge["confirmed"] == 1 && bridge["dead"] == 1);
    serve.stop();
    let [first, _] = netbox.requests() else { panic!("{:?}", netbox.requests()) };
    assert_eq!((first.method.as_str(), first.path.as_str()), ("POST", "/api/virtualization/virtual-machines/"));
    assert_eq!(first.header("authorization"), Some("Token t0k"));
    let cluster = json!({"name": "cluster.example.com"});
    let entry =
        json!({"name": "diskless.example.com", "cluster": cluster, "status": "active", "vcpus": 1, "memory": 128});
    assert_eq!(first.json(), entry);
}

/// The monitor of a QEMU 7.2 with one disk, as far as the recipe goes: one client at a time, and events between the answers.
struct Qemu {
    device: &'static str,
    file: &'static str,
    /// In bytes, each that it has had.
    sizes: Mutex<Vec<u64>>,
}

impl Qemu {
    fn start(path: &Path, device: &'static str, file: &'static str) -> Arc<Self> {
        let listener = UnixListener::bind(path).expect("a socket");
        // The daemon runs as another user where the tests run as root.
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).expect("our own");
        let qemu = Arc::new(Qemu { device, file, sizes: Mutex::new(vec![1024 << 20]) });
        let monitor = Arc::clone(&qemu);
        thread::spawn(move || listener.incoming().for_each(|client| monitor.serve(&client.expect("a client"))));
        qemu
    }

    /// Until the client goes.
    fn serve(&self, client: &UnixStream) {
        let mut answers = client;
        let mut say = |answer: &Value| drop(answers.write_all(format!("{answer}\r\n").as_bytes()));
        let version = json!({"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian 1:7.2"});
        say(&json!({"QMP": {"version": version, "capabilities": ["oob"]}}));
        let mut is_open = false;
        for line in BufReader::new(client).lines().map_while(Result::ok) {
            let command: Value = serde_json::from_str(&line).expect("JSON");
            let name = command["execute"].as_str().expect("a command");
            is_open |= name == "qmp_capabilities";
            assert!(is_open, "first of all capabilities are settled: {line}");
            let time = json!({"seconds": 1, "microseconds": 2});
            say(&json!({"timestamp": time, "event": "RTC_CHANGE", "data": {"offset": 0}}));
            say(&self.answer(name, &command["arguments"]));
        }
    }

    fn answer(&self, command: &str, arguments: &Value) -> Value {
        let Qemu { device, file, sizes } = self;
        let mut sizes = sizes.lock().expect("nobody panics with it");
        match command {
            "qmp_capabilities" => json!({"return": {}}),
            "query-block" => {
                let cd = json!({"device": "ide1-cd0", "locked": false, "removable": true, "type": "unknown"});
                let image = json!({"virtual-size": sizes.last(), "filename": file, "format": "raw"});
                let inserted = json!({"node-name": "#block159", "drv": "raw", "file": file, "image": image});
                json!({"return": [cd, {"device": device, "type": "unknown", "inserted": inserted}]})
            }
            "block_resize" if arguments["device"] == *device => {
                sizes.push(arguments["size"].as_u64().expect("bytes"));
                json!({"return": {}})
            }
            _ => json!({"error": {"class": "GenericError", "desc": format!("{command} {arguments}")}}),
        }
    }

    /// The sizes that it was given, in MiB.
    fn resized(&self) -> Vec<u64> {
        let sizes = self.sizes.lock().expect("nobody panics with it");
        sizes[1..].iter().map(|bytes| bytes >> 20).collect()
    }
}

/// What Ganeti keeps of the KVM instances of a node, below the directory of a home.
fn kvm(home: &Home, directory: &str) -> PathBuf {
    let path = home.path().join("kvm").join(directory);
    fs::create_dir_all(&path).expect("a directory");
    path
}

/// An operation on an instance of KVM on a node that is the home's.
fn on_kvm(home: &Home, operation: &str) -> Environment {
    Environment::of(operation).path(home, "bin").set("KVM_RUN", home.path().join("kvm").display().to_string())
}

#[test]
fn a_disk_grows_online() {
    let grown = |home: &Home, disk: &str, size: u64| {
        let environment = on_kvm(home, "disk-grow").with("DISK", disk).with("AMOUNT", "1024").with("ABSOLUTE", "False");
        let environment = environment.with("INSTANCE_DISK0_UUID", "0829a4e2-3773-4ea0-9543-e19602155fe3");
        environment.set("GANETI_POST_INSTANCE_DISK0_SIZE", size.to_string())
    };
    let home = Home::default();
    let instance = grown(&home, "0", 0).get("INSTANCE_NAME").to_owned();
    let primary = grown(&home, "0", 0).get("INSTANCE_PRIMARY").to_owned();
    assert_eq!(instance, "mock_inst_1.example.com");
    home.configure(&format!("[ganeti]\nnode = \"{primary}\"\n"));
    Page::at("grow-disk.md", &home).install(&home, "grow-disk");
    home.hook("grow-disk", &Page::at("grow-disk.md", &home).block("NAME ").replace("RETRIES   = 3", "RETRIES   = 0"));
    let serve = home.serve();
    let mut follower = home.follow("prefix=HOOKBUS+HOOK+");
    let ganeti = Reporter::new(&home);

    // It doesn't run, or in another hypervisor.
    ganeti.report(&grown(&home, "0", 2048));
    assert_eq!(wrote(&mut follower), "");
    ganeti.report(&grown(&home, "0", 2048).with("INSTANCE_HYPERVISOR", "xen-hvm"));
    assert_eq!(wrote(&mut follower), "");

    let socket = kvm(&home, "ctrl").join(format!("{instance}.qmp"));
    let qemu = Qemu::start(&socket, "disk-0829a4e2-3773-4ea0", "/var/run/ganeti/instance-disks/x");
    for (size, said) in [
        (2048, "mock_inst_1.example.com: disk 0 has 2147483648 bytes now\n"),
        // Once more, and one that comes late.
        (2048, ""),
        (1536, ""),
        (2049, "mock_inst_1.example.com: disk 0 has 2148532224 bytes now\n"),
    ] {
        ganeti.report(&grown(&home, "0", size));
        assert_eq!(wrote(&mut follower), said);
    }
    assert_eq!(qemu.resized(), [2048, 2049]);
    let unknown = "0829a4e2-3773-ffff-9543-e19602155fe3";
    ganeti.report(&grown(&home, "0", 4096).with("INSTANCE_DISK0_UUID", unknown));
    let told = complained(&mut follower);
    assert_eq!(told, format!("QEMU has no disk disk-0829a4e2-3773-ffff of {instance}\n"));
    assert_eq!(qemu.resized(), [2048, 2049]);

    // An IDE disk is known by the link to it.
    fs::remove_file(&socket).expect("our own");
    let file = "/var/run/ganeti/instance-disks/mock_inst_1.example.com:0";
    let qemu = Qemu::start(&socket, "ide0-hd0", file);
    ganeti.report(&grown(&home, "0", 2048));
    assert!(wrote(&mut follower).ends_with("2147483648 bytes now\n"));
    assert_eq!(qemu.resized(), [2048]);
    serve.stop();
}

/// Puts commands there that write down how they were called, in `calls`.
fn recorders(home: &Home, names: &[&str], more: &str) {
    fs::create_dir_all(home.path().join("bin")).expect("a directory");
    let calls = home.path().join("calls");
    for name in names {
        let text = format!("#!/bin/sh\necho \"${{0##*/}} $*\" >> {}\n{more}\n", calls.display());
        let _ = home.script(&format!("bin/{name}"), &text);
    }
}

/// What was called since this was asked last.
fn calls(home: &Home) -> String {
    let calls = home.path().join("calls");
    let text = fs::read_to_string(&calls).unwrap_or_default();
    let _ = fs::remove_file(calls);
    text
}

/// Tags that are no text of the shell's, and would be a mistake of the script's.
const ODD_TAGS: &str = "* /bin/* $(touch+pwned) `touch+pwned` ;touch+pwned";

#[test]
fn traffic_is_shaped_where_an_instance_runs() {
    let home = Home::default();
    let primary = Environment::of("instance-start").get("INSTANCE_PRIMARY").to_owned();
    home.configure(&format!("[ganeti]\nnode = \"{primary}\"\n"));
    Page::at("shape-traffic.md", &home).install(&home, "shape-traffic");
    let page = Page::at("shape-traffic.md", &home);
    home.hook("shape-traffic", &page.block("NAME ").replace("RETRIES   = 3", "RETRIES   = 0"));
    // As long as there is a file, there is no rule yet.
    let new = home.path().join("new");
    let answer = format!("case \" $* \" in *' -C '*|*' -S '*) [ ! -e {} ] ;; esac", new.display());
    recorders(&home, &["tc", "iptables"], &answer);
    let serve = home.serve();
    let mut follower = home.follow("prefix=HOOKBUS+HOOK+");
    let ganeti = Reporter::new(&home);
    let tagged = |operation: &str, tags: &str| {
        let environment = on_kvm(&home, operation).with("INSTANCE_TAGS", tags).with("INSTANCE_NIC_COUNT", "2");
        environment.with("INSTANCE_NIC0_MAC", "aa:00:00:00:00:01").with("INSTANCE_NIC1_MAC", "aa:00:00:00:00:02")
    };
    let mut done = |environment: &Environment| {
        ganeti.report(environment);
        assert_eq!(wrote(&mut follower), "");
        calls(&home)
    };
    let instance = tagged("instance-start", "").get("INSTANCE_NAME").to_owned();
    let nics = kvm(&home, &format!("nic/{instance}"));
    // As Ganeti writes them, without a line end.
    let start =
        || [("0", "tap3"), ("1", "tap4")].iter().for_each(|(nic, tap)| fs::write(nics.join(nic), tap).expect("a file"));
    let shaped = |tap: &str| {
        format!(
            "tc qdisc replace dev {tap} root handle 5a: tbf rate 100mbit burst 512kb latency 100ms\n\
             tc qdisc del dev {tap} ingress\ntc qdisc add dev {tap} ingress\n\
             tc filter add dev {tap} parent ffff: protocol all matchall action police rate 100mbit \
             burst 512kb conform-exceed drop\n"
        )
    };
    let rule = |verb: &str, nic: u32| {
        format!(
            "iptables -w -t mangle -{verb} PREROUTING -m mac --mac-source aa:00:00:00:00:0{nic} \
             -j hookbus-aa000000000{nic}\n"
        )
    };
    let chain =
        |verb: &str, nic: u32, more: &str| format!("iptables -w -t mangle -{verb} hookbus-aa000000000{nic}{more}\n");
    let marked =
        |nic: u32| [chain("N", nic, ""), chain("A", nic, " -j DSCP --set-dscp-class cs1"), rule("C", nic)].concat();
    let looked_for = |nic: u32| chain("S", nic, "");
    let cleaned = |nic: u32| [looked_for(nic), rule("D", nic), chain("F", nic, ""), chain("X", nic, "")].concat();

    // It starts; both of its NICs are shaped and marked.
    start();
    fs::write(&new, "").expect("a file");
    let all = format!("x {ODD_TAGS} shape:100mbit dscp:cs1");
    let expected = [shaped("tap3"), marked(1), rule("A", 1), shaped("tap4"), marked(2), rule("A", 2)].concat();
    assert_eq!(done(&tagged("instance-start", &all)), expected);
    // Once more: the rule is there.
    fs::remove_file(&new).expect("our own file");
    assert_eq!(done(&tagged("instance-start", &all)), [shaped("tap3"), marked(1), shaped("tap4"), marked(2)].concat());
    // Its tags have gone: so does what was ours.
    let unshaped = |tap: &str| format!("tc qdisc del dev {tap} root handle 5a:\ntc qdisc del dev {tap} ingress\n");
    let expected = [unshaped("tap3"), cleaned(1), unshaped("tap4"), cleaned(2)].concat();
    assert_eq!(done(&tagged("instance-reboot", "x")), expected);
    // It stops, and its taps are gone: the rules go, and once more there is nothing.
    fs::remove_dir_all(&nics).expect("our own directory");
    assert_eq!(done(&tagged("instance-stop", &all)), [cleaned(1), cleaned(2)].concat());
    fs::write(&new, "").expect("a file");
    assert_eq!(done(&tagged("instance-remove", &all)), [looked_for(1), looked_for(2)].concat());

    // What makes no sense does nothing, and is told.
    fs::create_dir(&nics).expect("our own directory");
    start();
    for (tag, complaint) in [
        ("shape:fast", "shape:fast is no rate, such as 100mbit"),
        ("shape:-1mbit", "shape:-1mbit is no rate, such as 100mbit"),
        ("shape:mbit", "shape:mbit is no rate, such as 100mbit"),
        ("shape:1+dev+eth0mbit", "shape:1+dev+eth0mbit is no rate, such as 100mbit"),
        ("dscp:-j", "dscp:-j is no class, such as cs1"),
    ] {
        ganeti.report(&tagged("instance-start", tag));
        assert_eq!(complained(&mut follower), format!("{instance}: {complaint}\n"));
    }
    assert_eq!(calls(&home), "");
    assert!(!home.path().join("pwned").exists() && !Path::new("/pwned").exists());
    serve.stop();
}

#[test]
fn cpus_are_pinned_where_an_instance_runs() {
    let home = Home::default();
    Page::at("pin-cpus.md", &home).install(&home, "pin-cpus");
    let page = Page::at("pin-cpus.md", &home);
    home.hook("pin-cpus", &page.block("NAME ").replace("RETRIES   = 3", "RETRIES   = 0"));
    recorders(&home, &["taskset"], "");
    // ssh to a node: the command line is for a shell there.
    fs::create_dir(home.path().join("ssh")).expect("a directory");
    let hosts = home.path().join("hosts");
    let ssh = format!(
        "#!/bin/sh\n[ \"$1 $2\" = '-n --' ] || exit 99\necho \"$3\" >> {}\nshift 3\nexec sh -c \"$*\"\n",
        hosts.display()
    );
    let _ = home.script("ssh/ssh", &ssh);
    let tagged = |operation: &str, tags: &str| on_kvm(&home, operation).with("INSTANCE_TAGS", tags);
    let primary = tagged("instance-start", "").get("INSTANCE_PRIMARY").to_owned();
    home.configure(&format!("[ganeti]\nnode = \"{primary}\"\n"));
    let path = format!("{}:/usr/bin:/bin", home.path().join("ssh").display());
    let serve = home.ready(home.launcher().env("PATH", &path).spawn());
    let mut follower = home.follow("prefix=HOOKBUS+HOOK+");
    let ganeti = Reporter::new(&home);
    let pid = kvm(&home, "pid").join(tagged("instance-start", "").get("INSTANCE_NAME"));
    fs::write(&pid, "4711\n").expect("a file");
    let pinned = "taskset --all-tasks --pid --cpu-list 0-3,8 4711\n";

    for (tags, called) in [("x", ""), (&format!("{ODD_TAGS} cpus:0-3+8")[..], pinned)] {
        ganeti.report(&tagged("instance-start", tags));
        assert_eq!(wrote(&mut follower), "");
        assert_eq!(calls(&home), called);
    }
    assert!(!hosts.exists(), "it is this node");
    // It has moved: what counts is where it is now.
    let target = "mock_node_9.example.com";
    ganeti.report(&tagged("instance-migrate", "cpus:0-3+8").set("GANETI_POST_INSTANCE_PRIMARY", target));
    assert_eq!(wrote(&mut follower), "");
    assert_eq!(calls(&home), pinned);
    wait_until("it to have gone by ssh", || match fs::read_to_string(&hosts) {
        Ok(hosts) if hosts == format!("{target}\n") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    // Bad lists and bad files are told; without a process there is nothing to do.
    for (tags, text, complaint) in [
        ("cpus:0,1", "4711\n", "cpus:0,1 is no list, such as 0-3+8"),
        ("cpus:all", "4711\n", "cpus:all is no list, such as 0-3+8"),
        ("cpus:1", "-1\n", "its pid is \"-1\""),
    ] {
        fs::write(&pid, text).expect("a file");
        ganeti.report(&tagged("instance-start", tags));
        assert!(complained(&mut follower).ends_with(&format!(": {complaint}\n")));
    }
    fs::remove_file(&pid).expect("our own file");
    ganeti.report(&tagged("instance-start", "cpus:1"));
    assert_eq!((wrote(&mut follower), calls(&home)), (String::new(), String::new()));
    assert!(!home.path().join("pwned").exists() && !Path::new("/pwned").exists());
    serve.stop();
}
