//! How answers of the daemon are shown: tables, numbers, or the object as it came.

use std::fmt::Write as _;
use std::io::Write as _;

use anstyle::Style;
use clap::ValueEnum;
use serde_json::Value;
use unicode_width::UnicodeWidthStr;

use crate::client::Failure;

/// What is not the thing itself.
pub(crate) const DIM: Style = Style::new().dimmed();

/// How an answer is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people
    #[default]
    Pretty,
    /// The daemon's whole answer
    Json,
}

/// Prints an answer, for people as `pretty` says.
pub(crate) fn print(answer: &Value, output: Output, pretty: impl Fn(&Value) -> String) -> Result<(), Failure> {
    let text = match output {
        Output::Pretty => pretty(answer),
        Output::Json => format!("{answer:#}\n"),
    };
    let mut out = anstream::stdout();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Columns as wide as they need to be; those from `numbers` on are numbers and stand to the right.
pub(crate) fn table(heads: &[&str], numbers: usize, rows: Vec<(Style, Vec<String>)>, text: &mut String) {
    let widths: Vec<usize> = (0..heads.len())
        .map(|i| rows.iter().map(|(_, cells)| cells[i].width()).chain([heads[i].width()]).max().unwrap_or(0))
        .collect();
    let mut row = |style: Style, cells: &[String]| {
        let mut line = String::new();
        for (i, cell) in cells.iter().enumerate() {
            let fill = " ".repeat(widths[i].saturating_sub(cell.width()));
            let (before, after) =
                if i >= numbers && i + 1 < heads.len() { (fill.as_str(), "") } else { ("", fill.as_str()) };
            let _ = write!(line, "{before}{cell}{after}  ");
        }
        let _ = writeln!(text, "{style}{}{style:#}", line.trim_end());
    };
    let heads: Vec<String> = heads.iter().map(|head| (*head).to_owned()).collect();
    row(Style::new(), &[]);
    row(DIM, &heads);
    for (style, cells) in rows {
        row(style, &cells);
    }
}

/// The elements of a list; none where there is none.
pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// A text, or an empty one.
pub(crate) fn string(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// A number, or 0.
pub(crate) fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

/// `1,234,567`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A limit, where 0 is none.
pub(crate) fn limit(number: u64) -> String {
    if number == 0 { "none".into() } else { grouped(number) }
}

/// A size in the unit that fits.
pub(crate) fn bytes(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.1} GiB", bytes as f64 / 1_073_741_824.0),
    }
}

/// A time in the units that fit.
pub(crate) fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, ..) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}
