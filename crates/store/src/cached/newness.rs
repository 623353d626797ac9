//! A guess whether the next key is new.

use std::sync::atomic::{AtomicU32, Ordering};

const WHOLE: u32 = 1 << 16;
/// How many of the latest answers weigh.
const LATEST: u32 = 16;

/// How many of the keys that a store was last asked about were new.
#[derive(Debug)]
pub(super) struct Newness(AtomicU32);

impl Default for Newness {
    fn default() -> Self {
        Self(AtomicU32::new(WHOLE))
    }
}

impl Newness {
    /// Learns from one answer. One that another thread overwrites is no loss.
    pub(super) fn learn(&self, is_new: bool) {
        let share = self.0.load(Ordering::Relaxed);
        let answer = if is_new { WHOLE / LATEST } else { 0 };
        self.0
            .store(share - share / LATEST + answer, Ordering::Relaxed);
    }

    /// Whether more than half were new.
    pub(super) fn prevails(&self) -> bool {
        self.0.load(Ordering::Relaxed) > WHOLE / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_last_is_what_is_expected() {
        let newness = Newness::default();
        assert!(newness.prevails(), "at the start");
        for _ in 0..LATEST {
            newness.learn(false);
        }
        assert!(!newness.prevails(), "after retries alone");
        for _ in 0..LATEST {
            newness.learn(true);
        }
        assert!(newness.prevails(), "after new keys alone");
        for at in 0..1_000 {
            newness.learn(at % 4 != 0);
        }
        assert!(newness.prevails(), "with a retry now and then");
    }
}
