//! The floor: commands started and waited for, and nothing else.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};
use std::{io, thread};

use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::Failure;

/// Between single events, so that nothing is left of the one before.
pub(super) const PAUSE: Duration = Duration::from_millis(5);

/// What asks `date` for nanoseconds.
pub(super) const DATE_FORMAT: &str = "+%s.%N";

/// How long so many executions of `/bin/true` take, with so many at once.
pub(super) fn rate(executions: usize, concurrency: usize) -> Result<Duration, Failure> {
    let mut command = Command::new("/bin/true");
    let begun = Instant::now();
    let mut running = 0;
    for _ in 0..executions {
        if running == concurrency {
            wait()?;
            running -= 1;
        }
        // Dropped, it is left to be waited for with the others.
        drop(command.spawn().map_err(Failure::io("start /bin/true"))?);
        running += 1;
    }
    for _ in 0..running {
        wait()?;
    }
    Ok(begun.elapsed())
}

/// Waits for any child of our process group, in which hookbus-hem isn't.
fn wait() -> Result<(), Failure> {
    loop {
        match waitpid(Pid::from_raw(0), None) {
            Ok(WaitStatus::Exited(_, 0)) => return Ok(()),
            Ok(status) => {
                return Err(Failure::io("run /bin/true")(io::Error::other(format!("it ended otherwise: {status:?}"))));
            }
            Err(Errno::EINTR) => {}
            Err(e) => return Err(Failure::io("wait for /bin/true")(e.into())),
        }
    }
}

/// How long after it is started `date` runs, so many times, with a pause before each.
pub(super) fn latency(events: usize) -> Result<Vec<Duration>, Failure> {
    let mut command = Command::new("/bin/date");
    command.arg(DATE_FORMAT).stdout(Stdio::piped());
    let one = |_| {
        thread::sleep(PAUSE);
        let begun = SystemTime::now();
        let output = command.spawn().and_then(std::process::Child::wait_with_output);
        since(begun, &output.map_err(Failure::io("run /bin/date"))?.stdout)
    };
    (0..events).map(one).collect()
}

/// The time from a moment until the one that `date` wrote.
pub(super) fn since(begun: SystemTime, date: &[u8]) -> Result<Duration, Failure> {
    let text = String::from_utf8_lossy(date);
    let told = text.trim_end().split_once('.').and_then(|(seconds, nanos)| {
        Some(SystemTime::UNIX_EPOCH + Duration::new(seconds.parse().ok()?, nanos.parse().ok()?))
    });
    let elapsed = told.and_then(|told| told.duration_since(begun).ok());
    let other = || io::Error::other(format!("it says {text:?}, and it was {begun:?} before it was started"));
    elapsed.ok_or_else(|| Failure::io("read the time of /bin/date")(other()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_date_is_read_to_the_nanosecond() {
        let begun = SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 5);
        assert_eq!(since(begun, b"1700000001.000000007\n").ok(), Some(Duration::new(1, 2)));
        for wrong in ["", "1700000001", "1600000000.000000000", "x.y"] {
            assert!(since(begun, wrong.as_bytes()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn date_runs_after_it_is_started() {
        assert_eq!(latency(2).map(|all| all.len()).ok(), Some(2));
    }
}
