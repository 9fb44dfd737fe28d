//! `/metrics`: counters for Prometheus.
//!
//! Names begin with `hookbus_`, have base units, and end in `_total` where they count. Labels have few values: never an object, a key
//! or a peer's port. Subscribers that come and go (ZeroMQ, HTTP) are summed by kind; those that the configuration names
//! appear by name.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use axum::http::StatusCode;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

pub use prometheus_client::encoding::DescriptorEncoder;

use super::routes::Shared;

/// The server's own counters.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    requests: Family<Code, Counter<u64, AtomicU64>>,
    tls_failures: Counter<u64, AtomicU64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Code {
    code: u16,
}

impl Metrics {
    pub(crate) fn count_request(&self, status: StatusCode) {
        self.requests.get_or_create(&Code { code: status.as_u16() }).inc();
    }

    /// A connection came to nothing because TLS did.
    pub(crate) fn count_tls_failure(&self) {
        self.tls_failures.inc();
    }

    /// Everything, in the text format of OpenMetrics.
    pub(crate) fn text(&self, shared: &Arc<Shared>) -> Result<String, fmt::Error> {
        // What the broker and the daemon count is read when somebody asks.
        let mut registry = Registry::default();
        registry.register("hookbus_http_requests", "HTTP requests answered", self.requests.clone());
        let failures = self.tls_failures.clone();
        registry.register("hookbus_http_tls_failures", "HTTP connections whose TLS handshake failed", failures);
        registry.register_collector(Box::new(Now(Arc::clone(shared))));
        let mut text = String::new();
        text::encode(&mut text, &registry)?;
        Ok(text)
    }
}

/// Writes a counter with these labelled values, or one without labels; the encoder adds `_total` to the name.
///
/// # Errors
/// Those of the encoder.
pub fn encode_counter<'l>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (&'l [(&'l str, &'l str)], u64)>,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, value) in values {
        let value = ConstCounter::new(value);
        if labels.is_empty() {
            return value.encode(metric);
        }
        value.encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}

/// Writes a gauge with these labelled values, or one without labels.
///
/// # Errors
/// Those of the encoder.
pub fn encode_gauge<'l>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (&'l [(&'l str, &'l str)], f64)>,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in values {
        let value = ConstGauge::new(value);
        if labels.is_empty() {
            return value.encode(metric);
        }
        value.encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}

/// What stands at the moment of asking.
struct Now(Arc<Shared>);

impl fmt::Debug for Now {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Now")
    }
}

/// Subscriptions of one kind, summed.
#[derive(Default)]
struct Sum {
    kind: String,
    name: String,
    count: u64,
    queued: u64,
    queued_bytes: u64,
    dropping: u64,
}

impl Collector for Now {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        let Shared { broker, daemon, .. } = &*self.0;
        let stats = broker.stats();
        for (name, help, value) in [
            ("hookbus_published", "Events accepted by the broker", stats.published),
            ("hookbus_published_bytes", "Their keys and payloads", stats.published_bytes),
            ("hookbus_delivered", "Deliveries taken by subscribers", stats.delivered),
            ("hookbus_dropped", "Deliveries dropped at a high-water mark and told as gaps", stats.dropped),
            ("hookbus_abandoned", "Deliveries that were queued when their subscriber went away", stats.abandoned),
        ] {
            encode_counter(encoder, name, help, [(&[][..], value)])?;
        }
        encode_gauge(encoder, "hookbus_held_bytes", "Memory held by all queues", [(&[][..], stats.held_bytes as f64)])?;
        let sums = sums(broker);
        type Value = fn(&Sum) -> u64;
        let gauges: [(&str, &str, Value); 4] = [
            ("hookbus_subscribers", "Subscribers", |sum| sum.count),
            ("hookbus_subscriber_queued_messages", "Messages that wait for subscribers", |sum| sum.queued),
            ("hookbus_subscriber_queued_bytes", "Their keys and payloads", |sum| sum.queued_bytes),
            ("hookbus_subscribers_dropping", "Subscribers that lose messages now", |sum| sum.dropping),
        ];
        for (name, help, value) in gauges {
            let labels: Vec<_> = sums.iter().map(|sum| [("kind", &*sum.kind), ("name", &*sum.name)]).collect();
            let values = labels.iter().zip(&sums).map(|(labels, sum)| (&labels[..], value(sum) as f64));
            encode_gauge(encoder, name, help, values)?;
        }
        daemon.collect(encoder)
    }
}

fn sums(broker: &hookbus_broker::Broker) -> Vec<Sum> {
    let mut sums: Vec<Sum> = Vec::new();
    for stats in broker.subscriptions() {
        let (kind, rest) = stats.name.split_once(' ').unwrap_or((&stats.name, ""));
        let name = if matches!(kind, "zeromq" | "http") { "" } else { rest };
        let at = sums.iter().position(|sum| sum.kind == kind && sum.name == name).unwrap_or_else(|| {
            sums.push(Sum { kind: kind.into(), name: name.into(), ..Sum::default() });
            sums.len() - 1
        });
        let sum = &mut sums[at];
        sum.count += 1;
        sum.queued += stats.queued;
        sum.queued_bytes += stats.queued_bytes;
        sum.dropping += u64::from(stats.overflowing);
    }
    sums
}
