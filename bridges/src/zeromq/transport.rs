//! Sockets: TCP and Unix under one roof, with the options that a message bus wants.

use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::endpoint::{Endpoint, Host};

const BACKLOG: i32 = 1024;

/// A peer that vanished without a word (its machine lost power) is noticed after 60 s + 3 x 10 s of silence: ZeroMQ
/// peers may be silent for ever, so only the kernel can ask.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// One connection.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    /// Connects, and sets the options of the socket.
    pub(crate) async fn connect(endpoint: &Endpoint) -> io::Result<Stream> {
        match endpoint {
            Endpoint::Ipc(path) => Ok(Stream::Unix(UnixStream::connect(path).await?)),
            Endpoint::Tcp { host, port } => {
                let stream = match host {
                    Host::Ip(ip) => TcpStream::connect((*ip, *port)).await?,
                    Host::Name(name) => TcpStream::connect((&**name, *port)).await?,
                    Host::Any => TcpStream::connect((Ipv4Addr::LOCALHOST, *port)).await?,
                };
                tune(&stream)?;
                Ok(Stream::Tcp(stream))
            }
        }
    }

    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }

    pub(crate) fn poll_write_vectored(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self {
            Stream::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Stream::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL).with_retries(3);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// A listening socket. Dropping it removes the file of a Unix socket.
#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Listener {
    /// Binds; must be called within a tokio runtime. A TCP port that a predecessor has just left is taken at once
    /// (SO_REUSEADDR), and so is the socket file of one that was killed.
    pub(crate) fn bind(endpoint: &Endpoint) -> io::Result<Listener> {
        let bound = match endpoint {
            Endpoint::Ipc(path) => bind_unix(path).map(|listener| Listener::Unix(listener, path.clone())),
            Endpoint::Tcp { host, port } => bind_tcp(host, *port).map(Listener::Tcp),
        };
        bound.map_err(|e| io::Error::new(e.kind(), format!("bind {endpoint}: {e}")))
    }

    /// Where it listens, with the port that was given for port 0.
    pub(crate) fn local_endpoint(&self) -> io::Result<Endpoint> {
        match self {
            Listener::Tcp(listener) => Ok(listener.local_addr()?.into()),
            Listener::Unix(_, path) => Ok(Endpoint::Ipc(path.clone())),
        }
    }

    /// The next connection, and the peer's address in the notation of endpoints.
    pub(crate) async fn accept(&self) -> io::Result<(Stream, String)> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                // Where it fails the connection is gone already, and the first read says so.
                let _ = tune(&stream);
                // A socket for both families shows IPv4 peers as ::ffff:192.0.2.1.
                let address = SocketAddr::new(address.ip().to_canonical(), address.port());
                Ok((Stream::Tcp(stream), format!("tcp://{address}")))
            }
            Listener::Unix(listener, path) => {
                let (stream, _) = listener.accept().await?;
                let process = stream.peer_cred().ok().and_then(|cred| cred.pid());
                let process = process.map(|pid| format!("#{pid}")).unwrap_or_default();
                Ok((Stream::Unix(stream), format!("ipc://{}{process}", path.display())))
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Listener::Unix(_, path) = self {
            // Gone already, or no longer ours to remove: either way there is nothing left to do.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn bind_tcp(host: &Host, port: u16) -> io::Result<TcpListener> {
    match host {
        Host::Ip(ip) => bind_address(SocketAddr::new(*ip, port), true),
        // Both families through one socket; IPv4 alone where the kernel has no IPv6.
        Host::Any => bind_address((Ipv6Addr::UNSPECIFIED, port).into(), false).or_else(|e| {
            let without_v6 = matches!(e.kind(), io::ErrorKind::Unsupported | io::ErrorKind::AddrNotAvailable)
                || e.raw_os_error() == Some(97);
            if without_v6 { bind_address((Ipv4Addr::UNSPECIFIED, port).into(), true) } else { Err(e) }
        }),
        Host::Name(name) => {
            let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
            for address in (&**name, port).to_socket_addrs()? {
                match bind_address(address, true) {
                    Ok(listener) => return Ok(listener),
                    Err(e) => last = e,
                }
            }
            Err(last)
        }
    }
}

fn bind_address(address: SocketAddr, only_v6: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(only_v6)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
            let is_socket = std::fs::symlink_metadata(path)?.file_type().is_socket();
            // A connection is refused only where nobody listens any more.
            let is_left_over = is_socket
                && std::os::unix::net::UnixStream::connect(path)
                    .is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused);
            if !is_left_over {
                return Err(e);
            }
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        bound => bound,
    }
}
