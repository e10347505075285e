//! The Prometheus text format, as far as a test needs it.

use std::collections::{BTreeMap, BTreeSet};

/// One line of a scrape.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The name, with `_bucket`, `_sum` or `_count` where it has one.
    pub name: String,
    /// The labels.
    pub labels: BTreeMap<String, String>,
    /// The value.
    pub value: f64,
}

/// All samples of one scrape.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// The samples, in the order they came.
    pub samples: Vec<Sample>,
    /// Names that a `# TYPE` line declared.
    pub declared: BTreeSet<String>,
}

impl Metrics {
    /// Reads a scrape.
    ///
    /// # Panics
    ///
    /// At a line that is not in the format.
    pub fn parse(text: &str) -> Self {
        let mut metrics = Self::default();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let name = rest.split(' ').next().unwrap_or_default();
                metrics.declared.insert(name.to_owned());
            } else if !line.starts_with('#') {
                let sample = sample(line);
                metrics.samples.push(sample.unwrap_or_else(|| panic!("no sample line: {line}")));
            }
        }
        metrics
    }

    /// Whether the scrape knows this metric: declared, or with a sample.
    pub fn has(&self, name: &str) -> bool {
        self.declared.contains(name) || self.samples.iter().any(|sample| sample.name == name)
    }

    /// The sum of all samples of that name that carry all these labels; zero
    /// when there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.samples
            .iter()
            .filter(|sample| sample.name == name)
            .filter(|sample| {
                labels.iter().all(|(key, value)| sample.labels.get(*key).is_some_and(|have| have == value))
            })
            .map(|sample| sample.value)
            .sum()
    }

    /// Both sides of the sum that holds at every scrape: the pairs that came
    /// in, and all places where they can be.
    pub fn ledger(&self) -> Ledger {
        let one = |name: &str| self.sum(name, &[]);
        let outcome = |name: &str| self.sum("wsc_messages_total", &[("outcome", name)]);
        Ledger {
            accepted: one("wsc_messages_accepted_total"),
            recovered: one("wsc_messages_recovered_total"),
            acked: outcome("acked"),
            sent: outcome("sent"),
            failed: outcome("failed"),
            expired: outcome("expired"),
            rejected: outcome("rejected"),
            released: one("wsc_messages_released_total"),
            stored: one("wsc_messages_stored"),
            in_flight: one("wsc_messages_in_flight"),
        }
    }
}

/// What became of all pairs of a message and a recipient.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[expect(missing_docs, reason = "each is the metric of its name")]
pub struct Ledger {
    pub accepted: f64,
    pub recovered: f64,
    pub acked: f64,
    pub sent: f64,
    pub failed: f64,
    pub expired: f64,
    pub rejected: f64,
    pub released: f64,
    pub stored: f64,
    pub in_flight: f64,
}

impl Ledger {
    /// What came in.
    pub fn came(&self) -> f64 {
        self.accepted + self.recovered
    }

    /// What reached its end here, or was handed to another node.
    pub fn ended(&self) -> f64 {
        self.acked + self.sent + self.failed + self.expired + self.rejected + self.released
    }

    /// What is still here.
    pub fn here(&self) -> f64 {
        self.stored + self.in_flight
    }

    /// Asserts that the sum adds up, to the last message.
    ///
    /// # Panics
    ///
    /// When it does not.
    #[track_caller]
    pub fn check(&self) {
        let balance = self.came() - self.ended() - self.here();
        assert!(balance == 0.0 && self.stored >= 0.0 && self.in_flight >= 0.0, "off by {balance}: {self:?}");
    }
}

fn sample(line: &str) -> Option<Sample> {
    let name_end = line.find(['{', ' '])?;
    let name = line[..name_end].to_owned();
    let mut labels = BTreeMap::new();
    let mut rest = &line[name_end..];
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            rest = rest.trim_start_matches([',', ' ']);
            if let Some(after) = rest.strip_prefix('}') {
                rest = after;
                break;
            }
            let (key, after) = rest.split_once("=\"")?;
            let (value, after) = quoted(after)?;
            labels.insert(key.to_owned(), value);
            rest = after;
        }
    }
    let value = rest.split_whitespace().next()?;
    let value = match value {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        other => other.parse().ok()?,
    };
    Some(Sample { name, labels, value })
}

/// Reads up to the closing quote; gives the text and what follows the quote.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match chars.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_values_and_types_are_read() {
        let metrics =
            Metrics::parse("# HELP a x\n# TYPE a counter\na 3\nb{x=\"1\",y=\"q\\\"},\"} 2.5\nb{x=\"2\"} +Inf\n");
        assert!(metrics.has("a") && metrics.has("b") && !metrics.has("c"));
        assert_eq!(metrics.sum("a", &[]), 3.0);
        assert_eq!(metrics.sum("b", &[("x", "1")]), 2.5);
        assert_eq!(metrics.samples[1].labels["y"], "q\"},");
    }

    #[test]
    fn the_sum_has_two_sides() {
        let text = "wsc_messages_accepted_total 5\nwsc_messages_recovered_total 2\n\
                    wsc_messages_total{outcome=\"acked\"} 3\nwsc_messages_total{outcome=\"failed\"} 1\n\
                    wsc_messages_stored 2\nwsc_messages_in_flight 1\n";
        let ledger = Metrics::parse(text).ledger();
        ledger.check();
        assert_eq!((ledger.came(), ledger.ended(), ledger.here()), (7.0, 4.0, 3.0));
        let lost = Ledger { stored: 1.0, ..ledger };
        assert!(std::panic::catch_unwind(|| lost.check()).is_err());
    }
}
