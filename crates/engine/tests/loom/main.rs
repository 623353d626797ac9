//! The recording and the registry of live operations, in every order that their threads' steps can have.
//!
//! The modules are those of the engine, compiled once more with loom's mutexes and atomics (`sync`). What
//! a writer does at the end of an execution needs a store, and is written here in the order in which
//! `writer.rs` does it: the record, the registry, the end.

#![allow(missing_docs)]
// Only what is shared between threads is used here.
#![allow(dead_code, unreachable_pub)]

use std::sync::Arc;

#[path = "../../src/live.rs"]
mod live;
#[path = "../../src/reader.rs"]
mod reader;
#[path = "../../src/recording.rs"]
mod recording;
#[path = "../../src/wakers.rs"]
mod wakers;

mod readers;
mod registry;
mod sync;
mod waiters;

pub(crate) use onlyonce_engine::{Broken, Settings, Ticket, Trouble};
pub(crate) use reader::Kind;

/// Of the engine, what a reader takes.
pub(crate) struct Shared<S> {
    pub(crate) store: Arc<S>,
    pub(crate) settings: Settings,
}

/// Runs `threads` in every order of their steps, with at most `preemptions` switches away from a thread
/// that could go on; `None` for any number. No thread waits for ever: loom would say so.
fn in_every_order(preemptions: Option<usize>, threads: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = preemptions;
    model.max_branches = 100_000;
    model.check(threads);
}
