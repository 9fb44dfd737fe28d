//! The one thing that the zmq crate can't do: make a publisher that waits at its high-water mark instead of dropping.

use std::mem::size_of_val;
use std::ptr;

use zmq::{Context, Error, Socket, SocketType};

/// A publisher whose sends wait while a subscriber's queue is full (XPUB_NODROP); PUB or XPUB.
///
/// # Errors
/// What libzmq says.
#[expect(unsafe_code, reason = "the crate has no setter for XPUB_NODROP")]
pub fn lossless(context: &Context, kind: SocketType) -> zmq::Result<Socket> {
    let mut socket = context.socket(kind)?;
    let on: i32 = 1;
    let option = zmq_sys::ZMQ_XPUB_NODROP.cast_signed();
    // SAFETY: the socket lives, this thread alone has it, and the option is an int, which libzmq copies during the call.
    let outcome =
        unsafe { zmq_sys::zmq_setsockopt(socket.as_mut_ptr(), option, ptr::from_ref(&on).cast(), size_of_val(&on)) };
    // SAFETY: reads a number of this thread.
    if outcome == -1 { Err(Error::from_raw(unsafe { zmq_sys::zmq_errno() })) } else { Ok(socket) }
}
