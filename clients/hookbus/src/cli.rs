//! The command line: which program this is called as, what it is asked to do.
//!
//! clap reads it, with one exception. `hookbus hm` is started by oned, which hands over its whole ARGUMENTS text as *one*
//! argument and ends when the driver does: so nothing in it may be a usage error. [`hm`](crate::hm::args) reads its own
//! words; the definition here is for `--help`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::cursor::CursorCommand;
use crate::dlq::DlqCommand;
use crate::ganeti::GanetiCommand;
use crate::hm::args::{HmArgs, Words};
use crate::hook::HookCommand;
use crate::log::Format;
use crate::one::OneCommand;
use crate::publish::PublishArgs;
use crate::status::StatusArgs;
use crate::tail::TailArgs;

/// Takes the events of OpenNebula and Ganeti clouds and fans them out to every bus a consumer may already use.
#[derive(Debug, Parser)]
#[command(name = "hookbus", version, max_term_width = 100, subcommand_required = true, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct GlobalArgs {
    /// The configuration [default: /etc/hookbus/hookbus.toml, if it exists]
    #[arg(short, long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// How the program's own log is written
    #[arg(long, global = true, value_name = "FORMAT", value_enum, default_value_t)]
    pub(crate) log_format: Format,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Stand in for OpenNebula's Hook Manager driver
    ///
    /// oned starts it, with this in oned.conf:
    ///
    ///   HM_MAD = [
    ///       EXECUTABLE = "/usr/bin/hookbus",
    ///       ARGUMENTS = "hm -p 2101 -l 2102 -b 127.0.0.1" ]
    ///
    /// It reads events from standard input and serves them to ZeroMQ subscribers, and reports what
    /// hook executors say back to oned on standard output. It never ends because of its arguments,
    /// its configuration or a port that is taken: it tells oned's log and serves what it can.
    /// Called under the name one_hm or hookbus-hm it does the same without the word hm.
    #[command(verbatim_doc_comment, disable_help_flag = true)]
    Hm(HmArgs),
    /// Show what hookbus does, with recorded events and nothing else
    ///
    /// Replays what a real OpenNebula did through a broker with a ZeroMQ port on this machine, shows what happens to
    /// it, and prints commands with which you can subscribe from another terminal. Nothing that runs here is disturbed.
    Demo(DemoArgs),
    /// Run as a service: ZeroMQ ports, HTTP, bridges, hooks
    ///
    /// It ends in order on SIGTERM, and reads hooks again on SIGHUP.
    Serve,
    /// Show events as they happen
    Tail(TailArgs),
    /// Publish an event by hand
    ///
    /// Prints the event's id.
    Publish(PublishArgs),
    /// Show how the daemon, its subscribers and its hooks stand
    Status(StatusArgs),
    /// Look at events that a bus has refused, or a hook has failed for, and try again
    #[command(subcommand)]
    Dlq(DlqCommand),
    /// Look at where durable subscribers stand in the journal
    #[command(subcommand)]
    Cursor(CursorCommand),
    /// Create, look at and try hooks, and see what came of them
    #[command(subcommand)]
    Hook(Box<HookCommand>),
    /// Look at the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Make hookbus OpenNebula's hook driver, or take that back
    #[command(subcommand)]
    One(OneCommand),
    /// Put hookbus among the hooks of Ganeti on this node, or take that back
    #[command(subcommand)]
    Ganeti(GanetiCommand),
    /// Print a completion script for a shell
    ///
    /// For bash, put it where your system looks for them:
    /// hookbus completions bash > ~/.local/share/bash-completion/completions/hookbus
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// What to do with the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Say what is wrong with it; the exit status is 2 if there are errors
    Check,
    /// Print it with all defaults, without passwords
    Show,
}

/// How the demo plays.
#[derive(Clone, Debug, Args)]
pub(crate) struct DemoArgs {
    /// Events per second
    #[arg(long, value_name = "EVENTS_PER_S", default_value_t = 5.0, value_parser = rate)]
    pub(crate) rate: f64,
    /// End after that many events
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<u64>,
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.01..=1e6).contains(&rate) => Ok(rate),
        _ => Err("a number between 0.01 and 1000000 is expected".into()),
    }
}

/// What the process is asked to do.
#[derive(Debug)]
pub(crate) enum Invocation {
    /// Be the driver, given these words.
    Hm(Words),
    /// Play the demo.
    Demo(GlobalArgs, DemoArgs),
    /// Be the daemon.
    Serve(GlobalArgs),
    /// Follow events.
    Tail(GlobalArgs, TailArgs),
    /// Publish an event.
    Publish(GlobalArgs, PublishArgs),
    /// Show the daemon's status.
    Status(GlobalArgs, StatusArgs),
    /// Look at dead letters, send them again.
    Dlq(GlobalArgs, DlqCommand),
    /// Look at cursors.
    Cursor(GlobalArgs, CursorCommand),
    /// Manage hooks. (In a box: it has many options.)
    Hook(GlobalArgs, Box<HookCommand>),
    /// Look at the configuration.
    Config(GlobalArgs, ConfigCommand),
    /// Change OpenNebula's configuration.
    One(GlobalArgs, OneCommand),
    /// Change the hooks of Ganeti on this node.
    Ganeti(GlobalArgs, GanetiCommand),
    /// Print this completion script.
    Completions(Vec<u8>),
}

/// Reads the command line.
///
/// # Errors
/// What clap has to say, among it the texts of `--help` and `--version`.
pub(crate) fn parse(args: Vec<OsString>) -> Result<Invocation, clap::Error> {
    if let Some(words) = as_driver(&args) {
        if stdin_is_pipe() || !words.asks_for_help() {
            return Ok(Invocation::Hm(words));
        }
        // A person at a terminal is shown the help; oned, which talks through a pipe, is served.
        let plain = ["hookbus", "hm", "--help"];
        return Err(Cli::try_parse_from(plain).expect_err("--help is an error to clap"));
    }
    let cli = Cli::try_parse_from(args)?;
    Ok(match cli.command {
        Command::Hm(args) => Invocation::Hm(Words::from_args(cli.global, args)),
        Command::Demo(args) => Invocation::Demo(cli.global, args),
        Command::Serve => Invocation::Serve(cli.global),
        Command::Tail(args) => Invocation::Tail(cli.global, args),
        Command::Publish(args) => Invocation::Publish(cli.global, args),
        Command::Status(args) => Invocation::Status(cli.global, args),
        Command::Dlq(command) => Invocation::Dlq(cli.global, command),
        Command::Cursor(command) => Invocation::Cursor(cli.global, command),
        Command::Hook(command) => Invocation::Hook(cli.global, command),
        Command::Config(command) => Invocation::Config(cli.global, command),
        Command::One(command) => Invocation::One(cli.global, command),
        Command::Ganeti(command) => Invocation::Ganeti(cli.global, command),
        Command::Completions { shell } => Invocation::Completions(completions(shell)),
    })
}

fn completions(shell: clap_complete::Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "hookbus", &mut script);
    script
}

/// The words for `hm`, if that is what the process is to be.
fn as_driver(args: &[OsString]) -> Option<Words> {
    let (program, rest) = args.split_first()?;
    let name = Path::new(program).file_name()?.to_str()?;
    let words = Words::split(rest);
    if matches!(name, "one_hm" | "hookbus-hm") {
        return Some(words);
    }
    words.after_command("hm")
}

fn stdin_is_pipe() -> bool {
    rustix::fs::fstat(rustix::stdio::stdin())
        .is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Fifo)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> Result<Invocation, clap::Error> {
        parse(args.iter().map(OsString::from).collect())
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn oned_hands_over_one_argument() {
        for args in [
            &["/usr/bin/hookbus", "hm -p 2101 -l 2102 -b 127.0.0.1"][..],
            &["hookbus", "hm", "-p", "2101", "-l", "2102", "-b", "127.0.0.1"],
            &["/usr/lib/one/mads/one_hm", "-p 2101 -l 2102 -b 127.0.0.1"],
            &["hookbus-hm", "-p", "2101", "-l", "2102", "-b", "127.0.0.1"],
            &["hookbus", "--log-format json hm -p 2101 -l 2102 -b 127.0.0.1"],
            &["hookbus", "-c", "/etc/x.toml", "hm", "-p", "2101", "-l", "2102", "-b", "127.0.0.1"],
        ] {
            let Ok(Invocation::Hm(words)) = parsed(args) else { panic!("{args:?}") };
            let (global, hm, complaints) = words.read();
            assert_eq!(complaints, [""; 0], "{args:?}");
            assert_eq!((hm.publisher_port, hm.logger_port), (Some(2101), Some(2102)), "{args:?}");
            assert_eq!(hm.bind.as_deref(), Some("127.0.0.1"), "{args:?}");
            assert_eq!(global.log_format == Format::Json, args[1].starts_with("--log"), "{args:?}");
            assert_eq!(global.config.is_some(), args[1] == "-c", "{args:?}");
        }
    }

    #[test]
    fn nothing_makes_hm_a_usage_error() {
        for args in [&["hookbus", "hm --bogus -p"][..], &["one_hm"], &["one_hm", ""], &["hookbus", "hm", "\"", "demo"]]
        {
            assert!(matches!(parsed(args), Ok(Invocation::Hm(_))), "{args:?}");
        }
    }

    #[test]
    fn commands_are_strict() {
        for args in [&["hookbus"][..], &["hookbus", "bogus"], &["hookbus", "demo", "--rate", "0"]] {
            let error = parsed(args).expect_err("a usage error");
            assert_eq!(error.exit_code(), 2, "{args:?}");
        }
        let Ok(Invocation::Demo(_, demo)) = parsed(&["hookbus", "demo", "--count", "3"]) else { panic!() };
        assert_eq!((demo.rate, demo.count), (5.0, Some(3)));
    }

    #[test]
    fn the_help_names_every_option_that_hm_reads() {
        let mut command = Cli::command();
        command.build();
        let hm = command.find_subcommand("hm").unwrap();
        for option in crate::hm::args::OPTIONS {
            let found = hm.get_arguments().find(|arg| arg.get_long() == Some(option.long));
            let found = found.unwrap_or_else(|| panic!("--{} is missing from the help", option.long));
            assert_eq!(found.get_short(), option.short, "--{}", option.long);
        }
    }
}
