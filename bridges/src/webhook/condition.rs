//! `when`: a condition in jq's language, evaluated by jaq.
//!
//! Its input is the event as a CloudEvent in JSON. The first thing that it yields decides: `false`, `null` and nothing at all mean that the event
//! isn't sent.
//!
//! # What keeps it from running away
//!
//! An evaluation can't be stopped from outside: a thread can't be ended, and what it allocates is the daemon's. So the language is cut down to
//! what always ends:
//!
//! - Only the filters of [`OFFERED`] can be called. Nothing in that list loops but over what is there (`until`, `while`, `repeat`, `range` and `recurse(f)` are
//!   not in it), reads a clock, the environment or input, or parses what an event holds. Definitions, `reduce`, `foreach`, labels and assignments
//!   are refused as well: a condition has no need of them.
//! - `*` multiplies numbers, and texts that are numbers; it doesn't repeat texts.
//! - What combines harmless things (`[.., ..] | [.., ..]`) is counted: each step, and each byte of what is made. Beyond [`STEPS`] and [`BYTES`] the
//!   evaluation ends in an error, and no `try` hides that.
//! - A value that is made counts with all that is in it, as often as it is in it: `[., .]` thirty times over takes next to nothing in memory, but what goes
//!   through it (`tojson`, `flatten`, `==`) would take a thousand million steps in one.
//! - What may make much more than it was given (`split("")`, `tojson`, `"\(...)"`, `join`), or goes through one thing for each part of another
//!   (`contains`, `-` of lists), is counted before it is done.
//! - Expressions have a length that a parser's stack is made for, and a depth that needs little of that which evaluates them.
//!
//! So neither what an event holds nor who writes the expression can hang the daemon or fill its memory. What an event takes when it is read as JSON, some
//! times its size, comes on top of [`BYTES`].

use std::cell::Cell;
use std::fmt;

use jaq_core::box_iter::box_once;
use jaq_core::data::HasLut;
use jaq_core::load::lex::StrPart;
use jaq_core::load::parse::{BinaryOp, Def, Pattern, Term};
use jaq_core::load::{self, Arena, File, Loader, parse};
use jaq_core::native::{self, Fun};
use jaq_core::ops::Math;
use jaq_core::path::{Part, Path};
use jaq_core::{Compiler, Ctx, DataT, Exn, Filter, Lut, ValT as _, Vars, unwrap_valr};
use jaq_json::Val;
use jaq_std::ValT as _;

/// The longest expression, in bytes.
const MOST_BYTES: usize = 4096;
/// How deep its parts may be in each other, which is what a pipe does with what follows. Four times as deep needs more stack than a thread has.
const MOST_DEPTH: usize = 250;
/// How many steps an evaluation may take.
const STEPS: u64 = 1_000_000;
/// How many bytes of values it may make, about.
const BYTES: u64 = 256 << 20;

/// What a condition can call, with the number of arguments.
const OFFERED: &[(&str, &[usize])] = &[
    ("IN", &[1]),
    ("abs", &[0]),
    ("add", &[0, 1]),
    ("all", &[0, 1, 2]),
    ("any", &[0, 1, 2]),
    ("arrays", &[0]),
    ("ascii_downcase", &[0]),
    ("ascii_upcase", &[0]),
    ("booleans", &[0]),
    ("ceil", &[0]),
    ("contains", &[1]),
    ("empty", &[0]),
    ("endswith", &[1]),
    ("error", &[0, 1]),
    ("false", &[0]),
    ("first", &[0, 1]),
    ("flatten", &[0]),
    ("floor", &[0]),
    ("from_entries", &[0]),
    ("getpath", &[1]),
    ("group_by", &[1]),
    ("has", &[1]),
    ("in", &[1]),
    ("index", &[1]),
    ("indices", &[1]),
    ("inside", &[1]),
    ("isarray", &[0]),
    ("isboolean", &[0]),
    ("isempty", &[1]),
    ("isnumber", &[0]),
    ("isobject", &[0]),
    ("isstring", &[0]),
    ("iterables", &[0]),
    ("join", &[1]),
    ("keys", &[0]),
    ("keys_unsorted", &[0]),
    ("last", &[0, 1]),
    ("length", &[0]),
    ("limit", &[2]),
    ("ltrim", &[0]),
    ("ltrimstr", &[1]),
    ("map", &[1]),
    ("max", &[0]),
    ("max_by", &[1]),
    ("min", &[0]),
    ("min_by", &[1]),
    ("not", &[0]),
    ("nth", &[1, 2]),
    ("null", &[0]),
    ("nulls", &[0]),
    ("numbers", &[0]),
    ("objects", &[0]),
    ("paths", &[0]),
    ("recurse", &[0]),
    ("reverse", &[0]),
    ("rindex", &[1]),
    ("round", &[0]),
    ("rtrim", &[0]),
    ("rtrimstr", &[1]),
    ("scalars", &[0]),
    ("select", &[1]),
    ("sort", &[0]),
    ("sort_by", &[1]),
    ("split", &[1]),
    ("startswith", &[1]),
    ("strings", &[0]),
    ("test", &[1, 2]),
    ("to_entries", &[0]),
    ("tojson", &[0]),
    ("tonumber", &[0]),
    ("tostring", &[0]),
    ("trim", &[0]),
    ("true", &[0]),
    ("type", &[0]),
    ("unique", &[0]),
    ("unique_by", &[1]),
    ("utf8bytelength", &[0]),
    ("values", &[0]),
    ("with_entries", &[1]),
];

/// Counts a step; put behind what may yield many things.
const STEP: &str = "hookbus_step";
/// Counts the bytes of its input with all that is in it; put behind what makes values.
const WEIGH: &str = "hookbus_weigh";
/// Counts as much of its input as there will be when it is written as text; put before what does that.
const WEIGH_TEXT: &str = "hookbus_weigh_text";
/// Counts as much of its input as there will be when it is taken apart; put before what does that.
const WEIGH_PARTS: &str = "hookbus_weigh_parts";
/// A text or number as a number, without jaq's parser for all of JSON.
const NUMBER: &str = "tonumber";

/// What passes on its input, or a part of it: it makes nothing.
const PASSING: &[&str] = &[
    "arrays",
    "booleans",
    "empty",
    "error",
    "first",
    "getpath",
    "iterables",
    "last",
    "limit",
    "max",
    "max_by",
    "min",
    "min_by",
    "nth",
    "nulls",
    "numbers",
    "objects",
    "recurse",
    "scalars",
    "select",
    "strings",
    "values",
];
/// What makes a text of its input: at most six characters of one, and numbers are longer written than held.
const WRITING: &[&str] = &["tojson", "tostring"];
/// What makes a value of each character or place of its input.
const DIVIDING: &[&str] = &["index", "indices", "rindex", "split"];
/// What takes the place of filters whose work, or result, is larger than what they are given: they count first. Where something is done for each of many
/// things, a list is weighed in which it stands so many times.
const CAREFUL: &str = "
    def hookbus_add(f): [f] | hookbus_weigh | add;
    def hookbus_join(f): f as $x | select([.[] | ., $x] | hookbus_weigh | true) | join($x);
    def hookbus_contains(f): f as $x | select([.. | $x] | hookbus_weigh | true) | contains($x);
    def hookbus_inside(f): . as $x | f | hookbus_contains($x);
    def hookbus_minus(f; g): f as $x | g as $y | select([$x | arrays | .[] | $y] | hookbus_weigh | true) | $x - $y;
";
/// The names of these, with the number of arguments.
const IN_PLACE: &[(&str, usize, &str)] = &[
    ("add", 1, "hookbus_add"),
    ("contains", 1, "hookbus_contains"),
    ("inside", 1, "hookbus_inside"),
    ("join", 1, "hookbus_join"),
];
const MINUS: &str = "hookbus_minus";

/// How much larger a text may be than what it is made of.
const TEXT_FACTOR: u64 = 8;
/// How much larger a value is than the character that it is made of.
const PART_FACTOR: u64 = 64;

/// A condition that can be evaluated.
pub(super) struct Condition {
    filter: Filter<Counted>,
}

impl fmt::Debug for Condition {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Condition(..)")
    }
}

/// Why a text is no condition: what is wrong and where, in one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConditionError(String);

impl Condition {
    /// Reads an expression.
    pub(super) fn new(text: &str) -> Result<Self, ConditionError> {
        if text.len() > MOST_BYTES {
            return Err(ConditionError(format!("it has {} bytes, and {MOST_BYTES} are the most", text.len())));
        }
        // The parser goes as deep as the text does, which is known only afterwards.
        super::with_deep_stack(|| Self::read(text)).unwrap_or_else(|| Err(ConditionError("it can't be read".into())))
    }

    fn read(text: &str) -> Result<Self, ConditionError> {
        let arena = Arena::default();
        // Once as it stands, for errors that know their place.
        let alone = Loader::new(definitions()).load(&arena, File { code: text, path: () });
        let modules = alone.map_err(|errors| {
            let error = errors.into_iter().next().map(|(_, error)| error);
            ConditionError(error.map_or_else(|| "it can't be read".into(), |error| unread(text, error)))
        })?;
        let term = parse(text, |parser| parser.term());
        let term =
            term.ok_or_else(|| ConditionError("it is no single expression; import and include aren't offered".into()))?;
        let guarded = Guard { text, depth: Cell::new(0) }.term(term)?;
        Self::compile(modules).map_err(|undefined| ConditionError(unknown(text, &undefined)))?;
        // And once with what counts.
        let condition = Def { name: "condition", args: Vec::new(), body: guarded };
        let modules = Loader::new(definitions().chain([condition])).load(&arena, File { code: "condition", path: () });
        let filter = modules.map_err(|_| ()).and_then(|modules| Self::compile(modules).map_err(|_| ()));
        Ok(Condition { filter: filter.map_err(|()| ConditionError("it can't be used".into()))? })
    }

    fn compile(modules: load::Modules<&str, ()>) -> Result<Filter<Counted>, Vec<(&str, String)>> {
        let compiled = Compiler::default().with_funs(functions()).compile(modules);
        compiled.map_err(|errors| {
            let all = errors.into_iter().flat_map(|(_, errors)| errors);
            all.map(|(name, what)| (name, what.as_str().to_owned())).collect()
        })
    }

    /// Whether an event is meant, of which this is the JSON. It takes its time, within bounds.
    ///
    /// # Errors
    /// When the expression says so, or can't be evaluated for this event.
    pub(super) fn holds(&self, event: &[u8]) -> Result<bool, String> {
        let input: Val = serde_json::from_slice(event).map_err(|error| format!("the event is no JSON: {error}"))?;
        let budget = Budget::default();
        let context = Ctx::<Counted>::new((&self.filter.lut, &budget), Vars::new([]));
        let first = self.filter.id.run((context, input)).map(unwrap_valr).next();
        if budget.is_spent() {
            return Err(format!("it takes more than {STEPS} steps, or {} MiB", BYTES >> 20));
        }
        match first {
            None => Ok(false),
            Some(Ok(value)) => Ok(value.as_bool()),
            Some(Err(error)) => {
                // A text is shown without quotation marks.
                let value = error.into_val();
                let bytes = value.as_utf8_bytes();
                let mut text =
                    bytes.map_or_else(|| value.to_string(), |bytes| String::from_utf8_lossy(bytes).into_owned());
                text.retain(|c| !c.is_control());
                if let Some((end, _)) = text.char_indices().nth(300) {
                    text.truncate(end);
                    text.push('…');
                }
                Err(text)
            }
        }
    }
}

/// Where something stands, for people: all of it in one line needs no line.
fn place(text: &str, offset: usize) -> String {
    let before = text.get(..offset).unwrap_or(text);
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    match before.matches('\n').count() {
        0 if !text.trim_end().contains('\n') => format!("at character {column}"),
        lines => format!("in line {} at character {column}", lines + 1),
    }
}

/// Where a part stands that was taken out of the text.
fn place_of(text: &str, part: &str) -> String {
    let range = load::span(text, part);
    if range.start <= text.len() { place(text, range.start) } else { "at its end".into() }
}

fn unread(text: &str, error: load::Error<&str>) -> String {
    match error {
        load::Error::Io(_) => "import and include aren't offered in a condition".into(),
        load::Error::Lex(errors) => match errors.into_iter().next() {
            Some((expected, found)) => {
                format!("{}: {} is expected", place_of(text, found), expected.as_str())
            }
            None => "it can't be read".into(),
        },
        load::Error::Parse(errors) => match errors.into_iter().next() {
            Some((expected, found)) => {
                let instead = match found.chars().count() {
                    0 => "the end of it".to_owned(),
                    1..=20 => format!("`{found}`"),
                    _ => format!("`{}…`", found.chars().take(20).collect::<String>()),
                };
                format!("{}: {} is expected instead of {instead}", place_of(text, found), expected.as_str())
            }
            None => "it can't be read".into(),
        },
    }
}

fn unknown(text: &str, undefined: &[(&str, String)]) -> String {
    match undefined.first() {
        Some((name, kind)) => format!("{}: there is no {kind} `{name}`", place_of(text, name)),
        None => "it can't be used".into(),
    }
}

/// What is defined by other filters. What parses JSON is left out: it has no bound on depth.
#[expect(clippy::map_identity, reason = "it makes a shorter life of 'static")]
fn definitions<'s>() -> impl Iterator<Item = Def<&'s str>> {
    // jq has it, jaq doesn't.
    let more = parse("def IN(xs): . as $x | any(xs; . == $x);", |parser| parser.defs()).unwrap_or_default();
    let careful = parse(CAREFUL, |parser| parser.defs()).unwrap_or_default();
    let all = jaq_core::defs().chain(jaq_std::defs()).chain(jaq_json::defs()).chain(more).chain(careful);
    let ours = ["tonumber", "toboolean", "totype"];
    all.filter(move |def| !ours.contains(&def.name)).map(|def| -> Def<&'s str> { def })
}

fn functions() -> impl Iterator<Item = Fun<Counted>> {
    let ours: [native::Filter<jaq_core::RunPtr<Counted>>; 5] = [
        (STEP, native::v(0), |cv| {
            let spent = cv.0.data().1.step();
            box_once(if spent { Err(Exn::from(spent_error())) } else { Ok(cv.1) })
        }),
        (WEIGH, native::v(0), |cv| {
            let spent = cv.0.data().1.weigh(&cv.1, 1);
            box_once(if spent { Err(Exn::from(spent_error())) } else { Ok(cv.1) })
        }),
        (WEIGH_TEXT, native::v(0), |cv| {
            let spent = cv.0.data().1.weigh(&cv.1, TEXT_FACTOR);
            box_once(if spent { Err(Exn::from(spent_error())) } else { Ok(cv.1) })
        }),
        (WEIGH_PARTS, native::v(0), |cv| {
            let spent = cv.0.data().1.weigh(&cv.1, PART_FACTOR);
            box_once(if spent { Err(Exn::from(spent_error())) } else { Ok(cv.1) })
        }),
        (NUMBER, native::v(0), |cv| box_once(number(cv.1).map_err(Exn::from))),
    ];
    let all = jaq_core::funs().chain(jaq_std::funs()).chain(jaq_json::funs());
    all.filter(|(name, ..)| *name != NUMBER).chain(ours.into_iter().map(native::run::<Counted>))
}

fn spent_error() -> jaq_core::Error<Val> {
    jaq_core::Error::str("it takes too long")
}

/// A text of digits as the number that it is.
fn number(value: Val) -> jaq_core::ValR<Val> {
    if matches!(value, Val::Num(_)) {
        return Ok(value);
    }
    let text = value.as_utf8_bytes().and_then(|bytes| std::str::from_utf8(bytes).ok()).map(str::trim);
    match text {
        Some(text) if text.len() <= 400 => match (text.parse::<isize>(), text.parse::<f64>()) {
            (Ok(whole), _) => return Ok(Val::from(whole)),
            (Err(_), Ok(float)) if float.is_finite() => return Ok(Val::from(float)),
            _ => {}
        },
        _ => {}
    }
    Err(jaq_core::Error::str(format_args!("{value} is no number")))
}

/// Values of JSON, and what an evaluation has left.
#[derive(Debug)]
struct Counted;

impl DataT for Counted {
    type V<'a> = Val;
    type Data<'a> = (&'a Lut<Self>, &'a Budget);
}

impl<'a> HasLut<'a, Counted> for (&'a Lut<Counted>, &'a Budget) {
    fn lut(&self) -> &'a Lut<Counted> {
        self.0
    }
}

/// What an evaluation has left.
#[derive(Debug)]
struct Budget {
    steps: Cell<u64>,
    bytes: Cell<u64>,
}

impl Default for Budget {
    fn default() -> Self {
        Budget { steps: Cell::new(STEPS), bytes: Cell::new(BYTES) }
    }
}

impl Budget {
    fn is_spent(&self) -> bool {
        self.steps.get() == 0 || self.bytes.get() == 0
    }

    /// Takes a step; whether nothing is left.
    fn step(&self) -> bool {
        self.steps.set(self.steps.get().saturating_sub(1));
        self.is_spent()
    }

    /// Counts a value that many times, with all that is in it, as often as it is in it; whether nothing is left.
    fn weigh(&self, value: &Val, times: u64) -> bool {
        self.take(value, times);
        self.step()
    }

    /// It goes through the value until nothing is left. Values are not deep: an event's JSON has a bound, and so have expressions.
    fn take(&self, value: &Val, times: u64) {
        let own = size_of::<Val>();
        let bytes = match value {
            Val::BStr(bytes) | Val::TStr(bytes) => own + bytes.len(),
            Val::Arr(_) | Val::Null | Val::Bool(_) | Val::Num(_) => own,
            Val::Obj(all) => own + all.len() * 2 * own,
        };
        self.bytes.set(self.bytes.get().saturating_sub(times.saturating_mul(bytes as u64)));
        match value {
            Val::Arr(all) => all.iter().take_while(|_| self.bytes.get() > 0).for_each(|one| self.take(one, times)),
            Val::Obj(all) => all.iter().take_while(|_| self.bytes.get() > 0).for_each(|(key, one)| {
                self.take(key, times);
                self.take(one, times);
            }),
            Val::BStr(_) | Val::TStr(_) | Val::Null | Val::Bool(_) | Val::Num(_) => {}
        }
    }
}

/// Refuses what isn't offered, and puts what counts between the rest.
struct Guard<'s> {
    text: &'s str,
    /// How deep it is in the expression.
    depth: Cell<usize>,
}

type Guarded<'s> = Result<Term<&'s str>, ConditionError>;

impl<'s> Guard<'s> {
    fn refuse<T>(&self, part: &'s str, what: &str) -> Result<T, ConditionError> {
        Err(ConditionError(format!("{}: {what}", place_of(self.text, part))))
    }

    fn boxed(&self, term: Term<&'s str>) -> Result<Box<Term<&'s str>>, ConditionError> {
        self.term(term).map(Box::new)
    }

    fn optional(&self, term: Option<Box<Term<&'s str>>>) -> Result<Option<Box<Term<&'s str>>>, ConditionError> {
        term.map(|term| self.boxed(*term)).transpose()
    }

    fn term(&self, term: Term<&'s str>) -> Guarded<'s> {
        self.depth.set(self.depth.get() + 1);
        if self.depth.get() > MOST_DEPTH {
            let what =
                format!("more than {MOST_DEPTH} parts follow one another or are in each other; write it more simply");
            return Err(ConditionError(what));
        }
        let guarded = self.guarded(term);
        self.depth.set(self.depth.get() - 1);
        guarded
    }

    fn guarded(&self, term: Term<&'s str>) -> Guarded<'s> {
        Ok(match term {
            Term::Id | Term::Num(_) | Term::Var(_) => term,
            Term::Recurse => counted(term, STEP),
            Term::Str(None, parts) => {
                let part = |part| {
                    Ok(match part {
                        StrPart::Term(term) => StrPart::Term(counted(self.term(term)?, WEIGH_TEXT)),
                        plain => plain,
                    })
                };
                let parts: Vec<_> = parts.into_iter().map(part).collect::<Result<_, _>>()?;
                match &parts[..] {
                    [] | [StrPart::Str(_)] => Term::Str(None, parts),
                    _ => counted(Term::Str(None, parts), WEIGH),
                }
            }
            Term::Str(Some(format), _) => return self.refuse(format, "formats aren't offered in a condition"),
            Term::Arr(inner) => counted(Term::Arr(self.optional(inner)?), WEIGH),
            Term::Obj(entries) => {
                let entry = |(key, value): (Term<&'s str>, Option<Term<&'s str>>)| {
                    Ok((self.term(key)?, value.map(|value| self.term(value)).transpose()?))
                };
                counted(Term::Obj(entries.into_iter().map(entry).collect::<Result<_, _>>()?), WEIGH)
            }
            Term::Neg(inner) => Term::Neg(self.boxed(*inner)?),
            Term::BinOp(left, op, right) => self.operation(*left, op, *right)?,
            Term::TryCatch(inner, catch) => Term::TryCatch(self.boxed(*inner)?, self.optional(catch)?),
            Term::IfThenElse(branches, last) => {
                let branch = |(condition, then)| Ok((self.term(condition)?, self.term(then)?));
                let branches = branches.into_iter().map(branch).collect::<Result<_, _>>()?;
                Term::IfThenElse(branches, self.optional(last)?)
            }
            Term::Path(from, Path(parts)) => {
                let part = |(part, optional)| {
                    let part = match part {
                        Part::Index(index) => Part::Index(self.term(index)?),
                        Part::Range(from, to) => {
                            let end = |end: Option<Term<&'s str>>| end.map(|end| self.term(end)).transpose();
                            Part::Range(end(from)?, end(to)?)
                        }
                    };
                    Ok((part, optional))
                };
                let parts = parts.into_iter().map(part).collect::<Result<_, _>>()?;
                counted(Term::Path(self.boxed(*from)?, Path(parts)), STEP)
            }
            Term::Call(name, arguments) => self.call(name, arguments)?,
            Term::Fold(name, ..) => {
                return self.refuse(
                    name,
                    &format!("`{name}` isn't offered in a condition; there are any, all, map, add and select"),
                );
            }
            Term::Label(name, _) | Term::Break(name) => {
                return self.refuse(name, "labels aren't offered in a condition");
            }
            Term::Def(definitions, _) => {
                let name = definitions.first().map_or(self.text, |def| def.name);
                return self.refuse(name, "definitions aren't offered in a condition");
            }
        })
    }

    fn operation(&self, left: Term<&'s str>, op: BinaryOp<&'s str>, right: Term<&'s str>) -> Guarded<'s> {
        let op = match op {
            BinaryOp::Pipe(None)
            | BinaryOp::Comma
            | BinaryOp::Alt
            | BinaryOp::Or
            | BinaryOp::And
            | BinaryOp::Cmp(_) => op,
            BinaryOp::Pipe(Some(pattern)) => BinaryOp::Pipe(Some(self.pattern(pattern)?)),
            BinaryOp::Math(Math::Mul) => {
                let number = |term: Term<&'s str>| counted(term, NUMBER);
                let (left, right) = (self.term(left)?, self.term(right)?);
                return Ok(Term::BinOp(number(left).into(), op, number(right).into()));
            }
            BinaryOp::Math(Math::Sub) => {
                return Ok(counted(Term::Call(MINUS, vec![self.term(left)?, self.term(right)?]), WEIGH));
            }
            BinaryOp::Math(_) => {
                let (left, right) = (self.term(left)?, self.term(right)?);
                return Ok(counted(Term::BinOp(left.into(), op, right.into()), WEIGH));
            }
            BinaryOp::Assign | BinaryOp::Update | BinaryOp::UpdateMath(_) | BinaryOp::UpdateAlt => {
                return Err(ConditionError(
                    "=, |=, += and the like change values, which a condition can't; to compare, write ==".into(),
                ));
            }
        };
        Ok(Term::BinOp(self.term(left)?.into(), op, self.term(right)?.into()))
    }

    fn pattern(&self, pattern: Pattern<&'s str>) -> Result<Pattern<&'s str>, ConditionError> {
        Ok(match pattern {
            Pattern::Var(_) => pattern,
            Pattern::Arr(all) => Pattern::Arr(all.into_iter().map(|one| self.pattern(one)).collect::<Result<_, _>>()?),
            Pattern::Obj(all) => {
                let entry = |(key, value)| Ok((self.term(key)?, self.pattern(value)?));
                Pattern::Obj(all.into_iter().map(entry).collect::<Result<_, _>>()?)
            }
        })
    }

    fn call(&self, name: &'s str, arguments: Vec<Term<&'s str>>) -> Guarded<'s> {
        let offered = OFFERED.iter().find(|(known, _)| *known == name);
        match offered {
            None => self.refuse(name, &format!("`{name}` isn't offered in a condition, see the list in webhook.md")),
            Some((_, counts)) if !counts.contains(&arguments.len()) => {
                let counts: Vec<_> = counts.iter().map(ToString::to_string).collect();
                let what = format!("`{name}` takes {} arguments here, not {}", counts.join(" or "), arguments.len());
                self.refuse(name, &what)
            }
            Some(_) => {
                let arguments: Vec<_> =
                    arguments.into_iter().map(|argument| self.term(argument)).collect::<Result<_, _>>()?;
                let ours = IN_PLACE.iter().find(|(theirs, count, _)| *theirs == name && *count == arguments.len());
                let call = Term::Call(ours.map_or(name, |(.., ours)| *ours), arguments);
                Ok(match name {
                    _ if PASSING.contains(&name) => counted(call, STEP),
                    _ if WRITING.contains(&name) => counted(after(WEIGH_TEXT, call), WEIGH),
                    _ if DIVIDING.contains(&name) => counted(after(WEIGH_PARTS, call), WEIGH),
                    _ => counted(call, WEIGH),
                })
            }
        }
    }
}

/// The term, and this filter behind it.
fn counted<'s>(term: Term<&'s str>, by: &'static str) -> Term<&'s str> {
    Term::BinOp(term.into(), BinaryOp::Pipe(None), Term::Call(by, Vec::new()).into())
}

/// The term, and this filter before it.
fn after<'s>(by: &'static str, term: Term<&'s str>) -> Term<&'s str> {
    Term::BinOp(Term::Call(by, Vec::new()).into(), BinaryOp::Pipe(None), term.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENT: &str = r#"{"id":"1","type":"org.ganeti.hook","data":{"op":"instance-migrate","phase":"post","name":"web1",
        "tags":["a","b"],"cpu":"4","n":7,"deep":{"x":null}}}"#;

    fn holds(text: &str) -> Result<bool, String> {
        Condition::new(text).map_err(|error| format!("refused: {error}"))?.holds(EVENT.as_bytes())
    }

    #[test]
    fn conditions_decide() {
        for (text, expected) in [
            (".data.op == \"instance-migrate\" and .data.phase == \"post\"", true),
            (".data.op == \"instance-add\"", false),
            (".data.missing", false),
            (".data.missing.too?", false),
            ("empty", false),
            ("null", false),
            ("0", true),
            (".data.tags | index(\"b\")", true),
            (".data.tags | any(. == \"c\")", false),
            (".data.name | test(\"^web[0-9]+$\")", true),
            (".data | has(\"cpu\")", true),
            ("(.data.cpu | tonumber) * 2 > 7", true),
            (".data.cpu * 2 > 7", true),
            (".data.n % 2 == 1", true),
            ("[.data.tags[] | ascii_upcase] == [\"A\",\"B\"]", true),
            (".data.op | IN(\"a\", \"instance-migrate\")", true),
            ("[.. | strings] | length > 5", true),
            ("if .data.phase == \"post\" then .data.deep.x else true end", false),
            ("try error(\"x\") catch . == \"x\"", true),
            (".data as {op: $op, name: $name} | \"\\($op) \\($name)\" == \"instance-migrate web1\"", true),
            ("false, true", false),
            (".type | startswith(\"org.ganeti.\")", true),
            (".data | with_entries(select(.key == \"n\")) == {\"n\": 7}", true),
            (".data.tags | join(\"-\") == \"a-b\"", true),
            ("[\"a\", 1] | join(\",\") == \"a,1\"", true),
            ("[.data.tags | add, add(.[]), add(empty)] == [\"ab\", \"ab\", null]", true),
            ("(.data.tags - [\"a\"]) == [\"b\"] and (.data.n - 2) == 5 and ([(5, 6) - (1, 2)] == [4, 3, 5, 4])", true),
            ("(.data | contains({tags: [\"a\"]})) and (\"web\" | inside(\"web1\"))", true),
            (".data.name | contains(\"eb\")", true),
        ] {
            assert_eq!(holds(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_evaluated_is_an_error() {
        for (text, expected) in [
            (".data.deep.x | test(\"a\")", "null"),
            (".data.op + 1", "cannot calculate"),
            ("error(\"no such thing\")", "no such thing"),
            (".data.name | tonumber", "is no number"),
            ("\"[[[[\" | tonumber", "is no number"),
        ] {
            let error = holds(text).unwrap_err();
            assert!(error.contains(expected) && !error.starts_with("refused"), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (text, expected) in [
            (".data.op ==", "is expected"),
            (".data.op = \"x\"", "to compare, write =="),
            (".data | (", "at character 10: closing parenthesis is expected"),
            ("\n.a and\nfoo(.b)", "in line 3 at character 1: `foo` isn't offered"),
            (".a | starts_with(\"b\")", "at character 6: `starts_with` isn't offered"),
            (".a | startswith", "at character 6: `startswith` takes 1 arguments here, not 0"),
            ("$ENV.HOME", "at character 1: there is no variable `$ENV`"),
            ("$x", "at character 1: there is no variable `$x`"),
            ("include \"x\"; true", "import and include"),
            ("def f: f; f", "definitions aren't offered"),
            ("reduce .[] as $x (0; . + $x)", "`reduce` isn't offered"),
            ("@base64 \"x\"", "formats aren't offered"),
            ("", "is expected"),
        ] {
            let error = Condition::new(text).map(drop).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        assert!(Condition::new(&"(".repeat(5000)).is_err());
        assert!(Condition::new(&"[".repeat(3000)).is_err());
        assert!(Condition::new(&"-".repeat(4000)).is_err());
        let error = Condition::new(&(".|".repeat(1000) + ".")).map(drop).unwrap_err().to_string();
        assert!(error.contains("write it more simply"), "{error}");
        assert!(Condition::new(&("., ".repeat(200) + ".")).is_ok(), "that is still simple");
        assert!(Condition::new(&". | ".repeat(900)).is_err(), "it ends in a bar");
    }

    /// The longest expressions of each shape are refused or evaluated, within the stack of any thread.
    #[test]
    fn long_expressions_need_no_deep_stack() {
        let shapes = [
            (".|", "."),
            (".+", "."),
            ("1*", "1"),
            (".//", "."),
            ("not|", "."),
            ("[.]|", "."),
            (". as $x|", "."),
            (". as[$x]|", "."),
            (".a", ""),
            (".[0]?", ""),
            ("1,", "1"),
            ("1 and ", "1"),
            ("-", "1"),
            ("try ", "1"),
            ("if 1 then ", "1"),
            ("if 1 then 1 elif ", "1"),
            ("(.)|", "1"),
            ("..|", "1"),
            ("{a:.}|", "."),
            ("\"\\(.)\"|", "."),
            ("first|", "."),
            ("map(.)|", "."),
            (".[.", ""),
            (".?", ""),
            ("1==", "1"),
        ];
        for (shape, end) in shapes {
            let full = MOST_BYTES.saturating_sub(end.len()) / shape.len();
            for count in [full, full / 2, full / 8, MOST_DEPTH - 1, MOST_DEPTH / 2 - 1] {
                let text = shape.repeat(count) + end;
                if let Ok(condition) = Condition::new(&text) {
                    let _ = condition.holds(EVENT.as_bytes());
                }
            }
        }
    }

    /// What would never end is refused where it is read; what multiplies is stopped.
    #[test]
    fn nothing_runs_away() {
        for text in [
            "range(infinite)",
            "[range(infinite)]",
            "until(false; .)",
            "last(repeat(1))",
            "while(true; .)",
            "[limit(1000000000; repeat(1))]",
            "input",
            "env",
            "now",
            "fromjson",
            "halt",
        ] {
            let error = Condition::new(text).map(drop).unwrap_err().to_string();
            assert!(error.contains("isn't offered"), "{text}: {error}");
        }
        assert!(Condition::new("recurse(.)").is_err(), "only the one without an argument");
        let many = "[., .]".to_owned() + &" | [.[], .[]]".repeat(40) + " | length > 0";
        let doubled = "\"x\"".to_owned() + &" | . + .".repeat(100) + " | length > 0";
        let nested = "[.. as $a | .. as $b | .. as $c | .. as $d | .. as $e | .. as $f | .. as $g | 1] | length > 0";
        let woven = "\"x\"".to_owned() + &" | \"\\(.)\\(.)\"".repeat(60) + " | length > 0";
        for text in [&many, &doubled, nested, &woven, &format!("try ({many}) catch true"), &format!("({many}) // true")]
        {
            let error = holds(text).unwrap_err();
            assert!(error.starts_with("it takes more than"), "{text}: {error}");
        }
        // What shares its parts is small, until somebody goes through it.
        let shared = "[1]".to_owned() + &" | [., .]".repeat(60);
        let objects = "{a: 1}".to_owned() + &" | {a: ., b: .}".repeat(60);
        for end in ["tojson", "tostring", "flatten", "\"\\(.)\"", ". == [1]", "error", "[..] | length", "sort", "keys"]
        {
            for text in [&shared, &objects] {
                let error = holds(&format!("{text} | {end}")).unwrap_err();
                assert!(error.starts_with("it takes more than"), "{end}: {error}");
            }
        }
        let large = format!("{{\"data\":\"{}\"}}", "x".repeat(8 << 20));
        for text in [".data | split(\"\")", ".data | indices(\"x\")", "[.data, .data, .data, .data, .data] | tojson"] {
            let error = Condition::new(text).unwrap().holds(large.as_bytes()).unwrap_err();
            assert!(error.starts_with("it takes more than"), "{text}: {error}");
        }
        assert_eq!(
            Condition::new(".data | test(\"^x+$\") and startswith(\"x\")").unwrap().holds(large.as_bytes()),
            Ok(true)
        );
        let list = format!("{{\"a\":[{}1],\"x\":\"{}\"}}", "1,".repeat(20_000), "x".repeat(1 << 20));
        for text in [
            ". as $all | .a | join($all.x)",
            ". as $all | add(.a[] | $all.x)",
            "[.a[] | . + 1] as $other | .a | contains($other)",
            "[.a[] | . + 1] as $other | .a | inside($other)",
            "[.a[] | . + 1] as $other | $other - .a",
        ] {
            let error = Condition::new(text).unwrap().holds(list.as_bytes()).unwrap_err();
            assert!(error.starts_with("it takes more than"), "{text}: {error}");
        }
        let error = holds("\"x\" * 1000000000 | length > 0").unwrap_err();
        assert!(error.contains("is no number"), "{error}");
    }
}
