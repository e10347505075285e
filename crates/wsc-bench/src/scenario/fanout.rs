//! One to many.

use anyhow::ensure;

use super::{CPU_PER_DELIVERY, CpuMeter, cpu_figure, per_second};
use crate::{
    args::FanoutArgs,
    bench::Bench,
    fleet::{FanOut, Opened},
    message::{Limit, Rooms},
    perf::Perf,
    report::{Outcome, readable},
};

pub(crate) fn title(args: &FanoutArgs) -> String {
    format!(
        "fanout: {} of {} bytes to {} members, {} in flight",
        if args.broadcast { "broadcasts through the API" } else { "room messages" },
        args.load.timed.payload,
        readable(args.connections as f64),
        args.in_flight
    )
}

pub(crate) async fn measure(bench: &Bench, args: &FanoutArgs) -> anyhow::Result<Outcome> {
    let server = bench.server().await?;
    server.ensure_room_for(args.connections + 1)?;
    let mut fleet = bench.fleet(&server, args.connections + 1).await?;
    let mut outcome = Outcome { method: bench.method(&server, fleet.processes()), ..Outcome::default() };
    let rooms = if args.broadcast { Rooms::None } else { Rooms::Spread(1) };
    let opened = Opened::new(rooms, bench.common.clients.pending);
    let (members, _) = fleet.open("opening", args.connections, &opened).await?;
    let sender = if args.broadcast {
        fleet.open_http().await?
    } else {
        let alone = Opened { workers: Some(1), ..opened };
        let (sender, _) = fleet.open("opening the sender", 1, &alone).await?;
        sender.first_slot()
    };
    let spec = FanOut {
        members: &members,
        sender,
        broadcast: args.broadcast,
        in_flight: args.in_flight,
        limit: Limit::Time(args.load.timed.warmup),
        payload: args.load.timed.payload,
    };
    let warmup = fleet.fan_out("warming up", &spec).await?;
    ensure!(warmup.missing == 0, "{} deliveries were lost while warming up", warmup.missing);

    let perf = match server.watched() {
        Some(watched) => Perf::start(watched.pid()).await,
        None => Err("no --pid".into()),
    };
    let meter = CpuMeter::start(&server)?;
    let run = fleet.fan_out("sending", &FanOut { limit: args.load.limit(), ..spec }).await?;
    let used = meter.used(&server)?;
    let instructions = match perf {
        Ok(perf) => perf.stop().await,
        Err(why) => Err(why),
    };

    ensure!(run.count > 0, "no message went");
    outcome.lost += run.missing;
    outcome.figure("deliveries_per_second", "deliveries", "per second", per_second(run.deliveries, run.elapsed));
    outcome.figure("messages_per_second", "messages", "per second", per_second(run.count, run.elapsed));
    cpu_figure(&mut outcome, CPU_PER_DELIVERY, used, run.deliveries);
    match instructions {
        Ok(count) => outcome.figure(
            "instructions_per_delivery",
            "instructions per delivery",
            "",
            count / run.deliveries.max(1) as f64,
        ),
        Err(why) => outcome.notes.push(format!("instructions not counted: {why}")),
    }
    outcome.figure("deliveries", "deliveries in all", "", run.deliveries as f64);
    outcome.latency("until_all_have_it", "from sending until all members have it", run.latency);
    server.stop().await?;
    Ok(outcome)
}
