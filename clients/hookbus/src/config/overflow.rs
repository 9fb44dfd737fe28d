//! What a configured subscriber does at its high-water mark, by the names of the contract.

use hookbus_broker::Overflow as InMemory;
use serde::{Deserialize, Serialize};

/// What happens to an event when a subscriber is at its high-water mark. Drops are counted and told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Overflow {
    /// It is dropped, and so are those that follow, until the subscriber has taken something.
    #[default]
    DropNewest,
    /// The oldest that wait make room.
    DropOldest,
    /// Who publishes waits, if it can; oned can't.
    Block,
    /// The subscriber goes on from the journal until it has caught up.
    Spill,
    /// The subscriber is disconnected.
    Disconnect,
}

impl Overflow {
    /// The policy of a queue. Where there is no journal, one that would spill drops its oldest.
    pub(crate) const fn in_memory(self) -> InMemory {
        match self {
            Overflow::DropNewest => InMemory::DropNewest,
            Overflow::DropOldest | Overflow::Spill => InMemory::DropOldest,
            Overflow::Block => InMemory::Block,
            Overflow::Disconnect => InMemory::Disconnect,
        }
    }
}
