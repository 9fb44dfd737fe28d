//! Dead letters: what has failed for the last time (RETRIES), kept until somebody has looked at it.
//!
//! oned keeps the last executions of each hook only, so a failure may be gone from there before anybody comes. Here each is a file of its own,
//! `dead-letters/<time>-hook-<id>.json` in the state directory: the result as it is told on a bus, with the whole arguments, the host and the environment.
//! `onehook retry` runs it again for as long as oned has the record; who has dealt with one removes its file.
//!
//! A letter is in its place before its attempt counts as made, so a process that is killed loses none, and may leave one twice. It is not flushed: a loss of power
//! may take the last ones. At most [`MOST`] are kept; then the oldest go, which is told. A letter that can't be written is told, and holds up nothing.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use hookbus_hem::Record;
use serde_json::Value;

/// How many are kept.
const MOST: usize = 10_000;

/// The directory of letters.
#[derive(Clone, Debug)]
pub(super) struct DeadLetters(PathBuf);

impl DeadLetters {
    /// Below this state directory.
    pub(super) fn in_directory(state_dir: &Path) -> Self {
        DeadLetters(state_dir.join("dead-letters"))
    }

    /// Keeps what is known of this last attempt; tells where.
    pub(super) fn add(&self, hook: i64, record: &Record) {
        match self.write(hook, record) {
            Ok(path) => tracing::error!("hook {hook}: what it failed for is kept in {}", path.display()),
            Err(e) => tracing::error!("hook {hook}: a dead letter can't be written below {}: {e}", self.0.display()),
        }
    }

    fn write(&self, hook: i64, record: &Record) -> io::Result<PathBuf> {
        fs::create_dir_all(&self.0)?;
        self.make_room()?;
        let mut letter: Value = serde_json::from_str(&record.to_json()).unwrap_or_default();
        letter["hook_id"] = hook.into();
        letter["arguments"] = record.arguments.as_str().into();
        letter["environment"] = record
            .environment
            .iter()
            .map(|(name, value)| (name.clone().into_owned(), Value::from(value.as_str())))
            .collect();
        // The run's number begins as nanoseconds since 1970, so names are in the order of runs.
        let name = format!("{}-hook-{hook}.json", record.run.0);
        let (path, new) = (self.0.join(&name), self.0.join(format!(".{name}.new")));
        fs::write(&new, format!("{letter:#}\n"))?;
        fs::rename(&new, &path)?;
        Ok(path)
    }

    fn make_room(&self) -> io::Result<()> {
        let names = fs::read_dir(&self.0)?.filter_map(|entry| Some(entry.ok()?.file_name()));
        let mut letters: Vec<_> = names.filter(|name| name.as_encoded_bytes().ends_with(b".json")).collect();
        if letters.len() < MOST {
            return Ok(());
        }
        letters.sort();
        let beyond = letters.len() + 1 - MOST;
        tracing::error!("{MOST} dead letters wait to be looked at; the {beyond} oldest had to go");
        letters.iter().take(beyond).try_for_each(|name| fs::remove_file(self.0.join(name)))
    }
}
