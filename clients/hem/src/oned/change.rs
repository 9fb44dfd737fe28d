//! [`HookChange`]: what an event of oned's API says about hooks.
//!
//! oned tells each call that ended, with its parameters:
//!
//! ```text
//! <HOOK_MESSAGE><HOOK_TYPE>API</HOOK_TYPE><CALL>one.hook.update</CALL><CALL_INFO><RESULT>1</RESULT><PARAMETERS>
//!   <PARAMETER><POSITION>2</POSITION><TYPE>IN</TYPE><VALUE>42</VALUE></PARAMETER>...
//! ```
//!
//! The number of the hook is IN parameter 2, that of a new hook OUT parameter 2. The original follows `allocate`, `update` and
//! `delete`; `lock`, `unlock` and `rename` change what is listed.
//!
//! # Constraints
//!
//! oned doesn't escape the values, and the template in one of them may hold anything, an element PARAMETER too. What comes before a template
//! is certain all the same: the number of a hook that was there. That of a new one comes behind it. Where such a document is broken (an `&`
//! is enough), or has two such parameters, it can't be told for certain which hook is new, and the answer is [`HookChange::Unclear`].

use hookbus_bridges::opennebula::{Document, Element, Event, Kind};

use super::text;

/// The keys of the messages that tell of changes.
pub const CHANGE_KEYS: [&str; 6] = [
    "EVENT API one.hook.allocate 1",
    "EVENT API one.hook.update 1",
    "EVENT API one.hook.delete 1",
    "EVENT API one.hook.lock 1",
    "EVENT API one.hook.unlock 1",
    "EVENT API one.hook.rename 1",
];

/// What has become of hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HookChange {
    /// This one is new, or not what it was: load it again.
    Changed(i64),
    /// This one is no more.
    Deleted(i64),
    /// Some hook, it can't be told which: load all again.
    Unclear,
}

impl HookChange {
    /// What an event says; nothing where it is about something else, or about a call that failed.
    pub fn of(event: &Event<'_>) -> Option<HookChange> {
        if event.kind != Kind::Api || event.result.trim_ascii() != b"1" {
            return None;
        }
        let (direction, deleted) = match event.call {
            b"one.hook.allocate" => (Direction::Out, false),
            b"one.hook.delete" => (Direction::In, true),
            b"one.hook.update" | b"one.hook.lock" | b"one.hook.unlock" | b"one.hook.rename" => (Direction::In, false),
            _ => return None,
        };
        Some(match id(event.xml, direction) {
            Some(id) if deleted => HookChange::Deleted(id),
            Some(id) => HookChange::Changed(id),
            None => HookChange::Unclear,
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    /// What the caller gave.
    In,
    /// What oned answered.
    Out,
}

/// The second parameter of that direction, if it is certain and a number.
fn id(xml: &[u8], direction: Direction) -> Option<i64> {
    let document = Document::parse(xml);
    let parameters = document.root()?.child("CALL_INFO")?.child("PARAMETERS")?;
    let kind = if direction == Direction::In { "IN" } else { "OUT" };
    let is = |element: Element<'_>, name, value| element.child(name).is_some_and(|field| text(field).trim() == value);
    let mut found =
        parameters.children().filter(|parameter| is(*parameter, "POSITION", "2") && is(*parameter, "TYPE", kind));
    let parameter = found.next()?;
    if direction == Direction::Out && !(document.is_well_formed() && found.next().is_none()) {
        return None;
    }
    text(parameter.child("VALUE")?).trim().parse().ok().filter(|id| *id >= 0)
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::prelude::BASE64_STANDARD;
    use hookbus_bridges::opennebula::Parser;
    use proptest::prelude::*;

    use super::*;

    fn change(call: &str, result: u8, parameters: &str) -> Option<HookChange> {
        let xml = format!(
            "<HOOK_MESSAGE><HOOK_TYPE>API</HOOK_TYPE><CALL>{call}</CALL><CALL_INFO><RESULT>{result}</RESULT><PARAMETERS>\
             {parameters}</PARAMETERS><EXTRA/></CALL_INFO></HOOK_MESSAGE>"
        );
        HookChange::of(&Parser::new().event_of(BASE64_STANDARD.encode(xml).as_bytes()))
    }

    fn parameter(position: u8, direction: &str, value: &str) -> String {
        format!("<PARAMETER><POSITION>{position}</POSITION><TYPE>{direction}</TYPE><VALUE>{value}</VALUE></PARAMETER>")
    }

    #[test]
    fn calls_and_their_parameters() {
        let both = [parameter(1, "IN", "****"), parameter(2, "IN", "4"), parameter(2, "OUT", "5")].concat();
        for (call, expected) in [
            ("one.hook.allocate", Some(HookChange::Changed(5))),
            ("one.hook.update", Some(HookChange::Changed(4))),
            ("one.hook.lock", Some(HookChange::Changed(4))),
            ("one.hook.unlock", Some(HookChange::Changed(4))),
            ("one.hook.rename", Some(HookChange::Changed(4))),
            ("one.hook.delete", Some(HookChange::Deleted(4))),
            ("one.hook.retry", None),
            ("one.vm.allocate", None),
        ] {
            assert_eq!(change(call, 1, &both), expected, "{call}");
            assert_eq!(change(call, 0, &both), None, "{call}");
            assert_eq!(CHANGE_KEYS.contains(&format!("EVENT API {call} 1").as_str()), expected.is_some(), "{call}");
        }
    }

    #[test]
    fn what_may_be_a_forgery_is_unclear() {
        let out = parameter(2, "OUT", "5");
        for parameters in [
            String::new(),
            parameter(2, "OUT", "five"),
            parameter(2, "OUT", "-1"),
            // A template that breaks out of its value.
            format!(
                "{}{out}",
                parameter(
                    2,
                    "IN",
                    &format!("A=\"</VALUE></PARAMETER>{}<PARAMETER><VALUE>\"", parameter(2, "OUT", "6"))
                )
            ),
            format!("{}{out}", parameter(2, "IN", "A=\"</VALUE></PARAMETER></PARAMETERS></CALL_INFO>\"")),
            format!("{}{out}", parameter(2, "IN", "A=\"a & b < c\"")),
        ] {
            assert_eq!(change("one.hook.allocate", 1, &parameters), Some(HookChange::Unclear), "{parameters}");
        }
        for template in ["A=\"a && b < c\"", &format!("A=\"</VALUE></PARAMETER>{}\"", parameter(2, "IN", "6"))] {
            let parameters =
                [parameter(1, "IN", "****"), parameter(2, "IN", "4"), parameter(3, "IN", template)].concat();
            assert_eq!(change("one.hook.update", 1, &parameters), Some(HookChange::Changed(4)), "{template}");
        }
    }

    proptest! {
        #[test]
        fn any_parameters_are_survived(parameters in "(</?(VALUE|PARAMETERS?|TYPE|POSITION)>|[ -~]){0,20}") {
            let _ = change("one.hook.allocate", 1, &parameters);
        }
    }
}
