//! The [`Schedule`]: runs that may not start yet, and what they wait for.
//!
//! ```text
//!            ORDER = object                CONCURRENCY
//! add ──▶ one run for an object ──▶ so many runs of a hook ──▶ ready, in the order of events ──▶ take
//! ```
//!
//! A run waits at each gate behind those that came before it, and no run waits for one that it has nothing to do with. A run that is to be
//! repeated leaves the gate of its hook and keeps that of its object, so that nothing overtakes it there.
//!
//! It holds what the dispatcher has taken from the broker, so the dispatcher asks [`is_full`](Schedule::is_full) before it takes more: from
//! there on, events wait in the broker, under the subscription's high-water mark.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, VecDeque};

/// How many runs may wait at gates.
const MOST_WAITING: usize = 1000;
/// What they may hold of events, in bytes; an event that several hold counts for each.
const MOST_BYTES: usize = 64 << 20;

/// Where a run has to wait for others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Gates {
    /// The object whose runs come one after the other, if this is one of them.
    pub(crate) object: Option<Box<str>>,
    /// The hook, and how many of its runs there may be at once, if there is a limit.
    pub(crate) hook: Option<(Box<str>, usize)>,
    /// What the run holds, in bytes.
    pub(crate) bytes: usize,
}

/// A run in its place.
#[derive(Debug)]
struct Waiting<T> {
    number: u64,
    gates: Gates,
    run: T,
}

/// A run that was taken; to be given back when it is over.
#[derive(Debug)]
pub(crate) struct Taken {
    number: u64,
    gates: Gates,
}

#[derive(Debug)]
pub(crate) struct Schedule<T> {
    next: u64,
    /// Objects that have a run behind their gate, and who waits before it.
    objects: HashMap<Box<str>, VecDeque<Waiting<T>>>,
    hooks: HashMap<Box<str>, HookGate<T>>,
    /// By number, and so in the order of events.
    ready: BTreeMap<u64, Waiting<T>>,
    waiting: usize,
    bytes: usize,
}

#[derive(Debug)]
struct HookGate<T> {
    passed: usize,
    queue: BTreeMap<u64, Waiting<T>>,
}

impl<T> Default for Schedule<T> {
    fn default() -> Self {
        Schedule {
            next: 0,
            objects: HashMap::new(),
            hooks: HashMap::new(),
            ready: BTreeMap::new(),
            waiting: 0,
            bytes: 0,
        }
    }
}

impl<T> Schedule<T> {
    /// Puts a run behind all that there are.
    pub(crate) fn add(&mut self, gates: Gates, run: T) {
        self.waiting += 1;
        self.bytes += gates.bytes;
        let waiting = Waiting { number: self.next, gates, run };
        self.next += 1;
        match waiting.gates.object.clone().map(|object| self.objects.entry(object)) {
            Some(Entry::Occupied(mut queue)) => queue.get_mut().push_back(waiting),
            Some(Entry::Vacant(entry)) => {
                entry.insert(VecDeque::new());
                self.pass_object(waiting);
            }
            None => self.pass_object(waiting),
        }
    }

    /// The first run that may start.
    pub(crate) fn take(&mut self) -> Option<(Taken, T)> {
        let (_, Waiting { number, gates, run }) = self.ready.pop_first()?;
        self.waiting -= 1;
        self.bytes -= gates.bytes;
        Some((Taken { number, gates }, run))
    }

    /// Says that a run is over.
    pub(crate) fn ended(&mut self, taken: Taken) {
        self.leave_hook(&taken.gates);
        self.leave_object(taken.gates);
    }

    /// Says that a run is over, but will come [again](Schedule::again).
    pub(crate) fn paused(&mut self, taken: &Taken) {
        self.leave_hook(&taken.gates);
    }

    /// Puts a run that was paused where it was.
    pub(crate) fn again(&mut self, taken: Taken, run: T) {
        self.waiting += 1;
        self.bytes += taken.gates.bytes;
        self.pass_object(Waiting { number: taken.number, gates: taken.gates, run });
    }

    /// Says that a run that was paused will not come again.
    pub(crate) fn given_up(&mut self, taken: Taken) {
        self.leave_object(taken.gates);
    }

    /// Whether no more should be added for now.
    pub(crate) fn is_full(&self) -> bool {
        // What is ready only waits for a place; more would only wait behind it.
        !self.ready.is_empty() || self.waiting >= MOST_WAITING || self.bytes >= MOST_BYTES
    }

    /// How many runs wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Takes out all that wait, in the order of events, whether they may start or not.
    pub(crate) fn drain(&mut self) -> Vec<T> {
        let hooks = self.hooks.drain().flat_map(|(_, gate)| gate.queue.into_values());
        let mut all: Vec<_> = std::mem::take(&mut self.ready).into_values().chain(hooks).collect();
        all.extend(self.objects.drain().flat_map(|(_, queue)| queue));
        all.sort_by_key(|waiting| waiting.number);
        (self.waiting, self.bytes) = (0, 0);
        all.into_iter().map(|waiting| waiting.run).collect()
    }

    fn pass_object(&mut self, waiting: Waiting<T>) {
        let Some((hook, most)) = &waiting.gates.hook else {
            self.ready.insert(waiting.number, waiting);
            return;
        };
        let gate = self.hooks.entry(hook.clone()).or_insert_with(|| HookGate { passed: 0, queue: BTreeMap::new() });
        if gate.passed < *most {
            gate.passed += 1;
            self.ready.insert(waiting.number, waiting);
        } else {
            gate.queue.insert(waiting.number, waiting);
        }
    }

    fn leave_hook(&mut self, gates: &Gates) {
        let Some((hook, most)) = &gates.hook else { return };
        let Some(gate) = self.hooks.get_mut(hook) else { return };
        gate.passed -= 1;
        // The limit may be another one by now.
        while gate.passed < *most
            && let Some((number, next)) = gate.queue.pop_first()
        {
            gate.passed += 1;
            self.ready.insert(number, next);
        }
        if gate.passed == 0 {
            self.hooks.remove(hook);
        }
    }

    fn leave_object(&mut self, gates: Gates) {
        let Some(object) = gates.object else { return };
        let Some(queue) = self.objects.get_mut(&object) else { return };
        match queue.pop_front() {
            Some(next) => self.pass_object(next),
            None => {
                self.objects.remove(&object);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn gates(object: Option<&str>, hook: Option<(&str, usize)>) -> Gates {
        Gates { object: object.map(Into::into), hook: hook.map(|(name, most)| (name.into(), most)), bytes: 1 }
    }

    fn taken(schedule: &mut Schedule<u32>) -> Vec<(Taken, u32)> {
        std::iter::from_fn(|| schedule.take()).collect()
    }

    fn numbers(taken: &[(Taken, u32)]) -> Vec<u32> {
        taken.iter().map(|(_, run)| *run).collect()
    }

    #[test]
    fn runs_for_an_object_wait_for_each_other_and_for_nobody_else() {
        let mut schedule = Schedule::default();
        for (object, run) in [(Some("VM/1"), 1), (Some("VM/1"), 2), (Some("VM/2"), 3), (None, 4), (Some("VM/1"), 5)] {
            schedule.add(gates(object, None), run);
        }
        let mut first = taken(&mut schedule);
        assert_eq!(numbers(&first), [1, 3, 4]);
        assert_eq!(schedule.waiting(), 2);
        schedule.ended(first.remove(0).0);
        let second = taken(&mut schedule);
        assert_eq!(numbers(&second), [2]);
        // One that is to come again lets nothing of its object pass.
        let (place, run) = second.into_iter().next().unwrap();
        schedule.paused(&place);
        assert!(taken(&mut schedule).is_empty());
        schedule.again(place, run);
        let again = taken(&mut schedule);
        assert_eq!(numbers(&again), [2]);
        schedule.ended(again.into_iter().next().unwrap().0);
        assert_eq!(numbers(&taken(&mut schedule)), [5]);
    }

    #[test]
    fn a_hook_has_so_many_runs_and_others_pass() {
        let mut schedule = Schedule::default();
        for run in 0..5 {
            schedule.add(gates(None, Some(("slow", 2))), run);
        }
        schedule.add(gates(None, None), 5);
        let mut running = taken(&mut schedule);
        assert_eq!(numbers(&running), [0, 1, 5]);
        assert!(!schedule.is_full());
        schedule.ended(running.remove(1).0);
        assert!(schedule.is_full(), "there is one that may start");
        assert_eq!(numbers(&taken(&mut schedule)), [2]);
        assert_eq!(schedule.drain(), [3, 4]);
        assert_eq!((schedule.waiting(), schedule.bytes), (0, 0));
    }

    proptest! {
        /// Whatever comes and goes: no gate lets too many through, order is kept where it is promised, and everything gets its turn.
        #[test]
        fn gates_hold(runs in vec((0..4usize, 0..3usize), 1..60), turns in vec(0..100usize, 0..200)) {
            let mut schedule = Schedule::default();
            let limits = [0, 1, 2];
            for (run, (object, hook)) in runs.iter().enumerate() {
                let object = (*object > 0).then(|| format!("VM/{object}"));
                let hook = (*hook > 0).then(|| (format!("h{hook}"), limits[*hook]));
                let hook = hook.as_ref().map(|(name, most)| (name.as_str(), *most));
                schedule.add(gates(object.as_deref(), hook), run as u32);
            }
            let (mut running, mut paused, mut done) = (Vec::<(Taken, u32)>::new(), Vec::<(Taken, u32)>::new(), Vec::new());
            let mut turns = turns.into_iter().chain(std::iter::repeat(4));
            while done.len() < runs.len() {
                running.extend(taken(&mut schedule));
                for (at, limit) in limits.iter().enumerate().skip(1) {
                    let now = running.iter().filter(|(_, run)| runs[*run as usize].1 == at).count();
                    prop_assert!(now <= *limit, "{now} runs of hook {at}");
                }
                for object in 1..4 {
                    let busy = running.iter().chain(&paused).filter(|(_, run)| runs[*run as usize].0 == object).count();
                    prop_assert!(busy <= 1);
                }
                let turn = turns.next().unwrap();
                match turn % 3 {
                    0 if !running.is_empty() => {
                        let (place, run) = running.remove(turn % running.len());
                        schedule.paused(&place);
                        paused.push((place, run));
                    }
                    _ if !paused.is_empty() => {
                        let (place, run) = paused.remove(turn % paused.len());
                        schedule.again(place, run);
                    }
                    _ if !running.is_empty() => {
                        let (place, run) = running.remove(turn % running.len());
                        schedule.ended(place);
                        done.push(run);
                    }
                    _ => prop_assert!(false, "nothing can go on, and {} of {} are done", done.len(), runs.len()),
                }
            }
            for object in 1..4 {
                let order: Vec<_> = done.iter().filter(|run| runs[**run as usize].0 == object).collect();
                prop_assert!(order.is_sorted(), "{order:?}");
            }
            prop_assert!(schedule.objects.is_empty() && schedule.hooks.is_empty() && schedule.waiting() == 0);
        }
    }
}
