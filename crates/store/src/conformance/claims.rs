//! Claims and fences: the compare-and-set.

use std::num::NonZero;

use onlyonce_core::{
    Epoch, Fence, OperationId, ReleaseReason, StateName, UnknownReason,
    transition::{self, Resolution},
};
use tokio::task::JoinSet;

use super::{
    Subject,
    bench::{
        BY_ONE, Bench, Kept, LEASE, MILLISECOND, RETENTION, claim_write, complete_record, noise,
        scope,
    },
};
use crate::{Store, StoreError, Swap, Write};

/// A key that was never used holds nothing.
pub async fn an_absent_key_is_absent<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    assert!(bench.load(bench.address("k")).await.is_none());
}

/// What a claim wrote is what a load finds (I2).
pub async fn a_claim_is_read_back_as_written<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let kept = bench.claimed("k").await;
    let stored = bench.load(kept.address).await.expect("a record");
    assert_eq!(*stored.record, kept.record);
    assert_eq!(stored.attempts, 1);
    assert!(stored.last_chunk.is_none());
}

/// A second claim of a held key changes nothing (I1).
pub async fn a_claim_of_a_held_key_loses<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let kept = bench.claimed("k").await;
    bench.assert_taken("k").await;
    bench.assert_holds(&kept).await;
}

/// A hundred tasks claim one key at once: one has the right to execute (I1).
pub async fn one_of_a_hundred_concurrent_claims_wins<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let address = bench.address("k");
    let mut tasks = JoinSet::new();
    for _ in 0..100 {
        let store = bench.store.clone();
        let record = bench.first_claim("k");
        tasks.spawn(async move {
            let swap = store.compare_and_set(address, None, claim_write(&record));
            (record.clone(), swap.await.expect("a store that answers"))
        });
    }
    let ends = tasks.join_all().await;
    let won = |(_, swap): &&(_, Swap)| *swap != Swap::Lost;
    let winners: Vec<_> = ends.iter().filter(won).collect();
    let [(record, swap)] = winners[..] else {
        panic!("{} of 100 claims won", winners.len());
    };
    assert_eq!(*swap, Swap::Done { attempts: 1 });
    bench
        .assert_holds(&Kept {
            address,
            record: record.clone(),
        })
        .await;
}

/// Writers that saw the same record: a renewal, a completion and a loss at once, and one of them
/// counts (I9).
pub async fn one_of_many_writers_with_the_same_fence_wins<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    for round in 0..20 {
        let kept = bench.claimed(&format!("k{round}")).await;
        let (held, fence, now) = (Some(&kept.record), kept.fence(), bench.now());
        let body = [noise(round, 100)];
        let renewed = transition::renew(held, fence, now, LEASE, BY_ONE).expect("running");
        let lost = transition::lose(held, fence, UnknownReason::Broke, now).expect("running");
        let completed = complete_record(&kept.record, &body, now);
        let mut tasks = JoinSet::new();
        for record in [renewed, lost, completed] {
            let store = bench.store.clone();
            let address = kept.address;
            let last_chunk = (record.state.name() == StateName::Completed).then(|| body[0].clone());
            tasks.spawn(async move {
                let write = Write {
                    record: record.clone(),
                    last_chunk,
                    attempt: None,
                };
                let swap = store.compare_and_set(address, Some(fence), write).await;
                (record, swap.expect("a store that answers"))
            });
        }
        let mut winners = tasks.join_all().await;
        winners.retain(|(_, swap)| *swap != Swap::Lost);
        assert_eq!(winners.len(), 1, "one writer wins");
        let address = kept.address;
        let (record, _) = winners.remove(0);
        bench.assert_holds(&Kept { address, record }).await;
    }
}

/// Claims of different keys do not stand in each other's way (L5).
pub async fn concurrent_claims_of_many_keys_all_win<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let mut tasks = JoinSet::new();
    for number in 0..200 {
        let key = format!("k{number}");
        let (store, address, record) = (
            bench.store.clone(),
            bench.address(&key),
            bench.first_claim(&key),
        );
        tasks.spawn(async move {
            let swap = store
                .compare_and_set(address, None, claim_write(&record))
                .await;
            assert_eq!(
                swap.expect("a store that answers"),
                Swap::Done { attempts: 1 }
            );
            Kept { address, record }
        });
    }
    for kept in tasks.join_all().await {
        bench.assert_holds(&kept).await;
    }
}

/// Neither the record nor its recording nor its attempts tell of a write that lost (I9).
pub async fn a_lost_write_changes_nothing<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let first = bench.claimed("k").await;
    bench.append(&first, 0, noise(1, 100)).await;
    let kept = bench.renewed(&first).await;

    let body = [noise(2, 100), noise(3, 100)];
    let write = Write {
        record: complete_record(&first.record, &body, bench.now()),
        last_chunk: Some(body[1].clone()),
        attempt: None,
    };
    let swap = bench.swap(first.address, Some(first.fence()), write).await;
    assert_eq!(swap.expect("a store that answers"), Swap::Lost);
    bench.assert_taken("k").await;

    bench.assert_holds(&kept).await;
    assert_eq!(
        bench.load(kept.address).await.expect("a record").attempts,
        1
    );
    assert_eq!(bench.read(&kept, 0).await.expect("chunk 0"), noise(1, 100));
    assert!(bench.read(&kept, 1).await.is_err());
}

/// A writer that was overtaken loses, however late it comes (I9, hostile 96).
pub async fn a_stale_fence_loses<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let first = bench.claimed("k").await;
    let kept = bench.lost(&first, UnknownReason::LeasePassed).await;
    let late = transition::renew(
        Some(&first.record),
        first.fence(),
        bench.now(),
        LEASE,
        BY_ONE,
    )
    .expect("it thinks that it runs");
    let write = Write {
        record: late,
        last_chunk: None,
        attempt: None,
    };
    let swap = bench.swap(first.address, Some(first.fence()), write).await;
    assert_eq!(swap.expect("a store that answers"), Swap::Lost);
    bench.assert_holds(&kept).await;
}

/// Epochs start again with every operation, so the id is part of the fence (I9).
pub async fn the_fence_of_another_operation_loses<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let kept = bench.claimed("k").await;
    let other = bench.first_claim("k");
    assert_eq!(other.epoch, kept.record.epoch);
    let write = Write {
        record: transition::renew(Some(&other), other.fence(), bench.now(), LEASE, BY_ONE)
            .expect("a running record"),
        last_chunk: None,
        attempt: None,
    };
    let swap = bench.swap(kept.address, Some(other.fence()), write).await;
    assert_eq!(swap.expect("a store that answers"), Swap::Lost);
    bench.assert_holds(&kept).await;
}

/// A renewal of a record that is gone does not bring it back (I9).
pub async fn a_fence_loses_where_nothing_is_held<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let record = bench.first_claim("k");
    let fence = Fence {
        id: OperationId::from_bytes([1; 16]),
        epoch: Epoch::new(1),
    };
    for fence in [fence, record.fence()] {
        let write = Write {
            record: transition::renew(Some(&record), record.fence(), bench.now(), LEASE, BY_ONE)
                .expect("a running record"),
            last_chunk: None,
            attempt: None,
        };
        let swap = bench.swap(bench.address("k"), Some(fence), write).await;
        assert_eq!(swap.expect("a store that answers"), Swap::Lost);
    }
    assert!(bench.load(bench.address("k")).await.is_none());
}

/// Two gateways claim a record again, and the store has forgotten the claim of the one: it changes
/// nothing of what the other executes (I9).
pub async fn i09_two_claims_over_one_record_share_no_fence<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let claimed = bench.claimed("k").await;
    let released = bench.released(&claimed, ReleaseReason::NotSent).await;
    let claim = |raise| {
        let claim = transition::Claim {
            raise: NonZero::new(raise).expect("not zero"),
            ..bench.claim_of("k")
        };
        let record = transition::claim(Some(&released.record), claim, bench.now(), LEASE);
        Kept {
            address: released.address,
            record: record.expect("it is free"),
        }
    };
    let (forgotten, kept) = (claim(3), claim(7));
    let base = Some(released.fence());
    bench
        .put(kept.address, base, claim_write(&kept.record))
        .await;

    let (held, fence, now) = (Some(&forgotten.record), forgotten.fence(), bench.now());
    let body = [noise(1, 100)];
    let reason = ReleaseReason::NotSent;
    let ends = [
        transition::renew(held, fence, now, LEASE, BY_ONE).expect("it runs"),
        transition::release(held, fence, reason, now, RETENTION).expect("it runs"),
        complete_record(&forgotten.record, &body, now),
    ];
    for record in ends {
        let last_chunk = (record.state.name() == StateName::Completed).then(|| body[0].clone());
        let write = Write {
            record,
            last_chunk,
            attempt: None,
        };
        let swap = bench.swap(kept.address, Some(fence), write).await;
        assert_eq!(swap.expect("a store that answers"), Swap::Lost);
    }
    let append = bench
        .store
        .append(kept.address, forgotten.recording(), 0, noise(1, 100));
    let append = append.await;
    assert!(matches!(append, Err(StoreError::Fenced)), "{append:?}");
    bench.assert_holds(&kept).await;
}

/// Every write is seen under its own epoch (I9).
pub async fn the_epoch_rises_by_one_with_every_write<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let mut kept = bench.claimed("k").await;
    for epoch in 1..=20 {
        assert_eq!(kept.record.epoch, Epoch::new(epoch));
        bench.assert_holds(&kept).await;
        bench.clock.advance(MILLISECOND);
        kept = bench.renewed(&kept).await;
    }
}

/// What is written beside the owner raises the epoch by what it drew, and an owner whose write was
/// forgotten does not meet it (I9).
pub async fn i09_a_renewal_and_an_expiry_share_no_fence_with_what_was_forgotten<S: Subject>(
    subject: S,
) {
    let bench = Bench::new(subject).await;
    let raise = NonZero::new(7).expect("not zero");
    for (key, expires) in [("renewed", false), ("expired", true)] {
        let claimed = bench.claimed(key).await;
        let (held, fence, now) = (Some(&claimed.record), claimed.fence(), bench.now());
        // The owner's word, which the store has forgotten.
        let forgotten = transition::renew(held, fence, now, LEASE, BY_ONE).expect("it runs");
        let next = match expires {
            true => transition::expire(held, fence, UnknownReason::LeasePassed, now, raise),
            false => transition::renew(held, fence, now, LEASE, raise),
        };
        let kept = bench.follow(&claimed, next.expect("it runs"), None).await;
        assert_eq!(kept.record.epoch, claimed.record.epoch.raised(raise));

        let fence = forgotten.fence();
        let reason = UnknownReason::Broke;
        let late = transition::lose(Some(&forgotten), fence, reason, now).expect("it runs");
        let write = Write {
            record: late,
            last_chunk: None,
            attempt: None,
        };
        let swap = bench.swap(kept.address, Some(fence), write).await;
        assert_eq!(swap.expect("a store that answers"), Swap::Lost);
        bench.assert_holds(&kept).await;
    }
}

/// A store checks the arrow at the last moment: a record that leaves completed, and a claim of what runs,
/// are never written, whoever asks (I8). It is a bug that brought it there, or the store has forgotten what it was to follow: one
/// that may forget says that the writer has lost, and every other panics.
pub async fn an_unlawful_write_never_lands<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    for kept in [
        bench.finished("finished").await,
        bench.claimed("runs").await,
    ] {
        let mut again = bench.first_claim(kept.record.key.as_str());
        again.id = kept.id();
        again.epoch = kept.record.epoch.next();
        again.claim = again.epoch;
        let store = bench.store.clone();
        let (address, fence) = (kept.address, kept.fence());
        let task = tokio::spawn(async move {
            store
                .compare_and_set(address, Some(fence), claim_write(&again))
                .await
        });
        let end = task.await;
        match bench.store.may_forget() {
            true => {
                let swap = end.expect("no panic").expect("a store that answers");
                assert_eq!(swap, Swap::Lost, "over {}", kept.record.state.name());
            }
            false => assert!(
                end.is_err_and(|error| error.is_panic()),
                "the arrow from {} to a new claim must panic",
                kept.record.state.name()
            ),
        }
        bench.assert_holds(&kept).await;
    }
}

/// The same key under another tenant is another operation (I7, hostile 25).
pub async fn scopes_share_nothing<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let ours = bench.finished("k").await;

    let mut theirs = bench.first_claim("k");
    theirs.scope = scope("globex");
    let address = crate::address(bench.store.secret(), &theirs.scope, &theirs.key);
    assert_ne!(address, ours.address);
    assert!(bench.load(address).await.is_none());
    bench.put(address, None, claim_write(&theirs)).await;
    let theirs = Kept {
        address,
        record: theirs,
    };
    bench.assert_holds(&ours).await;
    bench.assert_holds(&theirs).await;
    assert!(bench.read(&theirs, 0).await.is_err());
    assert!(
        bench
            .store
            .read(address, ours.recording(), 0)
            .await
            .is_err()
    );
}

/// All that a record may hold survives the store's own format.
pub async fn every_state_is_read_back_as_written<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let finished = bench.finished("completed").await;
    bench.assert_holds(&finished).await;
    for (number, &reason) in UnknownReason::ALL.iter().enumerate() {
        let claimed = bench.claimed(&format!("unknown-{number}")).await;
        let kept = bench.lost(&claimed, reason).await;
        bench.assert_holds(&kept).await;
    }
    for (number, &reason) in ReleaseReason::ALL.iter().enumerate() {
        let claimed = bench.claimed(&format!("released-{number}")).await;
        let kept = bench.released(&claimed, reason).await;
        bench.assert_holds(&kept).await;
    }
    let long = bench.claimed(&"k".repeat(255)).await;
    bench.assert_holds(&long).await;
}

/// A released key is free, and whoever takes it goes on in the same operation.
pub async fn a_released_key_is_claimed_again_under_its_id<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let claimed = bench.claimed("k").await;
    let released = bench.released(&claimed, ReleaseReason::NotSent).await;
    // It stands there still: a claim that has not seen it loses.
    bench.assert_taken("k").await;
    let again = bench.claim_again("k", Some(&released.record));
    assert_eq!(again.id, claimed.id());
    let attempts = bench
        .put(
            released.address,
            Some(released.fence()),
            claim_write(&again),
        )
        .await;
    assert_eq!(attempts, 2);
    bench
        .assert_holds(&Kept {
            address: released.address,
            record: again,
        })
        .await;
}

/// The late answer to an unknown operation completes it (hostile 64).
pub async fn an_unknown_operation_takes_its_late_answer<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let claimed = bench.claimed("k").await;
    bench.append(&claimed, 0, noise(1, 50)).await;
    let unknown = bench.lost(&claimed, UnknownReason::TimedOut).await;
    let body = [noise(1, 50), noise(2, 50), noise(3, 50)];
    bench.append(&unknown, 1, body[1].clone()).await;
    let next = complete_record(&unknown.record, &body, bench.now());
    let kept = bench.follow(&unknown, next, Some(body[2].clone())).await;
    bench.assert_holds(&kept).await;
    for (number, chunk) in body.iter().enumerate() {
        assert_eq!(bench.read(&kept, number as u32).await.expect("kept"), chunk);
    }
}

/// Where a route may resend, the unknown operation runs again under its id.
pub async fn an_unknown_operation_is_claimed_again_where_a_resend_is_allowed<S: Subject>(
    subject: S,
) {
    let bench = Bench::new(subject).await;
    let claimed = bench.claimed("k").await;
    let unknown = bench.lost(&claimed, UnknownReason::Broke).await;
    let again = bench.claim_again("k", Some(&unknown.record));
    bench
        .put(unknown.address, Some(unknown.fence()), claim_write(&again))
        .await;
    let kept = Kept {
        address: unknown.address,
        record: again,
    };
    bench.assert_holds(&kept).await;
    let resolved = transition::resolve(
        Some(&unknown.record),
        unknown.fence(),
        Resolution::DidNotRun,
        bench.now(),
        RETENTION,
    );
    let write = Write {
        record: resolved.expect("it was unknown"),
        last_chunk: None,
        attempt: None,
    };
    let swap = bench
        .swap(unknown.address, Some(unknown.fence()), write)
        .await;
    assert_eq!(swap.expect("a store that answers"), Swap::Lost);
    bench.assert_holds(&kept).await;
}

/// A caller that stops waiting for its write finds it written, or not at all, and the store goes
/// on.
pub async fn a_cancelled_write_is_whole_or_absent<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    for round in 0..50 {
        let key = format!("k{round}");
        let (address, record) = (bench.address(&key), bench.first_claim(&key));
        let store = bench.store.clone();
        let write = claim_write(&record);
        let task = tokio::spawn(async move { store.compare_and_set(address, None, write).await });
        if round % 2 == 0 {
            tokio::task::yield_now().await;
        }
        task.abort();
        let end = task.await;
        // A write that was under way may still land: it settles before the next one does.
        bench.claimed(&format!("next-{round}")).await;
        match bench.store.load(address).await {
            Ok(Some(stored)) => assert_eq!(*stored.record, record),
            Ok(None) => assert!(end.is_err(), "it said that it was written"),
            Err(error) => panic!("{error}"),
        }
    }
    bench.assert_free("fresh").await;
}
