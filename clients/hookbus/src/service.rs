//! What systemd and the daemon say to each other.
//!
//! A unit of `Type=notify` is told when the daemon is ready, reloads and stops, and, at half of the time that `WatchdogSec=` allows,
//! that it lives. The messages are datagrams to the socket that `NOTIFY_SOCKET` names (the sd-notify crate writes them). Without that variable
//! nothing is said, so the daemon runs the same under any other supervisor, and by hand.
//!
//! The sign of life comes from a task of the runtime that serves: when no worker gets to run tasks any more, it stops, and systemd
//! restarts the service.
//!
//! `hookbus hm` must never use this: oned's own variables are in its environment, and what it said would be taken for oned's.
//!
//! # What may go wrong
//!
//! A message that can't be sent is logged once and otherwise ignored: events are more important than systemd's picture of
//! the service. The socket's reader is systemd itself; while that doesn't read, and hundreds of messages are queued, a send waits.

use std::io;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use listenfd::ListenFd;
use sd_notify::NotifyState;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

/// Tells systemd how the daemon is; does nothing where nobody asked to be told.
#[derive(Debug)]
pub(crate) struct Notifier {
    enabled: bool,
    failed: AtomicBool,
}

impl Notifier {
    /// As the environment has it: `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`.
    pub(crate) fn from_environment() -> Self {
        Notifier { enabled: std::env::var_os("NOTIFY_SOCKET").is_some(), failed: AtomicBool::new(false) }
    }

    /// Everything is bound and events are taken in, for the first time or after [`reloading`](Notifier::reloading). `status` is what
    /// `systemctl status` shows.
    pub(crate) fn ready(&self, status: &str) {
        self.tell(&[NotifyState::Ready, NotifyState::Status(one_line(status))]);
    }

    /// The configuration is read again; [`ready`](Notifier::ready) says when that is done.
    pub(crate) fn reloading(&self) {
        // systemd wants the time in the same message.
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.tell(&[NotifyState::Reloading, now]),
            Err(e) => self.complain(&e),
        }
    }

    /// The daemon was asked to end and does so.
    pub(crate) fn stopping(&self) {
        self.tell(&[NotifyState::Stopping, NotifyState::Status("ending: what runs and what is queued is finished")]);
    }

    /// Gives signs of life from a task of the runtime it is called in, until what it returns is dropped. Nothing where the
    /// unit has no `WatchdogSec=`. Keep it while the daemon drains: that takes longer than some watchdogs wait.
    #[must_use]
    pub(crate) fn watchdog(&self) -> Option<Watchdog> {
        let period = sd_notify::watchdog_enabled().filter(|_| self.enabled)?;
        // systemd counts in microseconds and refuses 0; a timer needs some time.
        let mut signs = interval((period / 2).max(Duration::from_millis(1)));
        signs.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let notifier = Notifier { enabled: true, failed: AtomicBool::new(false) };
        Some(Watchdog(tokio::spawn(async move {
            loop {
                signs.tick().await;
                notifier.tell(&[NotifyState::Watchdog]);
            }
        })))
    }

    fn tell(&self, what: &[NotifyState<'_>]) {
        if self.enabled
            && let Err(e) = sd_notify::notify(what)
        {
            self.complain(&e);
        }
    }

    fn complain(&self, error: &io::Error) {
        if !self.failed.swap(true, Ordering::Relaxed) {
            tracing::warn!("systemd can't be told how the daemon is: {error} (NOTIFY_SOCKET)");
        }
    }
}

/// The messages are separated by line breaks.
fn one_line(status: &str) -> &str {
    status.lines().next().unwrap_or_default()
}

/// The task that gives signs of life; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Watchdog(JoinHandle<()>);

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The Unix socket that systemd listens at for us (`hookbus.socket`), ready for an async runtime; nothing where it doesn't.
/// It takes the descriptors over from the environment, so only the first call can find one; children see neither descriptors nor
/// variables.
///
/// Call it while the process has one thread: it changes the environment.
///
/// # Errors
/// When systemd handed over something else, or several sockets.
pub(crate) fn activated_unix_listener() -> io::Result<Option<UnixListener>> {
    let mut activated = ListenFd::from_env();
    match activated.len() {
        0 => return Ok(None),
        1 => {}
        count => {
            let what =
                format!("there are {count} of them; one ListenStream= with a path is expected in hookbus.socket");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
    }
    let Some(listener) = activated.take_unix_listener(0)? else { return Ok(None) };
    if !rustix::net::sockopt::socket_acceptconn(&listener)? {
        let what = "it is a connection and not a listening socket; Accept=no is expected in hookbus.socket";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    listener.set_nonblocking(true)?;
    Ok(Some(listener))
}

/// The environment is the process's own, so each test starts this program's tests again as a child, with the variables set, and plays
/// systemd.
#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::path::Path;
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// Starts one of the `child` tests below.
    fn child(name: &str) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "--ignored", "--nocapture", &format!("service::tests::{name}")]);
        command.stdout(Stdio::null());
        for variable in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID"] {
            command.env_remove(variable);
        }
        command
    }

    /// systemd's socket.
    fn socket(directory: &Path) -> (UnixDatagram, std::path::PathBuf) {
        let path = directory.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        // As long as a slow machine may take; a test that waits so long has failed.
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        (socket, path)
    }

    fn message(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 4096];
        let length = socket.recv(&mut buffer).expect("a message");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    fn ended(mut child: Child) {
        assert!(child.wait().unwrap().success());
    }

    #[test]
    #[ignore = "a child of the tests below"]
    fn says_everything() {
        let notifier = Notifier::from_environment();
        notifier.ready("serving\nWATCHDOG=1");
        notifier.reloading();
        notifier.stopping();
    }

    #[test]
    fn systemd_is_told_each_state() {
        let directory = tempfile::tempdir().unwrap();
        let (socket, path) = socket(directory.path());
        let child = child("says_everything").env("NOTIFY_SOCKET", &path).spawn().unwrap();
        assert_eq!(message(&socket), "READY=1\nSTATUS=serving\n");
        let reloading = message(&socket);
        let time = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect("both in one message");
        assert!(time.trim_end().parse::<u64>().unwrap() > 0, "{reloading}");
        assert!(message(&socket).starts_with("STOPPING=1\nSTATUS=ending"));
        ended(child);
    }

    #[test]
    fn nothing_is_said_without_a_socket_and_nothing_breaks_without_a_reader() {
        ended(child("says_everything").spawn().unwrap());
        ended(child("says_everything").env("NOTIFY_SOCKET", "/nonexistent/notify").spawn().unwrap());
        ended(child("says_everything").env("NOTIFY_SOCKET", "").spawn().unwrap());
    }

    #[test]
    #[ignore = "a child of the tests below"]
    fn lives_for_three_signs() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let notifier = Notifier::from_environment();
        runtime.block_on(async {
            let watchdog = notifier.watchdog().expect("WATCHDOG_USEC is set");
            tokio::time::sleep(Duration::from_millis(120)).await;
            drop(watchdog);
            tokio::task::yield_now().await;
            notifier.ready("over");
            tokio::time::sleep(Duration::from_millis(120)).await;
            // A runtime that is stuck gives no signs.
            let _stuck = notifier.watchdog();
            std::thread::sleep(Duration::from_millis(120));
            notifier.stopping();
        });
    }

    #[test]
    fn signs_of_life_come_while_the_runtime_runs() {
        let directory = tempfile::tempdir().unwrap();
        let (socket, path) = socket(directory.path());
        let mut command = child("lives_for_three_signs");
        let child = command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "20000").spawn().unwrap();
        let mut messages: Vec<String> = Vec::new();
        while messages.last().is_none_or(|last| !last.starts_with("STOPPING=1\n")) {
            messages.push(message(&socket));
        }
        let over = messages.iter().position(|message| message == "READY=1\nSTATUS=over\n").expect("it is said");
        assert!(over >= 2 && messages[..over].iter().all(|message| message == "WATCHDOG=1\n"), "{messages:?}");
        assert_eq!(messages.len(), over + 2, "{messages:?}: none after the end, none while it is stuck");
        ended(child);
    }

    #[test]
    #[ignore = "a child of the tests below"]
    fn has_no_watchdog() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { assert!(Notifier::from_environment().watchdog().is_none()) });
    }

    #[test]
    fn a_watchdog_for_somebody_else_is_not_fed() {
        let directory = tempfile::tempdir().unwrap();
        let (_socket, path) = socket(directory.path());
        ended(child("has_no_watchdog").env("NOTIFY_SOCKET", &path).spawn().unwrap());
        ended(child("has_no_watchdog").env("WATCHDOG_USEC", "1000").spawn().unwrap());
        let others = [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "1000"), ("WATCHDOG_PID", "1")];
        ended(child("has_no_watchdog").envs(others).spawn().unwrap());
    }

    #[test]
    fn without_activation_there_is_no_listener() {
        assert!(activated_unix_listener().unwrap().is_none());
    }
}
