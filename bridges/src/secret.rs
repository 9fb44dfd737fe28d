//! What nobody may read in a log: passwords, tokens, keys.

use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;

/// A secret, or where it is. A file is read each time it is needed, so that a new password counts from the next connection
/// on. Its `Debug` shows the name of the file or variable, and of a text nothing.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// The secret itself.
    Text(Box<str>),
    /// A file with it. White space around it doesn't count.
    File(PathBuf),
    /// A variable of the environment with it.
    Variable(Box<str>),
}

impl Secret {
    /// The secret.
    ///
    /// # Errors
    /// When its file can't be read, is no text, or is empty, or when there is no such variable. The message names the file or variable.
    pub fn read(&self) -> io::Result<String> {
        let path = match self {
            Secret::Text(text) => return Ok(text.to_string()),
            Secret::File(path) => path,
            Secret::Variable(name) => {
                return match std::env::var(&**name) {
                    Ok(text) if !text.trim().is_empty() => Ok(text.trim().to_owned()),
                    Ok(_) => Err(io::Error::new(io::ErrorKind::InvalidData, format!("${name} is empty"))),
                    // The other error would show the text.
                    Err(_) => Err(io::Error::new(io::ErrorKind::NotFound, format!("there is no text in ${name}"))),
                };
            }
        };
        let named =
            |error: io::Error| io::Error::new(error.kind(), format!("{} can't be read: {error}", path.display()));
        let text = fs::read_to_string(path).map_err(named)?;
        match text.trim() {
            "" => Err(io::Error::new(io::ErrorKind::InvalidData, format!("{} is empty", path.display()))),
            text => Ok(text.to_owned()),
        }
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Secret::Text(text.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Secret::Text(_) => formatter.write_str("Text(..)"),
            Secret::File(path) => formatter.debug_tuple("File").field(path).finish(),
            Secret::Variable(name) => formatter.debug_tuple("Variable").field(name).finish(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_from_its_file_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        let secret = Secret::File(path.clone());
        assert!(secret.read().unwrap_err().to_string().contains("password can't be read"));
        fs::write(&path, "  \n").unwrap();
        assert!(secret.read().unwrap_err().to_string().ends_with("is empty"));
        fs::write(&path, "one\n").unwrap();
        assert_eq!(secret.read().unwrap(), "one");
        fs::write(&path, "two\n").unwrap();
        assert_eq!(secret.read().unwrap(), "two");
        assert_eq!(format!("{:?}", Secret::from("hidden")), "Text(..)");
        assert!(!Secret::Variable("PATH".into()).read().unwrap().is_empty());
        let missing = Secret::Variable("HOOKBUS_NO_SUCH_VARIABLE".into());
        assert_eq!(missing.read().unwrap_err().to_string(), "there is no text in $HOOKBUS_NO_SUCH_VARIABLE");
    }
}
