//! [`Queue`]: the directory in which Ganeti keeps its jobs, and what lies around it. All of it blocks.
//!
//! ```text
//! /var/lib/ganeti/ssconf_cluster_name     what the cluster is called
//!                 ssconf_master_node      which node is its master
//!                 queue/job-4711          a job; replaced by a rename at each change
//!                       serial, lock, version, drain, and files with which a job is going to be replaced: not ours
//!                       archive/0/job-17  a job that was archived: `archive/<number / 10000>`
//! ```

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use hookbus_bridges::ganeti::Job;
use rustix::fs::OFlags;

use super::known::Known;

/// The largest file that is read. Ganeti's largest jobs have some hundred KiB.
const MOST_BYTES: u64 = 16 << 20;
/// So many jobs are looked at, the newest; Ganeti is slow long before.
const MOST_JOBS: usize = 100_000;
/// `JSTORE_JOBS_PER_ARCHIVE_DIRECTORY`
const JOBS_PER_ARCHIVE: u64 = 10_000;
/// The most of a small file.
const SMALL_BYTES: u64 = 4096;

/// The directory.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    pub(super) directory: PathBuf,
}

/// What tells one directory from another of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity(u64, u64);

/// What is in the file of a job.
#[derive(Debug)]
pub(super) enum Seen {
    /// The job, and when the file was written.
    Job(Box<Job>, i64),
    /// The job, which was archived.
    Archived(Box<Job>),
    /// Nothing new: it had ended before, and nobody has written it since.
    Unchanged,
    /// There is no such job, neither here nor in the archive.
    Gone,
    /// It can't be read.
    Bad(String),
}

/// The number of the job whose file has this name.
pub(super) fn id_of(name: &Path) -> Option<u64> {
    let digits = name.file_name()?.to_str()?.strip_prefix("job-")?;
    let is_id = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
    is_id.then(|| digits.parse().ok()).flatten()
}

impl Queue {
    /// Which directory that is.
    ///
    /// # Errors
    /// When there is none; says what to do.
    pub(super) fn identity(&self) -> Result<Identity, String> {
        let metadata = fs::metadata(&self.directory).map_err(|e| self.trouble(&e))?;
        if !metadata.is_dir() {
            return Err(format!("{} is no directory; correct `url` of the source", self.directory.display()));
        }
        Ok(Identity(metadata.dev(), metadata.ino()))
    }

    /// The numbers of all jobs that are there.
    ///
    /// # Errors
    /// When it can't be read; says what to do.
    pub(super) fn jobs(&self) -> Result<Vec<u64>, String> {
        let mut all = ids(&self.directory).map_err(|e| self.trouble(&e))?;
        if all.len() > MOST_JOBS {
            tracing::warn!(
                "ganeti jobs: {} has {} jobs; only the newest {MOST_JOBS} are followed (`gnt-job autoarchive` makes room)",
                self.directory.display(),
                all.len()
            );
            all.sort_unstable();
            all.drain(..all.len() - MOST_JOBS);
        }
        Ok(all)
    }

    /// The number below all jobs that are told of a queue in which these are: what is in the archive up to it had ended before.
    pub(super) fn highest_before(&self, jobs: &[u64]) -> u64 {
        let last_archived = || self.archive_parts().max().and_then(|part| self.archived(part).into_iter().max());
        jobs.iter().min().map(|lowest| lowest.saturating_sub(1)).or_else(last_archived).unwrap_or(0)
    }

    /// The numbers of archived jobs beyond this one.
    pub(super) fn archived_after(&self, highest: u64) -> Vec<u64> {
        let parts = self.archive_parts().filter(|part| *part >= highest / JOBS_PER_ARCHIVE);
        let all = parts.flat_map(|part| self.archived(part));
        all.filter(|id| *id > highest).take(MOST_JOBS).collect()
    }

    /// The directories of the archive; without one there are none.
    fn archive_parts(&self) -> impl Iterator<Item = u64> {
        let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse::<u64>().ok();
        fs::read_dir(self.directory.join("archive")).into_iter().flatten().flatten().filter_map(number)
    }

    /// The jobs in a directory of the archive.
    fn archived(&self, part: u64) -> Vec<u64> {
        ids(&self.directory.join(format!("archive/{part}"))).unwrap_or_default()
    }

    /// What the file of a job says now, of which that is known.
    pub(super) fn read(&self, id: u64, known: Option<Known>, in_archive: bool) -> Seen {
        let name = format!("job-{id}");
        let path = self.directory.join(&name);
        match read_job(&path, id, known) {
            Err(Unreadable::Missing) if in_archive => {
                let path = self.directory.join(format!("archive/{}", id / JOBS_PER_ARCHIVE)).join(name);
                match read_job(&path, id, None) {
                    Ok(Some((job, _))) => Seen::Archived(Box::new(job)),
                    Ok(None) | Err(Unreadable::Missing) => Seen::Gone,
                    Err(Unreadable::Because(why)) => Seen::Bad(why),
                }
            }
            Ok(Some((job, file_time))) => Seen::Job(Box::new(job), file_time),
            Ok(None) => Seen::Unchanged,
            Err(Unreadable::Missing) => Seen::Gone,
            Err(Unreadable::Because(why)) => Seen::Bad(why),
        }
    }

    /// What the cluster is called.
    ///
    /// # Errors
    /// When nobody has said; says what to do.
    pub(super) fn cluster(&self) -> Result<String, String> {
        let path = self.directory.with_file_name("ssconf_cluster_name");
        let text = small(&path).map_err(|e| {
            format!(
                "{} doesn't say what the cluster is called: {e}; write cluster = \"...\" into the source",
                path.display()
            )
        })?;
        match text.trim() {
            "" => Err(format!("{} is empty; write cluster = \"...\" into the source", path.display())),
            name => Ok(name.to_owned()),
        }
    }

    /// The cluster's master, where Ganeti says so.
    pub(super) fn master(&self) -> Option<String> {
        let text = small(&self.directory.with_file_name("ssconf_master_node")).ok()?;
        Some(text.trim().to_owned()).filter(|name| !name.is_empty())
    }

    fn trouble(&self, error: &io::Error) -> String {
        let path = self.directory.display();
        match error.kind() {
            io::ErrorKind::NotFound => {
                format!("{path} doesn't exist; it is there on a master and on master candidates of a cluster")
            }
            io::ErrorKind::PermissionDenied => format!(
                "{path} can't be read: {error}; it belongs to Ganeti: make the user that hookbus runs as a member of its group (gnt-daemons)"
            ),
            _ => format!("{path} can't be read: {error}"),
        }
    }
}

enum Unreadable {
    Missing,
    Because(String),
}

/// The job in a file, and when that was written; nothing where it is known as it is.
fn read_job(path: &Path, id: u64, known: Option<Known>) -> Result<Option<(Job, i64)>, Unreadable> {
    let because = |why: String| Unreadable::Because(format!("{}: {why}", path.display()));
    let (file, metadata) = open(path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => Unreadable::Missing,
        _ => because(e.to_string()),
    })?;
    if !metadata.is_file() {
        return Err(because("it is no file".into()));
    }
    let file_time = metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec());
    if known.is_some_and(|known| known.told.is_final() && known.file_time == file_time) {
        return Ok(None);
    }
    let mut content = Vec::with_capacity(metadata.len().min(MOST_BYTES) as usize);
    file.take(MOST_BYTES + 1).read_to_end(&mut content).map_err(|e| because(e.to_string()))?;
    if content.len() as u64 > MOST_BYTES {
        return Err(because(format!("it is larger than {} MiB", MOST_BYTES >> 20)));
    }
    let job = Job::parse(&content).map_err(|e| because(e.to_string()))?;
    if job.id != id {
        return Err(because(format!("it says that it is job {}", job.id)));
    }
    Ok(Some((job, file_time)))
}

/// Opens a file; a pipe of that name doesn't make it wait.
fn open(path: &Path) -> io::Result<(File, Metadata)> {
    let flags = (OFlags::NONBLOCK | OFlags::NOFOLLOW).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    Ok((file, metadata))
}

fn small(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(SMALL_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

fn ids(directory: &Path) -> io::Result<Vec<u64>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory)? {
        all.extend(id_of(Path::new(&entry?.file_name())));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: &str = r#"{"id": 7, "ops": [{"input": {"OP_ID": "OP_X"}, "status": "success"}]}"#;

    #[test]
    fn only_files_of_jobs_are() {
        for (name, expected) in [
            ("job-0", Some(0)),
            ("/q/job-4711", Some(4711)),
            ("job-", None),
            ("job-+1", None),
            ("job-4711abc123.new", None),
            ("job-471112345-0", None),
            ("serial", None),
            ("job-99999999999999999999999", None),
        ] {
            assert_eq!(id_of(Path::new(name)), expected, "{name}");
        }
    }

    #[test]
    fn what_is_no_job_is_told_and_an_archived_one_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let queue = Queue { directory: dir.path().join("queue") };
        assert!(queue.jobs().unwrap_err().contains("doesn't exist"));
        assert!(queue.cluster().unwrap_err().contains("write cluster = "));
        let archive = queue.directory.join("archive/0");
        fs::create_dir_all(&archive).unwrap();
        let bad = |id: u64, expected: &str| match queue.read(id, None, true) {
            Seen::Bad(why) => assert!(why.contains(expected), "{why}"),
            other => panic!("{other:?}"),
        };
        let write = |name: &str, content: &str| fs::write(queue.directory.join(name), content).unwrap();
        write("job-1", JOB);
        bad(1, "it says that it is job 7");
        write("job-2", &JOB[..20]);
        bad(2, "no job of Ganeti 3.0's format");
        fs::create_dir(queue.directory.join("job-3")).unwrap();
        bad(3, "no file");
        rustix::fs::mkfifoat(rustix::fs::CWD, queue.directory.join("job-4"), rustix::fs::Mode::RUSR).unwrap();
        bad(4, "no file");
        File::create(queue.directory.join("job-5")).unwrap().set_len(MOST_BYTES + 1).unwrap();
        bad(5, "larger than 16 MiB");
        write("serial", "7");
        assert!(matches!(queue.read(7, None, true), Seen::Gone));
        write("job-7", JOB);
        let Seen::Job(job, file_time) = queue.read(7, None, true) else { panic!() };
        let known = Known { received: job.received, told: job.status(), file_time };
        assert!(matches!(queue.read(7, Some(known), true), Seen::Unchanged));
        assert!(matches!(queue.read(7, Some(Known { file_time: 1, ..known }), true), Seen::Job(..)));
        let mut all = queue.jobs().unwrap();
        all.sort_unstable();
        assert_eq!(all, [1, 2, 3, 4, 5, 7]);
        fs::rename(queue.directory.join("job-7"), archive.join("job-7")).unwrap();
        assert!(matches!(queue.read(7, Some(known), true), Seen::Archived(_)));
        assert!(matches!(queue.read(7, Some(known), false), Seen::Gone));
        assert_eq!((queue.archived_after(6), queue.archived_after(7)), (vec![7], vec![]));
        // What a first look tells of begins below the jobs that are there; where there are none, behind the archive.
        assert_eq!((queue.highest_before(&[9, 5, 12]), queue.highest_before(&[0])), (4, 0));
        assert_eq!(queue.highest_before(&[]), 7);
        fs::remove_dir_all(queue.directory.join("archive")).unwrap();
        assert_eq!((queue.highest_before(&[]), queue.archived_after(0)), (0, vec![]));
    }
}
