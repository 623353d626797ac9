//! The store's clock: the only one that decides about records (I11).
//!
//! ```
//! use std::time::Duration;
//! use onlyonce_store::clock::{Clock, ManualClock};
//!
//! let clock = ManualClock::default();
//! let before = clock.now();
//! clock.advance(Duration::from_secs(5));
//! assert_eq!(clock.now().since(before), Duration::from_secs(5));
//! ```

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use onlyonce_core::Timestamp;

/// A clock that never runs backwards.
pub trait Clock: Send + Sync + 'static {
    /// The present moment.
    fn now(&self) -> Timestamp;
}

impl<C: Clock + ?Sized> Clock for Arc<C> {
    fn now(&self) -> Timestamp {
        (**self).now()
    }
}

/// The wall clock as it stood at the start, moved on by the monotonic clock since.
///
/// A jump of the wall clock while the process runs does not move it (I11).
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    started_at: Timestamp,
    started: Instant,
}

impl SystemClock {
    /// A clock that starts at the present wall time.
    pub fn new() -> Self {
        Self::not_before(Timestamp::default())
    }

    /// A clock that starts at the present wall time, or at `floor` where the wall clock stands
    /// before it: what a store has already written is never in the future, even if the wall clock
    /// was put back between two lives of it.
    pub fn not_before(floor: Timestamp) -> Self {
        let wall = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            started_at: Timestamp::default().after(wall).max(floor),
            started: Instant::now(),
        }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        self.started_at.after(self.started.elapsed())
    }
}

/// A clock that moves only when told to. Its clones are one clock.
#[derive(Clone, Debug)]
pub struct ManualClock(Arc<AtomicU64>);

impl ManualClock {
    /// A clock that stands at `start`.
    pub fn at(start: Timestamp) -> Self {
        Self(Arc::new(AtomicU64::new(start.as_millis())))
    }

    /// Moves the clock on by `span`, of which whole milliseconds count.
    pub fn advance(&self, span: Duration) {
        let millis = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        self.0.fetch_add(millis, Ordering::SeqCst);
    }
}

impl Default for ManualClock {
    /// A clock that stands at the start of the year 2026.
    fn default() -> Self {
        Self::at(Timestamp::from_millis(1_767_225_600_000))
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.0.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_clock_starts_at_wall_time_and_does_not_run_backwards() {
        let wall = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .expect("after 1970");
        let clock = SystemClock::new();
        let mut last = clock.now();
        assert!(last.since(Timestamp::default().after(wall)) < Duration::from_secs(60));
        for _ in 0..1_000 {
            let now = clock.now();
            assert!(now >= last);
            last = now;
        }
    }

    #[test]
    fn hostile_095_a_wall_clock_that_was_put_back_does_not_put_the_store_back() {
        let floor = SystemClock::new()
            .now()
            .after(Duration::from_secs(30 * 86_400));
        assert!(SystemClock::not_before(floor).now() >= floor);
    }

    #[test]
    fn clones_of_a_manual_clock_are_one_clock() {
        let clock = ManualClock::at(Timestamp::from_millis(10));
        let clone = clock.clone();
        clock.advance(Duration::from_millis(5));
        assert_eq!(clone.now(), Timestamp::from_millis(15));
    }
}
