//! Functions that run once, without HTTP.

use std::sync::Arc;
use std::time::Duration;

use onlyonce_core::{Got, StateName};
use onlyonce_tower::{Call, Failure, Key, Once, Rules, RunError, StepError};
use serde_json::json;
use tokio::sync::{Notify, oneshot};

use crate::world::{Broke, Counter, World, charge, lost};

fn call(key: &str) -> Call {
    Call::new(Key::new(key).unwrap())
}

#[tokio::test]
async fn i01_a_function_runs_once_and_its_result_is_given_again() {
    let world = World::new();
    let runs = Counter::default();
    for _ in 0..3 {
        let runs = runs.clone();
        let ran = world.once.run(call("k"), async move |operation| {
            assert_eq!(operation.key().as_str(), "k");
            Ok::<_, Failure>(json!({"run": runs.hit(), "none": null, "zero": 0}))
        });
        let result: serde_json::Value = ran.await.unwrap();
        assert_eq!(result, json!({"run": 1, "none": null, "zero": 0}));
    }
    let record = world.operation().await;
    assert_eq!(
        (&*record.request.method, &*record.request.path),
        ("RUN", "run")
    );
    let operation = world
        .once
        .engine()
        .operation(record.id)
        .await
        .unwrap()
        .unwrap();
    let got: Vec<_> = operation
        .attempts
        .iter()
        .map(|attempt| attempt.got)
        .collect();
    assert_eq!(got, [Got::Executed, Got::Replayed, Got::Replayed]);
}

#[tokio::test]
async fn i07_nothing_but_a_step_is_in_a_namespace_of_steps() {
    // Such a call could pass for a step of whichever operation its key named.
    let world = World::new();
    let runs = Counter::default();
    let hits = runs.clone();
    let ran = world
        .once
        .run(call("k").namespace("run/steps"), async move |_| {
            Ok::<_, Failure>(runs.hit())
        });
    let error = ran.await.unwrap_err();
    assert!(matches!(error, RunError::Reserved { .. }), "{error:?}");
    assert_eq!(hits.hits(), 0);
    let named = std::panic::catch_unwind(|| Rules::default().namespace("reports/steps"));
    assert!(named.is_err());
}

#[tokio::test]
async fn a_result_that_is_nothing_is_a_result() {
    let world = World::new();
    let runs = Counter::default();
    for _ in 0..2 {
        let runs = runs.clone();
        let ran = world.once.run(call("k"), async move |_| {
            runs.hit();
            Ok::<Option<()>, Failure>(None)
        });
        assert_eq!(ran.await.unwrap(), None);
    }
    assert_eq!(runs.hits(), 1);
}

#[tokio::test]
async fn who_comes_while_it_runs_waits_for_the_same_result_also_in_another_process() {
    let world = World::new();
    let (go, gone) = (Arc::new(Notify::new()), Counter::default());
    let (tell, told) = oneshot::channel();
    let first = {
        let (once, go, gone) = (world.once.clone(), go.clone(), gone.clone());
        tokio::spawn(async move {
            once.run(call("k"), async move |_| {
                tell.send(()).unwrap();
                go.notified().await;
                Ok::<_, Failure>(gone.hit())
            })
            .await
        })
    };
    told.await.unwrap();
    let joined = [world.once.clone(), world.another()].map(|once: Once<_>| {
        tokio::spawn(async move {
            once.run(call("k"), async |_| -> Result<usize, Failure> {
                unreachable!("it runs already")
            })
            .await
        })
    });
    let id = world.operation().await.id;
    // Both have come: the execution, and two that joined it.
    loop {
        let operation = world.once.engine().operation(id).await.unwrap().unwrap();
        if operation.stored.attempts == 3 {
            break;
        }
        tokio::task::yield_now().await;
    }
    go.notify_one();
    assert_eq!(first.await.unwrap().unwrap(), 1);
    for joined in joined {
        assert_eq!(joined.await.unwrap().unwrap(), 1);
    }
    assert_eq!(gone.hits(), 1);
}

#[tokio::test]
async fn i06_the_same_key_with_another_input_or_name_runs_nothing() {
    let world = World::new();
    let run = |call: Call| world.once.run(call, async |_| Ok::<_, Failure>(1));
    let first = call("k").name("report").input(&json!({"a": 1, "b": 2}));
    run(first).await.unwrap();
    // The order of members says nothing.
    let same: &serde_json::value::RawValue = serde_json::from_str(r#"{"b": 2, "a":1}"#).unwrap();
    run(call("k").name("report").input(&same)).await.unwrap();
    for other in [
        call("k").name("report").input(&json!({"a": 1, "b": 3})),
        call("k").name("other").input(&json!({"a": 1, "b": 2})),
        call("k").name("report"),
    ] {
        let refused = run(other).await;
        assert!(matches!(refused, Err(RunError::KeyReused)), "{refused:?}");
    }
    run(call("k").namespace("elsewhere")).await.unwrap();
}

#[tokio::test]
async fn what_is_unknown_is_not_run_again_unless_the_call_says_so() {
    let world = World::new();
    let runs = Counter::default();
    for _ in 0..2 {
        let runs = runs.clone();
        lost(&world.once, call("k"), async move |_| {
            runs.hit();
            Err(Broke.into())
        })
        .await;
    }
    assert_eq!(runs.hits(), 1);
}

#[tokio::test]
async fn what_did_not_run_runs_with_the_next_call() {
    let world = World::new();
    let ran = world.once.run(call("k"), async |_| {
        Err::<usize, _>(Failure::did_not_run("no line"))
    });
    assert!(matches!(ran.await, Err(RunError::DidNotRun { .. })));
    let ran = world.once.run(call("k"), async |_| Ok::<_, Failure>(1));
    assert_eq!(ran.await.unwrap(), 1);
}

#[tokio::test]
async fn a_panic_leaves_it_unknown_and_stops_nobody_else() {
    let world = World::new();
    let ran = world
        .once
        .run(call("k"), async |_| -> Result<usize, Failure> {
            panic!("a bug in a function")
        });
    let ran = ran.await;
    assert!(matches!(ran, Err(RunError::Unknown { .. })), "{ran:?}");
    let ran = world.once.run(call("other"), async |_| Ok::<_, Failure>(1));
    assert_eq!(ran.await.unwrap(), 1);
}

#[tokio::test]
async fn a_caller_that_goes_away_stops_nothing() {
    let world = World::new();
    let go = Arc::new(Notify::new());
    let (tell, told) = oneshot::channel();
    let waits = go.clone();
    let mut running = Box::pin(world.once.run(call("k"), async move |_| {
        tell.send(()).unwrap();
        waits.notified().await;
        Ok::<_, Failure>(1)
    }));
    tokio::select! {
        _ = &mut running => unreachable!("it waits"),
        told = told => told.unwrap(),
    }
    drop(running);
    go.notify_one();
    let again = world
        .once
        .run(call("k"), async |_| -> Result<usize, Failure> {
            unreachable!("it runs already")
        });
    assert_eq!(again.await.unwrap(), 1);
}

#[tokio::test]
async fn at_the_end_what_runs_is_unknown_and_its_steps_are_too() {
    let world = World::new();
    let (tell, told) = oneshot::channel();
    let once = world.once.clone();
    let running = tokio::spawn(async move {
        once.run(call("k"), async move |operation| {
            let step = operation.step("charge", async || {
                tell.send(()).unwrap();
                std::future::pending::<()>().await;
                Ok::<_, Failure>(1)
            });
            step.await
        })
        .await
    });
    told.await.unwrap();
    let deadline = Duration::from_millis(1);
    world.once.shutdown(deadline).await.unwrap();
    let ran = running.await.unwrap();
    assert!(matches!(ran, Err(RunError::Unknown { .. })), "{ran:?}");
    assert_eq!(world.operation().await.state.name(), StateName::Unknown);
    assert_eq!(world.state_of("charge").await, Some(StateName::Unknown));
}

#[tokio::test]
async fn i10_what_a_function_left_behind_runs_no_step_after_its_end() {
    // A task that outlived its function ran a step, whatever had become of the operation.
    let world = World::new();
    let bank = Counter::default();
    for (key, result) in [
        ("released", Err(Failure::did_not_run("no line"))),
        ("completed", Ok(1)),
        ("unknown", Err(Failure::from(Broke))),
    ] {
        let (give, left) = oneshot::channel();
        let ran = world.once.run(call(key), async move |operation| {
            give.send(operation).unwrap();
            result
        });
        let _: Result<usize, _> = ran.await;
        let late = charge(&left.await.unwrap(), &bank).await;
        assert!(
            matches!(late, Err(StepError::Ended { .. })),
            "{key}: {late:?}"
        );
    }
    assert_eq!(bank.hits(), 0);
    assert!(world.step("charge").await.is_none());
}
