//! Rounds in, tables and JSON out; [`plots`](crate::plots) draws them.
//!
//! A [`Series`] holds what one contender reached in each round of one measure and case. The median is quoted, the
//! extremes are shown beside it, and all rounds go to the JSON file, so that nobody has to believe the summary.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use serde::Serialize;

use crate::machine::Machine;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Measure {
    /// What a table is headed with.
    pub name: &'static str,
    /// The unit of every value.
    pub unit: &'static str,
    /// Which way is good.
    pub better: Better,
}

/// Which of two values is the better one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Better {
    /// A rate.
    Higher,
    /// A time, a cost.
    Lower,
}

/// Whose figure it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Who {
    /// What a row is headed with.
    pub name: &'static str,
    /// Whether it is ours or what we compare with.
    pub side: Side,
    /// Those of one class are compared with each other, too: a program made of tasks can't use a channel for threads.
    pub class: Option<&'static str>,
}

/// Ours, or what we compare with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// hookbus.
    Ours,
    /// Somebody else's, or the plainest program that does the job.
    Peer,
}

/// What we want to reach.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Aim {
    /// So many times the best peer's median.
    Ratio(f64),
    /// So many times that of the best peer of the class.
    RatioInClass(f64),
    /// A median.
    Value(f64),
}

/// Where on a curve a figure stands.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Point {
    /// What is varied.
    pub axis: &'static str,
    /// How much of it there was.
    pub at: f64,
}

/// What one contender reached in one measure and case, round by round.
#[derive(Clone, Debug, Serialize)]
pub struct Series {
    pub(crate) measure: Measure,
    pub(crate) case: String,
    pub(crate) point: Option<Point>,
    pub(crate) who: Who,
    rounds: Vec<f64>,
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    aim: Option<Aim>,
    /// The median divided by the best peer's median.
    ratio: Option<f64>,
    /// The same among those of its class.
    ratio_in_class: Option<f64>,
}

/// All series of a run, and where it ran.
#[derive(Debug, Serialize)]
pub struct Report {
    machine: Machine,
    command: String,
    pub(crate) series: Vec<Series>,
}

impl Report {
    /// An empty report about this machine.
    pub fn new() -> Self {
        let command = std::env::args().collect::<Vec<_>>().join(" ");
        Report { machine: Machine::this(), command, series: Vec::new() }
    }

    /// Adds what one round of a contender brought.
    pub fn record(&mut self, measure: Measure, case: &str, who: Who, value: f64) {
        self.add(measure, case, None, who, value);
    }

    /// Adds what one round of a contender brought at one point of a curve.
    pub fn record_at(&mut self, measure: Measure, point: Point, who: Who, value: f64) {
        self.add(measure, &format!("{}: {}", point.axis, point.at), Some(point), who, value);
    }

    /// Says what a contender is to reach; where it took no part, nothing.
    pub fn aim(&mut self, measure: Measure, case: &str, who: Who, aim: Aim) {
        for series in self.series.iter_mut().filter(|s| s.measure == measure && s.case == case && s.who == who) {
            series.aim = Some(aim);
        }
    }

    fn add(&mut self, measure: Measure, case: &str, point: Option<Point>, who: Who, value: f64) {
        let found = self.series.iter_mut().find(|s| s.measure == measure && s.case == case && s.who == who);
        match found {
            Some(series) => series.rounds.push(value),
            None => self.series.push(Series {
                measure,
                case: case.to_owned(),
                point,
                aim: None,
                who,
                rounds: vec![value],
                median: value,
                min: value,
                max: value,
                ratio: None,
                ratio_in_class: None,
            }),
        }
        self.settle(measure, case);
    }

    /// Brings the summaries of one table up to date.
    fn settle(&mut self, measure: Measure, case: &str) {
        let of_table = |s: &Series| s.measure == measure && s.case == case;
        for series in self.series.iter_mut().filter(|s| of_table(s)) {
            series.median = median(&series.rounds);
            series.min = series.rounds.iter().copied().fold(f64::INFINITY, f64::min);
            series.max = series.rounds.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        }
        let best = |class: Option<&str>| {
            let peers = self.series.iter().filter(|s| of_table(s) && s.who.side == Side::Peer);
            let medians = peers.filter(|s| class.is_none() || s.who.class == class).map(|s| s.median);
            let best = match measure.better {
                Better::Higher => medians.reduce(f64::max),
                Better::Lower => medians.reduce(f64::min),
            };
            // Nothing is a multiple of nothing.
            best.filter(|best| *best != 0.0)
        };
        let ratios: Vec<_> =
            self.series.iter().map(|s| (best(None), s.who.class.and_then(|class| best(Some(class))))).collect();
        for (series, (best, best_in_class)) in self.series.iter_mut().zip(ratios).filter(|(s, _)| of_table(s)) {
            series.ratio = best.map(|best| series.median / best);
            series.ratio_in_class = best_in_class.map(|best| series.median / best);
        }
    }

    /// Writes one measure of a case.
    fn write_measure(&self, out: &mut impl Write, measure: Measure, case: &str, width: usize) -> io::Result<()> {
        let better = match measure.better {
            Better::Higher => "higher is better",
            Better::Lower => "lower is better",
        };
        writeln!(out, "  {} [{}, {better}]", measure.name, measure.unit)?;
        for row in self.series.iter().filter(|s| s.measure == measure && s.case == case) {
            let spread = format!("{} - {}", short(row.min), short(row.max));
            let ratio = |ratio: Option<f64>| ratio.map_or_else(String::new, short);
            let mark = if row.who.side == Side::Ours { "*" } else { " " };
            let line = format!(
                "  {mark} {:width$}  {:>9}  {spread:>21}  {:>9}  {:>9}  {}",
                row.who.name,
                short(row.median),
                ratio(row.ratio),
                ratio(row.ratio_in_class),
                row.verdict(),
            );
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }

    /// Writes a table for each case, in the order in which cases and measures first came up.
    ///
    /// # Errors
    /// When `out` can't be written.
    pub fn write_tables(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "{}", self.machine)?;
        writeln!(out, "* hookbus; / peer: the median divided by the best peer's; in class: the same among its kind\n")?;
        let width = self.series.iter().map(|s| s.who.name.len()).max().unwrap_or(0);
        for (at, case) in self.series.iter().map(|s| &s.case).enumerate() {
            let is_new = |at: usize, same: &dyn Fn(&Series) -> bool| !self.series[..at].iter().any(same);
            if !is_new(at, &|s| s.case == *case) {
                continue;
            }
            writeln!(
                out,
                "{case:w$}  {:>9}  {:>21}  {:>9}  {:>9}",
                "median",
                "min - max",
                "/ peer",
                "in class",
                w = width + 4
            )?;
            for (at, series) in self.series.iter().enumerate().filter(|(_, s)| s.case == *case) {
                if is_new(at, &|s| s.case == *case && s.measure == series.measure) {
                    self.write_measure(out, series.measure, case, width)?;
                }
            }
            writeln!(out)?;
        }
        Ok(())
    }

    /// Writes everything as JSON, all rounds included.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn write_json(&self, path: &Path) -> io::Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        serde_json::to_writer_pretty(&mut file, self)?;
        file.write_all(b"\n")?;
        file.flush()
    }
}

impl Series {
    /// What was aimed at, and whether it was reached.
    fn verdict(&self) -> String {
        let (reached, aim) = match self.aim {
            None => return String::new(),
            Some(Aim::Ratio(aim)) => (self.ratio, aim),
            Some(Aim::RatioInClass(aim)) => (self.ratio_in_class, aim),
            Some(Aim::Value(aim)) => (Some(self.median), aim),
        };
        let met = reached.is_some_and(|reached| match self.measure.better {
            Better::Higher => reached >= aim,
            Better::Lower => reached <= aim,
        });
        format!("aim {}: {}", short(aim), if met { "met" } else { "not met" })
    }
}

impl Default for Report {
    fn default() -> Self {
        Report::new()
    }
}

/// The middle value, or the mean of the two in the middle; NaN for none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// Three significant digits are all that such a machine can promise.
pub(crate) fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 0.1 || v == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Measure = Measure { name: "rate", unit: "M/s", better: Better::Higher };
    const COST: Measure = Measure { name: "cost", unit: "us", better: Better::Lower };

    fn who(name: &'static str, side: Side, class: Option<&'static str>) -> Who {
        Who { name, side, class }
    }

    #[test]
    fn the_median_is_the_middle_whatever_the_order() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn ratios_are_to_the_best_peer_of_all_and_of_the_class() {
        let mut report = Report::new();
        report.record(RATE, "N=1", who("us", Side::Ours, Some("tasks")), 6.0);
        report.record(RATE, "N=1", who("threads", Side::Peer, None), 4.0);
        report.record(RATE, "N=1", who("tasks", Side::Peer, Some("tasks")), 2.0);
        report.record(RATE, "N=4", who("threads", Side::Peer, None), 100.0);
        let ours = &report.series[0];
        assert_eq!((ours.ratio, ours.ratio_in_class), (Some(1.5), Some(3.0)));
    }

    #[test]
    fn an_aim_is_met_on_the_right_side() {
        let mut report = Report::new();
        for (measure, ours) in [(RATE, 6.0), (COST, 6.0)] {
            report.record(measure, "N=1", who("us", Side::Ours, None), ours);
            report.record(measure, "N=1", who("them", Side::Peer, None), 4.0);
            report.aim(measure, "N=1", who("us", Side::Ours, None), Aim::Ratio(1.2));
        }
        let verdicts: Vec<_> = report.series.iter().map(Series::verdict).collect();
        assert_eq!(verdicts, ["aim 1.20: met", "", "aim 1.20: not met", ""]);
        report.aim(COST, "N=1", who("us", Side::Ours, None), Aim::Value(6.0));
        assert_eq!(report.series[2].verdict(), "aim 6.00: met");
    }

    #[test]
    fn where_lower_is_better_the_cheapest_peer_is_the_one_to_beat() {
        let mut report = Report::new();
        report.record(COST, "1 subscriber", who("us", Side::Ours, None), 5.0);
        report.record(COST, "1 subscriber", who("plain", Side::Peer, None), 10.0);
        report.record(COST, "1 subscriber", who("ruby", Side::Peer, None), 500.0);
        assert_eq!(report.series[0].ratio, Some(0.5));
    }
}
