//! `hookbus dlq`: events that a bus has refused for good, and hooks that have failed for good, kept to be looked at and tried again.

use std::io::Write;
use std::process::ExitCode;

use anstyle::Style;
use clap::{Args, Subcommand};
use hookbus_bridges::http::Client;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use crate::cli::GlobalArgs;
use crate::client::{self, ClientArgs, Failure, get, understood};
use crate::listing::{Output, grouped, list, number, print, string, table};

/// What to do with dead letters.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum DlqCommand {
    /// List them, oldest first
    List {
        /// Only those of this bridge
        #[arg(long, value_name = "NAME")]
        bridge: Option<String>,
        /// At most so many
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: usize,
        #[command(flatten)]
        shown: Shown,
    },
    /// Show one: why it was refused, and the event
    Show {
        /// Its number in the list
        number: u64,
        #[command(flatten)]
        shown: Shown,
    },
    /// Send them again, each through its bridge; run the hooks again that left them
    ///
    /// A letter leaves the list when its bus has confirmed it. It is sent under a new identity, `<id>;replay=<n>`, because
    /// a bus that recognises repetitions would swallow it otherwise; the event in it keeps its id.
    Retry {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Throw them away
    Purge {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        client: ClientArgs,
    },
}

/// How it is shown, and by whom.
#[derive(Clone, Debug, Args)]
pub(crate) struct Shown {
    /// How it is shown
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    client: ClientArgs,
}

/// Which letters: numbers, or all.
#[derive(Clone, Debug, Args)]
#[group(required = true, multiple = true)]
pub(crate) struct Which {
    /// Numbers from the list
    #[arg(value_name = "NUMBER")]
    numbers: Vec<u64>,
    /// All there are
    #[arg(long, conflicts_with = "numbers")]
    all: bool,
    /// All of this bridge
    #[arg(long, value_name = "NAME", conflicts_with_all = ["numbers", "all"])]
    bridge: Option<String>,
}

impl Which {
    /// As the daemon is asked.
    fn body(&self) -> Vec<u8> {
        let body = match &self.bridge {
            Some(bridge) => json!({ "bridge": bridge }),
            None if self.all => json!({ "all": true }),
            None => json!({ "numbers": self.numbers }),
        };
        body.to_string().into_bytes()
    }
}

/// Does what the command says.
pub(crate) fn run(global: &GlobalArgs, command: DlqCommand) -> ExitCode {
    match command {
        DlqCommand::List { bridge, limit, shown } => client::run(global, &shown.client, async |client| {
            let of_bridge = bridge
                .map_or_else(String::new, |name| format!("&bridge={}", utf8_percent_encode(&name, NON_ALPHANUMERIC)));
            let answer = get(&client, &format!("/v1/dlq?limit={limit}{of_bridge}")).await?;
            print(&answer, shown.output, letters)?;
            match answer["unknown_bridge"].as_str() {
                Some(name) => {
                    Err(Failure::Work(format!("there is no bridge `{name}`, and no dead letter of one of that name")))
                }
                None => Ok(()),
            }
        }),
        DlqCommand::Show { number, shown } => client::run(global, &shown.client, async |client| {
            let answer = get(&client, &format!("/v1/dlq/{number}")).await?;
            print(&answer, shown.output, letter)
        }),
        DlqCommand::Retry { which, client } => client::run(global, &client, async |client| {
            let answer = post(&client, "/v1/dlq/retry", &which).await?;
            done(&which, &answer, number(&answer["retried"]), "on the way again")
        }),
        DlqCommand::Purge { which, client } => client::run(global, &client, async |client| {
            let answer = post(&client, "/v1/dlq/purge", &which).await?;
            done(&which, &answer, number(&answer["purged"]), "thrown away")
        }),
    }
}

async fn post(client: &Client, path: &str, which: &Which) -> Result<Value, Failure> {
    let headers = [("content-type", "application/json")];
    understood(&client.post(path, &headers, which.body().into()).await?)
}

fn told(text: &str) -> Result<(), Failure> {
    Ok(writeln!(anstream::stdout(), "{text}")?)
}

/// Tells how many were done, and fails with what was asked for and not done.
fn done(which: &Which, answer: &Value, count: u64, what: &str) -> Result<(), Failure> {
    let left = left(which, answer, count + number(&answer["under_way"]));
    if count > 0 || left.is_ok() {
        told(&format!("{count} {what}"))?;
    }
    left
}

/// Fails with what was asked for and not done; `found` letters were done, or are being sent again already.
fn left(which: &Which, answer: &Value, found: u64) -> Result<(), Failure> {
    let missing: Vec<String> = list(&answer["missing"]).iter().map(Value::to_string).collect();
    let without_bridge: Vec<&str> = list(&answer["without_bridge"]).iter().map(string).collect();
    let mut left = Vec::new();
    if !missing.is_empty() {
        left.push(format!("there is no dead letter {}; `hookbus dlq list` shows which there are", missing.join(", ")));
    }
    if !without_bridge.is_empty() {
        left.push(format!(
            "those of {} stay: there is no such bridge, or hook; have it there again, or throw them away with `hookbus dlq purge`",
            without_bridge.join(", ")
        ));
    }
    match &which.bridge {
        Some(bridge) if found == 0 && left.is_empty() => left.push(format!("there are no dead letters of `{bridge}`")),
        _ => {}
    }
    if left.is_empty() { Ok(()) } else { Err(Failure::Work(left.join("; "))) }
}

fn letters(answer: &Value) -> String {
    let mut text = String::new();
    let all = list(&answer["letters"]);
    let total = number(&answer["total"]);
    if all.is_empty() {
        return format!("no dead letters{}\n", dropped(answer));
    }
    let rows = all.iter().map(|letter| {
        let cells = vec![
            string(&letter["bridge"]).to_owned(),
            string(&letter["key"]).trim_end().to_owned(),
            number(&letter["number"]).to_string(),
            grouped(number(&letter["attempts"])),
            format!(
                "{}{}",
                string(&letter["reason"]),
                if letter["retrying"] == true { " (it is sent again now)" } else { "" }
            ),
        ];
        (Style::new(), cells)
    });
    table(&["BRIDGE", "KEY", "NUMBER", "ATTEMPTS", "REASON"], 2, rows.collect(), &mut text);
    if (all.len() as u64) < total {
        text.push_str(&format!("\n{} of {}; --limit shows more\n", all.len(), grouped(total)));
    }
    text.push_str(&dropped(answer));
    text
}

/// Letters that are no longer there to be listed.
fn dropped(answer: &Value) -> String {
    match number(&answer["dropped"]) {
        0 => String::new(),
        dropped => format!("\n{} older ones had to go ([limits] dead_letters, dead_letter_bytes)\n", grouped(dropped)),
    }
}

fn letter(letter: &Value) -> String {
    let mut text = String::new();
    for (name, value) in [
        ("number", number(&letter["number"]).to_string()),
        ("bridge", string(&letter["bridge"]).to_owned()),
        ("event", string(&letter["id"]).to_owned()),
        ("died", string(&letter["time"]).to_owned()),
        ("reason", string(&letter["reason"]).to_owned()),
        ("attempts", number(&letter["attempts"]).to_string()),
        ("retries", number(&letter["replays"]).to_string()),
    ] {
        text.push_str(&format!("{name:<10}{value}\n"));
    }
    for key in list(&letter["keys"]) {
        text.push_str(&format!("{:<10}{}\n", "key", string(key)));
    }
    text.push_str(&format!("\n{:#}\n", letter["event"]));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_and_a_letter_are_readable() {
        let one = json!({"number": 7, "bridge": "rabbit", "key": "backup/done ", "attempts": 1, "reason": "too large",
            "id": "0f-7", "time": "2026-11-22T10:00:00.000Z", "keys": ["backup/done "], "event": {"data": "x"}});
        let text = letters(&json!({"total": 2, "dropped": 3, "letters": [one]}));
        let text = anstream::adapter::strip_str(&text).to_string();
        assert!(text.contains("rabbit  backup/done       7         1  too large"), "{text}");
        assert!(text.contains("1 of 2;") && text.contains("3 older ones had to go"), "{text}");
        assert_eq!(letters(&json!({"total": 0, "letters": []})), "no dead letters\n");
        let text = letter(&one);
        assert!(text.contains("reason    too large\n") && text.contains("\"data\": \"x\""), "{text}");
    }
}
