//! The log of attempts.

use std::collections::BTreeSet;

use onlyonce_core::{Attempt, Got, ReleaseReason, TraceId};
use tokio::task::JoinSet;

use super::{
    Subject,
    bench::{Bench, Kept, MILLISECOND, claim_write, note},
};
use crate::{MAX_ATTEMPTS_KEPT, Store};

async fn attempts<S: Subject>(bench: &Bench<S>, kept: &Kept) -> Vec<Attempt> {
    let attempts = bench.store.attempts(kept.address, kept.id()).await;
    attempts.expect("a store that answers")
}

/// The claim is the first attempt, with all that is known of it.
pub async fn a_claim_notes_its_attempt<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let at = bench.now();
    let kept = bench.claimed("k").await;
    bench.clock.advance(MILLISECOND);
    let first = Attempt {
        number: 1,
        at,
        peer: "192.0.2.7:4711".into(),
        sdk_retry_count: Some(2),
        got: Got::Executed,
        trace: TraceId::from_bytes([7; 16]),
    };
    assert_eq!(attempts(&bench, &kept).await, [first]);
}

/// Attempts are numbered from 1, oldest first, whatever state the operation is in.
pub async fn attempts_are_numbered_in_order<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let kept = bench.claimed("k").await;
    assert_eq!(bench.note(&kept, Got::Joined).await, 2);
    let kept = bench.completed(&kept, &["x".into()]).await;
    assert_eq!(bench.note(&kept, Got::Replayed).await, 3);
    assert_eq!(bench.note(&kept, Got::Refused).await, 4);

    let log = attempts(&bench, &kept).await;
    let got: Vec<_> = log.iter().map(|one| (one.number, one.got)).collect();
    assert_eq!(
        got,
        [
            (1, Got::Executed),
            (2, Got::Joined),
            (3, Got::Replayed),
            (4, Got::Refused)
        ]
    );
    assert_eq!(bench.load(kept.address).await.expect("held").attempts, 4);
    // Noting an attempt is not a write of the record: fences stay good.
    bench.assert_holds(&kept).await;
}

/// A thousand joiners at once are a thousand attempts.
pub async fn concurrent_attempts_get_numbers_of_their_own<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let kept = bench.claimed("k").await;
    let mut tasks = JoinSet::new();
    for _ in 0..1_000 {
        let (store, address, id) = (bench.store.clone(), kept.address, kept.id());
        tasks.spawn(async move {
            let number = store.note_attempt(address, id, note(Got::Joined)).await;
            number.expect("a number")
        });
    }
    let numbers: BTreeSet<u32> = tasks.join_all().await.into_iter().collect();
    assert_eq!(numbers, (2..=1_001).collect());
    assert_eq!(
        bench.load(kept.address).await.expect("held").attempts,
        1_001
    );
}

/// Old attempts may be forgotten, the latest may not, and numbers go on (I15).
pub async fn the_latest_attempts_are_kept<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let kept = bench.claimed("k").await;
    let last = 3 * MAX_ATTEMPTS_KEPT as u32;
    for number in 2..=last {
        assert_eq!(bench.note(&kept, Got::Joined).await, number);
    }
    let log = attempts(&bench, &kept).await;
    let numbers: Vec<u32> = log.iter().map(|attempt| attempt.number).collect();
    assert!(numbers.is_sorted(), "{numbers:?}");
    let latest = (last + 1 - MAX_ATTEMPTS_KEPT as u32..=last).collect::<Vec<_>>();
    assert!(numbers.ends_with(&latest), "{numbers:?}");
}

/// The attempts before a release are attempts of the same operation.
pub async fn attempts_go_on_after_a_release<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let claimed = bench.claimed("k").await;
    assert_eq!(bench.note(&claimed, Got::Joined).await, 2);
    let released = bench.released(&claimed, ReleaseReason::DidNotRun).await;
    let again = bench.claim_again("k", Some(&released.record));
    let write = claim_write(&again);
    let number = bench
        .put(released.address, Some(released.fence()), write)
        .await;
    assert_eq!(number, 3);
    let log = attempts(&bench, &released).await;
    let numbers: Vec<u32> = log.iter().map(|attempt| attempt.number).collect();
    assert_eq!(numbers, [1, 2, 3]);
}

/// Attempts are told under the operation's own id alone.
pub async fn another_operation_has_no_attempts<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let kept = bench.claimed("k").await;
    let other = bench.claimed("other").await;
    let log = bench.store.attempts(kept.address, other.id()).await;
    assert_eq!(log.expect("a store that answers"), []);
    let log = bench
        .store
        .attempts(bench.address("never-used"), kept.id())
        .await;
    assert_eq!(log.expect("a store that answers"), []);
}
