//! `hookbus-hem`: executes OpenNebula's hooks in the place of `onehem-server`.

#![expect(clippy::print_stderr, reason = "what is wrong before there is a log goes to standard error")]

mod log;
mod server;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use hookbus_hem::Severity;
use hookbus_hem::oned::{Access, Config, Locations};

use self::log::{Format, LogFile};
use self::server::Settings;

/// Executes OpenNebula's hooks, in the place of onehem-server.
///
/// Hooks come from oned, as `onehook` manages them, and oned is told what came of each execution. Where oned is, and who asks, is found
/// as OpenNebula's own programs find it: ONE_XMLRPC, ONE_AUTH, ~/.one/one_endpoint, ~/.one/one_auth, ONE_LOCATION.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// The configuration, in the form of onehem-server's [default: /etc/one/onehem-server.conf]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where results are kept until oned has them [default: /var/lib/one/hookbus-hem]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Where the log goes, - for standard error [default: /var/log/one/onehem.log]
    #[arg(long, value_name = "FILE")]
    log_file: Option<PathBuf>,
    /// How its lines are written
    #[arg(long, value_enum, default_value_t)]
    log_format: Format,
}

/// Wrong usage, or a wrong configuration.
const WRONG: u8 = 2;

fn main() -> ExitCode {
    let args = Args::parse();
    let env = |name: &str| std::env::var_os(name);
    let locations = Locations::of(env);
    let path = args.config.clone().unwrap_or_else(|| locations.config_file());
    let (config, problems) = match Config::load(&path, &locations) {
        Ok(loaded) => loaded,
        Err(e) => {
            eprintln!("hookbus-hem: {e}");
            return ExitCode::from(WRONG);
        }
    };
    let log_file = args.log_file.unwrap_or_else(|| locations.log_file.clone());
    let (log, problem) = LogFile::open(Some(log_file).filter(|path| path.as_os_str() != "-"));
    log.install(args.log_format, config.debug_level);
    if let Some(problem) = problem {
        tracing::error!("{problem}; it goes to standard error");
    }
    for problem in problems {
        match problem.severity {
            Severity::Error => tracing::error!("{problem}"),
            Severity::Warning => tracing::warn!("{problem}"),
        }
    }
    let access = match Access::find(env, &locations) {
        Ok(access) => access,
        Err(e) => {
            tracing::error!("{e}");
            eprintln!("hookbus-hem: {e}");
            return ExitCode::from(WRONG);
        }
    };
    tracing::info!("hookbus-hem {} starts with {}", env!("CARGO_PKG_VERSION"), path.display());
    let state_dir = args.state_dir.unwrap_or_else(|| locations.var.join("hookbus-hem"));
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            tracing::error!("cannot start: {e}");
            return ExitCode::FAILURE;
        }
    };
    // As a task, beside those that it hands events to: this thread would be one more that has to be woken for each.
    let server = runtime.spawn(server::run(Settings { config, access, state_dir, log }));
    match runtime.block_on(server) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Err(e) => {
            tracing::error!("a mistake of ours ended it: {e}");
            ExitCode::FAILURE
        }
        Ok(Err(e)) => {
            tracing::error!("{e}");
            eprintln!("hookbus-hem: {e}");
            ExitCode::FAILURE
        }
    }
}
