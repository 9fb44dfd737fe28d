//! The name under which an event is published on a bus.

/// The parts of a name, root first, each percent-encoded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct EventName {
    /// The parts.
    pub parts: Vec<Box<str>>,
}
