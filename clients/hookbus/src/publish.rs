//! `hookbus publish`: an event by hand.

use std::io::{self, IsTerminal, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use hookbus_bridges::http::Client;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde_json::Value;

use crate::cli::GlobalArgs;
use crate::client::{self, ClientArgs, Failure};

/// What an attribute's value may not have in an HTTP header (CloudEvents, HTTP binding, 3.1.3.2).
const HEADER: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

/// What to publish.
#[derive(Clone, Debug, Args)]
pub(crate) struct PublishArgs {
    /// What subscribers' prefixes are compared with, such as "backup/nightly/done"; not beginning with "EVENT ", "RETRY" or "HOOKBUS "
    key: String,
    /// What the event holds; - is standard input [default: standard input if that is a pipe or a file, else nothing]
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// The kind of content [default: application/json or text/plain if it is that, else application/octet-stream]
    #[arg(long, value_name = "MEDIA_TYPE")]
    content_type: Option<String>,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

/// Publishes and prints the event's id.
pub(crate) fn run(global: &GlobalArgs, args: &PublishArgs) -> ExitCode {
    client::run(global, &args.client, async |client| publish(&client, args).await)
}

async fn publish(client: &Client, args: &PublishArgs) -> Result<(), Failure> {
    let content = content(args)?;
    let content_type = args.content_type.as_deref().unwrap_or_else(|| media_type(&content));
    let key = utf8_percent_encode(&args.key, HEADER).to_string();
    let mut headers = vec![("ce-hookbuskey", key.as_str())];
    if !content.is_empty() {
        headers.push(("content-type", content_type));
    }
    let answer = client.post("/v1/events", &headers, content.into()).await?;
    let answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
    writeln!(io::stdout(), "{}", answer["id"].as_str().unwrap_or("published"))?;
    Ok(())
}

fn content(args: &PublishArgs) -> Result<Vec<u8>, Failure> {
    let mut content = Vec::new();
    match &args.file {
        Some(path) if path.as_os_str() != "-" => {
            content = std::fs::read(path).map_err(|e| Failure::Work(format!("cannot read {}: {e}", path.display())))?;
        }
        given => {
            if given.is_some() || stdin_has_content() {
                let read = io::stdin().lock().read_to_end(&mut content);
                read.map_err(|e| Failure::Work(format!("cannot read standard input: {e}")))?;
            }
        }
    }
    Ok(content)
}

/// Whether somebody has put something into standard input: a pipe or a file. A terminal isn't asked.
fn stdin_has_content() -> bool {
    use rustix::fs::FileType;

    let stdin = rustix::stdio::stdin();
    !io::stdin().is_terminal()
        && rustix::fs::fstat(stdin)
            .is_ok_and(|stat| matches!(FileType::from_raw_mode(stat.st_mode), FileType::Fifo | FileType::RegularFile))
}

fn media_type(content: &[u8]) -> &'static str {
    if serde_json::from_slice::<serde::de::IgnoredAny>(content).is_ok() {
        "application/json"
    } else if std::str::from_utf8(content).is_ok() {
        "text/plain; charset=utf-8"
    } else {
        "application/octet-stream"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_called_what_it_is() {
        assert_eq!(media_type(b"{\"a\": 1}"), "application/json");
        assert_eq!(media_type("Grüße".as_bytes()), "text/plain; charset=utf-8");
        assert_eq!(media_type(b"\xff\x00"), "application/octet-stream");
    }

    #[test]
    fn a_key_survives_a_header() {
        assert_eq!(utf8_percent_encode("a b\"ü%\n", HEADER).to_string(), "a%20b%22%C3%BC%25%0A");
    }
}
