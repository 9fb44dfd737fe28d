//! What a queued message takes beside its key and its payload, while nobody reads.
//!
//! Each contender fills its queues in a process of its own, which says how much its resident memory has grown for each message. Small payloads are made
//! for each message, as an ingress does; large ones are handles to one buffer, so that what is seen is what the queue adds, except
//! for libzmq, which copies them: there, one copy for all subscribers is what has to be.

use std::fs;
use std::process::Command;
use std::sync::Arc;

use bytes::Bytes;
use hookbus_broker::{Broker, BrokerOptions, Message, SubscribeOptions, Subscription};
use thiserror::Error;
use tokio::sync::{broadcast, mpsc};

use crate::inproc::KEY;
use crate::report::{Aim, Better, Measure, Report, Side, Who};

/// What is measured.
pub const MEMORY: Measure =
    Measure { name: "memory of a queued message beside key and payload", unit: "bytes", better: Better::Lower };

/// A payload up to this size is made for each message.
const SMALL: usize = 128;

const OURS: Who = Who { name: "hookbus", side: Side::Ours, class: None };
const PEERS: [Who; 3] = [
    Who { name: "crossbeam, a channel each", side: Side::Peer, class: None },
    Who { name: "tokio broadcast", side: Side::Peer, class: None },
    #[cfg(feature = "libzmq")]
    Who { name: "libzmq inproc", side: Side::Peer, class: None },
    #[cfg(not(feature = "libzmq"))]
    Who { name: "tokio mpsc, a channel each", side: Side::Peer, class: None },
];

/// Why there is no figure.
#[derive(Debug, Error)]
#[error("{who}: {what}")]
pub struct MemoryError {
    who: String,
    what: String,
}

/// Runs every contender, each in a process, so many rounds.
///
/// # Errors
/// When a process can't be started, or fails.
pub fn compare(
    report: &mut Report,
    messages: usize,
    rounds: usize,
    mut progress: impl FnMut(&str),
) -> Result<(), MemoryError> {
    let cases = [(4, 64, 30.0), (4, 2048, 55.0), (64, 64, 30.0), (64, 2048, 55.0)];
    for (subscribers, payload, aim) in cases {
        let case = format!("{subscribers} subscribers that don't read, {payload} bytes of payload");
        for _ in 0..rounds {
            for who in std::iter::once(OURS).chain(PEERS) {
                progress(&format!("{case}, {}", who.name));
                let arguments = [who.name, &subscribers.to_string(), &payload.to_string(), &messages.to_string()];
                report.record(MEMORY, &case, who, in_a_process(&arguments)?);
            }
        }
        report.aim(MEMORY, &case, OURS, Aim::Value(aim));
    }
    let case = "a subscriber that doesn't read, one of 1,000 messages matches, 64 bytes of payload";
    for _ in 0..rounds {
        report.record(MEMORY, case, OURS, in_a_process(&["sparse", "1", "64", &messages.to_string()])?);
    }
    report.aim(MEMORY, case, OURS, Aim::Value(60.0));
    Ok(())
}

fn in_a_process(arguments: &[&str]) -> Result<f64, MemoryError> {
    let error = |what: String| MemoryError { who: arguments[0].to_owned(), what };
    let program = std::env::current_exe().map_err(|e| error(e.to_string()))?;
    let output = Command::new(program).arg("memory-of").args(arguments).output().map_err(|e| error(e.to_string()))?;
    let said = String::from_utf8_lossy(&output.stdout);
    match said.trim().parse() {
        Ok(bytes) if output.status.success() => Ok(bytes),
        _ => Err(error(format!("{said}{}", String::from_utf8_lossy(&output.stderr)))),
    }
}

/// The resident memory of this process that is its own, in bytes: without the pages of its program, which come and go as they please.
fn resident() -> f64 {
    let pages = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let mut pages = pages.split(' ').skip(1).map(|n| n.parse().unwrap_or(0.0));
    let (resident, shared) = (pages.next().unwrap_or(0.0), pages.next().unwrap_or(0.0));
    (resident - shared) * 4096.0
}

/// Publishes so many times; what the process has grown by for each, in bytes.
fn growth(messages: usize, mut publish: impl FnMut()) -> f64 {
    let before = resident();
    (0..messages).for_each(|_| publish());
    (resident() - before) / messages as f64
}

/// What this process's queues take for each of so many messages beside key and payload, in bytes. `None` for an unknown name.
pub fn of(who: &str, subscribers: usize, payload_bytes: usize, messages: usize) -> Option<f64> {
    let shared = Bytes::from(vec![b'x'; payload_bytes]);
    let payload = || if payload_bytes <= SMALL { Bytes::copy_from_slice(&shared) } else { shared.clone() };
    let message = || Arc::new((KEY, payload()));
    let own = KEY.len() + if payload_bytes <= SMALL { payload_bytes } else { 0 };
    let grown = match who {
        "hookbus" => {
            let broker = Broker::new(BrokerOptions::default().max_bytes(16 << 30));
            let _subscriptions: Vec<_> = (0..subscribers).map(|_| subscribe(&broker, "EVENT STATE ")).collect();
            growth(messages, || {
                let _ = broker.publish_now(Message::new(KEY, payload()));
            })
        }
        "sparse" => {
            let broker = Broker::new(BrokerOptions::default().max_bytes(16 << 30));
            let _sparse = subscribe(&broker, "EVENT STATE ");
            let mut reader = subscribe(&broker, "");
            let mut publish = || {
                for n in 0..1000 {
                    let key = if n == 0 { KEY.as_slice() } else { b"OTHER " };
                    let _ = broker.publish_now(Message::new(key, payload()));
                    let _ = reader.try_recv();
                }
            };
            // In these windows the broker finds out that the subscription is a sparse one.
            (0..100).for_each(|_| publish());
            growth(messages / 10, publish)
        }
        "crossbeam, a channel each" => {
            let channels: Vec<_> = (0..subscribers).map(|_| crossbeam_channel::unbounded()).collect();
            growth(messages, || {
                let message = message();
                channels.iter().for_each(|(sender, _)| drop(sender.send(Arc::clone(&message))));
            })
        }
        "tokio mpsc, a channel each" => {
            let channels: Vec<_> = (0..subscribers).map(|_| mpsc::unbounded_channel()).collect();
            growth(messages, || {
                let message = message();
                channels.iter().for_each(|(sender, _)| drop(sender.send(Arc::clone(&message))));
            })
        }
        "tokio broadcast" => {
            // All slots are there from the beginning, so they count.
            let before = resident();
            let (sender, first) = broadcast::channel(messages);
            let _receivers: Vec<_> = (1..subscribers).map(|_| sender.subscribe()).chain([first]).collect();
            (0..messages).for_each(|_| drop(sender.send((KEY, payload()))));
            (resident() - before) / messages as f64
        }
        // It copies the payload: one copy for all is what has to be.
        #[cfg(feature = "libzmq")]
        "libzmq inproc" => libzmq(&shared, subscribers, messages).ok()? - (payload_bytes - (own - KEY.len())) as f64,
        _ => return None,
    };
    Some(grown - own as f64)
}

fn subscribe(broker: &Broker, prefix: &str) -> Subscription {
    broker.subscribe(SubscribeOptions::new("one").prefix(prefix).hwm(0).hwm_bytes(0))
}

#[cfg(feature = "libzmq")]
fn libzmq(payload: &[u8], subscribers: usize, messages: usize) -> zmq::Result<f64> {
    let context = zmq::Context::new();
    let publisher = context.socket(zmq::XPUB)?;
    publisher.set_sndhwm(0)?;
    publisher.set_xpub_verbose(true)?;
    publisher.bind("inproc://memory")?;
    let subscriber = |_| {
        let socket = context.socket(zmq::SUB)?;
        socket.set_rcvhwm(0)?;
        socket.connect("inproc://memory")?;
        socket.set_subscribe(b"")?;
        publisher.recv_msg(0)?;
        Ok(socket)
    };
    let _subscribers: Vec<_> = (0..subscribers).map(subscriber).collect::<zmq::Result<_>>()?;
    Ok(growth(messages, || {
        let _ = publisher.send(KEY.as_slice(), zmq::SNDMORE);
        let _ = publisher.send(payload, 0);
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_contender_fills_its_queues() {
        for who in std::iter::once(OURS).chain(PEERS) {
            assert!(of(who.name, 2, 64, 100).is_some(), "{}", who.name);
        }
        assert!(of("sparse", 1, 64, 100).is_some());
        assert!(of("nobody", 1, 64, 100).is_none());
    }
}
