//! Conditions and templates of webhooks, over any event: nothing panics, and nothing takes long, or much memory (libFuzzer's own limit).
//!
//! Both files are a part of this program, so that it is built without HTTP and TLS.

#![no_main]
#![allow(dead_code, unreachable_pub, reason = "what the bridge uses besides")]

#[path = "../../bridges/src/webhook/condition.rs"]
mod condition;
#[path = "../../bridges/src/webhook/template.rs"]
mod template;

use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;

use self::condition::Condition;
use self::template::{TemplateKind, Templates, check_template};

/// Far more than the second that is promised: sanitizers and other programs take their share.
const LONG: Duration = Duration::from_secs(30);
const COMPILER_STACK_BYTES: usize = 64 << 20;

fn with_deep_stack<T: Send>(compile: impl FnOnce() -> T + Send) -> Option<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(COMPILER_STACK_BYTES);
        thread.spawn_scoped(scope, compile).ok()?.join().ok()
    })
}

// A text, NUL, and an event.
fuzz_target!(|input: &[u8]| {
    let Some((&what, rest)) = input.split_first() else { return };
    let mut parts = rest.splitn(2, |&byte| byte == 0);
    let Some(Ok(text)) = parts.next().map(std::str::from_utf8) else { return };
    let event = parts.next().unwrap_or(br#"{"data":{"name":"web1","tags":["a","b"],"n":7,"deep":{"x":[[],{}]}}}"#);
    let begun = Instant::now();
    match what % 6 {
        0 => value(text),
        1 => {
            if let Ok(condition) = Condition::new(text) {
                let _ = condition.holds(event);
            }
        }
        2 => render(TemplateKind::Url, text, event),
        3 => render(TemplateKind::Header, text, event),
        4 => render(TemplateKind::JsonBody, text, event),
        _ => render(TemplateKind::TextBody, text, event),
    }
    assert!(begun.elapsed() < LONG, "it took {:?}", begun.elapsed());
});

fn render(kind: TemplateKind, text: &str, event: &[u8]) {
    let _ = check_template(kind, text, &["token"]);
    let Ok(event) = serde_json::from_slice::<serde_json::Value>(event) else { return };
    let mut templates = Templates::new();
    let Ok(template) = templates.add(kind, "it", text) else { return };
    let Ok(made) = templates.render(&template, &minijinja::Value::from(minijinja::value::Serde(event))) else { return };
    if kind == TemplateKind::JsonBody {
        serde_json::from_str::<serde::de::IgnoredAny>(&made).expect("a JSON body is JSON");
    }
}

/// A value stays one value, whatever it holds.
fn value(text: &str) {
    let rendered = |kind, template: &str| {
        let mut templates = Templates::new();
        let template = templates.add(kind, "it", template).expect("it is right");
        let event = serde_json::json!({ "data": text, "list": [text] });
        templates.render(&template, &minijinja::Value::from(minijinja::value::Serde(event))).expect("all is there")
    };
    let body = rendered(TemplateKind::JsonBody, r#"{"in": "<{{ data }}>", "is": {{ data }}, "list": {{ list }}}"#);
    let body: serde_json::Value = serde_json::from_str(&body).expect("a JSON body is JSON");
    assert_eq!(body, serde_json::json!({ "in": format!("<{text}>"), "is": text, "list": [text] }));
    let path = rendered(TemplateKind::Url, "/{{ data }}");
    assert!(path[1..].bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~%".contains(&byte)), "{path}");
}
