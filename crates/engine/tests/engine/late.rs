//! Late answers (HOSTILE 64).

use onlyonce_core::{Refusal, StateName, UnknownReason};
use onlyonce_engine::{Kind, PushError, Resolution, Start, Unsettled};

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
    let (execution, _) = world.execute("k").await;
    let late = execution
        .lose_for_now(UnknownReason::TimedOut)
        .await
        .expect("durable");
    late.give_up();
    assert_eq!(world.state("k").await, Some(StateName::Unknown));
}

#[tokio::test]
async fn i09_a_late_answer_loses_to_a_resend_and_writes_nothing_into_its_recording() {
    let world = World::new();
    let (execution, _) = world.execute("k").await;
    let mut late = execution
        .lose_for_now(UnknownReason::TimedOut)
        .await
        .expect("durable");
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
    let (execution, _) = world.execute("k").await;
    let id = execution.id();
    let mut late = execution
        .lose_for_now(UnknownReason::TimedOut)
        .await
        .expect("durable");
    late.head(head(200)).await.expect("head");
    world
        .engine
        .resolve(id, Resolution::Released, "ops", "looked it up")
        .await
        .expect("resolved");
    assert_eq!(late.complete(no_trailers()).await, Err(Unsettled::Fenced));
    assert_eq!(world.state("k").await, Some(StateName::Released));
}
