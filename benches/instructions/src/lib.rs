//! What `benches/paths.rs` counts: everything that has to be there before the counting begins.
//!
//! All inputs are fixed, and nothing waits for another thread, so that two runs of one program count the same.

use std::collections::VecDeque;
use std::io::Read;

use bytes::Bytes;
use hookbus_bridges::cloudevents::{Encoder, Sources};
use hookbus_bridges::opennebula::{Input, Parser};
use hookbus_broker::{
    BatchLimit, Broker, Journal, JournalOptions, Message, Received, SubscribeOptions, Subscription, Timestamp,
};
use tempfile::TempDir;

/// Messages of one run. Few enough that no queue is full, and that a block is opened once at most.
pub const MESSAGES: usize = 64;

const KEY: &str = "EVENT STATE VM/ACTIVE/RUNNING/4711 ";

/// Messages that no clock is read for: how often the system's is asked depends on how fast the machine is.
pub fn messages() -> Vec<Message> {
    let payload = Bytes::from(vec![b'x'; 2048]);
    (0..MESSAGES).map(|_| Message::new(KEY, payload.clone()).with_time(Timestamp::from_millis(7))).collect()
}

/// A broker, its subscriptions, and what is to be published.
#[derive(Debug)]
pub struct Setting {
    /// The broker.
    pub broker: Broker,
    /// Whoever gets something.
    pub subscriptions: Vec<Subscription>,
    /// What is to be published.
    pub messages: Vec<Message>,
}

impl Setting {
    fn new(broker: Broker, subscriptions: Vec<Subscription>) -> Self {
        let mut setting = Setting { broker, subscriptions, messages: messages() };
        // So that the windows that decide about dense and sparse, the pool of blocks, and all vectors are as they are in the long run.
        for _ in 0..64 {
            for message in messages() {
                setting.broker.publish_now(message).expect("the broker is open");
            }
            setting.take_all();
        }
        setting
    }

    fn take_all(&mut self) {
        for subscription in &mut self.subscriptions {
            while subscription.try_recv_batch(BatchLimit::default()).is_ok() {}
        }
    }

    /// After a batch, which asks the clock as nobody here did before, and so whether cycles count.
    #[must_use]
    pub fn after_a_batch(mut self) -> Self {
        let mut batch = messages().into();
        self.broker.publish_batch_now(&mut batch).expect("the broker is open");
        self.take_all();
        self
    }

    /// With its messages published.
    #[must_use]
    pub fn published(mut self) -> Self {
        for message in self.messages.drain(..) {
            self.broker.publish_now(message).expect("the broker is open");
        }
        self
    }
}

fn subscribe(broker: &Broker, prefixes: Vec<Box<[u8]>>) -> Subscription {
    let mut options = SubscribeOptions::new("counted");
    options.prefixes = prefixes;
    broker.subscribe(options)
}

/// So many subscriptions to one thing.
pub fn alike(count: usize) -> Setting {
    let broker = Broker::default();
    let subscriptions = (0..count).map(|_| subscribe(&broker, vec![b"EVENT STATE ".as_slice().into()])).collect();
    Setting::new(broker, subscriptions)
}

/// So many subscriptions that all match, each by a prefix of its own length.
pub fn apart(count: usize) -> Setting {
    let broker = Broker::default();
    let subscriptions = (1..=count).map(|n| subscribe(&broker, vec![KEY.as_bytes()[..n].into()])).collect();
    Setting::new(broker, subscriptions)
}

/// Two subscriptions that match, by different prefixes, and so many that don't, each with one of its own.
pub fn beside(others: usize) -> Setting {
    let broker = Broker::default();
    let mut subscriptions = vec![
        subscribe(&broker, vec![b"EVENT STATE ".as_slice().into()]),
        subscribe(&broker, vec![b"EVENT STATE VM/ACTIVE/".as_slice().into()]),
    ];
    let other = |n| format!("EVENT VM {n}/").into_bytes().into();
    subscriptions.extend((0..others).map(|n| subscribe(&broker, vec![other(n)])));
    Setting::new(broker, subscriptions)
}

/// One subscription with so many prefixes, one of which matches.
pub fn prefixes(count: usize) -> Setting {
    let broker = Broker::default();
    let prefix = |n: usize| format!("EVENT STATE VM/ACTIVE/RUNNING/{n} ").into_bytes().into();
    let subscription = subscribe(&broker, (4000..4000 + count).map(prefix).collect());
    Setting::new(broker, vec![subscription])
}

/// A broker with a journal, and what is to be published.
#[derive(Debug)]
pub struct Journaled {
    /// The broker.
    pub broker: Broker,
    /// What is to be published.
    pub batch: VecDeque<Message>,
    /// Goes last.
    _dir: TempDir,
}

/// A broker whose journal was written before. Its thread sleeps, so that the publisher does the writing.
pub fn journaled() -> Journaled {
    let dir = tempfile::tempdir().expect("a directory");
    let broker = Broker::default();
    let journal = Journal::open(JournalOptions::new(dir.path().join("journal"))).expect("a journal");
    broker.attach_journal(journal).expect("it has none");
    for _ in 0..64 {
        let mut batch = messages().into();
        broker.publish_batch_blocking(&mut batch).expect("the broker is open");
    }
    Journaled { broker, batch: messages().into(), _dir: dir }
}

/// Recorded lines of oned, without their ends.
pub fn lines() -> Vec<Bytes> {
    let packed = include_bytes!("../../../tests/fixtures/opennebula/oned-to-driver.txt.zst");
    let mut text = Vec::new();
    let mut decoder = ruzstd::decoding::StreamingDecoder::new(packed.as_slice()).expect("the recording is there");
    decoder.read_to_end(&mut text).expect("it is whole");
    let events = text.split(|&byte| byte == b'\n').filter(|line| line.starts_with(b"EXECUTE "));
    events.take(MESSAGES).map(Bytes::copy_from_slice).collect()
}

/// The events of these lines.
pub fn recorded() -> Vec<Message> {
    let mut parser = Parser::new();
    let event = |line| match parser.line(line) {
        Ok(Input::Message { message, .. }) => message,
        other => panic!("not an event: {other:?}"),
    };
    lines().into_iter().map(event).collect()
}

/// The events of these lines as subscribers have them, and who writes them as JSON.
pub fn received() -> (Encoder, Vec<Received>) {
    let broker = Broker::default();
    let mut subscription = subscribe(&broker, vec![Box::default()]);
    for message in recorded() {
        broker.publish_now(message).expect("the broker is open");
    }
    let events = std::iter::from_fn(|| subscription.try_recv().ok()?.message()).collect();
    (Encoder::new(Sources { host: "front-end".into(), zone: None }), events)
}
