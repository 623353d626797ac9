//! What an operator sees and decides.

use std::time::Duration;

use onlyonce_core::{OperationId, State, StateName, UnknownReason};
use onlyonce_engine::{Begin, Kind, Purge, Resolution, ResolveError, Settings, Start};
use onlyonce_store::{Query, Store};

use super::World;
use crate::world::{
    Answer, CHUNK, WINDOW, available, body, finish, head, no_trailers, ran, read, request, settings,
};

async fn unknown(world: &World, key: &str) -> OperationId {
    let (execution, _) = world.execute(key).await;
    let id = execution.id();
    execution.lose(UnknownReason::Broke).await.expect("durable");
    id
}

#[tokio::test]
async fn an_operator_who_knows_that_it_did_not_run_frees_the_key() {
    let world = World::new();
    let id = unknown(&world, "k").await;
    let operation = world.rule(id, Resolution::Released).await;
    let record = operation.expect("resolved").stored.record;
    assert_eq!(record.state.name(), StateName::Released);
    drop(world.execute("k").await);
}

#[tokio::test]
async fn an_operator_who_knows_the_answer_gives_it_to_every_retry() {
    let world = World::new();
    for len in [0, 1, CHUNK, 5 * CHUNK + 1] {
        let key = format!("k{len}");
        let id = unknown(&world, &key).await;
        let resolution = ran(body(len));
        let resolved = world.rule(id, resolution).await;
        let record = resolved.expect("resolved").stored.record;
        let State::Completed(completed) = &record.state else {
            panic!("{record:?}");
        };
        let kept = completed.expires_at.since(completed.completed_at);
        assert_eq!(kept, WINDOW);
        assert_eq!(completed.chunks as usize, len.div_ceil(CHUNK));
        let answer = read(world.replay(&key).await).await;
        assert_eq!(answer, Answer::whole(head(200), Kind::Executed, body(len)));
    }
}

#[tokio::test]
async fn i08_only_an_unknown_operation_can_be_resolved() {
    let world = World::new();
    let (execution, _) = world.execute("k").await;
    let id = execution.id();
    let resolved = world
        .engine
        .resolve(id, Resolution::Released, "ops", "impatient")
        .await;
    assert_eq!(
        resolved.err(),
        Some(ResolveError::NotUnknown(StateName::InFlight))
    );
    finish(execution, "ok").await;
    let resolved = world
        .engine
        .resolve(id, Resolution::Released, "ops", "impatient")
        .await;
    assert_eq!(
        resolved.err(),
        Some(ResolveError::NotUnknown(StateName::Completed))
    );
    let nothing = OperationId::from_bytes([1; 16]);
    let resolved = world
        .engine
        .resolve(nothing, Resolution::Released, "ops", "guess")
        .await;
    assert_eq!(resolved.err(), Some(ResolveError::NotFound));
}

#[tokio::test]
async fn a_purge_removes_what_it_names_and_nothing_in_flight() {
    let world = World::new();
    world.completed("done", "charged").await;
    unknown(&world, "lost").await;
    let (running, _) = world.execute("running").await;
    let purge = Purge {
        state: Some(StateName::Completed),
        ..Purge::default()
    };
    assert_eq!(world.engine.purge(purge).await, Ok(1));
    assert_eq!(world.state("done").await, None);
    // It may have run: nobody removes it without saying so.
    assert_eq!(world.engine.purge(Purge::default()).await, Ok(0));
    assert_eq!(world.state("lost").await, Some(StateName::Unknown));
    let purge = Purge {
        state: Some(StateName::Unknown),
        ..Purge::default()
    };
    assert_eq!(world.engine.purge(purge).await, Ok(1));
    assert_eq!(world.state("running").await, Some(StateName::InFlight));
    let page = world
        .engine
        .list(Query {
            limit: 10,
            ..Query::default()
        })
        .await;
    assert_eq!(page.expect("listed").records.len(), 1);
    drop(running);
}

#[tokio::test]
async fn a_purge_looks_at_every_page() {
    let world = World::new();
    for number in 0..600 {
        world.completed(&format!("k{number}"), "x").await;
        world.clock.advance(Duration::from_millis(1));
    }
    // The newest come first, and fill a page that has nothing to remove.
    for number in 0..600 {
        unknown(&world, &format!("u{number}")).await;
        world.clock.advance(Duration::from_millis(1));
    }
    assert_eq!(world.engine.purge(Purge::default()).await, Ok(600));
}

#[tokio::test]
async fn a_purge_leaves_other_tenants_and_what_is_younger_alone() {
    let world = World::new();
    world.completed("old", "x").await;
    world.clock.advance(Duration::from_secs(1));
    let before = Some(world.store.now());
    world.completed("young", "x").await;
    let purge = Purge {
        tenant: Some("another".into()),
        ..Purge::default()
    };
    assert_eq!(world.engine.purge(purge).await, Ok(0));
    let purge = Purge {
        tenant: Some("acme".into()),
        before,
        ..Purge::default()
    };
    assert_eq!(world.engine.purge(purge).await, Ok(1));
    assert_eq!(world.state("old").await, None);
    assert_eq!(world.state("young").await, Some(StateName::Completed));
}

#[tokio::test]
async fn an_operator_can_watch_a_recording_grow_without_being_an_attempt() {
    let world = World::new();
    let (mut execution, _) = world.execute("k").await;
    let id = execution.id();
    execution
        .head(head(200), Kind::Executed)
        .await
        .expect("head");
    execution.push("so far".into()).await.expect("pushed");
    let mut watch = world
        .engine
        .recording(id)
        .await
        .expect("readable")
        .expect("there");
    assert!(matches!(watch.start().await, Start::Response { .. }));
    assert_eq!(available(&mut watch), b"so far");
    execution.complete(no_trailers()).await.expect("durable");
    assert!(watch.next().await.is_none());

    let again = world
        .engine
        .recording(id)
        .await
        .expect("readable")
        .expect("there");
    assert_eq!(read(again).await.body, b"so far");
    let operation = world
        .engine
        .operation(id)
        .await
        .expect("readable")
        .expect("there");
    assert_eq!(operation.attempts.len(), 1);
    assert!(matches!(operation.stored.record.state, State::Completed(_)));
}

#[tokio::test]
async fn an_unknown_operation_has_no_recording() {
    let world = World::new();
    let id = unknown(&world, "k").await;
    assert!(
        world
            .engine
            .recording(id)
            .await
            .expect("readable")
            .is_none()
    );
    world.refused(request("k")).await;
}

#[tokio::test]
async fn an_operation_is_found_by_its_number() {
    let world = World::new();
    world.completed("other", "charged").await;
    let id = unknown(&world, "k").await;
    let record = world.engine.record(id).await.expect("readable");
    assert_eq!(record.expect("there").record.key.as_str(), "k");
    let nobody = OperationId::from_bytes([1; 16]);
    assert!(
        world
            .engine
            .record(nobody)
            .await
            .expect("readable")
            .is_none()
    );
}

/// The steps of what runs for long are continued for long.
#[tokio::test]
async fn a_step_that_an_operator_settles_is_kept_for_a_year() {
    let world = World::new();
    let mut step = request("k");
    step.scope = step.scope.of_steps();
    let begun = world.begin(step.clone()).await;
    let Ok(Begin::Execute(execution, _)) = begun else {
        panic!("a new step executes");
    };
    let id = execution.id();
    execution.lose(UnknownReason::Broke).await.expect("durable");
    let resolution = ran("done");
    let resolved = world.rule(id, resolution).await;
    let record = resolved.expect("resolved").stored.record;
    let State::Completed(completed) = &record.state else {
        panic!("{record:?}");
    };
    let kept = completed.expires_at.since(completed.completed_at);
    assert_eq!(kept, Duration::from_secs(366 * 86_400));
}

#[tokio::test]
async fn i15_an_answer_that_an_operator_brings_is_as_long_as_any_other_at_most() {
    let limit = 3 * CHUNK as u64;
    let world = World::with(Settings {
        max_response: limit,
        ..settings()
    });
    let id = unknown(&world, "k").await;
    let resolve = |len| {
        let resolution = ran(body(len));
        world.rule(id, resolution)
    };
    let refused = resolve(3 * CHUNK + 1).await;
    assert!(matches!(refused, Err(ResolveError::OverLimit { limit: told }) if told == limit));
    assert_eq!(world.state("k").await, Some(StateName::Unknown));
    resolve(3 * CHUNK).await.expect("resolved");
    assert_eq!(read(world.replay("k").await).await.body, body(3 * CHUNK));
}
