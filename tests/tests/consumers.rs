//! The programs of clients/examples, each against the real server of its bus and our daemon, with everything that a real oned wrote.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use hookbus_tests::tools::{Tool, workspace};
use hookbus_tests::{Hm, HmOptions, Home, Kind, Server, events, fixtures, wait_until};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};

#[test]
fn nats_in_python() {
    if Tool::NatsPy.wanted() {
        consumes(Kind::Nats, || Tool::NatsPy.command(), "nats_consumer.py");
    }
}

#[test]
fn mqtt_in_python() {
    if Tool::Python.wanted() {
        consumes(Kind::Mqtt, || Tool::Python.command(), "mqtt_consumer.py");
    }
}

#[test]
fn mqtt_in_javascript() {
    if Tool::Node.wanted() {
        consumes(Kind::Mqtt, || Tool::Node.command(), "mqtt_consumer.js");
    }
}

#[test]
fn mqtt_in_shell() {
    consumes(Kind::Mqtt, || Command::new("bash"), "mqtt_consumer.sh");
}

#[test]
fn amqp_in_python() {
    if Tool::Python.wanted() {
        consumes(Kind::Amqp, || Tool::Python.command(), "amqp_consumer.py");
    }
}

#[test]
fn amqp_in_javascript() {
    if Tool::Node.wanted() {
        consumes(Kind::Amqp, || Tool::Node.command(), "amqp_consumer.js");
    }
}

#[test]
fn zeromq_in_python() {
    if Tool::Python.wanted() {
        subscribes(Tool::Python, "zeromq_consumer.py");
    }
}

#[test]
fn zeromq_in_javascript() {
    if Tool::Node.wanted() {
        subscribes(Tool::Node, "zeromq_consumer.js");
    }
}

#[test]
fn zeromq_in_ruby() {
    if Tool::Ruby.wanted() {
        subscribes(Tool::Ruby, "zeromq_consumer.rb");
    }
}

/// It prints what the recording says, over a restart of the server, and knows repetitions; what comes while it is away waits for it.
fn consumes(kind: Kind, interpreter: impl Fn() -> Command, file: &str) {
    let mut server = Server::start(kind);
    let home = Home::new(&server.bridge(""));
    let serve = home.serve();
    home.until_bridge(&kind.to_string(), "to be ready", |bridge| bridge["state"] == "ready");
    let consumer = Consumer::start(interpreter(), file, &server.url());
    consumer.until_said("consuming");
    if kind == Kind::Mqtt {
        // The shell can't say when it has subscribed; the server can.
        wait_until("the subscription", || match server.log() {
            log if log.contains("Sending SUBACK to vm-states") => Ok(()),
            log => Err(log),
        });
    }

    let mut hm = forwarding(&home);
    let lines = fixtures::event_lines();
    let mut expected = states(&lines);
    assert_eq!(expected.len(), 299, "as many as the recording's README says");
    let (first, second) = lines.split_at(lines.len() / 2);
    hm.feed(&first.concat());
    consumer.until_lines(states(first).len());
    server.go_down();
    hm.feed(&second.concat());
    server.come_up();
    consumer.until_lines(expected.len());

    for (id, vm) in [("again", 1), ("again", 1), ("another", 2)] {
        let (parts, event) = stopped(vm, id);
        server.inject(&parts.each_ref().map(String::as_str), &event);
    }
    expected.extend(["VM 1 is STOPPED".to_owned(), "VM 2 is STOPPED".to_owned()]);
    consumer.until_lines(expected.len());
    if kind == Kind::Mqtt {
        // It acknowledges what it has printed, a moment later; SIGTERM in between would have the last come again.
        wait_until("the last acknowledgement", || match server.log() {
            log if is_acknowledged(&log) == Some(true) => Ok(()),
            log => Err(log),
        });
    }
    assert_eq!(consumer.end(), expected);

    hm.feed(&events::vm(4242, "ACTIVE", "RUNNING", "").line);
    let consumer = Consumer::start(interpreter(), file, &server.url());
    consumer.until_lines(1);
    assert_eq!(
        consumer.end(),
        ["VM 4242 is RUNNING"],
        "what came while it was away, and nothing that it had acknowledged"
    );
    hm.finalize();
    serve.stop();
}

/// Whether Mosquitto has an acknowledgement for the last message that it has sent.
fn is_acknowledged(log: &str) -> Option<bool> {
    let (_, last) = log.rsplit_once("Sending PUBLISH to vm-states (")?;
    let id = last.split(", m").nth(1)?.split(',').next()?;
    Some(last.contains(&format!("Received PUBACK from vm-states (Mid: {id},")))
}

/// It prints what the recording says.
fn subscribes(tool: Tool, file: &str) {
    let home = Home::default();
    let serve = home.serve();
    let consumer = Consumer::start(tool.command(), file, &home.url());
    let mut hm = forwarding(&home);
    // Whether it has subscribed can't be seen, so there are probes until it gets one.
    let mut probes = 0;
    wait_until("the subscription", || {
        hm.feed(&events::vm(1, "ACTIVE", "PROBE", "").line);
        probes += 1;
        if consumer.lines().is_empty() { Err(format!("{probes} probes were for nothing")) } else { Ok(()) }
    });
    let lines = fixtures::event_lines();
    let mut expected = states(&lines);
    hm.feed(&lines.concat());
    hm.feed(&events::vm(4242, "DONE", "LCM_INIT", "").line);
    // The recording knows no such machine.
    expected.push("VM 4242 is DONE".into());
    wait_until("the last event", || match consumer.lines() {
        lines if lines.last().is_some_and(|line| line == "VM 4242 is DONE") => Ok(()),
        lines => Err(format!("{} lines", lines.len())),
    });
    let mut seen = consumer.end();
    let probes = seen.iter().take_while(|line| *line == "VM 1 is PROBE").count();
    assert_eq!(seen.split_off(probes), expected);
    hm.finalize();
    serve.stop();
}

fn forwarding(home: &Home) -> Hm {
    HmOptions::default().arguments(&format!("--forward {}", home.socket().display())).start()
}

/// What a consumer prints for these lines of the recording: for the keys that a subscriber to `EVENT STATE VM/` gets.
fn states(lines: &[Vec<u8>]) -> Vec<String> {
    let messages = fixtures::expected(lines);
    let keys = messages.iter().filter_map(|message| message.key().strip_prefix(b"EVENT STATE VM/"));
    keys.map(|key| {
        let key = String::from_utf8(key.to_vec()).expect("states are ASCII");
        let parts: Vec<&str> = key.trim_end().split('/').collect();
        let [state, lcm_state, id] = parts[..] else { panic!("{key}") };
        format!("VM {id} is {}", if state == "ACTIVE" { lcm_state } else { state })
    })
    .collect()
}

/// An event that hookbus might have published, and the parts of its name.
fn stopped(vm: u32, id: &str) -> ([String; 7], Value) {
    let parts = ["hookbus", "opennebula", "state", "vm", "STOPPED", "LCM_INIT", &vm.to_string()].map(str::to_owned);
    let event = json!({
        "specversion": "1.0", "id": id, "source": "/opennebula/test", "type": "org.opennebula.state.vm", "subject": format!("vm/{vm}"),
        "hookbuskey": format!("EVENT STATE VM/STOPPED/LCM_INIT/{vm} "),
        "data": {"HOOK_TYPE": "STATE", "HOOK_OBJECT": "VM", "STATE": "STOPPED", "LCM_STATE": "LCM_INIT", "RESOURCE_ID": vm.to_string()},
    });
    (parts, event)
}

/// An example that runs, in a process group of its own; all of it is killed when this is dropped.
struct Consumer {
    child: Child,
    printed: Arc<Mutex<Vec<String>>>,
    said: Arc<Mutex<String>>,
    printer: Option<thread::JoinHandle<()>>,
}

impl Consumer {
    fn start(mut command: Command, file: &str, url: &str) -> Self {
        let mut child = command
            .arg(workspace().join("clients/examples").join(file))
            .arg(url)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("{file} can't be started: {error}"));
        let (printed, said) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<Mutex<String>>::default());
        let output = BufReader::new(child.stdout.take().expect("it was piped"));
        let lines = Arc::clone(&printed);
        let printer = thread::spawn(move || {
            for line in output.lines() {
                lines.lock().expect("nobody panics while holding it").push(line.expect("what it prints is UTF-8"));
            }
        });
        let mut errors = child.stderr.take().expect("it was piped");
        let heard = Arc::clone(&said);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = errors.read(&mut buffer) {
                heard
                    .lock()
                    .expect("nobody panics while holding it")
                    .push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
        });
        Self { child, printed, said, printer: Some(printer) }
    }

    /// What it has printed so far.
    fn lines(&self) -> Vec<String> {
        self.printed.lock().expect("nobody panics while holding it").clone()
    }

    /// What it has said on standard error.
    fn said(&self) -> String {
        self.said.lock().expect("nobody panics while holding it").clone()
    }

    fn until_said(&self, text: &str) {
        wait_until(&format!("`{text}`"), || match self.said() {
            said if said.contains(text) => Ok(()),
            said => Err(said),
        });
    }

    fn until_lines(&self, count: usize) {
        wait_until(&format!("{count} lines"), || match self.lines() {
            lines if lines.len() >= count => Ok(()),
            lines => Err(format!("{}, and it said: {}", lines.len(), self.said())),
        });
    }

    /// SIGTERM; it must end well. Gives all that it has printed.
    fn end(mut self) -> Vec<String> {
        nix::sys::signal::kill(self.pid(), Signal::SIGTERM).expect("it runs");
        let status = wait_until("its end after SIGTERM", || {
            self.child.try_wait().expect("our own child").ok_or_else(|| self.said())
        });
        assert!(status.success(), "it ended with {status}: {}", self.said());
        let printed = self.printer.take().expect("it is joined once").join();
        printed.expect("its output is read to the end");
        self.lines()
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        let _ = killpg(self.pid(), Signal::SIGKILL);
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- the consumer said:\n{}", self.said());
        }
    }
}
