//! [`Access`]: the address of oned, and who asks.
//!
//! Both are found as OpenNebula's Ruby client finds them; the first that is there counts:
//!
//! | | |
//! | --- | --- |
//! | session | the file that `ONE_AUTH` names; `~/.one/one_auth`; `/var/lib/one/.one/one_auth` |
//! | address | `ONE_XMLRPC`; `~/.one/one_endpoint`; `/var/lib/one/.one/one_endpoint`; `http://localhost:2633/RPC2` |
//! | timeout | `ONE_XMLRPC_TIMEOUT`, in seconds |
//!
//! As there, an `ONE_AUTH` that names no file is passed over. Where nothing is found the error lists all that was tried.
//!
//! # Constraints
//!
//! The session holds a password. It is never shown, not by `Debug` either; messages name the file that it came from.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use super::config::Locations;

/// Where oned listens unless something else is said.
pub const DEFAULT_ENDPOINT: &str = "http://localhost:2633/RPC2";

/// More than anybody's password, and than any address.
const MAX_FILE_BYTES: u64 = 64 << 10;

/// Who asks: `user:password`, or `user:token`.
#[derive(Clone, PartialEq, Eq)]
pub struct Session {
    text: String,
    from: String,
}

impl Session {
    /// A session; `from` is what messages call the place that it came from.
    pub fn new(text: impl Into<String>, from: impl Into<String>) -> Self {
        Session { text: text.into(), from: from.into() }
    }

    /// Where it came from.
    pub fn from(&self) -> &str {
        &self.from
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("from", &self.from).finish_non_exhaustive()
    }
}

/// How oned is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// The address, such as [`DEFAULT_ENDPOINT`].
    pub endpoint: String,
    /// Who asks.
    pub session: Session,
    /// How long a call may take, where that was set.
    pub timeout: Option<Duration>,
}

/// Why oned can't even be asked.
#[derive(Debug, Error)]
pub enum AccessError {
    /// There is no session.
    #[error(
        "there is no user and password for oned; tried {tried}. Write user:password into one of these files, or set ONE_AUTH to such a file"
    )]
    NoSession {
        /// The files that were looked for.
        tried: String,
    },
    /// There is a file, and it can't be used.
    #[error("{path} can't be read: {source}", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The address makes no sense.
    #[error("{endpoint:?} is no address of oned: {what}; set ONE_XMLRPC to one such as {DEFAULT_ENDPOINT}")]
    BadEndpoint {
        /// The address.
        endpoint: String,
        /// What is wrong with it.
        what: String,
    },
}

impl Access {
    /// Finds address and session. It reads files, so it may block.
    ///
    /// # Errors
    /// When there is no session, or a file that should have one can't be read.
    pub fn find(env: impl Fn(&str) -> Option<OsString>, locations: &Locations) -> Result<Access, AccessError> {
        let set = |name: &str| env(name).filter(|value| !value.is_empty());
        let home = set("HOME").map(PathBuf::from);
        let homes = || home.iter().map(PathBuf::as_path).chain([locations.var.as_path()]);
        let named = set("ONE_AUTH").map(PathBuf::from);
        let files: Vec<PathBuf> = named.into_iter().chain(homes().map(|home| home.join(".one/one_auth"))).collect();
        let Some(file) = files.iter().find(|file| file.is_file()) else {
            let mut tried: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
            tried.dedup();
            return Err(AccessError::NoSession { tried: tried.join(", ") });
        };
        let session = Session::new(read(file)?, file.display().to_string());
        let endpoint = match set("ONE_XMLRPC") {
            Some(endpoint) => endpoint.to_string_lossy().trim().to_owned(),
            None => match homes().map(|home| home.join(".one/one_endpoint")).find(|file| file.is_file()) {
                Some(file) => read(&file)?,
                None => DEFAULT_ENDPOINT.to_owned(),
            },
        };
        let seconds = set("ONE_XMLRPC_TIMEOUT").and_then(|text| text.to_str()?.trim().parse().ok());
        let timeout = seconds.filter(|seconds| *seconds > 0).map(Duration::from_secs);
        Ok(Access { endpoint, session, timeout })
    }
}

fn read(path: &Path) -> Result<String, AccessError> {
    let error = |source| AccessError::Unreadable { path: path.to_owned(), source };
    let mut text = String::new();
    let file = File::open(path).map_err(error)?;
    file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(error)?;
    let unusable = |what: &str| Err(error(io::Error::new(io::ErrorKind::InvalidData, what)));
    match text.trim_end() {
        "" => unusable("it is empty"),
        text if text.len() as u64 > MAX_FILE_BYTES => unusable("it is far too long"),
        text if text.contains(|c: char| c.is_control()) => unusable("it has more than one line, or control characters"),
        text => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::fs;

    use super::*;

    struct Home(tempfile::TempDir);

    impl Home {
        fn new() -> Self {
            let home = Home(tempfile::tempdir().unwrap());
            fs::create_dir_all(home.path("home/.one")).unwrap();
            fs::create_dir_all(home.path("one/var/.one")).unwrap();
            home
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.path(name), text).unwrap();
        }

        fn find(&self, env: &[(&str, &str)]) -> Result<Access, String> {
            let mut all = HashMap::from([("HOME".to_owned(), self.path("home").into_os_string())]);
            all.insert("ONE_LOCATION".into(), self.path("one").into_os_string());
            all.extend(env.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value))));
            let env = |name: &str| all.get(name).cloned();
            Access::find(env, &Locations::of(env)).map_err(|e| e.to_string())
        }
    }

    #[test]
    fn the_first_that_is_there_counts() {
        let home = Home::new();
        let said = home.find(&[("ONE_AUTH", "/nowhere")]).unwrap_err();
        assert!(said.contains("tried /nowhere, ") && said.contains("home/.one/one_auth"), "{said}");

        home.write("one/var/.one/one_auth", "oneadmin:var\n");
        let access = home.find(&[]).unwrap();
        assert_eq!((access.session.text(), access.endpoint.as_str()), ("oneadmin:var", DEFAULT_ENDPOINT));

        home.write("home/.one/one_auth", "oneadmin:home \n\n");
        home.write("home/.one/one_endpoint", "http://other:2633/RPC2\n");
        let access = home.find(&[("ONE_AUTH", "")]).unwrap();
        assert_eq!((access.session.text(), access.endpoint.as_str()), ("oneadmin:home", "http://other:2633/RPC2"));

        home.write("mine", "me:x");
        let mine = home.path("mine");
        let env =
            [("ONE_AUTH", mine.to_str().unwrap()), ("ONE_XMLRPC", "https://one/RPC2"), ("ONE_XMLRPC_TIMEOUT", "7")];
        let access = home.find(&env).unwrap();
        assert_eq!((access.session.text(), access.endpoint.as_str()), ("me:x", "https://one/RPC2"));
        assert_eq!(access.timeout, Some(Duration::from_secs(7)));
    }

    #[test]
    fn files_that_make_no_sense_are_told() {
        let home = Home::new();
        for (text, expected) in [("\n", "it is empty"), ("a:b\nc:d\n", "more than one line")] {
            home.write("home/.one/one_auth", text);
            let said = home.find(&[]).unwrap_err();
            assert!(said.contains("one_auth can't be read: ") && said.contains(expected), "{said}");
        }
        home.write("home/.one/one_auth", &"x".repeat(100_000));
        assert!(home.find(&[]).unwrap_err().contains("far too long"));
    }

    #[test]
    fn a_password_is_never_shown() {
        let session = Session::new("oneadmin:secret", "/a");
        let access = Access { endpoint: DEFAULT_ENDPOINT.into(), session, timeout: None };
        assert!(!format!("{access:?}").contains("secret"), "{access:?}");
    }
}
