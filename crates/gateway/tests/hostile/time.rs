//! Reading the times that the gateway writes.

use std::time::{Duration, SystemTime};

/// The time that an RFC 3339 text in UTC names, with or without a fraction.
pub fn time_of(text: &str) -> SystemTime {
    let number = |from: usize, to: usize| -> i64 {
        text[from..to]
            .parse()
            .unwrap_or_else(|_| panic!("no time: {text:?}"))
    };
    assert!(text.ends_with('Z'), "not in UTC: {text:?}");
    let (year, month, day) = (number(0, 4), number(5, 7), number(8, 10));
    // Days from the civil date: years that start in March put the leap day last.
    let (y, m) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468;
    let seconds = days * 86_400 + number(11, 13) * 3600 + number(14, 16) * 60 + number(17, 19);
    let fraction: f64 = text[19..text.len() - 1].parse().unwrap_or(0.0);
    let whole = u64::try_from(seconds).expect("a time after 1970");
    SystemTime::UNIX_EPOCH + Duration::from_secs(whole) + Duration::from_secs_f64(fraction)
}

#[test]
fn times_are_read() {
    let at = |text: &str| {
        time_of(text)
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
    };
    assert_eq!(at("1970-01-01T00:00:00Z"), Duration::ZERO);
    assert_eq!(at("2000-02-29T12:00:00Z"), Duration::from_secs(951_825_600));
    assert_eq!(
        at("2026-11-25T02:00:00.250Z"),
        Duration::from_millis(1_795_572_000_250)
    );
}
