//! Lengths of time as people write them in a configuration file: `"7d"`, `"90s"`, or a plain number of seconds.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::{Serialize, Serializer};

/// A length of time in whole seconds. Written as a number with a unit, `"7d"`; units are s, min (or m), h, d and w. A
/// number without a unit is seconds. Where it is a limit, 0 is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Period(u64);

impl Period {
    /// No time at all: where it is a limit, there is none.
    pub(crate) const ZERO: Self = Period(0);

    /// As the clock has it.
    pub(crate) const fn duration(self) -> std::time::Duration {
        std::time::Duration::from_secs(self.0)
    }

    /// So many seconds.
    pub(crate) const fn seconds(seconds: u64) -> Self {
        Period(seconds)
    }

    /// So many days.
    pub(crate) const fn days(days: u64) -> Self {
        Period(days * 86_400)
    }
}

/// Each unit and its seconds, largest first so that a period is shown in the largest that divides it.
const UNITS: [(&str, u64); 6] = [("w", 604_800), ("d", 86_400), ("h", 3600), ("min", 60), ("s", 1), ("m", 60)];

impl FromStr for Period {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("`{text}` is not a length of time; write a whole number and one of s, min, h, d, w, such as \"7d\"")
        };
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let unit = unit.trim();
        let seconds = match UNITS.iter().find(|(name, _)| *name == unit) {
            Some((_, seconds)) => *seconds,
            None if unit.is_empty() => 1,
            None => return Err(wrong()),
        };
        // A century is more than anybody keeps, and far from where arithmetic with times overflows.
        let total = number.checked_mul(seconds).filter(|total| *total <= 100 * 366 * 86_400);
        total.map(Period).ok_or_else(|| format!("`{text}` is more than a hundred years"))
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, seconds) =
            UNITS[..5].iter().find(|(_, seconds)| self.0 != 0 && self.0.is_multiple_of(*seconds)).unwrap_or(&UNITS[4]);
        write!(f, "{}{unit}", self.0 / seconds)
    }
}

impl Serialize for Period {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PeriodVisitor;

        impl Visitor<'_> for PeriodVisitor {
            type Value = Period;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a length of time such as \"7d\", or a number of seconds")
            }

            fn visit_i64<E: de::Error>(self, seconds: i64) -> Result<Period, E> {
                // The text has the limits.
                seconds.to_string().parse().map_err(E::custom)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Period, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_any(PeriodVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_are_read_as_people_write_them_and_shown_in_the_largest_unit() {
        for (text, seconds, shown) in [
            ("7d", 604_800, "1w"),
            ("1 d", 86_400, "1d"),
            ("90", 90, "90s"),
            ("90min", 5400, "90min"),
            ("5m", 300, "5min"),
            ("24h", 86_400, "1d"),
            ("0", 0, "0s"),
        ] {
            let period: Period = text.parse().unwrap();
            assert_eq!((period.0, &*period.to_string()), (seconds, shown), "{text}");
            assert_eq!(period.to_string().parse(), Ok(period), "{text}");
        }
        for text in ["", "d", "1.5h", "-1", "3 fortnights", "101000w", "99999999999999999999"] {
            assert!(text.parse::<Period>().is_err(), "{text}");
        }
    }
}
