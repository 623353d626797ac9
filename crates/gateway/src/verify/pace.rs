//! How many requests may be sent, and when.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

/// A limit of requests a second, and of requests in all.
pub(super) struct Pace {
    every: Duration,
    next: Mutex<Instant>,
    left: AtomicU64,
}

impl Pace {
    /// At most `rate` a second, and `most` in all.
    pub(super) fn new(rate: u32, most: u64) -> Self {
        Self {
            every: Duration::from_secs(1) / rate,
            next: Mutex::new(Instant::now()),
            left: AtomicU64::new(most),
        }
    }

    /// Waits until `count` more may be sent together; `false`, at once, where no more than `kept`
    /// would be left of all.
    pub(super) async fn take(&self, count: u64, kept: u64) -> bool {
        let take = |left: u64| left.checked_sub(count).filter(|left| *left >= kept);
        let taken = self
            .left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, take);
        if taken.is_err() {
            return false;
        }
        let turn = {
            let mut next = self.next.lock();
            let turn = (*next).max(Instant::now());
            // The sum of waits is short: a run lasts a day at most.
            *next = turn + self.every * u32::try_from(count).unwrap_or(u32::MAX);
            turn
        };
        sleep_until(turn).await;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn no_more_are_sent_than_were_said_and_none_sooner() {
        let start = Instant::now();
        let pace = Pace::new(10, 25);
        for _ in 0..4 {
            assert!(pace.take(5, 5).await);
        }
        assert_eq!(start.elapsed(), Duration::from_millis(1500));
        assert!(!pace.take(1, 5).await, "what is kept is not for this");
        assert!(pace.take(5, 0).await);
        assert_eq!(start.elapsed(), Duration::from_secs(2));
        assert!(!pace.take(1, 0).await);
    }
}
