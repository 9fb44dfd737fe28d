//! Hooks of TYPE ganeti: which operations make them run, where, and that they find what Ganeti would have given them.

use std::time::Duration;

use hookbus_bridges::ganeti::Report;
use hookbus_broker::Message;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::{PATIENCE, Rig, alone, json_lines};

fn soon() -> Instant {
    Instant::now() + PATIENCE
}

/// The event of a hook that found this environment.
fn event(environment: &Value) -> Message {
    let report = json!({"id": "0".repeat(32), "time": "2026-11-23T02:00:00Z", "node": "n1", "env": environment});
    Report::parse(report.to_string().as_bytes()).expect("a report").message()
}

/// The environment of an operation on the instance web1, with more variables.
fn environment(operation: &str, phase: &str, more: &[(&str, &str)]) -> Value {
    let mut environment = json!({
        "PATH": "/sbin:/bin:/usr/sbin:/usr/bin", "GANETI_HOOKS_PATH": operation, "GANETI_HOOKS_PHASE": phase,
        "GANETI_OBJECT_TYPE": "INSTANCE", "GANETI_CLUSTER": "c.example.com", "GANETI_MASTER": "n1.example.com",
        "GANETI_OP_TARGET": "web1", "GANETI_INSTANCE_PRIMARY": "n2.example.com", "GANETI_INSTANCE_SECONDARIES": "n3.example.com n4.example.com",
    });
    for (name, value) in more {
        environment[format!("GANETI_{name}")] = (*value).into();
    }
    environment
}

/// All 337 recorded environments arrive in the script's process as they were in Ganeti's, whatever is in them.
#[test]
fn a_script_finds_the_environment_that_ganeti_gave() {
    alone(|| async {
        let mut rig = Rig::new();
        // Without a shell, which would add variables of its own.
        rig.template(
            "env",
            "NAME = env\nTYPE = ganeti\nOPERATION = *\nPHASE = \"pre,post\"\nCOMMAND = /usr/bin/env\nARGUMENTS = -0",
        );
        let executor = rig.start_with(|options| {
            options.node = "any".into();
            options.ssh = "/bin/false".into();
            options.concurrency = 1;
        });
        let mut runs = 0;
        for run in json_lines("../ganeti/hook-runs.jsonl.zst") {
            let mut environment = run["env"].clone();
            environment["GANETI_MASTER"] = "any".into();
            rig.broker.publish(event(&environment)).await.expect("published");
            let record = rig.record().await;
            assert!(record.ending.is_success() && record.host.is_none(), "{record:?}");
            let text = record.stdout.text();
            let found: serde_json::Map<_, _> = text
                .split_terminator('\0')
                .map(|variable| variable.split_once('=').expect("NAME=value"))
                .map(|(name, value)| (name.to_owned(), Value::from(value)))
                .collect();
            assert_eq!(Value::Object(found), environment);
            runs += 1;
        }
        assert_eq!(runs, 337);
        executor.shutdown(soon()).await;
    });
}

/// Operation and phase decide, and NODE says on which nodes; other nodes are reached over ssh, with the same environment there.
#[test]
fn hooks_run_once_on_the_nodes_that_they_are_for() {
    alone(|| async {
        let mut rig = Rig::new();
        rig.script("say.sh", "#!/bin/sh\necho \"$GANETI_HOOKS_PHASE $GANETI_ODD|$PATH|$TEST_HOST|$(pwd)|$#\"\n");
        let hook = |name: &str, more: &str| {
            rig.template(name, &format!("NAME = {name}\nTYPE = ganeti\nCOMMAND = say.sh\n{more}\n"));
        };
        hook("migrated", "OPERATION = \"instance-migrate,instance-failover\"");
        hook("before", "OPERATION = instance-*\nPHASE = pre");
        hook("primary", "OPERATION = instance-migrate\nNODE = primary");
        hook("secondaries", "OPERATION = instance-migrate\nNODE = secondaries");
        hook("involved", "OPERATION = instance-migrate\nNODE = involved\nARGUMENTS = \"-- $NAME\"");
        hook("nodes", "OPERATION = node-*");
        let ssh = rig.ssh();
        let executor = rig.start_with(|options| {
            options.node = "n1".into();
            options.ssh = ssh;
        });
        let odd = "a b; touch pwned $(id) 'x' \"y\"";
        let migrate = [
            ("POST_INSTANCE_PRIMARY", "n3.example.com"),
            ("POST_INSTANCE_SECONDARIES", "n2.example.com"),
            ("ODD", odd),
        ];
        let path = "/sbin:/bin:/usr/sbin:/usr/bin";
        for (operation, phase, more, expected) in [
            (
                "instance-migrate",
                "post",
                &migrate[..],
                &[
                    ("migrated", "", "0"),
                    ("primary", "n3.example.com", "0"),
                    ("secondaries", "n2.example.com", "0"),
                    ("involved", "n2.example.com", "2"),
                    ("involved", "n3.example.com", "2"),
                    ("involved", "n4.example.com", "2"),
                ][..],
            ),
            ("instance-failover", "pre", &[("ODD", odd)], &[("before", "", "0")]),
            ("instance-start", "post", &[], &[]),
            ("node-modify", "post", &[("ODD", odd)], &[("nodes", "", "0")]),
        ] {
            let mut environment = environment(operation, phase, more);
            if operation == "node-modify" {
                environment["GANETI_OBJECT_TYPE"] = "NODE".into();
            }
            rig.broker.publish(event(&environment)).await.expect("published");
            let mut ran = Vec::new();
            for _ in expected {
                let record = rig.record().await;
                let text = record.stdout.text();
                // What ssh exports is not for the command: its environment is the operation's alone.
                let (said, arguments) = text.trim_end().rsplit_once('|').unwrap_or_else(|| panic!("{record:?}"));
                assert_eq!(said, format!("{phase} {odd}|{path}||/"), "{record:?}");
                ran.push((record.hook.name.clone(), record.host.clone().unwrap_or_default(), arguments.to_owned()));
            }
            ran.sort();
            let mut expected: Vec<_> =
                expected.iter().map(|(hook, host, n)| (hook.to_string(), host.to_string(), n.to_string())).collect();
            expected.sort();
            assert_eq!(ran, expected, "{operation}");
        }
        assert!(!rig.path("pwned").exists());
        executor.shutdown(soon()).await;
        assert!(rig.try_record().is_none(), "a hook ran that should not have");
    });
}

/// A run that failed is repeated where it ran, with the environment that it had.
#[test]
fn repetitions_have_the_environment_and_the_node_of_the_first_run() {
    alone(|| async {
        let mut rig = Rig::new();
        rig.script("fail.sh", "#!/bin/sh\necho \"$GANETI_OP_TARGET $GANETI_HOOKS_PATH\"\nexit 3\n");
        rig.template(
            "fail",
            "NAME = fail\nTYPE = ganeti\nOPERATION = instance-stop\nNODE = primary\nCOMMAND = fail.sh\nRETRIES = 1\nRETRY_BACKOFF = 0",
        );
        let ssh = rig.ssh();
        let executor = rig.start_with(|options| options.ssh = ssh);
        rig.broker.publish(event(&environment("instance-stop", "post", &[]))).await.expect("published");
        for attempt in 1..=2 {
            let record = rig.record().await;
            assert_eq!(
                (record.attempt, record.ending.code(), record.host.as_deref()),
                (attempt, 3, Some("n2.example.com"))
            );
            assert_eq!(record.stdout.text(), "web1 instance-stop\n");
            if attempt == 2 {
                let environment =
                    record.environment.iter().map(|(name, value)| (name.clone().into_owned(), value.clone()));
                let again = hookbus_hem::Again {
                    hook: "fail".into(),
                    arguments: record.arguments.clone(),
                    host: record.host.clone(),
                    event: record.event.clone(),
                    environment: environment.collect(),
                    retry_of: None,
                };
                executor.run_again(again).expect("taken");
            }
        }
        let record = tokio::time::timeout(Duration::from_secs(60), rig.record()).await.expect("by hand");
        assert!(record.by_hand && record.host.as_deref() == Some("n2.example.com"));
        assert_eq!(record.stdout.text(), "web1 instance-stop\n");
        executor.shutdown(soon()).await;
    });
}
