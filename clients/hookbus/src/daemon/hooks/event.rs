//! The event that `hookbus hook test` shows a hook: one of the journal, one that the caller sends, or one that is made up.
//!
//! Nobody else gets it: it goes through a broker of its own, which gives it what every event has.

use std::time::SystemTime;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use hookbus_bridges::cloudevents::{is_reserved, rfc3339};
use hookbus_bridges::ganeti::Report;
use hookbus_bridges::opennebula::{Input, Parser};
use hookbus_broker::{BatchLimit, Broker, Delivery, Message, Offset, Received, Start, SubscribeOptions};
use hookbus_hem::{Hook, HookSet, Trigger};
use serde_json::{Value, json};

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
            "{} Give one: --event FILE, with the XML of an event, or of Ganeti the environment as JSON",
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

/// An event of OpenNebula, or the environment of a hook of Ganeti's as a JSON object, as base64.
pub(super) fn of_content(content: Bytes) -> Result<(Received, Source), String> {
    if let Some(message) = of_environment(&content)? {
        return Ok((alone(message)?, Source::Given));
    }
    match Parser::new().content(content) {
        Input::Message { message, oddity: None } => Ok((alone(message)?, Source::Given)),
        _ => Err("this is no event of OpenNebula: the element HOOK_MESSAGE is expected, as XML or in base64; nor the environment of a hook \
                  of Ganeti's, as a JSON object"
            .into()),
    }
}

/// The event of an environment; nothing where it is no JSON object.
fn of_environment(content: &[u8]) -> Result<Option<Message>, String> {
    let json = BASE64_STANDARD.decode(content).ok();
    let object: Option<serde_json::Map<String, Value>> = json.and_then(|json| serde_json::from_slice(&json).ok());
    let Some(object) = object else { return Ok(None) };
    // The data of an event has it, too.
    let bytes = object.get("env_base64").filter(|_| object.contains_key("env")).cloned().unwrap_or_else(|| json!([]));
    let environment = object.get("env").cloned().unwrap_or(Value::Object(object));
    let time = rfc3339(SystemTime::now().into());
    let report = json!({"id": "0".repeat(32), "time": time, "node": "hookbus hook test", "env": environment, "env_base64": bytes});
    Report::parse(report.to_string().as_bytes()).map(|report| Some(report.message())).map_err(|e| e.to_string())
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
        let environment = r#"{"GANETI_HOOKS_PATH":"node-add","GANETI_HOOKS_PHASE":"pre","GANETI_OBJECT_TYPE":"NODE"}"#;
        let (event, _) = of_content(crate::base64(environment.as_bytes()).into()).unwrap();
        assert_eq!(event.keys().last(), Some(&b"EVENT GANETI NODE/node-add/pre/- "[..]));
        assert!(of_content(crate::base64(b"{}").into()).unwrap_err().contains("GANETI_HOOKS_PATH"));
        let broker = Broker::default();
        assert_eq!(with_key(&broker, "app done").unwrap().1, Source::MadeUp);
        let told = with_key(&broker, "EVENT API one.vm.action 1").unwrap_err();
        assert!(told.contains("no journal") && told.contains("--event FILE"), "{told}");
    }
}
