//! An embedded message broker: prefix-keyed topics, a high-water mark for each subscriber, no silent loss.
//!
//! Publishers hand in a [`Message`]: one or more keys, one payload. A [`Subscription`] is a set of byte prefixes; a message
//! matches it when one of its keys starts with one of them, and is then delivered to it once. Every subscription has
//! its own high-water mark and says what happens there ([`Overflow`]). What is dropped for a subscription is counted and
//! told to it as a [`Gap`], in its place in the stream.
//!
//! ```
//! use hookbus_broker::{Broker, Delivery, Message, SubscribeOptions};
//!
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! let broker = Broker::default();
//! let mut subscription = broker.subscribe(SubscribeOptions::new("demo").prefix("EVENT VM "));
//!
//! broker.publish(Message::new("EVENT VM 7/ACTIVE/RUNNING ", "it runs")).await?;
//! broker.publish(Message::new("EVENT HOST 2/ERROR/ ", "not for us")).await?;
//!
//! match subscription.recv().await {
//!     Some(Delivery::Message(message)) => assert_eq!(message.payload(), "it runs"),
//!     Some(Delivery::Gap(gap)) => panic!("{} messages were dropped", gap.count),
//!     None => panic!("the broker was closed"),
//! }
//! # Ok::<_, hookbus_broker::PublishError>(())
//! # }).unwrap();
//! ```
//!
//! # Guarantees
//!
//! - **Order**: a subscription sees messages in the order of their [`Offset`]s, always.
//! - **Loss**: delivered + told as dropped + still queued = matched, for each subscription, at any time.
//! - **Independence**: a slow subscription never slows another one down, unless its policy is [`Overflow::Block`].
//! - `Ok` from a publish means that every subscription's policy has been applied to the message; it does not mean that
//!   anybody has read it.

mod block;
mod broker;
mod clock;
mod error;
mod group;
#[cfg(feature = "journal")]
mod journal;
mod lane;
mod member;
mod message;
mod options;
mod publish;
mod stats;
mod subscription;
mod sync;
mod tree;
mod wait;

pub use broker::Broker;
pub use clock::{Clock, SystemClock};
pub use error::{EndReason, PublishError, TryPublishError, TryRecvError};
#[cfg(all(feature = "journal", fuzzing))]
#[doc(hidden)]
pub use journal::fuzzing;
#[cfg(feature = "journal")]
pub use journal::{
    CursorInfo, Damage, Disk, Durability, DurableSubscription, Journal, JournalError, JournalFault, JournalHandle,
    JournalHold, JournalOptions, JournalStats, Lag, OpenReport, Start, SystemDisk, UnreadProbe,
};
pub use message::{
    Delivery, EventId, Gap, LogId, MAX_KEYS, MAX_KEYS_BYTES, MAX_PAYLOAD_BYTES, Message, Offset, Origin, Received,
    Timestamp,
};
pub use options::{BatchLimit, BrokerOptions, Overflow, SubscribeOptions};
pub use stats::{BrokerStats, SubscriptionStats};
pub use subscription::{Batch, MessageRef, Subscription, SubscriptionHandle};
