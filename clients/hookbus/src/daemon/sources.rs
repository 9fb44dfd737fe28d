//! The sources of the daemon: where events come from besides oned's pipe and HTTP.

use hookbus_broker::Broker;
use serde_json::Value;

use crate::config::{SourceConfig, SourceKind};

/// All sources.
#[derive(Debug, Default)]
pub(super) struct Sources {
    list: Vec<()>,
}

impl Sources {
    /// Starts those that the configuration names; each connects in the background.
    pub(super) fn start(_broker: &Broker, sources: &[SourceConfig]) -> Self {
        let start = |source: &SourceConfig| match &source.kind {
            SourceKind::Zeromq(_) => None,
            // Of a later version, as the configuration was told.
            SourceKind::GanetiJobs(_) => None,
        };
        Sources { list: sources.iter().filter_map(start).collect() }
    }

    /// How each of them stands.
    pub(super) fn status(&self) -> Vec<Value> {
        self.list.iter().map(|()| Value::Null).collect()
    }

    /// Ends all of them.
    pub(super) async fn shut_down(self) {}
}
