//! Charts, as SVG.

use anyhow::anyhow;
use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use crate::{
    latency::Latency,
    report::{Figure, Report},
    statistics::Spread,
};

/// A group of bars with a scale of its own.
#[derive(Debug)]
pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) unit: String,
    pub(crate) bars: Vec<Bar>,
}

#[derive(Debug)]
pub(crate) struct Bar {
    pub(crate) label: String,
    pub(crate) height: Spread,
    /// Stands above it.
    pub(crate) note: String,
}

/// Draws latencies as percentiles where there are some, else figures as bars.
pub(crate) fn report(report: &Report) -> anyhow::Result<String> {
    let names = report.latency_names();
    if names.is_empty() {
        return bars(&report.title, &[figures(report)]);
    }
    let lines: Vec<(&str, Latency)> = names
        .into_iter()
        .map(|(key, label)| {
            let mut all = Latency::new();
            for latency in report.latencies(key) {
                all.add(&latency.recorded());
            }
            (label, all)
        })
        .collect();
    svg(WIDTH, HEIGHT, |area| percentiles(area, &report.title, &lines))
}

/// Draws groups of bars beside each other, each with the ends of its runs.
pub(crate) fn bars(title: &str, panels: &[Panel]) -> anyhow::Result<String> {
    svg(WIDTH.max(PANEL * panels.len() as u32), HEIGHT, |area| {
        let area = area.titled(title, (FONT, 18)).map_err(drawn)?;
        for (panel, area) in panels.iter().zip(area.split_evenly((1, panels.len().max(1)))) {
            draw_panel(&area, panel)?;
        }
        Ok(())
    })
}

/// The figures of a report that are costs, in one unit; where there are none, those in the unit of the first.
fn figures(report: &Report) -> Panel {
    let figures = report.figures();
    let cost = figures.iter().find(|figure| matches!(figure.unit, "bytes" | "µs"));
    let unit = cost.or_else(|| figures.first()).map(|figure| figure.unit).unwrap_or_default();
    let bar = |figure: &&Figure| {
        Some(Bar { label: figure.label.clone(), height: report.spread(&figure.key)?, note: String::new() })
    };
    let bars = figures.iter().filter(|figure| figure.unit == unit).filter_map(bar).collect();
    Panel { title: String::new(), unit: unit.to_owned(), bars }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn svg(width: u32, height: u32, draw: impl FnOnce(&Area<'_>) -> anyhow::Result<()>) -> anyhow::Result<String> {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, (width, height)).into_drawing_area();
        area.fill(&WHITE).map_err(drawn)?;
        draw(&area)?;
        area.present().map_err(drawn)?;
    }
    Ok(text)
}

/// Latency over the share of messages that were at least as fast, both logarithmic, so that the tail can be seen.
fn percentiles(area: &Area<'_>, title: &str, lines: &[(&str, Latency)]) -> anyhow::Result<()> {
    let all = || lines.iter().map(|(_, latency)| latency);
    let least = all().map(|latency| latency.percentile(0.0)).fold(f64::INFINITY, f64::min).max(0.001);
    let most = all().map(Latency::max).fold(least * 10.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption(title, (FONT, 18))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(72)
        .build_cartesian_2d(0.0..NINES, (least..most * 1.2).log_scale())
        .map_err(drawn)?;
    chart
        .configure_mesh()
        .x_labels(NINES as usize + 1)
        .x_label_formatter(&|nines| format!("{}", round(100.0 * (1.0 - 10_f64.powf(-nines)))))
        .y_label_formatter(&|ms| format!("{}", round(*ms)))
        .x_desc("percentile")
        .y_desc("ms")
        .light_line_style(WHITE)
        .draw()
        .map_err(drawn)?;
    for (index, (name, latency)) in lines.iter().enumerate() {
        let color = Palette99::pick(index).to_rgba();
        let points = (0..=STEPS).map(|step| {
            let nines = NINES * f64::from(step) / f64::from(STEPS);
            (nines, latency.percentile(100.0 * (1.0 - 10_f64.powf(-nines))).max(least))
        });
        chart
            .draw_series(LineSeries::new(points, color.stroke_width(2)))
            .map_err(drawn)?
            .label(*name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .label_font((FONT, 13))
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()
        .map_err(drawn)?;
    Ok(())
}

fn draw_panel(area: &Area<'_>, panel: &Panel) -> anyhow::Result<()> {
    let top = panel.bars.iter().map(|bar| bar.height.max).fold(f64::MIN_POSITIVE, f64::max) * 1.15;
    let count = panel.bars.len();
    let mut chart = ChartBuilder::on(area)
        .caption(&panel.title, (FONT, 15))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..count as f64, 0.0..top)
        .map_err(drawn)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(0)
        .y_desc(&panel.unit)
        .light_line_style(WHITE)
        .draw()
        .map_err(drawn)?;
    for (index, bar) in panel.bars.iter().enumerate() {
        let (left, middle, right) = (index as f64 + 0.2, index as f64 + 0.5, index as f64 + 0.8);
        let color = Palette99::pick(index).mix(0.8);
        let text = (FONT, 12).into_text_style(area).pos(Pos::new(HPos::Center, VPos::Bottom));
        let label = format!("{} {}", round(bar.height.median), bar.note);
        chart
            .draw_series([Rectangle::new([(left, 0.0), (right, bar.height.median)], color.filled())])
            .map_err(drawn)?;
        chart
            .draw_series([PathElement::new([(middle, bar.height.min), (middle, bar.height.max)], BLACK)])
            .map_err(drawn)?;
        chart
            .draw_series([Text::new(label.trim_end().to_owned(), (middle, bar.height.max), text.clone())])
            .map_err(drawn)?;
        // Below the axis, where no series reaches.
        let (x, y) = chart.backend_coord(&(middle, 0.0));
        let (origin_x, origin_y) = area.get_base_pixel();
        area.draw(&Text::new(
            bar.label.clone(),
            (x - origin_x, y - origin_y + 8 + 14 * (index as i32 % 2)),
            (FONT, 12).into_text_style(area).pos(Pos::new(HPos::Center, VPos::Top)),
        ))
        .map_err(drawn)?;
    }
    Ok(())
}

fn drawn(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("cannot draw: {error}")
}

/// Three digits that mean something.
fn round(figure: f64) -> f64 {
    if figure == 0.0 {
        return 0.0;
    }
    let scale = 10_f64.powf(2.0 - figure.abs().log10().floor()).min(1e9);
    // 99.999 stays what it is: the nines are what it says.
    if figure > 99.0 && figure < 100.0 { (figure * 1e4).round() / 1e4 } else { (figure * scale).round() / scale }
}

const FONT: &str = "sans-serif";
const WIDTH: u32 = 900;
const PANEL: u32 = 420;
const HEIGHT: u32 = 480;

/// How far the axis of percentiles goes: 99.999.
const NINES: f64 = 5.0;
const STEPS: u32 = 400;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::report::Outcome;

    fn drawing(runs: Vec<Outcome>) -> String {
        report(&Report { title: "a title".into(), runs, ..Report::default() }).unwrap()
    }

    #[test]
    fn latencies_become_lines_with_the_names_of_the_percentiles() {
        let mut latency = Latency::new();
        for micros in 1..10_000 {
            latency.record(Duration::from_micros(micros));
        }
        let mut outcome = Outcome::default();
        outcome.latency("way", "there and back", latency);
        let svg = drawing(vec![outcome]);
        for text in ["a title", "there and back", "percentile", "99.9", "<polyline"] {
            assert!(svg.contains(text), "{text} is missing");
        }
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn without_latencies_there_are_bars() {
        let mut outcome = Outcome::default();
        outcome.figure("handshakes_per_second", "handshakes", "per second", 5.0);
        outcome.figure("cpu", "server CPU per handshake", "µs", 17.25);
        let svg = drawing(vec![outcome]);
        assert!(svg.contains("server CPU per handshake") && svg.contains("17.3"));
        assert!(!svg.contains("per second"));
    }

    #[test]
    fn without_costs_there_are_bars_of_the_rate() {
        let mut outcome = Outcome::default();
        outcome.figure("handshakes_per_second", "handshakes", "per second", 5_120.0);
        outcome.figure("handshakes", "handshakes in all", "", 70.0);
        let svg = drawing(vec![outcome]);
        assert!(svg.contains("per second") && svg.contains("5120") && !svg.contains("in all"), "{svg}");
    }

    #[test]
    fn figures_are_rounded_for_people() {
        for (figure, rounded) in [(0.0, 0.0), (3.71649, 3.72), (12_345.0, 12_300.0), (99.9, 99.9), (99.999, 99.999)] {
            assert!((round(figure) - rounded).abs() < 1e-9, "{figure}");
        }
    }
}
