//! How often a kind of trouble is told.
//!
//! Something that goes wrong ten thousand times a second must not fill oned's log, and must not go unnoticed either. Each
//! kind (in practice a place in the code) is told at most [`PER_MINUTE`] times in a minute, and a text that is the same as
//! the one told before not at all in that minute. What was held back is counted and told when the minute is over.
//!
//! Time is a parameter, so that tests need no clock.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

/// How many messages of a kind are told in a minute, before the count.
pub(crate) const PER_MINUTE: u32 = 10;

const MINUTE: Duration = Duration::from_secs(60);

/// Decides what is told. `K` names a kind; there must be a bounded number of them.
#[derive(Debug)]
pub(crate) struct Limiter<K> {
    kinds: HashMap<K, Window>,
}

#[derive(Debug)]
struct Window {
    start: Duration,
    told: u32,
    held_back: u64,
    last: String,
}

/// What was held back of a kind while its minute lasted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct HeldBack<K> {
    /// The kind.
    pub(crate) kind: K,
    /// How many messages.
    pub(crate) count: u64,
    /// The last one.
    pub(crate) last: String,
}

impl<K: Eq + Hash> Limiter<K> {
    pub(crate) fn new() -> Self {
        Limiter { kinds: HashMap::new() }
    }

    /// Whether a message of this kind is told at `now`; if not, it is counted. Take [`due`](Limiter::due) first.
    pub(crate) fn admit(&mut self, kind: K, text: &str, now: Duration) -> bool {
        let window = self.kinds.entry(kind).or_insert_with(|| Window::new(now));
        if now.saturating_sub(window.start) >= MINUTE && window.held_back == 0 {
            *window = Window::new(now);
        }
        let same = window.told > 0 && window.last == text;
        let admitted = window.told < PER_MINUTE && !same;
        if admitted {
            window.told += 1;
        } else {
            window.held_back += 1;
        }
        if !same {
            text.clone_into(&mut window.last);
        }
        admitted
    }

    /// What was held back in minutes that are over at `now`. Forgets those minutes.
    pub(crate) fn due(&mut self, now: Duration) -> Vec<HeldBack<K>> {
        self.take(|window| now.saturating_sub(window.start) >= MINUTE)
    }

    /// What was held back and not told yet, for the end of the program.
    pub(crate) fn rest(&mut self) -> Vec<HeldBack<K>> {
        self.take(|_| true)
    }

    fn take(&mut self, over: impl Fn(&Window) -> bool) -> Vec<HeldBack<K>> {
        let ended = self.kinds.extract_if(|_, window| over(window));
        ended
            .filter(|(_, window)| window.held_back > 0)
            .map(|(kind, window)| HeldBack { kind, count: window.held_back, last: window.last })
            .collect()
    }
}

impl Window {
    fn new(start: Duration) -> Self {
        Window { start, told: 0, held_back: 0, last: String::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn ten_a_minute_are_told_and_the_rest_is_counted() {
        let mut limiter = Limiter::new();
        let told = (0..1000).filter(|i| limiter.admit("bad line", &format!("line {i}"), at(5))).count();
        assert_eq!(told, 10);
        assert!(limiter.admit("port taken", "port 2101", at(5)), "each kind counts for itself");
        assert_eq!(limiter.due(at(64)), []);
        let held_back = limiter.due(at(65));
        assert_eq!(held_back, [HeldBack { kind: "bad line", count: 990, last: "line 999".into() }]);
        assert!(limiter.admit("bad line", "line 1000", at(65)), "a new minute has begun");
    }

    #[test]
    fn the_same_text_is_told_once_a_minute() {
        let mut limiter = Limiter::new();
        assert!(limiter.admit(1, "taken", at(0)));
        assert!(!limiter.admit(1, "taken", at(30)));
        assert!(limiter.admit(1, "no such address", at(31)));
        assert!(limiter.admit(1, "taken", at(32)), "it was something else meanwhile");
        assert_eq!(limiter.due(at(60)), [HeldBack { kind: 1, count: 1, last: "taken".into() }]);
        assert!(limiter.admit(1, "taken", at(61)));
    }

    #[test]
    fn nothing_is_told_of_a_minute_in_which_nothing_was_held_back() {
        let mut limiter = Limiter::new();
        assert!(limiter.admit(1, "once", at(0)));
        assert_eq!(limiter.rest(), []);
    }
}
