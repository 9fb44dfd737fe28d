//! The event that `hookbus hook test` shows a hook: one of the journal, one that the caller sends, or one that is made up.
//!
//! Nobody else gets it: it goes through a broker of its own, which gives it what every event has.

use bytes::Bytes;
use hookbus_bridges::cloudevents::is_reserved;
use hookbus_bridges::opennebula::{Input, Parser};
use hookbus_broker::{BatchLimit, Broker, Delivery, Message, Offset, Received, Start, SubscribeOptions};
use hookbus_hem::{Hook, HookSet, Trigger};

/// How far back the journal is searched, in events.
const SEARCHED: u64 = 100_000;
const BATCH: BatchLimit = BatchLimit { messages: 512, bytes: 16 << 20 };

/// Where the event came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Journal,
    Given,
    MadeUp,
}

impl Source {
    pub(super) fn name(self) -> &'static str {
        match self {
            Source::Journal => "journal",
            Source::Given => "given",
            Source::MadeUp => "made up",
        }
    }
}

/// The newest event of the journal that is for this hook; for a hook of TYPE event, where there is none, one with nothing but its prefix
/// for a key. It blocks.
pub(super) fn for_hook(broker: &Broker, hook: &Hook) -> Result<(Received, Source), String> {
    let prefixes = HookSet::new([hook.clone()]).prefixes();
    if let Some(event) = newest(broker, prefixes.iter().map(Vec::as_slice)) {
        return Ok((event, Source::Journal));
    }
    match &hook.trigger {
        Trigger::Event { prefix } => Ok((alone(Message::new(prefix.as_str(), ""))?, Source::MadeUp)),
        trigger => Err(format!(
            "{} Give one: --event FILE, with the XML of an event",
            nothing_found(broker, &trigger.to_string())
        )),
    }
}

/// The newest event of the journal one of whose keys begins like this; without one, an empty event of that key, unless it is a key of OpenNebula's,
/// whose events hold more than their key. It blocks.
pub(super) fn with_key(broker: &Broker, key: &str) -> Result<(Received, Source), String> {
    if let Some(event) = newest(broker, [key.as_bytes()]) {
        return Ok((event, Source::Journal));
    }
    if is_reserved(key.as_bytes()) {
        return Err(format!("{} Give the event itself: --event FILE, with its XML", nothing_found(broker, key)));
    }
    Ok((alone(Message::new(key, ""))?, Source::MadeUp))
}

fn nothing_found(broker: &Broker, what: &str) -> String {
    if broker.journal().is_none() {
        return format!("there is no journal to look for {what:?} in.");
    }
    format!("the journal has no event {what:?} among the last {SEARCHED}.")
}

/// An event of OpenNebula, as base64.
pub(super) fn of_content(content: Bytes) -> Result<(Received, Source), String> {
    match Parser::new().content(content) {
        Input::Message { message, oddity: None } => Ok((alone(message)?, Source::Given)),
        _ => Err("this is no event of OpenNebula: the element HOOK_MESSAGE is expected, as XML or in base64".into()),
    }
}

fn alone(message: Message) -> Result<Received, String> {
    let broker = Broker::default();
    let mut subscription = broker.subscribe(SubscribeOptions::new("test").prefix("").hwm(1));
    broker.publish_now(message).map_err(|e| e.to_string())?;
    match subscription.try_recv() {
        Ok(Delivery::Message(event)) => Ok(event),
        _ => Err("the event is larger than any can be".into()),
    }
}

/// The newest event of the journal with such a key.
fn newest<'p>(broker: &Broker, prefixes: impl IntoIterator<Item = &'p [u8]>) -> Option<Received> {
    broker.journal()?;
    let from = broker.last_offset().get().saturating_sub(SEARCHED);
    let mut options = SubscribeOptions::new("hook test");
    options.prefixes = prefixes.into_iter().map(Into::into).collect();
    let mut subscription = broker.subscribe_from(options, Start::Offset(Offset::new(from))).ok()?;
    let probe = subscription.probe();
    let (mut found, mut batch) = (None, Vec::new());
    while probe.unread() > 0 {
        // What is unread may be of other keys; then a receive finds nothing, and nothing is unread any more.
        if subscription.try_recv_batch(BATCH, &mut batch).is_err() {
            break;
        }
        for delivery in batch.drain(..) {
            if let Delivery::Message(message) = delivery {
                found = Some(message);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_read_or_told_what_it_should_be() {
        let xml = "<HOOK_MESSAGE><HOOK_TYPE>API</HOOK_TYPE><CALL>one.vm.action</CALL><RESULT>1</RESULT>\
                   <CALL_INFO><RESULT>1</RESULT></CALL_INFO></HOOK_MESSAGE>";
        let (event, _) = of_content(crate::base64(xml.as_bytes()).into()).unwrap();
        assert_eq!(event.keys().next(), Some(&b"EVENT API one.vm.action 1"[..]));
        for nothing in ["", "<VM/>", "???"] {
            let told = of_content(Bytes::copy_from_slice(nothing.as_bytes())).expect_err(nothing);
            assert!(told.contains("HOOK_MESSAGE is expected"), "{told}");
        }
        let broker = Broker::default();
        assert_eq!(with_key(&broker, "app done").unwrap().1, Source::MadeUp);
        let told = with_key(&broker, "EVENT API one.vm.action 1").unwrap_err();
        assert!(told.contains("no journal") && told.contains("--event FILE"), "{told}");
    }
}
