//! The gate of the embedded store, in every order that its threads' steps can have.
//!
//! The module is that of the store, compiled once more with loom's mutexes and atomics (`sync`).

#![allow(missing_docs)]
// The gate is written for its crate.
#![allow(unreachable_pub)]

#[path = "../../src/embedded/gate.rs"]
mod gate;
mod sync;

use std::{
    future::{Future, poll_fn},
    sync::Arc,
    task::{Context, Waker},
};

use gate::Gate;
use loom::{
    future::block_on,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
};

/// Runs `threads` in every order of their steps, with at most `preemptions` switches away from a thread
/// that could go on; `None` for any number. No thread waits for ever: loom would say so.
fn in_every_order(preemptions: Option<usize>, threads: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = preemptions;
    model.max_branches = 100_000;
    model.check(threads);
}

#[test]
fn who_waits_passes_when_all_before_it_is_durable_and_not_before() {
    in_every_order(Some(3), || {
        let gate = Gate::open_to(0);
        let synced = Arc::new([AtomicBool::new(false), AtomicBool::new(false)]);
        let waiting = [1, 2].map(|position| {
            let (gate, synced) = (gate.clone(), synced.clone());
            thread::spawn(move || {
                assert_eq!(block_on(gate.wait(position)), Ok(()));
                let synced = synced[position as usize - 1].load(Relaxed);
                assert!(synced, "passed before the sync");
            })
        });
        for position in [1, 2] {
            synced[position - 1].store(true, Relaxed);
            gate.open(position as u64);
        }
        waiting.into_iter().for_each(|one| one.join().unwrap());
    });
}

/// The commit thread wakes one waiter of a thread, and that one is to wake the others.
#[test]
fn a_waiter_that_is_dropped_hands_its_wake_up_on() {
    in_every_order(None, || {
        let gate = Gate::open_to(0);
        let other = gate.clone();
        let waiting = thread::spawn(move || {
            let mut leader = Box::pin(other.wait(1));
            let mut nobody = Context::from_waker(Waker::noop());
            let _ = leader.as_mut().poll(&mut nobody);
            let mut leader = Some(leader);
            let mut follower = Box::pin(other.wait(1));
            let passed = block_on(poll_fn(|cx| {
                let polled = follower.as_mut().poll(cx);
                leader.take();
                polled
            }));
            assert_eq!(passed, Ok(()));
        });
        gate.open(1);
        waiting.join().unwrap();
    });
}

#[test]
fn i12_a_gate_that_breaks_lets_nobody_wait() {
    in_every_order(None, || {
        let gate = Gate::open_to(1);
        let other = gate.clone();
        let waiting = thread::spawn(move || {
            assert_eq!(block_on(other.wait(1)), Ok(()));
            assert!(block_on(other.wait(2)).is_err());
        });
        gate.break_off("the disk is on fire");
        waiting.join().unwrap();
    });
}
