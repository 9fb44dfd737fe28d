//! What was published and is not acknowledged yet. Only two sides know of it: the sender, which adds, and the receipts, which take out.

use std::collections::VecDeque;

use async_nats::Subject;

use crate::delivery::Ticket;

/// The letters in flight, in the order of their tickets. Acknowledgements come nearly in that order.
#[derive(Debug, Default)]
pub(super) struct Sent {
    letters: VecDeque<Flying>,
}

#[derive(Debug)]
struct Flying {
    ticket: Ticket,
    /// None once it is acknowledged.
    subject: Option<Subject>,
    /// Whether it was a dead letter before.
    replayed: bool,
}

impl Sent {
    /// Adds one; its ticket is the greatest so far.
    pub(super) fn add(&mut self, ticket: Ticket, subject: Subject, replayed: bool) {
        self.letters.push_back(Flying { ticket, subject: Some(subject), replayed });
    }

    /// Takes one out: its subject, if it is in flight.
    pub(super) fn take(&mut self, ticket: Ticket) -> Option<Subject> {
        let at = self.letters.binary_search_by_key(&ticket, |letter| letter.ticket).ok()?;
        let subject = self.letters[at].subject.take();
        while self.letters.front().is_some_and(|letter| letter.subject.is_none()) {
            self.letters.pop_front();
        }
        subject
    }

    /// Takes out all that went to this subject; tells of each whether it was a dead letter before.
    pub(super) fn take_subject(&mut self, subject: &str) -> Vec<(Ticket, bool)> {
        let there = self.letters.iter().filter(|letter| letter.subject.as_deref() == Some(subject));
        let taken: Vec<_> = there.map(|letter| (letter.ticket, letter.replayed)).collect();
        for (ticket, _) in &taken {
            self.take(*ticket);
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_taken_out_once() {
        let mut sent = Sent::default();
        for (ticket, subject) in [(1, "a"), (3, "b"), (4, "a"), (9, "c")] {
            sent.add(Ticket(ticket), subject.into(), ticket == 4);
        }
        assert_eq!(sent.take(Ticket(3)).as_deref(), Some("b"));
        assert_eq!(sent.take(Ticket(3)), None);
        assert_eq!(sent.take(Ticket(2)), None);
        assert_eq!(sent.take_subject("a"), [(Ticket(1), false), (Ticket(4), true)]);
        assert_eq!(sent.take_subject("a"), []);
        assert_eq!(sent.take(Ticket(9)).as_deref(), Some("c"));
        assert!(sent.letters.is_empty());
    }
}
