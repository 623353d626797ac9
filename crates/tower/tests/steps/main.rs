//! Steps, functions that run once, and the completer, over a store in memory whose clock the tests move.
//!
//! What becomes of them when the process is killed is in [story.rs](../story.rs).

// In a test, an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

mod calls;
mod completing;
mod http;
mod rules;
mod world;
mod zombies;
