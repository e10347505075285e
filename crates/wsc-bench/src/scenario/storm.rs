//! A busy room, its bystanders, and members that never read.

use anyhow::ensure;
use tokio::try_join;

use super::per_second;
use crate::{
    args::StormArgs,
    bench::{Bench, run_name},
    fleet::{FanOut, Opened},
    message::{ExchangeKind, Pace, Rooms},
    report::{Outcome, readable},
};

pub(crate) fn title(args: &StormArgs) -> String {
    format!(
        "storm: a room of {} with {} messages in flight, {} bystanders with {} pings a second",
        readable(args.members as f64),
        args.in_flight,
        args.bystanders,
        readable(args.rate)
    )
}

pub(crate) async fn measure(bench: &Bench, args: &StormArgs) -> anyhow::Result<Outcome> {
    let server = bench.server().await?;
    server.ensure_room_for(args.members + 1 + args.stuck + args.bystanders)?;
    let run = run_name();
    let mut room = bench.fleet_beside(&server, &run, args.members + 1 + args.stuck, 0, NICE).await?;
    let mut aside = bench.fleet_beside(&server, &run, args.bystanders, room.processes(), 0).await?;
    let mut outcome =
        Outcome { method: bench.method(&server, room.processes() + aside.processes()), ..Outcome::default() };
    outcome.method.push(format!("the room's client processes are nicer by {NICE}, so that bystanders time the server"));

    let opened = Opened::new(Rooms::Spread(1), bench.common.clients.pending);
    let (members, _) = room.open("opening the room", args.members, &opened).await?;
    let alone = Opened { workers: Some(1), ..opened.clone() };
    let (sender, _) = room.open("opening the sender", 1, &alone).await?;
    let registered = Opened::new(Rooms::None, bench.common.clients.pending);
    let (bystanders, _) = aside.open("opening the bystanders", args.bystanders, &registered).await?;

    let spec = FanOut {
        members: &members,
        sender: sender.first_slot(),
        broadcast: false,
        in_flight: args.in_flight,
        limit: args.load.limit(),
        payload: args.load.payload,
    };
    let pace = Pace::Rate { per_second: args.rate };
    // As long as the storm at most: both are asked for the same time.
    let limit = crate::message::Limit::Time(args.load.duration);
    let mut echo = async |what| aside.exchange(what, &bystanders, ExchangeKind::Echo, pace, limit, 0).await;

    let quiet = echo("bystanders alone").await?;
    let (storm, stormed) = try_join!(room.fan_out("storm", &spec), echo("storm"))?;
    outcome.lost += quiet.missing + storm.missing + stormed.missing;
    outcome.figure("deliveries in the storm", "per second", per_second(storm.deliveries, storm.elapsed));
    outcome.figure("echo p99 alone", "ms", quiet.latency.percentile(99.0));
    outcome.figure("echo p99 in the storm", "ms", stormed.latency.percentile(99.0));
    let undisturbed = storm.latency.percentile(99.0);
    outcome.figure("room p99", "ms", undisturbed);
    outcome.latency("echo of the bystanders alone", quiet.latency);
    outcome.latency("echo of the bystanders in the storm", stormed.latency);
    outcome.latency("whole room", storm.latency);

    if args.stuck > 0 {
        let stuck = Opened { stuck: true, workers: Some(1), ..opened };
        room.open("opening those who never read", args.stuck, &stuck).await?;
        let (storm, stormed) = try_join!(
            room.fan_out("storm with members that never read", &spec),
            echo("storm with members that never read")
        )?;
        ensure!(storm.count > 0, "nothing got through beside the members that never read");
        outcome.lost += storm.missing + stormed.missing;
        let disturbed = storm.latency.percentile(99.0);
        outcome.figure("room p99 beside stuck members", "ms", disturbed);
        outcome.figure("  in times of undisturbed", "", disturbed / undisturbed.max(f64::MIN_POSITIVE));
        outcome.figure("echo p99 beside stuck members", "ms", stormed.latency.percentile(99.0));
        outcome.latency(format!("whole room beside {} stuck", args.stuck), storm.latency);
    }
    server.stop().await?;
    Ok(outcome)
}

/// The members' processes share a CPU with the bystanders' one. What they do with what arrived must not be what the
/// bystanders wait for.
const NICE: i32 = 10;
