//! Reports as SVG: bars for what was compared in one case, curves for what was varied.
//!
//! Bars show the median, a line across their end the extremes of all rounds. Curves have logarithmic axes, and a point for each median.

use std::error::Error;
use std::fs;
use std::path::Path;

use plotters::prelude::*;

use crate::report::{Measure, Report, Series, Side, short};

const WIDTH: u32 = 900;
const ROW: u32 = 26;
const OURS: RGBColor = RGBColor(0xc2, 0x41, 0x0c);
const PEERS: [RGBColor; 6] = [
    RGBColor(0x33, 0x41, 0x55),
    RGBColor(0x03, 0x69, 0xa1),
    RGBColor(0x4d, 0x7c, 0x0f),
    RGBColor(0x7e, 0x22, 0xce),
    RGBColor(0x0f, 0x76, 0x6e),
    RGBColor(0xa1, 0x62, 0x07),
];

/// Draws everything that a report has into files in `dir`, which is made; their names begin with `name`. Returns them.
///
/// # Errors
/// When a file can't be written.
pub fn write(report: &Report, dir: &Path, name: &str) -> Result<Vec<String>, Box<dyn Error>> {
    fs::create_dir_all(dir)?;
    let mut written = Vec::new();
    let mut drawn: Vec<(Measure, String)> = Vec::new();
    for series in &report.series {
        let title = series.point.map_or(series.case.as_str(), |point| point.axis);
        let key = (series.measure, title.to_owned());
        if drawn.contains(&key) {
            continue;
        }
        let file = format!("{name}-{}.svg", slug(&format!("{title} {}", series.measure.name)));
        let path = dir.join(&file);
        let of_plot = |s: &&Series| s.measure == series.measure && s.point.map_or(s.case.as_str(), |p| p.axis) == title;
        let rows: Vec<&Series> = report.series.iter().filter(of_plot).collect();
        match series.point {
            Some(_) => curves(&path, title, series.measure, &rows)?,
            None => bars(&path, title, series.measure, &rows)?,
        }
        drawn.push(key);
        written.push(file);
    }
    Ok(written)
}

fn slug(text: &str) -> String {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_ascii_lowercase).collect::<Vec<_>>().join("-")
}

fn heading(title: &str, measure: Measure) -> String {
    format!("{title}: {} [{}]", measure.name, measure.unit)
}

fn bars(path: &Path, title: &str, measure: Measure, rows: &[&Series]) -> Result<(), Box<dyn Error>> {
    let height = 70 + ROW * u32::try_from(rows.len())?;
    let root = SVGBackend::new(path, (WIDTH, height)).into_drawing_area();
    root.fill(&WHITE)?;
    root.draw(&Text::new(heading(title, measure), (10, 8), ("sans-serif", 16)))?;
    let most = rows.iter().map(|row| row.max).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    let (left, room) = (330.0, f64::from(WIDTH) - 330.0 - 90.0);
    let x = |value: f64| (left + value / most * room) as i32; // on the page
    for (row, n) in rows.iter().zip(0..) {
        let (top, bottom) = (40 + n * 26, 40 + n * 26 + 18);
        let colour = if row.who.side == Side::Ours { OURS } else { PEERS[0] };
        root.draw(&Text::new(row.who.name, (10, top + 3), ("sans-serif", 14)))?;
        root.draw(&Rectangle::new([(x(0.0), top), (x(row.median), bottom)], colour.filled()))?;
        let middle = i32::midpoint(top, bottom);
        root.draw(&PathElement::new(vec![(x(row.min), middle), (x(row.max), middle)], BLACK.stroke_width(1)))?;
        root.draw(&Text::new(short(row.median), (x(row.max) + 6, top + 3), ("sans-serif", 14)))?;
    }
    root.present()?;
    Ok(())
}

fn curves(path: &Path, title: &str, measure: Measure, rows: &[&Series]) -> Result<(), Box<dyn Error>> {
    let root = SVGBackend::new(path, (WIDTH, 480)).into_drawing_area();
    root.fill(&WHITE)?;
    let points = |row: &&Series| row.point.map(|point| (point.at, row.median)).filter(|&(x, y)| x > 0.0 && y > 0.0);
    let all: Vec<(f64, f64)> = rows.iter().filter_map(points).collect();
    let range = |of: fn(&(f64, f64)) -> f64| {
        let low = all.iter().map(of).fold(f64::INFINITY, f64::min);
        let high = all.iter().map(of).fold(0.0, f64::max);
        (low / 1.3..high.max(low) * 1.3).log_scale()
    };
    if all.is_empty() {
        return Ok(());
    }
    let mut chart = ChartBuilder::on(&root)
        .caption(heading(title, measure), ("sans-serif", 16))
        .margin(10)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d(range(|p| p.0), range(|p| p.1))?;
    let label = |value: &f64| short(*value);
    chart
        .configure_mesh()
        .x_desc(title)
        .y_desc(measure.unit)
        .x_label_formatter(&label)
        .y_label_formatter(&label)
        .draw()?;
    let mut names: Vec<_> = Vec::new();
    for row in rows {
        if !names.contains(&row.who) {
            names.push(row.who);
        }
    }
    let mut peers = PEERS.iter().cycle();
    for who in names {
        let colour = if who.side == Side::Ours { OURS } else { *peers.next().unwrap_or(&BLACK) };
        let line: Vec<_> = rows.iter().filter(|row| row.who == who).filter_map(points).collect();
        chart
            .draw_series(LineSeries::new(line.clone(), colour.stroke_width(2)))?
            .label(who.name)
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], colour.stroke_width(2)));
        chart.draw_series(line.into_iter().map(|point| Circle::new(point, 3, colour.filled())))?;
    }
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK).draw()?;
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Better, Point, Who};

    #[test]
    fn a_plot_for_each_case_and_each_axis() {
        let measure = Measure { name: "rate", unit: "M/s", better: Better::Higher };
        let who = |name, side| Who { name, side, class: None };
        let mut report = Report::new();
        for round in 1..4 {
            for (name, side) in [("hookbus", Side::Ours), ("somebody", Side::Peer)] {
                report.record(measure, "4 subscribers", who(name, side), f64::from(round));
                for at in [1.0, 8.0, 64.0] {
                    report.record_at(
                        measure,
                        Point { axis: "subscribers", at },
                        who(name, side),
                        at / f64::from(round),
                    );
                }
            }
        }
        let dir = tempfile::tempdir().expect("a directory");
        let files = write(&report, dir.path(), "inproc").expect("drawn");
        assert_eq!(files, ["inproc-4-subscribers-rate.svg", "inproc-subscribers-rate.svg"]);
        for file in files {
            let text = fs::read_to_string(dir.path().join(file)).expect("written");
            assert!(text.starts_with("<svg") && text.contains("hookbus") && text.contains("M/s"), "{text}");
        }
    }
}
