//! What `hookbus hook` asks for; docs/http.md lists it.
//!
//! A hook is named by its id or its name; digits are an id. Those of template files have a name only. Templates are bodies of their own, as
//! text, so that `curl --data-binary @FILE` is enough.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State as Shared};
use axum::http::StatusCode;
use hookbus_bridges::http::{Content, Endpoint, Endpoints, Kind, Problem};
use hookbus_broker::Timestamp;
use hookbus_hem::store::{ExecutionId, HookError, HookKey, HookRef, LogFilter, Store, StoreError, StoredHook};
use hookbus_hem::template::{self, Template};
use hookbus_hem::{Again, EventRef, Hook, Origin, Severity};
use serde::Deserialize;
use serde_json::{Value, json};

use super::log::letters_of;
use super::{Hooks, event, hook_of, key_of, view};
use crate::daemon::State;
use crate::daemon::routes::{blocking, to_the_end};

/// The most executions that one answer lists, unless fewer are asked for.
const MAX_LISTED: usize = 10_000;

/// What a template is sent as over TCP: no type of its own is known for it, and text is what forms may send, too.
const TEMPLATE: Content = Content::Types(&["application/octet-stream"]);

/// The routes. All need a write token on TCP: a hook is a command that is run here, and its log has what it printed.
pub(in crate::daemon) fn routes(state: &Arc<State>) -> Endpoints {
    use StatusCode as S;
    const NOT_NOW: &str = "hooks are starting or ending, or their store can't be used";
    const NO_HOOK: &str = "there is no such hook";
    const PARAMETER: &str = "a parameter is not known, or can't be read";
    const FILE: &str = "it is a template file, which can't be changed here";
    // What all that have a hook in their path agree in.
    let of_hook = |endpoint: Endpoint<Arc<State>>| {
        endpoint
            .part("hook", Kind::Text, "its id or its name; digits are an id")
            .problem(S::NOT_FOUND, NO_HOOK)
            .problem(S::SERVICE_UNAVAILABLE, NOT_NOW)
    };
    let rename_schema = json!({
        "type": "object",
        "required": ["name"],
        "additionalProperties": false,
        "properties": { "name": { "type": "string" } },
    });
    let test_schema = json!({
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "key": { "type": ["string", "null"], "description": "the newest event of the journal whose key begins like this" },
            "content": { "type": ["string", "null"], "description": "an event of OpenNebula, in base64" },
            "run": { "type": "boolean", "description": "whether it runs" },
        },
    });
    Endpoints::new([
        Endpoint::get("/v1/hooks", list, "Lists hooks")
            .answers(S::OK, "`hooks`")
            .problem(S::SERVICE_UNAVAILABLE, NOT_NOW),
        Endpoint::post("/v1/hooks", create, "Creates a hook from a template")
            .query("import", Kind::Flag, "whether attributes and states that nobody knows are taken over")
            .query("locked", Kind::Flag, "whether it is locked from the beginning")
            .takes(TEMPLATE)
            .answers(S::CREATED, "`id`, `name`, `warnings`")
            .problem(S::BAD_REQUEST, "the template makes no hook: a line for each mistake")
            .problem(S::CONFLICT, "the name is taken")
            .problem(S::SERVICE_UNAVAILABLE, NOT_NOW),
        of_hook(Endpoint::get("/v1/hooks/{hook}", show, "Shows a hook, and its executions"))
            .query("full", Kind::Flag, "whether executions have all that is known of them")
            .answers(S::OK, "the hook")
            .problem(S::BAD_REQUEST, PARAMETER),
        of_hook(Endpoint::put("/v1/hooks/{hook}", update, "Updates a hook"))
            .query("append", Kind::Flag, "whether the body is added to the template, or takes its place")
            .takes(TEMPLATE)
            .answers(S::OK, "`id`, `name`, `warnings`")
            .problem(S::BAD_REQUEST, "the template makes no hook: a line for each mistake")
            .problem(S::CONFLICT, "it is locked, or a template file"),
        of_hook(Endpoint::delete("/v1/hooks/{hook}", remove, "Deletes a hook and its log"))
            .answers(S::OK, "`id`, `name`")
            .problem(S::CONFLICT, "it is locked, or a template file"),
        of_hook(Endpoint::post("/v1/hooks/{hook}/rename", rename, "Renames a hook"))
            .takes_json(rename_schema)
            .answers(S::OK, "`id`, `name`")
            .problem(S::BAD_REQUEST, "it can't have this name")
            .problem(S::UNPROCESSABLE_ENTITY, "it is JSON, and something else")
            .problem(S::CONFLICT, "the name is taken, the hook is locked, or it is a template file"),
        of_hook(Endpoint::post("/v1/hooks/{hook}/lock", lock, "Locks a hook"))
            .answers(S::OK, "`id`, `name`, `locked`")
            .problem(S::CONFLICT, FILE),
        of_hook(Endpoint::post("/v1/hooks/{hook}/unlock", unlock, "Unlocks a hook"))
            .answers(S::OK, "`id`, `name`, `locked`")
            .problem(S::CONFLICT, FILE),
        of_hook(Endpoint::post("/v1/hooks/{hook}/test", test, "Shows what a hook would run, or runs it"))
            .takes_json(test_schema)
            .answers(S::OK, "what would run, and for which event")
            .problem(S::BAD_REQUEST, "it isn't JSON")
            .problem(S::UNPROCESSABLE_ENTITY, "it is JSON, and something else")
            .problem(S::CONFLICT, "the hook can't be run"),
        of_hook(Endpoint::get("/v1/hooks/{hook}/executions/{execution}", show_execution, "Shows an execution"))
            .part("execution", Kind::Number, "its number")
            .answers(S::OK, "the execution, with its output"),
        of_hook(Endpoint::post("/v1/hooks/{hook}/executions/{execution}/retry", retry, "Runs an execution again"))
            .part("execution", Kind::Number, "its number")
            .answers(S::OK, "`hook`, `execution`"),
        Endpoint::get("/v1/executions", log, "Lists executions of all hooks, oldest first, without outputs")
            .query("hook", Kind::Text, "only those of this hook")
            .query("success", Kind::Flag, "only those that succeeded, or that failed")
            .query("since_ms", Kind::Number, "not before this time, in milliseconds since 1970")
            .query("until_ms", Kind::Number, "not after")
            .query("limit", Kind::Number, "how many at the most, the newest; 10,000 if absent")
            .answers(S::OK, "`executions`")
            .problem(S::BAD_REQUEST, PARAMETER)
            .problem(S::NOT_FOUND, NO_HOOK)
            .problem(S::SERVICE_UNAVAILABLE, NOT_NOW),
    ])
    .body_limit_bytes(state.config.limits.http_body_bytes.bytes())
    .with_state(Arc::clone(state))
}

type Answer = Result<Json<Value>, Problem>;

async fn list(Shared(state): Shared<Arc<State>>) -> Answer {
    let hooks = hooks(&state)?;
    let stored = match &hooks.store {
        Ok(store) => store.hooks().await.map_err(store_failed)?,
        Err(_) => Vec::new(),
    };
    let mut all: Vec<Value> = stored.iter().map(view::stored).collect();
    let files = hooks.files();
    let taken: BTreeSet<String> = stored.into_iter().map(|stored| stored.name).collect();
    let of_file = move |hook: &Hook| {
        let mut view = view::of_file(hook);
        if taken.contains(&hook.name) {
            view["shadowed"] = true.into();
            view["runs"] = false.into();
        }
        view
    };
    all.extend(blocking(move || files.iter().map(of_file).collect::<Vec<_>>()).await?);
    Ok(Json(json!({ "hooks": all, "not_loaded": hooks.not_loaded(), "trouble": hooks.store.as_ref().err() })))
}

/// How a hook is created.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Creation {
    /// Whether attributes and states that nobody knows are taken over: oned has them.
    import: bool,
    /// Whether it is locked from the beginning.
    locked: bool,
}

async fn create(
    Shared(state): Shared<Arc<State>>,
    query: Result<Query<Creation>, axum::extract::rejection::QueryRejection>,
    body: Bytes,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let Query(Creation { import, locked }) = query.map_err(|e| Problem::bad_request(e.to_string()))?;
    let hooks = hooks(&state)?;
    hooks.store()?;
    let text = template_text(body)?;
    let Checked { hook, warnings } = check(&text, if import { Check::Imported } else { Check::New })?;
    let created = to_the_end(async move {
        let _changing = hooks.changing.lock().await;
        hooks.check_name(&hook.name)?;
        let store = hooks.store()?;
        let mut stored = store.create_hook(hook.name.as_str(), text).await.map_err(refused)?;
        hooks.put(stored.id.get(), hook_of(&stored).0);
        if locked {
            stored = store.lock_hook(stored.id).await.map_err(refused)?;
        }
        Ok(json!({ "id": stored.id, "name": stored.name, "warnings": hooks.with_obstacle(&hook, warnings) }))
    });
    Ok((StatusCode::CREATED, Json(created.await?)))
}

/// How much of a hook is shown.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Shown {
    /// Whether its executions have all that is known of them.
    full: bool,
}

async fn show(
    Shared(state): Shared<Arc<State>>,
    Path(name): Path<String>,
    query: Result<Query<Shown>, axum::extract::rejection::QueryRejection>,
) -> Answer {
    let Query(Shown { full }) = query.map_err(|e| Problem::bad_request(e.to_string()))?;
    let hooks = hooks(&state)?;
    let named = hooks.find(&name).await?;
    let mut view = match &named {
        Named::Stored(stored) => view::stored(stored),
        Named::File(hook) => {
            let hook = hook.clone();
            blocking(move || view::of_file(&hook)).await?
        }
    };
    let key = named.key();
    let executions: Vec<Value> = match &hooks.store {
        Err(_) => Vec::new(),
        Ok(store) if full => {
            let all = store.executions(key).await.map_err(store_failed)?;
            all.iter().rev().map(|stored| view::execution(stored.id, &stored.execution)).collect()
        }
        Ok(store) => {
            let filter = LogFilter { hooks: vec![key], ..LogFilter::default() };
            let mut entries = store.log(filter).await.map_err(store_failed)?;
            entries.sort_by_key(|entry| entry.id);
            entries.iter().map(view::entry).collect()
        }
    };
    view["executions"] = executions.into();
    Ok(Json(view))
}

/// How a hook is updated.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Update {
    /// Whether the body is added to the template, or takes its place.
    append: bool,
}

async fn update(
    Shared(state): Shared<Arc<State>>,
    Path(name): Path<String>,
    query: Result<Query<Update>, axum::extract::rejection::QueryRejection>,
    body: Bytes,
) -> Answer {
    let Query(Update { append }) = query.map_err(|e| Problem::bad_request(e.to_string()))?;
    let hooks = hooks(&state)?;
    hooks.store()?;
    let text = template_text(body)?;
    to_the_end(async move {
        let _changing = hooks.changing.lock().await;
        let old = hooks.stored(&name).await?;
        let text = Updated::new(&old, &text, append)?;
        let Checked { hook, mut warnings } = check(&text.merged, Check::Changed(&old.template)).map_err(|problem| {
            // Places are those of the whole, which nobody has seen.
            let told = |line| format!("with this added, the template is wrong: {line}");
            let lines: Vec<_> = problem.detail().lines().map(told).collect();
            if append { Problem::bad_request(lines.join("\n")) } else { problem }
        })?;
        if let Some(given) = text.name.filter(|given| *given != old.name) {
            warnings.push(format!("NAME = {given} has no effect, the hook is called {}; rename it", old.name));
        }
        let text = text.merged;
        let stored = hooks.store()?.update_hook(old.id, text).await.map_err(refused)?;
        hooks.put(stored.id.get(), hook_of(&stored).0);
        Ok(json!({ "id": stored.id, "name": stored.name, "warnings": hooks.with_obstacle(&hook, warnings) }))
    })
    .await
    .map(Json)
}

/// The new template of a hook. NAME and TYPE need not be in what is given: they stay what they are.
struct Updated {
    merged: String,
    /// The NAME that was given.
    name: Option<String>,
}

impl Updated {
    fn new(old: &StoredHook, text: &str, append: bool) -> Result<Self, Problem> {
        let parse = |text: &str| Template::parse(text).map_err(|e| Problem::bad_request(e.to_string()));
        let given = parse(text)?;
        let before = parse(&old.template)?;
        let name = given.get("NAME").and_then(|name| match &name.value {
            template::Value::Text(name) => Some(name.trim().to_owned()),
            template::Value::Vector(_) => None,
        });
        Ok(Updated { merged: Self::merged(old, &before, &given, text, append), name })
    }

    fn merged(old: &StoredHook, before: &Template, given: &Template, text: &str, append: bool) -> String {
        let name = Template::from_pairs([("NAME", old.name.as_str())]);
        if append {
            // The text stays as it is where that is possible: there may be comments in it.
            let adds_only = given.attributes().iter().all(|attribute| before.get(&attribute.name).is_none());
            if adds_only {
                return format!("{}\n{text}", old.template.trim_end());
            }
            return before.updated_by(given).updated_by(&name).to_string();
        }
        let mut head = String::new();
        if given.get("NAME").is_none() {
            head.push_str(&name.to_string());
        }
        if let (None, Some(kind)) = (given.get("TYPE"), before.get("TYPE")) {
            head.push_str(&Template::from_values([("TYPE", kind.value.clone())]).to_string());
        }
        head + text
    }
}

async fn remove(Shared(state): Shared<Arc<State>>, Path(name): Path<String>) -> Answer {
    let hooks = hooks(&state)?;
    to_the_end(async move {
        let _changing = hooks.changing.lock().await;
        let stored = hooks.stored(&name).await?;
        let deleted = hooks.store()?.delete_hook(stored.id).await.map_err(refused)?;
        hooks.put(deleted.id.get(), None);
        Ok(json!({ "id": deleted.id, "name": deleted.name }))
    })
    .await
    .map(Json)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rename {
    name: String,
}

async fn rename(
    Shared(state): Shared<Arc<State>>,
    Path(name): Path<String>,
    body: Result<Json<Rename>, axum::extract::rejection::JsonRejection>,
) -> Answer {
    let Json(Rename { name: new }) = body.map_err(|e| Problem::new(e.status(), e.body_text()))?;
    let hooks = hooks(&state)?;
    to_the_end(async move {
        let _changing = hooks.changing.lock().await;
        let stored = hooks.stored(&name).await?;
        hooks.check_name(new.trim())?;
        let old = stored.name;
        let stored = hooks.store()?.rename_hook(stored.id, new).await.map_err(refused)?;
        hooks.put(stored.id.get(), hook_of(&stored).0);
        let (from, to) = (letters_of(&old), letters_of(&stored.name));
        let letters = Arc::clone(&hooks.dead_letters);
        if let Err(e) = blocking(move || letters.rename(&from, &to)).await? {
            tracing::error!("hook {}: its dead letters stay under the name {old}: {e}", stored.id);
        }
        Ok(json!({ "id": stored.id, "name": stored.name }))
    })
    .await
    .map(Json)
}

async fn lock(state: Shared<Arc<State>>, Path(name): Path<String>) -> Answer {
    set_locked(&state, &name, true).await
}

async fn unlock(state: Shared<Arc<State>>, Path(name): Path<String>) -> Answer {
    set_locked(&state, &name, false).await
}

async fn set_locked(state: &State, name: &str, locked: bool) -> Answer {
    let hooks = hooks(state)?;
    let store = hooks.store()?;
    let stored = hooks.stored(name).await?;
    let stored = match locked {
        true => store.lock_hook(stored.id).await,
        false => store.unlock_hook(stored.id).await,
    };
    let stored = stored.map_err(refused)?;
    Ok(Json(json!({ "id": stored.id, "name": stored.name, "locked": stored.locked })))
}

async fn show_execution(Shared(state): Shared<Arc<State>>, Path((name, execution)): Path<(String, String)>) -> Answer {
    let hooks = hooks(&state)?;
    let named = hooks.find(&name).await?;
    let (id, execution) = hooks.execution(&named, &execution).await?;
    Ok(Json(view::execution(id, &execution)))
}

async fn retry(Shared(state): Shared<Arc<State>>, Path((name, execution)): Path<(String, String)>) -> Answer {
    let hooks = hooks(&state)?;
    let named = hooks.find(&name).await?;
    let (id, execution) = hooks.execution(&named, &execution).await?;
    let event = execution.event.unwrap_or_else(|| EventRef {
        id: hookbus_broker::EventId { log: state.broker.log_id(), offset: state.broker.last_offset() },
        key: String::new(),
        time: execution.started,
    });
    let again = Again {
        hook: named.name().to_owned(),
        arguments: execution.arguments,
        host: execution.host,
        event,
        environment: execution.environment,
        retry_of: Some(id.get()),
    };
    hooks.executor.run_again(again).map_err(|e| Problem::unavailable(e.to_string(), 5))?;
    Ok(Json(json!({ "hook": named.name(), "execution": id })))
}

/// What event a hook is shown, and whether it runs.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Test {
    /// The newest event of the journal with a key that begins like this.
    key: Option<String>,
    /// An event of OpenNebula, in base64.
    content: Option<String>,
    run: bool,
}

async fn test(
    Shared(state): Shared<Arc<State>>,
    Path(name): Path<String>,
    body: Result<Json<Test>, axum::extract::rejection::JsonRejection>,
) -> Answer {
    let Json(Test { key, content, run }) = body.map_err(|e| Problem::new(e.status(), e.body_text()))?;
    let hooks = hooks(&state)?;
    let hook = hooks.find(&name).await?.hook()?;
    let (broker, wanted) = (state.broker.clone(), hook.clone());
    let found = blocking(move || match (content, key) {
        (Some(content), _) => event::of_content(content.trim().to_owned().into()),
        (None, Some(key)) => event::with_key(&broker, &key),
        (None, None) => event::for_hook(&broker, &wanted),
    });
    let (event, source) = found.await?.map_err(|what| Problem::new(StatusCode::NOT_FOUND, what))?;
    let preview = hooks.executor.preview(&hook, &event);
    let mut answer = serde_json::to_value(&preview).unwrap_or_default();
    answer["environment"] =
        preview.environment.into_iter().map(|(name, value)| (name.into_owned(), Value::from(value))).collect();
    answer["event"] = event.id().to_string().into();
    answer["source"] = source.name().into();
    answer["trigger"] = hook.trigger.to_string().into();
    if run {
        hooks.executor.run_for(&hook, &event).map_err(|e| Problem::unavailable(e.to_string(), 5))?;
    }
    Ok(Json(answer))
}

/// Which executions are listed.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Log {
    hook: Option<String>,
    success: Option<bool>,
    since_ms: Option<u64>,
    until_ms: Option<u64>,
    limit: Option<usize>,
}

async fn log(
    Shared(state): Shared<Arc<State>>,
    query: Result<Query<Log>, axum::extract::rejection::QueryRejection>,
) -> Answer {
    let Query(Log { hook, success, since_ms, until_ms, limit }) =
        query.map_err(|e| Problem::bad_request(e.to_string()))?;
    let hooks = hooks(&state)?;
    let store = hooks.store()?;
    let mut filter = LogFilter {
        success,
        since: since_ms.map(Timestamp::from_millis),
        until: until_ms.map(Timestamp::from_millis),
        limit: Some(limit.unwrap_or(MAX_LISTED).min(MAX_LISTED)),
        ..LogFilter::default()
    };
    if let Some(name) = hook {
        filter.hooks.push(hooks.find(&name).await?.key());
    }
    let entries = store.log(filter).await.map_err(store_failed)?;
    Ok(Json(json!({ "executions": entries.iter().rev().map(view::entry).collect::<Vec<_>>() })))
}

/// A hook that somebody has named.
enum Named {
    Stored(StoredHook),
    File(Hook),
}

impl Named {
    fn name(&self) -> &str {
        match self {
            Named::Stored(stored) => &stored.name,
            Named::File(hook) => &hook.name,
        }
    }

    fn key(&self) -> HookKey {
        match self {
            Named::Stored(stored) => stored.id.into(),
            Named::File(hook) => key_of(hook).unwrap_or_else(|| HookKey::File(hook.name.clone())),
        }
    }

    /// What it means.
    fn hook(self) -> Result<Hook, Problem> {
        match self {
            Named::File(hook) => Ok(hook),
            Named::Stored(stored) => {
                let (hook, problems) = hook_of(&stored);
                hook.ok_or_else(|| {
                    let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
                    let what = format!("hook {} can't be run: {}; update it", stored.id, problems.join("; "));
                    Problem::new(StatusCode::CONFLICT, what)
                })
            }
        }
    }
}

impl Hooks {
    fn files(&self) -> Vec<Hook> {
        self.sources.lock().files.clone()
    }

    fn file(&self, name: &str) -> Option<Hook> {
        self.sources.lock().files.iter().find(|hook| hook.name == name).cloned()
    }

    fn store(&self) -> Result<&Store, Problem> {
        self.store.as_ref().map_err(|why| Problem::unavailable(format!("there is no store of hooks: {why}"), 60))
    }

    async fn find(&self, name: &str) -> Result<Named, Problem> {
        let wanted = HookRef::parse(name);
        if let Ok(store) = &self.store
            && let Some(stored) = store.hook(wanted.clone()).await.map_err(store_failed)?
        {
            return Ok(Named::Stored(stored));
        }
        let file = self.file(name);
        file.map(Named::File).ok_or_else(|| refused(HookError::NoSuchHook(wanted)))
    }

    /// A hook that can be changed.
    async fn stored(&self, name: &str) -> Result<StoredHook, Problem> {
        match self.find(name).await? {
            Named::Stored(stored) => Ok(stored),
            Named::File(hook) => {
                let path = hook.origin.path().unwrap_or(std::path::Path::new("a file")).display().to_string();
                let what = format!("{name} is a template file; edit {path} and reload the daemon (SIGHUP)");
                Err(Problem::new(StatusCode::CONFLICT, what))
            }
        }
    }

    async fn execution(
        &self,
        named: &Named,
        id: &str,
    ) -> Result<(ExecutionId, hookbus_hem::store::Execution), Problem> {
        let none = || Problem::new(StatusCode::NOT_FOUND, format!("Cannot find execution record {id}"));
        let id = ExecutionId::new(id.parse().map_err(|_| none())?);
        let found = self.store()?.execution(named.key(), id).await.map_err(store_failed)?;
        found.map(|stored| (stored.id, stored.execution)).ok_or_else(none)
    }

    /// That a hook of the store can have this name: commands tell it from ids, and no template file has it.
    fn check_name(&self, name: &str) -> Result<(), Problem> {
        if !name.is_empty() && name.chars().all(|c| c.is_ascii_digit() || matches!(c, '.' | ',')) {
            let what = format!("the name {name:?} would be read as ids; choose one that has a letter in it");
            return Err(Problem::bad_request(what));
        }
        if name.chars().any(char::is_control) {
            return Err(Problem::bad_request(format!("the name {name:?} has control characters; choose one without")));
        }
        let Some(file) = self.file(name) else { return Ok(()) };
        let path = file.origin.path().unwrap_or(std::path::Path::new("a file")).display();
        Err(Problem::new(StatusCode::CONFLICT, format!("the name {name:?} is taken by {path}; choose another one")))
    }

    /// The warnings, with the one that the command can't be run yet.
    fn with_obstacle(&self, hook: &Hook, mut warnings: Vec<String>) -> Vec<String> {
        warnings.extend(
            self.executor.obstacle(hook).map(|why| format!("COMMAND: {why}; the hook fails until that is mended")),
        );
        warnings
    }
}

/// A template that makes a hook.
struct Checked {
    hook: Hook,
    warnings: Vec<String>,
}

/// How strictly a template is looked at.
#[derive(Clone, Copy, Debug)]
enum Check<'a> {
    New,
    /// It was this text before.
    Changed(&'a str),
    /// Another program has taken it.
    Imported,
}

/// Whether a template makes a hook.
fn check(text: &str, how: Check<'_>) -> Result<Checked, Problem> {
    let template = Template::parse(text).map_err(|e| Problem::bad_request(e.to_string()))?;
    let (hook, problems) = match how {
        Check::New => Hook::check(&template, None, &Origin::Program),
        Check::Changed(before) => Hook::check(&template, Template::parse(before).ok().as_ref(), &Origin::Program),
        Check::Imported => Hook::import(&template, &Origin::Program),
    };
    let told = |severity| {
        problems.iter().filter(move |problem| problem.severity == severity).map(ToString::to_string).collect::<Vec<_>>()
    };
    let warnings = told(Severity::Warning);
    match hook {
        Some(hook) => Ok(Checked { hook, warnings }),
        // A line for each, so that a client can say in which file.
        None => Err(Problem::bad_request(told(Severity::Error).join("\n"))),
    }
}

fn template_text(body: Bytes) -> Result<String, Problem> {
    String::from_utf8(body.into()).map_err(|e| {
        Problem::bad_request(format!("the template is no text: byte {} is no UTF-8", e.utf8_error().valid_up_to()))
    })
}

fn hooks(state: &State) -> Result<Arc<Hooks>, Problem> {
    let hooks = state.parts.lock().hooks.clone();
    hooks.ok_or_else(|| Problem::unavailable("hooks are starting or ending, or can't be run; see the log", 1))
}

#[expect(clippy::needless_pass_by_value, reason = "what map_err hands over")]
fn refused(error: HookError) -> Problem {
    let status = match &error {
        HookError::NoSuchHook(_) => StatusCode::NOT_FOUND,
        HookError::NameTaken { .. } | HookError::Locked { .. } => StatusCode::CONFLICT,
        HookError::Store(_) => return Problem::unavailable(error.to_string(), 5),
        _ => StatusCode::BAD_REQUEST,
    };
    Problem::new(status, error.to_string())
}

#[expect(clippy::needless_pass_by_value, reason = "what map_err hands over")]
fn store_failed(error: StoreError) -> Problem {
    Problem::unavailable(error.to_string(), 5)
}
