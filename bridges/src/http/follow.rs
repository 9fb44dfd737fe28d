//! `GET /v1/events`: a subscription as the body of a response.
//!
//! The connection asks for the next part of the body when it has room, and only then is anything taken from the subscription and
//! encoded ([`Body::poll_frame`]). So there is no queue here, and a reader that stalls is a subscription that isn't read.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::{BufMut, Bytes, BytesMut};
use hookbus_broker::{
    BatchLimit, Delivery, EndReason, Gap, Offset, Overflow, Received, SubscribeOptions, Subscription, TryRecvError,
};
use hyper::body::Frame;
use tokio::time::{Interval, MissedTickBehavior};

use super::problem::Problem;
use super::query::parameters;
use super::routes::Shared;
use crate::cloudevents::{self, Format};

/// How often a comment shows that the connection lives.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// What is encoded at once. The messages of a part are in memory as text until the connection has taken them.
const PART: BatchLimit = BatchLimit::messages(32).bytes(64 << 10);
/// The high-water mark of a follower that asks for none.
const HWM: usize = 10_000;
const HWM_BYTES: usize = 64 << 20;

/// What a follower asks for.
#[derive(Debug)]
struct Wish {
    prefixes: Vec<Vec<u8>>,
    hwm: usize,
    hwm_bytes: usize,
    overflow: Overflow,
    format: Format,
    /// What listings call it.
    name: String,
    /// The last event that it has seen.
    last: Option<Offset>,
}

impl Wish {
    fn read(query: Option<&str>, headers: &HeaderMap) -> Result<Self, Problem> {
        let mut wish = Wish {
            prefixes: Vec::new(),
            hwm: HWM,
            hwm_bytes: HWM_BYTES,
            overflow: Overflow::DropNewest,
            format: Format::CloudEvents,
            name: String::new(),
            last: None,
        };
        for (name, value) in parameters(query.unwrap_or_default()) {
            let text = String::from_utf8_lossy(&value).into_owned();
            match &*name {
                "prefix" => wish.prefixes.push(value),
                "hwm" => wish.hwm = number(&name, &text)?,
                "hwm_bytes" => wish.hwm_bytes = number(&name, &text)?,
                "overflow" => wish.overflow = overflow(&text)?,
                "format" => {
                    wish.format = match &*text {
                        "cloudevents" => Format::CloudEvents,
                        "raw" => Format::Raw,
                        "base64" => Format::Base64,
                        _ => {
                            let detail = format!("format={text}: `cloudevents`, `raw` or `base64` is expected here");
                            return Err(Problem::bad_request(detail));
                        }
                    }
                }
                "name" => wish.name = text.chars().filter(|c| !c.is_control()).take(64).collect(),
                "from" => wish.last = from(&text)?,
                _ => {
                    let known = "prefix, from, format, hwm, hwm_bytes, overflow, name";
                    return Err(Problem::bad_request(format!("unknown parameter `{name}`; there are {known}")));
                }
            }
        }
        if wish.prefixes.is_empty() {
            wish.prefixes.push(Vec::new());
        }
        if let Some(last) = headers.get("last-event-id").and_then(|id| id.to_str().ok())
            && !last.is_empty()
        {
            // What isn't an offset isn't from here.
            wish.last = Some(Offset::new(last.parse().unwrap_or(0)));
        }
        Ok(wish)
    }
}

fn number(name: &str, text: &str) -> Result<usize, Problem> {
    text.parse().map_err(|_| Problem::bad_request(format!("{name}={text}: a whole number is expected; 0 is no limit")))
}

fn overflow(text: &str) -> Result<Overflow, Problem> {
    match text {
        "drop-newest" => Ok(Overflow::DropNewest),
        "drop-oldest" => Ok(Overflow::DropOldest),
        "disconnect" => Ok(Overflow::Disconnect),
        _ => {
            let detail = format!("overflow={text}: `drop-newest`, `drop-oldest` or `disconnect` is expected");
            Err(Problem::bad_request(detail))
        }
    }
}

/// Where to begin. Without a journal, that is here and now.
fn from(text: &str) -> Result<Option<Offset>, Problem> {
    if matches!(text, "latest" | "") {
        return Ok(None);
    }
    let detail = format!(
        "from={text}: there is no journal in this version, so events of the past can't be had; leave `from` out to follow from now on"
    );
    Err(Problem::new(axum::http::StatusCode::NOT_IMPLEMENTED, detail))
}

/// Answers with events, for ever.
pub(crate) async fn follow(
    State(shared): State<Arc<Shared>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    caller: axum::Extension<super::routes::Peer>,
) -> Result<Response, Problem> {
    let wish = Wish::read(query.as_deref(), &headers)?;
    let who = if wish.name.is_empty() { caller.0.name() } else { format!("{} {}", wish.name, caller.0.name()) };
    let mut options =
        SubscribeOptions::new(format!("http {who}")).hwm(wish.hwm).hwm_bytes(wish.hwm_bytes).overflow(wish.overflow);
    for prefix in &wish.prefixes {
        options = options.prefix(prefix);
    }
    let subscription = shared.broker.subscribe(options);
    let published = Offset::new(shared.broker.stats().published);
    let registration = shared.followers.register(&shared, subscription.handle())?;
    let mut heartbeat = tokio::time::interval_at(tokio::time::Instant::now() + HEARTBEAT, HEARTBEAT);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let follower = Follower {
        shared,
        subscription,
        format: wish.format,
        opening: Some(opening(wish.last, published)),
        heartbeat,
        dropped: 0,
        ended: false,
        _registration: registration,
    };
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    Ok((headers, Body::new(follower)).into_response())
}

/// What goes first, so that the reader knows at once that it follows. One that has been here before is told that it was away.
fn opening(last: Option<Offset>, published: Offset) -> Bytes {
    let mut text = String::from(": hookbus\n\n");
    if let Some(last) = last
        && last != published
    {
        // An offset beyond what was published is of another process's log.
        let first = if last < published { last.get() + 1 } else { 1 };
        let object = serde_json::json!({
            "first": first,
            "last": published.get(),
            "count": null,
            "reason": "what was published while nobody followed is not kept: there is no journal",
        });
        text.push_str(&format!("event: gap\nid: {published}\ndata: {object}\n\n"));
    }
    text.into()
}

/// The body.
struct Follower {
    shared: Arc<Shared>,
    subscription: Subscription,
    format: Format,
    opening: Option<Bytes>,
    heartbeat: Interval,
    /// How many messages were dropped since the last event that was sent.
    dropped: u64,
    ended: bool,
    _registration: super::routes::Registration,
}

impl Follower {
    /// Takes what is queued, as text.
    fn part(&mut self) -> Result<Bytes, TryRecvError> {
        let Follower { shared, subscription, format, dropped, .. } = self;
        let batch = subscription.try_recv_batch(PART)?;
        let mut text = BytesMut::new();
        for delivery in batch.iter() {
            match delivery {
                Delivery::Gap(gap) => {
                    *dropped += gap.count;
                    put_gap(&mut text, &gap);
                }
                Delivery::Message(message) => {
                    let encode = |dropped| encode(shared, &message.to_received(), *format, dropped);
                    match std::mem::take(dropped) {
                        // In base64 the key is the one that this follower's prefixes match.
                        0 if *format != Format::Base64 => {
                            text.put(shared.encodings.get(message.offset(), *format, || encode(None)));
                        }
                        0 => text.put(encode(None)),
                        dropped => text.put(encode(Some(dropped))),
                    }
                }
            }
        }
        Ok(text.freeze())
    }

    /// Why it ends, for a reader that would otherwise take it for a broken connection.
    fn farewell(&self) -> Bytes {
        let text = match self.subscription.end() {
            Some(EndReason::Overflowed) => {
                ": the high-water mark was reached, and the policy is to disconnect; what was queued was sent\n\n"
            }
            _ => ": hookbus ends\n\n",
        };
        Bytes::from_static(text.as_bytes())
    }
}

impl HttpBody for Follower {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::convert::Infallible>>> {
        let this = self.get_mut();
        if let Some(opening) = this.opening.take() {
            return Poll::Ready(Some(Ok(Frame::data(opening))));
        }
        if this.ended {
            return Poll::Ready(None);
        }
        while this.subscription.poll_ready(cx).is_ready() {
            match this.part() {
                Ok(part) => {
                    this.heartbeat.reset();
                    return Poll::Ready(Some(Ok(Frame::data(part))));
                }
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Ended) => {
                    this.ended = true;
                    return Poll::Ready(Some(Ok(Frame::data(this.farewell()))));
                }
            }
        }
        this.heartbeat.poll_tick(cx).map(|_| Some(Ok(Frame::data(Bytes::from_static(b":\n\n")))))
    }
}

fn put_gap(text: &mut BytesMut, gap: &Gap) {
    let Gap { first, last, count } = gap;
    let told = format!("event: gap\nid: {last}\ndata: {{\"first\":{first},\"last\":{last},\"count\":{count}}}\n\n");
    text.put_slice(told.as_bytes());
}

/// One event as server-sent events have it.
fn encode(shared: &Shared, event: &Received, format: Format, dropped: Option<u64>) -> Bytes {
    let mut text = BytesMut::with_capacity(event.payload().len() * 2 + 512);
    text.put_slice(format!("id: {}\n", event.offset()).as_bytes());
    match format {
        Format::Raw => put_data(&mut text, &cloudevents::raw(event)),
        Format::Base64 => {
            // As on ZeroMQ: a key, then the base64 text.
            put_data(&mut text, event.matched_keys().next().unwrap_or_default());
            put_data(&mut text, &cloudevents::base64(event));
        }
        Format::CloudEvents | Format::CloudEventsBinary => {
            put_data(&mut text, &shared.encoder.structured(event, dropped));
        }
    }
    text.put_u8(b'\n');
    text.freeze()
}

/// Puts text that may have several lines, each as a `data` field. A reader joins them with LF, so CR and CR LF become LF, as
/// the format has it; and bytes that are no UTF-8 become U+FFFD.
fn put_data(text: &mut BytesMut, data: &[u8]) {
    let data = String::from_utf8_lossy(data);
    let data = if data.contains('\r') { data.replace("\r\n", "\n").replace('\r', "\n").into() } else { data };
    for line in data.split('\n') {
        text.put_slice(b"data: ");
        text.put_slice(line.as_bytes());
        text.put_u8(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_several_lines_becomes_several_fields() {
        let mut text = BytesMut::new();
        put_data(&mut text, b"a\r\nb\rc\n\xff");
        assert_eq!(&*text, "data: a\ndata: b\ndata: c\ndata: \u{FFFD}\n".as_bytes());
    }

    #[test]
    fn what_a_follower_may_ask_for() {
        let headers = HeaderMap::new();
        let wish = Wish::read(Some("prefix=a+b&prefix=%ff&hwm=5&overflow=drop-oldest&format=raw"), &headers).unwrap();
        assert_eq!(wish.prefixes, [&b"a b"[..], b"\xff"]);
        assert_eq!((wish.hwm, wish.overflow, wish.format), (5, Overflow::DropOldest, Format::Raw));
        assert_eq!(Wish::read(None, &headers).unwrap().prefixes, [b""], "everything");
        for (query, expected) in [
            ("hwm=many", "hwm=many: a whole number"),
            ("overflow=block", "overflow=block: `drop-newest`"),
            ("format=xml", "format=xml: `cloudevents`"),
            ("format=cloudevents-binary", "expected here"),
            ("perfix=a", "unknown parameter `perfix`; there are prefix"),
            ("from=earliest", "there is no journal"),
        ] {
            let problem = Wish::read(Some(query), &headers).expect_err(query);
            assert!(problem.detail().contains(expected), "{problem:?}");
        }
    }

    #[test]
    fn who_comes_back_is_told_what_lies_between() {
        let told = |last: Option<u64>, published| {
            String::from_utf8(opening(last.map(Offset::new), Offset::new(published)).to_vec()).unwrap()
        };
        assert!(!told(None, 7).contains("gap"));
        assert!(!told(Some(7), 7).contains("gap"));
        assert!(
            told(Some(5), 7).contains("id: 7\ndata: {\"count\":null,\"first\":6,\"last\":7"),
            "{}",
            told(Some(5), 7)
        );
        assert!(told(Some(9), 7).contains("\"first\":1,\"last\":7"), "another log");
    }
}
