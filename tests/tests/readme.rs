//! The steps of README's first screen, run as they stand there.
//!
//! Two things differ from what a newcomer does: the program is the one that the tests have built, since a release build would take
//! minutes, and where a person looks at the screen before going on, this waits until there is something to be seen.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use hookbus_tests::{hookbus, tools, wait_until};
use rustix::process::{Pid, Signal, kill_process_group};

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
