//! How long to wait before something that went wrong is tried again.

use std::time::Duration;

/// Each wait is twice as long as the one before, up to a limit, and then some random part of it shorter, so that bridges that
/// lost the same bus don't come back all at once. There is no last attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The first wait. 100 ms unless set.
    pub first: Duration,
    /// The longest wait for what goes by itself. 15 s unless set.
    pub most: Duration,
    /// The longest wait for what somebody has to act on. 60 s unless set.
    pub most_needs_help: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff {
            first: Duration::from_millis(100),
            most: Duration::from_secs(15),
            most_needs_help: Duration::from_secs(60),
        }
    }
}

impl Backoff {
    /// How long to wait after this many failures in a row: between half and all of the limit for that number. What needs help waits
    /// eight times as long from the start.
    pub fn wait(&self, failures: u32, needs_help: bool, random: &mut fastrand::Rng) -> Duration {
        let (first, most) = if needs_help { (self.first * 8, self.most_needs_help) } else { (self.first, self.most) };
        let doublings = failures.saturating_sub(1).min(30);
        let limit = first.saturating_mul(1 << doublings).min(most);
        limit.mul_f64(0.5 + random.f64() / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_limit() {
        let mut random = fastrand::Rng::with_seed(1);
        let backoff = Backoff::default();
        for needs_help in [false, true] {
            let mut limit = if needs_help { 800 } else { 100 };
            let most = if needs_help { 60_000 } else { 15_000 };
            for failures in 1..60 {
                let wait = backoff.wait(failures, needs_help, &mut random).as_millis();
                assert!((limit / 2..=limit).contains(&wait), "{failures} {wait}");
                limit = (2 * limit).min(most);
            }
        }
        assert!(backoff.wait(u32::MAX, false, &mut random) <= backoff.most);
    }
}
