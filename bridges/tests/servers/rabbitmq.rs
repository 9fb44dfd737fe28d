//! RabbitMQ, without its management plugin.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::{Process, free_port, wait_for_port, wait_until};

/// Where Debian and the upstream packages keep the scripts that are not wrapped into `su`.
const SCRIPTS: [&str; 2] = ["/usr/lib/rabbitmq/bin", "/opt/rabbitmq/sbin"];

/// A RabbitMQ server with the user `guest` (password `guest`), and an epmd of its own, so that nothing is left behind and nothing that
/// runs here is disturbed. What is durable is kept over [`restart`](RabbitMq::restart).
///
/// It takes ten seconds and more to start: tests share one where they can.
#[derive(Debug)]
pub struct RabbitMq {
    /// The server's process: to stop and to continue it.
    pub process: Process,
    epmd: Process,
    dir: TempDir,
    ports: Ports,
}

#[derive(Clone, Copy, Debug)]
struct Ports {
    amqp: u16,
    distribution: u16,
    epmd: u16,
}

impl RabbitMq {
    /// One with the usual settings.
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// One with these lines at the end of its `rabbitmq.conf`.
    pub fn start_with(configuration: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let ports = Ports { amqp: free_port(), distribution: free_port(), epmd: free_port() };
        fs::write(dir.path().join("plugins"), "[].\n").unwrap();
        let text = format!(
            "listeners.tcp.1 = 127.0.0.1:{}\nloopback_users.guest = true\nvm_memory_high_watermark.absolute = 4GiB\n\
             disk_free_limit.absolute = 10MB\nlog.console = true\nlog.console.level = info\nlog.file = false\n{configuration}\n",
            ports.amqp
        );
        fs::write(dir.path().join("rabbitmq.conf"), text).unwrap();
        fs::write(dir.path().join("env.conf"), "").unwrap();
        let mut epmd = Command::new("epmd");
        epmd.args(["-address", "127.0.0.1", "-port", &ports.epmd.to_string()]);
        let mut epmd = Process::start("epmd", &mut epmd, dir.path().join("epmd.log"));
        wait_for_port(&mut epmd, ports.epmd);
        let mut process = launch(dir.path(), ports);
        wait_for_port(&mut process, ports.amqp);
        RabbitMq { process, epmd, dir, ports }
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.ports.amqp
    }

    /// Where it is, for `guest`.
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.ports.amqp)
    }

    /// Starts it again after its end: same port, same files.
    pub fn restart(&mut self) {
        self.process.kill();
        // The name of the node is registered with epmd until epmd sees its end.
        self.process = launch(self.dir.path(), self.ports);
        wait_for_port(&mut self.process, self.ports.amqp);
    }

    /// Runs `rabbitmqctl`; its output.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(script("rabbitmqctl"));
        environment(&mut command, self.dir.path(), self.ports);
        let output = command.args(["--quiet"]).args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "rabbitmqctl {arguments:?}: {said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        said
    }

    /// Has what was declared written to disk. RabbitMQ 3.10 was seen, with another client as well, to return everything as unroutable when it had been
    /// killed soon after a durable binding was confirmed: not since this is called first, though why is not proven.
    pub fn flush(&self) {
        self.wait_until_booted();
        self.ctl(&["eval", "mnesia:sync_log()."]);
    }

    /// Waits until `rabbitmqctl` works: a little later than the port.
    pub fn wait_until_booted(&self) {
        wait_until("RabbitMQ to have booted", || {
            let log = self.process.log();
            // Those before were killed, perhaps before they had come so far.
            let last = log.rsplit("Starting RabbitMQ").next().unwrap_or_default();
            if last.contains("Server startup complete") { Ok(()) } else { Err("the start is not complete") }
        });
    }
}

impl Drop for RabbitMq {
    fn drop(&mut self) {
        // Before epmd: a node without its epmd complains at length.
        self.process.kill();
        self.epmd.kill();
    }
}

fn launch(dir: &Path, ports: Ports) -> Process {
    let mut command = Command::new(script("rabbitmq-server"));
    environment(&mut command, dir, ports);
    // The VM itself instead of a shell around it.
    command.env("RABBITMQ_ALLOW_INPUT", "1").arg("-noinput");
    Process::start("rabbitmq-server", &mut command, dir.join("log"))
}

fn environment(command: &mut Command, dir: &Path, ports: Ports) {
    let node = format!("hookbus{}@localhost", ports.amqp);
    command
        .current_dir(dir)
        .env("HOME", dir)
        .env("RABBITMQ_CONF_ENV_FILE", dir.join("env.conf"))
        .env("RABBITMQ_CONFIG_FILE", dir.join("rabbitmq.conf"))
        .env("RABBITMQ_ADVANCED_CONFIG_FILE", dir.join("none.config"))
        .env("RABBITMQ_ENABLED_PLUGINS_FILE", dir.join("plugins"))
        .env("RABBITMQ_MNESIA_BASE", dir.join("mnesia"))
        .env("RABBITMQ_LOG_BASE", dir.join("logs"))
        .env("RABBITMQ_PID_FILE", dir.join("pid"))
        .env("RABBITMQ_GENERATED_CONFIG_DIR", dir.join("config"))
        .env("RABBITMQ_NODENAME", node)
        .env("RABBITMQ_NODE_PORT", ports.amqp.to_string())
        .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
        .env("RABBITMQ_DIST_PORT", ports.distribution.to_string())
        .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-start_epmd false -kernel inet_dist_use_interface {127,0,0,1}")
        .env("ERL_EPMD_PORT", ports.epmd.to_string())
        .env("ERL_EPMD_ADDRESS", "127.0.0.1");
}

fn script(name: &str) -> PathBuf {
    let found = SCRIPTS.iter().map(|dir| Path::new(dir).join(name)).find(|path| path.exists());
    found.unwrap_or_else(|| PathBuf::from(name))
}
