//! Events to MQTT servers, in MQTT 5 or 3.1.1, at QoS 1 or 0.
//!
//! [`MqttBus`] makes a connection at a time; the ledger in [`delivery`](crate::delivery) decides when, and sends everything that is not
//! confirmed again over the next one.
//!
//! ```text
//!  ledger ──send──▶ window, packets to write ─┐           ┌─ task: write ─▶ socket
//!                          (Shared, a lock)   ├─ Notify ──┤
//!  ledger ◀──next── receipts ◀────────────────┘           └─ task: read ◀── socket
//! ```
//!
//! A letter costs one lock and one copy into the buffer that is written next; no channel, no wake-up. The task is woken when the
//! ledger [flushes](crate::delivery::Sender::flush), or every 32 KiB, and writes all there is. Receipts are woken once for all that came in one
//! read. Buffers are bounded: [`send`](crate::delivery::Sender::send) waits while 256 KiB wait to be written, or the server's receive maximum
//! is used up.
//!
//! # rumqttc, and what isn't used of it
//!
//! Packets and their coding are rumqttc's. Its `EventLoop` isn't used, for these reasons (0.25.1):
//!
//! - What it can't decode ends the connection, and it can't decode what mosquitto says to a message that is too large (PUBACK 0x95). The letter
//!   would end each connection anew, for ever. The codes are therefore read by `decode`, which has the details.
//! - It flushes after each PUBLISH: a system call for each letter, where one does for dozens.
//! - In version 5 it waits for a write without a time limit, and neither reads nor asks whether the server lives meanwhile.
//! - After an error it connects again at once, and sends pending messages in the order of their packet ids or drops them, as the session
//!   says. Here one connection is one task and ends with its first error; the ledger waits, and knows the order.
//! - Where acknowledgements come out of order it parks a message until an id is free, and forgets to when that id's message was refused.
//!   Here an id is given out only when it is free.
//!
//! # Sessions
//!
//! Clean start, always. A session on the server keeps subscriptions and what is on its way *to* a client; of what comes from one
//! it keeps nothing at QoS 1 (packet ids are remembered at QoS 2 only). So a session could not save a repetition, and would make
//! the server keep a queue for a client that never subscribes.
//!
//! # Properties
//!
//! In MQTT 5 the content type is set, and in binary mode the event's attributes are user properties under their own names, as the MQTT
//! binding of CloudEvents says. In the formats `raw` and `base64`, whose bodies don't tell who they are, there are the user properties `id`,
//! `source`, `type` and `time`, by which repetitions can be told. What an operator sends again has the user property `hookbusreplay`, its
//! number, so that a consumer that drops repetitions can let it pass. Messages don't expire. MQTT 3.1.1 has none of it: it carries structured mode,
//! or bodies alone.
//!
//! # Status topic
//!
//! `<root>/status/<client id>` ([`status_topic`]) holds, retained, `{"status":"online",...}` or `{"status":"offline",...}`. It is `offline`
//! when we have left in order, and by our will when the server has lost us. It is below the root, and no event is called `status` there.
//!
//! # State topics
//!
//! With [`retain_state`](MqttOptions::retain_state) each state event is published a second time, retained, under
//! `<root>-state/opennebula/<vm, host, image, net>/<id>`, so that who subscribes later sees the current state of each object at once.
//! A topic is cleared when its object goes: by a machine's or network's state `DONE`, an image's `DELETE`, and a successful
//! `one.host.delete`, `one.image.delete` or `one.vn.delete`. A bridge with `prefixes` of its own needs those of these calls among them; hosts
//! have no last state. The letter is confirmed when the server has both messages, and refused if either is. What an operator retries from
//! the dead letters doesn't touch the state, which may have changed long ago.
//!
//! # Guarantees
//!
//! - **QoS 1, version 5**: at least once. A letter is confirmed by a PUBACK with a code below 0x80; that nobody has subscribed (0x10)
//!   is no fault. What the server refuses is refused with its reason: a quota or an unspecified error is tried again, a topic that isn't allowed
//!   or a size is not.
//! - **QoS 1, version 3.1.1**: as above, except that this version has no refusals. A server that may not take a message (access rules, mosquitto's
//!   `message_size_limit`) acknowledges it *and drops it*, and nobody is told: seen in mosquitto 2.0. Over its `max_packet_size` it
//!   hangs up instead, each time. Use version 5, or set [`packet_limit_bytes`](MqttOptions::packet_limit_bytes) and see that access rules fit.
//! - **QoS 0**: at most once. A letter counts as delivered once it is handed over, and what is in buffers when the connection
//!   ends is lost, as is what an access rule forbids; nobody is told.
//! - **Confirmed** means that the server has it as safely as it keeps anything. mosquitto confirms what it holds in memory: what it queued
//!   for absent subscribers is lost when it is killed, unless it has saved since (`autosave_interval`).
//!   And 2.0.11 was seen to lose, after an orderly restart, what it had confirmed for a session that it restored with messages in flight and
//!   whose subscriber came back later than we. A subscriber that must have everything stays connected, or reads what is retained.
//! - **mosquitto 2.0 with `max_queued_messages 0`** ends the connection after each message that it refuses, and the refusal may be lost with it; the letter
//!   is then sent again. Write a large number instead of 0.
//! - **Repeated**: what was on its way when a connection ended is sent again, with the same id, and not marked as a duplicate (DUP), which
//!   belongs to sessions.
//! - **Order**: as handed over, on one connection. Over a repetition the order by first arrival stays; a state topic may go back for a
//!   moment. A letter that was refused for a while comes later than its neighbours.
//! - **A dead server** is noticed after the keep alive at the latest, by a PINGREQ that isn't answered.
//! - **Memory**: 512 KiB of buffers and one letter, whatever the server does. What it sends is bounded to 64 KiB a packet.
//! - **Secrets** are read anew for each connection, and stand in no message and no `Debug`.

mod config;
mod connection;
mod decode;
mod encode;
mod error;
mod outbound;
mod state;
mod status;
mod window;

pub use config::{MqttOptions, Qos, Version, status_topic};
pub use outbound::{MqttBus, MqttReceipts, MqttSender};
