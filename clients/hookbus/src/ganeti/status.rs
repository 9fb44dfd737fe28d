//! What is installed, and whether reports get through.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use hookbus_ganeti_hook::config::{Config, Reading, ReportOn};
use hookbus_ganeti_hook::hook::check_daemon;
use hookbus_ganeti_hook::report::host_name;
use hookbus_ganeti_hook::spool::{Contents, Spool};
use serde_json::{Value, json};

use super::install::our_links;
use super::node::Nodes;
use super::{GanetiError, LINK, Phase, Place, StatusArgs, complain, directory, failed, known};
use crate::client::Failure;
use crate::listing;

const BAD: Style = AnsiColor::Red.on_default();

pub(super) fn status(args: &StatusArgs) -> ExitCode {
    let (answer, troubles) = match look(args) {
        Ok(found) => found,
        Err(e) => {
            complain("error", &e.to_string());
            return ExitCode::FAILURE;
        }
    };
    if let Err(Failure::Work(text) | Failure::Usage(text)) = listing::print(&answer, args.output, pretty) {
        complain("error", &text);
        return ExitCode::FAILURE;
    }
    for trouble in &troubles {
        complain("error", trouble);
    }
    if troubles.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What is where, and what is wrong with it so that the command fails.
fn look(args: &StatusArgs) -> Result<(Value, Vec<String>), GanetiError> {
    let file = &args.places.hook_config;
    // That none exists is no mistake.
    let Reading { config, problems } =
        if file.exists() { Reading::of_file(Some(file)) } else { Reading::of_text("", file) };
    let mut troubles = problems.clone();
    let nodes = Nodes::read(&args.places.data_dir)?;
    let node = config.node.clone().unwrap_or_else(host_name);
    let is_known = nodes.have(&node);
    if is_known == Some(false) {
        troubles.push(format!(
            "{}: node is {node:?}, which is not in {}, so nothing is reported from here as the master; set node to this node's \
             name there, or remove it and run `hookbus ganeti install`",
            file.display(),
            nodes.path.display()
        ));
    }
    for gated in config.gate_ops.iter().filter(|gated| *gated != "*") {
        if let Err(why) = super::operation(gated) {
            troubles.push(format!("{}: gate_ops names {gated:?}, which nothing is asked for: {why}", file.display()));
        }
    }
    let daemon = check_daemon(&config);
    let spool = Spool::new(&config.spool);
    let contents = spool.contents().map_err(failed("read", spool.dir()));
    let answer = json!({
        "hooks_dir": args.hooks.hooks_dir,
        "operations": operations(&args.hooks.hooks_dir)?,
        "links": our_links(&args.hooks.hooks_dir)?,
        "config": { "path": file, "problems": problems },
        "node": { "name": node, "configured": config.node.is_some(), "known": is_known, "list": nodes.path },
        "report": match config.report { ReportOn::Master => "master", ReportOn::Always => "always" },
        "gate_ops": config.gate_ops,
        "daemon": { "at": config.target.to_string(), "answers": daemon.is_ok(), "problem": daemon.err() },
        "spool": of_spool(&config, &contents),
    });
    Ok((answer, troubles))
}

fn of_spool(config: &Config, contents: &Result<Contents, GanetiError>) -> Value {
    match contents {
        Ok(contents) => json!({
            "path": config.spool,
            "reports": contents.reports,
            "bytes": contents.bytes,
            "oldest": contents.oldest_ns.and_then(time),
            "refused": contents.refused,
            "lost": contents.lost,
        }),
        Err(e) => json!({ "path": config.spool, "problem": e.to_string() }),
    }
}

fn time(nanoseconds: u64) -> Option<String> {
    let time = jiff::Timestamp::from_nanosecond(nanoseconds.into()).ok()?;
    Some(format!("{time:.3}"))
}

/// For each operation and phase, what is there.
fn operations(hooks_dir: &Path) -> Result<Value, GanetiError> {
    let mut all = serde_json::Map::new();
    for operation in known() {
        let mut phases = serde_json::Map::new();
        for phase in Phase::ALL {
            let link = directory(hooks_dir, operation, phase).join(LINK);
            let found = match Place::of(&link).map_err(failed("look at", &link))? {
                Place::NoDirectory => json!({ "state": "no directory" }),
                Place::Nothing => json!({ "state": "missing" }),
                Place::Foreign => json!({ "state": "foreign" }),
                Place::Ours(target) => {
                    let runs = link.exists();
                    json!({ "state": if runs { "installed" } else { "broken" }, "target": target })
                }
            };
            phases.insert(phase.name().to_owned(), found);
        }
        all.insert(operation.to_owned(), Value::Object(phases));
    }
    Ok(Value::Object(all))
}

fn pretty(answer: &Value) -> String {
    let mut text = String::new();
    let string = listing::string;
    let node = &answer["node"];
    let known = match node["known"].as_bool() {
        Some(true) => "Ganeti knows it",
        Some(false) => "Ganeti does not know it",
        None => "Ganeti isn't found here",
    };
    let from = if node["configured"] == true { "" } else { ", from gethostname" };
    let _ = writeln!(text, "node    {}{from} ({known})", string(&node["name"]));
    let daemon = &answer["daemon"];
    let _ = match daemon["answers"].as_bool() {
        Some(true) => writeln!(text, "daemon  {} answers", string(&daemon["at"])),
        _ => writeln!(text, "{BAD}daemon  no answer: {}{BAD:#}", string(&daemon["problem"])),
    };
    let gated: Vec<_> = answer["gate_ops"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if !gated.is_empty() {
        let _ = writeln!(text, "gate    {}", gated.join(", "));
    }
    let spool = &answer["spool"];
    let number = |name: &str| listing::number(&spool[name]);
    let _ = write!(text, "spool   {}: ", string(&spool["path"]));
    let _ = match spool["problem"].as_str() {
        Some(problem) => write!(text, "{problem}"),
        None if number("reports") == 0 => write!(text, "empty"),
        None => write!(
            text,
            "{} reports wait, {}, the oldest since {}",
            listing::grouped(number("reports")),
            listing::bytes(number("bytes")),
            string(&spool["oldest"])
        ),
    };
    for (name, what) in [("refused", "were refused"), ("lost", "were lost")] {
        if number(name) > 0 {
            let _ = write!(text, "; {} {what}", listing::grouped(number(name)));
        }
    }
    let _ = writeln!(text);
    let mut rows = Vec::new();
    let mut missing = 0;
    for (operation, phases) in answer["operations"].as_object().into_iter().flatten() {
        let cell = |phase: &str| string(&phases[phase]["state"]).to_owned();
        let cells = vec![operation.clone(), cell("pre"), cell("post")];
        let absent = cells[1..].iter().filter(|state| *state != "installed").count();
        missing += absent;
        rows.push((if absent == 0 { Style::new() } else { BAD }, cells));
    }
    listing::table(&["OPERATION", "PRE", "POST"], 3, rows, &mut text);
    let hooks_dir = string(&answer["hooks_dir"]);
    let _ = match missing {
        0 => writeln!(text, "\n{hooks_dir}: all of it is installed."),
        _ => writeln!(
            text,
            "\n{hooks_dir}: {missing} places have no hook of ours; `hookbus ganeti install` puts it there."
        ),
    };
    text
}
