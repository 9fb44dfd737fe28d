//! `hookbus serve` with everything it needs in a directory of its own, and what people do with it: curl, the command line.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::{Deadline, Hm, HmOptions, Launched, Launcher, hookbus, ports, wait_until};

/// A directory with a configuration, hooks, state and a socket; it outlives the daemons that are started in it.
#[derive(Debug)]
pub struct Home {
    dir: TempDir,
    publisher: u16,
    logger: u16,
}

impl Default for Home {
    fn default() -> Self {
        Home::new("")
    }
}

impl Home {
    /// With `more` as a part of its configuration: sections and keys, besides those that every test needs.
    ///
    /// # Panics
    /// When it can't be made.
    #[must_use]
    pub fn new(more: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let home = Home { dir, publisher: ports::free(), logger: ports::free() };
        // The daemon runs as another user where the tests run as root.
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o777)).expect("our own directory");
        fs::create_dir(home.hooks()).expect("a directory for hooks");
        home.configure(more);
        home
    }

    /// Writes the configuration anew. A `[hooks]` or `[http]` section in `more` is merged with ours.
    ///
    /// # Panics
    /// When it can't be written.
    pub fn configure(&self, more: &str) {
        let path = self.path().display();
        let (publisher, logger) = (self.publisher, self.logger);
        let mut text = format!(
            "state_dir = \"{path}/state\"\n[log]\nfile = \"{path}/log\"\nlevel = \"debug\"\n[zeromq]\npublisher = \
             \"tcp://127.0.0.1:{publisher}\"\nlogger = \"tcp://127.0.0.1:{logger}\"\n"
        );
        let ours = [
            ("[http]", format!("socket = \"{path}/hookbus.sock\"\n")),
            ("[hooks]", format!("dir = \"{path}/hooks\"\nbase_path = \"{path}\"\n")),
            ("[ganeti]", format!("spool = \"{path}/spool\"\n")),
        ];
        let mut more = more.to_owned();
        for (section, keys) in ours {
            match more.find(section) {
                Some(at) => more.insert_str(at + section.len(), &format!("\n{keys}")),
                None => more.push_str(&format!("\n{section}\n{keys}")),
            }
        }
        text.push_str(&more);
        fs::write(self.config(), text).expect("the configuration can be written");
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.path().join("hookbus.toml")
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.path().join("hookbus.sock")
    }

    /// The directory of hooks.
    #[must_use]
    pub fn hooks(&self) -> PathBuf {
        self.path().join("hooks")
    }

    /// Writes a hook's template.
    ///
    /// # Panics
    /// When it can't be written.
    pub fn hook(&self, name: &str, template: &str) {
        fs::write(self.hooks().join(format!("{name}.tmpl")), template).expect("a hook can be written");
    }

    /// Writes a script that hooks can name by this name, and gives its path.
    ///
    /// # Panics
    /// When it can't be written.
    #[must_use]
    pub fn script(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path().join(name);
        fs::write(&path, text).expect("a script can be written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("our own file");
        path
    }

    /// What the daemons here have logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.path().join("log")).unwrap_or_default()
    }

    /// Waits until the log has this text.
    pub fn logged(&self, text: &str) {
        wait_until(&format!("`{text}` in the log"), || match self.log() {
            log if log.contains(text) => Ok(()),
            log => Err(log),
        });
    }

    /// Where subscribers connect with ZeroMQ.
    #[must_use]
    pub fn url(&self) -> String {
        format!("tcp://127.0.0.1:{}", self.publisher)
    }

    /// Where executors report with ZeroMQ.
    #[must_use]
    pub fn logger_url(&self) -> String {
        format!("tcp://127.0.0.1:{}", self.logger)
    }

    /// `hookbus` with this configuration and these arguments.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(hookbus());
        command.arg("--config").arg(self.config()).args(args).stdin(Stdio::null());
        command
    }

    /// Runs `hookbus` to its end.
    ///
    /// # Panics
    /// When it can't be started.
    #[must_use]
    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("hookbus can be started")
    }

    /// A driver that forwards to the daemon.
    ///
    /// # Panics
    /// When it can't be started.
    #[must_use]
    pub fn driver(&self) -> Hm {
        HmOptions::default().arguments(&format!("--forward {}", self.socket().display())).start()
    }

    /// The launcher of a daemon, for tests that start it in an unusual way.
    #[must_use]
    pub fn launcher(&self) -> Launcher {
        let config = self.config();
        Launcher::new(&["hookbus", "serve", "--config", config.to_str().expect("a plain path")])
    }

    /// Starts the daemon and waits until it is ready.
    #[must_use]
    pub fn serve(&self) -> Serve<'_> {
        self.ready(self.launcher().spawn())
    }

    /// Waits until this daemon is ready.
    ///
    /// # Panics
    /// When it ends instead.
    #[must_use]
    pub fn ready(&self, program: Launched) -> Serve<'_> {
        let mut serve = Serve { program, home: self };
        wait_until("the daemon to be ready", || {
            if let Some(status) = serve.program.ended() {
                panic!("the daemon ended with {status}: {}", self.log());
            }
            let answer = self.request("GET", "/readyz", &[], b"");
            match answer {
                Ok(answer) if answer.status == 200 => Ok(()),
                Ok(answer) => Err(answer.text()),
                Err(e) => Err(e.to_string()),
            }
        });
        serve
    }

    /// curl at the socket, with the path behind the host's name.
    ///
    /// # Panics
    /// When there is no curl.
    #[must_use]
    pub fn curl(&self, path: &str, args: &[&str]) -> Output {
        self.curl_command(path, args).output().expect("curl is installed")
    }

    /// curl at the socket, not started yet.
    #[must_use]
    pub fn curl_command(&self, path: &str, args: &[&str]) -> Command {
        let mut command = Command::new("curl");
        command.arg("--silent").arg("--show-error").arg("--unix-socket").arg(self.socket());
        command.args(args).arg(format!("http://localhost{path}"));
        command
    }

    /// One request by hand.
    ///
    /// # Errors
    /// When nobody listens, or the connection breaks.
    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> std::io::Result<Answer> {
        let mut stream = UnixStream::connect(self.socket())?;
        stream.set_read_timeout(Some(Deadline::usual().left()))?;
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
        // At once: who is refused for the head is hung up on, and couldn't write the body.
        stream.write_all(&[head.as_bytes(), body].concat())?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes)?;
        Ok(Answer::parse(&bytes))
    }

    /// Publishes an event by hand.
    ///
    /// # Panics
    /// When it isn't accepted.
    pub fn publish(&self, key: &str, payload: &[u8]) -> Value {
        let headers = [("ce-hookbuskey", key), ("content-type", "text/plain")];
        let answer = self.request("POST", "/v1/events", &headers, payload).expect("an answer");
        assert_eq!(answer.status, 202, "{}", answer.text());
        answer.json()
    }

    /// What `/v1/status` says.
    ///
    /// # Panics
    /// When it can't be asked.
    #[must_use]
    pub fn status(&self) -> Value {
        self.request("GET", "/v1/status", &[], b"").expect("an answer").json()
    }

    /// Follows events on a connection of its own.
    ///
    /// # Panics
    /// When that isn't accepted.
    #[must_use]
    pub fn follow(&self, query: &str) -> Follower {
        let mut stream = UnixStream::connect(self.socket()).expect("the daemon listens");
        stream.set_read_timeout(Some(Deadline::usual().left())).expect("a socket has a timeout");
        let request = format!("GET /v1/events?{query} HTTP/1.1\r\nhost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("the daemon reads");
        let mut follower = Follower { stream, bytes: Vec::new() };
        // The first comment says that the subscription is there.
        let head = follower.until(b": hookbus\n\n");
        assert!(head.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&head));
        follower
    }
}

/// A daemon; it is killed when this is dropped.
#[derive(Debug)]
pub struct Serve<'h> {
    /// The process.
    pub program: Launched,
    home: &'h Home,
}

impl Serve<'_> {
    /// Asks it to end, and waits until it has; it must end well.
    ///
    /// # Panics
    /// When its exit status isn't 0.
    pub fn stop(mut self) {
        self.program.signal(Signal::TERM);
        let status = self.program.wait("after SIGTERM");
        assert!(status.success(), "it ended with {status}: {}", self.home.log());
    }

    /// Reloads, and waits until that is done.
    ///
    /// # Panics
    /// When it has ended.
    pub fn reload(&self) {
        let loaded = |log: &str| log.matches(" loaded from ").count();
        let before = loaded(&self.home.log());
        self.program.signal(Signal::HUP);
        wait_until("the hooks to be read again", || match self.home.log() {
            log if loaded(&log) > before => Ok(()),
            log => Err(log),
        });
    }
}

/// An answer to a request.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The lines of the head behind the first.
    pub head: String,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or(bytes.len());
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let (first, head) = head.split_once("\r\n").unwrap_or((&head, ""));
        let status = first.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        Answer { status, head: head.to_lowercase(), body: bytes.get(end + 4..).unwrap_or_default().to_vec() }
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }
}

/// A reader of server-sent events, which reads only when it is asked.
#[derive(Debug)]
pub struct Follower {
    stream: UnixStream,
    bytes: Vec<u8>,
}

/// A server-sent event.
#[derive(Debug, Clone, PartialEq)]
pub struct Followed {
    /// Its id.
    pub id: String,
    /// Its type: empty, or `gap`.
    pub kind: String,
    /// Its data.
    pub data: Value,
}

impl Follower {
    /// Reads up to and with these bytes.
    fn until(&mut self, end: &[u8]) -> Vec<u8> {
        loop {
            if let Some(at) = self.bytes.windows(end.len()).position(|part| part == end) {
                let rest = self.bytes.split_off(at + end.len());
                return std::mem::replace(&mut self.bytes, rest);
            }
            let mut buffer = [0; 64 << 10];
            let read = self.stream.read(&mut buffer).expect("there is more to come");
            assert_ne!(read, 0, "the daemon hung up after {}", String::from_utf8_lossy(&self.bytes));
            self.bytes.extend_from_slice(&buffer[..read]);
        }
    }

    /// The next event.
    ///
    /// # Panics
    /// When none comes.
    pub fn event(&mut self) -> Followed {
        let deadline = Deadline::usual();
        loop {
            // Signs of life come all the time.
            assert!(!deadline.passed(), "waited in vain for an event");
            // Chunks of the transfer lie between the events; their sizes are on lines of their own.
            let block = self.until(b"\n\n");
            let text = String::from_utf8_lossy(&block).into_owned();
            let field = |name: &str| {
                text.lines().filter_map(|line| line.strip_prefix(name)).map(str::trim).collect::<Vec<_>>().join("\n")
            };
            let data = field("data:");
            if !data.is_empty() {
                let data = serde_json::from_str(&data).unwrap_or(Value::String(data));
                return Followed { id: field("id:"), kind: field("event:"), data };
            }
        }
    }

    /// Waits up to this long for something to read, without reading it. True if there is something, or the other end hung up.
    #[must_use]
    pub fn has_more(&self, patience: Duration) -> bool {
        if !self.bytes.is_empty() {
            return true;
        }
        let time = rustix::event::Timespec::try_from(patience).expect("a short time");
        let mut fds = [rustix::event::PollFd::new(&self.stream, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut fds, Some(&time)).is_ok_and(|ready| ready > 0)
    }
}
