//! What a command gets of an event: its arguments, and some variables of its environment.
//!
//! ARGUMENTS is split at white space and joined by one blank, as OpenNebula's executor does it; quotes don't protect anything there. These
//! words, and only whole words, are replaced:
//!
//! | word | becomes |
//! | --- | --- |
//! | `$API` | in hooks of TYPE `api`: base64 of the call, the element CALL_INFO with the parameters and the result |
//! | `$TEMPLATE` | in hooks of TYPE `state`: base64 of the object, the element VM, HOST, IMAGE or VNET |
//! | `$EVENT_JSON` | base64 of the event as a CloudEvent |
//! | `$ID`, `$NAME`, `$STATE` | state changes: the number, name and state of the object |
//!
//! What an event doesn't have becomes nothing; of `$API` and `$TEMPLATE` the blanks around it stay. The elements are written again as
//! libxml2 writes them, so that a hook sees byte for byte what OpenNebula would have given it.
//!
//! # Text of an event is never text for a shell
//!
//! Base64 means nothing to a shell. `$ID`, `$NAME` and `$STATE` are plain text, which somebody else has chosen; a hook that uses one of them
//! gets its arguments as *words*: each is one argument whatever is in it, an empty one too, and no shell sees them. Written down, such
//! arguments are quoted as for a shell, so that a record can be read, and run again ([`Arguments::again`]).
//!
//! # Environment
//!
//! `HOOKBUS_KEY` and `HOOKBUS_EVENT_ID` always; of state changes `HOOKBUS_OBJECT`, `HOOKBUS_ID`, `HOOKBUS_STATE`, and where
//! the event has it `HOOKBUS_LCM_STATE`, `HOOKBUS_PREV_STATE`, `HOOKBUS_NAME`, `HOOKBUS_HOST`. What a variable can't hold (NUL) is
//! replaced.
//!
//! Hooks of TYPE `ganeti` have what Ganeti gave, byte for byte. An environment is text here and in records; a variable that is no UTF-8 is written down as
//! `NAME=base64` with `NAME=value` in base64 for its value ([`written`]), which can't be taken for another one: no variable's name has a `=`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hookbus_bridges::ganeti::{HookRun, Report};
use hookbus_bridges::opennebula::{Document, Element, Event, Kind};

use crate::command::Variable;
use crate::hook::{Object, Place};
use crate::record::EventRef;
use crate::states;

/// What Ruby's `String#split` splits at.
fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\x0B' | '\x0C' | '\r' | '\0')
}

fn words(arguments: &str) -> impl Iterator<Item = &str> {
    arguments.split(is_space).filter(|word| !word.is_empty())
}

/// Whether such arguments hold plain text of an event, and so are never text for a shell.
pub(crate) fn have_event_text(arguments: &str) -> bool {
    words(arguments).any(|word| matches!(word, "$ID" | "$NAME" | "$STATE"))
}

/// Whether such arguments hold the call or the object.
pub(crate) fn want_element(arguments: &str) -> bool {
    words(arguments).any(|word| matches!(word, "$API" | "$TEMPLATE"))
}

/// Whether such arguments hold the event as a CloudEvent.
pub(crate) fn want_json(arguments: &str) -> bool {
    words(arguments).any(|word| word == "$EVENT_JSON")
}

/// The arguments of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Arguments {
    /// A piece of a command line; a shell may see it.
    Line(String),
    /// Words, each of them one argument.
    Words(Vec<String>),
}

impl Arguments {
    /// Those of a record, to run it again. A hook that has text of events in its arguments gets words, as the first time.
    pub(crate) fn again(recorded: &str, hook_arguments: &str) -> Self {
        if !have_event_text(hook_arguments) {
            return Arguments::Line(recorded.to_owned());
        }
        // What isn't quoted as we do it was recorded when the hook had other arguments.
        let words = shlex::split(recorded).unwrap_or_else(|| words(recorded).map(str::to_owned).collect());
        Arguments::Words(words)
    }

    /// As they are recorded.
    pub(crate) fn text(&self) -> String {
        match self {
            Arguments::Line(line) => line.clone(),
            Arguments::Words(words) => {
                let quoted: Vec<_> = words.iter().map(|word| quoted(word)).collect();
                quoted.join(" ")
            }
        }
    }

    /// As they go to standard input: nothing is quoted there.
    pub(crate) fn input(&self) -> String {
        match self {
            Arguments::Line(line) => line.clone(),
            Arguments::Words(words) => words.join(" "),
        }
    }
}

/// A word as a shell reads it back.
pub(crate) fn quoted(word: &str) -> String {
    // It refuses nothing but NUL, which no process can be given anyway.
    shlex::Quoter::new().allow_nul(true).quote(word).map_or_else(|_| word.to_owned(), Into::into)
}

/// The same of a word that may be no UTF-8.
pub(crate) fn quoted_bytes(word: &[u8]) -> Vec<u8> {
    shlex::bytes::Quoter::new().allow_nul(true).quote(word).map_or_else(|_| word.to_vec(), Into::into)
}

/// What the name of a variable that is no UTF-8 ends with where it is written down.
const IN_BASE64: &str = "=base64";

/// A variable that is no UTF-8, `NAME=value`, as it is written down.
fn written(variable: &[u8]) -> Variable {
    let name = variable.split(|&byte| byte == b'=').next().unwrap_or_default();
    (format!("{}{IN_BASE64}", text(name)).into(), BASE64_STANDARD.encode(variable))
}

/// What a process gets for a variable that was written down: its name and its value.
pub(crate) fn for_process((name, value): &Variable) -> (OsString, OsString) {
    let bytes = name.ends_with(IN_BASE64).then(|| BASE64_STANDARD.decode(value).ok()).flatten();
    match bytes.as_ref().and_then(|bytes| Some((bytes, bytes.iter().position(|&byte| byte == b'=')?))) {
        Some((bytes, at)) => (OsString::from_vec(bytes[..at].to_vec()), OsString::from_vec(bytes[at + 1..].to_vec())),
        None => (name.as_ref().into(), value.into()),
    }
}

/// What hooks can have of an event. Made once for all hooks that an event makes run, since it takes parsing the document.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Facts {
    /// The call or the object, in base64, if somebody wants it.
    element: Option<String>,
    /// Whether that is a call.
    is_call: bool,
    /// What object it is about, with its number: `VM` and `42`.
    pub(crate) object: Option<(String, String)>,
    state: Option<String>,
    lcm_state: Option<String>,
    prev_state: Option<String>,
    name: Option<String>,
    /// Where a hook with REMOTE runs.
    pub(crate) host: Option<String>,
    /// The event as a CloudEvent in base64, if somebody asked for it.
    pub(crate) json: Option<String>,
    /// Of an operation of Ganeti: the environment of its hooks, and where its nodes are.
    pub(crate) ganeti: Option<GanetiFacts>,
}

/// What a hook of TYPE ganeti has of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct GanetiFacts {
    /// The whole environment that Ganeti gave.
    environment: Vec<Variable>,
    /// The nodes of each place; nothing where the operation has none there.
    master: String,
    primary: Option<String>,
    secondaries: Vec<String>,
    involved: Vec<String>,
}

impl GanetiFacts {
    /// What the data of an event tells; nothing where it is of no hook.
    pub(crate) fn of_data(json: &[u8]) -> Option<(Self, HookRun)> {
        let run = Report::of_data(&serde_json::from_slice(json).ok()?)?.run;
        let owned = |nodes: Vec<&str>| nodes.into_iter().map(str::to_owned).collect();
        let texts = run.environment().iter().map(|(name, value)| (name.clone().into(), value.clone()));
        let facts = GanetiFacts {
            environment: texts.chain(run.bytes().iter().map(|variable| written(variable))).collect(),
            master: run.master().to_owned(),
            primary: run.primary().map(str::to_owned),
            secondaries: owned(run.secondaries()),
            involved: owned(run.involved()),
        };
        Some((facts, run))
    }

    /// What is left of it in the record of a run.
    pub(crate) fn recorded(environment: &[(String, String)]) -> Self {
        let environment = environment.iter().map(|(name, value)| (name.clone().into(), value.clone())).collect();
        GanetiFacts { environment, ..GanetiFacts::default() }
    }

    /// The nodes that a hook runs on.
    pub(crate) fn nodes(&self, place: Place) -> Vec<&str> {
        match place {
            Place::Master => vec![&self.master],
            Place::Primary => self.primary.iter().map(String::as_str).collect(),
            Place::Secondaries => self.secondaries.iter().map(String::as_str).collect(),
            Place::Involved => self.involved.iter().map(String::as_str).collect(),
        }
    }

    /// The environment that Ganeti gave.
    pub(crate) fn environment(&self) -> &[Variable] {
        &self.environment
    }
}

impl Facts {
    /// What is left of an event in the record of a run: where it ran, and its environment.
    pub(crate) fn recorded(host: Option<String>, environment: &[(String, String)]) -> Facts {
        let value = |wanted: &str| environment.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.clone());
        Facts {
            object: value("HOOKBUS_OBJECT").zip(value("HOOKBUS_ID")),
            state: value("HOOKBUS_STATE"),
            lcm_state: value("HOOKBUS_LCM_STATE"),
            prev_state: value("HOOKBUS_PREV_STATE"),
            name: value("HOOKBUS_NAME"),
            host: host.or_else(|| value("HOOKBUS_HOST")),
            ganeti: environment
                .iter()
                .any(|(name, _)| name == "GANETI_HOOKS_PATH")
                .then(|| GanetiFacts::recorded(environment)),
            ..Facts::default()
        }
    }

    /// What an event of OpenNebula tells. Without `wants_element` there is neither `$API` nor `$TEMPLATE`: of a call that takes all that
    /// there is to do.
    pub(crate) fn of(event: &Event<'_>, wants_element: bool) -> Facts {
        match event.kind {
            Kind::Api if !wants_element => Facts { is_call: true, ..Facts::default() },
            Kind::Api => {
                let document = Document::parse(event.xml);
                let element = element(&document, "CALL_INFO").map(base64);
                Facts { element, is_call: true, ..Facts::default() }
            }
            Kind::State => {
                let object = text(event.object);
                let kind = object.parse::<Object>().ok();
                let document = Document::parse(event.xml);
                let element = kind.and_then(|kind| element(&document, kind.element()));
                let field = |name| element.and_then(|element| element.child(name)).map(|field| text(&field.text()));
                let filled = |value: &[u8]| (!value.is_empty()).then(|| text(value));
                Facts {
                    state: filled(event.state),
                    lcm_state: filled(event.lcm_state),
                    prev_state: field("PREV_STATE").map(|state| match kind {
                        Some(kind) => states::of_number(kind, &state).map_or(state, str::to_owned),
                        None => state,
                    }),
                    name: field("NAME"),
                    host: filled(event.remote_host),
                    object: Some((object, text(event.id))),
                    element: element.filter(|_| wants_element).map(base64),
                    is_call: false,
                    json: None,
                    ganeti: None,
                }
            }
            Kind::Other => Facts::default(),
        }
    }

    /// What an operation of Ganeti tells; nothing where this is the data of none.
    pub(crate) fn of_ganeti(data: &[u8]) -> Option<Facts> {
        let (ganeti, run) = GanetiFacts::of_data(data)?;
        let name = run.name().to_owned();
        let object = Some((run.object_type().to_owned(), name.clone()));
        Some(Facts { object, name: Some(name), ganeti: Some(ganeti), ..Facts::default() })
    }

    /// What it holds, in bytes, as far as that can be much.
    pub(crate) fn bytes(&self) -> usize {
        let texts: usize = [&self.element, &self.json].into_iter().flatten().map(String::len).sum();
        let environment = self.ganeti.iter().flat_map(|ganeti| &ganeti.environment);
        texts + environment.map(|(name, value)| name.len() + value.len()).sum::<usize>()
    }

    /// A hook's arguments for this event.
    pub(crate) fn arguments(&self, arguments: &str) -> Arguments {
        let id = self.object.as_ref().map(|(_, id)| id.as_str());
        let value = |word| {
            let value = match word {
                "$API" => self.element.as_deref().filter(|_| self.is_call),
                "$TEMPLATE" => self.element.as_deref().filter(|_| !self.is_call),
                "$EVENT_JSON" => self.json.as_deref(),
                "$ID" => id,
                "$NAME" => self.name.as_deref(),
                "$STATE" => self.state.as_deref(),
                word => Some(word),
            };
            value.unwrap_or_default()
        };
        let expanded = words(arguments).map(value);
        if have_event_text(arguments) {
            return Arguments::Words(expanded.map(str::to_owned).collect());
        }
        let mut text = String::new();
        for (i, word) in expanded.enumerate() {
            if i > 0 {
                text.push(' ');
            }
            text.push_str(word);
        }
        Arguments::Line(text)
    }

    /// What the environment tells about this event.
    pub(crate) fn environment(&self, event: &EventRef) -> Vec<Variable> {
        let (object, id) = self.object.as_ref().map(|(object, id)| (object, id)).unzip();
        let always = [("HOOKBUS_KEY", event.key.clone()), ("HOOKBUS_EVENT_ID", event.id.to_string())];
        let sometimes = [
            ("HOOKBUS_OBJECT", object),
            ("HOOKBUS_ID", id),
            ("HOOKBUS_STATE", self.state.as_ref()),
            ("HOOKBUS_LCM_STATE", self.lcm_state.as_ref()),
            ("HOOKBUS_PREV_STATE", self.prev_state.as_ref()),
            ("HOOKBUS_NAME", self.name.as_ref()),
            ("HOOKBUS_HOST", self.host.as_ref()),
        ];
        let sometimes = sometimes.into_iter().filter_map(|(name, value)| Some((name, value?.clone())));
        always
            .into_iter()
            .chain(sometimes)
            .map(|(name, value)| (name.into(), value.replace('\0', "\u{FFFD}")))
            .collect()
    }
}

/// Names are whatever their owner has written.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// An element of a document. It is below the root, unless the document is broken.
fn element<'d>(document: &'d Document, name: &str) -> Option<Element<'d>> {
    let below_root = document.root().and_then(|root| root.child(name));
    below_root.or_else(|| document.find(name))
}

fn base64(element: Element<'_>) -> String {
    crate::base64(&element.to_xml())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(arguments: &str, facts: &Facts) -> String {
        match facts.arguments(arguments) {
            Arguments::Line(line) => line,
            Arguments::Words(words) => panic!("{words:?}"),
        }
    }

    #[test]
    fn words_are_replaced_whole() {
        let element = |base64: &str, is_call| Facts { element: Some(base64.into()), is_call, ..Facts::default() };
        let (api, template) = (element("QVBJ", true), element("VE1QTA==", false));
        for (arguments, facts, expected) in [
            ("first $API last", &api, "first QVBJ last"),
            ("prolog $API end", &template, "prolog  end"),
            ("one $TEMPLATE $API two", &template, "one VE1QTA==  two"),
            ("$TEMPLATE$TEMPLATE $template $TEMPLATE", &template, "$TEMPLATE$TEMPLATE $template VE1QTA=="),
            ("a  b\tc\n", &api, "a b c"),
            ("\"$API\"", &api, "\"$API\""),
            ("$API", &Facts::default(), ""),
            ("$API x", &Facts::default(), " x"),
            ("$EVENT_JSON", &Facts { json: Some("e30=".into()), ..Facts::default() }, "e30="),
            ("", &api, ""),
        ] {
            assert_eq!(line(arguments, facts), expected, "{arguments:?}");
        }
        assert!(want_element("x $API") && want_element("$TEMPLATE") && !want_element("$APIS $EVENT_JSON"));
        assert!(want_json("x $EVENT_JSON") && !want_json("$EVENT_JSONS"));
    }

    /// What an owner may call a machine, and still it is one word, also when it is read back.
    #[test]
    fn text_of_an_event_is_one_word_each() {
        for name in ["a b", "x; rm -rf /", "`id`", "$(id)", "a\nb", "-rf", "'", "\"", "", "\\", "ü", "!x", "$NAME", "~"]
        {
            let object = Some(("VM".to_owned(), "7".to_owned()));
            let facts = Facts { name: Some(name.into()), state: Some("ACTIVE".into()), object, ..Facts::default() };
            let words = facts.arguments("do  $NAME $ID $STATE");
            assert_eq!(words, Arguments::Words(["do", name, "7", "ACTIVE"].map(str::to_owned).to_vec()));
            assert_eq!(Arguments::again(&words.text(), "$NAME"), words, "{name:?}");
            assert_eq!(words.input(), format!("do {name} 7 ACTIVE"));
        }
        let environment = vec![("HOOKBUS_ID".to_owned(), "7".to_owned()), ("HOOKBUS_OBJECT".into(), "VM".into())];
        let facts = Facts::recorded(Some("h".into()), &environment);
        assert_eq!((facts.object, facts.host.as_deref()), (Some(("VM".into(), "7".into())), Some("h")));
        assert_eq!(Arguments::again("a 'b c'", "$TEMPLATE"), Arguments::Line("a 'b c'".into()));
        assert_eq!(Facts::default().arguments("$NAME"), Arguments::Words(vec![String::new()]));
    }
}
