//! The journal against a plain model: a list of what was published. Random publishers, durable subscriptions, subscriptions that
//! spill, and restarts; each reader must get what the list has for it, from its place on, and nothing else.
#![cfg(feature = "journal")]

mod support;

use std::collections::BTreeMap;
use std::path::PathBuf;

use hookbus_broker::{
    BatchLimit, Broker, Delivery, DurableSubscription, Message, Offset, Overflow, Received, Start, SubscribeOptions,
    Subscription,
};
use proptest::prelude::*;

use support::{eventually, open};

#[derive(Clone, Debug)]
enum Step {
    Publish { sample: Sample, now: bool },
    Many { sample: Sample, count: usize },
    Subscribe { name: usize, prefix: Vec<u8>, hwm: usize, start: usize },
    Receive { name: usize, messages: usize },
    Commit { name: usize, share: usize },
    Leave { name: usize },
    Spill { prefix: Vec<u8>, hwm: usize },
    Take { who: usize, messages: usize },
    Restart,
}

#[derive(Clone, Debug)]
struct Sample {
    keys: Vec<Vec<u8>>,
    size: usize,
}

fn word(most: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop::sample::select(b"ab".to_vec()), 0..=most)
}

fn sample() -> impl Strategy<Value = Sample> {
    let size = prop_oneof![6 => 0usize..300, 2 => 2000usize..9000, 1 => 200_000usize..400_000];
    (prop::collection::vec(word(3), 1..4), size).prop_map(|(keys, size)| Sample { keys, size })
}

fn step() -> impl Strategy<Value = Step> {
    let small = || (prop::collection::vec(word(3), 1..4), 0usize..3000).prop_map(|(keys, size)| Sample { keys, size });
    let name = || 0usize..3;
    prop_oneof![
        6 => (sample(), any::<bool>()).prop_map(|(sample, now)| Step::Publish { sample, now }),
        2 => (small(), 1usize..300).prop_map(|(sample, count)| Step::Many { sample, count }),
        3 => (name(), word(2), 1usize..40, 0usize..4)
            .prop_map(|(name, prefix, hwm, start)| Step::Subscribe { name, prefix, hwm, start }),
        6 => (name(), 1usize..50).prop_map(|(name, messages)| Step::Receive { name, messages }),
        3 => (name(), 0usize..=4).prop_map(|(name, share)| Step::Commit { name, share }),
        1 => name().prop_map(|name| Step::Leave { name }),
        2 => (word(2), 1usize..20).prop_map(|(prefix, hwm)| Step::Spill { prefix, hwm }),
        6 => (0usize..4, 1usize..50).prop_map(|(who, messages)| Step::Take { who, messages }),
        1 => Just(Step::Restart),
    ]
}

/// What was published, by offset.
#[derive(Default)]
struct Log(BTreeMap<u64, (Vec<Vec<u8>>, Vec<u8>)>);

impl Log {
    /// The first message at or behind an offset that matches.
    fn next(&self, from: u64, prefix: &[u8]) -> Option<u64> {
        self.0
            .range(from..)
            .find(|(_, (keys, _))| keys.iter().any(|k| k.starts_with(prefix)))
            .map(|(&offset, _)| offset)
    }

    /// Checks what a reader got that stands at `from`; returns where it stands then.
    fn check(&self, from: u64, prefix: &[u8], got: &Received) -> u64 {
        let expected = self.next(from, prefix).expect("nothing is invented");
        assert_eq!(got.offset().get(), expected);
        let (keys, payload) = &self.0[&expected];
        assert!(got.keys().eq(keys.iter().map(Vec::as_slice)));
        assert!(got.matched_keys().eq(keys.iter().map(Vec::as_slice).filter(|k| k.starts_with(prefix))));
        assert!(got.payload() == payload, "the payload of {expected}");
        expected + 1
    }
}

/// A durable subscription: what the model knows of its cursor, and the real one, while it is open.
struct Durable {
    real: Option<DurableSubscription>,
    prefix: Vec<u8>,
    /// What was committed, and what was received.
    done: u64,
    read: u64,
    outstanding: Vec<u64>,
}

struct Spilling {
    real: Subscription,
    prefix: Vec<u8>,
    read: u64,
}

struct World {
    dir: PathBuf,
    broker: Broker,
    log: Log,
    next: u64,
    durables: BTreeMap<usize, Durable>,
    spilling: Vec<Spilling>,
}

impl World {
    fn publish(&mut self, sample: &Sample, now: bool) {
        let mut payload = self.next.to_le_bytes().to_vec();
        payload.resize(sample.size + 8, b'.');
        let mut message = Message::new(&sample.keys[0], payload.clone());
        for key in &sample.keys[1..] {
            message = message.with_key(key);
        }
        let offset = if now { self.broker.publish_now(message) } else { self.broker.publish_blocking(message) };
        assert_eq!(offset.expect("there is room").get(), self.next);
        self.log.0.insert(self.next, (sample.keys.clone(), payload));
        self.next += 1;
    }

    /// Waits until the journal has everything.
    fn settle(&self) {
        let journal = self.broker.journal().expect("attached");
        eventually(|| journal.stats().next == self.next);
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Publish { sample, now } => self.publish(&sample, now),
            Step::Many { sample, count } => (0..count).for_each(|_| self.publish(&sample, true)),
            Step::Subscribe { name, prefix, hwm, start } => self.subscribe(name, prefix, hwm, start),
            Step::Receive { name, messages } => {
                self.settle();
                let Some(durable) = self.durables.get_mut(&name).filter(|d| d.real.is_some()) else { return };
                let mut got = Vec::new();
                let real = durable.real.as_mut().expect("just seen");
                let _ = real.try_recv_batch(BatchLimit::messages(messages), &mut got);
                assert!(got.len() <= messages);
                if got.is_empty() {
                    assert_eq!(self.log.next(durable.read, &durable.prefix), None, "there is more");
                    durable.read = self.next;
                    if durable.outstanding.is_empty() {
                        durable.done = self.next;
                    }
                }
                for message in support::messages(got) {
                    durable.read = self.log.check(durable.read, &durable.prefix, &message);
                    durable.outstanding.push(durable.read);
                }
            }
            Step::Commit { name, share } => {
                let Some(durable) = self.durables.get_mut(&name) else { return };
                let Some(real) = &mut durable.real else { return };
                let count = durable.outstanding.len() * share / 4;
                if let Some(&next) = durable.outstanding[..count].last() {
                    real.commit(Offset::new(next));
                    durable.done = next;
                    durable.outstanding.drain(..count);
                    assert!(real.position().get() >= next);
                    // Going back changes nothing.
                    real.commit(Offset::new(1));
                    assert!(real.position().get() >= next);
                }
            }
            Step::Leave { name } => {
                if let Some(durable) = self.durables.get_mut(&name) {
                    durable.real = None;
                }
            }
            Step::Spill { prefix, hwm } if self.spilling.len() < 4 => {
                let options = SubscribeOptions::new("spilling").prefix(&prefix).hwm(hwm).overflow(Overflow::Spill);
                self.spilling.push(Spilling { real: self.broker.subscribe(options), prefix, read: self.next });
            }
            Step::Take { who, messages } if who < self.spilling.len() => {
                self.settle();
                let spilling = &mut self.spilling[who];
                let mut got = Vec::new();
                if let Ok(batch) = spilling.real.try_recv_batch(BatchLimit::messages(messages)) {
                    assert!(batch.len() <= messages);
                    got.extend(batch.iter().map(|delivery| match delivery {
                        Delivery::Message(message) => message.to_received(),
                        Delivery::Gap(gap) => panic!("nothing is lost: {gap:?}"),
                    }));
                }
                if got.is_empty() {
                    assert_eq!(self.log.next(spilling.read, &spilling.prefix), None, "there is more");
                }
                for message in got {
                    spilling.read = self.log.check(spilling.read, &spilling.prefix, &message);
                }
                let stats = spilling.real.handle().stats().expect("it lives");
                assert_eq!((stats.matched, stats.dropped), (stats.delivered + stats.queued, 0));
            }
            Step::Restart => {
                self.spilling.clear();
                self.durables.values_mut().for_each(|d| d.real = None);
                self.broker = Broker::default(); // the old one goes, and closes its journal
                self.broker = open(&self.dir);
            }
            _ => {}
        }
    }

    fn subscribe(&mut self, name: usize, prefix: Vec<u8>, hwm: usize, start: usize) {
        self.settle();
        let old = self.durables.remove(&name);
        if old.as_ref().is_some_and(|d| d.real.is_some()) {
            self.durables.extend(old.map(|d| (name, d)));
            return;
        }
        let (start, from) = match start {
            0 => (Start::Latest, self.next),
            1 => (Start::Earliest, 1),
            n => {
                let from = self.next * n as u64 / 4;
                (Start::Offset(Offset::new(from)), from.max(1))
            }
        };
        let options = SubscribeOptions::new("durable").prefix(&prefix).hwm(hwm);
        let real = self.broker.subscribe_durable(options, &name.to_string(), start).expect("subscribe");
        let at = real.position().get();
        match old {
            // Nothing that was not done is passed over, but for what is for others; what was done may come again only from there on.
            Some(old) => {
                assert!(at >= old.done, "{at} is before {}", old.done);
                let unread = self.log.next(old.done, &old.prefix);
                assert!(unread.is_none_or(|unread| at <= unread), "{at} passes {unread:?}");
            }
            None => assert_eq!(at, from),
        }
        let durable = Durable { real: Some(real), prefix, done: at, read: at, outstanding: Vec::new() };
        self.durables.insert(name, durable);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_a_list(steps in prop::collection::vec(step(), 1..80)) {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("journal");
        let mut world = World {
            broker: open(&path),
            dir: path,
            log: Log::default(),
            next: 1,
            durables: BTreeMap::new(),
            spilling: Vec::new(),
        };
        for step in steps {
            world.step(step);
        }
        // Everything that is left comes.
        for who in 0..world.spilling.len() {
            while world.log.next(world.spilling[who].read, &world.spilling[who].prefix).is_some() {
                world.step(Step::Take { who, messages: 1000 });
            }
        }
    }
}
