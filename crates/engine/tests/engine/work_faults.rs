//! Workers' claims on a store that fails, and what waiting costs.

use std::time::Duration;

use onlyonce_core::{StateName, UnknownReason};
use onlyonce_engine::{Granted, Start, Trouble, Watch, Work, WorkError};
use onlyonce_store::{
    MemoryStore, Store,
    memory::{Call, Fault},
};
use tokio::time::Instant;

use crate::world::{LEASE, WINDOW, World, head, no_trailers, policy, read, request, settings};

const CLAIM: Call = Call::WriteOf(StateName::InFlight);
const COMPLETION: Call = Call::WriteOf(StateName::Completed);

async fn begin(world: &World, nonce: &str) -> Result<Work<MemoryStore>, Trouble> {
    let worker = world.engine.worker(Some(nonce), LEASE);
    world
        .engine
        .begin_work(request("k"), worker, &policy())
        .await
}

async fn grant(world: &World) -> Granted {
    match begin(world, "n").await {
        Ok(Work::Execute(granted)) => granted,
        _ => panic!("a new key executes"),
    }
}

async fn complete(world: &World, granted: &Granted) -> Result<(), WorkError> {
    let (id, token) = (granted.id, &granted.token);
    let done = world
        .engine
        .complete_work(id, token, head(200), "done".into(), WINDOW, None);
    done.await.map(|_| ())
}

#[tokio::test(start_paused = true)]
async fn i12_a_worker_is_granted_nothing_while_the_store_is_down() {
    let world = World::new();
    world.store.faults().fail(CLAIM, Fault::Unavailable, 1);
    assert!(matches!(
        begin(&world, "n").await,
        Err(Trouble::Unavailable(_))
    ));
    assert_eq!(world.state("k").await, None);
    grant(&world).await;
}

#[tokio::test(start_paused = true)]
async fn i14_a_claim_in_doubt_is_read_back_and_granted_once() {
    let world = World::new();
    world.store.faults().fail(CLAIM, Fault::InDoubtWritten, 1);
    let granted = grant(&world).await;
    complete(&world, &granted).await.expect("durable");
}

#[tokio::test(start_paused = true)]
async fn i14_a_claim_that_stays_in_doubt_is_granted_when_the_worker_asks_again() {
    let world = World::new();
    let faults = world.store.faults();
    faults.fail(CLAIM, Fault::InDoubtWritten, 1);
    let gate = faults.hold(CLAIM);
    let asking = {
        let world = world.clone();
        tokio::spawn(async move { begin(&world, "n").await.map(|_| ()) })
    };
    gate.until_waiting(1).await;
    faults.fail(Call::Load, Fault::Unavailable, 10_000);
    drop(gate);
    let asked = asking.await.expect("it ended");
    assert!(matches!(asked, Err(Trouble::InDoubt(_))));
    faults.heal();
    // It is not released behind the worker's back, and another worker is not granted it.
    world.engine.upkeep().await;
    let claimed = world.record("k").await.expect("it was written");
    assert_eq!(claimed.state.name(), StateName::InFlight);
    assert!(matches!(begin(&world, "other").await, Ok(Work::Join(_))));
    let granted = grant(&world).await;
    assert_eq!(granted.id, claimed.id);
    complete(&world, &granted).await.expect("durable");
}

#[tokio::test(start_paused = true)]
async fn i14_a_result_whose_acknowledgement_is_lost_is_read_back() {
    for fault in [Fault::InDoubtWritten, Fault::InDoubtNotWritten] {
        let world = World::new();
        let granted = grant(&world).await;
        world.store.faults().fail(COMPLETION, fault, 1);
        complete(&world, &granted).await.expect("durable");
        assert_eq!(world.state("k").await, Some(StateName::Completed));
    }
}

#[tokio::test(start_paused = true)]
async fn hostile_084_a_result_that_the_store_does_not_take_is_not_lost() {
    let world = World::new();
    let granted = grant(&world).await;
    world
        .store
        .faults()
        .fail(COMPLETION, Fault::Unavailable, 1_000);
    let refused = complete(&world, &granted).await;
    let trouble = refused.expect_err("the store is down");
    assert!(matches!(
        trouble,
        WorkError::Trouble(Trouble::Unavailable(_))
    ));
    world.store.faults().heal();
    complete(&world, &granted).await.expect("sent again");
}

#[tokio::test(start_paused = true)]
async fn i13_what_cannot_be_read_is_not_written_over() {
    let world = World::new();
    let granted = grant(&world).await;
    world.store.faults().corrupt(world.address("k"));
    let refused = complete(&world, &granted).await;
    assert_eq!(refused, Err(WorkError::Settled(StateName::Unknown)));
}

#[tokio::test(start_paused = true)]
async fn i04_a_result_that_was_given_and_lost_is_not_replaced_by_another() {
    let world = World::new();
    let granted = grant(&world).await;
    complete(&world, &granted).await.expect("durable");
    let (address, record) = (world.address("k"), world.record("k").await.expect("there"));
    world.store.faults().corrupt_chunk(address, 0);
    let read = world.store.read(address, record.recording(), 0).await;
    assert!(read.is_err(), "it is damaged");
    assert_eq!(world.state("k").await, Some(StateName::Unknown));
    let refused = complete(&world, &granted).await;
    assert_eq!(refused, Err(WorkError::Settled(StateName::Unknown)));
}

#[tokio::test(start_paused = true)]
async fn who_waits_here_is_woken_by_what_this_process_writes() {
    let world = World::new();
    let granted = grant(&world).await;
    let joined = tokio::spawn(read(world.join("k").await));
    // It asks the store less and less often.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let before = Instant::now();
    complete(&world, &granted).await.expect("durable");
    let answer = joined.await.expect("answered");
    assert_eq!(before.elapsed(), Duration::ZERO);
    assert_eq!(answer.body, b"done");
}

#[tokio::test(start_paused = true)]
async fn who_waits_here_is_woken_when_upkeep_here_finds_the_lease_passed() {
    let world = World::new();
    grant(&world).await;
    let mut joined = world.join("k").await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    world.clock.advance(LEASE);
    let before = Instant::now();
    world.engine.upkeep().await;
    let start = joined.start().await;
    assert_eq!(start, Start::Unknown(UnknownReason::LeasePassed));
    assert_eq!(before.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn i15_many_who_wait_for_one_operation_look_at_the_store_as_one() {
    let world = World::new();
    let granted = grant(&world).await;
    let mut waiting = Vec::new();
    for _ in 0..200 {
        let Ok(Some(Watch::Running(_, reader))) = world.engine.watch(granted.id).await else {
            panic!("it runs");
        };
        waiting.push(tokio::spawn(read(reader)));
    }
    let gate = world.store.faults().hold(Call::Load);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(gate.waiting(), 1);
    drop(gate);
    complete(&world, &granted).await.expect("durable");
    for one in waiting {
        assert_eq!(one.await.expect("answered").body, b"done");
    }
}

#[tokio::test(start_paused = true)]
async fn workers_that_ask_while_a_claim_is_written_wait_for_it_and_follow_it() {
    let world = World::new();
    let gate = world.store.faults().hold(CLAIM);
    let asking = ["a", "b", "c"].map(|nonce| {
        let world = world.clone();
        tokio::spawn(async move { begin(&world, nonce).await })
    });
    gate.until_waiting(1).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(gate.waiting(), 1);
    drop(gate);
    let mut granted = Vec::new();
    let mut joined = Vec::new();
    for one in asking {
        match one.await.expect("decided") {
            Ok(Work::Execute(one)) => granted.push(one),
            Ok(Work::Join(reader)) => joined.push(reader),
            _ => panic!("neither"),
        }
    }
    assert_eq!((granted.len(), joined.len()), (1, 2));
    complete(&world, &granted[0]).await.expect("durable");
    for reader in joined {
        assert_eq!(read(reader).await.body, b"done");
    }
}

#[tokio::test(start_paused = true)]
async fn a_claim_is_taken_over_once_the_store_takes_it() {
    let world = World::new();
    let granted = grant(&world).await;
    world.store.faults().fail(CLAIM, Fault::Unavailable, 2);
    let taken = world
        .engine
        .take_over(granted.id, &granted.token, WINDOW)
        .await;
    drop(taken.expect("taken over"));
}

#[tokio::test(start_paused = true)]
async fn i14_a_take_over_whose_acknowledgement_is_lost_is_read_back() {
    let world = World::new();
    let granted = grant(&world).await;
    world.store.faults().fail(CLAIM, Fault::InDoubtWritten, 1);
    let taken = world
        .engine
        .take_over(granted.id, &granted.token, WINDOW)
        .await;
    let execution = taken.expect("taken over");
    let answer = execution.respond_whole(head(200), "done".into(), no_trailers());
    answer.await.expect("durable");
    assert_eq!(read(world.replay("k").await).await.body, b"done");
}

#[tokio::test(start_paused = true)]
async fn a_take_over_that_is_never_taken_is_given_up_and_one_without_room_at_once() {
    let world = World::new();
    let granted = grant(&world).await;
    for (fault, waited) in [
        (Fault::Full, Duration::ZERO),
        (Fault::Unavailable, settings().settle_timeout),
    ] {
        world.store.faults().fail(CLAIM, fault, u32::MAX);
        let before = Instant::now();
        let taken = world
            .engine
            .take_over(granted.id, &granted.token, WINDOW)
            .await;
        assert!(matches!(taken, Err(WorkError::Trouble(_))));
        assert_eq!(before.elapsed(), waited, "{fault:?}");
        world.store.faults().heal();
    }
    complete(&world, &granted)
        .await
        .expect("still the worker's");
}

/// A gateway that waits looks at the store every half a second.
#[tokio::test(start_paused = true)]
async fn who_waits_elsewhere_is_told_at_once_when_a_worker_settles() {
    let world = World::new();
    let granted = grant(&world).await;
    let joined = tokio::spawn(read(world.neighbour(2).join("k").await));
    tokio::time::sleep(Duration::from_secs(5)).await;
    let before = Instant::now();
    complete(&world, &granted).await.expect("durable");
    assert_eq!(joined.await.expect("answered").body, b"done");
    assert_eq!(before.elapsed(), Duration::ZERO);
}
