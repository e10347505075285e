//! What an idle connection costs.

use anyhow::{Context, ensure};

use crate::{
    args::IdleArgs,
    bench::Bench,
    fleet::Opened,
    message::{Ending, ExchangeKind, Limit, Pace, Rooms},
    report::{Outcome, readable},
    usage::Holdings,
};

pub(crate) fn title(args: &IdleArgs) -> String {
    format!(
        "idle: memory of connections with user, client and device id in one room, from {} to {}",
        readable(args.from as f64),
        readable(args.connections as f64)
    )
}

pub(crate) async fn measure(bench: &Bench, args: &IdleArgs) -> anyhow::Result<Outcome> {
    ensure!(args.from < args.connections, "--from must be below --connections");
    let server = bench.server().await?;
    server.ensure_room_for(args.connections)?;
    let watched = server.watched().context("idle needs the server's process id: --pid")?;
    let mut fleet = bench.fleet(&server, args.connections).await?;
    let opened = Opened::new(Rooms::Spread(1), bench.common.clients.pending);
    let mut outcome = Outcome { method: bench.method(&server, fleet.processes()), ..Outcome::default() };
    outcome.method.push(format!("memory: VmRSS, {} after the last change", humantime::format_duration(args.settle)));

    let settled = async |why| {
        bench.settle(why, args.settle).await;
        watched.holdings()
    };
    let before = settled("looking at the server without connections").await?;
    let (few, _) = fleet.open("opening", args.from, &opened).await?;
    let low = settled("letting the server settle").await?;
    let (more, _) = fleet.open("opening", args.connections - args.from, &opened).await?;
    let high = settled("letting the server settle").await?;
    let all = few.and(&more);
    let talked = fleet
        .exchange(
            "exchanging one message each",
            &all,
            ExchangeKind::Echo,
            Pace::Closed { in_flight: 1 },
            Limit::Count(args.connections as u64),
            args.payload,
        )
        .await?;
    outcome.lost += talked.missing;
    let after_talk = settled("letting the server settle").await?;
    let closed = fleet.close(&all, Ending::Polite).await?;
    ensure!(
        closed.count == args.connections as u64,
        "only {} of {} connections were still there at the end, and closed in order",
        closed.count,
        args.connections
    );
    let gone = settled("looking what stays").await?;

    let span = (args.connections - args.from) as f64;
    let slope = |at: &Holdings| (at.resident as f64 - low.resident as f64) / span;
    outcome.figure("per idle connection", "bytes", slope(&high));
    outcome.figure(format!("after {} bytes each way", args.payload), "bytes", slope(&after_talk));
    outcome.figure("  in times of idle", "", slope(&after_talk) / slope(&high));
    for (when, at) in [
        ("resident before", &before),
        (&format!("resident with {}", readable(args.from as f64)), &low),
        (&format!("resident with {}", readable(args.connections as f64)), &high),
        ("resident after all have talked", &after_talk),
        ("resident after all have gone", &gone),
    ] {
        outcome.figure(when, "MB", at.resident as f64 / 1e6);
    }
    left(&mut outcome, "after all have gone", &before, &gone);

    for cycle in 1..=args.cycles {
        fleet.reopen(&format!("cycle {cycle}: opening"), &all, &opened).await?;
        let closed = fleet.close(&all, Ending::Polite).await?;
        ensure!(closed.missing == 0, "{} connections did not end within the patience", closed.missing);
        let at = settled("looking what stays").await?;
        outcome.figure(format!("resident after cycle {cycle}"), "MB", at.resident as f64 / 1e6);
        left(&mut outcome, &format!("after cycle {cycle}"), &before, &at);
    }
    server.stop().await?;
    Ok(outcome)
}

/// Notes what is there now and was not before.
fn left(outcome: &mut Outcome, when: &str, before: &Holdings, now: &Holdings) {
    outcome.figure(format!("descriptors left {when}"), "", now.descriptors as f64 - before.descriptors as f64);
    outcome.figure(format!("threads left {when}"), "", now.threads as f64 - before.threads as f64);
}
