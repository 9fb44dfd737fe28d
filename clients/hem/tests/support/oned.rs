//! An oned of the tests: a server on a free port of this machine that answers XML-RPC with what the test says.

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What a client sent.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// The request line and the headers.
    pub(crate) head: String,
    /// The XML.
    pub(crate) body: String,
}

impl Request {
    /// The name of the call.
    pub(crate) fn call(&self) -> &str {
        let start = self.body.find("<methodName>").map_or(0, |at| at + "<methodName>".len());
        self.body[start..].split('<').next().unwrap_or_default()
    }
}

/// What the client gets.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// These bytes, then the end of the connection.
    Bytes(Vec<u8>),
    /// These bytes, and no end.
    Unfinished(Vec<u8>),
    /// Bytes without an end, until the client has enough.
    Endless,
}

impl Answer {
    /// An answer of HTTP 200 with this body.
    pub(crate) fn ok(body: &str) -> Answer {
        Answer::status("200 OK", body)
    }

    /// An answer with another status.
    pub(crate) fn status(status: &str, body: &str) -> Answer {
        let length = body.len();
        Answer::Bytes(
            format!("HTTP/1.1 {status}\r\nContent-Type: text/xml\r\nContent-Length: {length}\r\n\r\n{body}").into(),
        )
    }

    /// A success of oned with this text.
    pub(crate) fn text(text: &str) -> Answer {
        let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        Answer::ok(&format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<methodResponse>\n<params>\n<param><value><array><data>\n\
             <value><boolean>1</boolean></value>\n<value><string>{text}</string></value>\n<value><i4>0</i4></value>\n\
             </data></array></value></param>\n</params>\n</methodResponse>\n"
        ))
    }

    /// An error of oned.
    pub(crate) fn error(code: i64, message: &str) -> Answer {
        Answer::ok(&format!(
            "<?xml version=\"1.0\"?><methodResponse><params><param><value><array><data><value><boolean>0</boolean></value>\
             <value><string>{message}</string></value><value><i4>{code}</i4></value></data></array></value></param></params>\
             </methodResponse>"
        ))
    }
}

/// A running server; it ends when dropped.
#[derive(Debug)]
pub(crate) struct StubOned {
    pub(crate) address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    task: JoinHandle<()>,
}

impl StubOned {
    pub(crate) async fn start(answer: impl FnMut(&Request) -> Answer + Send + 'static) -> Self {
        Self::serve(TcpListener::bind("127.0.0.1:0").await.unwrap(), answer)
    }

    /// One that always answers the same.
    pub(crate) async fn always(answer: Answer) -> Self {
        Self::start(move |_| answer.clone()).await
    }

    pub(crate) fn serve(listener: TcpListener, answer: impl FnMut(&Request) -> Answer + Send + 'static) -> Self {
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let task = tokio::spawn({
            let requests = Arc::clone(&requests);
            let answer = Arc::new(Mutex::new(answer));
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let (requests, answer) = (Arc::clone(&requests), Arc::clone(&answer));
                    // The client may go away at any time; what it says then doesn't matter.
                    tokio::spawn(async move {
                        let _ = talk(stream, &requests, |request| answer.lock()(request)).await;
                    });
                }
            }
        });
        StubOned { address, requests, task }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}/RPC2", self.address)
    }

    /// What was asked so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().clone()
    }
}

impl Drop for StubOned {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn talk(
    mut stream: TcpStream,
    requests: &Mutex<Vec<Request>>,
    answer: impl FnOnce(&Request) -> Answer,
) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    let head = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
    };
    let headers = String::from_utf8_lossy(&bytes[..head]).into_owned();
    let length = headers
        .lines()
        .find_map(|line| line.to_lowercase().strip_prefix("content-length:").map(|n| n.trim().parse().unwrap_or(0)))
        .unwrap_or(0_usize);
    while bytes.len() < head + length {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
    }
    let request = Request { head: headers, body: String::from_utf8_lossy(&bytes[head..]).into_owned() };
    let answer = answer(&request);
    requests.lock().push(request);
    match answer {
        Answer::Bytes(bytes) => {
            stream.write_all(&bytes).await?;
            stream.shutdown().await
        }
        Answer::Unfinished(bytes) => {
            stream.write_all(&bytes).await?;
            // Until the client goes away.
            while stream.read_buf(&mut Vec::with_capacity(64)).await? > 0 {}
            Ok(())
        }
        Answer::Endless => {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n<methodResponse>").await?;
            loop {
                stream.write_all(&[b'x'; 8192]).await?;
            }
        }
    }
}
