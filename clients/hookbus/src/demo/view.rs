//! How the demo looks: on a terminal a coloured line an event above a status line that stays; elsewhere one plain line an
//! event on standard output and nothing else, so that it can be piped.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use hookbus_bridges::opennebula::{Event, Kind};
use hookbus_broker::{Gap, SubscriptionStats};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

const SUBJECT_WIDTH: usize = 34;
const OUTCOME_WIDTH: usize = 26;
/// What a terminal is taken for that doesn't say how wide it is.
const TERMINAL_WIDTH: usize = 80;

const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();
const CHANGING: Style = AnsiColor::Yellow.on_default();
const SUBJECT: Style = AnsiColor::Cyan.on_default();
const DIM: Style = Style::new().dimmed();
const STRONG: Style = Style::new().bold();

/// Who an event was for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Audience {
    /// It is in their queues.
    pub(crate) got: Vec<String>,
    /// They were at their high-water mark.
    pub(crate) lost: Vec<String>,
}

/// Where it is shown. Colours are left out where standard output is no terminal or `NO_COLOR` is set.
#[derive(Debug)]
pub(crate) struct View {
    out: anstream::Stdout,
    terminal: bool,
    /// The status line is on the screen and the cursor behind it.
    status_shown: bool,
}

impl View {
    pub(crate) fn new() -> Self {
        View { out: anstream::stdout(), terminal: io::stdout().is_terminal(), status_shown: false }
    }

    /// Text around the events: with them on a terminal, else on standard error.
    pub(crate) fn note(&mut self, text: &str) -> io::Result<()> {
        if self.terminal {
            self.clear_status()?;
            writeln!(self.out, "{text}")
        } else {
            // Where standard error is closed nobody wants to know.
            let _ = writeln!(anstream::stderr(), "{text}");
            Ok(())
        }
    }

    /// One event.
    pub(crate) fn event(&mut self, at: Duration, event: &Event<'_>, audience: &Audience) -> io::Result<()> {
        self.clear_status()?;
        let (subject, outcome, style) = describe(event);
        let subject = padded(&subject, SUBJECT_WIDTH);
        let outcome = padded(&outcome, OUTCOME_WIDTH);
        let mut who = String::new();
        if !audience.got.is_empty() {
            let _ = write!(who, "{DIM}to{DIM:#} {}", audience.got.join(", "));
        }
        if !audience.lost.is_empty() {
            let blank = if who.is_empty() { "" } else { "  " };
            let _ = write!(who, "{blank}{CHANGING}no room at {}{CHANGING:#}", audience.lost.join(", "));
        }
        let at = at.as_secs_f64();
        writeln!(self.out, "{DIM}{at:>7.1}s{DIM:#}  {SUBJECT}{subject}{SUBJECT:#}  {style}{outcome}{style:#}  {who}")?;
        self.out.flush()
    }

    /// A slow subscriber has taken what there was for it, and was told what it missed.
    pub(crate) fn woke_up(&mut self, name: &str, taken: u64, gaps: &[Gap]) -> io::Result<()> {
        if !self.terminal || taken == 0 {
            return Ok(());
        }
        self.clear_status()?;
        let mut text = format!("{name} woke up and took {taken}");
        for Gap { first, last, count } in gaps {
            let _ = match count {
                1 => write!(text, "; it is told that it missed event {first}"),
                _ => write!(text, "; it is told that it missed {count}, events {first} to {last}"),
            };
        }
        writeln!(self.out, "{:>10}{CHANGING}{text}{CHANGING:#}", "")
    }

    /// Somebody came or went.
    pub(crate) fn peer(&mut self, text: &str) -> io::Result<()> {
        if !self.terminal {
            return Ok(());
        }
        self.clear_status()?;
        writeln!(self.out, "{:>10}{GOOD}{text}{GOOD:#}", "")
    }

    /// The line that stays at the bottom of a terminal.
    pub(crate) fn status(&mut self, events: u64, rate: f64, subscribers: &[SubscriptionStats]) -> io::Result<()> {
        if !self.terminal {
            return Ok(());
        }
        self.clear_status()?;
        let mut text = format!(" {events} events, {rate:.1}/s");
        for stats in subscribers {
            let _ = write!(text, " | {}: {} taken", display_name(stats), stats.delivered);
            if stats.dropped > 0 {
                let _ = write!(text, ", {} lost", stats.dropped);
            }
            if stats.queued > 0 {
                let _ = write!(text, ", {} waiting", stats.queued);
            }
        }
        let text = cut(&text, terminal_width().saturating_sub(1));
        let inverse = Style::new().invert();
        write!(self.out, "{inverse}{text}{inverse:#}")?;
        self.status_shown = true;
        self.out.flush()
    }

    /// What it came to.
    pub(crate) fn summary(&mut self, events: u64, took: Duration, subscribers: &[SubscriptionStats]) -> io::Result<()> {
        let seconds = took.as_secs_f64();
        let rate = if seconds > 0.0 { events as f64 / seconds } else { 0.0 };
        let mut text = format!("\n{STRONG}{events} events in {seconds:.1} s, {rate:.1} a second{STRONG:#}");
        for stats in subscribers {
            let SubscriptionStats { matched, delivered, dropped, queued, .. } = stats;
            let _ = write!(
                text,
                "\n  {:<28} {matched:>6} for it = {delivered} taken + {dropped} lost and told + {queued} waiting",
                display_name(stats)
            );
        }
        self.note(&text)
    }

    /// Takes the status line from the screen.
    pub(crate) fn clear_status(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.status_shown) {
            // Return, erase the line. It stays in the buffer until what takes its place is there, so nothing flickers.
            write!(self.out, "\r\x1b[2K")?;
        }
        Ok(())
    }
}

/// What a subscription is called on the screen: the bridge's `zeromq tcp://127.0.0.1:4711` by its address.
pub(crate) fn display_name(stats: &SubscriptionStats) -> &str {
    let name = stats.name.strip_prefix("zeromq ").unwrap_or(&stats.name);
    name.strip_prefix("tcp://").unwrap_or(name)
}

/// What happened to what, and how good that is.
fn describe(event: &Event<'_>) -> (String, String, Style) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match event.kind {
        Kind::Api if event.result == b"1" => (text(event.call), "ok".into(), GOOD),
        Kind::Api => (text(event.call), "failed".into(), BAD),
        Kind::State => {
            let mut subject = format!("{} {}", text(event.object), text(event.id));
            if let Some(name) = event.name() {
                let _ = write!(subject, " \"{name}\"");
            }
            let mut state = text(event.state);
            if !event.lcm_state.is_empty() && event.lcm_state != b"LCM_INIT" {
                let _ = write!(state, "/{}", text(event.lcm_state));
            }
            let style = style_of(&state);
            (subject, state, style)
        }
        _ => ("?".into(), "published with the key EVENT".into(), DIM),
    }
}

fn style_of(state: &str) -> Style {
    match state {
        "ACTIVE/RUNNING" | "READY" | "USED" | "MONITORED" => GOOD,
        "DONE" => DIM,
        _ if state.contains("FAILURE") || state.contains("ERROR") || state == "ACTIVE/UNKNOWN" => BAD,
        _ => CHANGING,
    }
}

/// Cut or filled up to so many columns.
fn padded(text: &str, width: usize) -> String {
    let mut fits = cut(text, width);
    if fits.len() < text.len() {
        fits = cut(text, width - 1);
        fits.push('…');
    }
    fits.extend(std::iter::repeat_n(' ', width.saturating_sub(fits.width())));
    fits
}

/// As much as fits into so many columns; some characters take two.
fn cut(text: &str, width: usize) -> String {
    let mut columns = 0;
    let fits = text.chars().take_while(|c| {
        columns += c.width().unwrap_or(0);
        columns <= width
    });
    fits.collect()
}

fn terminal_width() -> usize {
    let size = rustix::termios::tcgetwinsize(rustix::stdio::stdout());
    size.map_or(TERMINAL_WIDTH, |size| if size.ws_col == 0 { TERMINAL_WIDTH } else { size.ws_col.into() })
}

#[cfg(test)]
mod tests {
    use hookbus_bridges::opennebula::Parser;

    use super::*;

    #[test]
    fn events_are_told_in_words() {
        let mut parser = Parser::new();
        let told: Vec<_> = super::super::recording::events()
            .iter()
            .map(|event| {
                let (subject, outcome, _) = describe(&parser.event_of(event.payload()));
                format!("{subject}: {outcome}")
            })
            .collect();
        for expected in [
            "HOST 0 \"node1\": MONITORED",
            "one.host.allocate: failed",
            "one.vm.allocate: ok",
            "VM 0 \"vm-a\": ACTIVE/RUNNING",
            "VM 0 \"vm-a\": POWEROFF",
            "IMAGE 0 \"disk-1\": READY",
            "VM 2 \"vm-boot-failure\": ACTIVE/BOOT_FAILURE",
        ] {
            assert!(told.iter().any(|line| line == expected), "{expected} is not in {told:#?}");
        }
    }

    #[test]
    fn text_is_cut_or_filled_up() {
        assert_eq!(padded("ab", 4), "ab  ");
        assert_eq!(padded("abcd", 4), "abcd");
        assert_eq!(padded("机器机器", 4), "机… ");
        assert_eq!(padded("机器机器", 5), "机器…");
    }
}
