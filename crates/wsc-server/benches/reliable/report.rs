//! Medians, ratios, and what is promised.

use std::collections::BTreeMap;

use anyhow::bail;
use serde_json::{Value, json};

use crate::{Scenario, Sizes, process::Figures};

/// All figures of all rounds.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// By scenario, as they were run, then by name: one value for each round.
    figures: Vec<(Scenario, BTreeMap<String, Vec<f64>>)>,
    round: Vec<(Scenario, Figures)>,
}

/// What a scenario's rate is divided by, besides the raw inserts.
pub(crate) fn floor(scenario: Scenario) -> Option<Scenario> {
    match scenario {
        Scenario::Durable => Some(Scenario::Plain),
        Scenario::DurableHttp => Some(Scenario::PlainHttp),
        Scenario::DurableHttpSingle => Some(Scenario::Raw),
        _ => None,
    }
}

impl Report {
    pub(crate) fn add(&mut self, scenario: Scenario, figures: Figures) {
        self.round.push((scenario, figures));
    }

    /// Takes ratios within the round.
    pub(crate) fn end_round(&mut self) {
        let round = std::mem::take(&mut self.round);
        let rate_of = |wanted| {
            let (_, figures) = round.iter().find(|(scenario, _)| *scenario == wanted)?;
            figures.0.get("per_second").copied()
        };
        for (scenario, figures) in &round {
            let mut figures = figures.clone();
            if let (Some(other), Some(rate)) = (floor(*scenario), rate_of(*scenario)) {
                for (name, other) in [("times_raw", Scenario::Raw), ("times_plain", other)] {
                    if let Some(floor) = rate_of(other).filter(|_| name == "times_raw" || other != Scenario::Raw) {
                        figures = figures.with(name, rate / floor);
                    }
                }
            }
            let at = self.figures.iter().position(|(known, _)| known == scenario).unwrap_or_else(|| {
                self.figures.push((*scenario, BTreeMap::new()));
                self.figures.len() - 1
            });
            for (name, value) in figures.0 {
                self.figures[at].1.entry(name).or_default().push(value);
            }
        }
    }

    pub(crate) fn print(&self) {
        for (scenario, figures) in &self.figures {
            println!("\n{}", scenario.name());
            for (name, values) in figures {
                let [least, median, most] = spread(values);
                println!("  {name:24} {:>12} [{}..{}]", readable(median), readable(least), readable(most));
            }
        }
    }

    pub(crate) fn json(&self, sizes: &Sizes) -> Value {
        let scenario = |(scenario, figures): &(Scenario, BTreeMap<String, Vec<f64>>)| {
            let figure = |(name, values): (&String, &Vec<f64>)| {
                let [least, median, most] = spread(values);
                (name.clone(), json!({ "median": median, "least": least, "most": most, "rounds": values }))
            };
            (scenario.name(), Value::Object(figures.iter().map(figure).collect()))
        };
        json!({
            "users": sizes.users, "messages": sizes.messages, "in_flight": sizes.in_flight, "content": sizes.content,
            "pending": sizes.pending, "stored": sizes.stored,
            "scenarios": Value::Object(self.figures.iter().map(scenario).collect()),
        })
    }

    /// Compares with what is promised.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let mut is_kept = true;
        for (promise, scenario, name, limit, is_least) in PROMISES {
            let Some((_, figures)) = self.figures.iter().find(|(known, _)| *known == scenario) else { continue };
            let Some(values) = figures.get(name) else { continue };
            let [_, median, _] = spread(values);
            let holds = if is_least { median >= limit } else { median <= limit };
            is_kept &= holds;
            let (mark, bound) = (if holds { "ok   " } else { "WRONG" }, if is_least { "at least" } else { "at most" });
            eprintln!("  {mark} {promise}: {median:.3}, promised {bound} {limit}");
        }
        if is_kept { Ok(()) } else { bail!("a promise is not kept") }
    }
}

/// What, in which scenario, which figure, the limit, and whether it is the least.
const PROMISES: [(&str, Scenario, &str, f64, bool); 4] = [
    ("acknowledged durable messages, times raw inserts", Scenario::Durable, "times_raw", 0.5, true),
    ("bytes of a pending message beside its payload", Scenario::PendingMemory, "bytes_beside_payload", 400.0, false),
    ("instructions for a plain delivery, times the base", Scenario::Instructions, "fanout_times_base", 1.05, false),
    ("the same with 16 in flight", Scenario::Instructions, "fanout_16_times_base", 1.05, false),
];

/// Least, median, most.
fn spread(values: &[f64]) -> [f64; 3] {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.as_slice() {
        [] => [f64::NAN; 3],
        sorted => [sorted[0], sorted[sorted.len() / 2], sorted[sorted.len() - 1]],
    }
}

fn readable(value: f64) -> String {
    match value.abs() {
        1000.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}
