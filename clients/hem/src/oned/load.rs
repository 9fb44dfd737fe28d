//! [`load_all`]: asks for all hooks until oned answers, but not forever.
//!
//! An executor is often started together with oned, before oned listens. The original asks 300 times, every 0.5 s, and then goes on without any
//! hook. Here the end is an error, so that the service is started again and the failure is seen; and there is a limit for all attempts
//! together, since one against an oned that hangs takes as long as a call may take.
//!
//! Every error is asked again, wrong passwords too: oned refuses everybody while its authentication driver is starting. The log tells the first error and
//! each one that is another.

use std::time::Duration;

use thiserror::Error;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

use super::pool::Pool;
use super::rpc::{OnedClient, RpcError};

/// How often, and for how long, oned is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// How many times at most. 300 unless set.
    pub tries: u32,
    /// The time between two. 0.5 s unless set.
    pub pause: Duration,
    /// How long at most, all together. 10 minutes unless set.
    pub limit: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience { tries: 300, pause: Duration::from_millis(500), limit: Duration::from_secs(600) }
    }
}

/// Why there are no hooks.
#[derive(Debug, Error)]
pub enum LoadError {
    /// It was told to stop.
    #[error("loading hooks was ended")]
    Stopped,
    /// oned was asked often enough.
    #[error("the hooks can't be loaded, after {tries} tries in {:.0} s: {source}", after.as_secs_f32())]
    GaveUp {
        /// How often it was asked.
        tries: u32,
        /// For how long.
        after: Duration,
        /// What came of the last time.
        source: Box<RpcError>,
    },
    /// Not even one call has ended in that time.
    #[error("the hooks can't be loaded: {endpoint} has not answered within {:.0} s", after.as_secs_f32())]
    Late {
        /// The address.
        endpoint: String,
        /// For how long it was asked.
        after: Duration,
    },
}

/// Loads all hooks. Ends early once `stop` is true, or whoever could make it true is gone.
///
/// # Errors
/// When there are no hooks after all of the patience, or it is stopped.
pub async fn load_all(
    client: &OnedClient,
    patience: Patience,
    stop: &mut watch::Receiver<bool>,
) -> Result<Pool, LoadError> {
    tokio::select! {
        biased;
        _ = stop.wait_for(|stop| *stop) => Err(LoadError::Stopped),
        loaded = try_to_load(client, patience) => loaded,
    }
}

async fn try_to_load(client: &OnedClient, patience: Patience) -> Result<Pool, LoadError> {
    let start = Instant::now();
    let until = start + patience.limit;
    let mut last: Option<RpcError> = None;
    let mut told = String::new();
    let mut tries = 0;
    while tries < patience.tries.max(1) {
        if tries > 0 && timeout_at(until, sleep(patience.pause)).await.is_err() {
            break;
        }
        match timeout_at(until, client.hook_pool()).await {
            Ok(Ok(pool)) => return Ok(pool),
            Ok(Err(error)) => {
                let text = error.to_string();
                if text != told {
                    tracing::warn!("hooks: {text}. Asking again");
                    told = text;
                }
                last = Some(error);
                tries += 1;
            }
            Err(_) => break,
        }
    }
    let after = start.elapsed();
    Err(match last {
        Some(error) => LoadError::GaveUp { tries, after, source: Box::new(error) },
        None => LoadError::Late { endpoint: client.endpoint().to_owned(), after },
    })
}
