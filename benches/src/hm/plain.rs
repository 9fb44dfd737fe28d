//! The plainest driver that does the job: read lines, find their keys, send two frames for each over a libzmq PUB socket.
//!
//! It has the same parser as `hookbus hm`, so that a comparison shows what lies behind it. It serves no logger port, has no
//! limits, and tells nothing. Where a subscriber is slow it waits (XPUB_NODROP), so oned's pipe fills up: what a driver must
//! not do, but the only way for libzmq to lose nothing.

use std::io::{self, Read, Write};

use hookbus_bridges::opennebula::{INIT_ANSWER, Input, Item, LineReader, Parser};
use zmq::{Context, SNDMORE, SocketType};

use crate::libzmq::lossless;

/// Serves `endpoint` until FINALIZE or the end of the input.
///
/// # Errors
/// What the operating system or libzmq says.
pub fn run(endpoint: &str, hwm: i32) -> io::Result<()> {
    let context = Context::new();
    let publisher = lossless(&context, SocketType::PUB)?;
    publisher.set_sndhwm(hwm)?;
    publisher.bind(endpoint)?;

    let mut stdin = io::stdin().lock();
    let mut lines = LineReader::new();
    let mut parser = Parser::new();
    loop {
        let count = stdin.read(lines.room())?;
        if count == 0 {
            return Ok(());
        }
        lines.filled(count);
        while let Some(item) = lines.next() {
            let Item::Line(line) = item else { continue };
            match parser.line(line) {
                Ok(Input::Message { message, .. }) => {
                    for key in message.keys() {
                        publisher.send(key, SNDMORE)?;
                        publisher.send(&message.payload()[..], 0)?;
                    }
                }
                Ok(Input::Init) => {
                    let mut stdout = io::stdout().lock();
                    stdout.write_all(INIT_ANSWER)?;
                    stdout.flush()?;
                }
                Ok(Input::Finalize) => return Ok(()),
                Ok(Input::Blank) | Err(_) => {}
            }
        }
    }
}
