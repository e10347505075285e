//! What is shown of the figures.

use std::{
    fmt::Write as _,
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::Context;
use serde::Serialize;
use serde_json::{Value, json};

use crate::{latency::Latency, statistics::Spread};

/// What one run measured.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) figures: Vec<Figure>,
    pub(crate) latencies: Vec<Timed>,
    /// Messages that were sent and did not arrive. A run with losses is no success.
    pub(crate) lost: u64,
    /// Why the figures of this run are not to be trusted. A run with faults is no success.
    pub(crate) faults: Vec<String>,
    /// What the reader has to know about this run.
    pub(crate) notes: Vec<String>,
    /// How it was measured.
    pub(crate) method: Vec<String>,
}

/// One figure of one run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figure {
    /// What programs look it up by: always the same, in whatever words the label says it.
    pub(crate) key: String,
    pub(crate) label: String,
    pub(crate) unit: &'static str,
    pub(crate) value: f64,
}

/// The latencies of one thing in one run.
#[derive(Debug)]
pub(crate) struct Timed {
    pub(crate) key: &'static str,
    pub(crate) label: String,
    pub(crate) latency: Latency,
}

/// All runs of one scenario.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) scenario: &'static str,
    pub(crate) arguments: Value,
    pub(crate) title: String,
    /// Those that were finished.
    pub(crate) runs: Vec<Outcome>,
    /// Why there are no more of them.
    pub(crate) failed: Option<String>,
}

/// The percentiles that are shown.
const PERCENTILES: [(&str, &str, f64); 4] =
    [("p50", "p50", 50.0), ("p90", "p90", 90.0), ("p99", "p99", 99.0), ("p99_9", "p99.9", 99.9)];

impl Outcome {
    pub(crate) fn figure(&mut self, key: impl Into<String>, label: impl Into<String>, unit: &'static str, value: f64) {
        self.figures.push(Figure { key: key.into(), label: label.into(), unit, value });
    }

    /// A latency, unless nothing was measured.
    pub(crate) fn latency(&mut self, key: &'static str, label: impl Into<String>, latency: Latency) {
        if !latency.is_empty() {
            self.latencies.push(Timed { key, label: label.into(), latency });
        }
    }

    /// Looks a figure up.
    pub(crate) fn get(&self, key: &str) -> Option<f64> {
        self.figures.iter().find(|figure| figure.key == key).map(|figure| figure.value)
    }
}

impl Report {
    /// Messages that were lost in all runs.
    pub(crate) fn lost(&self) -> u64 {
        self.runs.iter().map(|run| run.lost).sum()
    }

    /// What each run has to answer for.
    pub(crate) fn faults(&self) -> impl Iterator<Item = &String> {
        self.runs.iter().flat_map(|run| &run.faults)
    }

    /// Each figure once, in the order in which they came up; for their names and units.
    pub(crate) fn figures(&self) -> Vec<&Figure> {
        let mut figures: Vec<&Figure> = Vec::new();
        for figure in self.runs.iter().flat_map(|run| &run.figures) {
            if !figures.iter().any(|known| known.key == figure.key) {
                figures.push(figure);
            }
        }
        figures
    }

    /// Key and label of each latency.
    pub(crate) fn latency_names(&self) -> Vec<(&'static str, &str)> {
        let mut names: Vec<(&'static str, &str)> = Vec::new();
        for timed in self.runs.iter().flat_map(|run| &run.latencies) {
            if !names.iter().any(|(key, _)| *key == timed.key) {
                names.push((timed.key, &timed.label));
            }
        }
        names
    }

    /// All runs of one latency.
    pub(crate) fn latencies(&self, key: &str) -> impl Iterator<Item = &Latency> {
        let all = self.runs.iter().flat_map(|run| &run.latencies);
        all.filter(move |timed| timed.key == key).map(|timed| &timed.latency)
    }

    /// All runs of one figure.
    pub(crate) fn spread(&self, key: &str) -> Option<Spread> {
        Spread::of(&self.runs.iter().filter_map(|run| run.get(key)).collect::<Vec<_>>())
    }

    fn latency_spread(&self, key: &str, of: impl Fn(&Latency) -> f64) -> Option<Spread> {
        Spread::of(&self.latencies(key).map(of).collect::<Vec<_>>())
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
        let figures = self.figures();
        let width = figures.iter().map(|figure| figure.label.chars().count()).max().unwrap_or(0);
        for figure in figures {
            if let Some(spread) = self.spread(&figure.key) {
                let _ = writeln!(text, "  {:width$}  {}", figure.label, shown(&spread, figure.unit, self.runs.len()));
            }
        }
        for (key, label) in self.latency_names() {
            let _ = writeln!(text, "\n  {label}, ms");
            for (_, name, percent) in PERCENTILES {
                if let Some(spread) = self.latency_spread(key, |latency| latency.percentile(percent)) {
                    let _ = writeln!(text, "    {name:6} {}", shown(&spread, "", self.runs.len()));
                }
            }
            if let Some(spread) = self.latency_spread(key, Latency::max) {
                let _ = writeln!(text, "    {:6} {}", "max", shown(&spread, "", self.runs.len()));
            }
        }
        let mut notes: Vec<&String> = self.runs.iter().flat_map(|run| &run.notes).collect();
        notes.dedup();
        for note in notes {
            let _ = writeln!(text, "\n  note: {note}");
        }
        for fault in self.faults() {
            let _ = writeln!(text, "\n  FAULT: {fault}");
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
            .figures()
            .into_iter()
            .filter_map(|Figure { key, label, unit, .. }| {
                let Spread { median, min, max } = self.spread(key)?;
                Some((key.clone(), json!({"label": label, "unit": unit, "median": median, "min": min, "max": max})))
            })
            .collect();
        json!({
            "tool": TOOL,
            "scenario": self.scenario,
            "arguments": self.arguments,
            "title": self.title,
            "failed": self.failed,
            "lost": self.lost(),
            "summary": summary,
            "runs": runs,
        })
    }
}

/// One run, for programs.
pub(crate) fn run_json(run: &Outcome) -> Value {
    let timed = |Timed { label, latency, .. }: &Timed| {
        let percentiles = PERCENTILES.iter().map(|&(key, _, percent)| (key, latency.percentile(percent)));
        let percentiles: serde_json::Map<String, Value> =
            percentiles.chain([("max", latency.max())]).map(|(key, ms)| (key.to_owned(), json!(ms))).collect();
        json!({"label": label, "count": latency.count(), "percentiles_ms": percentiles, "histogram_ns": latency.recorded()})
    };
    let latencies: serde_json::Map<String, Value> =
        run.latencies.iter().map(|one| (one.key.to_owned(), timed(one))).collect();
    json!({
        "method": run.method,
        "figures": run.figures,
        "latencies": latencies,
        "lost": run.lost,
        "faults": run.faults,
        "notes": run.notes,
    })
}

/// What wrote a report.
pub(crate) const TOOL: &str = concat!("wsc bench ", env!("CARGO_PKG_VERSION"));

/// Where a report goes: opened before anything is measured, so that a wrong path does not cost the figures.
#[derive(Debug)]
pub(crate) enum Sink {
    Stdout,
    File { file: File, path: PathBuf },
}

impl Sink {
    /// # Errors
    ///
    /// The file cannot be written.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        if path == Path::new("-") {
            return Ok(Self::Stdout);
        }
        // What is there stays until there is something better.
        let file = File::options().write(true).create(true).truncate(false).open(path);
        let file = file.with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self::File { file, path: path.to_owned() })
    }

    /// Puts this in place of what was there.
    pub(crate) fn write(&mut self, text: &str) -> anyhow::Result<()> {
        match self {
            Self::Stdout => say(text),
            Self::File { file, path } => {
                // What is no file, such as a pipe, has no length to set.
                let _ = file.set_len(0);
                file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
            }
        }
    }

    /// One line, without the histograms' digits on a line each.
    pub(crate) fn write_json(&mut self, value: &Value) -> anyhow::Result<()> {
        self.write(&format!("{value}\n"))
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
        outcome.figure("messages_per_second", "messages", "per second", rate);
        let mut latency = Latency::new();
        latency.record(Duration::from_millis(millis));
        outcome.latency("way", "there and back", latency);
        outcome.latency("nothing", "nothing", Latency::new());
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
        let report = Report { runs: vec![run(1_000.0, 1), run(3_000.0, 9), run(2_000.0, 5)], ..Report::default() };
        let table = report.table();
        assert!(table.contains("3 runs"), "{table}");
        assert!(table.contains("2,000 per second"), "{table}");
        assert!(table.contains("[1,000 .. 3,000]"), "{table}");
        assert!(!table.contains("nothing") && !table.contains("LOST"), "{table}");
        let json = report.json();
        assert_eq!(json["summary"]["messages_per_second"]["median"], 2_000.0);
        assert_eq!(json["summary"]["messages_per_second"]["label"], "messages");
        assert_eq!(json["runs"][1]["latencies"]["way"]["count"], 1);
        assert!(json["runs"][1]["latencies"]["way"]["percentiles_ms"]["p99"].as_f64().unwrap() >= 9.0);
    }

    #[test]
    fn losses_cannot_be_overlooked() {
        let mut lossy = run(1.0, 1);
        lossy.lost = 1_234;
        let report = Report { runs: vec![run(1.0, 1), lossy], ..Report::default() };
        assert_eq!(report.lost(), 1_234);
        assert!(report.table().contains("LOST: 1,234 messages"));
    }

    #[test]
    fn a_shorter_report_leaves_nothing_of_a_longer_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("report.json");
        std::fs::write(&path, "something longer").unwrap();
        let mut sink = Sink::open(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "something longer", "gone before there was a report");
        sink.write_json(&json!({"a": [1, 2]})).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"a\":[1,2]}\n");
        assert!(Sink::open(&directory.path().join("no/such/report.json")).is_err());
    }
}
