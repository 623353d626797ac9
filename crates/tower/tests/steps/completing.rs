//! The completer.

use std::sync::Arc;

use axum::Router;
use axum::http::HeaderMap;
use axum::routing::post;
use onlyonce_core::{Fingerprint, Got, Policy, RequestLine, Scope, StateName, UnknownReason};
use onlyonce_engine::{Begin, RoutePolicy};
use onlyonce_store::MemoryStore;
use onlyonce_tower::{Call, Completer, Failure, Key, Once, OnceLayer, Operation, Rules, StepError};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

use crate::http::{request, send};
use crate::world::{Broke, Counter, LEASE, World, charge, reason_of};

fn process() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn call() -> Call {
    let key = Key::new("k").unwrap();
    Call::new(key)
        .name("report")
        .input(&"october")
        .complete_abandoned()
}

/// Two steps: a charge, and the report.
async fn report(operation: Operation, month: String, bank: Counter) -> Result<String, StepError> {
    let number = charge(&operation, &bank).await?;
    let step = operation.step("make", async || {
        Ok::<_, Failure>(format!("{month}, charge {number}"))
    });
    step.await
}

fn completer(once: &Once<MemoryStore>, bank: &Counter) -> Completer<MemoryStore> {
    let bank = bank.clone();
    once.completer()
        .register("report", move |operation, month| {
            report(operation, month, bank.clone())
        })
}

/// A process that dies between the first step and the second one. The clock moves on by a lease.
fn die(world: &World, bank: &Counter) {
    let runtime = process();
    let (tell, told) = oneshot::channel();
    let once = runtime.block_on(async { world.another() });
    let bank = bank.clone();
    runtime.spawn(async move {
        let run = once.run(call(), async move |operation| {
            charge(&operation, &bank).await?;
            tell.send(()).unwrap();
            std::future::pending::<()>().await;
            Ok::<_, Failure>(String::new())
        });
        run.await
    });
    runtime.block_on(told).unwrap();
    // Nothing in there moves any more, and nothing is tidied up.
    std::mem::forget(runtime);
    world.clock.advance(LEASE);
}

#[test]
fn what_a_dead_process_left_is_continued_with_what_it_was_asked_for() {
    let here = process();
    let world = here.block_on(async { World::new() });
    let bank = Counter::default();
    die(&world, &bank);
    here.block_on(async {
        let completer = completer(&world.once, &bank);
        // Somebody has to find out that it is dead.
        world.once.engine().upkeep().await;
        assert_eq!(completer.round().await.unwrap(), 1);
        assert_eq!(completer.round().await.unwrap(), 0);
        let record = world.operation().await;
        assert_eq!(record.state.name(), StateName::Completed);
        let operation = world
            .once
            .engine()
            .operation(record.id)
            .await
            .unwrap()
            .unwrap();
        let attempts: Vec<_> = operation
            .attempts
            .iter()
            .map(|attempt| (&*attempt.peer, attempt.got))
            .collect();
        assert_eq!(
            attempts,
            [("", Got::Executed), ("completer", Got::Executed)]
        );
        let again = world
            .once
            .run(call(), async |_| -> Result<String, Failure> {
                unreachable!("it is done")
            });
        assert_eq!(again.await.unwrap(), "october, charge 1");
        assert_eq!(bank.hits(), 1);
    });
}

#[test]
fn i01_two_completers_at_once_execute_it_once() {
    let here = process();
    let world = here.block_on(async { World::new() });
    let bank = Counter::default();
    die(&world, &bank);
    let made = Counter::default();
    here.block_on(async {
        let completers = [world.once.clone(), world.another()].map(|once| {
            let (bank, made) = (bank.clone(), made.clone());
            once.completer()
                .register("report", move |operation: Operation, month: String| {
                    let (bank, made) = (bank.clone(), made.clone());
                    async move {
                        made.hit();
                        report(operation, month, bank).await
                    }
                })
        });
        world.once.engine().upkeep().await;
        let [one, other] = &completers;
        let (one, other) = tokio::join!(one.round(), other.round());
        assert!(one.unwrap() + other.unwrap() >= 1);
        assert_eq!(made.hits(), 1);
        assert_eq!(bank.hits(), 1);
        assert_eq!(world.operation().await.state.name(), StateName::Completed);
    });
}

#[test]
fn what_failed_is_left_alone_and_what_stopped_between_steps_is_not() {
    let here = process();
    here.block_on(async {
        for (failure, continued) in [
            (Failure::from(Broke), 0),
            (Failure::did_not_run("no line"), 1),
        ] {
            let world = World::new();
            let bank = Counter::default();
            let first = bank.clone();
            let ran = world.once.run(call(), async move |operation| {
                charge(&operation, &first).await?;
                Err::<String, _>(failure)
            });
            ran.await.unwrap_err();
            let round = completer(&world.once, &bank).round().await;
            assert_eq!(round.unwrap(), continued);
            assert_eq!(bank.hits(), 1);
        }
    });
}

#[test]
fn what_stopped_at_an_unknown_step_waits_until_that_is_settled() {
    let here = process();
    here.block_on(async {
        let world = World::new();
        let bank = Counter::default();
        let call = call();
        let ran = world.once.run(call, async move |operation| {
            let step = operation.step("charge", async || Err::<usize, _>(Failure::from(Broke)));
            Ok::<_, Failure>(step.await?.to_string())
        });
        ran.await.unwrap_err();
        let completer = completer(&world.once, &bank);
        assert_eq!(completer.round().await.unwrap(), 0);
        world
            .resolve(world.step("charge").await.unwrap().id, Some("9"))
            .await;
        assert_eq!(completer.round().await.unwrap(), 1);
        assert_eq!(world.operation().await.state.name(), StateName::Completed);
        assert_eq!(bank.hits(), 0);
    });
}

#[test]
fn i07_an_unknown_record_of_another_scope_keeps_the_completer_from_nothing() {
    // Whoever called an operation of their own like a step of this one stopped it for good.
    let here = process();
    here.block_on(async {
        let world = World::new();
        let bank = Counter::default();
        let ran = world
            .once
            .run(call().tenant("acme"), async move |operation| {
                let step = operation.step("charge", async || Err::<usize, _>(Failure::from(Broke)));
                Ok::<_, Failure>(step.await?.to_string())
            });
        ran.await.unwrap_err();
        let step = world.step("charge").await.unwrap();
        world.resolve(step.id, Some("9")).await;
        let operation = world.operation().await;
        for scope in [
            ("beta", "run/steps"),
            ("acme", "other/steps"),
            ("acme", "run/steps/steps"),
        ] {
            plant(&world, scope, &format!("{}/x", operation.id)).await;
        }
        let round = completer(&world.once, &bank).round().await;
        assert_eq!(round.unwrap(), 1);
        let attempt = world.once.engine().operation(operation.id).await.unwrap();
        assert_eq!(
            attempt.unwrap().stored.record.state.name(),
            StateName::Completed
        );
    });
}

/// Leaves an unknown operation behind, straight in the engine.
async fn plant(world: &World, (tenant, namespace): (&str, &str), key: &str) {
    let request = onlyonce_engine::Request {
        scope: Scope {
            tenant: tenant.into(),
            namespace: namespace.into(),
        },
        key: Key::new(key).unwrap(),
        fingerprint: Fingerprint::from_bytes([7; 32]),
        line: RequestLine {
            route: "planted".into(),
            method: "POST".into(),
            path: "/".into(),
            trace: None,
        },
        peer: "".into(),
        asked_model: "".into(),
        sdk_retry_count: None,
        trace: None,
    };
    let policy = RoutePolicy {
        decision: Policy::default(),
        window: LEASE,
        join_timeout: LEASE,
    };
    let begun = world.once.engine().begin(request, &policy).await;
    let Ok(Begin::Execute(execution, _)) = begun else {
        panic!("the key is taken");
    };
    execution.lose(UnknownReason::HandlerFailed).await.unwrap();
}

#[test]
fn what_was_not_kept_is_not_continued() {
    let here = process();
    here.block_on(async {
        let world = World::new();
        let bank = Counter::default();
        let call = Call::new(Key::new("k").unwrap())
            .name("report")
            .input(&"october");
        let ran = world.once.run(call.resume(), async move |operation| {
            charge(&operation, &Counter::default()).await?;
            Err::<String, _>(Failure::did_not_run("no line"))
        });
        ran.await.unwrap_err();
        let round = completer(&world.once, &bank).round().await;
        assert_eq!(round.unwrap(), 0);
    });
}

#[test]
fn what_stops_every_time_is_left_alone_after_so_many_attempts() {
    let here = process();
    here.block_on(async {
        let world = World::new();
        let runs = Counter::default();
        let counts = runs.clone();
        let stops = move |operation: Operation, _: String| {
            let runs = counts.clone();
            async move {
                runs.hit();
                charge(&operation, &Counter::default()).await?;
                Err::<String, _>(Failure::did_not_run("no line"))
            }
        };
        let first = stops.clone();
        let ran = world
            .once
            .run(call(), move |operation| first(operation, String::new()));
        ran.await.unwrap_err();
        let completer = world
            .once
            .completer()
            .register("report", stops)
            .most_attempts(3);
        for _ in 0..5 {
            completer.round().await.unwrap();
        }
        assert_eq!(runs.hits(), 1 + 3);
    });
}

#[test]
fn i02_what_is_asked_for_is_kept_before_anything_runs() {
    let here = process();
    here.block_on(async {
        let world = World::new();
        let store = world.store.clone();
        let ran = world.once.run(call(), async move |_| {
            use onlyonce_store::Store;
            let query = onlyonce_store::Query {
                limit: 10,
                ..Default::default()
            };
            let records = store.list(query).await?.records;
            let kept = records
                .iter()
                .find(|stored| stored.record.scope.has_steps());
            let kept = &kept.ok_or(Broke)?.record;
            Ok::<_, Failure>(kept.state.name().as_str().to_owned())
        });
        assert_eq!(ran.await.unwrap(), "completed");
    });
}

/// The handler behind the layer: it says who asks, and what came.
fn app(
    once: &Once<MemoryStore>,
    bank: &Counter,
    dies: Option<oneshot::Sender<()>>,
) -> (OnceLayer<MemoryStore>, Router) {
    let bank = bank.clone();
    let dies = Arc::new(parking_lot::Mutex::new(dies));
    let handler =
        move |operation: Operation, uri: axum::http::Uri, headers: HeaderMap, body: String| {
            let (bank, dies) = (bank.clone(), dies.lock().take());
            async move {
                let number = charge(&operation, &bank).await?;
                if let Some(tell) = dies {
                    tell.send(()).unwrap();
                    std::future::pending::<()>().await;
                }
                let credential = headers.contains_key("authorization");
                let kind = headers["content-type"].to_str().unwrap_or_default();
                let tenant = operation.tenant();
                Ok::<_, StepError>(format!(
                    "charge {number} for {tenant}: {uri} {body} {kind}, credential {credential}"
                ))
            }
        };
    let layer = OnceLayer::new(once.clone(), Rules::default().complete_abandoned());
    let app = Router::new()
        .route("/reports", post(handler))
        .layer(layer.clone());
    (layer, app)
}

#[test]
fn i16_a_request_that_a_dead_process_left_is_continued_without_its_credential() {
    let here = process();
    let world = here.block_on(async { World::new() });
    let bank = Counter::default();
    let dying = process();
    let (tell, told) = oneshot::channel();
    let (_, left) = dying.block_on(async { app(&world.another(), &bank, Some(tell)) });
    dying.spawn(async move { drop(tower::ServiceExt::oneshot(left, request()).await) });
    dying.block_on(told).unwrap();
    std::mem::forget(dying);
    world.clock.advance(LEASE);
    here.block_on(async {
        let (layer, app) = app(&world.once, &bank, None);
        let completer = world
            .once
            .completer()
            .serve::<axum::body::Body>(&layer, app.clone());
        world.once.engine().upkeep().await;
        let tenant = world.operation().await.scope.tenant.clone();
        assert!(tenant.starts_with("cred_"), "{tenant}");
        assert_eq!(completer.round().await.unwrap(), 1);
        assert_eq!(world.operation().await.state.name(), StateName::Completed);
        // The caller comes again, and gets what the completer came to.
        let (status, response, body) = send(&app).await;
        assert_eq!(status, 200);
        assert_eq!(response.headers()["onlyonce-status"], "replayed");
        assert_eq!(
            body,
            format!(
                "charge 1 for {tenant}: /reports?month=10 october text/plain, credential false"
            )
        );
        assert_eq!(bank.hits(), 1);
        // And the same request still counts as the same, another one as another.
        let other = axum::http::Request::post("/reports")
            .header("authorization", "Bearer me-and-nobody-else")
            .header("idempotency-key", "k")
            .body(axum::body::Body::from("november"))
            .unwrap();
        let refused = tower::ServiceExt::oneshot(app, other).await.unwrap();
        assert_eq!(refused.status(), 422);
    });
}

#[test]
fn who_comes_before_the_completer_continues_it() {
    let here = process();
    let world = here.block_on(async { World::new() });
    let bank = Counter::default();
    die(&world, &bank);
    here.block_on(async {
        let mine = bank.clone();
        let ran = world.once.run(call(), move |operation| {
            report(operation, "october".into(), mine)
        });
        assert_eq!(ran.await.unwrap(), "october, charge 1");
        world.once.engine().upkeep().await;
        assert_eq!(completer(&world.once, &bank).round().await.unwrap(), 0);
        assert_eq!(bank.hits(), 1);
    });
}

#[test]
#[should_panic(expected = "complete_abandoned")]
fn a_layer_that_keeps_nothing_is_not_taken() {
    process().block_on(async {
        let world = World::new();
        let layer = OnceLayer::new(world.once.clone(), Rules::default().resume());
        let app: Router = Router::new().layer(layer.clone());
        let _ = world
            .once
            .completer()
            .serve::<axum::body::Body>(&layer, app);
    });
}

#[test]
#[should_panic(expected = "the namespace service has two services")]
fn a_second_service_of_a_namespace_is_not_taken() {
    process().block_on(async {
        let world = World::new();
        let [one, other] = [(); 2].map(|()| app(&world.once, &Counter::default(), None));
        let completer = world.once.completer();
        let _ = completer
            .serve::<axum::body::Body>(&one.0, one.1)
            .serve::<axum::body::Body>(&other.0, other.1);
    });
}

#[test]
fn it_looks_at_its_start_and_ends_with_the_shutdown() {
    let here = process();
    let world = here.block_on(async { World::new() });
    let bank = Counter::default();
    die(&world, &bank);
    here.block_on(async {
        world.once.engine().upkeep().await;
        assert_eq!(
            reason_of(&*world.operation().await),
            Some(UnknownReason::LeasePassed)
        );
        completer(&world.once, &bank).start();
        while world.operation().await.state.name() != StateName::Completed {
            tokio::task::yield_now().await;
        }
        world
            .once
            .shutdown(std::time::Duration::ZERO)
            .await
            .unwrap();
    });
}
