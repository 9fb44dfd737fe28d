//! The program under test: where it is, how it is started, and its pipes.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::{Deadline, tools, wait_until};

/// The user `nobody`: an ordinary one, whom every system has.
const NOBODY: u32 = 65_534;

/// The path of the `hookbus` program, beside which `hookbus-hem` and `hookbus-ganeti-hook` lie; all are built now unless they are up to date: cargo builds a
/// program for the tests of its own package only, and an old one must not be tested by mistake. It gets the profile and target directory of the
/// test that asks. `HOOKBUS_BIN` names another one, for instance that of an installed package.
///
/// # Panics
/// When it can't be built.
pub fn hookbus() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        if let Some(path) = env::var_os("HOOKBUS_BIN") {
            return path.into();
        }
        // <target directory>/<profile>/deps/<this test>
        let test = env::current_exe().expect("the path of this test");
        let output = test.ancestors().nth(2).expect("a test lies in <target>/<profile>/deps");
        let target = output.parent().expect("a profile's directory lies in the target directory");
        let profile = match output.file_name().and_then(|name| name.to_str()).expect("a profile's directory has a name")
        {
            "debug" => "dev",
            name => name,
        };
        let mut cargo = Command::new(env!("CARGO"));
        // What cargo says to a test about its package, build scripts take for a change: ring and all that needs it would be built anew each time.
        for (name, _) in env::vars_os() {
            let is_of_a_package = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
            if name.to_str().is_some_and(is_of_a_package) {
                cargo.env_remove(name);
            }
        }
        let status = cargo
            .args([
                "build",
                "--quiet",
                "--locked",
                "--package",
                "hookbus",
                "--package",
                "hookbus-hem",
                "--package",
                "hookbus-ganeti-hook",
                "--bins",
                "--profile",
                profile,
            ])
            .arg("--target-dir")
            .arg(target)
            .current_dir(tools::workspace())
            .status()
            .unwrap_or_else(|error| panic!("can't start cargo to build hookbus: {error}"));
        assert!(status.success(), "cargo could not build hookbus: {status}");
        output.join("hookbus")
    })
}

/// Runs a program to its end, which must come by itself: far later than it should, since the machine may be busy, but it must.
///
/// # Panics
/// When it can't be started, or doesn't end.
pub fn bounded(command: &mut Command) -> Output {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it can be started");
    ended(&mut child);
    child.wait_with_output().expect("its output")
}

/// Waits until a child has ended by itself.
///
/// # Panics
/// When it doesn't.
pub fn ended(child: &mut Child) {
    wait_until("the end of a program", || match child.try_wait().expect("our own child") {
        Some(_) => Ok(()),
        None => Err("it runs"),
    });
}

/// How to start a program as oned starts its drivers.
#[derive(Debug)]
pub struct Launcher {
    argv: Vec<String>,
    environment: BTreeMap<String, String>,
    before: Option<Command>,
    stdin: Stdio,
}

impl Launcher {
    /// `hookbus` under the name `argv[0]` with these arguments.
    #[must_use]
    pub fn new(argv: &[&str]) -> Self {
        let environment = [("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), ("HOME", "/nonexistent"), ("LANG", "C.UTF-8")];
        Self {
            argv: argv.iter().copied().map(str::to_owned).collect(),
            environment: environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            before: None,
            stdin: Stdio::piped(),
        }
    }

    /// Sets a variable of the environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.into(), value.into());
        self
    }

    /// Starts it through this command (as from [`NetworkNamespace::command`](crate::NetworkNamespace::command)), which must
    /// have been made for `/usr/bin/python3`.
    #[must_use]
    pub fn through(mut self, command: Command) -> Self {
        self.before = Some(command);
        self
    }

    /// Gives it this as its standard input, instead of a pipe.
    #[must_use]
    pub fn stdin(mut self, stdin: impl Into<Stdio>) -> Self {
        self.stdin = stdin.into();
        self
    }

    /// Starts it.
    ///
    /// # Panics
    /// When it can't be started.
    #[must_use]
    pub fn spawn(self) -> Launched {
        let root = rustix::process::geteuid().is_root();
        let config = json!({
            "program": hookbus(),
            "argv": self.argv,
            "env": self.environment,
            "cwd": "/",
            "uid": root.then_some(NOBODY),
        });
        let mut command = self.before.unwrap_or_else(|| Command::new("/usr/bin/python3"));
        let mut child = command
            .arg("-I")
            .arg(tools::script("launch.py"))
            .arg(config.to_string())
            .stdin(self.stdin)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("can't start python3 to launch hookbus: {error}"));
        let stdin = child.stdin.take();
        if let Some(stdin) = &stdin {
            // So that a program that doesn't read can't hang the test. This end of the pipe is ours alone.
            rustix::io::ioctl_fionbio(stdin, true).expect("a pipe can be made non-blocking");
        }
        let stdout =
            Pipe { pipe: child.stdout.take().expect("it was piped"), seen: Vec::new(), first_read: 0, ended: false };
        Launched { child, stdin, stdout }
    }
}

/// A running program; it is killed when this is dropped.
#[derive(Debug)]
pub struct Launched {
    child: Child,
    /// The pipe to its standard input. Dropping it is the end of the input.
    pub stdin: Option<ChildStdin>,
    /// The pipe from its standard output.
    pub stdout: Pipe,
}

impl Launched {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The file `name` in its directory of `/proc`.
    #[must_use]
    pub fn proc(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.pid()))
    }

    /// The value of this line of `/proc/<pid>/status`.
    ///
    /// # Panics
    /// When the process is gone.
    #[must_use]
    pub fn status(&self, name: &str) -> String {
        let text = fs::read_to_string(self.proc("status")).expect("the program runs");
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(':')).map_or_else(String::new, |(_, value)| value.trim().to_owned())
    }

    /// Its resident memory in MiB.
    ///
    /// # Panics
    /// When the process is gone.
    #[must_use]
    pub fn resident_mib(&self) -> u64 {
        let text = self.status("VmRSS");
        let kib: u64 = text.trim_end_matches(" kB").parse().unwrap_or_else(|_| panic!("`VmRSS: {text}`"));
        kib / 1024
    }

    /// How many descriptors it has open.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        fs::read_dir(self.proc("fd")).map_or(0, Iterator::count)
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When it has ended.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).expect("a process id")).expect("not 0");
        kill_process(pid, signal).expect("the program runs");
    }

    /// Kills it as `kill -9` does, and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Whether it has ended.
    ///
    /// # Panics
    /// When that can't be asked.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("our own child can be waited for")
    }

    /// Waits until it has ended by itself. Its standard output is read meanwhile.
    pub fn wait(&mut self, why: &str) -> ExitStatus {
        wait_until(&format!("the end of the program ({why})"), || {
            self.stdout.read_some(std::time::Duration::ZERO);
            self.ended().ok_or_else(|| format!("it runs, and has written: {}", brief(self.stdout.seen())))
        })
    }

    /// Writes to its standard input.
    ///
    /// # Panics
    /// When the program doesn't take it all within the usual patience, or has closed its input.
    pub fn write(&mut self, bytes: &[u8]) {
        write_all(self.stdin.as_mut().expect("its standard input is a pipe and open"), bytes);
    }
}

impl Drop for Launched {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Writes everything to a non-blocking pipe, waiting where it is full.
pub(crate) fn write_all(pipe: &mut ChildStdin, bytes: &[u8]) {
    let deadline = Deadline::usual();
    let mut rest = bytes;
    while !rest.is_empty() {
        match pipe.write(rest) {
            Ok(count) => rest = &rest[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let taken = bytes.len() - rest.len();
                assert!(!deadline.passed(), "the program took {taken} of {} bytes, then no more", bytes.len());
                wait_for(&*pipe, PollFlags::OUT, deadline.left());
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => panic!("the program closed its input after {} bytes: {error}", bytes.len() - rest.len()),
        }
    }
}

/// What a program writes. It is read only while somebody waits for something: a test that doesn't read is like an oned
/// that doesn't.
#[derive(Debug)]
pub struct Pipe {
    pipe: ChildStdout,
    seen: Vec<u8>,
    first_read: usize,
    ended: bool,
}

impl Pipe {
    /// Everything read so far.
    #[must_use]
    pub fn seen(&self) -> &[u8] {
        &self.seen
    }

    /// How many bytes wait to be read.
    ///
    /// # Panics
    /// When that can't be asked.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        rustix::io::ioctl_fionread(&self.pipe).expect("a pipe can be asked")
    }

    /// How many bytes the first read gave, which asks for no more than `limit`; reads if nothing was read yet.
    ///
    /// # Panics
    /// When nothing comes.
    pub fn first_read(&mut self, limit: usize) -> usize {
        if self.seen.is_empty() {
            assert!(wait_for(&self.pipe, PollFlags::IN, Deadline::usual().left()), "the program wrote nothing at all");
            let mut buffer = vec![0; limit];
            self.first_read = self.pipe.read(&mut buffer).expect("a pipe can be read");
            self.seen.extend_from_slice(&buffer[..self.first_read]);
        }
        self.first_read
    }

    /// Reads until `look` finds what it looks for in everything that was written; panics if it never does.
    pub fn until<T>(&mut self, what: &str, look: impl Fn(&[u8]) -> Option<T>) -> T {
        let deadline = Deadline::usual();
        loop {
            if let Some(found) = look(&self.seen) {
                return found;
            }
            let seen = brief(&self.seen);
            assert!(!self.ended, "the program closed its output before {what}; it wrote: {seen}");
            assert!(!deadline.passed(), "waited in vain for {what}; the program wrote: {seen}");
            self.read_some(deadline.left());
        }
    }

    /// Reads until this many lines were written, and gives all of them without their line feeds.
    pub fn lines(&mut self, count: usize) -> Vec<Vec<u8>> {
        self.until(&format!("{count} lines"), |seen| {
            let complete = seen.iter().filter(|byte| **byte == b'\n').count();
            (complete >= count).then_some(())
        });
        let mut lines: Vec<Vec<u8>> = self.seen.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
        lines.pop();
        lines
    }

    /// Reads until the program closes its output; gives everything it wrote.
    pub fn to_end(&mut self) -> &[u8] {
        let deadline = Deadline::usual();
        while !self.ended {
            assert!(!deadline.passed(), "the program goes on; it wrote: {}", brief(&self.seen));
            self.read_some(deadline.left());
        }
        &self.seen
    }

    fn read_some(&mut self, patience: std::time::Duration) {
        if self.ended || !wait_for(&self.pipe, PollFlags::IN, patience) {
            return;
        }
        let mut buffer = vec![0; 64 << 10];
        let count = self.pipe.read(&mut buffer).expect("a pipe can be read");
        self.seen.extend_from_slice(&buffer[..count]);
        self.ended = count == 0;
    }
}

/// Waits until the descriptor is ready, or its other end is closed; false when the time is over first.
fn wait_for(descriptor: impl AsFd, ready: PollFlags, patience: std::time::Duration) -> bool {
    let time = Timespec::try_from(patience).expect("a short time");
    match poll(&mut [PollFd::new(&descriptor, ready)], Some(&time)) {
        Ok(count) => count > 0,
        Err(rustix::io::Errno::INTR) => false,
        Err(error) => panic!("can't poll a pipe: {error}"),
    }
}

/// The end of what was written, for messages.
fn brief(bytes: &[u8]) -> String {
    const END: usize = 2000;
    let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(END)..]).into_owned();
    if bytes.len() > END { format!("({} bytes) ...{text}", bytes.len()) } else { format!("{text:?}") }
}
