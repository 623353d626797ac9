//! How long durable commits took and how many writes shared one, counted without a lock.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::Status;

const fn micros(micros: u64) -> Duration {
    Duration::from_micros(micros)
}

/// What the times of commits are told apart by. From 0.1 ms, which a sync of a fast local disk takes,
/// over the milliseconds of a server in the same network, to seconds, where something is wrong.
pub const COMMIT_TIMES: [Duration; 15] = [
    micros(100),
    micros(250),
    micros(500),
    micros(1_000),
    micros(2_500),
    micros(5_000),
    micros(10_000),
    micros(25_000),
    micros(50_000),
    micros(100_000),
    micros(250_000),
    micros(500_000),
    micros(1_000_000),
    micros(2_500_000),
    micros(5_000_000),
];

/// What the sizes of commits are told apart by. Doubling: it is of interest how many requests share a
/// commit by order of magnitude, and 1,024 is about as many as wait at once.
pub const GROUP_SIZES: [u64; 11] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024];

/// The commits of one store.
#[derive(Debug, Default)]
pub(crate) struct Commits {
    count: AtomicU64,
    writes: AtomicU64,
    nanos: AtomicU64,
    latest_nanos: AtomicU64,
    by_time: [AtomicU64; COMMIT_TIMES.len() + 1],
    by_size: [AtomicU64; GROUP_SIZES.len() + 1],
}

impl Commits {
    /// A commit took `took` from its first write to durable, and carried `writes` writes.
    pub(crate) fn note(&self, writes: u64, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.count.fetch_add(1, Relaxed);
        self.writes.fetch_add(writes, Relaxed);
        self.nanos.fetch_add(nanos, Relaxed);
        self.latest_nanos.store(nanos, Relaxed);
        self.by_time[COMMIT_TIMES.partition_point(|bound| *bound < took)].fetch_add(1, Relaxed);
        self.by_size[GROUP_SIZES.partition_point(|bound| *bound < writes)].fetch_add(1, Relaxed);
    }

    /// What they were so far, as a status of which nothing else is known.
    pub(crate) fn status(&self) -> Status {
        Status {
            commits: self.count.load(Relaxed),
            committed_writes: self.writes.load(Relaxed),
            latest_commit: Duration::from_nanos(self.latest_nanos.load(Relaxed)),
            commit_time: Duration::from_nanos(self.nanos.load(Relaxed)),
            commits_by_time: self.by_time.each_ref().map(|count| count.load(Relaxed)),
            commits_by_size: self.by_size.each_ref().map(|count| count.load(Relaxed)),
            ..Status::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_counts_at_the_first_bound_that_it_is_not_above() {
        let commits = Commits::default();
        for (writes, micros) in [(1, 100), (2, 101), (3, 5_000_000), (5_000, 5_000_001)] {
            commits.note(writes, Duration::from_micros(micros));
        }
        let status = commits.status();
        assert_eq!((status.commits, status.committed_writes), (4, 5_006));
        assert_eq!(status.commit_time, Duration::from_micros(10_000_202));
        assert_eq!(status.latest_commit, Duration::from_micros(5_000_001));
        let times = status.commits_by_time;
        assert_eq!((times[0], times[1], times[14], times[15]), (1, 1, 1, 1));
        let sizes = status.commits_by_size;
        assert_eq!((sizes[0], sizes[1], sizes[2], sizes[11]), (1, 1, 1, 1));
        assert_eq!(sizes.iter().sum::<u64>(), 4);
    }
}
