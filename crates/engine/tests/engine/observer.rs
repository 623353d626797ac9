//! Who is told what came of operations, what they used, and what attempts were spared.

use std::sync::Arc;

use onlyonce_core::{Got, Metered, Source, StateName, UnknownReason};
use onlyonce_engine::{Observer, Resolution, Unsettled, Work};
use onlyonce_store::memory::{Call, Fault};
use parking_lot::Mutex;

use crate::world::{LEASE, World, finish, head, no_trailers, policy, read, request, resend};

/// Notes what it is told.
#[derive(Default)]
struct Told(Mutex<Vec<String>>);

impl Told {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock())
    }
}

impl Observer for Told {
    fn unknown(&self, reason: UnknownReason) {
        self.0.lock().push(format!("unknown: {reason:?}"));
    }

    fn completed(&self, tenant: &str, metered: &Metered) {
        let line = format!("{tenant} used {}", metered.model);
        self.0.lock().push(line);
    }

    fn spared(&self, tenant: &str, metered: &Metered, got: Got, attempts: u32) {
        let line = format!("{tenant} {} {attempts} {}", got.as_str(), metered.model);
        self.0.lock().push(line);
    }
}

fn used(model: &str) -> Metered {
    Metered {
        model: model.into(),
        source: Source::Provider,
        ..Metered::default()
    }
}

fn observed() -> (World, Arc<Told>) {
    let told = Arc::new(Told::default());
    let world = World::new().observed(1, told.clone());
    (world, told)
}

#[tokio::test]
async fn a_completion_is_told_once_and_each_attempt_that_it_spares() {
    let (world, told) = observed();
    let (mut execution, _reader) = world.execute("k").await;
    let (one, other) = (world.join("k").await, world.join("k").await);
    execution.meter(used("m"));
    assert!(told.take().is_empty());
    // Who has left was spared an execution all the same.
    drop(other);
    finish(execution, "answer").await;
    assert_eq!(told.take(), ["acme used m", "acme joined 2 m"]);
    read(one).await;
    world.replay("k").await;
    assert_eq!(told.take(), ["acme replayed 1 m"]);
}

#[tokio::test]
async fn what_did_not_run_or_is_not_metered_is_not_told_and_of_an_unknown_outcome_only_why() {
    let (world, told) = observed();
    let (mut execution, _reader) = world.execute("unknown").await;
    let _joiner = world.join("unknown").await;
    execution.meter(used("m"));
    execution.lose(UnknownReason::Broke).await.expect("durable");
    assert_eq!(told.take(), ["unknown: Broke"]);
    let (execution, _reader) = world.execute("released").await;
    execution.not_sent("nobody there").await.expect("durable");
    world.completed("not-metered", "answer").await;
    world.replay("not-metered").await;
    assert!(told.take().is_empty());
}

#[tokio::test]
async fn an_unknown_outcome_is_told_once_it_is_known() {
    let (world, told) = observed();
    let (_, mut late) = world.timed_out("late").await;
    late.head(head(200)).await.expect("head");
    late.meter(used("late"));
    late.complete(no_trailers()).await.expect("durable");
    assert_eq!(told.take(), ["unknown: TimedOut", "acme used late"]);

    let (mut execution, _) = world.execute("looked-up").await;
    execution.meter(used("part"));
    let id = execution.id();
    execution.lose(UnknownReason::Broke).await.expect("durable");
    let resolution = Resolution::Completed {
        head: head(200),
        body: "answer".into(),
        trailers: no_trailers(),
        window: std::time::Duration::from_secs(60),
    };
    let resolved = world.rule(id, resolution).await;
    resolved.expect("resolved");
    assert_eq!(told.take(), ["unknown: Broke", "acme used part"]);

    // A resend that tells nothing: what its first execution told still stands.
    let (mut execution, _) = world.execute("resent").await;
    execution.meter(used("first"));
    execution.lose(UnknownReason::Broke).await.expect("durable");
    let (again, _reader) = world.execute_by("resent", &resend()).await;
    finish(again, "answer").await;
    assert_eq!(told.take(), ["unknown: Broke", "acme used first"]);
}

#[tokio::test]
async fn an_outcome_that_upkeep_writes_is_told_once_by_who_writes_it() {
    let (world, told) = observed();
    let (execution, _reader) = world.execute("not-recorded").await;
    let faults = world.store.faults();
    faults.fail(Call::Write, Fault::Unavailable, u32::MAX);
    let lost = execution.lose(UnknownReason::Broke).await;
    assert!(matches!(lost, Err(Unsettled::NotRecorded(_))));
    assert!(told.take().is_empty());
    faults.heal();
    world.engine.upkeep().await;
    world.engine.upkeep().await;
    assert_eq!(told.take(), ["unknown: Broke"]);

    let elsewhere = Arc::new(Told::default());
    let neighbour = world.observed(2, elsewhere.clone());
    let (_execution, _reader) = world.execute("owner-is-gone").await;
    world.clock.advance(LEASE);
    neighbour.engine.upkeep().await;
    world.engine.upkeep().await;
    assert_eq!(elsewhere.take(), ["unknown: LeasePassed"]);
    assert!(told.take().is_empty());
}

#[tokio::test]
async fn each_gateway_is_told_of_who_joined_there() {
    let (world, told) = observed();
    let elsewhere = Arc::new(Told::default());
    let neighbour = world.observed(2, elsewhere.clone());
    let (mut execution, _reader) = world.execute("k").await;
    let joiners = [neighbour.join("k").await, neighbour.join("k").await];
    execution.meter(used("m"));
    finish(execution, "answer").await;
    for joiner in joiners {
        read(joiner).await;
    }
    assert_eq!(told.take(), ["acme used m"]);
    assert_eq!(elsewhere.take(), ["acme joined 2 m"]);
}

#[tokio::test]
async fn what_a_worker_says_is_told_once_though_its_acknowledgement_was_lost() {
    let (world, told) = observed();
    let worker = world.engine.worker(None, LEASE);
    let begun = world
        .engine
        .begin_work(request("k"), worker, &policy())
        .await;
    let Ok(Work::Execute(granted)) = begun else {
        panic!("a new key executes");
    };
    let completion = Call::WriteOf(StateName::Completed);
    world
        .store
        .faults()
        .fail(completion, Fault::InDoubtWritten, 1);
    for _ in 0..2 {
        let (id, token, used) = (granted.id, &granted.token, Some(used("m")));
        let done = world
            .engine
            .complete_work(id, token, head(200), "done".into(), LEASE, used)
            .await;
        done.expect("durable");
    }
    assert_eq!(told.take(), ["acme used m"]);
}
