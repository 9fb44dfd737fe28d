//! Where the program's own log goes.
//!
//! Everything is logged with `tracing`. Commands write it to standard error ([`to_stderr`]), daemons there or to `[log] file`. `hookbus hm`
//! has another reader, too: oned, whose log is where an administrator looks first ([`DaemonLog`]).

mod daemon;
mod limiter;

use std::fmt::{self, Write as _};

use tracing::field::{Field, Visit};
use tracing::{Event, Level};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer as FormatWriter;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

pub(crate) use daemon::DaemonLog;

/// The target of what goes to oned's log though it is no warning: `tracing::info!(target: log::ONED, ...)`.
pub(crate) const ONED: &str = "hookbus::oned";

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Logs to standard error, `level` and above unless `RUST_LOG` says otherwise.
pub(crate) fn to_stderr(format: Format, level: &str) {
    let builder = tracing_subscriber::fmt().with_env_filter(filter(level)).with_writer(anstream::stderr);
    // It fails only where a log is set up already.
    let _ = match format {
        Format::Text => builder.with_ansi(stderr_has_colour()).try_init(),
        Format::Json => builder.json().try_init(),
    };
}

/// Client libraries tell of every connection that breaks, some with the whole message. The bridges tell what matters of it, once.
const LIBRARIES: &str = ",async_nats=off,lapin=off,rumqttc=off,rustls=off";

/// What `RUST_LOG` lets through, or else what the configured level does.
fn filter(level: &str) -> EnvFilter {
    match std::env::var("RUST_LOG") {
        Ok(directives) if !directives.is_empty() => EnvFilter::builder().parse_lossy(directives),
        _ => EnvFilter::builder().parse_lossy(format!("{level}{LIBRARIES}")),
    }
}

fn stderr_has_colour() -> bool {
    anstream::AutoStream::choice(&std::io::stderr()) != anstream::ColorChoice::Never
}

/// The text of an event: its message, then its fields.
fn text_of(event: &Event<'_>) -> String {
    struct Text {
        message: String,
        fields: String,
    }

    impl Visit for Text {
        fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
            // Writing to a String can't fail.
            let _ = match field.name() {
                "message" => write!(self.message, "{value:?}"),
                name => write!(self.fields, " {name}={value:?}"),
            };
        }

        fn record_str(&mut self, field: &Field, value: &str) {
            match field.name() {
                "message" => self.message.push_str(value),
                _ => self.record_debug(field, &value),
            }
        }
    }

    let mut text = Text { message: String::new(), fields: String::new() };
    event.record(&mut text);
    let Text { mut message, fields } = text;
    if message.is_empty() {
        message.push_str(fields.trim_start());
    } else {
        message.push_str(&fields);
    }
    message
}

/// A line for the log file, with its newline.
fn line(format: Format, level: Level, target: &str, text: &str) -> String {
    let mut time = String::new();
    if SystemTime.format_time(&mut FormatWriter::new(&mut time)).is_err() {
        time.push_str("(no time)");
    }
    match format {
        Format::Text => format!("{time} {level:>5} {target}: {}\n", text.escape_controls()),
        Format::Json => {
            let fields = serde_json::json!({ "message": text });
            let line =
                serde_json::json!({ "timestamp": time, "level": level.as_str(), "fields": fields, "target": target });
            format!("{line}\n")
        }
    }
}

/// Text that may hold anything, on one line of a log.
trait EscapeControls {
    /// Control characters become what Rust would write for them in a string.
    fn escape_controls(&self) -> String;
}

impl EscapeControls for str {
    fn escape_controls(&self) -> String {
        let mut escaped = String::with_capacity(self.len());
        for c in self.chars() {
            if c.is_control() { escaped.extend(c.escape_default()) } else { escaped.push(c) }
        }
        escaped
    }
}
