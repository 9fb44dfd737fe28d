//! The values that travel: a [`Message`] on its way in, its [`Offset`], [`EventId`] and [`Timestamp`], and the owned form,
//! [`Received`], in which it comes out.

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use smallvec::SmallVec;

/// The most keys that one message can have.
pub const MAX_KEYS: usize = 32;

/// The most bytes that all keys of one message can have together.
pub const MAX_KEYS_BYTES: usize = u16::MAX as usize;

/// The largest payload, in bytes.
pub const MAX_PAYLOAD_BYTES: usize = u32::MAX as usize - MAX_KEYS_BYTES;

/// The place of a message in the broker's order: given at publish, strictly increasing, starting at 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Offset(u64);

impl Offset {
    /// The offset with this number.
    pub const fn new(number: u64) -> Self {
        Offset(number)
    }

    /// The number behind the offset.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The random name of one log: of one journal, or of one broker that has none. Written as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LogId(u64);

impl LogId {
    /// A fresh id, from the operating system's randomness.
    pub fn random() -> Self {
        // Each RandomState has keys that std draws from the operating system, so its hash of nothing is a random number.
        LogId(RandomState::new().build_hasher().finish())
    }

    /// The id with this number, as read back from where it was kept.
    pub const fn new(number: u64) -> Self {
        LogId(number)
    }

    /// The number behind the id.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What names one message for ever: `<log id>-<offset>`. It never stands for two messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EventId {
    /// The log that the message is in.
    pub log: LogId,
    /// Its place there.
    pub offset: Offset,
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.log, self.offset)
    }
}

/// A moment, in whole milliseconds since 1970-01-01 00:00 UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The moment that many milliseconds after 1970-01-01 00:00 UTC.
    pub const fn from_millis(millis: u64) -> Self {
        Timestamp(millis)
    }

    /// Milliseconds since 1970-01-01 00:00 UTC.
    pub const fn as_millis(self) -> u64 {
        self.0
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(since.as_secs() * 1000 + u64::from(since.subsec_millis()))
    }
}

impl From<Timestamp> for SystemTime {
    fn from(time: Timestamp) -> Self {
        UNIX_EPOCH + Duration::from_millis(time.0)
    }
}

/// The identity that a message brought from elsewhere (an imported CloudEvent keeps its own `id` and `source`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The id given by its producer.
    pub id: Box<str>,
    /// The producer, a URI reference.
    pub source: Box<str>,
    /// Whatever else it brought along, in an encoding that the bridges agree about; the broker carries it untouched.
    pub attributes: Box<str>,
}

/// Keys side by side in one buffer; inline for the usual few, so that a message is made without an allocation.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Keys {
    pub(crate) bytes: SmallVec<[u8; 104]>,
    /// Where each key ends in `bytes`.
    pub(crate) ends: SmallVec<[u32; 4]>,
}

impl Keys {
    /// One key.
    #[inline]
    fn one(key: &[u8]) -> Self {
        Keys { bytes: SmallVec::from_slice(key), ends: SmallVec::from_buf_and_len([end(key.len()), 0, 0, 0], 1) }
    }

    pub(crate) fn push(&mut self, key: &[u8]) {
        self.bytes.extend_from_slice(key);
        self.ends.push(end(self.bytes.len()));
    }

    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> + Clone {
        let mut start = 0;
        self.ends.iter().map(move |&end| {
            let key = self.bytes.get(start..end as usize).unwrap_or_default();
            start = end as usize;
            key
        })
    }
}

/// Where a key ends. What is longer than 4 GiB is refused for its length.
fn end(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// Keys side by side, wherever they are.
#[derive(Clone)]
pub(crate) struct KeyIter<'a> {
    bytes: &'a [u8],
    start: usize,
    ends: Ends<'a>,
}

/// Where each key ends.
#[derive(Clone)]
enum Ends<'a> {
    Record(std::slice::Iter<'a, u16>),
    Owned(std::slice::Iter<'a, u32>),
}

impl<'a> KeyIter<'a> {
    pub(crate) fn of_record((bytes, ends): (&'a [u8], &'a [u16])) -> Self {
        KeyIter { bytes, start: 0, ends: Ends::Record(ends.iter()) }
    }

    pub(crate) fn of(keys: &'a Keys) -> Self {
        KeyIter { bytes: &keys.bytes, start: 0, ends: Ends::Owned(keys.ends.iter()) }
    }
}

impl<'a> Iterator for KeyIter<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        let end = match &mut self.ends {
            Ends::Record(ends) => usize::from(*ends.next()?),
            Ends::Owned(ends) => *ends.next()? as usize,
        };
        let key = self.bytes.get(self.start..end).unwrap_or_default();
        self.start = end;
        Some(key)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = match &self.ends {
            Ends::Record(ends) => ends.len(),
            Ends::Owned(ends) => ends.len(),
        };
        (left, Some(left))
    }
}

impl ExactSizeIterator for KeyIter<'_> {}

/// The keys that matched.
#[derive(Clone)]
pub(crate) struct MatchedKeys<'a> {
    keys: KeyIter<'a>,
    /// Bit i for the i-th of those that are left.
    matched: u32,
}

impl<'a> MatchedKeys<'a> {
    pub(crate) fn new(keys: KeyIter<'a>, matched: u32) -> Self {
        MatchedKeys { keys, matched }
    }
}

impl<'a> Iterator for MatchedKeys<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        loop {
            let key = self.keys.next()?;
            let is_matched = self.matched & 1 == 1;
            self.matched >>= 1;
            if is_matched {
                return Some(key);
            }
        }
    }
}

/// A message to publish: one or more keys in order, one payload.
///
/// ```
/// use hookbus_broker::Message;
///
/// let message = Message::new("EVENT VM 7/ACTIVE/RUNNING ", "payload").with_key("EVENT STATE VM/ACTIVE/RUNNING/7 ");
/// assert_eq!(message.keys().count(), 2);
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    pub(crate) keys: Keys,
    pub(crate) payload: Bytes,
    pub(crate) time: Option<Timestamp>,
    pub(crate) tag: u8,
    pub(crate) origin: Option<Arc<Origin>>,
}

impl Message {
    /// A message with one key. What is larger than [`MAX_KEYS_BYTES`] or [`MAX_PAYLOAD_BYTES`] is refused when published.
    #[inline]
    pub fn new(key: impl AsRef<[u8]>, payload: impl Into<Bytes>) -> Self {
        Message { keys: Keys::one(key.as_ref()), payload: payload.into(), time: None, tag: 0, origin: None }
    }

    /// Adds a key behind those that it has; at most [`MAX_KEYS`] in all.
    #[must_use]
    pub fn with_key(mut self, key: impl AsRef<[u8]>) -> Self {
        self.keys.push(key.as_ref());
        self
    }

    /// Sets when the message was taken in. Without it, the broker's clock is read at publish.
    #[must_use]
    pub fn with_time(mut self, time: Timestamp) -> Self {
        self.time = Some(time);
        self
    }

    /// Sets a number that the broker carries untouched, for an agreement between publishers and subscribers such as
    /// the format of the payload. 0 unless set.
    #[must_use]
    pub fn with_tag(mut self, tag: u8) -> Self {
        self.tag = tag;
        self
    }

    /// Sets the identity that the message brought from elsewhere.
    #[must_use]
    pub fn with_origin(mut self, origin: Origin) -> Self {
        self.origin = Some(Arc::new(origin));
        self
    }

    /// The keys, in order.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &[u8]> + Clone {
        self.keys.iter()
    }

    /// The payload.
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// What the message counts against limits in bytes: its keys and its payload.
    pub fn size_bytes(&self) -> usize {
        self.keys.bytes.len() + self.payload.len()
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("keys", &ShowKeys(&self.keys))
            .field("payload_bytes", &self.payload.len())
            .finish()
    }
}

/// A run of messages that matched a subscription and were not delivered to it, told in its place in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Gap {
    /// The offset of the first message dropped.
    pub first: Offset,
    /// The offset of the last one.
    pub last: Offset,
    /// How many messages in `first..=last` matched the subscription and were dropped: all that matched.
    pub count: u64,
}

/// What a subscription yields: a message, or the news that some were dropped here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery<M> {
    /// The next message.
    Message(M),
    /// Messages that were dropped at this place.
    Gap(Gap),
}

impl<M> Delivery<M> {
    /// The message, unless this is a gap.
    pub fn message(self) -> Option<M> {
        match self {
            Delivery::Message(message) => Some(message),
            Delivery::Gap(_) => None,
        }
    }
}

/// A delivered message that owns what it shows, so that it can be kept and sent on. The payload is shared, not copied.
#[derive(Clone, PartialEq, Eq)]
pub struct Received {
    pub(crate) id: EventId,
    pub(crate) time: Timestamp,
    pub(crate) tag: u8,
    pub(crate) matched: u32,
    pub(crate) keys: Keys,
    pub(crate) payload: Bytes,
    pub(crate) origin: Option<Arc<Origin>>,
}

impl Received {
    /// A message that was delivered once, put together again from what was kept of it: its id, and in `message` all the rest. All
    /// of its keys count as matched; one without a time gets that of the epoch.
    pub fn restored(id: EventId, message: Message) -> Self {
        let Message { keys, payload, time, tag, origin } = message;
        Received { id, time: time.unwrap_or(Timestamp(0)), tag, matched: u32::MAX, keys, payload, origin }
    }

    /// The place of the message in the broker's order.
    pub fn offset(&self) -> Offset {
        self.id.offset
    }

    /// The name of the message.
    pub fn id(&self) -> EventId {
        self.id
    }

    /// When it was taken in.
    pub fn time(&self) -> Timestamp {
        self.time
    }

    /// The publisher's tag; see [`Message::with_tag`].
    pub fn tag(&self) -> u8 {
        self.tag
    }

    /// The identity that it brought from elsewhere.
    pub fn origin(&self) -> Option<&Origin> {
        self.origin.as_deref()
    }

    /// All its keys, in order.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &[u8]> + Clone {
        self.keys.iter()
    }

    /// The keys that matched this subscription, in order; at least one.
    pub fn matched_keys(&self) -> impl Iterator<Item = &[u8]> + Clone {
        MatchedKeys::new(KeyIter::of(&self.keys), self.matched)
    }

    /// The payload.
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// What it counts against limits in bytes: its keys and its payload.
    #[cfg(feature = "journal")]
    pub(crate) fn counted_bytes(&self) -> usize {
        self.keys.bytes.len() + self.payload.len()
    }

    /// The payload, without the rest.
    pub fn into_payload(self) -> Bytes {
        self.payload
    }
}

impl fmt::Debug for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Received")
            .field("id", &format_args!("{}", self.id))
            .field("keys", &ShowKeys(&self.keys))
            .field("payload_bytes", &self.payload.len())
            .finish()
    }
}

struct ShowKeys<'a>(&'a Keys);

impl fmt::Debug for ShowKeys<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(String::from_utf8_lossy)).finish()
    }
}
