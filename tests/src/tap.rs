//! A TCP relay that keeps what passes, to see on the wire what libraries don't tell: heartbeats, reconnects.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// A relay from a free port to a server; it works for as long as the process lives.
#[derive(Debug, Clone)]
pub struct Tap {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    to_server: Arc<Mutex<Vec<u8>>>,
    to_client: Arc<Mutex<Vec<u8>>>,
}

impl Tap {
    /// Relays to this port of 127.0.0.1.
    ///
    /// # Panics
    /// When no socket can be had.
    #[must_use]
    pub fn to(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port for the relay");
        let address = listener.local_addr().expect("the address of the relay");
        let tap = Self { address, connections: Arc::default(), to_server: Arc::default(), to_client: Arc::default() };
        let relay = tap.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                // A server that is not there looks to the client as one that hangs up.
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(("127.0.0.1", port))) else { continue };
                relay.connections.fetch_add(1, Ordering::SeqCst);
                copy(&client, &server, &relay.to_server);
                copy(&server, &client, &relay.to_client);
            }
        });
        tap
    }

    /// Where to connect.
    #[must_use]
    pub fn url(&self) -> String {
        format!("tcp://{}", self.address)
    }

    /// How many connections were made.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// How often these bytes went to the server.
    #[must_use]
    pub fn sent(&self, bytes: &[u8]) -> usize {
        occurrences(&self.to_server, bytes)
    }

    /// How often these bytes came from the server.
    #[must_use]
    pub fn answered(&self, bytes: &[u8]) -> usize {
        occurrences(&self.to_client, bytes)
    }
}

fn copy(from: &TcpStream, to: &TcpStream, seen: &Arc<Mutex<Vec<u8>>>) {
    let mut from = from.try_clone().expect("a second handle of a socket");
    let mut to = to.try_clone().expect("a second handle of a socket");
    let seen = Arc::clone(seen);
    thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            seen.lock().expect("no relay panics").extend_from_slice(&buffer[..count]);
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        // One side has gone; the other shall know.
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
    });
}

fn occurrences(seen: &Mutex<Vec<u8>>, bytes: &[u8]) -> usize {
    seen.lock().expect("no relay panics").windows(bytes.len()).filter(|window| *window == bytes).count()
}
