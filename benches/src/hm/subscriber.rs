//! A libzmq subscriber in a process of its own: [`run`] is the process, `Subscriber` the harness's end of it.
//!
//! It stamps each message as it comes and keeps the stamps; judging is left for later. On standard output it says `ready`
//! when the first probe has come, and at the end gives all arrivals as pairs of 64-bit numbers, little endian.

use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, ChildStdout, Command, Stdio};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use zmq::{Context, Message, SocketType};

use super::{Failure, now_ns};
use crate::corpus::{Arrival, PROBE_KEY, fingerprint};

/// How long a subscriber waits for the next message before it takes the rest for lost.
const PATIENCE_MS: i32 = 15_000;

/// The process: subscribes to everything at `endpoint` and takes `count` messages.
///
/// # Errors
/// What libzmq says, or when nobody reads.
pub fn run(endpoint: &str, count: usize) -> io::Result<()> {
    let context = Context::new();
    let socket = context.socket(SocketType::SUB)?;
    socket.set_rcvhwm(0)?;
    socket.set_rcvtimeo(PATIENCE_MS)?;
    socket.set_subscribe(b"")?;
    socket.connect(endpoint)?;

    let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
    let mut arrivals: Vec<Arrival> = Vec::with_capacity(count);
    let (mut key, mut content) = (Message::new(), Message::new());
    let mut ready = false;
    while arrivals.len() < count {
        match socket.recv(&mut key, 0).and_then(|()| socket.recv(&mut content, 0)) {
            Ok(()) if &*key == PROBE_KEY => {
                if !ready {
                    out.write_all(b"ready\n")?;
                    out.flush()?;
                    ready = true;
                }
            }
            Ok(()) => arrivals.push(Arrival { at_ns: now_ns(), fingerprint: fingerprint(&key, &content) }),
            Err(zmq::Error::EAGAIN) => break,
            Err(zmq::Error::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    for Arrival { fingerprint, at_ns } in arrivals {
        out.write_all(&fingerprint.to_le_bytes())?;
        out.write_all(&at_ns.to_le_bytes())?;
    }
    out.flush()
}

/// A running subscriber; it is killed when dropped.
#[derive(Debug)]
pub(super) struct Subscriber {
    child: Child,
    stdout: BufReader<ChildStdout>,
    ready: bool,
}

impl Subscriber {
    pub(super) fn spawn(port: u16, count: usize) -> Result<Self, Failure> {
        let spawn = || {
            let mut child = Command::new(std::env::current_exe()?)
                .args(["sub", "--endpoint", &format!("tcp://127.0.0.1:{port}"), "--count", &count.to_string()])
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()?;
            let stdout = child.stdout.take().map(BufReader::new).ok_or(io::ErrorKind::BrokenPipe)?;
            Ok(Subscriber { child, stdout, ready: false })
        };
        spawn().map_err(Failure::io("start a subscriber"))
    }

    /// Whether the first probe has come.
    pub(super) fn is_ready(&mut self) -> bool {
        if !self.ready {
            let mut stdout = [PollFd::new(self.stdout.get_ref().as_fd(), PollFlags::POLLIN)];
            let readable = poll(&mut stdout, PollTimeout::ZERO) == Ok(1);
            let mut line = String::new();
            self.ready = readable && self.stdout.read_line(&mut line).is_ok() && line == "ready\n";
        }
        self.ready
    }

    /// Waits until it has everything, or has given up, and returns what came.
    pub(super) fn arrivals(mut self) -> Result<Vec<Arrival>, Failure> {
        let mut bytes = Vec::new();
        self.stdout.read_to_end(&mut bytes).map_err(Failure::io("read what a subscriber got"))?;
        let (pairs, _) = bytes.as_chunks::<16>();
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte));
        let arrival = |pair: &[u8; 16]| Arrival { fingerprint: number(&pair[..8]), at_ns: number(&pair[8..]) };
        Ok(pairs.iter().map(arrival).collect())
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
