//! What nodes of a Ganeti cluster ask for; docs/http.md lists it.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State as Shared;
use axum::http::{HeaderMap, StatusCode};
use hookbus_bridges::ganeti::Report;
use hookbus_bridges::http::{Content, Endpoint, Endpoints, Kind, Problem};
use hookbus_broker::EventId;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Entrance, gate};
use crate::daemon::State;

/// The largest body: the hook client sends its spool in pieces of 1 MiB, and one report beside.
const MOST_BYTES: usize = 4 << 20;
/// What a node that was refused is asked to wait, in seconds.
const RETRY_AFTER_SECONDS: u32 = 5;
/// How many reports its spool had no room for since it last told.
const LOST: &str = "hookbus-lost";

/// The routes. They need a write token on TCP, since what they take becomes events that nobody else may publish.
pub(in crate::daemon) fn routes(state: &Arc<State>) -> Endpoints {
    use StatusCode as S;
    const NOT_NOW: &str =
        "hookbus is starting or about to end, or the journal can't be written; nothing was taken, try again";
    const TYPES: Content = Content::Types(&["application/x-ndjson", "application/json"]);
    Endpoints::new([
        Endpoint::post("/v1/ganeti/reports", reports, "Takes what hooks of Ganeti found, one report on a line")
            .header(LOST, Kind::Number, "how many reports a spool had no room for")
            .takes(TYPES)
            .answers(S::ACCEPTED, "what is new is in the journal, where there is one; `accepted`, `refused`")
            .problem(S::SERVICE_UNAVAILABLE, NOT_NOW),
        Endpoint::post("/v1/ganeti/gate", gate, "Takes one report, and answers whether its operation may go on")
            .header(TIMEOUT, Kind::Number, "how long the one who asks waits, in milliseconds")
            .takes(TYPES)
            .answers(S::OK, "`verdict` (allow, deny or none) and `reason`")
            .problem(S::BAD_REQUEST, "it is no report")
            .problem(S::SERVICE_UNAVAILABLE, NOT_NOW),
    ])
    .body_limit_bytes(MOST_BYTES)
    .with_state(Arc::clone(state))
}

async fn reports(
    Shared(state): Shared<Arc<State>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let entrance = entrance(&state)?;
    let lost = headers.get(LOST).and_then(|value| value.to_str().ok()?.parse::<u64>().ok()).filter(|lost| *lost > 0);
    let (mut reports, mut refused) = (Vec::new(), Vec::new());
    for line in body.split(|&byte| byte == b'\n').filter(|line| !line.trim_ascii().is_empty()) {
        match Report::parse(line) {
            Ok(report) => reports.push(report),
            Err(e) => {
                let id = serde_json::from_slice::<Value>(line).ok().map(|line| line["id"].clone());
                tracing::warn!("ganeti: a report is refused: {e}");
                refused.push(json!({ "id": id, "problem": e.to_string() }));
            }
        }
    }
    let accepted = reports.len();
    let node = reports.first().map_or_else(String::new, |report| format!("{}: ", report.node()));
    entrance.take(reports).await.map_err(|why| Problem::unavailable(why, RETRY_AFTER_SECONDS))?;
    entrance.refused(refused.len());
    if let Some(lost) = lost {
        entrance.lost(lost);
        tracing::error!("ganeti: {node}its spool was full, and {lost} reports of hooks were lost there");
    }
    Ok((StatusCode::ACCEPTED, Json(json!({ "accepted": accepted, "refused": refused }))))
}

/// How long the one who asks waits for the verdict, in milliseconds.
const TIMEOUT: &str = "hookbus-timeout-ms";

async fn gate(Shared(state): Shared<Arc<State>>, headers: HeaderMap, body: Bytes) -> Result<Json<Value>, Problem> {
    let timeout = headers.get(TIMEOUT).and_then(|value| value.to_str().ok()?.parse().ok()).map(Duration::from_millis);
    let deadline = Instant::now() + gate::time_for(timeout);
    let report = Report::parse(&body).map_err(|e| Problem::bad_request(e.to_string()))?;
    let hooks = state.parts.lock().hooks.clone();
    let runs = hooks.map(|hooks| hooks.ganeti_runs(&report.message())).unwrap_or_default();
    let taken = entrance(&state)?.take(vec![report.clone()]).await;
    let offsets = taken.map_err(|why| Problem::unavailable(why, RETRY_AFTER_SECONDS))?;
    let checks = state.parts.lock().ganeti.as_ref().map(super::Ganeti::checks);
    let (Some(&offset), Some(checks)) = (offsets.first(), checks) else {
        return Err(Problem::unavailable("hookbus is about to end", RETRY_AFTER_SECONDS));
    };
    let event = EventId { log: state.broker.log_id(), offset };
    let verdict = checks.ask(&state.verdicts, runs, event, &report, deadline).await;
    if let Some(why) = verdict.is_missing() {
        let operation = report.operation();
        tracing::warn!(
            "ganeti: {operation} (event {event}) got no verdict, so gate_default of its node decides: {why}"
        );
    }
    Ok(Json(serde_json::to_value(verdict).unwrap_or_default()))
}

fn entrance(state: &State) -> Result<Entrance, Problem> {
    let entrance = state.parts.lock().ganeti.as_ref().map(super::Ganeti::entrance);
    entrance.ok_or_else(|| Problem::unavailable("hookbus is starting or about to end", 1))
}
