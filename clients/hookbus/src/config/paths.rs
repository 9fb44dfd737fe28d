//! Where socket and state are when nobody says where: candidates in their order, as pure functions of the environment.
//!
//! Daemon and clients go through the same list, so that they meet. Which candidate it is depends on what exists
//! and what can be written; that is for who uses them to find out.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The file name of the socket, wherever it is.
const SOCKET: &str = "hookbus.sock";

/// Where the socket may be: `/run/hookbus` (made by systemd), `/run/one` (made by OpenNebula), `$XDG_RUNTIME_DIR`. The
/// daemon takes the first that it can make, a client the first that answers.
pub(crate) fn default_sockets(environment: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let fixed = ["/run/hookbus", "/run/one"].map(PathBuf::from);
    fixed.into_iter().chain(absolute(environment("XDG_RUNTIME_DIR"))).map(|dir| dir.join(SOCKET)).collect()
}

/// Where state may be kept: `$STATE_DIRECTORY` (set by systemd), `/var/lib/hookbus`, `/var/lib/one/hookbus`,
/// `~/.local/state/hookbus`. The first that can be written is taken.
pub(crate) fn default_state_dirs(environment: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let fixed = ["/var/lib/hookbus", "/var/lib/one/hookbus"].map(PathBuf::from);
    let home = absolute(environment("HOME")).map(|home| home.join(".local/state/hookbus"));
    absolute(environment("STATE_DIRECTORY").map(first)).into_iter().chain(fixed).chain(home).collect()
}

/// systemd separates several directories by colons; ours is the first.
fn first(directories: OsString) -> OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};

    match directories.as_bytes().iter().position(|byte| *byte == b':') {
        Some(colon) => OsString::from_vec(directories.as_bytes()[..colon].to_vec()),
        None => directories,
    }
}

/// A variable that names a directory. One that is empty or relative counts as not set, as the XDG specification has it.
fn absolute(value: Option<OsString>) -> Option<PathBuf> {
    value.map(PathBuf::from).filter(|path| Path::is_absolute(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &'static [(&str, &str)]) -> impl Fn(&str) -> Option<OsString> {
        |name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into())
    }

    fn texts(paths: &[PathBuf]) -> Vec<&str> {
        paths.iter().map(|path| path.to_str().unwrap()).collect()
    }

    #[test]
    fn the_candidates_stand_in_the_order_of_the_contract() {
        let set = environment(&[
            ("XDG_RUNTIME_DIR", "/run/user/7"),
            ("STATE_DIRECTORY", "/var/lib/private/hookbus:/var/lib/other"),
            ("HOME", "/home/u"),
        ]);
        let sockets = ["/run/hookbus/hookbus.sock", "/run/one/hookbus.sock", "/run/user/7/hookbus.sock"];
        assert_eq!(texts(&default_sockets(&set)), sockets);
        let state =
            ["/var/lib/private/hookbus", "/var/lib/hookbus", "/var/lib/one/hookbus", "/home/u/.local/state/hookbus"];
        assert_eq!(texts(&default_state_dirs(&set)), state);
    }

    #[test]
    fn what_is_not_set_or_no_absolute_path_is_left_out() {
        for variables in [&[][..], &[("XDG_RUNTIME_DIR", ""), ("STATE_DIRECTORY", "x"), ("HOME", "~")]] {
            assert_eq!(default_sockets(environment(variables)).len(), 2, "{variables:?}");
            assert_eq!(
                texts(&default_state_dirs(environment(variables))),
                ["/var/lib/hookbus", "/var/lib/one/hookbus"]
            );
        }
    }
}
