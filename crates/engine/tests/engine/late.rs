//! Late answers (HOSTILE 64).

use std::{pin::pin, time::Duration};

use futures_util::FutureExt;
use onlyonce_core::{Refusal, StateName, UnknownReason};
use onlyonce_engine::{Closing, Kind, Purge, PushError, Resolution, Start, Unsettled};

use super::World;
use crate::world::{Answer, CHUNK, body, head, no_trailers, read, request, resend};

#[tokio::test]
async fn hostile_064_readers_hear_unknown_and_the_late_answer_completes_the_record() {
    let world = World::new();
    let (execution, mut reader) = world.execute("k").await;
    let mut late = execution
        .lose_for_now(UnknownReason::TimedOut)
        .await
        .expect("durable");
    assert_eq!(
        reader.start().await,
        Start::Unknown(UnknownReason::TimedOut)
    );
    let refused = world.refused(request("k")).await;
    assert_eq!(refused.refusal, Refusal::Unknown(UnknownReason::TimedOut));

    late.head(head(200)).await.expect("head");
    let whole = body(10 * CHUNK + 1);
    late.push(whole.clone()).await.expect("pushed");
    assert_eq!(world.state("k").await, Some(StateName::Unknown));
    late.complete(no_trailers()).await.expect("durable");
    let answer = read(world.replay("k").await).await;
    assert_eq!(
        answer,
        Answer::whole(head(200), Kind::Executed, whole.to_vec())
    );
}

#[tokio::test]
async fn a_late_answer_that_is_given_up_leaves_the_outcome_unknown() {
    let world = World::new();
    let (_, late) = world.timed_out("k").await;
    late.give_up();
    assert_eq!(world.state("k").await, Some(StateName::Unknown));
}

#[tokio::test]
async fn i09_a_late_answer_loses_to_a_resend_and_writes_nothing_into_its_recording() {
    let world = World::new();
    let (_, mut late) = world.timed_out("k").await;
    late.head(head(200)).await.expect("head");
    late.push(body(CHUNK)).await.expect("pushed");

    let (mut again, _) = world.execute_by("k", &resend()).await;
    again.head(head(201), Kind::Executed).await.expect("head");
    let whole = vec![b'!'; 3 * CHUNK];
    again.push(whole.clone().into()).await.expect("pushed");
    assert_eq!(late.push(body(3 * CHUNK)).await, Err(PushError::Fenced));
    assert_eq!(late.complete(no_trailers()).await, Err(Unsettled::Fenced));
    again.complete(no_trailers()).await.expect("durable");
    let answer = read(world.replay("k").await).await;
    assert_eq!(answer, Answer::whole(head(201), Kind::Executed, whole));
}

#[tokio::test]
async fn i09_a_late_answer_loses_to_an_operator() {
    let world = World::new();
    let (id, mut late) = world.timed_out("k").await;
    late.head(head(200)).await.expect("head");
    world
        .rule(id, Resolution::Released)
        .await
        .expect("resolved");
    assert_eq!(late.complete(no_trailers()).await, Err(Unsettled::Fenced));
    assert_eq!(world.state("k").await, Some(StateName::Released));
}

/// An operator's word waits for the late exchange to be let go.
async fn waits_for<T>(closing: &mut Closing, word: impl Future<Output = T>) {
    tokio::select! {
        biased;
        () = closing.wait() => {}
        _ = word => panic!("it goes on"),
    }
}

/// HOSTILE 64: no byte of a request may follow what an operator has settled.
#[tokio::test]
async fn hostile_064_an_operator_waits_until_the_late_exchange_is_let_go() {
    let world = World::new();
    let (id, late) = world.timed_out("k").await;
    let mut closing = late.closing();
    let mut resolve = pin!(world.rule(id, Resolution::Released));
    waits_for(&mut closing, &mut resolve).await;
    assert_eq!(world.state("k").await, Some(StateName::Unknown));
    drop(closing);
    resolve.await.expect("resolved");
    assert_eq!(world.state("k").await, Some(StateName::Released));
    drop(late);
}

/// The same where it is forgotten, and its key is new.
#[tokio::test]
async fn hostile_064_a_purge_waits_until_the_late_exchange_is_let_go() {
    let world = World::new();
    let (_, late) = world.timed_out("k").await;
    let mut closing = late.closing();
    let purge = Purge {
        state: Some(StateName::Unknown),
        ..Purge::default()
    };
    let mut purge = pin!(world.engine.purge(purge));
    waits_for(&mut closing, &mut purge).await;
    assert_eq!(world.state("k").await, Some(StateName::Unknown));
    drop(closing);
    assert_eq!(purge.await, Ok(1));
    assert_eq!(world.state("k").await, None);
    drop(late);
}

/// It was listed as it was before, and has run again since.
#[tokio::test]
async fn hostile_064_a_purge_calls_off_nothing_that_it_does_not_remove() {
    let world = World::new();
    let (id, second) = world.timed_out("second").await;
    drop(second);
    world.clock.advance(Duration::from_secs(1));
    let (_, first) = world.timed_out("first").await;
    let mut closing = first.closing();
    let purge = Purge {
        state: Some(StateName::Unknown),
        ..Purge::default()
    };
    let mut purge = pin!(world.engine.purge(purge));
    waits_for(&mut closing, &mut purge).await;
    let ruled = world.rule(id, Resolution::Released).await;
    ruled.expect("resolved");
    let (_, again) = world.timed_out("second").await;
    let mut goes_on = again.closing();
    drop(closing);
    assert_eq!(purge.await, Ok(1));
    assert_eq!(world.state("second").await, Some(StateName::Unknown));
    assert!(pin!(goes_on.wait()).now_or_never().is_none());
    drop((first, again));
}

#[tokio::test]
async fn a_late_exchange_is_not_called_off_where_nobody_settles_it() {
    let world = World::new();
    let (_, mut late) = world.timed_out("k").await;
    let mut closing = late.closing();
    let mut wait = pin!(closing.wait());
    assert!((&mut wait).now_or_never().is_none());
    // Its outcome stands, and nobody can overtake it any more.
    late.head(head(200)).await.expect("head");
    late.complete(no_trailers()).await.expect("durable");
    assert!((&mut wait).now_or_never().is_none());
}

/// Two late answers of one key, one after the other: who settles the second waits for that one.
#[tokio::test]
async fn the_gate_of_a_late_answer_goes_with_it_and_not_with_an_earlier_one() {
    let world = World::new();
    let (id, first) = world.timed_out("k").await;
    let (again, _) = world.execute_by("k", &resend()).await;
    let second = again.lose_for_now(UnknownReason::TimedOut).await;
    let second = second.expect("durable");
    let mut closing = second.closing();
    drop(first);
    let mut resolve = pin!(world.rule(id, Resolution::Released));
    waits_for(&mut closing, &mut resolve).await;
    drop(closing);
    resolve.await.expect("resolved");
    drop(second);
}

#[tokio::test(start_paused = true)]
async fn a_late_answer_that_another_gateway_has_settled_is_found_out() {
    let world = World::new();
    let (id, late) = world.timed_out("k").await;
    let mut found = pin!(late.overtaken_elsewhere());
    let waits = tokio::time::timeout(Duration::from_secs(60), &mut found);
    assert!(waits.await.is_err(), "it is as this process left it");
    let resolved = world.neighbour(2).rule(id, Resolution::Released).await;
    resolved.expect("resolved");
    let found = tokio::time::timeout(Duration::from_secs(6), found);
    found.await.expect("within 5 s");
}
