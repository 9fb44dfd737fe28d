//! `hookbus status`: the daemon, its journal, sources, bridges, hooks and subscribers, on one screen.

use std::fmt::Write as _;
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use clap::Args;
use hookbus_bridges::http::Client;
use serde_json::Value;

use crate::cli::GlobalArgs;
use crate::client::{self, ClientArgs, Failure};
use crate::listing::{DIM, Output, bytes, duration, grouped, limit, list, number, print, string, table};

/// How it is shown.
#[derive(Clone, Debug, Args)]
pub(crate) struct StatusArgs {
    /// How it is shown
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

/// Asks once and prints.
pub(crate) fn run(global: &GlobalArgs, args: &StatusArgs) -> ExitCode {
    client::run(global, &args.client, async |client| status(&client, args).await)
}

async fn status(client: &Client, args: &StatusArgs) -> Result<(), Failure> {
    let answer = client.get("/v1/status").await?;
    let status: Value = serde_json::from_slice(&answer)
        .map_err(|e| Failure::Work(format!("the daemon's answer can't be understood: {e}")))?;
    print(&status, args.output, pretty)
}

const STRONG: Style = Style::new().bold();
const SLOW: Style = AnsiColor::Yellow.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();

fn pretty(status: &Value) -> String {
    let mut text = String::new();
    let uptime = duration(number(&status["uptime_s"]));
    let ready = if status["ready"] == true { "" } else { ", not ready" };
    // Writing to a String can't fail.
    let _ = writeln!(
        text,
        "{STRONG}hookbus {}{STRONG:#} ({}), process {}, up {uptime}{ready}",
        string(&status["version"]),
        string(&status["role"]),
        status["pid"]
    );
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{DIM}{name:<10}{DIM:#}{value}");
    };
    for (name, field) in [("state", "state_dir"), ("socket", "socket")] {
        if let Some(value) = status[field].as_str() {
            line(name, value);
        }
    }
    for address in list(&status["listen"]) {
        line("http", string(address));
    }
    for port in list(&status["ports"]) {
        let name = string(&port["name"]);
        let name = name.strip_suffix(" port").unwrap_or(name);
        match string(&port["state"]) {
            "listening" => line(name, string(&port["endpoint"])),
            "failed" => line(name, &format!("{BAD}{}{BAD:#}", string(&port["reason"]))),
            other => line(name, other),
        }
    }
    let broker = &status["broker"];
    let dropped = number(&broker["dropped"]);
    line(
        "events",
        &format!(
            "{} published; {} deliveries, {}{} dropped{}; {} of {} held",
            grouped(number(&broker["published"])),
            grouped(number(&broker["delivered"])),
            if dropped > 0 { SLOW.render().to_string() } else { String::new() },
            grouped(dropped),
            if dropped > 0 { SLOW.render_reset().to_string() } else { String::new() },
            bytes(number(&broker["held_bytes"])),
            bytes(number(&broker["max_bytes"])),
        ),
    );
    let driver = &status["driver"];
    if number(&driver["connected"]) > 0 || number(&driver["taken_in"]) > 0 {
        let connected = if number(&driver["connected"]) > 0 { "connected" } else { "not connected" };
        let lost = number(&driver["lost"]);
        let lost = if lost > 0 { format!(", {BAD}{} lost{BAD:#}", grouped(lost)) } else { String::new() };
        line("driver", &format!("{connected}, forwarded {} events{lost}", grouped(number(&driver["taken_in"]))));
    }
    journal(&status["journal"], &mut text);
    for source in list(&status["sources"]) {
        self::source(source, &mut text);
    }
    hooks(&status["hooks"], &mut text);
    bridges(list(&status["bridges"]), &mut text);
    subscribers(list(&status["subscribers"]), &mut text);
    text
}

fn journal(journal: &Value, text: &mut String) {
    if journal.is_null() {
        return;
    }
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{DIM}{name:<10}{DIM:#}{value}");
    };
    let size = |field: &str| bytes(number(&journal[field]));
    let events = match (number(&journal["first"]), number(&journal["last"])) {
        (first, last) if first > last => "no events yet".to_owned(),
        (first, last) => format!("events {first} to {last}"),
    };
    line("journal", &format!("{}: {} of {}, {events}", string(&journal["path"]), size("bytes"), size("max_bytes")));
    if let Some(failing) = journal["failing"].as_str() {
        line("", &format!("{BAD}{failing}{BAD:#}"));
    }
    for damage in list(&journal["damage"]) {
        line("", &format!("{SLOW}{}{SLOW:#}", string(damage)));
    }
    let orphans: Vec<&str> = list(&journal["orphans"]).iter().map(string).collect();
    if !orphans.is_empty() {
        let names = orphans.join(", ");
        line("", &format!("orphaned cursors: {names}; `hookbus cursor delete` removes them"));
    }
    let dead = number(&journal["dead_letters"]);
    if dead > 0 {
        let letters = if dead == 1 { "1 dead letter".to_owned() } else { format!("{} dead letters", grouped(dead)) };
        line("", &format!("{SLOW}{letters}{SLOW:#}; `hookbus dlq list` shows them"));
    }
}

fn source(source: &Value, text: &mut String) {
    let state = string(&source["state"]);
    let style = if state == "connected" { Style::new() } else { SLOW };
    let reason = source["reason"].as_str().map_or_else(String::new, |reason| format!(": {reason}"));
    if source["type"] == "ganeti-jobs" {
        let style = if state == "failing" { BAD } else { Style::new() };
        let _ = writeln!(
            text,
            "{DIM}{:<10}{DIM:#}{} ({}) {style}{state}{reason}{style:#}; {} jobs known, {} running, {} events, {} files skipped",
            "source",
            string(&source["name"]),
            string(&source["address"]),
            grouped(number(&source["jobs"])),
            grouped(number(&source["running"])),
            grouped(number(&source["events"])),
            grouped(number(&source["skipped"])),
        );
        return;
    }
    let _ = writeln!(
        text,
        "{DIM}{:<10}{DIM:#}{} ({}) {style}{state}{reason}{style:#}; {} events, connected {} times, {} skipped",
        "source",
        string(&source["name"]),
        string(&source["address"]),
        grouped(number(&source["events"])),
        grouped(number(&source["connects"])),
        grouped(number(&source["skipped"])),
    );
}

/// The bridge that is farthest behind comes first; one that is in trouble says why.
fn bridges(all: &[Value], text: &mut String) {
    if all.is_empty() {
        return;
    }
    let mut all: Vec<&Value> = all.iter().collect();
    let trouble = |bridge: &Value| string(&bridge["state"]) != "ready";
    all.sort_by_key(|bridge| std::cmp::Reverse((trouble(bridge), number(&bridge["lag_events"]))));
    let rows = all.iter().map(|bridge| {
        let lost = number(&bridge["dropped"]) + dead(bridge) > 0;
        let style = match (trouble(bridge), lost) {
            (true, _) => BAD,
            (false, true) => SLOW,
            _ => Style::new(),
        };
        let count = |field: &str| grouped(number(&bridge[field]));
        let cells = vec![
            format!("{} {}", string(&bridge["kind"]), string(&bridge["name"])),
            // What goes by itself, and what somebody has to act on.
            if bridge["needs_help"] == true { "needs help" } else { string(&bridge["state"]) }.to_owned(),
            count("lag_events"),
            format!("{:.0} s", bridge["lag_seconds"].as_f64().unwrap_or_default()),
            count("in_flight"),
            count("confirmed"),
            count("retried"),
            count("dropped"),
            grouped(dead(bridge)),
            string(&bridge["address"]).to_owned(),
        ];
        (style, cells)
    });
    let heads = ["BRIDGE", "STATE", "BEHIND", "FOR", "IN FLIGHT", "CONFIRMED", "RETRIED", "DROPPED", "DEAD", "WHERE"];
    table(&heads, 2, rows.collect(), text);
    for bridge in all {
        let reason = bridge["reason"].as_str().or_else(|| bridge["last_error"].as_str().filter(|_| trouble(bridge)));
        if let Some(reason) = reason {
            let _ = writeln!(text, "{DIM}{}:{DIM:#} {reason}", string(&bridge["name"]));
        }
        let unroutable = number(&bridge["unroutable"]);
        if unroutable > 0 {
            let (name, unroutable) = (string(&bridge["name"]), grouped(unroutable));
            let _ = writeln!(
                text,
                "{DIM}{name}:{DIM:#} {SLOW}{unroutable} were unroutable{SLOW:#}: no queue was bound for them"
            );
        }
        let filtered = number(&bridge["filtered"]);
        if filtered > 0 {
            let (name, filtered) = (string(&bridge["name"]), grouped(filtered));
            let _ =
                writeln!(text, "{DIM}{name}: {filtered} were not sent: its condition (`when`) passes them over{DIM:#}");
        }
    }
}

/// The dead letters of a bridge that are kept.
fn dead(bridge: &Value) -> u64 {
    number(&bridge["dead_letters"])
}

fn hooks(hooks: &Value, text: &mut String) {
    if hooks.is_null() {
        return;
    }
    let all = list(&hooks["hooks"]);
    let trouble = hooks["store"]["trouble"].as_str();
    let dir = hooks["dir"].as_str();
    if all.is_empty() && trouble.is_none() && dir.is_none() {
        return;
    }
    const MOST_SHOWN: usize = 5;
    let not_loaded = list(&hooks["not_loaded"]);
    let of_files = all.iter().filter(|hook| !hook["file"].is_null()).count();
    let from = match dir {
        Some(dir) => format!("{of_files} from {dir}, {} from the store", all.len() - of_files),
        None => "from the store".into(),
    };
    let (running, concurrency) = (&hooks["running"], &hooks["concurrency"]);
    let _ = writeln!(text, "{DIM}{:<10}{DIM:#}{}: {from}; {running} of {concurrency} running", "hooks", all.len());
    if let Some(trouble) = trouble {
        let _ = writeln!(text, "{BAD}{trouble}{BAD:#}");
    }
    for problem in not_loaded.iter().take(MOST_SHOWN) {
        let _ = writeln!(text, "{BAD}{}; it is not loaded{BAD:#}", string(problem));
    }
    if not_loaded.len() > MOST_SHOWN {
        let _ =
            writeln!(text, "{BAD}and {} more; `hookbus hook list` shows them{BAD:#}", not_loaded.len() - MOST_SHOWN);
    }
    if hooks["leads"] == false {
        let _ = writeln!(text, "{SLOW}no hook runs here: run_if says no{SLOW:#}");
    }
    if all.is_empty() {
        return;
    }
    let rows = all.iter().map(|hook| {
        let failures = number(&hook["failures"]);
        let style = if failures > 0 { SLOW } else { Style::new() };
        let cells = vec![
            string(&hook["name"]).to_owned(),
            string(&hook["trigger"]).to_owned(),
            grouped(number(&hook["runs"])),
            grouped(failures),
            hook["last_code"].as_i64().map_or_else(|| "-".into(), |code| code.to_string()),
        ];
        (style, cells)
    });
    table(&["HOOK", "TRIGGER", "RUNS", "FAILED", "LAST CODE"], 2, rows.collect(), text);
}

/// The subscriber that is farthest behind comes first, and is marked.
fn subscribers(all: &[Value], text: &mut String) {
    let share = |subscriber: &Value| {
        let part = |queued: &str, hwm: &str| match number(&subscriber[hwm]) {
            0 => 0.0,
            hwm => number(&subscriber[queued]) as f64 / hwm as f64,
        };
        part("queued", "hwm").max(part("queued_bytes", "hwm_bytes"))
    };
    let mut all: Vec<&Value> = all.iter().collect();
    all.sort_by(|a, b| {
        (b["overflowing"] == true, share(b))
            .partial_cmp(&(a["overflowing"] == true, share(a)))
            .unwrap_or(std::cmp::Ordering::Equal)
    });
    let rows = all.iter().map(|subscriber| {
        let (mark, style) = match (subscriber["overflowing"] == true, share(subscriber)) {
            (true, _) => ("LOSING", BAD),
            (_, share) if share >= 0.5 => ("slow", SLOW),
            _ if number(&subscriber["dropped"]) > 0 => ("has lost", Style::new()),
            _ => ("", Style::new()),
        };
        let cells = vec![
            format!("{} {}", string(&subscriber["kind"]), string(&subscriber["name"])).trim_end().to_owned(),
            filters(subscriber),
            grouped(number(&subscriber["queued"])),
            limit(number(&subscriber["hwm"])),
            grouped(number(&subscriber["dropped"])),
            grouped(number(&subscriber["delivered"])),
            mark.to_owned(),
        ];
        (style, cells)
    });
    let rows: Vec<_> = rows.collect();
    if rows.is_empty() {
        let _ = writeln!(text, "\nno subscribers");
        return;
    }
    table(&["SUBSCRIBER", "FILTERS", "WAITING", "HWM", "DROPPED", "DELIVERED", ""], 2, rows, text);
}

fn filters(subscriber: &Value) -> String {
    let shown = list(&subscriber["filters"]);
    let count = number(&subscriber["filter_count"]);
    match shown {
        [] => "(none)".into(),
        [one, ..] if string(one).is_empty() => "(everything)".into(),
        [one, ..] => {
            let one = format!("\"{}\"", string(one).escape_default());
            if count > 1 { format!("{one} and {} more", count - 1) } else { one }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_slow_one_stands_out() {
        let subscriber = |name: &str, queued: u64, dropped: u64, overflowing: bool| {
            json!({"kind": "zeromq", "name": name, "filters": ["EVENT STATE VM/"], "filter_count": 3, "hwm": 1000,
                   "hwm_bytes": 0, "queued": queued, "queued_bytes": 0, "dropped": dropped, "delivered": 1_234_567,
                   "overflowing": overflowing})
        };
        let status = json!({"version": "1", "role": "serve", "pid": 7, "uptime_s": 3700, "ready": true,
            "subscribers": [subscriber("fast:1", 0, 0, false), subscriber("slow:2", 600, 0, false), subscriber("lossy:3", 1000, 5, true)]});
        let text = anstream::adapter::strip_str(&pretty(&status)).to_string();
        let rows: Vec<_> = text.lines().filter(|line| line.starts_with("zeromq")).collect();
        assert!(
            rows[0].starts_with("zeromq lossy:3  \"EVENT STATE VM/\" and 2 more") && rows[0].ends_with("LOSING"),
            "{text}"
        );
        assert!(rows[1].starts_with("zeromq slow:2") && rows[1].ends_with("slow"), "{text}");
        assert!(rows[2].starts_with("zeromq fast:1") && rows[2].ends_with("1,234,567"), "{text}");
        assert!(text.starts_with("hookbus 1 (serve), process 7, up 1 h 1 min\n"), "{text}");
    }

    #[test]
    fn a_bridge_in_trouble_says_why() {
        let bridge = |name: &str, state: &str, lag: u64| {
            json!({"name": name, "kind": "nats", "state": state, "lag_events": lag, "lag_seconds": 3, "in_flight": 1, "confirmed": 5000,
                   "retried": 2, "dropped": 0, "dead": 9, "dead_letters": 4, "unroutable": 1200, "address": "nats://h:4222"})
        };
        let mut down = bridge("down", "connecting", 4000);
        down["reason"] = "connection refused".into();
        let journal = json!({"path": "/j", "bytes": 2048, "max_bytes": 4096, "first": 1, "last": 9, "orphans": ["old"], "dead_letters": 3});
        let text = pretty(&json!({"bridges": [bridge("up", "ready", 0), down], "journal": journal}));
        let text = anstream::adapter::strip_str(&text).to_string();
        let rows: Vec<_> = text.lines().filter(|line| line.starts_with("nats")).collect();
        assert!(rows[0].starts_with("nats down  connecting   4,000  3 s"), "{text}");
        assert!(rows[1].starts_with("nats up    ready"), "{text}");
        assert!(rows[0].ends_with("0     4  nats://h:4222"), "what is kept, not what was: {text}");
        assert!(text.contains("\ndown: connection refused\ndown: 1,200 were unroutable: no queue"), "{text}");
        assert!(
            text.contains("/j: 2.0 KiB of 4.0 KiB, events 1 to 9") && text.contains("orphaned cursors: old;"),
            "{text}"
        );
    }

    #[test]
    fn what_is_missing_is_no_reason_to_fail() {
        assert!(pretty(&json!({})).contains("no subscribers"));
    }
}
