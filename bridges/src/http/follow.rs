//! `GET /v1/events`: a subscription as the body of a response.
//!
//! The connection asks for the next part of the body when it has room, and only then is anything taken from the subscription and
//! encoded ([`Body::poll_frame`]). So there is no queue here, and a reader that stalls is a subscription that isn't read.
//!
//! A follower that begins in the past reads from the journal, for as long as it follows ([`past`](super::past)).

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use axum::body::{Body, HttpBody};
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::{BufMut, Bytes, BytesMut};
use hookbus_broker::{
    BatchLimit, Delivery, EndReason, Gap, Offset, Overflow, Received, Start, SubscribeOptions, Subscription, Timestamp,
    TryRecvError,
};
use hyper::body::Frame;
use tokio::time::{Interval, MissedTickBehavior};

use super::past::past;
use super::problem::Problem;
use super::query::parameters;
use super::routes::{End, Shared};
use crate::cloudevents::{self, Format};

/// How often a comment shows that the connection lives.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// What is encoded at once. The messages of a part are in memory as text until the connection has taken them.
pub(super) const PART: BatchLimit = BatchLimit::messages(32).bytes(64 << 10);
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
    /// Where it wants to begin; nothing for here and now.
    from: Option<Start>,
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
            from: None,
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
                "from" => wish.from = from(&text, SystemTime::now())?,
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
            wish.from = None;
        }
        Ok(wish)
    }
}

impl Wish {
    /// Where in the journal it begins, if it does. Who has been here before goes on behind what it has seen.
    fn start(&self, shared: &Shared) -> Result<Option<Start>, Problem> {
        let journal = shared.broker.journal().is_some();
        match (self.from, self.last) {
            (Some(_), _) if !journal => Err(no_past()),
            (Some(start), _) => Ok(Some(start)),
            (None, Some(last)) if journal && last <= shared.broker.last_offset() && last.get() > 0 => {
                Ok(Some(Start::Offset(Offset::new(last.get() + 1))))
            }
            (None, _) => Ok(None),
        }
    }
}

/// Shows that a connection lives where nothing else does.
pub(super) struct Heartbeat(Interval);

impl Heartbeat {
    pub(super) fn new() -> Self {
        let mut interval = tokio::time::interval_at(tokio::time::Instant::now() + HEARTBEAT, HEARTBEAT);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Heartbeat(interval)
    }

    /// Something was sent, which shows it as well.
    pub(super) fn put_off(&mut self) {
        self.0.reset();
    }

    /// The comment, when it is time for it.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Bytes> {
        self.0.poll_tick(cx).map(|_| Bytes::from_static(b":\n\n"))
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

/// Where to begin: `earliest`, an offset, a moment (RFC 3339), or how long ago (`15m`). Nothing for `latest`, which is here and now.
fn from(text: &str, now: SystemTime) -> Result<Option<Start>, Problem> {
    if matches!(text, "latest" | "") {
        return Ok(None);
    }
    if text == "earliest" {
        return Ok(Some(Start::Earliest));
    }
    if let Ok(offset) = text.parse() {
        return Ok(Some(Start::Offset(Offset::new(offset))));
    }
    if let Ok(moment) = text.parse::<jiff::Timestamp>() {
        return Ok(Some(Start::Time(Timestamp::from(SystemTime::from(moment)))));
    }
    let units = [("s", 1), ("m", 60), ("h", 3600), ("d", 86_400), ("w", 604_800)];
    let ago =
        units.iter().find_map(|(unit, seconds)| text.strip_suffix(unit)?.parse::<u64>().ok()?.checked_mul(*seconds));
    match ago {
        Some(seconds) => {
            let then = now.checked_sub(Duration::from_secs(seconds)).unwrap_or(SystemTime::UNIX_EPOCH);
            Ok(Some(Start::Time(Timestamp::from(then))))
        }
        None => Err(Problem::bad_request(format!(
            "from={text}: `earliest`, `latest`, an offset, a time such as 2026-11-22T10:00:00Z, or how long ago (90s, 15m, 2h, 1d) is expected"
        ))),
    }
}

/// What is said where the past is asked for and nothing of it is kept.
fn no_past() -> Problem {
    let detail = "there is no journal here, so events of the past can't be had; leave `from` out to follow from now on, or write enabled = \
                  true below [journal] in the configuration";
    Problem::new(axum::http::StatusCode::NOT_IMPLEMENTED, detail)
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
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    if let Some(start) = wish.start(&shared)? {
        let body = past(&shared, options, start, wish.format)?;
        return Ok((headers, body).into_response());
    }
    let subscription = shared.broker.subscribe(options);
    let published = shared.broker.last_offset();
    let registration = shared.followers.register(&shared, End::Subscription(subscription.handle().clone()))?;
    let follower = Follower {
        shared,
        subscription,
        format: wish.format,
        opening: Some(opening(wish.last, published)),
        heartbeat: Heartbeat::new(),
        dropped: 0,
        ended: false,
        _registration: registration,
    };
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
            "reason": "what was published while nobody followed is not kept",
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
    heartbeat: Heartbeat,
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
                    this.heartbeat.put_off();
                    return Poll::Ready(Some(Ok(Frame::data(part))));
                }
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Ended) => {
                    this.ended = true;
                    return Poll::Ready(Some(Ok(Frame::data(this.farewell()))));
                }
            }
        }
        this.heartbeat.poll(cx).map(|beat| Some(Ok(Frame::data(beat))))
    }
}

pub(super) fn put_gap(text: &mut BytesMut, gap: &Gap) {
    let Gap { first, last, count } = gap;
    let told = format!("event: gap\nid: {last}\ndata: {{\"first\":{first},\"last\":{last},\"count\":{count}}}\n\n");
    text.put_slice(told.as_bytes());
}

/// One event as server-sent events have it.
pub(super) fn encode(shared: &Shared, event: &Received, format: Format, dropped: Option<u64>) -> Bytes {
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
            ("from=yesterday", "from=yesterday: `earliest`, `latest`, an offset"),
        ] {
            let problem = Wish::read(Some(query), &headers).expect_err(query);
            assert!(problem.detail().contains(expected), "{problem:?}");
        }
    }

    #[test]
    fn where_a_follower_may_begin() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let at = |seconds: u64| Some(Start::Time(Timestamp::from_millis(seconds * 1000)));
        for (text, expected) in [
            ("latest", None),
            ("earliest", Some(Start::Earliest)),
            ("42", Some(Start::Offset(Offset::new(42)))),
            ("1970-01-01T00:01:00Z", at(60)),
            ("1970-01-01T01:01:00+01:00", at(60)),
            ("10s", at(999_990)),
            ("2h", at(992_800)),
            ("9999999w", at(0)),
        ] {
            assert_eq!(from(text, now).unwrap(), expected, "{text}");
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
