//! The bus, and the two ends of a connection that the ledger holds.

use std::sync::Arc;

use bytes::Bytes;
use tokio::task::JoinHandle;

use crate::delivery::{Bus, Fault, Letter, Limits, Receipt, Receipts, Rejection, SendError, Sender, Ticket};

use super::config::{MqttOptions, Qos, Version};
use super::connection::{self, Connected, OUT_BYTES, Shared, WRITE_BYTES};
use super::encode::{MAX_REMAINING_BYTES, Properties, Publish, Unfit, put_disconnect};
use super::state::StateTopic;
use super::status;
use super::window::Message;

/// What stands in a letter's id before the number of an operator's retry.
pub(super) const REPLAY: &str = ";replay=";

/// An MQTT server as a bus.
#[derive(Debug)]
pub struct MqttBus {
    options: Arc<MqttOptions>,
}

impl MqttBus {
    /// A bus that connects to the server that the options name.
    pub fn new(options: MqttOptions) -> Self {
        MqttBus { options: Arc::new(options) }
    }
}

impl Bus for MqttBus {
    type Sender = MqttSender;
    type Receipts = MqttReceipts;

    const SEPARATOR: char = '/';

    fn acknowledges(&self) -> bool {
        self.options.qos == Qos::AtLeastOnce
    }

    async fn connect(&mut self) -> Result<(MqttSender, MqttReceipts), Fault> {
        let Connected { shared, task, limits } = connection::connect(&self.options).await?;
        let packet_limit = [self.options.packet_limit_bytes, limits.packet_bytes.map(|bytes| bytes as usize)]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(usize::MAX);
        let messages = if self.options.retain_state { 2 } else { 1 };
        let window = usize::from(limits.receive_maximum.unwrap_or(u16::MAX));
        let sender = MqttSender {
            limits: Limits {
                letter_bytes: packet_limit.min(MAX_REMAINING_BYTES),
                in_flight: if self.acknowledges() { (window / messages).max(1) } else { usize::MAX },
            },
            packet_limit,
            options: self.options.clone(),
            shared: shared.clone(),
            task,
        };
        Ok((sender, MqttReceipts { shared }))
    }
}

/// Takes letters for one connection. Dropping it without [`close`](Sender::close) hangs up without a goodbye, so that the server
/// publishes our will.
#[derive(Debug)]
pub struct MqttSender {
    limits: Limits,
    /// The longest packet that the server takes.
    packet_limit: usize,
    options: Arc<MqttOptions>,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Drop for MqttSender {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Sender for MqttSender {
    fn limits(&self) -> Limits {
        self.limits
    }

    async fn send(&mut self, ticket: Ticket, letter: &Letter) -> Result<(), SendError> {
        let version = self.options.version;
        if version == Version::V311 && !letter.attributes.is_empty() {
            // Nothing is lost this way; dropping the attributes would lose them.
            return Err(Fault::needs_help(
                "MQTT 3.1.1 has no headers, so that `cloudevents-binary` can't be written; set format = \"cloudevents\" or \
                 version = \"5\"",
            )
            .into());
        }
        let named = self.properties_of(letter);
        let properties =
            Properties { content_type: &letter.content_type, user: named.as_deref().unwrap_or(&letter.attributes) };
        let event = self.publish(&letter.address, false, properties, letter.body.clone())?;
        let kept = if self.options.retain_state { StateTopic::of(letter) } else { None };
        let state = match kept {
            None => None,
            Some(StateTopic { topic, gone: false }) => {
                Some(self.publish(&topic, true, properties, letter.body.clone())?)
            }
            // A retained message without a payload takes the one that was kept away.
            Some(StateTopic { topic, gone: true }) => {
                Some(self.publish(&topic, true, Properties::default(), Bytes::new())?)
            }
        };
        let count = 1 + u8::from(state.is_some());
        let mut index = None;
        let messages = [Some((event, Message::Event)), state.map(|state| (state, Message::State))];
        for (publish, message) in messages.into_iter().flatten() {
            self.room().await?;
            let mut guard = self.shared.state.lock();
            let shared = &mut *guard;
            let packet_id = if self.acknowledged() {
                let index = *index.get_or_insert_with(|| shared.window.letter(ticket, count));
                shared.window.take_for(index, message)
            } else {
                0
            };
            publish.put(packet_id, &mut shared.out);
            // Whoever sends on has more for the next batch. Otherwise it is flushed by the caller.
            let write = shared.out.len() >= WRITE_BYTES;
            drop(guard);
            if write {
                self.shared.to_write.notify_one();
            }
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Fault> {
        let write = {
            let state = self.shared.state.lock();
            if let Some(fault) = &state.fault {
                return Err(fault.clone());
            }
            !state.out.is_empty()
        };
        if write {
            self.shared.to_write.notify_one();
        }
        Ok(())
    }

    async fn close(mut self) {
        {
            let mut state = self.shared.state.lock();
            // A DISCONNECT makes the server forget our will, so we say it ourselves. At QoS 0, since nobody waits for an
            // acknowledgement any more; the server reads it before it reads the DISCONNECT.
            if let Some(closed) = status::publish(&self.options, status::closed(&self.options.client_id)) {
                closed.unacknowledged().put(0, &mut state.out);
            }
            put_disconnect(&mut state.out);
            state.closing = true;
        }
        self.shared.to_write.notify_one();
        // The task ends when the server hangs up; whether it went well no longer matters.
        let _ = (&mut self.task).await;
    }
}

impl MqttSender {
    fn acknowledged(&self) -> bool {
        self.options.qos == Qos::AtLeastOnce
    }

    fn publish(
        &self,
        topic: &str,
        retain: bool,
        properties: Properties<'_>,
        payload: Bytes,
    ) -> Result<Publish, Rejection> {
        Publish::new(&self.options, topic, retain, properties, payload, self.packet_limit)
            .map_err(|unfit: Unfit| Rejection::Permanent(format!("topic {:?}: {unfit}", beginning(topic))))
    }

    /// Waits until one more message may be handed over.
    async fn room(&self) -> Result<(), Fault> {
        loop {
            {
                let state = self.shared.state.lock();
                if let Some(fault) = &state.fault {
                    return Err(fault.clone());
                }
                if state.out.len() < OUT_BYTES && !(self.acknowledged() && state.window.is_full()) {
                    return Ok(());
                }
            }
            // What fills the window may not have been written yet.
            self.shared.to_write.notify_one();
            self.shared.room.notified().await;
        }
    }

    /// The user properties, where they are not the letter's attributes as they are: who the event is where the body doesn't say it,
    /// and that an operator has sent it again.
    fn properties_of(&self, letter: &Letter) -> Option<Vec<(Box<str>, Box<str>)>> {
        if self.options.version == Version::V311 {
            return None;
        }
        let says_it = !letter.attributes.is_empty() || letter.content_type.starts_with("application/cloudevents");
        let replay = letter.id.rsplit_once(REPLAY);
        if says_it && replay.is_none() {
            return None;
        }
        let mut properties = letter.attributes.clone();
        if !says_it {
            let time = i64::try_from(letter.event.time().as_millis()).unwrap_or(i64::MAX);
            let time = jiff::Timestamp::from_millisecond(time).unwrap_or(jiff::Timestamp::MAX);
            properties.extend([
                ("id".into(), replay.map_or(&*letter.id, |(id, _)| id).into()),
                ("source".into(), letter.source.clone()),
                ("type".into(), letter.kind.clone()),
                ("time".into(), format!("{time:.3}").into()),
            ]);
        }
        if let Some((_, number)) = replay {
            properties.push(("hookbusreplay".into(), number.into()));
        }
        Some(properties)
    }
}

/// A topic for a message to people, who need not see all of a long one.
fn beginning(topic: &str) -> &str {
    topic.char_indices().nth(200).map_or(topic, |(end, _)| &topic[..end])
}

/// Tells what became of letters on one connection.
#[derive(Debug)]
pub struct MqttReceipts {
    shared: Arc<Shared>,
}

impl Receipts for MqttReceipts {
    async fn next(&mut self, into: &mut Vec<Receipt>) -> Result<(), Fault> {
        loop {
            {
                let mut state = self.shared.state.lock();
                if !state.receipts.is_empty() {
                    into.append(&mut state.receipts);
                    return Ok(());
                }
                if let Some(fault) = &state.fault {
                    return Err(fault.clone());
                }
            }
            self.shared.told.notified().await;
        }
    }
}
