//! A [`CommandLine`]: what is executed for a hook, and whether a shell is in it.
//!
//! The line is COMMAND, a blank, and the arguments; a COMMAND that doesn't begin with `/` is below the base path. As in OpenNebula
//! (whose executor hands the line to Ruby's `Process.spawn`), a shell executes it only where it holds a character that means something
//! to a shell:
//!
//! ```text
//! * ? { } [ ] < > ( ) ~ & | \ $ ; ' ` " # and line feed
//! ```
//!
//! Else it is split at blanks and tabs and executed directly, so that neither a shell's start nor its quoting rules are in the way.
//! Ruby's further rules (a shell builtin as the first word, `=` in it) never apply, since the first word is always a path with a `/`.
//!
//! Text that comes from an event never becomes shell text: `$API` and `$TEMPLATE` are base64, whose alphabet (`A-Z a-z 0-9 + / =`) means
//! nothing to a shell where they stand, and COMMAND and the rest of ARGUMENTS are written by the operator.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// What a shell would not take as it is; the list of Ruby 3.1's `rb_exec_fillarg`.
const SHELL_CHARACTERS: &[char] =
    &['*', '?', '{', '}', '[', ']', '<', '>', '(', ')', '~', '&', '|', '\\', '$', ';', '\'', '`', '"', '\n', '#'];

/// What systemd tells the daemon about itself; a service that a hook starts would take it for its own.
const SERVICE_VARIABLES: &[&str] =
    &["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// What is executed for one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CommandLine {
    /// The whole line, as it is recorded.
    line: String,
    /// The program, as messages name it.
    program: String,
    form: Form,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Form {
    /// Arguments of the program.
    Words(Vec<String>),
    /// A line for `sh -c`.
    Shell(String),
}

impl CommandLine {
    /// The line for a hook. Without `arguments` they go elsewhere.
    pub(crate) fn new(base_path: &Path, command: &str, arguments: &str) -> Self {
        let base = base_path.to_string_lossy();
        let command = command.trim_start_matches([' ', '\t']);
        let (base, slash) = if command.starts_with('/') { ("", "") } else { (base.trim_end_matches('/'), "/") };
        let blank = if arguments.is_empty() { "" } else { " " };
        let line = format!("{base}{slash}{command}{blank}{arguments}");
        let mut words = command.split([' ', '\t']).chain(arguments.split([' ', '\t'])).filter(|word| !word.is_empty());
        let program = format!("{base}{slash}{}", words.next().unwrap_or_default());
        let form = if command.contains(SHELL_CHARACTERS) || arguments.contains(SHELL_CHARACTERS) {
            Form::Shell(format!("{}{slash}{command}{blank}{arguments}", quoted(base)))
        } else {
            Form::Words(words.map(str::to_owned).collect())
        };
        CommandLine { line, program, form }
    }

    /// The line as it is recorded.
    pub(crate) fn line(&self) -> &str {
        &self.line
    }

    /// The process to be started, in a group of its own, with pipes for input and output. The standard library gives
    /// it an empty signal mask.
    pub(crate) fn process(&self) -> Command {
        let mut command = match &self.form {
            Form::Words(words) => {
                let mut command = Command::new(&self.program);
                command.args(words);
                command
            }
            Form::Shell(line) => shell(["-c", line]),
        };
        prepare(&mut command);
        command
    }

    /// The process to be started where the kernel didn't know the program's format: a script without `#!` in its first line is one for
    /// the shell, for Ruby as for a shell itself.
    pub(crate) fn process_of_script(&self) -> Option<Command> {
        let Form::Words(words) = &self.form else { return None };
        let mut command = shell(std::iter::once(&self.program).chain(words));
        prepare(&mut command);
        Some(command)
    }

    /// What standard error says where it could not be started, in the words of OpenNebula's executor.
    pub(crate) fn start_error(&self, error: &io::Error) -> String {
        let text = error.to_string();
        let reason = text.split(" (os error ").next().unwrap_or_default();
        let advice = match error.kind() {
            io::ErrorKind::ArgumentListTooLong => {
                "\nThe kernel takes 128 KiB in one argument. Pass them on standard input instead: ARGUMENTS_STDIN = yes"
            }
            // The path is in the message, and so is what is wrong, save where the file is there all the same.
            io::ErrorKind::NotFound if Path::new(&self.program).exists() => {
                "\nThe file is there: the interpreter in its first line (#!) is missing"
            }
            _ => "",
        };
        format!("Internal error {reason} - {}{advice}", self.program)
    }
}

fn shell<A: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new("/bin/sh");
    command.arg0("sh").args(arguments);
    command
}

fn prepare(command: &mut Command) {
    command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for name in SERVICE_VARIABLES {
        command.env_remove(name);
    }
}

/// A base path as a shell reads it back.
fn quoted(path: &str) -> String {
    if path.contains(SHELL_CHARACTERS) || path.contains([' ', '\t']) {
        format!("'{}'", path.replace('\'', r"'\''"))
    } else {
        path.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(command: &str, arguments: &str) -> Option<Vec<String>> {
        let line = CommandLine::new(Path::new("/b/hooks/"), command, arguments);
        match line.form {
            Form::Words(words) => Some(std::iter::once(line.program).chain(words).collect()),
            Form::Shell(_) => None,
        }
    }

    #[test]
    fn a_plain_line_is_split_at_blanks() {
        assert_eq!(words("x.sh", "").unwrap(), ["/b/hooks/x.sh"]);
        assert_eq!(words("x.sh fixed1 fixed2", "var").unwrap(), ["/b/hooks/x.sh", "fixed1", "fixed2", "var"]);
        assert_eq!(words("/bin/echo", "a  b\tc").unwrap(), ["/bin/echo", "a", "b", "c"]);
        assert_eq!(words("sub/x", "prolog  end").unwrap(), ["/b/hooks/sub/x", "prolog", "end"]);
        // Base64 is plain, with its padding; so is what Ruby takes for plain.
        assert_eq!(words("x", "QUJD+/== 100% a=b ! ^ @ , : é").unwrap().len(), 10);
        let line = CommandLine::new(Path::new("/b/hooks"), "x.sh", "prolog  end");
        assert_eq!(line.line(), "/b/hooks/x.sh prolog  end");
    }

    #[test]
    fn shell_characters_need_a_shell() {
        for c in SHELL_CHARACTERS {
            assert_eq!(words("x", &format!("a{c}b")), None, "{c}");
            assert_eq!(words(&format!("x{c}"), ""), None, "{c}");
        }
        let line = CommandLine::new(Path::new("/it's here"), "x", "$HOME");
        assert_eq!(line.form, Form::Shell(r"'/it'\''s here'/x $HOME".into()));
        assert_eq!(line.line(), "/it's here/x $HOME");
        assert_eq!(CommandLine::new(Path::new("/it's here"), "x", "").program, "/it's here/x");
    }

    #[test]
    fn messages_are_those_that_are_known() {
        let line = CommandLine::new(Path::new("/b"), "no_such.sh", "m");
        let message = |error| line.start_error(&io::Error::from_raw_os_error(error));
        assert_eq!(message(2), "Internal error No such file or directory - /b/no_such.sh");
        assert_eq!(message(13), "Internal error Permission denied - /b/no_such.sh");
        let too_long = message(7);
        assert!(too_long.starts_with("Internal error Argument list too long - /b/no_such.sh\n"), "{too_long}");
        assert!(too_long.contains("ARGUMENTS_STDIN"), "{too_long}");
    }
}
