//! The steps of README's first screen, and the recipes, run as they stand there.
//!
//! Two things differ from what a newcomer does: the program is the one that the tests have built, since a release build would take
//! minutes, and where a person looks at the screen before going on, this waits until there is something to be seen.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use hookbus_tests::servers::http::{HttpServer, Request};
use hookbus_tests::{Home, fixtures, hookbus, tools, wait_until};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Map, Value, json};

/// The blocks of shell commands below a heading.
fn blocks(heading: &str) -> Vec<String> {
    let readme = fs::read_to_string(tools::workspace().join("README.md")).expect("there is a README");
    let section = readme.split_once(&format!("## {heading}\n")).expect("the heading is there").1;
    let section = section.split("\n## ").next().expect("there is text");
    let mut blocks = Vec::new();
    let mut rest = section;
    while let Some((_, after)) = rest.split_once("```sh\n") {
        let (block, after) = after.split_once("```").expect("a block has an end");
        blocks.push(block.to_owned());
        rest = after;
    }
    blocks
}

/// A terminal in which a block runs; it is closed, with everything in it, when this is dropped.
struct Terminal(Child);

impl Terminal {
    fn run(dir: &Path, block: &str) -> Self {
        let program = hookbus().display().to_string();
        let block = block.replace("target/release/hookbus", &program).replace("cargo run --release --", &program);
        let child = Command::new("bash")
            .args(["-ec", &block])
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .process_group(0)
            .spawn()
            .expect("there is a bash");
        Terminal(child)
    }

    /// What it shows, up to its end, which must be a good one.
    fn finished(mut self) -> String {
        let mut out = self.0.stdout.take().expect("it was piped");
        let mut text = String::new();
        std::io::Read::read_to_string(&mut out, &mut text).expect("text");
        let status = self.0.wait().expect("our own child");
        assert!(status.success(), "{status}: {text}");
        text
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let group = Pid::from_raw(i32::try_from(self.0.id()).expect("a process id")).expect("not 0");
        if self.0.try_wait().is_ok_and(|status| status.is_none()) {
            // Not SIGINT: a shell in the background has its children ignore it.
            let _ = kill_process_group(group, Signal::TERM);
        }
        let _ = self.0.wait();
    }
}

#[test]
fn a_newcomer_gets_from_nothing_to_a_hook() {
    let blocks = blocks("From nothing to a hook");
    let [demo, serve, tail, publish, check] = &blocks[..] else { panic!("{blocks:#?}") };
    assert_eq!(check, "tests/run\n", "what runs this test");
    let dir = tempfile::tempdir().expect("a directory");

    let shown = Terminal::run(dir.path(), demo).finished();
    assert_eq!(shown.lines().count(), 20, "{shown}");

    let _serve = Terminal::run(dir.path(), serve);
    let status = || {
        let output = Command::new(hookbus())
            .args(["--config", "try/hookbus.toml", "status", "-o", "json"])
            .current_dir(dir.path())
            .output()
            .expect("hookbus can be started");
        serde_json::from_slice::<serde_json::Value>(&output.stdout)
            .map_err(|_| String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let subscribers = |count: usize| {
        wait_until(&format!("{count} subscribers"), || match status() {
            Ok(status) if status["subscribers"].as_array().map(Vec::len) == Some(count) => Ok(()),
            Ok(status) => Err(status.to_string()),
            Err(e) => Err(e),
        });
    };
    subscribers(1);
    let mut tail = Terminal::run(dir.path(), tail);
    let mut lines = BufReader::new(tail.0.stdout.take().expect("it was piped")).lines();
    subscribers(2);

    let shown = Terminal::run(dir.path(), publish).finished();
    assert!(shown.contains("hookbus[") && shown.contains("HOOK") && shown.contains("\"demo/\""), "{shown}");

    // As README says, save the time.
    let mut line = || {
        let line = lines.next().expect("there is more").expect("text");
        line.split_once("  ").map(|(_, rest)| rest.trim_end().to_owned()).expect("a time")
    };
    assert_eq!(line(), "demo/hello");
    assert_eq!(line(), "hook hello                      ok: A hook was here.");
    let readme = fs::read_to_string(tools::workspace().join("README.md")).expect("there is a README");
    for shown in ["  demo/hello\n", "  hook hello                      ok: A hook was here.\n"] {
        assert!(readme.contains(shown), "README shows what is seen: {shown}");
    }
}

/// The one block of configuration in a recipe.
fn recipe(name: &str) -> String {
    let path = tools::workspace().join("docs/recipes").join(name);
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let (_, block) = text.split_once("```toml\n").expect("there is configuration");
    block.split_once("\n```").expect("a block has an end").0.to_owned()
}

/// The data of a recorded run of Ganeti's hooks, as far as recipes need it.
fn ganeti(op: &str, phase: &str) -> Value {
    let run = fixtures::ganeti_hook_runs().into_iter().find(|run| run["hooks_path"] == op && run["phase"] == phase);
    let environment = run.expect("it was recorded")["env"].clone();
    let variables = environment.as_object().expect("variables");
    let named = |post: bool| -> Map<String, Value> {
        let variables = variables.iter().filter_map(|(name, value)| {
            let name = name.strip_prefix("GANETI_")?;
            let (name, is_post) = name.strip_prefix("POST_").map_or((name, false), |name| (name, true));
            (is_post == post).then(|| (name.to_lowercase(), value.clone()))
        });
        variables.collect()
    };
    json!({
        "op": op, "phase": phase, "cluster": variables["GANETI_CLUSTER"], "object": "INSTANCE",
        "name": variables["GANETI_INSTANCE_NAME"], "env": environment, "before": named(false), "after": named(true),
    })
}

/// Runs a recipe against a server, with what happens around a migration, and gives what has arrived.
fn sent_by(recipe: &str, server: &mut HttpServer, home: &Home) -> Vec<Request> {
    // Nobody but a source of Ganeti's events can publish under its keys.
    assert!(recipe.contains("prefixes = [\"EVENT GANETI INSTANCE/instance-migrate/\"]"), "{recipe}");
    home.configure(&recipe.replace("EVENT GANETI ", "TEST GANETI "));
    let check = home.run(&["config", "check"]);
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
    let serve = home.serve();
    for (op, phase) in [
        ("instance-migrate", "pre"),
        ("instance-failover", "post"),
        ("instance-migrate", "post"),
        ("instance-migrate", "pre"),
    ] {
        let event = home.path().join("event");
        fs::write(&event, ganeti(op, phase).to_string()).expect("our own file");
        let key = format!("TEST GANETI INSTANCE/{op}/{phase}/mock_inst_1.example.com ");
        let output = home.run(&["publish", &key, event.to_str().expect("a plain path")]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let name = if recipe.contains("\"slack\"") { "slack" } else { "grafana" };
    home.until_bridge(name, "to have done all", |bridge| bridge["confirmed"] == 1 && bridge["filtered"] == 2);
    serve.stop();
    server.requests().to_vec()
}

#[test]
fn a_migration_is_told_to_slack_and_grafana() {
    let put = |home: &Home, name: &str, text: &str| {
        let path = home.path().join(name);
        fs::write(&path, text).expect("our own file");
        path.display().to_string()
    };
    let (home, mut slack) = (Home::default(), HttpServer::start());
    let url = put(&home, "slack.url", &format!("{}/services/T0/B0/x\n", slack.url()));
    let sent = sent_by(&recipe("slack.md").replace("/etc/hookbus/slack.url", &url), &mut slack, &home);
    let [message] = &sent[..] else { panic!("{sent:?}") };
    assert_eq!((message.method.as_str(), message.path.as_str()), ("POST", "/services/T0/B0/x"));
    assert_eq!(message.header("content-type"), Some("application/json"));
    let text = "Instance *mock_inst_1.example.com* has been migrated from mock_node_1.example.com to mock_node_2.example.com (cluster.example.com)";
    assert_eq!(message.json(), json!({ "text": text }));

    let (home, mut grafana) = (Home::default(), HttpServer::start());
    let token = put(&home, "grafana.token", "glsa_x\n");
    let recipe = recipe("grafana.md")
        .replace("/etc/hookbus/grafana.token", &token)
        .replace("https://grafana.example.com", &grafana.url());
    let sent = sent_by(&recipe, &mut grafana, &home);
    let [annotation] = &sent[..] else { panic!("{sent:?}") };
    assert_eq!(
        (annotation.path.as_str(), annotation.header("authorization")),
        ("/api/annotations", Some("Bearer glsa_x"))
    );
    let expected = json!({
        "text": "mock_inst_1.example.com: mock_node_1.example.com to mock_node_2.example.com",
        "tags": ["ganeti", "migration", "cluster.example.com", "mock_inst_1.example.com"],
    });
    assert_eq!(annotation.json(), expected);
}
