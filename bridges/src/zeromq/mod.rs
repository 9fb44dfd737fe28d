//! ZeroMQ.

pub mod codec;
mod endpoint;
mod filters;
mod link;
mod liveness;
mod outbound;
mod peer;
mod publisher;
mod quiet;
mod server;
mod transport;

pub use endpoint::{Endpoint, EndpointError, Host};
pub use liveness::Heartbeat;
pub use outbound::GAP_KEY;
pub use publisher::{PeerStatus, Publisher, PublisherOptions};
