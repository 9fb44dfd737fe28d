//! What stands in a file that may change while it is used: a token, a certificate.
//!
//! It is looked at when somebody needs it, in a thread that may wait for a disk, and not more often than now and then. There is nobody who
//! watches the file: what isn't needed isn't read. Who comes while it is being read gets what was known before.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

type Load<T> = Arc<dyn Fn(&T) -> Option<T> + Send + Sync>;

/// A value that is made anew where its files have changed.
pub(crate) struct Renewed<T> {
    /// Looks again. Nothing where all is as it was.
    load: Load<T>,
    every: Duration,
    state: Mutex<State<T>>,
}

struct State<T> {
    value: Arc<T>,
    looked: Instant,
}

impl<T: Send + Sync + 'static> Renewed<T> {
    /// With what is known now; `load` is asked again when that is older than `every`.
    pub(crate) fn new(value: T, every: Duration, load: impl Fn(&T) -> Option<T> + Send + Sync + 'static) -> Self {
        let state = State { value: Arc::new(value), looked: Instant::now() };
        Renewed { load: Arc::new(load), every, state: Mutex::new(state) }
    }

    /// What it is now.
    pub(crate) async fn get(&self) -> Arc<T> {
        let old = {
            let mut state = self.state.lock();
            if state.looked.elapsed() >= self.every {
                state.looked = Instant::now();
                Arc::clone(&state.value)
            } else {
                return Arc::clone(&state.value);
            }
        };
        let (load, before) = (Arc::clone(&self.load), Arc::clone(&old));
        match tokio::task::spawn_blocking(move || load(&before)).await {
            Ok(Some(new)) => {
                let new = Arc::new(new);
                self.state.lock().value = Arc::clone(&new);
                new
            }
            Ok(None) | Err(_) => old,
        }
    }
}

impl<T> fmt::Debug for Renewed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What is in there may be a secret.
        f.debug_struct("Renewed").field("every", &self.every).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn it_is_looked_at_again_when_it_is_needed_and_old_enough() {
        let now = Arc::new(AtomicU32::new(1));
        let looks = Arc::new(AtomicU32::new(0));
        let make = |every| {
            let (now, looks) = (Arc::clone(&now), Arc::clone(&looks));
            Renewed::new(1, every, move |old| {
                looks.fetch_add(1, Ordering::Relaxed);
                let new = now.load(Ordering::Relaxed);
                (new != *old).then_some(new)
            })
        };
        let always = make(Duration::ZERO);
        assert_eq!(*always.get().await, 1);
        now.store(2, Ordering::Relaxed);
        assert_eq!(*always.get().await, 2);
        assert_eq!(looks.load(Ordering::Relaxed), 2);
        let seldom = make(Duration::from_secs(3600));
        assert_eq!(*seldom.get().await, 1, "it isn't old enough");
        assert_eq!(looks.load(Ordering::Relaxed), 2);
    }
}
