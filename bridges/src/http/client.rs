//! The asking side, over a Unix socket: what the command line uses, and `hookbus hm --forward`.
//!
//! Each request has a connection of its own; on a local socket that costs nothing worth saving.

use std::fmt;
use std::io;
use std::path::PathBuf;

use axum::http::{HeaderValue, Method, Request, StatusCode, header};
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::UnixStream;

/// The longest event that a follower takes, so that a server that never ends a line can't fill the memory.
const MAX_EVENT_BYTES: usize = 512 << 20;
/// The largest answer that isn't a stream.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// Asks the daemon behind the first socket of a list that somebody listens at.
#[derive(Clone, Debug)]
pub struct Client {
    sockets: Vec<PathBuf>,
}

/// Why there was no answer, or not the one that was wanted.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody listens at any of the sockets.
    #[error("no hookbus daemon answers: {}", Tried(.0))]
    NoDaemon(Vec<(PathBuf, io::Error)>),
    /// The daemon refused.
    #[error("{detail}")]
    Refused {
        /// The HTTP status.
        status: StatusCode,
        /// What the daemon says about it.
        detail: String,
    },
    /// The connection broke.
    #[error("the connection to the daemon broke: {0}")]
    Broken(#[from] hyper::Error),
    /// What came is not what a hookbus daemon says.
    #[error("the daemon's answer can't be understood: {0}")]
    Strange(String),
}

struct Tried<'a>(&'a [(PathBuf, io::Error)]);

impl fmt::Display for Tried<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            f.write_str("there is no socket to try")?;
        }
        for (i, (path, e)) in self.0.iter().enumerate() {
            write!(f, "{}{}: {e}", if i == 0 { "tried " } else { "; " }, path.display())?;
        }
        f.write_str(". Is `hookbus serve` running? --socket names another socket")
    }
}

impl Client {
    /// A client of the first of these sockets that somebody listens at.
    pub fn new(sockets: Vec<PathBuf>) -> Self {
        Client { sockets }
    }

    async fn connect(&self) -> Result<UnixStream, ClientError> {
        let mut tried = Vec::new();
        for path in &self.sockets {
            match UnixStream::connect(path).await {
                Ok(stream) => return Ok(stream),
                Err(e) => tried.push((path.clone(), e)),
            }
        }
        Err(ClientError::NoDaemon(tried))
    }

    /// Sends a request and returns the answer's head and body, where it is a success.
    async fn send(&self, mut request: Request<Full<Bytes>>) -> Result<hyper::Response<Incoming>, ClientError> {
        request.headers_mut().insert(header::HOST, HeaderValue::from_static("localhost"));
        let stream = self.connect().await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection.with_upgrades());
        let response = sender.send_request(request).await?;
        let status = response.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let body = whole(response.into_body()).await?;
        let problem: Option<serde_json::Value> = serde_json::from_slice(&body).ok();
        let detail = problem.as_ref().and_then(|problem| problem["detail"].as_str()).map(str::to_owned);
        let detail = detail.unwrap_or_else(|| format!("the daemon answered {status}"));
        Err(ClientError::Refused { status, detail })
    }

    /// Asks for something that is answered whole.
    ///
    /// # Errors
    /// When there is no daemon, or no success.
    pub async fn get(&self, path: &str) -> Result<Bytes, ClientError> {
        let request = request(Method::GET, path, &[], Bytes::new())?;
        whole(self.send(request).await?.into_body()).await
    }

    /// Sends something, with these headers.
    ///
    /// # Errors
    /// When there is no daemon, or no success.
    pub async fn post(&self, path: &str, headers: &[(&str, &str)], body: Bytes) -> Result<Bytes, ClientError> {
        let request = request(Method::POST, path, headers, body)?;
        whole(self.send(request).await?.into_body()).await
    }

    /// Puts something in the place of what is there.
    ///
    /// # Errors
    /// When there is no daemon, or no success.
    pub async fn put(&self, path: &str, headers: &[(&str, &str)], body: Bytes) -> Result<Bytes, ClientError> {
        let request = request(Method::PUT, path, headers, body)?;
        whole(self.send(request).await?.into_body()).await
    }

    /// Asks for something to be deleted.
    ///
    /// # Errors
    /// When there is no daemon, or no success.
    pub async fn delete(&self, path: &str) -> Result<(), ClientError> {
        self.send(request(Method::DELETE, path, &[], Bytes::new())?).await.map(drop)
    }

    /// Follows events from now on; `query` is the query string of `/v1/events`. One that has followed before gives the last id
    /// that it has seen.
    ///
    /// # Errors
    /// When there is no daemon, or no success.
    pub async fn follow(&self, query: &str, last_id: Option<&str>) -> Result<Following, ClientError> {
        let headers: Vec<_> = last_id.map(|id| ("last-event-id", id)).into_iter().collect();
        let request = request(Method::GET, &format!("/v1/events?{query}"), &headers, Bytes::new())?;
        let body = self.send(request).await?.into_body();
        Ok(Following { body, text: BytesMut::new(), searched: 0 })
    }

    /// Asks for a connection that speaks another protocol from then on.
    ///
    /// # Errors
    /// When there is no daemon, or it doesn't speak the protocol.
    pub async fn upgrade(&self, path: &str, protocol: &str) -> Result<TokioIo<Upgraded>, ClientError> {
        let headers = [("connection", "upgrade"), ("upgrade", protocol)];
        let response = self.send(request(Method::GET, path, &headers, Bytes::new())?).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(ClientError::Strange(format!("{} instead of a switch to {protocol}", response.status())));
        }
        Ok(TokioIo::new(hyper::upgrade::on(response).await?))
    }
}

fn request(
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: Bytes,
) -> Result<Request<Full<Bytes>>, ClientError> {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Full::new(body)).map_err(|e| ClientError::Strange(format!("the request can't be made: {e}")))
}

async fn whole(mut body: Incoming) -> Result<Bytes, ClientError> {
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            if bytes.len() + data.len() > MAX_ANSWER_BYTES {
                return Err(ClientError::Strange("it is too long".into()));
            }
            bytes.extend_from_slice(&data);
        }
    }
    Ok(bytes.freeze())
}

/// A stream of server-sent events.
#[derive(Debug)]
pub struct Following {
    body: Incoming,
    text: BytesMut,
    /// How much of `text` is known to hold no end of an event.
    searched: usize,
}

/// One of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerEvent {
    /// Its id: the offset.
    pub id: String,
    /// Its type; empty for an ordinary event, `gap` for the news that some were dropped.
    pub kind: String,
    /// Its data, lines joined by LF.
    pub data: String,
}

impl Following {
    /// The next event; `None` at the end of the stream. Cancelling loses nothing.
    ///
    /// # Errors
    /// When the connection breaks, or what comes is no stream of events.
    pub async fn next(&mut self) -> Result<Option<ServerEvent>, ClientError> {
        loop {
            while let Some(block) = self.block() {
                if let Some(event) = ServerEvent::parse(&block) {
                    return Ok(Some(event));
                }
            }
            if self.text.len() > MAX_EVENT_BYTES {
                return Err(ClientError::Strange("an event has no end".into()));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(frame) => {
                    if let Ok(data) = frame?.into_data() {
                        self.text.extend_from_slice(&data);
                    }
                }
            }
        }
    }

    /// The text up to the next blank line. Our server ends lines with LF.
    fn block(&mut self) -> Option<BytesMut> {
        let end = self.text[self.searched..].windows(2).position(|pair| pair == b"\n\n");
        match end {
            Some(at) => {
                let block = self.text.split_to(self.searched + at + 2);
                self.searched = 0;
                Some(block)
            }
            None => {
                self.searched = self.text.len().saturating_sub(1);
                None
            }
        }
    }
}

impl ServerEvent {
    /// Reads the fields of one event; nothing where there is no data.
    fn parse(block: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(block);
        let mut event = ServerEvent::default();
        let mut has_data = false;
        for line in text.lines() {
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "id" => value.clone_into(&mut event.id),
                "event" => value.clone_into(&mut event.kind),
                "data" => {
                    if has_data {
                        event.data.push('\n');
                    }
                    event.data.push_str(value);
                    has_data = true;
                }
                // Comments and what other versions may add.
                _ => {}
            }
        }
        has_data.then_some(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_an_event_are_read() {
        let parse = |text: &str| ServerEvent::parse(text.as_bytes());
        assert_eq!(parse(": comment\n\n"), None);
        assert_eq!(parse("id: 3\n\n"), None);
        let event = parse("id: 7\nevent: gap\ndata: a: b\ndata:\ndata: c\nretry: 5\n\n").expect("an event");
        assert_eq!((&*event.id, &*event.kind, &*event.data), ("7", "gap", "a: b\n\nc"));
    }
}
