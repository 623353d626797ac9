//! How deliveries to one sink go.

use onlyonce_core::Timestamp;
use parking_lot::Mutex;

/// How deliveries to one sink go, as this gateway sees it.
#[derive(Debug, Default)]
pub struct Stats(Mutex<Snapshot>);

/// The same at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Whether this gateway is the one that delivers.
    pub holds: bool,
    /// Whether the sink said that it is gone for good.
    pub paused: bool,
    /// When the oldest entry was completed that is under way.
    pub oldest: Option<Timestamp>,
    /// Entries that were read and are not noted as delivered yet.
    pub pending: u64,
    /// Entries that were taken, since the start.
    pub delivered: u64,
    /// Requests that failed and are repeated, since the start.
    pub failed: u64,
    /// Entries that were given up, since the start.
    pub buried: u64,
    /// Dead letters, as counted when the sink was taken; and those since.
    pub dead: u64,
    /// What went wrong last, and when.
    pub last_error: Option<(Timestamp, Box<str>)>,
}

impl Stats {
    /// How it goes now.
    pub fn snapshot(&self) -> Snapshot {
        self.0.lock().clone()
    }

    pub(crate) fn hold(&self) {
        self.0.lock().holds = true;
    }

    pub(crate) fn rest(&self) {
        let mut stats = self.0.lock();
        stats.holds = false;
        stats.oldest = None;
        stats.pending = 0;
    }

    pub(crate) fn pause(&self) {
        self.0.lock().paused = true;
    }

    pub(crate) fn under_way(&self, oldest: Option<Timestamp>, pending: usize) {
        let mut stats = self.0.lock();
        stats.oldest = oldest;
        stats.pending = pending as u64;
    }

    pub(crate) fn delivered(&self, entries: usize) {
        self.0.lock().delivered += entries as u64;
    }

    pub(crate) fn failed(&self, why: &str, at: Timestamp) {
        self.0.lock().failed += 1;
        self.trouble(why, at);
    }

    pub(crate) fn buried(&self, entries: usize) {
        let mut stats = self.0.lock();
        stats.buried += entries as u64;
        stats.dead += entries as u64;
    }

    /// So many letters are dead.
    pub fn dead(&self, letters: u64) {
        self.0.lock().dead = letters;
    }

    pub(crate) fn trouble(&self, why: &str, at: Timestamp) {
        self.0.lock().last_error = Some((at, why.into()));
    }
}
