//! What is wrong with a hook's template: said with file, line and column, so that an operator can go there.

use std::fmt;
use std::path::PathBuf;

use crate::template::{Position, TemplateError};

/// How grave a [`Problem`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    /// The hook, or the whole directory, isn't there.
    Error,
    /// The hook is loaded, but may not do what was meant.
    Warning,
}

/// Something wrong with a template, or with the directory of templates. Shown as `file:line:column: what`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Whether it costs the hook.
    pub severity: Severity,
    /// The file or directory, where there is one.
    pub path: Option<PathBuf>,
    /// The place in the file.
    pub at: Option<Position>,
    /// What is wrong, and what to do.
    pub what: String,
}

impl Problem {
    /// One that costs the hook.
    pub(crate) fn error(what: impl Into<String>) -> Self {
        Problem { severity: Severity::Error, path: None, at: None, what: what.into() }
    }

    /// One that doesn't.
    pub(crate) fn warning(what: impl Into<String>) -> Self {
        Problem { severity: Severity::Warning, ..Problem::error(what) }
    }

    pub(crate) fn at(self, at: Position) -> Self {
        Problem { at: Some(at), ..self }
    }

    pub(crate) fn in_file(self, path: impl Into<PathBuf>) -> Self {
        Problem { path: Some(path.into()), ..self }
    }
}

impl From<TemplateError> for Problem {
    fn from(error: TemplateError) -> Self {
        Problem::error(error.what).at(error.at)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(path) = &self.path {
            write!(f, "{}:", path.display())?;
        }
        if let Some(at) = self.at {
            write!(f, "{at}:")?;
        }
        if self.path.is_some() || self.at.is_some() {
            write!(f, " ")?;
        }
        // What stands in a template may be anything; a problem is one line.
        for c in self.what.chars() {
            if c.is_control() { write!(f, "{}", c.escape_default())? } else { write!(f, "{c}")? }
        }
        Ok(())
    }
}
