//! ZeroMQ.

mod client;
pub mod codec;
mod endpoint;
mod filters;
mod link;
mod liveness;
mod logger;
mod message;
mod outbound;
mod peer;
mod publisher;
mod quiet;
mod server;
mod transport;

pub use client::{ClientOptions, ReqClient, RequestError, SubClient, SubEvent};
pub use endpoint::{Endpoint, EndpointError, Host};
pub use liveness::Heartbeat;
pub use logger::{ACK, Logger, LoggerOptions, Request};
pub use message::Frames;
pub use outbound::GAP_KEY;
pub use publisher::{PeerStatus, Publisher, PublisherOptions};
