//! Following from the past: a reader of the journal as the body of a response.
//!
//! The journal is read in a task of its own, a part ahead of what the connection has taken: reading may wait for the disk. A follower that
//! begins in the past goes on reading from the journal when it has caught up, so it has no queue and no high-water mark: one that
//! stalls loses nothing but what the journal itself no longer keeps, which it is told.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, HttpBody};
use bytes::{BufMut, Bytes, BytesMut};
use hookbus_broker::{Delivery, DurableSubscription, Start, SubscribeOptions};
use hyper::body::Frame;
use tokio::sync::{mpsc, watch};

use super::follow::{Heartbeat, PART, encode, put_gap};
use super::problem::Problem;
use super::routes::{End, Registration, Shared};
use crate::cloudevents::Format;

/// A body that begins there.
pub(super) fn past(
    shared: &Arc<Shared>,
    options: SubscribeOptions,
    start: Start,
    format: Format,
) -> Result<Body, Problem> {
    let subscription =
        shared.broker.subscribe_from(options, start).map_err(|e| Problem::unavailable(e.to_string(), 5))?;
    let (end, ending) = watch::channel(false);
    let registration = shared.followers.register(shared, End::Journal(end))?;
    let (parts, received) = mpsc::channel(1);
    let reader =
        Reader { shared: Arc::clone(shared), subscription, format, parts, ending, _registration: registration };
    tokio::spawn(reader.run());
    Ok(Body::new(Parts { received, heartbeat: Heartbeat::new() }))
}

struct Reader {
    shared: Arc<Shared>,
    subscription: DurableSubscription,
    format: Format,
    /// The other end is dropped together with the connection.
    parts: mpsc::Sender<Bytes>,
    /// Becomes true when the server ends.
    ending: watch::Receiver<bool>,
    _registration: Registration,
}

impl Reader {
    async fn run(mut self) {
        let parts = self.parts.clone();
        let mut text = Bytes::from_static(b": hookbus\n\n");
        let mut batch = Vec::new();
        let mut dropped = 0;
        loop {
            if parts.send(text).await.is_err() {
                return;
            }
            batch.clear();
            let more = tokio::select! {
                biased;
                () = parts.closed() => return,
                // Also where there would always be more.
                _ = self.ending.wait_for(|ending| *ending) => false,
                more = self.subscription.recv_batch(PART, &mut batch) => more,
            };
            if !more {
                // Whoever is gone doesn't want to know.
                let _ = parts.send(Bytes::from_static(b": hookbus ends\n\n")).await;
                return;
            }
            text = self.part(&batch, &mut dropped);
        }
    }

    fn part(&self, batch: &[Delivery<hookbus_broker::Received>], dropped: &mut u64) -> Bytes {
        let mut text = BytesMut::new();
        for delivery in batch {
            match delivery {
                Delivery::Gap(gap) => {
                    *dropped += gap.count;
                    put_gap(&mut text, gap);
                }
                Delivery::Message(event) => {
                    let dropped = Some(std::mem::take(dropped)).filter(|dropped| *dropped > 0);
                    text.put(encode(&self.shared, event, self.format, dropped));
                }
            }
        }
        text.freeze()
    }
}

/// The body.
struct Parts {
    received: mpsc::Receiver<Bytes>,
    heartbeat: Heartbeat,
}

impl HttpBody for Parts {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::convert::Infallible>>> {
        let this = self.get_mut();
        if let Poll::Ready(part) = this.received.poll_recv(cx) {
            this.heartbeat.put_off();
            return Poll::Ready(part.map(|part| Ok(Frame::data(part))));
        }
        this.heartbeat.poll(cx).map(|beat| Some(Ok(Frame::data(beat))))
    }
}
