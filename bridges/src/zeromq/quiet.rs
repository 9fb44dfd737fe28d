//! Logging about what peers do, at a rate that peers can't set.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

const A_WINDOW: Duration = Duration::from_secs(60);
const LINES_A_WINDOW: u32 = 10;

/// Lets ten lines a minute pass, and counts those that it holds back, so that the next one can tell.
#[derive(Debug)]
pub(crate) struct Quiet {
    window: Mutex<Window>,
}

#[derive(Debug)]
struct Window {
    since: Instant,
    lines: u32,
    suppressed: u64,
}

impl Quiet {
    pub(crate) fn new() -> Self {
        Quiet { window: Mutex::new(Window { since: Instant::now(), lines: 0, suppressed: 0 }) }
    }

    /// Whether to write a line now; if so, how many of its kind were held back before.
    pub(crate) fn pass(&self) -> Option<u64> {
        let mut window = self.window.lock();
        if window.since.elapsed() >= A_WINDOW {
            window.since = Instant::now();
            window.lines = 0;
        }
        if window.lines == LINES_A_WINDOW {
            window.suppressed += 1;
            return None;
        }
        window.lines += 1;
        Some(std::mem::take(&mut window.suppressed))
    }
}
