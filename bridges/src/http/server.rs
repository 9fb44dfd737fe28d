//! Listening, serving connections within bounds, and ending in order.
//!
//! A connection is a task. There is a bound on their number, further ones are closed at once; a request's head has to arrive in
//! time, so that a connection that says nothing doesn't keep its place; and before it, on TCP with TLS, the handshake, which takes place in
//! the connection's task and disturbs nobody. On TCP connections have few places of their own until somebody has shown a token or a
//! certificate; then they count among those of the socket. So strangers can't take the places of those who are known, and health can be asked
//! when followers have taken all of theirs. At the end nothing new is accepted, requests under way are
//! answered, followers get what is queued for them, all until a deadline; then what is left is closed.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::pin::Pin;
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
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::server::TlsStream;
use tower::Service;

use super::access::{Access, Caller};
use super::body::BodyBudget;
use super::encodings::Encodings;
use super::endpoints::Endpoints;
use super::metrics::Metrics;
use super::routes::{self, Daemon, Followers, Peer, Shared};
use super::secure::{Certificates, ServerTls};
use super::tokens::{TokenFiles, Tokens};
use crate::cloudevents::Encoder;

/// How long the head of a request may take to arrive.
const HEAD_PATIENCE: Duration = Duration::from_secs(30);
/// How long a TLS handshake may take.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);
/// How many connections there may be over TCP of which it isn't known whose they are.
const TCP_CONNECTIONS: usize = 100;
/// What is told of connections that there is no place for.
const FULL: &str = "a connection was refused: there are too many; [limits] http_connections";
const FULL_OF_STRANGERS: &str =
    "a connection on TCP was refused: there are too many that have shown no token and no certificate yet";
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
    /// How many connections there may be on Unix sockets, and on TCP of those who have shown who they are. 2,000 unless set.
    pub max_connections: usize,
    /// The files with the tokens for TCP. None unless set.
    pub tokens: TokenFiles,
    /// What makes TLS of TCP. Nothing unless set: then it is plain.
    pub tls: Option<ServerTls>,
    /// The names that TCP is asked by, besides `localhost` and the addresses that it listens at.
    pub hosts: Vec<String>,
}

impl Default for ServerOptions {
    fn default() -> Self {
        ServerOptions {
            body_limit_bytes: 64 << 20,
            max_connections: 2_000,
            tokens: TokenFiles::default(),
            tls: None,
            hosts: Vec::new(),
        }
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

    /// Sets the files with tokens.
    #[must_use]
    pub fn tokens(mut self, files: TokenFiles) -> Self {
        self.tokens = files;
        self
    }

    /// Sets what makes TLS of TCP.
    #[must_use]
    pub fn tls(mut self, tls: Option<ServerTls>) -> Self {
        self.tls = tls;
        self
    }

    /// Sets the names that TCP is asked by.
    #[must_use]
    pub fn hosts(mut self, hosts: Vec<String>) -> Self {
        self.hosts = hosts;
        self
    }
}

/// An HTTP server over a broker, for any number of listeners.
pub struct Server {
    shared: Arc<Shared>,
    router: Router,
    certificates: Option<Arc<Certificates>>,
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
    /// A server that doesn't listen yet. `more` are endpoints that the daemon adds. Tokens and certificates are read, which blocks; what is
    /// wrong with them is logged, and they are read again.
    pub fn new(
        broker: Broker,
        encoder: Encoder,
        daemon: Arc<dyn Daemon>,
        more: Endpoints,
        options: ServerOptions,
    ) -> Server {
        let own = routes::endpoints();
        let facts = || own.facts().chain(more.facts());
        let largest = facts().filter_map(|facts| facts.body_limit_bytes).chain([options.body_limit_bytes]).max();
        let shared = Arc::new(Shared {
            broker,
            encoder,
            budget: BodyBudget::new(largest.unwrap_or_default().saturating_mul(BODIES)),
            encodings: Encodings::new(ENCODINGS_BYTES),
            followers: Followers::default(),
            daemon,
            metrics: Metrics::default(),
            closing: AtomicBool::new(false),
            tokens: Tokens::open(options.tokens.clone()),
            certified_clients: options.tls.as_ref().is_some_and(|tls| tls.client_ca_file.is_some()),
            listening: Mutex::default(),
            places: Arc::new(Semaphore::new(options.max_connections)),
            facts: facts().cloned().collect(),
            paths: routes::short_paths(facts()),
            options,
        });
        let certificates = shared.options.tls.clone().map(|tls| Arc::new(Certificates::open(tls)));
        let router = routes::router(own.with_state(Arc::clone(&shared)).and(more), &shared);
        Server {
            shared,
            router,
            certificates,
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
        let router = self.router.clone();
        let accept = async move || {
            let (stream, _) = listener.accept().await?;
            let peer = Peer::local(&stream.peer_cred()?, &access);
            let router = match peer.caller {
                Caller::Stranger { uid } => routes::stranger(&access, uid),
                _ => router.clone(),
            };
            Ok((Box::pin(std::future::ready(Some((stream, peer)))) as Arrival<_>, router))
        };
        let places = Arc::clone(&self.shared.places);
        self.tasks.lock().spawn(listen(places, FULL, self.ending.subscribe(), accept));
        Ok(())
    }

    /// Serves a TCP socket from now on, in tasks of the current tokio runtime; with TLS, if there are certificates.
    ///
    /// # Errors
    /// When the listener can't be given to the runtime.
    pub fn serve_tcp(&self, listener: TcpListener) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        self.shared.listening.lock().push(listener.local_addr()?.ip());
        let (places, ending) = (Arc::clone(&self.tcp_places), self.ending.subscribe());
        let router = self.router.clone();
        let Some(certificates) = self.certificates.clone() else {
            let accept = async move || {
                let (stream, address) = accepted(&listener).await?;
                let peer = Peer::remote(address, local_ip(&stream), false);
                Ok((Box::pin(std::future::ready(Some((stream, peer)))) as Arrival<_>, router.clone()))
            };
            self.tasks.lock().spawn(listen(places, FULL_OF_STRANGERS, ending, accept));
            return Ok(());
        };
        let shared = Arc::clone(&self.shared);
        let accept = async move || {
            let (stream, address) = accepted(&listener).await?;
            let (certificates, shared) = (Arc::clone(&certificates), Arc::clone(&shared));
            let secured = async move {
                match secured(stream, &certificates).await {
                    Ok((stream, local, certified)) => Some((stream, Peer::remote(address, local, certified))),
                    Err(e) => {
                        // Whoever can reach the port can make these, as many as they like.
                        tracing::debug!(peer = %address, "HTTP: no connection with TLS: {e}");
                        shared.metrics.count_tls_failure();
                        None
                    }
                }
            };
            Ok((Box::pin(secured) as Arrival<_>, router.clone()))
        };
        self.tasks.lock().spawn(listen(places, FULL_OF_STRANGERS, ending, accept));
        Ok(())
    }

    /// How many connections there are on Unix sockets, and on TCP of those who have shown who they are.
    pub fn connections(&self) -> usize {
        self.shared.options.max_connections - self.shared.places.available_permits()
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

/// A connection that has come, as soon as it can be spoken on; nothing if nothing comes of it.
type Arrival<T> = Pin<Box<dyn Future<Output = Option<(T, Peer)>> + Send>>;

async fn accepted(listener: &tokio::net::TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    let (stream, address) = listener.accept().await?;
    // Followers want each event at once. Where that can't be set, they wait a little.
    let _ = stream.set_nodelay(true);
    Ok((stream, address))
}

fn local_ip(stream: &TcpStream) -> Option<IpAddr> {
    stream.local_addr().ok().map(|address| address.ip())
}

/// The handshake: the stream, the address that it came to, and whether the client has shown a certificate that lets it in.
async fn secured(
    stream: TcpStream,
    certificates: &Certificates,
) -> io::Result<(TlsStream<TcpStream>, Option<IpAddr>, bool)> {
    let local = local_ip(&stream);
    let handshake = async {
        let acceptor = certificates.acceptor().await;
        acceptor.ok_or_else(|| io::Error::other("there is no certificate yet"))?.accept(stream).await
    };
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("no handshake within {HANDSHAKE_PATIENCE:?}"));
    let stream = timeout(HANDSHAKE_PATIENCE, handshake).await.map_err(late)??;
    // Only those of the authority for clients get this far.
    let certified = stream.get_ref().1.peer_certificates().is_some_and(|chain| !chain.is_empty());
    Ok((stream, local, certified))
}

/// Accepts until the end, then waits for the connections. Ending this future ends them, too.
/// `full` is what is told where there is no place left.
async fn listen<T, A>(places: Arc<Semaphore>, full: &str, mut ending: watch::Receiver<bool>, accept: A)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A: AsyncFn() -> io::Result<(Arrival<T>, Router)>,
{
    let mut connections = JoinSet::new();
    let mut faults = Faults::default();
    loop {
        tokio::select! {
            accepted = accept() => match accepted {
                Ok((arrival, router)) => match Arc::clone(&places).try_acquire_owned() {
                    Ok(place) => {
                        connections.spawn(serve(arrival, router, place, ending.clone()));
                    }
                    Err(_) => faults.tell(full),
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

async fn serve<T>(arrival: Arrival<T>, router: Router, place: OwnedSemaphorePermit, mut ending: watch::Receiver<bool>)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let arrived = tokio::select! {
        arrived = arrival => arrived,
        () = end(&mut ending) => return,
    };
    let Some((stream, mut peer)) = arrived else { return };
    let _place = peer.take_place(place);
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

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use tokio::io::AsyncWriteExt;

    use super::*;

    fn certificates(dir: &Path) -> Certificates {
        let [cert_file, key_file] = ["cert.pem", "key.pem"].map(|name| dir.join(name));
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
            .args(["-subj", "/CN=test", "-keyout"])
            .arg(&key_file)
            .arg("-out")
            .arg(&cert_file)
            .output()
            .expect("openssl is installed");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Certificates::open(ServerTls { cert_file, key_file, client_ca_file: None })
    }

    /// A connection, from both sides.
    async fn connected() -> (TcpStream, TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (client, server) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (client.unwrap(), server.unwrap().0)
    }

    #[tokio::test(start_paused = true)]
    async fn a_handshake_that_does_not_come_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let certificates = certificates(dir.path());
        let (_silent, server) = connected().await;
        let error = secured(server, &certificates).await.map(drop).expect_err("nothing was said");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
        let (mut talks, server) = connected().await;
        talks.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let error = secured(server, &certificates).await.map(drop).expect_err("that is no TLS");
        assert_ne!(error.kind(), io::ErrorKind::TimedOut, "{error}");
    }

    #[tokio::test]
    async fn without_a_certificate_a_connection_ends() {
        let dir = tempfile::tempdir().unwrap();
        let [cert_file, key_file] = ["cert.pem", "key.pem"].map(|name| dir.path().join(name));
        let none = Certificates::open(ServerTls { cert_file, key_file, client_ca_file: None });
        let (_client, server) = connected().await;
        let error = secured(server, &none).await.map(drop).expect_err("there is none");
        assert!(error.to_string().contains("no certificate yet"), "{error}");
    }
}
