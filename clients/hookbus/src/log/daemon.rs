//! The log of a daemon: `hookbus serve` and `hookbus hm`. That of `hm` has two readers.
//!
//! - **oned**, where there is one, gets errors and warnings, and the few good news with the target [`ONED`], as `LOG` lines on
//!   standard output: on changes, at most ten a minute of a kind, with a count of what was held back ([`Limiter`]).
//! - **The log file**, or standard error, gets the rest at the configured level, and the lines above as well, so that one file
//!   tells the whole story. oned closes standard error, so for `hm` without a file that is nothing.
//!
//! Both are queues with a thread of their own ([`Writer`]): logging never waits. What a full queue refuses is counted and told
//! with the next line that fits.
//!
//! The log exists before the configuration has been read. Until [`configured`](DaemonLog::configured) says where the file is, its
//! lines wait, as many as fit.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Instant;

use hookbus_bridges::opennebula::{Level as OnedLevel, log_line};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tracing::callsite::Identifier;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::Registry;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, reload};

use super::limiter::Limiter;
use super::{Format, ONED, filter, line, text_of};
use crate::config::LogConfig;
use crate::writer::{Descriptor, Writer};

/// What the file's queue holds at most.
const FILE_QUEUE_BYTES: usize = 256 << 10;

/// The log of a daemon. Clones are handles to the same one.
#[derive(Clone)]
pub(crate) struct DaemonLog {
    shared: Arc<Shared>,
    filter: reload::Handle<EnvFilter, Registry>,
}

struct Shared {
    oned: Option<Writer>,
    file: Mutex<File>,
    format: Format,
    limiter: Mutex<Limiter<Kind>>,
    /// Something was held back, so there will be a count to tell.
    held_back: Notify,
    started: Instant,
}

/// The place in the code that logs, and its level.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Kind {
    place: Identifier,
    level: Level,
}

enum File {
    /// Where to is not known yet.
    Waiting {
        lines: Vec<String>,
        bytes: usize,
    },
    Open(Writer),
    /// There is none.
    None,
}

impl std::fmt::Debug for DaemonLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DaemonLog").finish_non_exhaustive()
    }
}

impl DaemonLog {
    /// Sets up the process's log. `oned` is standard output, for `hm`.
    pub(crate) fn start(oned: Option<Writer>, format: Format, started: Instant) -> Self {
        let shared = Arc::new(Shared {
            oned,
            file: Mutex::new(File::Waiting { lines: Vec::new(), bytes: 0 }),
            format,
            limiter: Mutex::new(Limiter::new()),
            held_back: Notify::new(),
            started,
        });
        let (filter, handle) = reload::Layer::new(filter("info"));
        // It fails only where a log is set up already.
        let _ = tracing_subscriber::registry().with(filter).with(ToReaders(Arc::clone(&shared))).try_init();
        DaemonLog { shared, filter: handle }
    }

    /// Says where the log file is and how much is logged. What waited goes there. Called again, it opens the file again, which
    /// somebody may have renamed.
    pub(crate) fn configured(&self, config: &LogConfig) {
        if let Err(e) = self.filter.reload(filter(config.level.directive())) {
            tracing::warn!("log: cannot set the level: {e}");
        }
        let writer = match &config.file {
            Some(path) => match OpenOptions::new().append(true).create(true).open(path) {
                Ok(file) => Some(Writer::new("log", LogFile { file, lost: 0 }, FILE_QUEUE_BYTES)),
                Err(e) => {
                    tracing::error!("log: cannot write {}: {e}; check [log] file and its owner", path.display());
                    None
                }
            },
            None if stderr_is_read() => Some(Writer::new("log", Descriptor(rustix::stdio::stderr()), FILE_QUEUE_BYTES)),
            None => None,
        };
        let mut file = self.shared.file.lock();
        let waiting = std::mem::replace(&mut *file, writer.map_or(File::None, File::Open));
        if let (File::Open(writer), File::Waiting { lines, .. }) = (&*file, waiting) {
            for line in lines {
                let _ = writer.offer(line);
            }
        }
    }

    /// Tells what was held back, each time a minute is over. Runs for ever; costs nothing while nothing is held back.
    pub(crate) async fn tell_held_back(self) {
        loop {
            self.shared.held_back.notified().await;
            tokio::time::sleep(std::time::Duration::from_secs(60)).await;
            let due = self.shared.limiter.lock().due(self.shared.started.elapsed());
            self.shared.tell(due);
        }
    }

    /// Tells what was held back so far and waits until the log file has everything; standard output is drained by its
    /// owner.
    pub(crate) async fn finish(&self) {
        let rest = self.shared.limiter.lock().rest();
        self.shared.tell(rest);
        let file = match &*self.shared.file.lock() {
            File::Open(writer) => writer.clone(),
            _ => return,
        };
        file.drained().await;
    }
}

/// The file, which may be on a disk that is full for a while: what it doesn't take is lost and counted, and the next line is
/// tried again.
struct LogFile<F> {
    file: F,
    lost: u64,
}

impl<F: Write> Write for LogFile<F> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.lost > 0 {
            // It begins with a newline because a part of a line may have been written.
            let text = format!("\nlog: {} lines could not be written here\n", self.lost);
            if self.file.write_all(text.as_bytes()).is_ok() {
                self.lost = 0;
            }
        }
        if self.file.write_all(line).is_err() {
            self.lost += 1;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Standard error, unless it is closed or `/dev/null`, as oned has it: a thread for that would be wasted.
fn stderr_is_read() -> bool {
    let null = rustix::fs::stat("/dev/null").map(|null| null.st_rdev);
    match (rustix::fs::fstat(rustix::stdio::stderr()), null) {
        (Ok(stderr), Ok(null)) => stderr.st_rdev != null,
        (Ok(_), Err(_)) => true,
        (Err(_), _) => false,
    }
}

struct ToReaders(Arc<Shared>);

impl<S: Subscriber> Layer<S> for ToReaders {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let level = *metadata.level();
        let text = text_of(event);
        if self.0.oned.is_none() || (level > Level::WARN && metadata.target() != ONED) {
            self.0.to_file(level, metadata.target(), &text);
            return;
        }
        let kind = Kind { place: metadata.callsite(), level };
        let now = self.0.started.elapsed();
        let mut limiter = self.0.limiter.lock();
        let due = limiter.due(now);
        let admitted = limiter.admit(kind, &text, now);
        drop(limiter);
        self.0.tell(due);
        if admitted {
            self.0.to_both(level, metadata.target(), &text);
        } else {
            self.0.held_back.notify_one();
        }
    }
}

impl Shared {
    fn tell(&self, held_back: Vec<super::limiter::HeldBack<Kind>>) {
        for counted in held_back {
            let text = format!("{} more like this in the last minute: {}", counted.count, counted.last);
            self.to_both(counted.kind.level, "hookbus::log", &text);
        }
    }

    fn to_both(&self, level: Level, target: &str, text: &str) {
        let refused = self.oned.as_ref().map_or(0, Writer::take_refused);
        if refused > 0 {
            // Nobody reads standard output fast enough; say so with the first line that fits.
            self.to_oned(Level::WARN, &format!("log: {refused} lines were dropped because oned did not read them"));
        }
        self.to_oned(level, text);
        self.to_file(level, target, text);
    }

    fn to_oned(&self, level: Level, text: &str) {
        let Some(oned) = &self.oned else { return };
        let level = match level {
            Level::ERROR => OnedLevel::Error,
            Level::WARN => OnedLevel::Warning,
            Level::INFO => OnedLevel::Info,
            _ => OnedLevel::Debug,
        };
        // A refusal is counted, and told above.
        let _ = oned.offer(log_line(level, text));
    }

    fn to_file(&self, level: Level, target: &str, text: &str) {
        match &mut *self.file.lock() {
            File::None => {}
            File::Waiting { lines, bytes } => {
                let line = line(self.format, level, target, text);
                // That is a moment at the start; what doesn't fit is debug output that nobody will miss.
                if *bytes + line.len() <= FILE_QUEUE_BYTES {
                    *bytes += line.len();
                    lines.push(line);
                }
            }
            File::Open(writer) => {
                let refused = writer.take_refused();
                if refused > 0 {
                    let text =
                        format!("log: {refused} lines were dropped because the file could not be written in time");
                    let _ = writer.offer(line(self.format, Level::WARN, "hookbus::log", &text));
                }
                let _ = writer.offer(line(self.format, level, target, text));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk that is full while a test says so.
    #[derive(Default)]
    struct Disk {
        full: bool,
        text: Vec<u8>,
    }

    impl Write for &mut Disk {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            if self.full {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.text.extend_from_slice(text);
            Ok(text.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_costs_the_lines_of_that_time_and_they_are_counted() {
        let mut disk = Disk::default();
        let mut lost = 0;
        for (full, line) in [(false, "a\n"), (true, "b\n"), (true, "c\n"), (false, "d\n"), (false, "e\n")] {
            disk.full = full;
            let mut file = LogFile { file: &mut disk, lost };
            file.write_all(line.as_bytes()).unwrap();
            lost = file.lost;
        }
        assert_eq!(String::from_utf8(disk.text).unwrap(), "a\n\nlog: 2 lines could not be written here\nd\ne\n");
    }
}
