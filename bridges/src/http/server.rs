//! Listening, serving connections within bounds, and ending in order.
//!
//! A connection is a task. There is a bound on their number, further ones are closed at once; a request's head has to arrive in
//! time, so that a connection that says nothing doesn't keep its place. At the end nothing new is accepted, requests under way are
//! answered, followers get what is queued for them, all until a deadline; then what is left is closed.

use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hookbus_broker::Broker;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tower::Service;

use super::access::{Access, Caller};
use super::body::BodyBudget;
use super::encodings::Encodings;
use super::metrics::Metrics;
use super::routes::{self, Daemon, Followers, Peer, Shared};
use crate::cloudevents::Encoder;

/// How long the head of a request may take to arrive.
const HEAD_PATIENCE: Duration = Duration::from_secs(30);
/// How many connections there may be over TCP, where nobody stays. They have places of their own, so that health can be asked when
/// followers have taken all others.
const TCP_CONNECTIONS: usize = 100;
/// What a connection may hold of answers that its client doesn't take; beyond that nothing more is made.
const WRITE_BUFFER_BYTES: usize = 64 << 10;
/// What is kept of encodings for followers of the same events.
const ENCODINGS_BYTES: usize = 4 << 20;
/// All bodies that are on their way, in multiples of the limit for one.
const BODIES: usize = 4;

/// How a server is set up.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ServerOptions {
    /// The largest body of a request, in bytes. 64 MiB unless set.
    pub body_limit_bytes: usize,
    /// How many connections there may be on Unix sockets. 2,000 unless set.
    pub max_connections: usize,
}

impl Default for ServerOptions {
    fn default() -> Self {
        ServerOptions { body_limit_bytes: 64 << 20, max_connections: 2_000 }
    }
}

impl ServerOptions {
    /// Sets the largest body of a request.
    #[must_use]
    pub fn body_limit_bytes(mut self, bytes: usize) -> Self {
        self.body_limit_bytes = bytes;
        self
    }

    /// Sets how many connections there may be.
    #[must_use]
    pub fn max_connections(mut self, connections: usize) -> Self {
        self.max_connections = connections;
        self
    }
}

/// An HTTP server over a broker, for any number of listeners.
pub struct Server {
    shared: Arc<Shared>,
    more: Router,
    places: Arc<Semaphore>,
    tcp_places: Arc<Semaphore>,
    tasks: Mutex<JoinSet<()>>,
    /// Becomes true when it ends.
    ending: watch::Sender<bool>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("options", &self.shared.options).finish_non_exhaustive()
    }
}

impl Server {
    /// A server that doesn't listen yet. `more` are routes that the daemon adds for local callers.
    pub fn new(
        broker: Broker,
        encoder: Encoder,
        daemon: Arc<dyn Daemon>,
        more: Router,
        options: ServerOptions,
    ) -> Server {
        let places = Arc::new(Semaphore::new(options.max_connections));
        let shared = Shared {
            broker,
            encoder,
            budget: BodyBudget::new(options.body_limit_bytes.saturating_mul(BODIES)),
            encodings: Encodings::new(ENCODINGS_BYTES),
            followers: Followers::default(),
            daemon,
            metrics: Metrics::default(),
            closing: AtomicBool::new(false),
            options,
        };
        Server {
            shared: Arc::new(shared),
            more,
            places,
            tcp_places: Arc::new(Semaphore::new(TCP_CONNECTIONS)),
            tasks: Mutex::default(),
            ending: watch::Sender::new(false),
        }
    }

    /// Serves a Unix socket from now on, in tasks of the current tokio runtime.
    ///
    /// # Errors
    /// When the listener can't be given to the runtime.
    pub fn serve_unix(&self, listener: UnixListener, access: Access) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::UnixListener::from_std(listener)?;
        let local = routes::local(&self.shared, self.more.clone());
        let accept = async move || {
            let (stream, _) = listener.accept().await?;
            let peer = Peer::local(&stream.peer_cred()?, &access);
            let router = match peer.caller {
                Caller::Stranger { uid } => routes::stranger(&access, uid),
                _ => local.clone(),
            };
            Ok((stream, peer, router))
        };
        self.tasks.lock().spawn(listen(Arc::clone(&self.places), self.ending.subscribe(), accept));
        Ok(())
    }

    /// Serves health and metrics on a TCP socket from now on, in tasks of the current tokio runtime.
    ///
    /// # Errors
    /// When the listener can't be given to the runtime.
    pub fn serve_tcp(&self, listener: TcpListener) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let router = routes::anonymous(&self.shared);
        let accept = async move || {
            let (stream, address) = listener.accept().await?;
            Ok((stream, Peer::remote(address), router.clone()))
        };
        self.tasks.lock().spawn(listen(Arc::clone(&self.tcp_places), self.ending.subscribe(), accept));
        Ok(())
    }

    /// How many connections there are on Unix sockets.
    pub fn connections(&self) -> usize {
        self.shared.options.max_connections - self.places.available_permits()
    }

    /// Answers 503 to whoever publishes from now on; everything else goes on.
    pub fn refuse_events(&self) {
        self.shared.closing.store(true, Ordering::Relaxed);
    }

    /// Ends in order, by `deadline` at the latest. The listeners are closed first.
    pub async fn shutdown(&self, deadline: Instant) {
        self.refuse_events();
        self.ending.send_replace(true);
        self.shared.followers.close();
        let mut tasks = std::mem::take(&mut *self.tasks.lock());
        let all = async { while tasks.join_next().await.is_some() {} };
        if timeout_at(deadline, all).await.is_err() {
            tracing::warn!("HTTP: {} connections were closed before they had everything", self.connections());
        }
    }
}

/// Accepts until the end, then waits for the connections. Ending this future ends them, too.
async fn listen<S, A>(places: Arc<Semaphore>, mut ending: watch::Receiver<bool>, accept: A)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A: AsyncFn() -> io::Result<(S, Peer, Router)>,
{
    let mut connections = JoinSet::new();
    let mut faults = Faults::default();
    loop {
        tokio::select! {
            accepted = accept() => match accepted {
                Ok((stream, peer, router)) => match Arc::clone(&places).try_acquire_owned() {
                    Ok(place) => {
                        connections.spawn(serve(stream, peer, router, place, ending.clone()));
                    }
                    Err(_) => faults.tell("a connection was refused: there are too many; [limits] http_connections"),
                },
                Err(e) => {
                    faults.tell(&format!("accepting a connection failed: {e}"));
                    // Where the cause lasts (no more descriptors), trying again at once would only burn the processor.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(ended) = connections.join_next() => {
                if let Err(e) = ended {
                    tracing::error!("HTTP: the task of a connection failed, the others go on: {e}");
                }
            }
            () = end(&mut ending) => break,
        }
    }
    drop(accept);
    while connections.join_next().await.is_some() {}
}

async fn serve<S>(
    stream: S,
    peer: Peer,
    router: Router,
    _place: OwnedSemaphorePermit,
    mut ending: watch::Receiver<bool>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let name = peer.name();
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        router.clone().call(request.map(Body::new))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .max_buf_size(WRITE_BUFFER_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = end(&mut ending) => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(e) = ended {
        // A client that hangs up is no fault of anybody.
        tracing::debug!(peer = name, "HTTP connection ended: {e}");
    }
}

/// Waits for the end. A server that was dropped has ended, too.
async fn end(ending: &mut watch::Receiver<bool>) {
    let _ = ending.wait_for(|ending| *ending).await;
}

/// Tells a fault at most once in ten seconds, with the number of those in between.
#[derive(Default)]
struct Faults {
    last: Option<Instant>,
    held_back: u64,
}

impl Faults {
    fn tell(&mut self, what: &str) {
        let now = Instant::now();
        if self.last.is_some_and(|last| now - last < Duration::from_secs(10)) {
            self.held_back += 1;
            return;
        }
        let suppressed = std::mem::take(&mut self.held_back);
        self.last = Some(now);
        tracing::warn!(suppressed, "HTTP: {what}");
    }
}
