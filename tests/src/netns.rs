//! A network of one's own, for programs that insist on fixed ports.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

/// A network namespace with a loopback interface; it ends when this is dropped and all programs in it have ended.
#[derive(Debug)]
pub struct NetworkNamespace {
    holder: Child,
}

impl NetworkNamespace {
    /// Makes one. `None` where that isn't allowed: it takes root.
    #[must_use]
    pub fn new() -> Option<Self> {
        // The holder says when it is ready, and ends with its standard input.
        let mut holder = Command::new("unshare")
            .args(["--net", "--", "sh", "-c", "ip link set lo up && echo ready && exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let mut line = String::new();
        let answer = BufReader::new(holder.stdout.take()?).read_line(&mut line);
        if answer.is_ok() && line == "ready\n" {
            return Some(Self { holder });
        }
        let _ = holder.wait();
        None
    }

    /// A command that runs `program` in it.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.holder.id())).arg("--").arg(program);
        command
    }
}

impl Drop for NetworkNamespace {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
