//! The sources of the daemon: where events come from besides oned's pipe and HTTP.

use std::path::Path;

use futures_util::future::join_all;
use hookbus_bridges::zeromq::ZeromqSource;
use hookbus_broker::Broker;
use serde_json::Value;

use super::ganeti::jobs::{Jobs, JobsSource};
use crate::config::{SourceConfig, SourceKind};

/// All sources.
#[derive(Debug, Default)]
pub(super) struct Sources {
    list: Vec<Source>,
}

#[derive(Debug)]
enum Source {
    Zeromq(ZeromqSource),
    GanetiJobs(JobsSource),
}

impl Sources {
    /// Starts those that the configuration names; each connects in the background. `node` is what a Ganeti cluster calls this host. It blocks: what was told of
    /// jobs is in a file of `state_dir`.
    pub(super) fn start(broker: &Broker, sources: &[SourceConfig], state_dir: Option<&Path>, node: &str) -> Self {
        // The configuration was checked; where it is used all the same, what is wrong is one that isn't started.
        let start = |source: &SourceConfig| match &source.kind {
            SourceKind::Zeromq(zeromq) => {
                let endpoint = source.url.reveal().parse().ok()?;
                let source = ZeromqSource::spawn(source.name.as_str(), endpoint, &zeromq.prefixes, broker.clone());
                Some(Source::Zeromq(source))
            }
            SourceKind::GanetiJobs(jobs) => {
                let (directory, cluster) = (source.directory().ok()?, jobs.cluster.as_deref());
                let source = JobsSource::start(&source.name, &directory, cluster, node, broker, state_dir);
                Some(Source::GanetiJobs(source))
            }
        };
        Sources { list: sources.iter().filter_map(start).collect() }
    }

    /// What is known of Ganeti's jobs.
    pub(super) fn jobs(&self) -> Jobs {
        Jobs::of(self.list.iter().filter_map(|source| match source {
            Source::Zeromq(_) => None,
            Source::GanetiJobs(source) => Some(source),
        }))
    }

    /// How each of them stands.
    pub(super) fn status(&self) -> Vec<Value> {
        let status = |source: &Source| match source {
            Source::Zeromq(source) => serde_json::to_value(source.status()).unwrap_or_default(),
            Source::GanetiJobs(source) => source.status(),
        };
        self.list.iter().map(status).collect()
    }

    /// Ends all of them; what has arrived is published.
    pub(super) async fn shut_down(self) {
        join_all(self.list.into_iter().map(async |source| match source {
            Source::Zeromq(source) => source.shutdown().await,
            Source::GanetiJobs(source) => source.shut_down().await,
        }))
        .await;
    }
}
