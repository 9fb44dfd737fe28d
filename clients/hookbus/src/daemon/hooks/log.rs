//! The log of executions: each record of the executor goes into the store.

use std::sync::Arc;

use hookbus_hem::store::{Execution, Store};
use hookbus_hem::{Record, Recorder};

use super::key_of;

/// Takes the executor's records.
#[derive(Debug)]
pub(super) struct HookLog {
    store: Store,
}

impl HookLog {
    pub(super) fn new(store: Store) -> Self {
        HookLog { store }
    }
}

impl Recorder for HookLog {
    fn record(&self, record: &Arc<Record>) {
        if let Some(key) = key_of(&record.hook) {
            // It is stored whether or not somebody waits, and the store logs what it can't keep.
            drop(self.store.record(Execution::of_record(key, record)));
        }
    }
}
