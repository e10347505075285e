//! A busy room, its bystanders, and members that never read.

use anyhow::{Context, ensure};
use tokio::try_join;

use super::{late_figures, per_second};
use crate::{
    args::StormArgs,
    bench::{Bench, run_name},
    fleet::{FanOut, Fleet, Opened, Together},
    message::{Ending, ExchangeKind, Limit, Pace, Rooms},
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

/// What a storm did to the room, and to the bystanders.
struct Storm {
    room: Together,
    echo: Together,
}

pub(crate) async fn measure(bench: &Bench, args: &StormArgs, run: usize) -> anyhow::Result<Outcome> {
    let server = bench.server().await?;
    server.ensure_room_for(args.members + 1 + args.stuck + args.bystanders)?;
    let name = run_name();
    let mut room = bench.fleet_beside(&server, &name, args.members + 1 + args.stuck, 0, NICE).await?;
    let mut aside = bench.fleet_beside(&server, &name, args.bystanders, room.processes(), 0).await?;
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
        limit: Limit::Time(args.load.warmup),
        payload: args.load.payload,
    };
    let pace = Pace::Rate { per_second: args.rate };
    let mut echo =
        async |what, time| aside.exchange(what, &bystanders, ExchangeKind::Echo, pace, Limit::Time(time), 0).await;
    // Room and bystanders are given the same time, so that they meet.
    let mut storm = async |room: &mut Fleet, what, time| -> anyhow::Result<Storm> {
        let spec = FanOut { limit: Limit::Time(time), ..spec };
        let (room, echo) = try_join!(room.fan_out(what, &spec), echo(what, time))?;
        Ok(Storm { room, echo })
    };

    let warmup = storm(&mut room, "warming up", args.load.warmup).await?;
    ensure!(warmup.room.missing + warmup.echo.missing == 0, "messages were lost while warming up");

    // In turn: what comes second finds another server than what comes first.
    let mut undisturbed = None;
    let mut disturbed = None;
    let stuck_first = run % 2 == 1;
    for with_stuck in [stuck_first, !stuck_first] {
        if !with_stuck {
            undisturbed = Some(storm(&mut room, "storm", args.load.duration).await?);
        } else if args.stuck > 0 {
            let how = Opened { stuck: true, ..alone.clone() };
            let (stuck, _) = room.open("opening those who never read", args.stuck, &how).await?;
            let filled = room.fill(&stuck, sender.first_slot()).await?;
            let result = storm(&mut room, "storm beside members that never read", args.load.duration).await?;
            let there = room.look(&stuck).await?;
            room.close(&stuck, Ending::Reset).await?;
            note_stuck(&mut outcome, &filled, &there)?;
            disturbed = Some(result);
        }
    }
    let quiet = echo("bystanders alone", args.load.duration).await?;
    server.stop().await?;

    let undisturbed: Storm = undisturbed.context("no storm")?;
    outcome.lost += quiet.missing;
    note_echo(&mut outcome, "alone", "alone", "echo_alone", quiet);
    let names = Names { key: "storm", when: "in the storm".into(), echo_key: "echo_storm", room_key: "room_storm" };
    let room = note_storm(&mut outcome, &names, undisturbed)?;
    if let Some(disturbed) = disturbed {
        let order = if stuck_first { "before" } else { "after" };
        outcome.method.push(format!(
            "runs take turns: in run {run} the storm beside those who never read came {order} the other"
        ));
        let when = format!("beside {} stuck", args.stuck);
        let names = Names { key: "stuck", when, echo_key: "echo_stuck", room_key: "room_stuck" };
        let beside = note_storm(&mut outcome, &names, disturbed)?;
        let times = beside / room.max(f64::MIN_POSITIVE);
        outcome.figure("room_p99_stuck_times_storm", "  room p99 in times of undisturbed", "", times);
    }
    Ok(outcome)
}

/// Notes what a storm did, under keys and labels of its own; returns the p99 of the room.
fn note_storm(outcome: &mut Outcome, names: &Names, storm: Storm) -> anyhow::Result<f64> {
    let Storm { room, echo } = storm;
    ensure!(room.count > 0, "no message went to the room {}", names.when);
    ensure!(echo.count + echo.missing > 0, "no bystander sent anything {}", names.when);
    outcome.lost += room.missing + echo.missing;
    let Names { key, when, echo_key, room_key } = names;
    let rate = per_second(room.deliveries, room.elapsed);
    outcome.figure(format!("deliveries_per_second_{key}"), format!("deliveries {when}"), "per second", rate);
    let p99 = room.latency.percentile(99.0);
    outcome.figure(format!("room_p99_{key}_ms"), format!("room p99 {when}"), "ms", p99);
    outcome.latency(room_key, format!("whole room {when}"), room.latency);
    note_echo(outcome, key, when, echo_key, echo);
    Ok(p99)
}

/// Notes what the bystanders saw. Where the clients were late themselves, the server is not charged for it.
fn note_echo(outcome: &mut Outcome, key: &str, when: &str, latency_key: &'static str, echo: Together) {
    late_figures(outcome, &format!("{key}_"), &format!("bystanders {when}: "), &echo);
    if !echo.is_late() {
        let p99 = echo.latency.percentile(99.0);
        outcome.figure(format!("echo_p99_{key}_ms"), format!("echo p99 {when}"), "ms", p99);
        outcome.latency(latency_key, format!("echo of the bystanders {when}"), echo.latency);
    }
}

/// Notes what became of those who never read, and that they were a burden all the time.
fn note_stuck(outcome: &mut Outcome, filled: &Together, there: &Together) -> anyhow::Result<()> {
    let held = filled.held.unwrap_or_default();
    if let Some(now) = there.held {
        // A little, where the kernel found room for a part of a message.
        ensure!(
            now >= held && now - held <= SLACK,
            "the stuck member never blocked the server: its send queue went from {held} to {now} bytes"
        );
    }
    outcome.figure("stuck_send_queue_mb", "the server's kernel holds for each stuck", "MB", held as f64 / 1e6);
    let cut = filled.count - there.count;
    outcome.figure("stuck_cut_off", "stuck that the server cut off during the storm", "", cut as f64);
    Ok(())
}

/// What the figures of a storm are called.
struct Names {
    key: &'static str,
    when: String,
    echo_key: &'static str,
    room_key: &'static str,
}

/// The members' processes share a CPU with the bystanders' one. What they do with what arrived must not be what the
/// bystanders wait for.
const NICE: i32 = 10;

/// How much a send queue may change that does not move.
const SLACK: u64 = 64 << 10;
