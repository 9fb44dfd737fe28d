//! What went wrong with a connection, in words for those who run a bridge.

use std::error::Error;
use std::io;
use std::time::Duration;

use super::target::Origin;
use crate::delivery::Fault;
use crate::tls;

/// Something has not come in time.
pub(super) fn too_slow(origin: &Origin, what: &str, limit: Duration) -> Fault {
    let seconds = limit.as_secs_f64();
    Fault::passing(format!("{origin}: there is not {what} within {seconds} s (timeout)"))
}

/// TLS could not be agreed upon.
pub(super) fn not_secured(origin: &Origin, error: &io::Error) -> Fault {
    match tls::trouble(error) {
        Some(trouble) => Fault::needs_help(format!("{origin}: {trouble}")),
        None => Fault::passing(format!("{origin}: the connection broke before it was secured: {error}")),
    }
}

/// HTTP has failed.
pub(super) fn broken(origin: &Origin, error: &hyper::Error) -> Fault {
    if let Some(trouble) = tls::trouble(error) {
        return Fault::needs_help(format!("{origin}: {trouble}"));
    }
    if error.is_parse() {
        return Fault::needs_help(format!("{origin}: what answers there doesn't speak HTTP/1.1 ({error})"));
    }
    if error.is_incomplete_message() {
        return Fault::passing(format!("{origin} has closed the connection without an answer"));
    }
    let cause = error.source().map_or_else(String::new, |cause| format!(": {cause}"));
    Fault::passing(format!("the connection to {origin} broke: {error}{cause}"))
}
