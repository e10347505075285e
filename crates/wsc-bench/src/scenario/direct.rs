//! User to user.

use anyhow::ensure;

use super::{CPU_PER_MESSAGE, CpuMeter, cpu_figure, late_figures, per_second};
use crate::{
    args::DirectArgs,
    bench::Bench,
    fleet::Opened,
    message::{ExchangeKind, Limit, Pace, Rooms},
    report::{Outcome, readable},
};

pub(crate) fn title(args: &DirectArgs) -> String {
    let pace = match args.rate {
        Some(rate) => format!("{} per second", readable(rate)),
        None => format!("closed loop, {} in flight each", args.in_flight),
    };
    format!(
        "direct: {} connections write to each other, {} bytes, {pace}",
        readable(args.connections as f64),
        args.load.timed.payload
    )
}

pub(crate) async fn measure(bench: &Bench, args: &DirectArgs) -> anyhow::Result<Outcome> {
    let server = bench.server().await?;
    server.ensure_room_for(args.connections)?;
    let mut fleet = bench.fleet(&server, args.connections).await?;
    ensure!(args.connections >= 2 * fleet.processes(), "each client process needs two connections at least");
    let mut outcome = Outcome { method: bench.method(&server, fleet.processes()), ..Outcome::default() };
    let (users, _) =
        fleet.open("opening", args.connections, &Opened::new(Rooms::None, bench.common.clients.pending)).await?;
    let pace = args.rate.map_or(Pace::Closed { in_flight: args.in_flight }, |per_second| Pace::Rate { per_second });
    let mut exchange = async |what, limit| {
        fleet.exchange(what, &users, ExchangeKind::Direct, pace, limit, args.load.timed.payload).await
    };
    let warmup = exchange("warming up", Limit::Time(args.load.timed.warmup)).await?;
    ensure!(warmup.missing == 0, "{} messages were lost while warming up", warmup.missing);

    let meter = CpuMeter::start(&server)?;
    let run = exchange("sending", args.load.limit()).await?;
    let used = meter.used(&server)?;

    ensure!(run.count + run.missing > 0, "no message went");
    outcome.lost += run.missing;
    outcome.figure("messages_per_second", "messages", "per second", per_second(run.count, run.elapsed));
    cpu_figure(&mut outcome, CPU_PER_MESSAGE, used, run.count);
    outcome.figure("messages", "messages in all", "", run.count as f64);
    if args.rate.is_some() {
        late_figures(&mut outcome, "", "", &run);
        // Where it was the clients who were late, the server is not charged for it.
        if !run.is_late() {
            outcome.latency("corrected", "from when it was to be sent until it arrived", run.latency);
        }
        outcome.latency("uncorrected", "from when it was really sent until it arrived", run.uncorrected);
    } else {
        outcome.latency("way", "from sending until it arrived", run.latency);
    }
    server.stop().await?;
    Ok(outcome)
}
