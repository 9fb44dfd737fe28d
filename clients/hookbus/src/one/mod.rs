//! `hookbus one enable|disable|status`: makes hookbus the hook driver of OpenNebula, and takes that back.
//!
//! oned starts the driver that HM_MAD in oned.conf names. [`edit`] changes that attribute in the file's text and keeps what stood
//! there beside it as comments; [`replace`] puts the text in the file's place, the old file staying as a backup; [`running`] looks at
//! what a running oned has started. oned is left alone: it reads its configuration when it starts, and when that may be is for the
//! administrator to say.
//!
//! # Guarantees
//!
//! - oned.conf is a whole file at every moment, the old or the new one, whatever is killed and however full the disk is.
//! - What is written was read again before, and `disable` brings back, byte for byte, what `enable` replaced, also when the
//!   rest of the file was changed since.
//! - Whatever isn't clear (no HM_MAD, two of them, a program that isn't known) is refused.

mod edit;
mod replace;
mod running;
mod syntax;

use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use thiserror::Error;

use crate::cli::GlobalArgs;
use crate::hm::args::Words;
use edit::{EditError, HookDriver, Kind, Wanted};
use replace::{Original, ReplaceError};
use running::{Driver, Oned};

/// What to do with OpenNebula's configuration.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum OneCommand {
    /// Make hookbus the hook driver in oned.conf
    ///
    /// HM_MAD is changed to run `hookbus hm`, with the ports and address that it has. What stood there stays beside it as
    /// comments, and the whole old file as a backup. oned takes notice when it is restarted.
    Enable(EnableArgs),
    /// Bring back what enable replaced
    Disable(FileArgs),
    /// Say which driver is configured, and which one runs
    Status(FileArgs),
}

/// Which file.
#[derive(Clone, Debug, Args)]
pub(crate) struct FileArgs {
    /// OpenNebula's configuration [default: /etc/one/oned.conf, or $ONE_LOCATION/etc/oned.conf]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

/// What to put into the file.
#[derive(Clone, Debug, Args)]
pub(crate) struct EnableArgs {
    #[command(flatten)]
    file: FileArgs,
    /// The program that oned will start [default: this one]
    #[arg(long, value_name = "PATH")]
    executable: Option<PathBuf>,
    /// Replace a driver that is neither OpenNebula's nor hookbus
    #[arg(long)]
    force: bool,
    /// Arguments for `hookbus hm` [default: those that the driver has in the file]
    #[arg(last = true, value_name = "ARGS")]
    arguments: Vec<OsString>,
}

/// Why the command failed.
#[derive(Debug, Error)]
enum OneError {
    #[error("{}: {reason}", path.display())]
    Edit { path: PathBuf, reason: EditError },
    #[error(transparent)]
    Replace(#[from] ReplaceError),
    #[error("{0}")]
    Usage(String),
}

/// Runs the command.
pub(crate) fn run(global: &GlobalArgs, command: &OneCommand) -> ExitCode {
    let mut stdout = String::new();
    let result = match command {
        OneCommand::Enable(args) => enable(global, args, &mut stdout),
        OneCommand::Disable(args) => disable(args, &mut stdout),
        OneCommand::Status(args) => status(global, args, &mut stdout),
    };
    match result {
        Ok(()) => crate::config::command::printed(stdout.as_bytes(), 0),
        Err(e) => {
            complain("error", &e.to_string());
            ExitCode::from(if matches!(e, OneError::Usage(_)) { 2 } else { 1 })
        }
    }
}

fn enable(global: &GlobalArgs, args: &EnableArgs, out: &mut String) -> Result<(), OneError> {
    let path = args.file.path();
    let executable = executable(args.executable.as_deref())?;
    let given = arguments(&args.arguments)?;
    let original = Original::read(&path)?;
    let edit = |reason| OneError::Edit { path: path.clone(), reason };

    let now = HookDriver::of(&original.text).map_err(edit)?;
    let has_marks = edit::is_enabled(&original.text).map_err(edit)?;
    let mut arguments = given.clone();
    let mut text = original.text.clone();
    if now.kind() == Kind::Hookbus {
        let now_given = now.arguments.trim().strip_prefix("hm").unwrap_or(&now.arguments).trim();
        let as_wanted = (args.executable.is_none() || now.executable == executable)
            && given.as_deref().is_none_or(|given| given == now_given);
        if as_wanted {
            *out = format!(
                "{}: HM_MAD runs {} already; nothing was changed.\n{}{}",
                path.display(),
                shown(&now),
                advice(&now, &running::oneds(Path::new("/proc"))),
                beside_a_service(&now, global)
            );
            return Ok(());
        }
        arguments = arguments.or_else(|| Some(now_given.to_owned()));
    }
    if has_marks && let Some(before) = edit::disable(&text).map_err(edit)? {
        text = before;
    }
    let wanted = Wanted { executable: &executable, arguments: arguments.as_deref(), force: args.force };
    let new = edit::enable(&text, &wanted).map_err(edit)?;
    let driver = HookDriver::of(&new).map_err(edit)?;
    let backup = original.replace(&new, &backup_suffix())?;
    *out = format!(
        "{}: HM_MAD runs {} now; it was {}.\n\
         The file as it was is {}; `hookbus one disable` takes this back.\n\
         To make it take effect:  systemctl restart opennebula\n\
         {}\n\
         With several front-ends (HA), do this on each of them; the drivers of all run, events come from the leader.\n",
        path.display(),
        shown(&driver),
        shown(&now),
        backup.display(),
        if ports(&now) == ports(&driver) {
            "Nothing else needs a change: opennebula-hem (onehem-server), OneFlow and FireEdge find the same ports."
        } else {
            "The ports or their address change: tell those who connect to them, opennebula-hem (onehem-server), OneFlow and FireEdge \
             among them."
        }
    );
    out.push_str(&beside_a_service(&driver, global));
    Ok(())
}

/// Where a driver with these arguments is found, as far as the arguments say.
fn ports(driver: &HookDriver) -> (u16, u16, String) {
    let arguments = driver.arguments.trim();
    let arguments = arguments.strip_prefix("hm ").unwrap_or(arguments);
    let (_, hm, _) = Words::split(&[arguments.into()]).read();
    (
        hm.publisher_port.unwrap_or(2101),
        hm.logger_port.unwrap_or(2102),
        hm.bind.unwrap_or_else(|| "127.0.0.1".to_owned()),
    )
}

fn disable(args: &FileArgs, out: &mut String) -> Result<(), OneError> {
    let path = args.path();
    let original = Original::read(&path)?;
    let edit = |reason| OneError::Edit { path: path.clone(), reason };
    let Some(text) = edit::disable(&original.text).map_err(edit)? else {
        let driver = HookDriver::of(&original.text).map_err(edit)?;
        *out = format!("{}: HM_MAD runs {}, not hookbus; nothing was changed.\n", path.display(), shown(&driver));
        return Ok(());
    };
    let driver = HookDriver::of(&text).map_err(edit)?;
    let backup = original.replace(&text, &backup_suffix())?;
    *out = format!(
        "{}: HM_MAD runs {} again.\n\
         The file as it was is {}.\n\
         To make it take effect:  systemctl restart opennebula\n",
        path.display(),
        shown(&driver),
        backup.display()
    );
    Ok(())
}

fn status(global: &GlobalArgs, args: &FileArgs, out: &mut String) -> Result<(), OneError> {
    let path = args.path();
    let original = Original::read(&path)?;
    let driver = HookDriver::of(&original.text).map_err(|reason| OneError::Edit { path: path.clone(), reason })?;
    let oneds = running::oneds(Path::new("/proc"));
    *out = format!("{}: HM_MAD in line {} runs {}.\n", path.display(), driver.line, shown(&driver));
    for Oned { pid, driver } in &oneds {
        out.push_str(&match driver {
            Driver::Hookbus { pid: driver, outdated: false } => {
                format!("oned (pid {pid}) runs hookbus (pid {driver}).\n")
            }
            Driver::Hookbus { pid: driver, outdated: true } => {
                format!("oned (pid {pid}) runs hookbus (pid {driver}), whose program was replaced since.\n")
            }
            Driver::Original { pid: driver } => {
                format!("oned (pid {pid}) runs OpenNebula's own driver (pid {driver}).\n")
            }
            Driver::Unknown => format!("oned (pid {pid}) runs no hook driver that hookbus knows.\n"),
        });
    }
    if oneds.is_empty() {
        out.push_str("No oned runs on this machine.\n");
    }
    out.push_str(&advice(&driver, &oneds));
    out.push_str(&beside_a_service(&driver, global));
    Ok(())
}

/// What to do where a `hookbus serve` runs on this machine, and the driver doesn't hand events to it.
fn beside_a_service(driver: &HookDriver, global: &GlobalArgs) -> String {
    let arguments = driver.arguments.trim();
    let arguments = arguments.strip_prefix("hm").unwrap_or(arguments).trim();
    let (_, hm, _) = Words::split(&[arguments.into()]).read();
    if driver.kind() != Kind::Hookbus || hm.forward.is_some() {
        return String::new();
    }
    let Some(socket) = crate::client::service(global) else { return String::new() };
    let space = if arguments.is_empty() { "" } else { " " };
    format!(
        "`hookbus serve` runs here, too; its bridges and hooks get OpenNebula's events only if the driver hands them over:\n  \
         hookbus one enable -- {arguments}{space}--forward {socket}\n"
    )
}

/// What to do where what runs isn't what is configured; empty where nothing is to be done.
fn advice(configured: &HookDriver, oneds: &[Oned]) -> String {
    let restart = |oned: &Oned| match (configured.kind(), &oned.driver) {
        (Kind::Hookbus, Driver::Hookbus { outdated, .. }) => *outdated,
        (Kind::Original, Driver::Original { .. }) | (Kind::Foreign, Driver::Unknown) => false,
        _ => true,
    };
    if !oneds.iter().any(restart) {
        return String::new();
    }
    let executable = Path::new(&configured.executable);
    if configured.kind() == Kind::Hookbus && !executable.is_file() {
        return format!("There is no {}: install it, or oned will not start again.\n", executable.display());
    }
    "What runs isn't what is configured. To make it so:  systemctl restart opennebula\n".into()
}

impl FileArgs {
    fn path(&self) -> PathBuf {
        self.file.clone().unwrap_or_else(|| default_file(std::env::var_os("ONE_LOCATION")))
    }
}

/// Where oned reads its configuration: below `$ONE_LOCATION` where OpenNebula was installed in a directory of its own.
fn default_file(one_location: Option<OsString>) -> PathBuf {
    match one_location.filter(|location| !location.is_empty()) {
        Some(location) => PathBuf::from(location).join("etc/oned.conf"),
        None => "/etc/one/oned.conf".into(),
    }
}

/// The program to write into the file, as text, if it can be one.
fn executable(given: Option<&Path>) -> Result<String, OneError> {
    let usage = |what: String| OneError::Usage(what);
    let path = match given {
        Some(path) => path.to_owned(),
        None => std::env::current_exe()
            .map_err(|e| usage(format!("where this program is can't be found out: {e}; say --executable PATH")))?,
    };
    let text = path.to_str().ok_or_else(|| usage(format!("{}: the path is not UTF-8 text", path.display())))?;
    if !path.is_absolute() {
        return Err(usage(format!("--executable {text}: oned needs the whole path; begin it with `/`")));
    }
    if path.file_name() != Some(OsStr::new("hookbus")) {
        return Err(usage(format!("--executable {text}: a program called `hookbus` is expected")));
    }
    let metadata = std::fs::metadata(&path).map_err(|e| usage(format!("--executable {text}: {e}")))?;
    if !metadata.is_file() || metadata.permissions().mode() & 0o111 == 0 {
        return Err(usage(format!("--executable {text}: this is no program that can be executed")));
    }
    if is_built_by_cargo(&path) {
        complain(
            "warning",
            &format!("{text} is what cargo has just built; the next `cargo build` replaces it under oned"),
        );
    } else if metadata.permissions().mode() & 0o001 == 0 {
        complain("warning", &format!("{text}: not everybody may execute it; make sure that oneadmin may"));
    }
    Ok(text.to_owned())
}

/// Whether a path looks like `target/<profile>/hookbus`.
fn is_built_by_cargo(path: &Path) -> bool {
    path.parent().is_some_and(|profile| profile.join(".cargo-lock").exists() || profile.join("hookbus.d").exists())
}

/// The arguments behind `--`, as one text that `hm` will read without complaint.
fn arguments(given: &[OsString]) -> Result<Option<String>, OneError> {
    if given.is_empty() {
        return Ok(None);
    }
    let words = Words::split(given);
    let words = words.after_command("hm").unwrap_or_else(|| Words::split(given));
    if let Some(complaint) = words.read().2.first() {
        // Here it is refused, where `hm` would go on.
        let complaint = complaint.replace(" and was ignored", "").replace(" was ignored", " is not understood");
        return Err(OneError::Usage(format!("behind --: {complaint}")));
    }
    let texts: Vec<&str> = given.iter().map(|word| word.to_str().unwrap_or_default()).collect();
    let text = match &texts[..] {
        [one] => (*one).to_owned(),
        several => shlex::try_join(several.iter().copied()).map_err(|e| OneError::Usage(format!("behind --: {e}")))?,
    };
    let text = text.trim();
    Ok(Some(text.strip_prefix("hm ").unwrap_or(text).trim().to_owned()))
}

fn shown(driver: &HookDriver) -> String {
    let HookDriver { executable, arguments, .. } = driver;
    if arguments.is_empty() { format!("`{executable}`") } else { format!("`{executable} {arguments}`") }
}

fn backup_suffix() -> String {
    jiff::Timestamp::now().strftime(".hookbus-%Y%m%dT%H%M%SZ").to_string()
}

fn complain(severity: &str, what: &str) {
    // Where standard error is closed nobody wants to know.
    let _ = writeln!(anstream::stderr(), "{severity}: {what}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_become_one_text_that_hm_understands() {
        let given = |words: &[&str]| arguments(&words.iter().map(OsString::from).collect::<Vec<_>>());
        assert_eq!(given(&[]).unwrap(), None);
        for (words, expected) in [
            (&["-p", "3101", "-b", "0.0.0.0"][..], "-p 3101 -b 0.0.0.0"),
            (&["-p 3101 -b 0.0.0.0"], "-p 3101 -b 0.0.0.0"),
            (&["hm", "-p", "3101"], "-p 3101"),
            (&["--config", "/etc/my hookbus.toml"], "--config '/etc/my hookbus.toml'"),
        ] {
            assert_eq!(given(words).unwrap().as_deref(), Some(expected), "{words:?}");
        }
        let error = given(&["--pubisher-port", "1"]).unwrap_err().to_string();
        assert!(error.contains("did you mean `--publisher-port`?"), "{error}");
    }

    #[test]
    fn the_file_is_where_opennebula_has_it() {
        assert_eq!(default_file(None), Path::new("/etc/one/oned.conf"));
        assert_eq!(default_file(Some("".into())), Path::new("/etc/one/oned.conf"));
        assert_eq!(default_file(Some("/srv/cloud".into())), Path::new("/srv/cloud/etc/oned.conf"));
    }

    #[test]
    fn a_restart_is_advised_where_it_changes_something() {
        let driver = |executable: &str, arguments| {
            let text = format!("HM_MAD = [ EXECUTABLE = \"{executable}\", ARGUMENTS = \"{arguments}\" ]");
            HookDriver::of(text.as_bytes()).unwrap()
        };
        let this = std::env::temp_dir().join("hookbus");
        let missing = this.join("missing/hookbus");
        let hookbus = |outdated| vec![Oned { pid: 1, driver: Driver::Hookbus { pid: 2, outdated } }];
        let original = vec![Oned { pid: 1, driver: Driver::Original { pid: 2 } }];
        let one_hm = driver("one_hm", "-p 2101");
        assert_eq!(advice(&one_hm, &original), "");
        assert_eq!(advice(&one_hm, &[]), "");
        assert!(advice(&one_hm, &hookbus(false)).contains("systemctl restart opennebula"));
        let missing = driver(missing.to_str().unwrap(), "hm");
        assert_eq!(advice(&missing, &hookbus(false)), "");
        assert!(advice(&missing, &original).contains("install it"));
        assert!(advice(&missing, &hookbus(true)).contains("install it"));
    }
}
