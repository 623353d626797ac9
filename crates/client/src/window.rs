//! How long a key may still be sent.

use std::time::{Duration, SystemTime};

use crate::keys::Taken;

/// What the server's clock, the way to the server and a slow attempt may take away from the window; a
/// tenth of the window where that is less.
const MARGIN: Duration = Duration::from_secs(60);

/// The time in which a kept key may be sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    /// The latest moment that is known to be past.
    past: SystemTime,
    /// When the server may forget the key.
    pub(crate) ends_at: SystemTime,
    margin: Duration,
}

/// Why a key is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Closed {
    /// The window is over, or so near its end that nobody can be sure.
    Over,
    /// The clock stands before a moment that is past, so nobody can tell.
    ClockWentBack {
        /// That moment.
        past: SystemTime,
    },
}

impl Window {
    /// That of `taken`: until the server's own word, or for `length` from when the key was made.
    pub(crate) fn of(taken: &Taken, length: Duration) -> Self {
        let made_at = taken.entry.made_at;
        let told = taken.note.as_ref().and_then(|note| note.expires_at);
        // What cannot be reckoned is over.
        let ends_at = told.or(made_at.checked_add(length)).unwrap_or(made_at);
        let length = ends_at.duration_since(made_at).unwrap_or_default();
        let noted_at = taken.note.as_ref().map_or(made_at, |note| note.at);
        Self {
            past: made_at.max(noted_at),
            ends_at,
            margin: MARGIN.min(length / 10),
        }
    }

    /// The last moment at which the key is sent.
    pub(crate) fn last(&self) -> SystemTime {
        // The margin is a part of the window, so there is such a moment.
        self.ends_at
            .checked_sub(self.margin)
            .unwrap_or(self.ends_at)
    }

    /// What is left of it at `now`, less the margin.
    pub(crate) fn left(&self, now: SystemTime) -> Result<Duration, Closed> {
        // Clocks are put right by small steps all the time.
        let is_back = |ahead| ahead > self.margin;
        if self.past.duration_since(now).is_ok_and(is_back) {
            return Err(Closed::ClockWentBack { past: self.past });
        }
        let now = now.max(self.past);
        let left = self.ends_at.duration_since(now).unwrap_or_default();
        match left.saturating_sub(self.margin) {
            Duration::ZERO => Err(Closed::Over),
            left => Ok(left),
        }
    }
}

#[cfg(test)]
mod tests {
    use onlyonce_core::{Fingerprint, Key};

    use super::*;
    use crate::keys::{Entry, Note, Said};

    const HOUR: Duration = Duration::from_secs(3600);
    const MINUTE: Duration = Duration::from_secs(60);
    const MILLI: Duration = Duration::from_millis(1);

    fn made_at() -> SystemTime {
        SystemTime::UNIX_EPOCH + 500_000 * HOUR
    }

    fn taken(expires_at: Option<SystemTime>) -> Taken {
        Taken {
            entry: Entry {
                key: Key::new("k").unwrap(),
                fingerprint: Fingerprint::from_bytes([0; 32]),
                made_at: made_at(),
            },
            is_new: false,
            note: expires_at.map(|end| Note {
                at: made_at() + MINUTE,
                said: Said::Unknown,
                expires_at: Some(end),
            }),
        }
    }

    #[test]
    fn hostile_081_one_ms_before_at_and_after_the_end_less_the_margin() {
        let window = Window::of(&taken(None), 24 * HOUR);
        let last = made_at() + 24 * HOUR - MINUTE;
        assert_eq!(window.left(last - MILLI), Ok(MILLI));
        assert_eq!(window.left(last), Err(Closed::Over));
        assert_eq!(window.left(last + MILLI), Err(Closed::Over));
    }

    #[test]
    fn the_servers_word_counts_for_more_than_the_configured_window() {
        let later = Window::of(&taken(Some(made_at() + 30 * HOUR)), 24 * HOUR);
        assert_eq!(later.left(made_at() + 29 * HOUR), Ok(HOUR - MINUTE));
        let earlier = Window::of(&taken(Some(made_at() + HOUR)), 24 * HOUR);
        assert_eq!(earlier.left(made_at() + HOUR), Err(Closed::Over));
    }

    #[test]
    fn hostile_095_a_clock_that_jumps_30_days_either_way_sends_nothing() {
        let window = Window::of(&taken(None), 24 * HOUR);
        let days = 30 * 24 * HOUR;
        assert_eq!(window.left(made_at() + days), Err(Closed::Over));
        let past = made_at();
        assert_eq!(
            window.left(past - days),
            Err(Closed::ClockWentBack { past })
        );
        let noted = Window::of(&taken(Some(made_at() + days)), 24 * HOUR);
        let past = made_at() + MINUTE;
        assert_eq!(noted.left(past - HOUR), Err(Closed::ClockWentBack { past }));
    }

    #[test]
    fn a_clock_that_is_put_right_by_a_little_stops_nothing() {
        let window = Window::of(&taken(None), 24 * HOUR);
        assert_eq!(window.left(made_at() - MINUTE), Ok(24 * HOUR - MINUTE));
    }

    #[test]
    fn a_short_window_keeps_nine_tenths_and_one_beyond_time_is_over() {
        let short = Window::of(&taken(None), MINUTE);
        assert_eq!(short.left(made_at()), Ok(Duration::from_secs(54)));
        let never = Window::of(&taken(None), Duration::ZERO);
        assert_eq!(never.left(made_at()), Err(Closed::Over));
        let endless = Window::of(&taken(None), Duration::MAX);
        assert_eq!(endless.left(made_at()), Err(Closed::Over));
    }
}
