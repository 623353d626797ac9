//! What time does to a record, and what it does not.

use onlyonce_core::{Epoch, ReleaseReason, State, UnknownReason, transition};

use super::{
    Subject,
    bench::{Bench, LEASE, MILLISECOND, RETENTION, WINDOW, YEAR},
};
use crate::{Store, Swap, Write};

/// One millisecond before the window's end the record answers; at it, the key is new. The window
/// is counted from completion (I11).
pub async fn hostile_081_the_window_ends_at_its_very_millisecond<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let claimed = bench.claimed("k").await;
    bench.clock.advance(LEASE / 2);
    let kept = bench.completed(&claimed, &[]).await;

    bench.clock.advance(WINDOW - MILLISECOND);
    bench.assert_holds(&kept).await;
    bench.assert_taken("k").await;

    bench.clock.advance(MILLISECOND);
    let next = bench.assert_free("k").await;
    assert_ne!(next.id(), kept.id());

    // And after it.
    let kept = bench.completed(&next, &[]).await;
    bench.clock.advance(WINDOW + YEAR);
    assert_ne!(bench.assert_free("k").await.id(), kept.id());
}

/// The trace of a release goes at its own end, at the very millisecond too.
pub async fn a_released_record_is_forgotten_at_its_end<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let claimed = bench.claimed("k").await;
    bench.released(&claimed, ReleaseReason::DidNotRun).await;
    bench.clock.advance(RETENTION - MILLISECOND);
    bench.assert_taken("k").await;
    bench.clock.advance(MILLISECOND);
    bench.assert_free("k").await;
}

/// What does not count any more is nobody's to write on.
pub async fn an_expired_record_takes_no_write_under_its_fence<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let claimed = bench.claimed("k").await;
    let released = bench.released(&claimed, ReleaseReason::NotSent).await;
    let again = bench.claim_again("k", Some(&released.record));
    bench.clock.advance(RETENTION);
    let write = Write {
        record: again,
        last_chunk: None,
        attempt: None,
    };
    let swap = bench
        .swap(released.address, Some(released.fence()), write)
        .await;
    assert_eq!(swap.expect("a store that answers"), Swap::Lost);
    bench.assert_free("k").await;
}

/// No time makes a running operation new, lease or not (I8, I11).
pub async fn a_running_operation_never_expires<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let kept = bench.claimed("k").await;
    bench.append(&kept, 0, "x".into()).await;
    for _ in 0..3 {
        bench.clock.advance(YEAR);
        bench.store.sweep().await.expect("a sweep");
        bench.assert_taken("k").await;
        bench.assert_holds(&kept).await;
        assert_eq!(bench.read(&kept, 0).await.expect("chunk 0"), "x");
    }
    // Its own writer may still end it.
    let next = transition::lose(
        Some(&kept.record),
        kept.fence(),
        UnknownReason::TimedOut,
        bench.now(),
    );
    bench.follow(&kept, next.expect("running"), None).await;
}

/// No time makes an unknown operation new (I8).
pub async fn an_unknown_operation_never_expires<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let claimed = bench.claimed("k").await;
    let kept = bench.lost(&claimed, UnknownReason::Broke).await;
    bench.clock.advance(YEAR);
    bench.store.sweep().await.expect("a sweep");
    bench.assert_taken("k").await;
    bench.assert_holds(&kept).await;
}

/// After the window the key is another operation: nothing of the first one shows in it (I7).
pub async fn the_next_operation_of_a_key_starts_afresh<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let first = bench.finished("k").await;
    bench.clock.advance(WINDOW);
    let next = bench.claimed("k").await;

    let stored = bench.load(next.address).await.expect("a record");
    assert_eq!(stored.attempts, 1);
    assert_eq!(stored.record.epoch, Epoch::new(1));
    assert!(matches!(stored.record.state, State::InFlight { .. }));
    assert!(stored.last_chunk.is_none());
    assert!(bench.read(&next, 0).await.is_err());
    assert!(bench.read(&first, 0).await.is_err());
    let id = bench.store.find(first.id()).await.expect("an answer");
    assert_eq!(id, None, "the first operation is gone");
}
