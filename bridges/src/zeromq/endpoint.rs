//! Addresses in ZeroMQ's notation.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

/// Where a socket listens, or what it connects to: `tcp://127.0.0.1:2101`, `tcp://[::1]:0`, `tcp://*:2101`,
/// `ipc:///run/x.sock`.
///
/// ```
/// use hookbus_bridges::zeromq::Endpoint;
///
/// let endpoint: Endpoint = "tcp://[::1]:2101".parse()?;
/// assert_eq!(endpoint.to_string(), "tcp://[::1]:2101");
/// assert!("udp://127.0.0.1:2101".parse::<Endpoint>().is_err());
/// # Ok::<_, hookbus_bridges::zeromq::EndpointError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// A TCP port. Port 0 is any free one when listening.
    Tcp {
        /// The address.
        host: Host,
        /// The port.
        port: u16,
    },
    /// A Unix socket at that path.
    Ipc(PathBuf),
}

/// The address part of a TCP endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// `*`: all addresses of this machine, IPv4 and IPv6. For listening only.
    Any,
    /// An address.
    Ip(IpAddr),
    /// A name to be resolved.
    Name(Box<str>),
}

/// Why a text is no endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "endpoint `{text}`: {problem}; write tcp://ADDRESS:PORT (tcp://127.0.0.1:2101, tcp://[::1]:2101, tcp://*:2101) or ipc://PATH"
)]
pub struct EndpointError {
    text: String,
    problem: &'static str,
}

impl Endpoint {
    /// A TCP endpoint of an address and port.
    pub fn tcp(ip: impl Into<IpAddr>, port: u16) -> Self {
        Endpoint::Tcp { host: Host::Ip(ip.into()), port }
    }

    /// A Unix socket endpoint.
    pub fn ipc(path: impl Into<PathBuf>) -> Self {
        Endpoint::Ipc(path.into())
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Endpoint::tcp(address.ip(), address.port())
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let error = |problem| EndpointError { text: text.escape_debug().to_string(), problem };
        let (transport, rest) = text.split_once("://").ok_or_else(|| error("there is no `://` in it"))?;
        match transport {
            "tcp" => {
                let (host, port) = rest.rsplit_once(':').ok_or_else(|| error("the port is missing"))?;
                let port = match port {
                    "*" => 0,
                    _ => port.parse().map_err(|_| error("the port is no number from 0 to 65535"))?,
                };
                let host = match host {
                    "*" => Host::Any,
                    "" => return Err(error("the address is missing")),
                    _ => match host.strip_prefix('[') {
                        Some(inner) => {
                            let ip = inner.strip_suffix(']').and_then(|ip| ip.parse::<Ipv6Addr>().ok());
                            Host::Ip(ip.ok_or_else(|| error("what is in brackets is no IPv6 address"))?.into())
                        }
                        None if host.contains(':') => return Err(error("an IPv6 address needs brackets")),
                        None => {
                            let ip = host.parse::<Ipv4Addr>();
                            ip.map_or_else(|_| Host::Name(host.into()), |ip| Host::Ip(ip.into()))
                        }
                    },
                };
                Ok(Endpoint::Tcp { host, port })
            }
            "ipc" if rest.is_empty() => Err(error("the path is missing")),
            "ipc" if rest.starts_with(['@', '*']) => {
                Err(error("abstract and wildcard ipc addresses are not supported"))
            }
            "ipc" => Ok(Endpoint::Ipc(rest.into())),
            "inproc" | "pgm" | "epgm" | "udp" | "ws" | "wss" | "vmci" | "tipc" => {
                Err(error("only tcp and ipc are supported"))
            }
            _ => Err(error("the transport is unknown")),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Tcp { host: Host::Any, port } => write!(f, "tcp://*:{port}"),
            Endpoint::Tcp { host: Host::Ip(ip), port } => write!(f, "tcp://{}", SocketAddr::new(*ip, *port)),
            Endpoint::Tcp { host: Host::Name(name), port } => write!(f, "tcp://{name}:{port}"),
            Endpoint::Ipc(path) => write!(f, "ipc://{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_read() {
        for text in [
            "tcp://127.0.0.1:2101",
            "tcp://[::1]:0",
            "tcp://*:2101",
            "tcp://frontend.example.com:2101",
            "ipc:///run/hookbus/pub.sock",
            "ipc://relative.sock",
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
        assert_eq!("tcp://127.0.0.1:*".parse(), Ok(Endpoint::tcp([127, 0, 0, 1], 0)));
    }

    #[test]
    fn what_is_no_endpoint_is_explained() {
        for (text, problem) in [
            ("127.0.0.1:2101", "no `://`"),
            ("tcp://127.0.0.1", "port is missing"),
            ("tcp://127.0.0.1:70000", "0 to 65535"),
            ("tcp://127.0.0.1:", "0 to 65535"),
            ("tcp://:2101", "address is missing"),
            ("tcp://::1:2101", "brackets"),
            ("tcp://[::1:2101", "no IPv6 address"),
            ("ipc://", "path is missing"),
            ("ipc://@x", "not supported"),
            ("inproc://x", "only tcp and ipc"),
            ("http://x:1", "transport is unknown"),
        ] {
            let said = text.parse::<Endpoint>().unwrap_err().to_string();
            assert!(said.contains(problem) && said.contains(text), "{text}: {said}");
        }
    }
}
