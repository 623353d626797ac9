//! A budget of retries that all calls of a client share.

use std::sync::{Mutex, PoisonError};

/// Retries that may fail before a client stops making any.
///
/// It begins full. A retry takes one out; an answer that needs no further attempt puts back what its own
/// last retry took, or a tenth where it was the first attempt. So retries that help are free, and in an
/// outage each client soon sends one attempt for each call instead of six.
#[derive(Debug)]
pub struct Budget {
    most: u32,
    /// In tenths.
    left: Mutex<u32>,
}

const RETRY: u32 = 10;
const FIRST_ATTEMPT: u32 = 1;

impl Budget {
    /// A budget of `retries`. 100 unless a client is built with another.
    pub const fn new(retries: u32) -> Self {
        let most = retries.saturating_mul(RETRY);
        Self {
            most,
            left: Mutex::new(most),
        }
    }

    /// Takes a retry out, where there is one.
    pub(crate) fn take(&self) -> bool {
        let mut left = self.lock();
        let after = left.checked_sub(RETRY);
        *left = after.unwrap_or(*left);
        after.is_some()
    }

    /// An attempt was answered; `was_retry` says that it was taken out for.
    pub(crate) fn answered(&self, was_retry: bool) {
        let mut left = self.lock();
        let back = if was_retry { RETRY } else { FIRST_ATTEMPT };
        *left = left.saturating_add(back).min(self.most);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, u32> {
        // A number is whole whoever panicked beside it.
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self::new(100)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_that_help_are_free_and_those_that_do_not_run_out() {
        let budget = Budget::new(2);
        for _ in 0..100 {
            assert!(budget.take());
            budget.answered(true);
        }
        assert!(budget.take());
        assert!(budget.take());
        assert!(!budget.take());
        for _ in 0..9 {
            budget.answered(false);
            assert!(!budget.take());
        }
        budget.answered(false);
        assert!(budget.take());
        assert!(!budget.take());
    }

    #[test]
    fn it_holds_no_more_than_it_began_with() {
        let budget = Budget::new(1);
        for _ in 0..100 {
            budget.answered(false);
        }
        assert!(budget.take());
        assert!(!budget.take());
        assert!(!Budget::new(0).take());
    }
}
