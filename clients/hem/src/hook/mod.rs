//! A [`Hook`]: what runs, and what makes it run.
//!
//! A hook is written as a [`Template`](crate::template), with OpenNebula's attributes and their meaning:
//!
//! | attribute | meaning |
//! | --- | --- |
//! | `NAME` | what it is called; unique |
//! | `TYPE` | `api`, `state`; or `event` and `ganeti`, which only hookbus knows |
//! | `COMMAND` | the program, below the hooks' base path unless it begins with `/` |
//! | `ARGUMENTS` | its arguments; the words `$API` and `$TEMPLATE` become base64 of the call, of the object |
//! | `ARGUMENTS_STDIN` | `yes`: they go to its standard input |
//! | `TIMEOUT` | seconds after which it is ended; 0 is never |
//! | `REMOTE` | `state`: `yes` runs it over ssh on the host of the event |
//! | `CALL` | `api`: the call, such as `one.vm.allocate` |
//! | `RESOURCE` | `state`: `VM`, `HOST`, `IMAGE` or `NET` |
//! | `STATE`, `LCM_STATE` | `state`: the state; LCM_STATE for VM only. hookbus knows lists and `*`, too |
//! | `ON` | `state` and VM: a short name of both |
//!
//! and with some that only hookbus obeys, and that oned keeps untouched:
//!
//! | attribute | meaning |
//! | --- | --- |
//! | `PREFIX` | `event`: runs for every message of the bus one of whose keys begins with it |
//! | `OPERATION` | `ganeti`: the operation, such as `instance-migrate`, several with commas between, `instance-*` or `*` |
//! | `PHASE` | `ganeti`: `pre`, or `post`, which is the default; or both, with a comma between |
//! | `NODE` | `ganeti`: where it runs: on the `master`, which is the default, the `primary` node of the instance, its `secondaries`, or all nodes `involved` |
//! | `RESULT` | `api`: `success`, `failure`, or `any`, which is the default: for calls that did, that did not, or for both |
//! | `RETRIES` | how often a run that failed is repeated; 0 unless given |
//! | `RETRY_BACKOFF` | seconds before the first repetition, twice as many before each one after it, an hour at most; 10 unless given |
//! | `ORDER` | `object`: runs for one object come one after the other, in the order of events |
//! | `CONCURRENCY` | how many runs of this hook there may be at once |
//! | words in ARGUMENTS | `$ID`, `$NAME` and `$STATE` of the object, `$EVENT_JSON`; see `arguments.rs` |
//!
//! Other attributes are allowed in files and in hooks of oned, as oned allows them; one that looks like a slip of the pen is warned of. What
//! a later version will know is told. A hook that would run in another way than its template says isn't loaded at all. Who is there to
//! read what is wrong is told more strictly ([`Hook::check`]): `hookbus hook create` takes no attribute and no state that nobody knows.
//!
//! `read.rs` reads templates.

mod read;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use hookbus_bridges::ganeti::{OPERATIONS, Phase};
use serde::Serialize;

use self::read::Look;
use crate::problem::Problem;
use crate::template::{Template, Value};

/// The longest name of a hook, in characters; OpenNebula's limit.
pub const MAX_NAME_CHARS: usize = 128;

/// What the keys of messages that tell results of hooks begin with. They never make a hook run.
pub const RESULT_KEY_START: &str = "HOOKBUS HOOK ";

/// What keys of Ganeti's operations begin with.
pub(crate) const GANETI_KEY_START: &str = "EVENT GANETI ";

/// An object of OpenNebula whose states are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Object {
    /// A virtual machine.
    Vm,
    /// A host.
    Host,
    /// An image.
    Image,
    /// A virtual network.
    Net,
}

impl Object {
    /// The name in keys and templates.
    pub const fn name(self) -> &'static str {
        match self {
            Object::Vm => "VM",
            Object::Host => "HOST",
            Object::Image => "IMAGE",
            Object::Net => "NET",
        }
    }

    /// The name of its element in an event: that of a network isn't `NET`.
    pub const fn element(self) -> &'static str {
        match self {
            Object::Net => "VNET",
            other => other.name(),
        }
    }
}

impl FromStr for Object {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        [Object::Vm, Object::Host, Object::Image, Object::Net]
            .into_iter()
            .find(|object| object.name() == name)
            .ok_or(())
    }
}

/// Which calls of the API make a hook run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Outcome {
    /// All of them.
    #[default]
    Any,
    /// Those that succeeded.
    Success,
    /// Those that failed.
    Failure,
}

impl Outcome {
    /// The result that an event has to have, as in its header.
    fn result(self) -> Option<&'static str> {
        match self {
            Outcome::Any => None,
            Outcome::Success => Some("1"),
            Outcome::Failure => Some("0"),
        }
    }

    /// Whether a call with that result is meant.
    pub(crate) fn includes(self, result: &[u8]) -> bool {
        self.result().is_none_or(|wanted| wanted.as_bytes() == result)
    }
}

/// Which states of an object make a hook run.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum States {
    /// All of them.
    Any,
    /// These; never none.
    OneOf(Vec<String>),
}

impl States {
    /// The one state of that name.
    pub fn one(name: impl Into<String>) -> Self {
        States::OneOf(vec![name.into()])
    }

    /// Their names; nothing for all of them.
    pub(crate) fn names(&self) -> Option<&[String]> {
        match self {
            States::Any => None,
            States::OneOf(names) => Some(names),
        }
    }
}

impl fmt::Display for States {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            States::Any => f.write_str("*"),
            States::OneOf(names) => f.write_str(&names.join(",")),
        }
    }
}

/// What makes a hook run.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Trigger {
    /// A call of oned's API.
    Api {
        /// Its name, such as `one.vm.allocate`.
        call: String,
        /// How it has to end.
        outcome: Outcome,
    },
    /// An object has come into a state.
    State {
        /// What kind of object.
        object: Object,
        /// The state.
        state: States,
        /// What a machine is doing in it; the one empty name for other objects.
        lcm_state: States,
    },
    /// Any message of the bus one of whose keys begins like this.
    Event {
        /// The beginning; never empty.
        prefix: String,
    },
    /// An operation of a Ganeti cluster.
    Ganeti {
        /// Which.
        operations: Operations,
        /// Before it, after it, or both; never none.
        phases: Vec<Phase>,
        /// Where the hook runs.
        node: Place,
    },
}

/// Which operations of Ganeti make a hook run.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Operations {
    /// All of them.
    Any,
    /// These, by the names of their hook directories; never none.
    OneOf(Vec<String>),
}

/// On which nodes of a Ganeti cluster a hook runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Place {
    /// The master.
    #[default]
    Master,
    /// Where the instance runs.
    Primary,
    /// The other nodes that have its disks.
    Secondaries,
    /// All nodes that the operation names.
    Involved,
}

impl Place {
    /// All of them, with their names in templates.
    pub(crate) const ALL: [(&str, Place); 4] = [
        ("master", Place::Master),
        ("primary", Place::Primary),
        ("secondaries", Place::Secondaries),
        ("involved", Place::Involved),
    ];
}

impl Trigger {
    /// `api`, `state`, `event` or `ganeti`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Trigger::Api { .. } => "api",
            Trigger::State { .. } => "state",
            Trigger::Event { .. } => "event",
            Trigger::Ganeti { .. } => "ganeti",
        }
    }

    /// What to subscribe to. More may come than the trigger wants.
    pub(crate) fn subscription_prefixes(&self) -> Vec<Vec<u8>> {
        let prefixes = match self {
            Trigger::Api { call, outcome } => {
                vec![format!("EVENT API {call} {}", outcome.result().unwrap_or_default())]
            }
            Trigger::State { object, state, lcm_state } => {
                let object = format!("EVENT STATE {}/", object.name());
                match (state.names(), lcm_state.names()) {
                    (None, _) => vec![object],
                    (Some(states), None) => states.iter().map(|state| format!("{object}{state}/")).collect(),
                    (Some(states), Some(lcm)) => {
                        let pairs = states.iter().flat_map(|state| lcm.iter().map(move |lcm| (state, lcm)));
                        pairs.map(|(state, lcm)| format!("{object}{state}/{lcm}/")).collect()
                    }
                }
            }
            Trigger::Event { prefix } => vec![prefix.clone()],
            Trigger::Ganeti { operations: Operations::Any, .. } => vec![GANETI_KEY_START.to_owned()],
            Trigger::Ganeti { operations: Operations::OneOf(names), phases, .. } => {
                let object =
                    |name: &str| OPERATIONS.iter().find(|(known, _)| *known == name).map(|(_, object)| *object);
                let of = |name: &String| match object(name) {
                    Some(object) => {
                        phases.iter().map(|phase| format!("{GANETI_KEY_START}{object}/{name}/{phase}/")).collect()
                    }
                    // Of a Ganeti that is newer than this program: it may be about anything.
                    None => vec![GANETI_KEY_START.to_owned()],
                };
                names.iter().flat_map(of).collect()
            }
        };
        prefixes.into_iter().map(String::into_bytes).collect()
    }
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trigger::Api { call, outcome: Outcome::Any } => write!(f, "api {call}"),
            Trigger::Api { call, outcome: Outcome::Success } => write!(f, "api {call} success"),
            Trigger::Api { call, outcome: Outcome::Failure } => write!(f, "api {call} failure"),
            Trigger::State { object: Object::Vm, state, lcm_state } => write!(f, "state VM/{state}/{lcm_state}"),
            Trigger::State { object, state, .. } => write!(f, "state {}/{state}", object.name()),
            Trigger::Event { prefix } => write!(f, "event {prefix:?}"),
            Trigger::Ganeti { operations, phases, node } => {
                let phases: Vec<_> = phases.iter().map(|phase| phase.name()).collect();
                let operations = match operations {
                    Operations::Any => "*".to_owned(),
                    Operations::OneOf(names) => names.join(","),
                };
                write!(f, "ganeti {operations} {}", phases.join(","))?;
                match Place::ALL.iter().find(|(_, place)| place == node) {
                    Some((name, place)) if *place != Place::Master => write!(f, " on {name}"),
                    _ => Ok(()),
                }
            }
        }
    }
}

/// In which order the runs of a hook come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Order {
    /// They are started in the order of events, and run side by side.
    #[default]
    Started,
    /// Those for one object come one after the other, also where they are of several hooks with this order.
    Object,
}

/// Where a hook was defined.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// hookbus' own store, which knows the hook by this number.
    Store {
        /// The number.
        id: u64,
    },
    /// A template file.
    File(PathBuf),
    /// oned, which knows the hook by this number.
    Oned {
        /// The number.
        id: i64,
    },
    /// The program itself, as in tests.
    Program,
}

impl Origin {
    /// The file, if it is one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Origin::File(path) => Some(path),
            Origin::Store { .. } | Origin::Oned { .. } | Origin::Program => None,
        }
    }
}

/// A command, and what makes it run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// The name.
    pub name: String,
    /// What makes it run.
    pub trigger: Trigger,
    /// The command as written; may hold fixed arguments of its own.
    pub command: String,
    /// The arguments as written, with `$API` and `$TEMPLATE` in them.
    pub arguments: String,
    /// Whether the arguments go to standard input.
    pub arguments_stdin: bool,
    /// How long it may take.
    pub timeout: Option<Duration>,
    /// Whether it runs on the host of the event.
    pub remote: bool,
    /// How often a run that failed is repeated.
    pub retries: u32,
    /// How long after the first failure; twice as long after each one that follows.
    pub retry_backoff: Duration,
    /// In which order its runs come.
    pub order: Order,
    /// How many of them there may be at once; as many as there are places, if nothing is said. Never 0.
    pub concurrency: Option<usize>,
    /// Where it comes from.
    pub origin: Origin,
}

/// Between a failure and the first repetition, where nothing is said.
const RETRY_BACKOFF: Duration = Duration::from_secs(10);
/// The longest time between a failure and the next attempt.
const LONGEST_BACKOFF: Duration = Duration::from_secs(3600);

impl Hook {
    /// A hook without arguments, and with nothing else that need not be said.
    pub fn new(name: impl Into<String>, trigger: Trigger, command: impl Into<String>, origin: Origin) -> Self {
        Hook {
            name: name.into(),
            trigger,
            command: command.into(),
            arguments: String::new(),
            arguments_stdin: false,
            timeout: None,
            remote: false,
            retries: 0,
            retry_backoff: RETRY_BACKOFF,
            order: Order::default(),
            concurrency: None,
            origin,
        }
    }

    /// How long to wait before an attempt; the first is number 1, and comes at once.
    pub(crate) fn backoff(&self, attempt: u32) -> Duration {
        match attempt.checked_sub(2) {
            None => Duration::ZERO,
            Some(doublings) => self.retry_backoff.saturating_mul(1 << doublings.min(20)).min(LONGEST_BACKOFF),
        }
    }

    /// Reads a hook. The second value is what there is to say about it; without a hook, an error is among it.
    pub fn from_template(template: &Template, origin: &Origin) -> (Option<Hook>, Vec<Problem>) {
        read::read(template, origin, Look::Lenient)
    }

    /// The same for somebody who waits for the answer: an attribute, and the name of a state, that nobody knows is an error. Where the
    /// template takes the place of another one, what stood there `before` is only warned of.
    pub fn check(template: &Template, before: Option<&Template>, origin: &Origin) -> (Option<Hook>, Vec<Problem>) {
        read::read(template, origin, Look::Strict { before })
    }

    /// The same for a template that somebody else has taken: an attribute that nobody knows is warned of.
    pub fn import(template: &Template, origin: &Origin) -> (Option<Hook>, Vec<Problem>) {
        read::read(template, origin, Look::Import)
    }

    /// What OpenNebula lists of a hook's template: all attributes but NAME and TYPE in the order of their names, with the states that ON
    /// stands for in its place, and REMOTE said.
    pub fn listed_attributes(&self, template: &Template) -> Vec<(String, Value)> {
        let mut listed: BTreeMap<String, Value> = BTreeMap::new();
        for attribute in template.attributes() {
            listed.entry(attribute.name.clone()).or_insert_with(|| attribute.value.clone());
        }
        for left_out in ["NAME", "TYPE", "ON"] {
            listed.remove(left_out);
        }
        if let Trigger::State { object: Object::Vm, state, lcm_state } = &self.trigger {
            listed.insert("STATE".into(), Value::Text(state.to_string()));
            listed.insert("LCM_STATE".into(), Value::Text(lcm_state.to_string()));
        }
        let remote = if self.remote { "YES" } else { "NO" };
        listed.insert("REMOTE".into(), Value::Text(remote.into()));
        listed.into_iter().collect()
    }
}
