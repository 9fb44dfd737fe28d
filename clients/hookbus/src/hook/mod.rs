//! `hookbus hook`: the hooks of the daemon's store, and the log of what all hooks did.
//!
//! It does what `onehook` does, with the same words, columns and layout, so that hands and scripts that know the one know the other. All of it
//! goes through `/v1/hooks` of the daemon. Where it differs from `onehook`:
//!
//! - a mistake in a template is an error when the hook is created, with line and column, and not a hook that never runs;
//! - a word of ARGUMENTS is shown decoded only where it is base64 of a document, not where it merely looks like base64;
//! - what can't be found or done is exit status 1, what was asked for wrongly 2 (`onehook`: 255, and 0 for a missing record);
//! - hooks of template files are listed, too.

mod editor;
mod import;
mod table;
mod xml;

use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use hookbus_bridges::http::{Client, ClientError};
use hookbus_hem::template::MAX_TEMPLATE_BYTES;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::cli::GlobalArgs;
use crate::client::{self, ClientArgs, Failure, get, understood};
use crate::listing::{list, string};
pub(crate) use table::Column;
use table::Columns;

/// What to do with hooks.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum HookCommand {
    /// Create a hook; prints its id
    ///
    /// The template is written as for onehook, or as in the documentation: NAME, TYPE, COMMAND, ...
    Create {
        /// The template; - is standard input
        file: PathBuf,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// List hooks: those of the store, and those of template files
    List {
        /// Which columns, in this order: ID, NAME, TYPE, ORIGIN, TRIGGER, LOCK
        #[arg(short, long = "list", value_name = "COLUMNS", value_delimiter = ',', ignore_case = true)]
        list: Vec<Column>,
        /// Without the line of column names
        #[arg(long)]
        no_header: bool,
        /// As comma-separated values
        #[arg(long)]
        csv: bool,
        #[command(flatten)]
        form: Form,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Show a hook and the executions of it that are kept
    Show {
        /// Its id, or its name
        hook: String,
        /// One execution, with what the command wrote
        #[arg(short, long, value_name = "EXEC")]
        execution: Option<u64>,
        #[command(flatten)]
        form: Form,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Change a hook's template; without FILE in an editor (VISUAL, EDITOR, or vi)
    ///
    /// Its name stays what it is. NAME and TYPE may be left out.
    Update {
        /// Its id, or its name
        hook: String,
        /// The new template; - is standard input
        file: Option<PathBuf>,
        /// Add to the template, instead of putting FILE in its place
        #[arg(short, long)]
        append: bool,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Give a hook another name
    Rename {
        /// Its id, or its name
        hook: String,
        /// The new name
        name: String,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Delete hooks and the log of their executions
    Delete {
        /// Ids: 3, 1..5, 1,4,7; or a name
        #[arg(value_name = "ID[..ID]", required = true)]
        hooks: Vec<String>,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Keep a hook from being changed; it runs all the same
    Lock {
        /// Its id, or its name
        hook: String,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Let a hook be changed again
    Unlock {
        /// Its id, or its name
        hook: String,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Run a hook once more, as it was recorded, with its command of today
    Retry {
        /// Its id, or its name
        hook: String,
        /// The execution, by its number in `hookbus hook show`
        #[arg(value_name = "EXEC")]
        execution: u64,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// List executions of all hooks
    Log {
        /// Only of this hook: its id, or its name
        #[arg(long, value_name = "ID")]
        hook_id: Option<String>,
        /// Only those that ended with code 0
        #[arg(long, conflicts_with = "error")]
        success: bool,
        /// Only the others
        #[arg(long)]
        error: bool,
        /// Only those from then on: a time such as 2026-11-22T10:00, or how long ago, such as 15m
        #[arg(long, short, value_name = "TIME", value_parser = time)]
        since: Option<u64>,
        /// Only those before then
        #[arg(long, short, value_name = "TIME", value_parser = time)]
        until: Option<u64>,
        /// At most so many, the newest
        #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
        limit: u64,
        #[command(flatten)]
        form: Form,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Show what a hook would run for an event, and run it if asked to
    Test {
        /// Its id, or its name
        hook: String,
        /// The event: a file with the XML that oned wrote (or base64 of it), or with the environment of a Ganeti hook as JSON; - is standard
        /// input; or a key, for the newest event of the
        /// journal whose key begins like that, without one an empty event of that key [default: the newest event of the journal that the
        /// hook is for]
        #[arg(long, value_name = "FILE|KEY")]
        event: Option<String>,
        /// Run it, and show what came of it
        #[arg(long)]
        run: bool,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Take over hooks of OpenNebula, from what `onehook list -x` prints, or of another hookbus (`hookbus hook list -x`)
    ///
    /// They get new ids. One whose name is taken, or that can't be run, is told and left out.
    Import {
        /// The list; - is standard input
        file: PathBuf,
        #[command(flatten)]
        client: ClientArgs,
    },
}

/// How an answer is printed.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(crate) struct Form {
    /// As XML, as onehook prints it
    #[arg(short, long, conflicts_with = "json")]
    xml: bool,
    /// As JSON, as onehook prints it
    #[arg(short, long)]
    json: bool,
}

/// Does what the command says.
pub(crate) fn run(global: &GlobalArgs, command: HookCommand) -> ExitCode {
    use HookCommand::{Create, Delete, Import, List, Lock, Log, Rename, Retry, Show, Test, Unlock, Update};

    match command {
        Create { file, client } => client::run(global, &client, async |client| create(&client, &file).await),
        List { list: columns, no_header, csv, form, client } => client::run(global, &client, async |client| {
            let answer = get(&client, "/v1/hooks").await?;
            if let Some(why) = answer["trouble"].as_str() {
                warn(&format!("there is no store of hooks: {why}"));
            }
            for problem in list(&answer["not_loaded"]) {
                warn(&format!("{}; it is not loaded", string(problem)));
            }
            let columns = Columns { columns, header: !no_header, csv };
            show(form, || xml::pool(&answer), || table::hooks(&answer, &columns))
        }),
        Show { hook, execution, form, client } => client::run(global, &client, async |client| match execution {
            None => {
                let full = form.xml || form.json;
                let answer = get(&client, &path(&hook, &format!("?full={full}"))).await?;
                show(form, || xml::hook(&answer), || table::hook(&answer))
            }
            Some(number) => {
                let mut answer = get(&client, &path(&hook, "")).await?;
                let head = table::head(&answer);
                match client.get(&path(&hook, &format!("/executions/{number}"))).await {
                    Ok(execution) => {
                        let execution = understood(&execution)?;
                        answer["executions"] = json!([execution]);
                        show(form, || xml::hook(&answer), || format!("{head}\n{}", table::execution(&execution)))
                    }
                    Err(e) => {
                        if !form.xml && !form.json {
                            print(head.as_bytes())?;
                        }
                        Err(e.into())
                    }
                }
            }
        }),
        Update { hook, file, append, client } => {
            client::run(global, &client, async |client| update(&client, &hook, file.as_deref(), append).await)
        }
        Rename { hook, name, client } => client::run(global, &client, async |client| {
            let body = json!({ "name": name });
            post(&client, &path(&hook, "/rename"), &body).await.map(drop)
        }),
        Delete { hooks, client } => client::run(global, &client, async |client| {
            let mut failed = Vec::new();
            for hook in ids(&hooks)? {
                match client.delete(&path(&hook, "")).await {
                    Ok(()) => {}
                    Err(ClientError::Refused { detail, .. }) => failed.push(detail),
                    Err(e) => return Err(e.into()),
                }
            }
            if failed.is_empty() { Ok(()) } else { Err(Failure::Work(failed.join("\nerror: "))) }
        }),
        Lock { hook, client } => client::run(global, &client, async |client| {
            post(&client, &path(&hook, "/lock"), &Value::Null).await.map(drop)
        }),
        Unlock { hook, client } => client::run(global, &client, async |client| {
            post(&client, &path(&hook, "/unlock"), &Value::Null).await.map(drop)
        }),
        Retry { hook, execution, client } => client::run(global, &client, async |client| {
            let path = path(&hook, &format!("/executions/{execution}/retry"));
            post(&client, &path, &Value::Null).await.map(drop)
        }),
        Log { hook_id, success, error, since, until, limit, form, client } => {
            let mut query = format!("?limit={limit}");
            let result = (success || error).then_some(success);
            query.extend(result.map(|success| format!("&success={success}")));
            query.extend(since.map(|since| format!("&since_ms={since}")));
            query.extend(until.map(|until| format!("&until_ms={until}")));
            query.extend(hook_id.map(|hook| format!("&hook={}", encoded(&hook))));
            client::run(global, &client, async |client| {
                let answer = get(&client, &format!("/v1/executions{query}")).await?;
                show(form, || xml::log(&answer), || table::log(&answer))
            })
        }
        Test { hook, event, run, client } => {
            client::run(global, &client, async |client| test(&client, &hook, event.as_deref(), run).await)
        }
        Import { file, client } => client::run(global, &client, async |client| import::import(&client, &file).await),
    }
}

async fn create(client: &Client, file: &Path) -> Result<(), Failure> {
    let template = read_template(file)?;
    let answer = client.post("/v1/hooks", &[], template.into()).await.map_err(|e| of_template(file, e))?;
    let answer = understood(&answer)?;
    tell_warnings(file, &answer);
    print(format!("ID: {}\n", answer["id"]).as_bytes())
}

async fn update(client: &Client, hook: &str, file: Option<&Path>, append: bool) -> Result<(), Failure> {
    let (template, name) = match file {
        Some(file) => (read_template(file)?, file.to_owned()),
        None => {
            let answer = get(client, &path(hook, "")).await?;
            let before = if append { "" } else { string(&answer["template"]) };
            match editor::edit(before)? {
                Some(after) => (after.into_bytes(), PathBuf::from("template")),
                None => {
                    warn("nothing was changed");
                    return Ok(());
                }
            }
        }
    };
    let put = client.put(&path(hook, &format!("?append={append}")), &[], template.into()).await;
    if let (Err(_), None) = (&put, file) {
        editor::keep_what_was_written();
    }
    let answer = understood(&put.map_err(|e| of_template(&name, e))?)?;
    tell_warnings(&name, &answer);
    if file.is_none() {
        editor::forget_what_was_written();
    }
    Ok(())
}

/// How long `test --run` waits for a command to end.
const PATIENCE: Duration = Duration::from_secs(60);

async fn test(client: &Client, hook: &str, event: Option<&str>, run: bool) -> Result<(), Failure> {
    let mut body = json!({ "run": run });
    match event {
        Some(file) if file == "-" || Path::new(file).is_file() || is_file_name(file) => {
            body["content"] = content(&read(Path::new(file))?).into();
        }
        Some(key) => body["key"] = key.into(),
        None => {}
    }
    let newest = match run {
        true => list(&get(client, &path(hook, "")).await?["executions"]).last().and_then(|last| last["id"].as_u64()),
        false => None,
    };
    let answer = post(client, &path(hook, "/test"), &body).await?;
    print(table::preview(&answer).as_bytes())?;
    if !run || answer["host"].is_null() && answer["obstacle"].as_str().is_some_and(|why| why.contains("REMOTE")) {
        return Ok(());
    }
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let shown = get(client, &path(hook, "")).await?;
        let is_ours = |execution: &&Value| execution["id"].as_u64() > newest;
        for execution in list(&shown["executions"]).iter().filter(is_ours) {
            let execution = get(client, &path(hook, &format!("/executions/{}", execution["id"]))).await?;
            if execution["event"] == answer["event"] && execution["key"] == answer["key"] {
                return print(format!("\n{}", table::execution(&execution)).as_bytes());
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    warn(&format!("it has not ended yet; `hookbus hook show {hook}` shows it when it has"));
    Ok(())
}

/// Whether somebody who writes this means a file, also where there is none.
fn is_file_name(text: &str) -> bool {
    let (beginnings, endings) = (["/", "./", "../", "~"], [".xml", ".txt", ".json", ".b64", ".base64"]);
    beginnings.iter().any(|beginning| text.starts_with(beginning)) || endings.iter().any(|end| text.ends_with(end))
}

/// The content of an event, in base64: the XML that oned wrote, or that in base64; the environment of a Ganeti hook as JSON.
fn content(bytes: &[u8]) -> String {
    match bytes.trim_ascii() {
        plain if plain.starts_with(b"<") || plain.starts_with(b"{") => crate::base64(plain),
        base64 => String::from_utf8_lossy(base64).into_owned(),
    }
}

/// What stands in a file, or in standard input.
fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    if file.as_os_str() == "-" {
        let mut text = Vec::new();
        let read = io::stdin().lock().read_to_end(&mut text);
        return read.map(|_| text).map_err(|e| Failure::Work(format!("cannot read standard input: {e}")));
    }
    std::fs::read(file).map_err(|e| Failure::Work(format!("cannot read {}: {e}", file.display())))
}

/// A template, as far as that can be told from here.
fn read_template(file: &Path) -> Result<Vec<u8>, Failure> {
    let text = read(file)?;
    if text.len() > MAX_TEMPLATE_BYTES {
        let what = format!("{}: it has {} bytes; a template has {MAX_TEMPLATE_BYTES} at most", shown(file), text.len());
        return Err(Failure::Work(what));
    }
    Ok(text)
}

/// The path of a hook, or of something of it.
fn path(hook: &str, rest: &str) -> String {
    format!("/v1/hooks/{}{rest}", encoded(hook))
}

fn encoded(name: &str) -> impl std::fmt::Display + '_ {
    utf8_percent_encode(name, NON_ALPHANUMERIC)
}

/// How many ids a range may have: each is asked for by itself.
const MOST_IDS: u64 = 10_000;

/// The hooks that are meant: `3`, `1..5`, `1,4`, a name.
fn ids(words: &[String]) -> Result<Vec<String>, Failure> {
    let mut ids = Vec::new();
    for word in words {
        let is_list = word.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b',' | b'.'));
        if !is_list {
            ids.push(word.clone());
            continue;
        }
        for part in word.split(',') {
            let Some((first, last)) = part.split_once("..") else {
                ids.push(part.to_owned());
                continue;
            };
            let number = |text: &str| {
                text.parse::<u64>().map_err(|_| Failure::Usage(format!("{part} is no range of ids; write 1..5")))
            };
            let (first, last) = (number(first)?, number(last)?);
            if last < first {
                return Err(Failure::Usage(format!("{part} is no range of ids; write {last}..{first}")));
            }
            if last - first >= MOST_IDS {
                return Err(Failure::Usage(format!("{part} has too many ids for one command")));
            }
            ids.extend((first..=last).map(|id| id.to_string()));
        }
    }
    Ok(ids)
}

/// A time in milliseconds since 1970: a time, a day, or how long ago.
fn time(text: &str) -> Result<u64, String> {
    let now = jiff::Timestamp::now();
    let parsed = if let Ok(ago) = text.parse::<crate::config::Period>() {
        now.checked_sub(jiff::SignedDuration::try_from(ago.duration()).map_err(|e| e.to_string())?).ok()
    } else if let Ok(time) = text.parse::<jiff::Timestamp>() {
        Some(time)
    } else {
        let local = text.parse::<jiff::civil::DateTime>().ok();
        local.and_then(|local| local.to_zoned(jiff::tz::TimeZone::system()).ok()).map(|zoned| zoned.timestamp())
    };
    let millis = parsed.and_then(|time| u64::try_from(time.as_millisecond()).ok());
    millis.ok_or_else(|| "a time such as 2026-11-22T10:00, or how long ago, such as 15m, is expected".into())
}

async fn post(client: &Client, path: &str, body: &Value) -> Result<Value, Failure> {
    let headers = [("content-type", "application/json")];
    let body = if body.is_null() { String::new() } else { body.to_string() };
    understood(&client.post(path, &headers, body.into()).await?)
}

fn show(form: Form, document: impl FnOnce() -> xml::Element, text: impl FnOnce() -> String) -> Result<(), Failure> {
    let text = match form {
        Form { xml: true, .. } => document().to_xml(),
        Form { json: true, .. } => format!("{:#}\n", document().to_json()),
        _ => text(),
    };
    print(text.as_bytes())
}

fn print(text: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout();
    out.write_all(text)?;
    Ok(out.flush()?)
}

fn warn(text: &str) {
    // Where standard error is closed nobody wants to know.
    let _ = writeln!(anstream::stderr(), "warning: {text}");
}

fn tell_warnings(file: &Path, answer: &Value) {
    for warning in list(&answer["warnings"]) {
        warn(&format!("{}: {}", shown(file), string(warning)));
    }
}

/// What is wrong with a template, each line with its file.
fn of_template(file: &Path, error: ClientError) -> Failure {
    match error {
        ClientError::Refused { status, detail } if status.as_u16() == 400 => {
            let place = shown(file);
            let lines: Vec<_> = detail.lines().map(|line| format!("{place}: {line}")).collect();
            Failure::Work(lines.join("\nerror: "))
        }
        other => other.into(),
    }
}

fn shown(file: &Path) -> String {
    if file.as_os_str() == "-" { "standard input".into() } else { file.display().to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_ranges() {
        let of = |words: &[&str]| ids(&words.iter().map(ToString::to_string).collect::<Vec<_>>());
        for (words, expected) in [
            (&["3"][..], &["3"][..]),
            (&["1..3", "7"], &["1", "2", "3", "7"]),
            (&["1,4..5"], &["1", "4", "5"]),
            (&["host.error,x"], &["host.error,x"]),
        ] {
            assert_eq!(of(words).unwrap(), expected, "{words:?}");
        }
        for wrong in ["1..", "..", "3..1", "0..99999999999"] {
            assert!(matches!(of(&[wrong]), Err(Failure::Usage(_))), "{wrong}");
        }
    }

    #[test]
    fn times_are_read_as_people_write_them() {
        assert_eq!(time("1970-01-01T00:00:01Z"), Ok(1000));
        assert!(time("2026-11-22T10:00").is_ok() && time("2026-11-22").is_ok());
        let now = u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap();
        let ago = now - time("1h").unwrap();
        assert!((3_590_000..=3_600_000).contains(&ago), "{ago}");
        assert!(time("yesterday").unwrap_err().contains("is expected"));
    }

    #[test]
    fn a_file_that_is_not_there_is_no_key() {
        assert!(["/tmp/x", "./event", "vm.xml"].into_iter().all(is_file_name));
        assert!(!["EVENT STATE VM/ACTIVE", "app.deploy", "a/b"].into_iter().any(is_file_name));
    }

    #[test]
    fn an_event_is_sent_as_base64() {
        assert_eq!(content(b" <A/>\n"), "PEEvPg==");
        assert_eq!(content(b"PEEvPg==\n"), "PEEvPg==");
    }
}
