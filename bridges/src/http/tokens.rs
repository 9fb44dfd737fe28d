//! Tokens: what a client on TCP shows to be let in.
//!
//! There are two files: one whose tokens read, one whose tokens may do everything. A file has a token on each line, so that a new one can be
//! put beside the old one until everybody has it. Files are read again while requests come ([`Renewed`]), so a token that is taken out
//! is refused a second later, and one that was put in is good by then.
//!
//! A file that can't be read, is empty, or has something else in it lets nobody in: that is told in the log, and the daemon goes on. No
//! token is ever in a log, an answer, or what `Debug` shows.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use subtle::{Choice, ConstantTimeEq};

use super::renewed::Renewed;
use super::rights::Right;

/// How often the files are looked at, at the most.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The largest file of tokens.
const MAX_FILE_BYTES: u64 = 16 << 10;
/// Shorter ones could be guessed.
const SHORT: usize = 16;

/// The files with tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenFiles {
    /// Its tokens let follow events and see the status.
    pub read: Option<PathBuf>,
    /// Its tokens let do everything.
    pub write: Option<PathBuf>,
}

/// What one file says.
#[derive(Default, PartialEq, Eq)]
struct OneFile {
    tokens: Vec<Box<[u8]>>,
    /// What is doubtful about the file, or wrong with it. Where something is wrong there is no token.
    told: Vec<String>,
    wrong: bool,
}

/// What is known of both.
#[derive(Default, PartialEq, Eq)]
struct Known {
    read: OneFile,
    write: OneFile,
}

/// Decides what a token is good for.
pub(crate) struct Tokens {
    files: TokenFiles,
    known: Renewed<Known>,
}

impl TokenFiles {
    /// Whether there is any.
    pub fn any(&self) -> bool {
        self.read.is_some() || self.write.is_some()
    }

    fn load(&self) -> Known {
        let load = |path: &Option<PathBuf>| path.as_deref().map(OneFile::of).unwrap_or_default();
        Known { read: load(&self.read), write: load(&self.write) }
    }
}

/// Looks at a file of tokens: what is doubtful about it.
///
/// # Errors
/// What makes it useless. The messages name the file, and no token.
pub fn check_token_file(path: &Path) -> Result<Vec<String>, String> {
    let OneFile { told, wrong, .. } = OneFile::of(path);
    if wrong { Err(told.join("; ")) } else { Ok(told) }
}

impl Tokens {
    /// Reads the files. It blocks.
    pub(crate) fn open(files: TokenFiles) -> Self {
        let first = files.load();
        first.tell(&Known::default());
        let again = files.clone();
        let known = Renewed::new(first, LOOK_EVERY, move |old: &Known| {
            let new = again.load();
            if new == *old {
                return None;
            }
            new.tell(old);
            if new.read.tokens != old.read.tokens || new.write.tokens != old.write.tokens {
                tracing::info!("HTTP: the files with tokens have changed and were read again");
            }
            Some(new)
        });
        Tokens { files, known }
    }

    /// Whether there are files with tokens at all.
    pub(crate) fn any(&self) -> bool {
        self.files.any()
    }

    /// What a token is good for.
    pub(crate) async fn right_of(&self, token: &[u8]) -> Option<Right> {
        if !self.any() {
            return None;
        }
        let known = self.known.get().await;
        // All are compared, whichever it is.
        let (write, read) = (known.write.has(token), known.read.has(token));
        match (bool::from(write), bool::from(read)) {
            (true, _) => Some(Right::Write),
            (false, true) => Some(Right::Read),
            (false, false) => None,
        }
    }
}

impl Known {
    /// Logs what wasn't wrong before.
    fn tell(&self, before: &Known) {
        for (now, before) in [(&self.read, &before.read), (&self.write, &before.write)] {
            for what in now.told.iter().filter(|what| !before.told.contains(what)) {
                match now.wrong {
                    true => tracing::error!("HTTP: {what}; until that is mended no token of this file is accepted"),
                    false => tracing::warn!("HTTP: {what}"),
                }
            }
        }
    }
}

impl OneFile {
    fn of(path: &Path) -> Self {
        let shown = path.display();
        let wrong = |what: String| OneFile { tokens: Vec::new(), told: vec![what], wrong: true };
        let (text, mode) = match read(path) {
            Ok(read) => read,
            Err(e) => return wrong(format!("{shown} cannot be read: {e}")),
        };
        if text.len() as u64 > MAX_FILE_BYTES {
            return wrong(format!("{shown} has more than {MAX_FILE_BYTES} bytes; a token on each line is expected"));
        }
        let lines = text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).enumerate();
        let mut told = Vec::new();
        if mode & 0o007 != 0 {
            told.push(format!(
                "{shown} is open to every user of this machine (mode {:o}), who may use the tokens in it; take that away: chmod o= {shown}",
                mode & 0o777
            ));
        }
        let mut tokens = Vec::new();
        for (number, token) in lines.filter(|(_, line)| !line.is_empty()) {
            if !token.iter().all(u8::is_ascii_graphic) {
                let number = number + 1;
                return wrong(format!("{shown}: line {number} is no token; write ASCII without blanks, one on a line"));
            }
            if token.len() < SHORT {
                let (number, length) = (number + 1, token.len());
                told.push(format!(
                    "{shown}: the token on line {number} has {length} characters and could be guessed; make a longer one: openssl rand -hex 32"
                ));
            }
            tokens.push(token.into());
        }
        if tokens.is_empty() {
            return wrong(format!("{shown} is empty; make a token: openssl rand -hex 32"));
        }
        OneFile { tokens, told, wrong: false }
    }

    fn has(&self, token: &[u8]) -> Choice {
        self.tokens.iter().fold(Choice::from(0), |found, known| found | known.ct_eq(token))
    }
}

/// A file's bytes, not many more than may be in it, and its mode.
fn read(path: &Path) -> std::io::Result<(Vec<u8>, u32)> {
    let file = File::open(path)?;
    let mode = file.metadata()?.permissions().mode();
    let mut text = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut text)?;
    Ok((text, mode))
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tokens").field(&self.files).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const READER: &str = "read-0123456789abcdef";
    const WRITER: &str = "write-0123456789abcdef";

    #[tokio::test]
    async fn a_token_is_good_for_what_its_file_says() {
        let dir = tempfile::tempdir().unwrap();
        let files = TokenFiles { read: Some(dir.path().join("read")), write: Some(dir.path().join("write")) };
        fs::write(dir.path().join("read"), format!("\n  {READER}\n{WRITER}\n")).unwrap();
        fs::write(dir.path().join("write"), format!("older-0123456789abcdef\r\n{WRITER}\n")).unwrap();
        let tokens = Tokens::open(files);
        assert_eq!(tokens.right_of(READER.as_bytes()).await, Some(Right::Read));
        assert_eq!(tokens.right_of(WRITER.as_bytes()).await, Some(Right::Write), "the greater one");
        assert_eq!(tokens.right_of(b"older-0123456789abcdef").await, Some(Right::Write), "one on each line");
        for other in ["", "read", &format!("{READER} "), &READER[..READER.len() - 1]] {
            assert_eq!(tokens.right_of(other.as_bytes()).await, None, "{other:?}");
        }
        assert!(!format!("{tokens:?}").contains(READER), "{tokens:?}");
        assert_eq!(Tokens::open(TokenFiles::default()).right_of(b"").await, None);
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said_without_its_token() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let said = |text: &str, mode| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let said = check_token_file(&path);
            let shown = format!("{said:?}");
            assert!(!shown.contains("s3cr3t"), "{shown}");
            said
        };
        assert!(check_token_file(&path).unwrap_err().contains("token cannot be read: No such file"));
        assert!(said(" \n\n", 0o600).unwrap_err().contains("is empty; make a token"));
        assert!(said("long-enough-for-a-token\nmy s3cr3t one\n", 0o600).unwrap_err().contains("line 2 is no token"));
        assert!(said(&"s3cr3t".repeat(4000), 0o600).unwrap_err().contains("more than 16384 bytes"));
        assert_eq!(said("s3cr3t-long-enough-for-a-token", 0o640), Ok(Vec::new()));
        let open = said("s3cr3t-long-enough-for-a-token", 0o644).unwrap();
        assert!(matches!(&open[..], [one] if one.contains("(mode 644)") && one.contains("chmod o= ")), "{open:?}");
        let short = said("s3cr3t", 0o600).unwrap();
        assert!(matches!(&short[..], [one] if one.contains("line 1 has 6 characters")), "{short:?}");
    }

    #[tokio::test]
    async fn a_file_that_changes_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        fs::write(&path, READER).unwrap();
        let tokens = Tokens::open(TokenFiles { read: Some(path.clone()), write: None });
        fs::write(&path, WRITER).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while tokens.right_of(WRITER.as_bytes()).await.is_none() {
            assert!(std::time::Instant::now() < deadline, "it is never read again");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(tokens.right_of(READER.as_bytes()).await, None, "the old one counts no more");
    }
}
