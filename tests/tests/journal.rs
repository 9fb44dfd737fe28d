//! The journal as operators and scripts meet it: the past read again, cursors, dead letters.

use std::process::{Command, Output};

use hookbus_tests::servers::nats::NatsServer;
use hookbus_tests::{HmOptions, Home, Kind, Server, events, wait_until};
use serde_json::Value;

const JOURNAL: &str = "[journal]\nenabled = true\nmax_bytes = \"16MiB\"\n";

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).expect("text")
}

fn json(output: &Output) -> Value {
    serde_json::from_str(&text(output)).expect("JSON")
}

fn refused(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr.clone()).expect("text")
}

/// What was published is read again: from the start, from an offset, by who comes back, also after a daemon was killed.
#[test]
fn the_past_can_be_read_again() {
    let home = Home::new(JOURNAL);
    let mut serve = home.serve();
    let mut ids = Vec::new();
    for number in 0..5 {
        ids.push(home.publish(&format!("past/{number}"), format!("{number}").as_bytes())["id"].clone());
    }
    serve.program.kill();
    let serve = home.serve();
    ids.push(home.publish("past/5", b"5")["id"].clone());

    let mut all = home.follow("from=earliest&prefix=past%2F");
    for (number, id) in ids.iter().enumerate() {
        let event = all.event();
        assert_eq!((&event.data["id"], &event.data["data"]), (id, &Value::from(number.to_string())), "{event:?}");
    }
    home.publish("past/6", b"6");
    let last = all.event();
    assert_eq!(last.data["data"], "6", "it goes on with what is new");

    let some = home.run(&["tail", "-o", "json", "--from", "3", "--count", "2", "past/"]);
    let numbers: Vec<Value> =
        text(&some).lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")["data"].clone()).collect();
    assert_eq!(numbers, ["2", "3"], "offsets begin at 1");
    assert_eq!(text(&home.run(&["tail", "-o", "raw", "--from", "1h", "--count", "1"])), "0\n");

    // Who comes back goes on behind what it has seen, with no gap.
    let mut back = home.curl_command("/v1/events", &["--no-buffer", "--max-time", "20", "-H", "Last-Event-ID: 4"]);
    let mut back = back.stdout(std::process::Stdio::piped()).spawn().expect("curl is installed");
    let lines = std::io::BufRead::lines(std::io::BufReader::new(back.stdout.take().expect("it was piped")));
    let heard: Vec<String> = lines
        .map(|line| line.expect("text"))
        .filter(|line| line.starts_with("id:") || line.contains("gap"))
        .take(2)
        .collect();
    assert_eq!((&*heard[0], &*heard[1]), ("id: 5", &*format!("id: {}", last_but_one(&last.id))));
    back.kill().expect("it runs");
    back.wait().expect("it was killed");

    let status = home.status();
    assert_eq!(status["journal"]["damage"], serde_json::json!([]));
    assert!(text(&home.run(&["status"])).contains("journal"));
    serve.stop();
}

fn last_but_one(id: &str) -> u64 {
    id.parse::<u64>().expect("an offset") - 1
}

/// A bridge goes on where it was. A cursor that nothing uses any more is shown, and can be deleted; one in use can't.
#[test]
fn a_cursor_outlives_its_bridge_until_it_is_deleted() {
    let server = NatsServer::start();
    let bridge = format!("[[bridge]]\nname = \"ops\"\ntype = \"nats\"\nurl = \"{}\"\n", server.url());
    let home = Home::new(&bridge);
    let serve = home.serve();
    home.publish("a/b", b"x");
    home.until_bridge("ops", "to have delivered it", |bridge| bridge["confirmed"] == 1);
    let listed = json(&home.run(&["cursor", "list", "-o", "json"]));
    assert_eq!(listed["cursors"][0]["name"], "bridge/ops");
    assert_eq!(listed["cursors"][0]["in_use"], true);
    let told = refused(&home.run(&["cursor", "delete", "bridge/ops"]));
    assert!(told.contains("in use"), "{told}");
    let told = refused(&home.run(&["cursor", "delete", "ops"]));
    assert!(told.contains("did you mean bridge/ops?"), "{told}");
    serve.stop();

    home.configure(JOURNAL);
    let serve = home.serve();
    let shown = text(&home.run(&["cursor", "list"]));
    assert!(shown.contains("bridge/ops") && shown.contains("orphaned"), "{shown}");
    assert!(text(&home.run(&["status"])).contains("orphaned cursors: bridge/ops"));
    assert_eq!(text(&home.run(&["cursor", "delete", "bridge/ops"])), "deleted\n");
    assert_eq!(text(&home.run(&["cursor", "list"])), "no cursors\n");
    let told = refused(&home.run(&["cursor", "delete", "bridge/ops"]));
    assert!(told.contains("there is no cursor"), "{told}");
    serve.stop();
}

/// What a bus refuses for good is kept, over a restart; it can be looked at, sent again and thrown away, and holds up nothing.
#[test]
fn what_a_bus_refuses_for_good_is_a_dead_letter() {
    let server = NatsServer::start();
    let bridge = |format: &str| {
        format!("[[bridge]]\nname = \"ops\"\ntype = \"nats\"\nurl = \"{}\"\nformat = \"{format}\"\n", server.url())
    };
    // nats-server takes 1 MiB, and raw events have nothing that could be left out.
    let home = Home::new(&bridge("raw"));
    let serve = home.serve();
    let large = vec![b'x'; 2 << 20];
    let id = home.publish("large/1", &large)["id"].as_str().expect("an id").to_owned();
    home.publish("large/2", &large);
    home.publish("small", b"x");
    home.until_bridge("ops", "to have gone on", |bridge| bridge["confirmed"] == 1 && bridge["dead"] == 2);
    let listed = json(&home.run(&["dlq", "list", "-o", "json"]));
    assert_eq!(listed["total"], 2, "{listed}");
    assert_eq!(listed["letters"][0]["id"], Value::from(id.as_str()));
    assert!(listed["letters"][0]["reason"].as_str().is_some_and(|reason| reason.contains("bytes")), "{listed}");
    serve.stop();

    let serve = home.serve();
    let shown = text(&home.run(&["dlq", "list", "--bridge", "ops"]));
    assert!(shown.contains("large/1") && shown.contains("large/2"), "it outlives a restart: {shown}");
    let numbers: Vec<String> =
        listed["letters"].as_array().expect("a list").iter().map(|letter| letter["number"].to_string()).collect();
    let one = text(&home.run(&["dlq", "show", &numbers[0]]));
    assert!(one.contains(&id) && one.contains("large/1"), "{}", &one[..one.len().min(500)]);
    assert_eq!(text(&home.run(&["dlq", "purge", &numbers[1]])), "1 thrown away\n");
    let told = refused(&home.run(&["dlq", "show", &numbers[1]]));
    assert!(told.contains("there is no dead letter"), "{told}");
    for (command, expected) in [
        (&["dlq", "purge", &numbers[1]][..], "there is no dead letter"),
        (&["dlq", "retry", "999"], "there is no dead letter 999"),
        (&["dlq", "retry", "--bridge", "opps"], "there are no dead letters of `opps`"),
        (&["dlq", "list", "--bridge", "opps"], "there is no bridge `opps`"),
    ] {
        let told = refused(&home.run(command));
        assert!(told.contains(expected), "{command:?}: {told}");
    }
    // It is refused again, and stays.
    assert_eq!(text(&home.run(&["dlq", "retry", &numbers[0]])), "1 on the way again\n");
    wait_until("it to be refused again", || {
        let letter = json(&home.run(&["dlq", "show", &numbers[0], "-o", "json"]));
        match (letter["replays"].as_u64(), &letter["retrying"]) {
            (Some(1), Value::Bool(false)) => Ok(()),
            _ => Err(letter["replays"].clone()),
        }
    });
    serve.stop();

    // As a CloudEvent it can go without its data.
    home.configure(&bridge("cloudevents"));
    let serve = home.serve();
    home.until_bridge("ops", "to be ready", |bridge| bridge["state"] == "ready");
    assert_eq!(text(&home.run(&["dlq", "retry", "--all"])), "1 on the way again\n");
    home.until_bridge("ops", "to have delivered it", |bridge| bridge["confirmed"] == 1 && bridge["omitted"] == 1);
    wait_until("it to be gone", || match text(&home.run(&["dlq", "list"])) {
        none if none == "no dead letters\n" => Ok(()),
        some => Err(some),
    });
    for wrong in [&["dlq", "retry"][..], &["dlq", "retry", "1", "--all"], &["dlq", "show", "x"]] {
        assert_eq!(home.run(wrong).status.code(), Some(2), "{wrong:?}");
    }
    serve.stop();
}

/// A driver that oned starts has bridges, too. What comes while another process owns the state directory is kept for its journal.
#[test]
fn a_driver_delivers_to_a_bus_also_what_came_before_it_had_its_journal() {
    let server = Server::start(Kind::Nats);
    let home = Home::new(&server.bridge(""));
    let serve = home.serve();
    home.until_bridge("nats", "to be ready", |bridge| bridge["state"] == "ready");
    home.publish("before", b"x");
    home.until_bridge("nats", "to have delivered it", |bridge| bridge["confirmed"] == 1);
    let config = home.config();
    let mut hm = HmOptions::default().arguments(&format!("--config {}", config.display())).start();
    let owner = format!("in use by process {}", serve.program.pid());
    hm.program.stdout.until("why it waits", |seen| String::from_utf8_lossy(seen).contains(&owner).then_some(()));
    for vm in 0..50 {
        hm.feed(&events::vm(vm, "ACTIVE", "RUNNING", "").line);
    }
    serve.stop();
    wait_until("the driver to take over", || match home.request("GET", "/v1/status", &[], b"") {
        Ok(answer) if answer.status == 200 && answer.json()["bridges"][0]["confirmed"] == 50 => Ok(()),
        Ok(answer) => Err(answer.text()),
        Err(e) => Err(e.to_string()),
    });
    for vm in 50..60 {
        hm.feed(&events::vm(vm, "ACTIVE", "RUNNING", "").line);
    }
    let bridge = home.until_bridge("nats", "to have delivered all of them", |bridge| bridge["confirmed"] == 60);
    assert_eq!(bridge["duplicates"], 0, "one log goes on where the other process left it: no id stands for two events");
    hm.finalize();
}

/// A disk that is really full, and has room again: what doesn't fit is refused before anybody has it, what was accepted is kept, and
/// hookbus goes on by itself.
#[test]
fn a_full_disk_and_back() {
    let home = Home::new("[journal]\nenabled = true\nmax_bytes = \"64MiB\"\n");
    let disk = home.path().join("disk");
    std::fs::create_dir(&disk).expect("a directory");
    let disk = disk.to_str().expect("a plain path").to_owned();
    home.configure(&format!("[journal]\nenabled = true\nmax_bytes = \"64MiB\"\npath = \"{disk}/journal\"\n"));
    let mount = "mount -t tmpfs -o size=24m,mode=777 none \"$0\" && head -c 12M /dev/zero > \"$0/ballast\" && exec /usr/bin/python3 \"$@\"";
    // A file system of its own, seen by the daemon alone.
    let mut own = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        own.arg("--map-root-user");
    }
    own.args(["--mount", "--", "sh", "-c", mount, &disk]);
    let serve = home.ready(home.launcher().through(own).spawn());
    let mut memory = home.follow("prefix=full%2F");

    let content = vec![b'x'; 100_000];
    let mut accepted = Vec::new();
    let refused = loop {
        let key = format!("full/{}", accepted.len());
        let answer = home.request("POST", "/v1/events", &[("ce-hookbuskey", &key)], &content).expect("an answer");
        match answer.status {
            202 => accepted.push(key),
            _ => break answer,
        }
        assert!(accepted.len() < 300, "there is no room for so many");
    };
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(refused.text().contains("the journal's disk is full"), "{}", refused.text());
    assert!(accepted.len() >= 40, "room that was set aside is used: {}", accepted.len());
    assert!(text(&home.run(&["status"])).contains("No space left on device"), "{}", text(&home.run(&["status"])));

    std::fs::remove_file(format!("/proc/{}/root{disk}/ballast", serve.program.pid())).expect("it is there");
    wait_until("it to go on", || {
        let key = format!("full/{}", accepted.len());
        let answer = home.request("POST", "/v1/events", &[("ce-hookbuskey", &key)], &content).expect("an answer");
        if answer.status != 202 {
            return Err(answer.text());
        }
        accepted.push(key);
        Ok(())
    });
    let mut past = home.follow("from=earliest&prefix=full%2F");
    for key in &accepted {
        assert_eq!(memory.event().data["hookbuskey"], **key, "what was refused went to nobody");
        assert_eq!(past.event().data["hookbuskey"], **key, "and what was accepted is there");
    }
    serve.stop();
}
