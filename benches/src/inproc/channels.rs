//! Channels, one for each subscriber: a publish clones the message into each. And async-broadcast, which is one for all.

use std::sync::Arc;

use super::{Checker, Failure, HWM, PeerMessage, Round, Workload, on_tasks, on_threads};

/// How a message lies in a queue: as it is, so that making it allocates nothing, or behind an `Arc`, which is dear once but
/// cheap for each further subscriber.
pub(super) trait Form: From<PeerMessage> + AsRef<PeerMessage> + Clone + Send {}
impl Form for PeerMessage {}
impl Form for Arc<PeerMessage> {}

/// A channel between threads, for messages in the form `M`.
pub(super) trait ThreadChannel<M> {
    type Sender: Send;
    type Receiver: Send;

    fn channel() -> (Self::Sender, Self::Receiver);
    /// Waits for room; false when the receiver is gone.
    fn send(sender: &Self::Sender, message: M) -> bool;
    /// `None` when the sender is gone and everything was taken.
    fn recv(receiver: &Self::Receiver) -> Option<M>;
}

/// A channel between tasks.
pub(super) trait TaskChannel {
    type Sender: Send + Sync + 'static;
    type Receiver: Send + 'static;

    fn channel() -> (Self::Sender, Self::Receiver);
    /// Waits for room; false when the receiver is gone.
    fn send(sender: &Self::Sender, message: PeerMessage) -> impl Future<Output = bool> + Send;
    /// `None` when the sender is gone and everything was taken.
    fn recv(receiver: &mut Self::Receiver) -> impl Future<Output = Option<PeerMessage>> + Send;
}

pub(super) fn threads<C: ThreadChannel<M>, M: Form>(workload: &Workload, n: usize) -> Result<Round, Failure> {
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..n).map(|_| C::channel()).unzip();
    let consume = |receiver, checker: &mut Checker| {
        while let Some(message) = C::recv(&receiver) {
            let PeerMessage { key, payload } = message.as_ref();
            checker.take(key, payload);
        }
    };
    on_threads(workload, receivers, consume, move |publishing| {
        while let Some(payload) = publishing.next() {
            let message = M::from(PeerMessage::new(payload));
            let Some((last, others)) = senders.split_last() else { continue };
            let sent = others.iter().all(|sender| C::send(sender, message.clone()));
            if !(sent && C::send(last, message)) {
                return Err(Failure::contender("a receiver is gone"));
            }
        }
        Ok(())
    })
}

pub(super) fn tasks<C: TaskChannel>(workload: &Workload, n: usize) -> Result<Round, Failure> {
    let (senders, receivers): (Vec<C::Sender>, Vec<_>) = (0..n).map(|_| C::channel()).unzip();
    let consumer = |mut receiver: C::Receiver| {
        let mut checker = workload.checker();
        async move {
            while let Some(message) = C::recv(&mut receiver).await {
                checker.take(&message.key, &message.payload);
            }
            checker
        }
    };
    on_tasks(workload, receivers.into_iter().map(consumer).collect(), |mut publishing| async move {
        while let Some(payload) = publishing.next() {
            let message = PeerMessage::new(payload);
            let Some((last, others)) = senders.split_last() else { continue };
            for sender in others {
                C::send(sender, message.clone()).await;
            }
            C::send(last, message).await;
        }
        Ok(publishing)
    })
}

pub(super) enum Crossbeam {}

impl<M: Form> ThreadChannel<M> for Crossbeam {
    type Sender = crossbeam_channel::Sender<M>;
    type Receiver = crossbeam_channel::Receiver<M>;

    fn channel() -> (Self::Sender, Self::Receiver) {
        crossbeam_channel::bounded(HWM)
    }

    fn send(sender: &Self::Sender, message: M) -> bool {
        sender.send(message).is_ok()
    }

    fn recv(receiver: &Self::Receiver) -> Option<M> {
        receiver.recv().ok()
    }
}

pub(super) enum Kanal {}

impl<M: Form> ThreadChannel<M> for Kanal {
    type Sender = kanal::Sender<M>;
    type Receiver = kanal::Receiver<M>;

    fn channel() -> (Self::Sender, Self::Receiver) {
        kanal::bounded(HWM)
    }

    fn send(sender: &Self::Sender, message: M) -> bool {
        sender.send(message).is_ok()
    }

    fn recv(receiver: &Self::Receiver) -> Option<M> {
        receiver.recv().ok()
    }
}

impl TaskChannel for Kanal {
    type Sender = kanal::AsyncSender<PeerMessage>;
    type Receiver = kanal::AsyncReceiver<PeerMessage>;

    fn channel() -> (Self::Sender, Self::Receiver) {
        kanal::bounded_async(HWM)
    }

    async fn send(sender: &Self::Sender, message: PeerMessage) -> bool {
        sender.send(message).await.is_ok()
    }

    async fn recv(receiver: &mut Self::Receiver) -> Option<PeerMessage> {
        receiver.recv().await.ok()
    }
}

pub(super) enum Flume {}

impl<M: Form> ThreadChannel<M> for Flume {
    type Sender = flume::Sender<M>;
    type Receiver = flume::Receiver<M>;

    fn channel() -> (Self::Sender, Self::Receiver) {
        flume::bounded(HWM)
    }

    fn send(sender: &Self::Sender, message: M) -> bool {
        sender.send(message).is_ok()
    }

    fn recv(receiver: &Self::Receiver) -> Option<M> {
        receiver.recv().ok()
    }
}

impl TaskChannel for Flume {
    type Sender = flume::Sender<PeerMessage>;
    type Receiver = flume::Receiver<PeerMessage>;

    fn channel() -> (Self::Sender, Self::Receiver) {
        flume::bounded(HWM)
    }

    async fn send(sender: &Self::Sender, message: PeerMessage) -> bool {
        sender.send_async(message).await.is_ok()
    }

    async fn recv(receiver: &mut Self::Receiver) -> Option<PeerMessage> {
        receiver.recv_async().await.ok()
    }
}

pub(super) enum TokioMpsc {}

impl TaskChannel for TokioMpsc {
    type Sender = tokio::sync::mpsc::Sender<PeerMessage>;
    type Receiver = tokio::sync::mpsc::Receiver<PeerMessage>;

    fn channel() -> (Self::Sender, Self::Receiver) {
        tokio::sync::mpsc::channel(HWM)
    }

    async fn send(sender: &Self::Sender, message: PeerMessage) -> bool {
        sender.send(message).await.is_ok()
    }

    async fn recv(receiver: &mut Self::Receiver) -> Option<PeerMessage> {
        receiver.recv().await
    }
}

/// One channel for all: a full one makes the sender wait unless it is told otherwise. The `_direct` forms spare an
/// allocation for each message.
pub(super) fn async_broadcast_tasks(workload: &Workload, n: usize) -> Result<Round, Failure> {
    let (sender, receiver) = async_broadcast::broadcast(HWM);
    let consumer = |mut receiver: async_broadcast::Receiver<PeerMessage>| {
        let mut checker = workload.checker();
        async move {
            while let Ok(message) = receiver.recv_direct().await {
                checker.take(&message.key, &message.payload);
            }
            checker
        }
    };
    let mut receivers: Vec<_> = (1..n).map(|_| receiver.new_receiver()).collect();
    receivers.push(receiver);
    on_tasks(workload, receivers.into_iter().map(consumer).collect(), |mut publishing| async move {
        while let Some(payload) = publishing.next() {
            sender.broadcast_direct(PeerMessage::new(payload)).await.map_err(Failure::contender)?;
        }
        Ok(publishing)
    })
}
