//! The server's clock, as it is seen from here.
//!
//! Each look at it gives a lower bound: the server read its clock before its answer arrived. Between
//! the looks the monotonic clock moves it on. So a gateway's idea of the time is never ahead of the
//! server's, and behind it by less than a round trip; all gateways agree within that, whatever their
//! own wall clocks say (I11).

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicI64, AtomicU64, Ordering},
    time::Instant,
};

use onlyonce_core::Timestamp;
use parking_lot::Mutex;

/// How many looks are remembered: the best of them counts, until the clocks have drifted apart.
const LOOKS: usize = 30;

/// The server's clock.
pub struct ServerClock {
    started: Instant,
    looks: Mutex<VecDeque<i64>>,
    /// What is to be added to the milliseconds since `started`.
    offset: AtomicI64,
    /// The latest moment that was told: it never runs backwards.
    latest: AtomicU64,
}

impl ServerClock {
    /// A clock for a server that said just now that it was `server_millis`.
    pub fn new(server_millis: i64) -> Self {
        let clock = Self {
            started: Instant::now(),
            looks: Mutex::default(),
            offset: AtomicI64::new(0),
            latest: AtomicU64::new(0),
        };
        clock.look(server_millis);
        clock
    }

    /// The server said just now that it was `server_millis`.
    pub fn look(&self, server_millis: i64) {
        let offset = server_millis.saturating_sub(self.elapsed());
        let mut looks = self.looks.lock();
        looks.push_back(offset);
        if looks.len() > LOOKS {
            looks.pop_front();
        }
        let best = looks.iter().max().copied().unwrap_or(offset);
        self.offset.store(best, Ordering::Relaxed);
    }

    /// The present moment.
    pub fn now(&self) -> Timestamp {
        let now = self
            .offset
            .load(Ordering::Relaxed)
            .saturating_add(self.elapsed());
        let now = u64::try_from(now).unwrap_or(0);
        let latest = self.latest.fetch_max(now, Ordering::Relaxed);
        Timestamp::from_millis(now.max(latest))
    }

    fn elapsed(&self) -> i64 {
        i64::try_from(self.started.elapsed().as_millis()).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_look_counts_and_the_clock_never_runs_backwards() {
        let clock = ServerClock::new(1_000_000);
        let first = clock.now();
        assert!(first.as_millis() >= 1_000_000 && first.as_millis() < 1_010_000);
        // An answer that was long on its way says less than the one before.
        clock.look(900_000);
        assert!(clock.now() >= first);
        clock.look(2_000_000);
        assert!(clock.now().as_millis() >= 2_000_000);
        for _ in 0..2 * LOOKS {
            clock.look(1_000_000);
        }
        assert!(clock.now().as_millis() >= 2_000_000, "it ran backwards");
    }
}
