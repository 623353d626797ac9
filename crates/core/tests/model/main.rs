//! The protocol against a reference model: four gateways, one store, and everything that goes
//! wrong between them, drawn from a seed. Once for each kind of store (`models`).
//!
//! `ONLYONCE_SEEDS` says how many seeds are run over each store (unless set, 100,000 over the embedded
//! one and 30,000 over each other), `ONLYONCE_SEED` runs one and prints what happened in it, and
//! `ONLYONCE_STORE` leaves all stores out but one.

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
mod models;
mod random;
mod reference;
mod world;

use coverage::Coverage;
use gateways::Gateways;
use models::{Forgets, MODELS, Model};
use world::World;

const OWNERS: usize = 4;
const KEYS: usize = 2;
const STEPS: usize = 90;
const LEASE: Duration = Duration::from_secs(30);
/// Who has less of its lease left does not send any more.
const MARGIN: Duration = Duration::from_secs(3);
/// No gateway's idea of the store's clock is further from another's.
const LAG: Duration = Duration::from_secs(2);
/// How long a gateway replays from its memory what the store has confirmed.
const CONFIRMED_FOR: Duration = Duration::from_secs(10);
const RETENTION: Duration = Duration::from_secs(3_600);
const WINDOW: Duration = Duration::from_secs(24 * 3_600);

fn fingerprint(number: u8) -> Fingerprint {
    Fingerprint::from_bytes([number; 32])
}

fn number_of(fingerprint: &Fingerprint) -> u8 {
    fingerprint.as_bytes()[0]
}

/// Runs one seed to its end. Leaves what happened in `gateways`, also where it panics.
fn run(gateways: &mut Gateways) {
    for _ in 0..STEPS {
        gateways.step();
    }
    gateways.finish();
}

fn start(model: &'static Model, seed: u64, logged: bool) -> Gateways {
    Gateways::new(World::new(model, seed, logged))
}

/// The log of a seed, whether it ends well or not.
fn log_of(model: &'static Model, seed: u64) -> Vec<String> {
    let mut gateways = start(model, seed, true);
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

/// The stores to run over.
fn stores() -> Vec<&'static Model> {
    let only = env::var("ONLYONCE_STORE").ok();
    let wanted = |model: &&Model| only.as_ref().is_none_or(|only| only == model.name);
    let stores: Vec<_> = MODELS.iter().filter(wanted).collect();
    assert!(!stores.is_empty(), "ONLYONCE_STORE={only:?} is no store");
    stores
}

#[test]
fn no_seed_breaks_a_guarantee() {
    for model in stores() {
        match number_from("ONLYONCE_SEED") {
            Some(seed) => {
                println!("{}:\n{}", model.name, log_of(model, seed).join("\n"));
                run(&mut start(model, seed, false));
            }
            None => run_all(model),
        }
    }
}

fn run_all(model: &'static Model) {
    let usual = if model.shared { 30_000 } else { 100_000 };
    let seeds = number_from("ONLYONCE_SEEDS").unwrap_or(usual);
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
                    let mut gateways = start(model, seed, false);
                    if catch_unwind(AssertUnwindSafe(|| run(&mut gateways))).is_err() {
                        failed.fetch_min(seed, Ordering::Relaxed);
                    }
                    coverage.add(&gateways.world.coverage);
                    coverage.add(&gateways.world.reference.coverage);
                }
                covered.lock().expect("no thread panics").add(&coverage);
            });
        }
    });
    let failed = failed.into_inner();
    let name = model.name;
    assert!(
        failed == u64::MAX,
        "seed {failed} over {name} breaks a guarantee; it ends so (all of it: ONLYONCE_STORE={name} \
         ONLYONCE_SEED={failed}):\n{}",
        last_lines(&log_of(model, failed)),
    );
    let covered = covered.into_inner().expect("no thread panics");
    println!("{name}, {seeds} seeds: {:#?}", covered.0);
    if seeds >= 10_000 {
        assert_covered(model, &covered);
    }
}

fn last_lines(log: &[String]) -> String {
    log[log.len().saturating_sub(60)..].join("\n")
}

/// Each of these is rare in one seed, and none may be missing in all of them.
fn assert_covered(model: &Model, covered: &Coverage) {
    let shared: &[_] = if model.shared { SHARED } else { &[] };
    let expected: Vec<_> = [SITUATIONS, shared, model.situations].concat();
    for what in &expected {
        let times = covered.0.get(what).copied().unwrap_or(0);
        assert!(
            times >= 20,
            "{what}: {times} times in all seeds over {}",
            model.name
        );
    }
    if model.forgets == Forgets::Nothing {
        let forgotten = covered.0.keys().find(|what| what.starts_with("forgotten"));
        assert_eq!(forgotten, None, "{} forgets", model.name);
    }
    // A claim that was never acknowledged is not executed.
    if model.forgets == Forgets::Unacknowledged {
        for what in [
            "forgotten: a claim that is sent afterwards",
            "forgotten: a key runs again",
        ] {
            assert!(!covered.0.contains_key(what), "{}: {what}", model.name);
        }
    }
}

const SITUATIONS: &[&str] = &[
    "a worker completes",
    "a worker dies",
    "a worker finds it settled",
    "a worker settles it otherwise",
    "a worker's claim is not the one that counts",
    "a worker's late result",
    "a chore has no arrow",
    "a chore is fenced off",
    "a claim in doubt is not there",
    "a claim in doubt is one's own",
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
];

/// Those of stores behind a network.
const SHARED: &[&str] = &[
    "a failover",
    "a gateway is cut off from the store",
    "a record is in memory",
    "a write does not get through",
    "a writer does not wait any longer",
    "replayed from memory though it was replaced",
    "the server restarts",
];

#[test]
fn the_same_seed_gives_the_same_log() {
    for model in MODELS {
        let mut distinct = std::collections::BTreeSet::new();
        for seed in 0..100 {
            let log = log_of(model, seed);
            assert!(log.len() > 20, "seed {seed} has done nothing");
            assert_eq!(log, log_of(model, seed), "seed {seed} over {}", model.name);
            distinct.insert(log);
        }
        assert_eq!(distinct.len(), 100, "two seeds gave the same log");
    }
}
