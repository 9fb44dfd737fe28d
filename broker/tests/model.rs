//! The broker against a plain model: random operations, one at a time, after each of which both must agree.
//!
//! The model keeps, for each subscription, every message that matched it, in order, with its fate. What the broker delivers must be
//! those messages, and its gaps must cover exactly the runs of dropped ones between them; so conservation and order are checked
//! at every step, not only at the end.

use std::collections::VecDeque;

use bytes::Bytes;
use hookbus_broker::{
    BatchLimit, Broker, Delivery, EndReason, Message, Overflow, Received, SubscribeOptions, Subscription,
    TryPublishError, TryRecvError,
};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Subscribe { prefixes: Vec<Vec<u8>>, hwm: usize, hwm_bytes: usize, overflow: Overflow },
    Unsubscribe { who: usize },
    Close { who: usize },
    Add { who: usize, prefixes: Vec<Vec<u8>> },
    Remove { who: usize, prefixes: Vec<Vec<u8>> },
    Publish { message: Sample, now: bool },
    Batch { messages: Vec<Sample>, now: bool },
    Many { message: Sample, count: usize },
    Receive { who: usize },
    ReceiveBatch { who: usize, messages: usize, bytes: usize },
    Drain { who: usize },
}

#[derive(Clone, Debug)]
struct Sample {
    keys: Vec<Vec<u8>>,
    size: usize,
    /// Whether the payload is a slice of something larger.
    slice: bool,
}

/// Without a journal, as here, it drops the oldest.
#[cfg(feature = "journal")]
fn spill() -> Overflow {
    Overflow::Spill
}

#[cfg(not(feature = "journal"))]
fn spill() -> Overflow {
    Overflow::DropOldest
}

fn word() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop::sample::select(b"ab".to_vec()), 0..4)
}

fn sample() -> impl Strategy<Value = Sample> {
    let size = prop_oneof![4 => 0usize..40, 2 => 100usize..160, 1 => 2000usize..5000];
    (prop::collection::vec(word(), 1..4), size, any::<bool>()).prop_map(|(keys, size, slice)| Sample {
        keys,
        size,
        slice,
    })
}

fn step() -> impl Strategy<Value = Step> {
    let overflow = prop_oneof![
        3 => Just(Overflow::DropNewest),
        3 => Just(Overflow::DropOldest),
        2 => Just(Overflow::Block),
        1 => Just(Overflow::Disconnect),
        1 => Just(spill())
    ];
    let prefixes = || prop::collection::vec(word(), 0..3);
    let hwm = prop_oneof![Just(0usize), 1usize..4, Just(50usize)];
    let hwm_bytes = prop_oneof![3 => Just(0usize), 1 => 1usize..400];
    let who = 0usize..8;
    prop_oneof![
        3 => (prefixes(), hwm, hwm_bytes, overflow)
            .prop_map(|(prefixes, hwm, hwm_bytes, overflow)| Step::Subscribe { prefixes, hwm, hwm_bytes, overflow }),
        1 => who.clone().prop_map(|who| Step::Unsubscribe { who }),
        1 => who.clone().prop_map(|who| Step::Close { who }),
        2 => (who.clone(), prefixes()).prop_map(|(who, prefixes)| Step::Add { who, prefixes }),
        2 => (who.clone(), prefixes()).prop_map(|(who, prefixes)| Step::Remove { who, prefixes }),
        8 => (sample(), any::<bool>()).prop_map(|(message, now)| Step::Publish { message, now }),
        3 => (prop::collection::vec(sample(), 0..6), any::<bool>()).prop_map(|(messages, now)| Step::Batch { messages, now }),
        1 => (sample(), 1usize..1500).prop_map(|(message, count)| Step::Many { message, count }),
        6 => who.clone().prop_map(|who| Step::Receive { who }),
        4 => (who.clone(), 0usize..6, 0usize..300)
            .prop_map(|(who, messages, bytes)| Step::ReceiveBatch { who, messages, bytes }),
        2 => who.prop_map(|who| Step::Drain { who }),
    ]
}

#[derive(Clone, Debug, PartialEq)]
struct Matched {
    offset: u64,
    keys: Vec<Vec<u8>>,
    matched: Vec<Vec<u8>>,
    payload: Bytes,
    dropped: bool,
}

impl Matched {
    fn size(&self) -> usize {
        self.keys.iter().map(Vec::len).sum::<usize>() + self.payload.len()
    }
}

/// One subscription of the model, and the real one.
struct Reader {
    real: Subscription,
    prefixes: Vec<Vec<u8>>,
    hwm: usize,
    hwm_bytes: usize,
    overflow: Overflow,
    /// What matched and was not yet told.
    untold: VecDeque<Matched>,
    delivered: u64,
    dropped: u64,
    end: Option<EndReason>,
    /// Once it drops the newest it goes on, until its reader comes back.
    dropping: bool,
}

impl Reader {
    fn queued(&self) -> impl Iterator<Item = &Matched> {
        self.untold.iter().filter(|m| !m.dropped)
    }

    fn is_full(&self, size: usize) -> bool {
        let (count, bytes) = (self.queued().count(), self.queued().map(Matched::size).sum::<usize>());
        count > 0 && (self.hwm != 0 && count >= self.hwm || self.hwm_bytes != 0 && bytes + size > self.hwm_bytes)
    }

    fn matching(&self, sample: &Sample) -> Vec<Vec<u8>> {
        sample.keys.iter().filter(|k| self.prefixes.iter().any(|p| k.starts_with(p))).cloned().collect()
    }

    fn takes(&self, sample: &Sample) -> bool {
        self.end.is_none() && !self.matching(sample).is_empty()
    }

    fn put(&mut self, sample: &Sample, offset: u64, payload: &Bytes) {
        let mut new = Matched {
            offset,
            keys: sample.keys.clone(),
            matched: self.matching(sample),
            payload: payload.clone(),
            dropped: false,
        };
        if self.dropping {
            new.dropped = true;
        } else if self.is_full(new.size()) {
            match self.overflow {
                Overflow::DropNewest => {
                    new.dropped = true;
                    self.dropping = true;
                }
                Overflow::Disconnect => {
                    new.dropped = true;
                    self.end = Some(EndReason::Overflowed);
                }
                _ => {
                    while self.is_full(new.size()) {
                        self.untold.iter_mut().find(|m| !m.dropped).expect("full").dropped = true;
                        self.dropped += 1;
                    }
                }
            }
        }
        self.dropped += u64::from(new.dropped);
        self.untold.push_back(new);
    }

    /// What the real subscription has yielded must be what comes next here.
    fn check(&mut self, delivery: Delivery<Received>) {
        match delivery {
            Delivery::Message(message) => {
                let expected = self.untold.pop_front().expect("a message that the model knows");
                let got = Matched {
                    offset: message.offset().get(),
                    keys: message.keys().map(<[u8]>::to_vec).collect(),
                    matched: message.matched_keys().map(<[u8]>::to_vec).collect(),
                    payload: message.payload().clone(),
                    dropped: false,
                };
                assert_eq!(got, expected);
                self.delivered += 1;
            }
            Delivery::Gap(gap) => {
                let told: Vec<Matched> = self.untold.drain(..gap.count as usize).collect();
                assert!(told.iter().all(|m| m.dropped), "{gap:?} covers a message that was queued");
                assert_eq!(gap.first.get(), told[0].offset);
                assert_eq!(gap.last.get(), told[told.len() - 1].offset);
            }
        }
    }

    fn check_stats(&self) {
        let stats = self.real.handle().stats().expect("it lives");
        let queued = self.queued().count() as u64;
        assert_eq!(stats.queued, queued, "queued");
        assert_eq!(stats.queued_bytes, self.queued().map(Matched::size).sum::<usize>() as u64, "queued bytes");
        assert_eq!((stats.delivered, stats.dropped), (self.delivered, self.dropped), "delivered, dropped");
        assert_eq!(stats.matched, self.delivered + self.dropped + queued, "matched");
        assert_eq!(stats.prefixes, self.prefixes.len(), "prefixes");
        assert_eq!(stats.end, self.end, "end");
    }
}

#[derive(Default)]
struct World {
    broker: Broker,
    readers: Vec<Reader>,
    next: u64,
    published: u64,
    gone: (u64, u64, u64),
}

impl World {
    fn message(&self, sample: &Sample, n: u64) -> (Message, Bytes) {
        let mut bytes = vec![b'.'; sample.size + 10];
        bytes[..8].copy_from_slice(&n.to_be_bytes());
        let whole = Bytes::from(bytes);
        let payload =
            if sample.slice { whole.slice(..sample.size) } else { Bytes::copy_from_slice(&whole[..sample.size]) };
        // A copy for the model, so that the broker's is unique unless it is to be a slice.
        let copy = Bytes::copy_from_slice(&payload);
        drop(if sample.slice { Bytes::new() } else { whole.clone() });
        let mut message = Message::new(&sample.keys[0], payload);
        for key in &sample.keys[1..] {
            message = message.with_key(key);
        }
        (message, copy)
    }

    fn blocked(&self, sample: &Sample) -> bool {
        let size = sample.keys.iter().map(Vec::len).sum::<usize>() + sample.size;
        self.readers.iter().any(|r| r.overflow == Overflow::Block && r.takes(sample) && r.is_full(size))
    }

    fn accept(&mut self, sample: &Sample, payload: &Bytes) {
        self.next += 1;
        self.published += 1;
        for reader in &mut self.readers {
            if reader.takes(sample) {
                reader.put(sample, self.next, payload);
            }
        }
    }

    fn publish(&mut self, sample: &Sample, now: bool) {
        let (message, payload) = self.message(sample, self.next);
        if now {
            let offset = self.broker.publish_now(message).expect("open");
            assert_eq!(offset.get(), self.next + 1);
            self.accept(sample, &payload);
        } else if self.blocked(sample) {
            let (error, back) = self.broker.try_publish(message.clone()).expect_err("a blocking subscription is full");
            assert_eq!((error, back), (TryPublishError::WouldBlock, message));
        } else {
            let offset = self.broker.try_publish(message).expect("nobody blocks");
            assert_eq!(offset.get(), self.next + 1);
            self.accept(sample, &payload);
        }
    }

    fn batch(&mut self, samples: &[Sample], now: bool) {
        let (messages, payloads): (VecDeque<_>, Vec<_>) = samples.iter().map(|s| self.message(s, self.next)).unzip();
        let mut real = messages;
        let result = if now {
            self.broker.publish_batch_now(&mut real).map_err(TryPublishError::from)
        } else {
            self.broker.try_publish_batch(&mut real)
        };
        let mut accepted = 0;
        for (sample, payload) in samples.iter().zip(&payloads) {
            if !now && self.blocked(sample) {
                break;
            }
            self.accept(sample, payload);
            accepted += 1;
        }
        assert_eq!(real.len(), samples.len() - accepted, "what was not accepted is left");
        match result {
            Ok(count) => assert_eq!(count, accepted),
            Err(error) => assert_eq!((error, accepted), (TryPublishError::WouldBlock, 0)),
        }
    }

    fn step(&mut self, step: Step) {
        let n = self.readers.len();
        match step {
            Step::Subscribe { prefixes, hwm, hwm_bytes, overflow } if n < 8 => {
                let mut options = SubscribeOptions::new("model").hwm(hwm).hwm_bytes(hwm_bytes).overflow(overflow);
                for prefix in &prefixes {
                    options = options.prefix(prefix);
                }
                let mut unique = prefixes;
                unique.sort();
                unique.dedup();
                let real = self.broker.subscribe(options);
                let (untold, end, dropping) = (VecDeque::new(), None, false);
                let prefixes = unique;
                let (delivered, dropped) = (0, 0);
                let reader =
                    Reader { real, prefixes, hwm, hwm_bytes, overflow, untold, delivered, dropped, end, dropping };
                self.readers.push(reader);
            }
            Step::Unsubscribe { who } if who < n => {
                let reader = self.readers.remove(who);
                self.gone.0 += reader.delivered;
                self.gone.1 += reader.dropped;
                self.gone.2 += reader.queued().count() as u64;
            }
            Step::Close { who } if who < n => {
                self.readers[who].real.handle().close();
                self.readers[who].end.get_or_insert(EndReason::Closed);
            }
            Step::Add { who, prefixes } if who < n => {
                let reader = &mut self.readers[who];
                let mut new = 0;
                for prefix in &prefixes {
                    if !reader.prefixes.contains(prefix) {
                        reader.prefixes.push(prefix.clone());
                        new += 1;
                    }
                }
                assert_eq!(reader.real.handle().add_prefixes(&prefixes), new);
            }
            Step::Remove { who, prefixes } if who < n => {
                let reader = &mut self.readers[who];
                let before = reader.prefixes.len();
                reader.prefixes.retain(|p| !prefixes.contains(p));
                assert_eq!(reader.real.handle().remove_prefixes(&prefixes), before - reader.prefixes.len());
            }
            Step::Publish { message, now } => self.publish(&message, now),
            Step::Batch { messages, now } => self.batch(&messages, now),
            Step::Many { message, count } => {
                for _ in 0..count {
                    self.publish(&message, true);
                }
            }
            Step::Receive { who } if who < n => {
                let reader = &mut self.readers[who];
                reader.dropping = false;
                match reader.real.try_recv() {
                    Ok(delivery) => reader.check(delivery),
                    Err(TryRecvError::Empty) => assert!(reader.untold.is_empty() && reader.end.is_none()),
                    Err(TryRecvError::Ended) => assert!(reader.untold.is_empty() && reader.end.is_some()),
                }
            }
            Step::ReceiveBatch { who, messages, bytes } if who < n => {
                let limit = BatchLimit::messages(messages).bytes(bytes);
                let reader = &mut self.readers[who];
                reader.dropping = false;
                let Ok(batch) = reader.real.try_recv_batch(limit) else {
                    assert!(reader.untold.is_empty());
                    return;
                };
                assert!(batch.len() <= messages.max(1));
                let deliveries: Vec<_> = batch
                    .iter()
                    .map(|delivery| match delivery {
                        Delivery::Message(message) => Delivery::Message(message.to_received()),
                        Delivery::Gap(gap) => Delivery::Gap(gap),
                    })
                    .collect();
                drop(batch);
                deliveries.into_iter().for_each(|d| reader.check(d));
            }
            Step::Drain { who } if who < n => {
                let reader = &mut self.readers[who];
                reader.dropping = false;
                while let Ok(delivery) = reader.real.try_recv() {
                    reader.check(delivery);
                }
                assert!(reader.untold.is_empty(), "everything was told");
            }
            _ => {}
        }
    }

    fn check(&self) {
        self.readers.iter().for_each(Reader::check_stats);
        let stats = self.broker.stats();
        assert_eq!(stats.published, self.published);
        assert_eq!(stats.subscriptions, self.readers.len());
        assert_eq!(stats.delivered, self.gone.0 + self.readers.iter().map(|r| r.delivered).sum::<u64>());
        assert_eq!(stats.dropped, self.gone.1 + self.readers.iter().map(|r| r.dropped).sum::<u64>());
        assert_eq!(stats.abandoned, self.gone.2);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_the_model(steps in prop::collection::vec(step(), 1..120)) {
        let mut world = World::default();
        for step in steps {
            world.step(step);
            world.check();
        }
        // All that is queued can still be read, and nothing is held when it was.
        world.broker.close();
        for reader in &mut world.readers {
            reader.end.get_or_insert(EndReason::BrokerClosed);
            while let Ok(delivery) = reader.real.try_recv() {
                reader.check(delivery);
            }
            assert!(reader.untold.is_empty());
            assert_eq!(reader.real.try_recv(), Err(TryRecvError::Ended));
        }
        world.check();
    }
}
