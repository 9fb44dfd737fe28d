//! Ourselves: blocking subscriptions that take batches and read them by reference.

use std::collections::VecDeque;

use bytes::Bytes;
use hookbus_broker::{
    BatchLimit, Broker, Delivery, Message, MessageRef, Overflow, SubscribeOptions, Subscription, TryPublishError,
};

use super::{Checker, Failure, HWM, KEY, Publishing, Round, Workload, on_tasks, on_threads};

const BATCH: usize = 64;

/// All subscribers have the same prefix, as subscribers to one thing do.
fn alike(_: usize) -> &'static [u8] {
    b"EVENT STATE "
}

/// Prefixes of the key, all of different length as far as it reaches; from there, alike.
fn different(n: usize) -> &'static [u8] {
    &KEY[..n % (KEY.len() + 1)]
}

fn subscriptions(broker: &Broker, n: usize, prefix: fn(usize) -> &'static [u8]) -> Vec<Subscription> {
    let options = |i: usize| {
        SubscribeOptions::new(format!("subscriber {i}")).prefix(prefix(i)).hwm(HWM).overflow(Overflow::Block)
    };
    (0..n).map(|i| broker.subscribe(options(i))).collect()
}

fn check(checker: &mut Checker, delivery: &Delivery<MessageRef<'_>>) {
    match delivery {
        Delivery::Message(message) => {
            checker.take(message.matched_keys().next().unwrap_or_default(), message.payload());
        }
        Delivery::Gap(gap) => checker.gap(gap.count),
    }
}

pub(super) fn consume(mut subscription: Subscription, checker: &mut Checker) {
    while let Some(batch) = subscription.recv_batch_blocking(BatchLimit::default()) {
        batch.iter().for_each(|delivery| check(checker, &delivery));
    }
}

fn message(payload: Bytes) -> Message {
    Message::new(KEY, payload)
}

fn run_threads(
    workload: &Workload,
    n: usize,
    prefix: fn(usize) -> &'static [u8],
    publish: impl FnOnce(&Broker, &mut Publishing) -> Result<(), Failure>,
) -> Result<Round, Failure> {
    let broker = Broker::default();
    on_threads(workload, subscriptions(&broker, n, prefix), consume, |publishing| {
        let published = publish(&broker, publishing);
        broker.close();
        published
    })
}

pub(super) fn one_by_one(broker: &Broker, publishing: &mut Publishing) -> Result<(), Failure> {
    while let Some(payload) = publishing.next() {
        broker.publish_blocking(message(payload)).map_err(Failure::contender)?;
    }
    Ok(())
}

pub(super) fn threads(workload: &Workload, n: usize) -> Result<Round, Failure> {
    run_threads(workload, n, alike, one_by_one)
}

/// Subscriptions with different prefix sets share less inside the broker.
pub(super) fn distinct(workload: &Workload, n: usize) -> Result<Round, Failure> {
    run_threads(workload, n, different, one_by_one)
}

pub(super) fn batches(workload: &Workload, n: usize) -> Result<Round, Failure> {
    run_threads(workload, n, alike, |broker, publishing| {
        let mut batch = VecDeque::with_capacity(BATCH);
        loop {
            while batch.len() < BATCH
                && let Some(payload) = publishing.next()
            {
                batch.push_back(message(payload));
            }
            if batch.is_empty() {
                return Ok(());
            }
            match broker.try_publish_batch(&mut batch) {
                Ok(_) => {}
                // Waits for room with the first of them, then goes on with the rest.
                Err(TryPublishError::WouldBlock) => {
                    if let Some(first) = batch.pop_front() {
                        broker.publish_blocking(first).map_err(Failure::contender)?;
                    }
                }
                Err(TryPublishError::Refused(error)) => return Err(Failure::contender(error)),
            }
        }
    })
}

pub(super) fn tasks(workload: &Workload, n: usize) -> Result<Round, Failure> {
    let broker = Broker::default();
    let consumer = |mut subscription: Subscription| {
        let mut checker = workload.checker();
        async move {
            while let Some(batch) = subscription.recv_batch(BatchLimit::default()).await {
                batch.iter().for_each(|delivery| check(&mut checker, &delivery));
            }
            checker
        }
    };
    let subscribers = subscriptions(&broker, n, alike).into_iter().map(consumer).collect();
    on_tasks(workload, subscribers, |mut publishing| async move {
        while let Some(payload) = publishing.next() {
            if let Err(error) = broker.publish(message(payload)).await {
                broker.close();
                return Err(Failure::contender(error));
            }
        }
        broker.close();
        Ok(publishing)
    })
}
