//! The programs and libraries of others that the tests need.
//!
//! A tool that is absent is an error, so that a test never passes because nothing was tested. Where one can't be had,
//! `HOOKBUS_TESTS_WITHOUT=node,ruby` leaves out the tests that need it; `tests/run` sets it and says so.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A tool that tests need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tool {
    /// `/usr/bin/python3` with pyzmq, paho and pika (Debian: python3-zmq, python3-paho-mqtt, python3-pika).
    Python,
    /// `/usr/bin/ruby` with ffi-rzmq (Debian: ruby-ffi-rzmq).
    Ruby,
    /// `node` with the packages zeromq, mqtt and amqplib below `target/node` (put there by `tests/run`).
    Node,
    /// `/usr/bin/python3` with nats-py, its own or below `target/python` (put there by `tests/run`).
    NatsPy,
    /// `/usr/bin/python3` with Ganeti's own library: Debian's package ganeti-3.0, or what is in it below `target/ganeti` (put there by `tests/run`).
    Ganeti,
}

impl Tool {
    fn name(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::Ruby => "ruby",
            Self::Node => "node",
            Self::NatsPy => "nats-py",
            Self::Ganeti => "ganeti",
        }
    }

    /// A command that runs a script of this language.
    #[must_use]
    pub fn command(self) -> Command {
        let mut command = Command::new(match self {
            Self::Python | Self::NatsPy | Self::Ganeti => "/usr/bin/python3",
            Self::Ruby => "/usr/bin/ruby",
            Self::Node => "node",
        });
        match self {
            Self::Node => {
                command.env("NODE_PATH", workspace().join("target/node/node_modules"));
            }
            Self::NatsPy => {
                command.env("PYTHONPATH", workspace().join("target/python"));
            }
            Self::Python | Self::Ruby | Self::Ganeti => {}
        }
        command
    }

    /// Whether tests that need the tool are to run. Panics when it is absent and nobody said to go without.
    #[must_use]
    pub fn wanted(self) -> bool {
        let without = env::var("HOOKBUS_TESTS_WITHOUT").unwrap_or_default();
        if without.split(',').any(|name| name == self.name()) {
            eprintln!("left out: HOOKBUS_TESTS_WITHOUT names {}", self.name());
            return false;
        }
        let ganeti = format!("import sys; sys.path.insert(0, '{}'); import ganeti.backend", ganeti().display());
        let check: &[&str] = match self {
            Self::Python => &["-c", "import zmq, paho.mqtt.client, pika"],
            Self::Ruby => &["-e", "require 'ffi-rzmq'"],
            Self::Node => &["-e", "require('zeromq'); require('mqtt'); require('amqplib')"],
            Self::NatsPy => &["-c", "import nats"],
            Self::Ganeti => &["-c", &ganeti],
        };
        let found = self.command().args(check).stdin(Stdio::null()).stderr(Stdio::null()).status();
        assert!(
            found.is_ok_and(|status| status.success()),
            "{} with its libraries isn't installed: run tests/run, which installs it, or set \
             HOOKBUS_TESTS_WITHOUT={} to leave out what needs it",
            self.name(),
            self.name()
        );
        true
    }
}

/// Where Ganeti's Python library is: installed, or unpacked below `target`.
#[must_use]
pub fn ganeti() -> PathBuf {
    const INSTALLED: &str = "usr/share/ganeti/3.0";
    let installed = Path::new("/").join(INSTALLED);
    if installed.exists() { installed } else { workspace().join("target/ganeti").join(INSTALLED) }
}

/// The root of the workspace.
#[must_use]
pub fn workspace() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("the crate is in a folder of the workspace").to_path_buf()
}

/// The file with this name in `tests/peers`.
#[must_use]
pub fn script(name: &str) -> PathBuf {
    workspace().join("tests/peers").join(name)
}
