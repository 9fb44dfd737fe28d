//! The daemon under systemd, whose part is played here: what it is told, the socket it hands over; and the units, as systemd
//! reads them.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hookbus_tests::{Deadline, HmOptions, hookbus, tools, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// systemd's end of the notify socket, and a configuration in a directory of its own.
struct Systemd {
    directory: TempDir,
    notify: UnixDatagram,
}

/// A process that is killed when this is dropped.
struct Service(Child);

impl Service {
    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.0.id()).expect("a process id")).expect("not 0");
        kill_process(pid, signal).expect("it runs");
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Systemd {
    fn new() -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let notify = UnixDatagram::bind(directory.path().join("notify")).expect("a socket");
        let systemd = Systemd { directory, notify };
        let text = format!(
            "state_dir = {:?}\n[zeromq]\nenabled = false\n[http]\nsocket = {:?}\n",
            systemd.path("state"),
            systemd.path("own.sock")
        );
        fs::write(systemd.path("hookbus.toml"), text).expect("a configuration");
        systemd
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The next message, `WATCHDOG=1` left out unless it is asked for.
    fn message(&self, with_watchdog: bool) -> String {
        let deadline = Deadline::usual();
        loop {
            self.notify.set_read_timeout(Some(deadline.left().max(Duration::from_millis(1)))).expect("a time-out");
            let mut buffer = [0; 4096];
            let length = self.notify.recv(&mut buffer).expect("a message from the service");
            let message = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if with_watchdog || message != "WATCHDOG=1\n" {
                return message;
            }
        }
    }

    /// `hookbus serve`, with these lines of Python before it becomes that.
    fn serve(&self, before: &str) -> Service {
        let script =
            format!("import os, sys\n{before}\nos.execv(sys.argv[1], ['hookbus', 'serve', '--config', sys.argv[2]])\n");
        let mut serve = Command::new("/usr/bin/python3");
        serve.args(["-c", &script]).arg(hookbus()).arg(self.path("hookbus.toml"));
        serve.env("NOTIFY_SOCKET", self.path("notify")).env("WATCHDOG_USEC", "200000");
        Service(serve.stdin(Stdio::null()).spawn().expect("python3 can be started"))
    }
}

fn healthy(socket: &Path) -> Result<(), String> {
    let mut stream = UnixStream::connect(socket).map_err(|e| e.to_string())?;
    stream.set_read_timeout(Some(Duration::from_secs(60))).map_err(|e| e.to_string())?;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").map_err(|e| e.to_string())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(|e| e.to_string())?;
    if answer.starts_with("HTTP/1.1 200 ") { Ok(()) } else { Err(answer) }
}

#[test]
fn systemd_is_told_how_the_daemon_is() {
    let systemd = Systemd::new();
    let mut serve = systemd.serve("");
    let ready = systemd.message(false);
    assert!(ready.starts_with("READY=1\nSTATUS="), "{ready}");
    healthy(&systemd.path("own.sock")).expect("it was ready");
    assert_eq!(systemd.message(true), "WATCHDOG=1\n");

    serve.signal(Signal::HUP);
    let reloading = systemd.message(false);
    assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
    assert!(systemd.message(false).starts_with("READY=1\n"));

    serve.signal(Signal::TERM);
    assert!(systemd.message(false).starts_with("STOPPING=1\n"));
    assert!(serve.0.wait().expect("it ends").success());
}

#[test]
fn the_socket_that_systemd_listens_at_is_served_and_outlives_the_daemon() {
    let systemd = Systemd::new();
    let path = systemd.path("activated.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    // The number of the descriptor here is told to the child, which puts it where systemd would.
    use std::os::fd::AsRawFd;
    let number = listener.as_raw_fd();
    rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::empty()).expect("a flag of our own descriptor");
    let before = format!("os.dup2({number}, 3); os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))");
    for round in 0..2 {
        let mut serve = systemd.serve(&before);
        assert!(systemd.message(false).starts_with("READY=1\n"), "round {round}");
        healthy(&path).expect("the daemon answers at the socket");
        assert!(!systemd.path("own.sock").exists(), "it makes none of its own");
        serve.signal(Signal::TERM);
        assert!(systemd.message(false).starts_with("STOPPING=1\n"));
        assert!(serve.0.wait().expect("it ends").success());
        assert!(path.exists(), "the file is systemd's");
    }
}

#[test]
fn what_is_no_listening_socket_is_refused() {
    let systemd = Systemd::new();
    for (before, expected) in [
        ("a, b = os.pipe(); os.dup2(a, 3); os.set_inheritable(3, True)", "not a socket"),
        (
            "import socket; a, b = socket.socketpair(); os.dup2(a.fileno(), 3); os.set_inheritable(3, True)",
            "not a listening socket",
        ),
    ] {
        let script = format!(
            "import os, sys\n{before}\nos.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))\n\
             os.execv(sys.argv[1], ['hookbus', 'serve', '--config', sys.argv[2]])\n"
        );
        let mut serve = Command::new("/usr/bin/python3");
        let output = serve.args(["-c", &script]).arg(hookbus()).arg(systemd.path("hookbus.toml")).output();
        let output = output.expect("python3 can be started");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && told.contains(expected), "{:?}: {told}", output.status);
    }
}

/// oned's variables are in its driver's environment. They are not ours.
#[test]
fn the_driver_says_nothing_to_systemd() {
    let systemd = Systemd::new();
    let path = systemd.path("notify");
    fs::set_permissions(systemd.directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("its mode");
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("its mode");
    let mut hm =
        HmOptions::default().env("NOTIFY_SOCKET", path.to_str().expect("UTF-8")).env("WATCHDOG_USEC", "1000").start();
    hm.finalize();
    systemd.notify.set_nonblocking(true).expect("a flag");
    assert_eq!(systemd.notify.recv(&mut [0; 64]).expect_err("nothing was said").kind(), std::io::ErrorKind::WouldBlock);
}

/// systemd-analyze, or nothing where it isn't.
fn analyze(args: &[&str]) -> Option<String> {
    let output = Command::new("systemd-analyze").args(args).env("SYSTEMD_LOG_LEVEL", "warning").output();
    let Ok(output) = output else {
        eprintln!("left out: there is no systemd-analyze");
        return None;
    };
    let text = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned();
    assert!(output.status.success(), "systemd-analyze {args:?}: {text}");
    Some(text)
}

#[test]
fn systemd_understands_the_units_and_finds_them_safe() {
    let directory = TempDir::new().expect("a temporary directory");
    let units = tools::workspace().join("packaging/systemd");
    let copy = |name: &str, to: &Path| {
        let text = fs::read_to_string(units.join(name)).expect("a unit");
        // It must be there to be verified.
        fs::write(to, text.replace("/usr/bin/hookbus", hookbus().to_str().expect("UTF-8"))).expect("a copy");
        to.to_str().expect("UTF-8").to_owned()
    };
    let service = copy("hookbus.service", &directory.path().join("hookbus.service"));
    let socket = copy("hookbus.socket", &directory.path().join("hookbus.socket"));
    let Some(told) = analyze(&["verify", "--man=no", &service, &socket]) else { return };
    assert_eq!(told, "", "nothing to be said about them");
    // In tenths; systemd calls this range OK, and what is missing stands in the unit with its reason.
    analyze(&["security", "--offline=yes", "--threshold=20", "--no-pager", &service]);

    let drop_in = directory.path().join("hookbus.service.d");
    fs::create_dir(&drop_in).expect("a directory");
    copy("hookbus-sudo.conf", &drop_in.join("sudo.conf"));
    assert_eq!(analyze(&["verify", "--man=no", &service]), Some(String::new()));

    // OpenNebula's own unit, with ours beside it: another program is started, and nothing else of it.
    let hem = directory.path().join("opennebula-hem.service");
    let unit = "[Unit]\nDescription=OpenNebula Hook Execution Service\n[Service]\nType=simple\nExecStart=/bin/false\nUser=root\n";
    fs::write(&hem, unit).expect("a unit");
    let drop_in = directory.path().join("opennebula-hem.service.d");
    fs::create_dir(&drop_in).expect("a directory");
    let text = fs::read_to_string(units.join("opennebula-hem.conf")).expect("a drop-in");
    let program = hookbus().with_file_name("hookbus-hem");
    let text = text.replace("/usr/bin/hookbus-hem", program.to_str().expect("UTF-8"));
    fs::write(drop_in.join("hookbus.conf"), text).expect("a copy");
    assert_eq!(analyze(&["verify", "--man=no", hem.to_str().expect("UTF-8")]), Some(String::new()));
}

#[test]
fn a_socket_of_its_own_goes_with_the_daemon() {
    let systemd = Systemd::new();
    let serve = systemd.serve("");
    assert!(systemd.message(false).starts_with("READY=1\n"));
    serve.signal(Signal::TERM);
    wait_until("the end of the daemon's own socket", || {
        if systemd.path("own.sock").exists() { Err("it is there") } else { Ok(()) }
    });
}
