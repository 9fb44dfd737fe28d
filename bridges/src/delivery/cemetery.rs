//! What a bridge has to do with the dead letters, done on a thread for what blocks, one job at a time and many letters in each.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::Arc;
use std::time::Instant;

use hookbus_broker::Received;
use tokio::task::{JoinError, JoinHandle};

use super::dead_letters::{DeadLetter, DeadLetters, DeadLettersError, Fallen};
use super::ledger::{Condemned, Ledger, Place};
use super::parcel::{Parcel, Retry};
use super::status::Shared;

/// Dead letters that are stored, or fetched to be sent again, at once.
const AT_ONCE: usize = 256;

/// Dead letters that are fetched at once: their payloads are in memory then.
const FETCHED_AT_ONCE: usize = 16;

pub(super) struct Cemetery {
    letters: Arc<DeadLetters>,
    job: Option<JoinHandle<Report>>,
    /// What came of the last job, until it is dealt with.
    report: Option<Result<Report, JoinError>>,
    /// What the job buries and removes, in case it comes to grief.
    burying: Vec<Place>,
    removing: Vec<u64>,
    fetching: Vec<u64>,
    failures: u32,
    /// What could not be done is tried again then.
    retry_at: Option<Instant>,
    trouble: Option<Arc<str>>,
    /// To be sent again, and not fetched yet.
    wanted: VecDeque<u64>,
    fetched: VecDeque<(DeadLetter, Received)>,
    /// Sent again and confirmed: to be removed.
    removals: Vec<u64>,
}

/// What came of a job.
#[derive(Default)]
struct Report {
    /// How many are new among the dead.
    dead: u64,
    buried: Vec<Place>,
    not_buried: Vec<Place>,
    not_removed: Vec<u64>,
    fetched: Vec<(DeadLetter, Received)>,
    not_fetched: Vec<u64>,
    trouble: Option<DeadLettersError>,
}

impl Cemetery {
    pub(super) fn new(letters: Arc<DeadLetters>) -> Self {
        Cemetery {
            letters,
            job: None,
            report: None,
            burying: Vec::new(),
            removing: Vec::new(),
            fetching: Vec::new(),
            failures: 0,
            retry_at: None,
            trouble: None,
            wanted: VecDeque::new(),
            fetched: VecDeque::new(),
            removals: Vec::new(),
        }
    }

    /// These are to be sent again.
    pub(super) fn want(&mut self, numbers: Vec<u64>) {
        self.wanted.extend(numbers);
    }

    /// The next one to be sent again, if one is there.
    pub(super) fn next(&mut self) -> Option<(Received, Retry)> {
        let (letter, event) = self.fetched.pop_front()?;
        Some((event, Retry { number: letter.number, replay: letter.replays }))
    }

    pub(super) fn has_next(&self) -> bool {
        !self.fetched.is_empty()
    }

    /// A letter is confirmed; it may be one that was dead.
    pub(super) fn confirmed(&mut self, retry: Option<Retry>) {
        self.removals.extend(retry.map(|retry| retry.number));
    }

    /// Why dead letters can't be stored, if they can't.
    pub(super) fn trouble(&self) -> Option<&Arc<str>> {
        self.trouble.as_ref()
    }

    pub(super) fn is_working(&self) -> bool {
        self.job.is_some()
    }

    /// Whether nothing is left to do but what the ledger holds.
    pub(super) fn is_idle(&self) -> bool {
        self.job.is_none() && self.wanted.is_empty() && self.fetched.is_empty() && self.removals.is_empty()
    }

    /// When what could not be done is tried again.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Waits until a job is through. Dropping the future loses nothing.
    pub(super) async fn work(&mut self) {
        match &mut self.job {
            Some(job) => self.report = Some(job.await),
            None => pending().await,
        }
    }

    /// A job is through: what came of it goes into the ledger. Returns how many letters are new among the dead.
    pub(super) fn worked(&mut self, ledger: &mut Ledger<Arc<Parcel>>, again_at: impl FnOnce(u32) -> Instant) -> u64 {
        let Some(report) = self.report.take() else { return 0 };
        self.job = None;
        let (burying, removing) = (std::mem::take(&mut self.burying), std::mem::take(&mut self.removing));
        let fetching = std::mem::take(&mut self.fetching);
        let (report, trouble) = match report {
            Ok(report) => {
                let trouble = report.trouble.as_ref().map(ToString::to_string);
                (report, trouble)
            }
            // It has panicked, or the runtime ends: nothing of it is known to be done.
            Err(error) => {
                let (not_buried, not_removed, not_fetched) = (burying, removing, fetching);
                let report = Report { not_buried, not_removed, not_fetched, ..Report::default() };
                (report, Some(format!("the work on dead letters has failed: {error}")))
            }
        };
        report.buried.into_iter().for_each(|place| ledger.buried(place));
        report.not_buried.into_iter().for_each(|place| ledger.not_buried(place));
        self.removals.extend(report.not_removed);
        self.fetched.extend(report.fetched);
        for number in report.not_fetched.into_iter().rev() {
            self.wanted.push_front(number);
        }
        match trouble {
            None => (self.failures, self.retry_at, self.trouble) = (0, None, None),
            Some(trouble) => {
                self.failures = self.failures.saturating_add(1);
                if self.failures.is_power_of_two() {
                    tracing::error!("{trouble}; events that a bus refuses wait, and it is tried again");
                }
                self.trouble = Some(trouble.into());
                self.retry_at = Some(again_at(self.failures));
            }
        }
        report.dead
    }

    /// Starts a job, if there is something to do and nobody does it.
    pub(super) fn start(&mut self, ledger: &mut Ledger<Arc<Parcel>>, shared: &Shared, now: Instant) {
        if self.job.is_some() || self.retry_at.is_some_and(|at| now < at) {
            return;
        }
        self.retry_at = None;
        let fetch = self.fetched.is_empty() && !self.wanted.is_empty();
        if !ledger.has_condemned() && self.removals.is_empty() && !fetch {
            return;
        }
        let condemned = ledger.take_condemned(AT_ONCE);
        self.burying = condemned.iter().map(|letter| letter.place).collect();
        self.removing = std::mem::take(&mut self.removals);
        self.fetching =
            if fetch { self.wanted.drain(..self.wanted.len().min(FETCHED_AT_ONCE)).collect() } else { Vec::new() };
        let (letters, bridge, died) = (Arc::clone(&self.letters), Arc::clone(&shared.name), shared.clock.now());
        let (removing, fetching) = (self.removing.clone(), self.fetching.clone());
        self.job = Some(tokio::task::spawn_blocking(move || {
            let mut report = Report::default();
            let (again, new): (Vec<_>, Vec<_>) =
                condemned.into_iter().partition(|letter| letter.content.retry.is_some());
            if !new.is_empty() {
                let fallen: Vec<Fallen> = new.iter().map(fallen).collect();
                let stored = letters.add(&bridge, died, &fallen);
                report.dead = if stored.is_ok() { new.len() as u64 } else { 0 };
                report.bury(&new, stored);
            }
            if !again.is_empty() {
                let refused = |letter: &Condemned<Arc<Parcel>>| {
                    let retry = letter.content.retry?;
                    Some((retry.number, letter.reason.clone(), letter.attempts))
                };
                let refused: Vec<_> = again.iter().filter_map(refused).collect();
                let stored = letters.refused_again(&refused, died);
                report.bury(&again, stored);
            }
            if let Err(error) = letters.remove(&removing) {
                report.not_removed = removing;
                report.trouble = Some(error);
            }
            match letters.take_for_retry(&fetching) {
                Ok(fetched) => report.fetched = fetched,
                Err(error) => {
                    report.not_fetched = fetching;
                    report.trouble = Some(error);
                }
            }
            report
        }));
    }
}

impl Report {
    fn bury(&mut self, letters: &[Condemned<Arc<Parcel>>], stored: Result<(), DeadLettersError>) {
        let places = letters.iter().map(|letter| letter.place);
        match stored {
            Ok(()) => self.buried.extend(places),
            Err(error) => {
                self.not_buried.extend(places);
                self.trouble = Some(error);
            }
        }
    }
}

fn fallen(letter: &Condemned<Arc<Parcel>>) -> Fallen {
    let event = letter.content.event().clone();
    Fallen { event, reason: letter.reason.clone(), attempts: letter.attempts }
}
