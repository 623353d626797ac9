//! How long the windows are that each route gives.
//!
//! A recording is written before its window is known. So it goes to the partition in which its record
//! will probably expire, by the last window of the same route. A wrong guess costs a move later on.

use std::{collections::HashMap, time::Duration};

use onlyonce_core::{Record, State, Timestamp};
use parking_lot::RwLock;

use super::period::Period;

const DEFAULT: Duration = Duration::from_secs(86_400);
/// What an execution takes before its window begins.
const SLACK: Duration = Duration::from_secs(600);
/// More routes than this are not told apart.
const MOST_ROUTES: usize = 1_024;

/// The last window of each route.
#[derive(Default)]
pub struct Windows {
    by_route: RwLock<HashMap<Box<str>, Duration>>,
}

impl Windows {
    /// Where the recording of a claim made at `now` goes.
    pub fn guess(&self, route: &str, now: Timestamp) -> Period {
        let window = self.by_route.read().get(route).copied().unwrap_or(DEFAULT);
        Period::of(now, now.after(window).after(SLACK))
    }

    /// Remembers the window of a completed record.
    pub fn learn(&self, record: &Record) {
        let State::Completed(completed) = &record.state else {
            return;
        };
        let window = completed.expires_at.since(completed.completed_at);
        let route = &record.request.route;
        let known = self.by_route.read().get(route).copied();
        if known == Some(window) || known.is_none() && window == DEFAULT {
            return;
        }
        let mut by_route = self.by_route.write();
        if known.is_some() || by_route.len() < MOST_ROUTES {
            by_route.insert(route.clone(), window);
        }
    }

    /// Where what has no window goes that is moved at `now`.
    pub fn default_from(&self, now: Timestamp) -> Timestamp {
        now.after(DEFAULT)
    }

    /// The periods in which claims made from `now` on will expire, for a while.
    pub fn ahead(&self, now: Timestamp) -> Vec<Period> {
        let windows = self.by_route.read();
        let mut periods = Vec::new();
        for window in windows.values().chain([&DEFAULT, &Duration::ZERO]) {
            let period = Period::of(now, now.after(*window).after(SLACK));
            periods.extend([Period::of(now, now.after(*window)), period, period.next()]);
        }
        periods.sort_unstable();
        periods.dedup();
        periods
    }
}
