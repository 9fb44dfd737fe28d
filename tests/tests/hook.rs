//! `hookbus hook` against a real daemon: OpenNebula's documentation step by step, and what else operators do with hooks.

use std::fs;
use std::process::Output;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hookbus_tests::{Home, fixtures, wait_until};
use rustix::process::Signal;
use serde_json::Value;

fn out(output: &Output) -> String {
    assert!(output.status.success(), "{}", told(output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn json(home: &Home, args: &[&str]) -> Value {
    serde_json::from_str(&out(&home.run(args))).expect("JSON")
}

/// What the daemon says of it.
fn get(home: &Home, path: &str) -> Value {
    home.request("GET", path, &[], b"").expect("an answer").json()
}

/// A template in a file of its own.
fn template(home: &Home, name: &str, text: &str) -> String {
    let path = home.path().join(name);
    fs::write(&path, text).expect("a file");
    path.display().to_string()
}

/// The line of oned for the first recorded event with that key.
fn line_of(key: &str) -> Vec<u8> {
    let message = fixtures::published().into_iter().find(|message| message.key().starts_with(key.as_bytes()));
    let message = message.unwrap_or_else(|| panic!("an event {key:?} was recorded"));
    [b"EXECUTE  -1 ".as_slice(), message.content(), b"\n"].concat()
}

/// The page "Using Hooks", from the template that it prints to the retry.
#[test]
fn the_documentation_step_by_step() {
    let home = Home::default();
    let daemon = home.serve();
    let mut hm = home.driver();

    let hook = "NAME = hook-vm\nTYPE = state\nCOMMAND = vm-pending.rb\nARGUMENTS = \"\\$TEMPLATE pending\"\nON = CUSTOM\n\
                RESOURCE = VM\nSTATE = PENDING\nLCM_STATE = LCM_INIT\n";
    let file = template(&home, "hook.tmpl", hook);
    let created = home.run(&["hook", "create", &file]);
    assert_eq!(out(&created), "ID: 0\n");
    let warning = told(&created);
    assert!(warning.contains("warning: ") && warning.contains("No such file or directory - "), "{warning}");
    let expected = "  ID NAME                TYPE    \n   0 hook-vm             state\n";
    assert_eq!(out(&home.run(&["hook", "list", "-l", "ID,NAME,TYPE"])), expected);

    hm.feed(&line_of("EVENT STATE VM/PENDING/LCM_INIT/"));
    let show = |execution: &str| home.run(&["hook", "show", "0", "-e", execution]);
    let shown = wait_until("the execution to be recorded", || match out(&home.run(&["hook", "show", "0"])) {
        shown if shown.contains("EXECUTION LOG") => Ok(shown),
        shown => Err(shown),
    });
    let head = "HOOK 0 INFORMATION                                                              \n\
                ID                : 0                   \nNAME              : hook-vm             \n\
                TYPE              : state               \nLOCK              : None                \n\n";
    let body = "HOOK TEMPLATE                                                                   \n\
                ARGUMENTS=\"$TEMPLATE pending\"\nCOMMAND=\"vm-pending.rb\"\nLCM_STATE=\"LCM_INIT\"\nREMOTE=\"NO\"\n\
                RESOURCE=\"VM\"\nSTATE=\"PENDING\"\n\nEXECUTION LOG\n   ID       TIMESTAMP    RC EXECUTION\n    0 ";
    assert!(shown.starts_with(&format!("{head}{body}")) && shown.ends_with("   255 ERROR\n\n"), "{shown}");
    let first = out(&show("0"));
    let script = home.path().join("vm-pending.rb");
    for line in [
        format!("Internal error No such file or directory - {}\n", script.display()),
        "EXIT CODE         : 255                 \n".into(),
        "ARGUMENTS         : <VM>\n  <ID>".into(),
        "</VM> pending \n".into(),
        format!("COMMAND           : {} PFZNPg", script.display()),
    ] {
        assert!(first.contains(&line), "{line:?} in {first}");
    }

    let _ = home.script("vm-pending.rb", "#!/bin/sh\necho \"VM $HOOKBUS_ID $2\"\n");
    assert_eq!(out(&home.run(&["hook", "retry", "0", "0"])), "");
    let both = wait_until("both records", || match out(&home.run(&["hook", "show", "0"])) {
        shown if shown.contains("     0 SUCCESS\n") => Ok(shown),
        shown => Err(shown),
    });
    assert!(both.contains("   255 ERROR\n    1 "), "{both}");
    let second = out(&show("1"));
    assert!(second.contains("RETRY OF          : 0 ") && second.contains("EXECUTION STDOUT"), "{second}");
    // The machine's number comes with the retry, though nobody has told of it again.
    assert!(second.contains("\nVM 0 pending\n"), "{second}");

    let record = &json(&home, &["hook", "show", "0", "-j"])["HOOK"]["HOOKLOG"]["HOOK_EXECUTION_RECORD"][1];
    assert_eq!((record["EXECUTION_ID"].as_str(), record["RETRY"].as_str()), (Some("1"), Some("yes")), "{record}");
    let xml = out(&home.run(&["hook", "show", "0", "-x"]));
    assert!(
        xml.starts_with("<HOOK>\n  <ID>0</ID>\n  <NAME>hook-vm</NAME>") && xml.contains("<CODE>255</CODE>"),
        "{xml}"
    );

    let missing = show("7");
    assert_eq!(missing.status.code(), Some(1));
    assert!(told(&missing).contains("Cannot find execution record 7"), "{}", told(&missing));
    hm.finalize();
    daemon.stop();
}

#[test]
fn a_wrong_template_creates_nothing_and_says_what_is_wrong() {
    let home = Home::default();
    let daemon = home.serve();
    let good = "NAME = x\nTYPE = state\nRESOURCE = VM\nCOMMAND = /bin/true\nLCM_STATE = LCM_INIT\n";
    for (text, expected) in [
        (
            format!("{good}STATE = PENDNG\n"),
            ":6:1: STATE = PENDNG is no state of a VM that is known; did you mean PENDING?",
        ),
        (
            format!("{good}STATE = PENDING\nTIMEOUTT = 3\n"),
            ":7:1: TIMEOUTT is unknown and has no effect; did you mean TIMEOUT?",
        ),
        (format!("{good}STATE = PENDING\nOWNER = me\n"), ":7:1: OWNER is unknown; remove it"),
        ("NAME = x\nTYPE = api\nCOMMAND = /bin/true\n".into(), ": CALL is missing; write CALL = "),
        ("NAME = x\nTYPE".into(), ":2:5: expected `=` after \"TYPE\""),
    ] {
        let file = template(&home, "wrong.tmpl", &text);
        let refused = home.run(&["hook", "create", &file]);
        assert_eq!(refused.status.code(), Some(1), "{text}");
        assert!(refused.stdout.is_empty());
        let told = told(&refused).replace(&format!("{file}: "), &format!("{file}:"));
        assert!(told.contains(&format!("error: {file}{expected}").replace(": CALL", ":CALL")), "{text}: {told}");
    }
    let large = template(&home, "large.tmpl", &"x".repeat(3 << 20));
    let refused = home.run(&["hook", "create", &large]);
    assert!(told(&refused).contains("it has 3145728 bytes; a template has 1048576 at most"), "{}", told(&refused));
    fs::write(home.path().join("binary"), [0xFF; 100]).expect("a file");
    let refused = home.run(&["hook", "create", &home.path().join("binary").display().to_string()]);
    assert!(told(&refused).contains("the template is no text: byte 0 is no UTF-8"), "{}", told(&refused));
    assert_eq!(out(&home.run(&["hook", "list", "--no-header"])), "");
    daemon.stop();
}

/// All that can be done to a hook, and that it is still so after the daemon was killed.
#[test]
fn hooks_are_changed_and_stay_so() {
    let home = Home::default();
    home.hook("of-a-file", "NAME = of-a-file\nTYPE = event\nPREFIX = \"file \"\nCOMMAND = /bin/true\n");
    let mut daemon = home.serve();
    let run = |args: &[&str]| out(&home.run(&[&["hook"], args].concat()));
    let refused = |args: &[&str]| {
        let output = home.run(&[&["hook"], args].concat());
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        told(&output)
    };
    let hook = |name: &str| {
        let text = format!("# for {name}\nNAME = {name}\nTYPE = event\nPREFIX = \"app \"\nCOMMAND = /bin/true\n");
        template(&home, name, &text)
    };
    for (number, name) in ["first", "second", "third", "fourth"].iter().enumerate() {
        assert_eq!(run(&["create", &hook(name)]), format!("ID: {number}\n"));
    }
    assert!(refused(&["create", &hook("first")]).contains("the name \"first\" is taken by hook 0"));
    assert!(refused(&["create", &hook("of-a-file")]).contains("of-a-file.tmpl; choose another one"));
    for name in ["77", "1..3", "1,2", "a\nb"] {
        assert!(refused(&["rename", "1", name]).contains("choose one"), "{name:?}");
    }
    run(&["rename", "1", "zweiter"]);
    run(&["lock", "0"]);
    assert!(refused(&["delete", "0"]).contains("hook 0 (first) is locked; unlock it first"));
    assert!(refused(&["rename", "first", "x"]).contains("is locked"));
    assert!(refused(&["delete", "3..4,2"]).contains("there is no hook with the id 4"), "the others are deleted");
    assert!(refused(&["show", "3"]).contains("there is no hook with the id 3"));
    assert!(refused(&["rename", "of-a-file", "x"]).contains("is a template file; edit "));

    // What is added keeps the text; what changes an attribute writes it anew; a new text takes its place.
    run(&["update", "1", "--append", &template(&home, "more", "TIMEOUT = 7\n")]);
    let text = |id: &str| get(&home, &format!("/v1/hooks/{id}"))["template"].as_str().map(str::to_owned);
    assert!(text("1").unwrap().starts_with("# for second\n") && text("1").unwrap().ends_with("TIMEOUT = 7\n"));
    run(&["update", "zweiter", "--append", &template(&home, "more", "TIMEOUT = 8\n")]);
    assert!(run(&["show", "1"]).contains("PREFIX=\"app \"\nREMOTE=\"NO\"\nTIMEOUT=\"8\"\n"));
    run(&["update", "1", &template(&home, "new", "PREFIX = \"new \"\nCOMMAND = /bin/false\n")]);
    assert!(run(&["show", "1"]).contains("COMMAND=\"/bin/false\"\nPREFIX=\"new \"\nREMOTE=\"NO\"\n\n"));
    let told = refused(&["update", "1", &template(&home, "bad", "PREFIX = \"H\"\nCOMMAND = x\n")]);
    assert!(told.contains("matches results of hooks"), "{told}");
    // The editor is any command.
    let editor = home.script("editor", "#!/bin/sh\nsed -i s,/bin/false,/bin/echo, \"$1\"\n");
    let edited =
        home.command(&["hook", "update", "1"]).env_remove("VISUAL").env("EDITOR", editor).output().expect("hookbus");
    assert!(edited.status.success(), "{}", self::told(&edited));

    daemon.program.kill();
    let daemon = home.serve();
    let file = home.path().join("hooks/of-a-file.tmpl");
    let expected = format!(
        "  ID NAME                TYPE     ORIGIN\n   1 zweiter             event    store\n   0 first               event    store\n   \
         - of-a-file           event    {}\n",
        file.display()
    );
    assert_eq!(run(&["list"]), expected);
    let pool = json(&home, &["hook", "list", "-j"]);
    assert_eq!(pool["HOOK_POOL"]["HOOK"][1]["LOCK"]["LOCKED"], "1", "{pool}");

    // They run, those of files and those of the store, and each has a log.
    for key in ["new x", "app x", "file x"] {
        assert!(home.run(&["publish", key, "-"]).status.success());
    }
    wait_until("three executions", || match run(&["log"]) {
        log if log.lines().count() == 4 => Ok(()),
        log => Err(log),
    });
    let log = run(&["log", "--success"]);
    for name in ["    0     0", "    1     0", "of-a-file     0"] {
        assert!(log.contains(name), "{name:?} in {log}");
    }
    assert_eq!(run(&["log", "--error"]), "");
    assert_eq!(run(&["log", "--since", "1h", "--hook-id", "of-a-file"]).lines().count(), 2);
    assert_eq!(run(&["log", "--until", "1h"]), "");
    // The id of a hook that was deleted is not given again.
    assert_eq!(run(&["create", &hook("fifth")]), "ID: 4\n");
    daemon.stop();
}

/// Whoever looks at the hooks sees which files are none, until they are put right.
#[test]
fn files_that_are_not_loaded_are_listed_with_the_reason() {
    let home = Home::default();
    home.hook("good", "NAME = good\nTYPE = event\nPREFIX = \"app \"\nCOMMAND = /bin/true\n");
    home.hook("broken", "NAME = broken\nTYPE = event\nCOMMAND /bin/true\n");
    let daemon = home.serve();
    home.logged("hooks: 1 loaded from");
    let reason = "broken.tmpl:3:9: expected `=`";
    let listed = home.run(&["hook", "list"]);
    assert!(out(&listed).contains("good") && told(&listed).contains(reason), "{listed:?}");
    let status = out(&home.run(&["status"]));
    assert!(status.contains(reason) && status.contains("; it is not loaded"), "{status}");
    home.hook("broken", "NAME = broken\nTYPE = event\nPREFIX = \"app \"\nCOMMAND = /bin/true\n");
    daemon.program.signal(Signal::HUP);
    home.logged("hooks: 2 loaded from");
    let listed = home.run(&["hook", "list"]);
    assert!(out(&listed).contains("broken") && told(&listed).is_empty(), "{listed:?}");
    daemon.stop();
}

#[test]
fn as_many_executions_are_kept_as_are_wanted() {
    let home = Home::new("[hooks]\nlog_retention = 3\n");
    home.hook("count", "NAME = count\nTYPE = event\nPREFIX = \"app \"\nCOMMAND = /bin/true\nCONCURRENCY = 1\n");
    let daemon = home.serve();
    for _ in 0..6 {
        assert!(home.run(&["publish", "app x", "-"]).status.success());
    }
    let ids = || {
        let shown = get(&home, "/v1/hooks/count");
        let all = shown["executions"].as_array().expect("a list").clone();
        all.iter().map(|execution| execution["id"].as_u64().expect("a number")).collect::<Vec<_>>()
    };
    wait_until("the last three", || match ids() {
        ids if ids == [3, 4, 5] => Ok(()),
        ids => Err(format!("{ids:?}")),
    });
    daemon.stop();
}

#[test]
fn hooks_of_oned_are_taken_over() {
    let home = Home::default();
    let daemon = home.serve();
    let xml = [b"<?xml version=\"1.0\"?>\n".as_slice(), &fixtures::load("hookpool.xml")].concat();
    fs::write(home.path().join("pool.xml"), xml).expect("a file");
    let pool = home.path().join("pool.xml").display().to_string();
    let imported = home.run(&["hook", "import", &pool]);
    let lines = out(&imported);
    assert_eq!(lines.lines().count(), 43);
    assert!(
        lines.starts_with("ID: 0 (was 0: hook-api-user)\n") && lines.ends_with("ID: 42 (was 43: grpc-hook)\n"),
        "{lines}"
    );
    let listed = |args: &[&str]| out(&home.run(&[&["hook", "list"], args].concat()));
    let csv = listed(&["--csv", "-l", "NAME,TYPE"]);
    assert_eq!(csv.lines().count(), 44);
    assert!(csv.contains("\nhook-api-group-ü-名前,api\n") && csv.contains("\nhook-vm-stdin-no,state\n"), "{csv}");
    // `true` means no to OpenNebula, and stays that.
    let shown = get(&home, "/v1/hooks/10");
    assert!(shown["attributes"].get("ARGUMENTS_STDIN").is_none(), "{shown}");
    assert_eq!(get(&home, "/v1/hooks/33")["locked"], true, "as it was there");
    let again = home.run(&["hook", "import", &pool]);
    assert_eq!(again.status.code(), Some(1));
    assert!(told(&again).contains("43 of 43 hooks are left out"), "{}", told(&again));
    let nonsense = home.run(&["hook", "import", &template(&home, "vms.xml", "<VM_POOL/>")]);
    assert!(told(&nonsense).contains("expected the element HOOK_POOL, found VM_POOL"), "{}", told(&nonsense));

    // What nobody knows is told, and is in the way of no later change.
    let odd = "<HOOK><ID>7</ID><NAME>odd</NAME><TYPE>api</TYPE><TEMPLATE><CALL>one.vm.alocate</CALL><COMMAND>/bin/true</COMMAND>\
               <OWNER>me</OWNER></TEMPLATE></HOOK>";
    let imported = home.run(&["hook", "import", &template(&home, "odd.xml", odd)]);
    assert_eq!(out(&imported), "ID: 43 (was 7: odd)\n");
    assert!(told(&imported).contains("OWNER is unknown and has no effect"), "{}", told(&imported));
    assert!(told(&imported).contains("did you mean one.vm.allocate?"), "{}", told(&imported));
    let more = template(&home, "more", "CALL = one.vm.allocate\nTIMEOUT = 5\nNAME = other\n");
    let updated = home.run(&["hook", "update", "odd", &more, "--append"]);
    assert!(updated.status.success() && told(&updated).contains("NAME = other has no effect"), "{}", told(&updated));
    let wrong = home.run(&["hook", "update", "odd", &template(&home, "wrong", "TIMEOUT = soon\n"), "--append"]);
    assert!(told(&wrong).contains("with this added, the template is wrong: "), "{}", told(&wrong));
    daemon.stop();

    // A list of ours is read, too: a backup, with what only hookbus knows.
    let home = Home::default();
    let text = "NAME = ours\nTYPE = event\nPREFIX = \"app \"\nCOMMAND = /bin/true\n";
    home.hook("file", &text.replace("ours", "of-file"));
    let daemon = home.serve();
    let event = template(&home, "event", text);
    let _ = out(&home.run(&["hook", "create", &event]));
    let backup = template(&home, "backup.xml", &out(&home.run(&["hook", "list", "-x"])));
    assert!(home.run(&["hook", "rename", "ours", "kept"]).status.success());
    let restored = home.run(&["hook", "import", &backup]);
    assert_eq!(out(&restored), "ID: 1 (was 0: ours)\n", "{}", told(&restored));
    assert!(told(&restored).contains("of-file is a template file"), "{}", told(&restored));
    assert_eq!(get(&home, "/v1/hooks/1")["trigger"], get(&home, "/v1/hooks/0")["trigger"]);
    daemon.stop();
}

#[test]
fn a_hook_is_tried_with_an_event() {
    let home = Home::new("[journal]\nenabled = true\n");
    let daemon = home.serve();
    let _ = home.script("show.sh", "#!/bin/sh\necho \"$HOOKBUS_NAME has $# arguments\"\n");
    let text =
        "NAME = try\nTYPE = state\nRESOURCE = VM\nON = RUNNING\nCOMMAND = show.sh\nARGUMENTS = \"$TEMPLATE $ID\"\n";
    assert_eq!(out(&home.run(&["hook", "create", &template(&home, "try", text)])), "ID: 0\n");

    let nothing = home.run(&["hook", "test", "0", "--event", "./no-such.xml"]);
    assert!(told(&nothing).contains("cannot read ./no-such.xml"), "{}", told(&nothing));
    let nothing = home.run(&["hook", "test", "0"]);
    assert_eq!(nothing.status.code(), Some(1));
    assert!(
        told(&nothing).contains("the journal has no event") && told(&nothing).contains("--event FILE"),
        "{}",
        told(&nothing)
    );

    // From a file, as XML and as base64.
    let running =
        fixtures::published().into_iter().find(|m| m.key().starts_with(b"EVENT STATE VM/ACTIVE/RUNNING/")).unwrap();
    let xml = BASE64_STANDARD.decode(running.content()).unwrap();
    let (as_xml, as_base64) = (home.path().join("event.xml"), home.path().join("event.b64"));
    fs::write(&as_xml, &xml).unwrap();
    fs::write(&as_base64, running.content()).unwrap();
    for file in [&as_xml, &as_base64] {
        let shown = out(&home.run(&["hook", "test", "0", "--event", &file.display().to_string()]));
        for part in [
            "MATCHES           : yes",
            "(as given)",
            "ARGUMENTS         : <VM>\n",
            "ENVIRONMENT       : HOOKBUS_STATE=ACTIVE",
        ] {
            assert!(shown.contains(part), "{part:?} in {shown}");
        }
    }
    assert_eq!(out(&home.run(&["hook", "log"])), "", "nothing has run");

    // The newest of the journal; another one that is not for this hook.
    let mut hm = home.driver();
    hm.feed(&line_of("EVENT STATE VM/PENDING/LCM_INIT/"));
    hm.feed(&line_of("EVENT STATE VM/ACTIVE/PROLOG/"));
    wait_until("both to be in the journal", || match home.status()["broker"]["published"].as_u64() {
        Some(2) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let ran = out(&home.run(&["hook", "test", "try", "--event", "EVENT STATE VM/PENDING/", "--run"]));
    for part in [
        "(the newest in the journal)",
        "MATCHES           : no, this hook is for state VM/ACTIVE/RUNNING",
        "EXIT CODE         : 0 ",
        " has 2 arguments\n",
    ] {
        assert!(ran.contains(part), "{part:?} in {ran}");
    }
    assert_eq!(out(&home.run(&["hook", "log"])).lines().count(), 2);
    let unknown = home.run(&["hook", "test", "0", "--event", "EVENT STATE NET/READY//"]);
    assert!(told(&unknown).contains("no event \"EVENT STATE NET/READY//\""), "{}", told(&unknown));
    hm.finalize();
    daemon.stop();
}

/// What waits to be repeated, and what was cut off, outlives a killed daemon; what fails for good is a dead letter, which can be tried again.
#[test]
fn repetitions_outlive_the_daemon_and_the_last_failure_is_a_dead_letter() {
    let home = Home::default();
    let directory = home.path().display();
    let tries = home.path().join("tries");
    let _ = home.script(
        "fail.sh",
        &format!("#!/bin/sh\necho $HOOKBUS_KEY >> {directory}/tries\necho no >&2\n[ -e {directory}/good ]\n"),
    );
    home.hook(
        "fail",
        "NAME = fail\nTYPE = event\nPREFIX = \"app \"\nCOMMAND = fail.sh\nRETRIES = 2\nRETRY_BACKOFF = 2\n",
    );
    let count = || fs::read_to_string(&tries).unwrap_or_default().lines().count();
    let mut first = home.serve();
    home.publish("app x", b"");
    wait_until("the first attempt to be in the log", || match out(&home.run(&["hook", "log"])) {
        log if log.lines().count() == 2 => Ok(()),
        log => Err(log),
    });
    first.program.kill();
    assert_eq!(count(), 1);
    let second = home.serve();
    home.logged("1 runs were to be repeated, or were cut off; they go on");
    let letters = || json(&home, &["dlq", "list", "-o", "json"]);
    let letter = wait_until("a dead letter", || match &letters()["letters"][0] {
        Value::Null => Err(format!("{} tries", count())),
        letter => Ok(letter.clone()),
    });
    assert_eq!(count(), 3, "two repetitions");
    assert_eq!(letter["bridge"], "hook fail");
    assert_eq!((letter["attempts"].as_u64(), letter["reason"].as_str()), (Some(3), Some("exit code 1: no")));
    assert_eq!(letter["key"], "app x");

    fs::write(home.path().join("good"), "").expect("a file");
    // Also where the hook isn't repeated any more, the run is done with once it has run.
    home.hook("fail", "NAME = fail\nTYPE = event\nPREFIX = \"app \"\nCOMMAND = fail.sh\n");
    second.reload();
    assert!(home.run(&["dlq", "retry", "--all"]).status.success());
    wait_until("it to have run once more", || if count() == 4 { Ok(()) } else { Err(count()) });
    wait_until("no letter", || match letters()["total"].as_u64() {
        Some(0) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    wait_until("a success", || match out(&home.run(&["hook", "log", "--success"])) {
        log if log.lines().count() == 2 => Ok(()),
        log => Err(log),
    });
    second.stop();

    // A hook that the end of the daemon cuts off runs again.
    let _ = home.script(
        "long.sh",
        &format!(
            "#!/bin/sh\necho $HOOKBUS_EVENT_ID >> {directory}/long\nuntil [ -e {directory}/go ]; do sleep 0.01; done\n"
        ),
    );
    home.hook("fail", "NAME = long\nTYPE = event\nPREFIX = \"long \"\nCOMMAND = long.sh\nRETRIES = 1\n");
    let third = home.serve();
    home.publish("long x", b"");
    let begun = || fs::read_to_string(home.path().join("long")).unwrap_or_default();
    wait_until("it to run", || if begun().is_empty() { Err("it doesn't") } else { Ok(()) });
    third.stop();
    fs::write(home.path().join("go"), "").expect("a file");
    let fourth = home.serve();
    wait_until("it to have run again", || match begun().lines().collect::<Vec<_>>()[..] {
        [first, second] if first == second => Ok(()),
        _ => Err(begun()),
    });
    fourth.stop();
    assert_eq!(count(), 4, "nothing of the other was left to be repeated");
}

/// A store that can't be opened costs its hooks and the log, and says so; nothing else.
#[test]
fn a_damaged_store_costs_nothing_else() {
    let home = Home::default();
    home.serve().stop();
    let file = home.path().join("state/hooks.db");
    fs::write(&file, [b'x'; 4096]).expect("our own file");
    home.hook("of-a-file", "NAME = of-a-file\nTYPE = event\nPREFIX = \"app \"\nCOMMAND = touch\nARGUMENTS = ran\n");
    let _ = home.script("touch", &format!("#!/bin/sh\ntouch {}/ran\n", home.path().display()));
    let daemon = home.serve();
    let refused = home.run(&["hook", "create", &template(&home, "x", "NAME = x\n")]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        told(&refused).contains("there is no store of hooks") && told(&refused).contains("hooks.db"),
        "{}",
        told(&refused)
    );
    let listed = home.run(&["hook", "list"]);
    assert!(out(&listed).contains("of-a-file") && told(&listed).contains("warning: there is no store of hooks"));
    assert!(out(&home.run(&["status"])).contains("hooks.db"));
    assert!(home.run(&["publish", "app x", "-"]).status.success());
    wait_until("the hook to have run", || home.path().join("ran").exists().then_some(()).ok_or("it has not"));
    assert_eq!(fs::read(&file).unwrap().len(), 4096, "it is as it was");
    daemon.stop();
}
