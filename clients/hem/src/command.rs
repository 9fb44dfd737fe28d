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
//! nothing to a shell where they stand, and COMMAND and the rest of ARGUMENTS are written by the operator. Arguments with plain text of
//! an event come as [`Words`](Arguments::Words), and then no shell is in it at all.
//!
//! # On another host
//!
//! `ssh -n -- <host> <line>`; without `-n` where the arguments go to standard input. As with the original the line is seen by two shells, one
//! here if it has shell characters, then that of the user's login there. The host is text of an event, and quoted; so are words.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::arguments::{self, Arguments};

/// What a shell would not take as it is; the list of Ruby 3.1's `rb_exec_fillarg`.
pub(crate) const SHELL_CHARACTERS: &[char] =
    &['*', '?', '{', '}', '[', ']', '<', '>', '(', ')', '~', '&', '|', '\\', '$', ';', '\'', '`', '"', '\n', '#'];

/// What systemd tells the daemon about itself; a service that a hook starts would take it for its own.
const SERVICE_VARIABLES: &[&str] =
    &["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// A variable of an environment: its name and its value.
pub(crate) type Variable = (Cow<'static, str>, String);

/// What is executed for one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CommandLine {
    /// The whole line, as it is recorded.
    line: String,
    /// The program, as messages name it.
    program: String,
    form: Form,
    /// What it finds in its environment.
    environment: Vec<Variable>,
    /// Whether that is all; otherwise it is beside what we have in ours.
    alone: bool,
    /// Whether it runs on this host.
    here: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Form {
    /// Arguments of the program. A shell would read each of them as it is, blanks between them.
    Words(Vec<OsString>),
    /// Arguments of the program, whatever is in them.
    Exact(Vec<OsString>),
    /// A line for `sh -c`.
    Shell(String),
}

impl CommandLine {
    /// The line for a hook. Without `arguments` they go elsewhere.
    pub(crate) fn new(base_path: &Path, command: &str, arguments: Option<&Arguments>) -> Self {
        let base = base_path.to_string_lossy();
        let command = command.trim_start_matches([' ', '\t']);
        let (base, slash) = if command.starts_with('/') { ("", "") } else { (base.trim_end_matches('/'), "/") };
        let written = arguments.map(Arguments::text).unwrap_or_default();
        let blank = if written.is_empty() { "" } else { " " };
        let line = format!("{base}{slash}{command}{blank}{written}");
        let mut words = plain_words(command);
        let (program, own) = match arguments {
            Some(Arguments::Words(_)) => (words.next().unwrap_or_default(), words.collect()),
            _ => {
                let mut words = words.chain(plain_words(&written));
                (words.next().unwrap_or_default(), words.collect::<Vec<_>>())
            }
        };
        let program = format!("{base}{slash}{program}");
        let own = own.into_iter().map(OsString::from);
        let form = match arguments {
            Some(Arguments::Words(given)) => Form::Exact(own.chain(given.iter().map(OsString::from)).collect()),
            _ if command.contains(SHELL_CHARACTERS) || written.contains(SHELL_CHARACTERS) => {
                Form::Shell(format!("{}{slash}{command}{blank}{written}", shell_path(base)))
            }
            _ => Form::Words(own.collect()),
        };
        CommandLine { line, program, form, environment: Vec::new(), alone: false, here: true }
    }

    /// The same on another host. It is recorded as before.
    pub(crate) fn on_host(self, ssh: &Path, host: &str, reads_input: bool) -> Self {
        let ssh = ssh.to_string_lossy();
        let options = if reads_input { &["--"][..] } else { &["-n", "--"] };
        let words = |rest: Vec<OsString>| {
            let options = options.iter().map(OsString::from);
            Form::Words(options.chain([host.into()]).chain(rest).collect())
        };
        let form = match self.form {
            // Without a variable of its own of that name a shell there would look for programs along its own PATH.
            form if self.alone => {
                let variables = self.environment.iter().map(|variable| {
                    let (name, value) = arguments::for_process(variable);
                    quoted(OsStr::from_bytes(&[name.as_bytes(), b"=", value.as_bytes()].concat()))
                });
                let env = ["cd", "/", "&&", "exec", "env", "-i"].map(OsString::from).into_iter().chain(variables);
                let program = quoted(self.program.as_ref());
                let command: Vec<OsString> = match form {
                    Form::Words(rest) | Form::Exact(rest) => {
                        std::iter::once(program).chain(rest.iter().map(|word| quoted(word))).collect()
                    }
                    Form::Shell(line) => {
                        ["/bin/sh", "-c"].map(OsString::from).into_iter().chain([quoted(line.as_ref())]).collect()
                    }
                };
                words(env.chain(command).collect())
            }
            // ssh joins them with blanks, for a shell there.
            Form::Words(rest) => words(std::iter::once(self.program.into()).chain(rest).collect()),
            Form::Exact(rest) => {
                let program = quoted(self.program.as_ref());
                words(std::iter::once(program).chain(rest.iter().map(|word| quoted(word))).collect())
            }
            Form::Shell(line) => {
                Form::Shell(format!("{} {} {} {line}", shell_path(&ssh), options.join(" "), arguments::quoted(host)))
            }
        };
        // Our own environment is for ssh.
        CommandLine { program: ssh.into_owned(), form, here: false, ..self }
    }

    /// Adds variables to its environment.
    pub(crate) fn with_environment(mut self, environment: Vec<Variable>) -> Self {
        self.environment = environment;
        self
    }

    /// Has these variables for its environment and no others, and runs in `/`, as Ganeti runs its hooks. Made before
    /// [`on_host`](Self::on_host), it has them there, too.
    pub(crate) fn with_this_environment(mut self, environment: Vec<Variable>) -> Self {
        self.environment = environment;
        self.alone = true;
        self
    }

    /// What was added to its environment.
    pub(crate) fn environment(&self) -> &[Variable] {
        &self.environment
    }

    /// Why it could not be started now, as far as that can be told from here; what another host does with it can't, nor of a shell's line
    /// more than its first word where that is plain.
    pub(crate) fn obstacle(&self) -> Option<String> {
        if matches!(self.form, Form::Shell(_)) && self.program.contains(SHELL_CHARACTERS) {
            return None;
        }
        rustix::fs::access(&self.program, rustix::fs::Access::EXEC_OK)
            .err()
            .map(|error| self.start_error(&error.into()).replace("Internal error ", ""))
    }

    /// The line as it is recorded.
    pub(crate) fn line(&self) -> &str {
        &self.line
    }

    /// The process to be started, in a group of its own, with pipes for input and output. The standard library gives
    /// it an empty signal mask.
    pub(crate) fn process(&self) -> Command {
        let mut command = match &self.form {
            Form::Words(words) | Form::Exact(words) => {
                let mut command = Command::new(&self.program);
                command.args(words);
                command
            }
            Form::Shell(line) => shell(["-c", line]),
        };
        self.prepare(&mut command);
        command
    }

    /// The process to be started where the kernel didn't know the program's format: a script without `#!` in its first line is one for
    /// the shell, for Ruby as for a shell itself.
    pub(crate) fn process_of_script(&self) -> Option<Command> {
        let (Form::Words(words) | Form::Exact(words)) = &self.form else { return None };
        let mut command =
            shell(std::iter::once(OsStr::new(&self.program)).chain(words.iter().map(OsString::as_os_str)));
        self.prepare(&mut command);
        Some(command)
    }

    fn prepare(&self, command: &mut Command) {
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        for name in SERVICE_VARIABLES {
            command.env_remove(name);
        }
        if self.alone && self.here {
            command.env_clear().current_dir("/");
        }
        if self.here || !self.alone {
            command.envs(self.environment.iter().map(arguments::for_process));
        }
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

/// A word as a shell reads it back.
fn quoted(word: &OsStr) -> OsString {
    OsString::from_vec(arguments::quoted_bytes(word.as_bytes()))
}

fn shell<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new("/bin/sh");
    command.arg0("sh").args(arguments);
    command
}

/// What a command line without shell characters is split at.
fn plain_words(text: &str) -> impl Iterator<Item = &str> {
    text.split([' ', '\t']).filter(|word| !word.is_empty())
}

/// A base path as a shell reads it back.
fn shell_path(path: &str) -> String {
    if path.contains(SHELL_CHARACTERS) || path.contains([' ', '\t']) {
        format!("'{}'", path.replace('\'', r"'\''"))
    } else {
        path.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use hookbus_bridges::ganeti::HookRun;

    use super::*;
    use crate::arguments::GanetiFacts;

    fn line(base_path: &str, command: &str, arguments: &str) -> CommandLine {
        CommandLine::new(Path::new(base_path), command, Some(&Arguments::Line(arguments.into())))
    }

    fn words(command: &str, arguments: &str) -> Option<Vec<String>> {
        let line = line("/b/hooks/", command, arguments);
        match line.form {
            Form::Words(words) => {
                let words = words.into_iter().map(|word| word.into_string().unwrap());
                Some(std::iter::once(line.program).chain(words).collect())
            }
            Form::Exact(_) => panic!("{line:?}"),
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
        let line = line("/b/hooks", "x.sh", "prolog  end");
        assert_eq!(line.line(), "/b/hooks/x.sh prolog  end");
    }

    #[test]
    fn shell_characters_need_a_shell() {
        for c in SHELL_CHARACTERS {
            assert_eq!(words("x", &format!("a{c}b")), None, "{c}");
            assert_eq!(words(&format!("x{c}"), ""), None, "{c}");
        }
        let line = self::line("/it's here", "x", "$HOME");
        assert_eq!(line.form, Form::Shell(r"'/it'\''s here'/x $HOME".into()));
        assert_eq!(line.line(), "/it's here/x $HOME");
        assert_eq!(self::line("/it's here", "x", "").program, "/it's here/x");
    }

    #[test]
    fn words_see_no_shell() {
        let given = Arguments::Words(["$(id)", "", "a b"].map(str::to_owned).to_vec());
        let line = CommandLine::new(Path::new("/b"), "x fixed", Some(&given));
        assert_eq!(line.form, Form::Exact(["fixed", "$(id)", "", "a b"].map(OsString::from).to_vec()));
        assert_eq!(line.line(), "/b/x fixed '$(id)' '' 'a b'");
        assert_eq!(CommandLine::new(Path::new("/b"), "x", None).line(), "/b/x");
    }

    /// What a host is called comes from an event, too.
    #[test]
    fn on_another_host_everything_is_quoted_once_more() {
        let far = |command: &str, arguments: &Arguments, input| {
            let line = CommandLine::new(Path::new("/r"), command, Some(arguments));
            let recorded = line.line().to_owned();
            let far = line.on_host(Path::new("ssh"), "no de", input);
            assert_eq!((far.line(), far.program.as_str()), (recorded.as_str(), "ssh"));
            match far.form {
                Form::Words(words) => words.join(OsStr::new("|")).into_string().unwrap(),
                form => format!("{form:?}"),
            }
        };
        assert_eq!(far("x", &Arguments::Line("a b".into()), false), "-n|--|no de|/r/x|a|b");
        assert_eq!(far("x", &Arguments::Line(String::new()), true), "--|no de|/r/x");
        assert_eq!(far("x", &Arguments::Words(vec!["$(id)".into()]), false), "-n|--|no de|/r/x|'$(id)'");
        assert_eq!(far("x", &Arguments::Line("$HOME".into()), false), r#"Shell("ssh -n -- 'no de' /r/x $HOME")"#);
    }

    /// Here and there a script gets the bytes that Ganeti gave.
    #[test]
    fn a_variable_that_is_no_utf8_is_one() {
        let run = HookRun::new(
            [("GANETI_HOOKS_PATH", "node-add"), ("GANETI_HOOKS_PHASE", "pre")].map(|(n, v)| (n.into(), v.into())),
            Some("n1".into()),
        );
        let run = run.unwrap().with_bytes(vec![b"GANETI_X=a'\xFF=\n".to_vec()]);
        let data = serde_json::json!({"report": "0".repeat(32), "time": "2026-11-23T02:00:00Z", "node": "n1", "env": run.environment(),
            "env_base64": run.data()["env_base64"]});
        let (facts, _) = GanetiFacts::of_data(data.to_string().as_bytes()).unwrap();
        let here = CommandLine::new(Path::new("/b"), "x", None).with_this_environment(facts.environment().to_vec());
        // A record knows it again.
        let recorded: Vec<_> =
            here.environment().iter().map(|(name, value)| (name.to_string(), value.clone())).collect();
        assert_eq!(GanetiFacts::recorded(&recorded).environment(), facts.environment());
        let process = here.process();
        let value = process.get_envs().find(|(name, _)| *name == "GANETI_X").and_then(|(_, value)| value).unwrap();
        assert_eq!(value.as_bytes(), b"a'\xFF=\n");
        assert_eq!(process.get_envs().filter(|(_, value)| value.is_some()).count(), 3);
        let far = here.on_host(Path::new("ssh"), "n2", false).process();
        let words: Vec<_> = far.get_args().map(OsStr::as_bytes).collect();
        let line = words[3..].join(&b' ');
        let shown = [line.strip_suffix(b"/b/x").unwrap(), b"/usr/bin/env -0"].concat();
        let read = Command::new("/bin/sh").arg("-c").arg(OsStr::from_bytes(&shown)).output().unwrap();
        let variables: Vec<_> = read.stdout.split(|&byte| byte == 0).collect();
        assert!(variables.contains(&&b"GANETI_X=a'\xFF=\n"[..]), "{read:?}");
    }

    #[test]
    fn messages_are_those_that_are_known() {
        let line = line("/b", "no_such.sh", "m");
        let message = |error| line.start_error(&io::Error::from_raw_os_error(error));
        assert_eq!(message(2), "Internal error No such file or directory - /b/no_such.sh");
        assert_eq!(message(13), "Internal error Permission denied - /b/no_such.sh");
        let too_long = message(7);
        assert!(too_long.starts_with("Internal error Argument list too long - /b/no_such.sh\n"), "{too_long}");
        assert!(too_long.contains("ARGUMENTS_STDIN"), "{too_long}");
    }
}
