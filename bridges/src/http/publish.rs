//! `POST /v1/events`.
//!
//! The whole body is read and checked before anything of it is published, so an error in it means that nobody has got anything. Where there is
//! a journal, the answer waits until that has it; where there is to be one that isn't open yet, nothing is published before it is.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hookbus_broker::{Broker, JournalFault, Offset, Overflow, PublishError};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use super::body;
use super::problem::Problem;
use super::routes::{Shared, json_line};
use crate::cloudevents::{self, DecodeError, Incoming};

/// How long a publish waits for a subscriber that blocks and is full.
const PATIENCE: Duration = Duration::from_secs(5);
/// What a client that was refused is asked to wait.
const RETRY_AFTER_SECONDS: u32 = 5;
/// How often it is looked whether the journal is open. It takes moments, once in the life of a driver.
const LOOK_FOR_JOURNAL: Duration = Duration::from_millis(20);
/// What sets the limit of a body.
pub(crate) const LIMIT_SET_BY: &str = "; [limits] http_body_bytes sets the limit";

pub(crate) async fn publish(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let (body, _held) =
        body::read(body, shared.options.body_limit_bytes, LIMIT_SET_BY, body::PATIENCE, &shared.budget).await?;
    let content_type = match headers.get(header::CONTENT_TYPE).map(|value| value.to_str()) {
        None => None,
        Some(Ok(text)) => Some(text),
        Some(Err(_)) => return Err(Problem::bad_request("the header content-type is not ASCII")),
    };
    let pairs = headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
    let decoded = cloudevents::decode(content_type, pairs, &body).map_err(|e| refused(&e))?;
    let batch = content_type.is_some_and(|text| text.trim_start().to_ascii_lowercase().starts_with(cloudevents::BATCH));
    if shared.closing.load(Ordering::Relaxed) {
        return Err(ending());
    }
    let deadline = Instant::now() + PATIENCE;
    until_journal(|| shared.daemon.awaits_journal(), deadline).await?;
    let mut accepted = Vec::with_capacity(decoded.len());
    let total = decoded.len();
    let mut last = None;
    let mut refused = None;
    for event in decoded {
        match one(&shared.broker, event, deadline).await {
            Ok((offset, told)) => {
                accepted.push(told);
                last = Some(offset);
            }
            Err(problem) => {
                refused = Some(problem);
                break;
            }
        }
    }
    // The journal is waited for once: it has what is in front of the last, too.
    if let Some(last) = last {
        let journaled = timeout_at(deadline, shared.broker.journaled(last)).await;
        if !matches!(journaled, Ok(Ok(()))) {
            return Err(not_journaled(&shared.broker));
        }
    }
    match refused {
        Some(problem) if batch => {
            // Those in front are published, and can't be taken back.
            let more = format!("{} of {total} events were accepted, those in front", accepted.len());
            let detail = format!("{}; {more}", problem.detail());
            let problem = problem.with_detail(detail).with("accepted", accepted.len()).with("events", accepted);
            return Err(problem);
        }
        Some(problem) => return Err(problem),
        None => {}
    }
    let told = match accepted.pop() {
        Some(told) if !batch => told,
        last => {
            accepted.extend(last);
            json!({ "accepted": accepted.len(), "events": accepted })
        }
    };
    Ok((StatusCode::ACCEPTED, json_line(&told)).into_response())
}

/// Publishes one event, by the deadline or not at all.
async fn one(broker: &Broker, event: Incoming, deadline: Instant) -> Result<(Offset, Value), Problem> {
    let own_id = event.origin.as_ref().map(|origin| origin.id.to_string()).filter(|id| !id.is_empty());
    let mut message = event.into();
    // Cancelling it publishes nothing.
    match timeout_at(deadline, broker.accept(&mut message)).await {
        Ok(Ok(offset)) => {
            let id = own_id.unwrap_or_else(|| format!("{}-{offset}", broker.log_id()));
            Ok((offset, json!({ "id": id, "offset": offset.get() })))
        }
        Ok(Err(PublishError::Closed)) => Err(ending()),
        Ok(Err(PublishError::Journal(fault @ JournalFault::TooLarge { .. }))) => {
            Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, fault.to_string()))
        }
        Ok(Err(e @ PublishError::Journal(_))) => {
            Err(Problem::unavailable(format!("{e}; nothing was published, try again"), RETRY_AFTER_SECONDS))
        }
        Ok(Err(e)) => Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, e.to_string())),
        Err(_) => Err(Problem::unavailable(full(broker), RETRY_AFTER_SECONDS)),
    }
}

/// Waits for the journal that is to be there: what is published before it is open is in memory alone.
async fn until_journal(is_awaited: impl Fn() -> bool, deadline: Instant) -> Result<(), Problem> {
    while is_awaited() {
        if Instant::now() >= deadline {
            let detail = "the journal is not open yet, and without it nobody could say that the event is safe; nothing was published, try again. \
                          What keeps it from being opened is in the log";
            return Err(Problem::unavailable(detail, RETRY_AFTER_SECONDS));
        }
        tokio::time::sleep(LOOK_FOR_JOURNAL).await;
    }
    Ok(())
}

/// It was published, and the disk doesn't take it: whoever follows from memory has it, and nobody knows whether it would survive.
fn not_journaled(broker: &Broker) -> Problem {
    let reason =
        broker.journal().and_then(|journal| journal.stats().failing).unwrap_or_else(|| "its disk is too slow".into());
    let detail = format!(
        "the journal has not written it within {} s: {reason}. It may be delivered all the same; if you try again, use the same id and source",
        PATIENCE.as_secs()
    );
    Problem::unavailable(detail, RETRY_AFTER_SECONDS)
}

fn ending() -> Problem {
    Problem::unavailable("hookbus is about to end; nothing was published", RETRY_AFTER_SECONDS)
}

/// Who is to blame for a publish that waited in vain.
fn full(broker: &Broker) -> String {
    let mut blocking: Vec<_> = broker
        .subscriptions()
        .into_iter()
        .filter(|stats| stats.overflow == Overflow::Block && stats.queued > 0)
        .collect();
    blocking.sort_by_key(|stats| std::cmp::Reverse(stats.queued));
    let who = blocking.first().map_or_else(String::new, |stats| {
        format!(" (`{}` has {} waiting, its high-water mark is {})", stats.name, stats.queued, stats.hwm)
    });
    format!(
        "a subscriber that blocks publishers is at its high-water mark and made no room within {} s{who}; nothing was \
         published, try again",
        PATIENCE.as_secs()
    )
}

fn refused(error: &DecodeError) -> Problem {
    let status = StatusCode::from_u16(error.http_status()).unwrap_or(StatusCode::BAD_REQUEST);
    Problem::new(status, error.to_string())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn nothing_is_published_before_the_journal_is_open() {
        let looks = Cell::new(0);
        let opens_at = |look| {
            looks.set(0);
            let looks = &looks;
            move || {
                looks.set(looks.get() + 1);
                looks.get() < look
            }
        };
        let deadline = || Instant::now() + PATIENCE;
        assert!(until_journal(opens_at(1), deadline()).await.is_ok());
        assert_eq!(looks.get(), 1);
        assert!(until_journal(opens_at(100), deadline()).await.is_ok(), "it is waited for");
        let refused = until_journal(opens_at(usize::MAX), deadline()).await.expect_err("not for ever");
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    }
}
