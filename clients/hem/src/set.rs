//! A [`HookSet`]: hooks, and which of them an event makes run.
//!
//! The broker matches by prefix and hooks are exact, so matching has two steps. [`HookSet::prefixes`] is what to subscribe to; then each
//! message that comes is looked up here, by the header of its event. For messages from OpenNebula that is the header inside the payload,
//! not the key: what the owner of a machine puts into its template can neither start a hook nor hide from it.
//!
//! Every look-up is by hash, so thousands of hooks cost an event nothing. Prefixes of `event` hooks are looked up once for each
//! length that occurs.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use hookbus_bridges::ganeti::Phase;
use hookbus_bridges::opennebula::{Event, Kind};

use crate::hook::{GANETI_KEY_START, Hook, Operations, RESULT_KEY_START, States, Trigger};

/// Places in the list of hooks, in its order.
type Places = Vec<usize>;

/// Hooks, each with a name of its own, ready to be looked up.
#[derive(Clone, Debug, Default)]
pub struct HookSet {
    hooks: Vec<Arc<Hook>>,
    by_name: HashMap<String, usize>,
    by_call: HashMap<Box<[u8]>, Places>,
    by_state: HashMap<Box<[u8]>, Places>,
    /// By operation of Ganeti and phase.
    by_operation: HashMap<(String, Phase), Places>,
    /// By length of the prefix, then by prefix.
    by_prefix: BTreeMap<usize, HashMap<Box<[u8]>, Places>>,
}

impl HookSet {
    /// A set of these. Of hooks with the same name the first counts.
    pub fn new(hooks: impl IntoIterator<Item = Hook>) -> Self {
        let mut set = HookSet::default();
        for hook in hooks {
            let place = set.hooks.len();
            match set.by_name.entry(hook.name.clone()) {
                Entry::Vacant(name) => name.insert(place),
                Entry::Occupied(_) => continue,
            };
            match &hook.trigger {
                Trigger::Api { call, .. } => set.by_call.entry(call.as_bytes().into()).or_default().push(place),
                Trigger::State { object, state, lcm_state } => {
                    for state in found_under(state) {
                        for lcm_state in found_under(lcm_state) {
                            let key = state_key(object.name().as_bytes(), state, lcm_state);
                            set.by_state.entry(key).or_default().push(place);
                        }
                    }
                }
                Trigger::Ganeti { operations, phases, .. } => {
                    let names = match operations {
                        Operations::Any => &[ANY_OPERATION.to_owned()][..],
                        Operations::OneOf(names) => names,
                    };
                    for name in names {
                        for &phase in phases {
                            set.by_operation.entry((name.clone(), phase)).or_default().push(place);
                        }
                    }
                }
                Trigger::Event { prefix } => {
                    let same_length = set.by_prefix.entry(prefix.len()).or_default();
                    same_length.entry(prefix.as_bytes().into()).or_default().push(place);
                }
            }
            set.hooks.push(Arc::new(hook));
        }
        set
    }

    /// The hooks, in the order in which they were given.
    pub fn hooks(&self) -> &[Arc<Hook>] {
        &self.hooks
    }

    /// The hook of that name.
    pub fn named(&self, name: &str) -> Option<&Arc<Hook>> {
        self.by_name.get(name).map(|&place| &self.hooks[place])
    }

    /// What to subscribe to for them.
    pub fn prefixes(&self) -> BTreeSet<Vec<u8>> {
        self.hooks.iter().flat_map(|hook| hook.trigger.subscription_prefixes()).collect()
    }

    /// The hooks that a message makes run, in the order of the set. `event` is its header, where it is one of OpenNebula.
    pub(crate) fn matching<'k>(
        &self,
        keys: impl IntoIterator<Item = &'k [u8]>,
        event: Option<&Event<'_>>,
    ) -> Vec<Arc<Hook>> {
        let mut places: BTreeSet<usize> = BTreeSet::new();
        if let Some(event) = event {
            match event.kind {
                Kind::Api => {
                    let found = self.by_call.get(event.call).into_iter().flatten().copied();
                    places.extend(found.filter(|&place| match &self.hooks[place].trigger {
                        Trigger::Api { outcome, .. } => outcome.includes(event.result),
                        _ => false,
                    }));
                }
                Kind::State => {
                    for state in [event.state, ANY] {
                        for lcm_state in [event.lcm_state, ANY] {
                            let found = self.by_state.get(&state_key(event.object, state, lcm_state));
                            places.extend(found.into_iter().flatten());
                        }
                    }
                }
                Kind::Other => {}
            }
        }
        for key in keys {
            if key.starts_with(RESULT_KEY_START.as_bytes()) {
                // A hook that ran because of its own result would never end.
                return Vec::new();
            }
            if let Some((operation, phase)) = operation(key).filter(|_| !self.by_operation.is_empty()) {
                for name in [operation, ANY_OPERATION.to_owned()] {
                    places.extend(self.by_operation.get(&(name, phase)).into_iter().flatten());
                }
            }
            for (&length, prefixes) in self.by_prefix.range(..=key.len()) {
                places.extend(prefixes.get(&key[..length]).into_iter().flatten());
            }
        }
        places.into_iter().map(|place| Arc::clone(&self.hooks[place])).collect()
    }
}

/// What stands for any state in the table; oned has no such state, and an event that claims one finds what any state finds.
const ANY: &[u8] = b"*";

/// The same for operations.
const ANY_OPERATION: &str = "*";

/// The operation and the phase that a key tells: `EVENT GANETI INSTANCE/instance-start/post/web1 `.
fn operation(key: &[u8]) -> Option<(String, Phase)> {
    let rest = key.strip_prefix(GANETI_KEY_START.as_bytes())?;
    let mut parts = rest.split(|&byte| byte == b'/').skip(1);
    let (path, phase) = (parts.next()?, parts.next()?);
    let phase = [Phase::Pre, Phase::Post].into_iter().find(|known| known.name().as_bytes() == phase)?;
    Some((String::from_utf8(path.to_vec()).ok()?, phase))
}

/// What states are found under.
fn found_under(states: &States) -> impl Iterator<Item = &[u8]> {
    let any = states.names().is_none().then_some(ANY);
    states.names().into_iter().flatten().map(String::as_bytes).chain(any)
}

/// NUL can't be in the names of states, so that two different states never have the same key.
fn state_key(object: &[u8], state: &[u8], lcm_state: &[u8]) -> Box<[u8]> {
    [object, state, lcm_state].join(&0).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hook::{Object, Origin};

    fn hook(name: &str, trigger: Trigger) -> Hook {
        Hook::new(name, trigger, "x", Origin::Program)
    }

    fn event(name: &str, prefix: &str) -> Hook {
        hook(name, Trigger::Event { prefix: prefix.into() })
    }

    fn names(hooks: &[Arc<Hook>]) -> Vec<&str> {
        hooks.iter().map(|hook| hook.name.as_str()).collect()
    }

    #[test]
    fn prefixes_of_every_length_are_found_once_and_in_order() {
        let set = HookSet::new([
            event("long", "app deploy 7 "),
            event("none", "apq"),
            event("short", "a"),
            event("same", "a"),
        ]);
        let found = |keys: &[&str]| set.matching(keys.iter().map(|key| key.as_bytes()), None);
        assert_eq!(names(&found(&["app deploy 7 ok", "a"])), ["long", "short", "same"]);
        assert_eq!(names(&found(&["a"])), ["short", "same"]);
        assert_eq!(names(&found(&["", "b"])), [""; 0]);
        assert_eq!(names(&found(&["HOOKBUS HOOK x/success ", "a"])), [""; 0]);
        assert_eq!(set.prefixes().len(), 3);
    }

    #[test]
    fn of_a_name_the_first_counts() {
        let set = HookSet::new([event("a", "1"), event("a", "2")]);
        assert_eq!(set.hooks().len(), 1);
        assert_eq!(set.prefixes(), BTreeSet::from([b"1".to_vec()]));
    }

    /// Objects and states that read alike when they are joined are told apart.
    #[test]
    fn states_are_looked_up_exactly() {
        let state = |object, state: &str, lcm_state: &str| Trigger::State {
            object,
            state: States::one(state),
            lcm_state: States::one(lcm_state),
        };
        let mut hooks: Vec<Hook> =
            (0..5000).map(|i| hook(&format!("{i}"), state(Object::Vm, "ACTIVE", &format!("S{i}")))).collect();
        hooks.push(hook("host", state(Object::Host, "ACTIVE", "")));
        let set = HookSet::new(hooks);
        let found = |object: &'static str, state: &'static str, lcm_state: &'static str| {
            let event = Event {
                kind: Kind::State,
                call: b"",
                result: b"",
                object: object.as_bytes(),
                id: b"7",
                state: state.as_bytes(),
                lcm_state: lcm_state.as_bytes(),
                service_id: None,
                remote_host: b"",
                xml: b"",
            };
            set.matching([], Some(&event))
        };
        assert_eq!(names(&found("VM", "ACTIVE", "S4999")), ["4999"]);
        assert_eq!(names(&found("HOST", "ACTIVE", "")), ["host"]);
        for (object, state, lcm_state) in
            [("VM", "ACTIVE", "S5000"), ("VM", "ACTIVE", ""), ("VM", "ACTIVES", "1"), ("NET", "ACTIVE", "S1")]
        {
            assert_eq!(names(&found(object, state, lcm_state)), [""; 0]);
        }
    }
}
