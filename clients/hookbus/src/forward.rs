//! What `hookbus hm --forward` and the daemon say to each other.
//!
//! The driver connects to the daemon's socket and asks for the protocol [`PROTOCOL`] at [`PATH`] (an HTTP upgrade). From then on
//! both sides send lines that end in LF. Those of the protocol begin with a dot; oned's begin with a letter.
//!
//! ```text
//! driver                                       daemon
//! .HELLO <session> <number>      ──▶           the driver's next line has this number
//!                                ◀── .WELCOME <log> <number>    send from this number on
//! EXECUTE  -1 <base64>           ──▶           each line of oned, as it came; numbers count on
//!                                ◀── .TAKEN <number>            all lines below it are published
//!                                ◀── .RESULT <number> EXECUTE SUCCESS 3 0 <base64>
//! .TOLD <number>                 ──▶           results below it have been handed to oned
//! .LOST <count>                  ──▶           so many of oned's lines were dropped here, for want of room
//! ```
//!
//! The driver keeps a line until it is taken. After a broken connection it says HELLO again with the same session (a random
//! number, one for each life of a driver), the daemon says which line it wants next, and nothing is published twice, unless the
//! daemon itself has been started anew meanwhile: that one has forgotten what its predecessor took and did not say. Results
//! go the other way likewise; `<log>` names the daemon's life.

use std::fmt;
use std::str::FromStr;

/// Where the daemon is asked.
pub(crate) const PATH: &str = "/v1/opennebula";
/// The name of the protocol and its version.
pub(crate) const PROTOCOL: &str = "hookbus-opennebula/1";

/// A line of the driver that isn't oned's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FromDriver {
    Hello { session: u64, next: u64 },
    Told(u64),
    Lost(u64),
}

/// A line of the daemon, without its text where that is a result for oned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FromDaemon {
    Welcome {
        log: u64,
        next: u64,
    },
    Taken(u64),
    /// The rest of the line is for oned.
    Result(u64),
}

/// A line that isn't of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Strange;

impl fmt::Display for FromDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FromDriver::Hello { session, next } => writeln!(f, ".HELLO {session:016x} {next}"),
            FromDriver::Told(number) => writeln!(f, ".TOLD {number}"),
            FromDriver::Lost(count) => writeln!(f, ".LOST {count}"),
        }
    }
}

impl FromStr for FromDriver {
    type Err = Strange;

    fn from_str(line: &str) -> Result<Self, Strange> {
        let words: Vec<_> = line.split_ascii_whitespace().collect();
        match words[..] {
            [".HELLO", session, next] => Ok(FromDriver::Hello { session: hexadecimal(session)?, next: decimal(next)? }),
            [".TOLD", number] => Ok(FromDriver::Told(decimal(number)?)),
            [".LOST", count] => Ok(FromDriver::Lost(decimal(count)?)),
            _ => Err(Strange),
        }
    }
}

impl FromDaemon {
    /// Reads a line, whatever blanks end it; with it comes what is for oned.
    pub(crate) fn parse(line: &[u8]) -> Result<(Self, &[u8]), Strange> {
        let mut words = line.trim_ascii_end().splitn(3, |byte| *byte == b' ');
        let mut word = || words.next().and_then(|word| std::str::from_utf8(word).ok()).ok_or(Strange);
        match word()? {
            ".WELCOME" => {
                let (log, next) = (hexadecimal(word()?)?, decimal(word()?)?);
                Ok((FromDaemon::Welcome { log, next }, b""))
            }
            ".TAKEN" => Ok((FromDaemon::Taken(decimal(word()?)?), b"")),
            ".RESULT" => {
                let number = decimal(word()?)?;
                Ok((FromDaemon::Result(number), words.next().ok_or(Strange)?))
            }
            _ => Err(Strange),
        }
    }
}

impl fmt::Display for FromDaemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FromDaemon::Welcome { log, next } => writeln!(f, ".WELCOME {log:016x} {next}"),
            FromDaemon::Taken(number) => writeln!(f, ".TAKEN {number}"),
            FromDaemon::Result(number) => write!(f, ".RESULT {number} "),
        }
    }
}

fn decimal(word: &str) -> Result<u64, Strange> {
    word.parse().map_err(|_| Strange)
}

fn hexadecimal(word: &str) -> Result<u64, Strange> {
    u64::from_str_radix(word, 16).map_err(|_| Strange)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_they_are_written() {
        for line in [FromDriver::Hello { session: 0xab, next: 7 }, FromDriver::Told(3), FromDriver::Lost(9)] {
            assert_eq!(line.to_string().parse(), Ok(line));
        }
        for line in [FromDaemon::Welcome { log: u64::MAX, next: 1 }, FromDaemon::Taken(5)] {
            assert_eq!(FromDaemon::parse(line.to_string().as_bytes()), Ok((line, &b""[..])));
        }
        let result = format!("{}EXECUTE SUCCESS 3 0 QQ==", FromDaemon::Result(8));
        assert_eq!(FromDaemon::parse(result.as_bytes()), Ok((FromDaemon::Result(8), &b"EXECUTE SUCCESS 3 0 QQ=="[..])));
        for strange in ["", ".", ".HELLO", ".HELLO x 1", ".TOLD -1", "EXECUTE  -1 QQ==", ".RESULT 7", ".TAKEN many"] {
            assert!(
                strange.parse::<FromDriver>().is_err() && FromDaemon::parse(strange.as_bytes()).is_err(),
                "{strange}"
            );
        }
    }
}
