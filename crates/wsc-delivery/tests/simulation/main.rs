//! A node, its store and its clients, simulated around real mailboxes.
//!
//! Time is virtual and everything that happens follows from one seed. `SIM_SEED=7` runs one seed and prints what
//! happened in it; `SIM_SEEDS=10000` runs so many (default 4,000), but for
//! `SIM_SECONDS=60` at most (default 40).

mod client;
mod node;
mod oracle;
mod store;
mod world;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use world::World;

fn env(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} is a number, not {value:?}")))
}

/// Runs one seed to its end, and gives what happened.
fn run(seed: u64, is_traced: bool) -> World {
    let mut world = World::new(seed, is_traced);
    world.run();
    world
}

/// Runs a seed; where it fails, runs it again and says what happened at last.
fn check(seed: u64) -> World {
    catch_unwind(AssertUnwindSafe(|| run(seed, false))).unwrap_or_else(|panic| {
        let trace = catch_unwind(AssertUnwindSafe(|| {
            let mut world = World::new(seed, true);
            let result = catch_unwind(AssertUnwindSafe(|| world.run()));
            assert!(result.is_err(), "seed {seed} failed and then did not: the simulation is not deterministic");
            world.trace
        }));
        if let Ok(trace) = trace {
            let tail = if std::env::var_os("SIM_SEED").is_some() { trace.len() } else { 60 };
            for line in trace.iter().skip(trace.len().saturating_sub(tail)) {
                eprintln!("{line}");
            }
        }
        eprintln!("\nTo see it again: SIM_SEED={seed} cargo test -p wsc-delivery --test simulation\n");
        std::panic::resume_unwind(panic)
    })
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the wall clock says when to stop, and nothing else")]
fn every_letter_has_one_fate_whatever_happens() {
    if let Some(seed) = env("SIM_SEED") {
        let world = check(seed);
        println!("seed {seed}: {:?}", world.oracle.figures);
        return;
    }
    let (seeds, seconds) = (env("SIM_SEEDS").unwrap_or(4_000), env("SIM_SECONDS").unwrap_or(40));
    let start = Instant::now();
    let mut sum = oracle::Figures::default();
    let mut done = 0;
    for seed in 0..seeds {
        if start.elapsed() > Duration::from_secs(seconds) {
            break;
        }
        sum.add(&check(seed).oracle.figures);
        done += 1;
    }
    println!("{done} seeds in {:?}: {sum:?}", start.elapsed());
    // A simulation in which nothing happens finds nothing.
    if done >= 100 {
        for (name, count) in sum.all() {
            assert!(count > 0, "there was no {name} in {done} seeds");
        }
    }
}

#[test]
fn a_seed_gives_the_same_run_to_the_byte() {
    for seed in [1, 2, 3, 50, 51] {
        let (first, second) = (run(seed, true), run(seed, true));
        assert!(first.trace.len() > 100, "seed {seed} does next to nothing");
        assert_eq!(first.trace, second.trace, "seed {seed}");
    }
}
