//! The way out: a batch of messages becomes few system calls.
//!
//! The heads of all frames, the keys and the small payloads of a batch are put side by side into one buffer that is
//! used again and again; large payloads stay where they are, shared with all other subscribers. What goes to the kernel
//! is a list of slices that alternate between the two, up to 1,024 of them, usually the whole batch in one call. With
//! small payloads it is one slice.
//!
//! The order on the wire is the batch's. Answers to PING go between messages, never inside one: while they wait, no
//! more than the rest of the current message is written, then they go first.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::task::{Context, Poll, ready};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hookbus_broker::{Batch, Delivery, Gap};

use super::codec::{MORE, put_head};
use super::link::{Closed, Link};
use super::peer::Inbound;
use crate::PAYLOAD_BASE64;

/// The key under which a peer is told that messages were dropped for it.
pub const GAP_KEY: &[u8] = b"HOOKBUS GAP";

/// What the kernel takes in one call (`UIO_MAXIOV`).
const MAX_SLICES: usize = 1024;

/// Payloads up to this size are cheaper to copy than to refer to.
const COPIED_BYTES: usize = 512;

/// A buffer that had to grow for a large message is given back beyond this.
const KEPT_BYTES: usize = 512 << 10;

/// The buffers of one peer, reused from batch to batch.
#[derive(Debug, Default)]
pub(crate) struct Outbound {
    scratch: Vec<u8>,
    pieces: Vec<Piece<'static>>,
    slices: Vec<IoSlice<'static>>,
    /// Where each message on the wire (key and content) ends, counted in bytes from the start of the batch.
    pair_ends: Vec<usize>,
    /// Where the last pair of each message of the broker ends.
    message_ends: Vec<usize>,
}

#[derive(Debug)]
enum Piece<'b> {
    Scratch(Range<usize>),
    Payload(&'b [u8]),
}

/// A batch on its way. If the connection, or the whole task, ends before the kernel has taken everything, the broker is
/// told how many messages were taken from it in vain.
struct Flight<'a> {
    batch: Option<Batch<'a>>,
    unsent: usize,
    abandoned: &'a mut u64,
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        if let Some(batch) = self.batch.take()
            && self.unsent > 0
        {
            *self.abandoned += self.unsent as u64;
            batch.abandon(self.unsent);
        }
    }
}

impl Outbound {
    /// Sends what the connection itself has to say: PING and PONG.
    pub(crate) async fn send_control(&mut self, inbound: &mut Inbound) -> Result<(), Closed> {
        let mut nothing = InFlight { rest: &mut [], written: 0, pair_ends: &[] };
        poll_fn(|cx| nothing.poll_send(cx, inbound, &mut |_| {})).await
    }

    /// Sends a batch, and meanwhile goes on reading. `abandoned` counts what could not be sent.
    pub(crate) async fn send(
        &mut self,
        batch: Batch<'_>,
        inbound: &mut Inbound,
        abandoned: &mut u64,
    ) -> Result<(), Closed> {
        let mut flight = Flight { batch: Some(batch), unsent: 0, abandoned };
        let deliveries = flight.batch.as_ref().expect("put there above").iter();

        let mut encoder = Encoder {
            scratch: std::mem::take(&mut self.scratch),
            pieces: recycle(std::mem::take(&mut self.pieces)),
            pair_ends: std::mem::take(&mut self.pair_ends),
            run_start: 0,
            length: 0,
        };
        let mut message_ends = std::mem::take(&mut self.message_ends);
        for delivery in deliveries {
            match delivery {
                Delivery::Message(message) => {
                    if message.tag() == PAYLOAD_BASE64 {
                        encoder.put_ready_made(message.matched_keys(), message.payload());
                    } else {
                        encoder.put_as_base64(message.matched_keys(), message.payload());
                    }
                    message_ends.push(encoder.length);
                }
                Delivery::Gap(gap) if inbound.filters.names(GAP_KEY) => encoder.put_gap(gap),
                Delivery::Gap(_) => {}
            }
        }
        encoder.end_run();
        let Encoder { scratch, mut pieces, mut pair_ends, length, .. } = encoder;

        flight.unsent = message_ends.len();
        let mut slices = recycle(std::mem::take(&mut self.slices));
        slices.extend(pieces.iter().map(|piece| match piece {
            Piece::Scratch(range) => IoSlice::new(&scratch[range.clone()]),
            Piece::Payload(payload) => IoSlice::new(payload),
        }));
        {
            let mut in_flight = InFlight { rest: &mut slices, written: 0, pair_ends: &pair_ends };
            let unsent = &mut flight.unsent;
            let mut on_written = |written| {
                while *unsent > 0 && message_ends[message_ends.len() - *unsent] <= written {
                    *unsent -= 1;
                }
            };
            poll_fn(|cx| in_flight.poll_send(cx, inbound, &mut on_written)).await?;
            debug_assert_eq!(in_flight.written, length);
        }

        self.slices = recycle(slices);
        pieces.clear();
        self.pieces = recycle(pieces);
        pair_ends.clear();
        self.pair_ends = pair_ends;
        message_ends.clear();
        self.message_ends = message_ends;
        self.scratch = scratch;
        self.scratch.clear();
        if self.scratch.capacity() > KEPT_BYTES {
            self.scratch.shrink_to(KEPT_BYTES);
        }
        Ok(())
    }
}

/// What of a batch is still to be written.
struct InFlight<'s, 'b> {
    rest: &'s mut [IoSlice<'b>],
    /// Bytes that the kernel has taken.
    written: usize,
    pair_ends: &'s [usize],
}

impl InFlight<'_, '_> {
    /// Writes until everything is out, the connection's own output, too; while the socket takes no more, reads what the
    /// peer says.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        inbound: &mut Inbound,
        on_written: &mut dyn FnMut(usize),
    ) -> Poll<Result<(), Closed>> {
        loop {
            match self.poll_write(cx, &mut inbound.link) {
                Poll::Ready(Ok(())) if self.rest.is_empty() && inbound.link.output().is_empty() => {
                    on_written(self.written);
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(Ok(())) => on_written(self.written),
                Poll::Ready(Err(e)) => return Poll::Ready(Err(Closed::Io(e))),
                // What is read may want an answer, which waits with the rest. Both wakers are set when this is pending.
                Poll::Pending => ready!(inbound.poll(cx))?,
            }
        }
    }

    /// One write: of messages; or, where the connection has something to say, of the rest of a message that is begun,
    /// else of that.
    fn poll_write(&mut self, cx: &mut Context<'_>, link: &mut Link) -> Poll<io::Result<()>> {
        if !link.output().is_empty() {
            let begun = self.left_of_pair();
            if begun == 0 {
                return link.poll_flush(cx);
            }
            let mut left = begun;
            let mut now = Vec::new();
            for slice in self.rest.iter().take(MAX_SLICES) {
                let part = &slice[..slice.len().min(left)];
                now.push(IoSlice::new(part));
                left -= part.len();
                if left == 0 {
                    break;
                }
            }
            let n = ready!(link.stream.poll_write_vectored(cx, &now))?;
            return Poll::Ready(self.advance(n));
        }
        if self.rest.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let now = &self.rest[..self.rest.len().min(MAX_SLICES)];
        let n = ready!(link.stream.poll_write_vectored(cx, now))?;
        Poll::Ready(self.advance(n))
    }

    /// How many bytes are missing of a pair that the kernel has taken in part; 0 between pairs.
    fn left_of_pair(&self) -> usize {
        let done = self.pair_ends.partition_point(|&end| end <= self.written);
        let start = done.checked_sub(1).map_or(0, |last| self.pair_ends[last]);
        match self.pair_ends.get(done) {
            Some(&end) if self.written > start => end - self.written,
            _ => 0,
        }
    }

    fn advance(&mut self, n: usize) -> io::Result<()> {
        if n == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.written += n;
        IoSlice::advance_slices(&mut self.rest, n);
        Ok(())
    }
}

/// Lays a batch out as heads and keys in one buffer, and references to payloads.
struct Encoder<'b> {
    scratch: Vec<u8>,
    pieces: Vec<Piece<'b>>,
    pair_ends: Vec<usize>,
    /// Where the part of `scratch` begins that no piece covers yet.
    run_start: usize,
    /// Bytes on the wire so far.
    length: usize,
}

impl<'b> Encoder<'b> {
    /// One pair for each key; the content is the payload as it is.
    fn put_ready_made<'k>(&mut self, keys: impl Iterator<Item = &'k [u8]>, payload: &'b [u8]) {
        for key in keys {
            self.put_heads(key, payload.len());
            if payload.len() <= COPIED_BYTES {
                self.scratch.extend_from_slice(payload);
            } else {
                self.end_run();
                self.pieces.push(Piece::Payload(payload));
            }
            self.end_pair(payload.len());
        }
    }

    /// One pair for each key; the content is the payload in base64, encoded once.
    fn put_as_base64<'k>(&mut self, keys: impl Iterator<Item = &'k [u8]>, payload: &[u8]) {
        let length = payload.len().div_ceil(3) * 4;
        let mut encoded: Option<Range<usize>> = None;
        for key in keys {
            self.put_heads(key, length);
            match &encoded {
                None => {
                    let start = self.scratch.len();
                    self.scratch.resize(start + length, 0);
                    STANDARD.encode_slice(payload, &mut self.scratch[start..]).expect("there is exactly enough room");
                    encoded = Some(start..start + length);
                }
                Some(range) if length <= COPIED_BYTES => self.scratch.extend_from_within(range.clone()),
                Some(range) => {
                    let range = range.clone();
                    self.end_run();
                    self.pieces.push(Piece::Scratch(range));
                }
            }
            self.end_pair(length);
        }
    }

    fn put_gap(&mut self, gap: Gap) {
        let Gap { first, last, count } = gap;
        let text = format!(r#"{{"first": {first}, "last": {last}, "count": {count}}}"#);
        self.put_as_base64(std::iter::once(GAP_KEY), text.as_bytes());
    }

    fn put_heads(&mut self, key: &[u8], content: usize) {
        let before = self.scratch.len();
        put_head(&mut self.scratch, MORE, key.len());
        self.scratch.extend_from_slice(key);
        put_head(&mut self.scratch, 0, content);
        self.length += self.scratch.len() - before;
    }

    fn end_pair(&mut self, content: usize) {
        self.length += content;
        self.pair_ends.push(self.length);
    }

    fn end_run(&mut self) {
        if self.run_start < self.scratch.len() {
            self.pieces.push(Piece::Scratch(self.run_start..self.scratch.len()));
        }
        self.run_start = self.scratch.len();
    }
}

/// Empties a vector of things that borrow, and keeps its memory for things that borrow from elsewhere.
fn recycle<T, U>(mut vec: Vec<T>) -> Vec<U>
where
    T: Recycle<U>,
{
    vec.clear();
    // Collecting in place: same size and alignment, so the allocation stays.
    vec.into_iter().map(T::never).collect()
}

trait Recycle<U> {
    fn never(self) -> U;
}

impl<'b> Recycle<Piece<'b>> for Piece<'_> {
    fn never(self) -> Piece<'b> {
        unreachable!("the vector was emptied")
    }
}

impl<'b> Recycle<IoSlice<'b>> for IoSlice<'_> {
    fn never(self) -> IoSlice<'b> {
        unreachable!("the vector was emptied")
    }
}
