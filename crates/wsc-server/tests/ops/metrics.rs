//! The dashboard and the alerts speak of metrics that the hub has.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use wsc_testkit::{Client, HttpResponse, Metrics, ServerProcess, eventually};

use crate::support::{BIN, docs, read, run, yaml};

/// What Prometheus knows by itself, and the labels that it adds to everything.
const PROMETHEUS_OWN: [&str; 1] = ["up"];
const PROMETHEUS_LABELS: [&str; 2] = ["job", "instance"];

/// An expression of PromQL, taken apart as far as names go.
#[derive(Debug, Default, PartialEq)]
struct Names {
    /// The metrics.
    metrics: BTreeSet<String>,
    /// The labels that are selected or grouped by.
    labels: BTreeSet<String>,
}

/// Finds the names in an expression.
fn names(expression: &str) -> Names {
    let mut names = Names::default();
    let mut rest = expression;
    // Whether the next parentheses hold labels: they do after `by` and its like.
    let mut is_grouping = false;
    while let Some(first) = rest.chars().next() {
        if first.is_ascii_alphabetic() || "_:".contains(first) {
            let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || "_:".contains(c))).unwrap_or(rest.len());
            let (word, after) = rest.split_at(end);
            rest = after.trim_start();
            is_grouping = ["by", "without", "on", "ignoring", "group_left", "group_right"].contains(&word);
            // Aggregations may be followed by what they group by, and only then by parentheses.
            let is_word_of_the_language =
                ["and", "or", "unless", "offset", "bool", "sum", "min", "max", "avg", "count", "topk"].contains(&word);
            if !is_grouping && !is_word_of_the_language && !rest.starts_with('(') {
                names.metrics.insert(word.to_owned());
            }
        } else if first.is_ascii_digit() {
            // A number or a time span.
            rest = rest.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '.');
        } else if first == '(' && is_grouping {
            let (inside, after) = rest[1..].split_once(')').expect("closed");
            names.labels.extend(inside.split(',').map(|label| label.trim().to_owned()));
            (rest, is_grouping) = (after, false);
        } else if first == '{' {
            // No value here has a brace in it; regular expressions that do would need more than this.
            let (inside, after) = rest[1..].split_once('}').expect("closed");
            let matchers = inside.split("\",").filter(|matcher| !matcher.trim().is_empty());
            let label = |matcher: &str| matcher.split(['=', '!']).next().unwrap_or_default().trim().to_owned();
            names.labels.extend(matchers.map(label));
            rest = after;
        } else if first == '[' {
            rest = rest.split_once(']').expect("closed").1;
        } else {
            rest = &rest[first.len_utf8()..];
        }
    }
    for own in PROMETHEUS_LABELS.into_iter().chain(["le", ""]) {
        names.labels.remove(own);
    }
    names
}

#[test]
fn names_are_found_in_expressions() {
    let set = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<BTreeSet<_>>();
    let found = names(
        r#"histogram_quantile(0.99, sum by (le, x) (rate(a_bucket{job=~"$job",y!="1,2"}[5m]))) > 0.5 * (b offset 5m)
           and on (instance) wsc:c != 1e3 or sum without (z) (d) unless up{job="x"} == 0"#,
    );
    assert_eq!(found.metrics, set(&["a_bucket", "b", "wsc:c", "d", "up"]));
    assert_eq!(found.labels, set(&["x", "y", "z"]));
}

/// Every expression in the alerts and in the dashboard, with where it stands.
pub(crate) fn expressions() -> Vec<(String, String)> {
    let mut expressions = Vec::new();
    for rule in rules() {
        let name = rule.get("alert").or_else(|| rule.get("record")).unwrap();
        expressions.push((format!("rule {name}"), rule["expr"].as_str().unwrap().to_owned()));
    }
    let dashboard = dashboard();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            expressions.push((format!("panel {}", panel["title"]), target["expr"].as_str().unwrap().to_owned()));
        }
    }
    for annotation in dashboard["annotations"]["list"].as_array().unwrap() {
        expressions
            .push((format!("annotation {}", annotation["name"]), annotation["expr"].as_str().unwrap().to_owned()));
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        if let Some(query) = variable["definition"].as_str() {
            // `label_values(metric, label)` is Grafana's.
            let inside = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')')).unwrap();
            let (metric, label) = inside.rsplit_once(',').unwrap();
            assert!(PROMETHEUS_LABELS.contains(&label.trim()), "{query}");
            expressions.push((format!("variable {}", variable["name"]), metric.to_owned()));
        }
    }
    expressions
}

fn rules() -> Vec<Value> {
    let groups = yaml("ops/alerts.yaml")[0]["groups"].as_array().unwrap().clone();
    groups.iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
}

fn dashboard() -> Value {
    serde_json::from_str(&read("ops/grafana-dashboard.json")).unwrap()
}

/// A hub on which everything that is measured has happened, webhooks among it.
async fn busy_hub() -> ServerProcess {
    let settings = "wsc: {listen: \"127.0.0.1:0\", ack_timeout: 100ms, ack_max_retries: 0, enable_offline_ack: false, \
                    callbacks: {enable_webhooks: true, allow_private_addresses: true, \
                    webhook_url: \"http://127.0.0.1:9/hooks\"}}\n";
    let server = ServerProcess::start(BIN, settings).await;
    let mut alice = Client::connect(&server.ws_url_as("alice")).await;
    let mut bob = Client::connect(&server.ws_url_as("bob")).await;
    alice.join("r1").await;
    bob.join("r1").await;
    alice.say("r1", json!("hello")).await;
    bob.expect("room_message").await;
    // One that is acknowledged, and one that is not and fails.
    for content in ["yes", "no"] {
        server.post("/api/users/bob/messages", &json!({"content": content, "require_ack": true})).await;
        let delivery = bob.expect("user_message").await;
        if content == "yes" {
            bob.ack(&[delivery["id"].as_str().unwrap()]).await;
        }
    }
    eventually("a handler has seen the failure", async || {
        let metrics = server.metrics().await;
        (metrics.sum("wsc_failure_handler_duration_seconds_count", &[]) > 0.0).then_some(())
    })
    .await;
    eventually("a webhook was tried", async || {
        let metrics = server.metrics().await;
        (metrics.sum("wsc_webhook_requests_total", &[]) > 0.0).then_some(())
    })
    .await;
    server
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_metric_and_label_that_is_named_exists() {
    let server = busy_hub().await;
    let scrape = server.metrics().await;
    let recorded: BTreeSet<String> =
        rules().iter().filter_map(|rule| rule.get("record")?.as_str().map(str::to_owned)).collect();
    let labels = labels(&scrape);
    let mut missing = BTreeSet::new();
    let mut seen = BTreeSet::new();
    for (place, expression) in expressions() {
        let names = names(&expression);
        assert!(!names.metrics.is_empty(), "{place}: {expression}");
        for metric in names.metrics.iter().filter(|metric| !PROMETHEUS_OWN.contains(&metric.as_str())) {
            if !recorded.contains(metric) && !has(&scrape, metric) {
                missing.insert(format!("{metric} ({place})"));
            }
            seen.insert(metric.clone());
        }
        for label in &names.labels {
            let is_there =
                names.metrics.iter().any(|metric| labels.get(metric).is_some_and(|have| have.contains(label)));
            if !is_there {
                missing.insert(format!("label {label} ({place})"));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
    assert!(seen.len() > 40, "{seen:?}");
}

/// Whether a scrape has samples of this name, or says of which type they will be.
fn has(scrape: &Metrics, name: &str) -> bool {
    let family = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
    scrape.has(name) || family.is_some_and(|family| scrape.declared.contains(family))
}

/// The labels of each metric.
fn labels(scrape: &Metrics) -> BTreeMap<String, BTreeSet<String>> {
    let mut labels: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for sample in &scrape.samples {
        labels.entry(sample.name.clone()).or_default().extend(sample.labels.keys().cloned());
    }
    labels
}

#[test]
fn every_alert_is_explained_and_ranked() {
    let page = read("ops/README.md");
    let mut alerts = BTreeSet::new();
    for rule in rules().iter().filter(|rule| rule.get("alert").is_some()) {
        let name = rule["alert"].as_str().unwrap();
        assert!(alerts.insert(name.to_owned()), "{name} twice");
        assert!(page.contains(&format!("### {name}\n")), "docs/ops/README.md says nothing about {name}");
        let severity = rule["labels"]["severity"].as_str().unwrap();
        assert!(["page", "ticket"].contains(&severity), "{name}: {severity}");
        assert!(rule["annotations"]["summary"].as_str().unwrap().contains("$labels.instance"), "{name}");
    }
    let explained = page.lines().filter_map(|line| line.strip_prefix("### Wsc")).count();
    assert_eq!(explained, alerts.len(), "an alert that is explained and not there");
}

#[test]
fn the_dashboard_hangs_together() {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "an id twice");
    let mut taken = BTreeSet::new();
    for panel in panels {
        let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(at("x") + at("w") <= 24, "{}", panel["title"]);
        for (x, y) in (at("x")..at("x") + at("w")).flat_map(|x| (at("y")..at("y") + at("h")).map(move |y| (x, y))) {
            assert!(taken.insert((x, y)), "{} lies over another one", panel["title"]);
        }
        let is_explained = panel["type"] == "row" || panel["description"].as_str().is_some_and(|text| !text.is_empty());
        assert!(is_explained, "{}", panel["title"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs promtool"]
async fn promtool_takes_the_rules_and_they_fire_when_they_should() {
    let rules = docs("ops/alerts.yaml");
    run("promtool", &["check", "rules", "--lint-fatal", rules.to_str().unwrap()], "").await.succeeded();
    let tests = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/ops/alerts_test.yaml");
    run("promtool", &["test", "rules", tests], "").await.succeeded();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs promtool"]
async fn promtool_takes_the_figures() {
    let server = busy_hub().await;
    let response: HttpResponse = server.get("/metrics").await;
    let checked = run("promtool", &["check", "metrics"], response.text()).await;
    let text = checked.to_string();
    // It would rather have one name changed, which is fixed: `wsc_total_failures_total` is go-wsc's.
    let complaints: Vec<_> = text.lines().skip(1).filter(|line| !line.contains("wsc_total_failures_total")).collect();
    assert!(complaints.is_empty(), "{text}");
}
