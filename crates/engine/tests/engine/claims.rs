//! Claims: who may execute, and what happens when the store does not play along.

use std::{
    pin::pin,
    sync::Arc,
    task::{Context, Waker},
    time::Duration,
};

use futures_util::FutureExt;
use onlyonce_core::{Key, OwnerId, Refusal, ReleaseReason, StateName, UnknownReason, transition};
use onlyonce_engine::{Begin, Kind, Settings, Trouble};
use onlyonce_store::{
    MemoryStore, Store,
    clock::ManualClock,
    memory::{Call, Fault},
};
use tokio::time::Instant;

use crate::world::{
    Answer, Idle, LEASE, WINDOW, World, finish, head, name, other_request, policy, read, request,
    resend, settings,
};

const CLAIM: Call = Call::WriteOf(StateName::InFlight);

#[tokio::test]
async fn i01_a_finished_key_never_executes_again() {
    let world = World::new();
    world.completed("k", "charged").await;
    for attempt in 2..5 {
        let reader = world.replay("k").await;
        assert_eq!(reader.ticket().attempt, attempt);
        let answer = read(reader).await;
        assert_eq!(answer, Answer::whole(head(200), Kind::Executed, "charged"));
    }
}

#[tokio::test]
async fn i01_an_unknown_outcome_is_reported_and_executes_again_only_where_the_route_says_so() {
    let world = World::new();
    let (execution, _) = world.execute("k").await;
    let (id, key) = (execution.id(), execution.key().clone());
    execution.lose(UnknownReason::Broke).await.expect("durable");

    let refused = world.refused(request("k")).await;
    assert_eq!(refused.refusal, Refusal::Unknown(UnknownReason::Broke));
    assert_eq!(refused.ticket.map(|ticket| ticket.id), Some(id));

    let (again, _) = world.execute_by("k", &resend()).await;
    assert_eq!((again.id(), again.key()), (id, &key));
    again.lose(UnknownReason::Broke).await.expect("durable");
}

#[tokio::test]
async fn i02_nobody_may_execute_before_the_claim_is_durable() {
    let world = World::new();
    let gate = world.store.faults().hold(CLAIM);
    let begin = {
        let world = world.clone();
        tokio::spawn(async move { world.execute("k").await })
    };
    gate.until_waiting(1).await;
    assert!(!begin.is_finished());
    assert_eq!(world.state("k").await, None);
    drop(gate);
    let (execution, reader) = begin.await.expect("executes");
    assert_eq!(reader.ticket().attempt, 1);
    assert_eq!(world.state("k").await, Some(StateName::InFlight));
    drop(execution);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_029_a_thousand_at_once_are_one_execution_and_a_thousand_equal_answers() {
    let world = World::new();
    let attempts: Vec<_> = (0..1_000)
        .map(|_| {
            let world = world.clone();
            tokio::spawn(async move {
                match world.begin(request("k")).await {
                    Ok(Begin::Execute(mut execution, reader)) => {
                        execution
                            .head(head(200), Kind::Executed)
                            .await
                            .expect("head");
                        for piece in [&b"gen"[..], b"era", b"ted"] {
                            tokio::task::yield_now().await;
                            execution.push(piece.into()).await.expect("pushed");
                        }
                        execution
                            .complete(crate::world::no_trailers())
                            .await
                            .expect("durable");
                        (1, read(reader).await)
                    }
                    Ok(Begin::Join(reader) | Begin::Replay(reader)) => (0, read(reader).await),
                    other => panic!("{}", name(&other)),
                }
            })
        })
        .collect();
    let mut hits = 0;
    for attempt in attempts {
        let (hit, answer) = attempt.await.expect("answered");
        hits += hit;
        assert_eq!(
            answer,
            Answer::whole(head(200), Kind::Executed, "generated")
        );
    }
    assert_eq!(hits, 1);
    assert_eq!(world.engine.live(), 0);
}

#[tokio::test]
async fn i06_another_request_under_a_finished_key_is_refused_and_learns_nothing() {
    let world = World::new();
    world.completed("k", "charged").await;
    let before = world.record("k").await;
    let refused = world.refused(other_request("k")).await;
    assert_eq!(refused.refusal, Refusal::KeyReused);
    assert_eq!(refused.ticket, None);
    assert_eq!(world.record("k").await, before);
}

#[tokio::test]
async fn hostile_030_a_mismatch_while_in_flight_is_refused_at_once() {
    let world = World::new();
    let (execution, _) = world.execute("k").await;
    let refused = world.refused(other_request("k")).await;
    assert_eq!(
        (refused.refusal, refused.ticket),
        (Refusal::KeyReused, None)
    );
    drop(execution);
}

/// Whose key it is, the claim says: until it stands, nobody is told to take another one.
#[tokio::test]
async fn i06_a_mismatch_with_a_claim_that_does_not_stand_yet_waits_for_it() {
    for fails in [false, true] {
        let world = World::new();
        let gate = world.store.faults().hold(CLAIM);
        if fails {
            world.store.faults().fail(CLAIM, Fault::Full, 1);
        }
        let begin = {
            let world = world.clone();
            tokio::spawn(async move { world.begin(request("k")).await })
        };
        gate.until_waiting(1).await;
        let mut other = pin!(world.begin(other_request("k")));
        assert!((&mut other).now_or_never().is_none(), "it waits");
        drop(gate);
        let other = other.await;
        let begun = begin.await.expect("no panic");
        if fails {
            assert!(begun.is_err(), "{}", name(&begun));
            assert!(matches!(other, Ok(Begin::Execute(..))), "{}", name(&other));
        } else {
            assert!(matches!(begun, Ok(Begin::Execute(..))), "{}", name(&begun));
            let Ok(Begin::Refuse(refused)) = other else {
                panic!("{}", name(&other));
            };
            assert_eq!(refused.refusal, Refusal::KeyReused);
        }
    }
}

#[tokio::test]
async fn hostile_083_a_store_that_is_down_at_the_claim_sends_nothing() {
    let world = World::new();
    world.store.faults().fail(CLAIM, Fault::Unavailable, 1);
    assert!(matches!(
        world.trouble(request("k")).await,
        Trouble::Unavailable(_)
    ));
    world.store.faults().fail(Call::Load, Fault::Unavailable, 1);
    assert!(matches!(
        world.trouble(request("k")).await,
        Trouble::Unavailable(_)
    ));
    assert_eq!(world.engine.live(), 0);
    drop(world.execute("k").await);
}

#[tokio::test]
async fn hostile_089_a_full_store_refuses_the_claim_and_works_again_later() {
    let world = World::new();
    world.store.faults().fail(CLAIM, Fault::Full, 1);
    assert!(matches!(
        world.trouble(request("k")).await,
        Trouble::Full(_)
    ));
    drop(world.execute("k").await);
}

#[tokio::test]
async fn i14_a_claim_whose_acknowledgement_is_lost_is_read_back_and_executes() {
    let world = World::new();
    world.store.faults().fail(CLAIM, Fault::InDoubtWritten, 1);
    let (execution, reader) = world.execute("k").await;
    assert_eq!(reader.ticket().attempt, 1);
    let record = world.record("k").await.expect("it is there");
    assert!(record.epoch > record.claim, "claimed, and renewed");
    assert_eq!(world.store.status().commits, 2);
    finish(execution, "ok").await;
    world.replay("k").await;
}

#[tokio::test]
async fn i02_a_claim_that_was_read_back_executes_only_once_a_write_after_it_is_acknowledged() {
    let world = World::new();
    let faults = world.store.faults();
    // The claim, and the first renewal.
    faults.fail(CLAIM, Fault::InDoubtWritten, 2);
    faults.fail(CLAIM, Fault::Unavailable, 1);
    let (execution, _) = world.execute("k").await;
    assert_eq!(world.store.status().commits, 3, "renewed once more");
    finish(execution, "ok").await;
    world.replay("k").await;
}

#[tokio::test(start_paused = true)]
async fn i02_a_claim_that_can_be_read_and_is_not_acknowledged_sends_nothing() {
    let world = World::new();
    let faults = world.store.faults();
    faults.fail(CLAIM, Fault::InDoubtWritten, 1);
    faults.fail(CLAIM, Fault::Unavailable, u32::MAX);
    let trouble = world.trouble(request("k")).await;
    assert!(matches!(trouble, Trouble::InDoubt(_)), "{trouble}");
    assert_eq!(world.state("k").await, Some(StateName::InFlight));

    // This process knows that nothing was sent.
    faults.heal();
    drop(world.execute("k").await);
}

/// A server took over whose clock is behind the one that the gateway goes by.
#[tokio::test(start_paused = true)]
async fn an_attempt_gives_up_where_store_and_gateway_differ_on_what_has_expired() {
    let world = World::new();
    world.completed("k", "ok").await;
    world.clock.advance(WINDOW);
    world.store.faults().set_back(Duration::from_secs(20));

    let started = Instant::now();
    let trouble = world.trouble(request("k")).await;
    assert!(matches!(trouble, Trouble::Unavailable(_)), "{trouble}");
    let waited = started.elapsed();
    let bounds = Duration::from_secs(1)..Duration::from_secs(4);
    assert!(bounds.contains(&waited), "it gave up after {waited:?}");

    // Once they agree, within its patience, it goes on.
    let first = world.store.faults().hold(CLAIM);
    let begin = {
        let world = world.clone();
        tokio::spawn(async move { world.execute("k").await })
    };
    first.until_waiting(1).await;
    let second = world.store.faults().hold(CLAIM);
    drop(first);
    second.until_waiting(1).await;
    world.store.faults().set_back(Duration::ZERO);
    drop(second);
    drop(begin.await.expect("it executes"));
}

/// Looks are answered by a former primary still, and writes by the one that followed it.
#[tokio::test(start_paused = true)]
async fn an_attempt_gives_up_where_a_dead_owners_claim_cannot_be_expired() {
    let world = World::new();
    let (dead, _) = world.execute("k").await;
    std::mem::forget(dead);
    world.clock.advance(LEASE);
    // Without a pause in between, these are soon over.
    let expiry = Call::WriteOf(StateName::Unknown);
    world.store.faults().fail(expiry, Fault::Lost, 10_000);

    let neighbour = world.neighbour(2);
    let trouble = neighbour.trouble(request("k")).await;
    assert!(matches!(trouble, Trouble::Unavailable(_)), "{trouble}");
    assert_eq!(neighbour.engine.live(), 0);

    world.store.faults().heal();
    let refused = neighbour.refused(request("k")).await;
    let passed = Refusal::Unknown(UnknownReason::LeasePassed);
    assert_eq!(refused.refusal, passed);
}

#[tokio::test]
async fn two_gateways_raise_the_epoch_of_one_record_differently() {
    let mut epochs = Vec::new();
    for owner in [1, 2] {
        let clock = ManualClock::default();
        let store = MemoryStore::with_clock(clock.clone());
        let world = World::over(store, clock, owner, settings());
        let (execution, _) = world.execute("k").await;
        execution
            .release(ReleaseReason::NotSent)
            .await
            .expect("nothing was sent");
        let (execution, _) = world.execute("k").await;
        epochs.push(execution.fence().epoch.number());
        drop(execution);
    }
    assert!(epochs.iter().all(|epoch| *epoch > 2), "{epochs:?}");
    assert_ne!(epochs[0], epochs[1]);
}

#[tokio::test]
async fn i14_a_claim_in_doubt_that_was_not_written_sends_nothing() {
    let world = World::new();
    world
        .store
        .faults()
        .fail(CLAIM, Fault::InDoubtNotWritten, 1);
    assert!(matches!(
        world.trouble(request("k")).await,
        Trouble::InDoubt(_)
    ));
    assert_eq!(world.state("k").await, None);
    drop(world.execute("k").await);
}

/// It was made again at once, while the one in doubt could still arrive (seed 720 of the simulated gateway).
#[tokio::test]
async fn i14_a_claim_in_doubt_over_a_record_whose_time_is_over_is_not_made_again() {
    let world = World::new();
    world.completed("k", "first").await;
    world.clock.advance(WINDOW);
    let writes = world.store.status().commits;
    world
        .store
        .faults()
        .fail(CLAIM, Fault::InDoubtNotWritten, 1);
    assert!(matches!(
        world.trouble(request("k")).await,
        Trouble::InDoubt(_)
    ));
    assert_eq!(world.store.status().commits, writes);
    drop(world.execute("k").await);
}

#[tokio::test(start_paused = true)]
async fn i14_a_claim_in_doubt_that_cannot_be_read_back_is_released_by_the_next_attempt() {
    let world = World::new();
    // The first look finds nothing; the looks back fail until the patience is over.
    let gate = world.store.faults().hold(CLAIM);
    let begin = {
        let world = world.clone();
        tokio::spawn(async move { world.trouble(request("k")).await })
    };
    gate.until_waiting(1).await;
    world.store.faults().fail(CLAIM, Fault::InDoubtWritten, 1);
    world
        .store
        .faults()
        .fail(Call::Load, Fault::Unavailable, u32::MAX);
    drop(gate);
    assert!(matches!(begin.await, Ok(Trouble::InDoubt(_))));
    world.store.faults().heal();
    assert_eq!(world.state("k").await, Some(StateName::InFlight));

    // Nothing was sent under it, and this process knows that.
    let (execution, reader) = world.execute("k").await;
    assert!(execution.fence().epoch.number() > 2);
    assert_eq!(reader.ticket().attempt, 2);
    drop(execution);
}

#[tokio::test]
async fn those_who_wait_for_a_claim_that_fails_share_its_trouble_and_do_not_try_one_by_one() {
    let world = World::new();
    let gate = world.store.faults().hold(CLAIM);
    let attempts: Vec<_> = (0..20)
        .map(|_| {
            let world = world.clone();
            tokio::spawn(async move { world.begin(request("k")).await.map(|_| ()) })
        })
        .collect();
    gate.until_waiting(1).await;
    tokio::task::yield_now().await;
    assert_eq!(gate.waiting(), 1);
    // One failure: a second try would succeed, and be seen.
    world.store.faults().fail(CLAIM, Fault::Unavailable, 1);
    drop(gate);
    for attempt in attempts {
        assert!(matches!(attempt.await, Ok(Err(Trouble::Unavailable(_)))));
    }
    assert_eq!(world.state("k").await, None);
}

#[tokio::test]
async fn hostile_057_an_attempt_that_goes_away_during_its_claim_leaves_the_key_free() {
    let world = World::new();
    let gate = world.store.faults().hold(CLAIM);
    let begin = {
        let world = world.clone();
        tokio::spawn(async move { world.execute("k").await })
    };
    gate.until_waiting(1).await;
    let waits = {
        let world = world.clone();
        tokio::spawn(async move { world.execute("k").await })
    };
    tokio::task::yield_now().await;
    begin.abort();
    assert!(begin.await.is_err_and(|error| error.is_cancelled()));
    drop(gate);
    // Who waited decides for itself.
    let (execution, _) = waits.await.expect("executes");
    drop(execution);
}

#[tokio::test]
async fn an_attempt_that_goes_away_after_its_claim_was_written_is_released() {
    let world = World::new();
    world.store.faults().fail(CLAIM, Fault::InDoubtWritten, 1);
    // The first look finds nothing; the look back never ends.
    let gate = world.store.faults().hold(CLAIM);
    let begin = {
        let world = world.clone();
        tokio::spawn(async move { world.execute("k").await })
    };
    gate.until_waiting(1).await;
    let look_back = world.store.faults().hold(Call::Load);
    drop(gate);
    look_back.until_waiting(1).await;
    begin.abort();
    assert!(begin.await.is_err());
    drop(look_back);
    assert_eq!(world.state("k").await, Some(StateName::InFlight));

    assert_eq!(world.engine.upkeep().await.settled, 1);
    assert_eq!(world.state("k").await, Some(StateName::Released));
    drop(world.execute("k").await);
}

#[tokio::test]
async fn i15_live_operations_are_limited_in_all_and_per_tenant() {
    let world = World::with(Settings {
        live_operations: 3,
        tenant_live: 2,
        ..settings()
    });
    let first = world.execute("a").await;
    let _second = world.execute("b").await;
    assert_eq!(
        world.trouble(request("c")).await,
        Trouble::OverLimit("tenant_live")
    );

    // L5: another tenant is not concerned.
    let mut elsewhere = request("c");
    elsewhere.scope.tenant = "other".into();
    let third = world.begin(elsewhere.clone()).await;
    assert!(matches!(third, Ok(Begin::Execute(..))), "{}", name(&third));
    elsewhere.key = Key::new("d").expect("a key");
    assert_eq!(
        world.trouble(elsewhere).await,
        Trouble::OverLimit("live_operations")
    );

    first.0.not_sent("refused").await.expect("durable");
    drop(third);
    let again = world.begin(request("c")).await;
    assert!(matches!(again, Ok(Begin::Execute(..))), "{}", name(&again));
}

#[tokio::test]
async fn i13_an_unreadable_record_is_unknown_and_never_absent() {
    let world = World::new();
    world.completed("k", "charged").await;
    world.store.faults().corrupt(world.address("k"));
    let refused = world.refused(request("k")).await;
    assert_eq!(refused.refusal, Refusal::Unknown(UnknownReason::Unreadable));
    // That key alone.
    world.completed("other", "charged").await;
}

#[tokio::test]
async fn i07_a_record_of_another_scope_is_not_believed() {
    let world = World::new();
    let theirs = request("theirs");
    let claim = transition::Claim {
        id: onlyonce_core::OperationId::from_bytes([9; 16]),
        scope: theirs.scope,
        key: theirs.key,
        fingerprint: theirs.fingerprint,
        request: theirs.line,
        owner: OwnerId::new(99),
        raise: std::num::NonZero::<u32>::MIN,
    };
    let record = transition::claim(None, claim, world.store.now(), WINDOW).expect("new");
    world.put(world.address("ours"), None, record, None).await;
    let refused = world.refused(request("ours")).await;
    assert_eq!(refused.refusal, Refusal::Unknown(UnknownReason::Unreadable));
}

#[tokio::test]
async fn hostile_081_the_window_answers_until_one_millisecond_before_its_end() {
    let world = World::new();
    world.completed("k", "charged").await;
    world.clock.advance(WINDOW - Duration::from_millis(1));
    world.replay("k").await;
    world.clock.advance(Duration::from_millis(1));
    drop(world.execute("k").await);
}

#[tokio::test]
async fn i11_a_running_operation_never_expires_into_new() {
    let world = World::new();
    let (execution, _) = world.execute("k").await;
    world.clock.advance(WINDOW * 100);
    world.join("k").await;
    finish(execution, "late").await;
    // The window is counted from completion.
    world.clock.advance(WINDOW - Duration::from_millis(1));
    world.replay("k").await;
}

#[tokio::test]
async fn the_attempts_of_an_operation_are_numbered_and_noted() {
    let world = World::new();
    world.completed("k", "charged").await;
    world.replay("k").await;
    world.refused(other_request("k")).await;
    let replay = world.engine.begin(request("k"), &policy()).await;
    let Ok(Begin::Replay(reader)) = replay else {
        panic!("{}", name(&replay));
    };
    // Another request's attempt is none of this operation.
    assert_eq!(reader.ticket().attempt, 3);
    let operation = world
        .engine
        .operation(reader.ticket().id)
        .await
        .expect("readable");
    let got: Vec<_> = operation
        .expect("there")
        .attempts
        .iter()
        .map(|attempt| (attempt.number, attempt.got.as_str()))
        .collect();
    assert_eq!(got, [(1, "executed"), (2, "replayed"), (3, "replayed")]);
}

#[tokio::test]
async fn i13_a_record_that_turns_unreadable_under_a_claim_is_unknown() {
    let world = World::new();
    world.released("k").await;
    let gate = world.store.faults().hold(CLAIM);
    let attempt = {
        let world = world.clone();
        tokio::spawn(async move { world.refused(request("k")).await })
    };
    gate.until_waiting(1).await;
    world.store.faults().corrupt(world.address("k"));
    drop(gate);
    let refused = attempt.await.expect("refused");
    assert_eq!(refused.refusal, Refusal::Unknown(UnknownReason::Unreadable));
}

#[tokio::test(start_paused = true)]
async fn a_claim_costs_one_look() {
    let world = World::new();
    let first = world.store.faults().hold(Call::Load);
    let attempt = {
        let world = world.clone();
        tokio::spawn(async move { world.execute("k").await })
    };
    first.until_waiting(1).await;
    drop(first);
    let _second = world.store.faults().hold(Call::Load);
    let claimed = tokio::time::timeout(Duration::from_secs(60), attempt).await;
    drop(claimed.expect("it looked again").expect("executes"));
}

#[tokio::test]
async fn i15_who_waits_for_a_claim_and_leaves_takes_its_place_along() {
    let world = World::new();
    let gate = world.store.faults().hold(CLAIM);
    let claiming = {
        let world = world.clone();
        tokio::spawn(async move { world.execute("k").await })
    };
    gate.until_waiting(1).await;
    let task = Arc::new(Idle);
    let waker = Waker::from(task.clone());
    let held = Arc::strong_count(&task);
    {
        let mut waits = pin!(world.begin(request("k")));
        let polled = waits.as_mut().poll(&mut Context::from_waker(&waker));
        assert!(polled.is_pending());
        assert!(Arc::strong_count(&task) > held);
    }
    assert_eq!(Arc::strong_count(&task), held);
    drop(gate);
    drop(claiming.await.expect("executes"));
}
