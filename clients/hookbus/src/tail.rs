//! `hookbus tail`: events as they happen.
//!
//! It goes on when the daemon is started anew, as `tail -F` does with a file, and says what it may have missed. Output for programs (`json`,
//! `raw`) goes to standard output, with gaps as objects of their own in `json`; everything else that is to be told goes to
//! standard error.

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use clap::{Args, ValueEnum};
use hookbus_bridges::http::{Client, ClientError, Following, ServerEvent};
use percent_encoding::{NON_ALPHANUMERIC, percent_encode, utf8_percent_encode};
use serde_json::Value;

use crate::cli::GlobalArgs;
use crate::client::{self, ClientArgs, Failure};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How much of a key or a content a line shows.
const SHOWN_CHARS: usize = 120;

/// What to follow, and how it is shown.
#[derive(Clone, Debug, Args)]
pub(crate) struct TailArgs {
    /// Show events with a key that begins with one of these [default: all]
    ///
    /// For example: "EVENT STATE VM/", "EVENT API one.vm.", "HOOKBUS HOOK "
    #[arg(value_name = "PREFIX")]
    prefixes: Vec<OsString>,
    /// How events are shown
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    /// Begin in the past, as far as the journal reaches: earliest, latest, an offset, or a time such as 2026-11-22T10:00:00Z or 15m (ago)
    #[arg(long, value_name = "WHERE")]
    from: Option<String>,
    /// End after that many events
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

/// A way to show events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// One line an event, for people
    #[default]
    Pretty,
    /// One CloudEvent as a JSON object a line
    Json,
    /// What the event holds, as it came: XML for OpenNebula
    Raw,
}

/// Follows until it is interrupted, or has shown enough.
pub(crate) fn run(global: &GlobalArgs, args: &TailArgs) -> ExitCode {
    client::run(global, &args.client, async |client| follow(&client, args).await)
}

async fn follow(client: &Client, args: &TailArgs) -> Result<(), Failure> {
    let mut query: Vec<String> = args
        .prefixes
        .iter()
        .map(|prefix| format!("prefix={}", percent_encode(prefix.as_bytes(), NON_ALPHANUMERIC)))
        .collect();
    query.extend(args.from.iter().map(|from| format!("from={}", utf8_percent_encode(from, NON_ALPHANUMERIC))));
    // Text of several lines and other bytes survive as base64 only.
    query.extend((args.output == Output::Raw).then(|| "format=base64".to_owned()));
    let query = query.join("&");
    let mut screen =
        Screen { out: anstream::stdout(), output: args.output, left: args.count, from_journal: args.from.is_some() };
    if args.count == Some(0) {
        return Ok(());
    }
    let mut following = client.follow(&query, None).await?;
    if let Some(from) = args.from.as_ref().and_then(|from| from.parse().ok()) {
        early(client, from).await?;
    }
    if args.output == Output::Pretty && io::stdout().is_terminal() {
        note("following; Ctrl-C ends it");
    }
    let mut last = None;
    loop {
        let reason = match show(&mut following, &mut screen, &mut last).await {
            Ok(Shown::Enough) => return Ok(()),
            Ok(Shown::All) => "the daemon has ended".to_owned(),
            Err(Failure::Work(reason)) => reason,
            Err(e) => return Err(e),
        };
        note(&format!("{reason}; waiting for it to come back"));
        following = again(client, &query, last.as_deref()).await?;
        note("the daemon is there again");
    }
}

/// Says so where the event to begin with is still to come.
async fn early(client: &Client, from: u64) -> Result<(), Failure> {
    let status: Value = serde_json::from_slice(&client.get("/v1/status").await?).unwrap_or_default();
    if let Some(last) = status["journal"]["last"].as_u64().filter(|last| from > last + 1) {
        note(&format!("there is no event {from} yet, the newest is {last}; waiting for it"));
    }
    Ok(())
}

enum Shown {
    /// As many as were asked for.
    Enough,
    /// What there was; the stream has ended.
    All,
}

async fn show(following: &mut Following, screen: &mut Screen, last: &mut Option<String>) -> Result<Shown, Failure> {
    while let Some(event) = following.next().await? {
        screen.show(&event)?;
        *last = Some(event.id);
        if screen.left == Some(0) {
            return Ok(Shown::Enough);
        }
    }
    Ok(Shown::All)
}

/// Connects again, with patience.
async fn again(client: &Client, query: &str, last: Option<&str>) -> Result<Following, Failure> {
    let mut pause = FIRST_PAUSE;
    loop {
        tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
        match client.follow(query, last).await {
            Ok(following) => return Ok(following),
            Err(e @ ClientError::Refused { status, .. }) if !status.is_server_error() => return Err(e.into()),
            Err(_) => pause = (pause * 2).min(LONGEST_PAUSE),
        }
    }
}

fn note(text: &str) {
    // Where standard error is closed nobody wants to know.
    let _ = writeln!(anstream::stderr(), "hookbus tail: {text}");
}

struct Screen {
    out: anstream::Stdout,
    output: Output,
    /// How many events are still to be shown.
    left: Option<u64>,
    /// Whether events come from the journal, which a reader can't be too slow for.
    from_journal: bool,
}

const DIM: Style = Style::new().dimmed();
const SUBJECT: Style = AnsiColor::Cyan.on_default();
const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();
const WARNING: Style = AnsiColor::Yellow.on_default();

impl Screen {
    fn show(&mut self, event: &ServerEvent) -> Result<(), Failure> {
        if event.kind == "gap" {
            return self.gap(&event.data);
        }
        if !event.kind.is_empty() {
            // Of a later version.
            return Ok(());
        }
        match self.output {
            Output::Json => writeln!(self.out, "{}", event.data)?,
            Output::Raw => {
                // A line for the key, one for the content.
                let text = event.data.rsplit('\n').next().unwrap_or_default();
                let content = BASE64_STANDARD
                    .decode(text.trim_end())
                    .map_err(|e| Failure::Work(format!("event {}: its content is no base64: {e}", event.id)))?;
                // Bytes as they are, past what makes colours of them.
                let mut out = io::stdout().lock();
                out.write_all(&content)?;
                out.write_all(b"\n")?;
                out.flush()?;
            }
            Output::Pretty => {
                let object: Value = serde_json::from_str(&event.data)
                    .map_err(|e| Failure::Work(format!("event {}: it is no JSON: {e}", event.id)))?;
                writeln!(self.out, "{}", pretty(&object))?;
            }
        }
        self.out.flush()?;
        if let Some(left) = &mut self.left {
            *left -= 1;
        }
        Ok(())
    }

    fn gap(&mut self, data: &str) -> Result<(), Failure> {
        let object: Value = serde_json::from_str(data).unwrap_or_default();
        let (first, last) = (&object["first"], &object["last"]);
        let text = match object["count"].as_u64() {
            Some(count) if self.from_journal => {
                format!("up to {count} events are missing here ({first} to {last}): the journal no longer has them")
            }
            Some(count) => format!("{count} events were dropped here ({first} to {last}): this reader was too slow"),
            None => {
                format!("events may be missing here ({first} to {last}): they were published while nobody followed")
            }
        };
        match self.output {
            Output::Json => writeln!(self.out, "{{\"gap\":{data}}}")?,
            Output::Pretty => writeln!(self.out, "{WARNING}-- {text}{WARNING:#}")?,
            Output::Raw => note(&text),
        }
        self.out.flush()?;
        Ok(())
    }
}

/// One readable line of an event.
fn pretty(event: &Value) -> String {
    let text = |name: &str| event[name].as_str().unwrap_or_default();
    // An event from elsewhere may have none, and was taken in at another time.
    let time = clock(if event["time"].is_string() { text("time") } else { text("recordedtime") });
    let (subject, outcome, style) = match (text("type"), &event["data"]) {
        ("org.opennebula.api", data) => api(data, text("subject")),
        ("org.hookbus.hook", data) => hook(data, text("subject")),
        (kind, data) if kind.starts_with("org.opennebula.state.") => state(data, text("subject")),
        (kind, data) => custom(event, kind, data),
    };
    let dropped = match event["hookbusdropped"].as_u64() {
        Some(_) => format!("  {WARNING}(some before it were dropped){WARNING:#}"),
        None => String::new(),
    };
    let (subject, outcome) = (cut(&plain(&subject)), plain(&outcome));
    if outcome.is_empty() {
        return format!("{DIM}{time}{DIM:#}  {SUBJECT}{subject}{SUBJECT:#}{dropped}");
    }
    format!("{DIM}{time}{DIM:#}  {SUBJECT}{subject:<30}{SUBJECT:#}  {style}{outcome}{style:#}{dropped}")
}

/// `12:34:56.789` in the local time zone.
fn clock(time: &str) -> String {
    match time.parse::<jiff::Timestamp>() {
        Ok(time) => time.to_zoned(jiff::tz::TimeZone::system()).strftime("%H:%M:%S%.3f").to_string(),
        Err(_) => "            ".into(),
    }
}

fn state(data: &Value, subject: &str) -> (String, String, Style) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (object, id) = subject.split_once('/').unwrap_or((subject, ""));
    let element = if object == "net" { "VNET".to_owned() } else { object.to_uppercase() };
    let name = text(&data[&*element]["NAME"]);
    let (state, lcm) = (text(&data["STATE"]), text(&data["LCM_STATE"]));
    let mut outcome = if lcm.is_empty() { state.clone() } else { format!("{state}/{lcm}") };
    let host = text(&data["REMOTE_HOST"]);
    if object == "vm" && !host.is_empty() {
        outcome.push_str(&format!("  on {host}"));
    }
    let bad = ["ERROR", "FAILURE", "FAILED", "UNKNOWN"].iter().any(|word| outcome.contains(word));
    (format!("{} {id} {name}", object.to_uppercase()), outcome, if bad { BAD } else { GOOD })
}

fn api(data: &Value, call: &str) -> (String, String, Style) {
    let ok = data["CALL_INFO"]["RESULT"].as_str().or(data["RESULT"].as_str()) == Some("1");
    let outcome = if ok { "ok".to_owned() } else { format!("failed{}", reason(data)) };
    (call.to_owned(), outcome, if ok { GOOD } else { BAD })
}

/// The message of a call that failed, its second OUT parameter.
fn reason(data: &Value) -> String {
    let parameters = &data["CALL_INFO"]["PARAMETERS"]["PARAMETER"];
    let is_message = |parameter: &&Value| parameter["TYPE"] == "OUT" && parameter["POSITION"] == "2";
    let message = parameters.as_array().and_then(|list| list.iter().find(is_message));
    message.and_then(|parameter| parameter["VALUE"].as_str()).map_or_else(String::new, |text| format!(": {text}"))
}

fn hook(data: &Value, subject: &str) -> (String, String, Style) {
    let name = subject.strip_prefix("hook/").unwrap_or(subject);
    let success = data["result"] == "success";
    let first_line = |name: &str| {
        let text = data[name].as_str().unwrap_or_default();
        text.lines().find(|line| !line.trim().is_empty()).map_or_else(String::new, |line| format!(": {line}"))
    };
    if success {
        (format!("hook {name}"), format!("ok{}", first_line("stdout")), GOOD)
    } else {
        (format!("hook {name}"), format!("failed, code {}{}", data["code"], first_line("stderr")), BAD)
    }
}

fn custom(event: &Value, kind: &str, data: &Value) -> (String, String, Style) {
    let key = event["hookbuskey"].as_str().unwrap_or(kind);
    let content = match data {
        Value::Null => event["data_base64"].as_str().map_or_else(String::new, |text| format!("base64 {text}")),
        Value::String(text) => text.clone(),
        data => data.to_string(),
    };
    (key.trim_end().to_owned(), cut(&content), Style::new())
}

/// The beginning of a text that would fill the screen.
fn cut(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text.to_owned(),
    }
}

/// Text from outside, on one line and without what a terminal would obey.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn line(event: &Value) -> String {
        let line = pretty(event);
        anstream::adapter::strip_str(&line).to_string().split_once("  ").expect("a time").1.trim_start().to_owned()
    }

    #[test]
    fn an_event_is_one_readable_line() {
        let time = "2026-11-22T10:00:00.123Z";
        let vm = json!({"time": time, "type": "org.opennebula.state.vm", "subject": "vm/7", "data": {
            "STATE": "ACTIVE", "LCM_STATE": "RUNNING", "REMOTE_HOST": "node1", "VM": {"NAME": "web"}}});
        assert_eq!(line(&vm), format!("{:<30}  ACTIVE/RUNNING  on node1", "VM 7 web"));
        let call = json!({"time": time, "type": "org.opennebula.api", "subject": "one.vm.x", "data": {"CALL_INFO": {
            "RESULT": "0", "PARAMETERS": {"PARAMETER": [{"TYPE": "OUT", "POSITION": "2", "VALUE": "no\nsuch VM"}]}}}});
        assert_eq!(line(&call), format!("{:<30}  failed: no such VM", "one.vm.x"));
        let hand =
            json!({"time": time, "type": "org.hookbus.custom", "hookbuskey": "backup/done ", "data": {"size": 3}});
        assert_eq!(line(&hand), format!("{:<30}  {{\"size\":3}}", "backup/done"));
        let hook = json!({"time": time, "type": "org.hookbus.hook", "subject": "hook/mail", "data": {
            "result": "failure", "code": 3, "stderr": "\n\u{1b}[31mno route\n"}});
        assert_eq!(line(&hook), format!("{:<30}  failed, code 3:  [31mno route", "hook mail"));
        assert!(line(&json!({"hookbusdropped": 2})).ends_with("(some before it were dropped)"));
    }
}
