//! Compares hookbus with its peers, alternately in one run. `benches/README.md` says how to read what it prints.

use std::error::Error;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
#[cfg(feature = "buses")]
use hookbus_benches::buses;
use hookbus_benches::ganeti;
#[cfg(feature = "libzmq")]
use hookbus_benches::hm;
use hookbus_benches::hooks;
use hookbus_benches::idle;
use hookbus_benches::inproc::{self, scenes::Scales};
use hookbus_benches::plots;
use hookbus_benches::report::Report;
#[cfg(feature = "libzmq")]
use hookbus_benches::zeromq;

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

    /// What a plain fan-out doesn't show: others that don't match, 100,000 prefixes, a stalled subscriber
    Scenes(Scenes),

    /// Curves over subscribers, prefixes, sizes of payloads, publishers
    Scaling(Scaling),

    /// Latencies inside one process at fixed rates, from the planned time of each publish
    Latency(Latency),

    /// What a queued message takes
    Memory(Memory),

    /// All comparisons inside one process, into one folder, as tables, JSON and plots
    All(All),

    /// One contender of `memory`, in a process of its own
    #[command(hide = true)]
    MemoryOf(MemoryOf),

    /// Bridges with their guarantee, against the client libraries that they use, each with a real server
    #[cfg(feature = "buses")]
    Bridges(Bridges),

    /// The execution of hooks by `hookbus-hem`, against a plain loop that starts the same commands
    Hooks(Hooks),

    /// What `hookbus serve` takes while nothing happens: processor time, wake-ups, memory
    Idle(Idle),

    /// One run of `hookbus-ganeti-hook`, against bash with curl, python3, and programs that do nothing
    Ganeti(Ganeti),

    /// oned's driver, from standard input to ZeroMQ subscribers, against a plain loop over libzmq
    #[cfg(feature = "libzmq")]
    Hm(Hm),

    /// What `hm` compares with: the plainest driver that does the job
    #[cfg(feature = "libzmq")]
    #[command(disable_help_flag = true)]
    PlainDriver(PlainDriver),

    /// A subscriber of `hm`, in a process of its own
    #[cfg(feature = "libzmq")]
    #[command(hide = true)]
    Sub(Sub),

    /// Our ZeroMQ publisher over TCP, against libzmq's and the zeromq crate's
    #[cfg(feature = "libzmq")]
    Zeromq(Zeromq),

    /// A publisher of `zeromq`, in a process of its own
    #[cfg(feature = "libzmq")]
    #[command(hide = true)]
    ZeromqPub { who: String, count: usize, payload_bytes: usize },

    /// A subscriber of `zeromq`, in a process of its own
    #[cfg(feature = "libzmq")]
    #[command(hide = true)]
    ZeromqSub { endpoint: String, count: u64, pause_us: u64 },
}

#[derive(Args)]
struct Output {
    /// Write all rounds to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Draw everything into this folder, as SVG
    #[arg(long, value_name = "DIR")]
    svg: Option<PathBuf>,

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

#[derive(Args)]
struct Scenes {
    #[command(flatten)]
    output: Output,

    /// Rounds of each scene
    #[arg(long, default_value_t = 9)]
    rounds: usize,
}

#[derive(Args)]
struct Scaling {
    #[command(flatten)]
    output: Output,

    /// Rounds for each contender and point
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

#[derive(Args)]
struct Latency {
    #[command(flatten)]
    output: Output,

    /// Messages per second
    #[arg(long, value_delimiter = ',', default_value = "1000,10000,100000")]
    rates: Vec<u32>,

    /// Numbers of subscribers
    #[arg(long, value_delimiter = ',', default_value = "1,16")]
    subscribers: Vec<usize>,

    /// Rounds for each contender and case
    #[arg(long, default_value_t = 3)]
    rounds: usize,

    /// How long a round publishes
    #[arg(long, default_value_t = 1000)]
    round_ms: u64,
}

#[derive(Args)]
struct Memory {
    #[command(flatten)]
    output: Output,

    /// Messages that are queued
    #[arg(long, default_value_t = 200_000)]
    messages: usize,

    /// Rounds for each contender and case
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

#[derive(Args)]
struct MemoryOf {
    who: String,
    subscribers: usize,
    payload_bytes: usize,
    messages: usize,
}

#[derive(Args)]
struct All {
    /// Where everything goes; made if it isn't there
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// See quickly whether everything works; the figures mean nothing
    #[arg(long)]
    quick: bool,
}

#[derive(Args)]
struct Hooks {
    #[command(flatten)]
    output: Output,

    /// The program to measure [default: the `hookbus-hem` beside this one]
    #[arg(long, value_name = "PATH")]
    hem: Option<PathBuf>,

    /// Rounds for each contender
    #[arg(long, default_value_t = 11)]
    rounds: usize,

    /// Executions of a round
    #[arg(long, default_value_t = 5000)]
    executions: usize,

    /// How many commands run at once
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    concurrency: u16,

    /// Single events of a round, for the latency
    #[arg(long, default_value_t = 100)]
    events: usize,
}

#[derive(Args)]
struct Idle {
    #[command(flatten)]
    output: Output,

    /// The program to measure [default: the `hookbus` beside this one]
    #[arg(long, value_name = "PATH")]
    hookbus: Option<PathBuf>,

    /// Rounds, each with new daemons
    #[arg(long, default_value_t = 3)]
    rounds: usize,

    /// How long a daemon is watched
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
}

#[derive(Args)]
struct Ganeti {
    #[command(flatten)]
    output: Output,

    /// The program to measure [default: the `hookbus-ganeti-hook` beside this one]
    #[arg(long, value_name = "PATH")]
    hook: Option<PathBuf>,

    /// Runs of each contender
    #[arg(long, default_value_t = 500)]
    runs: usize,

    /// Instead: so many runs of the hook at once, against `hookbus serve`; fails when a report is lost
    #[arg(long, value_name = "COUNT", conflicts_with = "runs")]
    at_once: Option<usize>,

    /// With --at-once: the daemon [default: the `hookbus` beside this one]
    #[arg(long, value_name = "PATH", requires = "at_once")]
    daemon: Option<PathBuf>,

    /// With --at-once: rounds, each with a new daemon
    #[arg(long, default_value_t = 5, requires = "at_once")]
    rounds: usize,
}

#[cfg(feature = "buses")]
#[derive(Args)]
struct Bridges {
    #[command(flatten)]
    output: Output,

    /// Rounds for each bus, ours and the library's in each
    #[arg(long, default_value_t = 5)]
    rounds: usize,

    /// Events of a round
    #[arg(long, default_value_t = 50_000)]
    events: usize,

    /// Size of the payload
    #[arg(long, default_value_t = 2048)]
    payload_bytes: usize,

    /// Events that may be unconfirmed
    #[arg(long, default_value_t = 1000)]
    window: usize,

    /// Only these: nats, mqtt, amqp
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

#[cfg(feature = "libzmq")]
#[derive(Args)]
struct Hm {
    #[command(flatten)]
    output: Output,

    /// The program to measure [default: the `hookbus` beside this one]
    #[arg(long, value_name = "PATH")]
    hookbus: Option<PathBuf>,

    /// OpenNebula's own driver, to be measured as well: one_hm.rb, or a script that starts it with the arguments it gets
    #[arg(long, value_name = "PATH")]
    ruby: Option<PathBuf>,

    /// Numbers of subscribers, each a process
    #[arg(long, value_delimiter = ',', default_value = "1,4")]
    subscribers: Vec<usize>,

    /// Rounds for each contender and number of subscribers
    #[arg(long, default_value_t = 7)]
    rounds: usize,

    /// Lines of a burst
    #[arg(long, default_value_t = 50_000)]
    lines: usize,

    /// Events per second for the latency
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,

    /// How long the latency is measured in each round
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,

    /// How often each driver is started for the time until INIT is answered
    #[arg(long, default_value_t = 50)]
    starts: usize,
}

#[cfg(feature = "libzmq")]
#[derive(Args)]
struct Zeromq {
    #[command(flatten)]
    output: Output,

    /// Numbers of subscribers, each a process
    #[arg(long, value_delimiter = ',', default_value = "1,8")]
    subscribers: Vec<usize>,

    /// Sizes of payloads
    #[arg(long, value_delimiter = ',', default_value = "2048,64")]
    payload_bytes: Vec<usize>,

    /// Rounds for each contender and case
    #[arg(long, default_value_t = 7)]
    rounds: usize,

    /// Messages of a round
    #[arg(long, default_value_t = 200_000, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    messages: usize,
}

/// The options of OpenNebula's own driver.
#[cfg(feature = "libzmq")]
#[derive(Args)]
struct PlainDriver {
    #[arg(short = 'p', default_value_t = 2101)]
    publisher_port: u16,
    /// Not served
    #[arg(short = 'l', default_value_t = 2102)]
    logger_port: u16,
    #[arg(short = 'b', default_value = "127.0.0.1")]
    bind: String,
    #[arg(short = 'h', default_value_t = 1000)]
    hwm: i32,
}

#[cfg(feature = "libzmq")]
#[derive(Args)]
struct Sub {
    #[arg(long)]
    endpoint: String,
    #[arg(long)]
    count: usize,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Inproc(args) => inproc(&args),
        Command::Scenes(args) => scenes(&args),
        Command::Scaling(args) => scaling(&args),
        Command::Latency(args) => latency(&args),
        Command::Memory(args) => memory(&args),
        Command::MemoryOf(args) => memory_of(&args),
        Command::All(args) => all(&args),
        Command::Hooks(args) => hooks(&args),
        Command::Idle(args) => idle(&args),
        Command::Ganeti(args) => ganeti(&args),
        #[cfg(feature = "buses")]
        Command::Bridges(args) => bridges(&args),
        #[cfg(feature = "libzmq")]
        Command::Hm(args) => hm(&args),
        #[cfg(feature = "libzmq")]
        Command::PlainDriver(args) => {
            hm::plain::run(&format!("tcp://{}:{}", args.bind, args.publisher_port), args.hwm).map_err(Into::into)
        }
        #[cfg(feature = "libzmq")]
        Command::Sub(args) => hm::subscriber::run(&args.endpoint, args.count).map_err(Into::into),
        #[cfg(feature = "libzmq")]
        Command::Zeromq(args) => zeromq(&args),
        #[cfg(feature = "libzmq")]
        Command::ZeromqPub { who, count, payload_bytes } => {
            zeromq::publish(&who, count, payload_bytes).map_err(Into::into)
        }
        #[cfg(feature = "libzmq")]
        Command::ZeromqSub { endpoint, count, pause_us } => {
            zeromq::subscribe(&endpoint, count, pause_us).map_err(Into::into)
        }
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
    finish(&report, &args.output, "inproc")
}

fn scenes(args: &Scenes) -> Result<(), Box<dyn Error>> {
    let (rounds, ms, prefixes) = if args.output.quick { (1, 20, 10_000) } else { (args.rounds, 400, 1_000_000) };
    let workload = inproc::Workload::new(2048, Duration::from_millis(ms));
    let mut report = Report::new();
    inproc::scenes::compare(&mut report, &workload, rounds, prefixes, progress)?;
    finish(&report, &args.output, "scenes")
}

fn scaling(args: &Scaling) -> Result<(), Box<dyn Error>> {
    let quick = args.output.quick;
    let scales = if quick {
        Scales { subscribers: vec![1, 4], payloads: vec![64, 2048], prefixes: vec![1, 100], publishers: vec![1, 2] }
    } else {
        Scales {
            subscribers: vec![1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024],
            payloads: vec![64, 256, 1024, 4096, 16 << 10, 64 << 10, 256 << 10, 1 << 20],
            prefixes: vec![1, 10, 100, 1_000, 10_000, 100_000, 1_000_000],
            publishers: vec![1, 2, 4, 8],
        }
    };
    let workload = inproc::Workload::new(2048, Duration::from_millis(if quick { 10 } else { 200 }));
    let contenders = inproc::scenes::scaled(inproc::contenders());
    let mut report = Report::new();
    let rounds = if quick { 1 } else { args.rounds };
    inproc::scenes::scale(&mut report, &contenders, &workload, &scales, rounds, progress)?;
    finish(&report, &args.output, "scaling")
}

fn latency(args: &Latency) -> Result<(), Box<dyn Error>> {
    let (rounds, ms) = if args.output.quick { (1, 50) } else { (args.rounds, args.round_ms) };
    let workload = inproc::Workload::new(2048, Duration::from_millis(ms));
    let mut contenders = inproc::contenders();
    // A publisher that waits for its time would keep a worker from the tasks that it has woken.
    contenders.retain(|c| c.who.class == Some("threads") && !c.who.name.contains("prefixes"));
    let mut report = Report::new();
    inproc::compare_latencies(&mut report, &contenders, &workload, &args.rates, &args.subscribers, rounds, progress)?;
    finish(&report, &args.output, "latency")
}

fn memory(args: &Memory) -> Result<(), Box<dyn Error>> {
    let (messages, rounds) = if args.output.quick { (5000, 1) } else { (args.messages, args.rounds) };
    let mut report = Report::new();
    hookbus_benches::memory::compare(&mut report, messages, rounds, progress)?;
    finish(&report, &args.output, "memory")
}

fn memory_of(args: &MemoryOf) -> Result<(), Box<dyn Error>> {
    let bytes = hookbus_benches::memory::of(&args.who, args.subscribers, args.payload_bytes, args.messages);
    println!("{}", bytes.ok_or("nobody has this name, or its sockets can't be made")?);
    Ok(())
}

/// All that needs nothing but this program.
fn all(args: &All) -> Result<(), Box<dyn Error>> {
    std::fs::create_dir_all(&args.out)?;
    let output = |name: &str| Output {
        json: Some(args.out.join(format!("{name}.json"))),
        svg: Some(args.out.clone()),
        quick: args.quick,
    };
    inproc(&Inproc {
        output: output("inproc"),
        subscribers: vec![1, 4, 16, 64],
        rounds: 9,
        round_ms: 400,
        payload_bytes: 2048,
        only: Vec::new(),
    })?;
    scenes(&Scenes { output: output("scenes"), rounds: 9 })?;
    latency(&Latency {
        output: output("latency"),
        rates: vec![1_000, 10_000, 100_000],
        subscribers: vec![1, 16],
        rounds: 3,
        round_ms: 1000,
    })?;
    scaling(&Scaling { output: output("scaling"), rounds: 3 })?;
    memory(&Memory { output: output("memory"), messages: 200_000, rounds: 3 })
}

#[cfg(feature = "buses")]
fn bridges(args: &Bridges) -> Result<(), Box<dyn Error>> {
    let quick = args.output.quick;
    let workload = buses::Workload {
        events: if quick { 500 } else { args.events },
        payload: vec![b'x'; args.payload_bytes].into(),
        window: args.window,
    };
    let rounds = if quick { 1 } else { args.rounds };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut report = Report::new();
    let compared = buses::compare(&mut report, &workload, &args.only, rounds, progress);
    runtime.block_on(compared).map_err(|failure| -> Box<dyn Error> { failure })?;
    finish(&report, &args.output, "bridges")
}

#[cfg(feature = "libzmq")]
fn hm(args: &Hm) -> Result<(), Box<dyn Error>> {
    let hookbus = beside(args.hookbus.as_ref(), "hookbus")?;
    let quick = args.output.quick;
    let options = hm::Options {
        hookbus,
        ruby: args.ruby.clone(),
        subscribers: args.subscribers.clone(),
        rounds: if quick { 1 } else { args.rounds },
        lines: if quick { 2000 } else { args.lines },
        rate: args.rate,
        seconds: if quick { 1 } else { args.seconds },
        starts: if quick { 3 } else { args.starts },
    };
    let mut report = Report::new();
    hm::compare(&mut report, &options, progress)?;
    finish(&report, &args.output, "hm")
}

#[cfg(feature = "libzmq")]
fn zeromq(args: &Zeromq) -> Result<(), Box<dyn Error>> {
    let quick = args.output.quick;
    let options = zeromq::Options {
        subscribers: args.subscribers.clone(),
        payloads: args.payload_bytes.clone(),
        rounds: if quick { 1 } else { args.rounds },
        messages: if quick { 5000 } else { args.messages },
    };
    let mut report = Report::new();
    zeromq::compare(&mut report, &options, progress)?;
    finish(&report, &args.output, "zeromq")
}

fn idle(args: &Idle) -> Result<(), Box<dyn Error>> {
    let quick = args.output.quick;
    let options = idle::Options {
        hookbus: beside(args.hookbus.as_ref(), "hookbus")?,
        rounds: if quick { 1 } else { args.rounds },
        settle: Duration::from_millis(if quick { 100 } else { 2000 }),
        watch: Duration::from_secs(if quick { 1 } else { args.seconds }),
    };
    let mut report = Report::new();
    idle::measure(&mut report, &options, progress)?;
    finish(&report, &args.output, "idle")
}

fn hooks(args: &Hooks) -> Result<(), Box<dyn Error>> {
    let quick = args.output.quick;
    let options = hooks::Options {
        hem: beside(args.hem.as_ref(), "hookbus-hem")?,
        rounds: if quick { 1 } else { args.rounds },
        executions: if quick { 100 } else { args.executions },
        concurrency: args.concurrency.into(),
        events: if quick { 5 } else { args.events },
    };
    let mut report = Report::new();
    hooks::compare(&mut report, &options, progress)?;
    finish(&report, &args.output, "hooks")
}

fn ganeti(args: &Ganeti) -> Result<(), Box<dyn Error>> {
    let hook = beside(args.hook.as_ref(), "hookbus-ganeti-hook")?;
    let quick = args.output.quick;
    let mut report = Report::new();
    match args.at_once {
        Some(count) => {
            let daemon = beside(args.daemon.as_ref(), "hookbus")?;
            let (count, rounds) = if quick { (10, 1) } else { (count, args.rounds) };
            let options = ganeti::at_once::Options { hook, daemon, count, rounds };
            ganeti::at_once::measure(&mut report, &options, progress)?;
        }
        None => {
            let options = ganeti::Options { hook, runs: if quick { 3 } else { args.runs } };
            ganeti::compare(&mut report, &options, progress)?;
        }
    }
    finish(&report, &args.output, "ganeti")
}

/// The program to measure: the one that is named, or the one beside this one.
fn beside(named: Option<&PathBuf>, name: &str) -> Result<PathBuf, Box<dyn Error>> {
    let path = match named {
        Some(path) => path.clone(),
        None => std::env::current_exe()?.with_file_name(name),
    };
    match path.exists() {
        true => Ok(path),
        false => {
            Err(format!("{}: there is no such program; build it, or name it with an option", path.display()).into())
        }
    }
}

/// Says on a terminal what is being done; elsewhere only the result matters.
fn progress(what: &str) {
    if io::stderr().is_terminal() {
        eprint!("\r\x1b[K{what}");
    }
}

fn finish(report: &Report, output: &Output, name: &str) -> Result<(), Box<dyn Error>> {
    progress("");
    let mut out = io::stdout().lock();
    report.write_tables(&mut out)?;
    out.flush()?;
    if let Some(path) = &output.json {
        report.write_json(path).map_err(|e| format!("{}: can't be written: {e}", path.display()))?;
    }
    if let Some(dir) = &output.svg {
        plots::write(report, dir, name).map_err(|e| format!("{}: plots can't be written: {e}", dir.display()))?;
    }
    Ok(())
}
