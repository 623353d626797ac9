//! What is told of a copy that lasts.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, interval_at};

/// After how long, and then how often, a stage is told of.
const PATIENCE: Duration = Duration::from_secs(2);

/// How far a stage came.
#[derive(Default)]
pub(super) struct Progress {
    records: AtomicU64,
    bytes: AtomicU64,
    waiting: AtomicU64,
}

impl Progress {
    /// One more record was looked at, with so many bytes of body.
    pub(super) fn looked(&self, bytes: u64) {
        self.records.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// An operation runs and is waited for, until what is returned is dropped.
    pub(super) fn waits(&self) -> impl Drop + '_ {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waits(self)
    }

    /// Awaits a stage, and says so on standard error when it lasts.
    pub(super) async fn told<T>(&self, stage: &str, work: impl Future<Output = T>) -> T {
        self.records.store(0, Ordering::Relaxed);
        self.bytes.store(0, Ordering::Relaxed);
        let started = Instant::now();
        let mut ticks = interval_at(started + PATIENCE, PATIENCE);
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                _ = ticks.tick() => {
                    let line = self.line(stage, started.elapsed());
                    // Where nobody reads, the end tells.
                    let _ = writeln!(io::stderr(), "onlyonce: {line}");
                }
            }
        }
    }

    fn line(&self, stage: &str, elapsed: Duration) -> String {
        let [records, bytes, waiting] = [&self.records, &self.bytes, &self.waiting]
            .map(|figure| figure.load(Ordering::Relaxed));
        let seconds = elapsed.as_secs();
        let waiting = match waiting {
            0 => String::new(),
            count => format!(", {count} still running are waited for"),
        };
        format!(
            "{stage}: {records} records, {} of bodies, {seconds} s so far{waiting}",
            show_bytes(bytes)
        )
    }
}

struct Waits<'a>(&'a Progress);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Bytes for people.
pub(super) fn show_bytes(bytes: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    UNITS.iter().find(|(_, size)| bytes >= *size).map_or_else(
        || format!("{bytes} B"),
        |(unit, size)| format!("{:.1} {unit}", bytes as f64 / *size as f64),
    )
}
