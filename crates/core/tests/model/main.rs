//! The protocol against a reference model: four gateways, one store, and everything that goes
//! wrong between them, drawn from a seed.
//!
//! `ONLYONCE_SEEDS` says how many seeds are run (100,000 unless set), `ONLYONCE_SEED` runs one and
//! prints what happened in it.

use std::{
    env,
    num::NonZero,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use onlyonce_core::Fingerprint;

mod coverage;
mod gateways;
mod random;
mod reference;
mod world;

use coverage::Coverage;
use gateways::Gateways;
use world::World;

const OWNERS: usize = 4;
const KEYS: usize = 2;
const STEPS: usize = 90;
const LEASE: Duration = Duration::from_secs(30);
const RETENTION: Duration = Duration::from_secs(3_600);
const WINDOW: Duration = Duration::from_secs(24 * 3_600);

fn fingerprint(number: u8) -> Fingerprint {
    Fingerprint::from_bytes([number; 32])
}

/// Runs one seed to its end. Leaves what happened in `gateways`, also where it panics.
fn run(gateways: &mut Gateways) {
    for _ in 0..STEPS {
        gateways.step();
    }
    gateways.finish();
}

fn start(seed: u64, logged: bool) -> Gateways {
    Gateways::new(World::new(seed, logged))
}

/// The log of a seed, whether it ends well or not.
fn log_of(seed: u64) -> Vec<String> {
    let mut gateways = start(seed, true);
    let end = catch_unwind(AssertUnwindSafe(|| run(&mut gateways)));
    let mut log = gateways.world.into_log();
    if end.is_err() {
        log.push("here it broke".into());
    }
    log
}

fn number_from(name: &str) -> Option<u64> {
    let value = env::var(name).ok()?;
    let digits = value.replace(['_', ','], "");
    Some(
        digits
            .parse()
            .unwrap_or_else(|_| panic!("{name}={value} is no number")),
    )
}

#[test]
fn no_seed_breaks_a_guarantee() {
    if let Some(seed) = number_from("ONLYONCE_SEED") {
        println!("{}", log_of(seed).join("\n"));
        run(&mut start(seed, false));
        return;
    }
    let seeds = number_from("ONLYONCE_SEEDS").unwrap_or(100_000);
    let next = AtomicU64::new(0);
    let failed = AtomicU64::new(u64::MAX);
    let covered = Mutex::new(Coverage::default());
    let threads = thread::available_parallelism().map_or(2, NonZero::get);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut coverage = Coverage::default();
                while failed.load(Ordering::Relaxed) == u64::MAX {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        break;
                    }
                    let mut gateways = start(seed, false);
                    if catch_unwind(AssertUnwindSafe(|| run(&mut gateways))).is_err() {
                        failed.fetch_min(seed, Ordering::Relaxed);
                    }
                    coverage.add(&gateways.world.coverage);
                }
                covered.lock().expect("no thread panics").add(&coverage);
            });
        }
    });
    let failed = failed.into_inner();
    assert!(
        failed == u64::MAX,
        "seed {failed} breaks a guarantee; it ends so (all of it: ONLYONCE_SEED={failed}):\n{}",
        last_lines(&log_of(failed)),
    );
    let covered = covered.into_inner().expect("no thread panics");
    println!("{seeds} seeds: {:#?}", covered.0);
    if seeds >= 10_000 {
        assert_covered(&covered);
    }
}

fn last_lines(log: &[String]) -> String {
    log[log.len().saturating_sub(60)..].join("\n")
}

/// Each of these is rare in one seed, and none may be missing in all of them.
fn assert_covered(covered: &Coverage) {
    for what in SITUATIONS {
        let times = covered.0.get(what).copied().unwrap_or(0);
        assert!(times >= 20, "{what}: {times} times in all seeds");
    }
    for what in covered.0.keys() {
        assert!(SITUATIONS.contains(what), "{what} is not listed");
    }
}

const SITUATIONS: &[&str] = &[
    "a chore has no arrow",
    "a chore is fenced off",
    "a claim in doubt is not there",
    "a claim in doubt is one's own",
    "a dead owner's claim is marked",
    "a gateway dies",
    "a joiner gets the whole answer",
    "a joiner shares another outcome",
    "a late answer comes",
    "a late write is fenced off",
    "a late write lands",
    "a lease is renewed",
    "a lease passes before the first byte",
    "a sweeper expires a lease",
    "a wall clock jumps a month",
    "a write fails",
    "a write is acknowledged",
    "a write is fenced off",
    "a written write is in doubt",
    "an attempt finds a lease passed",
    "an operator knows the answer",
    "an operator says that it did not run",
    "an outcome in doubt was written",
    "an unwritten write is in doubt",
    "broken off: an answer comes too late",
    "executed",
    "given the answer that it did not run",
    "joined",
    "refused: in flight",
    "refused: key reused",
    "refused: unknown",
    "refused: unreadable",
    "replayed",
    "sent",
    "store unavailable at the claim",
    "store unavailable at the load",
    "told not sent",
    "told unavailable: claim taken away",
    "told unknown",
    "told unknown for now",
    "told unknown: it was fenced off",
    "told unknown: the store does not take the outcome",
];

#[test]
fn the_same_seed_gives_the_same_log() {
    let mut distinct = std::collections::BTreeSet::new();
    for seed in 0..500 {
        let log = log_of(seed);
        assert!(log.len() > 20, "seed {seed} has done nothing");
        assert_eq!(log, log_of(seed), "seed {seed}");
        distinct.insert(log);
    }
    assert_eq!(distinct.len(), 500, "two seeds gave the same log");
}
