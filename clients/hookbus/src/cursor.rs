//! `hookbus cursor`: where durable subscribers stand in the journal.

use std::io::Write;
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use clap::Subcommand;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use crate::cli::GlobalArgs;
use crate::client::{self, ClientArgs};
use crate::listing::{Output, grouped, list, number, print, string, table};

/// What to do with cursors.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum CursorCommand {
    /// List them; one that nothing in the configuration uses is orphaned
    List {
        /// How it is shown
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Delete one that nothing uses; a bridge of that name would begin with what is published then
    Delete {
        /// Its name in the list
        name: String,
        #[command(flatten)]
        client: ClientArgs,
    },
}

/// Does what the command says.
pub(crate) fn run(global: &GlobalArgs, command: CursorCommand) -> ExitCode {
    match command {
        CursorCommand::List { output, client } => client::run(global, &client, async |client| {
            let answer = client::get(&client, "/v1/cursors").await?;
            print(&answer, output, cursors)
        }),
        CursorCommand::Delete { name, client } => client::run(global, &client, async |client| {
            client.delete(&format!("/v1/cursors/{}", utf8_percent_encode(&name, NON_ALPHANUMERIC))).await?;
            Ok(writeln!(anstream::stdout(), "deleted")?)
        }),
    }
}

const ORPHANED: Style = AnsiColor::Yellow.on_default();

fn cursors(answer: &Value) -> String {
    let all = list(&answer["cursors"]);
    if all.is_empty() {
        return "no cursors\n".into();
    }
    let rows = all.iter().map(|cursor| {
        let orphaned = cursor["in_use"] == false;
        let cells = vec![
            string(&cursor["name"]).to_owned(),
            number(&cursor["position"]).to_string(),
            grouped(number(&cursor["lag"])),
            if orphaned { "orphaned: nothing in the configuration uses it" } else { "in use" }.to_owned(),
        ];
        (if orphaned { ORPHANED } else { Style::new() }, cells)
    });
    let mut text = String::new();
    table(&["CURSOR", "POSITION", "BEHIND", ""], 1, rows.collect(), &mut text);
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_orphan_stands_out() {
        let text = cursors(&json!({"cursors": [
            {"name": "nats", "position": 1200, "lag": 1000, "in_use": true},
            {"name": "gone", "position": 3, "lag": 2197, "in_use": false}]}));
        let text = anstream::adapter::strip_str(&text).to_string();
        assert!(text.contains("nats        1200   1,000  in use"), "{text}");
        assert!(text.contains("gone           3   2,197  orphaned"), "{text}");
    }
}
