//! What is shown of the figures.

use std::{
    fmt::Write as _,
    fs,
    io::{self, Write},
    path::Path,
};

use anyhow::Context;
use serde::Serialize;
use serde_json::{Value, json};

use crate::{latency::Latency, statistics::Spread};

/// What one run measured.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) figures: Vec<Figure>,
    pub(crate) latencies: Vec<(String, Latency)>,
    /// Messages that were sent and did not arrive. A run with losses is no success.
    pub(crate) lost: u64,
    /// What the reader has to know about this run.
    pub(crate) notes: Vec<String>,
    /// How it was measured.
    pub(crate) method: Vec<String>,
}

/// One figure of one run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    pub(crate) value: f64,
}

/// All runs of one scenario.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) title: String,
    pub(crate) runs: Vec<Outcome>,
}

/// The percentiles that are shown.
pub(crate) const PERCENTILES: [(&str, f64); 4] = [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p99.9", 99.9)];

impl Outcome {
    pub(crate) fn figure(&mut self, name: impl Into<String>, unit: &'static str, value: f64) {
        self.figures.push(Figure { name: name.into(), unit, value });
    }

    /// A latency, unless nothing was measured.
    pub(crate) fn latency(&mut self, name: impl Into<String>, latency: Latency) {
        if !latency.is_empty() {
            self.latencies.push((name.into(), latency));
        }
    }

    /// Looks a figure up.
    pub(crate) fn get(&self, name: &str) -> Option<f64> {
        self.figures.iter().find(|figure| figure.name == name).map(|figure| figure.value)
    }
}

impl Report {
    /// Messages that were lost in all runs.
    pub(crate) fn lost(&self) -> u64 {
        self.runs.iter().map(|run| run.lost).sum()
    }

    /// Names and units of all figures, in the order in which they came up.
    pub(crate) fn names(&self) -> Vec<(&str, &'static str)> {
        let mut names: Vec<(&str, &'static str)> = Vec::new();
        for figure in self.runs.iter().flat_map(|run| &run.figures) {
            if !names.iter().any(|(name, _)| *name == figure.name) {
                names.push((&figure.name, figure.unit));
            }
        }
        names
    }

    pub(crate) fn latency_names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for (name, _) in self.runs.iter().flat_map(|run| &run.latencies) {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
        names
    }

    /// All runs of one figure.
    pub(crate) fn spread(&self, name: &str) -> Option<Spread> {
        Spread::of(&self.runs.iter().filter_map(|run| run.get(name)).collect::<Vec<_>>())
    }

    fn latency_spread(&self, name: &str, of: impl Fn(&Latency) -> f64) -> Option<Spread> {
        let runs = self.runs.iter().flat_map(|run| &run.latencies);
        Spread::of(&runs.filter(|(n, _)| n == name).map(|(_, latency)| of(latency)).collect::<Vec<_>>())
    }

    /// The text for a reader.
    pub(crate) fn table(&self) -> String {
        let mut text = format!("\n{}\n", self.title);
        for line in self.runs.last().map(|run| run.method.as_slice()).unwrap_or_default() {
            let _ = writeln!(text, "  {line}");
        }
        if self.runs.len() > 1 {
            let _ = writeln!(text, "  {} runs: median [least .. most]", self.runs.len());
        }
        text.push('\n');
        let names = self.names();
        let width = names.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        for (name, unit) in names {
            if let Some(spread) = self.spread(name) {
                let _ = writeln!(text, "  {name:width$}  {}", shown(&spread, unit, self.runs.len()));
            }
        }
        for name in self.latency_names() {
            let _ = writeln!(text, "\n  {name}, ms");
            for (label, percent) in PERCENTILES {
                if let Some(spread) = self.latency_spread(name, |latency| latency.percentile(percent)) {
                    let _ = writeln!(text, "    {label:6} {}", shown(&spread, "", self.runs.len()));
                }
            }
            if let Some(spread) = self.latency_spread(name, Latency::max) {
                let _ = writeln!(text, "    {:6} {}", "max", shown(&spread, "", self.runs.len()));
            }
        }
        let mut notes: Vec<&String> = self.runs.iter().flat_map(|run| &run.notes).collect();
        notes.dedup();
        for note in notes {
            let _ = writeln!(text, "\n  note: {note}");
        }
        if self.lost() > 0 {
            let _ = writeln!(text, "\n  LOST: {} messages did not arrive", grouped(self.lost() as f64, 0));
        }
        text
    }

    /// Everything, for programs.
    pub(crate) fn json(&self) -> Value {
        let runs: Vec<Value> = self.runs.iter().map(run_json).collect();
        let summary: serde_json::Map<String, Value> = self
            .names()
            .into_iter()
            .filter_map(|(name, unit)| {
                let spread = self.spread(name)?;
                let figures = json!({"unit": unit, "median": spread.median, "min": spread.min, "max": spread.max});
                Some((name.to_owned(), figures))
            })
            .collect();
        json!({
            "tool": TOOL,
            "title": self.title,
            "lost": self.lost(),
            "summary": summary,
            "runs": runs,
        })
    }
}

/// One run, for programs.
pub(crate) fn run_json(run: &Outcome) -> Value {
    let latency = |latency: &Latency| {
        let percentiles = PERCENTILES.iter().map(|&(label, percent)| (label, latency.percentile(percent)));
        let percentiles: serde_json::Map<String, Value> =
            percentiles.chain([("max", latency.max())]).map(|(label, ms)| (label.to_owned(), json!(ms))).collect();
        json!({"count": latency.count(), "percentiles_ms": percentiles, "histogram_ns": latency.recorded()})
    };
    let latencies: serde_json::Map<String, Value> =
        run.latencies.iter().map(|(name, figures)| (name.clone(), latency(figures))).collect();
    json!({
        "method": run.method,
        "figures": run.figures,
        "latencies": latencies,
        "lost": run.lost,
        "notes": run.notes,
    })
}

/// What wrote a report.
pub(crate) const TOOL: &str = concat!("wsc bench ", env!("CARGO_PKG_VERSION"));

/// Writes to a file, or to the standard output where the file is `-`.
pub(crate) fn write_json(path: &Path, value: &Value) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    if path == Path::new("-") {
        say(&text)
    } else {
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Writes to the standard output; a reader that went away early is no failure.
pub(crate) fn say(text: &str) -> anyhow::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(()),
    }
}

fn shown(spread: &Spread, unit: &str, runs: usize) -> String {
    let number = |figure| format!("{:>12}", readable(figure));
    let median = format!("{} {unit}", number(spread.median));
    if runs < 2 {
        return median.trim_end().to_owned();
    }
    format!("{median:<26} [{} .. {}]", readable(spread.min), readable(spread.max))
}

/// A figure with as many digits as mean something.
pub(crate) fn readable(figure: f64) -> String {
    let digits = match figure.abs() {
        small if small < 10.0 => 3,
        small if small < 100.0 => 2,
        small if small < 1_000.0 => 1,
        _ => 0,
    };
    // A whole number stays one, where it is a count.
    if figure.fract() == 0.0 { grouped(figure, 0) } else { grouped(figure, digits) }
}

/// A number with a comma after each three digits.
fn grouped(figure: f64, digits: usize) -> String {
    let text = format!("{:.digits$}", figure.abs());
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut out = String::with_capacity(text.len() + 4);
    if figure < 0.0 {
        out.push('-');
    }
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn run(rate: f64, millis: u64) -> Outcome {
        let mut outcome = Outcome::default();
        outcome.figure("messages", "per second", rate);
        let mut latency = Latency::new();
        latency.record(Duration::from_millis(millis));
        outcome.latency("way", latency);
        outcome.latency("nothing", Latency::new());
        outcome
    }

    #[test]
    fn numbers_are_readable() {
        for (figure, text) in [
            (0.0, "0"),
            (3.71649, "3.716"),
            (37.1649, "37.16"),
            (999.96, "1,000.0"),
            (12_345.6, "12,346"),
            (-1_234_567.0, "-1,234,567"),
            (100.0, "100"),
        ] {
            assert_eq!(readable(figure), text);
        }
    }

    #[test]
    fn several_runs_show_median_and_ends() {
        let report = Report { title: "t".into(), runs: vec![run(1_000.0, 1), run(3_000.0, 9), run(2_000.0, 5)] };
        let table = report.table();
        assert!(table.contains("3 runs"), "{table}");
        assert!(table.contains("2,000 per second"), "{table}");
        assert!(table.contains("[1,000 .. 3,000]"), "{table}");
        assert!(!table.contains("nothing") && !table.contains("LOST"), "{table}");
        let json = report.json();
        assert_eq!(json["summary"]["messages"]["median"], 2_000.0);
        assert_eq!(json["runs"][1]["latencies"]["way"]["count"], 1);
        assert!(json["runs"][1]["latencies"]["way"]["percentiles_ms"]["p99"].as_f64().unwrap() >= 9.0);
    }

    #[test]
    fn losses_cannot_be_overlooked() {
        let mut lossy = run(1.0, 1);
        lossy.lost = 1_234;
        let report = Report { title: "t".into(), runs: vec![run(1.0, 1), lossy] };
        assert_eq!(report.lost(), 1_234);
        assert!(report.table().contains("LOST: 1,234 messages"));
    }
}
