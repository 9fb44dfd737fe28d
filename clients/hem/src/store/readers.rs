//! The connections that read: a few, each used by one thread at a time, on tokio's threads for blocking work.
//!
//! In WAL mode readers and the writer don't wait for each other. Each query sees all that was committed before it began.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rusqlite::Connection;
use tokio::sync::Semaphore;

use super::error::StoreError;
use super::schema;

/// How many queries run at once.
const READERS: usize = 4;

#[derive(Debug)]
pub(super) struct Readers {
    path: Arc<Path>,
    busy_timeout: Duration,
    /// Connections that nobody uses. `None` once it is closed.
    idle: Arc<Mutex<Option<Vec<Connection>>>>,
    places: Arc<Semaphore>,
}

impl Readers {
    pub(super) fn new(path: &Arc<Path>, busy_timeout: Duration) -> Self {
        Readers {
            path: Arc::clone(path),
            busy_timeout,
            idle: Arc::new(Mutex::new(Some(Vec::new()))),
            places: Arc::new(Semaphore::new(READERS)),
        }
    }

    /// Runs a query. It goes on to its end if nobody waits for it any more.
    pub(super) async fn read<R: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> rusqlite::Result<R> + Send + 'static,
    ) -> Result<R, StoreError> {
        let place = Arc::clone(&self.places).acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let (path, idle, busy_timeout) = (Arc::clone(&self.path), Arc::clone(&self.idle), self.busy_timeout);
        let work = move || {
            let _place = place;
            run(&path, &idle, busy_timeout, query)
        };
        // Only a panic of the query, or the end of the runtime, keeps it from answering.
        tokio::task::spawn_blocking(work).await.unwrap_or(Err(StoreError::Closed))
    }

    /// Runs a query on this thread.
    pub(super) fn read_blocking<R>(
        &self,
        query: impl FnOnce(&Connection) -> rusqlite::Result<R>,
    ) -> Result<R, StoreError> {
        run(&self.path, &self.idle, self.busy_timeout, query)
    }

    /// Ends it for new queries. Those that run go on.
    pub(super) fn close(&self) {
        let connections = self.idle.lock().take();
        drop(connections);
    }
}

fn run<R>(
    path: &Arc<Path>,
    idle: &Mutex<Option<Vec<Connection>>>,
    busy_timeout: Duration,
    query: impl FnOnce(&Connection) -> rusqlite::Result<R>,
) -> Result<R, StoreError> {
    let connection = match &mut *idle.lock() {
        None => return Err(StoreError::Closed),
        Some(connections) => connections.pop(),
    };
    let connection = match connection {
        Some(connection) => connection,
        None => schema::connect_reader(path, busy_timeout)?,
    };
    // After an error the connection is closed, and another one opened for the next query.
    let found = query(&connection).map_err(|error| StoreError::failed(path, "read", error))?;
    if let Some(connections) = &mut *idle.lock() {
        connections.push(connection);
    }
    Ok(found)
}
