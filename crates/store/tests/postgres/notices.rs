//! Notice of changes, from one gateway to another.

use std::time::{Duration, Instant};

use onlyonce_store::{Seen, Store, postgres::Options};

use crate::support::{at, claim, complete, fresh_url, open};

const PATIENCE: Duration = Duration::from_secs(20);

/// Waits at `store` until the record under `key` is not as `seen`; says how long ago it was written.
async fn latency(
    store: &onlyonce_store::PostgresStore,
    key: &str,
    seen: Seen,
    mut written: tokio::sync::oneshot::Receiver<Instant>,
) -> Duration {
    loop {
        store.changed(at(store, key), seen, PATIENCE).await;
        if let Ok(written) = written.try_recv() {
            return written.elapsed();
        }
        let stored = store.load(at(store, key)).await.expect("a readable record");
        let fence = stored.map(|stored| stored.record.fence());
        if fence != seen.fence {
            return written
                .await
                .map_or(Duration::ZERO, |written| written.elapsed());
        }
    }
}

/// What one gateway records, another hears of within 50 ms, 99 times of 100.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn notices_arrive_in_time() {
    let url = fresh_url();
    let writer = open(&url, Options::default()).await;
    let reader = open(&url, Options::default()).await;
    // Once notices are known to arrive, a wait takes as long as it is let.
    let listens = async {
        let record = claim(&writer, "first").await;
        let seen = Seen {
            fence: Some(record.fence()),
            chunks: 0,
        };
        loop {
            let started = Instant::now();
            let wait = Duration::from_millis(300);
            reader.changed(at(&reader, "first"), seen, wait).await;
            if started.elapsed() >= wait {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, listens)
        .await
        .expect("it listens");

    let mut latencies = Vec::new();
    for round in 0..100 {
        let key = format!("k{round}");
        let record = claim(&writer, &key).await;
        let seen = Seen {
            fence: Some(record.fence()),
            chunks: 0,
        };
        let (told, written) = tokio::sync::oneshot::channel();
        let (reader, waiting_key) = (reader.clone(), key.clone());
        let waiting =
            tokio::spawn(async move { latency(&reader, &waiting_key, seen, written).await });
        // Some waiters are there first, and some come later.
        for _ in 0..round % 10 {
            tokio::task::yield_now().await;
        }
        if round % 2 == 0 {
            let append = writer.append(at(&writer, &key), record.recording(), 0, "x".into());
            append.await.expect("it runs");
        } else {
            complete(&writer, &key, &record, &"x".into()).await;
        }
        let _ = told.send(Instant::now());
        latencies.push(waiting.await.expect("a waiter"));
    }
    latencies.sort_unstable();
    let p99 = latencies[98];
    println!("notices: p50 {:?}, p99 {p99:?}", latencies[49]);
    assert!(p99 < Duration::from_millis(50), "{latencies:?}");
}
