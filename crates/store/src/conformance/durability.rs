//! What a restart keeps, and what damage may do.
//!
//! Backends without the hook of a rule pass it at once.

use onlyonce_core::{
    Fence, Got, ReleaseReason, State, StateName, UnknownReason,
    transition::{self, Resolution},
};

use super::{
    Subject,
    bench::{Bench, Kept, MILLISECOND, RETENTION, WINDOW, claim_write, complete_record, noise},
};
use crate::{Query, Store, StoreError, Write};

/// A completed operation is there again, byte for byte (I3).
pub async fn a_completed_operation_survives_a_restart<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let mut all = Vec::new();
    for number in 0..20_u64 {
        let claimed = bench.claimed(&format!("k{number}")).await;
        bench.note(&claimed, Got::Joined).await;
        let chunks: Vec<_> = (0..number % 4)
            .map(|chunk| noise(10 * number + chunk, 1 + 40_000 * chunk as usize))
            .collect();
        all.push((bench.completed(&claimed, &chunks).await, chunks));
    }
    let Some(mut bench) = bench.reopened().await else {
        return;
    };
    for _restart in 0..2 {
        for (kept, chunks) in &all {
            let stored = bench.load(kept.address).await.expect("it survives");
            assert_eq!(*stored.record, kept.record);
            assert_eq!(stored.last_chunk.as_ref(), chunks.last());
            assert_eq!(stored.attempts, 2, "the store was closed in order");
            for (number, chunk) in chunks.iter().enumerate() {
                let read = bench.read(kept, number as u32).await.expect("it survives");
                assert!(read == *chunk, "chunk {number} differs");
            }
        }
        bench = bench.reopened().await.expect("it was reopened before");
    }
}

/// After a restart a running operation runs still, or is unknown; the key is not free, and the
/// owner's word counts only if nothing was said in its absence (I8, I9, L3).
pub async fn a_running_operation_is_never_absent_after_a_restart<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let claimed = bench.claimed("k").await;
    bench.append(&claimed, 0, noise(1, 1_000)).await;
    let Some(bench) = bench.reopened().await else {
        return;
    };
    bench.assert_taken("k").await;
    let stored = bench.load(claimed.address).await.expect("it survives");
    let record = &stored.record;
    assert_eq!(record.id, claimed.id());
    assert_eq!(record.fingerprint, claimed.record.fingerprint);
    assert_eq!(stored.attempts, 1);
    match record.state {
        State::InFlight { .. } => assert_eq!(**record, claimed.record),
        State::Unknown { .. } => {
            assert_eq!(record.epoch, claimed.record.epoch.next());
            let body = [noise(1, 1_000)];
            let write = Write {
                record: complete_record(&claimed.record, &body, bench.now()),
                last_chunk: Some(body[0].clone()),
                attempt: None,
            };
            let swap = bench
                .swap(claimed.address, Some(claimed.fence()), write)
                .await;
            assert_eq!(swap.expect("an answer"), crate::Swap::Lost);
        }
        ref other => panic!("it became {}", other.name()),
    }
}

/// Neither state is lost, nor turned into another.
pub async fn unknown_and_released_survive_a_restart<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let claimed = bench.claimed("unknown").await;
    let unknown = bench.lost(&claimed, UnknownReason::TimedOut).await;
    let claimed = bench.claimed("released").await;
    let released = bench.released(&claimed, ReleaseReason::DidNotRun).await;
    let Some(bench) = bench.reopened().await else {
        return;
    };
    bench.assert_holds(&unknown).await;
    bench.assert_holds(&released).await;
    bench.assert_taken("unknown").await;
    bench.assert_taken("released").await;
    let again = bench.claim_again("released", Some(&released.record));
    let write = claim_write(&again);
    bench
        .put(released.address, Some(released.fence()), write)
        .await;
    let Some(bench) = bench.reopened().await else {
        return;
    };
    let stored = bench.load(released.address).await.expect("it survives");
    assert!(stored.record.epoch >= again.epoch, "the epoch went back");
    assert_eq!(stored.attempts, 2);
}

/// The chunks of a former claim do not come back with a restart (I4).
pub async fn chunks_of_a_former_claim_stay_gone_over_a_restart<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let first = bench.claimed("k").await;
    for number in 0..3 {
        bench
            .append(&first, number, noise(u64::from(number), 100))
            .await;
    }
    let lost = bench.lost(&first, UnknownReason::Broke).await;
    let again = bench.claim_again("k", Some(&lost.record));
    bench
        .put(first.address, Some(lost.fence()), claim_write(&again))
        .await;
    let again = Kept {
        address: first.address,
        record: again,
    };
    bench.append(&again, 1, noise(7, 100)).await;
    let Some(mut bench) = bench.reopened().await else {
        return;
    };
    for _restart in 0..2 {
        assert!(bench.read(&lost, 0).await.is_err());
        assert!(bench.read(&again, 0).await.is_err());
        assert_eq!(bench.read(&again, 1).await.expect("kept"), noise(7, 100));
        assert!(bench.read(&again, 2).await.is_err());
        bench = bench.reopened().await.expect("it was reopened before");
    }
}

/// A restart neither shortens the window nor stretches it.
pub async fn hostile_082_the_window_goes_on_over_a_restart<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let kept = bench.finished("k").await;
    bench.clock.advance(WINDOW - MILLISECOND);
    let Some(bench) = bench.reopened().await else {
        return;
    };
    bench.assert_holds(&kept).await;
    bench.assert_taken("k").await;
    bench.clock.advance(MILLISECOND);
    let Some(bench) = bench.reopened().await else {
        return;
    };
    let next = bench.assert_free("k").await;
    assert_ne!(next.id(), kept.id());
    let Some(bench) = bench.reopened().await else {
        return;
    };
    let stored = bench.load(next.address).await.expect("it survives");
    assert_eq!(stored.record.id, next.id(), "the old record came back");
    assert!(bench.read(&next, 0).await.is_err());
}

/// Removed is removed, also where the bytes lie around still.
pub async fn a_removed_record_stays_removed_over_a_restart<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let kept = bench.finished("k").await;
    let other = bench.finished("other").await;
    let removed = bench.store.remove(kept.address, kept.fence()).await;
    assert!(removed.expect("an answer"));
    let Some(bench) = bench.reopened().await else {
        return;
    };
    assert!(bench.load(kept.address).await.is_none());
    bench.assert_holds(&other).await;
    let next = bench.assert_free("k").await;
    assert_ne!(next.id(), kept.id());
}

/// Indexes are rebuilt with the records.
pub async fn lists_and_ids_survive_a_restart<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let mut all: Vec<Kept> = Vec::new();
    for number in 0..10 {
        bench.clock.advance(MILLISECOND);
        all.insert(0, bench.finished(&format!("k{number}")).await);
    }
    let gone = Fence {
        epoch: all[3].record.epoch,
        id: all[3].id(),
    };
    let removed = bench.store.remove(all[3].address, gone).await;
    assert!(removed.expect("an answer"));
    all.remove(3);
    let Some(bench) = bench.reopened().await else {
        return;
    };
    let query = Query {
        limit: 100,
        ..Query::default()
    };
    let page = bench.store.list(query).await.expect("a page");
    let listed: Vec<_> = page.records.iter().map(|one| &*one.record).collect();
    let expected: Vec<_> = all.iter().map(|kept| &kept.record).collect();
    assert_eq!(listed, expected);
    for kept in &all {
        let found = bench.store.find(kept.id()).await.expect("an answer");
        assert_eq!(found, Some(kept.address));
    }
    assert_eq!(bench.store.find(gone.id).await.expect("an answer"), None);
    assert_eq!(bench.store.status().records, 9);
}

/// Addresses and fingerprints mean the same after a restart.
pub async fn the_secret_survives_a_restart<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let secret = *bench.store.secret();
    let Some(bench) = bench.reopened().await else {
        return;
    };
    assert_eq!(*bench.store.secret(), secret);
}

/// One damaged record is an error, never absent, and never in the way of another key (I13, L5).
pub async fn hostile_085_a_damaged_record_is_an_error_of_its_key_alone<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let before = bench.finished("before").await;
    let kept = bench.finished("k").await;
    let after = bench.finished("after").await;
    let Some(bench) = bench.damaged(kept.address).await else {
        return;
    };
    let load = bench.store.load(kept.address).await;
    assert!(
        matches!(load, Err(StoreError::Corrupt(_))),
        "{load:?}, and it was damaged"
    );
    let write = claim_write(&bench.first_claim("k"));
    let swap = bench.swap(kept.address, None, write).await;
    assert!(
        matches!(swap, Err(StoreError::Corrupt(_)) | Ok(crate::Swap::Lost)),
        "{swap:?}, and it was damaged"
    );
    bench.assert_holds(&before).await;
    bench.assert_holds(&after).await;
    bench.finished("new").await;
    let query = Query {
        limit: 100,
        ..Query::default()
    };
    let page = bench.store.list(query).await.expect("a page");
    let readable = |stored: &crate::Stored| stored.record.id != kept.id();
    assert!(page.records.iter().filter(|one| readable(one)).count() == 3);
    bench.store.sweep().await.expect("a sweep");
    let load = bench.store.load(kept.address).await;
    assert!(matches!(load, Err(StoreError::Corrupt(_))), "{load:?}");
}

/// A recording that cannot be read whole is no answer: its operation counts as unknown once that is
/// known, over restarts too, and can be resolved (I13).
pub async fn i13_a_completed_record_without_its_recording_is_unknown<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let chunks = [noise(1, 100), noise(2, 100), noise(3, 100)];
    let mut all = Vec::new();
    for key in ["resolved", "left", "whole"] {
        let claimed = bench.claimed(key).await;
        all.push(bench.completed(&claimed, &chunks).await);
    }
    let [resolved, left, whole] = all.try_into().expect("three");
    let Some(bench) = bench.chunk_damaged(resolved.address).await else {
        return;
    };
    let Some(bench) = bench.chunk_damaged(left.address).await else {
        return;
    };
    let [resolved, left] = [resolved, left].map(|kept| Kept {
        address: kept.address,
        record: kept.record.without_recording(),
    });
    for (key, unknown) in [("resolved", &resolved), ("left", &left)] {
        let read = bench.read(unknown, 0).await;
        assert!(matches!(read, Err(StoreError::Corrupt(_))), "{read:?}");
        assert_eq!(unknown.record.state.name(), StateName::Unknown);
        bench.assert_holds(unknown).await;
        bench.assert_taken(key).await;
    }
    let query = Query {
        state: Some(StateName::Unknown),
        limit: 100,
        ..Query::default()
    };
    let page = bench.store.list(query).await.expect("a page");
    assert_eq!(page.records.len(), 2);
    for (number, chunk) in chunks.iter().enumerate() {
        let read = bench.read(&whole, number as u32).await.expect("whole");
        assert!(read == *chunk, "chunk {number} differs");
    }
    let (fence, now) = (resolved.fence(), bench.now());
    let next = transition::resolve(
        Some(&resolved.record),
        fence,
        Resolution::DidNotRun,
        now,
        RETENTION,
    );
    let resolved = bench
        .follow(&resolved, next.expect("it was unknown"), None)
        .await;

    let Some(bench) = bench.reopened().await else {
        return;
    };
    bench.assert_holds(&resolved).await;
    bench.assert_holds(&left).await;
    bench.assert_holds(&whole).await;
    bench.clock.advance(WINDOW);
    bench.store.sweep().await.expect("a sweep");
    assert!(bench.load(whole.address).await.is_none());
    bench.assert_holds(&left).await;
}
