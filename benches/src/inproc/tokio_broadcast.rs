//! tokio's broadcast channel, kept lossless.
//!
//! By itself it overwrites what a slow receiver hasn't taken. Here the sender asks how full it is and lets others run
//! until a quarter is free again: asking takes the channel's lock, so it is done once for many messages rather than for
//! each, and the receivers have no extra work.

use std::thread;

use tokio::sync::broadcast::error::RecvError;
use tokio::sync::broadcast::{Receiver, Sender, channel};
use tokio::task;

use super::{Checker, Failure, HWM, PeerMessage, Round, Workload, on_tasks, on_threads};

const ENOUGH: usize = HWM / 4;

/// How many messages may be sent without asking again; 0 when it's time to wait.
fn room(sender: &Sender<PeerMessage>) -> usize {
    let free = HWM - sender.len().min(HWM);
    if free < ENOUGH { 0 } else { free }
}

fn channels(n: usize) -> (Sender<PeerMessage>, Vec<Receiver<PeerMessage>>) {
    let (sender, first) = channel(HWM);
    let mut receivers: Vec<_> = (1..n).map(|_| sender.subscribe()).collect();
    receivers.push(first);
    (sender, receivers)
}

/// False when the channel is closed.
fn check(checker: &mut Checker, received: Result<PeerMessage, RecvError>) -> bool {
    match received {
        Ok(message) => checker.take(&message.key, &message.payload),
        Err(RecvError::Lagged(count)) => checker.gap(count),
        Err(RecvError::Closed) => return false,
    }
    true
}

pub(super) fn threads(workload: &Workload, n: usize) -> Result<Round, Failure> {
    let (sender, receivers) = channels(n);
    let consume = |mut receiver: Receiver<PeerMessage>, checker: &mut Checker| {
        while check(checker, receiver.blocking_recv()) {}
    };
    on_threads(workload, receivers, consume, move |publishing| {
        let mut left = 0;
        while let Some(payload) = publishing.next() {
            while left == 0 {
                left = room(&sender);
                if left == 0 {
                    thread::yield_now();
                }
            }
            left -= 1;
            sender.send(PeerMessage::new(payload)).map_err(Failure::contender)?;
        }
        Ok(())
    })
}

pub(super) fn tasks(workload: &Workload, n: usize) -> Result<Round, Failure> {
    let (sender, receivers) = channels(n);
    let consumer = |mut receiver: Receiver<PeerMessage>| {
        let mut checker = workload.checker();
        async move {
            while check(&mut checker, receiver.recv().await) {}
            checker
        }
    };
    on_tasks(workload, receivers.into_iter().map(consumer).collect(), |mut publishing| async move {
        let mut left = 0;
        while let Some(payload) = publishing.next() {
            while left == 0 {
                left = room(&sender);
                if left == 0 {
                    task::yield_now().await;
                }
            }
            left -= 1;
            sender.send(PeerMessage::new(payload)).map_err(Failure::contender)?;
        }
        Ok(publishing)
    })
}
