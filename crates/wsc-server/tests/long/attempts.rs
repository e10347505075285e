//! Somebody who does not give up: 100,000 attempts to connect from one address.

use std::{net::Ipv4Addr, time::Duration};

use tokio::task::LocalSet;
use wsc_testkit::ServerProcess;

use crate::{
    pace::{self, Pace},
    storm::{Attempts, Crowd, Outcomes, check_refusals},
    support::{goal, scaled, server_binary},
};

/// In five rounds, while 200 clients talk that come from elsewhere.
#[tokio::test]
#[ignore = "takes minutes: .ci/long"]
async fn attempts_100k_one_address() {
    let limits = format!("limits: {{ip_connections: {MOST}, handshakes_per_second: 500}}");
    let settings = format!("wsc: {{listen: '127.0.0.1:0', {limits}}}");
    let server = ServerProcess::start(server_binary(), &settings).await;
    let (goal, _other) = goal(&server, &settings).await;
    let count = scaled(100_000) / 5;
    LocalSet::new()
        .run_until(async {
            let pace = Pace::start(server.addr(), 200).await;
            let mut crowd = Crowd::start();
            let (mut rounds, mut all) = (Vec::new(), Outcomes::default());
            for _ in 0..5 {
                let quiet = pace.window(Duration::from_secs(3)).await;
                // Not an address that the established come from.
                let source = Some(Ipv4Addr::new(127, 0, 1, 7));
                let attempts = Attempts { server: goal, count, at_once: 1000.min(count), source };
                let (disturbed, outcomes) = pace.during(crowd.attempt(&attempts)).await;
                println!("attempts_100k_one_address: {outcomes:?}");
                all.add(&outcomes);
                rounds.push((quiet, disturbed));
            }
            // Nobody left, so nobody may come in their place.
            assert!((1..=MOST).contains(&all.connected()), "{} got in: {all:?}", all.connected());
            check_refusals(
                &all,
                &["503 with Retry-After", "closed with 3504", "429 without Retry-After", "429 with Retry-After"],
            );
            assert!(all.counts.contains_key("closed with 3504"), "nobody met the limit: {all:?}");

            // The address is not banned: who leaves makes room.
            crowd.leave().await;
            wsc_testkit::eventually("there is room again", async || {
                let attempts =
                    Attempts { server: goal, count: 1, at_once: 1, source: Some(Ipv4Addr::new(127, 0, 1, 7)) };
                (crowd.attempt(&attempts).await.connected() == 1).then_some(())
            })
            .await;
            pace::check("attempts_100k_one_address", &rounds);
        })
        .await;
}

/// `limits.ip_connections`.
const MOST: usize = 50;
