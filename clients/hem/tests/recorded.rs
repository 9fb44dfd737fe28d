//! Hooks and events of a real OpenNebula, run here, against what its own executor reported about them.
//!
//! The scripts that were hooks there are written again so that they say what those said. Where we differ on purpose it stands in
//! [`differs`], each with its reason.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hookbus_bridges::opennebula::{Document, Element};
use hookbus_hem::template::Template;
use hookbus_hem::{Executor, Hook, HookSet, Origin, Severity};
use support::{PATIENCE, Rig, alone, fixture, recorded_events};
use tokio::time::Instant;

fn text(element: Element<'_>) -> String {
    String::from_utf8(element.text().into_owned()).unwrap()
}

fn field(element: Element<'_>, name: &str) -> String {
    element.child(name).map(text).unwrap_or_default()
}

/// The hooks as oned listed them: number, and a template of all attributes.
fn pool() -> BTreeMap<u32, Template> {
    let document = fixture("hookpool.xml.zst");
    let document = Document::parse(&document);
    let hook = |hook: Element<'_>| {
        let attributes = hook.child("TEMPLATE").unwrap();
        let attributes = attributes.children().map(|a| (String::from_utf8(a.name().to_vec()).unwrap(), text(a)));
        let head = ["NAME", "TYPE"].map(|name| (name.to_owned(), field(hook, name)));
        (field(hook, "ID").parse().unwrap(), Template::from_pairs(head.into_iter().chain(attributes)))
    };
    document.root().unwrap().children().map(hook).collect()
}

/// What one execution came to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Result {
    arguments: String,
    command: String,
    stdout: Vec<u8>,
    stderr: String,
    code: String,
    /// Where it ran, if that was another host.
    host: Option<String>,
}

/// What the original reported about hooks that it ran here, retries left out. Its result is text that was never escaped, so it is cut up as
/// text.
fn reported() -> Vec<(u32, Result)> {
    let between = |text: &str, name: &str| {
        let (start, end) = (format!("<{name}>"), format!("</{name}>"));
        let from = text.find(&start).unwrap() + start.len();
        text[from..from + text[from..].find(&end).unwrap()].to_owned()
    };
    let output = |text: &str, name: &str| {
        let base64: String = between(text, name).split_whitespace().collect();
        BASE64_STANDARD.decode(base64).unwrap()
    };
    let replies = String::from_utf8(fixture("replies.jsonl.zst")).unwrap();
    let requests = replies.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    requests
        .filter_map(|line| {
            let mut words = line["request"].as_str().unwrap().splitn(3, ' ').skip(1);
            let hook = words.next().unwrap().parse().unwrap();
            let text = String::from_utf8(BASE64_STANDARD.decode(words.next().unwrap()).unwrap()).unwrap();
            let first = !text.contains("<RETRY>");
            let result = || Result {
                arguments: between(&text, "ARGUMENTS"),
                command: between(&text, "COMMAND"),
                stdout: output(&text, "STDOUT"),
                stderr: String::from_utf8_lossy(&output(&text, "STDERR")).into_owned(),
                code: between(&text, "CODE"),
                host: text.contains("<REMOTE_HOST>").then(|| between(&text, "REMOTE_HOST")),
            };
            first.then(|| (hook, result()))
        })
        .collect()
}

/// Where we differ from the original, and why.
fn differs(hook: u32) -> Option<&'static str> {
    match hook {
        10 => Some("ARGUMENTS_STDIN = true counts as yes in a template file"),
        13 => Some("it prints numbers of processes and pipes"),
        22 => Some("it prints the user and the home directory"),
        32 => Some("output before a background child is kept"),
        _ => None,
    }
}

const SCRIPTS: &[(&str, &str)] = &[
    (
        "rec_ok.sh",
        "echo \"hello from rec_ok argc=$#\"\ni=0\nfor a in \"$@\"; do i=$((i+1)); printf 'arg%d len=%d head=%.60s\\n' $i ${#a} \"$a\"; done",
    ),
    ("rec_stdin.sh", "echo \"argc=$# stdin_bytes=$(wc -c)\""),
    ("rec_fail.sh", "echo partial output; echo 'ERROR: it went wrong' >&2; exit 3"),
    ("rec_empty.sh", ""),
    ("rec_slow.sh", "exec sleep 1000"),
    ("rec_env.sh", "env"),
    ("rec_rc255.sh", "exit 255"),
    ("rec_sig.sh", "echo about to die by a signal; kill -KILL $$"),
    ("rec_bg.sh", "echo before; sleep 1000 &"),
    ("rec_catstdin.sh", "cat"),
    (
        "rec_bin.sh",
        "printf '\\000\\001\\002\\377\\376 <&>\"\\047 \\303\\251 \\303 end\\n'; printf 'stderr \\377\\n' >&2",
    ),
    (
        "rec_big.sh",
        "i=0; while [ $i -lt 500 ]; do printf 'line %06d of a rather long output of a hook, 0123456789 \
         abcdefghijklmnopqrstuvwxyz\\n' $i; i=$((i+1)); done; echo done >&2",
    ),
];

#[test]
fn recorded_hooks_do_what_they_did() {
    alone(|| async {
        let mut rig = Rig::new();
        for (name, body) in SCRIPTS {
            rig.script(name, &format!("#!/bin/sh\n{body}\n"));
        }
        std::fs::create_dir(rig.path("sub")).unwrap();
        for copy in ["rec_ünï.sh", "sub/rec_sub.sh"] {
            std::fs::copy(rig.path("rec_ok.sh"), rig.path(copy)).unwrap();
        }
        std::fs::write(rig.path("rec_noexec.txt"), "").unwrap();

        let mut numbers = BTreeMap::new();
        let mut refused = BTreeSet::new();
        let mut hooks = Vec::new();
        for (number, template) in pool() {
            let (hook, problems) = Hook::from_template(&template, &Origin::Program);
            match hook {
                Some(hook) => {
                    numbers.insert(hook.name.clone(), number);
                    hooks.push(hook);
                }
                None => {
                    let error = problems.into_iter().find(|problem| problem.severity == Severity::Error).unwrap();
                    assert!(error.what.starts_with("TIMEOUT = soon"), "{error}");
                    refused.insert(number);
                }
            }
        }
        // Its timeout makes no sense.
        assert_eq!(refused, BTreeSet::from([34]));

        let mut options = rig.options();
        options.concurrency = 20;
        options.remote_base_path = options.base_path.clone();
        options.ssh = rig.ssh();
        let executor = Executor::start(&rig.broker, HookSet::new(hooks), options);
        let events = recorded_events();
        assert_eq!(events.len(), 835);
        for event in events {
            rig.broker.publish(event).await.unwrap();
        }
        support::wait("all hooks to have run", || match executor.status() {
            status if status.waiting == 0 && status.running == 0 => Ok(()),
            status => Err(format!("{} run, {} wait", status.running, status.waiting)),
        })
        .await;
        executor.shutdown(Instant::now() + PATIENCE).await;

        let base = rig.directory.path().to_str().unwrap().to_owned();
        let there = "/opt/one/var/remotes/hooks";
        let mut ours: BTreeMap<u32, BTreeSet<Result>> = BTreeMap::new();
        while let Some(record) = rig.try_record() {
            let result = Result {
                arguments: record.arguments.clone(),
                command: record.command.replace(&base, there),
                stdout: record.stdout.bytes().into_owned(),
                stderr: record.stderr.text().replace(&base, there),
                code: record.ending.code().to_string(),
                host: record.host.clone(),
            };
            let number = numbers[&record.hook.name];
            match number {
                22 => assert!(result.stdout.ends_with(b" *.conf\nsecond\n"), "{result:?}"),
                32 => assert_eq!((result.stdout.as_slice(), record.left_behind), (&b"before\n"[..], true)),
                10 => assert!(result.stdout.starts_with(b"argc=0 stdin_bytes="), "{result:?}"),
                _ => {}
            }
            ours.entry(number).or_default().insert(result);
        }
        let (mut compared, mut of_hooks) = (0, BTreeSet::new());
        for (number, result) in reported() {
            if refused.contains(&number) {
                continue;
            }
            assert!(ours.contains_key(&number), "hook {number} never ran");
            if differs(number).is_some() {
                continue;
            }
            assert!(
                ours[&number].contains(&result),
                "hook {number}, recorded: {result:?}\nours: {:?}",
                ours[&number].iter().next()
            );
            compared += 1;
            of_hooks.insert(number);
        }
        assert_eq!((compared, of_hooks.len()), (374, 35), "executions compared, and hooks");
    });
}
