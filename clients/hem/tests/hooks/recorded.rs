//! Hooks and events of a real OpenNebula, run here, against what its own executor reported about them.
//!
//! The scripts that were hooks there are written again so that they say what those said. Where we differ on purpose it stands in
//! [`differs`], each with its reason.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

use std::collections::{BTreeMap, BTreeSet};

use crate::support;
use crate::support::recorded::{Result, reported};
use crate::support::{PATIENCE, Rig, alone, fixture, recorded_events};
use hookbus_bridges::opennebula::{Document, Element};
use hookbus_hem::template::Template;
use hookbus_hem::{Executor, Hook, HookSet, Origin, Severity};
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

#[test]
fn recorded_hooks_do_what_they_did() {
    alone(|| async {
        let mut rig = Rig::new();
        rig.recorded_scripts();

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
        for (number, result) in reported(|text| !text.contains("<RETRY>")) {
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
