//! `hookbus ganeti install|uninstall|status|import`: puts `hookbus-ganeti-hook` among the hooks of Ganeti on this node, and takes that back.
//!
//! Ganeti runs what lies in `<hooks dir>/<operation>-<phase>.d/`, on each node that an operation concerns. [`install`] puts a symbolic link into each of these
//! directories and writes down how Ganeti calls this node ([`node`]), by which the hook knows where it runs; [`status`] says what is where.
//! All of it is about this node alone: an operator runs it on each.
//!
//! # Guarantees
//!
//! - Only symbolic links to a program called `hookbus-ganeti-hook` are made, replaced or removed. Whatever else has the link's name is told and left.
//! - The file of the hook's configuration is a whole one at every moment; a `node` that stands there is kept, and so is every comment.
//! - A link appears under its name at once, so that an operation that runs meanwhile finds the old one or the new one.

mod import;
mod install;
mod node;
mod status;

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use hookbus_bridges::ganeti::OPERATIONS;
use hookbus_ganeti_hook::{PROGRAM, config};
use thiserror::Error;

use self::import::ImportArgs;
use crate::cli::GlobalArgs;
use crate::client;
use crate::config::nearest;
use crate::listing::Output;

/// What each hook of ours is called: legal for Ganeti (no dot), and among the first, but behind checks that somebody calls `10-...`.
const LINK: &str = "50-hookbus";

/// What to do with the hooks of Ganeti.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum GanetiCommand {
    /// Put hookbus among the hooks of Ganeti on this node
    ///
    /// A symbolic link, 50-hookbus, goes into the directory of every operation and phase; directories that are missing are made. How Ganeti calls this
    /// node is written into the hook's configuration, unless it stands there. Run it on each node.
    Install(InstallArgs),
    /// Take away what install put there
    ///
    /// Directories stay, and so does the hook's configuration.
    Uninstall(HooksArgs),
    /// Say what is where, and whether reports get through
    ///
    /// The exit status is 1 when Ganeti has no node of the name that the hook reports, or its configuration is wrong.
    Status(StatusArgs),
    /// Make hooks of the scripts that Ganeti runs now, to be run once for each operation
    ///
    /// Each becomes a hook of TYPE ganeti in the daemon's store, with the script as its command.
    Import(ImportArgs),
}

/// Where Ganeti's hooks are.
#[derive(Clone, Debug, Args)]
pub(crate) struct HooksArgs {
    /// The directory of Ganeti's hooks
    #[arg(long, value_name = "DIR", default_value = "/etc/ganeti/hooks")]
    hooks_dir: PathBuf,
}

/// Where the rest is.
#[derive(Clone, Debug, Args)]
struct PlaceArgs {
    /// The hook's configuration; the hooks that Ganeti runs read no other than the default
    #[arg(long, value_name = "FILE", default_value = config::DEFAULT_PATH)]
    hook_config: PathBuf,
    /// Ganeti's data, where the names of the nodes are
    #[arg(long, value_name = "DIR", default_value = "/var/lib/ganeti")]
    data_dir: PathBuf,
}

/// What to install.
#[derive(Clone, Debug, Args)]
pub(crate) struct InstallArgs {
    #[command(flatten)]
    hooks: HooksArgs,
    #[command(flatten)]
    places: PlaceArgs,
    /// The operations, as hooks know them: instance-start,instance-stop [default: all]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = operation)]
    ops: Vec<String>,
    /// When to report an operation: before it (pre), after it (post)
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "pre,post")]
    phases: Vec<Phase>,
}

/// How to show it.
#[derive(Clone, Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    hooks: HooksArgs,
    #[command(flatten)]
    places: PlaceArgs,
    /// How it is shown
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t)]
    output: Output,
}

/// When a hook runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Phase {
    /// Before the operation
    Pre,
    /// After an operation that succeeded
    Post,
}

impl Phase {
    const ALL: [Phase; 2] = [Phase::Pre, Phase::Post];

    fn name(self) -> &'static str {
        match self {
            Phase::Pre => "pre",
            Phase::Post => "post",
        }
    }
}

/// Every operation that has hooks. (`config-update`, which repeats others, and `watcher`, which is no operation, are left out.)
fn known() -> impl Iterator<Item = &'static str> {
    OPERATIONS.into_iter().map(|(name, _)| name)
}

fn operation(text: &str) -> Result<String, String> {
    if known().any(|known| known == text) {
        return Ok(text.to_owned());
    }
    Err(match nearest(text, known()) {
        Some(known) => format!("no such operation; did you mean `{known}`?"),
        None => format!("no such operation; there are: {}", known().collect::<Vec<_>>().join(", ")),
    })
}

/// Why a command failed.
#[derive(Debug, Error)]
enum GanetiError {
    #[error("there is no {0} beside this program, {1}; install it there")]
    NoProgram(&'static str, PathBuf),
    #[error("where this program is can't be found out: {0}")]
    Nowhere(io::Error),
    #[error("cannot {what} {}: {source}{}", path.display(), hint(source))]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("{}: {problem}", path.display())]
    Config { path: PathBuf, problem: String },
    #[error("{0}")]
    Several(String),
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => " (run this as root)",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => " (make room and try again)",
        io::ErrorKind::ReadOnlyFilesystem => " (the file system is mounted read-only)",
        _ => "",
    }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> GanetiError {
    let path = path.to_owned();
    move |source| GanetiError::Io { what, path, source }
}

/// What lies under the name of our link in a hook directory.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// There is no such directory.
    NoDirectory,
    /// The directory has nothing of that name.
    Nothing,
    /// A link to a hookbus-ganeti-hook, this one.
    Ours(PathBuf),
    /// Something else.
    Foreign,
}

impl Place {
    fn of(link: &Path) -> io::Result<Self> {
        let directory = link.parent().unwrap_or(Path::new("/"));
        match fs::symlink_metadata(link) {
            Ok(metadata) if metadata.is_symlink() => Ok(match fs::read_link(link)? {
                target if is_ours(&target) => Place::Ours(target),
                _ => Place::Foreign,
            }),
            Ok(_) => Ok(Place::Foreign),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Ok(if directory.is_dir() { Place::Nothing } else { Place::NoDirectory })
            }
            Err(e) => Err(e),
        }
    }
}

/// Whether a link to this is one of ours.
fn is_ours(target: &Path) -> bool {
    target.file_name().is_some_and(|name| name == PROGRAM)
}

/// The directory of an operation's hooks.
fn directory(hooks_dir: &Path, operation: &str, phase: Phase) -> PathBuf {
    hooks_dir.join(format!("{operation}-{}.d", phase.name()))
}

/// Runs the command.
pub(crate) fn run(global: &GlobalArgs, command: &GanetiCommand) -> ExitCode {
    let mut stdout = String::new();
    let result = match command {
        GanetiCommand::Install(args) => install::install(args, &mut stdout),
        GanetiCommand::Uninstall(args) => install::uninstall(args, &mut stdout),
        GanetiCommand::Status(args) => return status::status(args),
        GanetiCommand::Import(args) => {
            return client::run(global, &args.client, async |client| import::import(&client, args).await);
        }
    };
    let status = match result {
        Ok(()) => 0,
        Err(e) => {
            complain("error", &e.to_string());
            1
        }
    };
    crate::config::command::printed(stdout.as_bytes(), status)
}

fn complain(severity: &str, what: &str) {
    // Where standard error is closed nobody wants to know.
    let _ = writeln!(anstream::stderr(), "{severity}: {what}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_sorted_and_misspelt_ones_are_told() {
        assert!(known().is_sorted());
        assert_eq!(operation("disk-grow").unwrap(), "disk-grow");
        assert!(operation("instance-strat").unwrap_err().contains("did you mean `instance-start`?"));
        assert!(operation("config-update").is_err());
        for operation in hookbus_ganeti_hook::hook::ON_EVERY_NODE {
            assert!(known().any(|known| known == operation), "{operation}");
        }
    }
}
