//! ZeroMQ peers: sockets of real libraries in processes of their own, under remote control.
//!
//! A peer is a small program in `tests/peers` (Python and Ruby over libzmq, Node.js), started with one JSON object
//! `{"type": "SUB", "url": "tcp://...", "options": {"SNDHWM": 0}}`. It first connects and says `{"ready": true}`. Then it takes
//! commands on its standard input, one JSON array a line:
//!
//! | command | meaning |
//! | --- | --- |
//! | `["subscribe", prefix, ...]`, `["unsubscribe", prefix, ...]` | change the filters |
//! | `["send", frame, ...]` | send one message |
//! | `["pause"]`, `["resume"]` | stop receiving, and go on |
//!
//! and answers each with `{"done": how many so far}` when it is carried out (which says nothing about the network). Each
//! message that it receives is `{"message": [frame, ...]}`. Bytes are written as Latin-1 text.
//!
//! A peer reads as fast as it can into this process's memory, whatever the test does; to be slow, it is paused.

use std::collections::VecDeque;
use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::{Map, Value, json};
use zeromq::{Socket, SocketRecv, SubSocket};

use crate::hm::end;
use crate::tools::{Tool, script};
use crate::{Deadline, Hm};

/// A message as it came from a socket: on the publisher's port a key and a content.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Message {
    frames: Vec<Vec<u8>>,
}

impl Message {
    /// One with these two frames.
    #[must_use]
    pub fn new(key: impl Into<Vec<u8>>, content: impl Into<Vec<u8>>) -> Self {
        Self { frames: vec![key.into(), content.into()] }
    }

    /// All its frames.
    #[must_use]
    pub fn frames(&self) -> &[Vec<u8>] {
        &self.frames
    }

    /// The first frame.
    ///
    /// # Panics
    /// When it isn't a message of a publisher, which has two frames.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        assert_eq!(self.frames.len(), 2, "a publisher's message has two frames, this one: {self:?}");
        &self.frames[0]
    }

    /// The second frame.
    ///
    /// # Panics
    /// When it isn't a message of a publisher, which has two frames.
    #[must_use]
    pub fn content(&self) -> &[u8] {
        assert_eq!(self.frames.len(), 2, "a publisher's message has two frames, this one: {self:?}");
        &self.frames[1]
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut list = f.debug_list();
        for frame in &self.frames {
            let text = String::from_utf8_lossy(&frame[..frame.len().min(60)]);
            if frame.len() > 60 {
                list.entry(&format_args!("{text:?}... ({} bytes, ending in {:?})", frame.len(), end_of(frame)));
            } else {
                list.entry(&text);
            }
        }
        list.finish()
    }
}

fn end_of(frame: &[u8]) -> String {
    String::from_utf8_lossy(&frame[frame.len() - 12..]).into_owned()
}

/// Compares two streams of messages, and tells about the first difference only: they can be megabytes.
///
/// # Panics
/// When they differ.
pub fn assert_same(who: &str, received: &[Message], expected: &[Message]) {
    let same = received.iter().zip(expected).take_while(|(one, other)| one == other).count();
    assert!(
        same == received.len() && same == expected.len(),
        "{who} received {} messages where {} were expected; the first {same} are right, then it received {:#?} instead of {:#?}",
        received.len(),
        expected.len(),
        &received[same..received.len().min(same + 3)],
        &expected[same..expected.len().min(same + 3)],
    );
}

/// How to start a peer.
#[derive(Debug, Clone)]
pub struct PeerOptions {
    tool: Tool,
    kind: &'static str,
    options: Map<String, Value>,
}

impl PeerOptions {
    /// A socket of this type (as ZeroMQ calls it) in this language.
    #[must_use]
    pub fn new(tool: Tool, kind: &'static str) -> Self {
        Self { tool, kind, options: Map::new() }
    }

    /// With an option of libzmq, by its name without `ZMQ_`.
    #[must_use]
    pub fn option(mut self, name: &str, value: i32) -> Self {
        self.options.insert(name.into(), value.into());
        self
    }

    /// Starts it.
    ///
    /// # Panics
    /// When that fails.
    #[must_use]
    pub fn connect(self, url: &str) -> Peer {
        let file = match self.tool {
            Tool::Python | Tool::NatsPy | Tool::Ganeti => "peer.py",
            Tool::Ruby => "peer.rb",
            Tool::Node => "peer.js",
        };
        let name = format!("{} ({file})", self.kind);
        let mut child = self
            .tool
            .command()
            .arg(script(file))
            .arg(json!({"type": self.kind, "url": url, "options": self.options}).to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("can't start {name}: {error}"));
        let complaints = Arc::new(Mutex::new(String::new()));
        let (sender, receiver) = mpsc::channel();
        let output = child.stdout.take().expect("it was piped");
        thread::spawn(move || relay(BufReader::new(output), &sender));
        let mut errors = child.stderr.take().expect("it was piped");
        let heard = Arc::clone(&complaints);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = errors.read(&mut buffer) {
                heard.lock().expect("never poisoned").push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
        });
        let mut peer = Peer {
            name,
            child: Some(child),
            complaints,
            said: receiver,
            commands: 0,
            early: VecDeque::new(),
            received: 0,
        };
        peer.wait_for_said("its start", |said| matches!(said, Said::Ready));
        peer
    }

    /// Starts it and subscribes to these prefixes, in this order.
    #[must_use]
    pub fn subscribe<P: AsRef<[u8]>>(self, url: &str, prefixes: impl IntoIterator<Item = P>) -> Peer {
        let mut peer = self.connect(url);
        peer.subscribe(prefixes);
        peer
    }
}

enum Said {
    Ready,
    Done(u64),
    Message(Message),
}

/// A running peer; it is killed when this is dropped.
#[derive(Debug)]
pub struct Peer {
    name: String,
    child: Option<Child>,
    complaints: Arc<Mutex<String>>,
    said: Receiver<Said>,
    commands: u64,
    /// Messages that came while something else was waited for.
    early: VecDeque<Message>,
    received: usize,
}

impl Peer {
    /// A libzmq SUB from Python, subscribed to everything at this publisher and receiving.
    #[must_use]
    pub fn joined(hm: &mut Hm) -> Self {
        let mut peer = PeerOptions::new(Tool::Python, "SUB").subscribe(&hm.url(), [""]);
        hm.join(&mut [&mut peer]);
        peer
    }

    /// A SUB of the zeromq crate, in a thread of this process. It takes no commands.
    ///
    /// # Panics
    /// When it can't connect.
    #[must_use]
    pub fn zeromq_crate(url: &str, prefixes: &'static [&'static str]) -> Self {
        let (sender, said) = mpsc::channel();
        let url = url.to_owned();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let mut socket = SubSocket::new();
                socket.connect(&url).await.expect("the publisher is there");
                for prefix in prefixes {
                    socket.subscribe(prefix).await.expect("a connected socket can subscribe");
                }
                while let Ok(message) = socket.recv().await {
                    let frames = message.into_vec().into_iter().map(|frame| frame.to_vec()).collect();
                    if sender.send(Said::Message(Message { frames })).is_err() {
                        break;
                    }
                }
            });
        });
        Self {
            name: "SUB (zeromq crate)".into(),
            child: None,
            complaints: Arc::default(),
            said,
            commands: 0,
            early: VecDeque::new(),
            received: 0,
        }
    }

    /// What it is.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Adds filters.
    pub fn subscribe<P: AsRef<[u8]>>(&mut self, prefixes: impl IntoIterator<Item = P>) {
        self.command("subscribe", prefixes);
    }

    /// Removes filters.
    pub fn unsubscribe<P: AsRef<[u8]>>(&mut self, prefixes: impl IntoIterator<Item = P>) {
        self.command("unsubscribe", prefixes);
    }

    /// Sends one message.
    pub fn send<P: AsRef<[u8]>>(&mut self, frames: impl IntoIterator<Item = P>) {
        self.command("send", frames);
    }

    /// Stops receiving.
    pub fn pause(&mut self) {
        self.command("pause", [""; 0]);
    }

    /// Goes on receiving.
    pub fn resume(&mut self) {
        self.command("resume", [""; 0]);
    }

    /// Sends a request to a REP socket and waits for its answer, which must have one frame.
    ///
    /// # Panics
    /// When there is no answer.
    pub fn ask(&mut self, request: &[u8]) -> Vec<u8> {
        self.send([request]);
        let mut frames = self.next("an answer").frames;
        assert_eq!(frames.len(), 1, "an answer has one frame");
        frames.remove(0)
    }

    /// The next message; panics when none comes.
    pub fn next(&mut self, what: &str) -> Message {
        let deadline = Deadline::usual();
        self.next_before(deadline).unwrap_or_else(|| self.give_up(what))
    }

    /// The next message, if one comes before that moment.
    pub fn next_before(&mut self, deadline: Deadline) -> Option<Message> {
        if let Some(message) = self.early.pop_front() {
            return Some(message);
        }
        loop {
            if let Said::Message(message) = self.say_before(deadline)? {
                return Some(message);
            }
        }
    }

    /// The messages before this one, which is waited for and taken, too.
    pub fn until(&mut self, last: &Message) -> Vec<Message> {
        let mut messages = Vec::new();
        loop {
            let message = self.next(&format!("{last:?}"));
            if message == *last {
                return messages;
            }
            messages.push(message);
        }
    }

    fn command<P: AsRef<[u8]>>(&mut self, name: &str, arguments: impl IntoIterator<Item = P>) {
        let mut line = vec![Value::from(name)];
        line.extend(arguments.into_iter().map(|bytes| Value::from(latin_1(bytes.as_ref()))));
        let line = format!("{}\n", Value::from(line));
        let stdin = self.child.as_mut().and_then(|child| child.stdin.as_mut()).expect("a peer that takes commands");
        let written = stdin.write_all(line.as_bytes());
        if written.is_err() {
            self.give_up("its end of the pipe");
        }
        self.commands += 1;
        let number = self.commands;
        self.wait_for_said("a command's end", |said| matches!(said, Said::Done(done) if *done == number));
    }

    fn wait_for_said(&mut self, what: &str, is_it: impl Fn(&Said) -> bool) {
        let deadline = Deadline::usual();
        loop {
            match self.say_before(deadline) {
                Some(said) if is_it(&said) => return,
                Some(Said::Message(message)) => self.early.push_back(message),
                Some(_) => {}
                None => self.give_up(what),
            }
        }
    }

    fn say_before(&mut self, deadline: Deadline) -> Option<Said> {
        match self.said.recv_timeout(deadline.left()) {
            Ok(said) => {
                self.received += usize::from(matches!(said, Said::Message(_)));
                Some(said)
            }
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => self.give_up("more, but it has ended"),
        }
    }

    fn give_up(&self, what: &str) -> ! {
        let complaints = self.complaints.lock().expect("never poisoned");
        panic!(
            "{} waited in vain for {what}; it received {} messages in all. It said: {complaints}",
            self.name, self.received
        )
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            end(child);
        }
    }
}

/// Passes on what a peer says, until it ends or nobody listens.
fn relay(output: impl BufRead, sender: &Sender<Said>) {
    for line in output.lines() {
        let Ok(line) = line else { return };
        let said: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("a peer said `{line}`: {error}"));
        let said = if let Some(frames) = said["message"].as_array() {
            let frames = frames.iter().map(|frame| bytes(frame.as_str().expect("a frame is text"))).collect();
            Said::Message(Message { frames })
        } else if let Some(done) = said["done"].as_u64() {
            Said::Done(done)
        } else {
            Said::Ready
        };
        if sender.send(said).is_err() {
            return;
        }
    }
}

fn latin_1(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

fn bytes(latin_1: &str) -> Vec<u8> {
    latin_1.chars().map(|c| u8::try_from(u32::from(c)).expect("a peer says bytes as Latin-1")).collect()
}
