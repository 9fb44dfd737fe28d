//! The sources of the daemon: where events come from besides oned's pipe and HTTP.

use hookbus_bridges::zeromq::{ZeromqSource, ZeromqSourceStatus};
use hookbus_broker::Broker;

use crate::config::{SourceConfig, SourceKind};

/// All sources.
#[derive(Debug, Default)]
pub(super) struct Sources {
    list: Vec<ZeromqSource>,
}

impl Sources {
    /// Starts those that the configuration names; each connects in the background.
    pub(super) fn start(broker: &Broker, sources: &[SourceConfig]) -> Self {
        let start = |source: &SourceConfig| match &source.kind {
            SourceKind::Zeromq(zeromq) => {
                // The configuration was checked; where it is used all the same, this is one that isn't started.
                let endpoint = source.url.reveal().parse().ok()?;
                Some(ZeromqSource::spawn(source.name.as_str(), endpoint, &zeromq.prefixes, broker.clone()))
            }
            // Of a later version, as the configuration was told.
            SourceKind::GanetiJobs(_) => None,
        };
        Sources { list: sources.iter().filter_map(start).collect() }
    }

    /// How each of them stands.
    pub(super) fn status(&self) -> Vec<ZeromqSourceStatus> {
        self.list.iter().map(ZeromqSource::status).collect()
    }

    /// Ends all of them; what has arrived is published.
    pub(super) async fn shut_down(self) {
        for source in self.list {
            source.shutdown().await;
        }
    }
}
