//! Bodies of requests, read whole within bounds.
//!
//! Each has a limit of its own, and all that are on their way have one together ([`BodyBudget`]): sixty clients with 64 MiB each
//! would otherwise be an easy way to use up the machine. A body counts as it arrives, not as it is announced, and until it has been dealt
//! with. A client that sends nothing for a while is told so, because what has arrived of its body is held meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::http::StatusCode;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;

use super::problem::Problem;

/// How long a body may pause on its way.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// What all bodies together may hold.
#[derive(Debug)]
pub(crate) struct BodyBudget {
    used: AtomicUsize,
    max_bytes: usize,
}

/// A part of the budget, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    budget: Arc<BodyBudget>,
    bytes: usize,
}

impl BodyBudget {
    pub(crate) fn new(max_bytes: usize) -> Arc<Self> {
        Arc::new(BodyBudget { used: AtomicUsize::new(0), max_bytes })
    }
}

impl Held {
    fn grow(&mut self, bytes: usize) -> bool {
        let used = self.budget.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.bytes += bytes;
        used <= self.budget.max_bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Reads a body of at most `limit_bytes`; `set_by` says what sets that limit, where it can be set. What is returned with it is to be kept as long
/// as the body is.
pub(crate) async fn read(
    mut body: Body,
    limit_bytes: usize,
    set_by: &str,
    patience: Duration,
    budget: &Arc<BodyBudget>,
) -> Result<(Bytes, Held), Problem> {
    let mut held = Held { budget: Arc::clone(budget), bytes: 0 };
    let too_large = || {
        let detail = format!("the body has more than {limit_bytes} bytes{set_by}");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
    };
    if body.size_hint().lower() > limit_bytes as u64 {
        return Err(too_large());
    }
    let mut first = Bytes::new();
    let mut whole = BytesMut::new();
    loop {
        let frame = match tokio::time::timeout(patience, body.frame()).await {
            Ok(None) => break,
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(e))) => return Err(Problem::bad_request(format!("the body did not arrive whole: {e}"))),
            Err(_) => {
                let detail = format!("nothing more of the body arrived for {} s", patience.as_secs());
                return Err(Problem::new(StatusCode::REQUEST_TIMEOUT, detail));
            }
        };
        // Trailers mean nothing here.
        let Ok(data) = frame.into_data() else { continue };
        if held.bytes + data.len() > limit_bytes {
            return Err(too_large());
        }
        if !held.grow(data.len()) {
            return Err(Problem::unavailable("too many large requests at once; try again", 1));
        }
        if first.is_empty() && whole.is_empty() {
            // Most bodies come in one piece and needn't be copied.
            first = data;
        } else {
            if !first.is_empty() {
                whole.extend_from_slice(&std::mem::take(&mut first));
            }
            whole.extend_from_slice(&data);
        }
    }
    Ok((if whole.is_empty() { first } else { whole.freeze() }, held))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(pieces: &'static [&'static str]) -> Body {
        struct Pieces(std::slice::Iter<'static, &'static str>);
        impl HttpBody for Pieces {
            type Data = Bytes;
            type Error = std::io::Error;

            fn poll_frame(
                mut self: std::pin::Pin<&mut Self>,
                _: &mut std::task::Context<'_>,
            ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, std::io::Error>>> {
                std::task::Poll::Ready(self.0.next().map(|piece| Ok(hyper::body::Frame::data(Bytes::from(*piece)))))
            }
        }
        Body::new(Pieces(pieces.iter()))
    }

    #[tokio::test]
    async fn a_body_is_read_whole_and_given_back_to_the_budget() {
        let budget = BodyBudget::new(10);
        let (body, held) = read(pieces(&["ab", "c", "def"]), 6, "", PATIENCE, &budget).await.expect("it fits");
        assert_eq!((&*body, held.bytes), (&b"abcdef"[..], 6));
        let refused = read(pieces(&["abc", "de"]), 6, "", PATIENCE, &budget).await.expect_err("the budget is used up");
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        drop(held);
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
        let (body, _held) = read(pieces(&["abcde"]), 6, "", PATIENCE, &budget).await.expect("there is room again");
        assert_eq!(&*body, b"abcde");
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_refused() {
        let budget = BodyBudget::new(100);
        for body in [pieces(&["abc", "def"]), Body::from("abcdef")] {
            let refused = read(body, 5, "; it is set there", PATIENCE, &budget).await.expect_err("too large");
            assert_eq!(refused.status(), StatusCode::PAYLOAD_TOO_LARGE);
            assert!(refused.detail().contains("5 bytes; it is set there"), "{refused:?}");
        }
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stops_arriving_is_ended() {
        struct Stalled;
        impl HttpBody for Stalled {
            type Data = Bytes;
            type Error = std::io::Error;

            fn poll_frame(
                self: std::pin::Pin<&mut Self>,
                _: &mut std::task::Context<'_>,
            ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, std::io::Error>>> {
                std::task::Poll::Pending
            }
        }
        let refused =
            read(Body::new(Stalled), 5, "", PATIENCE, &BodyBudget::new(10)).await.expect_err("it never comes");
        assert_eq!(refused.status(), StatusCode::REQUEST_TIMEOUT);
    }
}
