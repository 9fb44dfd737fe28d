//! [`Operations`]: which report tells of which operation.
//!
//! An operation runs its hook on several nodes, and each may report it. All have the same environment, and so has the same operation done
//! again: `start`, `stop`, `start` of one instance is twice the same `instance-start`. So it is counted. Within a window, the k-th report of an
//! environment by one node belongs to the k-th operation with that environment:
//!
//! ```text
//! n1   start₁ ──── stop₁ ──── start₂           start₁, stop₁, start₂ are new
//! n2      start₁ ── stop₁ ───────── start₂     and known already
//! n3                          start₁           missed the first: counted as it, known
//! ```
//!
//! An operation's window begins with its first report; a report that is further from it in time than the window begins another one.
//! The times are those at which hooks ran, so a report that was spooled on its node finds its operation hours later.
//!
//! # What may be lost or repeated
//!
//! A node that misses an operation is one behind in its counting until the window is over. So an operation is missed where the only node that reports it
//! has missed one with the same environment within the window before, which another node has reported. And one is told twice where the clocks of two nodes
//! are further apart than the window, or one of its reports comes after it was forgotten.
//!
//! # Bounds
//!
//! A report is remembered for [`MEMORY`] at least, and longer as long as there are fewer than 10,000; beyond 200,000 the oldest is
//! forgotten.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use hookbus_broker::{Offset, Timestamp};

use super::report::{Report, ReportId};

/// How long a report is remembered at least.
pub const MEMORY: Duration = Duration::from_secs(3600);
/// So many are remembered for longer.
const KEPT: usize = 10_000;
/// More than these never are.
const MOST: usize = 200_000;

/// What a report is, compared with those that came before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// It tells of an operation that nobody has told of.
    New,
    /// It tells of the operation whose event has that offset.
    Known(Offset),
    /// It was here before, and told of the operation whose event has that offset.
    Repeated(Offset),
}

/// What is remembered of a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// Its id.
    pub id: ReportId,
    /// Its environment.
    pub digest: [u8; 32],
    /// Its node.
    pub node: Box<str>,
    /// When the hook ran.
    pub time: Timestamp,
    /// When it came here.
    pub came: Timestamp,
    /// The event of the operation that it tells of.
    pub offset: Offset,
}

impl Remembered {
    /// What is remembered of this one, which tells of the operation with that event.
    pub fn of(report: &Report, offset: Offset, came: Timestamp) -> Self {
        let (digest, node) = (report.run.digest(), report.node().into());
        Remembered { id: report.id, digest, node, time: report.time, came, offset }
    }
}

/// The operations that are known, and the reports of them.
#[derive(Debug)]
pub struct Operations {
    window: Duration,
    reports: HashMap<ReportId, Offset>,
    /// In the order in which they came.
    order: VecDeque<Remembered>,
    /// Of each environment the operations, in the order of their first reports.
    operations: HashMap<[u8; 32], Vec<Operation>>,
}

#[derive(Debug)]
struct Operation {
    /// The time of the first report.
    began: Timestamp,
    offset: Offset,
    nodes: HashSet<Box<str>>,
}

impl Operations {
    /// None are known. `window` is how far apart the reports of one operation may be.
    pub fn new(window: Duration) -> Self {
        Operations { window, reports: HashMap::new(), order: VecDeque::new(), operations: HashMap::new() }
    }

    /// What this report is. It is not remembered.
    pub fn look(&self, report: &Report) -> Look {
        if let Some(&offset) = self.reports.get(&report.id) {
            return Look::Repeated(offset);
        }
        let known = self.operations.get(&report.run.digest());
        let known = known.and_then(|all| all.iter().find(|known| self.may_be(known, report.time, report.node())));
        known.map_or(Look::New, |known| Look::Known(known.offset))
    }

    /// Whether a report of that node may be of this operation.
    fn may_be(&self, operation: &Operation, time: Timestamp, node: &str) -> bool {
        let apart = time.as_millis().abs_diff(operation.began.as_millis());
        u128::from(apart) <= self.window.as_millis() && !operation.nodes.contains(node)
    }

    /// Remembers a report; says which ones are forgotten for it, the oldest first.
    pub fn remember(&mut self, report: Remembered) -> Vec<ReportId> {
        if self.reports.insert(report.id, report.offset).is_some() {
            return Vec::new();
        }
        let all = self.operations.entry(report.digest).or_default();
        match all.iter_mut().find(|known| known.offset == report.offset) {
            Some(known) => drop(known.nodes.insert(report.node.clone())),
            None => {
                let nodes = HashSet::from([report.node.clone()]);
                let at = all.partition_point(|known| known.began <= report.time);
                all.insert(at, Operation { began: report.time, offset: report.offset, nodes });
            }
        }
        let now = report.came;
        self.order.push_back(report);
        let mut forgotten = Vec::new();
        while let Some(oldest) = self.order.front() {
            let old = now.as_millis().saturating_sub(oldest.came.as_millis()) > MEMORY.as_millis() as u64;
            if !(old && self.order.len() > KEPT || self.order.len() > MOST) {
                break;
            }
            forgotten.extend(self.forget_oldest());
        }
        forgotten
    }

    fn forget_oldest(&mut self) -> Option<ReportId> {
        let Remembered { id, digest, node, offset, .. } = self.order.pop_front()?;
        self.reports.remove(&id);
        if let Some(all) = self.operations.get_mut(&digest) {
            for known in all.iter_mut().filter(|known| known.offset == offset) {
                known.nodes.remove(&node);
            }
            all.retain(|known| !known.nodes.is_empty());
            if all.is_empty() {
                self.operations.remove(&digest);
            }
        }
        Some(id)
    }

    /// How many reports are remembered.
    pub fn len(&self) -> usize {
        self.reports.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.reports.is_empty()
    }

    /// The offset of the newest event that is known, of those up to this one.
    pub fn last_offset_up_to(&self, most: Offset) -> Option<Offset> {
        self.reports.values().filter(|offset| **offset <= most).max().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cluster that reports; an event is published for each operation that is new.
    struct Cluster {
        known: Operations,
        next: u128,
        published: u64,
    }

    impl Cluster {
        fn new() -> Self {
            Cluster { known: Operations::new(Duration::from_secs(60)), next: 0, published: 0 }
        }

        fn of(&mut self, cluster: &str, op: &str, node: &str, second: u64) -> Report {
            self.next += 1;
            let env = format!(
                r#"{{"GANETI_HOOKS_PATH":"{op}","GANETI_HOOKS_PHASE":"post","GANETI_CLUSTER":"{cluster}","PATH":"{node}"}}"#
            );
            let time = crate::cloudevents::rfc3339(Timestamp::from_millis(second * 1000));
            let json = format!(r#"{{"id":"{:032x}","time":"{time}","node":"{node}","env":{env}}}"#, self.next);
            Report::parse(json.as_bytes()).unwrap()
        }

        /// Takes a report in; says whether it is a new operation.
        fn take(&mut self, report: &Report, came: u64) -> bool {
            let look = self.known.look(report);
            let offset = match look {
                Look::Repeated(_) => return false,
                Look::Known(offset) => offset,
                Look::New => {
                    self.published += 1;
                    Offset::new(self.published)
                }
            };
            self.known.remember(Remembered::of(report, offset, Timestamp::from_millis(came * 1000)));
            look == Look::New
        }

        fn tell(&mut self, op: &str, node: &str, second: u64) -> bool {
            let report = self.of("c", op, node, second);
            self.take(&report, second)
        }
    }

    #[test]
    fn start_stop_start_are_three_operations_on_any_number_of_nodes() {
        let mut c = Cluster::new();
        for (second, op) in [(0, "start"), (5, "stop"), (10, "start")] {
            assert!(c.tell(op, "n1", second), "{op} at {second}");
            assert!(!c.tell(op, "n2", second) && !c.tell(op, "n3", second + 1), "{op} at {second}");
        }
        // The nodes may be in any order, and one may be behind with all of them.
        let mut c = Cluster::new();
        assert!(c.tell("start", "n2", 0) && c.tell("start", "n2", 10) && c.tell("start", "n1", 75));
        assert!(!c.tell("start", "n1", 0) && !c.tell("start", "n3", 0) && !c.tell("start", "n3", 10));
        assert_eq!(c.published, 3);
    }

    #[test]
    fn a_node_that_missed_one_hides_none_that_another_reports() {
        let mut c = Cluster::new();
        assert!(c.tell("start", "n1", 0));
        assert!(!c.tell("start", "n2", 30), "counted as the first, which it missed");
        assert!(c.tell("start", "n1", 30));
        // When the window is over, it counts right again.
        assert!(c.tell("start", "n2", 100) && !c.tell("start", "n1", 100));
    }

    #[test]
    fn late_nodes_find_their_operation() {
        let mut c = Cluster::new();
        assert!(c.tell("start", "n1", 0) && !c.tell("start", "n2", 59));
        let spooled = c.of("c", "start", "n3", 2);
        assert!(!c.take(&spooled, 3000), "it ran then, and comes an hour later");
        assert!(c.tell("start", "n4", 61), "further away than the window");
    }

    #[test]
    fn a_report_that_comes_twice_is_known() {
        let mut c = Cluster::new();
        let report = c.of("c", "start", "n1", 0);
        assert!(c.take(&report, 0));
        assert_eq!(c.known.look(&report), Look::Repeated(Offset::new(1)));
        assert!(!c.take(&report, 3599));
        assert!(c.tell("start", "n1", 1), "another one of that node is another operation");
    }

    #[test]
    fn clusters_are_told_apart() {
        let mut c = Cluster::new();
        let (a, b) = (c.of("a", "start", "n1", 0), c.of("b", "start", "n1", 0));
        assert!(c.take(&a, 0) && c.take(&b, 0));
    }

    #[test]
    fn memory_has_bounds() {
        let mut c = Cluster::new();
        let first = c.of("c", "start", "n1", 0);
        c.take(&first, 0);
        for n in 0..KEPT as u64 {
            c.tell(&format!("op{n}"), "n1", 1);
        }
        assert_eq!(c.known.len(), KEPT + 1, "within the hour all stay");
        let late = c.of("c", "stop", "n1", 3602);
        let forgotten = c.known.remember(Remembered::of(&late, Offset::new(99_999), Timestamp::from_millis(3_602_000)));
        assert_eq!(forgotten[0], first.id);
        assert_eq!(
            (c.known.len(), forgotten.len(), c.known.last_offset_up_to(Offset::new(100_000))),
            (KEPT, 2, Some(Offset::new(99_999)))
        );
        assert_eq!(c.known.look(&first), Look::New);
    }
}
