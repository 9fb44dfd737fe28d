//! `hookbus-ganeti-hook`: see the library of the same name.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use hookbus_ganeti_hook::hook;

const HELP: &str = "\
Reports an operation of Ganeti to a hookbus daemon. Ganeti runs it, as a hook; `hookbus ganeti install` puts it where Ganeti looks.

Usage: hookbus-ganeti-hook [--config FILE]

Options:
      --config FILE  The configuration [default: /etc/hookbus/ganeti-hook.toml, if it exists]
  -h, --help         Print help
  -V, --version      Print version

It reads the environment that Ganeti gives to hooks, and writes nothing unless something is wrong. It ends after a second at most, with
exit status 0; what can't be sent goes to the spool. Only for operations in gate_ops it waits for a verdict, and may end with 1.
";

fn main() -> ExitCode {
    let mut config: Option<PathBuf> = None;
    let mut args = std::env::args_os().skip(1);
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("-h" | "--help") => return printed(HELP),
            Some("-V" | "--version") => {
                return printed(concat!("hookbus-ganeti-hook ", env!("CARGO_PKG_VERSION"), "\n"));
            }
            Some("--config") => match args.next() {
                Some(file) => config = Some(file.into()),
                None => return usage("--config needs a file"),
            },
            Some(text) => match text.strip_prefix("--config=") {
                Some(file) => config = Some(file.into()),
                None => return usage(&format!("unexpected argument `{text}`")),
            },
            None => return usage("unexpected argument"),
        }
    }
    hook::run(config.as_deref())
}

fn printed(text: &str) -> ExitCode {
    // Nobody may be reading.
    let _ = io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

fn usage(what: &str) -> ExitCode {
    let _ = writeln!(io::stderr(), "error: {what}\n\nUsage: hookbus-ganeti-hook [--config FILE]; --help tells more");
    ExitCode::from(2)
}
