//! OpenNebula's template syntax, in which hooks are written.
//!
//! ```text
//! # a comment, to the end of the line
//! NAME      = hook-vm                  # one word, or several, to the end of the line
//! ARGUMENTS = "$TEMPLATE \"quoted\""   # quoted: may hold anything and span lines
//! EXTRA     = [ A = x, B = "y" ]       # a vector, may span lines
//! ```
//!
//! The grammar is that of oned (`src/parsers/template_parser.l`), with three differences, each of which only accepts more:
//!
//! - an unquoted value may hold blanks, `=`, `,` and brackets, and runs to the end of its line (inside a vector to the next `,` or
//!   `]`), so that `ARGUMENTS = $TEMPLATE pending` means what it says;
//! - a backslash before `$` is dropped. The documentation shows templates inside a shell's here-document, where `\$TEMPLATE` is what
//!   one has to write; a file that was made by copying it means `$TEMPLATE`, too;
//! - the last line needs no line feed, and lines may end in CR LF.
//!
//! As there, `#` begins a comment everywhere but inside quotes. Names are not case-sensitive and kept in upper case. A name may come
//! several times; the first one counts.

use std::fmt;

use thiserror::Error;

/// The largest template, in bytes.
pub const MAX_TEMPLATE_BYTES: usize = 1 << 20;

/// A place in a template; both count from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The character in it.
    pub column: usize,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// Why a text is no template.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{at}: {what}")]
pub struct TemplateError {
    /// Where it was noticed.
    pub at: Position,
    /// What is wrong, and what to do.
    pub what: String,
}

/// What an attribute is set to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A text; may be empty.
    Text(String),
    /// Names, in upper case, and texts.
    Vector(Vec<(String, String)>),
}

/// One assignment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attribute {
    /// The name, in upper case.
    pub name: String,
    /// The value.
    pub value: Value,
    /// Where the name is written.
    pub at: Position,
}

/// A template: assignments in the order in which they were written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Template {
    attributes: Vec<Attribute>,
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// When the text is larger than [`MAX_TEMPLATE_BYTES`] or breaks the grammar.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        if text.len() > MAX_TEMPLATE_BYTES {
            return Err(TemplateError {
                at: Position { line: 1, column: 1 },
                what: format!("the template has {} bytes; at most {MAX_TEMPLATE_BYTES} are possible", text.len()),
            });
        }
        let mut reader = Reader::new(text);
        let mut attributes = Vec::new();
        while reader.skip_to_text() {
            attributes.push(reader.attribute()?);
        }
        Ok(Template { attributes })
    }

    /// A template of these texts, for hooks that come from elsewhere than a file.
    pub fn from_pairs<N: AsRef<str>, V: Into<String>>(pairs: impl IntoIterator<Item = (N, V)>) -> Self {
        Self::from_values(pairs.into_iter().map(|(name, value)| (name, Value::Text(value.into()))))
    }

    /// As [`from_pairs`](Self::from_pairs), with texts and vectors.
    pub fn from_values<N: AsRef<str>>(values: impl IntoIterator<Item = (N, Value)>) -> Self {
        let at = Position { line: 1, column: 1 };
        let attribute = |(name, value): (N, Value)| Attribute { name: name.as_ref().to_uppercase(), value, at };
        Template { attributes: values.into_iter().map(attribute).collect() }
    }

    /// All assignments.
    pub fn attributes(&self) -> &[Attribute] {
        &self.attributes
    }

    /// The first assignment to `name`, which is in upper case.
    pub fn get(&self, name: &str) -> Option<&Attribute> {
        self.attributes.iter().find(|attribute| attribute.name == name)
    }

    /// This template with the attributes of another one added; those that both have are the other's.
    #[must_use]
    pub fn updated_by(&self, other: &Template) -> Template {
        let kept = self.attributes.iter().filter(|attribute| other.get(&attribute.name).is_none());
        Template { attributes: kept.chain(&other.attributes).cloned().collect() }
    }
}

/// As OpenNebula prints templates, each attribute on a line of its own. What [`parse`](Template::parse) reads of it is the same, but for a text that
/// ends with a backslash and can't do without quotes; the grammar has no way to write it.
impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Attribute { name, value, .. } in &self.attributes {
            match value {
                Value::Text(text) => writeln!(f, "{name}={}", Quoted(text))?,
                Value::Vector(pairs) => {
                    let pairs: Vec<_> =
                        pairs.iter().map(|(name, text)| format!("\n  {name}={}", Quoted(text))).collect();
                    writeln!(f, "{name}=[{} ]", pairs.join(","))?;
                }
            }
        }
        Ok(())
    }
}

struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0;
        let is_plain = |c: char| !matches!(c, '"' | '#' | '\n' | '$' | ',' | ']') && !is_blank(c);
        if text.ends_with('\\') && text.chars().all(is_plain) {
            return f.write_str(text);
        }
        write!(f, "\"{}\"", text.replace('"', "\\\"").replace("\\$", "\\\\$"))
    }
}

struct Reader<'a> {
    rest: std::str::Chars<'a>,
    at: Position,
}

/// The blanks of a line. CR is one of them, so that CR LF ends a line.
fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r')
}

impl<'a> Reader<'a> {
    fn new(text: &'a str) -> Self {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        Reader { rest: text.chars(), at: Position { line: 1, column: 1 } }
    }

    fn peek(&self) -> Option<char> {
        self.rest.clone().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.rest.next()?;
        if c == '\n' {
            self.at = Position { line: self.at.line + 1, column: 1 };
        } else {
            self.at.column += 1;
        }
        Some(c)
    }

    fn next_while(&mut self, mut wanted: impl FnMut(char) -> bool) -> &'a str {
        let text = self.rest.as_str();
        while self.peek().is_some_and(&mut wanted) {
            self.next();
        }
        &text[..text.len() - self.rest.as_str().len()]
    }

    fn skip_blanks(&mut self) {
        self.next_while(is_blank);
    }

    fn skip_comment(&mut self) {
        if self.peek() == Some('#') {
            self.next_while(|c| c != '\n');
        }
    }

    /// Passes over blanks, line feeds and comments; false at the end.
    fn skip_to_text(&mut self) -> bool {
        loop {
            self.next_while(|c| is_blank(c) || c == '\n');
            match self.peek() {
                Some('#') => self.skip_comment(),
                other => return other.is_some(),
            }
        }
    }

    fn error<T>(&self, what: impl Into<String>) -> Result<T, TemplateError> {
        Err(TemplateError { at: self.at, what: what.into() })
    }

    fn attribute(&mut self) -> Result<Attribute, TemplateError> {
        let at = self.at;
        let name = self.name()?;
        let value = if self.peek() == Some('[') {
            Value::Vector(self.vector()?)
        } else {
            let (text, _) = self.text(|c| c == '\n')?;
            Value::Text(text)
        };
        Ok(Attribute { name, value, at })
    }

    /// A name, the `=` behind it, and the blanks around that.
    fn name(&mut self) -> Result<String, TemplateError> {
        let name = self.next_while(|c| c.is_ascii_alphanumeric() || c == '_');
        if name.is_empty() {
            let found = self.peek().map_or_else(|| "the end".to_owned(), |c| format!("{c:?}"));
            return self.error(format!(
                "expected a name (letters, digits and _), found {found}; a value that spans lines needs double quotes"
            ));
        }
        self.skip_blanks();
        if self.peek() != Some('=') {
            return self.error(format!(
                "expected `=` after {name:?}; write {name} = value, and a value that spans lines in double quotes"
            ));
        }
        self.next();
        self.skip_blanks();
        Ok(name.to_ascii_uppercase())
    }

    /// A value, quoted or up to a character that `ends` it, and whether it was quoted.
    fn text(&mut self, ends: impl Fn(char) -> bool) -> Result<(String, bool), TemplateError> {
        if self.peek() == Some('"') {
            return self.quoted().map(|text| (text, true));
        }
        let text = self.next_while(|c| c != '\n' && c != '#' && !ends(c));
        if let Some(quote) = text.find('"') {
            // What was meant can't be told: NAME = a "b" c, or a quote that was forgotten.
            let before = &text[..quote];
            return self.error(format!(
                "a double quote inside the unquoted value {:?}; put the whole value in double quotes, and \\\" for those in it",
                format!("{before}\"")
            ));
        }
        Ok((unescape_dollar(text.trim_matches(is_blank)), false))
    }

    fn quoted(&mut self) -> Result<String, TemplateError> {
        let start = self.at;
        self.next();
        let mut text = String::new();
        loop {
            match self.next() {
                Some('"') => break,
                Some('\\') => match self.peek() {
                    Some(c @ ('"' | '$')) => {
                        self.next();
                        text.push(c);
                    }
                    _ => text.push('\\'),
                },
                Some(c) => text.push(c),
                None => {
                    let what = "the value that begins here has no closing double quote; add it".to_owned();
                    return Err(TemplateError { at: start, what });
                }
            }
        }
        Ok(text)
    }

    fn vector(&mut self) -> Result<Vec<(String, String)>, TemplateError> {
        let start = self.at;
        self.next();
        let mut pairs = Vec::new();
        let unclosed =
            || TemplateError { at: start, what: "the vector that begins here has no closing `]`; add it".into() };
        loop {
            if !self.skip_to_text() {
                return Err(unclosed());
            }
            if self.peek() == Some(']') {
                break;
            }
            let name = self.name()?;
            let (text, _) = self.text(|c| matches!(c, ',' | ']'))?;
            pairs.push((name, text));
            if !self.skip_to_text() {
                return Err(unclosed());
            }
            match self.peek() {
                Some(',') => {
                    self.next();
                }
                Some(']') => break,
                _ => return self.error("expected `,` or `]` after a value of a vector"),
            }
        }
        self.next();
        Ok(pairs)
    }
}

fn unescape_dollar(text: &str) -> String {
    text.replace("\\$", "$")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn texts(template: &str) -> Vec<(String, String)> {
        let template = Template::parse(template).unwrap_or_else(|e| panic!("{e}"));
        template
            .attributes()
            .iter()
            .map(|a| match &a.value {
                Value::Text(text) => (a.name.clone(), text.clone()),
                Value::Vector(pairs) => (a.name.clone(), format!("{pairs:?}")),
            })
            .collect()
    }

    fn one(template: &str) -> String {
        let texts = texts(template);
        assert_eq!(texts.len(), 1, "{texts:?}");
        texts[0].1.clone()
    }

    #[test]
    fn values_of_every_kind() {
        for (template, expected) in [
            ("A = b", "b"),
            ("a=b", "b"),
            ("\n\n  A   =\t b \t\n", "b"),
            ("A = b c  d", "b c  d"),
            ("A = $TEMPLATE pending", "$TEMPLATE pending"),
            ("A = \\$TEMPLATE pending", "$TEMPLATE pending"),
            ("A = \"\\$TEMPLATE pending\"", "$TEMPLATE pending"),
            ("A = \"b # c\" # d", "b # c"),
            ("A = b # c", "b"),
            ("# x\nA = b\n# y", "b"),
            ("A = \"b\nc\"", "b\nc"),
            ("A = \"say \\\"b\\\"\"", "say \"b\""),
            ("A = \"back\\slash \\\\n\"", "back\\slash \\\\n"),
            ("A =", ""),
            ("A = \"\"", ""),
            ("A = b=c,d", "b=c,d"),
            ("A = b\r\n", "b"),
            ("\u{feff}A = ünï", "ünï"),
        ] {
            assert_eq!(one(template), expected, "{template:?}");
        }
    }

    #[test]
    fn assignments_in_their_order() {
        let expected = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect()
        };
        assert_eq!(texts("A = \"1\" b = 2\nA = 3"), expected(&[("A", "1"), ("B", "2"), ("A", "3")]));
        assert_eq!(texts("A =\nB = 2"), expected(&[("A", ""), ("B", "2")]));
        assert_eq!(
            texts("V = [ a = x y, B = \"z, ]\" ,\n C=3 # d\n ]\nA = 1"),
            expected(&[("V", r#"[("A", "x y"), ("B", "z, ]"), ("C", "3")]"#), ("A", "1")])
        );
        assert_eq!(texts("V = [ ]"), expected(&[("V", "[]")]));
        assert_eq!(texts(""), expected(&[]));
        let template = Template::parse("A = 1\n  A = 2").unwrap();
        assert_eq!(template.get("A").map(|a| &a.value), Some(&Value::Text("1".into())));
        assert_eq!(template.attributes()[1].at, Position { line: 2, column: 3 });
    }

    #[test]
    fn errors_say_where_and_what_to_do() {
        for (template, expected) in [
            ("A = 1\nB 2", "2:3: expected `=` after \"B\""),
            ("A = 1\n  second line", "2:10: expected `=` after \"second\""),
            ("= 3", "1:1: expected a name"),
            ("ünï = 3", "1:1: expected a name (letters, digits and _), found 'ü'"),
            ("A", "1:2: expected `=`"),
            ("A = \"b\n", "1:5: the value that begins here has no closing double quote"),
            ("A = b \"c\"", "a double quote inside the unquoted value \"b \\\"\""),
            ("\nV = [ A = 1", "2:5: the vector that begins here has no closing `]`"),
            ("V = [ A = \"1\" B = 2 ]", "1:15: expected `,` or `]`"),
            ("V = [ = 2 ]", "1:7: expected a name"),
            ("V = [ A = [ B = 1 ] ]", "1:21: expected"),
        ] {
            let error = Template::parse(template).unwrap_err().to_string();
            assert!(error.contains(expected), "{template:?}: {error}");
        }
        let error = Template::parse(&"#".repeat(MAX_TEMPLATE_BYTES + 1)).unwrap_err().to_string();
        assert!(error.contains("at most 1048576"), "{error}");
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "[A-C =\\[\\],\"#$\\\\\n\r\té]{0,60}") {
            let _ = Template::parse(&text);
        }

        /// So that a template that was taken apart can be kept as text.
        #[test]
        fn what_is_printed_is_read_back(
            text in "[A-C =\\[\\],\"#$\\\\\n\r\té]{0,40}[^\\\\]",
            inner in "[A-C =\\[\\],\"#$\\\\\n]{0,40}[^\\\\]",
        ) {
            let template = Template::from_values([
                ("A", Value::Text(text)),
                ("V", Value::Vector(vec![("B".into(), inner), ("C".into(), "c\\".into())])),
            ]);
            let read = Template::parse(&template.to_string()).unwrap();
            let values = |template: &Template| {
                template.attributes().iter().map(|a| (a.name.clone(), a.value.clone())).collect::<Vec<_>>()
            };
            prop_assert_eq!(values(&read), values(&template));
        }

        /// What is quoted comes out as it went in.
        #[test]
        fn quoting_loses_nothing(value in "[^\\\\]*") {
            let template = format!("A = \"{}\"", value.replace('"', "\\\""));
            prop_assert_eq!(one(&template), value);
        }
    }
}
