//! Which partition a row belongs to: by the moment at which it expires.
//!
//! A partition is given back when the last record in it has expired. Short windows get short periods,
//! so that space comes back soon, and long ones get long periods, so that there are few partitions.

use std::time::Duration;

use onlyonce_core::Timestamp;

const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;

/// How long the periods are, in milliseconds, for windows up to how long.
const CLASSES: [(u64, u64); 3] = [
    (6 * HOUR, 2 * DAY),
    (2 * DAY, 16 * DAY),
    (16 * DAY, u64::MAX),
];
/// Numbers of one class: enough for the years to come.
const NUMBERS: u64 = 100_000_000;

/// A span of time, and the partitions of what expires in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Period(i32);

impl Period {
    /// The period of what expires at `until`, as seen from `now`.
    ///
    /// What has expired already belongs to the present: its own period may be gone.
    pub fn of(now: Timestamp, until: Timestamp) -> Self {
        let until = until.max(now);
        let window = millis(until.since(now));
        let class = CLASSES
            .iter()
            .position(|&(_, longest)| window <= longest)
            .unwrap_or(CLASSES.len() - 1);
        let number = (until.as_millis() / CLASSES[class].0).min(NUMBERS - 1);
        Self((class as u64 * NUMBERS + number) as i32)
    }

    /// The period after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The number under which the server knows it.
    pub const fn number(self) -> i32 {
        self.0
    }

    /// The period with this number.
    pub const fn from_number(number: i32) -> Self {
        Self(number)
    }

    /// When it is over.
    pub fn ends_at(self) -> Timestamp {
        let (class, number) = (self.0 as u64 / NUMBERS, self.0 as u64 % NUMBERS);
        let width = CLASSES.get(class as usize).map_or(DAY, |&(width, _)| width);
        Timestamp::from_millis((number + 1) * width)
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_767_225_600_000);

    #[test]
    fn a_period_ends_after_all_that_expires_in_it() {
        for window in [0, 1, HOUR, DAY, 2 * DAY, 3 * DAY, 30 * DAY, 3_650 * DAY] {
            let until = NOW.after(Duration::from_millis(window));
            let period = Period::of(NOW, until);
            let slack = period.ends_at().since(until);
            assert!(period.ends_at() > until, "{window}");
            assert!(slack <= Duration::from_millis((window / 4).max(16 * DAY)));
            assert_eq!(Period::from_number(period.number()), period);
        }
    }

    #[test]
    fn what_has_expired_belongs_to_the_present() {
        let past = Timestamp::from_millis(NOW.as_millis() - 100 * DAY);
        assert_eq!(Period::of(NOW, past), Period::of(NOW, NOW));
    }

    #[test]
    fn a_day_s_window_takes_few_partitions() {
        let period = |hours| {
            Period::of(
                NOW.after(Duration::from_millis(hours * HOUR)),
                NOW.after(Duration::from_millis(hours * HOUR + DAY)),
            )
        };
        let mut periods: Vec<_> = (0..24).map(period).collect();
        periods.dedup();
        assert!(periods.len() <= 5, "{periods:?}");
    }
}
