//! What a store that moves does, and how all that it holds is found.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use onlyonce_core::{Address, Got, Record, ReleaseReason, Timestamp, UnknownReason};

use super::{
    Subject,
    bench::{Bench, Kept, RETENTION, WINDOW, claim_write, note, scope},
};
use crate::{AttemptNote, Mark, Store, StoreError, Swap, Walked, Write};

fn moved() -> Option<Mark> {
    Some(Mark::Moved {
        to: "redis://other".into(),
    })
}

fn filling(shift_millis: Option<i64>) -> Option<Mark> {
    Some(Mark::Filling {
        from: "embedded:/a folder".into(),
        shift_millis,
    })
}

async fn set<S: Subject>(bench: &Bench<S>, expected: Option<Mark>, to: Option<Mark>) -> bool {
    let set = bench.store.set_mark(expected, to).await;
    set.expect("a store that takes marks")
}

async fn mark<S: Subject>(bench: &Bench<S>) -> Option<Mark> {
    bench.store.mark().await.expect("a store that answers")
}

/// Of two who change a mark, one wins.
pub async fn a_mark_is_set_where_it_is_the_one_expected<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    assert_eq!(mark(&bench).await, None);
    assert!(set(&bench, None, filling(None)).await);
    assert!(!set(&bench, None, moved()).await);
    assert!(set(&bench, filling(None), filling(Some(-7))).await);
    assert!(!set(&bench, filling(None), None).await);
    assert_eq!(mark(&bench).await, filling(Some(-7)));
    // It is for those who open the store, and keeps nobody from writing.
    bench.finished("k").await;
    assert!(set(&bench, filling(Some(-7)), moved()).await);
    assert!(set(&bench, moved(), moved()).await, "the same once more");
    assert!(set(&bench, moved(), None).await);
    assert_eq!(mark(&bench).await, None);
    bench.finished("other").await;
}

async fn assert_refused<S: Subject>(
    bench: &Bench<S>,
    address: Address,
    held: Option<&Record>,
    key: &str,
) {
    let record = bench.claim_again(key, held);
    let fence = held.map(Record::fence);
    let swap = bench.swap(address, fence, claim_write(&record)).await;
    let Err(StoreError::Unavailable(why)) = swap else {
        panic!("a claim of {key} in a store that moved: {swap:?}");
    };
    assert!(why.contains("moved to redis://other"), "{why}");
}

/// No new execution begins in a store that moved, and what runs there settles (I1).
pub async fn a_store_that_moved_takes_no_claim_and_settles_what_runs<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let expired = bench.finished("expired").await;
    bench.clock.advance(WINDOW);
    let claimed = bench.claimed("released").await;
    let released = bench.released(&claimed, ReleaseReason::NotSent).await;
    let claimed = bench.claimed("unknown").await;
    let unknown = bench.lost(&claimed, UnknownReason::Broke).await;
    let [one, two, three] = [
        bench.claimed("one").await,
        bench.claimed("two").await,
        bench.claimed("three").await,
    ];
    assert!(set(&bench, None, moved()).await);

    assert_refused(&bench, bench.address("new"), None, "new").await;
    assert_refused(&bench, expired.address, None, "expired").await;
    for (kept, key) in [(&released, "released"), (&unknown, "unknown")] {
        assert_refused(&bench, kept.address, Some(&kept.record), key).await;
        bench.assert_holds(kept).await;
    }
    assert!(bench.load(bench.address("new")).await.is_none());
    bench.note(&one, Got::Joined).await;
    let one = bench.renewed(&one).await;
    let chunks = [Bytes::from_static(b"one"), Bytes::from_static(b"two")];
    let one = bench.completed(&one, &chunks).await;
    let two = bench.lost(&two, UnknownReason::TimedOut).await;
    let three = bench.released(&three, ReleaseReason::DidNotRun).await;
    for kept in [&one, &two, &three] {
        bench.assert_holds(kept).await;
    }

    assert!(set(&bench, moved(), None).await);
    bench.assert_free("new").await;
    bench.assert_free("expired").await;
    for (kept, key) in [(&released, "released"), (&unknown, "unknown")] {
        let again = bench.claim_again(key, Some(&kept.record));
        let write = claim_write(&again);
        bench.put(kept.address, Some(kept.fence()), write).await;
    }
}

/// A claim beside others that are to be written does not keep them from it.
pub async fn what_settles_beside_a_refused_claim_is_written<S: Subject>(subject: S) {
    let bench = Arc::new(Bench::new(subject).await);
    let mut running = Vec::new();
    let mut released = Vec::new();
    for number in 0..20 {
        running.push(bench.claimed(&format!("running{number}")).await);
        let kept = bench.claimed(&format!("released{number}")).await;
        released.push(bench.released(&kept, ReleaseReason::NotSent).await);
    }
    assert!(set(&bench, None, moved()).await);
    let mut tasks = tokio::task::JoinSet::new();
    for (number, kept) in released.into_iter().enumerate() {
        let bench = bench.clone();
        tasks.spawn(async move {
            let key = format!("released{number}");
            assert_refused(&bench, kept.address, Some(&kept.record), &key).await;
        });
    }
    for kept in running {
        let bench = bench.clone();
        tasks.spawn(async move {
            let kept = bench.completed(&kept, &[Bytes::from_static(b"done")]).await;
            bench.assert_holds(&kept).await;
        });
    }
    tasks.join_all().await;
}

/// Once a mark is set, no claim lands any more: not one that was under way either (I1).
pub async fn no_claim_lands_once_a_store_moved<S: Subject>(subject: S) {
    let bench = Arc::new(Bench::new(subject).await);
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..16 {
        let bench = bench.clone();
        tasks.spawn(async move {
            for number in 0.. {
                let key = format!("{task} {number}").replace(' ', "-");
                let write = claim_write(&bench.first_claim(&key));
                match bench.swap(bench.address(&key), None, write).await {
                    Ok(Swap::Done { .. }) => tokio::task::yield_now().await,
                    Err(StoreError::Unavailable(_)) => return number,
                    other => panic!("{other:?}"),
                }
            }
            unreachable!("it was refused")
        });
    }
    while bench.store.status().records < 50 {
        tokio::task::yield_now().await;
    }
    assert!(set(&bench, None, moved()).await);
    let held = everything(&bench, 1_000).await.len();
    let claimed: usize = tasks.join_all().await.into_iter().sum();
    assert_eq!(everything(&bench, 1_000).await.len(), held);
    assert_eq!(claimed, held);
}

/// A mark outlives the process that set it.
pub async fn a_mark_survives_a_restart<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    assert!(set(&bench, None, moved()).await);
    let Some(bench) = bench.reopened().await else {
        return;
    };
    assert_eq!(mark(&bench).await, moved());
    assert_refused(&bench, bench.address("new"), None, "new").await;
    assert!(set(&bench, moved(), None).await);
    let Some(bench) = bench.reopened().await else {
        return;
    };
    assert_eq!(mark(&bench).await, None);
    bench.assert_free("new").await;
}

async fn everything<S: Subject>(bench: &Bench<S>, at_a_time: usize) -> Vec<Walked> {
    let mut everything: Vec<Walked> = Vec::new();
    loop {
        let after = everything.last().copied();
        let page = bench.store.walk(after, at_a_time).await;
        let page = page.expect("a store that answers");
        assert!(page.len() <= at_a_time);
        if page.is_empty() {
            return everything;
        }
        everything.extend(page);
    }
}

/// A walk leaves out nothing, whatever its state and the size of its pages.
pub async fn a_walk_comes_by_everything_once<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    assert_eq!(everything(&bench, 10).await, []);
    let mut kept: Vec<Kept> = Vec::new();
    for number in 0..40 {
        kept.push(bench.finished(&format!("expired{number}")).await);
    }
    bench.clock.advance(WINDOW.max(RETENTION));
    for number in 0..40 {
        let claimed = bench.claimed(&format!("key{number}")).await;
        kept.push(match number % 3 {
            0 => claimed,
            1 => bench.lost(&claimed, UnknownReason::Broke).await,
            _ => bench.completed(&claimed, &[]).await,
        });
    }
    let held: BTreeSet<Walked> = kept
        .iter()
        .map(|kept| Walked {
            address: kept.address,
            id: kept.id(),
        })
        .collect();
    for at_a_time in [1, 7, 80, 1_000] {
        let walked = everything(&bench, at_a_time).await;
        assert_eq!(walked.len(), held.len());
        assert_eq!(walked.into_iter().collect::<BTreeSet<_>>(), held);
    }
}

/// What cannot be read is not left out: its key was used (I13).
pub async fn i13_a_walk_comes_by_what_cannot_be_read<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let kept = bench.finished("k").await;
    bench.finished("other").await;
    let Some(bench) = bench.damaged(kept.address).await else {
        return;
    };
    let walked = everything(&bench, 10).await;
    assert_eq!(walked.len(), 2);
    assert!(walked.iter().any(|walked| walked.address == kept.address));
}

/// A note that another store had before keeps its time.
pub async fn an_attempt_keeps_the_time_that_it_brings<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let record = bench.first_claim("k");
    let address = crate::address(bench.store.secret(), &scope("acme"), &record.key);
    let times = [Timestamp::from_millis(1_000), Timestamp::from_millis(2_000)];
    let at = |got, at| AttemptNote {
        at: Some(at),
        ..note(got)
    };
    let write = Write {
        attempt: Some(at(Got::Executed, times[0])),
        ..claim_write(&record)
    };
    bench.put(address, None, write).await;
    let noted = at(Got::Joined, times[1]);
    let noted = bench.store.note_attempt(address, record.id, noted).await;
    noted.expect("noted");
    let kept = Kept { address, record };
    bench.completed(&kept, &[]).await;
    let attempts = bench.store.attempts(address, kept.id()).await;
    let attempts = attempts.expect("attempts");
    let kept: Vec<_> = attempts.iter().map(|attempt| attempt.at).collect();
    assert_eq!(kept, times);
}
