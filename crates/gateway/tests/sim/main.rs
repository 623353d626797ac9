//! The gateway in a simulated world: the real engine and the real HTTP code, on one thread, in virtual time.
//!
//! Sockets are pipes in memory, time stands still while anything happens, ids follow from the seed, and so
//! does whatever the upstream, the callers, the store and the processes do. One seed is one history.
//!
//! ```sh
//! cargo test --release -p onlyonce-gateway --test sim                                     # as in each run of the tests
//! ONLYONCE_FROM=5000 ONLYONCE_SEEDS=100000 cargo test --release -p onlyonce-gateway --test sim -- no_seed --nocapture
//! ONLYONCE_SEED=7 cargo test -p onlyonce-gateway --test sim -- no_seed --nocapture           # what happened in one
//! ```
//!
//! `ONLYONCE_ANSWERS` says how many answers of any bytes are given (`answers`). `ONLYONCE_SECONDS` ends a run early. The line that begins with `{` says how far it came and what it met.

// In a test, an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

mod answers;
mod client;
mod cuts;
mod gate;
mod gateway;
mod judge;
mod noted;
mod operator;
mod panics;
mod pipe;
#[path = "../../../core/tests/model/random.rs"]
mod random;
mod seed;
mod seeds;
mod store;
mod upstream;
mod wire;
mod world;
