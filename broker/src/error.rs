//! What can go wrong when publishing and receiving.

use thiserror::Error;

use crate::message::{MAX_KEYS, MAX_KEYS_BYTES, MAX_PAYLOAD_BYTES};

/// Why a message was not published. Nobody has received any part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The broker was closed.
    #[error("publish: the broker is closed")]
    Closed,
    /// More keys than [`MAX_KEYS`].
    #[error("publish: the message has {count} keys; at most {MAX_KEYS} are possible")]
    TooManyKeys {
        /// How many it has.
        count: usize,
    },
    /// Keys longer than [`MAX_KEYS_BYTES`].
    #[error("publish: the keys of the message have {length} bytes together; at most {MAX_KEYS_BYTES} are possible")]
    KeysTooLong {
        /// Their length in bytes.
        length: usize,
    },
    /// The journal can't take it.
    #[error("publish: {0}")]
    #[cfg(feature = "journal")]
    Journal(#[from] crate::journal::JournalFault),
    /// A payload larger than [`MAX_PAYLOAD_BYTES`].
    #[error("publish: the payload has {length} bytes; at most {MAX_PAYLOAD_BYTES} are possible")]
    PayloadTooLarge {
        /// Its length in bytes.
        length: usize,
    },
}

/// Why a message was not published at once. Nobody has received any part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TryPublishError {
    /// A subscription with [`Overflow::Block`](crate::Overflow::Block) is full.
    #[error("publish: a subscriber that blocks is at its high-water mark")]
    WouldBlock,
    /// It can't be published at all.
    #[error(transparent)]
    Refused(#[from] PublishError),
}

/// Why nothing was received at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TryRecvError {
    /// Nothing is queued now.
    #[error("receive: nothing is queued")]
    Empty,
    /// Nothing is queued, and nothing will be; [`Subscription::end`](crate::Subscription::end) says why.
    #[error("receive: the subscription has ended")]
    Ended,
}

/// Why a subscription has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EndReason {
    /// The broker was closed.
    BrokerClosed,
    /// [`SubscriptionHandle::close`](crate::SubscriptionHandle::close) was called.
    Closed,
    /// It was at its high-water mark, with [`Overflow::Disconnect`](crate::Overflow::Disconnect).
    Overflowed,
}
