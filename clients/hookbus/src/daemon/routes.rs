//! The daemon's own routes: dead letters and cursors, for the command line and for scripts.
//!
//! | request | does |
//! | --- | --- |
//! | `GET /v1/dlq?bridge=NAME&limit=N` | lists dead letters, oldest first |
//! | `GET /v1/dlq/N` | shows one, with its event |
//! | `POST /v1/dlq/retry`, `POST /v1/dlq/purge` | sends letters again, throws them away: `{"numbers": [..]}`, `{"bridge": NAME}` or `{"all": true}` |
//! | `GET /v1/cursors` | lists cursors |
//! | `DELETE /v1/cursors/NAME` | deletes one that is not in use |
//!
//! Dead letters are on a disk, so they are asked for in a thread that may wait.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State as Shared};
use axum::http::StatusCode;
use hookbus_bridges::cloudevents::encode_key;
use hookbus_bridges::delivery::{DeadLetter, DeadLetters, DeadLettersError, Which};
use hookbus_bridges::http::{Endpoint, Endpoints, Kind, Problem};
use hookbus_broker::JournalError;
use serde::Deserialize;
use serde_json::{Value, json};

use super::State;
use super::hooks::HOOK_LETTERS;
use super::journal::cursors;

/// The most letters that one answer lists.
const MAX_LISTED: usize = 10_000;

/// The routes. All need a write token on TCP: letters have what events have, and can be sent again.
pub(super) fn routes(state: &Arc<State>) -> Endpoints {
    use StatusCode as S;
    const NOT_NOW: &str = "the bridges are starting or ending, or the disk doesn't answer";
    const WHOSE: &str = "the bridge that they belong to, or `hook NAME`";
    let which = || {
        json!({
            "type": "object",
            "description": "Which letters: one of these",
            "minProperties": 1,
            "maxProperties": 1,
            "additionalProperties": false,
            "properties": {
                "numbers": { "type": "array", "items": { "type": "integer", "minimum": 0 } },
                "bridge": { "type": "string", "description": WHOSE },
                "all": { "const": true },
            },
        })
    };
    Endpoints::new([
        Endpoint::get("/v1/dlq", list, "Lists dead letters, oldest first")
            .query("bridge", Kind::Text, WHOSE)
            .query("limit", Kind::Number, "how many at the most; 100 if absent")
            .answers(S::OK, "`letters`, and how many there are (`total`)")
            .problem(S::BAD_REQUEST, "a parameter is not known, or can't be read")
            .problem(S::SERVICE_UNAVAILABLE, NOT_NOW),
        Endpoint::get("/v1/dlq/{number}", show, "Shows a dead letter")
            .part("number", Kind::Number, "the letter's number")
            .answers(S::OK, "the letter, with its event")
            .problem(S::NOT_FOUND, "there is none with this number")
            .problem(S::SERVICE_UNAVAILABLE, NOT_NOW),
        Endpoint::post("/v1/dlq/retry", retry, "Sends dead letters again")
            .takes_json(which())
            .answers(S::OK, "how many (`retried`), and what can't be (`under_way`, `without_bridge`, `missing`)")
            .problem(S::BAD_REQUEST, "it isn't said which letters, or not in JSON")
            .problem(S::UNPROCESSABLE_ENTITY, "it is JSON, and something else")
            .problem(S::SERVICE_UNAVAILABLE, NOT_NOW),
        Endpoint::post("/v1/dlq/purge", purge, "Throws dead letters away")
            .takes_json(which())
            .answers(S::OK, "how many (`purged`), and the numbers that nobody has (`missing`)")
            .problem(S::BAD_REQUEST, "it isn't said which letters, or not in JSON")
            .problem(S::UNPROCESSABLE_ENTITY, "it is JSON, and something else")
            .problem(S::SERVICE_UNAVAILABLE, NOT_NOW),
        Endpoint::get("/v1/cursors", list_cursors, "Lists the cursors of the journal").answers(S::OK, "`cursors`"),
        Endpoint::delete("/v1/cursors/{*name}", delete_cursor, "Deletes a cursor that is not in use")
            .part("name", Kind::Text, "the cursor's name, with its slashes as they are: bridge/NAME")
            .answers(S::OK, "its name (`deleted`)")
            .problem(S::NOT_FOUND, "there is none with this name, or no journal")
            .problem(S::CONFLICT, "it is in use")
            .problem(S::SERVICE_UNAVAILABLE, "the disk doesn't take it"),
    ])
    .with_state(Arc::clone(state))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Listed {
    bridge: Option<String>,
    #[serde(default = "some")]
    limit: usize,
}

fn some() -> usize {
    100
}

/// Which letters are meant.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Asked {
    numbers: Option<Vec<u64>>,
    bridge: Option<String>,
    all: bool,
}

impl Asked {
    fn which(self) -> Result<Which, Problem> {
        match self {
            Asked { numbers: Some(numbers), bridge: None, all: false } => Ok(Which::Numbers(numbers)),
            Asked { numbers: None, bridge: Some(bridge), all: false } => Ok(Which::Bridge(bridge.into())),
            Asked { numbers: None, bridge: None, all: true } => Ok(Which::All),
            _ => Err(Problem::bad_request(
                "which letters? Send one of {\"numbers\": [1, 2]}, {\"bridge\": \"NAME\"} and {\"all\": true}",
            )),
        }
    }
}

async fn list(
    Shared(state): Shared<Arc<State>>,
    query: Result<Query<Listed>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Value>, Problem> {
    let Query(Listed { bridge, limit }) = query.map_err(|e| Problem::bad_request(e.to_string()))?;
    let letters = dead_letters(&state)?;
    let is_known = |name: &String| has(&state, name);
    let unknown = bridge.clone().filter(|name| letters.count(Some(name)) == 0 && !is_known(name));
    asked(move || {
        let all = letters.list(bridge.as_deref(), limit.min(MAX_LISTED))?;
        let all: Vec<Value> = all.iter().map(head).collect();
        Ok(json!({
            "total": letters.count(bridge.as_deref()),
            "dropped": letters.dropped(),
            "notice": letters.notice().as_deref(),
            "unknown_bridge": unknown,
            "letters": all,
        }))
    })
    .await
}

async fn show(Shared(state): Shared<Arc<State>>, Path(number): Path<String>) -> Result<Json<Value>, Problem> {
    let number: u64 = number.parse().map_err(|_| {
        Problem::new(StatusCode::NOT_FOUND, format!("there is no {number} here; dead letters go by numbers"))
    })?;
    let letters = dead_letters(&state)?;
    let found = blocking(move || letters.show(number)).await?.map_err(failed)?;
    let Some((letter, event)) = found else {
        return Err(Problem::new(StatusCode::NOT_FOUND, format!("there is no dead letter {number}")));
    };
    let mut shown = head(&letter);
    shown["keys"] = letter.keys.iter().map(|key| Value::from(encode_key(key).into_owned())).collect();
    shown["event"] = serde_json::from_slice(&state.encoder.structured(&event, None)).unwrap_or_default();
    if letter.bridge.starts_with(HOOK_LETTERS)
        && let Ok(data) = serde_json::from_slice::<Value>(event.payload())
    {
        // What is kept of a hook's failure is the result, as JSON, under the key of the event.
        shown["event"]["datacontenttype"] = "application/json".into();
        shown["event"]["data"] = data;
    }
    Ok(Json(shown))
}

async fn retry(Shared(state): Shared<Arc<State>>, body: Body) -> Result<Json<Value>, Problem> {
    let which = read(body)?.which()?;
    let (which, meant) = meant(&state, which).await?;
    let missing = missing(&which, &meant);
    let under_way = meant.iter().filter(|(_, _, retrying)| *retrying).count();
    let names: BTreeSet<&str> = meant.iter().map(|(_, bridge, _)| &**bridge).collect();
    let without_bridge: Vec<&str> = names.into_iter().filter(|name| !has(&state, name)).collect();
    // The letters of bridges are not read here: bridges fetch what they send.
    let (of_bridges, hooks) = {
        let parts = state.parts.lock();
        (parts.bridges.as_ref().ok_or_else(not_yet)?.retry(&which) as u64, parts.hooks.clone())
    };
    let of_hooks = meant.iter().filter_map(|(number, name, _)| {
        let hook = name.strip_prefix(HOOK_LETTERS)?;
        hooks.as_ref().is_some_and(|hooks| hooks.has(hook)).then(|| (*number, hook.to_owned()))
    });
    let of_hooks: Vec<_> = of_hooks.collect();
    let of_hooks = match &hooks {
        Some(hooks) => {
            let (hooks, letters) = (Arc::clone(hooks), dead_letters(&state)?);
            to_the_end(async move { hooks.retry_letters(&letters, of_hooks).await.map_err(failed) }).await?
        }
        None => 0,
    };
    Ok(Json(json!({
        "retried": of_bridges + of_hooks,
        "under_way": under_way,
        "without_bridge": without_bridge,
        "missing": missing,
    })))
}

/// Whether whoever left letters under this name is there: a bridge, or a hook.
fn has(state: &State, name: &str) -> bool {
    let parts = state.parts.lock();
    match name.strip_prefix(HOOK_LETTERS) {
        Some(hook) => parts.hooks.as_ref().is_some_and(|hooks| hooks.has(hook)),
        None => parts.bridges.as_ref().is_some_and(|bridges| bridges.has(name)),
    }
}

async fn purge(Shared(state): Shared<Arc<State>>, body: Body) -> Result<Json<Value>, Problem> {
    let which = read(body)?.which()?;
    let (which, meant) = meant(&state, which).await?;
    let letters = dead_letters(&state)?;
    asked(move || Ok(json!({ "purged": letters.purge(&which)?, "missing": missing(&which, &meant) }))).await
}

/// A letter that is meant: its number, its bridge, and whether it is being sent again now.
type Meant = (u64, Arc<str>, bool);

async fn meant(state: &State, which: Which) -> Result<(Which, Vec<Meant>), Problem> {
    let letters = dead_letters(state)?;
    blocking(move || letters.meant(&which).map(|meant| (which, meant))).await?.map_err(failed)
}

/// The numbers that were asked for and are nobody's.
fn missing(which: &Which, meant: &[Meant]) -> Vec<u64> {
    let Which::Numbers(numbers) = which else { return Vec::new() };
    let there = |asked: &u64| meant.iter().any(|(number, _, _)| number == asked);
    numbers.iter().copied().filter(|number| !there(number)).collect()
}

async fn list_cursors(Shared(state): Shared<Arc<State>>) -> Json<Value> {
    Json(cursors(&state.broker))
}

async fn delete_cursor(Shared(state): Shared<Arc<State>>, Path(name): Path<String>) -> Result<Json<Value>, Problem> {
    let journal = state
        .broker
        .journal()
        .ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "there is no journal here, so there are no cursors"))?;
    let told = name.clone();
    match blocking(move || journal.delete_cursor(&name)).await? {
        Ok(()) => Ok(Json(json!({ "deleted": told }))),
        Err(e @ JournalError::NoCursor { .. }) => {
            let of_bridge = format!("{}{told}", super::BRIDGE_CURSOR);
            let meant =
                state.broker.journal().is_some_and(|j| j.cursors().iter().any(|cursor| cursor.name == of_bridge));
            let hint = if meant { format!("; did you mean {of_bridge}?") } else { String::new() };
            Err(Problem::new(StatusCode::NOT_FOUND, format!("{e}{hint}")))
        }
        Err(e @ JournalError::CursorInUse { .. }) => {
            let detail = format!("{e}; it belongs to a bridge of the configuration");
            Err(Problem::new(StatusCode::CONFLICT, detail))
        }
        Err(e) => Err(Problem::unavailable(e.to_string(), 5)),
    }
}

type Body = Result<Json<Asked>, axum::extract::rejection::JsonRejection>;

fn read(body: Body) -> Result<Asked, Problem> {
    body.map(|Json(asked)| asked).map_err(|e| Problem::new(e.status(), e.body_text()))
}

fn head(letter: &DeadLetter) -> Value {
    let key = letter.keys.last().map_or(&[][..], |key| key);
    json!({
        "number": letter.number,
        "bridge": letter.bridge,
        "time": hookbus_bridges::cloudevents::rfc3339(letter.died),
        "reason": letter.reason,
        "attempts": letter.attempts,
        "replays": letter.replays,
        "retrying": letter.retrying,
        "id": letter.id.to_string(),
        "key": encode_key(key),
        "payload_bytes": letter.payload_bytes,
    })
}

fn dead_letters(state: &State) -> Result<Arc<DeadLetters>, Problem> {
    state.parts.lock().dead_letters.clone().ok_or_else(not_yet)
}

fn not_yet() -> Problem {
    Problem::unavailable("the bridges are starting or ending", 1)
}

#[expect(clippy::needless_pass_by_value, reason = "what map_err hands over")]
fn failed(error: DeadLettersError) -> Problem {
    Problem::unavailable(error.to_string(), 5)
}

async fn asked(ask: impl FnOnce() -> Result<Value, DeadLettersError> + Send + 'static) -> Result<Json<Value>, Problem> {
    blocking(ask).await?.map(Json).map_err(failed)
}

/// Does something in a thread that may wait for a disk.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Problem::unavailable(e.to_string(), 5))
}

/// Does something to its end, also where the one who asked for it hangs up: a change that is half made would be told to nobody.
pub(super) async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Problem>> + Send + 'static,
) -> Result<T, Problem> {
    tokio::spawn(work).await.map_err(|e| Problem::unavailable(e.to_string(), 5))?
}
