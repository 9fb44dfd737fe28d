//! [`OnedClient`]: asks oned for its hooks, by XML-RPC over HTTP or HTTPS.
//!
//! A call is one HTTP request on a connection of its own, as OpenNebula's Ruby client makes it (oned closes the connection behind each
//! answer anyway):
//!
//! ```text
//! POST /RPC2 HTTP/1.1            <methodCall><methodName>one.hook.info</methodName><params>
//! Content-Type: text/xml           <param><value><string>user:password</string></value></param>
//!                                  <param><value><i4>7</i4></value></param>
//!                                  <param><value><boolean>0</boolean></value></param></params></methodCall>
//! ```
//!
//! # Constraints
//!
//! - A call ends within its timeout, whatever the other side does, and holds at most so many bytes of an answer.
//! - oned's certificate has to be signed by an authority that the system trusts; `SSL_CERT_FILE` and `SSL_CERT_DIR` name others. There is no way to
//!   turn the check off. A proxy is not used, as the original doesn't use one.
//! - A call only asks, so it can be repeated at will.
//!
//! The few types of XML-RPC that are needed are written by hand and read with the parser for oned's events: a library for them
//! would bring a second XML parser, and would refuse what oned writes where a hook has characters that XML forbids.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hookbus_bridges::tls::{TlsOptions, trouble};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper::{Request, Response, StatusCode, Uri, body::Incoming, header};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use super::access::{Access, AccessError, Session};
use super::answer;
use super::pool::{Pool, PoolHook};
use super::reply::escape;

/// How long a call may take, unless set.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The largest answer, unless set. What oned tells of one hook holds the output of its last 20 executions.
const BODY_LIMIT_BYTES: usize = 64 << 20;

/// An answer as large as this is looked at on another thread: parsing it takes longer than other tasks should wait.
const LARGE_BYTES: usize = 128 << 10;

/// Why a call gave nothing.
#[derive(Debug, Error)]
pub enum RpcError {
    /// There is no connection.
    #[error("oned at {endpoint} can't be reached: {source}; does oned run, and is the address (ONE_XMLRPC) right?")]
    Unreachable {
        /// The address.
        endpoint: String,
        /// Why.
        source: io::Error,
    },
    /// There is no secure connection.
    #[error(
        "oned at {endpoint}: {reason}; its certificate has to be signed by an authority that the system trusts (SSL_CERT_FILE names another one)"
    )]
    Tls {
        /// The address.
        endpoint: String,
        /// Why.
        reason: String,
    },
    /// It took too long.
    #[error("oned at {endpoint} has not answered {call} within {} s; is it overloaded?", after.as_secs_f32())]
    Late {
        /// The address.
        endpoint: String,
        /// The call.
        call: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// The connection broke, or what came is no HTTP.
    #[error("oned at {endpoint} has not answered {call}: {source}; is the address (ONE_XMLRPC) that of oned?")]
    Broken {
        /// The address.
        endpoint: String,
        /// The call.
        call: &'static str,
        /// Why.
        source: hyper::Error,
    },
    /// HTTP says that something is wrong.
    #[error("oned at {endpoint} has answered {call} with HTTP {status}; is the address (ONE_XMLRPC) that of oned?")]
    Status {
        /// The address.
        endpoint: String,
        /// The call.
        call: &'static str,
        /// The status.
        status: u16,
    },
    /// The answer is larger than is taken.
    #[error("the answer of oned at {endpoint} to {call} has more than {limit_bytes} bytes")]
    TooLarge {
        /// The address.
        endpoint: String,
        /// The call.
        call: &'static str,
        /// The limit.
        limit_bytes: usize,
    },
    /// The answer isn't one of oned.
    #[error(
        "the answer of oned at {endpoint} to {call} makes no sense: {what}; is the address (ONE_XMLRPC) that of oned?"
    )]
    Nonsense {
        /// The address.
        endpoint: String,
        /// The call.
        call: &'static str,
        /// What is wrong.
        what: String,
    },
    /// The XML-RPC server of oned has not understood the call.
    #[error("oned at {endpoint} has refused {call}: {message} (fault {code}); is its version known?")]
    Fault {
        /// The address.
        endpoint: String,
        /// The call.
        call: &'static str,
        /// The number of the fault.
        code: i64,
        /// Its text.
        message: String,
    },
    /// oned doesn't know who asks, or the password is wrong.
    #[error(
        "oned at {endpoint} doesn't accept user and password from {session}: {message}; correct the file, or set ONE_AUTH"
    )]
    NotAuthenticated {
        /// The address.
        endpoint: String,
        /// Where user and password came from.
        session: String,
        /// What oned says.
        message: String,
    },
    /// Who asks isn't allowed to.
    #[error("oned at {endpoint} doesn't let the user from {session} see hooks: {message}; that of oneadmin may")]
    NotAuthorized {
        /// The address.
        endpoint: String,
        /// Where user and password came from.
        session: String,
        /// What oned says.
        message: String,
    },
    /// There is no such hook, any more or yet.
    #[error("oned has no such hook: {message}")]
    NoSuchHook {
        /// What oned says.
        message: String,
    },
    /// oned says that it went wrong.
    #[error("oned at {endpoint} has failed at {call}: {message} (code {code})")]
    Failed {
        /// The address.
        endpoint: String,
        /// The call.
        call: &'static str,
        /// oned's code.
        code: i64,
        /// What oned says.
        message: String,
    },
}

/// A client of oned's XML-RPC.
#[derive(Clone, Debug)]
pub struct OnedClient {
    target: Arc<Target>,
    session: Session,
    tls: TlsOptions,
    timeout: Duration,
    body_limit_bytes: usize,
}

/// What an address says.
#[derive(Debug)]
struct Target {
    /// As it is shown.
    endpoint: String,
    secure: bool,
    host: String,
    port: u16,
    /// The Host header.
    authority: String,
    path: String,
}

impl Target {
    fn new(endpoint: &str) -> Result<Self, AccessError> {
        let bad = |what: &str| AccessError::BadEndpoint { endpoint: super::shown(endpoint), what: what.into() };
        let uri: Uri = endpoint.parse().map_err(|e| bad(&format!("{e}")))?;
        let secure = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(bad("it begins with neither http:// nor https://")),
        };
        let authority = uri.authority().ok_or_else(|| bad("it has no host"))?;
        if authority.as_str().contains('@') {
            // Not shown: it may hold a password.
            let endpoint = "http://...@...".to_owned();
            let what = "user and password don't belong there but in the file that ONE_AUTH names".to_owned();
            return Err(AccessError::BadEndpoint { endpoint, what });
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(bad("it has no host"));
        }
        let default = if secure { 443 } else { 80 };
        let path = match uri.path_and_query().map_or("", |path| path.as_str()) {
            "" | "/" => "/RPC2".to_owned(),
            path => path.to_owned(),
        };
        Ok(Target {
            endpoint: endpoint.to_owned(),
            secure,
            host,
            port: authority.port_u16().unwrap_or(default),
            authority: authority.as_str().to_owned(),
            path,
        })
    }
}

impl OnedClient {
    /// A client. Nothing is asked yet.
    ///
    /// # Errors
    /// When the address makes no sense.
    pub fn new(access: &Access) -> Result<Self, AccessError> {
        Ok(OnedClient {
            target: Arc::new(Target::new(&access.endpoint)?),
            session: access.session.clone(),
            tls: TlsOptions::default(),
            timeout: access.timeout.unwrap_or(TIMEOUT),
            body_limit_bytes: BODY_LIMIT_BYTES,
        })
    }

    /// Sets how long a call may take; 30 s unless set here or in the [`Access`].
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets what oned's certificate is checked with; what the system trusts unless set.
    #[must_use]
    pub fn tls(mut self, tls: TlsOptions) -> Self {
        self.tls = tls;
        self
    }

    /// Sets how large an answer may be; 64 MiB unless set. While it is read, a few times of that is held.
    #[must_use]
    pub fn body_limit_bytes(mut self, bytes: usize) -> Self {
        self.body_limit_bytes = bytes;
        self
    }

    /// The address, as it was given.
    pub fn endpoint(&self) -> &str {
        &self.target.endpoint
    }

    /// All hooks: `one.hookpool.info`, with the filters that the original uses.
    ///
    /// # Errors
    /// When there is no list of hooks in what comes of it.
    pub async fn hook_pool(&self) -> Result<Pool, RpcError> {
        const CALL: &str = "one.hookpool.info";
        let all = "<param><value><i4>-1</i4></value></param>";
        self.call(CALL, &[all, all, all].concat(), |xml| Pool::parse(xml.as_bytes())).await
    }

    /// One hook: `one.hook.info`.
    ///
    /// oned adds the log of the hook's last executions with all their output. Where that is [too large](RpcError::TooLarge),
    /// [`hook_pool`](Self::hook_pool) has the hook without it.
    ///
    /// # Errors
    /// When there is no hook in what comes of it; [`RpcError::NoSuchHook`] where oned has none of that number.
    pub async fn hook(&self, id: i64) -> Result<PoolHook, RpcError> {
        const CALL: &str = "one.hook.info";
        let parameters =
            format!("<param><value><i4>{id}</i4></value></param><param><value><boolean>0</boolean></value></param>");
        self.call(CALL, &parameters, |xml| PoolHook::parse(xml.as_bytes())).await
    }

    /// Asks, and reads the text in the answer.
    async fn call<T: Send + 'static>(
        &self,
        call: &'static str,
        parameters: &str,
        read: impl FnOnce(&str) -> Result<T, super::PoolError> + Send + 'static,
    ) -> Result<T, RpcError> {
        let session = escape(self.session.text());
        let body = format!(
            "<?xml version=\"1.0\" ?><methodCall><methodName>{call}</methodName><params>\
             <param><value><string>{session}</string></value></param>{parameters}</params></methodCall>\n"
        );
        let late = || RpcError::Late { endpoint: self.endpoint().into(), call, after: self.timeout };
        let body = timeout(self.timeout, self.ask(call, body)).await.map_err(|_| late())??;
        let large = body.len() >= LARGE_BYTES;
        let read = move || match answer::text(&body) {
            Ok(text) => read(&text).map_err(|e| answer::Wrong::Nonsense(e.to_string())),
            Err(wrong) => Err(wrong),
        };
        let read = if large {
            spawn_blocking(read)
                .await
                .unwrap_or_else(|e| Err(answer::Wrong::Nonsense(format!("it could not be read: {e}"))))
        } else {
            read()
        };
        read.map_err(|wrong| self.error(call, wrong))
    }

    fn error(&self, call: &'static str, wrong: answer::Wrong) -> RpcError {
        let endpoint = self.endpoint().to_owned();
        let session = self.session.from().to_owned();
        match wrong {
            answer::Wrong::Nonsense(what) => RpcError::Nonsense { endpoint, call, what },
            answer::Wrong::Fault { code, message } => RpcError::Fault { endpoint, call, code, message },
            answer::Wrong::Oned { code, message } => match code {
                answer::AUTHENTICATION => RpcError::NotAuthenticated { endpoint, session, message },
                answer::AUTHORIZATION => RpcError::NotAuthorized { endpoint, session, message },
                answer::NO_EXISTS => RpcError::NoSuchHook { message },
                _ => RpcError::Failed { endpoint, call, code, message },
            },
        }
    }

    /// Sends a request on a connection of its own and returns the body of the answer.
    async fn ask(&self, call: &'static str, body: String) -> Result<Bytes, RpcError> {
        let target = &*self.target;
        let endpoint = || target.endpoint.clone();
        let stream = TcpStream::connect((target.host.as_str(), target.port))
            .await
            .map_err(|source| RpcError::Unreachable { endpoint: endpoint(), source })?;
        // A failure costs some time at most.
        let _ = stream.set_nodelay(true);
        if !target.secure {
            return self.talk(call, body, stream).await;
        }
        let tls = |reason: String| RpcError::Tls { endpoint: endpoint(), reason };
        let config = self.tls.load().await.map_err(|e| tls(e.to_string()))?;
        let name = ServerName::try_from(target.host.clone()).map_err(|e| tls(e.to_string()))?;
        let connector = TlsConnector::from(Arc::new(config));
        let stream = connector
            .connect(name, stream)
            .await
            .map_err(|e| tls(trouble(&e).unwrap_or_else(|| format!("TLS failed: {e}"))))?;
        self.talk(call, body, stream).await
    }

    async fn talk<S>(&self, call: &'static str, body: String, stream: S) -> Result<Bytes, RpcError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let endpoint = || self.target.endpoint.clone();
        let broken = |source| RpcError::Broken { endpoint: endpoint(), call, source };
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let request = self.request(body).map_err(|e| RpcError::Nonsense {
            endpoint: endpoint(),
            call,
            what: format!("a request can't be made of it ({e})"),
        })?;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(broken)?;
            if response.status() != StatusCode::OK {
                return Err(RpcError::Status { endpoint: endpoint(), call, status: response.status().as_u16() });
            }
            self.body(call, response).await
        };
        // The connection works only while somebody asks it to, and ends with the exchange.
        let connection = async {
            let _ = connection.await;
            std::future::pending().await
        };
        tokio::select! {
            answer = exchange => answer,
            answer = connection => answer,
        }
    }

    fn request(&self, body: String) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
        Request::post(&self.target.path)
            .header(header::HOST, &self.target.authority)
            .header(header::USER_AGENT, concat!("hookbus-hem/", env!("CARGO_PKG_VERSION")))
            .header(header::CONTENT_TYPE, "text/xml; charset=utf-8")
            .header(header::ACCEPT_ENCODING, "identity")
            .header(header::ACCEPT, "*/*")
            .header(header::CONNECTION, "close")
            .body(Full::new(Bytes::from(body)))
    }

    async fn body(&self, call: &'static str, response: Response<Incoming>) -> Result<Bytes, RpcError> {
        let endpoint = || self.target.endpoint.clone();
        let limited = Limited::new(response.into_body(), self.body_limit_bytes);
        let error = match limited.collect().await {
            Ok(collected) => return Ok(collected.to_bytes()),
            Err(error) => error,
        };
        if error.is::<LengthLimitError>() {
            return Err(RpcError::TooLarge { endpoint: endpoint(), call, limit_bytes: self.body_limit_bytes });
        }
        Err(match error.downcast::<hyper::Error>() {
            Ok(source) => RpcError::Broken { endpoint: endpoint(), call, source: *source },
            Err(other) => RpcError::Nonsense { endpoint: endpoint(), call, what: other.to_string() },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(endpoint: &str) -> Result<(bool, String, u16, String), String> {
        Target::new(endpoint).map(|t| (t.secure, t.host, t.port, t.path)).map_err(|e| e.to_string())
    }

    #[test]
    fn addresses() {
        for (endpoint, secure, host, port, path) in [
            ("http://localhost:2633/RPC2", false, "localhost", 2633, "/RPC2"),
            ("https://one.example.com/RPC2?x=y", true, "one.example.com", 443, "/RPC2?x=y"),
            ("http://[::1]:2633", false, "::1", 2633, "/RPC2"),
            ("http://10.0.0.1/", false, "10.0.0.1", 80, "/RPC2"),
        ] {
            assert_eq!(target(endpoint), Ok((secure, host.into(), port, path.into())), "{endpoint}");
        }
        for (endpoint, expected) in [
            ("localhost:2633", "neither http:// nor https://"),
            ("ftp://x/", "neither http:// nor https://"),
            ("/RPC2", "neither http:// nor https://"),
            ("http://", "is no address of oned"),
            ("", "is no address of oned"),
            ("http://a b/", "is no address of oned"),
            ("http://me:secret@one/RPC2", "user and password don't belong there"),
        ] {
            let said = target(endpoint).unwrap_err();
            assert!(said.contains(expected) && said.contains("ONE_XMLRPC") && !said.contains("secret"), "{said}");
        }
    }
}
