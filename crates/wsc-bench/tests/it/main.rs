//! Every scenario, small, with real worker processes against a server on this thread. Figures are not looked at beyond
//! what must hold on any machine.

#![allow(clippy::unwrap_used, reason = "everything here is a test, its helpers too")]

mod server;

use std::{collections::HashSet, process::Output, time::Duration};

use serde_json::Value;
use server::{Fault, Server};
use tokio::{process::Command, task::LocalSet, time::timeout};

/// Runs a test that has a server on its thread.
fn local(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

async fn bench(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wsc-bench"));
    command.args(args).kill_on_drop(true);
    timeout(Duration::from_secs(60), command.output()).await.expect("the load tool does not end").unwrap()
}

/// Runs a scenario that has to work; returns its JSON.
async fn measured(server: &Server, args: &[&str]) -> Value {
    let args = [args, &["--url", &server.url, "--json", "-"]].concat();
    let output = bench(&args).await;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {stderr}"))
}

/// Runs a scenario that has to fail; returns what it says.
async fn failed(server: &Server, args: &[&str]) -> String {
    let output = bench(&[args, &["--url", &server.url]].concat()).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
}

fn figure(report: &Value, name: &str) -> f64 {
    let median = &report["summary"][name]["median"];
    median.as_f64().unwrap_or_else(|| panic!("no {name} in {}", report["summary"]))
}

fn recorded(report: &Value, name: &str) -> u64 {
    let latencies = &report["runs"][0]["latencies"];
    latencies[name]["count"].as_u64().unwrap_or_else(|| panic!("no {name} in {latencies}"))
}

fn me() -> String {
    std::process::id().to_string()
}

#[test]
fn fanout_counts_each_delivery_to_each_member() {
    local(async {
        for (processes, in_flight) in [("1", "1"), ("1", "8"), ("3", "1"), ("3", "8")] {
            let server = Server::start(Fault::None).await;
            let args = ["fanout", "--connections", "20", "--count", "40", "--warmup", "20ms", "--pid", &me()];
            let report =
                measured(&server, &[&args[..], &["--processes", processes, "--in-flight", in_flight]].concat()).await;
            assert_eq!(figure(&report, "deliveries in all"), 800.0);
            assert_eq!(recorded(&report, "from sending until all members have it"), 40);
            assert!(figure(&report, "server CPU per delivery") > 0.0);
            assert_eq!(report["lost"], 0);
            server.seen(|seen| {
                assert_eq!(seen.connections, 21);
                assert!(seen.room_messages > 40, "no warmup");
            });
        }
    });
}

#[test]
fn clients_are_who_the_protocol_wants_and_answer_pings() {
    local(async {
        let server = Server::start(Fault::None).await;
        measured(&server, &["fanout", "--connections", "9", "--count", "5", "--warmup", "10ms"]).await;
        server.seen(|seen| {
            assert_eq!(seen.pongs, 10, "a ping was not answered");
            assert!(seen.subprotocols.iter().all(|offered| offered.as_deref() == Some("wsc.v1")));
            let mut queries = seen.queries.clone();
            queries.sort();
            queries.dedup();
            assert_eq!(queries.len(), 10);
            for query in &queries {
                for name in ["user_id=", "client_id=", "device_id="] {
                    assert!(query.contains(name), "{query}");
                }
            }
            let mut sources: Vec<_> = seen.peers.iter().map(std::net::SocketAddr::ip).collect();
            sources.sort();
            sources.dedup();
            assert_eq!(sources.len(), 10, "source addresses are not spread");
        });
    });
}

#[test]
fn broadcasts_go_through_the_api() {
    local(async {
        let server = Server::start(Fault::None).await;
        let args = ["fanout", "--broadcast", "--connections", "10", "--count", "20", "--warmup", "10ms"];
        let report = measured(&server, &[&args[..], &["--in-flight", "4", "--processes", "2"]].concat()).await;
        assert_eq!(figure(&report, "deliveries in all"), 200.0);
        assert_eq!(server.seen(|seen| seen.room_messages), 0);
    });
}

#[test]
fn a_lost_delivery_is_a_failure_that_says_so() {
    local(async {
        let server = Server::start(Fault::Loses(30)).await;
        let args = ["fanout", "--connections", "6", "--count", "1000000", "--warmup", "0s", "--patience", "300ms"];
        let text = failed(&server, &[&args[..], &["--processes", "2"]].concat()).await;
        assert!(text.contains("LOST: 1 messages did not arrive"), "{text}");
        assert!(text.contains("1 messages were lost"), "{text}");
    });
}

#[test]
fn direct_messages_are_counted_and_timed() {
    local(async {
        let server = Server::start(Fault::None).await;
        let args = ["direct", "--connections", "10", "--count", "200", "--warmup", "10ms", "--processes", "2"];
        let report = measured(&server, &[&args[..], &["--in-flight", "3"]].concat()).await;
        assert_eq!(figure(&report, "messages in all"), 200.0);
        assert_eq!(recorded(&report, "from sending until it arrived"), 200);

        let paced = measured(&server, &[&args[..], &["--rate", "2000"]].concat()).await;
        assert_eq!(recorded(&paced, "from when it was to be sent until it arrived"), 200);
        let rate = figure(&paced, "messages");
        assert!(rate < 2_100.0, "{rate} a second are more than 2,000");
    });
}

#[test]
fn a_refused_message_ends_the_run_with_the_servers_words() {
    local(async {
        let server = Server::start(Fault::Refuses).await;
        let text = failed(&server, &["direct", "--connections", "4", "--count", "10"]).await;
        assert!(text.contains(r#""code":1005"#), "{text}");
    });
}

#[test]
fn churn_opens_what_it_says_and_leaves_nothing() {
    local(async {
        let server = Server::start(Fault::None).await;
        let args = ["churn", "--count", "60", "--batch", "20", "--pending", "7", "--pid", &me()];
        let report = measured(&server, &args).await;
        assert_eq!(figure(&report, "handshakes in all"), 60.0);
        assert!(figure(&report, "server CPU per handshake and close") >= figure(&report, "server CPU per handshake"));
        server.seen(|seen| {
            assert_eq!(seen.connections, 80, "a warming batch and three more");
            assert_eq!(seen.open, 0);
        });
    });
}

#[test]
fn idle_reads_memory_on_the_way_and_leaves_nothing() {
    local(async {
        let server = Server::start(Fault::None).await;
        let args = ["idle", "--from", "10", "--connections", "30", "--settle", "10ms", "--cycles", "2", "--pid", &me()];
        let report = measured(&server, &[&args[..], &["--processes", "2"]].concat()).await;
        for name in ["resident with 10", "resident with 30", "resident after cycle 2"] {
            assert!(figure(&report, name) > 0.1, "{name}");
        }
        report["summary"]["per idle connection"]["median"].as_f64().expect("no slope");
        server.seen(|seen| {
            assert_eq!((seen.connections, seen.open), (90, 0));
            for cycle in seen.queries.chunks(30) {
                assert_eq!(cycle.iter().collect::<HashSet<_>>().len(), 30, "two connections had one name");
            }
        });
    });
}

#[test]
fn storm_times_bystanders_and_the_room() {
    local(async {
        let server = Server::start(Fault::None).await;
        let args = ["storm", "--members", "12", "--bystanders", "3", "--rate", "100", "--duration", "200ms"];
        let report = measured(&server, &[&args[..], &["--stuck", "2"]].concat()).await;
        for name in ["echo of the bystanders alone", "echo of the bystanders in the storm"] {
            assert_eq!(recorded(&report, name), 20, "{name}");
        }
        for name in ["whole room", "whole room beside 2 stuck"] {
            assert!(recorded(&report, name) > 0, "{name}");
        }
        assert_eq!(server.seen(|seen| seen.connections), 12 + 1 + 3 + 2);
    });
}

#[test]
fn after_an_avalanche_all_are_back() {
    local(async {
        let server = Server::start(Fault::None).await;
        let args = ["avalanche", "--connections", "40", "--rooms", "4", "--processes", "2"];
        let report = measured(&server, &args).await;
        assert_eq!(recorded(&report, "until a connection was back"), 40);
        assert!(figure(&report, "all back, registered and in their rooms") > 0.0);
        assert_eq!(server.seen(|seen| seen.connections), 80);
    });
}

#[test]
fn several_runs_and_a_chart() {
    local(async {
        let server = Server::start(Fault::None).await;
        let directory = tempfile::tempdir().unwrap();
        let plot = directory.path().join("chart.svg");
        let args = ["direct", "--connections", "4", "--count", "20", "--warmup", "10ms", "--repeat", "3"];
        let report = measured(&server, &[&args[..], &["--plot", plot.to_str().unwrap()]].concat()).await;
        assert_eq!(report["runs"].as_array().unwrap().len(), 3);
        let messages = &report["summary"]["messages"];
        assert!(messages["min"].as_f64() <= messages["median"].as_f64());
        assert!(std::fs::read_to_string(plot).unwrap().contains("</svg>"));
    });
}

#[test]
fn what_goes_wrong_is_said() {
    local(async {
        let thrown = failed(&Server::start(Fault::Closes).await, &["fanout", "--connections", "3"]).await;
        assert!(thrown.contains("3503") && thrown.contains("go away"), "{thrown}");

        let busy = failed(&Server::start(Fault::Busy).await, &["churn", "--count", "3"]).await;
        assert!(busy.contains("503") && busy.contains("busy"), "{busy}");

        let blind = failed(&Server::start(Fault::None).await, &["idle", "--connections", "4", "--from", "2"]).await;
        assert!(blind.contains("--pid"), "{blind}");

        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let nobody = format!("ws://{}", listener.local_addr().unwrap());
        drop(listener);
        let refused = bench(&["fanout", "--connections", "3", "--url", &nobody]).await;
        assert_eq!(refused.status.code(), Some(1));
        let text = String::from_utf8(refused.stderr).unwrap();
        assert!(text.to_lowercase().contains("connection refused"), "{text}");

        let many = ["fanout", "--connections", "9000000", "--processes", "1"];
        let text = failed(&Server::start(Fault::None).await, &many).await;
        assert!(text.contains("file descriptors") && text.contains("--processes"), "{text}");
    });
}

#[test]
fn alone_it_is_no_hub() {
    local(async {
        for scenario in ["fanout", "compare"] {
            let output = bench(&[scenario]).await;
            assert_eq!(output.status.code(), Some(1));
            let text = String::from_utf8(output.stderr).unwrap();
            assert!(text.contains("--url"), "{text}");
        }
    });
}

#[test]
fn what_is_interrupted_leaves_no_clients_behind() {
    local(async {
        let server = Server::start(Fault::None).await;
        let mut command = Command::new(env!("CARGO_BIN_EXE_wsc-bench"));
        command.args(["direct", "--connections", "8", "--duration", "10m", "--url", &server.url]);
        let mut child = command.kill_on_drop(true).stderr(std::process::Stdio::null()).spawn().unwrap();
        until(|| server.seen(|seen| seen.open == 8)).await;
        let kill = Command::new("kill").args(["-TERM", &child.id().unwrap().to_string()]).status().await.unwrap();
        assert!(kill.success());
        let status = timeout(Duration::from_secs(10), child.wait()).await.expect("it goes on").unwrap();
        assert_eq!(status.code(), Some(1));
        until(|| server.seen(|seen| seen.open == 0)).await;
    });
}

/// Waits until something is so, by letting the server go on.
async fn until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(30), wait).await.expect("it never came to that");
}
