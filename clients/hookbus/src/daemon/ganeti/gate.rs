//! The gate: whether an operation may begin.
//!
//! Ganeti asks by running its hooks of phase pre: one that fails ends the operation. The hook client asks here and waits. Hooks of TYPE ganeti and PHASE pre say
//! it by their exit code, as scripts in Ganeti's own directories do: 0 lets it begin, anything else refuses it, and what they wrote is the
//! reason.
//!
//! | what the hooks did | verdict |
//! | --- | --- |
//! | one has exited with another code than 0, or was killed | `deny`, at once |
//! | all have exited with 0 | `allow` |
//! | there is none; or one of them could not be started, exceeded its TIMEOUT, or hasn't ended in time | `none`: `gate_default` of the client decides |
//!
//! So a check that doesn't answer never counts as a yes. A hook with RETRIES answers with its last attempt.
//!
//! # Bounds
//!
//! What hooks have said is kept for the newest 1,000 operations: a run may end before somebody asks, and the same operation may be asked for twice.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use hookbus_bridges::ganeti::Phase;
use hookbus_broker::Offset;
use hookbus_hem::{Ending, Kept, Record, Recorder, Trigger};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

/// For how many operations it is kept what hooks said.
const KEPT: usize = 1000;
/// How long a verdict may take where nobody says, and at most.
const USUAL: Duration = Duration::from_secs(5);
const MOST: Duration = Duration::from_secs(60);
/// What the answer needs on its way back.
const ON_THE_WAY: Duration = Duration::from_millis(200);
/// What is told of what a check wrote, in characters.
const REASON_CHARS: usize = 2000;

/// Whether an operation may begin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Verdict {
    verdict: Word,
    reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    Allow,
    Deny,
    None,
}

/// What one run of a check has said.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Said {
    Yes,
    No(String),
    /// It could not answer.
    Nothing(String),
}

/// What checks have said, by the event of the operation.
#[derive(Debug)]
pub(crate) struct Verdicts {
    said: Mutex<BTreeMap<Offset, Vec<(String, Said)>>>,
    /// Changes whenever something is said.
    news: watch::Sender<()>,
}

impl Default for Verdicts {
    fn default() -> Self {
        Verdicts { said: Mutex::default(), news: watch::Sender::new(()) }
    }
}

impl Recorder for Verdicts {
    fn record(&self, record: &Arc<Record>) -> Option<Kept> {
        let Trigger::Ganeti { phases, .. } = &record.hook.trigger else { return None };
        if !phases.contains(&Phase::Pre) || record.repeat_in.is_some() || record.by_hand {
            return None;
        }
        let name = record.hook.name.clone();
        let said = match record.ending {
            Ending::Exited(0) => Said::Yes,
            Ending::Exited(_) | Ending::Signalled(_) => Said::No(reason(record)),
            Ending::TimedOut => Said::Nothing("it exceeded its TIMEOUT".into()),
            Ending::Interrupted => Said::Nothing("it was cut off".into()),
            Ending::NotStarted => Said::Nothing(reason(record)),
        };
        let mut all = self.said.lock();
        all.entry(record.event.id.offset).or_default().push((name, said));
        while all.len() > KEPT {
            all.pop_first();
        }
        drop(all);
        self.news.send_replace(());
        None
    }
}

/// What a check wrote, or how it ended where it wrote nothing.
fn reason(record: &Record) -> String {
    let written = format!("{}{}", record.stdout.text(), record.stderr.text());
    match written.trim() {
        "" => format!("exit code {}", record.ending.code()),
        written => written.chars().take(REASON_CHARS).collect(),
    }
}

/// How long a verdict may take for somebody who waits so long.
pub(super) fn time_for(patience: Option<Duration>) -> Duration {
    patience.unwrap_or(USUAL).min(MOST).saturating_sub(ON_THE_WAY)
}

impl Verdicts {
    /// What these runs say of an operation, by the deadline.
    pub(super) async fn of(&self, event: Offset, runs: Vec<String>, deadline: Instant) -> Verdict {
        if runs.is_empty() {
            return Verdict { verdict: Word::None, reason: "no hook of PHASE pre is for this operation".into() };
        }
        let mut news = self.news.subscribe();
        loop {
            news.mark_unchanged();
            if let Some(verdict) = self.decided(event, &runs) {
                return verdict;
            }
            if !matches!(timeout_at(deadline, news.changed()).await, Ok(Ok(()))) {
                let reason = format!("not all of {} have answered in time", runs.join(", "));
                return Verdict { verdict: Word::None, reason };
            }
        }
    }

    /// The verdict, if it is clear by now.
    fn decided(&self, event: Offset, runs: &[String]) -> Option<Verdict> {
        let said = self.said.lock();
        let said = said.get(&event).map_or(&[][..], Vec::as_slice);
        let first = |wanted: fn(&Said) -> Option<&String>| {
            said.iter().find_map(|(name, said)| wanted(said).map(|why| format!("{name}: {why}")))
        };
        let no = first(|said| match said {
            Said::No(why) => Some(why),
            _ => None,
        });
        if let Some(reason) = no {
            return Some(Verdict { verdict: Word::Deny, reason });
        }
        let mut missing: HashMap<&str, usize> = HashMap::new();
        runs.iter().for_each(|name| *missing.entry(name).or_default() += 1);
        for (name, _) in said {
            missing.entry(name).and_modify(|count| *count = count.saturating_sub(1));
        }
        if missing.values().any(|count| *count > 0) {
            return None;
        }
        let nothing = first(|said| match said {
            Said::Nothing(why) => Some(why),
            _ => None,
        });
        Some(match nothing {
            Some(reason) => Verdict { verdict: Word::None, reason },
            None => Verdict { verdict: Word::Allow, reason: format!("{} agreed", runs.join(", ")) },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(said: &[(&str, Said)], runs: &[&str]) -> Option<(Word, String)> {
        let verdicts = Verdicts::default();
        let said = said.iter().map(|(name, said)| ((*name).to_owned(), said.clone())).collect();
        verdicts.said.lock().insert(Offset::new(1), said);
        let runs: Vec<_> = runs.iter().map(ToString::to_string).collect();
        verdicts.decided(Offset::new(1), &runs).map(|verdict| (verdict.verdict, verdict.reason))
    }

    #[test]
    fn one_no_is_enough_and_a_yes_needs_all() {
        let no = || Said::No("full".into());
        assert_eq!(verdict(&[], &["a"]), None);
        assert_eq!(verdict(&[("a", Said::Yes)], &["a", "b"]), None);
        assert_eq!(verdict(&[("a", Said::Yes)], &["a", "a"]), None, "it runs on two nodes");
        assert_eq!(verdict(&[("b", no())], &["a", "b"]), Some((Word::Deny, "b: full".into())));
        assert_eq!(verdict(&[("a", Said::Yes), ("b", Said::Yes)], &["a", "b"]).unwrap().0, Word::Allow);
        let unsure = verdict(&[("a", Said::Yes), ("b", Said::Nothing("late".into()))], &["a", "b"]);
        assert_eq!(unsure, Some((Word::None, "b: late".into())));
    }

    #[test]
    fn the_answer_leaves_before_patience_ends() {
        assert_eq!(time_for(None), Duration::from_millis(4800));
        assert_eq!(time_for(Some(Duration::from_millis(100))), Duration::ZERO);
        assert_eq!(time_for(Some(Duration::from_secs(3600))), Duration::from_millis(59_800));
    }
}
