//! The gateway in a simulated world: the real engine and the real HTTP code, on one thread, in virtual time.
//!
//! Sockets are pipes in memory, time stands still while anything happens, ids follow from the seed, and so
//! does whatever the upstream, the callers, the store and the processes do. One seed is one history.
//!
//! ```sh
//! cargo test --release -p onlyonce-gateway --test sim                     # the seeds that each run of the tests takes
//! ONLYONCE_SEEDS=100000 cargo test --release -p onlyonce-gateway --test sim -- seeds
//! ONLYONCE_SEED=7 cargo test -p onlyonce-gateway --test sim -- seeds --nocapture   # the log of one seed
//! ```

// In a test, an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

mod client;
mod gate;
mod gateway;
mod judge;
mod pipe;
#[path = "../../../core/tests/model/random.rs"]
mod random;
mod seed;
mod store;
mod upstream;
mod wire;
mod world;

#[test]
fn no_seed_breaks_a_guarantee() {
    let mut bad = 0;
    for seed in 0..200 {
        let told = seed::run(seed);
        if !told.wrong.is_empty() {
            bad += 1;
            println!("seed {seed}: {:#?}", told.wrong);
            if bad == 1 {
                println!("{}", told.log.join("\n"));
            }
        }
    }
    assert_eq!(bad, 0);
}

#[test]
fn the_same_seed_gives_the_same_log() {
    for seed in 0..100 {
        let (first, second) = (seed::run(seed), seed::run(seed));
        assert_eq!(first.log, second.log, "seed {seed}");
    }
}
