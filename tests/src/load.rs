//! Publishers that are busy over HTTP, and remember what the daemon has acknowledged.
//!
//! Each event has a number in its data. A post that isn't answered with 202 may have been published or not; its events are
//! given up, and others with new numbers follow. So what must arrive is what was acknowledged, no more.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Deadline;
use crate::serve::Answer;

/// How to publish.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// How many connections publish at the same time.
    pub connections: usize,
    /// How many events a post of every other connection has; the rest posts single events. 1 is single events everywhere.
    pub batch: u64,
    /// How long the text in each event's data is.
    pub payload_bytes: usize,
    /// How many events a second all connections publish together; as many as they can if `None`.
    pub rate: Option<f64>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { connections: 4, batch: 20, payload_bytes: 100, rate: None }
    }
}

/// An event that the daemon has acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    /// The id that the answer named.
    pub id: String,
    /// The offset that the answer named.
    pub offset: u64,
    /// Its number.
    pub number: u64,
    /// When its post was sent, or should have been.
    pub sent: Instant,
}

/// Publishers at work, as far as they are allowed to; dropping this ends them.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    socket: PathBuf,
    options: LoadOptions,
    /// In the ids of imported events: no two loads share ids, which a bus would take for repetitions.
    run: u64,
    numbers: AtomicU64,
    /// They rest while this many events, or a few more, are acknowledged.
    allowed: AtomicU64,
    acknowledged: Mutex<Vec<Acknowledged>>,
    /// Answers that never came, and those that were not 202: for messages.
    troubles: Mutex<Vec<String>>,
    stop: AtomicBool,
}

impl Load {
    /// Gets ready to publish to the daemon that listens at this socket, now or later. Nothing is published until that is allowed.
    #[must_use]
    pub fn new(socket: &Path, options: LoadOptions) -> Self {
        let shared = Arc::new(Shared {
            socket: socket.to_owned(),
            options,
            run: fastrand::u64(..),
            numbers: AtomicU64::new(0),
            allowed: AtomicU64::new(0),
            acknowledged: Mutex::default(),
            troubles: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let threads = (0..options.connections)
            .map(|connection| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || shared.publish(connection))
            })
            .collect();
        Self { shared, threads }
    }

    /// Lets it publish until this many events are acknowledged in all.
    pub fn allow(&self, events: u64) {
        self.shared.allowed.store(events, Ordering::Relaxed);
    }

    /// What was acknowledged so far, in the order of the offsets.
    ///
    /// # Panics
    /// When a publisher has panicked.
    #[must_use]
    pub fn acknowledged(&self) -> Vec<Acknowledged> {
        let mut all = self.shared.acknowledged().clone();
        all.sort_by_key(|event| event.offset);
        all
    }

    /// Waits until this many events were acknowledged.
    ///
    /// # Panics
    /// When nothing more is acknowledged for as long as tests wait.
    pub fn until(&self, count: u64) {
        let (mut last, mut deadline) = (0, Deadline::usual());
        loop {
            let seen = self.shared.acknowledged().len() as u64;
            if seen >= count {
                return;
            }
            if seen > last {
                (last, deadline) = (seen, Deadline::usual());
            }
            let troubles = || self.shared.troubles.lock().expect("nobody panics while holding it").join("; ");
            assert!(!deadline.passed(), "{seen} of {count} events were acknowledged, then no more: {}", troubles());
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Ends publishing, and gives what was acknowledged, in the order of the offsets.
    ///
    /// # Panics
    /// When a publisher has panicked.
    #[must_use]
    pub fn finish(mut self) -> Vec<Acknowledged> {
        self.end();
        self.acknowledged()
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking(), "a publisher has panicked");
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn acknowledged(&self) -> MutexGuard<'_, Vec<Acknowledged>> {
        self.acknowledged.lock().expect("nobody panics while holding it")
    }

    fn publish(&self, connection: usize) {
        let batch = if connection.is_multiple_of(2) { self.options.batch.max(1) } else { 1 };
        let note = "x".repeat(self.options.payload_bytes);
        // With a rate, each connection has a schedule for its share of it. Who is late catches up, and the time that events are
        // late by counts as theirs.
        let pause = self.options.rate.map(|rate| {
            let singles = (self.options.connections / 2) as f64;
            let batches = self.options.connections as f64 - singles;
            Duration::from_secs_f64((singles + batches * self.options.batch.max(1) as f64) / rate)
        });
        let mut next = Instant::now();
        let mut open: Option<Connection> = None;
        while !self.stop.load(Ordering::Relaxed) {
            if self.acknowledged().len() as u64 >= self.allowed.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(1));
                next = Instant::now();
                continue;
            }
            if let Some(pause) = pause {
                next += pause;
                thread::sleep(next.saturating_duration_since(Instant::now()));
            }
            let client = match open.take().map_or_else(|| Connection::open(&self.socket), Ok) {
                Ok(client) => open.insert(client),
                Err(error) => {
                    self.trouble(format!("can't connect: {error}"));
                    thread::sleep(Duration::from_millis(20));
                    continue;
                }
            };
            let first = self.numbers.fetch_add(batch, Ordering::Relaxed);
            let sent = if pause.is_some() { next } else { Instant::now() };
            let answer = if batch == 1 {
                let body = json!({"number": first, "note": note}).to_string();
                client
                    .post(&format!("content-type: application/json\r\nce-hookbuskey: load/{}\r\n", first % 100), &body)
            } else {
                let event = |number: u64| {
                    json!({"specversion": "1.0", "id": format!("load-{:x}-{number}", self.run), "source": "/load", "type": "load",
                           "hookbuskey": format!("load/{}", number % 100), "datacontenttype": "application/json",
                           "data": {"number": number, "note": note}})
                };
                let body = Value::from((first..first + batch).map(event).collect::<Vec<_>>()).to_string();
                client.post("content-type: application/cloudevents-batch+json\r\n", &body)
            };
            match answer {
                Ok(answer) if matches!(answer.status, 202 | 503) => {
                    self.took(&answer, first, sent);
                    if answer.status == 503 {
                        self.trouble(answer.text());
                        open = None;
                    }
                }
                Ok(answer) => panic!("a post was answered with {}: {}", answer.status, answer.text()),
                // It may have been published, or not.
                Err(error) => {
                    self.trouble(format!("no answer: {error}"));
                    open = None;
                }
            }
        }
    }

    /// An answer acknowledges one event, or the first ones of a batch.
    fn took(&self, answer: &Answer, first: u64, sent: Instant) {
        let told = answer.json();
        let one = [told.clone()];
        let events = match told["events"].as_array() {
            Some(events) => events.as_slice(),
            None if answer.status == 202 => &one,
            None => &[],
        };
        let mut all = self.acknowledged();
        for (number, event) in (first..).zip(events) {
            let id = event["id"].as_str().expect("an id").to_owned();
            let offset = event["offset"].as_u64().expect("an offset");
            all.push(Acknowledged { id, offset, number, sent });
        }
    }

    fn trouble(&self, what: String) {
        let mut troubles = self.troubles.lock().expect("nobody panics while holding it");
        if troubles.last() != Some(&what) && troubles.len() < 100 {
            troubles.push(what);
        }
    }
}

/// A connection that is kept over many requests.
#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    unread: Vec<u8>,
}

impl Connection {
    fn open(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Deadline::usual().left()))?;
        Ok(Self { stream, unread: Vec::new() })
    }

    /// `headers` are lines with their ends.
    fn post(&mut self, headers: &str, body: &str) -> io::Result<Answer> {
        let length = body.len();
        let request =
            format!("POST /v1/events HTTP/1.1\r\nhost: localhost\r\n{headers}content-length: {length}\r\n\r\n{body}");
        self.stream.write_all(request.as_bytes())?;
        let head = loop {
            if let Some(at) = self.unread.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            self.read()?;
        };
        let length = String::from_utf8_lossy(&self.unread[..head])
            .to_lowercase()
            .lines()
            .find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok())
            .unwrap_or(0);
        while self.unread.len() < head + length {
            self.read()?;
        }
        let rest = self.unread.split_off(head + length);
        Ok(Answer::parse(&std::mem::replace(&mut self.unread, rest)))
    }

    fn read(&mut self) -> io::Result<()> {
        let mut buffer = [0; 16 << 10];
        match self.stream.read(&mut buffer)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            count => {
                self.unread.extend_from_slice(&buffer[..count]);
                Ok(())
            }
        }
    }
}
