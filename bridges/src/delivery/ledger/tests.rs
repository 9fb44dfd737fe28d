//! The ledger against a bus that does whatever it likes.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;

fn ledger(letters: usize) -> Ledger<u64> {
    Ledger::new(Window { letters, bytes: 1000, ack_timeout: Duration::from_secs(30) })
}

fn push(ledger: &mut Ledger<u64>, offsets: std::ops::RangeInclusive<u64>) {
    for offset in offsets {
        ledger.push(Some(Offset::new(offset)), offset, 1);
    }
}

/// Sends all that may be sent.
fn send(ledger: &mut Ledger<u64>, now: Instant) -> Vec<(Ticket, u64)> {
    std::iter::from_fn(|| ledger.send_next(now, usize::MAX)).collect()
}

fn values(sent: &[(Ticket, u64)]) -> Vec<u64> {
    sent.iter().map(|(_, value)| *value).collect()
}

fn cursor(ledger: &mut Ledger<u64>) -> Option<u64> {
    ledger.take_cursor().map(Offset::get)
}

#[test]
fn the_cursor_moves_over_what_is_confirmed_without_a_hole() {
    let (mut ledger, now) = (ledger(10), Instant::now());
    push(&mut ledger, 5..=8);
    let sent = send(&mut ledger, now);
    assert_eq!(values(&sent), [5, 6, 7, 8]);
    assert_eq!(ledger.confirm(sent[1].0), Some(6));
    assert_eq!(cursor(&mut ledger), None);
    assert_eq!(ledger.confirm(sent[0].0), Some(5));
    assert_eq!(cursor(&mut ledger), Some(7));
    assert_eq!(cursor(&mut ledger), None, "it is told once");
    assert_eq!(ledger.confirm(sent[0].0), None, "a receipt counts once");
    assert_eq!(ledger.confirm(Ticket(999)), None);
    assert_eq!((ledger.len(), ledger.in_flight(), ledger.bytes(), ledger.oldest()), (2, 2, 2, Some(&7)));
}

#[test]
fn a_lost_connection_sends_everything_again_in_order() {
    let (mut ledger, now) = (ledger(10), Instant::now());
    push(&mut ledger, 1..=4);
    let first = send(&mut ledger, now);
    ledger.confirm(first[2].0);
    ledger.lost();
    assert_eq!((ledger.in_flight(), ledger.waiting()), (0, 3));
    push(&mut ledger, 5..=5);
    let second = send(&mut ledger, now);
    assert_eq!(values(&second), [1, 2, 4, 5]);
    assert!(second[0].0 > first[3].0, "tickets only grow");
    assert_eq!(ledger.confirm(first[0].0), None, "a receipt of the lost connection means nothing");
    assert_eq!(ledger.attempts(second[0].0), Some(2));
    for (ticket, _) in second {
        ledger.confirm(ticket);
    }
    assert_eq!((cursor(&mut ledger), ledger.is_empty()), (Some(6), true));
}

#[test]
fn a_letter_that_is_refused_for_now_holds_up_the_line() {
    let (mut ledger, now) = (ledger(10), Instant::now());
    push(&mut ledger, 1..=3);
    let sent = send(&mut ledger, now);
    let later = now + Duration::from_secs(1);
    assert!(ledger.refuse(sent[1].0, |refusals| {
        assert_eq!(refusals, 1);
        later
    }));
    assert!(!ledger.refuse(sent[1].0, |_| later));
    push(&mut ledger, 4..=5);
    assert_eq!((ledger.send_next(now, 99), ledger.retry_at()), (None, Some(later)));
    // An earlier one is refused, too: that one is tried first.
    assert!(ledger.refuse(sent[0].0, |_| later));
    let again = send(&mut ledger, later);
    assert_eq!(values(&again), [1], "nothing else until it is told of");
    assert_eq!(ledger.retry_at(), None);
    assert!(ledger.refuse(again[0].0, |refusals| now + Duration::from_secs(1 + u64::from(refusals))));
    assert_eq!((ledger.send_next(later, 99), ledger.retry_at()), (None, Some(now + Duration::from_secs(3))));
    let again = send(&mut ledger, now + Duration::from_secs(3));
    assert_eq!(values(&again), [1]);
    ledger.confirm(again[0].0);
    assert_eq!(values(&send(&mut ledger, now)), [2, 4, 5], "then everything in order");
}

#[test]
fn refused_for_good_is_passed_when_it_is_buried() {
    let (mut ledger, now) = (ledger(10), Instant::now());
    push(&mut ledger, 1..=2);
    let sent = send(&mut ledger, now);
    assert_eq!(ledger.condemn(sent[0].0, "no"), Some(&1));
    assert_eq!(ledger.condemn(sent[0].0, "no"), None);
    ledger.push_condemned(Some(Offset::new(3)), 3, 1, "too large");
    ledger.push_done(Some(Offset::new(4)));
    ledger.confirm(sent[1].0);
    assert_eq!(cursor(&mut ledger), None, "the line goes on, the cursor doesn't");
    let condemned = ledger.take_condemned(1);
    assert_eq!((condemned.len(), condemned[0].content, &*condemned[0].reason, condemned[0].attempts), (1, 1, "no", 1));
    ledger.not_buried(condemned[0].place);
    ledger.lost();
    assert_eq!(ledger.send_next(now, 99), None, "it is not sent again");
    let condemned = ledger.take_condemned(99);
    assert_eq!(condemned.iter().map(|letter| (letter.content, letter.attempts)).collect::<Vec<_>>(), [(3, 0), (1, 1)]);
    ledger.buried(condemned[1].place);
    assert_eq!(cursor(&mut ledger), Some(3));
    ledger.buried(condemned[0].place);
    assert_eq!((cursor(&mut ledger), ledger.is_empty(), ledger.bytes()), (Some(5), true, 0));
}

#[test]
fn a_condemned_letter_does_not_hold_up_the_line() {
    let (mut ledger, now) = (ledger(10), Instant::now());
    push(&mut ledger, 1..=2);
    let sent = send(&mut ledger, now);
    ledger.refuse(sent[0].0, |_| now);
    let again = send(&mut ledger, now);
    push(&mut ledger, 3..=3);
    ledger.condemn(again[0].0, "no");
    assert_eq!(values(&send(&mut ledger, now)), [3]);
}

#[test]
fn what_was_sent_first_is_due_first() {
    let (mut ledger, now) = (ledger(10), Instant::now());
    let at = |seconds| now + Duration::from_secs(seconds);
    assert_eq!(ledger.ack_deadline(), None);
    push(&mut ledger, 1..=2);
    let one = ledger.send_next(at(0), 99).unwrap().0;
    let two = ledger.send_next(at(7), 99).unwrap().0;
    assert_eq!(ledger.ack_deadline(), Some(at(30)));
    ledger.confirm(one);
    assert_eq!(ledger.ack_deadline(), Some(at(37)));
    ledger.restart_clock(at(20));
    assert_eq!(ledger.ack_deadline(), Some(at(50)));
    ledger.confirm(two);
    assert_eq!(ledger.ack_deadline(), None);
}

#[test]
fn the_window_is_bounded_in_letters_and_bytes() {
    let now = Instant::now();
    let mut ledger = ledger(3);
    push(&mut ledger, 1..=3);
    assert!(!ledger.has_room());
    let sent = send(&mut ledger, now);
    ledger.confirm(sent[1].0);
    assert!(!ledger.has_room(), "what waits for one before it counts");
    ledger.confirm(sent[0].0);
    assert!(ledger.has_room());
    ledger.push(Some(Offset::new(4)), 4, 5000);
    assert!(!ledger.has_room(), "bytes");
    ledger.push(Some(Offset::new(5)), 5, 1);
    assert_eq!(ledger.send_next(now, 2).map(|(_, value)| value), Some(4));
    assert_eq!(ledger.send_next(now, 2), None, "no more in flight than the bus takes");
}

#[test]
fn letters_that_wait_can_be_revised() {
    let (mut ledger, now) = (ledger(10), Instant::now());
    push(&mut ledger, 1..=1);
    send(&mut ledger, now);
    push(&mut ledger, 2..=4);
    ledger.revise(|&value| match value {
        2 => Some(Ok((20, 10))),
        3 => Some(Err("too large".into())),
        _ => None,
    });
    assert_eq!((ledger.bytes(), ledger.waiting()), (13, 2));
    assert_eq!(values(&send(&mut ledger, now)), [20, 4]);
    assert_eq!(ledger.take_condemned(9)[0].content, 3);
}

/// What happens next.
#[derive(Clone, Debug)]
enum Step {
    Push(u8),
    Send(u8),
    /// The bus processes so many of the letters on their way, each by its own verdict.
    Process(Vec<Verdict>),
    /// So many receipts are read, chosen anywhere among those that are there.
    Receipts(Vec<prop::sample::Index>),
    /// The connection is lost: so many letters on their way still arrive, and no receipt does.
    Lose(u8),
    /// Letters are buried, or can't be.
    Bury(u8, bool),
    Wait(u8),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Verdict {
    Confirm,
    Busy,
    Refuse,
    Mute,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let verdict = prop_oneof![
        8 => Just(Verdict::Confirm), 2 => Just(Verdict::Busy), 1 => Just(Verdict::Refuse), 1 => Just(Verdict::Mute)
    ];
    let step = prop_oneof![
        4 => (1u8..6).prop_map(Step::Push),
        4 => (1u8..9).prop_map(Step::Send),
        4 => prop::collection::vec(verdict, 1..6).prop_map(Step::Process),
        4 => prop::collection::vec(any::<prop::sample::Index>(), 1..6).prop_map(Step::Receipts),
        1 => (0u8..4).prop_map(Step::Lose),
        1 => (1u8..4, any::<bool>()).prop_map(|(count, works)| Step::Bury(count, works)),
        2 => (1u8..20).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 1..120)
}

/// The bus, and what must be true of it.
struct Model {
    ledger: Ledger<u64>,
    now: Instant,
    next: u64,
    /// On their way to the bus, in order.
    wire: VecDeque<(Ticket, u64)>,
    receipts: Vec<(Ticket, u64, Verdict)>,
    arrived: Vec<u64>,
    first: HashSet<u64>,
    confirmed: HashSet<u64>,
    buried: HashSet<u64>,
    /// For each letter what was sent before its refusal was known: only that may overtake it.
    may_overtake: HashMap<u64, HashSet<u64>>,
    sent: HashSet<u64>,
    last_ticket: u64,
    cursor: u64,
}

const WINDOW: usize = 8;

impl Model {
    fn new() -> Self {
        Model {
            ledger: ledger(WINDOW),
            now: Instant::now(),
            next: 1,
            wire: VecDeque::new(),
            receipts: Vec::new(),
            arrived: Vec::new(),
            first: HashSet::new(),
            confirmed: HashSet::new(),
            buried: HashSet::new(),
            may_overtake: HashMap::new(),
            sent: HashSet::new(),
            last_ticket: 0,
            cursor: 1,
        }
    }

    fn arrive(&mut self, value: u64) {
        self.arrived.push(value);
        if self.first.insert(value) {
            for late in 1..value {
                if !self.first.contains(&late) && !self.buried.contains(&late) {
                    let allowed = self.may_overtake.get(&late).is_some_and(|allowed| allowed.contains(&value));
                    let condemned = !self.ledger.entry_is_alive(late);
                    assert!(allowed || condemned, "{value} arrives before {late} for the first time");
                }
            }
        }
    }

    /// What was sent so far, and nothing else, may overtake this one.
    fn let_overtake(&mut self, value: u64) {
        let behind = self.sent.iter().copied().filter(|&other| other > value);
        self.may_overtake.entry(value).or_default().extend(behind);
    }

    fn process(&mut self, verdict: Verdict) {
        let Some((ticket, value)) = self.wire.pop_front() else { return };
        match verdict {
            Verdict::Confirm | Verdict::Mute => self.arrive(value),
            // From here on it is late, and what is on its way behind it may be faster.
            Verdict::Busy => self.let_overtake(value),
            // A verdict for good counts from now on.
            Verdict::Refuse => drop(self.buried.insert(value)),
        }
        if verdict != Verdict::Mute {
            self.receipts.push((ticket, value, verdict));
        }
    }

    fn receipt(&mut self, at: usize) {
        let (ticket, value, verdict) = self.receipts.remove(at);
        match verdict {
            Verdict::Confirm => {
                assert_eq!(self.ledger.confirm(ticket), Some(value));
                self.confirmed.insert(value);
            }
            Verdict::Busy => {
                // What was sent until this was known may overtake it, too.
                self.let_overtake(value);
                let at = self.now + Duration::from_secs(5);
                assert!(self.ledger.refuse(ticket, |_| at));
            }
            Verdict::Refuse => assert_eq!(self.ledger.condemn(ticket, "no").copied(), Some(value)),
            Verdict::Mute => unreachable!(),
        }
        // A second time it means nothing.
        assert_eq!(self.ledger.confirm(ticket), None);
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Push(count) => {
                for _ in 0..count {
                    if self.ledger.has_room() {
                        self.ledger.push(Some(Offset::new(self.next)), self.next, 1);
                        self.next += 1;
                    }
                }
            }
            Step::Send(count) => {
                for _ in 0..count {
                    let Some((ticket, value)) = self.ledger.send_next(self.now, 6) else { break };
                    assert!(ticket.0 > self.last_ticket);
                    self.last_ticket = ticket.0;
                    assert!(!self.confirmed.contains(&value), "what is confirmed is not sent again");
                    self.sent.insert(value);
                    for (_, unheard, _) in self.receipts.iter().filter(|receipt| receipt.2 != Verdict::Confirm) {
                        self.may_overtake.entry(*unheard).or_default().insert(value);
                    }
                    self.wire.push_back((ticket, value));
                }
            }
            Step::Process(verdicts) => verdicts.into_iter().for_each(|verdict| self.process(verdict)),
            Step::Receipts(which) => {
                for index in which {
                    if !self.receipts.is_empty() {
                        let at = index.index(self.receipts.len());
                        self.receipt(at);
                    }
                }
            }
            Step::Lose(arriving) => {
                for _ in 0..arriving {
                    self.process(Verdict::Mute);
                }
                // What the bus has refused and nobody has heard of is sent again, and may be taken then.
                for (_, value, verdict) in std::mem::take(&mut self.receipts) {
                    if verdict == Verdict::Refuse {
                        self.buried.remove(&value);
                        self.let_overtake(value);
                    }
                }
                self.wire.clear();
                self.ledger.lost();
            }
            Step::Bury(count, works) => {
                for letter in self.ledger.take_condemned(count.into()) {
                    if works {
                        self.ledger.buried(letter.place);
                        self.confirmed.insert(letter.content);
                    } else {
                        self.ledger.not_buried(letter.place);
                    }
                }
            }
            Step::Wait(seconds) => self.now += Duration::from_secs(seconds.into()),
        }
        self.check();
    }

    fn check(&mut self) {
        if let Some(cursor) = self.ledger.take_cursor() {
            assert!(cursor.get() > self.cursor);
            for value in self.cursor..cursor.get() {
                assert!(self.confirmed.contains(&value), "the cursor is over {value}, which is not done");
            }
            self.cursor = cursor.get();
        }
        assert!(self.ledger.len() <= WINDOW);
        assert!(self.ledger.in_flight() <= 6);
        assert_eq!(self.cursor + self.ledger.len() as u64, self.next, "nothing is forgotten");
        let in_flight = self.ledger.sent.iter().filter(|sent| sent.open).count();
        assert_eq!(in_flight, self.ledger.in_flight());
        assert_eq!(self.ledger.ack_deadline().is_some(), in_flight > 0);
    }

    /// The bus is well again: everything is delivered.
    fn finish(&mut self) {
        self.step(Step::Lose(0));
        for _ in 0..200 {
            self.step(Step::Wait(10));
            self.step(Step::Send(20));
            self.step(Step::Process(vec![Verdict::Confirm; 20]));
            while !self.receipts.is_empty() {
                self.receipt(0);
            }
            self.step(Step::Bury(20, true));
        }
        assert!(self.ledger.is_empty());
        assert_eq!((self.cursor, self.ledger.bytes(), self.ledger.undone()), (self.next, 0, 0));
        for value in 1..self.next {
            assert!(self.first.contains(&value) || self.buried.contains(&value), "{value} is lost");
        }
    }
}

impl Ledger<u64> {
    /// Whether this offset is in the ledger, and not condemned or done.
    fn entry_is_alive(&self, offset: u64) -> bool {
        let alive = |entry: &Entry<u64>| matches!(entry.state, State::Waiting | State::InFlight);
        self.entries.iter().any(|entry| entry.offset == Some(Offset::new(offset)) && alive(entry))
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    /// Nothing is lost, the cursor is over nothing that is not done, the window holds, and by first arrivals the order is kept, but for
    /// what was on its way behind a letter that was refused for now.
    #[test]
    fn whatever_the_bus_does(steps in steps()) {
        let mut model = Model::new();
        for step in steps {
            model.step(step);
        }
        model.finish();
    }
}
