//! Durable subscriptions: they read from the journal, and their place in it outlives them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::cursor::CursorFile;
use super::filter::Filter;
use super::log::Log;
use super::reader::{Reader, Step};
use crate::error::TryRecvError;
use crate::message::{Delivery, EventId, Offset, Received, Timestamp};
use crate::options::{BatchLimit, SubscribeOptions};
use crate::wait::block_on;

/// Where a subscription begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Start {
    /// At what is published from now on.
    #[default]
    Latest,
    /// At the oldest message that the journal has.
    Earliest,
    /// At this offset. What was before the oldest message is told as a gap.
    Offset(Offset),
    /// At the first message that was taken in at that time or later.
    Time(Timestamp),
}

/// A subscription whose place in the journal is kept: who opens it again with the same cursor goes on where it was.
///
/// It yields messages once the journal has them, in order, each at least once: what was not
/// [committed](DurableSubscription::commit) when it ended comes again.
pub struct DurableSubscription {
    log: Arc<Log>,
    reader: Reader,
    filter: Filter,
    cursor: Option<Arc<CursorFile>>,
    name: Arc<str>,
    /// The offset behind the last delivery.
    delivered: u64,
    /// As committed.
    done: u64,
    /// Where the reader stands, for those who look.
    read: Arc<AtomicU64>,
}

impl fmt::Debug for DurableSubscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DurableSubscription").field("name", &self.name).finish_non_exhaustive()
    }
}

/// How far a durable subscription is behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Lag {
    /// Offsets between what is done and the newest message: no fewer than the messages that it has to handle.
    pub messages: u64,
    /// For how long the oldest one that was delivered and is not done has waited.
    pub time: Duration,
}

/// Tells how much a durable subscription has not read yet, from any thread.
#[derive(Clone)]
pub struct UnreadProbe {
    log: Arc<Log>,
    read: Arc<AtomicU64>,
}

impl UnreadProbe {
    /// Offsets between what it has read and the newest message: no fewer than the messages that wait for it.
    pub fn unread(&self) -> u64 {
        self.log.watermark().saturating_sub(self.read.load(Ordering::Relaxed))
    }
}

impl fmt::Debug for UnreadProbe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("UnreadProbe").field(&self.unread()).finish()
    }
}

impl DurableSubscription {
    pub(super) fn new(log: Arc<Log>, options: &SubscribeOptions, cursor: Option<Arc<CursorFile>>, from: u64) -> Self {
        DurableSubscription {
            reader: Reader::new(Arc::clone(&log), from),
            log,
            filter: Filter::new(options.prefixes.iter().cloned()),
            cursor,
            name: Arc::clone(&options.name),
            delivered: from,
            done: from,
            read: Arc::new(AtomicU64::new(from)),
        }
    }

    /// What tells how much it has not read yet, also while it is being read.
    pub fn probe(&self) -> UnreadProbe {
        UnreadProbe { log: Arc::clone(&self.log), read: Arc::clone(&self.read) }
    }

    /// Waits for something to be there, then puts as much as there is within `limit` into `into`. False when the broker was
    /// closed and everything was read. Cancelling loses nothing.
    pub async fn recv_batch(&mut self, limit: BatchLimit, into: &mut Vec<Delivery<Received>>) -> bool {
        loop {
            match self.try_recv_batch(limit, into) {
                Ok(_) => return true,
                Err(TryRecvError::Ended) => return false,
                Err(TryRecvError::Empty) => {
                    self.log.passed(self.reader.next_offset()).await;
                }
            }
        }
    }

    /// What [`recv_batch`](DurableSubscription::recv_batch) yields, if it is there now. Returns how many messages and gaps that
    /// were.
    ///
    /// # Errors
    /// When nothing is there, telling whether anything may come.
    pub fn try_recv_batch(
        &mut self,
        limit: BatchLimit,
        into: &mut Vec<Delivery<Received>>,
    ) -> Result<usize, TryRecvError> {
        let ended = self.log.has_ended();
        let until = self.log.watermark();
        let (mut count, mut bytes) = (0, 0);
        while count < limit.messages.max(1) && bytes < limit.bytes.max(1) {
            let step = match self.reader.read(until) {
                Ok(step) => step,
                Err(_) => break,
            };
            match step {
                Step::Message(message) => {
                    let matched = self.filter.matches(message.keys());
                    if matched == 0 {
                        continue;
                    }
                    bytes += message.counted_bytes();
                    into.push(Delivery::Message(Received {
                        id: EventId { log: self.log.id, offset: Offset::new(message.offset) },
                        time: message.time,
                        tag: message.tag,
                        matched,
                        keys: message.copy_keys(),
                        payload: message.copy_payload(),
                        origin: message.copy_origin(),
                    }));
                }
                Step::Gap(gap) => into.push(Delivery::Gap(gap)),
                Step::End => break,
            }
            count += 1;
        }
        self.read.store(self.reader.next_offset(), Ordering::Relaxed);
        if count > 0 {
            self.delivered = self.reader.next_offset();
            return Ok(count);
        }
        self.settle();
        Err(if ended { TryRecvError::Ended } else { TryRecvError::Empty })
    }

    /// What [`recv_batch`](DurableSubscription::recv_batch) yields, blocking this thread until it is there.
    pub fn recv_batch_blocking(&mut self, limit: BatchLimit, into: &mut Vec<Delivery<Received>>) -> bool {
        block_on(self.recv_batch(limit, into))
    }

    /// Says that everything below `next` is done. It is written down soon; what was done since the last time comes again
    /// after a crash. A position that is lower than the one before changes nothing.
    pub fn commit(&mut self, next: Offset) {
        self.done = self.done.max(next.get().min(self.delivered));
        self.settle();
    }

    /// The offset below which everything is done.
    pub fn position(&self) -> Offset {
        Offset::new(self.cursor.as_ref().map_or(self.done, |c| c.position()))
    }

    /// How far it is behind.
    pub fn lag(&self) -> Lag {
        Lag { messages: self.log.watermark().saturating_sub(self.position().get()), time: Duration::ZERO }
    }

    /// Where nothing is outstanding, everything that was read is done.
    fn settle(&mut self) {
        if self.done >= self.delivered {
            self.done = self.reader.next_offset().max(self.done);
            self.delivered = self.done;
        }
        if let Some(cursor) = &self.cursor
            && cursor.move_to(self.done)
        {
            self.log.cursor_moved();
        }
    }
}

impl Drop for DurableSubscription {
    fn drop(&mut self) {
        if let Some(cursor) = &self.cursor {
            // Where it can't be written, what was done comes again.
            let _ = cursor.save(&*self.log.options.disk);
            cursor.in_use.store(false, Ordering::Release);
        }
    }
}
