//! Requests over HTTP: nothing panics; what is taken may be published, leaves as a CloudEvent, and comes in as the same again.

#![no_main]

use bytes::Bytes;
use hookbus_bridges::cloudevents::{BATCH, Encoder, STRUCTURED, Sources, decode, is_reserved};
use hookbus_broker::{Broker, Message, SubscribeOptions};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((&way, rest)) = input.split_first() else { return };
    let mut headers: Vec<(&str, &[u8])> = Vec::new();
    let mut body = rest;
    if way % 3 == 2 {
        // Lines `name:value` are headers, up to an empty one.
        let mut lines = rest.splitn(8, |&byte| byte == b'\n');
        for line in lines.by_ref().take_while(|line| !line.is_empty()) {
            let at = line.iter().position(|&byte| byte == b':').unwrap_or(line.len());
            headers.push((std::str::from_utf8(&line[..at]).unwrap_or("ce-id"), line.get(at + 1..).unwrap_or_default()));
        }
        body = lines.next().unwrap_or_default();
    }
    let content_type = match way % 3 {
        0 => Some(STRUCTURED),
        1 => Some(BATCH),
        _ => std::str::from_utf8(body.get(..10).unwrap_or(body)).ok(),
    };
    let Ok(events) = decode(content_type, headers, &Bytes::copy_from_slice(body)) else { return };

    let encoder = Encoder::new(Sources { host: "host".into(), zone: None });
    let broker = Broker::default();
    let mut subscription = broker.subscribe(SubscribeOptions::new("fuzz").prefix(""));
    for event in events.into_iter().take(10) {
        assert!(!event.key.is_empty() && !is_reserved(&event.key));
        broker.publish_now(Message::from(event.clone())).expect("what is taken can be published");
        let passed = subscription.try_recv().ok().and_then(|delivery| delivery.message()).expect("it is delivered");
        let text = encoder.structured(&passed, None);
        assert!(!text.contains(&b'\n'));
        let again = decode(Some(STRUCTURED), [], &text).expect("what leaves is a CloudEvent").remove(0);
        assert_eq!(again.key, event.key);
        let is_ours = event.origin.as_ref().is_none_or(|origin| origin.id.is_empty());
        if !is_ours {
            assert_eq!(again.origin, event.origin);
        }
        let has_lines = event.payload.iter().any(|byte| matches!(byte, b'\n' | b'\r'));
        assert!(has_lines || again.payload == event.payload);
    }
});
