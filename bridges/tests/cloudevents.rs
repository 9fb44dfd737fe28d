//! Events out as CloudEvents and in again: against what OpenNebula's own tools make of recorded events, and against the
//! examples of the CloudEvents specification.

#![cfg(feature = "cloudevents")]
#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use hookbus_bridges::PAYLOAD_BASE64;
use hookbus_bridges::cloudevents::{
    BATCH, DecodeError, Encoder, Format, Incoming, MAX_BATCH_EVENTS, STRUCTURED, Sources, Value, base64, decode,
    encode_header, encode_key, is_reserved, raw,
};
use hookbus_bridges::opennebula::{Input, Parser};
use hookbus_broker::{Broker, Message, Origin, Received, SubscribeOptions, Subscription, Timestamp};
use proptest::prelude::*;
use serde_json::json;

// ---- Helpers

struct Bus {
    broker: Broker,
    subscription: Subscription,
    encoder: Encoder,
}

impl Bus {
    fn new() -> Self {
        let broker = Broker::default();
        let subscription = broker.subscribe(SubscribeOptions::new("test").prefix(""));
        let encoder = Encoder::new(Sources { host: "front end".into(), zone: Some("zone/1".into()) });
        Bus { broker, subscription, encoder }
    }

    fn pass(&mut self, message: impl Into<Message>) -> Received {
        self.broker.publish_now(message.into()).unwrap();
        self.subscription.try_recv().unwrap().message().unwrap()
    }

    /// The event in structured mode, which must be one line, as JSON.
    fn structured(&self, event: &Received) -> serde_json::Value {
        let (all, nature) = (self.encoder.attributes(event, None), self.encoder.nature(event));
        for name in ["source", "type", "datacontenttype"] {
            assert_eq!(nature.get(name), all.get(name), "{name}");
        }
        let text = self.encoder.structured(event, None);
        assert!(!text.contains(&b'\n') && !text.contains(&b'\r'));
        serde_json::from_slice(&text).unwrap()
    }
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/opennebula")
}

/// The lines that oned wrote to its driver; the first is number 1.
fn recorded_lines() -> Vec<Vec<u8>> {
    let path = fixtures().join("oned-to-driver.txt.zst");
    let file = std::fs::File::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut text = Vec::new();
    ruzstd::decoding::StreamingDecoder::new(file).unwrap().read_to_end(&mut text).unwrap();
    text.split(|&byte| byte == b'\n').map(<[u8]>::to_vec).collect()
}

fn message(line: &[u8]) -> Message {
    match Parser::new().line([line, b" "].concat().into()) {
        Ok(Input::Message { message, .. }) => message,
        other => panic!("{other:?}"),
    }
}

/// A JSON text without white space between its tokens.
fn compact(json: &str) -> String {
    let (mut in_string, mut escaped) = (false, false);
    let keep = |c: &char| {
        let keep = in_string || !c.is_ascii_whitespace();
        in_string ^= *c == '"' && !escaped;
        escaped = in_string && *c == '\\' && !escaped;
        keep
    };
    json.chars().filter(keep).collect()
}

fn decode_one(body: &serde_json::Value) -> Result<Incoming, DecodeError> {
    decode(Some(STRUCTURED), [], &body.to_string().into()).map(|mut events| events.remove(0))
}

/// An event in structured mode with these members besides the required ones; a `null` takes one away.
fn with(members: serde_json::Value) -> serde_json::Value {
    let mut event = json!({"specversion": "1.0", "id": "1", "source": "/s", "type": "t"});
    let serde_json::Value::Object(members) = members else { panic!("{members}") };
    event.as_object_mut().unwrap().extend(members);
    event
}

fn fault(result: Result<impl std::fmt::Debug, DecodeError>) -> String {
    result.unwrap_err().to_string()
}

// ---- Out

/// The data of the recorded events of which OpenNebula's own tools have told what they make: the same text, so the order of
/// the members, too.
#[test]
fn data_of_opennebula_is_as_its_own_tools_write_it() {
    let mut bus = Bus::new();
    let lines = recorded_lines();
    let mut samples = 0;
    for entry in std::fs::read_dir(fixtures().join("json")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let expected = compact(&std::fs::read_to_string(&path).unwrap());
        let number = expected.strip_prefix("{\"line\":").unwrap().split(',').next().unwrap();
        let event = bus.pass(message(&lines[number.parse::<usize>().unwrap() - 1]));
        let (attributes, data) = bus.encoder.binary(&event, None);
        let data = data.unwrap();
        let ours = format!("{{\"line\":{number},\"data\":{}}}", std::str::from_utf8(&data.body).unwrap());
        assert_eq!(ours, expected, "{}", path.display());
        assert_eq!(attributes.get("datacontenttype"), Some(&Value::from("application/json")));
        // Structured mode holds the same.
        let text = String::from_utf8(bus.encoder.structured(&event, None).to_vec()).unwrap();
        assert!(text.ends_with(&format!(",\"data\":{}}}", std::str::from_utf8(&data.body).unwrap())));
        samples += 1;
    }
    assert_eq!(samples, 7);
}

/// All recorded events leave, each with its attributes, and what is not well-formed with its text.
#[test]
fn recorded_events_become_cloudevents() {
    let mut bus = Bus::new();
    let mut types: BTreeMap<String, usize> = BTreeMap::new();
    let mut broken = 0;
    for line in recorded_lines().iter().filter(|line| line.contains(&b' ')) {
        let event = bus.pass(message(line));
        assert_eq!(base64(&event), event.payload().as_ref());
        let json = bus.structured(&event);
        let text = |name: &str| json[name].as_str().unwrap_or_else(|| panic!("{name} in {json}"));
        let data = &json["data"];
        let field = |name: &str| data[name].as_str().unwrap_or_else(|| panic!("{name} in {data}"));
        assert_eq!(text("id"), event.id().to_string());
        assert_eq!(text("source"), "/opennebula/zone%2F1");
        assert_eq!(text("sequence"), event.offset().to_string());
        assert_eq!(text("specversion"), "1.0");
        match text("type") {
            "org.opennebula.api" => {
                assert_eq!(text("subject"), field("CALL"));
                let result = data.get("CALL_INFO").map_or_else(|| &data["RESULT"], |info| &info["RESULT"]);
                let key = format!("EVENT API {} {}", field("CALL"), result.as_str().unwrap());
                assert_eq!(text("hookbuskey"), key);
            }
            "org.opennebula.retry" => {
                assert_eq!((text("hookbuskey"), json.get("subject")), ("RETRY", None));
                assert_eq!(field("HOOK_ID").parse::<u32>().map(|id| id < 50), Ok(true));
            }
            state => {
                let object = field("HOOK_OBJECT");
                assert_eq!(state, format!("org.opennebula.state.{}", object.to_lowercase()));
                assert_eq!(text("subject"), format!("{}/{}", object.to_lowercase(), field("RESOURCE_ID")));
                let lcm = data["LCM_STATE"].as_str().unwrap_or_default();
                let key = format!("EVENT STATE {object}/{}/{lcm}/{} ", field("STATE"), field("RESOURCE_ID"));
                assert_eq!(text("hookbuskey"), key);
            }
        }
        if data.get("raw").is_some() {
            broken += 1;
            assert_eq!(field("raw").as_bytes(), raw(&event).as_ref());
        }
        *types.entry(text("type").to_owned()).or_default() += 1;
    }
    assert_eq!(broken, 16, "documents that are not well-formed");
    let expected =
        [("api", 458), ("retry", 58), ("state.host", 17), ("state.image", 52), ("state.net", 9), ("state.vm", 299)];
    let expected = expected.map(|(name, count)| (format!("org.opennebula.{name}"), count));
    assert_eq!(types, BTreeMap::from(expected));
}

#[test]
fn events_of_hookbus_itself() {
    let mut bus = Bus::new();
    let time = Timestamp::from_millis(1_795_303_226_050);
    let event = bus.pass(Message::new("HOOKBUS HOOK web/check/failure ", "{\n\"code\": 1 }").with_time(time));
    let mut expected = json!({
        "specversion": "1.0", "id": event.id().to_string(), "source": "/hookbus/front%20end", "type": "org.hookbus.hook",
        "subject": "hook/web/check", "time": "2026-11-21T23:20:26.050Z", "datacontenttype": "application/json",
        "sequence": "1", "hookbuskey": "HOOKBUS HOOK web/check/failure ", "data": {"code": 1},
    });
    assert_eq!(bus.structured(&event), expected);

    let event = bus.pass(Message::new(b"a\xFF%\n", &b"plain"[..]).with_key("second").with_time(time));
    expected["id"] = event.id().to_string().into();
    expected["type"] = "org.hookbus.custom".into();
    expected["datacontenttype"] = "text/plain".into();
    expected["sequence"] = "2".into();
    expected["hookbuskey"] = "a%FF%25%0A".into();
    expected["data"] = "plain".into();
    expected.as_object_mut().unwrap().remove("subject");
    assert_eq!(bus.structured(&event), expected);
    assert_eq!((raw(&event).as_ref(), base64(&event).as_ref()), (&b"plain"[..], &b"cGxhaW4="[..]));

    let event = bus.pass(Message::new("k", &b"\xFF\x00"[..]));
    let json = bus.structured(&event);
    assert_eq!((json.get("data"), &json["data_base64"], json.get("datacontenttype")), (None, &json!("/wA="), None));

    let event = bus.pass(Message::new("k", ""));
    let json = bus.structured(&event);
    assert_eq!((json.get("data"), json.get("data_base64"), json.get("datacontenttype")), (None, None, None));
}

/// What was dropped before an event is told with it.
#[test]
fn drops_are_told() {
    let mut bus = Bus::new();
    let event = bus.pass(Message::new("k", "x"));
    let told = |dropped| {
        let json: serde_json::Value = serde_json::from_slice(&bus.encoder.structured(&event, dropped)).unwrap();
        json.get("hookbusdropped").cloned()
    };
    assert_eq!(told(None), None);
    assert_eq!(told(Some(12)), Some(json!(12)));
    // An Integer of CloudEvents has 32 bits.
    assert_eq!(told(Some(u64::MAX)), Some(json!(i32::MAX)));
}

/// A content that is no base64, or nothing at all, is an event all the same.
#[test]
fn broken_contents_leave_too() {
    let mut bus = Bus::new();
    for (content, raw_text) in [("QUJD=REVG", "ABCDEF"), ("%", ""), ("", ""), ("QUJD ", "ABC")] {
        let event = bus.pass(Message::new("EVENT ", content).with_tag(PAYLOAD_BASE64));
        let json = bus.structured(&event);
        assert_eq!((&json["type"], &json["data"]), (&json!("org.opennebula.other"), &json!({"raw": raw_text})));
        assert_eq!(base64(&event).as_ref(), content.as_bytes());
    }
}

// ---- In

/// The examples of the JSON format, each with the same event in binary mode. Their `data_base64` is a placeholder in the
/// specification, and base64 here.
#[test]
fn examples_of_the_specification() {
    let base = json!({
        "specversion": "1.0", "type": "com.example.someevent", "source": "/mycontext", "id": "A234-1234-1234",
        "time": "2018-04-05T17:31:00Z", "comexampleextension1": "value", "comexampleothervalue": 5,
    });
    let thrift = ("application/vnd.apache.thrift.binary", &b"\x00\xFFbinary"[..]);
    let object = "{\n        \"appinfoA\" : \"abc\",\n        \"appinfoB\" : 123,\n        \"appinfoC\" : true\n    }";
    let cases = [
        (
            r#""datacontenttype" : "application/vnd.apache.thrift.binary", "data_base64" : "AP9iaW5hcnk=""#.to_owned(),
            thrift,
        ),
        (
            r#""unsetextension": null, "datacontenttype" : "application/xml", "data" : "<much wow=\"xml\"/>""#
                .to_owned(),
            ("application/xml", b"<much wow=\"xml\"/>"),
        ),
        (
            format!(r#""subject": null, "datacontenttype" : "application/json", "data" : {object}"#),
            ("application/json", object.as_bytes()),
        ),
        (r#""subject": null, "data" : "I'm just a string""#.to_owned(), ("application/json", b"\"I'm just a string\"")),
    ];
    let mut batch = Vec::new();
    let mut all = Vec::new();
    for (members, (content_type, payload)) in cases {
        let base = base.to_string();
        let text = format!("{},\n    {members}\n}}", base.strip_suffix('}').unwrap());
        let structured = decode(Some("application/cloudevents+json; charset=UTF-8"), [], &text.clone().into()).unwrap();
        assert_eq!(structured.len(), 1);
        let headers = [
            ("ce-specversion", &b"1.0"[..]),
            ("Ce-Type", b"com.example.someevent"),
            ("ce-source", b"/mycontext"),
            ("ce-id", b"A234-1234-1234"),
            ("ce-time", b"2018-04-05T17:31:00Z"),
            ("ce-comexampleextension1", b"value"),
            ("ce-comexampleothervalue", b"5"),
            ("host", b"\xFF"),
            ("x", b""),
        ];
        let binary = decode(Some(content_type), headers, &Bytes::copy_from_slice(payload)).unwrap();
        for (events, number) in [(&structured, "5"), (&binary, "\"5\"")] {
            assert_eq!(events[0].key, "com.example.someevent");
            assert_eq!(events[0].payload, payload);
            let origin = events[0].origin.as_ref().unwrap();
            assert_eq!((&*origin.id, &*origin.source), ("A234-1234-1234", "/mycontext"));
            assert_eq!(
                &*origin.attributes,
                format!(
                    "{{\"type\":\"com.example.someevent\",\"time\":\"2018-04-05T17:31:00Z\",\"datacontenttype\":\"{content_type}\",\
                     \"comexampleextension1\":\"value\",\"comexampleothervalue\":{number}}}"
                )
            );
        }
        batch.push(text);
        all.extend(structured);
    }
    let text = format!("[\n{}\n]", batch.join(" ,\n"));
    assert_eq!(decode(Some(BATCH), [], &text.into()).unwrap(), all);
    assert_eq!(decode(Some(BATCH), [], &"[]".into()).unwrap(), []);
}

/// An imported event leaves with what it said about itself; what is ours to say is ours.
#[test]
fn imported_events_keep_their_identity() {
    let mut bus = Bus::new();
    let mut event = with(json!({
        "id": "ü", "source": "https://shop.example/9", "type": "order", "subject": "9/a", "time": "2018-04-05T17:31:00.5+02:00",
        "dataschema": "https://shop.example/schema", "datacontenttype": "text/csv", "data": "a,b\r\n", "flag": true, "number": -7,
        "sequence": "99", "recordedtime": "2000-01-01T00:00:00Z", "hookbusdropped": 5, "traceparent": "00-ab-cd-01",
    }));
    let incoming = decode_one(&event).unwrap();
    assert_eq!((incoming.key.as_ref(), incoming.payload.as_ref()), (&b"order 9/a"[..], &b"a,b\r\n"[..]));
    let passed = bus.pass(Message::from(incoming).with_time(Timestamp::from_millis(1)));
    event["sequence"] = "1".into();
    event["recordedtime"] = "1970-01-01T00:00:00.001Z".into();
    event["hookbuskey"] = "order 9/a".into();
    event.as_object_mut().unwrap().remove("hookbusdropped");
    assert_eq!(bus.structured(&passed), event);
}

#[test]
fn keys_of_incoming_events() {
    let key = |members| decode_one(&with(members)).unwrap().key;
    assert_eq!(key(json!({})), "t");
    assert_eq!(key(json!({"subject": "s"})), "t s");
    assert_eq!(key(json!({"subject": "s", "hookbuskey": "a%20b%FF%"})), &b"a b\xFF%"[..]);
    for reserved in ["EVENT ", "EVENT VM 1/", "RETRY", "RETRYING", "HOOKBUS GAP", "EVENT%20x"] {
        let error = decode_one(&with(json!({ "hookbuskey": reserved }))).unwrap_err();
        assert!(matches!(error, DecodeError::ReservedKey { index: None, .. }), "{error}");
        let error = decode(None, [("ce-hookbuskey", encode_header(reserved).as_bytes())], &Bytes::new()).unwrap_err();
        assert!(matches!(error, DecodeError::ReservedKey { .. }), "{error}");
    }
    let error = decode_one(&with(json!({"type": "EVENT x"}))).unwrap_err();
    assert!(matches!(error, DecodeError::ReservedKey { .. }), "{error}");
    assert!(fault(decode_one(&with(json!({"hookbuskey": ""})))).contains("is empty"));
    assert_eq!(key(json!({"hookbuskey": "EVENT"})), "EVENT");
}

#[test]
fn payloads_without_attributes() {
    let plain = |content_type, value: &[u8], body: &'static str| {
        decode(content_type, [("CE-HookbusKey", value), ("accept", b"*/*")], &body.into()).unwrap().remove(0)
    };
    let event = plain(Some("text/plain"), b"backup done", "42");
    assert_eq!((event.key.as_ref(), event.payload.as_ref()), (&b"backup done"[..], &b"42"[..]));
    let mut bus = Bus::new();
    let json = bus.pass(event);
    let json = bus.structured(&json);
    assert_eq!((&json["type"], &json["data"]), (&json!("org.hookbus.custom"), &json!("42")));
    assert_eq!(json["source"], "/hookbus/front%20end");
    assert_eq!(json.get("recordedtime"), None);

    // What curl says unless told otherwise says nothing.
    let event = plain(Some("application/x-www-form-urlencoded"), b"\"a \\\"b%20c\"", "x");
    assert_eq!((event.key.as_ref(), &event.origin), (&b"a \"b c"[..], &None));
    assert_eq!(plain(None, b"k", "x").origin, None);
    let passed = bus.pass(plain(Some("application/json"), b"k", "{\"a\":\n[1]}"));
    assert_eq!(bus.structured(&passed)["data"], json!({"a": [1]}));
    // JSON that is none is told as bytes.
    let passed = bus.pass(plain(Some("application/json"), b"k", "{"));
    assert_eq!(bus.structured(&passed)["data_base64"], "ew==");
}

/// Each error says where, what, and what to do.
#[test]
fn what_is_no_cloudevent_is_refused() {
    let cases = [
        (json!({"specversion": null}), "\"specversion\" is missing"),
        (json!({"specversion": "0.3"}), "\"specversion\" is \"0.3\"; only \"1.0\" is known"),
        (json!({"id": ""}), "\"id\" is empty"),
        (json!({"id": 5}), "\"id\" is 5; it must be a string"),
        (json!({"source": "a b"}), "no URI reference"),
        (json!({"type": null}), "\"type\" is missing"),
        (json!({"subject": ""}), "\"subject\" is empty"),
        (json!({"time": "today"}), "no RFC 3339 time; write it as"),
        (json!({"datacontenttype": "json"}), "no media type"),
        (json!({"dataschema": "/x"}), "no absolute URI"),
        (json!({"myExtension": "x"}), "\"myExtension\" names consist of lower-case letters"),
        (json!({"my-extension": null}), "names consist of lower-case letters"),
        (json!({"x": {"a": 1}}), "\"x\" is an object or array"),
        (json!({"x": 1.5}), "\"x\" is 1.5; a number must be a whole one of 32 bits"),
        (json!({"x": 2_147_483_648_u32}), "is 2147483648"),
        (json!({"x": "a\nb"}), "U+000A"),
        (json!({"data": 1, "data_base64": "MQ=="}), "\"data_base64\" is there besides data"),
        (json!({"data_base64": "*"}), "no base64"),
        (json!({"data_base64": 5}), "no base64"),
        (json!({"data": {}, "datacontenttype": "text/plain"}), "\"data\" is no string, as it must be for text/plain"),
    ];
    for (members, expected) in cases {
        let error = fault(decode_one(&with(members.clone())));
        assert!(error.contains(expected), "{members}: {error}");
        let batch = json!([with(json!({})), with(members)]);
        let error = fault(decode(Some(BATCH), [], &batch.to_string().into()));
        assert!(error.starts_with("event 1 of the batch: ") && error.contains(expected), "{error}");
    }
    let structured = |text: &'static str| fault(decode(Some(STRUCTURED), [], &text.into()));
    for text in ["", "[]", "5", "{", "{} x", "{\"id\":\"\\ud800\"}"] {
        let error = structured(text);
        assert!(error.contains("no CloudEvent in JSON") || error.contains("no string of Unicode"), "{text}: {error}");
    }
    assert!(structured(r#"{"id":"1","id":"2"}"#).contains("\"id\" is there twice"));
    assert!(structured(r#"{"data":1,"data":2}"#).contains("\"data\" is there twice"));
    assert!(fault(decode(Some(BATCH), [], &"{}".into())).contains("a JSON array"));

    for media_type in
        ["application/cloudevents", "application/cloudevents+avro", "application/cloudevents+json; charset=latin1"]
    {
        let error = decode(Some(media_type), [], &"{}".into()).unwrap_err();
        assert!(matches!(error, DecodeError::MediaType(_)), "{error}");
    }
    let binary = |headers: &[(&'static str, &'static str)]| {
        let headers = headers.iter().map(|(name, value)| (*name, value.as_bytes()));
        fault(decode(None, headers, &Bytes::new()))
    };
    assert!(binary(&[]).contains("\"hookbuskey\" is missing"));
    assert!(binary(&[("ce-id", "1"), ("ce-hookbuskey", "k")]).contains("\"specversion\" is missing"));
    assert!(binary(&[("ce-datacontenttype", "text/plain")]).contains("Content-Type"));
    assert!(binary(&[("ce-id", "1"), ("CE-ID", "2")]).contains("is there twice"));
    assert!(binary(&[("ce-id", "%C0%A0")]).contains("no UTF-8"));
    assert!(binary(&[("ce-a_b", "1")]).contains("names consist of"));
}

#[test]
fn requests_are_bounded() {
    let too_much = |text: String| {
        let error = decode(Some(BATCH), [], &text.into()).unwrap_err();
        assert!(matches!(error, DecodeError::TooMuch { .. }), "{error}");
        assert_eq!(error.http_status(), 413);
    };
    too_much(format!("[{}]", vec!["{}"; MAX_BATCH_EVENTS + 1].join(",")));
    too_much(format!("[{}]", with(json!({"x": "y".repeat(70_000)}))));
    too_much(format!("[{}]", with(json!({"type": "y".repeat(60_000), "subject": "z".repeat(6_000)}))));
    let many: Vec<String> = (0..300).map(|n| format!("\"a{n}\":\"\"")).collect();
    let error = fault(decode(Some(STRUCTURED), [], &format!("{{{}}}", many.join(",")).into()));
    assert!(error.contains("more than 256 attributes"), "{error}");
    let names: Vec<String> = (0..300).map(|n| format!("ce-a{n}")).collect();
    let error = fault(decode(None, names.iter().map(|name| (name.as_str(), &b""[..])), &Bytes::new()));
    assert!(error.contains("more than 256 attributes"), "{error}");
    // Data may be nested deeply.
    let deep = ["[".repeat(100_000), "]".repeat(100_000)].concat();
    let event = format!("{{\"specversion\":\"1.0\",\"id\":\"1\",\"source\":\"/\",\"type\":\"t\",\"data\":{deep}}}");
    let event = decode(Some(STRUCTURED), [], &event.into()).unwrap().remove(0);
    let mut bus = Bus::new();
    let passed = bus.pass(event);
    assert!(bus.encoder.structured(&passed, None).ends_with(format!("{deep}}}").as_bytes()));
}

/// A small event doesn't keep a large request in memory.
#[test]
fn small_payloads_leave_their_request() {
    let small = with(json!({"data": [1]}));
    let large = with(json!({"data": "x".repeat(1 << 20)}));
    let body = Bytes::from(json!([small, large]).to_string());
    let events = decode(Some(BATCH), [], &body).unwrap();
    let is_within = |part: &[u8]| body.as_ptr_range().contains(&part.as_ptr());
    assert_eq!(events[0].payload, "[1]");
    assert!(!is_within(&events[0].payload));
    assert!(is_within(&events[1].payload), "a large one is not copied");
}

#[test]
fn formats_have_their_names() {
    let names = ["cloudevents", "cloudevents-binary", "raw", "base64"];
    let formats = [Format::CloudEvents, Format::CloudEventsBinary, Format::Raw, Format::Base64];
    for (name, format) in names.into_iter().zip(formats) {
        assert_eq!(serde_json::to_value(format).unwrap(), name);
        assert_eq!(serde_json::from_value::<Format>(name.into()).unwrap(), format);
    }
}

// ---- There and back

fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[ -~]{1,12}", "[a-zäöü€😀 %\"\\\\]{1,8}"]
}

/// An event as it could have come in.
fn incoming() -> impl Strategy<Value = Incoming> {
    let json = prop_oneof![Just("null"), Just("{\"a\":[1,2.50,\"b \\u00e9\"]}"), Just("\"x\""), Just("1e999")];
    let data = prop_oneof![
        (Just(Some("application/json")), json.prop_map(|json| json.as_bytes().to_vec())),
        (Just(Some("application/vnd.x+json")), any::<Vec<u8>>()),
        (Just(Some("text/plain; charset=utf-8")), text().prop_map(String::into_bytes)),
        (Just(Some("text/plain")), any::<Vec<u8>>()),
        (Just(Some("image/png")), any::<Vec<u8>>()),
        (Just(None), any::<Vec<u8>>()),
    ];
    let value = prop_oneof![
        text().prop_map(serde_json::Value::from),
        any::<i32>().prop_map(serde_json::Value::from),
        any::<bool>().prop_map(serde_json::Value::from)
    ];
    let extensions = prop::collection::btree_map("x[a-z0-9]{0,8}", value, 0..4);
    let optional = (prop::option::of(text()), any::<bool>(), any::<bool>());
    let key = any::<Vec<u8>>().prop_filter("may be published", |key| !key.is_empty() && !is_reserved(key));
    (text(), "/[a-z%20]{0,8}", text(), key, data, extensions, optional).prop_map(
        |(id, source, kind, key, (content_type, payload), extensions, (subject, time, schema))| {
            let mut attributes = vec![("type".to_owned(), json!(kind))];
            let mut push = |name: &str, value: Option<serde_json::Value>| {
                attributes.extend(value.map(|value| (name.to_owned(), value)));
            };
            push("subject", subject.map(Into::into));
            push("time", time.then(|| "2018-04-05T17:31:00Z".into()));
            push("datacontenttype", content_type.map(Into::into));
            push("dataschema", schema.then(|| "urn:x:y".into()));
            attributes.extend(extensions);
            let members: Vec<String> = attributes.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
            let source = source.replace('%', "%20").replace("%20%20", "%20");
            let attributes = format!("{{{}}}", members.join(",")).into();
            let origin = Origin { id: id.into(), source: source.into(), attributes };
            Incoming { key: key.into(), payload: payload.into(), origin: Some(origin) }
        },
    )
}

proptest! {
    /// What comes in and leaves in structured mode comes in as the same again.
    #[test]
    fn structured_mode_there_and_back(event in incoming()) {
        let mut bus = Bus::new();
        let passed = bus.pass(event.clone());
        let body = bus.encoder.structured(&passed, Some(3));
        prop_assert_eq!(decode(Some(STRUCTURED), [], &body).unwrap(), vec![event]);
    }

    /// As does what leaves in binary mode; there, numbers and truths have become strings.
    #[test]
    fn binary_mode_there_and_back(event in incoming()) {
        let mut bus = Bus::new();
        let passed = bus.pass(event.clone());
        let (attributes, data) = bus.encoder.binary(&passed, None);
        let content_type = attributes.get("datacontenttype").map(ToString::to_string);
        let headers: Vec<(String, String)> = attributes
            .iter()
            .filter(|(name, _)| *name != "datacontenttype")
            .map(|(name, value)| (format!("ce-{name}"), encode_header(&value.to_string()).into_owned()))
            .collect();
        let headers = headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
        let body = data.map(|data| Bytes::copy_from_slice(&data.body)).unwrap_or_default();
        let back = decode(content_type.as_deref(), headers, &body).unwrap().remove(0);
        prop_assert_eq!((&back.key, &back.payload), (&event.key, &event.payload));
        let (back, event) = (back.origin.unwrap(), event.origin.unwrap());
        prop_assert_eq!((&back.id, &back.source), (&event.id, &event.source));
        let read = |text: &str| -> BTreeMap<String, serde_json::Value> { serde_json::from_str(text).unwrap() };
        let text = |value: serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let expected: BTreeMap<_, _> = read(&event.attributes).into_iter().map(|(name, value)| (name, text(value))).collect();
        let back: BTreeMap<_, _> = read(&back.attributes).into_iter().map(|(name, value)| (name, text(value))).collect();
        prop_assert_eq!(back, expected);
    }

    /// Nothing that comes in breaks anything, and what is taken has a key that may be published.
    #[test]
    fn any_request_is_answered(
        content_type in prop::option::of(prop_oneof![Just(STRUCTURED.to_owned()), Just(BATCH.to_owned()), text()]),
        headers in prop::collection::vec(("(ce-)?[a-z]{0,10}", any::<Vec<u8>>()), 0..5),
        body: Vec<u8>,
    ) {
        let headers = headers.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
        if let Ok(events) = decode(content_type.as_deref(), headers, &body.into()) {
            prop_assert!(events.iter().all(|event| !event.key.is_empty() && !is_reserved(&event.key)));
            prop_assert!(events.iter().all(|event| !encode_key(&event.key).is_empty()));
        }
    }
}
