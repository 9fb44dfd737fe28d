//! `hookbus config check` and `hookbus config show`.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::{
    BridgeKind, Config, DEFAULT_PATH, MqttConfig, Problem, Reading, Severity, default_sockets, default_state_dirs,
};

/// Prints what is wrong with the configuration, a line each, and how many there are. The exit status is 2 if
/// there are errors.
pub(crate) fn check(path: Option<&Path>) -> ExitCode {
    let (text, status) = checked(path);
    printed(text.as_bytes(), status)
}

/// Prints the configuration as it is used, with all defaults and without passwords, in the form in which it is
/// written. If it has errors they are printed instead, and the exit status is 2.
pub(crate) fn show(path: Option<&Path>) -> ExitCode {
    match Reading::of_file(path).strict() {
        Ok((config, _)) => match shown(&config) {
            Ok(text) => printed(text.as_bytes(), 0),
            Err(e) => {
                // Where standard error is closed nobody wants to know.
                let _ = writeln!(io::stderr(), "error: cannot write the configuration out: {e}");
                ExitCode::FAILURE
            }
        },
        Err(problems) => {
            let _ = problems.iter().try_for_each(|problem| writeln!(io::stderr(), "error: {problem}"));
            ExitCode::from(2)
        }
    }
}

fn checked(path: Option<&Path>) -> (String, u8) {
    let file = path.unwrap_or(Path::new(DEFAULT_PATH));
    let absent = path.is_none() && !file.exists();
    let reading = Reading::of_file(path);
    let of_files = super::files::problems(&reading, file);
    let mut problems = reading.problems;
    problems.extend(of_files);
    problems.sort_by_key(|problem| problem.place);
    let count = |severity| problems.iter().filter(|problem| problem.severity == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    let mut text: String = problems.iter().map(line).collect();
    // Writing to a String can't fail.
    let _ = match absent {
        true => writeln!(text, "{}: there is no such file, so the defaults are used", file.display()),
        false => writeln!(text, "{}: {}, {}", file.display(), number(errors, "error"), number(warnings, "warning")),
    };
    (text, if errors > 0 { 2 } else { 0 })
}

/// A problem as compilers write it.
fn line(problem: &Problem) -> String {
    let severity = match problem.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    };
    let Problem { file, place, what, .. } = problem;
    let place = place.map_or_else(String::new, |place| format!("{}:{}:", place.line, place.column));
    format!("{}:{place} {severity}: {what}\n", file.display())
}

fn number(count: usize, what: &str) -> String {
    match count {
        0 => format!("no {what}s"),
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    }
}

/// The configuration as TOML, behind comments on what is only known on the machine that it is used on.
fn shown(config: &Config) -> Result<String, toml::ser::Error> {
    let first_of = |paths: Vec<PathBuf>| {
        let paths: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
        paths.join(", ")
    };
    let mut text = String::new();
    let mut comment = |what: String| text.push_str(&format!("# {what}\n"));
    if config.state_dir.is_none() {
        comment(format!(
            "state_dir: the first of these that can be written: {}",
            first_of(default_state_dirs(|name| std::env::var_os(name)))
        ));
    }
    if config.http.socket.is_none() {
        comment(format!(
            "http.socket: the first of these that can be made: {}",
            first_of(default_sockets(|name| std::env::var_os(name)))
        ));
    }
    if config.journal.enabled && config.journal.path.is_none() {
        let below = config.state_dir.as_deref().map_or_else(|| "state_dir".into(), |dir| dir.display().to_string());
        comment(format!("journal.path: {below}/journal"));
    }
    for bridge in &config.bridges {
        if let BridgeKind::Mqtt(MqttConfig { client_id: None, .. }) = bridge.kind {
            comment(format!("bridge `{0}`: client_id: hookbus-{0}-HOST, HOST being this machine's name", bridge.name));
        }
    }
    text.push_str(&toml::to_string(config)?);
    Ok(text)
}

/// Prints that, and ends with this status; with 1 where it can't be printed.
pub(crate) fn printed(text: &[u8], status: u8) -> ExitCode {
    match io::stdout().write_all(text).and_then(|()| io::stdout().flush()) {
        Ok(()) => ExitCode::from(status),
        // `| head` has seen enough.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => ExitCode::from(status),
        Err(e) => {
            let _ = writeln!(io::stderr(), "error: cannot write to standard output: {e}");
            ExitCode::FAILURE
        }
    }
}
