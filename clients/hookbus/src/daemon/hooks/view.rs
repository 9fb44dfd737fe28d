//! Hooks and executions as JSON objects, for the command line and for scripts. docs/http.md describes them.

use hookbus_bridges::cloudevents::rfc3339;
use hookbus_hem::store::{Execution, ExecutionId, HookKey, LogEntry, StoredHook};
use hookbus_hem::template::{Template, Value as Attribute};
use hookbus_hem::{Ending, Hook, Output, Problem, Severity};
use serde_json::{Map, Value, json};

/// A hook of the store.
pub(super) fn stored(stored: &StoredHook) -> Value {
    let (hook, problems) = super::hook_of(stored);
    let template = Template::parse(&stored.template).ok();
    let mut view = hook_view(hook.as_ref(), template.as_ref(), &stored.template, &problems);
    view["id"] = stored.id.get().into();
    view["name"] = stored.name.as_str().into();
    view["origin"] = "store".into();
    view["locked"] = stored.locked.into();
    view["created"] = rfc3339(stored.created).into();
    view["changed"] = rfc3339(stored.changed).into();
    view
}

/// A hook of a template file, with what is in the file now.
pub(super) fn of_file(hook: &Hook) -> Value {
    let path = hook.origin.path();
    let text = path.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
    let template = Template::parse(&text).ok();
    let mut view = hook_view(Some(hook), template.as_ref(), &text, &[]);
    view["name"] = hook.name.as_str().into();
    view["origin"] = "file".into();
    view["file"] = path.map(|path| path.to_string_lossy()).into();
    view
}

fn hook_view(hook: Option<&Hook>, template: Option<&Template>, text: &str, problems: &[Problem]) -> Value {
    let kind = hook.map(|hook| hook.trigger.kind()).or_else(|| match &template?.get("TYPE")?.value {
        Attribute::Text(kind) => Some(kind.trim()),
        Attribute::Vector(_) => None,
    });
    let listed = match (hook, template) {
        (Some(hook), Some(template)) => hook.listed_attributes(template),
        (None, Some(template)) => {
            let all = template.attributes().iter();
            all.map(|attribute| (attribute.name.clone(), attribute.value.clone())).collect()
        }
        (_, None) => Vec::new(),
    };
    let errors = problems.iter().filter(|problem| problem.severity == Severity::Error);
    json!({
        "id": null,
        "type": kind,
        "trigger": hook.map(|hook| hook.trigger.to_string()),
        "locked": false,
        "runs": hook.is_some(),
        "problems": errors.map(ToString::to_string).collect::<Vec<_>>(),
        "template": text,
        "attributes": listed.into_iter().map(attribute).collect::<Map<_, _>>(),
    })
}

fn attribute((name, value): (String, Attribute)) -> (String, Value) {
    let value = match value {
        Attribute::Text(text) => Value::from(text),
        Attribute::Vector(pairs) => pairs.into_iter().map(|(name, text)| (name, Value::from(text))).collect(),
    };
    (name, value)
}

/// A line of the log.
pub(super) fn entry(entry: &LogEntry) -> Value {
    let mut view = json!({
        "id": entry.id,
        "hook": entry.hook_name,
        "time": rfc3339(entry.started),
        "duration_ms": u64::try_from(entry.duration.as_millis()).unwrap_or(u64::MAX),
        "host": entry.host,
        "retry_of": entry.retry_of,
    });
    add_key(&mut view, &entry.hook);
    add_ending(&mut view, entry.ending);
    view
}

/// An execution, with all that is known of it.
pub(super) fn execution(id: ExecutionId, execution: &Execution) -> Value {
    let mut view = json!({
        "id": id,
        "hook": execution.hook_name,
        "time": rfc3339(execution.started),
        "duration_ms": u64::try_from(execution.duration.as_millis()).unwrap_or(u64::MAX),
        "host": execution.host,
        "retry_of": execution.retry_of,
        "command": execution.command,
        "arguments": execution.arguments,
        "environment": execution.environment.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
        "left_behind": execution.left_behind,
        "event": execution.event.as_ref().map(|event| event.id.to_string()),
        "key": execution.event.as_ref().map(|event| event.key.as_str()),
    });
    add_key(&mut view, &execution.hook);
    add_ending(&mut view, execution.ending);
    add_output(&mut view, "stdout", &execution.stdout);
    add_output(&mut view, "stderr", &execution.stderr);
    view
}

fn add_key(view: &mut Value, key: &HookKey) {
    view["hook_id"] = match key {
        HookKey::Store(id) => id.get().into(),
        HookKey::Oned(_) | HookKey::File(_) => Value::Null,
    };
}

fn add_ending(view: &mut Value, ending: Ending) {
    let (name, signal) = match ending {
        Ending::Exited(_) => ("exited", None),
        Ending::Signalled(signal) => ("signalled", Some(signal)),
        Ending::TimedOut => ("timed out", None),
        Ending::Interrupted => ("interrupted", None),
        Ending::NotStarted => ("not started", None),
    };
    view["code"] = ending.code().into();
    view["ending"] = name.into();
    view["signal"] = signal.into();
}

/// The text, and where that isn't exact, the bytes.
fn add_output(view: &mut Value, name: &str, output: &Output) {
    view[name] = output.text().into();
    view[format!("{name}_cut_bytes")] = output.cut_bytes.into();
    if !output.is_utf8() {
        view[format!("{name}_base64")] = crate::base64(&output.bytes()).into();
    }
}
