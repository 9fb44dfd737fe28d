//! What a configured subscriber does at its high-water mark, by the names of the contract.

use hookbus_broker::Overflow as Policy;
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
    /// The same for the broker. Where there is no journal, one that spills drops its oldest.
    pub(crate) const fn policy(self) -> Policy {
        match self {
            Overflow::DropNewest => Policy::DropNewest,
            Overflow::DropOldest => Policy::DropOldest,
            Overflow::Spill => Policy::Spill,
            Overflow::Block => Policy::Block,
            Overflow::Disconnect => Policy::Disconnect,
        }
    }
}
