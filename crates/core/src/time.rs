//! Time as the protocol sees it: milliseconds on the store's clock.

use std::time::Duration;

/// A moment on the store's clock, in milliseconds since the Unix epoch.
///
/// Only the store hands these out. A gateway's own clock never decides about a record (I11).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The moment `millis` milliseconds after the Unix epoch.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the Unix epoch.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// This moment moved later by `span`; stops at the end of representable time.
    pub fn after(self, span: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)),
        )
    }

    /// How long after `earlier` this moment is; zero when it is not after it.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_767_225_600_000);

    #[test]
    fn spans_are_counted_in_milliseconds() {
        let later = NOW.after(Duration::from_millis(1_500));
        assert_eq!(later.as_millis(), 1_767_225_601_500);
        assert_eq!(later.since(NOW), Duration::from_millis(1_500));
    }

    #[test]
    fn a_moment_before_another_is_not_after_it_by_anything() {
        assert_eq!(NOW.since(NOW.after(Duration::from_secs(1))), Duration::ZERO);
    }

    #[test]
    fn time_ends_and_does_not_wrap() {
        let end = Timestamp::from_millis(u64::MAX);
        assert_eq!(NOW.after(Duration::MAX), end);
        assert_eq!(end.after(Duration::from_millis(1)), end);
    }
}
