//! mosquitto.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::{Process, free_port, wait_for_port};

/// A mosquitto. Retained messages are kept over [`restart`](Mosquitto::restart), if it was not killed.
#[derive(Debug)]
pub struct Mosquitto {
    /// The server's process: to stop and to continue it.
    pub process: Process,
    dir: TempDir,
    port: u16,
}

impl Mosquitto {
    /// One that lets everybody in.
    pub fn start() -> Self {
        Self::start_with("allow_anonymous true")
    }

    /// One with these lines at the end of its configuration; `$DIR` in them is where its files are.
    pub fn start_with(configuration: &str) -> Self {
        Self::start_in(TempDir::new().unwrap(), configuration)
    }

    /// One whose files are in this directory, where some may be already.
    pub fn start_in(dir: TempDir, configuration: &str) -> Self {
        let port = free_port();
        let path = dir.path().display();
        // Started by root it would become another user, who can't read the directory.
        let text = format!(
            "user root\nlistener {port} 127.0.0.1\npersistence true\npersistence_location {path}/\nlog_type all\n{}\n",
            configuration.replace("$DIR", &path.to_string())
        );
        fs::write(dir.path().join("mosquitto.conf"), text).unwrap();
        let mut process = launch(dir.path());
        wait_for_port(&mut process, port);
        Mosquitto { process, dir, port }
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A file of it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts it again after its end: same port, same files.
    pub fn restart(&mut self) {
        self.process.kill();
        self.process = launch(self.dir.path());
        wait_for_port(&mut self.process, self.port);
    }
}

/// A file `passwords` in this directory with users and their passwords, as mosquitto keeps them.
pub fn put_passwords(dir: &Path, users: &[(&str, &str)]) {
    let file = dir.join("passwords");
    fs::write(&file, "").unwrap();
    for (user, password) in users {
        let done = Command::new("mosquitto_passwd").arg("-b").arg(&file).args([user, password]).status();
        assert!(done.expect("mosquitto_passwd is installed").success());
    }
}

fn launch(dir: &Path) -> Process {
    // Debian keeps it where only root's PATH leads.
    let program = ["/usr/sbin/mosquitto", "/usr/bin/mosquitto"].into_iter().find(|path| Path::new(path).exists());
    let mut command = Command::new(program.unwrap_or("mosquitto"));
    command.arg("-c").arg(dir.join("mosquitto.conf"));
    Process::start("mosquitto", &mut command, dir.join("log"))
}
