//! The broker under loom: every order in which threads can meet, within a bound on preemptions, and what memory orders allow.
//!
//! `RUSTFLAGS="--cfg hookbus_loom" cargo test -p hookbus-broker --release --test loom`
//! (a name of our own, because dependencies answer to `--cfg loom`, too).

#![cfg(hookbus_loom)]

use hookbus_broker::{BatchLimit, Broker, Delivery, Message, Overflow, SubscribeOptions, Subscription};
use loom::future::block_on;
use loom::thread;

fn check(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(model);
}

fn message(n: u8) -> Message {
    Message::new("k", vec![n])
}

fn all(name: &str) -> SubscribeOptions {
    SubscribeOptions::new(name).prefix("")
}

/// What a subscription tells until the broker is closed: messages in order, and gaps where some are missing.
fn tell(mut subscription: Subscription) -> (Vec<u8>, u64) {
    let (mut got, mut dropped, mut last) = (Vec::new(), 0, 0);
    while let Some(delivery) = block_on(subscription.recv()) {
        match delivery {
            Delivery::Message(message) => {
                assert!(message.offset().get() > last, "order");
                last = message.offset().get();
                got.push(message.payload()[0]);
            }
            Delivery::Gap(gap) => {
                assert!(gap.first.get() > last && gap.last >= gap.first, "order of gaps");
                last = gap.last.get();
                dropped += gap.count;
            }
        }
    }
    (got, dropped)
}

#[test]
fn a_reader_that_sleeps_is_woken() {
    check(|| {
        let broker = Broker::default();
        let subscription = broker.subscribe(all("one"));
        let reader = thread::spawn(move || tell(subscription));
        broker.publish_now(message(1)).unwrap();
        broker.publish_now(message(2)).unwrap();
        broker.close();
        assert_eq!(reader.join().unwrap(), (vec![1, 2], 0));
    });
}

fn conserves(overflow: Overflow) {
    check(move || {
        let broker = Broker::default();
        let subscription = broker.subscribe(all("one").hwm(1).overflow(overflow));
        let reader = thread::spawn(move || tell(subscription));
        for n in 1..=3 {
            broker.publish_now(message(n)).unwrap();
        }
        broker.close();
        let (got, dropped) = reader.join().unwrap();
        assert_eq!(got.len() as u64 + dropped, 3);
        assert!(got.is_sorted());
    });
}

#[test]
fn dropping_the_newest_loses_nothing_untold() {
    conserves(Overflow::DropNewest);
}

#[test]
fn dropping_the_oldest_loses_nothing_untold() {
    conserves(Overflow::DropOldest);
}

#[test]
fn a_publisher_that_waits_for_room_is_woken() {
    check(|| {
        let broker = Broker::default();
        let subscription = broker.subscribe(all("one").hwm(1).overflow(Overflow::Block));
        broker.publish_now(message(1)).unwrap();
        let reader = thread::spawn(move || tell(subscription));
        block_on(broker.publish(message(2))).unwrap();
        broker.close();
        assert_eq!(reader.join().unwrap(), (vec![1, 2], 0));
    });
}

#[test]
fn publishers_keep_one_order() {
    check(|| {
        let broker = Broker::default();
        let mut subscription = broker.subscribe(all("one"));
        let other = thread::spawn({
            let broker = broker.clone();
            move || broker.publish_now(message(1)).unwrap()
        });
        broker.publish_now(message(2)).unwrap();
        other.join().unwrap();
        let batch = subscription.try_recv_batch(BatchLimit::messages(5)).unwrap();
        let offsets: Vec<_> = batch.iter().filter_map(Delivery::message).map(|m| m.offset().get()).collect();
        assert_eq!(offsets, [1, 2]);
    });
}

#[test]
fn a_neighbour_that_leaves_takes_nothing_along() {
    check(|| {
        let broker = Broker::default();
        let stays = broker.subscribe(all("stays"));
        let leaves = broker.subscribe(all("leaves"));
        let reader = thread::spawn(move || tell(stays));
        let leaver = thread::spawn(move || drop(leaves));
        broker.publish_now(message(1)).unwrap();
        leaver.join().unwrap();
        broker.publish_now(message(2)).unwrap();
        broker.close();
        assert_eq!(reader.join().unwrap(), (vec![1, 2], 0));
    });
}

/// A subscription that changes its prefixes moves between lanes, with what it has queued, while a message comes in.
#[test]
fn a_change_of_prefixes_loses_nothing() {
    check(|| {
        let broker = Broker::default();
        let _shares = broker.subscribe(all("shares"));
        let subscription = broker.subscribe(all("changes"));
        let handle = subscription.handle().clone();
        let changer = thread::spawn(move || {
            handle.add_prefixes(["k"]);
        });
        let reader = thread::spawn(move || tell(subscription));
        broker.publish_now(message(1)).unwrap();
        changer.join().unwrap();
        broker.publish_now(message(2)).unwrap();
        broker.close();
        assert_eq!(reader.join().unwrap(), (vec![1, 2], 0));
    });
}

/// What is told of a run while the next message is put in belongs to the messages that are taken: the reader itself checks it here, against the records.
#[test]
fn a_batch_is_accounted_for_as_it_is() {
    check(|| {
        let broker = Broker::default();
        let mut subscription = broker.subscribe(all("batches"));
        broker.publish_now(Message::new("k", vec![0; 3])).unwrap();
        let reader = thread::spawn(move || {
            let mut taken = 0;
            while let Some(batch) = block_on(subscription.recv_batch(BatchLimit::default())) {
                taken += batch.len();
            }
            taken
        });
        broker.publish_now(Message::new("key", vec![0; 20])).unwrap();
        broker.publish_now(Message::new("k", vec![0; 9])).unwrap();
        broker.close();
        assert_eq!(reader.join().unwrap(), 3);
    });
}
