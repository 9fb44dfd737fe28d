//! The HTTP server of the daemon: where it listens, and what it tells about the daemon.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;

use hookbus_bridges::delivery::{BridgeState, BridgeStatus, Counts};
use hookbus_bridges::http::{self, Access, DescriptorEncoder, Server, ServerOptions, encode_counter, encode_gauge};
use serde_json::Value;
use thiserror::Error;
use tokio::time::Instant;

use super::State;
use super::bridges::Bridges;
use super::ganeti;
use super::hooks::{self, Hooks};
use super::routes;
use super::socket::{SocketError, SocketFile};
use crate::config::default_sockets;

/// A server that listens.
pub(crate) struct Http {
    server: Server,
    /// Removed at the end; nothing where systemd has made the socket.
    socket: Option<SocketFile>,
    /// What listings show.
    socket_path: Option<PathBuf>,
    listen: Vec<SocketAddr>,
}

/// Why it doesn't.
#[derive(Debug, Error)]
pub(crate) enum HttpError {
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("[http] group: {0}")]
    Group(String),
    #[error("[http] listen: {address}: {error}; is another process using it?")]
    Listen { address: SocketAddr, error: io::Error },
    #[error("[http] listen: {0} is reachable from other machines, which needs TLS: set cert_file and key_file")]
    Unsecured(SocketAddr),
    #[error("HTTP: cannot serve: {0}")]
    Runtime(#[from] io::Error),
}

impl Http {
    /// Listens wherever the configuration says, at `activated` instead of a socket of its own if systemd has made one.
    pub(crate) fn start(state: &Arc<State>, activated: Option<UnixListener>) -> Result<Self, HttpError> {
        let config = &state.config;
        let mut access = Access::own_user();
        if let Some(group) = &config.http.group {
            access = access.with_group(group).map_err(HttpError::Group)?;
        }
        let options = ServerOptions::default()
            .body_limit_bytes(config.limits.http_body_bytes.bytes())
            .max_connections(config.limits.http_connections)
            .tokens(config.http.tokens())
            .tls(config.http.tls())
            .hosts(config.http.hosts.clone());
        let secured = options.tls.is_some();
        let encoder = state.encoder.clone();
        let daemon: Arc<dyn http::Daemon> = Arc::clone(state) as _;
        let server = Server::new(
            state.broker.clone(),
            encoder,
            daemon,
            state.forwarded.routes().and(routes::routes(state)).and(hooks::routes(state)).and(ganeti::routes(state)),
            options,
        );
        // TCP first: the socket's file appears when everything else is there.
        let mut listen = Vec::new();
        for &address in &config.http.listen {
            if !secured && !address.ip().to_canonical().is_loopback() {
                return Err(HttpError::Unsecured(address));
            }
            let listener = TcpListener::bind(address).map_err(|error| HttpError::Listen { address, error })?;
            let address = listener.local_addr()?;
            server.serve_tcp(listener)?;
            let scheme = if secured { "https" } else { "http" };
            tracing::info!("HTTP: listens at {scheme}://{address} ({})", config.http.lets_in());
            listen.push(address);
        }
        let (socket, socket_path, listener) = match activated {
            Some(listener) => {
                let path = listener.local_addr().ok().and_then(|address| address.as_pathname().map(PathBuf::from));
                (None, path, listener)
            }
            None => {
                let defaults = default_sockets(|name| std::env::var_os(name));
                let (file, listener) = SocketFile::listen(config.http.socket.as_deref(), &defaults, access.gid())?;
                let path = file.path().to_owned();
                (Some(file), Some(path), listener)
            }
        };
        server.serve_unix(listener, access)?;
        if let Some(path) = &socket_path {
            tracing::info!("HTTP: listens at {}", path.display());
        }
        Ok(Http { server, socket, socket_path, listen })
    }

    pub(crate) fn socket(&self) -> Option<PathBuf> {
        self.socket_path.clone()
    }

    pub(crate) fn listen(&self) -> Vec<SocketAddr> {
        self.listen.clone()
    }

    /// Refuses events from now on.
    pub(crate) fn take_nothing_in(&self) {
        self.server.refuse_events();
    }

    /// Ends in order.
    pub(crate) async fn shut_down(&self, deadline: Instant) {
        self.server.shutdown(deadline).await;
    }
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http").field("socket", &self.socket).field("listen", &self.listen).finish_non_exhaustive()
    }
}

impl http::Daemon for State {
    fn status(&self) -> Value {
        State::status(self)
    }

    fn ready(&self) -> Result<(), String> {
        self.is_ready()
    }

    fn awaits_journal(&self) -> bool {
        self.config.journal.enabled && self.broker.journal().is_none()
    }

    fn collect(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        encode_gauge(encoder, "hookbus_build_info", "The version of hookbus", [(&version[..], 1.0)])?;
        let started = self.started.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        encode_gauge(encoder, "hookbus_start_time_seconds", "When it started, since 1970", [(&[][..], started)])?;
        let max_bytes = self.config.broker.max_bytes.bytes() as f64;
        encode_gauge(encoder, "hookbus_max_bytes", "What all queues may hold", [(&[][..], max_bytes)])?;
        let driver = self.forwarded.status();
        let taken = [(&[][..], driver.taken_in)];
        encode_counter(encoder, "hookbus_forwarded_events", "Events that a driver has forwarded", taken)?;
        let lost = [(&[][..], driver.lost)];
        encode_counter(encoder, "hookbus_forwarded_lost", "Events that a forwarding driver had no room for", lost)?;
        self.collect_journal(encoder)?;
        self.collect_bridges(encoder)?;
        let Some(hooks) = self.parts.lock().hooks.as_deref().map(Hooks::counters) else { return Ok(()) };
        let running = [(&[][..], hooks.running as f64)];
        encode_gauge(encoder, "hookbus_hooks_running", "Hooks that run now", running)?;
        // Hooks are few, and their names come from the operator.
        let labels: Vec<_> = hooks
            .hooks
            .iter()
            .flat_map(|hook| {
                [("success", hook.successes), ("failure", hook.failures)].map(|(r, n)| (&*hook.name, r, n))
            })
            .map(|(name, result, count)| ([("hook", name), ("result", result)], count))
            .collect();
        let values = labels.iter().map(|(labels, count)| (&labels[..], *count));
        encode_counter(encoder, "hookbus_hook_runs", "Hooks that have ended", values)
    }
}

impl State {
    fn collect_journal(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Some(journal) = self.broker.journal() else { return Ok(()) };
        let stats = journal.stats();
        let bytes = [(&[][..], stats.disk_bytes as f64)];
        encode_gauge(encoder, "hookbus_journal_bytes", "What the journal takes on the disk", bytes)?;
        let failing = [(&[][..], f64::from(u8::from(stats.failing.is_some())))];
        encode_gauge(encoder, "hookbus_journal_failing", "Whether the journal can't be written now", failing)?;
        for (name, help, value) in [
            ("hookbus_journal_written", "Events written to the journal", stats.messages),
            ("hookbus_journal_written_bytes", "Bytes written to the journal", stats.bytes),
            ("hookbus_journal_gaps", "Gaps written to the journal", stats.gaps),
            ("hookbus_journal_damaged", "Places of the journal found damaged", stats.damaged),
        ] {
            encode_counter(encoder, name, help, [(&[][..], value)])?;
        }
        Ok(())
    }

    /// Bridges are few, and their names come from the operator.
    fn collect_bridges(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let (all, dead_letters) = {
            let parts = self.parts.lock();
            (parts.bridges.as_ref().map(Bridges::status).unwrap_or_default(), parts.dead_letters.clone())
        };
        if let Some(dead_letters) = dead_letters {
            let kept = [(&[][..], dead_letters.count(None) as f64)];
            encode_gauge(encoder, "hookbus_dead_letters", "Dead letters that are kept", kept)?;
        }
        let labels: Vec<_> = all.iter().map(|bridge| [("bridge", &*bridge.name), ("type", &*bridge.kind)]).collect();
        type Gauge = fn(&BridgeStatus) -> f64;
        let gauges: [(&str, &str, Gauge); 4] = [
            ("hookbus_bridge_ready", "Whether the bridge is connected and delivers", |bridge| {
                f64::from(u8::from(matches!(bridge.state, BridgeState::Ready)))
            }),
            ("hookbus_bridge_lag_events", "Events that are not known to be on the bus", |b| b.lag_events as f64),
            ("hookbus_bridge_lag_seconds", "Age of the oldest event taken and not known to be on the bus", |b| {
                b.lag_seconds
            }),
            ("hookbus_bridge_in_flight", "Events handed over and not told of", |bridge| bridge.in_flight as f64),
        ];
        for (name, help, value) in gauges {
            let values = labels.iter().zip(&all).map(|(labels, bridge)| (&labels[..], value(bridge)));
            encode_gauge(encoder, name, help, values)?;
        }
        type Counter = fn(&Counts) -> u64;
        let counters: [(&str, &str, Counter); 9] = [
            ("hookbus_bridge_confirmed", "Events that the bus has confirmed", |counts| counts.confirmed),
            ("hookbus_bridge_retried", "Events sent again, each time counted", |counts| counts.retried),
            ("hookbus_bridge_duplicates", "Repetitions that the bus has recognised", |counts| counts.duplicates),
            ("hookbus_bridge_unroutable", "Events that nobody was bound for", |counts| counts.unroutable),
            ("hookbus_bridge_filtered", "Events not sent, because the bridge's condition says so", |counts| {
                counts.filtered
            }),
            ("hookbus_bridge_dropped", "Events dropped before they reached the bridge", |counts| counts.dropped),
            ("hookbus_bridge_omitted", "Events sent without their data, which is too large", |counts| counts.omitted),
            ("hookbus_bridge_dead", "Events that became dead letters", |counts| counts.dead),
            ("hookbus_bridge_connects", "Connections made", |counts| counts.connects),
        ];
        for (name, help, value) in counters {
            let values = labels.iter().zip(&all).map(|(labels, bridge)| (&labels[..], value(&bridge.counts)));
            encode_counter(encoder, name, help, values)?;
        }
        Ok(())
    }
}
