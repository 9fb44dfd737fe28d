//! What the tests share: an executor with hooks that are shell scripts, and a look at what is left of them.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]
#![allow(dead_code, reason = "each test file uses its part")]

pub(crate) mod oned;
pub(crate) mod recorded;

use std::fs;
use std::future::Future;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hookbus_bridges::PAYLOAD_BASE64;
use hookbus_bridges::opennebula::{Input, Parser};
use hookbus_broker::{Broker, Message};
use hookbus_hem::{Executor, ExecutorOptions, HookSet, Kept, Record, Recorder};
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// How long a test waits for what should come soon; a test that passes never waits for it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Only one test that looks at the whole process runs at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Runs a test on a runtime of its own, and then looks whether anything is left of it: a child, dead or alive, or a descriptor.
pub(crate) fn alone<F: Future<Output = ()>>(test: impl FnOnce() -> F) {
    let _alone = ALONE.lock();
    // What the first runtime of the process opens for good (the signal pipe) is opened now.
    runtime()
        .block_on(async { drop(Executor::start(&Broker::default(), HookSet::default(), options(Path::new("/")))) });
    let descriptors = open_descriptors();
    runtime().block_on(test());
    wait_until("no child to be left", || match children() {
        left if left.is_empty() => Ok(()),
        left => Err(format!("{left:?}")),
    });
    wait_until("no descriptor to be left", || match open_descriptors() {
        left if left.len() <= descriptors.len() => Ok(()),
        left => Err(format!("{left:?}, at first {descriptors:?}")),
    });
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Asks again and again until the answer is `Ok`.
pub(crate) fn wait_until<T>(what: &str, mut ask: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(seen) if start.elapsed() > PATIENCE => panic!("waited in vain for {what}; seen last: {seen}"),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// As [`wait_until`], on a runtime.
pub(crate) async fn wait<T>(what: &str, mut ask: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(seen) if start.elapsed() > PATIENCE => panic!("waited in vain for {what}; seen last: {seen}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

fn open_descriptors() -> Vec<String> {
    let open = fs::read_dir("/proc/self/fd").unwrap().flatten();
    let mut open: Vec<String> =
        open.map(|entry| format!("{:?} {:?}", entry.file_name(), fs::read_link(entry.path()).ok())).collect();
    open.sort();
    open
}

/// State, parent and number of each process: fields of `/proc/<pid>/stat`.
fn processes() -> Vec<(String, u32, u32)> {
    let numbers = fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    let stat = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?, pid))
    };
    numbers.filter_map(stat).collect()
}

/// The children of this process, zombies among them.
fn children() -> Vec<(String, u32, u32)> {
    processes().into_iter().filter(|(_, parent, _)| *parent == std::process::id()).collect()
}

/// Whether a process is there and no zombie.
pub(crate) fn is_alive(pid: u32) -> bool {
    processes().into_iter().any(|(state, _, number)| number == pid && state != "Z" && state != "X")
}

/// A field of our own `/proc/self/status` in KiB.
pub(crate) fn status_kib(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Options for a test: nothing waits for long.
pub(crate) fn options(base_path: &Path) -> ExecutorOptions {
    let mut options = ExecutorOptions::default();
    options.base_path = base_path.to_owned();
    options.kill_grace = Duration::from_millis(300);
    options.linger = Duration::from_millis(300);
    options
}

#[derive(Debug)]
struct Sender(mpsc::UnboundedSender<Arc<Record>>);

impl Recorder for Sender {
    fn record(&self, record: &Arc<Record>) -> Option<Kept> {
        let _ = self.0.send(Arc::clone(record));
        None
    }
}

/// A directory for scripts and templates, and what runs there.
pub(crate) struct Rig {
    pub(crate) directory: TempDir,
    pub(crate) broker: Broker,
    sender: mpsc::UnboundedSender<Arc<Record>>,
    records: mpsc::UnboundedReceiver<Arc<Record>>,
}

impl Rig {
    pub(crate) fn new() -> Self {
        let (sender, records) = mpsc::unbounded_channel();
        Rig { directory: tempfile::tempdir().unwrap(), broker: Broker::default(), sender, records }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What a script has written to a file of that name, or why it can't be read.
    pub(crate) fn read(&self, name: &str) -> Result<String, String> {
        fs::read_to_string(self.path(name)).map_err(|e| format!("{name}: {e}"))
    }

    /// The number of the process that a script wrote to a file, once it is there.
    pub(crate) async fn pid(&self, name: &str) -> u32 {
        wait(name, || self.read(name)?.trim().parse().map_err(|e| format!("{e}"))).await
    }

    /// Writes an executable file.
    pub(crate) fn script(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// What stands in for ssh: it runs the command here, as a login shell there would, unless the host is called `down`.
    pub(crate) fn ssh(&self) -> PathBuf {
        self.script(
            "ssh",
            "#!/bin/sh\n[ \"$1\" = -n ] && { shift; exec </dev/null; }\n[ \"$1\" = -- ] || exit 99\nhost=$2; shift 2\n\
             case $host in *down*) echo \"ssh: connect to host $host port 22: No route to host\" >&2; exit 255;; esac\n\
             export TEST_HOST=\"$host\"\nexec sh -c \"$*\"\n",
        );
        self.path("ssh")
    }

    /// Writes the template of a hook.
    pub(crate) fn template(&self, name: &str, text: &str) {
        fs::write(self.path(&format!("{name}.tmpl")), text).unwrap();
    }

    /// A hook that runs a shell script, in the rig's directory, when [`fire`](Rig::fire) is called with its name.
    pub(crate) fn shell(&self, name: &str, body: &str, more: &str) {
        let directory = self.directory.path().display();
        self.script(&format!("{name}.sh"), &format!("#!/bin/sh\ncd {directory}\n{body}\n"));
        self.template(
            name,
            &format!("NAME = {name}\nTYPE = event\nPREFIX = \"test {name} \"\nCOMMAND = {name}.sh\n{more}\n"),
        );
    }

    /// The hooks whose templates were written.
    pub(crate) fn hooks(&self) -> HookSet {
        let loaded = hookbus_hem::load(self.directory.path());
        assert_eq!(loaded.problems, [], "a template of the test");
        HookSet::new(loaded.hooks)
    }

    pub(crate) fn options(&self) -> ExecutorOptions {
        let mut options = options(self.directory.path());
        options.recorders.push(Arc::new(Sender(self.sender.clone())));
        options
    }

    pub(crate) fn start(&self) -> Executor {
        self.start_with(|_| {})
    }

    pub(crate) fn start_with(&self, change: impl FnOnce(&mut ExecutorOptions)) -> Executor {
        let mut options = self.options();
        change(&mut options);
        Executor::start(&self.broker, self.hooks(), options)
    }

    pub(crate) async fn fire(&self, name: &str) {
        self.broker.publish(Message::new(format!("test {name} "), "")).await.unwrap();
    }

    /// The next record.
    pub(crate) async fn record(&mut self) -> Arc<Record> {
        timeout(PATIENCE, self.records.recv()).await.expect("a record comes").unwrap()
    }

    /// A record, if there is one already.
    pub(crate) fn try_record(&mut self) -> Option<Arc<Record>> {
        self.records.try_recv().ok()
    }
}

/// A recorded file.
pub(crate) fn fixture(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/opennebula").join(name);
    let file = fs::File::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut bytes = Vec::new();
    ruzstd::decoding::StreamingDecoder::new(file).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

/// The lines of a recording, each an object.
pub(crate) fn json_lines(name: &str) -> Vec<serde_json::Value> {
    let text = String::from_utf8(fixture(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// All events that a real oned told its driver, in its order.
pub(crate) fn recorded_events() -> Vec<Message> {
    let mut parser = Parser::new();
    let lines = fixture("oned-to-driver.txt.zst");
    let lines = lines.split(|&byte| byte == b'\n').filter(|line| line.starts_with(b"EXECUTE "));
    lines
        .map(|line| match parser.line(line.to_vec().into()) {
            Ok(Input::Message { message, .. }) => message,
            other => panic!("{other:?}"),
        })
        .collect()
}

/// An event as it comes from oned, with the keys that it has on the bus.
pub(crate) fn opennebula(keys: &[&str], xml: &str) -> Message {
    let payload = BASE64_STANDARD.encode(xml);
    let message = Message::new(keys[0], payload).with_tag(PAYLOAD_BASE64);
    keys[1..].iter().fold(message, Message::with_key)
}

/// The event of an API call whose CALL_INFO holds `info`.
pub(crate) fn api_call(call: &str, result: u8, info: &str) -> Message {
    let xml = format!(
        "<HOOK_MESSAGE><HOOK_TYPE>API</HOOK_TYPE><CALL>{call}</CALL><CALL_INFO><RESULT>{result}</RESULT>{info}</CALL_INFO></HOOK_MESSAGE>"
    );
    opennebula(&[&format!("EVENT API {call} {result}")], &xml)
}

/// The event of a machine that came into a state.
pub(crate) fn vm_state(id: u32, state: &str, lcm_state: &str, inside: &str) -> Message {
    vm_state_on("", id, state, lcm_state, inside)
}

/// The same, with the host that the machine is on.
pub(crate) fn vm_state_on(host: &str, id: u32, state: &str, lcm_state: &str, inside: &str) -> Message {
    let xml = format!(
        "<HOOK_MESSAGE><HOOK_TYPE>STATE</HOOK_TYPE><HOOK_OBJECT>VM</HOOK_OBJECT><STATE>{state}</STATE>\
         <LCM_STATE>{lcm_state}</LCM_STATE><RESOURCE_ID>{id}</RESOURCE_ID><REMOTE_HOST>{host}</REMOTE_HOST><VM><ID>{id}</ID>{inside}</VM></HOOK_MESSAGE>"
    );
    let keys = [format!("EVENT VM {id}/{state}/{lcm_state} "), format!("EVENT STATE VM/{state}/{lcm_state}/{id} ")];
    opennebula(&[&keys[0], &keys[1]], &xml)
}
