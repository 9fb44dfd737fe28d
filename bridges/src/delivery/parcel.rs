//! What a bridge's ledger holds of an event.

use hookbus_broker::Received;

use super::bus::Limits;
use super::letter::{Letter, LetterWriter, Unwritable};

/// An event with its letter, if there can be one.
#[derive(Debug)]
pub(super) struct Parcel {
    content: Content,
    /// What was dropped before it, and its letter tells.
    pub(super) dropped: Option<u64>,
    /// Where it is a dead letter that is sent again.
    pub(super) retry: Option<Retry>,
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly all are letters, and each would cost one more allocation")]
enum Content {
    Letter(Letter),
    Event(Box<Received>),
}

/// A dead letter that is sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Retry {
    /// Its number in the store.
    pub(super) number: u64,
    /// Which retry of it this is.
    pub(super) replay: u64,
}

impl Parcel {
    /// Writes the letter of an event. Where there can't be one, says why, beside a parcel without one.
    pub(super) fn pack(
        writer: &LetterWriter,
        event: Received,
        dropped: Option<u64>,
        retry: Option<Retry>,
        limits: Limits,
    ) -> Result<Self, Box<(Self, Unwritable)>> {
        match writer.write(event, dropped, retry.map(|retry| retry.replay), limits) {
            Ok(letter) => Ok(Parcel { content: Content::Letter(letter), dropped, retry }),
            Err(unwritten) => {
                let content = Content::Event(Box::new(unwritten.event));
                Err(Box::new((Parcel { content, dropped: None, retry }, unwritten.reason)))
            }
        }
    }

    pub(super) fn letter(&self) -> Option<&Letter> {
        match &self.content {
            Content::Letter(letter) => Some(letter),
            Content::Event(_) => None,
        }
    }

    pub(super) fn event(&self) -> &Received {
        match &self.content {
            Content::Letter(letter) => &letter.event,
            Content::Event(event) => event,
        }
    }

    /// What its letter counts against a bus's limit.
    pub(super) fn size_bytes(&self) -> usize {
        self.letter().map_or(0, Letter::size_bytes)
    }

    pub(super) fn is_without_data(&self) -> bool {
        self.letter().is_some_and(|letter| letter.omitted.is_some())
    }

    /// What it holds in memory, about.
    pub(super) fn memory_bytes(&self) -> usize {
        match &self.content {
            Content::Letter(letter) => letter.memory_bytes(),
            Content::Event(event) => size_of::<Received>() + event.payload().len(),
        }
    }
}
