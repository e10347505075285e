//! Connections that come and go.

use std::time::{Duration, Instant};

use anyhow::ensure;

use super::{CPU_PER_HANDSHAKE, CpuMeter, cpu_figure, per_second};
use crate::{
    args::ChurnArgs,
    bench::Bench,
    fleet::Opened,
    message::{Ending, Rooms},
    report::{Outcome, readable},
};

pub(crate) fn title(args: &ChurnArgs) -> String {
    format!("churn: {} handshakes in batches of {}", readable(args.count as f64), readable(args.batch as f64))
}

pub(crate) async fn measure(bench: &Bench, args: &ChurnArgs) -> anyhow::Result<Outcome> {
    let server = bench.server().await?;
    let batch = args.batch.min(args.count);
    server.ensure_room_for(batch)?;
    let mut fleet = bench.fleet(&server, batch).await?;
    let mut outcome = Outcome { method: bench.method(&server, fleet.processes()), ..Outcome::default() };
    outcome.method.push(format!("at most {} handshakes at a time; done with the 101", bench.common.clients.pending));
    let opened = Opened::new(Rooms::Unread, bench.common.clients.pending);

    // The first batch warms up.
    let (crowd, _) = fleet.open("warming up", batch, &opened).await?;
    fleet.close(&crowd, Ending::Polite).await?;

    let began = Instant::now();
    let (mut made, mut opening, mut open_cpu, mut cpu, mut unclean) = (0, Duration::ZERO, None, None, 0);
    while made < args.count as u64 && began.elapsed() < args.duration {
        let meter = CpuMeter::start(&server)?;
        let run = fleet.reopen("opening", &crowd, &opened).await?;
        add(&mut open_cpu, meter.used(&server)?);
        made += run.count;
        opening += run.elapsed;
        unclean += fleet.close(&crowd, Ending::Polite).await?.missing;
        add(&mut cpu, meter.used(&server)?);
    }
    ensure!(made > 0, "no connection was made");
    outcome.figure("handshakes_per_second", "handshakes", "per second", per_second(made, opening));
    cpu_figure(&mut outcome, CPU_PER_HANDSHAKE, open_cpu, made);
    cpu_figure(
        &mut outcome,
        ("server_cpu_per_handshake_and_close_us", "server CPU per handshake and close"),
        cpu,
        made,
    );
    outcome.figure("handshakes", "handshakes in all", "", made as f64);
    if unclean > 0 {
        outcome.notes.push(format!("{unclean} connections were not closed by the server within the patience"));
    }
    server.stop().await?;
    Ok(outcome)
}

fn add(sum: &mut Option<Duration>, more: Option<Duration>) {
    if let Some(more) = more {
        *sum = Some(sum.unwrap_or_default() + more);
    }
}
