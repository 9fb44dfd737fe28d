//! Reads a [`Hook`] out of a [`Template`], and tells all that is wrong with it at once.

use std::collections::HashSet;
use std::time::Duration;

use hookbus_bridges::ganeti::{OPERATIONS, Phase};

use super::{
    Hook, MAX_NAME_CHARS, Object, Operations, Order, Origin, Outcome, Place, RESULT_KEY_START, RETRY_BACKOFF, States,
    Trigger,
};
use crate::arguments::have_event_text;
use crate::calls;
use crate::command::SHELL_CHARACTERS;
use crate::problem::{Problem, Severity};
use crate::states;
use crate::template::{Attribute, Template, Value};

/// Attributes that this version obeys.
const KNOWN: &[&str] = &[
    "NAME",
    "TYPE",
    // Says nothing to anybody but people.
    "DESCRIPTION",
    "COMMAND",
    "ARGUMENTS",
    "ARGUMENTS_STDIN",
    "TIMEOUT",
    "REMOTE",
    "CALL",
    "RESOURCE",
    "STATE",
    "LCM_STATE",
    "ON",
    "PREFIX",
    "RESULT",
    "RETRIES",
    "RETRY_BACKOFF",
    "ORDER",
    "CONCURRENCY",
    "OPERATION",
    "PHASE",
    "NODE",
];

/// Which attributes say when a hook runs, by its TYPE. (REMOTE is looked at where it is read.)
const TRIGGERS: &[(&str, &[&str])] = &[
    ("api", &["CALL", "RESULT"]),
    ("state", &["RESOURCE", "STATE", "LCM_STATE", "ON"]),
    ("event", &["PREFIX"]),
    ("ganeti", &["OPERATION", "PHASE", "NODE"]),
];

fn seconds(seconds: u32) -> Duration {
    Duration::from_secs(seconds.into())
}

/// How a template is looked at.
#[derive(Clone, Copy, Debug)]
pub(super) enum Look<'a> {
    /// What may be a slip of the pen is warned of.
    Lenient,
    /// It is an error, and so is an attribute that nobody knows; save what stood in this template before it was changed.
    Strict { before: Option<&'a Template> },
    /// As lenient, and of an attribute that nobody knows is warned, too.
    Import,
}

/// Reads a hook; see [`Hook::from_template`] and, for a strict one, [`Hook::check`].
pub(super) fn read(template: &Template, origin: &Origin, look: Look<'_>) -> (Option<Hook>, Vec<Problem>) {
    let mut reader = Reader { template, look, problems: Vec::new() };
    let hook = reader.hook(origin);
    reader.look_for_strangers();
    reader.look_for_repetitions();
    let mut problems = reader.problems;
    if let Origin::File(path) = origin {
        problems = problems.into_iter().map(|problem| problem.in_file(path)).collect();
    }
    let broken = problems.iter().any(|problem| problem.severity == Severity::Error);
    (hook.filter(|_| !broken), problems)
}

struct Reader<'a> {
    template: &'a Template,
    look: Look<'a>,
    problems: Vec<Problem>,
}

impl<'a> Reader<'a> {
    fn hook(&mut self, origin: &Origin) -> Option<Hook> {
        // All parts are read before the first missing one ends it, so that everything is told at once.
        let name = self.name();
        let trigger = self.trigger();
        let command = self.required("COMMAND", "the program to run");
        let arguments = self.text("ARGUMENTS").map_or("", |(text, _)| text);
        let arguments_stdin = self.arguments_stdin();
        let timeout = self.number("TIMEOUT", "seconds", 0).filter(|&seconds| seconds > 0).map(seconds);
        let remote = self.remote(trigger.as_ref());
        let retries = self.number("RETRIES", "repetitions", 0).unwrap_or(0);
        let retry_backoff = self.number("RETRY_BACKOFF", "seconds", 0).map_or(RETRY_BACKOFF, seconds);
        let order = self.order();
        let concurrency = self.number("CONCURRENCY", "runs", 1).map(|runs| runs as usize); // 32 bits
        let trigger = trigger?;
        self.check_arguments(&trigger, arguments);
        self.look_for_other_triggers(&trigger);
        let (command, at) = command?;
        if !arguments_stdin && have_event_text(arguments) && command.contains(SHELL_CHARACTERS) {
            self.warning(at, format!("COMMAND = {command} runs without a shell, since ARGUMENTS has text of the event; move what needs one into a script"));
        }
        Some(Hook {
            arguments: arguments.to_owned(),
            arguments_stdin,
            timeout,
            remote,
            retries,
            retry_backoff,
            order,
            concurrency,
            ..Hook::new(name?, trigger, command, origin.clone())
        })
    }

    fn error(&mut self, at: Option<&Attribute>, what: impl Into<String>) {
        let problem = Problem::error(what);
        self.problems.push(match at {
            Some(attribute) => problem.at(attribute.at),
            None => problem,
        });
    }

    fn warning(&mut self, at: &Attribute, what: impl Into<String>) {
        self.problems.push(Problem::warning(what).at(at.at));
    }

    /// What may be a slip of the pen.
    fn doubt(&mut self, at: &Attribute, what: impl Into<String>) {
        match self.look {
            Look::Strict { before } if !had(before, at) => self.error(Some(at), what),
            _ => self.warning(at, what),
        }
    }

    /// The text of an attribute, unless it is missing or empty.
    fn text(&mut self, name: &str) -> Option<(&'a str, &'a Attribute)> {
        let template = self.template;
        let attribute = template.get(name)?;
        match &attribute.value {
            Value::Text(text) if text.trim().is_empty() => None,
            Value::Text(text) if text.contains('\0') => {
                self.error(Some(attribute), format!("{name} has a NUL character; remove it"));
                None
            }
            Value::Text(text) => Some((text, attribute)),
            Value::Vector(_) => {
                self.error(Some(attribute), format!("{name} is a vector; give it a text instead: {name} = \"...\""));
                None
            }
        }
    }

    /// As [`text`](Self::text), in upper case and without blanks around it.
    fn word(&mut self, name: &str) -> Option<(String, &'a Attribute)> {
        self.text(name).map(|(text, at)| (text.trim().to_uppercase(), at))
    }

    fn required(&mut self, name: &str, what: &str) -> Option<(&'a str, &'a Attribute)> {
        let errors = self.problems.len();
        let found = self.text(name);
        if found.is_none() && self.problems.len() == errors {
            let empty = self.template.get(name);
            let state = if empty.is_some() { "empty" } else { "missing" };
            self.error(empty, format!("{name} is {state}; write {name} = {what}"));
        }
        found.map(|(text, at)| (text.trim(), at))
    }

    fn name(&mut self) -> Option<&'a str> {
        let (name, at) = self.required("NAME", "a name of its own")?;
        let chars = name.chars().count();
        if chars > MAX_NAME_CHARS {
            self.error(Some(at), format!("NAME has {chars} characters; at most {MAX_NAME_CHARS} are possible"));
            return None;
        }
        Some(name)
    }

    fn trigger(&mut self) -> Option<Trigger> {
        let (kind, at) = self.required("TYPE", "api, state, event or ganeti")?;
        match kind.to_lowercase().as_str() {
            "api" => {
                let outcome = self.outcome();
                let (call, at) = self.required("CALL", "the API call, such as one.vm.allocate")?;
                if let Some(doubt) = calls::doubt(call) {
                    self.warning(at, doubt);
                }
                Some(Trigger::Api { call: call.to_owned(), outcome: outcome? })
            }
            "state" => self.state(),
            "event" => self.event(),
            "ganeti" => self.ganeti(),
            _ => {
                self.error(Some(at), format!("TYPE = {kind} is unknown; it can be api, state, event or ganeti"));
                None
            }
        }
    }

    fn outcome(&mut self) -> Option<Outcome> {
        let Some((word, at)) = self.word("RESULT") else { return Some(Outcome::Any) };
        match word.as_str() {
            "ANY" => Some(Outcome::Any),
            "SUCCESS" => Some(Outcome::Success),
            "FAILURE" => Some(Outcome::Failure),
            _ => {
                self.error(Some(at), format!("RESULT = {word} is unknown; it can be success, failure or any"));
                None
            }
        }
    }

    fn order(&mut self) -> Order {
        let Some((word, at)) = self.word("ORDER") else { return Order::default() };
        if word != "OBJECT" {
            self.error(Some(at), format!("ORDER = {word} is unknown; it can be object, or be left out"));
        }
        Order::Object
    }

    fn event(&mut self) -> Option<Trigger> {
        let (_, at) = self.required("PREFIX", "what the key of an event begins with")?;
        // As written: a blank at its end matters.
        let (prefix, _) = self.text("PREFIX")?;
        // Of a prefix that results match, too, the executor would have to throw them away again, and under pressure events with them.
        if prefix.starts_with(RESULT_KEY_START) || RESULT_KEY_START.starts_with(prefix) {
            self.error(
                Some(at),
                format!(
                    "PREFIX = {prefix:?} matches results of hooks ({RESULT_KEY_START:?}), which never make a hook run; \
                     write the beginning of other keys, such as \"EVENT \""
                ),
            );
            return None;
        }
        Some(Trigger::Event { prefix: prefix.to_owned() })
    }

    fn ganeti(&mut self) -> Option<Trigger> {
        let operations = self.operations();
        let phases = self.phases();
        let node = match self.word("NODE") {
            None => Place::default(),
            Some((word, at)) => {
                let known = Place::ALL.iter().find(|(name, _)| name.eq_ignore_ascii_case(&word));
                if known.is_none() {
                    let what = format!("NODE = {word} is unknown; it can be master, primary, secondaries or involved");
                    self.error(Some(at), what);
                }
                known?.1
            }
        };
        Some(Trigger::Ganeti { operations: operations?, phases: phases?, node })
    }

    /// Operations, with commas between; `instance-*` is all that begin like this.
    fn operations(&mut self) -> Option<Operations> {
        let (given, at) = self.required("OPERATION", "the operation, such as instance-migrate, or * for all")?;
        let known = || OPERATIONS.iter().map(|(name, _)| *name);
        let mut names: Vec<String> = Vec::new();
        for name in given.split(',').map(|name| name.trim().to_lowercase()) {
            if name == "*" {
                return Some(Operations::Any);
            }
            let found: Vec<String> = match name.strip_suffix('*') {
                Some(beginning) => known().filter(|known| known.starts_with(beginning)).map(str::to_owned).collect(),
                None if name.is_empty() => Vec::new(),
                None => vec![name.clone()],
            };
            if found.is_empty() {
                let what =
                    format!("OPERATION = {given}: {name:?} is no operation; write names such as instance-migrate");
                self.error(Some(at), what);
                return None;
            }
            if let [one] = &found[..]
                && !known().any(|known| known == one)
            {
                let nearest = states::nearest(one, known());
                let hint =
                    nearest.map_or_else(|| format!("one of {}", known().collect::<Vec<_>>().join(", ")), str::to_owned);
                let what = format!("OPERATION = {one} is no operation with hooks that is known; did you mean {hint}?");
                self.doubt(at, what);
            }
            names.extend(found.into_iter().filter(|name| !names.contains(name)).collect::<Vec<_>>());
        }
        Some(Operations::OneOf(names))
    }

    fn phases(&mut self) -> Option<Vec<Phase>> {
        let Some((given, at)) = self.word("PHASE") else { return Some(vec![Phase::Post]) };
        let mut phases = Vec::new();
        for word in given.split(',') {
            let phase = match word.trim() {
                "PRE" => Phase::Pre,
                "POST" => Phase::Post,
                other => {
                    self.error(Some(at), format!("PHASE = {other} is unknown; it can be pre, post, or \"pre,post\""));
                    return None;
                }
            };
            if !phases.contains(&phase) {
                phases.push(phase);
            }
        }
        Some(phases)
    }

    fn state(&mut self) -> Option<Trigger> {
        let (resource, at) = self.required("RESOURCE", "VM, HOST, IMAGE or NET")?;
        let Ok(object) = resource.to_uppercase().parse::<Object>() else {
            self.error(Some(at), format!("RESOURCE = {resource} is unknown; it can be VM, HOST, IMAGE or NET"));
            return None;
        };
        let on = self.word("ON");
        if object == Object::Vm {
            return match on {
                Some((on, at)) if on != "CUSTOM" => self.vm_shortcut(&on, at),
                _ => self.vm_state(),
            };
        }
        if let Some((on, at)) = on
            && on != "CUSTOM"
        {
            self.warning(at, format!("ON = {on} is for RESOURCE = VM; STATE counts here"));
        }
        if let Some((_, at)) = self.word("LCM_STATE") {
            self.warning(at, "LCM_STATE is for RESOURCE = VM and has no effect here");
        }
        let state = self.known_states("STATE", object, states::of(object))?;
        Some(Trigger::State { object, state, lcm_state: States::one("") })
    }

    fn vm_shortcut(&mut self, on: &str, at: &Attribute) -> Option<Trigger> {
        let (state, lcm_state) = match on {
            "PROLOG" => ("ACTIVE", "PROLOG"),
            "RUNNING" => ("ACTIVE", "RUNNING"),
            "SHUTDOWN" => ("ACTIVE", "EPILOG"),
            "STOP" => ("STOPPED", "LCM_INIT"),
            "DONE" => ("DONE", "LCM_INIT"),
            "UNKNOWN" => ("ACTIVE", "UNKNOWN"),
            _ => {
                let what =
                    "it can be PROLOG, RUNNING, SHUTDOWN, STOP, DONE, UNKNOWN, or CUSTOM with STATE and LCM_STATE";
                self.error(Some(at), format!("ON = {on} is unknown; {what}"));
                return None;
            }
        };
        for (name, value) in [("STATE", state), ("LCM_STATE", lcm_state)] {
            if let Some((given, at)) = self.word(name)
                && given != value
            {
                self.warning(at, format!("{name} = {given} has no effect: ON = {on} means {value}; write ON = CUSTOM"));
            }
        }
        Some(Trigger::State { object: Object::Vm, state: States::one(state), lcm_state: States::one(lcm_state) })
    }

    fn vm_state(&mut self) -> Option<Trigger> {
        let state = self.known_states("STATE", Object::Vm, states::of(Object::Vm));
        let lcm_state = match &state {
            // Of any state, any.
            Some(States::Any) if self.text("LCM_STATE").is_none() => Some(States::Any),
            _ => self.known_states("LCM_STATE", Object::Vm, states::lcm()),
        };
        Some(Trigger::State { object: Object::Vm, state: state?, lcm_state: lcm_state? })
    }

    /// A state, several with commas between, or `*`.
    fn known_states(&mut self, name: &str, object: Object, known: &'static [&'static str]) -> Option<States> {
        let hint = match (object, name) {
            (Object::Vm, "STATE") => "the state, such as POWEROFF (or ON = RUNNING instead of STATE and LCM_STATE)",
            (Object::Vm, _) => "the state in the life cycle, LCM_INIT for all but STATE = ACTIVE, * for any",
            _ => "the state, such as ERROR",
        };
        let (given, at) = self.required(name, hint)?;
        let mut names = Vec::new();
        for state in given.split(',').map(|state| state.trim().to_uppercase()) {
            if state == "*" {
                return Some(States::Any);
            }
            if state.is_empty() {
                self.error(
                    Some(at),
                    format!("{name} = {given} has an empty place; write one state between two commas"),
                );
                return None;
            }
            if !known.contains(&state.as_str()) {
                let object = object.name();
                let nearest = states::nearest(&state, known.iter().copied());
                // The states that people speak of are mostly those of LCM_STATE.
                let of_lcm = || {
                    Some(states::nearest(&state, states::lcm().iter().copied())?)
                        .filter(|_| name == "STATE" && object == "VM")
                };
                let hint = match nearest {
                    Some(nearest) => nearest.to_owned(),
                    None => of_lcm().map_or_else(
                        || format!("one of {}", known.join(", ")),
                        |lcm| format!("STATE = ACTIVE with LCM_STATE = {lcm}"),
                    ),
                };
                self.doubt(
                    at,
                    format!("{name} = {state} is no state of a {object} that is known; did you mean {hint}?"),
                );
            }
            if !names.contains(&state) {
                names.push(state);
            }
        }
        Some(States::OneOf(names))
    }

    fn arguments_stdin(&mut self) -> bool {
        let Some((word, at)) = self.word("ARGUMENTS_STDIN") else { return false };
        match word.as_str() {
            "YES" => true,
            "NO" => false,
            "TRUE" => {
                self.warning(
                    at,
                    "ARGUMENTS_STDIN = true counts as yes here; OpenNebula takes it for no, so write yes to mean the same to both",
                );
                true
            }
            _ => {
                self.warning(at, format!("ARGUMENTS_STDIN = {word} counts as no; write yes or no"));
                false
            }
        }
    }

    /// A whole number of something, where there is one.
    fn number(&mut self, name: &str, unit: &str, least: u32) -> Option<u32> {
        let (text, at) = self.text(name)?;
        let number = text.trim().parse().ok().filter(|number| *number >= least);
        if number.is_none() {
            let none = if name == "TIMEOUT" { ", or 0 for none" } else { "" };
            let from = if least > 0 { format!(" from {least} on") } else { String::new() };
            self.error(Some(at), format!("{name} = {text} is no number of {unit}; write a whole number{from}{none}"));
        }
        number
    }

    fn remote(&mut self, trigger: Option<&Trigger>) -> bool {
        let Some((word, at)) = self.word("REMOTE") else { return false };
        match word.as_str() {
            "NO" => false,
            "YES" => {
                match trigger {
                    Some(Trigger::Api { .. }) => self.error(
                        Some(at),
                        "REMOTE = yes is for TYPE = state: an API call has no host to run on; write REMOTE = no",
                    ),
                    Some(Trigger::Ganeti { .. }) => {
                        self.error(
                            Some(at),
                            "REMOTE = yes is for TYPE = state; NODE says where a hook of TYPE ganeti runs",
                        );
                    }
                    _ => {}
                }
                true
            }
            _ => {
                self.warning(at, format!("REMOTE = {word} counts as no; write yes or no"));
                false
            }
        }
    }

    fn check_arguments(&mut self, trigger: &Trigger, arguments: &str) {
        let Some(at) = self.template.get("ARGUMENTS") else { return };
        let unset: &[&str] = match trigger {
            Trigger::Api { .. } => &["$TEMPLATE", "$ID", "$NAME", "$STATE"],
            Trigger::State { .. } => &["$API"],
            Trigger::Event { .. } => &["$API", "$TEMPLATE"],
            Trigger::Ganeti { .. } => &["$API", "$TEMPLATE", "$ID", "$STATE"],
        };
        for word in arguments.split_whitespace() {
            if unset.contains(&word) {
                self.warning(at, format!("{word} is empty in a hook of TYPE = {}", trigger.kind()));
            }
        }
    }

    /// Attributes that have no effect, where somebody may expect one.
    fn look_for_strangers(&mut self) {
        let template = self.template;
        for attribute in template.attributes() {
            let name = attribute.name.as_str();
            if KNOWN.contains(&name) {
                continue;
            }
            if let Some(nearest) = states::nearest(name, KNOWN.iter().copied()) {
                self.doubt(attribute, format!("{name} is unknown and has no effect; did you mean {nearest}?"));
            } else {
                match self.look {
                    Look::Lenient => {}
                    Look::Strict { before } if !had(before, attribute) => {
                        let what =
                            format!("{name} is unknown; remove it, or say in DESCRIPTION what you want to remember");
                        self.error(Some(attribute), what);
                    }
                    Look::Strict { .. } | Look::Import => {
                        self.warning(attribute, format!("{name} is unknown and has no effect"));
                    }
                }
            }
        }
    }

    /// Attributes of a trigger that the hook doesn't have.
    fn look_for_other_triggers(&mut self, trigger: &Trigger) {
        for (kind, names) in TRIGGERS {
            for name in names.iter().filter(|_| *kind != trigger.kind()) {
                if let Some((_, at)) = self.text(name) {
                    let own = trigger.kind();
                    self.warning(
                        at,
                        format!("{name} is for TYPE = {kind} and has no effect in a hook of TYPE = {own}"),
                    );
                }
            }
        }
    }

    /// Attributes that are there twice.
    fn look_for_repetitions(&mut self) {
        let template = self.template;
        let mut seen = HashSet::new();
        for attribute in template.attributes() {
            let name = attribute.name.as_str();
            if !seen.insert(name) && KNOWN.contains(&name) {
                self.warning(attribute, format!("{name} was given before; this one has no effect"));
            }
        }
    }
}

/// Whether a template had that attribute with that value.
fn had(template: Option<&Template>, attribute: &Attribute) -> bool {
    template.and_then(|template| template.get(&attribute.name)).is_some_and(|old| old.value == attribute.value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hook's text, what it became, and what was said, a line for each problem.
    fn load(template: &str) -> (Option<Hook>, String) {
        let template = Template::parse(template).unwrap_or_else(|e| panic!("{e}"));
        let (hook, problems) = Hook::from_template(&template, &Origin::File("/d/x.tmpl".into()));
        let said = problems.iter().map(|problem| match problem.severity {
            Severity::Error => format!("error {problem}\n"),
            Severity::Warning => format!("warning {problem}\n"),
        });
        (hook, said.collect())
    }

    fn state(attributes: &str) -> (Option<Trigger>, String) {
        let (hook, said) = load(&format!("NAME = x\nTYPE = state\nCOMMAND = y\n{attributes}"));
        (hook.map(|hook| hook.trigger), said)
    }

    #[test]
    fn all_that_is_missing_is_told_at_once() {
        let (hook, said) = load("ARGUMENTS = $API");
        assert_eq!(hook, None);
        for expected in ["NAME is missing", "TYPE is missing", "COMMAND is missing"] {
            assert!(said.contains(&format!("error /d/x.tmpl: {expected}")), "{said}");
        }
        let (hook, said) = load("NAME = \"\"\nTYPE = api\nCOMMAND = y\n");
        assert_eq!(hook, None);
        assert!(said.contains("error /d/x.tmpl:1:1: NAME is empty; write NAME = "), "{said}");
        assert!(said.contains("error /d/x.tmpl: CALL is missing; write CALL = the API call"), "{said}");
    }

    #[test]
    fn shortcuts_of_machines() {
        for (on, expected) in [
            ("PROLOG", "state VM/ACTIVE/PROLOG"),
            ("running", "state VM/ACTIVE/RUNNING"),
            ("SHUTDOWN", "state VM/ACTIVE/EPILOG"),
            ("STOP", "state VM/STOPPED/LCM_INIT"),
            ("DONE", "state VM/DONE/LCM_INIT"),
            ("UNKNOWN", "state VM/ACTIVE/UNKNOWN"),
            ("CUSTOM\nSTATE = hold\nLCM_STATE = lcm_init", "state VM/HOLD/LCM_INIT"),
        ] {
            let (trigger, said) = state(&format!("RESOURCE = VM\nON = {on}"));
            assert_eq!((trigger.map(|t| t.to_string()).as_deref(), said.as_str()), (Some(expected), ""), "{on}");
        }
    }

    #[test]
    fn states_are_looked_at() {
        for (attributes, loaded, expected) in [
            ("RESOURCE = VM\nON = CUSTOM\nSTATE = ACTIVE", false, "error /d/x.tmpl: LCM_STATE is missing"),
            ("RESOURCE = VM\nON = CUSTOM", false, "error /d/x.tmpl: STATE is missing"),
            (
                "RESOURCE = VM",
                false,
                "error /d/x.tmpl: STATE is missing; write STATE = the state, such as POWEROFF (or ON = ",
            ),
            ("RESOURCE = VM\nON = RUN", false, "error /d/x.tmpl:5:1: ON = RUN is unknown; it can be PROLOG, "),
            ("RESOURCE = HOSTS\nSTATE = ERROR", false, "RESOURCE = HOSTS is unknown; it can be VM, HOST, IMAGE or NET"),
            ("RESOURCE = \"a\nb\"\nSTATE = ERROR", false, "RESOURCE = a\\nb is unknown"),
            ("RESOURCE = HOST", false, "error /d/x.tmpl: STATE is missing"),
            ("RESOURCE = VM\nSTATE = *\nLCM_STATE = RUNNING", true, ""),
            (
                "RESOURCE = HOST\nSTATE = ERROR,,OFFLINE",
                false,
                "error /d/x.tmpl:5:1: STATE = ERROR,,OFFLINE has an empty",
            ),
            (
                "RESOURCE = HOST\nSTATE = \"ERROR, OFLINE\"",
                true,
                "STATE = OFLINE is no state of a HOST that is known; did you mean OFFLINE?",
            ),
            (
                "RESOURCE = VM\nSTATE = ACTIV\nLCM_STATE = RUNNING",
                true,
                "warning /d/x.tmpl:5:1: STATE = ACTIV is no state of a VM that is known; did you mean ACTIVE?",
            ),
            ("RESOURCE = VM\nSTATE = ACTIVE\nLCM_STATE = RUNING", true, "did you mean RUNNING?"),
            ("RESOURCE = NET\nSTATE = RUNNING", true, "did you mean one of INIT, READY, LOCK_CREATE"),
            (
                "RESOURCE = VM\nSTATE = RUNING\nLCM_STATE = *",
                true,
                "did you mean STATE = ACTIVE with LCM_STATE = RUNNING?",
            ),
            ("RESOURCE = IMAGE\nSTATE = READY\nON = CUSTOM", true, ""),
            (
                "RESOURCE = IMAGE\nSTATE = READY\nON = DONE\nLCM_STATE = BOOT",
                true,
                "warning /d/x.tmpl:6:1: ON = DONE is for RESOURCE = VM",
            ),
            (
                "RESOURCE = VM\nON = RUNNING\nSTATE = POWEROFF",
                true,
                "STATE = POWEROFF has no effect: ON = RUNNING means ACTIVE",
            ),
        ] {
            let (trigger, said) = state(attributes);
            assert_eq!(trigger.is_some(), loaded, "{attributes}: {said}");
            assert!(said.contains(expected) && said.is_empty() == expected.is_empty(), "{attributes}: {said}");
        }
    }

    #[test]
    fn prefixes_keep_their_blanks_and_leave_results_alone() {
        let event = |prefix: &str| load(&format!("NAME = x\nTYPE = event\nCOMMAND = y\nPREFIX = {prefix}"));
        let (hook, said) = event("\"app deploy \"");
        assert_eq!((hook.unwrap().trigger, said.as_str()), (Trigger::Event { prefix: "app deploy ".into() }, ""));
        for prefix in ["\"HOOKBUS HOOK x\"", "\"HOOKBUS HOOK \"", "HOOKBUS", "H", "\"\""] {
            assert_eq!(event(prefix).0, None, "{prefix}");
        }
        assert!(event("HOOKBUS").1.contains("error /d/x.tmpl:4:1: PREFIX = \"HOOKBUS\" matches results of hooks"));
        assert!(event("HOOKED").0.is_some());
    }

    #[test]
    fn operations_of_ganeti() {
        let ganeti = |attributes: &str| {
            let (hook, said) = load(&format!("NAME = x\nTYPE = ganeti\nCOMMAND = y\n{attributes}"));
            (hook.map(|hook| (hook.trigger.to_string(), hook.trigger.subscription_prefixes())), said)
        };
        for (attributes, shown, prefixes) in [
            (
                "OPERATION = instance-migrate",
                "ganeti instance-migrate post",
                "EVENT GANETI INSTANCE/instance-migrate/post/",
            ),
            ("OPERATION = *\nPHASE = pre", "ganeti * pre", "EVENT GANETI "),
            (
                "OPERATION = \"disk-grow, node-mod*\"\nPHASE = \"pre,POST\"\nNODE = Primary",
                "ganeti disk-grow,node-modify pre,post on primary",
                "EVENT GANETI INSTANCE/disk-grow/pre/|EVENT GANETI INSTANCE/disk-grow/post/|EVENT GANETI NODE/node-modify/pre/|\
                 EVENT GANETI NODE/node-modify/post/",
            ),
        ] {
            let (found, said) = ganeti(attributes);
            let (trigger, subscribed) = found.unwrap_or_else(|| panic!("{said}"));
            assert_eq!((trigger.as_str(), said.as_str()), (shown, ""));
            let subscribed: Vec<_> = subscribed.into_iter().map(|prefix| String::from_utf8(prefix).unwrap()).collect();
            assert_eq!(subscribed.join("|"), prefixes);
        }
        for (attributes, expected) in [
            ("", "OPERATION is missing; write OPERATION = the operation, such as instance-migrate"),
            ("OPERATION = \"a,,b\"", "\"\" is no operation"),
            ("OPERATION = \"vm-*\"", "\"vm-*\" is no operation"),
            ("OPERATION = instance-add\nPHASE = during", "PHASE = DURING is unknown; it can be pre, post"),
            ("OPERATION = instance-add\nNODE = all", "NODE = ALL is unknown; it can be master, primary"),
            ("OPERATION = instance-add\nREMOTE = yes", "NODE says where a hook of TYPE ganeti runs"),
        ] {
            let (hook, said) = ganeti(attributes);
            assert!(hook.is_none() && said.contains(expected), "{attributes}: {said}");
        }
        let (hook, said) = ganeti("OPERATION = instance-migrat");
        assert!(hook.is_some() && said.contains("did you mean instance-migrate?"), "{said}");
    }

    #[test]
    fn odd_values_and_strangers_are_told() {
        for (attributes, loaded, expected) in [
            ("TIMEOUT = 5\nARGUMENTS_STDIN = no\nREMOTE = no", true, ""),
            ("TIMEOUT = soon", false, "error /d/x.tmpl:5:1: TIMEOUT = soon is no number of seconds"),
            ("TIMEOUT = -1", false, "TIMEOUT = -1 is no number of seconds"),
            ("REMOTE = YES", false, "error /d/x.tmpl:5:1: REMOTE = yes is for TYPE = state"),
            ("REMOTE = maybe", true, "warning /d/x.tmpl:5:1: REMOTE = MAYBE counts as no"),
            ("ARGUMENTS_STDIN = true", true, "ARGUMENTS_STDIN = true counts as yes here; OpenNebula takes it for no"),
            ("ARGUMENTS_STDIN = 1", true, "ARGUMENTS_STDIN = 1 counts as no"),
            ("ARGUMENTS = [ A = 1 ]", false, "error /d/x.tmpl:5:1: ARGUMENTS is a vector"),
            ("RETRIES = 3\nRETRY_BACKOFF = 1\nORDER = object\nCONCURRENCY = 1\nRESULT = success", true, ""),
            (
                "RETRIES = often",
                false,
                "error /d/x.tmpl:5:1: RETRIES = often is no number of repetitions; write a whole number",
            ),
            ("CONCURRENCY = 0", false, "CONCURRENCY = 0 is no number of runs; write a whole number from 1 on"),
            ("ORDER = event", false, "ORDER = EVENT is unknown; it can be object, or be left out"),
            ("RESULT = 1", false, "RESULT = 1 is unknown; it can be success, failure or any"),
            ("OPERATION = x", true, "OPERATION is for TYPE = ganeti and has no effect in a hook of TYPE = api"),
            (
                "ARGUMENT = $API",
                true,
                "warning /d/x.tmpl:5:1: ARGUMENT is unknown and has no effect; did you mean ARGUMENTS?",
            ),
            ("TIMOUT = 3", true, "did you mean TIMEOUT?"),
            ("DESCRIPTION = \"free text\"", true, ""),
            ("ARGUMENTS = \"$TEMPLATE\"", true, "$TEMPLATE is empty in a hook of TYPE = api"),
            ("ARGUMENTS = \"$ID\"", true, "$ID is empty in a hook of TYPE = api"),
            ("ARGUMENTS = \"$EVENT_JSON\"", true, ""),
            (
                "STATE = ERROR",
                true,
                "warning /d/x.tmpl:5:1: STATE is for TYPE = state and has no effect in a hook of TYPE = api",
            ),
            ("COMMAND = z", true, "warning /d/x.tmpl:5:1: COMMAND was given before; this one has no effect"),
        ] {
            let (hook, said) = load(&format!("NAME = x\nTYPE = api\nCALL = one.vm.action\nCOMMAND = y\n{attributes}"));
            assert_eq!(hook.is_some(), loaded, "{attributes}: {said}");
            assert!(said.contains(expected) && said.is_empty() == expected.is_empty(), "{attributes}: {said}");
        }
        let long = "x".repeat(MAX_NAME_CHARS + 1);
        assert!(load(&format!("NAME = {long}\nTYPE = api\nCALL = c\nCOMMAND = y")).1.contains("at most 128"));
        let (hook, said) = load("NAME = x\nTYPE = api\nCALL = c\nCOMMAND = \"y\0\"");
        assert!(hook.is_none() && said.contains("COMMAND has a NUL character"), "{said}");
    }

    #[test]
    fn lists_and_any_state_are_subscribed_to_and_shown() {
        for (attributes, shown, prefixes) in [
            ("RESOURCE = VM\nSTATE = *", "state VM/*/*", "EVENT STATE VM/"),
            ("RESOURCE = VM\nSTATE = *\nLCM_STATE = RUNNING", "state VM/*/RUNNING", "EVENT STATE VM/"),
            ("RESOURCE = VM\nSTATE = ACTIVE\nLCM_STATE = *", "state VM/ACTIVE/*", "EVENT STATE VM/ACTIVE/"),
            (
                "RESOURCE = VM\nSTATE = \"poweroff, Done,done\"\nLCM_STATE = LCM_INIT",
                "state VM/POWEROFF,DONE/LCM_INIT",
                "EVENT STATE VM/POWEROFF/LCM_INIT/|EVENT STATE VM/DONE/LCM_INIT/",
            ),
            (
                "RESOURCE = NET\nSTATE = READY,ERROR",
                "state NET/READY,ERROR",
                "EVENT STATE NET/READY//|EVENT STATE NET/ERROR//",
            ),
            ("RESOURCE = HOST\nSTATE = *", "state HOST/*", "EVENT STATE HOST/"),
        ] {
            let (trigger, said) = state(attributes);
            let trigger = trigger.unwrap_or_else(|| panic!("{said}"));
            assert_eq!((trigger.to_string().as_str(), said.as_str()), (shown, ""));
            let subscribed = trigger.subscription_prefixes().into_iter().map(|p| String::from_utf8(p).unwrap());
            assert_eq!(subscribed.collect::<Vec<_>>().join("|"), prefixes);
        }
    }

    #[test]
    fn what_nobody_knows_is_an_error_to_who_creates_a_hook() {
        let check = |attributes: &str| {
            let text =
                format!("NAME = x\nTYPE = state\nRESOURCE = VM\nCOMMAND = y\nLCM_STATE = LCM_INIT\n{attributes}");
            let (hook, problems) = Hook::check(&Template::parse(&text).unwrap(), None, &Origin::Program);
            (hook.is_some(), problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
        };
        assert_eq!(check("STATE = PENDING\nDESCRIPTION = \"of mine\""), (true, String::new()));
        for (attributes, expected) in [
            ("STATE = PENDNG", "6:1: STATE = PENDNG is no state of a VM that is known; did you mean PENDING?"),
            ("STATE = PENDING\nTIMOUT = 3", "7:1: TIMOUT is unknown and has no effect; did you mean TIMEOUT?"),
            ("STATE = PENDING\nOWNER = me", "7:1: OWNER is unknown; remove it"),
        ] {
            let (loaded, said) = check(attributes);
            assert!(!loaded && said.starts_with(expected), "{attributes}: {said}");
        }
    }

    #[test]
    fn what_was_there_before_a_change_is_not_in_its_way() {
        let parsed = |attributes: &str| {
            let text = format!("NAME = x\nTYPE = api\nCALL = one.vm.action\nCOMMAND = y\n{attributes}");
            Template::parse(&text).unwrap()
        };
        let (before, told) = (parsed("OWNER = me\nTIMOUT = 3"), "is unknown and has no effect");
        let (hook, problems) =
            Hook::check(&parsed("TIMOUT = 3\nOWNER = me\nTIMEOUT = 4"), Some(&before), &Origin::Program);
        assert!(
            hook.is_some() && problems.len() == 2 && problems.iter().all(|p| p.what.contains(told)),
            "{problems:?}"
        );
        for changed in ["OWNER = you", "OTHER = me"] {
            assert_eq!(Hook::check(&parsed(changed), Some(&before), &Origin::Program).0, None, "{changed}");
        }
        let (hook, problems) = Hook::import(&before, &Origin::Program);
        assert!(
            hook.is_some() && problems.len() == 2 && problems.iter().all(|p| p.what.contains(told)),
            "{problems:?}"
        );
    }

    #[test]
    fn what_is_listed_is_what_opennebula_lists() {
        let text =
            "NAME = x\nTYPE = state\nRESOURCE = VM\nON = unknown\nCOMMAND = y # z\nARGUMENTS = \"a  b\"\nV = [ A = 1 ]";
        let template = Template::parse(text).unwrap();
        let (hook, _) = Hook::from_template(&template, &Origin::Program);
        let listed = Template::from_values(hook.unwrap().listed_attributes(&template)).to_string();
        let expected = "ARGUMENTS=\"a  b\"\nCOMMAND=\"y\"\nLCM_STATE=\"UNKNOWN\"\nREMOTE=\"NO\"\nRESOURCE=\"VM\"\n\
                        STATE=\"ACTIVE\"\nV=[\n  A=\"1\" ]\n";
        assert_eq!(listed, expected);
    }

    #[test]
    fn pauses_double_up_to_an_hour() {
        let (hook, _) = load("NAME = x\nTYPE = api\nCALL = c\nCOMMAND = y\nRETRIES = 40\nRETRY_BACKOFF = 5");
        let pauses = [1, 2, 3, 4, 40, u32::MAX].map(|attempt| hook.as_ref().unwrap().backoff(attempt).as_secs());
        assert_eq!(pauses, [0, 5, 10, 20, 3600, 3600]);
    }

    #[test]
    fn a_shell_that_will_not_be_there_is_told() {
        let (hook, said) = load(
            "NAME = x\nTYPE = state\nRESOURCE = HOST\nSTATE = ERROR\nCOMMAND = \"logger -t 'a b'\"\nARGUMENTS = $NAME",
        );
        assert!(
            hook.is_some() && said.contains("runs without a shell, since ARGUMENTS has text of the event"),
            "{said}"
        );
    }

    #[test]
    fn a_timeout_of_zero_is_none() {
        let timeout = |value: &str| {
            load(&format!("NAME = x\nTYPE = api\nCALL = c\nCOMMAND = y\nTIMEOUT = {value}")).0.unwrap().timeout
        };
        assert_eq!((timeout("0"), timeout("90"), timeout("")), (None, Some(Duration::from_secs(90)), None));
    }
}
