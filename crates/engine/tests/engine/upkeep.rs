//! Upkeep: leases, what could not be written, expired space.

use std::time::Duration;

use onlyonce_core::{Refusal, State, StateName, UnknownReason};
use onlyonce_engine::{Begin, Kind};
use onlyonce_store::{
    Books, Store,
    memory::{Call, Fault},
};
use tokio::time::sleep;

use crate::world::{
    LEASE, WINDOW, World, eventually, head, name, no_trailers, read, request, settings,
};

const CLAIM: Call = Call::WriteOf(StateName::InFlight);

async fn lease_left(world: &World) -> Duration {
    let record = world.record("k").await.expect("there");
    let State::InFlight { lease_until, .. } = record.state else {
        panic!("{:?}", record.state);
    };
    lease_until.since(world.store.now())
}

#[tokio::test]
async fn a_lease_is_renewed_once_a_third_of_it_is_gone() {
    let world = World::new();
    let (execution, _) = world.execute("k").await;
    world.clock.advance(LEASE / 3 - Duration::from_millis(1));
    assert_eq!(world.engine.upkeep().await.renewed, 0);
    world.clock.advance(Duration::from_millis(1));
    assert_eq!(world.engine.upkeep().await.renewed, 1);
    assert_eq!(lease_left(&world).await, LEASE);
    assert!(execution.fence().epoch > execution.claimed().epoch);
    execution
        .respond_whole(head(200), "ok".into(), no_trailers())
        .await
        .expect("the renewed fence is the owner's");
}

#[tokio::test]
async fn an_operation_that_runs_for_many_leases_completes() {
    let world = World::new();
    let (mut execution, reader) = world.execute("k").await;
    execution
        .head(head(200), Kind::Executed)
        .await
        .expect("head");
    for _ in 0..20 {
        world.clock.advance(LEASE / 2);
        let round = world.engine.upkeep().await;
        assert_eq!((round.renewed, round.expired), (1, 0));
    }
    execution.push("at last".into()).await.expect("pushed");
    execution.complete(no_trailers()).await.expect("durable");
    assert_eq!(read(reader).await.body, b"at last");
}

#[tokio::test]
async fn i14_a_renewal_whose_acknowledgement_is_lost_does_not_fence_its_owner() {
    let world = World::new();
    let (execution, _) = world.execute("k").await;
    world.clock.advance(LEASE / 2);
    // Written, and neither acknowledged nor readable for the moment.
    world.store.faults().fail(CLAIM, Fault::InDoubtWritten, 1);
    world.store.faults().fail(Call::Load, Fault::Unavailable, 1);
    assert_eq!(world.engine.upkeep().await.renewed, 0);
    execution
        .respond_whole(head(200), "ok".into(), no_trailers())
        .await
        .expect("its own renewal is no stranger's write");
    world.replay("k").await;
}

#[tokio::test]
async fn i14_a_renewal_in_doubt_is_read_back_and_counts() {
    let world = World::new();
    let (execution, _) = world.execute("k").await;
    world.clock.advance(LEASE / 2);
    world.store.faults().fail(CLAIM, Fault::InDoubtWritten, 1);
    assert_eq!(world.engine.upkeep().await.renewed, 1);
    assert!(execution.fence().epoch > execution.claimed().epoch);
}

#[tokio::test]
async fn a_lease_that_passed_while_the_store_was_down_is_renewed_by_the_living_owner() {
    let world = World::new();
    let (execution, _) = world.execute("k").await;
    world.store.faults().fail(CLAIM, Fault::Unavailable, 1);
    world.clock.advance(LEASE * 2);
    let round = world.engine.upkeep().await;
    assert_eq!(
        (round.renewed, round.expired),
        (0, 0),
        "it is not taken for dead"
    );
    world.join("k").await;
    assert_eq!(world.engine.upkeep().await.renewed, 1);
    assert_eq!(lease_left(&world).await, LEASE);
    drop(execution);
}

#[tokio::test]
async fn what_the_store_did_not_take_is_written_later() {
    let world = World::new();
    let (lost, _) = world.execute("lost").await;
    let (unsent, _) = world.execute("unsent").await;
    world
        .store
        .faults()
        .fail(Call::Write, Fault::Unavailable, u32::MAX);
    assert!(lost.lose(UnknownReason::Truncated).await.is_err());
    assert!(unsent.not_sent("connection refused").await.is_err());
    assert_eq!(world.engine.upkeep().await.settled, 0);
    world.store.faults().heal();
    assert_eq!(world.engine.upkeep().await.settled, 2);
    assert_eq!(world.state("unsent").await, Some(StateName::Released));
    let refused = world.refused(request("lost")).await;
    assert_eq!(refused.refusal, Refusal::Unknown(UnknownReason::Truncated));
    assert_eq!(world.engine.upkeep().await.settled, 0);
}

#[tokio::test]
async fn i01_what_is_left_of_a_claim_in_doubt_never_releases_a_later_execution() {
    let world = World::new();
    world
        .store
        .faults()
        .fail(CLAIM, Fault::InDoubtNotWritten, 1);
    world.trouble(request("k")).await;
    let (execution, _) = world.execute("k").await;
    world.clock.advance(LEASE / 2);
    assert_eq!(world.engine.upkeep().await.settled, 0);
    assert_eq!(world.state("k").await, Some(StateName::InFlight));
    drop(execution);
}

#[tokio::test]
async fn l7_expired_space_comes_back() {
    let world = World::new();
    world.completed("k", "charged").await;
    assert_eq!(world.engine.upkeep().await.swept.records, 0);
    world.clock.advance(WINDOW);
    let swept = world.engine.upkeep().await.swept;
    assert_eq!((swept.records, swept.bytes), (1, 7));
    assert_eq!(world.state("k").await, None);
}

#[tokio::test]
async fn upkeep_runs_by_itself() {
    let world = World::with(onlyonce_engine::Settings {
        lease: Duration::from_millis(600),
        ..settings()
    });
    let upkeep = {
        let engine = world.engine.clone();
        tokio::spawn(async move { engine.run_upkeep().await })
    };
    let begun = world.begin(request("k")).await;
    let Ok(Begin::Execute(execution, _)) = begun else {
        panic!("{}", name(&begun));
    };
    world.clock.advance(Duration::from_millis(300));
    eventually("the lease is renewed", async || {
        execution.fence().epoch > execution.claimed().epoch
    })
    .await;
    upkeep.abort();
    drop(execution);
}

/// A page of what is overdue, and a half more.
const MANY: usize = 400;

/// As many claims of a gateway that has died since.
async fn overdue() -> World {
    let dead = World::new();
    for number in 0..MANY {
        let (execution, _) = dead.execute(&format!("k{number}")).await;
        std::mem::forget(execution);
    }
    dead.clock.advance(LEASE);
    dead.neighbour(2)
}

#[tokio::test]
async fn l3_one_round_expires_whatever_is_overdue() {
    let world = overdue().await;
    assert_eq!(world.engine.upkeep().await.expired, MANY);
    assert_eq!(world.engine.upkeep().await.expired, 0);
}

#[tokio::test]
async fn a_round_ends_though_nothing_of_what_is_overdue_can_be_written() {
    let world = overdue().await;
    let faults = world.store.faults();
    faults.fail(Call::Write, Fault::Unavailable, u32::MAX);
    assert_eq!(world.engine.upkeep().await.expired, 0);
    faults.heal();
    assert_eq!(world.engine.upkeep().await.expired, MANY);
}

/// Upkeep in the background, on a clock that runs only where nothing else does.
async fn in_the_background(world: &World, test: impl Future<Output = ()>) {
    let upkeep = world.engine.run_upkeep();
    tokio::select! {
        () = upkeep => unreachable!("it has no end"),
        () = test => {}
    }
}

#[tokio::test(start_paused = true)]
async fn leases_are_looked_at_ten_times_in_each() {
    let world = World::with(onlyonce_engine::Settings {
        lease: Duration::from_millis(600),
        ..settings()
    });
    let (execution, _) = world.execute("k").await;
    world.clock.advance(Duration::from_millis(300));
    in_the_background(&world, async {
        sleep(Duration::from_millis(59)).await;
        assert_eq!(execution.fence().epoch, execution.claimed().epoch);
        sleep(Duration::from_millis(10)).await;
        assert!(execution.fence().epoch > execution.claimed().epoch);
    })
    .await;
    drop(execution);
}

#[tokio::test(start_paused = true)]
async fn l7_space_comes_back_every_five_seconds() {
    let world = World::new();
    world.completed("k", "charged").await;
    world.clock.advance(WINDOW);
    in_the_background(&world, async {
        sleep(Duration::from_millis(4_900)).await;
        assert_eq!(world.store.status().records, 1);
        sleep(Duration::from_millis(1_200)).await;
        assert_eq!(world.store.status().records, 0);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_books_are_kept_every_second_and_trimmed_every_ten_minutes() {
    let world = World::with(onlyonce_engine::Settings {
        books: Some(Duration::from_secs(10 * 86_400)),
        ..settings()
    });
    let entries = async || world.store.feed(None, 10).await.expect("a feed").len();
    world.completed("k", "charged").await;
    in_the_background(&world, async {
        assert_eq!(entries().await, 0);
        sleep(Duration::from_millis(1_500)).await;
        assert_eq!(entries().await, 1);
        world.clock.advance(Duration::from_secs(12 * 86_400));
        sleep(Duration::from_millis(598_000)).await;
        assert_eq!(entries().await, 1);
        sleep(Duration::from_millis(1_000)).await;
        assert_eq!(entries().await, 0);
    })
    .await;
}
