//! A drain of 15,000 clients, and who takes over.

use std::{collections::HashSet, net::SocketAddr};

use serde_json::json;
use wsc_testkit::{Launch, ServerProcess, try_http};

use crate::{
    fleet::{Close, Fleet, Kind},
    support::{free_address, per_mille, scaled, server_binary},
};

/// Half of them sockets that acknowledge nothing, half of them `wsc-client`s. The server is told to end while messages
/// are sent; a second node takes over address and data directory.
#[tokio::test]
#[ignore = "takes minutes: .ci/long"]
async fn drain_15k() {
    let half = scaled(15_000) / 2;
    let rate = scaled(1_000);
    let address = free_address();
    let settings = |node: &str| {
        format!(
            "wsc: {{listen: '{address}', node_id: {node}, max_connections: 20000, \
             drain: {{rate: {rate}, delay: 2s, deadline: 60s}}}}"
        )
    };
    let (first, second) = (settings("node-1"), settings("node-2"));
    let launch = |settings| Launch { args: &["serve", "--config", "settings.yaml"], files: settings, env: &[] };
    let files = [("settings.yaml", &*first)];
    let mut server = ServerProcess::launch(server_binary(), &launch(&files)).await;

    let (mut plain, mut clients) = (Fleet::start(), Fleet::start());
    plain.connect(address, Kind::Plain, half).await;
    clients.connect(address, Kind::Client, half).await;
    println!("drain_15k: {} clients connected", 2 * half);

    // One each for all who acknowledge nothing, and for some who do.
    let mut accepted = Accepted::default();
    for from in (0..half).step_by(500) {
        let numbers = from..(from + 500).min(half);
        accepted.push(address, Kind::Plain, numbers.clone()).await.expect("the server is not draining");
        accepted.push(address, Kind::Client, numbers.step_by(10)).await.expect("the server is not draining");
    }

    server.signal_terminate();
    // Until it no longer takes any. Each answer is in time, or there is none.
    let mut during = 0;
    for number in (0..half).cycle() {
        match accepted.push(address, Kind::Plain, number..number + 1).await {
            Ok(()) => during += 1,
            Err(Refused::Draining) => break,
            Err(Refused::Gone) => panic!("gone without a word"),
        }
        // The next one finds out about the end.
        let _ = accepted.push(address, Kind::Client, number..number + 1).await;
    }
    println!("drain_15k: {during} more messages accepted behind the signal, then refused with 503 and Retry-After");
    assert!(during > 0, "drain.delay let nothing in");

    tokio::join!(plain.closed(half), clients.closed(half));
    assert_eq!(server.wait().await, 0, "an orderly end");
    let mut closes = plain.report().await.closes;
    closes.extend(clients.report().await.closes);
    check_closes(&closes, 2 * half, rate);

    std::fs::write(server.dir().join("settings.yaml"), &second).unwrap();
    server.restart().await;
    assert_eq!(server.addr(), address);
    clients.on("node-2", half).await;
    println!("drain_15k: all {half} clients of wsc-client are back on the second node");
    // Those who acknowledge nothing get all of it again, from the second node's store.
    plain.forget().await;
    plain.connect(address, Kind::Plain, half).await;
    let (for_plain, for_clients) = (accepted.of(Kind::Plain), accepted.of(Kind::Client));
    let missing = plain.missing(for_plain.clone()).await;
    assert!(
        missing.is_empty(),
        "{} of {} messages to who acknowledged nothing are lost",
        missing.len(),
        for_plain.len()
    );
    let missing = clients.missing(for_clients.clone()).await;
    assert!(missing.is_empty(), "{} of {} messages to clients are lost", missing.len(), for_clients.len());
    let twice = clients.report().await.got.into_values().filter(|&times| times > 1).count();
    assert_eq!(twice, 0, "messages that came to an application more than once");
    println!("drain_15k: none of {} accepted messages is lost", for_plain.len() + for_clients.len());
    server.metrics().await.ledger().check();
}

/// Codes, hints and pace.
fn check_closes(closes: &[Close], clients: usize, rate: usize) {
    assert_eq!(closes.len(), clients, "each connection is closed once");
    let longest = 1000.max(1000 * clients as u64 / rate as u64);
    for close in closes.iter() {
        assert_eq!((close.code, close.reconnect), (3001, Some(true)), "{close:?}");
        assert!(close.retry_after_ms.is_some_and(|after| after <= longest), "{close:?}, at most {longest} ms");
    }
    // Uniformly between nothing and the longest: the mean is half of that, and no quarter is empty.
    let after: Vec<_> = closes.iter().filter_map(|close| close.retry_after_ms).collect();
    let mean = after.iter().sum::<u64>() as f64 / after.len() as f64 / longest as f64;
    assert!((0.45..0.55).contains(&mean), "the mean of retry_after_ms is {mean:.3} of {longest}");
    for quarter in 0..4 {
        let part = after.iter().filter(|&&ms| (4 * ms / (longest + 1)) == quarter).count();
        assert!((0.2..0.3).contains(&(part as f64 / after.len() as f64)), "{part} of {} in a quarter", after.len());
    }

    // Without the first and the last tenth: where it begins is the signal's time, and where it ends the slowest.
    let mut at: Vec<_> = closes.iter().map(|close| close.at_us).collect();
    let (first, last) = (per_mille(&mut at, 100), per_mille(&mut at, 900));
    let measured = 0.8 * clients as f64 / ((last - first) as f64 / 1e6);
    println!(
        "drain_15k: closed {measured:.0} connections a second, told to close {rate}; retry_after_ms mean {mean:.3}"
    );
    let share = measured / rate as f64;
    assert!((0.8..1.2).contains(&share), "closed {measured:.0} a second instead of {rate}");
}

/// The messages that the hub has taken responsibility for.
#[derive(Debug, Default)]
struct Accepted {
    plain: HashSet<String>,
    client: HashSet<String>,
}

/// Why no more was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refused {
    /// With 503 and `Retry-After`.
    Draining,
    /// There is nobody.
    Gone,
}

impl Accepted {
    /// Sends each of these clients a message that must be acknowledged.
    async fn push(
        &mut self,
        server: SocketAddr,
        kind: Kind,
        numbers: impl Iterator<Item = usize>,
    ) -> Result<(), Refused> {
        let message = |number| json!({ "user_id": kind.user(number), "content": number, "require_ack": true });
        let body = json!({ "messages": numbers.map(message).collect::<Vec<_>>() }).to_string();
        let url = format!("http://{server}/api/messages/batch");
        let headers = [("Content-Type", "application/json")];
        let answer = try_http("POST", &url, &headers, Some(body.as_bytes())).await.map_err(|_| Refused::Gone)?;
        if answer.status == 503 {
            assert!(answer.header("retry-after").is_some(), "{answer:?}");
            return Err(Refused::Draining);
        }
        assert_eq!(answer.status, 200, "{answer:?}");
        let results = answer.json();
        let results = results["results"].as_array().unwrap();
        let ids = match kind {
            Kind::Plain => &mut self.plain,
            Kind::Client => &mut self.client,
        };
        ids.extend(results.iter().filter_map(|result| result["id"].as_str()).map(str::to_owned));
        // One of a batch may be refused when the drain begins in its middle.
        match results.iter().find_map(|result| result.get("error")) {
            Some(error) if error["code"] == 4003 => Err(Refused::Draining),
            Some(error) => panic!("{error}"),
            None => Ok(()),
        }
    }

    fn of(&self, kind: Kind) -> Vec<String> {
        let ids = match kind {
            Kind::Plain => &self.plain,
            Kind::Client => &self.client,
        };
        ids.iter().cloned().collect()
    }
}
