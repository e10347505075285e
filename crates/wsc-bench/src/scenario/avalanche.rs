//! Everybody comes back at once.

use std::time::Instant;

use crate::{
    args::AvalancheArgs,
    bench::Bench,
    fleet::Opened,
    message::{Ending, Rooms},
    report::{Outcome, readable},
};

pub(crate) fn title(args: &AvalancheArgs) -> String {
    format!(
        "avalanche: {} connections in {} rooms are cut and come back at once",
        readable(args.connections as f64),
        readable(args.rooms as f64)
    )
}

pub(crate) async fn measure(bench: &Bench, args: &AvalancheArgs) -> anyhow::Result<Outcome> {
    let mut server = bench.server().await?;
    server.ensure_room_for(args.connections)?;
    let mut fleet = bench.fleet(&server, args.connections).await?;
    let mut outcome = Outcome { method: bench.method(&server, fleet.processes()), ..Outcome::default() };
    let rooms = Rooms::Spread(args.rooms);
    let opened = Opened::new(rooms.clone(), bench.common.clients.pending);
    let (crowd, first) = fleet.open("opening", args.connections, &opened).await?;

    bench.progress.stage("cutting all", None);
    let accepting = match server.restart().await? {
        Some(accepting) => {
            fleet.await_end(&crowd).await?;
            outcome.method.push("cut: the server was killed and started again on the same port".into());
            accepting
        }
        None => {
            fleet.close(&crowd, Ending::Reset).await?;
            outcome.method.push("cut: all clients reset their connections; the server went on".into());
            Instant::now()
        }
    };
    let late = accepting.elapsed();
    let at_once = args.at_once.unwrap_or(args.connections);
    let back = Opened { retry: true, pending: at_once, ..opened };
    let again = fleet.reopen("coming back", &crowd, &back).await?;
    let took = accepting.elapsed();

    outcome.figure("all_back_s", "all back, registered and in their rooms", "s", took.as_secs_f64());
    outcome.figure("first_time_s", "the first time, before the cut", "s", first.elapsed.as_secs_f64());
    outcome.figure("tried_again", "tried again", "connections", again.retries as f64);
    outcome.figure("late_s", "  of which until the first came", "s", late.as_secs_f64());
    outcome.latency("until_back", "until a connection was back", again.latency);
    server.stop().await?;
    Ok(outcome)
}
