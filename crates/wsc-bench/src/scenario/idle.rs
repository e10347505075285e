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
    let server = bench.server().await?;
    server.ensure_room_for(args.connections)?;
    let watched = server.watched().context("idle needs the server's process id: --pid")?;
    let mut fleet = bench.fleet(&server, args.connections).await?;
    ensure!(args.connections >= 2 * fleet.processes(), "each client process needs two connections at least");
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
    // As many messages as users, and the next of one only when its last has arrived: each sends one and gets one.
    let talked = fleet
        .exchange(
            "exchanging one message each",
            &all,
            ExchangeKind::Direct,
            Pace::Closed { in_flight: 1 },
            Limit::Count(args.connections as u64),
            args.payload,
        )
        .await?;
    ensure!(talked.count + talked.missing > 0, "no message went");
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
    let slope = (high.resident as f64 - low.resident as f64) / span;
    // The talk is that of all connections, the slope that of those above --from.
    let after_slope = slope + (after_talk.resident as f64 - high.resident as f64) / args.connections as f64;
    outcome.figure("idle_connection_bytes", "per idle connection", "bytes", slope);
    let label = format!("after a direct message of {} bytes to each and from each", readable(args.payload as f64));
    outcome.figure("talked_connection_bytes", label, "bytes", after_slope);
    outcome.figure("talked_times_idle", "  in times of idle", "", after_slope / slope);
    outcome.method.push(format!(
        "per connection: what the {} above {} added; after the talk: that and what the talk left, by {}",
        readable(span),
        readable(args.from as f64),
        readable(args.connections as f64)
    ));
    for (key, when, at) in [
        ("before", "resident before", &before),
        ("with_few", &format!("resident with {}", readable(args.from as f64)), &low),
        ("with_all", &format!("resident with {}", readable(args.connections as f64)), &high),
        ("talked", "resident after all have talked", &after_talk),
        ("gone", "resident after all have gone", &gone),
    ] {
        outcome.figure(format!("resident_{key}_mb"), when, "MB", at.resident as f64 / 1e6);
    }
    left(&mut outcome, "gone", "after all have gone", &before, &gone);

    for cycle in 1..=args.cycles {
        fleet.reopen(&format!("cycle {cycle}: opening"), &all, &opened).await?;
        let closed = fleet.close(&all, Ending::Polite).await?;
        ensure!(closed.missing == 0, "{} connections did not end within the patience", closed.missing);
        let at = settled("looking what stays").await?;
        let (key, label) = (format!("resident_cycle_{cycle}_mb"), format!("resident after cycle {cycle}"));
        outcome.figure(key, label, "MB", at.resident as f64 / 1e6);
        left(&mut outcome, &format!("cycle_{cycle}"), &format!("after cycle {cycle}"), &before, &at);
    }
    server.stop().await?;
    Ok(outcome)
}

/// Notes what is there now and was not before.
fn left(outcome: &mut Outcome, key: &str, when: &str, before: &Holdings, now: &Holdings) {
    let descriptors = now.descriptors as f64 - before.descriptors as f64;
    outcome.figure(format!("descriptors_left_{key}"), format!("descriptors left {when}"), "", descriptors);
    let threads = now.threads as f64 - before.threads as f64;
    outcome.figure(format!("threads_left_{key}"), format!("threads left {when}"), "", threads);
}
