//! `hookbus-hem` in the place of OpenNebula's executor: beside our driver, and beside a daemon whose journal it follows.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::{Child, Command};
use std::thread;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hookbus_tests::{Hm, Home, events, hookbus, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// What oned answers to `one.hookpool.info`, to whoever asks, until the test ends.
fn oned_with(pool: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let text = pool.replace('&', "&amp;").replace('<', "&lt;");
    let body = format!(
        "<?xml version=\"1.0\"?><methodResponse><params><param><value><array><data><value><boolean>1</boolean></value>\
         <value><string>{text}</string></value><value><i4>0</i4></value></data></array></value></param></params></methodResponse>"
    );
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = Vec::new();
            let mut some = [0; 4096];
            while !request.trim_ascii_end().ends_with(b"</methodCall>") {
                match stream.read(&mut some) {
                    Ok(n @ 1..) => request.extend_from_slice(&some[..n]),
                    _ => break,
                }
            }
            let answer =
                format!("HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    format!("http://{address}/RPC2")
}

/// A front-end with a hookbus-hem; it outlives the processes that are started in it.
struct FrontEnd {
    home: TempDir,
    oned: String,
    hem: Option<Child>,
}

impl FrontEnd {
    fn new(subscriber: &str, replier: &str, pool: &'static str) -> Self {
        let home = TempDir::new().expect("a directory");
        for directory in ["etc", "var", ".one"] {
            fs::create_dir(home.path().join(directory)).expect("a directory");
        }
        fs::write(home.path().join(".one/one_auth"), "oneadmin:secret").expect("a file");
        let base = home.path().display();
        let config =
            format!(":subscriber_endpoint: {subscriber}\n:replier_endpoint: {replier}\n:hook_base_path: {base}\n");
        fs::write(home.path().join("etc/onehem-server.conf"), config).expect("a file");
        FrontEnd { home, oned: oned_with(pool), hem: None }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.home.path().join("var/onehem.log")).unwrap_or_default()
    }

    fn logged(&self, text: &str, times: usize) {
        wait_until(text, || match self.log() {
            log if log.matches(text).count() >= times => Ok(()),
            log => Err(log),
        });
    }

    /// Starts it, and waits until it has its hooks.
    fn start(&mut self) {
        let before = self.log().matches("hooks loaded from").count();
        let hem = Command::new(hookbus().with_file_name("hookbus-hem"))
            .env_clear()
            .env("HOME", self.home.path())
            .env("ONE_LOCATION", self.home.path())
            .env("ONE_XMLRPC", &self.oned)
            .spawn();
        self.hem = Some(hem.expect("hookbus-hem was built with the rest"));
        self.logged("hooks loaded from", before + 1);
    }

    fn kill(&mut self) {
        let mut hem = self.hem.take().expect("it runs");
        hem.kill().expect("it runs");
        hem.wait().expect("our own child");
    }

    fn stop(&mut self) {
        let mut hem = self.hem.take().expect("it runs");
        kill_process(Pid::from_child(&hem), Signal::TERM).expect("it runs");
        assert!(hem.wait().expect("our own child").success());
    }
}

impl Drop for FrontEnd {
    fn drop(&mut self) {
        if let Some(hem) = &mut self.hem {
            let _ = hem.kill();
            let _ = hem.wait();
        }
    }
}

/// Our driver and our executor in the places of OpenNebula's: from oned's line to oned's line.
#[test]
fn it_runs_oneds_hooks_beside_our_driver() {
    let mut hm = Hm::start();
    let mut front_end = FrontEnd::new(
        &hm.url(),
        &hm.logger_url(),
        "<HOOK_POOL><HOOK><ID>3</ID><NAME>say</NAME><TYPE>state</TYPE><TEMPLATE><COMMAND>/bin/echo</COMMAND>\
         <ARGUMENTS>$ID &amp;&amp; $NAME</ARGUMENTS><RESOURCE>VM</RESOURCE><STATE>ACTIVE</STATE><LCM_STATE>RUNNING</LCM_STATE></TEMPLATE>\
         </HOOK></HOOK_POOL>",
    );
    front_end.start();
    hm.feed(&events::vm(42, "ACTIVE", "RUNNING", "").line);
    let line = hm.program.stdout.lines(2).pop().expect("the answer to INIT, and a result");
    let line = String::from_utf8(line).expect("text");
    let result = line.strip_prefix("EXECUTE SUCCESS 3 0 ").unwrap_or_else(|| panic!("{line}"));
    let result = BASE64_STANDARD.decode(result).expect("base64");
    assert_eq!(
        String::from_utf8_lossy(&result),
        "<ARGUMENTS>42 '&amp;&amp;' vm-42</ARGUMENTS><EXECUTION_RESULT><COMMAND>/bin/echo 42 '&amp;&amp;' vm-42</COMMAND>\
         <STDOUT>NDIgJiYgdm0tNDIK\n</STDOUT><STDERR></STDERR><CODE>0</CODE></EXECUTION_RESULT>"
    );
    front_end.stop();
    hm.finalize();
}

const NOTE: &str = "<HOOK_POOL><HOOK><ID>3</ID><NAME>note</NAME><TYPE>state</TYPE><TEMPLATE><COMMAND>note.sh</COMMAND>\
    <RESOURCE>VM</RESOURCE><STATE>ACTIVE</STATE><LCM_STATE>RUNNING</LCM_STATE></TEMPLATE></HOOK></HOOK_POOL>";

/// With a daemon's journal it misses nothing: not while it is down, not while the daemon is, not when it is killed in the middle of a hook.
#[test]
fn with_a_daemons_journal_it_misses_nothing() {
    let home = Home::new("[journal]\nenabled = true\n");
    let daemon = home.serve();
    let mut hm = home.driver();
    let socket = format!("unix://{}", home.socket().display());
    let mut front_end = FrontEnd::new(&socket, &home.logger_url(), NOTE);
    let directory = front_end.home.path().display().to_string();
    let script = home.script(
        "note.sh",
        &format!("#!/bin/sh\ncd {directory}\necho $HOOKBUS_ID $1 >> begun\nuntil [ -e go ]; do sleep 0.01; done\necho $HOOKBUS_ID $1 >> ran\n"),
    );
    fs::copy(script, front_end.home.path().join("note.sh")).expect("a file");
    fs::write(front_end.home.path().join("go"), "").expect("a file");
    let lines = |name: &str| {
        let text = fs::read_to_string(format!("{directory}/{name}")).unwrap_or_default();
        text.lines().map(|line| line.trim().to_owned()).collect::<Vec<_>>()
    };
    let ran = |expected: &[&str]| {
        wait_until("the hooks", || match lines("ran") {
            ran if expected.iter().all(|id| ran.iter().any(|line| line == id)) => Ok(()),
            ran => Err(format!("{ran:?}")),
        });
    };
    let running = |id: u32| events::vm(id, "ACTIVE", "RUNNING", "").line;

    // What was before the first start is nothing to it.
    hm.feed(&running(1));
    wait_until("it to be in the journal", || match home.status()["journal"]["last"].as_u64() {
        Some(1) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    front_end.start();
    hm.feed(&running(2));
    ran(&["2"]);
    front_end.stop();
    // While it is down; the first is for no hook.
    hm.feed(&events::vm(3, "PENDING", "LCM_INIT", "").line);
    for id in 4..8 {
        hm.feed(&running(id));
    }
    front_end.start();
    ran(&["4", "5", "6", "7"]);
    assert_eq!(lines("ran").len(), 5, "each once: it was stopped in order; {:?}", lines("ran"));

    // The daemon goes and comes back; what the driver has kept for it is in its journal then.
    daemon.stop();
    hm.feed(&running(8));
    let daemon = home.serve();
    ran(&["8"]);

    // Killed in the middle.
    fs::remove_file(front_end.home.path().join("go")).expect("our file");
    hm.feed(&running(9));
    wait_until("it to begin", || {
        if lines("begun").contains(&"9".into()) { Ok(()) } else { Err(lines("begun").join(" ")) }
    });
    front_end.kill();
    hm.feed(&running(10));
    fs::write(front_end.home.path().join("go"), "").expect("a file");
    front_end.start();
    ran(&["9", "10"]);
    wait_until("9 to be begun again", || match lines("begun").iter().filter(|id| *id == "9").count() {
        2 => Ok(()),
        other => Err(other),
    });
    front_end.logged("connected to the daemon, whose journal is followed", 4);

    // What somebody wants to run again comes the same way.
    let arguments = BASE64_STANDARD.encode("again");
    let xml = format!("<HOOK_MESSAGE><ARGUMENTS>{arguments}</ARGUMENTS><HOOK_ID>3</HOOK_ID></HOOK_MESSAGE>");
    hm.feed(format!("RETRY  -1 {} \n", BASE64_STANDARD.encode(xml)).as_bytes());
    ran(&["again"]);

    // A journal that was thrown away is another one, and read from its beginning.
    daemon.stop();
    fs::remove_dir_all(home.path().join("state/journal")).expect("the daemon's journal");
    hm.feed(&running(11));
    let daemon = home.serve();
    front_end.logged("the daemon has another journal than before", 1);
    ran(&["11"]);
    front_end.stop();
    hm.finalize();
    daemon.stop();
}
