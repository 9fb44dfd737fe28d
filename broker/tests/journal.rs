//! The journal, from outside: what is published is there again, in order, however the program ended.
#![cfg(feature = "journal")]

use hookbus_broker::{
    BatchLimit, Broker, Delivery, Journal, JournalOptions, Message, Offset, Overflow, Received, Start, SubscribeOptions,
};

fn open(dir: &std::path::Path) -> Broker {
    let broker = Broker::default();
    broker.attach_journal(Journal::open(JournalOptions::new(dir).max_bytes(16 << 20)).expect("open")).expect("attach");
    broker
}

fn messages(deliveries: Vec<Delivery<Received>>) -> Vec<Received> {
    deliveries.into_iter().map(|d| d.message().expect("no gap")).collect()
}

#[tokio::test]
async fn a_durable_subscription_goes_on_where_it_was() {
    let dir = tempfile::tempdir().expect("directory");
    let options = SubscribeOptions::new("test").prefix("EVENT VM ");
    let log;
    {
        let broker = open(dir.path());
        log = broker.log_id();
        let mut durable = broker.subscribe_durable(options.clone(), "audit", Start::Latest).expect("subscribe");
        for n in 0..100u32 {
            let key = if n % 2 == 0 { "EVENT VM 7 " } else { "EVENT HOST 7 " };
            broker.publish(Message::new(key, n.to_string())).await.expect("publish");
        }
        let mut got = Vec::new();
        while got.len() < 20 {
            assert!(durable.recv_batch(BatchLimit::messages(20), &mut got).await);
        }
        let got = messages(got);
        assert_eq!(got[0].payload(), "0");
        assert_eq!(got[19].payload(), "38");
        durable.commit(Offset::new(got[9].offset().get() + 1));
        assert!(broker.subscribe_durable(options.clone(), "audit", Start::Latest).is_err());
    }
    let broker = open(dir.path());
    assert_eq!(broker.log_id(), log);
    let mut durable = broker.subscribe_durable(options, "audit", Start::Latest).expect("subscribe");
    let last = broker.publish(Message::new("EVENT VM 8 ", "last")).await.expect("publish");
    assert_eq!(last.get(), 101);
    let mut got = Vec::new();
    while got.len() < 41 {
        assert!(durable.recv_batch(BatchLimit::default(), &mut got).await);
    }
    let got = messages(got);
    assert_eq!(got.len(), 41);
    assert_eq!(got[0].payload(), "20");
    assert_eq!(got[40].payload(), "last");
    assert_eq!(got[40].id().log, log);
}

/// A reader that is slow gets everything, in order, while publishers run flat out.
#[test]
fn spill_loses_nothing() {
    let dir = tempfile::tempdir().expect("directory");
    let broker = open(dir.path());
    let mut spilling = broker.subscribe(SubscribeOptions::new("slow").prefix("a").hwm(50).overflow(Overflow::Spill));
    let mut durable = broker
        .subscribe_durable(SubscribeOptions::new("durable").prefix("a").hwm(50), "slow", Start::Latest)
        .expect("subscribe");
    const COUNT: u32 = 20_000;
    let publisher = std::thread::spawn({
        let broker = broker.clone();
        move || {
            for n in 0..COUNT {
                broker.publish_now(Message::new(if n % 3 == 0 { "b" } else { "a" }, n.to_string())).expect("publish");
            }
        }
    });
    let expected: Vec<String> = (0..COUNT).filter(|n| n % 3 != 0).map(|n| n.to_string()).collect();
    let mut got = Vec::new();
    while got.len() < expected.len() {
        let batch = spilling.recv_batch_blocking(BatchLimit::messages(7)).expect("open");
        for delivery in batch.iter() {
            let message = delivery.message().expect("no gap");
            assert_eq!(message.matched_keys().collect::<Vec<_>>(), [b"a"]);
            got.push(String::from_utf8_lossy(message.payload()).into_owned());
        }
    }
    assert_eq!(got, expected);
    publisher.join().expect("publisher");
    let stats = spilling.handle().stats().expect("it lives");
    assert_eq!((stats.delivered, stats.dropped, stats.queued), (expected.len() as u64, 0, 0));
    let mut got = Vec::new();
    while got.len() < expected.len() {
        assert!(durable.recv_batch_blocking(BatchLimit::messages(7), &mut got));
    }
    let got: Vec<String> = messages(got).iter().map(|m| String::from_utf8_lossy(m.payload()).into_owned()).collect();
    assert_eq!(got, expected);
}
