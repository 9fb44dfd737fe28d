//! The journal of the daemon: opened by the owner of the state directory, and given to the broker.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hookbus_broker::{Broker, Durability, Journal, JournalError, JournalHold, JournalOptions, OpenReport};
use serde_json::{Value, json};

use super::BRIDGE_CURSOR;
use crate::config::{self, JournalConfig};

/// A journal that is attached.
#[derive(Clone, Debug)]
pub(super) struct JournalState {
    path: PathBuf,
    max_bytes: u64,
    durability: config::Durability,
    report: Arc<OpenReport>,
}

impl JournalState {
    /// Opens the journal and gives it to the broker, with what was kept for it. It may take a while: what was written last is checked.
    ///
    /// # Errors
    /// When it can't be opened, or not be written. Then what keeps events for it stays in `held`.
    pub(super) fn open(
        broker: &Broker,
        held: &mut Option<Box<JournalHold>>,
        config: &JournalConfig,
        state_dir: Option<&Path>,
    ) -> Result<Self, String> {
        let path = match (&config.path, state_dir) {
            (Some(path), _) => path.clone(),
            (None, Some(state_dir)) => state_dir.join("journal"),
            (None, None) => {
                return Err("the journal needs a directory: set state_dir, or path below [journal]".into());
            }
        };
        let max_bytes = config.max_bytes.bytes() as u64;
        let mut options = JournalOptions::new(&path).max_bytes(max_bytes).durability(match config.durability {
            config::Durability::Os => Durability::Os,
            config::Durability::Fsync => Durability::Fsync,
        });
        if config.max_age.duration() > std::time::Duration::ZERO {
            options = options.max_age(config.max_age.duration());
        }
        let told = |e: JournalError| e.to_string();
        let journal = Journal::open(options).map_err(told)?;
        let report = Arc::new(journal.report().clone());
        tell(&path, &report);
        match held.take() {
            Some(hold) => hold.attach(journal).map_err(|(error, hold)| {
                *held = hold;
                told(error)
            })?,
            None => broker.attach_journal(journal).map_err(told)?,
        }
        Ok(JournalState { path, max_bytes, durability: config.durability, report })
    }

    /// For listings.
    pub(super) fn status(&self, broker: &Broker, dead_letters: u64) -> Value {
        let Some(journal) = broker.journal() else { return Value::Null };
        let stats = journal.stats();
        let damage: Vec<String> = self
            .report
            .damage
            .iter()
            .map(|damage| {
                format!("{}: {} bytes from {} on were damaged", damage.path.display(), damage.bytes, damage.position)
            })
            .collect();
        let orphans: Vec<String> =
            journal.cursors().into_iter().filter(|cursor| !cursor.in_use).map(|cursor| cursor.name).collect();
        json!({
            "path": self.path,
            "durability": self.durability,
            "bytes": stats.disk_bytes,
            "max_bytes": self.max_bytes,
            "segments": stats.segments,
            "first": stats.first,
            "last": stats.next.saturating_sub(1),
            "written": stats.messages,
            "written_bytes": stats.bytes,
            "gaps": stats.gaps,
            "damage": damage,
            "failing": stats.failing,
            "orphans": orphans,
            "dead_letters": dead_letters,
        })
    }
}

/// All cursors, for listings. Those of bridges go by the bridge's name.
pub(super) fn cursors(broker: &Broker) -> Value {
    let all = broker.journal().map(|journal| journal.cursors()).unwrap_or_default();
    let all: Vec<Value> = all
        .iter()
        .map(|cursor| {
            json!({
                "name": cursor.name,
                "bridge": cursor.name.strip_prefix(BRIDGE_CURSOR),
                "position": cursor.position.get(),
                "lag": cursor.lag.messages,
                "in_use": cursor.in_use,
            })
        })
        .collect();
    json!({ "cursors": all })
}

/// What was found when it was opened, where that is worth a line.
fn tell(path: &Path, report: &OpenReport) {
    let path = path.display();
    if report.created {
        tracing::info!("journal: {path} is new");
    } else if report.clean {
        tracing::info!("journal: {path} is open");
    } else if report.torn_bytes == 0 {
        tracing::info!("journal: {path} is open; it was not closed in order, but nothing in it is cut short");
    } else {
        tracing::info!(
            "journal: {path} was not closed in order; {} bytes at its end had not been written in full, none of them acknowledged",
            report.torn_bytes
        );
    }
    for damage in &report.damage {
        tracing::error!(
            "journal: {}: {} bytes from {} on are damaged and can't be read; what was there is told to bridges as a gap",
            damage.path.display(),
            damage.bytes,
            damage.position
        );
    }
}
