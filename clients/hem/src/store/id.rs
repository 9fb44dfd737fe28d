//! Names of what is in the store: numbers that are never given twice, and the key under which a hook's executions are kept.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(u64);

        impl $name {
            /// The id with that number.
            pub const fn new(number: u64) -> Self {
                $name(number)
            }

            /// The number.
            pub const fn get(self) -> u64 {
                self.0
            }

            pub(super) fn of_sql(number: i64) -> Self {
                $name(u64::try_from(number).unwrap_or(0))
            }

            /// As the database has it. A number beyond its range is nobody's, and so is what becomes of it.
            pub(super) fn sql(self) -> i64 {
                i64::try_from(self.0).unwrap_or(i64::MAX)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}

ids! {
    /// Names a hook of the store: 0, 1, 2, ... in the order in which they were created; never given twice.
    HookId;
    /// Names an execution among those of its hook: 0, 1, 2, ... in the order in which they were recorded; never given twice.
    ExecutionId;
    /// Names a message of the outbox. Ids grow in the order in which messages were pushed, and are never given twice.
    OutboxId;
    /// Names a retry that is due some time: the run that it is an attempt of.
    RetryId;
}

/// What a hook's executions are kept under, for as long as the hook is the same. Written as `store:0`, `oned:12` or `file:host-error`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HookKey {
    /// A hook of this store, by its id: it may be renamed.
    Store(HookId),
    /// A hook of oned, by its id there.
    Oned(u64),
    /// A hook of a template file, by its NAME: the file may be moved.
    File(String),
}

impl fmt::Display for HookKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HookKey::Store(id) => write!(f, "store:{id}"),
            HookKey::Oned(id) => write!(f, "oned:{id}"),
            HookKey::File(name) => write!(f, "file:{name}"),
        }
    }
}

/// Why a text is no [`HookKey`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is no key of a hook; write store:ID, oned:ID or file:NAME")]
pub struct HookKeyError(String);

impl FromStr for HookKey {
    type Err = HookKeyError;

    fn from_str(text: &str) -> Result<Self, HookKeyError> {
        let key = match text.split_once(':') {
            Some(("store", id)) => number(id).map(|id| HookKey::Store(HookId(id))),
            Some(("oned", id)) => number(id).map(HookKey::Oned),
            Some(("file", name)) if !name.is_empty() => Some(HookKey::File(name.to_owned())),
            _ => None,
        };
        key.ok_or_else(|| HookKeyError(text.to_owned()))
    }
}

/// A number in the one way in which we write it, so that a key has one text only.
fn number(text: &str) -> Option<u64> {
    text.parse().ok().filter(|number: &u64| number.to_string() == text)
}

impl From<HookId> for HookKey {
    fn from(id: HookId) -> Self {
        HookKey::Store(id)
    }
}

/// How an operator names a hook of the store.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HookRef {
    /// By its id.
    Id(HookId),
    /// By its name.
    Name(String),
}

impl HookRef {
    /// As `onehook` reads it: digits are an id, everything else is a name.
    pub fn parse(text: &str) -> Self {
        match text.parse() {
            Ok(id) if text.bytes().all(|byte| byte.is_ascii_digit()) => HookRef::Id(HookId(id)),
            _ => HookRef::Name(text.to_owned()),
        }
    }
}

impl From<HookId> for HookRef {
    fn from(id: HookId) -> Self {
        HookRef::Id(id)
    }
}

impl fmt::Display for HookRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HookRef::Id(id) => write!(f, "with the id {id}"),
            HookRef::Name(name) => write!(f, "named {name:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_one_text() {
        for key in [HookKey::Store(HookId(0)), HookKey::Oned(u64::MAX), HookKey::File("a:b c\nü".into())] {
            assert_eq!(key.to_string().parse(), Ok(key));
        }
        for text in ["", "store", "store:", "store:+1", "store:01", "oned:-1", "file:", "other:1", "Store:1"] {
            let error = text.parse::<HookKey>().expect_err(text).to_string();
            assert!(error.contains("write store:ID, oned:ID or file:NAME"), "{error}");
        }
    }

    #[test]
    fn digits_are_an_id() {
        assert_eq!(HookRef::parse("12"), HookRef::Id(HookId(12)));
        for name in ["", "+1", "1x", "99999999999999999999"] {
            assert_eq!(HookRef::parse(name), HookRef::Name(name.into()));
        }
    }
}
