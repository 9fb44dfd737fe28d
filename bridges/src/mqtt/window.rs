//! What is on its way to the server at QoS 1: packet ids, and the letters that they belong to.

use std::collections::VecDeque;

use crate::delivery::{Receipt, Rejection, Ticket};

/// The packet ids in use. A letter has one, or two where the state of its object is kept besides; it is confirmed when
/// the server has both.
///
/// Ids are given out anew in the order in which they come free. Memory grows to the most that was ever in flight at a time,
/// which the server's receive maximum bounds.
#[derive(Debug)]
pub(super) struct Window {
    /// How many ids may be in use.
    size: u16,
    in_use: u16,
    /// Who uses an id; id 1 is at 0.
    ids: Vec<Use>,
    free_ids: VecDeque<u16>,
    letters: Vec<Pending>,
    free_letters: Vec<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Nothing,
    /// Our own status, which nobody waits for.
    Status,
    Letter {
        index: LetterIndex,
        message: Message,
    },
}

/// Which of a letter's messages one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// The event itself.
    Event,
    /// The state of its object.
    State,
}

/// A letter that is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LetterIndex(u32);

#[derive(Debug)]
struct Pending {
    ticket: Ticket,
    /// How many of its messages are not acknowledged.
    left: u8,
    /// What was wrong with the first that was refused.
    rejection: Option<Rejection>,
}

/// What an acknowledgement was for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Acknowledged {
    /// A letter, which isn't confirmed before its other message is.
    Half,
    /// A letter.
    Letter(Receipt),
    /// Our status, and what the server had against it.
    Status(Option<Rejection>),
    /// Nothing that is on its way: the server is wrong.
    Nothing,
}

impl Window {
    pub(super) fn new(size: u16) -> Self {
        Window {
            size: size.max(1),
            in_use: 0,
            ids: Vec::new(),
            free_ids: VecDeque::new(),
            letters: Vec::new(),
            free_letters: Vec::new(),
        }
    }

    /// Whether no more may be sent before something is acknowledged.
    pub(super) fn is_full(&self) -> bool {
        self.in_use >= self.size
    }

    /// A letter that is going to be sent as this many messages.
    pub(super) fn letter(&mut self, ticket: Ticket, messages: u8) -> LetterIndex {
        let pending = Pending { ticket, left: messages, rejection: None };
        if let Some(free) = self.free_letters.pop() {
            self.letters[free as usize] = pending;
            return LetterIndex(free);
        }
        self.letters.push(pending);
        LetterIndex(u32::try_from(self.letters.len() - 1).expect("there are not more letters than packet ids"))
    }

    /// A packet id for a message of this letter. The window must not be full.
    pub(super) fn take_for(&mut self, index: LetterIndex, message: Message) -> u16 {
        self.take(Use::Letter { index, message })
    }

    /// A packet id for our status. The window must not be full.
    pub(super) fn take_for_status(&mut self) -> u16 {
        self.take(Use::Status)
    }

    fn take(&mut self, used: Use) -> u16 {
        debug_assert!(!self.is_full(), "the caller has waited for room");
        self.in_use += 1;
        if let Some(id) = self.free_ids.pop_front() {
            self.ids[usize::from(id) - 1] = used;
            return id;
        }
        self.ids.push(used);
        u16::try_from(self.ids.len()).expect("the window has at most 65,535 ids")
    }

    /// What an acknowledgement is for. `rejection` is made where the server refused; it is asked only for what is on its way.
    pub(super) fn acknowledge(&mut self, id: u16, rejection: Option<Rejection>) -> Acknowledged {
        let Some(used) = usize::from(id).checked_sub(1).and_then(|at| self.ids.get_mut(at)) else {
            return Acknowledged::Nothing;
        };
        let used = std::mem::replace(used, Use::Nothing);
        if used == Use::Nothing {
            return Acknowledged::Nothing;
        }
        self.in_use -= 1;
        self.free_ids.push_back(id);
        let Use::Letter { index: LetterIndex(index), message } = used else { return Acknowledged::Status(rejection) };
        let letter = &mut self.letters[index as usize];
        letter.left -= 1;
        if letter.rejection.is_none() {
            letter.rejection = match (message, rejection) {
                (Message::Event, rejection) => rejection,
                (Message::State, rejection) => rejection.map(of_state),
            };
        }
        if letter.left > 0 {
            return Acknowledged::Half;
        }
        self.free_letters.push(index);
        Acknowledged::Letter(match letter.rejection.take() {
            Some(rejection) => Receipt::Rejected(letter.ticket, rejection),
            None => Receipt::Confirmed(letter.ticket),
        })
    }
}

/// Says that it is not the event's own topic that was refused.
fn of_state(rejection: Rejection) -> Rejection {
    let told = |reason| format!("the topic of its object's state (retain_state): {reason}");
    match rejection {
        Rejection::Transient(reason) => Rejection::Transient(told(reason)),
        Rejection::Permanent(reason) => Rejection::Permanent(told(reason)),
    }
}

#[cfg(test)]
mod tests {
    use super::Message::{Event, State};
    use super::*;

    #[test]
    fn a_letter_of_two_messages_is_confirmed_with_the_second() {
        let mut window = Window::new(3);
        let status = window.take_for_status();
        let letter = window.letter(Ticket(7), 2);
        let (first, second) = (window.take_for(letter, Event), window.take_for(letter, State));
        assert!(window.is_full());
        assert_eq!([status, first, second], [1, 2, 3]);
        assert_eq!(window.acknowledge(second, None), Acknowledged::Half);
        assert_eq!(window.acknowledge(second, None), Acknowledged::Nothing, "it is free");
        assert_eq!(window.acknowledge(status, None), Acknowledged::Status(None));
        assert_eq!(window.acknowledge(first, None), Acknowledged::Letter(Receipt::Confirmed(Ticket(7))));
        for wrong in [0, 1, 4, 65_535] {
            assert_eq!(window.acknowledge(wrong, None), Acknowledged::Nothing);
        }
        let letter = window.letter(Ticket(8), 1);
        assert_eq!(window.take_for(letter, Event), second, "the one that came free first");
    }

    #[test]
    fn a_letter_is_refused_when_either_of_its_messages_is() {
        for refused in [0, 1] {
            let mut window = Window::new(10);
            let letter = window.letter(Ticket(1), 2);
            let ids = [window.take_for(letter, Event), window.take_for(letter, State)];
            let no = Rejection::Permanent("no".into());
            let answer = |at| (at == refused).then(|| no.clone());
            assert_eq!(window.acknowledge(ids[0], answer(0)), Acknowledged::Half);
            let last = window.acknowledge(ids[1], answer(1));
            let Acknowledged::Letter(Receipt::Rejected(Ticket(1), Rejection::Permanent(why))) = last else {
                panic!("{last:?}")
            };
            assert_eq!(why.contains("retain_state"), refused == 1, "{why}");
        }
    }

    #[test]
    fn all_ids_can_be_in_use_and_are_used_again() {
        let mut window = Window::new(u16::MAX);
        for round in 0..2 {
            for ticket in 0..u64::from(u16::MAX) {
                let letter = window.letter(Ticket(ticket), 1);
                let id = window.take_for(letter, Event);
                assert_eq!(u64::from(id), ticket + 1, "round {round}");
            }
            assert!(window.is_full());
            for id in 1..=u16::MAX {
                assert!(matches!(window.acknowledge(id, None), Acknowledged::Letter(_)));
            }
        }
        assert_eq!(window.letters.len(), usize::from(u16::MAX));
    }
}
