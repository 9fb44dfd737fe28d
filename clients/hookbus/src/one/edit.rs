//! Changes HM_MAD in the text of an oned.conf, and takes the change back. No file is touched here.
//!
//! What stood there is kept as comments in the same place, between two marks:
//!
//! ```text
//! # hookbus one enable: what stood here is kept in the comments below until `hookbus one disable` brings it back.
//! #hookbus: HM_MAD = [
//! #hookbus:     EXECUTABLE = "one_hm",
//! #hookbus:     ARGUMENTS = "-p 2101 -l 2102 -b 127.0.0.1" ]   # a comment of the administrator's
//! HM_MAD = [
//!     EXECUTABLE = "/usr/bin/hookbus",
//!     ARGUMENTS = "hm -p 2101 -l 2102 -b 127.0.0.1" ]
//! # hookbus one enable: end
//! ```
//!
//! So taking it back needs nothing but the file, and doesn't mind what was changed elsewhere in it. Each change is checked
//! by reading the result again, and by taking it back, before anybody gets it.

use std::ops::Range;
use std::path::Path;

use thiserror::Error;

use super::syntax::{Attribute, SyntaxError, Value, line_of, parse};

const BEGIN: &[u8] =
    b"# hookbus one enable: what stood here is kept in the comments below until `hookbus one disable` brings it back.";
const KEPT: &[u8] = b"#hookbus: ";
const END: &[u8] = b"# hookbus one enable: end";
/// The end of a file that didn't end in a line break.
const END_OF_FILE: &[u8] = b"# hookbus one enable: end of the file, without a line break";

/// Why a text can't be changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum EditError {
    #[error("{0}; oned can't read the file either, correct it first")]
    Syntax(#[from] SyntaxError),
    #[error(
        "there is no HM_MAD in it, so oned runs no hook driver; add this and try again:\n\
         HM_MAD = [ EXECUTABLE = \"one_hm\", ARGUMENTS = \"-p 2101 -l 2102 -b 127.0.0.1\" ]"
    )]
    None,
    #[error("HM_MAD is in it {count} times, in lines {lines}; remove or comment out all but one")]
    Several { count: usize, lines: String },
    #[error(
        "line {line}: HM_MAD is no vector with an EXECUTABLE; write HM_MAD = [ EXECUTABLE = \"one_hm\", ARGUMENTS = \"...\" ]"
    )]
    NoExecutable { line: usize },
    #[error("line {line}: something else stands in the lines of HM_MAD; put HM_MAD on lines of its own")]
    Crowded { line: usize },
    #[error(
        "line {line}: HM_MAD runs `{executable}`, which is neither one_hm nor hookbus; if it may be replaced, say --force"
    )]
    Foreign { line: usize, executable: String },
    #[error(
        "line {line}: HM_MAD runs hookbus, but `hookbus one enable` didn't write that, or its marks are gone; change it by hand, \
         the original is EXECUTABLE = \"one_hm\", ARGUMENTS = \"-p 2101 -l 2102 -b 127.0.0.1\""
    )]
    NotOurs { line: usize },
    #[error(
        "line {line}: what stands between the marks of `hookbus one enable` isn't what it wrote; change it by hand"
    )]
    Tampered { line: usize },
    #[error("`{0}` can't be written into the file: it has a quote, a backslash or a control character in it")]
    Unwritable(String),
    #[error("the result was not what it should be, so nothing was changed; please report this as a fault of hookbus")]
    Wrong,
}

/// What HM_MAD says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HookDriver {
    /// The line it begins in, counted from 1.
    pub(super) line: usize,
    pub(super) executable: String,
    pub(super) arguments: String,
    /// Whatever else is in it.
    others: Vec<(String, String)>,
    span: Range<usize>,
}

/// Which program HM_MAD runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Original,
    Hookbus,
    Foreign,
}

impl HookDriver {
    /// The one that is in force.
    pub(super) fn of(text: &[u8]) -> Result<Self, EditError> {
        let attributes = parse(text)?;
        let found: Vec<&Attribute> = attributes.iter().filter(|attribute| attribute.name == "HM_MAD").collect();
        let [hm_mad] = &found[..] else {
            if found.is_empty() {
                return Err(EditError::None);
            }
            let lines: Vec<_> = found.iter().map(|found| line_of(text, found.span.start).to_string()).collect();
            return Err(EditError::Several { count: found.len(), lines: lines.join(", ") });
        };
        let line = line_of(text, hm_mad.span.start);
        let Value::Vector(pairs) = &hm_mad.value else { return Err(EditError::NoExecutable { line }) };
        let get = |name: &str| pairs.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
        let others = pairs.iter().filter(|(name, _)| !matches!(&**name, "EXECUTABLE" | "ARGUMENTS")).cloned().collect();
        Ok(HookDriver {
            line,
            executable: get("EXECUTABLE").ok_or(EditError::NoExecutable { line })?,
            arguments: get("ARGUMENTS").unwrap_or_default(),
            others,
            span: hm_mad.span.clone(),
        })
    }

    /// Which program that is, by its name.
    pub(super) fn kind(&self) -> Kind {
        let name = Path::new(&self.executable).file_name().and_then(|name| name.to_str());
        let first = self.arguments.split_whitespace().find(|word| !word.starts_with('-'));
        match name {
            Some("hookbus-hm") => Kind::Hookbus,
            Some("hookbus") if first == Some("hm") || self.arguments.split_whitespace().any(|word| word == "hm") => {
                Kind::Hookbus
            }
            Some("one_hm" | "one_hm.rb") => Kind::Original,
            _ => Kind::Foreign,
        }
    }
}

/// What to write into HM_MAD.
#[derive(Clone, Debug)]
pub(super) struct Wanted<'a> {
    /// Its EXECUTABLE.
    pub(super) executable: &'a str,
    /// Its ARGUMENTS behind `hm`; those of the driver that is replaced unless given.
    pub(super) arguments: Option<&'a str>,
    /// Whether any program may be replaced.
    pub(super) force: bool,
}

/// The text with hookbus as the driver. What `disable` takes back must be in force, or nothing of ours.
pub(super) fn enable(text: &[u8], wanted: &Wanted<'_>) -> Result<Vec<u8>, EditError> {
    let old = HookDriver::of(text)?;
    match old.kind() {
        Kind::Original => {}
        Kind::Hookbus => return Err(EditError::NotOurs { line: old.line }),
        Kind::Foreign if wanted.force => {}
        Kind::Foreign => return Err(EditError::Foreign { line: old.line, executable: old.executable }),
    }
    let arguments = wanted.arguments.unwrap_or(&old.arguments).trim();
    let arguments = if arguments.is_empty() { "hm".to_owned() } else { format!("hm {arguments}") };
    let lines = whole_lines(text, &old)?;
    let kept = &text[lines.clone()];
    let line_break: &[u8] = if kept.split(|byte| *byte == b'\n').next().is_some_and(|line| line.ends_with(b"\r")) {
        b"\r\n"
    } else {
        b"\n"
    };
    let ends_in_break = kept.ends_with(b"\n");

    let mut new = Vec::with_capacity(text.len() + 1024);
    new.extend_from_slice(&text[..lines.start]);
    new.extend_from_slice(BEGIN);
    new.extend_from_slice(line_break);
    for line in kept.split_inclusive(|byte| *byte == b'\n') {
        new.extend_from_slice(KEPT);
        new.extend_from_slice(line);
    }
    if !ends_in_break {
        new.extend_from_slice(line_break);
    }
    let mut pairs = vec![("EXECUTABLE", wanted.executable), ("ARGUMENTS", &*arguments)];
    pairs.extend(old.others.iter().map(|(name, value)| (&**name, &**value)));
    let write = |(name, value)| quoted(value).map(|value| format!("{name} = {value}"));
    let pairs: Vec<String> = pairs.into_iter().map(write).collect::<Result<_, _>>()?;
    let line_break_text = String::from_utf8_lossy(line_break);
    let block = format!("HM_MAD = [{line_break_text}    {} ]", pairs.join(&format!(",{line_break_text}    ")));
    new.extend_from_slice(block.as_bytes());
    new.extend_from_slice(line_break);
    new.extend_from_slice(if ends_in_break { END } else { END_OF_FILE });
    new.extend_from_slice(line_break);
    new.extend_from_slice(&text[lines.end..]);

    let result = HookDriver::of(&new)?;
    let right = result.executable == wanted.executable
        && result.arguments == arguments
        && result.others == old.others
        && disable(&new)?.as_deref() == Some(text);
    if right { Ok(new) } else { Err(EditError::Wrong) }
}

/// The text with what `enable` had replaced, or nothing if there is nothing to take back.
pub(super) fn disable(text: &[u8]) -> Result<Option<Vec<u8>>, EditError> {
    let Some(Enabled { region, kept, at_end_of_file }) = Enabled::find(text)? else {
        let driver = HookDriver::of(text)?;
        return match driver.kind() {
            Kind::Hookbus => Err(EditError::NotOurs { line: driver.line }),
            Kind::Original | Kind::Foreign => Ok(None),
        };
    };
    let mut new = text[..region.start].to_vec();
    new.extend_from_slice(&kept);
    // Something may have been added behind it since.
    if at_end_of_file && region.end == text.len() {
        let line_break = if new.ends_with(b"\r\n") { 2 } else { 1 };
        new.truncate(new.len() - line_break);
    }
    new.extend_from_slice(&text[region.end..]);
    HookDriver::of(&new)?;
    Ok(Some(new))
}

/// What `enable` wrote, found again.
struct Enabled {
    /// From the first mark to the end of the last one's line.
    region: Range<usize>,
    /// What stood there before.
    kept: Vec<u8>,
    at_end_of_file: bool,
}

impl Enabled {
    fn find(text: &[u8]) -> Result<Option<Self>, EditError> {
        let mut at = 0;
        let lines: Vec<(usize, &[u8])> = text
            .split_inclusive(|byte| *byte == b'\n')
            .map(|line| {
                let start = at;
                at += line.len();
                (start, line)
            })
            .collect();
        let is = |line: &[u8], mark: &[u8]| line.trim_ascii_end() == mark;
        let begins: Vec<usize> = (0..lines.len()).filter(|index| is(lines[*index].1, BEGIN)).collect();
        let [begin] = begins[..] else {
            return match begins.get(1) {
                None => Ok(None),
                Some(second) => Err(EditError::Tampered { line: second + 1 }),
            };
        };
        let tampered = || EditError::Tampered { line: begin + 1 };
        let behind = &lines[begin + 1..];
        let end = behind.iter().position(|(_, line)| is(line, END) || is(line, END_OF_FILE)).ok_or_else(tampered)?;
        let (end_start, end_line) = behind[end];
        let (kept, written): (Vec<_>, Vec<_>) = behind[..end].iter().partition(|(_, line)| line.starts_with(KEPT));
        let kept: Vec<u8> = kept.iter().flat_map(|(_, line)| &line[KEPT.len()..]).copied().collect();
        let written: Vec<u8> = written.iter().flat_map(|(_, line)| *line).copied().collect();
        // Only HM_MAD goes away with the marks, whatever it says by now.
        let only_hm_mad = matches!(&parse(&written)?[..], [only] if only.name == "HM_MAD");
        if kept.is_empty() || !only_hm_mad {
            return Err(tampered());
        }
        let region = lines[begin].0..end_start + end_line.len();
        Ok(Some(Enabled { region, kept, at_end_of_file: is(end_line, END_OF_FILE) }))
    }
}

/// Whether `enable` has written into this text, and it is still there.
pub(super) fn is_enabled(text: &[u8]) -> Result<bool, EditError> {
    Ok(Enabled::find(text)?.is_some())
}

/// The lines that HM_MAD is in, which nothing else may be in but a comment behind it.
fn whole_lines(text: &[u8], driver: &HookDriver) -> Result<Range<usize>, EditError> {
    let span = &driver.span;
    let start = text[..span.start].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let end = text[span.end..].iter().position(|byte| *byte == b'\n').map_or(text.len(), |at| span.end + at + 1);
    let before = &text[start..span.start];
    let behind = text[span.end..end].trim_ascii();
    if !before.trim_ascii().is_empty() || !(behind.is_empty() || behind.starts_with(b"#")) {
        return Err(EditError::Crowded { line: driver.line });
    }
    Ok(start..end)
}

fn quoted(value: &str) -> Result<String, EditError> {
    // A backslash in front of the closing quote would hide it, so none is taken.
    if value.contains('\\') || value.chars().any(char::is_control) {
        return Err(EditError::Unwritable(value.escape_debug().to_string()));
    }
    Ok(format!("\"{}\"", value.replace('"', "\\\"")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHIPPED: &str = "PORT = 2633\n\n# the driver\nHM_MAD = [\n    EXECUTABLE = \"one_hm\",\n    \
        ARGUMENTS = \"-p 2101 -l 2102 -b 127.0.0.1\"]\n\nHOOK_LOG_CONF = [\n    LOG_RETENTION = 20 ]\n";

    fn wanted(arguments: Option<&str>) -> Wanted<'_> {
        Wanted { executable: "/usr/bin/hookbus", arguments, force: false }
    }

    fn enabled(text: &str) -> String {
        String::from_utf8(enable(text.as_bytes(), &wanted(None)).unwrap_or_else(|e| panic!("{text}: {e}"))).unwrap()
    }

    fn disabled(text: &str) -> String {
        String::from_utf8(disable(text.as_bytes()).unwrap().expect("it is enabled")).unwrap()
    }

    #[test]
    fn the_shipped_block_becomes_ours_and_is_kept_beside_it() {
        let text = enabled(SHIPPED);
        let begin = String::from_utf8_lossy(BEGIN);
        let expected = format!(
            "PORT = 2633\n\n# the driver\n{begin}\n#hookbus: HM_MAD = [\n#hookbus:     EXECUTABLE = \"one_hm\",\n\
             #hookbus:     ARGUMENTS = \"-p 2101 -l 2102 -b 127.0.0.1\"]\nHM_MAD = [\n    EXECUTABLE = \"/usr/bin/hookbus\",\n    \
             ARGUMENTS = \"hm -p 2101 -l 2102 -b 127.0.0.1\" ]\n# hookbus one enable: end\n\nHOOK_LOG_CONF = [\n    \
             LOG_RETENTION = 20 ]\n"
        );
        assert_eq!(text, expected);
        assert_eq!(disabled(&text), SHIPPED);
        assert_eq!(HookDriver::of(text.as_bytes()).unwrap().kind(), Kind::Hookbus);
    }

    #[test]
    fn every_way_to_write_it_comes_back_byte_for_byte() {
        for text in [
            "HM_MAD = [ EXECUTABLE = \"one_hm\", ARGUMENTS = \"-p 1 -l 2\" ]",
            "HM_MAD=[EXECUTABLE=one_hm]\n",
            "\t hm_mad = [ executable = \"/usr/lib/one/mads/one_hm\" ] # mine\r\nA = 1\r\n",
            "A = 1\nHM_MAD = [ # a\n# EXECUTABLE = \"x\",\n\n EXECUTABLE = \"one_hm\" # b\n , ARGUMENTS = \"-h 5\n -t 3\" ]\n",
            "#HM_MAD = [ EXECUTABLE = \"a\" ]\nHM_MAD = [ EXECUTABLE = \"one_hm\", X = \"say \\\"y\\\"\" ]   \n\n\n",
            "T = \"HM_MAD = [ EXECUTABLE = \\\"b\\\" ]\"\nHM_MAD = [ EXECUTABLE = \"one_hm\", ARGUMENTS = \"\" ]\n#end",
        ] {
            if text.contains("-h 5\n") {
                // oned would take the line break; we write none, so it must be made one line first.
                assert!(matches!(enable(text.as_bytes(), &wanted(None)), Err(EditError::Unwritable(_))));
            } else {
                assert_eq!(disabled(&enabled(text)), text);
            }
        }
        let mut latin: Vec<u8> = b"# caf\xe9\nHM_MAD = [ EXECUTABLE = \"one_hm\" ] # \xe9\n".to_vec();
        let new = enable(&latin, &wanted(None)).unwrap();
        assert_eq!(disable(&new).unwrap().as_ref(), Some(&latin));
        latin.push(0);
        assert!(enable(&latin, &wanted(None)).is_ok());
    }

    #[test]
    fn what_was_changed_elsewhere_stays() {
        let text = enabled(SHIPPED).replace("2633", "2634").replace("-p 2101 -l 2102 -b 127.0.0.1\" ]", "-p 9\" ]")
            + "NEW = 1\n";
        assert_eq!(disabled(&text), SHIPPED.replace("2633", "2634") + "NEW = 1\n");
        let at_end = "HM_MAD = [ EXECUTABLE = \"one_hm\" ]";
        assert_eq!(disabled(&(enabled(at_end) + "NEW = 1\n")), format!("{at_end}\nNEW = 1\n"));
    }

    #[test]
    fn arguments_are_kept_unless_others_are_given() {
        for (old, given, new) in [
            ("-p 3101 -h 5", None, "hm -p 3101 -h 5"),
            ("", None, "hm"),
            ("-p 3101", Some("-p 7 --config '/etc/a b'"), "hm -p 7 --config '/etc/a b'"),
        ] {
            let text = format!("HM_MAD = [ EXECUTABLE = \"one_hm\", ARGUMENTS = \"{old}\", THREADS = 3 ]\n");
            let result = enable(text.as_bytes(), &wanted(given)).unwrap();
            let driver = HookDriver::of(&result).unwrap();
            assert_eq!((&*driver.executable, &*driver.arguments), ("/usr/bin/hookbus", new));
            assert_eq!(driver.others, [("THREADS".to_owned(), "3".to_owned())]);
        }
    }

    #[test]
    fn what_is_not_clear_is_refused() {
        let enabled = enabled(SHIPPED);
        for (text, expected) in [
            ("PORT = 1\n", "there is no HM_MAD in it"),
            ("# HM_MAD = [ EXECUTABLE = \"one_hm\" ]\n", "there is no HM_MAD in it"),
            ("HM_MAD = [ EXECUTABLE = a ]\n\nHM_MAD = [ EXECUTABLE = b ]\n", "HM_MAD is in it 2 times, in lines 1, 3"),
            ("\nHM_MAD = one_hm\n", "line 2: HM_MAD is no vector"),
            ("HM_MAD = [ ARGUMENTS = \"\" ]\n", "line 1: HM_MAD is no vector with an EXECUTABLE"),
            ("A = 1 HM_MAD = [ EXECUTABLE = one_hm ]\n", "line 1: something else stands in the lines"),
            ("HM_MAD = [ EXECUTABLE = one_hm ] B = 2\n", "line 1: something else stands in the lines"),
            ("HM_MAD = [ EXECUTABLE = \"/opt/my_hm\" ]\n", "line 1: HM_MAD runs `/opt/my_hm`, which is neither"),
            ("HM_MAD = [ EXECUTABLE = \"/opt/hookbus\", ARGUMENTS = \"hm\" ]\n", "line 1: HM_MAD runs hookbus, but"),
            ("HM_MAD = [ EXECUTABLE = \"one_hm\"\n", "line 2: a `[` is not closed"),
            (&enabled, "line 8: HM_MAD runs hookbus, but"),
        ] {
            let error = enable(text.as_bytes(), &wanted(None)).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{text}: {error}");
        }
        let force = Wanted { force: true, ..wanted(None) };
        assert!(enable(b"HM_MAD = [ EXECUTABLE = \"/opt/my_hm\" ]\n", &force).is_ok());
        let bad = Wanted { executable: "/opt/a\\b", ..wanted(None) };
        assert!(matches!(enable(SHIPPED.as_bytes(), &bad), Err(EditError::Unwritable(_))));
    }

    #[test]
    fn marks_that_were_changed_are_refused() {
        let enabled = enabled(SHIPPED);
        for text in [
            enabled.replace("# hookbus one enable: end\n", ""),
            enabled.replace("#hookbus: ", "# "),
            enabled.replace("# hookbus one enable: end\n", "MINE = 1\n# hookbus one enable: end\n"),
            enabled.clone() + &enabled,
        ] {
            assert!(matches!(disable(text.as_bytes()), Err(EditError::Tampered { .. })), "{text}");
        }
        let by_hand = "HM_MAD = [ EXECUTABLE = \"/usr/bin/hookbus\", ARGUMENTS = \"hm\" ]\n";
        assert_eq!(disable(by_hand.as_bytes()), Err(EditError::NotOurs { line: 1 }));
        assert_eq!(disable(SHIPPED.as_bytes()), Ok(None));
    }

    /// Whatever a file has become, it is changed so that it comes back, or not at all.
    #[test]
    fn any_file_comes_back() {
        let mut random = fastrand::Rng::with_seed(11);
        let pieces = [
            "\"",
            "#",
            "\n",
            "HM_MAD = [",
            "]",
            "\\",
            " ",
            "\r\n",
            "#hookbus: x\n",
            "=",
            ",",
            "# hookbus one enable: end\n",
        ];
        let mut changed = 0;
        for _ in 0..3000 {
            let mut text = SHIPPED.to_owned();
            for _ in 0..random.usize(..4) {
                let at = random.usize(..=text.len());
                text.insert_str(at, pieces[random.usize(..pieces.len())]);
            }
            let wanted = Wanted { force: true, ..wanted(None) };
            if let Ok(new) = enable(text.as_bytes(), &wanted) {
                changed += 1;
                assert_eq!(disable(&new).unwrap().as_deref(), Some(text.as_bytes()), "{text}");
            }
            let _ = disable(text.as_bytes());
        }
        assert!(changed > 500, "most of them are left whole: {changed}");
    }
}
