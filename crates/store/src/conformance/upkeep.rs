//! Removal, expiry, overdue leases, and what a store says of itself.

use std::{collections::BTreeSet, time::Duration};

use onlyonce_core::{Address, ReleaseReason, UnknownReason};

use super::{
    Subject,
    bench::{Bench, LEASE, MILLISECOND, WINDOW, claim_write, noise},
};
use crate::{Store, StoreError, clock::ManualClock};

async fn overdue<S: Subject>(bench: &Bench<S>, limit: usize) -> Vec<Address> {
    let overdue = bench.store.overdue(limit).await.expect("an answer");
    for (address, record) in &overdue {
        let stored = bench.load(*address).await.expect("it is held");
        assert_eq!(*stored.record, *record);
    }
    overdue.into_iter().map(|(address, _)| address).collect()
}

/// A removal is fenced like every write (I9).
pub async fn a_record_is_removed_under_its_fence_only<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let first = bench.claimed("k").await;
    let kept = bench.renewed(&first).await;
    let other = bench.claimed("other").await;
    for fence in [first.fence(), other.fence()] {
        let removed = bench.store.remove(kept.address, fence).await;
        assert!(!removed.expect("an answer"));
        bench.assert_holds(&kept).await;
    }
    let remove = || bench.store.remove(kept.address, kept.fence());
    assert!(remove().await.expect("an answer"));
    assert!(bench.load(kept.address).await.is_none());
    assert!(!remove().await.expect("an answer"), "it is gone already");
    bench.assert_holds(&other).await;
}

/// After a removal the key is new, and its recording is gone.
pub async fn a_removed_key_is_free<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let kept = bench.finished("k").await;
    let removed = bench.store.remove(kept.address, kept.fence()).await;
    assert!(removed.expect("an answer"));
    assert!(bench.read(&kept, 0).await.is_err());
    let next = bench.assert_free("k").await;
    assert!(bench.read(&next, 0).await.is_err());
    assert_eq!(bench.load(next.address).await.expect("held").attempts, 1);
}

/// A sweep takes what does not count, and touches nothing else (L7).
pub async fn a_sweep_drops_what_has_expired_and_no_more<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let running = bench.claimed("running").await;
    let claimed = bench.claimed("unknown").await;
    let unknown = bench.lost(&claimed, UnknownReason::Broke).await;
    let mut old = Vec::new();
    for number in 0..10 {
        old.push(bench.finished(&format!("old{number}")).await);
    }
    let claimed = bench.claimed("released").await;
    old.push(bench.released(&claimed, ReleaseReason::NotSent).await);
    bench.clock.advance(WINDOW - MILLISECOND);
    let claimed = bench.claimed("young").await;
    let body = [noise(1, 1_000), noise(2, 1_000)];
    let young = bench.completed(&claimed, &body).await;
    bench.clock.advance(MILLISECOND);

    bench.store.sweep().await.expect("a sweep");
    for kept in &old {
        assert!(bench.load(kept.address).await.is_none());
        assert!(bench.read(kept, 0).await.is_err());
        let found = bench.store.find(kept.id()).await.expect("an answer");
        assert_eq!(found, None);
    }
    for kept in [&running, &unknown, &young] {
        bench.assert_holds(kept).await;
        let found = bench.store.find(kept.id()).await.expect("an answer");
        assert_eq!(found, Some(kept.address));
    }
    assert_eq!(bench.store.status().records, 3);
    for (number, chunk) in body.iter().enumerate() {
        assert_eq!(
            bench.read(&young, number as u32).await.expect("kept"),
            chunk
        );
    }
    let again = bench.store.sweep().await.expect("a sweep");
    assert_eq!(again.records, 0, "nothing is swept twice");
}

/// Whether the sweep came before or after the next claim makes no difference.
pub async fn a_key_is_claimed_again_before_and_after_a_sweep<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    bench.finished("before").await;
    bench.finished("after").await;
    bench.clock.advance(WINDOW);
    let before = bench.claimed("before").await;
    bench.append(&before, 0, noise(1, 10)).await;
    bench.store.sweep().await.expect("a sweep");
    let after = bench.claimed("after").await;
    bench.append(&after, 0, noise(2, 10)).await;
    for (kept, seed) in [(before, 1), (after, 2)] {
        bench.assert_holds(&kept).await;
        assert_eq!(
            bench.read(&kept, 0).await.expect("chunk 0"),
            noise(seed, 10)
        );
    }
}

/// A lease is believed to its last millisecond, and a renewal starts it anew (L3).
pub async fn overdue_begins_where_the_lease_ends<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let first = bench.claimed("first").await;
    let second = bench.claimed("second").await;
    bench.finished("completed").await;
    let claimed = bench.claimed("unknown").await;
    bench.lost(&claimed, UnknownReason::Broke).await;

    bench.clock.advance(LEASE - MILLISECOND);
    assert_eq!(overdue(&bench, 10).await, []);
    let second = bench.renewed(&second).await;
    bench.clock.advance(MILLISECOND);
    assert_eq!(overdue(&bench, 10).await, [first.address]);
    bench.clock.advance(LEASE);
    let both = BTreeSet::from([first.address, second.address]);
    assert_eq!(BTreeSet::from_iter(overdue(&bench, 10).await), both);
    bench.lost(&first, UnknownReason::LeasePassed).await;
    bench.lost(&second, UnknownReason::LeasePassed).await;
    assert_eq!(overdue(&bench, 10).await, []);
}

/// No answer is longer than it was asked to be.
pub async fn overdue_is_cut_at_its_limit<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    for number in 0..10 {
        bench.claimed(&format!("k{number}")).await;
    }
    bench.clock.advance(LEASE);
    assert_eq!(overdue(&bench, 3).await.len(), 3);
    assert_eq!(overdue(&bench, 100).await.len(), 10);
}

/// What metrics and limits are taken from.
pub async fn the_status_counts_records_and_writes<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let before = bench.store.status();
    assert_eq!((before.records, before.poisoned), (0, None));
    for number in 0..5 {
        let claimed = bench.claimed(&format!("k{number}")).await;
        bench.completed(&claimed, &[noise(number, 10_000)]).await;
    }
    let after = bench.store.status();
    assert_eq!(after.records, 5);
    assert!(
        after.bytes >= before.bytes + 50_000,
        "{} bytes",
        after.bytes
    );
    assert!(after.commits > before.commits);
    assert!(after.committed_writes >= before.committed_writes + 10);
    assert_eq!(after.commits_by_time.iter().sum::<u64>(), after.commits);
    assert_eq!(after.commits_by_size.iter().sum::<u64>(), after.commits);
    assert!(after.commit_time >= after.latest_commit);
}

/// The store's clock is injected, and nothing else tells it the time.
pub async fn the_clock_is_the_one_given<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    assert_eq!(bench.store.now(), bench.now());
    let span = Duration::from_secs(12_345);
    let before = bench.now();
    bench.clock.advance(span);
    assert_eq!(bench.store.now(), before.after(span));
}

/// Two stores do not share addresses, nor fingerprints.
pub async fn stores_have_secrets_of_their_own<S: Subject>(mut subject: S) {
    let one = subject.make(ManualClock::default()).await;
    let other = subject.make(ManualClock::default()).await;
    assert_ne!(one.secret(), other.secret());
}

/// Once closed, a store says so to every writer.
pub async fn a_closed_store_takes_no_write<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let kept = bench.claimed("k").await;
    let write = claim_write(&bench.first_claim("other"));
    bench.store.close().await.expect("it closes");
    let swap = bench.swap(bench.address("other"), None, write).await;
    assert!(
        matches!(swap, Err(StoreError::Unavailable(_))),
        "{swap:?}, and it was closed"
    );
    let append = bench
        .store
        .append(kept.address, kept.recording(), 0, "late".into());
    assert!(append.await.is_err());
    assert!(
        bench
            .store
            .remove(kept.address, kept.fence())
            .await
            .is_err()
    );
}
