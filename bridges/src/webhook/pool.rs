//! Connections: opened when one is needed, kept while they are used, at most as many as requests are under way.
//!
//! What was idle for a while is not used again: servers close what is idle (after 5 s, often), and a request that crosses with that would
//! have to be sent twice. One that was never written is sent over another connection; of any other it isn't known whether it has arrived, and
//! that is for the ledger.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::HeaderMap;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use super::error;
use super::target::Origin;
use crate::delivery::Fault;

/// How long a connection may be idle and be used again.
const IDLE: Duration = Duration::from_secs(4);
/// How much of an answer is read, so that its connection can be used again. Of more, the connection is closed.
const ANSWER_BYTES: usize = 64 * 1024;

/// The connections to one server.
pub(super) struct Pool {
    origin: Origin,
    tls: Option<Arc<ClientConfig>>,
    /// How long a request may take.
    timeout: Duration,
    idle: Mutex<Vec<Idle>>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Pool({})", self.origin)
    }
}

struct Idle {
    connection: SendRequest<Full<Bytes>>,
    since: Instant,
}

/// What a server has said.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// The beginning of it.
    pub(super) body: Bytes,
}

impl Pool {
    /// A pool without a connection yet.
    pub(super) fn new(origin: Origin, tls: Option<Arc<ClientConfig>>, timeout: Duration) -> Self {
        Pool { origin, tls, timeout, idle: Mutex::default() }
    }

    /// A pool with its first connection.
    pub(super) async fn open(origin: Origin, tls: Option<Arc<ClientConfig>>, timeout: Duration) -> Result<Self, Fault> {
        let pool = Pool::new(origin, tls, timeout);
        let connection = match timeout_at(Instant::now() + timeout, pool.connect()).await {
            Ok(connected) => connected?,
            Err(_) => return Err(error::too_slow(&pool.origin, "a connection", timeout)),
        };
        pool.idle.lock().push(Idle { connection, since: Instant::now() });
        Ok(pool)
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, Fault> {
        let Origin { host, port, .. } = &self.origin;
        let stream = TcpStream::connect((host.as_str(), *port))
            .await
            .map_err(|error| Fault::passing(format!("{} can't be reached: {error}", self.origin)))?;
        // A request is written in one piece, or in large ones.
        let _ = stream.set_nodelay(true);
        match &self.tls {
            None => self.handshake(stream).await,
            Some(config) => {
                let name = ServerName::try_from(host.clone()).map_err(|_| {
                    Fault::needs_help(format!("{}: there can't be a certificate for that host", self.origin))
                })?;
                let connected = TlsConnector::from(Arc::clone(config)).connect(name, stream).await;
                self.handshake(connected.map_err(|error| error::not_secured(&self.origin, &error))?).await
            }
        }
    }

    async fn handshake<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        &self,
        stream: S,
    ) -> Result<SendRequest<Full<Bytes>>, Fault> {
        let made = http1::handshake(TokioIo::new(stream)).await;
        let (requests, connection) = made.map_err(|error| error::broken(&self.origin, &error))?;
        // It ends with the other half, and tells that half what went wrong.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(requests)
    }

    /// A connection that was used before and is still good.
    fn used(&self) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = self.idle.lock();
        while let Some(Idle { connection, since }) = idle.pop() {
            if since.elapsed() < IDLE && !connection.is_closed() {
                return Some(connection);
            }
        }
        None
    }

    /// Sends a request and waits for its answer.
    pub(super) async fn ask(&self, request: Request<Full<Bytes>>) -> Result<Answer, Fault> {
        let deadline = Instant::now() + self.timeout;
        let late = |what| error::too_slow(&self.origin, what, self.timeout);
        let mut request = request;
        let (response, connection) = loop {
            let used = self.used();
            let was_used = used.is_some();
            let mut connection = match used {
                Some(connection) => connection,
                None => timeout_at(deadline, self.connect()).await.map_err(|_| late("a connection"))??,
            };
            let asked = async {
                if let Err(error) = connection.ready().await {
                    return Err((error, Some(request)));
                }
                connection.try_send_request(request).await.map_err(|mut error| {
                    let unsent = error.take_message();
                    (error.into_error(), unsent)
                })
            };
            match timeout_at(deadline, asked).await.map_err(|_| late("an answer"))? {
                Ok(response) => break (response, connection),
                // It was closed while it was idle, and nothing was written.
                Err((_, Some(unsent))) if was_used => request = unsent,
                Err((error, _)) => return Err(error::broken(&self.origin, &error)),
            }
        };
        let (head, body) = response.into_parts();
        let mut beginning = BytesMut::new();
        // The status has decided; what goes wrong with the rest costs the connection only.
        let is_whole = timeout_at(deadline, read(body, &mut beginning)).await.unwrap_or(false);
        if is_whole && !connection.is_closed() {
            self.idle.lock().push(Idle { connection, since: Instant::now() });
        }
        Ok(Answer { status: head.status, headers: head.headers, body: beginning.freeze() })
    }
}

/// Reads an answer's body, and tells whether that was all of it.
async fn read(mut body: Incoming, into: &mut BytesMut) -> bool {
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return false };
        if let Ok(data) = frame.into_data() {
            if into.len() + data.len() > ANSWER_BYTES {
                return false;
            }
            into.extend_from_slice(&data);
        }
    }
    true
}
