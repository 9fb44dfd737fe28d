//! One request and its answer, in a given time.
//!
//! HTTP/1.1 over the daemon's Unix socket, or over TCP, with TLS for `https`. A connection is for one request: on a local socket that costs
//! nothing worth saving, and a hook has one to send. Every step has a deadline, connecting included: on a Unix socket whose daemon
//! accepts nobody, connecting waits in the kernel. Only the look-up of a name in `url` can't be given one; it runs in a thread of its own, which
//! is left behind when the time is over.
//!
//! An answer is at most [`MAX_ANSWER_BYTES`] long.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use thiserror::Error;

use crate::config::{Config, Target, Url};

#[cfg(feature = "tls")]
mod tls;

/// The longest answer that is read.
pub const MAX_ANSWER_BYTES: usize = 4 << 20;

/// Headers of an answer.
const MAX_HEADERS: usize = 64;

/// The longest token.
const MAX_TOKEN_BYTES: u64 = 64 << 10;

/// What is asked.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// `GET` or `POST`.
    pub method: &'a str,
    /// From the slash on.
    pub path: &'a str,
    /// Headers besides those that every request has.
    pub headers: &'a [(&'a str, &'a str)],
    /// What is sent.
    pub body: &'a [u8],
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
}

/// Why nothing came back.
#[derive(Debug, Error)]
pub enum ExchangeError {
    /// Nobody is there.
    #[error("nobody answers at {peer}: {source}")]
    Connect {
        /// Where.
        peer: String,
        /// Why.
        source: io::Error,
    },
    /// The time is over.
    #[error("{peer} did not answer in time")]
    Late {
        /// Who.
        peer: String,
    },
    /// The connection broke.
    #[error("the connection to {peer} broke: {source}")]
    Broken {
        /// To whom.
        peer: String,
        /// Why.
        source: io::Error,
    },
    /// What came is no answer.
    #[error("{peer} answered what is not HTTP: {what}")]
    Strange {
        /// Who.
        peer: String,
        /// What is wrong.
        what: String,
    },
    /// The token can't be had.
    #[error("cannot read the token in {}: {source}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// TLS can't be prepared.
    #[error("cannot speak TLS: {0}")]
    Tls(String),
}

/// A connection whose patience can be set.
trait Wire: Read + Write {
    /// Reading and writing wait no longer than this, which isn't zero.
    fn be_patient(&self, time: Duration) -> io::Result<()>;
}

impl Wire for UnixStream {
    fn be_patient(&self, time: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(time))?;
        self.set_write_timeout(Some(time))
    }
}

impl Wire for TcpStream {
    fn be_patient(&self, time: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(time))?;
        self.set_write_timeout(Some(time))
    }
}

/// Asks whom the configuration names, and waits for the answer until the deadline.
///
/// # Errors
/// When there is none by then.
pub fn ask(config: &Config, request: &Request<'_>, deadline: Instant) -> Result<Answer, ExchangeError> {
    let token = config.token_file.as_deref().map(token).transpose()?;
    match &config.target {
        Target::Sockets(sockets) => {
            let (mut stream, peer) = unix(sockets, deadline)?;
            converse(&mut stream, &written(request, "localhost", "", token.as_deref()), deadline)
                .map_err(|trouble| trouble.of(peer.display().to_string()))
        }
        Target::Url(url) => {
            let bytes = written(request, &url.authority(), &url.prefix, token.as_deref());
            let late = || ExchangeError::Late { peer: url.to_string() };
            let (url, ca_file) = (url.clone(), config.ca_file.clone());
            let (sender, receiver) = mpsc::sync_channel(1);
            let exchange = move || {
                let _ = sender.send(remote(&url, ca_file.as_deref(), &bytes, deadline));
            };
            thread::Builder::new()
                .spawn(exchange)
                .map_err(|source| ExchangeError::Connect { peer: config.target.to_string(), source })?;
            receiver.recv_timeout(left(deadline).unwrap_or_default()).map_err(|_| late())?
        }
    }
}

/// The time until the deadline; none when it has passed.
fn left(deadline: Instant) -> Option<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    // The kernel takes zero for no limit, and counts microseconds.
    (left >= Duration::from_micros(1)).then_some(left)
}

/// Connects to the first of these sockets where somebody listens.
fn unix(sockets: &[PathBuf], deadline: Instant) -> Result<(UnixStream, &Path), ExchangeError> {
    let mut first = None;
    for path in sockets {
        match unix_one(path, deadline) {
            Ok(stream) => return Ok((stream, path)),
            Err(error) => {
                // That there is none says less than that one is refused.
                let is_missing = error.kind() == io::ErrorKind::NotFound;
                if first.is_none() || !is_missing {
                    first = Some((path, error));
                }
                if !is_missing {
                    break;
                }
            }
        }
    }
    let none = || io::Error::new(io::ErrorKind::NotFound, "there is no socket to try");
    let (peer, source) = first.map_or_else(|| (String::new(), none()), |(path, e)| (path.display().to_string(), e));
    Err(match source.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ExchangeError::Late { peer },
        _ => ExchangeError::Connect { peer, source },
    })
}

fn unix_one(path: &Path, deadline: Instant) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    loop {
        let left = left(deadline).ok_or(io::ErrorKind::TimedOut)?;
        // Where the queue of the listener is full, connecting waits for a place in it, and as long as sending may.
        set_socket_timeout(&socket, Timeout::Send, Some(left))?;
        match connect(&socket, &address) {
            Ok(()) => return Ok(UnixStream::from(socket)),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

fn remote(url: &Url, ca_file: Option<&Path>, bytes: &[u8], deadline: Instant) -> Result<Answer, ExchangeError> {
    let peer = || url.to_string();
    let failed = |source| ExchangeError::Connect { peer: peer(), source };
    let addresses = (url.host.as_str(), url.port).to_socket_addrs().map_err(failed)?;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        let Some(left) = left(deadline) else { return Err(ExchangeError::Late { peer: peer() }) };
        match TcpStream::connect_timeout(&address, left) {
            Ok(mut stream) => {
                let _ = stream.set_nodelay(true);
                let answer = if url.tls {
                    secured(stream, url, ca_file, bytes, deadline)?
                } else {
                    converse(&mut stream, bytes, deadline)
                };
                return answer.map_err(|trouble| trouble.of(peer()));
            }
            Err(e) => last = e,
        }
    }
    Err(failed(last))
}

#[cfg(feature = "tls")]
fn secured(
    stream: TcpStream,
    url: &Url,
    ca_file: Option<&Path>,
    bytes: &[u8],
    deadline: Instant,
) -> Result<Result<Answer, Trouble>, ExchangeError> {
    let mut stream = tls::wrap(stream, &url.host, ca_file).map_err(ExchangeError::Tls)?;
    Ok(converse(&mut stream, bytes, deadline))
}

#[cfg(not(feature = "tls"))]
fn secured(
    _: TcpStream,
    _: &Url,
    _: Option<&Path>,
    _: &[u8],
    _: Instant,
) -> Result<Result<Answer, Trouble>, ExchangeError> {
    Err(ExchangeError::Tls("this program was built without it".into()))
}

fn token(path: &Path) -> Result<String, ExchangeError> {
    let failed = |source| ExchangeError::Token { path: path.to_owned(), source };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(MAX_TOKEN_BYTES).read_to_string(&mut text).map_err(failed)?;
    let token = text.trim();
    if token.is_empty() || token.bytes().any(|byte| !(b' '..=b'~').contains(&byte)) {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidData, "one line of printable characters is expected")));
    }
    Ok(token.to_owned())
}

/// The request as bytes.
fn written(request: &Request<'_>, host: &str, prefix: &str, token: Option<&str>) -> Vec<u8> {
    let Request { method, path, headers, body } = request;
    let mut head = format!(
        "{method} {prefix}{path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: hookbus-ganeti-hook/{}\r\nConnection: close\r\n",
        env!("CARGO_PKG_VERSION")
    );
    if *method == "POST" {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    let token = token.map(|token| format!("Bearer {token}"));
    for (name, value) in headers.iter().copied().chain(token.as_deref().map(|token| ("Authorization", token))) {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// What goes wrong on a connection that is there.
#[derive(Debug)]
enum Trouble {
    Late,
    Broken(io::Error),
    Strange(String),
}

impl Trouble {
    fn of(self, peer: String) -> ExchangeError {
        match self {
            Trouble::Late => ExchangeError::Late { peer },
            Trouble::Broken(source) => ExchangeError::Broken { peer, source },
            Trouble::Strange(what) => ExchangeError::Strange { peer, what },
        }
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Trouble::Late,
            _ => Trouble::Broken(error),
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::Late => f.write_str("late"),
            Trouble::Broken(e) => e.fmt(f),
            Trouble::Strange(what) => f.write_str(what),
        }
    }
}

/// Writes the request, reads the answer.
fn converse(wire: &mut dyn Wire, request: &[u8], deadline: Instant) -> Result<Answer, Trouble> {
    if let Err(e) = write(wire, request, deadline) {
        // Who refuses before everything was sent hangs up; what was said is worth more than that.
        return match (&e, read(wire, deadline)) {
            (Trouble::Broken(_), Ok(answer)) => Ok(answer),
            _ => Err(e),
        };
    }
    read(wire, deadline)
}

fn write(wire: &mut dyn Wire, request: &[u8], deadline: Instant) -> Result<(), Trouble> {
    let mut rest = request;
    while !rest.is_empty() {
        wire.be_patient(left(deadline).ok_or(Trouble::Late)?)?;
        match wire.write(rest) {
            Ok(0) => return Err(Trouble::Broken(io::ErrorKind::WriteZero.into())),
            Ok(count) => rest = &rest[count..],
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(wire.flush()?)
}

/// How much of an answer there is.
enum Progress {
    Whole(Answer),
    /// More must come; without more, this is what there is, where the end of the connection is the end of the answer.
    More {
        at_end: Option<Answer>,
    },
}

fn read(wire: &mut dyn Wire, deadline: Instant) -> Result<Answer, Trouble> {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 16 << 10];
    loop {
        wire.be_patient(left(deadline).ok_or(Trouble::Late)?)?;
        let count = match wire.read(&mut buffer) {
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e.into()),
        };
        bytes.extend_from_slice(&buffer[..count]);
        if bytes.len() > MAX_ANSWER_BYTES {
            return Err(Trouble::Strange(format!("more than {MAX_ANSWER_BYTES} bytes")));
        }
        match parse(&bytes).map_err(Trouble::Strange)? {
            Progress::Whole(answer) => return Ok(answer),
            Progress::More { .. } if count > 0 => {}
            Progress::More { at_end: Some(answer) } => return Ok(answer),
            Progress::More { at_end: None } => return Err(Trouble::Broken(io::ErrorKind::UnexpectedEof.into())),
        }
    }
}

/// Reads an answer, as far as it has come.
fn parse(mut bytes: &[u8]) -> Result<Progress, String> {
    loop {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        let httparse::Status::Complete(length) = response.parse(bytes).map_err(|e| e.to_string())? else {
            return Ok(Progress::More { at_end: None });
        };
        let body = &bytes[length..];
        let status = response.code.unwrap_or_default();
        if (100..200).contains(&status) {
            // Something that comes before the answer.
            bytes = body;
            continue;
        }
        let header = |name: &str| {
            let header = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
            header.map(|header| String::from_utf8_lossy(header.value).trim().to_ascii_lowercase())
        };
        let answer = |body: &[u8]| Answer { status, body: body.to_vec() };
        if header("transfer-encoding").is_some_and(|coding| coding != "identity") {
            return Ok(match dechunked(body)? {
                Some(body) => Progress::Whole(Answer { status, body }),
                None => Progress::More { at_end: None },
            });
        }
        let Some(length) = header("content-length") else {
            if status == 204 || status == 304 {
                return Ok(Progress::Whole(answer(b"")));
            }
            return Ok(Progress::More { at_end: Some(answer(body)) });
        };
        let length: usize = length.parse().map_err(|_| format!("Content-Length: {length}"))?;
        return Ok(match body.get(..length) {
            Some(body) => Progress::Whole(answer(body)),
            None => Progress::More { at_end: None },
        });
    }
}

/// The body of an answer that comes in chunks, once the last one is there.
fn dechunked(mut bytes: &[u8]) -> Result<Option<Vec<u8>>, String> {
    let mut body = Vec::new();
    loop {
        let size = httparse::parse_chunk_size(bytes).map_err(|_| "a chunk without a size".to_owned())?;
        let httparse::Status::Complete((begin, size)) = size else { return Ok(None) };
        if size == 0 {
            return Ok(Some(body));
        }
        let size =
            usize::try_from(size).ok().filter(|size| *size <= MAX_ANSWER_BYTES).ok_or("a chunk that is too large")?;
        let Some(chunk) = bytes.get(begin..begin + size) else { return Ok(None) };
        body.extend_from_slice(chunk);
        match bytes.get(begin + size..begin + size + 2) {
            Some(b"\r\n") => bytes = &bytes[begin + size + 2..],
            Some(_) => return Err("a chunk without an end".into()),
            None => return Ok(None),
        }
    }
}

/// For fuzz targets.
#[cfg(fuzzing)]
pub mod fuzzing {
    use super::*;

    struct Pieces<'a>(std::slice::Iter<'a, &'a [u8]>);

    impl Read for Pieces<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let piece = self.0.find(|piece| !piece.is_empty()).copied().unwrap_or_default();
            buffer[..piece.len()].copy_from_slice(piece);
            Ok(piece.len())
        }
    }

    impl Write for Pieces<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Wire for Pieces<'_> {
        fn be_patient(&self, _: Duration) -> io::Result<()> {
            Ok(())
        }
    }

    /// Reads an answer that comes in these pieces, each of at most 16 KiB; then the connection ends.
    ///
    /// # Errors
    /// When it is none.
    pub fn read_pieces(pieces: &[&[u8]]) -> Result<Answer, String> {
        let deadline = Instant::now() + Duration::from_secs(3600);
        read(&mut Pieces(pieces.iter()), deadline).map_err(|trouble| trouble.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is read of these bytes when they come whole, and then the connection ends.
    fn answer(bytes: &str) -> Result<Option<Answer>, String> {
        match parse(bytes.as_bytes())? {
            Progress::Whole(answer) | Progress::More { at_end: Some(answer) } => Ok(Some(answer)),
            Progress::More { at_end: None } => Ok(None),
        }
    }

    #[test]
    fn answers_are_read_in_every_form_and_never_before_their_end() {
        for text in [
            "HTTP/1.1 202 Accepted\r\ncontent-length: 5\r\n\r\nhello",
            "HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 202 \r\nContent-Length: 5\r\n\r\nhello",
            "HTTP/1.0 202 Accepted\r\n\r\nhello",
        ] {
            let expected = Answer { status: 202, body: b"hello".to_vec() };
            assert_eq!(answer(text).unwrap().unwrap(), expected, "{text:?}");
            for end in 0..text.len() {
                let early = parse(&text.as_bytes()[..end]);
                let is_whole = matches!(early, Ok(Progress::Whole(_)));
                // Behind `0` and a line end nothing is needed any more.
                assert!(!is_whole || text[end..].trim().is_empty(), "{:?}", &text[..end]);
            }
        }
        for text in ["SSH-2.0-OpenSSH\r\n", "HTTP/1.1 202 A\r\nContent-Length: x\r\n\r\n", "HTTP/1.1 2 A\r\n\r\n"] {
            assert!(answer(text).is_err(), "{text:?}");
        }
        let bad = "HTTP/1.1 200 A\r\ntransfer-encoding: chunked\r\n\r\n";
        for chunk in ["zz\r\n", "ffffffffffffff\r\n", "1\r\nabc\r\n"] {
            assert!(answer(&format!("{bad}{chunk}")).is_err(), "{chunk:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_that_comes_is_a_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200), chunked: bool) {
            let head = if chunked { "HTTP/1.1 200 A\r\ntransfer-encoding: chunked\r\n\r\n" } else { "" };
            let _ = parse(&[head.as_bytes(), &bytes].concat());
        }
    }
}
