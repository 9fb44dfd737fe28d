//! What is known of jobs: which of them were told ([`Known`]), and which ran of late ([`Recent`]).

use std::collections::{HashMap, VecDeque};

use hookbus_bridges::ganeti::{Job, JobOp, JobStatus, Report};
use hookbus_broker::Timestamp;

/// Of so many jobs that ended the operations are kept, for hooks that are reported late.
const ENDED_KEPT: usize = 1000;

/// What was told of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    /// When Ganeti took it in; with the number it stands for the job.
    pub(super) received: Option<Timestamp>,
    /// The last status that was told, or counts as told.
    pub(super) told: JobStatus,
    /// When its file was written, in nanoseconds since 1970; only compared.
    pub(super) file_time: i64,
}

/// What is to be done about a job that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// Its status is told.
    Tell,
    /// It counts as told.
    Note,
    /// It was told before.
    Old,
}

/// What is to be done about a job of which that is known, in a queue that is followed since then.
pub(super) fn news(known: Option<&Known>, job: &Job, began: Timestamp) -> News {
    let status = job.status();
    match known.filter(|known| known.received == job.received) {
        Some(known) if status.follows(known.told) => News::Tell,
        Some(_) => News::Old,
        // Jobs that had ended before anybody followed the queue are history.
        None if status.is_final() && job.ended.is_some_and(|ended| ended < began) => News::Note,
        None => News::Tell,
    }
}

/// The operations that run, and those that ran of late.
#[derive(Debug, Default)]
pub(super) struct Recent {
    cluster: String,
    jobs: HashMap<u64, Vec<JobOp>>,
    ended: VecDeque<u64>,
    running: usize,
}

impl Recent {
    /// They are of this cluster.
    pub(super) fn set_cluster(&mut self, cluster: &str) {
        cluster.clone_into(&mut self.cluster);
    }

    /// Takes in how far a job is.
    pub(super) fn take(&mut self, job: &Job) {
        let was_running = self.jobs.contains_key(&job.id) && !self.ended.contains(&job.id);
        self.running -= usize::from(was_running);
        let mut ops: Vec<_> = job.ops.iter().filter(|op| op.started.is_some()).cloned().collect();
        ops.iter_mut().for_each(|op| op.error = None);
        if ops.is_empty() {
            self.jobs.remove(&job.id);
            return;
        }
        self.jobs.insert(job.id, ops);
        if !job.status().is_final() {
            self.ended.retain(|id| *id != job.id);
            self.running += 1;
            return;
        }
        if !self.ended.contains(&job.id) {
            self.ended.push_back(job.id);
        }
        if self.ended.len() > ENDED_KEPT
            && let Some(oldest) = self.ended.pop_front()
        {
            self.jobs.remove(&oldest);
        }
    }

    /// A job has vanished before it had ended.
    pub(super) fn forget(&mut self, id: u64) {
        if !self.ended.contains(&id) && self.jobs.remove(&id).is_some() {
            self.running -= 1;
        }
    }

    /// How many run.
    pub(super) fn running(&self) -> usize {
        self.running
    }

    /// Whether a report is of this cluster.
    pub(super) fn concerns(&self, report: &Report) -> bool {
        !self.cluster.is_empty() && report.run.cluster() == self.cluster
    }

    /// The one job that the hook of a report ran for; nothing where there is none, or more than one.
    pub(super) fn job_of(&self, report: &Report) -> Option<u64> {
        let ran = |ops: &[JobOp]| ops.iter().any(|op| op.may_have_run(&report.run, report.time));
        let mut all = self.jobs.iter().filter(|(_, ops)| ran(ops)).map(|(id, _)| *id);
        all.next().filter(|_| all.next().is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A job of one operation; times in seconds.
    fn job(id: u64, op: &str, name: &str, status: &str, began: u64, ended: Option<u64>) -> Job {
        let stamp = |seconds: Option<u64>| seconds.map(|seconds| [seconds, 0]);
        let text = serde_json::json!({
            "id": id, "received_timestamp": [1, 0], "end_timestamp": stamp(ended),
            "ops": [{ "input": { "OP_ID": op, "instance_name": name }, "status": status,
                      "exec_timestamp": stamp((began > 0).then_some(began)), "end_timestamp": stamp(ended) }],
        });
        Job::parse(text.to_string().as_bytes()).unwrap()
    }

    fn report(op: &str, name: &str, seconds: u64) -> Report {
        let time = hookbus_bridges::cloudevents::rfc3339(Timestamp::from_millis(seconds * 1000));
        let text = serde_json::json!({
            "id": "0".repeat(32), "time": time, "node": "n1",
            "env": { "GANETI_HOOKS_PATH": "x", "GANETI_HOOKS_PHASE": "post", "GANETI_OP_CODE": op, "GANETI_CLUSTER": "c",
                     "GANETI_OBJECT_TYPE": "INSTANCE", "GANETI_OP_TARGET": name },
        });
        Report::parse(text.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn a_hook_has_a_job_when_exactly_one_fits() {
        let mut recent = Recent::default();
        recent.take(&job(1, "OP_A", "web1", "running", 100, None));
        recent.take(&job(2, "OP_A", "web2", "running", 100, None));
        recent.take(&job(3, "OP_A", "web3", "queued", 0, None));
        assert_eq!(recent.running(), 2);
        assert_eq!(recent.job_of(&report("OP_A", "web2", 105)), Some(2));
        assert_eq!(recent.job_of(&report("OP_A", "web3", 105)), None, "it hasn't begun");
        assert_eq!(recent.job_of(&report("OP_B", "web2", 105)), None);
        assert_eq!(recent.job_of(&report("OP_A", "web2", 50)), None, "it hadn't begun then");
        recent.take(&job(4, "OP_A", "web2", "running", 101, None));
        assert_eq!(recent.job_of(&report("OP_A", "web2", 105)), None, "two fit");
        recent.take(&job(2, "OP_A", "web2", "success", 100, Some(103)));
        assert_eq!((recent.running(), recent.job_of(&report("OP_A", "web2", 105))), (2, Some(4)));
        // One that comes out of a spool belongs to what ran then.
        recent.take(&job(4, "OP_A", "web2", "success", 107, Some(110)));
        assert_eq!(recent.job_of(&report("OP_A", "web2", 102)), Some(2));
        recent.set_cluster("c");
        assert!(recent.concerns(&report("OP_A", "web2", 1)));
        recent.set_cluster("d");
        assert!(!recent.concerns(&report("OP_A", "web2", 1)));
    }

    #[test]
    fn what_is_kept_has_bounds() {
        let mut recent = Recent::default();
        recent.take(&job(9999, "OP_A", "web1", "running", 100, None));
        for id in 0..2000 {
            recent.take(&job(id, "OP_A", "web1", "success", 100, Some(101)));
        }
        assert_eq!((recent.jobs.len(), recent.ended.len(), recent.running()), (ENDED_KEPT + 1, ENDED_KEPT, 1));
        recent.forget(9999);
        assert_eq!((recent.jobs.len(), recent.running()), (ENDED_KEPT, 0));
    }

    #[test]
    fn each_status_is_told_once_and_history_is_not() {
        let began = Timestamp::from_millis(200_000);
        let ran = job(1, "OP_A", "web1", "running", 100, None);
        let known = |told| Known { received: ran.received, told, file_time: 0 };
        assert_eq!(news(None, &ran, began), News::Tell);
        assert_eq!(news(Some(&known(JobStatus::Queued)), &ran, began), News::Tell);
        assert_eq!(news(Some(&known(JobStatus::Running)), &ran, began), News::Old);
        let (before, after) =
            (job(1, "OP_A", "web1", "error", 100, Some(199)), job(1, "OP_A", "web1", "error", 100, Some(200)));
        assert_eq!((news(None, &before, began), news(None, &after, began)), (News::Note, News::Tell));
        assert_eq!(news(Some(&known(JobStatus::Running)), &before, began), News::Tell);
        assert_eq!(news(Some(&known(JobStatus::Error)), &before, began), News::Old);
        let other = Known { received: None, ..known(JobStatus::Error) };
        assert_eq!(news(Some(&other), &after, began), News::Tell, "the same number in a new cluster");
    }
}
