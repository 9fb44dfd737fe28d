//! A connection fed with anything: it must not panic, must hold no more than its limit, and must come to the same
//! result however the bytes are cut into reads.
//!
//! The first byte chooses our role and whether a greeting is put in front (one that is right takes long to find by
//! chance); the second, how the stream is cut.

#![no_main]

use hookbus_bridges::zeromq::codec::{Connection, Event, Greeting, Metadata, ProtocolError, Settings, SocketType};
use libfuzzer_sys::fuzz_target;

const LIMIT: usize = 300;
/// Before the handshake is over, the limit is that of the handshake.
const MOST_HELD: usize = (64 << 10) + 9;

fuzz_target!(|data: &[u8]| {
    let [role, cut, input @ ..] = data else { return };
    let (ours, theirs) = match role & 3 {
        0 => (SocketType::Pub, "SUB"),
        1 => (SocketType::Sub, "PUB"),
        2 => (SocketType::Rep, "REQ"),
        _ => (SocketType::Req, "REP"),
    };
    let mut stream = Vec::new();
    if role & 4 != 0 {
        stream.extend_from_slice(&Greeting::ours("NULL", false).to_bytes());
    }
    if role & 8 != 0 {
        Metadata { socket_type: theirs.into(), identity: Vec::new() }.put_ready(&mut stream);
    }
    stream.extend_from_slice(input);

    let whole = outcome(ours, &[&stream]);
    let size = usize::from(*cut % 32) + 1;
    let pieces: Vec<&[u8]> = stream.chunks(size).collect();
    assert_eq!(outcome(ours, &pieces), whole);
});

/// Events as text, the error, and what we would answer.
fn outcome(role: SocketType, pieces: &[&[u8]]) -> (Vec<String>, Option<ProtocolError>, Vec<u8>) {
    let mut connection = Connection::new(Settings::new(role, LIMIT));
    let mut events = Vec::new();
    let mut error = None;
    'feeding: for piece in pieces {
        let mut piece = *piece;
        loop {
            match connection.next(&mut piece) {
                Ok(Some(event)) => {
                    if let Event::Subscribe(body) | Event::Cancel(body) | Event::Frame { body, .. } = &event {
                        assert!(body.len() <= LIMIT);
                    }
                    events.push(format!("{event:?}"));
                }
                Ok(None) => break,
                Err(e) => {
                    // What is logged about a peer is safe to print.
                    assert!(e.to_string().bytes().all(|b| (b' '..=b'~').contains(&b)));
                    error = Some(e);
                    break 'feeding;
                }
            }
        }
        assert!(piece.is_empty());
        assert!(connection.held_bytes() <= MOST_HELD);
    }
    (events, error, std::mem::take(connection.output()))
}
