//! `hookbus hook import`: the hooks of an oned, or of another hookbus, from the document in which it tells them.

use std::path::Path;

use hookbus_bridges::http::Client;
use hookbus_hem::Severity;
use hookbus_hem::oned::{Pool, PoolHook};
use hookbus_hem::template::{Template, Value};

use super::{print, read, shown, tell_warnings, warn};
use crate::client::{Failure, understood};

/// What TYPE can be that only hookbus knows.
const OUR_TYPES: [&str; 2] = ["event", "ganeti"];

/// Creates the hooks of a list, in the order of their ids. What can't be taken over is told, and costs no other.
pub(super) async fn import(client: &Client, file: &Path) -> Result<(), Failure> {
    let bytes = read(file)?;
    let pool = pool(&bytes).map_err(|e| {
        let what =
            "what `onehook list -x`, `onehook show -x`, `hookbus hook list -x` or one.hookpool.info gives is expected";
        Failure::Work(format!("{}: {e}; {what}", shown(file)))
    })?;
    let mut left_out = pool.problems.iter().filter(|problem| problem.severity == Severity::Error).count();
    for problem in &pool.problems {
        warn(&problem.to_string());
    }
    let total = pool.hooks.len() + left_out;
    for hook in &pool.hooks {
        let taken = match template(hook) {
            Ok(template) => {
                let path = format!("/v1/hooks?import=true&locked={}", hook.locked);
                client.post(&path, &[], template.into()).await.map_err(|e| e.to_string())
            }
            Err(why) => Err(why),
        };
        match taken {
            Ok(answer) => {
                let answer = understood(&answer)?;
                tell_warnings(Path::new(&hook.name), &answer);
                print(format!("ID: {} (was {}: {})\n", answer["id"], hook.id, hook.name).as_bytes())?;
            }
            Err(why) => {
                left_out += 1;
                warn(&format!("hook {} ({}) is left out: {why}", hook.id, hook.name));
            }
        }
    }
    match left_out {
        0 => Ok(()),
        left_out => Err(Failure::Work(format!("{left_out} of {total} hooks are left out"))),
    }
}

fn pool(bytes: &[u8]) -> Result<Pool, hookbus_hem::oned::PoolError> {
    let xml = without_declaration(bytes);
    if xml.starts_with(b"<HOOK>") {
        let hook = PoolHook::parse(xml)?;
        let mut pool = Pool::default();
        pool.hooks.push(hook);
        return Ok(pool);
    }
    Pool::parse(xml)
}

/// The document without `<?xml ...?>` before it.
fn without_declaration(bytes: &[u8]) -> &[u8] {
    let xml = bytes.trim_ascii();
    let end = xml.starts_with(b"<?xml").then(|| xml.windows(2).position(|two| two == b"?>")).flatten();
    end.map_or(xml, |end| xml[end + 2..].trim_ascii())
}

/// A template that means to hookbus what oned's means to OpenNebula.
fn template(hook: &PoolHook) -> Result<String, String> {
    // hookbus' own lists have types that no oned has; the daemon looks at them.
    let of_ours = hook.template.get("TYPE").is_some_and(|kind| match &kind.value {
        Value::Text(kind) => OUR_TYPES.iter().any(|ours| kind.trim().eq_ignore_ascii_case(ours)),
        Value::Vector(_) => false,
    });
    if hook.hook.is_none() && !of_ours {
        let problems: Vec<_> = hook.problems.iter().map(ToString::to_string).collect();
        return Err(problems.join("; "));
    }
    let text = hook.as_ours.to_string();
    let values = |template: &Template| {
        template
            .attributes()
            .iter()
            .map(|attribute| (attribute.name.clone(), attribute.value.clone()))
            .collect::<Vec<_>>()
    };
    match Template::parse(&text) {
        Ok(read) if values(&read) == values(&hook.as_ours) => Ok(text),
        _ => {
            Err("its template can't be written as text: a value ends with a backslash, or a name has odd characters"
                .into())
        }
    }
}
