//! What a queued message takes beside its key and its payload, while nobody reads.
//!
//! Each contender fills its queues in a process of its own, which says how much its resident memory has grown for each message. Small payloads are made
//! for each message, as an ingress does; large ones are handles to one buffer, so that what is seen is what the queue adds, except
//! for libzmq, which copies them: there, one copy for all subscribers is what has to be.

use std::fs;
use std::process::Command;

use bytes::Bytes;
use hookbus_broker::{Broker, BrokerOptions, Message, SubscribeOptions};
use thiserror::Error;

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

/// The resident memory of this process, in bytes.
fn resident() -> f64 {
    let pages = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    pages.split(' ').nth(1).and_then(|n| n.parse().ok()).unwrap_or(0.0) * 4096.0
}

/// What this process's queues take for each of so many messages beside key and payload, in bytes. `None` for an unknown name.
pub fn of(who: &str, subscribers: usize, payload_bytes: usize, messages: usize) -> Option<f64> {
    let shared = Bytes::from(vec![b'x'; payload_bytes]);
    let payload = || if payload_bytes <= SMALL { Bytes::copy_from_slice(&shared) } else { shared.clone() };
    let mut counted = KEY.len() + if payload_bytes <= SMALL { payload_bytes } else { 0 };
    let mut queued = messages;
    let before;
    let after;
    match who {
        "hookbus" | "sparse" => {
            let broker = Broker::new(BrokerOptions::default().max_bytes(16 << 30));
            let options = |prefix: &str| SubscribeOptions::new("one").prefix(prefix).hwm(0).hwm_bytes(0);
            let sparse = who == "sparse";
            let subscriptions: Vec<_> = (0..subscribers).map(|_| broker.subscribe(options("EVENT STATE "))).collect();
            // The windows in which the broker finds out that the subscription is a sparse one.
            let others = if sparse { 999 } else { 0 };
            let mut reader = sparse.then(|| broker.subscribe(options("")));
            let mut publish = |count: usize| {
                for _ in 0..count {
                    for _ in 0..others {
                        let _ = broker.publish_now(Message::new("OTHER ", payload()));
                        if let Some(reader) = &mut reader {
                            let _ = reader.try_recv();
                        }
                    }
                    let _ = broker.publish_now(Message::new(KEY, payload()));
                    if let Some(reader) = &mut reader {
                        let _ = reader.try_recv();
                    }
                }
            };
            if sparse {
                queued = messages / 50;
                publish(100);
            }
            before = resident();
            publish(queued);
            after = resident();
            drop(subscriptions);
        }
        "crossbeam, a channel each" => {
            let channels: Vec<_> = (0..subscribers).map(|_| crossbeam_channel::unbounded()).collect();
            before = resident();
            for _ in 0..messages {
                let message = std::sync::Arc::new((KEY, payload()));
                channels.iter().for_each(|(sender, _)| drop(sender.send(std::sync::Arc::clone(&message))));
            }
            after = resident();
        }
        "tokio mpsc, a channel each" => {
            let channels: Vec<_> = (0..subscribers).map(|_| tokio::sync::mpsc::unbounded_channel()).collect();
            before = resident();
            for _ in 0..messages {
                let message = std::sync::Arc::new((KEY, payload()));
                channels.iter().for_each(|(sender, _)| drop(sender.send(std::sync::Arc::clone(&message))));
            }
            after = resident();
        }
        "tokio broadcast" => {
            before = resident();
            let (sender, first) = tokio::sync::broadcast::channel(messages);
            let receivers: Vec<_> = (1..subscribers).map(|_| sender.subscribe()).collect();
            for _ in 0..messages {
                let _ = sender.send((KEY, payload()));
            }
            after = resident();
            drop((first, receivers));
        }
        #[cfg(feature = "libzmq")]
        "libzmq inproc" => {
            counted = KEY.len() + payload_bytes;
            let context = zmq::Context::new();
            let publisher = context.socket(zmq::XPUB).ok()?;
            publisher.set_sndhwm(0).ok()?;
            publisher.set_xpub_verbose(true).ok()?;
            publisher.bind("inproc://memory").ok()?;
            let mut subscriptions = Vec::new();
            for _ in 0..subscribers {
                let socket = context.socket(zmq::SUB).ok()?;
                socket.set_rcvhwm(0).ok()?;
                socket.connect("inproc://memory").ok()?;
                socket.set_subscribe(b"").ok()?;
                publisher.recv_msg(0).ok()?;
                subscriptions.push(socket);
            }
            before = resident();
            for _ in 0..messages {
                publisher.send(KEY.as_slice(), zmq::SNDMORE).ok()?;
                publisher.send(&*shared, 0).ok()?;
            }
            after = resident();
        }
        _ => return None,
    }
    let _ = &mut counted;
    Some((after - before) / queued as f64 - counted as f64)
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
