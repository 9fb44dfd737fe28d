//! The arguments of `hookbus hm`: read so that nothing in them is fatal.
//!
//! OpenNebula's own driver takes `-p`, `-l`, `-h`, `-b` and `-t`, with the long names below, in the ways of Ruby's
//! GetoptLong: `-p 2101`, `-p2101`, `--hwm 10`, `--hwm=10`, and any beginning of a long name that is one name's only.
//! Everything that worked there works here. What is wrong is skipped and becomes a complaint for oned's log.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, Args, ValueEnum};

use crate::cli::GlobalArgs;
use crate::config::nearest;
use crate::log::Format;

/// What `hm` is told on the command line; it goes before the configuration.
#[derive(Clone, Debug, Default, PartialEq, Args)]
pub(crate) struct HmArgs {
    /// The port that subscribers connect to [default: 2101]
    #[arg(short = 'p', long, value_name = "PORT")]
    pub(crate) publisher_port: Option<u16>,
    /// The port that hook executors report results to [default: 2102]
    #[arg(short = 'l', long, value_name = "PORT")]
    pub(crate) logger_port: Option<u16>,
    /// Messages that may wait for one subscriber before it loses some, and is told so; 0 is no limit [default: 100000]
    #[arg(short = 'h', long, value_name = "MESSAGES")]
    pub(crate) hwm: Option<usize>,
    /// The address that both ports listen on; * is all [default: 127.0.0.1]
    #[arg(short = 'b', long, value_name = "ADDRESS")]
    pub(crate) bind: Option<String>,
    /// Accepted for the sake of old configurations; it has no effect
    #[arg(short = 't', long, value_name = "THREADS")]
    pub(crate) threads: Option<String>,
    /// Hand everything to the `hookbus serve` that listens at this socket
    #[arg(long, value_name = "SOCKET")]
    pub(crate) forward: Option<PathBuf>,
    /// Print help
    #[arg(long, action = ArgAction::Help)]
    pub(crate) help: Option<bool>,
}

/// An option that takes a value.
#[derive(Debug)]
pub(crate) struct Opt {
    pub(crate) long: &'static str,
    pub(crate) short: Option<char>,
    name: Name,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Name {
    PublisherPort,
    LoggerPort,
    Hwm,
    Bind,
    Threads,
    Forward,
    Config,
    LogFormat,
}

/// All options.
pub(crate) const OPTIONS: [Opt; 8] = [
    Opt { long: "publisher-port", short: Some('p'), name: Name::PublisherPort },
    Opt { long: "logger-port", short: Some('l'), name: Name::LoggerPort },
    Opt { long: "hwm", short: Some('h'), name: Name::Hwm },
    Opt { long: "bind", short: Some('b'), name: Name::Bind },
    Opt { long: "threads", short: Some('t'), name: Name::Threads },
    Opt { long: "forward", short: None, name: Name::Forward },
    Opt { long: "config", short: Some('c'), name: Name::Config },
    Opt { long: "log-format", short: None, name: Name::LogFormat },
];

/// The words of the command line, not read yet.
#[derive(Debug, Default)]
pub(crate) struct Words {
    words: Vec<String>,
    complaints: Vec<String>,
}

impl Words {
    /// The words of the arguments behind the program's name. A single one may be oned's whole ARGUMENTS text and is split as
    /// a shell would; several have been split by a shell.
    pub(crate) fn split(args: &[OsString]) -> Self {
        let [one] = args else {
            return Words {
                words: args.iter().map(|arg| arg.to_string_lossy().into_owned()).collect(),
                complaints: Vec::new(),
            };
        };
        let text = one.to_string_lossy();
        match shlex::split(&text) {
            Some(words) => Words { words, complaints: Vec::new() },
            None => Words {
                words: text.split_whitespace().map(String::from).collect(),
                complaints: vec![format!("a quote is not closed in `{text}`; it was split at blanks")],
            },
        }
    }

    /// The words without `command`, if that is the first of them that is no option.
    pub(crate) fn after_command(mut self, command: &str) -> Option<Self> {
        let mut at = 0;
        while let Some(word) = self.words.get(at) {
            if word == command {
                self.words.remove(at);
                return Some(self);
            }
            let takes_next = matches!(word.as_str(), "-c" | "--config" | "--log-format");
            if !takes_next && !word.starts_with("--config=") && !word.starts_with("--log-format=") {
                return None;
            }
            at += 1 + usize::from(takes_next);
        }
        None
    }

    /// Words that mean what was parsed already.
    pub(crate) fn from_args(global: GlobalArgs, args: HmArgs) -> Self {
        let mut words = Vec::new();
        let mut add = |long: &str, value: Option<String>| words.extend(value.map(|value| format!("--{long}={value}")));
        add("config", global.config.map(|path| path.to_string_lossy().into_owned()));
        add("log-format", (global.log_format == Format::Json).then(|| "json".into()));
        add("publisher-port", args.publisher_port.map(|port| port.to_string()));
        add("logger-port", args.logger_port.map(|port| port.to_string()));
        add("hwm", args.hwm.map(|hwm| hwm.to_string()));
        add("bind", args.bind);
        add("forward", args.forward.map(|path| path.to_string_lossy().into_owned()));
        Words { words, complaints: Vec::new() }
    }

    /// Whether `--help` or `--version` is among them.
    pub(crate) fn asks_for_help(&self) -> bool {
        self.words.iter().any(|word| word == "--help")
    }

    /// What they say, and what is wrong with them.
    pub(crate) fn read(self) -> (GlobalArgs, HmArgs, Vec<String>) {
        let Words { words, complaints } = self;
        let mut read = Read { global: GlobalArgs::default(), hm: HmArgs::default(), complaints };
        let mut words = words.into_iter().peekable();
        while let Some(word) = words.next() {
            let Some((option, attached)) = read.option(&word) else { continue };
            // As with GetoptLong, a word that looks like an option is no value.
            let value = attached.or_else(|| words.next_if(|next| !next.starts_with('-')));
            match value {
                Some(value) => read.set(option, value.trim()),
                None => read.complain(format!("`{word}` lacks its value and was ignored")),
            }
        }
        (read.global, read.hm, read.complaints)
    }
}

struct Read {
    global: GlobalArgs,
    hm: HmArgs,
    complaints: Vec<String>,
}

impl Read {
    /// The option that a word names, and the value that is in the same word.
    fn option(&mut self, word: &str) -> Option<(&'static Opt, Option<String>)> {
        if let Some(long) = word.strip_prefix("--") {
            let (name, value) = match long.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (long, None),
            };
            let exact = OPTIONS.iter().find(|option| option.long == name);
            let begins = || {
                let mut options = OPTIONS.iter().filter(|option| !name.is_empty() && option.long.starts_with(name));
                options.next().filter(|_| options.next().is_none())
            };
            if let Some(option) = exact.or_else(begins) {
                return Some((option, value));
            }
            self.complain(match nearest(name, OPTIONS.iter().map(|option| option.long)) {
                Some(nearest) => format!("unknown option `{word}` was ignored; did you mean `--{nearest}`?"),
                None => format!("unknown option `{word}` was ignored"),
            });
            return None;
        }
        let mut letters = word.chars();
        let option = (letters.next() == Some('-'))
            .then(|| letters.next())
            .flatten()
            .and_then(|letter| OPTIONS.iter().find(|option| option.short == Some(letter)));
        let Some(option) = option else {
            let kind = if word.starts_with('-') { "option" } else { "word" };
            self.complain(format!("unknown {kind} `{word}` was ignored"));
            return None;
        };
        let rest = letters.as_str();
        let value = rest.strip_prefix('=').unwrap_or(rest);
        Some((option, (!rest.is_empty()).then(|| value.to_owned())))
    }

    fn set(&mut self, option: &Opt, value: &str) {
        match option.name {
            Name::PublisherPort => {
                self.number(option, value, "a port between 1 and 65535", |hm| &mut hm.publisher_port);
            }
            Name::LoggerPort => self.number(option, value, "a port between 1 and 65535", |hm| &mut hm.logger_port),
            Name::Hwm => self.number(option, value, "a number of messages", |hm| &mut hm.hwm),
            Name::Bind => self.hm.bind = Some(value.to_owned()),
            Name::Threads => {}
            Name::Forward => self.hm.forward = Some(value.into()),
            Name::Config => self.global.config = Some(value.into()),
            Name::LogFormat => match Format::from_str(value, false) {
                Ok(format) => self.global.log_format = format,
                Err(_) => self.complain(format!("--log-format: `{value}` was ignored; text or json is expected")),
            },
        }
    }

    fn number<T: std::str::FromStr>(
        &mut self,
        option: &Opt,
        value: &str,
        expected: &str,
        field: impl Fn(&mut HmArgs) -> &mut Option<T>,
    ) {
        match value.parse() {
            Ok(number) => *field(&mut self.hm) = Some(number),
            Err(_) => self.complain(format!("--{}: `{value}` was ignored; {expected} is expected", option.long)),
        }
    }

    fn complain(&mut self, what: String) {
        self.complaints.push(what);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (GlobalArgs, HmArgs, Vec<String>) {
        Words::split(&[text.into()]).read()
    }

    #[test]
    fn options_are_read_in_all_the_ways_of_the_original() {
        for text in [
            "-p 3001 -l 3002 -h 10 -b 0.0.0.0 -t 15",
            "-p3001 -l3002 -h10 -b0.0.0.0 -t15",
            "--publisher-port 3001 --logger-port=3002 --hwm=10 --bind 0.0.0.0 --threads 15",
            "  --pub 3001 --logger 3002 --h 10 --bi '0.0.0.0'   -t",
        ] {
            let (_, hm, complaints) = read(text);
            let expected = HmArgs {
                publisher_port: Some(3001),
                logger_port: Some(3002),
                hwm: Some(10),
                bind: Some("0.0.0.0".into()),
                ..HmArgs::default()
            };
            assert_eq!(hm, expected, "{text}");
            assert_eq!(complaints.len(), usize::from(text.ends_with("-t")), "{text}: {complaints:?}");
        }
    }

    #[test]
    fn quotes_protect_blanks_as_in_a_shell() {
        let (global, hm, complaints) = read(r#"--config "/etc/my hookbus.toml" --forward /run/a\ b.sock"#);
        assert_eq!(global.config, Some("/etc/my hookbus.toml".into()));
        assert_eq!(hm.forward, Some("/run/a b.sock".into()));
        assert_eq!(complaints, [""; 0]);
    }

    #[test]
    fn what_is_wrong_is_skipped_and_told_and_the_rest_is_used() {
        for (text, complaint) in [
            ("-p 70000 -l 3002", "--publisher-port: `70000` was ignored; a port between 1 and 65535 is expected"),
            ("-p -l 3002", "`-p` lacks its value and was ignored"),
            ("--loger-port=1 -l 3002", "unknown option `--loger-port=1` was ignored; did you mean `--logger-port`?"),
            ("--lo 1 -l 3002", "unknown option `--lo` was ignored; did you mean `--log-format`?"),
            ("-x -l 3002", "unknown option `-x` was ignored"),
            ("please -l 3002", "unknown word `please` was ignored"),
            ("-h -1 -l 3002", "`-h` lacks its value and was ignored"),
            ("-l 3002 -h ten", "--hwm: `ten` was ignored; a number of messages is expected"),
            ("-l 3002 \"", "a quote is not closed in `-l 3002 \"`; it was split at blanks"),
            ("--log-format xml -l 3002", "--log-format: `xml` was ignored; text or json is expected"),
            ("- -l 3002", "unknown option `-` was ignored"),
        ] {
            let (_, hm, complaints) = read(text);
            assert_eq!(complaints.first().map(String::as_str), Some(complaint), "{text}");
            assert_eq!(hm, HmArgs { logger_port: Some(3002), ..HmArgs::default() }, "{text}");
        }
    }
}
