//! Time: where it comes from, and how it is written down.

use std::time::{Duration, SystemTime};

/// Tells what time it is, by the machine's calendar: windows last longer than processes.
///
/// Waits and deadlines are counted by tokio's clock and need none.
pub trait Clock: Send + Sync + 'static {
    /// This moment.
    fn now(&self) -> SystemTime;
}

/// The machine's own clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// `moment` in RFC 3339, in UTC, to the millisecond.
pub(crate) fn text(moment: SystemTime) -> String {
    // A clock that was never set may stand before the epoch, which cannot be written.
    let moment = moment.max(SystemTime::UNIX_EPOCH);
    humantime::format_rfc3339_millis(moment).to_string()
}

/// The moment that `text` names, in RFC 3339.
pub(crate) fn parse(text: &str) -> Result<SystemTime, String> {
    humantime::parse_rfc3339(text).map_err(|error| format!("{text}: {error}"))
}

/// A span in words, to the millisecond.
pub(crate) fn span(time: Duration) -> humantime::FormattedDuration {
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    humantime::format_duration(Duration::from_millis(millis))
}
