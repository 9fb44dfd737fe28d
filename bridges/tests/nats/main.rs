//! The NATS bridge against a real nats-server.

#![cfg(feature = "nats")]

#[path = "../servers/mod.rs"]
mod servers;

use servers::nats::NatsServer;

#[test]
fn starts() {
    let mut server = NatsServer::start();
    server.process.kill();
    server.restart();
    server.process.terminate();
    let ca = servers::certificates::Authority::new();
    println!("{:?} {:?}", ca.client(), ca.server());
}
