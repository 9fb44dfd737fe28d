//! [`Dirty`]: what has changed in the directory since somebody looked; filled by inotify's thread, which never waits.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{ErrorKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::queue::id_of;

/// Beyond so many changes it is noted instead that all is to be looked at.
const MOST_CHANGES: usize = 50_000;

/// What is to be looked at.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// These jobs.
    pub(super) jobs: BTreeSet<u64>,
    /// All: changes were lost.
    pub(super) all: bool,
    /// The directory itself: it was removed or renamed.
    pub(super) directory: bool,
}

/// What has changed.
#[derive(Debug)]
pub(super) struct Dirty {
    changes: Mutex<Changes>,
    /// Somebody is to look.
    pub(super) news: Notify,
    /// Whether there is something that nobody has looked at.
    behind: watch::Sender<bool>,
}

impl Default for Dirty {
    fn default() -> Self {
        Dirty { changes: Mutex::default(), news: Notify::new(), behind: watch::Sender::new(false) }
    }
}

impl Dirty {
    fn note(&self, what: impl FnOnce(&mut Changes)) {
        let mut changes = self.changes.lock();
        what(&mut changes);
        if changes.jobs.len() > MOST_CHANGES {
            changes.jobs.clear();
            changes.all = true;
        }
        self.behind.send_replace(true);
        drop(changes);
        self.news.notify_one();
    }

    /// These jobs are to be looked at.
    pub(super) fn add(&self, jobs: impl IntoIterator<Item = u64>) {
        self.note(|changes| changes.jobs.extend(jobs));
    }

    /// Takes what is to be looked at.
    pub(super) fn take(&self) -> Changes {
        std::mem::take(&mut *self.changes.lock())
    }

    /// What was taken has been looked at.
    pub(super) fn looked(&self) {
        let changes = self.changes.lock();
        if *changes == Changes::default() {
            self.behind.send_replace(false);
        }
    }

    /// Whether there is something that nobody has looked at.
    pub(super) fn is_behind(&self) -> bool {
        *self.behind.borrow()
    }

    /// Waits until somebody has looked at everything.
    pub(super) async fn all_seen(&self) {
        // The sender is ours: it is there.
        let _ = self.behind.subscribe().wait_for(|behind| !behind).await;
    }

    fn take_event(&self, event: notify::Result<notify::Event>, directory: &Path) {
        let Ok(event) = event else {
            self.note(|changes| changes.directory = true);
            return;
        };
        if event.need_rescan() {
            self.note(|changes| changes.all = true);
            return;
        }
        // Ganeti replaces files by a rename. A file that is written in its place is looked at when it is closed.
        let matters = matches!(
            event.kind,
            EventKind::Modify(ModifyKind::Name(_) | ModifyKind::Metadata(_))
                | EventKind::Access(AccessKind::Close(AccessMode::Write))
                | EventKind::Remove(_)
        );
        if !matters {
            return;
        }
        for path in &event.paths {
            if path == directory {
                if !matches!(event.kind, EventKind::Modify(ModifyKind::Metadata(_))) {
                    self.note(|changes| changes.directory = true);
                }
            } else if let Some(id) = id_of(path) {
                self.add([id]);
            }
        }
    }
}

/// Notes what changes in a directory, until it is dropped.
///
/// # Errors
/// When the system doesn't let it; says what to do.
pub(super) fn follow(directory: &Path, dirty: &Arc<Dirty>) -> Result<RecommendedWatcher, String> {
    let told = |e: notify::Error| {
        let path = directory.display();
        let no_more = match &e.kind {
            ErrorKind::MaxFilesWatch => true,
            ErrorKind::Io(e) => e.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error()),
            _ => false,
        };
        let advice =
            if no_more { "; raise fs.inotify.max_user_watches and max_user_instances with sysctl" } else { "" };
        format!("{path} can't be followed with inotify: {e}{advice}")
    };
    let (own, path) = (Arc::clone(dirty), directory.to_owned());
    let mut watcher = notify::recommended_watcher(move |event| own.take_event(event, &path)).map_err(told)?;
    watcher.watch(directory, RecursiveMode::NonRecursive).map_err(told)?;
    Ok(watcher)
}

#[cfg(test)]
mod tests {
    use notify::event::{CreateKind, Flag, RemoveKind, RenameMode};

    use super::*;

    #[test]
    fn what_matters_is_noted_and_bounded() {
        let dirty = Dirty::default();
        let directory = Path::new("/q");
        let event = |kind: EventKind, path: &str| {
            dirty.take_event(Ok(notify::Event::new(kind).add_path(path.into())), directory);
        };
        event(EventKind::Modify(ModifyKind::Name(RenameMode::To)), "/q/job-7");
        event(EventKind::Modify(ModifyKind::Name(RenameMode::From)), "/q/job-8x.new");
        event(EventKind::Create(CreateKind::File), "/q/job-9");
        event(EventKind::Access(AccessKind::Open(AccessMode::Any)), "/q/job-9");
        assert!(dirty.is_behind());
        assert_eq!(dirty.take(), Changes { jobs: BTreeSet::from([7]), ..Changes::default() });
        dirty.looked();
        assert!(!dirty.is_behind());
        event(EventKind::Modify(ModifyKind::Metadata(notify::event::MetadataKind::Any)), "/q");
        assert_eq!(dirty.take(), Changes::default());
        event(EventKind::Remove(RemoveKind::Folder), "/q");
        assert!(dirty.take().directory);
        // The kernel's queue was full.
        dirty.take_event(Ok(notify::Event::new(EventKind::Other).set_flag(Flag::Rescan)), directory);
        assert!(dirty.take().all);
        dirty.add(0..MOST_CHANGES as u64 + 1);
        dirty.looked();
        assert!(dirty.is_behind(), "nobody has looked at these");
        assert_eq!(dirty.take(), Changes { all: true, ..Changes::default() });
    }
}
