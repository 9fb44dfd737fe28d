//! The state directory, which one process owns.
//!
//! The owner holds a lock (flock) on the file `lock` in it, and writes its pid there for others to name. The kernel gives the
//! lock back when the process ends, however it ends; so a file that a killed process has left means nothing, and what is
//! written in it is only a hint. Processes that the owner starts don't inherit the lock: the descriptor is closed on exec.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use thiserror::Error;

/// A state directory that this process owns, until this is dropped.
#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    /// Open, and thereby locked.
    _lock: File,
}

/// Why there is none.
#[derive(Debug, Error)]
pub(crate) enum StateDirError {
    #[error(
        "the state directory {} is in use by {}; stop that one, or give this one another `state_dir` in its configuration",
        path.display(),
        Owner(*pid)
    )]
    Owned { path: PathBuf, pid: Option<u32> },
    #[error("the state directory {} cannot be used: {error}; check its owner, or set `state_dir`", path.display())]
    Unusable { path: PathBuf, error: io::Error },
    #[error("no state directory can be made ({}); set `state_dir`", tried.join("; "))]
    None { tried: Vec<String> },
}

struct Owner(Option<u32>);

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(pid) => write!(f, "process {pid}"),
            None => f.write_str("another process"),
        }
    }
}

impl StateDir {
    /// Takes the configured directory, or else the first of `defaults` that can be written to.
    pub(crate) fn own(configured: Option<&Path>, defaults: &[PathBuf]) -> Result<Self, StateDirError> {
        if let Some(path) = configured {
            return StateDir::own_one(path);
        }
        let mut tried = Vec::new();
        for path in defaults {
            match StateDir::own_one(path) {
                Err(StateDirError::Unusable { path, error }) => tried.push(format!("{}: {error}", path.display())),
                taken => return taken,
            }
        }
        Err(StateDirError::None { tried })
    }

    fn own_one(path: &Path) -> Result<Self, StateDirError> {
        let unusable = |error: io::Error| StateDirError::Unusable { path: path.into(), error };
        // Event data may be kept there, which is not for everybody.
        DirBuilder::new().recursive(true).mode(0o750).create(path).map_err(unusable)?;
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o640)
            .open(path.join("lock"))
            .map_err(unusable)?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut text = String::new();
                // What can't be read is only a name less in the message.
                let _ = lock.take(32).read_to_string(&mut text);
                return Err(StateDirError::Owned { path: path.into(), pid: text.trim().parse().ok() });
            }
            Err(e) => return Err(unusable(e.into())),
        }
        let written =
            lock.set_len(0).and_then(|()| lock.rewind()).and_then(|()| writeln!(lock, "{}", std::process::id()));
        if let Err(e) = written {
            // The lock holds all the same.
            tracing::warn!("{}: cannot note the pid in `lock`: {e}", path.display());
        }
        Ok(StateDir { path: path.into(), _lock: lock })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_owner_who_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let owner = StateDir::own(Some(&path), &[]).unwrap();
        let refused = StateDir::own(Some(&path), &[]).expect_err("it is owned").to_string();
        assert!(refused.contains(&format!("in use by process {}", std::process::id())), "{refused}");
        drop(owner);
        StateDir::own(Some(&path), &[]).expect("it is free again, and the file that was left means nothing");
    }

    #[test]
    fn a_lock_left_by_a_killed_process_means_nothing() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("lock"), "4194304000\nrubbish\n").unwrap();
        let owner = StateDir::own(None, &[dir.path().into()]).unwrap();
        let noted = std::fs::read_to_string(owner.path().join("lock")).unwrap();
        assert_eq!(noted, format!("{}\n", std::process::id()));
    }

    #[test]
    fn the_first_that_can_be_used_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let (bad, good) = (dir.path().join("file/x"), dir.path().join("good"));
        assert_eq!(StateDir::own(None, &[bad.clone(), good.clone()]).unwrap().path(), good);
        let told = StateDir::own(None, std::slice::from_ref(&bad)).expect_err("none can be used").to_string();
        assert!(told.contains("file/x: ") && told.contains("set `state_dir`"), "{told}");
        assert!(matches!(StateDir::own(Some(&bad), &[good]), Err(StateDirError::Unusable { .. })), "no other is taken");
    }
}
