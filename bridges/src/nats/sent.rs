//! What was published and is not acknowledged yet. Only two sides know of it: the sender, which adds, and the receipts, which take out.

use std::collections::VecDeque;

use async_nats::Subject;

use crate::delivery::Ticket;

/// The letters in flight, in the order of their tickets. Acknowledgements come nearly in that order.
#[derive(Debug, Default)]
pub(super) struct Sent {
    letters: VecDeque<(Ticket, Option<Subject>)>,
}

impl Sent {
    /// Adds one; its ticket is the greatest so far.
    pub(super) fn add(&mut self, ticket: Ticket, subject: Subject) {
        self.letters.push_back((ticket, Some(subject)));
    }

    /// Takes one out: its subject, if it is in flight.
    pub(super) fn take(&mut self, ticket: Ticket) -> Option<Subject> {
        let at = self.letters.binary_search_by_key(&ticket, |(ticket, _)| *ticket).ok()?;
        let subject = self.letters[at].1.take();
        while matches!(self.letters.front(), Some((_, None))) {
            self.letters.pop_front();
        }
        subject
    }

    /// Takes out all that went to this subject.
    pub(super) fn take_subject(&mut self, subject: &str) -> Vec<Ticket> {
        let tickets: Vec<Ticket> =
            self.letters.iter().filter(|(_, of)| of.as_deref() == Some(subject)).map(|(ticket, _)| *ticket).collect();
        for ticket in &tickets {
            self.take(*ticket);
        }
        tickets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_taken_out_once() {
        let mut sent = Sent::default();
        for (ticket, subject) in [(1, "a"), (3, "b"), (4, "a"), (9, "c")] {
            sent.add(Ticket(ticket), subject.into());
        }
        assert_eq!(sent.take(Ticket(3)).as_deref(), Some("b"));
        assert_eq!(sent.take(Ticket(3)), None);
        assert_eq!(sent.take(Ticket(2)), None);
        assert_eq!(sent.take_subject("a"), [Ticket(1), Ticket(4)]);
        assert_eq!(sent.take_subject("a"), []);
        assert_eq!(sent.take(Ticket(9)).as_deref(), Some("c"));
        assert!(sent.letters.is_empty());
    }
}
