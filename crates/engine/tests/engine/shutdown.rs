//! The end of a process (HOSTILE 93).

use std::time::Duration;

use onlyonce_core::{Refusal, StateName, UnknownReason};
use onlyonce_engine::{Broken, Kind, Start, Trouble, Unsettled};
use onlyonce_store::memory::{Call, Fault};

use tokio::time::Instant;

use crate::world::{World, head, no_trailers, read, request, settings};

#[tokio::test]
async fn hostile_093_what_is_in_flight_may_finish_within_the_deadline() {
    let world = World::new();
    world.completed("done", "charged").await;
    let (execution, reader) = world.execute("k").await;
    let shutdown = {
        let engine = world.engine.clone();
        tokio::spawn(async move { engine.shutdown(Duration::from_secs(60)).await })
    };
    tokio::task::yield_now().await;
    assert_eq!(world.trouble(request("new")).await, Trouble::ShuttingDown);
    // Replays and joins go on.
    world.replay("done").await;
    let joined = tokio::spawn(read(world.join("k").await));
    assert!(!shutdown.is_finished());
    execution
        .respond_whole(head(200), "in time".into(), no_trailers())
        .await
        .expect("durable");
    shutdown.await.expect("ended");
    assert_eq!(read(reader).await.body, b"in time");
    assert_eq!(joined.await.expect("answered").body, b"in time");
}

#[tokio::test]
async fn hostile_093_what_is_in_flight_at_the_deadline_is_unknown() {
    let world = World::new();
    let (mut execution, mut reader) = world.execute("k").await;
    execution
        .head(head(200), Kind::Executed)
        .await
        .expect("head");
    reader.start().await;
    world.engine.shutdown(Duration::from_millis(20)).await;
    assert_eq!(world.engine.live(), 0);
    assert_eq!(
        reader.next().await,
        Some(Err(Broken(UnknownReason::ShutDown)))
    );
    assert_eq!(world.state("k").await, Some(StateName::Unknown));
    // Its owner has lost the right to say otherwise.
    assert!(execution.push("late".into()).await.is_err());
    assert_eq!(
        execution.complete(no_trailers()).await,
        Err(Unsettled::Fenced)
    );
    let refused = world.refused(request("k")).await;
    assert_eq!(refused.refusal, Refusal::Unknown(UnknownReason::ShutDown));
}

#[tokio::test]
async fn a_completion_under_way_at_the_deadline_is_let_through() {
    let world = World::new();
    let (execution, reader) = world.execute("k").await;
    let gate = world
        .store
        .faults()
        .hold(Call::WriteOf(StateName::Completed));
    let respond = tokio::spawn(execution.respond_whole(head(200), "ok".into(), no_trailers()));
    gate.until_waiting(1).await;
    let shutdown = {
        let engine = world.engine.clone();
        tokio::spawn(async move { engine.shutdown(Duration::ZERO).await })
    };
    tokio::task::yield_now().await;
    drop(gate);
    respond.await.expect("no panic").expect("durable");
    shutdown.await.expect("ended");
    assert!(matches!(read(reader).await.start, Start::Response { .. }));
}

#[tokio::test]
async fn what_the_store_did_not_take_before_is_written_before_the_end() {
    let world = World::new();
    let (execution, _) = world.execute("k").await;
    let faults = world.store.faults();
    faults.fail(Call::Write, Fault::Unavailable, u32::MAX);
    assert!(execution.not_sent("connection refused").await.is_err());
    faults.heal();
    world.engine.shutdown(Duration::ZERO).await;
    assert_eq!(world.state("k").await, Some(StateName::Released));
}

#[tokio::test]
async fn hostile_093_an_unknown_outcome_that_the_store_did_not_take_is_tried_once_more() {
    let world = World::new();
    let (execution, mut reader) = world.execute("k").await;
    let unknown = Call::WriteOf(StateName::Unknown);
    world.store.faults().fail(unknown, Fault::Unavailable, 1);
    world.engine.shutdown(Duration::ZERO).await;
    assert_eq!(
        reader.start().await,
        Start::Unknown(UnknownReason::ShutDown)
    );
    assert_eq!(world.state("k").await, Some(StateName::Unknown));
    drop(execution);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_waited_for_where_nothing_is_in_flight_any_more() {
    let world = World::new();
    let before = Instant::now();
    world.engine.shutdown(Duration::from_secs(60)).await;
    assert_eq!(before.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_waited_for_once_what_was_in_flight_at_the_deadline_is_unknown() {
    let world = World::new();
    let (execution, _) = world.execute("k").await;
    let before = Instant::now();
    world.engine.shutdown(Duration::from_secs(60)).await;
    assert_eq!(before.elapsed(), Duration::from_secs(60));
    assert_eq!(world.state("k").await, Some(StateName::Unknown));
    drop(execution);
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_hangs_in_the_store_does_not_hold_up_the_end() {
    let world = World::new();
    let gate = world
        .store
        .faults()
        .hold(Call::WriteOf(StateName::InFlight));
    let claiming = {
        let world = world.clone();
        tokio::spawn(async move { world.begin(request("k")).await.map(|_| ()) })
    };
    gate.until_waiting(1).await;
    let before = Instant::now();
    world.engine.shutdown(Duration::ZERO).await;
    assert_eq!(before.elapsed(), settings().settle_timeout);
    claiming.abort();
}

/// A failover to a standby that was behind, right after the end.
#[tokio::test]
async fn i18_what_its_readers_were_told_at_the_end_stands_though_the_store_has_forgotten_it() {
    let world = World::new();
    let (execution, reader) = world.execute("k").await;
    let standby = world.store.moment();
    world.engine.shutdown(Duration::ZERO).await;
    assert_eq!(
        read(reader).await.start,
        Start::Unknown(UnknownReason::ShutDown)
    );
    world.store.forget_since(&standby);
    let answer = execution.respond_whole(head(200), "late".into(), no_trailers());
    assert_eq!(answer.await, Err(Unsettled::Fenced));
    assert_eq!(world.state("k").await, Some(StateName::InFlight));
}
