//! Replaces a file so that at every moment there is a whole one, the old or the new.
//!
//! The new text goes to a file beside it, which gets the old one's owner, group, mode and extended attributes (access
//! control lists and SELinux labels are such), is written out to the disk and compared. Then the old file gets a second name, the
//! backup, and the new one takes its place by `rename`. A second name costs no space, so a full disk can only stop the first step, and
//! then nothing has changed. A process that is killed leaves a file behind whose name begins with a dot; the next one
//! removes it.
//!
//! A symbolic link is followed: it stays, what it points to is replaced. Two that replace the same file take turns by a lock on its
//! directory. Somebody who writes the file at the same time without that lock is noticed as long as it happens before the rename.

use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, XattrFlags, fgetxattr, flistxattr, flock, fsetxattr};
use thiserror::Error;

/// Why a file was not replaced. Nothing has changed then.
#[derive(Debug, Error)]
pub(super) enum ReplaceError {
    #[error("cannot read {}: {source}{}", path.display(), hint(source))]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: it is no ordinary file", path.display())]
    NoFile { path: PathBuf },
    #[error("cannot {what} {}: {source}{}; nothing was changed", path.display(), hint(source))]
    Write { what: &'static str, path: PathBuf, source: io::Error },
    #[error("{}: somebody else changed it at the same time; nothing was changed, try again", path.display())]
    Raced { path: PathBuf },
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => " (run this as root)",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => " (make room and try again)",
        io::ErrorKind::ReadOnlyFilesystem => " (the file system is mounted read-only)",
        _ => "",
    }
}

/// A file as it was read, to be replaced.
#[derive(Debug)]
pub(super) struct Original {
    /// The file itself, where its name is a link.
    path: PathBuf,
    metadata: Metadata,
    /// What is in it.
    pub(super) text: Vec<u8>,
}

impl Original {
    /// Reads the file, following links.
    pub(super) fn read(path: &Path) -> Result<Self, ReplaceError> {
        let failed = |source| ReplaceError::Read { path: path.into(), source };
        let path = fs::canonicalize(path).map_err(failed)?;
        // A pipe would be waited for.
        if !fs::metadata(&path).map_err(failed)?.is_file() {
            return Err(ReplaceError::NoFile { path });
        }
        let mut file = File::open(&path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(failed)?;
        Ok(Original { path, metadata, text })
    }

    /// Puts this text in its place and returns the path of the backup, whose name ends in `suffix`.
    pub(super) fn replace(self, text: &[u8], suffix: &str) -> Result<PathBuf, ReplaceError> {
        let path = &self.path;
        let failed = |what, path: &Path| {
            let path = path.to_owned();
            move |source| ReplaceError::Write { what, path, source }
        };
        // A file has a directory and a name.
        let directory_path = path.parent().unwrap_or(Path::new("/"));
        let directory = File::open(directory_path).map_err(failed("open", directory_path))?;
        flock(&directory, FlockOperation::NonBlockingLockExclusive)
            .map_err(io::Error::from)
            .map_err(failed("lock (is another `hookbus one` at work?)", directory_path))?;

        let new = Unfinished(with_name(path, |name| [b".", name, b".hookbus-new"].concat()));
        // Whoever left it there was killed: we have the lock.
        let _ = fs::remove_file(&new.0);
        self.write_new(text, &new.0)?;
        let backup = self.unused_name(suffix);
        self.keep(&backup)?;
        if !self.is_unchanged() {
            let _ = fs::remove_file(&backup);
            return Err(ReplaceError::Raced { path: path.clone() });
        }
        if let Err(source) = fs::rename(&new.0, path) {
            let _ = fs::remove_file(&backup);
            return Err(failed("replace", path)(source));
        }
        std::mem::forget(new);
        // It is done; if the directory can't be written out now, a loss of power brings back the old file as a whole.
        let _ = directory.sync_all();
        Ok(backup)
    }

    fn write_new(&self, text: &[u8], path: &Path) -> Result<(), ReplaceError> {
        let failed = |what| move |source| ReplaceError::Write { what, path: path.to_owned(), source };
        let mut file =
            File::options().read(true).write(true).create_new(true).mode(0o600).open(path).map_err(failed("make"))?;
        file.write_all(text).map_err(failed("write"))?;
        let ours = file.metadata().map_err(failed("look at"))?;
        let (uid, gid) = (self.metadata.uid(), self.metadata.gid());
        if (ours.uid(), ours.gid()) != (uid, gid) {
            std::os::unix::fs::fchown(&file, Some(uid), Some(gid)).map_err(failed("set the owner of"))?;
        }
        self.copy_attributes(&file);
        // Last of these, since a new owner takes bits away.
        let mode = self.metadata.permissions().mode() & 0o7777;
        file.set_permissions(fs::Permissions::from_mode(mode)).map_err(failed("set the mode of"))?;
        file.sync_all().map_err(failed("write"))?;
        let written = fs::read(path).map_err(failed("read"))?;
        if written != text {
            return Err(failed("read")(io::Error::other("it has not what was written to it")));
        }
        Ok(())
    }

    /// Access control lists, labels and what else there is. Not every file system has them, and some are the kernel's own
    /// to set, so a failure is none.
    fn copy_attributes(&self, to: &File) {
        let Ok(from) = File::open(&self.path) else { return };
        let mut names = vec![0; 64 << 10];
        let Ok(length) = flistxattr(&from, &mut names[..]) else { return };
        let mut value = vec![0; 64 << 10];
        for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            if let Ok(length) = fgetxattr(&from, name, &mut value[..]) {
                let _ = fsetxattr(to, name, &value[..length], XattrFlags::empty());
            }
        }
    }

    /// Gives the old file a second name; where there are no second names, copies it.
    fn keep(&self, backup: &Path) -> Result<(), ReplaceError> {
        let Err(linked) = fs::hard_link(&self.path, backup) else { return Ok(()) };
        self.write_new(&self.text, backup).map_err(|e| {
            let _ = fs::remove_file(backup);
            match e {
                ReplaceError::Write { path, .. } => {
                    ReplaceError::Write { what: "make the backup", path, source: linked }
                }
                other => other,
            }
        })
    }

    fn unused_name(&self, suffix: &str) -> PathBuf {
        let name = |number: u32| {
            let more = if number == 0 { String::new() } else { format!("-{number}") };
            with_name(&self.path, |name| [name, suffix.as_bytes(), more.as_bytes()].concat())
        };
        (0..).map(name).find(|path| fs::symlink_metadata(path).is_err()).expect("not all names are taken")
    }

    fn is_unchanged(&self) -> bool {
        let is_same = |now: &Metadata| {
            (now.dev(), now.ino(), now.size(), now.mtime(), now.mtime_nsec())
                == (
                    self.metadata.dev(),
                    self.metadata.ino(),
                    self.metadata.size(),
                    self.metadata.mtime(),
                    self.metadata.mtime_nsec(),
                )
        };
        fs::symlink_metadata(&self.path).is_ok_and(|now| is_same(&now))
    }
}

/// A file that is removed unless it takes its place.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn with_name(path: &Path, name: impl Fn(&[u8]) -> Vec<u8>) -> PathBuf {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};

    let old = path.file_name().unwrap_or_default().as_bytes();
    path.with_file_name(OsString::from_vec(name(old)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_and_kept_and_a_link_stays() {
        let directory = tempfile::tempdir().unwrap();
        let (real, link) = (directory.path().join("real"), directory.path().join("link"));
        fs::write(&real, "old").unwrap();
        fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink("real", &link).unwrap();
        let backup = Original::read(&link).unwrap().replace(b"new", ".b").unwrap();
        assert_eq!(backup.file_name().unwrap(), "real.b");
        assert_eq!((fs::read(&link).unwrap(), fs::read(&backup).unwrap()), (b"new".to_vec(), b"old".to_vec()));
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::metadata(&real).unwrap().mode() & 0o7777, 0o640);
        assert_ne!(fs::metadata(&real).unwrap().ino(), fs::metadata(&backup).unwrap().ino());

        fs::write(directory.path().join(".real.hookbus-new"), "left behind by a kill").unwrap();
        Original::read(&link).unwrap().replace(b"newer", ".b").unwrap();
        assert_eq!(names(directory.path()), ["link", "real", "real.b", "real.b-1"]);
    }

    #[test]
    fn extended_attributes_go_along() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "old").unwrap();
        let file = File::open(&path).unwrap();
        if fsetxattr(&file, "user.hookbus", b"kept", XattrFlags::empty()).is_err() {
            eprintln!("left out: this file system has no extended attributes");
            return;
        }
        Original::read(&path).unwrap().replace(b"new", ".b").unwrap();
        let mut value = [0; 16];
        let length = fgetxattr(File::open(&path).unwrap(), "user.hookbus", &mut value[..]).unwrap();
        assert_eq!(&value[..length], b"kept");
    }

    #[test]
    fn a_change_by_somebody_else_is_not_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "old").unwrap();
        let original = Original::read(&path).unwrap();
        fs::write(&path, "theirs").unwrap();
        assert!(matches!(original.replace(b"ours", ".b"), Err(ReplaceError::Raced { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"theirs");
        assert_eq!(names(directory.path()), ["file"]);
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(Original::read(directory.path()), Err(ReplaceError::NoFile { .. })));
        let missing = Original::read(&directory.path().join("missing")).unwrap_err().to_string();
        assert!(missing.contains("cannot read") && missing.contains("No such file"), "{missing}");
    }
}
