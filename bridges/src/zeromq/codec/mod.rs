//! ZMTP 3.1 and 3.0 without I/O: bytes in, events out.
//!
//! The format is that of ZeroMQ's RFC 37 (ZMTP 3.1) and 23 (3.0); where they leave something open, libzmq's behaviour
//! decides, since that is what the peers are. In layers, lowest first:
//!
//! - [`Greeting`]: the 64 bytes that come first, and tell version and security mechanism;
//! - [`FrameReader`], [`put_frame`]: frames, of which everything else is made;
//! - [`Command`], [`Metadata`]: frames from engine to engine;
//! - [`Mechanism`]: the handshake; NULL is there, PLAIN and CURVE have their place;
//! - [`Connection`]: all of it for one connection, of whichever [`SocketType`].
//!
//! # What is promised
//!
//! The result does not depend on how the stream is cut into reads. Nothing that a peer sends panics. Limits are checked
//! when a length is announced, before anything is allocated for it, and memory follows the bytes that have arrived. An
//! error says what the peer did.
//!
//! # Where peers differ
//!
//! - libzmq follows *our* minor version: it subscribes with commands because we say 3.1; the zeromq crate says 3.0 and
//!   subscribes with messages. Both forms are understood from everybody.
//! - PING comes from whoever has heartbeats on, whatever minor version was agreed on; it is always answered.
//! - A command may come with a length of eight bytes, however short it is.
//! - An unknown command after the handshake is passed over.

mod command;
mod connection;
mod error;
mod frame;
mod greeting;
mod mechanism;
#[cfg(test)]
mod tests;

pub use command::{
    Command, MAX_CONTEXT_BYTES, Metadata, put_cancel, put_error, put_ping, put_pong, put_subscribe,
    put_subscription_message,
};
pub use connection::{Connection, Event, PeerInfo, Settings, SocketType};
pub use error::ProtocolError;
pub(crate) use error::printable;
pub use frame::{COMMAND, Frame, FrameReader, LONG, MAX_HEAD_BYTES, MORE, put_frame, put_head};
pub use greeting::{GREETING_BYTES, Greeting, GreetingReader};
pub use mechanism::{Handshake, Mechanism, Null};
