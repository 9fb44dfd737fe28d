//! A libzmq subscriber that looks at every message as it comes: [`run`] is its process.

use std::io::{self, Write};
use std::thread;
use std::time::Duration;

use hookbus_bridges::zeromq::GAP_KEY;
use serde_json::Value;
use zmq::{Context, Message, SocketType};

use super::{KEY, PROBE, Taken, stamp};
use crate::hm::now_ns;

/// How long it waits for the next message before it takes the rest for lost.
const PATIENCE_MS: i32 = 15_000;

/// The process: says `ready` when a probe has come, and what it got when it has everything, or when nothing comes any more.
///
/// # Errors
/// What libzmq says, or when nobody reads.
pub fn run(endpoint: &str, count: u64, pause_us: u64) -> io::Result<()> {
    let ready = || {
        println!("ready");
        io::stdout().flush()
    };
    let taken = take(endpoint, count, pause_us, ready)?;
    println!("{}", taken.line());
    io::stdout().flush()
}

/// Takes messages until so many have come, or have been told as dropped.
pub(super) fn take(
    endpoint: &str,
    count: u64,
    pause_us: u64,
    ready: impl FnOnce() -> io::Result<()>,
) -> io::Result<Taken> {
    let context = Context::new();
    let socket = context.socket(SocketType::SUB)?;
    socket.set_rcvtimeo(PATIENCE_MS)?;
    socket.set_subscribe(b"")?;
    if pause_us > 0 {
        // Whoever asks by name is told what was dropped. It is also how our publisher knows for whom not to wait.
        socket.set_subscribe(GAP_KEY)?;
    }
    socket.connect(endpoint)?;

    let mut ready = Some(ready);
    let mut got = Taken::default();
    let (mut key, mut payload) = (Message::new(), Message::new());
    while got.taken + got.dropped < count {
        match socket.recv(&mut key, 0).and_then(|()| socket.recv(&mut payload, 0)) {
            Ok(()) if &*key == PROBE => {
                if let Some(ready) = ready.take() {
                    ready()?;
                }
                continue;
            }
            Ok(()) if &*key == GAP_KEY => {
                got.dropped += dropped(&payload).ok_or_else(|| io::Error::other("a gap that can't be read"))?;
                continue;
            }
            Ok(()) => {}
            Err(zmq::Error::EAGAIN) => break,
            Err(zmq::Error::EINTR) => continue,
            Err(e) => return Err(e.into()),
        }
        let place = got.taken + got.dropped;
        if payload.first_chunk() != Some(&stamp(place)) || *key != KEY {
            got.wrong.get_or_insert(place);
        }
        got.taken += 1;
        if pause_us > 0 {
            thread::sleep(Duration::from_micros(pause_us));
        }
    }
    got.finished_ns = now_ns();
    Ok(got)
}

/// Of how many messages it is told that they were dropped.
fn dropped(payload: &[u8]) -> Option<u64> {
    let text = base64_simd::STANDARD.decode_to_vec(payload).ok()?;
    serde_json::from_slice::<Value>(&text).ok()?["count"].as_u64()
}
