//! Waiting for a change.

use std::{sync::Arc, time::Duration};

use onlyonce_core::UnknownReason;
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};

use super::{
    Subject,
    bench::{Bench, Kept, noise},
};
use crate::{Seen, Store};

/// Far longer than any of it takes.
const PATIENCE: Duration = Duration::from_secs(20);

fn seen(kept: &Kept, chunks: u32) -> Seen {
    Seen {
        fence: Some(kept.fence()),
        chunks,
    }
}

/// Waits as a follower does: looks again until there is something new.
async fn wait_for_news<S: Store>(store: Arc<S>, kept: Kept, chunks: u32) {
    let waiting = async {
        loop {
            store
                .changed(kept.address, seen(&kept, chunks), PATIENCE)
                .await;
            let stored = store.load(kept.address).await.expect("a readable record");
            let fence = stored.map(|stored| stored.record.fence());
            let chunk = store.read(kept.address, kept.recording(), chunks).await;
            if fence != Some(kept.fence()) || chunk.is_ok() {
                return;
            }
        }
    };
    timeout(PATIENCE, waiting).await.expect("news");
}

/// What happened before somebody began to wait is news for him.
pub async fn a_change_before_the_wait_is_not_missed<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let kept = bench.claimed("k").await;
    bench.append(&kept, 0, noise(1, 10)).await;
    wait_for_news(bench.store.clone(), kept.clone(), 0).await;
    bench.completed(&kept, &[noise(1, 10), noise(2, 10)]).await;
    wait_for_news(bench.store.clone(), kept.clone(), 1).await;
    // Nothing was there, and something is now.
    let nothing = Seen {
        fence: None,
        chunks: 0,
    };
    let waiting = bench.store.changed(kept.address, nothing, PATIENCE);
    timeout(PATIENCE, waiting).await.expect("news");
}

/// A chunk, and the outcome, wake those who wait.
pub async fn a_change_wakes_all_who_wait<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let kept = bench.claimed("k").await;
    for (chunk, what) in [(0, "a chunk"), (1, "an outcome")] {
        let started = Instant::now();
        let mut waiters = JoinSet::new();
        for _ in 0..10 {
            waiters.spawn(wait_for_news(bench.store.clone(), kept.clone(), chunk));
        }
        tokio::task::yield_now().await;
        if chunk == 0 {
            bench.append(&kept, 0, noise(1, 10)).await;
        } else {
            bench.lost(&kept, UnknownReason::Broke).await;
        }
        waiters.join_all().await;
        assert!(started.elapsed() < PATIENCE / 2, "{what} woke nobody");
    }
}

/// A key is told of its own changes; whoever waits for another one waits on, to his own deadline.
pub async fn a_wait_ends_at_its_deadline<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let kept = bench.claimed("k").await;
    let at_most = Duration::from_millis(50);
    let waiting = bench.store.changed(kept.address, seen(&kept, 0), at_most);
    timeout(PATIENCE, waiting).await.expect("its deadline");
}
