//! Compares hookbus with its peers, alternately in one run. `benches/README.md` says how to read what it prints.

use std::error::Error;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use hookbus_benches::inproc;
use hookbus_benches::report::Report;

#[derive(Parser)]
#[command(version, about = "Compares hookbus with its peers, alternately in one run")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Fan-out between threads and tasks of one process, against channels and libzmq
    Inproc(Inproc),
}

#[derive(Args)]
struct Output {
    /// Write all rounds to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// See quickly whether everything works; the figures mean nothing
    #[arg(long)]
    quick: bool,
}

#[derive(Args)]
struct Inproc {
    #[command(flatten)]
    output: Output,

    /// Numbers of subscribers
    #[arg(long, value_delimiter = ',', default_value = "1,4,16,64")]
    subscribers: Vec<usize>,

    /// Rounds for each contender and number of subscribers
    #[arg(long, default_value_t = 9)]
    rounds: usize,

    /// How long a round publishes
    #[arg(long, default_value_t = 400)]
    round_ms: u64,

    /// Size of the payload
    #[arg(long, default_value_t = 2048)]
    payload_bytes: usize,

    /// Only contenders whose name contains one of these
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Inproc(args) => inproc(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut causes = vec![error.to_string()];
            let mut source = error.source();
            while let Some(cause) = source {
                causes.push(cause.to_string());
                source = cause.source();
            }
            eprintln!("hookbus-bench: {}", causes.join(": "));
            ExitCode::FAILURE
        }
    }
}

fn inproc(args: &Inproc) -> Result<(), Box<dyn Error>> {
    let (rounds, round_ms) = if args.output.quick { (2, 20) } else { (args.rounds, args.round_ms) };
    let mut contenders = inproc::contenders();
    contenders.retain(|c| args.only.is_empty() || args.only.iter().any(|only| c.who.name.contains(only.as_str())));
    let workload = inproc::Workload::new(args.payload_bytes, Duration::from_millis(round_ms));
    let mut report = Report::new();
    inproc::compare(&mut report, &contenders, &workload, &args.subscribers, rounds, progress)?;
    finish(&report, &args.output)
}

/// Says on a terminal what is being done; elsewhere only the result matters.
fn progress(what: &str) {
    if io::stderr().is_terminal() {
        eprint!("\r\x1b[K{what}");
    }
}

fn finish(report: &Report, output: &Output) -> Result<(), Box<dyn Error>> {
    progress("");
    let mut out = io::stdout().lock();
    report.write_tables(&mut out)?;
    out.flush()?;
    if let Some(path) = &output.json {
        report.write_json(path).map_err(|e| format!("{}: can't be written: {e}", path.display()))?;
    }
    Ok(())
}
