//! nats-server.

use std::fs;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::{Process, free_port, wait_for_port, wait_until};

/// A nats-server with JetStream. Its streams are kept over [`restart`](NatsServer::restart).
#[derive(Debug)]
pub struct NatsServer {
    /// The server's process: to stop and to continue it.
    pub process: Process,
    dir: TempDir,
    port: u16,
}

impl NatsServer {
    /// One that lets everybody in.
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// One with these lines at the end of its configuration.
    pub fn start_with(configuration: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let port = free_port();
        let store = dir.path().join("jetstream");
        let text = format!(
            "listen: \"127.0.0.1:{port}\"\njetstream {{ store_dir: {store:?}, max_file_store: 4GB }}\n{configuration}\n"
        );
        fs::write(dir.path().join("nats.conf"), text).unwrap();
        let mut process = launch(dir.path());
        wait_for_port(&mut process, port);
        NatsServer { process, dir, port }
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Starts it again after its end: same port, same files.
    pub fn restart(&mut self) {
        self.process.kill();
        self.process = launch(self.dir.path());
        wait_for_port(&mut self.process, self.port);
    }

    /// Replaces its configuration's further lines; the server reads them now.
    pub fn reconfigure(&mut self, configuration: &str) {
        let reloads = |log: &str| log.matches("Reloaded server configuration").count();
        let before = reloads(&self.process.log());
        let path = self.dir.path().join("nats.conf");
        let text = fs::read_to_string(&path).unwrap();
        let own: Vec<&str> = text.lines().take(2).collect();
        fs::write(path, format!("{}\n{configuration}\n", own.join("\n"))).unwrap();
        let id = Pid::from_raw(self.process.id().cast_signed());
        kill(id, Signal::SIGHUP).unwrap();
        wait_until("nats-server to read its configuration", || {
            if reloads(&self.process.log()) > before { Ok(()) } else { Err(self.process.log()) }
        });
    }
}

fn launch(dir: &Path) -> Process {
    let mut command = Command::new("nats-server");
    command.arg("-c").arg(dir.join("nats.conf"));
    Process::start("nats-server", &mut command, dir.join("log"))
}
