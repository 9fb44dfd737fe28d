//! The Unix socket that the daemon listens at.
//!
//! A socket file outlives its process when that was killed. So a file that is there already is asked: if nobody answers, it is
//! left over and replaced; if somebody does, it stays, and this is an error. The new socket is made under another name and renamed
//! into place, with its mode and group set, so that nobody can connect to one with the wrong permissions.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use thiserror::Error;

/// A socket that is listened at; the file goes when this is dropped.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// The file's device and inode: another may stand in its place by then.
    identity: Option<(u64, u64)>,
}

/// Why there is none.
#[derive(Debug, Error)]
pub(crate) enum SocketError {
    #[error(
        "{}: another process listens at this socket{}; stop it, or set [http] socket to another path",
        path.display(),
        pid.map_or_else(String::new, |pid| format!(" (process {pid})"))
    )]
    InUse { path: PathBuf, pid: Option<i32> },
    #[error("{}: there is a file that is no socket; remove it, or set [http] socket to another path", path.display())]
    NoSocket { path: PathBuf },
    #[error("{}: cannot listen: {error}; check the owner of the directory, or set [http] socket", path.display())]
    Unusable { path: PathBuf, error: io::Error },
    #[error("no socket can be made ({}); set [http] socket", tried.join("; "))]
    None { tried: Vec<String> },
}

impl SocketFile {
    /// Listens at the configured path, or else at the first of `defaults` that can be made. `group` may use the socket, too.
    pub(crate) fn listen(
        configured: Option<&Path>,
        defaults: &[PathBuf],
        group: Option<u32>,
    ) -> Result<(Self, UnixListener), SocketError> {
        if let Some(path) = configured {
            return SocketFile::listen_at(path, group);
        }
        let mut tried = Vec::new();
        for path in defaults {
            // /run/hookbus may not be there yet. A directory that a configuration names has to be: it may be misspelt.
            if let Some(directory) = path.parent().filter(|directory| !directory.exists())
                && let Err(e) = fs::create_dir(directory)
            {
                tried.push(format!("{}: {e}", path.display()));
                continue;
            }
            match SocketFile::listen_at(path, group) {
                Err(SocketError::Unusable { path, error }) => tried.push(format!("{}: {error}", path.display())),
                done => return done,
            }
        }
        Err(SocketError::None { tried })
    }

    fn listen_at(path: &Path, group: Option<u32>) -> Result<(Self, UnixListener), SocketError> {
        let unusable = |error: io::Error| SocketError::Unusable { path: path.into(), error };
        match fs::symlink_metadata(path) {
            Ok(metadata) if !metadata.file_type().is_socket() => {
                return Err(SocketError::NoSocket { path: path.into() });
            }
            Ok(_) => match UnixStream::connect(path) {
                Ok(stream) => {
                    let owner = rustix::net::sockopt::socket_peercred(&stream).ok();
                    return Err(SocketError::InUse {
                        path: path.into(),
                        pid: owner.map(|owner| owner.pid.as_raw_nonzero().get()),
                    });
                }
                Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                    tracing::info!("{}: nobody listens at this socket any more; it is replaced", path.display());
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(unusable(e)),
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(unusable(e)),
        }
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(format!(".{}", std::process::id()));
        let temporary = PathBuf::from(temporary);
        // It can only be left from a process that had the same number and is gone.
        let _ = fs::remove_file(&temporary);
        let listener = UnixListener::bind(&temporary).map_err(unusable)?;
        let placed = set_access(&temporary, group).and_then(|()| fs::rename(&temporary, path));
        if let Err(e) = placed {
            let _ = fs::remove_file(&temporary);
            return Err(unusable(e));
        }
        let identity = fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino())).ok();
        Ok((SocketFile { path: path.into(), identity }, listener))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

fn set_access(path: &Path, group: Option<u32>) -> io::Result<()> {
    let mode = match group {
        None => 0o600,
        Some(gid) => {
            std::os::unix::fs::chown(path, None, Some(gid)).map_err(|e| {
                io::Error::other(format!("cannot give it to the group of [http] group ({e}); is this user a member?"))
            })?;
            0o660
        }
    };
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let now = fs::symlink_metadata(&self.path).map(|metadata| (metadata.dev(), metadata.ino())).ok();
        if now.is_some() && now == self.identity {
            // A file that stays does no harm: the next one asks it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_was_left_is_replaced_and_one_in_use_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/hookbus.sock");
        let refused = SocketFile::listen(Some(&path), &[], None).expect_err("its directory isn't there").to_string();
        assert!(refused.contains("run/hookbus.sock: cannot listen: No such file"), "{refused}");
        let (file, listener) = SocketFile::listen(None, std::slice::from_ref(&path), None).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let refused = SocketFile::listen(Some(&path), &[], None).expect_err("somebody listens").to_string();
        assert!(refused.contains(&format!("(process {})", std::process::id())), "{refused}");
        drop(listener);
        let (second, _listener) = SocketFile::listen(Some(&path), &[], None).expect("nobody listens any more");
        drop(file);
        UnixStream::connect(&path).expect("the first one's end doesn't take the second one's file");
        drop(second);
        assert!(!path.exists());
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 0, "nothing else is left");
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("precious");
        fs::write(&path, "data").unwrap();
        assert!(matches!(SocketFile::listen(Some(&path), &[], None), Err(SocketError::NoSocket { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"data");
    }

    #[test]
    fn the_first_that_can_be_made_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let (bad, good) = (dir.path().join("no/such/x.sock"), dir.path().join("y.sock"));
        let (file, _listener) = SocketFile::listen(None, &[bad.clone(), good.clone()], None).unwrap();
        assert_eq!(file.path(), good);
        let told = SocketFile::listen(None, &[bad], None).expect_err("none can be made").to_string();
        assert!(told.contains("no/such/x.sock: ") && told.contains("set [http] socket"), "{told}");
    }
}
