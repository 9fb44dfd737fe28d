//! The syntax of oned.conf, as far as one has to understand it to change one attribute and nothing else.
//!
//! It is that of OpenNebula's templates: `NAME = value`, `NAME = "quoted value"`, and vectors `NAME = [ A = "x", B = y ]` over any
//! number of lines, `#` beginning a comment wherever no value is expected. A quoted value may go over lines and hold `\"`; other
//! backslashes stand for themselves. What oned's scanner skips (characters that begin nothing) is skipped here, too.
//!
//! The text is bytes: comments may be in any encoding.

use std::ops::Range;

use thiserror::Error;

/// One attribute of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attribute {
    /// Its name in upper case, as oned takes it.
    pub(super) name: String,
    /// Where it stands, from the first letter of its name to the end of its value.
    pub(super) span: Range<usize>,
    /// What it is set to.
    pub(super) value: Value,
}

/// What an attribute is set to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// A text, without quotes.
    Single(String),
    /// Names, in upper case, and texts.
    Vector(Vec<(String, String)>),
}

/// Why a text is no oned.conf.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("line {line}: {what}")]
pub(super) struct SyntaxError {
    /// Counted from 1.
    pub(super) line: usize,
    what: &'static str,
}

/// All attributes of a file in their order.
pub(super) fn parse(text: &[u8]) -> Result<Vec<Attribute>, SyntaxError> {
    let mut scanner = Scanner { text, at: 0 };
    let mut attributes = Vec::new();
    loop {
        scanner.skip();
        if scanner.at == text.len() {
            return Ok(attributes);
        }
        attributes.push(scanner.attribute()?);
    }
}

struct Scanner<'t> {
    text: &'t [u8],
    at: usize,
}

impl Scanner<'_> {
    fn attribute(&mut self) -> Result<Attribute, SyntaxError> {
        let start = self.at;
        let name = self.name()?;
        self.equals()?;
        let value = match self.peek() {
            Some(b'[') => Value::Vector(self.vector()?),
            // Nothing behind the `=` is an empty value.
            None | Some(b'\n') => Value::Single(String::new()),
            Some(_) => Value::Single(self.value()?),
        };
        Ok(Attribute { name, span: start..self.at, value })
    }

    fn vector(&mut self) -> Result<Vec<(String, String)>, SyntaxError> {
        let mut pairs = Vec::new();
        self.at += 1;
        self.skip();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(pairs);
        }
        loop {
            self.skip();
            let name = self.name()?;
            self.equals()?;
            pairs.push((name, self.value()?));
            self.skip();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => {
                    self.at += 1;
                    return Ok(pairs);
                }
                None => return Err(self.error("a `[` is not closed")),
                Some(_) => return Err(self.error("`,` or `]` is expected")),
            }
        }
    }

    fn name(&mut self) -> Result<String, SyntaxError> {
        let start = self.at;
        self.advance(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        match &self.text[start..self.at] {
            [] => Err(self.error("the name of an attribute is expected")),
            name => Ok(String::from_utf8_lossy(name).to_ascii_uppercase()),
        }
    }

    /// The `=`, and the blanks behind it.
    fn equals(&mut self) -> Result<(), SyntaxError> {
        self.skip();
        if self.peek() != Some(b'=') {
            return Err(self.error("`=` is expected"));
        }
        self.at += 1;
        self.advance(|byte| matches!(byte, b' ' | b'\t' | b'\r'));
        Ok(())
    }

    fn value(&mut self) -> Result<String, SyntaxError> {
        let start = self.at;
        if self.peek() == Some(b'"') {
            let inner = start + 1;
            let quotes = || (inner..self.text.len()).filter(|at| self.text[*at] == b'"');
            // Where only `\"` follows, that one ends it: oned takes the longest text that can be a value.
            let end = quotes().find(|at| self.text[at - 1] != b'\\' || *at == inner).or_else(|| quotes().next_back());
            let Some(end) = end else { return Err(self.error("a quote is not closed")) };
            self.at = end + 1;
            return Ok(String::from_utf8_lossy(&self.text[inner..end]).replace("\\\"", "\""));
        }
        self.advance(|byte| !matches!(byte, b'=' | b'#' | b' ' | b'\t' | b'\r' | b'\n' | b',' | b'[' | b']'));
        match &self.text[start..self.at] {
            [] => Err(self.error("a value is expected")),
            value => Ok(String::from_utf8_lossy(value).into_owned()),
        }
    }

    /// Goes over comments, blanks and whatever begins nothing.
    fn skip(&mut self) {
        loop {
            self.advance(|byte| {
                !(byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'=' | b',' | b'[' | b']' | b'#'))
            });
            if self.peek() != Some(b'#') {
                return;
            }
            self.advance(|byte| byte != b'\n');
        }
    }

    fn advance(&mut self, while_it_is: impl Fn(u8) -> bool) {
        self.at += self.text[self.at..].iter().take_while(|byte| while_it_is(**byte)).count();
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn error(&self, what: &'static str) -> SyntaxError {
        SyntaxError { line: line_of(self.text, self.at), what }
    }
}

/// The line that a place is in, counted from 1.
pub(super) fn line_of(text: &[u8], at: usize) -> usize {
    text[..at].iter().filter(|byte| **byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(pairs: &[(&str, &str)]) -> Value {
        Value::Vector(pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect())
    }

    #[test]
    fn attributes_are_found_with_their_places() {
        let text = "# HM_MAD = [ EXECUTABLE = \"no\" ]\n\
            PORT=2633 # behind a value\n\
            EMPTY =\n\
            TEXT = \"HM_MAD = [ EXECUTABLE = \\\"no\\\" ]\n over lines # no comment\"\n\
            \thm_mad = [ # here, too\n  executable = one_hm , # [\n\n ARGUMENTS=\"-p 2101\" # ]\n]\n\
            NONE = [ ]\n";
        let attributes = parse(text.as_bytes()).unwrap();
        let found: Vec<_> = attributes.iter().map(|found| (&*found.name, &found.value)).collect();
        assert_eq!(
            found,
            [
                ("PORT", &Value::Single("2633".into())),
                ("EMPTY", &Value::Single(String::new())),
                ("TEXT", &Value::Single("HM_MAD = [ EXECUTABLE = \"no\" ]\n over lines # no comment".into())),
                ("HM_MAD", &vector(&[("EXECUTABLE", "one_hm"), ("ARGUMENTS", "-p 2101")])),
                ("NONE", &vector(&[])),
            ]
        );
        let hm_mad = &text[attributes[3].span.clone()];
        assert!(hm_mad.starts_with("hm_mad = [") && hm_mad.ends_with("# ]\n]"), "{hm_mad}");
    }

    #[test]
    fn what_is_broken_is_told_with_its_line() {
        for (text, expected) in [
            ("A = [ B = \"x\"\nC = 1 ]", "line 2: `,` or `]` is expected"),
            ("\nA = [ B = 1", "line 2: a `[` is not closed"),
            ("A = \"x\n", "line 1: a quote is not closed"),
            ("A = 1\nB\nC = 2", "line 3: `=` is expected"),
            ("A = [ B = ]", "line 1: a value is expected"),
            ("A = 1 ]", "line 1: the name of an attribute is expected"),
        ] {
            assert_eq!(parse(text.as_bytes()).unwrap_err().to_string(), expected, "{text}");
        }
    }

    #[test]
    fn any_bytes_are_survived() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..20_000 {
            let text: Vec<u8> = (0..random.usize(..40)).map(|_| b"A=[],#\"\\ \n\xff"[random.usize(..11)]).collect();
            for found in parse(&text).unwrap_or_default() {
                assert!(found.span.start < found.span.end && found.span.end <= text.len(), "{text:?}");
            }
        }
    }
}
