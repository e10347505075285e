//! The hub beside others, round by round.

use std::{fmt::Write, path::PathBuf};

use anyhow::{Context, ensure};
use serde_json::json;

use super::{CPU_PER_DELIVERY, CPU_PER_HANDSHAKE, CPU_PER_MESSAGE, Name, churn, direct, fanout};
use crate::{
    Program,
    args::{ChurnArgs, CompareArgs, Compared, DirectArgs, FanoutArgs},
    bench::{self, Bench},
    plot::{self, Bar, Panel},
    progress::Progress,
    report::{self, Outcome, Sink, readable},
    server::{LISTEN, Subject},
    statistics::Spread,
};

/// A server beside the hub.
#[derive(Clone, Copy)]
struct Target {
    name: &'static str,
    /// What it can be measured in.
    takes: &'static [Compared],
}

/// What they are called.
pub(crate) fn names() -> [&'static str; 4] {
    TARGETS.map(|target| target.name)
}

const TARGETS: [Target; 4] = [
    Target { name: "write-loop", takes: &[Compared::Fanout, Compared::Direct] },
    Target { name: "accept-loop", takes: &[Compared::Churn] },
    Target { name: "tokio-tungstenite", takes: &[Compared::Fanout, Compared::Direct, Compared::Churn] },
    Target { name: "axum-broadcast", takes: &[Compared::Fanout, Compared::Direct, Compared::Churn] },
];

/// Something that is measured on several servers.
#[derive(Debug)]
struct Case {
    scenario: Compared,
    in_flight: usize,
    title: String,
    /// The server that the others are measured against: the least that the same work can cost.
    floor: &'static str,
    /// The figure.
    cost: Name,
}

/// One server in one case.
#[derive(Debug)]
struct Row {
    case: usize,
    server: String,
    /// For each round what was measured, or why not.
    rounds: Vec<Result<Outcome, String>>,
}

pub(crate) async fn run(args: &CompareArgs, program: &Program) -> anyhow::Result<()> {
    let mut json_sink = args.json.as_deref().map(Sink::open).transpose()?;
    let mut plot_sink = args.plot.as_deref().map(Sink::open).transpose()?;
    let progress = Progress::new(args.quiet);
    let benches = servers(args, program, &progress)?;
    if let Some((_, _, bench)) = benches.first() {
        bench.join_clients()?;
    }
    let cases = cases(args);
    let mut rows: Vec<Row> = Vec::new();
    for (index, case) in cases.iter().enumerate() {
        for (server, takes, _) in &benches {
            if takes.contains(&case.scenario) {
                rows.push(Row { case: index, server: server.clone(), rounds: Vec::new() });
            }
        }
    }
    ensure!(!rows.is_empty(), "none of the servers takes part in any of the scenarios");
    for round in 1..=args.repeat {
        for index in order(&rows, round) {
            let row = &mut rows[index];
            let case = &cases[row.case];
            let Some((_, _, bench)) = benches.iter().find(|(name, ..)| *name == row.server) else { continue };
            progress.prefix(format!(
                "round {round} of {}, {} ({} in flight), {}: ",
                args.repeat, case.title, case.in_flight, row.server
            ));
            let outcome = measure(bench, args, case).await.map_err(|error| format!("{error:#}"));
            row.rounds.push(match outcome {
                Ok(lossy) if lossy.lost > 0 => Err(format!("{} messages were lost", lossy.lost)),
                Ok(faulty) if !faulty.faults.is_empty() => Err(faulty.faults.join("; ")),
                other => other,
            });
        }
    }
    progress.finish();

    let title = format!(
        "compare: {} rounds, {} connections, {} bytes, servers with one thread",
        args.repeat,
        readable(args.connections as f64),
        args.load.timed.payload
    );
    let failures: Vec<String> = rows
        .iter()
        .flat_map(|row| {
            let title = &cases[row.case].title;
            row.rounds.iter().enumerate().filter_map(move |(round, outcome)| {
                let why = outcome.as_ref().err()?;
                Some(format!("{title}, {}, round {}: {why}", row.server, round + 1))
            })
        })
        .collect();
    bench::show(&table(&title, &cases, &rows, &failures), args.json.as_deref())?;
    if let Some(sink) = &mut json_sink {
        let mut report = json(&title, &cases, &rows);
        report["arguments"] = serde_json::to_value(args)?;
        sink.write_json(&report)?;
    }
    if let Some(sink) = &mut plot_sink {
        sink.write(&plot::bars(&title, &panels(&cases, &rows))?)?;
    }
    ensure!(failures.is_empty(), "{} of the measurements failed", failures.len());
    Ok(())
}

/// Which row is measured when: case by case, and in each round another server of a case is the first, so that none
/// always follows the same other.
fn order(rows: &[Row], round: usize) -> Vec<usize> {
    let mut order = Vec::with_capacity(rows.len());
    let indices: Vec<usize> = (0..rows.len()).collect();
    for of_case in indices.chunk_by(|&a, &b| rows[a].case == rows[b].case) {
        let first = (round - 1) % of_case.len();
        order.extend(of_case[first..].iter().chain(&of_case[..first]));
    }
    order
}

/// All servers: what they are called, what they take part in, and how they are measured.
fn servers(
    args: &CompareArgs,
    program: &Program,
    progress: &Progress,
) -> anyhow::Result<Vec<(String, &'static [Compared], Bench)>> {
    let common = args.common();
    let hub = Subject::hub(&common.server, program)?;
    let everything: &[Compared] = &[Compared::Fanout, Compared::Direct, Compared::Churn];
    let mut servers = vec![(HUB.to_owned(), everything, Bench::of(hub, &common, program, progress.clone())?)];
    let executable = match &args.targets {
        Some(path) => path.clone(),
        None => program.executable.with_file_name(BESIDE),
    };
    ensure!(
        args.target.is_empty() || executable.is_file(),
        "the servers to compare with are not at {}: build them with `cargo build --release -p {BESIDE}`, or say with \
         --targets where they are",
        executable.display()
    );
    for name in &args.target {
        // The command line takes no other names.
        let target = TARGETS.iter().find(|target| target.name == name).context("no such server")?;
        let subject = Subject::Child {
            name: name.clone(),
            // A relative path would not be found from where children are started.
            program: executable.canonicalize().unwrap_or_else(|_| PathBuf::from(&executable)),
            args: vec![name.clone(), "--listen".into(), LISTEN.into()],
            environment: vec![("TOKIO_WORKER_THREADS".into(), "1".into())],
        };
        servers.push((name.clone(), target.takes, Bench::of(subject, &common, program, progress.clone())?));
    }
    Ok(servers)
}

fn cases(args: &CompareArgs) -> Vec<Case> {
    let mut cases = Vec::new();
    for &scenario in &args.scenario {
        match scenario {
            Compared::Fanout => cases.extend(args.in_flight.iter().map(|&in_flight| Case {
                scenario,
                in_flight,
                title: format!("fanout, {in_flight} in flight"),
                floor: "write-loop",
                cost: CPU_PER_DELIVERY,
            })),
            Compared::Direct => cases.push(Case {
                scenario,
                in_flight: 1,
                title: "direct".into(),
                floor: "write-loop",
                cost: CPU_PER_MESSAGE,
            }),
            Compared::Churn => cases.push(Case {
                scenario,
                in_flight: 1,
                title: "churn".into(),
                floor: "accept-loop",
                cost: CPU_PER_HANDSHAKE,
            }),
        }
    }
    cases
}

async fn measure(bench: &Bench, args: &CompareArgs, case: &Case) -> anyhow::Result<Outcome> {
    match case.scenario {
        Compared::Fanout => {
            let args = FanoutArgs {
                connections: args.connections,
                in_flight: case.in_flight,
                broadcast: false,
                load: args.load.clone(),
                common: bench.common.clone(),
            };
            fanout::measure(bench, &args).await
        }
        Compared::Direct => {
            let args = DirectArgs {
                connections: args.connections,
                in_flight: case.in_flight,
                rate: None,
                load: args.load.clone(),
                common: bench.common.clone(),
            };
            direct::measure(bench, &args).await
        }
        Compared::Churn => {
            let args = ChurnArgs {
                count: args.handshakes,
                batch: args.connections.min(args.handshakes),
                duration: std::time::Duration::from_secs(60),
                common: bench.common.clone(),
            };
            churn::measure(bench, &args).await
        }
    }
}

/// What a row cost in each round that worked, by round.
fn costs(row: &Row, case: &Case) -> Vec<Option<f64>> {
    row.rounds.iter().map(|outcome| outcome.as_ref().ok()?.get(case.cost.0)).collect()
}

/// What one server cost in times of another, within each round in which both were measured.
fn ratios(row: &Row, other: &str, rows: &[Row], case: &Case) -> Option<Spread> {
    let other = rows.iter().find(|candidate| candidate.case == row.case && candidate.server == other)?;
    let pairs = costs(row, case).into_iter().zip(costs(other, case));
    Spread::of(&pairs.filter_map(|(cost, other)| Some(cost? / other?)).collect::<Vec<_>>())
}

fn table(title: &str, cases: &[Case], rows: &[Row], failures: &[String]) -> String {
    let mut text = format!("\n{title}\n");
    let ok = |row: &'_ Row| row.rounds.iter().find_map(|outcome| outcome.as_ref().ok().map(|o| o.method.clone()));
    for line in rows.iter().find_map(ok).unwrap_or_default().iter().skip(1) {
        let _ = writeln!(text, "  {line}");
    }
    text +=
        "  server CPU time for each delivery, message or handshake: median [least .. most]; ratios within a round\n";
    for (index, case) in cases.iter().enumerate() {
        let times = format!("times {}", case.floor);
        let _ = writeln!(text, "\n  {:<22} {:<26} {times:<26} wsc in times of it", case.title, "µs each");
        for row in rows.iter().filter(|row| row.case == index) {
            let cost = Spread::of(&costs(row, case).into_iter().flatten().collect::<Vec<_>>());
            let hub = rows.iter().find(|hub| hub.case == index && hub.server == HUB);
            let hub = hub.filter(|_| row.server != HUB).and_then(|hub| ratios(hub, &row.server, rows, case));
            let line = format!(
                "    {:<20} {:<26} {:<26} {}",
                row.server,
                shown(cost),
                shown(ratios(row, case.floor, rows, case)),
                shown(hub)
            );
            let _ = writeln!(text, "{}", line.trim_end());
        }
    }
    for failure in failures {
        let _ = writeln!(text, "\n  FAILED: {failure}");
    }
    text
}

fn shown(spread: Option<Spread>) -> String {
    spread.map_or_else(
        || format!("{:>7}", "-"),
        |s| format!("{:>7} [{} .. {}]", readable(s.median), readable(s.min), readable(s.max)),
    )
}

fn json(title: &str, cases: &[Case], rows: &[Row]) -> serde_json::Value {
    let cases: Vec<_> = cases
        .iter()
        .enumerate()
        .map(|(index, case)| {
            let servers: Vec<_> = rows
                .iter()
                .filter(|row| row.case == index)
                .map(|row| {
                    let hub = rows.iter().find(|hub| hub.case == index && hub.server == HUB);
                    let rounds: Vec<_> = row
                        .rounds
                        .iter()
                        .map(|outcome| match outcome {
                            Ok(outcome) => report::run_json(outcome),
                            Err(why) => json!({"failed": why}),
                        })
                        .collect();
                    json!({
                        "server": row.server,
                        "cpu_us": Spread::of(&costs(row, case).into_iter().flatten().collect::<Vec<_>>()),
                        "times_floor": ratios(row, case.floor, rows, case),
                        "wsc_times_it": hub.and_then(|hub| ratios(hub, &row.server, rows, case)),
                        "rounds": rounds,
                    })
                })
                .collect();
            json!({"case": case.title, "figure": case.cost.0, "label": case.cost.1, "floor": case.floor, "servers": servers})
        })
        .collect();
    json!({"tool": report::TOOL, "scenario": "compare", "title": title, "cases": cases})
}

fn panels(cases: &[Case], rows: &[Row]) -> Vec<Panel> {
    let panel = |(index, case): (usize, &Case)| {
        let bar = |row: &Row| {
            Some(Bar {
                label: row.server.clone(),
                height: Spread::of(&costs(row, case).into_iter().flatten().collect::<Vec<_>>())?,
                note: ratios(row, case.floor, rows, case).map(|r| format!("({:.2} ×)", r.median)).unwrap_or_default(),
            })
        };
        let bars = rows.iter().filter(|row| row.case == index).filter_map(bar).collect();
        Panel { title: case.title.clone(), unit: format!("{}, µs", case.cost.1), bars }
    };
    cases.iter().enumerate().map(panel).collect()
}

/// What the hub is called.
const HUB: &str = "wsc";

/// The program with the other servers.
const BESIDE: &str = "wsc-bench-targets";

#[cfg(test)]
mod tests {
    use super::*;

    fn row(server: &str, costs: &[Option<f64>]) -> Row {
        let round = |cost: &Option<f64>| {
            let mut outcome = Outcome::default();
            outcome.figure(CPU_PER_DELIVERY.0, CPU_PER_DELIVERY.1, "µs", cost.ok_or("it broke")?);
            Ok(outcome)
        };
        Row { case: 0, server: server.into(), rounds: costs.iter().map(round).collect() }
    }

    fn case() -> Case {
        Case {
            scenario: Compared::Fanout,
            in_flight: 1,
            title: "fanout".into(),
            floor: "write-loop",
            cost: CPU_PER_DELIVERY,
        }
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        // A neighbour slowed the second round down, for both.
        let rows =
            [row("wsc", &[Some(4.4), Some(11.0), Some(4.4)]), row("write-loop", &[Some(4.0), Some(10.0), Some(4.0)])];
        let ratio = ratios(&rows[0], "write-loop", &rows, &case()).unwrap();
        for figure in [ratio.median, ratio.min, ratio.max] {
            assert!((figure - 1.1).abs() < 1e-9, "{ratio:?}");
        }
        assert_eq!(ratios(&rows[1], "write-loop", &rows, &case()).unwrap().median, 1.0);
    }

    #[test]
    fn a_round_that_failed_is_in_no_ratio_and_is_named() {
        let rows = [row("wsc", &[Some(2.0), Some(9.0)]), row("write-loop", &[Some(1.0), None])];
        assert_eq!(ratios(&rows[0], "write-loop", &rows, &case()).unwrap().max, 2.0);
        let text = table("t", &[case()], &rows, &["write-loop broke".into()]);
        assert!(text.contains("FAILED: write-loop broke"), "{text}");
    }

    #[test]
    fn each_round_begins_with_another_server() {
        let mut rows = [row("a", &[]), row("b", &[]), row("c", &[]), row("a", &[]), row("d", &[])];
        rows[3].case = 1;
        rows[4].case = 1;
        assert_eq!(order(&rows, 1), [0, 1, 2, 3, 4]);
        assert_eq!(order(&rows, 2), [1, 2, 0, 4, 3]);
        assert_eq!(order(&rows, 3), [2, 0, 1, 3, 4]);
        assert_eq!(order(&rows, 4), [0, 1, 2, 4, 3]);
    }

    #[test]
    fn without_its_floor_a_case_has_no_ratio() {
        let rows = [row("wsc", &[Some(2.0)])];
        assert!(ratios(&rows[0], "write-loop", &rows, &case()).is_none());
    }
}
