//! What follows another gateway's execution, and how often it asks the store.

use std::time::Duration;

use onlyonce_store::memory::{Call, Fault};
use tokio::time::Instant;

use crate::{
    elsewhere::{Running, answer, answering, next_bytes},
    world::{World, no_trailers, poll_start, read},
};

#[test]
fn l2_a_mirror_that_ends_with_its_runtime_makes_room_for_another_one() {
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_time().build().expect("a runtime")
    };
    let (stays, leaves) = (runtime(), runtime());
    let world = World::new();
    let neighbour = world.neighbour(2);
    let (mut execution, _reader) = stays.block_on(world.execute("k"));
    let _waits = leaves.block_on(async {
        let mut waits = neighbour.join("k").await;
        assert!(poll_start(&mut waits).is_pending());
        waits
    });
    drop(leaves);

    stays.block_on(async {
        let joiner = tokio::spawn(read(neighbour.join("k").await));
        answer(&mut execution).await;
        execution.complete(no_trailers()).await.expect("durable");
        let limit = Duration::from_secs(10);
        let answered = tokio::time::timeout(limit, joiner).await;
        let answered = answered.expect("it does not wait for the other runtime");
        assert!(answered.expect("answered").end.is_ok());
    });
}

/// The spans between the looks of a mirror, in milliseconds.
async fn looks(world: &World, first: usize, count: usize) -> Vec<u128> {
    let mut spans = Vec::new();
    let mut looked_at = Instant::now();
    for look in 0..first + count {
        let gate = world.store.faults().hold(Call::Load);
        gate.until_waiting(1).await;
        if look >= first {
            spans.push(looked_at.elapsed().as_millis());
        }
        looked_at = Instant::now();
    }
    spans
}

#[tokio::test(start_paused = true)]
async fn a_mirror_looks_less_and_less_often_while_nothing_is_shown() {
    let world = World::new();
    let (_execution, _reader) = world.execute("k").await;
    let _joiner = world.neighbour(2).join("k").await;
    let spans = looks(&world, 0, 8).await;
    assert_eq!(spans, [10, 20, 40, 80, 160, 320, 500, 500]);
}

#[tokio::test(start_paused = true)]
async fn l6_a_mirror_of_a_store_that_is_away_looks_less_and_less_often() {
    let world = World::new();
    let (_execution, _reader) = world.execute("k").await;
    let _joiner = world.neighbour(2).join("k").await;
    world
        .store
        .faults()
        .fail(Call::Load, Fault::Unavailable, u32::MAX);
    // The first look comes after what it knew when it began.
    let spans = looks(&world, 1, 7).await;
    assert_eq!(spans, [20, 40, 80, 160, 320, 500, 500]);
}

/// Its owner could not write how it ended: whoever follows is shown an end, and the record tells none.
#[tokio::test(start_paused = true)]
async fn l6_a_mirror_looks_less_and_less_often_after_an_end_that_is_not_in_the_record() {
    let world = World::new();
    let _running = Running::of(&world);
    let (execution, _reader) = answering(&world).await;
    let _joiner = world.neighbour(2).join("k").await;
    let faults = world.store.faults();
    faults.fail(Call::Write, Fault::Unavailable, u32::MAX);
    let unsettled = execution.complete(no_trailers()).await;
    unsettled.expect_err("the store takes nothing");
    // The first look comes at once: the record is about to tell.
    let spans = looks(&world, 1, 5).await;
    assert_eq!(spans, [20, 40, 80, 160, 320]);
}

/// The store was asked a moment ago, when the joiner came.
#[tokio::test(start_paused = true)]
async fn a_new_mirror_asks_the_owner_before_it_looks() {
    let world = World::new();
    let _running = Running::of(&world);
    let (mut execution, _reader) = answering(&world).await;
    execution.push("shown".into()).await.expect("pushed");
    let mut joiner = world.neighbour(2).join("k").await;
    let looks = world.store.faults().hold(Call::Load);
    assert_eq!(next_bytes(&mut joiner, 5).await, b"shown");
    drop(looks);
    execution.complete(no_trailers()).await.expect("durable");
}
