//! `hookbus hm`, and a stand-in for the oned that started it.

use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::program::write_all;
use crate::{Deadline, Launched, Launcher, Message, NetworkNamespace, Peer, events, ports};

/// How to start `hookbus hm`.
#[derive(Debug)]
pub struct HmOptions {
    name: String,
    publisher: u16,
    logger: u16,
    bind: &'static str,
    more: String,
    environment: Vec<(String, String)>,
    namespace: Option<Command>,
    stdin: Option<Stdio>,
}

impl Default for HmOptions {
    fn default() -> Self {
        Self::on(ports::free(), ports::free())
    }
}

impl HmOptions {
    /// On these ports of 127.0.0.1.
    #[must_use]
    pub fn on(publisher: u16, logger: u16) -> Self {
        Self {
            name: "hookbus".into(),
            publisher,
            logger,
            bind: "127.0.0.1",
            more: String::new(),
            environment: Vec::new(),
            namespace: None,
            stdin: None,
        }
    }

    /// Where subscribers will connect.
    #[must_use]
    pub fn url(&self) -> String {
        format!("tcp://127.0.0.1:{}", self.publisher)
    }

    /// On this address.
    #[must_use]
    pub fn bind(mut self, address: &'static str) -> Self {
        self.bind = address;
        self
    }

    /// With more in the text of its arguments.
    #[must_use]
    pub fn arguments(mut self, more: &str) -> Self {
        self.more = format!(" {more}");
        self
    }

    /// Under another name than `hookbus`, and then without the word `hm`.
    #[must_use]
    pub fn called(mut self, name: &str) -> Self {
        self.name = name.into();
        self
    }

    /// With a variable in its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// In this network.
    #[must_use]
    pub fn within(mut self, namespace: &NetworkNamespace) -> Self {
        self.namespace = Some(namespace.command("/usr/bin/python3"));
        self
    }

    /// With this as its standard input, instead of a pipe.
    #[must_use]
    pub fn stdin(mut self, stdin: impl Into<Stdio>) -> Self {
        self.stdin = Some(stdin.into());
        self
    }

    /// Starts it the way oned does, with the whole text of its arguments as one word; says nothing to it yet.
    #[must_use]
    pub fn spawn(self) -> Hm {
        let hm = if self.name == "hookbus" { "hm " } else { "" };
        let text = format!("{hm}-p {} -l {} -b {}{}", self.publisher, self.logger, self.bind, self.more);
        let mut launcher = Launcher::new(&[&self.name, &text]);
        for (name, value) in &self.environment {
            launcher = launcher.env(name, value);
        }
        if let Some(command) = self.namespace {
            launcher = launcher.through(command);
        }
        if let Some(stdin) = self.stdin {
            launcher = launcher.stdin(stdin);
        }
        let mut program = launcher.spawn();
        let feed = Feed { pipe: Arc::new(Mutex::new(program.stdin.take())) };
        Hm { program, feed, publisher: self.publisher, logger: self.logger, probes: 0 }
    }

    /// Starts it and goes through the handshake with it.
    #[must_use]
    pub fn start(self) -> Hm {
        let mut hm = self.spawn();
        hm.init();
        hm
    }
}

/// A running `hookbus hm`; it is killed when this is dropped.
#[derive(Debug)]
pub struct Hm {
    /// The process.
    pub program: Launched,
    feed: Feed,
    publisher: u16,
    logger: u16,
    probes: u32,
}

impl Hm {
    /// One on free ports that has answered INIT.
    #[must_use]
    pub fn start() -> Self {
        HmOptions::default().start()
    }

    /// Says `INIT` and reads the answer as oned does: with one read of 31 bytes, at which the answer must be complete, and
    /// beyond which it must not go.
    ///
    /// # Panics
    /// When the answer is anything else.
    pub fn init(&mut self) {
        self.feed(b"INIT\n");
        let count = self.program.stdout.first_read(31);
        let answer = String::from_utf8_lossy(&self.program.stdout.seen()[..count]).into_owned();
        assert_eq!(
            answer,
            format!("{:<30}\n", "INIT SUCCESS - -"),
            "the answer to INIT, as one read of oned's sees it"
        );
    }

    /// The number of its publisher's port.
    #[must_use]
    pub fn publisher(&self) -> u16 {
        self.publisher
    }

    /// The number of its logger port.
    #[must_use]
    pub fn logger(&self) -> u16 {
        self.logger
    }

    /// Where subscribers connect.
    #[must_use]
    pub fn url(&self) -> String {
        format!("tcp://127.0.0.1:{}", self.publisher)
    }

    /// Where executors report results.
    #[must_use]
    pub fn logger_url(&self) -> String {
        format!("tcp://127.0.0.1:{}", self.logger)
    }

    /// The options that start one on the same ports.
    #[must_use]
    pub fn again(&self) -> HmOptions {
        HmOptions::on(self.publisher, self.logger)
    }

    /// Writes to its standard input.
    pub fn feed(&self, bytes: &[u8]) {
        self.feed.write(bytes);
    }

    /// A handle to its standard input for another thread.
    #[must_use]
    pub fn feeder(&self) -> Feed {
        self.feed.clone()
    }

    /// Ends its input.
    ///
    /// # Panics
    /// When a thread that was writing has panicked.
    pub fn close_input(&self) {
        drop(self.feed.pipe.lock().expect("nobody panics while writing").take());
    }

    /// Says `FINALIZE` and waits until it has ended; it must end well.
    ///
    /// # Panics
    /// When its exit status isn't 0.
    pub fn finalize(&mut self) {
        self.feed(b"FINALIZE\n");
        let status = self.program.wait("after FINALIZE");
        assert!(status.success(), "it ended with {status} after FINALIZE");
    }

    /// Waits until each of these subscribers receives, by publishing retries until it has got one. They must have subscribed
    /// to `RETRY`, last of all if to more, so that their other filters have arrived, too. What they got until now is
    /// forgotten.
    ///
    /// # Panics
    /// When one of them never receives.
    pub fn join(&mut self, peers: &mut [&mut Peer]) {
        self.join_with(peers, |number| events::retry(&format!("probe {number}")));
    }

    /// [`join`](Hm::join), with events of another kind: `probe` makes one with this number in it, of which the first message
    /// is looked for.
    ///
    /// # Panics
    /// When one of them never receives.
    pub fn join_with(&mut self, peers: &mut [&mut Peer], probe: impl Fn(u32) -> events::Event) {
        let deadline = Deadline::usual();
        let mut sent: Vec<Message> = Vec::new();
        let mut waiting: Vec<usize> = (0..peers.len()).collect();
        while !waiting.is_empty() {
            self.probes += 1;
            let event = probe(self.probes);
            self.feed(&event.line);
            sent.push(event.messages[0].clone());
            waiting.retain(|index| {
                let pause = Deadline::after(Duration::from_millis(20));
                !std::iter::from_fn(|| peers[*index].next_before(pause)).any(|message| sent.contains(&message))
            });
            let names: Vec<&str> = waiting.iter().map(|index| peers[*index].name()).collect();
            assert!(
                waiting.is_empty() || !deadline.passed(),
                "{names:?} received none of {} probes; hm wrote: {:?}",
                sent.len(),
                String::from_utf8_lossy(self.program.stdout.seen())
            );
        }
        self.probes += 1;
        let last = probe(self.probes);
        self.feed(&last.line);
        for peer in peers {
            peer.until(&last.messages[0]);
        }
    }

    /// Publishes a retry with this text; the message by which to know that everything before it was received.
    pub fn mark(&self, text: &str) -> Message {
        let event = events::retry(text);
        self.feed(&event.line);
        event.messages[0].clone()
    }
}

/// A handle to the standard input of a program. What is written in one call stays together.
#[derive(Debug, Clone)]
pub struct Feed {
    pipe: Arc<Mutex<Option<ChildStdin>>>,
}

impl Feed {
    /// Writes all of it, waiting while the pipe is full.
    ///
    /// # Panics
    /// When the program doesn't read on, or has closed its input.
    pub fn write(&self, bytes: &[u8]) {
        let mut pipe = self.pipe.lock().expect("nobody panics while writing");
        write_all(pipe.as_mut().expect("its input is a pipe and was not ended"), bytes);
    }
}

/// Kills a child and waits for it.
pub(crate) fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}
