//! [`Pool`]: hooks as oned writes them.
//!
//! ```text
//! <HOOK_POOL><HOOK><ID>7</ID><NAME>hook-vm-prolog</NAME><TYPE>state</TYPE>[<LOCK>...</LOCK>]
//!   <TEMPLATE><ARGUMENTS><![CDATA[$TEMPLATE]]></ARGUMENTS><COMMAND><![CDATA[x.sh]]></COMMAND>...</TEMPLATE></HOOK>...
//! ```
//!
//! A hook of oned means what it means to OpenNebula's executor, also where a template file of hookbus would mean something else:
//!
//! | attribute | here |
//! | --- | --- |
//! | `ARGUMENTS_STDIN` | only `yes` counts; `true` is no, and warned of |
//! | `TIMEOUT` | the number that the text begins with; none where it begins with none, warned of |
//! | `ON` | not looked at: oned has made STATE and LCM_STATE of it |
//! | `TYPE` | `api` or `state`; oned has no others |
//!
//! A lock keeps others from changing a hook; it runs all the same.
//!
//! A hook that can't be executed is in the pool, too, with the reason, so that all of oned's hooks can be listed. The documents are those of
//! oned, so what is broken in them is repaired as libxml2 does it; only one that isn't whole is refused.

use std::collections::HashSet;

use hookbus_bridges::opennebula::{Document, Element};
use thiserror::Error;

use super::{shown, text};
use crate::hook::{Hook, Origin};
use crate::problem::Problem;
use crate::template::{Template, Value};

/// A hook of oned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolHook {
    /// Its number.
    pub id: i64,
    /// Its name.
    pub name: String,
    /// Whether it is locked against changes.
    pub locked: bool,
    /// All attributes, NAME and TYPE first, as oned has them.
    pub template: Template,
    /// The same, written so that it means to hookbus what it means to OpenNebula.
    pub as_ours: Template,
    /// What is executed, unless an error is among the problems.
    pub hook: Option<Hook>,
    /// What there is to say about it.
    pub problems: Vec<Problem>,
}

/// All hooks of oned, in the order of their numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pool {
    /// Those that have a number.
    pub hooks: Vec<PoolHook>,
    /// What is wrong with the list itself.
    pub problems: Vec<Problem>,
}

/// Why a text is no hook, or no list of them.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PoolError {
    /// It is something else.
    #[error("expected the element {expected}, found {found}")]
    Other {
        /// The element that should be there.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// It is not whole.
    #[error("the element {0} ends too early")]
    CutOff(&'static str),
    /// A hook has no number.
    #[error("the hook {name:?} has no number (ID is {id:?})")]
    NoId {
        /// Its name.
        name: String,
        /// What stands in the place of the number.
        id: String,
    },
}

impl Pool {
    /// Reads the answer to `one.hookpool.info`. A hook without a number is a problem of the list.
    ///
    /// # Errors
    /// When it isn't one, or isn't whole.
    pub fn parse(xml: &[u8]) -> Result<Pool, PoolError> {
        let document = Document::parse(xml);
        let root = whole(&document, xml, "HOOK_POOL")?;
        let mut pool = Pool::default();
        let mut ids = HashSet::new();
        for element in root.children().filter(|element| element.name() == b"HOOK") {
            match PoolHook::of(element) {
                Ok(hook) if ids.insert(hook.id) => pool.hooks.push(hook),
                Ok(hook) => {
                    let what = format!("hook {}: oned lists this number twice; the first counts", hook.id);
                    pool.problems.push(Problem::warning(what));
                }
                // Only hookbus' own lists have the element; of its template files, which have no number.
                Err(_) if element.child("ORIGIN").is_some() => {
                    let name = element.child("NAME").map(text).unwrap_or_default();
                    let what = format!("{} is a template file, not a hook of the store; copy the file", shown(&name));
                    pool.problems.push(Problem::warning(what));
                }
                Err(e) => pool.problems.push(Problem::error(e.to_string())),
            }
        }
        pool.hooks.sort_by_key(|hook| hook.id);
        Ok(pool)
    }

    /// All that there is to say, hook by hook.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.problems.iter().chain(self.hooks.iter().flat_map(|hook| &hook.problems))
    }

    /// The hooks that can be executed.
    pub fn executable(&self) -> impl Iterator<Item = &Hook> {
        self.hooks.iter().filter_map(|hook| hook.hook.as_ref())
    }
}

impl PoolHook {
    /// Reads the answer to `one.hook.info`. The log of executions in it is not looked at.
    ///
    /// # Errors
    /// When it isn't a hook, isn't whole, or has no number.
    pub fn parse(xml: &[u8]) -> Result<PoolHook, PoolError> {
        let document = Document::parse(xml);
        PoolHook::of(whole(&document, xml, "HOOK")?)
    }

    fn of(element: Element<'_>) -> Result<PoolHook, PoolError> {
        let field = |name: &str| element.child(name).map(text);
        let name = field("NAME").unwrap_or_default();
        let id = field("ID").unwrap_or_default();
        let Some(id) = id.trim().parse().ok().filter(|id| *id >= 0) else {
            return Err(PoolError::NoId { name: shown(&name), id: shown(&id) });
        };
        let head = ["NAME", "TYPE"].map(|name| (name.to_owned(), Value::Text(field(name).unwrap_or_default())));
        let below = element.child("TEMPLATE").into_iter().flat_map(|template| template.children());
        let attributes = below.map(|attribute| (attribute_name(attribute), value(attribute)));
        let template = Template::from_values(head.into_iter().chain(attributes));
        let (as_ours, hook, problems) = read(id, &template);
        let of_hook = |problem: Problem| Problem {
            // There is no text with places: that of the template is only known to whoever wrote it.
            at: None,
            what: format!("hook {id} ({}): {}", shown(&name), problem.what),
            ..problem
        };
        let problems = problems.into_iter().map(of_hook).collect();
        let locked = element.child("LOCK").is_some();
        Ok(PoolHook { id, name, locked, template, as_ours, hook, problems })
    }
}

/// The root, where it is the right one and the text ends with its end.
fn whole<'d>(document: &'d Document, xml: &[u8], expected: &'static str) -> Result<Element<'d>, PoolError> {
    let Some(root) = document.root() else {
        return Err(PoolError::Other { expected, found: "no XML".into() });
    };
    if root.name() != expected.as_bytes() {
        return Err(PoolError::Other { expected, found: shown(&String::from_utf8_lossy(root.name())) });
    }
    let xml = xml.trim_ascii_end();
    let ends = |end: &str| xml.ends_with(end.as_bytes());
    // An element without anything in it may be written in one tag.
    let is_empty = ends("/>") && root.children().next().is_none();
    if !ends(&format!("</{expected}>")) && !is_empty {
        return Err(PoolError::CutOff(expected));
    }
    Ok(root)
}

fn attribute_name(attribute: Element<'_>) -> String {
    String::from_utf8_lossy(attribute.name()).into_owned()
}

fn value(attribute: Element<'_>) -> Value {
    let mut below = attribute.children().peekable();
    if below.peek().is_none() {
        return Value::Text(text(attribute));
    }
    Value::Vector(below.map(|inner| (attribute_name(inner).to_uppercase(), text(inner))).collect())
}

/// What a template of oned means to OpenNebula's executor: as a template of ours, and as a hook.
fn read(id: i64, template: &Template) -> (Template, Option<Hook>, Vec<Problem>) {
    let mut problems = Vec::new();
    let first = |name: &str| match template.get(name).map(|attribute| &attribute.value) {
        Some(Value::Text(text)) => Some(text.trim()),
        _ => None,
    };
    let kind = first("TYPE").unwrap_or_default();
    if !["api", "state"].iter().any(|known| kind.eq_ignore_ascii_case(known)) {
        let what = format!("TYPE = {} is unknown; hooks of oned have api or state", shown(kind));
        return (template.clone(), None, vec![Problem::error(what)]);
    }
    let mut seen = HashSet::new();
    let mut attributes = Vec::new();
    for attribute in template.attributes() {
        // The first counts, and only that one is told of.
        if !seen.insert(attribute.name.as_str()) {
            continue;
        }
        let value = match (attribute.name.as_str(), &attribute.value) {
            ("ON", _) => continue,
            ("ARGUMENTS_STDIN", Value::Text(given)) => match stdin(given, &mut problems) {
                true => Value::Text("YES".into()),
                false => continue,
            },
            ("TIMEOUT", Value::Text(given)) => match timeout(given, &mut problems) {
                Some(seconds) => Value::Text(seconds.to_string()),
                None => continue,
            },
            (_, value) => value.clone(),
        };
        attributes.push((attribute.name.clone(), value));
    }
    let as_ours = Template::from_values(attributes);
    let (hook, more) = Hook::from_template(&as_ours, &Origin::Oned { id });
    problems.extend(more);
    (as_ours, hook, problems)
}

fn stdin(given: &str, problems: &mut Vec<Problem>) -> bool {
    let given = given.trim();
    if given.eq_ignore_ascii_case("yes") {
        return true;
    }
    if !given.is_empty() && !given.eq_ignore_ascii_case("no") {
        let what = format!(
            "ARGUMENTS_STDIN = {} counts as no, as it does for OpenNebula; write YES to get the arguments on standard input",
            shown(given)
        );
        problems.push(Problem::warning(what));
    }
    false
}

/// What Ruby's `to_i` makes of a text: the number at its beginning.
fn timeout(given: &str, problems: &mut Vec<Problem>) -> Option<u32> {
    let trimmed = given.trim();
    if let Ok(seconds) = trimmed.parse::<u32>() {
        return Some(seconds);
    }
    if trimmed.is_empty() {
        return None;
    }
    let digits: String = trimmed.chars().take_while(char::is_ascii_digit).collect();
    // So many digits that they are too large a number are a very long time.
    let seconds = (!digits.is_empty()).then(|| digits.parse().unwrap_or(u32::MAX));
    let counts = match seconds {
        None | Some(0) => "none".to_owned(),
        Some(seconds) => format!("{seconds} s"),
    };
    let what = format!("TIMEOUT = {} counts as {counts}; write a whole number of seconds, or 0 for none", shown(given));
    problems.push(Problem::warning(what));
    seconds
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::hook::{Outcome, Trigger};
    use crate::problem::Severity;

    fn hook(kind: &str, attributes: &str) -> (Option<Hook>, String) {
        let xml = format!(
            "<HOOK><ID>7</ID><NAME>x</NAME><TYPE>{kind}</TYPE><TEMPLATE><CALL>one.vm.action</CALL><COMMAND>c</COMMAND>\
             {attributes}</TEMPLATE></HOOK>"
        );
        let hook = PoolHook::parse(xml.as_bytes()).unwrap();
        let said = hook.problems.iter().map(|problem| match problem.severity {
            Severity::Error => format!("error {problem}\n"),
            Severity::Warning => format!("warning {problem}\n"),
        });
        (hook.hook, said.collect())
    }

    #[test]
    fn attributes_mean_what_they_mean_to_the_original() {
        for (attributes, stdin, timeout, said) in [
            ("", false, None, ""),
            ("<ARGUMENTS_STDIN>YeS</ARGUMENTS_STDIN>", true, None, ""),
            ("<ARGUMENTS_STDIN>no</ARGUMENTS_STDIN>", false, None, ""),
            (
                "<ARGUMENTS_STDIN><![CDATA[true]]></ARGUMENTS_STDIN>",
                false,
                None,
                "warning hook 7 (x): ARGUMENTS_STDIN = true counts as no",
            ),
            ("<TIMEOUT>30</TIMEOUT>", false, Some(30), ""),
            ("<TIMEOUT>0</TIMEOUT>", false, None, ""),
            ("<TIMEOUT>soon</TIMEOUT>", false, None, "warning hook 7 (x): TIMEOUT = soon counts as none"),
            ("<TIMEOUT>10s</TIMEOUT>", false, Some(10), "TIMEOUT = 10s counts as 10 s"),
            ("<TIMEOUT>-1</TIMEOUT>", false, None, "TIMEOUT = -1 counts as none"),
            ("<TIMEOUT>99999999999</TIMEOUT>", false, Some(u64::from(u32::MAX)), "counts as 4294967295 s"),
            ("<ON>RUNNING</ON>", false, None, ""),
            ("<TIMEOUT>5</TIMEOUT><TIMEOUT>x</TIMEOUT>", false, Some(5), ""),
        ] {
            let (hook, problems) = hook("api", attributes);
            let hook = hook.unwrap_or_else(|| panic!("{attributes}: {problems}"));
            assert_eq!((hook.arguments_stdin, hook.timeout), (stdin, timeout.map(Duration::from_secs)), "{attributes}");
            assert!(problems.contains(said) && problems.is_empty() == said.is_empty(), "{attributes}: {problems}");
            assert_eq!(hook.origin, Origin::Oned { id: 7 });
            assert_eq!(hook.trigger, Trigger::Api { call: "one.vm.action".into(), outcome: Outcome::Any });
        }
    }

    #[test]
    fn what_cannot_run_is_there_with_the_reason() {
        for (kind, attributes, expected) in [
            (
                "event",
                "<PREFIX>EVENT</PREFIX>",
                "error hook 7 (x): TYPE = event is unknown; hooks of oned have api or state",
            ),
            ("", "", "TYPE =  is unknown"),
            ("state", "", "error hook 7 (x): RESOURCE is missing"),
            ("api", "<ARGUMENTS><A>1</A></ARGUMENTS>", "error hook 7 (x): ARGUMENTS is a vector"),
        ] {
            let (hook, said) = hook(kind, attributes);
            assert!(hook.is_none() && said.contains(expected), "{kind} {attributes}: {said}");
        }
    }

    #[test]
    fn vectors_and_locks_are_kept() {
        let xml = "<HOOK><ID>3</ID><NAME>n</NAME><TYPE>api</TYPE><LOCK><LOCKED>1</LOCKED></LOCK><TEMPLATE><CALL>c</CALL>\
                   <COMMAND>x</COMMAND><OF_MINE><a>1</a><B/></OF_MINE></TEMPLATE></HOOK>";
        let hook = PoolHook::parse(xml.as_bytes()).unwrap();
        assert!(hook.locked && hook.hook.is_some());
        let vector = Value::Vector(vec![("A".into(), "1".into()), ("B".into(), String::new())]);
        assert_eq!(hook.template.get("OF_MINE").unwrap().value, vector);
    }

    #[test]
    fn a_list_that_is_not_whole_is_none() {
        let one = "<HOOK><ID>1</ID><NAME>a</NAME><TYPE>api</TYPE><TEMPLATE><CALL>one.vm.info</CALL><COMMAND>x</COMMAND></TEMPLATE></HOOK>";
        let said = |xml: &str| Pool::parse(xml.as_bytes()).unwrap_err().to_string();
        assert_eq!(said(&format!("<HOOK_POOL>{one}")), "the element HOOK_POOL ends too early");
        assert_eq!(said(&format!("<HOOK_POOL>{one}<HOOK><ID/>")), "the element HOOK_POOL ends too early");
        assert_eq!(said("<VM_POOL/>"), "expected the element HOOK_POOL, found VM_POOL");
        assert_eq!(said(""), "expected the element HOOK_POOL, found no XML");
        for empty in ["<HOOK_POOL/>", "<HOOK_POOL></HOOK_POOL>\n"] {
            assert_eq!(Pool::parse(empty.as_bytes()), Ok(Pool::default()));
        }
        let odd = format!("<HOOK_POOL>{one}{one}<HOOK><ID>x</ID><NAME>b</NAME></HOOK><HOOK/></HOOK_POOL>");
        let pool = Pool::parse(odd.as_bytes()).unwrap();
        assert_eq!(pool.executable().count(), 1);
        let said: Vec<_> = pool.problems().map(ToString::to_string).collect();
        assert_eq!(said.len(), 3, "{said:?}");
        assert!(said[1].contains("the hook \"b\" has no number (ID is \"x\")"), "{said:?}");
    }

    proptest! {
        #[test]
        fn any_text_is_survived(inner in "(<HOOK>|<ID>1</ID>|</HOOK>|<TEMPLATE>|<A>|[ -~]){0,30}") {
            let _ = Pool::parse(format!("<HOOK_POOL>{inner}</HOOK_POOL>").as_bytes());
            let _ = PoolHook::parse(format!("<HOOK><ID>1</ID>{inner}</HOOK>").as_bytes());
        }
    }
}
