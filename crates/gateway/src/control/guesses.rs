//! How often wrong tokens come from where.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Wrong tokens that one address may present in a minute.
const ALLOWED: u32 = 10;
const MINUTE: Duration = Duration::from_secs(60);
/// Addresses that are remembered.
const REMEMBERED: usize = 10_000;

/// Counts wrong tokens by the address that they come from.
#[derive(Debug, Default)]
pub(super) struct Guesses(Mutex<HashMap<Option<IpAddr>, (Instant, u32)>>);

impl Guesses {
    /// Whether `peer` may try another one.
    pub(super) fn may(&self, peer: Option<IpAddr>) -> bool {
        let counts = self.0.lock();
        !counts
            .get(&peer)
            .is_some_and(|(since, count)| since.elapsed() < MINUTE && *count >= ALLOWED)
    }

    /// Notes a wrong one of `peer`; whether there were few of them so far.
    pub(super) fn failed(&self, peer: Option<IpAddr>) -> bool {
        let mut counts = self.0.lock();
        if counts.len() >= REMEMBERED {
            counts.retain(|_, (since, _)| since.elapsed() < MINUTE);
        }
        if counts.len() >= REMEMBERED {
            counts.clear();
        }
        let (since, count) = counts.entry(peer).or_insert((Instant::now(), 0));
        if since.elapsed() >= MINUTE {
            (*since, *count) = (Instant::now(), 0);
        }
        *count = count.saturating_add(1);
        *count <= ALLOWED
    }
}
