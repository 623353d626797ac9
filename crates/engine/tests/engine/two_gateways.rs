//! Two gateways on one store: the fence (I9), dead owners (L3), and joins through the store.

use std::time::Duration;

use onlyonce_core::{Refusal, StateName, UnknownReason};
use onlyonce_engine::{Broken, Kind, PushError, Resolution, Start, Unsettled};

use super::World;
use crate::world::{Answer, CHUNK, LEASE, body, finish, head, no_trailers, read, request, resend};

#[tokio::test]
async fn hostile_096_an_owner_that_wakes_after_its_lease_changes_nothing() {
    let paused = World::new();
    let (mut execution, mut reader) = paused.execute("k").await;
    execution
        .head(head(200), Kind::Executed)
        .await
        .expect("head");
    reader.start().await;
    paused.clock.advance(LEASE);

    let neighbour = paused.neighbour(2);
    let refused = neighbour.refused(request("k")).await;
    assert_eq!(
        refused.refusal,
        Refusal::Unknown(UnknownReason::LeasePassed)
    );
    let before = paused.record("k").await;
    assert_eq!(
        execution.complete(no_trailers()).await,
        Err(Unsettled::Fenced)
    );
    assert_eq!(paused.record("k").await, before);
    assert_eq!(
        reader.next().await,
        Some(Err(Broken(UnknownReason::LeasePassed)))
    );
    assert_eq!(paused.engine.live(), 0);
}

/// Who saw that it is unknown, and settled it at once, was told that it runs.
#[tokio::test]
async fn what_is_unknown_can_be_resolved_while_its_execution_lets_go() {
    let paused = World::new();
    let (execution, _) = paused.execute("k").await;
    let id = execution.id();
    paused.clock.advance(LEASE);
    assert_eq!(paused.neighbour(2).engine.upkeep().await.expired, 1);
    let resolve = paused.rule(id, Resolution::Released);
    let lets_go = async {
        assert_eq!(paused.engine.live(), 1);
        drop(execution);
    };
    let (resolved, ()) = tokio::join!(resolve, lets_go);
    let record = resolved.expect("resolved").stored.record;
    assert_eq!(record.state.name(), StateName::Released);
}

#[tokio::test]
async fn i09_an_owner_whose_lease_has_lapsed_may_not_send_and_frees_the_key() {
    let paused = World::new();
    let (execution, mut reader) = paused.execute("k").await;
    assert!(execution.may_send());
    // Another gateway's clock may be a little ahead of this one's.
    let believed = LEASE - LEASE / 10;
    let moment = Duration::from_millis(1);
    paused.clock.advance(believed - moment);
    assert!(execution.may_send());
    paused.engine.upkeep().await;
    paused.clock.advance(believed - moment);
    assert!(execution.may_send(), "its lease was renewed");
    paused.clock.advance(moment);
    assert!(!execution.may_send());
    paused.clock.advance(LEASE / 10);

    execution.not_sent("it stood still").await.expect("durable");
    assert_eq!(
        reader.start().await,
        Start::NotSent("it stood still".into())
    );
    assert_eq!(paused.state("k").await, Some(StateName::Released));
}

#[tokio::test]
async fn i01_an_owner_that_was_overtaken_before_it_sent_may_not_send() {
    let paused = World::new();
    let (execution, mut reader) = paused.execute("k").await;
    paused.clock.advance(LEASE);
    let neighbour = paused.neighbour(2);
    let (again, _) = neighbour.execute_by("k", &resend()).await;
    assert!(again.may_send());
    assert!(!execution.may_send());

    let settled = execution.not_sent("it stood still").await;
    assert_eq!(settled, Err(Unsettled::Fenced));
    assert_eq!(
        reader.start().await,
        Start::Unknown(UnknownReason::LeasePassed)
    );
    assert_eq!(paused.state("k").await, Some(StateName::InFlight));
    assert!(again.may_send());
}

#[tokio::test]
async fn i09_an_owner_that_wakes_during_a_resend_changes_nothing() {
    let paused = World::new();
    let (execution, _) = paused.execute("k").await;
    paused.clock.advance(LEASE);
    let neighbour = paused.neighbour(2);
    let (again, _) = neighbour.execute_by("k", &resend()).await;
    let late = execution
        .respond_whole(head(200), "late".into(), no_trailers())
        .await;
    assert_eq!(late, Err(Unsettled::Fenced));
    finish(again, "first").await;
    assert_eq!(read(paused.replay("k").await).await.body, b"first");
}

#[tokio::test]
async fn i09_an_owner_that_was_overtaken_writes_into_nobodys_recording() {
    let paused = World::new();
    let (mut execution, _) = paused.execute("k").await;
    execution
        .head(head(200), Kind::Executed)
        .await
        .expect("head");
    execution.push(body(CHUNK)).await.expect("pushed");
    paused.clock.advance(LEASE);

    let neighbour = paused.neighbour(2);
    let (mut again, _) = neighbour.execute_by("k", &resend()).await;
    again.head(head(201), Kind::Executed).await.expect("head");
    let whole = vec![b'!'; 3 * CHUNK + 1];
    again.push(whole.clone().into()).await.expect("pushed");
    let overtaken = execution.push(body(3 * CHUNK)).await;
    assert_eq!(overtaken, Err(PushError::Fenced));
    let settled = execution.complete(no_trailers()).await;
    assert_eq!(settled, Err(Unsettled::Fenced));
    again.complete(no_trailers()).await.expect("durable");
    let answer = read(paused.replay("k").await).await;
    assert_eq!(answer, Answer::whole(head(201), Kind::Executed, whole));
}

#[tokio::test]
async fn i04_a_reader_of_an_owner_that_was_overtaken_never_reads_the_next_recording() {
    let paused = World::new();
    let (mut execution, reader) = paused.execute("k").await;
    execution
        .head(head(200), Kind::Executed)
        .await
        .expect("head");
    // More than memory holds: who falls behind reads the first chunks from the store.
    let first = body(8 * CHUNK);
    execution.push(first.clone()).await.expect("pushed");
    paused.clock.advance(LEASE);
    let neighbour = paused.neighbour(2);
    let (mut again, _) = neighbour.execute_by("k", &resend()).await;
    again.head(head(200), Kind::Executed).await.expect("head");
    let other = vec![b'!'; 8 * CHUNK];
    again.push(other.into()).await.expect("pushed");

    let seen = read(reader).await;
    assert!(first.starts_with(&seen.body), "{seen:?}");
    assert!(seen.end.is_err(), "{seen:?}");
}

#[tokio::test]
async fn i09_an_owner_whose_lease_was_lost_breaks_its_readers_at_the_next_renewal() {
    let paused = World::new();
    let (execution, mut reader) = paused.execute("k").await;
    paused.clock.advance(LEASE);
    assert_eq!(paused.neighbour(2).engine.upkeep().await.expired, 1);
    assert_eq!(paused.engine.upkeep().await.renewed, 0);
    assert_eq!(
        reader.start().await,
        Start::Unknown(UnknownReason::LeasePassed)
    );
    assert_eq!(
        execution.complete(no_trailers()).await,
        Err(Unsettled::Fenced)
    );
}

#[tokio::test]
async fn l3_a_dead_owners_claim_is_unknown_within_one_lease() {
    let world = World::new();
    let (dead, _) = world.execute("k").await;
    std::mem::forget(dead);
    let neighbour = world.neighbour(2);
    world.clock.advance(LEASE - Duration::from_millis(1));
    assert_eq!(neighbour.engine.upkeep().await.expired, 0);
    world.clock.advance(Duration::from_millis(1));
    assert_eq!(neighbour.engine.upkeep().await.expired, 1);
    assert_eq!(world.state("k").await, Some(StateName::Unknown));
}

#[tokio::test]
async fn a_joiner_on_another_gateway_gets_the_whole_answer() {
    let world = World::new();
    let (mut execution, _) = world.execute("k").await;
    let neighbour = world.neighbour(2);
    let joined = tokio::spawn(read(neighbour.join("k").await));
    execution
        .head(head(200), Kind::Executed)
        .await
        .expect("head");
    let whole = body(3 * CHUNK);
    execution.push(whole.clone()).await.expect("pushed");
    execution.complete(no_trailers()).await.expect("durable");
    let answer = joined.await.expect("answered");
    assert_eq!(
        answer,
        Answer::whole(head(200), Kind::Executed, whole.to_vec())
    );
}

#[tokio::test]
async fn i18_a_joiner_on_another_gateway_hears_of_the_release() {
    let world = World::new();
    let (execution, _) = world.execute("k").await;
    let neighbour = world.neighbour(2);
    let mut joiner = neighbour.join("k").await;
    execution
        .not_sent("connection refused")
        .await
        .expect("durable");
    assert!(matches!(joiner.start().await, Start::NotSent(_)));
}

#[tokio::test]
async fn l3_a_joiner_on_another_gateway_hears_that_the_owner_died() {
    let world = World::new();
    let (dead, _) = world.execute("k").await;
    std::mem::forget(dead);
    let mut joiner = world.neighbour(2).join("k").await;
    world.clock.advance(LEASE);
    assert_eq!(
        joiner.start().await,
        Start::Unknown(UnknownReason::LeasePassed)
    );
}
