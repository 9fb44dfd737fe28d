//! AMQP 0.9.1, such as RabbitMQ: events to a durable topic exchange, each confirmed.
//!
//! What is here is the bus as [`delivery`](crate::delivery) wants it: [`AmqpBus`] connects, [`AmqpSender`] publishes, [`AmqpReceipts`]
//! reads confirms. Window, order, repetition and back-off are the ledger's.
//!
//! ```text
//! AmqpSender ── basic.publish (mandatory, persistent) ─▶ exchange ─▶ queues of those who bind
//!     │ the future of each publish, in order
//!     ▼
//! AmqpReceipts ◀── basic.ack, basic.nack, basic.return, connection.blocked, channel.close
//! ```
//!
//! An event's name is its routing key, so that consumers bind a queue with `hookbus.opennebula.state.vm.#` and the like. Properties:
//! `content_type`, `delivery_mode` 2, `message_id` (the same each time an event is sent), `timestamp`, `type` (that of the CloudEvent),
//! `app_id` `hookbus`. In binary mode each attribute is a header, `cloudEvents_<attribute>`; there is no official binding for AMQP
//! 0.9.1, so the prefix is a setting.
//!
//! # Traps of lapin and of the protocol, and how they are avoided
//!
//! - *An unroutable message is returned **and** acknowledged*, and lapin hands the returned message to whichever confirm completes next. Returns
//!   are found by their `message_id`, and a confirm that carries somebody else's is decided only when all that the server has
//!   said together is at hand (see `receipts.rs`).
//! - *Publishing waits until the frame is written, and where the server blocks connections (a memory or disk alarm) that is without end.*
//!   Publishing here is polled once, which puts the frames in order into lapin's queue; the rest of it, and the confirm, are waited for
//!   by the receipts. So sending never waits, and what lapin queues is bounded by what may be in flight. Being blocked is told.
//! - *A confirm is a future; one task for each would be a lot of tasks.* All are polled by one.
//! - *lapin can recover connections by itself* and then rejects all confirms, republishing nothing. That is off: the ledger connects anew.
//! - *A handshake with a server that has stopped goes on for ever, with a thread of its own*, also when nobody waits for it any more.
//!   The socket is ours: when connecting takes too long, or nobody uses a connection any more, it is shut down, and the thread ends.
//! - *Short strings longer than 255 bytes panic*: names and properties are checked.
//! - *Publishing to an exchange that isn't there, or that we may not use, closes the channel later*, with everything unconfirmed unknown.
//!   The exchange is looked for at the beginning, and made if it is not there. Where one event is the cause (its routing key is not
//!   permitted, it is larger than the server takes), that one is rejected; else the same event would end each connection.
//!
//! # Guarantees
//!
//! - **Loss**: none of what the server has confirmed and could route, as long as the queues keep it (their limits, their time to live,
//!   whether they are durable, are their owners'). A confirm says that every queue that the event was routed to has it; a durable classic
//!   queue has it on disk, a quorum queue on most of its members.
//! - An event that no queue is bound for is confirmed and gone; it is counted, or kept as a dead letter where that is configured.
//! - **Repetition**: what was unknown when a connection ended is sent again with the same `message_id`. AMQP 0.9.1 doesn't recognise
//!   repetitions: consumers do, by that id.
//! - **Order**: in each queue first arrivals are in order, because one channel keeps it and the ledger sends again from the oldest. An
//!   event that the server refuses for now (nack) comes after those behind it.

mod config;
mod connection;
mod encode;
mod error;
mod receipts;
mod sender;

pub use config::{AmqpOptions, Unroutable};
pub use connection::AmqpBus;
pub use receipts::AmqpReceipts;
pub use sender::AmqpSender;
