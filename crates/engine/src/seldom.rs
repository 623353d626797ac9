//! Lines of the log that would come with every request while something is down.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// At most one line in this time.
const PAUSE: Duration = Duration::from_secs(10);

/// Says when it is time for a line again: at once, and then every 10 seconds.
#[derive(Debug, Default)]
pub struct Seldom(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    spoken: Option<Instant>,
    held_back: u64,
}

impl Seldom {
    /// The number of lines that were held back since the last one, where it is time for one at `now`;
    /// otherwise this one is held back too.
    pub fn turn(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock();
        let is_soon = |spoken| now.saturating_duration_since(spoken) < PAUSE;
        if state.spoken.is_some_and(is_soon) {
            state.held_back += 1;
            return None;
        }
        state.spoken = Some(now);
        Some(std::mem::take(&mut state.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_comes_at_once_and_the_next_after_a_pause() {
        let seldom = Seldom::default();
        let start = Instant::now();
        assert_eq!(seldom.turn(start), Some(0));
        for _ in 0..3 {
            assert_eq!(seldom.turn(start + PAUSE / 2), None);
        }
        assert_eq!(seldom.turn(start + PAUSE), Some(3));
        assert_eq!(seldom.turn(start + PAUSE), None);
    }
}
