//! Waiting for things without guessing how long they take.

use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::PATIENCE;

/// A switch that is thrown once and that any number of threads wait for.
#[derive(Clone, Default)]
pub struct Signal(Arc<(Mutex<bool>, Condvar)>);

impl Signal {
    /// A switch that nobody has thrown.
    pub fn new() -> Self {
        Self::default()
    }

    /// Throws the switch: everyone who waits, and will wait, goes on.
    pub fn fire(&self) {
        let (thrown, changed) = &*self.0;
        *thrown.lock().expect("the lock of a signal") = true;
        changed.notify_all();
    }

    /// Whether the switch was thrown.
    pub fn fired(&self) -> bool {
        *self.0.0.lock().expect("the lock of a signal")
    }

    /// Waits for the switch; panics when it is not thrown within [`PATIENCE`].
    pub fn wait(&self) {
        assert!(self.wait_at_most(PATIENCE), "a signal was never fired");
    }

    /// Waits for the switch, at most this long; says whether it was thrown.
    pub fn wait_at_most(&self, limit: Duration) -> bool {
        let (thrown, changed) = &*self.0;
        let thrown = thrown.lock().expect("the lock of a signal");
        let (thrown, _) = changed
            .wait_timeout_while(thrown, limit, |thrown| !*thrown)
            .expect("the lock of a signal");
        *thrown
    }
}

/// Polls until the condition holds; panics with `what` when it does not within [`PATIENCE`].
#[track_caller]
pub fn eventually(what: &str, condition: impl FnMut() -> bool) {
    eventually_within(PATIENCE, what, condition);
}

/// As [`eventually`], with a limit of its own.
#[track_caller]
pub fn eventually_within(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        thread::sleep(Duration::from_millis(3));
    }
}
