//! Webhooks: events as HTTP requests to somebody else's server.
//!
//! ```text
//!                     condition ─▶ template            POST /hook HTTP/1.1
//! WebhookSender ───── (a thread where that may block) ─────────────────────▶ server
//! WebhookReceipts ◀── answer.rs: what the status means ◀── 200, 429, 503 ────
//! ```
//!
//! What is here is the bus as [`delivery`](crate::delivery) wants it. An event that is confirmed is one that was answered with 200 to 299. Repetition, order
//! and back-off are the ledger's; `answer.rs` has the table of what other answers mean. `Retry-After` is told as a time of silence.
//!
//! A connection, to the ledger, is the time from when the server could be reached until an answer is missing, or says that the configuration is wrong. Within
//! it HTTP's own connections come and go (`pool.rs`). hyper speaks HTTP/1.1, and nothing in it connects, repeats or follows redirects by itself.
//!
//! - `condition.rs`: `when`, in jq's language, cut down to what ends.
//! - `template.rs`: texts with values in them, which stay values.
//! - `redact.rs`: a server may repeat in its answer what we have sent; secrets are taken out of whatever is told.
//! - `encode.rs`: the request. Everything that the options name is read anew for each connection, in the ledger's sense.
//!
//! # Guarantees
//!
//! - **Loss**: none of what is answered with 200 to 299, as far as the server keeps what it takes. What the condition passes over is counted as `filtered`; an event for
//!   which it can't be evaluated is a dead letter, and so is one that the template makes nothing of.
//! - **Repetition**: what was not answered is sent again, with the same `Idempotency-Key` and the same content, and may have arrived before. An answer that is
//!   lost on its way, or comes too late, is the usual reason.
//! - **Order**: with `in_flight` 1, the default, a request is sent when the one before it was answered, so first arrivals are in order. With more, requests
//!   overtake each other.

mod answer;
mod condition;
mod config;
mod connection;
mod encode;
mod error;
mod pool;
mod question;
mod receipts;
mod redact;
mod sender;
mod target;
mod template;

pub use condition::ConditionError;
pub use config::{Body, Login, WebhookOptions};
pub use connection::WebhookBus;
pub use encode::{check_header, check_method};
pub use question::Questions;
pub use receipts::WebhookReceipts;
pub use sender::WebhookSender;
pub use template::{TemplateError, TemplateKind, check_template};

/// Whether a text is a condition.
///
/// # Errors
/// When it isn't; says what is wrong and where.
pub fn check_condition(text: &str) -> Result<(), ConditionError> {
    condition::Condition::new(text).map(drop)
}

/// Whether a text is the URL of a webhook, with a template behind its host or without. `secrets` are those that templates can name.
///
/// # Errors
/// When it isn't; says what is wrong, without repeating it.
pub fn check_url(text: &str, secrets: &[&str]) -> Result<(), String> {
    let target = target::Target::new(text)?;
    if template::is_template(&target.path) {
        check_template(TemplateKind::Url, &target.path, secrets).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Enough for the compilers of templates and conditions to go as deep as any text that is taken.
const COMPILER_STACK_BYTES: usize = 256 << 20;

/// Does something in a thread with that stack. `None` where there can't be one, or it has failed.
fn with_deep_stack<T: Send>(compile: impl FnOnce() -> T + Send) -> Option<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("compile".into()).stack_size(COMPILER_STACK_BYTES);
        thread.spawn_scoped(scope, compile).ok()?.join().ok()
    })
}
