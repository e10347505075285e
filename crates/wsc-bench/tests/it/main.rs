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
            assert_eq!(figure(&report, "deliveries"), 800.0);
            assert_eq!(recorded(&report, "until_all_have_it"), 40);
            assert!(figure(&report, "server_cpu_per_delivery_us") > 0.0);
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
        assert_eq!(figure(&report, "deliveries"), 200.0);
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
        assert_eq!(figure(&report, "messages"), 200.0);
        assert_eq!(recorded(&report, "way"), 200);

        let paced = measured(&server, &[&args[..], &["--rate", "2000"]].concat()).await;
        assert_eq!(recorded(&paced, "corrected"), 200);
        let rate = figure(&paced, "messages_per_second");
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
        assert_eq!(figure(&report, "handshakes"), 60.0);
        assert!(
            figure(&report, "server_cpu_per_handshake_and_close_us") >= figure(&report, "server_cpu_per_handshake_us")
        );
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
        for name in ["resident_with_few_mb", "resident_with_all_mb", "resident_cycle_2_mb"] {
            assert!(figure(&report, name) > 0.1, "{name}");
        }
        let [slope, talked] = ["idle_connection_bytes", "talked_connection_bytes"].map(|key| figure(&report, key));
        let left = (figure(&report, "resident_talked_mb") - figure(&report, "resident_with_all_mb")) * 1e6 / 30.0;
        assert!((talked - slope - left).abs() < 1.0, "{talked} is not {slope} and {left}");
        assert_eq!(report["arguments"]["connections"], 30);
        server.seen(|seen| {
            assert_eq!((seen.connections, seen.open), (90, 0));
            assert_eq!(seen.directs.len(), 30);
            let receivers: HashSet<_> = seen.directs.iter().map(|(_, to, _)| to).collect();
            let senders: HashSet<_> = seen.directs.iter().map(|(from, ..)| from).collect();
            assert_eq!((receivers.len(), senders.len()), (30, 30), "not each sent one and got one");
            assert!(seen.directs.iter().all(|(from, to, length)| from != to && *length == 2_048));
            for cycle in seen.queries.chunks(30) {
                assert_eq!(cycle.iter().collect::<HashSet<_>>().len(), 30, "two connections had one name");
            }
        });
    });
}

const STORM: [&str; 9] = ["storm", "--members", "12", "--bystanders", "3", "--rate", "100", "--duration", "200ms"];

#[test]
fn storm_times_bystanders_and_the_room_beside_members_that_block_the_server() {
    local(async {
        let server = Server::start(Fault::None).await;
        let args = [&STORM[..], &["--stuck", "2", "--warmup", "50ms", "--repeat", "2"]].concat();
        let report = measured(&server, &args).await;
        for run in report["runs"].as_array().unwrap() {
            for name in ["echo_alone", "echo_storm", "echo_stuck"] {
                assert_eq!(run["latencies"][name]["count"], 20, "{name}");
            }
            for name in ["room_storm", "room_stuck"] {
                assert!(run["latencies"][name]["count"].as_u64() > Some(0), "{name}");
            }
        }
        // The stuck come first in the first run and second in the second.
        let order = |run: usize| report["runs"][run]["method"].to_string();
        assert!(order(0).contains("came before") && order(1).contains("came after"), "{}", order(0));
        assert_eq!(figure(&report, "stuck_cut_off"), 0.0);
        // More than the receiver's buffer: the server's own is full.
        assert!(figure(&report, "stuck_send_queue_mb") > 0.05);
        server.seen(|seen| {
            assert_eq!(seen.connections, 2 * (12 + 1 + 3 + 2));
            let to: HashSet<_> = seen.directs.iter().map(|(_, to, _)| to).collect();
            assert_eq!(to.len(), 4, "others than the stuck were written to");
        });
    });
}

#[test]
fn a_storm_beside_members_that_do_not_block_the_server_is_none() {
    local(async {
        let server = Server::start(Fault::Forgets).await;
        let text = failed(&server, &[&STORM[..], &["--warmup", "10ms"]].concat()).await;
        assert!(text.contains("never blocked the server"), "{text}");
    });
}

#[test]
fn who_is_stuck_may_be_cut_off_in_the_storm() {
    local(async {
        let server = Server::start(Fault::CutsOff).await;
        let report = measured(&server, &[&STORM[..], &["--warmup", "10ms"]].concat()).await;
        assert_eq!(figure(&report, "stuck_cut_off"), 1.0);
        assert!(recorded(&report, "room_stuck") > 0);
    });
}

#[test]
fn a_rate_that_the_clients_cannot_keep_is_not_charged_to_the_server() {
    local(async {
        let server = Server::start(Fault::None).await;
        let args = ["direct", "--connections", "4", "--rate", "9000000", "--duration", "5s", "--warmup", "0s"];
        let output = bench(&[&args[..], &["--url", &server.url, "--json", "-", "--patience", "60s"]].concat()).await;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("the clients could not keep this rate"), "{stderr}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(report["runs"][0]["latencies"]["corrected"].is_null());
        assert!(figure(&report, "clients_late_p99_ms") > 25.0);
    });
}

#[test]
fn what_was_measured_before_a_failure_is_kept() {
    local(async {
        // The third handshake of a batch of one is refused: that of the second run's warmup.
        let server = Server::start(Fault::BusyAfter(2)).await;
        let args = ["churn", "--count", "1", "--repeat", "3", "--url", &server.url, "--json", "-"];
        let output = bench(&args).await;
        assert_eq!(output.status.code(), Some(1));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains("handshakes in all") && stderr.contains("run 2 of 3"), "{stderr}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["runs"].as_array().unwrap().len(), 1);
        assert!(report["failed"].as_str().unwrap().contains("503"));
        assert_eq!(figure(&report, "handshakes"), 1.0);
    });
}

#[test]
fn a_report_that_cannot_be_written_costs_no_measurement() {
    local(async {
        let server = Server::start(Fault::None).await;
        for option in ["--json", "--plot"] {
            let text = failed(&server, &["fanout", "--connections", "2", option, "/no/such/directory/report"]).await;
            assert!(text.contains("/no/such/directory/report"), "{text}");
        }
        assert_eq!(server.seen(|seen| seen.connections), 0);
    });
}

#[test]
fn another_process_is_not_taken_for_the_server() {
    local(async {
        let server = Server::start(Fault::None).await;
        let mut other = Command::new("sleep").arg("60").kill_on_drop(true).spawn().unwrap();
        let pid = other.id().unwrap().to_string();
        let text = failed(&server, &["fanout", "--connections", "2", "--pid", &pid]).await;
        assert!(text.contains("does not listen at"), "{text}");
        other.kill().await.unwrap();
    });
}

#[test]
fn after_an_avalanche_all_are_back() {
    local(async {
        let server = Server::start(Fault::None).await;
        let args = ["avalanche", "--connections", "40", "--rooms", "4", "--processes", "2"];
        let report = measured(&server, &args).await;
        assert_eq!(recorded(&report, "until_back"), 40);
        assert!(figure(&report, "all_back_s") > 0.0);
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
        let messages = &report["summary"]["messages_per_second"];
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

        for (wrong, why) in [("--from 2 --connections 4", "--pid"), ("--from 5 --connections 5 --pid 1", "below")] {
            let words = ["idle", "--url", "ws://127.0.0.1:9"].into_iter().chain(wrong.split(' '));
            let usage = bench(&words.collect::<Vec<_>>()).await;
            assert_eq!(usage.status.code(), Some(2), "{wrong}");
            let text = String::from_utf8(usage.stderr).unwrap();
            assert!(text.contains(why) && text.contains("Usage"), "{text}");
        }

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
        for signal in ["-TERM", "-HUP", "-INT"] {
            let server = Server::start(Fault::None).await;
            let mut command = Command::new(env!("CARGO_BIN_EXE_wsc-bench"));
            command.args(["direct", "--connections", "8", "--duration", "10m", "--url", &server.url]);
            let mut child = command.kill_on_drop(true).stderr(std::process::Stdio::null()).spawn().unwrap();
            until(|| server.seen(|seen| seen.open == 8)).await;
            let kill = Command::new("kill").args([signal, &child.id().unwrap().to_string()]).status().await.unwrap();
            assert!(kill.success());
            let status = timeout(Duration::from_secs(10), child.wait()).await.expect("it goes on").unwrap();
            assert_eq!(status.code(), Some(1), "{signal}");
            until(|| server.seen(|seen| seen.open == 0)).await;
        }
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
