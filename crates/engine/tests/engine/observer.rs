//! Who is told what operations used, and what attempts were spared.

use std::sync::Arc;

use onlyonce_core::{Got, Metered, Source, UnknownReason};
use onlyonce_engine::{Observer, Resolution};
use parking_lot::Mutex;

use crate::world::{World, finish, head, no_trailers, read, resend};

/// Notes what it is told.
#[derive(Default)]
struct Told(Mutex<Vec<String>>);

impl Told {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock())
    }
}

impl Observer for Told {
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
async fn what_has_no_outcome_or_did_not_run_or_is_not_metered_is_not_told() {
    let (world, told) = observed();
    let (mut execution, _reader) = world.execute("unknown").await;
    let _joiner = world.join("unknown").await;
    execution.meter(used("m"));
    execution.lose(UnknownReason::Broke).await.expect("durable");
    let (execution, _reader) = world.execute("released").await;
    execution.not_sent("nobody there").await.expect("durable");
    world.completed("not-metered", "answer").await;
    world.replay("not-metered").await;
    assert!(told.take().is_empty());
}

#[tokio::test]
async fn an_unknown_outcome_is_told_once_it_is_known() {
    let (world, told) = observed();
    let (execution, _) = world.execute("late").await;
    let late = execution.lose_for_now(UnknownReason::TimedOut).await;
    let mut late = late.expect("durable");
    late.head(head(200)).await.expect("head");
    late.meter(used("late"));
    late.complete(no_trailers()).await.expect("durable");
    assert_eq!(told.take(), ["acme used late"]);

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
    let resolved = world
        .engine
        .resolve(id, resolution, "ops", "looked it up")
        .await;
    resolved.expect("resolved");
    assert_eq!(told.take(), ["acme used part"]);

    // A resend that tells nothing: what its first execution told still stands.
    let (mut execution, _) = world.execute("resent").await;
    execution.meter(used("first"));
    execution.lose(UnknownReason::Broke).await.expect("durable");
    let (again, _reader) = world.execute_by("resent", &resend()).await;
    finish(again, "answer").await;
    assert_eq!(told.take(), ["acme used first"]);
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
