//! The log, in the file and the form of the original's: `Sun Nov 22 19:40:00 2026 [I]: text`.

use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hookbus_hem::oned::DebugLevel;
use jiff::Zoned;
use parking_lot::Mutex;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

/// How lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// As the original writes them.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Where the log goes: a file that can be moved away, or standard error.
#[derive(Clone, Debug)]
pub(crate) struct LogFile {
    path: Option<Arc<Path>>,
    /// Nothing is standard error.
    file: Arc<Mutex<Option<File>>>,
}

impl LogFile {
    /// Opens it. Where that fails, the log goes to standard error, and why is the second value.
    pub(crate) fn open(path: Option<PathBuf>) -> (Self, Option<String>) {
        let opened = path.as_deref().map(open);
        let (file, problem) = match opened {
            Some(Ok(file)) => (Some(file), None),
            Some(Err(e)) => (None, Some(e)),
            None => (None, None),
        };
        (LogFile { path: path.map(Into::into), file: Arc::new(Mutex::new(file)) }, problem)
    }

    /// Opens it anew, after it was moved away. Where that fails the old one stays.
    pub(crate) fn reopen(&self) {
        let Some(path) = &self.path else { return };
        match open(path) {
            Ok(file) => *self.file.lock() = Some(file),
            Err(e) => tracing::error!("{e}"),
        }
    }

    /// Has everything logged that is at least as grave as `level`, or that `RUST_LOG` asks for.
    pub(crate) fn install(&self, format: Format, level: DebugLevel) {
        let level = match level {
            DebugLevel::Error => "error",
            DebugLevel::Warning => "warn",
            DebugLevel::Info => "info",
            DebugLevel::Debug => "debug",
        };
        let filter = match std::env::var("RUST_LOG") {
            Ok(directives) if !directives.is_empty() => EnvFilter::builder().parse_lossy(directives),
            _ => EnvFilter::builder().parse_lossy(format!("{level},rustls=off,hyper=off,hyper_util=off")),
        };
        let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(self.clone()).with_ansi(false);
        // It fails only where a log is set up already.
        let _ = match format {
            Format::Text => builder.event_format(Original).try_init(),
            Format::Json => builder.json().try_init(),
        };
    }
}

fn open(path: &Path) -> Result<File, String> {
    let file = OpenOptions::new().append(true).create(true).open(path);
    file.map_err(|e| format!("cannot write the log {}: {e}", path.display()))
}

impl<'a> MakeWriter<'a> for LogFile {
    type Writer = LogFile;

    fn make_writer(&'a self) -> LogFile {
        self.clone()
    }
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut *self.file.lock() {
            Some(file) => file.write(bytes),
            None => io::stderr().write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The form of OpenNebula's logs.
struct Original;

impl<S, N> FormatEvent<S, N> for Original
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let letter = match *event.metadata().level() {
            Level::ERROR => 'E',
            Level::WARN => 'W',
            Level::INFO => 'I',
            Level::DEBUG | Level::TRACE => 'D',
        };
        let mut text = Text::default();
        event.record(&mut text);
        writeln!(writer, "{} [{letter}]: {}{}", Zoned::now().strftime("%a %b %d %T %Y"), text.message, text.fields)
    }
}

/// The message of an event, and its fields behind it.
#[derive(Default)]
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
}
