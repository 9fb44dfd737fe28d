//! Waiting for a condition.

use std::fmt::Display;
use std::thread;
use std::time::{Duration, Instant};

/// How long a test waits for what should come at once. Long, because the machine may be busy with other things; a test
/// that passes never waits for it.
const PATIENCE: Duration = Duration::from_secs(60);

/// The moment until which to wait.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(Instant);

impl Deadline {
    /// The usual patience from now.
    #[must_use]
    pub fn usual() -> Self {
        Self::after(PATIENCE)
    }

    /// That long from now.
    #[must_use]
    pub fn after(time: Duration) -> Self {
        Self(Instant::now() + time)
    }

    /// Whether it has passed.
    #[must_use]
    pub fn passed(self) -> bool {
        Instant::now() >= self.0
    }

    /// The time left, zero once it has passed.
    #[must_use]
    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }
}

/// Asks again and again until `ask` answers with `Ok`; panics at the usual deadline with `what` and with what `ask` saw last.
pub fn wait_until<T, E: Display>(what: &str, mut ask: impl FnMut() -> Result<T, E>) -> T {
    let deadline = Deadline::usual();
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(seen) if deadline.passed() => panic!("waited in vain for {what}; seen last: {seen}"),
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
}
