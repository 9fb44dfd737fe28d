//! The gate: whether an operation may begin.
//!
//! Ganeti asks by running its hooks of phase pre: one that fails ends the operation. The hook client asks here and waits. Asked are
//!
//! - hooks of TYPE ganeti and PHASE pre, which say it by their exit code, as scripts in Ganeti's own directories do: 0 lets it begin, anything else
//!   refuses it, and what they wrote is the reason. A hook with RETRIES answers with its last attempt;
//! - whoever subscribes on NATS to `hookbus-gate.<cluster>.<operation>`, where `[ganeti] gate_nats` names a bridge whose server that is. The question is the event as a
//!   CloudEvent, the answer `{"verdict": "allow" or "deny", "reason": "..."}`;
//! - the HTTP server at `[ganeti] gate_url`, by POST, with the same question and the same answer.
//!
//! | what they said | verdict |
//! | --- | --- |
//! | one says no | `deny`, at once |
//! | all say yes | `allow` |
//! | there is none; or one of them could not be started, exceeded its TIMEOUT, made no sense, or hasn't answered in time | `none`: `gate_default` of the client decides |
//!
//! So a check that doesn't answer never counts as a yes.
//!
//! # Bounds
//!
//! What hooks have said is kept for the newest 1,000 operations: a run may end before somebody asks, and the same operation may be asked for twice.

use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use hookbus_bridges::cloudevents::{Encoder, STRUCTURED};
use hookbus_bridges::delivery::EventName;
use hookbus_bridges::ganeti::{Phase, Report};
use hookbus_bridges::nats::NatsRequests;
use hookbus_bridges::secret::Secret;
use hookbus_bridges::tls::TlsOptions;
use hookbus_bridges::webhook::Questions;
use hookbus_broker::{EventId, Offset, Received};
use hookbus_hem::{Ending, Kept, Record, Recorder, Trigger};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::config::{BridgeKind, Config};
use crate::daemon::buses;

/// For how many operations it is kept what hooks said.
const KEPT: usize = 1000;
/// How long a verdict may take where nobody says, and at most.
const USUAL: Duration = Duration::from_secs(5);
const MOST: Duration = Duration::from_secs(60);
/// What the answer needs on its way back.
const ON_THE_WAY: Duration = Duration::from_millis(200);
/// The longest subject.
const SUBJECT_BYTES: usize = 1024;
/// What is told of what a check wrote, in characters.
const REASON_CHARS: usize = 2000;

/// Whether an operation may begin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Verdict {
    verdict: Word,
    reason: String,
}

impl Verdict {
    /// Why there is none, where there is none.
    pub(super) fn is_missing(&self) -> Option<&str> {
        (self.verdict == Word::None).then_some(&*self.reason)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
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

/// The checks beside hooks.
#[derive(Debug)]
pub(super) struct Checks {
    nats: Option<NatsRequests>,
    http: Option<Questions>,
    encoder: Encoder,
}

impl Checks {
    /// Those that the configuration names; `host` is this one.
    pub(super) fn new(config: &Config, encoder: &Encoder, host: &str) -> Self {
        let named = |name: &String| config.bridges.iter().find(|bridge| bridge.name == *name);
        let nats = config.ganeti.gate_nats.as_ref().and_then(named).and_then(|bridge| match &bridge.kind {
            BridgeKind::Nats(nats) => Some(NatsRequests::new(buses::nats(bridge, nats, host))),
            // As the configuration was told.
            _ => None,
        });
        let ganeti = &config.ganeti;
        let http = ganeti.gate_url.as_ref().and_then(|url| {
            let token = ganeti.gate_token_file.clone().map(Secret::File);
            let tls = TlsOptions { ca_file: ganeti.gate_ca_file.clone(), ..TlsOptions::default() };
            let questions = Questions::new(url.reveal(), token, tls);
            questions.map_err(|e| tracing::error!("[ganeti] gate_url: {e}; nobody is asked there")).ok()
        });
        Checks { nats, http, encoder: encoder.clone() }
    }

    /// What all say of an operation: `runs` are those of hooks, `event` is its event, `report` what it was made of.
    pub(super) async fn ask(
        &self,
        verdicts: &Verdicts,
        runs: Vec<String>,
        event: EventId,
        report: &Report,
        deadline: Instant,
    ) -> Verdict {
        let mut asked: FuturesUnordered<Pin<Box<dyn Future<Output = Verdict> + Send + '_>>> = FuturesUnordered::new();
        if !runs.is_empty() {
            asked.push(Box::pin(verdicts.of(event.offset, runs, deadline)));
        }
        if let Some(nats) = &self.nats {
            asked.push(Box::pin(self.ask_nats(nats, event, report, deadline)));
        }
        if let Some(http) = &self.http {
            asked.push(Box::pin(self.ask_http(http, event, report, deadline)));
        }
        let (mut yes, mut unsure) = (Vec::new(), None);
        while let Some(verdict) = asked.next().await {
            match verdict.verdict {
                Word::Deny => return verdict,
                Word::Allow => yes.push(verdict.reason),
                Word::None => unsure = unsure.or(Some(verdict.reason)),
            }
        }
        match unsure {
            Some(reason) => Verdict { verdict: Word::None, reason },
            None if yes.is_empty() => {
                Verdict { verdict: Word::None, reason: "there is no check for this operation".into() }
            }
            None => Verdict { verdict: Word::Allow, reason: yes.join("; ") },
        }
    }

    async fn ask_nats(&self, nats: &NatsRequests, event: EventId, report: &Report, deadline: Instant) -> Verdict {
        let parts = ["hookbus-gate", report.run.cluster(), report.run.hooks_path()];
        let subject = EventName::of_parts(parts).address('.', SUBJECT_BYTES);
        let question = self.question(event, report);
        let patience = deadline.saturating_duration_since(Instant::now());
        match nats.ask(&subject, question, patience).await {
            Ok(answer) => Verdict::read(&answer, &subject),
            Err(e) => Verdict { verdict: Word::None, reason: e.to_string() },
        }
    }
}

impl Checks {
    async fn ask_http(&self, http: &Questions, event: EventId, report: &Report, deadline: Instant) -> Verdict {
        let patience = deadline.saturating_duration_since(Instant::now());
        match http.ask(STRUCTURED, self.question(event, report), patience).await {
            Ok(answer) => Verdict::read(&answer, &http.place()),
            Err(reason) => Verdict { verdict: Word::None, reason },
        }
    }

    /// The event of the operation, as a CloudEvent.
    fn question(&self, event: EventId, report: &Report) -> Bytes {
        self.encoder.structured(&Received::restored(event, report.message()), None)
    }
}

impl Verdict {
    /// What a check has answered at that place.
    fn read(answer: &[u8], place: &str) -> Self {
        #[derive(Deserialize)]
        struct Answer {
            verdict: Word,
            #[serde(default)]
            reason: String,
        }
        match serde_json::from_slice::<Answer>(answer) {
            Ok(Answer { verdict, reason }) => {
                let reason: String = reason.chars().take(REASON_CHARS).collect();
                let reason = if reason.is_empty() { place.to_owned() } else { format!("{place}: {reason}") };
                Verdict { verdict, reason }
            }
            Err(e) => Verdict { verdict: Word::None, reason: format!("{place} has given no verdict: {e}") },
        }
    }
}

impl Verdicts {
    /// What these runs say of an operation, by the deadline.
    async fn of(&self, event: Offset, runs: Vec<String>, deadline: Instant) -> Verdict {
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
    fn answers_of_others_are_read() {
        let read = |answer: &str| Verdict::read(answer.as_bytes(), "at");
        let deny = Verdict { verdict: Word::Deny, reason: "at: no".into() };
        assert_eq!(read(r#"{"verdict":"deny","reason":"no","more":1}"#), deny);
        assert_eq!(read(r#"{"verdict":"allow"}"#), Verdict { verdict: Word::Allow, reason: "at".into() });
        for nonsense in ["", "yes", r#"{"verdict":"maybe"}"#] {
            assert_eq!(read(nonsense).verdict, Word::None, "{nonsense}");
        }
    }

    #[test]
    fn the_answer_leaves_before_patience_ends() {
        assert_eq!(time_for(None), Duration::from_millis(4800));
        assert_eq!(time_for(Some(Duration::from_millis(100))), Duration::ZERO);
        assert_eq!(time_for(Some(Duration::from_secs(3600))), Duration::from_millis(59_800));
    }
}
